//! Reading the log from the disk.
//!
//! Only what was not yet synced can be torn, and that is the end of the last segment: it is cut. A damaged record
//! with a valid batch record somewhere behind it was durable once: then the disk has lost what it confirmed, and
//! nothing is opened. So is a segment that is missing between others or shorter than its successor says.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::record::{self, BATCH, Framed, HEADER, MAX_BODY, Record};
use super::shelf::{GroupIndex, Place, Segment, Shelf, Slot};
use super::{LogError, Recovered, Standing};
use crate::disk::{Disk, File};
use crate::group::change_in;
use crate::{GroupId, Membership, Snapshot};

/// How much is read from a segment at once; a longer record is read alone.
const WINDOW: u64 = 1 << 20;

/// The name of a segment's file.
pub(super) fn segment_name(number: u64) -> String {
    format!("{number:016x}.segment")
}

fn segment_number(name: &str) -> Option<u64> {
    let number = u64::from_str_radix(name.strip_suffix(".segment")?, 16).ok()?;
    (segment_name(number) == name).then_some(number)
}

/// Reads everything. Answers what the groups' places are and what the groups were.
pub(super) fn recover(disk: &dyn Disk) -> Result<(Shelf, Vec<Recovered>), LogError> {
    let mut numbers: Vec<u64> = disk
        .list()
        .map_err(|error| LogError::io("list", disk.locate(""), error))?
        .iter()
        .filter_map(|name| segment_number(name))
        .collect();
    numbers.sort_unstable();
    let mut shelf = Shelf::default();
    let mut builders = HashMap::<GroupId, Builder>::new();
    let mut previous: Option<(u64, u64)> = None;
    for (at, &number) in numbers.iter().enumerate() {
        let newest = at + 1 == numbers.len();
        let name = segment_name(number);
        let io = |operation| {
            let file = disk.locate(&name);
            move |error| LogError::io(operation, file, error)
        };
        if let Some((before, _)) = previous
            && number != before + 1
        {
            return Err(LogError::corrupt(
                disk.locate(&segment_name(before + 1)),
                0,
                "the segment is missing",
            ));
        }
        let file = disk.open(&name).map_err(io("open"))?;
        let length = file.length().map_err(io("measure"))?;
        let mut reader = Reader {
            file: &*file,
            length,
            window: Vec::new(),
            start: 0,
        };
        let scanned = scan(
            &mut reader,
            number,
            previous.map(|(_, length)| length),
            &mut builders,
        )
        .map_err(|fault| fault.into_error(disk.locate(&name)))?;
        if let Some(damage) = scanned.damage {
            if !newest
                || reader
                    .batch_behind(number, scanned.valid)
                    .map_err(io("read"))?
            {
                return Err(LogError::corrupt(
                    disk.locate(&name),
                    scanned.damaged,
                    damage,
                ));
            }
            if scanned.valid > 0 && length > scanned.valid {
                tracing::warn!(
                    file = disk.locate(&name),
                    offset = scanned.valid,
                    "the last {} bytes of the log were not written completely and are cut: {damage}",
                    length - scanned.valid
                );
            }
        }
        if scanned.valid == 0 && !newest {
            return Err(LogError::corrupt(
                disk.locate(&name),
                0,
                "the segment is empty",
            ));
        }
        if scanned.valid == 0 {
            // The segment was being created; nothing was ever promised with it.
            drop(file);
            disk.remove(&name).map_err(io("remove"))?;
            disk.sync().map_err(io("sync"))?;
            break;
        }
        if newest {
            settle(&*file, &scanned, length).map_err(io("repair"))?;
        }
        previous = Some((number, scanned.valid));
        shelf.segments.insert(
            number,
            Segment {
                file: Arc::clone(&file),
                name,
                length: scanned.valid,
                live: 0,
            },
        );
    }
    // The newest segment's name may have been seen before it was durable.
    disk.sync()
        .map_err(|error| LogError::io("sync", disk.locate(""), error))?;
    let mut recovered = Vec::with_capacity(builders.len());
    for (group, builder) in builders {
        let (index, found) = builder.finish(group, &shelf)?;
        index.places().for_each(|place| shelf.hold(place));
        shelf.groups.insert(group, index);
        recovered.push(found);
    }
    recovered.sort_by_key(|found| found.group);
    Ok((shelf, recovered))
}

/// Cuts what is torn, and makes durable what was found: a system that failed to write a page may have kept it in
/// memory, from where it was read just now. Whatever the last batch contains is therefore written once more.
fn settle(file: &dyn File, scanned: &Scanned, length: u64) -> std::io::Result<()> {
    if length > scanned.valid {
        file.truncate(scanned.valid)?;
    }
    let mut bytes = vec![0; (scanned.valid - scanned.batch) as usize];
    file.read_at(scanned.batch, &mut bytes)?;
    file.write_at(scanned.batch, &bytes)?;
    file.sync()
}

