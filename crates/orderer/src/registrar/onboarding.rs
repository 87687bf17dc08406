//! How an orderer that comes late to a network with a system channel gets all channels.
//!
//! It has a configuration block of the system channel, and trusts it. First the system chain is copied up to that block,
//! whose hash proves that it is the right one; then each channel that the chain has created gets its first block here;
//! then the channels that name this orderer are copied as far as they are. All of it can be repeated: what is there is
//! not fetched again. Start reading at [`onboard`]; [`probe`] is also how the tracker finds out whether we are wanted.

use std::collections::BTreeMap;

use quorate_fabric::config::{ChannelConfig, ConfigError, CreatedChannel, OrdererEndpoint};
use quorate_runtime::tasks::{TaskFailure, blocking};
use tracing::{info, warn};

use super::consenter::{Chain, StartError};
use super::join::JoinBlock;
use super::{Premises, system};
use crate::replication::{ChainVerifier, PullFailure, Puller};
use crate::store::{BlockStore, StoreError};

/// The name under which operators know these log lines.
const LOG: &str = "orderer.common.cluster";

/// Blocks that are written before the disk is waited for: they can be had again.
const BLOCKS_A_SYNC: u64 = 100;

/// Why not all channels could be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OnboardingError {
    /// The disk's.
    #[error("the blocks of channel {channel} cannot be stored")]
    Store {
        /// Which.
        channel: String,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// What is here already.
    #[error("the ledger of channel {channel} cannot be continued")]
    Ledger {
        /// Which.
        channel: String,
        /// Why.
        #[source]
        source: StartError,
    },
    /// The others did not give it.
    #[error(
        "block {number} of the system channel {channel} cannot be had from the orderers that its configuration block names; \
         start again when they can be reached"
    )]
    Pull {
        /// The system channel.
        channel: String,
        /// The block.
        number: u64,
        /// Why.
        #[source]
        source: PullFailure,
    },
    /// A block that creates a channel.
    #[error("block {number} of the system channel {channel} cannot be understood")]
    Creation {
        /// The system channel.
        channel: String,
        /// The block.
        number: u64,
        /// Why.
        #[source]
        source: ConfigError,
    },
    /// A part of us panicked.
    #[error(transparent)]
    Panicked(#[from] TaskFailure),
}

/// Copies the system channel up to the block with which it was joined, and the channels that name us as far as they are.
pub(super) async fn onboard(premises: &Premises, join: JoinBlock) -> Result<(), OnboardingError> {
    let (name, number) = (join.channel.clone(), join.number());
    info!(target: LOG, "Will now replicate chains");
    let sources = join.config.orderer_endpoints();
    let store = open(premises, &name).await?;
    let verifier = verifier(&name, &store)
        .await?
        .expect(number, *join.block.header_hash());
    let mut puller = puller(premises, &name, sources.clone(), Some(verifier));
    copy(&name, &store, &mut puller, number + 1)
        .await?
        .map_err(|(number, source)| OnboardingError::Pull {
            channel: name.clone(),
            number,
            source,
        })?;
    // Only now is it certain that this is the chain that the block belongs to.
    let channels = created(premises, &name, &store, number).await?;
    info!(target: LOG, "Discovered {} channels: {}", channels.len(), listed(&channels));
    for channel in channels {
        if probe(premises, &channel, sources.clone()).await {
            replicate(premises, &channel, sources.clone()).await?;
        }
    }
    Ok(())
}

/// Whether the newest configuration of a channel names us, as far as anybody says. Nothing that is answered here is
/// believed: blocks are judged by the chain before them when they are copied.
pub(super) async fn probe(
    premises: &Premises,
    channel: &str,
    sources: Vec<OrdererEndpoint>,
) -> bool {
    info!(target: LOG, "Probing whether I should pull channel {channel}");
    let asked = puller(premises, channel, sources, None)
        .last_config_block(None)
        .await;
    let not_mine = |reason: &str| {
        info!(target: LOG, "I do not belong to channel {channel} or am forbidden pulling it ({reason}), skipping chain retrieval");
        false
    };
    match asked {
        Ok(block) => match ChannelConfig::from_block(&block.block()) {
            Ok(config) if premises.is_member(&config) => {
                info!(target: LOG, "I need to pull channel {channel}");
                true
            }
            Ok(_) => not_mine("not in the channel"),
            Err(reason) => {
                warn!(target: LOG, "The newest configuration of channel {channel} cannot be used: {reason}");
                false
            }
        },
        Err(forbidden @ PullFailure::Forbidden) => not_mine(&forbidden.to_string()),
        Err(reason @ PullFailure::ServiceUnavailable) => {
            info!(target: LOG, "All orderers in the system channel are either down, or do not service channel {channel} ({reason}), skipping chain retrieval");
            false
        }
        Err(reason) => {
            warn!(target: LOG, "Could not obtain blocks needed for classifying whether I am in the channel, skipping the retrieval of the chan {channel}: {reason}");
            false
        }
    }
}

