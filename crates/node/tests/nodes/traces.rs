//! One payment is one trace through all nodes, as a collector of OpenTelemetry sees it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::world::*;

// OTLP as its specification numbers the fields, for an independent reading of what was sent.

#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(message, repeated, tag = "1")]
    resource_spans: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scope_spans: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct AnyValue {
    #[prost(string, tag = "1")]
    string_value: String,
}

#[derive(Clone, PartialEq, Message)]
struct ScopeSpans {
    #[prost(message, repeated, tag = "2")]
    spans: Vec<Span>,
}

#[derive(Clone, PartialEq, Message)]
struct Span {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    span_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(int32, tag = "6")]
    kind: i32,
    #[prost(fixed64, tag = "7")]
    start: u64,
    #[prost(fixed64, tag = "8")]
    end: u64,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<KeyValue>,
    #[prost(message, optional, tag = "15")]
    status: Option<Status>,
}

#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(string, tag = "2")]
    message: String,
    #[prost(int32, tag = "3")]
    code: i32,
}

const SERVER: i32 = 2;
const PRODUCER: i32 = 4;
const CONSUMER: i32 = 5;

/// Spans with the node that sent them.
type Seen = Arc<Mutex<Vec<(String, Span)>>>;

/// A collector: where it listens, and what it has got.
async fn collector() -> (u16, Seen) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let seen = Seen::default();
    let spans = Arc::clone(&seen);
    tokio::spawn(async move {
        // The first request fails: a collector that restarts loses nothing but time.
        let mut first = true;
        while let Ok((stream, _)) = listener.accept().await {
            let refuse = std::mem::replace(&mut first, false);
            answer(stream, refuse, &spans).await;
        }
    });
    (port, seen)
}

