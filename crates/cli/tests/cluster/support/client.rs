//! Clients: envelopes in, and what they were told.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::{StreamExt as _, stream};
use prost::Message as _;
use quorate_fabric::config::{ChannelConfig, compute_update, sign_update};
use quorate_fabric::envelope::{RawEnvelope, sign, tx_id};
use quorate_fabric::msp::{LocalMsp, Signer};
use quorate_fabric::proto::common::{
    ChannelHeader, Config, ConfigUpdateEnvelope, HeaderType, Payload, Status,
};
use quorate_orderer::grpc::{AtomicBroadcastClient, DeliverResponse, Position, SeekRequest};
use quorate_orderer::store::StoredBlock;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

use super::network::{CHANNEL, Network};
use super::{Dice, now_micros};

/// Longest message that is taken, in bytes.
const MAX_MESSAGE_BYTES: usize = 100 * 1024 * 1024;
/// How long a client waits for an answer.
const ANSWER: Duration = Duration::from_secs(2);
/// How long a client rests between two envelopes.
const PAUSE: Duration = Duration::from_millis(15);

/// What becomes of an envelope, as far as its client knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It is ordered.
    Acknowledged,
    /// Refused, or no answer: it may be ordered or not.
    Unknown,
}

/// A way for clients to one orderer. It connects when it is used.
#[derive(Clone)]
pub(crate) struct Line {
    client: AtomicBroadcastClient<Channel>,
}

impl Line {
    pub(crate) fn new(port: u16, roots: &[u8]) -> Self {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(roots))
            .domain_name("localhost");
        let endpoint = Endpoint::from_shared(format!("https://127.0.0.1:{port}"))
            .and_then(|endpoint| endpoint.tls_config(tls))
            .unwrap()
            .connect_timeout(Duration::from_secs(1));
        Self {
            client: AtomicBroadcastClient::new(endpoint.connect_lazy(), MAX_MESSAGE_BYTES),
        }
    }

    /// Has one envelope ordered; in words why not.
    pub(crate) async fn submit(&self, envelope: RawEnvelope) -> Result<(), String> {
        let mut client = self.client.clone();
        let work = async {
            let requests = stream::iter([envelope]).chain(stream::pending());
            let mut answers = client.broadcast(requests).await?;
            answers.message().await
        };
        match timeout(ANSWER, work).await {
            Err(_) => Err("no answer".to_owned()),
            Ok(Err(status)) => Err(status.to_string()),
            Ok(Ok(None)) => Err("the call ended".to_owned()),
            Ok(Ok(Some(answer))) if answer.status == Status::Success as i32 => Ok(()),
            Ok(Ok(Some(answer))) => Err(format!("{} {}", answer.status, answer.info)),
        }
    }

    /// All blocks below `height`.
    pub(crate) async fn chain(
        &self,
        height: u64,
        reader: &LocalMsp,
    ) -> Result<Vec<StoredBlock>, String> {
        let request = SeekRequest {
            fail_if_not_ready: true,
            best_effort: true,
            ..SeekRequest::new(CHANNEL, Position::Oldest, Position::Number(height - 1))
        }
        .sign(reader, &nonce(), now_micros())
        .unwrap();
        let mut client = self.client.clone();
        let work = async {
            let requests = stream::iter([request]).chain(stream::pending());
            let mut answers = client
                .deliver(requests)
                .await
                .map_err(|status| status.to_string())?;
            let mut blocks = Vec::new();
            loop {
                match answers.message().await {
                    Ok(Some(DeliverResponse::Block(bytes))) => {
                        blocks.push(StoredBlock::decode(bytes).map_err(|error| error.to_string())?);
                    }
                    Ok(Some(DeliverResponse::Status(Status::Success))) => return Ok(blocks),
                    other => return Err(format!("after {} blocks: {other:?}", blocks.len())),
                }
            }
        };
        timeout(super::PATIENCE, work)
            .await
            .map_err(|_| "no answer".to_owned())?
    }
}

/// One that was never used before.
fn nonce() -> [u8; 24] {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let mut nonce = [0; 24];
    nonce[..8].copy_from_slice(&COUNT.fetch_add(1, Ordering::Relaxed).to_be_bytes());
    nonce[8..16].copy_from_slice(&now_micros().to_be_bytes());
    nonce
}

