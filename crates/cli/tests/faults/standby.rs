//! What an instance does that does not hold the lease: nothing that could be mistaken for serving. And what a client
//! finds on the other machine.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Result, ensure};
use quorate_cash::{Paid, Payment};
use quorate_flow::Flow;
use quorate_rpc::api::ClientId;
use quorate_rpc::{Event, TrackFrom};
use quorate_testkit::postgres;
use rustix::process::Signal;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::support::network::{
    Engine, Machine, Network, NodePlan, TAKEOVER, UPDATE, WAIT, client_of, run,
};
use crate::support::payments::{CURRENCY, Payer, issue};
use crate::support::{Alone, PATIENCE, millis, until};

/// How soon another instance serves when one on the same machine has died.
const SOON: Duration = Duration::from_secs(2);

/// How long a payment may take if the recipient's first address hangs: well below one attempt's time.
const PAST_A_SILENT_ONE: Duration = Duration::from_secs(5);

/// A machine's ports for peers and clients, by name.
fn doors(machine: &Machine) -> [(&'static str, u16); 3] {
    let ports = &machine.ports;
    [("P2P", ports.p2p), ("RPC", ports.rpc), ("web", ports.web)]
}

async fn check_closed(machine: &Machine) -> Result<()> {
    for (door, port) in doors(machine) {
        let opened = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await;
        ensure!(
            opened.is_err(),
            "{} has its {door} port open",
            machine.label
        );
    }
    Ok(())
}

/// One of three serves; the others have no port open and say who serves. When it dies one of them takes over, and no
/// more than one.
#[tokio::test(flavor = "multi_thread")]
async fn a_standby_opens_no_port_and_says_who_serves() -> Result<()> {
    let _alone = Alone::on_this_machine()?;
    let plan = [NodePlan::hot_cold("PartyB", &["", "", ""])];
    let mut network = Network::make(Engine::Sqlite, &plan).await?;
    network.start().await?;

    let hot = network.machine("PartyB/1");
    let holder = hot.instance.clone();
    for (door, port) in doors(hot) {
        let opened = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await;
        ensure!(opened.is_ok(), "the hot one's {door} port is closed");
    }
    for label in ["PartyB/2", "PartyB/3"] {
        let cold = network.machine(label);
        check_closed(cold).await?;
        let (status, report) = cold.readiness().await?;
        assert_eq!(status, 503, "{report}");
        assert_eq!(report["status"], "standby");
        assert_eq!(report["holder"], holder.as_str());
        assert_eq!(report["generation"], 1);
        let lapses = report["takeoverInMillis"].as_u64().unwrap_or(u64::MAX);
        ensure!(u128::from(lapses) <= WAIT.as_millis(), "{report}");
        ensure!(
            report["heldSince"].is_string() && report["renewedAt"].is_string(),
            "{report}"
        );
        assert_eq!(cold.get("/healthz").await?.0, 200);
        let status = run(&mut cold.command(&["status"]))?;
        ensure!(
            status.contains("role: standby") && status.contains(&holder),
            "{status}"
        );
    }

    network.machine("PartyB/1").kill()?;
    let killed = Instant::now();
    let next = until("a takeover", SOON, async || {
        for label in ["PartyB/2", "PartyB/3"] {
            if network.machine(label).role().await.as_deref() == Some("active") {
                return Ok(Ok(()));
            }
        }
        Ok(Err("both still stand by".to_owned()))
    });
    next.await?;
    println!("one of two took over after {}", millis(killed.elapsed()));
    network.machine("PartyB/1").spawn()?;
    network.machine("PartyB/1").in_role("standby").await?;
    let mut roles = Vec::new();
    for machine in &network.machines {
        roles.push(machine.role().await.unwrap_or_default());
        if machine.role().await.as_deref() == Some("standby") {
            check_closed(machine).await?;
        }
    }
    roles.sort_unstable();
    assert_eq!(roles, ["active", "standby", "standby"]);
    network.finish().await
}

/// `whenHeld = EXIT` ends soon after its start, `whenHeld = MANUAL` waits for a person.
#[tokio::test(flavor = "multi_thread")]
async fn when_held_says_whether_to_wait_to_end_or_to_ask() -> Result<()> {
    let _alone = Alone::on_this_machine()?;
    let plan = [NodePlan::hot_cold(
        "PartyB",
        &["", "whenHeld = EXIT", "whenHeld = MANUAL"],
    )];
    let mut network = Network::make(Engine::Sqlite, &plan).await?;
    network.machine("PartyB/1").spawn()?;
    network.machine("PartyB/1").serving().await?;
    let holder = network.machine("PartyB/1").instance.clone();

    let leaving = network.machine("PartyB/2");
    leaving.spawn()?;
    let status = leaving.ended().await?;
    ensure!(
        !status.success(),
        "it could not serve, and ended with {status}"
    );
    let console = leaving.tail();
    ensure!(
        console.contains(&holder) && console.contains("whenHeld"),
        "{console}"
    );

    let asking = network.machine("PartyB/3");
    asking.spawn()?;
    asking.in_role("standby").await?;
    assert_eq!(asking.readiness().await?.1["waitsForPromotion"], true);
    // Not even an orderly end makes it serve unasked. Another instance shows that the lease is to be had.
    network.machine("PartyB/1").signal(Signal::TERM)?;
    network.machine("PartyB/1").ended().await?;
    network.machine("PartyB/2").spawn()?;
    network.machine("PartyB/2").serving().await?;
    network.machine("PartyB/2").kill()?;
    tokio::time::sleep(WAIT + UPDATE).await;
    assert_eq!(
        network.machine("PartyB/3").role().await.as_deref(),
        Some("standby")
    );
    let began = Instant::now();
    let said = run(&mut network.machine("PartyB/3").command(&["promote"]))?;
    ensure!(said.contains("takes over"), "{said}");
    network.machine("PartyB/3").serving().await?;
    println!(
        "promoted when nobody served: serves after {}",
        millis(began.elapsed())
    );

    // With force, at once, from an instance that serves.
    let plain = network.machine("PartyB/1");
    plain.spawn()?;
    plain.in_role("standby").await?;
    let began = Instant::now();
    run(&mut plain.command(&["promote", "--force"]))?;
    plain.serving().await?;
    println!(
        "promoted by force: serves after {}",
        millis(began.elapsed())
    );
    let fenced = network.machine("PartyB/3");
    let status = fenced.ended().await?;
    ensure!(!status.success(), "it was fenced, and ended with {status}");
    network.finish().await
}

/// A machine of which nobody can tell whether it lives: the standby waits for the interval, and not longer.
#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_holder_is_succeeded_when_its_lease_lapses() -> Result<()> {
    let _alone = Alone::on_this_machine()?;
    let plan = [NodePlan::hot_cold("PartyB", &["", ""])];
    let mut network = Network::make(Engine::Sqlite, &plan).await?;
    network.start().await?;
    network.machine("PartyB/1").signal(Signal::STOP)?;
    let stopped = Instant::now();
    network.machine("PartyB/2").serving().await?;
    let took = stopped.elapsed();
    println!("takeover from a stopped holder after {}", millis(took));
    ensure!(took <= WAIT + TAKEOVER, "it took {took:?}");
    ensure!(
        took + UPDATE >= WAIT - UPDATE,
        "the lease was taken after {took:?}, before it lapsed"
    );
    network.finish().await
}

