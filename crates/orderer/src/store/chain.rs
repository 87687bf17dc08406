//! One channel's chain of blocks.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use arc_swap::ArcSwap;
use quorate_fabric::block as rules;
use quorate_runtime::metrics::IntGauge;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::base::Base;
use super::files::{self, Readers, Record};
use super::index::{Index, Location};
use super::recovery::{self, Recovered};
use super::{StoreError, StoredBlock, format};
use crate::metrics::{Ledger as LedgerMetrics, Timing};

/// How many bytes of recent blocks a chain keeps in memory; the newest block is kept even when it alone is larger.
pub const MAX_RECENT_BYTES: usize = 2 * 1024 * 1024;

/// How many recent blocks a chain keeps in memory.
pub const MAX_RECENT_BLOCKS: usize = 256;

/// How many appended blocks wait for a sync to have their commit time measured; further ones are not measured.
const MAX_MEASURED: usize = 256;

/// The chain of one channel. Cheap to clone; all clones are the same chain.
///
/// One owner appends (the channel's loop, or the follower that fetches blocks); anybody reads, and no reader waits
/// for the writer.
#[derive(Clone)]
pub struct BlockStore {
    inner: Arc<Inner>,
}

struct Inner {
    channel: String,
    folder: PathBuf,
    index: Index,
    readers: Readers,
    /// Where the chain begins; replaced when old blocks are pruned.
    base: ArcSwap<Base>,
    /// One prune at a time.
    pruning: Mutex<()>,
    recent: Mutex<Recent>,
    writer: Mutex<Writer>,
    /// The height to read; [`Inner::announce`] tells those who wait for it.
    height: AtomicU64,
    synced: AtomicU64,
    /// Gone once the channel was removed.
    announce: Mutex<Option<watch::Sender<u64>>>,
    measured: Option<Measured>,
}

/// The chain's metrics.
struct Measured {
    metrics: LedgerMetrics,
    height: IntGauge,
    commit_time: Timing,
}

struct Writer {
    state: State,
    file: u32,
    size: u64,
    max_file_bytes: u64,
    /// The next block's previous hash; `None` before the first block.
    newest_hash: Option<[u8; 32]>,
    newest_last_config: Option<u64>,
    /// When the blocks that are not durable yet began to be written.
    begun: Vec<Instant>,
}

/// Whether the chain can be extended.
enum State {
    /// Yes: by writing to the last block file, or to one that will be created.
    Ready(Option<Arc<File>>),
    Stopped {
        reason: String,
    },
    Removed,
}

#[derive(Default)]
struct Recent {
    /// With consecutive numbers.
    blocks: VecDeque<Arc<StoredBlock>>,
    bytes: usize,
}

impl BlockStore {
    /// Opens the chain in `folder`, which exists. `max_file_bytes` is [`files::MAX_FILE_BYTES`] except in tests.
    pub(super) fn open(
        folder: &Path,
        channel: &str,
        max_file_bytes: u64,
        metrics: Option<&LedgerMetrics>,
    ) -> Result<Self, StoreError> {
        let Recovered {
            index,
            file,
            size,
            newest,
            base,
        } = recovery::open(folder, channel)?;
        let height = newest
            .as_ref()
            .map_or(base.first, |block| block.number() + 1);
        let writer = Writer {
            state: State::Ready(None),
            file,
            size,
            max_file_bytes,
            newest_hash: newest
                .as_ref()
                .map_or(base.previous, |block| Some(*block.header_hash())),
            newest_last_config: newest.as_ref().and_then(StoredBlock::last_config),
            begun: Vec::new(),
        };
        let measured = metrics.map(|metrics| Measured {
            height: metrics.blockchain_height.with([channel]),
            commit_time: metrics.blockstorage_commit_time.with([channel]),
            metrics: metrics.clone(),
        });
        let mut recent = Recent::default();
        if let Some(newest) = newest {
            recent.push(Arc::new(newest));
        }
        let store = Self {
            inner: Arc::new(Inner {
                channel: channel.to_owned(),
                folder: folder.to_owned(),
                index,
                readers: Readers::new(folder),
                base: ArcSwap::from_pointee(base),
                pruning: Mutex::default(),
                recent: Mutex::new(recent),
                writer: Mutex::new(writer),
                height: AtomicU64::new(height),
                synced: AtomicU64::new(height),
                announce: Mutex::new(Some(watch::Sender::new(height))),
                measured,
            }),
        };
        store.inner.show(height);
        Ok(store)
    }

