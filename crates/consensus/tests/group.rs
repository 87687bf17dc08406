//! Groups that talk to each other directly, over a log in memory.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use quorate_consensus::MAX_CACHED_BYTES;
use quorate_consensus::eraftpb::{Entry, EntryType, Message, MessageType};
use quorate_consensus::simulation::Dice;
use quorate_consensus::{
    CommittedKind, Group, GroupError, GroupId, GroupState, Log, Membership, Options, Snapshot,
};

struct Node {
    group: Group,
    log: Log,
    data: Vec<(u64, Bytes)>,
    members: Vec<u64>,
    snapshot: Option<Snapshot>,
}

struct Cluster {
    nodes: BTreeMap<u64, Node>,
    mail: VecDeque<Message>,
    cut: Vec<u64>,
}

fn options(id: u64) -> Options {
    Options {
        id,
        name: "testchannel".to_owned(),
        election_tick: 10,
        heartbeat_tick: 1,
        max_inflight: 5,
        max_size_per_message: 1 << 20,
    }
}

fn group_id(id: u64) -> GroupId {
    GroupId(u128::from(id).to_be_bytes())
}

impl Cluster {
    fn new(members: &[u64]) -> Self {
        let mut cluster = Self {
            nodes: BTreeMap::new(),
            mail: VecDeque::new(),
            cut: Vec::new(),
        };
        for &id in members {
            let log = Log::in_memory();
            let group =
                Group::create(group_id(id), options(id), members, Arc::new(log.clone())).unwrap();
            cluster.add(id, group, log);
        }
        cluster.settle();
        cluster
    }

    fn add(&mut self, id: u64, group: Group, log: Log) {
        self.nodes.insert(
            id,
            Node {
                group,
                log,
                data: Vec::new(),
                members: Vec::new(),
                snapshot: None,
            },
        );
    }

    fn join(&mut self, id: u64) {
        let log = Log::in_memory();
        let group = Group::join(group_id(id), options(id), Arc::new(log.clone())).unwrap();
        self.add(id, group, log);
    }

    fn settle(&mut self) {
        loop {
            let mut busy = false;
            for node in self.nodes.values_mut() {
                while let Some(mut ready) = node.group.ready().unwrap() {
                    busy = true;
                    self.mail.extend(ready.send.drain(..));
                    if let Some(write) = ready.write.take() {
                        node.log
                            .append(node.group.id(), write, Box::new(|result| result.unwrap()));
                        node.group.written(ready.number);
                    }
                    self.mail.extend(ready.send_after_write.drain(..));
                    if let Some(snapshot) = ready.snapshot {
                        node.group.applied(snapshot.index);
                        node.members = snapshot.members.clone();
                        node.snapshot = Some(snapshot);
                    }
                    for entry in ready.committed {
                        match entry.kind {
                            CommittedKind::Data(data) => node.data.push((entry.index, data)),
                            CommittedKind::Membership { change, .. } => {
                                node.members = node.group.apply_membership(change);
                            }
                            CommittedKind::Empty => {}
                        }
                        node.group.applied(entry.index);
                    }
                }
            }
            while let Some(message) = self.mail.pop_front() {
                busy = true;
                if self.cut.contains(&message.to) || self.cut.contains(&message.from) {
                    continue;
                }
                let (from, to, snapshot) = (
                    message.from,
                    message.to,
                    message.get_msg_type() == MessageType::MsgSnapshot,
                );
                if let Some(node) = self.nodes.get_mut(&to) {
                    let _ = node.group.step(message);
                    if snapshot {
                        self.nodes
                            .get_mut(&from)
                            .unwrap()
                            .group
                            .report_snapshot(to, true);
                    }
                }
            }
            if !busy {
                return;
            }
        }
    }

    fn tick(&mut self, times: usize) {
        for _ in 0..times {
            self.nodes.values_mut().for_each(|node| node.group.tick());
            self.settle();
        }
    }

    fn group(&mut self, id: u64) -> &mut Group {
        &mut self.nodes.get_mut(&id).unwrap().group
    }

    fn elect(&mut self, id: u64) {
        self.group(id).campaign();
        self.settle();
        assert_eq!(self.group(id).status().role.state, GroupState::Leader);
    }

    fn hand_over(&mut self, from: u64, to: u64) {
        self.group(from).transfer_leader(to);
        self.settle();
        assert_eq!(self.group(to).status().role.state, GroupState::Leader);
    }

    fn propose(&mut self, id: u64, text: &str) {
        self.group(id)
            .propose(Bytes::copy_from_slice(text.as_bytes()))
            .unwrap();
        self.settle();
    }

