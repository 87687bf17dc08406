//! The firewall of a node, as a process or two of its own: a float in the DMZ, a bridge inside.
//!
//! A float accepts peers, finishes their TLS handshakes, checks every AMQP frame, and hands the frames to a bridge. The
//! bridge has opened the connections for that beforehand, so that nothing is ever dialled from the DMZ to the inside. It
//! judges the peer once more and carries the frames to the node. Outgoing connections take the bridge's way out, through
//! a proxy if there is one. Both may serve many nodes, and of both there may be several at once.
//!
//! Neither keeps anything: no message, no acknowledgement, no key of a node. A message is accepted by the receiving
//! node, and nobody on the way; so the death of a float or bridge is to a peer what a broken cable is.
//!
//! [`Configuration`] is `firewall.conf`, [`Firewall`] the service. `float` and `bridge` are the two sides, `proxy` the
//! way out, `audit` what is written down; what they speak with each other is in `tunnel`.

mod audit;
mod bridge;
mod config;
mod float;
mod proxy;

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use quorate_identity::{Clock as CertificateClock, TlsParty, UnixTime, X500Name};
use quorate_runtime::operations::ReadyReport;
use quorate_runtime::telemetry::RollingFile;
use quorate_runtime::{Clock, Entropy, Metrics, Shutdown, Tasks};
use tokio::io::duplex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;

use crate::accept::{self, Entry, Pending, handshake};
use crate::options::HostAndPort;
use crate::service::listen;
use crate::tunnel::BoxStream;
use crate::tunnel::hub::{Hub, NoSignatory};
use crate::tunnel::keeper::{Keeper, Owner, Reach, TlsReach};
use audit::Audit;
use bridge::{Bridge, FloatLink, NodeLink};
use float::Float;

pub use config::{
    BridgeInnerConfig, Configuration, ConfigurationError, FILE_NAME, FirewallMode,
    FloatOuterConfig, InboundConfig, LinkError, LinkFiles, LoadOptions, OutboundConfig,
};
pub use proxy::{Proxy, ProxyVersion};

/// How long a bridge tries to connect to a peer: less than the node that asked for it waits.
const DIAL_TIMEOUT: Duration = Duration::from_secs(8);
/// Bytes on their way between bridge and float within one process.
const MEMORY_BYTES: usize = 64 * 1024;
/// Bridges of one float whose handshake is not finished.
const MAX_PENDING_BRIDGES: usize = 64;

