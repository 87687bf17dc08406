//! A unit of work: everything that becomes durable together, and what came of it. Plain data.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use quorate_flow::{ClientId, Envelope, FlowId, InboxId, LockTarget, Recording, StepCommit};
use quorate_identity::{PublicKey, X500Name};
use quorate_ledger::vault::{Criteria, VaultUpdate};
use quorate_ledger::{AttachmentId, ConsumingTx, StateRef, Timestamp, TxId};

use crate::error::Error;

/// Identifies one life of a sender's queue: its numbers begin anew with a new epoch.
pub type Epoch = [u8; 16];

/// Which states concern us: those in which one of our keys participates.
#[derive(Debug, Clone, Default)]
pub struct Relevance {
    keys: Arc<BTreeSet<PublicKey>>,
}

impl Relevance {
    /// The states in which one of `keys` participates.
    pub fn of_keys(keys: impl IntoIterator<Item = PublicKey>) -> Self {
        Self {
            keys: Arc::new(keys.into_iter().collect()),
        }
    }

    pub(crate) fn concerns(&self, participants: &[PublicKey]) -> bool {
        participants.iter().any(|key| self.keys.contains(key))
    }
}

/// Everything that becomes durable together. Units of different callers share a database transaction and its cost, and
/// nothing else: each becomes durable whole or not at all.
#[derive(Default)]
pub struct UnitOfWork {
    /// Steps of flows.
    pub steps: Vec<StepCommit>,
    /// Messages from peers, to be put into the inbox unless they are there or were.
    pub received: Vec<Received>,
    /// Inbox messages that were dealt with outside of a flow's step.
    pub consumed: Vec<InboxId>,
    /// Messages to peers outside of a flow's step.
    pub outgoing: Vec<Envelope>,
    /// Transactions to record outside of a flow's step.
    pub recordings: Vec<Recording>,
    /// Messages that a peer has accepted: all up to this number leave its queue.
    pub settled: Vec<(X500Name, u64)>,
    /// Flows whose soft locks are released, although they have not ended.
    pub unlocked: Vec<FlowId>,
    /// Ended flows whose results are no longer wanted.
    pub removed_client_ids: Vec<ClientId>,
    /// Attachments to keep.
    pub attachments: Vec<NewAttachment>,
    /// Settings to write, or to remove.
    pub settings: Vec<(String, Option<String>)>,
    /// Requests to a notary.
    pub notary: Option<NotaryCommit>,
    /// What users ask for, to be noted before it is done.
    pub rpc_audit: Vec<RpcInvocation>,
    /// Rows that are no longer wanted; made by [`crate::Store::outdated_rpc_audit`] and its like.
    pub cleanup: Option<Cleanup>,
}

impl UnitOfWork {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// One flow's step.
    pub fn step(step: StepCommit) -> Self {
        Self {
            steps: vec![step],
            ..Self::default()
        }
    }

    /// Messages from peers.
    pub fn receive(received: Vec<Received>) -> Self {
        Self {
            received,
            ..Self::default()
        }
    }

    /// `peer` has accepted all messages up to the number `up_to`.
    pub fn settle(peer: X500Name, up_to: u64) -> Self {
        Self {
            settled: vec![(peer, up_to)],
            ..Self::default()
        }
    }

    /// A setting's value, or its removal.
    pub fn setting(name: impl Into<String>, value: Option<String>) -> Self {
        Self {
            settings: vec![(name.into(), value)],
            ..Self::default()
        }
    }

    /// What a user asks for.
    pub fn rpc_invocation(invocation: RpcInvocation) -> Self {
        Self {
            rpc_audit: vec![invocation],
            ..Self::default()
        }
    }

    /// The removal of these rows.
    pub fn cleanup(cleanup: Cleanup) -> Self {
        Self {
            cleanup: Some(cleanup),
            ..Self::default()
        }
    }

    /// An attachment.
    pub fn attachment(attachment: NewAttachment) -> Self {
        Self {
            attachments: vec![attachment],
            ..Self::default()
        }
    }
}

