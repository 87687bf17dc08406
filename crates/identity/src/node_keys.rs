//! All that one node owns: its node CA, its legal identity, its TLS key and, for a notary, the service identity, with the
//! root that it trusts; and the three files in which a `certificates` folder keeps them.
//!
//! Files and aliases have the names of Corda's, so that an operator finds what the guides speak of. How a file is
//! encrypted and replaced is the business of [`crate::key_store`].

use std::path::Path;

use crate::authority::{CertificateAuthority, Identity, IssueError, ROOT_ALIAS};
use crate::certificate::{CertRole, Certificate, UnixTime};
use crate::key_store::{KeyStore, KeyStoreError, Reading, insert_identity, make_secret_directory};
use crate::keys::{KeyPair, SignatureScheme};
use crate::name::X500Name;
use crate::party::Party;
use crate::path::{PathError, validate_path};

/// The file of the node CA, the legal identity and the notary service identity.
pub const NODE_KEY_STORE: &str = "nodekeystore.json";

/// The file of the TLS key.
pub const SSL_KEY_STORE: &str = "sslkeystore.json";

/// The file of the network's root certificate.
pub const TRUST_STORE: &str = "truststore.json";

/// The key store password of development nodes, the same as Corda's. Not a secret.
pub const DEVELOPMENT_KEY_STORE_PASSWORD: &str = "cordacadevpass";

/// The trust store password of development nodes, the same as Corda's. Not a secret.
pub const DEVELOPMENT_TRUST_STORE_PASSWORD: &str = "trustpass";

const NODE_CA_ALIAS: &str = "cordaclientca";
const LEGAL_IDENTITY_ALIAS: &str = "identity-private-key";
const NOTARY_SERVICE_ALIAS: &str = "distributed-notary-private-key";
const TLS_ALIAS: &str = "cordaclienttls";

/// Everything secret that one node owns, with the certificates, and the root that it trusts.
#[derive(Debug, Clone)]
pub struct NodeKeys {
    node_ca: Identity,
    legal_identity: Identity,
    tls: Identity,
    notary_service: Option<Identity>,
    trust_root: Certificate,
}

impl NodeKeys {
    /// Fresh keys for a node called `name`, admitted by `authority`. `scheme` is that of the legal identity (Ed25519 is
    /// the faster to read and verify); the node CA uses it too, TLS is always P-256, as every peer understands it.
    ///
    /// # Errors
    /// [`IssueError`] if the authority's certificates do not count at `now`.
    pub fn generate(
        authority: &CertificateAuthority,
        name: &X500Name,
        scheme: SignatureScheme,
        now: UnixTime,
    ) -> Result<Self, IssueError> {
        let key = KeyPair::generate(scheme);
        let path = authority.certify(CertRole::NodeCa, name, key.public(), now)?;
        let node_ca = Identity::certified(key, path);
        Ok(Self {
            legal_identity: node_ca.issue_end(CertRole::LegalIdentity, scheme, now)?,
            tls: node_ca.issue_end(CertRole::Tls, SignatureScheme::EcdsaP256, now)?,
            notary_service: None,
            trust_root: authority.root().clone(),
            node_ca,
        })
    }

    /// The same keys, with the identity of a notary service that this node provides, alone or with others.
    #[must_use]
    pub fn with_notary_service(mut self, service: Identity) -> Self {
        self.notary_service = Some(service);
        self
    }

    /// The same keys with a fresh TLS key and certificate, issued by the node's own CA.
    ///
    /// # Errors
    /// [`IssueError`] if the node CA's certificate does not count at `now`.
    pub fn with_renewed_tls(mut self, now: UnixTime) -> Result<Self, IssueError> {
        self.tls = self
            .node_ca
            .issue_end(CertRole::Tls, SignatureScheme::EcdsaP256, now)?;
        Ok(self)
    }

    /// The node's legal name.
    #[must_use]
    pub fn name(&self) -> &X500Name {
        self.legal_identity.name()
    }

    /// The node as a party: legal name and identity key.
    #[must_use]
    pub fn party(&self) -> Party {
        self.legal_identity.party()
    }

    /// The authority that constrains everything below to the node's name.
    #[must_use]
    pub fn node_ca(&self) -> &Identity {
        &self.node_ca
    }

    /// What signs on the ledger.
    #[must_use]
    pub fn legal_identity(&self) -> &Identity {
        &self.legal_identity
    }

    /// What authenticates connections.
    #[must_use]
    pub fn tls(&self) -> &Identity {
        &self.tls
    }

    /// What signs as notary, if the node provides one.
    #[must_use]
    pub fn notary_service(&self) -> Option<&Identity> {
        self.notary_service.as_ref()
    }

    /// The root of the network.
    #[must_use]
    pub fn trust_root(&self) -> &Certificate {
        &self.trust_root
    }

