//! TLS for RPC: the server shows a certificate, the client shows none and logs in with a password.
//!
//! Clients have no legal names, and operators bring certificates of their own kind. So here the rules are those of the
//! web, with one addition: a client whose trust file holds the server's very certificate accepts it under any host name,
//! because comparing the certificate itself is stricter than comparing names. That is how the self-signed certificates
//! of [`RpcIdentity::self_signed`] are meant to be used.
//!
//! TLS between nodes is in [`crate::tls`].

use std::path::Path;
use std::sync::Arc;

use rcgen::{CertificateParams, DnType};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::server::{NoServerSessionStorage, VerifierBuilderError};
use rustls::{
    CertificateError as TlsCertificateError, ClientConfig, DigitallySignedStruct, RootCertStore,
    ServerConfig, SignatureScheme as TlsSignatureScheme,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime as TlsTime,
};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeroize::Zeroizing;

use crate::certificate::{UnixTime, pem};
use crate::key_store::{KeyStore, KeyStoreError};
use crate::tls::{Clock, PROTOCOL_VERSIONS, PROVIDER_IS_COMPLETE, provider, time_provider};

/// How long a generated certificate counts, in days.
pub const RPC_CERTIFICATE_DAYS: i64 = 3_650;

/// The most certificates of a trust file.
pub const MAX_TRUSTED_CERTIFICATES: usize = 64;

const ALIAS: &str = "rpcssl";

/// Why TLS for RPC could not be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RpcTlsError {
    /// A PEM text without what it should hold.
    #[error("the PEM text holds no readable {what}")]
    Pem {
        /// `certificate` or `private key`.
        what: &'static str,
    },
    /// A private key that TLS cannot use, or that is not the certificate's.
    #[error("the private key cannot be used for the certificate")]
    Key(#[source] rustls::Error),
    /// Nothing, or too much, to trust.
    #[error(
        "a trust file holds 1 to {MAX_TRUSTED_CERTIFICATES} certificates, this one has {count}"
    )]
    TrustCount {
        /// How many.
        count: usize,
    },
    /// A trusted certificate that TLS cannot use.
    #[error("certificate {position} of the trust file cannot be used")]
    Trust {
        /// Which one, from 1.
        position: usize,
        /// The reason.
        source: rustls::Error,
    },
    /// The trusted certificates cannot be used together.
    #[error("the certificates of the trust file cannot be used")]
    Verifier(#[source] VerifierBuilderError),
    /// A host name that no certificate can have, or a time beyond the calendar.
    #[error("no certificate could be made for these host names")]
    Generate(#[source] rcgen::Error),
    /// The validity is outside of the calendar.
    #[error("no certificate can be made at the time {0}")]
    Time(UnixTime),
    /// The key store could not be read or written.
    #[error("the RPC key store could not be used")]
    KeyStore(#[source] KeyStoreError),
}

/// The certificate and key with which the RPC server shows itself.
pub struct RpcIdentity {
    /// Leaf first.
    certificates: Vec<CertificateDer<'static>>,
    /// PKCS#8, PKCS#1 or SEC1.
    key: PrivateKeyDer<'static>,
}

impl RpcIdentity {
    /// A fresh P-256 key with a self-signed certificate for host names and addresses (at least one makes sense).
    ///
    /// # Errors
    /// [`RpcTlsError::Generate`] if a host name is none.
    pub fn self_signed(host_names: &[String], now: UnixTime) -> Result<Self, RpcTlsError> {
        let moment = |time: UnixTime| {
            OffsetDateTime::from_unix_timestamp(time.0).map_err(|_| RpcTlsError::Time(time))
        };
        let mut params =
            CertificateParams::new(host_names.to_vec()).map_err(RpcTlsError::Generate)?;
        params
            .distinguished_name
            .push(DnType::CommonName, "Quorate RPC");
        params.not_before = moment(now.plus_days(-crate::authority::BACKDATING_DAYS))?;
        params.not_after = moment(now.plus_days(RPC_CERTIFICATE_DAYS))?;
        let key = rcgen::KeyPair::generate().map_err(RpcTlsError::Generate)?;
        let certificate = params.self_signed(&key).map_err(RpcTlsError::Generate)?;
        Ok(Self {
            certificates: vec![certificate.der().clone()],
            key: PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der())),
        })
    }

    /// An identity from two PEM texts: the certificates, leaf first, and the private key.
    ///
    /// # Errors
    /// [`RpcTlsError::Pem`] if one of them holds something else.
    pub fn from_pem(certificates: &[u8], key: &[u8]) -> Result<Self, RpcTlsError> {
        Ok(Self {
            certificates: certificates_from_pem(certificates)?,
            key: PrivateKeyDer::from_pem_slice(key).map_err(|_| RpcTlsError::Pem {
                what: "private key",
            })?,
        })
    }

    /// Writes key and certificates into an encrypted key store.
    ///
    /// # Errors
    /// [`RpcTlsError::KeyStore`].
    pub fn save(&self, path: &Path, password: &str) -> Result<(), RpcTlsError> {
        let mut store = KeyStore::new();
        store.insert_key(
            ALIAS,
            Zeroizing::new(self.key.secret_der().to_vec()),
            self.certificates.iter().map(|c| c.to_vec()).collect(),
        );
        store.write(path, password).map_err(RpcTlsError::KeyStore)
    }

    /// Reads what [`RpcIdentity::save`] has written.
    ///
    /// # Errors
    /// [`RpcTlsError::KeyStore`] if the file cannot be used; [`RpcTlsError::Pem`] if it holds something else.
    pub fn load(path: &Path, password: &str) -> Result<Self, RpcTlsError> {
        let store = KeyStore::read(path, password).map_err(RpcTlsError::KeyStore)?;
        let missing = || {
            RpcTlsError::KeyStore(KeyStoreError::MissingEntry {
                path: path.to_owned(),
                alias: ALIAS.to_owned(),
            })
        };
        let key = store.private_key(ALIAS).ok_or_else(missing)?;
        let certificates = store.certificates(ALIAS).ok_or_else(missing)?;
        Ok(Self {
            key: PrivateKeyDer::try_from(key.to_vec()).map_err(|_| RpcTlsError::Pem {
                what: "private key",
            })?,
            certificates: certificates
                .iter()
                .map(|der| CertificateDer::from(der.clone()))
                .collect(),
        })
    }

    /// The certificates as PEM: what clients put into their trust file.
    #[must_use]
    pub fn certificates_pem(&self) -> String {
        let texts = self.certificates.iter().map(|der| pem("CERTIFICATE", der));
        texts.collect()
    }
}

