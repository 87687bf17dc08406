use super::*;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const PATIENCE: Duration = Duration::from_secs(10);

struct Endpoint {
    tasks: Tasks,
    address: SocketAddr,
    operations: Operations,
}

async fn endpoint() -> Endpoint {
    let tasks = Tasks::new("");
    let operations = Operations {
        health: Health::new(),
        readiness: Readiness::new(),
        metrics: Metrics::new(),
        logs: LogControl::detached(),
        version: Version {
            version: "1.2.3".to_owned(),
            commit: "abc".to_owned(),
        },
        clock: Clock::manual(1_257_894_000_000_000).0,
    };
    let address = operations
        .clone()
        .start(&tasks, "127.0.0.1:0")
        .await
        .unwrap();
    Endpoint {
        tasks,
        address,
        operations,
    }
}

/// Status and body of one request, by hand: an independent reading of what was sent.
async fn ask(address: SocketAddr, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (
        head.split(' ').nth(1).unwrap().parse().unwrap(),
        body.to_owned(),
    )
}

impl Endpoint {
    async fn get(&self, path: &str) -> (u16, Value) {
        let (status, body) = ask(self.address, "GET", path, "").await;
        (status, serde_json::from_str(&body).unwrap())
    }
}

#[tokio::test]
async fn health_is_told_in_fabrics_format() {
    let endpoint = endpoint().await;
    assert_eq!(
        endpoint.get("/healthz").await,
        (200, json!({"status": "OK", "time": "2009-11-10T23:00:00Z"}))
    );
    let up = Arc::new(AtomicBool::new(false));
    let seen = up.clone();
    endpoint.operations.health.register("database", move || {
        let up = seen.load(Ordering::SeqCst);
        async move {
            if up {
                Ok(())
            } else {
                Err("connection refused".to_owned())
            }
        }
    });
    endpoint
        .operations
        .health
        .register("flows", || async { Ok(()) });
    assert_eq!(
        endpoint.get("/healthz").await,
        (
            503,
            json!({
                "status": "Service Unavailable",
                "time": "2009-11-10T23:00:00Z",
                "failed_checks": [{"component": "database", "reason": "connection refused"}],
            })
        )
    );
    let (status, detailed) = endpoint.get("/healthz/detailed").await;
    assert_eq!(
        (status, &detailed["checks"]),
        (
            503,
            &json!({"database": "connection refused", "flows": "OK"})
        )
    );
    up.store(true, Ordering::SeqCst);
    assert_eq!(endpoint.get("/healthz").await.0, 200);
    up.store(false, Ordering::SeqCst);
    endpoint.operations.health.deregister("database");
    assert_eq!(endpoint.get("/healthz").await.0, 200);
    assert!(endpoint.tasks.stop(PATIENCE).await.is_clean());
}

#[tokio::test]
async fn a_check_that_hangs_has_failed_and_delays_no_other() {
    let health = Health::new();
    health.register("hung", || async {
        std::future::pending::<()>().await;
        Ok(())
    });
    for component in ["before", "later"] {
        health.register(component, || async {
            tokio::task::yield_now().await;
            Ok(())
        });
    }
    let outcomes = health.run_within(Duration::from_millis(50)).await;
    assert_eq!(outcomes["hung"], Err("no answer within 50ms".to_owned()));
    assert_eq!(
        (&outcomes["before"], &outcomes["later"]),
        (&Ok(()), &Ok(()))
    );
}

#[tokio::test]
async fn readiness_says_where_traffic_should_go() {
    let endpoint = endpoint().await;
    assert_eq!(
        endpoint.get("/readyz").await,
        (503, json!({"status": "starting", "ready": false}))
    );
    endpoint.operations.readiness.report_with(|| {
        ReadyReport::new(false, "standby")
            .with("holder", "host-1")
            .with("takeover_in_seconds", 12)
    });
    assert_eq!(
        endpoint.get("/readyz").await,
        (
            503,
            json!({"status": "standby", "ready": false, "holder": "host-1", "takeover_in_seconds": 12})
        )
    );
    endpoint
        .operations
        .readiness
        .set(ReadyReport::new(true, "active"));
    assert_eq!(endpoint.get("/readyz").await.0, 200);
}

#[tokio::test]
async fn log_levels_are_read_and_changed() {
    let endpoint = endpoint().await;
    assert_eq!(
        endpoint.get("/logspec").await,
        (200, json!({"spec": "info"}))
    );
    let put = |body: &'static str| ask(endpoint.address, "PUT", "/logspec", body);
    assert_eq!(
        put(r#"{"spec": "messaging=debug:warn"}"#).await,
        (204, String::new())
    );
    assert_eq!(
        endpoint.get("/logspec").await.1["spec"],
        "messaging=debug:warn"
    );
    for bad in [
        r#"{"spec": "a=loud"}"#,
        r#"{"level": "debug"}"#,
        "spec=debug",
        "",
    ] {
        let (status, body) = put(bad).await;
        assert_eq!(status, 400, "{bad}");
        assert!(
            serde_json::from_str::<Value>(&body).unwrap()["error"].is_string(),
            "{body}"
        );
    }
    let (status, _) = ask(
        endpoint.address,
        "PUT",
        "/logspec",
        &"x".repeat(MAX_BODY_BYTES + 1),
    )
    .await;
    assert_eq!(status, 413);
    assert_eq!(
        endpoint.get("/logspec").await.1["spec"],
        "messaging=debug:warn"
    );
}

#[tokio::test]
async fn metrics_version_and_unknown_paths() {
    let endpoint = endpoint().await;
    endpoint
        .operations
        .metrics
        .counter("quorate_things", "Things.")
        .inc_by(3);
    let (status, text) = ask(endpoint.address, "GET", "/metrics", "").await;
    assert!(
        status == 200 && text.contains("\nquorate_things 3\n"),
        "{text}"
    );
    assert_eq!(
        endpoint.get("/version").await,
        (200, json!({"CommitSHA": "abc", "Version": "1.2.3"}))
    );
    assert_eq!(ask(endpoint.address, "GET", "/other", "").await.0, 404);
    assert_eq!(ask(endpoint.address, "DELETE", "/healthz", "").await.0, 405);
}

#[tokio::test]
async fn nonsense_and_probes_harm_nobody_and_stopping_closes_the_port() {
    let endpoint = endpoint().await;
    // A load balancer's probe, a client that says nothing, one that says nonsense, one that stays.
    drop(TcpStream::connect(endpoint.address).await.unwrap());
    let silent = TcpStream::connect(endpoint.address).await.unwrap();
    let mut rude = TcpStream::connect(endpoint.address).await.unwrap();
    rude.write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    let _ = rude.read_to_end(&mut answer).await;
    let mut idle = TcpStream::connect(endpoint.address).await.unwrap();
    idle.write_all(b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    idle.read_buf(&mut answer).await.unwrap();
    assert_eq!(endpoint.get("/healthz").await.0, 200);

    let taken = endpoint
        .operations
        .clone()
        .start(&endpoint.tasks, &endpoint.address.to_string())
        .await
        .unwrap_err();
    assert_eq!(
        taken.to_string(),
        format!(
            "the operations endpoint cannot listen on {}",
            endpoint.address
        )
    );

    let report = endpoint.tasks.stop(PATIENCE).await;
    assert!(report.is_clean(), "{report}");
    assert!(TcpStream::connect(endpoint.address).await.is_err());
    drop(silent);
}
