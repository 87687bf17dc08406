//! The gRPC services of an ordering node, as bytes on the wire.
//!
//! `AtomicBroadcast` is written by hand. A generated service would decode an envelope into a message, and unknown
//! fields that the sender signed would be lost from the block; and it would decode a stored block only to encode it
//! again. So requests arrive as [`RawEnvelope`]s, and a delivered block leaves as the bytes that the ledger holds.
//!
//! What the services *mean* is decided by a [`Broadcast`] and a [`Deliver`], which turn a stream of requests into a
//! stream of responses and know nothing of gRPC beyond [`tonic::Status`]. [`AtomicBroadcastClient`] is the other end, for
//! tools, for replication and for load.
//!
//! [`RawEnvelope`]: quorate_fabric::envelope::RawEnvelope

mod calls;
mod client;
mod messages;
mod seek;
mod server;
#[cfg(test)]
mod tests;

pub use calls::{Call, StreamMetrics};
pub use client::AtomicBroadcastClient;
pub use messages::DeliverResponse;
pub use seek::{Position, SeekRequest};
pub use server::{AtomicBroadcastServer, Broadcast, Caller, Deliver, Requests, Responses};

pub use generated::*;

/// The generated clients and servers, for services that need no care about bytes.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/orderer.rs"));
}