    fn texts(&self, id: u64) -> Vec<String> {
        self.nodes[&id]
            .data
            .iter()
            .map(|(_, data)| String::from_utf8(data.to_vec()).unwrap())
            .collect()
    }
}

#[test]
fn a_group_is_born_like_etcds_and_one_member_is_enough() {
    let mut cluster = Cluster::new(&[1]);
    let status = cluster.group(1).status();
    assert_eq!((status.term, status.commit, status.last), (1, 1, 1));
    cluster.elect(1);
    cluster.propose(1, "a");
    assert_eq!(cluster.texts(1), ["a"]);
    // One entry for the member, one of the new leader, one of ours.
    assert_eq!(cluster.nodes[&1].data[0].0, 3);
}

#[test]
fn three_members_agree_and_only_the_leader_takes_proposals() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    cluster.elect(2);
    cluster.propose(2, "a");
    cluster.propose(2, "b");
    for id in 1..=3 {
        assert_eq!(cluster.texts(id), ["a", "b"]);
    }
    let refused = cluster.group(1).propose(Bytes::from_static(b"c"));
    assert!(matches!(
        refused,
        Err(GroupError::NotLeader { id: 1, leader: 2 })
    ));
    cluster.hand_over(2, 3);
}

#[test]
fn a_leader_without_a_quorum_steps_down_and_its_entries_are_replaced() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    cluster.elect(1);
    cluster.cut = vec![1];
    cluster.propose(1, "lost");
    cluster.tick(60);
    assert_ne!(cluster.group(1).status().role.state, GroupState::Leader);
    let leader = (2..=3)
        .find(|&id| cluster.group(id).status().role.state == GroupState::Leader)
        .unwrap();
    cluster.propose(leader, "kept");
    cluster.cut.clear();
    cluster.tick(5);
    for id in 1..=3 {
        assert_eq!(cluster.texts(id), ["kept"], "{id}");
    }
}

#[test]
fn members_come_and_go_and_late_ones_get_a_snapshot_with_the_members_of_now() {
    let mut cluster = Cluster::new(&[1]);
    cluster.elect(1);
    for text in ["a", "b", "c", "d", "e", "f", "g"] {
        cluster.propose(1, text);
    }
    let applied = cluster.group(1).status().applied;
    let write = cluster
        .group(1)
        .take_snapshot(applied, Bytes::from_static(b"state"))
        .unwrap();
    let node = cluster.nodes.get_mut(&1).unwrap();
    node.log
        .append(group_id(1), write, Box::new(|result| result.unwrap()));

    cluster
        .group(1)
        .propose_membership(Membership::Add(2), Bytes::new())
        .unwrap();
    let second = cluster
        .group(1)
        .propose_membership(Membership::Add(3), Bytes::new());
    assert!(matches!(second, Err(GroupError::MembershipPending)));
    cluster.settle();
    cluster.join(2);
    cluster.tick(15);
    assert_eq!(cluster.nodes[&2].snapshot.as_ref().unwrap().data, "state");
    assert_eq!(cluster.nodes[&2].members, [1, 2]);
    cluster.propose(1, "h");
    assert_eq!(cluster.texts(2), ["h"]);

    cluster.hand_over(1, 2);
    cluster
        .group(2)
        .propose_membership(Membership::Remove(1), Bytes::new())
        .unwrap();
    cluster.settle();
    assert_eq!(cluster.nodes[&2].members, [2]);
    assert!(matches!(
        cluster
            .group(2)
            .propose_membership(Membership::Remove(2), Bytes::new()),
        Err(GroupError::LastMember(2))
    ));
    cluster.propose(2, "i");
    assert_eq!(cluster.texts(2), ["h", "i"]);
}

#[test]
fn a_leader_that_removes_itself_steps_down() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    cluster.elect(1);
    cluster
        .group(1)
        .propose_membership(Membership::Remove(1), Bytes::new())
        .unwrap();
    cluster.settle();
    assert_eq!(cluster.group(1).status().role.state, GroupState::Follower);
    cluster.tick(60);
    assert_eq!(cluster.nodes[&2].members, [2, 3]);
    assert!((2..=3).any(|id| cluster.group(id).status().role.state == GroupState::Leader));
}

