//! `quorate node`: runs a node until it is asked to stop.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use quorate_node::config::NodeConfiguration;
use quorate_node::{Milestone, Node, NodeOptions};
use quorate_runtime::operations::{Health, Operations, Readiness, Version};
use quorate_runtime::telemetry::{self, FileOptions};
use quorate_runtime::{Clock, Entropy, Metrics, Tasks, host, http};

/// How long everything outside of the node may take to stop.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    place: Place,
    /// Log to the console too
    #[arg(short = 'v', long, alias = "verbose")]
    log_to_console: bool,
    /// What to log: a level, or names and levels as in 'info:quorate_node=debug'
    #[arg(long, default_value = "info")]
    logging_level: String,
    #[command(subcommand)]
    command: Option<Command>,
}

/// Where a node lives.
#[derive(Args, Clone)]
pub(crate) struct Place {
    /// The node's directory
    #[arg(short, long, default_value = ".", global = true)]
    base_directory: PathBuf,
    /// The configuration, relative to the base directory
    #[arg(short = 'f', long, default_value = "node.conf", global = true)]
    config_file: PathBuf,
    /// Development mode, whatever the configuration says
    #[arg(long, global = true)]
    dev_mode: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Check the configuration and show it as the node understands it
    ValidateConfiguration,
    /// Write the node's signed entry for other nodes' network maps, and stop
    GenerateNodeInfo,
}

impl Place {
    /// Reads and checks the configuration.
    pub(crate) fn configuration(&self) -> Result<NodeConfiguration> {
        let base = self
            .base_directory
            .canonicalize()
            .with_context(|| format!("base directory {}", self.base_directory.display()))?;
        let environment = std::env::vars().collect();
        NodeConfiguration::load(&base, &self.config_file, &environment, self.dev_mode)
            .with_context(|| format!("the configuration in {} cannot be used", base.display()))
    }
}

pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode> {
    let started = Instant::now();
    let configuration = arguments.place.configuration()?;
    match arguments.command {
        Some(Command::ValidateConfiguration) => {
            print!("{}", configuration.describe());
            println!("The configuration is valid.");
            return Ok(ExitCode::SUCCESS);
        }
        Some(Command::GenerateNodeInfo) => {
            let file = quorate_node::write_node_info(&configuration, &Clock::system())?;
            println!("{}", file.display());
            return Ok(ExitCode::SUCCESS);
        }
        None => {}
    }

    let host = host::host_name().unwrap_or_else(|_| "localhost".to_owned());
    let log_file = configuration
        .base_directory()
        .join("logs")
        .join(format!("node-{host}.log"));
    let logs = telemetry::init(&telemetry::Options {
        spec: arguments.logging_level.parse()?,
        console: arguments.log_to_console,
        file: Some(FileOptions::new(&log_file)),
        ..telemetry::Options::default()
    })?;

    banner();
    println!("Logs can be found in              : {}", log_file.display());
    if configuration.dev_mode() {
        println!(
            "! ATTENTION: This node is running in development mode! \
             This is not safe for production deployment."
        );
    }
    println!(
        "Database connection url is        : {}",
        configuration.database_description()
    );
    println!(
        "Advertised P2P messaging addresses: {}",
        configuration.advertised_addresses()
    );

    let tasks = Tasks::new("");
    let metrics = Metrics::new();
    let health = Health::new();
    let readiness = Readiness::new();
    if let Some(address) = configuration.operations_address() {
        let server = http::Server::bind("operations endpoint", &address).await?;
        println!("Operations address                : {}", server.address());
        let operations = Operations {
            health: health.clone(),
            readiness: readiness.clone(),
            metrics: metrics.clone(),
            logs,
            version: Version {
                version: crate::RELEASE.to_owned(),
                revision: revision().to_owned(),
            },
            clock: Clock::system(),
        };
        server.serve(&tasks, operations.router());
    }
    let node = Node::prepare(NodeOptions {
        configuration,
        apps: crate::applications(),
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
    println!("Loaded {} app(s)                  : {}", apps.len(), apps.join(", "));
    let organisation = node.legal_name().organisation().to_owned();

    stop_on_signals(&tasks)?;
    let shutdown = tasks.shutdown().clone();
    let result = node
        .run(&tasks, |milestone| match milestone {
            Milestone::Standby { holder, lapses_in } => println!(
                "Node for \"{organisation}\" stands by: {holder} holds the lease, \
                 which lapses in {:.1} s without a sign of life",
                lapses_in.as_secs_f64()
            ),
            Milestone::Active {
                addresses,
                generation,
            } => {
                println!("P2P messaging listens on          : {}", addresses.p2p);
                if let Some(rpc) = addresses.rpc {
                    println!("RPC connection address            : {rpc}");
                }
                if let Some(web) = addresses.web {
                    println!("Web address                       : {web}");
                }
                println!(
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
    println!("Node for \"{organisation}\" has stopped: {reason}");
    tracing::info!(reason, "the node has stopped");
    Ok(if reason == ASKED || reason.starts_with("an operator") {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The reason of a stop that somebody asked for by a signal.
const ASKED: &str = "it was asked to by a signal";

fn stop_on_signals(tasks: &Tasks) -> Result<()> {
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

fn revision() -> &'static str {
    option_env!("QUORATE_REVISION").unwrap_or("unknown")
}

fn banner() {
    println!();
    println!("   ____                        _       ");
    println!("  / __ \\__  ______  _________ _/ /____  ");
    println!(" / / / / / / / __ \\/ ___/ __ `/ __/ _ \\ ");
    println!("/ /_/ / /_/ / /_/ / /  / /_/ / /_/  __/ ");
    println!("\\___\\_\\__,_/\\____/_/   \\__,_/\\__/\\___/  ");
    println!();
    println!("--- Quorate {} {}", crate::RELEASE, "-".repeat(50));
    println!();
}
