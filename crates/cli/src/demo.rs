//! `quorate demo`: processes on this machine pay cash to each other, are killed, and go on.
//!
//! `failover` is the demonstration: one of the parties is served by two instances, and whichever
//! of them is killed, the other one goes on. `cash` is what one sees without a standby. `thief` is
//! an application that only the demonstration installs.

mod cash;
mod failover;
mod haproxy;
mod orderer;
mod thief;
mod timeline;
mod witness;

use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::{Args, ValueEnum};
use quorate_flow::Flow;
use quorate_rpc::api::FlowState;
use quorate_rpc::{Client, RunningFlow};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::local_network::{Engine, LocalNetwork, Plan, RPC_USER, unless_stopped};

pub(crate) use thief::Thief;

/// The argument of `quorate node` that installs [`Thief`].
pub(crate) const THIEF_ARGUMENT: &str = "--demonstrate-theft";

/// How long one flow may take, the restart of a node included.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a recipient may take to record what the payer has recorded.
const SETTLING: Duration = Duration::from_secs(10);
/// Pause between two looks at a condition.
const POLL: Duration = Duration::from_millis(10);

const PARTY_A: &str = "PartyA";
const PARTY_B: &str = "PartyB";
const NOTARY: &str = "Notary";

/// See it work: a node on two instances is killed in the midst of payments, and goes on
#[derive(Args)]
pub(crate) struct Arguments {
    /// What to show: the node with its standby unless given
    #[arg(value_enum)]
    scenario: Option<Scenario>,
    /// Without a standby: three nodes issue and pay cash, cheat, and are killed
    #[arg(long, conflicts_with = "haproxy")]
    cash: bool,
    /// With HAProxy in front of the two instances
    #[arg(long)]
    haproxy: bool,
    /// Make the network in this new or empty directory, and leave it there
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Leave the network's directory behind
    #[arg(long)]
    keep: bool,
    /// On a private PostgreSQL server instead of SQLite files
    #[arg(long)]
    postgres: bool,
}

/// What there is to see besides the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// Three orderers order ten thousand messages while their leader dies
    Orderer,
}

pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode> {
    if let Some(Scenario::Orderer) = arguments.scenario {
        return unless_stopped(orderer::show(arguments.dir, arguments.keep)).await;
    }
    let engine = if arguments.postgres {
        Engine::Postgres
    } else {
        Engine::Sqlite
    };
    let mut plan = Plan {
        directory: arguments.dir,
        keep: arguments.keep,
        engine,
        nodes: vec![
            (NOTARY, "Zurich", "CH", true),
            (PARTY_A, "London", "GB", false),
        ],
        pair: None,
        arguments: Vec::new(),
    };
    if arguments.cash {
        plan.nodes.push((PARTY_B, "New York", "US", false));
        plan.arguments.push(THIEF_ARGUMENT);
        unless_stopped(cash::show(&plan)).await
    } else {
        plan.pair = Some(failover::pair(arguments.haproxy));
        unless_stopped(failover::show(&plan)).await
    }
}

/// Stops the network, and says how to go on with it if it stays: `shells` are RPC addresses.
async fn farewell(network: &mut LocalNetwork, shells: &[String]) -> Result<()> {
    network.stop().await?;
    println!();
    if network.is_kept() {
        let path = network.path().display();
        if network.postgres().is_some() {
            println!("The network stays in {path}; its PostgreSQL server ends now.");
            return Ok(());
        }
        println!("The network stays in {path}. To go on with it:");
        for node in &network.nodes {
            println!("  quorate node -b {}", node.directory.display());
        }
        if network.balancer.is_some() {
            println!("  {}", haproxy::HaProxy::command(network.path()));
        }
        for address in shells {
            println!("  quorate shell -u {RPC_USER} -a {address}");
        }
    }
    Ok(())
}

/// Runs a flow to its end: its result, and how long it took.
async fn flow<F: Flow, R: DeserializeOwned>(
    client: &Client,
    arguments: Value,
) -> Result<(R, Duration)> {
    let began = Instant::now();
    let flow: RunningFlow = client.start_flow(F::NAME, arguments).await?;
    let result = flow.result(PATIENCE).await?;
    Ok((serde_json::from_value(result)?, began.elapsed()))
}

/// How many flows of a node have not ended.
async fn unfinished(client: &Client) -> Result<usize> {
    let flows = client.flows().await?;
    Ok(flows
        .iter()
        .filter(|flow| !FlowState::ended(flow.state))
        .count())
}

/// A duration for people.
struct Took(Duration);

impl fmt::Display for Took {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = if self.0 < Duration::from_secs(1) {
            format!("{} ms", self.0.as_millis())
        } else {
            format!("{:.2} s", self.0.as_secs_f64())
        };
        f.pad(&text)
    }
}
