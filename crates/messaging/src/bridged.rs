//! A node's end of the tunnel: its peers come, and are reached, through bridges.
//!
//! Only bridges connect here, with certificates of a link's own authority. The node believes a bridge that a peer has
//! finished its handshake, and judges the certificates that the peer has shown by itself. Its TLS key stays here: for
//! handshakes at the firewall's edges it signs what is asked for, if it is nothing but a handshake's signature.

use std::net::SocketAddr;
use std::sync::Arc;

use futures::future::BoxFuture;
use quorate_identity::tls::{certificate_verify, judge_path};
use quorate_identity::{SecureHash, SigningKey, X500Name};
use quorate_runtime::tasks::{blocking, chain};
use quorate_runtime::{Shutdown, Tasks};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsStream};

use crate::accept::{self, Entry, handshake};
use crate::dial::{DialError, is_expected};
use crate::options::{HostAndPort, MESSAGE_OVERHEAD_BYTES, Options};
use crate::security::Security;
use crate::service::Shared;
use crate::tunnel::STEP_TIMEOUT;
use crate::tunnel::control::Signatory;
use crate::tunnel::frame::{Answer, Arrival, Opening, Service, plain, write_frame};
use crate::tunnel::hub::Hub;

/// The bridges of a node.
pub(crate) type Bridges = Hub<TlsStream<TcpStream>>;

/// The end of the tunnel, for a node that has one.
pub(crate) fn hub(options: &Options, security: &Security) -> Option<Arc<Bridges>> {
    security.link()?;
    let service = Service::of(security.party(), max_message(options));
    let signatory = NodeKey {
        key: service.key(),
        signs: security.party().identity().key().clone(),
    };
    Some(Hub::new(vec![service], Arc::new(signatory)))
}

fn max_message(options: &Options) -> u64 {
    (options.max_message_bytes + MESSAGE_OVERHEAD_BYTES) as u64
}

/// Accepts bridges until stopping is requested.
pub(crate) async fn run(
    shared: Arc<Shared>,
    bridges: Arc<Bridges>,
    listener: TcpListener,
    tasks: Tasks,
) {
    let Some(link) = shared.security.link() else {
        return;
    };
    let config = link.party.server_config(shared.security.clock().clone());
    let acceptor = TlsAcceptor::from(config);
    let (pending, shutdown) = (shared.pending.clone(), tasks.shutdown().clone());
    accept::each(listener, &pending, &tasks, |tcp, from, entry| {
        let bridge = Bridge {
            shared: shared.clone(),
            bridges: bridges.clone(),
            expected: link.expected.clone(),
            shutdown: shutdown.clone(),
        };
        bridge.serve(acceptor.clone(), tcp, from, entry)
    })
    .await;
}

struct Bridge {
    shared: Arc<Shared>,
    bridges: Arc<Bridges>,
    expected: Option<X500Name>,
    shutdown: Shutdown,
}

impl Bridge {
    async fn serve(self, acceptor: TlsAcceptor, tcp: TcpStream, from: SocketAddr, entry: Entry) {
        let limit = self.shared.options.handshake_timeout;
        let shaken = handshake(&acceptor, tcp);
        let Some((tls, bridge)) = entry.admit(shaken, limit, from, &self.shutdown).await else {
            return;
        };
        if self
            .expected
            .as_ref()
            .is_some_and(|expected| *expected != bridge)
        {
            tracing::warn!(%from, "refused a bridge: it shows the key of {bridge}, not a copy of ours");
            return;
        }
        let received = self
            .bridges
            .receive(tls.into(), &bridge, &from.to_string(), &self.shutdown)
            .await;
        if let Some((arrival, stream)) = received {
            self.arrived(arrival, stream, &bridge).await;
        }
    }

