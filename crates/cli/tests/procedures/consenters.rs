//! Consenters come and go, one at a time.

use std::fs;

use quorate_fabric::config::ChannelConfig;

use crate::support::client::Load;
use crate::support::judge::judge;
use crate::support::network::{CHANNEL, Network, Rules};
use crate::support::{Alone, until};
use crate::tool::Operator;

/// The addresses of consenters and of orderers for clients, as an orderer has them.
async fn addresses(network: &Network, from: usize) -> (Vec<String>, Vec<String>) {
    let height = network.orderers[from].height().await;
    let chain = network.orderers[from]
        .line()
        .chain(height, &network.admin)
        .await
        .unwrap();
    let number = chain.last().unwrap().last_config().unwrap();
    let block = chain[usize::try_from(number).unwrap()].block();
    let config = ChannelConfig::from_block(&block).unwrap();
    let consenters = &config.raft_metadata().consenters;
    (
        consenters
            .iter()
            .map(|one| format!("{}:{}", one.host, one.port))
            .collect(),
        config
            .orderer_endpoints()
            .into_iter()
            .map(|endpoint| endpoint.address)
            .collect(),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_grows_to_five_and_shrinks_to_three_under_load() {
    let _alone = Alone::begin().await;
    let mut network = Network::start(5, 3, &Rules::default()).await;
    network.leader(&[0, 1, 2]).await;
    let load = Load::start(&network, &[0, 1, 2], 4, 21);
    load.progress(100).await;
    let operator = Operator::of(&network, 0);

    for newcomer in [3, 4] {
        network.run(newcomer).await;
        let address = operator.address(newcomer).to_owned();
        operator.add(&network, newcomer).await.well(&[
            &format!("+ {address}, "),
            "+ /Channel/Orderer/Admins",
            "in force on all consenters that stay",
            &format!("{address} joined with block"),
            &format!("{address} orders, with "),
            "Endpoints",
        ]);
        let (consenters, endpoints) = addresses(&network, newcomer).await;
        assert_eq!(consenters.len(), newcomer + 1);
        assert_eq!(endpoints, consenters);
        load.progress(50).await;
        // Again is no change.
        operator
            .add(&network, newcomer)
            .await
            .well(&["the channel is so already", "was in the channel already"]);
    }
    let all = [0, 1, 2, 3, 4];
    network.level(&all).await;

    // First one that follows, then whoever leads; the operator asks an orderer that is going.
    let leader = network.leader(&all).await;
    let follower = (leader + 1) % 5;
    for leaver in [follower, leader] {
        let operator = Operator::of(&network, leaver);
        let address = operator.address(leaver).to_owned();
        operator.remove(leaver).await.well(&[
            &format!("- {address}, "),
            "in force on all consenters that stay",
        ]);
        network.orderers[leaver].becomes("follower", "active").await;
        load.progress(50).await;
        Operator::of(&network, (leaver + 2) % 5)
            .remove(leaver)
            .await
            .refused(&[&format!("{address} is no consenter of channel")]);
    }
    let rest: Vec<usize> = all
        .into_iter()
        .filter(|number| ![leader, follower].contains(number))
        .collect();
    let (consenters, endpoints) = addresses(&network, rest[0]).await;
    assert_eq!(consenters.len(), 3);
    assert_eq!(endpoints, consenters);
    load.progress(50).await;

    let books = load.stop().await;
    // Those that were removed follow, and have the same chain.
    judge(&network, &rest, &books).await;
    network.level(&all).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_added_while_a_consenter_is_down() {
    let _alone = Alone::begin().await;
    let mut network = Network::start(4, 3, &Rules::default()).await;
    let leader = network.leader(&[0, 1, 2]).await;
    let load = Load::start(&network, &[0, 1, 2], 4, 22);
    load.progress(50).await;
    network.run(3).await;
    let operator = Operator::of(&network, leader);
    let away = (leader + 1) % 3;
    network.orderers[away].kill();
    load.progress(20).await;

    // With two of then four the channel would stand still until the third comes back.
    let dead = operator.address(away).to_owned();
    operator.add(&network, 3).await.refused(&[
        "would lose its quorum",
        "2 of then 4 consenters would work",
        "3 are needed",
        &format!("{dead}: "),
    ]);
    // Neither can one that works be removed or given another certificate, by force or not.
    let works = (leader + 2) % 3;
    let certificate = network.next_tls(works).join("server.crt");
    let certificate = certificate.display().to_string();
    let works = operator.address(works).to_owned();
    for command in [
        &["remove", &works][..],
        &["rotate", &works, "--tls-cert", &certificate],
    ] {
        for force in [&[][..], &["--force"]] {
            let command = [&["consenter"], command, force].concat();
            operator
                .channel(&command)
                .await
                .refused(&["would lose its quorum", &dead]);
        }
    }
    assert_eq!(addresses(&network, leader).await.0.len(), 3);
    load.progress(50).await;

    // When it is back there is nothing in the way.
    network.run(away).await;
    network.level(&[0, 1, 2]).await;
    operator.add(&network, 3).await.well(&["orders, with"]);
    load.progress(50).await;
    let books = load.stop().await;
    judge(&network, &[0, 1, 2, 3], &books).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consenter_that_was_removed_while_it_was_down_comes_back_and_is_added_again() {
    let _alone = Alone::begin().await;
    let mut network = Network::start(4, 4, &Rules::default()).await;
    let all = [0, 1, 2, 3];
    let leader = network.leader(&all).await;
    let load = Load::start(&network, &all, 4, 23);
    load.progress(50).await;
    let operator = Operator::of(&network, leader);
    let away = (leader + 1) % 4;
    network.orderers[away].kill();
    load.progress(20).await;

    operator
        .remove(away)
        .await
        .well(&["in force on all consenters that stay"]);
    load.progress(100).await;
    // It does not know, and finds out from the blocks of others.
    network.run(away).await;
    network.orderers[away].becomes("follower", "active").await;
    load.progress(50).await;

    operator
        .add(&network, away)
        .await
        .well(&["was in the channel already", "orders, with"]);
    // It counts again: with it another one may be away.
    let other = (leader + 2) % 4;
    network.orderers[other].kill();
    load.progress(50).await;
    network.run(other).await;

    // Removed and added again while it is down, it goes on as the new consenter that it is.
    network.level(&all).await;
    network.orderers[away].kill();
    operator.remove(away).await.well(&["in force"]);
    load.progress(20).await;
    let certificate = network.orderers[away].tls("server.crt");
    let certificate = certificate.display().to_string();
    let address = operator.address(away).to_owned();
    operator
        .channel(&[
            "consenter",
            "add",
            &address,
            "--tls-cert",
            &certificate,
            "--wait",
        ])
        .await
        .well(&["in force", "quorate channel join"]);
    load.progress(20).await;
    network.run(away).await;
    network.orderers[away].becomes("consenter", "active").await;
    load.progress(50).await;
    network.level(&all).await;
    let books = load.stop().await;
    judge(&network, &all, &books).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_done_to_one_channel_does_not_disturb_another() {
    const OTHER: &str = "other";
    let _alone = Alone::begin().await;
    let network = Network::start(3, 3, &Rules::default()).await;
    let all = [0, 1, 2];
    network.leader(&all).await;
    // A second channel of the same orderers, from the same profile.
    let operator = Operator::of(&network, 0);
    operator
        .run(&[
            "channel",
            "genesis",
            "--profile",
            "Books",
            "-c",
            OTHER,
            "--output-block",
            "other.block",
        ])
        .await
        .well(&["genesis block of channel other"]);
    let genesis = fs::read(operator.file("other.block")).unwrap();
    for orderer in &network.orderers {
        orderer.participation().join(&genesis).await.unwrap();
    }
    let leader = until("the other channel has a leader", async || {
        for number in all {
            if network.orderers[number].leads_in(OTHER).await {
                return Some(number);
            }
        }
        None
    })
    .await;
    let load = Load::start(&network, &all, 4, 24);
    load.progress(50).await;
    let changes = async || {
        let mut changes = Vec::new();
        for orderer in &network.orderers {
            changes.push(orderer.leader_changes(CHANNEL).await.unwrap());
        }
        changes
    };
    let before = changes().await;

    // Out of the other channel goes its leader, and comes again.
    let operator = Operator::of(&network, (leader + 1) % 3).on(OTHER);
    let is = async |relation: &str| {
        let what = format!("it is {relation} of the other channel");
        until(&what, async || {
            let described = network.orderers[leader].participation().info(OTHER).await;
            (described.unwrap().consensus_relation == relation).then_some(())
        })
        .await;
    };
    operator.remove(leader).await.well(&["in force"]);
    is("follower").await;
    load.progress(50).await;
    operator.add(&network, leader).await.well(&["orders, with"]);
    is("consenter").await;
    operator
        .channel(&["set", "--batch-timeout", "80ms", "--wait"])
        .await
        .well(&["in force"]);
    load.progress(50).await;
    // And it leaves for good, with what it had.
    operator.remove(leader).await.well(&["in force"]);
    is("follower").await;
    network.orderers[leader]
        .participation()
        .remove(OTHER)
        .await
        .unwrap();
    load.progress(50).await;

    assert_eq!(changes().await, before, "leaders changed in {CHANNEL}");
    for orderer in &network.orderers {
        let described = orderer.describe().await.unwrap();
        assert_eq!(described.consensus_relation, "consenter");
    }
    let books = load.stop().await;
    judge(&network, &all, &books).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_leader_nothing_is_changed_and_it_is_said_why() {
    let _alone = Alone::begin().await;
    let mut network = Network::start(3, 3, &Rules::default()).await;
    network.leader(&[0, 1, 2]).await;
    let operator = Operator::of(&network, 0);
    for away in [1, 2] {
        network.orderers[away].kill();
    }
    // It takes a while until the last one knows that it is alone.
    until("the last one has no leader", async || {
        let ended = operator.remove(1).await;
        assert_eq!(ended.code, 1, "{}{}", ended.out, ended.err);
        ended
            .err
            .contains("a channel without a leader cannot be changed")
            .then_some(())
    })
    .await;
    network.run(1).await;
    network.leader(&[0, 1]).await;
    operator.remove(2).await.well(&["in force"]);
}
