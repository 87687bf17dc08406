//! Clusters of channels, simulated: what they order, what they survive, what their chains look like.

#![allow(clippy::unwrap_used, clippy::panic)]

mod simulated;

use std::path::Path;

use quorate_fabric::block;
use quorate_fabric::envelope::RawEnvelope;
use quorate_fabric::proto::common::Block;
use quorate_orderer::channel::{Ack, Halt};
use serde_json::Value;
use simulated::{Outcome, World, genesis_with_snapshots_every, read};

fn elected(world: &World) -> bool {
    world.leader().is_some_and(|leader| {
        world
            .nodes
            .values()
            .all(|node| node.halted.is_some() || node.core.leader() == leader)
    })
}

#[test]
fn the_member_picked_by_the_channels_name_leads_first() {
    for seed in 0..5 {
        let mut world = World::new(seed);
        world.until("a leader", 2, elected);
        assert_eq!(world.leader(), Some(2));
    }
}

#[test]
fn messages_of_all_members_are_ordered_once_and_acknowledged() {
    let mut world = World::new(1);
    world.until("a leader", 2, elected);
    let mut sent = Vec::new();
    for number in 0_u64..95 {
        let node = number % 3 + 1;
        let ack = if number % 2 == 0 {
            Ack::Enqueued
        } else {
            Ack::Committed
        };
        let envelope = world.envelope(&number.to_be_bytes());
        sent.push(envelope.encoded().clone());
        world.submit(node, envelope, ack);
    }
    world.until("all answers", 5, |world| {
        world
            .outcomes
            .iter()
            .all(|outcome| *outcome == Outcome::Acknowledged)
    });
    // The rest of the last block's time, and the way to the followers.
    world.pass(1000);
    assert_eq!(world.heights().len(), 1);
    world.check_chains();
    let ordered = world.ordered();
    for envelope in &sent {
        assert_eq!(ordered.get(envelope), Some(&1));
    }
    let chain = &world.nodes[&1].chain;
    // Ten messages to a block, as the channel is configured; no block is empty.
    for block in &chain[1..] {
        let count = block.block().data.unwrap().data.len();
        assert!((1..=10).contains(&count));
    }
    assert!(chain.len() <= 1 + 95 / 10 + 4, "{} blocks", chain.len());
}

#[test]
fn without_a_leader_nothing_is_taken() {
    let mut world = World::new(2);
    let envelope = world.envelope(b"early");
    let outcome = world.submit(1, envelope, Ack::Enqueued);
    assert_eq!(
        world.outcomes[outcome],
        Outcome::Refused("no Raft leader".to_owned())
    );
}

/// The recorded updates of Fabric's cluster, in its order, through ours: the same configurations, consenter ids and
/// Raft indexes in every block.
#[test]
fn recorded_configuration_updates_lead_to_the_recorded_metadata() {
    let mut world = World::new(3);
    world.until("a leader", 2, elected);
    let updates: Value = serde_json::from_slice(&read("config-updates/updates.json")).unwrap();
    for case in updates.as_array().unwrap() {
        if case["accepted"] != true {
            continue;
        }
        let name = case["name"].as_str().unwrap();
        // Everybody has to be heard of before the consenter set may change.
        world.pass(4000);
        let leader = world.leader().unwrap();
        // Half of them come to a member that has to forward them.
        let follower = world
            .nodes
            .iter()
            .find(|(id, node)| **id != leader && node.halted.is_none());
        let receiver = match follower {
            Some((id, _)) if case["block_number"].as_u64().unwrap() % 2 == 1 => *id,
            _ => leader,
        };
        let update = RawEnvelope::decode(read(
            Path::new("config-updates").join(case["file"].as_str().unwrap()),
        ))
        .unwrap();
        let outcome = world
            .update(receiver, &update)
            .unwrap_or_else(|refusal| panic!("{name}: {refusal}"));
        world.until(name, 20, |world| world.outcomes[outcome] != Outcome::Open);
        assert_eq!(world.outcomes[outcome], Outcome::Acknowledged, "{name}");
        if name.contains("add-consenter-orderer3") {
            world.join(4, leader);
        }
        let number = case["block_number"].as_u64().unwrap();
        world.until(name, 20, |world| {
            world
                .nodes
                .values()
                .all(|node| node.halted.is_some() || node.chain.len() as u64 > number)
        });
        let recorded: Block = prost::Message::decode(read(
            Path::new("config-updates").join(case["block"].as_str().unwrap()),
        ))
        .unwrap();
        let leader = world.leader().unwrap_or(leader);
        let ours = world.nodes[&leader].chain[number as usize].block();
        assert_eq!(
            block::consenter_metadata(&ours).unwrap(),
            block::consenter_metadata(&recorded).unwrap(),
            "{name}"
        );
        assert_eq!(block::last_config(&ours).unwrap(), number);
    }
    world.check_chains();
    // The removed one has stopped, whether it heard of the decision or not is chance.
    assert!(world.nodes[&1].chain.len() < world.nodes[&2].chain.len());
    assert_eq!(world.nodes[&2].chain.len(), 30);
    assert_ne!(world.nodes[&2].halted, Some(Halt::Removed));
}

