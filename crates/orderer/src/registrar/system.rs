//! The system channel: how it begins, creates channels, and ends.
//!
//! It is the one whose configuration has consortiums. However it comes here, from `General.BootstrapFile` or through the
//! participation API, its block is kept like any other join block until the channel is complete, so that a crash at any
//! moment costs nothing but time.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use prost::Message as _;
use quorate_fabric::block;
use quorate_fabric::config::{self, ChannelConfig, CreatedChannel, ETCDRAFT, raft_config};
use quorate_fabric::proto::common::Block;
use quorate_runtime::tasks::blocking;
use tokio::sync::{mpsc, oneshot};
use tracing::{error, info};

use super::desk::{Desk, Request, STOP_PATIENCE, done, erase, flatten};
use super::inactive::Inactive;
use super::join::JoinBlock;
use super::tracker::Tracker;
use super::{LOG, Part, RegistrarError, onboarding};
use crate::admin::RemoveError;
use crate::channel::Creation;
use crate::store::{Ledgers, StoreError, StoredBlock};

/// The block of `General.BootstrapFile`, found usable.
#[derive(Debug, Clone)]
pub struct BootstrapBlock {
    /// The system channel's name.
    pub channel: String,
    /// The block's number: 0 begins a network, a later one joins it.
    pub number: u64,
}

/// Why a block cannot be used as a bootstrap block.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BootstrapError {
    /// The bytes are none.
    #[error("it is not a block")]
    NotABlock,
    /// It is one of another kind, or its configuration cannot be used.
    #[error("{0}")]
    Unusable(String),
    /// It is an application channel's.
    #[error(
        "the block isn't a system channel block because it lacks ConsortiumsConfig; to start without a system channel, \
         set General.BootstrapMethod to none and join the channel with osnadmin or quorate channel join"
    )]
    NoConsortiums,
}

impl BootstrapBlock {
    /// Judges the bytes of such a file. Signatures are not looked at: whoever names the file trusts it.
    ///
    /// # Errors
    /// [`BootstrapError`].
    pub fn judge(bytes: &Bytes) -> Result<Self, BootstrapError> {
        let unusable =
            |reason: &dyn std::fmt::Display| BootstrapError::Unusable(reason.to_string());
        let block = Block::decode(bytes.clone()).map_err(|_| BootstrapError::NotABlock)?;
        let config = ChannelConfig::from_block(&block).map_err(|error| unusable(&error))?;
        if config.consortiums().is_none() {
            return Err(BootstrapError::NoConsortiums);
        }
        if config.consensus_type() != ETCDRAFT {
            return Err(BootstrapError::Unusable(format!(
                "the consensus type is {}, and this orderer serves {ETCDRAFT} only",
                config.consensus_type()
            )));
        }
        // Better now than when everything else runs.
        raft_config::options(config.raft_metadata()).map_err(|error| unusable(&error))?;
        block::check_data_hash(&block).map_err(|error| unusable(&error))?;
        let stored = StoredBlock::new(&block).map_err(|error| unusable(&error))?;
        Ok(Self {
            channel: config.channel_id().to_owned(),
            number: stored.number(),
        })
    }
}

/// Makes a created channel's first block durable, unless the channel has blocks.
pub(super) fn begin(ledgers: &Ledgers, channel: &CreatedChannel) -> Result<(), StoreError> {
    let store = ledgers.get_or_create(&channel.channel_id)?;
    if store.height() == 0 {
        let genesis = StoredBlock::new(&channel.genesis).expect("it was made with all its parts");
        store.append(&genesis)?;
    }
    // Also what is there: it may be what a process wrote that died before it was durable.
    store.sync()?;
    Ok(())
}

/// Creates the channels of the system channel's blocks.
pub(super) struct ChannelCreation {
    pub(super) ledgers: Ledgers,
    pub(super) requests: mpsc::Sender<Request>,
}

