//! The bytes of the log.
//!
//! A segment is a sequence of records. A record is a CRC-32C, the length of its body, and the body: a kind, flags, a
//! group and what the kind says. All numbers are little-endian. The checksum covers, besides length and body, the
//! record's place (segment and offset), so that a record is valid only where it was written.
//!
//! | kind | says |
//! |---|---|
//! | start | the first record of every segment: magic and version, and how long the previous segment is |
//! | batch | everything before this record was durable when it was written |
//! | standing, install, entry, state, compact | parts of a [`Write`](super::Write) |
//! | copy | an entry written once more, so that an old segment can go; it replaces nothing but its own older place |
//! | remove | the group is gone |
//!
//! The last record of a write carries a flag; a write whose last record is not there does not count. Version 1 is
//! the only one so far; whatever changes in these bytes raises it.

use bytes::Bytes;
use raft::eraftpb::{Entry, EntryType, HardState};

use super::{Compaction, Standing};
use crate::{GroupId, Snapshot};

/// Checksum and length, before every body.
pub(super) const HEADER: usize = 8;
/// Kind, flags and group, at the beginning of every body.
const PREFIX: usize = 18;
/// The whole of a batch record.
pub(super) const BATCH: usize = HEADER + PREFIX;
/// No record is longer. An entry has at most [`MAX_ENTRY_BYTES`](crate::MAX_ENTRY_BYTES), a snapshot too.
pub(super) const MAX_BODY: u64 = (300 << 20) as u64;

/// Indexes, terms and members' ids end here. None grows so large honestly, and with a larger one sums would overflow.
const MAX_NUMBER: u64 = 1 << 62;

const MAGIC: &[u8; 8] = b"quorate\n";
const VERSION: u32 = 1;
const LAST: u8 = 1;

const START: u8 = 1;
const BATCH_KIND: u8 = 2;
const STANDING: u8 = 3;
const INSTALL: u8 = 4;
const ENTRY: u8 = 5;
const STATE: u8 = 6;
const COMPACT: u8 = 7;
const COPY: u8 = 8;
const REMOVE: u8 = 9;

/// What a record says.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Record {
    Start { previous: u64 },
    Batch,
    Standing(Standing),
    Install(Snapshot),
    Entry(Entry),
    State(HardState),
    Compact(Compaction),
    Copy(Entry),
    Remove,
}

/// A record with what surrounds it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Framed {
    pub(super) group: GroupId,
    pub(super) last: bool,
    pub(super) record: Record,
}

const NOBODY: GroupId = GroupId([0; 16]);

/// Appends a record to `out`; `offset` is the place of `out`'s beginning in its segment. Answers the record's length.
pub(super) fn put(
    out: &mut Vec<u8>,
    segment: u64,
    offset: u64,
    group: GroupId,
    last: bool,
    record: &Record,
) -> u64 {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER]);
    out.push(kind(record));
    out.push(if last { LAST } else { 0 });
    out.extend_from_slice(&group.0);
    match record {
        Record::Start { previous } => {
            out.extend_from_slice(MAGIC);
            out.extend_from_slice(&VERSION.to_le_bytes());
            put_u64(out, *previous);
        }
        Record::Batch | Record::Remove => {}
        Record::Standing(standing) => out.push(match standing {
            Standing::Whole => 0,
            Standing::Joining => 1,
            Standing::Forgotten => 2,
        }),
        Record::Install(snapshot) => put_snapshot(out, snapshot),
        Record::Entry(entry) | Record::Copy(entry) => {
            put_u64(out, entry.index);
            put_u64(out, entry.term);
            out.push(match entry.get_entry_type() {
                EntryType::EntryNormal => 0,
                EntryType::EntryConfChange => 1,
                EntryType::EntryConfChangeV2 => 2,
            });
            out.extend_from_slice(&entry.data);
        }
        Record::State(state) => {
            put_u64(out, state.term);
            put_u64(out, state.vote);
            put_u64(out, state.commit);
        }
        Record::Compact(compaction) => {
            put_u64(out, compaction.keep_from);
            put_u64(out, compaction.before);
            put_snapshot(out, &compaction.snapshot);
        }
    }
    let length = (out.len() - start - HEADER) as u32;
    let sum = checksum(
        segment,
        offset + start as u64,
        length,
        &out[start + HEADER..],
    );
    out[start..start + 4].copy_from_slice(&sum.to_le_bytes());
    out[start + 4..start + HEADER].copy_from_slice(&length.to_le_bytes());
    (out.len() - start) as u64
}

