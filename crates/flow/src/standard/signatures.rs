//! Signatures of several parties on one transaction.

use std::collections::BTreeSet;

use quorate_identity::PublicKey;
use quorate_ledger::{SignedTransaction, TransactionSignature};

use crate::commit::{Finality, StatesToRecord};
use crate::context::{Context, Session};
use crate::error::FlowError;
use crate::journal::SignaturePolicy;
use crate::standard::exchange::{accept, offer, receive_and_verify, serve};

/// Most signatures that one party answers with.
const MAX_SIGNATURES: usize = 100;

/// Asks the parties of `sessions` to sign; each must run [`sign_transaction`]. Returns the
/// transaction with their signatures. The caller has signed before.
pub async fn collect_signatures(
    ctx: &Context,
    transaction: &SignedTransaction,
    sessions: &[Session],
) -> Result<SignedTransaction, FlowError> {
    ctx.progress("Collecting signatures from counterparties.");
    for session in sessions {
        offer(session, transaction).await?;
    }
    let mut collected = transaction.clone();
    for session in sessions {
        serve(ctx, session, transaction).await?;
        let bytes = session.receive_bytes().await?;
        let signatures: Vec<TransactionSignature> =
            borsh::from_slice(&bytes).map_err(|error| session.malformed("signatures", error))?;
        if signatures.is_empty() || signatures.len() > MAX_SIGNATURES {
            return Err(session.malformed("signatures", format!("{} came", signatures.len())));
        }
        for signature in &signatures {
            signature
                .verify(&transaction.id())
                .map_err(|error| session.malformed("signatures", error))?;
        }
        collected = signed(&collected, signatures)?;
    }
    Ok(collected)
}

/// Receives a transaction, verifies it, lets `check` decide, and signs with those of our keys
/// that it requires. Returns the transaction with our signatures, not yet final.
pub async fn sign_transaction(
    ctx: &Context,
    session: &Session,
    check: impl FnOnce(&SignedTransaction) -> Result<(), FlowError> + Send,
) -> Result<SignedTransaction, FlowError> {
    // Others may still have to sign; what is there must be good.
    let received = receive_and_verify(ctx, session, |transaction| {
        SignaturePolicy::AllBut(transaction.missing_signers().into_iter().collect())
    })
    .await?;
    let transaction = received.transaction;
    let me = ctx.me();
    let required: BTreeSet<PublicKey> = transaction.required_signers();
    let initiator = ctx.party(session.counterparty()).await?;
    if transaction
        .missing_signers()
        .contains(&initiator.owning_key)
    {
        return Err(session.malformed("a transaction to sign", "it has not signed it itself"));
    }
    if !required.contains(&me.owning_key) {
        return Err(session.malformed("a transaction to sign", "it needs no signature of ours"));
    }
    check(&transaction)?;
    ctx.record(received.dependencies, StatesToRecord::None, Finality::Final)
        .await?;
    accept(session).await?;
    let signatures = ctx.sign(transaction.id(), vec![me.owning_key]).await?;
    let bytes = borsh::to_vec(&signatures).expect("writing to memory cannot fail");
    session.send_bytes(bytes).await?;
    signed(&transaction, signatures)
}

/// The transaction with more signatures.
pub(super) fn signed(
    transaction: &SignedTransaction,
    more: Vec<TransactionSignature>,
) -> Result<SignedTransaction, FlowError> {
    transaction
        .with_signatures(more)
        .map_err(|error| FlowError::Verification {
            tx: transaction.id(),
            reason: error.to_string(),
        })
}
