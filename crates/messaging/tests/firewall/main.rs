//! Parties behind a firewall: what messaging promises holds from node to node, whatever stands and falls in between.
//!
//! Floats and bridges are real, with keys in files, in this process; the program's own tests run them as processes.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on says so by panicking"
)]

mod dmz;
mod proxies;
mod strangers;
#[path = "../support/mod.rs"]
mod support;

use std::time::Duration;

use quorate_messaging::HostAndPort;
use support::{Party, until};

use dmz::{Dmz, Process};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_pass_float_and_bridge_both_ways_in_order() {
    const COUNT: usize = 500;
    let dmz = Dmz::new();
    let outside = Party::start("Outside");
    let inside = Party::start_behind("Inside", Some(dmz.node_link()));
    let float = dmz.float("").await;
    let bridge = dmz.bridge(&[&inside], &[&float], "").await;
    let door = float.listening().await;
    inside.knows(&outside);
    outside.knows_at(&inside.name, &[door]);
    for index in 0..COUNT {
        outside.send(&inside.name, format!("in {index}").into_bytes());
        inside.send(&outside.name, format!("out {index}").into_bytes());
    }
    let large = vec![7; inside.options.max_message_bytes];
    outside.send(&inside.name, large.clone());
    inside.send(&outside.name, large.clone());
    outside.settled(&inside.name).await;
    inside.settled(&outside.name).await;
    for (receiver, sender, word) in [(&inside, &outside, "in"), (&outside, &inside, "out")] {
        let seen = receiver.inbox.seen();
        assert_eq!(seen.len(), COUNT + 1);
        assert!(seen.iter().all(|message| message.from == sender.name));
        for (index, message) in seen[..COUNT].iter().enumerate() {
            assert_eq!(message.body, format!("{word} {index}").into_bytes());
        }
        assert!(seen[COUNT].body == large);
        assert_eq!(*receiver.inbox.repeated.lock().unwrap(), 0);
    }
    // The float knows who came, and the bridge who came and who was called.
    let peer = outside.name.to_string();
    float.audited("inbound", "connected", &peer).await;
    bridge.audited("inbound", "connected", &peer).await;
    bridge.audited("outbound", "connected", &peer).await;
    outside.kill().await;
    float.audited("inbound", "disconnected", &peer).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_process_does_the_work_of_both_with_a_copy_of_the_nodes_key() {
    let dmz = Dmz::new();
    let outside = Party::start("Outside");
    let inside = Party::start_behind("Inside", None);
    let firewall = dmz.sender_receiver(&inside, "").await;
    inside.knows(&outside);
    outside.knows_at(&inside.name, &[firewall.listening().await]);
    outside.send_many(&inside.name, 50);
    inside.send_many(&outside.name, 50);
    outside.settled(&inside.name).await;
    inside.settled(&outside.name).await;
    assert_eq!((inside.inbox.count(), outside.inbox.count()), (50, 50));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_bridge_and_one_float_serve_several_nodes_by_name() {
    let dmz = Dmz::new();
    let outside = Party::start("Outside");
    let nodes =
        ["BankA", "BankB", "BankC"].map(|name| Party::start_behind(name, Some(dmz.node_link())));
    let float = dmz.float("").await;
    let all: Vec<&Party> = nodes.iter().collect();
    let _bridge = dmz.bridge(&all, &[&float], "").await;
    let door = float.listening().await;
    for node in &nodes {
        node.knows(&outside);
        outside.knows_at(&node.name, &[door]);
        outside.send(&node.name, node.name.to_string().into_bytes());
        node.send(&outside.name, b"hello".to_vec());
    }
    // From one to the other: out through the bridge, and in again through the float.
    nodes[0].knows_at(&nodes[1].name, &[door]);
    nodes[0].send(&nodes[1].name, b"neighbour".to_vec());
    for node in &nodes {
        outside.settled(&node.name).await;
        node.settled(&outside.name).await;
        let from_outside = node.inbox.seen();
        assert!(
            from_outside
                .iter()
                .any(|message| message.from == outside.name
                    && message.body == node.name.to_string().into_bytes())
        );
        assert_eq!(outside.inbox.count_from(&node.name), 1);
    }
    nodes[0].settled(&nodes[1].name).await;
    assert_eq!(nodes[1].inbox.count_from(&nodes[0].name), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whichever_dies_on_the_way_nothing_is_lost_doubled_or_overtaken() {
    const COUNT: usize = 3_000;
    let dmz = Dmz::new();
    let outside = Party::start("Outside");
    let inside = Party::start_behind("Inside", Some(dmz.node_link()));
    let mut floats = [dmz.float("").await, dmz.float("").await];
    let both: Vec<&Process> = floats.iter().collect();
    let mut bridges = [
        dmz.bridge(&[&inside], &both, "").await,
        dmz.bridge(&[&inside], &both, "").await,
    ];
    let doors = [floats[0].listening().await, floats[1].listening().await];
    inside.knows(&outside);
    outside.knows_at(&inside.name, &doors);
    let (mut sent, mut deaths) = (0, 0);
    while sent < COUNT {
        for _ in 0..100 {
            outside.send(&inside.name, format!("in {sent}").into_bytes());
            inside.send(&outside.name, format!("out {sent}").into_bytes());
            sent += 1;
        }
        tokio::time::sleep(Duration::from_millis(40)).await;
        let victim = match deaths % 4 {
            0 => &mut floats[0],
            1 => &mut bridges[0],
            2 => &mut floats[1],
            _ => &mut bridges[1],
        };
        victim.kill().await;
        if deaths % 3 == 0 {
            tokio::time::sleep(Duration::from_millis(150)).await;
        }
        victim.restart().await;
        deaths += 1;
    }
    outside.settled(&inside.name).await;
    inside.settled(&outside.name).await;
    for (receiver, word) in [(&inside, "in"), (&outside, "out")] {
        // The inbox itself fails the test when something is lost or overtaken.
        let seen = receiver.inbox.seen();
        assert_eq!(seen.len(), COUNT);
        for (index, message) in seen.iter().enumerate() {
            assert_eq!(message.body, format!("{word} {index}").into_bytes());
        }
        println!(
            "{} came again after {deaths} deaths",
            receiver.inbox.repeated.lock().unwrap()
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_float_listens_only_while_somebody_is_behind_it() {
    let dmz = Dmz::new();
    let outside = Party::start("Outside");
    let mut inside = Party::start_behind("Inside", Some(dmz.node_link()));
    let float = dmz.float("").await;
    assert_eq!(float.handle.status().listening, None);
    assert!(!float.handle.readiness().ready);
    let mut bridge = dmz.bridge(&[&inside], &[&float], "").await;
    let door = float.listening().await;
    assert!(float.handle.readiness().ready && bridge.handle.readiness().ready);
    outside.knows_at(&inside.name, &[door]);
    outside.send_many(&inside.name, 5);
    outside.settled(&inside.name).await;

    // Without the node the port is closed, and with it open again.
    inside.kill().await;
    until("the port is closed", || async {
        tokio::net::TcpStream::connect(door).await.is_err()
    })
    .await;
    outside.send_many(&inside.name, 5);
    inside.restart();
    outside.settled(&inside.name).await;

    // The same without the bridge.
    bridge.kill().await;
    until("the port is closed", || async {
        tokio::net::TcpStream::connect(door).await.is_err()
    })
    .await;
    outside.send_many(&inside.name, 5);
    bridge.restart().await;
    outside.settled(&inside.name).await;
    assert_eq!(inside.inbox.count(), 15);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_of_a_certain_age_is_opened_anew() {
    let dmz = Dmz::new();
    let outside = Party::start("Outside");
    let inside = Party::start_behind("Inside", Some(dmz.node_link()));
    let float = dmz.float("bridgeConnectionTTLSeconds = 1").await;
    let _bridge = dmz.bridge(&[&inside], &[&float], "").await;
    outside.knows_at(&inside.name, &[float.listening().await]);
    let peer = outside.name.to_string();
    outside.send_many(&inside.name, 1);
    outside.settled(&inside.name).await;
    float.audited("inbound", "disconnected", &peer).await;
    outside.send_many(&inside.name, 1);
    outside.settled(&inside.name).await;
    assert_eq!(inside.inbox.count(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bridge_finds_the_machine_that_serves_among_those_of_a_node() {
    let dmz = Dmz::new();
    let outside = Party::start("Outside");
    let mut inside = Party::start_behind("Inside", Some(dmz.node_link()));
    let standby = support::free_address();
    let float = dmz.float("").await;
    let addresses = [inside.address, standby].map(HostAndPort::from);
    let _bridge = dmz.bridge_to(&addresses, &[&float], "").await;
    outside.knows_at(&inside.name, &[float.listening().await]);
    inside.knows(&outside);
    for serving in [standby, inside.address, standby] {
        outside.send_many(&inside.name, 10);
        inside.send_many(&outside.name, 10);
        outside.settled(&inside.name).await;
        inside.settled(&outside.name).await;
        inside.kill().await;
        outside.send_many(&inside.name, 10);
        inside.address = serving;
        inside.restart();
        inside.knows(&outside);
    }
    outside.settled(&inside.name).await;
    assert_eq!(inside.inbox.count(), 60);
    assert_eq!(outside.inbox.count(), 30);
}
