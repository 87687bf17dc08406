//! Asking a notary for its signature, and the part of a validating notary that is a flow.

use std::time::Duration;

use quorate_ledger::{
    NotarisationAnswer, NotarisationMessage, NotarisationPayload, NotarisationRequest, NotaryError,
    SignedTransaction, TransactionSignature,
};

use crate::commit::{Finality, StatesToRecord};
use crate::context::{Context, Session};
use crate::error::FlowError;
use crate::journal::SignaturePolicy;
use crate::registry::Responder;
use crate::standard::exchange::{accept, resolve, serve};
use crate::standard::signatures::signed;

/// The flow name under which a non-validating notary is addressed: one message with a tear-off,
/// one answer.
pub const NOTARISE: &str = "quorate.Notarise";

/// The flow name under which a validating notary is addressed: it fetches and verifies the
/// transaction's history before it answers.
pub const VALIDATING_NOTARISE: &str = "quorate.NotariseValidating";

/// An overloaded notary is asked again after this time at the latest, whatever it says.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Requests to other nodes of a notary that are left open when one more is made: whichever answers first will do.
const MAX_EARLIER: usize = 8;

/// The notary's signatures over a transaction, which has all others.
///
/// It waits as long as it takes: the request is durable, and asking again is answered the same. If several nodes provide
/// the notary, one is asked after the other, each time after the time of
/// [`FlowTimeout`](crate::FlowTimeout).
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
    let request_signature = ctx.sign_notarisation(NotarisationRequest::of(wire)).await?;
    let mut attempt = 0;
    let mut earlier: Vec<Session> = Vec::new();
    loop {
        let payload = if validating {
            NotarisationPayload::Full {
                tx: transaction.clone(),
                dependencies: Vec::new(),
            }
        } else {
            NotarisationPayload::filtered(wire)
                .map_err(|error| FlowError::failed(format!("tear-off of {id}: {error}")))?
        };
        let message = NotarisationMessage {
            payload,
            request_signature: request_signature.clone(),
        };
        let name = if validating {
            VALIDATING_NOTARISE
        } else {
            NOTARISE
        };
        let session = ctx.session_for(&notary.name, name).await?;
        session.send_bytes(message.encode()).await?;
        let before = earlier.iter().map(Session::id).collect();
        let session = session.in_a_hurry(&notary.name, attempt, before);
        let bytes = match answer_to(ctx, &session, transaction, validating).await {
            Err(FlowError::TimedOut { .. }) => {
                // The node may be gone for good, and there are others. Its answer counts if it comes after all, unless
                // it is a conversation.
                attempt = attempt.saturating_add(1);
                if validating {
                    session.close().await?;
                } else {
                    earlier.push(session);
                    if earlier.len() > MAX_EARLIER {
                        earlier.remove(0).close().await?;
                    }
                }
                continue;
            }
            answered => answered?,
        };
        let answer = NotarisationAnswer::decode(&bytes)
            .map_err(|error| session.malformed("a notary's answer", error))?;
        match answer {
            NotarisationAnswer::Signed(signatures) => {
                if !signatures.iter().any(|s| s.by == notary.owning_key) {
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
                let wait = Duration::from_millis(retry_after_millis).min(LONGEST_WAIT);
                ctx.sleep(wait).await?;
            }
            NotarisationAnswer::Refused(error) => {
                return Err(FlowError::Notary { tx: id, error });
            }
        }
    }
}

/// What the notary says to a request that was sent.
async fn answer_to(
    ctx: &Context,
    session: &Session,
    transaction: &SignedTransaction,
    validating: bool,
) -> Result<Vec<u8>, FlowError> {
    if validating {
        serve(ctx, session, transaction).await?;
    }
    session.receive_bytes().await
}

/// A validating notary's answer: verify everything, then commit.
pub(super) struct ValidatingNotarise;

impl Responder for ValidatingNotarise {
    const INITIATED_BY: &'static str = VALIDATING_NOTARISE;

    async fn call(ctx: Context, session: Session) -> Result<(), FlowError> {
        let bytes = session.receive_bytes().await?;
        let message = NotarisationMessage::decode(&bytes)
            .map_err(|error| session.malformed("a notarisation request", error))?;
        let NotarisationPayload::Full { tx, .. } = &message.payload else {
            let why = "this notary is validating and needs the whole transaction";
            return Err(session.malformed("a notarisation request", why));
        };
        let transaction = tx.clone();
        // Nobody's history is fetched and kept for a transaction that is not ours to notarise.
        let me = ctx.me();
        let notary = transaction.wire().notary();
        let validates = ctx
            .notaries()
            .await?
            .into_iter()
            .any(|known| Some(&known.identity) == notary && known.validating);
        // The request may be addressed to the notary or to the node that is one of those which provide it.
        let ours = match notary {
            Some(notary) if validates => {
                *notary == me || ctx.services().await?.contains(&notary.name)
            }
            _ => false,
        };
        if !ours {
            let why = format!(
                "{} is not the validating notary of this transaction",
                me.name
            );
            return Err(session.malformed("a notarisation request", why));
        }
        let dependencies = resolve(&ctx, &session, &transaction).await?;
        let verdict = ctx
            .verify_with(
                &transaction,
                dependencies.clone(),
                SignaturePolicy::AllButNotary,
            )
            .await;
        accept(&session).await?;
        let answer = match verdict {
            Ok(()) => {
                ctx.record(dependencies, StatesToRecord::None, Finality::Final)
                    .await?;
                let requester = ctx.party(session.counterparty()).await?;
                ctx.commit_as_notary(requester, message).await?
            }
            Err(FlowError::Verification { reason, .. }) => {
                NotarisationAnswer::Refused(NotaryError::TransactionInvalid(reason))
            }
            Err(error) => return Err(error),
        };
        if let NotarisationAnswer::Signed(signatures) = &answer {
            // Transactions that build on this one are verified against it later.
            let notarised = signed(&transaction, signatures.clone())?;
            ctx.record(vec![notarised], StatesToRecord::None, Finality::Final)
                .await?;
        }
        session.send_bytes(answer.encode()).await
    }
}
