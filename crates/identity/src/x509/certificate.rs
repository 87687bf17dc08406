//! Certificates: the facts that Fabric's rules look at, read once from the DER.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use time::{Date, Month, PrimitiveDateTime, Time};

use super::extensions::{Extensions, KeyUsage, Name};
use super::key::PublicKey;
use super::name::{name_text, read_name};
use super::reader::{BIT_STRING, Element, OBJECT_IDENTIFIER, Reader, SEQUENCE, explicit, implicit};
use super::{MAX_DER_BYTES, X509Error, pem};
use crate::certificate::{UnixTime, Validity};
use crate::der;
use crate::hash::SecureHash;

const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// Object identifiers of signature algorithms, as their DER content.
const OID_ECDSA: [(&[u8], SignatureAlgorithm); 4] = [
    (
        &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01],
        SignatureAlgorithm::EcdsaSha1,
    ),
    (
        &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02],
        SignatureAlgorithm::EcdsaSha256,
    ),
    (
        &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03],
        SignatureAlgorithm::EcdsaSha384,
    ),
    (
        &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x04],
        SignatureAlgorithm::EcdsaSha512,
    ),
];
/// PKCS#1; the last byte of the identifier tells the hash.
const OID_RSA_PREFIX: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01];
const OID_ED25519: &[u8] = &[0x2b, 0x65, 0x70];

/// How a certificate or list says that it was signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SignatureAlgorithm {
    /// ECDSA with SHA-1, which does not count any more.
    EcdsaSha1,
    /// ECDSA with SHA-256.
    EcdsaSha256,
    /// ECDSA with SHA-384.
    EcdsaSha384,
    /// ECDSA with SHA-512.
    EcdsaSha512,
    /// RSA (PKCS#1 v1.5) with SHA-1, which does not count any more.
    RsaSha1,
    /// RSA (PKCS#1 v1.5) with SHA-256.
    RsaSha256,
    /// RSA (PKCS#1 v1.5) with SHA-384.
    RsaSha384,
    /// RSA (PKCS#1 v1.5) with SHA-512.
    RsaSha512,
    /// Ed25519.
    Ed25519,
    /// Anything else.
    Unknown,
}

impl SignatureAlgorithm {
    /// Whether it is ECDSA with any hash.
    #[must_use]
    pub const fn is_ecdsa(self) -> bool {
        matches!(
            self,
            Self::EcdsaSha1 | Self::EcdsaSha256 | Self::EcdsaSha384 | Self::EcdsaSha512
        )
    }

    /// Reads the content of an `AlgorithmIdentifier`.
    pub(super) fn read(content: &[u8]) -> Option<Self> {
        let oid = Reader::new(content).expect(OBJECT_IDENTIFIER)?;
        if let Some((_, found)) = OID_ECDSA.iter().find(|(known, _)| *known == oid) {
            return Some(*found);
        }
        Some(match oid.strip_prefix(OID_RSA_PREFIX) {
            Some([0x05]) => Self::RsaSha1,
            Some([0x0b]) => Self::RsaSha256,
            Some([0x0c]) => Self::RsaSha384,
            Some([0x0d]) => Self::RsaSha512,
            _ if oid == OID_ED25519 => Self::Ed25519,
            _ => Self::Unknown,
        })
    }
}

/// A certificate with the facts that membership rules look at. Cheap to clone; equal if the DER is equal.
#[derive(Clone)]
pub struct Certificate(Arc<Facts>);

struct Facts {
    der: Vec<u8>,
    /// What the signature is over, and where it stands.
    signed: Range<usize>,
    algorithm: Range<usize>,
    signature: Vec<u8>,
    signature_algorithm: SignatureAlgorithm,
    version: u8,
    serial: Vec<u8>,
    issuer: Range<usize>,
    subject: Range<usize>,
    subject_text: String,
    common_name: String,
    units: Vec<String>,
    validity: Validity,
    public_key: PublicKey,
    extensions: Extensions,
}

impl Certificate {
    /// Reads the first block of a PEM text, whatever it is called.
    ///
    /// # Errors
    /// [`X509Error`] if there is none, or it is not a certificate.
    pub fn from_pem(text: &[u8]) -> Result<Self, X509Error> {
        let (block, _) = pem::first(text).ok_or(X509Error::NoPem)?;
        Self::from_der(&block.bytes)
    }

