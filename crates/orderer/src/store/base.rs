//! Where a chain begins whose oldest blocks were pruned.
//!
//! ```text
//! magic · CRC-32C of what follows · first block u64 · its file u32 · hash of the block before it
//! count u32 · count × (length u32 · common.Block)       the kept blocks
//! ```
//!
//! The file is written before the first block file goes, so that a prune which was interrupted is finished at the next
//! start. It only ever moves forward. Kept are the genesis block and the configuration in force where the chain begins:
//! the one identifies the channel, and without the other nothing that follows could be judged.
//!
//! A chain without this file begins with block 0 in file 0, as Fabric's do.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::path::Path;

use bytes::Bytes;

use super::files::sync_folder;
use super::{StoreError, StoredBlock};

/// The file's name in a channel's folder. Fabric's code looks only at names that begin with `blockfile_`.
pub(super) const FILE_NAME: &str = "base.quorate";

const UNFINISHED: &str = "base.quorate~";
const MAGIC: [u8; 8] = *b"QRTBAS\x00\x01";
const FIXED_BYTES: usize = 8 + 4 + 8 + 4 + 32 + 4;

/// The genesis block and one configuration block.
const MAX_KEPT: u32 = 2;

/// The beginning of a chain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Base {
    /// The first block that is in the block files.
    pub(super) first: u64,
    /// The block file that it begins.
    pub(super) file: u32,
    /// The hash of the block before it; `None` where nothing was pruned.
    pub(super) previous: Option<[u8; 32]>,
    /// Older blocks that are still there, by ascending number.
    pub(super) kept: Vec<StoredBlock>,
}

impl Base {
    /// Reads the beginning of the chain in `folder`.
    pub(super) fn read(folder: &Path, channel: &str) -> Result<Self, StoreError> {
        let path = folder.join(FILE_NAME);
        let bytes = match fs::read(&path) {
            Ok(bytes) => Bytes::from(bytes),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(StoreError::io("read", &path, error)),
        };
        Self::decode(&bytes).ok_or_else(|| StoreError::Damaged {
            channel: channel.to_owned(),
            path,
            offset: 0,
            reason: "it does not say where the pruned chain begins".to_owned(),
        })
    }

    /// Writes it, durable when this returns.
    pub(super) fn write(&self, folder: &Path) -> Result<(), StoreError> {
        let (path, unfinished) = (folder.join(FILE_NAME), folder.join(UNFINISHED));
        let write = || -> std::io::Result<()> {
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .open(&unfinished)?;
            file.write_all(&self.encode())?;
            file.sync_all()?;
            fs::rename(&unfinished, &path)
        };
        write().map_err(|error| StoreError::io("write", &path, error))?;
        sync_folder(folder)
    }

    /// The kept block of that number.
    pub(super) fn kept(&self, number: u64) -> Option<&StoredBlock> {
        self.kept.iter().find(|block| block.number() == number)
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.first.to_le_bytes());
        out.extend_from_slice(&self.file.to_le_bytes());
        out.extend_from_slice(&self.previous.unwrap_or_default());
        let count = u32::try_from(self.kept.len()).expect("two blocks are kept");
        out.extend_from_slice(&count.to_le_bytes());
        for block in &self.kept {
            let length = u32::try_from(block.encoded().len())
                .expect("a block of gigabytes is not taken into the chain");
            out.extend_from_slice(&length.to_le_bytes());
            out.extend_from_slice(block.encoded());
        }
        let checksum = crc32c::crc32c(&out[12..]);
        out[8..12].copy_from_slice(&checksum.to_le_bytes());
        out
    }

    fn decode(bytes: &Bytes) -> Option<Self> {
        if bytes.len() < FIXED_BYTES || bytes[..8] != MAGIC {
            return None;
        }
        let word = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        if word(8)? != crc32c::crc32c(&bytes[12..]) {
            return None;
        }
        let first = u64::from_le_bytes(*bytes[12..].first_chunk()?);
        let (file, count) = (word(20)?, word(56)?);
        if count > MAX_KEPT || first == 0 {
            return None;
        }
        let mut kept = Vec::new();
        let mut at = FIXED_BYTES;
        for _ in 0..count {
            let length = word(at)? as usize;
            let end = at.checked_add(4)?.checked_add(length)?;
            if end > bytes.len() {
                return None;
            }
            let block = StoredBlock::decode(bytes.slice(at + 4..end)).ok()?;
            if block.number() >= first {
                return None;
            }
            kept.push(block);
            at = end;
        }
        (at == bytes.len()).then_some(Self {
            first,
            file,
            previous: Some(*bytes[24..].first_chunk()?),
            kept,
        })
    }
}