/// Who may take over, and when, is judged by the database's clock: a machine that is an hour ahead takes nothing early, and
/// one that is an hour behind takes nothing late.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_whose_clock_is_wrong_keeps_to_the_intervals() -> Result<()> {
    if postgres::skipped() {
        return Ok(());
    }
    let _alone = Alone::on_this_machine()?;
    let plan = [NodePlan::hot_cold("PartyB", &["", ""])];
    let mut network = Network::make(Engine::Postgres, &plan).await?;
    for (offset, ahead) in [("+1h", 3_600), ("-1h", -3_600)] {
        network.machine("PartyB/2").clock = Some(offset);
        network.machine("PartyB/1").spawn()?;
        network.machine("PartyB/1").serving().await?;
        network.machine("PartyB/2").spawn()?;
        network.machine("PartyB/2").in_role("standby").await?;
        tokio::time::sleep(WAIT * 2).await;
        assert_eq!(
            network.machine("PartyB/1").role().await.as_deref(),
            Some("active"),
            "{offset}"
        );

        // The right one falls silent, then the wrong one.
        for (from, to) in [("PartyB/1", "PartyB/2"), ("PartyB/2", "PartyB/1")] {
            network.machine(from).signal(Signal::STOP)?;
            let stopped = Instant::now();
            network.machine(to).serving().await?;
            let took = stopped.elapsed();
            println!("{offset}: {to} took over after {}", millis(took));
            ensure!(
                took <= WAIT + TAKEOVER && took + UPDATE >= WAIT - UPDATE,
                "{offset}: {to} took over after {took:?}"
            );
            let address = format!("127.0.0.1:{}", network.machine(to).ports.rpc);
            let client = client_of([address])?;
            run(&mut network.machine(to).command(&["health"]))?;
            let there = client.current_node_time().await?.as_micros() / 1_000_000;
            let here = std::time::SystemTime::UNIX_EPOCH.elapsed()?.as_secs();
            let shown = there - i64::try_from(here)?;
            let wanted = if to == "PartyB/2" { ahead } else { 0 };
            ensure!(
                (shown - wanted).abs() < 60,
                "its clock is ahead by {shown} s"
            );
            drop(client);
            let fenced = network.machine(from);
            fenced.signal(Signal::CONT)?;
            fenced.ended().await?;
            fenced.spawn()?;
            fenced.in_role("standby").await?;
        }
        network.stop().await?;
    }
    network.finish().await
}

