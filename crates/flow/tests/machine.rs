//! The machine by hand: one flow, one event at a time, in the orders that chance seldom finds.

#![allow(clippy::panic, reason = "a test says why it fails")]

mod bench;

use std::time::Duration;

use bench::{Bench, LIMITS, Op, initiate, name, only_commit, only_request, text};
use quorate_flow::{
    Action, App, Context, Event, Flow, FlowError, FlowId, FlowRegistry, FlowStatus, HostError,
    HostRequest, Reply, SessionId, SessionMessage, StartRefused,
};
use quorate_ledger::Contract;
use serde::{Deserialize, Serialize};

fn talk() -> Vec<Op> {
    vec![
        Op::Open("You".into()),
        Op::Send(0, "hello".into()),
        Op::Receive(0),
        Op::Receive(0),
    ]
}

fn session(flow: FlowId) -> SessionId {
    SessionId::opened_by(&name("Me"), flow, 0)
}

/// A flow that has said hello and waits for two answers.
fn talking(bench: &mut Bench) -> (FlowId, SessionId) {
    let (flow, actions) = bench.start(1, &talk());
    assert_eq!(bench.settle(actions), []);
    (flow, session(flow))
}

#[test]
fn mail_of_an_abandoned_step_waits_again() {
    let mut bench = Bench::new();
    let (flow, id) = talking(&mut bench);
    let (first, actions) = bench.deliver("You", id, false, 0, text("one"));
    assert_eq!(only_commit(&actions).consumed, std::slice::from_ref(&first));
    let actions = bench.refuse(actions);
    assert_eq!(only_commit(&actions).status, FlowStatus::Hospitalised);
    assert_eq!(only_commit(&actions).consumed, []);
    assert_eq!(bench.settle(actions), []);
    // It receives messages in the hospital too.
    let (second, actions) = bench.deliver("You", id, false, 1, text("two"));
    assert_eq!(actions, []);
    let actions = bench.handle(Event::Retry { flow });
    assert_eq!(actions, [Action::Load { flow }]);
    let actions = bench.restore(flow);
    assert_eq!(only_commit(&actions).consumed, [first, second]);
    bench.settle(actions);
    assert_eq!(bench.result(flow)[2..], ["one", "two"]);
    assert!(bench.machine.is_empty());
}

#[test]
fn what_arrives_while_a_flow_ends_leaves_the_inbox() {
    let mut bench = Bench::new();
    let (flow, id) = talking(&mut bench);
    let (_, actions) = bench.deliver("You", id, false, 0, text("one"));
    bench.settle(actions);
    let (_, actions) = bench.deliver("You", id, false, 1, text("two"));
    assert!(only_commit(&actions).outcome.is_some());
    let (late, none) = bench.deliver("You", id, false, 2, text("three"));
    assert_eq!(none, []);
    let discard = Action::Discard {
        inbox: late,
        reply: None,
    };
    assert_eq!(bench.settle(actions), [discard]);
    assert!(bench.machine.view(flow).is_none());
}

#[test]
fn an_end_is_told_to_nobody_before_it_is_durable() {
    let mut bench = Bench::new();
    let (flow, id) = talking(&mut bench);
    let (_, actions) = bench.deliver("You", id, false, 0, text("one"));
    bench.settle(actions);
    let (_, actions) = bench.deliver("You", id, false, 1, text("two"));
    assert!(only_commit(&actions).outcome.is_some());
    let told = bench.machine.view(flow).map(|view| view.status);
    assert_eq!(told, Some(FlowStatus::Runnable));
    bench.settle(actions);
    assert!(bench.machine.view(flow).is_none());
}

#[test]
fn an_end_that_the_store_refuses_loses_no_message() {
    let mut bench = Bench::new();
    let (flow, actions) = bench.start(
        1,
        &[
            Op::Open("You".into()),
            Op::Send(0, "hello".into()),
            Op::Receive(0),
        ],
    );
    bench.settle(actions);
    let id = session(flow);
    let (first, actions) = bench.deliver("You", id, false, 0, text("one"));
    assert!(only_commit(&actions).outcome.is_some());
    let (second, _) = bench.deliver("You", id, false, 1, text("two"));
    let actions = bench.refuse(actions);
    bench.settle(actions);
    let actions = bench.handle(Event::Kill { flow });
    assert_eq!(
        only_commit(&actions).consumed,
        [first.clone(), second.clone()]
    );
    let actions = bench.refuse(actions);
    bench.settle(actions);
    bench.handle(Event::Retry { flow });
    let actions = bench.restore(flow);
    assert_eq!(only_commit(&actions).consumed, [first, second]);
    bench.settle(actions);
    assert_eq!(bench.result(flow)[2], "one");
}

