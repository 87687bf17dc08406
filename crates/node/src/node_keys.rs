//! The keys with which a node starts: read from its `certificates` folder, judged, and in development mode made.
//!
//! A node must learn here, and not from the refusals of its peers, that its keys do not fit its configuration: another
//! legal name, an expired certificate, the wrong password, the development root outside of development. The files
//! themselves and the rules of certificates are the business of `quorate-identity`; admission of real nodes is that of
//! [`crate::bootstrap`] or of a network's own authority.
//!
//! Start reading at [`load_or_create`].

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use quorate_hsm::HsmError;
use quorate_identity::name::Attribute;
use quorate_identity::node_keys::{
    DEVELOPMENT_KEY_STORE_PASSWORD, DEVELOPMENT_TRUST_STORE_PASSWORD, KeyKeeper, KeyPurpose,
    NODE_KEY_STORE, SSL_KEY_STORE, TRUST_STORE,
};
use quorate_identity::{
    Certificate, CertificateAuthority, Identity, IssueError, KeyStore, KeyStoreError, NodeKeys,
    PathError, RemoteError, SignatureScheme, UnixTime, X500Name,
};
use quorate_runtime::Secret;

use crate::config::{CryptoServices, NodeConfiguration};
use crate::crypto_service::Devices;

/// How many days before a certificate expires the node starts to warn.
pub const EXPIRY_WARNING_DAYS: i64 = 30;

/// The scheme of identity keys that are made here: the faster one to verify.
pub(crate) const IDENTITY_SCHEME: SignatureScheme = SignatureScheme::Ed25519;

/// Locked while keys are made in a folder.
const LOCK_FILE: &str = ".lock";

/// What the configuration says about a node's keys.
#[derive(Debug, Clone, Copy)]
pub struct KeysOptions<'a> {
    /// The certificates folder.
    pub directory: &'a Path,
    /// `myLegalName`.
    pub legal_name: &'a X500Name,
    /// `notary.serviceLegalName`: the name of the notary service that the node provides, alone or with others. A notary
    /// without it signs with its legal identity.
    pub notary_service: Option<&'a X500Name>,
    /// `keyStorePassword`.
    pub key_store_password: Option<&'a Secret>,
    /// `trustStorePassword`.
    pub trust_store_password: Option<&'a Secret>,
    /// Which keys a hardware security module keeps; none if absent.
    pub crypto_services: Option<&'a CryptoServices>,
    /// `devMode`: well-known passwords are assumed, missing keys are made, the development root is accepted.
    pub dev_mode: bool,
}

impl<'a> KeysOptions<'a> {
    /// What a whole configuration says.
    #[must_use]
    pub fn of(configuration: &'a NodeConfiguration) -> Self {
        let notary = configuration.notary.as_ref();
        Self {
            directory: &configuration.certificates_directory,
            legal_name: &configuration.my_legal_name,
            notary_service: notary.and_then(|notary| notary.service_legal_name.as_ref()),
            key_store_password: Some(&configuration.key_store_password),
            trust_store_password: Some(&configuration.trust_store_password),
            crypto_services: Some(&configuration.crypto_services),
            dev_mode: configuration.dev_mode,
        }
    }
}

