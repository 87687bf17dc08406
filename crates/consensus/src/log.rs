//! The durable log that all groups of a process share.
//!
//! Groups hand in [`Write`]s; one thread writes what has come together and syncs once for all of it. While the disk
//! works, the next batch collects. A write is reported durable after its sync and not before; after the first failure
//! of the disk nothing is ever reported durable again, until the log is opened anew.
//!
//! [`record`] says what the bytes are, [`recovery`] how they are read, [`shelf`] where everything stands, [`journal`]
//! how batches are written and old segments go; here are the types and the thread.

mod journal;
mod record;
mod recovery;
mod shelf;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};

use raft::eraftpb::{Entry, HardState};

use self::journal::Journal;
pub(crate) use self::record::{read_snapshot_file, snapshot_file};
use self::shelf::Shelf;
use crate::disk::Disk;
use crate::group::change_in;
use crate::simulation::SimDisk;
use crate::{GroupId, Membership, Snapshot};

/// Writes that wait for the disk. When there are more, [`Log::append`] waits.
pub const MAX_QUEUED_WRITES: usize = 16_384;

/// Bytes that are written together; a batch ends with the write that goes beyond.
pub const MAX_BATCH_BYTES: u64 = 8 << 20;

/// The largest segment.
pub const MAX_SEGMENT_BYTES: u64 = 1 << 30;

/// What a group asks to be made durable: hard state, entries, a snapshot, a new beginning of its log. Made by
/// [`Group`](crate::Group) only; becomes durable as a whole or not at all.
#[derive(Clone, Debug, Default, PartialEq)]
#[must_use = "what is not appended to the log is not durable"]
pub struct Write {
    pub(crate) standing: Option<Standing>,
    pub(crate) install: Option<Snapshot>,
    pub(crate) entries: Vec<Entry>,
    pub(crate) hard_state: Option<HardState>,
    pub(crate) compact: Option<Compaction>,
}

impl Write {
    /// About how many bytes it takes.
    fn bytes(&self) -> u64 {
        let entries: usize = self.entries.iter().map(|entry| entry.data.len() + 64).sum();
        let snapshots = [
            self.install.as_ref(),
            self.compact.as_ref().map(|compact| &compact.snapshot),
        ];
        let snapshots: usize = snapshots
            .into_iter()
            .flatten()
            .map(|snapshot| snapshot.data.len() + 64)
            .sum();
        (entries + snapshots + 64) as u64
    }
}

/// Whether a member remembers what it promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It does.
    Whole,
    /// It has just come, or has lost everything without a trace.
    Joining,
    /// It is known to have lost its log.
    Forgotten,
}

/// A snapshot in place of the entries before `keep_from`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Compaction {
    pub(crate) snapshot: Snapshot,
    pub(crate) keep_from: u64,
    /// The term of the entry before `keep_from`.
    pub(crate) before: u64,
}

/// Called once, when a write is durable or when it never will be. Runs on the log's thread and must not wait.
pub type OnDurable = Box<dyn FnOnce(Result<(), LogError>) + Send>;

/// Settings of the shared log.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// A segment that has grown to this many bytes is closed and the next one begun; at most [`MAX_SEGMENT_BYTES`].
    pub segment_bytes: u64,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            segment_bytes: 16 << 20,
        }
    }
}

/// What was found of a group when the log was opened; [`Group::recover`](crate::Group::recover) continues from it.
#[derive(Clone, Debug, PartialEq)]
pub struct Recovered {
    pub(crate) group: GroupId,
    pub(crate) standing: Standing,
    pub(crate) hard_state: HardState,
    pub(crate) snapshot: Option<Snapshot>,
    /// The first entry there is, and the term of the one before.
    pub(crate) first: u64,
    pub(crate) before: u64,
    pub(crate) last: u64,
    /// Where each term begins.
    pub(crate) terms: VecDeque<(u64, u64)>,
    /// Changes of members behind the snapshot.
    pub(crate) changes: Vec<(u64, Membership)>,
}

impl Recovered {
    /// Whose it is.
    pub fn group(&self) -> GroupId {
        self.group
    }

    /// The last entry in the log, or the snapshot's index; 0 if there is neither.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// The newest snapshot.
    pub fn snapshot(&self) -> Option<&Snapshot> {
        self.snapshot.as_ref()
    }

