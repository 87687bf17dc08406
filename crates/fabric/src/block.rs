//! Blocks: their header hash, their metadata, and what is signed over them.
//!
//! A block's identity is the hash of its header alone; the header holds the hash of the data and of the previous
//! header. Metadata lies outside: every orderer signs its own copy. Start with [`new_block`] and [`sign`] for making
//! a block, with [`check_link`] and [`verify_signatures`] for accepting one that somebody else made.

use aws_lc_rs::digest::{Context, SHA256};
use bytes::Bytes;
use prost::Message;

use crate::envelope::{EnvelopeParts, RawEnvelope, SignatureHeader, WireError};
use crate::msp::{SignError, Signer};
use crate::policy::{Policy, PolicyError, SignedData, verified_identities};
use crate::proto::common::{
    self, Block, BlockData, BlockHeader, BlockMetadata, HeaderType, LastConfig, Metadata,
    MetadataSignature, OrdererBlockMetadata,
};
use crate::proto::etcdraft;

/// Entries in the metadata of every block that Fabric makes, one for each `BlockMetadataIndex`.
pub const METADATA_ENTRIES: usize = 5;
/// Where the orderers' signatures are, and with them what they vouch for.
pub const SIGNATURES: usize = common::BlockMetadataIndex::Signatures as usize;
/// Where blocks keep the number of the last configuration block a second time, unsigned, for old readers.
pub const LAST_CONFIG: usize = common::BlockMetadataIndex::LastConfig as usize;
/// Where peers note which transactions are valid. Orderers leave it empty.
pub const TRANSACTIONS_FILTER: usize = common::BlockMetadataIndex::TransactionsFilter as usize;
/// Where blocks made before Fabric 1.4.1 keep the consenter's metadata.
pub const ORDERER: usize = common::BlockMetadataIndex::Orderer as usize;
/// Where peers keep their commit hash. Orderers leave it empty.
pub const COMMIT_HASH: usize = common::BlockMetadataIndex::CommitHash as usize;

/// A SHA-256 hash: of a header, or of a block's data.
pub type Hash = [u8; 32];

/// Why a block is not what it says it is, or not the one that was expected. The texts are Fabric's.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// The block has no header.
    #[error("missing block header")]
    NoHeader,
    /// The block has no data.
    #[error("missing block data")]
    NoData,
    /// The block has no metadata at all.
    #[error("no metadata in block")]
    NoMetadata,
    /// The metadata ends before the entry that was looked for.
    #[error("no metadata at index [{0}]")]
    NoMetadataEntry(&'static str),
    /// A part of the block is no message of the expected type.
    #[error("error unmarshalling {part} of block [{number}]")]
    Undecodable {
        /// The block's number.
        number: u64,
        /// Which part.
        part: &'static str,
        /// What the decoder said.
        #[source]
        source: prost::DecodeError,
    },
    /// A signature does not say who made it.
    #[error("failed unmarshaling signature header for block with id {number}: {reason}")]
    SignatureHeader {
        /// The block's number.
        number: u64,
        /// What is wrong with the bytes.
        reason: WireError,
    },
    /// The hash of the data is not the one in the header.
    #[error(
        "computed hash of block ({number}) ({computed}) doesn't match claimed hash ({claimed})"
    )]
    DataHash {
        /// The block's number.
        number: u64,
        /// The hash of the data, in hexadecimal digits.
        computed: String,
        /// The hash in the header, in hexadecimal digits.
        claimed: String,
    },
    /// The block does not have the number after the previous one's.
    #[error("sequences {previous} and {number} were received consecutively")]
    Sequence {
        /// The previous block's number.
        previous: u64,
        /// The block's number.
        number: u64,
    },
    /// The header does not name the previous header's hash.
    #[error(
        "block [{previous}]'s hash ({computed}) mismatches block [{number}]'s prev block hash ({claimed})"
    )]
    PreviousHash {
        /// The previous block's number.
        previous: u64,
        /// The previous header's hash, in hexadecimal digits.
        computed: String,
        /// The block's number.
        number: u64,
        /// The hash that the block names, in hexadecimal digits.
        claimed: String,
    },
    /// The signatures do not satisfy the channel's rule for blocks.
    #[error("block [{number}] is not signed as the channel demands")]
    Signatures {
        /// The block's number.
        number: u64,
        /// What the policy said.
        #[source]
        source: PolicyError,
    },
}

