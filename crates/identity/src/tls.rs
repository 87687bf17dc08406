//! TLS between nodes: mutual authentication in which legal names, not host names, are verified.
//!
//! Both sides show a certificate of role TLS; both check the other's path with [`crate::path::validate_path`]. The client
//! also checks that the server is one of the parties that it wanted, and says whom it wants by the hash of the name
//! ([`server_name`]), so that one address can serve several names. Certificates carry no host names: addresses change,
//! load balancers stand in between, and neither proves anything.
//!
//! Start with [`tls_server_config`] and [`tls_client_config`]. Sessions are never resumed: a resumed session would skip
//! the path check, and connections between nodes live long. The configurations use the provider `aws-lc-rs` explicitly
//! and need no process-wide default. Connections and sockets are the business of the callers; TLS for RPC clients, which
//! have no legal names, that of [`crate::rpc_tls`].

use std::fmt;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;
use rustls::{
    CertificateError as TlsCertificateError, ClientConfig, DigitallySignedStruct,
    DistinguishedName, OtherError, ServerConfig, SignatureScheme as TlsSignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime as TlsTime};

use crate::authority::Identity;
use crate::certificate::{
    CertRole, Certificate, CertificateError, CertificatePath, MAX_PATH_CERTIFICATES, UnixTime,
};
use crate::name::X500Name;
use crate::node_keys::NodeKeys;
use crate::path::{PathError, validate_path};

/// Where the time comes from by which certificates are judged during handshakes.
pub type Clock = Arc<dyn Fn() -> UnixTime + Send + Sync>;

/// Why a peer was refused. Handshake errors of `rustls` carry it inside [`OtherError`]; see [`peer_refusal`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PeerError {
    /// The peer showed no certificate.
    #[error("the peer showed no certificate; connections between nodes need one of role TLS")]
    NoCertificate,
    /// A certificate of the peer cannot be used. Transparent, like the next: `rustls` shows no sources.
    #[error(transparent)]
    Certificate(CertificateError),
    /// The peer's path proves nothing to us.
    #[error(transparent)]
    Path(PathError),
    /// The peer is somebody else than wanted.
    #[error("the peer is {found}, but {} was expected; check the address", names(.expected))]
    UnexpectedName {
        /// Who answered.
        found: X500Name,
        /// Who was wanted: any of these.
        expected: Vec<X500Name>,
    },
    /// The peer's certificate is not for connections.
    #[error("the peer {name} showed a certificate that is not for TLS")]
    NotTls {
        /// Whose certificate.
        name: X500Name,
    },
}

fn names(names: &[X500Name]) -> String {
    let quoted: Vec<_> = names.iter().map(|name| format!("\"{name}\"")).collect();
    quoted.join(" or ")
}

/// What a client must give as the server's name when it connects to the party `name`: a host name made of its hash.
#[must_use]
pub fn server_name(name: &X500Name) -> ServerName<'static> {
    ServerName::try_from(name.sni_hash()).expect("hexadecimal digits and a domain are a host name")
}

/// The configuration of a node's listener: TLS 1.3 and 1.2, the client's certificate required.
///
/// A client that asks (by server name indication) for a name that the node does not serve is turned away; one that asks
/// for none gets the node's certificate.
#[must_use]
pub fn tls_server_config(keys: &NodeKeys, clock: Clock) -> Arc<ServerConfig> {
    let provider = provider();
    let verifier = Arc::new(PathVerifier::new(keys, &provider, None));
    let resolver = Arc::new(ServedNames {
        hosts: keys.served_names().iter().map(X500Name::sni_hash).collect(),
        certified: Arc::new(certified_key(keys.tls())),
    });
    let mut config = ServerConfig::builder_with_details(provider, time_provider(clock))
        .with_protocol_versions(PROTOCOL_VERSIONS)
        .expect(PROVIDER_IS_COMPLETE)
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(resolver);
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Arc::new(config)
}

/// The configuration for connecting to a party that may go by any of the names in `expected` (a node's own and its
/// notary service's). Connect with [`server_name`] of the wanted one.
#[must_use]
pub fn tls_client_config(
    keys: &NodeKeys,
    expected: &[X500Name],
    clock: Clock,
) -> Arc<ClientConfig> {
    let provider = provider();
    let verifier = Arc::new(PathVerifier::new(keys, &provider, Some(expected.to_vec())));
    let certified = certified_key(keys.tls());
    let mut config = ClientConfig::builder_with_details(provider, time_provider(clock))
        .with_protocol_versions(PROTOCOL_VERSIONS)
        .expect(PROVIDER_IS_COMPLETE)
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(certified)));
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

