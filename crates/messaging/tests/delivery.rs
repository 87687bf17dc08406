//! What messaging promises: order, nothing lost, nothing accepted before it is durable, whoever dies in between.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on says so by panicking"
)]

mod support;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use quorate_messaging::{BridgeState, Change, Direction, Refusal};
use support::{PATIENCE, Party, name, until};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_arrive_in_order_both_ways_and_are_settled_once() {
    const COUNT: usize = 2000;
    let (a, b) = (Party::start("PartyA"), Party::start("PartyB"));
    a.knows(&b);
    b.knows(&a);
    for index in 0..COUNT {
        a.send(&b.name, format!("a{index}").into_bytes());
        b.send(&a.name, format!("b{index}").into_bytes());
    }
    a.settled(&b.name).await;
    b.settled(&a.name).await;
    for (receiver, sender, letter) in [(&b, &a, 'a'), (&a, &b, 'b')] {
        let seen = receiver.inbox.seen();
        assert_eq!(seen.len(), COUNT);
        assert_eq!(*receiver.inbox.repeated.lock().unwrap(), 0);
        for (index, message) in seen.iter().enumerate() {
            assert_eq!((&message.from, message.epoch), (&sender.name, [7; 16]));
            assert_eq!(message.body, format!("{letter}{index}").into_bytes());
        }
        let reports = sender.queue.reports(&receiver.name);
        assert!(
            reports.is_sorted() && reports.last() == Some(&(COUNT as u64)),
            "{reports:?}"
        );
        let status = sender.handle.peer_status(&receiver.name).unwrap();
        assert_eq!(
            (status.sent, status.accepted, status.accepted_up_to),
            (COUNT as u64, COUNT as u64, COUNT as u64)
        );
        assert_eq!(
            (status.unsettled, status.received, status.last_error),
            (0, COUNT as u64, None)
        );
        assert!(status.inbound_connected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_and_empty_messages_keep_their_bytes_and_order() {
    let (a, b) = (Party::start("PartyA"), Party::start("PartyB"));
    a.knows(&b);
    let limit = a.options.max_message_bytes;
    let bodies: Vec<Vec<u8>> = [0, 1, 65_000, 65_536, 66_000, 1 << 20, 3, limit, 7]
        .into_iter()
        .map(|size| (0..size).map(|index| (index * 31 % 251) as u8).collect())
        .collect();
    for body in &bodies {
        a.send(&b.name, body.clone());
    }
    a.settled(&b.name).await;
    let seen: Vec<_> = b.inbox.seen().into_iter().map(|seen| seen.body).collect();
    assert!(
        seen == bodies,
        "sizes: {:?}",
        seen.iter().map(Vec::len).collect::<Vec<_>>()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_receiver_is_found_again_within_moments_and_nothing_is_lost() {
    let (a, mut b) = (
        Party::start_with("PartyA", |options| {
            options.retry_min = Duration::from_secs(1)
        }),
        Party::start("PartyB"),
    );
    a.knows(&b);
    let mut events = a.handle.events();
    a.send_many(&b.name, 500);
    until("some have arrived", || async { b.inbox.count() > 100 }).await;
    b.kill().await;
    a.send_many(&b.name, 500);
    a.until_bridge(&b.name, "waiting", |state| state == BridgeState::Waiting)
        .await;
    b.restart();
    let listening = Instant::now();
    a.until_bridge(&b.name, "connected again", |state| {
        matches!(state, BridgeState::Connected(_))
    })
    .await;
    let gap = listening.elapsed();
    assert!(gap < Duration::from_millis(1500), "{gap:?}");
    a.settled(&b.name).await;
    assert_eq!(b.inbox.sequences(), (1..=1000).collect::<Vec<_>>());
    let mut changes = Vec::new();
    while let Ok(event) = events.try_recv() {
        assert_eq!(
            (&event.peer, event.direction),
            (&b.name, Direction::Outbound)
        );
        changes.push(matches!(event.change, Change::Connected(_)));
    }
    assert_eq!(changes, [true, false, true]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_sender_repeats_what_it_does_not_know_to_be_accepted() {
    let (mut a, b) = (Party::start("PartyA"), Party::start("PartyB"));
    a.knows(&b);
    for round in 1..=5 {
        a.send_many(&b.name, 1000);
        until("some have arrived", || async {
            b.inbox.count() > 1000 * round - 700
        })
        .await;
        a.kill().await;
        a.restart();
        a.knows(&b);
        a.handle.notify(&b.name);
    }
    a.settled(&b.name).await;
    assert_eq!(b.inbox.sequences(), (1..=5000).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_settled_before_the_receiver_has_it_durably() {
    let (a, b) = (Party::start("PartyA"), Party::start("PartyB"));
    a.knows(&b);
    b.inbox.open_gate(false);
    a.send_many(&b.name, 1000);
    // The window is full, and stays full.
    until("the window is full", || async {
        a.handle.peer_status(&b.name).unwrap().unsettled == a.options.window
    })
    .await;
    assert_eq!((a.queue.reports(&b.name), b.inbox.count()), (vec![], 0));
    b.inbox.open_gate(true);
    a.settled(&b.name).await;
    assert_eq!(b.inbox.count(), 1000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_cannot_take_messages_now_gets_them_later_in_order() {
    let (a, b) = (Party::start("PartyA"), Party::start("PartyB"));
    a.knows(&b);
    a.send_many(&b.name, 300);
    a.settled(&b.name).await;
    b.inbox.refuse(Some(Refusal::later("the database is away")));
    a.send_many(&b.name, 300);
    until("the sender knows why", || async {
        a.last_error(&b.name).contains("the database is away")
    })
    .await;
    assert_eq!(b.inbox.count(), 300);
    b.inbox.refuse(None);
    a.settled(&b.name).await;
    assert_eq!(b.inbox.sequences(), (1..=600).collect::<Vec<_>>());
    assert_eq!(a.last_error(&b.name), "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_refused_for_good_is_kept_and_shown_and_nothing_overtakes_it() {
    let (a, b) = (Party::start("PartyA"), Party::start("PartyB"));
    a.knows(&b);
    b.inbox
        .refuse(Some(Refusal::permanent("the envelope has version 9")));
    a.send_many(&b.name, 3);
    a.until_bridge(&b.name, "refused", |state| state == BridgeState::Refused(1))
        .await;
    until("the reason is shown", || async {
        let error = a.last_error(&b.name);
        error.contains("message 1 to") && error.contains("the envelope has version 9")
    })
    .await;
    assert_eq!((a.queue.left(&b.name), b.inbox.count()), (3, 0));
    b.inbox.refuse(None);
    a.settled(&b.name).await;
    assert_eq!(b.inbox.sequences(), [1, 2, 3]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_one_bad_message_of_many_is_found_and_those_before_it_are_taken() {
    let (a, b) = (Party::start("PartyA"), Party::start("PartyB"));
    b.inbox.refuse_message(Some(40));
    a.send_many(&b.name, 100);
    a.knows(&b);
    a.until_bridge(&b.name, "refused", |state| {
        state == BridgeState::Refused(40)
    })
    .await;
    assert_eq!(b.inbox.sequences(), (1..=39).collect::<Vec<_>>());
    b.inbox.refuse_message(None);
    a.settled(&b.name).await;
    assert_eq!(b.inbox.sequences(), (1..=100).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_too_large_is_refused_at_the_sender_and_what_came_before_is_sent() {
    let small = |options: &mut quorate_messaging::Options| options.max_message_bytes = 1000;
    let (a, b) = (Party::start_with("PartyA", small), Party::start("PartyB"));
    a.knows(&b);
    for size in [10, 1000, 1001, 10] {
        a.send(&b.name, vec![0; size]);
    }
    a.until_bridge(&b.name, "refused", |state| state == BridgeState::Refused(3))
        .await;
    until("the first two are settled", || async {
        a.queue.left(&b.name) == 2
    })
    .await;
    let error = a.last_error(&b.name);
    assert!(
        error.contains("it has 1001 bytes, and our limit is 1000"),
        "{error}"
    );
    a.queue.replace(&b.name, 3, vec![0; 5]);
    a.settled(&b.name).await;
    assert_eq!(b.inbox.sequences(), [1, 2, 3, 4]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_too_large_for_the_receiver_harms_only_its_own_queue() {
    let small = |options: &mut quorate_messaging::Options| options.max_message_bytes = 1000;
    let (a, c) = (Party::start("PartyA"), Party::start("PartyC"));
    let b = Party::start_with("PartyB", small);
    a.knows(&b);
    c.knows(&b);
    c.send(&b.name, vec![0; 1000]);
    c.settled(&b.name).await;
    a.send(&b.name, vec![0; 1000]);
    a.settled(&b.name).await;
    // One byte too many is within what the link allows for headers; a large one is not even sent.
    for size in [1001, 100_000] {
        let sequence = a.send(&b.name, vec![0; size]);
        a.until_bridge(&b.name, "refused", |state| {
            state == BridgeState::Refused(sequence)
        })
        .await;
        until("the limit is named", || async {
            a.last_error(&b.name).contains("limit is 1")
        })
        .await;
        a.queue.replace(&b.name, sequence, vec![1]);
        a.settled(&b.name).await;
    }
    c.send(&b.name, vec![0; 5]);
    c.settled(&b.name).await;
    let status = c.handle.peer_status(&b.name).unwrap();
    assert_eq!(
        status.sent, 2,
        "the other peer's connection was never disturbed"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_addresses_are_passed_over() {
    let (a, mut b) = (Party::start("PartyA"), Party::start("PartyB"));
    let closed = {
        let listener = TcpListener::bind(support::localhost()).await.unwrap();
        listener.local_addr().unwrap()
    };
    // A load balancer without a server behind it: accepts and hangs up.
    let empty = TcpListener::bind(support::localhost()).await.unwrap();
    let hangs_up = empty.local_addr().unwrap();
    let balancer = tokio::spawn(async move {
        loop {
            drop(empty.accept().await);
        }
    });
    a.knows_at(&b.name, &[closed, hangs_up, b.address]);
    let began = Instant::now();
    a.send_many(&b.name, 10);
    a.settled(&b.name).await;
    assert!(
        began.elapsed() < a.options.retry_min * 20,
        "no pause between addresses: {:?}",
        began.elapsed()
    );
    // The peer comes back elsewhere, and the bridge is told.
    b.kill().await;
    a.send_many(&b.name, 10);
    a.until_bridge(&b.name, "waiting", |state| state == BridgeState::Waiting)
        .await;
    b.address = support::localhost();
    b.restart();
    a.knows_at(&b.name, &[b.handle.address()]);
    a.settled(&b.name).await;
    assert_eq!(b.inbox.count(), 20);
    balancer.abort();
}

/// A machine that has lost its power, or whose process is stopped: nothing refuses, nothing answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn addresses_that_hang_do_not_keep_the_others_waiting() {
    let (a, b) = (Party::start("PartyA"), Party::start("PartyB"));
    let mut silent = Vec::new();
    for _ in 0..2 {
        silent.push(TcpListener::bind(support::localhost()).await.unwrap());
    }
    let hanging = silent.iter().map(|tcp| tcp.local_addr().unwrap());
    let addresses: Vec<_> = hanging.chain([b.address]).collect();
    a.knows_at(&b.name, &addresses);
    let began = Instant::now();
    a.send_many(&b.name, 10);
    a.settled(&b.name).await;
    assert!(
        began.elapsed() < a.options.connect_timeout,
        "as long as one attempt may take, and there are two that hang: {:?}",
        began.elapsed()
    );
    a.until_bridge(&b.name, "connected", |state| {
        state == BridgeState::Connected(b.address.into())
    })
    .await;
    assert_eq!(b.inbox.count(), 10);
    assert_eq!(*b.inbox.repeated.lock().unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_without_address_is_waited_for() {
    let (a, b) = (Party::start("PartyA"), Party::start("PartyB"));
    a.send_many(&b.name, 1);
    a.until_bridge(&b.name, "no address", |state| {
        state == BridgeState::NoAddress
    })
    .await;
    a.knows(&b);
    a.settled(&b.name).await;
    assert_eq!(a.handle.status().peers.len(), 1);
}

/// A proxy that can be stopped: it then holds its connections open and passes nothing on, as a machine does whose cable
/// was pulled or whose processes are stopped.
async fn proxy(to: SocketAddr) -> (SocketAddr, watch::Sender<bool>) {
    let listener = TcpListener::bind(support::localhost()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(async move {
        while let Ok((mut from, _)) = listener.accept().await {
            let mut stopped = stopped.clone();
            tokio::spawn(async move {
                let mut to = TcpStream::connect(to).await.unwrap();
                tokio::select! {
                    _ = copy_bidirectional(&mut from, &mut to) => return,
                    _ = stopped.wait_for(|stopped| *stopped) => {}
                }
                tokio::time::sleep(PATIENCE * 10).await;
            });
        }
    });
    (address, stop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_peer_is_given_up_also_in_the_middle_of_a_large_message() {
    let quick =
        |options: &mut quorate_messaging::Options| options.silence_timeout = Duration::from_secs(1);
    let (a, b) = (
        Party::start_with("PartyA", quick),
        Party::start_with("PartyB", quick),
    );
    for size in [10, 8 << 20] {
        let (through, stop) = proxy(b.address).await;
        a.knows_at(&b.name, &[through]);
        a.send(&b.name, vec![1]);
        a.settled(&b.name).await;
        stop.send_replace(true);
        a.send(&b.name, vec![0; size]);
        let began = Instant::now();
        // Everything through the proxy is dead; the peer can be reached directly.
        a.knows_at(&b.name, &[b.address]);
        a.settled(&b.name).await;
        let took = began.elapsed();
        assert!(took < Duration::from_secs(5), "{took:?}");
        until("the receiver has given the dead connection up", || async {
            b.handle.status().inbound_connections == 1
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signs_of_life_keep_an_idle_connection_open() {
    let quick =
        |options: &mut quorate_messaging::Options| options.silence_timeout = Duration::from_secs(1);
    let (a, b) = (
        Party::start_with("PartyA", quick),
        Party::start_with("PartyB", quick),
    );
    a.knows(&b);
    a.send_many(&b.name, 1);
    a.settled(&b.name).await;
    let mut events = a.handle.events();
    let mut other_events = b.handle.events();
    // Not a wait for a condition but for its absence: three times the permitted silence.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(
        events.try_recv().is_err() && other_events.try_recv().is_err(),
        "the connection was given up"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_bridge_hangs_up_and_comes_back() {
    let quick = |options: &mut quorate_messaging::Options| {
        options.silence_timeout = Duration::from_secs(1);
        options.idle_close = Duration::from_millis(300);
    };
    let (a, b) = (Party::start_with("PartyA", quick), Party::start("PartyB"));
    a.knows(&b);
    for _ in 0..2 {
        a.send_many(&b.name, 1);
        a.settled(&b.name).await;
        a.until_bridge(&b.name, "idle", |state| state == BridgeState::Idle)
            .await;
        until("the receiver has noticed", || async {
            b.handle.status().inbound_connections == 0
        })
        .await;
    }
    assert_eq!((b.inbox.count(), a.last_error(&b.name).as_str()), (2, ""));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_fails_is_asked_again() {
    let (a, b) = (Party::start("PartyA"), Party::start("PartyB"));
    a.knows(&b);
    *a.queue.failing.lock().unwrap() = true;
    a.send_many(&b.name, 10);
    until("the failure is shown", || async {
        a.last_error(&b.name).contains("the database is away")
    })
    .await;
    *a.queue.failing.lock().unwrap() = false;
    a.settled(&b.name).await;
    assert_eq!(b.inbox.count(), 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_counts_anew_is_followed() {
    let (mut a, b) = (Party::start("PartyA"), Party::start("PartyB"));
    a.knows(&b);
    a.send_many(&b.name, 5);
    a.settled(&b.name).await;
    // The same party with a database that was set up again.
    a.queue = std::sync::Arc::default();
    *a.queue.epoch.lock().unwrap() = [8; 16];
    a.kill().await;
    a.restart();
    a.knows(&b);
    a.send_many(&b.name, 3);
    a.settled(&b.name).await;
    assert_eq!(b.inbox.sequences(), [1, 2, 3, 4, 5, 1, 2, 3]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_finishes_what_is_under_way_and_starts_nothing_new() {
    let (a, b) = (Party::start("PartyA"), Party::start("PartyB"));
    a.knows(&b);
    b.inbox.open_gate(false);
    a.send_many(&b.name, 1000);
    until("the window is full", || async {
        a.handle.peer_status(&b.name).unwrap().unsettled == a.options.window
    })
    .await;
    let stopping = tokio::spawn({
        let handle = a.handle.clone();
        async move { handle.shutdown(PATIENCE).await }
    });
    until("the port is closed", || async {
        TcpStream::connect(a.address).await.is_err()
    })
    .await;
    b.inbox.open_gate(true);
    let report = stopping.await.unwrap();
    assert!(report.is_clean(), "{report}");
    // What was under way was accepted and reported; the rest was not sent.
    assert_eq!(b.inbox.count(), a.options.window);
    assert_eq!(a.queue.left(&b.name), 1000 - a.options.window);
    assert_eq!(a.bridge(&b.name), BridgeState::Stopped);
    // The receiving side stops as cleanly.
    let report = b.handle.shutdown(PATIENCE).await;
    assert!(report.is_clean(), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_cuts_off_what_does_not_finish() {
    let (a, b) = (Party::start("PartyA"), Party::start("PartyB"));
    a.knows(&b);
    b.inbox.open_gate(false);
    a.send_many(&b.name, 10);
    until("messages are under way", || async {
        a.handle
            .peer_status(&b.name)
            .is_some_and(|status| status.unsettled > 0)
    })
    .await;
    let report = a.handle.shutdown(Duration::from_millis(50)).await;
    assert_eq!(report.cut_off, [format!("messaging/bridge to {}", b.name)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_peers_that_are_down_do_not_slow_down_one_that_is_up() {
    let (a, mut b) = (Party::start("PartyA"), Party::start("PartyB"));
    let dark = TcpListener::bind(support::localhost()).await.unwrap();
    for index in 0..50 {
        let gone = name(&format!("Gone{index}"));
        a.knows_at(
            &gone,
            &[([127, 0, 0, 1], 1).into(), dark.local_addr().unwrap()],
        );
        a.send(&gone, vec![1]);
    }
    a.knows(&b);
    let began = Instant::now();
    a.send_many(&b.name, 100);
    a.settled(&b.name).await;
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
    // Also later, when the attempts that hang would hold all places for dialling if they were left to.
    b.kill().await;
    b.restart();
    let began = Instant::now();
    a.send_many(&b.name, 100);
    a.settled(&b.name).await;
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_party_can_write_to_itself() {
    let a = Party::start("PartyA");
    a.knows(&a);
    a.send_many(&a.name, 10);
    a.settled(&a.name).await;
    assert_eq!(a.inbox.count(), 10);
    assert!(a.handle.shutdown(PATIENCE).await.is_clean());
}
