//! What a message must be to be ordered, in Fabric's order and with Fabric's words.
//!
//! Everything here is pure and may be run on any thread: the configuration, the message and the time come in, a
//! verdict comes out. Whether a leader is there to order the message is asked later, by the channel.

use std::sync::Arc;

use quorate_fabric::config::ChannelConfig;
use quorate_fabric::envelope::RawEnvelope;
use quorate_fabric::proto::common::Status;

/// Why a message is not ordered: what Broadcast answers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{info}")]
pub struct Refusal {
    /// The status.
    pub status: Status,
    /// The text next to it.
    pub info: String,
}

impl Refusal {
    /// A refusal with this status and text.
    pub fn new(status: Status, info: impl Into<String>) -> Self {
        Self {
            status,
            info: info.into(),
        }
    }
}

/// What kind of message a channel orders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Anything that the ordering service does not look into.
    Normal,
    /// A change of the channel's configuration, as the `CONFIG` envelope that the block will hold.
    Config,
}

/// A message that has passed its checks under one configuration.
#[derive(Debug, Clone)]
pub struct Checked {
    /// What is to be ordered. For a configuration update: the `CONFIG` envelope made of it.
    pub envelope: RawEnvelope,
    /// What it is.
    pub kind: Kind,
    /// The sequence of the configuration under which it was checked.
    pub validated_at: u64,
}

/// The configuration under which a message is checked, shared with those who read it.
pub type Config = Arc<ChannelConfig>;
