//! The folder of all ledgers.
//!
//! ```text
//! <location>/chains/<channel>/blockfile_000000 …    Fabric's format
//!                            /index.quorate         ours, made again when missing
//!           /pendingops/join/<channel>.join         the block with which a channel is being joined
//!           /pendingops/remove/<channel>.remove     a removal that has begun
//!           /incarnation/<channel>.incarnation      the registrar's: the name of the channel's Raft group
//!           /lock                                   held by the process that uses the folder
//! ```
//!
//! Fabric's orderer keeps a database in `<location>/index`. It is removed when we take over: it would no longer be
//! right once a block was appended, and Fabric's orderer makes it again from the block files, should an operator go
//! back to it.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::files::{self, sync_folder};
use super::marks::Marks;
use super::{BlockStore, StoreError};
use crate::metrics::Ledger as LedgerMetrics;

/// The longest name of a channel, in bytes, that Fabric allows.
const MAX_NAME_BYTES: usize = 249;

/// The folder `FileLedger.Location` with all channels' ledgers. Cheap to clone.
#[derive(Clone)]
pub struct Ledgers {
    inner: Arc<Inner>,
}

struct Inner {
    chains: PathBuf,
    joins: Marks,
    removals: Marks,
    stores: Mutex<BTreeMap<String, BlockStore>>,
    max_file_bytes: u64,
    metrics: Option<LedgerMetrics>,
    /// Released when the last clone goes.
    _lock: File,
}

impl Ledgers {
    /// Opens the folder, creating it if need be, and finishes what a crash interrupted: removals go on, unfinished
    /// files vanish. The chains themselves are opened when they are asked for.
    ///
    /// # Errors
    /// The disk's; another process that uses the folder.
    pub fn open(location: &Path) -> Result<Self, StoreError> {
        Self::open_with(location, files::MAX_FILE_BYTES, None)
    }

    /// As [`Ledgers::open`]; heights and the time that commits take are counted.
    ///
    /// # Errors
    /// As for [`Ledgers::open`].
    pub fn open_measured(location: &Path, metrics: &LedgerMetrics) -> Result<Self, StoreError> {
        Self::open_with(location, files::MAX_FILE_BYTES, Some(metrics))
    }

    pub(crate) fn open_with(
        location: &Path,
        max_file_bytes: u64,
        metrics: Option<&LedgerMetrics>,
    ) -> Result<Self, StoreError> {
        let chains = location.join("chains");
        let pending = location.join("pendingops");
        for folder in [&chains, &pending] {
            fs::create_dir_all(folder).map_err(|error| StoreError::io("create", folder, error))?;
        }
        let lock = lock_folder(location)?;
        sync_folder(location)?;
        remove_fabrics_index(location)?;
        let ledgers = Self {
            inner: Arc::new(Inner {
                chains,
                joins: Marks::open(&pending, "join")?,
                removals: Marks::open(&pending, "remove")?,
                stores: Mutex::default(),
                max_file_bytes,
                metrics: metrics.cloned(),
                _lock: lock,
            }),
        };
        for channel in ledgers.inner.removals.channels()? {
            check_name(&channel)?;
            tracing::info!(channel, "Going on with the removal of the channel's ledger");
            ledgers.remove(&channel)?;
        }
        Ok(ledgers)
    }

    /// The names of all channels that have a ledger, also an empty one, in order.
    ///
    /// # Errors
    /// The disk's.
    pub fn channels(&self) -> Result<Vec<String>, StoreError> {
        let chains = &self.inner.chains;
        let read = |error| StoreError::io("read", chains, error);
        let mut channels = Vec::new();
        for entry in fs::read_dir(chains).map_err(read)? {
            let entry = entry.map_err(read)?;
            if !entry.file_type().map_err(read)?.is_dir() {
                continue;
            }
            match entry.file_name().into_string() {
                Ok(name) if check_name(&name).is_ok() => channels.push(name),
                name => tracing::warn!(folder = ?name, "Ignoring a folder that is not a channel's"),
            }
        }
        channels.sort();
        Ok(channels)
    }

    /// The ledger of a channel that exists; `None` if there is none. The first call opens it.
    ///
    /// # Errors
    /// The disk's, and damage found on it.
    pub fn get(&self, channel: &str) -> Result<Option<BlockStore>, StoreError> {
        if check_name(channel).is_err() {
            return Ok(None);
        }
        let mut stores = self.stores();
        if let Some(store) = stores.get(channel) {
            return Ok(Some(store.clone()));
        }
        if !self.folder(channel).is_dir() {
            return Ok(None);
        }
        self.open_store(&mut stores, channel).map(Some)
    }

