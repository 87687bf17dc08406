//! Clients that nobody here wrote, against a real `quorate orderer`: the npm packages `fabric-common` and
//! `@hyperledger/fabric-protos` with `@grpc/grpc-js`, Node's own `https`, curl and openssl.
//!
//! The scripts in `tests/sdk/` do what applications and tools do, and tell what they saw; here it is judged. They verify
//! the chain with Node's cryptography, so that no code of ours vouches for code of ours.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "all of this is tests, their helpers included"
)]

mod node;
mod orderer;

use std::process::{Command, Stdio};

use node::{run, text};
use orderer::{Orderer, fixture};
use serde_json::{Value, json};

/// Envelopes that a scenario sends; more than one block of the channel holds.
const COUNT: u64 = 15;

/// A list in what a script saw.
fn list<'a>(seen: &'a Value, pointer: &str) -> &'a Vec<Value> {
    let found = seen.pointer(pointer).and_then(Value::as_array);
    found.unwrap_or_else(|| panic!("no list {pointer} in {seen}"))
}

/// A block that follows another one is right in everything that a client can check.
fn holds_together(block: &Value) {
    assert_eq!(block["dataHash"], true, "{block}");
    assert_eq!(block["previousHash"], true, "{block}");
    let signers = list(block, "/signers");
    assert_eq!(signers.len(), 1, "{block}");
    assert_eq!(
        signers[0],
        json!({"mspid": "OrdererOrgMSP", "subject": "CN=orderer0.orderer.test", "verifies": true})
    );
}

/// The transaction IDs of blocks, in order.
fn tx_ids(blocks: &[Value]) -> Vec<String> {
    let transactions = blocks.iter().flat_map(|block| list(block, "/transactions"));
    transactions.map(|one| text(&one["txId"])).collect()
}

fn joined(orderer: &Orderer) {
    let seen = run("participation", orderer, COUNT);
    assert_eq!(seen.pointer("/joined/status"), Some(&json!(201)), "{seen}");
}

