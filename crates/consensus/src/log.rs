//! The durable log that all groups of a process share.

use std::ops::Range;
use std::sync::Arc;

use raft::eraftpb::{Entry, HardState};

use crate::disk::Disk;
use crate::{GroupId, Snapshot};

/// What a group asks to be made durable: hard state, entries, a snapshot, a new beginning of its log. Made by
/// [`Group`](crate::Group) only, written in the order in which they were made.
#[derive(Clone, Debug, Default, PartialEq)]
#[must_use = "what is not appended to the log is not durable"]
pub struct Write {
    pub(crate) hard_state: Option<HardState>,
    pub(crate) snapshot: Option<Snapshot>,
    pub(crate) entries: Vec<Entry>,
    pub(crate) compact: Option<u64>,
}

/// Called once, on the log's writer thread, when a write is durable or when it never will be. Must not block.
pub type OnDurable = Box<dyn FnOnce(Result<(), LogError>) + Send>;

/// Settings of the shared log.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// A segment that has grown to this many bytes is closed and the next one begun.
    pub segment_bytes: u64,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
        }
    }
}

/// What was found of a group when the log was opened; [`Group::recover`](crate::Group::recover) continues from it.
#[derive(Clone, Debug)]
pub struct Recovered {
    pub(crate) group: GroupId,
}

impl Recovered {
    /// Whose it is.
    pub fn group(&self) -> GroupId {
        self.group
    }
}

/// Why the log cannot do what it was asked to do. After a failed write or sync nothing can be written any more.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LogError {
    /// The log was closed.
    #[error("the log is closed")]
    Closed,
    /// The entries asked for are not there.
    #[error("group {group} has no entry {index} in the log")]
    Missing {
        /// The group.
        group: GroupId,
        /// The first index that is not there.
        index: u64,
    },
}

/// Entries of a group that are no longer in its memory.
pub trait Entries: Send + Sync {
    /// The entries of `range`, as many as fit into `max_bytes` but at least one.
    fn entries(
        &self,
        group: GroupId,
        range: Range<u64>,
        max_bytes: u64,
    ) -> Result<Vec<Entry>, LogError>;
}

/// A handle on the shared log. Cheap to clone.
#[derive(Clone)]
pub struct Log {
    inner: Arc<()>,
}

impl Log {
    /// Opens the log on `disk` and reports every group found on it.
    pub fn open(
        _disk: Arc<dyn Disk>,
        _options: LogOptions,
    ) -> Result<(Self, Vec<Recovered>), LogError> {
        Ok((
            Self {
                inner: Arc::new(()),
            },
            Vec::new(),
        ))
    }

    /// A log that lives in memory, for tests: durable at once, gone with its last handle.
    pub fn in_memory() -> Self {
        Self {
            inner: Arc::new(()),
        }
    }

    /// Queues a write; `on_durable` hears when it is durable. Writes of one group become durable in order.
    pub fn append(&self, _group: GroupId, _write: Write, on_durable: OnDurable) {
        let _ = &self.inner;
        on_durable(Ok(()));
    }

    /// Forgets a group and everything it wrote. A group that is not there is no error.
    pub fn remove(&self, _group: GroupId, on_durable: OnDurable) {
        on_durable(Ok(()));
    }
}

impl Entries for Log {
    fn entries(
        &self,
        group: GroupId,
        range: Range<u64>,
        _max_bytes: u64,
    ) -> Result<Vec<Entry>, LogError> {
        Err(LogError::Missing {
            group,
            index: range.start,
        })
    }
}