/// A message as it arrived.
#[derive(Debug, Clone)]
pub struct Received {
    /// Who sent it, as proved by its connection.
    pub peer: X500Name,
    /// The life of the sender's queue.
    pub epoch: Epoch,
    /// Its number in that queue, from 1.
    pub sequence: u64,
    /// The encoded envelope.
    pub envelope: Arc<[u8]>,
}

/// What became of a received message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reception {
    /// It is in the inbox under this name. The number equals the sender's as long as its queue has its first epoch.
    Accepted(InboxId),
    /// It was received before: nothing changed, and the sender may be told that it was accepted.
    Duplicate,
}

/// An attachment to keep.
#[derive(Debug, Clone)]
pub struct NewAttachment {
    /// The hash of the bytes.
    pub id: AttachmentId,
    /// The bytes.
    pub bytes: Arc<[u8]>,
    /// Who brought it, such as `rpc` or a peer's name.
    pub uploader: String,
}

/// One call by RPC, as it is noted. Nothing in it is shortened here; it must not hold secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RpcInvocation {
    /// Names this call and no other; ids that grow keep calls of the same moment in their order.
    pub id: InvocationId,
    /// Who asks.
    pub username: String,
    /// By which interface.
    pub interface: &'static str,
    /// For what.
    pub action: String,
    /// With which parameters.
    pub parameters: String,
    /// Whether the user has the permission.
    pub allowed: bool,
}

/// Names one call by RPC.
pub type InvocationId = [u8; 16];

/// Rows to be removed, a bounded number; found by reading, and removed only if they may still go when that is done.
#[derive(Debug)]
pub struct Cleanup(pub(crate) Outdated);

impl Cleanup {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        match &self.0 {
            Outdated::RpcAudit(rows) => rows.is_empty(),
            Outdated::Epochs { left, undated, .. } => left.is_empty() && undated.is_empty(),
        }
    }
}

/// What is to be removed.
#[derive(Debug)]
pub(crate) enum Outdated {
    RpcAudit(Vec<(Timestamp, InvocationId)>),
    Epochs {
        /// Epochs that their peers have left.
        left: Vec<(String, Epoch)>,
        /// Before this time.
        before: Timestamp,
        /// Epochs of which nobody knows since when they are there: they are dated, not removed.
        undated: Vec<(String, Epoch)>,
    },
}

/// One request to commit a transaction's inputs as spent.
#[derive(Debug, Clone)]
pub struct NotaryEntry {
    /// The transaction.
    pub tx: TxId,
    /// The states that it consumes.
    pub inputs: Vec<StateRef>,
    /// The states that it only reads; they must not have been consumed.
    pub references: Vec<StateRef>,
    /// Who asks.
    pub requester: X500Name,
    /// The requester's signature over the request, kept as evidence.
    pub request_signature: Vec<u8>,
    /// Whether the present is within the transaction's time window. A transaction that was committed before is
    /// confirmed regardless.
    pub within_time_window: bool,
}

/// What became of a notary's entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotaryResult {
    /// Its inputs are spent by this transaction, now or already before.
    Committed,
    /// Other transactions have consumed some of its states. Nothing was changed.
    Conflict(BTreeMap<StateRef, ConsumingTx>),
    /// The present is outside of its time window. Nothing was changed.
    OutsideTimeWindow,
}

/// Makes the answers from the results, in the same order. It runs within the database transaction, so that an answer is
/// queued if and only if its commit is durable; it must be quick, and may run again if the transaction has to be
/// repeated. If there can be no answers for now, the text says why, and nothing of the unit is written.
pub type Respond = Arc<dyn Fn(&[NotaryResult]) -> Result<Vec<Envelope>, String> + Send + Sync>;

/// Requests to commit states as spent, decided in order, together with their answers.
pub struct NotaryCommit {
    /// The requests.
    pub entries: Vec<NotaryEntry>,
    /// Makes the answers.
    pub respond: Respond,
}

impl fmt::Debug for NotaryCommit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NotaryCommit")
            .field("entries", &self.entries)
            .finish_non_exhaustive()
    }
}

/// A message in a peer's queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queued {
    /// Whose queue.
    pub peer: X500Name,
    /// Its number in that queue, from 1, without gaps.
    pub sequence: u64,
    /// The life of the queue.
    pub epoch: Epoch,
    /// The encoded envelope.
    pub envelope: Arc<[u8]>,
}

