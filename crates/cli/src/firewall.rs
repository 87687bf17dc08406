//! `quorate firewall`: runs a float, a bridge or both until it is asked to stop, and makes the keys of their links.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use quorate_identity::{TlsParty, UnixTime, X500Name, link_keys};
use quorate_messaging::firewall::{
    Configuration, FILE_NAME, Firewall, FirewallHandle, LoadOptions, Surroundings,
};
use quorate_runtime::config::OnUnknownKeys;
use quorate_runtime::operations::{Health, Operations, Readiness, Version};
use quorate_runtime::tasks::chain;
use quorate_runtime::telemetry::{self, FileOptions, LogSpec, RollingFile};
use quorate_runtime::{Clock, Entropy, Metrics, Tasks, host, http};
use sd_notify::NotifyState;
use zeroize::Zeroizing;

use crate::node::{ASKED, RESERVED_VARIABLES, banner, revision, stop_on_signals};
use crate::watchdog::MISCONFIGURED;

/// How long peers' connections may take to end. What is cut off loses nothing.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked whether peers can come through.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Shortest password that is taken for keys, in characters.
const MIN_PASSWORD_CHARS: usize = 6;

/// Prints a line. A firewall does not end because nobody reads what it prints any more.
macro_rules! show {
    ($($text:tt)*) => {{
        let _ = writeln!(io::stdout(), $($text)*);
    }};
}

#[derive(Args)]
pub(crate) struct Arguments {
    /// The firewall's directory
    #[arg(short, long, default_value = ".", global = true)]
    base_directory: PathBuf,
    /// The configuration, if it is not firewall.conf in that directory
    #[arg(short = 'f', long, global = true)]
    config_file: Option<PathBuf>,
    /// Log to the console too
    #[arg(short = 'v', long, alias = "verbose")]
    log_to_console: bool,
    /// What to log: a level, or names and levels as in 'quorate_messaging=debug:info'
    #[arg(long)]
    logging_level: Option<LogSpec>,
    /// What to do about keys of the configuration that nobody knows: fail, warn or ignore
    #[arg(long, global = true)]
    on_unknown_config_keys: Option<OnUnknownKeys>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Check the configuration and show it as the firewall understands it
    ValidateConfiguration,
    /// Make the keys of the link between bridges and floats: bridge, bridge-trust, float and float-trust
    GenerateInternalTunnelSslKeystores(KeysArguments),
    /// Make the keys of the link between nodes and bridges: artemis and artemis-trust for both sides
    GenerateInternalArtemisSslKeystores(KeysArguments),
}

/// Where keys of a link go.
#[derive(Args)]
struct KeysArguments {
    /// The folder for the files; `tunnel` or `artemis` in the base directory unless given
    #[arg(long)]
    directory: Option<PathBuf>,
    /// A file whose first line is the password for the key stores
    #[arg(long)]
    key_store_password_file: PathBuf,
    /// A file whose first line is the password for the trust stores
    #[arg(long)]
    trust_store_password_file: PathBuf,
    /// The organisation, locality and country in the certificates' subjects
    #[arg(long, default_value = "O=Quorate, L=London, C=GB")]
    subject: X500Name,
}

pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode> {
    let base = &arguments.base_directory;
    match &arguments.command {
        Some(Command::GenerateInternalTunnelSslKeystores(keys)) => {
            return tunnel_keys(keys, base);
        }
        Some(Command::GenerateInternalArtemisSslKeystores(keys)) => {
            return artemis_keys(keys, base);
        }
        Some(Command::ValidateConfiguration) | None => {}
    }
    let configuration = match configuration(&arguments) {
        Ok(configuration) => configuration,
        Err(error) => return Ok(failed(&error)),
    };
    if arguments.command.is_some() {
        show!("{}", configuration.describe().trim_end());
        show!("The configuration is valid.");
        return Ok(ExitCode::SUCCESS);
    }
    serve(arguments, configuration).await
}

fn configuration(arguments: &Arguments) -> Result<Configuration> {
    let base = arguments
        .base_directory
        .canonicalize()
        .with_context(|| format!("base directory {}", arguments.base_directory.display()))?;
    let options = LoadOptions {
        environment: std::env::vars().collect(),
        reserved_variables: RESERVED_VARIABLES.to_vec(),
        on_unknown_keys: arguments.on_unknown_config_keys.unwrap_or_default(),
    };
    let file = arguments.config_file.as_deref();
    Ok(Configuration::load(&base, file, &options)?)
}

