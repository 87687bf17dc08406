//! Bytes that outlive this program: journals, checkpoints and envelopes of version 1.
//!
//! What is compared lies in `tests/golden`. A difference means that flows in flight could not be
//! continued, or that nodes of different versions could not talk: give the new form a new version
//! and keep reading the old one. `QUORATE_WRITE_GOLDEN=1 cargo test -p quorate-flow --test golden`
//! writes the files anew, which is right only for what no node has ever stored.

#![allow(clippy::panic, reason = "a test says why it fails")]

mod bench;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::time::Duration;

use bench::{Bench, Op, name, only_request, party, text, transaction};
use quorate_flow::{
    Action, Checkpoint, Envelope, Event, FlowError, FlowId, FlowStart, FlowStatus, Origin, Owner,
    Reply, SessionId, SessionMessage, describe_entry,
};
use quorate_identity::{KeyPair, SecureHash};
use quorate_ledger::network::NotaryInfo;
use quorate_ledger::vault::{Page, StateStatus, VaultState};
use quorate_ledger::{
    AttachmentId, ConsumingTx, ContractRef, NotarisationAnswer, NotarisationRequest, NotaryError,
    SignedTransaction, StateAndRef, StateRef, Timestamp, UniqueId, sign_transaction,
};
use serde::{Deserialize, Serialize};

fn golden(file: &str, text: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(file);
    if std::env::var_os("QUORATE_WRITE_GOLDEN").is_some() {
        std::fs::write(&path, text).expect("golden files can be written");
    }
    let golden = std::fs::read_to_string(&path).expect("the golden file is there");
    for (number, (now, then)) in text.lines().zip(golden.lines()).enumerate() {
        assert_eq!(now, then, "{file}, line {}", number + 1);
    }
    assert_eq!(text, golden, "{file}");
}

fn key() -> KeyPair {
    KeyPair::ed25519_from_seed(&[9; 32])
}

fn signed() -> SignedTransaction {
    transaction().sign(&key()).expect("one signature")
}

fn state() -> StateAndRef {
    signed().wire().output(0).expect("one output")
}

/// Every kind of reply, and every kind of error.
fn replies() -> Vec<Reply> {
    let tx = signed().id();
    let peer = name("You");
    let consumed = BTreeMap::from([(
        StateRef::new(tx, 3),
        ConsumingTx {
            tx,
            as_reference: true,
        },
    )]);
    let conflict = NotaryError::Conflict { tx, consumed };
    let moment = Timestamp::from_micros(1_750_000_000_123_456);
    let page = Page {
        states: vec![VaultState {
            state: state(),
            status: StateStatus::Consumed,
            recorded_at: moment,
            consumed_at: Some(moment),
            consumed_by: Some(tx),
            locked_by: Some(UniqueId::from_bytes([6; 16])),
        }],
        total: 7,
        number: 2,
        size: 1,
    };
    let failures = [
        FlowError::Failed("said \"no\"".into()),
        FlowError::Counterparty {
            peer: peer.clone(),
            message: "they fail".into(),
        },
        FlowError::Rejected {
            peer: peer.clone(),
            reason: "no such flow".into(),
        },
        FlowError::SessionEnded { peer: peer.clone() },
        FlowError::TimedOut {
            peer: peer.clone(),
            milliseconds: 1_500,
        },
        FlowError::Malformed {
            peer,
            expected: "a number".into(),
            reason: "it is a word".into(),
        },
        FlowError::Verification {
            tx,
            reason: "money is made".into(),
        },
        FlowError::Notary {
            tx,
            error: conflict.clone(),
        },
        FlowError::Insufficient {
            wanted: 10,
            available: 3,
        },
        FlowError::Unknown {
            what: "party".into(),
        },
        FlowError::NeedsCare("look".into()),
    ];
    let mut replies = vec![
        Reply::Done,
        Reply::Session(SessionId::from_bytes([5; 16])),
        Reply::Payload(vec![0, 1, 254, 255]),
        Reply::Time(moment),
        Reply::Entropy(SecureHash::of(b"entropy")),
        Reply::Party(party("You")),
        Reply::Notaries(vec![NotaryInfo {
            identity: party("Notary"),
            validating: true,
        }]),
        Reply::Hash(None),
        Reply::Hash(Some(SecureHash::of(b"parameters"))),
        Reply::Contract(ContractRef {
            name: "bench.Things".into(),
            code: SecureHash::of(b"code"),
        }),
        Reply::RequestSignature(NotarisationRequest::of(signed().wire()).sign(&key())),
        Reply::NotaryAnswer(NotarisationAnswer::Signed(vec![sign_transaction(
            &key(),
            &tx,
        )])),
        Reply::NotaryAnswer(NotarisationAnswer::Refused(conflict)),
        Reply::Signatures(vec![sign_transaction(&key(), &tx)]),
        Reply::TxIds(vec![tx]),
        Reply::Transactions(vec![signed()]),
        Reply::States(vec![state()]),
        Reply::Attachments(vec![AttachmentId::of(b"file")]),
        Reply::Page(page),
        Reply::Json("{\"any\":[1,2]}".into()),
    ];
    replies.extend(failures.map(Reply::Failed));
    replies
}

