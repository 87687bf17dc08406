//! TLS between nodes: mutual authentication in which legal names, not host names, are verified.
//!
//! Both sides show a certificate of role TLS; both check the other's path with [`crate::path::validate_path`]. The client
//! also checks that the server is one of the parties that it wanted, and says whom it wants by the hash of the name
//! ([`server_name`]), so that one address can serve several names. Certificates carry no host names: addresses change,
//! load balancers stand in between, and neither proves anything.
//!
//! Start with [`TlsParty`], or with [`tls_server_config`] and [`tls_client_config`] for a node. Sessions are never resumed: a resumed session would skip
//! the path check, and connections between nodes live long. The configurations use the provider `aws-lc-rs` explicitly
//! and need no process-wide default. Connections and sockets are the business of the callers; TLS for RPC clients, which
//! have no legal names, that of [`crate::rpc_tls`].

use std::fmt;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;
use rustls::{
    CertificateError as TlsCertificateError, ClientConfig, DistinguishedName, OtherError,
    ServerConfig,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime as TlsTime};

use crate::authority::Identity;
use crate::certificate::{
    CertRole, Certificate, CertificateError, CertificatePath, MAX_PATH_CERTIFICATES, UnixTime,
};
use crate::handshake::judge_handshake_signatures;
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

/// What one side of such a connection shows, and whom it believes.
///
/// A node's is made of its keys. Others have a key of their own and a root that is valid between a few processes only,
/// or show a node's certificates and have that node sign.
#[derive(Debug, Clone)]
pub struct TlsParty {
    identity: Identity,
    trust_root: Certificate,
    served: Vec<X500Name>,
    versions: &'static [&'static rustls::SupportedProtocolVersion],
}

impl TlsParty {
    /// Shows `identity` to whoever asks, under whatever name, and believes in `trust_root`.
    #[must_use]
    pub fn new(identity: Identity, trust_root: Certificate) -> Self {
        Self {
            identity,
            trust_root,
            served: Vec::new(),
            versions: PROTOCOL_VERSIONS,
        }
    }

    /// A node's: its TLS key, its network's root, the names that it serves.
    #[must_use]
    pub fn of_node(keys: &NodeKeys) -> Self {
        Self::new(keys.tls().clone(), keys.trust_root().clone()).serving(keys.served_names())
    }

    /// Turns away clients that ask (by server name indication) for another name than these. Without any, all names are
    /// served.
    #[must_use]
    pub fn serving(mut self, names: Vec<X500Name>) -> Self {
        self.served = names;
        self
    }

    /// Speaks TLS 1.3 only. There, what is signed says what it is signed for; see [`certificate_verify`].
    #[must_use]
    pub fn newest_only(mut self) -> Self {
        self.versions = NEWEST_VERSION;
        self
    }

    /// What is shown.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The root that is believed in.
    #[must_use]
    pub fn trust_root(&self) -> &Certificate {
        &self.trust_root
    }

    /// The names that are served; all if there are none.
    #[must_use]
    pub fn served(&self) -> &[X500Name] {
        &self.served
    }

    /// The configuration of a listener: the client's certificate is required.
    #[must_use]
    pub fn server_config(&self, clock: Clock) -> Arc<ServerConfig> {
        let provider = provider();
        let verifier = Arc::new(PathVerifier::new(&self.trust_root, &provider, None));
        let resolver = Arc::new(ServedNames {
            hosts: self.served.iter().map(X500Name::sni_hash).collect(),
            certified: Arc::new(certified_key(&self.identity)),
        });
        let mut config = ServerConfig::builder_with_details(provider, time_provider(clock))
            .with_protocol_versions(self.versions)
            .expect(PROVIDER_IS_COMPLETE)
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(resolver);
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Arc::new(config)
    }

