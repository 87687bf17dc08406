//! Broadcast streams through a real channel of one consenter: the order of the answers, where a stream ends, what is
//! acknowledged when.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{StreamExt as _, stream};
use quorate_consensus::snapshots::SnapshotFiles;
use quorate_consensus::{Group, GroupId, Log, Options};
use quorate_fabric::config::{ChannelConfig, raft_config};
use quorate_fabric::envelope::{self, RawEnvelope};
use quorate_fabric::msp::LocalMsp;
use quorate_fabric::proto::common::{ChannelHeader, HeaderType, Status};
use quorate_fabric::proto::orderer::BroadcastResponse;
use quorate_orderer::broadcast::{Broadcast, Channels, Checker, Found};
use quorate_orderer::channel::core::Setup;
use quorate_orderer::channel::{
    Ack, Belonging, ChannelHandle, ChannelMetrics, Peers, Replication, Start, start,
};
use quorate_orderer::checks::Rules;
use quorate_orderer::cluster::{ForwardError, Member};
use quorate_orderer::metrics::OrdererMetrics;
use quorate_orderer::store::{BlockStore, Ledgers, StoredBlock};
use quorate_runtime::{Clock, Entropy, Metrics, Tasks};
use serde_json::Value;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/fabric")
}

fn read(path: impl AsRef<Path>) -> Bytes {
    let path = fixtures().join(path);
    std::fs::read(&path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        .into()
}

/// A channel of one has nobody to talk to.
struct Nobody;

impl Peers for Nobody {
    fn connect(&self, _: Vec<Member>) {}
    fn send(&self, _: u64, _: Bytes, _: Bytes) {}
    fn checks(&self, _: u64) -> bool {
        false
    }

    fn forward(
        &self,
        _: u64,
        _: Option<u64>,
        _: Bytes,
    ) -> BoxFuture<'static, Result<(), ForwardError>> {
        Box::pin(async { Err(ForwardError::Failed("nobody is there".to_owned())) })
    }
}

impl Replication for Nobody {
    fn fetch(&self, _: u64, _: u64) -> BoxFuture<'static, Vec<StoredBlock>> {
        Box::pin(std::future::pending())
    }
    fn belonging(&self) -> BoxFuture<'static, Option<Belonging>> {
        Box::pin(std::future::pending())
    }
}

struct Only(Vec<ChannelHandle>);

impl Channels for Only {
    fn find(&self, channel: &str) -> Found {
        self.0
            .iter()
            .find(|known| known.id() == channel)
            .map_or(Found::NotServed, |known| Found::Served(known.clone()))
    }
}

/// An orderer that serves the recorded channels of one consenter.
struct Orderer {
    broadcast: Broadcast,
    channels: Vec<ChannelHandle>,
    client: LocalMsp,
    entropy: Entropy,
    metrics: OrdererMetrics,
    _folder: tempfile::TempDir,
    tasks: Tasks,
}

