//! Recorded and synthetic messages, and the ones that must be refused.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::PathBuf;

use proptest::prelude::*;
use prost::Message as _;
use serde_json::Value as Json;

use super::*;
use crate::proto::orderer::{StepRequest, step_request::Payload};

fn folder() -> PathBuf {
    PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../fixtures/fabric/raftpb"
    ))
}

fn list(name: &str) -> Vec<Json> {
    let bytes = std::fs::read(folder().join(name)).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

/// The bytes of a synthetic message.
fn synthetic(case: &Json) -> Bytes {
    match case["hex"].as_str() {
        Some(hex) => hex::decode(hex).unwrap().into(),
        None => {
            let file = case["file"].as_str().unwrap();
            std::fs::read(folder().join(file)).unwrap().into()
        }
    }
}

fn synthetic_named(name: &str) -> Bytes {
    let cases = list("synthetic.json");
    synthetic(cases.iter().find(|case| case["name"] == name).unwrap())
}

/// What the two libraries agree about, in the fixtures' words.
fn describe(message: &Message) -> Json {
    let bytes = |bytes: &Bytes| match bytes.is_empty() {
        true => Json::Null,
        false => hex::encode(bytes).into(),
    };
    let sha256 =
        |bytes: &[u8]| hex::encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes));
    let entries: Vec<Json> = message
        .entries
        .iter()
        .map(|entry| {
            serde_json::json!({
                "type": format!("{:?}", entry.entry_type),
                "term": entry.term, "index": entry.index, "data_len": entry.data.len(),
                "data_sha256": if entry.data.is_empty() { Json::Null } else { sha256(&entry.data).into() },
            })
        })
        .collect();
    let snapshot = message.snapshot.as_ref().map_or(Json::Null, |snapshot| {
        let metadata = snapshot.get_metadata();
        serde_json::json!({
            "data_len": snapshot.data.len(), "index": metadata.index, "term": metadata.term,
            "voters": metadata.get_conf_state().voters,
        })
    });
    serde_json::json!({
        "type_number": message.msg_type as u64, "to": message.to, "from": message.from,
        "term": message.term, "log_term": message.log_term, "index": message.index,
        "commit": message.commit, "reject": message.reject, "reject_hint": message.reject_hint,
        "context": bytes(&message.context), "entries": entries, "snapshot": snapshot,
    })
}

/// The fixture's description, cut down to what [`describe`] says.
fn described(fields: &Json) -> Json {
    let mut out = serde_json::Map::new();
    for name in [
        "type_number",
        "to",
        "from",
        "term",
        "log_term",
        "index",
        "commit",
        "reject",
        "reject_hint",
        "context",
    ] {
        out.insert(name.to_owned(), fields[name].clone());
    }
    let entries = fields["entries"].as_array().unwrap().iter().map(|entry| {
        serde_json::json!({
            "type": entry["type"], "term": entry["term"], "index": entry["index"],
            "data_len": entry["data_len"], "data_sha256": entry["data_sha256"],
        })
    });
    out.insert("entries".to_owned(), entries.collect());
    let snapshot = match &fields["snapshot"] {
        Json::Null => Json::Null,
        snapshot => serde_json::json!({
            "data_len": snapshot["data_len"], "index": snapshot["metadata"]["index"],
            "term": snapshot["metadata"]["term"],
            "voters": snapshot["metadata"]["conf_state"]["voters"],
        }),
    };
    out.insert("snapshot".to_owned(), snapshot);
    out.into()
}

#[test]
fn captured_messages_are_read_and_written_again() {
    let mut messages = 0;
    for case in list("captured.json") {
        let file = case["step_request"].as_str().unwrap();
        let request = Bytes::from(std::fs::read(folder().join(file)).unwrap());
        let Some(Payload::ConsensusRequest(request)) =
            StepRequest::decode(request).unwrap().payload
        else {
            continue;
        };
        let message = decode_message(&request.payload).unwrap_or_else(|e| panic!("{file}: {e}"));
        assert_eq!(describe(&message), described(&case["fields"]), "{file}");
        assert_eq!(encode_message(&message), request.payload, "{file}");
        messages += 1;
    }
    assert_eq!(messages, 40);
}

#[test]
fn synthetic_messages_are_read_and_written_again() {
    // Two say with other bytes what others say, and one comes from a newer library.
    let other_bytes = ["app-noop-empty-data", "heartbeat-with-empty-snapshot"];
    for case in list("synthetic.json") {
        let name = case["name"].as_str().unwrap();
        let encoded = synthetic(&case);
        let again = match case["message"].as_str().unwrap() {
            "raftpb.Message" if name == "forget-leader" => {
                let refusal = decode_message(&encoded).unwrap_err().to_string();
                assert!(refusal.contains("unknown type 23"), "{refusal}");
                continue;
            }
            "raftpb.Message" => {
                let message = read_message(&encoded).unwrap_or_else(|e| panic!("{name}: {e}"));
                if !other_bytes.contains(&name) {
                    assert_eq!(describe(&message), described(&case["fields"]), "{name}");
                }
                encode_message(&message)
            }
            "raftpb.Entry" => encode_entry(&decode_entry(&encoded).unwrap()),
            "raftpb.HardState" => encode_hard_state(&decode_hard_state(&encoded).unwrap()),
            "raftpb.ConfState" => encode_conf_state(&decode_conf_state(&encoded).unwrap()),
            "raftpb.ConfChange" => encode_conf_change(&decode_conf_change(&encoded).unwrap()),
            _ => continue,
        };
        let expected = match name {
            "app-noop-empty-data" => synthetic_named("app-noop"),
            "heartbeat-with-empty-snapshot" => synthetic_named("heartbeat"),
            _ => encoded,
        };
        assert_eq!(again, expected, "{name}");
    }
}

