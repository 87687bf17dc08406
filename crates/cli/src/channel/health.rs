//! How the consenters of a channel are, as a client can see it, and whether a change of the consenter set is safe now.
//!
//! A consenter that does not work is not noticed while the others are enough; but a change counts it. Raft has no way back
//! from a change that takes the majority away, so it is looked at before: each consenter must answer, know a leader and
//! have the blocks that the others have. Against Fabric's orderers the same can be seen, for all of it is Deliver.

use std::fmt;
use std::time::Duration;

use futures::future::join_all;
use quorate_fabric::config::ChannelConfig;
use quorate_fabric::config::raft_config::{MembershipChange, loses_quorum};
use quorate_fabric::proto::etcdraft::Consenter;
use quorate_orderer::deliver_client::{DeliverError, Refusal, Which};

use super::access::{Session, Wanted};

/// How long a consenter may take to answer before it counts as gone.
const PATIENCE: Duration = Duration::from_secs(5);
/// A consenter may lack so many blocks and still be said to have what the others have: they were not asked at the same
/// moment.
const MAX_LAG_BLOCKS: u64 = 1000;

/// One consenter, and what it answered.
#[derive(Debug)]
pub(super) struct Member {
    /// Where other orderers reach it.
    name: String,
    /// Where clients reach it, as far as the configuration says.
    endpoint: String,
    state: State,
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if self.endpoint != self.name {
            write!(f, " (asked at {})", self.endpoint)?;
        }
        write!(f, ": {}", self.state)
    }
}

#[derive(Debug)]
pub(super) enum State {
    /// It works; this is the number of its newest block.
    Well(u64),
    /// It works, and lacks so many blocks.
    Behind(u64),
    /// It answers, and knows no leader.
    Leaderless,
    /// It does not answer, or not in a way that helps.
    Silent(String),
}

impl State {
    pub(super) fn is_well(&self) -> bool {
        matches!(self, Self::Well(_))
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Well(_) => f.write_str("works"),
            Self::Behind(missing) => write!(f, "lacks {missing} blocks"),
            Self::Leaderless => f.write_str("knows no leader"),
            Self::Silent(reason) => f.write_str(reason),
        }
    }
}

/// `host:port`.
pub(super) fn address(consenter: &Consenter) -> String {
    format!("{}:{}", consenter.host, consenter.port)
}

/// Where clients reach a consenter: the endpoint with its address, else the only one with its host, else the address that
/// other orderers call, which mostly is the same.
pub(super) fn endpoint(config: &ChannelConfig, consenter: &Consenter) -> String {
    let own = address(consenter);
    let endpoints: Vec<String> = config
        .orderer_endpoints()
        .into_iter()
        .map(|endpoint| endpoint.address)
        .collect();
    if endpoints.contains(&own) {
        return own;
    }
    let mut on_host = endpoints.into_iter().filter(|endpoint| {
        let host = endpoint.rsplit_once(':').map(|(host, _)| host);
        host == Some(consenter.host.as_str())
    });
    match (on_host.next(), on_host.next()) {
        (Some(only), None) => only,
        _ => own,
    }
}

/// Asks every consenter.
pub(super) async fn ask(session: &Session, config: &ChannelConfig) -> Vec<Member> {
    let asked = config.raft_metadata().consenters.iter().map(async |one| {
        let endpoint = endpoint(config, one);
        let newest = Wanted::now(Which::Newest);
        let state = match session.block(&endpoint, newest, PATIENCE).await {
            Ok(block) => State::Well(block.number()),
            Err(DeliverError::Refused {
                refusal: Refusal::ServiceUnavailable,
                ..
            }) => State::Leaderless,
            Err(error) => State::Silent(quorate_runtime::tasks::chain(&error)),
        };
        Member {
            name: address(one),
            endpoint,
            state,
        }
    });
    let mut members = join_all(asked).await;
    let newest = members.iter().filter_map(|member| match member.state {
        State::Well(number) => Some(number),
        _ => None,
    });
    let newest = newest.max().unwrap_or_default();
    for member in &mut members {
        if let State::Well(number) = member.state
            && newest - number > MAX_LAG_BLOCKS
        {
            member.state = State::Behind(newest - number);
        }
    }
    members
}

/// Why a change of the consenter set is not to be made now.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unsafe {
    /// The channel would have no leader until somebody comes back.
    Quorum(String),
    /// It would work, with less to spare than it seems.
    Members(String),
}

