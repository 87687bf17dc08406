//! What the groups below the channel group say, as plain values.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{ApplicationCapabilities, OrdererCapabilities};

/// When a block is full. All three are positive, and `preferred_max_bytes` is not above `absolute_max_bytes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchSize {
    /// Messages in a block, at most.
    pub max_message_count: u32,
    /// No message may be longer, in bytes.
    pub absolute_max_bytes: u32,
    /// A block is cut before it grows beyond this; a single longer message has a block of its own.
    pub preferred_max_bytes: u32,
}

/// Whether a channel does its normal work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConsensusState {
    /// It does.
    Normal,
    /// Only configuration updates by those who may administer the orderer are ordered.
    Maintenance,
}

/// The orderer group.
#[derive(Debug, Clone)]
pub struct OrdererGroup {
    /// The consensus type's name.
    pub consensus_type: String,
    /// The consensus type's own bytes.
    pub consensus_metadata: Vec<u8>,
    /// Normal work, or maintenance.
    pub state: ConsensusState,
    /// When a block is full.
    pub batch_size: BatchSize,
    /// How long a message waits for others.
    pub batch_timeout: Duration,
    /// How many channels a system channel may create; 0 means any number.
    pub max_channels: u64,
    /// What the group requires.
    pub capabilities: OrdererCapabilities,
    /// The organisations by the name of their group.
    pub organisations: BTreeMap<String, OrdererOrg>,
}

/// What every organisation has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrganisationConfig {
    /// The name of its group.
    pub name: String,
    /// The identifier of its membership service provider.
    pub msp_id: String,
}

/// An organisation of the orderer group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrdererOrg {
    /// Name and MSP.
    pub organisation: OrganisationConfig,
    /// Where its orderers are reached, `host:port`.
    pub endpoints: Vec<String>,
}

/// The application group.
#[derive(Debug, Clone)]
pub struct ApplicationGroup {
    /// What the group requires.
    pub capabilities: ApplicationCapabilities,
    /// The organisations by the name of their group.
    pub organisations: BTreeMap<String, ApplicationOrg>,
}

/// An organisation of the application group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApplicationOrg {
    /// Name and MSP.
    pub organisation: OrganisationConfig,
}

/// A consortium of a system channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Consortium {
    /// The organisations by the name of their group.
    pub organisations: BTreeMap<String, OrganisationConfig>,
}
