//! From a chain on disk to a running consenter.

use std::sync::Arc;

use quorate_consensus::snapshots::SnapshotFiles;
use quorate_consensus::{Entries, Group, GroupError, LogError, Options as GroupOptions, Snapshot};
use quorate_fabric::block;
use quorate_fabric::config::{ChannelConfig, ConfigError, raft_config};
use quorate_fabric::proto::common::BlockHeader;
use quorate_runtime::Tasks;
use quorate_runtime::tasks::blocking;

use super::incarnation::{Incarnation, IncarnationError};
use super::wiring::{ChannelPeers, ChannelReplication};
use super::{LOG, Premises};
use crate::channel::consenters::{Consenters, ConsentersError};
use crate::channel::core::{Setup, SetupError};
use crate::channel::{ChannelHandle, ChannelMetrics, Creation, Start, start};
use crate::store::{BlockStore, StoreError, StoredBlock};

/// Bytes of entries in one append message to another consenter. One entry is a block, and a larger one travels alone.
const MAX_APPEND_BYTES: u64 = 1 << 20;

/// Why a channel that is on disk cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The ledger.
    #[error("the ledger cannot be used")]
    Store(#[from] StoreError),
    /// There is no configuration block.
    #[error(
        "the ledger has {height} blocks and no configuration block among them; remove the channel and join it again"
    )]
    NoConfiguration {
        /// Blocks in the ledger.
        height: u64,
    },
    /// A block of ours cannot be read.
    #[error("block {number} of the ledger cannot be understood")]
    Block {
        /// Which.
        number: u64,
        /// Why.
        #[source]
        source: block::BlockError,
    },
    /// The configuration.
    #[error("the configuration in block {number} cannot be used")]
    Config {
        /// The configuration block.
        number: u64,
        /// Why.
        #[source]
        source: ConfigError,
    },
    /// Block metadata and configuration.
    #[error("the consenters of the channel cannot be told")]
    Consenters(#[from] ConsentersError),
    /// The Raft group.
    #[error("the channel's Raft group cannot be started")]
    Group(#[from] GroupError),
    /// The log.
    #[error("the consensus log cannot be read")]
    Log(#[from] LogError),
    /// The name of the group.
    #[error(transparent)]
    Incarnation(#[from] IncarnationError),
    /// The folder for snapshots.
    #[error("the folder of the channel's snapshots cannot be used")]
    Snapshots(#[source] std::io::Error),
    /// The channel itself.
    #[error(transparent)]
    Setup(#[from] SetupError),
}

/// A chain on disk, with the configuration in force at its end.
pub(super) struct Chain {
    pub(super) store: BlockStore,
    pub(super) config: Arc<ChannelConfig>,
    newest: Arc<StoredBlock>,
    last_config: u64,
}

impl Chain {
    /// Reads the end of a chain; `None` if it has no blocks yet.
    pub(super) fn read(store: BlockStore) -> Result<Option<Self>, StartError> {
        let height = store.height();
        let Some(newest) = height.checked_sub(1) else {
            return Ok(None);
        };
        let missing = || StartError::NoConfiguration { height };
        let newest = store.read(newest)?.ok_or_else(missing)?;
        let last_config = store.last_config_number().ok_or_else(missing)?;
        let block = store.read(last_config)?.ok_or_else(missing)?;
        let config =
            ChannelConfig::from_block(&block.block()).map_err(|source| StartError::Config {
                number: last_config,
                source,
            })?;
        Ok(Some(Self {
            store,
            config: Arc::new(config),
            newest,
            last_config,
        }))
    }

    fn metadata(
        &self,
    ) -> Result<Option<quorate_fabric::proto::etcdraft::BlockMetadata>, StartError> {
        block::consenter_metadata(&self.newest.block()).map_err(|source| StartError::Block {
            number: self.newest.number(),
            source,
        })
    }

    /// Our Raft id in this channel, if we are one of its consenters. We are recognised by the public key of the
    /// certificate that our cluster listener shows.
    pub(super) fn raft_id(&self, premises: &Premises) -> Result<Option<u64>, StartError> {
        let consenters = Consenters::new(self.metadata()?.as_ref(), self.config.raft_metadata())?;
        Ok(consenters.find(|consenter| premises.is_ours(&consenter.server_tls_cert)))
    }

    /// The header of the newest block.
    pub(super) fn newest_header(&self) -> BlockHeader {
        self.newest.header().clone()
    }

    /// Starts our part in the channel as its consenter `raft_id`; `creation` creates channels if it is a system channel.
    pub(super) fn serve(
        self,
        raft_id: u64,
        premises: &Arc<Premises>,
        creation: Arc<dyn Creation>,
        tasks: &Tasks,
    ) -> Result<ChannelHandle, StartError> {
        let creation = self.config.consortiums().map(|_| creation);
        let name = self.config.channel_id().to_owned();
        let metadata = self.metadata()?;
        let raft_index = metadata.as_ref().map_or(0, |metadata| metadata.raft_index);
        let options = raft_config::options(self.config.raft_metadata()).map_err(|source| {
            StartError::Config {
                number: self.last_config,
                source,
            }
        })?;
        let options = GroupOptions {
            id: raft_id,
            name: name.clone(),
            election_tick: options.election_tick as usize,
            heartbeat_tick: options.heartbeat_tick as usize,
            max_inflight: options.max_inflight_blocks as usize,
            max_size_per_message: MAX_APPEND_BYTES,
        };
        let members = Consenters::new(metadata.as_ref(), self.config.raft_metadata())?;
        let (incarnation, group, born) =
            self.group(&name, options, members.ids(), raft_index, premises)?;
        let id = incarnation.group();
        let snapshots =
            SnapshotFiles::open(premises.snapshots.join(&name)).map_err(StartError::Snapshots)?;
        let snapshot_block = group.snapshot().and_then(|snapshot| {
            StoredBlock::decode(snapshot.data.clone())
                .ok()
                .map(|block| block.number())
        });
        let setup = Setup {
            raft_id,
            config: self.config,
            newest: self.newest,
            last_config: self.last_config,
            // Not known without reading the blocks again; the next snapshot comes a little late.
            bytes_since_snapshot: 0,
            snapshot_block: snapshot_block.unwrap_or(0),
            group,
            born,
            signer: premises.signer.clone(),
            entropy: premises.entropy.clone(),
            rules: premises.rules,
            tick_override: premises.tick_override,
            eviction_suspicion: premises.eviction_suspicion,
        };
        let peers = Arc::new(ChannelPeers {
            channel: name.clone(),
            transport: premises.transport.clone(),
        });
        let replication = Arc::new(ChannelReplication {
            channel: name.clone(),
            store: self.store.clone(),
            premises: premises.clone(),
        });
        let (marking, marked) = (tasks.clone(), (premises.clone(), name));
        let begun = move || {
            if !incarnation.has_begun() {
                let (premises, channel) = marked;
                marking.spawn("mark of a Raft group's beginning", async move {
                    let marked = blocking("mark of a Raft group's beginning", move || {
                        premises.incarnations.begun(&channel, incarnation)
                    });
                    marked.await.unwrap_or(Ok(()))
                });
            }
        };
        let handle = start(
            Start {
                setup,
                store: self.store,
                log: premises.log.clone(),
                group: id,
                snapshots,
                peers,
                replication,
                creation,
                clock: premises.clock.clone(),
                metrics: ChannelMetrics::of(&premises.metrics),
                begun: Some(Box::new(begun)),
            },
            tasks,
        )?;
        Ok(handle)
    }

    /// The channel's Raft group: as the log has it; new where the channel is; and silent in elections where the log has
    /// lost it. Also whether it is born now.
    fn group(
        &self,
        name: &str,
        options: GroupOptions,
        members: &[u64],
        raft_index: u64,
        premises: &Premises,
    ) -> Result<(Incarnation, Group, bool), StartError> {
        let incarnation = match premises.incarnations.read(name)? {
            Some(kept) => kept,
            None => premises.incarnations.draw(name, &premises.entropy)?,
        };
        let id = incarnation.group();
        let entries: Arc<dyn Entries> = Arc::new(premises.log.clone());
        let (group, born) = if let Some(recovered) = premises.claim(id)? {
            (
                Group::recover(recovered, options, raft_index, entries)?,
                false,
            )
        } else if incarnation.has_begun() {
            tracing::error!(target: LOG, channel = name,
                "The consensus log of channel {name} in Consensus.WALDir ({}) is lost: this orderer takes no part in \
                 elections until a leader has given back what it may have confirmed. Restore the log if it was only moved \
                 away; otherwise nothing has to be done while more than half of the other consenters run. Should no leader \
                 be elected, remove this orderer from the channel's consenters and add it anew",
                premises.wal.display());
            (Group::forgotten(id, options, entries)?, false)
        } else if incarnation.continues_after(self.newest.number()) && raft_index > 0 {
            tracing::warn!(target: LOG, channel = name,
                "Channel {name} goes on from block [{}], as it was restored on all consenters that had lost their logs",
                self.newest.number());
            let snapshot = Snapshot {
                index: raft_index,
                term: 1,
                members: members.to_vec(),
                data: self.newest.encoded().clone(),
            };
            (Group::continued(id, options, snapshot, entries)?, false)
        } else if self.store.height() == 1 {
            (Group::create(id, options, members, entries)?, true)
        } else {
            (Group::join(id, options, entries)?, false)
        };
        Ok((incarnation, group, born))
    }
}
