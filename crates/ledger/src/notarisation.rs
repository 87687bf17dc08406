//! What is asked of a notary, and what it answers.
//!
//! The requester sends a [`NotarisationMessage`]: a tear-off (to a non-validating notary) or the transaction with its
//! dependencies (to a validating one), and a signature by which the notary can later prove who asked. The answer is a
//! signature, or a reason that says whether asking again makes sense.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use borsh::{BorshDeserialize, BorshSerialize};
use quorate_identity::{
    KeyPair, Party, PublicKey, Signature, SignatureError, SigningError, SigningKey,
};
use serde::{Deserialize, Serialize};

use crate::{
    canonical::{self, DecodeError, serde_as_base64},
    component::{Component, ComponentGroup},
    limits::{
        MAX_INPUTS, MAX_NOTARISATION_DEPENDENCIES, MAX_REASON_BYTES, MAX_REFERENCES,
        MAX_SIGNATURES, MAX_VALUE_BYTES, PLATFORM_VERSION,
    },
    reference::{StateRef, TxId},
    signature::{Purpose, TransactionSignature},
    signed_transaction::SignedTransaction,
    tear_off::{FilteredTransaction, TearOffError},
    time::{TimeWindow, Timestamp},
    transaction::WireTransaction,
};

/// What a requester signs: mark these states as consumed by this transaction, if nobody else has consumed them or those
/// that it reads.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct NotarisationRequest {
    /// States to consume, ascending.
    inputs: BTreeSet<StateRef>,
    /// States that must not be consumed yet, ascending.
    references: BTreeSet<StateRef>,
    /// The transaction.
    tx: TxId,
}

#[derive(BorshSerialize, BorshDeserialize)]
enum VersionedRequest<R> {
    V1(R),
}

/// A requester's signature over a [`NotarisationRequest`].
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RequestSignature {
    /// The key of the requester's legal identity.
    pub by: PublicKey,
    /// The requester's platform version; signed as well.
    pub platform_version: u32,
    /// The signature.
    pub signature: Signature,
}

impl NotarisationRequest {
    /// The request for these states.
    pub fn new(
        inputs: impl IntoIterator<Item = StateRef>,
        references: impl IntoIterator<Item = StateRef>,
        tx: TxId,
    ) -> Self {
        Self {
            inputs: inputs.into_iter().collect(),
            references: references.into_iter().collect(),
            tx,
        }
    }

    /// The request for a transaction.
    pub fn of(wire: &WireTransaction) -> Self {
        Self::new(
            wire.inputs().iter().copied(),
            wire.references().iter().copied(),
            wire.id(),
        )
    }

    /// The states to consume, ascending.
    pub fn inputs(&self) -> &BTreeSet<StateRef> {
        &self.inputs
    }

    /// The states that must not be consumed yet, ascending.
    pub fn references(&self) -> &BTreeSet<StateRef> {
        &self.references
    }

    /// The transaction.
    pub fn tx(&self) -> TxId {
        self.tx
    }

    /// The canonical bytes, versioned.
    pub fn encode(&self) -> Vec<u8> {
        canonical::encode(&VersionedRequest::V1(self))
    }

    /// Reads canonical bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        const WHAT: &str = "notarisation request";
        let VersionedRequest::V1(request) =
            canonical::decode::<VersionedRequest<Self>>(WHAT, bytes, MAX_VALUE_BYTES)?;
        if request.inputs.len() > MAX_INPUTS || request.references.len() > MAX_REFERENCES {
            return Err(DecodeError::invalid(
                WHAT,
                "more states than a transaction can have",
            ));
        }
        Ok(request)
    }

    /// Signs the request with the key of the requester's legal identity.
    pub fn sign(&self, key: &KeyPair) -> RequestSignature {
        let signature = key.sign(&self.signable(PLATFORM_VERSION));
        RequestSignature {
            by: key.public().clone(),
            platform_version: PLATFORM_VERSION,
            signature,
        }
    }

    /// Like [`sign`](Self::sign), with a key that may be in a device. Blocks for as long as the device takes.
    ///
    /// # Errors
    /// What the device says.
    pub fn try_sign(&self, key: &SigningKey) -> Result<RequestSignature, SigningError> {
        Ok(RequestSignature {
            by: key.public().clone(),
            platform_version: PLATFORM_VERSION,
            signature: key.sign(&self.signable(PLATFORM_VERSION))?,
        })
    }

    /// Checks a signature over this request. The caller checks that the key is the requester's.
    pub fn verify(&self, signature: &RequestSignature) -> Result<(), SignatureError> {
        signature.by.verify(
            &self.signable(signature.platform_version),
            &signature.signature,
        )
    }

    fn signable(&self, platform_version: u32) -> Vec<u8> {
        Purpose::NotarisationRequest.message(&canonical::encode(&(platform_version, self.encode())))
    }
}

