//! A channel's configuration: parsed, validated, and the rules by which one follows another.
//!
//! [`ChannelConfig`] is what an orderer knows about a channel; it exists only if everything in it makes sense and is
//! supported. [`raft_config`] judges the consenter set and the options of etcdraft channels. What depends on the
//! state of a running cluster is passed as an argument; who may send a message at all is the orderer's to check.

pub mod capabilities;
mod error;
pub mod groups;
pub mod raft_config;

use std::time::Duration;

pub use capabilities::{ApplicationCapabilities, ChannelCapabilities, OrdererCapabilities};
pub use error::ConfigError;
pub use groups::{
    ApplicationGroup, ApplicationOrg, BatchSize, ConsensusState, Consortium, OrdererGroup,
    OrdererOrg, OrganisationConfig,
};

use crate::proto::common::{Block, Config};
use crate::proto::etcdraft::ConfigMetadata;

/// The configuration of one channel at one sequence: every group parsed and valid, its orderer group present, its
/// capabilities supported.
#[derive(Debug)]
pub struct ChannelConfig {
    channel_id: String,
    config: Config,
    capabilities: ChannelCapabilities,
    orderer: OrdererGroup,
    application: Option<ApplicationGroup>,
    consortiums: Option<std::collections::BTreeMap<String, Consortium>>,
    orderer_addresses: Vec<String>,
    raft_metadata: ConfigMetadata,
}

impl ChannelConfig {
    /// Parses and validates a configuration.
    ///
    /// # Errors
    /// What is missing, malformed, contradictory or not supported, in Fabric's words.
    pub fn new(channel_id: &str, config: Config) -> Result<Self, ConfigError> {
        let _ = (channel_id, config);
        Err(ConfigError::new(
            "channel configurations cannot be read yet",
        ))
    }

    /// The configuration that a configuration block carries.
    ///
    /// # Errors
    /// The block is no configuration block, or what it holds is refused by [`ChannelConfig::new`].
    pub fn from_block(block: &Block) -> Result<Self, ConfigError> {
        let _ = block;
        Err(ConfigError::new(
            "channel configurations cannot be read yet",
        ))
    }

    /// The channel's name.
    pub fn channel_id(&self) -> &str {
        &self.channel_id
    }

    /// How many updates the channel has seen; messages validated under another sequence are validated again.
    pub fn sequence(&self) -> u64 {
        self.config.sequence
    }

    /// The message this was made from.
    pub fn proto(&self) -> &Config {
        &self.config
    }

    /// What the channel group requires of everybody.
    pub fn capabilities(&self) -> &ChannelCapabilities {
        &self.capabilities
    }

    /// The orderer group.
    pub fn orderer(&self) -> &OrdererGroup {
        &self.orderer
    }

    /// The application group; a system channel has none.
    pub fn application(&self) -> Option<&ApplicationGroup> {
        self.application.as_ref()
    }

    /// The consortiums by name, in system channels only.
    pub fn consortiums(&self) -> Option<&std::collections::BTreeMap<String, Consortium>> {
        self.consortiums.as_ref()
    }

    /// When a block is full.
    pub fn batch_size(&self) -> BatchSize {
        self.orderer.batch_size
    }

    /// How long a message waits for others to fill its block.
    pub fn batch_timeout(&self) -> Duration {
        self.orderer.batch_timeout
    }

    /// The consensus type's name, `etcdraft` where we can serve the channel.
    pub fn consensus_type(&self) -> &str {
        &self.orderer.consensus_type
    }

    /// Normal work, or maintenance.
    pub fn state(&self) -> ConsensusState {
        self.orderer.state
    }

    /// Consenters and options; empty where the consensus type is another one or the bytes make no sense
    /// ([`raft_config::metadata`] says why).
    pub fn raft_metadata(&self) -> &ConfigMetadata {
        &self.raft_metadata
    }

    /// The channel-wide orderer addresses; each organisation's own are in [`OrdererOrg::endpoints`].
    pub fn orderer_addresses(&self) -> &[String] {
        &self.orderer_addresses
    }
}