#[test]
fn an_answer_to_a_body_that_is_gone_is_not_believed() {
    let mut bench = Bench::new();
    let (flow, actions) = bench.start(1, &[Op::Entropy, Op::Sign]);
    let (sequence, _) = only_request(&actions);
    let actions = bench.handle(Event::Pause { flow });
    assert_eq!(bench.settle(actions), []);
    bench.handle(Event::Retry { flow });
    // The host has not answered yet: the new body's request waits for that.
    assert_eq!(bench.restore(flow), []);
    let old = Event::HostResult {
        flow,
        sequence,
        result: Err(HostError::Failed(FlowError::failed("old"))),
    };
    let actions = bench.handle(old);
    let (sequence, _) = only_request(&actions);
    let new = Event::HostResult {
        flow,
        sequence,
        result: Ok(Reply::Signatures(Vec::new())),
    };
    let actions = bench.handle(new);
    bench.settle(actions);
    assert_eq!(bench.result(flow)[1], "Ok(0)");
}

#[test]
fn a_checkpoint_that_was_read_too_early_is_not_believed() {
    let mut bench = Bench::new();
    let (flow, id) = talking(&mut bench);
    let actions = bench.handle(Event::Pause { flow });
    bench.settle(actions);
    bench.handle(Event::Retry { flow });
    bench.handle(Event::Retry { flow });
    let early = bench.stored[&flow].clone();
    assert_eq!(
        only_commit(&bench.restore(flow)).status,
        FlowStatus::Suspended
    );
    let restored = |bench: &mut Bench| {
        bench.handle(Event::Restore {
            checkpoint: Box::new(early.clone()),
            seed: [1; 32],
        })
    };
    assert_eq!(restored(&mut bench), []);
    let actions = bench.handle(Event::Committed { flow });
    assert_eq!(actions, []);
    bench.deliver("You", id, false, 0, text("one"));
    assert_eq!(bench.machine.len(), 1);

    // Nor when the flow stands still again by the time it comes.
    let mut bench = Bench::new();
    let (flow, id) = talking(&mut bench);
    let actions = bench.handle(Event::Pause { flow });
    bench.settle(actions);
    bench.handle(Event::Retry { flow });
    bench.handle(Event::Retry { flow });
    let actions = bench.restore(flow);
    bench.settle(actions);
    let (_, actions) = bench.deliver("You", id, false, 0, text("one"));
    bench.settle(actions);
    let actions = bench.handle(Event::Pause { flow });
    bench.settle(actions);
    assert_eq!(restored(&mut bench), [], "nobody wants it to run");
    bench.handle(Event::Retry { flow });
    assert_eq!(restored(&mut bench), [], "its last step is missing");
    let actions = bench.restore(flow);
    bench.settle(actions);
    let (_, actions) = bench.deliver("You", id, false, 1, text("two"));
    bench.settle(actions);
    assert_eq!(bench.result(flow)[2..], ["one", "two"]);

    // Nor does it bring a flow back that has ended meanwhile.
    let mut bench = Bench::new();
    let (flow, _) = talking(&mut bench);
    let actions = bench.handle(Event::Pause { flow });
    bench.settle(actions);
    bench.handle(Event::Retry { flow });
    let actions = bench.handle(Event::Kill { flow });
    bench.settle(actions);
    assert_eq!(restored(&mut bench), []);
    assert!(bench.machine.is_empty());
}

