//! The inner side: links nodes with floats, and dials peers for the nodes.
//!
//! A bridge holds one link to every node that answers and one to every float. Floats are told which identities the nodes
//! serve; what a float has of a peer is carried to the node of the identity that the peer asked for, and signatures for
//! handshakes are fetched from that node. Any number of bridges may do this side by side.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use quorate_identity::tls::{Side as TlsSide, certificate_verify, judge_path};
use quorate_identity::{
    Certificate, Clock as CertificateClock, SecureHash, UnixTime, X500Name, server_name,
};
use quorate_runtime::tasks::chain;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::audit::{Audit, Way};
use super::float::party;
use super::proxy::{self, Proxy};
use crate::guard::{Guard, Side};
use crate::options::HostAndPort;
use crate::security::name_of;
use crate::service::lock;
use crate::tunnel::control::{Control, DistantKey, Office, Signatory};
use crate::tunnel::frame::{
    Answer, Arrival, Opening, Purpose, Service, plain, read_frame, write_frame,
};
use crate::tunnel::keeper::{Owner, Reach};
use crate::tunnel::pipe::pipe;
use crate::tunnel::{BoxStream, STEP_TIMEOUT};

/// A bridge.
pub(super) struct Bridge {
    nodes: Mutex<BTreeMap<usize, Node>>,
    services: watch::Sender<Vec<Service>>,
    pub(super) proxy: Option<Proxy>,
    pub(super) connect_timeout: Duration,
    pub(super) clock: CertificateClock,
    pub(super) audit: Arc<Audit>,
    pub(super) lifetime: Option<Duration>,
    /// Whether the float is in this process, and has told of a peer that arrives already.
    with_float: bool,
    /// Links to floats that are up.
    pub(super) floats: watch::Sender<usize>,
}

/// A node that is linked.
struct Node {
    /// Grows with every link. Of two machines of one node the newer one serves: the other has stopped, or hangs.
    turn: u64,
    reach: Reach,
    control: Arc<Control>,
    services: Vec<Service>,
}

impl Bridge {
    pub(super) fn new(
        proxy: Option<Proxy>,
        connect_timeout: Duration,
        clock: CertificateClock,
        audit: Arc<Audit>,
        lifetime: Option<Duration>,
        with_float: bool,
    ) -> Arc<Self> {
        Arc::new(Self {
            nodes: Mutex::default(),
            services: watch::Sender::default(),
            proxy,
            connect_timeout,
            clock,
            audit,
            lifetime,
            with_float,
            floats: watch::Sender::new(0),
        })
    }

    /// How many nodes are linked.
    pub(super) fn nodes(&self) -> usize {
        lock(&self.nodes).len()
    }

    /// Tells what the nodes serve now.
    fn publish(&self) {
        let mut all: Vec<Service> = Vec::new();
        for node in lock(&self.nodes).values() {
            for service in &node.services {
                // Two machines of one node may both be there for a moment.
                if !all.iter().any(|known| known.key() == service.key()) {
                    all.push(service.clone());
                }
            }
        }
        self.services.send_if_modified(|services| {
            let changed = *services != all;
            *services = all;
            changed
        });
    }

    fn node_of(&self, key: SecureHash) -> Option<(Reach, Arc<Control>, Service)> {
        let nodes = lock(&self.nodes);
        let serving = nodes.values().filter_map(|node| {
            let service = node.services.iter().find(|service| service.key() == key)?;
            Some((node, service))
        });
        let (node, service) = serving.max_by_key(|(node, _)| node.turn)?;
        Some((node.reach.clone(), node.control.clone(), service.clone()))
    }

    /// A float has a peer for one of our nodes.
    async fn arrived(&self, arrival: Arrival, mut float: BoxStream) {
        let (address, began) = (plain(&arrival.from), Instant::now());
        let opened = timeout(STEP_TIMEOUT, self.to_node(arrival)).await;
        let opened = opened.unwrap_or_else(|_| Err("the node has not answered in time".to_owned()));
        let (answer, opened) = match opened {
            Ok(opened) => {
                let certificates = Vec::new();
                (Answer::Opened { certificates }, Some(opened))
            }
            Err(reason) => {
                if !self.with_float {
                    self.audit.refused(Way::In, &address, None, &reason);
                }
                (Answer::Failed(reason), None)
            }
        };
        let answered = timeout(STEP_TIMEOUT, write_frame(&mut float, &answer)).await;
        let (Some((node, peer, service)), Ok(Ok(()))) = (opened, answered) else {
            return;
        };
        let identity = service.path.leaf().subject();
        let connection = (!self.with_float).then(|| {
            let took = began.elapsed();
            self.audit
                .connected(Way::In, &address, &peer, identity, took)
        });
        // The float has looked at the frames; but it stands outside.
        let guard = Guard::relay(Side::Receiver, service.max_message);
        let piped = pipe(float, node, guard, self.lifetime).await;
        if let Some(connection) = connection {
            connection.ended(&piped);
        }
    }