    /// A peer has come to the firewall.
    async fn arrived(&self, arrival: Arrival, mut stream: TlsStream<TcpStream>, bridge: &X500Name) {
        let security = &self.shared.security;
        let own = security.party().identity().path().leaf().fingerprint();
        let judged = if arrival.wanted == own {
            let root = security.party().trust_root();
            judge_path(root, &arrival.certificates, security.now()).map_err(|error| chain(&error))
        } else {
            Err("this node has another TLS certificate than the one that was shown".to_owned())
        };
        let from = arrival.from.parse::<SocketAddr>();
        let (name, from) = match (judged, from) {
            (Ok(name), Ok(from)) => (name, from),
            (judged, _) => {
                let reason = judged.err().unwrap_or_else(|| "no address".to_owned());
                tracing::warn!(%bridge, from = plain(&arrival.from), "refused a peer that came through the firewall: {reason}");
                let refusal = Answer::Failed(reason);
                let refused = write_frame(&mut stream, &refusal);
                let _ = timeout(STEP_TIMEOUT, refused).await;
                return;
            }
        };
        let certificates = Vec::new();
        let welcome = Answer::Opened { certificates };
        let welcomed = timeout(STEP_TIMEOUT, write_frame(&mut stream, &welcome)).await;
        if matches!(welcomed, Ok(Ok(()))) {
            accept::serve(&self.shared, &self.shutdown, stream, name, from).await;
        }
    }
}

/// A connection to a peer, made by a bridge. The bridge has checked whom it found; so do we.
pub(crate) async fn reach(
    shared: &Shared,
    bridges: &Bridges,
    peer: &X500Name,
    address: &HostAndPort,
) -> Result<TlsStream<TcpStream>, DialError> {
    let expected = shared.security.answering(peer);
    let opening = Opening::Dial {
        address: address.to_string(),
        wanted: peer.clone(),
        expected: expected.clone(),
        max_message: max_message(&shared.options),
    };
    let (stream, certificates) = bridges
        .open(None, &opening)
        .await
        .map_err(|error| DialError::Firewall(address.clone(), error.to_string()))?;
    let security = &shared.security;
    let found = judge_path(security.party().trust_root(), &certificates, security.now());
    is_expected(
        address,
        peer,
        &expected,
        found.map_err(|error| chain(&error)),
    )?;
    Ok(stream)
}

/// The node's TLS key, for handshakes at the edges of the firewall.
struct NodeKey {
    key: SecureHash,
    signs: SigningKey,
}

impl Signatory for NodeKey {
    fn sign(
        &self,
        key: SecureHash,
        message: Vec<u8>,
    ) -> BoxFuture<'static, Result<Vec<u8>, String>> {
        if key != self.key {
            return Box::pin(async { Err("this node has another TLS key".to_owned()) });
        }
        if certificate_verify(&message).is_none() {
            tracing::error!(
                "a bridge has asked for a signature that no handshake needs; it is refused. Is the firewall in foreign hands?"
            );
            return Box::pin(async {
                Err("only signatures of TLS 1.3 handshakes are given".to_owned())
            });
        }
        let signs = self.signs.clone();
        Box::pin(async move {
            // A hardware security module may take its time.
            let signed = blocking("signing for the firewall", move || signs.sign(&message)).await;
            let signature = signed.map_err(|error| error.to_string())?;
            let signature = signature.map_err(|error| error.to_string())?;
            Ok(signature.as_bytes().to_vec())
        })
    }
}

#[cfg(test)]
mod tests {
    use quorate_identity::{KeyPair, SignatureScheme};

    use super::*;

    #[test]
    fn nothing_but_handshakes_is_signed_and_only_with_the_key_that_is_meant() {
        let pair = KeyPair::generate(SignatureScheme::EcdsaP256);
        let key = SecureHash::of(b"certificate");
        let node = NodeKey {
            key,
            signs: pair.clone().into(),
        };
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let sign = |key, message: &[u8]| runtime.block_on(node.sign(key, message.to_vec()));
        let mut handshake = vec![b' '; 64];
        handshake.extend(b"TLS 1.3, server CertificateVerify\0");
        handshake.extend([7; 32]);
        let signature = sign(key, &handshake).unwrap();
        let signature = quorate_identity::Signature::from_bytes(&signature).unwrap();
        pair.public().verify(&handshake, &signature).unwrap();
        let other = SecureHash::of(b"another certificate");
        assert!(sign(other, &handshake).is_err());
        for message in [
            b"a transaction".as_slice(),
            &handshake[1..],
            &handshake[..129],
        ] {
            assert!(sign(key, message).unwrap_err().contains("handshakes"));
        }
    }
}
