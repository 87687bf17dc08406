//! The pages for people, probes, and clients in other languages.

use serde_json::{Value, json};

use crate::world::*;

#[tokio::test(flavor = "multi_thread")]
async fn the_web_api_and_the_operations_endpoint() {
    let world = World::new(vec![plan("PartyA"), plan("Notary").notary()]).await;
    let [a, notary] = world.start_all(["PartyA", "Notary"]).await;
    let web = a.addresses.web.unwrap();
    let (status, page) = http(web, "GET", "/", None, "").await;
    assert_eq!(status, 200);
    assert!(page.contains("PartyA"), "{page}");
    let (status, description) = http(web, "GET", "/openapi.json", None, "").await;
    let description: Value = serde_json::from_str(&description).unwrap();
    assert_eq!(status, 200);
    assert!(description["paths"].get("/api/v1/vault/query").is_some());

    let api = async |method: &str, path: &str, body: Value| {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let path = format!("/api/v1{path}");
        let (status, body) = http(web, method, &path, Some("admin:secret"), &body).await;
        (
            status,
            serde_json::from_str::<Value>(&body).unwrap_or_default(),
        )
    };
    let start = json!({ "flow": "cash.Issue", "arguments": { "amount": "7.25", "currency": "GBP" }, "clientId": "web" });
    let (status, handle) = api("POST", "/flows", start).await;
    assert_eq!(status, 200, "{handle}");
    let (status, flow) = api("GET", "/client-ids/web?waitMillis=20000", Value::Null).await;
    assert_eq!(
        (status, &flow["state"]),
        (200, &json!("completed")),
        "{flow}"
    );
    assert_eq!(flow["flowId"], handle["flowId"]);
    let (status, states) = api("POST", "/vault/query", json!({})).await;
    assert_eq!((status, &states["total"]), (200, &json!(1)), "{states}");
    assert_eq!(states["states"][0]["content"]["amount"], json!("7.25 GBP"));
    let path = format!("/transactions/{}", flow["result"]["tx"].as_str().unwrap());
    let (status, transaction) = api("GET", &path, Value::Null).await;
    assert_eq!((status, &transaction["final"]), (200, &json!(true)));
    let (status, error) = api("POST", "/flows", json!({ "flow": "no.Such" })).await;
    assert_eq!(
        (status, &error["error"]["code"]),
        (404, &json!("NOT_FOUND"))
    );
    let (status, _) = http(web, "GET", "/api/v1/flows", None, "").await;
    assert_eq!(status, 401);

    let get = |path: &'static str| http(a.operations, "GET", path, None, "");
    let (status, ready) = get("/readyz").await;
    let ready: Value = serde_json::from_str(&ready).unwrap();
    assert_eq!(
        (status, &ready["status"]),
        (200, &json!("active")),
        "{ready}"
    );
    assert!(ready["generation"].is_u64() && ready["node"].as_str().unwrap().contains("PartyA"));
    let (status, health) = get("/healthz").await;
    assert_eq!(status, 200, "{health}");
    let (_, detail) = get("/healthz/detailed").await;
    for component in ["database", "flows"] {
        assert!(detail.contains(component), "{detail}");
    }
    let (status, metrics) = get("/metrics").await;
    assert_eq!(status, 200);
    for metric in [
        "quorate_flows_started_total 1",
        "quorate_flows_success_total 1",
        "quorate_flows_in_flight 0",
        "quorate_flows_duration_seconds_count 1",
    ] {
        assert!(metrics.contains(metric), "{metric} is not in {metrics}");
    }
    let (_, metrics) = http(notary.operations, "GET", "/metrics", None, "").await;
    assert!(
        metrics.contains("quorate_notary_request_queue_size 0"),
        "{metrics}"
    );
    for node in [a, notary] {
        node.stop().await;
    }
}
