//! Pulls a channel's blocks from other orderers, by Deliver, and believes none of them unverified.
//!
//! A [`Puller`] asks all known orderers how far they are, takes one that is far enough, and reads from it until something
//! goes wrong; then it tries the others. Whether a chain may be followed at all (join block, membership) is the business
//! of whoever holds the puller. Start with [`Puller::pull`]; [`ChainVerifier`] is the rule by which blocks are believed.

mod probe;
mod progress;
#[cfg(test)]
mod tests;
mod verify;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, Stream};
use prost::Message as _;
use quorate_fabric::config::{ChannelConfig, OrdererEndpoint};
use quorate_fabric::msp::Signer;
use quorate_fabric::proto::common::Block;
use quorate_identity::mutual_tls::ClientTls;
use quorate_identity::x509::Certificate;
use quorate_runtime::{Clock, Entropy, Tasks};

pub(crate) use progress::Pace;
pub use progress::Progress;
pub(crate) use verify::signed;
pub use verify::{ChainVerifier, VerifyError};

use crate::listener::go_duration;
use crate::options;
use crate::store::StoredBlock;
use probe::Session;

const LOG: &str = "orderer.common.cluster.puller";

/// The pause after the first failed attempt; it doubles up to [`PullerOptions::retry_timeout`].
pub const RETRY_MIN: Duration = Duration::from_millis(100);

/// The settings of `General.Cluster` that concern replication.
#[derive(Debug, Clone)]
pub struct PullerOptions {
    /// `DialTimeout`: how long connecting may take.
    pub dial_timeout: Duration,
    /// `ReplicationPullTimeout`: how long the next block may take.
    pub pull_timeout: Duration,
    /// `ReplicationRetryTimeout`: the longest pause between attempts.
    pub retry_timeout: Duration,
    /// `ReplicationMaxRetries`: failed attempts in a row before [`Puller::pull`] gives up; 0: it never does.
    pub max_retries: u32,
    /// `ReplicationBufferSize`: bytes of blocks that are read before they are verified and handed out.
    pub buffer_bytes: usize,
    /// The longest block, in bytes.
    pub max_message_size: usize,
}

impl PullerOptions {
    /// Those of a configuration.
    #[must_use]
    pub fn of(general: &options::General) -> Self {
        let cluster = &general.cluster;
        Self {
            dial_timeout: cluster.dial_timeout,
            pull_timeout: cluster.replication_pull_timeout,
            retry_timeout: cluster.replication_retry_timeout,
            max_retries: cluster.replication_max_retries,
            buffer_bytes: usize::try_from(cluster.replication_buffer_size).unwrap_or(usize::MAX),
            max_message_size: usize::try_from(general.max_recv_msg_size).unwrap_or(usize::MAX),
        }
    }
}

/// Why a block could not be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PullFailure {
    /// The orderers refuse to give us the channel.
    #[error("forbidden pulling the channel")]
    Forbidden,
    /// The orderers do not serve the channel, or do not have the block.
    #[error("not found")]
    NotFound,
    /// The orderers have no leader, or are starting.
    #[error("service unavailable")]
    ServiceUnavailable,
    /// Another status, by its name.
    #[error("faulty node, received: status:{0}")]
    Status(String),
    /// No connection, or it broke.
    #[error("{0}")]
    Connection(String),
    /// The orderer said nothing for too long.
    #[error("didn't receive a response within {0}")]
    Silence(String),
    /// The orderer does not have the block yet.
    #[error("minimum requested sequence is {wanted} but {endpoint} is at sequence {last}")]
    Behind {
        /// The block that was wanted.
        wanted: u64,
        /// Who.
        endpoint: String,
        /// Its newest block.
        last: u64,
    },
    /// The orderer has later blocks, and not this one any more.
    #[error(
        "block [{wanted}] was pruned at {endpoint}, which is at block [{last}]; if no other orderer has it, stop this one \
         and give it the archived blocks with `quorate orderer restore`"
    )]
    Pruned {
        /// The block that was wanted.
        wanted: u64,
        /// Who.
        endpoint: String,
        /// Its newest block.
        last: u64,
    },
    /// What came is not what was asked for.
    #[error("{0}")]
    BadBlock(String),
    /// The blocks are not what the channel's orderers made.
    #[error("Failed verifying received blocks: {0}")]
    Unverified(String),
    /// The request could not be signed.
    #[error("Failed creating seek envelope: {0}")]
    Unsigned(String),
    /// No orderer is known.
    #[error("no orderer of the channel is known")]
    NoSources,
}