impl Orderer {
    async fn start(names: &[&str], ack: Ack) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let tasks = Tasks::new("test");
        let clock = Clock::system();
        let entropy = Entropy::system();
        let metrics = OrdererMetrics::new(&Metrics::new(), false);
        let signer = Arc::new(
            LocalMsp::load(
                &fixtures().join(
                    "crypto/ordererOrganizations/orderer.test/orderers/orderer0.orderer.test/msp",
                ),
                "OrdererOrgMSP",
            )
            .unwrap(),
        );
        let ledgers = Ledgers::open(&folder.path().join("ledgers")).unwrap();
        let log = Log::in_memory();
        let mut channels = Vec::new();
        for (at, name) in names.iter().enumerate() {
            let genesis = StoredBlock::decode(read(format!("genesis/{name}.block"))).unwrap();
            let store: BlockStore = ledgers.get_or_create(name).unwrap();
            store.append(&genesis).unwrap();
            let config = Arc::new(ChannelConfig::from_block(&genesis.block()).unwrap());
            let options = raft_config::options(config.raft_metadata()).unwrap();
            let group = GroupId([u8::try_from(at).unwrap(); 16]);
            let setup = Setup {
                raft_id: 1,
                config,
                newest: Arc::new(genesis),
                last_config: 0,
                bytes_since_snapshot: 0,
                snapshot_block: 0,
                group: Group::create(
                    group,
                    Options {
                        id: 1,
                        name: (*name).to_owned(),
                        election_tick: options.election_tick as usize,
                        heartbeat_tick: options.heartbeat_tick as usize,
                        max_inflight: options.max_inflight_blocks as usize,
                        max_size_per_message: 1 << 20,
                    },
                    &[1],
                    Arc::new(log.clone()),
                )
                .unwrap(),
                born: true,
                signer: signer.clone(),
                entropy: entropy.clone(),
                rules: Rules::default(),
                tick_override: Some(Duration::from_millis(20)),
                eviction_suspicion: Duration::from_secs(600),
            };
            let start_with = Start {
                setup,
                store,
                log: log.clone(),
                group,
                snapshots: SnapshotFiles::open(folder.path().join("snapshots").join(name)).unwrap(),
                peers: Arc::new(Nobody),
                creation: None,
                replication: Arc::new(Nobody),
                clock: clock.clone(),
                metrics: ChannelMetrics::of(&metrics),
                begun: None,
            };
            channels.push(start(start_with, &tasks).unwrap());
        }
        for channel in &channels {
            let mut leader = channel.leader();
            leader.wait_for(|leader| *leader == 1).await.unwrap();
        }
        let checker = Checker::new(2, Rules::default(), signer, entropy.clone(), clock);
        let broadcast = Broadcast::new(
            Arc::new(Only(channels.clone())),
            checker,
            ack,
            &metrics.broadcast,
        );
        let client = LocalMsp::load(
            &fixtures().join("crypto/peerOrganizations/org1.test/users/User1@org1.test/msp"),
            "Org1MSP",
        )
        .unwrap();
        Self {
            broadcast,
            channels,
            client,
            entropy,
            metrics,
            _folder: folder,
            tasks,
        }
    }

    /// What a client gets that sends these and then waits for the stream's end.
    async fn send(&self, requests: Vec<Bytes>) -> Vec<Result<BroadcastResponse, tonic::Status>> {
        // The client's side stays open: the end must come from the server.
        let requests = decoded(requests).chain(stream::pending());
        let answers = self.broadcast.serve("client".to_owned(), requests);
        tokio::time::timeout(Duration::from_secs(20), answers.collect())
            .await
            .expect("the stream ends after an answer that is not SUCCESS")
    }

    fn message(&self, data: &[u8]) -> RawEnvelope {
        let header = ChannelHeader {
            r#type: HeaderType::Message as i32,
            channel_id: "fixture1".to_owned(),
            ..ChannelHeader::default()
        };
        envelope::sign(
            &header,
            data.to_vec(),
            &self.entropy.bytes::<24>(),
            &self.client,
        )
        .unwrap()
    }

    async fn height(&self, wanted: u64) {
        let mut height = self.channels[0].store().watch_height();
        tokio::time::timeout(
            Duration::from_secs(20),
            height.wait_for(|height| *height >= wanted),
        )
        .await
        .unwrap()
        .unwrap();
    }

    async fn stop(self) {
        let report = self.tasks.stop(Duration::from_secs(5)).await;
        assert!(report.is_clean(), "{report:?}");
    }
}

/// What the codec of the service makes of the bytes.
fn decoded(
    requests: Vec<Bytes>,
) -> impl futures::Stream<Item = Result<RawEnvelope, tonic::Status>> + Send {
    stream::iter(requests.into_iter().map(|request| {
        RawEnvelope::decode(request)
            .map_err(|error| tonic::Status::internal(format!("malformed: {error}")))
    }))
}

fn statuses(answers: &[Result<BroadcastResponse, tonic::Status>]) -> Vec<Status> {
    answers
        .iter()
        .map(|answer| answer.as_ref().unwrap().status())
        .collect()
}

