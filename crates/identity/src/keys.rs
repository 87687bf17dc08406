//! Keys and signatures: Ed25519 and ECDSA over P-256.
//!
//! Start with [`KeyPair`] for signing and [`PublicKey::verify`] for checking. Public keys are parsed once, when they are
//! made or decoded, because parsing costs as much as a good part of a verification. Every signature has exactly one
//! accepted form (64 bytes; low S for ECDSA), so that nobody can make a second valid signature, and with it second
//! bytes of the same signed thing, without the private key.
//!
//! Where keys are kept is the business of [`crate::key_store`], whom they belong to that of [`crate::certificate`].

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, ED25519, EcdsaKeyPair,
    Ed25519KeyPair, KeyPair as _, ParsedPublicKey,
};
use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use crate::hash::SecureHash;

/// The length of a signature of either scheme in bytes.
pub const SIGNATURE_BYTES: usize = 64;

const ED25519_KEY_BYTES: usize = 32;
const P256_KEY_BYTES: usize = 33;

/// The length of an uncompressed P-256 point: 4, x, y.
const P256_UNCOMPRESSED_BYTES: usize = 65;

/// What precedes the raw key in the `SubjectPublicKeyInfo` of each accepted form.
const ED25519_SPKI_PREFIX: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];
const P256_SPKI_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// Half of the order of P-256, rounded down: the largest S of an accepted signature.
const P256_HALF_ORDER: [u8; 32] = [
    0x7f, 0xff, 0xff, 0xff, 0x80, 0x00, 0x00, 0x00, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
    0xde, 0x73, 0x7d, 0x56, 0xd3, 0x8b, 0xcf, 0x42, 0x79, 0xdc, 0xe5, 0x61, 0x7e, 0x31, 0x92, 0xa8,
];

/// A signature scheme. The codes are Corda's numbers of the same schemes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum SignatureScheme {
    /// ECDSA over P-256 with SHA-256 (Corda's `ECDSA_SECP256R1_SHA256`).
    EcdsaP256 = 3,
    /// Ed25519 (Corda's `EDDSA_ED25519_SHA512`).
    Ed25519 = 4,
}

impl SignatureScheme {
    /// The number that stands for the scheme in encoded keys and signature metadata.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The scheme of a number, if it is one that we know.
    #[must_use]
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            3 => Some(Self::EcdsaP256),
            4 => Some(Self::Ed25519),
            _ => None,
        }
    }

    const fn key_bytes(self) -> usize {
        match self {
            Self::EcdsaP256 => P256_KEY_BYTES,
            Self::Ed25519 => ED25519_KEY_BYTES,
        }
    }

    const fn prefix(self) -> &'static str {
        match self {
            Self::EcdsaP256 => "p256",
            Self::Ed25519 => "ed25519",
        }
    }
}

impl fmt::Display for SignatureScheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EcdsaP256 => "ECDSA P-256",
            Self::Ed25519 => "Ed25519",
        })
    }
}

/// Why bytes or a text are not a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// A text that is not `ed25519:` or `p256:` with hexadecimal digits.
    #[error(
        "a public key is written as ed25519:<64 hexadecimal digits> or p256:<66 hexadecimal digits>"
    )]
    Malformed,
    /// A scheme number that we do not know.
    #[error("signature scheme {0} is unknown; 3 (ECDSA P-256) and 4 (Ed25519) are supported")]
    UnknownScheme(u8),
    /// Bytes that are no point, or not of the length, of their scheme.
    #[error("these {length} bytes are not a public key of {scheme}")]
    InvalidPublicKey {
        /// The scheme that was claimed.
        scheme: SignatureScheme,
        /// How many bytes there were.
        length: usize,
    },
    /// A key in a certificate of an algorithm that we do not have.
    #[error("the key's algorithm is not supported; use Ed25519 or ECDSA over P-256")]
    UnsupportedAlgorithm,
    /// Bytes that are no private key of ours.
    #[error("these bytes are not a private key of Ed25519 or P-256 in PKCS#8")]
    InvalidPrivateKey,
}

/// Why a signature does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SignatureError {
    /// Not 64 bytes.
    #[error("a signature has {SIGNATURE_BYTES} bytes, this one has {length}")]
    WrongLength {
        /// How many bytes there were.
        length: usize,
    },
    /// An ECDSA signature with the larger of its two possible S.
    #[error("the ECDSA signature by {key} is not in its low-S form")]
    HighS {
        /// The short form of the key.
        key: String,
    },
    /// Another message, another key, or other bytes.
    #[error("the signature does not match the message and the key {key}")]
    Mismatch {
        /// The short form of the key.
        key: String,
    },
}

