//! What can be said about a request without looking at any state or at the time.

use quorate_identity::Party;
use quorate_ledger::{
    NotarisationMessage, NotarisationPayload, NotaryError, TimeWindow, Timestamp,
};
use quorate_storage::NotaryEntry;

/// A request that is well-formed, complete and signed by who asks.
#[derive(Debug, Clone)]
pub(crate) struct Checked {
    entry: NotaryEntry,
    pub(crate) window: Option<TimeWindow>,
}

impl Checked {
    /// How many states it is about.
    pub(crate) fn states(&self) -> usize {
        self.entry.inputs.len() + self.entry.references.len()
    }

    /// The request as it stands at the time `now`.
    pub(crate) fn entry_at(&self, now: Timestamp) -> NotaryEntry {
        NotaryEntry {
            within_time_window: self.window.is_none_or(|window| window.contains(now)),
            ..self.entry.clone()
        }
    }
}

/// The refusal of a request that a validating notary cannot verify.
pub(crate) fn needs_everything() -> NotaryError {
    NotaryError::TransactionInvalid(
        "this notary is validating and needs the whole transaction, not a tear-off; \
         check that the network parameters say so"
            .to_owned(),
    )
}

/// Checks a request to the notary `me`. For a validating notary the caller has verified the
/// transaction itself.
pub(crate) fn check(
    me: &Party,
    validating: bool,
    requester: &Party,
    message: &NotarisationMessage,
) -> Result<Checked, NotaryError> {
    let payload = &message.payload;
    if validating && matches!(payload, NotarisationPayload::Filtered(_)) {
        return Err(needs_everything());
    }
    payload
        .check_complete()
        .map_err(|error| NotaryError::TransactionInvalid(error.to_string()))?;
    if payload.notary() != Some(me) {
        return Err(NotaryError::WrongNotary {
            wanted: payload.notary().cloned(),
            asked: me.clone(),
        });
    }
    let signature = &message.request_signature;
    if signature.by != requester.owning_key {
        return Err(NotaryError::RequestSignatureInvalid(format!(
            "it is by another key than that of {}",
            requester.name
        )));
    }
    let request = payload.request();
    request
        .verify(signature)
        .map_err(|error| NotaryError::RequestSignatureInvalid(error.to_string()))?;
    Ok(Checked {
        window: payload.time_window(),
        entry: NotaryEntry {
            tx: request.tx(),
            inputs: request.inputs().iter().copied().collect(),
            references: request.references().iter().copied().collect(),
            requester: requester.name.clone(),
            request_signature: signature.signature.as_bytes().to_vec(),
            within_time_window: false,
        },
    })
}
