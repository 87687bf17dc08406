//! What a block must be to be joined with.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use quorate_fabric::block;
use quorate_fabric::config::{ChannelConfig, ETCDRAFT};
use quorate_fabric::envelope::{EnvelopeParts, RawEnvelope, WireError};
use quorate_fabric::proto::common::Block;

use super::Premises;
use crate::admin::JoinError;
use crate::store::StoredBlock;

/// A block that a channel can be joined with.
pub(crate) struct JoinBlock {
    pub(crate) channel: String,
    pub(crate) block: StoredBlock,
    pub(crate) config: Arc<ChannelConfig>,
    /// Whether the configuration names us as a consenter.
    pub(crate) is_member: bool,
}

impl JoinBlock {
    /// Judges the bytes that somebody wants us to join with. Signatures are not checked: whoever joins a channel trusts
    /// where the block came from. Everything that follows it is checked against it.
    ///
    /// # Errors
    /// Why it cannot be joined with.
    pub(super) fn judge(bytes: Bytes, premises: &Premises) -> Result<Self, JoinError> {
        let block = Block::decode(bytes.clone())
            .map_err(|_| JoinError::NotABlock(WireError::Malformed.to_string()))?;
        let invalid = |reason: String| JoinError::InvalidBlock(reason);
        if !block::is_config(&block) {
            return Err(invalid("block is not a config block".to_owned()));
        }
        if block.header.is_none() {
            return Err(invalid("block has no header".to_owned()));
        }
        if block.metadata.is_none() {
            return Err(invalid("block has no metadata".to_owned()));
        }
        let config = ChannelConfig::from_block(&block).map_err(|error| {
            if error.is_incompatible() {
                JoinError::Failed(format!(
                    "failed creating ledger resources: error checking bundle for channel: {}: {error}",
                    name_of(&block)
                ))
            } else {
                invalid(error.to_string())
            }
        })?;
        if config.application().is_none() && config.consortiums().is_none() {
            return Err(invalid(
                "invalid config: must have at least one of application or consortiums".to_owned(),
            ));
        }
        if config.consensus_type() != ETCDRAFT {
            return Err(JoinError::Failed(format!(
                "failed to find a consenter for consensus type: {}",
                config.consensus_type()
            )));
        }
        let channel = config.channel_id().to_owned();
        let block = StoredBlock::new(&block).map_err(|error| invalid(error.to_string()))?;
        let is_member = premises.is_member(&config);
        Ok(Self {
            channel,
            block,
            config: Arc::new(config),
            is_member,
        })
    }

    /// The number of the last block that has to be there before the channel has been joined.
    pub(crate) fn number(&self) -> u64 {
        self.block.number()
    }
}

/// The channel's name, for a message about a configuration that cannot be used.
fn name_of(block: &Block) -> String {
    let first = block.data.as_ref().and_then(|data| data.data.first());
    first
        .and_then(|bytes| RawEnvelope::decode(bytes.clone()).ok())
        .and_then(|envelope| EnvelopeParts::parse(&envelope).ok())
        .map_or_else(String::new, |parts| parts.channel_header.channel_id)
}