/// A public key, known to be well formed.
///
/// Cheap to clone. Its bytes are the raw 32 of Ed25519, or the 33 of a compressed P-256 point. The text form is
/// `ed25519:<hex>` or `p256:<hex>`; in borsh it is the scheme's code followed by the bytes.
#[derive(Clone)]
pub struct PublicKey(Arc<ParsedKey>);

struct ParsedKey {
    scheme: SignatureScheme,
    bytes: Box<[u8]>,
    parsed: ParsedPublicKey,
}

impl PublicKey {
    /// A key from its raw bytes: 32 of Ed25519, or a compressed P-256 point.
    ///
    /// # Errors
    /// [`KeyError::InvalidPublicKey`] if they are not a key of `scheme`.
    pub fn from_bytes(scheme: SignatureScheme, bytes: &[u8]) -> Result<Self, KeyError> {
        let invalid = || KeyError::InvalidPublicKey {
            scheme,
            length: bytes.len(),
        };
        if bytes.len() != scheme.key_bytes() {
            return Err(invalid());
        }
        let parsed = match scheme {
            SignatureScheme::Ed25519 => ParsedPublicKey::new(&ED25519, bytes),
            SignatureScheme::EcdsaP256 if matches!(bytes[0], 2 | 3) => {
                ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, bytes)
            }
            SignatureScheme::EcdsaP256 => return Err(invalid()),
        }
        .map_err(|_| invalid())?;
        Ok(Self(Arc::new(ParsedKey {
            scheme,
            bytes: bytes.into(),
            parsed,
        })))
    }

    /// A key from its `SubjectPublicKeyInfo`, as certificates carry it.
    ///
    /// # Errors
    /// [`KeyError::UnsupportedAlgorithm`] for other algorithms or encodings (P-256 points must be uncompressed),
    /// [`KeyError::InvalidPublicKey`] for a bad point.
    pub fn from_spki_der(der: &[u8]) -> Result<Self, KeyError> {
        if let Some(raw) = der.strip_prefix(&ED25519_SPKI_PREFIX) {
            return Self::from_bytes(SignatureScheme::Ed25519, raw);
        }
        if let Some(point) = der.strip_prefix(&P256_SPKI_PREFIX) {
            return Self::from_uncompressed_point(point);
        }
        Err(KeyError::UnsupportedAlgorithm)
    }

    /// A P-256 key from its uncompressed point (4, x, y), as devices show it.
    ///
    /// # Errors
    /// [`KeyError::InvalidPublicKey`] if it is no point of the curve.
    pub fn from_uncompressed_point(point: &[u8]) -> Result<Self, KeyError> {
        let invalid = || KeyError::InvalidPublicKey {
            scheme: SignatureScheme::EcdsaP256,
            length: point.len(),
        };
        if point.len() != P256_UNCOMPRESSED_BYTES || point[0] != 4 {
            return Err(invalid());
        }
        // Compressing looks at one bit of y only, so the whole point must be known to lie on the curve first.
        ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).map_err(|_| invalid())?;
        let mut compressed = [0; P256_KEY_BYTES];
        compressed[0] = 2 | (point[P256_UNCOMPRESSED_BYTES - 1] & 1);
        compressed[1..].copy_from_slice(&point[1..P256_KEY_BYTES]);
        Self::from_bytes(SignatureScheme::EcdsaP256, &compressed)
    }

    /// The `SubjectPublicKeyInfo` of this key in DER.
    #[must_use]
    pub fn to_spki_der(&self) -> Vec<u8> {
        let der: PublicKeyX509Der<'static> =
            self.0.parsed.as_der().expect("a parsed key can be encoded");
        der.as_ref().to_vec()
    }

    /// The key as certificate builders want it: raw for Ed25519, an uncompressed point for P-256.
    pub(crate) fn subject_public_key(&self) -> Vec<u8> {
        let spki = self.to_spki_der();
        let prefix = match self.scheme() {
            SignatureScheme::Ed25519 => ED25519_SPKI_PREFIX.len(),
            SignatureScheme::EcdsaP256 => P256_SPKI_PREFIX.len(),
        };
        spki[prefix..].to_vec()
    }

    /// The scheme of this key's signatures.
    #[must_use]
    pub fn scheme(&self) -> SignatureScheme {
        self.0.scheme
    }

    /// The raw bytes, see [`PublicKey`].
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0.bytes
    }

    /// The hash of the key's borsh form.
    #[must_use]
    pub fn hash(&self) -> SecureHash {
        SecureHash::of_parts(&[&[self.scheme().code()], self.bytes()])
    }

    /// A short name of the key for logs and lists: `DL` and the base-58 form of [`PublicKey::hash`].
    #[must_use]
    pub fn to_string_short(&self) -> String {
        format!("DL{}", base58(self.hash().as_bytes()))
    }

    /// Checks that `signature` was made over `message` with the private half of this key.
    ///
    /// # Errors
    /// [`SignatureError`] if it was not, or if it is not in the one accepted form.
    pub fn verify(&self, message: &[u8], signature: &Signature) -> Result<(), SignatureError> {
        if self.scheme() == SignatureScheme::EcdsaP256 && signature.0[32..] > P256_HALF_ORDER[..] {
            return Err(SignatureError::HighS {
                key: self.to_string_short(),
            });
        }
        self.verify_any_form(message, &signature.0)
    }

    /// Like [`PublicKey::verify`], but leaves the choice of S to the signer, as X.509 does.
    pub(crate) fn verify_any_form(
        &self,
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), SignatureError> {
        self.0
            .parsed
            .verify_sig(message, signature)
            .map_err(|_| SignatureError::Mismatch {
                key: self.to_string_short(),
            })
    }

    fn identity(&self) -> (SignatureScheme, &[u8]) {
        (self.0.scheme, &self.0.bytes)
    }
}

