//! The consenter set and the options of an etcdraft channel: what is acceptable, and how one set becomes the next.
//!
//! A consenter is known by its client TLS certificate. It keeps its Raft id as long as it keeps that certificate; when
//! exactly one goes and one comes, the new one takes over the id of the old one. More than that at a time is refused,
//! because Raft changes its members one by one. Start with [`check_change`]; [`membership_change`] says what an accepted
//! change means for the group.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use quorate_identity::UnixTime;

use super::certificates::{Address, Authorities, Expired, MAX_QUOTED_BYTES, check_certificates};
use super::duration::GoDuration;
use super::error::decode;
use super::{ChannelConfig, ConfigError, ETCDRAFT};
use crate::proto::etcdraft::{BlockMetadata, ConfigMetadata, Consenter};

/// Bytes of blocks after which a snapshot is taken, where the channel does not say.
pub const DEFAULT_SNAPSHOT_INTERVAL_SIZE: u32 = 16 * 1024 * 1024;

/// The options of a channel's Raft group, parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RaftOptions {
    /// The length of a tick.
    pub tick_interval: Duration,
    /// Ticks without a leader before an election; above `heartbeat_tick`.
    pub election_tick: u32,
    /// Ticks between heartbeats.
    pub heartbeat_tick: u32,
    /// Blocks proposed and not yet committed, at most.
    pub max_inflight_blocks: u32,
    /// Bytes of blocks after which a snapshot is taken.
    pub snapshot_interval_size: u32,
}

/// What a new consenter set means for the Raft group, by Raft id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConsenterChange {
    /// The same consenters; order, addresses and options may differ.
    None,
    /// One more.
    Added(u64),
    /// One less.
    Removed(u64),
    /// The consenter behind this id has other certificates from now on; the group's members stay the same.
    Rotated(u64),
}

/// The consenters' Raft ids after a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MembershipChange {
    /// What happens to the group.
    pub change: ConsenterChange,
    /// The ids of the new consenter set, in its order.
    pub consenter_ids: Vec<u64>,
    /// The id that the next newcomer will get. Ids are never used twice.
    pub next_consenter_id: u64,
    /// Where in the new set the newcomer, or the rotated consenter, stands.
    pub newcomer: Option<usize>,
}

/// Decodes a channel's consensus metadata.
///
/// # Errors
/// The consensus type is not etcdraft, or the bytes are no `ConfigMetadata`.
pub fn metadata(config: &ChannelConfig) -> Result<ConfigMetadata, ConfigError> {
    let orderer = config.orderer();
    if orderer.consensus_type != ETCDRAFT {
        return Err(ConfigError::new(format!(
            "the consensus type of channel {} is {:?}; this orderer serves {ETCDRAFT} only",
            config.channel_id(),
            orderer.consensus_type
        )));
    }
    decode(&orderer.consensus_metadata)
}

/// Parses a channel's options.
///
/// # Errors
/// They are missing or out of bounds.
pub fn options(metadata: &ConfigMetadata) -> Result<RaftOptions, ConfigError> {
    let refuse = |text: String| Err(ConfigError::new(text));
    let Some(options) = &metadata.options else {
        return refuse("nil Raft config metadata options".to_owned());
    };
    let (heartbeat, election, inflight) = (
        options.heartbeat_tick,
        options.election_tick,
        options.max_inflight_blocks,
    );
    if [heartbeat, election, inflight].contains(&0) {
        return refuse(format!(
            "none of HeartbeatTick ({heartbeat}), ElectionTick ({election}) and MaxInflightBlocks ({inflight}) can be zero"
        ));
    }
    if election <= heartbeat {
        return refuse(format!(
            "ElectionTick ({election}) must be greater than HeartbeatTick ({heartbeat})"
        ));
    }
    let text = &options.tick_interval;
    let tick_interval: GoDuration = match text.parse() {
        Ok(interval) => interval,
        Err(error) => {
            return refuse(format!(
                "failed to parse TickInterval ({text}) to time duration: {error}"
            ));
        }
    };
    if tick_interval == GoDuration(0) {
        return refuse("TickInterval cannot be zero".to_owned());
    }
    let Some(tick_interval) = tick_interval.to_std() else {
        return refuse(format!("TickInterval cannot be negative ({text})"));
    };
    Ok(RaftOptions {
        tick_interval,
        election_tick: election,
        heartbeat_tick: heartbeat,
        max_inflight_blocks: inflight,
        snapshot_interval_size: match options.snapshot_interval_size {
            0 => DEFAULT_SNAPSHOT_INTERVAL_SIZE,
            size => size,
        },
    })
}

