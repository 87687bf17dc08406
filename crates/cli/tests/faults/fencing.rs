//! A hot node is stopped (SIGSTOP) at moments drawn from a seed, in the middle of an open database transaction and between
//! two of them; another instance takes over; the first one is continued. It has not delayed the takeover, nothing of it
//! commits, and it ends or stands by, as its configuration says.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use quorate_testkit::postgres;
use rustix::process::Signal;
use tokio::time::{Instant, sleep};

use crate::support::books::{self, Books};
use crate::support::network::{Engine, Network, NodePlan, TAKEOVER, WAIT};
use crate::support::payments::{Load, Payer, issue};
use crate::support::{Alone, Chance, PATIENCE, millis, until, wanted};

const UNDER_WAY: usize = 8;
const COINS: usize = 30;
const EACH: i64 = 1_000_000;
/// How much work there is before the node is stopped.
const WORK: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(500));
/// How often a moment in the middle of a transaction is sought.
const ATTEMPTS: usize = 500;
/// Payments after a takeover before the former generation's rows are counted again.
const LATER: u64 = 5;

#[tokio::test(flavor = "multi_thread")]
async fn a_hot_node_that_was_stopped_writes_no_more_on_sqlite() -> Result<()> {
    stops(Engine::Sqlite, wanted("QUORATE_FAULT_ROUNDS", 6)?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hot_node_that_was_stopped_writes_no_more_on_postgres() -> Result<()> {
    if postgres::skipped() {
        return Ok(());
    }
    stops(Engine::Postgres, wanted("QUORATE_FAULT_ROUNDS", 6)?).await
}

async fn stops(engine: Engine, rounds: u64) -> Result<()> {
    let _alone = Alone::on_this_machine()?;
    let mut chance = Chance::new("fencing")?;
    let machines = ["whenLost = EXIT", "whenLost = STANDBY"];
    let plan = [
        NodePlan::single("Notary"),
        NodePlan::single("PartyA"),
        NodePlan::hot_cold("PartyB", &machines),
    ];
    let mut network = Network::make(engine, &plan).await?;
    network.start().await?;
    let payer = Payer {
        client: network.client("PartyB")?,
        recipient: network.machine("PartyA").name.clone(),
        prefix: "payment",
    };
    issue(&payer.client, COINS, EACH).await?;
    let load = Load::closed(payer.clone(), UNDER_WAY, u64::MAX);

    let mut takeovers = Vec::new();
    for round in 0..rounds {
        // Each of the two machines in each of the two ways.
        let amid = round % 4 < 2;
        takeovers.push(one_stop(&mut network, &load, &mut chance, amid).await?);
    }
    takeovers.sort_unstable();
    let settled = load.stop().await?;
    println!(
        "{rounds} takeovers from stopped nodes on {engine:?}: {} to {}; {} payments meanwhile",
        millis(takeovers[0]),
        millis(takeovers[takeovers.len() - 1]),
        settled.len()
    );
    payer.ask_again(&settled).await?;
    books::at_rest(&network).await?;
    let issued = [("PartyB", COINS as i64 * EACH)];
    books::reconcile(&network, &issued, &[("PartyB", "PartyA", &settled)]).await?;
    network.finish().await
}

/// Stops the hot one, and continues it when the other one serves; how long the takeover took.
async fn one_stop(
    network: &mut Network,
    load: &Load,
    chance: &mut Chance,
    amid: bool,
) -> Result<Duration> {
    let labels = ["PartyB/1", "PartyB/2"];
    let first = network.machine(labels[0]).role().await;
    let (hot, cold) = match first.as_deref() {
        Some("active") => (labels[0], labels[1]),
        _ => (labels[1], labels[0]),
    };
    progress(load, 1).await?;
    sleep(chance.between(WORK.0, WORK.1)).await;

    let mut books = Books::open(&network.machine(hot).database).await?;
    let generation = books.generation().await?;
    stop(network, hot, &mut books, chance, amid).await?;
    let stopped = Instant::now();
    network.machine(cold).serving().await?;
    let took = stopped.elapsed();
    ensure!(
        took <= WAIT + TAKEOVER,
        "{cold} took over from {hot}, stopped {}, after {took:?}",
        moment(amid)
    );
    let before = written_under(&mut books, generation).await?;

    // SQLite's taker has ended it if it sat on the file.
    let survived = network.machine(hot).is_running()?;
    let machine = network.machine(hot);
    machine.signal(Signal::CONT)?;
    let continued = Instant::now();
    if !survived || machine.configuration.contains("whenLost = EXIT") {
        let status = machine.ended().await?;
        ensure!(
            !status.success(),
            "{hot} has lost its lease and ended with {status}"
        );
        if survived {
            let last = machine.log().lines().last().unwrap_or_default().to_owned();
            let why = ["taken over", "could not be renewed", "has not run for"];
            ensure!(
                why.iter().any(|why| last.contains(why)),
                "the last line in the log of {hot} does not say why it ended: {last}"
            );
        }
        println!(
            "{hot} stopped {}: {cold} serves after {}; {hot} {} {} after it was continued",
            moment(amid),
            millis(took),
            if survived { "ended" } else { "had been ended" },
            millis(continued.elapsed()),
        );
        machine.spawn()?;
    } else {
        let stepped_down = machine.in_role("standby").await?;
        println!(
            "{hot} stopped {}: {cold} serves after {}; {hot} stood by {} after it was continued",
            moment(amid),
            millis(took),
            millis(stepped_down),
        );
    }
    machine.in_role("standby").await?;
    progress(load, LATER).await?;
    // Others may have written over some of these rows.
    let after = written_under(&mut books, generation).await?;
    ensure!(
        after.0 <= before.0 && after.1 <= before.1,
        "rows of generation {generation}, and the time of the last: {before:?} when it had ended, {after:?} later"
    );
    books.check_one_writer().await?;
    Ok(took)
}

/// How many rows were written last under a generation, and the time of the latest.
async fn written_under(books: &mut Books, generation: i64) -> Result<(i64, i64)> {
    let writes = books.writes().await?;
    Ok(writes
        .get(&generation)
        .map_or((0, 0), |(rows, _, last)| (*rows, *last)))
}

fn moment(amid: bool) -> &'static str {
    if amid {
        "amid a transaction"
    } else {
        "between transactions"
    }
}

/// Stops a machine: `amid` an open transaction that has written, or when it has none.
async fn stop(
    network: &mut Network,
    hot: &str,
    books: &mut Books,
    chance: &mut Chance,
    amid: bool,
) -> Result<()> {
    let machine = network.machine(hot);
    for _ in 0..ATTEMPTS {
        machine.signal(Signal::STOP)?;
        // What it has sent to the server is dealt with before the server is asked.
        sleep(Duration::from_millis(5)).await;
        let inside = books.is_somebody_writing().await?;
        if inside == amid {
            return Ok(());
        }
        machine.signal(Signal::CONT)?;
        sleep(chance.between(Duration::from_millis(1), Duration::from_millis(20))).await;
    }
    bail!("{hot} was never stopped {}", moment(amid))
}

/// Waits for so many more payments.
async fn progress(load: &Load, more: u64) -> Result<()> {
    let from = load.count();
    until("payments", PATIENCE, async || {
        if load.is_over() {
            bail!("the load has ended early");
        }
        let made = load.count() - from;
        Ok(if made >= more {
            Ok(())
        } else {
            Err(format!("{made} of {more} payments were settled"))
        })
    })
    .await
    .context("payments must go on after a takeover")?;
    Ok(())
}
