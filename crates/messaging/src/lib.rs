//! Authenticated, ordered delivery of messages between parties.
//!
//! Messages travel over AMQP 1.0 on mutual TLS. This crate knows bytes and legal names; it knows neither flows nor
//! sessions, and owns no table: what is to be sent is read from an [`OutboundQueue`], what arrives is handed to an
//! [`Inbound`], and both are durable elsewhere.
//!
//! What it promises:
//!
//! * a message is accepted only after the receiver's [`Inbound::deliver`] has said that it is durable;
//! * messages of one peer are delivered in the order of its queue, each at least once; a message may come again after
//!   a lost connection, and (sender, epoch, sequence) tells that it does;
//! * the sender named in a message is the one in the TLS certificate of the connection it came over;
//! * a peer that is down, slow or hostile costs its own bridge or connection and nothing else.
//!
//! Between a node and its peers may stand the node's own firewall ([`firewall`]): a float in the DMZ and a bridge inside,
//! joined by a `tunnel`; `bridged` is the node's end of it. They move bytes and promise nothing: what is said above holds
//! from node to node, whatever stands in between.
//!
//! Start reading at [`Messaging`] and [`Handle`]; then `bridge` and `carriage` (one task per peer that we send to), `accept` and
//! `inbound` (one task per connection that we receive from). `wire` and `guard` stand between the socket and the AMQP
//! library, which believes more of what it reads than one should believe of a stranger.

mod accept;
mod bridge;
mod bridged;
mod carriage;
mod dial;
mod exchange;
pub mod firewall;
mod guard;
mod inbound;
mod message;
mod options;
mod security;
mod service;
mod status;
mod tunnel;
mod wire;

pub use exchange::{Epoch, Inbound, Incoming, OutboundQueue, Outgoing, QueueError, Refusal};
pub use options::*;
pub use security::Security;
pub use service::{BindError, Handle, Messaging};
pub use status::{BridgeState, Change, Direction, EVENT_BUFFER, Event, PeerStatus, Status};
