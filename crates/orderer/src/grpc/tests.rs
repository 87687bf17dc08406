//! The services without a network: the client calls the server directly, with HTTP messages in between.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::{Arc, Mutex};

use bytes::{BufMut, Bytes, BytesMut};
use futures::{StreamExt, stream};
use proptest::prelude::*;
use prost::Message;
use quorate_fabric::envelope::RawEnvelope;
use quorate_fabric::proto::common::{Block, BlockData, BlockHeader, Status};
use quorate_fabric::proto::orderer::{self, BroadcastResponse, deliver_response};
use quorate_runtime::metrics::Metrics;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Code, Request, Streaming};

use super::messages::Response as _;
use super::*;
use crate::raw::RawCodec;

const MAX_BYTES: usize = 10_000;

/// Takes every envelope, and remembers it.
#[derive(Default)]
struct Taker {
    taken: Arc<Mutex<Vec<Bytes>>>,
}

impl Broadcast for Taker {
    fn broadcast(&self, _: Caller, requests: Requests) -> Responses<BroadcastResponse> {
        let taken = self.taken.clone();
        requests
            .map(move |request| {
                request.map(|envelope| {
                    taken.lock().unwrap().push(envelope.encoded().clone());
                    BroadcastResponse {
                        status: Status::Success.into(),
                        info: String::new(),
                    }
                })
            })
            .boxed()
    }
}

/// Answers every request with the same block and a status.
struct Giver(Bytes);

impl Deliver for Giver {
    fn deliver(&self, _: Caller, requests: Requests) -> Responses<DeliverResponse> {
        let block = self.0.clone();
        requests
            .flat_map(move |request| {
                stream::iter(match request {
                    Ok(_) => vec![
                        Ok(DeliverResponse::Block(block.clone())),
                        Ok(DeliverResponse::Status(Status::Success)),
                    ],
                    Err(status) => vec![Err(status)],
                })
            })
            .boxed()
    }
}

struct Fixture {
    server: AtomicBroadcastServer,
    taken: Arc<Mutex<Vec<Bytes>>>,
    metrics: Metrics,
}

fn fixture(block: Bytes) -> Fixture {
    let metrics = Metrics::new();
    let taker = Taker::default();
    let taken = taker.taken.clone();
    Fixture {
        server: AtomicBroadcastServer::new(
            Arc::new(taker),
            Arc::new(Giver(block)),
            MAX_BYTES,
            &crate::metrics::OrdererMetrics::new(&metrics, false).grpc,
        ),
        taken,
        metrics,
    }
}

fn block() -> Block {
    Block {
        header: Some(BlockHeader {
            number: 7,
            ..BlockHeader::default()
        }),
        data: Some(BlockData {
            data: vec![Bytes::from_static(b"an envelope")],
        }),
        metadata: None,
    }
}

/// Sends these bytes as messages and returns the answers' bytes.
async fn send_raw(
    server: &AtomicBroadcastServer,
    path: &'static str,
    messages: Vec<Bytes>,
) -> Result<Streaming<Bytes>, tonic::Status> {
    let mut grpc = tonic::client::Grpc::new(server.clone());
    grpc.ready().await.unwrap();
    grpc.streaming(
        Request::new(stream::iter(messages)),
        PathAndQuery::from_static(path),
        RawCodec,
    )
    .await
    .map(tonic::Response::into_inner)
}

const BROADCAST: &str = "/orderer.AtomicBroadcast/Broadcast";
const DELIVER: &str = "/orderer.AtomicBroadcast/Deliver";