/// Judges a channel's consensus metadata in itself, at `now`: options, consenters, and that every consenter's
/// certificates come from the orderer organisations' TLS authorities. Expired certificates are accepted: a channel must
/// be able to go on, and to be repaired, when its certificates have run out.
///
/// # Errors
/// What is wrong with it.
pub fn check(config: &ChannelConfig, now: UnixTime) -> Result<(), ConfigError> {
    let metadata = metadata(config)?;
    check_metadata(&metadata, &Authorities::of(config), now)
}

/// Judges the consensus metadata of `new`, which is to follow `old`, at `now` while the consenters with the Raft ids
/// `active_nodes` are heard of. `consenter_ids` are the Raft ids of the old set, in its order.
///
/// # Errors
/// The metadata is malformed, its certificates are not of the orderer organisations, a newcomer's have expired, more
/// than one consenter changes, or too few nodes are active for the change.
pub fn check_change(
    old: &ChannelConfig,
    new: &ChannelConfig,
    consenter_ids: &[u64],
    active_nodes: &[u64],
    now: UnixTime,
) -> Result<(), ConfigError> {
    let judge = || {
        let Some(metadata) = changed_metadata(new)? else {
            return Ok(());
        };
        let authorities = Authorities::of(new);
        check_metadata(&metadata, &authorities, now)
            .map_err(|error| error.within("invalid new config metadata"))?;
        let before = old.raft_metadata();
        // The next id plays no part in what is judged here.
        let numbering = BlockMetadata {
            consenter_ids: consenter_ids.to_vec(),
            next_consenter_id: 0,
            raft_index: 0,
        };
        let change = membership_change(&numbering, &before.consenters, &metadata.consenters)?;
        if let Some(newcomer) = change.newcomer {
            let consenter = &metadata.consenters[newcomer];
            check_certificates(consenter, &authorities, now, Expired::Refused).map_err(
                |error| {
                    error.within(format_args!(
                        "consenter {} has invalid certificates",
                        Address(consenter)
                    ))
                },
            )?;
        }
        if loses_quorum(change.change, metadata.consenters.len(), active_nodes) {
            return Err(ConfigError::new(format!(
                "{} out of {} nodes are alive, configuration will result in quorum loss",
                active_nodes.len(),
                before.consenters.len()
            )));
        }
        Ok(())
    };
    judge().map_err(|error: ConfigError| {
        error.within("consensus metadata update for channel config update is invalid")
    })
}

/// Judges the consensus metadata of a channel that `system` is about to create: its consenters are among the system
/// channel's.
///
/// # Errors
/// The metadata is malformed, or names somebody else.
pub fn check_creation(
    system: &ChannelConfig,
    new: &ChannelConfig,
    now: UnixTime,
) -> Result<(), ConfigError> {
    let judge = || {
        let Some(metadata) = changed_metadata(new)? else {
            return Ok(());
        };
        check_metadata(&metadata, &Authorities::of(new), now)
            .map_err(|error| error.within("invalid new config metadata"))?;
        let known: BTreeSet<&[u8]> = system
            .raft_metadata()
            .consenters
            .iter()
            .map(|consenter| &consenter.client_tls_cert[..])
            .collect();
        if metadata
            .consenters
            .iter()
            .all(|consenter| known.contains(&consenter.client_tls_cert[..]))
        {
            Ok(())
        } else {
            Err(ConfigError::new(
                "new channel has consenter that is not part of system consenter set",
            ))
        }
    };
    judge().map_err(|error: ConfigError| {
        error.within("consensus metadata update for channel creation is invalid")
    })
}

/// The metadata to judge. None where the value has been removed, which is for the maintenance rules to refuse.
fn changed_metadata(new: &ChannelConfig) -> Result<Option<ConfigMetadata>, ConfigError> {
    let orderer = new.orderer();
    if orderer.consensus_metadata.is_empty() && orderer.consensus_type != ETCDRAFT {
        return Ok(None);
    }
    decode(&orderer.consensus_metadata)
        .map(Some)
        .map_err(|error| error.within("failed to unmarshal new etcdraft metadata configuration"))
}