    /// Reads DER.
    ///
    /// # Errors
    /// [`X509Error`] if it is not one certificate in strict DER.
    pub fn from_der(der: &[u8]) -> Result<Self, X509Error> {
        if der.len() > MAX_DER_BYTES {
            return Err(X509Error::Malformed("certificate"));
        }
        let mut outer = Reader::new(der);
        let whole = outer
            .expect(SEQUENCE)
            .ok_or(X509Error::Malformed("certificate"))?;
        if !outer.is_empty() {
            return Err(X509Error::TrailingData);
        }
        let mut parts = Reader::new(whole);
        let (Some(signed), Some(algorithm), Some(signature)) = (
            parts.expect_element(SEQUENCE),
            parts.expect_element(SEQUENCE),
            parts.whole_bytes(),
        ) else {
            return Err(X509Error::Malformed("certificate"));
        };
        if !parts.is_empty() {
            return Err(X509Error::Malformed("certificate"));
        }
        let range = |part: &[u8]| {
            let start = part.as_ptr() as usize - der.as_ptr() as usize;
            start..start + part.len()
        };

        let mut fields = Reader::new(signed.content);
        let version = read_version(&mut fields).ok_or(X509Error::Malformed("version"))?;
        let serial = fields
            .integer()
            .ok_or(X509Error::Malformed("serial number"))?;
        let inner_algorithm = fields
            .expect_element(SEQUENCE)
            .ok_or(X509Error::Malformed("signature algorithm identifier"))?;
        // The outer one is not signed: if it could differ, one certificate would have many forms.
        if inner_algorithm.raw != algorithm.raw {
            return Err(X509Error::Malformed(
                "certificate: inner and outer signature algorithm identifiers don't match",
            ));
        }
        let signature_algorithm = SignatureAlgorithm::read(algorithm.content)
            .ok_or(X509Error::Malformed("signature algorithm identifier"))?;
        let issuer = fields
            .expect_element(SEQUENCE)
            .ok_or(X509Error::Malformed("issuer"))?;
        let validity = fields
            .expect(SEQUENCE)
            .and_then(read_validity)
            .ok_or(X509Error::Malformed("validity"))?;
        let subject = fields
            .expect_element(SEQUENCE)
            .ok_or(X509Error::Malformed("subject"))?;
        let subject_names =
            read_name(subject.content).ok_or(X509Error::Malformed("subject: RDNSequence"))?;
        read_name(issuer.content).ok_or(X509Error::Malformed("issuer: RDNSequence"))?;
        let key = fields
            .expect_element(SEQUENCE)
            .ok_or(X509Error::Malformed("public key"))?;
        let public_key = PublicKey::from_spki_der(key.raw)?;
        let mut extensions = Extensions::default();
        if version > 1 {
            for tag in [implicit(1), implicit(2)] {
                fields
                    .optional(tag)
                    .ok_or(X509Error::Malformed("unique identifier"))?;
            }
        }
        if version == 3 {
            let found = fields
                .optional(explicit(3))
                .ok_or(X509Error::Malformed("extensions"))?;
            if let Some(content) = found {
                extensions = Extensions::read(content)?;
            }
        }
        if !fields.is_empty() {
            return Err(X509Error::Malformed("tbs certificate"));
        }
        let all_of = |short: &'static str| {
            subject_names
                .iter()
                .flatten()
                .filter(move |(kind, _)| kind == short)
                .map(|(_, value)| value.clone())
        };
        Ok(Self(Arc::new(Facts {
            signed: range(signed.raw),
            algorithm: range(algorithm.raw),
            signature: signature.to_vec(),
            signature_algorithm,
            version,
            serial: serial.to_vec(),
            issuer: range(issuer.raw),
            subject: range(subject.raw),
            // Go's last one wins.
            common_name: all_of("CN").next_back().unwrap_or_default(),
            units: all_of("OU").collect(),
            subject_text: name_text(&subject_names),
            validity,
            public_key,
            extensions,
            der: der.to_vec(),
        })))
    }

    /// The certificate in DER.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.0.der
    }

    /// The certificate as PEM.
    #[must_use]
    pub fn to_pem(&self) -> String {
        pem::encode("CERTIFICATE", self.der())
    }

    /// SHA-256 of the DER.
    #[must_use]
    pub fn fingerprint(&self) -> SecureHash {
        SecureHash::of(self.der())
    }

    /// The DER of the subject.
    #[must_use]
    pub fn raw_subject(&self) -> &[u8] {
        &self.0.der[self.0.subject.clone()]
    }

    /// The DER of the issuer.
    #[must_use]
    pub fn raw_issuer(&self) -> &[u8] {
        &self.0.der[self.0.issuer.clone()]
    }

    /// The subject as text, the most special part first: `CN=User1@org1.test,OU=client,…`.
    #[must_use]
    pub fn subject(&self) -> &str {
        &self.0.subject_text
    }

    /// The common name of the subject, empty if there is none.
    #[must_use]
    pub fn common_name(&self) -> &str {
        &self.0.common_name
    }

    /// The organisational units of the subject, in order.
    #[must_use]
    pub fn units(&self) -> &[String] {
        &self.0.units
    }

    /// The serial number: the content of its DER integer.
    #[must_use]
    pub fn serial(&self) -> &[u8] {
        &self.0.serial
    }

    /// The serial number in decimal digits; in hexadecimal ones after `0x` if it is longer than any authority makes it,
    /// for the time that the conversion takes grows with the square of the length.
    #[must_use]
    pub fn serial_decimal(&self) -> String {
        const LONGEST: usize = 64;
        match self.0.serial.len() {
            ..=LONGEST => decimal(&self.0.serial),
            _ => format!("0x{}", self.serial_hex()),
        }
    }

    /// The serial number in lower-case hexadecimal digits, without leading zeros.
    #[must_use]
    pub fn serial_hex(&self) -> String {
        let text = hex::encode(&self.0.serial);
        match text.trim_start_matches('0') {
            "" => "0".to_owned(),
            digits => digits.to_owned(),
        }
    }

    /// From when to when it counts.
    #[must_use]
    pub fn validity(&self) -> Validity {
        self.0.validity
    }

    /// The first second in which it counts.
    #[must_use]
    pub fn not_before(&self) -> UnixTime {
        self.0.validity.not_before
    }

    /// The last second in which it counts.
    #[must_use]
    pub fn not_after(&self) -> UnixTime {
        self.0.validity.not_after
    }

    /// The certified key.
    #[must_use]
    pub fn public_key(&self) -> &PublicKey {
        &self.0.public_key
    }

    /// Whether it is an authority's certificate.
    #[must_use]
    pub fn is_ca(&self) -> bool {
        self.0.extensions.is_ca
    }

    /// What the key may be used for.
    #[must_use]
    pub fn key_usage(&self) -> KeyUsage {
        self.0.extensions.key_usage
    }

    /// The identifier of its own key, if it has the extension.
    #[must_use]
    pub fn subject_key_id(&self) -> Option<&[u8]> {
        self.0.extensions.subject_key_id.as_deref()
    }

    /// The identifier of the issuer's key, if it says one.
    #[must_use]
    pub fn authority_key_id(&self) -> Option<&[u8]> {
        self.0.extensions.authority_key_id.as_deref()
    }

    /// Whether it has the extension for alternative names.
    #[must_use]
    pub fn has_alternative_names(&self) -> bool {
        self.0.extensions.has_names
    }

    /// The host names among its alternative names.
    pub fn dns_names(&self) -> impl Iterator<Item = &str> {
        self.0
            .extensions
            .names
            .iter()
            .filter_map(|name| match name {
                Name::Dns(name) => Some(name.as_str()),
                _ => None,
            })
    }

    /// The addresses (4 or 16 bytes) among its alternative names.
    pub fn ip_addresses(&self) -> impl Iterator<Item = &[u8]> {
        self.0
            .extensions
            .names
            .iter()
            .filter_map(|name| match name {
                Name::Ip(bytes) => Some(bytes.as_slice()),
                _ => None,
            })
    }

    /// Whether it says anything about the names that it may certify.
    #[must_use]
    pub fn has_name_constraints(&self) -> bool {
        self.0.extensions.name_constraints.is_some()
    }

    /// How it was signed.
    #[must_use]
    pub fn signature_algorithm(&self) -> SignatureAlgorithm {
        self.0.signature_algorithm
    }

    /// The signature, in the form of its algorithm.
    #[must_use]
    pub fn signature(&self) -> &[u8] {
        &self.0.signature
    }

    /// The same certificate with another signature, for instance the other form of an ECDSA signature.
    ///
    /// # Errors
    /// [`X509Error`] if the result is not a certificate.
    pub fn with_signature(&self, signature: &[u8]) -> Result<Self, X509Error> {
        let der = der::element(
            SEQUENCE,
            &[
                self.signed(),
                &self.0.der[self.0.algorithm.clone()],
                &der::element(BIT_STRING, &[&[0][..], signature].concat()),
            ]
            .concat(),
        );
        Self::from_der(&der)
    }

    /// Checks that `parent` is an authority and that its key made this certificate's signature.
    ///
    /// # Errors
    /// [`X509Error`] if not.
    pub fn verify_signed_by(&self, parent: &Self) -> Result<(), X509Error> {
        let rules = &parent.0.extensions;
        let no_authority = if rules.has_basic_constraints {
            !rules.is_ca
        } else {
            parent.0.version == 3
        };
        let no_signer = !rules.key_usage.is_unspecified() && !rules.key_usage.certificate_sign();
        if no_authority || no_signer {
            return Err(X509Error::ConstraintSignature);
        }
        parent.public_key().verify_signed(
            self.0.signature_algorithm,
            self.signed(),
            &self.0.signature,
        )
    }

    fn signed(&self) -> &[u8] {
        &self.0.der[self.0.signed.clone()]
    }

    pub(super) fn extensions(&self) -> &Extensions {
        &self.0.extensions
    }
}

