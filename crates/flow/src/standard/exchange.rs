//! A transaction travels with as much of its history as the receiver lacks.
//!
//! The receiver asks for what it does not hold, level by level; the sender hands out nothing but
//! the offered transaction's own history and attachments. The receiver verifies the history in
//! topological order before it accepts, and keeps it.

use std::collections::{BTreeMap, BTreeSet};

use borsh::{BorshDeserialize, BorshSerialize};
use quorate_identity::SecureHash;
use quorate_ledger::{AttachmentId, SignedTransaction, TxId};

use crate::commit::{Finality, StatesToRecord};
use crate::context::{Context, Session};
use crate::error::FlowError;
use crate::journal::SignaturePolicy;

/// Most transactions of history that one exchange transfers.
pub const MAX_DEPENDENCIES: usize = 5_000;

/// Most bytes of history that one exchange transfers, and most bytes of attachments.
pub const MAX_DEPENDENCY_BYTES: usize = 64 * 1024 * 1024;

/// Most transactions that one message asks for.
const MAX_IDS_PER_REQUEST: usize = 200;

/// A delivery is closed when it has grown to this size; the rest is asked for again.
const DELIVERY_BYTES: usize = 4 * 1024 * 1024;

/// What the two sides say to each other. The order of the variants is part of the protocol.
#[derive(BorshSerialize, BorshDeserialize)]
enum Exchange {
    Offer(SignedTransaction),
    Request(Vec<TxId>),
    Deliver(Vec<SignedTransaction>),
    RequestAttachment(AttachmentId),
    DeliverAttachment(Vec<u8>),
    Accepted,
}

/// A transaction that was received and verified, with the history that came along.
#[derive(Debug, Clone)]
pub struct Received {
    /// The transaction.
    pub transaction: SignedTransaction,
    /// What the store did not hold of its history, verified, in topological order.
    pub dependencies: Vec<SignedTransaction>,
}

/// Sends a transaction and serves its history until the other side has verified it.
pub async fn send_transaction(
    ctx: &Context,
    session: &Session,
    transaction: &SignedTransaction,
) -> Result<(), FlowError> {
    offer(session, transaction).await?;
    serve(ctx, session, transaction).await
}

/// Sends a transaction without waiting for what the other side needs to verify it; [`serve`]
/// must follow.
pub(super) async fn offer(
    session: &Session,
    transaction: &SignedTransaction,
) -> Result<(), FlowError> {
    say(session, &Exchange::Offer(transaction.clone())).await
}

/// Serves the history of an offered transaction until the other side accepts.
pub(super) async fn serve(
    ctx: &Context,
    session: &Session,
    transaction: &SignedTransaction,
) -> Result<(), FlowError> {
    // Handing out anything by its id would tell a peer about dealings that are not its own.
    let mut allowed: BTreeSet<TxId> = dependencies_of(transaction);
    let mut attachments: BTreeSet<AttachmentId> = attachments_of(transaction);
    loop {
        match hear(session).await? {
            Exchange::Accepted => return Ok(()),
            Exchange::Request(ids) => {
                if ids.len() > MAX_IDS_PER_REQUEST {
                    return Err(session.malformed("a request for history", "it asks too much"));
                }
                if let Some(id) = ids.iter().find(|id| !allowed.contains(id)) {
                    let why = format!("transaction {id} is not part of the offered one's history");
                    return Err(session.malformed("a request for history", why));
                }
                let found = ctx.transactions(ids).await?;
                let mut delivery = Vec::new();
                let mut bytes = 0;
                for transaction in found {
                    bytes += transaction.encode().len();
                    if bytes > DELIVERY_BYTES && !delivery.is_empty() {
                        break;
                    }
                    allowed.extend(dependencies_of(&transaction));
                    attachments.extend(attachments_of(&transaction));
                    delivery.push(transaction);
                }
                say(session, &Exchange::Deliver(delivery)).await?;
            }
            Exchange::RequestAttachment(id) => {
                if !attachments.contains(&id) {
                    let why = "the attachment is not part of the offered transaction's history";
                    return Err(session.malformed("a request for an attachment", why));
                }
                let data = ctx.attachment(id).await?;
                say(session, &Exchange::DeliverAttachment(data)).await?;
            }
            _ => return Err(session.malformed("a request for history", "another message came")),
        }
    }
}

/// Receives a transaction, fetches and verifies its history, verifies it and accepts it. The
/// history is recorded; the transaction itself is not.
pub async fn receive_transaction(
    ctx: &Context,
    session: &Session,
    signatures: SignaturePolicy,
) -> Result<Received, FlowError> {
    let received = receive_and_verify(ctx, session, |_| signatures).await?;
    ctx.record(
        received.dependencies.clone(),
        StatesToRecord::None,
        Finality::Final,
    )
    .await?;
    accept(session).await?;
    Ok(received)
}

/// Receives, resolves and verifies; nothing is recorded or answered yet.
pub(super) async fn receive_and_verify(
    ctx: &Context,
    session: &Session,
    signatures: impl FnOnce(&SignedTransaction) -> SignaturePolicy,
) -> Result<Received, FlowError> {
    let Exchange::Offer(transaction) = hear(session).await? else {
        return Err(session.malformed("a transaction", "another message came"));
    };
    let dependencies = resolve(ctx, session, &transaction).await?;
    let policy = signatures(&transaction);
    ctx.verify_with(&transaction, dependencies.clone(), policy)
        .await?;
    Ok(Received {
        transaction,
        dependencies,
    })
}

