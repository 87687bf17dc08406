//! How a configuration file becomes [`Options`]: every key, its default, and Fabric's remarks about defaults.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::tree::{Node, Report, Section};
use super::{
    Ack, Admin, Authentication, Bccsp, BootstrapMethod, CONFIG_DIRECTORIES, CONFIG_FILE,
    CONFIG_PATH_VARIABLE, ChannelParticipation, Cluster, ClusterListener, Consensus, Debug,
    FileLedger, General, Keepalive, Loaded, LogFormat, MAX_CONFIG_BYTES, Metrics, MetricsProvider,
    Operations, Options, OptionsError, Profile, Quorate, Statsd, StatsdNetwork, Tls,
};

/// Go's `int` where we count in 64 bits, `int32` where gRPC does.
const MAX_INT: u64 = i64::MAX as u64;
const MAX_INT32: u64 = i32::MAX as u64;

/// The sections whose variables are ours beyond doubt.
const SECTIONS: [&str; 10] = [
    "General",
    "FileLedger",
    "Debug",
    "Consensus",
    "Operations",
    "Metrics",
    "ChannelParticipation",
    "Admin",
    "Quorate",
    "Kafka",
];

/// Finds `orderer.yaml` in the directory of [`CONFIG_PATH_VARIABLE`] or one of [`CONFIG_DIRECTORIES`], and reads it as
/// [`read`] does.
///
/// # Errors
/// The file is not there, cannot be read, is not YAML, or contains what cannot be used.
pub fn load(environment: &BTreeMap<String, String>) -> Result<Loaded, OptionsError> {
    let directories: Vec<PathBuf> = match environment.get(CONFIG_PATH_VARIABLE) {
        Some(path) if !path.is_empty() => vec![PathBuf::from(path)],
        _ => CONFIG_DIRECTORIES.iter().map(PathBuf::from).collect(),
    };
    for directory in &directories {
        let path = directory.join(CONFIG_FILE);
        let unreadable = |source| OptionsError::Unreadable {
            path: path.clone(),
            source,
        };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(unreadable(error)),
        };
        let mut text = String::new();
        file.take(MAX_CONFIG_BYTES + 1)
            .read_to_string(&mut text)
            .map_err(unreadable)?;
        if text.len() as u64 > MAX_CONFIG_BYTES {
            return Err(OptionsError::Yaml {
                path,
                reason: format!("it is larger than {MAX_CONFIG_BYTES} bytes"),
            });
        }
        // Paths are joined to the directory, and must stay true when the working directory is another one.
        let directory = std::path::absolute(directory).map_err(unreadable)?;
        return read(&text, &directory, environment);
    }
    let searched: Vec<String> = directories
        .iter()
        .map(|directory| directory.display().to_string())
        .collect();
    Err(OptionsError::NotFound {
        searched: searched.join(", "),
    })
}

/// Reads the text of a configuration file that lies in `directory`, with `ORDERER_…` variables of `environment` laid
/// over it. Relative paths are joined to `directory`.
///
/// # Errors
/// The text is not YAML or contains what cannot be used; all problems are reported at once.
pub fn read(
    text: &str,
    directory: &Path,
    environment: &BTreeMap<String, String>,
) -> Result<Loaded, OptionsError> {
    let file = directory.join(CONFIG_FILE);
    let tree: Option<Node> = serde_saphyr::from_str(text).map_err(|error| OptionsError::Yaml {
        path: file.clone(),
        // Without the lines around the error: they may hold a PIN.
        reason: first_line(&error.to_string()),
    })?;
    let report = Report::new(directory, environment);
    let root = Section::new(&report, String::new(), tree.unwrap_or(Node::Null));
    let options = all(&report, &root);
    root.end();
    report.warn_of_unused_variables(&SECTIONS);
    match report.finish() {
        Ok(remarks) => Ok(Loaded {
            options,
            file,
            remarks,
        }),
        Err(problems) => Err(OptionsError::Invalid { problems }),
    }
}

fn first_line(text: &str) -> String {
    text.lines()
        .find(|line| !line.trim().is_empty())
        .unwrap_or("unknown error")
        .trim()
        .to_owned()
}

