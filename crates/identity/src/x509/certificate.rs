//! Certificates: the facts that Fabric's rules look at, read once from the DER.

use std::fmt;
use std::fmt::Write as _;
use std::ops::Range;
use std::sync::Arc;

use time::{Date, Month, PrimitiveDateTime, Time};

use super::key::PublicKey;
use super::reader::{
    BIT_STRING, Element, OBJECT_IDENTIFIER, OCTET_STRING, Reader, SEQUENCE, SET, explicit,
    implicit, unsigned,
};
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

/// Extensions are `2.5.29.x`; these are the x.
const EXTENSION_PREFIX: &[u8] = &[0x55, 0x1d];
const SUBJECT_KEY_ID: u8 = 14;
const KEY_USAGE: u8 = 15;
const SUBJECT_ALTERNATIVE_NAME: u8 = 17;
const BASIC_CONSTRAINTS: u8 = 19;
const NAME_CONSTRAINTS: u8 = 30;
const CRL_DISTRIBUTION_POINTS: u8 = 31;
const CERTIFICATE_POLICIES: u8 = 32;
const AUTHORITY_KEY_ID: u8 = 35;
const EXTENDED_KEY_USAGE: u8 = 37;
/// `1.3.6.1.5.5.7.1.1`, where to ask about the certificate.
const OID_AUTHORITY_INFO: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x01, 0x01];

/// `1.3.6.1.5.5.7.3`, and in it 1 for servers and 2 for clients.
const EXTENDED_USAGE_PREFIX: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03];
/// `2.5.29.37.0`
const ANY_EXTENDED_USAGE: &[u8] = &[0x55, 0x1d, 0x25, 0x00];

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

/// The bits of a key usage extension; none set if there is no extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KeyUsage(u16);

impl KeyUsage {
    /// Whether the key may sign data.
    #[must_use]
    pub const fn digital_signature(self) -> bool {
        self.0 & 1 != 0
    }

    /// Whether the key may sign certificates.
    #[must_use]
    pub const fn certificate_sign(self) -> bool {
        self.0 & 1 << 5 != 0
    }

    /// Whether the key may sign revocation lists.
    #[must_use]
    pub const fn revocation_sign(self) -> bool {
        self.0 & 1 << 6 != 0
    }

    /// Whether there is no extension, or one that allows nothing.
    #[must_use]
    pub const fn is_unspecified(self) -> bool {
        self.0 == 0
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

#[derive(Default)]
pub(super) struct Extensions {
    pub(super) has_basic_constraints: bool,
    pub(super) is_ca: bool,
    pub(super) max_path: Option<u32>,
    pub(super) key_usage: KeyUsage,
    /// `None`: no extension, so any.
    pub(super) extended_usage: Option<ExtendedUsages>,
    pub(super) subject_key_id: Option<Vec<u8>>,
    pub(super) authority_key_id: Option<Vec<u8>>,
    pub(super) has_names: bool,
    pub(super) names: Vec<Name>,
    pub(super) name_constraints: Option<NameConstraints>,
    pub(super) unhandled_critical: bool,
}

#[derive(Default, Clone, Copy)]
pub(super) struct ExtendedUsages {
    pub(super) any: bool,
    pub(super) server: bool,
    pub(super) client: bool,
}

/// An alternative name of the subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Name {
    Mail(String),
    Dns(String),
    Uri(String),
    Ip(Vec<u8>),
}

#[derive(Default)]
pub(super) struct NameConstraints {
    pub(super) permitted: Vec<Name>,
    pub(super) excluded: Vec<Name>,
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

