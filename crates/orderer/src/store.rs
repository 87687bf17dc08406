//! The ledgers of the ordering service: one chain of blocks per channel, in files of Fabric's own format.
//!
//! [`Ledgers`] owns the folder `FileLedger.Location`: which channels exist, how they come and go without ever being
//! half there, and the join blocks of channels that are still being fetched. [`BlockStore`] is one channel's chain:
//! append, sync, read, wait for growth, prune. [`StoredBlock`] is a block as it lies there and as it is sent. [`Walk`] reads a
//! chain's files without believing or changing anything.
//!
//! Whether a block is *right* (signatures, policies, consenter metadata) is decided before it comes here; the store
//! only insists that it is the next one: its number and its previous hash.
//!
//! Everything here blocks on the disk and knows no async runtime beyond the notification of a new height.
//!
//! Start reading at [`Ledgers`].

mod base;
mod block;
mod chain;
mod copy;
mod error;
mod files;
mod format;
mod index;
mod ledgers;
mod marks;
mod recovery;
#[cfg(test)]
mod tests;
mod walk;

pub use block::{BlockFormatError, StoredBlock};
pub use chain::{BlockStore, MAX_RECENT_BLOCKS, MAX_RECENT_BYTES, Pruned};
pub use copy::{Copied, CopyError, Extent, copy};
pub use error::StoreError;
pub use ledgers::Ledgers;
pub(crate) use marks::Marks;
pub use walk::{Agreement, Step, Walk, Walked};
