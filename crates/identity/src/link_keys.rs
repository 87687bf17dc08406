//! The keys of links between the processes of one organisation: a node, its bridges and its floats.
//!
//! Such a link has an authority of its own, whose certificates are worth nothing anywhere else, so that a machine in the
//! DMZ holds no key that peers would believe. The authority's private keys are not kept: who wants another process on
//! the link makes all keys anew. Files are key stores ([`crate::key_store`]); names of files are the caller's.

use std::path::Path;

use crate::authority::{CertificateAuthority, IssueError, ROOT_ALIAS};
use crate::certificate::UnixTime;
use crate::key_store::{KeyStore, KeyStoreError, Reading, insert_identity, make_secret_directory};
use crate::keys::SignatureScheme;
use crate::name::X500Name;
use crate::node_keys::{KeyPurpose, NodeKeys};
use crate::tls::TlsParty;

/// Keys for the ends of a link, in the order of `names`, under a fresh authority called `authority`.
///
/// # Errors
/// [`IssueError`] if no certificates can be made of the names.
pub fn generate(
    authority: &X500Name,
    names: &[X500Name],
    now: UnixTime,
) -> Result<Vec<TlsParty>, IssueError> {
    let authority = CertificateAuthority::generate(authority, SignatureScheme::EcdsaP256, now)?;
    names
        .iter()
        .map(|name| {
            let keys = NodeKeys::generate(&authority, name, SignatureScheme::EcdsaP256, now)?;
            Ok(TlsParty::new(keys.tls().clone(), authority.root().clone()))
        })
        .collect()
}

/// Reads what a process needs for a link: its key, in the form of a node's TLS key store, and the root that it trusts.
///
/// # Errors
/// [`KeyStoreError`] names the file, the reason and the way out.
pub fn load(
    (key_store, key_store_password): (&Path, &str),
    (trust_store, trust_store_password): (&Path, &str),
) -> Result<TlsParty, KeyStoreError> {
    let trust = KeyStore::read(trust_store, trust_store_password)?;
    let root = Reading { path: trust_store }.path_of(&trust, ROOT_ALIAS)?;
    let keys = KeyStore::read(key_store, key_store_password)?;
    let alias = KeyPurpose::Tls.alias();
    let identity = Reading { path: key_store }.identity(&keys, alias, None)?;
    Ok(TlsParty::new(identity, root.leaf().clone()))
}

/// Writes the two files that [`load`] reads, and makes their folders (mode 0700) if need be. Each file is replaced at
/// once or not at all.
///
/// # Errors
/// [`KeyStoreError`] names the file that could not be written.
pub fn save(
    party: &TlsParty,
    (key_store, key_store_password): (&Path, &str),
    (trust_store, trust_store_password): (&Path, &str),
) -> Result<(), KeyStoreError> {
    for path in [key_store, trust_store] {
        let folder = path.parent().unwrap_or(Path::new("."));
        make_secret_directory(folder).map_err(|source| KeyStoreError::Io {
            path: folder.to_owned(),
            action: "written",
            source,
        })?;
    }
    let mut trust = KeyStore::new();
    trust.insert_certificate(ROOT_ALIAS, party.trust_root().der().to_vec());
    trust.write(trust_store, trust_store_password)?;
    let mut keys = KeyStore::new();
    insert_identity(&mut keys, KeyPurpose::Tls.alias(), party.identity());
    keys.write(key_store, key_store_password)
}
