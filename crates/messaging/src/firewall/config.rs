//! `firewall.conf`: HOCON with the keys of Corda's firewall.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use quorate_identity::node_keys::{
    DEVELOPMENT_KEY_STORE_PASSWORD, DEVELOPMENT_TRUST_STORE_PASSWORD, SSL_KEY_STORE, TRUST_STORE,
};
use quorate_identity::{
    CertRole, KeyStoreError, PathError, TlsParty, UnixTime, X500Name, link_keys, validate_path,
};
use quorate_runtime::Secret;
use quorate_runtime::config::{
    Findings, OnUnknownKeys, Problems, Report, Section, apply_environment, expand_dotted_keys,
};
use quorate_runtime::hocon::{self, Environment, Value};

use super::proxy::{MAX_CREDENTIAL_BYTES, Proxy, ProxyVersion};
use crate::options::{
    DEFAULT_HANDSHAKE_TIMEOUT, DEFAULT_MAX_CONNECTIONS, DEFAULT_MAX_PENDING_HANDSHAKES, HostAndPort,
};

/// The name of the file in the base directory.
pub const FILE_NAME: &str = "firewall.conf";
/// Nodes, and machines of nodes, that one bridge may be linked to.
const MAX_NODES: usize = 64;
/// Floats that one bridge may be linked to.
const MAX_FLOATS: usize = 16;
/// Default of `artemisReconnectionIntervalMin`.
const DEFAULT_RECONNECTION_MIN: Duration = Duration::from_secs(1);
/// Default of `artemisReconnectionIntervalMax`. Shorter than Corda's, for it bounds how late a takeover is noticed.
const DEFAULT_RECONNECTION_MAX: Duration = Duration::from_secs(10);
/// Default of `auditServiceConfiguration.loggingIntervalSec`.
const DEFAULT_STATISTICS_INTERVAL: Duration = Duration::from_secs(60);
/// Default of `outboundConfig.proxyConfig.proxyTimeoutMS`.
const DEFAULT_PROXY_TIMEOUT: Duration = Duration::from_secs(10);
/// How many days before the certificates of a link expire that is warned of.
const EXPIRY_WARNING_DAYS: i64 = 30;
/// The longest `healthCheckPhrase`.
const MAX_PHRASE_BYTES: usize = 256;

/// `firewallMode`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirewallMode {
    /// Bridge and float in one process.
    SenderReceiver,
    /// The bridge alone, inside.
    BridgeInner,
    /// The float alone, in the DMZ.
    FloatOuter,
}

/// A word that is no mode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be one of SenderReceiver, BridgeInner, FloatOuter")]
pub struct FirewallModeError;

impl FromStr for FirewallMode {
    type Err = FirewallModeError;

    fn from_str(text: &str) -> Result<Self, FirewallModeError> {
        match text {
            "SenderReceiver" => Ok(Self::SenderReceiver),
            "BridgeInner" => Ok(Self::BridgeInner),
            "FloatOuter" => Ok(Self::FloatOuter),
            _ => Err(FirewallModeError),
        }
    }
}

impl std::fmt::Display for FirewallMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::SenderReceiver => "SenderReceiver",
            Self::BridgeInner => "BridgeInner",
            Self::FloatOuter => "FloatOuter",
        })
    }
}

