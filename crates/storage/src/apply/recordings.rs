//! Transactions and what they do to the vault, in whatever order they arrive.
//!
//! A transaction is stored once; in flight it touches nothing, and when it becomes final its outputs are produced and its
//! inputs consumed. An input that the vault does not hold is remembered, because its producer may be recorded later and
//! must then be found consumed. Every transaction that changes the vault gets one place in the stream of updates; a
//! consumption that comes to light with its producer gets a place of its own after it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use quorate_flow::{Finality, StatesToRecord};
use quorate_ledger::vault::{Cursor, VaultUpdate};
use quorate_ledger::{SignedTransaction, StateAndRef, StateRef, TxId};

use super::notary::{state_ref, tx_id};
use super::{Batch, Failure};
use crate::error::{Doing, Error};
use crate::prepare::{Prepared, PreparedOutput, PreparedRecording};
use crate::query::state_and_ref;
use crate::sql::{Value, batch, int, values};
use crate::unit::{Committed, Refusal};

batch!(READ_TRANSACTIONS, 0, [tx: Bytes],
    "SELECT t.tx_id, t.status, t.visibility, t.bytes FROM {rows} JOIN transactions t ON t.tx_id = d.tx");
batch!(WRITE_TRANSACTIONS, 2, [tx: Bytes, content: Bytes, state: Int, sight: Int],
    "INSERT INTO transactions (tx_id, bytes, status, visibility, recorded_at, generation)
     SELECT d.tx, d.content, d.state, d.sight, $1, $2 FROM {rows} WHERE true
     ON CONFLICT (tx_id) DO UPDATE SET bytes = excluded.bytes, status = excluded.status,
        visibility = excluded.visibility, recorded_at = excluded.recorded_at, generation = excluded.generation");
batch!(READ_CONSUMPTIONS, 0, [tx: Bytes],
    "SELECT c.tx_id, c.idx, c.consumed_by FROM {rows} JOIN vault_consumptions c ON c.tx_id = d.tx");
batch!(WRITE_CONSUMPTIONS, 0, [tx: Bytes, number: Int, consumer: Bytes],
    "INSERT INTO vault_consumptions (tx_id, idx, consumed_by)
     SELECT d.tx, d.number, d.consumer FROM {rows} WHERE true ON CONFLICT (tx_id, idx) DO NOTHING");
batch!(CONSUME, 1, [tx: Bytes, number: Int, consumer: Bytes, place: Int],
    "UPDATE vault_states SET status = 1, consumed_at = $1, consumed_by = d.consumer, consumed_seq = d.place
     FROM {rows} WHERE tx_id = d.tx AND idx = d.number AND status = 0
     RETURNING tx_id, idx, state, consumed_by");
batch!(INSERT_STATES, 1, [
        tx: Bytes, number: Int, kind: Text, contract: Text, notary: Text, content: Bytes, people: Bytes, state: Int,
        place: Int, consumed_place: Int, consumed_time: Int, consumer: Bytes,
    ],
    "INSERT INTO vault_states (tx_id, idx, state_type, contract, notary, state, participants, status, produced_seq,
                               recorded_at, consumed_seq, consumed_at, consumed_by)
     SELECT d.tx, d.number, d.kind, d.contract, d.notary, d.content, d.people, d.state, d.place, $1,
            d.consumed_place, d.consumed_time, d.consumer FROM {rows} WHERE true");

const IN_FLIGHT: i64 = 0;
const FINAL: i64 = 1;

fn visibility(states: StatesToRecord) -> i64 {
    match states {
        StatesToRecord::None => 0,
        StatesToRecord::OnlyRelevant => 1,
        StatesToRecord::AllVisible => 2,
    }
}

/// A transaction as the database will have it.
struct Stored {
    status: i64,
    visibility: i64,
    /// Decoded only if signatures must be merged.
    bytes: Vec<u8>,
    changed: bool,
}

/// What a transaction does to the vault.
struct Effect<'a> {
    unit: usize,
    tx: TxId,
    inputs: &'a [StateRef],
    outputs: Vec<&'a PreparedOutput>,
}

/// A state that this batch puts into the vault.
struct New<'a> {
    output: &'a PreparedOutput,
    place: i64,
    /// Where and by whom it is consumed, if it is already.
    consumed: Option<(i64, TxId)>,
}

pub(super) async fn apply(
    batch: &mut Batch<'_>,
    units: &[Arc<Prepared>],
    committed: &mut [Committed],
) -> Result<(), Failure> {
    if units.iter().all(|unit| unit.recordings.is_empty()) {
        return Ok(());
    }
    let effects = store(batch, units).await?;
    if !effects.is_empty() {
        vault(batch, &effects, committed).await?;
    }
    Ok(())
}

/// Stores the transactions and finds out which of them have an effect on the vault.
async fn store<'a>(
    batch: &mut Batch<'_>,
    units: &'a [Arc<Prepared>],
) -> Result<Vec<Effect<'a>>, Failure> {
    let doing = "recording transactions";
    let recordings = || {
        let units = units.iter().enumerate();
        units.flat_map(|(index, unit)| {
            unit.recordings
                .iter()
                .map(move |recording| (index, recording))
        })
    };
    let ids: BTreeSet<TxId> = recordings().map(|(_, recording)| recording.tx).collect();
    let rows = ids.iter().flat_map(|tx| values![tx.as_bytes()]).collect();
    let mut stored: BTreeMap<TxId, Stored> = BTreeMap::new();
    for row in batch
        .connection
        .fetch_batch(&READ_TRANSACTIONS, &[], rows)
        .await
        .doing(doing)?
    {
        let tx = tx_id(row.bytes(0).doing(doing)?)?;
        let (status, visibility) = (row.int(1).doing(doing)?, row.int(2).doing(doing)?);
        stored.insert(
            tx,
            Stored {
                status,
                visibility,
                bytes: row.bytes(3).doing(doing)?,
                changed: false,
            },
        );
    }
    let mut effects = Vec::new();
    for (unit, recording) in recordings() {
        effects.extend(
            merge(unit, recording, &mut stored).map_err(|refusal| Failure::Unit(unit, refusal))?,
        );
    }
    let mut rows = Vec::new();
    for (tx, stored) in stored.into_iter().filter(|(_, stored)| stored.changed) {
        rows.extend(values![
            tx.as_bytes(),
            stored.bytes,
            stored.status,
            stored.visibility
        ]);
    }
    let scalars = [batch.now(), int(batch.fence.generation())?.into()];
    batch
        .connection
        .execute_batch(&WRITE_TRANSACTIONS, &scalars, rows)
        .await
        .doing(doing)?;
    Ok(effects)
}

