//! `quorate bench orderer`: signed messages per second through a cluster of orderers on this machine, until they are in
//! committed blocks that a reader has received.
//!
//! The messages are signed before the measurement: what is measured is the ordering service and the connections to it,
//! with whoever sends and reads on the same cores.

use std::collections::VecDeque;
use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use quorate_fabric::envelope::{EnvelopeParts, RawEnvelope};
use quorate_fabric::proto::common::Status;
use quorate_orderer::cluster::Link;
use quorate_orderer::grpc::{AtomicBroadcastClient, DeliverResponse, Position, SeekRequest};
use quorate_orderer::store::StoredBlock;
use quorate_runtime::{Clock, Entropy};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;

use super::limits::Limits;
use super::machine::Machine;
use super::processes::{Memory, OTHERS, Processes};
use super::report::{memory, millis, percentile};
use crate::local_orderers::{CHANNEL, LocalOrderers, OrderersPlan, message};

/// Different messages; they are sent again and again.
const POOL: usize = 20_000;
/// How long an answer or a block may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the orderers are left alone before their idle memory is read.
const IDLE: Duration = Duration::from_secs(2);

#[derive(Args)]
pub(super) struct Arguments {
    /// How many orderers
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=9))]
    orderers: u8,
    /// Messages in a block at the most
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    block: u32,
    /// How long a message waits for others to fill its block, in milliseconds
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    batch_timeout: u64,
    /// Bytes of data in a message
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(16..=1_000_000))]
    bytes: u32,
    /// How long is measured, in seconds
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// How long the load runs before that, in seconds
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(0..=3600))]
    warmup: u64,
    /// Messages without an answer at a time, over all connections
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    in_flight: u32,
    /// Connections, taken from the orderers in turn
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=64))]
    connections: u8,
    /// Messages per second, over all connections; as many as go unless given
    #[arg(long)]
    rate: Option<u32>,
    /// SUCCESS means that a majority has the message
    #[arg(long)]
    committed: bool,
    /// Make the cluster in this new or empty directory, and leave it there
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What was found.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    machine: Machine,
    limits: Limits,
    release: &'static str,
    optimised: bool,
    orderers: u8,
    block: u32,
    bytes: u32,
    committed_acks: bool,
    seconds: f64,
    /// Messages in blocks that were read in that time.
    ordered: usize,
    per_second: f64,
    /// From sending to having read the block.
    latency_millis_p50: f64,
    latency_millis_p99: f64,
    /// CPU seconds of all orderers for 1,000 messages.
    cpu_per_thousand: f64,
    /// What the signature checks alone would take at the most that this machine can do with all cores.
    share_of_verification_limit: f64,
    cpu: Vec<(String, f64)>,
    idle: Vec<Memory>,
    loaded: Vec<Memory>,
}

/// When each message of the pool was sent, the oldest first.
type Sent = Arc<Vec<Mutex<VecDeque<Instant>>>>;

