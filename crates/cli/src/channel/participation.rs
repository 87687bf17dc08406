//! `quorate channel join | list | info | remove`: an orderer's part in channels, by its admin endpoint.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use quorate_orderer::admin_client::{AdminClient, Described, Listed};
use serde::Serialize;

use super::{read, tls};

#[derive(Subcommand)]
pub(super) enum Command {
    /// Make an orderer join the channel of a configuration block
    Join {
        #[command(flatten)]
        orderer: Orderer,
        /// The block: a channel's genesis block, or its latest configuration block
        #[arg(short = 'b', long)]
        config_block: PathBuf,
    },
    /// List the channels of an orderer
    List {
        #[command(flatten)]
        orderer: Orderer,
    },
    /// Show an orderer's part in a channel
    Info {
        #[command(flatten)]
        orderer: Orderer,
        /// The channel
        #[arg(short = 'c', long = "channelID", visible_alias = "channel-id")]
        channel: String,
    },
    /// Make an orderer leave a channel, and delete what it has of it
    Remove {
        #[command(flatten)]
        orderer: Orderer,
        /// The channel
        #[arg(short = 'c', long = "channelID", visible_alias = "channel-id")]
        channel: String,
    },
}

/// Which orderer, and how to prove who asks. The options are those of `osnadmin`.
#[derive(Args)]
pub(super) struct Orderer {
    /// The admin endpoint, host:port
    #[arg(short = 'o', long)]
    orderer_address: String,
    /// CA certificates (PEM) that the orderer's TLS certificate is checked with
    #[arg(long, requires = "client_cert")]
    ca_file: Option<PathBuf>,
    /// Our TLS certificate (PEM)
    #[arg(long, requires = "client_key")]
    client_cert: Option<PathBuf>,
    /// Its private key (PEM)
    #[arg(long, requires = "ca_file")]
    client_key: Option<PathBuf>,
    /// Check the orderer's certificate as of this many seconds ago, for one that has expired
    #[arg(long, default_value_t = 0)]
    tls_handshake_time_shift: u64,
    /// Seconds that the orderer may take to answer
    #[arg(long, default_value_t = 30)]
    timeout: u64,
    /// Print the orderer's answer as JSON
    #[arg(long)]
    json: bool,
}

impl Orderer {
    fn client(&self) -> Result<AdminClient> {
        let tls = match (&self.ca_file, &self.client_cert, &self.client_key) {
            (Some(roots), Some(certificate), Some(key)) => {
                let shift = Duration::from_secs(self.tls_handshake_time_shift);
                Some(tls(roots, Some((certificate, key)), shift, None)?)
            }
            _ => None,
        };
        let patience = Duration::from_secs(self.timeout);
        Ok(AdminClient::new(&self.orderer_address, tls, patience)?)
    }

    fn show<T: Serialize>(&self, answer: &T, text: impl FnOnce() -> String) -> Result<ExitCode> {
        if self.json {
            println!("{}", serde_json::to_string_pretty(answer)?);
        } else {
            println!("{}", text());
        }
        Ok(ExitCode::SUCCESS)
    }
}

pub(super) async fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Join {
            orderer,
            config_block,
        } => {
            let block = read(&config_block)?;
            if block.is_empty() {
                bail!("{} is empty", config_block.display());
            }
            let joined = orderer.client()?.join(&block).await?;
            orderer.show(&joined, || format!("joined {}", described(&joined)))
        }
        Command::List { orderer } => {
            let channels = orderer.client()?.list().await?;
            orderer.show(&channels, || listed(&channels))
        }
        Command::Info { orderer, channel } => {
            let info = orderer.client()?.info(&channel).await?;
            orderer.show(&info, || described(&info))
        }
        Command::Remove { orderer, channel } => {
            orderer.client()?.remove(&channel).await?;
            orderer.show(&serde_json::json!({ "removed": channel }), || {
                format!("left channel {channel}")
            })
        }
    }
}

fn described(channel: &Described) -> String {
    let Described {
        name,
        consensus_relation,
        status,
        height,
        replication,
        ..
    } = channel;
    let told = format!("channel {name}: {consensus_relation}, {status}, height {height}");
    match replication {
        Some(progress) => format!("{told}; replicating: {progress}"),
        None => told,
    }
}

fn listed(channels: &Listed) -> String {
    let system = channels
        .system_channel
        .iter()
        .map(|channel| format!("{} (system channel)", channel.name));
    let others = channels
        .channels
        .iter()
        .flatten()
        .map(|channel| channel.name.clone());
    let names: Vec<_> = system.chain(others).collect();
    if names.is_empty() {
        "this orderer has no channels".to_owned()
    } else {
        names.join("\n")
    }
}
