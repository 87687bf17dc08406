//! Capabilities: what a group of a channel's configuration requires of those who serve it, and the rules each switches on.

use std::collections::BTreeSet;

use super::ConfigError;
use crate::proto::common::Capabilities;

/// Names that this orderer understands in the channel group, as Fabric v2.5 does.
const CHANNEL: [&str; 5] = ["V1_1", "V1_3", "V1_4_2", "V1_4_3", "V2_0"];
/// Names that this orderer understands in the orderer group.
const ORDERER: [&str; 3] = ["V1_1", "V1_4_2", "V2_0"];

/// The capabilities of the channel group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChannelCapabilities {
    required: BTreeSet<String>,
}

/// The capabilities of the orderer group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OrdererCapabilities {
    required: BTreeSet<String>,
}

/// The capabilities of the application group. An orderer need not understand them: peers do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ApplicationCapabilities {
    required: BTreeSet<String>,
}

impl ChannelCapabilities {
    pub(super) fn new(capabilities: Capabilities) -> Self {
        Self {
            required: names(capabilities),
        }
    }

    /// The names, in order.
    pub fn required(&self) -> &BTreeSet<String> {
        &self.required
    }

    /// Whether orderer organisations name their own endpoints; if not, channel-wide addresses are mandatory.
    pub fn org_specific_orderer_endpoints(&self) -> bool {
        any(&self.required, &["V1_4_2", "V1_4_3", "V2_0"])
    }

    /// Whether the consensus type may change at all (in maintenance mode).
    pub fn consensus_type_migration(&self) -> bool {
        any(&self.required, &["V1_4_2", "V1_4_3", "V2_0"])
    }

    pub(super) fn supported(&self) -> Result<(), ConfigError> {
        supported("Channel", "channel", &self.required, &CHANNEL)
    }
}

impl OrdererCapabilities {
    pub(super) fn new(capabilities: Capabilities) -> Self {
        Self {
            required: names(capabilities),
        }
    }

    /// The names, in order.
    pub fn required(&self) -> &BTreeSet<String> {
        &self.required
    }

    /// Whether a new channel starts with all versions at zero and the system channel's mod policy.
    pub fn predictable_channel_template(&self) -> bool {
        any(&self.required, &ORDERER)
    }

    /// Whether a message whose creator's certificate has expired is refused.
    pub fn expiration_check(&self) -> bool {
        any(&self.required, &ORDERER)
    }

    /// Whether a message validated under an old configuration is validated again before it is ordered.
    pub fn resubmission(&self) -> bool {
        any(&self.required, &ORDERER)
    }

    /// Whether there is a maintenance mode, and in it a way from one consensus type to another.
    pub fn consensus_type_migration(&self) -> bool {
        any(&self.required, &["V1_4_2", "V2_0"])
    }

    /// Whether a new channel's creation policy stands in the template as `Admins`.
    pub fn use_channel_creation_policy_as_admins(&self) -> bool {
        any(&self.required, &["V2_0"])
    }

    pub(super) fn supported(&self) -> Result<(), ConfigError> {
        supported("Orderer", "orderer", &self.required, &ORDERER)
    }
}

impl ApplicationCapabilities {
    pub(super) fn new(capabilities: Capabilities) -> Self {
        Self {
            required: names(capabilities),
        }
    }

    /// The names, in order.
    pub fn required(&self) -> &BTreeSet<String> {
        &self.required
    }

    /// Whether the application group may have access control lists.
    pub fn acls(&self) -> bool {
        any(&self.required, &["V1_2", "V1_3", "V1_4_2", "V2_0", "V2_5"])
    }
}

fn names(capabilities: Capabilities) -> BTreeSet<String> {
    capabilities.capabilities.into_keys().collect()
}

fn any(required: &BTreeSet<String>, names: &[&str]) -> bool {
    names.iter().any(|&name| required.contains(name))
}

/// Fabric says what is missing twice.
fn supported(
    title: &str,
    group: &str,
    required: &BTreeSet<String>,
    known: &[&str],
) -> Result<(), ConfigError> {
    let Some(unknown) = required.iter().find(|name| !known.contains(&name.as_str())) else {
        return Ok(());
    };
    let missing = format!("{title} capability {unknown} is required but not supported");
    Err(ConfigError::incompatible(format!(
        "config requires unsupported {group} capabilities: {missing}: {missing}"
    )))
}