/// What a client began on one machine it finds on the other: the flow, its result, the updates since its last cursor.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_finds_its_flows_and_updates_on_the_other_machine() -> Result<()> {
    let _alone = Alone::on_this_machine()?;
    let plan = [
        NodePlan::single("Notary"),
        NodePlan::single("PartyA"),
        NodePlan::hot_cold("PartyB", &["", ""]),
    ];
    let mut network = Network::make(Engine::Sqlite, &plan).await?;
    network.start().await?;
    let address = |machine: &Machine| format!("127.0.0.1:{}", machine.ports.rpc);
    let first = client_of([address(network.machine("PartyB/1"))])?;
    let both = network.client("PartyB")?;
    let mut tracker = first.vault_track(TrackFrom::Now).await?;
    issue(&first, 5, 10_000).await?;
    for _ in 0..3 {
        tracker.next().await?;
    }
    let seen = tracker.cursor().expect("three updates were seen");
    both.node_info().await?;
    let mut events = both.events();

    // The peer is away, so that the flow has not ended when the machine dies, and the client goes away before it does.
    network.machine("PartyA").kill()?;
    let recipient = network.machine("PartyA").name.clone();
    let arguments = json!({ "amount": "12.34", "currency": CURRENCY, "recipient": recipient });
    let id = ClientId::new("the one")?;
    let started = first
        .start_flow_with_client_id(id.clone(), Payment::NAME, arguments.clone())
        .await?;
    drop((tracker, first));
    network.machine("PartyB/1").kill()?;
    network.machine("PartyA").spawn()?;
    network.machine("PartyB/2").serving().await?;
    network.machine("PartyA").serving().await?;

    let second = client_of([address(network.machine("PartyB/2"))])?;
    until(
        "the flow's end, without anybody who waits for it",
        PATIENCE,
        async || {
            let flows = second.finished_flows_with_client_ids().await?;
            let ended = flows.iter().any(|flow| flow.client_id == id);
            Ok(if ended {
                Ok(())
            } else {
                Err(format!("{flows:?}"))
            })
        },
    )
    .await?;
    let again = second
        .start_flow_with_client_id(id.clone(), Payment::NAME, arguments)
        .await?;
    ensure!(
        again.handle().reattached,
        "the same client id has started a second flow"
    );
    assert_eq!(again.id(), started.id());
    let paid: Paid = serde_json::from_value(again.result(PATIENCE).await?)?;
    assert_eq!(paid.amount.quantity, 1_234);

    let mut tracker = second.vault_track(TrackFrom::Cursor(seen)).await?;
    let mut missed = Vec::new();
    for _ in 0..3 {
        missed.push(timeout(PATIENCE, tracker.next()).await??);
    }
    ensure!(
        missed.iter().all(|update| update.cursor > seen),
        "{missed:?}"
    );
    assert_eq!(
        missed[2].tx, paid.tx,
        "two issues were left, then the payment"
    );

    // The client with both addresses was told of the change.
    let mut told = Vec::new();
    while told.len() < 2 {
        told.extend(timeout(PATIENCE, events.next()).await?);
    }
    let address_of = |event: &Event| match event {
        Event::Connected { address, .. } | Event::Disconnected { address, .. } => address.clone(),
    };
    let (one, two) = (
        address(network.machine("PartyB/1")),
        address(network.machine("PartyB/2")),
    );
    let addresses: Vec<_> = told.iter().map(address_of).collect();
    assert_eq!(addresses, [one, two], "{told:?}");
    assert!(matches!(told[0], Event::Disconnected { .. }), "{told:?}");
    network.finish().await
}

