//! Which channels this orderer has, and what it is to each of them.
//!
//! One task owns that knowledge (`Desk`): it opens the chains on disk, joins and removes channels for the
//! participation API, turns a consenter that was removed into a follower and a follower that was added into a consenter.
//! Everybody else reads a table that it replaces as a whole. What a consenter does is in [`crate::channel`], what a follower
//! does in [`crate::follower`]; the way from a chain on disk to a running consenter is in `consenter`.
//!
//! A network may have a system channel, whose blocks create the other channels. What is different then is in `system`
//! (how it begins, creates and ends), in `onboarding` (how an orderer that comes late gets all channels), in `inactive`
//! (what an orderer has of a channel that others serve) and in `tracker` (how it notices that it is wanted there).
//!
//! Start reading at [`Registrar`].

mod consenter;
mod desk;
mod doors;
mod inactive;
mod incarnation;
mod join;
mod onboarding;
mod overview;
mod system;
mod tracker;
mod trust;
mod wiring;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use quorate_consensus::{GroupId, Log, LogError, Recovered};
use quorate_fabric::config::ChannelConfig;
use quorate_fabric::msp::Signer;
use quorate_identity::mutual_tls::public_key;
use quorate_runtime::{Clock, Entropy, Tasks};
use tokio::sync::{mpsc, oneshot, watch};

pub use self::consenter::StartError;
use self::desk::{Desk, Request};
use self::inactive::Inactive;
pub use self::incarnation::{IncarnationError, Incarnations};
pub use self::onboarding::OnboardingError;
pub use self::system::{BootstrapBlock, BootstrapError};
pub use self::trust::Trust;
use crate::admin::{ChannelInfo, ChannelStatus, ConsensusRelation, JoinError, RemoveError};
use crate::broadcast::Checker;
use crate::channel::ChannelHandle;
use crate::checks::Rules;
use crate::cluster::Transport;
use crate::deliver::Channel as _;
use crate::follower::Follower;
use crate::metrics::OrdererMetrics;
use crate::replication::PullerContext;
use crate::store::{BlockStore, Ledgers, StoreError};

const LOG: &str = "orderer.commmon.multichannel";

/// Requests that wait for the registrar: operators make them one at a time, and each channel tells of its end once.
const MAX_REQUESTS: usize = 64;

/// What all channels of a process share.
pub struct Premises {
    /// The ledgers.
    pub ledgers: Ledgers,
    /// The log of all Raft groups.
    pub log: Log,
    /// What was found in it, until a channel claims it.
    pub recovered: Mutex<BTreeMap<GroupId, Recovered>>,
    /// Which groups the log must have.
    pub incarnations: Incarnations,
    /// `Consensus.WALDir`.
    pub wal: PathBuf,
    /// `Consensus.SnapDir`.
    pub snapshots: PathBuf,
    /// To the other orderers.
    pub transport: Transport,
    /// How blocks of other orderers are pulled.
    pub puller: PullerContext,
    /// Whose TLS certificates count.
    pub trust: Arc<Trust>,
    /// Signs blocks.
    pub signer: Arc<dyn Signer>,
    /// Checks what other orderers forward.
    pub checker: Checker,
    /// The public key of the certificate that our cluster listener shows: by it we find ourselves among consenters.
    pub server_key: Vec<u8>,
    /// How messages are checked.
    pub rules: Rules,
    /// `Consensus.TickIntervalOverride`.
    pub tick_override: Option<Duration>,
    /// `Consensus.EvictionSuspicion`.
    pub eviction_suspicion: Duration,
    /// `General.Cluster.ReplicationBackgroundRefreshInterval`.
    pub refresh_interval: Duration,
    /// The time.
    pub clock: Clock,
    /// Nonces, jitter, names.
    pub entropy: Entropy,
    /// What operators see of channels, and of our part in them.
    pub metrics: OrdererMetrics,
}

impl Premises {
    /// Whether a certificate is the one that our cluster listener shows, or another one for the same key.
    fn is_ours(&self, server_certificate: &[u8]) -> bool {
        public_key(server_certificate).is_ok_and(|key| key == self.server_key)
    }

    fn is_member(&self, config: &ChannelConfig) -> bool {
        let consenters = &config.raft_metadata().consenters;
        consenters
            .iter()
            .any(|consenter| self.is_ours(&consenter.server_tls_cert))
    }

    /// What the log has of a group: found in it at the start, or left by an earlier part that we played in the channel.
    fn claim(&self, id: GroupId) -> Result<Option<Recovered>, LogError> {
        match self.unclaimed().remove(&id) {
            Some(found) => Ok(Some(found)),
            None => self.log.recover(id),
        }
    }

