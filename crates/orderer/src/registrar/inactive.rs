//! A channel that this orderer knows of and leaves to others. Only where there is a system channel: without one, it follows.
//!
//! Clients learn that somebody else has to be asked (`SERVICE_UNAVAILABLE`); other orderers, who ask for whatever there is,
//! get the blocks that are here.

use std::sync::Arc;

use quorate_fabric::config::ChannelConfig;
use tokio::sync::watch;

use crate::admin::ConsensusRelation;
use crate::broadcast::Unserved;
use crate::deliver;
use crate::store::BlockStore;

/// What this orderer has of such a channel.
pub(super) struct Inactive {
    store: BlockStore,
    config: Arc<ChannelConfig>,
    standing: Standing,
    reason: String,
    outage: watch::Receiver<bool>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// Others serve it.
    Left,
    /// Others serve it, and we fetch blocks of it.
    Fetching,
    /// It is a system channel that was joined: we serve it after a restart.
    Restart,
}

impl Inactive {
    /// A channel that names other orderers; `fetching` if blocks of it are just being copied.
    pub(super) fn new(
        name: &str,
        store: BlockStore,
        config: Arc<ChannelConfig>,
        fetching: bool,
    ) -> Self {
        let standing = if fetching {
            Standing::Fetching
        } else {
            Standing::Left
        };
        let reason = format!("channel {name} is not serviced by me");
        Self::with(store, config, standing, reason)
    }

    /// A system channel that was joined while the process ran.
    pub(super) fn until_restart(store: BlockStore, config: Arc<ChannelConfig>) -> Self {
        let reason = "system channel creation pending: server requires restart".to_owned();
        Self::with(store, config, Standing::Restart, reason)
    }

    fn with(
        store: BlockStore,
        config: Arc<ChannelConfig>,
        standing: Standing,
        reason: String,
    ) -> Self {
        Self {
            store,
            config,
            standing,
            reason,
            // It stays so: whatever the channel becomes is another part.
            outage: watch::channel(true).1,
        }
    }

    /// What operators are told.
    pub(super) fn relation(&self) -> ConsensusRelation {
        match self.standing {
            Standing::Restart => ConsensusRelation::Consenter,
            Standing::Left | Standing::Fetching => ConsensusRelation::ConfigTracker,
        }
    }

    /// Whether somebody should ask now and then if we are wanted.
    pub(super) fn is_left(&self) -> bool {
        self.standing == Standing::Left
    }

    /// What clients are told.
    pub(super) fn unserved(&self) -> Unserved {
        Unserved {
            config: Some(self.config.clone()),
            reason: self.reason.clone(),
        }
    }
}

impl deliver::Channel for Inactive {
    fn config(&self) -> Arc<ChannelConfig> {
        self.config.clone()
    }

    fn store(&self) -> &BlockStore {
        &self.store
    }

    fn outage(&self) -> watch::Receiver<bool> {
        self.outage.clone()
    }
}
