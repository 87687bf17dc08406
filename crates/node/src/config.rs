//! `node.conf`: HOCON with Corda's keys, decoded into [`NodeConfiguration`].
//!
//! The files of the published guides are accepted as they stand. Every key of Corda's is known here and belongs to one
//! of four kinds: it has its meaning; it is *not needed* (accepted with a note); it *has no effect* (accepted with a
//! warning, because its author expects something); or it asks for something that we do not have, and is refused by
//! name with the way out. A key that is none of these is refused with the nearest known one. All problems of a file
//! are reported at once.
//!
//! Keys of our own: `operations.address`, `logging`, and `whenHeld` and `whenLost` of the mutual exclusion.
//!
//! This module reads files and nothing else: it opens no port and no database, and creates no directory. Start reading
//! at [`NodeConfiguration::load`]; the chapters are `database`, `rpc`, `availability`, `maintenance`, `crypto_service`,
//! `notary` and, for the keys that mean nothing to us, `foreign`.

mod availability;
mod crypto_service;
mod database;
mod firewall;
mod foreign;
mod maintenance;
mod notary;
mod rpc;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use quorate_flow::FlowTimeout;
use quorate_identity::X500Name;
use quorate_identity::node_keys::{
    DEVELOPMENT_KEY_STORE_PASSWORD, DEVELOPMENT_TRUST_STORE_PASSWORD,
};
use quorate_identity::obfuscation::{self, ObfuscationKey};
use quorate_ledger::network::NetworkHostAndPort;
use quorate_runtime::Secret;
use quorate_runtime::config::{
    Findings, OnUnknownKeys, Problem, Problems, REDACTED, Report, Section, apply_environment,
    expand_dotted_keys,
};
use quorate_runtime::hocon::{self, Environment, Kind, Value};
use quorate_runtime::telemetry::{DEFAULT_KEPT_FILES, DEFAULT_MAX_FILE_BYTES, LogSpec};
use quorate_runtime::traces::Endpoint;

pub use availability::{
    ChoiceError, DEFAULT_UPDATE_INTERVAL, DEFAULT_WAIT_INTERVAL, MutualExclusion, WhenHeld,
    WhenLost,
};
pub use crypto_service::{Aliases, CryptoServices, Device};
pub use database::{DEFAULT_FILE as DEFAULT_DATABASE_FILE, DatabaseConfiguration};
pub use firewall::ExternalBridge;
pub use maintenance::{
    DEFAULT_SENDER_RETENTION_DAYS, EventsToRecord, MaintenanceMode, ProcessedMessageCleanup,
};
pub use notary::NotaryConfiguration;
pub use rpc::{RpcSettings, RpcTls};

/// The file in a node's base directory.
pub const FILE_NAME: &str = "node.conf";

/// How often `additional-node-infos` is looked at, unless configured otherwise. Looking costs little, and a network
/// whose nodes are started in any order should find together at once.
pub const DEFAULT_NODE_INFO_POLLING: Duration = Duration::from_secs(1);

/// The most advertised addresses.
pub const MAX_ADVERTISED_ADDRESSES: usize = 16;