/// The bytes that are hashed as a block's header: ASN.1 DER of number, previous hash and data hash.
#[must_use]
pub fn header_bytes(header: &BlockHeader) -> Vec<u8> {
    let number = header.number.to_be_bytes();
    let leading = (header.number.leading_zeros() / 8) as usize;
    // The shortest form of a number that is not negative: at least one byte, and a zero in front of a set top bit.
    let number = &number[leading.min(7)..];
    let sign: &[u8] = if number[0] >= 0x80 { &[0] } else { &[] };

    let mut fields =
        Vec::with_capacity(number.len() + header.previous_hash.len() + header.data_hash.len() + 16);
    put_der(&mut fields, 0x02, &[sign, number]);
    put_der(&mut fields, 0x04, &[&header.previous_hash]);
    put_der(&mut fields, 0x04, &[&header.data_hash]);
    let mut out = Vec::with_capacity(fields.len() + 6);
    put_der(&mut out, 0x30, &[&fields]);
    out
}

fn put_der(out: &mut Vec<u8>, tag: u8, parts: &[&[u8]]) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    out.push(tag);
    if length < 0x80 {
        out.push(length as u8);
    } else {
        // Hashes have 32 bytes, but the header may come from anybody.
        let bytes = length.to_be_bytes();
        let leading = (length.leading_zeros() / 8) as usize;
        out.push(0x80 | (bytes.len() - leading) as u8);
        out.extend_from_slice(&bytes[leading..]);
    }
    for part in parts {
        out.extend_from_slice(part);
    }
}

/// The hash by which the next block refers to this header.
#[must_use]
pub fn header_hash(header: &BlockHeader) -> Hash {
    sha256([header_bytes(header)])
}

/// The hash of a block's data: of its envelopes' bytes, one after the other.
#[must_use]
pub fn data_hash(data: &BlockData) -> Hash {
    sha256(&data.data)
}