/// What a segment was found to be.
struct Scanned {
    /// Up to here it is made of complete writes.
    valid: u64,
    /// Where the last batch begins.
    batch: u64,
    /// Where and why reading stopped before the end.
    damaged: u64,
    damage: Option<&'static str>,
}

enum Fault {
    Io(std::io::Error),
    Corrupt(u64, &'static str),
}

impl From<std::io::Error> for Fault {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

impl Fault {
    fn into_error(self, file: String) -> LogError {
        match self {
            Self::Io(error) => LogError::io("read", file, error),
            Self::Corrupt(offset, reason) => LogError::corrupt(file, offset, reason),
        }
    }
}

fn scan(
    reader: &mut Reader<'_>,
    segment: u64,
    previous: Option<u64>,
    builders: &mut HashMap<GroupId, Builder>,
) -> Result<Scanned, Fault> {
    let mut scanned = Scanned {
        valid: 0,
        batch: 0,
        damaged: 0,
        damage: None,
    };
    let mut offset = 0;
    let mut pending = Vec::new();
    while offset < reader.length {
        let framed = match reader.record(segment, offset)? {
            Ok(framed) => framed,
            Err(damage) => {
                scanned.damaged = offset;
                scanned.damage = Some(damage);
                return Ok(scanned);
            }
        };
        let (body, length) = framed;
        // The checksum is right: these bytes are what somebody wrote here.
        let framed = record::decode(body).map_err(|reason| Fault::Corrupt(offset, reason))?;
        match (&framed.record, offset) {
            (Record::Start { previous: expected }, 0) => {
                if previous.is_some_and(|length| length != *expected) {
                    return Err(Fault::Corrupt(
                        0,
                        "the segment before it is shorter than it was",
                    ));
                }
            }
            (Record::Start { .. }, _) | (_, 0) => {
                return Err(Fault::Corrupt(offset, "a start out of place"));
            }
            (Record::Batch, _) if pending.is_empty() => scanned.batch = offset,
            (Record::Batch, _) => {
                return Err(Fault::Corrupt(offset, "the write before it has no end"));
            }
            _ => {
                let last = framed.last;
                pending.push((
                    Place {
                        segment,
                        offset: offset as u32,
                        length: length as u32,
                    },
                    framed,
                ));
                if !last {
                    offset += length;
                    continue;
                }
                for (place, framed) in pending.drain(..) {
                    apply(builders, place, framed)
                        .map_err(|reason| Fault::Corrupt(offset, reason))?;
                }
            }
        }
        offset += length;
        scanned.valid = offset;
    }
    if scanned.valid < offset {
        scanned.damaged = scanned.valid;
        scanned.damage = Some("its last record is missing");
    }
    Ok(scanned)
}

fn apply(
    builders: &mut HashMap<GroupId, Builder>,
    place: Place,
    framed: Framed,
) -> Result<(), &'static str> {
    if framed.record == Record::Remove {
        builders.remove(&framed.group);
        return Ok(());
    }
    let builder = builders.entry(framed.group).or_default();
    match framed.record {
        Record::Standing(standing) => builder.standing = Some((standing, place)),
        Record::State(state) => builder.state = Some((state, place)),
        Record::Install(snapshot) => {
            builder.entries.clear();
            builder.first = snapshot.index + 1;
            builder.before = snapshot.term;
            builder.snapshot = Some((snapshot, place));
        }
        Record::Compact(compaction) => {
            builder.entries = builder.entries.split_off(&compaction.keep_from);
            builder.first = compaction.keep_from;
            builder.before = compaction.before;
            builder.snapshot = Some((compaction.snapshot, place));
        }
        Record::Entry(entry) => {
            builder.entries.split_off(&entry.index);
            builder.entries.insert(
                entry.index,
                (
                    Slot {
                        place,
                        term: entry.term,
                    },
                    change_in(&entry)?,
                ),
            );
        }
        Record::Copy(entry) => {
            let found = builder.entries.get(&entry.index);
            if found.is_none_or(|(slot, _)| slot.term == entry.term) {
                builder.entries.insert(
                    entry.index,
                    (
                        Slot {
                            place,
                            term: entry.term,
                        },
                        change_in(&entry)?,
                    ),
                );
            }
        }
        Record::Start { .. } | Record::Batch | Record::Remove => {}
    }
    Ok(())
}

/// A group as far as it has been read.
///
/// The oldest segments are removed when nothing in them is alive any more; what replaced it comes later. Gaps are
/// therefore normal on the way and an error at the end.
struct Builder {
    standing: Option<(Standing, Place)>,
    state: Option<(raft::eraftpb::HardState, Place)>,
    snapshot: Option<(Snapshot, Place)>,
    first: u64,
    before: u64,
    entries: BTreeMap<u64, (Slot, Option<Membership>)>,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            standing: None,
            state: None,
            snapshot: None,
            first: 1,
            before: 0,
            entries: BTreeMap::new(),
        }
    }
}

