//! One channel of the ordering service: from checked envelopes to blocks that all orderers agree on.
//!
//! The protocol is a value, [`core::Channel`](core): events in, actions out, no clock and no I/O, so that whole
//! clusters can be run in one thread with the faults of a seed. [`start`] puts it into a task that performs the
//! actions; [`ChannelHandle`] is what others hold: it submits, passes on what other orderers send, and answers
//! questions.
//!
//! What a message must be to come here is the business of [`crate::checks`]; blocks are finished by
//! [`crate::assembly`]; how other orderers are reached is behind [`Peers`] and [`Replication`].

pub mod activity;
mod applying;
pub mod consenters;
pub mod core;
mod metrics;
mod ordering;
mod standing;
mod task;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quorate_fabric::config::ChannelConfig;
use quorate_fabric::envelope::RawEnvelope;
use tokio::sync::watch;

pub use self::core::{Halt, View};
pub use self::metrics::ChannelMetrics;
pub use self::ordering::{
    AFTER_ELECTION, MAX_CONFIG_UPDATES, MAX_FORWARDS, MAX_WAITING, NO_LEADER, PATIENCE,
};
pub use self::standing::Standing;
pub use self::task::{
    Belonging, Creation, MAX_QUEUED_MESSAGE_BYTES, MAX_QUEUED_MESSAGES, MAX_QUEUED_SUBMISSIONS,
    Peers, Pending, Replication, Start, start,
};

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
    /// What will stand in the block. For a configuration update: the `CONFIG` envelope made of it.
    pub envelope: RawEnvelope,
    /// What it is.
    pub kind: Kind,
    /// The configuration sequence under which it was checked; checked again when another is current by then. None: it
    /// was not checked completely, because the leader does so ([`ChannelHandle::leader_checks`]).
    pub validated_at: Option<u64>,
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

/// A channel that this orderer is a consenter of. Cheap to clone.
#[derive(Clone)]
pub struct ChannelHandle {
    shared: Arc<task::Shared>,
}

impl ChannelHandle {
    /// The channel's name.
    pub fn id(&self) -> &str {
        &self.shared.name
    }

    /// The configuration that is current now.
    pub fn config(&self) -> Arc<ChannelConfig> {
        self.shared.view.borrow().config.clone()
    }

    /// What the checks of a message need: configuration, consenters, who of them is heard of.
    pub fn view(&self) -> watch::Receiver<View> {
        self.shared.view.clone()
    }

    /// The channel's blocks.
    pub fn store(&self) -> &BlockStore {
        &self.shared.store
    }

    /// The Raft id of the leader, 0 while there is none.
    pub fn leader(&self) -> watch::Receiver<u64> {
        self.shared.leader.clone()
    }

    /// Whether another orderer leads, and checks what is forwarded to it before it answers: whoever submits here need not
    /// verify the signature of a normal message. Should the message be ordered by somebody else after all, it is checked
    /// then.
    pub fn leader_checks(&self) -> bool {
        self.shared.leader_checks()
    }

    /// Where the channel's Raft group stands, as far as this orderer knows; `None` when the channel has stopped.
    pub async fn standing(&self) -> Option<Standing> {
        self.shared.standing().await
    }

    /// Why the channel has stopped, once it has.
    pub fn halted(&self) -> watch::Receiver<Option<Halt>> {
        self.shared.halted.clone()
    }

    /// Asks for a place in the chain, and waits until the answer that [`Submission::ack`] names. Dropping the future
    /// does not take the submission back once it is queued.
    ///
    /// # Errors
    /// [`SubmitError`].
    pub async fn submit(&self, submission: Submission) -> Result<(), SubmitError> {
        self.enqueue(submission).await?.answer().await
    }

    /// Queues a submission, and gives the answer as something to wait for, so that several can be under way in the
    /// order in which they were queued. Waits while the channel cannot take more.
    ///
    /// # Errors
    /// The channel has stopped.
    pub async fn enqueue(&self, submission: Submission) -> Result<Pending, SubmitError> {
        self.shared.enqueue(submission).await
    }

    /// A consensus message of consenter `from`. Never blocks; what does not fit is dropped, as a network might.
    pub fn step(&self, from: u64, payload: Bytes, metadata: Bytes) {
        self.shared.step(from, payload, metadata);
    }
}

impl std::fmt::Debug for ChannelHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChannelHandle")
            .field("id", &self.id())
            .finish_non_exhaustive()
    }
}

/// A duration as Go prints it in the log lines that operators know, to the millisecond.
fn go_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    let (minutes, seconds) = (millis / 60_000, (millis % 60_000) as f64 / 1000.0);
    match (minutes / 60, minutes % 60) {
        (0, 0) => format!("{seconds}s"),
        (0, minutes) => format!("{minutes}m{seconds}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
    }
}
