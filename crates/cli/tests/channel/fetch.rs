//! Blocks fetched from a Deliver service that serves the recorded chain.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use quorate_fabric::config::ChannelConfig;
use quorate_fabric::proto::orderer::BroadcastResponse;
use quorate_identity::UnixTime;
use quorate_identity::mutual_tls::{ClientAuth, Credentials, Roots, ServerTls};
use quorate_orderer::deliver::{Channel, Channels, DeliverOptions, DeliverService};
use quorate_orderer::grpc::{AtomicBroadcastServer, Broadcast, Caller, Requests, Responses};
use quorate_orderer::listener::{Listener, ListenerOptions};
use quorate_orderer::metrics::OrdererMetrics;
use quorate_orderer::store::{BlockStore, Ledgers, StoredBlock};
use quorate_runtime::{Clock, Metrics, Tasks};
use tempfile::TempDir;
use tokio::sync::watch;
use tonic::service::Routes;

use crate::{Ended, fixture, quorate, text};

const HEIGHT: u64 = 32;

struct Recorded {
    config: Arc<ChannelConfig>,
    store: BlockStore,
    outage: watch::Sender<bool>,
}

impl Channel for Recorded {
    fn config(&self) -> Arc<ChannelConfig> {
        self.config.clone()
    }

    fn store(&self) -> &BlockStore {
        &self.store
    }

    fn outage(&self) -> watch::Receiver<bool> {
        self.outage.subscribe()
    }
}

struct OnlyChannel(Arc<Recorded>);

impl Channels for OnlyChannel {
    fn channel(&self, id: &str) -> Option<Arc<dyn Channel>> {
        if id == "fixture" {
            Some(self.0.clone())
        } else {
            None
        }
    }
}

struct Deaf;

impl Broadcast for Deaf {
    fn broadcast(&self, _: Caller, _: Requests) -> Responses<BroadcastResponse> {
        stream::empty().boxed()
    }
}

fn block(number: u64) -> Bytes {
    fs::read(fixture(&format!("chain/{number:02}.block")))
        .unwrap()
        .into()
}

fn node(name: &str, file: &str) -> String {
    text(&fixture(&format!(
        "crypto/ordererOrganizations/orderer.test/orderers/{name}.orderer.test/tls/{file}"
    )))
}

fn admin_msp(org: &str) -> String {
    text(&fixture(&format!(
        "crypto/peerOrganizations/{org}/users/Admin@{org}/msp"
    )))
}

/// An orderer that demands client certificates, and a folder to work in.
struct Orderer {
    address: String,
    channel: Arc<Recorded>,
    folder: TempDir,
    _tasks: Tasks,
}

