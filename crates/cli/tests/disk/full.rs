//! Disks that are full.
//!
//! A limit on the length of files stands for the disk: writes beyond it fail.

use std::fs;

use crate::support::client::{Load, transaction};
use crate::support::judge::judge;
use crate::support::network::{CHANNEL, Network, Rules};
use crate::support::{Alone, until};
use crate::{block_file, command, segment};

/// Above what an orderer's log file needs in these tests.
const LIMIT: u64 = 600;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_consensus_log_has_no_room_gives_way_and_comes_back_with_room() {
    let _alone = Alone::begin().await;
    // Every block goes into the log twice, as an entry and in a snapshot: it is longer than the ledger.
    let rules = Rules {
        snapshot_bytes: 1,
        ..Rules::default()
    };
    let mut network = Network::start(3, 3, &rules).await;
    let all = [0, 1, 2];
    let load = Load::start(&network, &all, 4, 41);
    load.progress(50).await;
    let full = network.leader(&all).await;
    network.orderers[full].kill();
    let used = fs::metadata(segment(&network.orderers[full], true))
        .unwrap()
        .len()
        / 1024;
    network.orderers[full].limit_files(Some(used + LIMIT));
    network.run(full).await;
    until("the disk is full", async || {
        network.orderers[full]
            .log()
            .contains("the log cannot be written any more")
            .then_some(())
    })
    .await;
    load.progress(100).await;
    let log = network.orderers[full].log();
    assert!(
        log.contains("free or replace the disk and restart"),
        "{log}"
    );
    let health = network.orderers[full].operations("/healthz").await.unwrap();
    assert!(health.contains("503"), "{health}");
    assert!(health.contains("consensus log"), "{health}");
    let status = command(&network.orderers[full], &["status"]);
    assert_eq!(status.code, 1);
    assert!(
        status.said.contains("consensus log FAILS"),
        "{}",
        status.said
    );

    network.orderers[full].kill();
    network.orderers[full].limit_files(None);
    network.run(full).await;
    network.level(&all).await;
    let books = load.stop().await;
    judge(&network, &all, &books).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ledger_that_has_no_room_stops_its_channel_and_says_so() {
    let _alone = Alone::begin().await;
    let mut network = Network::start(3, 3, &Rules::default()).await;
    let all = [0, 1, 2];
    let leader = network.leader(&all).await;
    // A ledger that is longer than any segment of the log will be.
    let line = network.orderers[leader].line();
    let mut books = Vec::new();
    for number in 0..30 {
        let words = format!("{number} {}", "x".repeat(100_000));
        let answer = line.submit(transaction(&words, &network.admin)).await;
        answer.unwrap();
        books.push((words, crate::support::client::Answer::Acknowledged));
    }
    network.level(&all).await;
    let full = (leader + 1) % 3;
    network.orderers[full].kill();
    network.orderers[full].lose("wal");
    let used = fs::metadata(block_file(&network.orderers[full], 0))
        .unwrap()
        .len()
        / 1024;
    network.orderers[full].limit_files(Some(used + 20));
    network.run(full).await;
    let load = Load::start(&network, &all, 4, 42);
    until("the disk is full", async || {
        network.orderers[full]
            .log()
            .contains("The ledger cannot be written any more")
            .then_some(())
    })
    .await;
    load.progress(50).await;
    let described = until("the channel has failed", async || {
        let described = network.orderers[full].describe().await?;
        (described.status == "failed").then_some(described)
    })
    .await;
    assert_eq!(described.name, CHANNEL);
    let ready = network.orderers[full].operations("/readyz").await.unwrap();
    assert!(ready.contains("503") && ready.contains("failed"), "{ready}");
    let status = command(&network.orderers[full], &["status"]);
    assert_eq!(status.code, 1);
    assert!(
        status.said.contains("FAILED: cannot write"),
        "{}",
        status.said
    );

    network.orderers[full].kill();
    network.orderers[full].limit_files(None);
    network.run(full).await;
    network.level(&all).await;
    books.extend(load.stop().await);
    judge(&network, &all, &books).await;
}
