//! Keys at rest: the encrypted files of a `certificates` folder.
//!
//! A [`KeyStore`] is one file: JSON, so that an operator can see which certificates it holds, with the private keys
//! encrypted. One argon2id derivation per file gives an AES-256-GCM key. With it are sealed: a password check (to tell a
//! wrong password from a damaged file), each private key, and the whole content (so that nobody without the password can
//! exchange a certificate in a trust store). A file is written beside, flushed and renamed into place, mode 0600: after a
//! crash there is the old file or the new one.
//!
//! What a node keeps in which file is the business of [`crate::node_keys`].

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use argon2::{Algorithm, Argon2, Params, Version};
use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::authority::{Identity, KeyMismatch};
use crate::certificate::{CertificateError, CertificatePath, MAX_PATH_CERTIFICATES};
use crate::hash::SecureHash;
use crate::keys::{KeyError, KeyPair, PublicKey};
use crate::signing::{RemoteError, SigningKey};

/// The largest key store that is read, in bytes.
pub const MAX_KEY_STORE_BYTES: u64 = 1_048_576;

/// The most entries of a key store.
pub const MAX_ENTRIES: usize = 64;

const FORMAT: &str = "quorate-key-store";
const FORMAT_VERSION: u32 = 1;
const KDF_ALGORITHM: &str = "argon2id";

/// The cost of guessing a password: one of the settings that OWASP's password storage advice lists as equal in strength.
/// A node reads three files while it starts, hence the one that is quick for us.
const KDF_MEMORY_KIB: u32 = 12 * 1024;
const KDF_ITERATIONS: u32 = 3;
const KDF_LANES: u32 = 1;
const SALT_BYTES: usize = 16;

/// What a file may ask for at most, so that a planted one cannot occupy the machine.
const MAX_KDF_MEMORY_KIB: u32 = 256 * 1024;
const MAX_KDF_ITERATIONS: u32 = 16;
const MAX_KDF_LANES: u32 = 4;

/// Why a key store could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyStoreError {
    /// There is no such file.
    #[error("there is no key store {}; copy the certificates folder, or let the node register or (with devMode = true) make one", .path.display())]
    Missing {
        /// Which file.
        path: PathBuf,
    },
    /// The file system refuses.
    #[error("the key store {} could not be {action}", .path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// `read` or `written`.
        action: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// Something else than a key store of ours.
    #[error("{} is not a key store of Quorate (Java key stores cannot be read); its content was left alone", .path.display())]
    Foreign {
        /// Which file.
        path: PathBuf,
    },
    /// The file ends early.
    #[error("the key store {} is empty or cut off; restore it from a backup of the certificates folder", .path.display())]
    Truncated {
        /// Which file.
        path: PathBuf,
    },
    /// Written by a later version.
    #[error("the key store {} has format version {version}, this program reads version {FORMAT_VERSION}; use a newer program", .path.display())]
    UnsupportedVersion {
        /// Which file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// The password does not fit.
    #[error("the password does not open the key store {}; check keyStorePassword and trustStorePassword", .path.display())]
    WrongPassword {
        /// Which file.
        path: PathBuf,
    },
    /// The content is not as it was written, though the password fits.
    #[error("the key store {} is damaged ({what}); restore it from a backup of the certificates folder", .path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// An entry that should be there is not.
    #[error("the key store {} has no entry \"{alias}\"", .path.display())]
    MissingEntry {
        /// Which file.
        path: PathBuf,
        /// The entry.
        alias: String,
    },
    /// A certificate that cannot be used.
    #[error("a certificate of the entry \"{alias}\" in the key store {} cannot be used", .path.display())]
    Certificate {
        /// Which file.
        path: PathBuf,
        /// The entry.
        alias: String,
        /// The reason.
        source: CertificateError,
    },
    /// A private key that cannot be used.
    #[error("the private key of the entry \"{alias}\" in the key store {} cannot be used", .path.display())]
    Key {
        /// Which file.
        path: PathBuf,
        /// The entry.
        alias: String,
        /// The reason.
        source: KeyError,
    },
    /// A private key lies in the file although a device shall keep it.
    #[error(
        "the key store {} holds the private key \"{alias}\", but the configuration says that a hardware security module \
         keeps it; keys are not moved there: let a new identity be certified with a key that the module has made, \
         or remove cryptoServiceName (for the TLS key: tlsCryptoServiceConfig) to keep using the file",
        .path.display()
    )]
    KeyInFile {
        /// Which file.
        path: PathBuf,
        /// The entry.
        alias: String,
    },
    /// A device keeps a private key, and none is configured.
    #[error(
        "the key store {} holds the certificates of \"{alias}\" without the private key: a hardware security module \
         keeps it; configure cryptoServiceName and cryptoServiceConf (for the TLS key: tlsCryptoServiceConfig)",
        .path.display()
    )]
    KeyNotInFile {
        /// Which file.
        path: PathBuf,
        /// The entry.
        alias: String,
    },
    /// The device that keeps a private key did not give access to it.
    #[error("the private key of the entry \"{alias}\" in the key store {} is not at hand", .path.display())]
    Device {
        /// Which file.
        path: PathBuf,
        /// The entry.
        alias: String,
        /// What the device says.
        source: RemoteError,
    },
    /// A private key under another key's certificate.
    #[error("the entry \"{alias}\" in the key store {} does not fit together", .path.display())]
    Mismatch {
        /// Which file.
        path: PathBuf,
        /// The entry.
        alias: String,
        /// The reason.
        source: KeyMismatch,
    },
    /// More than a key store can hold.
    #[error("a key store has at most {MAX_ENTRIES} entries, {} would get {count}", .path.display())]
    TooManyEntries {
        /// Which file.
        path: PathBuf,
        /// How many.
        count: usize,
    },
}

