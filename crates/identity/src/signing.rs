//! Keys that sign, wherever their secret half is kept: in this process, or in a device that never gives it away.
//!
//! A [`SigningKey`] is a public key and a way to have things signed. A [`KeyPair`] becomes one with `into()`, and then
//! signing always succeeds. The key of a hardware security module is one by [`SigningKey::remote`]; the device is behind
//! [`RemoteSigner`], and may be out of reach. Whoever signs with an identity therefore handles a [`SigningError`].
//!
//! What a device answers is brought into our one accepted form and verified before it is believed: a signature that
//! nobody would accept must not leave the node, and a device that holds another key than expected is noticed here.

use std::fmt;
use std::sync::Arc;

use rustls::sign::{Signer as TlsSigner, SigningKey as TlsSigningKey};
use rustls::{
    SignatureAlgorithm as TlsSignatureAlgorithm, SignatureScheme as TlsSignatureScheme, sign,
};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::keys::{KeyPair, PublicKey, Signature, SignatureScheme};

/// Why something was not signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SigningError {
    /// The device cannot be reached, is busy or did not answer in time. The same may succeed later.
    #[error("the key {key} cannot sign now: {reason}")]
    Unavailable {
        /// The short form of the key.
        key: String,
        /// What its keeper says.
        reason: String,
    },
    /// The device answers, and will not sign: trying again changes nothing until somebody intervenes.
    #[error("the key {key} cannot sign: {reason}")]
    Refused {
        /// The short form of the key.
        key: String,
        /// What its keeper says.
        reason: String,
    },
    /// What the device made is no signature of this key.
    #[error(
        "the device that keeps {key} made a signature that does not fit the key; its key under this label is another one"
    )]
    WrongKey {
        /// The short form of the key.
        key: String,
    },
}

impl SigningError {
    /// Whether the same may succeed later without anybody's intervention.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}

/// What the keeper of a key answers instead of a signature.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct RemoteError {
    /// For the operator. Never contains a PIN.
    pub reason: String,
    /// Whether the same may succeed later by itself.
    pub transient: bool,
}

/// The keeper of one private key.
///
/// May block the thread for as long as its own time-out.
pub trait RemoteSigner: fmt::Debug + Send + Sync {
    /// Signs `message` with the key: 64 bytes, for ECDSA R and S of the message's SHA-256, each 32 bytes.
    ///
    /// # Errors
    /// [`RemoteError`] says whether trying again makes sense.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, RemoteError>;
}

/// A public key with the means to sign for it. Cheap to clone.
#[derive(Clone)]
pub struct SigningKey(Keeper);

#[derive(Clone)]
enum Keeper {
    Here(KeyPair),
    Remote {
        public: PublicKey,
        signer: Arc<dyn RemoteSigner>,
    },
}

impl From<KeyPair> for SigningKey {
    fn from(pair: KeyPair) -> Self {
        Self(Keeper::Here(pair))
    }
}