/// Why a node has no usable keys.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeKeysError {
    /// No password, and development's does not apply.
    #[error(
        "{option} is not configured; set it in node.conf (the well-known default applies only with devMode = true)"
    )]
    PasswordMissing {
        /// The configuration key.
        option: &'static str,
    },
    /// The notary service has the name of the node.
    #[error(
        "notary.serviceLegalName is the same as myLegalName ({name}); give the service a name of its own, or leave serviceLegalName away to sign with the node's legal identity"
    )]
    ServiceNamedLikeNode {
        /// The name.
        name: X500Name,
    },
    /// No keys, and none are made outside of development.
    #[error(
        "there are no keys for {name} in {}: wanted are {NODE_KEY_STORE}, {SSL_KEY_STORE} and {TRUST_STORE}. \
         Copy this node's certificates folder (from its other machine or a backup), \
         or let `quorate network bootstrap --dir DIR` make them; for development only, set devMode = true",
        .directory.display()
    )]
    Missing {
        /// The node.
        name: X500Name,
        /// The certificates folder.
        directory: PathBuf,
    },
    /// Some files are there and some are not; nothing is overwritten then.
    #[error(
        "the certificates folder {} is not complete: {} is missing. Restore it from a backup; \
         if these keys are not needed any more, move the folder away",
        .directory.display(), .missing.join(" and ")
    )]
    Incomplete {
        /// The certificates folder.
        directory: PathBuf,
        /// The files that are not there.
        missing: Vec<&'static str>,
    },
    /// A key store cannot be read or written.
    #[error("the keys of {name} are not available")]
    KeyStore {
        /// The node.
        name: X500Name,
        /// Which file and why.
        source: Box<KeyStoreError>,
    },
    /// The keys are those of somebody else.
    #[error(
        "the keys in {} are those of {found}, but myLegalName is {configured} ({}); \
         correct myLegalName, or put the certificates folder of {configured} there",
        .directory.display(), differences(.configured, .found)
    )]
    LegalName {
        /// The certificates folder.
        directory: PathBuf,
        /// The name in the configuration.
        configured: X500Name,
        /// The name in the certificate.
        found: X500Name,
    },
    /// Keys that everybody can make, in a node that runs for real.
    #[error(
        "the keys in {} belong to the INSECURE development root, for which everybody can issue certificates; \
         with devMode = false a node needs keys of a network of its own: `quorate network bootstrap --dir DIR` makes one",
        .directory.display()
    )]
    DevelopmentRoot {
        /// The certificates folder.
        directory: PathBuf,
    },
    /// The configuration names a notary service whose key is not there.
    #[error(
        "notary.serviceLegalName is {service}, but {} holds no key of that service; \
         let `quorate network bootstrap --dir DIR` add it, or copy the folder of a node that has it",
        .directory.display()
    )]
    ServiceMissing {
        /// The certificates folder.
        directory: PathBuf,
        /// The service.
        service: X500Name,
    },
    /// The notary service in the key store has another name.
    #[error(
        "notary.serviceLegalName is {configured}, but {} holds the key of the service {found} ({}); \
         correct serviceLegalName. The key must not be lost: it alone can release the states of that notary",
        .directory.display(), differences(.configured, .found)
    )]
    ServiceName {
        /// The certificates folder.
        directory: PathBuf,
        /// The name in the configuration.
        configured: X500Name,
        /// The name in the certificate.
        found: X500Name,
    },
    /// Peers would refuse the certificates.
    #[error("peers would refuse the certificates in {}: {remedy}", .directory.display())]
    Certificates {
        /// The certificates folder.
        directory: PathBuf,
        /// The way out.
        remedy: &'static str,
        /// The rule that is broken.
        source: Box<PathError>,
    },
    /// The module that keeps the keys cannot be used.
    #[error("the keys of {name} are in a hardware security module that cannot be used")]
    Hsm {
        /// The node.
        name: X500Name,
        /// Why.
        source: Box<HsmError>,
    },
    /// The nodes of a notary service do not keep its key in one place.
    #[error(
        "the key of the notary service {service} is not where the configuration of {name} has it; all nodes of a service \
         need the same key: keep it in files everywhere, or in one hardware security module under one \
         distributedNotaryKeyAlias"
    )]
    ServiceKeyElsewhere {
        /// The node.
        name: X500Name,
        /// The service.
        service: X500Name,
        /// What the module says, if there is one.
        source: Option<RemoteError>,
    },
    /// Development keys could not be made.
    #[error("no development keys could be made for {name}")]
    Issue {
        /// The node.
        name: X500Name,
        /// Why.
        source: Box<IssueError>,
    },
    /// The folder cannot be made or locked.
    #[error("the certificates folder {} cannot be written; check its owner and permissions", .directory.display())]
    Folder {
        /// The certificates folder.
        directory: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl NodeKeysError {
    /// Whether a later start may succeed with the same configuration: the module is out of reach.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Hsm { source, .. } => source.is_transient(),
            Self::KeyStore { source, .. } => {
                matches!(&**source, KeyStoreError::Device { source, .. } if source.transient)
            }
            _ => false,
        }
    }
}

/// Reads the keys of a node and checks them as a peer would; in development mode makes those that are missing, and says
/// so loudly. Certificates that expire soon are warned of in the log, see [`expiring`].
///
/// Blocks: it reads files, and derives keys from passwords (some tens of milliseconds).
///
/// # Errors
/// [`NodeKeysError`] names the difference between what is there and what the configuration wants, and the remedy.
pub fn load_or_create(options: &KeysOptions<'_>, now: UnixTime) -> Result<NodeKeys, NodeKeysError> {
    let folder = Folder::new(options)?;
    let mut found = folder.find()?;
    if options.dev_mode && folder.lacks(&found) {
        found = Found::Keys(folder.make_development_keys(now)?);
    }
    let keys = match found {
        Found::Keys(keys) => keys,
        Found::Remains(_) => return Err(folder.incomplete()),
        Found::Nothing => {
            return Err(NodeKeysError::Missing {
                name: options.legal_name.clone(),
                directory: options.directory.to_owned(),
            });
        }
    };
    folder.judge(&keys, now)?;
    if let (None, Some(service)) = (options.notary_service, keys.notary_service()) {
        tracing::warn!(
            directory = %options.directory.display(),
            service = %service.name(),
            "the key store holds the key of a notary service, but the configuration has no \
             notary.serviceLegalName: the service is not offered by this node"
        );
    }
    for certificate in expiring(&keys, now) {
        tracing::warn!(directory = %options.directory.display(), "{certificate}");
    }
    Ok(keys)
}

