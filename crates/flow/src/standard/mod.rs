//! Flows that applications compose: exchange a transaction with its history, collect
//! signatures, finalise in two phases, notarise.
//!
//! They are functions, not [`Flow`](crate::Flow)s: a flow calls one with its own sessions, and
//! the responder on the other side calls the counterpart.
//!
//! | initiator | responder |
//! |---|---|
//! | [`send_transaction`] | [`receive_transaction`] |
//! | [`collect_signatures`] | [`sign_transaction`] |
//! | [`finalise`] | [`receive_finality`] |
//! | [`notarise`] | the notary service |

mod exchange;
mod finality;
mod notarise;
mod signatures;

pub use exchange::{
    MAX_DEPENDENCIES, MAX_DEPENDENCY_BYTES, Received, receive_transaction, send_transaction,
};
pub use finality::{finalise, receive_finality};
pub use notarise::{NOTARISE, VALIDATING_NOTARISE, needs_notary, notarise};
pub use signatures::{collect_signatures, sign_transaction};