/// Sends messages in committed mode, kills the leader on the way, brings it back: what was acknowledged is there
/// once, nothing is there twice, all chains are the same.
#[test]
fn a_killed_leader_takes_nothing_along_that_was_acknowledged() {
    for seed in 0..20 {
        let mut world = World::new(100 + seed);
        world.until("a leader", 2, elected);
        let first = world.leader().unwrap();
        let mut sent = Vec::new();
        for number in 0_u64..60 {
            if let Some(node) = world.nodes.keys().nth((number % 3) as usize).copied() {
                let envelope = world.envelope(&number.to_be_bytes());
                sent.push((
                    envelope.encoded().clone(),
                    world.submit(node, envelope, Ack::Committed),
                ));
            }
            world.pass(world_pause(seed));
            if number == 30 {
                world.crash(first);
            }
        }
        // Two election timeouts are what an operator is promised.
        world.until("another leader", 2 * 10 * 200 / 1000 + 1, elected);
        assert_ne!(world.leader(), Some(first));
        let envelope = world.envelope(b"after");
        let leader = world.leader().unwrap();
        let after = world.submit(leader, envelope, Ack::Committed);
        world.until("an answer after the election", 5, |world| {
            world.outcomes[after] == Outcome::Acknowledged
        });
        world.restart(first);
        world.until("the former leader's return", 20, |world| {
            elected(world) && world.heights().len() == 1
        });
        world.pass(2000);
        world.check_chains();
        let ordered = world.ordered();
        for (envelope, outcome) in &sent {
            let times = ordered.get(envelope).copied().unwrap_or(0);
            assert!(times <= 1, "seed {seed}: ordered {times} times");
            if world.outcomes[*outcome] == Outcome::Acknowledged {
                assert_eq!(times, 1, "seed {seed}: acknowledged and lost");
            }
        }
    }
}

fn world_pause(seed: u64) -> u64 {
    1 + seed * 3
}

/// A leader that is cut off loses its office; what it had taken over, in any mode, is ordered by the next one when it
/// is back, and once.
#[test]
fn a_deposed_leader_gives_what_it_took_over_to_the_next() {
    for seed in 0..20 {
        let mut world = World::new(200 + seed);
        world.until("a leader", 2, elected);
        let first = world.leader().unwrap();
        let mut sent = Vec::new();
        for number in 0_u64..40 {
            let ack = if number % 2 == 0 {
                Ack::Enqueued
            } else {
                Ack::Committed
            };
            let envelope = world.envelope(&number.to_be_bytes());
            sent.push((
                envelope.encoded().clone(),
                world.submit(first, envelope, ack),
            ));
            if number == 20 {
                world.cut_off(first);
            }
            world.pass(seed);
        }
        world.until("another leader", 10, |world| {
            world.leader().is_some_and(|leader| leader != first)
        });
        let leader = world.leader().unwrap();
        let envelope = world.envelope(b"meanwhile");
        world.submit(leader, envelope, Ack::Committed);
        world.pass(1000);
        world.cut.clear();
        world.until("the end of all doubts", 80, |world| {
            elected(world)
                && world.heights().len() == 1
                && world
                    .outcomes
                    .iter()
                    .all(|outcome| *outcome != Outcome::Open)
        });
        world.pass(2000);
        world.check_chains();
        let ordered = world.ordered();
        for (envelope, outcome) in &sent {
            let times = ordered.get(envelope).copied().unwrap_or(0);
            match &world.outcomes[*outcome] {
                Outcome::Acknowledged => assert_eq!(times, 1, "seed {seed}"),
                Outcome::Refused(_) => assert!(times <= 1, "seed {seed}"),
                Outcome::Open => panic!("seed {seed}: no answer"),
            }
        }
    }
}

