//! An instance that may not serve any more.

use std::time::{Duration, Instant};

use quorate_node::config::{LoadOptions, NodeConfiguration};
use quorate_storage::Store;
use quorate_storage::lease::{Attempt, Candidate, Holder, Policy};
use quorate_testkit::postgres::{self, Postgres};
use tokio::net::TcpStream;

use crate::world::*;

/// The intervals of the lease, in milliseconds.
fn exclusive(update: u64, wait: u64) -> String {
    format!(
        "enterpriseConfiguration {{ mutualExclusionConfiguration {{ on = true, machineName = one, \
         updateInterval = {update}, waitInterval = {wait} }} }}"
    )
}

/// Waits until none of the node's ports is open.
async fn every_port_is_closed(node: &Running) {
    let addresses = &node.addresses;
    let ports = [Some(addresses.p2p), Some(addresses.rpc), addresses.web];
    for address in ports.into_iter().flatten() {
        eventually("the port is closed", || async {
            TcpStream::connect(address).await.is_err()
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_whose_lease_was_taken_stops() {
    let world = World::new(vec![plan("PartyA").with(&exclusive(500, 60_000))]).await;
    let a = world.start("PartyA").await;
    let client = a.client().await;
    client.current_node_time().await.unwrap();
    let directory = world.directory("PartyA");
    let configuration = NodeConfiguration::load(&directory, None, &LoadOptions::default()).unwrap();
    let store = Store::connect(configuration.database.store_options(), Vec::new())
        .await
        .unwrap();
    // As a person does who promotes another instance by force.
    let other = Holder::this_process("two", "/opt/node");
    let taken = Candidate::new(&store, "node", other, Policy::Always)
        .attempt()
        .await;
    assert!(matches!(taken, Ok(Attempt::Acquired(_))), "{taken:?}");
    every_port_is_closed(&a).await;
    a.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_cannot_renew_is_silent_before_another_may_take_over() {
    if postgres::skipped() {
        return;
    }
    const WAIT: Duration = Duration::from_secs(4);
    let exclusion = exclusive(500, WAIT.as_millis() as u64);
    let world = World::new(vec![plan("PartyA").on_postgres().with(&exclusion)]).await;
    let a = world.start("PartyA").await;
    let database = format!("nodes_{}_partya", std::process::id());
    let blocked = Instant::now();
    // The database answers, but not to this.
    let blocking = tokio::task::spawn_blocking(move || {
        let server = Postgres::shared().unwrap();
        let sql = "BEGIN; LOCK TABLE leases IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(10); COMMIT";
        server.psql(&database, sql).map(drop).unwrap();
    });
    every_port_is_closed(&a).await;
    assert!(blocked.elapsed() < WAIT, "{:?}", blocked.elapsed());
    // It does not wait for the database to get better.
    a.stopped().await;
    assert!(!blocking.is_finished());
    blocking.await.unwrap();
}