pub(super) async fn run(arguments: Arguments) -> Result<ExitCode> {
    let plan = OrderersPlan {
        directory: arguments.dir.clone(),
        keep: false,
        count: arguments.orderers.into(),
        max_message_count: arguments.block,
        batch_timeout: Duration::from_millis(arguments.batch_timeout),
        committed: arguments.committed,
    };
    let mut cluster = LocalOrderers::prepare(&plan)?;
    let machine = Machine::look(cluster.path())?;
    let limits = Limits::measure(cluster.path()).await?;
    if !arguments.json {
        println!("{machine}\n{limits}");
    }
    let (identity, entropy) = (cluster.identity(), Entropy::system());
    let mut pool = Vec::with_capacity(POOL);
    for number in 0..POOL {
        let text = format!("{number};");
        pool.push(message(
            &identity,
            &entropy,
            &text,
            arguments.bytes as usize,
        )?);
    }
    let pool = Arc::new(pool);
    cluster.start().await?;
    sleep(IDLE).await;
    let named = cluster.orderers.iter();
    let named = named.filter_map(|one| Some((one.label.clone(), one.process()?)));
    let processes = Processes::named(named.collect());
    let idle = processes.memory()?;

    let sent: Sent = Arc::new((0..POOL).map(|_| Mutex::default()).collect());
    let stop = Arc::new(AtomicBool::new(false));
    let mut senders = JoinSet::new();
    let connections = usize::from(arguments.connections);
    for index in 0..connections {
        let client = cluster.connect(index % cluster.orderers.len()).await?;
        let sender = Sender {
            pool: pool.clone(),
            sent: sent.clone(),
            stop: stop.clone(),
            first: index,
            step: connections,
            in_flight: (arguments.in_flight as usize / connections).max(1),
            pause: arguments
                .rate
                .map(|rate| Duration::from_secs_f64(connections as f64 / f64::from(rate.max(1)))),
        };
        senders.spawn(sender.run(client));
    }
    let reader = cluster.connect(cluster.orderers.len() - 1).await?;
    let seek = SeekRequest::new(CHANNEL, Position::Number(1), Position::Number(u64::MAX));
    let seek = seek.sign(
        identity.as_ref(),
        &entropy.bytes::<24>(),
        Clock::system().now_micros(),
    )?;
    let mut readers = JoinSet::new();
    readers.spawn(read(reader, seek, sent.clone(), stop.clone()));

    sleep(Duration::from_secs(arguments.warmup)).await;
    let before = processes.cpu()?;
    let began = Instant::now();
    sleep(Duration::from_secs(arguments.seconds)).await;
    let ended = Instant::now();
    let after = processes.cpu()?;
    let loaded = processes.memory()?;
    stop.store(true, Ordering::Relaxed);
    while let Some(sender) = senders.join_next().await {
        sender??;
    }
    let arrivals = readers
        .join_next()
        .await
        .context("nobody has read the blocks")???;
    cluster.stop().await?;

    let mut latencies: Vec<Duration> = arrivals
        .iter()
        .filter(|(at, _)| (began..ended).contains(at))
        .map(|(_, took)| *took)
        .collect();
    ensure!(!latencies.is_empty(), "no block was read in the time");
    latencies.sort_unstable();
    let seconds = (ended - began).as_secs_f64();
    let cpu: Vec<(String, f64)> = after
        .into_iter()
        .zip(before)
        .map(|((process, after), (_, before))| (process, after - before))
        .collect();
    let orderers: f64 = cpu
        .iter()
        .filter(|(process, _)| process.starts_with("orderer") && process != OTHERS)
        .map(|(_, seconds)| seconds)
        .sum();
    let per_second = latencies.len() as f64 / seconds;
    let cores = std::thread::available_parallelism()?.get() as f64;
    let report = Report {
        share_of_verification_limit: per_second
            / (limits.verifications_per_second_and_core * cores),
        machine,
        limits,
        release: crate::RELEASE,
        optimised: !cfg!(debug_assertions),
        orderers: arguments.orderers,
        block: arguments.block,
        bytes: arguments.bytes,
        committed_acks: arguments.committed,
        seconds,
        ordered: latencies.len(),
        per_second,
        latency_millis_p50: millis(percentile(&latencies, 0.50)),
        latency_millis_p99: millis(percentile(&latencies, 0.99)),
        cpu_per_thousand: orderers / (latencies.len() as f64 / 1000.0),
        cpu,
        idle,
        loaded,
    };
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{report}");
    }
    Ok(ExitCode::SUCCESS)
}

/// Sends a part of the pool over one connection, again and again.
struct Sender {
    pool: Arc<Vec<RawEnvelope>>,
    sent: Sent,
    stop: Arc<AtomicBool>,
    first: usize,
    step: usize,
    in_flight: usize,
    pause: Option<Duration>,
}

