//! The log without its thread: writes are collected, made durable together, and only then entered on the shelf.
//!
//! Old segments go when nothing in them is needed any more. Groups that write nothing would hold them for ever:
//! when the log has grown well beyond what is alive in it, what is left in the oldest segment is written once more,
//! a little with each batch.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::record::{self, Record};
use super::recovery::{recover, segment_name};
use super::shelf::{self, Change, Place, Segment, Shelf};
use super::{Compaction, LogError, LogOptions, MAX_SEGMENT_BYTES, Recovered, Write};
use crate::GroupId;
use crate::disk::Disk;

/// Bytes written once more with a batch: at least this many, and no more than twice the batch beyond that.
const MOVE_BYTES: u64 = 64 << 10;

/// The log may be this many segments larger than twice what is alive in it.
const SLACK_SEGMENTS: u64 = 4;

pub(super) struct Journal {
    disk: Arc<dyn Disk>,
    options: LogOptions,
    shelf: Arc<Mutex<Shelf>>,
    /// The segment that is written, and its length.
    head: u64,
    length: u64,
    queue: Vec<Queued>,
    queued_bytes: u64,
    /// What is left to be moved out of the oldest segment.
    moving: Vec<(GroupId, Item)>,
    failure: Arc<OnceLock<LogError>>,
    /// Batches that became durable.
    syncs: Arc<AtomicU64>,
}

/// A group and what it writes; nothing: it is removed.
type Queued = (GroupId, Option<Write>);

#[derive(Clone, Copy)]
enum Item {
    Standing,
    State,
    Snapshot,
    Entry(u64),
}

/// Records on their way to the disk.
struct Batch {
    segment: u64,
    offset: u64,
    bytes: Vec<u8>,
    changes: Vec<(GroupId, Place, Option<Change>)>,
}

impl Batch {
    fn put(&mut self, group: GroupId, last: bool, record: &Record, change: Option<Change>) {
        let offset = self.offset + self.bytes.len() as u64;
        let length = record::put(
            &mut self.bytes,
            self.segment,
            self.offset,
            group,
            last,
            record,
        );
        let place = Place {
            segment: self.segment,
            offset: offset as u32,
            length: length as u32,
        };
        self.changes.push((group, place, change));
    }

    fn write(&mut self, group: GroupId, write: Write) {
        let mut records = Vec::with_capacity(write.entries.len() + 3);
        if let Some(standing) = write.standing {
            records.push((Record::Standing(standing), Change::Standing(standing)));
        }
        if let Some(snapshot) = write.install {
            let change = Change::Install {
                index: snapshot.index,
                term: snapshot.term,
            };
            records.push((Record::Install(snapshot), change));
        }
        for entry in write.entries {
            let change = Change::Entry {
                index: entry.index,
                term: entry.term,
            };
            records.push((Record::Entry(entry), change));
        }
        if let Some(state) = write.hard_state {
            records.push((Record::State(state.clone()), Change::State(state)));
        }
        if let Some(compaction) = write.compact {
            let change = Change::Compact {
                keep_from: compaction.keep_from,
                before: compaction.before,
            };
            records.push((Record::Compact(compaction), change));
        }
        let count = records.len();
        for (at, (record, change)) in records.into_iter().enumerate() {
            self.put(group, at + 1 == count, &record, Some(change));
        }
    }
}

impl Journal {
    pub(super) fn open(
        disk: Arc<dyn Disk>,
        options: LogOptions,
    ) -> Result<(Self, Vec<Recovered>), LogError> {
        let options = LogOptions {
            segment_bytes: options.segment_bytes.clamp(1, MAX_SEGMENT_BYTES),
        };
        let (shelf, recovered) = recover(&*disk)?;
        let newest = shelf
            .segments
            .last_key_value()
            .map(|(&number, segment)| (number, segment.length));
        let mut journal = Self {
            disk,
            options,
            shelf: Arc::new(Mutex::new(shelf)),
            head: 0,
            length: 0,
            queue: Vec::new(),
            queued_bytes: 0,
            moving: Vec::new(),
            failure: Arc::default(),
            syncs: Arc::default(),
        };
        match newest {
            Some((number, length)) => (journal.head, journal.length) = (number, length),
            None => journal.begin(1, 0)?,
        }
        Ok((journal, recovered))
    }

    pub(super) fn shelf(&self) -> Arc<Mutex<Shelf>> {
        Arc::clone(&self.shelf)
    }

