//! Public keys as certificates carry them, and the ECDSA keys that sign for Fabric.
//!
//! Fabric signs the SHA-256 of a message on every curve, in DER, with the smaller of the two possible S. Verifying reads
//! the signature's numbers first, because Fabric forgives bytes after them, and hands their one canonical form to
//! aws-lc, with a key that was parsed once.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use aws_lc_rs::digest::{self, Digest, SHA256, SHA384, digest};
use aws_lc_rs::encoding::AsBigEndian as _;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P256_SHA384_ASN1,
    ECDSA_P384_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ECDSA_P384_SHA384_FIXED_SIGNING,
    ECDSA_P521_SHA256_ASN1, ECDSA_P521_SHA256_FIXED_SIGNING, ECDSA_P521_SHA384_ASN1,
    ECDSA_P521_SHA512_ASN1, ED25519, EcdsaKeyPair, EcdsaSigningAlgorithm, KeyPair as _,
    ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384,
    RSA_PKCS1_2048_8192_SHA512, UnparsedPublicKey, VerificationAlgorithm,
};
use zeroize::Zeroizing;

use super::certificate::SignatureAlgorithm;
use super::reader::{BIT_STRING, OBJECT_IDENTIFIER, Reader, SEQUENCE, unsigned};
use super::{MAX_DER_BYTES, X509Error, pem};
use crate::der;

/// Object identifiers of key algorithms and curves, as their DER content.
const OID_EC: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const OID_P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const OID_P384: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x22];
const OID_P521: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x23];
const OID_RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
const OID_ED25519: &[u8] = &[0x2b, 0x65, 0x70];

/// The orders of the curves' groups, in as many bytes as a number of a signature has.
const P256_ORDER: [u8; 32] = [
    0xff, 0xff, 0xff, 0xff, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
    0xbc, 0xe6, 0xfa, 0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
];
const P384_ORDER: [u8; 48] = [
    0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
    0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xc7, 0x63, 0x4d, 0x81, 0xf4, 0x37, 0x2d, 0xdf,
    0x58, 0x1a, 0x0d, 0xb2, 0x48, 0xb0, 0xa7, 0x7a, 0xec, 0xec, 0x19, 0x6a, 0xcc, 0xc5, 0x29, 0x73,
];
const P521_ORDER: [u8; 66] = [
    0x01, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
    0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
    0xff, 0xfa, 0x51, 0x86, 0x87, 0x83, 0xbf, 0x2f, 0x96, 0x6b, 0x7f, 0xcc, 0x01, 0x48, 0xf7, 0x09,
    0xa5, 0xd0, 0x3b, 0xb5, 0xc9, 0xb8, 0x89, 0x9c, 0x47, 0xae, 0xbb, 0x6f, 0xb7, 0x1e, 0x91, 0x38,
    0x64, 0x09,
];

/// Half of a number, rounded down.
const fn halved<const N: usize>(number: [u8; N]) -> [u8; N] {
    let mut out = [0; N];
    let mut carry = 0;
    let mut at = 0;
    while at < N {
        out[at] = carry | number[at] >> 1;
        carry = number[at] << 7;
        at += 1;
    }
    out
}

/// A number without its leading zeros.
fn significant(number: &[u8]) -> &[u8] {
    &number[number.iter().take_while(|byte| **byte == 0).count()..]
}

/// A curve of ECDSA.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Curve {
    /// NIST P-256, what nearly everybody has.
    P256,
    /// NIST P-384.
    P384,
    /// NIST P-521.
    P521,
}

