//! Reading a chain's block files from their beginning, believing and changing nothing.
//!
//! For looking at chains from outside: to verify them, to copy them. A process that appends to the chain meanwhile does no
//! harm; its newest block may be seen as a record that is cut off.

use std::path::{Path, PathBuf};

use quorate_fabric::proto::common::Block;

use super::base::Base;
use super::files::{self, Readers, Record};
use super::index::{Index, Promise};
use super::{StoreError, StoredBlock, format};

/// A record of a block file.
#[derive(Debug, Clone)]
pub struct Walked {
    /// The block file's number.
    pub file: u32,
    /// Where the record begins, in bytes.
    pub offset: u64,
    /// Where the next one begins.
    pub end: u64,
    /// The block, or why the bytes are none.
    pub block: Result<Block, &'static str>,
    /// CRC-32C of the block's bytes.
    checksum: u32,
    body: u64,
}

/// What comes next in the files.
#[derive(Debug, Clone)]
pub enum Step {
    /// A record.
    Record(Walked),
    /// What is left of this block file is no whole record; where it begins.
    CutOff {
        /// The block file's number.
        file: u32,
        /// Where, in bytes.
        offset: u64,
        /// Whether there are further files.
        more: bool,
    },
}

/// A walk through one chain.
pub struct Walk {
    folder: PathBuf,
    base: Base,
    readers: Readers,
    files: std::vec::IntoIter<u32>,
    at: Option<(u32, u64)>,
    index: Option<(Index, Promise)>,
}

impl Walk {
    /// Begins at the first block in the chain's `folder`.
    ///
    /// # Errors
    /// The disk's; a block file that is missing between others.
    pub fn begin(folder: &Path, channel: &str) -> Result<Self, StoreError> {
        let base = Base::read(folder, channel)?;
        let count = files::count(folder, channel, base.file)?;
        Ok(Self {
            folder: folder.to_owned(),
            readers: Readers::new(folder),
            files: (base.file..count).collect::<Vec<_>>().into_iter(),
            at: None,
            index: Index::look(folder)?,
            base,
        })
    }

    /// The first block that has to be there.
    #[must_use]
    pub fn first(&self) -> u64 {
        self.base.first
    }

    /// The hash of the block before it, if older ones were pruned.
    #[must_use]
    pub fn previous(&self) -> Option<[u8; 32]> {
        self.base.previous
    }

    /// Older blocks that were kept: genesis, and the configuration in force where the chain begins.
    #[must_use]
    pub fn kept(&self) -> &[StoredBlock] {
        &self.base.kept
    }

    /// A block file's path.
    #[must_use]
    pub fn path(&self, file: u32) -> PathBuf {
        files::path(&self.folder, file)
    }

    /// The height below which all blocks were durable, as the index says; `None` without an index.
    #[must_use]
    pub fn durable(&self) -> Option<u64> {
        self.index.as_ref().map(|(_, promise)| promise.synced)
    }

    /// The index's path.
    #[must_use]
    pub fn index_path(&self) -> PathBuf {
        self.folder.join(super::index::FILE_NAME)
    }

    /// Whether the index says of block `number` what the record is.
    ///
    /// # Errors
    /// The disk's.
    pub fn index_agrees(&self, number: u64, record: &Walked) -> Result<Agreement, StoreError> {
        let Some((index, promise)) = &self.index else {
            return Ok(Agreement::Silent);
        };
        if number >= promise.synced {
            return Ok(Agreement::Silent);
        }
        Ok(match index.get(number)? {
            None => Agreement::NoEntry,
            Some(entry) => {
                let place = (entry.file, entry.offset, entry.end());
                if place != (record.file, record.body, record.end) {
                    Agreement::ElseWhere
                } else if entry.checksum != record.checksum {
                    Agreement::OtherBytes
                } else {
                    Agreement::Same
                }
            }
        })
    }

    /// The next record; `None` after the last file.
    ///
    /// # Errors
    /// The disk's.
    pub fn step(&mut self) -> Result<Option<Step>, StoreError> {
        loop {
            let (file, offset) = match self.at {
                Some(at) => at,
                None => match self.files.next() {
                    Some(file) => (file, 0),
                    None => return Ok(None),
                },
            };
            match self.readers.record(file, offset)? {
                Record::End => self.at = None,
                Record::CutOff => {
                    self.at = None;
                    let more = self.files.len() > 0;
                    return Ok(Some(Step::CutOff { file, offset, more }));
                }
                Record::Whole(location, body) => {
                    let end = location.end();
                    self.at = Some((file, end));
                    return Ok(Some(Step::Record(Walked {
                        file,
                        offset,
                        end,
                        block: format::block(&body).map_err(|reason| reason.0),
                        checksum: location.checksum,
                        body: location.offset,
                    })));
                }
            }
        }
    }
}

/// What the index says of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Agreement {
    /// The same.
    Same,
    /// Nothing, and it need not.
    Silent,
    /// Nothing, though it should.
    NoEntry,
    /// That the block is somewhere else.
    ElseWhere,
    /// That the block's bytes were others when they were written.
    OtherBytes,
}
