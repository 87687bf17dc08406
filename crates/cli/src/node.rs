//! `quorate node`: runs a node until it is asked to stop.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use quorate_identity::node_keys::KeyPurpose;
use quorate_identity::obfuscation::ObfuscationKey;
use quorate_node::config::{FILE_NAME, LoadOptions, NodeConfiguration};
use quorate_node::control::{self, Answer, Question};
use quorate_node::crypto_service;
use quorate_node::{Milestone, Node, NodeError, NodeOptions};
use quorate_runtime::config::OnUnknownKeys;
use quorate_runtime::operations::{Health, Operations, Readiness, Version};
use quorate_runtime::tasks::chain;
use quorate_runtime::telemetry::{self, FileOptions, LogSpec};
use quorate_runtime::{Clock, Entropy, Metrics, Tasks, host, http};

use zeroize::Zeroizing;

use crate::service_manager::ServiceManager;
use crate::watchdog::{self, Checked, HELD, MISCONFIGURED};

/// Prints a line. A node does not end because nobody reads what it prints any more.
macro_rules! show {
    ($($text:tt)*) => {{
        let _ = writeln!(io::stdout(), $($text)*);
    }};
}

/// How long everything outside of the node may take to stop.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long the running process may take to answer: longer than what it does may take by itself.
const ANSWER_PATIENCE: Duration = Duration::from_secs(35);

/// How long a self-check may take to be answered: longer than the process gives it.
const CHECK_PATIENCE: Duration = Duration::from_secs(12);

#[derive(Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    place: Place,
    /// Log to the console too
    #[arg(short = 'v', long, alias = "verbose")]
    log_to_console: bool,
    /// What to log instead of what the configuration says: a level, or names and levels as in
    /// 'quorate_node=debug:info'
    #[arg(long)]
    logging_level: Option<LogSpec>,
    /// Do not continue the flows of before, but keep them paused until they are retried
    #[arg(long)]
    pause_all_flows: bool,
    /// What to do about keys of the configuration that nobody knows: fail, warn or ignore
    #[arg(long, global = true)]
    on_unknown_config_keys: Option<OnUnknownKeys>,
    /// Install the application of `quorate demo` that tries to spend cash twice
    #[arg(long, hide = true)]
    demonstrate_theft: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

/// Where a node lives.
#[derive(Args, Clone)]
pub(crate) struct Place {
    /// The node's directory
    #[arg(short, long, default_value = ".", global = true)]
    base_directory: PathBuf,
    /// The configuration, if it is not node.conf in that directory
    #[arg(short = 'f', long, global = true)]
    config_file: Option<PathBuf>,
    /// Development mode, whatever the configuration says
    #[arg(long, global = true)]
    dev_mode: bool,
    /// The seed with which values of the configuration were obfuscated
    #[arg(long, global = true, env = SEED_VARIABLE, hide_env_values = true)]
    config_obfuscation_seed: Option<String>,
    /// The passphrase with which they were obfuscated; other users of this machine can see a command line, so prefer the
    /// environment variable
    #[arg(long, global = true, env = PASSPHRASE_VARIABLE, hide_env_values = true)]
    config_obfuscation_passphrase: Option<Zeroizing<String>>,
}

/// Where services get the seed and passphrase of obfuscated configurations from, as Corda's do.
const SEED_VARIABLE: &str = "CONFIG_OBFUSCATION_SEED";
const PASSPHRASE_VARIABLE: &str = "CONFIG_OBFUSCATION_PASSPHRASE";

#[derive(Subcommand)]
enum Command {
    /// Check the configuration and show it as the node understands it
    ValidateConfiguration,
    /// Write the node's signed entry for other nodes' network maps, and stop
    GenerateNodeInfo,
    /// Hide what is marked as `<encrypt{…}>` in a configuration; prints the result unless told to write it
    ObfuscateConfig {
        /// The configuration; node.conf in the base directory unless given
        file: Option<PathBuf>,
        /// Write the result to this file; without a value, back to where it came from
        #[arg(short, long, num_args = 0..=1)]
        write: Option<Option<PathBuf>>,
    },
    /// Make a certificate for the RPC server, and what clients need to trust it
    GenerateRpcSslSettings(crate::rpc_ssl::Arguments),
    /// Keys in the hardware security module that the configuration names
    Hsm {
        #[command(subcommand)]
        command: HsmCommand,
    },
    /// Ask the process that runs in the base directory for its role
    Status,
    /// Let the standby in the base directory take over when the lease lapses
    Promote {
        /// Take over now: whoever holds the lease can write no more
        #[arg(long)]
        force: bool,
    },
    /// Let another instance serve instead of the one in the base directory
    Handover,
    /// Check that flows, messages and database work; exits like a Nagios plugin
    Health,
}