    pub(super) fn syncs(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.syncs)
    }

    /// Why nothing can be written any more, once that is so.
    pub(super) fn failure(&self) -> Arc<OnceLock<LogError>> {
        Arc::clone(&self.failure)
    }

    pub(super) fn append(&mut self, group: GroupId, write: Write) {
        self.queued_bytes += write.bytes();
        self.queue.push((group, Some(write)));
    }

    pub(super) fn remove(&mut self, group: GroupId) {
        self.queue.push((group, None));
    }

    /// Bytes that the next flush will write, about.
    pub(super) fn queued_bytes(&self) -> u64 {
        self.queued_bytes
    }

    /// Makes durable what was collected, all of it or, after an error, nothing more ever.
    pub(super) fn flush(&mut self) -> Result<(), LogError> {
        let queue = std::mem::take(&mut self.queue);
        let queued = std::mem::take(&mut self.queued_bytes);
        if let Some(failure) = self.failure.get() {
            return Err(failure.clone());
        }
        if queue.iter().all(|(_, write)| {
            write
                .as_ref()
                .is_some_and(|write| *write == Write::default())
        }) {
            return Ok(());
        }
        let result = self.batch(queue, queued).and_then(|()| self.clean());
        if let Err(failure) = &result {
            tracing::error!(
                error = failure as &dyn std::error::Error,
                "the log cannot be written any more: every group that uses it stops; free or replace the disk and \
                 restart"
            );
            // It fails once.
            let _ = self.failure.set(failure.clone());
        }
        result
    }

    fn batch(&mut self, queue: Vec<Queued>, queued: u64) -> Result<(), LogError> {
        if self.length >= self.options.segment_bytes {
            self.begin(self.head + 1, self.length)?;
        }
        let mut batch = Batch {
            segment: self.head,
            offset: self.length,
            bytes: Vec::new(),
            changes: Vec::new(),
        };
        record::put_batch(&mut batch.bytes, self.head, self.length);
        // First what is moved: it was chosen by what is durable now, and may be replaced by what follows.
        self.move_some(&mut batch, MOVE_BYTES.max(2 * queued))?;
        let mut known: HashMap<GroupId, bool> = HashMap::new();
        for (group, write) in queue {
            match write {
                Some(write) => {
                    let known = known
                        .entry(group)
                        .or_insert_with(|| self.lock().groups.contains_key(&group));
                    *known |= write.standing.is_some();
                    // What a group still wanted to say when it was removed would be a group without a beginning.
                    if *known {
                        batch.write(group, write);
                    }
                }
                None => {
                    known.insert(group, false);
                    batch.put(group, true, &Record::Remove, None);
                }
            }
        }
        let (file, name) = {
            let shelf = self.lock();
            let head = shelf
                .segments
                .get(&self.head)
                .expect("the head is a segment");
            (Arc::clone(&head.file), head.name.clone())
        };
        let end = batch.offset + batch.bytes.len() as u64;
        if u32::try_from(end).is_err() {
            let error =
                std::io::Error::other("more is to be written at once than a segment can hold");
            return Err(LogError::io("write", self.disk.locate(&name), error));
        }
        file.write_at(batch.offset, &batch.bytes)
            .map_err(|error| LogError::io("write", self.disk.locate(&name), error))?;
        // Not tried again: after a failure nobody knows which pages the system has given up.
        file.sync()
            .map_err(|error| LogError::io("sync", self.disk.locate(&name), error))?;
        self.syncs.fetch_add(1, Ordering::Relaxed);
        self.length = end;
        let mut shelf = self.lock();
        if let Some(head) = shelf.segments.get_mut(&self.head) {
            head.length = end;
        }
        for (group, place, change) in batch.changes {
            match change {
                Some(change) => shelf.enter(group, place, change),
                None => shelf.remove(group),
            }
        }
        Ok(())
    }

    /// Begins a segment.
    fn begin(&mut self, number: u64, previous: u64) -> Result<(), LogError> {
        let name = segment_name(number);
        let io = |operation| {
            let file = self.disk.locate(&name);
            move |error| LogError::io(operation, file, error)
        };
        let mut bytes = Vec::new();
        record::put_start(&mut bytes, number, previous);
        let file = self.disk.create(&name).map_err(io("create"))?;
        file.write_at(0, &bytes).map_err(io("write"))?;
        file.sync().map_err(io("sync"))?;
        self.disk.sync().map_err(io("sync"))?;
        let length = bytes.len() as u64;
        let segment = Segment {
            file,
            name,
            length,
            live: 0,
        };
        self.lock().segments.insert(number, segment);
        (self.head, self.length) = (number, length);
        Ok(())
    }

    /// Lets old segments go, and decides whether what holds the oldest one has to move.
    fn clean(&mut self) -> Result<(), LogError> {
        loop {
            let name = {
                let shelf = self.lock();
                match shelf.segments.first_key_value() {
                    Some((&number, oldest)) if number != self.head && oldest.live == 0 => {
                        oldest.name.clone()
                    }
                    _ => break,
                }
            };
            // One after the other and in order: a gap between segments would look like a loss.
            let io = |operation| {
                let file = self.disk.locate(&name);
                move |error| LogError::io(operation, file, error)
            };
            self.disk.remove(&name).map_err(io("remove"))?;
            self.disk.sync().map_err(io("sync"))?;
            self.lock().segments.pop_first();
            self.moving.clear();
        }
        if self.moving.is_empty() {
            self.moving = self.pinned();
        }
        Ok(())
    }

    /// What holds the oldest segment, if the log has grown too much.
    fn pinned(&self) -> Vec<(GroupId, Item)> {
        let shelf = self.lock();
        let (total, live) = shelf
            .segments
            .values()
            .fold((0, 0), |(total, live), segment| {
                (total + segment.length, live + segment.live)
            });
        let Some((&oldest, _)) = shelf.segments.first_key_value() else {
            return Vec::new();
        };
        if oldest == self.head || total <= 2 * live + SLACK_SEGMENTS * self.options.segment_bytes {
            return Vec::new();
        }
        let mut items = Vec::new();
        for (&group, index) in &shelf.groups {
            let there = |place: Option<Place>| place.is_some_and(|place| place.segment == oldest);
            items.extend(there(index.standing_at).then_some((group, Item::Standing)));
            items.extend(there(index.state_at).then_some((group, Item::State)));
            items.extend(there(index.snapshot_at).then_some((group, Item::Snapshot)));
            for (slot, at) in index.entries.iter().zip(index.first..) {
                items.extend(there(Some(slot.place)).then_some((group, Item::Entry(at))));
            }
        }
        // Taken from the end; the order of a hash map must not decide anything.
        items.sort_by_key(|&(group, item)| {
            std::cmp::Reverse((
                group,
                match item {
                    Item::Standing => 0,
                    Item::State => 1,
                    Item::Snapshot => 2,
                    Item::Entry(at) => at + 2,
                },
            ))
        });
        items
    }

    fn move_some(&mut self, batch: &mut Batch, budget: u64) -> Result<(), LogError> {
        let start = batch.bytes.len() as u64;
        while batch.bytes.len() as u64 - start < budget
            && let Some((group, item)) = self.moving.pop()
        {
            let shelf = self.lock();
            let Some((&oldest, segment)) = shelf.segments.first_key_value() else {
                break;
            };
            let Some(index) = shelf.groups.get(&group) else {
                continue;
            };
            let place = match item {
                Item::Standing => index.standing_at,
                Item::State => index.state_at,
                Item::Snapshot => index.snapshot_at,
                Item::Entry(at) => index.slot(at).map(|slot| slot.place),
            };
            // It may have been replaced in the meantime.
            let Some(place) = place.filter(|place| place.segment == oldest) else {
                continue;
            };
            let (standing, state) = (index.standing, index.state.clone());
            let (keep_from, before) = (index.first, index.before);
            let (file, name) = (Arc::clone(&segment.file), self.disk.locate(&segment.name));
            drop(shelf);
            let (record, change) = match item {
                Item::Standing => (Record::Standing(standing), Change::Standing(standing)),
                Item::State => (Record::State(state.clone()), Change::State(state)),
                Item::Snapshot => match shelf::read(&*file, &name, place, group)? {
                    Record::Install(snapshot) | Record::Compact(Compaction { snapshot, .. }) => (
                        Record::Compact(Compaction {
                            snapshot,
                            keep_from,
                            before,
                        }),
                        Change::Compact { keep_from, before },
                    ),
                    _ => {
                        return Err(LogError::corrupt(
                            name,
                            place.offset.into(),
                            "a snapshot was expected",
                        ));
                    }
                },
                Item::Entry(at) => match shelf::entry(shelf::read(&*file, &name, place, group)?) {
                    Some(entry) if entry.index == at => {
                        (Record::Copy(entry), Change::Copy { index: at })
                    }
                    _ => {
                        return Err(LogError::corrupt(
                            name,
                            place.offset.into(),
                            "another entry was expected",
                        ));
                    }
                },
            };
            batch.put(group, true, &record, Some(change));
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