/// Runs a script to its end; `answer` is asked for what the host is asked.
fn run(bench: &mut Bench, ops: &[Op], answers: Vec<Reply>) -> (FlowId, Vec<Vec<u8>>) {
    let mut answers = answers.into_iter();
    let (flow, actions) = bench.start(1, ops);
    let mut actions = bench.settle(actions);
    while !actions.is_empty() {
        let (sequence, _) = only_request(&actions);
        let answer = answers.next().expect("an answer for each request");
        let event = Event::HostResult {
            flow,
            sequence,
            result: Ok(answer),
        };
        actions = bench.handle(event);
        actions = bench.settle(actions);
    }
    let entries = bench.steps.iter().flat_map(|step| &step.entries);
    (flow, entries.map(|(_, bytes)| bytes.clone()).collect())
}

fn lines(entries: &[Vec<u8>]) -> String {
    let texts = entries.iter().map(|entry| {
        assert!(!describe_entry(entry).contains_key("unreadable"));
        String::from_utf8(entry.clone()).expect("JSON")
    });
    texts.fold(String::new(), |all, line| all + &line + "\n")
}

#[test]
fn every_kind_of_reply_is_journaled_as_it_always_was() {
    let replies = replies();
    let mut bench = Bench::new();
    // The host's answers are kept as they come, of whatever kind.
    let (_, entries) = run(&mut bench, &vec![Op::Query; replies.len()], replies);
    golden("replies-v1.jsonl", &lines(&entries));
}

#[test]
fn every_operation_has_the_fingerprint_that_it_always_had() {
    let ops = [
        Op::Open("You".into()),
        Op::Send(0, "hello".into()),
        Op::Close(0),
        Op::Open("Nobody".into()),
        Op::Now,
        Op::Entropy,
        Op::Party("You".into()),
        Op::PartyOfKey("Notary".into()),
        Op::Notaries,
        Op::Parameters,
        Op::Contract("bench.Things".into()),
        Op::SubFlow,
        Op::Record,
        Op::Sign,
        Op::Verify,
        Op::Missing,
        Op::Transactions,
        Op::States,
        Op::Query,
        Op::Lock,
        Op::MissingAttachments,
        Op::Attachment,
        Op::StoreAttachment,
        Op::Effect,
    ];
    let answers = vec![
        Reply::Signatures(Vec::new()),
        Reply::Done,
        Reply::TxIds(Vec::new()),
        Reply::Transactions(Vec::new()),
        Reply::States(Vec::new()),
        Reply::Failed(FlowError::failed("later")),
        Reply::States(Vec::new()),
        Reply::Attachments(Vec::new()),
        Reply::Payload(Vec::new()),
        Reply::Done,
        Reply::Json("\"done\"".into()),
    ];
    // "Nobody" is unknown, so the script ends there; the rest follows without it.
    let mut bench = Bench::new();
    let (first, rest) = ops.split_at(4);
    let (_, entries) = run(&mut bench, first, Vec::new());
    let mut bench = Bench::new();
    let (_, more) = run(&mut bench, rest, answers);
    golden("operations-v1.jsonl", &lines(&[entries, more].concat()));
}

#[test]
fn envelopes_are_encoded_as_they_always_were() {
    let bodies = [
        SessionMessage::Initiate {
            flow: "cash.Payment".into(),
            app_version: 3,
            first: Some(vec![1, 2, 3]),
        },
        SessionMessage::Initiate {
            flow: "cash.Payment".into(),
            app_version: 3,
            first: None,
        },
        SessionMessage::Confirm,
        SessionMessage::Reject {
            reason: "no".into(),
        },
        SessionMessage::Data {
            payload: vec![4, 5],
            last: true,
        },
        SessionMessage::End,
        SessionMessage::Error {
            message: "out of coins".into(),
        },
    ];
    let mut text = String::new();
    for (sequence, body) in bodies.into_iter().enumerate() {
        let owner = Owner {
            instance: "host:/opt/quorate".into(),
            generation: 4,
        };
        let ends = (SessionId::from_bytes([5; 16]), sequence % 2 == 0);
        let envelope = Envelope::new(name("Me"), name("You"), ends, sequence as u64, owner, body);
        let bytes = envelope.encode();
        assert_eq!(Envelope::decode(&bytes).expect("an envelope"), envelope);
        for byte in bytes {
            write!(text, "{byte:02x}").expect("writing to memory");
        }
        text.push('\n');
    }
    golden("envelopes-v1.hex", &text);
}

