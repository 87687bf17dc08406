//! Inbox and outbox: numbers without gaps, each message once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use quorate_flow::InboxId;
use quorate_identity::X500Name;

use super::{Batch, Failure};
use crate::error::{Doing, Error};
use crate::prepare::{Outgoing, Prepared};
use crate::sql::{batch, int, values};
use crate::unit::{Committed, Epoch, Queued, Reception, Refusal};

batch!(READ_MARKS, 0, [peer: Text, epoch: Bytes],
    "SELECT m.peer, m.epoch, m.sequence, m.base FROM {rows}
     JOIN inbound_marks m ON m.peer = d.peer AND m.epoch = d.epoch");
batch!(READ_LAST, 0, [peer: Text],
    "SELECT m.peer, MAX(m.base + m.sequence) FROM {rows} JOIN inbound_marks m ON m.peer = d.peer GROUP BY m.peer");
batch!(WRITE_MARKS, 1, [peer: Text, epoch: Bytes, sequence: Int, base: Int],
    "INSERT INTO inbound_marks (peer, epoch, sequence, base, begun_at)
     SELECT d.peer, d.epoch, d.sequence, d.base, $1 FROM {rows} WHERE true
     ON CONFLICT (peer, epoch) DO UPDATE SET sequence = excluded.sequence");
batch!(INSERT_INBOX, 1, [peer: Text, sequence: Int, envelope: Bytes],
    "INSERT INTO inbox (peer, sequence, envelope, received_at)
     SELECT d.peer, d.sequence, d.envelope, $1 FROM {rows} WHERE true");
batch!(DELETE_INBOX, 0, [peer: Text, sequence: Int],
    // Through the table itself once more: only then SQLite looks each message up by its whole key.
    "DELETE FROM inbox WHERE (peer, sequence) IN
        (SELECT i.peer, i.sequence FROM {rows} JOIN inbox i ON i.peer = d.peer AND i.sequence = d.sequence)");
batch!(NUMBER_OUTBOX, 0, [peer: Text, many: Int],
    "INSERT INTO outbox_peers (peer, epoch, last_sequence)
     SELECT d.peer, {random16}, d.many FROM {rows} WHERE true
     ON CONFLICT (peer) DO UPDATE SET last_sequence = outbox_peers.last_sequence + excluded.last_sequence
     RETURNING peer, epoch, last_sequence");
batch!(INSERT_OUTBOX, 1, [peer: Text, sequence: Int, envelope: Bytes],
    "INSERT INTO outbox (peer, sequence, envelope, enqueued_at)
     SELECT d.peer, d.sequence, d.envelope, $1 FROM {rows} WHERE true");
batch!(DELETE_OUTBOX, 0, [peer: Text, up_to: Int],
    "DELETE FROM outbox WHERE (peer, sequence) IN
        (SELECT o.peer, o.sequence FROM {rows} JOIN outbox o ON o.peer = d.peer AND o.sequence <= d.up_to)");

/// How far a peer's queue has been received.
struct Mark {
    last: u64,
    base: u64,
    known: bool,
    changed: bool,
}

pub(super) async fn receive(
    batch: &mut Batch<'_>,
    units: &[Arc<Prepared>],
    committed: &mut [Committed],
) -> Result<(), Failure> {
    let doing = "receiving messages";
    let mut marks: BTreeMap<(&X500Name, &Epoch), Mark> = BTreeMap::new();
    for message in units.iter().flat_map(|unit| &unit.received) {
        let new = Mark {
            last: 0,
            base: 0,
            known: false,
            changed: false,
        };
        marks.entry((&message.peer, &message.epoch)).or_insert(new);
    }
    if marks.is_empty() {
        return Ok(());
    }
    let asked = marks
        .keys()
        .flat_map(|(peer, epoch)| values![peer.as_str(), *epoch])
        .collect();
    for row in batch
        .connection
        .fetch_batch(&READ_MARKS, &[], asked)
        .await
        .doing(doing)?
    {
        let (peer, epoch) = (row.text(0).doing(doing)?, row.bytes(1).doing(doing)?);
        let found = marks
            .iter_mut()
            .find(|((p, e), _)| p.as_str() == peer && e[..] == epoch[..]);
        if let Some((_, mark)) = found {
            mark.last = row.count(2).doing(doing)?;
            mark.base = row.count(3).doing(doing)?;
            mark.known = true;
        }
    }
    let new: Vec<_> = marks
        .iter()
        .filter(|(_, mark)| !mark.known)
        .map(|((peer, _), _)| (*peer).clone())
        .collect();
    if !new.is_empty() {
        // A queue's first epoch keeps the sender's numbers; a later one continues after what was used before.
        let asked = new.iter().flat_map(|peer| values![peer.as_str()]).collect();
        for row in batch
            .connection
            .fetch_batch(&READ_LAST, &[], asked)
            .await
            .doing(doing)?
        {
            let (peer, last) = (row.text(0).doing(doing)?, row.count(1).doing(doing)?);
            for ((name, _), mark) in &mut marks {
                if !mark.known && name.as_str() == peer {
                    mark.base = last;
                }
            }
        }
    }
    let mut rows = Vec::new();
    for (index, unit) in units.iter().enumerate() {
        for message in &unit.received {
            let Some(mark) = marks.get_mut(&(&message.peer, &message.epoch)) else {
                continue;
            };
            if message.sequence <= mark.last {
                committed[index].received.push(Reception::Duplicate);
                continue;
            }
            // The first message ever seen of a queue may have any number: what came before was for a predecessor of
            // this database.
            let first = !mark.known && !mark.changed;
            if !first && message.sequence != mark.last + 1 {
                let (peer, found) = (message.peer.clone(), message.sequence);
                return Err(Failure::Unit(
                    index,
                    Refusal::SequenceGap {
                        peer,
                        last: mark.last,
                        found,
                    },
                ));
            }
            let number = mark.base.saturating_add(message.sequence);
            let stored =
                int(number).map_err(|error| Failure::Unit(index, Refusal::Database(error)))?;
            mark.last = message.sequence;
            mark.changed = true;
            rows.extend(values![message.peer.as_str(), stored, &*message.envelope]);
            let id = InboxId {
                peer: message.peer.clone(),
                sequence: number,
            };
            committed[index].received.push(Reception::Accepted(id));
        }
    }
    let mut written = Vec::new();
    for ((peer, epoch), mark) in marks.iter().filter(|(_, mark)| mark.changed) {
        written.extend(values![
            peer.as_str(),
            *epoch,
            int(mark.last)?,
            int(mark.base)?
        ]);
    }
    let now = [batch.now()];
    batch
        .connection
        .execute_batch(&WRITE_MARKS, &now, written)
        .await
        .doing(doing)?;
    batch
        .connection
        .execute_batch(&INSERT_INBOX, &now, rows)
        .await
        .doing(doing)?;
    Ok(())
}

pub(super) async fn consume(batch: &mut Batch<'_>, units: &[Arc<Prepared>]) -> Result<(), Failure> {
    let mut wanted: BTreeSet<&InboxId> = BTreeSet::new();
    for (index, unit) in units.iter().enumerate() {
        for id in &unit.consumed {
            if !wanted.insert(id) {
                return Err(Failure::Unit(index, Refusal::AlreadyConsumed { count: 1 }));
            }
        }
    }
    let mut rows = Vec::new();
    for id in &wanted {
        rows.extend(values![id.peer.as_str(), int(id.sequence)?]);
    }
    let deleted = batch
        .connection
        .execute_batch(&DELETE_INBOX, &[], rows)
        .await
        .doing("consuming messages")?;
    // A message that is not there was dealt with before: doing it again must not become durable.
    match (wanted.len() as u64).checked_sub(deleted) {
        Some(0) | None => Ok(()),
        Some(count) => Err(Failure::Some(Refusal::AlreadyConsumed { count })),
    }
}

pub(super) async fn send(
    batch: &mut Batch<'_>,
    units: &[Arc<Prepared>],
    answers: &[Vec<Outgoing>],
    committed: &mut [Committed],
) -> Result<(), Failure> {
    let doing = "queueing messages";
    let messages = || {
        let both = units.iter().zip(answers).enumerate();
        both.flat_map(|(index, (unit, answers))| {
            unit.outgoing
                .iter()
                .chain(answers)
                .map(move |out| (index, out))
        })
    };
    let mut counts: BTreeMap<&X500Name, u64> = BTreeMap::new();
    for (_, message) in messages() {
        *counts.entry(&message.peer).or_default() += 1;
    }
    if counts.is_empty() {
        return Ok(());
    }
    let mut rows = Vec::new();
    for (peer, count) in &counts {
        rows.extend(values![peer.as_str(), int(*count)?]);
    }
    let mut numbers: BTreeMap<String, (Epoch, u64)> = BTreeMap::new();
    for row in batch
        .connection
        .fetch_batch(&NUMBER_OUTBOX, &[], rows)
        .await
        .doing(doing)?
    {
        let (peer, last) = (row.text(0).doing(doing)?, row.count(2).doing(doing)?);
        let epoch = epoch(row.bytes(1).doing(doing)?)?;
        numbers.insert(peer, (epoch, last));
    }
    // From the last number of each peer back to the first of this batch.
    let mut next: BTreeMap<&X500Name, (Epoch, u64)> = BTreeMap::new();
    for (peer, count) in counts {
        let (epoch, last) = numbers
            .get(peer.as_str())
            .copied()
            .ok_or_else(|| Error::Corrupt {
                what: format!("outbox of {peer}"),
                reason: "it gave no numbers".into(),
            })?;
        next.insert(peer, (epoch, last - count + 1));
    }
    let mut rows = Vec::new();
    for (index, message) in messages() {
        let Some((epoch, number)) = next.get_mut(&message.peer) else {
            continue;
        };
        let sequence = *number;
        *number += 1;
        rows.extend(values![
            message.peer.as_str(),
            int(sequence)?,
            &*message.envelope
        ]);
        let (peer, epoch, envelope) = (message.peer.clone(), *epoch, message.envelope.clone());
        committed[index].outgoing.push(Queued {
            peer,
            sequence,
            epoch,
            envelope,
        });
    }
    let now = batch.now();
    batch
        .connection
        .execute_batch(&INSERT_OUTBOX, &[now], rows)
        .await
        .doing(doing)?;
    Ok(())
}

pub(crate) fn epoch(bytes: Vec<u8>) -> Result<Epoch, Error> {
    Epoch::try_from(bytes).map_err(|bytes| Error::Corrupt {
        what: "epoch of a queue".into(),
        reason: format!("it has {} bytes, not 16", bytes.len()),
    })
}

pub(super) async fn settle(batch: &mut Batch<'_>, units: &[Arc<Prepared>]) -> Result<(), Failure> {
    let mut furthest: BTreeMap<&X500Name, u64> = BTreeMap::new();
    for (peer, up_to) in units.iter().flat_map(|unit| &unit.settled) {
        let known = furthest.entry(peer).or_default();
        *known = (*known).max(*up_to);
    }
    let mut rows = Vec::new();
    for (peer, up_to) in furthest {
        // More than any number that can have been given.
        rows.extend(values![
            peer.as_str(),
            i64::try_from(up_to).unwrap_or(i64::MAX)
        ]);
    }
    batch
        .connection
        .execute_batch(&DELETE_OUTBOX, &[], rows)
        .await
        .doing("settling messages")?;
    Ok(())
}

/// Every statement of this chapter, for the test that looks at how the engine finds their rows.
#[cfg(test)]
pub(super) fn statements() -> Vec<&'static crate::sql::Batch> {
    vec![
        &*READ_MARKS,
        &*READ_LAST,
        &*WRITE_MARKS,
        &*INSERT_INBOX,
        &*DELETE_INBOX,
        &*NUMBER_OUTBOX,
        &*INSERT_OUTBOX,
        &*DELETE_OUTBOX,
    ]
}