impl PartialEq for PublicKey {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.identity() == other.identity()
    }
}

impl Eq for PublicKey {}

impl PartialOrd for PublicKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for PublicKey {
    fn cmp(&self, other: &Self) -> Ordering {
        self.identity().cmp(&other.identity())
    }
}

impl Hash for PublicKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.identity().hash(state);
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}:{}",
            self.scheme().prefix(),
            hex::encode(self.bytes())
        )
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (prefix, digits) = text.split_once(':').ok_or(KeyError::Malformed)?;
        let scheme = [SignatureScheme::EcdsaP256, SignatureScheme::Ed25519]
            .into_iter()
            .find(|scheme| scheme.prefix() == prefix)
            .ok_or(KeyError::Malformed)?;
        let mut bytes = vec![0; scheme.key_bytes()];
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| KeyError::Malformed)?;
        Self::from_bytes(scheme, &bytes)
    }
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <String as Deserialize>::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

impl BorshSerialize for PublicKey {
    fn serialize<W: std::io::Write>(&self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(&[self.scheme().code()])?;
        writer.write_all(self.bytes())
    }
}

impl BorshDeserialize for PublicKey {
    fn deserialize_reader<R: std::io::Read>(reader: &mut R) -> std::io::Result<Self> {
        let invalid = |error: KeyError| std::io::Error::new(std::io::ErrorKind::InvalidData, error);
        let code = u8::deserialize_reader(reader)?;
        let scheme = SignatureScheme::from_code(code)
            .ok_or_else(|| invalid(KeyError::UnknownScheme(code)))?;
        let mut bytes = [0; P256_KEY_BYTES];
        let bytes = &mut bytes[..scheme.key_bytes()];
        reader.read_exact(bytes)?;
        Self::from_bytes(scheme, bytes).map_err(invalid)
    }
}

/// A signature of either scheme: 64 bytes, for ECDSA the concatenation of R and S.
///
/// The bytes alone say nothing; [`PublicKey::verify`] does. The text form is hexadecimal.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize)]
pub struct Signature([u8; SIGNATURE_BYTES]);

impl Signature {
    /// A signature from its bytes.
    ///
    /// # Errors
    /// [`SignatureError::WrongLength`] unless there are 64.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SignatureError> {
        match bytes.try_into() {
            Ok(bytes) => Ok(Self(bytes)),
            Err(_) => Err(SignatureError::WrongLength {
                length: bytes.len(),
            }),
        }
    }

    /// The 64 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; SIGNATURE_BYTES] {
        &self.0
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Signature {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Signature {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <String as Deserialize>::deserialize(deserializer)?;
        let mut bytes = [0; SIGNATURE_BYTES];
        hex::decode_to_slice(&text, &mut bytes).map_err(serde::de::Error::custom)?;
        Ok(Self(bytes))
    }
}

/// A private key with its public half.
///
/// Cheap to clone. The secret is wiped from memory with the last clone and never shown by `Debug`.
#[derive(Clone)]
pub struct KeyPair(Arc<Secret>);

