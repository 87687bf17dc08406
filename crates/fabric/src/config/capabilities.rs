//! Capabilities: what a group of a channel's configuration requires of those who serve it.

use std::collections::BTreeSet;

/// The capabilities of the channel group, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChannelCapabilities {
    required: BTreeSet<String>,
}

/// The capabilities of the orderer group, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OrdererCapabilities {
    required: BTreeSet<String>,
}

/// The capabilities of the application group, by name; an orderer does not judge them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ApplicationCapabilities {
    required: BTreeSet<String>,
}

impl ChannelCapabilities {
    /// The names, in order.
    pub fn required(&self) -> &BTreeSet<String> {
        &self.required
    }
}

impl OrdererCapabilities {
    /// The names, in order.
    pub fn required(&self) -> &BTreeSet<String> {
        &self.required
    }
}

impl ApplicationCapabilities {
    /// The names, in order.
    pub fn required(&self) -> &BTreeSet<String> {
        &self.required
    }
}