/// What the command line and the environment contribute.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// For substitutions and overrides.
    pub environment: Environment,
    /// Variables that are not overrides.
    pub reserved_variables: Vec<&'static str>,
    /// What to do about unknown keys.
    pub on_unknown_keys: OnUnknownKeys,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    /// The file cannot be read as HOCON.
    #[error(transparent)]
    Unreadable(#[from] hocon::Error),
    /// Something in it is wrong.
    #[error(transparent)]
    Invalid(#[from] Problems),
}

/// One firewall process's configuration, complete with defaults and free of contradictions.
#[derive(Debug, Clone)]
pub struct Configuration {
    /// The process's directory.
    pub base_directory: PathBuf,
    /// Which part it is.
    pub mode: FirewallMode,
    /// The side towards peers that connect: float.
    pub inbound: Option<InboundConfig>,
    /// The side towards nodes, and peers that are dialled: bridge.
    pub outbound: Option<OutboundConfig>,
    /// The link to floats, of a bridge.
    pub bridge_inner: Option<BridgeInnerConfig>,
    /// The link to bridges, of a float.
    pub float_outer: Option<FloatOuterConfig>,
    /// Pauses before a link is tried again: the first, and the longest.
    pub reconnection: (Duration, Duration),
    /// How long a peer may take for its TLS handshake.
    pub handshake_timeout: Duration,
    /// After what time a peer's connection is opened anew, if ever.
    pub connection_ttl: Option<Duration>,
    /// How often statistics are logged.
    pub statistics_interval: Duration,
    /// Where connections come from that nobody wants to read of.
    pub silenced_ips: Vec<IpAddr>,
    /// What a probe says to hear it back.
    pub health_check_phrase: Option<String>,
    /// Where health, metrics and log levels are served, if anywhere.
    pub operations_address: Option<HostAndPort>,
    /// Warnings, notes and every effective value.
    pub findings: Findings,
}

/// `inboundConfig`
#[derive(Debug, Clone)]
pub struct InboundConfig {
    /// Where peers are accepted.
    pub listening_address: HostAndPort,
    /// Connections whose handshake is not finished; the oldest makes room.
    pub max_pending_handshakes: usize,
    /// Connections of peers.
    pub max_connections: usize,
}

/// `outboundConfig`
#[derive(Debug, Clone)]
pub struct OutboundConfig {
    /// Where nodes, and the machines of nodes, await bridges.
    pub nodes: Vec<HostAndPort>,
    /// What the bridge shows nodes.
    pub link: LinkFiles,
    /// The way to peers.
    pub proxy: Option<Proxy>,
}

/// `bridgeInnerConfig`
#[derive(Debug, Clone)]
pub struct BridgeInnerConfig {
    /// Where floats await bridges.
    pub float_addresses: Vec<HostAndPort>,
    /// As whom a float must show itself.
    pub expected_subject: X500Name,
    /// What the bridge shows floats.
    pub link: LinkFiles,
}

/// `floatOuterConfig`
#[derive(Debug, Clone)]
pub struct FloatOuterConfig {
    /// Where bridges are awaited.
    pub float_address: HostAndPort,
    /// As whom a bridge must show itself.
    pub expected_subject: X500Name,
    /// What the float shows bridges.
    pub link: LinkFiles,
}

/// Why the keys of a link are of no use.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// A file.
    #[error(transparent)]
    Store(#[from] KeyStoreError),
    /// What is in it.
    #[error("the other side of the link would not believe the certificates in {}", path.display())]
    Certificates {
        /// The key store.
        path: PathBuf,
        /// Why not.
        #[source]
        source: PathError,
    },
}

/// Key store and trust store of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkFiles {
    /// The key.
    pub key_store: PathBuf,
    /// Protects it.
    pub key_store_password: Secret,
    /// The root that is believed in.
    pub trust_store: PathBuf,
    /// Protects it.
    pub trust_store_password: Secret,
    /// Whether the link has files of its own; otherwise they are copies of a node's.
    pub private: bool,
}

impl Configuration {
    /// Reads `firewall.conf` in the base directory, or `file`.
    ///
    /// # Errors
    /// The file cannot be read, or something in it is wrong.
    pub fn load(
        base_directory: &Path,
        file: Option<&Path>,
        options: &LoadOptions,
    ) -> Result<Self, ConfigurationError> {
        let default = base_directory.join(FILE_NAME);
        let tree = hocon::parse_file(file.unwrap_or(&default), &options.environment)?;
        Self::from_tree(tree, base_directory, options)
    }

    /// Reads a configuration from text, which `source` names in errors.
    ///
    /// # Errors
    /// The text is malformed, or something in it is wrong.
    pub fn parse(
        text: &str,
        source: &str,
        base_directory: &Path,
        options: &LoadOptions,
    ) -> Result<Self, ConfigurationError> {
        let tree = hocon::parse_str(text, source, &options.environment)?;
        Self::from_tree(tree, base_directory, options)
    }

    fn from_tree(
        tree: Value,
        base: &Path,
        options: &LoadOptions,
    ) -> Result<Self, ConfigurationError> {
        let report = Report::new(options.on_unknown_keys);
        let mut tree = expand_dotted_keys(tree);
        apply_environment(
            &mut tree,
            &options.environment,
            &options.reserved_variables,
            &report,
        );
        let root = Section::root(&tree, &report);
        let decoded = decode(&root, base);
        root.finish();
        let findings = report.finish()?;
        // Whatever is missing has been reported as a problem above.
        let configuration = decoded.expect("a configuration without problems is complete");
        Ok(Self {
            findings,
            ..configuration
        })
    }

    /// The configuration in force, one key to a line with where it comes from, secrets redacted.
    pub fn describe(&self) -> String {
        self.findings.describe()
    }
}