#[derive(Subcommand)]
enum HsmCommand {
    /// Show the keys that are there, and which of them this node uses
    List,
    /// Make the keys that this node lacks, under its aliases; those that are there stay
    Generate,
}

impl Arguments {
    /// The directory of the node that these arguments run; `None` if they only look at one.
    pub(crate) fn served(&self) -> Option<&Path> {
        let runs = self.command.is_none();
        runs.then_some(self.place.base_directory.as_path())
    }
}

impl Place {
    /// What reveals obfuscated values: given by the passphrase, with an empty seed if there is none.
    fn obfuscation(&self) -> Option<ObfuscationKey> {
        let passphrase = self.config_obfuscation_passphrase.as_ref()?;
        let seed = self.config_obfuscation_seed.as_deref().unwrap_or_default();
        Some(ObfuscationKey::derive(seed, passphrase))
    }

    /// Reads and checks the configuration.
    pub(crate) fn configuration(&self, unknown: OnUnknownKeys) -> Result<NodeConfiguration> {
        let base = self
            .base_directory
            .canonicalize()
            .with_context(|| format!("base directory {}", self.base_directory.display()))?;
        let options = LoadOptions {
            dev_mode: self.dev_mode.then_some(true),
            on_unknown_keys: unknown,
            obfuscation: self.obfuscation().map(Arc::new),
            ..load_options()
        };
        Ok(NodeConfiguration::load(
            &base,
            self.config_file.as_deref(),
            &options,
        )?)
    }
}

/// What this machine contributes to every configuration.
pub(crate) fn load_options() -> LoadOptions {
    LoadOptions {
        environment: std::env::vars().collect(),
        reserved_variables: RESERVED_VARIABLES.to_vec(),
        machine_name: host::host_name().ok(),
        ..LoadOptions::default()
    }
}

/// Environment variables of this program that are not overrides of configuration keys.
pub(crate) const RESERVED_VARIABLES: [&str; 8] = [
    SEED_VARIABLE,
    PASSPHRASE_VARIABLE,
    "QUORATE_PROFILE",
    "QUORATE_REVISION",
    "QUORATE_RPC_ADDRESS",
    "QUORATE_RPC_PASSWORD",
    "QUORATE_RPC_USER",
    "QUORATE_TEST_POSTGRES",
];

pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode> {
    if let Some(Command::ObfuscateConfig { file, write }) = &arguments.command {
        return obfuscate(&arguments.place, file.as_deref(), write.as_ref());
    }
    let configuration = arguments
        .place
        .configuration(arguments.on_unknown_config_keys.unwrap_or_default());
    match &arguments.command {
        None => {
            // Whoever looks after this process must know whether starting it again can help.
            let served = match configuration {
                Ok(mut configuration) => {
                    configuration.pause_all_flows |= arguments.pause_all_flows;
                    serve(arguments, configuration).await
                }
                Err(error) => return Ok(failed(&error, MISCONFIGURED)),
            };
            return Ok(served.unwrap_or_else(|error| {
                let code = hopeless(&error).unwrap_or(FAILED);
                failed(&error, code)
            }));
        }
        Some(Command::Health) => return Ok(health(configuration).await),
        Some(_) => {}
    }
    let configuration = configuration?;
    match arguments.command {
        Some(Command::ValidateConfiguration) => {
            show!("{}", configuration.describe().trim_end());
            show!("The configuration is valid.");
            Ok(ExitCode::SUCCESS)
        }
        Some(Command::GenerateNodeInfo) => {
            let file = quorate_node::write_node_info(&configuration, &Clock::system())?;
            show!("{}", file.display());
            Ok(ExitCode::SUCCESS)
        }
        Some(Command::GenerateRpcSslSettings(arguments)) => {
            crate::rpc_ssl::run(&arguments, &configuration.base_directory)
        }
        Some(Command::Hsm { command }) => hsm(&configuration, &command),
        Some(Command::Status) => tell(&configuration, Question::Status).await,
        Some(Command::Promote { force }) => tell(&configuration, Question::Promote { force }).await,
        Some(Command::Handover) => tell(&configuration, Question::HandOver).await,
        Some(Command::Health | Command::ObfuscateConfig { .. }) | None => Ok(ExitCode::SUCCESS),
    }
}