/// What the notary gets to see.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub enum NotarisationPayload {
    /// For a non-validating notary: what it needs and no more.
    Filtered(FilteredTransaction),
    /// For a validating notary: everything, with the transactions that produced the inputs and references and that the
    /// notary may not have.
    Full {
        /// The transaction, signed by all but the notary.
        tx: SignedTransaction,
        /// What it builds on, each before those that build on it.
        dependencies: Vec<SignedTransaction>,
    },
}

impl NotarisationPayload {
    /// The payload for a non-validating notary: inputs, references, time window, notary and network parameters.
    ///
    /// # Errors
    /// If the transaction has none of these: it needs no notary.
    pub fn filtered(wire: &WireTransaction) -> Result<Self, TearOffError> {
        let keep = |component: &Component| VISIBLE_TO_NOTARY.contains(&component.group());
        FilteredTransaction::build(wire, keep).map(Self::Filtered)
    }

    /// The request that this payload makes.
    pub fn request(&self) -> NotarisationRequest {
        match self {
            Self::Filtered(filtered) => {
                NotarisationRequest::new(filtered.inputs(), filtered.references(), filtered.id())
            }
            Self::Full { tx, .. } => NotarisationRequest::of(tx.wire()),
        }
    }

    /// The transaction to notarise.
    pub fn id(&self) -> TxId {
        match self {
            Self::Filtered(filtered) => filtered.id(),
            Self::Full { tx, .. } => tx.id(),
        }
    }

    /// The notary that the transaction names.
    pub fn notary(&self) -> Option<&Party> {
        match self {
            Self::Filtered(filtered) => filtered.notary(),
            Self::Full { tx, .. } => tx.wire().notary(),
        }
    }

    /// The time window of the transaction.
    pub fn time_window(&self) -> Option<TimeWindow> {
        match self {
            Self::Filtered(filtered) => filtered.time_window(),
            Self::Full { tx, .. } => tx.wire().time_window(),
        }
    }

    /// Checks that nothing that concerns a notary is withheld.
    pub fn check_complete(&self) -> Result<(), TearOffError> {
        match self {
            Self::Filtered(filtered) => {
                filtered.verify()?;
                VISIBLE_TO_NOTARY
                    .iter()
                    .try_for_each(|&group| filtered.check_all_visible(group))
            }
            Self::Full { .. } => Ok(()),
        }
    }
}

/// What a non-validating notary must see in full.
const VISIBLE_TO_NOTARY: [ComponentGroup; 5] = [
    ComponentGroup::Inputs,
    ComponentGroup::Notary,
    ComponentGroup::TimeWindow,
    ComponentGroup::References,
    ComponentGroup::Parameters,
];

/// A request as it is sent.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct NotarisationMessage {
    /// What the notary gets to see.
    pub payload: NotarisationPayload,
    /// Over [`NotarisationPayload::request`].
    pub request_signature: RequestSignature,
}

#[derive(BorshSerialize, BorshDeserialize)]
enum VersionedMessage<M> {
    V1(M),
}

impl NotarisationMessage {
    /// Signs and wraps a payload.
    pub fn new(payload: NotarisationPayload, requester: &KeyPair) -> Self {
        let request_signature = payload.request().sign(requester);
        Self {
            payload,
            request_signature,
        }
    }

    /// The canonical bytes, versioned.
    pub fn encode(&self) -> Vec<u8> {
        canonical::encode(&VersionedMessage::V1(self))
    }

    /// Reads canonical bytes. The proofs of a tear-off are verified, signatures are not.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        const WHAT: &str = "notarisation message";
        let VersionedMessage::V1(message) =
            canonical::decode::<VersionedMessage<Self>>(WHAT, bytes, MAX_VALUE_BYTES)?;
        match &message.payload {
            NotarisationPayload::Full { dependencies, .. }
                if dependencies.len() > MAX_NOTARISATION_DEPENDENCIES =>
            {
                let reason = format!(
                    "{} dependencies, at most {MAX_NOTARISATION_DEPENDENCIES}",
                    dependencies.len()
                );
                Err(DecodeError::invalid(WHAT, reason))
            }
            _ => Ok(message),
        }
    }
}

serde_as_base64!(NotarisationMessage);

/// Who has consumed a state.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Debug,
    BorshSerialize,
    BorshDeserialize,
    Serialize,
    Deserialize,
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConsumingTx {
    /// The transaction that has consumed it.
    pub tx: TxId,
    /// Whether the refused transaction wanted only to read the state.
    pub as_reference: bool,
}