/// `None` only if a problem has been reported.
fn decode(root: &Section<'_>, base: &Path) -> Option<Configuration> {
    foreign(root);
    let mode = root.required::<FirewallMode>(
        "firewallMode",
        "write SenderReceiver, BridgeInner or FloatOuter",
    );
    let defaults = Defaults::read(root, base);
    // A section that is of no use in this mode is not looked into.
    let part = |key: &str, modes: &[FirewallMode]| {
        let present = root.has(key);
        let mode = mode?;
        match (modes.contains(&mode), present) {
            (true, true) => return Some(root.section(key)),
            (true, false) => root.problem(key, format!("is missing; a {mode} needs it")),
            (false, true) => root.problem(key, format!("must not be there in a {mode}; remove it")),
            (false, false) => {}
        }
        None
    };
    use FirewallMode::{BridgeInner, FloatOuter, SenderReceiver};
    let inbound = part("inboundConfig", &[SenderReceiver, FloatOuter]).and_then(inbound);
    let outbound = part("outboundConfig", &[SenderReceiver, BridgeInner])
        .and_then(|section| outbound(section, &defaults));
    let bridge_inner = part("bridgeInnerConfig", &[BridgeInner])
        .and_then(|section| bridge_inner(section, &defaults));
    let float_outer =
        part("floatOuterConfig", &[FloatOuter]).and_then(|section| float_outer(section, &defaults));

    let pauses = || Duration::from_millis(10)..=Duration::from_secs(3600);
    let least = root.duration_or(
        "artemisReconnectionIntervalMin",
        "milliseconds",
        DEFAULT_RECONNECTION_MIN,
        pauses(),
    );
    let most = root.duration_or(
        "artemisReconnectionIntervalMax",
        "milliseconds",
        DEFAULT_RECONNECTION_MAX.max(least),
        pauses(),
    );
    if most < least {
        root.problem(
            "artemisReconnectionIntervalMax",
            "must not be less than artemisReconnectionIntervalMin",
        );
    }
    let handshake_timeout = root.duration_or(
        "sslHandshakeTimeout",
        "milliseconds",
        DEFAULT_HANDSHAKE_TIMEOUT,
        Duration::from_millis(100)..=Duration::from_secs(120),
    );
    let ttl = root.integer_or("bridgeConnectionTTLSeconds", 0, 0..=31_536_000);
    let audit = root.section("auditServiceConfiguration");
    let statistics_interval = audit.integer_or(
        "loggingIntervalSec",
        DEFAULT_STATISTICS_INTERVAL.as_secs(),
        1..=86_400,
    );
    audit.finish();
    let phrase = root.text("healthCheckPhrase");
    if let Some(phrase) = &phrase
        && !(1..=MAX_PHRASE_BYTES).contains(&phrase.len())
    {
        root.problem(
            "healthCheckPhrase",
            format!("must have between 1 and {MAX_PHRASE_BYTES} bytes"),
        );
    }
    let operations = root.section("operations");
    let operations_address = operations.parsed::<HostAndPort>("address");
    operations.finish();
    Some(Configuration {
        base_directory: base.to_owned(),
        mode: mode?,
        inbound,
        outbound,
        bridge_inner,
        float_outer,
        reconnection: (least, most),
        handshake_timeout,
        connection_ttl: (ttl > 0).then(|| Duration::from_secs(ttl)),
        statistics_interval: Duration::from_secs(statistics_interval),
        silenced_ips: root.parsed_list("silencedIPs"),
        health_check_phrase: phrase,
        operations_address,
        findings: Findings::default(),
    })
}

/// Key store and trust store at the top, which links without their own use.
struct Defaults<'a> {
    base: &'a Path,
    link: LinkFiles,
}

impl<'a> Defaults<'a> {
    fn read(root: &Section<'_>, base: &'a Path) -> Self {
        let certificates = base.join(root.text_or("certificatesDirectory", "certificates"));
        let file = |key: &str, name: &str| match root.text(key) {
            Some(path) => base.join(path),
            None => certificates.join(name),
        };
        let link = LinkFiles {
            key_store: file("sslKeystore", SSL_KEY_STORE),
            trust_store: file("trustStoreFile", TRUST_STORE),
            key_store_password: password(root, "keyStorePassword", DEVELOPMENT_KEY_STORE_PASSWORD),
            trust_store_password: password(
                root,
                "trustStorePassword",
                DEVELOPMENT_TRUST_STORE_PASSWORD,
            ),
            private: false,
        };
        Self { base, link }
    }

    /// The files of one link.
    fn link(&self, section: &Section<'_>, key: &str) -> Option<LinkFiles> {
        let link = section.section(key);
        if link.is_present() {
            LinkFiles::decode(link, self.base)
        } else {
            Some(self.link.clone())
        }
    }
}