impl Curve {
    const fn order(self) -> &'static [u8] {
        match self {
            Self::P256 => &P256_ORDER,
            Self::P384 => &P384_ORDER,
            Self::P521 => &P521_ORDER,
        }
    }

    fn of_oid(oid: &[u8]) -> Option<Self> {
        Some(match oid {
            OID_P256 => Self::P256,
            OID_P384 => Self::P384,
            OID_P521 => Self::P521,
            _ => return None,
        })
    }

    /// ECDSA over the SHA-256 of a message, which is what Fabric signs on every curve.
    const fn sha256(self) -> &'static dyn VerificationAlgorithm {
        match self {
            Self::P256 => &ECDSA_P256_SHA256_ASN1,
            Self::P384 => &ECDSA_P384_SHA256_ASN1,
            Self::P521 => &ECDSA_P521_SHA256_ASN1,
        }
    }

    /// `order - number`, for a number of as many bytes; `None` if it is not below the order.
    fn complement(self, number: &[u8]) -> Option<Vec<u8>> {
        let order = self.order();
        debug_assert_eq!(number.len(), order.len());
        if number >= order {
            return None;
        }
        let mut borrow = false;
        let mut out = vec![0; order.len()];
        for at in (0..order.len()).rev() {
            let (less, one) = order[at].overflowing_sub(number[at]);
            let (less, two) = less.overflowing_sub(u8::from(borrow));
            out[at] = less;
            borrow = one || two;
        }
        Some(out)
    }

    /// Whether S is above half the order (or above the order: not a number of a signature at all).
    fn is_high(self, s: &[u8]) -> bool {
        let half: &[u8] = match self {
            Self::P256 => const { &halved(P256_ORDER) },
            Self::P384 => const { &halved(P384_ORDER) },
            Self::P521 => const { &halved(P521_ORDER) },
        };
        let (s, half) = (significant(s), significant(half));
        (s.len(), s) > (half.len(), half)
    }

    /// The number in as many bytes as the order has; `None` if it has more.
    fn padded(self, number: &[u8]) -> Option<Vec<u8>> {
        let width = self.order().len();
        let zeros = width.checked_sub(number.len())?;
        let mut out = vec![0; zeros];
        out.extend_from_slice(number);
        Some(out)
    }
}

/// What kind of key it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyKind {
    /// ECDSA, the one kind that signs for Fabric.
    Ecdsa(Curve),
    /// RSA: an authority may have it, an identity signs in vain.
    Rsa,
    /// Ed25519: known by name, no identity of Fabric.
    Ed25519,
    /// Anything else.
    Unknown,
}

/// A public key as a certificate carries it. Cheap to clone; equal if the DER is equal.
#[derive(Clone)]
pub struct PublicKey(Arc<ParsedKey>);

struct ParsedKey {
    kind: KeyKind,
    spki: Box<[u8]>,
    /// The bits of the key in the form its algorithm wants.
    bits: Box<[u8]>,
    /// ECDSA only: ready to verify.
    verifier: Option<ParsedPublicKey>,
}

impl PublicKey {
    /// Reads a `SubjectPublicKeyInfo`. A key of an algorithm that we do not know is no error.
    ///
    /// # Errors
    /// [`X509Error`] if it is malformed, or a point that is not on a curve of ours.
    pub fn from_spki_der(spki: &[u8]) -> Result<Self, X509Error> {
        let malformed = || X509Error::Malformed("public key");
        let mut outer = Reader::new(spki);
        let mut inner = Reader::new(outer.expect(SEQUENCE).ok_or_else(malformed)?);
        let mut algorithm = Reader::new(inner.expect(SEQUENCE).ok_or_else(malformed)?);
        let bits = inner.whole_bytes().ok_or_else(malformed)?;
        if !outer.is_empty() || !inner.is_empty() {
            return Err(malformed());
        }
        let oid = algorithm.expect(OBJECT_IDENTIFIER).ok_or_else(malformed)?;
        let mut verifier = None;
        let kind = match oid {
            OID_EC => {
                let curve = algorithm
                    .expect(OBJECT_IDENTIFIER)
                    .and_then(Curve::of_oid)
                    .ok_or(X509Error::UnsupportedCurve)?;
                // The uncompressed form only: one key, one form.
                let width = curve.order().len();
                if bits.first() != Some(&4) || bits.len() != 1 + 2 * width {
                    return Err(X509Error::Malformed("elliptic curve point"));
                }
                let parsed = ParsedPublicKey::new(curve.sha256(), bits)
                    .map_err(|_| X509Error::Malformed("elliptic curve point"))?;
                verifier = Some(parsed);
                KeyKind::Ecdsa(curve)
            }
            OID_RSA => KeyKind::Rsa,
            OID_ED25519 => KeyKind::Ed25519,
            _ => KeyKind::Unknown,
        };
        Ok(Self(Arc::new(ParsedKey {
            kind,
            spki: spki.into(),
            bits: bits.into(),
            verifier,
        })))
    }

    /// What kind of key it is.
    #[must_use]
    pub fn kind(&self) -> KeyKind {
        self.0.kind
    }