#[test]
fn a_member_that_lost_its_log_is_noticed_does_not_vote_and_is_healed_by_a_new_leader() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    cluster.elect(1);
    cluster.propose(1, "a");
    // Member 2 comes back with nothing.
    let log = Log::in_memory();
    let group = Group::forgotten(group_id(2), options(2), Arc::new(log.clone())).unwrap();
    cluster.add(2, group, log);
    cluster.settle();
    let mut heartbeat = Message {
        from: 1,
        to: 2,
        term: cluster.group(1).status().term,
        commit: 4,
        ..Default::default()
    };
    heartbeat.set_msg_type(MessageType::MsgHeartbeat);
    assert!(matches!(
        cluster.group(2).step(heartbeat),
        Err(GroupError::LogLost {
            id: 2,
            leader: 1,
            confirmed: 4,
            last: 0
        })
    ));
    // Alone with a candidate it does not help it. That there is no leader it knows all the same.
    assert_eq!(cluster.group(2).status().role.leader, 1);
    cluster.cut = vec![1];
    cluster.tick(30);
    assert_eq!(cluster.group(2).status().role.leader, 0);
    cluster.group(3).campaign();
    cluster.settle();
    assert_ne!(cluster.group(3).status().role.state, GroupState::Leader);
    // The others elect, and it learns everything again.
    cluster.cut = vec![];
    cluster.tick(60);
    let leader = [1, 3]
        .into_iter()
        .find(|&id| cluster.group(id).status().role.state == GroupState::Leader)
        .unwrap();
    cluster.propose(leader, "b");
    assert_eq!(cluster.texts(2), ["a", "b"]);
    cluster.hand_over(leader, 2);
}

#[test]
fn a_member_that_lost_its_log_gets_it_again_from_the_leader_that_leads() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    cluster.elect(1);
    let term = cluster.group(1).status().term;
    for text in ["a", "b", "c"] {
        cluster.propose(1, text);
    }
    // One comes back with nothing, and knows it; another as if the group were new.
    let log = Log::in_memory();
    let group = Group::forgotten(group_id(2), options(2), Arc::new(log.clone())).unwrap();
    cluster.add(2, group, log);
    cluster.tick(5);
    assert_eq!(cluster.texts(2), ["a", "b", "c"]);
    let log = Log::in_memory();
    let group = Group::create(group_id(3), options(3), &[1, 2, 3], Arc::new(log.clone())).unwrap();
    cluster.add(3, group, log);
    cluster.tick(5);
    assert_eq!(cluster.texts(3), ["a", "b", "c"]);
    let status = cluster.group(1).status();
    assert_eq!((status.term, status.role.state), (term, GroupState::Leader));
    cluster.propose(1, "d");
    assert_eq!(cluster.texts(2), ["a", "b", "c", "d"]);
    assert_eq!(cluster.texts(3), ["a", "b", "c", "d"]);
    cluster.hand_over(1, 3);
}

#[test]
fn nonsense_is_refused_and_harms_nobody() {
    let mut cluster = Cluster::new(&[1, 2]);
    cluster.elect(1);
    let term = cluster.group(2).status().term;
    let kinds = [
        MessageType::MsgHup,
        MessageType::MsgBeat,
        MessageType::MsgPropose,
        MessageType::MsgUnreachable,
        MessageType::MsgSnapStatus,
        MessageType::MsgCheckQuorum,
        MessageType::MsgReadIndex,
        MessageType::MsgReadIndexResp,
        MessageType::MsgSnapshot,
    ];
    for to in 1..=2 {
        for kind in kinds {
            let mut message = Message {
                from: 3 - to,
                to,
                term: term + 1,
                ..Default::default()
            };
            message.set_msg_type(kind);
            assert!(
                matches!(
                    cluster.group(to).step(message),
                    Err(GroupError::Refused { .. })
                ),
                "{kind:?}"
            );
        }
    }
    let mut confirmation = Message {
        from: 2,
        to: 1,
        term,
        index: 1000,
        ..Default::default()
    };
    confirmation.set_msg_type(MessageType::MsgAppendResponse);
    assert!(matches!(
        cluster.group(1).step(confirmation),
        Err(GroupError::Refused { .. })
    ));
    cluster.settle();
    cluster.propose(1, "a");
    assert_eq!(cluster.texts(2), ["a"]);
}

