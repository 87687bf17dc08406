//! The web door, by requests as bytes.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::fake::{Instance, PATIENCE, Shared};

/// `ops:secret`, `app:secret`.
const OPS: &str = "Authorization: Basic b3BzOnNlY3JldA==\r\n";
const APP: &str = "Authorization: Basic YXBwOnNlY3JldA==\r\n";
const JSON: &str = "Content-Type: application/json\r\n";

async fn open(instance: &Instance, head: &str, body: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(instance.web).await.unwrap();
    let head = format!(
        "{head}Host: node\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    // A server that has refused by the head need not read the rest.
    let _ = stream.write_all(body).await;
    stream
}

async fn exchange(instance: &Instance, head: &str, body: &[u8]) -> (u16, String, Vec<u8>) {
    let mut stream = open(instance, head, body).await;
    let mut answer = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut answer))
        .await
        .unwrap()
        .unwrap();
    let end = answer
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .unwrap()
        + 4;
    let head = String::from_utf8(answer[..end].to_vec())
        .unwrap()
        .to_lowercase();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let mut body = answer[end..].to_vec();
    if head.contains("transfer-encoding: chunked") {
        body = dechunked(&body);
    }
    (status, head, body)
}

fn dechunked(mut bytes: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    loop {
        let end = bytes.windows(2).position(|two| two == b"\r\n").unwrap();
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[..end]).unwrap(), 16).unwrap();
        if size == 0 {
            return whole;
        }
        whole.extend_from_slice(&bytes[end + 2..end + 2 + size]);
        bytes = &bytes[end + 4 + size..];
    }
}

async fn ask(instance: &Instance, line: &str, headers: &str, body: &str) -> (u16, Value) {
    let head = format!("{line} HTTP/1.1\r\n{headers}");
    let (status, _, body) = exchange(instance, &head, body.as_bytes()).await;
    let value = if body.is_empty() {
        Value::Null
    } else {
        serde_json::from_slice(&body).unwrap()
    };
    (status, value)
}

#[tokio::test]
async fn the_page_tells_people_and_probes_how_it_is() {
    let instance = Instance::start(&Shared::new());
    let (status, head, body) = exchange(&instance, "GET / HTTP/1.1\r\n", b"").await;
    let page = String::from_utf8(body).unwrap();
    assert_eq!(status, 200);
    assert!(head.contains("text/html"));
    assert!(
        page.contains("O=PartyA, L=Osaka, C=JP") && page.contains("serving"),
        "{page}"
    );
    instance
        .node
        .serving
        .store(false, std::sync::atomic::Ordering::SeqCst);
    let (status, _, body) = exchange(&instance, "GET / HTTP/1.1\r\n", b"").await;
    assert_eq!(status, 503);
    assert!(String::from_utf8(body).unwrap().contains("standby"));
    // Diagnostics answer even so: that is when one needs them.
    let (status, diagnostics) = ask(&instance, "GET /api/v1/diagnostics", OPS, "").await;
    assert_eq!((status, &diagnostics["role"]), (200, &json!("standby")));
    let (status, refusal) = ask(&instance, "GET /api/v1/node", OPS, "").await;
    assert_eq!(
        (status, &refusal["error"]["code"]),
        (503, &json!("NOT_READY"))
    );
}

