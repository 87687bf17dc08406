//! Which consenters are heard of: counted by the leader, told to the others, asked by the check that a configuration
//! update leaves a working cluster.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message as _;
use quorate_consensus::{GroupState, Status};
use quorate_fabric::proto::etcdraft::ClusterMetadata;

/// Ticks for which the number of active nodes must not change before it is told to others.
const STABLE_TICKS: u32 = 3;

/// Observations in a row that a node may miss before it counts as gone. Raft forgets once per election time-out whom it has
/// heard of, and hears of those that live within a tick or two: without this, every such moment would look like the loss
/// of everybody, and with a short time-out the number would never be stable.
const FORGIVEN: u32 = 2;

/// A leader's observation of its followers, and everybody's knowledge of it.
#[derive(Debug, Default)]
pub struct Activity {
    active: Vec<u64>,
    stable_for: u32,
    /// How many observations in a row each follower has missed.
    missed: BTreeMap<u64, u32>,
    /// What still has to ride on the next message to each destination.
    due: BTreeMap<u64, Bytes>,
}

impl Activity {
    /// The ids of the active nodes, as far as known; empty while there is no leader.
    pub fn active(&self) -> &[u64] {
        &self.active
    }

    /// Looks at the group after a tick. Answers the ids when they were stable for long enough to be told.
    pub fn observe(&mut self, status: &Status) -> Option<&[u64]> {
        if status.role.leader == 0 {
            self.active.clear();
            self.due.clear();
            self.missed.clear();
            return None;
        }
        if status.role.state != GroupState::Leader {
            self.due.clear();
            self.missed.clear();
            return None;
        }
        let mut current = vec![status.id];
        let mut missed = BTreeMap::new();
        for member in status.members.iter().filter(|one| one.id != status.id) {
            let before = self.missed.get(&member.id).copied();
            let times = if member.recent_active {
                0
            } else {
                // Who was never heard of has nothing to be forgiven for.
                before.map_or(FORGIVEN + 1, |times| times.saturating_add(1))
            };
            if times <= FORGIVEN {
                current.push(member.id);
            }
            missed.insert(member.id, times);
        }
        self.missed = missed;
        let stable = current.len() == self.active.len();
        self.active = current;
        if !stable {
            self.stable_for = 0;
            return None;
        }
        if self.stable_for < STABLE_TICKS {
            self.stable_for += 1;
            return None;
        }
        self.stable_for = 0;
        let message = Bytes::from(
            ClusterMetadata {
                active_nodes: self.active.clone(),
            }
            .encode_to_vec(),
        );
        self.due = status
            .members
            .iter()
            .filter(|member| member.id != status.id)
            .map(|member| (member.id, message.clone()))
            .collect();
        Some(&self.active)
    }

    /// What rides on the message that is sent to `to` now; empty most of the time.
    pub fn take(&mut self, to: u64) -> Bytes {
        self.due.remove(&to).unwrap_or_default()
    }

    /// What the leader says.
    ///
    /// # Errors
    /// The bytes are no `ClusterMetadata`.
    pub fn learn(&mut self, metadata: &[u8]) -> Result<&[u64], prost::DecodeError> {
        self.active = ClusterMetadata::decode(metadata)?.active_nodes;
        Ok(&self.active)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use quorate_consensus::{Member, Role};

    use super::*;

    fn status(state: GroupState, leader: u64, heard: &[u64]) -> Status {
        Status {
            id: 2,
            role: Role { leader, state },
            term: 1,
            commit: 1,
            applied: 1,
            first: 1,
            last: 1,
            members: (1..=3)
                .map(|id| Member {
                    id,
                    matched: 1,
                    next: 2,
                    recent_active: heard.contains(&id),
                })
                .collect(),
        }
    }

    #[test]
    fn it_is_told_when_stable_and_rides_once_on_each_way() {
        let mut activity = Activity::default();
        let leading = |heard: &[u64]| status(GroupState::Leader, 2, heard);
        // The first observation differs from nothing, three more make it stable, the fifth tells.
        for _ in 0..4 {
            assert_eq!(activity.observe(&leading(&[1, 3])), None);
        }
        assert_eq!(activity.take(1), Bytes::new());
        assert_eq!(activity.observe(&leading(&[1, 3])), Some(&[2, 1, 3][..]));
        let told = activity.take(1);
        assert_eq!(activity.take(1), Bytes::new());
        assert!(!activity.take(3).is_empty());

        let mut follower = Activity::default();
        assert_eq!(follower.learn(&told).unwrap(), [2, 1, 3]);
        assert_eq!(
            follower.observe(&status(GroupState::Follower, 2, &[])),
            None
        );
        assert_eq!(follower.active(), [2, 1, 3]);
        follower.observe(&status(GroupState::PreCandidate, 0, &[]));
        assert!(follower.active().is_empty());
        assert!(follower.learn(b"\xff").is_err());

        // One falls silent: that is forgiven twice, then it is known here; told when stable.
        for _ in 0..2 {
            assert_eq!(activity.observe(&leading(&[3])), None);
            assert_eq!(activity.active(), [2, 1, 3]);
        }
        activity.observe(&leading(&[3]));
        assert_eq!(activity.active(), [2, 3]);
    }

    /// With five ticks to an election Raft forgets everybody at every fifth.
    #[test]
    fn a_short_memory_of_raft_is_no_loss_of_nodes() {
        let mut activity = Activity::default();
        let mut told = 0;
        for tick in 0..25 {
            let heard: &[u64] = if tick % 5 == 0 { &[] } else { &[1, 3] };
            let observed = activity.observe(&status(GroupState::Leader, 2, heard));
            told += u32::from(observed.is_some());
            if tick > 0 {
                assert_eq!(activity.active(), [2, 1, 3], "at tick {tick}");
            }
        }
        assert!(told > 3, "told {told} times");
    }
}
