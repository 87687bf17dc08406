//! The service: binds the port, owns the tasks, and gives out handles.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quorate_identity::X500Name;
use quorate_runtime::tasks::StopReport;
use quorate_runtime::{Entropy, Tasks};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{Notify, Semaphore, broadcast};
use tokio_util::sync::CancellationToken;

use crate::accept::{self, Pending};
use crate::bridge::Bridge;
use crate::bridged;
use crate::exchange::{Inbound, OutboundQueue};
use crate::options::{HostAndPort, MAX_ADDRESSES_PER_PEER, Options, OptionsError};
use crate::security::Security;
use crate::status::{BridgeState, Change, Direction, EVENT_BUFFER, Event, PeerStatus, Status};

/// Connections that the kernel keeps for us until we take them.
const LISTEN_BACKLOG: u32 = 1024;

/// Why the service could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// An option makes no sense.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// The port cannot be had: another process has it, or we may not use it, or the address is not this machine's.
    #[error("cannot listen for peers on {address}; is another process using the port?")]
    Listen {
        /// What was asked for.
        address: SocketAddr,
        /// What the operating system says.
        #[source]
        source: std::io::Error,
    },
}

/// The messaging service, bound to its port and not yet running.
#[derive(Debug)]
pub struct Messaging {
    shared: Arc<Shared>,
    listener: TcpListener,
}

impl Messaging {
    /// Checks the options and binds the port. From here on a load balancer's TCP probe succeeds; nobody is answered
    /// before [`Messaging::start`].
    ///
    /// # Errors
    /// See [`BindError`].
    pub fn bind(
        options: Options,
        security: Security,
        inbound: Arc<dyn Inbound>,
        queue: Arc<dyn OutboundQueue>,
        entropy: Entropy,
    ) -> Result<Self, BindError> {
        options.validate()?;
        let listener = listen(options.listen).map_err(|source| BindError::Listen {
            address: options.listen,
            source,
        })?;
        let address = listener.local_addr().map_err(|source| BindError::Listen {
            address: options.listen,
            source,
        })?;
        let dialing = Semaphore::new(options.max_dialing);
        let pending = Pending::new(options.max_pending_handshakes);
        let bridges = bridged::hub(&options, &security);
        let shared = Shared {
            options,
            security,
            inbound,
            queue,
            entropy,
            address,
            dialing,
            peers: Mutex::default(),
            events: broadcast::Sender::new(EVENT_BUFFER),
            pending,
            bridges,
            inbound_connections: AtomicUsize::new(0),
        };
        Ok(Self {
            shared: Arc::new(shared),
            listener,
        })
    }

    /// Where the service listens: the port that was asked for, or the free one that was found.
    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// Starts accepting peers. All tasks, those of later bridges too, belong to a child `messaging` of `tasks`, which
    /// [`Handle::shutdown`] stops.
    pub fn start(self, tasks: &Tasks) -> Handle {
        let handle = Handle {
            shared: self.shared.clone(),
            tasks: tasks.child("messaging"),
        };
        let (shared, tasks) = (self.shared, handle.tasks.clone());
        match shared.bridges.clone() {
            None => tasks.spawn_essential(
                "listener",
                accept::run(shared, self.listener, tasks.clone()),
            ),
            Some(bridges) => tasks.spawn_essential(
                "listener",
                bridged::run(shared, bridges, self.listener, tasks.clone()),
            ),
        }
        handle
    }
}

pub(crate) fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    // A restarted node must get its port back at once, while connections of its former life are still in TIME_WAIT.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(LISTEN_BACKLOG)
}

/// What others hold of the running service; cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    shared: Arc<Shared>,
    tasks: Tasks,
}

impl Handle {
    /// There is something to send to this peer. Starts its bridge if there is none; never blocks, may be called as
    /// often as one likes. Call it after the commit that put the message into the queue, and once at start for every
    /// peer whose queue is not empty.
    pub fn notify(&self, peer: &X500Name) {
        let peer = self.shared.peer(peer);
        peer.wake.notify_one();
        if !peer.bridged.swap(true, Ordering::AcqRel) {
            let bridge = Bridge::new(
                self.shared.clone(),
                peer.clone(),
                self.tasks.shutdown().clone(),
            );
            self.tasks
                .spawn(format!("bridge to {}", peer.name), bridge.run());
        }
    }

    /// Where the peer can be found: tried in this order, in turn. Replaces what was known; a bridge that waits tries
    /// the new addresses at once. At most [`MAX_ADDRESSES_PER_PEER`] are kept.
    pub fn set_addresses(&self, peer: &X500Name, mut addresses: Vec<HostAndPort>) {
        addresses.truncate(MAX_ADDRESSES_PER_PEER);
        let peer = self.shared.peer(peer);
        let changed = {
            let mut state = peer.state();
            let changed = state.addresses != addresses;
            state.addresses = addresses;
            changed
        };
        if changed {
            peer.readdressed.notify_one();
        }
    }

    /// Where the service listens.
    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// How many bridges are connected; `None` for a node that is not behind a firewall.
    pub fn bridges(&self) -> Option<usize> {
        self.shared.bridges.as_ref().map(|bridges| bridges.count())
    }

