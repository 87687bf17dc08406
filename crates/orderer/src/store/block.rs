//! A block as it is stored and sent.

use bytes::Bytes;
use prost::Message;
use quorate_fabric::block as rules;
use quorate_fabric::proto::common::{Block, BlockHeader, BlockMetadata};

/// Why bytes are not a block.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BlockFormatError {
    /// Not a `common.Block` message.
    #[error("not a block: {0}")]
    Protobuf(#[from] prost::DecodeError),
    /// The part of a block without which it has no place in a chain is missing.
    #[error("the block has no {0}")]
    Missing(&'static str),
}

/// A block in its encoded form, with the few facts that are needed without decoding it.
///
/// Cheap to clone: the bytes are shared.
#[derive(Clone, PartialEq, Eq)]
pub struct StoredBlock {
    header: BlockHeader,
    header_hash: [u8; 32],
    last_config: Option<u64>,
    encoded: Bytes,
}

impl StoredBlock {
    /// The stored form of `block`.
    ///
    /// # Errors
    /// A block without header or data has no place in a chain.
    pub fn new(block: &Block) -> Result<Self, BlockFormatError> {
        let header = block
            .header
            .clone()
            .ok_or(BlockFormatError::Missing("header"))?;
        if block.data.is_none() {
            return Err(BlockFormatError::Missing("data"));
        }
        let encoded = match &block.metadata {
            Some(_) => block.encode_to_vec(),
            // A block file does not tell absent metadata from empty ones.
            None => Block {
                metadata: Some(BlockMetadata::default()),
                ..block.clone()
            }
            .encode_to_vec(),
        };
        Ok(Self {
            header_hash: rules::header_hash(&header),
            header,
            last_config: rules::last_config(block).ok(),
            encoded: encoded.into(),
        })
    }

    /// Reads a `common.Block` message, as it comes from another orderer or from a file.
    ///
    /// # Errors
    /// Bytes that are not a block, and what [`StoredBlock::new`] refuses.
    pub fn decode(encoded: Bytes) -> Result<Self, BlockFormatError> {
        Self::new(&Block::decode(encoded)?)
    }

    /// The block's number.
    pub fn number(&self) -> u64 {
        self.header.number
    }

    /// The block's header.
    pub fn header(&self) -> &BlockHeader {
        &self.header
    }

    /// SHA-256 of the header's ASN.1 form: what the next block names as its previous hash.
    pub fn header_hash(&self) -> &[u8; 32] {
        &self.header_hash
    }

    /// The number of the config block that was in force when this block was made (its own number, if it is one), as
    /// its metadata say; `None` if they do not.
    pub fn last_config(&self) -> Option<u64> {
        self.last_config
    }

    /// The whole block as a `common.Block` message, metadata included.
    pub fn encoded(&self) -> &Bytes {
        &self.encoded
    }

    /// The decoded block. Its parts share the encoded bytes.
    pub fn block(&self) -> Block {
        Block::decode(self.encoded.clone()).expect("the bytes were encoded from a block")
    }
}

impl std::fmt::Debug for StoredBlock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoredBlock")
            .field("number", &self.number())
            .field("bytes", &self.encoded.len())
            .finish_non_exhaustive()
    }
}