fn sha256(parts: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Hash {
    let mut context = Context::new(&SHA256);
    for part in parts {
        context.update(part.as_ref());
    }
    context
        .finish()
        .as_ref()
        .try_into()
        .expect("SHA-256 has 32 bytes")
}

/// A block of `envelopes` as it is proposed: header complete, five empty metadata entries.
#[must_use]
pub fn new_block(number: u64, previous_hash: &[u8], envelopes: Vec<Bytes>) -> Block {
    let data = BlockData { data: envelopes };
    Block {
        header: Some(BlockHeader {
            number,
            previous_hash: Bytes::copy_from_slice(previous_hash),
            data_hash: Bytes::copy_from_slice(&data_hash(&data)),
        }),
        data: Some(data),
        metadata: Some(BlockMetadata {
            metadata: vec![Bytes::new(); METADATA_ENTRIES],
        }),
    }
}

/// The block's header.
///
/// # Errors
/// [`BlockError::NoHeader`].
pub fn header(block: &Block) -> Result<&BlockHeader, BlockError> {
    block.header.as_ref().ok_or(BlockError::NoHeader)
}

/// Checks that the block's data is what its header says.
///
/// # Errors
/// [`BlockError`] naming the hashes, or the part that is missing.
pub fn check_data_hash(block: &Block) -> Result<(), BlockError> {
    let header = header(block)?;
    let computed = data_hash(block.data.as_ref().ok_or(BlockError::NoData)?);
    if header.data_hash != computed[..] {
        return Err(BlockError::DataHash {
            number: header.number,
            computed: hex::encode(computed),
            claimed: hex::encode(&header.data_hash),
        });
    }
    Ok(())
}

/// Checks that the block's data is what its header says, and that it follows the block with the header `previous`.
///
/// # Errors
/// [`BlockError`] naming what does not fit.
pub fn check_link(previous: &BlockHeader, block: &Block) -> Result<(), BlockError> {
    check_data_hash(block)?;
    let header = header(block)?;
    if previous.number.checked_add(1) != Some(header.number) {
        return Err(BlockError::Sequence {
            previous: previous.number,
            number: header.number,
        });
    }
    let computed = header_hash(previous);
    if header.previous_hash != computed[..] {
        return Err(BlockError::PreviousHash {
            previous: previous.number,
            computed: hex::encode(computed),
            number: header.number,
            claimed: hex::encode(&header.previous_hash),
        });
    }
    Ok(())
}

/// Whether the block is a configuration block: one envelope, of type `CONFIG` or `ORDERER_TRANSACTION`.
#[must_use]
pub fn is_config(block: &Block) -> bool {
    let Some([envelope]) = block.data.as_ref().map(|data| data.data.as_slice()) else {
        return false;
    };
    // What cannot be read is an ordinary message to everybody else, too.
    let Ok(parts) = RawEnvelope::decode(envelope.clone())
        .map_err(drop)
        .and_then(|envelope| EnvelopeParts::parse(&envelope).map_err(drop))
    else {
        return false;
    };
    parts.channel_header.is(HeaderType::Config)
        || parts.channel_header.is(HeaderType::OrdererTransaction)
}

/// The bytes of the metadata entry at `index`.
///
/// # Errors
/// [`BlockError`] when there is no such entry.
fn metadata_bytes(block: &Block, index: common::BlockMetadataIndex) -> Result<&Bytes, BlockError> {
    let metadata = block.metadata.as_ref().ok_or(BlockError::NoMetadata)?;
    metadata
        .metadata
        .get(index as usize)
        .ok_or(BlockError::NoMetadataEntry(index.as_str_name()))
}

fn decode<M: Message + Default>(
    block: &Block,
    part: &'static str,
    bytes: &[u8],
) -> Result<M, BlockError> {
    M::decode(bytes).map_err(|source| BlockError::Undecodable {
        number: block.header.as_ref().map_or(0, |header| header.number),
        part,
        source,
    })
}

/// The metadata entry at `index`; an empty entry is an empty message.
///
/// # Errors
/// [`BlockError`] when there is no such entry or it is no `Metadata`.
pub fn metadata(block: &Block, index: common::BlockMetadataIndex) -> Result<Metadata, BlockError> {
    decode(block, index.as_str_name(), metadata_bytes(block, index)?)
}

/// Replaces the metadata entry at `index`, adding empty ones until there are [`METADATA_ENTRIES`].
pub fn set_metadata(block: &mut Block, index: common::BlockMetadataIndex, value: Bytes) {
    let entries = &mut block.metadata.get_or_insert_default().metadata;
    if entries.len() < METADATA_ENTRIES {
        entries.resize(METADATA_ENTRIES, Bytes::new());
    }
    entries[index as usize] = value;
}

/// What orderers vouch for beside the header: where the configuration is, and the consenter's metadata.
fn vouched(block: &Block) -> Result<Option<OrdererBlockMetadata>, BlockError> {
    let signed = metadata(block, common::BlockMetadataIndex::Signatures)?;
    if signed.value.is_empty() {
        return Ok(None);
    }
    decode(block, "orderer block metadata", &signed.value).map(Some)
}

/// The number of the last configuration block, as this block says; a configuration block names itself.
///
/// # Errors
/// [`BlockError`] when the metadata is missing or undecodable.
pub fn last_config(block: &Block) -> Result<u64, BlockError> {
    let last_config = match vouched(block)? {
        Some(vouched) => vouched.last_config.unwrap_or_default(),
        // So did orderers before Fabric 1.4.1.
        None => {
            let entry = metadata(block, common::BlockMetadataIndex::LastConfig)?;
            decode::<LastConfig>(block, "LastConfig", &entry.value)?
        }
    };
    Ok(last_config.index)
}

/// The Raft metadata that the block carries; none in a genesis block.
///
/// # Errors
/// [`BlockError`] when the metadata is missing or undecodable.
pub fn consenter_metadata(block: &Block) -> Result<Option<etcdraft::BlockMetadata>, BlockError> {
    let entry = match vouched(block)? {
        Some(vouched) => decode(block, "consenter metadata", &vouched.consenter_metadata)?,
        None => metadata(block, common::BlockMetadataIndex::Orderer)?,
    };
    if entry.value.is_empty() {
        return Ok(None);
    }
    decode(block, "etcdraft metadata", &entry.value).map(Some)
}

/// Signs a block that is about to be stored, and writes the metadata entries that an orderer writes.
///
/// `last_config` is the number of the last configuration block (the block's own if it is one). `nonce` must never
/// have been used by this signer before.
///
/// # Errors
/// [`SignError`] if the signer's key could not be used.
pub fn sign(
    block: &mut Block,
    last_config: u64,
    consenter: &etcdraft::BlockMetadata,
    nonce: &[u8],
    signer: &dyn Signer,
) -> Result<(), SignError> {
    let last_config = LastConfig { index: last_config };
    let value = OrdererBlockMetadata {
        last_config: Some(last_config),
        consenter_metadata: Metadata {
            value: consenter.encode_to_vec(),
            signatures: Vec::new(),
        }
        .encode_to_vec(),
    }
    .encode_to_vec();
    let signature_header = common::SignatureHeader {
        creator: signer.creator().to_vec(),
        nonce: nonce.to_vec(),
    }
    .encode_to_vec();
    let header = block.header.get_or_insert_default();
    let signature = signer.sign(&signature_input(&value, &signature_header, header))?;

    let signed = Metadata {
        value,
        signatures: vec![MetadataSignature {
            signature_header,
            signature,
            identifier_header: Vec::new(),
        }],
    };
    let unsigned = Metadata {
        value: last_config.encode_to_vec(),
        signatures: Vec::new(),
    };
    use common::BlockMetadataIndex as Index;
    set_metadata(block, Index::Signatures, signed.encode_to_vec().into());
    set_metadata(block, Index::LastConfig, unsigned.encode_to_vec().into());
    Ok(())
}

/// The bytes that an orderer signs: what it vouches for, who it is, and the block's header.
#[must_use]
pub fn signature_input(value: &[u8], signature_header: &[u8], header: &BlockHeader) -> Vec<u8> {
    [value, signature_header, &header_bytes(header)].concat()
}

/// The signatures that the block carries, for a policy to judge, each made when it is asked for: what was signed is mostly the
/// same. None in a genesis block.
///
/// # Errors
/// [`BlockError`] when header or metadata are missing or undecodable.
pub fn signatures(block: &Block) -> Result<impl Iterator<Item = SignedData>, BlockError> {
    let header = header(block)?;
    let metadata = metadata(block, common::BlockMetadataIndex::Signatures)?;
    let mut signatures = Vec::with_capacity(metadata.signatures.len());
    for signature in metadata.signatures {
        let signature_header = Bytes::from(signature.signature_header);
        let signer = SignatureHeader::decode(&signature_header).map_err(|reason| {
            BlockError::SignatureHeader {
                number: header.number,
                reason,
            }
        })?;
        signatures.push((signature_header, signer.creator, signature.signature));
    }
    let value = metadata.value;
    Ok(signatures
        .into_iter()
        .map(move |(signature_header, identity, signature)| SignedData {
            data: signature_input(&value, &signature_header, header).into(),
            identity,
            signature: signature.into(),
        }))
}

/// Checks the block's signatures against the channel's rule for blocks, `/Channel/Orderer/BlockValidation`.
///
/// # Errors
/// [`BlockError`] when they do not satisfy it, or cannot be read.
pub fn verify_signatures(block: &Block, rule: &Policy) -> Result<(), BlockError> {
    let number = header(block)?.number;
    rule.evaluate_identities(&verified_identities(rule.membership(), signatures(block)?))
        .map_err(|source| BlockError::Signatures { number, source })
}
