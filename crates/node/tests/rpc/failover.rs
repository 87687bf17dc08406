//! What a client sees when instances die, stop, fall silent and take over.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use quorate_ledger::vault::Cursor;
use quorate_rpc::api::FlowState;
use quorate_rpc::{Client, ClientError, ErrorCode, Event, Events, TrackFrom};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;

use super::client_id;
use super::fake::{Instance, PATIENCE, Shared, options};

async fn event(events: &mut Events) -> Event {
    timeout(PATIENCE, events.next()).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_flow_that_ended_while_the_client_was_away_gives_its_result() {
    let shared = Shared::new();
    let (first, second) = (Instance::start(&shared), Instance::start(&shared));
    second.node.serving.store(false, Ordering::SeqCst);
    let client = Client::connect(options(&[first.rpc, second.rpc], "ops"))
        .await
        .unwrap();
    let mut events = client.events();
    let flow = client
        .start_flow_with_client_id(client_id("pay-1"), "test.Hold", json!({}))
        .await
        .unwrap();

    let waiting = tokio::spawn({
        let flow = flow.clone();
        async move { flow.result(PATIENCE).await }
    });
    let first_address = first.kill();
    assert!(
        matches!(event(&mut events).await, Event::Disconnected { address, .. }
        if address == first_address.to_string())
    );
    shared.finish(flow.id(), Ok(json!({ "tx": "A" })));
    // The second refuses as long as it stands by; the client goes around until it serves.
    second.node.serving.store(true, Ordering::SeqCst);
    assert!(
        matches!(event(&mut events).await, Event::Connected { address, .. }
        if address == second.rpc.to_string())
    );
    assert_eq!(waiting.await.unwrap().unwrap(), json!({ "tx": "A" }));
    let again = client
        .start_flow_with_client_id(client_id("pay-1"), "test.Hold", json!({}))
        .await
        .unwrap();
    assert!(again.handle().reattached);
    assert_eq!(shared.started.load(Ordering::SeqCst), 1);

    // Back to the first, on the same port.
    second.kill();
    assert!(matches!(
        event(&mut events).await,
        Event::Disconnected { .. }
    ));
    let _first = Instance::start_at(&shared, &first_address.to_string(), None);
    client.node_info().await.unwrap();
}

#[tokio::test]
async fn tracking_misses_nothing_and_repeats_nothing_over_kills_and_stops() {
    let shared = Shared::new();
    let mut instances = vec![Instance::start(&shared), Instance::start(&shared)];
    let addresses: Vec<SocketAddr> = instances.iter().map(|instance| instance.rpc).collect();
    let client = Client::connect(options(&addresses, "viewer"))
        .await
        .unwrap();
    shared.record();
    shared.record();
    let mut from_now = client.vault_track(TrackFrom::Now).await.unwrap();
    assert_eq!(from_now.cursor(), Some(Cursor(2)));
    let mut tracker = client
        .vault_track(TrackFrom::Cursor(Cursor::START))
        .await
        .unwrap();

    let mut seen = Vec::new();
    let mut recorded = 2;
    for round in 0..6_usize {
        for _ in 0..150 {
            shared.record();
            recorded += 1;
        }
        let turn = round % 2;
        if round % 3 == 0 {
            assert!(
                instances[turn].stop().await,
                "an orderly stop ends the streams"
            );
        }
        let replaced = instances.remove(turn);
        let address = replaced.kill().to_string();
        instances.insert(turn, Instance::start_at(&shared, &address, None));
        for _ in 0..100 {
            seen.push(
                timeout(PATIENCE, tracker.next())
                    .await
                    .unwrap()
                    .unwrap()
                    .cursor
                    .0,
            );
        }
    }
    while seen.len() < recorded {
        seen.push(
            timeout(PATIENCE, tracker.next())
                .await
                .unwrap()
                .unwrap()
                .cursor
                .0,
        );
    }
    assert_eq!(seen, (1..=recorded as u64).collect::<Vec<_>>());
    let first = timeout(PATIENCE, from_now.next()).await.unwrap().unwrap();
    assert_eq!(first.cursor, Cursor(3));
    // An application that was itself restarted continues from what it had kept.
    let mut resumed = client
        .vault_track(TrackFrom::Cursor(Cursor(500)))
        .await
        .unwrap();
    assert_eq!(resumed.next().await.unwrap().cursor, Cursor(501));
    let beyond = client
        .vault_track(TrackFrom::Cursor(Cursor(10_000)))
        .await
        .unwrap_err();
    assert_eq!(beyond.code(), Some(ErrorCode::InvalidArgument));
}

#[tokio::test]
async fn watching_flows_continues_on_the_other_instance() {
    let shared = Shared::new();
    let (first, second) = (Instance::start(&shared), Instance::start(&shared));
    let client = Client::connect(options(&[first.rpc, second.rpc], "ops"))
        .await
        .unwrap();
    let flow = client.start_flow("test.Hold", json!({})).await.unwrap();
    let mut watcher = client.watch_flows().await.unwrap();
    let seen = timeout(PATIENCE, watcher.next()).await.unwrap().unwrap();
    assert_eq!((&seen.flow_id, seen.state), (flow.id(), FlowState::Running));
    first.kill();
    shared.finish(flow.id(), Ok(json!(null)));
    let ended = async { while watcher.next().await.unwrap().state != FlowState::Completed {} };
    timeout(PATIENCE, ended).await.unwrap();
}

/// Forwards connections to an instance until it falls silent: nothing passes any more, and no
/// connection is closed, as when a machine loses its network.
async fn silenceable(target: SocketAddr) -> (SocketAddr, watch::Sender<bool>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (silence, silent) = watch::channel(false);
    tokio::spawn(async move {
        loop {
            let (near, _) = listener.accept().await.unwrap();
            let mut silent = silent.clone();
            tokio::spawn(async move {
                let mut near = near;
                if !*silent.borrow() {
                    let mut far = TcpStream::connect(target).await.unwrap();
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => return,
                        _ = silent.wait_for(|silent| *silent) => {}
                    }
                }
                std::future::pending::<()>().await;
            });
        }
    });
    (address, silence)
}