/// Unsigned, so that it is refused and the stream ends.
fn refused(orderer: &Orderer) -> Bytes {
    let signed = orderer.message(b"refused");
    RawEnvelope::new(signed.payload(), b"").encoded().clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_come_in_order_and_nothing_behind_a_refusal_is_ordered() {
    let orderer = Orderer::start(&["fixture1"], Ack::Committed).await;
    let good: Vec<Bytes> = (0_u32..200)
        .map(|number| orderer.message(&number.to_be_bytes()).encoded().clone())
        .collect();
    let never = orderer.message(b"never").encoded().clone();
    let mut requests = good.clone();
    requests.push(refused(&orderer));
    requests.push(never.clone());
    let answers = orderer.send(requests).await;
    let mut expected = vec![Status::Success; 200];
    expected.push(Status::Forbidden);
    assert_eq!(statuses(&answers), expected);

    // Committed mode: what was acknowledged is in the chain, in the order of the stream.
    let store = orderer.channels[0].store();
    let mut ordered = Vec::new();
    for number in 1..store.height() {
        ordered.extend(
            store
                .read(number)
                .unwrap()
                .unwrap()
                .block()
                .data
                .unwrap()
                .data,
        );
    }
    assert_eq!(ordered, good);
    let text = orderer.metrics.render();
    assert!(text.contains("broadcast_processed_count"), "{text}");
    orderer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_are_no_envelope_break_the_stream_after_the_answers_before() {
    let orderer = Orderer::start(&["fixture1"], Ack::Enqueued).await;
    let good = orderer.message(b"good").encoded().clone();
    let answers = orderer
        .send(vec![
            good.clone(),
            Bytes::from_static(b"\xff\xff\xff"),
            good,
        ])
        .await;
    assert_eq!(answers.len(), 2);
    assert_eq!(answers[0].as_ref().unwrap().status(), Status::Success);
    let broken = answers[1].as_ref().unwrap_err();
    assert_eq!(broken.code(), tonic::Code::Internal);
    orderer.stop().await;
}

/// The recorded cases of a Fabric orderer alone, in their order, with the blocks that they gave.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recorded_requests_get_the_recorded_answers_and_blocks() {
    let orderer = Orderer::start(&["fixture1", "fixturecrl"], Ack::Committed).await;
    let recorded: Value = serde_json::from_slice(&read("statuses/statuses.json")).unwrap();
    let mut checked = 0;
    for case in recorded["broadcast"].as_array().unwrap() {
        if case["setup"] != "single" || case["replay"] != "yes" {
            continue;
        }
        let name = case["name"].as_str().unwrap();
        let requests: Vec<Bytes> = case["requests"]
            .as_array()
            .unwrap()
            .iter()
            .map(|path| read(Path::new("statuses").join(path.as_str().unwrap())))
            .collect();
        if requests.is_empty() {
            // Not kept for its size.
            continue;
        }
        let expected = case["answers"].as_array().unwrap();
        // As many answers as there are recorded; the stream may stay open then.
        let requests = decoded(requests).chain(stream::pending());
        let answers = orderer.broadcast.serve("client".to_owned(), requests);
        let wanted = expected.len().max(1);
        let answers: Vec<_> = tokio::time::timeout(
            Duration::from_secs(20),
            answers.take(wanted).collect::<Vec<_>>(),
        )
        .await
        .unwrap_or_else(|_| panic!("{name}: no answer"));
        if expected.is_empty() {
            assert!(answers[0].is_err(), "{name}");
            continue;
        }
        for (answer, expected) in answers.iter().zip(expected) {
            let answer = answer.as_ref().unwrap();
            assert_eq!(
                i64::from(answer.status),
                expected["status"].as_i64().unwrap(),
                "{name}: {}",
                answer.info
            );
            assert_eq!(
                answer.info.replace('\u{a0}', " "),
                expected["info"].as_str().unwrap().replace('\u{a0}', " "),
                "{name}"
            );
            checked += 1;
        }
        if case["channel"] == "fixture1"
            && let Some(block) = case["block"].as_u64()
        {
            let stored = orderer.channels[0].store().read(block).unwrap().unwrap();
            let envelopes = stored.block().data.unwrap().data;
            let theirs = match case["stored_envelope"].as_str() {
                Some(text) if text.starts_with("re-encoded: ") => {
                    read(Path::new("statuses").join(text.trim_start_matches("re-encoded: ")))
                }
                _ => read(Path::new("statuses").join(case["requests"][0].as_str().unwrap())),
            };
            assert_eq!(envelopes[0], theirs, "{name}");
        }
    }
    assert!(checked > 90, "only {checked} answers were compared");
    orderer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn enqueued_messages_are_acknowledged_before_their_block_and_land_in_it() {
    let orderer = Orderer::start(&["fixture1"], Ack::Enqueued).await;
    let message = orderer.message(b"one").encoded().clone();
    let answers: Vec<_> = orderer
        .broadcast
        .serve("client".to_owned(), decoded(vec![message.clone()]))
        .collect()
        .await;
    assert_eq!(statuses(&answers), [Status::Success]);
    orderer.height(2).await;
    let stored = orderer.channels[0].store().read(1).unwrap().unwrap();
    assert_eq!(stored.block().data.unwrap().data, [message]);
    orderer.stop().await;
}