struct Secret {
    public: PublicKey,
    signer: Signer,
}

/// aws-lc wipes both when it frees them.
enum Signer {
    EcdsaP256(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

impl KeyPair {
    /// A fresh key from the operating system's randomness.
    #[must_use]
    pub fn generate(scheme: SignatureScheme) -> Self {
        // The random generator of aws-lc ends the process rather than fail; what remains is memory.
        let signer = match scheme {
            SignatureScheme::EcdsaP256 => Signer::EcdsaP256(
                EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)
                    .expect("a P-256 key can be generated"),
            ),
            SignatureScheme::Ed25519 => Signer::Ed25519(
                Ed25519KeyPair::generate().expect("an Ed25519 key can be generated"),
            ),
        };
        Self::from_signer(signer).expect("a generated key is well formed")
    }

    /// The Ed25519 key of a seed: the same key for the same seed, everywhere and for ever.
    ///
    /// The key is as secret as the seed. A constant seed is right for development certificates and simulations only.
    #[must_use]
    pub fn ed25519_from_seed(seed: &[u8; 32]) -> Self {
        let signer = Ed25519KeyPair::from_seed_unchecked(seed)
            .expect("any 32 bytes are a seed of an Ed25519 key");
        Self::from_signer(Signer::Ed25519(signer)).expect("a derived key is well formed")
    }

    /// Reads a private key in PKCS#8.
    ///
    /// # Errors
    /// [`KeyError::InvalidPrivateKey`] if it is none of our schemes.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, KeyError> {
        let signer = match Ed25519KeyPair::from_pkcs8_maybe_unchecked(der) {
            Ok(key) => Signer::Ed25519(key),
            Err(_) => Signer::EcdsaP256(
                EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der)
                    .map_err(|_| KeyError::InvalidPrivateKey)?,
            ),
        };
        Self::from_signer(signer)
    }

    fn from_signer(signer: Signer) -> Result<Self, KeyError> {
        let public = match &signer {
            Signer::Ed25519(key) => {
                PublicKey::from_bytes(SignatureScheme::Ed25519, key.public_key().as_ref())?
            }
            Signer::EcdsaP256(key) => {
                PublicKey::from_uncompressed_point(key.public_key().as_ref())?
            }
        };
        Ok(Self(Arc::new(Secret { public, signer })))
    }

    /// The private key in PKCS#8, wiped when dropped.
    #[must_use]
    pub fn to_pkcs8(&self) -> Zeroizing<Vec<u8>> {
        let document = match &self.0.signer {
            Signer::Ed25519(key) => key.to_pkcs8v1(),
            Signer::EcdsaP256(key) => key.to_pkcs8v1(),
        };
        let document = document.expect("a key pair can be encoded");
        Zeroizing::new(document.as_ref().to_vec())
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> &PublicKey {
        &self.0.public
    }

    /// Signs a message. Ed25519 signatures are deterministic, ECDSA signatures are not.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> Signature {
        match &self.0.signer {
            Signer::Ed25519(key) => Signature::from_bytes(key.sign(message).as_ref())
                .expect("an Ed25519 signature has 64 bytes"),
            Signer::EcdsaP256(key) => {
                let signature = key
                    .sign(&SystemRandom::new(), message)
                    .expect("signing with a sound key does not fail");
                // Half of what aws-lc makes has the larger S, which verification refuses.
                let signature = p256::ecdsa::Signature::from_slice(signature.as_ref())
                    .expect("a fresh ECDSA signature is well formed")
                    .normalize_s();
                Signature(signature.to_bytes().into())
            }
        }
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyPair")
            .field("public", self.public())
            .finish_non_exhaustive()
    }
}

/// The base-58 text (Bitcoin's alphabet) of `bytes`.
fn base58(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 58] = b"123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";
    // The number in base 58, least significant digit first.
    let mut digits: Vec<u8> = Vec::new();
    for byte in bytes {
        let mut carry = u32::from(*byte);
        for digit in &mut digits {
            carry += u32::from(*digit) << 8;
            *digit = (carry % 58) as u8;
            carry /= 58;
        }
        while carry > 0 {
            digits.push((carry % 58) as u8);
            carry /= 58;
        }
    }
    // Leading zero bytes have no digits in the number and are written one by one.
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    std::iter::repeat_n(0, zeros)
        .chain(digits.into_iter().rev())
        .map(|digit| char::from(ALPHABET[usize::from(digit)]))
        .collect()
}