/// A certificate path that will soon count no longer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expiring {
    /// What for: `legal identity`, `TLS` or `notary service`.
    pub purpose: &'static str,
    /// Whose.
    pub name: X500Name,
    /// Until when it counts.
    pub expires: UnixTime,
    /// Whole days left.
    pub days_left: i64,
}

impl std::fmt::Display for Expiring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "the {} certificate of {} expires in {} days, at {}; renew it before, or peers will refuse this node",
            self.purpose, self.name, self.days_left, self.expires
        )
    }
}

/// The certificates of a node that expire within [`EXPIRY_WARNING_DAYS`] days.
#[must_use]
pub fn expiring(keys: &NodeKeys, now: UnixTime) -> Vec<Expiring> {
    let identities = [
        ("legal identity", Some(keys.legal_identity())),
        ("TLS", Some(keys.tls())),
        ("notary service", keys.notary_service()),
    ];
    identities
        .into_iter()
        .filter_map(|(purpose, identity)| {
            let identity = identity?;
            let expires = identity.path().expires();
            let days_left = expires.0.saturating_sub(now.0).div_euclid(UnixTime::DAY);
            (days_left < EXPIRY_WARNING_DAYS).then(|| Expiring {
                purpose,
                name: identity.name().clone(),
                expires,
                days_left,
            })
        })
        .collect()
}

/// One certificates folder under one configuration.
pub(crate) struct Folder<'a> {
    options: &'a KeysOptions<'a>,
    passwords: (&'a str, &'a str),
    devices: Devices,
}

/// What a certificates folder holds.
pub(crate) enum Found {
    /// None of the files.
    Nothing,
    /// No identity, but the remains of an interrupted creation under this root.
    Remains(Certificate),
    /// All files.
    Keys(NodeKeys),
}

