//! Who we are on the wire, and how a peer is recognised.

use std::fmt;
use std::sync::Arc;

use quorate_identity::X500Name;
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, ServerConfig};

type ClientConfigFor = dyn Fn(&X500Name) -> Arc<ClientConfig> + Send + Sync;
type NameOf = dyn Fn(&[CertificateDer<'_>]) -> Result<X500Name, String> + Send + Sync;

/// The TLS configurations and the rule by which a certificate becomes a legal name.
///
/// Messaging relies on three things: the server configuration demands a client certificate and trusts only our
/// network's root; the client configuration for a name refuses every certificate that is not that name's; the name is
/// read from the certificate that was verified.
#[derive(Clone)]
pub struct Security {
    pub(crate) server: Arc<ServerConfig>,
    client: Arc<ClientConfigFor>,
    name_of: Arc<NameOf>,
}

impl Security {
    /// From ready-made parts. `client` is called once per peer, `name_of` once per connection.
    pub fn new(
        server: Arc<ServerConfig>,
        client: impl Fn(&X500Name) -> Arc<ClientConfig> + Send + Sync + 'static,
        name_of: impl Fn(&[CertificateDer<'_>]) -> Result<X500Name, String> + Send + Sync + 'static,
    ) -> Self {
        Self {
            server,
            client: Arc::new(client),
            name_of: Arc::new(name_of),
        }
    }

    pub(crate) fn client(&self, peer: &X500Name) -> Arc<ClientConfig> {
        (self.client)(peer)
    }

    /// The legal name behind the certificates that a peer has shown.
    pub(crate) fn name_of(
        &self,
        certificates: Option<&[CertificateDer<'_>]>,
    ) -> Result<X500Name, String> {
        match certificates {
            Some(certificates) if !certificates.is_empty() => (self.name_of)(certificates),
            _ => Err("the peer has shown no certificate".to_owned()),
        }
    }
}

impl fmt::Debug for Security {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Security")
    }
}
