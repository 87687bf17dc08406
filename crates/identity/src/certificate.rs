//! Certificates: the facts that our rules look at, read once from the DER.
//!
//! A [`Certificate`] is a well-formed one, no more: that it may be believed is decided in [`crate::path`]. Reading is
//! strict. What this module does not understand and what the issuer marked as critical makes the certificate unreadable,
//! as RFC 5280 demands; and names that are not legal names make it useless to us.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use borsh::{BorshDeserialize, BorshSerialize};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use x509_parser::extensions::{GeneralName, GeneralSubtree, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate, X509Version};

use crate::der;
use crate::hash::SecureHash;
use crate::keys::{KeyError, PublicKey, SIGNATURE_BYTES, SignatureError, SignatureScheme};
use crate::name::{NameError, X500Name};

/// The largest certificate that is read, in bytes.
pub const MAX_CERTIFICATE_BYTES: usize = 16_384;

/// The most certificates that a path may have, root included.
pub const MAX_PATH_CERTIFICATES: usize = 8;

/// The extension in which a certificate says its role: an integer, Corda's object identifier and numbers.
pub const ROLE_OID: &str = "1.3.6.1.4.1.50530.1.1";

/// Object identifiers of signature algorithms.
const ED25519_OID: &str = "1.3.101.112";
const ECDSA_SHA256_OID: &str = "1.2.840.10045.4.3.2";

/// A moment in seconds since the Unix epoch, the precision of certificates.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    BorshSerialize,
    BorshDeserialize,
)]
#[serde(transparent)]
pub struct UnixTime(pub i64);

impl UnixTime {
    /// One day in seconds.
    pub const DAY: i64 = 86_400;

    /// The moment `seconds` later (earlier if negative), saturating.
    #[must_use]
    pub const fn plus_seconds(self, seconds: i64) -> Self {
        Self(self.0.saturating_add(seconds))
    }

    /// The moment `days` days later (earlier if negative), saturating.
    #[must_use]
    pub const fn plus_days(self, days: i64) -> Self {
        self.plus_seconds(days.saturating_mul(Self::DAY))
    }
}

impl From<std::time::SystemTime> for UnixTime {
    fn from(time: std::time::SystemTime) -> Self {
        let seconds =
            |duration: std::time::Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
        match time.duration_since(std::time::UNIX_EPOCH) {
            Ok(after) => Self(seconds(after)),
            Err(before) => Self(-seconds(before.duration())),
        }
    }
}

impl fmt::Display for UnixTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = OffsetDateTime::from_unix_timestamp(self.0)
            .ok()
            .and_then(|time| time.format(&Rfc3339).ok());
        match text {
            Some(text) => f.write_str(&text),
            None => write!(f, "{} s since 1970", self.0),
        }
    }
}

/// From when to when a certificate counts, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// The first second.
    pub not_before: UnixTime,
    /// The last second.
    pub not_after: UnixTime,
}

/// What a certificate is for. Root certificates have no role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum CertRole {
    /// The intermediate authority that admits organisations to the network.
    DoormanCa = 1,
    /// Signs network parameters and the network map.
    NetworkMap = 2,
    /// The identity of a service that several nodes may share: a notary.
    ServiceIdentity = 3,
    /// A node's own authority, constrained to the node's name.
    NodeCa = 4,
    /// Authenticates a node's connections. Proves nothing on the ledger.
    Tls = 5,
    /// Signs for an organisation on the ledger.
    LegalIdentity = 6,
    /// A key of an organisation that is not made public.
    ConfidentialLegalIdentity = 7,
    /// Signs network parameters only.
    NetworkParameters = 8,
}

impl CertRole {
    /// The number in the role extension.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The role of a number, if there is one.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::DoormanCa,
            2 => Self::NetworkMap,
            3 => Self::ServiceIdentity,
            4 => Self::NodeCa,
            5 => Self::Tls,
            6 => Self::LegalIdentity,
            7 => Self::ConfidentialLegalIdentity,
            8 => Self::NetworkParameters,
            _ => return None,
        })
    }

    /// Whether a certificate of role `parent` (`None`: the root) may issue one of this role.
    #[must_use]
    pub const fn may_be_issued_by(self, parent: Option<Self>) -> bool {
        match self {
            Self::DoormanCa | Self::NetworkMap | Self::NetworkParameters => parent.is_none(),
            Self::ServiceIdentity | Self::NodeCa => matches!(parent, Some(Self::DoormanCa)),
            Self::Tls => matches!(parent, Some(Self::NodeCa)),
            Self::LegalIdentity => matches!(parent, Some(Self::NodeCa | Self::DoormanCa)),
            Self::ConfidentialLegalIdentity => matches!(parent, Some(Self::LegalIdentity)),
        }
    }
}

