//! Copying a chain's block files, for backups, for archives, and back.
//!
//! A copy is a folder like a chain's own, and may be one: files that are there already have to hold the same bytes and are
//! extended, never changed. Whatever differs is a fork, or damage, and is refused. Blocks are verified by their hashes
//! before they are copied, and what was written is read again; only then does it count.
//!
//! The source may be a chain that is being appended to: a copy ends with the last whole block that was seen.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use quorate_fabric::block;

use super::base::Base;
use super::{Step, StoreError, Walk, files};

/// Bytes that are read and written at once.
const CHUNK_BYTES: u64 = 1 << 20;

/// How much is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Everything.
    All,
    /// Only whole block files with nothing but blocks below this number.
    WholeFilesBelow(u64),
}

/// What a copy holds now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Copied {
    /// The first block of the source.
    pub first: u64,
    /// The number of the block after the last one that is in the copy.
    pub height: u64,
    /// The hash of the last block's header; `None` if nothing was copied.
    pub head: Option<[u8; 32]>,
    /// Block files that are in both now.
    pub files: u32,
    /// Bytes that were not there before.
    pub added: u64,
}

/// Why a chain was not copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// A file of the source or of the copy.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The source is damaged.
    #[error(
        "block {block} in {} at offset {offset} is damaged: {reason}; nothing behind it was copied",
        .path.display()
    )]
    Damaged {
        /// The block that should be there.
        block: u64,
        /// The file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
    /// Source and copy hold different blocks.
    #[error(
        "{} and {} differ from offset {offset} on, in block {block} or one before it: one of them is damaged (`quorate \
         orderer verify` tells which), or they are two forks of the channel. Neither was changed; move one of them away",
        .from.display(), .to.display()
    )]
    Differs {
        /// The block of the source that is there.
        block: u64,
        /// A file of the source.
        from: PathBuf,
        /// The same of the copy.
        to: PathBuf,
        /// Where they begin to differ.
        offset: u64,
    },
    /// The copy has more than the source.
    #[error(
        "{} holds more than {}, and agrees with it as far as that goes; nothing was changed",
        .to.display(), .from.display()
    )]
    Ahead {
        /// A file of the source, or where it would be.
        from: PathBuf,
        /// The same of the copy.
        to: PathBuf,
    },
    /// The blocks before the source's first are not in the copy.
    #[error(
        "{} begins with block {first}, since older ones were pruned, and {} does not reach up to it; choose the folder \
         that has the older blocks, or an empty one",
        .from.display(), .to.display()
    )]
    Gap {
        /// The source's folder.
        from: PathBuf,
        /// The copy's.
        to: PathBuf,
        /// The first block of the source.
        first: u64,
    },
    /// What was written is not what is read.
    #[error("{} does not hold what was written to it; the disk is not to be trusted", .path.display())]
    Unfaithful {
        /// The file.
        path: PathBuf,
    },
}

/// Copies the chain in the folder `from` to the folder `to`, which is created if need be. Durable when this returns. Doing
/// it again adds what is new.
///
/// # Errors
/// [`CopyError`]; what was complete by then stays.
pub fn copy(from: &Path, to: &Path, channel: &str, extent: Extent) -> Result<Copied, CopyError> {
    let io = |operation, path: &Path| {
        let path = path.to_owned();
        move |error| StoreError::io(operation, path, error)
    };
    let base = Base::read(from, channel)?;
    // All folders that may be new, the outermost last.
    fs::create_dir_all(to).map_err(io("create", to))?;
    for folder in to.ancestors().take(3).filter(|one| one.is_dir()) {
        files::sync_folder(folder)?;
    }
    let there = files::numbers(to)?;
    let own = Base::read(to, channel)?;
    match there.last() {
        None => {
            if base.first > 0 {
                base.write(to)?;
            }
        }
        Some(last) if last.saturating_add(1) < base.file || own.file > base.file => {
            return Err(CopyError::Gap {
                from: from.to_owned(),
                to: to.to_owned(),
                first: base.first,
            });
        }
        Some(_) => {}
    }
    let mut source = Source::begin(from, channel)?;
    let mut copied = Copied {
        first: base.first,
        height: base.first,
        head: base.previous,
        ..Copied::default()
    };
    while let Some(part) = source.file()? {
        let complete = part.is_complete;
        if let Extent::WholeFilesBelow(below) = extent
            && (!complete || part.height > below)
        {
            break;
        }
        copied.added += extend(from, to, &part)?;
        copied.files += 1;
        copied.height = part.height;
        copied.head = part.head;
    }
    if extent == Extent::All
        && let Some(last) = there
            .last()
            .filter(|last| **last >= base.file + copied.files)
    {
        return Err(CopyError::Ahead {
            from: files::path(from, *last),
            to: files::path(to, *last),
        });
    }
    files::sync_folder(to)?;
    Ok(copied)
}

/// One file of the source whose blocks are good.
struct Part {
    file: u32,
    /// Up to here.
    length: u64,
    /// The height after its last block.
    height: u64,
    head: Option<[u8; 32]>,
    /// Whether others follow.
    is_complete: bool,
    /// Where its blocks begin, and their numbers.
    first: u64,
    starts: Vec<u64>,
}

/// The source, file by file.
struct Source {
    walk: Walk,
    height: u64,
    previous: Option<[u8; 32]>,
    /// A record of the next file, read already.
    held: Option<super::Walked>,
    over: bool,
}

