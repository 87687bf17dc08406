//! MSP folders: what a node or a tool finds on its disk.
//!
//! ```text
//! cacerts/ intermediatecerts/ admincerts/ crls/ tlscacerts/ tlsintermediatecerts/   PEM files
//! config.yaml                                                                       OUs and node OUs
//! signcerts/ keystore/                                                              the signing identity
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use quorate_identity::UnixTime;
use quorate_identity::x509::{Certificate, SigningKey, X509Error, pem};
use serde::Deserialize;

use super::{Identity, IdentityError, Msp, MspError, MspVersion, SignError, Signer};
use crate::proto::msp::{
    FabricCryptoConfig, FabricMspConfig, FabricNodeOUs, FabricOuIdentifier, MspConfig,
    SerializedIdentity,
};

/// The largest file of an MSP folder that is read, in bytes.
const MAX_FILE_BYTES: u64 = 16 * 1024 * 1024;

/// Why an MSP folder could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FolderError {
    /// A folder or file could not be read.
    #[error("could not read {what} at {}", path.display())]
    Read {
        /// What it is for.
        what: &'static str,
        /// Where it was looked for.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A folder that must hold a PEM file holds none.
    #[error("could not load a valid {what} from directory {}: no PEM file in it", path.display())]
    Empty {
        /// What should be there.
        what: &'static str,
        /// The folder.
        path: PathBuf,
    },
    /// `config.yaml` is not what it should be.
    #[error("failed unmarshalling configuration file at [{}]: {reason}", path.display())]
    Configuration {
        /// The file.
        path: PathBuf,
        /// Where and why.
        reason: String,
    },
    /// The definition made of the folder breaks a rule.
    #[error("the MSP definition in {} is not acceptable", path.display())]
    Definition {
        /// The folder.
        path: PathBuf,
        /// Which rule.
        source: MspError,
    },
    /// The signing certificate is not one of the MSP's.
    #[error("the signing certificate of {msp_id} is not acceptable")]
    Identity {
        /// The MSP.
        msp_id: String,
        /// Why not.
        source: Box<IdentityError>,
    },
    /// The certificate or private key is unreadable.
    #[error("the {what} of {msp_id} cannot be used")]
    Material {
        /// `certificate` or `private key`.
        what: &'static str,
        /// The MSP.
        msp_id: String,
        /// Why not.
        source: Box<X509Error>,
    },
    /// The certificate is of another key.
    #[error("the private key does not belong to the certificate of {msp_id} ({subject})")]
    OtherKey {
        /// The MSP.
        msp_id: String,
        /// The subject of the certificate.
        subject: String,
    },
    /// No key in the store belongs to the certificate.
    #[error(
        "no file in {} holds the private key of the certificate {subject}: put its PEM file (PKCS#8 or SEC 1, unencrypted) there",
        path.display()
    )]
    NoKey {
        /// The key store.
        path: PathBuf,
        /// The subject of the certificate.
        subject: String,
    },
}

/// A certificate with its private key.
#[derive(Debug, Clone)]
pub struct SigningIdentity {
    msp_id: String,
    certificate: Certificate,
    creator: Bytes,
    key: SigningKey,
}

impl SigningIdentity {
    /// From the PEM texts of a certificate and its private key (PKCS#8 or SEC 1). That an MSP accepts it is not checked.
    ///
    /// # Errors
    /// [`FolderError`] if one is unreadable or they do not belong together.
    pub fn from_pem(
        msp_id: &str,
        certificate: &[u8],
        private_key: &[u8],
    ) -> Result<Self, FolderError> {
        let material = |what| {
            move |source| FolderError::Material {
                what,
                msp_id: msp_id.to_owned(),
                source: Box::new(source),
            }
        };
        let certificate = Certificate::from_pem(certificate).map_err(material("certificate"))?;
        let key = SigningKey::from_pem(private_key).map_err(material("private key"))?;
        Self::new(msp_id, certificate, key)
    }

    fn new(msp_id: &str, certificate: Certificate, key: SigningKey) -> Result<Self, FolderError> {
        if certificate.public_key() != key.public_key() {
            return Err(FolderError::OtherKey {
                msp_id: msp_id.to_owned(),
                subject: certificate.subject().to_owned(),
            });
        }
        let creator = SerializedIdentity {
            mspid: msp_id.to_owned(),
            id_bytes: certificate.to_pem().into_bytes(),
        };
        Ok(Self {
            msp_id: msp_id.to_owned(),
            certificate,
            creator: creator.encode_to_vec().into(),
            key,
        })
    }

    /// The MSP that it belongs to.
    #[must_use]
    pub fn msp_id(&self) -> &str {
        &self.msp_id
    }

    /// Its certificate.
    #[must_use]
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// The last second of its certificate.
    #[must_use]
    pub fn expires_at(&self) -> UnixTime {
        self.certificate.not_after()
    }
}