/// Loss, delay, duplication, partitions, crashes with torn and failing disks, changes of the configuration and of the
/// consenters: safety while they rage, liveness after they cease.
///
/// A failure names its seed; `QUORATE_SEED=n cargo test -p quorate-orderer --test channel one_seed -- --nocapture` runs it alone.
/// `QUORATE_MORE=10` tries ten times as many.
#[test]
fn chains_agree_whatever_happens() {
    let seeds = 2_000 * quorate_testkit::hostile::more() as u64;
    std::thread::scope(|scope| {
        for half in 0..2 {
            scope.spawn(move || {
                for seed in (0..seeds).filter(|seed| seed % 2 == half) {
                    let run = std::panic::catch_unwind(|| storm(seed));
                    if let Err(panic) = run {
                        println!("QUORATE_SEED={seed}");
                        std::panic::resume_unwind(panic);
                    }
                }
            });
        }
    });
}

#[test]
fn one_seed() {
    if let Ok(seed) = std::env::var("QUORATE_SEED") {
        storm(seed.parse().unwrap());
    }
}

/// The recorded updates of the configuration that are sent in a storm, in their order.
const UPDATES: [&str; 4] = [
    "01-batch-size",
    "02-batch-timeout-by-org1-client",
    "03-orderer-addresses",
    "04-add-consenter-orderer3",
];

struct Sent {
    envelope: bytes::Bytes,
    outcome: usize,
    ack: Ack,
}

struct Storm {
    world: World,
    sent: Vec<Sent>,
    number: u64,
    /// Outcomes of updates, and which.
    updates: Vec<(usize, usize)>,
}

impl Storm {
    fn new(seed: u64) -> Self {
        let mut world = match seed % 5 {
            // Snapshots come often.
            0 => World::with_genesis(1000 + seed, genesis_with_snapshots_every(4_000)),
            _ => World::new(1000 + seed),
        };
        world.loss = seed % 4 * 5;
        world.duplicates = seed % 3 * 10;
        world.delay = 3 + seed % 7 * 20;
        Self {
            world,
            sent: Vec::new(),
            number: 0,
            updates: Vec::new(),
        }
    }

    fn send(&mut self, count: u64) {
        for _ in 0..count {
            let ids: Vec<u64> = self.world.nodes.keys().copied().collect();
            if ids.is_empty() {
                return;
            }
            self.number += 1;
            let node = ids[self.world.dice.below(ids.len() as u64) as usize];
            let ack = if self.number.is_multiple_of(3) {
                Ack::Enqueued
            } else {
                Ack::Committed
            };
            let envelope = self.world.envelope(&self.number.to_be_bytes());
            self.sent.push(Sent {
                envelope: envelope.encoded().clone(),
                outcome: self.world.submit(node, envelope, ack),
                ack,
            });
        }
    }

    /// Sends the next update to somebody.
    fn update(&mut self) {
        let ids: Vec<u64> = self.world.nodes.keys().copied().collect();
        if ids.is_empty() {
            return;
        }
        let node = ids[self.world.dice.below(ids.len() as u64) as usize];
        let Some(view) = &self.world.nodes[&node].view else {
            return;
        };
        let next = view.config.sequence() as usize;
        if let Some(name) = UPDATES.get(next)
            && let Ok(outcome) = self.world.update(node, &recorded_update(name))
        {
            self.updates.push((outcome, next));
        }
    }

    /// A consenter that was added comes to life.
    fn welcome(&mut self) {
        if self.world.nodes.contains_key(&4) || self.world.down.contains_key(&4) {
            return;
        }
        let knows = |id: &u64| {
            let view = self.world.nodes[id].view.as_ref();
            view.is_some_and(|view| view.consenters.contains(&4))
        };
        if let Some(source) = self.world.nodes.keys().copied().find(|id| knows(id)) {
            self.world.join(4, source);
        }
    }

    fn strike(&mut self) {
        let world = &mut self.world;
        let victim = world.dice.below(4) + 1;
        let alive = world.nodes.contains_key(&victim);
        match world.dice.below(24) {
            0 if world.down.is_empty() && alive => world.crash(victim),
            1 | 2 => {
                if let Some(id) = world.down.keys().next().copied() {
                    world.restart(id);
                }
            }
            3 => world.cut_off(victim),
            4 | 5 => world.cut.clear(),
            6 if world.down.is_empty() => world.break_disk(victim),
            7 if world.dice.chance(10) => {
                let all: Vec<u64> = world.nodes.keys().copied().collect();
                all.into_iter().for_each(|id| world.crash(id));
            }
            8 => self.update(),
            _ => {
                let count = world.dice.below(8);
                self.send(count);
            }
        }
    }

