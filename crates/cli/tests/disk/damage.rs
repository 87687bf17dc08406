//! Disks that rot.

use std::fs;

use crate::support::client::Load;
use crate::support::judge::judge;
use crate::support::network::{CHANNEL, Network, Rules};
use crate::support::{Alone, until};
use crate::{block_file, chain, command, done, rot, segment, serves, text};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bit_that_flips_in_an_old_block_is_found_and_mended_from_a_backup() {
    let _alone = Alone::begin().await;
    let mut network = Network::start(3, 3, &Rules::default()).await;
    let all = [0, 1, 2];
    let leader = network.leader(&all).await;
    let load = Load::start(&network, &all, 4, 31);
    load.progress(300).await;
    let rotten = (leader + 1) % 3;
    let said = done(&network.orderers[rotten], &["verify"]);
    assert!(said.contains("intact"), "{said}");
    let backup = tempfile::tempdir().unwrap();
    let to = text(backup.path());
    done(&network.orderers[rotten], &["backup", "--to", to]);

    network.orderers[rotten].kill();
    let file = block_file(&network.orderers[rotten], 0);
    let at = rot(&file, 1, 2);
    let found = command(&network.orderers[rotten], &["verify"]);
    assert_eq!(found.code, 1, "{}", found.said);
    assert!(
        found
            .said
            .contains(&format!("{} at offset", file.display())),
        "{}",
        found.said
    );
    let json = command(&network.orderers[rotten], &["verify", "--json"]);
    let reports: serde_json::Value = serde_json::from_str(
        &json.said[json.said.find('[').unwrap()..=json.said.rfind(']').unwrap()],
    )
    .unwrap();
    let finding = &reports[0]["findings"][0];
    let (block, offset) = (
        finding["block"].as_u64().unwrap(),
        finding["offset"].as_u64().unwrap(),
    );
    assert!(offset <= at as u64 && block > 0, "{finding}");

    // It serves what is whole, and refuses what is not.
    network.run(rotten).await;
    serves(&network, rotten).await;
    let line = network.orderers[rotten].line();
    let height = network.orderers[rotten].height().await;
    assert!(line.chain(block, &network.admin).await.is_ok());
    let refused = line.chain(height, &network.admin).await.unwrap_err();
    assert!(refused.contains("ServiceUnavailable"), "{refused}");
    let log = network.orderers[rotten].log();
    assert!(
        log.contains(&format!(
            "block file {} is damaged at offset",
            file.display()
        )),
        "{log}"
    );
    load.progress(50).await;

    // A damaged ledger does not get into a backup.
    let refused = command(&network.orderers[rotten], &["backup", "--to", to]);
    assert_eq!(refused.code, 1, "{}", refused.said);
    // Nor is a backup written over it.
    network.orderers[rotten].kill();
    let refused = command(&network.orderers[rotten], &["restore", "--from", to]);
    assert_eq!(refused.code, 1, "{}", refused.said);
    assert!(
        refused.said.contains("move one of them away"),
        "{}",
        refused.said
    );

    // The way out.
    let folder = chain(&network.orderers[rotten]);
    fs::rename(&folder, backup.path().join("damaged")).unwrap();
    let said = done(&network.orderers[rotten], &["restore", "--from", to]);
    assert!(said.contains("are the same"), "{said}");
    assert!(said.contains("are in the ledger"), "{said}");
    network.run(rotten).await;
    network.level(&all).await;
    done(&network.orderers[rotten], &["verify"]);
    let books = load.stop().await;
    judge(&network, &all, &books).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bit_that_flips_in_the_newest_block_keeps_one_channel_from_starting_until_it_is_joined_again()
 {
    let _alone = Alone::begin().await;
    let mut network = Network::start(3, 3, &Rules::default()).await;
    let all = [0, 1, 2];
    let leader = network.leader(&all).await;
    let load = Load::start(&network, &all, 4, 32);
    load.progress(100).await;
    let rotten = (leader + 1) % 3;
    network.orderers[rotten].kill();
    let file = block_file(&network.orderers[rotten], 0);
    rot(&file, 9_999, 10_000);

    network.run(rotten).await;
    let described = network.orderers[rotten].describe().await.unwrap();
    assert_eq!(described.status, "failed");
    let log = network.orderers[rotten].log();
    assert!(
        log.contains(&format!("Channel {CHANNEL} cannot be served")),
        "{log}"
    );
    assert!(
        log.contains(&format!("{} is damaged at offset", file.display())),
        "{log}"
    );
    assert!(log.contains("join the channel again"), "{log}");
    load.progress(50).await;

    // Mended in its place, as by a copy of the file: nothing that it had promised was forgotten meanwhile.
    network.orderers[rotten].kill();
    rot(&file, 9_999, 10_000);
    network.run(rotten).await;
    serves(&network, rotten).await;
    let log = network.orderers[rotten].log();
    assert!(!log.contains("is lost"), "{log}");
    network.level(&all).await;

    // The other way out: leave, and join again.
    network.orderers[rotten].kill();
    rot(&file, 9_999, 10_000);
    network.run(rotten).await;
    let participation = network.orderers[rotten].participation();
    participation.remove(CHANNEL).await.unwrap();
    until("the channel is gone", async || {
        let gone = network.orderers[rotten].describe().await.is_none();
        gone.then_some(())
    })
    .await;
    network.orderers[rotten].join(&network.genesis).await;
    network.level(&all).await;
    serves(&network, rotten).await;
    let books = load.stop().await;
    judge(&network, &all, &books).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotten_index_mends_itself() {
    let _alone = Alone::begin().await;
    let mut network = Network::start(1, 1, &Rules::default()).await;
    network.leader(&[0]).await;
    let load = Load::start(&network, &[0], 4, 33);
    load.progress(300).await;
    let index = chain(&network.orderers[0]).join("index.quorate");
    for (numerator, denominator) in [(1, 3), (2, 3), (1, 1000)] {
        network.orderers[0].kill();
        rot(&index, numerator, denominator);
        network.run(0).await;
        load.progress(20).await;
        let height = network.orderers[0].height().await;
        let line = network.orderers[0].line();
        line.chain(height, &network.admin).await.unwrap();
    }
    done(&network.orderers[0], &["verify"]);
    let books = load.stop().await;
    judge(&network, &[0], &books).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotten_consensus_log_is_refused_and_can_be_moved_away() {
    let _alone = Alone::begin().await;
    let mut network = Network::start(3, 3, &Rules::default()).await;
    let all = [0, 1, 2];
    let leader = network.leader(&all).await;
    let load = Load::start(&network, &all, 4, 34);
    load.progress(150).await;
    let rotten = (leader + 1) % 3;
    network.orderers[rotten].kill();
    let file = segment(&network.orderers[rotten], true);
    rot(&file, 1, 2);

    network.spawn(rotten);
    let log = network.orderers[rotten].ends().await;
    assert!(
        log.contains(&format!("{} is damaged at offset", file.display())),
        "{log}"
    );
    assert!(log.contains("move the folder"), "{log}");
    load.progress(50).await;

    // The way out.
    let folder = file.parent().unwrap();
    fs::rename(folder, folder.with_file_name("_log.damaged")).unwrap();
    network.run(rotten).await;
    network.level(&all).await;
    // Once it has caught up it counts again.
    network.orderers[leader].kill();
    load.progress(50).await;
    network.run(leader).await;
    network.level(&all).await;
    let books = load.stop().await;
    judge(&network, &all, &books).await;
}
