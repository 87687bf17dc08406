//! `kill -9` of any of three processes at random moments during many payments. Whoever was killed is started again, and
//! in the end nothing is lost and nothing is doubled.

use std::time::Duration;

use anyhow::Result;
use quorate_testkit::postgres;
use tokio::time::{Instant, sleep};

use crate::support::network::{Engine, Network, NodePlan};
use crate::support::payments::{Load, Payer, issue};
use crate::support::{Alone, Chance, books, millis, wanted};

/// Payments under way at a time, and coins to make them with.
const UNDER_WAY: usize = 12;
const COINS: usize = 40;
/// What each coin is worth, in minor units.
const EACH: i64 = 1_000_000;
/// Pause between two kills.
const PAUSES: (Duration, Duration) = (Duration::from_millis(150), Duration::from_millis(900));
/// How long the killed one stays dead.
const DEATHS: (Duration, Duration) = (Duration::ZERO, Duration::from_millis(300));

#[tokio::test(flavor = "multi_thread")]
async fn kills_during_payments_lose_and_double_nothing_on_sqlite() -> Result<()> {
    kills(Engine::Sqlite, wanted("QUORATE_FAULT_PAYMENTS", 1_000)?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_during_payments_lose_and_double_nothing_on_postgres() -> Result<()> {
    if postgres::skipped() {
        return Ok(());
    }
    kills(Engine::Postgres, wanted("QUORATE_FAULT_PAYMENTS", 150)?).await
}

async fn kills(engine: Engine, payments: u64) -> Result<()> {
    let _alone = Alone::on_this_machine()?;
    let mut chance = Chance::new("kill")?;
    let nodes = ["Notary", "PartyA", "PartyB"];
    let mut network = Network::make(engine, &nodes.map(NodePlan::single)).await?;
    network.start().await?;
    let payer = Payer {
        client: network.client("PartyA")?,
        recipient: network.machine("PartyB").name.clone(),
        prefix: "payment",
    };
    issue(&payer.client, COINS, EACH).await?;

    let began = Instant::now();
    let load = Load::closed(payer.clone(), UNDER_WAY, payments);
    let mut kills = 0;
    while !load.is_over() {
        sleep(chance.between(PAUSES.0, PAUSES.1)).await;
        let victim = network.machine(nodes[chance.below(nodes.len())]);
        victim.kill()?;
        sleep(chance.between(DEATHS.0, DEATHS.1)).await;
        victim.spawn()?;
        victim.serving().await?;
        kills += 1;
    }
    let settled = load.all().await?;
    println!(
        "{} payments on {engine:?} in {}, under {kills} kills; the slowest took {}",
        settled.len(),
        millis(began.elapsed()),
        millis(
            settled
                .iter()
                .map(|payment| payment.took)
                .max()
                .unwrap_or_default()
        ),
    );
    assert_eq!(settled.len() as u64, payments);
    payer.ask_again(&settled).await?;
    let rest = books::at_rest(&network).await?;
    println!("at rest {} later", millis(rest));
    let issued = [("PartyA", COINS as i64 * EACH)];
    books::reconcile(&network, &issued, &[("PartyA", "PartyB", &settled)]).await?;
    network.finish().await
}
