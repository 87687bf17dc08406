//! Authorities and the certificates that they issue.

use std::net::IpAddr;
use std::str::FromStr;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use quorate_identity::x509;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CustomExtension, DistinguishedName, DnType,
    DnValue, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    PublicKeyData, SanType, SerialNumber, SignatureAlgorithm, SigningKey,
};
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

use super::CryptoError;
use super::yaml::Spec;

/// How long certificates are valid.
const VALIDITY: Duration = Duration::days(3650);
/// How long before now validity begins: other machines' clocks may be slow.
const BACKDATED: Duration = Duration::minutes(5);
const SERIAL_BYTES: usize = 16;

/// What a certificate's owner does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Node {
    Client,
    Peer,
    Admin,
    Orderer,
}

impl Node {
    /// The organisational unit by which Fabric recognises it.
    pub(super) fn unit(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Peer => "peer",
            Self::Admin => "admin",
            Self::Orderer => "orderer",
        }
    }
}

/// A private key and the certificate for it, in PEM.
pub(super) struct Leaf {
    pub(super) key: Zeroizing<String>,
    pub(super) certificate: String,
}

/// A self-signed authority with its key.
pub(super) struct Authority {
    name: String,
    /// What every subject begins with.
    subject: Vec<(DnType, String)>,
    /// The unit that the file gives to the authority; those that it certifies carry it too.
    unit: Option<String>,
    not_before: OffsetDateTime,
    issuer: Issuer<'static, LowS>,
    certificate: String,
}