#[test]
fn a_flow_that_cannot_be_read_keeps_its_mail() {
    let mut bench = Bench::new();
    let (flow, id) = talking(&mut bench);
    let whole = bench.stored[&flow].clone();
    for damage in ["header", "newer header", "journal"] {
        let mut stored = whole.clone();
        match damage {
            "header" => stored.header = b"{".to_vec(),
            "newer header" => stored.header = br#"{"version":2,"more":[]}"#.to_vec(),
            _ => stored.entries[0].1 = b"?".to_vec(),
        }
        bench.stored.insert(flow, stored);
        let mut fresh = Bench::new().restarted();
        fresh.stored = bench.stored.clone();
        let actions = fresh.restore(flow);
        let step = only_commit(&actions);
        assert_eq!(step.status, FlowStatus::Hospitalised);
        if damage != "journal" {
            assert_eq!(step.checkpoint, bench.stored[&flow].header);
        }
        let view = fresh.machine.view(flow).expect("it is held");
        let why = view.ailment.expect("a reason");
        assert!(why.contains("cannot be read"), "{why}");
        assert_eq!(why.contains("version 2"), damage == "newer header", "{why}");
        fresh.settle(actions);
        let (inbox, actions) = fresh.deliver("You", id, false, 0, text("one"));
        assert_eq!(actions, [], "{damage}");

        // Mended, it goes on with its mail.
        fresh.stored.insert(flow, whole.clone());
        assert_eq!(fresh.handle(Event::Retry { flow }), [Action::Load { flow }]);
        let actions = fresh.restore(flow);
        let follow_up = fresh.settle(actions);
        assert_eq!(follow_up, []);
        let taken = fresh
            .steps
            .iter()
            .any(|step| step.consumed.contains(&inbox));
        assert!(taken, "{damage}");
    }
}

#[test]
fn killing_a_flow_that_cannot_be_read_frees_its_mail() {
    let mut bench = Bench::new();
    let (flow, id) = talking(&mut bench);
    bench.stored.get_mut(&flow).expect("stored").header = b"{".to_vec();
    let mut bench = bench.restarted();
    let actions = bench.restore(flow);
    bench.settle(actions);
    let (inbox, _) = bench.deliver("You", id, false, 0, text("one"));
    let actions = bench.handle(Event::Kill { flow });
    let discard = Action::Discard { inbox, reply: None };
    assert_eq!(bench.settle(actions), [discard]);
}

#[test]
fn an_answering_flow_that_cannot_be_read_is_not_started_again() {
    let mut bench = Bench::new();
    let id = SessionId::from_bytes([3; 16]);
    // Its first step is lost, so its first message is still in the inbox.
    let ops = [Op::Care("look at me".into())];
    let (_, actions) = bench.deliver("You", id, true, 0, initiate(&ops));
    let flow = only_commit(&actions).flow;
    assert_eq!(only_commit(&actions).consumed, []);
    bench.settle(actions);
    bench.stored.get_mut(&flow).expect("stored").header = b"{".to_vec();
    let mut bench = bench.restarted();
    let actions = bench.restore(flow);
    bench.settle(actions);
    let (_, actions) = bench.deliver("You", id, true, 0, initiate(&ops));
    assert_eq!(actions, []);
    assert_eq!(bench.machine.len(), 1);
}

#[test]
fn numbers_that_no_honest_peer_sends_do_no_harm() {
    for sequence in [1, u64::MAX - 1, u64::MAX] {
        let mut bench = Bench::new();
        let (flow, id) = talking(&mut bench);
        let (_, actions) = bench.deliver("You", id, false, sequence, text("one"));
        let (again, more) = bench.deliver("You", id, false, u64::MAX, text("two"));
        let discard = Action::Discard {
            inbox: again,
            reply: None,
        };
        assert!(more.is_empty() || more == [discard]);
        bench.settle(actions);
        let said = bench.result(flow);
        assert!(
            said[2].contains("message 0 of the session is missing"),
            "{said:?}"
        );
    }
    let mut bench = Bench::new();
    let id = SessionId::from_bytes([3; 16]);
    let (inbox, actions) = bench.deliver("You", id, true, u64::MAX, initiate(&[]));
    assert_eq!(actions, [Action::Discard { inbox, reply: None }]);
}

