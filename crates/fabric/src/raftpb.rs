//! Raft's messages between orderers: etcd's encoding on one side, the types of the crate `raft` on the other.
//!
//! The two agree in field numbers but not in all meanings, and the parser that comes with the crate `raft` must not
//! see bytes from the network. So this codec is written by hand: it writes what etcd's library writes, byte for
//! byte, and it refuses what a healthy orderer never sends and what the crate `raft` would stumble over.

use bytes::Bytes;
use raft::eraftpb::{ConfChange, ConfState, Entry, HardState, Message, Snapshot};

/// Why bytes are no raft message, or none that may come from another orderer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RaftpbError {
    /// The bytes are cut off, or a field has the wrong kind.
    #[error("malformed raftpb.{message}")]
    Malformed {
        /// Which message.
        message: &'static str,
    },
    /// The message is well-formed but no orderer sends such a one.
    #[error("unacceptable raftpb.{message}: {reason}")]
    Unacceptable {
        /// Which message.
        message: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

/// Reads a message from another orderer. Entries and snapshot share the given bytes.
pub fn decode_message(encoded: &Bytes) -> Result<Message, RaftpbError> {
    let _ = encoded;
    Err(RaftpbError::Malformed { message: "Message" })
}

/// The bytes that etcd's library would write for the message.
pub fn encode_message(message: &Message) -> Vec<u8> {
    let _ = message;
    Vec::new()
}

/// Reads a log entry.
pub fn decode_entry(encoded: &Bytes) -> Result<Entry, RaftpbError> {
    let _ = encoded;
    Err(RaftpbError::Malformed { message: "Entry" })
}

/// The bytes that etcd's library would write for the entry.
pub fn encode_entry(entry: &Entry) -> Vec<u8> {
    let _ = entry;
    Vec::new()
}

/// Reads a snapshot.
pub fn decode_snapshot(encoded: &Bytes) -> Result<Snapshot, RaftpbError> {
    let _ = encoded;
    Err(RaftpbError::Malformed {
        message: "Snapshot",
    })
}

/// The bytes that etcd's library would write for the snapshot.
pub fn encode_snapshot(snapshot: &Snapshot) -> Vec<u8> {
    let _ = snapshot;
    Vec::new()
}

/// Reads a hard state.
pub fn decode_hard_state(encoded: &Bytes) -> Result<HardState, RaftpbError> {
    let _ = encoded;
    Err(RaftpbError::Malformed {
        message: "HardState",
    })
}

/// The bytes that etcd's library would write for the hard state.
pub fn encode_hard_state(state: &HardState) -> Vec<u8> {
    let _ = state;
    Vec::new()
}

/// Reads the members of a group.
pub fn decode_conf_state(encoded: &Bytes) -> Result<ConfState, RaftpbError> {
    let _ = encoded;
    Err(RaftpbError::Malformed {
        message: "ConfState",
    })
}

/// The bytes that etcd's library would write for the members.
pub fn encode_conf_state(state: &ConfState) -> Vec<u8> {
    let _ = state;
    Vec::new()
}

/// Reads a membership change. Only adding and removing a voter are accepted: Fabric has no other.
pub fn decode_conf_change(encoded: &Bytes) -> Result<ConfChange, RaftpbError> {
    let _ = encoded;
    Err(RaftpbError::Malformed {
        message: "ConfChange",
    })
}

/// The bytes that etcd's library would write for the membership change.
pub fn encode_conf_change(change: &ConfChange) -> Vec<u8> {
    let _ = change;
    Vec::new()
}
