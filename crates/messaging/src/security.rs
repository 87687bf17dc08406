//! Who we are on the wire, and how a peer is recognised.

use std::fmt;
use std::sync::Arc;

use quorate_identity::{
    Clock, NodeKeys, TlsParty, UnixTime, X500Name, peer_name, tls_client_config, tls_server_config,
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
    /// What we show, by ourselves or through a firewall.
    party: TlsParty,
    clock: Clock,
    /// What bridges are recognised by, if peers come through them.
    link: Option<Link>,
}

/// What bridges are recognised by.
#[derive(Clone)]
pub(crate) struct Link {
    pub(crate) party: TlsParty,
    /// `None` accepts whoever has a certificate of the link's authority.
    pub(crate) expected: Option<X500Name>,
}

impl Security {
    /// With a node's keys. `clock` judges certificates' validity.
    ///
    /// Each party answers for itself, until [`Security::with_answering`] says more.
    pub fn of_node(keys: &NodeKeys, clock: Clock) -> Self {
        let server = tls_server_config(keys, clock.clone());
        let party = TlsParty::of_node(keys);
        let keys = keys.clone();
        Self {
            server,
            party,
            clock: clock.clone(),
            link: None,
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

    /// Peers come, and are reached, through the bridges of a firewall. What was the port for peers is the one for bridges
    /// then. Our TLS key signs for their handshakes, and stays here.
    ///
    /// With `link`, bridges are recognised by certificates that it believes in. Without, a bridge must show a copy of our
    /// own TLS key.
    #[must_use]
    pub fn behind_firewall(mut self, link: Option<TlsParty>) -> Self {
        self.link = Some(match link {
            Some(party) => Link {
                party,
                expected: None,
            },
            None => Link {
                expected: Some(self.party.identity().name().clone()),
                party: self.party.clone(),
            },
        });
        self
    }

    /// What bridges are recognised by, if peers come through them.
    pub(crate) fn link(&self) -> Option<&Link> {
        self.link.as_ref()
    }

    /// What we show peers.
    pub(crate) fn party(&self) -> &TlsParty {
        &self.party
    }

    /// By what certificates are judged.
    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// The time of this moment.
    pub(crate) fn now(&self) -> UnixTime {
        (self.clock)()
    }

    /// Who may answer for a party.
    pub(crate) fn answering(&self, peer: &X500Name) -> Vec<X500Name> {
        (self.answers_for)(peer)
    }

    /// The legal names that may answer for a party, and the configuration that refuses all others.
    pub(crate) fn towards(&self, peer: &X500Name) -> (Vec<X500Name>, Arc<ClientConfig>) {
        let expected = self.answering(peer);
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