    fn calm_down(&mut self) {
        let world = &mut self.world;
        world.loss = 0;
        world.duplicates = 0;
        world.cut.clear();
        for node in world.nodes.values() {
            node.mend();
        }
        while let Some(id) = world.down.keys().next().copied() {
            world.restart(id);
        }
    }
}

fn storm(seed: u64) {
    let mut storm = Storm::new(seed);
    for _ in 0..60 {
        storm.strike();
        storm.welcome();
        let pause = storm.world.dice.below(900);
        storm.world.pass(pause);
    }
    storm.world.check_chains();
    storm.calm_down();
    for _ in 0..60 {
        storm.welcome();
        storm.world.pass(1_000);
        let world = &storm.world;
        if elected(world) && world.heights().len() == 1 {
            break;
        }
    }
    let Storm {
        mut world,
        sent,
        updates,
        ..
    } = storm;
    world.until("recovery", 1, |world| {
        elected(world) && world.heights().len() == 1
    });
    let leader = world.leader().unwrap();
    let envelope = world.envelope(b"last");
    let last = world.submit(leader, envelope, Ack::Committed);
    world.until("an answer after everything", 20, |world| {
        world.outcomes[last] == Outcome::Acknowledged
    });
    world.until("all followers", 20, |world| world.heights().len() == 1);
    world.check_chains();
    let ordered = world.ordered();
    for Sent {
        envelope,
        outcome,
        ack,
    } in &sent
    {
        let times = ordered.get(envelope).copied().unwrap_or(0);
        assert!(times <= 1, "seed {seed}: ordered {times} times");
        if *ack == Ack::Committed && world.outcomes[*outcome] == Outcome::Acknowledged {
            assert_eq!(times, 1, "seed {seed}: acknowledged and lost");
        }
    }
    let sequence = world.nodes[&leader]
        .view
        .as_ref()
        .unwrap()
        .config
        .sequence();
    for (outcome, update) in updates {
        if world.outcomes[outcome] == Outcome::Acknowledged {
            assert!(
                sequence > update as u64,
                "seed {seed}: an acknowledged update is lost"
            );
        }
    }
}

fn recorded_update(name: &str) -> RawEnvelope {
    RawEnvelope::decode(read(format!("config-updates/{name}.pb"))).unwrap()
}

/// A member that was away for longer than the log remembers gets a snapshot, and fetches the blocks that it stands
/// for from the others.
#[test]
fn a_member_that_was_away_catches_up_by_snapshot() {
    for seed in 0..10 {
        let mut world = World::with_genesis(300 + seed, genesis_with_snapshots_every(10_000));
        world.until("a leader", 2, elected);
        let leader = world.leader().unwrap();
        let away = leader % 3 + 1;
        // Half of the times it forgets what it was sent, too.
        if seed % 2 == 0 {
            world.crash(away);
        } else {
            world.cut_off(away);
        }
        for number in 0_u64..120 {
            let envelope = world.envelope(&[&number.to_be_bytes()[..], &[7; 900]].concat());
            world.submit(leader, envelope, Ack::Committed);
            world.pass(20);
        }
        world.until("all answers", 5, |world| {
            world
                .outcomes
                .iter()
                .all(|outcome| *outcome == Outcome::Acknowledged)
        });
        assert!(world.nodes[&leader].snapshots > 5);
        if seed % 2 == 0 {
            world.restart(away);
        } else {
            world.cut.clear();
        }
        // Work goes on while it catches up.
        for number in 200_u64..230 {
            let envelope = world.envelope(&[&number.to_be_bytes()[..], &[7; 900]].concat());
            let leader = world.leader().unwrap_or(leader);
            world.submit(leader, envelope, Ack::Committed);
            world.pass(30);
        }
        world.until("the return", 30, |world| {
            elected(world) && world.heights().len() == 1
        });
        world.pass(1000);
        assert_eq!(world.heights().len(), 1);
        world.check_chains();
        assert!(world.nodes[&away].snapshots >= 1);
    }
}

