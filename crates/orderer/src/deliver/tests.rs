//! Deliver against what Fabric's orderer answered, and where clients come and go.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use bytes::Bytes;
use futures::{FutureExt, stream};
use prost::Message;
use quorate_fabric::block as rules;
use quorate_fabric::envelope::{ChannelHeader, EnvelopeParts};
use quorate_fabric::proto::common::{Block, Envelope, Header, Payload};
use quorate_fabric::proto::orderer::seek_position::Type;
use quorate_fabric::proto::orderer::{
    SeekNewest, SeekNextCommit, SeekOldest, SeekPosition, SeekSpecified,
};
use quorate_identity::mutual_tls::CertificateFacts;
use quorate_identity::x509::Certificate;
use quorate_runtime::metrics::Metrics;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::*;
use crate::grpc::Position;
use crate::listener::{Peer, PeerCertificate};
use crate::metrics::OrdererMetrics;
use crate::store::Ledgers;

/// How long a test waits for what must come, before it fails.
const PATIENCE: Duration = Duration::from_secs(20);

fn fixture(path: &str) -> PathBuf {
    Path::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../fixtures/fabric"
    ))
    .join(path)
}

fn read(path: &str) -> Bytes {
    fs::read(fixture(path)).unwrap().into()
}

/// A channel whose blocks, but for the first, say nothing.
struct FakeChannel {
    config: Mutex<Arc<ChannelConfig>>,
    store: BlockStore,
    outage: watch::Sender<bool>,
}

impl FakeChannel {
    fn set_config(&self, config: ChannelConfig) {
        *self.config.lock().unwrap() = Arc::new(config);
    }

    fn grow(&self, height: u64) {
        while self.store.height() < height {
            let newest = self.store.newest().unwrap();
            let number = newest.number() + 1;
            let envelope = Bytes::from(format!("envelope of block {number}"));
            let block = rules::new_block(number, newest.header_hash(), vec![envelope]);
            self.store
                .append(&StoredBlock::new(&block).unwrap())
                .unwrap();
        }
    }
}

impl Channel for FakeChannel {
    fn config(&self) -> Arc<ChannelConfig> {
        self.config.lock().unwrap().clone()
    }

    fn store(&self) -> &BlockStore {
        &self.store
    }

    fn outage(&self) -> watch::Receiver<bool> {
        self.outage.subscribe()
    }
}

#[derive(Default)]
struct Fakes(BTreeMap<String, Arc<FakeChannel>>);

impl Channels for Fakes {
    fn channel(&self, id: &str) -> Option<Arc<dyn Channel>> {
        let channel = self.0.get(id)?.clone();
        Some(channel)
    }
}

/// An ordering node with channels made from genesis blocks.
struct Node {
    channels: Arc<Fakes>,
    ledgers: Ledgers,
    _folder: TempDir,
}

impl Node {
    fn new(genesis: &[(&str, &str)]) -> Self {
        Self::with_files_of(64 << 20, genesis)
    }

    fn with_files_of(bytes: u64, genesis: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ledgers = Ledgers::open_with(folder.path(), bytes, None).unwrap();
        let mut channels = Fakes::default();
        for (id, path) in genesis {
            let block = Block::decode(read(path)).unwrap();
            let store = ledgers.get_or_create(id).unwrap();
            store.append(&StoredBlock::new(&block).unwrap()).unwrap();
            let channel = FakeChannel {
                config: Mutex::new(Arc::new(ChannelConfig::from_block(&block).unwrap())),
                store,
                outage: watch::Sender::new(false),
            };
            channels.0.insert((*id).to_owned(), Arc::new(channel));
        }
        Self {
            channels: Arc::new(channels),
            ledgers,
            _folder: folder,
        }
    }

    fn channel(&self, id: &str) -> &FakeChannel {
        &self.channels.0[id]
    }

    fn call(&self, options: DeliverOptions, clock: Clock, certificate: Option<&str>) -> Talk {
        self.call_counted(options, clock, certificate, &Metrics::new())
    }

