//! The consenter set and the options of an etcdraft channel.

use std::time::Duration;

use super::{ChannelConfig, ConfigError};
use crate::proto::etcdraft::ConfigMetadata;

/// The options of a channel's Raft group, parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RaftOptions {
    /// The length of a tick.
    pub tick_interval: Duration,
    /// Ticks without a leader before an election; above `heartbeat_tick`.
    pub election_tick: u32,
    /// Ticks between heartbeats.
    pub heartbeat_tick: u32,
    /// Blocks proposed and not yet committed, at most.
    pub max_inflight_blocks: u32,
    /// Bytes of blocks after which a snapshot is taken.
    pub snapshot_interval_size: u32,
}

/// How one consenter set becomes the next one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConsenterChanges {
    /// Indexes, in the new set, of those who come.
    pub added: Vec<usize>,
    /// Indexes, in the old set, of those who go.
    pub removed: Vec<usize>,
}

/// Decodes a channel's consensus metadata.
///
/// # Errors
/// The consensus type is not etcdraft, or the bytes are no `ConfigMetadata`.
pub fn metadata(config: &ChannelConfig) -> Result<ConfigMetadata, ConfigError> {
    let _ = config;
    Err(ConfigError::new("consensus metadata cannot be read yet"))
}

/// Parses a channel's options.
///
/// # Errors
/// They are missing or out of bounds.
pub fn options(metadata: &ConfigMetadata) -> Result<RaftOptions, ConfigError> {
    let _ = metadata;
    Err(ConfigError::new("consensus metadata cannot be read yet"))
}

/// Who comes and who goes between two consenter sets; consenters are compared by their certificates.
pub fn changes(old: &ConfigMetadata, new: &ConfigMetadata) -> ConsenterChanges {
    let _ = (old, new);
    ConsenterChanges::default()
}

/// Judges the consensus metadata of `new`, which is to follow `old`, at `now` (seconds since 1970) while the
/// consenters with the Raft ids `active_nodes` are heard of. `consenter_ids` are the Raft ids of the old set, in its order.
///
/// # Errors
/// The metadata is malformed, its certificates are not of the orderer organisations, more than one consenter changes,
/// or too few nodes are active for the change.
pub fn check_change(
    old: &ChannelConfig,
    new: &ChannelConfig,
    consenter_ids: &[u64],
    active_nodes: &[u64],
    now: i64,
) -> Result<(), ConfigError> {
    let _ = (old, new, consenter_ids, active_nodes, now);
    Err(ConfigError::new("consensus metadata cannot be judged yet"))
}