/// Copies a channel as far as anybody has it. That it does not succeed is told: the rest comes later, through consensus or
/// by the tracker.
async fn replicate(
    premises: &Premises,
    channel: &str,
    sources: Vec<OrdererEndpoint>,
) -> Result<(), OnboardingError> {
    info!(target: LOG, "Pulling channel {channel}");
    let store = open(premises, channel).await?;
    let verifier = verifier(channel, &store).await?;
    let mut puller = puller(premises, channel, sources, Some(verifier));
    let pulled = match puller.heights().await {
        Ok(heights) => {
            let height = heights.into_values().max().unwrap_or_default();
            info!(target: LOG, "Latest block height for channel {channel} is {height}");
            copy(channel, &store, &mut puller, height).await?
        }
        Err(failure) => Err((store.height(), failure)),
    };
    if let Err((number, failure)) = pulled {
        warn!(target: LOG, "Failed pulling channel {channel}: block [{number}]: {failure}");
    }
    Ok(())
}

/// Copies blocks until there are `height` of them; what is copied is durable then. The inner error is the others'.
async fn copy(
    channel: &str,
    store: &BlockStore,
    puller: &mut Puller,
    height: u64,
) -> Result<Result<(), (u64, PullFailure)>, OnboardingError> {
    let failed = |source| OnboardingError::Store {
        channel: channel.to_owned(),
        source,
    };
    let mut outcome = Ok(());
    for number in store.height()..height {
        match puller.pull(number).await {
            Ok(block) => store.append(&block).map_err(failed)?,
            Err(failure) => {
                outcome = Err((number, failure));
                break;
            }
        }
        info!(target: LOG, "Committed block [{number}] for channel {channel}");
        if number % BLOCKS_A_SYNC == BLOCKS_A_SYNC - 1 {
            sync(store).await?.map_err(failed)?;
        }
    }
    sync(store).await?.map_err(failed)?;
    Ok(outcome)
}

async fn sync(store: &BlockStore) -> Result<Result<u64, StoreError>, TaskFailure> {
    let store = store.clone();
    blocking("sync of blocks", move || store.sync()).await
}

async fn open(premises: &Premises, channel: &str) -> Result<BlockStore, OnboardingError> {
    let (ledgers, name) = (premises.ledgers.clone(), channel.to_owned());
    blocking("opening a ledger", move || ledgers.get_or_create(&name))
        .await?
        .map_err(|source| OnboardingError::Store {
            channel: channel.to_owned(),
            source,
        })
}

/// Judges blocks by the chain that is here.
async fn verifier(channel: &str, store: &BlockStore) -> Result<ChainVerifier, OnboardingError> {
    let store = store.clone();
    let read = blocking("reading a ledger", move || Chain::read(store)).await?;
    let found = read.map_err(|source| OnboardingError::Ledger {
        channel: channel.to_owned(),
        source,
    })?;
    Ok(match found {
        None => ChainVerifier::new(channel, None, None),
        Some(chain) => {
            let newest = chain.newest_header();
            ChainVerifier::new(channel, Some(chain.config), Some(newest))
        }
    })
}

fn puller(
    premises: &Premises,
    channel: &str,
    sources: Vec<OrdererEndpoint>,
    verifier: Option<ChainVerifier>,
) -> Puller {
    Puller::new(premises.puller.clone(), channel, sources, verifier)
}

/// The channels that the system chain has created up to that block; each has its first block here afterwards.
async fn created(
    premises: &Premises,
    system: &str,
    store: &BlockStore,
    last: u64,
) -> Result<Vec<String>, OnboardingError> {
    let (ledgers, store, system) = (premises.ledgers.clone(), store.clone(), system.to_owned());
    blocking("reading the system channel", move || {
        let mut channels = BTreeMap::new();
        for number in 0..=last {
            let read = store.read(number);
            let block = read.map_err(|source| OnboardingError::Store {
                channel: system.clone(),
                source,
            })?;
            let Some(block) = block else { break };
            let created = CreatedChannel::from_block(&block.block());
            let created = created.map_err(|source| OnboardingError::Creation {
                channel: system.clone(),
                number,
                source,
            })?;
            if let Some(created) = created {
                info!(target: LOG, "Block {number} contains channel {}", created.channel_id);
                // Who asks for a channel that exists gets nothing.
                channels
                    .entry(created.channel_id.clone())
                    .or_insert(created);
            }
        }
        for (channel, created) in &channels {
            system::begin(&ledgers, created).map_err(|source| OnboardingError::Store {
                channel: channel.clone(),
                source,
            })?;
        }
        Ok(channels.into_keys().collect())
    })
    .await?
}

/// Names as Fabric's log lines have them: `[a b c]`.
pub(super) fn listed(names: &[String]) -> String {
    format!("[{}]", names.join(" "))
}
