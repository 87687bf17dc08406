//! Bytes from network and disk that are not what they should be: refused, never a panic.

#![allow(clippy::panic, reason = "a test says why it fails")]

mod bench;

use bench::{Bench, Op, name, only_commit, text};
use proptest::prelude::*;
use quorate_flow::{
    Action, Checkpoint, Envelope, Event, FlowStatus, Owner, SessionId, SessionMessage,
    describe_entry,
};

fn body() -> impl Strategy<Value = SessionMessage> {
    let bytes = || proptest::collection::vec(any::<u8>(), 0..40);
    prop_oneof![
        (".{0,20}", any::<u32>(), proptest::option::of(bytes())).prop_map(
            |(flow, app_version, first)| SessionMessage::Initiate {
                flow,
                app_version,
                first,
            }
        ),
        Just(SessionMessage::Confirm),
        ".{0,20}".prop_map(|reason| SessionMessage::Reject { reason }),
        (bytes(), any::<bool>()).prop_map(|(payload, last)| SessionMessage::Data { payload, last }),
        Just(SessionMessage::End),
        ".{0,20}".prop_map(|message| SessionMessage::Error { message }),
    ]
}

fn envelope() -> impl Strategy<Value = Envelope> {
    let session = any::<[u8; 16]>().prop_map(SessionId::from_bytes);
    let owner = (".{0,20}", any::<u64>()).prop_map(|(instance, generation)| Owner {
        instance,
        generation,
    });
    (session, any::<bool>(), any::<u64>(), owner, body()).prop_map(
        |(session, from_initiator, sequence, owner, body)| {
            let ends = (session, from_initiator);
            Envelope::new(name("You"), name("Me"), ends, sequence, owner, body)
        },
    )
}

/// Changes some bytes, cuts, or appends.
fn damaged(mut bytes: Vec<u8>, changes: &[(usize, u8)], keep: usize, more: &[u8]) -> Vec<u8> {
    bytes.truncate(keep.max(1) * bytes.len() / 100);
    for (place, value) in changes {
        if let Some(byte) = bytes.len().checked_sub(1).map(|last| place % (last + 1)) {
            bytes[byte] ^= value;
        }
    }
    bytes.extend_from_slice(more);
    bytes
}

fn damage() -> impl Strategy<Value = (Vec<(usize, u8)>, usize, Vec<u8>)> {
    (
        proptest::collection::vec((any::<usize>(), any::<u8>()), 0..4),
        prop_oneof![3 => Just(100_usize), 1 => 0..100_usize],
        proptest::collection::vec(any::<u8>(), 0..3),
    )
}

/// A stored flow that waits for mail.
fn stored() -> Checkpoint {
    let mut bench = Bench::new();
    let ops = [
        Op::Open("You".into()),
        Op::Now,
        Op::Send(0, "hello".into()),
        Op::ReceiveWithin(0, 1_000),
    ];
    let (flow, actions) = bench.start(1, &ops);
    bench.settle(actions);
    bench.stored.remove(&flow).expect("stored")
}

/// Restores a flow from bytes that may be anything: it goes on or is hospitalised, and can be
/// killed; whatever happens, the machine lives.
fn survive(checkpoint: Checkpoint) {
    let flow = checkpoint.flow;
    let mut bench = Bench::new();
    bench.stored.insert(flow, checkpoint);
    let actions = bench.restore(flow);
    let status = bench.machine.view(flow).map(|view| view.status);
    assert!(
        matches!(
            status,
            Some(FlowStatus::Suspended | FlowStatus::Hospitalised | FlowStatus::Runnable)
        ),
        "{status:?}"
    );
    if !actions.is_empty() {
        only_commit(&actions);
    }
    bench.settle(actions);
    let id = SessionId::opened_by(&name("Me"), flow, 0);
    let (_, actions) = bench.deliver("You", id, false, 0, text("one"));
    let left = bench.settle(actions);
    assert!(
        left.iter()
            .all(|action| matches!(action, Action::Discard { .. }))
    );
    let actions = bench.handle(Event::Kill { flow });
    bench.settle(actions);
    assert!(bench.machine.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn envelopes_come_back_as_they_were(envelope in envelope()) {
        prop_assert_eq!(Envelope::decode(&envelope.encode()).expect("an envelope"), envelope);
    }

    #[test]
    fn envelopes_are_read_from_nothing_else(envelope in envelope(), damage in damage()) {
        let whole = envelope.encode();
        let bytes = damaged(whole.clone(), &damage.0, damage.1, &damage.2);
        if let Ok(read) = Envelope::decode(&bytes) {
            // One encoding for each envelope: nothing is ignored.
            prop_assert_eq!(read.encode(), bytes);
        }
    }

    #[test]
    fn random_bytes_are_no_envelope(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Envelope::decode(&bytes);
        let _ = Envelope::decode(&[&[0], bytes.as_slice()].concat());
        let _ = describe_entry(&bytes);
    }

    #[test]
    fn any_envelope_can_be_delivered(envelopes in proptest::collection::vec(envelope(), 1..6)) {
        let mut bench = Bench::new();
        let (_, actions) = bench.start(1, &[Op::Open("You".into()), Op::Receive(0), Op::Receive(0)]);
        bench.settle(actions);
        for envelope in envelopes {
            for session in [envelope.session, SessionId::opened_by(&name("Me"), bench.steps[0].flow, 0)] {
                let (_, actions) = bench.deliver(
                    "You", session, envelope.from_initiator, envelope.sequence, envelope.body.clone(),
                );
                bench.settle(actions);
            }
        }
    }

    #[test]
    fn damaged_headers_harm_nobody(damage in damage()) {
        let mut checkpoint = stored();
        checkpoint.header = damaged(checkpoint.header, &damage.0, damage.1, &damage.2);
        survive(checkpoint);
    }

    #[test]
    fn damaged_journals_harm_nobody(which in 0..3_usize, damage in damage(), drop in any::<bool>()) {
        let mut checkpoint = stored();
        let entry = &mut checkpoint.entries[which].1;
        *entry = damaged(entry.clone(), &damage.0, damage.1, &damage.2);
        let _ = describe_entry(entry);
        if drop {
            checkpoint.entries.remove(which);
        }
        survive(checkpoint);
    }
}
