//! Disks that are lost, or come back as they were.

use prost::Message as _;
use tokio::time::sleep;

use crate::support::Alone;
use crate::support::client::Load;
use crate::support::judge::judge;
use crate::support::network::{Network, Rules};
use crate::{command, copy_folder, serves};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_disk_is_filled_by_joining_again() {
    let _alone = Alone::begin().await;
    let mut network = Network::start(3, 3, &Rules::default()).await;
    let all = [0, 1, 2];
    let leader = network.leader(&all).await;
    let load = Load::start(&network, &all, 4, 21);
    load.progress(150).await;
    let wiped = (leader + 1) % 3;
    network.orderers[wiped].kill();
    network.orderers[wiped].lose("");
    load.progress(50).await;
    network.run(wiped).await;
    assert!(network.orderers[wiped].describe().await.is_none());
    let height = network.orderers[leader].height().await;
    let line = network.orderers[leader].line();
    let chain = line.chain(height, &network.admin).await.unwrap();
    let config = &chain[usize::try_from(chain.last().unwrap().last_config().unwrap()).unwrap()];
    network.orderers[wiped]
        .join(&config.block().encode_to_vec())
        .await;
    network.level(&all).await;
    serves(&network, wiped).await;
    // It counts again: with it, another one may be away.
    network.orderers[leader].kill();
    load.progress(50).await;
    network.run(leader).await;
    let books = load.stop().await;
    judge(&network, &all, &books).await;
}

/// Ledger, log, mark: everything is as it was an hour ago, as after the roll-back of a virtual machine. Who leads can prove
/// to it that it has forgotten.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_comes_back_old_is_put_right_by_the_leader() {
    let _alone = Alone::begin().await;
    let mut network = Network::start(3, 3, &Rules::default()).await;
    let all = [0, 1, 2];
    let leader = network.leader(&all).await;
    let load = Load::start(&network, &all, 4, 22);
    load.progress(100).await;
    let (old, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let image = tempfile::tempdir().unwrap();
    network.orderers[old].kill();
    copy_folder(&network.orderers[old].data(""), image.path());
    network.run(old).await;
    network.level(&all).await;
    load.progress(100).await;
    // The third is away: what is acknowledged now is on the leader, and was on the one that forgets.
    network.orderers[other].kill();
    load.progress(100).await;
    network.orderers[old].kill();
    network.orderers[old].lose("");
    copy_folder(image.path(), &network.orderers[old].data(""));
    network.run(old).await;
    load.progress(50).await;
    network.run(other).await;
    network.level(&all).await;
    let books = load.stop().await;
    judge(&network, &all, &books).await;
}

/// The same while nobody is there who knows better. Its old log would let it elect, together with one that was away, a
/// leader without what was acknowledged; so the log is deleted, as the guide says, and the mark beside the ledgers tells it
/// that it has forgotten.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_disk_without_its_log_elects_nobody_while_those_who_know_are_away() {
    let _alone = Alone::begin().await;
    let mut network = Network::start(3, 3, &Rules::default()).await;
    let all = [0, 1, 2];
    let leader = network.leader(&all).await;
    let load = Load::start(&network, &all, 4, 24);
    load.progress(100).await;
    let (old, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let image = tempfile::tempdir().unwrap();
    network.orderers[old].kill();
    copy_folder(&network.orderers[old].data(""), image.path());
    network.run(old).await;
    network.level(&all).await;
    network.orderers[other].kill();
    load.progress(100).await;
    network.orderers[old].kill();
    network.orderers[leader].pause();
    network.orderers[old].lose("");
    copy_folder(image.path(), &network.orderers[old].data(""));
    network.orderers[old].lose("wal/_log");
    network.run(old).await;
    network.run(other).await;
    let before = load.acknowledged();
    sleep(4 * Rules::default().takeover()).await;
    assert_eq!(
        load.acknowledged(),
        before,
        "two that do not know ordered anew"
    );
    let status = command(&network.orderers[old], &["status"]);
    assert_eq!(status.code, 1);
    assert!(
        status.said.contains("takes no part in elections"),
        "{}",
        status.said
    );
    assert!(status.said.contains("NO LEADER"), "{}", status.said);

    network.orderers[leader].resume();
    load.progress(50).await;
    network.level(&all).await;
    let books = load.stop().await;
    judge(&network, &all, &books).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshot_folders_and_logs_that_are_gone_do_no_harm() {
    let _alone = Alone::begin().await;
    let mut network = Network::start(3, 3, &Rules::default()).await;
    let all = [0, 1, 2];
    network.leader(&all).await;
    let load = Load::start(&network, &all, 4, 23);
    load.progress(100).await;
    // Snapshots of all, one after the other; then of all at once.
    for number in all {
        network.orderers[number].kill();
        network.orderers[number].lose("snap");
        network.run(number).await;
        load.progress(30).await;
    }
    for number in all {
        network.orderers[number].kill();
        network.orderers[number].lose("snap");
    }
    for number in all {
        network.run(number).await;
    }
    load.progress(30).await;
    // The log of one, which says so and is given back what it may have forgotten.
    network.orderers[1].kill();
    network.orderers[1].lose("wal");
    network.run(1).await;
    let log = network.orderers[1].log();
    assert!(
        log.contains("is lost: this orderer takes no part in elections"),
        "{log}"
    );
    load.progress(30).await;
    network.level(&all).await;
    let books = load.stop().await;
    judge(&network, &all, &books).await;
}