#[tokio::test]
async fn the_same_api_as_json_with_the_same_permissions() {
    let shared = Shared::new();
    let instance = Instance::start(&shared);
    let (status, head, body) = exchange(&instance, "GET /api/v1/node HTTP/1.1\r\n", b"").await;
    assert_eq!(status, 401);
    assert!(head.contains("www-authenticate: basic"), "{head}");
    assert!(String::from_utf8(body).unwrap().contains("UNAUTHENTICATED"));
    let (status, info) = ask(&instance, "GET /api/v1/node", APP, "").await;
    assert_eq!((status, &info["serial"]), (200, &json!(42)));
    let (status, refusal) = ask(&instance, "GET /api/v1/flows", APP, "").await;
    assert_eq!(
        (status, &refusal["error"]["code"]),
        (403, &json!("PERMISSION_DENIED"))
    );
    assert!(
        refusal["error"]["message"]
            .as_str()
            .unwrap()
            .contains("InvokeRpc.stateMachinesSnapshot")
    );

    let headers = format!("{APP}{JSON}");
    let start =
        json!({ "clientId": "pay-1", "flow": "test.Hold", "arguments": { "a": 1 } }).to_string();
    let (status, handle) = ask(&instance, "POST /api/v1/flows", &headers, &start).await;
    assert_eq!(
        (status, &handle["reattached"]),
        (200, &json!(false)),
        "{handle}"
    );
    let flow = handle["flowId"].as_str().unwrap();
    shared.finish(&flow.parse().unwrap(), Ok(json!([1, 2])));
    let (_, flow_by_id) = ask(
        &instance,
        &format!("GET /api/v1/flows/{flow}?waitMillis=5000"),
        APP,
        "",
    )
    .await;
    assert_eq!(flow_by_id["result"], json!([1, 2]), "{flow_by_id}");
    let (_, by_client) = ask(&instance, "GET /api/v1/client-ids/pay-1", APP, "").await;
    assert_eq!(by_client, flow_by_id);
    let (_, removed) = ask(&instance, "DELETE /api/v1/client-ids/pay-1", APP, "").await;
    assert_eq!(removed, json!(true));

    let headers = format!("{OPS}{JSON}");
    let query = r#"{"criteria":{"stateTypes":["test.Thing.State"]},"page":{"size":1}}"#;
    let (status, page) = ask(&instance, "POST /api/v1/vault/query", &headers, query).await;
    assert_eq!(
        (status, &page["states"][0]["content"]["n"]),
        (200, &json!(1)),
        "{page}"
    );
    let (status, _) = ask(
        &instance,
        "PUT /api/v1/draining",
        &headers,
        r#"{"enabled":true}"#,
    )
    .await;
    assert_eq!(status, 204);
    let (_, draining) = ask(&instance, "GET /api/v1/draining", OPS, "").await;
    assert_eq!(draining, json!(true));
    let (_, party) = ask(
        &instance,
        "GET /api/v1/parties?name=O=PartyA,%20L=Osaka,C=JP",
        OPS,
        "",
    )
    .await;
    assert_eq!(party["name"], json!("O=PartyA, L=Osaka, C=JP"));

    let head = format!("POST /api/v1/attachments HTTP/1.1\r\n{OPS}");
    let (status, _, body) = exchange(&instance, &head, b"some bytes").await;
    let id = serde_json::from_slice::<Value>(&body).unwrap()["id"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(status, 201);
    let head = format!("GET /api/v1/attachments/{id} HTTP/1.1\r\n{OPS}");
    assert_eq!(exchange(&instance, &head, b"").await.2, b"some bytes");
}

#[tokio::test]
async fn nonsense_gets_an_answer_that_says_what_to_do() {
    let instance = Instance::start(&Shared::new());
    let json_ops = format!("{OPS}{JSON}");
    for (line, headers, body, status, expected) in [
        ("POST /api/v1/flows", &*json_ops, "{\"flow\":", 400, "EOF"),
        (
            "POST /api/v1/flows",
            &json_ops,
            "{\"flow\":\"test.Hold\",\"args\":{}}",
            400,
            "args",
        ),
        ("POST /api/v1/flows", OPS, "{}", 400, "Content-Type"),
        (
            "POST /api/v1/vault/query",
            &json_ops,
            "{\"page\":{\"size\":0}}",
            400,
            "states",
        ),
        ("GET /api/v1/flows/x", OPS, "", 400, "'x' is not a flow id"),
        (
            "GET /api/v1/flows/00000000-0000-0000-0000-000000000000",
            OPS,
            "",
            404,
            "not known",
        ),
        ("GET /api/v1/flows?unknown=1&waitMillis=x", OPS, "", 200, ""),
        ("GET /api/v1/vault/updates?cursor=x", OPS, "", 400, "cursor"),
        ("GET /api/v1/transactions/12", OPS, "", 400, "id"),
        ("GET /api/v1/nothing", OPS, "", 404, "openapi.json"),
        ("DELETE /api/v1/flows", OPS, "", 405, "openapi.json"),
    ] {
        let (answered, value) = ask(&instance, line, headers, body).await;
        assert_eq!(answered, status, "{line}: {value}");
        assert!(value.to_string().contains(expected), "{line}: {value}");
    }
    let large = "x".repeat(12 * 1024 * 1024);
    let mut stream = open(
        &instance,
        &format!("POST /api/v1/flows HTTP/1.1\r\n{json_ops}"),
        large.as_bytes(),
    )
    .await;
    let mut start = [0; 12];
    if stream.read_exact(&mut start).await.is_ok() {
        assert_eq!(&start[9..], b"413");
    }
    // Another site's page does not get to use the password that a browser remembers.
    let head = format!(
        "POST /api/v1/flow-control/pauseAll HTTP/1.1\r\n{OPS}Origin: http://evil.example\r\n"
    );
    assert_eq!(exchange(&instance, &head, b"").await.0, 403);
    let head =
        format!("POST /api/v1/flow-control/pauseAll HTTP/1.1\r\n{OPS}Origin: http://node\r\n");
    assert_eq!(exchange(&instance, &head, b"").await.0, 200);
}

#[tokio::test]
async fn updates_come_by_polling_and_as_events_from_a_cursor_on() {
    let shared = Shared::new();
    let instance = Instance::start(&shared);
    for _ in 0..5 {
        shared.record();
    }
    let line = "GET /api/v1/vault/updates?cursor=2&limit=2";
    let (_, batch) = ask(&instance, line, OPS, "").await;
    assert_eq!(
        (&batch["cursor"], &batch["updates"][0]["cursor"]),
        (&json!(4), &json!(3))
    );
    let waiting = async {
        ask(
            &instance,
            "GET /api/v1/vault/updates?cursor=5&waitMillis=10000",
            OPS,
            "",
        )
        .await
    };
    let recording = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        shared.record();
    };
    let ((_, batch), ()) = tokio::join!(waiting, recording);
    assert_eq!(batch["updates"][0]["cursor"], json!(6));

    let head = format!(
        "GET /api/v1/vault/updates HTTP/1.1\r\n{OPS}Accept: text/event-stream\r\nLast-Event-ID: 4\r\n"
    );
    let mut lines = BufReader::new(open(&instance, &head, b"").await).lines();
    let mut ids = Vec::new();
    while ids.len() < 3 {
        let line = timeout(PATIENCE, lines.next_line())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        if let Some(id) = line.strip_prefix("id: ") {
            ids.push(id.to_owned());
            if ids.len() == 2 {
                shared.record();
            }
        }
    }
    assert_eq!(ids, ["5", "6", "7"]);
    // The stream does not hold up an orderly stop.
    assert!(instance.stop().await);
}

#[tokio::test]
async fn the_description_describes_what_is_served() {
    let instance = Instance::start(&Shared::new());
    let (status, description) = ask(&instance, "GET /openapi.json", "", "").await;
    assert_eq!(status, 200);
    let paths = description["paths"].as_object().unwrap();
    let mut operations = 0;
    for (path, verbs) in paths {
        for verb in verbs.as_object().unwrap().keys() {
            operations += 1;
            let path = path.replace("{flowId}", "00000000-0000-0000-0000-000000000000");
            let path = path
                .replace("{id}", &"0".repeat(64))
                .replace("{clientId}", "none");
            let line = format!("{} {path}", verb.to_uppercase());
            // Without credentials: it is there, and it is guarded.
            let (status, _) = ask(&instance, &line, "", "").await;
            assert_eq!(status, 401, "{line}");
        }
    }
    assert_eq!(operations, 32);
}