/// Private keys and certificates under aliases, as one encrypted file holds them.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct KeyStore {
    entries: BTreeMap<String, Entry>,
}

#[derive(Clone, PartialEq, Eq)]
struct Entry {
    certificates: Vec<Vec<u8>>,
    /// PKCS#8; absent for a certificate that is only trusted.
    private_key: Option<Zeroizing<Vec<u8>>>,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("certificates", &self.certificates.len())
            .field("private_key", &self.private_key.is_some())
            .finish()
    }
}

impl KeyStore {
    /// A key store without entries.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a private key (PKCS#8) and its certificates (DER, leaf first) under an alias, replacing what was there.
    pub fn insert_key(
        &mut self,
        alias: &str,
        private_key: Zeroizing<Vec<u8>>,
        certificates: Vec<Vec<u8>>,
    ) {
        let entry = Entry {
            certificates,
            private_key: Some(private_key),
        };
        self.entries.insert(alias.to_owned(), entry);
    }

    /// Puts a trusted certificate (DER) under an alias, replacing what was there.
    pub fn insert_certificate(&mut self, alias: &str, certificate: Vec<u8>) {
        let entry = Entry {
            certificates: vec![certificate],
            private_key: None,
        };
        self.entries.insert(alias.to_owned(), entry);
    }