fn hsm(configuration: &NodeConfiguration, command: &HsmCommand) -> Result<ExitCode> {
    let services = &configuration.crypto_services;
    if services.identity.is_none() && services.tls.is_none() {
        bail!(
            "no hardware security module is configured: set cryptoServiceName = PKCS11 and cryptoServiceConf in {FILE_NAME}"
        );
    }
    let keys = match command {
        HsmCommand::List => crypto_service::list(services)?,
        HsmCommand::Generate => {
            let notary = configuration.notary.as_ref();
            let with_service = notary.is_some_and(|notary| notary.service_legal_name.is_some());
            crypto_service::generate(services, with_service)?
        }
    };
    for listed in keys {
        let purpose = match listed.purpose {
            Some(KeyPurpose::NodeCa) => "node CA",
            Some(KeyPurpose::LegalIdentity) => "legal identity",
            Some(KeyPurpose::NotaryService) => "notary service",
            Some(KeyPurpose::Tls) => "TLS",
            None => "not of this node",
        };
        let made = if listed.made { ", made now" } else { "" };
        let (token, key) = (&listed.token, &listed.key);
        show!("{token}  {}  {}  ({purpose}{made})", key.label, key.public);
    }
    Ok(ExitCode::SUCCESS)
}

/// The file is only read as text: it need not be a complete configuration.
fn obfuscate(
    place: &Place,
    file: Option<&Path>,
    write: Option<&Option<PathBuf>>,
) -> Result<ExitCode> {
    let Some(key) = place.obfuscation() else {
        bail!("give a passphrase in {PASSPHRASE_VARIABLE}, and a seed in {SEED_VARIABLE}");
    };
    let configured = place.config_file.as_deref();
    let default = place.base_directory.join(FILE_NAME);
    let file = file.or(configured).unwrap_or(&default);
    let target = write.map(|target| target.as_deref().unwrap_or(file));
    crate::obfuscate::run(&key, file, target)
}

/// The exit code of an error that may have gone when the node is started again.
const FAILED: u8 = 1;

/// Tells why the node does not run: on the console, and as the last line of its log.
fn failed(error: &anyhow::Error, code: u8) -> ExitCode {
    let error = chain(error.as_ref());
    // Nobody may be left who reads it.
    let _ = writeln!(io::stderr(), "quorate: {error}");
    tracing::error!(error, "the node does not run");
    ExitCode::from(code)
}

/// The exit code of an error that a new start meets again.
fn hopeless(error: &anyhow::Error) -> Option<u8> {
    use quorate_storage::{Error as StoreError, SchemaError};
    match error.downcast_ref::<NodeError>()? {
        NodeError::Held { .. } => Some(HELD),
        NodeError::Keys(error) if error.is_transient() => None,
        NodeError::Applications(_)
        | NodeError::NetworkMap(_)
        | NodeError::OtherIdentity { .. }
        | NodeError::Keys(_)
        | NodeError::Users(_)
        | NodeError::RpcTls(_)
        | NodeError::Link(_) => Some(MISCONFIGURED),
        // A migration that runs comes to its end.
        NodeError::Store(StoreError::Schema(SchemaError::Locked { .. })) => None,
        NodeError::Store(StoreError::Schema(_) | StoreError::Url(_)) => Some(MISCONFIGURED),
        _ => None,
    }
}

