//! Where each block lies: a small file beside the block files, which Fabric's code ignores.
//!
//! ```text
//! header (32 bytes)   magic · synced u64 · settled u64 · CRC-32C · 0
//! entry n (24 bytes)  file u32 · body length u32 · body offset u64 · body CRC-32C · entry CRC-32C
//! ```
//!
//! The index is never the truth: whatever is missing or wrong in it can be made again from the block files. It is
//! therefore not synced with each block. Two numbers in its header say how far it can be believed after the machine
//! lost power: below `synced` all *blocks* are durable, below `settled` all *entries* are.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::StoreError;

/// The index's file name in a channel's folder. Fabric's code looks only at names that begin with `blockfile_`.
pub(super) const FILE_NAME: &str = "index.quorate";

const MAGIC: [u8; 8] = *b"QRTIDX\x00\x01";
const HEADER_BYTES: u64 = 32;
const ENTRY_BYTES: u64 = 24;

/// Where the body of a block lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Location {
    /// The number of the block file.
    pub(super) file: u32,
    /// Where the body begins, in bytes.
    pub(super) offset: u64,
    /// The body's length in bytes.
    pub(super) length: u32,
    /// CRC-32C of the body.
    pub(super) checksum: u32,
}

impl Location {
    /// The offset after the body: where the next record begins.
    pub(super) fn end(&self) -> u64 {
        self.offset + u64::from(self.length)
    }
}

/// What the header promises.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Promise {
    /// The height below which blocks are durable.
    pub(super) synced: u64,
    /// The height below which entries are durable.
    pub(super) settled: u64,
}

/// An open index.
pub(super) struct Index {
    path: PathBuf,
    file: File,
    promise: Mutex<Promise>,
}

impl Index {
    /// Opens the index in `folder`, creating an empty file if there is none. The promise is `None` when the header
    /// is not one of ours: nothing is known then, and the caller must begin anew.
    pub(super) fn open(folder: &Path) -> Result<(Self, Option<Promise>), StoreError> {
        let path = folder.join(FILE_NAME);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|error| StoreError::io("open", &path, error))?;
        let mut header = [0; HEADER_BYTES as usize];
        let promise = match file.read_exact_at(&mut header, 0) {
            Ok(()) => read_header(&header),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => None,
            Err(error) => return Err(StoreError::io("read", &path, error)),
        };
        let index = Self {
            path,
            file,
            promise: Mutex::new(promise.unwrap_or_default()),
        };
        Ok((index, promise))
    }

    /// Opens the index in `folder` to look at it only; `None` if there is none, or none of ours.
    pub(super) fn look(folder: &Path) -> Result<Option<(Self, Promise)>, StoreError> {
        let path = folder.join(FILE_NAME);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StoreError::io("open", &path, error)),
        };
        let mut header = [0; HEADER_BYTES as usize];
        let promise = match file.read_exact_at(&mut header, 0) {
            Ok(()) => read_header(&header),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => None,
            Err(error) => return Err(StoreError::io("read", &path, error)),
        };
        let index = |promise| Self {
            path,
            file,
            promise: Mutex::new(promise),
        };
        Ok(promise.map(|promise| (index(promise), promise)))
    }

    /// Forgets everything, the promise first: until the next [`Index::promise_synced`] the file promises nothing.
    pub(super) fn clear(&self) -> Result<(), StoreError> {
        self.file
            .set_len(0)
            .map_err(|error| StoreError::io("truncate", &self.path, error))
    }

    /// How many entries the file has room for; not all of them need be valid.
    pub(super) fn entries(&self) -> Result<u64, StoreError> {
        let length = self
            .file
            .metadata()
            .map_err(|error| StoreError::io("read", &self.path, error))?
            .len();
        Ok(length.saturating_sub(HEADER_BYTES) / ENTRY_BYTES)
    }

    /// The entry of block `number`; `None` if it is missing or its checksum is wrong.
    pub(super) fn get(&self, number: u64) -> Result<Option<Location>, StoreError> {
        let mut entry = [0; ENTRY_BYTES as usize];
        match self.file.read_exact_at(&mut entry, position(number)) {
            Ok(()) => Ok(read_entry(number, &entry)),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(StoreError::io("read", &self.path, error)),
        }
    }

    /// Whether all entries from `first` up to but not including `end` are there and have their right checksums.
    pub(super) fn are_valid(&self, first: u64, end: u64) -> Result<bool, StoreError> {
        const ENTRIES_AT_ONCE: u64 = 4096;
        let mut buffer = vec![0; (ENTRIES_AT_ONCE * ENTRY_BYTES) as usize];
        let mut next = first;
        while next < end {
            let count = (end - next).min(ENTRIES_AT_ONCE);
            let bytes = &mut buffer[..(count * ENTRY_BYTES) as usize];
            match self.file.read_exact_at(bytes, position(next)) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                    return Ok(false);
                }
                Err(error) => return Err(StoreError::io("read", &self.path, error)),
            }
            let (entries, _) = bytes.as_chunks::<{ ENTRY_BYTES as usize }>();
            let numbers = next..end;
            if numbers
                .zip(entries)
                .any(|(number, entry)| read_entry(number, entry).is_none())
            {
                return Ok(false);
            }
            next += count;
        }
        Ok(true)
    }

    /// Writes the entry of block `number`.
    pub(super) fn put(&self, number: u64, location: &Location) -> Result<(), StoreError> {
        self.file
            .write_all_at(&write_entry(number, location), position(number))
            .map_err(|error| StoreError::io("write", &self.path, error))
    }

    /// Drops the entries from block `height` on.
    pub(super) fn truncate(&self, height: u64) -> Result<(), StoreError> {
        self.file
            .set_len(position(height))
            .map_err(|error| StoreError::io("truncate", &self.path, error))
    }

    /// Notes that the blocks below `height` are durable. Costs no sync: should the note be lost, more than necessary
    /// is looked at when the ledger is opened.
    pub(super) fn promise_synced(&self, height: u64) -> Result<(), StoreError> {
        self.promise(|promise| promise.synced = promise.synced.max(height))
    }

    /// Makes the entries below `height` durable, and notes it.
    pub(super) fn settle(&self, height: u64) -> Result<(), StoreError> {
        self.file
            .sync_data()
            .map_err(|error| StoreError::io("sync", &self.path, error))?;
        self.promise(|promise| promise.settled = promise.settled.max(height))
    }

    /// Starts the promise anew, after a recovery that may have ended below the old one.
    pub(super) fn restart(&self, promise: Promise) -> Result<(), StoreError> {
        self.promise(|old| *old = promise)
    }

    fn promise(&self, change: impl FnOnce(&mut Promise)) -> Result<(), StoreError> {
        let mut promise = self.promise.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut promise);
        self.file
            .write_all_at(&write_header(&promise), 0)
            .map_err(|error| StoreError::io("write", &self.path, error))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