#[tokio::test]
async fn an_envelope_keeps_the_fields_that_we_do_not_know() {
    let fixture = fixture(Bytes::new());
    let mut sent = RawEnvelope::new(b"payload", b"signature")
        .encoded()
        .to_vec();
    // Field 99, a text.
    sent.extend([0x9a, 0x06, 3, b'n', b'e', b'w']);
    let sent = Bytes::from(sent);
    let mut client = AtomicBroadcastClient::new(fixture.server.clone(), MAX_BYTES);
    let envelope = RawEnvelope::decode(sent.clone()).unwrap();
    let mut answers = client
        .broadcast(stream::iter([envelope.clone(), envelope]))
        .await
        .unwrap();
    for _ in 0..2 {
        let answer = answers.message().await.unwrap().unwrap();
        assert_eq!(answer.status(), Status::Success);
    }
    assert!(answers.message().await.unwrap().is_none());
    assert_eq!(*fixture.taken.lock().unwrap(), [sent.clone(), sent]);

    let text = fixture.metrics.render();
    for line in [
        r#"grpc_server_stream_requests_received{method="Broadcast",service="orderer_AtomicBroadcast"} 1"#,
        r#"grpc_server_stream_messages_received{method="Broadcast",service="orderer_AtomicBroadcast"} 2"#,
        r#"grpc_server_stream_messages_sent{method="Broadcast",service="orderer_AtomicBroadcast"} 2"#,
        r#"grpc_server_stream_requests_completed{code="OK",method="Broadcast",service="orderer_AtomicBroadcast"} 1"#,
        r#"grpc_server_stream_request_duration_count{code="OK",method="Broadcast",service="orderer_AtomicBroadcast"} 1"#,
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

#[tokio::test]
async fn a_block_is_sent_as_the_message_that_it_is() {
    let block = block();
    let mut bytes = block.encode_to_vec();
    // What a decoder would lose.
    bytes.extend([0x9a, 0x06, 3, b'n', b'e', b'w']);
    let bytes = Bytes::from(bytes);
    let fixture = fixture(bytes.clone());

    let mut client = AtomicBroadcastClient::new(fixture.server.clone(), MAX_BYTES);
    let request = RawEnvelope::new(b"seek", b"");
    let mut answers = client
        .deliver(stream::iter([request.clone()]))
        .await
        .unwrap();
    assert_eq!(
        answers.message().await.unwrap(),
        Some(DeliverResponse::Block(bytes))
    );
    assert_eq!(
        answers.message().await.unwrap(),
        Some(DeliverResponse::Status(Status::Success))
    );
    assert!(answers.message().await.unwrap().is_none());

    // A stranger's client understands it.
    let mut answers = send_raw(&fixture.server, DELIVER, vec![request.encoded().clone()])
        .await
        .unwrap();
    let mut heard = Vec::new();
    while let Some(answer) = answers.message().await.unwrap() {
        heard.push(
            orderer::DeliverResponse::decode(answer)
                .unwrap()
                .r#type
                .unwrap(),
        );
    }
    assert_eq!(
        heard,
        [
            deliver_response::Type::Block(block),
            deliver_response::Type::Status(200)
        ]
    );
}

/// The two cases recorded from Fabric.
#[tokio::test]
async fn a_message_that_is_none_ends_the_call_with_gos_words() {
    let recorded = |name| {
        let path = format!(
            "{}/../../fixtures/fabric/statuses/requests/{name}",
            env!("CARGO_MANIFEST_DIR")
        );
        Bytes::from(std::fs::read(path).unwrap())
    };
    let fixture = fixture(Bytes::new());
    for (path, request) in [
        (BROADCAST, recorded("b-malformed-envelope.pb")),
        (DELIVER, recorded("d-malformed-envelope.pb")),
    ] {
        let good = RawEnvelope::new(b"payload", b"").encoded().clone();
        let mut answers = send_raw(&fixture.server, path, vec![good, request])
            .await
            .unwrap();
        let status = loop {
            match answers.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("{path} went well"),
                Err(status) => break status,
            }
        };
        assert_eq!(status.code(), Code::Internal);
        // Go's library writes one space or another, depending on its build.
        assert_eq!(
            status.message().replace('\u{a0}', " "),
            "grpc: failed to unmarshal the received message: proto: cannot parse invalid wire-format data"
        );
    }
    let text = fixture.metrics.render();
    let line = r#"grpc_server_stream_requests_completed{code="Internal",method="Deliver",service="orderer_AtomicBroadcast"} 1"#;
    assert!(text.contains(line), "{text}");
}

#[tokio::test]
async fn a_message_that_is_too_long_is_refused() {
    let fixture = fixture(Bytes::new());
    let long = RawEnvelope::new(&[1; MAX_BYTES], b"").encoded().clone();
    let mut answers = send_raw(&fixture.server, BROADCAST, vec![long])
        .await
        .unwrap();
    let status = answers.message().await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert!(fixture.taken.lock().unwrap().is_empty());
}

#[tokio::test]
async fn other_methods_are_unknown() {
    let fixture = fixture(Bytes::new());
    let status = send_raw(
        &fixture.server,
        "/orderer.AtomicBroadcast/Shout",
        Vec::new(),
    )
    .await
    .unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    assert_eq!(
        status.message(),
        "unknown method Shout for service orderer.AtomicBroadcast"
    );
}

#[tokio::test]
async fn a_client_that_leaves_has_cancelled() {
    let fixture = fixture(Bytes::new());
    let mut client = AtomicBroadcastClient::new(fixture.server.clone(), MAX_BYTES);
    let answers = client.broadcast(stream::pending()).await.unwrap();
    drop(answers);
    let text = fixture.metrics.render();
    let line = r#"grpc_server_stream_requests_completed{code="Canceled",method="Broadcast",service="orderer_AtomicBroadcast"} 1"#;
    assert!(text.contains(line), "{text}");
}

fn written(response: DeliverResponse) -> Bytes {
    let mut target = BytesMut::new();
    response.write(&mut target);
    target.freeze()
}

proptest! {
    #[test]
    fn delivered_blocks_are_protobuf(block in proptest::collection::vec(any::<u8>(), 0..300)) {
        let block = Bytes::from(block);
        let response = DeliverResponse::Block(block.clone());
        let message = written(response.clone());
        let mut expected = vec![0x12];
        prost::encoding::encode_varint(block.len() as u64, &mut expected);
        expected.put(block);
        prop_assert_eq!(&message, &expected);
        prop_assert_eq!(DeliverResponse::read(message.clone()).unwrap(), response);
        // Cut anywhere, it is refused, or it is nothing at all.
        for kept in 1..message.len() {
            prop_assert!(DeliverResponse::read(message.slice(..kept)).is_err());
        }
    }

    #[test]
    fn any_bytes_are_a_response_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        let bytes = Bytes::from(bytes);
        let ours = DeliverResponse::read(bytes.clone());
        // Whatever the library takes, we take; it looks into the block, and we do not.
        if orderer::DeliverResponse::decode(bytes).is_ok() {
            prop_assert!(ours.is_ok());
        }
    }
}

#[test]
fn statuses_are_protobuf() {
    for status in [
        Status::Unknown,
        Status::Success,
        Status::NotFound,
        Status::ServiceUnavailable,
    ] {
        let message = written(DeliverResponse::Status(status));
        let expected = orderer::DeliverResponse {
            r#type: Some(deliver_response::Type::Status(status.into())),
        };
        assert_eq!(message, expected.encode_to_vec());
        assert_eq!(
            DeliverResponse::read(message).unwrap(),
            DeliverResponse::Status(status)
        );
    }
    // Numbers that we do not know, negative ones too, and no message at all.
    for number in [1, -1, i32::MIN, i32::MAX] {
        let message = orderer::DeliverResponse {
            r#type: Some(deliver_response::Type::Status(number)),
        };
        assert_eq!(
            DeliverResponse::read(message.encode_to_vec().into()).unwrap(),
            DeliverResponse::Status(Status::Unknown)
        );
    }
    assert_eq!(
        DeliverResponse::read(Bytes::new()).unwrap(),
        DeliverResponse::Status(Status::Unknown)
    );
}