impl SigningKey {
    /// The key whose private half `signer` keeps.
    #[must_use]
    pub fn remote(public: PublicKey, signer: Arc<dyn RemoteSigner>) -> Self {
        Self(Keeper::Remote { public, signer })
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> &PublicKey {
        match &self.0 {
            Keeper::Here(pair) => pair.public(),
            Keeper::Remote { public, .. } => public,
        }
    }

    /// The key pair, if the private half is in this process; nobody can have that of a device.
    #[must_use]
    pub fn pair(&self) -> Option<&KeyPair> {
        match &self.0 {
            Keeper::Here(pair) => Some(pair),
            Keeper::Remote { .. } => None,
        }
    }

    /// Whether a device keeps the private half, so that signing may block and fail.
    #[must_use]
    pub const fn is_remote(&self) -> bool {
        matches!(self.0, Keeper::Remote { .. })
    }

    /// Signs a message. Blocks for as long as a device takes.
    ///
    /// # Errors
    /// [`SigningError`], of keys in devices only.
    pub fn sign(&self, message: &[u8]) -> Result<Signature, SigningError> {
        let (public, signer) = match &self.0 {
            Keeper::Here(pair) => return Ok(pair.sign(message)),
            Keeper::Remote { public, signer } => (public, signer),
        };
        let key = || public.to_string_short();
        let bytes = signer.sign(message).map_err(|error| {
            let (key, reason) = (key(), error.reason);
            match error.transient {
                true => SigningError::Unavailable { key, reason },
                false => SigningError::Refused { key, reason },
            }
        })?;
        let wrong = || SigningError::WrongKey { key: key() };
        let signature = match public.scheme() {
            SignatureScheme::Ed25519 => Signature::from_bytes(&bytes),
            SignatureScheme::EcdsaP256 => {
                let normal = p256::ecdsa::Signature::from_slice(&bytes)
                    .map_err(|_| wrong())?
                    .normalize_s();
                Signature::from_bytes(&normal.to_bytes())
            }
        }
        .map_err(|_| wrong())?;
        public.verify(message, &signature).map_err(|_| wrong())?;
        Ok(signature)
    }

    /// The key as a TLS handshake wants it.
    pub(crate) fn for_tls(&self) -> Arc<dyn TlsSigningKey> {
        match &self.0 {
            Keeper::Here(pair) => {
                // Borrowed, so that the only copy of the encoded key is the one that wipes itself.
                let pkcs8 = pair.to_pkcs8();
                let der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(&pkcs8[..]));
                rustls::crypto::aws_lc_rs::sign::any_supported_type(&der)
                    .expect("the provider supports both of our schemes")
            }
            Keeper::Remote { .. } => Arc::new(RemoteTlsKey(self.clone())),
        }
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey")
            .field("public", self.public())
            .field("remote", &self.is_remote())
            .finish()
    }
}

/// A signature as X.509 and TLS carry it: in DER for ECDSA.
pub(crate) fn x509_form(scheme: SignatureScheme, signature: &Signature) -> Vec<u8> {
    match scheme {
        SignatureScheme::Ed25519 => signature.as_bytes().to_vec(),
        SignatureScheme::EcdsaP256 => p256::ecdsa::Signature::from_slice(signature.as_bytes())
            .expect("a signature that was verified is well formed")
            .to_der()
            .as_bytes()
            .to_vec(),
    }
}

/// A device's key in handshakes.
#[derive(Debug)]
struct RemoteTlsKey(SigningKey);

impl RemoteTlsKey {
    fn scheme(&self) -> TlsSignatureScheme {
        match self.0.public().scheme() {
            SignatureScheme::Ed25519 => TlsSignatureScheme::ED25519,
            SignatureScheme::EcdsaP256 => TlsSignatureScheme::ECDSA_NISTP256_SHA256,
        }
    }
}

impl TlsSigningKey for RemoteTlsKey {
    fn choose_scheme(&self, offered: &[TlsSignatureScheme]) -> Option<Box<dyn sign::Signer>> {
        offered
            .contains(&self.scheme())
            .then(|| Box::new(RemoteTlsKey(self.0.clone())) as Box<dyn TlsSigner>)
    }

    fn algorithm(&self) -> TlsSignatureAlgorithm {
        match self.0.public().scheme() {
            SignatureScheme::Ed25519 => TlsSignatureAlgorithm::ED25519,
            SignatureScheme::EcdsaP256 => TlsSignatureAlgorithm::ECDSA,
        }
    }
}

impl TlsSigner for RemoteTlsKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        self.0
            .sign(message)
            .map(|signature| x509_form(self.0.public().scheme(), &signature))
            .map_err(|error| rustls::Error::General(error.to_string()))
    }

    fn scheme(&self) -> TlsSignatureScheme {
        RemoteTlsKey::scheme(self)
    }
}