/// One node's configuration, complete with defaults and free of contradictions.
#[derive(Debug, Clone)]
pub struct NodeConfiguration {
    /// The node's directory; absolute if it was given so. Relative paths in the file are relative to it.
    pub base_directory: PathBuf,
    /// Who the node is.
    pub my_legal_name: X500Name,
    /// Whether development certificates are made and well-known passwords accepted.
    pub dev_mode: bool,
    /// Where peers reach the node: `p2pAddress`, then `additionalP2PAddresses`. These go into the node info.
    pub advertised_addresses: Vec<NetworkHostAndPort>,
    /// Where the node listens for peers: `messagingServerAddress`, or else every interface at `p2pAddress`'s port,
    /// because behind a load balancer the advertised address is not this machine's.
    pub p2p_listen: NetworkHostAndPort,
    /// Where applications and operators reach it.
    pub rpc: RpcSettings,
    /// `rpcUsers` or `security.authService`.
    pub rpc_users: Vec<crate::rpc::RpcUser>,
    /// Where JSON over HTTP is served, if anywhere.
    pub web_address: Option<NetworkHostAndPort>,
    /// Where health, metrics and log levels are served, if anywhere.
    pub operations_address: Option<NetworkHostAndPort>,
    /// The folder with key stores and trust store.
    pub certificates_directory: PathBuf,
    /// Protects the node's private keys at rest.
    pub key_store_password: Secret,
    /// Protects the trust store.
    pub trust_store_password: Secret,
    /// Where everything durable is.
    pub database: DatabaseConfiguration,
    /// Present if this node is a notary.
    pub notary: Option<NotaryConfiguration>,
    /// Hot-cold operation.
    pub mutual_exclusion: MutualExclusion,
    /// A firewall between the node and its peers.
    pub external_bridge: Option<ExternalBridge>,
    /// Which events are recorded in the database.
    pub events_to_record: EventsToRecord,
    /// Maintenance at certain times, if there is to be any.
    pub maintenance: Option<MaintenanceMode>,
    /// Which private keys a hardware security module keeps.
    pub crypto_services: CryptoServices,
    /// How long flows wait for a notary before they ask another node of it.
    pub flow_timeout: FlowTimeout,
    /// `smmStartMode = "Safe"`: flows of before are not continued at start, but wait paused for an operator.
    pub pause_all_flows: bool,
    /// How often `additional-node-infos` is looked at.
    pub node_info_polling: Duration,
    /// The collector that gets spans, if there is one.
    pub telemetry: Option<Endpoint>,
    /// Levels and bounds of the log.
    pub logging: LoggingConfiguration,
    /// Warnings, notes and every effective value.
    pub findings: Findings,
}

/// `logging { … }`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoggingConfiguration {
    /// Levels at start.
    pub spec: LogSpec,
    /// Size in bytes at which a log file is set aside.
    pub max_file_bytes: u64,
    /// How many files set aside are kept.
    pub kept_files: u32,
    /// Lines as JSON.
    pub json: bool,
}

/// What the command line and the environment contribute.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// Environment variables: for substitution and for overrides.
    pub environment: Environment,
    /// Variables of ours that are not overrides, such as those which the command line reads.
    pub reserved_variables: Vec<&'static str>,
    /// `--dev-mode`: wins over the file.
    pub dev_mode: Option<bool>,
    /// `--on-unknown-config-keys`
    pub on_unknown_keys: OnUnknownKeys,
    /// The default of `machineName`; the host's name if this is absent.
    pub machine_name: Option<String>,
    /// Reveals the values that were obfuscated, if the operator has given seed and passphrase.
    pub obfuscation: Option<Arc<ObfuscationKey>>,
}

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    /// The file cannot be read as HOCON: where and why.
    #[error("the configuration cannot be read: {0}")]
    Unreadable(hocon::Error, #[source] Option<std::io::Error>),
    /// It can be read, but not followed: everything that is wrong.
    #[error(transparent)]
    Invalid(Problems),
}

impl From<hocon::Error> for ConfigurationError {
    fn from(mut error: hocon::Error) -> Self {
        // The text above tells the place and reason; what the system said comes behind it, once.
        let source = error.source.take();
        Self::Unreadable(error, source)
    }
}

impl From<Problems> for ConfigurationError {
    fn from(problems: Problems) -> Self {
        Self::Invalid(problems)
    }
}

impl NodeConfiguration {
    /// Reads the configuration of the node in `base_directory` from `file`, or from its `node.conf`.
    ///
    /// # Errors
    /// The file cannot be read, or something in it is wrong.
    pub fn load(
        base_directory: &Path,
        file: Option<&Path>,
        options: &LoadOptions,
    ) -> Result<Self, ConfigurationError> {
        let file = file.map_or_else(|| base_directory.join(FILE_NAME), Path::to_owned);
        Self::from_tree(
            hocon::parse_file(&file, &options.environment)?,
            base_directory,
            options,
        )
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
        Self::from_tree(
            hocon::parse_str(text, source, &options.environment)?,
            base_directory,
            options,
        )
    }

