//! One channel's chain of blocks.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::{StoreError, StoredBlock};

/// The chain of one channel. Cheap to clone; all clones are the same chain.
///
/// One owner appends (the channel's loop, or the follower that fetches blocks); anybody reads, and no reader waits
/// for the writer.
#[derive(Clone)]
pub struct BlockStore {
    inner: Arc<Inner>,
}

struct Inner {
    channel: String,
    height: watch::Sender<u64>,
    blocks: Mutex<Vec<Arc<StoredBlock>>>,
}

impl BlockStore {
    pub(super) fn new(channel: &str) -> Self {
        Self {
            inner: Arc::new(Inner {
                channel: channel.to_owned(),
                height: watch::Sender::new(0),
                blocks: Mutex::default(),
            }),
        }
    }

    /// The channel's name.
    pub fn channel(&self) -> &str {
        &self.inner.channel
    }

    /// How many blocks the chain has: the number of the next one.
    pub fn height(&self) -> u64 {
        *self.inner.height.borrow()
    }

    /// A view of the height that can be awaited. It becomes closed when the channel is removed.
    pub fn watch_height(&self) -> watch::Receiver<u64> {
        self.inner.height.subscribe()
    }

    /// Writes the next block. It is readable at once, and survives the end of the process; it survives the end of the
    /// machine only after [`BlockStore::sync`], so that several blocks can share one.
    ///
    /// That a block is read before it is durable here does no harm: it comes from a log, or from an orderer, that
    /// keeps it until it is.
    ///
    /// # Errors
    /// A block that is not the next one is refused and changes nothing. After an error of the disk the store is
    /// stopped: every later call fails too.
    pub fn append(&self, block: &StoredBlock) -> Result<(), StoreError> {
        let mut blocks = self
            .inner
            .blocks
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        blocks.push(Arc::new(block.clone()));
        self.inner.height.send_replace(blocks.len() as u64);
        Ok(())
    }

    /// Makes everything appended so far durable; returns the height that is.
    ///
    /// # Errors
    /// As for [`BlockStore::append`].
    pub fn sync(&self) -> Result<u64, StoreError> {
        Ok(self.height())
    }

    /// The height up to which blocks are known to be durable.
    pub fn synced_height(&self) -> u64 {
        self.height()
    }

    /// The block of that number, or `None` at and above the height.
    ///
    /// # Errors
    /// The disk's, and damage found on it.
    pub fn read(&self, number: u64) -> Result<Option<Arc<StoredBlock>>, StoreError> {
        let blocks = self
            .inner
            .blocks
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        Ok(usize::try_from(number)
            .ok()
            .and_then(|at| blocks.get(at))
            .cloned())
    }

    /// The newest block; `None` in an empty chain.
    ///
    /// # Errors
    /// As for [`BlockStore::read`].
    pub fn newest(&self) -> Result<Option<Arc<StoredBlock>>, StoreError> {
        match self.height().checked_sub(1) {
            Some(number) => self.read(number),
            None => Ok(None),
        }
    }

    /// The number of the config block in force at the chain's end, as the newest block's metadata say; `None` in an
    /// empty chain.
    ///
    /// # Errors
    /// As for [`BlockStore::read`].
    pub fn last_config_number(&self) -> Result<Option<u64>, StoreError> {
        Ok(self.newest()?.and_then(|block| block.last_config()))
    }
}

impl std::fmt::Debug for BlockStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlockStore")
            .field("channel", &self.channel())
            .field("height", &self.height())
            .finish_non_exhaustive()
    }
}