/// Pulls the blocks of one channel.
pub struct Puller {
    channel: String,
    options: PullerOptions,
    tls: Option<ClientTls>,
    extra_roots: Vec<Certificate>,
    signer: Arc<dyn Signer>,
    clock: Clock,
    entropy: Entropy,
    tasks: Tasks,
    sources: Vec<OrdererEndpoint>,
    verifier: Option<ChainVerifier>,
    session: Option<Session>,
    /// Read and verified, in order.
    ready: VecDeque<StoredBlock>,
    /// Handed out last: whoever could not store it asks for it again, and the verifier has gone on.
    handed_out: Option<StoredBlock>,
    /// Who failed last: asked again only if there is nobody else.
    avoided: Option<String>,
}

/// What a puller needs of the process.
#[derive(Clone)]
pub struct PullerContext {
    /// Timeouts and sizes.
    pub options: PullerOptions,
    /// What we show, and by what time certificates are judged; the roots are each source's. `None`: plain TCP.
    pub tls: Option<ClientTls>,
    /// `General.Cluster.RootCAs`: trusted besides the sources' own roots.
    pub extra_roots: Vec<Certificate>,
    /// Who asks.
    pub signer: Arc<dyn Signer>,
    /// Dates the requests.
    pub clock: Clock,
    /// For nonces, and for choosing among orderers.
    pub entropy: Entropy,
    /// Who owns the connections.
    pub tasks: Tasks,
}

impl Puller {
    /// A puller that is connected to nobody yet. Without a verifier it believes whatever has the right hashes: for probing
    /// only.
    #[must_use]
    pub fn new(
        context: PullerContext,
        channel: &str,
        sources: Vec<OrdererEndpoint>,
        verifier: Option<ChainVerifier>,
    ) -> Self {
        Self {
            channel: channel.to_owned(),
            options: context.options,
            tls: context.tls,
            extra_roots: context.extra_roots,
            signer: context.signer,
            clock: context.clock,
            entropy: context.entropy,
            tasks: context.tasks,
            sources,
            verifier,
            session: None,
            ready: VecDeque::new(),
            handed_out: None,
            avoided: None,
        }
    }

    /// The orderers that are asked from now on, see [`ChannelConfig::orderer_endpoints`].
    pub fn update_sources(&mut self, sources: Vec<OrdererEndpoint>) {
        let same = |old: &OrdererEndpoint, new: &OrdererEndpoint| {
            old.address == new.address && old.authorities == new.authorities
        };
        let unchanged = self.sources.len() == sources.len()
            && self
                .sources
                .iter()
                .zip(&sources)
                .all(|(old, new)| same(old, new));
        if !unchanged {
            self.sources = sources;
            self.session = None;
        }
    }

    /// How many blocks each orderer that answers has.
    ///
    /// # Errors
    /// Nobody answered: [`PullFailure::Forbidden`] if anybody said so, else [`PullFailure::ServiceUnavailable`] or
    /// [`PullFailure::NotFound`] likewise, else the last failure.
    pub async fn heights(&self) -> Result<BTreeMap<String, u64>, PullFailure> {
        let found = self.probe(0).await?;
        Ok(found
            .into_iter()
            .map(|probed| (probed.endpoint, probed.last.saturating_add(1)))
            .collect())
    }

    /// The block of that number, verified. Blocks are pulled one after the other, and the last one as often as it is
    /// wanted; with a verifier no other order is possible. Dropping the future loses nothing but work.
    ///
    /// # Errors
    /// The last failure, when there were `max_retries` in a row; each of them was logged.
    pub async fn pull(&mut self, number: u64) -> Result<StoredBlock, PullFailure> {
        if let Some(same) = self
            .handed_out
            .as_ref()
            .filter(|last| last.number() == number)
        {
            return Ok(same.clone());
        }
        let mut failures = 0u32;
        loop {
            match self.attempt(number).await {
                Ok(block) => {
                    self.handed_out = Some(block.clone());
                    return Ok(block);
                }
                Err(failure) => {
                    failures += 1;
                    if let Some(session) = self.session.take() {
                        self.avoided = Some(session.endpoint);
                    }
                    self.ready.clear();
                    let channel = &self.channel;
                    if self.options.max_retries > 0 && failures >= self.options.max_retries {
                        tracing::error!(target: LOG, %channel, "Failed pulling block [{number}]: retry count exhausted({failures})");
                        return Err(failure);
                    }
                    let pause = self
                        .options
                        .retry_timeout
                        .min(RETRY_MIN * 2u32.saturating_pow(failures.min(16) - 1));
                    let pause = self.entropy.jitter(pause);
                    tracing::debug!(target: LOG, %channel, "Failed pulling block [{number}]: {failure}, going to try again in {}", go_duration(pause));
                    self.clock.sleep(pause).await;
                }
            }
        }
    }

    /// How many blocks the orderer has that is read from, as it said when it was connected; `None` between two of them.
    pub fn source_height(&self) -> Option<u64> {
        self.session
            .as_ref()
            .map(|session| session.last.saturating_add(1))
    }

