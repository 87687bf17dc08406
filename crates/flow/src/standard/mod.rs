//! Flows that applications compose: exchange a transaction with its history, collect
//! signatures, finalise in two phases, notarise.
//!
//! They are functions, not [`Flow`]s: a flow calls one with its own sessions, and
//! the responder on the other side calls the counterpart.
//!
//! | initiator | responder |
//! |---|---|
//! | [`send_transaction`] | [`receive_transaction`] |
//! | [`collect_signatures`] | [`sign_transaction`] |
//! | [`finalise`] | [`receive_finality`], [`receive_finality_if`] |
//! | [`notarise`] | the notary service |
//!
//! [`Standard`] is the application that every node has installed: changing notaries, and the
//! part of a validating notary that is a flow.

mod exchange;
mod finality;
mod notarise;
mod notary_change;
mod self_check;
mod signatures;

use std::sync::Arc;

use quorate_ledger::Contract;

use crate::registry::{App, Flow, FlowRegistry};

pub use exchange::{
    MAX_DEPENDENCIES, MAX_DEPENDENCY_BYTES, Received, receive_transaction, send_transaction,
};
pub use finality::{finalise, receive_finality, receive_finality_if};
pub use notarise::{NOTARISE, VALIDATING_NOTARISE, notarise};
pub use notary_change::ChangeNotary;
pub use self_check::SelfCheck;
pub use signatures::{collect_signatures, sign_transaction};

/// Whether a flow is one of the node's own checks. They have places of their own.
pub fn is_system(flow: &str) -> bool {
    flow == <SelfCheck as Flow>::NAME
}

/// The application that every node has installed.
pub struct Standard;

impl App for Standard {
    fn name(&self) -> &str {
        "quorate"
    }

    fn version(&self) -> u32 {
        1
    }

    fn contracts(&self) -> Vec<Arc<dyn Contract>> {
        Vec::new()
    }

    fn register_flows(&self, registry: &mut FlowRegistry) {
        registry
            .flow::<ChangeNotary>()
            .flow::<SelfCheck>()
            .responder::<self_check::Echo>()
            .responder::<notary_change::AgreeToChange>()
            .responder::<notarise::ValidatingNotarise>();
    }
}
