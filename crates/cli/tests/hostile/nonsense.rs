//! Peers that speak nonsense: strangers on every port, and a consenter on the cluster's.

use std::fs;

use quorate_testkit::hostile::{Forger, Shape};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Duration, timeout};

use crate::frames::{END_HEADERS, HEADERS, call, frame, hello, message};
use crate::support::{Identity, Line, fixture};
use crate::victim::Victim;

/// Words with which a conversation may begin.
fn beginnings() -> Vec<Vec<u8>> {
    let mut http = b"POST /participation/v1/channels HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=b\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n--b--\r\n0\r\n\r\n".to_vec();
    http.extend(
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551615\r\n\r\n",
    );
    let mut grpc = hello();
    grpc.extend(frame(
        HEADERS,
        END_HEADERS,
        1,
        &call("/orderer.Cluster/Step"),
    ));
    grpc.extend(message(1, b"\x0a\x05hello"));
    let tls = b"\x16\x03\x01\x00\x2f\x01\x00\x00\x2b\x03\x03aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\x00\x00\x04\x13\x01\x13\x02\x01\x00\x00\x00".to_vec();
    let long = [&b"GET /"[..], &[b'a'; 100_000], b" HTTP/1.1\r\n\r\n"].concat();
    vec![http, grpc, tls, long]
}

async fn say(mut to: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin, words: &[u8]) {
    let _ = timeout(Duration::from_millis(200), async {
        let _ = to.write_all(words).await;
        let _ = to.flush().await;
        let mut ignored = [0; 4096];
        let _ = to.read(&mut ignored).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nonsense_on_every_port_harms_nobody() {
    let victim = Victim::start().await;
    let samples = beginnings();
    let mut forger = Forger::new(1, Shape::Plain, &samples);
    let orderer = victim.orderer();
    for round in 0..40 {
        let mut talks = Vec::new();
        for port in [
            orderer.port(),
            orderer.admin_port(),
            orderer.operations_port(),
        ] {
            for _ in 0..5 {
                let words = forger.forge();
                talks.push(tokio::spawn(async move {
                    let socket = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                    say(socket, &words).await;
                }));
            }
        }
        // Behind a good handshake, too.
        for identity in [None, Some(Identity::orderer(1))] {
            let words = forger.forge();
            let connection = victim.connect(identity.as_ref()).await.unwrap();
            talks.push(tokio::spawn(async move { say(connection, &words).await }));
        }
        for talk in talks {
            talk.await.unwrap();
        }
        if round % 10 == 0 {
            victim.serves_others("nonsense on every port").await;
        }
    }
    victim.is_unharmed(250 * 1024);
    victim.stops().await;
}

/// A consenter of `fixture` sends what was recorded between orderers, forged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consenter_that_speaks_nonsense_harms_nobody() {
    let victim = Victim::start().await;
    let mut files: Vec<_> = fs::read_dir(fixture("raftpb/captured"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    let samples: Vec<Vec<u8>> = files.iter().map(|file| fs::read(file).unwrap()).collect();
    let mut forger = Forger::new(2, Shape::Protobuf, &samples);
    for number in 0..40 {
        let identity = Identity::orderer(1 + number % 2);
        let line = Line::open(victim.orderer().port(), Some(&identity))
            .await
            .unwrap();
        for _ in 0..8 {
            if let Ok(call) = line.step().await {
                for _ in 0..10 {
                    call.send(forger.forge().into());
                }
            }
        }
        if number % 10 == 0 {
            victim.serves_others("a consenter speaks nonsense").await;
        }
    }
    victim.is_unharmed(300 * 1024);
    // The channel that was spoken about is there, too.
    assert_eq!(victim.orderer().height("fixture").await, 1);
    victim.stops().await;
}
