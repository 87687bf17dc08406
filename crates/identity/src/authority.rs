//! Issuing certificates: authorities for development and for bootstrapping a network.
//!
//! [`CertificateAuthority`] is the top of the hierarchy: root, doorman, network map signer. What it admits is a node with
//! its [`NodeKeys`](crate::NodeKeys). A network in production has its own authority elsewhere; what its nodes have is still
//! `NodeKeys`.
//!
//! Certificates are written by `rcgen`, names and role extension by us. Files are the business of
//! [`crate::key_store`].

use std::fmt;
use std::path::Path;
use std::sync::OnceLock;

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, DnValue,
    ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyUsagePurpose, NameConstraints,
    PublicKeyData, SignatureAlgorithm, SigningKey as CertificateSigner,
};
use time::OffsetDateTime;

use crate::certificate::{
    CertRole, Certificate, CertificateError, CertificatePath, UnixTime, Validity,
};
use crate::der;
use crate::hash::SecureHash;
use crate::key_store::{KeyStore, KeyStoreError, Reading, insert_identity};
use crate::keys::{KeyPair, PublicKey, SignatureScheme};
use crate::name::{Attribute, NameError, X500Name};
use crate::party::Party;
use crate::signing::{RemoteError, SigningError, SigningKey, x509_form};

/// How long a node's certificates count, in days (ten years, as Corda's).
pub const NODE_CERTIFICATE_DAYS: i64 = 3_650;

/// How long the certificates of a generated authority count, in days.
pub const AUTHORITY_CERTIFICATE_DAYS: i64 = 7_300;

/// By how many days new certificates are antedated, for peers whose clock is behind.
pub const BACKDATING_DAYS: i64 = 1;

/// The role extension's object identifier in numbers, see [`crate::certificate::ROLE_OID`].
const ROLE_OID_NUMBERS: &[u64] = &[1, 3, 6, 1, 4, 1, 50530, 1, 1];

/// How many authorities may follow below each kind: root, doorman, node CA, identity.
const ROOT_PATH_LENGTH: u8 = 2;
const DOORMAN_PATH_LENGTH: u8 = 1;
const NODE_CA_PATH_LENGTH: u8 = 0;

/// Why a certificate was not issued.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IssueError {
    /// The issuer's own certificate does not count at that time.
    #[error("the certificate of the issuer {issuer} is valid from {} to {} only, and it is {now}", .validity.not_before, .validity.not_after)]
    IssuerNotValid {
        /// Who should issue.
        issuer: X500Name,
        /// When it could.
        validity: Validity,
        /// The time of the attempt.
        now: UnixTime,
    },
    /// The authority does not issue such certificates to others.
    #[error("a certificate authority does not issue certificates for the role {role}")]
    RoleNotIssued {
        /// The role.
        role: CertRole,
    },
    /// The name given to the authority leaves no room for those of its parts.
    #[error("no authority can be named after {name}")]
    Name {
        /// The name given.
        name: X500Name,
        /// The reason.
        source: NameError,
    },
    /// The issuer's key is in a device that did not sign.
    #[error("{issuer} could not sign a certificate")]
    Signing {
        /// Who should issue.
        issuer: X500Name,
        /// What the device says.
        source: SigningError,
    },
    /// A key could not be made where it shall be kept.
    #[error("no key could be made for {subject}")]
    Key {
        /// Whose key.
        subject: X500Name,
        /// What its keeper says.
        source: RemoteError,
    },
    /// The builder refused.
    #[error("the certificate of {subject} could not be written: {reason}")]
    Build {
        /// Whose certificate.
        subject: X500Name,
        /// What the builder says.
        reason: String,
    },
    /// The builder made what we do not read.
    #[error("the certificate of {subject} could not be read back")]
    ReadBack {
        /// Whose certificate.
        subject: X500Name,
        /// The reason.
        source: CertificateError,
    },
}

/// A key together with the path of certificates that says whose it is and what for.
#[derive(Clone)]
pub struct Identity {
    key: SigningKey,
    path: CertificatePath,
}