    /// The aliases, sorted.
    pub fn aliases(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The certificates (DER, leaf first) under an alias.
    #[must_use]
    pub fn certificates(&self, alias: &str) -> Option<&[Vec<u8>]> {
        Some(&self.entries.get(alias)?.certificates)
    }

    /// The private key (PKCS#8) under an alias.
    #[must_use]
    pub fn private_key(&self, alias: &str) -> Option<&Zeroizing<Vec<u8>>> {
        self.entries.get(alias)?.private_key.as_ref()
    }

    /// Writes the file, replacing an older one at once or not at all. Durable when this returns.
    ///
    /// # Errors
    /// [`KeyStoreError::Io`] if the file system refuses; [`KeyStoreError::TooManyEntries`].
    pub fn write(&self, path: &Path, password: &str) -> Result<(), KeyStoreError> {
        if self.entries.len() > MAX_ENTRIES {
            return Err(KeyStoreError::TooManyEntries {
                path: path.to_owned(),
                count: self.entries.len(),
            });
        }
        write_secret_file(path, &self.seal(password)).map_err(|source| KeyStoreError::Io {
            path: path.to_owned(),
            action: "written",
            source,
        })
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`KeyStoreError`] says whether the file is missing, foreign, cut off or damaged, or the password wrong.
    pub fn read(path: &Path, password: &str) -> Result<Self, KeyStoreError> {
        let bytes = read_bounded(path)?;
        let reading = Reading { path };
        let sealed = reading.parse(&bytes)?;
        reading.open(sealed, password)
    }

    fn seal(&self, password: &str) -> Vec<u8> {
        let mut salt = [0; SALT_BYTES];
        aws_lc_rs::rand::fill(&mut salt).expect("the system gives random bytes");
        let kdf = Kdf {
            algorithm: KDF_ALGORITHM.to_owned(),
            memory_kib: KDF_MEMORY_KIB,
            iterations: KDF_ITERATIONS,
            lanes: KDF_LANES,
            salt: BASE64.encode(salt),
        };
        let key = kdf
            .derive(password, &salt)
            .expect("our own derivation settings are sound");
        let mut sealed = SealedFile {
            format: FORMAT.to_owned(),
            version: FORMAT_VERSION,
            kdf,
            password_check: seal_bytes(&key, "password check", &[]),
            entries: self
                .entries
                .iter()
                .map(|(alias, entry)| SealedEntry {
                    alias: alias.clone(),
                    certificates: entry
                        .certificates
                        .iter()
                        .map(|c| BASE64.encode(c))
                        .collect(),
                    private_key: entry
                        .private_key
                        .as_ref()
                        .map(|private| seal_bytes(&key, &private_key_purpose(alias), private)),
                })
                .collect(),
            seal: String::new(),
        };
        sealed.seal = seal_bytes(&key, &sealed.content_purpose(), &[]);
        let mut text =
            serde_json::to_vec_pretty(&sealed).expect("texts and numbers can be written as JSON");
        text.push(b'\n');
        text
    }
}

/// The file as it is.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SealedFile {
    format: String,
    version: u32,
    kdf: Kdf,
    password_check: String,
    entries: Vec<SealedEntry>,
    seal: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SealedEntry {
    alias: String,
    certificates: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    private_key: Option<String>,
}

/// What stays the same in every version of the format.
#[derive(Deserialize)]
struct Header {
    format: String,
    version: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Kdf {
    algorithm: String,
    memory_kib: u32,
    iterations: u32,
    lanes: u32,
    salt: String,
}

impl Kdf {
    /// `None` if the settings are not acceptable.
    fn derive(&self, password: &str, salt: &[u8]) -> Option<RandomizedNonceKey> {
        let acceptable = self.algorithm == KDF_ALGORITHM
            && self.memory_kib <= MAX_KDF_MEMORY_KIB
            && self.iterations <= MAX_KDF_ITERATIONS
            && self.lanes <= MAX_KDF_LANES;
        if !acceptable {
            return None;
        }
        let params = Params::new(self.memory_kib, self.iterations, self.lanes, None).ok()?;
        let mut key = Zeroizing::new([0; 32]);
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into(password.as_bytes(), salt, &mut *key)
            .ok()?;
        RandomizedNonceKey::new(&AES_256_GCM, &*key).ok()
    }
}

impl SealedFile {
    /// Binds the seal to everything in the file but the seal.
    fn content_purpose(&self) -> String {
        let content = serde_json::to_vec(&(
            &self.format,
            self.version,
            &self.kdf,
            &self.password_check,
            &self.entries,
        ))
        .expect("texts and numbers can be written as JSON");
        format!("content {}", SecureHash::of(&content))
    }
}

fn private_key_purpose(alias: &str) -> String {
    format!("private key {alias}")
}

/// Nonce, ciphertext and tag in base-64. The purpose is authenticated, so that one piece cannot stand in for another.
fn seal_bytes(key: &RandomizedNonceKey, purpose: &str, plain: &[u8]) -> String {
    let mut bytes = plain.to_vec();
    let nonce = key
        .seal_in_place_append_tag(Aad::from(purpose.as_bytes()), &mut bytes)
        .expect("AES-GCM seals a short text");
    BASE64.encode([nonce.as_ref().as_slice(), &bytes].concat())
}

/// `None` if the key, the purpose or the text is another.
fn open_bytes(key: &RandomizedNonceKey, purpose: &str, sealed: &str) -> Option<Zeroizing<Vec<u8>>> {
    let bytes = Zeroizing::new(BASE64.decode(sealed).ok()?);
    let (nonce, sealed) = bytes.split_at_checked(NONCE_LEN)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
    let mut sealed = Zeroizing::new(sealed.to_vec());
    let length = key
        .open_in_place(nonce, Aad::from(purpose.as_bytes()), &mut sealed)
        .ok()?
        .len();
    sealed.truncate(length);
    Some(sealed)
}

/// The reading of one file, which every error names.
pub(crate) struct Reading<'a> {
    pub(crate) path: &'a Path,
}

impl Reading<'_> {
    fn damaged(&self, what: impl Into<String>) -> KeyStoreError {
        KeyStoreError::Damaged {
            path: self.path.to_owned(),
            what: what.into(),
        }
    }