#[test]
fn a_flood_ends_the_session_and_is_not_kept() {
    let mut bench = Bench::new();
    let mut ops = talk();
    ops.insert(2, Op::Sleep(Duration::from_secs(1)));
    ops.extend(vec![Op::Receive(0); LIMITS.mail_per_flow]);
    let (flow, actions) = bench.start(1, &ops);
    bench.settle(actions);
    let mut discarded = 0;
    for sequence in 0..20 {
        let (_, actions) = bench.deliver("You", session(flow), false, sequence, text("spam"));
        discarded += actions.len();
    }
    assert_eq!(discarded, 20 - LIMITS.mail_per_flow - 1);
    bench.now = bench.now + Duration::from_secs(1);
    let actions = bench.handle(Event::Tick);
    bench.settle(actions);
    let said = bench.result(flow);
    assert_eq!(said[3..7], ["spam"; 4]);
    assert!(said[7].contains("more than 4 messages wait"), "{said:?}");
    assert!(said[8].contains("ended while this flow waited"), "{said:?}");
}

#[test]
fn strangers_and_repetitions_are_not_heard() {
    let mut bench = Bench::new();
    let (flow, id) = talking(&mut bench);
    let (inbox, actions) = bench.deliver("Other", id, false, 0, text("I am You"));
    assert_eq!(actions, [Action::Discard { inbox, reply: None }]);
    let (_, actions) = bench.deliver("You", id, false, 0, text("one"));
    bench.settle(actions);
    let (inbox, actions) = bench.deliver("You", id, false, 0, text("one again"));
    assert_eq!(actions, [Action::Discard { inbox, reply: None }]);
    let (_, actions) = bench.deliver("You", id, false, 1, text("two"));
    bench.settle(actions);
    assert_eq!(bench.result(flow)[2..], ["one", "two"]);
}

#[test]
fn bad_news_stops_the_sender() {
    let news = [
        (
            SessionMessage::Error {
                message: "no".into(),
            },
            "answered with an error: no",
        ),
        (
            SessionMessage::Reject {
                reason: "never".into(),
            },
            "refused the session: never",
        ),
    ];
    for (body, expected) in news {
        let mut bench = Bench::new();
        let ops = [
            Op::Open("You".into()),
            Op::Send(0, "hello".into()),
            Op::Sleep(Duration::from_secs(1)),
            Op::Send(0, "are you there?".into()),
            Op::Receive(0),
            Op::Receive(0),
        ];
        let (flow, actions) = bench.start(1, &ops);
        bench.settle(actions);
        let (_, actions) = bench.deliver("You", session(flow), false, 0, body);
        assert_eq!(actions, []);
        bench.now = bench.now + Duration::from_secs(1);
        let actions = bench.handle(Event::Tick);
        let step = only_commit(&actions);
        assert_eq!(step.outgoing, [], "the other side knows");
        bench.settle(actions);
        let said = bench.result(flow);
        assert!(said[3].starts_with("Err"), "{said:?}");
        assert!(said[4].contains(expected), "{said:?}");
        assert!(said[5].contains("ended"), "{said:?}");
    }
}

#[test]
fn an_end_can_come_with_the_last_words() {
    let mut bench = Bench::new();
    let (flow, id) = talking(&mut bench);
    let body = SessionMessage::Data {
        payload: b"\"bye\"".to_vec(),
        last: true,
    };
    let (_, actions) = bench.deliver("You", id, false, 0, body);
    let step = only_commit(&actions);
    assert_eq!(step.outgoing, [], "the other side is gone");
    bench.settle(actions);
    let said = bench.result(flow);
    assert_eq!(said[2], "bye");
    assert!(said[3].contains("ended while this flow waited"), "{said:?}");
}

#[test]
fn a_closed_session_is_neither_opened_nor_heard() {
    let mut bench = Bench::new();
    let ops = [
        Op::Open("You".into()),
        Op::Close(0),
        Op::Receive(0),
        Op::Send(0, "x".into()),
    ];
    let (flow, actions) = bench.start(1, &ops);
    assert_eq!(only_commit(&actions).outgoing, []);
    bench.settle(actions);
    let said = bench.result(flow);
    assert!(said[2].contains("was closed by this flow"), "{said:?}");
    assert!(said[3].contains("was closed by this flow"), "{said:?}");
}

#[test]
fn what_could_never_be_delivered_is_not_sent() {
    let mut bench = Bench::new();
    let ops = [
        Op::Open("You".into()),
        Op::SendBytes(0, quorate_ledger::MAX_MESSAGE_BYTES),
        Op::SendBytes(0, quorate_ledger::MAX_MESSAGE_BYTES - 65_536),
    ];
    let (flow, actions) = bench.start(1, &ops);
    let step = only_commit(&actions);
    assert!(step.outgoing[0].encode().len() <= quorate_ledger::MAX_MESSAGE_BYTES);
    bench.settle(actions);
    let said = bench.result(flow);
    assert!(said[1].contains("send it in parts"), "{said:?}");
    assert_eq!(said[2], "Ok(())");
}