/// Why a firewall cannot run.
#[derive(Debug, thiserror::Error)]
pub enum FirewallError {
    /// A key store or trust store of a link.
    #[error("the keys of {link} cannot be used")]
    Keys {
        /// Which link, by its key in the configuration.
        link: &'static str,
        /// Why not.
        #[source]
        source: Box<LinkError>,
    },
    /// An address of ours leads nowhere.
    #[error("`{key}` = {address} cannot be used")]
    Address {
        /// Its key in the configuration.
        key: &'static str,
        /// What it says.
        address: HostAndPort,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// What a firewall needs of its process.
pub struct Surroundings {
    /// The time.
    pub clock: Clock,
    /// Randomness.
    pub entropy: Entropy,
    /// Where its metrics are registered.
    pub metrics: Metrics,
    /// Where connections are written down; see `audit` for the form.
    pub audit_log: Option<RollingFile>,
}

/// A firewall process that is ready to run.
pub struct Firewall {
    mode: FirewallMode,
    clock: CertificateClock,
    entropy: Entropy,
    reconnection: (Duration, Duration),
    statistics_interval: Duration,
    audit: Arc<Audit>,
    float: Option<Arc<Float>>,
    bridge: Option<BridgeSide>,
    /// Where a float awaits its bridges.
    door: Option<Door>,
}

struct BridgeSide {
    bridge: Arc<Bridge>,
    nodes: Vec<Reach>,
    floats: Vec<Reach>,
}

struct Door {
    listener: TcpListener,
    address: SocketAddr,
    link: TlsParty,
    expected: X500Name,
    handshake_timeout: Duration,
}

/// How a firewall process stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirewallStatus {
    /// Which part it is.
    pub mode: FirewallMode,
    /// Where peers are accepted now, by a float.
    pub listening: Option<SocketAddr>,
    /// Bridges that are linked, to a float.
    pub bridges: usize,
    /// Nodes that are linked, to a bridge.
    pub nodes: usize,
    /// Floats that are linked, to a bridge.
    pub floats: usize,
    /// Peers whose handshake is not finished, at a float.
    pub pending_handshakes: usize,
}

/// What others hold of a running firewall; cheap to clone.
#[derive(Clone)]
pub struct FirewallHandle {
    mode: FirewallMode,
    float: Option<Arc<Float>>,
    bridge: Option<Arc<Bridge>>,
    tunnel: Option<SocketAddr>,
}

impl Firewall {
    /// Reads the keys of the links and binds the port for bridges, of a float. Must be called within the runtime.
    ///
    /// # Errors
    /// See [`FirewallError`].
    pub fn prepare(
        configuration: &Configuration,
        surroundings: Surroundings,
    ) -> Result<Self, FirewallError> {
        let Surroundings {
            clock,
            entropy,
            metrics,
            audit_log,
        } = surroundings;
        let silenced = configuration.silenced_ips.clone();
        let audit = Arc::new(Audit::new(clock.clone(), audit_log, silenced, &metrics));
        let certificate_clock: CertificateClock = {
            let clock = clock.clone();
            Arc::new(move || UnixTime(clock.now_seconds()))
        };
        let float = match &configuration.inbound {
            Some(inbound) => Some(Arc::new(Float {
                listen: socket_address(
                    "inboundConfig.listeningAddress",
                    &inbound.listening_address,
                )?,
                hub: Hub::new(Vec::new(), Arc::new(NoSignatory)),
                clock: certificate_clock.clone(),
                audit: audit.clone(),
                pending: Pending::new(inbound.max_pending_handshakes),
                connections: AtomicUsize::new(0),
                max_connections: inbound.max_connections,
                handshake_timeout: configuration.handshake_timeout,
                lifetime: configuration.connection_ttl,
                health_check_phrase: configuration.health_check_phrase.clone(),
                listening: watch::Sender::default(),
            })),
            None => None,
        };
        let now = certificate_clock();
        let load = |link: &'static str, files: &LinkFiles| {
            files.load(now).map_err(|source| FirewallError::Keys {
                link,
                source: Box::new(source),
            })
        };
        let tls = |address: &HostAndPort, party: &TlsParty, expected: Option<&X500Name>| {
            Reach::Tls(Arc::new(TlsReach {
                address: address.clone(),
                party: party.clone(),
                expected: expected.cloned(),
                clock: certificate_clock.clone(),
            }))
        };
        let bridge = match &configuration.outbound {
            Some(outbound) => {
                let party = load("outboundConfig.artemisSSLConfiguration", &outbound.link)?;
                // Who shows a node's own key is that node, and talks to nobody else.
                let own = (!outbound.link.private).then(|| party.identity().name().clone());
                let nodes = outbound
                    .nodes
                    .iter()
                    .map(|address| tls(address, &party, own.as_ref()))
                    .collect();
                let floats = match &configuration.bridge_inner {
                    Some(inner) => {
                        let party = load("bridgeInnerConfig.tunnelSSLConfiguration", &inner.link)?;
                        let expected = Some(&inner.expected_subject);
                        let addresses = inner.float_addresses.iter();
                        addresses
                            .map(|address| tls(address, &party, expected))
                            .collect()
                    }
                    None => Vec::new(),
                };
                let bridge = Bridge::new(
                    outbound.proxy.clone(),
                    DIAL_TIMEOUT,
                    certificate_clock.clone(),
                    audit.clone(),
                    configuration.connection_ttl,
                    float.is_some(),
                );
                Some(BridgeSide {
                    bridge,
                    nodes,
                    floats,
                })
            }
            None => None,
        };
        let door = match &configuration.float_outer {
            Some(outer) => {
                const KEY: &str = "floatOuterConfig.floatAddress";
                let refused = |source| FirewallError::Address {
                    key: KEY,
                    address: outer.float_address.clone(),
                    source,
                };
                let listener =
                    listen(socket_address(KEY, &outer.float_address)?).map_err(refused)?;
                Some(Door {
                    address: listener.local_addr().map_err(refused)?,
                    listener,
                    link: load("floatOuterConfig.tunnelSSLConfiguration", &outer.link)?,
                    expected: outer.expected_subject.clone(),
                    handshake_timeout: configuration.handshake_timeout,
                })
            }
            None => None,
        };
        Ok(Self {
            mode: configuration.mode,
            clock: certificate_clock,
            entropy,
            reconnection: configuration.reconnection,
            statistics_interval: configuration.statistics_interval,
            audit,
            float,
            bridge,
            door,
        })
    }

