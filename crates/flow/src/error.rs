//! What can go wrong in a flow, as values that are journaled and shown.

use quorate_identity::X500Name;
use quorate_ledger::{NotaryError, TxId};
use serde::{Deserialize, Serialize};

/// An error that a flow's body sees, and may end with.
///
/// It is recorded in the journal, so that a replay sees the same one. When a flow ends with it,
/// its text is sent to the flows on the other side of its open sessions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, thiserror::Error)]
pub enum FlowError {
    /// The application says no.
    #[error("{0}")]
    Failed(String),
    /// The flow on the other side ended with an error.
    #[error("{peer} answered with an error: {message}")]
    Counterparty {
        /// The other side.
        peer: X500Name,
        /// Its error's text.
        message: String,
    },
    /// The other side would not start a flow to answer ours.
    #[error("{peer} refused the session: {reason}")]
    Rejected {
        /// The other side.
        peer: X500Name,
        /// Why.
        reason: String,
    },
    /// The flow on the other side ended, and we still expected a message.
    #[error("the flow of {peer} ended while this flow waited for a message from it")]
    SessionEnded {
        /// The other side.
        peer: X500Name,
    },
    /// Nothing came in the time that the flow allowed.
    #[error("{peer} did not answer within {milliseconds} ms")]
    TimedOut {
        /// The other side.
        peer: X500Name,
        /// The time allowed, in milliseconds.
        milliseconds: u64,
    },
    /// A payload was not what the flow expected.
    #[error("{peer} sent something that is not {expected}: {reason}")]
    Malformed {
        /// The other side.
        peer: X500Name,
        /// What was expected.
        expected: String,
        /// What the decoder said.
        reason: String,
    },
    /// A transaction's contracts or signatures do not hold.
    #[error("transaction {tx} is not valid: {reason}")]
    Verification {
        /// The transaction.
        tx: TxId,
        /// What does not hold.
        reason: String,
    },
    /// The notary refused.
    #[error("notary refused transaction {tx}: {error}")]
    Notary {
        /// The transaction.
        tx: TxId,
        /// Its reason.
        error: NotaryError,
    },
    /// The vault has not enough states that are neither consumed nor locked.
    /// If what is available would do, it is spread over more states than the request allows.
    #[error("{}", insufficient(*wanted, *available))]
    Insufficient {
        /// What was asked for.
        wanted: i64,
        /// What unlocked states amount to, as far as they were looked at.
        available: i64,
    },
    /// A party, contract, transaction or state that this node does not know.
    #[error("{what} is not known to this node")]
    Unknown {
        /// What.
        what: String,
    },
    /// Do not end the flow, keep it under observation: an operator must look at it.
    #[error("this flow needs an operator: {0}")]
    NeedsCare(String),
}

impl FlowError {
    /// The application says no, for this reason.
    pub fn failed(reason: impl Into<String>) -> Self {
        Self::Failed(reason.into())
    }

    /// A thing that this node does not know.
    pub fn unknown(what: impl std::fmt::Display) -> Self {
        Self::Unknown {
            what: what.to_string(),
        }
    }
}

fn insufficient(wanted: i64, available: i64) -> String {
    if available < wanted {
        return format!("not enough in the vault: {wanted} wanted, {available} available");
    }
    format!(
        "no few states of the vault amount to {wanted}: {available} are available, but spread \
         over more states than one transaction takes; merge states first, by moving smaller \
         sums to yourself"
    )
}

/// Why a [`HostRequest`](crate::HostRequest) could not be answered.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum HostError {
    /// It may succeed later: the machine tries again with back-off, then the hospital takes over.
    #[error("{0}")]
    Transient(String),
    /// The device that keeps a private key is out of reach. Tried again as [`SigningRetries`](crate::SigningRetries) says.
    #[error("{0}")]
    KeyUnavailable(String),
    /// It will not: the flow's body gets the error.
    #[error(transparent)]
    Failed(#[from] FlowError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crumbs_are_not_called_missing() {
        let text = |wanted, available| FlowError::Insufficient { wanted, available }.to_string();
        assert_eq!(text(5, 3), "not enough in the vault: 5 wanted, 3 available");
        for available in [5, 6] {
            let text = text(5, available);
            assert!(
                text.contains("more states than one transaction takes"),
                "{text}"
            );
        }
    }
}
