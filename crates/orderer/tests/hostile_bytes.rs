//! Forgeries of what an orderer reads: its ledgers' files, blocks of other orderers, join requests, messages.
//!
//! The samples are the recorded ones. A failure names the forgery; it is the same one at every run.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use axum::body::Body;
use bytes::Bytes;
use futures::future::BoxFuture;
use hyper::Request;
use prost::Message as _;
use quorate_fabric::block;
use quorate_fabric::config::ChannelConfig;
use quorate_fabric::envelope::RawEnvelope;
use quorate_fabric::msp::LocalMsp;
use quorate_fabric::proto::common::Block;
use quorate_identity::UnixTime;
use quorate_orderer::admin::{
    ChannelInfo, ChannelList, JoinError, Participation, PruneError, RemoveError,
};
use quorate_orderer::checks::{self, Class, Rules, UpdateContext};
use quorate_orderer::options::ChannelParticipation;
use quorate_orderer::replication::ChainVerifier;
use quorate_orderer::store::{Ledgers, Pruned, StoredBlock};
use quorate_runtime::Entropy;
use quorate_testkit::hostile::{Shape, torment};
use tower::ServiceExt as _;

const CHANNEL: &str = "fixture";
const NOW: UnixTime = UnixTime(1_795_200_000);

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fixtures/fabric")
        .join(path)
}

fn read(path: &str) -> Vec<u8> {
    fs::read(fixture(path)).unwrap()
}

fn chain() -> Vec<StoredBlock> {
    (0..32)
        .map(|number| {
            StoredBlock::decode(read(&format!("chain/{number:02}.block")).into()).unwrap()
        })
        .collect()
}

fn config() -> ChannelConfig {
    ChannelConfig::from_block(&chain()[0].block()).unwrap()
}

fn requests(folder: &str) -> Vec<Vec<u8>> {
    let mut paths: Vec<_> = fs::read_dir(fixture(folder))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "pb"))
        .collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// Whatever happened to a ledger's files, it is refused, or what is read from it is the beginning of the chain that was there.
#[test]
fn files_of_a_ledger() {
    let whole = tempfile::tempdir().unwrap();
    let blocks = &chain()[..8];
    {
        let ledgers = Ledgers::open(whole.path()).unwrap();
        let store = ledgers.get_or_create(CHANNEL).unwrap();
        for block in blocks {
            store.append(block).unwrap();
        }
        store.sync().unwrap();
    }
    let files = ["blockfile_000000", "index.quorate"];
    let inside = |folder: &Path| folder.join("chains").join(CHANNEL);
    for (at, name) in files.iter().enumerate() {
        let sample = fs::read(inside(whole.path()).join(name)).unwrap();
        let other = fs::read(inside(whole.path()).join(files[1 - at])).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let inside = inside(folder.path());
        let mut number = 0;
        torment(name, Shape::Plain, &[sample], 1_500, |bytes| {
            number += 1;
            fs::create_dir_all(&inside).unwrap();
            fs::write(inside.join(name), bytes).unwrap();
            fs::write(inside.join(files[1 - at]), &other).unwrap();
            // Half of them come without their index, as a copied ledger does.
            if at == 0 && number % 2 == 0 {
                fs::remove_file(inside.join(files[1])).unwrap();
            }
            let Ok(ledgers) = Ledgers::open(folder.path()) else {
                return;
            };
            let Ok(Some(store)) = ledgers.get(CHANNEL) else {
                return;
            };
            assert!(store.height() <= blocks.len() as u64);
            for (block, number) in blocks.iter().zip(0..store.height()) {
                if let Ok(Some(read)) = store.read(number) {
                    assert_eq!(read.header(), block.header());
                    block::check_data_hash(&read.block()).unwrap();
                }
            }
            let _ = store.last_config_number();
        });
    }
}

#[test]
fn marks_of_a_ledger() {
    let folder = tempfile::tempdir().unwrap();
    let ledgers = Ledgers::open(folder.path()).unwrap();
    let names = [&b"fixture.join"[..], b"a.remove", b"..", b".join"].map(<[u8]>::to_vec);
    torment("names of join blocks", Shape::Plain, &names, 500, |bytes| {
        let name = String::from_utf8_lossy(bytes);
        let name: String = name.chars().take(64).collect();
        if ledgers.save_join_block(&name, b"block").is_ok() {
            let _ = ledgers.join_blocks();
            let _ = ledgers.remove_join_block(&name);
        }
        let _ = ledgers.get(&name);
    });
    // Nothing was written elsewhere.
    let around: Vec<_> = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(
        around.iter().all(|name| !name.contains("join")),
        "{around:?}"
    );
}

