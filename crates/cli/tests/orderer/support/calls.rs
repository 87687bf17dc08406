//! gRPC calls of raw bytes: what was recorded is sent as it is, well-formed or not.

use std::fs;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use quorate_fabric::msp::LocalMsp;
use quorate_fabric::proto::orderer::{BroadcastResponse, DeliverResponse, deliver_response::Type};
use quorate_orderer::raw::RawCodec;
use quorate_orderer::store::StoredBlock;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Streaming};

use super::{PATIENCE, fixture};

const BROADCAST: &str = "/orderer.AtomicBroadcast/Broadcast";
const DELIVER: &str = "/orderer.AtomicBroadcast/Deliver";
const STEP: &str = "/orderer.Cluster/Step";

/// Longest message that is taken, in bytes.
const MAX_MESSAGE_BYTES: usize = 100 * 1024 * 1024;

/// How long a call must be silent to count as open.
const SILENCE: Duration = Duration::from_millis(40);

/// The roots of all orderers of the fixtures.
pub(super) const ROOTS: &str =
    "crypto/ordererOrganizations/orderer.test/orderers/orderer0.orderer.test/tls/ca.crt";

/// A TLS certificate and key in PEM.
#[derive(Clone)]
pub(crate) struct Identity {
    pub(super) certificate: Vec<u8>,
    pub(super) key: Vec<u8>,
}

impl Identity {
    fn read(certificate: &str, key: &str) -> Self {
        Self {
            certificate: fs::read(fixture(certificate)).unwrap(),
            key: fs::read(fixture(key)).unwrap(),
        }
    }

    /// The orderer organisation's admin.
    pub(crate) fn admin() -> Self {
        let folder = "crypto/ordererOrganizations/orderer.test/users/Admin@orderer.test/tls";
        Self::read(
            &format!("{folder}/client.crt"),
            &format!("{folder}/client.key"),
        )
    }

    /// An orderer.
    pub(crate) fn orderer(number: usize) -> Self {
        let folder = format!(
            "crypto/ordererOrganizations/orderer.test/orderers/orderer{number}.orderer.test/tls"
        );
        Self::read(
            &format!("{folder}/server.crt"),
            &format!("{folder}/server.key"),
        )
    }

    /// A pair of `crypto/special`.
    pub(crate) fn special(name: &str) -> Self {
        let folder = format!("crypto/special/{name}");
        Self::read(
            &format!("{folder}/server.crt"),
            &format!("{folder}/server.key"),
        )
    }
}

/// Who signs requests that no recording holds.
pub(crate) fn orderer_admin() -> LocalMsp {
    let folder = fixture("crypto/ordererOrganizations/orderer.test/users/Admin@orderer.test/msp");
    LocalMsp::load(&folder, "OrdererOrgMSP").unwrap()
}

/// How a call ended: with this gRPC code and text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ended(pub(crate) i32, pub(crate) String);

/// What came out of a call.
#[derive(Debug)]
pub(crate) enum Got {
    Message(Bytes),
    Ended(Ended),
}

/// A connection on which calls are made.
#[derive(Clone)]
pub(crate) struct Line {
    channel: Channel,
}

impl Line {
    /// Connects to an orderer, with or without a certificate of one's own.
    pub(crate) async fn open(port: u16, identity: Option<&Identity>) -> Result<Self, String> {
        let roots = Certificate::from_pem(fs::read(fixture(ROOTS)).unwrap());
        let mut tls = ClientTlsConfig::new()
            .ca_certificate(roots)
            .domain_name("localhost");
        if let Some(own) = identity {
            tls = tls.identity(tonic::transport::Identity::from_pem(
                &own.certificate,
                &own.key,
            ));
        }
        let endpoint = Endpoint::from_shared(format!("https://127.0.0.1:{port}"))
            .and_then(|endpoint| endpoint.tls_config(tls))
            .unwrap();
        let channel = endpoint
            .connect()
            .await
            .map_err(|error| format!("{error:?}"))?;
        Ok(Self { channel })
    }

