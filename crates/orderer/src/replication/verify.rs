//! Which blocks are believed.
//!
//! The hash chain makes the last block's signature speak for all before it; a configuration block is judged by the
//! configuration before it and is itself the measure for what follows. So a batch costs one signature check, and one
//! more for each configuration block.

use std::collections::BTreeMap;
use std::sync::Arc;

use quorate_fabric::block::{self, BlockError, Hash};
use quorate_fabric::config::{ChannelConfig, ConfigError, CreatedChannel};
use quorate_fabric::proto::common::{Block, BlockHeader};

const BLOCK_VALIDATION: &str = "/Channel/Orderer/BlockValidation";

/// Why blocks are not believed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// A block is not well formed, not in its place, or not signed by those who must.
    #[error("{0}")]
    Block(BlockError),
    /// The configuration in a configuration block cannot be used.
    #[error("the config block [{number}] holds a configuration that cannot be used: {source}")]
    Config {
        /// The block's number.
        number: u64,
        /// What is wrong with it.
        source: ConfigError,
    },
    /// The configuration in force does not say who makes blocks.
    #[error("policy {BLOCK_VALIDATION} wasn't found")]
    NoPolicy,
    /// No configuration is known by which the block could be judged.
    #[error(
        "block [{number}] cannot be judged: no configuration of the channel is known before it"
    )]
    NoConfig {
        /// The block's number.
        number: u64,
    },
    /// The chain is not the one that was to be followed.
    #[error(
        "block [{number}] is not the one that this orderer was told to expect; its hash is {found}, not {expected}"
    )]
    Unexpected {
        /// The block's number.
        number: u64,
        /// Hexadecimal hash of its header.
        found: String,
        /// Hexadecimal hash of the expected header.
        expected: String,
    },
    /// The block is not a configuration block.
    #[error("block [{number}] is not a config block")]
    NotConfig {
        /// The block's number.
        number: u64,
    },
}

impl From<BlockError> for VerifyError {
    fn from(error: BlockError) -> Self {
        Self::Block(error)
    }
}

/// Believes the blocks of one chain, one batch after the other.
#[derive(Clone)]
pub struct ChainVerifier {
    channel: String,
    config: Option<Arc<ChannelConfig>>,
    previous: Option<BlockHeader>,
    expected: BTreeMap<u64, Hash>,
}

impl ChainVerifier {
    /// Continues a chain whose last block has the header `previous` and whose configuration is `config`. A new chain has
    /// neither: its genesis block is then taken for what it says, so [`ChainVerifier::expect`] something of it.
    #[must_use]
    pub fn new(
        channel: &str,
        config: Option<Arc<ChannelConfig>>,
        previous: Option<BlockHeader>,
    ) -> Self {
        Self {
            channel: channel.to_owned(),
            config,
            previous,
            expected: BTreeMap::new(),
        }
    }

    /// Requires block `number` to have this header hash, as a join block's hash is known before its chain is.
    #[must_use]
    pub fn expect(mut self, number: u64, header_hash: Hash) -> Self {
        self.expected.insert(number, header_hash);
        self
    }

    /// The configuration in force after the last believed block.
    #[must_use]
    pub fn config(&self) -> Option<&Arc<ChannelConfig>> {
        self.config.as_ref()
    }

    /// Believes the blocks, which follow each other and those believed before, or none of them.
    ///
    /// # Errors
    /// [`VerifyError`] naming the first that is wrong.
    pub fn verify(&mut self, blocks: &[Block]) -> Result<(), VerifyError> {
        hashes(self.previous.as_ref(), blocks)?;
        let mut config = self.config.clone();
        for (index, block) in blocks.iter().enumerate() {
            let header = block::header(block)?;
            let number = header.number;
            if let Some(expected) = self.expected.get(&number) {
                let found = block::header_hash(header);
                if found != *expected {
                    return Err(VerifyError::Unexpected {
                        number,
                        found: hex::encode(found),
                        expected: hex::encode(expected),
                    });
                }
            }
            let is_config = block::is_config(block);
            let is_last = index + 1 == blocks.len();
            if is_config || is_last {
                match &config {
                    Some(config) => signed(block, config)?,
                    // Nobody signs a genesis block.
                    None if number == 0 && is_config => {}
                    None => return Err(VerifyError::NoConfig { number }),
                }
            }
            // A block that creates another channel is signed like a configuration block, but leaves this channel as it is.
            if is_config && !matches!(CreatedChannel::from_block(block), Ok(Some(_))) {
                config = Some(Arc::new(self.read(number, block)?));
            }
        }
        if let Some(last) = blocks.last() {
            self.previous.clone_from(&last.header);
            self.config = config;
        }
        Ok(())
    }

    fn read(&self, number: u64, block: &Block) -> Result<ChannelConfig, VerifyError> {
        let config = ChannelConfig::from_block(block)
            .map_err(|source| VerifyError::Config { number, source })?;
        if config.channel_id() != self.channel {
            return Err(VerifyError::Unexpected {
                number,
                found: config.channel_id().to_owned(),
                expected: self.channel.clone(),
            });
        }
        Ok(config)
    }
}

/// Checks that the blocks' data is what their headers say and that each follows the one before.
pub(super) fn hashes(previous: Option<&BlockHeader>, blocks: &[Block]) -> Result<(), VerifyError> {
    let mut previous = previous;
    for block in blocks {
        match previous {
            Some(previous) => block::check_link(previous, block)?,
            None => block::check_data_hash(block)?,
        }
        previous = Some(block::header(block)?);
    }
    Ok(())
}

/// Checks a configuration block that is looked at alone.
pub(super) fn config_block(
    block: &Block,
    trusted: Option<&ChannelConfig>,
) -> Result<(), VerifyError> {
    block::check_data_hash(block)?;
    let number = block::header(block)?.number;
    if !block::is_config(block) {
        return Err(VerifyError::NotConfig { number });
    }
    match trusted {
        // Nobody signs a genesis block.
        Some(config) if number > 0 => signed(block, config),
        _ => Ok(()),
    }
}

pub(crate) fn signed(block: &Block, config: &ChannelConfig) -> Result<(), VerifyError> {
    let rule = config
        .policies()
        .get(BLOCK_VALIDATION)
        .ok_or(VerifyError::NoPolicy)?;
    Ok(block::verify_signatures(block, &rule)?)
}