    /// What no group can have written, although every record is valid: the raft library would stumble over it.
    pub(crate) fn contradiction(&self) -> Option<&'static str> {
        // The term of an entry that is not there any more is known, unless there never was one.
        if (self.first == 1) != (self.before == 0) {
            return Some("its first entry does not follow anything");
        }
        let mut newest = self.before;
        for &(_, term) in &self.terms {
            if term < newest.max(1) {
                return Some("the terms of its entries go back");
            }
            newest = term;
        }
        if self.hard_state.term < newest {
            return Some("it has entries of a term that it has not reached");
        }
        let snapshot = self.snapshot.as_ref()?;
        let covered = self
            .terms
            .iter()
            .rev()
            .find(|(since, _)| *since <= snapshot.index)
            .map_or(self.before, |&(_, term)| term);
        if snapshot.term != covered || snapshot.members.contains(&0) {
            return Some("its snapshot is of something else");
        }
        None
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
    /// The disk refused.
    #[error("cannot {operation} {file}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// With which file.
        file: String,
        /// What the system says.
        #[source]
        source: Arc<io::Error>,
    },
    /// What was durable is damaged.
    #[error(
        "{file} is damaged at offset {offset}: {reason}. This is not an interrupted write but the loss of something \
         that was durable: restore the file, or begin with an empty log, as a member that has lost its own"
    )]
    Corrupt {
        /// The file.
        file: String,
        /// Where in the file.
        offset: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// All records are valid, and yet a group is not complete.
    #[error(
        "group {group} is not complete in the {segments} segments of the log: {what}. Restore the missing files, or \
         begin with an empty log, as a member that has lost its own"
    )]
    Inconsistent {
        /// The group.
        group: GroupId,
        /// What is missing.
        what: &'static str,
        /// How many segments there are.
        segments: usize,
    },
}

impl LogError {
    fn io(operation: &'static str, file: String, error: io::Error) -> Self {
        Self::Io {
            operation,
            file,
            source: Arc::new(error),
        }
    }

    fn corrupt(file: String, offset: u64, reason: &'static str) -> Self {
        Self::Corrupt {
            file,
            offset,
            reason,
        }
    }
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

/// A handle on the shared log. Cheap to clone; the log is closed, and its folder free for another process, when the
/// last handle is gone.
#[derive(Clone)]
pub struct Log {
    inner: Arc<Inner>,
}

struct Inner {
    shelf: Arc<Mutex<Shelf>>,
    syncs: Arc<AtomicU64>,
    failure: Arc<OnceLock<LogError>>,
    writer: Writer,
}

enum Writer {
    Thread {
        sender: Option<SyncSender<Request>>,
        thread: Option<JoinHandle<()>>,
    },
    /// Everything is written while the caller waits.
    Inline(Mutex<Journal>),
}

struct Request {
    group: GroupId,
    /// Nothing: the group is removed.
    write: Option<Write>,
    on_durable: OnDurable,
}

impl Log {
    /// Opens the log on `disk` and reports every group found on it, in the order of their ids. Reads all of it.
    pub fn open(
        disk: Arc<dyn Disk>,
        options: LogOptions,
    ) -> Result<(Self, Vec<Recovered>), LogError> {
        let place = disk.locate("");
        let (journal, recovered) = Journal::open(disk, options)?;
        let (shelf, syncs, failure) = (journal.shelf(), journal.syncs(), journal.failure());
        let (sender, receiver) = sync_channel(MAX_QUEUED_WRITES);
        let thread = thread::Builder::new()
            .name("quorate-log".to_owned())
            .spawn(move || write_all(journal, &receiver))
            .map_err(|error| LogError::io("start a thread for", place, error))?;
        let writer = Writer::Thread {
            sender: Some(sender),
            thread: Some(thread),
        };
        Ok((
            Self {
                inner: Arc::new(Inner {
                    shelf,
                    syncs,
                    failure,
                    writer,
                }),
            },
            recovered,
        ))
    }

    /// Opens the log on `disk` without a thread: [`Log::append`] returns when the write is durable or has failed. For
    /// simulations, where nothing may happen by itself.
    pub fn open_inline(
        disk: Arc<dyn Disk>,
        options: LogOptions,
    ) -> Result<(Self, Vec<Recovered>), LogError> {
        let (journal, recovered) = Journal::open(disk, options)?;
        let (shelf, syncs, failure) = (journal.shelf(), journal.syncs(), journal.failure());
        let writer = Writer::Inline(Mutex::new(journal));
        Ok((
            Self {
                inner: Arc::new(Inner {
                    shelf,
                    syncs,
                    failure,
                    writer,
                }),
            },
            recovered,
        ))
    }

    /// A log that lives in memory and works while the caller waits: for tests.
    pub fn in_memory() -> Self {
        let opened = Self::open_inline(Arc::new(SimDisk::new(0)), LogOptions::default());
        opened.expect("an empty disk in memory can be opened").0
    }

    /// Queues a write; `on_durable` hears when it is durable. Writes of one group become durable in order. Waits when
    /// [`MAX_QUEUED_WRITES`] are waiting already.
    pub fn append(&self, group: GroupId, write: Write, on_durable: OnDurable) {
        self.request(Request {
            group,
            write: Some(write),
            on_durable,
        });
    }