impl Authority {
    pub(super) fn new(
        organization: &str,
        name: &str,
        spec: &Spec,
        now: OffsetDateTime,
    ) -> Result<Self, CryptoError> {
        let not_before = round_to_minute(now) - BACKDATED;
        let given = |value: &Option<String>| value.clone().filter(|value| !value.is_empty());
        let or = |value: &Option<String>, default: &str| {
            given(value).unwrap_or_else(|| default.to_owned())
        };
        let mut subject = vec![
            (DnType::CountryName, or(&spec.country, "US")),
            (
                DnType::StateOrProvinceName,
                or(&spec.province, "California"),
            ),
            (DnType::LocalityName, or(&spec.locality, "San Francisco")),
        ];
        // Street address and postal code.
        for (oid, value) in [(9, &spec.street_address), (17, &spec.postal_code)] {
            if let Some(value) = given(value) {
                subject.push((DnType::CustomDnType(vec![2, 5, 4, oid]), value));
            }
        }
        let unit = given(&spec.organizational_unit);

        let key = Key::new(name)?;
        let mut params = params(not_before);
        let mut own = subject.clone();
        own.push((DnType::OrganizationName, organization.to_owned()));
        own.extend(
            unit.clone()
                .map(|unit| (DnType::OrganizationalUnitName, unit)),
        );
        params.distinguished_name = distinguished_name(own, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
        ];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        let key_id = digest(&SHA256, key.pair.der_bytes());
        params.key_identifier_method = KeyIdMethod::PreSpecified(key_id.as_ref().to_vec());
        let signer = LowS::new(key, name)?;
        let certificate = params
            .self_signed(&signer)
            .map_err(|error| failed(name, &error))?;
        Ok(Self {
            name: name.to_owned(),
            subject,
            unit,
            not_before,
            certificate: pem(&certificate),
            issuer: Issuer::new(params, signer),
        })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn certificate_pem(&self) -> &str {
        &self.certificate
    }

    pub(super) fn key_pem(&self) -> Zeroizing<String> {
        self.issuer.key().key.pem()
    }

    /// A certificate by which its owner signs for the organisation.
    pub(super) fn issue_identity(
        &self,
        name: &str,
        unit: Option<&str>,
    ) -> Result<Leaf, CryptoError> {
        let mut params = self.leaf(name, unit);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        self.issue(name, params)
    }

    /// A certificate for both ends of TLS.
    pub(super) fn issue_tls(&self, name: &str, sans: &[String]) -> Result<Leaf, CryptoError> {
        let mut params = self.leaf(name, None);
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        // Names first, addresses after them, as Go writes them.
        let (addresses, names): (Vec<&String>, Vec<&String>) = sans
            .iter()
            .partition(|san| IpAddr::from_str(san.as_str()).is_ok());
        for san in names.into_iter().chain(addresses) {
            let san = match IpAddr::from_str(san) {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => {
                    let dns = san.as_str().try_into();
                    SanType::DnsName(dns.map_err(|error| failed(name, &error))?)
                }
            };
            params.subject_alt_names.push(san);
        }
        self.issue(name, params)
    }

    fn leaf(&self, name: &str, unit: Option<&str>) -> CertificateParams {
        let mut params = params(self.not_before);
        let mut subject = self.subject.clone();
        let own = self.unit.clone();
        subject.extend(own.map(|own| (DnType::OrganizationalUnitName, own)));
        // The library keeps one value for each type; by number the same type counts as another.
        let kind = match self.unit {
            Some(_) => DnType::CustomDnType(vec![2, 5, 4, 11]),
            None => DnType::OrganizationalUnitName,
        };
        subject.extend(unit.map(|unit| (kind, unit.to_owned())));
        params.distinguished_name = distinguished_name(subject, name);
        params.use_authority_key_identifier_extension = true;
        // Says that this is no authority, without the key identifier that the library would add.
        const EMPTY_SEQUENCE: [u8; 2] = [0x30, 0x00];
        let mut constraints =
            CustomExtension::from_oid_content(&[2, 5, 29, 19], EMPTY_SEQUENCE.to_vec());
        constraints.set_criticality(true);
        params.custom_extensions = vec![constraints];
        params
    }

    fn issue(&self, name: &str, params: CertificateParams) -> Result<Leaf, CryptoError> {
        let key = Key::new(name)?;
        let certificate = params
            .signed_by(&key.pair, &self.issuer)
            .map_err(|error| failed(name, &error))?;
        Ok(Leaf {
            key: key.pem(),
            certificate: pem(&certificate),
        })
    }
}

fn failed(name: &str, error: &rcgen::Error) -> CryptoError {
    CryptoError::Certificate {
        name: name.to_owned(),
        reason: error.to_string(),
    }
}

fn params(not_before: OffsetDateTime) -> CertificateParams {
    let mut serial = [0; SERIAL_BYTES];
    SystemRandom::new()
        .fill(&mut serial)
        .expect("the random generator of aws-lc does not fail");
    // Positive and of full length.
    serial[0] = serial[0] & 0x7f | 0x40;
    let mut params = CertificateParams::default();
    params.not_before = not_before;
    params.not_after = not_before + VALIDITY;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params
}

fn distinguished_name(subject: Vec<(DnType, String)>, common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    let common_name = (DnType::CommonName, common_name.to_owned());
    for (kind, value) in subject.into_iter().chain([common_name]) {
        let value = match value.as_str().try_into() {
            Ok(printable) => DnValue::PrintableString(printable),
            Err(_) => DnValue::Utf8String(value),
        };
        name.push(kind, value);
    }
    name
}

fn round_to_minute(time: OffsetDateTime) -> OffsetDateTime {
    let seconds = time.unix_timestamp();
    let minutes = (seconds + 30).div_euclid(60);
    OffsetDateTime::from_unix_timestamp(minutes * 60).unwrap_or(time)
}

fn pem(certificate: &Certificate) -> String {
    certificate.pem().replace("\r\n", "\n")
}

struct Key {
    pair: KeyPair,
}

impl Key {
    fn new(name: &str) -> Result<Self, CryptoError> {
        let pair = KeyPair::generate().map_err(|error| failed(name, &error))?;
        Ok(Self { pair })
    }

    fn pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.pair.serialize_pem())
    }
}

/// Signs with low S. Fabric rewrites certificates that are signed otherwise, and then no longer finds them by their
/// bytes.
struct LowS {
    key: Key,
    signer: x509::SigningKey,
}

impl LowS {
    fn new(key: Key, name: &str) -> Result<Self, CryptoError> {
        let signer = x509::SigningKey::from_der(key.pair.serialized_der());
        let signer = signer.map_err(|error| CryptoError::Certificate {
            name: name.to_owned(),
            reason: error.to_string(),
        })?;
        Ok(Self { key, signer })
    }
}

impl PublicKeyData for LowS {
    fn der_bytes(&self) -> &[u8] {
        self.key.pair.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.key.pair.algorithm()
    }
}

impl SigningKey for LowS {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(self.signer.sign(message))
    }
}