/// A message that a confused, broken or malicious member could send: everything in it is near what is valid.
fn forged(dice: &mut Dice, to: u64) -> Message {
    let kinds = [
        MessageType::MsgHup,
        MessageType::MsgBeat,
        MessageType::MsgPropose,
        MessageType::MsgAppend,
        MessageType::MsgAppendResponse,
        MessageType::MsgRequestVote,
        MessageType::MsgRequestVoteResponse,
        MessageType::MsgSnapshot,
        MessageType::MsgHeartbeat,
        MessageType::MsgHeartbeatResponse,
        MessageType::MsgUnreachable,
        MessageType::MsgSnapStatus,
        MessageType::MsgCheckQuorum,
        MessageType::MsgTransferLeader,
        MessageType::MsgTimeoutNow,
        MessageType::MsgReadIndex,
        MessageType::MsgReadIndexResp,
        MessageType::MsgRequestPreVote,
        MessageType::MsgRequestPreVoteResponse,
    ];
    let number = |dice: &mut Dice| match dice.below(40) {
        0 => u64::MAX,
        1 => u64::MAX / 2,
        _ => dice.below(14),
    };
    let mut message = Message {
        to,
        from: dice.below(5),
        term: number(dice),
        log_term: number(dice),
        index: number(dice),
        commit: number(dice),
        commit_term: number(dice),
        reject: dice.chance(40),
        reject_hint: number(dice),
        request_snapshot: dice.below(3),
        priority: -1,
        ..Default::default()
    };
    message.set_msg_type(kinds[dice.below(kinds.len() as u64) as usize]);
    if dice.chance(10) {
        message.context = Bytes::from_static(b"CampaignTransfer");
    }
    if message.get_msg_type() == MessageType::MsgAppend || dice.chance(5) {
        let mut entries = Vec::new();
        for offset in 1..=dice.below(4) {
            let mut entry = Entry {
                index: if dice.chance(95) {
                    message.index.wrapping_add(offset)
                } else {
                    number(dice)
                },
                term: if dice.chance(80) {
                    message.log_term.max(1)
                } else {
                    number(dice)
                },
                ..Default::default()
            };
            entry.set_entry_type(
                [EntryType::EntryNormal, EntryType::EntryConfChange][dice.below(2) as usize],
            );
            entry.data = match dice.below(4) {
                0 => Bytes::new(),
                1 => Bytes::from_static(&[0x08, 0, 0x10, 0, 0x18, 4]),
                2 => Bytes::from_static(&[0x08, 0, 0x10, 1, 0x18, 1]),
                _ => Bytes::from_static(&[0x18]),
            };
            entries.push(entry);
        }
        message.set_entries(entries.into());
    }
    if message.get_msg_type() == MessageType::MsgSnapshot {
        let metadata = message.mut_snapshot().mut_metadata();
        metadata.index = number(dice);
        metadata.term = dice.below(8);
        metadata.mut_conf_state().voters = (0..dice.below(4)).map(|_| dice.below(5)).collect();
        if dice.chance(10) {
            metadata.mut_conf_state().learners = vec![4];
        }
    }
    message
}

#[test]
fn no_message_brings_a_member_down() {
    for seed in 0..3000 {
        let mut dice = Dice::new(seed);
        let size = 1 + dice.below(3);
        let mut cluster = Cluster::new(&(1..=size).collect::<Vec<_>>());
        if dice.chance(70) {
            cluster.elect(1);
            cluster.propose(1, "a");
        }
        if dice.chance(20) {
            cluster.join(4);
        }
        for _ in 0..60 {
            let to = if dice.chance(10) {
                4
            } else {
                1 + dice.below(size)
            };
            let Some(node) = cluster.nodes.get_mut(&to) else {
                continue;
            };
            match dice.below(10) {
                0 => node.group.tick(),
                1 => drop(node.group.propose(Bytes::from_static(b"b"))),
                2 => drop(
                    node.group
                        .propose_membership(Membership::Add(1 + dice.below(4)), Bytes::new()),
                ),
                3 => node.group.campaign(),
                _ => {
                    let message = forged(&mut dice, to);
                    let text = format!("{message:?}");
                    let status = node.group.status();
                    let stepped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                        drop(node.group.step(message))
                    }));
                    assert!(stepped.is_ok(), "seed {seed}: {text} at {status:?}");
                }
            }
            if dice.chance(60) {
                // What they do to each other then is wrong, but nobody falls over it.
                let id = to;
                if let Err(panic) =
                    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| cluster.settle()))
                {
                    println!("seed {seed}, member {id}");
                    std::panic::resume_unwind(panic);
                }
            }
        }
    }
}

#[test]
fn a_late_follower_gets_what_left_the_leaders_memory() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    cluster.elect(1);
    cluster.cut = vec![3];
    let large = "x".repeat(MAX_CACHED_BYTES as usize / 8);
    for _ in 0..40 {
        cluster.propose(1, &large);
    }
    cluster.cut.clear();
    cluster.tick(3);
    assert_eq!(cluster.texts(3), vec![large; 40]);
    assert!(cluster.nodes[&3].snapshot.is_none());
}