    /// The `SubjectPublicKeyInfo` in DER.
    #[must_use]
    pub fn spki_der(&self) -> &[u8] {
        &self.0.spki
    }

    /// Checks Fabric's form of a signature: ECDSA over the SHA-256 of `message`, DER with low S; bytes after it are
    /// passed over.
    ///
    /// # Errors
    /// [`X509Error`] if the signature is malformed, high, or not of this message by this key.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), X509Error> {
        self.verify_digest(&digest(&SHA256, message), signature)
    }

    /// Like [`PublicKey::verify`], of a hash of 32 bytes that was computed elsewhere.
    ///
    /// # Errors
    /// The same.
    pub fn verify_hash(&self, hash: &[u8; 32], signature: &[u8]) -> Result<(), X509Error> {
        let digest =
            Digest::import_less_safe(hash, &SHA256).expect("32 bytes are the length of a SHA-256");
        self.verify_digest(&digest, signature)
    }

    fn verify_digest(&self, digest: &Digest, signature: &[u8]) -> Result<(), X509Error> {
        let (KeyKind::Ecdsa(curve), Some(verifier)) = (self.0.kind, &self.0.verifier) else {
            return Err(X509Error::UnsupportedAlgorithm);
        };
        let numbers = Numbers::read(signature)?;
        if curve.is_high(numbers.s) {
            return Err(X509Error::HighS);
        }
        verifier
            .verify_digest_sig(digest, &numbers.canonical())
            .map_err(|_| X509Error::SignatureMismatch("ECDSA"))
    }

    /// Checks the signature of a certificate or list, which says itself how it was made. Either S counts here.
    ///
    /// # Errors
    /// [`X509Error`] if the algorithm is not acceptable, or the signature not by this key.
    pub fn verify_signed(
        &self,
        algorithm: SignatureAlgorithm,
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), X509Error> {
        use SignatureAlgorithm as Of;
        let (verifier, name): (&'static dyn VerificationAlgorithm, _) =
            match (algorithm, self.0.kind) {
                (Of::EcdsaSha1, _) => return Err(X509Error::InsecureAlgorithm("ECDSA-SHA1")),
                (Of::RsaSha1, _) => return Err(X509Error::InsecureAlgorithm("SHA1-RSA")),
                (Of::EcdsaSha256, KeyKind::Ecdsa(curve)) => (curve.sha256(), "ECDSA"),
                (Of::EcdsaSha384, KeyKind::Ecdsa(Curve::P256)) => {
                    (&ECDSA_P256_SHA384_ASN1, "ECDSA")
                }
                (Of::EcdsaSha384, KeyKind::Ecdsa(Curve::P384)) => {
                    (&ECDSA_P384_SHA384_ASN1, "ECDSA")
                }
                (Of::EcdsaSha384, KeyKind::Ecdsa(Curve::P521)) => {
                    (&ECDSA_P521_SHA384_ASN1, "ECDSA")
                }
                (Of::EcdsaSha512, KeyKind::Ecdsa(Curve::P521)) => {
                    (&ECDSA_P521_SHA512_ASN1, "ECDSA")
                }
                (Of::EcdsaSha512, KeyKind::Ecdsa(curve)) => {
                    // aws-lc has no name for it; the leftmost bits of the hash are what ECDSA takes anyway.
                    return self.verify_shortened(curve, message, signature);
                }
                (Of::RsaSha256, KeyKind::Rsa) => (&RSA_PKCS1_2048_8192_SHA256, "RSA"),
                (Of::RsaSha384, KeyKind::Rsa) => (&RSA_PKCS1_2048_8192_SHA384, "RSA"),
                (Of::RsaSha512, KeyKind::Rsa) => (&RSA_PKCS1_2048_8192_SHA512, "RSA"),
                (Of::Ed25519, KeyKind::Ed25519) => (&ED25519, "Ed25519"),
                _ => return Err(X509Error::UnsupportedAlgorithm),
            };
        UnparsedPublicKey::new(verifier, &self.0.bits)
            .verify(message, signature)
            .map_err(|_| X509Error::SignatureMismatch(name))
    }

    fn verify_shortened(
        &self,
        curve: Curve,
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), X509Error> {
        let (verifier, shorter): (
            &'static dyn VerificationAlgorithm,
            &'static digest::Algorithm,
        ) = match curve {
            Curve::P256 => (&ECDSA_P256_SHA256_ASN1, &SHA256),
            Curve::P384 | Curve::P521 => (&ECDSA_P384_SHA384_ASN1, &SHA384),
        };
        let hash = digest(&digest::SHA512, message);
        let hash = Digest::import_less_safe(&hash.as_ref()[..shorter.output_len()], shorter)
            .expect("cut to the length of the shorter hash");
        UnparsedPublicKey::new(verifier, &self.0.bits)
            .verify_digest(&hash, signature)
            .map_err(|_| X509Error::SignatureMismatch("ECDSA"))
    }

    /// The low form of an ECDSA signature that was made with this key; `None` if it is low already.
    ///
    /// # Errors
    /// [`X509Error`] if it is malformed, or this is no ECDSA key.
    pub fn lowered(&self, signature: &[u8]) -> Result<Option<Vec<u8>>, X509Error> {
        let KeyKind::Ecdsa(curve) = self.0.kind else {
            return Err(X509Error::UnsupportedAlgorithm);
        };
        let numbers = Numbers::read(signature)?;
        if !curve.is_high(numbers.s) {
            return Ok(None);
        }
        let s = curve
            .padded(numbers.s)
            .and_then(|s| curve.complement(&s))
            .ok_or(X509Error::MalformedSignature("invalid signature"))?;
        Ok(Some(encode(numbers.r, &s)))
    }
}