async fn answer(mut stream: TcpStream, refuse: bool, seen: &Seen) {
    let mut bytes = Vec::new();
    let (head, length) = loop {
        if stream.read_buf(&mut bytes).await.unwrap() == 0 {
            return;
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some(end) = text.find("\r\n\r\n") {
            let head = text[..end].to_ascii_lowercase();
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "));
            let length: usize = length.unwrap().parse().unwrap();
            break (head, end + 4 + length);
        }
    };
    assert!(head.starts_with("post /v1/traces http/1.1"), "{head}");
    assert!(
        head.contains("content-type: application/x-protobuf"),
        "{head}"
    );
    while bytes.len() < length {
        stream.read_buf(&mut bytes).await.unwrap();
    }
    let status = if refuse {
        "503 Service Unavailable"
    } else {
        "200 OK"
    };
    if !refuse {
        let request = Request::decode(&bytes[bytes.len() - (length - head.len() - 4)..]).unwrap();
        for resource in request.resource_spans {
            let attributes = resource.resource.unwrap_or_default().attributes;
            let node = value(&attributes, "service.name").unwrap_or_default();
            let spans = resource
                .scope_spans
                .into_iter()
                .flat_map(|scope| scope.spans);
            let spans = spans.map(|span| (node.clone(), span));
            seen.lock().unwrap().extend(spans);
        }
    }
    let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    let _ = stream.write_all(answer.as_bytes()).await;
}

fn value(attributes: &[KeyValue], key: &str) -> Option<String> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    Some(found.value.clone()?.string_value)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_is_one_trace_through_all_nodes() {
    let (port, seen) = collector().await;
    let traced = || {
        format!(
            "telemetry {{ openTelemetryEnabled = true, endpoint = \"http://127.0.0.1:{port}\" }}\n"
        )
    };
    let plans = vec![
        plan("PartyA").with(&traced()),
        plan("PartyB").with(&traced()),
        // Whoever draws no traces passes them on and answers nevertheless.
        plan("Notary").notary(),
    ];
    let world = World::new(plans).await;
    let [a, b, notary] = world.start_all(["PartyA", "PartyB", "Notary"]).await;
    let (client_a, client_b) = (a.client().await, b.client().await);
    issue(&client_a, "10").await;
    let caller = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
    let body = serde_json::json!({ "flow": "cash.Payment", "arguments": payment("4", "PartyB") });
    let traceparent = format!("00-{}-{}-01", caller.0, caller.1);
    let started = start_over_http(&a, &traceparent, &body.to_string()).await;
    assert!((200..300).contains(&started.0), "{started:?}");
    eventually("the money has arrived", || async {
        balance(&client_b).await == 400
    })
    .await;

    let (party_a, party_b) = (name("PartyA").to_string(), name("PartyB").to_string());
    let of_trace = |seen: &Seen| -> Vec<(String, Span)> {
        let spans = seen.lock().unwrap();
        let wanted = hex::decode(caller.0).unwrap();
        let ours = spans.iter().filter(|(_, span)| span.trace_id == wanted);
        ours.cloned().collect()
    };
    let find = |spans: &[(String, Span)], node: &str, what: &str, kind: i32| -> Option<Span> {
        let mut spans = spans.iter();
        let found = spans.find(|(by, span)| by == node && span.name == what && span.kind == kind);
        found.map(|(_, span)| span.clone())
    };
    eventually("all spans have come", || async {
        let spans = of_trace(&seen);
        let flow = find(&spans, &party_a, "cash.Payment", 1);
        let answering = find(&spans, &party_b, "cash.Payment", SERVER);
        let received = find(&spans, &party_b, "receive cash.Payment", CONSUMER);
        let sent = find(&spans, &party_a, "send cash.Payment", PRODUCER);
        let asked = find(&spans, &party_a, "send quorate.Notarise", PRODUCER);
        flow.is_some()
            && answering.is_some()
            && received.is_some()
            && sent.is_some()
            && asked.is_some()
    })
    .await;
    let spans = of_trace(&seen);
    let call = find(&spans, &party_a, "startFlow", SERVER).unwrap();
    let flow = find(&spans, &party_a, "cash.Payment", 1).unwrap();
    let answering = find(&spans, &party_b, "cash.Payment", SERVER).unwrap();
    let sent = find(&spans, &party_a, "send cash.Payment", PRODUCER).unwrap();
    let received = find(&spans, &party_b, "receive cash.Payment", CONSUMER).unwrap();
    assert_eq!(hex::encode(&call.parent_span_id), caller.1);
    assert_eq!(flow.parent_span_id, call.span_id);
    assert_eq!(answering.parent_span_id, flow.span_id);
    assert_eq!(sent.parent_span_id, flow.span_id);
    assert_eq!(received.parent_span_id, flow.span_id);
    assert_eq!(
        value(&call.attributes, "enduser.id").as_deref(),
        Some("admin")
    );
    assert!(flow.start <= flow.end && flow.end > 1_600_000_000_000_000_000);
    assert!(flow.status.is_none(), "{:?}", flow.status);
    let ids: BTreeMap<_, _> = spans
        .iter()
        .map(|(_, span)| (span.span_id.clone(), ()))
        .collect();
    assert_eq!(ids.len(), spans.len(), "each span has an id of its own");
    assert!(
        !spans
            .iter()
            .any(|(node, _)| *node == name("Notary").to_string())
    );

    // What fails says so.
    let error = pay(&client_a, "1000", "PartyB").await.unwrap_err();
    eventually("the failure has come", || async {
        let spans = seen.lock().unwrap();
        let failed = spans.iter().filter(|(_, span)| span.name == "cash.Payment");
        failed
            .filter_map(|(_, span)| span.status.clone())
            .any(|status| status.code == 2)
    })
    .await;
    drop(error);
    for node in [a, b, notary] {
        node.stop().await;
    }
}

/// Starts a flow in the trace of somebody else.
async fn start_over_http(node: &Running, traceparent: &str, body: &str) -> (u16, String) {
    use base64::Engine;
    let web = node.addresses.web.unwrap();
    let credentials = base64::engine::general_purpose::STANDARD.encode("admin:secret");
    let request = format!(
        "POST /api/v1/flows HTTP/1.1\r\nhost: {web}\r\nconnection: close\r\ntraceparent: {traceparent}\r\n\
         content-type: application/json\r\nauthorization: Basic {credentials}\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = TcpStream::connect(web).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    (answer.split(' ').nth(1).unwrap().parse().unwrap(), answer)
}
