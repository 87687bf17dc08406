//! Faults at moments drawn from a seed, one after the other, while clients submit.

use std::time::Duration;

use prost::Message as _;
use tokio::time::{Instant, sleep};

use crate::members::latest_config;
use crate::support::client::Load;
use crate::support::judge::judge;
use crate::support::network::{Network, Rules};
use crate::support::switch::Interruption;
use crate::support::{Alone, Dice, now_micros, setting};

const FAULTS: u64 = 20;
const ORDERERS: usize = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    KillLeader,
    KillFollower,
    /// A second one dies while the first is away.
    KillTwo,
    PauseLeader,
    PauseFollower,
    /// Nobody answers the minority, which the leader is in or not.
    Silence,
    /// The same with broken connections.
    Cut,
    KillAll,
    /// Ledger, log and snapshots are gone; the channel is joined with the latest configuration.
    Wipe,
    LoseLog,
    /// Away until the others' logs are compacted.
    LongAbsence,
}

const KINDS: [Fault; 11] = [
    Fault::KillLeader,
    Fault::KillFollower,
    Fault::KillTwo,
    Fault::PauseLeader,
    Fault::PauseFollower,
    Fault::Silence,
    Fault::Cut,
    Fault::KillAll,
    Fault::Wipe,
    Fault::LoseLog,
    Fault::LongAbsence,
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_acknowledged_envelope_is_lost_whatever_happens() {
    let _alone = Alone::begin().await;
    let seed = setting("QUORATE_CLUSTER_SEED")
        .unwrap_or_else(|| u64::try_from(now_micros() % 1_000_000).unwrap());
    let faults = setting("QUORATE_CLUSTER_FAULTS").unwrap_or(FAULTS);
    println!("QUORATE_CLUSTER_SEED={seed}");
    let mut dice = Dice::new(seed);
    let rules = Rules {
        election_tick: 5,
        ..Rules::default()
    };
    let all: Vec<usize> = (0..ORDERERS).collect();
    let mut network = Network::start(ORDERERS, ORDERERS, &rules).await;
    network.leader(&all).await;
    let load = Load::start(&network, &all, 6, seed);
    load.progress(20).await;
    let began = Instant::now();
    // Every kind once, in a drawn order, then whatever comes.
    let mut kinds = KINDS.to_vec();
    for number in 0..faults {
        let fault = match kinds.len() {
            0 => KINDS[dice.below(KINDS.len())],
            left => kinds.remove(dice.below(left)),
        };
        sleep(dice.millis(300)).await;
        let begin = Instant::now();
        let served = inflict(fault, &mut network, &load, &all, &mut dice).await;
        network.level(&all).await;
        println!(
            "{number:3} {fault:?}: served after {served:.2?}, all level after {:.2?}; {} acknowledged",
            begin.elapsed(),
            load.acknowledged()
        );
    }
    println!("{faults} faults in {:.1?}", began.elapsed());
    let books = load.stop().await;
    judge(&network, &all, &books).await;
}

/// Inflicts it, waits until clients are served, and heals it. How long clients waited.
async fn inflict(
    fault: Fault,
    network: &mut Network,
    load: &Load,
    all: &[usize],
    dice: &mut Dice,
) -> Duration {
    let leader = network.leader(all).await;
    let follower = (leader + 1 + dice.below(ORDERERS - 1)) % ORDERERS;
    let another = all
        .iter()
        .copied()
        .find(|number| ![leader, follower].contains(number))
        .unwrap();
    match fault {
        Fault::KillLeader => killed(network, load, &[leader]).await,
        Fault::KillFollower => killed(network, load, &[follower]).await,
        Fault::KillTwo => killed(network, load, &[leader, follower]).await,
        Fault::PauseLeader => paused(network, load, leader).await,
        Fault::PauseFollower => paused(network, load, follower).await,
        Fault::Silence | Fault::Cut => {
            let how = match fault {
                Fault::Silence => Interruption::Silent,
                _ => Interruption::Cut,
            };
            let one = [leader, another][dice.below(2)];
            network.switch.part([one, follower], how);
            let served = load.progress(20).await;
            network.switch.heal();
            served
        }
        Fault::KillAll => {
            let mut order = all.to_vec();
            while !order.is_empty() {
                let number = order.remove(dice.below(order.len()));
                network.orderers[number].kill();
            }
            for number in all {
                network.spawn(*number);
            }
            let served = load.progress(20).await;
            for number in all {
                network.orderers[*number].ready().await;
            }
            served
        }
        Fault::Wipe => {
            network.orderers[follower].kill();
            let served = load.progress(20).await;
            network.orderers[follower].lose("");
            let latest = latest_config(network, leader).await.encode_to_vec();
            network.run(follower).await;
            network.orderers[follower].join(&latest).await;
            network.orderers[follower]
                .becomes("consenter", "active")
                .await;
            served
        }
        Fault::LoseLog => {
            network.orderers[follower].kill();
            let served = load.progress(20).await;
            network.orderers[follower].lose("wal");
            network.run(follower).await;
            served
        }
        Fault::LongAbsence => {
            network.orderers[follower].kill();
            let served = load.progress(20).await;
            load.progress(200).await;
            network.run(follower).await;
            served
        }
    }
}

async fn killed(network: &mut Network, load: &Load, which: &[usize]) -> Duration {
    for number in which {
        network.orderers[*number].kill();
    }
    let served = load.progress(20).await;
    for number in which {
        network.run(*number).await;
    }
    served
}

async fn paused(network: &Network, load: &Load, which: usize) -> Duration {
    network.orderers[which].pause();
    let served = load.progress(20).await;
    network.orderers[which].resume();
    served
}
