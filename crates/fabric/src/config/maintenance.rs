//! Maintenance mode: the only way from one consensus type to another, and the rules for entering and leaving it.

use super::update::ProposedUpdate;
use super::{ChannelConfig, ConfigError, ConsensusState, ETCDRAFT, ORDERER_GROUP, ROOT_GROUP};
use crate::proto::common::ConfigUpdate;

/// The value of the orderer group that holds consensus type, its metadata, and the state.
const CONSENSUS_TYPE: &str = "ConsensusType";

impl ChannelConfig {
    /// Checks an update against the rules of maintenance mode: the state changes alone, and the consensus type only
    /// within it.
    ///
    /// Fabric also lets a channel change to `solo` and `kafka`. This orderer serves neither, so that such a change
    /// could only end the channel: it is refused.
    ///
    /// # Errors
    /// Why the update is refused, without Fabric's `config update for existing channel did not pass maintenance checks`.
    pub fn check_maintenance(&self, proposed: &ProposedUpdate) -> Result<(), ConfigError> {
        inspect(self, proposed)
            .map_err(|error| error.within("config transaction inspection failed"))
    }
}

fn inspect(current: &ChannelConfig, proposed: &ProposedUpdate) -> Result<(), ConfigError> {
    let (old, new) = (current.orderer(), proposed.next.orderer());
    let (old_type, new_type) = (&old.consensus_type, &new.consensus_type);
    let (old_state, new_state) = (old.state.as_str(), new.state.as_str());
    let refuse = |text: String| Err(ConfigError::new(text));

    if !old.capabilities.consensus_type_migration() {
        if new.state != ConsensusState::Normal {
            return refuse(format!(
                "next config attempted to change ConsensusType.State to {new_state}, but capability is disabled"
            ));
        }
        if old_type != new_type {
            return refuse(format!(
                "next config attempted to change ConsensusType.Type from {old_type} to {new_type}, but capability is disabled"
            ));
        }
        return Ok(());
    }

    if old.state != new.state {
        check_consensus_type_only(&proposed.update)?;
        let changing =
            format!("but ConsensusType.State is changing from {old_state} to {new_state}");
        if old_type != new_type {
            return refuse(format!(
                "attempted to change ConsensusType.Type from {old_type} to {new_type}, {changing}"
            ));
        }
        if old.consensus_metadata != new.consensus_metadata {
            return refuse(format!(
                "attempted to change ConsensusType.Metadata, {changing}"
            ));
        }
    }

    if old_type != new_type {
        let change = format!("attempted to change consensus type from {old_type} to {new_type}");
        for (which, state) in [("current", old.state), ("next", new.state)] {
            if state == ConsensusState::Normal {
                return refuse(format!(
                    "{change}, but {which} config ConsensusType.State is not in maintenance mode"
                ));
            }
        }
        if new_type != ETCDRAFT {
            return refuse(format!("{change}, transition not supported"));
        }
    }
    Ok(())
}

/// Checks that the update writes the orderer group's `ConsensusType` and nothing else.
fn check_consensus_type_only(update: &ConfigUpdate) -> Result<(), ConfigError> {
    let refuse = |text: String| Err(ConfigError::new(text));
    let Some(written) = update
        .write_set
        .as_ref()
        .filter(|set| !set.groups.is_empty())
    else {
        return refuse("config update contains no changes".to_owned());
    };
    if !written.values.is_empty() {
        return refuse(format!(
            "config update contains changes to values in group {ROOT_GROUP}"
        ));
    }
    if written.groups.len() > 1 {
        return refuse("config update contains changes to more than one group".to_owned());
    }
    let Some(orderer) = written.groups.get(ORDERER_GROUP) else {
        return refuse(format!("update does not contain the {ORDERER_GROUP} group"));
    };
    if !orderer.groups.is_empty() {
        return refuse(format!(
            "config update contains changes to groups within the {ORDERER_GROUP} group"
        ));
    }
    if !orderer.values.contains_key(CONSENSUS_TYPE) {
        return refuse(format!(
            "config update does not contain the {CONSENSUS_TYPE} value"
        ));
    }
    if orderer.values.len() > 1 {
        return refuse(format!(
            "config update contain more then just the {CONSENSUS_TYPE} value in the {ORDERER_GROUP} group"
        ));
    }
    Ok(())
}
