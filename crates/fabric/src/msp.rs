//! Membership service providers: which certificates speak for which organisation, and in what role.
//!
//! A channel's configuration defines one [`Msp`] per organisation; all of them together are its [`Membership`]. An
//! [`Identity`] is a certificate in the light of its MSP. An orderer's own identity is a [`LocalMsp`], read from a folder.
//!
//! Rules and texts are Fabric's, because an orderer that judges differently from its neighbours splits the cluster, and
//! because the texts reach clients. No clock is asked: whether an identity is a member does not depend on the time (Fabric
//! validates a chain at the certificate's own time), and whether it has expired is for the caller to compare with
//! [`Identity::expires_at`].
//!
//! Where to start reading: [`Membership::identity`] is what happens for every message, [`Msp::from_config`] what happens
//! for every configuration.

mod definition;
mod folder;
mod identity;
mod membership;
mod rules;

use bytes::Bytes;

pub use definition::{Msp, MspVersion};
pub use folder::{FolderError, LocalMsp, SigningIdentity, msp_config_from_folder};
pub use identity::Identity;
pub(crate) use identity::Principal;
pub use membership::{MAX_CACHED_IDENTITIES, Membership};

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
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MspError {
    /// The definition breaks a rule.
    #[error("{0}")]
    Invalid(String),
}

/// Why bytes are not an identity, or why an identity is refused; texts as Fabric's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// The bytes are not a `SerializedIdentity`, or what is in it is not a usable certificate.
    #[error("{0}")]
    Malformed(String),
    /// It belongs to an MSP that the channel does not have.
    #[error("MSP {msp_id} is not defined on channel")]
    UnknownMsp {
        /// The MSP that it says.
        msp_id: String,
    },
    /// The MSP does not accept it, or it is not what a principal asks for.
    #[error("{0}")]
    Refused(String),
    /// A signature that is not this identity's.
    #[error("{0}")]
    Signature(String),
}

/// What Go's protobuf library says of bytes that are not protobuf.
pub(crate) const GO_PROTO_MALFORMED: &str = "proto: cannot parse invalid wire-format data";

/// Bytes as Go prints them in a list of numbers.
pub(crate) fn go_bytes(bytes: &[u8]) -> String {
    let numbers: Vec<String> = bytes.iter().map(u8::to_string).collect();
    format!("[{}]", numbers.join(" "))
}