    /// The channel's name.
    pub fn channel(&self) -> &str {
        &self.inner.channel
    }

    /// How many blocks the chain has: the number of the next one.
    pub fn height(&self) -> u64 {
        self.inner.height.load(Ordering::Acquire)
    }

    /// The oldest block from which on all are there: 0, unless older ones were pruned.
    pub fn first(&self) -> u64 {
        self.inner.base.load().first
    }

    /// A view of the height that can be awaited. It becomes closed when the channel is removed.
    pub fn watch_height(&self) -> watch::Receiver<u64> {
        match &*lock(&self.inner.announce) {
            Some(sender) => sender.subscribe(),
            None => watch::channel(self.height()).1,
        }
    }

    /// Writes the next block. It is readable at once, and survives the end of the process; it survives the end of the
    /// machine only after [`BlockStore::sync`], so that several blocks can share one.
    ///
    /// That a block is read before it is durable here does no harm: it comes from a log, or from an orderer, that
    /// keeps it until it is.
    ///
    /// # Errors
    /// A block that is not the next one is refused and changes nothing. After an error of the disk the store is
    /// stopped: every later call fails too.
    pub fn append(&self, block: &StoredBlock) -> Result<(), StoreError> {
        let begun = Instant::now();
        let inner = &*self.inner;
        let mut writer = lock(&inner.writer);
        let height = self.height();
        inner.check_next(&writer, height, block)?;
        let record = format::record(&block.block());
        let file = writer.ready(inner)?;
        match inner.write(&mut writer, file, height, &record) {
            Ok(()) => {
                writer.newest_hash = Some(*block.header_hash());
                writer.newest_last_config = block.last_config();
                lock(&inner.recent).push(Arc::new(block.clone()));
                if writer.begun.len() < MAX_MEASURED {
                    writer.begun.push(begun);
                }
                inner.height.store(height + 1, Ordering::Release);
                inner.show(height + 1);
                if let Some(announce) = &*lock(&inner.announce) {
                    announce.send_replace(height + 1);
                }
                Ok(())
            }
            Err(error) => Err(inner.stop(&mut writer, error)),
        }
    }

    /// Makes everything appended so far durable; returns the height that is. Blocks may be appended meanwhile.
    ///
    /// # Errors
    /// As for [`BlockStore::append`].
    pub fn sync(&self) -> Result<u64, StoreError> {
        let inner = &*self.inner;
        let (file, number, height, begun) = {
            let mut writer = lock(&inner.writer);
            let height = self.height();
            let begun = std::mem::take(&mut writer.begun);
            if self.synced_height() >= height {
                inner.measure(&begun);
                return Ok(height);
            }
            let file = writer.ready(inner)?;
            (file, writer.file, height, begun)
        };
        let synced = file
            .sync_data()
            .map_err(|error| StoreError::io("sync", files::path(&inner.folder, number), error))
            .and_then(|()| inner.index.promise_synced(height));
        match synced {
            Ok(()) => {
                inner.synced.fetch_max(height, Ordering::AcqRel);
                inner.measure(&begun);
                Ok(height)
            }
            Err(error) => Err(inner.stop(&mut lock(&inner.writer), error)),
        }
    }

    /// The height up to which blocks are known to be durable.
    pub fn synced_height(&self) -> u64 {
        self.inner.synced.load(Ordering::Acquire)
    }

    /// The block of that number, or `None` at and above the height. Recent blocks come from memory, others from the
    /// disk, which may block for as long as a disk does.
    ///
    /// # Errors
    /// The disk's, and damage found on it; the channel's removal.
    pub fn read(&self, number: u64) -> Result<Option<Arc<StoredBlock>>, StoreError> {
        match self.read_recent(number) {
            Some(block) => Ok(Some(block)),
            None if number >= self.height() => Ok(None),
            None => self.inner.read(number).map(|block| Some(Arc::new(block))),
        }
    }

    /// The block of that number, if it is among the recent ones in memory. Never blocks.
    pub fn read_recent(&self, number: u64) -> Option<Arc<StoredBlock>> {
        lock(&self.inner.recent).get(number)
    }

    /// The newest block; `None` in an empty chain. Always in memory.
    pub fn newest(&self) -> Option<Arc<StoredBlock>> {
        lock(&self.inner.recent).blocks.back().cloned()
    }

    /// The number of the config block in force at the chain's end, as the newest block's metadata say; `None` in an
    /// empty chain.
    pub fn last_config_number(&self) -> Option<u64> {
        lock(&self.inner.writer).newest_last_config
    }