fn all(report: &Report<'_>, root: &Section<'_>) -> Options {
    let general = general(report, root.section("General"));
    let file_ledger = file_ledger(report, root.section("FileLedger"));
    if root.has("Kafka") {
        report.warn(
            "the section Kafka is ignored: ordering by Kafka is not supported, remove it from the configuration",
        );
    }
    let debug = {
        let section = root.section("Debug");
        let debug = Debug {
            broadcast_trace_dir: section.path("BroadcastTraceDir"),
            deliver_trace_dir: section.path("DeliverTraceDir"),
        };
        section.end();
        debug
    };
    let consensus = consensus(root.section("Consensus"), &file_ledger);
    let operations = {
        let section = root.section("Operations");
        let operations = Operations {
            listen_address: section.text_or("ListenAddress", &Operations::default().listen_address),
            tls: tls(section.section("TLS")),
        };
        section.end();
        operations
    };
    let metrics = metrics(root.section("Metrics"));
    let channel_participation = {
        let section = root.section("ChannelParticipation");
        let defaults = ChannelParticipation::default();
        let participation = ChannelParticipation {
            enabled: section.boolean("Enabled"),
            max_request_body_size: narrow(section.size_or(
                "MaxRequestBodySize",
                u64::from(u32::MAX),
                u64::from(defaults.max_request_body_size),
            )),
        };
        section.end();
        participation
    };
    let admin = {
        let section = root.section("Admin");
        let admin = Admin {
            listen_address: section.text_or("ListenAddress", &Admin::default().listen_address),
            tls: tls(section.section("TLS")),
        };
        section.end();
        admin
    };
    let quorate = quorate(root.section("Quorate"));
    Options {
        general,
        file_ledger,
        debug,
        consensus,
        operations,
        metrics,
        channel_participation,
        admin,
        quorate,
    }
}

fn general(report: &Report<'_>, section: Section<'_>) -> General {
    let defaults = General::default();
    let listen_address = section.text_or_remark("ListenAddress", &defaults.listen_address);
    let listen_port = match narrow::<u16>(section.number("ListenPort", u64::from(u16::MAX))) {
        0 => {
            section.unset("ListenPort", &defaults.listen_port);
            defaults.listen_port
        }
        port => port,
    };
    let (bootstrap_method, bootstrap_file) = bootstrap(report, &section);
    let general = General {
        listen_address,
        listen_port,
        tls: tls(section.section("TLS")),
        cluster: cluster(section.section("Cluster")),
        keepalive: keepalive(section.section("Keepalive")),
        connection_timeout: section.duration("ConnectionTimeout"),
        max_recv_msg_size: narrow(section.size_or(
            "MaxRecvMsgSize",
            MAX_INT32,
            u64::from(defaults.max_recv_msg_size),
        )),
        max_send_msg_size: narrow(section.size_or(
            "MaxSendMsgSize",
            MAX_INT32,
            u64::from(defaults.max_send_msg_size),
        )),
        bootstrap_method,
        bootstrap_file,
        profile: profile(report, section.section("Profile")),
        local_msp_dir: {
            let set = section.path("LocalMSPDir");
            set.unwrap_or_else(|| {
                section.unset("LocalMSPDir", &defaults.local_msp_dir.display());
                report.directory().join(&defaults.local_msp_dir)
            })
        },
        local_msp_id: section.text_or_remark("LocalMSPID", &defaults.local_msp_id),
        bccsp: bccsp(section.section("BCCSP")),
        authentication: authentication(section.section("Authentication")),
    };
    section.end();
    general
}

/// The method and the file, under their names of today or of Fabric v1.
fn bootstrap(report: &Report<'_>, section: &Section<'_>) -> (BootstrapMethod, PathBuf) {
    const METHODS: [(&str, BootstrapMethod); 2] = [
        ("file", BootstrapMethod::File),
        ("none", BootstrapMethod::None),
    ];
    let old_method = section.text("GenesisMethod");
    let method = if section.text("BootstrapMethod").is_empty() && !old_method.is_empty() {
        report.warn("General.GenesisMethod should be replaced by General.BootstrapMethod");
        section.word("GenesisMethod", &METHODS)
    } else {
        section.word("BootstrapMethod", &METHODS)
    };
    let old_file = section.path("GenesisFile");
    let file = match (section.path("BootstrapFile"), old_file) {
        (Some(file), _) => file,
        (None, Some(old)) => {
            report.warn("General.GenesisFile should be replaced by General.BootstrapFile");
            old
        }
        (None, None) => report.directory().join(General::default().bootstrap_file),
    };
    (method, file)
}

fn tls(section: Section<'_>) -> Tls {
    let tls = Tls {
        enabled: section.boolean("Enabled"),
        private_key: section.path("PrivateKey"),
        certificate: section.path("Certificate"),
        root_cas: section.paths("RootCAs"),
        client_auth_required: section.boolean("ClientAuthRequired"),
        client_root_cas: section.paths("ClientRootCAs"),
        handshake_time_shift: section.duration("TLSHandshakeTimeShift"),
    };
    if tls.enabled {
        for (key, file) in [
            ("Certificate", &tls.certificate),
            ("PrivateKey", &tls.private_key),
        ] {
            if file.is_none() {
                section.refuse(
                    key,
                    "is not set, but TLS is enabled there; name the PEM file or disable TLS",
                );
            }
        }
    }
    section.end();
    tls
}

