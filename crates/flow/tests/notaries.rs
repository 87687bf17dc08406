//! A flow that asks a notary of several nodes: one after the other, and the first answer counts.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test says why it fails"
)]

mod bench;

use std::sync::Arc;
use std::time::Duration;

use bench::{Bench, Op, key, name, only_request, transaction};
use quorate_flow::{
    Action, Event, FlowId, HostRequest, Reply, SessionId, SessionMessage, StepCommit,
};
use quorate_identity::X500Name;
use quorate_ledger::{NotarisationAnswer, NotarisationRequest, sign_transaction};

/// The notary's nodes from now on.
fn provided_by(bench: &mut Bench, nodes: &[&str]) {
    let mut surroundings = Bench::surroundings();
    let nodes = nodes.iter().map(|node| name(node)).collect();
    surroundings.providers.insert(name("Notary"), nodes);
    bench.machine.set_surroundings(Arc::new(surroundings));
}

/// A flow that has asked the notary.
fn asking(bench: &mut Bench) -> FlowId {
    let (flow, actions) = bench.start(1, &[Op::Notarise]);
    let (sequence, request) = only_request(&actions);
    assert!(matches!(request, HostRequest::SignNotarisation { .. }));
    let request = NotarisationRequest::of(transaction().wire());
    let signature = request.sign(&key("Me"));
    let result = Ok(Reply::RequestSignature(signature));
    let actions = bench.handle(Event::HostResult {
        flow,
        sequence,
        result,
    });
    assert_eq!(bench.settle(actions), []);
    flow
}

/// Whom a step asks to open which session.
fn asked(step: &StepCommit) -> Vec<(X500Name, SessionId)> {
    let opened = step.outgoing.iter().filter(|envelope| {
        matches!(&envelope.body, SessionMessage::Initiate { flow, .. } if flow == "quorate.Notarise")
    });
    opened
        .map(|envelope| (envelope.recipient.clone(), envelope.session))
        .collect()
}

fn everybody_asked(bench: &Bench) -> Vec<(X500Name, SessionId)> {
    bench.steps.iter().flat_map(asked).collect()
}

/// Lets the wait end, and returns how long it was.
fn wait_in_vain(bench: &mut Bench) -> Duration {
    let due = bench.machine.next_wakeup().expect("a limited wait");
    let waited = due.since(bench.now);
    bench.now = due;
    let actions = bench.handle(Event::Tick);
    assert_eq!(bench.settle(actions), []);
    waited
}

fn answer(bench: &mut Bench, from: &X500Name, session: SessionId) -> Vec<Action> {
    let signature = sign_transaction(&key("Notary"), &transaction().id());
    let body = SessionMessage::Data {
        payload: NotarisationAnswer::Signed(vec![signature]).encode(),
        last: true,
    };
    let (_, actions) = bench.deliver(from.organisation(), session, false, 0, body);
    actions
}

#[test]
fn waits_grow_and_survive_restarts() {
    let mut bench = Bench::new();
    provided_by(&mut bench, &["You", "Other"]);
    let flow = asking(&mut bench);
    let mut longest = 30.0;
    for round in 1..=9 {
        let before = bench.machine.next_wakeup();
        // A restart neither lengthens the wait nor asks again.
        bench = bench.restarted();
        provided_by(&mut bench, &["You", "Other"]);
        bench.restore(flow);
        assert_eq!(bench.machine.next_wakeup(), before);
        let waited = wait_in_vain(&mut bench).as_secs_f64();
        assert!(
            (longest..=longest * 1.5).contains(&waited),
            "{round}: {waited}"
        );
        // After six times the waits grow no more.
        longest = if round < 7 {
            30.0 * 1.8_f64.powi(round)
        } else {
            longest
        };
        assert_eq!(asked(bench.steps.last().unwrap()).len(), 1, "{round}");
    }
}

#[test]
fn the_next_node_is_asked_and_the_first_answer_counts() {
    let mut bench = Bench::new();
    provided_by(&mut bench, &["You", "Other"]);
    let flow = asking(&mut bench);
    wait_in_vain(&mut bench);
    wait_in_vain(&mut bench);
    let requests = everybody_asked(&bench);
    assert_eq!(requests.len(), 3);
    assert_ne!(requests[0].0, requests[1].0, "the next one is asked");
    assert_eq!(requests[0].0, requests[2].0, "and then the first again");
    // The second one answers, although the third was asked meanwhile.
    let (from, session) = requests[1].clone();
    let actions = answer(&mut bench, &from, session);
    bench.settle(actions);
    assert_eq!(bench.result(flow), ["Ok(1)"]);
    assert!(bench.machine.is_empty());
}

#[test]
fn a_notary_of_one_node_is_asked_once_until_there_is_another_one() {
    let mut bench = Bench::new();
    provided_by(&mut bench, &["You"]);
    let flow = asking(&mut bench);
    for _ in 0..4 {
        wait_in_vain(&mut bench);
    }
    assert_eq!(
        everybody_asked(&bench).len(),
        1,
        "its queue has the request"
    );
    provided_by(&mut bench, &["You", "Other"]);
    wait_in_vain(&mut bench);
    let requests = everybody_asked(&bench);
    assert_eq!(requests.len(), 2);
    let (from, session) = requests[1].clone();
    let actions = answer(&mut bench, &from, session);
    bench.settle(actions);
    assert_eq!(bench.result(flow), ["Ok(1)"]);
}

#[test]
fn one_node_that_refuses_to_talk_does_not_drown_the_answer_of_another() {
    let mut bench = Bench::new();
    provided_by(&mut bench, &["You", "Other"]);
    let flow = asking(&mut bench);
    wait_in_vain(&mut bench);
    let requests = everybody_asked(&bench);
    let (first, session) = requests[0].clone();
    let reason = "not today".to_owned();
    let body = SessionMessage::Reject { reason };
    let (_, actions) = bench.deliver(first.organisation(), session, false, 0, body);
    bench.settle(actions);
    assert!(
        !bench.machine.is_empty(),
        "the other one is still waited for"
    );
    let (second, session) = requests[1].clone();
    let actions = answer(&mut bench, &second, session);
    bench.settle(actions);
    assert_eq!(bench.result(flow), ["Ok(1)"]);
}