    fn parse(&self, bytes: &[u8]) -> Result<SealedFile, KeyStoreError> {
        let path = || self.path.to_owned();
        let header: Header = serde_json::from_slice(bytes).map_err(|error| {
            if error.is_eof() {
                KeyStoreError::Truncated { path: path() }
            } else {
                KeyStoreError::Foreign { path: path() }
            }
        })?;
        if header.format != FORMAT {
            return Err(KeyStoreError::Foreign { path: path() });
        }
        if header.version != FORMAT_VERSION {
            return Err(KeyStoreError::UnsupportedVersion {
                path: path(),
                version: header.version,
            });
        }
        let file: SealedFile = serde_json::from_slice(bytes)
            .map_err(|error| self.damaged(format!("line {}", error.line())))?;
        if file.entries.len() > MAX_ENTRIES {
            return Err(self.damaged("too many entries"));
        }
        Ok(file)
    }

    fn open(&self, file: SealedFile, password: &str) -> Result<KeyStore, KeyStoreError> {
        let salt = BASE64
            .decode(&file.kdf.salt)
            .map_err(|_| self.damaged("salt"))?;
        let key = file
            .kdf
            .derive(password, &salt)
            .ok_or_else(|| self.damaged("key derivation settings"))?;
        if open_bytes(&key, "password check", &file.password_check).is_none() {
            return Err(KeyStoreError::WrongPassword {
                path: self.path.to_owned(),
            });
        }
        if open_bytes(&key, &file.content_purpose(), &file.seal).is_none() {
            return Err(self.damaged("the content does not fit its seal"));
        }
        let mut store = KeyStore::new();
        for entry in file.entries {
            let alias = entry.alias;
            if entry.certificates.len() > MAX_PATH_CERTIFICATES {
                return Err(self.damaged(format!("too many certificates in entry \"{alias}\"")));
            }
            let certificates: Result<Vec<_>, _> = entry
                .certificates
                .iter()
                .map(|c| BASE64.decode(c))
                .collect();
            let private_key = entry
                .private_key
                .map(|sealed| {
                    open_bytes(&key, &private_key_purpose(&alias), &sealed)
                        .ok_or_else(|| self.damaged(format!("private key of entry \"{alias}\"")))
                })
                .transpose()?;
            let certificates = certificates
                .map_err(|_| self.damaged(format!("certificates of entry \"{alias}\"")))?;
            store.entries.insert(
                alias,
                Entry {
                    certificates,
                    private_key,
                },
            );
        }
        Ok(store)
    }