pub(super) fn put_batch(out: &mut Vec<u8>, segment: u64, offset: u64) {
    put(out, segment, offset, NOBODY, true, &Record::Batch);
}

pub(super) fn put_start(out: &mut Vec<u8>, segment: u64, previous: u64) {
    put(out, segment, 0, NOBODY, true, &Record::Start { previous });
}

/// A snapshot in a file of its own: a record behind [`MAGIC`], at a place that no log has.
pub(crate) fn snapshot_file(snapshot: &Snapshot) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    put(
        &mut out,
        snapshot.index,
        0,
        NOBODY,
        true,
        &Record::Install(snapshot.clone()),
    );
    out
}

/// Understands such a file; the error says what is wrong with it.
pub(crate) fn read_snapshot_file(bytes: &[u8], index: u64) -> Result<Snapshot, &'static str> {
    let rest = bytes
        .strip_prefix(MAGIC)
        .ok_or("it does not begin like a snapshot")?;
    let (header, body) = rest.split_first_chunk::<HEADER>().ok_or("it ends early")?;
    if body_length(*header) != body.len() as u64 {
        return Err("it ends early");
    }
    if !intact(index, MAGIC.len() as u64, *header, body) {
        return Err("it does not match its checksum");
    }
    match decode(body)?.record {
        Record::Install(snapshot) if snapshot.index == index => Ok(snapshot),
        _ => Err("it contains something else"),
    }
}

fn kind(record: &Record) -> u8 {
    match record {
        Record::Start { .. } => START,
        Record::Batch => BATCH_KIND,
        Record::Standing(_) => STANDING,
        Record::Install(_) => INSTALL,
        Record::Entry(_) => ENTRY,
        Record::State(_) => STATE,
        Record::Compact(_) => COMPACT,
        Record::Copy(_) => COPY,
        Record::Remove => REMOVE,
    }
}

fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_snapshot(out: &mut Vec<u8>, snapshot: &Snapshot) {
    put_u64(out, snapshot.index);
    put_u64(out, snapshot.term);
    put_u64(out, snapshot.members.len() as u64);
    snapshot
        .members
        .iter()
        .for_each(|&member| put_u64(out, member));
    out.extend_from_slice(&snapshot.data);
}

/// The checksum of a record at its place.
fn checksum(segment: u64, offset: u64, length: u32, body: &[u8]) -> u32 {
    let mut place = [0; 20];
    place[..8].copy_from_slice(&segment.to_le_bytes());
    place[8..16].copy_from_slice(&offset.to_le_bytes());
    place[16..].copy_from_slice(&length.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c(&place), body)
}

/// The length of the body behind a header.
pub(super) fn body_length(header: [u8; HEADER]) -> u64 {
    u64::from(u32::from_le_bytes([
        header[4], header[5], header[6], header[7],
    ]))
}

/// Whether header and body belong together and to this place.
pub(super) fn intact(segment: u64, offset: u64, header: [u8; HEADER], body: &[u8]) -> bool {
    let sum = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
    sum == checksum(segment, offset, body.len() as u32, body)
}