fn cluster(section: Section<'_>) -> Cluster {
    let defaults = Cluster::default();
    let count = |key: &'static str, default: u32| match section.number(key, MAX_INT32) {
        0 => default,
        count => narrow(count),
    };
    let cluster = Cluster {
        listen_address: section.text("ListenAddress"),
        listen_port: narrow(section.number("ListenPort", u64::from(u16::MAX))),
        server_certificate: section.path("ServerCertificate"),
        server_private_key: section.path("ServerPrivateKey"),
        client_certificate: section.path("ClientCertificate"),
        client_private_key: section.path("ClientPrivateKey"),
        root_cas: section.paths("RootCAs"),
        dial_timeout: section.duration_or("DialTimeout", defaults.dial_timeout),
        rpc_timeout: section.duration_or("RPCTimeout", defaults.rpc_timeout),
        replication_buffer_size: section.size_or(
            "ReplicationBufferSize",
            MAX_INT,
            defaults.replication_buffer_size,
        ),
        replication_pull_timeout: section
            .duration_or("ReplicationPullTimeout", defaults.replication_pull_timeout),
        replication_retry_timeout: section.duration_or(
            "ReplicationRetryTimeout",
            defaults.replication_retry_timeout,
        ),
        replication_background_refresh_interval: section.duration_or(
            "ReplicationBackgroundRefreshInterval",
            defaults.replication_background_refresh_interval,
        ),
        replication_max_retries: count("ReplicationMaxRetries", defaults.replication_max_retries),
        send_buffer_size: count("SendBufferSize", defaults.send_buffer_size),
        cert_expiration_warning_threshold: section.duration_or(
            "CertExpirationWarningThreshold",
            defaults.cert_expiration_warning_threshold,
        ),
        tls_handshake_time_shift: section.duration("TLSHandshakeTimeShift"),
    };
    section.end();
    cluster
}

fn keepalive(section: Section<'_>) -> Keepalive {
    let keepalive = Keepalive {
        server_min_interval: section.duration("ServerMinInterval"),
        server_interval: section.duration("ServerInterval"),
        server_timeout: section.duration("ServerTimeout"),
    };
    section.end();
    keepalive
}

fn profile(report: &Report<'_>, section: Section<'_>) -> Profile {
    let profile = Profile {
        enabled: section.boolean("Enabled"),
        address: section.text_or("Address", &Profile::default().address),
    };
    if profile.enabled {
        report.warn("General.Profile is ignored: Go's profiler does not exist here");
    }
    section.end();
    profile
}

/// Fabric itself is lenient here: each build of it knows other keys.
fn bccsp(section: Section<'_>) -> Bccsp {
    let provider = section.text_or("Default", "SW");
    if !provider.eq_ignore_ascii_case("SW") {
        section.refuse(
            "Default",
            &format!(
                "is `{}`, but only SW is supported: keys are files of the MSP folder",
                provider.escape_debug()
            ),
        );
    }
    section.has("PKCS11");
    let software = section.section("SW");
    let hash = software.text_or("Hash", "SHA2");
    let security = software.number("Security", MAX_INT32);
    if !hash.eq_ignore_ascii_case("SHA2") || !matches!(security, 0 | 256) {
        software.refuse(
            "Hash",
            &format!(
                "and Security are `{}` and {security}, but only SHA2 and 256 are supported",
                hash.escape_debug()
            ),
        );
    }
    let store = software.section("FileKeyStore");
    let bccsp = Bccsp {
        key_store: store.path("KeyStore"),
    };
    store.end_leniently();
    software.end_leniently();
    section.end_leniently();
    bccsp
}

fn authentication(section: Section<'_>) -> Authentication {
    let defaults = Authentication::default();
    let time_window = section.duration("TimeWindow");
    let authentication = Authentication {
        time_window: if time_window.is_zero() {
            section.unset("TimeWindow", &"15m0s");
            defaults.time_window
        } else {
            time_window
        },
        no_expiration_checks: section.boolean("NoExpirationChecks"),
    };
    section.end();
    authentication
}

fn file_ledger(report: &Report<'_>, section: Section<'_>) -> FileLedger {
    let location = section.path("Location").unwrap_or_else(|| {
        let default = FileLedger::default().location;
        section.unset("Location", &default.display());
        default
    });
    if !section.text("Prefix").is_empty() {
        report.warn("FileLedger.Prefix is ignored: ledgers in temporary folders are not supported");
    }
    section.end();
    FileLedger { location }
}