    /// Judges who the peer is, and announces it to the node that it wants.
    async fn to_node(&self, arrival: Arrival) -> Result<(BoxStream, X500Name, Service), String> {
        let (reach, _, service) = self
            .node_of(arrival.wanted)
            .ok_or("no node of this identity is connected")?;
        let peer = judge(&service, &arrival.certificates, (self.clock)())?;
        let mut stream = reach
            .open(Purpose::Arrival(arrival))
            .await
            .map_err(|error| format!("the node cannot be reached: {error}"))?;
        match read_frame::<Answer>(&mut stream).await {
            Ok(Answer::Opened { .. }) => Ok((stream, peer, service)),
            Ok(Answer::Failed(reason)) => Err(plain(&reason)),
            Err(error) => Err(chain(&error)),
        }
    }

    /// A node wants a peer to be dialled.
    async fn dial(&self, node: Service, control: Arc<Control>, call: Call, mut stream: BoxStream) {
        let began = Instant::now();
        let dialled = timeout(self.connect_timeout, self.to_peer(&node, control, &call)).await;
        let dialled = dialled.unwrap_or_else(|_| Err("it has not answered in time".to_owned()));
        let (answer, dialled) = match dialled {
            Ok((tls, found)) => {
                let certificates = tls.get_ref().1.peer_certificates().unwrap_or_default();
                let certificates = certificates.iter().map(|der| der.to_vec()).collect();
                (Answer::Opened { certificates }, Some((tls, found)))
            }
            Err(reason) => {
                self.audit
                    .refused(Way::Out, &plain(&call.address), Some(&call.wanted), &reason);
                (Answer::Failed(reason), None)
            }
        };
        let answered = timeout(STEP_TIMEOUT, write_frame(&mut stream, &answer)).await;
        let (Some((tls, found)), Ok(Ok(()))) = (dialled, answered) else {
            return;
        };
        let identity = node.path.leaf().subject();
        let took = began.elapsed();
        let connection = self
            .audit
            .connected(Way::Out, &call.address, &found, identity, took);
        let guard = Guard::relay(Side::Sender, call.max_message);
        let piped = pipe(tls, stream, guard, self.lifetime).await;
        connection.ended(&piped);
    }

    async fn to_peer(
        &self,
        node: &Service,
        control: Arc<Control>,
        call: &Call,
    ) -> Result<
        (
            tokio_rustls::client::TlsStream<tokio::net::TcpStream>,
            X500Name,
        ),
        String,
    > {
        let address: HostAndPort = call
            .address
            .parse()
            .map_err(|error: crate::options::AddressError| error.to_string())?;
        let key = DistantKey {
            key: node.key(),
            signatory: Arc::new(control),
        };
        let party = party(node, key).map_err(|error| error.to_string())?;
        let tcp = proxy::reach(self.proxy.as_ref(), &address)
            .await
            .map_err(|error| error.to_string())?;
        let config = party.client_config(Some(&call.expected), self.clock.clone());
        let tls = TlsConnector::from(config)
            .connect(server_name(&call.wanted), tcp)
            .await
            .map_err(|error| format!("the TLS handshake failed: {error}"))?;
        let found = name_of(tls.get_ref().1.peer_certificates())?;
        Ok((tls, found))
    }
}

/// What a node asks for.
struct Call {
    address: String,
    wanted: X500Name,
    expected: Vec<X500Name>,
    max_message: u64,
}

fn judge(service: &Service, certificates: &[Vec<u8>], now: UnixTime) -> Result<X500Name, String> {
    let root = Certificate::from_der(&service.root).map_err(|error| chain(&error))?;
    judge_path(&root, certificates, now).map_err(|error| chain(&error))
}

/// A bridge's link to one node.
pub(super) struct NodeLink {
    pub(super) bridge: Arc<Bridge>,
    /// The place of the node's address in the configuration.
    pub(super) index: usize,
    pub(super) reach: Reach,
}

impl Owner for NodeLink {
    fn linked(self: Arc<Self>, control: Arc<Control>) -> Arc<dyn Office> {
        let mut nodes = lock(&self.bridge.nodes);
        let newest = nodes.values().map(|node| node.turn).max();
        let node = Node {
            turn: newest.map_or(0, |newest| newest + 1),
            reach: self.reach.clone(),
            control,
            services: Vec::new(),
        };
        nodes.insert(self.index, node);
        drop(nodes);
        Arc::new(NodeOffice {
            bridge: self.bridge.clone(),
            index: self.index,
        })
    }

