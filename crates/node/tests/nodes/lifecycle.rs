//! Starting, stopping, and learning while running.

use serde_json::json;

use crate::world::*;

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

/// A machine under a node may start and stop serving any number of times within a process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn starting_and_stopping_leaves_nothing_behind() {
    let world = World::new(vec![plan("PartyA")]).await;
    let mut before = usize::MAX;
    for round in 0..30 {
        let a = world.start("PartyA").await;
        if round % 5 == 0 {
            let client = a.client().await;
            let text = json!({ "text": round.to_string() });
            run(&client, "test.Notify", text).await.unwrap();
        }
        a.stop().await;
        eventually("all tasks have ended", || async { alive_tasks() <= 1 }).await;
        // The first rounds fill caches and pools of threads; from then on nothing is added.
        let what = format!("round {round}: no more than {before} open files");
        eventually(&what, || async { open_files() <= before }).await;
        if round == 5 {
            before = open_files();
        }
        assert!(threads() < 64, "round {round}: {} threads", threads());
    }
    assert_eq!(world.outside("PartyA").performed.lock().unwrap().len(), 6);
}

/// A start that is broken off says why, gives the lease back and lets go of what it had opened.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_fails_leaves_nothing_behind() {
    let world = World::new(vec![plan("PartyA")]).await;
    let a = world.start("PartyA").await;
    let addresses = a.addresses.clone();
    a.stop().await;
    let mut before = None;
    for address in [addresses.p2p, addresses.rpc, addresses.web.unwrap()].repeat(3) {
        let occupied = std::net::TcpListener::bind(address).unwrap();
        let error = world
            .try_start("PartyA")
            .await
            .err()
            .expect("the port is taken");
        let text = quorate_runtime::tasks::chain(&error);
        assert!(text.contains(&address.to_string()), "{text}");
        drop(occupied);
        eventually("all tasks have ended", || async { alive_tasks() <= 1 }).await;
        // Connections to the database close a moment later.
        match before {
            None => before = Some(open_files()),
            Some(before) => {
                let what = format!("no more than {before} open files");
                eventually(&what, || async { open_files() <= before }).await;
            }
        }
    }
    // Nobody has to wait for a lease to lapse.
    let a = world.start("PartyA").await;
    let client = a.client().await;
    run(&client, "test.Notify", json!({ "text": "x" }))
        .await
        .unwrap();
    a.stop().await;
}

fn alive_tasks() -> usize {
    tokio::runtime::Handle::current()
        .metrics()
        .num_alive_tasks()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_party_becomes_known_while_the_node_runs() {
    let world = World::new(three()).await;
    let directory = world.directory("PartyA");
    let aside = tempfile::tempdir_in(directory.parent().unwrap()).unwrap();
    let moved = take_node_info(&directory, "PartyB", aside.path());
    let [a, b, notary] = world.start_all(["PartyA", "PartyB", "Notary"]).await;
    let (client_a, client_b) = (a.client().await, b.client().await);
    issue(&client_a, "10").await;
    assert_eq!(
        client_a.party_from_name(&name("PartyB")).await.unwrap(),
        None
    );
    assert_eq!(client_a.network_map_snapshot().await.unwrap().len(), 2);
    let error = pay(&client_a, "4", "PartyB").await.unwrap_err().to_string();
    assert!(
        error.contains("PartyB") && error.contains("not known"),
        "{error}"
    );
    for (from, to) in moved {
        std::fs::rename(from, to).unwrap();
    }
    eventually("the node has read the file", || async {
        client_a
            .party_from_name(&name("PartyB"))
            .await
            .unwrap()
            .is_some()
    })
    .await;
    pay(&client_a, "4", "PartyB").await.unwrap();
    eventually("the money has arrived", || async {
        balance(&client_b).await == 400
    })
    .await;
    assert_eq!(client_a.network_map_snapshot().await.unwrap().len(), 3);
    for node in [a, b, notary] {
        node.stop().await;
    }
}