impl Signer for SigningIdentity {
    fn creator(&self) -> Bytes {
        self.creator.clone()
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        Ok(self.key.sign(message))
    }
}

/// A node's own MSP folder: the MSP and the identity that the node signs with.
///
/// Fabric refuses to start with a signing certificate that has expired. Here is no clock: compare
/// [`LocalMsp::expires_at`].
#[derive(Debug)]
pub struct LocalMsp {
    msp: Arc<Msp>,
    identity: Identity,
    signer: SigningIdentity,
}

impl LocalMsp {
    /// Reads an MSP folder with its `signcerts` and `keystore`.
    ///
    /// # Errors
    /// [`FolderError`] naming the file and the reason.
    pub fn load(folder: &Path, msp_id: &str) -> Result<Self, FolderError> {
        Self::load_with_key_store(folder, msp_id, &folder.join("keystore"))
    }

    /// Reads an MSP folder whose private key is kept elsewhere.
    ///
    /// # Errors
    /// [`FolderError`] naming the file and the reason.
    pub fn load_with_key_store(
        folder: &Path,
        msp_id: &str,
        key_store: &Path,
    ) -> Result<Self, FolderError> {
        let signing = pem_files(&folder.join("signcerts"), "signer certificate")?
            .ok_or_else(|| missing(&folder.join("signcerts"), "signer certificate"))?;
        let signing = signing.first().ok_or_else(|| FolderError::Empty {
            what: "signer certificate",
            path: folder.join("signcerts"),
        })?;
        let config = msp_config_from_folder(folder, msp_id)?;
        // A node's own MSP follows the first edition of the rules, without node OUs, whatever channels do.
        let msp = Msp::from_config_as(&config, MspVersion::V1_0)
            .map(Arc::new)
            .map_err(|source| FolderError::Definition {
                path: folder.to_owned(),
                source,
            })?;
        let identity = msp
            .identity(signing)
            .map_err(|source| FolderError::Identity {
                msp_id: msp_id.to_owned(),
                source: Box::new(source),
            })?;
        let certificate = identity.certificate().clone();
        let Some(key) = find_key(key_store, &certificate)? else {
            return Err(FolderError::NoKey {
                path: key_store.to_owned(),
                subject: certificate.subject().to_owned(),
            });
        };
        let signer = SigningIdentity::new(msp_id, certificate, key)?;
        Ok(Self {
            msp,
            identity,
            signer,
        })
    }

    /// The MSP.
    #[must_use]
    pub fn msp(&self) -> &Arc<Msp> {
        &self.msp
    }

    /// The node's own identity in its MSP.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The last second of the signing certificate.
    #[must_use]
    pub fn expires_at(&self) -> UnixTime {
        self.signer.expires_at()
    }
}

impl Signer for LocalMsp {
    fn creator(&self) -> Bytes {
        self.signer.creator()
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        self.signer.sign(message)
    }
}

/// The definition that `configtxgen` makes of an MSP folder: no signing identity.
///
/// Files that are not PEM are passed over, folders that are not there count as empty, except `cacerts`.
///
/// # Errors
/// [`FolderError`] naming the file and the reason.
pub fn msp_config_from_folder(folder: &Path, msp_id: &str) -> Result<MspConfig, FolderError> {
    let optional =
        |name: &str, what| pem_files(&folder.join(name), what).map(Option::unwrap_or_default);
    let authorities = folder.join("cacerts");
    let root_certs = pem_files(&authorities, "ca certificate")?
        .ok_or_else(|| missing(&authorities, "ca certificate"))?;
    if root_certs.is_empty() {
        return Err(FolderError::Empty {
            what: "ca certificate",
            path: authorities,
        });
    }
    let tls_root_certs = optional("tlscacerts", "TLS ca certificates")?;
    let tls_intermediate_certs = if tls_root_certs.is_empty() {
        Vec::new()
    } else {
        optional("tlsintermediatecerts", "TLS intermediate ca certificates")?
    };
    let configuration = read_configuration(folder)?;
    let mut units = Vec::new();
    for unit in configuration
        .organizational_unit_identifiers
        .into_iter()
        .flatten()
    {
        let path = below(folder, &unit.certificate);
        units.push(FabricOuIdentifier {
            certificate: read_file(&path, "the certificate of an organizational unit")?,
            organizational_unit_identifier: unit.organizational_unit_identifier,
        });
    }
    let definition = FabricMspConfig {
        name: msp_id.to_owned(),
        root_certs,
        intermediate_certs: optional("intermediatecerts", "intermediate ca certificates")?,
        admins: optional("admincerts", "admin certificates")?,
        revocation_list: optional("crls", "revocation lists")?,
        signing_identity: None,
        organizational_unit_identifiers: units,
        crypto_config: Some(FabricCryptoConfig {
            signature_hash_family: "SHA2".to_owned(),
            identity_identifier_hash_function: "SHA256".to_owned(),
        }),
        tls_root_certs,
        tls_intermediate_certs,
        fabric_node_ous: configuration
            .node_ous
            .filter(|units| units.enable)
            .map(|units| units.definition(folder)),
    };
    Ok(MspConfig {
        r#type: 0,
        config: definition.encode_to_vec(),
    })
}

