//! `quorate bench notary`: a notary's decisions alone, within this process.
//!
//! Requests are made and signed beforehand. What is measured begins with a request at the notary's
//! desk and ends with the signed answer: checking the tear-off and the requester's signature, the
//! batch, the durable commit, the signature over the batch. Network and flows are not in it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use quorate_flow::Owner;
use quorate_identity::{KeyPair, Party, SecureHash, SignatureScheme};
use quorate_ledger::{
    Command, ContractRef, NotarisationAnswer, NotarisationMessage, NotarisationPayload, StateRef,
    TransactionBuilder, TransactionState, TxId,
};
use quorate_notary::{Database, Handle, Identity, NotaryMetrics, Options, Service};
use quorate_runtime::{Clock, Metrics, Tasks};
use quorate_storage::lease::{Attempt, Candidate, Holder, Policy};
use quorate_storage::{DatabaseUrl, Relevance, Store, migrate};
use quorate_testkit::postgres::{Postgres, PostgresOptions};
use serde::Serialize;
use tokio::task::JoinSet;

use super::machine::Machine;
use super::meters::Meters;
use super::report::{millis, percentile};
use crate::local_network::Engine;

/// How long the notary may take to stop.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Args)]
pub(crate) struct Arguments {
    /// Where the notary keeps spent states
    #[arg(long, default_value = "sqlite")]
    database: Engine,
    /// How many requests are made
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    requests: u32,
    /// How many states each request consumes
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    inputs: u32,
    /// How many requests are under way at a time
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u16).range(1..=8192))]
    clients: u16,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    machine: Machine,
    optimised: bool,
    database: &'static str,
    inputs_per_request: u32,
    in_flight: u16,
    requests: usize,
    seconds: f64,
    requests_per_second: f64,
    states_per_second: f64,
    latency_millis_p50: f64,
    latency_millis_p99: f64,
    latency_millis_max: f64,
    commits_per_second: f64,
    mean_commit_millis: f64,
}

pub(super) async fn run(arguments: Arguments) -> Result<std::process::ExitCode> {
    let directory = tempfile::Builder::new()
        .prefix("quorate-notary-")
        .tempdir()?;
    let machine = Machine::look(directory.path())?;
    let server = match arguments.database {
        Engine::Sqlite => None,
        Engine::Postgres => Some(Postgres::start(&PostgresOptions::default())?),
    };
    let url: DatabaseUrl = match &server {
        Some(server) => server.create_database("notary")?.parse()?,
        None => DatabaseUrl::Sqlite {
            path: directory.path().join("notary.db"),
        },
    };
    let store = Store::connect(quorate_storage::Options::new(url), Vec::new()).await?;
    migrate::execute(&store).await?;

    let key = KeyPair::generate(SignatureScheme::Ed25519);
    let notary = Party::new("O=Notary, L=Zurich, C=CH".parse()?, key.public().clone());
    let requester_key = KeyPair::generate(SignatureScheme::Ed25519);
    let requester = Party::new(
        "O=PartyA, L=London, C=GB".parse()?,
        requester_key.public().clone(),
    );
    let requests = (0..arguments.requests)
        .map(|number| request(number, arguments.inputs, &notary, &requester_key))
        .collect::<Result<VecDeque<_>>>()?;

    let place = directory.path().display().to_string();
    let holder = Holder::this_process("bench", place);
    let owner = Owner {
        instance: holder.instance(),
        generation: 1,
    };
    let mut candidate = Candidate::new(&store, "node", holder, Policy::Always);
    let Attempt::Acquired(fence) = candidate.attempt().await? else {
        bail!("the lease of a new database is held by somebody");
    };
    let metrics = Metrics::new();
    let tasks = Tasks::new("bench");
    let (writer, writing) = store.writer(fence, Relevance::of_keys([]));
    let writing = writing.with_metrics(&metrics);
    tasks.spawn("writer", async move {
        writing.run().await;
    });
    let (service, handle) = Service::new(
        Identity {
            party: notary,
            key: key.into(),
            owner,
        },
        Options::default(),
        Arc::new(Database::new(writer)),
        Arc::new(|_| None),
        Clock::system(),
        NotaryMetrics::new(&metrics),
    );
    service.start(&tasks, Arc::new(|_| {}));

    let began = Instant::now();
    let count = requests.len();
    let mut latencies = drive(&handle, &requester, requests, arguments.clients).await?;
    let seconds = began.elapsed().as_secs_f64();
    ensure!(
        latencies.len() == count,
        "only {} of {count} requests were answered",
        latencies.len()
    );
    latencies.sort_unstable();
    let commits = Meters::read(&metrics.render()).commits_since(&Meters::default());
    drop(handle);
    tasks.stop(PATIENCE).await;
    store.close().await;

    let at = |part| millis(percentile(&latencies, part));
    let report = Report {
        machine,
        optimised: !cfg!(debug_assertions),
        database: arguments.database.name(),
        inputs_per_request: arguments.inputs,
        in_flight: arguments.clients,
        requests: count,
        seconds,
        requests_per_second: count as f64 / seconds,
        states_per_second: count as f64 * f64::from(arguments.inputs) / seconds,
        latency_millis_p50: at(0.50),
        latency_millis_p99: at(0.99),
        latency_millis_max: at(1.0),
        commits_per_second: commits.count / seconds,
        mean_commit_millis: 1000.0 * commits.seconds / commits.count.max(1.0),
    };
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print(&report);
    }
    Ok(std::process::ExitCode::SUCCESS)
}