impl Builder {
    fn finish(self, group: GroupId, shelf: &Shelf) -> Result<(GroupIndex, Recovered), LogError> {
        let inconsistent = |what| LogError::Inconsistent {
            group,
            what,
            segments: shelf.segments.len(),
        };
        let (standing, standing_at) = self
            .standing
            .ok_or_else(|| inconsistent("its beginning is missing"))?;
        let mut index = GroupIndex {
            standing,
            standing_at: Some(standing_at),
            ..GroupIndex::new()
        };
        if let Some((state, place)) = &self.state {
            index.state = state.clone();
            index.state_at = Some(*place);
        }
        (index.first, index.before) = (self.first, self.before);
        index.snapshot_at = self.snapshot.as_ref().map(|(_, place)| *place);
        let snapshot = self.snapshot.map(|(snapshot, _)| snapshot);
        let base = snapshot.as_ref().map_or(0, |snapshot| snapshot.index);
        if self.first == 0 || self.first > base + 1 {
            return Err(inconsistent("entries are missing behind its snapshot"));
        }
        let mut found = Recovered {
            group,
            standing,
            hard_state: index.state.clone(),
            first: self.first,
            before: self.before,
            last: self.first - 1,
            terms: Default::default(),
            changes: Vec::new(),
            snapshot,
        };
        for (&at, (slot, change)) in self.entries.range(self.first..) {
            if at != found.last + 1 {
                return Err(inconsistent("entries are missing between others"));
            }
            found.last = at;
            if found
                .terms
                .back()
                .is_none_or(|&(_, term)| term != slot.term)
            {
                found.terms.push_back((at, slot.term));
            }
            index.entries.push_back(*slot);
            if let Some(change) = change
                && at > base
            {
                found.changes.push((at, *change));
            }
        }
        if found.last < base {
            return Err(inconsistent("it ends before its snapshot"));
        }
        Ok((index, found))
    }
}

/// Reads a segment through a window.
struct Reader<'a> {
    file: &'a dyn File,
    length: u64,
    window: Vec<u8>,
    start: u64,
}

impl Reader<'_> {
    /// The bytes of a place inside the file.
    fn bytes(&mut self, offset: u64, length: u64) -> std::io::Result<&[u8]> {
        let end = self.start + self.window.len() as u64;
        if offset < self.start || offset + length > end {
            let take = length.max(WINDOW).min(self.length - offset);
            self.window.resize(take as usize, 0);
            self.file.read_at(offset, &mut self.window)?;
            self.window.shrink_to(WINDOW as usize);
            self.start = offset;
        }
        let from = (offset - self.start) as usize;
        Ok(&self.window[from..from + length as usize])
    }

    /// The body of the record at `offset` and the record's length, or what is wrong with it.
    #[allow(clippy::type_complexity)]
    fn record(
        &mut self,
        segment: u64,
        offset: u64,
    ) -> std::io::Result<Result<(&[u8], u64), &'static str>> {
        let left = self.length - offset;
        if left < HEADER as u64 {
            return Ok(Err("a record ends early"));
        }
        let mut header = [0; HEADER];
        header.copy_from_slice(self.bytes(offset, HEADER as u64)?);
        let length = record::body_length(header);
        if length == 0 || length > MAX_BODY {
            return Ok(Err("a record has an impossible length"));
        }
        if left - (HEADER as u64) < length {
            return Ok(Err("a record ends early"));
        }
        let whole = self.bytes(offset, HEADER as u64 + length)?;
        let body = &whole[HEADER..];
        Ok(if record::intact(segment, offset, header, body) {
            Ok((body, HEADER as u64 + length))
        } else {
            Err("a record does not match its checksum")
        })
    }

    /// Whether a valid batch record stands anywhere behind `offset`.
    fn batch_behind(&mut self, segment: u64, offset: u64) -> std::io::Result<bool> {
        let mut at = offset;
        while at + BATCH as u64 <= self.length {
            let take = (self.length - at).min(WINDOW);
            let bytes = self.bytes(at, take)?;
            let found = bytes.windows(BATCH).zip(at..).any(|(candidate, at)| {
                at > offset
                    && candidate
                        .first_chunk()
                        .is_some_and(|batch| record::is_batch(segment, at, batch))
            });
            if found {
                return Ok(true);
            }
            at += take - BATCH as u64 + 1;
        }
        Ok(false)
    }
}
