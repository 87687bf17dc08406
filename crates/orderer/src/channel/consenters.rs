//! Who the consenters of a channel are, under which Raft ids, and how a configuration block changes that.
//!
//! Raft ids are handed out in the order of the configuration, from 1, and never again. Which id belongs to which
//! consenter is not in the configuration but in the metadata of every block: the ids in the order of the consenters.

use std::collections::BTreeMap;

use quorate_consensus::Membership;
use quorate_fabric::config::ConfigError;
use quorate_fabric::config::raft_config::{self, ConsenterChange};
use quorate_fabric::proto::common::{
    ConfigEnvelope, ConfigGroup, ConfigUpdate, ConfigUpdateEnvelope, Payload,
};
use quorate_fabric::proto::etcdraft::{BlockMetadata, ConfigMetadata, Consenter};
use quorate_identity::SecureHash;

use prost::Message as _;

use crate::cluster::Member;

/// The consenters of a channel by Raft id.
#[derive(Debug, Clone, PartialEq)]
pub struct Consenters {
    /// In the order that block metadata has them.
    ids: Vec<u64>,
    next_id: u64,
    by_id: BTreeMap<u64, Consenter>,
}

/// What a configuration block makes of the consenters.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// The consenters from now on.
    pub consenters: Consenters,
    /// What the Raft group has to decide.
    pub membership: Option<Membership>,
    /// The one whose certificates were replaced: it keeps its id, no decision is needed.
    pub rotated: Option<u64>,
}

/// Why consenters make no sense.
#[derive(Debug, thiserror::Error)]
pub enum ConsentersError {
    /// The newest block and the configuration disagree.
    #[error(
        "the block metadata name {ids} consenter ids, but the configuration has {consenters} consenters"
    )]
    Count {
        /// Ids in the metadata.
        ids: usize,
        /// Consenters in the configuration.
        consenters: usize,
    },
    /// A configuration block changes more than Raft can change at once.
    #[error("the consenters of the configuration do not follow from those before")]
    Change(#[from] ConfigError),
}

impl Consenters {
    /// The consenters of a channel whose newest block carries `metadata`; without any (a genesis block) the ids are
    /// handed out anew.
    ///
    /// # Errors
    /// [`ConsentersError::Count`].
    pub fn new(
        metadata: Option<&BlockMetadata>,
        config: &ConfigMetadata,
    ) -> Result<Self, ConsentersError> {
        let count = config.consenters.len();
        let (ids, next_id) = match metadata {
            Some(metadata) if !metadata.consenter_ids.is_empty() => {
                (metadata.consenter_ids.clone(), metadata.next_consenter_id)
            }
            _ => {
                let count = u64::try_from(count).unwrap_or(u64::MAX);
                ((1..=count).collect(), count + 1)
            }
        };
        if ids.len() != count {
            return Err(ConsentersError::Count {
                ids: ids.len(),
                consenters: count,
            });
        }
        let by_id = ids
            .iter()
            .copied()
            .zip(config.consenters.iter().cloned())
            .collect();
        Ok(Self {
            ids,
            next_id,
            by_id,
        })
    }

    /// The ids, in the order of the configuration.
    pub fn ids(&self) -> &[u64] {
        &self.ids
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.ids.len()
    }

    /// Whether this id is one of them.
    pub fn contains(&self, id: u64) -> bool {
        self.by_id.contains_key(&id)
    }

    /// The id of the first consenter that `wanted` recognises.
    pub fn find(&self, wanted: impl Fn(&Consenter) -> bool) -> Option<u64> {
        self.ids
            .iter()
            .copied()
            .find(|id| self.by_id.get(id).is_some_and(&wanted))
    }

    /// What goes into the metadata of a block.
    pub fn metadata(&self, raft_index: u64) -> BlockMetadata {
        BlockMetadata {
            consenter_ids: self.ids.clone(),
            next_consenter_id: self.next_id,
            raft_index,
        }
    }

    /// Where they are reached, for the transport.
    pub fn members(&self) -> Vec<Member> {
        self.by_id
            .iter()
            .map(|(id, consenter)| Member {
                id: *id,
                host: consenter.host.clone(),
                port: u16::try_from(consenter.port).unwrap_or(0),
                client_cert: consenter.client_tls_cert.clone().into(),
                server_cert: consenter.server_tls_cert.clone().into(),
            })
            .collect()
    }

    /// What `new` makes of them. One who comes while another goes takes over its id.
    ///
    /// # Errors
    /// [`ConsentersError::Change`].
    pub fn change(&self, new: &ConfigMetadata) -> Result<Change, ConsentersError> {
        let old: Vec<Consenter> = self
            .ids
            .iter()
            .filter_map(|id| self.by_id.get(id).cloned())
            .collect();
        let change = raft_config::membership_change(&self.metadata(0), &old, &new.consenters)?;
        let (membership, rotated) = match change.change {
            ConsenterChange::None => (None, None),
            ConsenterChange::Added(id) => (Some(Membership::Add(id)), None),
            ConsenterChange::Removed(id) => (Some(Membership::Remove(id)), None),
            ConsenterChange::Rotated(id) => (None, Some(id)),
        };
        let by_id = change
            .consenter_ids
            .iter()
            .copied()
            .zip(new.consenters.iter().cloned())
            .collect();
        Ok(Change {
            consenters: Consenters {
                ids: change.consenter_ids,
                next_id: change.next_consenter_id,
                by_id,
            },
            membership,
            rotated,
        })
    }
}