impl fmt::Display for CertRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DoormanCa => "doorman CA",
            Self::NetworkMap => "network map",
            Self::ServiceIdentity => "service identity",
            Self::NodeCa => "node CA",
            Self::Tls => "TLS",
            Self::LegalIdentity => "legal identity",
            Self::ConfidentialLegalIdentity => "confidential legal identity",
            Self::NetworkParameters => "network parameters",
        })
    }
}

/// Why bytes are not a certificate that we can use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CertificateError {
    /// Larger than any certificate of ours.
    #[error("a certificate has at most {MAX_CERTIFICATE_BYTES} bytes, this one has {length}")]
    TooLarge {
        /// Its length in bytes.
        length: usize,
    },
    /// Not the DER of an X.509 version 3 certificate, or bytes after it.
    #[error("these bytes are not one X.509 version 3 certificate in DER")]
    Malformed,
    /// The subject or issuer is no legal name.
    #[error("the {field} of the certificate is not a legal name")]
    Name {
        /// `subject` or `issuer`.
        field: &'static str,
        /// What is wrong with it.
        source: NameError,
    },
    /// The key is of an algorithm that we do not have, or malformed.
    #[error("the key in the certificate of {subject} cannot be used")]
    Key {
        /// Whose certificate.
        subject: X500Name,
        /// What is wrong with it.
        source: KeyError,
    },
    /// Signed with an algorithm that we do not have, or in a malformed way.
    #[error(
        "the certificate of {subject} is signed with {algorithm}; Ed25519 and ECDSA with SHA-256 are supported"
    )]
    SignatureAlgorithm {
        /// Whose certificate.
        subject: X500Name,
        /// The object identifier of the algorithm.
        algorithm: String,
    },
    /// An extension that is given twice, unreadable, or critical and unknown.
    #[error("the extension {oid} of the certificate of {subject} is {problem}")]
    Extension {
        /// Whose certificate.
        subject: X500Name,
        /// The object identifier of the extension.
        oid: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A PEM text without certificates, or with something else in their place.
    #[error("the PEM text holds no readable certificate")]
    Pem,
    /// More certificates than a path has, or none.
    #[error(
        "a certificate path has 1 to {MAX_PATH_CERTIFICATES} certificates, this one has {length}"
    )]
    PathLength {
        /// How many there were.
        length: usize,
    },
}

/// An X.509 certificate with the facts that path validation needs. Cheap to clone; equal if the DER is equal.
#[derive(Clone)]
pub struct Certificate(Arc<Facts>);

pub(crate) struct Facts {
    der: CertificateDer<'static>,
    signed: Range<usize>,
    signature_scheme: SignatureScheme,
    /// Fixed width also for ECDSA, which is DER in the certificate.
    signature: [u8; SIGNATURE_BYTES],
    subject: X500Name,
    issuer: X500Name,
    public_key: PublicKey,
    validity: Validity,
    pub(crate) extensions: Extensions,
}

#[derive(Default)]
pub(crate) struct Extensions {
    pub(crate) role: Option<CertRole>,
    pub(crate) is_ca: bool,
    pub(crate) max_intermediates: Option<u32>,
    pub(crate) signs_certificates: bool,
    pub(crate) signs_data: bool,
    pub(crate) permitted: Option<Vec<X500Name>>,
    pub(crate) excluded: Vec<X500Name>,
}

