//! Canonical bytes: the one way in which this crate's values become bytes and come back.
//!
//! Values are [borsh](https://borsh.io): little-endian, length-prefixed, no choices. A value that is stored, sent, hashed
//! or signed on its own begins with the tag of a versioned enum, so that a later format can stand beside this one.
//! [`decode`] accepts exactly what [`encode`] produces: a value has one encoding, therefore one hash.
//! It refuses bytes that go on after the value, and encodings that mean something but are not what we would have written
//! (a set out of order, a name in another spelling). Memory use is proportional to the bytes given, whatever lengths
//! they claim: borsh allocates as it reads.

use std::io::{self, Read, Write};

use borsh::{BorshDeserialize, BorshSerialize};

/// Why bytes are not a value.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// More bytes than this kind of value may have.
    #[error("{what}: {size} bytes, at most {max} are accepted")]
    TooLarge {
        /// The kind of value.
        what: &'static str,
        /// Bytes given.
        size: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// The bytes end early, claim impossible lengths, name an unknown version or hold an invalid part.
    #[error("{what}: malformed bytes; they are damaged, or come from a newer version")]
    Malformed {
        /// The kind of value.
        what: &'static str,
        /// What the decoder met.
        #[source]
        source: io::Error,
    },
    /// The value is followed by other bytes.
    #[error("{what}: {count} bytes follow the end of the value")]
    Trailing {
        /// The kind of value.
        what: &'static str,
        /// Bytes left over.
        count: usize,
    },
    /// The bytes can be read, but are not the one encoding of what they say.
    #[error("{what}: not in canonical form")]
    NotCanonical {
        /// The kind of value.
        what: &'static str,
    },
    /// The value has the right form but breaks a rule of its kind.
    #[error("{what}: {reason}")]
    Invalid {
        /// The kind of value.
        what: &'static str,
        /// The rule.
        reason: String,
    },
}

impl DecodeError {
    pub(crate) fn invalid(what: &'static str, reason: impl ToString) -> Self {
        Self::Invalid {
            what,
            reason: reason.to_string(),
        }
    }
}

/// The canonical bytes of `value`.
///
/// # Panics
/// If a list inside is longer than 2³² − 1; the constructors of this crate's values refuse far smaller ones.
pub fn encode<T: BorshSerialize + ?Sized>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(256);
    value
        .serialize(&mut bytes)
        .expect("writing to memory fails only for lists beyond 2^32, which no constructor admits");
    bytes
}

/// Reads a value back from its canonical bytes. `what` names the kind of value in errors; `max` bounds the bytes.
pub fn decode<T: BorshSerialize + BorshDeserialize>(
    what: &'static str,
    bytes: &[u8],
    max: usize,
) -> Result<T, DecodeError> {
    if bytes.len() > max {
        return Err(DecodeError::TooLarge {
            what,
            size: bytes.len(),
            max,
        });
    }
    let mut rest = bytes;
    let value =
        T::deserialize(&mut rest).map_err(|source| DecodeError::Malformed { what, source })?;
    if !rest.is_empty() {
        return Err(DecodeError::Trailing {
            what,
            count: rest.len(),
        });
    }
    let mut same = Comparing { expected: bytes };
    match value.serialize(&mut same) {
        Ok(()) if same.expected.is_empty() => Ok(value),
        _ => Err(DecodeError::NotCanonical { what }),
    }
}

/// Compares what is written with what is expected, so that the check for canonical form needs no second copy.
struct Comparing<'a> {
    expected: &'a [u8],
}

impl Write for Comparing<'_> {
    fn write(&mut self, written: &[u8]) -> io::Result<usize> {
        match self.expected.strip_prefix(written) {
            Some(rest) => {
                self.expected = rest;
                Ok(written.len())
            }
            None => Err(io::Error::from(io::ErrorKind::InvalidData)),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An error inside a borsh implementation of ours.
pub(crate) fn refuse(reason: impl ToString) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.to_string())
}

/// Implements `serde` for a type with `encode` and `decode`: a base64 string of its canonical bytes.
macro_rules! serde_as_base64 {
    ($type:ty) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                $crate::canonical::base64_bytes::serialize(&self.encode(), serializer)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let bytes = $crate::canonical::base64_bytes::deserialize(deserializer)?;
                <$type>::decode(&bytes).map_err(|error| {
                    // serde has no sources, so the causes must be told in the message.
                    let cause = std::error::Error::source(&error)
                        .map(|cause| format!(": {cause}"))
                        .unwrap_or_default();
                    serde::de::Error::custom(format!("{error}{cause}"))
                })
            }
        }
    };
}

/// Implements `borsh` for a type with `encode` and `decode`: its canonical bytes with their length in front, so that a
/// value keeps its own version inside others.
macro_rules! borsh_as_bytes {
    ($type:ty, $max:expr) => {
        impl borsh::BorshSerialize for $type {
            fn serialize<W: std::io::Write>(&self, writer: &mut W) -> std::io::Result<()> {
                borsh::BorshSerialize::serialize(&self.encode(), writer)
            }
        }

        impl borsh::BorshDeserialize for $type {
            fn deserialize_reader<R: std::io::Read>(reader: &mut R) -> std::io::Result<Self> {
                let bytes = $crate::canonical::read_bounded(reader, $max)?;
                <$type>::decode(&bytes)
                    .map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidData, error))
            }
        }
    };
}

pub(crate) use {borsh_as_bytes, serde_as_base64};

/// Reads a length and so many bytes, refusing lengths above `max` before reading.
pub(crate) fn read_bounded<R: io::Read>(reader: &mut R, max: usize) -> io::Result<Vec<u8>> {
    let length = u32::deserialize_reader(reader)? as usize;
    if length > max {
        return Err(refuse(format!(
            "{length} bytes, at most {max} are accepted"
        )));
    }
    // Not `with_capacity(length)`: the length is a claim until the bytes are here.
    let mut bytes = Vec::new();
    Read::take(reader, length as u64).read_to_end(&mut bytes)?;
    if bytes.len() < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes)
}

/// `#[serde(with)]`: bytes as a base64 string.
pub(crate) mod base64_bytes {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<u8>, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        STANDARD.decode(text.as_bytes()).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn only_the_one_encoding_is_accepted() {
        let set = BTreeSet::from([1u8, 2, 3]);
        let bytes = encode(&set);
        assert_eq!(decode::<BTreeSet<u8>>("set", &bytes, 100).unwrap(), set);

        let unsorted = encode(&vec![2u8, 1, 3]);
        assert!(decode::<BTreeSet<u8>>("set", &unsorted, 100).is_err());
        let doubled = encode(&vec![1u8, 1, 3]);
        assert!(decode::<BTreeSet<u8>>("set", &doubled, 100).is_err());
        let mut long = bytes.clone();
        long.push(0);
        assert!(matches!(
            decode::<BTreeSet<u8>>("set", &long, 100),
            Err(DecodeError::Trailing { count: 1, .. })
        ));
        assert!(matches!(
            decode::<BTreeSet<u8>>("set", &bytes, 6),
            Err(DecodeError::TooLarge { .. })
        ));
    }

    #[test]
    fn a_lying_length_allocates_nothing() {
        // Four gigabytes of promise, four bytes of content; the test would be killed if anyone believed it.
        let lie = [0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4];
        assert!(decode::<Vec<u8>>("bytes", &lie, 100).is_err());
        assert!(decode::<Vec<[u8; 32]>>("hashes", &lie, 100).is_err());
        assert!(read_bounded(&mut lie.as_slice(), usize::MAX).is_err());
        assert!(read_bounded(&mut lie.as_slice(), 10).is_err());
    }
}