#[tokio::test]
async fn a_silent_server_is_noticed_and_left() {
    let shared = Shared::new();
    let (first, second) = (Instance::start(&shared), Instance::start(&shared));
    let (front, silence) = silenceable(first.rpc).await;
    let mut options = options(&[front, second.rpc], "ops");
    options.connect_timeout = Duration::from_millis(500);
    let client = Client::connect(options).await.unwrap();
    let mut events = client.events();
    assert_eq!(client.connected_to().unwrap().0, front.to_string());
    silence.send(true).unwrap();
    let begun = Instant::now();
    client.node_info().await.unwrap();
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
    match event(&mut events).await {
        Event::Disconnected { reason, .. } => assert_eq!(reason, "the node is silent"),
        other => panic!("{other:?}"),
    }
    assert!(
        matches!(event(&mut events).await, Event::Connected { address, .. }
        if address == second.rpc.to_string())
    );
}

#[tokio::test]
async fn what_may_not_be_repeated_is_not_repeated() {
    let shared = Shared::new();
    let instance = Instance::start(&shared);
    let client = Client::connect(options(&[instance.rpc], "ops"))
        .await
        .unwrap();
    let stuck = tokio::spawn({
        let client = client.clone();
        async move { client.start_flow("test.Stuck", json!({})).await }
    });
    // The call is under way when another one after it on the same connection is answered.
    tokio::task::yield_now().await;
    client.node_info().await.unwrap();
    let address = instance.kill();
    let outcome = timeout(PATIENCE, stuck)
        .await
        .unwrap()
        .unwrap()
        .unwrap_err();
    assert!(
        matches!(outcome, ClientError::OutcomeUnknown { .. }),
        "{outcome}"
    );
    assert!(outcome.to_string().contains("client id"), "{outcome}");

    let mut impatient = options(&[address], "ops");
    impatient.call_timeout = Duration::from_millis(300);
    let unreachable = Client::new(impatient)
        .unwrap()
        .node_info()
        .await
        .unwrap_err();
    assert!(unreachable.retryable());
    assert!(
        unreachable.to_string().contains(&address.to_string()),
        "{unreachable}"
    );
}

#[tokio::test]
async fn an_instance_that_ceases_to_serve_sends_its_clients_away() {
    let shared = Shared::new();
    let (first, second) = (Instance::start(&shared), Instance::start(&shared));
    let client = Client::connect(options(&[first.rpc, second.rpc], "ops"))
        .await
        .unwrap();
    let first = Arc::new(first);
    first.node.serving.store(false, Ordering::SeqCst);
    client.node_info().await.unwrap();
    assert_eq!(client.connected_to().unwrap().0, second.rpc.to_string());
}
