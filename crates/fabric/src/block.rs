//! Blocks: their header hash, their metadata, and what is signed over them.
//!
//! A block's identity is the hash of its header alone; the header holds the hash of the data and of the previous
//! header. Metadata lies outside: every orderer signs its own copy. Start with [`new_block`] for making one, with
//! [`check_link`] for accepting one after another, and with [`signatures`] for what a policy has to judge.

use bytes::Bytes;

use crate::policy::SignedData;
use crate::proto::common::{
    Block, BlockData, BlockHeader, BlockMetadata, LastConfig, Metadata, MetadataSignature,
    OrdererBlockMetadata,
};
use crate::proto::etcdraft;

/// Entries in the metadata of every block Fabric makes: one for each `BlockMetadataIndex`.
pub const METADATA_ENTRIES: usize = 5;
/// Where the orderers' signatures are.
pub const SIGNATURES: usize = 0;
/// Where older blocks keep the number of the last configuration block.
pub const LAST_CONFIG: usize = 1;
/// Where peers note which transactions are valid. Orderers leave it empty.
pub const TRANSACTIONS_FILTER: usize = 2;
/// Where older blocks keep the consenter's metadata.
pub const ORDERER: usize = 3;
/// Where peers keep their commit hash. Orderers leave it empty.
pub const COMMIT_HASH: usize = 4;

/// A SHA-256 hash: of a header, or of a block's data.
pub type Hash = [u8; 32];

/// Why a block is not what it says it is, or not the one that was expected.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BlockError {
    /// The block has no header.
    #[error("missing block header")]
    NoHeader,
    /// The block has no data.
    #[error("missing block data")]
    NoData,
    /// The block has no metadata, or too few entries of it.
    #[error("block [{number}] has no metadata at index {index}")]
    NoMetadata {
        /// The block's number.
        number: u64,
        /// The entry that was looked for.
        index: usize,
    },
    /// A part of the block is no message of the expected type.
    #[error("block [{number}] has undecodable {part}")]
    Undecodable {
        /// The block's number.
        number: u64,
        /// Which part.
        part: &'static str,
        /// What the decoder said.
        #[source]
        source: prost::DecodeError,
    },
    /// The hash of the data is not the one in the header.
    #[error(
        "computed hash of block ({number}) ({computed}) doesn't match claimed hash ({claimed})"
    )]
    DataHash {
        /// The block's number.
        number: u64,
        /// Hexadecimal hash of the data.
        computed: String,
        /// Hexadecimal hash in the header.
        claimed: String,
    },
    /// Another number was expected.
    #[error("got unexpected sequence - expected [{expected}] but got [{got}]")]
    Number {
        /// The number that would follow.
        expected: u64,
        /// The number in the header.
        got: u64,
    },
    /// The header does not name the previous block's hash.
    #[error(
        "previous header hash of block ({number}) ({claimed}) doesn't match the hash of block ({previous}) ({computed})"
    )]
    PreviousHash {
        /// The block's number.
        number: u64,
        /// The number of the block before.
        previous: u64,
        /// Hexadecimal hash in the header.
        claimed: String,
        /// Hexadecimal hash of the previous header.
        computed: String,
    },
}

/// The bytes that are hashed as a block's header: ASN.1 DER of number, previous hash and data hash.
pub fn header_bytes(header: &BlockHeader) -> Vec<u8> {
    let _ = header;
    Vec::new()
}

/// The hash by which the next block refers to this header.
pub fn header_hash(header: &BlockHeader) -> Hash {
    let _ = header;
    [0; 32]
}

/// The hash of a block's data: of its envelopes' bytes, one after the other.
pub fn data_hash(data: &BlockData) -> Hash {
    let _ = data;
    [0; 32]
}

/// A block of `envelopes` as it is proposed: header complete, five empty metadata entries.
pub fn new_block(number: u64, previous_hash: &[u8], envelopes: Vec<Bytes>) -> Block {
    let _ = (number, previous_hash, envelopes);
    Block::default()
}

/// The block's header; refused when it has none.
pub fn header(block: &Block) -> Result<&BlockHeader, BlockError> {
    block.header.as_ref().ok_or(BlockError::NoHeader)
}

/// Checks that `block` follows the block with header `previous`, and that its data is what its header says.
pub fn check_link(previous: &BlockHeader, block: &Block) -> Result<(), BlockError> {
    let _ = (previous, block);
    Ok(())
}

/// Checks that the block's data is what its header says.
pub fn check_data_hash(block: &Block) -> Result<(), BlockError> {
    let _ = block;
    Ok(())
}

/// The decoded metadata entry at `index`; an empty entry decodes to an empty value.
pub fn metadata(block: &Block, index: usize) -> Result<Metadata, BlockError> {
    let _ = (block, index);
    Ok(Metadata::default())
}

/// Replaces the metadata entry at `index`, adding empty entries as needed.
pub fn set_metadata(block: &mut Block, index: usize, value: Bytes) {
    let _ = (index, value);
    block.metadata.get_or_insert_with(BlockMetadata::default);
}

/// The number of the last configuration block, as this block says. The genesis block says 0.
pub fn last_config(block: &Block) -> Result<u64, BlockError> {
    let _ = (
        block,
        LastConfig::default(),
        OrdererBlockMetadata::default(),
    );
    Ok(0)
}

/// The Raft metadata that the block carries; none in a genesis block and in blocks of other consensus types.
pub fn consenter_metadata(block: &Block) -> Result<Option<etcdraft::BlockMetadata>, BlockError> {
    let _ = block;
    Ok(None)
}

/// Whether the block is a configuration block: one envelope of type `CONFIG` or `ORDERER_TRANSACTION`.
pub fn is_config(block: &Block) -> bool {
    let _ = block;
    false
}

/// The value that orderers sign in `metadata[SIGNATURES]`.
pub fn signed_value(
    last_config: u64,
    consenter_metadata: Option<&etcdraft::BlockMetadata>,
) -> Vec<u8> {
    let _ = (last_config, consenter_metadata);
    Vec::new()
}

/// The bytes that an orderer signs: value, signature header, header bytes.
pub fn signature_input(value: &[u8], signature_header: &[u8], header: &BlockHeader) -> Vec<u8> {
    let _ = (value, signature_header, header);
    Vec::new()
}

/// Writes `metadata[SIGNATURES]`, and `metadata[LAST_CONFIG]` as Fabric still does.
pub fn set_signatures(
    block: &mut Block,
    value: Vec<u8>,
    last_config: u64,
    signatures: Vec<MetadataSignature>,
) {
    let _ = (value, last_config, signatures);
    block.metadata.get_or_insert_with(BlockMetadata::default);
}

/// The signatures that the block carries.
pub fn signatures(block: &Block) -> Result<Vec<SignedData>, BlockError> {
    let _ = block;
    Ok(Vec::new())
}