#[test]
fn messages_of_older_orderers_mean_the_same() {
    let older = decode_message(&synthetic_named("heartbeat-with-empty-snapshot")).unwrap();
    assert_eq!(
        older,
        decode_message(&synthetic_named("heartbeat")).unwrap()
    );
}

#[test]
fn what_never_leaves_a_process_is_refused() {
    let local = [
        "empty",
        "hup",
        "beat",
        "prop",
        "unreachable",
        "snap-status",
        "check-quorum",
        "read-index",
        "read-index-resp",
    ];
    for name in local {
        let refusal = decode_message(&synthetic_named(name)).unwrap_err();
        assert!(
            matches!(refusal, RaftpbError::Unacceptable { .. }),
            "{name}: {refusal}"
        );
    }
    for case in list("synthetic.json") {
        let name = case["name"].as_str().unwrap();
        if case["message"] == "raftpb.Message" && !local.contains(&name) && name != "forget-leader"
        {
            decode_message(&synthetic(&case)).unwrap_or_else(|e| panic!("{name}: {e}"));
        }
    }
}

/// What `decode_message` says about a good message after a change.
fn after(name: &str, change: impl FnOnce(&mut Message)) -> String {
    let mut message = decode_message(&synthetic_named(name)).unwrap();
    change(&mut message);
    decode_message(&encode_message(&message).into())
        .unwrap_err()
        .to_string()
}

#[test]
fn what_the_raft_library_would_stumble_over_is_refused() {
    let says = |refusal: String, text: &str| assert!(refusal.contains(text), "{refusal}");
    says(after("app-several", |m| m.index += 1), "where 22 belongs");
    says(
        after("app-several", |m| {
            m.entries.remove(1);
        }),
        "where 22 belongs",
    );
    says(after("app-several", |m| m.entries[1].term = 3), "after 4");
    says(after("app-several", |m| m.term = 4), "of term 5");
    says(after("heartbeat", |m| m.term = 0), "without a term");
    says(after("heartbeat", |m| m.from = 0), "without a sender");
    says(after("heartbeat", |m| m.commit = u64::MAX), "number");
    says(
        after("heartbeat", |m| m.entries.push(Entry::default())),
        "with entries",
    );
    says(
        after("heartbeat", |m| m.mut_snapshot().data = Bytes::from("x")),
        "with a snapshot",
    );
    says(
        after("snap", |m| {
            m.take_snapshot();
        }),
        "without a snapshot",
    );
    let members = |change: fn(&mut ConfState)| {
        after("snap", |m| {
            change(m.mut_snapshot().mut_metadata().mut_conf_state())
        })
    };
    says(members(|m| m.voters.clear()), "impossible membership");
    says(members(|m| m.voters.push(1)), "impossible membership");
    says(members(|m| m.voters.push(0)), "impossible membership");
    says(members(|m| m.learners.push(9)), "learners");
    says(members(|m| m.auto_leave = true), "joint");
    says(
        after("snap", |m| m.mut_snapshot().mut_metadata().term = 9),
        "ahead",
    );
    says(
        after("app-add-node", |m| {
            m.entries[0].data = Bytes::from_static(&[0x08, 0, 0x10, 2, 0x18, 4])
        }),
        "ConfChange: type 2",
    );
    says(
        after("app-add-node", |m| m.entries[0].data = Bytes::new()),
        "no node",
    );
    says(
        after("app-add-node", |m| {
            m.entries[0].entry_type = EntryType::EntryConfChangeV2
        }),
        "joint",
    );
}

#[test]
fn entries_share_the_received_bytes() {
    let encoded = synthetic_named("app-block");
    let message = decode_message(&encoded).unwrap();
    let data = &message.entries[0].data;
    assert!(encoded.as_ptr_range().contains(&data.as_ptr()));
}

proptest! {
    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let bytes = Bytes::from(bytes);
        let _ = (decode_message(&bytes), decode_entry(&bytes), decode_snapshot(&bytes));
        let _ = (decode_hard_state(&bytes), decode_conf_state(&bytes), decode_conf_change(&bytes));
    }

    /// Damaged messages get much further than noise does.
    #[test]
    fn damage_never_panics(
        name in prop::sample::select(vec!["app-several", "snap", "app-add-node", "vote-transfer"]),
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = synthetic_named(name).to_vec();
        // The interesting places are in front; the blocks' inside is not looked at.
        let reach = bytes.len().min(64);
        for (place, value) in flips {
            bytes[place.index(reach)] = value;
        }
        if let Ok(message) = decode_message(&bytes.into()) {
            prop_assert_eq!(&decode_message(&encode_message(&message).into()).unwrap(), &message);
        }
    }
}