/// The update that removes the leader: handed over before, acknowledged by its block, never lost, even where at first
/// nobody is there who could take over.
#[test]
fn an_update_that_removes_the_leader_is_not_lost() {
    for seed in 0..10 {
        let mut world = World::new(400 + seed);
        world.until("a leader", 2, elected);
        // Raft ids 1 to 4; the recorded updates up to the removal of id 1.
        for name in [
            "01-batch-size",
            "02-batch-timeout-by-org1-client",
            "03-orderer-addresses",
            "04-add-consenter-orderer3",
            "05-orderer-endpoints",
        ] {
            world.pass(4000);
            let leader = world.leader().unwrap();
            let outcome = world.update(leader, &recorded_update(name)).unwrap();
            world.until(name, 20, |world| {
                world.outcomes[outcome] == Outcome::Acknowledged
            });
            if name.contains("add") {
                world.join(4, leader);
            }
        }
        world.until("the fourth member", 20, |world| world.heights().len() == 1);
        // Until id 1 leads.
        while world.leader() != Some(1) {
            let leader = world.leader().unwrap();
            world.cut_off(leader);
            world.until("another leader", 20, |world| {
                world.leader().is_some_and(|other| other != leader)
            });
            world.cut.clear();
            world.until("everybody", 20, elected);
        }
        world.pass(4000);
        let outcome = world
            .update(1, &recorded_update("06-remove-consenter-orderer0"))
            .unwrap();
        if seed % 2 == 1 {
            // At this moment nobody can take over.
            world.cut_off(1);
            world.pass(1500);
            world.cut.clear();
        }
        world.until("the removal", 60, |world| {
            world.outcomes[outcome] != Outcome::Open
        });
        assert_eq!(
            world.outcomes[outcome],
            Outcome::Acknowledged,
            "seed {seed}"
        );
        world.until("another leader", 30, |world| {
            world.leader().is_some_and(|leader| leader != 1)
        });
        let leader = world.leader().unwrap();
        assert_eq!(
            world.nodes[&leader].view.as_ref().unwrap().consenters[..],
            [2, 3, 4]
        );
        let envelope = world.envelope(b"after");
        let after = world.submit(leader, envelope, Ack::Committed);
        world.until("work goes on", 20, |world| {
            world.outcomes[after] == Outcome::Acknowledged
        });
        world.check_chains();
    }
}

/// Whoever comes to order a message that was left to the leader verifies it, whether it came here first or not.
#[test]
fn what_nobody_has_verified_is_verified_by_whoever_orders_it() {
    let mut world = World::new(501);
    world.until("a leader", 2, elected);
    world.pass(4000);
    let leader = world.leader().unwrap();
    let mut expected = Vec::new();
    for round in 0..20 {
        for node in 1..=3 {
            let signed = world.envelope(format!("{round} at {node}").as_bytes());
            let mut signature = signed.signature().to_vec();
            let good = round % 2 == 0;
            if !good {
                let last = signature.len() - 1;
                signature[last] ^= 1;
            }
            let envelope = RawEnvelope::new(signed.payload(), &signature);
            let encoded = envelope.encoded().clone();
            let outcome = world.submit_unverified(node, envelope, Ack::Committed);
            // A follower of the simulation hears that its message has left, not what the leader says of it.
            expected.push((outcome, encoded, good, node == leader));
        }
    }
    world.until("the good ones are in blocks", 20, |world| {
        expected
            .iter()
            .all(|(outcome, _, good, _)| !good || world.outcomes[*outcome] == Outcome::Acknowledged)
    });
    let ordered = world.ordered();
    for (outcome, encoded, good, here) in expected {
        assert_eq!(ordered.get(&encoded).copied(), good.then_some(1));
        if !good && here {
            assert!(
                matches!(&world.outcomes[outcome], Outcome::Refused(reason) if reason.contains("permission denied")),
                "{:?}",
                world.outcomes[outcome]
            );
        }
    }
    world.check_chains();
}

