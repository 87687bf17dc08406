//! `quorate orderer`: runs an ordering node until it is asked to stop.
//!
//! It is also what runs when the program is called by the name `orderer`, as scripts and images call Fabric's: without
//! arguments, told only where `orderer.yaml` is (`FABRIC_CFG_PATH`).
//!
//! The other verbs look after what an orderer has on disk: `verify` (module `verify`), `backup` and `restore` (`backup`),
//! `prune` (`prune`); `status` (`status`) shows how it is.

mod backup;
mod prune;
mod status;
mod verify;

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use quorate_orderer::admin_client::AdminClient;
use quorate_orderer::metrics::OrdererMetrics;
use quorate_orderer::options::{self, CONFIG_PATH_VARIABLE, LogFormat, Remark};
use quorate_orderer::service::{Orderer, Parts};
use quorate_runtime::operations::Version;
use quorate_runtime::tasks::chain;
use quorate_runtime::telemetry::{self, FabricFormat, Layout, LogSpec};
use quorate_runtime::{Clock, Entropy, Metrics, Tasks};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info, warn};

/// By this name the program is an orderer and nothing else.
const NAME: &str = "orderer";

/// Which log lines are written, in Fabric's grammar.
const LOGGING_SPEC: &str = "FABRIC_LOGGING_SPEC";
/// How they look, in Fabric's grammar.
const LOGGING_FORMAT: &str = "FABRIC_LOGGING_FORMAT";

/// How long everything may take to stop. What is cut off then loses nothing: the next start is as after a crash.
const PATIENCE: Duration = Duration::from_secs(20);

/// Under what name these log lines are known.
const LOG: &str = "orderer.common.server";

#[derive(Args)]
pub(crate) struct Arguments {
    /// The directory of orderer.yaml; FABRIC_CFG_PATH unless given
    #[arg(long, global = true, value_name = "DIR")]
    config_path: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Start the orderer; the same as without a verb
    Start,
    /// Show the version
    Version,
    /// Show how a running orderer and its channels are
    Status(status::Arguments),
    /// Look at stored chains without an orderer: is every block what the channel's orderers made?
    Verify(verify::Arguments),
    /// Copy the ledgers, or what is new of them, to another folder; the orderer may run
    Backup(backup::BackupArguments),
    /// Bring ledgers back from a backup; refuses to make forks. The orderer must not run
    Restore(backup::RestoreArguments),
    /// Move a channel's oldest blocks to an archive
    Prune(prune::Arguments),
}

/// The arguments of a program that was called `orderer`: those after its name, as if `quorate orderer` had been typed.
pub(crate) fn by_name() -> Option<Vec<std::ffi::OsString>> {
    let mut arguments = std::env::args_os();
    let program = arguments.next()?;
    let called = Path::new(&program).file_stem()?;
    (called == NAME).then(|| {
        ["quorate".into(), NAME.into()]
            .into_iter()
            .chain(arguments)
            .collect()
    })
}

pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode> {
    if let Some(Command::Version) = arguments.command {
        println!(
            "orderer:\n Version: {}\n Commit SHA: {}",
            crate::RELEASE,
            crate::node::revision()
        );
        return Ok(ExitCode::SUCCESS);
    }
    let environment = environment(arguments.config_path.as_deref());
    match arguments.command {
        Some(Command::Status(status)) => return status::run(&status, &environment).await,
        Some(Command::Verify(verify)) => return verify::run(&verify, &environment),
        Some(Command::Backup(backup)) => return backup::back_up(&backup, &environment),
        Some(Command::Restore(restore)) => return backup::restore(&restore, &environment).await,
        Some(Command::Prune(prune)) => return prune::run(&prune, &environment).await,
        Some(Command::Start | Command::Version) | None => {}
    }
    let loaded = match options::load(&environment) {
        Ok(loaded) => loaded,
        Err(reason) => {
            // As Fabric's orderer words it; scripts look for it.
            let _ = writeln!(io::stderr(), "failed to parse config: {}", chain(&reason));
            return Ok(ExitCode::FAILURE);
        }
    };
    let registry = Metrics::new();
    let statsd = loaded.options.metrics.provider == options::MetricsProvider::Statsd;
    let metrics = OrdererMetrics::new(&registry, statsd);
    let logs = telemetry::init(&telemetry::Options {
        spec: environment
            .get(LOGGING_SPEC)
            .map_or_else(|| Ok(LogSpec::default()), |spec| LogSpec::fabric(spec))?,
        console: Some(telemetry::Level::Trace),
        layout: match loaded.options.quorate.log_format {
            LogFormat::Json => Layout::Json,
            LogFormat::Fabric => Layout::Fabric(match environment.get(LOGGING_FORMAT) {
                Some(format) if !format.is_empty() => format.parse()?,
                _ => FabricFormat::default(),
            }),
        },
        metrics: Some(registry),
        ..telemetry::Options::default()
    })?;
    for remark in &loaded.remarks {
        match remark {
            Remark::Info(text) => info!(target: "localconfig", "{text}"),
            Remark::Warning(text) => warn!(target: "localconfig", "{text}"),
        }
    }
    info!(target: LOG, "Starting quorate {} ({}) as an orderer with {}", crate::RELEASE, crate::node::revision(), loaded.file.display());
    let mut signals = signals()?;
    let tasks = Tasks::new("");
    let starting = Orderer::start(Parts {
        options: loaded.options,
        version: Version {
            version: crate::RELEASE.to_owned(),
            commit: crate::node::revision().to_owned(),
        },
        logs,
        metrics,
        clock: Clock::system(),
        entropy: Entropy::system(),
        tasks: tasks.clone(),
    });
    // It may wait for other orderers, and must not be deaf meanwhile.
    let started = tokio::select! {
        started = starting => started,
        code = signals.serve(&tasks) => {
            tasks.stop(PATIENCE).await;
            return Ok(code);
        }
    };
    let _orderer = match started {
        Ok(orderer) => orderer,
        Err(reason) => {
            error!(target: LOG, "The orderer cannot start: {}", chain(&reason));
            tasks.stop(PATIENCE).await;
            return Ok(ExitCode::FAILURE);
        }
    };
    let code = signals.serve(&tasks).await;
    let report = tasks.stop(PATIENCE).await;
    if !report.is_clean() {
        warn!(target: LOG, "Not everything stopped by itself: {report}");
    }
    Ok(code)
}

