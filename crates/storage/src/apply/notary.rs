//! A notary's decisions: a state is consumed at most once, and the same request gets the same answer.
//!
//! All entries of all units are decided in order against what is stored and what was decided before them in the same
//! database transaction. Two reads and two writes serve any number of entries.
//!
//! Several processes may decide in one database, each under a lease of its own: the workers of a notary. They take turns,
//! because what one reads must still be true when it commits (also of states that are only read, on which no key
//! collides). A turn is a locked row: it ends with the database transaction, whatever becomes of the process.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use quorate_identity::SecureHash;
use quorate_ledger::{ConsumingTx, StateRef, TxId};

use super::{Batch, Failure};
use crate::error::{Doing, Error};
use crate::prepare::{Outgoing, Prepared};
use crate::sql::{batch, values};
use crate::unit::{Committed, NotaryEntry, NotaryResult, Refusal};

batch!(READ_COMMITTED, 0, [tx: Bytes],
    "SELECT n.tx_id FROM {rows} JOIN notary_transactions n ON n.tx_id = d.tx");
batch!(READ_SPENT, 0, [tx: Bytes, number: Int],
    "SELECT n.tx_id, n.idx, n.consumed_by FROM {rows} JOIN notary_states n ON n.tx_id = d.tx AND n.idx = d.number");
batch!(INSERT_STATES, 0, [tx: Bytes, number: Int, consumer: Bytes],
    "INSERT INTO notary_states (tx_id, idx, consumed_by) SELECT d.tx, d.number, d.consumer FROM {rows} WHERE true");
batch!(INSERT_TRANSACTIONS, 1, [tx: Bytes, requester: Text, evidence: Bytes],
    "INSERT INTO notary_transactions (tx_id, requester, request_signature, committed_at)
     SELECT d.tx, d.requester, d.evidence, $1 FROM {rows} WHERE true");

/// Locks the row against other workers until the end of the database transaction, and counts what they decide.
const TAKE_TURN: &str = "INSERT INTO counters (name, value) VALUES ('notary', 1)
     ON CONFLICT (name) DO UPDATE SET value = counters.value + 1";

pub(crate) fn tx_id(bytes: Vec<u8>) -> Result<TxId, Error> {
    let bytes = <[u8; 32]>::try_from(bytes).map_err(|bytes| Error::Corrupt {
        what: "transaction id".into(),
        reason: format!("it has {} bytes, not 32", bytes.len()),
    })?;
    Ok(TxId::new(SecureHash::from_bytes(bytes)))
}

pub(crate) fn state_ref(tx: Vec<u8>, index: u64) -> Result<StateRef, Error> {
    let index = u32::try_from(index).map_err(|_| Error::Corrupt {
        what: "state reference".into(),
        reason: format!("{index} is no index of an output"),
    })?;
    Ok(StateRef::new(tx_id(tx)?, index))
}

pub(super) async fn apply(
    batch: &mut Batch<'_>,
    units: &[Arc<Prepared>],
    committed: &mut [Committed],
    answers: &mut [Vec<Outgoing>],
) -> Result<(), Failure> {
    let doing = "deciding a notary's requests";
    let requests = || {
        units
            .iter()
            .filter_map(|unit| unit.notary.as_ref())
            .flat_map(|notary| &notary.entries)
    };
    if units.iter().all(|unit| unit.notary.is_none()) {
        return Ok(());
    }
    batch
        .connection
        .execute(TAKE_TURN, values![])
        .await
        .doing(doing)?;
    let asked: BTreeSet<TxId> = requests().map(|entry| entry.tx).collect();
    let rows = asked.iter().flat_map(|tx| values![tx.as_bytes()]).collect();
    let mut done = BTreeSet::new();
    for row in batch
        .connection
        .fetch_batch(&READ_COMMITTED, &[], rows)
        .await
        .doing(doing)?
    {
        done.insert(tx_id(row.bytes(0).doing(doing)?)?);
    }
    let used: BTreeSet<&StateRef> = requests()
        .filter(|entry| !done.contains(&entry.tx))
        .flat_map(|entry| entry.inputs.iter().chain(&entry.references))
        .collect();
    let rows = used
        .iter()
        .flat_map(|state| values![state.tx.as_bytes(), state.index])
        .collect();
    let mut spent: BTreeMap<StateRef, TxId> = BTreeMap::new();
    for row in batch
        .connection
        .fetch_batch(&READ_SPENT, &[], rows)
        .await
        .doing(doing)?
    {
        let state = state_ref(row.bytes(0).doing(doing)?, row.count(1).doing(doing)?)?;
        spent.insert(state, tx_id(row.bytes(2).doing(doing)?)?);
    }
    let (mut states, mut transactions) = (Vec::new(), Vec::new());
    for (index, unit) in units.iter().enumerate() {
        let Some(notary) = &unit.notary else { continue };
        let results: Vec<NotaryResult> = notary
            .entries
            .iter()
            .map(|entry| {
                let result = decide(entry, &done, &spent);
                if result == NotaryResult::Committed && done.insert(entry.tx) {
                    for input in &entry.inputs {
                        // A request that names a state twice spends it once.
                        if spent.insert(*input, entry.tx).is_none() {
                            states.extend(values![
                                input.tx.as_bytes(),
                                input.index,
                                entry.tx.as_bytes()
                            ]);
                        }
                    }
                    let (requester, evidence) =
                        (entry.requester.as_str(), entry.request_signature.as_slice());
                    transactions.extend(values![entry.tx.as_bytes(), requester, evidence]);
                }
                result
            })
            .collect();
        answers[index] = (notary.respond)(&results)
            .map_err(|reason| Failure::Unit(index, Refusal::Unanswered(reason)))?
            .iter()
            .map(Outgoing::new)
            .collect();
        committed[index].notary = results;
    }
    batch
        .connection
        .execute_batch(&INSERT_STATES, &[], states)
        .await
        .doing(doing)?;
    let now = batch.now();
    batch
        .connection
        .execute_batch(&INSERT_TRANSACTIONS, &[now], transactions)
        .await
        .doing(doing)?;
    Ok(())
}

fn decide(
    entry: &NotaryEntry,
    done: &BTreeSet<TxId>,
    spent: &BTreeMap<StateRef, TxId>,
) -> NotaryResult {
    if done.contains(&entry.tx) {
        return NotaryResult::Committed;
    }
    let inputs = entry.inputs.iter().map(|state| (state, false));
    let references = entry.references.iter().map(|state| (state, true));
    let consumed: BTreeMap<StateRef, ConsumingTx> = inputs
        .chain(references)
        .filter_map(|(state, as_reference)| {
            Some((
                *state,
                ConsumingTx {
                    tx: *spent.get(state)?,
                    as_reference,
                },
            ))
        })
        .collect();
    if !consumed.is_empty() {
        return NotaryResult::Conflict(consumed);
    }
    if !entry.within_time_window {
        return NotaryResult::OutsideTimeWindow;
    }
    NotaryResult::Committed
}

/// Every statement of this chapter, for the test that looks at how the engine finds their rows.
#[cfg(test)]
pub(super) fn statements() -> Vec<&'static crate::sql::Batch> {
    vec![
        &*READ_COMMITTED,
        &*READ_SPENT,
        &*INSERT_STATES,
        &*INSERT_TRANSACTIONS,
    ]
}