/// A message of the channel.
fn envelope(kind: HeaderType, data: Vec<u8>, signer: &LocalMsp) -> RawEnvelope {
    let nonce = nonce();
    let now = now_micros();
    let header = ChannelHeader {
        r#type: kind as i32,
        timestamp: Some(prost_types::Timestamp {
            seconds: now / 1_000_000,
            nanos: 0,
        }),
        channel_id: CHANNEL.to_owned(),
        tx_id: tx_id(&nonce, &signer.creator()),
        ..ChannelHeader::default()
    };
    sign(&header, data, &nonce, signer).unwrap()
}

/// A transaction, named by its words.
pub(crate) fn transaction(words: &str, signer: &LocalMsp) -> RawEnvelope {
    envelope(
        HeaderType::EndorserTransaction,
        words.as_bytes().to_vec(),
        signer,
    )
}

/// The message that changes the channel's configuration.
pub(crate) fn update(current: &ChannelConfig, wanted: &Config, admin: &LocalMsp) -> RawEnvelope {
    let update = compute_update(CHANNEL, current.proto(), wanted)
        .unwrap()
        .encode_to_vec();
    let signature = sign_update(&update, &nonce(), admin).unwrap();
    let signed = ConfigUpdateEnvelope {
        config_update: update,
        signatures: vec![signature],
    };
    envelope(HeaderType::ConfigUpdate, signed.encode_to_vec(), admin)
}

/// The words of a transaction in a block; `None` for configurations.
pub(crate) fn words(payload: &Payload) -> Option<String> {
    let header = payload.header.as_ref()?;
    let header = ChannelHeader::decode(header.channel_header.as_slice()).unwrap();
    (header.r#type == HeaderType::EndorserTransaction as i32)
        .then(|| String::from_utf8(payload.data.clone()).unwrap())
}

/// What all clients were told.
pub(crate) type Books = Vec<(String, Answer)>;

/// Clients that submit, each through an orderer of its choice at a time, until they are stopped. None repeats an envelope.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    /// Why the last ones were not.
    refusals: Arc<Mutex<Vec<String>>>,
    clients: Vec<JoinHandle<Books>>,
}

impl Load {
    pub(crate) fn start(network: &Network, among: &[usize], clients: usize, seed: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let refusals = Arc::new(Mutex::new(Vec::new()));
        let lines: Vec<Line> = among
            .iter()
            .map(|number| network.orderers[*number].line())
            .collect();
        let start = |client: usize| {
            let (stop, acknowledged) = (stop.clone(), acknowledged.clone());
            let refusals = refusals.clone();
            let (lines, signer) = (lines.clone(), network.admin.clone());
            let mut dice = Dice::new(seed ^ (client as u64) << 32);
            tokio::spawn(async move {
                let mut books = Books::new();
                let mut line = dice.below(lines.len());
                while !stop.load(Ordering::Relaxed) {
                    let name = format!("client {client} envelope {} seed {seed}", books.len());
                    let envelope = transaction(&name, &signer);
                    let answer = match lines[line].submit(envelope).await {
                        Ok(()) => {
                            acknowledged.fetch_add(1, Ordering::Relaxed);
                            if dice.below(10) == 0 {
                                line = dice.below(lines.len());
                            }
                            Answer::Acknowledged
                        }
                        Err(reason) => {
                            refusals.lock().unwrap().push(reason);
                            line = dice.below(lines.len());
                            Answer::Unknown
                        }
                    };
                    books.push((name, answer));
                    sleep(PAUSE).await;
                }
                books
            })
        };
        Self {
            clients: (0..clients).map(start).collect(),
            stop,
            acknowledged,
            refusals,
        }
    }

    /// How many envelopes were acknowledged.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Waits until as many more have been acknowledged; how long that took.
    pub(crate) async fn progress(&self, more: u64) -> Duration {
        let begin = Instant::now();
        let goal = self.acknowledged() + more;
        loop {
            if self.acknowledged() >= goal {
                return begin.elapsed();
            }
            assert!(
                begin.elapsed() < super::PATIENCE,
                "{more} more envelopes are not acknowledged within {:?}; the last refusals: {:?}",
                super::PATIENCE,
                self.refusals
                    .lock()
                    .unwrap()
                    .iter()
                    .rev()
                    .take(10)
                    .collect::<Vec<_>>()
            );
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Ends the load.
    pub(crate) async fn stop(self) -> Books {
        self.stop.store(true, Ordering::Relaxed);
        let mut books = Books::new();
        for client in self.clients {
            books.extend(client.await.unwrap());
        }
        books
    }
}
