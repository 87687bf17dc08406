//! `quorate bench`: what this machine does with real processes, real TLS and durable commits.
//!
//! `node` drives flows of PartyA over RPC, with the notary, PartyB, their databases and the load
//! generator all on this machine; afterwards the money is counted. `notary` measures a notary's
//! decisions alone, `orderer` a cluster of orderers, as a share of the machine's [`limits`]. Figures are for comparing releases and settings on one machine; they carry the
//! facts about the machine that one needs for comparing machines.
//!
//! [`load`] makes the load, [`processes`] and [`meters`] look at who does the work, [`machine`]
//! says where, [`report`] is what comes out.

mod limits;
mod load;
mod machine;
mod meters;
mod notary;
mod orderer;
mod processes;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};
use quorate_cash::{Currency, Issue, IssueAndPay, Payment};
use quorate_flow::Flow;
use quorate_rpc::Client;
use serde_json::json;
use tokio::time::sleep;

use self::load::Load;
use self::machine::Machine;
use self::meters::Meters;
use self::processes::Processes;
use self::report::{Balances, NodeReport, ScenarioReport, Settings};
use crate::holdings;
use crate::local_network::{Engine, LocalNetwork, Plan, unless_stopped};

/// How long the nodes are left alone before their idle memory is read.
const IDLE: Duration = Duration::from_secs(2);
/// How long a recipient may take to record what the payer has recorded.
const SETTLING: Duration = Duration::from_secs(30);
/// Pause between two looks at a vault.
const POLL: Duration = Duration::from_millis(100);
/// What every issue and payment is about, in minor units.
const AMOUNT: i64 = 100;

#[derive(Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Flows per second between two parties and a notary, as three processes on this machine
    Node(NodeArguments),
    /// Decisions per second of a notary, without network and flows
    Notary(notary::Arguments),
    /// Messages per second through a cluster of orderers, as processes on this machine
    Orderer(orderer::Arguments),
}

#[derive(Args)]
struct NodeArguments {
    /// Where the nodes keep what is durable
    #[arg(long, default_value = "sqlite")]
    database: Engine,
    /// How long each scenario is measured, in seconds
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// How long each scenario runs before that, in seconds
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(0..=3600))]
    warmup: u64,
    /// How many flows are under way at a time
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=4096))]
    clients: u16,
    /// How many connections these calls share
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    connections: u16,
    /// What is measured
    #[arg(long, value_delimiter = ',', default_values = ["issue", "issue-and-pay", "payment"])]
    scenarios: Vec<Scenario>,
    /// Make the network in this new or empty directory, and leave it there; PostgreSQL's files are
    /// in TMPDIR
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What PartyA does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// Issue cash to itself; no notary, no peer
    Issue,
    /// Issue cash and pay PartyB with it; notarised
    IssueAndPay,
    /// Pay PartyB with cash that was issued before; notarised
    Payment,
}

impl Scenario {
    fn flow(self) -> &'static str {
        match self {
            Self::Issue => Issue::NAME,
            Self::IssueAndPay => IssueAndPay::NAME,
            Self::Payment => Payment::NAME,
        }
    }
}

pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode> {
    match arguments.command {
        Command::Node(arguments) => unless_stopped(node(arguments)).await,
        Command::Notary(arguments) => unless_stopped(notary::run(arguments)).await,
        Command::Orderer(arguments) => unless_stopped(orderer::run(arguments)).await,
    }
}