impl PartialEq for PublicKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.spki == other.0.spki
    }
}

impl Eq for PublicKey {}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "PublicKey({:?}, {})",
            self.0.kind,
            hex::encode(&self.0.bits)
        )
    }
}

/// The numbers of an ECDSA signature, without leading zeros.
struct Numbers<'a> {
    r: &'a [u8],
    s: &'a [u8],
    /// The signature, if it is nothing but these numbers.
    whole: Option<&'a [u8]>,
}

impl<'a> Numbers<'a> {
    /// Reads them as Go's `asn1.Unmarshal` does: bytes after the numbers, inside the sequence or behind it, do not matter.
    fn read(signature: &'a [u8]) -> Result<Self, X509Error> {
        let failed = X509Error::MalformedSignature("failed unmashalling signature");
        let mut outer = Reader::new(signature);
        let Some(content) = outer.expect(SEQUENCE) else {
            return Err(failed);
        };
        let mut inner = Reader::new(content);
        let (Some(r), Some(s)) = (inner.integer(), inner.integer()) else {
            return Err(failed);
        };
        let whole = (outer.is_empty() && inner.is_empty()).then_some(signature);
        let positive = |number| unsigned(number).filter(|digits| !digits.is_empty());
        let r = positive(r).ok_or(X509Error::MalformedSignature(
            "invalid signature, R must be larger than zero",
        ))?;
        let s = positive(s).ok_or(X509Error::MalformedSignature(
            "invalid signature, S must be larger than zero",
        ))?;
        Ok(Self { r, s, whole })
    }

    fn canonical(&self) -> Cow<'a, [u8]> {
        match self.whole {
            Some(whole) => Cow::Borrowed(whole),
            None => Cow::Owned(encode(self.r, self.s)),
        }
    }
}

/// The DER of an ECDSA signature.
fn encode(r: &[u8], s: &[u8]) -> Vec<u8> {
    let integer = |number: &[u8]| {
        let number = significant(number);
        let mut content = Vec::with_capacity(number.len() + 1);
        if number.first().is_none_or(|byte| *byte >= 0x80) {
            content.push(0);
        }
        content.extend_from_slice(number);
        der::element(der::INTEGER, &content)
    };
    der::element(der::SEQUENCE, &[integer(r), integer(s)].concat())
}

/// A private key that signs as Fabric's clients and nodes do. Cheap to clone; never shown by `Debug`.
#[derive(Clone)]
pub struct SigningKey(Arc<Secret>);

struct Secret {
    curve: Curve,
    /// aws-lc wipes it when it is freed.
    pair: EcdsaKeyPair,
    public: PublicKey,
}

