//! Old blocks that were moved to an archive.

use std::fs;

use crate::support::Alone;
use crate::support::client::{Load, transaction};
use crate::support::network::{Network, Rules};
use crate::{block_file, chain, command, done, serves, text};

/// One envelope of nearly 1 MB makes a block of its own; so many fill more than one block file of 64 MiB.
const ENVELOPES: usize = 80;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_blocks_go_to_the_archive_and_the_channel_goes_on() {
    let _alone = Alone::begin().await;
    let rules = Rules {
        snapshot_bytes: 4_000_000,
        ..Rules::default()
    };
    let mut network = Network::start(3, 3, &rules).await;
    let all = [0, 1, 2];
    let leader = network.leader(&all).await;
    let line = network.orderers[leader].line();
    for number in 0..ENVELOPES {
        let words = format!("{number} {}", "x".repeat(900_000));
        let answer = line.submit(transaction(&words, &network.admin)).await;
        answer.unwrap();
    }
    let height = network.level(&all).await;
    let (pruned, whole) = ((leader + 1) % 3, (leader + 2) % 3);
    let archive = tempfile::tempdir().unwrap();
    let to = text(archive.path());
    let prune = |orderer: &crate::support::network::Orderer, live: bool, more: &[&str]| {
        let options = orderer.admin_options();
        let mut arguments = vec!["prune", "-c", "books", "--archive", to];
        arguments.extend(more);
        if live {
            arguments.extend(options.iter().map(String::as_str));
        }
        command(orderer, &arguments)
    };
    let one = &network.orderers[pruned];
    // The orderer runs, and nobody said where.
    let refused = prune(one, false, &["--keep-blocks", "5"]);
    assert_eq!(refused.code, 1);
    assert!(refused.said.contains("admin endpoint"), "{}", refused.said);
    assert!(block_file(one, 0).exists());

    let load = Load::start(&network, &all, 2, 61);
    let said = prune(one, true, &["--keep-blocks", "5"]);
    assert_eq!(said.code, 0);
    assert!(said.said.contains("1 block file(s)"), "{}", said.said);
    assert!(!block_file(one, 0).exists());
    assert!(
        archive
            .path()
            .join("chains/books/blockfile_000000")
            .exists()
    );
    // Again, and less.
    for more in [["--keep-blocks", "5"], ["--below", "3"]] {
        let again = prune(one, true, &more);
        assert_eq!(again.code, 0);
        assert!(
            again.said.contains("nothing to be removed"),
            "{}",
            again.said
        );
    }
    done(one, &["verify", "--ledger", to]);
    let said = done(one, &["verify"]);
    assert!(said.contains("older ones were pruned"), "{said}");
    let line = one.line();
    let blocks = line.chain(height, &network.admin).await.unwrap();
    let first = blocks[0].number();
    assert!(first > 50, "{first}");
    load.progress(30).await;

    // It starts again, stopped ones can be pruned too, and it is elected.
    network.orderers[pruned].kill();
    network.run(pruned).await;
    serves(&network, pruned).await;
    load.progress(30).await;
    network.level(&all).await;

    // A lost one finds the orderer that still has everything.
    network.orderers[leader].kill();
    network.orderers[leader].lose("");
    network.run(leader).await;
    network.orderers[leader].join(&network.genesis).await;
    network.level(&all).await;
    serves(&network, leader).await;
    assert!(block_file(&network.orderers[leader], 0).exists());

    // When nobody has them any more, the archive has.
    let others = tempfile::tempdir().unwrap();
    let elsewhere = text(others.path());
    network.orderers[whole].kill();
    let said = command(
        &network.orderers[whole],
        &[
            "prune",
            "-c",
            "books",
            "--archive",
            elsewhere,
            "--keep-blocks",
            "5",
        ],
    );
    assert_eq!(said.code, 0);
    assert!(said.said.contains("1 block file(s)"), "{}", said.said);
    network.run(whole).await;
    serves(&network, whole).await;
    network.orderers[leader].kill();
    network.orderers[leader].lose("");
    let said = done(&network.orderers[leader], &["restore", "--from", to]);
    assert!(said.contains("are the same"), "{said}");
    network.run(leader).await;
    network.level(&all).await;
    serves(&network, leader).await;
    load.progress(30).await;
    load.stop().await;
    network.level(&all).await;
    let heights = network.orderers[leader].height().await;
    let line = network.orderers[leader].line();
    let blocks = line.chain(heights, &network.admin).await.unwrap();
    assert_eq!(blocks.len() as u64, heights);
    for number in all {
        network.orderers[number].kill();
        let said = done(&network.orderers[number], &["verify"]);
        assert!(said.contains("intact"), "{said}");
    }
    assert!(
        fs::read_dir(chain(&network.orderers[leader]))
            .unwrap()
            .count()
            > 2
    );
}
