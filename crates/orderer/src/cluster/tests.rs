//! Real connections over loopback, with certificates and requests that were recorded from Fabric.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, StreamExt as _};
use quorate_fabric::envelope::RawEnvelope;
use quorate_identity::mutual_tls::{ClientAuth, ClientTls, Credentials, Roots, ServerTls, shifted};
use quorate_identity::{Clock as TlsClock, UnixTime};
use quorate_runtime::{Clock, Entropy, Metrics, Tasks};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::service::Routes;

use super::*;
use crate::listener::{Listener, ListenerOptions};
use crate::metrics::OrdererMetrics;
use crate::raw::RawCodec;

pub(crate) const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/fabric");
/// 2026-11-20 14:00 UTC.
const NOW: i64 = 1_795_183_200;
/// Longer than anything here takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn file(name: &str) -> Vec<u8> {
    std::fs::read(format!("{FIXTURES}/{name}")).unwrap_or_else(|error| panic!("{name}: {error}"))
}

pub(crate) fn folder(name: &str, base: &str) -> Credentials {
    Credentials::from_pem(
        &file(&format!("crypto/{name}/{base}.crt")),
        &file(&format!("crypto/{name}/{base}.key")),
    )
    .unwrap()
}

pub(crate) fn tls_folder(index: u64) -> String {
    format!("ordererOrganizations/orderer.test/orderers/orderer{index}.orderer.test/tls")
}

pub(crate) fn orderer(index: u64) -> Credentials {
    folder(&tls_folder(index), "server")
}

fn roots() -> Roots {
    let ca =
        file("crypto/ordererOrganizations/orderer.test/msp/tlscacerts/tlsca.orderer.test-cert.pem");
    Roots::from_pem([ca.as_slice()]).unwrap()
}

fn now() -> TlsClock {
    Arc::new(|| UnixTime(NOW))
}

pub(crate) fn client_tls(credentials: Option<Credentials>) -> ClientTls {
    ClientTls {
        credentials,
        roots: roots(),
        clock: now(),
        alpn: vec![b"h2".to_vec()],
    }
}

