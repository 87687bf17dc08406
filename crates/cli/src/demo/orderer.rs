//! The ordering service: three orderers, ten thousand signed messages, and the leader dies on the way.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use quorate_fabric::block;
use quorate_fabric::config::ChannelConfig;
use quorate_fabric::envelope::{EnvelopeParts, RawEnvelope};
use quorate_fabric::proto::common::Status;
use quorate_orderer::grpc::{DeliverResponse, Position, SeekRequest};
use quorate_orderer::replication::ChainVerifier;
use quorate_orderer::store::StoredBlock;
use quorate_runtime::{Clock, Entropy};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::local_orderers::{CHANNEL, LocalOrderers, OrderersPlan, message};

/// Messages that are sent.
const MESSAGES: usize = 10_000;
/// Messages under way at a time.
const IN_FLIGHT: usize = 256;
/// When the leader dies: after so many acknowledgements.
const KILL_AFTER: usize = 4_000;
/// Bytes of one message.
const BYTES: usize = 256;
/// How long the service may be without a leader, and a message without an answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause before a message that found no leader is tried again.
const RETRY: Duration = Duration::from_millis(50);

pub(super) async fn show(directory: Option<PathBuf>, keep: bool) -> Result<ExitCode> {
    let plan = OrderersPlan {
        directory,
        keep,
        count: 3,
        max_message_count: 500,
        batch_timeout: Duration::from_millis(200),
        committed: true,
    };
    let began = Instant::now();
    let say = |text: String| println!("{:7.3} s  {text}", began.elapsed().as_secs_f64());
    let mut cluster = LocalOrderers::prepare(&plan)?;
    say(format!(
        "made certificates, a genesis block and three configurations in {}",
        cluster.path().display()
    ));
    cluster.start().await?;
    let leader = cluster.leader().await?;
    say(format!(
        "three orderers serve channel `{CHANNEL}`; {} leads",
        cluster.orderers[leader].label
    ));

    // Sent through an orderer that does not lead, so that the connection outlives the leader.
    let through = (leader + 1) % cluster.orderers.len();
    let entropy = Entropy::system();
    let identity = cluster.identity();
    let mut acknowledged = vec![false; MESSAGES];
    let mut next = 0;
    let mut done = 0;
    let mut killed = None;
    let mut gap = Duration::ZERO;
    let mut last_answer = Instant::now();
    // A message without a clear answer may be in the chain: it is looked for at the end, and not sent again.
    let mut unknown = 0;
    while next < MESSAGES {
        let mut client = cluster.connect(through).await?;
        let (sender, receiver) = mpsc::channel(IN_FLIGHT);
        let mut answers = client.broadcast(ReceiverStream::new(receiver)).await?;
        let mut under_way = std::collections::VecDeque::new();
        loop {
            while under_way.len() < IN_FLIGHT && next < MESSAGES {
                let envelope = message(&identity, &entropy, &format!("message {next};"), BYTES)?;
                if sender.send(envelope).await.is_err() {
                    break;
                }
                under_way.push_back(next);
                next += 1;
            }
            let Some(number) = under_way.pop_front() else {
                break;
            };
            let answer = tokio::time::timeout(PATIENCE, answers.message())
                .await
                .context("an orderer has not answered in time")?;
            match answer {
                Ok(Some(answer)) if answer.status() == Status::Success => {
                    acknowledged[number] = true;
                    done += 1;
                    gap = gap.max(last_answer.elapsed());
                    last_answer = Instant::now();
                }
                other => {
                    // This one was refused; those behind it may or may not have been taken.
                    if let Ok(Some(answer)) = &other
                        && answer.status() != Status::ServiceUnavailable
                    {
                        bail!(
                            "message {number} was refused: {:?} {}",
                            answer.status(),
                            answer.info
                        );
                    }
                    unknown += under_way.len() + 1;
                    tokio::time::sleep(RETRY).await;
                    break;
                }
            }
            if done == KILL_AFTER && killed.is_none() {
                cluster.orderers[leader].kill()?;
                killed = Some(Instant::now());
                say(format!(
                    "{done} messages acknowledged; {} is killed with kill -9",
                    cluster.orderers[leader].label
                ));
            }
        }
    }
    ensure!(
        killed.is_some(),
        "the leader was not killed: {done} acknowledgements"
    );
    let successor = cluster.leader().await?;
    say(format!(
        "{done} messages acknowledged, {unknown} without an answer; {} leads now; the longest pause between two answers was {:.2} s",
        cluster.orderers[successor].label,
        gap.as_secs_f64()
    ));
    cluster.orderers[leader].spawn()?;
    cluster.orderers[leader].serving().await?;
    cluster.orderers[leader].has_leader().await?;
    let height = level(&cluster).await?;
    say(format!(
        "{} is back; all three have {height} blocks",
        cluster.orderers[leader].label
    ));

    let mut chains = Vec::new();
    for index in 0..cluster.orderers.len() {
        chains.push(read(&cluster, index, height).await?);
        say(format!(
            "{}: {height} blocks read, hashes and signatures verified",
            cluster.orderers[index].label
        ));
    }
    let same = chains.iter().all(|chain| chain.hashes == chains[0].hashes);
    let found = &chains[0].messages;
    let lost = (0..MESSAGES).filter(|number| acknowledged[*number] && !found.contains_key(number));
    let lost = lost.count();
    let doubled = found.values().filter(|times| **times > 1).count();
    say(format!(
        "{} different messages in the chain; {lost} acknowledged ones lost, {doubled} doubled; the three chains are {}",
        found.len(),
        if same { "identical" } else { "DIFFERENT" }
    ));
    cluster.stop().await?;
    Ok(if same && lost == 0 && doubled == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Waits until all orderers have the same number of blocks; which.
async fn level(cluster: &LocalOrderers) -> Result<u64> {
    let began = Instant::now();
    loop {
        let mut heights = Vec::new();
        for orderer in &cluster.orderers {
            heights.push(orderer.height().await?);
        }
        if heights.iter().all(|height| *height == heights[0]) {
            return Ok(heights[0]);
        }
        ensure!(
            began.elapsed() < PATIENCE,
            "the orderers have {heights:?} blocks, after {} s",
            PATIENCE.as_secs()
        );
        tokio::time::sleep(RETRY).await;
    }
}

/// What one orderer has.
struct Chain {
    hashes: Vec<[u8; 32]>,
    /// How often each message is there.
    messages: BTreeMap<usize, usize>,
}

/// Reads and verifies the whole chain of one orderer.
async fn read(cluster: &LocalOrderers, index: usize, height: u64) -> Result<Chain> {
    let mut client = cluster.connect(index).await?;
    let seek = SeekRequest::new(CHANNEL, Position::Oldest, Position::Number(height - 1));
    let request = seek.sign(
        cluster.identity().as_ref(),
        &Entropy::system().bytes::<24>(),
        Clock::system().now_micros(),
    )?;
    let mut answers = client.deliver(tokio_stream::iter([request])).await?;
    let mut chain = Chain {
        hashes: Vec::new(),
        messages: BTreeMap::new(),
    };
    let mut verifier: Option<ChainVerifier> = None;
    while chain.hashes.len() < height as usize {
        let answer = tokio::time::timeout(PATIENCE, answers.message()).await??;
        let Some(DeliverResponse::Block(bytes)) = answer else {
            bail!("the orderer ended the stream early");
        };
        let stored = StoredBlock::decode(bytes)?;
        let block = stored.block();
        match &mut verifier {
            Some(verifier) => verifier.verify(std::slice::from_ref(&block))?,
            None => {
                // The genesis block is what we have made ourselves.
                block::check_data_hash(&block)?;
                let config = ChannelConfig::from_block(&block)?;
                verifier = Some(ChainVerifier::new(
                    CHANNEL,
                    Some(config.into()),
                    Some(stored.header().clone()),
                ));
            }
        }
        chain.hashes.push(*stored.header_hash());
        for envelope in block.data.iter().flat_map(|data| &data.data) {
            let envelope = RawEnvelope::decode(envelope.clone())?;
            let parts = EnvelopeParts::parse(&envelope)?;
            let text = String::from_utf8_lossy(&parts.data);
            let number = text
                .strip_prefix("message ")
                .and_then(|rest| rest.split(';').next())
                .and_then(|number| number.parse().ok());
            if let Some(number) = number {
                *chain.messages.entry(number).or_default() += 1;
            }
        }
    }
    Ok(chain)
}