/// Why a key and a path are not an identity.
#[derive(Debug, thiserror::Error)]
#[error(
    "the certificate of {subject} certifies another key ({certified}) than the private key at hand ({held})"
)]
pub struct KeyMismatch {
    /// The subject of the path's leaf.
    pub subject: X500Name,
    /// The short form of the key in the certificate.
    pub certified: String,
    /// The short form of the private key's public half.
    pub held: String,
}

impl Identity {
    /// An identity of a key and the path of its certificate.
    ///
    /// # Errors
    /// [`KeyMismatch`] if the certificate is that of another key.
    pub fn new(key: impl Into<SigningKey>, path: CertificatePath) -> Result<Self, KeyMismatch> {
        let key = key.into();
        let leaf = path.leaf();
        if leaf.public_key() != key.public() {
            return Err(KeyMismatch {
                subject: leaf.subject().clone(),
                certified: leaf.public_key().to_string_short(),
                held: key.public().to_string_short(),
            });
        }
        Ok(Self { key, path })
    }

    /// For a path that was made for this key a moment ago.
    pub(crate) fn certified(key: SigningKey, path: CertificatePath) -> Self {
        Self { key, path }
    }

    /// What signs.
    #[must_use]
    pub fn key(&self) -> &SigningKey {
        &self.key
    }

    /// The certificates, leaf first, root last.
    #[must_use]
    pub fn path(&self) -> &CertificatePath {
        &self.path
    }

    /// Whose identity it is.
    #[must_use]
    pub fn name(&self) -> &X500Name {
        self.path.leaf().subject()
    }

    /// Name and public key.
    #[must_use]
    pub fn party(&self) -> Party {
        Party::new(self.name().clone(), self.key.public().clone())
    }

    /// Issues a certificate to `subject` from this identity, and puts it before this identity's path.
    fn issue(&self, subject: &Subject<'_>) -> Result<CertificatePath, IssueError> {
        let leaf = issue(subject, self.name(), &self.key)?;
        let mut certificates = vec![leaf];
        certificates.extend_from_slice(self.path.certificates());
        CertificatePath::new(certificates).map_err(|source| IssueError::ReadBack {
            subject: subject.name.clone(),
            source,
        })
    }

    /// A key in this identity's name, certified by it for `role`.
    pub(crate) fn issue_end(
        &self,
        role: CertRole,
        key: SigningKey,
        now: UnixTime,
    ) -> Result<Self, IssueError> {
        let path = self.issue(&Subject {
            name: self.name(),
            key: key.public(),
            role: Some(role),
            path_length: None,
            permitted: None,
            validity: self.validity_below(now, NODE_CERTIFICATE_DAYS)?,
        })?;
        Ok(Self { key, path })
    }

    /// The validity of something issued now: as long as wished, but not beyond the issuer's own.
    fn validity_below(&self, now: UnixTime, days: i64) -> Result<Validity, IssueError> {
        let own = self.path.leaf().validity();
        if now < own.not_before || now > own.not_after {
            return Err(IssueError::IssuerNotValid {
                issuer: self.name().clone(),
                validity: own,
                now,
            });
        }
        Ok(Validity {
            not_before: now.plus_days(-BACKDATING_DAYS).max(own.not_before),
            not_after: now.plus_days(days).min(own.not_after),
        })
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("name", self.name())
            .field("role", &self.path.leaf().role())
            .finish_non_exhaustive()
    }
}

/// The authority of a network: a root that everybody trusts, the doorman that admits nodes, and the signer of the
/// network map and parameters.
#[derive(Debug, Clone)]
pub struct CertificateAuthority {
    root: Identity,
    doorman: Identity,
    network_map: Identity,
}

impl CertificateAuthority {
    /// **INSECURE, FOR DEVELOPMENT ONLY.** The authority that all nodes with `devMode = true` share.
    ///
    /// Its private keys follow from constants in this source text: *everybody* who has the program can issue
    /// certificates in it for any name, and sign network parameters. It exists so that nodes that are started separately
    /// on developers' machines trust each other without a ceremony. Its keys, dates and Ed25519 signatures are
    /// deterministic, hence its certificates are the same bytes on every machine. A node that runs for real must refuse
    /// this root; [`CertificateAuthority::is_development_root`] recognises it.
    #[must_use]
    pub fn development() -> Self {
        // 2024-01-01 to 2124-01-01: beyond the life of any development network.
        let validity = Validity {
            not_before: UnixTime(1_704_067_200),
            not_after: UnixTime(4_859_740_800),
        };
        let key = |purpose: &str| {
            let seed = SecureHash::of_parts(&[DEVELOPMENT_SEED, purpose.as_bytes()]);
            KeyPair::ed25519_from_seed(seed.as_bytes())
        };
        let keys = [key("root"), key("doorman"), key("network map")];
        X500Name::new("Quorate Development INSECURE", "London", "GB")
            .map_err(|error| error.to_string())
            .and_then(|name| Self::build(&name, keys, validity).map_err(|error| error.to_string()))
            .expect("the development authority is made of constants")
    }