    /// Forgets a group and everything it wrote. A group that is not there is no error.
    pub fn remove(&self, group: GroupId, on_durable: OnDurable) {
        self.request(Request {
            group,
            write: None,
            on_durable,
        });
    }

    /// What the log has of a group now, as it would be found if the log were opened anew; `None` if it is not there.
    /// For a group whose former owner has ended and will write nothing more. Waits for the disk.
    ///
    /// # Errors
    /// [`LogError`] if the log has failed, or what it has of the group cannot be read.
    pub fn recover(&self, group: GroupId) -> Result<Option<Recovered>, LogError> {
        // What the former owner had queued counts.
        let (done, durable) = sync_channel(1);
        self.append(
            group,
            Write::default(),
            Box::new(move |result| {
                let _ = done.send(result);
            }),
        );
        durable.recv().unwrap_or(Err(LogError::Closed))?;
        let shelved = self
            .inner
            .shelf
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .copy(group);
        let Some(shelved) = shelved else {
            return Ok(None);
        };
        let snapshot = shelved.snapshot(group)?;
        let base = snapshot.as_ref().map_or(0, |snapshot| snapshot.index);
        let mut found = Recovered {
            group,
            standing: shelved.standing,
            hard_state: shelved.state,
            first: shelved.first,
            before: shelved.before,
            last: shelved.first + shelved.terms.len() as u64 - 1,
            terms: VecDeque::new(),
            changes: Vec::new(),
            snapshot,
        };
        for (index, term) in (found.first..).zip(shelved.terms) {
            if found.terms.back().is_none_or(|&(_, last)| last != term) {
                found.terms.push_back((index, term));
            }
        }
        let mut next = found.first.max(base + 1);
        while next <= found.last {
            for entry in self.entries(group, next..found.last + 1, MAX_BATCH_BYTES)? {
                next = entry.index + 1;
                let change = change_in(&entry).map_err(|what| LogError::Inconsistent {
                    group,
                    what,
                    segments: 1,
                })?;
                found
                    .changes
                    .extend(change.map(|change| (entry.index, change)));
            }
        }
        Ok(Some(found))
    }

    /// How many batches have become durable since the log was opened.
    pub fn syncs(&self) -> u64 {
        self.inner.syncs.load(Ordering::Relaxed)
    }

    /// Why nothing can be written any more, if that is so: until the log is opened anew.
    pub fn failure(&self) -> Option<&LogError> {
        self.inner.failure.get()
    }

    fn request(&self, request: Request) {
        match &self.inner.writer {
            Writer::Thread { sender, .. } => {
                let sender = sender
                    .as_ref()
                    .expect("it is taken away when the last handle is gone");
                if let Err(returned) = sender.send(request) {
                    (returned.0.on_durable)(Err(LogError::Closed));
                }
            }
            Writer::Inline(journal) => {
                let mut journal = journal.lock().unwrap_or_else(PoisonError::into_inner);
                let on_durable = collect(&mut journal, request);
                let result = journal.flush();
                drop(journal);
                on_durable(result);
            }
        }
    }
}

impl Entries for Log {
    fn entries(
        &self,
        group: GroupId,
        range: Range<u64>,
        max_bytes: u64,
    ) -> Result<Vec<Entry>, LogError> {
        let found = self
            .inner
            .shelf
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .find(group, range, max_bytes)?;
        let read = |(index, place, file): shelf::Found| {
            let name = recovery::segment_name(place.segment);
            let entry = shelf::entry(shelf::read(&*file, &name, place, group)?);
            entry.filter(|entry| entry.index == index).ok_or_else(|| {
                LogError::corrupt(name, place.offset.into(), "another entry was expected")
            })
        };
        found.into_iter().map(read).collect()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Writer::Thread { sender, thread } = &mut self.writer {
            drop(sender.take());
            // The last handle may go on the log's own thread, inside a callback.
            if let Some(thread) = thread
                .take()
                .filter(|thread| thread.thread().id() != thread::current().id())
            {
                let _ = thread.join();
            }
        }
    }
}

/// The work of the log's thread: ends when there are no handles and nothing is left to write.
fn write_all(mut journal: Journal, requests: &Receiver<Request>) {
    let mut waiting = Vec::new();
    while let Ok(first) = requests.recv() {
        waiting.push(collect(&mut journal, first));
        while journal.queued_bytes() < MAX_BATCH_BYTES {
            match requests.try_recv() {
                Ok(request) => waiting.push(collect(&mut journal, request)),
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
            }
        }
        let result = journal.flush();
        for on_durable in waiting.drain(..) {
            on_durable(result.clone());
        }
    }
}

fn collect(journal: &mut Journal, request: Request) -> OnDurable {
    match request.write {
        Some(write) => journal.append(request.group, write),
        None => journal.remove(request.group),
    }
    request.on_durable
}