/// What becomes of the consenters' Raft ids when `new` follows `old`, whose ids `metadata` holds.
///
/// # Errors
/// More than one consenter comes or goes, or `metadata` does not belong to `old`.
pub fn membership_change(
    metadata: &BlockMetadata,
    old: &[Consenter],
    new: &[Consenter],
) -> Result<MembershipChange, ConfigError> {
    if metadata.consenter_ids.len() != old.len() {
        return Err(ConfigError::new(format!(
            "the block metadata holds {} Raft ids for {} consenters: it does not belong to this configuration",
            metadata.consenter_ids.len(),
            old.len()
        )));
    }
    let mut leaving: BTreeMap<&[u8], u64> = old
        .iter()
        .zip(&metadata.consenter_ids)
        .map(|(consenter, id)| (&consenter.client_tls_cert[..], *id))
        .collect();
    let kept: Vec<Option<u64>> = new
        .iter()
        .map(|consenter| leaving.remove(&consenter.client_tls_cert[..]))
        .collect();
    let newcomers: Vec<usize> = (0..new.len()).filter(|&at| kept[at].is_none()).collect();
    let leavers: Vec<u64> = leaving.into_values().collect();
    let mut next_consenter_id = metadata.next_consenter_id;
    let change = match (&newcomers[..], &leavers[..]) {
        ([], []) => ConsenterChange::None,
        ([_], []) => {
            next_consenter_id = next_consenter_id.saturating_add(1);
            ConsenterChange::Added(metadata.next_consenter_id)
        }
        ([], [id]) => ConsenterChange::Removed(*id),
        ([_], [id]) => ConsenterChange::Rotated(*id),
        _ => {
            return Err(ConfigError::new(format!(
                "update of more than one consenter at a time is not supported, requested changes: add {} node(s), remove {} node(s)",
                newcomers.len(),
                leavers.len()
            )));
        }
    };
    let newcomer_id = match change {
        ConsenterChange::Added(id) | ConsenterChange::Rotated(id) => id,
        ConsenterChange::None | ConsenterChange::Removed(_) => 0,
    };
    Ok(MembershipChange {
        change,
        consenter_ids: kept
            .into_iter()
            .map(|id| id.unwrap_or(newcomer_id))
            .collect(),
        next_consenter_id,
        newcomer: newcomers.first().copied(),
    })
}

/// Whether a change would leave the group without quorum though starting more nodes could have prevented it. `consenters`
/// is the size of the new set; `active` the Raft ids that are heard of now. A set of one or two cannot lose a node
/// anyway, so growing into it and rotating within it are always allowed.
#[must_use]
pub fn loses_quorum(change: ConsenterChange, consenters: usize, active: &[u64]) -> bool {
    let quorum = consenters / 2 + 1;
    let tolerates_a_fault = consenters > 2;
    let active: BTreeSet<u64> = active.iter().copied().collect();
    let without = |id: u64| active.len() - usize::from(active.contains(&id));
    match change {
        ConsenterChange::None => false,
        ConsenterChange::Added(_) => tolerates_a_fault && active.len() < quorum,
        ConsenterChange::Rotated(id) => tolerates_a_fault && without(id) < quorum,
        ConsenterChange::Removed(id) => without(id) < quorum,
    }
}

fn check_metadata(
    metadata: &ConfigMetadata,
    authorities: &Authorities,
    now: UnixTime,
) -> Result<(), ConfigError> {
    options(metadata)?;
    if metadata.consenters.is_empty() {
        return Err(ConfigError::new("empty consenter set"));
    }
    for consenter in &metadata.consenters {
        check_certificates(consenter, authorities, now, Expired::Accepted).map_err(|error| {
            error.within(format_args!(
                "consenter {} has invalid certificate",
                Address(consenter)
            ))
        })?;
    }
    check_duplicates(&metadata.consenters)
}