    /// Everything that is wrong with the configuration of the node in `base_directory`: what
    /// `quorate node validate-configuration` prints. Empty if nothing is.
    ///
    /// # Errors
    /// The file cannot be read as HOCON, so that nothing further can be said.
    pub fn validate(
        base_directory: &Path,
        file: Option<&Path>,
        options: &LoadOptions,
    ) -> Result<Vec<Problem>, ConfigurationError> {
        match Self::load(base_directory, file, options) {
            Ok(_) => Ok(Vec::new()),
            Err(ConfigurationError::Invalid(problems)) => Ok(problems.0),
            Err(unreadable) => Err(unreadable),
        }
    }

    /// The configuration in force, one key to a line with where it comes from, secrets redacted.
    pub fn describe(&self) -> String {
        self.findings.describe()
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
        let mut hidden = BTreeSet::new();
        reveal(
            &mut tree,
            "",
            options.obfuscation.as_deref(),
            &report,
            &mut hidden,
        );
        let root = Section::root(&tree, &report);
        let decoded = decode(&root, &report, base, options);
        root.finish();
        let mut findings = report.finish()?;
        for setting in &mut findings.settings {
            // Whoever hid a value did not want it to be shown, whatever its key.
            if hidden.contains(&setting.key) {
                setting.value = REDACTED.to_owned();
            }
        }
        // Whatever is missing has been reported as a problem above.
        let configuration = decoded.expect("a configuration without problems is complete");
        Ok(Self {
            findings,
            ..configuration
        })
    }
}

/// Replaces every obfuscated string by what it hides, and collects their keys.
fn reveal(
    value: &mut Value,
    path: &str,
    key: Option<&ObfuscationKey>,
    report: &Report,
    hidden: &mut BTreeSet<String>,
) {
    match &mut value.kind {
        Kind::Object(members) => {
            for (name, member) in members {
                let path = if path.is_empty() {
                    name.clone()
                } else {
                    format!("{path}.{name}")
                };
                reveal(member, &path, key, report, hidden);
            }
        }
        Kind::Array(elements) => {
            for element in elements {
                reveal(element, path, key, report, hidden);
            }
        }
        Kind::String(text) if obfuscation::is_marked(text) => report.problem(
            Some(value.origin.clone()),
            path,
            "is marked for obfuscation but still readable; run quorate node obfuscate-config",
        ),
        Kind::String(text) if obfuscation::is_obfuscated(text) => match key {
            None => report.problem(
                Some(value.origin.clone()),
                path,
                "is obfuscated; give the seed and passphrase in CONFIG_OBFUSCATION_SEED and \
                 CONFIG_OBFUSCATION_PASSPHRASE",
            ),
            Some(key) => match key.reveal(text) {
                Ok(revealed) => {
                    *text = revealed.to_string();
                    hidden.insert(path.to_owned());
                }
                Err(error) => {
                    report.problem(Some(value.origin.clone()), path, error.to_string());
                }
            },
        },
        _ => {}
    }
}