/// The guides' intervals: a minute of waiting, so only for those who ask for it.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes more than a minute; run it with --ignored"]
async fn a_stopped_holder_is_succeeded_at_the_guides_intervals() -> Result<()> {
    let _alone = Alone::on_this_machine()?;
    let mut node = NodePlan::hot_cold("PartyB", &["", ""]);
    node.intervals = (Duration::from_secs(20), Duration::from_secs(40));
    let mut network = Network::make(Engine::Sqlite, &[node]).await?;
    network.start().await?;
    network.machine("PartyB/1").signal(Signal::STOP)?;
    let stopped = Instant::now();
    let bound = Duration::from_secs(40) + TAKEOVER;
    until("a takeover", bound, async || {
        let role = network.machine("PartyB/2").role().await.unwrap_or_default();
        Ok(if role == "active" { Ok(()) } else { Err(role) })
    })
    .await?;
    println!(
        "takeover from a stopped holder after {}",
        millis(stopped.elapsed())
    );
    network.finish().await
}

/// A machine that is silent, as one without power is: its address comes first, and neither refuses nor answers. Peers
/// that look for the node find the other one all the same.
#[tokio::test(flavor = "multi_thread")]
async fn peers_find_the_new_machine_though_the_old_one_is_only_silent() -> Result<()> {
    if postgres::skipped() {
        return Ok(());
    }
    let _alone = Alone::on_this_machine()?;
    let plan = [
        NodePlan::single("Notary"),
        NodePlan::single("PartyA"),
        NodePlan::hot_cold("PartyB", &["", ""]),
    ];
    // On SQLite the taker might end the silent one, which may sit on the file.
    let mut network = Network::make(Engine::Postgres, &plan).await?;
    network.start().await?;
    let payer = Payer {
        client: network.client("PartyA")?,
        recipient: network.machine("PartyB").name.clone(),
        prefix: "payment",
    };
    issue(&payer.client, 5, 10_000).await?;
    payer.pay(1, 100).await?;
    network.machine("PartyB/1").signal(Signal::STOP)?;
    network.machine("PartyB/2").serving().await?;
    // So that it looks for PartyB now. A connection that it had would be found dead first, after its own time.
    network.machine("PartyA").kill()?;
    network.machine("PartyA").spawn()?;
    network.machine("PartyA").serving().await?;
    let paid = payer.pay(2, 100).await?;
    println!("a payment past a silent machine took {}", millis(paid.took));
    ensure!(paid.took <= PAST_A_SILENT_ONE, "it took {:?}", paid.took);
    ensure!(
        network.machine("PartyB/1").is_running()?,
        "the silent machine has ended"
    );
    network.finish().await
}