/// A stored flow as a plain file.
#[derive(Serialize, Deserialize)]
struct Stored {
    class: String,
    arguments: String,
    header: String,
    entries: Vec<String>,
}

fn wait_and_listen() -> Vec<Op> {
    vec![
        Op::Open("You".into()),
        Op::Open("Other".into()),
        Op::Entropy,
        Op::Send(0, "hello".into()),
        Op::Receive(0),
        Op::Close(0),
        Op::ReceiveWithin(1, 90_000),
        Op::Send(1, "bye".into()),
    ]
}

#[test]
fn a_checkpoint_is_written_as_it_always_was_and_goes_on() {
    let mut bench = Bench::new();
    let (flow, actions) = bench.start(1, &wait_and_listen());
    bench.settle(actions);
    let id = SessionId::opened_by(&name("Me"), flow, 0);
    let (_, actions) = bench.deliver("You", id, false, 0, text("one"));
    bench.settle(actions);
    let row = &bench.stored[&flow];
    let utf8 = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("JSON");
    let stored = Stored {
        class: row.start.class.clone(),
        arguments: row.start.arguments.clone(),
        header: utf8(&row.header),
        entries: row.entries.iter().map(|(_, entry)| utf8(entry)).collect(),
    };
    let mut file = serde_json::to_string_pretty(&stored).expect("plain data");
    file.push('\n');
    golden("checkpoint-v1.json", &file);

    // What is in the file, not what was just made of it.
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/golden/checkpoint-v1.json"
    );
    let file = std::fs::read_to_string(path).expect("the golden file is there");
    let stored: Stored = serde_json::from_str(&file).expect("a stored flow");
    let entries = stored.entries.into_iter().map(String::into_bytes);
    let checkpoint = Checkpoint {
        flow,
        start: FlowStart {
            class: stored.class,
            arguments: stored.arguments,
            client_id: None,
            origin: Origin::Service,
            started_at: bench.now,
        },
        status: FlowStatus::Suspended,
        header: stored.header.into_bytes(),
        progress: None,
        entries: (0..).zip(entries).collect(),
    };
    let mut bench = Bench::new();
    bench.stored.insert(flow, checkpoint);
    assert_eq!(bench.restore(flow), [] as [Action; 0]);
    let due = Timestamp::from_seconds(1_750_000_090);
    assert_eq!(bench.machine.next_wakeup(), Some(due));
    let id = SessionId::opened_by(&name("Me"), flow, 1);
    let (_, actions) = bench.deliver("Other", id, false, 0, text("two"));
    bench.settle(actions);
    let said = bench.result(flow);
    assert_eq!((said[4].as_str(), said[6].as_str()), ("one", "two"));
    let last = bench.steps.last().expect("the last step");
    let [bye] = last.outgoing.as_slice() else {
        panic!("{:?}", last.outgoing);
    };
    assert_eq!((bye.sequence, &bye.recipient), (1, &name("Other")));
    let SessionMessage::Data { payload, last } = &bye.body else {
        panic!("{bye:?}");
    };
    assert_eq!((payload.as_slice(), *last), (b"\"bye\"".as_slice(), true));
    assert_eq!(Duration::from_secs(90), due.since(bench.now));
}

/// Messages without a trace are what they always were, so that former releases read them; with one they are of version 2.
#[test]
fn a_trace_changes_the_version_of_a_message_and_nothing_else() {
    let owner = Owner {
        instance: "host:/opt/quorate".to_owned(),
        generation: 7,
    };
    let ends = (SessionId::from_bytes([9; 16]), true);
    let plain = Envelope::new(name("Me"), name("You"), ends, 0, owner, SessionMessage::End);
    let mut traced = plain.clone();
    let context = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    traced.trace = Some(context.parse().unwrap());
    let (old, new) = (plain.encode(), traced.encode());
    assert_eq!((old[0], new[0]), (0, 1));
    assert_eq!(new.len(), old.len() + 16 + 8);
    assert_eq!(
        new[1..old.len()],
        old[1..],
        "what follows the version is the same"
    );
    assert_eq!(Envelope::decode(&old).unwrap(), plain);
    assert_eq!(Envelope::decode(&new).unwrap(), traced);
    assert!(Envelope::decode(&new[..new.len() - 1]).is_err());
}