    /// Starts everything, with tasks in `tasks`.
    pub fn start(self, tasks: &Tasks) -> FirewallHandle {
        let Self {
            mode,
            clock,
            entropy,
            reconnection,
            statistics_interval,
            audit,
            float,
            bridge,
            door,
        } = self;
        let handle = FirewallHandle {
            mode,
            float: float.clone(),
            bridge: bridge.as_ref().map(|side| side.bridge.clone()),
            tunnel: door.as_ref().map(|door| door.address),
        };
        if let Some(float) = float.clone() {
            tasks.spawn_essential("float", float.run(tasks.clone()));
        }
        if let (Some(door), Some(float)) = (door, float.clone()) {
            tasks.spawn_essential("bridges", door.run(float.hub.clone(), clock, tasks.clone()));
        }
        let keep = |reach: Reach, owner: Arc<dyn Owner>, name: String| {
            let keeper = Keeper {
                reach,
                owner,
                entropy: entropy.clone(),
                pauses: reconnection,
                tasks: tasks.clone(),
            };
            tasks.spawn_essential(name, keeper.run());
        };
        if let Some(BridgeSide {
            bridge,
            nodes,
            mut floats,
        }) = bridge
        {
            for (index, reach) in nodes.into_iter().enumerate() {
                let name = format!("link to node {reach}");
                let link = NodeLink {
                    bridge: bridge.clone(),
                    index,
                    reach: reach.clone(),
                };
                keep(reach, Arc::new(link), name);
            }
            floats.extend(float.map(|float| within(float.hub.clone(), tasks.clone())));
            for reach in floats {
                let name = format!("link to float {reach}");
                let bridge = bridge.clone();
                keep(reach, Arc::new(FloatLink { bridge }), name);
            }
        }
        let shutdown = tasks.shutdown().clone();
        tasks.spawn("statistics", async move {
            loop {
                tokio::select! {
                    () = shutdown.requested() => return,
                    () = sleep(statistics_interval) => {}
                }
                tracing::info!("connections of peers: {:?}", audit.statistics());
            }
        });
        handle
    }
}

impl FirewallHandle {
    /// How it stands.
    pub fn status(&self) -> FirewallStatus {
        let float = self.float.as_ref();
        let bridge = self.bridge.as_ref();
        FirewallStatus {
            mode: self.mode,
            listening: float.and_then(|float| *float.listening.borrow()),
            bridges: float.map_or(0, |float| float.hub.count()),
            nodes: bridge.map_or(0, |bridge| bridge.nodes()),
            floats: bridge.map_or(0, |bridge| *bridge.floats.borrow()),
            pending_handshakes: float.map_or(0, |float| float.pending.count()),
        }
    }

    /// Where a float awaits its bridges: the port that was asked for, or the free one that was found.
    pub fn tunnel_address(&self) -> Option<SocketAddr> {
        self.tunnel
    }

