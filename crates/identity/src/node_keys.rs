//! All that one node owns: its node CA, its legal identity, its TLS key and, for a notary, the service identity, with the
//! root that it trusts; and the three files in which a `certificates` folder keeps them.
//!
//! Files and aliases have the names of Corda's, so that an operator finds what the guides speak of. How a file is
//! encrypted and replaced is the business of [`crate::key_store`].

use std::path::Path;

use crate::authority::{CertificateAuthority, Identity, IssueError, ROOT_ALIAS};
use crate::certificate::{CertRole, Certificate, UnixTime};
use crate::key_store::{
    FindKey, KeyStore, KeyStoreError, Reading, insert_identity, make_secret_directory,
};
use crate::keys::{KeyPair, PublicKey, SignatureScheme};
use crate::name::X500Name;
use crate::party::Party;
use crate::path::{PathError, validate_path};
use crate::signing::{RemoteError, SigningKey};

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

/// What a key of a node is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyPurpose {
    /// Certifies the node's other keys.
    NodeCa,
    /// Signs on the ledger.
    LegalIdentity,
    /// Signs for a notary service.
    NotaryService,
    /// Authenticates connections.
    Tls,
}

impl KeyPurpose {
    /// All.
    pub const ALL: [Self; 4] = [
        Self::NodeCa,
        Self::LegalIdentity,
        Self::NotaryService,
        Self::Tls,
    ];

    /// The alias of the entry in a key store, and the default label of the key in a device.
    #[must_use]
    pub const fn alias(self) -> &'static str {
        match self {
            Self::NodeCa => "cordaclientca",
            Self::LegalIdentity => "identity-private-key",
            Self::NotaryService => "distributed-notary-private-key",
            Self::Tls => "cordaclienttls",
        }
    }
}

/// Where the private keys of a node are kept.
pub trait KeyKeeper {
    /// Whether a device keeps the keys of this purpose, so that none may lie in a file.
    fn keeps(&self, purpose: KeyPurpose) -> bool;

    /// A key to be certified for `purpose`. `scheme` is a wish: a device decides by what it can do. A device that has a
    /// key of this purpose gives that one, so that an interrupted creation can be finished.
    ///
    /// # Errors
    /// What the device says.
    fn make(&self, purpose: KeyPurpose, scheme: SignatureScheme)
    -> Result<SigningKey, RemoteError>;

    /// The key of this purpose in the device, if its public half is `public`. Asked only for what it [keeps](Self::keeps).
    ///
    /// # Errors
    /// The device has no such key, or is out of reach.
    fn find(&self, purpose: KeyPurpose, public: &PublicKey) -> Result<SigningKey, RemoteError>;
}

/// Keeps all private keys in the files of the certificates folder.
#[derive(Debug, Clone, Copy)]
pub struct InFiles;

impl KeyKeeper for InFiles {
    fn keeps(&self, _purpose: KeyPurpose) -> bool {
        false
    }

    fn make(
        &self,
        _purpose: KeyPurpose,
        scheme: SignatureScheme,
    ) -> Result<SigningKey, RemoteError> {
        Ok(KeyPair::generate(scheme).into())
    }

    fn find(&self, purpose: KeyPurpose, _public: &PublicKey) -> Result<SigningKey, RemoteError> {
        Err(RemoteError {
            reason: format!("no device keeps the key {}", purpose.alias()),
            transient: false,
        })
    }
}

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
        Self::generate_with(&InFiles, authority, name, scheme, now)
    }

    /// Like [`NodeKeys::generate`], with the private keys where `keeper` keeps them.
    ///
    /// # Errors
    /// [`IssueError`] if the authority's certificates do not count at `now`, or a device makes no keys.
    pub fn generate_with(
        keeper: &dyn KeyKeeper,
        authority: &CertificateAuthority,
        name: &X500Name,
        scheme: SignatureScheme,
        now: UnixTime,
    ) -> Result<Self, IssueError> {
        let make = |purpose, scheme| {
            keeper
                .make(purpose, scheme)
                .map_err(|source| IssueError::Key {
                    subject: name.clone(),
                    source,
                })
        };
        let key = make(KeyPurpose::NodeCa, scheme)?;
        let path = authority.certify(CertRole::NodeCa, name, key.public(), now)?;
        let node_ca = Identity::certified(key, path);
        let legal_identity = make(KeyPurpose::LegalIdentity, scheme)?;
        let tls = make(KeyPurpose::Tls, SignatureScheme::EcdsaP256)?;
        Ok(Self {
            legal_identity: node_ca.issue_end(CertRole::LegalIdentity, legal_identity, now)?,
            tls: node_ca.issue_end(CertRole::Tls, tls, now)?,
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
        let key = KeyPair::generate(SignatureScheme::EcdsaP256).into();
        self.tls = self.node_ca.issue_end(CertRole::Tls, key, now)?;
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
        insert_identity(&mut ssl, KeyPurpose::Tls.alias(), self.tls());
        ssl.write(&directory.join(SSL_KEY_STORE), key_store_password)?;

        let mut node = KeyStore::new();
        insert_identity(&mut node, KeyPurpose::NodeCa.alias(), self.node_ca());
        insert_identity(
            &mut node,
            KeyPurpose::LegalIdentity.alias(),
            self.legal_identity(),
        );
        if let Some(service) = self.notary_service() {
            insert_identity(&mut node, KeyPurpose::NotaryService.alias(), service);
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
        Self::load_with(
            &InFiles,
            directory,
            key_store_password,
            trust_store_password,
        )
    }

    /// Like [`NodeKeys::load`], with the private keys where `keeper` keeps them.
    ///
    /// # Errors
    /// [`KeyStoreError`] also if a private key lies elsewhere than `keeper` says.
    pub fn load_with(
        keeper: &dyn KeyKeeper,
        directory: &Path,
        key_store_password: &str,
        trust_store_password: &str,
    ) -> Result<Self, KeyStoreError> {
        let identity = |reading: &Reading<'_>, store: &KeyStore, purpose: KeyPurpose| {
            let find = |public: &PublicKey| keeper.find(purpose, public);
            let device = keeper.keeps(purpose).then_some(&find as &FindKey<'_>);
            reading.identity(store, purpose.alias(), device)
        };
        let trust_path = directory.join(TRUST_STORE);
        let trust = KeyStore::read(&trust_path, trust_store_password)?;
        let root = Reading { path: &trust_path }.path_of(&trust, ROOT_ALIAS)?;
        let trust_root: Certificate = root.leaf().clone();

        let ssl_path = directory.join(SSL_KEY_STORE);
        let ssl = KeyStore::read(&ssl_path, key_store_password)?;
        let tls = identity(&Reading { path: &ssl_path }, &ssl, KeyPurpose::Tls)?;

        let node_path = directory.join(NODE_KEY_STORE);
        let node = KeyStore::read(&node_path, key_store_password)?;
        let reading = Reading { path: &node_path };
        let notary_service = match node.certificates(KeyPurpose::NotaryService.alias()) {
            Some(_) => Some(identity(&reading, &node, KeyPurpose::NotaryService)?),
            None => None,
        };
        Ok(Self {
            node_ca: identity(&reading, &node, KeyPurpose::NodeCa)?,
            legal_identity: identity(&reading, &node, KeyPurpose::LegalIdentity)?,
            tls,
            notary_service,
            trust_root,
        })
    }
}
