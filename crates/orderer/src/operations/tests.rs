#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::to_bytes;
use quorate_identity::mutual_tls::{ClientAuth, ClientTls, Credentials, Roots, ServerTls};
use quorate_runtime::{Metrics, Tasks};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tower::ServiceExt as _;

use super::*;
use crate::https::Endpoint;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/fabric");

fn operations() -> Operations {
    Operations {
        overview: Arc::new(|| {
            Box::pin(std::future::ready(Overview {
                status: "OK".to_owned(),
                ready: true,
                version: "1".to_owned(),
                checks: Default::default(),
                certificates: Vec::new(),
                channels: Default::default(),
            }))
        }),
        health: Health::new(),
        readiness: Readiness::new(),
        metrics: Some(OrdererMetrics::new(&Metrics::new(), false)),
        logs: LogControl::detached(),
        version: Version {
            version: "latest".to_owned(),
            commit: "development build".to_owned(),
        },
        clock: Clock::system(),
        entropy: Entropy::seeded(1),
    }
}

/// `"time":"…"` varies.
fn without_time(body: &str) -> String {
    match body.split_once("\"time\":\"") {
        Some((before, after)) => {
            let (_, after) = after.split_once('"').unwrap();
            format!("{before}\"time\":\"\"{after}")
        }
        None => body.to_owned(),
    }
}

#[tokio::test]
async fn the_recorded_exchanges_are_answered_as_recorded() {
    let text =
        std::fs::read_to_string(format!("{FIXTURES}/participation/operations.json")).unwrap();
    let cases: Vec<Value> = serde_json::from_str(&text).unwrap();
    // In order: specifications are set and read back.
    let router = operations().router();
    for case in &cases {
        let name = case["name"].as_str().unwrap();
        let caller = match name {
            _ if name.ends_with("-without-client-certificate") => {
                Caller::Tls { certificate: false }
            }
            _ if name.ends_with("-with-client-certificate") => Caller::Tls { certificate: true },
            _ => Caller::Plain,
        };
        let body = case["request_body"].as_str().unwrap_or_default();
        let request = Request::builder()
            .method(case["method"].as_str().unwrap())
            .uri(case["path"].as_str().unwrap())
            .extension(caller)
            .body(Body::from(body.to_owned()))
            .unwrap();
        let answer = router.clone().oneshot(request).await.unwrap();
        assert_eq!(
            u64::from(answer.status().as_u16()),
            case["status"].as_u64().unwrap(),
            "{name}"
        );
        let mut headers: BTreeMap<String, String> = answer
            .headers()
            .iter()
            .map(|(header, value)| (header.to_string(), value.to_str().unwrap().to_owned()))
            .collect();
        let mut expected: BTreeMap<String, String> = case["response_headers"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(header, value)| (header.to_lowercase(), value.as_str().unwrap().to_owned()))
            .collect();
        if let Some(id) = expected.get_mut("x-request-id") {
            *id = headers.get("x-request-id").cloned().unwrap_or_default();
            assert_eq!(id.len(), 36, "{name}");
        }
        headers.remove("content-length");
        expected.remove("content-length");
        assert_eq!(headers, expected, "{name}");
        let bytes = to_bytes(answer.into_body(), 1 << 20).await.unwrap();
        let text = std::str::from_utf8(&bytes).unwrap();
        if name.contains("metrics") && case["status"] == 200 {
            assert!(text.contains("# TYPE go_gc_duration_seconds summary"));
        } else {
            assert_eq!(
                without_time(text),
                without_time(case["response_body"].as_str().unwrap()),
                "{name}"
            );
        }
    }
}

#[tokio::test]
async fn failing_checks_and_readiness_are_told() {
    let operations = operations();
    operations
        .health
        .register("disk", || async { Err("full <99%>".to_owned()) });
    let readiness = operations.readiness.clone();
    let router = operations.router();
    let get = |path: &str| {
        let request = Request::builder()
            .uri(path)
            .extension(Caller::Tls { certificate: false })
            .body(Body::empty())
            .unwrap();
        let router = router.clone();
        async move {
            let answer = router.oneshot(request).await.unwrap();
            let status = answer.status().as_u16();
            let bytes = to_bytes(answer.into_body(), 1 << 20).await.unwrap();
            (status, without_time(std::str::from_utf8(&bytes).unwrap()))
        }
    };
    assert_eq!(
        get("/healthz").await,
        (
            503,
            r#"{"status":"Service Unavailable","time":"","failed_checks":[{"component":"disk","reason":"full \u003c99%\u003e"}]}"#.to_owned()
        )
    );
    assert_eq!(get("/readyz").await.0, 503);
    readiness.set(quorate_runtime::operations::ReadyReport::new(
        true, "active",
    ));
    let (status, body) = get("/readyz").await;
    assert!(status == 200 && body.contains("\"active\""), "{body}");
}

#[tokio::test]
async fn metrics_that_go_elsewhere_are_not_served() {
    let router = Operations {
        metrics: None,
        ..operations()
    }
    .router();
    let request = Request::builder()
        .uri("/metrics")
        .extension(Caller::Plain)
        .body(Body::empty())
        .unwrap();
    let answer = router.oneshot(request).await.unwrap();
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
}

fn file(path: &str) -> Vec<u8> {
    let tls = "crypto/ordererOrganizations/orderer.test/orderers/orderer0.orderer.test/tls";
    std::fs::read(format!("{FIXTURES}/{tls}/{path}")).unwrap()
}

async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // A TLS server may end without saying goodbye.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn with_tls_certificates_are_asked_for_where_fabric_asks() {
    let ca = file("ca.crt");
    let roots = Roots::from_pem([ca.as_slice()]).unwrap();
    let credentials = Credentials::from_pem(&file("server.crt"), &file("server.key")).unwrap();
    let clock: quorate_identity::tls::Clock = {
        let clock = Clock::system();
        Arc::new(move || quorate_identity::UnixTime(clock.now_micros() / 1_000_000))
    };
    let server = ServerTls {
        credentials: credentials.clone(),
        roots: roots.clone(),
        client_auth: ClientAuth::Optional,
        clock: clock.clone(),
        alpn: Vec::new(),
    };
    let tasks = Tasks::new("test");
    let endpoint = Endpoint::bind("operations endpoint", "127.0.0.1:0")
        .await
        .unwrap();
    let address = endpoint.address();
    endpoint.serve(&tasks, Some(server), operations().router());

    for (shown, path, status) in [
        (None, "/healthz", 200),
        (None, "/metrics", 401),
        (None, "/logspec", 401),
        (Some(credentials), "/logspec", 200),
    ] {
        let client = ClientTls {
            credentials: shown,
            roots: roots.clone(),
            clock: clock.clone(),
            alpn: Vec::new(),
        };
        let (config, _) = client.begin(&[]);
        let stream = tokio_rustls::TlsConnector::from(config)
            .connect(
                ServerName::try_from("localhost").unwrap(),
                TcpStream::connect(address).await.unwrap(),
            )
            .await
            .unwrap();
        let answer = exchange(stream, path).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{path}: {answer}"
        );
    }

    let plain = exchange(TcpStream::connect(address).await.unwrap(), "/healthz").await;
    assert_eq!(
        plain,
        "HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"
    );
    tasks.shutdown().request("the test is over");
}