    /// Removes old blocks for good: the whole block files that hold nothing but blocks below `below`. The file that is being written stays, and so do the genesis
    /// block and the configuration in force at the first block that is left.
    ///
    /// What was begun is finished after a crash. Asking again for what is gone changes nothing, and a block that is gone
    /// does not come back.
    ///
    /// # Errors
    /// The disk's; a chain that has no such block.
    pub fn prune(&self, below: u64) -> Result<Pruned, StoreError> {
        let inner = &*self.inner;
        let _alone = lock(&inner.pruning);
        let base = inner.base.load_full();
        let unchanged = Pruned {
            first: base.first,
            files: 0,
            bytes: 0,
        };
        let Some(first) = inner.first_left(&base, below, self.synced_height())? else {
            return Ok(unchanged);
        };
        let file = inner.location(first)?.file;
        let before = self.read_there(first - 1)?;
        let config = before.last_config().ok_or_else(|| StoreError::Damaged {
            channel: inner.channel.clone(),
            path: inner.folder.clone(),
            offset: 0,
            reason: format!("block {} names no configuration block", first - 1),
        })?;
        let mut kept = vec![StoredBlock::clone(&*self.read_there(0)?)];
        if config != 0 {
            kept.push(StoredBlock::clone(&*self.read_there(config)?));
        }
        let next = Base {
            first,
            file,
            previous: Some(*before.header_hash()),
            kept,
        };
        next.write(&inner.folder)?;
        // From here on nobody looks into the files that go.
        inner.base.store(Arc::new(next));
        inner.readers.forget_before(file);
        lock(&inner.recent).forget_before(first);
        let (files, bytes) = files::remove_before(&inner.folder, file)?;
        tracing::info!(
            channel = inner.channel,
            first,
            files,
            bytes,
            "Old blocks were pruned; the chain begins later now"
        );
        Ok(Pruned {
            first,
            files,
            bytes,
        })
    }

    /// The first block that [`BlockStore::prune`] would leave, and the block file that it begins.
    ///
    /// # Errors
    /// As for [`BlockStore::prune`].
    pub fn prunable(&self, below: u64) -> Result<(u64, u32), StoreError> {
        let inner = &*self.inner;
        let base = inner.base.load_full();
        match inner.first_left(&base, below, self.synced_height())? {
            Some(first) => Ok((first, inner.location(first)?.file)),
            None => Ok((base.first, base.file)),
        }
    }

    fn read_there(&self, number: u64) -> Result<Arc<StoredBlock>, StoreError> {
        self.read(number)?.ok_or_else(|| StoreError::Index {
            path: self.inner.index.path().to_owned(),
            number,
        })
    }

    /// Lets nobody write any more, and tells those who wait for the height: the files are about to be removed.
    pub(super) fn close(&self) {
        lock(&self.inner.writer).state = State::Removed;
        *lock(&self.inner.recent) = Recent::default();
        lock(&self.inner.announce).take();
        if let Some(measured) = &self.inner.measured {
            let height = &measured.metrics.blockchain_height;
            height.forget([&self.inner.channel]);
        }
    }
}

impl std::fmt::Debug for BlockStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlockStore")
            .field("channel", &self.channel())
            .field("height", &self.height())
            .finish_non_exhaustive()
    }
}

impl Inner {
    fn show(&self, height: u64) {
        if let Some(measured) = &self.measured {
            measured
                .height
                .set(i64::try_from(height).unwrap_or(i64::MAX));
        }
    }

    /// Blocks that began then have become durable now.
    fn measure(&self, begun: &[Instant]) {
        if let Some(measured) = &self.measured {
            for begun in begun {
                measured.commit_time.observe(begun.elapsed());
            }
        }
    }

    fn check_next(
        &self,
        writer: &Writer,
        height: u64,
        block: &StoredBlock,
    ) -> Result<(), StoreError> {
        let not_next = |reason: String| StoreError::NotNext {
            channel: self.channel.clone(),
            number: block.number(),
            reason,
        };
        if block.number() != height {
            return Err(not_next(format!("the next block is {height}")));
        }
        if let Some(hash) = &writer.newest_hash
            && block.header().previous_hash[..] != hash[..]
        {
            return Err(not_next(format!(
                "its previous hash is {}, and the hash of block {} is {}",
                hex::encode(&block.header().previous_hash),
                height - 1,
                hex::encode(hash)
            )));
        }
        // A record's length has 32 bits in the index. Blocks of gigabytes pass no limit that a channel can have.
        if block.encoded().len() > u32::MAX as usize / 2 {
            return Err(not_next("it is too long".to_owned()));
        }
        Ok(())
    }