/// `None` only if a problem has been reported.
fn decode(
    root: &Section<'_>,
    report: &Report,
    base: &Path,
    options: &LoadOptions,
) -> Option<NodeConfiguration> {
    let my_legal_name = root.required::<X500Name>(
        "myLegalName",
        "write for example \"O=PartyA, L=London, C=GB\"",
    );
    let written_dev_mode = root.boolean_or("devMode", false);
    let dev_mode = options.dev_mode.unwrap_or(written_dev_mode);

    let p2p = root.required::<NetworkHostAndPort>(
        "p2pAddress",
        "write the address at which peers reach this node",
    );
    let additional = root.parsed_list::<NetworkHostAndPort>("additionalP2PAddresses");
    let listen = root.parsed::<NetworkHostAndPort>("messagingServerAddress");
    let advertised: Vec<_> = p2p.iter().cloned().chain(additional).collect();
    for (index, address) in advertised.iter().enumerate() {
        let key = if index == 0 {
            "p2pAddress"
        } else {
            "additionalP2PAddresses"
        };
        if is_wildcard(address) {
            root.problem(
                key,
                format!(
                    "{address} means every interface of this machine, but peers need a real address"
                ),
            );
        }
        if advertised[..index].contains(address) {
            root.problem(key, format!("{address} is given twice"));
        }
    }
    if advertised.len() > MAX_ADVERTISED_ADDRESSES {
        root.problem(
            "additionalP2PAddresses",
            format!("more than {MAX_ADVERTISED_ADDRESSES} addresses"),
        );
    }
    let p2p_listen =
        listen.or_else(|| NetworkHostAndPort::new("0.0.0.0", p2p.as_ref()?.port()).ok());

    let rpc = rpc::settings(root, base);
    let rpc_users = rpc::users(root);
    let web_address = root.parsed::<NetworkHostAndPort>("webAddress");
    let operations = root.section("operations");
    let operations_address = operations.parsed::<NetworkHostAndPort>("address");
    operations.finish();
    refuse_shared_ports(
        root,
        &[
            ("p2pAddress", p2p_listen.as_ref()),
            ("rpcSettings", rpc.as_ref().map(|rpc| &rpc.address)),
            ("webAddress", web_address.as_ref()),
            ("operations", operations_address.as_ref()),
        ],
    );

    let key_store_password = password(
        root,
        "keyStorePassword",
        dev_mode,
        DEVELOPMENT_KEY_STORE_PASSWORD,
    );
    let trust_store_password = password(
        root,
        "trustStorePassword",
        dev_mode,
        DEVELOPMENT_TRUST_STORE_PASSWORD,
    );
    let certificates = root.text_or("certificatesDirectory", "certificates");

    let database = database::decode(root, base, dev_mode);
    let notary = notary::decode(root, base, dev_mode, my_legal_name.as_ref());
    let enterprise = root.section("enterpriseConfiguration");
    let mutual_exclusion = availability::decode(&enterprise, options, base);
    let external_bridge = firewall::decode(&enterprise, base);
    let events_to_record = maintenance::events_to_record(&enterprise);
    let maintenance = maintenance::mode(&enterprise);
    let crypto_services = crypto_service::decode(root, &enterprise, report, base, options);
    enterprise.finish();
    let flow_timeout = flow_timeout(root);
    let node_info_polling = root.duration_or(
        "additionalNodeInfoPollingFrequencyMsec",
        "milliseconds",
        DEFAULT_NODE_INFO_POLLING,
        Duration::from_millis(100)..=Duration::from_secs(3600),
    );
    let pause_all_flows = match root
        .text_or("smmStartMode", "Normal")
        .to_ascii_lowercase()
        .as_str()
    {
        "normal" => false,
        "safe" => true,
        _ => {
            root.problem("smmStartMode", "must be Normal or Safe");
            false
        }
    };
    let telemetry = telemetry(root);
    let logging = logging(root);
    foreign::decode(root);

    Some(NodeConfiguration {
        base_directory: base.to_owned(),
        my_legal_name: my_legal_name?,
        dev_mode,
        advertised_addresses: advertised,
        p2p_listen: p2p_listen?,
        rpc: rpc?,
        rpc_users,
        web_address,
        operations_address,
        certificates_directory: base.join(certificates),
        key_store_password: key_store_password?,
        trust_store_password: trust_store_password?,
        database: database?,
        notary,
        mutual_exclusion: mutual_exclusion?,
        external_bridge,
        events_to_record,
        maintenance,
        crypto_services,
        flow_timeout,
        pause_all_flows,
        node_info_polling,
        telemetry,
        logging,
        findings: Findings::default(),
    })
}

