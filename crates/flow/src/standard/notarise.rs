//! Asking a notary for its signature.

use std::time::Duration;

use quorate_ledger::{
    FilteredTransaction, NotarisationAnswer, NotarisationMessage, NotarisationPayload,
    NotarisationRequest, NotaryError, SignedTransaction, TransactionSignature,
};

use crate::context::Context;
use crate::error::FlowError;
use crate::standard::exchange::{offer, serve};

/// The flow name under which a non-validating notary is addressed: one message with a tear-off,
/// one answer.
pub const NOTARISE: &str = "quorate.Notarise";

/// The flow name under which a validating notary is addressed: it receives the whole transaction
/// and its history first.
pub const VALIDATING_NOTARISE: &str = "quorate.NotariseValidating";

/// Whether a transaction is final only with a notary's signature: it consumes states, or must
/// happen within a time window.
pub fn needs_notary(transaction: &SignedTransaction) -> bool {
    let wire = transaction.wire();
    !wire.inputs().is_empty() || !wire.references().is_empty() || wire.time_window().is_some()
}

/// The notary's signatures over a transaction, which has all others.
///
/// It waits as long as it takes: the request is durable, and asking again is answered the same.
pub async fn notarise(
    ctx: &Context,
    transaction: &SignedTransaction,
) -> Result<Vec<TransactionSignature>, FlowError> {
    let wire = transaction.wire();
    let id = transaction.id();
    let notary = wire
        .notary()
        .cloned()
        .ok_or_else(|| FlowError::failed(format!("transaction {id} names no notary")))?;
    let validating = ctx
        .notaries()
        .await?
        .into_iter()
        .find(|known| known.identity == notary)
        .ok_or_else(|| {
            FlowError::unknown(format_args!(
                "notary '{}' (it is not in the network parameters)",
                notary.name
            ))
        })?
        .validating;
    let me = ctx.me();
    let request = NotarisationRequest::of(wire);
    let signature = ctx
        .sign_bytes(request.signable_bytes(), me.owning_key.clone())
        .await?;
    loop {
        let payload = if validating {
            NotarisationPayload::Full(transaction.clone())
        } else {
            let tear_off = FilteredTransaction::for_notary(wire)
                .map_err(|error| FlowError::failed(format!("tear-off of {id}: {error}")))?;
            NotarisationPayload::Filtered(tear_off)
        };
        let message = NotarisationMessage {
            payload,
            request_signature: (me.owning_key.clone(), signature.clone()).into(),
        };
        let name = if validating {
            VALIDATING_NOTARISE
        } else {
            NOTARISE
        };
        let session = ctx.session_for(&notary.name, name).await?;
        session.send_bytes(message.encode()).await?;
        if validating {
            offer(&session, transaction).await?;
            serve(ctx, &session, transaction).await?;
        }
        let bytes = session.receive_bytes().await?;
        let answer = NotarisationAnswer::decode(&bytes)
            .map_err(|error| session.malformed("a notary's answer", error))?;
        match answer {
            NotarisationAnswer::Signed(signatures) => {
                let by_notary = signatures.iter().any(|s| s.by == notary.owning_key);
                if !by_notary {
                    let why = "it lacks the notary's own signature";
                    return Err(session.malformed("a notary's answer", why));
                }
                for signature in &signatures {
                    signature
                        .verify(&id)
                        .map_err(|error| session.malformed("a notary's signature", error))?;
                }
                return Ok(signatures);
            }
            NotarisationAnswer::Refused(NotaryError::Overloaded { retry_after_millis }) => {
                session.close().await?;
                ctx.sleep(Duration::from_millis(retry_after_millis)).await?;
            }
            NotarisationAnswer::Refused(error) => {
                return Err(FlowError::Notary { tx: id, error });
            }
        }
    }
}
