//! Where spent states are remembered.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use quorate_flow::InboxId;
use quorate_storage::{
    CommitError, NotaryCommit, NotaryEntry, NotaryResult, Queued, Refusal, Respond, UnitOfWork,
    Writer,
};

/// Requests that are decided together, in order.
pub struct Batch {
    /// The requests.
    pub entries: Vec<NotaryEntry>,
    /// The messages that brought them; they leave the inbox with the decision.
    pub consumed: Vec<InboxId>,
    /// Makes the answers from the decisions.
    pub respond: Respond,
}

/// A batch was not decided; nothing of it is to be believed.
#[derive(Debug, thiserror::Error)]
#[error("the notary's batch was not committed")]
pub struct UniquenessError {
    /// What the store says.
    #[source]
    pub source: CommitError,
    /// Offering the same batch again may succeed.
    pub transient: bool,
}

impl UniquenessError {
    /// Whether something in the batch contradicts what is stored: offering it again is
    /// pointless, and other batches are not concerned.
    pub fn is_refusal(&self) -> bool {
        matches!(self.source, CommitError::Refused(_)) && !unanswered(&self.source)
    }
}

/// Whether the notary's key did not sign: nothing is wrong with the batch.
fn unanswered(error: &CommitError) -> bool {
    matches!(error, CommitError::Refused(refusal) if matches!(**refusal, Refusal::Unanswered(_)))
}

/// Decides batches: each request's inputs become spent, all or none, and only if no other
/// transaction has spent them; a transaction that was committed before is confirmed. When the
/// returned future resolves, decisions and answers are durable.
///
/// One provider keeps the states in the node's own database; a replicated one orders the batch
/// first and applies it on every member.
pub trait Uniqueness: Send + Sync + 'static {
    /// Decides a batch. Returns the decisions in order, and the answers as queued.
    fn commit(&self, batch: Batch) -> Pin<Box<dyn Future<Output = Decided> + Send + '_>>;
}

type Decided = Result<(Vec<NotaryResult>, Vec<Queued>), UniquenessError>;

/// The provider over a database that the workers of a notary share, apart from each worker's own.
///
/// The decisions are durable there before the answers are in the worker's own database: a worker that dies in between
/// decides the same requests once more, and decisions are the same each time.
pub struct Shared {
    log: Writer,
    writer: Writer,
}

impl Shared {
    /// Spent states in the database behind `log`; messages in that behind `writer`.
    pub fn new(log: Writer, writer: Writer) -> Self {
        Self { log, writer }
    }

    async fn decide(
        &self,
        entries: Vec<NotaryEntry>,
    ) -> Result<Vec<NotaryResult>, UniquenessError> {
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        let mut unit = UnitOfWork::new();
        unit.notary = Some(NotaryCommit {
            entries,
            respond: Arc::new(|_| Ok(Vec::new())),
        });
        match self.log.commit(unit).await {
            Ok(committed) => Ok(committed.notary),
            // Deciding again is harmless even if it is not known whether the first time counts.
            Err(source) => Err(UniquenessError {
                transient: matches!(source, CommitError::Transient(_) | CommitError::Unknown(_)),
                source,
            }),
        }
    }
}

impl Uniqueness for Shared {
    fn commit(&self, batch: Batch) -> Pin<Box<dyn Future<Output = Decided> + Send + '_>> {
        Box::pin(async move {
            let results = self.decide(batch.entries).await?;
            let outgoing = (batch.respond)(&results).map_err(|reason| UniquenessError {
                source: CommitError::Refused(Arc::new(Refusal::Unanswered(reason))),
                transient: true,
            })?;
            if batch.consumed.is_empty() && outgoing.is_empty() {
                return Ok((results, Vec::new()));
            }
            let mut unit = UnitOfWork::new();
            unit.consumed = batch.consumed;
            unit.outgoing = outgoing;
            let committed = self.writer.commit(unit).await.map_err(|source| {
                let transient = matches!(source, CommitError::Transient(_));
                UniquenessError { source, transient }
            })?;
            Ok((results, committed.outgoing))
        })
    }
}

/// The provider over the node's own database.
pub struct Database {
    writer: Writer,
}

impl Database {
    /// Spent states in the database behind `writer`.
    pub fn new(writer: Writer) -> Self {
        Self { writer }
    }
}

impl Uniqueness for Database {
    fn commit(&self, batch: Batch) -> Pin<Box<dyn Future<Output = Decided> + Send + '_>> {
        Box::pin(async move {
            let mut unit = UnitOfWork::new();
            unit.consumed = batch.consumed;
            unit.notary = Some(NotaryCommit {
                entries: batch.entries,
                respond: batch.respond,
            });
            let committed = self.writer.commit(unit).await.map_err(|source| {
                let transient = matches!(source, CommitError::Transient(_)) || unanswered(&source);
                UniquenessError { source, transient }
            })?;
            Ok((committed.notary, committed.outgoing))
        })
    }
}