impl SigningKey {
    /// Reads the first private key of a PEM text, in PKCS#8 or SEC 1. Other blocks (OpenSSL puts the curve first) are
    /// passed over.
    ///
    /// # Errors
    /// [`X509Error`] if there is none, or it is encrypted or of another kind.
    pub fn from_pem(text: &[u8]) -> Result<Self, X509Error> {
        let mut failure = X509Error::NoPem;
        for block in pem::all(text) {
            let bytes = Zeroizing::new(block.bytes);
            if block.encrypted || block.label == "ENCRYPTED PRIVATE KEY" {
                return Err(X509Error::EncryptedPrivateKey);
            }
            match Self::from_der(&bytes) {
                Ok(key) => return Ok(key),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    /// Reads a private key in PKCS#8 or SEC 1 DER.
    ///
    /// # Errors
    /// [`X509Error::UnsupportedPrivateKey`] if it is anything else.
    pub fn from_der(bytes: &[u8]) -> Result<Self, X509Error> {
        if bytes.len() > MAX_DER_BYTES {
            return Err(X509Error::UnsupportedPrivateKey);
        }
        let algorithms: [(Curve, &'static EcdsaSigningAlgorithm); 3] = [
            (Curve::P256, &ECDSA_P256_SHA256_FIXED_SIGNING),
            (Curve::P384, &ECDSA_P384_SHA384_FIXED_SIGNING),
            (Curve::P521, &ECDSA_P521_SHA256_FIXED_SIGNING),
        ];
        for (curve, algorithm) in algorithms {
            if let Ok(pair) = EcdsaKeyPair::from_private_key_der(algorithm, bytes) {
                return Self::from_pair(curve, pair);
            }
        }
        Err(X509Error::UnsupportedPrivateKey)
    }

    /// A fresh key of P-256.
    #[must_use]
    pub fn generate() -> Self {
        // The random generator of aws-lc ends the process rather than fail; what remains is memory.
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)
            .expect("a P-256 key can be generated");
        Self::from_pair(Curve::P256, pair).expect("a generated key is well formed")
    }

    fn from_pair(curve: Curve, pair: EcdsaKeyPair) -> Result<Self, X509Error> {
        let oid = match curve {
            Curve::P256 => OID_P256,
            Curve::P384 => OID_P384,
            Curve::P521 => OID_P521,
        };
        let algorithm = [
            der::element(OBJECT_IDENTIFIER, OID_EC),
            der::element(OBJECT_IDENTIFIER, oid),
        ]
        .concat();
        let bits = [&[0], pair.public_key().as_ref()].concat();
        let spki = [
            der::element(SEQUENCE, &algorithm),
            der::element(BIT_STRING, &bits),
        ]
        .concat();
        let public = PublicKey::from_spki_der(&der::element(SEQUENCE, &spki))?;
        Ok(Self(Arc::new(Secret {
            curve,
            pair,
            public,
        })))
    }

    /// The public half.
    #[must_use]
    pub fn public_key(&self) -> &PublicKey {
        &self.0.public
    }

    /// The private number, big-endian, for whoever writes it to a file.
    #[must_use]
    pub fn secret_number(&self) -> Zeroizing<Vec<u8>> {
        let number: aws_lc_rs::encoding::EcPrivateKeyBin<'_> = self
            .0
            .pair
            .private_key()
            .as_be_bytes()
            .expect("a key pair knows its private number");
        Zeroizing::new(number.as_ref().to_vec())
    }

    /// Signs the SHA-256 of a message: DER with low S.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        let Secret { curve, pair, .. } = &*self.0;
        let signature = match curve {
            Curve::P256 | Curve::P521 => pair.sign(&SystemRandom::new(), message),
            Curve::P384 => {
                // aws-lc signs a SHA-384 with this curve. A shorter hash with zeros before it is the same number, and the
                // number is all that ECDSA looks at.
                let mut hash = [0; 48];
                hash[16..].copy_from_slice(digest(&SHA256, message).as_ref());
                let digest = Digest::import_less_safe(&hash, &SHA384)
                    .expect("48 bytes are the length of a SHA-384");
                pair.sign_digest(&digest)
            }
        }
        .expect("signing with a sound key does not fail");
        let (r, s) = signature.as_ref().split_at(curve.order().len());
        // Half of what aws-lc makes has the larger S, which Fabric refuses.
        if curve.is_high(s) {
            let s = curve
                .complement(s)
                .expect("a fresh signature is below the order");
            encode(r, &s)
        } else {
            encode(r, s)
        }
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey")
            .field("public", self.public_key())
            .finish_non_exhaustive()
    }
}
