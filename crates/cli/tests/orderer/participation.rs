//! `participation.json`: the channel participation API over real HTTPS, in the recorded order and through restarts.
//!
//! Not here: the states that only a slow or broken disk makes (a removal that is under way or has failed), which the API's
//! own tests have.

use std::fs;

use serde_json::Value;

use crate::cluster::Ports;
use crate::support::{Answer, Door, Node, Orderer, bytes, fixtures, form, same_text, text, until};

/// The content of a part, as the recording names it.
fn content(described: &str) -> Vec<u8> {
    if described == "zero bytes" {
        return Vec::new();
    }
    if let Some(times) = described.strip_suffix(" times x") {
        return vec![b'x'; times.parse().unwrap()];
    }
    if described.ends_with(".block") {
        return bytes(described).to_vec();
    }
    hex::decode(described.replace(' ', "")).unwrap_or_else(|_| described.as_bytes().to_vec())
}

fn body(case: &Value) -> Vec<u8> {
    let described = text(case, "request_body");
    let is_form = text(&case["request_headers"], "Content-Type").ends_with("0123456789");
    if !is_form {
        return described.as_bytes().to_vec();
    }
    let contents: Vec<(String, bool, Vec<u8>)> = described
        .split("; ")
        .map(|part| {
            let (name, what) = part.split_once(": ").unwrap();
            let bare = name.strip_suffix(" (no filename)");
            (
                bare.unwrap_or(name).to_owned(),
                bare.is_none(),
                content(what),
            )
        })
        .collect();
    let parts: Vec<_> = contents
        .iter()
        .map(|(name, file, content)| (&**name, file.then_some("join.block"), &**content))
        .collect();
    form(&parts).1
}

async fn ask(door: &Door, case: &Value) -> Answer {
    let headers = case["request_headers"].as_object();
    let headers: Vec<_> = headers
        .into_iter()
        .flatten()
        .map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned()))
        .collect();
    door.ask(
        text(case, "method"),
        text(case, "path"),
        &headers,
        &body(case),
    )
    .await
}

fn compare(answer: &Answer, case: &Value) -> Option<String> {
    const HEADERS: &[&str] = &[
        "Allow",
        "Cache-Control",
        "Content-Type",
        "Location",
        "X-Content-Type-Options",
    ];
    let recorded = &case["response_headers"];
    let other = HEADERS.iter().find(|name| {
        let got = answer.headers.get(&name.to_ascii_lowercase());
        got.map(String::as_str).unwrap_or_default() != text(recorded, name)
    });
    let same = Some(u64::from(answer.status)) == case["status"].as_u64()
        && same_text(&answer.body, text(case, "response_body"))
        && other.is_none();
    (!same).then(|| {
        format!(
            "{}: {} `{}` {:?}\n    recorded {} `{}` {recorded}",
            text(case, "name"),
            answer.status,
            answer.body,
            answer.headers,
            case["status"],
            text(case, "response_body")
        )
    })
}

/// The given cases, one after the other.
async fn replay<'a>(orderer: &Orderer, cases: impl IntoIterator<Item = &'a Value>) -> Vec<String> {
    let door = orderer.admin();
    let mut differences = Vec::new();
    for case in cases {
        let joined = ["list-two", "list-all-removed"].contains(&text(case, "name"));
        if joined {
            second_channel(orderer, text(case, "name")).await;
        }
        let answer = ask(&door, case).await;
        differences.extend(compare(&answer, case));
        if text(case, "method") == "DELETE" && answer.status == 204 {
            gone(&door, text(case, "path")).await;
        }
    }
    differences
}

/// A removal is answered when it has begun; this waits for its end.
async fn gone(door: &Door, path: &str) {
    until("the channel is removed", async || {
        (door.ask("GET", path, &[], b"").await.status == 404).then_some(())
    })
    .await;
}

/// What happened between two recorded requests.
async fn second_channel(orderer: &Orderer, before: &str) {
    if before == "list-two" {
        orderer.join("genesis/fixturecrl.block").await;
        return;
    }
    let path = "/participation/v1/channels/fixturecrl";
    let answer = orderer.admin().ask("DELETE", path, &[], b"").await;
    assert_eq!(answer.status, 204);
    gone(&orderer.admin(), path).await;
}

fn between<'a>(cases: &'a [Value], first: &str, last: &str) -> &'a [Value] {
    let at = |name: &str| {
        let found = cases.iter().position(|case| text(case, "name") == name);
        found.unwrap_or_else(|| panic!("a case {name}"))
    };
    &cases[at(first)..=at(last)]
}