impl<'a> Folder<'a> {
    /// A folder with the passwords that the configuration gives it.
    pub(crate) fn new(options: &'a KeysOptions<'a>) -> Result<Self, NodeKeysError> {
        if options.notary_service == Some(options.legal_name) {
            return Err(NodeKeysError::ServiceNamedLikeNode {
                name: options.legal_name.clone(),
            });
        }
        let choose = |configured: Option<&'a Secret>, development, option| match configured {
            Some(password) => Ok(password.expose()),
            None if options.dev_mode => Ok(development),
            None => Err(NodeKeysError::PasswordMissing { option }),
        };
        let passwords = (
            choose(
                options.key_store_password,
                DEVELOPMENT_KEY_STORE_PASSWORD,
                "keyStorePassword",
            )?,
            choose(
                options.trust_store_password,
                DEVELOPMENT_TRUST_STORE_PASSWORD,
                "trustStorePassword",
            )?,
        );
        let devices =
            Devices::open(options.crypto_services).map_err(|source| NodeKeysError::Hsm {
                name: options.legal_name.clone(),
                source: Box::new(source),
            })?;
        Ok(Self {
            options,
            passwords,
            devices,
        })
    }

    /// Reads what is there, and judges nothing of it.
    pub(crate) fn find(&self) -> Result<Found, NodeKeysError> {
        let missing = self.missing();
        if missing.is_empty() {
            let (key_store, trust_store) = self.passwords;
            let directory = self.options.directory;
            return NodeKeys::load_with(&self.devices, directory, key_store, trust_store)
                .map(Found::Keys)
                .map_err(|source| self.key_store_error(source));
        }
        if missing.len() == 3 {
            return Ok(Found::Nothing);
        }
        // The identity is written last and the trust store first.
        let identity_is_there = !missing.contains(&NODE_KEY_STORE);
        if identity_is_there || missing.contains(&TRUST_STORE) {
            return Err(self.incomplete());
        }
        let trust_store = self.options.directory.join(TRUST_STORE);
        let store = KeyStore::read(&trust_store, self.passwords.1)
            .map_err(|source| self.key_store_error(source))?;
        let mut roots = store
            .aliases()
            .filter_map(|alias| Certificate::from_der(store.certificates(alias)?.first()?).ok());
        match (roots.next(), roots.next()) {
            (Some(root), None) => Ok(Found::Remains(root)),
            _ => Err(self.incomplete()),
        }
    }

    /// Files are missing that cannot be made anew without destroying something.
    pub(crate) fn incomplete(&self) -> NodeKeysError {
        NodeKeysError::Incomplete {
            directory: self.directory(),
            missing: self.missing(),
        }
    }

    /// Whether these are the keys that the configuration wants, and ones that peers accept.
    pub(crate) fn judge(&self, keys: &NodeKeys, now: UnixTime) -> Result<(), NodeKeysError> {
        self.judge_names(keys)?;
        if let (Some(service), None) = (self.options.notary_service, keys.notary_service()) {
            return Err(NodeKeysError::ServiceMissing {
                directory: self.directory(),
                service: service.clone(),
            });
        }
        self.judge_certificates(keys, now)
    }

    /// The part of [`Folder::judge`] about what peers look at.
    pub(crate) fn judge_certificates(
        &self,
        keys: &NodeKeys,
        now: UnixTime,
    ) -> Result<(), NodeKeysError> {
        let development = CertificateAuthority::is_development_root(keys.trust_root());
        keys.validate(now)
            .map_err(|source| NodeKeysError::Certificates {
                directory: self.directory(),
                remedy: remedy(&source, development),
                source: Box::new(source),
            })
    }

    /// The part of [`Folder::judge`] about what is there and must not be something else.
    pub(crate) fn judge_names(&self, keys: &NodeKeys) -> Result<(), NodeKeysError> {
        let options = self.options;
        if keys.name() != options.legal_name {
            return Err(NodeKeysError::LegalName {
                directory: self.directory(),
                configured: options.legal_name.clone(),
                found: keys.name().clone(),
            });
        }
        if CertificateAuthority::is_development_root(keys.trust_root()) && !options.dev_mode {
            return Err(NodeKeysError::DevelopmentRoot {
                directory: self.directory(),
            });
        }
        match (options.notary_service, keys.notary_service()) {
            (Some(configured), Some(held)) if configured != held.name() => {
                Err(NodeKeysError::ServiceName {
                    directory: self.directory(),
                    configured: configured.clone(),
                    found: held.name().clone(),
                })
            }
            _ => Ok(()),
        }
    }

    /// Writes the keys.
    pub(crate) fn save(&self, keys: &NodeKeys) -> Result<(), NodeKeysError> {
        let (key_store, trust_store) = self.passwords;
        keys.save(self.options.directory, key_store, trust_store)
            .map_err(|source| self.key_store_error(source))
    }

    fn lacks(&self, found: &Found) -> bool {
        match found {
            Found::Keys(keys) => {
                self.options.notary_service.is_some() && keys.notary_service().is_none()
            }
            Found::Remains(_) | Found::Nothing => true,
        }
    }

    /// Makes what is missing, under the development root and no other.
    fn make_development_keys(&self, now: UnixTime) -> Result<NodeKeys, NodeKeysError> {
        let options = self.options;
        // Two processes that start in one directory must get the same keys.
        let lock = open_lock(options.directory)
            .and_then(|lock| lock.lock().map(|()| lock))
            .map_err(|source| NodeKeysError::Folder {
                directory: self.directory(),
                source,
            })?;
        let found = self.find()?;
        let complete = !self.lacks(&found);
        let keys = match found {
            // The other process was quicker; or the keys are real, and `judge` will say what they lack.
            Found::Keys(keys)
                if complete || !CertificateAuthority::is_development_root(keys.trust_root()) =>
            {
                return Ok(keys);
            }
            Found::Keys(keys) => keys,
            Found::Remains(root) if !CertificateAuthority::is_development_root(&root) => {
                return Err(self.incomplete());
            }
            Found::Remains(_) | Found::Nothing => {
                tracing::warn!(
                    name = %options.legal_name,
                    directory = %options.directory.display(),
                    "devMode: INSECURE DEVELOPMENT KEYS ARE BEING MADE for this node. Everybody can issue \
                     certificates of the development root: never hold anything of value on such a node"
                );
                let authority = CertificateAuthority::development();
                self.make_keys(&authority, now)
                    .map_err(|source| self.issue_error(source))?
            }
        };
        let keys = match options.notary_service {
            Some(service) => {
                tracing::warn!(%service, "devMode: an INSECURE key of the notary service is being made");
                let identity = self
                    .make_service(&CertificateAuthority::development(), service, now)
                    .map_err(|source| self.issue_error(source))?;
                keys.with_notary_service(identity)
            }
            None => keys,
        };
        self.save(&keys)?;
        drop(lock);
        Ok(keys)
    }

    /// Keys certified by `authority`, kept where the configuration says.
    pub(crate) fn make_keys(
        &self,
        authority: &CertificateAuthority,
        now: UnixTime,
    ) -> Result<NodeKeys, IssueError> {
        let name = self.options.legal_name;
        NodeKeys::generate_with(&self.devices, authority, name, IDENTITY_SCHEME, now)
    }

    /// A notary service's key certified by `authority`, kept where the configuration says.
    pub(crate) fn make_service(
        &self,
        authority: &CertificateAuthority,
        service: &X500Name,
        now: UnixTime,
    ) -> Result<Identity, IssueError> {
        let key = self
            .devices
            .make(KeyPurpose::NotaryService, IDENTITY_SCHEME)
            .map_err(|source| IssueError::Key {
                subject: service.clone(),
                source,
            })?;
        authority.certified_service(service, key, now)
    }

    /// A service's identity that another node has as well, for this one.
    pub(crate) fn share_service(&self, service: &Identity) -> Result<Identity, NodeKeysError> {
        let elsewhere = |source| NodeKeysError::ServiceKeyElsewhere {
            name: self.options.legal_name.clone(),
            service: service.name().clone(),
            source,
        };
        let purpose = KeyPurpose::NotaryService;
        match (self.devices.keeps(purpose), service.key().is_remote()) {
            (false, false) => Ok(service.clone()),
            (true, true) => {
                let found = self.devices.find(purpose, service.key().public());
                let key = found.map_err(|source| elsewhere(Some(source)))?;
                Identity::new(key, service.path().clone()).map_err(|_| elsewhere(None))
            }
            _ => Err(elsewhere(None)),
        }
    }

    /// An error of making keys, with the name of the node.
    pub(crate) fn issue_error(&self, source: IssueError) -> NodeKeysError {
        NodeKeysError::Issue {
            name: self.options.legal_name.clone(),
            source: Box::new(source),
        }
    }

    fn key_store_error(&self, source: KeyStoreError) -> NodeKeysError {
        NodeKeysError::KeyStore {
            name: self.options.legal_name.clone(),
            source: Box::new(source),
        }
    }

    fn directory(&self) -> PathBuf {
        self.options.directory.to_owned()
    }

    fn missing(&self) -> Vec<&'static str> {
        [NODE_KEY_STORE, SSL_KEY_STORE, TRUST_STORE]
            .into_iter()
            .filter(|file| {
                // A folder that may not be entered is not an empty one: reading will tell.
                matches!(self.options.directory.join(file).try_exists(), Ok(false))
            })
            .collect()
    }
}

