#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use quorate_testkit::hostile::{Shape, torment};

use super::*;

const DIRECTORY: &str = "/etc/orderer";

fn environment(variables: &[(&str, &str)]) -> BTreeMap<String, String> {
    variables
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

fn options_with(text: &str, variables: &[(&str, &str)]) -> Options {
    read(text, Path::new(DIRECTORY), &environment(variables))
        .unwrap()
        .options
}

fn options(text: &str) -> Options {
    options_with(text, &[])
}

fn remarks(text: &str, variables: &[(&str, &str)]) -> Vec<Remark> {
    read(text, Path::new(DIRECTORY), &environment(variables))
        .unwrap()
        .remarks
}

fn refusal(text: &str) -> String {
    match read(text, Path::new(DIRECTORY), &BTreeMap::new()) {
        Ok(loaded) => panic!("accepted: {:?}", loaded.options),
        Err(error) => error.to_string(),
    }
}

fn path(text: &str) -> PathBuf {
    PathBuf::from(text)
}

/// Every key that Fabric v2.5 knows, in the order of its sample.
const EVERYTHING: &str = r"---
General:
  ListenAddress: 0.0.0.0
  ListenPort: 7150
  TLS: &tls
    Enabled: true
    PrivateKey: tls/server.key
    Certificate: tls/server.crt
    RootCAs:
      - tls/ca.crt
      - /abs/ca.crt
    ClientAuthRequired: true
    ClientRootCAs: [tls/clients.crt]
    TLSHandshakeTimeShift: 5m
  Keepalive:
    ServerMinInterval: 60s
    ServerInterval: 7200s
    ServerTimeout: 20s
  MaxRecvMsgSize: 104857601
  MaxSendMsgSize: 104857602
  ConnectionTimeout: 3s
  Cluster:
    SendBufferSize: 101
    ClientCertificate: cluster/client.crt
    ClientPrivateKey: cluster/client.key
    ListenPort: 7151
    ListenAddress: 127.0.0.1
    ServerCertificate: cluster/server.crt
    ServerPrivateKey: cluster/server.key
    RootCAs: [cluster/ca.crt]
    DialTimeout: 6s
    RPCTimeout: 8s
    ReplicationBufferSize: 20971521
    ReplicationPullTimeout: 7s
    ReplicationRetryTimeout: 9s
    ReplicationBackgroundRefreshInterval: 6m
    ReplicationMaxRetries: 13
    CertExpirationWarningThreshold: 100h
    TLSHandshakeTimeShift: 10m
  BootstrapMethod: none
  BootstrapFile: some.block
  LocalMSPDir: my/msp
  LocalMSPID: OrdererMSP
  Profile:
    Enabled: false
    Address: 127.0.0.1:6061
  BCCSP:
    Default: SW
    SW:
      Hash: SHA2
      Security: 256
      FileKeyStore:
        KeyStore: keys
    PKCS11:
      Library:
      Label:
      Pin: 123456
      Hash:
      Security:
  Authentication:
    TimeWindow: 16m
    NoExpirationChecks: true
FileLedger:
  Location: ledger
  Prefix:
Debug:
  BroadcastTraceDir: traces/broadcast
  DeliverTraceDir:
Operations:
  ListenAddress: 127.0.0.1:8444
  TLS: *tls
Metrics:
  Provider: statsd
  Statsd:
    Network: tcp
    Address: 127.0.0.1:8126
    WriteInterval: 5s
    Prefix: ordererorg_orderer
Admin:
  ListenAddress: 127.0.0.1:9444
  TLS:
    Enabled: false
ChannelParticipation:
  Enabled: true
  MaxRequestBodySize: 2 MB
Consensus:
  WALDir: /wal
  SnapDir: snap
  EvictionSuspicion: 5s
  TickIntervalOverride: 642ms
Quorate:
  Ack: committed
  Log:
    Format: json
";

#[test]
fn every_key_reaches_its_option() {
    let tls = Tls {
        enabled: true,
        private_key: Some(path("/etc/orderer/tls/server.key")),
        certificate: Some(path("/etc/orderer/tls/server.crt")),
        root_cas: vec![path("/etc/orderer/tls/ca.crt"), path("/abs/ca.crt")],
        client_auth_required: true,
        client_root_cas: vec![path("/etc/orderer/tls/clients.crt")],
        handshake_time_shift: Duration::from_secs(300),
    };
    let expected = Options {
        general: General {
            listen_address: "0.0.0.0".to_owned(),
            listen_port: 7150,
            tls: tls.clone(),
            cluster: Cluster {
                listen_address: "127.0.0.1".to_owned(),
                listen_port: 7151,
                server_certificate: Some(path("/etc/orderer/cluster/server.crt")),
                server_private_key: Some(path("/etc/orderer/cluster/server.key")),
                client_certificate: Some(path("/etc/orderer/cluster/client.crt")),
                client_private_key: Some(path("/etc/orderer/cluster/client.key")),
                root_cas: vec![path("/etc/orderer/cluster/ca.crt")],
                dial_timeout: Duration::from_secs(6),
                rpc_timeout: Duration::from_secs(8),
                replication_buffer_size: 20_971_521,
                replication_pull_timeout: Duration::from_secs(7),
                replication_retry_timeout: Duration::from_secs(9),
                replication_background_refresh_interval: Duration::from_secs(360),
                replication_max_retries: 13,
                send_buffer_size: 101,
                cert_expiration_warning_threshold: Duration::from_secs(360_000),
                tls_handshake_time_shift: Duration::from_secs(600),
            },
            keepalive: Keepalive {
                server_min_interval: Duration::from_secs(60),
                server_interval: Duration::from_secs(7200),
                server_timeout: Duration::from_secs(20),
            },
            connection_timeout: Duration::from_secs(3),
            max_recv_msg_size: 104_857_601,
            max_send_msg_size: 104_857_602,
            bootstrap_method: BootstrapMethod::None,
            bootstrap_file: path("/etc/orderer/some.block"),
            profile: Profile {
                enabled: false,
                address: "127.0.0.1:6061".to_owned(),
            },
            local_msp_dir: path("/etc/orderer/my/msp"),
            local_msp_id: "OrdererMSP".to_owned(),
            bccsp: Bccsp {
                key_store: Some(path("/etc/orderer/keys")),
            },
            authentication: Authentication {
                time_window: Duration::from_secs(960),
                no_expiration_checks: true,
            },
        },
        file_ledger: FileLedger {
            location: path("/etc/orderer/ledger"),
        },
        debug: Debug {
            broadcast_trace_dir: Some(path("/etc/orderer/traces/broadcast")),
            deliver_trace_dir: None,
        },
        consensus: Consensus {
            wal_dir: path("/wal"),
            snap_dir: path("/etc/orderer/snap"),
            eviction_suspicion: Duration::from_secs(5),
            tick_interval_override: Some(Duration::from_millis(642)),
        },
        operations: Operations {
            listen_address: "127.0.0.1:8444".to_owned(),
            tls,
        },
        metrics: Metrics {
            provider: MetricsProvider::Statsd,
            statsd: Statsd {
                network: StatsdNetwork::Tcp,
                address: "127.0.0.1:8126".to_owned(),
                write_interval: Duration::from_secs(5),
                prefix: "ordererorg_orderer".to_owned(),
            },
        },
        channel_participation: ChannelParticipation {
            enabled: true,
            max_request_body_size: 2 << 20,
        },
        admin: Admin {
            listen_address: "127.0.0.1:9444".to_owned(),
            tls: Tls::default(),
        },
        quorate: Quorate {
            ack: Ack::Committed,
            log_format: LogFormat::Json,
        },
    };
    let loaded = read(EVERYTHING, Path::new(DIRECTORY), &BTreeMap::new()).unwrap();
    assert_eq!(loaded.options, expected);
    assert_eq!(loaded.remarks, []);
}

#[test]
fn nothing_means_the_defaults_and_fabrics_remarks() {
    for text in [
        "",
        "---\n",
        "General:\n",
        "General: {}\nConsensus:\nAdmin:\n",
    ] {
        let loaded = read(text, Path::new(DIRECTORY), &BTreeMap::new()).unwrap();
        let mut expected = Options::default();
        expected.general.bootstrap_file = path("/etc/orderer/genesisblock");
        expected.general.local_msp_dir = path("/etc/orderer/msp");
        assert_eq!(loaded.options, expected, "{text}");
        for remark in [
            "General.ListenAddress unset, setting to 127.0.0.1",
            "General.ListenPort unset, setting to 7050",
            "General.LocalMSPID unset, setting to SampleOrg",
            "General.Authentication.TimeWindow unset, setting to 15m0s",
        ] {
            assert!(
                loaded.remarks.contains(&Remark::Info(remark.to_owned())),
                "{remark}: {:?}",
                loaded.remarks
            );
        }
    }
}

#[test]
fn files_rewritten_by_a_go_encoder_are_read() {
    // Durations in Go's own form, absent lists gone or empty, nulls, keys in alphabetical order.
    let options = options(
        r#"
Admin:
    ListenAddress: 127.0.0.1:20004
    TLS: {Certificate: /t/server.crt, ClientAuthRequired: true, ClientRootCAs: [/t/ca.crt], Enabled: true, PrivateKey: /t/server.key}
ChannelParticipation: {Enabled: true, MaxRequestBodySize: 1 MB}
Consensus: {EvictionSuspicion: 5s, SnapDir: /o/snap, TickIntervalOverride: "", WALDir: /o/wal}
Debug: {BroadcastTraceDir: null, DeliverTraceDir: ""}
FileLedger: {Location: /o/system, Prefix: ""}
General:
    Authentication: {TimeWindow: 15m0s}
    BCCSP: {Default: SW, SW: {FileKeyStore: {KeyStore: ""}, Hash: SHA2, Security: 256}}
    BootstrapFile: /o/systemchannel_block.pb
    BootstrapMethod: none
    Cluster:
        ClientCertificate: ""
        ClientPrivateKey: ""
        DialTimeout: 5s
        ListenAddress: ""
        ListenPort: 0
        RPCTimeout: 7s
        ReplicationBufferSize: 20971520
        ReplicationPullTimeout: 5s
        ReplicationRetryTimeout: 5s
        ServerCertificate: ""
        ServerPrivateKey: ""
        TLSHandshakeTimeShift: 0s
    Keepalive: {ServerInterval: 2h0m0s, ServerMinInterval: 1m0s, ServerTimeout: 20s}
    ListenAddress: 127.0.0.1
    ListenPort: 20003
    LocalMSPDir: /o/msp
    LocalMSPID: OrdererMSP
    Profile: {Address: "127.0.0.1:20001", Enabled: false}
    TLS: {Certificate: /t/server.crt, ClientAuthRequired: false, ClientRootCAs: [], Enabled: true, PrivateKey: /t/server.key, RootCAs: [/t/ca.crt], TLSHandshakeTimeShift: 5m0s}
Kafka: {Retry: {LongInterval: 5m0s}, Verbose: false}
Metrics: {Provider: prometheus, Statsd: {Address: "127.0.0.1:0", Network: udp, Prefix: ordererorg_orderer, WriteInterval: 5s}}
Operations: {ListenAddress: "127.0.0.1:20002", TLS: {Certificate: /t/server.crt, ClientAuthRequired: false, ClientRootCAs: [/t/ca.crt], Enabled: true, PrivateKey: /t/server.key}}
"#,
    );
    assert_eq!(
        options.general.keepalive.server_interval,
        Duration::from_secs(7200)
    );
    assert_eq!(
        options.general.tls.handshake_time_shift,
        Duration::from_secs(300)
    );
    assert_eq!(options.consensus.tick_interval_override, None);
    assert_eq!(options.channel_participation.max_request_body_size, 1 << 20);
    // The cluster service shares the general listener and its certificates.
    assert_eq!(options.cluster_listener().unwrap(), None);
    assert_eq!(
        options.cluster_client_pair().unwrap(),
        (path("/t/server.crt"), path("/t/server.key"))
    );
}

#[test]
fn variables_override_the_file() {
    let options = options_with(
        "General:\n  listenport: 1\n  TLS: {Enabled: false}\n",
        &[
            ("ORDERER_GENERAL_LISTENPORT", "7777"),
            ("ORDERER_GENERAL_LISTENADDRESS", ""),
            ("ORDERER_GENERAL_TLS_ENABLED", "true"),
            ("ORDERER_GENERAL_TLS_CERTIFICATE", "/x/cert"),
            ("ORDERER_GENERAL_TLS_PRIVATEKEY", "key"),
            ("ORDERER_GENERAL_TLS_ROOTCAS", "[/x/ca1, ca2]"),
            ("ORDERER_GENERAL_TLS_CLIENTROOTCAS", "/x/ca3"),
            ("ORDERER_GENERAL_CLUSTER_SENDBUFFERSIZE", "7"),
            ("ORDERER_GENERAL_AUTHENTICATION_NOEXPIRATIONCHECKS", "true"),
            ("ORDERER_GENERAL_AUTHENTICATION_TIMEWINDOW", "200000h"),
            ("ORDERER_CONSENSUS_WALDIR", "/x/wal"),
            ("ORDERER_CHANNELPARTICIPATION_MAXREQUESTBODYSIZE", "3 MB"),
            ("ORDERER_METRICS_STATSD_NETWORK", "tcp"),
            ("ORDERER_QUORATE_LOG_FORMAT", "json"),
        ],
    );
    assert_eq!(options.general.listen_port, 7777);
    assert_eq!(options.general.listen_address, "127.0.0.1");
    let tls = &options.general.tls;
    assert!(tls.enabled);
    assert_eq!(tls.certificate, Some(path("/x/cert")));
    assert_eq!(tls.private_key, Some(path("/etc/orderer/key")));
    assert_eq!(tls.root_cas, [path("/x/ca1"), path("/etc/orderer/ca2")]);
    assert_eq!(tls.client_root_cas, [path("/x/ca3")]);
    assert_eq!(options.general.cluster.send_buffer_size, 7);
    assert!(options.general.authentication.no_expiration_checks);
    assert_eq!(
        options.general.authentication.time_window,
        Duration::from_secs(200_000 * 3600)
    );
    assert_eq!(options.consensus.wal_dir, path("/x/wal"));
    assert_eq!(options.channel_participation.max_request_body_size, 3 << 20);
    assert_eq!(options.metrics.statsd.network, StatsdNetwork::Tcp);
    assert_eq!(options.quorate.log_format, LogFormat::Json);
}

#[test]
fn variables_without_a_key_are_warned_of_and_a_platforms_own_are_not() {
    let remarks = remarks(
        "",
        &[
            ("ORDERER_GENERAL_LISTNPORT", "7050"),
            ("ORDERER_PORT", "tcp://10.0.0.1:7050"),
            ("ORDERER_SERVICE_HOST", "10.0.0.1"),
        ],
    );
    let warnings: Vec<&Remark> = remarks
        .iter()
        .filter(|remark| matches!(remark, Remark::Warning(_)))
        .collect();
    assert_eq!(
        warnings,
        [&Remark::Warning(
            "the environment variable ORDERER_GENERAL_LISTNPORT is ignored: it sets no known key; did you mean ORDERER_GENERAL_LISTENPORT?".to_owned()
        )]
    );
}

#[test]
fn unknown_keys_are_refused_in_fabrics_words() {
    assert_eq!(
        refusal("General:\n  ListnPort: 7050\n"),
        "Error unmarshaling config into struct: 1 error(s) decoding:\n\n* 'General' has invalid keys: ListnPort (did you mean ListenPort?)"
    );
    // A file of Fabric v3.
    assert!(
        refusal("General:\n  Throttling: {Rate: 0}\n")
            .contains("* 'General' has invalid keys: Throttling"),
    );
    let text = refusal(
        "Generall: {}\nGeneral:\n  TLS: {enabled: false, Enabled: false}\n  Keepalive: {A: 1, B: 2}\n",
    );
    for line in [
        "* '' has invalid keys: Generall (did you mean General?)",
        "* 'General.TLS' has invalid keys: Enabled (Enabled is given twice)",
        "* 'General.Keepalive' has invalid keys: A, B",
    ] {
        assert!(text.contains(line), "{text}");
    }
}

#[test]
fn values_that_cannot_be_used_are_named_all_at_once() {
    let text = refusal(
        r"
General:
  ListenPort: 70000
  TLS: {Enabled: perhaps, RootCAs: {File: x}}
  Keepalive: []
  BootstrapMethod: provisional
  BCCSP: {Default: PKCS11}
  Authentication: {TimeWindow: fortnight}
  Cluster: {TLSHandshakeTimeShift: -5m}
Operations: {TLS: {Enabled: true, Certificate: x}}
ChannelParticipation: {MaxRequestBodySize: 5 GB}
Quorate: {Ack: never}
",
    );
    assert_eq!(text.matches("\n* ").count(), 11, "{text}");
    for part in [
        "'General.ListenPort' is `70000`, which is not a whole number from 0 to 65535",
        "'General.TLS.Enabled' is `perhaps`, which is neither true nor false",
        "'General.TLS.RootCAs' must be a list of file names, but is a section",
        "'General.Keepalive' must be a section with keys, but is a list",
        "'General.BootstrapMethod' is `provisional`, but must be one of file, none",
        "'General.BCCSP.Default' is `PKCS11`, but only SW is supported",
        "'General.Authentication.TimeWindow' is `fortnight`, which is not a duration",
        "'General.Cluster.TLSHandshakeTimeShift' is `-5m`, which must not be negative",
        "'Operations.TLS.PrivateKey' is not set, but TLS is enabled there",
        "'ChannelParticipation.MaxRequestBodySize' is `5 GB`, which is not a size",
        "'Quorate.Ack' is `never`, but must be one of enqueued, committed",
    ] {
        assert!(text.contains(part), "{part}\nis not in\n{text}");
    }
}

#[test]
fn what_is_no_longer_used_is_accepted_with_a_warning() {
    let text = r"
General: {GenesisMethod: file, GenesisFile: old.block, Profile: {Enabled: true}, Authentication: {TimeWindow: 900}}
FileLedger: {Prefix: x}
Kafka: {Version: 0.10.2.0, Whatever: {x: 1}}
Consensus: {WALDirr: /x}
";
    let loaded = read(text, Path::new(DIRECTORY), &BTreeMap::new()).unwrap();
    assert_eq!(
        loaded.options.general.bootstrap_file,
        path("/etc/orderer/old.block")
    );
    let warnings: Vec<&str> = loaded
        .remarks
        .iter()
        .filter_map(|remark| match remark {
            Remark::Warning(text) => Some(text.as_str()),
            Remark::Info(_) => None,
        })
        .collect();
    for part in [
        "General.GenesisMethod should be replaced by General.BootstrapMethod",
        "General.GenesisFile should be replaced by General.BootstrapFile",
        "General.Profile is ignored",
        "General.Authentication.TimeWindow is 900 without a unit",
        "FileLedger.Prefix is ignored",
        "the section Kafka is ignored",
        "Consensus.WALDirr is not a known key and is ignored (did you mean WALDir?)",
    ] {
        assert!(
            warnings.iter().any(|warning| warning.starts_with(part)),
            "{part}: {warnings:?}"
        );
    }
}

#[test]
fn the_cluster_listener_is_configured_altogether_or_not_at_all() {
    let with = |cluster: &str, tls: &str| {
        options(&format!(
            "General:\n  TLS: {{{tls}}}\n  Cluster: {{{cluster}}}\n"
        ))
        .cluster_listener()
    };
    let tls = "Enabled: true, Certificate: c, PrivateKey: k";
    assert_eq!(with("", tls).unwrap(), None);
    assert!(
        with("", "")
            .unwrap_err()
            .to_string()
            .starts_with("TLS is required")
    );
    let whole = "ListenAddress: h, ListenPort: 1, ServerCertificate: c, ServerPrivateKey: k";
    assert_eq!(
        with(whole, "").unwrap(),
        Some(ClusterListener {
            address: "h".to_owned(),
            port: 1,
            certificate: path("/etc/orderer/c"),
            private_key: path("/etc/orderer/k"),
        })
    );
    for left_out in 0..4 {
        let mut parts: Vec<&str> = whole.split(", ").collect();
        parts.remove(left_out);
        let error = with(&parts.join(", "), tls).unwrap_err().to_string();
        assert!(error.ends_with("should be defined altogether."), "{error}");
    }
}

#[test]
fn the_file_is_found_where_the_variable_points() {
    let directory = tempfile::tempdir().unwrap();
    let variables = environment(&[(CONFIG_PATH_VARIABLE, directory.path().to_str().unwrap())]);
    assert!(matches!(
        load(&variables),
        Err(OptionsError::NotFound { .. })
    ));
    let file = directory.path().join(CONFIG_FILE);
    std::fs::write(&file, "General: {LocalMSPDir: here}\n").unwrap();
    let loaded = load(&variables).unwrap();
    assert_eq!(loaded.file, file);
    assert_eq!(
        loaded.options.general.local_msp_dir,
        directory.path().join("here")
    );
    std::fs::write(&file, "General: [\n  secret: hunter2\n").unwrap();
    let error = load(&variables).unwrap_err();
    assert!(matches!(error, OptionsError::Yaml { .. }), "{error}");
    assert!(!error.to_string().contains("hunter2"), "{error}");
    std::fs::write(&file, [0xff, 0xfe]).unwrap();
    assert!(matches!(
        load(&variables),
        Err(OptionsError::Unreadable { .. })
    ));
}

#[test]
fn files_that_blow_up_are_refused() {
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let before = level - 1;
        bomb.push_str(&format!(
            "a{level}: &a{level} [{}]\n",
            vec![format!("*a{before}"); 10].join(", ")
        ));
    }
    assert!(!refusal(&bomb).is_empty());
    assert!(!refusal(&"[".repeat(100_000)).is_empty());
}

#[test]
fn forged_files_are_read_or_refused() {
    let sample = [EVERYTHING.as_bytes().to_vec()];
    torment("orderer.yaml", Shape::Text, &sample, 1_000, |bytes| {
        if let Ok(text) = std::str::from_utf8(bytes) {
            let _ = read(text, Path::new(DIRECTORY), &environment(&[]));
        }
    });
}