#[test]
fn blocks_of_other_orderers() {
    let blocks: Vec<Vec<u8>> = chain()
        .iter()
        .map(|block| block.encoded().to_vec())
        .collect();
    let config = Arc::new(config());
    let first = chain()[0].header().clone();
    torment("pulled block", Shape::Protobuf, &blocks, 3_000, |bytes| {
        let Ok(block) = Block::decode(bytes) else {
            return;
        };
        let _ = StoredBlock::decode(Bytes::copy_from_slice(bytes));
        let mut verifier = ChainVerifier::new(CHANNEL, Some(config.clone()), Some(first.clone()));
        let _ = verifier.verify(std::slice::from_ref(&block));
        let mut verifier = ChainVerifier::new(CHANNEL, None, None);
        let _ = verifier.verify(&[block]);
    });
}

#[test]
fn messages_of_clients() {
    let mut samples = requests("statuses/requests");
    samples.extend(requests("config-updates"));
    let config = config();
    let signer = LocalMsp::load(
        &fixture("crypto/ordererOrganizations/orderer.test/orderers/orderer0.orderer.test/msp"),
        "OrdererOrgMSP",
    )
    .unwrap();
    let entropy = Entropy::seeded(7);
    let context = UpdateContext {
        config: &config,
        consenters: &[1, 2, 3],
        active: &[1, 2, 3],
        signer: &signer,
        entropy: &entropy,
    };
    torment(
        "client's message",
        Shape::Protobuf,
        &samples,
        6_000,
        |bytes| {
            let Ok(envelope) = RawEnvelope::decode(Bytes::copy_from_slice(bytes)) else {
                return;
            };
            let Ok(header) = checks::channel_header(&envelope) else {
                return;
            };
            match checks::classify(&header) {
                Ok(Class::ConfigUpdate) => {
                    let made = checks::update(&context, &envelope, &Rules::default(), NOW);
                    if let Ok(made) = made {
                        checks::config_again(&context, &made, &Rules::default(), NOW).unwrap();
                    }
                }
                Ok(Class::Normal) => {
                    let _ = checks::normal(&config, &envelope, &Rules::default(), NOW);
                }
                Err(_) => {}
            }
            let _ = checks::config_again(&context, &envelope, &Rules::default(), NOW);
        },
    );
}

/// Takes every block.
#[derive(Default)]
struct Greedy {
    joined: Mutex<usize>,
}

impl Participation for Greedy {
    fn list(&self) -> ChannelList {
        ChannelList::default()
    }

    fn info(&self, _: &str) -> Option<ChannelInfo> {
        None
    }

    fn join(&self, _: Bytes) -> BoxFuture<'_, Result<ChannelInfo, JoinError>> {
        *self.joined.lock().unwrap() += 1;
        Box::pin(async { Err(JoinError::ChannelExists) })
    }

    fn prune<'a>(&'a self, _: &'a str, _: u64) -> BoxFuture<'a, Result<Pruned, PruneError>> {
        Box::pin(async { Err(PruneError::ChannelNotExist) })
    }

    fn remove<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<(), RemoveError>> {
        Box::pin(async { Err(RemoveError::ChannelNotExist) })
    }
}

#[test]
fn join_requests() {
    let greedy = Arc::new(Greedy::default());
    let options = ChannelParticipation {
        enabled: true,
        max_request_body_size: 1 << 20,
    };
    let router = quorate_orderer::admin::router(&options, greedy.clone(), Entropy::seeded(1));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let kind = "multipart/form-data; boundary=b0123456789";
    let form = b"--b0123456789\r\nContent-Disposition: form-data; name=\"config-block\"; filename=\"b\"\r\nContent-Type: application/octet-stream\r\n\r\nblock\r\n--b0123456789--\r\n";
    let ask = |kind: &[u8], body: &[u8]| {
        let request = Request::post("/participation/v1/channels")
            .header("content-type", kind)
            .body(Body::from(body.to_vec()));
        if let Ok(request) = request {
            runtime.block_on(router.clone().oneshot(request)).unwrap();
        }
    };
    torment("form", Shape::Plain, &[form.to_vec()], 4_000, |bytes| {
        ask(kind.as_bytes(), bytes);
    });
    assert!(*greedy.joined.lock().unwrap() > 100);
    let kinds = [
        kind.as_bytes().to_vec(),
        b"multipart/form-data; charset=\"a b\"; Boundary=\"b0123456789\"".to_vec(),
    ];
    torment("content type", Shape::Plain, &kinds, 4_000, |bytes| {
        ask(bytes, form);
    });
    let paths = [b"/participation/v1/channels/fixture".to_vec()];
    torment("path", Shape::Plain, &paths, 4_000, |bytes| {
        for method in ["GET", "DELETE"] {
            let request = Request::builder()
                .method(method)
                .uri(bytes)
                .body(Body::empty());
            if let Ok(request) = request {
                runtime.block_on(router.clone().oneshot(request)).unwrap();
            }
        }
    });
}