/// Whether these bytes are a valid batch record at this place.
pub(super) fn is_batch(segment: u64, offset: u64, bytes: &[u8; BATCH]) -> bool {
    let (header, body) = bytes.split_at(HEADER);
    let Ok(header) = <[u8; HEADER]>::try_from(header) else {
        return false;
    };
    body[0] == BATCH_KIND
        && body_length(header) == PREFIX as u64
        && intact(segment, offset, header, body)
}

/// Understands a body whose checksum is right; the error says what it contains that no version of ours writes.
pub(super) fn decode(body: &[u8]) -> Result<Framed, &'static str> {
    let mut rest = body;
    let kind = take_u8(&mut rest)?;
    let flags = take_u8(&mut rest)?;
    let group = GroupId(take(&mut rest)?);
    if flags & !LAST != 0 {
        return Err("unknown flags");
    }
    let record = match kind {
        START => {
            if take::<8>(&mut rest)? != *MAGIC {
                return Err("another magic number");
            }
            if u32::from_le_bytes(take(&mut rest)?) != VERSION {
                return Err("a version that this program does not know");
            }
            Record::Start {
                previous: take_u64(&mut rest)?,
            }
        }
        BATCH_KIND => Record::Batch,
        STANDING => Record::Standing(match take_u8(&mut rest)? {
            0 => Standing::Whole,
            1 => Standing::Joining,
            2 => Standing::Forgotten,
            _ => return Err("an unknown standing"),
        }),
        INSTALL => Record::Install(take_snapshot(&mut rest)?),
        ENTRY => Record::Entry(take_entry(&mut rest)?),
        COPY => Record::Copy(take_entry(&mut rest)?),
        STATE => Record::State(HardState {
            term: take_number(&mut rest)?,
            vote: take_u64(&mut rest)?,
            commit: take_number(&mut rest)?,
            ..Default::default()
        }),
        COMPACT => Record::Compact(Compaction {
            keep_from: take_number(&mut rest)?,
            before: take_number(&mut rest)?,
            snapshot: take_snapshot(&mut rest)?,
        }),
        REMOVE => Record::Remove,
        _ => return Err("an unknown kind of record"),
    };
    if !rest.is_empty() {
        return Err("more bytes than its kind has");
    }
    Ok(Framed {
        group,
        last: flags & LAST != 0,
        record,
    })
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], &'static str> {
    let (bytes, tail) = rest
        .split_first_chunk::<N>()
        .ok_or("fewer bytes than its kind has")?;
    *rest = tail;
    Ok(*bytes)
}

fn take_u8(rest: &mut &[u8]) -> Result<u8, &'static str> {
    Ok(take::<1>(rest)?[0])
}

fn take_u64(rest: &mut &[u8]) -> Result<u64, &'static str> {
    Ok(u64::from_le_bytes(take(rest)?))
}

/// An index, a term or an id.
fn take_number(rest: &mut &[u8]) -> Result<u64, &'static str> {
    match take_u64(rest)? {
        number @ ..=MAX_NUMBER => Ok(number),
        _ => Err("a number that none can be"),
    }
}

fn take_entry(rest: &mut &[u8]) -> Result<Entry, &'static str> {
    let mut entry = Entry {
        index: take_number(rest)?,
        term: take_number(rest)?,
        ..Default::default()
    };
    if entry.index == 0 {
        return Err("an entry without an index");
    }
    entry.set_entry_type(match take_u8(rest)? {
        0 => EntryType::EntryNormal,
        1 => EntryType::EntryConfChange,
        2 => EntryType::EntryConfChangeV2,
        _ => return Err("an unknown kind of entry"),
    });
    entry.data = Bytes::copy_from_slice(std::mem::take(rest));
    Ok(entry)
}