impl LinkFiles {
    /// A section with the stores of one link, relative to `base`; `None` only if a problem has been reported.
    pub fn decode(link: Section<'_>, base: &Path) -> Option<Self> {
        link.unneeded("keyStorePrivateKeyPassword", "a key store has one password");
        link.unneeded("crlCheck", "certificate revocation lists are not consulted");
        let key_store = link.required::<String>("sslKeystore", "name the link's key store");
        let trust_store = link.required::<String>("trustStoreFile", "name the link's trust store");
        let secret = |key: &str| {
            let secret = link.secret(key);
            if secret.is_none() {
                link.problem(key, "is missing; write the password of the link's store");
            }
            secret
        };
        let (key_store_password, trust_store_password) =
            (secret("keyStorePassword"), secret("trustStorePassword"));
        link.finish();
        Some(Self {
            key_store: base.join(key_store?),
            key_store_password: key_store_password?,
            trust_store: base.join(trust_store?),
            trust_store_password: trust_store_password?,
            private: true,
        })
    }

    /// Reads the stores, and judges the certificates as the other side will.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub fn load(&self, now: UnixTime) -> Result<TlsParty, LinkError> {
        let party = link_keys::load(
            (&self.key_store, self.key_store_password.expose()),
            (&self.trust_store, self.trust_store_password.expose()),
        )?;
        let (path, root) = (party.identity().path(), party.trust_root());
        validate_path(path, root, now, CertRole::Tls).map_err(|source| {
            LinkError::Certificates {
                path: self.key_store.clone(),
                source,
            }
        })?;
        let expires = path.expires();
        if expires < now.plus_days(EXPIRY_WARNING_DAYS) {
            tracing::warn!(
                "the certificates in {} expire in less than {EXPIRY_WARNING_DAYS} days, on {expires}; make new ones for \
                 all ends of the link",
                self.key_store.display()
            );
        }
        Ok(party)
    }
}

fn password(root: &Section<'_>, key: &str, development: &str) -> Secret {
    root.secret(key).unwrap_or_else(|| Secret::new(development))
}

fn inbound(section: Section<'_>) -> Option<InboundConfig> {
    let listening_address = section.required::<HostAndPort>(
        "listeningAddress",
        "write host and port where peers are to be accepted",
    );
    let count = |key: &str, default: usize| {
        let count = section.integer_or(key, default as u64, 1..=65_536);
        usize::try_from(count).unwrap_or(default)
    };
    let max_pending_handshakes = count("maxPendingHandshakes", DEFAULT_MAX_PENDING_HANDSHAKES);
    let max_connections = count("maxConnections", DEFAULT_MAX_CONNECTIONS);
    section.finish();
    Some(InboundConfig {
        listening_address: listening_address?,
        max_pending_handshakes,
        max_connections,
    })
}

fn outbound(section: Section<'_>, defaults: &Defaults<'_>) -> Option<OutboundConfig> {
    let first = section.required::<HostAndPort>(
        "artemisBrokerAddress",
        "write the node's messagingServerAddress as this machine reaches it",
    );
    let others = section.parsed_list::<HostAndPort>("alternateArtemisBrokerAddresses");
    let nodes: Vec<_> = first.iter().cloned().chain(others).collect();
    distinct(
        &section,
        "alternateArtemisBrokerAddresses",
        &nodes,
        MAX_NODES,
    );
    let link = defaults.link(&section, "artemisSSLConfiguration");
    let proxy = proxy(section.section("proxyConfig"));
    section.finish();
    first?;
    Some(OutboundConfig {
        nodes,
        link: link?,
        proxy,
    })
}

fn proxy(section: Section<'_>) -> Option<Proxy> {
    if !section.is_present() {
        return None;
    }
    let version = section.required::<ProxyVersion>("version", "write SOCKS4, SOCKS5 or HTTP");
    let address =
        section.required::<HostAndPort>("proxyAddress", "write the proxy's host and port");
    let (user, password) = (section.text("userName"), section.secret("password"));
    let timeout = section.duration_or(
        "proxyTimeoutMS",
        "milliseconds",
        DEFAULT_PROXY_TIMEOUT,
        Duration::from_millis(100)..=Duration::from_secs(120),
    );
    if password.is_some() && user.is_none() {
        section.problem("password", "is of no use without userName");
    }
    if password.is_some() && version == Some(ProxyVersion::Socks4) {
        section.problem(
            "password",
            "is not known to SOCKS4; use SOCKS5, or remove it",
        );
    }
    let too_long = |text: &str| text.len() > MAX_CREDENTIAL_BYTES || text.contains('\0');
    if user
        .as_deref()
        .is_some_and(|user| too_long(user) || user.is_empty())
    {
        section.problem(
            "userName",
            format!("must have between 1 and {MAX_CREDENTIAL_BYTES} bytes, and no zero among them"),
        );
    }
    if version == Some(ProxyVersion::Http) && user.as_deref().is_some_and(|user| user.contains(':'))
    {
        section.problem("userName", "must not contain a colon for an HTTP proxy");
    }
    if password
        .as_ref()
        .is_some_and(|password| too_long(password.expose()))
    {
        section.problem(
            "password",
            format!("must have at most {MAX_CREDENTIAL_BYTES} bytes, and no zero among them"),
        );
    }
    section.finish();
    Some(Proxy {
        version: version?,
        address: address?,
        user,
        password,
        timeout,
    })
}

