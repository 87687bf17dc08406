//! Protobuf's wire format, field by field, without copying and without a message type.
//!
//! Generated types lose unknown fields and copy payloads, and they refuse other things than Fabric's library does.
//! Where that matters, for envelopes and for raft messages, the fields are walked with this module. Every length is
//! checked against what is there; nothing is allocated on behalf of the sender.

use std::ops::Range;

/// How deep groups (a relic that must still be skipped) may be nested; Go's library allows as many.
const MAX_GROUP_DEPTH: usize = 10_000;
/// The largest field number of the format.
const MAX_FIELD_NUMBER: u64 = (1 << 29) - 1;

/// The bytes are cut off, or a tag or length is impossible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

/// One field as it stands in a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Field {
    /// The field's number.
    pub(crate) number: u32,
    /// What it holds.
    pub(crate) value: Value,
    /// Where the whole field, tag included, stands in the message.
    pub(crate) span: Range<usize>,
}

/// A field's value, by wire type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    /// An integer, a flag or an enumeration.
    Varint(u64),
    /// Bytes, a text or a message: where they stand in the enclosing message.
    Bytes(Range<usize>),
    /// A fixed-width number or a group, of which no message that we read has any.
    Other,
}

/// Walks the fields of one encoded message.
pub(crate) struct Fields<'a> {
    message: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    /// The fields of `message`.
    pub(crate) fn of(message: &'a [u8]) -> Self {
        Self { message, at: 0 }
    }

    /// The next field; none at the message's end.
    pub(crate) fn next(&mut self) -> Result<Option<Field>, Malformed> {
        if self.at == self.message.len() {
            return Ok(None);
        }
        let start = self.at;
        let (number, wire_type) = self.tag()?;
        let value = match wire_type {
            0 => Value::Varint(self.varint()?),
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| Malformed)?;
                Value::Bytes(self.skip(length)?)
            }
            other => {
                self.skip_other(number, other)?;
                Value::Other
            }
        };
        Ok(Some(Field {
            number,
            value,
            span: start..self.at,
        }))
    }

    fn tag(&mut self) -> Result<(u32, u8), Malformed> {
        let tag = self.varint()?;
        let number = tag >> 3;
        if number == 0 || number > MAX_FIELD_NUMBER {
            return Err(Malformed);
        }
        // Both fit: the number is below 2^29, the type has three bits.
        Ok((number as u32, (tag & 7) as u8))
    }

    fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0u64;
        for position in 0..10 {
            let byte = *self.message.get(self.at).ok_or(Malformed)?;
            self.at += 1;
            // The tenth byte holds the last of 64 bits.
            if position == 9 && byte > 1 {
                return Err(Malformed);
            }
            value |= u64::from(byte & 0x7f) << (7 * position);
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Malformed)
    }

    fn skip(&mut self, length: usize) -> Result<Range<usize>, Malformed> {
        if length > self.message.len() - self.at {
            return Err(Malformed);
        }
        let start = self.at;
        self.at += length;
        Ok(start..self.at)
    }

    /// Skips the rest of a fixed-width field or of a group, nested groups included.
    fn skip_other(&mut self, number: u32, wire_type: u8) -> Result<(), Malformed> {
        let mut open: Vec<u32> = Vec::new();
        let (mut number, mut wire_type) = (number, wire_type);
        loop {
            match wire_type {
                0 => {
                    self.varint()?;
                }
                1 => {
                    self.skip(8)?;
                }
                2 => {
                    let length = usize::try_from(self.varint()?).map_err(|_| Malformed)?;
                    self.skip(length)?;
                }
                3 if open.len() < MAX_GROUP_DEPTH => open.push(number),
                4 if open.last() == Some(&number) => {
                    open.pop();
                }
                5 => {
                    self.skip(4)?;
                }
                _ => return Err(Malformed),
            }
            if open.is_empty() {
                return Ok(());
            }
            (number, wire_type) = self.tag()?;
        }
    }
}

