//! The outer side: accepts peers, and hands them to a bridge.
//!
//! Everything here may fall into foreign hands. So it has no key of the node's (it has signatures made inside), keeps
//! nothing, dials nobody, and lets nothing through but AMQP frames of peers that have proved who they are. It listens
//! for peers only while there is an identity to be served, so that a load balancer sees where peers can be sent.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use quorate_identity::tls::peer_refusal;
use quorate_identity::{
    Certificate, Clock as CertificateClock, Identity, SigningKey, TlsParty, X500Name,
};
use quorate_runtime::tasks::chain;
use quorate_runtime::{Shutdown, Tasks};
use rustls::server::Acceptor;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use super::audit::{Audit, Way};
use crate::accept::{self, Entry, Pending};
use crate::dial::tune;
use crate::guard::{Guard, Side};
use crate::security::name_of;
use crate::service::listen;
use crate::tunnel::BoxStream;
use crate::tunnel::control::DistantKey;
use crate::tunnel::frame::{Arrival, Opening, Service};
use crate::tunnel::hub::Hub;
use crate::tunnel::pipe::pipe;

/// Pause before the port for peers is tried again.
const LISTEN_PAUSE: Duration = Duration::from_secs(1);

/// A float's side towards the peers.
pub(super) struct Float {
    pub(super) listen: SocketAddr,
    pub(super) hub: Arc<Hub<BoxStream>>,
    pub(super) clock: CertificateClock,
    pub(super) audit: Arc<Audit>,
    pub(super) pending: Arc<Pending>,
    pub(super) connections: AtomicUsize,
    pub(super) max_connections: usize,
    pub(super) handshake_timeout: Duration,
    pub(super) lifetime: Option<Duration>,
    /// What a probe says to hear it back.
    pub(super) health_check_phrase: Option<String>,
    /// Where peers are accepted now.
    pub(super) listening: watch::Sender<Option<SocketAddr>>,
}

/// A peer that has proved who it is.
struct Peer {
    tls: TlsStream<TcpStream>,
    name: X500Name,
    service: Service,
}

impl Float {
    /// Listens for peers whenever there is an identity to be served.
    pub(super) async fn run(self: Arc<Self>, tasks: Tasks) {
        let shutdown = tasks.shutdown().clone();
        let mut services = self.hub.services();
        loop {
            let opened = services.wait_for(|services| !services.is_empty());
            tokio::select! {
                () = shutdown.requested() => return,
                opened = opened => if opened.is_err() { return },
            }
            let listener = match listen(self.listen) {
                Ok(listener) => listener,
                Err(error) => {
                    tracing::error!(
                        "cannot listen for peers on {}: {error}; is another process using the port?",
                        self.listen
                    );
                    tokio::select! {
                        () = shutdown.requested() => return,
                        () = sleep(LISTEN_PAUSE) => continue,
                    }
                }
            };
            let address = listener.local_addr().ok();
            self.listening.send_replace(address);
            tracing::info!("peers are accepted on {}", address.unwrap_or(self.listen));
            {
                let serve = |tcp, from, entry| {
                    let (float, shutdown) = (Arc::clone(&self), shutdown.clone());
                    async move { float.serve(tcp, from, entry, &shutdown).await }
                };
                let accepting = accept::each(listener, &self.pending, &tasks, serve);
                tokio::select! {
                    () = accepting => {}
                    _ = services.wait_for(Vec::is_empty) => {}
                }
            }
            self.listening.send_replace(None);
            tracing::info!("no peers are accepted any more: no bridge has an identity to serve");
        }
    }

    async fn serve(&self, tcp: TcpStream, from: SocketAddr, entry: Entry, shutdown: &Shutdown) {
        let silenced = self.audit.is_silenced(from);
        let began = Instant::now();
        let address = from.to_string();
        let refused = |peer: Option<&X500Name>, reason: &str| {
            if !silenced {
                self.audit.refused(Way::In, &address, peer, reason);
            }
        };
        // Whatever comes of it is told here, and so the handshake's own outcome is no error.
        let shaken = async { Ok(self.handshake(tcp).await) };
        let limit = self.handshake_timeout;
        let peer = match entry.admit(shaken, limit, from, shutdown).await {
            Some(Ok(Some(peer))) => peer,
            // A probe.
            Some(Ok(None)) => return,
            Some(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return refused(None, "it left before its TLS handshake was finished");
            }
            Some(Err(error)) => return refused(None, &reason_of(&error)),
            None => return refused(None, "its TLS handshake was not finished in time"),
        };
        let most = self.max_connections;
        if self.connections.fetch_add(1, Ordering::AcqRel) < most {
            tokio::select! {
                () = shutdown.requested() => {}
                () = self.pass_on(peer, from, began, refused) => {}
            }
        } else {
            refused(Some(&peer.name), "there are too many connections");
        }
        self.connections.fetch_sub(1, Ordering::AcqRel);
    }

