//! What messaging asks of its surroundings: where messages to send come from, and where received ones go.
//!
//! Both traits are implemented over a durable store. Messaging itself remembers nothing across a restart: what has
//! not been reported as settled is fetched and sent again, and what has not been accepted by the receiver arrives
//! again. The receiver tells repetitions apart by (sender, epoch, sequence).

use std::error::Error;
use std::sync::Arc;

use futures::future::BoxFuture;
use quorate_identity::X500Name;

/// The incarnation of a sender's queue to one peer.
///
/// Sequences are comparable only within one epoch: a queue that starts counting again (a database restored from
/// nothing) draws a new one, so that its first message is not taken for a repetition of an old one.
pub type Epoch = [u8; 16];

/// A message waiting to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// Its place in the queue to this peer: gapless, ascending.
    pub sequence: u64,
    /// The encoded envelope; messaging does not look inside.
    pub body: Arc<[u8]>,
}

/// A message that has arrived and is not yet accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incoming {
    /// Its place in the sender's queue to us.
    pub sequence: u64,
    /// The encoded envelope, as the sender's queue held it.
    pub body: Vec<u8>,
}

/// Where received messages go.
pub trait Inbound: Send + Sync + 'static {
    /// Takes messages of one peer and one epoch, in order, and resolves when they are durable. Only then is the
    /// sender told that they are accepted.
    ///
    /// `from` is the legal name in the peer's TLS certificate. For one peer the calls come one after the other, never
    /// two at a time, whatever connections the peer opens; for different peers they overlap. The future is not
    /// dropped halfway, except when the whole service is cut off.
    ///
    /// After an error nothing of the batch counts as accepted, and the connection is closed, so that no later message
    /// overtakes the refused ones. They come again.
    fn deliver(
        &self,
        from: X500Name,
        epoch: Epoch,
        batch: Vec<Incoming>,
    ) -> BoxFuture<'_, Result<(), Refusal>>;
}

/// Why a batch was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Refusal {
    /// Told to the sender; must not contain secrets.
    pub reason: String,
    /// True when trying again later may help (a database that is away): the sender repeats soon. False when the
    /// message itself is at fault: the sender stops, says so in its status, and repeats rarely.
    pub retry: bool,
}

impl Refusal {
    /// A refusal for now: the same message may be taken later.
    pub fn later(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            retry: true,
        }
    }

    /// A refusal for good: somebody has to look at the message.
    pub fn permanent(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            retry: false,
        }
    }
}

/// Where messages to send come from: one durable queue per peer.
pub trait OutboundQueue: Send + Sync + 'static {
    /// The next messages to `peer` whose sequence is greater than `after`, in order and without gaps, at most `limit`.
    ///
    /// Fewer than `limit` means that there are no more now; [`Handle::notify`](crate::Handle::notify) says when there
    /// are. Settled messages need not be returned even when `after` is lower (after a restart it is 0). The future may
    /// be dropped halfway.
    fn fetch(
        &self,
        peer: &X500Name,
        after: u64,
        limit: usize,
    ) -> BoxFuture<'_, Result<(Epoch, Vec<Outgoing>), QueueError>>;

    /// Every message to `peer` up to and including `up_to` has been accepted by the peer and need not be kept.
    ///
    /// Reports are coalesced and ascend. A report that failed is repeated; one that is lost in a crash only means that
    /// accepted messages are sent again.
    fn settled(&self, peer: &X500Name, up_to: u64) -> BoxFuture<'_, Result<(), QueueError>>;
}

/// The queue could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct QueueError {
    what: String,
    #[source]
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl QueueError {
    /// An error without a cause of its own.
    pub fn new(what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            source: None,
        }
    }

    /// An error with its cause.
    pub fn caused(
        what: impl Into<String>,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self {
            what: what.into(),
            source: Some(source.into()),
        }
    }
}
