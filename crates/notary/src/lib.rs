//! Uniqueness: a state is consumed at most once, and the same question gets the same answer.
//!
//! A request gets a place in the queue, or is told when to ask again (`queue`). It is checked by
//! itself (`check`: tear-off, signature of the requester, the right notary), then joins a batch
//! whose inputs a [`Uniqueness`] provider commits atomically with the answers (`answers`); the
//! notary signs the Merkle root of the batch once. Answers are envelopes in the outbox, so they
//! leave if and only if the commit is durable.
//!
//! It leaves to others: carrying messages (`node`), the tables (`storage`), and verifying whole
//! transactions for a validating notary (a flow of the standard application, which then calls
//! [`Handle::notarise`]). Start reading at [`Service`].

mod answers;
mod check;
mod metrics;
mod queue;
mod service;
mod uniqueness;

pub use metrics::NotaryMetrics;
pub use queue::Handle;
pub use service::{
    BATCH_INPUT_STATES, BATCH_SIZE, Directory, ETA_THRESHOLD, Identity, Options, QUEUE_SIZE,
    Service, Sink,
};
pub use uniqueness::{Batch, Database, Shared, Uniqueness, UniquenessError};
