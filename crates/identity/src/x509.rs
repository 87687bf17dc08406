//! X.509 as Fabric meets it: certificates of any organisation's making, their chains, and the keys in them.
//!
//! The rest of this crate reads certificates of one network with one set of rules ([`crate::certificate`]). Fabric's
//! organisations bring their own: any subject, several roots, intermediates, revocation lists, and keys that we can only
//! name. Nothing here decides who is a member of what; that is the business of whoever holds the pools. Rules and texts
//! are those of Go's `crypto/x509`, because Fabric's decisions rest on it and its words reach clients.
//!
//! Reading is strict DER: a certificate is recognised by its bytes, so it must not have two forms that both count.
//!
//! Where to start reading: [`Certificate`] and [`PublicKey`] are what was read, [`chains`] is how trust is established,
//! [`SigningKey`] is the other half of a key.

mod certificate;
mod chain;
mod extensions;
mod key;
mod name;
pub mod pem;
mod reader;
mod revocation;

pub use certificate::{Certificate, SignatureAlgorithm};
pub use chain::{ChainOptions, ExtendedUsage, Pool, chains, name_constraints_without_names};
pub use extensions::KeyUsage;
pub use key::{Curve, KeyKind, PublicKey, SigningKey};
pub use revocation::RevocationList;

use crate::certificate::UnixTime;

/// The largest certificate, revocation list or key that is read, in bytes.
pub const MAX_DER_BYTES: usize = 1 << 20;

/// Why bytes are not a certificate, a key or a list, or why a certificate is not believed. The texts are Go's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum X509Error {
    /// There is no PEM block where one was expected.
    #[error("no PEM block found")]
    NoPem,
    /// The bytes are not what they should be.
    #[error("x509: malformed {0}")]
    Malformed(&'static str),
    /// The bytes go on after what was read.
    #[error("x509: trailing data")]
    TrailingData,
    /// A key on a curve that we do not have.
    #[error("x509: unsupported elliptic curve")]
    UnsupportedCurve,
    /// A private key that cannot sign for Fabric.
    #[error("the private key is neither PKCS#8 nor SEC 1, or not ECDSA over P-256, P-384 or P-521")]
    UnsupportedPrivateKey,
    /// A private key that is encrypted.
    #[error(
        "the private key is encrypted: store it without a password and protect the file instead"
    )]
    EncryptedPrivateKey,
    /// A signature that is not well formed.
    #[error("{0}")]
    MalformedSignature(&'static str),
    /// An ECDSA signature with the larger of its two possible S.
    #[error("invalid S: must be smaller than half the order of the curve")]
    HighS,
    /// A signature of another message or by another key.
    #[error("x509: {0} verification failure")]
    SignatureMismatch(&'static str),
    /// A signature or key of an algorithm that is not accepted.
    #[error("x509: cannot verify signature: algorithm unimplemented")]
    UnsupportedAlgorithm,
    /// A signature with SHA-1.
    #[error("x509: cannot verify signature: insecure algorithm {0}")]
    InsecureAlgorithm(&'static str),
    /// The issuer is no authority.
    #[error("x509: invalid signature: parent certificate cannot sign this kind of certificate")]
    ConstraintSignature,
    /// Outside of the certificate's validity.
    #[error(
        "x509: certificate has expired or is not yet valid: current time {now} is {relation} {limit}"
    )]
    Expired {
        /// The time at which it was judged.
        now: UnixTime,
        /// `before` or `after`.
        relation: &'static str,
        /// The end of its validity that was missed.
        limit: UnixTime,
    },
    /// No chain leads to a root.
    #[error("x509: certificate signed by unknown authority{0}")]
    UnknownAuthority(String),
    /// An intermediate that is no authority.
    #[error("x509: certificate is not authorized to sign other certificates")]
    NotAuthorizedToSign,
    /// A chain longer than an authority allows.
    #[error("x509: too many intermediates for path length constraint")]
    TooManyIntermediates,
    /// Extended key usages that do not fit.
    #[error("x509: certificate specifies an incompatible key usage")]
    IncompatibleUsage,
    /// A critical extension that we do not understand.
    #[error("x509: unhandled critical extension")]
    UnhandledCriticalExtension,
    /// A name that an authority may not certify.
    #[error(
        "x509: a root or intermediate certificate is not authorized to sign for this name: {0}"
    )]
    NameNotPermitted(String),
    /// An authority with name constraints and a certificate with a host name in its subject only.
    #[error("x509: issuer has name constraints but leaf doesn't have a SAN extension")]
    NameConstraintsWithoutNames,
    /// So many candidates that somebody means to keep us busy.
    #[error("x509: signature check attempts limit reached while verifying certificate chain")]
    SignatureCheckLimit,
}