/// Appends an integer field, zero or not.
pub(crate) fn put_varint(out: &mut Vec<u8>, number: u32, value: u64) {
    put_raw_varint(out, u64::from(number) << 3);
    put_raw_varint(out, value);
}

/// Appends a field of bytes, empty or not.
pub(crate) fn put_bytes(out: &mut Vec<u8>, number: u32, value: &[u8]) {
    put_header(out, number, value.len());
    out.extend_from_slice(value);
}

/// Appends the tag and length of a field whose `length` bytes are appended next.
pub(crate) fn put_header(out: &mut Vec<u8>, number: u32, length: usize) {
    put_raw_varint(out, u64::from(number) << 3 | 2);
    put_raw_varint(out, length as u64);
}

/// The length of an integer field with a number below 16.
pub(crate) fn varint_field_len(value: u64) -> usize {
    1 + varint_len(value)
}

/// The length of a field of `length` bytes with a number below 16.
pub(crate) fn bytes_field_len(length: usize) -> usize {
    1 + varint_len(length as u64) + length
}

fn put_raw_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn varint_len(value: u64) -> usize {
    // Seven bits a byte, and at least one byte.
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;

    fn all(message: &[u8]) -> Result<Vec<Field>, Malformed> {
        let mut fields = Fields::of(message);
        let mut out = Vec::new();
        while let Some(field) = fields.next()? {
            out.push(field);
        }
        Ok(out)
    }

    #[test]
    fn every_kind_of_field_is_walked() {
        let message = [
            0x08, 0x96, 0x01, // 1: varint 150
            0x12, 0x02, 0xaa, 0xbb, // 2: two bytes
            0x19, 1, 2, 3, 4, 5, 6, 7, 8, // 3: fixed64
            0x25, 1, 2, 3, 4, // 4: fixed32
            0x2b, 0x08, 0x01, 0x33, 0x34, 0x2c, // 5: a group with a varint and a group in it
        ];
        let fields = all(&message).unwrap();
        assert_eq!(
            fields.iter().map(|f| f.number).collect::<Vec<_>>(),
            [1, 2, 3, 4, 5]
        );
        assert_eq!(fields[0].value, Value::Varint(150));
        assert_eq!(fields[1].value, Value::Bytes(5..7));
        assert_eq!(fields[4].span, 21..27);
    }

    #[test]
    fn impossible_bytes_are_refused() {
        for bad in [
            &[0xff, 0xff, 0xff][..], // cut off tag
            &[0x00, 0x01],           // field number 0
            &[0x08],                 // no value
            &[0x12, 0x02, 0x01],     // too short
            &[
                0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01,
            ], // length 2^64-1
            &[
                0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02,
            ], // 65 bits
            &[0x0e],                 // wire type 6
            &[0x0c],                 // end of no group
            &[0x0b, 0x14],           // end of another group
            &[0x0b],                 // group without end
        ] {
            assert_eq!(all(bad), Err(Malformed), "{bad:x?}");
        }
        assert_eq!(all(&vec![0x0b; MAX_GROUP_DEPTH + 1]), Err(Malformed));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = all(&bytes);
        }

        #[test]
        fn what_is_written_is_read_and_measured(number in 1u32..16, value: u64, bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut out = Vec::new();
            put_varint(&mut out, number, value);
            prop_assert_eq!(out.len(), varint_field_len(value));
            put_bytes(&mut out, number, &bytes);
            prop_assert_eq!(out.len(), varint_field_len(value) + bytes_field_len(bytes.len()));
            let fields = all(&out).unwrap();
            prop_assert_eq!(&fields[0].value, &Value::Varint(value));
            let Value::Bytes(range) = fields[1].value.clone() else { return Err(TestCaseError::fail("bytes")) };
            prop_assert_eq!(&out[range], &bytes[..]);
        }
    }
}
