//! `quorate network bootstrap`: a folder of configurations becomes a network.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};
use quorate_node::bootstrap::{BootstrapOptions, bootstrap};
use quorate_runtime::{Clock, Entropy};

#[derive(Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a ready network from a folder of `*_node.conf` files; run again to add nodes
    Bootstrap {
        /// The folder
        #[arg(long, default_value = ".")]
        dir: PathBuf,
        /// The lowest platform version that may take part
        #[arg(long)]
        minimum_platform_version: Option<u32>,
        /// Largest message between nodes, in bytes
        #[arg(long)]
        max_message_size: Option<u64>,
        /// Largest transaction, in bytes
        #[arg(long)]
        max_transaction_size: Option<u64>,
        /// Days after which a node that was not heard from is forgotten
        #[arg(long)]
        event_horizon: Option<u32>,
    },
}

pub(crate) fn run(arguments: Arguments) -> Result<ExitCode> {
    let Command::Bootstrap {
        dir,
        minimum_platform_version,
        max_message_size,
        max_transaction_size,
        event_horizon,
    } = arguments.command;
    let options = BootstrapOptions {
        directory: dir,
        minimum_platform_version,
        max_message_size,
        max_transaction_size,
        event_horizon_days: event_horizon,
        load: crate::node::load_options(),
    };
    let report = bootstrap(&options, &Clock::system(), &Entropy::system())?;
    println!("{report}");
    Ok(ExitCode::SUCCESS)
}