async fn node(arguments: NodeArguments) -> Result<ExitCode> {
    let say = |text: String| {
        if !arguments.json {
            println!("{text}");
        }
    };
    let plan = Plan {
        directory: arguments.dir.clone(),
        keep: false,
        engine: arguments.database,
        nodes: vec![
            ("Notary", "Zurich", "CH", true),
            ("PartyA", "London", "GB", false),
            ("PartyB", "New York", "US", false),
        ],
        pair: None,
        arguments: Vec::new(),
    };
    let mut network = LocalNetwork::prepare(&plan)?;
    let machine = Machine::look(network.path())?;
    say(machine.to_string());
    network.start().await?;
    let settings = Settings {
        release: crate::RELEASE,
        optimised: !cfg!(debug_assertions),
        database: arguments.database.name(),
        in_flight: arguments.clients,
        connections: arguments.connections,
        warmup_seconds: arguments.warmup,
        seconds: arguments.seconds,
    };
    say(settings.to_string());
    sleep(IDLE).await;
    let processes = Processes::of(&network);
    let mut report = NodeReport {
        machine,
        settings,
        idle: processes.memory()?,
        scenarios: Vec::new(),
        loaded: Vec::new(),
        balances: Balances::default(),
    };
    say(report::memory("Idle", &report.idle));

    let mut clients = Vec::new();
    for _ in 0..arguments.connections {
        clients.push(network.node("PartyA").client().await?);
    }
    let recipient = network.node("PartyB").name.clone();
    let currency: Currency = "GBP".parse()?;
    let load = Load {
        in_flight: arguments.clients.into(),
        warmup: Duration::from_secs(arguments.warmup),
        window: Duration::from_secs(arguments.seconds),
    };
    for scenario in &arguments.scenarios {
        let mut flow = json!({ "amount": AMOUNT as f64 / 100.0, "currency": currency });
        if *scenario != Scenario::Issue {
            flow["recipient"] = json!(recipient);
        }
        if *scenario == Scenario::Payment {
            let coins = stock(&clients, &load, &arguments, currency).await?;
            report.balances.issued += coins * AMOUNT;
        }
        let watched = Watched {
            network: &network,
            processes: &processes,
        };
        let run = load::drive(&clients, scenario.flow(), &flow, &load, || watched.look()).await?;
        let done = run.completed as i64 * AMOUNT;
        match scenario {
            Scenario::Issue => report.balances.issued += done,
            Scenario::Payment => report.balances.paid += done,
            Scenario::IssueAndPay => {
                report.balances.issued += done;
                report.balances.paid += done;
            }
        }
        let measured = ScenarioReport::new(scenario.flow(), run);
        say(measured.to_string());
        report.scenarios.push(measured);
    }
    report.loaded = processes.memory()?;
    say(report::memory("Loaded", &report.loaded));

    let a = network.node("PartyA").client().await?;
    let b = network.node("PartyB").client().await?;
    count(&a, &b, currency, &mut report.balances).await?;
    say(report.balances.to_string());
    network.stop().await?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    }
    let failed = report.scenarios.iter().any(|scenario| scenario.failed > 0);
    Ok(if report.balances.correct && !failed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Issues as many coins as payments can be made in the time; how many.
async fn stock(
    clients: &[Client],
    load: &Load,
    arguments: &NodeArguments,
    currency: Currency,
) -> Result<i64> {
    let there = holdings::of(&clients[0], currency).await?.states.len();
    // Payments are slower than issues, so that the same time is more than enough.
    let flow = json!({ "amount": AMOUNT as f64 / 100.0, "currency": currency });
    if there > usize::from(arguments.clients) * 100 {
        return Ok(0);
    }
    let load = Load {
        warmup: Duration::ZERO,
        window: load.warmup + load.window,
        in_flight: load.in_flight,
    };
    let run = load::drive(clients, Issue::NAME, &flow, &load, async || Ok(())).await?;
    Ok(run.completed as i64)
}

/// What is looked at before and after a measurement.
struct Watched<'a> {
    network: &'a LocalNetwork,
    processes: &'a Processes,
}

/// One look.
struct Look {
    cpu: Vec<(String, f64)>,
    meters: Vec<(String, Meters)>,
}

impl Watched<'_> {
    async fn look(&self) -> Result<Look> {
        let mut meters = Vec::new();
        for node in &self.network.nodes {
            let (_, text) = node.get("/metrics").await?;
            meters.push((node.label.to_owned(), Meters::read(&text)));
        }
        let cpu = self.processes.cpu()?;
        Ok(Look { cpu, meters })
    }
}

/// Counts the money in both vaults, when it has settled.
async fn count(a: &Client, b: &Client, currency: Currency, sums: &mut Balances) -> Result<()> {
    let began = Instant::now();
    loop {
        let at_b = holdings::of(b, currency).await?;
        if at_b.quantity == sums.paid || began.elapsed() > SETTLING {
            let at_a = holdings::of(a, currency).await?;
            sums.party_a = at_a.quantity;
            sums.party_b = at_b.quantity;
            let apart = at_a.states.is_disjoint(&at_b.states);
            sums.correct =
                apart && sums.party_b == sums.paid && sums.party_a == sums.issued - sums.paid;
            return Ok(());
        }
        sleep(POLL).await;
    }
}
