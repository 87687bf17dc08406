//! What the raft library sees of a group's log: bounds and terms of all of it, the entries of its tail, and older
//! entries through [`Entries`].

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::Arc;

use raft::eraftpb::{self, ConfState, Entry, HardState};
use raft::{GetEntriesContext, RaftState, StorageError};

use super::Snapshot;
use crate::GroupId;
use crate::log::{Entries, LogError, Recovered};

/// Bytes of durable entries that a group keeps in memory for followers and for itself. Entries that are not yet
/// durable are kept whatever their size; what limits them is the number of proposals in flight.
pub const MAX_CACHED_BYTES: u64 = 1 << 20;

/// What an entry costs beside its data.
const ENTRY_OVERHEAD: u64 = 64;

pub(super) struct Store {
    group: GroupId,
    entries: Arc<dyn Entries>,
    hard_state: HardState,
    members: Vec<u64>,
    snapshot: Option<Snapshot>,
    /// The first entry there is; the log begins behind `before`.
    first: u64,
    /// The term of the entry before the first one.
    before: u64,
    last: u64,
    /// Where each term begins: index and term, ascending in both.
    terms: VecDeque<(u64, u64)>,
    /// The newest entries without a gap up to `last`.
    tail: VecDeque<Entry>,
    tail_bytes: u64,
    /// Entries up to here can be read through `entries`.
    durable: u64,
    failure: RefCell<Option<LogError>>,
}

impl Store {
    pub(super) fn empty(group: GroupId, entries: Arc<dyn Entries>) -> Self {
        Self {
            group,
            entries,
            hard_state: HardState::default(),
            members: Vec::new(),
            snapshot: None,
            first: 1,
            before: 0,
            last: 0,
            terms: VecDeque::new(),
            tail: VecDeque::new(),
            tail_bytes: 0,
            durable: 0,
            failure: RefCell::new(None),
        }
    }

    pub(super) fn recovered(
        recovered: Recovered,
        members: Vec<u64>,
        entries: Arc<dyn Entries>,
    ) -> Self {
        Self {
            hard_state: recovered.hard_state,
            members,
            snapshot: recovered.snapshot,
            first: recovered.first,
            before: recovered.before,
            last: recovered.last,
            terms: recovered.terms,
            durable: recovered.last,
            ..Self::empty(recovered.group, entries)
        }
    }

    pub(super) fn first(&self) -> u64 {
        self.first
    }

    pub(super) fn newest_snapshot(&self) -> Option<&Snapshot> {
        self.snapshot.as_ref()
    }

    pub(super) fn members(&self) -> &[u64] {
        &self.members
    }

    pub(super) fn set_members(&mut self, members: Vec<u64>) {
        self.members = members;
    }

    /// Before the raft library starts: what it is to start from.
    pub(super) fn set_hard_state(&mut self, hard_state: HardState) {
        self.hard_state = hard_state;
    }

    /// The first failure of the log to give an entry back, once.
    pub(super) fn take_failure(&self) -> Option<LogError> {
        self.failure.borrow_mut().take()
    }

    /// The term of an entry of the log or of the one before it.
    pub(super) fn term_of(&self, index: u64) -> Option<u64> {
        if index + 1 == self.first {
            return Some(self.before);
        }
        if index < self.first || index > self.last {
            return None;
        }
        let after = self.terms.partition_point(|&(start, _)| start <= index);
        Some(self.terms[after - 1].1)
    }

    /// Appends entries, replacing those from the first one's index on. What is appended is not durable yet.
    pub(super) fn append(&mut self, entries: &[Entry]) {
        let Some(start) = entries.first().map(|entry| entry.index) else {
            return;
        };
        assert!(
            self.first <= start && start <= self.last + 1,
            "entries join the log without a gap"
        );
        while self.terms.back().is_some_and(|&(begin, _)| begin >= start) {
            self.terms.pop_back();
        }
        while let Some(entry) = self.tail.pop_back_if(|entry| entry.index >= start) {
            self.tail_bytes -= cost(&entry);
        }
        self.durable = self.durable.min(start - 1);
        for entry in entries {
            if self
                .terms
                .back()
                .is_none_or(|&(_, term)| term != entry.term)
            {
                self.terms.push_back((entry.index, entry.term));
            }
            self.tail_bytes += cost(entry);
            self.tail.push_back(entry.clone());
            self.last = entry.index;
        }
    }