    /// Whether `root` is the well-known root of [`CertificateAuthority::development`].
    #[must_use]
    pub fn is_development_root(root: &Certificate) -> bool {
        root.public_key() == Self::development().root().public_key()
    }

    /// A new authority with fresh keys, named after `name` with different common names.
    ///
    /// # Errors
    /// [`IssueError`] if no certificates can be made of the name.
    pub fn generate(
        name: &X500Name,
        scheme: SignatureScheme,
        now: UnixTime,
    ) -> Result<Self, IssueError> {
        let keys = std::array::from_fn(|_| KeyPair::generate(scheme));
        let validity = Validity {
            not_before: now.plus_days(-BACKDATING_DAYS),
            not_after: now.plus_days(AUTHORITY_CERTIFICATE_DAYS),
        };
        Self::build(name, keys, validity)
    }

    fn build(
        name: &X500Name,
        [root_key, doorman_key, network_map_key]: [KeyPair; 3],
        validity: Validity,
    ) -> Result<Self, IssueError> {
        let called = |common_name| {
            name.with_common_name(common_name)
                .map_err(|source| IssueError::Name {
                    name: name.clone(),
                    source,
                })
        };
        let root_key = SigningKey::from(root_key);
        let root_name = called("Root CA")?;
        let root = issue(
            &Subject {
                name: &root_name,
                key: root_key.public(),
                role: None,
                path_length: Some(ROOT_PATH_LENGTH),
                permitted: None,
                validity,
            },
            &root_name,
            &root_key,
        )?;
        let root = Identity {
            path: CertificatePath::new(vec![root]).expect("one certificate is a path"),
            key: root_key,
        };
        let doorman = root.issue(&Subject {
            name: &called("Doorman CA")?,
            key: doorman_key.public(),
            role: Some(CertRole::DoormanCa),
            path_length: Some(DOORMAN_PATH_LENGTH),
            permitted: None,
            validity,
        })?;
        let network_map = root.issue(&Subject {
            name: &called("Network Map")?,
            key: network_map_key.public(),
            role: Some(CertRole::NetworkMap),
            path_length: None,
            permitted: None,
            validity,
        })?;
        Ok(Self {
            doorman: Identity {
                key: doorman_key.into(),
                path: doorman,
            },
            network_map: Identity {
                key: network_map_key.into(),
                path: network_map,
            },
            root,
        })
    }

    /// The root certificate, which members of the network trust.
    #[must_use]
    pub fn root(&self) -> &Certificate {
        self.root.path.leaf()
    }

    /// The identity that signs network parameters and the network map.
    #[must_use]
    pub fn network_map(&self) -> &Identity {
        &self.network_map
    }

    /// Certifies `key` for a node's authority ([`CertRole::NodeCa`]) or a service ([`CertRole::ServiceIdentity`]).
    ///
    /// # Errors
    /// [`IssueError`] for other roles, or if the doorman's certificate does not count at `now`.
    pub fn certify(
        &self,
        role: CertRole,
        name: &X500Name,
        key: &PublicKey,
        now: UnixTime,
    ) -> Result<CertificatePath, IssueError> {
        let (path_length, permitted) = match role {
            CertRole::NodeCa => (Some(NODE_CA_PATH_LENGTH), Some(name)),
            CertRole::ServiceIdentity => (None, None),
            role => return Err(IssueError::RoleNotIssued { role }),
        };
        self.doorman.issue(&Subject {
            name,
            key,
            role: Some(role),
            path_length,
            permitted,
            validity: self.doorman.validity_below(now, NODE_CERTIFICATE_DAYS)?,
        })
    }