/// Whoever looks after this process must know that starting it again cannot help.
fn failed(error: &anyhow::Error) -> ExitCode {
    let error = chain(error.as_ref());
    let _ = writeln!(io::stderr(), "quorate: {error}");
    tracing::error!(error, "the firewall does not run");
    ExitCode::from(MISCONFIGURED)
}

async fn serve(arguments: Arguments, configuration: Configuration) -> Result<ExitCode> {
    let started = Instant::now();
    let host = host::host_name().unwrap_or_else(|_| "localhost".to_owned());
    let logs = configuration.base_directory.join("logs");
    let log_file = logs.join(format!("firewall-{host}.log"));
    let audit_file = logs.join(format!("firewall-audit-{host}.log"));
    let control = telemetry::init(&telemetry::Options {
        spec: arguments.logging_level.unwrap_or_default(),
        console: arguments.log_to_console.then_some(telemetry::Level::Info),
        file: Some(FileOptions::new(&log_file)),
        layout: telemetry::Layout::Corda,
        metrics: None,
    })?;
    banner();
    show!("Logs can be found in              : {}", log_file.display());
    show!(
        "Connections are recorded in       : {}",
        audit_file.display()
    );
    for warning in &configuration.findings.warnings {
        show!("! {warning}");
        tracing::warn!("{warning}");
    }

    let tasks = Tasks::new("");
    let (metrics, readiness) = (Metrics::new(), Readiness::new());
    if let Some(address) = &configuration.operations_address {
        let server = http::Server::bind("operations endpoint", &address.to_string()).await?;
        show!("Operations address                : {}", server.address());
        let operations = Operations {
            health: Health::new(),
            readiness: readiness.clone(),
            metrics: metrics.clone(),
            logs: control,
            version: Version {
                version: crate::RELEASE.to_owned(),
                commit: revision().to_owned(),
            },
            clock: Clock::system(),
        };
        server.serve(&tasks, operations.router());
    }
    let audit_log = RollingFile::open(&FileOptions::new(&audit_file))
        .with_context(|| format!("audit log {}", audit_file.display()))?;
    let surroundings = Surroundings {
        clock: Clock::system(),
        entropy: Entropy::system(),
        metrics,
        audit_log: Some(audit_log),
    };
    let firewall = match Firewall::prepare(&configuration, surroundings) {
        Ok(firewall) => firewall,
        Err(error) => return Ok(failed(&error.into())),
    };
    stop_on_signals(&tasks)?;
    let mode = configuration.mode;
    let handle = firewall.start(&tasks);
    if let Some(address) = handle.tunnel_address() {
        show!("Bridges are awaited on            : {address}");
    }
    let reporter = handle.clone();
    readiness.report_with(move || reporter.readiness());
    show!(
        "Firewall as {mode} started up in {:.2} sec",
        started.elapsed().as_secs_f64()
    );
    attend(handle, &tasks);

    let shutdown = tasks.shutdown().clone();
    shutdown.requested().await;
    let reason = shutdown.reason().unwrap_or_default();
    let report = tasks.stop(PATIENCE).await;
    if !report.is_clean() {
        tracing::warn!(%report, "not everything had finished when the process stopped");
    }
    show!("Firewall as {mode} has stopped: {reason}");
    tracing::info!(reason, "the firewall has stopped");
    Ok(if reason == ASKED {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Tells the console and the service manager how it stands, whenever that changes.
fn attend(handle: FirewallHandle, tasks: &Tasks) {
    let shutdown = tasks.shutdown().clone();
    tasks.spawn("service manager", async move {
        let mut told = None;
        while !shutdown.is_requested() {
            let status = handle.status();
            if told.as_ref() != Some(&status) {
                let report = handle.readiness();
                let text = match status.listening {
                    Some(address) => format!("{}: peers are accepted on {address}", report.status),
                    None => report.status.clone(),
                };
                if told.as_ref().is_none_or(|told| {
                    (told.listening, told.nodes, told.floats, told.bridges)
                        != (
                            status.listening,
                            status.nodes,
                            status.floats,
                            status.bridges,
                        )
                }) {
                    show!("{text}");
                    tell(&[NotifyState::Ready, NotifyState::Status(&text)]);
                }
                told = Some(status);
            }
            tokio::select! {
                () = shutdown.requested() => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
        tell(&[NotifyState::Stopping]);
    });
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}

fn password(file: &Path) -> Result<Zeroizing<String>> {
    let text = fs::read_to_string(file);
    let text = Zeroizing::new(text.with_context(|| format!("password file {}", file.display()))?);
    let password = text.lines().next().unwrap_or_default();
    if password.chars().count() < MIN_PASSWORD_CHARS {
        bail!(
            "the first line of {} has fewer than {MIN_PASSWORD_CHARS} characters; choose a longer password",
            file.display()
        );
    }
    Ok(Zeroizing::new(password.to_owned()))
}

/// Files of one link that are to be made.
struct KeyFiles {
    folder: PathBuf,
    key_store_password: Zeroizing<String>,
    trust_store_password: Zeroizing<String>,
}

impl KeyFiles {
    fn new(arguments: &KeysArguments, base: &Path, folder: &str) -> Result<Self> {
        let default = || base.join(folder);
        Ok(Self {
            folder: arguments.directory.clone().unwrap_or_else(default),
            key_store_password: password(&arguments.key_store_password_file)?,
            trust_store_password: password(&arguments.trust_store_password_file)?,
        })
    }

    fn paths(&self, whose: &str) -> (PathBuf, PathBuf) {
        let file = |name: String| self.folder.join(name);
        (
            file(format!("{whose}.json")),
            file(format!("{whose}-trust.json")),
        )
    }

    /// Nothing is overwritten: one new file among old ones would break the link.
    fn refuse_existing(&self, all: &[&str]) -> Result<()> {
        for whose in all {
            let (key_store, trust_store) = self.paths(whose);
            for path in [key_store, trust_store] {
                if path.exists() {
                    bail!(
                        "{} is there already; make new keys in another folder, and exchange them on all sides",
                        path.display()
                    );
                }
            }
        }
        Ok(())
    }

    fn save(&self, whose: &str, party: &TlsParty) -> Result<()> {
        let (key_store, trust_store) = self.paths(whose);
        link_keys::save(
            party,
            (&key_store, self.key_store_password.as_str()),
            (&trust_store, self.trust_store_password.as_str()),
        )?;
        show!("{}, {}", key_store.display(), trust_store.display());
        Ok(())
    }
}

fn named(subject: &X500Name, common_name: &str) -> Result<X500Name> {
    Ok(subject.with_common_name(common_name)?)
}

fn tunnel_keys(arguments: &KeysArguments, base: &Path) -> Result<ExitCode> {
    const SIDES: [&str; 2] = ["bridge", "float"];
    let files = KeyFiles::new(arguments, base, "tunnel")?;
    files.refuse_existing(&SIDES)?;
    let subject = &arguments.subject;
    let names = [named(subject, SIDES[0])?, named(subject, SIDES[1])?];
    let now = UnixTime(Clock::system().now_seconds());
    let parties = link_keys::generate(&named(subject, "tunnel")?, &names, now)?;
    for (whose, party) in SIDES.iter().zip(&parties) {
        files.save(whose, party)?;
    }
    show!(
        "Take the two of the float to the floats, those of the bridge to the bridges, and write there"
    );
    show!(
        "into {FILE_NAME} of bridges: expectedCertificateSubject = \"{}\"",
        names[1]
    );
    show!(
        "into {FILE_NAME} of floats : expectedCertificateSubject = \"{}\"",
        names[0]
    );
    Ok(ExitCode::SUCCESS)
}

fn artemis_keys(arguments: &KeysArguments, base: &Path) -> Result<ExitCode> {
    const BOTH: &str = "artemis";
    let files = KeyFiles::new(arguments, base, BOTH)?;
    files.refuse_existing(&[BOTH])?;
    let subject = &arguments.subject;
    let names = [named(subject, BOTH)?];
    let now = UnixTime(Clock::system().now_seconds());
    let authority = named(subject, "artemis root")?;
    for party in link_keys::generate(&authority, &names, now)? {
        files.save(BOTH, &party)?;
    }
    show!(
        "Take both to the nodes and the bridges, and name them in messagingServerSslConfiguration of the"
    );
    show!("nodes and in artemisSSLConfiguration of the bridges.");
    Ok(ExitCode::SUCCESS)
}
