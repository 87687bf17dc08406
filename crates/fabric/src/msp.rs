//! Membership service providers: which certificates speak for which organisation, and in what role.
//!
//! A channel's configuration defines one [`Msp`] per organisation; all of them together are its [`Membership`]. An
//! [`Identity`] is a certificate in the light of its MSP. An orderer's own identity is a [`LocalMsp`], read from a folder.
//!
//! No clock is asked: whether an identity is a member does not depend on the time (Fabric validates a chain at the
//! certificate's own time), and whether it has expired is for the caller to compare with [`Identity::expires_at`].

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use quorate_identity::UnixTime;

use crate::proto;

/// Signs as one identity.
pub trait Signer: Send + Sync {
    /// The `SerializedIdentity` that goes into signature headers.
    fn creator(&self) -> Bytes;

    /// An ECDSA signature over SHA-256 of `message`, DER with low S.
    ///
    /// # Errors
    /// [`SignError`] if the key could not be used.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError>;
}

/// A signature could not be made.
#[derive(Debug, thiserror::Error)]
#[error("the identity of {msp_id} could not sign: {reason}")]
pub struct SignError {
    /// Whose identity.
    pub msp_id: String,
    /// What the cryptographic library or the device said.
    pub reason: String,
}

/// Why an MSP definition is not acceptable; texts as Fabric's.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MspError {
    /// The definition breaks a rule.
    #[error("{0}")]
    Invalid(String),
}

/// Why bytes are not an identity, or why an identity is refused; texts as Fabric's.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// It breaks a rule.
    #[error("{0}")]
    Invalid(String),
}

/// Why an MSP folder could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FolderError {
    /// Something in it is missing, unreadable or against the rules.
    #[error("{0}")]
    Invalid(String),
}

/// One organisation's membership.
pub struct Msp {
    id: String,
}

impl Msp {
    /// Reads and checks a definition.
    ///
    /// # Errors
    /// [`MspError`] if it breaks one of Fabric's rules.
    pub fn from_config(_config: &proto::msp::MspConfig) -> Result<Self, MspError> {
        Err(MspError::Invalid("not yet".to_owned()))
    }

    /// The MSP ID.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// DER of the TLS root certificates.
    #[must_use]
    pub fn tls_roots(&self) -> &[quorate_identity::x509::Certificate] {
        &[]
    }

    /// DER of the TLS intermediate certificates.
    #[must_use]
    pub fn tls_intermediates(&self) -> &[quorate_identity::x509::Certificate] {
        &[]
    }
}

/// All MSPs of a channel.
pub struct Membership {
    msps: Vec<Arc<Msp>>,
}

impl Membership {
    /// The membership of these organisations. Of two with one ID the later counts.
    #[must_use]
    pub fn new(msps: impl IntoIterator<Item = Arc<Msp>>) -> Self {
        Self {
            msps: msps.into_iter().collect(),
        }
    }

    /// The MSPs, ordered by ID.
    pub fn msps(&self) -> impl Iterator<Item = &Arc<Msp>> {
        self.msps.iter()
    }

    /// The MSP with this ID.
    #[must_use]
    pub fn msp(&self, id: &str) -> Option<&Arc<Msp>> {
        self.msps.iter().find(|msp| msp.id == id)
    }

    /// The identity in a `SerializedIdentity`. It need not be valid: see [`Identity::validate`].
    ///
    /// # Errors
    /// [`IdentityError`] if the bytes are malformed or name an unknown MSP.
    pub fn identity(&self, _serialized: &[u8]) -> Result<Arc<Identity>, IdentityError> {
        Err(IdentityError::Invalid("not yet".to_owned()))
    }
}

/// A certificate in the light of its MSP.
pub struct Identity {
    msp: Arc<Msp>,
}

impl Identity {
    /// The ID of its MSP.
    #[must_use]
    pub fn msp_id(&self) -> &str {
        self.msp.id()
    }

    /// The last second of its certificate.
    #[must_use]
    pub fn expires_at(&self) -> UnixTime {
        UnixTime(i64::MAX)
    }

    /// Whether the MSP accepts it: chain, revocation, organisational units. Cached.
    ///
    /// # Errors
    /// [`IdentityError`] if not.
    pub fn validate(&self) -> Result<(), IdentityError> {
        Ok(())
    }

    /// Checks a signature (DER, low S) over SHA-256 of `message`.
    ///
    /// # Errors
    /// [`IdentityError`] if the signature is not this identity's.
    pub fn verify(&self, _message: &[u8], _signature: &[u8]) -> Result<(), IdentityError> {
        Ok(())
    }

    /// Whether it is what the principal asks for, validity included.
    ///
    /// # Errors
    /// [`IdentityError`] if not.
    pub fn satisfies(&self, _principal: &proto::common::MspPrincipal) -> Result<(), IdentityError> {
        Ok(())
    }
}

/// A certificate with its private key.
pub struct SigningIdentity {
    creator: Bytes,
}

impl SigningIdentity {
    /// From the PEM texts of a certificate and its private key (PKCS#8 or SEC1).
    ///
    /// # Errors
    /// [`FolderError`] if one is unreadable or they do not belong together.
    pub fn from_pem(
        _msp_id: &str,
        _certificate: &[u8],
        _private_key: &[u8],
    ) -> Result<Self, FolderError> {
        Err(FolderError::Invalid("not yet".to_owned()))
    }
}

impl Signer for SigningIdentity {
    fn creator(&self) -> Bytes {
        self.creator.clone()
    }

    fn sign(&self, _message: &[u8]) -> Result<Vec<u8>, SignError> {
        Ok(Vec::new())
    }
}

/// A node's own MSP folder: the MSP and the identity that the node signs with.
pub struct LocalMsp {
    msp: Arc<Msp>,
    signer: SigningIdentity,
}

impl LocalMsp {
    /// Reads an MSP folder (`cacerts`, `signcerts`, `keystore`, …).
    ///
    /// # Errors
    /// [`FolderError`] naming the file and the reason.
    pub fn load(_folder: &Path, _msp_id: &str) -> Result<Self, FolderError> {
        Err(FolderError::Invalid("not yet".to_owned()))
    }

    /// The MSP.
    #[must_use]
    pub fn msp(&self) -> &Arc<Msp> {
        &self.msp
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
/// # Errors
/// [`FolderError`] naming the file and the reason.
pub fn msp_config_from_folder(
    _folder: &Path,
    _msp_id: &str,
) -> Result<proto::msp::MspConfig, FolderError> {
    Err(FolderError::Invalid("not yet".to_owned()))
}