/// The variables that make up a configuration, with the directory that was given instead of Fabric's.
fn environment(config_path: Option<&Path>) -> BTreeMap<String, String> {
    let mut environment: BTreeMap<String, String> = std::env::vars().collect();
    if let Some(path) = config_path {
        let path = path.to_string_lossy().into_owned();
        environment.insert(CONFIG_PATH_VARIABLE.to_owned(), path);
    }
    environment
}

/// Which ledgers a verb is about.
#[derive(Args)]
struct Ledgers {
    /// The folder of the ledgers, or of a backup; FileLedger.Location of orderer.yaml unless given
    #[arg(long, value_name = "DIR")]
    ledger: Option<PathBuf>,
    /// The channel, or several; all unless given
    #[arg(
        short = 'c',
        long = "channelID",
        visible_alias = "channel-id",
        value_name = "NAME"
    )]
    channels: Vec<String>,
}

impl Ledgers {
    fn location(&self, environment: &BTreeMap<String, String>) -> Result<PathBuf> {
        match &self.ledger {
            Some(location) => Ok(location.clone()),
            None => Ok(options::load(environment)?.options.file_ledger.location),
        }
    }

    /// The channels in `location` that are meant.
    fn channels(&self, location: &Path) -> Result<Vec<String>> {
        let found = quorate_orderer::backup::channels(location)?;
        if self.channels.is_empty() {
            return Ok(found);
        }
        for wanted in &self.channels {
            if !found.contains(wanted) {
                bail!(
                    "there is no ledger of channel {wanted} in {}",
                    location.display()
                );
            }
        }
        Ok(self.channels.clone())
    }
}

/// How to reach one of an orderer's endpoints by TLS.
#[derive(Args)]
struct EndpointTls {
    /// CA certificates (PEM) that the orderer's TLS certificate is checked with
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Our TLS certificate (PEM)
    #[arg(long, requires_all = ["client_key", "ca_file"], value_name = "FILE")]
    client_cert: Option<PathBuf>,
    /// Its private key (PEM)
    #[arg(long, requires = "client_cert", value_name = "FILE")]
    client_key: Option<PathBuf>,
}

impl EndpointTls {
    fn client(&self, address: &str, patience: Duration) -> Result<AdminClient> {
        let own = self.client_cert.as_deref().zip(self.client_key.as_deref());
        let tls = match &self.ca_file {
            Some(roots) => Some(crate::channel::tls(roots, own, Duration::ZERO, None)?),
            None => None,
        };
        Ok(AdminClient::new(address, tls, patience)?)
    }
}

struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    inquire: tokio::signal::unix::Signal,
}

fn signals() -> io::Result<Signals> {
    Ok(Signals {
        terminate: signal(SignalKind::terminate())?,
        interrupt: signal(SignalKind::interrupt())?,
        inquire: signal(SignalKind::user_defined1())?,
    })
}

impl Signals {
    /// Waits for the end: somebody asks for it, or a part without which nothing works has failed.
    async fn serve(&mut self, tasks: &Tasks) -> ExitCode {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => {
                    info!(target: LOG, "Received signal: 15 (terminated)");
                    return ExitCode::SUCCESS;
                }
                _ = self.interrupt.recv() => {
                    info!(target: LOG, "Received signal: 2 (interrupt)");
                    return ExitCode::SUCCESS;
                }
                _ = self.inquire.recv() => {
                    info!(target: LOG, "Received signal: 10 (user defined signal 1)");
                    info!(target: LOG, "Go routines report:\n{}", tasks.running().join("\n"));
                }
                () = tasks.shutdown().requested() => {
                    let reason = tasks.shutdown().reason().unwrap_or_default();
                    error!(target: LOG, "The orderer stops: {reason}");
                    return ExitCode::FAILURE;
                }
            }
        }
    }
}