/// What a notary answers.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum NotarisationAnswer {
    /// The transaction is notarised.
    Signed(Vec<TransactionSignature>),
    /// It is not.
    Refused(NotaryError),
}

impl NotarisationAnswer {
    /// The canonical bytes, versioned. A reason longer than [`MAX_REASON_BYTES`] is cut.
    pub fn encode(&self) -> Vec<u8> {
        let mut answer = self.clone();
        if let Self::Refused(error) = &mut answer
            && let Some(reason) = error.reason_mut()
        {
            reason.truncate(reason.floor_char_boundary(MAX_REASON_BYTES));
        }
        canonical::encode(&VersionedMessage::V1(answer))
    }

    /// Reads canonical bytes. Verifies no signature.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        const WHAT: &str = "notarisation answer";
        let VersionedMessage::V1(answer) =
            canonical::decode::<VersionedMessage<Self>>(WHAT, bytes, MAX_VALUE_BYTES)?;
        let reason = match &answer {
            Self::Signed(signatures) if signatures.len() > MAX_SIGNATURES => "too many signatures",
            Self::Refused(NotaryError::Conflict { consumed, .. })
                if consumed.len() > MAX_INPUTS + MAX_REFERENCES =>
            {
                "more conflicts than a transaction has states"
            }
            Self::Refused(error)
                if error
                    .reason()
                    .is_some_and(|reason| reason.len() > MAX_REASON_BYTES) =>
            {
                "the reason is too long"
            }
            _ => return Ok(answer),
        };
        Err(DecodeError::invalid(WHAT, reason))
    }
}

/// Why a notary does not sign.
#[derive(
    Clone,
    PartialEq,
    Eq,
    Debug,
    BorshSerialize,
    BorshDeserialize,
    Serialize,
    Deserialize,
    thiserror::Error,
)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
#[non_exhaustive]
pub enum NotaryError {
    /// Other transactions have consumed some of the states. Final.
    #[error(
        "transaction {tx} uses states that are consumed already: {}",
        Consumed(consumed)
    )]
    Conflict {
        /// The refused transaction.
        tx: TxId,
        /// Which states, and by whom.
        consumed: BTreeMap<StateRef, ConsumingTx>,
    },
    /// The present is outside of the time window. Final, unless the window has not begun.
    #[error("the notary's time {now} is outside of the transaction's window {window}")]
    TimeWindowInvalid {
        /// The window.
        window: TimeWindow,
        /// The notary's time.
        now: Timestamp,
    },
    /// The transaction or its tear-off is not valid. Final.
    #[error("the notary finds the transaction invalid: {0}")]
    TransactionInvalid(String),
    /// The request is not signed by the requester. Final.
    #[error("the notary does not accept the signature of the request: {0}")]
    RequestSignatureInvalid(String),
    /// The transaction is for another notary. Final.
    #[error("this is notary {asked}, the transaction is for {}", wanted.as_ref().map_or("none".to_owned(), Party::to_string))]
    WrongNotary {
        /// Whom the transaction names.
        wanted: Option<Party>,
        /// Who was asked.
        asked: Party,
    },
    /// The notary has too much to do. Ask again.
    #[error("the notary is overloaded; ask again in {retry_after_millis} ms")]
    Overloaded {
        /// When asking again makes sense, in milliseconds.
        retry_after_millis: u64,
    },
    /// Something else; asking again may help.
    #[error("the notary cannot answer: {0}")]
    General(String),
}

impl NotaryError {
    fn reason(&self) -> Option<&String> {
        match self {
            Self::TransactionInvalid(reason)
            | Self::RequestSignatureInvalid(reason)
            | Self::General(reason) => Some(reason),
            _ => None,
        }
    }

    fn reason_mut(&mut self) -> Option<&mut String> {
        match self {
            Self::TransactionInvalid(reason)
            | Self::RequestSignatureInvalid(reason)
            | Self::General(reason) => Some(reason),
            _ => None,
        }
    }

    /// Whether the same request may be answered differently later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Overloaded { .. } | Self::General(_) => true,
            Self::TimeWindowInvalid { window, now } => {
                window.from().is_some_and(|from| *now < from)
            }
            _ => false,
        }
    }
}

/// The conflicts of a refused transaction, the first few in full.
struct Consumed<'a>(&'a BTreeMap<StateRef, ConsumingTx>);

impl fmt::Display for Consumed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 3;
        for (index, (state, by)) in self.0.iter().take(SHOWN).enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            let reference = if by.as_reference {
                " (wanted as a reference)"
            } else {
                ""
            };
            write!(f, "{separator}{state} by {}{reference}", by.tx)?;
        }
        match self.0.len().checked_sub(SHOWN) {
            Some(more) if more > 0 => write!(f, ", and {more} more"),
            _ => Ok(()),
        }
    }
}
