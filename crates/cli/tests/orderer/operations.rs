//! `operations.json`: the operations endpoint over real sockets, plain and with TLS, and the names of the metrics.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::support::{Answer, Door, Identity, Node, fixture, fixtures, same_text, text};

fn headers(case: &Value) -> Vec<(String, String)> {
    let headers = case["request_headers"].as_object();
    let headers = headers.into_iter().flatten();
    headers
        .map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned()))
        .collect()
}

async fn ask(door: &Door, case: &Value) -> Answer {
    let body = text(case, "request_body").as_bytes();
    door.ask(
        text(case, "method"),
        text(case, "path"),
        &headers(case),
        body,
    )
    .await
}

fn compare(answer: &Answer, case: &Value) -> Option<String> {
    // They tell the time and the version: their form is compared.
    const OWN: &[&str] = &["/healthz", "/version", "/metrics"];
    let own = OWN.contains(&text(case, "path")) && case["status"] == 200;
    let body = text(case, "response_body");
    let same_body = if own {
        keys(&answer.body) == keys(body)
    } else {
        same_text(&answer.body, body)
    };
    let same_header = |name: &str| {
        let recorded = text(&case["response_headers"], name);
        let got = answer.headers.get(&name.to_ascii_lowercase());
        got.map(String::as_str).unwrap_or_default() == recorded
    };
    let same_headers = ["Content-Type", "X-Content-Type-Options", "Allow"]
        .into_iter()
        .all(same_header);
    let same = Some(u64::from(answer.status)) == case["status"].as_u64();
    (!(same && same_body && same_headers))
        .then(|| format!("{}: {answer:?}\n    recorded {case}", text(case, "name")))
}

/// The keys of a JSON object; of a text that is none, nothing.
fn keys(body: &str) -> BTreeSet<String> {
    let value: Value = serde_json::from_str(body).unwrap_or_default();
    let keys = value.as_object().into_iter().flatten();
    keys.map(|(key, _)| key.clone()).collect()
}

#[tokio::test]
async fn the_operations_endpoint_answers_as_recorded() {
    let recorded = fixtures("participation/operations.json");
    let cases = recorded.as_array().unwrap();
    let mut differences = Vec::new();

    let orderer = Node::anywhere(0).start().await;
    let door = Door::plain(orderer.operations_port());
    for case in cases.iter().filter(|case| text(case, "setup").is_empty()) {
        differences.extend(compare(&ask(&door, case).await, case));
    }

    let tls =
        fixture("crypto/ordererOrganizations/orderer.test/orderers/orderer0.orderer.test/tls");
    let file = |name: &str| tls.join(name).display().to_string();
    let mut node = orderer.stop().await;
    node.set("ORDERER_OPERATIONS_TLS_ENABLED", "true");
    node.set("ORDERER_OPERATIONS_TLS_CERTIFICATE", file("server.crt"));
    node.set("ORDERER_OPERATIONS_TLS_PRIVATEKEY", file("server.key"));
    node.set(
        "ORDERER_OPERATIONS_TLS_CLIENTROOTCAS",
        format!("[{}]", file("ca.crt")),
    );
    let orderer = node.start().await;
    let stranger = Door::new(orderer.operations_port(), None);
    let known = Door::new(orderer.operations_port(), Some(Identity::admin()));
    for case in cases.iter().filter(|case| !text(case, "setup").is_empty()) {
        let without = text(case, "name").ends_with("without-client-certificate");
        let door = if without { &stranger } else { &known };
        differences.extend(compare(&ask(door, case).await, case));
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}
