//! Strangers of all kinds at the door, and what the log says of them.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::fmt::Debug;
use std::fmt::Write as _;

use quorate_identity::mutual_tls::ClientTls;
use quorate_runtime::Metrics;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};

use super::*;
use crate::cluster::tests::{PATIENCE, client_tls, folder, orderer, server_tls};
use crate::cluster::{Destination, Link, Unconnected, dial};

/// Keeps what this thread logs: `LEVEL message field=value …`.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    async fn wait_for(&self, text: &str) -> String {
        let found = async {
            loop {
                if let Some(line) = self.lines().into_iter().find(|line| line.contains(text)) {
                    return line;
                }
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, found)
            .await
            .unwrap_or_else(|_| panic!("{text}: {:#?}", self.lines()))
    }
}

#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            write!(self.message, "{value:?}").unwrap();
        } else {
            write!(self.fields, " {}={value:?}", field.name()).unwrap();
        }
    }
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target() == LOG
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        let level = event.metadata().level();
        let text = format!("{level} {}{}", line.message, line.fields);
        self.0.lock().unwrap().push(text);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

async fn start(options: ListenerOptions) -> (SocketAddr, Tasks, Metrics) {
    let (tasks, metrics) = (Tasks::new("listener"), Metrics::new());
    let listener = Listener::bind("127.0.0.1:0", options).await.unwrap();
    let address = listener.local_address().unwrap();
    listener.serve(
        Routes::default(),
        &crate::metrics::OrdererMetrics::new(&metrics, false).grpc,
        &tasks,
    );
    (address, tasks, metrics)
}

fn guarded() -> ListenerOptions {
    ListenerOptions {
        tls: Some(server_tls(orderer(1))),
        ..ListenerOptions::default()
    }
}

async fn connect(
    address: SocketAddr,
    tls: Option<&ClientTls>,
    tasks: &Tasks,
) -> Result<Link, Unconnected> {
    let destination = Destination::parse(&address.to_string()).unwrap();
    let (link, driver) = timeout(PATIENCE, dial(&destination, tls, tasks))
        .await
        .unwrap()?;
    tasks.spawn("driver", async move {
        let _ = driver.await;
    });
    Ok(link)
}

async fn wait_until(condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, waiting).await.unwrap();
}

/// Resolves when the other side has closed the connection.
async fn closed(tcp: &mut TcpStream) {
    let mut buffer = [0; 256];
    while let Ok(Ok(1..)) = timeout(PATIENCE, tcp.read(&mut buffer)).await {}
}

#[tokio::test]
async fn failed_handshakes_are_told_as_fabric_tells_them() {
    let log = Log::default();
    let _guard = tracing::subscriber::set_default(log.clone());
    let (address, tasks, _) = start(guarded()).await;
    // A load balancer's probe.
    drop(TcpStream::connect(address).await.unwrap());
    log.wait_for("DEBUG a connection ended without a word")
        .await;
    // Somebody who thinks there is no TLS.
    let mut tcp = TcpStream::connect(address).await.unwrap();
    let from = tcp.local_addr().unwrap();
    tcp.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let line = log.wait_for(&from.to_string()).await;
    assert!(
        line.starts_with("ERROR Server TLS handshake failed in "),
        "{line}"
    );
    assert!(
        line.ends_with(&format!(
            " with error tls: first record does not look like a TLS handshake server=Orderer remoteaddress={from}"
        )),
        "{line}"
    );
    // A client whose certificate we refuse.
    let expired = client_tls(Some(folder("special/orderer4-tls-expired", "server")));
    let _link = connect(address, Some(&expired), &tasks).await;
    log.wait_for("tls: failed to verify certificate: x509: certificate has expired")
        .await;
    // A client without one.
    let _link = connect(address, Some(&client_tls(None)), &tasks).await;
    log.wait_for("tls: client didn't provide a certificate")
        .await;
    let errors = log
        .lines()
        .iter()
        .filter(|line| line.starts_with("ERROR"))
        .count();
    assert_eq!(errors, 3, "{:#?}", log.lines());
}