impl Orderer {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ledgers = Ledgers::open(&folder.path().join("ledger")).unwrap();
        let store = ledgers.get_or_create("fixture").unwrap();
        let mut config = None;
        for number in 0..HEIGHT {
            let block = StoredBlock::decode(block(number)).unwrap();
            store.append(&block).unwrap();
            if block.last_config() == Some(number) {
                config = ChannelConfig::from_block(&block.block()).ok();
            }
        }
        let channel = Arc::new(Recorded {
            config: Arc::new(config.unwrap()),
            store,
            outage: watch::Sender::new(false),
        });
        let registry = Metrics::new();
        let metrics = OrdererMetrics::new(&registry, false);
        let options = DeliverOptions {
            time_window: Duration::from_secs(15 * 60),
            no_expiration_checks: false,
            tls_binding: true,
        };
        let channels = Arc::new(OnlyChannel(channel.clone()));
        let deliver = DeliverService::new(channels, options, Clock::system(), &metrics.deliver);
        let (deaf, deliver) = (Arc::new(Deaf), Arc::new(deliver));
        let service = AtomicBroadcastServer::new(deaf, deliver, 1 << 20, &metrics.grpc);
        let pem = |file: &str| fs::read(node("orderer0", file)).unwrap();
        let tls = ServerTls {
            credentials: Credentials::from_pem(&pem("server.crt"), &pem("server.key")).unwrap(),
            roots: Roots::from_pem([&pem("ca.crt")[..]]).unwrap(),
            client_auth: ClientAuth::Required,
            clock: Arc::new(|| UnixTime(Clock::system().now_seconds())),
            alpn: vec![b"h2".to_vec()],
        };
        let options = ListenerOptions {
            tls: Some(tls),
            ..ListenerOptions::default()
        };
        let listener = Listener::bind("127.0.0.1:0", options).await.unwrap();
        let address = listener.local_address().unwrap().to_string();
        let tasks = Tasks::new("test");
        listener.serve(Routes::new(service), &metrics.grpc, &tasks);
        Self {
            address,
            channel,
            folder,
            _tasks: tasks,
        }
    }

    fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn fetch(&self, block: &str, more: &[&str]) -> Ended {
        self.fetch_by("org1.test", "Org1MSP", block, "fixture", more)
    }

    fn fetch_by(
        &self,
        org: &str,
        msp_id: &str,
        block: &str,
        channel: &str,
        more: &[&str],
    ) -> Ended {
        let [ca, certificate, key] =
            ["ca.crt", "server.crt", "server.key"].map(|file| node("orderer1", file));
        let own = [
            "--tls-ca",
            &ca,
            "--client-cert",
            &certificate,
            "--client-key",
            &key,
        ];
        let msp = admin_msp(org);
        let mut arguments = vec!["channel", "fetch", block];
        arguments.extend(["-o", &self.address, "-c", channel]);
        arguments.extend(own);
        arguments.extend(["--msp-dir", &msp, "--msp-id", msp_id]);
        arguments.extend(more);
        quorate(self.folder(), &arguments, &[])
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_come_as_they_lie_in_the_ledger() {
    let orderer = Orderer::start().await;
    let newest = HEIGHT - 1;
    let config = orderer.channel.store.last_config_number().unwrap();
    assert_ne!(config, newest);
    for (wanted, number) in [
        ("newest", newest),
        ("oldest", 0),
        ("config", config),
        ("7", 7),
    ] {
        let ended = orderer.fetch(wanted, &[]);
        assert_eq!(ended.err, format!("Received block: {number}\n"));
        let file = format!("fixture_{wanted}.block");
        assert_eq!(
            ended.well(),
            format!("block {number} of channel fixture written to {file}\n")
        );
        assert_eq!(
            fs::read(orderer.folder().join(file)).unwrap(),
            block(number)
        );
    }
    // To a file of one's own, again; and into a pipe.
    for _ in 0..2 {
        orderer.fetch("3", &["mine.block"]).well();
    }
    assert_eq!(
        fs::read(orderer.folder().join("mine.block")).unwrap(),
        block(3)
    );
    let ended = orderer.fetch("3", &["-"]);
    assert_eq!(ended.out, block(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_says_what_to_look_at() {
    let orderer = Orderer::start().await;
    orderer
        .fetch("99", &[])
        .badly(&["answered NOT_FOUND", "not yet block 99", "--wait"]);
    orderer
        .fetch_by("org1.test", "Org1MSP", "newest", "nowhere", &[])
        .badly(&["answered NOT_FOUND", "does not have channel nowhere"]);
    orderer
        .fetch_by("org2.test", "Org2MSP", "newest", "fixture", &[])
        .badly(&["answered FORBIDDEN", "Org2MSP", "/Channel/Readers"]);
    orderer
        .fetch("32", &["--wait", "--timeout", "1"])
        .badly(&["has not answered within 1s", "--timeout"]);

    orderer.channel.outage.send_replace(true);
    orderer
        .fetch("newest", &[])
        .badly(&["answered SERVICE_UNAVAILABLE", "--best-effort"]);
    orderer.fetch("newest", &["--best-effort"]).well();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_fails_says_why() {
    let orderer = Orderer::start().await;
    let msp = admin_msp("org1.test");
    let fetch = |address: &str, more: &[&str]| {
        let mut arguments = vec!["channel", "fetch", "newest", "-c", "fixture", "-o", address];
        arguments.extend(more);
        let environment = [
            ("CORE_PEER_MSPCONFIGPATH", msp.as_str()),
            ("CORE_PEER_LOCALMSPID", "Org1MSP"),
        ];
        quorate(orderer.folder(), &arguments, &environment)
    };
    let ours = orderer.address.as_str();
    fetch(ours, &["--timeout", "5"]).badly(&["not encrypted", "--tls-ca"]);
    let ca = node("orderer0", "ca.crt");
    fetch(ours, &["--tls-ca", &ca]).badly(&["--client-cert and --client-key"]);
    let foreign = text(&fixture(
        "crypto/peerOrganizations/org1.test/tlsca/tlsca.org1.test-cert.pem",
    ));
    fetch(ours, &["--tls-ca", &foreign]).badly(&["cannot be reached", "unknown authority"]);
    fetch("127.0.0.1:1", &["--tls-ca", &ca]).badly(&["127.0.0.1:1 cannot be reached"]);
    fetch("orderer", &["--tls-ca", &ca])
        .badly(&["`orderer` is not an address of the form host:port"]);
    fetch(ours, &["--tls-ca", "missing.pem"]).badly(&["reading missing.pem"]);
    let key = text(&fixture("crypto/special/org1-revoked/key.pem"));
    fetch(ours, &["--tls-ca", &key]).badly(&["key.pem"]);
    fetch(ours, &["--msp-dir", "missing"]).badly(&["MSP folder missing"]);
    assert_eq!(fs::read_dir(orderer.folder()).unwrap().count(), 1);
}
