//! Corda's examples are accepted as they stand, and mistakes are named.

use super::*;

fn parse(text: &str) -> Result<Configuration, String> {
    let options = LoadOptions::default();
    Configuration::parse(text, FILE_NAME, Path::new("/base"), &options)
        .map_err(|error| error.to_string())
}

/// The files of Corda's guide to its firewall, but for names.
const FLOAT: &str = r#"
firewallMode = FloatOuter
inboundConfig {
    listeningAddress = "dmzexternal1:10005"
}
floatOuterConfig {
    floatAddress = "dmzinternal1:12005"
    expectedCertificateSubject = "CN=bridge,O=Tunnel,L=London,C=GB"
    tunnelSSLConfiguration {
        keyStorePassword = "floatpass"
        trustStorePassword = "trustpass"
        sslKeystore = "./floatcerts/float.jks"
        trustStoreFile = "./floatcerts/trust.jks"
    }
}
"#;
const BRIDGE: &str = r#"
firewallMode = BridgeInner
outboundConfig {
    artemisBrokerAddress = "artemiserver:11005"
    alternateArtemisBrokerAddresses = [ "artemiserver2:11005" ]
    proxyConfig {
       version = SOCKS5
       proxyAddress = "proxyserver:12345"
       userName = "proxyuser"
       password = "password"
    }
    artemisSSLConfiguration {
        sslKeystore = artemis/artemis.jks
        keyStorePassword = artemisStorePass
        trustStoreFile = artemis/artemis-truststore.jks
        trustStorePassword = artemisTrustpass
    }
}
bridgeInnerConfig {
    floatAddresses = ["dmzinternal1:12005", "dmzinternal2:12005"]
    expectedCertificateSubject = "CN=float,O=Tunnel,L=London,C=GB"
    tunnelSSLConfiguration {
        keyStorePassword = "bridgepass"
        trustStorePassword = "trustpass"
        sslKeystore = "./bridgecerts/bridge.jks"
        trustStoreFile = "./bridgecerts/trust.jks"
    }
}
haConfig {
    haConnectionString = "zk://zookeep1:11105,zk://zookeep2:11105,zk://zookeep3:11105"
}
networkParametersPath = network-parameters
"#;
const BOTH: &str = r#"
firewallMode = SenderReceiver
outboundConfig {
    artemisBrokerAddress = "nodeserver:11005"
}
inboundConfig {
    listeningAddress = "bridgeexternal:10005"
}
networkParametersPath = network-parameters
"#;

#[test]
fn the_guides_examples_are_accepted() {
    let float = parse(FLOAT).unwrap();
    let outer = float.float_outer.unwrap();
    assert_eq!(outer.float_address.to_string(), "dmzinternal1:12005");
    assert_eq!(
        outer.link.key_store,
        Path::new("/base/./floatcerts/float.jks")
    );
    assert!(float.outbound.is_none() && float.bridge_inner.is_none());
    assert!(float.findings.warnings.is_empty());

    let bridge = parse(BRIDGE).unwrap();
    let outbound = bridge.outbound.as_ref().unwrap();
    assert_eq!((outbound.nodes.len(), outbound.link.private), (2, true));
    let proxy = outbound.proxy.as_ref().unwrap();
    assert_eq!(proxy.version, ProxyVersion::Socks5);
    assert_eq!(
        bridge.bridge_inner.as_ref().unwrap().float_addresses.len(),
        2
    );
    assert_eq!(
        bridge.findings.notes.len(),
        2,
        "{:?}",
        bridge.findings.notes
    );
    let shown = bridge.describe();
    for secret in ["bridgepass", "artemisStorePass", "\"password\""] {
        assert!(!shown.contains(secret), "{shown}");
    }

    let both = parse(BOTH).unwrap();
    let link = both.outbound.unwrap().link;
    assert_eq!(
        link.key_store,
        Path::new("/base/certificates/sslkeystore.json")
    );
    assert_eq!(
        (link.private, link.key_store_password.expose()),
        (false, "cordacadevpass")
    );
}

