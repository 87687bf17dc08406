//! TLS certificates are exchanged, one orderer after the other, while clients submit.

use std::fs;
use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use crate::support::Alone;
use crate::support::client::Load;
use crate::support::judge::judge;
use crate::support::network::{Network, Rules};
use crate::tool::Operator;

/// Waits for the end of `work`, and measures the longest time meanwhile in which nothing was acknowledged.
async fn longest_silence<T>(load: &Load, work: impl Future<Output = T>) -> (T, Duration) {
    let mut work = std::pin::pin!(work);
    let (mut last, mut since, mut longest) = (load.acknowledged(), Instant::now(), Duration::ZERO);
    loop {
        tokio::select! {
            ended = &mut work => return (ended, longest.max(since.elapsed())),
            () = tokio::time::sleep(Duration::from_millis(10)) => {
                let now = load.acknowledged();
                if now != last {
                    (last, since) = (now, Instant::now());
                }
                longest = longest.max(since.elapsed());
            }
        }
    }
}

/// Gives an orderer that has ended its next certificate, and starts it.
async fn come_back(network: &mut Network, number: usize, next: &Path) {
    for file in ["server.crt", "server.key"] {
        fs::copy(next.join(file), network.orderers[number].tls(file)).unwrap();
    }
    network.run(number).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_orderers_certificate_is_rotated_under_load() {
    let _alone = Alone::begin().await;
    let rules = Rules::default();
    let mut network = Network::start(3, 3, &rules).await;
    let all = [0, 1, 2];
    network.leader(&all).await;
    let load = Load::start(&network, &all, 4, 31);
    load.progress(100).await;
    let mut silences = Vec::new();
    for number in all {
        let operator = Operator::of(&network, (number + 1) % 3);
        let address = operator.address(number).to_owned();
        let next = network.next_tls(number);
        let certificate = next.join("server.crt").display().to_string();
        let network = &mut network;
        let rotated = async {
            operator
                .channel(&[
                    "consenter",
                    "rotate",
                    &address,
                    "--tls-cert",
                    &certificate,
                    "--wait",
                ])
                .await
                .well(&[
                    &format!("- {address}, "),
                    &format!("+ {address}, "),
                    "in force on all consenters that stay",
                    "start it again",
                ]);
            // Until it is back, no other one may be touched.
            let other = operator.address((number + 2) % 3).to_owned();
            network.orderers[number].stop().await;
            operator
                .channel(&["consenter", "remove", &other])
                .await
                .refused(&["would lose its quorum", &address]);
            come_back(network, number, &next).await;
            network.orderers[number]
                .becomes("consenter", "active")
                .await;
            network.level(&all).await;
        };
        let ((), silence) = longest_silence(&load, rotated).await;
        silences.push(silence);
        load.progress(50).await;
    }
    println!("clients waited {silences:.2?} at most, for each orderer");
    let books = load.stop().await;
    judge(&network, &all, &books).await;
    for silence in &silences {
        assert!(*silence <= rules.takeover(), "{silences:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn between_update_and_restart_a_rotated_consenter_still_counts() {
    let _alone = Alone::begin().await;
    let mut network = Network::start(3, 3, &Rules::default()).await;
    let all = [0, 1, 2];
    let rotated = network.leader(&all).await;
    let load = Load::start(&network, &all, 4, 33);
    load.progress(50).await;
    let operator = Operator::of(&network, rotated);
    let address = operator.address(rotated).to_owned();
    let next = network.next_tls(rotated);
    let certificate = next.join("server.crt").display().to_string();
    operator
        .channel(&[
            "consenter",
            "rotate",
            &address,
            "--tls-cert",
            &certificate,
            "--wait",
        ])
        .await
        .well(&["in force on all consenters that stay"]);
    // It has not been started again, and another one fails: two of three are enough if it is one of them.
    let failing = (rotated + 1) % 3;
    network.orderers[failing].kill();
    load.progress(100).await;
    network.run(failing).await;
    load.progress(50).await;

    network.orderers[rotated].stop().await;
    come_back(&mut network, rotated, &next).await;
    network.orderers[rotated]
        .becomes("consenter", "active")
        .await;
    network.level(&all).await;
    // Everybody knows it by its new certificate.
    network.orderers[failing].kill();
    load.progress(50).await;
    network.run(failing).await;
    let books = load.stop().await;
    judge(&network, &all, &books).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sole_orderer_is_rotated_and_comes_back() {
    let _alone = Alone::begin().await;
    let mut network = Network::start(1, 1, &Rules::default()).await;
    network.leader(&[0]).await;
    let operator = Operator::of(&network, 0);
    let address = operator.address(0).to_owned();
    let next = network.next_tls(0);
    let certificate = next.join("server.crt").display().to_string();
    operator
        .channel(&["consenter", "rotate", &address, "--tls-cert", &certificate])
        .await
        .well(&["in force since block 1"]);
    network.orderers[0].stop().await;
    come_back(&mut network, 0, &next).await;
    network.leader(&[0]).await;
    let load = Load::start(&network, &[0], 2, 32);
    load.progress(20).await;
    let books = load.stop().await;
    judge(&network, &[0], &books).await;
}
