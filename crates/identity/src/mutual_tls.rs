//! TLS as Fabric's components speak it: certificates and keys in PEM files, pools of roots that change at run time.
//!
//! The rules for certificates are those of Go's library ([`crate::x509`]), for that is what the other side applies. Whoever
//! refuses a certificate alerts `bad_certificate`, whatever the reason: operators' scripts look for its text on the other
//! side. The reason itself is kept for our own log ([`Refusal`]), and [`failure_text`] says in Go's words how a handshake
//! failed.
//!
//! Start with [`ServerTls`] and [`ClientTls`]. A configuration is made for each handshake, which costs little: so changed
//! roots count at once, and every refusal is told apart. Sessions are never resumed, because a resumed session would skip
//! the rules. Sockets are the callers' business.

mod trust;

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use rustls::client::Resumption;
use rustls::client::danger::{ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{AlertDescription, CertificateError, ClientConfig, DistinguishedName, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime as TlsTime};

use crate::certificate::UnixTime;
use crate::handshake::judge_handshake_signatures;
use crate::tls::{Clock, PROTOCOL_VERSIONS, PROVIDER_IS_COMPLETE, provider, time_provider};
use crate::x509::{Certificate, Pool};

pub use trust::MAX_PEER_CERTIFICATES;
use trust::Purpose;

/// The most certificates of one PEM text.
pub const MAX_PEM_CERTIFICATES: usize = 256;

/// Why TLS could not be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MutualTlsError {
    /// A text that does not hold what it should.
    #[error("cannot use the text that should hold {what}: {reason}")]
    Unreadable {
        /// What it should hold.
        what: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// A private key that belongs to another certificate.
    #[error("the private key is not that of the certificate; give the two files of one pair")]
    ForeignKey,
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
    /// Reads PEM texts: certificates, our own first, and a key in PKCS#8, SEC1 or PKCS#1.
    ///
    /// # Errors
    /// [`MutualTlsError`] if either cannot be read or the key is not that of the first certificate.
    pub fn from_pem(certificates: &[u8], key: &[u8]) -> Result<Self, MutualTlsError> {
        let chain = certificates_of(certificates)?;
        let key =
            PrivateKeyDer::from_pem_slice(key).map_err(|error| MutualTlsError::Unreadable {
                what: "a private key",
                reason: error.to_string(),
            })?;
        let certified = CertifiedKey::from_der(chain, key, &provider()).map_err(|error| {
            if matches!(error, rustls::Error::InconsistentKeys(_)) {
                MutualTlsError::ForeignKey
            } else {
                MutualTlsError::Unreadable {
                    what: "a certificate and its private key",
                    reason: error.to_string(),
                }
            }
        })?;
        Ok(Self {
            certified: Arc::new(certified),
        })
    }

    /// The DER form of our own certificate.
    #[must_use]
    pub fn certificate(&self) -> &[u8] {
        self.certified.cert.first().map_or(&[], |der| der.as_ref())
    }
}

/// All certificates of a PEM text; other kinds of blocks are skipped.
fn certificates_of(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, MutualTlsError> {
    let unreadable = |reason: String| MutualTlsError::Unreadable {
        what: "certificates",
        reason,
    };
    let mut found = Vec::new();
    for block in CertificateDer::pem_slice_iter(pem) {
        let der = block.map_err(|error| unreadable(error.to_string()))?;
        if found.len() == MAX_PEM_CERTIFICATES {
            return Err(unreadable(format!(
                "there are more than {MAX_PEM_CERTIFICATES}"
            )));
        }
        found.push(der);
    }
    if found.is_empty() {
        return Err(unreadable("there is no PEM block CERTIFICATE".to_owned()));
    }
    Ok(found)
}

/// Trusted CA certificates. Clones share the pool: what is replaced counts for every later handshake.
#[derive(Debug, Clone, Default)]
pub struct Roots {
    pool: Arc<RwLock<Arc<Pool>>>,
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

    /// The certificates that are trusted now.
    #[must_use]
    pub fn certificates(&self) -> Vec<Certificate> {
        let pool = self.pool.read().unwrap_or_else(PoisonError::into_inner);
        pool.certificates().to_vec()
    }

    /// Replaces the pool; on an error the former one stays.
    ///
    /// # Errors
    /// As [`Roots::from_pem`].
    pub fn replace<'a>(
        &self,
        pems: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<(), MutualTlsError> {
        let mut pool = Pool::default();
        for pem in pems {
            for der in certificates_of(pem)? {
                let certificate =
                    Certificate::from_der(&der).map_err(|error| MutualTlsError::Unreadable {
                        what: "a CA certificate",
                        reason: error.to_string(),
                    })?;
                pool.add(certificate);
            }
        }
        self.set(pool);
        Ok(())
    }

    /// Replaces the pool.
    pub fn set(&self, pool: Pool) {
        *self.pool.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(pool);
    }

    fn current(&self) -> Arc<Pool> {
        self.pool
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl From<Pool> for Roots {
    fn from(pool: Pool) -> Self {
        let roots = Self::default();
        roots.set(pool);
        roots
    }
}

/// What a server asks of its clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuth {
    /// No certificate is asked for.
    None,
    /// A certificate is asked for; whoever shows one must own its key, but the certificate itself is not judged.
    /// Fabric's gRPC servers do this, and recognise orderers by the key.
    Requested,
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
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Keeps the reason, and gives the error whose alert is `bad_certificate`.
    fn keep(&self, reason: String) -> rustls::Error {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
        rustls::Error::InvalidCertificate(CertificateError::BadEncoding)
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
    /// By what time certificates are judged; see [`shifted`].
    pub clock: Clock,
    /// Application protocols, for instance `h2`; none are negotiated when empty.
    pub alpn: Vec<Vec<u8>>,
}

impl ServerTls {
    /// The configuration for one handshake, and where to look for the reason if it fails.
    #[must_use]
    pub fn begin(&self) -> (Arc<ServerConfig>, Refusal) {
        let provider = provider();
        let refusal = Refusal::default();
        let builder =
            ServerConfig::builder_with_details(provider.clone(), time_provider(self.clock.clone()))
                .with_protocol_versions(PROTOCOL_VERSIONS)
                .expect(PROVIDER_IS_COMPLETE);
        let builder = match self.client_auth {
            ClientAuth::None => builder.with_no_client_auth(),
            auth => builder.with_client_cert_verifier(Arc::new(Verifier {
                roots: self.roots.clone(),
                provider,
                mandatory: auth == ClientAuth::Required,
                judges: auth != ClientAuth::Requested,
                pinned: Vec::new(),
                refusal: refusal.clone(),
            })),
        };
        let resolver = SingleCertAndKey::from(CertifiedKey::clone(&self.credentials.certified));
        let mut config = builder.with_cert_resolver(Arc::new(resolver));
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.alpn_protocols.clone_from(&self.alpn);
        (Arc::new(config), refusal)
    }

    /// A configuration for any number of handshakes. It follows changes of the roots, but keeps no reasons apart.
    #[must_use]
    pub fn config(&self) -> Arc<ServerConfig> {
        self.begin().0
    }
}

/// The client's side.
#[derive(Clone)]
pub struct ClientTls {
    /// What we show when asked.
    pub credentials: Option<Credentials>,
    /// By whom servers' certificates must be issued.
    pub roots: Roots,
    /// By what time certificates are judged; see [`shifted`].
    pub clock: Clock,
    /// Application protocols, for instance `h2`; none are offered when empty.
    pub alpn: Vec<Vec<u8>>,
}

impl ClientTls {
    /// The configuration for one handshake, and where to look for the reason if it fails. If any are `pinned`, the server
    /// must also own one of these public keys (see [`public_key`]).
    #[must_use]
    pub fn begin(&self, pinned: &[Vec<u8>]) -> (Arc<ClientConfig>, Refusal) {
        let provider = provider();
        let refusal = Refusal::default();
        let verifier = Verifier {
            roots: self.roots.clone(),
            provider: provider.clone(),
            mandatory: true,
            judges: true,
            pinned: pinned.to_vec(),
            refusal: refusal.clone(),
        };
        let builder =
            ClientConfig::builder_with_details(provider, time_provider(self.clock.clone()))
                .with_protocol_versions(PROTOCOL_VERSIONS)
                .expect(PROVIDER_IS_COMPLETE)
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match &self.credentials {
            Some(credentials) => builder.with_client_cert_resolver(Arc::new(
                SingleCertAndKey::from(CertifiedKey::clone(&credentials.certified)),
            )),
            None => builder.with_no_client_auth(),
        };
        config.resumption = Resumption::disabled();
        config.alpn_protocols.clone_from(&self.alpn);
        (Arc::new(config), refusal)
    }
}

/// The clock moved back by `shift` (Fabric's `TLSHandshakeTimeShift`), so that expired certificates count again.
#[must_use]
pub fn shifted(clock: Clock, shift: Duration) -> Clock {
    let seconds = i64::try_from(shift.as_secs()).unwrap_or(i64::MAX);
    Arc::new(move || UnixTime(clock().0.saturating_sub(seconds)))
}

/// What is worth knowing of a peer's certificate once the handshake has accepted it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFacts {
    /// The SubjectPublicKeyInfo (DER): what orderers are recognised by.
    pub public_key: Vec<u8>,
    /// The subject's common name, empty if there is none.
    pub common_name: String,
    /// The last second of its validity.
    pub not_after: UnixTime,
}

impl CertificateFacts {
    /// Reads a certificate given as PEM (its first block) or DER. It is not verified.
    ///
    /// # Errors
    /// [`MutualTlsError`] if it is no certificate.
    pub fn read(certificate: &[u8]) -> Result<Self, MutualTlsError> {
        let unreadable = |reason: String| MutualTlsError::Unreadable {
            what: "a certificate",
            reason,
        };
        let der = match CertificateDer::from_pem_slice(certificate) {
            Ok(der) => der,
            Err(_) => CertificateDer::from(certificate),
        };
        let parsed = Certificate::from_der(&der).map_err(|error| unreadable(error.to_string()))?;
        Ok(Self {
            public_key: parsed.public_key().spki_der().to_vec(),
            common_name: parsed.common_name().to_owned(),
            not_after: parsed.not_after(),
        })
    }
}

/// The SubjectPublicKeyInfo (DER) of a certificate given as PEM or DER: what orderers are recognised by.
///
/// # Errors
/// [`MutualTlsError`] if it is no certificate.
pub fn public_key(certificate: &[u8]) -> Result<Vec<u8>, MutualTlsError> {
    CertificateFacts::read(certificate).map(|facts| facts.public_key)
}

/// Whether clients that connect to `host`, a name or an address, take this certificate for it.
///
/// # Errors
/// The reason, in Go's words.
pub fn check_server_name(certificate: &Certificate, host: &str) -> Result<(), String> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let name = ServerName::try_from(host).map_err(|error| format!("{host}: {error}"))?;
    trust::check_name(certificate, &name)
}

/// How a handshake failed, in Go's words, as operators know them from Fabric's logs.
#[must_use]
pub fn failure_text(error: &io::Error, refusal: &Refusal) -> String {
    if let Some(reason) = refusal.reason() {
        return format!("tls: failed to verify certificate: {reason}");
    }
    let Some(error) = error
        .get_ref()
        .and_then(|cause| cause.downcast_ref::<rustls::Error>())
    else {
        return match error.kind() {
            io::ErrorKind::UnexpectedEof => "EOF".to_owned(),
            io::ErrorKind::ConnectionReset => "read: connection reset by peer".to_owned(),
            _ => error.to_string(),
        };
    };
    match error {
        rustls::Error::AlertReceived(alert) => format!("remote error: tls: {}", alert_text(*alert)),
        rustls::Error::NoCertificatesPresented => {
            "tls: client didn't provide a certificate".to_owned()
        }
        rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType) => {
            "tls: first record does not look like a TLS handshake".to_owned()
        }
        other => format!("tls: {other}"),
    }
}

fn alert_text(alert: AlertDescription) -> String {
    let text = match alert {
        AlertDescription::CloseNotify => "close notify",
        AlertDescription::UnexpectedMessage => "unexpected message",
        AlertDescription::BadRecordMac => "bad record MAC",
        AlertDescription::RecordOverflow => "record overflow",
        AlertDescription::HandshakeFailure => "handshake failure",
        AlertDescription::BadCertificate => "bad certificate",
        AlertDescription::UnsupportedCertificate => "unsupported certificate",
        AlertDescription::CertificateRevoked => "revoked certificate",
        AlertDescription::CertificateExpired => "expired certificate",
        AlertDescription::CertificateUnknown => "unknown certificate",
        AlertDescription::IllegalParameter => "illegal parameter",
        AlertDescription::UnknownCA => "unknown certificate authority",
        AlertDescription::AccessDenied => "access denied",
        AlertDescription::DecodeError => "error decoding message",
        AlertDescription::DecryptError => "error decrypting message",
        AlertDescription::ProtocolVersion => "protocol version not supported",
        AlertDescription::InsufficientSecurity => "insufficient security level",
        AlertDescription::InternalError => "internal error",
        AlertDescription::UserCanceled => "user canceled",
        AlertDescription::NoRenegotiation => "no renegotiation",
        AlertDescription::MissingExtension => "missing extension",
        AlertDescription::UnsupportedExtension => "unsupported extension",
        AlertDescription::UnrecognisedName => "unrecognized name",
        AlertDescription::CertificateRequired => "certificate required",
        AlertDescription::NoApplicationProtocol => "no application protocol",
        other => return format!("alert({})", u8::from(other)),
    };
    text.to_owned()
}

fn key_of(der: &CertificateDer<'_>) -> Result<Vec<u8>, String> {
    match Certificate::from_der(der) {
        Ok(certificate) => Ok(certificate.public_key().spki_der().to_vec()),
        Err(error) => Err(error.to_string()),
    }
}

/// Both sides' verifier.
struct Verifier {
    roots: Roots,
    provider: Arc<CryptoProvider>,
    mandatory: bool,
    judges: bool,
    pinned: Vec<Vec<u8>>,
    refusal: Refusal,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier")
            .field("mandatory", &self.mandatory)
            .finish_non_exhaustive()
    }
}

