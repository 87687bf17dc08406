//! What can be said about a request without looking at any state.

use quorate_identity::Party;
use quorate_ledger::{
    NotarisationMessage, NotarisationPayload, NotaryError, StateRef, TimeWindow, Timestamp,
};
use quorate_storage::NotaryEntry;

/// A request that is well-formed, complete and signed by who asks.
#[derive(Debug)]
pub(crate) struct Checked {
    pub(crate) entry: NotaryEntry,
    pub(crate) window: Option<TimeWindow>,
}

impl Checked {
    pub(crate) fn states(&self) -> usize {
        self.entry.inputs.len() + self.entry.references.len()
    }
}

/// Checks a request to the notary `me`. For a validating notary the caller has verified the
/// transaction itself.
pub(crate) fn check(
    me: &Party,
    validating: bool,
    requester: &Party,
    message: &NotarisationMessage,
    now: Timestamp,
) -> Result<Checked, NotaryError> {
    let payload = &message.payload;
    if validating && matches!(payload, NotarisationPayload::Filtered(_)) {
        return Err(NotaryError::TransactionInvalid(
            "this notary is validating and needs the whole transaction; \
             check that the network parameters say so"
                .to_owned(),
        ));
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
    let window = payload.time_window();
    let refs = |states: &std::collections::BTreeSet<StateRef>| states.iter().copied().collect();
    Ok(Checked {
        window,
        entry: NotaryEntry {
            tx: request.tx(),
            inputs: refs(request.inputs()),
            references: refs(request.references()),
            requester: requester.name.clone(),
            request_signature: signature.signature.as_bytes().to_vec(),
            within_time_window: window.is_none_or(|window| window.contains(now)),
        },
    })
}