    /// The configuration for connecting to a party that may go by any of the names in `expected`, or to any that our
    /// root vouches for if that is `None`. Connect with [`server_name`] of the wanted one.
    #[must_use]
    pub fn client_config(&self, expected: Option<&[X500Name]>, clock: Clock) -> Arc<ClientConfig> {
        let provider = provider();
        let expected = expected.map(<[X500Name]>::to_vec);
        let verifier = Arc::new(PathVerifier::new(&self.trust_root, &provider, expected));
        let certified = certified_key(&self.identity);
        let mut config = ClientConfig::builder_with_details(provider, time_provider(clock))
            .with_protocol_versions(self.versions)
            .expect(PROVIDER_IS_COMPLETE)
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(certified)));
        config.resumption = Resumption::disabled();
        Arc::new(config)
    }
}

/// Who is meant by certificates (DER, leaf first) that somebody else has seen in a handshake, judged as in one of our
/// own.
///
/// # Errors
/// [`PeerError`] if they prove nothing at `now` to who trusts `root`.
pub fn judge_path(
    root: &Certificate,
    certificates: &[impl AsRef<[u8]>],
    now: UnixTime,
) -> Result<X500Name, PeerError> {
    let length = certificates.len();
    if length == 0 {
        return Err(PeerError::NoCertificate);
    }
    if length > MAX_PATH_CERTIFICATES {
        return Err(PeerError::Certificate(CertificateError::PathLength {
            length,
        }));
    }
    let path = CertificatePath::from_ders(certificates).map_err(PeerError::Certificate)?;
    validate_path(&path, root, now, CertRole::Tls).map_err(PeerError::Path)
}

/// The configuration of a node's listener: TLS 1.3 and 1.2, the client's certificate required.
///
/// A client that asks (by server name indication) for a name that the node does not serve is turned away; one that asks
/// for none gets the node's certificate.
#[must_use]
pub fn tls_server_config(keys: &NodeKeys, clock: Clock) -> Arc<ServerConfig> {
    TlsParty::of_node(keys).server_config(clock)
}

/// The configuration for connecting to a party that may go by any of the names in `expected` (a node's own and its
/// notary service's). Connect with [`server_name`] of the wanted one.
#[must_use]
pub fn tls_client_config(
    keys: &NodeKeys,
    expected: &[X500Name],
    clock: Clock,
) -> Arc<ClientConfig> {
    TlsParty::of_node(keys).client_config(Some(expected), clock)
}

/// A side of a handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Connects.
    Client,
    /// Accepts.
    Server,
}

/// The side that signs `message` in a handshake of TLS 1.3 (RFC 8446, section 4.4.3); `None` if no handshake has it
/// signed.
///
/// Whoever signs for handshakes of another process looks here first: a signature over such a message proves possession
/// of the key on one side of one handshake, and is of no use anywhere else.
#[must_use]
pub fn certificate_verify(message: &[u8]) -> Option<Side> {
    const PADDING: [u8; 64] = [b' '; 64];
    const CONTEXTS: [(Side, &[u8]); 2] = [
        (Side::Server, b"TLS 1.3, server CertificateVerify\0"),
        (Side::Client, b"TLS 1.3, client CertificateVerify\0"),
    ];
    /// SHA-256 and SHA-384: the hashes of all cipher suites that we know.
    const HASH_BYTES: [usize; 2] = [32, 48];
    let rest = message.strip_prefix(&PADDING)?;
    CONTEXTS.into_iter().find_map(|(side, context)| {
        let hash = rest.strip_prefix(context)?;
        HASH_BYTES.contains(&hash.len()).then_some(side)
    })
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

const NEWEST_VERSION: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];

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

/// Shows the certificate for the names that are served.
#[derive(Debug)]
struct ServedNames {
    hosts: Vec<String>,
    certified: Arc<CertifiedKey>,
}

impl ResolvesServerCert for ServedNames {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let served = self.hosts.is_empty()
            || hello.server_name().is_none_or(|wanted| {
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
    fn new(
        trust_root: &Certificate,
        provider: &CryptoProvider,
        expected: Option<Vec<X500Name>>,
    ) -> Self {
        Self {
            trust_root: trust_root.clone(),
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
        let ders: Vec<&[u8]> = std::iter::once(end_entity)
            .chain(intermediates)
            .map(|der| der.as_ref())
            .collect();
        let now = UnixTime(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
        let found = judge_path(&self.trust_root, &ders, now)?;
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

    judge_handshake_signatures!(algorithms);
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

    judge_handshake_signatures!(algorithms);
}