impl Sender {
    async fn run(self, mut client: AtomicBroadcastClient<Link>) -> Result<()> {
        let (sender, receiver) = mpsc::channel(self.in_flight);
        let mut answers = client.broadcast(ReceiverStream::new(receiver)).await?;
        let mut numbers = (self.first..self.pool.len()).step_by(self.step).cycle();
        let mut under_way = 0_usize;
        let began = Instant::now();
        let mut count = 0_u32;
        loop {
            let stopping = self.stop.load(Ordering::Relaxed);
            let due = self
                .pause
                .is_none_or(|pause| began.elapsed() >= pause * count);
            if !stopping && due && under_way < self.in_flight {
                let number = numbers.next().context("the pool is empty")?;
                self.sent[number]
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push_back(Instant::now());
                sender.send(self.pool[number].clone()).await?;
                under_way += 1;
                count = count.wrapping_add(1);
                continue;
            }
            if under_way == 0 {
                if stopping {
                    return Ok(());
                }
                sleep(Duration::from_micros(200)).await;
                continue;
            }
            // With a given rate the next message may be due before an answer comes.
            let wait = if self.pause.is_some() && !stopping && under_way < self.in_flight {
                Duration::from_micros(200)
            } else {
                PATIENCE
            };
            match timeout(wait, answers.message()).await {
                Ok(answer) => match answer? {
                    Some(answer) if answer.status() == Status::Success => under_way -= 1,
                    Some(answer) => bail!("refused: {:?} {}", answer.status(), answer.info),
                    None => bail!("the orderer has ended the stream"),
                },
                Err(_) if wait == PATIENCE => bail!("an orderer does not answer"),
                Err(_) => {}
            }
        }
    }
}

/// Reads blocks until the load has stopped; when each message came, and how long that took.
async fn read(
    mut client: AtomicBroadcastClient<Link>,
    seek: RawEnvelope,
    sent: Sent,
    stop: Arc<AtomicBool>,
) -> Result<Vec<(Instant, Duration)>> {
    let mut answers = client.deliver(tokio_stream::iter([seek])).await?;
    let mut arrivals = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let answer = match timeout(Duration::from_millis(500), answers.message()).await {
            Ok(answer) => answer?,
            Err(_) => continue,
        };
        let Some(DeliverResponse::Block(bytes)) = answer else {
            bail!("the orderer gives no more blocks");
        };
        let now = Instant::now();
        let block = StoredBlock::decode(bytes)?.block();
        for envelope in block.data.iter().flat_map(|data| &data.data) {
            let envelope = RawEnvelope::decode(envelope.clone())?;
            let parts = EnvelopeParts::parse(&envelope)?;
            let digits = parts.data.split(|byte| *byte == b';').next();
            let number: usize = std::str::from_utf8(digits.unwrap_or_default())?.parse()?;
            let began = sent
                .get(number)
                .context("a message that nobody has sent")?
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pop_front();
            if let Some(began) = began {
                arrivals.push((now, now - began));
            }
        }
    }
    Ok(arrivals)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "Settings    quorate {}{}, {} orderer(s), blocks of {}, {} bytes, SUCCESS when {}",
            self.release,
            if self.optimised {
                ""
            } else {
                " (WITHOUT OPTIMISATION)"
            },
            self.orderers,
            self.block,
            self.bytes,
            if self.committed_acks {
                "committed"
            } else {
                "enqueued"
            }
        )?;
        writeln!(f, "{}", memory("Idle", &self.idle))?;
        writeln!(
            f,
            "Ordered     {:.0}/s ({} in {:.1} s), p50 {:.1} ms, p99 {:.1} ms; {:.0} % of the signatures that all cores could verify",
            self.per_second,
            self.ordered,
            self.seconds,
            self.latency_millis_p50,
            self.latency_millis_p99,
            self.share_of_verification_limit * 100.0
        )?;
        let parts: Vec<String> = self
            .cpu
            .iter()
            .map(|(process, seconds)| format!("{process} {:.2}", seconds / self.seconds))
            .collect();
        writeln!(
            f,
            "CPU         {:.3} s for 1,000 messages in the orderers; cores: {}",
            self.cpu_per_thousand,
            parts.join(", ")
        )?;
        write!(f, "{}", memory("Loaded", &self.loaded))
    }
}
