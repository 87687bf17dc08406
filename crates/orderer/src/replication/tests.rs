//! The chain that Fabric's orderers made, pulled over real connections from orderers of all kinds.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream;
use quorate_fabric::block;
use quorate_fabric::envelope::EnvelopeParts;
use quorate_fabric::msp::LocalMsp;
use quorate_fabric::proto::common::{BlockMetadata, Status};
use quorate_fabric::proto::orderer::{BroadcastResponse, SeekInfo, seek_position};
use quorate_identity::SecureHash;
use quorate_identity::x509::Certificate;
use quorate_runtime::Metrics;
use tokio::net::TcpListener;
use tokio::time::timeout;
use tonic::service::Routes;

use super::*;
use crate::cluster::tests::{FIXTURES, PATIENCE, client_tls, file, orderer, server_tls};
use crate::grpc::{
    AtomicBroadcastServer, Broadcast, Caller, Deliver, DeliverResponse, Requests, Responses,
};
use crate::listener::{Listener, ListenerOptions};

const CHANNEL: &str = "fixture";
const HEIGHT: u64 = 32;

/// The recorded blocks as they came.
fn chain() -> Vec<Bytes> {
    (0..HEIGHT)
        .map(|number| file(&format!("chain/{number:02}.block")).into())
        .collect()
}

fn decoded() -> Vec<Block> {
    chain()
        .into_iter()
        .map(|bytes| Block::decode(bytes).unwrap())
        .collect()
}

/// What an orderer of the tests gives out.
#[derive(Default)]
struct Behaviour {
    blocks: Vec<Bytes>,
    /// Older blocks were pruned.
    first: usize,
    /// Answers with this instead.
    status: Option<Status>,
    /// Ends each stream after so many blocks; 0: never.
    ends_after: usize,
    /// Falls silent after so many blocks; 0: never.
    sleeps_after: usize,
    /// Says nothing.
    silent: AtomicBool,
    /// Streams of blocks that began.
    streams: AtomicUsize,
}

struct Server(Arc<Behaviour>);

impl Broadcast for Server {
    fn broadcast(&self, _: Caller, _: Requests) -> Responses<BroadcastResponse> {
        stream::empty().boxed()
    }
}

impl Deliver for Server {
    fn deliver(&self, caller: Caller, requests: Requests) -> Responses<DeliverResponse> {
        let behaviour = self.0.clone();
        requests
            .flat_map(move |request| {
                let parts = EnvelopeParts::parse(&request.unwrap()).unwrap();
                let header = &parts.channel_header;
                assert_eq!(header.channel_id, CHANNEL);
                assert_eq!(header.header_type, 5);
                let shown = caller.certificate.as_ref().unwrap();
                assert_eq!(
                    header.tls_cert_hash,
                    SecureHash::of(&shown.der).as_bytes().as_slice()
                );
                let seek = SeekInfo::decode(parts.data.clone()).unwrap();
                answer(&behaviour, &seek)
            })
            .boxed()
    }
}

fn answer(behaviour: &Behaviour, seek: &SeekInfo) -> Responses<DeliverResponse> {
    if behaviour.silent.load(Ordering::Relaxed) {
        return stream::pending().boxed();
    }
    if let Some(status) = behaviour.status {
        return stream::iter([Ok(DeliverResponse::Status(status))]).boxed();
    }
    let start = seek.start.as_ref().unwrap().r#type.as_ref().unwrap();
    let first = match start {
        seek_position::Type::Newest(_) => behaviour.blocks.len() - 1,
        seek_position::Type::Specified(at) => {
            behaviour.streams.fetch_add(1, Ordering::Relaxed);
            usize::try_from(at.number).unwrap()
        }
        _ => panic!("{start:?}"),
    };
    if first < behaviour.first {
        return stream::iter([Ok(DeliverResponse::Status(Status::NotFound))]).boxed();
    }
    let blocks: Vec<_> = behaviour.blocks[first..]
        .iter()
        .map(|block| Ok(DeliverResponse::Block(block.clone())))
        .collect();
    if behaviour.sleeps_after > 0 {
        let some = stream::iter(blocks).take(behaviour.sleeps_after);
        return some.chain(stream::pending()).boxed();
    }
    match behaviour.ends_after {
        0 => stream::iter(blocks).chain(stream::pending()).boxed(),
        limit => stream::iter(blocks)
            .take(limit)
            .chain(stream::iter([Err(tonic::Status::unavailable("bye"))]))
            .boxed(),
    }
}