#[tokio::test]
async fn channels_are_joined_listed_and_removed_as_recorded() {
    let recorded = fixtures("participation/participation.json");
    let cases = recorded.as_array().unwrap();
    let orderer = Node::anywhere(0).start().await;
    let ours = between(cases, "list-empty", "join-after-remove");
    let mut differences = replay(&orderer, ours).await;

    let refused = Door::new(orderer.admin_port(), None)
        .try_ask("GET", "/participation/v1/channels", &[], b"")
        .await;
    assert!(refused.is_err(), "no-client-certificate: {refused:?}");
    let plain = between(cases, "plain-http", "plain-http");
    let answer = ask(&Door::plain(orderer.admin_port()), &plain[0]).await;
    differences.extend(compare(&answer, &plain[0]));

    // What is joined is there after a restart, and after a crash.
    let orderer = orderer.stop().await.start().await;
    let one = between(cases, "list-one", "join-again");
    differences.extend(replay(&orderer, one).await);
    let orderer = orderer.kill().start().await;
    differences.extend(replay(&orderer, one).await);

    let mut node = orderer.stop().await;
    node.set("ORDERER_CHANNELPARTICIPATION_ENABLED", "false");
    let orderer = node.start().await;
    let disabled = between(cases, "disabled-list", "disabled-join");
    differences.extend(replay(&orderer, disabled).await);
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[tokio::test]
async fn followers_and_late_consenters_are_onboarded_as_recorded() {
    // Nobody may answer there.
    let _ports = Ports::take().await;
    let recorded = fixtures("participation/participation.json");
    let cases = recorded.as_array().unwrap();
    let orderer = Node::anywhere(4).start().await;
    let before = between(
        cases,
        "join-as-follower-genesis",
        "info-follower-onboarding",
    );
    let mut differences = replay(&orderer, before).await;
    let orderer = orderer.stop().await.start().await;
    let after = between(
        cases,
        "info-follower-onboarding-after-restart",
        "info-follower-removed",
    );
    differences.extend(replay(&orderer, after).await);
    drop(orderer);

    let orderer = Node::anywhere(3).start().await;
    let late = between(cases, "join-as-late-consenter", "join-again-onboarding");
    differences.extend(replay(&orderer, late).await);
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[tokio::test]
async fn a_join_block_without_parts_is_refused_and_leaves_nothing() {
    let recorded = fixtures("participation/participation.json");
    let cases = recorded.as_array().unwrap();
    let orderer = Node::anywhere(0).start().await;
    for name in ["join-no-metadata", "join-no-header"] {
        let case = &between(cases, name, name)[0];
        let answer = ask(&orderer.admin(), case).await;
        assert_eq!(answer.status, 400, "{name}: {}", answer.body);
        assert!(
            answer.body.contains("invalid join block"),
            "{}",
            answer.body
        );
    }
    let pending = orderer.path().join("ledger/pendingops/join");
    let left = fs::read_dir(pending).map_or(0, Iterator::count);
    assert_eq!(left, 0, "files of joins that failed");
    orderer.join("genesis/fixture1.block").await;
}

#[tokio::test]
async fn a_system_channel_is_joined_and_removed_as_recorded() {
    let recorded = fixtures("participation/participation.json");
    let cases = recorded.as_array().unwrap();
    let orderer = Node::anywhere(0).start().await;
    let before = between(
        cases,
        "join-system-channel",
        "remove-application-with-system-channel",
    );
    let mut differences = replay(&orderer, before).await;
    let orderer = orderer.stop().await.start().await;
    let after = between(
        cases,
        "list-system-channel-restarted",
        "join-application-with-system-channel-restarted",
    );
    differences.extend(replay(&orderer, after).await);
    orderer
        .says("Raft leader changed: 0 -> 1 channel=syschannel ")
        .await;
    // The list is asked for at once: nothing of the channel is left by then.
    let door = orderer.admin();
    let removal = between(
        cases,
        "remove-system-channel",
        "list-system-channel-removed",
    );
    for case in removal {
        differences.extend(compare(&ask(&door, case).await, case));
    }
    let left = fs::read_dir(orderer.path().join("ledger/chains")).unwrap();
    assert_eq!(left.count(), 0, "ledgers of removed channels");
    // And it stays away.
    let orderer = orderer.kill().start().await;
    orderer
        .says("Registrar initializing without a system channel")
        .await;
    orderer.join("genesis/fixture1.block").await;
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[tokio::test]
async fn a_join_of_a_system_channel_survives_a_kill() {
    let orderer = Node::anywhere(0).start().await;
    orderer.join("genesis/syschannel.block").await;
    let orderer = orderer.kill().start().await;
    orderer
        .says("Starting system channel 'syschannel' with genesis block hash ")
        .await;
    orderer
        .says("Raft leader changed: 0 -> 1 channel=syschannel ")
        .await;
    let described = orderer.describe("syschannel").await;
    assert_eq!(described["status"], "active");
    let pending = orderer.path().join("ledger/pendingops/join");
    assert_eq!(fs::read_dir(pending).unwrap().count(), 0, "join blocks");
}