    /// A fresh key certified as the identity of a service, such as a notary. The nodes that together provide the service
    /// all get a copy: [`crate::NodeKeys::with_notary_service`].
    ///
    /// # Errors
    /// [`IssueError`] if the doorman's certificate does not count at `now`.
    pub fn service_identity(
        &self,
        name: &X500Name,
        scheme: SignatureScheme,
        now: UnixTime,
    ) -> Result<Identity, IssueError> {
        self.certified_service(name, KeyPair::generate(scheme).into(), now)
    }

    /// Like [`CertificateAuthority::service_identity`], of a key that exists.
    ///
    /// # Errors
    /// [`IssueError`] if the doorman's certificate does not count at `now`.
    pub fn certified_service(
        &self,
        name: &X500Name,
        key: SigningKey,
        now: UnixTime,
    ) -> Result<Identity, IssueError> {
        let path = self.certify(CertRole::ServiceIdentity, name, key.public(), now)?;
        Ok(Identity { key, path })
    }

    /// Writes the authority with all its private keys into one file.
    ///
    /// # Errors
    /// [`KeyStoreError`] if the file could not be written.
    pub fn save(&self, path: &Path, password: &str) -> Result<(), KeyStoreError> {
        let mut store = KeyStore::new();
        insert_identity(&mut store, ROOT_ALIAS, &self.root);
        insert_identity(&mut store, DOORMAN_ALIAS, &self.doorman);
        insert_identity(&mut store, NETWORK_MAP_ALIAS, &self.network_map);
        store.write(path, password)
    }

    /// Reads an authority that [`CertificateAuthority::save`] has written.
    ///
    /// # Errors
    /// [`KeyStoreError`] names the reason and the way out.
    pub fn load(path: &Path, password: &str) -> Result<Self, KeyStoreError> {
        let store = KeyStore::read(path, password)?;
        let reading = Reading { path };
        Ok(Self {
            root: reading.identity(&store, ROOT_ALIAS, None)?,
            doorman: reading.identity(&store, DOORMAN_ALIAS, None)?,
            network_map: reading.identity(&store, NETWORK_MAP_ALIAS, None)?,
        })
    }
}

/// Under which names the authority's key store has its entries.
const DOORMAN_ALIAS: &str = "cordaintermediateca";
const NETWORK_MAP_ALIAS: &str = "networkmap";
pub(crate) const ROOT_ALIAS: &str = "cordarootca";

/// Where the keys of the development authority come from. Published on purpose, see
/// [`CertificateAuthority::development`].
const DEVELOPMENT_SEED: &[u8] = b"quorate development authority, version 1, INSECURE: ";

/// What a certificate shall say.
pub(crate) struct Subject<'a> {
    pub(crate) name: &'a X500Name,
    pub(crate) key: &'a PublicKey,
    pub(crate) role: Option<CertRole>,
    /// `Some` for an authority: how many authorities may follow below.
    pub(crate) path_length: Option<u8>,
    /// The only name subtree that an authority may certify.
    pub(crate) permitted: Option<&'a X500Name>,
    pub(crate) validity: Validity,
}