    /// The names under which peers may ask for this node: its own, and the notary service's.
    #[must_use]
    pub fn served_names(&self) -> Vec<X500Name> {
        let service = self.notary_service.as_ref().map(|s| s.name().clone());
        std::iter::once(self.name().clone())
            .chain(service)
            .collect()
    }

    /// Checks the node's own certificates as a peer would, so that a node whose peers would refuse it learns that when it
    /// starts.
    ///
    /// # Errors
    /// [`PathError`] for the first path that does not hold at `now`.
    pub fn validate(&self, now: UnixTime) -> Result<(), PathError> {
        let root = &self.trust_root;
        validate_path(
            self.legal_identity.path(),
            root,
            now,
            CertRole::LegalIdentity,
        )?;
        let tls_name = validate_path(self.tls.path(), root, now, CertRole::Tls)?;
        if tls_name != *self.name() {
            return Err(PathError::NameNotPermitted {
                issuer: self.name().clone(),
                subject: tls_name,
            });
        }
        if let Some(service) = &self.notary_service {
            validate_path(service.path(), root, now, CertRole::ServiceIdentity)?;
        }
        Ok(())
    }

    /// When the first of the node's certificates expires; operators want to know long before.
    #[must_use]
    pub fn expires(&self) -> UnixTime {
        [&self.legal_identity, &self.tls]
            .into_iter()
            .chain(&self.notary_service)
            .map(|identity| identity.path().expires())
            .min()
            .expect("a node has certificates")
    }

    /// Whether `directory` holds the keys of a node. It does from the end of the first [`NodeKeys::save`] on.
    #[must_use]
    pub fn exist_in(directory: &Path) -> bool {
        directory.join(NODE_KEY_STORE).exists()
    }

    /// Writes the three files of a node into `directory`, making it (mode 0700) if need be.
    ///
    /// Each file is replaced at once or not at all, and any mixture of old and new files of the same node fits together.
    /// The identity comes last: it is what [`NodeKeys::exist_in`] looks for.
    ///
    /// # Errors
    /// [`KeyStoreError`] names the file that could not be written.
    pub fn save(
        &self,
        directory: &Path,
        key_store_password: &str,
        trust_store_password: &str,
    ) -> Result<(), KeyStoreError> {
        make_secret_directory(directory).map_err(|source| KeyStoreError::Io {
            path: directory.to_owned(),
            action: "written",
            source,
        })?;
        let mut trust = KeyStore::new();
        trust.insert_certificate(ROOT_ALIAS, self.trust_root().der().to_vec());
        trust.write(&directory.join(TRUST_STORE), trust_store_password)?;

        let mut ssl = KeyStore::new();
        insert_identity(&mut ssl, TLS_ALIAS, self.tls());
        ssl.write(&directory.join(SSL_KEY_STORE), key_store_password)?;

        let mut node = KeyStore::new();
        insert_identity(&mut node, NODE_CA_ALIAS, self.node_ca());
        insert_identity(&mut node, LEGAL_IDENTITY_ALIAS, self.legal_identity());
        if let Some(service) = self.notary_service() {
            insert_identity(&mut node, NOTARY_SERVICE_ALIAS, service);
        }
        node.write(&directory.join(NODE_KEY_STORE), key_store_password)
    }

    /// Reads the three files of a node. What the certificates are worth is checked by [`NodeKeys::validate`].
    ///
    /// # Errors
    /// [`KeyStoreError`] names the file, the reason and the way out.
    pub fn load(
        directory: &Path,
        key_store_password: &str,
        trust_store_password: &str,
    ) -> Result<Self, KeyStoreError> {
        let trust_path = directory.join(TRUST_STORE);
        let trust = KeyStore::read(&trust_path, trust_store_password)?;
        let root = Reading { path: &trust_path }.path_of(&trust, ROOT_ALIAS)?;
        let trust_root: Certificate = root.leaf().clone();

        let ssl_path = directory.join(SSL_KEY_STORE);
        let ssl = KeyStore::read(&ssl_path, key_store_password)?;
        let tls = Reading { path: &ssl_path }.identity(&ssl, TLS_ALIAS)?;

        let node_path = directory.join(NODE_KEY_STORE);
        let node = KeyStore::read(&node_path, key_store_password)?;
        let reading = Reading { path: &node_path };
        let notary_service = match node.certificates(NOTARY_SERVICE_ALIAS) {
            Some(_) => Some(reading.identity(&node, NOTARY_SERVICE_ALIAS)?),
            None => None,
        };
        Ok(Self {
            node_ca: reading.identity(&node, NODE_CA_ALIAS)?,
            legal_identity: reading.identity(&node, LEGAL_IDENTITY_ALIAS)?,
            tls,
            notary_service,
            trust_root,
        })
    }
}