impl PartialEq for Certificate {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0.der == other.0.der
    }
}

impl Eq for Certificate {}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Certificate({}, {})",
            self.subject(),
            self.serial_decimal()
        )
    }
}

fn read_version(fields: &mut Reader<'_>) -> Option<u8> {
    let Some(content) = fields.optional(explicit(0))? else {
        return Some(1);
    };
    let mut inner = Reader::new(content);
    match inner.integer()? {
        // Version 1 is the default, and DER does not write defaults; Go forgives it.
        [number @ 0..=2] if inner.is_empty() => Some(number + 1),
        _ => None,
    }
}

fn read_validity(content: &[u8]) -> Option<Validity> {
    let mut times = Reader::new(content);
    let not_before = read_time(&mut times)?;
    let not_after = read_time(&mut times)?;
    times.is_empty().then_some(Validity {
        not_before,
        not_after,
    })
}

/// A time in UTC, with seconds, as RFC 5280 wants it.
pub(super) fn read_time(from: &mut Reader<'_>) -> Option<UnixTime> {
    let Element { tag, content, .. } = from.element()?;
    let digits = content.strip_suffix(b"Z")?;
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = |digits: &[u8]| {
        digits
            .iter()
            .fold(0_i32, |number, digit| number * 10 + i32::from(digit - b'0'))
    };
    let (year, rest) = match (tag, digits.len()) {
        (UTC_TIME, 12) => {
            let year = number(&digits[..2]);
            (
                if year >= 50 { 1900 + year } else { 2000 + year },
                &digits[2..],
            )
        }
        (GENERALIZED_TIME, 14) => (number(&digits[..4]), &digits[4..]),
        _ => return None,
    };
    let part = |at: usize| u8::try_from(number(&rest[at..at + 2])).ok();
    let date = Date::from_calendar_date(year, Month::try_from(part(0)?).ok()?, part(2)?).ok()?;
    let time = Time::from_hms(part(4)?, part(6)?, part(8)?).ok()?;
    Some(UnixTime(
        PrimitiveDateTime::new(date, time)
            .assume_utc()
            .unix_timestamp(),
    ))
}