#[test]
fn a_paused_flow_stays_paused_and_an_ill_one_is_tried_again() {
    let mut bench = Bench::new();
    let (flow, id) = talking(&mut bench);
    let actions = bench.handle(Event::Pause { flow });
    bench.settle(actions);
    let mut bench = bench.restarted();
    assert_eq!(bench.restore(flow), []);
    let (_, actions) = bench.deliver("You", id, false, 0, text("one"));
    assert_eq!(actions, []);
    assert_eq!(
        bench.machine.view(flow).map(|view| view.status),
        Some(FlowStatus::Paused)
    );
    assert_eq!(bench.handle(Event::Retry { flow }), [Action::Load { flow }]);
    let actions = bench.restore(flow);
    bench.settle(actions);
    let (_, actions) = bench.deliver("You", id, false, 1, text("two"));
    bench.settle(actions);
    assert_eq!(bench.result(flow)[2..], ["one", "two"]);

    let (ill, actions) = bench.start(2, &[Op::Now, Op::Care("look".into())]);
    bench.settle(actions);
    let mut bench = bench.restarted();
    let actions = bench.restore(ill);
    assert_eq!(only_commit(&actions).status, FlowStatus::Hospitalised);
    let view = bench.machine.view(ill).expect("it is there");
    assert_eq!((view.visits, view.ailment.as_deref()), (2, Some("look")));
}

#[test]
fn orders_that_come_during_a_commit_are_followed_after_it() {
    // A retry right after a pause is not lost.
    let mut bench = Bench::new();
    let (flow, _) = talking(&mut bench);
    let pausing = bench.handle(Event::Pause { flow });
    assert_eq!(bench.handle(Event::Retry { flow }), []);
    assert_eq!(bench.settle(pausing), [Action::Load { flow }]);

    // A kill stays a kill.
    let mut bench = Bench::new();
    let (flow, actions) = bench.start(1, &talk());
    for event in [
        Event::Kill { flow },
        Event::Pause { flow },
        Event::Retry { flow },
    ] {
        assert_eq!(bench.handle(event), []);
    }
    bench.settle(actions);
    assert!(bench.machine.is_empty());
    let last = bench.steps.last().expect("steps");
    assert_eq!(last.status, FlowStatus::Killed);
    let told = &last.outgoing[0].body;
    assert!(matches!(told, SessionMessage::Error { .. }), "{told:?}");
}

#[test]
fn a_start_that_the_store_refuses_leaves_nothing_behind() {
    let mut bench = Bench::new();
    let (_, actions) = bench.start(1, &talk());
    assert_eq!(bench.refuse(actions), []);
    assert!(bench.machine.is_empty());
    assert_eq!(bench.machine.next_wakeup(), None);
    // One that answers a peer is kept: the peer's message is in the inbox.
    let id = SessionId::from_bytes([3; 16]);
    let (inbox, actions) = bench.deliver("You", id, true, 0, initiate(&[Op::Now]));
    let actions = bench.refuse(actions);
    let flow = only_commit(&actions).flow;
    assert_eq!(bench.refuse(actions), []);
    let actions = bench.handle(Event::Retry { flow });
    assert_eq!(only_commit(&actions).consumed, [inbox]);
    assert!(only_commit(&actions).start.is_some());
    bench.settle(actions);
    assert!(bench.machine.is_empty());
}