#[test]
fn everything_configurable_arrives() {
    let more = "artemisReconnectionIntervalMin = 200, artemisReconnectionIntervalMax = 400\n\
                sslHandshakeTimeout = 3000, bridgeConnectionTTLSeconds = 7, healthCheckPhrase = hello\n\
                auditServiceConfiguration.loggingIntervalSec = 5, silencedIPs = [ \"10.0.0.1\", \"::1\" ]\n\
                inboundConfig { maxPendingHandshakes = 9, maxConnections = 8 }\n\
                operations.address = \"localhost:9443\", revocationConfig.mode = OFF, healthCheck = true";
    let float = parse(&format!("{FLOAT}{more}")).unwrap();
    let millis = Duration::from_millis;
    assert_eq!(float.reconnection, (millis(200), millis(400)));
    assert_eq!(float.handshake_timeout, millis(3000));
    assert_eq!(float.connection_ttl, Some(Duration::from_secs(7)));
    assert_eq!(float.statistics_interval, Duration::from_secs(5));
    assert_eq!(float.health_check_phrase.as_deref(), Some("hello"));
    assert_eq!(float.silenced_ips.len(), 2);
    assert!(float.operations_address.is_some());
    let inbound = float.inbound.unwrap();
    assert_eq!(
        (inbound.max_pending_handshakes, inbound.max_connections),
        (9, 8)
    );
}

#[test]
fn mistakes_are_named_with_the_way_out() {
    for (text, key, words) in [
        (
            "firewallMode = Bridge".to_owned(),
            "firewallMode",
            "SenderReceiver, BridgeInner, FloatOuter",
        ),
        (String::new(), "firewallMode", "is missing"),
        (
            "firewallMode = FloatOuter".to_owned(),
            "inboundConfig",
            "is missing; a FloatOuter needs it",
        ),
        (
            format!("{FLOAT}outboundConfig.artemisBrokerAddress = \"a:1\""),
            "outboundConfig",
            "must not be there",
        ),
        (
            format!("{FLOAT}inboundConfig.listenAddress = \"a:1\""),
            "inboundConfig.listenAddress",
            "listeningAddress",
        ),
        (
            format!("{FLOAT}floatOuterConfig.expectedCertificateSubject = nobody"),
            "floatOuterConfig.expectedCertificateSubject",
            "",
        ),
        (
            format!("{FLOAT}revocationConfig.mode = HARD_FAIL"),
            "revocationConfig.mode",
            "write OFF",
        ),
        (
            format!("{FLOAT}enableAMQPPacketTrace = true"),
            "enableAMQPPacketTrace",
            "remove",
        ),
        (
            format!("{FLOAT}tunnelingCryptoServiceConfig.name = X"),
            "tunnelingCryptoServiceConfig",
            "in files",
        ),
        (
            format!("{BRIDGE}bridgeInnerConfig.floatAddresses = []"),
            "bridgeInnerConfig.floatAddresses",
            "at least one",
        ),
        (
            format!("{BRIDGE}outboundConfig.proxyConfig.version = SOCKS4"),
            "outboundConfig.proxyConfig.password",
            "not known to SOCKS4",
        ),
        (
            format!(
                "{BRIDGE}outboundConfig.alternateArtemisBrokerAddresses = [ \"artemiserver:11005\" ]"
            ),
            "outboundConfig.alternateArtemisBrokerAddresses",
            "twice",
        ),
        (
            format!(
                "{BRIDGE}artemisReconnectionIntervalMin = 20000, artemisReconnectionIntervalMax = 10"
            ),
            "artemisReconnectionIntervalMax",
            "less than",
        ),
    ] {
        let error = parse(&text).unwrap_err();
        assert!(
            error.contains(&format!("`{key}`")) && error.contains(words),
            "{key}: {error}"
        );
    }
    let (open, _) = FLOAT.split_once("tunnelSSLConfiguration").unwrap();
    let float = parse(&format!("{open}}}")).unwrap();
    assert!(!float.float_outer.unwrap().link.private);
    assert_eq!(float.findings.warnings.len(), 1);
}

#[test]
fn the_recipes_are_sound() {
    let environment: Environment = [
        "OUTER_ADDRESS",
        "INNER_ADDRESS",
        "LOAD_BALANCER_ADDRESS",
        "NODE1",
        "FLOAT1",
    ]
    .map(|name| (name, "10.0.0.1"))
    .into_iter()
    .chain([("NODE2", "10.0.0.2"), ("FLOAT2", "10.0.0.2")])
    .chain([
        ("LINK_PASSWORD", "secret"),
        ("LINK_TRUST_PASSWORD", "secret"),
    ])
    .collect();
    let options = LoadOptions {
        environment,
        ..LoadOptions::default()
    };
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/firewall");
    for name in ["float.conf", "bridge.conf"] {
        let loaded = Configuration::load(&deploy, Some(&deploy.join(name)), &options);
        let loaded = loaded.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(
            loaded.findings.warnings.is_empty(),
            "{name}: {:?}",
            loaded.findings.warnings
        );
    }
}