/// A message that a new configuration forbids is refused although it was allowed when it came.
#[test]
fn what_waited_for_a_configuration_is_judged_by_it() {
    let mut world = World::new(500);
    world.until("a leader", 2, elected);
    world.pass(4000);
    let leader = world.leader().unwrap();
    let update = world
        .update(leader, &recorded_update("01-batch-size"))
        .unwrap();
    // Checked under the old configuration, ordered under the new one: its signature is verified again.
    let good = world.envelope(b"good");
    let good = world.submit(leader, good, Ack::Committed);
    let signed = world.envelope(b"bad");
    let mut signature = signed.signature().to_vec();
    let last = signature.len() - 1;
    signature[last] ^= 1;
    let bad = RawEnvelope::new(signed.payload(), &signature);
    let bad = world.submit(leader, bad, Ack::Committed);
    world.until("all answers", 5, |world| {
        world
            .outcomes
            .iter()
            .all(|outcome| *outcome != Outcome::Open)
    });
    assert_eq!(world.outcomes[update], Outcome::Acknowledged);
    assert_eq!(world.outcomes[good], Outcome::Acknowledged);
    assert!(
        matches!(&world.outcomes[bad], Outcome::Refused(reason) if reason.contains("permission denied")),
        "{:?}",
        world.outcomes[bad]
    );
    // The configuration block stands alone.
    let chain = &world.nodes[&leader].chain;
    assert_eq!(chain[1].block().data.unwrap().data.len(), 1);
    assert!(block::is_config(&chain[1].block()));
    assert_eq!(chain.len(), 3);
}

/// The leader dies somewhere between the configuration block that adds a consenter and the change of members that the
/// block asks for: the next leader finishes it, and the newcomer takes part.
#[test]
fn an_interrupted_change_of_members_is_finished_by_the_next_leader() {
    for seed in 0..20 {
        let mut world = World::new(600 + seed);
        world.until("a leader", 2, elected);
        for name in [
            "01-batch-size",
            "02-batch-timeout-by-org1-client",
            "03-orderer-addresses",
        ] {
            world.pass(4000);
            let leader = world.leader().unwrap();
            let outcome = world.update(leader, &recorded_update(name)).unwrap();
            world.until(name, 20, |world| {
                world.outcomes[outcome] == Outcome::Acknowledged
            });
        }
        world.pass(4000);
        let leader = world.leader().unwrap();
        let update = recorded_update("04-add-consenter-orderer3");
        world.update(leader, &update).unwrap();
        for _ in 0..seed * 2 {
            world.step();
        }
        world.crash(leader);
        // Two of three elect a leader; if the change comes through, two of four have none until the newcomer is there.
        world.pass(12_000);
        let next = *world.nodes.keys().next().unwrap();
        if world.nodes[&next].chain.len() < 5 {
            // It had not come that far, and nobody was told that it had.
            let again = world.update(next, &update);
            assert!(again.is_err_and(|reason| reason.contains("quorum loss")));
            continue;
        }
        world.join(4, next);
        world.until("the newcomer", 60, |world| {
            elected(world) && world.heights().len() == 1
        });
        let next = world.leader().unwrap();
        let envelope = world.envelope(b"with the newcomer's vote");
        let outcome = world.submit(next, envelope, Ack::Committed);
        world.until("an answer", 20, |world| {
            world.outcomes[outcome] == Outcome::Acknowledged
        });
        world.restart(leader);
        world.until("everybody", 20, |world| {
            elected(world) && world.heights().len() == 1
        });
        world.check_chains();
        assert_eq!(
            world.nodes[&leader].view.as_ref().unwrap().consenters[..],
            [1, 2, 3, 4]
        );
    }
}

/// Blocks are decided faster than missing ones can be fetched, for a while: what is kept of them meanwhile is bounded,
/// and the rest is fetched, too.
#[test]
fn a_member_that_fetches_slowly_catches_up_when_it_can() {
    for seed in 0..4 {
        let mut world = World::with_genesis(700 + seed, genesis_with_snapshots_every(10_000));
        world.pull_delay = 6000;
        world.until("a leader", 2, elected);
        let leader = world.leader().unwrap();
        let away = leader % 3 + 1;
        world.crash(away);
        for round in 0_u64..300 {
            if round == 60 {
                world.restart(away);
            }
            for number in 0_u64..10 {
                let data = [&round.to_be_bytes()[..], &number.to_be_bytes(), &[7; 300]].concat();
                let envelope = world.envelope(&data);
                world.submit(leader, envelope, Ack::Committed);
            }
            world.pass(20);
        }
        assert_eq!(world.nodes[&leader].chain.len(), 301);
        assert!(
            world.nodes[&away].chain.len() < 200,
            "it was slow: {}",
            world.describe()
        );
        world.until("the slow member", 900, |world| world.heights().len() == 1);
        assert!(world.nodes[&away].asked > 1, "{}", world.describe());
        world.check_chains();
    }
}