    /// Writes a record at the end of the last file, or at the beginning of the next one, and its entry.
    fn write(
        &self,
        writer: &mut Writer,
        mut file: Arc<File>,
        number: u64,
        record: &[u8],
    ) -> Result<(), StoreError> {
        if writer.size > 0 && writer.size + record.len() as u64 > writer.max_file_bytes {
            file = self.next_file(writer, &file, number)?;
        }
        file.write_all_at(record, writer.size).map_err(|error| {
            StoreError::io("write", files::path(&self.folder, writer.file), error)
        })?;
        let (length, prefix) = format::varint(record).expect("a record begins with its length");
        let location = Location {
            file: writer.file,
            offset: writer.size + prefix as u64,
            length: u32::try_from(length).expect("the length was checked"),
            checksum: crc32c::crc32c(&record[prefix..]),
        };
        self.index.put(number, &location)?;
        writer.size = location.end();
        Ok(())
    }

    /// Begins the next file. All blocks and entries so far become durable first: only the last file can be torn.
    fn next_file(
        &self,
        writer: &mut Writer,
        file: &File,
        height: u64,
    ) -> Result<Arc<File>, StoreError> {
        file.sync_data().map_err(|error| {
            StoreError::io("sync", files::path(&self.folder, writer.file), error)
        })?;
        self.index.promise_synced(height)?;
        self.index.settle(height)?;
        self.synced.fetch_max(height, Ordering::AcqRel);
        let next = writer.file + 1;
        let file = Arc::new(files::open_for_writing(&self.folder, next)?);
        files::sync_folder(&self.folder)?;
        writer.file = next;
        writer.size = 0;
        writer.state = State::Ready(Some(file.clone()));
        Ok(file)
    }

    /// Refuses everything from now on: what the disk holds after a failed write or sync is anybody's guess, and a
    /// second sync that succeeds proves nothing.
    fn stop(&self, writer: &mut Writer, error: StoreError) -> StoreError {
        if matches!(writer.state, State::Ready(_)) {
            let reason = quorate_runtime::tasks::chain(&error);
            tracing::error!(
                channel = self.channel,
                reason,
                "The ledger cannot be written any more; the channel stops until the orderer is started again"
            );
            writer.state = State::Stopped { reason };
        }
        error
    }

    fn read(&self, number: u64) -> Result<StoredBlock, StoreError> {
        let removed = || StoreError::Removed {
            channel: self.channel.clone(),
        };
        if lock(&self.announce).is_none() {
            return Err(removed());
        }
        let damaged_index = || StoreError::Index {
            path: self.index.path().to_owned(),
            number,
        };
        let pruned = || {
            let base = self.base.load();
            (number < base.first).then(|| match base.kept(number) {
                Some(block) => Ok(block.clone()),
                None => Err(StoreError::Pruned {
                    channel: self.channel.clone(),
                    number,
                    first: base.first,
                }),
            })
        };
        if let Some(outcome) = pruned() {
            return outcome;
        }
        let read = self.location(number).and_then(|location| {
            self.readers
                .read(location.file, location.offset, location.length)
                .map(|body| (location, body))
        });
        let (location, body) = match read {
            Ok(read) => read,
            Err(_) if lock(&self.announce).is_none() => return Err(removed()),
            // It may have been pruned since we looked.
            Err(error) => return pruned().unwrap_or(Err(error)),
        };
        let damaged = |reason: &str| StoreError::Damaged {
            channel: self.channel.clone(),
            path: files::path(&self.folder, location.file),
            offset: location.offset,
            reason: format!("block {number}: {reason}"),
        };
        if crc32c::crc32c(&body) != location.checksum {
            return Err(damaged("its bytes are not those that were written"));
        }
        let block = format::block(&body).map_err(|error| damaged(error.0))?;
        let stored = StoredBlock::new(&block).map_err(|error| damaged(&error.to_string()))?;
        if stored.number() != number {
            return Err(damaged_index());
        }
        Ok(stored)
    }

    /// Where a block is that is in the block files.
    fn location(&self, number: u64) -> Result<Location, StoreError> {
        match self.index.get(number)? {
            Some(location) => Ok(location),
            None => self.mend(number),
        }
    }