fn take_snapshot(rest: &mut &[u8]) -> Result<Snapshot, &'static str> {
    let (index, term, count) = (take_number(rest)?, take_number(rest)?, take_u64(rest)?);
    if count > (rest.len() / 8) as u64 {
        return Err("more members than bytes");
    }
    let members = (0..count)
        .map(|_| take_u64(rest))
        .collect::<Result<_, _>>()?;
    Ok(Snapshot {
        index,
        term,
        members,
        data: Bytes::copy_from_slice(std::mem::take(rest)),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use proptest::prelude::*;

    use super::*;

    fn snapshots() -> impl Strategy<Value = Snapshot> {
        (
            0..=MAX_NUMBER,
            0..=MAX_NUMBER,
            any::<Vec<u64>>(),
            any::<Vec<u8>>(),
        )
            .prop_map(|(index, term, members, data)| Snapshot {
                index,
                term,
                members,
                data: data.into(),
            })
    }

    fn entries() -> impl Strategy<Value = Entry> {
        (
            1..=MAX_NUMBER,
            1..=MAX_NUMBER,
            any::<bool>(),
            any::<Vec<u8>>(),
        )
            .prop_map(|(index, term, change, data)| {
                let mut entry = Entry {
                    index,
                    term,
                    data: data.into(),
                    ..Default::default()
                };
                if change {
                    entry.set_entry_type(EntryType::EntryConfChange);
                }
                entry
            })
    }

    fn records() -> impl Strategy<Value = Record> {
        prop_oneof![
            any::<u64>().prop_map(|previous| Record::Start { previous }),
            Just(Record::Batch),
            Just(Record::Remove),
            prop_oneof![
                Just(Standing::Whole),
                Just(Standing::Joining),
                Just(Standing::Forgotten)
            ]
            .prop_map(Record::Standing),
            snapshots().prop_map(Record::Install),
            entries().prop_map(Record::Entry),
            entries().prop_map(Record::Copy),
            (0..=MAX_NUMBER, any::<u64>(), 0..=MAX_NUMBER).prop_map(|(term, vote, commit)| {
                Record::State(HardState {
                    term,
                    vote,
                    commit,
                    ..Default::default()
                })
            }),
            (0..=MAX_NUMBER, 0..=MAX_NUMBER, snapshots()).prop_map(
                |(keep_from, before, snapshot)| {
                    Record::Compact(Compaction {
                        snapshot,
                        keep_from,
                        before,
                    })
                }
            ),
        ]
    }

    proptest! {
        #[test]
        fn what_was_put_is_decoded_at_its_place_only(
            record in records(), group: [u8; 16], last: bool, segment: u64, offset in 0_u64..1 << 32
        ) {
            let mut bytes = Vec::new();
            put(&mut bytes, segment, offset, GroupId(group), last, &record);
            let (header, body) = bytes.split_first_chunk::<HEADER>().unwrap();
            prop_assert_eq!(body_length(*header), body.len() as u64);
            prop_assert!(intact(segment, offset, *header, body));
            prop_assert!(!intact(segment, offset + 1, *header, body));
            prop_assert!(!intact(segment ^ 1, offset, *header, body));
            prop_assert_eq!(decode(body).unwrap(), Framed { group: GroupId(group), last, record });
        }

        #[test]
        fn no_flipped_bit_goes_unnoticed(record in records(), at: prop::sample::Index, bit in 0_u8..8) {
            let mut bytes = Vec::new();
            put(&mut bytes, 7, 0, GroupId([1; 16]), true, &record);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            let (header, body) = bytes.split_first_chunk::<HEADER>().unwrap();
            prop_assert!(body_length(*header) != body.len() as u64 || !intact(7, 0, *header, body));
        }

        #[test]
        fn nonsense_is_refused_or_understood(body: Vec<u8>, kind in 0_u8..12) {
            let _ = decode(&body);
            let mut framed = vec![kind, 1];
            framed.extend_from_slice(&[0; 16]);
            framed.extend_from_slice(&body);
            if let Ok(framed) = decode(&framed) {
                let mut bytes = Vec::new();
                put(&mut bytes, 0, 0, framed.group, framed.last, &framed.record);
                prop_assert_eq!(decode(&bytes[HEADER..]).unwrap(), framed);
            }
        }
    }
}