fn is_wildcard(address: &NetworkHostAndPort) -> bool {
    matches!(address.host(), "0.0.0.0" | "::")
}

/// Two of our own ports must not be the same one.
fn refuse_shared_ports(root: &Section<'_>, opened: &[(&str, Option<&NetworkHostAndPort>)]) {
    for (index, (key, address)) in opened.iter().enumerate() {
        let Some(address) = address else { continue };
        for (other_key, other) in &opened[..index] {
            let Some(other) = other else { continue };
            let overlaps =
                address.host() == other.host() || is_wildcard(address) || is_wildcard(other);
            if overlaps && address.port() == other.port() {
                root.problem(
                    key,
                    format!(
                        "port {} is also that of `{other_key}`; give each its own port",
                        address.port()
                    ),
                );
            }
        }
    }
}

fn password(root: &Section<'_>, key: &str, dev_mode: bool, well_known: &str) -> Option<Secret> {
    match root.secret(key) {
        Some(password) if password.is_empty() => {
            root.problem(key, "is empty; choose a password");
            None
        }
        Some(password) => {
            if !dev_mode && password.expose() == well_known {
                root.warning(
                    key,
                    "is the development password that everybody knows; choose another one",
                );
            }
            Some(password)
        }
        None if dev_mode => Some(Secret::new(well_known)),
        None => {
            root.problem(
                key,
                "is missing; choose a password, or set devMode = true for a network to play with",
            );
            None
        }
    }
}

fn flow_timeout(root: &Section<'_>) -> FlowTimeout {
    let section = root.section("flowTimeout");
    let defaults = FlowTimeout::default();
    let timeout = section.duration_or(
        "timeout",
        "milliseconds",
        defaults.timeout,
        Duration::from_millis(10)..=Duration::from_secs(86_400),
    );
    let restarts = u64::from(defaults.max_restart_count);
    let max_restart_count = section.integer_or("maxRestartCount", restarts, 0..=1_000_000) as u32;
    let mut backoff_base = section.parsed_or::<f64>("backoffBase", defaults.backoff_base);
    if !(1.0..=100.0).contains(&backoff_base) {
        section.problem("backoffBase", "must be a number from 1 to 100");
        backoff_base = defaults.backoff_base;
    }
    section.finish();
    FlowTimeout {
        timeout,
        max_restart_count,
        backoff_base,
    }
}

fn telemetry(root: &Section<'_>) -> Option<Endpoint> {
    let section = root.section("telemetry");
    let on = section.boolean_or("openTelemetryEnabled", false);
    let endpoint = section.parsed::<Endpoint>("endpoint");
    for key in [
        "spanStartEndEventsEnabled",
        "copyBaggageToTags",
        "simpleLogTelemetryEnabled",
    ] {
        section.unneeded(
            key,
            "each span is sent once, when it is over, and to the collector only",
        );
    }
    if on && endpoint.is_none() && !section.has("endpoint") {
        section.problem(
            "endpoint",
            "is missing; write the address of a collector, such as \"http://127.0.0.1:4318\"",
        );
    }
    section.finish();
    endpoint.filter(|_| on)
}

fn logging(root: &Section<'_>) -> LoggingConfiguration {
    let section = root.section("logging");
    let spec = section.parsed_or::<LogSpec>("level", LogSpec::default());
    let max_file_bytes =
        section.bytes_or("maxFileSize", DEFAULT_MAX_FILE_BYTES, 64 * 1024..=1 << 40);
    let kept_files =
        section.integer_or("keptFiles", u64::from(DEFAULT_KEPT_FILES), 0..=1000) as u32;
    let json = section.boolean_or("json", false);
    section.finish();
    LoggingConfiguration {
        spec,
        max_file_bytes,
        kept_files,
        json,
    }
}

#[cfg(test)]
mod tests;
