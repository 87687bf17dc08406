//! The API of a node for applications and operators: plain data, its protobuf form, and a client
//! that survives failovers. The server is the node's.
//!
//! Start reading at [`api`] for what can be asked and answered, at [`Client`] for asking, and at
//! [`Method`] for the names by which permissions and the shell know the operations. [`wire`] is
//! for the node's gRPC edge; an application never needs it.

pub mod api;
mod client;
mod error;
mod method;
pub mod wire;

pub use client::{
    Client, ClientError, Event, Events, FlowWatcher, Options, OptionsError, Password, RunningFlow,
    Tls, TrackFrom, VaultTracker,
};
pub use error::{ErrorCode, RpcError};
pub use method::{Method, UnknownMethod};

/// The version of this API; client and server tell each other theirs on connecting.
pub const API_VERSION: u32 = 1;

/// Largest message in either direction, in bytes. A transaction or attachment of the largest
/// permitted size fits with what is around it.
pub const MAX_MESSAGE_BYTES: usize = 10_485_760 + 64 * 1024;