fn print(report: &Report) {
    println!("{}", report.machine);
    println!(
        "Settings    {}{} with durable commits, {} requests of {} state(s), {} in flight",
        report.database,
        if report.optimised {
            ""
        } else {
            " (WITHOUT OPTIMISATION)"
        },
        report.requests,
        report.inputs_per_request,
        report.in_flight
    );
    println!();
    println!(
        "Notary      {:.1} requests per second, {:.1} states per second",
        report.requests_per_second, report.states_per_second
    );
    println!(
        "  latency   p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms",
        report.latency_millis_p50, report.latency_millis_p99, report.latency_millis_max
    );
    println!(
        "  commits   {:.1} per second, {:.2} ms each",
        report.commits_per_second, report.mean_commit_millis
    );
}

/// Has all requests decided, so many at a time; how long each took.
async fn drive(
    handle: &Handle,
    requester: &Party,
    requests: VecDeque<NotarisationMessage>,
    in_flight: u16,
) -> Result<Vec<Duration>> {
    let requests = Arc::new(Mutex::new(requests));
    let mut workers = JoinSet::new();
    for _ in 0..in_flight {
        let (handle, requester, requests) =
            (handle.clone(), requester.clone(), Arc::clone(&requests));
        let next = move || {
            let mut requests = requests.lock().unwrap_or_else(PoisonError::into_inner);
            requests.pop_front()
        };
        workers.spawn(async move {
            let mut latencies = Vec::new();
            while let Some(message) = next() {
                let began = Instant::now();
                let answer = handle.notarise(requester.clone(), message).await;
                match answer.context("the notary gave no answer")? {
                    NotarisationAnswer::Signed(_) => latencies.push(began.elapsed()),
                    NotarisationAnswer::Refused(error) => bail!("the notary refused: {error}"),
                }
            }
            anyhow::Ok(latencies)
        });
    }
    let mut latencies = Vec::new();
    while let Some(worker) = workers.join_next().await {
        latencies.extend(worker??);
    }
    Ok(latencies)
}

/// A signed request that consumes states which nobody else does.
fn request(
    number: u32,
    inputs: u32,
    notary: &Party,
    requester: &KeyPair,
) -> Result<NotarisationMessage> {
    let salt = |purpose: u8| {
        let mut bytes = [purpose; 32];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        bytes
    };
    let earlier = TxId::from(SecureHash::from_bytes(salt(1)));
    let mut builder = TransactionBuilder::new(notary.clone());
    for index in 0..inputs {
        builder = builder.add_input(StateRef::new(earlier, index));
    }
    let output = TransactionState {
        contract: ContractRef {
            name: "bench.Nothing".to_owned(),
            code: SecureHash::ZERO,
        },
        state_type: "bench.Nothing.State".to_owned(),
        data: Vec::new(),
        participants: vec![requester.public().clone()],
        notary: notary.clone(),
    };
    let wire = builder
        .add_output(output)
        .add_command(Command::new("bench.Move", [requester.public().clone()]))
        .build(salt(2))?;
    let payload = NotarisationPayload::filtered(&wire)?;
    Ok(NotarisationMessage::new(payload, requester))
}