/// Writes and signs a certificate. Checks nothing: who may issue what is decided by the callers, and by whoever validates.
pub(crate) fn issue(
    subject: &Subject<'_>,
    issuer: &X500Name,
    issuer_key: &SigningKey,
) -> Result<Certificate, IssueError> {
    let failed = |reason: String| IssueError::Build {
        subject: subject.name.clone(),
        reason,
    };
    let moment = |time: UnixTime| {
        OffsetDateTime::from_unix_timestamp(time.0).map_err(|error| failed(error.to_string()))
    };
    let mut params = CertificateParams::default();
    params.distinguished_name = distinguished_name(subject.name);
    params.not_before = moment(subject.validity.not_before)?;
    params.not_after = moment(subject.validity.not_after)?;
    params.serial_number = Some(serial_number(subject, issuer).into());
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.is_ca = IsCa::ExplicitNoCa;
    if let Some(length) = subject.path_length {
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(length));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    }
    if subject.role == Some(CertRole::Tls) {
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
    }
    if let Some(base) = subject.permitted {
        params.name_constraints = Some(NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DirectoryName(distinguished_name(base))],
            excluded_subtrees: Vec::new(),
        });
    }
    if let Some(role) = subject.role {
        params.custom_extensions = vec![CustomExtension::from_oid_content(
            ROLE_OID_NUMBERS,
            der::element(der::INTEGER, &[role.number()]),
        )];
    }

    let mut issuer_params = CertificateParams::default();
    issuer_params.distinguished_name = distinguished_name(issuer);
    let issuer_key = CertifiedPublicKey::new(issuer_key.public(), Some(issuer_key));
    let certificate = params
        .signed_by(
            &CertifiedPublicKey::new(subject.key, None),
            &Issuer::from_params(&issuer_params, &issuer_key),
        )
        .map_err(|error| match issuer_key.failure.get() {
            Some(source) => IssueError::Signing {
                issuer: issuer.clone(),
                source: source.clone(),
            },
            None => failed(error.to_string()),
        })?;
    Certificate::from_der(certificate.der()).map_err(|source| IssueError::ReadBack {
        subject: subject.name.clone(),
        source,
    })
}

/// A serial number that differs whenever anything in the certificate does, and is the same for the same certificate, so
/// that deterministic authorities stay deterministic.
fn serial_number(subject: &Subject<'_>, issuer: &X500Name) -> Vec<u8> {
    let hash = SecureHash::of_parts(&[
        issuer.as_str().as_bytes(),
        b"\n",
        subject.name.as_str().as_bytes(),
        b"\n",
        subject.key.hash().as_bytes(),
        &[subject.role.map_or(0, CertRole::number)],
        &subject.validity.not_before.0.to_be_bytes(),
        &subject.validity.not_after.0.to_be_bytes(),
    ]);
    let mut serial = hash.as_bytes()[..16].to_vec();
    // Positive, and without a leading zero byte.
    serial[0] = (serial[0] & 0x7f) | 0x40;
    serial
}

fn distinguished_name(name: &X500Name) -> DistinguishedName {
    let mut attributes: Vec<_> = name.attributes().collect();
    // The encoded order is the reverse of the text's, see `X500Name::to_der`.
    attributes.reverse();
    let mut distinguished = DistinguishedName::new();
    for (attribute, value) in attributes {
        let kind = match attribute {
            Attribute::CommonName => DnType::CommonName,
            Attribute::OrganisationUnit => DnType::OrganizationalUnitName,
            Attribute::Organisation => DnType::OrganizationName,
            Attribute::Locality => DnType::LocalityName,
            Attribute::State => DnType::StateOrProvinceName,
            Attribute::Country => DnType::CountryName,
        };
        let value = match attribute {
            Attribute::Country => DnValue::PrintableString(
                value
                    .try_into()
                    .expect("a country code is two capital letters"),
            ),
            _ => DnValue::Utf8String(value.to_owned()),
        };
        distinguished.push(kind, value);
    }
    distinguished
}

/// Our keys as `rcgen` wants to see them.
struct CertifiedPublicKey<'a> {
    scheme: SignatureScheme,
    bytes: Vec<u8>,
    signer: Option<&'a SigningKey>,
    /// Why the signer did not sign: the builder's error has no place for it.
    failure: OnceLock<SigningError>,
}

impl<'a> CertifiedPublicKey<'a> {
    fn new(key: &PublicKey, signer: Option<&'a SigningKey>) -> Self {
        Self {
            scheme: key.scheme(),
            bytes: key.subject_public_key(),
            signer,
            failure: OnceLock::new(),
        }
    }
}

impl PublicKeyData for CertifiedPublicKey<'_> {
    fn der_bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        match self.scheme {
            SignatureScheme::EcdsaP256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            SignatureScheme::Ed25519 => &rcgen::PKCS_ED25519,
        }
    }
}

impl CertificateSigner for CertifiedPublicKey<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let signer = self.signer.ok_or(rcgen::Error::RemoteKeyError)?;
        match signer.sign(message) {
            Ok(signature) => Ok(x509_form(self.scheme, &signature)),
            Err(error) => {
                let _ = self.failure.set(error);
                Err(rcgen::Error::RemoteKeyError)
            }
        }
    }
}