/// Judges a change while the members are as they are. `ids` are their Raft ids, in the same order.
pub(super) fn judge(members: &[Member], ids: &[u64], change: &MembershipChange) -> Option<Unsafe> {
    use quorate_fabric::config::raft_config::ConsenterChange::{
        Added, None as Same, Removed, Rotated,
    };
    let leaving = match change.change {
        Same => return None,
        Added(_) => None,
        Removed(id) | Rotated(id) => Some(id),
    };
    let each = || members.iter().zip(ids);
    let active: Vec<u64> = each()
        .filter(|(member, _)| member.state.is_well())
        .map(|(_, id)| *id)
        .collect();
    let list = |which: Vec<&Member>| -> String {
        let named: Vec<String> = which.iter().map(|member| format!("  {member}")).collect();
        named.join("\n")
    };
    let not_well = each().filter(|(member, _)| !member.state.is_well());
    let total = change.consenter_ids.len();
    if loses_quorum(change.change, total, &active) {
        let missing = list(not_well.map(|(member, _)| member).collect());
        let what = match change.change {
            Added(_) => format!(
                "{} of then {total} consenters would work until the new one has joined and caught up",
                active.len()
            ),
            _ => format!("of then {total} consenters too few would work"),
        };
        return Some(Unsafe::Quorum(format!(
            "{what}, {} are needed; bring these back first:\n{missing}",
            total / 2 + 1
        )));
    }
    // Whoever leaves may be dead: that is what removing is for.
    let others: Vec<&Member> = not_well
        .filter(|(_, id)| Some(**id) != leaving)
        .map(|(member, _)| member)
        .collect();
    (!others.is_empty()).then(|| {
        Unsafe::Members(format!(
            "consenters are changed when all of them work, and these do not:\n{}",
            list(others)
        ))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::panic)]

    use quorate_fabric::config::raft_config::ConsenterChange;

    use super::*;

    /// Members 1, 2, … as the letters say: w(ell), s(ilent), l(eaderless), b(ehind).
    fn judged(states: &str, change: ConsenterChange, total: u64) -> Option<Unsafe> {
        let members: Vec<Member> = (1..)
            .zip(states.chars())
            .map(|(number, state)| Member {
                name: format!("o{number}:1"),
                endpoint: format!("o{number}:1"),
                state: match state {
                    'w' => State::Well(9),
                    'b' => State::Behind(5000),
                    'l' => State::Leaderless,
                    _ => State::Silent("away".to_owned()),
                },
            })
            .collect();
        let ids: Vec<u64> = (1..=members.len() as u64).collect();
        let change = MembershipChange {
            change,
            consenter_ids: (0..total).collect(),
            next_consenter_id: 9,
            newcomer: None,
        };
        judge(&members, &ids, &change)
    }

    #[test]
    fn a_change_that_would_take_the_majority_away_names_who_is_missing() {
        use ConsenterChange::{Added, Removed, Rotated};
        for (states, change, total) in [
            ("wws", Added(4), 4),
            ("wwl", Added(4), 4),
            ("wwb", Added(4), 4),
            ("wws", Removed(1), 2),
            ("wws", Rotated(1), 3),
            ("wss", Removed(2), 2),
        ] {
            match judged(states, change, total) {
                Some(Unsafe::Quorum(reason)) => assert!(reason.contains("o3:1: "), "{reason}"),
                other => panic!("{states} {change:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn the_dead_may_be_removed_and_rotated_while_the_others_work() {
        use ConsenterChange::{Added, None, Removed, Rotated};
        for (states, change, total) in [
            ("wws", Removed(3), 2),
            ("wws", Rotated(3), 3),
            ("www", Added(4), 4),
            ("www", Removed(1), 2),
            ("sss", None, 3),
            ("w", Added(2), 2),
            ("w", Rotated(1), 1),
        ] {
            assert_eq!(
                judged(states, change, total),
                Option::None,
                "{states} {change:?}"
            );
        }
        // Five can spare one, and yet it should be mended first.
        for change in [Added(6), Removed(1)] {
            let total = if change == Added(6) { 6 } else { 4 };
            let found = judged("wwwws", change, total);
            assert!(
                matches!(&found, Some(Unsafe::Members(reason)) if reason.contains("o5:1: away")),
                "{found:?}"
            );
        }
    }
}