#[test]
fn a_drained_node_lets_only_its_own_flows_go_on() {
    let mut bench = Bench::new();
    bench.machine.set_draining(true);
    assert!(
        bench
            .machine
            .check_start("bench.Script", r#"{"ops":[]}"#)
            .is_err()
    );
    let (theirs, ours) = (
        SessionId::from_bytes([3; 16]),
        SessionId::from_bytes([4; 16]),
    );
    let ops = [Op::Receive(0)];
    let (_, actions) = bench.deliver("You", theirs, true, 0, initiate(&ops));
    assert_eq!(actions, []);
    let (_, actions) = bench.deliver("You", theirs, true, 1, text("more"));
    assert_eq!(actions, []);
    assert_eq!(bench.machine.held(), 2);
    let (_, actions) = bench.deliver("Me", ours, true, 0, initiate(&[]));
    assert!(only_commit(&actions).outcome.is_some());
    bench.settle(actions);
    bench.machine.set_draining(false);
    let actions = bench.handle(Event::Tick);
    bench.settle(actions);
    assert_eq!(bench.machine.held(), 0);
    assert!(bench.machine.is_empty());
    assert_eq!(
        bench.steps.last().map(|step| step.status),
        Some(FlowStatus::Completed)
    );
}

#[test]
fn sessions_beyond_the_limit_wait_their_turn() {
    let mut bench = Bench::new();
    let id = |n: u8| SessionId::from_bytes([n; 16]);
    for n in 0..5 {
        let (_, actions) = bench.deliver("You", id(n), true, 0, initiate(&[Op::Receive(0)]));
        bench.settle(actions);
    }
    // One peer has as many places as are left free, and no more.
    assert_eq!((bench.machine.len(), bench.machine.held()), (2, 3));
    // Another one finds the place, and then waits like everybody.
    for n in 5..7 {
        let (_, actions) = bench.deliver("Other", id(n), true, 0, initiate(&[Op::Receive(0)]));
        bench.settle(actions);
    }
    assert_eq!(
        (bench.machine.len(), bench.machine.held()),
        (LIMITS.flows, 4)
    );
    // Flows that are started here have places of their own.
    assert!(
        bench
            .machine
            .check_start("bench.Script", r#"{"ops":[]}"#)
            .is_ok()
    );
    for n in 0..7 {
        let who = if n < 5 { "You" } else { "Other" };
        let (_, actions) = bench.deliver(who, id(n), true, 1, text("go"));
        bench.settle(actions);
    }
    assert_eq!((bench.machine.len(), bench.machine.held()), (0, 0));
    let ended = bench.steps.iter().filter(|step| step.outcome.is_some());
    assert_eq!(ended.count(), 7);
}

/// A peer with a long queue of sessions does not keep the few of others waiting until all of its own are done.
#[test]
fn places_go_to_the_peer_that_has_the_fewest() {
    let mut bench = Bench::new();
    let id = |n: u8| SessionId::from_bytes([n; 16]);
    for n in 0..20 {
        let (_, actions) = bench.deliver("You", id(n), true, 0, initiate(&[Op::Receive(0)]));
        bench.settle(actions);
    }
    for n in 20..22 {
        let (_, actions) = bench.deliver("Other", id(n), true, 0, initiate(&[Op::Receive(0)]));
        bench.settle(actions);
    }
    let answering = |bench: &Bench, who: &str| {
        let views = bench.machine.views();
        views.filter(|view| view.peers.contains(&name(who))).count()
    };
    assert_eq!(
        (answering(&bench, "You"), answering(&bench, "Other")),
        (2, 1)
    );
    let (_, actions) = bench.deliver("Other", id(20), true, 1, text("go"));
    bench.settle(actions);
    assert_eq!(
        (answering(&bench, "You"), answering(&bench, "Other")),
        (2, 1),
        "the place goes to the one who has none, however many of the other wait"
    );
}

/// The node's own checks find their places when clients and peers have taken all others.
#[test]
fn the_nodes_own_checks_have_places_of_their_own() {
    let mut bench = Bench::new();
    for n in 1..=LIMITS.flows {
        let (_, actions) = bench.start(n as u8, &[Op::Sleep(Duration::MAX)]);
        bench.settle(actions);
    }
    let check = |bench: &Bench, class| bench.machine.check_start(class, r#"{"ops":[]}"#);
    assert!(check(&bench, "bench.Script").is_err());
    let system = bench.machine.check_start("quorate.SelfCheck", "{}");
    // The bench has no such flow; what is refused is not the place.
    assert!(
        matches!(system, Err(StartRefused::UnknownFlow { .. })),
        "{system:?}"
    );
}

#[test]
fn what_is_known_by_its_number_is_asked_for_only_when_the_number_is_durable() {
    for (op, name) in [(Op::Lock, "lock"), (Op::Effect, "effect")] {
        let mut bench = Bench::new();
        let (_, actions) = bench.start(1, &[Op::Entropy, op]);
        assert_eq!(only_commit(&actions).entries.len(), 1, "{name}");
        let actions = bench.settle(actions);
        assert_eq!(only_request(&actions).0, 1);
    }
    // What has been recorded is durable before the store is asked about it.
    let mut bench = Bench::new();
    let (_, actions) = bench.start(1, &[Op::Record, Op::Query]);
    assert_eq!(only_commit(&actions).recordings.len(), 1);
    let (_, actions) = bench.start(2, &[Op::Now, Op::Query]);
    assert!(matches!(only_request(&actions).1, HostRequest::Query(_)));
}

#[test]
fn what_is_recorded_stays_recorded_when_the_flow_fails() {
    let mut bench = Bench::new();
    let (_, actions) = bench.start(1, &[Op::Record, Op::Fail("after all".into())]);
    let step = only_commit(&actions);
    assert_eq!(step.status, FlowStatus::Failed);
    assert_eq!(step.recordings.len(), 1);
}

#[test]
fn an_endless_sleep_survives_a_restart() {
    let mut bench = Bench::new();
    let (flow, actions) = bench.start(1, &[Op::Sleep(Duration::MAX)]);
    bench.settle(actions);
    let mut bench = bench.restarted();
    assert_eq!(bench.restore(flow), []);
    assert_eq!(
        bench.machine.view(flow).map(|view| view.status),
        Some(FlowStatus::Suspended)
    );
}

#[test]
fn a_restart_does_not_lengthen_a_wait() {
    let ops = [
        Op::Open("You".into()),
        Op::Send(0, "hello".into()),
        Op::ReceiveWithin(0, 1_000),
    ];
    let mut bench = Bench::new();
    let (flow, actions) = bench.start(1, &ops);
    bench.settle(actions);
    let due = bench.machine.next_wakeup();
    bench.now = bench.now + Duration::from_millis(600);
    // A stay in the hospital or a pause does not either.
    let actions = bench.handle(Event::Pause { flow });
    bench.settle(actions);
    assert_eq!(bench.machine.next_wakeup(), None);
    bench.handle(Event::Retry { flow });
    let actions = bench.restore(flow);
    bench.settle(actions);
    assert_eq!(bench.machine.next_wakeup(), due);
    let mut bench = bench.restarted();
    bench.restore(flow);
    assert_eq!(bench.machine.next_wakeup(), due);
    bench.now = due.expect("a deadline");
    let actions = bench.handle(Event::Tick);
    bench.settle(actions);
    assert!(bench.result(flow)[2].contains("did not answer within 1000 ms"));
    assert_eq!(bench.machine.next_wakeup(), None);
}

#[test]
fn a_request_that_fails_for_now_is_repeated_and_then_cared_for() {
    let mut bench = Bench::new();
    let (flow, mut actions) = bench.start(1, &[Op::Query]);
    for _ in 0..2 {
        let (sequence, _) = only_request(&actions);
        let result = Err(HostError::Transient("no database".into()));
        assert_eq!(
            bench.handle(Event::HostResult {
                flow,
                sequence,
                result
            }),
            []
        );
        bench.now = bench.machine.next_wakeup().expect("another attempt");
        actions = bench.handle(Event::Tick);
    }
    let (sequence, _) = only_request(&actions);
    let actions = bench.handle(Event::HostResult {
        flow,
        sequence,
        result: Err(HostError::Transient("no database".into())),
    });
    assert_eq!(only_commit(&actions).status, FlowStatus::Hospitalised);
    let view = bench.machine.view(flow).expect("in the hospital");
    assert_eq!(view.ailment.as_deref(), Some("no database (tried 3 times)"));
    bench.settle(actions);
    assert_eq!(bench.machine.next_wakeup(), None);
}

#[test]
fn code_that_panics_harms_its_own_flow_only() {
    let mut bench = Bench::new();
    let (well, id) = talking(&mut bench);
    let (ill, actions) = bench.start(2, &[Op::Now, Op::Panic("index out of bounds".into())]);
    assert_eq!(only_commit(&actions).entries, []);
    bench.settle(actions);
    let view = bench.machine.view(ill).expect("in the hospital");
    assert_eq!(
        view.ailment.as_deref(),
        Some("its code panicked: index out of bounds")
    );
    for (sequence, word) in ["one", "two"].into_iter().enumerate() {
        let (_, actions) = bench.deliver("You", id, false, sequence as u64, text(word));
        bench.settle(actions);
    }
    assert_eq!(bench.result(well)[2..], ["one", "two"]);
}

/// Another version of the same flow.
#[derive(Serialize, Deserialize)]
struct Rewritten {}

impl Flow for Rewritten {
    const NAME: &'static str = "bench.Script";
    type Output = ();

    async fn call(self, ctx: Context) -> Result<(), FlowError> {
        ctx.now().await?;
        Ok(())
    }
}

struct Upgrade;

impl App for Upgrade {
    fn name(&self) -> &str {
        "upgrade"
    }

    fn version(&self) -> u32 {
        4
    }

    fn contracts(&self) -> Vec<std::sync::Arc<dyn Contract>> {
        Vec::new()
    }

    fn register_flows(&self, registry: &mut FlowRegistry) {
        registry.flow::<Rewritten>();
    }
}

#[test]
fn code_that_has_changed_is_noticed() {
    let second = Duration::from_secs(1);
    let cases = [
        (
            vec![Op::Entropy, Op::Sleep(second)],
            "has 'entropy' and its code now asks for 'now'",
        ),
        (
            vec![Op::Now, Op::Now, Op::Sleep(second)],
            "now ends where its journal has 1 more",
        ),
    ];
    for (ops, expected) in cases {
        let mut bench = Bench::new();
        let (flow, actions) = bench.start(1, &ops);
        bench.settle(actions);
        let mut registry = FlowRegistry::new();
        registry.install(&Upgrade).expect("one application");
        let mut changed = bench.restarted_with(registry);
        let actions = changed.restore(flow);
        assert_eq!(only_commit(&actions).status, FlowStatus::Hospitalised);
        let view = changed.machine.view(flow).expect("in the hospital");
        let why = view.ailment.expect("a reason");
        assert!(
            why.contains("not deterministic") && why.contains(expected),
            "{why}"
        );
        changed.settle(actions);
        // The old version brings it to its end.
        let mut bench = changed.restarted();
        let actions = bench.restore(flow);
        bench.settle(actions);
        bench.now = bench.now + second;
        let actions = bench.handle(Event::Tick);
        bench.settle(actions);
        assert_eq!(bench.result(flow).len(), ops.len());
    }
}

#[test]
fn time_does_not_run_backwards_on_the_machine_that_takes_over() {
    let mut bench = Bench::new();
    let ops = [
        Op::Open("You".into()),
        Op::Now,
        Op::Receive(0),
        Op::Now,
        Op::Sleep(Duration::from_secs(5)),
    ];
    let (flow, actions) = bench.start(1, &ops);
    bench.settle(actions);
    let began = bench.now;
    let mut bench = bench.restarted();
    bench.now = began - Duration::from_secs(3_600);
    bench.restore(flow);
    let (_, actions) = bench.deliver("You", session(flow), false, 0, text("one"));
    bench.settle(actions);
    let due = began + Duration::from_secs(5);
    assert_eq!(bench.machine.next_wakeup(), Some(due));
    bench.now = due;
    let actions = bench.handle(Event::Tick);
    bench.settle(actions);
    assert_eq!(bench.result(flow)[3], format!("{:?}", Ok::<_, ()>(began)));
}

#[test]
fn flows_that_nobody_answers_are_told_so() {
    let mut bench = Bench::new();
    let body = SessionMessage::Initiate {
        flow: "other.Flow".into(),
        app_version: 1,
        first: None,
    };
    let id = SessionId::from_bytes([3; 16]);
    let (mail, actions) = bench.deliver("You", id, true, 0, body);
    let [
        Action::Discard {
            inbox,
            reply: Some(reply),
        },
    ] = actions.as_slice()
    else {
        panic!("{actions:?}");
    };
    assert_eq!(*inbox, mail);
    assert_eq!((&reply.recipient, reply.sequence), (&name("You"), 0));
    let SessionMessage::Reject { reason } = &reply.body else {
        panic!("{reply:?}");
    };
    assert!(reason.contains("no application here answers the flow 'other.Flow'"));
}