/// Runs the node until it has stopped.
async fn serve(arguments: Arguments, configuration: NodeConfiguration) -> Result<ExitCode> {
    let started = Instant::now();
    let host = host::host_name().unwrap_or_else(|_| "localhost".to_owned());
    let log_file = configuration
        .base_directory
        .join("logs")
        .join(format!("node-{host}.log"));
    let logging = &configuration.logging;
    let logs = telemetry::init(&telemetry::Options {
        spec: arguments
            .logging_level
            .unwrap_or_else(|| logging.spec.clone()),
        console: arguments.log_to_console.then_some(telemetry::Level::Info),
        file: Some(FileOptions {
            path: log_file.clone(),
            max_bytes: logging.max_file_bytes,
            kept: logging.kept_files,
        }),
        layout: if logging.json {
            telemetry::Layout::Json
        } else {
            telemetry::Layout::Corda
        },
        metrics: None,
    })?;

    banner();
    show!("Logs can be found in              : {}", log_file.display());
    if configuration.dev_mode {
        show!(
            "! ATTENTION: This node is running in development mode! \
             This is not safe for production deployment."
        );
    }
    for warning in &configuration.findings.warnings {
        show!("! {warning}");
        tracing::warn!("{warning}");
    }
    show!(
        "Database connection url is        : {}",
        configuration.database.url
    );
    let advertised: Vec<String> = configuration
        .advertised_addresses
        .iter()
        .map(ToString::to_string)
        .collect();
    show!(
        "Advertised P2P messaging addresses: {}",
        advertised.join(", ")
    );

    let mut apps = crate::applications();
    if arguments.demonstrate_theft {
        apps.push(std::sync::Arc::new(crate::demo::Thief));
    }

    let tasks = Tasks::new("");
    let metrics = Metrics::new();
    let health = Health::new();
    let readiness = Readiness::new();
    if let Some(address) = &configuration.operations_address {
        let server = http::Server::bind("operations endpoint", &address.to_string()).await?;
        show!("Operations address                : {}", server.address());
        let operations = Operations {
            health: health.clone(),
            readiness: readiness.clone(),
            metrics: metrics.clone(),
            logs,
            version: Version {
                version: crate::RELEASE.to_owned(),
                commit: revision().to_owned(),
            },
            clock: Clock::system(),
        };
        server.serve(&tasks, operations.router());
    }
    let base_directory = configuration.base_directory.clone();
    let node = Node::prepare(NodeOptions {
        configuration,
        apps,
        release: crate::RELEASE.to_owned(),
        revision: revision().to_owned(),
        clock: Clock::system(),
        entropy: Entropy::system(),
        metrics,
        health,
        readiness,
        tasks: tasks.clone(),
    })
    .await?;
    let apps: Vec<String> = node
        .applications()
        .iter()
        .map(|(name, version)| format!("{name} (version {version})"))
        .collect();
    show!(
        "Loaded {} app(s)                  : {}",
        apps.len(),
        apps.join(", ")
    );
    let organisation = node.legal_name().organisation().to_owned();

    stop_on_signals(&tasks)?;
    node.control()
        .listen(&base_directory, Clock::system(), &tasks)
        .context("the control socket cannot be opened in the base directory")?;
    let manager = ServiceManager::of_this_process();
    manager.attend(node.control(), Clock::system(), &tasks);
    let shutdown = tasks.shutdown().clone();
    let result = node
        .run(&tasks, |milestone| match milestone {
            Milestone::Standby {
                holder,
                lapses_in,
                waits_for_promotion,
            } => {
                manager.ready(&format!("standing by: {holder} holds the lease"));
                show!(
                    "Node for \"{organisation}\" stands by: {holder} holds the lease, \
                     which lapses in {:.1} s without a sign of life",
                    lapses_in.as_secs_f64()
                );
                if waits_for_promotion {
                    show!("It takes over when you say so: `quorate node promote`");
                }
            }
            Milestone::SteppedDown { reason } => {
                manager.ready(&format!("standing by: {reason}"));
                show!("Node for \"{organisation}\" serves no more: {reason}");
            }
            Milestone::Active {
                addresses,
                generation,
            } => {
                manager.ready(&format!(
                    "active in generation {generation}: P2P {}, RPC {}",
                    addresses.p2p, addresses.rpc
                ));
                show!("P2P messaging listens on          : {}", addresses.p2p);
                show!("RPC connection address            : {}", addresses.rpc);
                if let Some(web) = addresses.web {
                    show!("Web address                       : {web}");
                }
                show!(
                    "Node for \"{organisation}\" started up and registered in {:.2} sec \
                     (lease generation {generation})",
                    started.elapsed().as_secs_f64()
                );
            }
        })
        .await;
    let reason = shutdown.reason();
    let report = tasks.stop(PATIENCE).await;
    if !report.is_clean() {
        tracing::warn!(%report, "not everything had finished when the process stopped");
    }
    result?;
    let reason = reason.unwrap_or_else(|| "its work is done".to_owned());
    show!("Node for \"{organisation}\" has stopped: {reason}");
    tracing::info!(reason, "the node has stopped");
    Ok(if reason == ASKED || reason.starts_with("an operator") {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Asks the running process, and shows what it says.
async fn tell(configuration: &NodeConfiguration, question: Question) -> Result<ExitCode> {
    let answer = ask(configuration, &question, ANSWER_PATIENCE).await?;
    show!("role: {}", answer.role);
    if let Some(report) = answer.report.as_object() {
        for (name, value) in report.iter().filter(|(name, _)| *name != "status") {
            show!("{name}: {}", value.to_string().trim_matches('"'));
        }
    }
    if !answer.message.is_empty() {
        show!("{}", answer.message);
    }
    Ok(if answer.ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Asks the running process. One that is stopped takes the question and never answers.
async fn ask(
    configuration: &NodeConfiguration,
    question: &Question,
    patience: Duration,
) -> Result<Answer> {
    let answer = control::ask(&configuration.base_directory, question);
    match tokio::time::timeout(patience, answer).await {
        Ok(answer) => Ok(answer?),
        Err(_) => bail!(
            "the node does not answer within {} s: it is stopped or stuck",
            patience.as_secs()
        ),
    }
}

/// Exit codes of Nagios plugins.
const WARNING: u8 = 1;
const CRITICAL: u8 = 2;
const UNKNOWN: u8 = 3;

/// One line and an exit code for monitoring: 0 well, 1 on its way, 2 not well, 3 cannot tell.
async fn health(configuration: Result<NodeConfiguration>) -> ExitCode {
    let configuration = match configuration {
        Ok(configuration) => configuration,
        Err(error) => {
            // Monitoring shows one line.
            let error = chain(error.as_ref()).replace('\n', ";");
            show!("QUORATE UNKNOWN - {error}");
            return ExitCode::from(UNKNOWN);
        }
    };
    let name = configuration.my_legal_name.organisation();
    let (code, word, text) = match ask(&configuration, &Question::Check, CHECK_PATIENCE).await {
        Ok(answer) => {
            let (role, message) = (answer.role.clone(), answer.message.clone());
            match watchdog::judge(answer) {
                Checked::Well => (0, "OK", format!("{role}, {message}")),
                Checked::OnItsWay => (WARNING, "WARNING", message),
                Checked::Failed(why) => (CRITICAL, "CRITICAL", why),
            }
        }
        Err(error) => (CRITICAL, "CRITICAL", error.to_string()),
    };
    show!("QUORATE {word} - {name}: {text}");
    ExitCode::from(code)
}

/// The reason of a stop that somebody asked for by a signal.
pub(crate) const ASKED: &str = "it was asked to by a signal";

/// Stops `tasks` when this process is asked to end.
pub(crate) fn stop_on_signals(tasks: &Tasks) -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let shutdown = tasks.shutdown().clone();
    tasks.spawn("signals", async move {
        tokio::select! {
            _ = terminate.recv() => shutdown.request(ASKED),
            _ = interrupt.recv() => shutdown.request(ASKED),
            () = shutdown.requested() => {}
        }
    });
    Ok(())
}

pub(crate) fn revision() -> &'static str {
    option_env!("QUORATE_REVISION").unwrap_or("unknown")
}

pub(crate) fn banner() {
    show!();
    show!("   ____                        _       ");
    show!("  / __ \\__  ______  _________ _/ /____  ");
    show!(" / / / / / / / __ \\/ ___/ __ `/ __/ _ \\ ");
    show!("/ /_/ / /_/ / /_/ / /  / /_/ / /_/  __/ ");
    show!("\\___\\_\\__,_/\\____/_/   \\__,_/\\__/\\___/  ");
    show!();
    show!("--- Quorate {} {}", crate::RELEASE, "-".repeat(50));
    show!();
}
