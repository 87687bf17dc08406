//! What can be seen from outside: a snapshot for metrics and the shell, and a stream of connects and disconnects.

use std::fmt;
use std::net::SocketAddr;

use quorate_identity::X500Name;

use crate::options::HostAndPort;

/// Events kept for a subscriber that is slow. One that falls further behind misses some and is told how many.
pub const EVENT_BUFFER: usize = 256;

/// A snapshot of the whole service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Where peers are accepted.
    pub listening: SocketAddr,
    /// Connections whose TLS handshake is not finished.
    pub pending_handshakes: usize,
    /// Incoming connections of authenticated peers.
    pub inbound_connections: usize,
    /// Every peer that we have sent to or heard from, in the order of names.
    pub peers: Vec<PeerStatus>,
}

/// One peer, both directions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerStatus {
    /// Its legal name.
    pub peer: X500Name,
    /// Where it is dialled, in order.
    pub addresses: Vec<HostAndPort>,
    /// What the bridge to it is doing.
    pub bridge: BridgeState,
    /// Whether it is connected to us.
    pub inbound_connected: bool,
    /// Messages sent on the present connection and not yet accepted.
    pub unsettled: usize,
    /// Messages handed to the transport since start, repetitions included.
    pub sent: u64,
    /// Messages that the peer has accepted since start.
    pub accepted: u64,
    /// The last sequence that the peer has accepted; 0 before the first.
    pub accepted_up_to: u64,
    /// Messages that we have accepted from it since start, repetitions included.
    pub received: u64,
    /// Why it was last disconnected, could not be reached or refused something; cleared by the next accepted message.
    pub last_error: Option<String>,
}

/// What the bridge to a peer is doing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum BridgeState {
    /// Nothing to send; no connection is open.
    #[default]
    Idle,
    /// There is something to send, and no address to send it to.
    NoAddress,
    /// Trying this address.
    Connecting(HostAndPort),
    /// Connected there.
    Connected(HostAndPort),
    /// Everything failed; the next attempt comes after a pause.
    Waiting,
    /// The message of this sequence was refused for good, by the peer or by our own size limit. It is kept and tried
    /// again rarely; nothing overtakes it. Somebody has to look at it.
    Refused(u64),
    /// Stopped together with the service.
    Stopped,
}

/// A peer came or went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Who.
    pub peer: X500Name,
    /// Who opened the connection.
    pub direction: Direction,
    /// What happened.
    pub change: Change,
}

/// Who opened a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// The peer did, to send to us.
    Inbound,
    /// We did, to send to the peer.
    Outbound,
}

/// What happened to a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It is open, from or to this address.
    Connected(HostAndPort),
    /// It is gone, for this reason.
    Disconnected(String),
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let peer = &self.peer;
        match (&self.change, self.direction) {
            (Change::Connected(address), Direction::Inbound) => {
                write!(f, "{peer} connected from {address}")
            }
            (Change::Connected(address), Direction::Outbound) => {
                write!(f, "connected to {peer} at {address}")
            }
            (Change::Disconnected(reason), Direction::Inbound) => {
                write!(f, "{peer} disconnected: {reason}")
            }
            (Change::Disconnected(reason), Direction::Outbound) => {
                write!(f, "disconnected from {peer}: {reason}")
            }
        }
    }
}