    /// Entries up to `index` can be read back: what is too much for memory is let go.
    pub(super) fn durable_to(&mut self, index: u64) {
        self.durable = self.durable.max(index.min(self.last));
        while self.tail_bytes > MAX_CACHED_BYTES {
            let Some(entry) = self.tail.pop_front_if(|entry| entry.index <= self.durable) else {
                break;
            };
            self.tail_bytes -= cost(&entry);
        }
    }

    /// The snapshot of a leader takes the place of everything.
    pub(super) fn install(&mut self, snapshot: Snapshot) {
        self.first = snapshot.index + 1;
        self.before = snapshot.term;
        self.last = snapshot.index;
        self.durable = snapshot.index;
        self.terms.clear();
        self.tail.clear();
        self.tail_bytes = 0;
        self.members = snapshot.members.clone();
        self.snapshot = Some(snapshot);
    }

    /// An own snapshot takes the place of the entries before `keep_from`.
    pub(super) fn compact(&mut self, snapshot: Snapshot, keep_from: u64) {
        let keep_from = keep_from.clamp(self.first, snapshot.index + 1);
        self.before = self
            .term_of(keep_from - 1)
            .expect("the new beginning lies within the log");
        self.first = keep_from;
        while let Some(entry) = self.tail.pop_front_if(|entry| entry.index < keep_from) {
            self.tail_bytes -= cost(&entry);
        }
        while self.terms.len() > 1 && self.terms[1].0 <= keep_from {
            self.terms.pop_front();
        }
        if keep_from > self.last {
            self.terms.clear();
        }
        self.snapshot = Some(snapshot);
    }

    pub(super) fn before(&self) -> u64 {
        self.before
    }

    fn read(&self, low: u64, high: u64, max_bytes: u64) -> Result<Vec<Entry>, LogError> {
        let mut found = Vec::new();
        let mut bytes = 0;
        let tail_first = self.last + 1 - self.tail.len() as u64;
        if low < tail_first {
            found = self
                .entries
                .entries(self.group, low..high.min(tail_first), max_bytes)?;
            bytes = found.iter().map(cost).sum();
        }
        let next = low + found.len() as u64;
        if next >= tail_first {
            for entry in self
                .tail
                .range((next - tail_first) as usize..(high.max(next) - tail_first) as usize)
            {
                bytes += cost(entry);
                if bytes > max_bytes && !found.is_empty() {
                    break;
                }
                found.push(entry.clone());
            }
        }
        Ok(found)
    }
}

fn cost(entry: &Entry) -> u64 {
    entry.data.len() as u64 + ENTRY_OVERHEAD
}

pub(super) fn conf_state(members: &[u64]) -> ConfState {
    ConfState {
        voters: members.to_vec(),
        ..Default::default()
    }
}

impl raft::Storage for Store {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(
            self.hard_state.clone(),
            conf_state(&self.members),
        ))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low < self.first {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        match self.read(low, high, max_size.into().unwrap_or(u64::MAX)) {
            Ok(entries) => Ok(entries),
            Err(error) => {
                // The library panics on errors of a storage. The group sees the failure before anything that rests
                // on this answer leaves it.
                self.failure.borrow_mut().get_or_insert(error);
                if context.can_async() {
                    Err(raft::Error::Store(StorageError::LogTemporarilyUnavailable))
                } else {
                    Ok(Vec::new())
                }
            }
        }
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        self.term_of(index)
            .ok_or(raft::Error::Store(if index < self.first {
                StorageError::Compacted
            } else {
                StorageError::Unavailable
            }))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.first)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last)
    }

    fn snapshot(&self, _request_index: u64, _to: u64) -> raft::Result<eraftpb::Snapshot> {
        let Some(snapshot) = &self.snapshot else {
            return Err(raft::Error::Store(
                StorageError::SnapshotTemporarilyUnavailable,
            ));
        };
        let mut message = eraftpb::Snapshot {
            data: snapshot.data.clone(),
            ..Default::default()
        };
        let metadata = message.mut_metadata();
        metadata.index = snapshot.index;
        metadata.term = snapshot.term;
        // The members of now, not of then: who was added since refuses a snapshot that does not know it.
        metadata.set_conf_state(conf_state(&self.members));
        Ok(message)
    }
}