/// `config.yaml`. Keys that we do not know are passed over, as Fabric does.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Configuration {
    organizational_unit_identifiers: Option<Vec<UnitConfiguration>>,
    #[serde(rename = "NodeOUs")]
    node_ous: Option<NodeUnitsConfiguration>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct UnitConfiguration {
    certificate: String,
    organizational_unit_identifier: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct NodeUnitsConfiguration {
    #[serde(rename = "Enable")]
    enable: bool,
    #[serde(rename = "ClientOUIdentifier")]
    client: Option<UnitConfiguration>,
    #[serde(rename = "PeerOUIdentifier")]
    peer: Option<UnitConfiguration>,
    #[serde(rename = "AdminOUIdentifier")]
    admin: Option<UnitConfiguration>,
    #[serde(rename = "OrdererOUIdentifier")]
    orderer: Option<UnitConfiguration>,
}

impl NodeUnitsConfiguration {
    fn definition(self, folder: &Path) -> FabricNodeOUs {
        let unit = |unit: Option<UnitConfiguration>| {
            let unit = unit.filter(|unit| !unit.organizational_unit_identifier.is_empty())?;
            // A certificate that cannot be read counts as none: any authority may certify the unit.
            let certificate = if unit.certificate.is_empty() {
                Vec::new()
            } else {
                read_file(
                    &below(folder, &unit.certificate),
                    "the certificate of a node OU",
                )
                .unwrap_or_default()
            };
            Some(FabricOuIdentifier {
                certificate,
                organizational_unit_identifier: unit.organizational_unit_identifier,
            })
        };
        FabricNodeOUs {
            enable: true,
            client_ou_identifier: unit(self.client),
            peer_ou_identifier: unit(self.peer),
            admin_ou_identifier: unit(self.admin),
            orderer_ou_identifier: unit(self.orderer),
        }
    }
}

fn read_configuration(folder: &Path) -> Result<Configuration, FolderError> {
    let path = folder.join("config.yaml");
    if !path.exists() {
        return Ok(Configuration::default());
    }
    let bytes = read_file(&path, "the MSP configuration")?;
    let text = String::from_utf8_lossy(&bytes);
    if text.trim().is_empty() {
        return Ok(Configuration::default());
    }
    serde_saphyr::from_str(&text).map_err(|error| FolderError::Configuration {
        path,
        reason: error.to_string(),
    })
}

/// A path in `config.yaml` is below the folder even if it begins with a slash.
fn below(folder: &Path, path: &str) -> PathBuf {
    folder.join(path.trim_start_matches('/'))
}

/// The PEM files of a folder, by name; `None` if there is no such folder.
fn pem_files(folder: &Path, what: &'static str) -> Result<Option<Vec<Vec<u8>>>, FolderError> {
    let Some(paths) = files(folder, what)? else {
        return Ok(None);
    };
    let mut contents = Vec::new();
    for path in paths {
        let content = read_file(&path, what)?;
        if pem::first(&content).is_some() {
            contents.push(content);
        }
    }
    Ok(Some(contents))
}

/// The files of a folder, by name; `None` if there is no such folder.
fn files(folder: &Path, what: &'static str) -> Result<Option<Vec<PathBuf>>, FolderError> {
    let failed = |source| FolderError::Read {
        what,
        path: folder.to_owned(),
        source,
    };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        // Links are followed: in a container the files are often links.
        if fs::metadata(&path).is_ok_and(|metadata| metadata.is_file()) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(Some(paths))
}

fn read_file(path: &Path, what: &'static str) -> Result<Vec<u8>, FolderError> {
    let failed = |source| FolderError::Read {
        what,
        path: path.to_owned(),
        source,
    };
    let length = fs::metadata(path).map_err(failed)?.len();
    if length > MAX_FILE_BYTES {
        return Err(failed(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it has {length} bytes, at most {MAX_FILE_BYTES} are read"),
        )));
    }
    fs::read(path).map_err(failed)
}

fn missing(path: &Path, what: &'static str) -> FolderError {
    FolderError::Read {
        what,
        path: path.to_owned(),
        source: io::ErrorKind::NotFound.into(),
    }
}

/// The private key that belongs to a certificate, whatever its file is called.
fn find_key(store: &Path, certificate: &Certificate) -> Result<Option<SigningKey>, FolderError> {
    let paths = files(store, "key store")?.ok_or_else(|| missing(store, "key store"))?;
    for path in paths {
        let content = zeroize::Zeroizing::new(read_file(&path, "private key")?);
        if let Ok(key) = SigningKey::from_pem(&content)
            && key.public_key() == certificate.public_key()
        {
            return Ok(Some(key));
        }
    }
    Ok(None)
}