impl std::fmt::Debug for RpcIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RpcIdentity")
            .field("certificates", &self.certificates.len())
            .finish_non_exhaustive()
    }
}

/// The configuration of an RPC listener. `protocols` are ALPN names, such as `h2`.
///
/// # Errors
/// [`RpcTlsError::Key`] if key and certificate do not fit together.
pub fn rpc_server_config(
    identity: &RpcIdentity,
    protocols: &[&[u8]],
    clock: Clock,
) -> Result<Arc<ServerConfig>, RpcTlsError> {
    let key = any_supported_type(&identity.key).map_err(RpcTlsError::Key)?;
    let certified = rustls::sign::CertifiedKey::new(identity.certificates.clone(), key);
    certified.keys_match().map_err(RpcTlsError::Key)?;
    let mut config = ServerConfig::builder_with_details(provider(), time_provider(clock))
        .with_protocol_versions(PROTOCOL_VERSIONS)
        .expect(PROVIDER_IS_COMPLETE)
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(certified)));
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Arc::new(config))
}

/// The configuration of an RPC client that trusts the certificates of a PEM text: the server's own, or its authority's.
///
/// # Errors
/// [`RpcTlsError`] if the text holds no certificate, too many, or one that TLS cannot use.
pub fn rpc_client_config(
    trust_pem: &[u8],
    protocols: &[&[u8]],
    clock: Clock,
) -> Result<Arc<ClientConfig>, RpcTlsError> {
    let trusted = certificates_from_pem(trust_pem)?;
    if trusted.len() > MAX_TRUSTED_CERTIFICATES {
        return Err(RpcTlsError::TrustCount {
            count: trusted.len(),
        });
    }
    let mut roots = RootCertStore::empty();
    for (index, certificate) in trusted.iter().enumerate() {
        roots
            .add(certificate.clone())
            .map_err(|source| RpcTlsError::Trust {
                position: index + 1,
                source,
            })?;
    }
    let provider = provider();
    let web = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(RpcTlsError::Verifier)?;
    let mut config = ClientConfig::builder_with_details(provider, time_provider(clock))
        .with_protocol_versions(PROTOCOL_VERSIONS)
        .expect(PROVIDER_IS_COMPLETE)
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedOrWeb { trusted, web }))
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    Ok(Arc::new(config))
}

fn certificates_from_pem(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, RpcTlsError> {
    let what = "certificate";
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(RpcTlsError::Pem { what }),
    }
}

/// Accepts a trusted certificate itself, within its time, and otherwise what the rules of the web accept.
#[derive(Debug)]
struct PinnedOrWeb {
    trusted: Vec<CertificateDer<'static>>,
    web: Arc<WebPkiServerVerifier>,
}

impl ServerCertVerifier for PinnedOrWeb {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: TlsTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if !self.trusted.contains(end_entity) {
            return self.web.verify_server_cert(
                end_entity,
                intermediates,
                server_name,
                ocsp_response,
                now,
            );
        }
        let refused = |reason| Err(rustls::Error::InvalidCertificate(reason));
        let Ok((_, parsed)) = X509Certificate::from_der(end_entity) else {
            return refused(TlsCertificateError::BadEncoding);
        };
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        if now < parsed.validity().not_before.timestamp() {
            return refused(TlsCertificateError::NotValidYet);
        }
        if now > parsed.validity().not_after.timestamp() {
            return refused(TlsCertificateError::Expired);
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.web
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.web
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<TlsSignatureScheme> {
        self.web.supported_verify_schemes()
    }
}
