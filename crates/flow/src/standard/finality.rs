//! Finality in two phases.
//!
//! First every party receives, verifies and keeps the transaction *in flight*; only then the
//! notary commits it; then its signature goes to all. A party can so never be left with a
//! notarised transaction that it has not seen, whatever dies in between.

use quorate_ledger::{SignedTransaction, TransactionSignature, TxId};

use crate::commit::{Finality, StatesToRecord};
use crate::context::{Context, Session};
use crate::error::FlowError;
use crate::journal::SignaturePolicy;
use crate::standard::exchange::{accept, offer, receive_and_verify, serve};
use crate::standard::notarise::notarise;
use crate::standard::signatures::signed;

/// Verifies, notarises and records a transaction, and lets the parties of `sessions` (each runs
/// [`receive_finality`]) do the same. Every required signature but the notary's is there.
pub async fn finalise(
    ctx: &Context,
    transaction: &SignedTransaction,
    sessions: &[Session],
) -> Result<SignedTransaction, FlowError> {
    ctx.verify(transaction, SignaturePolicy::AllButNotary)
        .await?;
    let notary_needed = transaction.wire().needs_notary();
    if notary_needed && !sessions.is_empty() {
        ctx.record(
            vec![transaction.clone()],
            StatesToRecord::None,
            Finality::InFlight,
        )
        .await?;
    }
    if !sessions.is_empty() {
        ctx.progress("Sending the transaction to its participants.");
    }
    for session in sessions {
        offer(session, transaction).await?;
    }
    for session in sessions {
        serve(ctx, session, transaction).await?;
    }
    let mut signatures = Vec::new();
    if notary_needed {
        ctx.progress("Requesting the notary's signature.");
        signatures = notarise(ctx, transaction).await?;
    }
    let transaction = signed(transaction, signatures.clone())?;
    ctx.progress("Recording the transaction.");
    ctx.record(
        vec![transaction.clone()],
        StatesToRecord::OnlyRelevant,
        Finality::Final,
    )
    .await?;
    let bytes = borsh::to_vec(&signatures).expect("writing to memory cannot fail");
    for session in sessions {
        // The transaction is final. A party whose flow has died meanwhile cannot undo that, and
        // must not keep the others from learning of it.
        let _ = session.send_bytes(bytes.clone()).await;
    }
    Ok(transaction)
}

/// The other side of [`finalise`]: receives and verifies a transaction, keeps it in flight, and
/// records it when the notary has signed. `expected` refuses any transaction but that one;
/// `states` says what the vault keeps.
pub async fn receive_finality(
    ctx: &Context,
    session: &Session,
    expected: Option<TxId>,
    states: StatesToRecord,
) -> Result<SignedTransaction, FlowError> {
    let agreed = |transaction: SignedTransaction| {
        let other = expected.is_some_and(|expected| expected != transaction.id());
        let error = session.malformed("the agreed transaction", "another transaction came");
        std::future::ready(if other { Err(error) } else { Ok(()) })
    };
    receive_finality_if(ctx, session, states, agreed).await
}

/// Like [`receive_finality`], for a transaction on which nothing was agreed beforehand: `check`
/// sees it, verified, and decides before it is accepted. A refusal ends the initiator's flow, and
/// the transaction is not notarised.
pub async fn receive_finality_if<C, F>(
    ctx: &Context,
    session: &Session,
    states: StatesToRecord,
    check: C,
) -> Result<SignedTransaction, FlowError>
where
    C: FnOnce(SignedTransaction) -> F + Send,
    F: Future<Output = Result<(), FlowError>> + Send,
{
    let received = receive_and_verify(ctx, session, |_| SignaturePolicy::AllButNotary).await?;
    let transaction = received.transaction;
    check(transaction.clone()).await?;
    ctx.record(received.dependencies, StatesToRecord::None, Finality::Final)
        .await?;
    ctx.record(
        vec![transaction.clone()],
        StatesToRecord::None,
        Finality::InFlight,
    )
    .await?;
    accept(session).await?;
    ctx.progress("Waiting for the notarised transaction.");
    let bytes = session.receive_bytes().await?;
    let signatures: Vec<TransactionSignature> =
        borsh::from_slice(&bytes).map_err(|error| care(session, &transaction, error))?;
    let transaction = transaction
        .with_signatures(signatures)
        .and_then(|signed| signed.verify_required_signatures().map(|()| signed))
        .map_err(|error| care(session, &transaction, error))?;
    ctx.record(vec![transaction.clone()], states, Finality::Final)
        .await?;
    Ok(transaction)
}

/// From here on the transaction may be notarised: an error must not make us forget it.
fn care(
    session: &Session,
    transaction: &SignedTransaction,
    error: impl std::fmt::Display,
) -> FlowError {
    FlowError::NeedsCare(format!(
        "{} sent signatures for transaction {} that do not hold ({error}); it may be notarised: \
         ask {} for it before killing this flow",
        session.counterparty(),
        transaction.id(),
        session.counterparty(),
    ))
}
