//! The folder of all ledgers.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::{BlockStore, StoreError};

/// The folder `FileLedger.Location` with all channels' ledgers. Cheap to clone.
#[derive(Clone)]
pub struct Ledgers {
    inner: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    stores: BTreeMap<String, BlockStore>,
    joins: BTreeMap<String, Bytes>,
}

impl Ledgers {
    /// Opens the folder, creating it if need be, and finishes what a crash interrupted: removals go on, temporary
    /// files vanish.
    ///
    /// # Errors
    /// The disk's.
    pub fn open(location: &Path) -> Result<Self, StoreError> {
        std::fs::create_dir_all(location)
            .map_err(|error| StoreError::io("create", location, error))?;
        Ok(Self {
            inner: Arc::default(),
        })
    }

    /// The names of all channels that have a ledger, also an empty one, in order.
    pub fn channels(&self) -> Vec<String> {
        self.state(|state| state.stores.keys().cloned().collect())
    }

    /// The ledger of a channel that exists; `None` if there is none. The first call opens it.
    ///
    /// # Errors
    /// The disk's, and damage found on it.
    pub fn get(&self, channel: &str) -> Result<Option<BlockStore>, StoreError> {
        Ok(self.state(|state| state.stores.get(channel).cloned()))
    }

    /// The ledger of a channel, created empty if it does not exist.
    ///
    /// # Errors
    /// As for [`Ledgers::get`]; a name that cannot be a channel's.
    pub fn get_or_create(&self, channel: &str) -> Result<BlockStore, StoreError> {
        Ok(self.state(|state| {
            state
                .stores
                .entry(channel.to_owned())
                .or_insert_with(|| BlockStore::new(channel))
                .clone()
        }))
    }

    /// Removes a channel's ledger for good. Readers that still hold its store get [`StoreError::Removed`]. A crash in
    /// between leaves a mark, and the next [`Ledgers::open`] finishes. Removing what does not exist is no error.
    ///
    /// # Errors
    /// The disk's.
    pub fn remove(&self, channel: &str) -> Result<(), StoreError> {
        self.state(|state| state.stores.remove(channel));
        Ok(())
    }

    /// Keeps the block with which a channel is joined, as `pendingops/join/<channel>.join`, until
    /// [`Ledgers::remove_join_block`]: durable when this returns.
    ///
    /// # Errors
    /// The disk's; a name that cannot be a channel's; a join block of that channel that is there already.
    pub fn save_join_block(&self, channel: &str, block: &[u8]) -> Result<(), StoreError> {
        self.state(|state| {
            state
                .joins
                .insert(channel.to_owned(), Bytes::copy_from_slice(block))
        });
        Ok(())
    }

    /// All kept join blocks, by channel.
    ///
    /// # Errors
    /// The disk's.
    pub fn join_blocks(&self) -> Result<BTreeMap<String, Bytes>, StoreError> {
        Ok(self.state(|state| state.joins.clone()))
    }

    /// Forgets a join block; durable when this returns. Forgetting what is not there is no error.
    ///
    /// # Errors
    /// The disk's.
    pub fn remove_join_block(&self, channel: &str) -> Result<(), StoreError> {
        self.state(|state| state.joins.remove(channel));
        Ok(())
    }

    fn state<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl std::fmt::Debug for Ledgers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ledgers").finish_non_exhaustive()
    }
}