    /// The serial number in decimal digits.
    #[must_use]
    pub fn serial_decimal(&self) -> String {
        decimal(&self.0.serial)
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

impl Extensions {
    /// Reads the content of the explicit tag around the extensions.
    fn read(content: &[u8]) -> Result<Self, X509Error> {
        let malformed = || X509Error::Malformed("extension");
        let mut outer = Reader::new(content);
        let mut list = Reader::new(outer.expect(SEQUENCE).ok_or_else(malformed)?);
        if !outer.is_empty() {
            return Err(malformed());
        }
        let mut found = Self::default();
        let mut seen: Vec<&[u8]> = Vec::new();
        while !list.is_empty() {
            let (oid, critical, value) = read_extension(&mut list).ok_or_else(malformed)?;
            if seen.contains(&oid) {
                return Err(X509Error::Malformed(
                    "certificate: contains duplicate extensions",
                ));
            }
            seen.push(oid);
            let understood = match oid.strip_prefix(EXTENSION_PREFIX) {
                Some([number]) => found.read_one(*number, value)?,
                _ => oid == OID_AUTHORITY_INFO,
            };
            found.unhandled_critical |= critical && !understood;
        }
        Ok(found)
    }

    /// Reads one extension; false if we do not understand it or not all of it.
    fn read_one(&mut self, number: u8, value: &[u8]) -> Result<bool, X509Error> {
        match number {
            SUBJECT_KEY_ID => {
                let id = Reader::new(value)
                    .expect(OCTET_STRING)
                    .ok_or(X509Error::Malformed("subject key identifier"))?;
                self.subject_key_id = Some(id.to_vec());
            }
            AUTHORITY_KEY_ID => {
                self.authority_key_id = read_authority_key_id(value)
                    .ok_or(X509Error::Malformed("authority key identifier"))?
                    .map(<[u8]>::to_vec);
            }
            KEY_USAGE => {
                self.key_usage = read_key_usage(value).ok_or(X509Error::Malformed("key usage"))?;
            }
            BASIC_CONSTRAINTS => {
                (self.is_ca, self.max_path) = read_basic_constraints(value)
                    .ok_or(X509Error::Malformed("basic constraints"))?;
                self.has_basic_constraints = true;
            }
            EXTENDED_KEY_USAGE => {
                self.extended_usage = read_extended_usage(value)
                    .ok_or(X509Error::Malformed("extended key usages"))?;
            }
            SUBJECT_ALTERNATIVE_NAME => {
                self.names = Reader::new(value)
                    .expect(SEQUENCE)
                    .and_then(read_names)
                    .ok_or(X509Error::Malformed("subject alternative name"))?;
                self.has_names = true;
                return Ok(!self.names.is_empty());
            }
            NAME_CONSTRAINTS => {
                let (constraints, understood) =
                    read_name_constraints(value).ok_or(X509Error::Malformed("name constraints"))?;
                self.name_constraints = Some(constraints);
                return Ok(understood);
            }
            CRL_DISTRIBUTION_POINTS | CERTIFICATE_POLICIES => {}
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// One extension: identifier, critical, value.
pub(super) fn read_extension<'a>(list: &mut Reader<'a>) -> Option<(&'a [u8], bool, &'a [u8])> {
    let mut fields = Reader::new(list.expect(SEQUENCE)?);
    let oid = fields.expect(OBJECT_IDENTIFIER)?;
    let critical = fields.default_false()?;
    let value = fields.expect(OCTET_STRING)?;
    fields.is_empty().then_some((oid, critical, value))
}

/// The key identifier in an authority key identifier; `Some(None)` if it has other parts only.
#[allow(clippy::option_option)]
pub(super) fn read_authority_key_id(value: &[u8]) -> Option<Option<&[u8]>> {
    Reader::new(Reader::new(value).expect(SEQUENCE)?).optional(implicit(0))
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

fn read_key_usage(value: &[u8]) -> Option<KeyUsage> {
    let (&unused, bytes) = Reader::new(value).expect(BIT_STRING)?.split_first()?;
    if unused > 7 || (bytes.is_empty() && unused > 0) {
        return None;
    }
    let mut bits = 0_u16;
    for (at, byte) in bytes.iter().take(2).enumerate() {
        bits |= u16::from(byte.reverse_bits()) << (8 * at);
    }
    Some(KeyUsage(bits))
}

fn read_basic_constraints(value: &[u8]) -> Option<(bool, Option<u32>)> {
    let mut fields = Reader::new(Reader::new(value).expect(SEQUENCE)?);
    let is_ca = fields.default_false()?;
    let max_path = if fields.is_empty() {
        None
    } else {
        let number = unsigned(fields.integer()?)?;
        if number.len() > 4 {
            return None;
        }
        Some(
            number
                .iter()
                .fold(0_u32, |number, byte| number << 8 | u32::from(*byte)),
        )
    };
    Some((is_ca, max_path))
}

#[allow(clippy::option_option)]
fn read_extended_usage(value: &[u8]) -> Option<Option<ExtendedUsages>> {
    let mut list = Reader::new(Reader::new(value).expect(SEQUENCE)?);
    if list.is_empty() {
        // A list of nothing restricts nothing, says Go.
        return Some(None);
    }
    let mut found = ExtendedUsages::default();
    while !list.is_empty() {
        let oid = list.expect(OBJECT_IDENTIFIER)?;
        match oid.strip_prefix(EXTENDED_USAGE_PREFIX) {
            Some([1]) => found.server = true,
            Some([2]) => found.client = true,
            _ => found.any |= oid == ANY_EXTENDED_USAGE,
        }
    }
    Some(Some(found))
}

/// Alternative names of the kinds that we know; others are passed over.
fn read_names(content: &[u8]) -> Option<Vec<Name>> {
    let mut list = Reader::new(content);
    let mut names = Vec::new();
    while !list.is_empty() {
        let element = list.element()?;
        if let Some(name) = read_general_name(element)? {
            if matches!(&name, Name::Ip(bytes) if bytes.len() != 4 && bytes.len() != 16) {
                return None;
            }
            names.push(name);
        }
    }
    Some(names)
}

#[allow(clippy::option_option)]
fn read_general_name(element: Element<'_>) -> Option<Option<Name>> {
    let text = || {
        std::str::from_utf8(element.content)
            .ok()
            .filter(|text| text.is_ascii())
            .map(str::to_owned)
    };
    Some(Some(match element.tag {
        tag if tag == implicit(1) => Name::Mail(text()?),
        tag if tag == implicit(2) => Name::Dns(text()?),
        tag if tag == implicit(6) => Name::Uri(text()?),
        tag if tag == implicit(7) => Name::Ip(element.content.to_vec()),
        _ => return Some(None),
    }))
}

fn read_name_constraints(value: &[u8]) -> Option<(NameConstraints, bool)> {
    let mut understood = true;
    let mut subtrees = |content: Option<&[u8]>| {
        let mut names = Vec::new();
        let mut list = Reader::new(content.unwrap_or_default());
        while !list.is_empty() {
            let mut subtree = Reader::new(list.expect(SEQUENCE)?);
            match read_general_name(subtree.element()?)? {
                Some(Name::Ip(bytes)) if bytes.len() != 8 && bytes.len() != 32 => return None,
                Some(name) => names.push(name),
                None => understood = false,
            }
        }
        Some(names)
    };
    let mut outer = Reader::new(value);
    let mut fields = Reader::new(outer.expect(SEQUENCE)?);
    let constraints = NameConstraints {
        permitted: subtrees(fields.optional(explicit(0))?)?,
        excluded: subtrees(fields.optional(explicit(1))?)?,
    };
    (fields.is_empty() && outer.is_empty()).then_some((constraints, understood))
}

/// The parts of a distinguished name: for each relative name its types (short, or dotted) and values.
fn read_name(content: &[u8]) -> Option<Vec<Vec<(String, String)>>> {
    let mut sequence = Reader::new(content);
    let mut names = Vec::new();
    while !sequence.is_empty() {
        let mut set = Reader::new(sequence.expect(SET)?);
        let mut name = Vec::new();
        while !set.is_empty() {
            let mut pair = Reader::new(set.expect(SEQUENCE)?);
            let oid = pair.expect(OBJECT_IDENTIFIER)?;
            let value = pair.element()?;
            if !pair.is_empty() {
                return None;
            }
            name.push((attribute(oid), read_string(value)?));
        }
        names.push(name);
    }
    Some(names)
}

fn attribute(oid: &[u8]) -> String {
    let short = match oid.strip_prefix(&[0x55, 0x04]) {
        Some([3]) => "CN",
        Some([5]) => "SERIALNUMBER",
        Some([6]) => "C",
        Some([7]) => "L",
        Some([8]) => "ST",
        Some([9]) => "STREET",
        Some([10]) => "O",
        Some([11]) => "OU",
        Some([17]) => "POSTALCODE",
        _ => return dotted(oid),
    };
    short.to_owned()
}

/// An object identifier in its usual notation.
fn dotted(oid: &[u8]) -> String {
    let mut out = String::new();
    let mut number = 0_u64;
    for byte in oid {
        number = number.wrapping_shl(7) | u64::from(byte & 0x7f);
        if *byte < 0x80 {
            if out.is_empty() {
                let first = (number / 40).min(2);
                let _ = write!(out, "{first}.{}", number - 40 * first);
            } else {
                let _ = write!(out, ".{number}");
            }
            number = 0;
        }
    }
    out
}

fn read_string(value: Element<'_>) -> Option<String> {
    let ascii = |allowed: fn(&u8) -> bool| {
        value
            .content
            .iter()
            .all(allowed)
            .then(|| value.content.iter().map(|byte| char::from(*byte)).collect())
    };
    match value.tag {
        0x0c => std::str::from_utf8(value.content).ok().map(str::to_owned),
        0x12 => ascii(|byte| byte.is_ascii_digit() || *byte == b' '),
        0x13 => ascii(|byte| {
            // `*` and `&` are not in the standard's set, but in many certificates.
            byte.is_ascii_alphanumeric() || b" '()+,-./:=?*&".contains(byte)
        }),
        // Teletex is read as Latin-1 everywhere.
        0x14 => ascii(|_| true),
        0x16 => ascii(u8::is_ascii),
        0x1e => {
            let (units, rest) = value.content.as_chunks::<2>();
            let units: Vec<u16> = units.iter().map(|unit| u16::from_be_bytes(*unit)).collect();
            String::from_utf16(&units).ok().filter(|_| rest.is_empty())
        }
        _ => None,
    }
}

/// A name as text, the last relative name first, as RFC 2253 has it.
fn name_text(names: &[Vec<(String, String)>]) -> String {
    let relative: Vec<String> = names
        .iter()
        .rev()
        .map(|name| {
            let pairs: Vec<String> = name
                .iter()
                .map(|(kind, value)| format!("{kind}={}", escaped(value)))
                .collect();
            pairs.join("+")
        })
        .collect();
    relative.join(",")
}

fn escaped(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let last = value.chars().count().saturating_sub(1);
    for (at, letter) in value.chars().enumerate() {
        let special = match letter {
            ',' | '+' | '"' | '\\' | '<' | '>' | ';' => true,
            ' ' => at == 0 || at == last,
            '#' => at == 0,
            _ => false,
        };
        if special {
            out.push('\\');
        }
        out.push(letter);
    }
    out
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
    fn object_identifiers_are_written_with_dots() {
        assert_eq!(
            dotted(&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01]),
            "1.2.840.10045.2.1"
        );
        assert_eq!(dotted(&[0x55, 0x04, 0x61]), "2.5.4.97");
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