    /// Blocks `from`, `from + 1`, … up to but not including `until`; ends after the first failure.
    pub fn blocks(
        self,
        from: u64,
        until: u64,
    ) -> impl Stream<Item = Result<StoredBlock, PullFailure>> + Send {
        stream::unfold(Some((self, from)), move |state| async move {
            let (mut puller, number) = state.filter(|(_, number)| *number < until)?;
            let pulled = puller.pull(number).await;
            let next = pulled.is_ok().then_some((puller, number + 1));
            Some((pulled, next))
        })
    }

    /// The newest configuration block of the channel, as the orderer that is furthest ahead has it. Its signatures are
    /// judged by `trusted`; without that, or if the block is from times whose orderers `trusted` does not know, nothing is
    /// proved but that its hashes are right.
    ///
    /// # Errors
    /// [`PullFailure`], as [`Puller::pull`].
    pub async fn last_config_block(
        &self,
        trusted: Option<&ChannelConfig>,
    ) -> Result<StoredBlock, PullFailure> {
        let probed = self.probe(0).await?;
        let Some(ahead) = probed.into_iter().max_by_key(|probed| probed.last) else {
            return Err(PullFailure::NoSources);
        };
        let newest = ahead.newest.clone();
        let Some(number) = newest.last_config() else {
            return Err(PullFailure::BadBlock(format!(
                "block [{}] of {} does not say where the last config block is",
                newest.number(),
                ahead.endpoint
            )));
        };
        let block = if number == newest.number() {
            newest
        } else {
            let mut session = self.open(ahead, number).await?;
            let block = self.receive(&mut session, number).await?;
            StoredBlock::new(&block).map_err(|error| PullFailure::BadBlock(error.to_string()))?
        };
        verify::config_block(&block.block(), trusted)
            .map_err(|error| PullFailure::Unverified(error.to_string()))?;
        Ok(block)
    }

    async fn attempt(&mut self, number: u64) -> Result<StoredBlock, PullFailure> {
        if self.ready.front().map(StoredBlock::number) == Some(number)
            && let Some(block) = self.ready.pop_front()
        {
            return Ok(block);
        }
        self.ready.clear();
        let continues = |session: &Session| session.next == number;
        let mut session = match self.session.take().filter(continues) {
            Some(session) => session,
            None => self.connect(number).await?,
        };
        let outcome = self.fill(&mut session, number).await;
        // Kept even after a failure: whoever handles it wants to know who it was.
        self.session = Some(session);
        outcome?;
        self.ready
            .pop_front()
            .ok_or_else(|| PullFailure::BadBlock("nothing was received".to_owned()))
    }

    /// A stream from one of the orderers that have the block.
    async fn connect(&mut self, number: u64) -> Result<Session, PullFailure> {
        let mut found = self.probe(number).await?;
        if found.len() > 1
            && let Some(avoided) = self.avoided.take()
        {
            found.retain(|probed| probed.endpoint != avoided);
        }
        let choice = self.entropy.below(found.len() as u64);
        let chosen = found.swap_remove(usize::try_from(choice).unwrap_or(0));
        let channel = &self.channel;
        tracing::info!(target: LOG, %channel, "Connected to {} with last block seq of {}", chosen.endpoint, chosen.last);
        self.open(chosen, number).await
    }

    /// Reads blocks until the buffer is full or the orderer has no more, and verifies them together.
    async fn fill(&mut self, session: &mut Session, number: u64) -> Result<(), PullFailure> {
        let channel = self.channel.clone();
        let (mut blocks, mut bytes) = (Vec::new(), 0usize);
        let mut next = number;
        loop {
            let block = self.receive(session, next).await?;
            let size = block.encoded_len();
            tracing::info!(target: LOG, %channel, "Got block [{next}] of size {} KB from {}", size / 1024, session.endpoint);
            blocks.push(block);
            bytes = bytes.saturating_add(size);
            next = next.saturating_add(1);
            session.next = next;
            if bytes >= self.options.buffer_bytes || next > session.last {
                break;
            }
        }
        self.verify(&blocks).inspect_err(|failure| {
            tracing::error!(target: LOG, %channel, "{failure}; they came from {}", session.endpoint);
        })?;
        for block in &blocks {
            let stored = StoredBlock::new(block)
                .map_err(|error| PullFailure::BadBlock(error.to_string()))?;
            self.ready.push_back(stored);
        }
        Ok(())
    }

    fn verify(&mut self, blocks: &[Block]) -> Result<(), PullFailure> {
        let verified = match &mut self.verifier {
            Some(verifier) => verifier.verify(blocks),
            None => verify::hashes(None, blocks),
        };
        verified.map_err(|error| PullFailure::Unverified(error.to_string()))
    }
}