    /// A snapshot of everything.
    pub fn status(&self) -> Status {
        let peers: Vec<_> = lock(&self.shared.peers).values().cloned().collect();
        Status {
            listening: self.shared.address,
            pending_handshakes: self.shared.pending.count(),
            inbound_connections: self.shared.inbound_connections.load(Ordering::Relaxed),
            peers: peers.iter().map(|peer| peer.status()).collect(),
        }
    }

    /// One peer's part of [`Handle::status`]; `None` for a peer that we have neither sent to nor heard from.
    pub fn peer_status(&self, peer: &X500Name) -> Option<PeerStatus> {
        let peer = lock(&self.shared.peers).get(peer).cloned()?;
        Some(peer.status())
    }

    /// Connects and disconnects from now on. A slow subscriber is told how many events it has missed.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.shared.events.subscribe()
    }

    /// Stops: nobody is accepted any more, no new message is sent or taken, and what is under way is finished: sent
    /// messages are awaited and reported as settled, received ones are delivered and accepted. What does not finish
    /// within the patience is cut off and named in the report; nothing is lost by that, it comes again.
    pub async fn shutdown(&self, patience: Duration) -> StopReport {
        self.tasks.stop(patience).await
    }
}

/// What all tasks of the service share.
pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) security: Security,
    pub(crate) inbound: Arc<dyn Inbound>,
    pub(crate) queue: Arc<dyn OutboundQueue>,
    pub(crate) entropy: Entropy,
    pub(crate) address: SocketAddr,
    pub(crate) dialing: Semaphore,
    /// Grows with the network: peers that our own queue names, and holders of certificates of our root.
    peers: Mutex<BTreeMap<X500Name, Arc<Peer>>>,
    events: broadcast::Sender<Event>,
    pub(crate) pending: Arc<Pending>,
    /// Where peers come through a firewall.
    pub(crate) bridges: Option<Arc<bridged::Bridges>>,
    pub(crate) inbound_connections: AtomicUsize,
}

impl Shared {
    /// The record of this peer, new if need be.
    pub(crate) fn peer(&self, name: &X500Name) -> Arc<Peer> {
        lock(&self.peers)
            .entry(name.clone())
            .or_insert_with(|| Arc::new(Peer::new(name.clone())))
            .clone()
    }

    /// Tells subscribers; nobody needs to listen.
    pub(crate) fn publish(&self, peer: &X500Name, direction: Direction, change: Change) {
        let event = Event {
            peer: peer.clone(),
            direction,
            change,
        };
        tracing::info!(peer = %event.peer, "{event}");
        let _ = self.events.send(event);
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("own_name", &self.options.own_name)
            .field("address", &self.address)
            .finish()
    }
}

/// One peer: what both directions know of it, and how its tasks are reached.
pub(crate) struct Peer {
    pub(crate) name: X500Name,
    /// There is something to send.
    pub(crate) wake: Notify,
    /// The addresses have changed.
    pub(crate) readdressed: Notify,
    bridged: AtomicBool,
    pub(crate) sent: AtomicU64,
    pub(crate) accepted: AtomicU64,
    pub(crate) received: AtomicU64,
    /// As many messages of this peer are delivered one by one, to find the one that is refused.
    pub(crate) singly: AtomicU64,
    state: Mutex<PeerState>,
    /// Held by the one incoming connection of this peer that may deliver.
    pub(crate) turn: Arc<tokio::sync::Mutex<()>>,
    /// Ends the incoming connection that holds the turn, or waits for it.
    newest: Mutex<CancellationToken>,
}

/// The part of a peer's status that is not a counter.
#[derive(Debug, Default)]
pub(crate) struct PeerState {
    pub(crate) addresses: Vec<HostAndPort>,
    pub(crate) bridge: BridgeState,
    pub(crate) inbound_connected: bool,
    pub(crate) unsettled: usize,
    pub(crate) accepted_up_to: u64,
    pub(crate) last_error: Option<String>,
}

impl Peer {
    fn new(name: X500Name) -> Self {
        Self {
            name,
            wake: Notify::new(),
            readdressed: Notify::new(),
            bridged: AtomicBool::new(false),
            sent: AtomicU64::new(0),
            accepted: AtomicU64::new(0),
            received: AtomicU64::new(0),
            singly: AtomicU64::new(0),
            state: Mutex::default(),
            turn: Arc::default(),
            newest: Mutex::new(CancellationToken::new()),
        }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, PeerState> {
        lock(&self.state)
    }

    /// Makes a connection the newest of its peer: every older one is asked to end. The token asks this one.
    pub(crate) fn supersede(&self) -> CancellationToken {
        let token = CancellationToken::new();
        std::mem::replace(&mut *lock(&self.newest), token.clone()).cancel();
        token
    }

    fn status(&self) -> PeerStatus {
        let state = self.state();
        PeerStatus {
            peer: self.name.clone(),
            addresses: state.addresses.clone(),
            bridge: state.bridge.clone(),
            inbound_connected: state.inbound_connected,
            unsettled: state.unsettled,
            sent: self.sent.load(Ordering::Relaxed),
            accepted: self.accepted.load(Ordering::Relaxed),
            accepted_up_to: state.accepted_up_to,
            received: self.received.load(Ordering::Relaxed),
            last_error: state.last_error.clone(),
        }
    }
}

/// Nothing panics while these locks are held, so a poisoned one holds good data.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
