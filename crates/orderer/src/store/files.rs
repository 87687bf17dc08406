//! The block files of one chain: their names, which of them are there, and reading from any place of them.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::StoreError;

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

/// How many block files there are. They are numbered from 0 without gaps; a gap is an error.
pub(super) fn count(folder: &Path, channel: &str) -> Result<u32, StoreError> {
    let read = |error| StoreError::io("read", folder, error);
    let mut count = 0;
    let mut highest = None;
    for entry in std::fs::read_dir(folder).map_err(read)? {
        let name = entry.map_err(read)?.file_name();
        let Some(number) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else {
            continue;
        };
        let Ok(number) = number.parse::<u32>() else {
            continue;
        };
        count += 1;
        highest = highest.max(Some(number));
    }
    match highest {
        None => Ok(0),
        Some(highest) if highest.checked_add(1) == Some(count) => Ok(count),
        Some(highest) => {
            let missing = (0..highest)
                .find(|number| !path(folder, *number).exists())
                .unwrap_or(0);
            Err(StoreError::Damaged {
                channel: channel.to_owned(),
                path: path(folder, missing),
                offset: 0,
                reason: "the file is missing, while later ones are there".to_owned(),
            })
        }
    }
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
