//! SHA-256 hashes: the names of transactions, attachments, contract code and messages.
//!
//! A hash prints as 64 upper-case hexadecimal digits, as in Corda, so that an identifier copied from a log of either
//! system looks alike. Reading accepts any case.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::digest::{Context, SHA256};
use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The length of a [`SecureHash`] in bytes.
pub const HASH_BYTES: usize = 32;

/// A SHA-256 hash.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize)]
pub struct SecureHash([u8; HASH_BYTES]);

impl SecureHash {
    /// The padding leaf of a Merkle tree.
    pub const ZERO: Self = Self([0; HASH_BYTES]);

    /// Stands for a component group that is absent from a transaction.
    pub const ALL_ONES: Self = Self([0xff; HASH_BYTES]);

    /// The hash of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self::of_parts(&[bytes])
    }

    /// The hash of the concatenation of `parts`, without building it.
    ///
    /// Nothing separates the parts: parts of variable length need their own framing.
    #[must_use]
    pub fn of_parts(parts: &[&[u8]]) -> Self {
        let mut context = Context::new(&SHA256);
        for part in parts {
            context.update(part);
        }
        let digest = context.finish();
        Self(
            digest
                .as_ref()
                .try_into()
                .expect("a SHA-256 digest has 32 bytes"),
        )
    }

    /// SHA-256 applied twice. Not extendable, hence fit for salted leaves.
    #[must_use]
    pub fn twice(bytes: &[u8]) -> Self {
        Self::of(&Self::of(bytes).0)
    }

    /// The inner node over two children of a Merkle tree: SHA-256 of left, then right.
    #[must_use]
    pub fn concat(&self, right: &Self) -> Self {
        Self::of_parts(&[&self.0, &right.0])
    }

    /// The 32 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; HASH_BYTES] {
        &self.0
    }

    /// A hash that was computed elsewhere.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; HASH_BYTES]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for SecureHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; 2 * HASH_BYTES];
        for (byte, digits) in self.0.iter().zip(text.chunks_exact_mut(2)) {
            digits[0] = b"0123456789ABCDEF"[usize::from(byte >> 4)];
            digits[1] = b"0123456789ABCDEF"[usize::from(byte & 15)];
        }
        f.pad(std::str::from_utf8(&text).expect("hexadecimal digits are ASCII"))
    }
}

impl fmt::Debug for SecureHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is not a hash.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a hash is 64 hexadecimal digits, this text of {length} bytes is not")]
pub struct HashFormatError {
    /// The length of the refused text in bytes.
    pub length: usize,
}

impl FromStr for SecureHash {
    type Err = HashFormatError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; HASH_BYTES];
        match hex::decode_to_slice(text, &mut bytes) {
            Ok(()) => Ok(Self(bytes)),
            Err(_) => Err(HashFormatError { length: text.len() }),
        }
    }
}

impl Serialize for SecureHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SecureHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <String as Deserialize>::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_sha256_and_print_in_upper_case() {
        let empty = SecureHash::of(b"");
        assert_eq!(
            empty.to_string(),
            "E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855"
        );
        assert_eq!(
            empty.to_string().to_lowercase().parse::<SecureHash>(),
            Ok(empty)
        );
        assert_eq!(SecureHash::of_parts(&[b"ab", b"c"]), SecureHash::of(b"abc"));
        assert_eq!(
            SecureHash::twice(b"hello").to_string(),
            "9595C9DF90075148EB06860365DF33584B75BFF782A510C6CD4883A419833D50"
        );
        assert_eq!(
            SecureHash::ZERO.concat(&SecureHash::ALL_ONES),
            SecureHash::of(&[[0u8; 32], [255u8; 32]].concat())
        );
    }

    #[test]
    fn a_text_that_is_no_hash_is_refused() {
        for text in ["", "E3", &"g".repeat(64), &"a".repeat(63), &"é".repeat(32)] {
            assert_eq!(
                text.parse::<SecureHash>(),
                Err(HashFormatError { length: text.len() })
            );
        }
        assert!(serde_json::from_str::<SecureHash>("\"00\"").is_err());
        assert!(borsh::from_slice::<SecureHash>(&[0; 31]).is_err());
        assert!(borsh::from_slice::<SecureHash>(&[0; 33]).is_err());
    }
}
