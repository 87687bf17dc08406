//! Where everything stands that is durable and still needed.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use raft::eraftpb::{Entry, HardState};

use super::record::{self, HEADER, Record};
use super::recovery::segment_name;
use super::{LogError, Standing};
use crate::disk::File;
use crate::{GroupId, Snapshot};

/// The place of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) segment: u64,
    pub(super) offset: u32,
    pub(super) length: u32,
}

/// An entry's place and term.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub(super) place: Place,
    pub(super) term: u64,
}

/// One file of the log.
pub(super) struct Segment {
    pub(super) file: Arc<dyn File>,
    pub(super) name: String,
    pub(super) length: u64,
    /// Bytes of records in it that are still needed.
    pub(super) live: u64,
}

/// What is needed of one group.
pub(super) struct GroupIndex {
    pub(super) standing: Standing,
    pub(super) standing_at: Option<Place>,
    pub(super) state: HardState,
    pub(super) state_at: Option<Place>,
    pub(super) snapshot_at: Option<Place>,
    pub(super) first: u64,
    pub(super) before: u64,
    /// The entries from `first` on.
    pub(super) entries: VecDeque<Slot>,
}

impl GroupIndex {
    pub(super) fn new() -> Self {
        Self {
            standing: Standing::Whole,
            standing_at: None,
            state: HardState::default(),
            state_at: None,
            snapshot_at: None,
            first: 1,
            before: 0,
            entries: VecDeque::new(),
        }
    }

    pub(super) fn places(&self) -> impl Iterator<Item = Place> + '_ {
        let single = [self.standing_at, self.state_at, self.snapshot_at];
        single
            .into_iter()
            .flatten()
            .chain(self.entries.iter().map(|slot| slot.place))
    }

    pub(super) fn slot(&self, index: u64) -> Option<Slot> {
        self.entries
            .get(usize::try_from(index.checked_sub(self.first)?).ok()?)
            .copied()
    }
}

/// An entry's index, its place, and the file for it, which stays readable even if the segment goes.
pub(super) type Found = (u64, Place, Arc<dyn File>);

/// All segments and all groups.
#[derive(Default)]
pub(super) struct Shelf {
    pub(super) segments: BTreeMap<u64, Segment>,
    pub(super) groups: HashMap<GroupId, GroupIndex>,
}

impl Shelf {
    pub(super) fn hold(&mut self, place: Place) {
        if let Some(segment) = self.segments.get_mut(&place.segment) {
            segment.live += u64::from(place.length);
        }
    }

    pub(super) fn release(&mut self, place: Place) {
        if let Some(segment) = self.segments.get_mut(&place.segment) {
            segment.live -= u64::from(place.length);
        }
    }

    pub(super) fn remove(&mut self, group: GroupId) {
        if let Some(index) = self.groups.remove(&group) {
            index.places().for_each(|place| self.release(place));
        }
    }

    /// A record that was made durable takes its place; what it replaces loses it.
    pub(super) fn enter(&mut self, group: GroupId, place: Place, change: Change) {
        let mut index = self.groups.remove(&group).unwrap_or_else(GroupIndex::new);
        let mut released = Vec::new();
        match change {
            Change::Standing(standing) => {
                index.standing = standing;
                released.extend(index.standing_at.replace(place));
            }
            Change::State(state) => {
                index.state = state;
                released.extend(index.state_at.replace(place));
            }
            Change::Install { index: last, term } => {
                released.extend(index.entries.drain(..).map(|slot| slot.place));
                released.extend(index.snapshot_at.replace(place));
                (index.first, index.before) = (last + 1, term);
            }
            Change::Compact { keep_from, before } => {
                while index.first < keep_from {
                    released.extend(index.entries.pop_front().map(|slot| slot.place));
                    index.first += 1;
                }
                index.before = before;
                released.extend(index.snapshot_at.replace(place));
            }
            Change::Entry { index: at, term } => {
                let keep = at.saturating_sub(index.first) as usize;
                if keep < index.entries.len() {
                    released.extend(index.entries.drain(keep..).map(|slot| slot.place));
                }
                index.entries.push_back(Slot { place, term });
            }
            Change::Copy { index: at } => {
                let slot = at
                    .checked_sub(index.first)
                    .and_then(|at| index.entries.get_mut(at as usize));
                if let Some(slot) = slot {
                    released.push(std::mem::replace(&mut slot.place, place));
                }
            }
        }
        self.groups.insert(group, index);
        self.hold(place);
        released.into_iter().for_each(|place| self.release(place));
    }