#[tokio::test]
async fn a_server_that_is_refused_says_bad_certificate() {
    let log = Log::default();
    let _guard = tracing::subscriber::set_default(log.clone());
    let options = ListenerOptions {
        tls: Some(server_tls(folder("special/orderer4-tls-expired", "server"))),
        ..ListenerOptions::default()
    };
    let (address, tasks, _) = start(options).await;
    let refused = connect(address, Some(&client_tls(Some(orderer(0)))), &tasks).await;
    assert!(refused.is_err());
    let line = log.wait_for("Server TLS handshake failed").await;
    assert!(
        line.contains(
            " with error remote error: tls: bad certificate server=Orderer remoteaddress="
        ),
        "{line}"
    );
}

#[tokio::test]
async fn silent_connections_give_way_and_end() {
    let options = ListenerOptions {
        max_pending_handshakes: 3,
        handshake_timeout: PATIENCE * 10,
        ..guarded()
    };
    let (address, tasks, _) = start(options).await;
    let mut silent = Vec::new();
    for _ in 0..6 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    for tcp in silent.iter_mut().take(3) {
        closed(tcp).await;
    }
    let client = client_tls(Some(orderer(0)));
    connect(address, Some(&client), &tasks).await.unwrap();
    let options = ListenerOptions {
        handshake_timeout: Duration::from_millis(50),
        ..guarded()
    };
    let (address, _tasks, _) = start(options).await;
    let mut tcp = TcpStream::connect(address).await.unwrap();
    closed(&mut tcp).await;
    // Half of a handshake is no better.
    let mut tcp = TcpStream::connect(address).await.unwrap();
    tcp.write_all(&[22, 3, 1, 2, 0]).await.unwrap();
    closed(&mut tcp).await;
}

#[tokio::test]
async fn connections_are_counted_and_bounded() {
    let options = ListenerOptions {
        max_connections: 2,
        ..guarded()
    };
    let (address, tasks, metrics) = start(options).await;
    let client = client_tls(Some(orderer(0)));
    let opened = |count: u32| {
        metrics
            .render()
            .contains(&format!("grpc_comm_conn_opened {count}\n"))
    };
    let closed = |count: u32| {
        metrics
            .render()
            .contains(&format!("grpc_comm_conn_closed {count}\n"))
    };
    let first = connect(address, Some(&client), &tasks).await.unwrap();
    let second = connect(address, Some(&client), &tasks).await.unwrap();
    wait_until(|| opened(2)).await;
    // The third may finish its handshake, but is closed.
    if let Ok(third) = connect(address, Some(&client), &tasks).await {
        wait_until(|| third.is_closed()).await;
    }
    wait_until(|| opened(3) && closed(1)).await;
    assert!(!first.is_closed() && !second.is_closed());
    drop(first);
    wait_until(|| closed(2)).await;
    let fourth = connect(address, Some(&client), &tasks).await.unwrap();
    wait_until(|| opened(4)).await;
    assert!(!fourth.is_closed() && !second.is_closed());
}

#[tokio::test]
async fn stopping_ends_connections_and_frees_the_port() {
    let (address, tasks, _) = start(guarded()).await;
    let clients = Tasks::new("clients");
    let client = client_tls(Some(orderer(0)));
    let link = connect(address, Some(&client), &clients).await.unwrap();
    let _silent = TcpStream::connect(address).await.unwrap();
    let report = tasks.stop(PATIENCE).await;
    assert!(report.is_clean(), "{report}");
    wait_until(|| link.is_closed()).await;
    let again = Listener::bind(&address.to_string(), guarded())
        .await
        .unwrap();
    // Taken now, and said so.
    let taken = Listener::bind(&address.to_string(), guarded()).await;
    assert!(taken.is_err_and(|error| error.to_string().contains(&address.to_string())));
    drop(again);
}

#[tokio::test]
async fn without_tls_it_is_plain_http2() {
    let (address, tasks, _) = start(ListenerOptions::default()).await;
    let link = connect(address, None, &tasks).await.unwrap();
    let mut client = link.grpc(1024);
    client.ready().await.unwrap();
    let path = tonic::codegen::http::uri::PathAndQuery::from_static("/no.Such/Method");
    let request = tonic::Request::new(bytes::Bytes::new());
    let refused = client.unary(request, path, crate::raw::RawCodec).await;
    assert_eq!(refused.unwrap_err().code(), tonic::Code::Unimplemented);
}
