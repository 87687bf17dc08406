//! The bytes of a block file.
//!
//! A file is a row of records, each a length (protobuf varint) and a body. The body is Fabric's own arrangement, not
//! a protobuf message:
//!
//! ```text
//! varint number · bytes data hash · bytes previous hash
//! varint n · n × bytes envelope
//! varint n · n × bytes metadata entry          ("bytes" = varint length, content)
//! ```
//!
//! Every input is possible here: a file may have been torn by a crash or rotted on its disk.

use bytes::Bytes;
use quorate_fabric::proto::common::{Block, BlockData, BlockHeader, BlockMetadata};

/// The longest varint of 64 bits, in bytes.
pub(super) const MAX_VARINT_BYTES: usize = 10;

/// Why bytes are not a record's body. Says which part could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NotABody(pub(super) &'static str);

/// The record of a block: length and body.
pub(super) fn record(block: &Block) -> Vec<u8> {
    let body = body_length(block);
    let mut out = Vec::with_capacity(body + MAX_VARINT_BYTES);
    put_varint(&mut out, body as u64);
    let start = out.len();
    if let Some(header) = &block.header {
        put_varint(&mut out, header.number);
        put_bytes(&mut out, &header.data_hash);
        put_bytes(&mut out, &header.previous_hash);
    }
    let envelopes = block.data.as_ref().map_or(&[][..], |data| &data.data);
    let metadata = block.metadata.as_ref().map_or(&[][..], |all| &all.metadata);
    for list in [envelopes, metadata] {
        put_varint(&mut out, list.len() as u64);
        for item in list {
            put_bytes(&mut out, item);
        }
    }
    debug_assert_eq!(out.len() - start, body);
    out
}

/// The bytes before a body of this length.
pub(super) fn length_prefix(length: u32) -> Vec<u8> {
    let mut prefix = Vec::with_capacity(MAX_VARINT_BYTES);
    put_varint(&mut prefix, u64::from(length));
    prefix
}

fn body_length(block: &Block) -> usize {
    let mut length = 0;
    if let Some(header) = &block.header {
        length += varint_length(header.number)
            + bytes_length(&header.data_hash)
            + bytes_length(&header.previous_hash);
    }
    let envelopes = block.data.as_ref().map_or(&[][..], |data| &data.data);
    let metadata = block.metadata.as_ref().map_or(&[][..], |all| &all.metadata);
    for list in [envelopes, metadata] {
        length += varint_length(list.len() as u64);
        length += list.iter().map(|item| bytes_length(item)).sum::<usize>();
    }
    length
}

/// Reads a body that must be all of `body`. The block's parts share its bytes.
pub(super) fn block(body: &Bytes) -> Result<Block, NotABody> {
    let (block, length) = block_prefix(body)?;
    if length == body.len() {
        Ok(block)
    } else {
        Err(NotABody("bytes follow the block's end"))
    }
}

/// Reads a body from the beginning of `bytes`, which may go on after it; returns its length too.
pub(super) fn block_prefix(bytes: &Bytes) -> Result<(Block, usize), NotABody> {
    let mut reader = Reader { bytes, at: 0 };
    let header = BlockHeader {
        number: reader.varint().ok_or(NotABody("no block number"))?,
        data_hash: reader.bytes().ok_or(NotABody("no data hash"))?,
        previous_hash: reader.bytes().ok_or(NotABody("no previous hash"))?,
    };
    let data = reader.list().ok_or(NotABody("its envelopes are cut off"))?;
    let metadata = reader.list().ok_or(NotABody("its metadata is cut off"))?;
    let block = Block {
        header: Some(header),
        data: Some(BlockData { data }),
        metadata: Some(BlockMetadata { metadata }),
    };
    Ok((block, reader.at))
}

/// The value and the length of the varint at the beginning of `bytes`; `None` if there is none, because it is cut off
/// or longer than 64 bits.
pub(super) fn varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut value = 0u64;
    for (at, &byte) in bytes.iter().take(MAX_VARINT_BYTES).enumerate() {
        let part = u64::from(byte & 0x7f);
        if at == MAX_VARINT_BYTES - 1 && part > 1 {
            return None;
        }
        value |= part << (7 * at);
        if byte & 0x80 == 0 {
            return Some((value, at + 1));
        }
    }
    None
}

struct Reader<'a> {
    bytes: &'a Bytes,
    at: usize,
}

impl Reader<'_> {
    fn varint(&mut self) -> Option<u64> {
        let (value, length) = varint(&self.bytes[self.at..])?;
        self.at += length;
        Some(value)
    }

    fn bytes(&mut self) -> Option<Bytes> {
        let length = usize::try_from(self.varint()?).ok()?;
        let end = self.at.checked_add(length)?;
        if end > self.bytes.len() {
            return None;
        }
        let content = self.bytes.slice(self.at..end);
        self.at = end;
        Some(content)
    }

    fn list(&mut self) -> Option<Vec<Bytes>> {
        let count = self.varint()?;
        // Each item takes a byte at least; a count beyond that must not make us reserve anything.
        if count > (self.bytes.len() - self.at) as u64 {
            return None;
        }
        (0..count).map(|_| self.bytes()).collect()
    }
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_bytes(out: &mut Vec<u8>, content: &[u8]) {
    put_varint(out, content.len() as u64);
    out.extend_from_slice(content);
}

fn varint_length(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

fn bytes_length(content: &[u8]) -> usize {
    varint_length(content.len() as u64) + content.len()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use super::*;
    use proptest::prelude::*;

    fn any_block() -> impl Strategy<Value = Block> {
        let items = || {
            proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..8)
                .prop_map(|items| items.into_iter().map(Bytes::from).collect::<Vec<_>>())
        };
        let hash = || proptest::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from);
        (any::<u64>(), hash(), hash(), items(), items()).prop_map(
            |(number, data_hash, previous_hash, data, metadata)| Block {
                header: Some(BlockHeader {
                    number,
                    data_hash,
                    previous_hash,
                }),
                data: Some(BlockData { data }),
                metadata: Some(BlockMetadata { metadata }),
            },
        )
    }

    fn split(record: Vec<u8>) -> Bytes {
        let (length, start) = varint(&record).unwrap();
        let body = Bytes::from(record).slice(start..);
        assert_eq!(body.len() as u64, length);
        body
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(written in any_block()) {
            prop_assert_eq!(block(&split(record(&written))).unwrap(), written);
        }

        #[test]
        fn a_cut_record_is_refused(written in any_block(), cut in any::<prop::sample::Index>()) {
            let body = split(record(&written));
            let kept = cut.index(body.len());
            prop_assert!(block(&body.slice(..kept)).is_err());
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let bytes = Bytes::from(bytes);
            if let Ok((_, length)) = block_prefix(&bytes) {
                prop_assert!(length <= bytes.len());
            }
        }

        #[test]
        fn varints_are_protobuf(value in any::<u64>()) {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            let mut expected = Vec::new();
            prost::encoding::encode_varint(value, &mut expected);
            prop_assert_eq!(&out, &expected);
            prop_assert_eq!(varint_length(value), out.len());
            prop_assert_eq!(varint(&out), Some((value, out.len())));
        }
    }

    #[test]
    fn a_huge_count_reserves_nothing() {
        let mut bytes = vec![1, 0, 0];
        put_varint(&mut bytes, u64::MAX);
        assert_eq!(
            block(&Bytes::from(bytes)),
            Err(NotABody("its envelopes are cut off"))
        );
    }
}