impl Certificate {
    /// Reads a certificate.
    ///
    /// # Errors
    /// [`CertificateError`] if it is malformed, or of a kind that we cannot judge.
    pub fn from_der(der: &[u8]) -> Result<Self, CertificateError> {
        if der.len() > MAX_CERTIFICATE_BYTES {
            return Err(CertificateError::TooLarge { length: der.len() });
        }
        let (rest, parsed) =
            X509Certificate::from_der(der).map_err(|_| CertificateError::Malformed)?;
        if !rest.is_empty()
            || parsed.version() != X509Version::V3
            || parsed.signature_algorithm != parsed.tbs_certificate.signature
        {
            return Err(CertificateError::Malformed);
        }
        let name = |field, name| {
            X500Name::from_parsed(name).map_err(|source| CertificateError::Name { field, source })
        };
        let subject = name("subject", parsed.subject())?;
        let issuer = name("issuer", parsed.issuer())?;
        let public_key = PublicKey::from_spki_der(parsed.public_key().raw).map_err(|source| {
            CertificateError::Key {
                subject: subject.clone(),
                source,
            }
        })?;
        let (signature_scheme, signature) =
            read_signature(&parsed).ok_or_else(|| CertificateError::SignatureAlgorithm {
                subject: subject.clone(),
                algorithm: parsed.signature_algorithm.algorithm.to_id_string(),
            })?;
        let extensions =
            Extensions::read(&parsed).map_err(|(oid, problem)| CertificateError::Extension {
                subject: subject.clone(),
                oid,
                problem,
            })?;
        let signed = parsed.tbs_certificate.as_ref();
        if der != envelope(signed, signature_scheme, &parsed.signature_value.data) {
            return Err(CertificateError::Malformed);
        }
        let start = signed.as_ptr() as usize - der.as_ptr() as usize;
        Ok(Self(Arc::new(Facts {
            signed: start..start + signed.len(),
            signature_scheme,
            signature,
            subject,
            issuer,
            public_key,
            validity: Validity {
                not_before: UnixTime(parsed.validity().not_before.timestamp()),
                not_after: UnixTime(parsed.validity().not_after.timestamp()),
            },
            extensions,
            der: CertificateDer::from(der.to_vec()),
        })))
    }

    /// Reads all certificates of a PEM text, in order.
    ///
    /// # Errors
    /// [`CertificateError::Pem`] if there is none or the text is damaged, another [`CertificateError`] if one cannot be
    /// used.
    pub fn from_pem(text: &[u8]) -> Result<Vec<Self>, CertificateError> {
        let mut certificates = Vec::new();
        for der in CertificateDer::pem_slice_iter(text) {
            let der = der.map_err(|_| CertificateError::Pem)?;
            certificates.push(Self::from_der(&der)?);
        }
        if certificates.is_empty() {
            return Err(CertificateError::Pem);
        }
        Ok(certificates)
    }

    /// The certificate as PEM.
    #[must_use]
    pub fn to_pem(&self) -> String {
        pem("CERTIFICATE", self.der())
    }

    /// The certificate in DER.
    #[must_use]
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.0.der
    }

    /// Whose certificate it is.
    #[must_use]
    pub fn subject(&self) -> &X500Name {
        &self.0.subject
    }

    /// Who is said to have issued it.
    #[must_use]
    pub fn issuer(&self) -> &X500Name {
        &self.0.issuer
    }

    /// The certified key.
    #[must_use]
    pub fn public_key(&self) -> &PublicKey {
        &self.0.public_key
    }

    /// From when to when it counts.
    #[must_use]
    pub fn validity(&self) -> Validity {
        self.0.validity
    }

    /// What it is for; `None` for a root.
    #[must_use]
    pub fn role(&self) -> Option<CertRole> {
        self.0.extensions.role
    }

    /// SHA-256 of the DER, the usual fingerprint.
    #[must_use]
    pub fn fingerprint(&self) -> SecureHash {
        SecureHash::of(self.der())
    }

    pub(crate) fn extensions(&self) -> &Extensions {
        &self.0.extensions
    }

    /// Checks that the key of `issuer` made this certificate's signature.
    pub(crate) fn verify_issued_by(&self, issuer: &Self) -> Result<(), SignatureError> {
        let key = issuer.public_key();
        if key.scheme() != self.0.signature_scheme {
            return Err(SignatureError::Mismatch {
                key: key.to_string_short(),
            });
        }
        key.verify_any_form(&self.0.der[self.0.signed.clone()], &self.0.signature)
    }
}