/// Adds a recording to what is stored; tells what it changes in the vault.
fn merge<'a>(
    unit: usize,
    recording: &'a PreparedRecording,
    stored: &mut BTreeMap<TxId, Stored>,
) -> Result<Option<Effect<'a>>, Refusal> {
    let is_final = recording.finality == Finality::Final;
    // States are recorded when a transaction is final; until then nothing is decided about them.
    let wanted = if is_final {
        visibility(recording.states)
    } else {
        0
    };
    let status = if is_final { FINAL } else { IN_FLIGHT };
    let known = stored.entry(recording.tx).or_insert_with(|| Stored {
        status: -1,
        visibility: 0,
        bytes: Vec::new(),
        changed: true,
    });
    let before = (known.status, known.visibility);
    let bytes = if known.status < 0 || known.bytes == recording.bytes {
        recording.bytes.clone()
    } else {
        with_all_signatures(recording, &known.bytes)?
    };
    let after = (before.0.max(status), before.1.max(wanted));
    known.changed |= after != before || bytes != known.bytes;
    (known.status, known.visibility) = after;
    known.bytes = bytes;
    let becomes_final = is_final && before.0 != FINAL;
    if !becomes_final && after.1 == before.1 {
        return Ok(None);
    }
    // What an earlier recording has produced already is left out.
    let produced_before = |output: &PreparedOutput| match before.1 {
        0 => false,
        1 => output.relevant,
        _ => true,
    };
    Ok(Some(Effect {
        unit,
        tx: recording.tx,
        inputs: if becomes_final {
            &recording.inputs
        } else {
            &[]
        },
        outputs: recording
            .outputs
            .iter()
            .filter(|output| !produced_before(output))
            .collect(),
    }))
}