impl Verifier {
    fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        purpose: Purpose<'_>,
        now: TlsTime,
    ) -> Result<(), rustls::Error> {
        let now = UnixTime(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
        trust::judge(&self.roots.current(), leaf, others, purpose, now)
            .and_then(|()| self.check_pin(leaf))
            .map_err(|reason| self.refusal.keep(reason))
    }

    fn check_pin(&self, leaf: &CertificateDer<'_>) -> Result<(), String> {
        if self.pinned.is_empty() || self.pinned.contains(&key_of(leaf)?) {
            return Ok(());
        }
        Err(
            "certificate presented by the server doesn't match the certificate of the channel's configuration"
                .to_owned(),
        )
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: TlsTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.judge(end_entity, intermediates, Purpose::Server(server_name), now)
            .map(|()| ServerCertVerified::assertion())
    }

    judge_handshake_signatures!(provider.signature_verification_algorithms);
}

impl ClientCertVerifier for Verifier {
    /// No hints: clients would take them as "show nothing else", and pools change.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: TlsTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        if !self.judges {
            return match key_of(end_entity) {
                Ok(_) => Ok(ClientCertVerified::assertion()),
                Err(reason) => Err(self.refusal.keep(reason)),
            };
        }
        self.judge(end_entity, intermediates, Purpose::Client, now)
            .map(|()| ClientCertVerified::assertion())
    }

    judge_handshake_signatures!(provider.signature_verification_algorithms);
}
