//! How things on the ledger are named: transactions, states, attachments, and whatever an application numbers itself.

use std::{fmt, str::FromStr};

use borsh::{BorshDeserialize, BorshSerialize};
use quorate_identity::SecureHash;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A text that does not name what it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not {expected}: {text:?}")]
pub struct ReferenceError {
    expected: &'static str,
    text: String,
}

impl ReferenceError {
    fn new(expected: &'static str, text: &str) -> Self {
        Self {
            expected,
            text: text.chars().take(100).collect(),
        }
    }
}

macro_rules! hash_newtype {
    ($(#[$doc:meta])* $name:ident, $expected:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(SecureHash);

        impl $name {
            /// Names what has this hash.
            pub const fn new(hash: SecureHash) -> Self {
                Self(hash)
            }

            /// The hash itself.
            pub const fn hash(&self) -> &SecureHash {
                &self.0
            }

            /// The bytes of the hash.
            pub fn as_bytes(&self) -> &[u8; 32] {
                self.0.as_bytes()
            }
        }

        impl From<SecureHash> for $name {
            fn from(hash: SecureHash) -> Self {
                Self(hash)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = ReferenceError;
            fn from_str(text: &str) -> Result<Self, ReferenceError> {
                text.parse().map(Self).map_err(|_| ReferenceError::new($expected, text))
            }
        }
    };
}

hash_newtype! {
    /// The id of a transaction: the root of the Merkle tree over its components.
    TxId, "a transaction id (64 hexadecimal digits)"
}

hash_newtype! {
    /// The id of an attachment: the SHA-256 of its content.
    AttachmentId, "an attachment id (64 hexadecimal digits)"
}

impl AttachmentId {
    /// The id of an attachment with this content.
    pub fn of(content: &[u8]) -> Self {
        Self::new(SecureHash::of(content))
    }
}

/// Names a state: the output with this index of that transaction. Text and JSON are `<transaction id>(<index>)`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize)]
pub struct StateRef {
    /// The transaction that produced the state.
    pub tx: TxId,
    /// The position among its outputs, from 0.
    pub index: u32,
}

impl StateRef {
    /// Names output `index` of transaction `tx`.
    pub const fn new(tx: TxId, index: u32) -> Self {
        Self { tx, index }
    }
}

impl fmt::Display for StateRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.tx, self.index)
    }
}

impl fmt::Debug for StateRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for StateRef {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let parts = text.strip_suffix(')').and_then(|text| text.split_once('('));
        parts
            .filter(|(_, index)| index.bytes().all(|byte| byte.is_ascii_digit()))
            .and_then(|(tx, index)| {
                Some(Self {
                    tx: tx.parse().ok()?,
                    index: index.parse().ok()?,
                })
            })
            .ok_or_else(|| {
                ReferenceError::new(
                    "a state reference (a transaction id and an index, as in 1A2B…(0))",
                    text,
                )
            })
    }
}

/// Sixteen bytes that name something of an application's or a node's own: a linear id, the holder of a soft lock.
///
/// Text and JSON have the form of a UUID. Where the bytes come from is the caller's business: in a flow, from the flow's
/// entropy, so that a replay draws the same.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize)]
pub struct UniqueId([u8; 16]);

impl UniqueId {
    /// An id of these bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl From<[u8; 16]> for UniqueId {
    fn from(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for UniqueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = hex::encode(self.0);
        write!(
            f,
            "{}-{}-{}-{}-{}",
            &text[..8],
            &text[8..12],
            &text[12..16],
            &text[16..20],
            &text[20..]
        )
    }
}

impl fmt::Debug for UniqueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for UniqueId {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let error =
            || ReferenceError::new("an id (as in 01234567-89ab-cdef-0123-456789abcdef)", text);
        let dashes_in_place = text.len() == 36
            && [8, 13, 18, 23]
                .iter()
                .all(|&at| text.as_bytes()[at] == b'-');
        let digits = if dashes_in_place {
            text.replace('-', "")
        } else {
            text.to_owned()
        };
        let mut bytes = [0; 16];
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| error())?;
        Ok(Self(bytes))
    }
}

macro_rules! serde_as_text {
    ($($name:ty),*) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'_, str> as Deserialize>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

pub(crate) use serde_as_text;

serde_as_text!(StateRef, UniqueId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back_from_their_text() {
        let reference = StateRef::new(TxId::new(SecureHash::of(b"a")), 7);
        let text = reference.to_string();
        assert_eq!(
            text,
            "CA978112CA1BBDCAFAC231B39A23DC4DA786EFF8147C4E72B9807785AFEE48BB(7)"
        );
        assert_eq!(text.parse(), Ok(reference));
        assert_eq!(
            serde_json::from_str::<StateRef>(&format!("{text:?}")).unwrap(),
            reference
        );
        for nonsense in [
            "",
            "()",
            "(7)",
            &text[1..],
            &text[..text.len() - 1],
            &text.replace('7', "+7"),
            &format!("{text})"),
        ] {
            assert!(nonsense.parse::<StateRef>().is_err(), "{nonsense}");
        }

        let id = UniqueId::from_bytes(*b"0123456789abcdef");
        assert_eq!(id.to_string(), "30313233-3435-3637-3839-616263646566");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!("30313233343536373839616263646566".parse(), Ok(id));
        assert!(
            "30313233-3435-3637-3839-61626364656"
                .parse::<UniqueId>()
                .is_err()
        );
        assert!(
            "3031-323334353637383961626364656é66-"
                .parse::<UniqueId>()
                .is_err()
        );
    }
}