fn bridge_inner(section: Section<'_>, defaults: &Defaults<'_>) -> Option<BridgeInnerConfig> {
    let float_addresses = section.parsed_list::<HostAndPort>("floatAddresses");
    if float_addresses.is_empty() {
        section.problem("floatAddresses", "must name at least one float");
    }
    distinct(&section, "floatAddresses", &float_addresses, MAX_FLOATS);
    let expected = expected_subject(&section, "the floats' certificates");
    let link = defaults.link(&section, "tunnelSSLConfiguration");
    section.finish();
    Some(BridgeInnerConfig {
        float_addresses,
        expected_subject: expected?,
        link: link?,
    })
}

fn float_outer(section: Section<'_>, defaults: &Defaults<'_>) -> Option<FloatOuterConfig> {
    let float_address = section.required::<HostAndPort>(
        "floatAddress",
        "write host and port where bridges are to be accepted, on the inner interface",
    );
    let expected = expected_subject(&section, "the bridges' certificates");
    let link = defaults.link(&section, "tunnelSSLConfiguration");
    if link.as_ref().is_some_and(|link| !link.private) {
        section.warning(
            "tunnelSSLConfiguration",
            "is missing, so a key of the network lies in the DMZ; make keys for the link with quorate firewall \
             generate-internal-tunnel-ssl-keystores",
        );
    }
    section.finish();
    Some(FloatOuterConfig {
        float_address: float_address?,
        expected_subject: expected?,
        link: link?,
    })
}

fn expected_subject(section: &Section<'_>, whose: &str) -> Option<X500Name> {
    section.required(
        "expectedCertificateSubject",
        &format!(
            "write the subject of {whose}, for example \"CN=float, O=Tunnel, L=London, C=GB\""
        ),
    )
}

fn distinct(section: &Section<'_>, key: &str, addresses: &[HostAndPort], most: usize) {
    for (index, address) in addresses.iter().enumerate() {
        if addresses[..index].contains(address) {
            section.problem(key, format!("{address} is given twice"));
        }
    }
    if addresses.len() > most {
        section.problem(key, format!("there may be at most {most}"));
    }
}

/// Keys of Corda's that mean nothing here, so that existing files are accepted, and those that cannot be.
fn foreign(root: &Section<'_>) {
    let node_tells =
        "nodes tell their bridges, and bridges their floats, how large a message may be";
    root.unneeded("networkParametersPath", node_tells);
    root.unneeded(
        "haConfig",
        "all bridges and floats of a node are active at once, and none is elected",
    );
    root.unneeded(
        "p2pTlsSigningCryptoServiceConfig",
        "nodes sign for handshakes, with their own hardware security module",
    );
    root.unneeded("healthCheck", "health is served at operations.address");
    root.unneeded("p2pConfirmationWindowSize", "there is no broker");
    root.unneeded("custom", "there is no JVM here");
    for key in ["artemisCryptoServiceConfig", "tunnelingCryptoServiceConfig"] {
        root.refused(
            key,
            "keys of links are in files, and of no value outside of their link; remove this section",
        );
    }
    root.refused_if_true(
        "enableAMQPPacketTrace",
        "frames are not logged; remove this key",
    );
    let revocation = root.section("revocationConfig");
    match revocation.text("mode").as_deref() {
        Some("HARD_FAIL") => revocation.problem(
            "mode",
            "certificate revocation lists are not consulted, so a check cannot be enforced; write OFF to go without",
        ),
        None | Some("OFF" | "SOFT_FAIL" | "EXTERNAL_SOURCE") => {}
        Some(_) => revocation.problem("mode", "must be OFF or SOFT_FAIL"),
    }
    revocation.finish();
}

#[cfg(test)]
mod tests;