    fn missing(&self, alias: &str) -> KeyStoreError {
        KeyStoreError::MissingEntry {
            path: self.path.to_owned(),
            alias: alias.to_owned(),
        }
    }

    pub(crate) fn path_of(
        &self,
        store: &KeyStore,
        alias: &str,
    ) -> Result<CertificatePath, KeyStoreError> {
        let ders = store
            .certificates(alias)
            .ok_or_else(|| self.missing(alias))?;
        CertificatePath::from_ders(ders).map_err(|source| KeyStoreError::Certificate {
            path: self.path.to_owned(),
            alias: alias.to_owned(),
            source,
        })
    }

    /// The identity of an entry: with its private key, or if `device` is given, with that device's key of this public
    /// half.
    pub(crate) fn identity(
        &self,
        store: &KeyStore,
        alias: &str,
        device: Option<&FindKey<'_>>,
    ) -> Result<Identity, KeyStoreError> {
        let path = || self.path.to_owned();
        let certificates = self.path_of(store, alias)?;
        let key = match (store.private_key(alias), device) {
            (Some(pkcs8), None) => {
                KeyPair::from_pkcs8(pkcs8)
                    .map(SigningKey::from)
                    .map_err(|source| KeyStoreError::Key {
                        path: path(),
                        alias: alias.to_owned(),
                        source,
                    })?
            }
            (None, Some(find)) => {
                find(certificates.leaf().public_key()).map_err(|source| KeyStoreError::Device {
                    path: path(),
                    alias: alias.to_owned(),
                    source,
                })?
            }
            (Some(_), Some(_)) => {
                return Err(KeyStoreError::KeyInFile {
                    path: path(),
                    alias: alias.to_owned(),
                });
            }
            (None, None) => {
                return Err(KeyStoreError::KeyNotInFile {
                    path: path(),
                    alias: alias.to_owned(),
                });
            }
        };
        Identity::new(key, certificates).map_err(|source| KeyStoreError::Mismatch {
            path: path(),
            alias: alias.to_owned(),
            source,
        })
    }
}

/// Finds the key with this public half in a device.
pub(crate) type FindKey<'a> = dyn Fn(&PublicKey) -> Result<SigningKey, RemoteError> + 'a;

/// Enters an identity; of one whose private key is in a device, the certificates only.
pub(crate) fn insert_identity(store: &mut KeyStore, alias: &str, identity: &Identity) {
    match identity.key().pair() {
        Some(pair) => store.insert_key(alias, pair.to_pkcs8(), identity.path().to_ders()),
        None => drop(store.entries.insert(
            alias.to_owned(),
            Entry {
                certificates: identity.path().to_ders(),
                private_key: None,
            },
        )),
    }
}

fn read_bounded(path: &Path) -> Result<Vec<u8>, KeyStoreError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => KeyStoreError::Missing {
            path: path.to_owned(),
        },
        _ => KeyStoreError::Io {
            path: path.to_owned(),
            action: "read",
            source,
        },
    };
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_KEY_STORE_BYTES + 1).read_to_end(&mut bytes))
        .map_err(failed)?;
    if bytes.len() as u64 > MAX_KEY_STORE_BYTES {
        return Err(KeyStoreError::Foreign {
            path: path.to_owned(),
        });
    }
    Ok(bytes)
}

/// Makes a directory, with its parents, that only its owner can enter. One that exists is left as it is.
pub(crate) fn make_secret_directory(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(directory)
}

/// Replaces a file at once or not at all, readable by its owner only, durable on return.
fn write_secret_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut unique = [0; 8];
    aws_lc_rs::rand::fill(&mut unique).expect("the system gives random bytes");
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the path names no file"))?;
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{}.tmp", hex::encode(unique)));
    let temporary = path.with_file_name(temporary);

    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let written = options.open(&temporary).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    });
    if let Err(error) = written {
        // Secrets must not lie about under a forgotten name. The first error is the one worth reporting.
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    // The new name is durable when its directory is.
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(directory)?.sync_all()
}