/// An orderer of the tests, at whose address.
async fn serve(index: u64, behaviour: Behaviour, tasks: &Tasks) -> (String, Arc<Behaviour>) {
    let behaviour = Arc::new(behaviour);
    let metrics = crate::metrics::OrdererMetrics::new(&Metrics::new(), false).grpc;
    let service = AtomicBroadcastServer::new(
        Arc::new(Server(behaviour.clone())),
        Arc::new(Server(behaviour.clone())),
        1 << 20,
        &metrics,
    );
    let options = ListenerOptions {
        tls: Some(server_tls(orderer(index))),
        ..ListenerOptions::default()
    };
    let listener = Listener::bind("127.0.0.1:0", options).await.unwrap();
    let address: SocketAddr = listener.local_address().unwrap();
    listener.serve(Routes::new(service), &metrics, tasks);
    (address.to_string(), behaviour)
}

fn honest() -> Behaviour {
    Behaviour {
        blocks: chain(),
        ..Behaviour::default()
    }
}

fn sources(addresses: &[&str]) -> Vec<OrdererEndpoint> {
    let ca =
        file("crypto/ordererOrganizations/orderer.test/msp/tlscacerts/tlsca.orderer.test-cert.pem");
    let authorities: Arc<[Certificate]> = [Certificate::from_pem(&ca).unwrap()].into();
    addresses
        .iter()
        .map(|address| OrdererEndpoint {
            address: (*address).to_owned(),
            authorities: authorities.clone(),
        })
        .collect()
}

fn context(tasks: &Tasks) -> PullerContext {
    let folder = format!(
        "{FIXTURES}/crypto/ordererOrganizations/orderer.test/orderers/orderer0.orderer.test/msp"
    );
    PullerContext {
        options: PullerOptions {
            dial_timeout: PATIENCE,
            pull_timeout: Duration::from_millis(300),
            retry_timeout: Duration::from_millis(20),
            max_retries: 5,
            buffer_bytes: 64 * 1024,
            max_message_size: 10 << 20,
        },
        tls: Some(client_tls(Some(orderer(0)))),
        extra_roots: Vec::new(),
        signer: Arc::new(LocalMsp::load(Path::new(&folder), "OrdererOrgMSP").unwrap()),
        clock: Clock::system(),
        entropy: Entropy::seeded(7),
        tasks: tasks.clone(),
    }
}

fn fresh() -> ChainVerifier {
    ChainVerifier::new(CHANNEL, None, None)
}

fn puller(tasks: &Tasks, addresses: &[&str]) -> Puller {
    Puller::new(context(tasks), CHANNEL, sources(addresses), Some(fresh()))
}

async fn pull_all(puller: Puller) -> Vec<StoredBlock> {
    let pulling = puller.blocks(0, HEIGHT).map(Result::unwrap).collect();
    timeout(PATIENCE, pulling).await.unwrap()
}

#[tokio::test]
async fn who_has_pruned_a_block_is_left_for_another() {
    let tasks = Tasks::new("");
    let pruned = || Behaviour {
        first: 20,
        ..honest()
    };
    let (without, _) = serve(0, pruned(), &tasks).await;
    let mut alone = puller(&tasks, &[&without]);
    let Err(refused) = timeout(PATIENCE, alone.pull(0)).await.unwrap() else {
        panic!("a pruned block came");
    };
    assert!(
        matches!(
            &refused,
            PullFailure::Pruned {
                wanted: 0,
                last: 31,
                ..
            }
        ),
        "{refused}"
    );
    let (with, _) = serve(1, honest(), &tasks).await;
    assert_whole(&pull_all(puller(&tasks, &[&without, &with])).await);
}

fn assert_whole(pulled: &[StoredBlock]) {
    let expected = decoded();
    assert_eq!(pulled.len(), expected.len());
    for (pulled, expected) in pulled.iter().zip(expected) {
        assert_eq!(pulled.block(), expected);
    }
}

#[test]
fn fabrics_chain_is_believed_however_it_is_cut() {
    let blocks = decoded();
    for size in [1, 3, 7, 32] {
        let mut verifier = fresh();
        for batch in blocks.chunks(size) {
            verifier.verify(batch).unwrap();
        }
        assert_eq!(verifier.config().unwrap().sequence(), 5, "{size}");
    }
}