    /// Begins a call of Broadcast.
    pub(crate) async fn broadcast(&self) -> Call {
        self.call(BROADCAST).await.unwrap()
    }

    /// Begins a call of Deliver.
    pub(crate) async fn deliver(&self) -> Call {
        self.call(DELIVER).await.unwrap()
    }

    /// Begins a call of Step, as an orderer does.
    pub(crate) async fn step(&self) -> Result<Call, Ended> {
        self.call(STEP).await
    }

    async fn call(&self, path: &'static str) -> Result<Call, Ended> {
        let (sender, requests) = mpsc::unbounded_channel();
        let mut grpc = Grpc::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let begun = async {
            grpc.ready().await.expect("the connection is ready");
            let requests = Request::new(UnboundedReceiverStream::new(requests));
            let path = PathAndQuery::from_static(path);
            grpc.streaming(requests, path, RawCodec).await
        };
        let answers = timeout(PATIENCE, begun)
            .await
            .expect("the call begins")
            .map_err(|status| Ended(status.code().into(), status.message().to_owned()))?;
        Ok(Call {
            sender,
            answers: answers.into_inner(),
        })
    }

    /// Has one envelope ordered and gives the answer.
    pub(crate) async fn submit(&self, envelope: Bytes) -> (i32, String) {
        let mut call = self.broadcast().await;
        call.send(envelope);
        call.answer().await.unwrap()
    }
}

/// A call in both directions. It ends when this is dropped.
pub(crate) struct Call {
    sender: mpsc::UnboundedSender<Bytes>,
    answers: Streaming<Bytes>,
}

impl Call {
    /// Sends a request. If the call has ended, nothing happens.
    pub(crate) fn send(&self, request: Bytes) {
        let _ = self.sender.send(request);
    }

    /// What comes next.
    pub(crate) async fn next(&mut self) -> Got {
        self.within(PATIENCE).await.expect("an answer or an end")
    }

    /// What comes next, if it comes in this time.
    pub(crate) async fn within(&mut self, patience: Duration) -> Option<Got> {
        Some(
            match timeout(patience, self.answers.message()).await.ok()? {
                Ok(Some(message)) => Got::Message(message),
                Ok(None) => Got::Ended(Ended(0, String::new())),
                Err(status) => Got::Ended(Ended(status.code().into(), status.message().to_owned())),
            },
        )
    }

    /// What comes next, if it comes at once.
    pub(crate) async fn soon(&mut self) -> Option<Got> {
        self.within(SILENCE).await
    }

    /// The next answer of Broadcast: status and info.
    pub(crate) async fn answer(&mut self) -> Result<(i32, String), Ended> {
        match self.next().await {
            Got::Message(message) => {
                let answer = BroadcastResponse::decode(message).unwrap();
                Ok((answer.status, answer.info))
            }
            Got::Ended(ended) => Err(ended),
        }
    }

    /// The next answer of Deliver: a block or a status.
    pub(crate) async fn delivery(&mut self) -> Result<Delivery, Ended> {
        match self.next().await {
            Got::Message(message) => Ok(Delivery::read(message)),
            Got::Ended(ended) => Err(ended),
        }
    }

    /// The next answer of Deliver, which must be a block.
    pub(crate) async fn block(&mut self) -> StoredBlock {
        match self.delivery().await {
            Ok(Delivery::Block(block)) => block,
            other => panic!("not a block: {other:?}"),
        }
    }
}

/// An answer of Deliver.
#[derive(Debug)]
pub(crate) enum Delivery {
    Block(StoredBlock),
    Status(i32),
}

impl Delivery {
    pub(crate) fn read(message: Bytes) -> Self {
        match DeliverResponse::decode(message).unwrap().r#type {
            Some(Type::Block(block)) => Self::Block(StoredBlock::new(&block).unwrap()),
            Some(Type::Status(status)) => Self::Status(status),
            other => panic!("neither block nor status: {other:?}"),
        }
    }
}