fn with_all_signatures(recording: &PreparedRecording, stored: &[u8]) -> Result<Vec<u8>, Refusal> {
    let refused = |reason: String| Refusal::Transaction {
        tx: recording.tx,
        reason,
    };
    let known = SignedTransaction::decode(stored).map_err(|error| refused(error.to_string()))?;
    let merged = recording
        .transaction
        .with_signatures(known.signatures().iter().cloned());
    merged
        .map(|merged| merged.encode())
        .map_err(|error| refused(error.to_string()))
}

/// Produces and consumes states and reports the updates.
async fn vault(
    batch: &mut Batch<'_>,
    effects: &[Effect<'_>],
    committed: &mut [Committed],
) -> Result<(), Failure> {
    let doing = "updating the vault";
    let produced: BTreeSet<StateRef> = effects
        .iter()
        .flat_map(|effect| &effect.outputs)
        .map(|output| output.state.reference)
        .collect();
    let mut consumed_before = read_consumptions(batch, &produced).await?;

    // First a place for every transaction, after them one for every consumption that comes to light late.
    let late_at_most = produced.len();
    let sql = "UPDATE counters SET value = value + $1 WHERE name = 'vault' RETURNING value";
    let places = int((effects.len() + late_at_most) as u64)?;
    let row = batch
        .connection
        .fetch_one(sql, values![places])
        .await
        .doing(doing)?;
    let corrupt = || Error::Corrupt {
        what: "vault counter".into(),
        reason: "it is gone".into(),
    };
    let first = row.ok_or_else(corrupt)?.int(0).doing(doing)? - places + 1;
    let mut late_place = first + effects.len() as i64;

    let now = batch.now;
    let update = |place: i64, tx: TxId| VaultUpdate {
        cursor: Cursor(place.unsigned_abs()),
        tx,
        produced: Vec::new(),
        consumed: Vec::new(),
        recorded_at: now,
    };
    let mut new: BTreeMap<StateRef, New<'_>> = BTreeMap::new();
    let mut updates: BTreeMap<i64, (usize, VaultUpdate)> = BTreeMap::new();
    let mut by_tx: BTreeMap<TxId, i64> = BTreeMap::new();
    let (mut elsewhere, mut asked): (Vec<Value>, BTreeMap<StateRef, TxId>) =
        (Vec::new(), BTreeMap::new());
    for (effect, place) in effects.iter().zip(first..) {
        let mut mine = update(place, effect.tx);
        for input in effect.inputs {
            if let Some(state) = new.get_mut(input) {
                state.consumed = Some((place, effect.tx));
                mine.consumed.push(state.output.state.clone());
            } else if produced.contains(input) {
                // Produced further on in this batch: as if it had been consumed before.
                consumed_before.insert(*input, effect.tx);
            } else {
                elsewhere.extend(values![
                    input.tx.as_bytes(),
                    input.index,
                    effect.tx.as_bytes(),
                    place
                ]);
                asked.insert(*input, effect.tx);
            }
        }
        by_tx.entry(effect.tx).or_insert(place);
        for output in &effect.outputs {
            mine.produced.push(output.state.clone());
            let reference = output.state.reference;
            let mut state = New {
                output,
                place,
                consumed: None,
            };
            if let Some(consumer) = consumed_before.get(&reference) {
                state.consumed = Some((late_place, *consumer));
                let mut late = update(late_place, *consumer);
                late.consumed.push(output.state.clone());
                updates.insert(late_place, (effect.unit, late));
                late_place += 1;
            }
            new.insert(reference, state);
        }
        updates.insert(place, (effect.unit, mine));
    }

    for state in consume(batch, elsewhere).await? {
        let consumer = asked.remove(&state.reference);
        if let Some((_, update)) = consumer
            .and_then(|tx| by_tx.get(&tx))
            .and_then(|place| updates.get_mut(place))
        {
            update.consumed.push(state);
        }
    }
    let mut rows = Vec::new();
    for (input, consumer) in asked {
        rows.extend(values![
            input.tx.as_bytes(),
            input.index,
            consumer.as_bytes()
        ]);
    }
    batch
        .connection
        .execute_batch(&WRITE_CONSUMPTIONS, &[], rows)
        .await
        .doing(doing)?;
    insert(batch, new).await?;

    for (unit, update) in updates.into_values() {
        if !(update.produced.is_empty() && update.consumed.is_empty()) {
            committed[unit].vault_updates.push(update);
        }
    }
    Ok(())
}

/// Those of `produced` that were consumed before they were known.
async fn read_consumptions(
    batch: &mut Batch<'_>,
    produced: &BTreeSet<StateRef>,
) -> Result<BTreeMap<StateRef, TxId>, Failure> {
    let doing = "updating the vault";
    let producers: BTreeSet<TxId> = produced.iter().map(|state| state.tx).collect();
    let rows = producers
        .iter()
        .flat_map(|tx| values![tx.as_bytes()])
        .collect();
    let mut consumed = BTreeMap::new();
    for row in batch
        .connection
        .fetch_batch(&READ_CONSUMPTIONS, &[], rows)
        .await
        .doing(doing)?
    {
        let state = state_ref(row.bytes(0).doing(doing)?, row.count(1).doing(doing)?)?;
        consumed.insert(state, tx_id(row.bytes(2).doing(doing)?)?);
    }
    Ok(consumed)
}

/// Marks states of the vault as consumed; returns those that were there and unconsumed.
async fn consume(batch: &mut Batch<'_>, rows: Vec<Value>) -> Result<Vec<StateAndRef>, Failure> {
    let now = batch.now();
    let rows = batch
        .connection
        .fetch_batch(&CONSUME, &[now], rows)
        .await
        .doing("consuming states")?;
    let mut states: Vec<StateAndRef> = rows
        .iter()
        .map(|row| state_and_ref(row, 0))
        .collect::<Result<_, _>>()?;
    states.sort_by_key(|state| state.reference);
    Ok(states)
}

async fn insert(batch: &mut Batch<'_>, new: BTreeMap<StateRef, New<'_>>) -> Result<(), Failure> {
    let mut rows = Vec::new();
    let mut mapped: BTreeMap<usize, Vec<Value>> = BTreeMap::new();
    for (
        reference,
        New {
            output,
            place,
            consumed,
        },
    ) in new
    {
        let state = &output.state.state;
        rows.extend(values![
            reference.tx.as_bytes(),
            reference.index,
            state.state_type.as_str(),
            state.contract.name.as_str(),
            state.notary.name.as_str(),
            output.bytes.as_slice(),
            output.participants.as_slice(),
            consumed.is_some(),
            place,
            consumed.map(|(place, _)| place),
            consumed.map(|_| batch.now.as_micros()),
            consumed.map(|(_, tx)| tx.as_bytes().to_vec()),
        ]);
        for (schema, row) in &output.rows {
            let rows = mapped.entry(*schema).or_default();
            rows.extend(values![reference.tx.as_bytes(), reference.index]);
            rows.extend(row.iter().cloned());
        }
    }
    let now = batch.now();
    batch
        .connection
        .execute_batch(&INSERT_STATES, &[now], rows)
        .await
        .doing("producing states")?;
    for (schema, rows) in mapped {
        let insert = &batch.schemas.mapped[schema].insert;
        batch
            .connection
            .execute_batch(insert, &[], rows)
            .await
            .doing("writing an application's table")?;
    }
    Ok(())
}

/// Every statement of this chapter, for the test that looks at how the engine finds their rows.
#[cfg(test)]
pub(super) fn statements() -> Vec<&'static crate::sql::Batch> {
    vec![
        &*READ_TRANSACTIONS,
        &*WRITE_TRANSACTIONS,
        &*READ_CONSUMPTIONS,
        &*WRITE_CONSUMPTIONS,
        &*CONSUME,
        &*INSERT_STATES,
    ]
}
