//! What one step of a flow leaves behind, as plain data for the store.

use quorate_identity::X500Name;
use quorate_ledger::{SignedTransaction, Timestamp};
use serde::{Deserialize, Serialize};

use crate::ids::{ClientId, FlowId};
use crate::message::Envelope;

/// Where a flow stands. The names are those that operators read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum FlowStatus {
    /// Working, or about to.
    Runnable,
    /// Waiting for a message or a time.
    Suspended,
    /// Stopped by something unexpected; waits under observation for a retry or a kill.
    Hospitalised,
    /// Stopped by an operator.
    Paused,
    /// Ended with a result.
    Completed,
    /// Ended with an error.
    Failed,
    /// Ended by an operator.
    Killed,
}

impl FlowStatus {
    /// Every status, in the order of a flow's life.
    pub const ALL: [Self; 7] = [
        Self::Runnable,
        Self::Suspended,
        Self::Hospitalised,
        Self::Paused,
        Self::Completed,
        Self::Failed,
        Self::Killed,
    ];

    /// Whether the flow has ended.
    pub const fn ended(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Killed)
    }

    /// The name that is stored and shown.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Runnable => "RUNNABLE",
            Self::Suspended => "SUSPENDED",
            Self::Hospitalised => "HOSPITALISED",
            Self::Paused => "PAUSED",
            Self::Completed => "COMPLETED",
            Self::Failed => "FAILED",
            Self::Killed => "KILLED",
        }
    }

    /// The status with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.name() == name)
    }
}

/// Who asked for a flow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    /// A client, as this user.
    Rpc {
        /// The RPC user's name.
        user: String,
    },
    /// Another party's flow.
    Peer {
        /// That party.
        name: X500Name,
    },
    /// The node itself or an application's service.
    Service,
}

/// A flow's first record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowStart {
    /// The flow's registered name.
    pub class: String,
    /// Its arguments, JSON.
    pub arguments: String,
    /// The client's name for the request.
    pub client_id: Option<ClientId>,
    /// Who asked.
    pub origin: Origin,
    /// When, by the node's clock.
    pub started_at: Timestamp,
}

/// Which of a transaction's states the vault keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum StatesToRecord {
    /// None: the transaction is kept only as part of a history.
    None,
    /// Those in which one of our keys participates.
    OnlyRelevant,
    /// All of them, as an observer does.
    AllVisible,
}

/// Whether a transaction is final.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Finality {
    /// Known before it is notarised, so that neither side can be left with a notarised
    /// transaction that it has not seen. Does not touch the vault.
    InFlight,
    /// Notarised, or in no need of a notary.
    Final,
}

/// A transaction to record.
#[derive(Debug, Clone, PartialEq)]
pub struct Recording {
    /// The transaction.
    pub transaction: SignedTransaction,
    /// Which of its states the vault keeps.
    pub states: StatesToRecord,
    /// Whether it is final.
    pub finality: Finality,
}

/// A received message in the inbox: the sender and the number that its queue gave it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct InboxId {
    /// The sending party.
    pub peer: X500Name,
    /// The message's number in that party's queue to us.
    pub sequence: u64,
}

/// How a flow ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FlowOutcome {
    /// With this result, JSON.
    Completed {
        /// The result, JSON.
        result: String,
    },
    /// With this error, JSON of [`FlowError`](crate::FlowError).
    Failed {
        /// The error, JSON.
        error: String,
    },
    /// Killed by an operator.
    Killed,
}

/// Everything that one step of a flow changes: it becomes durable whole or not at all.
#[derive(Debug, Clone, PartialEq)]
pub struct StepCommit {
    /// The flow.
    pub flow: FlowId,
    /// Present in a flow's first commit.
    pub start: Option<FlowStart>,
    /// Where the flow stands after this step.
    pub status: FlowStatus,
    /// The flow's header (sessions, pending operation), versioned bytes; replaces the former.
    pub checkpoint: Vec<u8>,
    /// The progress step that the flow reached, if it named a new one.
    pub progress: Option<String>,
    /// Journal entries to append: number and versioned bytes.
    pub entries: Vec<(u32, Vec<u8>)>,
    /// Inbox messages that this step has taken.
    pub consumed: Vec<InboxId>,
    /// Messages to send.
    pub outgoing: Vec<Envelope>,
    /// Transactions to record.
    pub recordings: Vec<Recording>,
    /// Present in a flow's last commit. Its journal and its soft locks go in the same commit.
    pub outcome: Option<FlowOutcome>,
}

/// A flow as it is stored, to continue it.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    /// The flow.
    pub flow: FlowId,
    /// Its first record.
    pub start: FlowStart,
    /// Where it stood.
    pub status: FlowStatus,
    /// Its header.
    pub header: Vec<u8>,
    /// The progress step it had reached.
    pub progress: Option<String>,
    /// Its journal, in order.
    pub entries: Vec<(u32, Vec<u8>)>,
}
