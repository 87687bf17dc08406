//! More requests than there is room or time for.

use std::time::Duration;

use quorate_ledger::{
    NotarisationAnswer, NotarisationMessage, NotarisationPayload, NotaryError, SignedTransaction,
};
use quorate_notary::Options;
use quorate_storage::Engine;
use rstest::rstest;

use crate::support::*;

fn is_overloaded(answer: &NotarisationAnswer) -> Option<Duration> {
    match answer {
        NotarisationAnswer::Refused(NotaryError::Overloaded { retry_after_millis }) => {
            Some(Duration::from_millis(*retry_after_millis))
        }
        _ => None,
    }
}

#[rstest]
#[case(Engine::Sqlite)]
#[case(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn who_finds_no_room_is_told_when_to_ask_again_and_holds_up_nobody(#[case] engine: Engine) {
    let Some(db) = database(engine).await else {
        return;
    };
    let options = Options {
        queue_size: 2,
        batch_size: 5,
        ..Options::default()
    };
    let desk = Desk::open(&db, options).await;
    desk.gate.close();
    let mut wires = vec![spend(&["0"]).build()];
    let mut sessions = vec![desk.ask(&wires[0]).await];
    desk.gate.has_seen(1).await;
    // One is being decided, two wait. The others are brought without waiting, although nothing moves.
    for number in 1..20 {
        wires.push(spend(&[&number.to_string()]).build());
        sessions.push(desk.ask(&wires[number]).await);
    }
    assert_eq!(desk.metric("quorate_notary_request_queue_size"), 2.0);
    assert_eq!(desk.metric("quorate_notary_overloads_total"), 17.0);
    let full = NotarisationPayload::Full {
        tx: SignedTransaction::unsigned(wires[19].clone()),
        dependencies: Vec::new(),
    };
    let full = NotarisationMessage::new(full, &key("PartyA"));
    let by_flow = desk.handle.notarise(party("PartyA"), full).await.unwrap();
    assert!(is_overloaded(&by_flow).is_some());

    desk.gate.open();
    let mut declined = Vec::new();
    for (session, wire) in sessions.into_iter().zip(&wires) {
        let answer = desk.answer(session).await;
        match is_overloaded(&answer) {
            None => assert_signs(answer, wire),
            Some(wait) => {
                let range = Duration::from_secs(1)..=Duration::from_millis(1_500);
                assert!(range.contains(&wait), "{wait:?}");
                declined.push(wire);
            }
        }
    }
    assert_eq!(declined.len(), 17);
    assert!(desk.inbox().await.is_empty());
    // Declined is not decided: whoever asks again is served.
    for wire in declined {
        assert_signs(desk.notarise(wire).await, wire);
    }
    assert_eq!(desk.metric("quorate_notary_refusals_total"), 0.0);
    desk.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_would_wait_too_long_is_told_so_although_there_is_room() {
    let db = database(Engine::Sqlite).await.unwrap();
    let options = Options {
        batch_size: 2,
        eta_threshold: Duration::ZERO,
        ..Options::default()
    };
    let desk = Desk::open(&db, options).await;
    // The desk learns how long a batch takes.
    let wire = spend(&["first"]).build();
    assert_signs(desk.notarise(&wire).await, &wire);
    desk.gate.close();
    let mut sessions = vec![desk.ask(&spend(&["1"]).build()).await];
    desk.gate.has_seen(2).await;
    for number in 2..6 {
        sessions.push(desk.ask(&spend(&[&number.to_string()]).build()).await);
    }
    desk.gate.open();
    let mut answers = Vec::new();
    for session in sessions {
        answers.push(is_overloaded(&desk.answer(session).await).is_some());
    }
    // What fits into the next batch is let in whatever is expected.
    assert_eq!(answers, [false, false, false, true, true]);
    desk.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_notary_leaves_requests_where_they_are() {
    let db = database(Engine::Sqlite).await.unwrap();
    let desk = Desk::open(&db, Options::default()).await;
    let wire = spend(&["1"]).build();
    let mail = desk
        .receive(
            &party("PartyA").name,
            Some(request(&wire, "PartyA").encode()),
        )
        .await;
    let handle = desk.handle.clone();
    desk.close().await;
    handle.submit(mail.inbox, mail.envelope).await;
    let message = request(&wire, "PartyA");
    assert_eq!(handle.notarise(party("PartyA"), message).await, None);
    drop(handle);
    let desk = Desk::open(&db, Options::default()).await;
    assert_eq!(desk.inbox().await.len(), 1);
    desk.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_have_the_names_that_boards_look_for() {
    let db = database(Engine::Sqlite).await.unwrap();
    let desk = Desk::open(&db, Options::default()).await;
    let wire = spend(&["1"]).build();
    assert_signs(desk.notarise(&wire).await, &wire);
    for name in [
        "commits_total",
        "conflicts_total",
        "refusals_total",
        "overloads_total",
        "input_states_total",
        "database_retries_total",
        "request_queue_size",
        "request_processing_eta_seconds",
        "processed_batch_size_count",
        "commit_seconds_count",
        "batch_sign_seconds_count",
    ] {
        desk.metric(&format!("quorate_notary_{name}"));
    }
    assert_eq!(desk.metric("quorate_notary_processed_batch_size_sum"), 1.0);
    desk.close().await;
}
