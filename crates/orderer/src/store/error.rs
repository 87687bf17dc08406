//! What can go wrong with a ledger on disk.

use std::path::{Path, PathBuf};

/// Why a ledger could not be opened, read or extended.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The operating system refused a file operation; a full disk shows up here.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// What was tried, as a verb: `write`, `read`, `sync`.
        operation: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's answer.
        #[source]
        source: std::io::Error,
    },
    /// The bytes at a place of a block file are not a block of this chain.
    #[error(
        "block file {} is damaged at offset {offset}: {reason}; restore the ledger of channel {channel:?} from a copy, \
         or remove its folder and join the channel again",
        path.display()
    )]
    Damaged {
        /// The channel whose ledger it is.
        channel: String,
        /// The block file.
        path: PathBuf,
        /// Where the damaged record begins, in bytes from the file's start.
        offset: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// The index does not say where a block is. It is made from the block files whenever it is missing.
    #[error(
        "index {} says nothing true about block {number}; remove the file and start the orderer again",
        path.display()
    )]
    Index {
        /// The index.
        path: PathBuf,
        /// The block.
        number: u64,
    },
    /// A block that was pruned.
    #[error(
        "block {number} of channel {channel:?} was pruned; the first block that is here is {first}, older ones are in \
         the archive"
    )]
    Pruned {
        /// The channel.
        channel: String,
        /// The block that was asked for.
        number: u64,
        /// The first block that is there.
        first: u64,
    },
    /// Another process has locked the folder.
    #[error(
        "the ledgers in {} are used by another process; stop it, or set another FileLedger.Location",
        location.display()
    )]
    InUse {
        /// The folder.
        location: PathBuf,
    },
    /// A block that is not the next one of the chain.
    #[error("channel {channel:?}: block {number} cannot be appended: {reason}")]
    NotNext {
        /// The channel.
        channel: String,
        /// The refused block's number.
        number: u64,
        /// What does not fit.
        reason: String,
    },
    /// A file operation of this ledger failed before; what the disk holds is no longer known, so nothing more is
    /// written until the process is started again.
    #[error(
        "the ledger of channel {channel:?} stopped after an error ({reason}); mend the disk and start the orderer again"
    )]
    Stopped {
        /// The channel.
        channel: String,
        /// The first error.
        reason: String,
    },
    /// The channel was removed while someone still held its store.
    #[error("channel {channel:?} was removed")]
    Removed {
        /// The channel.
        channel: String,
    },
    /// A name that cannot be a channel's, and so not a folder's either.
    #[error("{name:?} cannot be a channel's name: {reason}")]
    Name {
        /// The refused name.
        name: String,
        /// Which rule it breaks.
        reason: String,
    },
}

impl StoreError {
    pub(super) fn io(
        operation: &'static str,
        path: impl AsRef<Path>,
        source: std::io::Error,
    ) -> Self {
        Self::Io {
            operation,
            path: path.as_ref().to_owned(),
            source,
        }
    }
}
