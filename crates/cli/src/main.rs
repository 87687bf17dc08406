//! `quorate`: the one program. Arguments, output and exit codes; everything else is in the
//! crates that it composes. Only here is anything printed, is the environment read, does the
//! process end.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod bench;
mod channel;
mod crypto;
mod database;
mod demo;
mod firewall;
mod holdings;
mod local_network;
mod local_orderers;
mod network;
mod node;
mod obfuscate;
mod orderer;
mod rpc_ssl;
mod service_manager;
mod shell;
mod watchdog;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

// Under load glibc's allocator takes a tenth of the throughput, and holds half as much memory again.
#[cfg(not(target_env = "msvc"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The release of this program.
pub(crate) const RELEASE: &str = env!("CARGO_PKG_VERSION");

/// A permissioned ledger between organisations that keeps working when machines fail.
#[derive(Parser)]
#[command(name = "quorate", version, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run one organisation's ledger node, or look at its configuration
    Node(node::Arguments),
    /// Run a firewall between a node and its peers: a float, a bridge, or both
    Firewall(firewall::Arguments),
    /// Run an ordering node, with a Fabric orderer's configuration
    Orderer(orderer::Arguments),
    /// Keep a node running: check it, and start it again when it does not work
    Watchdog(watchdog::Arguments),
    /// Look at and migrate a node's database
    Database(database::Arguments),
    /// Make a network of nodes from a folder of configurations
    Network(network::Arguments),
    /// Make, look at and operate the channels of an ordering service
    Channel(channel::Arguments),
    /// Make keys and certificates for trying an ordering service
    Crypto(crypto::Arguments),
    /// Talk to a running node: start flows, look into the vault, operate
    Shell(shell::ShellArgs),
    /// See it work: a node on two instances is killed in the midst of payments, and goes on
    Demo(demo::Arguments),
    /// Measure it on this machine
    Bench(bench::Arguments),
}

fn main() -> ExitCode {
    let arguments = match orderer::by_name() {
        Some(arguments) => Arguments::parse_from(arguments),
        None => Arguments::parse(),
    };
    if rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .is_err()
    {
        // Only this program installs one, and only here.
        eprintln!("quorate: the cryptographic provider is installed already");
        return ExitCode::FAILURE;
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("quorate: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(async {
        match arguments.command {
            Command::Node(arguments) => node::run(arguments).await,
            Command::Firewall(arguments) => firewall::run(arguments).await,
            Command::Orderer(arguments) => orderer::run(arguments).await,
            Command::Watchdog(arguments) => watchdog::run(arguments).await,
            Command::Database(arguments) => database::run(arguments).await,
            Command::Network(arguments) => network::run(arguments),
            Command::Channel(arguments) => channel::run(arguments).await,
            Command::Crypto(arguments) => crypto::run(arguments),
            Command::Shell(arguments) => shell::run(arguments).await,
            Command::Demo(arguments) => demo::run(arguments).await,
            Command::Bench(arguments) => bench::run(arguments).await,
        }
    });
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("quorate: {}", quorate_runtime::tasks::chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

/// The applications that this program has installed.
pub(crate) fn applications() -> Vec<std::sync::Arc<dyn quorate_flow::App>> {
    vec![std::sync::Arc::new(quorate_cash::CashApp)]
}