    /// Makes the index's entry of a block anew, from the block files behind the nearest entry before it that is good.
    fn mend(&self, number: u64) -> Result<Location, StoreError> {
        let base = self.base.load_full();
        let damaged = || StoreError::Index {
            path: self.index.path().to_owned(),
            number,
        };
        let mut known = None;
        for before in (base.first..number).rev() {
            known = self.index.get(before)?;
            if known.is_some() {
                break;
            }
        }
        let (mut next, mut file, mut offset) = match known {
            Some(location) => {
                let body = self
                    .readers
                    .read(location.file, location.offset, location.length)?;
                let block = format::block(&body).map_err(|_| damaged())?;
                let number = block.header.as_ref().map_or(0, |header| header.number);
                (number + 1, location.file, location.end())
            }
            None => (base.first, base.file, 0),
        };
        loop {
            let (location, body) = match self.readers.record(file, offset)? {
                Record::Whole(location, body) => (location, body),
                Record::End => {
                    (file, offset) = (file + 1, 0);
                    continue;
                }
                Record::CutOff => return Err(damaged()),
            };
            let block = format::block(&body).map_err(|_| damaged())?;
            let stored = StoredBlock::new(&block).map_err(|_| damaged())?;
            if stored.number() != next || rules::check_data_hash(&block).is_err() {
                return Err(damaged());
            }
            self.index.put(next, &location)?;
            tracing::warn!(
                channel = self.channel,
                block = next,
                "The index's entry of a block was damaged and has been made anew from the block file"
            );
            if next == number {
                return Ok(location);
            }
            next += 1;
            offset = location.end();
        }
    }

    /// The first block that is left when the whole files below `below` go; `None` if nothing goes. Only durable blocks
    /// count: one of them has to be left.
    fn first_left(&self, base: &Base, below: u64, synced: u64) -> Result<Option<u64>, StoreError> {
        let Some(newest) = synced.checked_sub(1) else {
            return Ok(None);
        };
        if below <= base.first {
            return Ok(None);
        }
        let file = self.location(below.min(newest))?.file;
        if file <= base.file {
            return Ok(None);
        }
        // Block numbers ascend with files.
        let (mut low, mut high) = (base.first, below.min(newest));
        while low < high {
            let middle = low + (high - low) / 2;
            if self.location(middle)?.file < file {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(Some(low))
    }
}

/// What a prune has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pruned {
    /// The first block that is there now.
    pub first: u64,
    /// Block files that were removed.
    pub files: u32,
    /// Their bytes.
    pub bytes: u64,
}

impl Writer {
    /// The last file, opened at the first use.
    fn ready(&mut self, inner: &Inner) -> Result<Arc<File>, StoreError> {
        match &self.state {
            State::Ready(Some(file)) => Ok(file.clone()),
            State::Ready(None) => {
                let opened = files::open_for_writing(&inner.folder, self.file)
                    .and_then(|file| files::sync_folder(&inner.folder).map(|()| Arc::new(file)));
                match opened {
                    Ok(file) => {
                        self.state = State::Ready(Some(file.clone()));
                        Ok(file)
                    }
                    Err(error) => Err(inner.stop(self, error)),
                }
            }
            State::Stopped { reason } => Err(StoreError::Stopped {
                channel: inner.channel.clone(),
                reason: reason.clone(),
            }),
            State::Removed => Err(StoreError::Removed {
                channel: inner.channel.clone(),
            }),
        }
    }
}

impl Recent {
    fn get(&self, number: u64) -> Option<Arc<StoredBlock>> {
        let first = self.blocks.front()?.number();
        let at = usize::try_from(number.checked_sub(first)?).ok()?;
        self.blocks.get(at).cloned()
    }

    fn forget_before(&mut self, first: u64) {
        while let Some(oldest) = self.blocks.pop_front() {
            if oldest.number() >= first {
                self.blocks.push_front(oldest);
                return;
            }
            self.bytes -= oldest.encoded().len();
        }
    }

    fn push(&mut self, block: Arc<StoredBlock>) {
        self.bytes += block.encoded().len();
        self.blocks.push_back(block);
        while self.blocks.len() > 1
            && (self.bytes > MAX_RECENT_BYTES || self.blocks.len() > MAX_RECENT_BLOCKS)
        {
            if let Some(oldest) = self.blocks.pop_front() {
                self.bytes -= oldest.encoded().len();
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing is left half-done where a panic could occur: the values are good even then.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