/// A certificate's bytes around what is signed. The signature does not cover them, and the parser forgives tags that are
/// not DER: without comparing, one certificate would have many forms.
fn envelope(signed: &[u8], scheme: SignatureScheme, signature: &[u8]) -> Vec<u8> {
    // id-Ed25519 (RFC 8410) and ecdsa-with-SHA256 (RFC 5758), both without parameters.
    let algorithm: &[u8] = match scheme {
        SignatureScheme::Ed25519 => &[0x2b, 0x65, 0x70],
        SignatureScheme::EcdsaP256 => &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02],
    };
    let algorithm = der::element(
        der::SEQUENCE,
        &der::element(der::OBJECT_IDENTIFIER, algorithm),
    );
    let signature = der::element(der::BIT_STRING, &[&[0][..], signature].concat());
    der::element(der::SEQUENCE, &[signed, &algorithm, &signature].concat())
}

fn read_signature(
    parsed: &X509Certificate<'_>,
) -> Option<(SignatureScheme, [u8; SIGNATURE_BYTES])> {
    let bytes = &*parsed.signature_value.data;
    match parsed.signature_algorithm.algorithm.to_id_string().as_str() {
        ED25519_OID => Some((SignatureScheme::Ed25519, bytes.try_into().ok()?)),
        ECDSA_SHA256_OID => {
            let signature = p256::ecdsa::Signature::from_der(bytes).ok()?;
            Some((SignatureScheme::EcdsaP256, signature.to_bytes().into()))
        }
        _ => None,
    }
}

impl Extensions {
    /// The error is the extension's object identifier and what is wrong with it.
    fn read(parsed: &X509Certificate<'_>) -> Result<Self, (String, &'static str)> {
        let mut facts = Self::default();
        let mut seen = Vec::new();
        for extension in parsed.extensions() {
            let oid = extension.oid.to_id_string();
            if seen.contains(&oid) {
                return Err((oid, "given more than once"));
            }
            match extension.parsed_extension() {
                _ if oid == ROLE_OID => {
                    facts.role = Some(
                        read_role(extension.value).ok_or((oid.clone(), "no role that we know"))?,
                    );
                }
                ParsedExtension::BasicConstraints(constraints) => {
                    facts.is_ca = constraints.ca;
                    facts.max_intermediates = constraints.path_len_constraint;
                }
                ParsedExtension::KeyUsage(usage) => {
                    facts.signs_certificates = usage.key_cert_sign();
                    facts.signs_data = usage.digital_signature();
                }
                ParsedExtension::NameConstraints(constraints) => {
                    let names = |subtrees: &[GeneralSubtree<'_>]| {
                        read_subtrees(subtrees).ok_or((
                            oid.clone(),
                            "a constraint on something else than whole legal names",
                        ))
                    };
                    if let Some(permitted) = &constraints.permitted_subtrees {
                        facts.permitted = Some(names(permitted)?);
                    }
                    if let Some(excluded) = &constraints.excluded_subtrees {
                        facts.excluded = names(excluded)?;
                    }
                }
                // Understood, and without weight in our rules: the role says it more narrowly.
                ParsedExtension::ExtendedKeyUsage(_)
                | ParsedExtension::SubjectAlternativeName(_)
                | ParsedExtension::SubjectKeyIdentifier(_)
                | ParsedExtension::AuthorityKeyIdentifier(_) => {}
                ParsedExtension::ParseError { .. } => return Err((oid, "malformed")),
                _ if extension.critical => return Err((oid, "critical, and unknown to us")),
                _ => {}
            }
            seen.push(oid);
        }
        Ok(facts)
    }
}

fn read_role(value: &[u8]) -> Option<CertRole> {
    match value {
        [crate::der::INTEGER, 1, number] => CertRole::from_number(*number),
        _ => None,
    }
}

fn read_subtrees(subtrees: &[GeneralSubtree<'_>]) -> Option<Vec<X500Name>> {
    subtrees
        .iter()
        .map(|subtree| match &subtree.base {
            GeneralName::DirectoryName(name) => X500Name::from_parsed(name).ok(),
            _ => None,
        })
        .collect()
}

impl PartialEq for Certificate {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.der() == other.der()
    }
}

impl Eq for Certificate {}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate")
            .field("subject", self.subject())
            .field("issuer", self.issuer())
            .field("role", &self.role())
            .finish_non_exhaustive()
    }
}