    fn unclaimed(&self) -> std::sync::MutexGuard<'_, BTreeMap<GroupId, Recovered>> {
        self.recovered
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// What this orderer is to one channel.
#[derive(Clone)]
enum Part {
    /// It orders, together with others.
    Consenter(Arc<Consenter>),
    /// It copies blocks.
    Follower(Follower),
    /// It leaves the channel to others; only where there is a system channel.
    Inactive(Arc<Inactive>),
    /// It is leaving.
    Leaving(ChannelInfo),
    /// It cannot do anything, for a reason that was logged.
    Failed {
        info: ChannelInfo,
        /// Whether it failed in leaving: then nothing but a restart helps.
        leaving: bool,
        reason: String,
    },
}

/// A channel that this orderer is a consenter of.
struct Consenter {
    handle: ChannelHandle,
    outage: watch::Receiver<bool>,
}

/// What everybody reads.
#[derive(Default)]
struct Table {
    /// The system channel's name.
    system: Option<String>,
    parts: BTreeMap<String, Part>,
}

/// The channels of this orderer. Cheap to clone.
#[derive(Clone)]
pub struct Registrar {
    premises: Arc<Premises>,
    table: Arc<ArcSwap<Table>>,
    requests: mpsc::Sender<Request>,
}

/// The channels cannot be opened at all.
#[derive(Debug, thiserror::Error)]
pub enum RegistrarError {
    /// The ledgers.
    #[error("the ledgers cannot be read")]
    Store(#[from] StoreError),
    /// What is kept about their Raft groups.
    #[error("the names of the channels' Raft groups cannot be read")]
    Incarnation(#[from] IncarnationError),
    /// Nobody would know which of them creates channels.
    #[error(
        "there are several system channels: {}; move the ledgers of all but one away from FileLedger.Location",
        .0.join(", ")
    )]
    SystemChannels(Vec<String>),
    /// The system channel, with which everything else begins.
    #[error("the system channel {channel} cannot be opened: {reason}")]
    SystemChannel {
        /// Its name.
        channel: String,
        /// Why not.
        reason: String,
    },
    /// Its blocks, and those of the channels that it has created, are with other orderers.
    #[error("the channels cannot be replicated")]
    Onboarding(#[from] OnboardingError),
    /// A part of us panicked.
    #[error(transparent)]
    Panicked(#[from] quorate_runtime::tasks::TaskFailure),
}

impl Registrar {
    /// Opens every channel on disk and starts serving it. A channel that cannot be opened does not keep the others from
    /// being served: it is shown as failed, and the log says why. Where a system channel is joined by one of its later
    /// blocks, this returns when all channels have been replicated.
    ///
    /// # Errors
    /// [`RegistrarError`].
    pub async fn start(premises: Premises, tasks: &Tasks) -> Result<Self, RegistrarError> {
        let premises = Arc::new(premises);
        let table = Arc::new(ArcSwap::default());
        let (requests, incoming) = mpsc::channel(MAX_REQUESTS);
        let registrar = Self {
            premises: premises.clone(),
            table: table.clone(),
            requests: requests.clone(),
        };
        let mut desk = Desk::new(premises, table, requests, tasks);
        desk.open().await?;
        if let Some(tracker) = desk.tracker() {
            tasks.spawn("search for channels that want this orderer", tracker.run());
        }
        tasks.spawn_essential("registrar", desk.run(incoming));
        Ok(registrar)
    }

    fn part(&self, channel: &str) -> Option<Part> {
        self.table.load().parts.get(channel).cloned()
    }

    /// The names of all channels, the system channel included.
    pub fn channels(&self) -> Vec<String> {
        self.table.load().parts.keys().cloned().collect()
    }

    /// The system channel's name, if there is one.
    pub fn system_channel(&self) -> Option<String> {
        self.table.load().system.clone()
    }

    /// What this orderer is to a channel, and how far it is.
    pub fn info(&self, channel: &str) -> Option<ChannelInfo> {
        self.part(channel).map(|part| describe(channel, &part))
    }

    /// The channel, if this orderer is a consenter of it.
    pub fn consenter(&self, channel: &str) -> Option<ChannelHandle> {
        match self.part(channel)? {
            Part::Consenter(consenter) => Some(consenter.handle.clone()),
            _ => None,
        }
    }

    /// The blocks of a channel that is in use.
    fn store(&self, channel: &str) -> Option<BlockStore> {
        match self.part(channel)? {
            Part::Consenter(consenter) => Some(consenter.handle.store().clone()),
            Part::Follower(follower) => Some(follower.store().clone()),
            Part::Inactive(inactive) => Some(inactive.store().clone()),
            Part::Leaving(_) | Part::Failed { .. } => None,
        }
    }

    /// Joins the channel of a block.
    ///
    /// # Errors
    /// [`JoinError`].
    pub async fn join(&self, block: Bytes) -> Result<ChannelInfo, JoinError> {
        let (reply, answer) = oneshot::channel();
        let stopping = || JoinError::Failed("the orderer is stopping".to_owned());
        self.requests
            .send(Request::Join(block, reply))
            .await
            .map_err(|_| stopping())?;
        answer.await.unwrap_or_else(|_| Err(stopping()))
    }

    /// Leaves a channel. Returns when that has begun; it ends by itself, after a crash too.
    ///
    /// # Errors
    /// [`RemoveError`].
    pub async fn remove(&self, channel: &str) -> Result<(), RemoveError> {
        let (reply, answer) = oneshot::channel();
        let stopping = || RemoveError::Failed("the orderer is stopping".to_owned());
        self.requests
            .send(Request::Remove(channel.to_owned(), reply))
            .await
            .map_err(|_| stopping())?;
        answer.await.unwrap_or_else(|_| Err(stopping()))
    }
}

fn describe(channel: &str, part: &Part) -> ChannelInfo {
    let (consensus_relation, status, height) = match part {
        Part::Consenter(consenter) => (
            ConsensusRelation::Consenter,
            ChannelStatus::Active,
            consenter.handle.store().height(),
        ),
        Part::Follower(follower) => {
            let state = follower.state();
            let relation = if state.is_member {
                ConsensusRelation::Consenter
            } else {
                ConsensusRelation::Follower
            };
            let status = if state.failed {
                ChannelStatus::Failed
            } else if state.onboarding {
                ChannelStatus::Onboarding
            } else {
                ChannelStatus::Active
            };
            (relation, status, follower.store().height())
        }
        Part::Inactive(inactive) => (
            inactive.relation(),
            ChannelStatus::Inactive,
            inactive.store().height(),
        ),
        Part::Leaving(info) | Part::Failed { info, .. } => return info.clone(),
    };
    ChannelInfo {
        name: channel.to_owned(),
        consensus_relation,
        status,
        height,
    }
}