    /// Whether peers can come through, for load balancers and whoever watches.
    pub fn readiness(&self) -> ReadyReport {
        let status = self.status();
        let (ready, text) = match status.mode {
            FirewallMode::FloatOuter if status.bridges == 0 => (false, "no bridge is connected"),
            FirewallMode::FloatOuter | FirewallMode::SenderReceiver
                if status.listening.is_none() =>
            {
                (false, "no node is connected")
            }
            FirewallMode::BridgeInner if status.nodes == 0 => (false, "no node is connected"),
            FirewallMode::BridgeInner if status.floats == 0 => (false, "no float is connected"),
            _ => (true, "active"),
        };
        ReadyReport::new(ready, text)
            .with("mode", status.mode.to_string())
            .with("bridges", status.bridges)
            .with("nodes", status.nodes)
            .with("floats", status.floats)
    }
}

impl Door {
    /// Accepts bridges until stopping is requested.
    async fn run(self, hub: Arc<Hub<BoxStream>>, clock: CertificateClock, tasks: Tasks) {
        tracing::info!("bridges are accepted on {}", self.address);
        let acceptor = TlsAcceptor::from(self.link.server_config(clock));
        let pending = Pending::new(MAX_PENDING_BRIDGES);
        let shutdown = tasks.shutdown().clone();
        let (expected, limit) = (Arc::new(self.expected), self.handshake_timeout);
        accept::each(self.listener, &pending, &tasks, |tcp, from, entry| {
            let bridge = Incoming {
                hub: hub.clone(),
                expected: expected.clone(),
                limit,
                shutdown: shutdown.clone(),
            };
            bridge.serve(acceptor.clone(), tcp, from, entry)
        })
        .await;
    }
}

/// A connection on the port for bridges.
struct Incoming {
    hub: Arc<Hub<BoxStream>>,
    expected: Arc<X500Name>,
    limit: Duration,
    shutdown: Shutdown,
}

impl Incoming {
    async fn serve(self, acceptor: TlsAcceptor, tcp: TcpStream, from: SocketAddr, entry: Entry) {
        let shaken = handshake(&acceptor, tcp);
        let Some((tls, name)) = entry.admit(shaken, self.limit, from, &self.shutdown).await else {
            return;
        };
        if name != *self.expected {
            tracing::warn!(%from, "refused a bridge: it is {name}, and {} was expected", self.expected);
            return;
        }
        let stream: BoxStream = Box::new(tls);
        let from = from.to_string();
        let arrived = self.hub.receive(stream, &name, &from, &self.shutdown).await;
        if arrived.is_some() {
            tracing::warn!(
                from,
                "a bridge has sent what only a node may be sent; it is refused"
            );
        }
    }
}

/// The way from a bridge to a float in the same process.
fn within(hub: Arc<Hub<BoxStream>>, tasks: Tasks) -> Reach {
    let name: X500Name = "O=Bridge, L=Inside, C=US"
        .parse()
        .expect("the name has all that a name needs");
    Reach::Here(Arc::new(move || {
        let (inner, outer) = duplex(MEMORY_BYTES);
        let (hub, name, shutdown) = (hub.clone(), name.clone(), tasks.shutdown().clone());
        tasks.spawn("tunnel within this process", async move {
            let outer: BoxStream = Box::new(outer);
            hub.receive(outer, &name, "this process", &shutdown).await;
        });
        Box::new(inner)
    }))
}

fn socket_address(key: &'static str, address: &HostAndPort) -> Result<SocketAddr, FirewallError> {
    let refused = |source| FirewallError::Address {
        key,
        address: address.clone(),
        source,
    };
    let mut found = (address.host.as_str(), address.port)
        .to_socket_addrs()
        .map_err(refused)?;
    found
        .next()
        .ok_or_else(|| refused(io::Error::other("the name leads to no address")))
}
