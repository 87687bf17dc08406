//! The block files of one chain: their names, which of them are there, and reading from any place of them.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::StoreError;
use super::format::{self, MAX_VARINT_BYTES};
use super::index::Location;

/// When a block no longer fits below this size, in bytes, the next file begins. Fabric's own value.
pub(super) const MAX_FILE_BYTES: u64 = 64 * 1024 * 1024;

/// How many block files of a chain are kept open for readers.
const MAX_OPEN_FILES: usize = 4;

const PREFIX: &str = "blockfile_";
const FILE_MODE: u32 = 0o660;

/// The path of block file `number` in `folder`.
pub(super) fn path(folder: &Path, number: u32) -> PathBuf {
    folder.join(format!("{PREFIX}{number:06}"))
}

/// How many block files a chain has, counted from file 0: those before `first` were pruned. They are numbered without
/// gaps; a gap is an error.
pub(super) fn count(folder: &Path, channel: &str, first: u32) -> Result<u32, StoreError> {
    let numbers = numbers(folder)?;
    let Some(highest) = numbers.last().copied() else {
        return match first {
            0 => Ok(0),
            _ => Err(missing(folder, channel, first)),
        };
    };
    match (first..=highest).find(|number| numbers.binary_search(number).is_err()) {
        Some(number) => Err(missing(folder, channel, number)),
        None if highest < first => Err(missing(folder, channel, first)),
        None => Ok(highest.saturating_add(1)),
    }
}

fn missing(folder: &Path, channel: &str, number: u32) -> StoreError {
    StoreError::Damaged {
        channel: channel.to_owned(),
        path: path(folder, number),
        offset: 0,
        reason: "the file is missing, while others of the chain are there".to_owned(),
    }
}

/// The numbers of the block files that are there, in order.
pub(super) fn numbers(folder: &Path) -> Result<Vec<u32>, StoreError> {
    let read = |error| StoreError::io("read", folder, error);
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(read)? {
        let name = entry.map_err(read)?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        if let Some(Ok(number)) = number.map(str::parse) {
            numbers.push(number);
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Removes the block files before `first`; how many, and how many bytes. Durable when this returns.
pub(super) fn remove_before(folder: &Path, first: u32) -> Result<(u32, u64), StoreError> {
    let (mut files, mut bytes) = (0, 0);
    for number in numbers(folder)?.into_iter().filter(|one| *one < first) {
        let path = path(folder, number);
        let io = |error| StoreError::io("remove", &path, error);
        bytes += std::fs::metadata(&path).map_err(io)?.len();
        std::fs::remove_file(&path).map_err(io)?;
        files += 1;
    }
    if files > 0 {
        sync_folder(folder)?;
    }
    Ok((files, bytes))
}

/// Opens block file `number` for writing, creating it if need be.
pub(super) fn open_for_writing(folder: &Path, number: u32) -> Result<File, StoreError> {
    let path = path(folder, number);
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(FILE_MODE)
        .open(&path)
        .map_err(|error| StoreError::io("open", &path, error))
}

/// Makes the names in a folder durable.
pub(super) fn sync_folder(folder: &Path) -> Result<(), StoreError> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| StoreError::io("sync", folder, error))
}

/// What stands at a place of a block file.
pub(super) enum Record {
    /// A record: where its body is, and the body.
    Whole(Location, Bytes),
    /// A length that is none, or that reaches beyond the file's end.
    CutOff,
    /// Nothing: the file ends here.
    End,
}

/// Reads from block files at any place, without disturbing whoever appends to them.
pub(super) struct Readers {
    folder: PathBuf,
    open: Mutex<VecDeque<(u32, Arc<File>)>>,
}

impl Readers {
    pub(super) fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            open: Mutex::default(),
        }
    }

    /// The `length` bytes at `offset` of file `number`.
    pub(super) fn read(&self, number: u32, offset: u64, length: u32) -> Result<Bytes, StoreError> {
        let file = self.file(number)?;
        let mut bytes = vec![0; length as usize];
        file.read_exact_at(&mut bytes, offset)
            .map_err(|error| StoreError::io("read", path(&self.folder, number), error))?;
        Ok(bytes.into())
    }

    /// What stands at `offset` of file `number`.
    pub(super) fn record(&self, number: u32, offset: u64) -> Result<Record, StoreError> {
        let file = self.file(number)?;
        let io = |error| StoreError::io("read", path(&self.folder, number), error);
        let left = file.metadata().map_err(io)?.len().saturating_sub(offset);
        if left == 0 {
            return Ok(Record::End);
        }
        let mut prefix = vec![0; MAX_VARINT_BYTES.min(usize::try_from(left).unwrap_or(usize::MAX))];
        file.read_exact_at(&mut prefix, offset).map_err(io)?;
        let Some((length, start)) = format::varint(&prefix) else {
            return Ok(Record::CutOff);
        };
        let (Ok(length), left) = (u32::try_from(length), left - start as u64) else {
            return Ok(Record::CutOff);
        };
        if u64::from(length) > left {
            return Ok(Record::CutOff);
        }
        let offset = offset + start as u64;
        let body = self.read(number, offset, length)?;
        let location = Location {
            file: number,
            offset,
            length,
            checksum: crc32c::crc32c(&body),
        };
        Ok(Record::Whole(location, body))
    }

    /// Closes the files before `first`, which are about to be removed.
    pub(super) fn forget_before(&self, first: u32) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|(number, _)| *number >= first);
    }

    fn file(&self, number: u32) -> Result<Arc<File>, StoreError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = open.iter().position(|(other, _)| *other == number) {
            return Ok(open[at].1.clone());
        }
        let path = path(&self.folder, number);
        let file = File::open(&path).map_err(|error| StoreError::io("open", &path, error))?;
        let file = Arc::new(file);
        if open.len() == MAX_OPEN_FILES {
            open.pop_front();
        }
        open.push_back((number, file.clone()));
        Ok(file)
    }
}