fn position(number: u64) -> u64 {
    // A number that does not fit lies beyond any file's end, where nothing is found.
    number
        .saturating_mul(ENTRY_BYTES)
        .saturating_add(HEADER_BYTES)
        .min(i64::MAX as u64)
}

fn write_header(promise: &Promise) -> [u8; HEADER_BYTES as usize] {
    let mut header = [0; HEADER_BYTES as usize];
    header[..8].copy_from_slice(&MAGIC);
    header[8..16].copy_from_slice(&promise.synced.to_le_bytes());
    header[16..24].copy_from_slice(&promise.settled.to_le_bytes());
    let checksum = crc32c::crc32c(&header[..24]);
    header[24..28].copy_from_slice(&checksum.to_le_bytes());
    header
}

fn read_header(header: &[u8; HEADER_BYTES as usize]) -> Option<Promise> {
    let promise = Promise {
        synced: u64::from_le_bytes(*header[8..].first_chunk()?),
        settled: u64::from_le_bytes(*header[16..].first_chunk()?),
    };
    (*header == write_header(&promise)).then_some(promise)
}

fn write_entry(number: u64, location: &Location) -> [u8; ENTRY_BYTES as usize] {
    let mut entry = [0; ENTRY_BYTES as usize];
    entry[..4].copy_from_slice(&location.file.to_le_bytes());
    entry[4..8].copy_from_slice(&location.length.to_le_bytes());
    entry[8..16].copy_from_slice(&location.offset.to_le_bytes());
    entry[16..20].copy_from_slice(&location.checksum.to_le_bytes());
    let checksum = entry_checksum(number, &entry[..20]);
    entry[20..].copy_from_slice(&checksum.to_le_bytes());
    entry
}

fn read_entry(number: u64, entry: &[u8; ENTRY_BYTES as usize]) -> Option<Location> {
    let location = Location {
        file: u32::from_le_bytes(*entry.first_chunk()?),
        length: u32::from_le_bytes(*entry[4..].first_chunk()?),
        offset: u64::from_le_bytes(*entry[8..].first_chunk()?),
        checksum: u32::from_le_bytes(*entry[16..].first_chunk()?),
    };
    // The end is computed from these: it must exist.
    location.offset.checked_add(u64::from(location.length))?;
    let checksum = u32::from_le_bytes(*entry[20..].first_chunk()?);
    (checksum == entry_checksum(number, &entry[..20])).then_some(location)
}

/// Covers the block's number, so that an entry in the wrong place is noticed; and a page of zeros, which a file
/// system may leave behind after a crash, is no entry because the checksum of zeros is not zero.
fn entry_checksum(number: u64, fields: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&number.to_le_bytes()), fields)
}