/// Tells the sender that the transaction is verified.
pub(super) async fn accept(session: &Session) -> Result<(), FlowError> {
    say(session, &Exchange::Accepted).await
}

/// Fetches the history that the store lacks, in topological order.
pub(super) async fn resolve(
    ctx: &Context,
    session: &Session,
    transaction: &SignedTransaction,
) -> Result<Vec<SignedTransaction>, FlowError> {
    let mut fetched: BTreeMap<TxId, SignedTransaction> = BTreeMap::new();
    let mut bytes = 0;
    let mut wanted = dependencies_of(transaction);
    let mut attachments = attachments_of(transaction);
    while !wanted.is_empty() {
        let ids: Vec<TxId> = std::mem::take(&mut wanted).into_iter().collect();
        let mut missing: BTreeSet<TxId> = ctx.missing(ids).await?.into_iter().collect();
        while !missing.is_empty() {
            let ask: Vec<TxId> = missing.iter().copied().take(MAX_IDS_PER_REQUEST).collect();
            say(session, &Exchange::Request(ask.clone())).await?;
            let Exchange::Deliver(delivery) = hear(session).await? else {
                return Err(session.malformed("a delivery of history", "another message came"));
            };
            if delivery.is_empty() {
                let why = format!("it does not hold transaction {}", ask[0]);
                return Err(session.malformed("a delivery of history", why));
            }
            for dependency in delivery {
                if !missing.remove(&dependency.id()) {
                    let why = "it holds a transaction that was not asked for";
                    return Err(session.malformed("a delivery of history", why));
                }
                bytes += dependency.encode().len();
                if fetched.len() >= MAX_DEPENDENCIES || bytes > MAX_DEPENDENCY_BYTES {
                    return Err(FlowError::failed(format!(
                        "the history of transaction {} exceeds {MAX_DEPENDENCIES} transactions or \
                         {MAX_DEPENDENCY_BYTES} bytes; let the owner spend its states to itself \
                         in smaller steps first",
                        transaction.id()
                    )));
                }
                attachments.extend(attachments_of(&dependency));
                let more = dependencies_of(&dependency);
                wanted.extend(more.into_iter().filter(|id| !fetched.contains_key(id)));
                fetched.insert(dependency.id(), dependency);
            }
        }
        wanted.retain(|id| !fetched.contains_key(id));
    }
    fetch_attachments(ctx, session, attachments).await?;
    Ok(in_order(fetched))
}

async fn fetch_attachments(
    ctx: &Context,
    session: &Session,
    attachments: BTreeSet<AttachmentId>,
) -> Result<(), FlowError> {
    if attachments.is_empty() {
        return Ok(());
    }
    let missing = ctx
        .missing_attachments(attachments.into_iter().collect())
        .await?;
    let mut bytes = 0;
    for id in missing {
        say(session, &Exchange::RequestAttachment(id)).await?;
        let Exchange::DeliverAttachment(data) = hear(session).await? else {
            return Err(session.malformed("an attachment", "another message came"));
        };
        if *id.hash() != SecureHash::of(&data) {
            return Err(session.malformed("an attachment", "its bytes have another hash"));
        }
        bytes += data.len();
        if bytes > MAX_DEPENDENCY_BYTES {
            return Err(FlowError::failed(format!(
                "the attachments of the offered history exceed {MAX_DEPENDENCY_BYTES} bytes"
            )));
        }
        ctx.store_attachment(data).await?;
    }
    Ok(())
}

/// Orders transactions so that each comes after those it depends on. Ids are hashes of content
/// that names the dependencies, so there are no cycles.
fn in_order(mut fetched: BTreeMap<TxId, SignedTransaction>) -> Vec<SignedTransaction> {
    let mut ordered = Vec::with_capacity(fetched.len());
    let mut stack: Vec<TxId> = fetched.keys().rev().copied().collect();
    while let Some(id) = stack.last().copied() {
        let waiting = fetched.get(&id).map(|transaction| {
            dependencies_of(transaction)
                .into_iter()
                .filter(|dependency| fetched.contains_key(dependency))
                .collect::<Vec<_>>()
        });
        match waiting {
            Some(waiting) if !waiting.is_empty() => stack.extend(waiting),
            _ => {
                stack.pop();
                ordered.extend(fetched.remove(&id));
            }
        }
    }
    ordered
}

fn dependencies_of(transaction: &SignedTransaction) -> BTreeSet<TxId> {
    let wire = transaction.wire();
    wire.inputs()
        .iter()
        .chain(wire.references())
        .map(|reference| reference.tx)
        .collect()
}

fn attachments_of(transaction: &SignedTransaction) -> BTreeSet<AttachmentId> {
    transaction.wire().attachments().iter().copied().collect()
}

async fn say(session: &Session, message: &Exchange) -> Result<(), FlowError> {
    let bytes = borsh::to_vec(message)
        .map_err(|e| FlowError::failed(format!("a message to {}: {e}", session.counterparty())))?;
    session.send_bytes(bytes).await
}

async fn hear(session: &Session) -> Result<Exchange, FlowError> {
    let bytes = session.receive_bytes().await?;
    borsh::from_slice(&bytes)
        .map_err(|error| session.malformed("a message of a transaction exchange", error))
}
