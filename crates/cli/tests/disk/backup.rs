//! Backups, and what must not become of them.

use crate::support::Alone;
use crate::support::client::Load;
use crate::support::judge::judge;
use crate::support::network::{Network, Rules};
use crate::{command, done, serves, text};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_orderer_comes_back_from_its_backup_without_being_asked_to_join() {
    let _alone = Alone::begin().await;
    let mut network = Network::start(3, 3, &Rules::default()).await;
    let all = [0, 1, 2];
    let leader = network.leader(&all).await;
    let load = Load::start(&network, &all, 4, 51);
    load.progress(100).await;
    let lost = (leader + 1) % 3;
    let backup = tempfile::tempdir().unwrap();
    let to = text(backup.path());
    // While it runs, and again: what is new is added.
    done(&network.orderers[lost], &["backup", "--to", to]);
    load.progress(100).await;
    done(&network.orderers[lost], &["backup", "--to", to]);
    let said = done(&network.orderers[lost], &["verify", "--ledger", to]);
    assert!(said.contains("intact"), "{said}");
    // A ledger in use is not restored.
    let refused = command(&network.orderers[lost], &["restore", "--from", to]);
    assert_eq!(refused.code, 1);
    assert!(
        refused.said.contains("used by another process"),
        "{}",
        refused.said
    );

    load.progress(100).await;
    network.orderers[lost].kill();
    network.orderers[lost].lose("");
    let said = done(&network.orderers[lost], &["restore", "--from", to]);
    assert!(said.contains("votes in no election"), "{said}");
    network.run(lost).await;
    serves(&network, lost).await;
    let log = network.orderers[lost].log();
    assert!(log.contains("takes no part in elections"), "{log}");
    network.level(&all).await;
    // It counts again.
    network.orderers[leader].kill();
    load.progress(50).await;
    network.run(leader).await;
    let books = load.stop().await;
    judge(&network, &all, &books).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_whose_consenters_have_all_lost_their_logs_goes_on_from_the_longest_ledger() {
    let _alone = Alone::begin().await;
    let mut network = Network::start(3, 3, &Rules::default()).await;
    let all = [0, 1, 2];
    network.leader(&all).await;
    let load = Load::start(&network, &all, 4, 54);
    load.progress(150).await;
    for number in all {
        network.orderers[number].kill();
        network.orderers[number].lose("wal");
    }
    let mut books = load.stop().await;

    // Nobody can be elected, and everybody says why.
    for number in all {
        network.run(number).await;
    }
    tokio::time::sleep(4 * Rules::default().takeover()).await;
    let mut longest = (0, 0);
    for number in all {
        let status = command(&network.orderers[number], &["status"]);
        assert!(status.said.contains("NO LEADER"), "{}", status.said);
        longest = longest.max((network.orderers[number].height().await, number));
        network.orderers[number].kill();
    }
    let (_, longest) = longest;
    let backup = tempfile::tempdir().unwrap();
    let at = text(backup.path());
    let said = done(&network.orderers[longest], &["backup", "--to", at]);
    let hash = said.split("newest hash ").nth(1).unwrap();
    let hash = &hash[..64];

    let wrong = command(
        &network.orderers[0],
        &[
            "restore",
            "--from",
            at,
            "--begin-at",
            &hash.replace(&hash[..1], "x"),
        ],
    );
    assert_eq!(wrong.code, 1);
    // The first two begin; the last one finds the channel going on, and follows.
    let (last, first): (usize, Vec<usize>) = (all[2], all[..2].to_vec());
    for number in &first {
        let ledger = network.orderers[*number].data("ledger");
        std::fs::remove_dir_all(ledger.join("chains")).unwrap();
        done(
            &network.orderers[*number],
            &["restore", "--from", at, "--begin-at", hash],
        );
    }
    for number in &first {
        network.run(*number).await;
    }
    network.leader(&first).await;
    let load = Load::start(&network, &first, 4, 55);
    load.progress(50).await;
    let refused = command(
        &network.orderers[last],
        &["restore", "--from", at, "--begin-at", hash],
    );
    assert_eq!(refused.code, 1);
    assert!(refused.said.contains("goes on already"), "{}", refused.said);
    network.run(last).await;
    network.level(&all).await;
    // It counts again.
    network.orderers[first[0]].kill();
    load.progress(50).await;
    network.run(first[0]).await;
    network.level(&all).await;
    books.extend(load.stop().await);
    judge(&network, &all, &books).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_orderer_alone_goes_on_without_its_log() {
    let _alone = Alone::begin().await;
    let mut network = Network::start(1, 1, &Rules::default()).await;
    network.leader(&[0]).await;
    let load = Load::start(&network, &[0], 4, 56);
    load.progress(100).await;
    network.orderers[0].kill();
    network.orderers[0].lose("wal");
    let mut books = load.stop().await;
    let backup = tempfile::tempdir().unwrap();
    let at = text(backup.path());
    let said = done(&network.orderers[0], &["backup", "--to", at]);
    let hash = said.split("newest hash ").nth(1).unwrap();
    done(
        &network.orderers[0],
        &["restore", "--from", at, "--begin-at", &hash[..64]],
    );
    for _ in 0..2 {
        network.run(0).await;
        network.leader(&[0]).await;
        let load = Load::start(&network, &[0], 4, 57 + books.len() as u64);
        load.progress(50).await;
        books.extend(load.stop().await);
        network.orderers[0].kill();
    }
    network.run(0).await;
    network.leader(&[0]).await;
    judge(&network, &[0], &books).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_of_another_history_is_refused() {
    let _alone = Alone::begin().await;
    let mut network = Network::start(3, 3, &Rules::default()).await;
    let all = [0, 1, 2];
    network.leader(&all).await;
    let load = Load::start(&network, &all, 4, 52);
    load.progress(50).await;
    load.stop().await;
    network.level(&all).await;
    let (backup, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (from, other) = (text(backup.path()), text(other.path()));
    done(&network.orderers[0], &["backup", "--to", from]);

    // Everybody forgets, and the same channel begins again.
    for number in all {
        network.orderers[number].kill();
        network.orderers[number].lose("");
    }
    // Nobody can be asked, and nobody said that this is known.
    let refused = command(&network.orderers[0], &["restore", "--from", from]);
    assert_eq!(refused.code, 1);
    assert!(refused.said.contains("--offline"), "{}", refused.said);
    for number in all {
        network.run(number).await;
        network.orderers[number].join(&network.genesis).await;
    }
    network.leader(&all).await;
    let load = Load::start(&network, &all, 4, 53);
    load.progress(100).await;
    done(&network.orderers[1], &["backup", "--to", other]);

    network.orderers[0].kill();
    network.orderers[0].lose("");
    for how in [
        &["restore", "--from", from][..],
        &["restore", "--from", from, "--offline", "--compare", other],
    ] {
        let refused = command(&network.orderers[0], how);
        assert_eq!(refused.code, 1);
        assert!(refused.said.contains("two forks"), "{}", refused.said);
        assert!(!network.orderers[0].data("ledger/chains/books").exists());
    }
    let said = done(
        &network.orderers[0],
        &["restore", "--from", other, "--compare", other],
    );
    assert!(said.contains("are the same"), "{said}");
    network.run(0).await;
    network.level(&all).await;
    let books = load.stop().await;
    judge(&network, &all, &books).await;
}