/// The file of a folder that is locked while its content is made; the folder is made if need be. The lock ends with the
/// file, at the latest with the process.
pub(crate) fn open_lock(directory: &Path) -> io::Result<File> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(directory)?;
    File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(directory.join(LOCK_FILE))
}

fn remedy(error: &PathError, development: bool) -> &'static str {
    match error {
        PathError::Expired { .. } if development => {
            "development keys are made anew if the folder is moved away"
        }
        PathError::Expired { .. } => {
            "ask the authority of the network for new certificates for the same keys"
        }
        PathError::NotYetValid { .. } => "check this machine's clock",
        PathError::ForeignRoot { .. } | PathError::BadSignature { .. } => {
            "truststore.json and the key stores must come from the same network"
        }
        _ => "ask the authority of the network for proper ones",
    }
}

const ATTRIBUTES: [Attribute; 6] = [
    Attribute::CommonName,
    Attribute::OrganisationUnit,
    Attribute::Organisation,
    Attribute::Locality,
    Attribute::State,
    Attribute::Country,
];

/// The attributes in which two names differ, for an operator who looks for the typing error.
fn differences(configured: &X500Name, found: &X500Name) -> String {
    let shown = |value: Option<&str>| {
        value.map_or_else(|| "absent".to_owned(), |value| format!("\"{value}\""))
    };
    let differences: Vec<_> = ATTRIBUTES
        .into_iter()
        .filter(|attribute| configured.get(*attribute) != found.get(*attribute))
        .map(|attribute| {
            format!(
                "{}: configured {}, in the certificate {}",
                attribute.keyword(),
                shown(configured.get(attribute)),
                shown(found.get(attribute))
            )
        })
        .collect();
    differences.join("; ")
}