impl Creation for ChannelCreation {
    fn create(&self, channel: CreatedChannel) -> BoxFuture<'static, Result<(), String>> {
        let (ledgers, requests) = (self.ledgers.clone(), self.requests.clone());
        Box::pin(async move {
            let name = channel.channel_id.clone();
            let begun = blocking("writing a genesis block", move || begin(&ledgers, &channel));
            flatten(begun.await)?;
            let (reply, started) = oneshot::channel();
            let stopping = || "the orderer is stopping".to_owned();
            requests
                .send(Request::Created(name, reply))
                .await
                .map_err(|_| stopping())?;
            started.await.map_err(|_| stopping())
        })
    }
}

impl Desk {
    /// Finds the system channel, and brings it as far as it has to be before any channel is opened.
    pub(super) async fn open_system(&mut self) -> Result<(), RegistrarError> {
        let ledgers = self.premises.ledgers.clone();
        let (found, mut joins) = blocking("search for a system channel", move || {
            let joins = ledgers.join_blocks()?;
            Ok::<_, StoreError>((system_channels(&ledgers, &joins)?, joins))
        })
        .await??;
        let mut found = found.into_iter();
        let Some(name) = found.next() else {
            return Ok(());
        };
        let others: Vec<String> = found.collect();
        if !others.is_empty() {
            return Err(RegistrarError::SystemChannels(
                std::iter::once(name).chain(others).collect(),
            ));
        }
        if let Some(bytes) = joins.remove(&name) {
            let unusable = |reason: String| RegistrarError::SystemChannel {
                channel: name.clone(),
                reason: format!("its join block cannot be used: {reason}"),
            };
            let join = JoinBlock::judge(bytes, &self.premises)
                .map_err(|reason| unusable(reason.to_string()))?;
            if join.channel != name {
                return Err(unusable(format!("it is that of channel {}", join.channel)));
            }
            self.begin_system(join).await?;
        }
        let ledgers = self.premises.ledgers.clone();
        let channel = name.clone();
        let genesis = blocking("reading a genesis block", move || {
            // It may have been pruned: it is only told here.
            ledgers.get(&channel).ok()??.read(0).ok()?
        })
        .await?;
        if let Some(genesis) = genesis {
            info!(target: LOG, "Starting system channel '{name}' with genesis block hash {} and orderer type {ETCDRAFT}",
                hex::encode(genesis.header_hash()));
        }
        self.system = Some(name);
        Ok(())
    }

    /// From the block with which the system channel was joined to a chain that can be opened.
    async fn begin_system(&mut self, join: JoinBlock) -> Result<(), RegistrarError> {
        let name = join.channel.clone();
        info!(target: LOG, "Join-block was found for the system channel: {name}, number: {}", join.number());
        let ledgers = self.premises.ledgers.clone();
        if join.number() == 0 {
            let (ledgers, channel) = (ledgers.clone(), name.clone());
            blocking("writing a genesis block", move || {
                let store = ledgers.get_or_create(&channel)?;
                if store.height() == 0 {
                    store.append(&join.block)?;
                }
                store.sync()
            })
            .await??;
            info!(target: LOG, "Initialized the system channel '{name}' from bootstrap block");
        } else {
            onboarding::onboard(&self.premises, join).await?;
        }
        blocking("removal of a join block", move || {
            ledgers.remove_join_block(&name)
        })
        .await??;
        Ok(())
    }

    /// What looks for channels that want us; nothing without a system channel.
    pub(super) fn tracker(&self) -> Option<Tracker> {
        self.system.as_ref().map(|_| Tracker {
            premises: self.premises.clone(),
            table: self.table.clone(),
            requests: self.requests.clone(),
        })
    }