/// The one of `count` consenters that stands for election first when a channel is born, so that its consenters do not
/// compete. Fabric's rule: the same on orderers of both makes.
pub fn first_candidate(channel: &str, count: usize) -> u64 {
    let count = u64::try_from(count).unwrap_or(u64::MAX).max(1);
    let hash = SecureHash::of(channel.as_bytes());
    let (mut number, mut shift) = (0_u64, 0_u32);
    for byte in hash.as_bytes().iter().skip(24) {
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return number % count + 1;
        }
        shift += 7;
    }
    // Eight bytes without an end are no number; Fabric's reader answers zero.
    1
}

/// The update that led to a configuration, as bytes that identify it, and whether it writes `ConsensusType`: whether
/// it gives it another version than the one it says it has read. (Without a read one that is 0.)
pub fn last_update(config: &ConfigEnvelope) -> (Vec<u8>, bool) {
    let Some(envelope) = &config.last_update else {
        return (Vec::new(), false);
    };
    let update = Payload::decode(envelope.payload.clone())
        .and_then(|payload| ConfigUpdateEnvelope::decode(payload.data.as_slice()))
        .and_then(|update| ConfigUpdate::decode(update.config_update.as_slice()));
    let touches = update.is_ok_and(|update| {
        let version = |group: &Option<ConfigGroup>| {
            let orderer = group.as_ref()?.groups.get("Orderer")?;
            Some(orderer.values.get("ConsensusType")?.version)
        };
        let read = version(&update.read_set).unwrap_or(0);
        version(&update.write_set).is_some_and(|written| written != read)
    });
    (envelope.encode_to_vec(), touches)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use super::*;

    #[test]
    fn the_first_candidate_is_fabrics() {
        // Seen in the logs of Fabric's orderers.
        assert_eq!(first_candidate("systemchannel", 3), 2);
        assert_eq!(first_candidate("testchannel", 3), 2);
        assert_eq!(first_candidate("participation-trophy", 3), 1);
        // Both recorded traces of this channel begin with orderer1, Raft id 2.
        assert_eq!(first_candidate("fixture", 3), 2);
        assert_eq!(first_candidate("anything", 1), 1);
    }

    fn consenter(name: &str) -> Consenter {
        Consenter {
            host: name.to_owned(),
            port: 7050,
            client_tls_cert: name.as_bytes().to_vec(),
            server_tls_cert: name.as_bytes().to_vec(),
        }
    }

    fn config(names: &[&str]) -> ConfigMetadata {
        ConfigMetadata {
            consenters: names.iter().map(|name| consenter(name)).collect(),
            options: None,
        }
    }

    #[test]
    fn ids_are_handed_out_once_and_a_replacement_keeps_its_predecessors() {
        let born = Consenters::new(None, &config(&["a", "b", "c"])).unwrap();
        assert_eq!(born.ids(), [1, 2, 3]);

        let grown = born.change(&config(&["a", "b", "c", "d"])).unwrap();
        assert_eq!(grown.membership, Some(Membership::Add(4)));
        assert_eq!(grown.consenters.ids(), [1, 2, 3, 4]);

        let shrunk = grown.consenters.change(&config(&["a", "c", "d"])).unwrap();
        assert_eq!(shrunk.membership, Some(Membership::Remove(2)));
        assert_eq!(shrunk.consenters.ids(), [1, 3, 4]);

        let again = shrunk
            .consenters
            .change(&config(&["a", "c", "d", "b"]))
            .unwrap();
        assert_eq!(again.membership, Some(Membership::Add(5)));
        let metadata = again.consenters.metadata(7);
        assert_eq!(metadata.consenter_ids, [1, 3, 4, 5]);
        assert_eq!((metadata.next_consenter_id, metadata.raft_index), (6, 7));

        let rotated = again
            .consenters
            .change(&config(&["a", "e", "d", "b"]))
            .unwrap();
        assert_eq!((rotated.membership, rotated.rotated), (None, Some(3)));
        assert_eq!(rotated.consenters.find(|c| c.host == "e"), Some(3));

        assert!(matches!(
            rotated.consenters.change(&config(&["a", "x", "y", "b"])),
            Err(ConsentersError::Change(_))
        ));
        // Read back from a block.
        assert_eq!(
            Consenters::new(
                Some(&rotated.consenters.metadata(9)),
                &config(&["a", "e", "d", "b"])
            )
            .unwrap(),
            rotated.consenters
        );
        assert!(Consenters::new(Some(&metadata), &config(&["a"])).is_err());
    }
}