    fn call_counted(
        &self,
        options: DeliverOptions,
        clock: Clock,
        certificate: Option<&str>,
        metrics: &Metrics,
    ) -> Talk {
        let service = DeliverService::new(
            self.channels.clone(),
            options,
            clock,
            &OrdererMetrics::new(metrics, false).deliver,
        );
        let certificate = certificate.map(|path| {
            let der = Certificate::from_pem(&read(path)).unwrap();
            Arc::new(PeerCertificate {
                der: Bytes::copy_from_slice(der.der()),
                facts: CertificateFacts::read(der.der()).unwrap(),
            })
        });
        let caller = Peer {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 7000)),
            certificate,
        };
        let (requests, incoming) = mpsc::unbounded_channel();
        let incoming = UnboundedReceiverStream::new(incoming).boxed();
        Talk {
            requests: Some(requests),
            responses: service.deliver(caller, incoming),
        }
    }
}

/// One call, from the client's side.
struct Talk {
    requests: Option<mpsc::UnboundedSender<Result<RawEnvelope, tonic::Status>>>,
    responses: Responses<DeliverResponse>,
}

#[derive(Debug, PartialEq, Eq)]
enum Heard {
    Block(u64),
    Status(i32),
    /// Nothing more comes for now.
    Silence,
    End,
}

impl Talk {
    fn say(&self, envelope: RawEnvelope) {
        self.requests.as_ref().unwrap().send(Ok(envelope)).unwrap();
    }

    async fn hear(&mut self) -> Heard {
        let next = tokio::time::timeout(PATIENCE, self.responses.next()).await;
        match next.expect("nothing was heard") {
            Some(Ok(DeliverResponse::Block(block))) => {
                Heard::Block(StoredBlock::decode(block).unwrap().number())
            }
            Some(Ok(DeliverResponse::Status(status))) => Heard::Status(status.into()),
            Some(Err(status)) => panic!("{status}"),
            None => Heard::End,
        }
    }

    /// What can be heard at once. Good only where all blocks are recent ones, in memory.
    fn now(&mut self) -> Heard {
        self.hear().now_or_never().unwrap_or(Heard::Silence)
    }

    /// That the call is open but silent, and ends when the client has nothing more to ask.
    async fn finish(mut self) {
        assert_eq!(self.now(), Heard::Silence);
        self.requests = None;
        assert_eq!(self.hear().await, Heard::End);
    }
}

fn options() -> DeliverOptions {
    DeliverOptions {
        time_window: Duration::from_secs(15 * 60),
        no_expiration_checks: false,
        tls_binding: false,
    }
}

fn channel_header(envelope: &Bytes) -> Option<ChannelHeader> {
    let envelope = RawEnvelope::decode(envelope.clone()).ok()?;
    Some(EnvelopeParts::parse(&envelope).ok()?.channel_header)
}

/// When a request was made, in microseconds since the epoch.
fn made_at(envelope: &Bytes) -> Option<i64> {
    let timestamp = channel_header(envelope)?.timestamp?;
    Some(timestamp.seconds * 1_000_000)
}

