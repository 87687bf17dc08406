//! A notary of several workers: whichever of them dies, payments go on, and no state is spent twice.

use std::time::Duration;

use anyhow::{Result, ensure};
use quorate_testkit::postgres;
use tokio::time::{Instant, sleep};

use crate::support::network::{Engine, Network, NodePlan};
use crate::support::payments::{Load, Payer, issue};
use crate::support::{Alone, Chance, books, millis, wanted};

/// Payments under way at a time, and coins to make them with.
const UNDER_WAY: usize = 8;
const COINS: usize = 20;
/// What each coin is worth, in minor units.
const EACH: i64 = 1_000_000;
/// Pause between two kills, and how long the killed one stays dead: long enough that others have to help.
const PAUSES: (Duration, Duration) = (Duration::from_millis(300), Duration::from_millis(1_200));
const DEATHS: (Duration, Duration) = (Duration::ZERO, Duration::from_millis(2_500));
/// Nobody waits half a minute in a test.
const IMPATIENT: &str = "flowTimeout { timeout = 1 s, maxRestartCount = 2 }\n";

fn plan() -> [NodePlan; 4] {
    [
        NodePlan::worker("Worker1"),
        NodePlan::worker("Worker2"),
        NodePlan::single("PartyA").with(IMPATIENT),
        NodePlan::single("PartyB").with(IMPATIENT),
    ]
}

fn payer(network: &mut Network) -> Result<Payer> {
    Ok(Payer {
        client: network.client("PartyA")?,
        recipient: network.machine("PartyB").name.clone(),
        prefix: "payment",
    })
}

/// One worker is killed and never comes back; then the other one is started again in its place.
#[tokio::test(flavor = "multi_thread")]
async fn payments_go_on_with_the_worker_that_is_left() -> Result<()> {
    let _alone = Alone::on_this_machine()?;
    for dead in ["Worker1", "Worker2"] {
        let mut network = Network::make(Engine::Sqlite, &plan()).await?;
        network.start().await?;
        let payer = payer(&mut network)?;
        issue(&payer.client, COINS, EACH).await?;
        let mut settled = Load::closed(payer.clone(), UNDER_WAY, 20).all().await?;
        // Both have done their part.
        for worker in ["Worker1", "Worker2"] {
            let (_, metrics) = network.machine(worker).get("/metrics").await?;
            let commits = metrics
                .lines()
                .find_map(|line| line.strip_prefix("quorate_notary_commits_total "));
            ensure!(
                commits.is_some_and(|count| count != "0"),
                "{worker} has signed nothing: {commits:?}"
            );
        }
        network.machine(dead).kill()?;
        let began = Instant::now();
        let payer = Payer {
            prefix: "after",
            ..payer
        };
        settled.extend(Load::closed(payer.clone(), UNDER_WAY, 20).all().await?);
        println!("20 payments without {dead} in {}", millis(began.elapsed()));
        // What was asked of the dead one is answered when it is back, and changes nothing.
        network.machine(dead).spawn()?;
        network.machine(dead).serving().await?;
        books::at_rest(&network).await?;
        let issued = [("PartyA", COINS as i64 * EACH)];
        books::reconcile(&network, &issued, &[("PartyA", "PartyB", &settled)]).await?;
        // Whoever has to answer for it reads it out on any worker's machine.
        let spent = network.machine(dead).run(&[
            "database",
            "--mode",
            "JPA_NOTARY",
            "spent-states",
            "--json",
            "-b",
        ])?;
        let states = spent
            .lines()
            .filter(|line| line.contains("consumedBy"))
            .count();
        ensure!(
            states >= settled.len(),
            "{states} states are spent: {spent}"
        );
        network.finish().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_of_workers_lose_and_double_nothing_on_postgres() -> Result<()> {
    if postgres::skipped() {
        return Ok(());
    }
    let _alone = Alone::on_this_machine()?;
    let mut chance = Chance::new("workers")?;
    let mut network = Network::make(Engine::Postgres, &plan()).await?;
    network.start().await?;
    let payer = payer(&mut network)?;
    issue(&payer.client, COINS, EACH).await?;
    let payments = wanted("QUORATE_FAULT_PAYMENTS", 150)?;
    let load = Load::closed(payer.clone(), UNDER_WAY, payments);
    let mut kills = 0;
    while !load.is_over() {
        sleep(chance.between(PAUSES.0, PAUSES.1)).await;
        // Never both: one of two is what they are there for.
        let victim = network.machine(["Worker1", "Worker2"][chance.below(2)]);
        victim.kill()?;
        sleep(chance.between(DEATHS.0, DEATHS.1)).await;
        victim.spawn()?;
        victim.serving().await?;
        kills += 1;
    }
    let settled = load.all().await?;
    println!("{} payments under {kills} kills of workers", settled.len());
    payer.ask_again(&settled).await?;
    books::at_rest(&network).await?;
    let issued = [("PartyA", COINS as i64 * EACH)];
    books::reconcile(&network, &issued, &[("PartyA", "PartyB", &settled)]).await?;
    network.finish().await
}

/// Two nodes that claim one notary and share no database do not get to serve.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_without_the_shared_database_does_not_serve() -> Result<()> {
    let _alone = Alone::on_this_machine()?;
    let mut network = Network::make(Engine::Sqlite, &plan()).await?;
    let worker = network.machine("Worker2");
    let text = worker.configuration.clone();
    let start = text.find("jpa {").expect("a worker's configuration");
    let alone = format!("{} }}\n", &text[..start].trim_end().trim_end_matches(','));
    worker.configure(&alone)?;
    worker.spawn()?;
    let status = worker.ended().await?;
    ensure!(!status.success());
    let said = worker.tail();
    for word in ["Worker1", "notary.jpa.dataSourceProperties"] {
        ensure!(said.contains(word), "it does not say {word}: {said}");
    }
    network.finish().await
}