/// The legal name of the peer of an established connection, from the certificates that it showed.
///
/// The handshake has validated them; this reads the name only.
///
/// # Errors
/// [`PeerError`] if there is no certificate of role TLS, which a handshake with our configurations does not let happen.
pub fn peer_name(certificates: &[CertificateDer<'_>]) -> Result<X500Name, PeerError> {
    let leaf = certificates.first().ok_or(PeerError::NoCertificate)?;
    let leaf = Certificate::from_der(leaf).map_err(PeerError::Certificate)?;
    if leaf.role() != Some(CertRole::Tls) {
        return Err(PeerError::NotTls {
            name: leaf.subject().clone(),
        });
    }
    Ok(leaf.subject().clone())
}

/// Our own reason for refusing a peer in a handshake, if that is why it failed.
#[must_use]
pub fn peer_refusal(error: &rustls::Error) -> Option<&PeerError> {
    match error {
        rustls::Error::InvalidCertificate(TlsCertificateError::Other(OtherError(cause))) => {
            cause.downcast_ref()
        }
        _ => None,
    }
}

pub(crate) const PROTOCOL_VERSIONS: &[&rustls::SupportedProtocolVersion] =
    &[&rustls::version::TLS13, &rustls::version::TLS12];

pub(crate) const PROVIDER_IS_COMPLETE: &str = "the provider supports TLS 1.3 and 1.2";

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

pub(crate) fn time_provider(clock: Clock) -> Arc<dyn TimeProvider> {
    Arc::new(ClockAdapter(clock))
}

struct ClockAdapter(Clock);

impl TimeProvider for ClockAdapter {
    fn current_time(&self) -> Option<TlsTime> {
        let seconds = u64::try_from((self.0)().0).ok()?;
        Some(TlsTime::since_unix_epoch(std::time::Duration::from_secs(
            seconds,
        )))
    }
}

impl fmt::Debug for ClockAdapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

fn certified_key(identity: &Identity) -> CertifiedKey {
    let key = identity.key().for_tls();
    let path = identity.path().certificates();
    CertifiedKey::new(path.iter().map(|c| c.der().clone()).collect(), key)
}

/// Chooses the node's certificate for the names that it serves.
#[derive(Debug)]
struct ServedNames {
    hosts: Vec<String>,
    certified: Arc<CertifiedKey>,
}

impl ResolvesServerCert for ServedNames {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let served = hello.server_name().is_none_or(|wanted| {
            self.hosts
                .iter()
                .any(|host| host.eq_ignore_ascii_case(wanted))
        });
        served.then(|| self.certified.clone())
    }
}

/// Both sides' verifier: a path of role TLS to our root; on the client's side also the name.
#[derive(Debug)]
struct PathVerifier {
    trust_root: Certificate,
    /// `None` accepts every member of the network.
    expected: Option<Vec<X500Name>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl PathVerifier {
    fn new(keys: &NodeKeys, provider: &CryptoProvider, expected: Option<Vec<X500Name>>) -> Self {
        Self {
            trust_root: keys.trust_root().clone(),
            expected,
            algorithms: provider.signature_verification_algorithms,
        }
    }

    fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: TlsTime,
    ) -> Result<(), rustls::Error> {
        self.check(end_entity, intermediates, now).map_err(|error| {
            rustls::Error::InvalidCertificate(TlsCertificateError::Other(OtherError(Arc::new(
                error,
            ))))
        })
    }

    fn check(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: TlsTime,
    ) -> Result<(), PeerError> {
        let length = intermediates.len().saturating_add(1);
        if length > MAX_PATH_CERTIFICATES {
            return Err(PeerError::Certificate(CertificateError::PathLength {
                length,
            }));
        }
        let ders: Vec<&[u8]> = std::iter::once(end_entity)
            .chain(intermediates)
            .map(|der| der.as_ref())
            .collect();
        let path = CertificatePath::from_ders(&ders).map_err(PeerError::Certificate)?;
        let now = UnixTime(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
        let found =
            validate_path(&path, &self.trust_root, now, CertRole::Tls).map_err(PeerError::Path)?;
        match &self.expected {
            Some(expected) if !expected.contains(&found) => Err(PeerError::UnexpectedName {
                found,
                expected: expected.clone(),
            }),
            _ => Ok(()),
        }
    }
}

impl ServerCertVerifier for PathVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        // A host name made of a hash; the name itself is compared instead.
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: TlsTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<TlsSignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for PathVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: TlsTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<TlsSignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