/// No certificate may belong to two consenters, whether as client or as server.
fn check_duplicates(consenters: &[Consenter]) -> Result<(), ConfigError> {
    let mut seen: BTreeSet<&[u8]> = BTreeSet::new();
    for consenter in consenters {
        let certificates = [
            &consenter.server_tls_cert[..],
            &consenter.client_tls_cert[..],
        ];
        if certificates
            .iter()
            .any(|certificate| seen.contains(certificate))
        {
            let [server, client] = certificates.map(|certificate| {
                String::from_utf8_lossy(&certificate[..certificate.len().min(MAX_QUOTED_BYTES)])
            });
            return Err(ConfigError::new(format!(
                "duplicate consenter: server cert: {server}, client cert: {client}"
            )));
        }
        seen.extend(certificates);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use super::*;
    use crate::proto::etcdraft::Options;

    fn consenters(names: &str) -> Vec<Consenter> {
        names
            .chars()
            .map(|name| Consenter {
                host: "127.0.0.1".to_owned(),
                port: 7050,
                client_tls_cert: vec![name as u8],
                server_tls_cert: vec![name as u8],
            })
            .collect()
    }

    fn change(ids: &[u64], old: &str, new: &str) -> Result<MembershipChange, ConfigError> {
        let metadata = BlockMetadata {
            consenter_ids: ids.to_vec(),
            next_consenter_id: 9,
            raft_index: 5,
        };
        membership_change(&metadata, &consenters(old), &consenters(new))
    }

    #[test]
    fn consenters_keep_their_ids_and_one_changes_at_a_time() {
        for (new, expected, ids, next) in [
            ("abc", ConsenterChange::None, vec![2, 4, 5], 9),
            ("cab", ConsenterChange::None, vec![5, 2, 4], 9),
            ("abcd", ConsenterChange::Added(9), vec![2, 4, 5, 9], 10),
            ("dabc", ConsenterChange::Added(9), vec![9, 2, 4, 5], 10),
            ("ac", ConsenterChange::Removed(4), vec![2, 5], 9),
            ("adc", ConsenterChange::Rotated(4), vec![2, 4, 5], 9),
            ("dac", ConsenterChange::Rotated(4), vec![4, 2, 5], 9),
        ] {
            let found = change(&[2, 4, 5], "abc", new).unwrap();
            assert_eq!(
                (found.change, found.consenter_ids, found.next_consenter_id),
                (expected, ids, next),
                "{new}"
            );
        }
        for (new, counts) in [
            ("abcde", "add 2 node(s), remove 0 node(s)"),
            ("a", "add 0 node(s), remove 2 node(s)"),
            ("ade", "add 2 node(s), remove 2 node(s)"),
            ("abde", "add 2 node(s), remove 1 node(s)"),
        ] {
            assert_eq!(
                change(&[2, 4, 5], "abc", new).unwrap_err().to_string(),
                format!(
                    "update of more than one consenter at a time is not supported, requested changes: {counts}"
                )
            );
        }
        assert!(change(&[2, 4], "abc", "abc").is_err());
    }

    #[test]
    fn a_change_must_leave_a_quorum_of_active_nodes() {
        use ConsenterChange::{Added, None, Removed, Rotated};
        for (change, consenters, active, loses) in [
            (None, 3, &[][..], false),
            // Growing from one or into two cannot be helped; into three it takes two.
            (Added(2), 2, &[1], false),
            (Added(3), 3, &[1], true),
            (Added(3), 3, &[1, 2], false),
            (Added(4), 4, &[1, 2], true),
            (Added(4), 4, &[1, 2, 3], false),
            // A node that is reported twice is one node.
            (Added(4), 4, &[1, 2, 2], true),
            // Removing a dead one helps; removing a living one leaves too few.
            (Removed(3), 2, &[1, 2], false),
            (Removed(2), 2, &[1, 2], true),
            (Removed(2), 1, &[1], false),
            (Removed(1), 1, &[1], true),
            // While it restarts with its new certificate the rotated one is not there.
            (Rotated(1), 1, &[1], false),
            (Rotated(1), 2, &[1], false),
            (Rotated(1), 3, &[1, 2], true),
            (Rotated(3), 3, &[1, 2], false),
        ] {
            assert_eq!(
                loses_quorum(change, consenters, active),
                loses,
                "{change:?} to {consenters} with {active:?}"
            );
        }
    }

    #[test]
    fn a_snapshot_interval_that_is_not_set_is_fabrics_default() {
        let metadata = |snapshot_interval_size| ConfigMetadata {
            consenters: Vec::new(),
            options: Some(Options {
                tick_interval: "500ms".to_owned(),
                election_tick: 10,
                heartbeat_tick: 1,
                max_inflight_blocks: 5,
                snapshot_interval_size,
            }),
        };
        let parsed = options(&metadata(0)).unwrap();
        assert_eq!(parsed.tick_interval, Duration::from_millis(500));
        assert_eq!(parsed.snapshot_interval_size, 16 << 20);
        assert_eq!(options(&metadata(7)).unwrap().snapshot_interval_size, 7);
    }
}