    /// What is needed to go on with a group without the shelf.
    pub(super) fn copy(&self, group: GroupId) -> Option<Shelved> {
        let index = self.groups.get(&group)?;
        let snapshot = index.snapshot_at.and_then(|place| {
            let segment = self.segments.get(&place.segment)?;
            Some((place, Arc::clone(&segment.file)))
        });
        Some(Shelved {
            standing: index.standing,
            state: index.state.clone(),
            first: index.first,
            before: index.before,
            terms: index.entries.iter().map(|slot| slot.term).collect(),
            snapshot,
        })
    }

    /// Where the entries of `range` stand, as many as fit into `max_bytes` but at least one.
    pub(super) fn find(
        &self,
        group: GroupId,
        range: Range<u64>,
        max_bytes: u64,
    ) -> Result<Vec<Found>, LogError> {
        let mut found = Vec::new();
        let mut bytes = 0;
        let index = self.groups.get(&group);
        for at in range {
            let missing = LogError::Missing { group, index: at };
            let slot = index
                .and_then(|index| index.slot(at))
                .ok_or_else(|| missing.clone())?;
            bytes += u64::from(slot.place.length);
            if bytes > max_bytes && !found.is_empty() {
                break;
            }
            let segment = self.segments.get(&slot.place.segment).ok_or(missing)?;
            found.push((at, slot.place, Arc::clone(&segment.file)));
        }
        Ok(found)
    }
}

/// A group as it stood on the shelf.
pub(super) struct Shelved {
    pub(super) standing: Standing,
    pub(super) state: HardState,
    pub(super) first: u64,
    pub(super) before: u64,
    /// The terms of the entries from `first` on.
    pub(super) terms: Vec<u64>,
    snapshot: Option<(Place, Arc<dyn File>)>,
}

impl Shelved {
    /// The group's snapshot, read back.
    pub(super) fn snapshot(&self, group: GroupId) -> Result<Option<Snapshot>, LogError> {
        let Some((place, file)) = &self.snapshot else {
            return Ok(None);
        };
        let name = segment_name(place.segment);
        match read(&**file, &name, *place, group)? {
            Record::Install(snapshot) => Ok(Some(snapshot)),
            Record::Compact(compaction) => Ok(Some(compaction.snapshot)),
            _ => Err(LogError::corrupt(
                name,
                place.offset.into(),
                "a snapshot was expected",
            )),
        }
    }
}

/// What a record changes in the index.
pub(super) enum Change {
    Standing(Standing),
    State(HardState),
    Install { index: u64, term: u64 },
    Compact { keep_from: u64, before: u64 },
    Entry { index: u64, term: u64 },
    Copy { index: u64 },
}

/// Reads a record back and checks that it is what was written there.
pub(super) fn read(
    file: &dyn File,
    name: &str,
    place: Place,
    group: GroupId,
) -> Result<Record, LogError> {
    let offset = u64::from(place.offset);
    let mut bytes = vec![0; place.length as usize];
    file.read_at(offset, &mut bytes)
        .map_err(|error| LogError::io("read", name.to_owned(), error))?;
    let damaged = |reason| LogError::corrupt(name.to_owned(), offset, reason);
    let (header, body) = bytes
        .split_first_chunk::<HEADER>()
        .ok_or_else(|| damaged("a record ends early"))?;
    if !record::intact(place.segment, offset, *header, body) {
        return Err(damaged("a record does not match its checksum"));
    }
    let framed = record::decode(body).map_err(damaged)?;
    if framed.group != group {
        return Err(damaged("a record belongs to another group"));
    }
    Ok(framed.record)
}

/// The entry in a record.
pub(super) fn entry(record: Record) -> Option<Entry> {
    match record {
        Record::Entry(entry) | Record::Copy(entry) => Some(entry),
        _ => None,
    }
}