/// Certificates from the one in question (the leaf, first) towards the root.
///
/// The root may be included as the last one or left out: whoever validates has it anyway. The order is a claim like the
/// rest, checked by [`crate::path::validate_path`]. In borsh a list of DER byte strings, in serde a list of base-64
/// texts; both are read with limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificatePath(Vec<Certificate>);

impl CertificatePath {
    /// A path of certificates, leaf first.
    ///
    /// # Errors
    /// [`CertificateError::PathLength`] if there is none, or too many.
    pub fn new(certificates: Vec<Certificate>) -> Result<Self, CertificateError> {
        if certificates.is_empty() || certificates.len() > MAX_PATH_CERTIFICATES {
            return Err(CertificateError::PathLength {
                length: certificates.len(),
            });
        }
        Ok(Self(certificates))
    }

    /// Reads a path of DER certificates, leaf first.
    ///
    /// # Errors
    /// [`CertificateError`] if there is none or too many, or one cannot be used.
    pub fn from_ders<D: AsRef<[u8]>>(ders: &[D]) -> Result<Self, CertificateError> {
        if ders.is_empty() || ders.len() > MAX_PATH_CERTIFICATES {
            return Err(CertificateError::PathLength { length: ders.len() });
        }
        let certificates: Result<Vec<_>, _> = ders
            .iter()
            .map(|der| Certificate::from_der(der.as_ref()))
            .collect();
        Self::new(certificates?)
    }

    /// The DER certificates, leaf first.
    #[must_use]
    pub fn to_ders(&self) -> Vec<Vec<u8>> {
        self.0
            .iter()
            .map(|certificate| certificate.der().to_vec())
            .collect()
    }

    /// The certificate in question.
    #[must_use]
    pub fn leaf(&self) -> &Certificate {
        self.0.first().expect("a path is not empty")
    }

    /// All certificates, leaf first.
    #[must_use]
    pub fn certificates(&self) -> &[Certificate] {
        &self.0
    }

    /// When the first of the certificates ceases to count.
    #[must_use]
    pub fn expires(&self) -> UnixTime {
        let ends = self.0.iter().map(|c| c.validity().not_after);
        ends.min().expect("a path is not empty")
    }
}

impl Serialize for CertificatePath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(|c| BASE64.encode(c.der())))
    }
}

impl<'de> Deserialize<'de> for CertificatePath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let texts = <Vec<String> as Deserialize>::deserialize(deserializer)?;
        let ders: Result<Vec<_>, _> = texts.iter().map(|text| BASE64.decode(text)).collect();
        Self::from_ders(&ders.map_err(serde::de::Error::custom)?).map_err(serde::de::Error::custom)
    }
}

impl BorshSerialize for CertificatePath {
    fn serialize<W: std::io::Write>(&self, writer: &mut W) -> std::io::Result<()> {
        BorshSerialize::serialize(&self.to_ders(), writer)
    }
}

impl BorshDeserialize for CertificatePath {
    fn deserialize_reader<R: std::io::Read>(reader: &mut R) -> std::io::Result<Self> {
        let invalid =
            |error: CertificateError| std::io::Error::new(std::io::ErrorKind::InvalidData, error);
        // Both lengths are checked before anything is allocated for them.
        let count = u32::deserialize_reader(reader)? as usize;
        if count == 0 || count > MAX_PATH_CERTIFICATES {
            return Err(invalid(CertificateError::PathLength { length: count }));
        }
        let mut certificates = Vec::with_capacity(count);
        for _ in 0..count {
            let length = u32::deserialize_reader(reader)? as usize;
            if length > MAX_CERTIFICATE_BYTES {
                return Err(invalid(CertificateError::TooLarge { length }));
            }
            let mut der = vec![0; length];
            reader.read_exact(&mut der)?;
            certificates.push(Certificate::from_der(&der).map_err(invalid)?);
        }
        Self::new(certificates).map_err(invalid)
    }
}

/// A PEM block: base-64 in lines of 64.
pub(crate) fn pem(label: &str, bytes: &[u8]) -> String {
    let encoded = BASE64.encode(bytes);
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in encoded.as_bytes().chunks(64) {
        text.push_str(std::str::from_utf8(line).expect("base-64 is ASCII"));
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}