/// What a unit of work changed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Committed {
    /// The messages now queued: those of the steps, then the unit's own, then the notary's answers, each in order.
    pub outgoing: Vec<Queued>,
    /// What became of the received messages, in order.
    pub received: Vec<Reception>,
    /// What changed in the vault.
    pub vault_updates: Vec<VaultUpdate>,
    /// The notary's results, in order.
    pub notary: Vec<NotaryResult>,
    /// Those client ids that were removed.
    pub removed_client_ids: Vec<ClientId>,
    /// How many outdated rows were removed.
    pub removed_rows: u64,
}

/// A request to soft-lock states for a flow.
#[derive(Debug, Clone)]
pub struct LockRequest {
    /// The flow, which keeps the states until it ends.
    pub flow: FlowId,
    /// Number of the request within the flow: asking again gives the same states.
    pub seq: u32,
    /// Which states may be taken; always only unconsumed ones that no flow has locked.
    pub criteria: Criteria,
    /// How many.
    pub target: LockTarget,
    /// At the most this many.
    pub max_states: u32,
}

/// Why states were not locked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LockError {
    /// There are not enough of them. If what is available would do, it is spread over more states than the request
    /// allows.
    #[error(
        "{wanted} are wanted and {available} available in the vault: the rest is consumed or locked by other flows, or there would be enough, but spread over more states than the request allows"
    )]
    Insufficient {
        /// What there is: of the column that is summed, or a number of states.
        available: i64,
        /// What was asked for.
        wanted: i64,
    },
    /// The flow has ended.
    #[error("flow {0} has ended and can lock no states")]
    FlowEnded(FlowId),
    /// As for any unit of work.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

/// Why a unit of work was not made durable. Shared by all the units that shared the failure.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CommitError {
    /// The lease has passed to somebody else: this process must stop writing. Nothing of this unit was written.
    #[error("this instance may write no more")]
    Fenced(#[source] Arc<Error>),
    /// Nothing was written, and the same may succeed later: the database was out of reach, busy or full.
    #[error("the database could not commit just now")]
    Transient(#[source] Arc<Error>),
    /// The connection was lost while the commit was under way and the database did not come back in time: it may or may
    /// not have been written. Read from the database again before going on.
    #[error("it is unknown whether the database committed")]
    Unknown(#[source] Arc<Error>),
    /// This unit contradicts what is stored, and nothing of it was written. Trying again is pointless.
    #[error("the database refused this unit of work")]
    Refused(#[source] Arc<Refusal>),
    /// The writer has been stopped.
    #[error("the store is closed")]
    Closed,
}

/// What is wrong with a unit of work.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The client has given this id to another flow.
    #[error("the client id '{0}' belongs to another flow")]
    ClientIdTaken(ClientId),
    /// A message is missing before this one.
    #[error(
        "message {found} from {peer} does not follow message {last}: something between them was lost, or one of the two databases was restored from a backup"
    )]
    SequenceGap {
        /// The sender.
        peer: X500Name,
        /// The last message received.
        last: u64,
        /// The one that came.
        found: u64,
    },
    /// An inbox message was consumed before.
    #[error(
        "{count} of the inbox messages that this unit consumes were consumed before, or never arrived"
    )]
    AlreadyConsumed {
        /// How many.
        count: u64,
    },
    /// A step of a flow that is not there (any more).
    #[error("flow {0} is not in the database, or has ended")]
    NoSuchFlow(FlowId),
    /// A signed transaction and the one stored under the same id cannot be merged.
    #[error("transaction {tx} cannot be recorded: {reason}")]
    Transaction {
        /// The transaction.
        tx: TxId,
        /// Why.
        reason: String,
    },
    /// A request for locks asks for what does not exist or exceeds a limit.
    #[error("the states to lock cannot be found")]
    Query(#[source] quorate_ledger::vault::QueryError),
    /// A notary's decisions could not be answered, so they were not written either.
    #[error("the decisions of the notary cannot be answered: {0}")]
    Unanswered(String),
    /// The database's own reason.
    #[error("the database does not accept it")]
    Database(#[source] Error),
}
