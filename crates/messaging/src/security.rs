//! Who we are on the wire, and how a peer is recognised.

use std::fmt;
use std::sync::Arc;

use quorate_identity::{
    Clock, NodeKeys, X500Name, peer_name, tls_client_config, tls_server_config,
};
use quorate_runtime::tasks::chain;
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, ServerConfig};

type ClientConfigFor = dyn Fn(&[X500Name]) -> Arc<ClientConfig> + Send + Sync;
type AnswersFor = dyn Fn(&X500Name) -> Vec<X500Name> + Send + Sync;

/// The TLS configurations, and which certificates may answer for which party.
///
/// Everything rests on identity's rules: a peer has to show a TLS certificate of our network, and a server's must carry
/// a name that we expect.
#[derive(Clone)]
pub struct Security {
    pub(crate) server: Arc<ServerConfig>,
    client: Arc<ClientConfigFor>,
    answers_for: Arc<AnswersFor>,
}

impl Security {
    /// With a node's keys. `clock` judges certificates' validity.
    ///
    /// Each party answers for itself, until [`Security::with_answering`] says more.
    pub fn of_node(keys: &NodeKeys, clock: Clock) -> Self {
        let server = tls_server_config(keys, clock.clone());
        let keys = keys.clone();
        Self {
            server,
            client: Arc::new(move |expected| tls_client_config(&keys, expected, clock.clone())),
            answers_for: Arc::new(|peer| vec![peer.clone()]),
        }
    }

    /// Some parties are reached at nodes of another legal name: a notary service at any of its members. `answers_for`
    /// gives the legal names whose nodes may receive messages for a party; it is asked before every attempt to connect.
    #[must_use]
    pub fn with_answering(
        mut self,
        answers_for: impl Fn(&X500Name) -> Vec<X500Name> + Send + Sync + 'static,
    ) -> Self {
        self.answers_for = Arc::new(answers_for);
        self
    }

    /// The legal names that may answer for a party, and the configuration that refuses all others.
    pub(crate) fn towards(&self, peer: &X500Name) -> (Vec<X500Name>, Arc<ClientConfig>) {
        let expected = (self.answers_for)(peer);
        let config = (self.client)(&expected);
        (expected, config)
    }
}

/// The legal name behind the certificates that a peer has shown.
pub(crate) fn name_of(certificates: Option<&[CertificateDer<'_>]>) -> Result<X500Name, String> {
    peer_name(certificates.unwrap_or_default()).map_err(|error| chain(&error))
}

impl fmt::Debug for Security {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Security")
    }
}