#[test]
fn changed_missing_and_unsigned_blocks_are_not_believed() {
    let refused = |change: &dyn Fn(&mut Vec<Block>)| {
        let mut blocks = decoded();
        change(&mut blocks);
        let mut verifier = fresh();
        let error = verifier.verify(&blocks).unwrap_err();
        // Nothing of it counts.
        assert!(verifier.config().is_none());
        error
    };
    let error = refused(&|blocks| {
        let data = blocks[3].data.as_mut().unwrap();
        data.data[0] = Bytes::from_static(b"another");
    });
    assert!(
        error.to_string().contains("doesn't match claimed hash"),
        "{error}"
    );
    let error = refused(&|blocks| drop(blocks.remove(4)));
    assert!(matches!(error, VerifyError::Block(_)), "{error}");
    // A whole forged end of the chain has the right hashes and nobody's signature.
    let error = refused(&|blocks| {
        let last = blocks.last_mut().unwrap();
        let data = last.data.as_mut().unwrap();
        data.data[0] = Bytes::from_static(b"another");
        let hash = block::data_hash(data);
        last.header.as_mut().unwrap().data_hash = hash.to_vec().into();
    });
    assert!(matches!(error, VerifyError::Block(_)), "{error}");
    let error = refused(&|blocks| {
        blocks.last_mut().unwrap().metadata = Some(BlockMetadata {
            metadata: vec![Bytes::new(); 5],
        });
    });
    assert!(matches!(error, VerifyError::Block(_)), "{error}");
    // In the middle, signatures of configuration blocks count.
    let error = refused(&|blocks| {
        blocks[6].metadata = Some(BlockMetadata {
            metadata: vec![Bytes::new(); 5],
        });
    });
    assert!(matches!(error, VerifyError::Block(_)), "{error}");
    assert!(matches!(
        fresh().verify(&decoded()[5..]).unwrap_err(),
        VerifyError::NoConfig { .. }
    ));
    let mut other = ChainVerifier::new("another", None, None);
    assert!(other.verify(&decoded()).is_err());
}

#[test]
fn a_chain_must_lead_to_the_block_that_is_expected() {
    let blocks = decoded();
    let hash = block::header_hash(blocks[13].header.as_ref().unwrap());
    assert!(fresh().expect(13, hash).verify(&blocks).is_ok());
    let error = fresh().expect(14, hash).verify(&blocks).unwrap_err();
    assert!(matches!(error, VerifyError::Unexpected { number: 14, .. }));
}

#[tokio::test]
async fn the_whole_chain_is_pulled() {
    let tasks = Tasks::new("test");
    let (address, behaviour) = serve(1, honest(), &tasks).await;
    let puller = puller(&tasks, &[&address]);
    let heights = puller.heights().await.unwrap();
    assert_eq!(heights, BTreeMap::from([(address.clone(), HEIGHT)]));
    assert_whole(&pull_all(puller).await);
    assert_eq!(behaviour.streams.load(Ordering::Relaxed), 1);
    // Its connections end with it.
    let ended = async {
        while tasks
            .running()
            .iter()
            .any(|task| task.contains("replication"))
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, ended).await.unwrap();
}

#[tokio::test]
async fn others_are_asked_when_one_fails() {
    let tasks = Tasks::new("test");
    let short = Behaviour {
        blocks: chain()[..3].to_vec(),
        ..Behaviour::default()
    };
    let breaking = Behaviour {
        ends_after: 2,
        ..honest()
    };
    let sleeping = Behaviour {
        sleeps_after: 3,
        ..honest()
    };
    let mut forged = chain();
    let mut block = Block::decode(forged[20].clone()).unwrap();
    block.data.as_mut().unwrap().data[0] = Bytes::from_static(b"forged");
    forged[20] = block.encode_to_vec().into();
    let lying = Behaviour {
        blocks: forged,
        ..Behaviour::default()
    };
    let refusing = Behaviour {
        status: Some(Status::Forbidden),
        ..Behaviour::default()
    };
    let silent = Behaviour {
        silent: AtomicBool::new(true),
        ..Behaviour::default()
    };
    let babbling = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let babbler = babbling.local_addr().unwrap().to_string();
    tasks.spawn("babble", async move {
        while let Ok((mut tcp, _)) = babbling.accept().await {
            let _ = tokio::io::AsyncWriteExt::write_all(&mut tcp, &[0xff; 4096]).await;
        }
    });
    let mut addresses = vec!["127.0.0.1:1".to_owned(), "nonsense".to_owned(), babbler];
    for (index, behaviour) in [0, 1, 2, 3, 4, 0]
        .into_iter()
        .zip([short, breaking, lying, refusing, silent, sleeping])
    {
        addresses.push(serve(index, behaviour, &tasks).await.0);
    }
    addresses.push(serve(1, honest(), &tasks).await.0);
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let mut puller = puller(&tasks, &addresses);
    puller.options.max_retries = 0;
    puller.options.buffer_bytes = 16 * 1024;
    assert_whole(&pull_all(puller).await);
}