pub(crate) fn server_tls(credentials: Credentials) -> ServerTls {
    ServerTls {
        credentials,
        roots: roots(),
        client_auth: ClientAuth::Required,
        clock: now(),
        alpn: vec![b"h2".to_vec()],
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Got {
    Consensus(String, u64, Bytes, Bytes),
    Submit(String, u64, u64, Bytes),
}

/// Tells the test what came in. Submitting never ends when `stuck`.
struct Recorder {
    got: mpsc::UnboundedSender<Got>,
    stuck: bool,
}

impl Dispatch for Recorder {
    fn consensus(
        &self,
        channel: &str,
        from: u64,
        payload: Bytes,
        metadata: Bytes,
    ) -> Result<(), StepRefusal> {
        let _ = self
            .got
            .send(Got::Consensus(channel.to_owned(), from, payload, metadata));
        Ok(())
    }

    fn submit(&self, forwarded: ForwardedStream, insistent: bool) -> OutcomeStream {
        let (sender, stuck) = (self.got.clone(), self.stuck);
        let outcomes = forwarded.then(move |forwarded| {
            let sender = sender.clone();
            async move {
                let forwarded = forwarded?;
                let got = Got::Submit(
                    forwarded.channel,
                    forwarded.from,
                    forwarded.last_validation_seq,
                    forwarded.envelope.encoded().clone(),
                );
                let _ = sender.send(got);
                if stuck {
                    std::future::pending::<()>().await;
                }
                if insistent && forwarded.envelope.payload().is_empty() {
                    return Ok(Err(Refusal::new(Status::BadRequest, "empty").into()));
                }
                Ok(Ok(()))
            }
        });
        outcomes.boxed()
    }
}

/// The service as Fabric's orderer has it, which knows of no answers.
#[derive(Clone)]
struct Silent(StepService);

impl tonic::server::NamedService for Silent {
    const NAME: &'static str = StepService::NAME;
}

type Request = tonic::codegen::http::Request<tonic::body::Body>;

impl tower::Service<Request> for Silent {
    type Response = <StepService as tower::Service<Request>>::Response;
    type Error = <StepService as tower::Service<Request>>::Error;
    type Future = <StepService as tower::Service<Request>>::Future;

    fn poll_ready(
        &mut self,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Self::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, mut request: Request) -> Self::Future {
        request.headers_mut().remove(ANSWERS);
        self.0.call(request)
    }
}

struct Node {
    transport: Transport,
    address: SocketAddr,
    got: mpsc::UnboundedReceiver<Got>,
    metrics: Metrics,
    tasks: Tasks,
}

#[derive(Clone)]
struct Setup {
    options: TransportOptions,
    client: ClientTls,
    server: ServerTls,
    address: String,
    stuck: bool,
    silent: bool,
}

impl Setup {
    fn new(index: u64) -> Self {
        Self {
            options: TransportOptions::default(),
            client: client_tls(Some(orderer(index))),
            server: server_tls(orderer(index)),
            address: "127.0.0.1:0".to_owned(),
            stuck: false,
            silent: false,
        }
    }

    async fn start(self) -> Node {
        let (tasks, metrics) = (Tasks::new("node"), Metrics::new());
        let counted = OrdererMetrics::new(&metrics, false);
        let transport = Transport::new(
            self.options,
            Some(self.client),
            Clock::system(),
            Entropy::seeded(1),
            &counted,
            &tasks,
        );
        let (sender, got) = mpsc::unbounded_channel();
        let service = transport.service(Arc::new(Recorder {
            got: sender,
            stuck: self.stuck,
        }));
        let options = ListenerOptions {
            tls: Some(self.server),
            ..ListenerOptions::default()
        };
        let listener = Listener::bind(&self.address, options).await.unwrap();
        let address = listener.local_address().unwrap();
        let routes = match self.silent {
            true => Routes::new(Silent(service)),
            false => Routes::new(service),
        };
        listener.serve(routes, &counted.grpc, &tasks);
        Node {
            transport,
            address,
            got,
            metrics,
            tasks,
        }
    }
}

impl Node {
    async fn next(&mut self) -> Got {
        timeout(PATIENCE, self.got.recv()).await.unwrap().unwrap()
    }

    async fn stop(self) {
        let report = self.tasks.stop(PATIENCE).await;
        assert!(report.cut_off.is_empty(), "{report}");
    }
}

/// Consenter `index + 1`, as Fabric numbers orderer `index` of the fixtures.
fn member(index: u64, address: SocketAddr) -> Member {
    let certificate = Bytes::from(file(&format!("crypto/{}/server.crt", tls_folder(index))));
    Member {
        id: index + 1,
        host: address.ip().to_string(),
        port: address.port(),
        client_cert: certificate.clone(),
        server_cert: certificate,
    }
}

/// The consenters orderer0..2, where each index has the given address.
fn members(addresses: [SocketAddr; 3]) -> Vec<Member> {
    (0..)
        .zip(addresses)
        .map(|(index, at)| member(index, at))
        .collect()
}

/// An address where nobody is.
fn nowhere() -> SocketAddr {
    "127.0.0.1:1".parse().unwrap()
}

async fn pair(left: Setup, right: Setup) -> (Node, Node) {
    let (left, right) = (left.start().await, right.start().await);
    let members = members([left.address, right.address, nowhere()]);
    left.transport.configure("fixture", &members);
    right.transport.configure("fixture", &members);
    (left, right)
}

pub(crate) fn raft(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// Sends until nothing is known to be lost.
async fn insist(node: &Node, to: u64, payload: &Bytes) {
    let sending = async {
        while node.transport.send("fixture", to, payload, &Bytes::new()) == Sent::Lost {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, sending).await.unwrap();
}

#[tokio::test]
async fn captured_requests_arrive_unchanged_and_in_order() {
    let (left, mut right) = pair(Setup::new(0), Setup::new(1)).await;
    let folder = format!("{FIXTURES}/raftpb/captured");
    let mut names: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    names.sort();
    let mut consensus = Vec::new();
    for name in names {
        match wire::Step::decode(std::fs::read(name).unwrap().into()).unwrap() {
            wire::Step::Consensus {
                payload, metadata, ..
            } => {
                let sent = left.transport.send("fixture", 2, &payload, &metadata);
                assert_eq!(sent, Sent::Queued);
                consensus.push(Got::Consensus("fixture".to_owned(), 1, payload, metadata));
            }
            wire::Step::Submit { envelope, .. } => {
                let raw = RawEnvelope::decode(envelope.clone()).unwrap();
                let submitted = left
                    .transport
                    .submit("fixture", 2, Some(7), raw.encoded())
                    .await;
                assert_eq!(submitted, Ok(()));
                let expected = Got::Submit("fixture".to_owned(), 1, 7, envelope);
                loop {
                    match right.next().await {
                        got @ Got::Submit(..) => break assert_eq!(got, expected),
                        got => assert_eq!(got, consensus.remove(0)),
                    }
                }
            }
            wire::Step::Neither => panic!(),
        }
    }
    for expected in consensus {
        assert_eq!(right.next().await, expected);
    }
    let text = left.metrics.render();
    assert!(
        text.contains("cluster_comm_egress_tls_connection_count 1"),
        "{text}"
    );
    assert!(text.contains("cluster_comm_egress_stream_count{channel=\"fixture\"} 2"));
    assert!(
        right
            .metrics
            .render()
            .contains("cluster_comm_ingress_stream_count 2")
    );
    left.stop().await;
    right.stop().await;
}

#[tokio::test]
async fn each_transaction_is_answered_once_answers_are_promised() {
    let (left, mut right) = pair(Setup::new(0), Setup::new(1)).await;
    let good = Bytes::from_static(&[0x0a, 1, b'x']);
    let submit = |validated_at, envelope: &Bytes| {
        let (transport, envelope) = (left.transport.clone(), envelope.clone());
        async move {
            transport
                .submit("fixture", 2, validated_at, &envelope)
                .await
        }
    };
    assert!(!left.transport.checks("fixture", 2));
    let promised = async {
        while !left.transport.checks("fixture", 2) {
            assert_eq!(submit(Some(3), &good).await, Ok(()));
            right.next().await;
        }
    };
    timeout(PATIENCE, promised).await.unwrap();
    // Many at a time, bad ones among them: none is answered with what is another's.
    let calls = (0..300).map(|number| {
        let envelope = match number % 3 {
            0 => Bytes::new(),
            _ => good.clone(),
        };
        let call = submit(None, &envelope);
        async move { (number, call.await) }
    });
    for (number, outcome) in futures::future::join_all(calls).await {
        match (number % 3, outcome) {
            (0, Err(ForwardError::Refused(refusal))) => assert_eq!(refusal.info, "empty"),
            (1 | 2, Ok(())) => {}
            (_, other) => panic!("{number}: {other:?}"),
        }
    }
    assert!(left.transport.checks("fixture", 2));
    right.stop().await;
    let ended = async {
        while left.transport.checks("fixture", 2) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, ended).await.unwrap();
    assert!(submit(None, &good).await.is_err());
    left.stop().await;
}

#[tokio::test]
async fn nothing_unchecked_goes_to_an_orderer_that_does_not_answer() {
    let mut right = Setup::new(1);
    right.silent = true;
    let (left, mut right) = pair(Setup::new(0), right).await;
    let envelope = Bytes::from_static(&[0x0a, 1, b'x']);
    for _ in 0..20 {
        let sent = left
            .transport
            .submit("fixture", 2, Some(3), &envelope)
            .await;
        assert_eq!(sent, Ok(()));
        right.next().await;
    }
    assert!(!left.transport.checks("fixture", 2));
    let refused = left.transport.submit("fixture", 2, None, &envelope).await;
    assert_eq!(refused, Err(ForwardError::Unchecked));
    assert!(right.got.try_recv().is_err());
    left.stop().await;
    right.stop().await;
}

#[tokio::test]
async fn channels_share_a_connection_and_forgotten_ones_end() {
    let (left, mut right) = pair(Setup::new(0), Setup::new(1)).await;
    let members = members([left.address, right.address, nowhere()]);
    for index in 0..200 {
        let channel = format!("channel{index}");
        left.transport.configure(&channel, &members);
        right.transport.configure(&channel, &members);
        left.transport.send(&channel, 2, &raft("x"), &Bytes::new());
    }
    for _ in 0..200 {
        right.next().await;
    }
    assert!(
        left.metrics
            .render()
            .contains("cluster_comm_egress_tls_connection_count 1")
    );
    for index in 0..200 {
        left.transport.remove(&format!("channel{index}"));
    }
    left.transport.configure("fixture", &[]);
    let gone = async {
        while !right
            .metrics
            .render()
            .contains("cluster_comm_ingress_stream_count 0")
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, gone).await.unwrap();
    // Nobody needs the connection any more.
    let closed = async {
        while !left
            .metrics
            .render()
            .contains("cluster_comm_egress_tls_connection_count 0")
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, closed).await.unwrap();
    assert_eq!(
        left.transport
            .send("channel7", 2, &raft("x"), &Bytes::new()),
        Sent::Lost
    );
}

#[tokio::test]
async fn a_thousand_idle_channels_are_entries_in_a_table() {
    let (left, right) = (Setup::new(0).start().await, Setup::new(1).start().await);
    let before = left.tasks.running();
    let members = members([left.address, right.address, nowhere()]);
    for index in 0..1000 {
        left.transport
            .configure(&format!("channel{index}"), &members);
    }
    assert_eq!(left.tasks.running(), before);
    assert_eq!(left.transport.core.connections.lock().unwrap().len(), 3);
    // A peer that is away costs one attempt for all of them, and a pause.
    let envelope = RawEnvelope::decode(Bytes::new()).unwrap();
    assert!(
        left.transport
            .submit("channel0", 3, Some(0), envelope.encoded())
            .await
            .is_err()
    );
    for index in 0..1000 {
        let channel = format!("channel{index}");
        left.transport.send(&channel, 3, &raft("x"), &Bytes::new());
    }
    let settled = async {
        while left.tasks.running().len() > before.len() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, settled).await.unwrap();
}

#[tokio::test]
async fn a_consenter_that_babbles_after_the_handshake_is_dropped() {
    // As a server: its certificate is right, and nothing else.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let tasks = Tasks::new("babbler");
    tasks.spawn("babble", async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let acceptor = tokio_rustls::TlsAcceptor::from(server_tls(orderer(1)).config());
            if let Ok(mut tls) = acceptor.accept(tcp).await {
                let _ = tls.write_all(&[0xff; 100_000]).await;
                let _ = tls.read(&mut [0; 64]).await;
            }
        }
    });
    let mut left = Setup::new(0).start().await;
    let members = members([left.address, address, nowhere()]);
    left.transport.configure("fixture", &members);
    let lost = async {
        while left.transport.send("fixture", 2, &raft("x"), &Bytes::new()) != Sent::Lost {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, lost).await.unwrap();
    // As a client.
    let tcp = TcpStream::connect(left.address).await.unwrap();
    let (config, _) = client_tls(Some(orderer(1))).begin(&[]);
    let name = rustls_pki_types::ServerName::try_from("localhost").unwrap();
    let connector = tokio_rustls::TlsConnector::from(config);
    let mut tls = connector.connect(name, tcp).await.unwrap();
    let _ = tls.write_all(&[0xff; 100_000]).await;
    let ended = async { while let Ok(1..) = tls.read(&mut [0; 4096]).await {} };
    timeout(PATIENCE, ended).await.unwrap();
    // Others are served.
    let request = wire::consensus("fixture", &raft("served"), &Bytes::new());
    let call = step(left.address, Some(orderer(1)), vec![request]);
    tokio::select! {
        ended = call => panic!("{ended:?}"),
        got = left.next() => assert!(matches!(got, Got::Consensus(_, 2, ..))),
    }
}

/// Opens a stream as `caller`, sends `requests`, and gives the stream's end: `None` while it stays open.
async fn step(
    address: SocketAddr,
    caller: Option<Credentials>,
    requests: Vec<Bytes>,
) -> Result<Option<Bytes>, tonic::Status> {
    let tasks = Tasks::new("caller");
    let tls = client_tls(caller);
    let destination = Destination::parse(&address.to_string()).unwrap();
    let (link, driver) = dial(&destination, Some(&tls), &tasks).await.unwrap();
    tasks.spawn("driver", async move {
        let _ = driver.await;
    });
    let requests = stream::iter(requests);
    let open = futures::StreamExt::chain(requests, stream::pending());
    let mut grpc = link.grpc(1 << 20);
    grpc.ready().await.unwrap();
    let path = PathAndQuery::from_static("/orderer.Cluster/Step");
    let answers = grpc
        .streaming(tonic::Request::new(open), path, RawCodec)
        .await?;
    answers.into_inner().message().await
}

#[tokio::test]
async fn wrong_callers_and_requests_get_the_recorded_answers() {
    let mut setup = Setup::new(0);
    setup.server.client_auth = ClientAuth::Requested;
    let mut node = setup.start().await;
    let everywhere = [nowhere(); 3];
    node.transport.configure("fixture", &members(everywhere));
    let cases: Value = serde_json::from_slice(&file("raftpb/step-errors.json")).unwrap();
    let mut seen = 0;
    for case in cases.as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        // What these say is decided behind the transport.
        if ["garbage-message", "submit-no-leader"].contains(&name) {
            continue;
        }
        let request = match case["request"].as_str() {
            Some(text) => hex::decode(text).unwrap(),
            None => file(&format!(
                "raftpb/{}",
                case["request_file"].as_str().unwrap()
            )),
        };
        let caller = match name {
            "no-client-cert" => None,
            "not-a-consenter" => Some(orderer(4)),
            "admin-cert" => Some(folder(
                "ordererOrganizations/orderer.test/users/Admin@orderer.test/tls",
                "client",
            )),
            "renewed-cert" => Some(folder("special/orderer1-tls-renewed-same-key", "server")),
            _ => Some(orderer(1)),
        };
        let call = step(node.address, caller, vec![Bytes::from(request)]);
        let result = case["result"].as_str().unwrap();
        let closed = result.strip_prefix("closed with gRPC status ");
        seen += 1;
        match closed {
            Some(expected) => {
                let status = timeout(PATIENCE, call).await.unwrap().unwrap_err();
                let number = status.code() as i32;
                let label = format!("{:?}", status.code());
                let got = format!("{number} {label}: {}", status.message());
                assert_eq!(got, expected, "{name}");
            }
            None => {
                tokio::select! {
                    ended = call => panic!("{name}: {ended:?}"),
                    got = node.next() => match got {
                        Got::Consensus(channel, from, ..) | Got::Submit(channel, from, ..) => {
                            assert_eq!((channel.as_str(), from), ("fixture", 2), "{name}");
                        }
                    },
                }
            }
        }
    }
    assert_eq!(seen, cases.as_array().unwrap().len() - 2);
    node.stop().await;
}

#[tokio::test]
async fn strangers_may_not_send_much() {
    let node = Setup::new(0).start().await;
    node.transport
        .configure("fixture", &members([nowhere(); 3]));
    let long = wire::consensus("fixture", &Bytes::from(vec![7; 100_000]), &Bytes::new());
    let call = step(node.address, Some(orderer(4)), vec![long]);
    let status = timeout(PATIENCE, call).await.unwrap().unwrap_err();
    assert_eq!(status.code(), tonic::Code::OutOfRange, "{status}");
}

#[tokio::test]
async fn an_orderer_that_comes_back_is_found_again() {
    let (left, mut right) = pair(Setup::new(0), Setup::new(1)).await;
    insist(&left, 2, &raft("before")).await;
    assert!(matches!(right.next().await, Got::Consensus(_, 1, payload, _) if payload == "before"));
    let members = members([left.address, right.address, nowhere()]);
    let address = right.address.to_string();
    right.stop().await;
    // Raft hears that it is gone.
    let noticed = async {
        while left
            .transport
            .send("fixture", 2, &raft("lost"), &Bytes::new())
            != Sent::Lost
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, noticed).await.unwrap();
    let mut setup = Setup::new(1);
    setup.address = address;
    let mut right = setup.start().await;
    right.transport.configure("fixture", &members);
    let back = async {
        loop {
            left.transport
                .send("fixture", 2, &raft("after"), &Bytes::new());
            match right.got.try_recv() {
                Ok(Got::Consensus(_, 1, payload, _)) if payload == "after" => break,
                _ => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    timeout(PATIENCE, back).await.unwrap();
}

#[tokio::test]
async fn a_full_queue_gives_the_stream_up() {
    // Accepts, and never says a word.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut setup = Setup::new(0);
    setup.options.send_buffer_size = 5;
    let left = setup.start().await;
    let members = members([left.address, silent.local_addr().unwrap(), nowhere()]);
    left.transport.configure("fixture", &members);
    let send = || left.transport.send("fixture", 2, &raft("x"), &Bytes::new());
    for _ in 0..5 {
        assert_eq!(send(), Sent::Queued);
    }
    assert_eq!(send(), Sent::Lost);
    let text = left.metrics.render();
    let dropped = format!(
        "cluster_comm_msg_dropped_count{{channel=\"fixture\",host=\"{}\"}} 1",
        silent.local_addr().unwrap()
    );
    assert!(text.contains(&dropped), "{text}");
    // A new stream has an empty queue.
    assert_eq!(send(), Sent::Queued);
}

#[tokio::test]
async fn a_silent_and_a_babbling_server_cost_their_own_messages_only() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let babbling = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addresses = (silent.local_addr().unwrap(), babbling.local_addr().unwrap());
    let tasks = Tasks::new("babbler");
    tasks.spawn("babble", async move {
        while let Ok((mut tcp, _)) = babbling.accept().await {
            let _ = tcp.write_all(&[0xff; 4096]).await;
        }
    });
    let mut setup = Setup::new(0);
    setup.options.dial_timeout = Duration::from_millis(100);
    let left = setup.start().await;
    let members = members([left.address, addresses.0, addresses.1]);
    left.transport.configure("fixture", &members);
    let envelope = RawEnvelope::decode(Bytes::new()).unwrap();
    let failed = left
        .transport
        .submit("fixture", 2, Some(0), envelope.encoded())
        .await;
    assert_eq!(
        failed.unwrap_err().to_string(),
        "no connection within 100ms"
    );
    let failed = left
        .transport
        .submit("fixture", 3, Some(0), envelope.encoded())
        .await;
    assert!(
        failed
            .unwrap_err()
            .to_string()
            .starts_with("authentication handshake failed")
    );
    assert_eq!(
        left.transport
            .submit("fixture", 9, Some(0), envelope.encoded())
            .await
            .unwrap_err()
            .to_string(),
        "node 9 doesn't exist in channel fixture's membership"
    );
    assert_eq!(
        left.transport
            .submit("nowhere", 1, Some(0), envelope.encoded())
            .await
            .unwrap_err()
            .to_string(),
        "channel nowhere doesn't exist"
    );
}

#[tokio::test]
async fn who_takes_nothing_is_given_up_and_others_are_served() {
    let (mut left, mut right) = (Setup::new(0), Setup::new(1));
    left.options.rpc_timeout = Duration::from_millis(200);
    left.options.send_buffer_size = 2;
    right.stuck = true;
    let (left, mut right) = pair(left, right).await;
    let large = quorate_fabric::proto::common::Envelope {
        payload: Bytes::from(vec![7; 1 << 20]),
        signature: Bytes::new(),
    };
    let large = prost::Message::encode_to_vec(&large);
    let large = RawEnvelope::decode(large.into()).unwrap();
    let mut refused = None;
    for _ in 0..64 {
        if let Err(error) = left
            .transport
            .submit("fixture", 2, Some(0), large.encoded())
            .await
        {
            refused = Some(error.to_string());
            break;
        }
    }
    let refused = refused.unwrap();
    assert!(
        refused == "timed out (200ms) waiting on forwarding to 2"
            || refused == "rpc timeout expired",
        "{refused}"
    );
    // Consensus messages have a stream of their own.
    insist(&left, 2, &raft("alive")).await;
    let found = async {
        loop {
            if matches!(right.next().await, Got::Consensus(_, 1, payload, _) if payload == "alive")
            {
                break;
            }
        }
    };
    timeout(PATIENCE, found).await.unwrap();
}

#[tokio::test]
async fn expired_certificates_count_when_the_clocks_are_set_back() {
    let expired = folder("special/orderer4-tls-expired", "server");
    let certificate = Bytes::from(file("crypto/special/orderer4-tls-expired/server.crt"));
    for (shift, meets) in [(0, false), (51 * 60 + 30, true)] {
        let clock = shifted(now(), Duration::from_secs(shift));
        let (mut left, mut right) = (Setup::new(0), Setup::new(4));
        left.client.clock = clock.clone();
        right.server.clock = clock;
        right.server.credentials = expired.clone();
        let (left, mut right) = (left.start().await, right.start().await);
        let mut members = members([left.address, nowhere(), nowhere()]);
        members.push(Member {
            client_cert: certificate.clone(),
            server_cert: certificate.clone(),
            ..member(4, right.address)
        });
        left.transport.configure("fixture", &members);
        right.transport.configure("fixture", &members);
        let envelope = RawEnvelope::decode(Bytes::new()).unwrap();
        let submitted = left
            .transport
            .submit("fixture", 5, Some(3), envelope.encoded())
            .await;
        if meets {
            assert_eq!(submitted, Ok(()));
            assert!(matches!(right.next().await, Got::Submit(_, 1, 3, _)));
        } else {
            let text = submitted.unwrap_err().to_string();
            assert!(text.contains("x509: certificate has expired"), "{text}");
        }
    }
}

#[tokio::test]
async fn a_certificate_that_is_not_valid_yet_is_waited_for() {
    let time = Arc::new(std::sync::atomic::AtomicI64::new(NOW - 24 * 3600));
    let (mut left, right) = (Setup::new(0), Setup::new(1));
    let source = time.clone();
    left.client.clock =
        Arc::new(move || UnixTime(source.load(std::sync::atomic::Ordering::Relaxed)));
    let (left, mut right) = pair(left, right).await;
    let envelope = RawEnvelope::decode(Bytes::new()).unwrap();
    for _ in 0..20 {
        let refused = left
            .transport
            .submit("fixture", 2, Some(0), envelope.encoded())
            .await;
        let text = refused.unwrap_err().to_string();
        assert!(text.contains("not yet valid"), "{text}");
    }
    time.store(NOW, std::sync::atomic::Ordering::Relaxed);
    insist(&left, 2, &raft("at last")).await;
    assert!(matches!(right.next().await, Got::Consensus(_, 1, ..)));
}

#[tokio::test]
async fn a_new_root_counts_without_a_restart() {
    let (left, right) = (Setup::new(0), Setup::new(1));
    let known = right.server.roots.clone();
    let org1 = file("crypto/peerOrganizations/org1.test/msp/tlscacerts/tlsca.org1.test-cert.pem");
    known.replace([org1.as_slice()]).unwrap();
    let (left, mut right) = pair(left, right).await;
    let envelope = RawEnvelope::decode(Bytes::new()).unwrap();
    let refused = async {
        // In TLS 1.3 the refusal comes after the first message may have left.
        while left
            .transport
            .submit("fixture", 2, Some(0), envelope.encoded())
            .await
            .is_ok()
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, refused).await.unwrap();
    let orderers =
        file("crypto/ordererOrganizations/orderer.test/msp/tlscacerts/tlsca.orderer.test-cert.pem");
    known.replace([org1.as_slice(), &orderers]).unwrap();
    let met = async {
        loop {
            left.transport
                .send("fixture", 2, &raft("new"), &Bytes::new());
            match right.got.try_recv() {
                Ok(_) => break,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    timeout(PATIENCE, met).await.unwrap();
}

#[tokio::test]
async fn a_server_with_another_key_is_not_talked_to() {
    let (left, right) = (Setup::new(0).start().await, Setup::new(2).start().await);
    left.transport.configure(
        "fixture",
        &members([left.address, right.address, nowhere()]),
    );
    let envelope = RawEnvelope::decode(Bytes::new()).unwrap();
    let refused = left
        .transport
        .submit("fixture", 2, Some(0), envelope.encoded())
        .await;
    let text = refused.unwrap_err().to_string();
    assert!(text.contains("doesn't match"), "{text}");
}

/// orderer0 at one address and orderer2 at another, which has been given another certificate or not.
fn rotation(left: SocketAddr, right: SocketAddr, rotated: bool) -> Vec<Member> {
    let mut members = vec![member(0, left), member(2, right)];
    if rotated {
        let new = Bytes::from(file("crypto/special/orderer2-tls-new-key/server.crt"));
        members[1].client_cert = new.clone();
        members[1].server_cert = new;
    }
    members
}

#[tokio::test]
async fn a_rotated_consenter_is_known_by_both_keys_until_it_shows_the_new_one() {
    let (left, mut right) = (Setup::new(0).start().await, Setup::new(2).start().await);
    let as_before = rotation(left.address, right.address, false);
    right.transport.configure("fixture", &as_before);
    left.transport.configure("fixture", &as_before);
    let rotated = rotation(left.address, right.address, true);
    left.transport.configure("fixture", &rotated);

    // Neither has been started again: it shows its former certificate, as server and as client.
    insist(&left, 3, &raft("to it")).await;
    let arrived = Got::Consensus("fixture".to_owned(), 1, raft("to it"), Bytes::new());
    assert_eq!(right.next().await, arrived);
    let request = || {
        vec![super::wire::consensus(
            "fixture",
            &raft("from it"),
            &Bytes::new(),
        )]
    };
    let new = || folder("special/orderer2-tls-new-key", "server");
    let mut left = left;
    for (caller, from) in [(orderer(2), 3), (new(), 3)] {
        let call = step(left.address, Some(caller), request());
        tokio::select! {
            ended = call => panic!("{ended:?}"),
            got = left.next() => {
                assert_eq!(got, Got::Consensus("fixture".to_owned(), from, raft("from it"), Bytes::new()));
            }
        }
    }

    // It has shown the new one, and the former one is a stranger's now.
    let refused = step(left.address, Some(orderer(2)), request()).await;
    let text = refused.unwrap_err().message().to_owned();
    assert!(text.contains("isn't authorized"), "{text}");
    let envelope = RawEnvelope::decode(Bytes::new()).unwrap();
    let refused = left
        .transport
        .submit("fixture", 3, Some(0), envelope.encoded())
        .await;
    let text = refused.unwrap_err().to_string();
    assert!(text.contains("doesn't match"), "{text}");
    // Also after the channel's next configuration.
    left.transport.configure("fixture", &rotated);
    let refused = step(left.address, Some(orderer(2)), request()).await;
    assert!(refused.is_err());
}

#[tokio::test]
async fn the_former_key_of_a_rotated_consenter_is_not_good_for_ever() {
    let node = Transport::new(
        TransportOptions::default(),
        None,
        Clock::system(),
        Entropy::seeded(1),
        &OrdererMetrics::new(&Metrics::new(), false),
        &Tasks::new("node"),
    );
    let former = public_key(&file(&format!("crypto/{}/server.crt", tls_folder(2)))).unwrap();
    let new = public_key(&file("crypto/special/orderer2-tls-new-key/server.crt")).unwrap();
    let begin = Instant::now();
    let configure = |rotated, after| {
        let members = rotation(nowhere(), nowhere(), rotated);
        node.configure_at("fixture", &members, begin + after);
    };
    let caller = |key: &[u8], after| node.core.caller_at("fixture", Some(key), begin + after);
    configure(false, Duration::ZERO);
    // Said a second time it is nothing new, and the time does not begin anew.
    for after in [Duration::ZERO, ROTATION_OVERLAP * 2 / 3] {
        configure(true, after);
        assert_eq!(caller(&former, after), Ok(3));
    }
    assert!(caller(&former, ROTATION_OVERLAP).is_err());
    assert_eq!(caller(&new, ROTATION_OVERLAP), Ok(3));
    assert!(caller(&former, Duration::ZERO).is_err());
}

#[tokio::test]
async fn garbage_and_silence_on_the_cluster_port_disturb_nobody() {
    let (left, mut right) = pair(Setup::new(0), Setup::new(1)).await;
    let mut silent = Vec::new();
    for index in 0..50u8 {
        let mut tcp = TcpStream::connect(right.address).await.unwrap();
        match index % 3 {
            0 => silent.push(tcp),
            1 => drop(tcp),
            _ => {
                let _ = tcp.write_all(&[index; 2048]).await;
                let _ = tcp.read(&mut [0; 64]).await;
            }
        }
    }
    insist(&left, 2, &raft("served")).await;
    assert!(matches!(right.next().await, Got::Consensus(_, 1, payload, _) if payload == "served"));
}
