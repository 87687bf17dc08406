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
    let mut files = Vec::new();
    let mut tasks = Vec::new();
    for round in 0..30 {
        let a = world.start("PartyA").await;
        if round % 5 == 0 {
            let client = a.client().await;
            let text = json!({ "text": round.to_string() });
            run(&client, "test.Notify", text).await.unwrap();
        }
        a.stop().await;
        eventually("all tasks have ended", || async { alive_tasks() <= 1 }).await;
        files.push(open_files());
        tasks.push(threads());
    }
    assert_eq!(world.outside("PartyA").performed.lock().unwrap().len(), 6);
    // The first rounds fill caches and pools of threads; from then on nothing is added.
    let most = *files[5..10].iter().max().unwrap();
    assert!(
        files[25..].iter().all(|count| *count <= most),
        "open files: {files:?}"
    );
    assert!(tasks.iter().all(|count| *count < 64), "threads: {tasks:?}");
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
        balance(&client_b).await == 4_00
    })
    .await;
    assert_eq!(client_a.network_map_snapshot().await.unwrap().len(), 3);
    for node in [a, b, notary] {
        node.stop().await;
    }
}