    /// The ledger of a channel, created empty if it does not exist.
    ///
    /// # Errors
    /// As for [`Ledgers::get`]; a name that cannot be a channel's.
    pub fn get_or_create(&self, channel: &str) -> Result<BlockStore, StoreError> {
        check_name(channel)?;
        let mut stores = self.stores();
        if let Some(store) = stores.get(channel) {
            return Ok(store.clone());
        }
        let folder = self.folder(channel);
        match fs::create_dir(&folder) {
            Ok(()) => sync_folder(&self.inner.chains)?,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(StoreError::io("create", &folder, error)),
        }
        self.open_store(&mut stores, channel)
    }

    /// Removes a channel's ledger for good. Whoever still holds its store gets [`StoreError::Removed`]. A crash in
    /// between leaves a mark, and the next [`Ledgers::open`] finishes. Removing what does not exist is no error.
    ///
    /// # Errors
    /// The disk's.
    pub fn remove(&self, channel: &str) -> Result<(), StoreError> {
        check_name(channel)?;
        let mut stores = self.stores();
        self.inner.removals.save(channel, &[])?;
        if let Some(store) = stores.remove(channel) {
            store.close();
        }
        let folder = self.folder(channel);
        match fs::remove_dir_all(&folder) {
            Ok(()) => sync_folder(&self.inner.chains)?,
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(StoreError::io("remove", &folder, error)),
        }
        self.inner.removals.remove(channel)
    }

    /// Keeps the block with which a channel is joined, as `pendingops/join/<channel>.join`, until
    /// [`Ledgers::remove_join_block`]: durable when this returns. An older one is replaced.
    ///
    /// # Errors
    /// The disk's; a name that cannot be a channel's.
    pub fn save_join_block(&self, channel: &str, block: &[u8]) -> Result<(), StoreError> {
        check_name(channel)?;
        self.inner.joins.save(channel, block)
    }

    /// All kept join blocks, by channel. Their content is whatever is in the files.
    ///
    /// # Errors
    /// The disk's.
    pub fn join_blocks(&self) -> Result<BTreeMap<String, Bytes>, StoreError> {
        let mut blocks = BTreeMap::new();
        for channel in self.inner.joins.channels()? {
            if let Some(block) = self.inner.joins.read(&channel)? {
                blocks.insert(channel, block);
            }
        }
        Ok(blocks)
    }

    /// Forgets a join block; durable when this returns. Forgetting what is not there is no error.
    ///
    /// # Errors
    /// The disk's.
    pub fn remove_join_block(&self, channel: &str) -> Result<(), StoreError> {
        self.inner.joins.remove(channel)
    }

    fn open_store(
        &self,
        stores: &mut BTreeMap<String, BlockStore>,
        channel: &str,
    ) -> Result<BlockStore, StoreError> {
        let folder = self.folder(channel);
        let store = BlockStore::open(
            &folder,
            channel,
            self.inner.max_file_bytes,
            self.inner.metrics.as_ref(),
        )?;
        stores.insert(channel.to_owned(), store.clone());
        Ok(store)
    }

    fn folder(&self, channel: &str) -> PathBuf {
        self.inner.chains.join(channel)
    }

    fn stores(&self) -> MutexGuard<'_, BTreeMap<String, BlockStore>> {
        self.inner
            .stores
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Ledgers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ledgers")
            .field("chains", &self.inner.chains)
            .finish_non_exhaustive()
    }
}

/// Two processes on one folder would write over each other's blocks.
fn lock_folder(location: &Path) -> Result<File, StoreError> {
    let path = location.join("lock");
    let io = |error| StoreError::io("lock", &path, error);
    let file = File::create(&path).map_err(io)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::InUse {
            location: location.to_owned(),
        }),
        Err(TryLockError::Error(error)) => Err(io(error)),
    }
}

fn remove_fabrics_index(location: &Path) -> Result<(), StoreError> {
    let index = location.join("index");
    // The file by which a LevelDB is known: nothing else is removed.
    if index.join("CURRENT").exists() {
        tracing::info!(
            folder = %index.display(),
            "Removing the block index of Fabric's orderer, which it makes again from the block files when needed"
        );
        fs::remove_dir_all(&index).map_err(|error| StoreError::io("remove", &index, error))?;
        sync_folder(location)?;
    }
    Ok(())
}

/// Whether a channel of this name can have a folder. What names are good for channels is decided elsewhere, and has
/// been decided differently in the past: here it only matters that a name does not lead out of the folder.
fn check_name(name: &str) -> Result<(), StoreError> {
    let reason = if name.is_empty() || name.len() > MAX_NAME_BYTES {
        "it must have 1 to 249 characters"
    } else if name.starts_with('.') {
        "it begins with a dot"
    } else if !name
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte))
    {
        "only letters, digits, dots, dashes and underscores are allowed"
    } else {
        return Ok(());
    };
    Err(StoreError::Name {
        name: name.to_owned(),
        reason: reason.to_owned(),
    })
}
