//! Orderers that come and go by configuration, and orderers that leave the channel and come again.

use std::fs;

use prost::Message as _;
use quorate_fabric::config::ChannelConfig;
use quorate_fabric::proto::common::{Block, Config};
use quorate_fabric::proto::etcdraft::{ConfigMetadata, Consenter};
use quorate_fabric::proto::orderer::ConsensusType;

use crate::support::client::{Load, transaction, update};
use crate::support::judge::judge;
use crate::support::network::{CHANNEL, Network, Orderer, Rules};
use crate::support::{Alone, until};

/// The block whose configuration is in force, as an orderer has it.
pub(crate) async fn latest_config(network: &Network, from: usize) -> Block {
    let height = network.orderers[from].height().await;
    let line = network.orderers[from].line();
    let chain = line.chain(height, &network.admin).await.unwrap();
    let number = chain.last().unwrap().last_config().unwrap();
    chain[usize::try_from(number).unwrap()].block()
}

fn as_consenter(orderer: &Orderer) -> Consenter {
    let certificate = fs::read(orderer.tls("server.crt")).unwrap();
    Consenter {
        host: "127.0.0.1".to_owned(),
        port: orderer.cluster.into(),
        client_tls_cert: certificate.clone(),
        server_tls_cert: certificate,
    }
}

/// Changes the consenters of the channel, and waits until the change is in force on these.
async fn change(
    network: &Network,
    through: usize,
    on: &[usize],
    change: impl Fn(&mut Vec<Consenter>),
) {
    let current = ChannelConfig::from_block(&latest_config(network, through).await).unwrap();
    let mut wanted: Config = current.proto().clone();
    let orderer = wanted
        .channel_group
        .as_mut()
        .and_then(|channel| channel.groups.get_mut("Orderer"))
        .unwrap();
    let value = orderer.values.get_mut("ConsensusType").unwrap();
    let mut kind = ConsensusType::decode(value.value.as_slice()).unwrap();
    let mut metadata = ConfigMetadata::decode(kind.metadata.as_slice()).unwrap();
    change(&mut metadata.consenters);
    kind.metadata = metadata.encode_to_vec();
    value.value = kind.encode_to_vec();
    // A refusal changes nothing, so asking again is safe here: there is one administrator.
    let goal = current.sequence() + 1;
    let mut refused = None;
    until("the update is ordered", async || {
        let line = network.orderers[through].line();
        let answer = line.submit(update(&current, &wanted, &network.admin)).await;
        if let Err(reason) = answer
            && refused.as_ref() != Some(&reason)
        {
            println!("update refused: {reason}");
            refused = Some(reason);
        }
        let now = ChannelConfig::from_block(&latest_config(network, through).await).unwrap();
        (now.sequence() >= goal).then_some(())
    })
    .await;
    for number in on {
        until("the update is in force", async || {
            let now = ChannelConfig::from_block(&latest_config(network, *number).await).unwrap();
            (now.sequence() >= goal).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consenter_is_added_and_counts() {
    let _alone = Alone::begin().await;
    let mut network = Network::start(4, 3, &Rules::default()).await;
    let members = [0, 1, 2];
    network.leader(&members).await;
    let load = Load::start(&network, &members, 4, 7);
    load.progress(100).await;

    // A fourth one, told by the block that names it.
    let newcomer = as_consenter(&network.orderers[3]);
    change(&network, 0, &members, |consenters| {
        consenters.push(newcomer.clone());
    })
    .await;
    let latest = latest_config(&network, 0).await.encode_to_vec();
    network.run(3).await;
    network.orderers[3].join(&latest).await;
    network.orderers[3].becomes("consenter", "active").await;
    load.progress(100).await;
    network.level(&[0, 1, 2, 3]).await;

    // With it two of the old ones may be away, one after the other.
    for away in [0, 1] {
        network.orderers[away].kill();
        load.progress(50).await;
        network.run(away).await;
        network.level(&[0, 1, 2, 3]).await;
    }

    let books = load.stop().await;
    judge(&network, &[0, 1, 2, 3], &books).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_leader_follows_and_comes_back() {
    let _alone = Alone::begin().await;
    let network = Network::start(4, 4, &Rules::default()).await;
    let all = [0, 1, 2, 3];
    network.leader(&all).await;
    let load = Load::start(&network, &all, 4, 8);
    load.progress(100).await;

    // The leader is removed, and follows the channel from then on.
    let removed = network.leader(&[0, 1, 2, 3]).await;
    let rest: Vec<usize> = (0..4).filter(|number| *number != removed).collect();
    let gone = as_consenter(&network.orderers[removed]);
    change(&network, rest[0], &rest, |consenters| {
        consenters.retain(|consenter| consenter.port != gone.port);
    })
    .await;
    network.orderers[removed]
        .becomes("follower", "active")
        .await;
    load.progress(100).await;
    network.level(&[0, 1, 2, 3]).await;

    // It comes back, without anybody's join.
    change(&network, rest[0], &rest, |consenters| {
        consenters.push(gone.clone())
    })
    .await;
    network.orderers[removed]
        .becomes("consenter", "active")
        .await;
    load.progress(100).await;
    let books = load.stop().await;
    judge(&network, &[0, 1, 2, 3], &books).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orderer_leaves_the_channel_and_joins_again() {
    let _alone = Alone::begin().await;
    let mut network = Network::start(3, 3, &Rules::default()).await;
    let all = [0, 1, 2];
    let leader = network.leader(&all).await;
    let load = Load::start(&network, &all, 4, 9);
    load.progress(150).await;

    // A follower leaves and joins with the first block, while the others have compacted their logs.
    let one = (leader + 1) % 3;
    network.orderers[one]
        .participation()
        .remove(CHANNEL)
        .await
        .unwrap();
    until("the channel is gone", async || {
        network.orderers[one]
            .describe()
            .await
            .is_none()
            .then_some(())
    })
    .await;
    load.progress(100).await;
    let genesis = network.genesis.clone();
    network.orderers[one].join(&genesis).await;
    network.level(&all).await;
    network.orderers[one].becomes("consenter", "active").await;
    load.progress(50).await;

    // One loses everything and joins with the first block.
    network.orderers[one].kill();
    network.orderers[one].lose("");
    network.run(one).await;
    network.orderers[one].join(&genesis).await;
    load.progress(50).await;
    network.level(&all).await;

    // The leader leaves and joins with the first block.
    let leader = network.leader(&all).await;
    network.orderers[leader]
        .participation()
        .remove(CHANNEL)
        .await
        .unwrap();
    load.progress(50).await;
    network.orderers[leader].join(&genesis).await;
    network.level(&all).await;
    network.orderers[leader]
        .becomes("consenter", "active")
        .await;
    load.progress(50).await;

    let books = load.stop().await;
    judge(&network, &all, &books).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_orderer_alone_comes_back_with_everything() {
    let _alone = Alone::begin().await;
    let mut network = Network::start(1, 1, &Rules::default()).await;
    network.leader(&[0]).await;
    let load = Load::start(&network, &[0], 4, 11);
    for _ in 0..3 {
        load.progress(100).await;
        network.orderers[0].kill();
        network.run(0).await;
    }
    load.progress(20).await;
    let books = load.stop().await;
    judge(&network, &[0], &books).await;
    let line = network.orderers[0].line();
    line.submit(transaction("afterwards", &network.admin))
        .await
        .unwrap();
}