/// A big-endian number in decimal digits. Negative ones (which nobody should issue) are written with their sign.
fn decimal(content: &[u8]) -> String {
    let negative = content.first().is_some_and(|byte| *byte >= 0x80);
    let mut bytes = content.to_vec();
    if negative {
        // Two's complement: invert and add one.
        let mut carry = true;
        for byte in bytes.iter_mut().rev() {
            let (sum, over) = (!*byte).overflowing_add(u8::from(carry));
            *byte = sum;
            carry = over;
        }
    }
    let mut digits = Vec::new();
    while bytes.iter().any(|byte| *byte != 0) {
        let mut rest = 0_u32;
        for byte in &mut bytes {
            let value = rest << 8 | u32::from(*byte);
            *byte = u8::try_from(value / 10).expect("the rest is below ten");
            rest = value % 10;
        }
        digits.push(char::from_digit(rest, 10).expect("the rest is below ten"));
    }
    if digits.is_empty() {
        digits.push('0');
    }
    if negative {
        digits.push('-');
    }
    digits.iter().rev().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_in_decimal() {
        assert_eq!(decimal(&[0]), "0");
        assert_eq!(decimal(&[0x01, 0x00]), "256");
        assert_eq!(
            decimal(&[0x00, 0xff, 0xff, 0xff, 0xff, 0xff]),
            "1099511627775"
        );
        assert_eq!(decimal(&[0xff]), "-1");
    }

    #[test]
    fn times_are_utc_with_seconds() {
        let read =
            |tag: u8, text: &str| read_time(&mut Reader::new(&der::element(tag, text.as_bytes())));
        assert_eq!(read(UTC_TIME, "700101000000Z"), Some(UnixTime(0)));
        assert_eq!(
            read(UTC_TIME, "491231235959Z"),
            read(GENERALIZED_TIME, "20491231235959Z")
        );
        for bad in [
            "7001010000Z",
            "700101000000",
            "701301000000Z",
            "700101000000+0000",
        ] {
            assert_eq!(read(UTC_TIME, bad), None, "{bad}");
        }
    }
}