/// Fabric leaves this section to its consensus plugins, which do not mind further keys.
fn consensus(section: Section<'_>, file_ledger: &FileLedger) -> Consensus {
    let consensus = Consensus {
        wal_dir: section
            .path("WALDir")
            .unwrap_or_else(|| file_ledger.location.join("etcdraft/wal")),
        snap_dir: section
            .path("SnapDir")
            .unwrap_or_else(|| file_ledger.location.join("etcdraft/snapshot")),
        eviction_suspicion: section
            .duration_or("EvictionSuspicion", Consensus::default().eviction_suspicion),
        tick_interval_override: Some(section.duration("TickIntervalOverride"))
            .filter(|interval| !interval.is_zero()),
    };
    section.end_leniently();
    consensus
}

fn metrics(section: Section<'_>) -> Metrics {
    let provider = section.word(
        "Provider",
        &[
            ("disabled", MetricsProvider::Disabled),
            ("prometheus", MetricsProvider::Prometheus),
            ("statsd", MetricsProvider::Statsd),
        ],
    );
    let defaults = Statsd::default();
    let inner = section.section("Statsd");
    let statsd = Statsd {
        network: inner.word(
            "Network",
            &[("udp", StatsdNetwork::Udp), ("tcp", StatsdNetwork::Tcp)],
        ),
        address: inner.text_or("Address", &defaults.address),
        write_interval: inner.duration_or("WriteInterval", defaults.write_interval),
        prefix: inner.text("Prefix"),
    };
    inner.end();
    section.end();
    Metrics { provider, statsd }
}

fn quorate(section: Section<'_>) -> Quorate {
    let ack = section.word(
        "Ack",
        &[("enqueued", Ack::Enqueued), ("committed", Ack::Committed)],
    );
    let log = section.section("Log");
    let log_format = log.word(
        "Format",
        &[("fabric", LogFormat::Fabric), ("json", LogFormat::Json)],
    );
    log.end();
    section.end();
    Quorate { ack, log_format }
}

/// A number that has been read with the bound of its type.
fn narrow<T: TryFrom<u64>>(number: u64) -> T {
    T::try_from(number)
        .ok()
        .expect("numbers are bounded when they are read")
}

pub(super) fn cluster_listener(options: &Options) -> Result<Option<ClusterListener>, OptionsError> {
    let cluster = &options.general.cluster;
    let some = cluster.listen_port != 0
        || !cluster.listen_address.is_empty()
        || cluster.server_certificate.is_some()
        || cluster.server_private_key.is_some();
    if !some {
        if !options.general.tls.enabled {
            return Err(refused(
                "TLS is required for running ordering nodes of cluster type: enable General.TLS, or set General.Cluster's listener with certificates of its own",
            ));
        }
        return Ok(None);
    }
    match (&cluster.server_certificate, &cluster.server_private_key) {
        (Some(certificate), Some(private_key))
            if cluster.listen_port != 0 && !cluster.listen_address.is_empty() =>
        {
            Ok(Some(ClusterListener {
                address: cluster.listen_address.clone(),
                port: cluster.listen_port,
                certificate: certificate.clone(),
                private_key: private_key.clone(),
            }))
        }
        _ => Err(refused(
            "Options: General.Cluster.ListenPort, General.Cluster.ListenAddress, General.Cluster.ServerCertificate, General.Cluster.ServerPrivateKey, should be defined altogether.",
        )),
    }
}

pub(super) fn cluster_client_pair(options: &Options) -> Result<(PathBuf, PathBuf), OptionsError> {
    let cluster = &options.general.cluster;
    let tls = &options.general.tls;
    match (&cluster.client_certificate, &cluster.client_private_key) {
        (Some(certificate), Some(key)) => Ok((certificate.clone(), key.clone())),
        (None, None) => match (&tls.certificate, &tls.private_key) {
            (Some(certificate), Some(key)) => Ok((certificate.clone(), key.clone())),
            _ => Err(refused(
                "General.Cluster.ClientCertificate and General.Cluster.ClientPrivateKey are not set, and General.TLS has no pair to inherit; set them: orderers know each other by these certificates",
            )),
        },
        _ => Err(refused(
            "General.Cluster.ClientCertificate and General.Cluster.ClientPrivateKey must be set together, or neither",
        )),
    }
}

fn refused(problem: &str) -> OptionsError {
    OptionsError::Unusable {
        problem: problem.to_owned(),
    }
}
