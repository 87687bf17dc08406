//! The ledger's truth as values: states, transactions, signatures, tear-offs, contract verification, notarisation.
//!
//! This crate is pure: no I/O, no clock, no randomness, no order that depends on a hash map. The same bytes give the same
//! answer on every node. It leaves keys and certificates to `quorate-identity`, the collecting of signatures and the
//! talking to notaries to flows, and keeping things to storage.
//!
//! Where to start reading: [`WireTransaction`] and how [`component`] makes its id; [`SignedTransaction`], which is what
//! is recorded and sent; [`LedgerTransaction`], which contracts see; [`canonical`] for the bytes and [`limits`] for the
//! bounds. [`vault`] and [`schema`] are the words in which nodes and applications ask about recorded states;
//! [`network`] is what nodes must know of each other.

mod builder;
pub mod canonical;
pub mod component;
mod ledger_transaction;
pub mod limits;
pub mod merkle;
pub mod network;
pub mod notarisation;
pub mod notary_change;
mod reference;
pub mod schema;
mod signature;
mod signed_transaction;
mod state;
mod tear_off;
mod time;
mod transaction;
pub mod vault;
pub mod view;

pub use builder::TransactionBuilder;
pub use canonical::DecodeError;
pub use component::{CommandData, Component, ComponentGroup};
pub use ledger_transaction::{
    Attachment, AttachmentTooLarge, Contract, ContractViolation, Contracts, DuplicateContract,
    LedgerTransaction, ResolutionError, VerificationError,
};
pub use limits::{MAX_MESSAGE_BYTES, PLATFORM_VERSION};
pub use merkle::{MerkleProof, ProofError};
pub use notarisation::{
    ConsumingTx, NotarisationAnswer, NotarisationMessage, NotarisationPayload, NotarisationRequest,
    NotaryError, RequestSignature,
};
pub use reference::{AttachmentId, ReferenceError, StateRef, TxId, UniqueId};
pub use signature::{
    SignatureMetadata, TransactionSignature, TransactionSignatureError, sign_batch,
    sign_transaction, signable, try_sign_batch, try_sign_transaction,
};
pub use signed_transaction::{SignaturesError, SignedTransaction};
pub use state::{ContractRef, ContractState, StateAndRef, StateError, TransactionState};
pub use tear_off::{FilteredTransaction, TearOffError};
pub use time::{TimeWindow, TimeWindowError, Timestamp, TimestampError};
pub use transaction::{BuildError, Command, WireTransaction};