#[tokio::test]
async fn what_orderers_say_is_a_value() {
    let tasks = Tasks::new("test");
    for (status, expected) in [
        (Status::Forbidden, PullFailure::Forbidden),
        (Status::NotFound, PullFailure::NotFound),
        (Status::ServiceUnavailable, PullFailure::ServiceUnavailable),
        (
            Status::BadRequest,
            PullFailure::Status("BAD_REQUEST".to_owned()),
        ),
    ] {
        let refusing = Behaviour {
            status: Some(status),
            ..Behaviour::default()
        };
        let (address, _) = serve(1, refusing, &tasks).await;
        // Who cannot be reached says nothing about the channel.
        let mut puller = puller(&tasks, &[&address, "127.0.0.1:1"]);
        puller.options.max_retries = 2;
        let heights = puller.heights().await;
        if matches!(expected, PullFailure::Status(_)) {
            assert!(heights.is_err());
        } else {
            assert_eq!(heights.unwrap_err(), expected);
            assert_eq!(puller.pull(0).await.unwrap_err(), expected);
        }
    }
    let mut nobody = puller(&tasks, &[]);
    nobody.options.max_retries = 1;
    assert_eq!(nobody.pull(0).await.unwrap_err(), PullFailure::NoSources);
    let (address, _) = serve(1, honest(), &tasks).await;
    let mut ahead = puller(&tasks, &[&address]);
    ahead.options.max_retries = 1;
    let failure = ahead.pull(HEIGHT).await.unwrap_err();
    assert_eq!(
        failure.to_string(),
        format!("minimum requested sequence is 32 but {address} is at sequence 31")
    );
}

#[tokio::test]
async fn the_last_config_block_tells_who_is_still_a_consenter() {
    let tasks = Tasks::new("test");
    let (address, _) = serve(1, honest(), &tasks).await;
    let behind = Behaviour {
        blocks: chain()[..10].to_vec(),
        ..Behaviour::default()
    };
    let (other, _) = serve(2, behind, &tasks).await;
    let puller = puller(&tasks, &[&other, &address]);
    let genesis = ChannelConfig::from_block(&decoded()[0]).unwrap();
    for trusted in [None, Some(&genesis)] {
        let block = puller.last_config_block(trusted).await.unwrap();
        assert_eq!(block.number(), 28);
        let config = ChannelConfig::from_block(&block.block()).unwrap();
        assert_eq!(config.raft_metadata().consenters.len(), 2);
    }
    let mut unsigned = chain();
    let mut block = Block::decode(unsigned[28].clone()).unwrap();
    block.metadata.as_mut().unwrap().metadata[0] = Bytes::new();
    unsigned[28] = block.encode_to_vec().into();
    let lying = Behaviour {
        blocks: unsigned,
        ..Behaviour::default()
    };
    let (address, _) = serve(1, lying, &tasks).await;
    let puller = self::puller(&tasks, &[&address]);
    let refused = puller.last_config_block(Some(&genesis)).await.unwrap_err();
    assert!(matches!(refused, PullFailure::Unverified(_)), "{refused}");
}

#[tokio::test]
async fn new_sources_count_from_then_on() {
    let tasks = Tasks::new("test");
    let (first, one) = serve(1, honest(), &tasks).await;
    let (second, two) = serve(2, honest(), &tasks).await;
    let mut puller = puller(&tasks, &[&first]);
    puller.options.buffer_bytes = 1;
    let genesis = puller.pull(0).await.unwrap();
    // Whoever could not store it may have it again.
    assert_eq!(puller.pull(0).await.unwrap(), genesis);
    puller.update_sources(sources(&[&second]));
    puller.pull(1).await.unwrap();
    puller.update_sources(sources(&[&second]));
    puller.pull(2).await.unwrap();
    assert_eq!(one.streams.load(Ordering::Relaxed), 1);
    assert_eq!(two.streams.load(Ordering::Relaxed), 1);
}