    fn tell(self: Arc<Self>, _control: Arc<Control>) -> BoxFuture<'static, ()> {
        Box::pin(async {})
    }

    fn unlinked(&self, _control: &Arc<Control>) {
        lock(&self.bridge.nodes).remove(&self.index);
        self.bridge.publish();
    }

    fn opened(self: Arc<Self>, opening: Opening, mut stream: BoxStream) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let Opening::Dial {
                address,
                wanted,
                expected,
                max_message,
            } = opening
            else {
                tracing::warn!(node = %self.reach, "a node has sent what only a float may send");
                return;
            };
            let known = {
                let nodes = lock(&self.bridge.nodes);
                let node = nodes.get(&self.index);
                node.and_then(|node| Some((node.services.first()?.clone(), node.control.clone())))
            };
            match known {
                Some((service, control)) => {
                    let call = Call {
                        address,
                        wanted,
                        expected,
                        max_message,
                    };
                    self.bridge.dial(service, control, call, stream).await;
                }
                None => {
                    let reason = "the bridge does not know this node yet".to_owned();
                    let _ = write_frame(&mut stream, &Answer::Failed(reason)).await;
                }
            }
        })
    }
}

/// What a bridge does for a node besides dialling: nothing but listen.
struct NodeOffice {
    bridge: Arc<Bridge>,
    index: usize,
}

impl Signatory for NodeOffice {
    fn sign(&self, _: SecureHash, _: Vec<u8>) -> BoxFuture<'static, Result<Vec<u8>, String>> {
        Box::pin(async { Err("a bridge has no keys".to_owned()) })
    }
}

impl Office for NodeOffice {
    fn serve(&self, services: Vec<Service>) {
        if let Some(node) = lock(&self.bridge.nodes).get_mut(&self.index) {
            for service in &services {
                tracing::info!(node = %node.reach, "the node serves {}", service.path.leaf().subject());
            }
            node.services = services;
        }
        self.bridge.publish();
    }
}

/// A bridge's link to one float.
pub(super) struct FloatLink {
    pub(super) bridge: Arc<Bridge>,
}

impl Owner for FloatLink {
    fn linked(self: Arc<Self>, _control: Arc<Control>) -> Arc<dyn Office> {
        self.bridge.floats.send_modify(|floats| *floats += 1);
        Arc::new(FloatOffice {
            bridge: self.bridge.clone(),
        })
    }

    fn tell(self: Arc<Self>, control: Arc<Control>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let mut services = self.bridge.services.subscribe();
            loop {
                let now = services.borrow_and_update().clone();
                control.announce(now).await;
                if services.changed().await.is_err() {
                    return;
                }
            }
        })
    }

    fn unlinked(&self, _control: &Arc<Control>) {
        self.bridge.floats.send_modify(|floats| *floats -= 1);
    }

    fn opened(self: Arc<Self>, opening: Opening, stream: BoxStream) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            match opening {
                Opening::Arrival(arrival) => self.bridge.arrived(arrival, stream).await,
                // A float is a listener. One that wants to have somebody dialled is not itself any more.
                Opening::Dial { .. } => {
                    tracing::error!(
                        "a float wants a connection to be opened from the inside; it is refused"
                    );
                }
            }
        })
    }
}

/// What a bridge does for a float: it fetches signatures.
struct FloatOffice {
    bridge: Arc<Bridge>,
}

impl Signatory for FloatOffice {
    fn sign(
        &self,
        key: SecureHash,
        message: Vec<u8>,
    ) -> BoxFuture<'static, Result<Vec<u8>, String>> {
        // As a client it could speak in the node's name to others.
        if certificate_verify(&message) != Some(TlsSide::Server) {
            tracing::error!(
                "a float has asked for a signature that a listener does not need; it is refused. Is it in foreign hands?"
            );
            return Box::pin(async { Err("only a server's handshakes are signed".to_owned()) });
        }
        let node = self.bridge.node_of(key);
        Box::pin(async move {
            match node {
                Some((_, control, _)) => Control::sign(&control, key, message).await,
                None => Err("no node of this identity is connected".to_owned()),
            }
        })
    }
}

impl Office for FloatOffice {
    fn serve(&self, _services: Vec<Service>) {
        tracing::warn!("a float claims to serve identities; it is not listened to");
    }
}

#[cfg(test)]
mod tests {
    use quorate_runtime::{Clock, Metrics};

    use super::*;

    /// A float in foreign hands that got a client's signature could send messages as the node.
    #[test]
    fn a_float_gets_no_signature_of_a_client() {
        let (clock, _) = Clock::manual(0);
        let audit = Audit::new(clock, None, Vec::new(), &Metrics::new());
        let now: CertificateClock = Arc::new(|| UnixTime(0));
        let bridge = Bridge::new(None, Duration::ZERO, now, Arc::new(audit), None, false);
        let office = FloatOffice { bridge };
        let ask = |words: &[u8]| {
            let mut message = vec![b' '; 64];
            message.extend(words);
            message.extend([7; 32]);
            let asked = office.sign(SecureHash::of(b"key"), message);
            futures::executor::block_on(asked).unwrap_err()
        };
        let client = ask(b"TLS 1.3, client CertificateVerify\0");
        assert!(client.contains("only a server's"), "{client}");
        // The other kind is looked for at the nodes, of which there are none.
        let server = ask(b"TLS 1.3, server CertificateVerify\0");
        assert!(server.contains("no node"), "{server}");
    }
}
