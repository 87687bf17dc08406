//! Clients that are slow, silent or many.

use std::time::Duration;

use futures::stream::{self, StreamExt as _};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::sleep;

use crate::frames::{END_HEADERS, HEADERS, call, frame, hello, message};
use crate::support::{Line, bytes};
use crate::victim::{TRANSACTION, Victim};

const DELIVER: &str = "/orderer.AtomicBroadcast/Deliver";
const BROADCAST: &str = "/orderer.AtomicBroadcast/Broadcast";

/// Connections that are opened at the same time.
const AT_ONCE: usize = 64;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deliver_calls_that_are_never_read_hold_little() {
    let victim = Victim::start().await;
    let line = Line::open(victim.orderer().port(), None).await.unwrap();
    // A chain of some megabytes.
    let transaction = bytes("statuses/requests/b-size-at-limit.pb");
    let mut sender = line.broadcast().await;
    for _ in 0..60 {
        sender.send(transaction.clone());
    }
    for _ in 0..60 {
        assert_eq!(sender.answer().await.unwrap().0, 200);
    }
    victim.orderer().reaches("fixture1", 60).await;
    // All of it, for ever.
    let request = bytes("statuses/requests/d-follow-to-max.pb");
    let mut held = Vec::new();
    for _ in 0..50 {
        let mut connection = victim.connect(None).await.unwrap();
        let mut out = hello();
        for stream in 0..10 {
            out.extend(frame(HEADERS, END_HEADERS, 2 * stream + 1, &call(DELIVER)));
            out.extend(message(2 * stream + 1, &request));
        }
        connection.write_all(&out).await.unwrap();
        connection.flush().await.unwrap();
        held.push(connection);
    }
    sleep(Duration::from_secs(2)).await;
    victim.serves_others("500 calls are not read").await;
    victim.is_unharmed(350 * 1024);
    drop(held);
    victim.stops().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_send_a_byte_a_second_keep_nobody_waiting() {
    let victim = Victim::start().await;
    let mut out = hello();
    out.extend(frame(HEADERS, END_HEADERS, 1, &call(BROADCAST)));
    out.extend(message(1, &bytes(TRANSACTION)));
    let mut slow = Vec::new();
    for _ in 0..100 {
        slow.push(victim.connect(None).await.unwrap());
    }
    let mut plain = Vec::new();
    for _ in 0..100 {
        for port in [
            victim.orderer().port(),
            victim.orderer().admin_port(),
            victim.orderer().operations_port(),
        ] {
            plain.push(TcpStream::connect(("127.0.0.1", port)).await.unwrap());
        }
    }
    for byte in &out[..4] {
        for connection in &mut slow {
            connection.write_all(&[*byte]).await.unwrap();
            connection.flush().await.unwrap();
        }
        for (number, connection) in plain.iter_mut().enumerate() {
            // A handshake, or a request in plain HTTP. Whoever was given up by now does not matter.
            let byte = if number % 3 == 2 { b'G' } else { 22 };
            let _ = connection.write_all(&[byte]).await;
        }
        victim
            .serves_others("400 clients send a byte a second")
            .await;
        sleep(Duration::from_secs(1)).await;
    }
    victim.is_unharmed(200 * 1024);
    victim.stops().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshakes_that_never_end_give_way_to_others() {
    let victim = Victim::start().await;
    let hello = [22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3];
    for port in [
        victim.orderer().port(),
        victim.orderer().admin_port(),
        victim.orderer().operations_port(),
    ] {
        let mut held = Vec::new();
        for _ in 0..1_500 {
            let mut connection = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            let _ = connection.write_all(&hello).await;
            held.push(connection);
        }
        victim.serves_others("1500 handshakes do not go on").await;
    }
    victim.is_unharmed(200 * 1024);
    victim.stops().await;
}

/// Ten thousand connections that say nothing after their first words.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_idle_connections_leave_room_for_others() {
    const MANY: usize = 10_000;
    let files = open_files();
    if files < MANY as u64 + 1_000 {
        eprintln!("this machine permits {files} open files: not enough for this test");
        return;
    }
    let victim = Victim::start().await;
    let started = std::time::Instant::now();
    let connector = crate::support::connector(None, &[b"h2"]);
    let port = victim.orderer().port();
    let held: Vec<_> = stream::iter(0..MANY)
        .map(|_| async {
            let socket = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
            let mut connection = connector.connect(name, socket).await.unwrap();
            connection.write_all(&hello()).await.unwrap();
            connection.flush().await.unwrap();
            connection
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    eprintln!("{MANY} connections in {:?}", started.elapsed());
    victim.serves_others("10,000 connections are idle").await;
    victim.is_unharmed(900 * 1024);
    drop(held);
    victim.serves_others("the idle ones are gone").await;
    victim.stops().await;
}

/// How many files a process may open here.
fn open_files() -> u64 {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current.unwrap_or(u64::MAX)
}
