//! Blocks as the ordering service makes them: the next one from a batch, and what an orderer adds when it is decided.
//!
//! A leader proposes header and data, with empty metadata ([`Tip::propose`]). When the proposal is decided, every
//! orderer finishes its own copy ([`finish`]): last configuration, consenter metadata, its own signature. Header and
//! data are the same everywhere; the signature is not.

use bytes::Bytes;
use quorate_fabric::block;
use quorate_fabric::msp::{SignError, Signer};
use quorate_fabric::proto::common::Block;
use quorate_fabric::proto::etcdraft::BlockMetadata;

use crate::store::{BlockFormatError, StoredBlock};

/// Bytes of a nonce in a signature header, as Fabric's.
pub const NONCE_BYTES: usize = 24;

/// The end of a chain: what the next block refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tip {
    /// The number of the newest block.
    pub number: u64,
    /// Its header hash.
    pub hash: [u8; 32],
}

impl Tip {
    /// The end of a chain with this newest block.
    pub fn of(block: &StoredBlock) -> Self {
        Self {
            number: block.number(),
            hash: *block.header_hash(),
        }
    }

    /// The block that follows with these envelopes, as it is proposed; the tip moves there.
    pub fn propose(&mut self, envelopes: Vec<Bytes>) -> Block {
        let block = block::new_block(self.number + 1, &self.hash, envelopes);
        if let Some(header) = &block.header {
            self.number = header.number;
            self.hash = block::header_hash(header);
        }
        block
    }
}

/// Why a decided block could not be finished.
#[derive(Debug, thiserror::Error)]
pub enum AssemblyError {
    /// The bytes that were decided are no block.
    #[error("the decided bytes are no block")]
    Format(#[from] BlockFormatError),
    /// Our own signature could not be made.
    #[error("block {number} could not be signed")]
    Signature {
        /// The block.
        number: u64,
        /// Why.
        #[source]
        source: SignError,
    },
}

/// Finishes our copy of a decided block: `last_config` is the number of the configuration block in force (its own, if
/// it is one), `consenters` what the consensus wants to remember, `nonce` a number used once.
///
/// # Errors
/// [`AssemblyError`]; a channel cannot go on then.
pub fn finish(
    mut block: Block,
    last_config: u64,
    consenters: &BlockMetadata,
    signer: &dyn Signer,
    nonce: [u8; NONCE_BYTES],
) -> Result<StoredBlock, AssemblyError> {
    let number = match (&block.header, &block.data) {
        (Some(header), Some(_)) => header.number,
        (None, _) => return Err(BlockFormatError::Missing("header").into()),
        (_, None) => return Err(BlockFormatError::Missing("data").into()),
    };
    block::sign(&mut block, last_config, consenters, &nonce, signer)
        .map_err(|source| AssemblyError::Signature { number, source })?;
    Ok(StoredBlock::new(&block)?)
}