/// The answers recorded from Fabric, in their order: each request is judged at the time at which it was made.
#[tokio::test]
async fn recorded_requests_get_the_recorded_answers() {
    let recorded: serde_json::Value =
        serde_json::from_slice(&read("statuses/statuses.json")).unwrap();
    let mut nodes = BTreeMap::from([
        (
            "single",
            Node::new(&[
                ("fixture1", "genesis/fixture1.block"),
                ("fixturecrl", "genesis/fixturecrl.block"),
            ]),
        ),
        ("follower", Node::new(&[])),
        ("three", Node::new(&[("fixture", "genesis/fixture.block")])),
        (
            "no-leader",
            Node::new(&[("fixture", "genesis/fixture.block")]),
        ),
        (
            "system-channel",
            Node::new(&[
                ("syschannel", "genesis/syschannel.block"),
                (
                    "fixturetx",
                    "statuses/system-channel/fixturetx-genesis.block",
                ),
            ]),
        ),
    ]);
    nodes.insert(
        "mutual-tls",
        Node::new(&[("fixture1", "genesis/fixture1.block")]),
    );

    let mut now = 0;
    let mut failures = Vec::new();
    for case in recorded["deliver"].as_array().unwrap() {
        let text = |key: &str| case[key].as_str().unwrap_or_default();
        let name = text("name");
        // The first needs gRPC and the second TLS to fail; they are tested there.
        if ["malformed-envelope", "mtls-no-client-cert"].contains(&name) {
            continue;
        }
        let requests: Vec<Bytes> = case["requests"]
            .as_array()
            .unwrap()
            .iter()
            .map(|path| read(&format!("statuses/{}", path.as_str().unwrap())))
            .collect();
        if !name.starts_with("timestamp-")
            && let Some(made) = made_at(&requests[0])
        {
            now = made;
        }

        let setup = text("setup");
        let node = &nodes[setup];
        let channel = node.channels.0.get(text("channel"));
        let height = case["height_before"].as_u64().unwrap_or_default();
        if let Some(channel) = channel {
            channel.grow(height);
            channel.outage.send_replace(name.starts_with("no-leader-"));
        }
        let mutual = setup == "mutual-tls";
        let mut talk = node.call(
            DeliverOptions {
                tls_binding: mutual,
                ..options()
            },
            Clock::manual(now).0,
            mutual.then_some(
                "crypto/ordererOrganizations/orderer.test/users/Admin@orderer.test/tls/client.crt",
            ),
        );
        for request in requests {
            talk.say(RawEnvelope::decode(request).unwrap());
        }

        let blocks = case["blocks"].as_array().unwrap();
        let blocks: Vec<u64> = blocks.iter().map(|n| n.as_u64().unwrap()).collect();
        let mut statuses = case["statuses"].as_array().unwrap().iter();
        let mut expected: Vec<Heard> = Vec::new();
        // Two requests on one stream: one block, then two.
        for (at, block) in blocks.iter().enumerate() {
            if name == "two-seeks" && at == 1 {
                expected.push(Heard::Status(200));
                statuses.next();
            }
            expected.push(Heard::Block(*block));
        }
        expected.extend(statuses.map(|status| {
            Heard::Status(i32::try_from(status["status"].as_i64().unwrap()).unwrap())
        }));

        let mut heard = Vec::new();
        for expected in &expected {
            match (name, expected, channel) {
                (_, Heard::Block(number), Some(channel)) if *number >= height => {
                    assert_eq!(talk.now(), Heard::Silence, "{name}");
                    channel.grow(number + 1);
                }
                ("access-withdrawn", Heard::Status(_), Some(channel)) => {
                    assert_eq!(talk.now(), Heard::Silence, "{name}");
                    let update = read("statuses/requests/d-access-withdrawn-config-update.pb");
                    let update = RawEnvelope::decode(update).unwrap();
                    let current = channel.config();
                    let next = current
                        .propose_update(&update)
                        .unwrap()
                        .envelope
                        .config
                        .unwrap();
                    channel.set_config(ChannelConfig::new("fixturecrl", next).unwrap());
                    channel.grow(height + 1);
                }
                ("leader-lost-while-waiting", Heard::Status(_), Some(channel)) => {
                    assert_eq!(talk.now(), Heard::Silence, "{name}");
                    channel.outage.send_replace(true);
                }
                _ => {}
            }
            heard.push(talk.hear().await);
            if heard.last() != Some(expected) {
                break;
            }
        }
        if heard != expected {
            failures.push(format!("{name}: expected {expected:?}, heard {heard:?}"));
            continue;
        }
        match text("stream_after") {
            "open" => talk.finish().await,
            "open, waiting" => assert_eq!(talk.now(), Heard::Silence, "{name}"),
            "closed with gRPC status OK" => assert_eq!(talk.hear().await, Heard::End, "{name}"),
            other => panic!("{name}: {other}"),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[tokio::test]
async fn during_maintenance_only_the_orderers_readers_read() {
    let recorded: serde_json::Value =
        serde_json::from_slice(&read("config-updates/maintenance.json")).unwrap();
    let node = Node::new(&[("fixture", "genesis/fixture.block")]);
    let block = Block::decode(read("config-updates/11-maintenance-on.block")).unwrap();
    let channel = node.channel("fixture");
    channel.set_config(ChannelConfig::from_block(&block).unwrap());
    let mut seen = 0;
    for (signer, status) in [("orderer-admin", 200), ("org1-user1", 403)] {
        let path = format!("config-updates/maintenance-deliver-by-{signer}.pb");
        assert!(
            recorded
                .to_string()
                .contains(&format!("maintenance-deliver-by-{signer}"))
        );
        let request = read(&path);
        channel.grow(40);
        let mut talk = node.call(options(), Clock::manual(made_at(&request).unwrap()).0, None);
        talk.say(RawEnvelope::decode(request).unwrap());
        let answer = loop {
            match talk.now() {
                Heard::Block(_) => {}
                other => break other,
            }
        };
        assert_eq!(answer, Heard::Status(status), "{signer}");
        seen += 1;
    }
    assert_eq!(seen, 2);
}

/// A recorded request: 0 to 2^64-1, as peers ask, with its time.
fn follow_from_zero() -> (RawEnvelope, i64) {
    let request = read("statuses/requests/d-leader-lost-while-waiting.pb");
    let made = made_at(&request).unwrap();
    (RawEnvelope::decode(request).unwrap(), made)
}

#[tokio::test]
async fn an_identity_that_expires_reads_no_more() {
    let node = Node::new(&[("fixture", "genesis/fixture.block")]);
    let (request, made) = follow_from_zero();
    let (clock, time) = Clock::manual(made);
    let mut talk = node.call(options(), clock, None);
    talk.say(request.clone());
    assert_eq!(talk.hear().await, Heard::Block(0));
    // The last second of the certificate still counts, the next moment does not.
    let expires = certificate_of(&request).not_after().0 * 1_000_000;
    time.set_wall_micros(expires);
    node.channel("fixture").grow(2);
    assert_eq!(talk.hear().await, Heard::Block(1));
    time.set_wall_micros(expires + 1);
    assert_eq!(talk.now(), Heard::Silence);
    node.channel("fixture").grow(3);
    assert_eq!(talk.hear().await, Heard::Status(403));
    assert_eq!(talk.hear().await, Heard::End);

    // Unless nobody is to ask.
    let lenient = DeliverOptions {
        no_expiration_checks: true,
        time_window: Duration::from_secs(200_000 * 3600),
        ..options()
    };
    let mut talk = node.call(lenient, Clock::manual(expires + 1).0, None);
    talk.say(request);
    assert_eq!(talk.hear().await, Heard::Block(0));
}

fn certificate_of(envelope: &RawEnvelope) -> Certificate {
    let creator = EnvelopeParts::parse(envelope)
        .unwrap()
        .signature_header()
        .unwrap()
        .creator;
    let identity = quorate_fabric::proto::msp::SerializedIdentity::decode(creator).unwrap();
    Certificate::from_pem(&identity.id_bytes).unwrap()
}

#[tokio::test]
async fn a_channel_that_goes_ends_its_streams() {
    let node = Node::new(&[
        ("fixture", "genesis/fixture.block"),
        ("fixture1", "genesis/fixture1.block"),
    ]);
    let (request, made) = follow_from_zero();
    let mut talk = node.call(options(), Clock::manual(made).0, None);
    talk.say(request);
    assert_eq!(talk.hear().await, Heard::Block(0));
    assert_eq!(talk.now(), Heard::Silence);
    node.ledgers.remove("fixture").unwrap();
    assert_eq!(talk.hear().await, Heard::Status(503));
    assert_eq!(talk.hear().await, Heard::End);
}

#[tokio::test]
async fn old_blocks_come_from_the_disk_and_everything_is_counted() {
    let node = Node::new(&[("fixture", "genesis/fixture.block")]);
    let channel = node.channel("fixture");
    channel.grow(600);
    assert!(channel.store.read_recent(0).is_none());
    let (request, made) = follow_from_zero();
    let metrics = Metrics::new();
    let mut talk = node.call_counted(options(), Clock::manual(made).0, None, &metrics);
    talk.say(request);
    for number in 0..600 {
        assert_eq!(talk.hear().await, Heard::Block(number));
    }
    assert_eq!(talk.now(), Heard::Silence);
    // The client goes away while it waits.
    drop(talk);
    let text = metrics.render();
    for line in [
        "deliver_streams_opened 1",
        "deliver_streams_closed 1",
        r#"deliver_requests_received{channel="fixture",data_type="block",filtered="false"} 1"#,
        r#"deliver_requests_completed{channel="fixture",data_type="block",filtered="false",success="false"} 1"#,
        r#"deliver_blocks_sent{channel="fixture",data_type="block",filtered="false"} 600"#,
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

#[tokio::test]
async fn pruned_blocks_are_not_found_and_the_oldest_is_the_first_that_is_there() {
    let user = "crypto/peerOrganizations/org1.test/users/User1@org1.test/msp";
    let signer = quorate_fabric::msp::SigningIdentity::from_pem(
        "Org1MSP",
        &read(&format!("{user}/signcerts/User1@org1.test-cert.pem")),
        &read(&format!("{user}/keystore/priv_sk")),
    )
    .unwrap();
    let now = 1_800_000_000_123_456;
    let node = Node::with_files_of(2000, &[("fixture", "genesis/fixture.block")]);
    let channel = node.channel("fixture");
    channel.grow(100);
    channel.store.sync().unwrap();
    // A client that reads while older blocks go.
    let request = |from: Position, to: Position| {
        let request = crate::grpc::SeekRequest::new("fixture", from, to);
        request.sign(&signer, b"a nonce", now).unwrap()
    };
    let mut reading = node.call(options(), Clock::manual(now).0, None);
    reading.say(request(Position::Number(0), Position::Number(99)));
    assert_eq!(reading.hear().await, Heard::Block(0));

    let first = channel.store.prune(60).unwrap().first;
    assert!(first > 40, "{first}");
    assert_eq!(reading.hear().await, Heard::Status(404));
    assert_eq!(reading.hear().await, Heard::End);

    for (from, to, expected) in [
        (
            Position::Oldest,
            Position::Oldest,
            vec![Heard::Block(first), Heard::Status(200)],
        ),
        (
            Position::Number(0),
            Position::Number(0),
            vec![Heard::Block(0), Heard::Status(200)],
        ),
        (
            Position::Number(7),
            Position::Newest,
            vec![Heard::Status(404), Heard::End],
        ),
        (
            Position::Number(first - 1),
            Position::Newest,
            vec![Heard::Status(404), Heard::End],
        ),
        (
            Position::Number(99),
            Position::Newest,
            vec![Heard::Block(99), Heard::Status(200)],
        ),
    ] {
        let mut talk = node.call(options(), Clock::manual(now).0, None);
        talk.say(request(from, to));
        for expected in expected {
            assert_eq!(talk.hear().await, expected, "{from:?} to {to:?}");
        }
    }
}

#[tokio::test]
async fn what_follows_an_error_of_the_connection_is_nothing() {
    let node = Node::new(&[]);
    let mut talk = node.call(options(), Clock::manual(0).0, None);
    let error = Err(tonic::Status::internal("the message was no message"));
    talk.requests.as_ref().unwrap().send(error).unwrap();
    let status = talk.responses.next().await.unwrap().unwrap_err();
    assert_eq!(status.code(), tonic::Code::Internal);
    assert!(talk.responses.next().await.is_none());
}

#[test]
fn times_far_from_ours_are_refused() {
    let request = |seconds, nanos| {
        let mut channel_header = quorate_fabric::proto::common::ChannelHeader::default();
        let timestamp = channel_header.timestamp.get_or_insert_default();
        (timestamp.seconds, timestamp.nanos) = (seconds, nanos);
        let payload = Payload {
            header: Some(Header {
                channel_header: channel_header.encode_to_vec(),
                signature_header: Vec::new(),
            }),
            data: Vec::new(),
        };
        let envelope = Envelope {
            payload: payload.encode_to_vec().into(),
            signature: Bytes::new(),
        };
        Request::parse(&RawEnvelope::from(&envelope)).unwrap()
    };
    let window = Duration::from_secs(900);
    let now = 1_800_000_000;
    let judge = |seconds, nanos| {
        request(seconds, nanos)
            .check_time(now * 1_000_000, window)
            .is_ok()
    };
    assert!(judge(now, 0));
    assert!(judge(now - 900, 0));
    assert!(!judge(now - 901, 999_999_999));
    assert!(judge(now + 900, 0));
    assert!(!judge(now + 900, 1));
    for seconds in [i64::MIN, -1, 0, i64::MAX] {
        for nanos in [i32::MIN, 0, i32::MAX] {
            assert!(!judge(seconds, nanos));
        }
    }
}

fn position(kind: Option<Type>) -> SeekPosition {
    SeekPosition { r#type: kind }
}

fn at(number: u64) -> SeekPosition {
    position(Some(Type::Specified(SeekSpecified { number })))
}

/// All pairs of positions at several heights: a range is always one that can be served.
#[test]
fn ranges_begin_at_or_below_the_height() {
    let positions = |height: u64| {
        vec![
            position(None),
            position(Some(Type::Oldest(SeekOldest {}))),
            position(Some(Type::Newest(SeekNewest {}))),
            position(Some(Type::NextCommit(SeekNextCommit {}))),
            at(0),
            at(height.saturating_sub(1)),
            at(height),
            at(height + 1),
            at(u64::MAX),
        ]
    };
    for height in [0, 1, 2, 10] {
        for start in positions(height) {
            for stop in positions(height) {
                match seek::resolve(&start, &stop, 0, height) {
                    Ok((range, _)) => assert!(range.next.unwrap() <= height),
                    Err(error) => assert!(
                        [Status::NotFound, Status::BadRequest].contains(&error.status),
                        "{error:?}"
                    ),
                }
            }
        }
    }
    // Newest in an empty ledger: there is no such block.
    let newest = position(Some(Type::Newest(SeekNewest {})));
    assert_eq!(
        seek::resolve(&newest, &newest, 0, 0).unwrap_err().status,
        Status::NotFound
    );
}

#[tokio::test]
async fn any_bytes_as_a_request_are_answered() {
    let node = Node::new(&[("fixture", "genesis/fixture.block")]);
    let (good, made) = follow_from_zero();
    let good = good.encoded().clone();
    let service = DeliverService::new(
        node.channels.clone(),
        options(),
        Clock::manual(made).0,
        &OrdererMetrics::new(&Metrics::new(), false).deliver,
    );
    for at in 0..good.len() {
        let mut bytes = good.to_vec();
        bytes[at] ^= 0x15;
        for bytes in [Bytes::from(bytes), good.slice(..at)] {
            let Ok(envelope) = RawEnvelope::decode(bytes) else {
                continue;
            };
            let caller = Peer {
                address: SocketAddr::from((Ipv4Addr::LOCALHOST, 7000)),
                certificate: None,
            };
            let requests = stream::iter([Ok(envelope)]).boxed();
            let first = service.deliver(caller, requests).next().await;
            let Some(Ok(DeliverResponse::Status(status))) = first else {
                panic!("byte {at}: {first:?}");
            };
            assert_ne!(status, Status::Success);
        }
    }
}

/// Requests of our own making, through the service's gRPC and back.
#[tokio::test]
async fn our_own_requests_are_answered_over_grpc() {
    use crate::grpc::{AtomicBroadcastClient, AtomicBroadcastServer, SeekRequest};

    struct NoBroadcast;
    impl crate::grpc::Broadcast for NoBroadcast {
        fn broadcast(
            &self,
            _: Caller,
            _: Requests,
        ) -> Responses<quorate_fabric::proto::orderer::BroadcastResponse> {
            stream::empty().boxed()
        }
    }

    let node = Node::new(&[("fixture", "genesis/fixture.block")]);
    let channel = node.channel("fixture");
    channel.grow(5);
    let user = "crypto/peerOrganizations/org1.test/users/User1@org1.test/msp";
    let signer = quorate_fabric::msp::SigningIdentity::from_pem(
        "Org1MSP",
        &read(&format!("{user}/signcerts/User1@org1.test-cert.pem")),
        &read(&format!("{user}/keystore/priv_sk")),
    )
    .unwrap();
    let now = 1_800_000_000_123_456;
    let metrics = OrdererMetrics::new(&Metrics::new(), false);
    let deliver = DeliverService::new(
        node.channels.clone(),
        options(),
        Clock::manual(now).0,
        &metrics.deliver,
    );
    let server = AtomicBroadcastServer::new(
        Arc::new(NoBroadcast),
        Arc::new(deliver),
        1_000_000,
        &metrics.grpc,
    );
    let mut client = AtomicBroadcastClient::new(server, 1_000_000);

    for (request, expected) in [
        (
            SeekRequest::new("fixture", Position::Number(1), Position::Newest),
            vec![1, 2, 3, 4],
        ),
        (
            SeekRequest::new("fixture", Position::Newest, Position::Newest),
            vec![4],
        ),
        (
            SeekRequest::new("fixture", Position::Oldest, Position::Oldest),
            vec![0],
        ),
    ] {
        let envelope = request.sign(&signer, b"a nonce", now).unwrap();
        let mut answers = client.deliver(stream::iter([envelope])).await.unwrap();
        for number in expected {
            let stored = channel.store.read(number).unwrap().unwrap();
            assert_eq!(
                answers.message().await.unwrap(),
                Some(DeliverResponse::Block(stored.encoded().clone()))
            );
        }
        assert_eq!(
            answers.message().await.unwrap(),
            Some(DeliverResponse::Status(Status::Success))
        );
        assert_eq!(answers.message().await.unwrap(), None);
    }
    let beyond = SeekRequest {
        fail_if_not_ready: true,
        ..SeekRequest::new("fixture", Position::NextCommit, Position::Number(u64::MAX))
    };
    let envelope = beyond.sign(&signer, b"a nonce", now).unwrap();
    let mut answers = client.deliver(stream::iter([envelope])).await.unwrap();
    assert_eq!(
        answers.message().await.unwrap(),
        Some(DeliverResponse::Status(Status::NotFound))
    );
}