    /// TLS in the name of the identity that is asked for. `None` for a probe that was answered.
    async fn handshake(&self, mut tcp: TcpStream) -> io::Result<Option<Peer>> {
        tune(&tcp)?;
        if let Some(phrase) = &self.health_check_phrase
            && starts_with(&tcp, phrase.as_bytes()).await?
        {
            tcp.write_all(phrase.as_bytes()).await?;
            tcp.shutdown().await?;
            return Ok(None);
        }
        let start = LazyConfigAcceptor::new(Acceptor::default(), tcp).await?;
        let hello = start.client_hello();
        let wanted = hello.server_name().map(str::to_owned);
        let service = self.wanted(wanted.as_deref())?;
        let tls = start
            .into_stream(self.party(&service)?.server_config(self.clock.clone()))
            .await?;
        let name = name_of(tls.get_ref().1.peer_certificates()).map_err(io::Error::other)?;
        Ok(Some(Peer { tls, name, service }))
    }

    /// The identity of this name; the only one, for who gives no name.
    fn wanted(&self, host: Option<&str>) -> io::Result<Service> {
        let services = self.hub.services();
        let services = services.borrow();
        let found = match (host, services.as_slice()) {
            (Some(host), services) => services.iter().find(|service| service.answers_to(host)),
            (None, [only]) => Some(only),
            (None, _) => None,
        };
        found.cloned().ok_or_else(|| {
            io::Error::other(match host {
                Some(_) => "it asks for an identity that is not served here",
                None => "it does not say which identity it asks for",
            })
        })
    }

    /// What is shown in a handshake: the certificates of the identity, with a key that is far away.
    fn party(&self, service: &Service) -> io::Result<TlsParty> {
        party(
            service,
            DistantKey {
                key: service.key(),
                signatory: Arc::new(self.hub.clone()),
            },
        )
    }

    async fn pass_on(
        &self,
        peer: Peer,
        from: SocketAddr,
        began: Instant,
        refused: impl Fn(Option<&X500Name>, &str),
    ) {
        let Peer { tls, name, service } = peer;
        let certificates = tls.get_ref().1.peer_certificates().unwrap_or_default();
        let arrival = Arrival {
            certificates: certificates.iter().map(|der| der.to_vec()).collect(),
            from: from.to_string(),
            wanted: service.key(),
        };
        let opening = Opening::Arrival(arrival);
        let (inside, _) = match self.hub.open(Some(service.key()), &opening).await {
            Ok(opened) => opened,
            Err(error) => return refused(Some(&name), &chain(&error)),
        };
        let identity = service.path.leaf().subject();
        let address = from.to_string();
        let connection = self
            .audit
            .connected(Way::In, &address, &name, identity, began.elapsed());
        let guard = Guard::relay(Side::Receiver, service.max_message);
        let piped = pipe(tls, inside, guard, self.lifetime).await;
        connection.ended(&piped);
    }
}

/// Why a handshake failed: our own reason, if it was we who refused.
fn reason_of(error: &io::Error) -> String {
    let refusal = error
        .get_ref()
        .and_then(|cause| cause.downcast_ref::<rustls::Error>())
        .and_then(peer_refusal);
    refusal.map_or_else(|| error.to_string(), |refusal| chain(refusal))
}

/// What is shown in handshakes in the name of `service`, with signatures made elsewhere.
pub(super) fn party(service: &Service, key: DistantKey) -> io::Result<TlsParty> {
    let root = Certificate::from_der(&service.root).map_err(io::Error::other)?;
    let public = service.path.leaf().public_key().clone();
    let key = SigningKey::remote(public, Arc::new(key));
    let identity = Identity::new(key, service.path.clone()).map_err(io::Error::other)?;
    Ok(TlsParty::new(identity, root)
        .serving(service.names.clone())
        .newest_only())
}

/// Whether the first bytes are these. None is taken; as many as differ from it are not waited for.
async fn starts_with(tcp: &TcpStream, phrase: &[u8]) -> io::Result<bool> {
    /// How long to wait before looking again, when a part has come.
    const AGAIN: Duration = Duration::from_millis(20);
    let mut seen = vec![0; phrase.len()];
    loop {
        let length = tcp.peek(&mut seen).await?;
        if length == 0 || !phrase.starts_with(&seen[..length]) {
            return Ok(false);
        }
        if length == phrase.len() {
            return Ok(true);
        }
        // Readiness stays as long as something is there, so it cannot be waited for.
        sleep(AGAIN).await;
    }
}