#[test]
fn node_joins_a_channel_as_osnadmin_does() {
    let orderer = Orderer::start(false);
    let seen = run("participation", &orderer, COUNT);
    assert_eq!(
        text(&seen["withoutCertificate"]["error"]),
        "ERR_SSL_TLSV13_ALERT_CERTIFICATE_REQUIRED"
    );
    let info = concat!(
        r#"{"name":"fixture1","url":"/participation/v1/channels/fixture1","#,
        r#""consensusRelation":"consenter","status":"active","height":1}"#,
    );
    for (what, status, body) in [
        ("before", 200, r#"{"systemChannel":null,"channels":null}"#),
        (
            "wrongField",
            400,
            r#"{"error":"form does not contains part key: config-block"}"#,
        ),
        ("joined", 201, info),
        (
            "again",
            405,
            r#"{"error":"cannot join: channel already exists"}"#,
        ),
        (
            "list",
            200,
            r#"{"systemChannel":null,"channels":[{"name":"fixture1","url":"/participation/v1/channels/fixture1"}]}"#,
        ),
        ("info", 200, info),
        ("unknown", 404, r#"{"error":"channel does not exist"}"#),
    ] {
        let answer = &seen[what];
        assert_eq!(answer["status"], status, "{what}: {answer}");
        assert_eq!(text(&answer["body"]).trim_end(), body, "{what}");
        assert_eq!(answer["type"], "application/json", "{what}");
    }

    // A second program over another TLS library, and one that speaks HTTP/1.0 too.
    let curl = Command::new("curl")
        .args(["--silent", "--show-error", "--max-time", "20", "--cacert"])
        .arg(fixture(
            "crypto/ordererOrganizations/orderer.test/tlsca/tlsca.orderer.test-cert.pem",
        ))
        .arg("--cert")
        .arg(fixture(
            "crypto/ordererOrganizations/orderer.test/users/Admin@orderer.test/tls/client.crt",
        ))
        .arg("--key")
        .arg(fixture(
            "crypto/ordererOrganizations/orderer.test/users/Admin@orderer.test/tls/client.key",
        ))
        .args(["--http1.0", "--write-out", "%{http_code}"])
        .arg(format!(
            "https://{}/participation/v1/channels/fixture1",
            orderer.admin()
        ))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&curl.stdout).into_owned();
    assert_eq!(said, format!("{info}\n200"), "{curl:?}");

    let removed = run("remove", &orderer, COUNT);
    assert_eq!(removed["removed"]["status"], 204, "{removed}");
    assert_eq!(removed["again"]["status"], 404, "{removed}");
    assert_eq!(
        text(&removed["list"]["body"]).trim_end(),
        r#"{"systemChannel":null,"channels":null}"#
    );
}

/// What an application of fabric-common sends is ordered once, and its event service and we read the same chain.
fn transactions_are_ordered(mutual: bool) {
    let orderer = Orderer::start(mutual);
    joined(&orderer);
    let seen = run("transactions", &orderer, COUNT);

    let sent = list(&seen, "/sent");
    assert_eq!(sent.len() as u64, 2 * COUNT);
    for answer in sent {
        assert_eq!(answer["status"], "SUCCESS", "{answer}");
    }
    assert_eq!(
        seen["refused"]["status"], "FORBIDDEN",
        "{}",
        seen["refused"]
    );
    assert!(text(&seen["refused"]["info"]).ends_with("permission denied"));

    assert_eq!(seen["chain"]["status"], "SUCCESS");
    let blocks = list(&seen, "/chain/blocks");
    for (number, block) in blocks.iter().enumerate() {
        assert_eq!(block["number"], number, "{block}");
        assert_eq!(block["lastConfig"], 0, "{block}");
    }
    assert_eq!(blocks[0]["dataHash"], true);
    assert_eq!(list(&blocks[0], "/signers").len(), 0, "a genesis block");
    blocks[1..].iter().for_each(holds_together);
    let ordered = tx_ids(&blocks[1..]);
    let given: Vec<String> = sent.iter().map(|answer| text(&answer["txId"])).collect();
    // One after the other keeps its order; what was sent at once may have any.
    let (in_turn, together) = ordered.split_at(COUNT as usize);
    assert_eq!(in_turn, &given[..COUNT as usize]);
    let mut together = together.to_vec();
    together.sort_unstable();
    let mut expected = given[COUNT as usize..].to_vec();
    expected.sort_unstable();
    assert_eq!(together, expected);

    let events = list(&seen, "/events");
    assert_eq!(events.len(), blocks.len());
    assert_eq!(tx_ids(&events[1..]), ordered);
    for (number, event) in events.iter().enumerate() {
        assert_eq!(event["number"], number, "{event}");
    }
    assert_eq!(events[1]["signers"], json!(["OrdererOrgMSP"]));
}

#[test]
fn fabric_common_sends_transactions_and_hears_of_their_blocks() {
    transactions_are_ordered(false);
}

#[test]
fn fabric_common_does_so_over_mutual_tls() {
    transactions_are_ordered(true);
}

#[test]
fn streams_stay_open_seek_and_refuse_as_clients_expect() {
    let orderer = Orderer::start(false);
    joined(&orderer);
    let seen = run("streams", &orderer, COUNT);

    // As many answers as envelopes, and the end that the client asked for.
    let answers = list(&seen, "/answers");
    let (end, answers) = answers.split_last().unwrap();
    assert_eq!(end, &json!({"end": true}));
    assert_eq!(answers.len() as u64, COUNT);
    for answer in answers {
        assert_eq!(answer["status"], "SUCCESS", "{answer}");
    }

    // The stream that was open before brought them, in their order.
    let live = list(&seen, "/live");
    live.iter().for_each(holds_together);
    assert_eq!(live[0]["number"], seen["height"]);
    let arrived: Vec<String> = tx_ids(live)
        .into_iter()
        .filter(|tx_id| tx_id != "first")
        .collect();
    let given: Vec<String> = (0..COUNT).map(|number| format!("tx-{number}")).collect();
    assert_eq!(arrived, given);
    assert_eq!(seen["quiet"], true);
    assert_eq!(seen["cancelled"]["grpc"], 1, "{}", seen["cancelled"]);

    let tip = seen["tip"].as_u64().unwrap();
    let all: Vec<u64> = (0..=tip).collect();
    assert_eq!(
        seen["asked"],
        json!([
            {"blocks": [0], "status": "SUCCESS"},
            {"blocks": [tip], "status": "SUCCESS"},
            {"blocks": [1, 2], "status": "SUCCESS"},
            {"blocks": all, "status": "SUCCESS"},
            {"blocks": [1], "status": "SUCCESS"},
        ])
    );

    let refusals = &seen["refusals"];
    for (what, status, info) in [
        ("wrongSignature", "FORBIDDEN", "permission denied"),
        ("stranger", "FORBIDDEN", "permission denied"),
        (
            "unknownChannel",
            "BAD_REQUEST",
            "because the orderer system channel is not defined",
        ),
        (
            "tooLarge",
            "BAD_REQUEST",
            "exceeds maximum allowed 65536 bytes",
        ),
        (
            "empty",
            "BAD_REQUEST",
            "could not determine channel ID: header not set",
        ),
    ] {
        let refusal = &refusals[what];
        assert_eq!(refusal["answer"]["status"], status, "{what}: {refusal}");
        assert!(
            text(&refusal["answer"]["info"]).ends_with(info),
            "{what}: {refusal}"
        );
        // The orderer ends the stream, and calls that no failure.
        assert_eq!(refusal["after"], json!({"end": true}), "{what}");
    }
    for (what, status, blocks) in [
        ("deliverStranger", "FORBIDDEN", json!([])),
        ("deliverUnknownChannel", "NOT_FOUND", json!([])),
        ("deliverBackwards", "BAD_REQUEST", json!([])),
        ("deliverTooFar", "NOT_FOUND", json!([])),
        ("deliverNotReady", "NOT_FOUND", json!([tip])),
    ] {
        let expected = json!({"blocks": blocks, "status": status});
        assert_eq!(refusals[what], expected, "{what}");
    }
}

#[test]
fn the_configuration_is_read_and_changed() {
    let orderer = Orderer::start(false);
    joined(&orderer);
    let seen = run("configuration", &orderer, COUNT);

    assert_eq!(
        seen["before"],
        json!({
            "block": 0, "sequence": 0, "consensusType": "etcdraft", "consenters": ["127.0.0.1:21050"],
            "maxMessageCount": 10, "batchTimeout": "200ms", "capabilities": ["V2_0"], "organizations": ["Org1"],
        })
    );
    assert_eq!(
        seen["sent"]["answer"]["status"], "SUCCESS",
        "{}",
        seen["sent"]
    );
    let made = &seen["made"];
    holds_together(made);
    assert_eq!(list(made, "/transactions").len(), 1, "{made}");
    assert_eq!(made["lastConfig"], made["number"], "{made}");
    let after = &seen["after"];
    assert_eq!(after["block"], made["number"], "{after}");
    assert_eq!(after["sequence"], 1, "{after}");
    assert_eq!(after["maxMessageCount"], 7, "{after}");
    assert_eq!(seen["repeated"]["answer"]["status"], "BAD_REQUEST");
    assert!(
        orderer
            .log()
            .contains("Rejecting broadcast of config message from 127.0.0.1:")
    );
}

#[test]
fn without_its_client_certificate_nobody_is_served() {
    let orderer = Orderer::start(true);
    joined(&orderer);
    let seen = run("bindings", &orderer, COUNT);
    for (who, alert) in [
        ("withoutCertificate", "certificate required"),
        ("foreignCertificate", "bad certificate"),
    ] {
        assert_eq!(seen[who]["grpc"], 14, "{who}: {}", seen[who]);
        assert!(
            text(&seen[who]["details"]).contains(alert),
            "{who}: {}",
            seen[who]
        );
    }
    assert_eq!(seen["bound"], json!({"blocks": [0], "status": "SUCCESS"}));
    for who in ["unbound", "wronglyBound"] {
        let expected = json!({"blocks": [], "status": "BAD_REQUEST"});
        assert_eq!(seen[who], expected, "{who}");
    }
}

#[test]
fn openssl_agrees_on_tls_and_http2() {
    let orderer = Orderer::start(false);
    for version in ["-tls1_2", "-tls1_3"] {
        let client = Command::new("openssl")
            .args(["s_client", "-alpn", "h2", "-verify_return_error"])
            .args([
                version,
                "-servername",
                "localhost",
                "-connect",
                &orderer.address(),
            ])
            .arg("-CAfile")
            .arg(fixture(
                "crypto/ordererOrganizations/orderer.test/tlsca/tlsca.orderer.test-cert.pem",
            ))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&client.stderr).into_owned()
            + &String::from_utf8_lossy(&client.stdout);
        assert!(client.status.success(), "{version}: {said}");
        assert!(said.contains("Verification: OK"), "{version}: {said}");
        assert!(said.contains("ALPN protocol: h2"), "{version}: {said}");
    }
}