    /// Keeps a system channel's block for the next start.
    pub(super) async fn join_system(&mut self, join: JoinBlock) -> Result<Part, String> {
        let name = join.channel.clone();
        info!(target: LOG, "Joining system channel '{name}', with config block number: {}", join.number());
        let (ledgers, channel) = (self.premises.ledgers.clone(), name.clone());
        let (number, block, config) = (join.number(), join.block, join.config);
        let opened = blocking("writing a genesis block", move || {
            let store = ledgers.get_or_create(&channel)?;
            if number == 0 {
                store.append(&block)?;
                store.sync()?;
            }
            Ok::<_, StoreError>(store)
        });
        let store = flatten(opened.await)?;
        self.system = Some(name);
        info!(target: LOG, "System channel creation pending: server requires restart!");
        Ok(Part::Inactive(Arc::new(Inactive::until_restart(
            store, config,
        ))))
    }

    /// A channel was created: its first block is durable.
    pub(super) async fn created(&mut self, name: &str) {
        if self.entries.contains_key(name) {
            return;
        }
        self.open_channel(name, None).await;
        info!(target: LOG, "Created and started new channel {name}");
    }

    /// The newest configuration of a channel names us, says another orderer.
    pub(super) async fn wanted(&mut self, name: &str) {
        let part = self.entries.get(name).map(|entry| &entry.part);
        if matches!(part, Some(Part::Inactive(inactive)) if inactive.is_left()) {
            self.change(name, crate::follower::Target::Newest).await;
        }
    }

    /// Leaves the system channel, and with it the channels that only it kept here. From then on there is none.
    pub(super) async fn leave_system(&mut self, name: &str) -> Result<(), RemoveError> {
        info!(target: LOG, channel = %name, "Removing system channel {name}");
        self.system = None;
        // What others serve is of no use to anybody here. The system channel goes first: should we die in between, the
        // rest is followed, as without a system channel.
        let others = self
            .entries
            .iter()
            .filter(|(other, entry)| *other != name && matches!(entry.part, Part::Inactive(_)));
        let leaving: Vec<String> = std::iter::once(name.to_owned())
            .chain(others.map(|(other, _)| other.clone()))
            .collect();
        let mut failures = Vec::new();
        for channel in leaving {
            let Some(entry) = self.entries.remove(&channel) else {
                continue;
            };
            self.premises.transport.remove(&channel);
            self.premises.trust.forget(&channel);
            entry.tasks.stop(STOP_PATIENCE).await;
            let (premises, erased) = (self.premises.clone(), channel.clone());
            let erased = blocking("removal of a channel", move || erase(&premises, &erased)).await;
            if let Err(reason) = done(erased) {
                error!(target: LOG, channel = %channel, "Channel {channel} could not be removed: {reason}");
                failures.push(channel.clone());
                self.removal_failed(&channel, entry, reason);
            }
        }
        if failures.is_empty() {
            info!(target: LOG, "removed system channel: {name}");
            Ok(())
        } else {
            Err(RemoveError::Failed(format!(
                "failed removing ledger for channel(s): {}",
                failures.join(", ")
            )))
        }
    }
}

/// The channels whose configuration, or join block, has consortiums. A chain that cannot be read is not for us to report.
fn system_channels(
    ledgers: &Ledgers,
    joins: &std::collections::BTreeMap<String, Bytes>,
) -> Result<std::collections::BTreeSet<String>, StoreError> {
    let mut found = std::collections::BTreeSet::new();
    for (name, bytes) in joins {
        if Block::decode(bytes.clone()).is_ok_and(|block| config::is_system_channel(&block)) {
            found.insert(name.clone());
        }
    }
    for name in ledgers.channels()? {
        let newest = ledgers.get(&name).and_then(|store| {
            let Some(store) = store else { return Ok(None) };
            match store.last_config_number() {
                Some(number) => store.read(number),
                None => Ok(None),
            }
        });
        if let Ok(Some(block)) = newest
            && config::is_system_channel(&block.block())
        {
            found.insert(name);
        }
    }
    Ok(found)
}