impl Source {
    fn begin(folder: &Path, channel: &str) -> Result<Self, StoreError> {
        let walk = Walk::begin(folder, channel)?;
        Ok(Self {
            height: walk.first(),
            previous: walk.previous(),
            walk,
            held: None,
            over: false,
        })
    }

    fn file(&mut self) -> Result<Option<Part>, CopyError> {
        if self.over {
            return Ok(None);
        }
        let mut part: Option<Part> = None;
        loop {
            let record = match self.held.take() {
                Some(record) => record,
                None => match self.walk.step()? {
                    Some(Step::Record(record)) => record,
                    None => break,
                    // The newest block, as it is being written.
                    Some(Step::CutOff { more: false, .. }) => break,
                    Some(Step::CutOff { file, offset, .. }) => {
                        return Err(self.damaged(file, offset, "the record is cut off"));
                    }
                },
            };
            if let Some(part) = &mut part
                && part.file != record.file
            {
                part.is_complete = true;
                self.held = Some(record);
                break;
            }
            self.take(&record)?;
            let part = part.get_or_insert_with(|| Part {
                file: record.file,
                length: 0,
                height: 0,
                head: None,
                is_complete: false,
                first: self.height - 1,
                starts: Vec::new(),
            });
            part.starts.push(record.offset);
            part.length = record.end;
            part.height = self.height;
            part.head = self.previous;
        }
        self.over = self.held.is_none();
        Ok(part)
    }

    fn take(&mut self, record: &super::Walked) -> Result<(), CopyError> {
        let damaged = |reason: &str| self.damaged(record.file, record.offset, reason);
        let block = record.block.as_ref().map_err(|reason| damaged(reason))?;
        let header = block::header(block).map_err(|reason| damaged(&reason.to_string()))?;
        if header.number != self.height {
            return Err(damaged(&format!(
                "it says that it is block {}",
                header.number
            )));
        }
        block::check_data_hash(block).map_err(|reason| damaged(&reason.to_string()))?;
        if self
            .previous
            .is_some_and(|previous| header.previous_hash != previous[..])
        {
            return Err(damaged("it does not name the hash of the block before it"));
        }
        self.previous = Some(block::header_hash(header));
        self.height += 1;
        Ok(())
    }

    fn damaged(&self, file: u32, offset: u64, reason: &str) -> CopyError {
        CopyError::Damaged {
            block: self.height,
            path: self.walk.path(file),
            offset,
            reason: reason.to_owned(),
        }
    }
}

/// Brings one file of the copy up to the source; how many bytes were new.
fn extend(from: &Path, to: &Path, part: &Part) -> Result<u64, CopyError> {
    let (from, to) = (files::path(from, part.file), files::path(to, part.file));
    let io = |operation, path: &Path| {
        let path = path.to_owned();
        move |error| StoreError::io(operation, path, error)
    };
    let source = File::open(&from).map_err(io("open", &from))?;
    let target = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&to)
        .map_err(io("open", &to))?;
    let there = target.metadata().map_err(io("read", &to))?.len();
    let common = there.min(part.length);
    if let Some(offset) = difference(&source, &from, &target, &to, 0, common)? {
        let at = part.starts.partition_point(|start| *start <= offset);
        return Err(CopyError::Differs {
            block: part.first + (at as u64).saturating_sub(1),
            from,
            to,
            offset,
        });
    }
    if there > part.length {
        return Err(CopyError::Ahead { from, to });
    }
    let mut buffer = Vec::new();
    for (offset, length) in chunks(there, part.length) {
        buffer.resize(length, 0);
        source
            .read_exact_at(&mut buffer, offset)
            .map_err(io("read", &from))?;
        target
            .write_all_at(&buffer, offset)
            .map_err(io("write", &to))?;
    }
    target.sync_all().map_err(io("sync", &to))?;
    if difference(&source, &from, &target, &to, there, part.length)?.is_some() {
        return Err(CopyError::Unfaithful { path: to });
    }
    Ok(part.length - there)
}

/// Where the two files begin to differ between the offsets.
fn difference(
    left: &File,
    left_path: &Path,
    right: &File,
    right_path: &Path,
    begin: u64,
    end: u64,
) -> Result<Option<u64>, StoreError> {
    let (mut one, mut other) = (Vec::new(), Vec::new());
    for (offset, length) in chunks(begin, end) {
        one.resize(length, 0);
        other.resize(length, 0);
        left.read_exact_at(&mut one, offset)
            .map_err(|error| StoreError::io("read", left_path, error))?;
        right
            .read_exact_at(&mut other, offset)
            .map_err(|error| StoreError::io("read", right_path, error))?;
        if let Some(at) = one.iter().zip(&other).position(|(one, other)| one != other) {
            return Ok(Some(offset + at as u64));
        }
    }
    Ok(None)
}

/// Offsets and lengths of pieces of at most [`CHUNK_BYTES`].
fn chunks(begin: u64, end: u64) -> impl Iterator<Item = (u64, usize)> {
    let mut next = begin;
    std::iter::from_fn(move || {
        let length = (end.saturating_sub(next)).min(CHUNK_BYTES);
        let piece = (length > 0).then_some((next, length as usize));
        next += length;
        piece
    })
}
