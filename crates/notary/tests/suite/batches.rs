//! Requests that are decided together.

use quorate_ledger::NotaryError;
use quorate_notary::Options;
use quorate_storage::Engine;
use rstest::rstest;

use crate::support::*;

/// Lets the desk take up a first batch and stop at the gate with it, so that what follows is
/// gathered to one batch.
async fn busy(desk: &Desk) {
    desk.gate.close();
    let seen = desk.gate.batches().len();
    desk.ask(&spend(&[]).reading(&["first"]).build()).await;
    desk.gate.has_seen(seen + 1).await;
}

#[rstest]
#[case(Engine::Sqlite)]
#[case(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_has_one_signature_that_proves_each_of_its_transactions(#[case] engine: Engine) {
    let Some(db) = database(engine).await else {
        return;
    };
    let desk = Desk::open(&db, Options::default()).await;
    busy(&desk).await;
    let one = spend(&["1", "x"]).build();
    let two = spend(&["2"]).build();
    let rival = spend(&["3", "x"]).build();
    let reader = spend(&["4"]).reading(&["2"]).build();
    let three = spend(&["3"]).build();
    let mut sessions = Vec::new();
    for wire in [&one, &two, &rival, &reader, &three, &one] {
        sessions.push(desk.ask(wire).await);
    }
    desk.gate.open();
    let mut answers = Vec::new();
    for session in sessions {
        answers.push(desk.answer(session).await);
    }
    assert_eq!(desk.gate.batches()[1..], [(6, 2 + 1 + 2 + 2 + 1 + 2)]);

    // The order decides, also within a batch.
    assert_eq!(
        conflict(answers[2].clone()),
        [(state("x"), one.id(), false)]
    );
    assert_eq!(conflict(answers[3].clone()), [(state("2"), two.id(), true)]);
    let signed = [(0, &one), (1, &two), (4, &three), (5, &one)];
    let signatures = signed.map(|(index, wire)| {
        assert_signs(answers[index].clone(), wire);
        signature(answers[index].clone())
    });
    let bytes = signatures[0].signature.as_bytes();
    for signature in &signatures {
        assert_eq!(
            signature.signature.as_bytes(),
            bytes,
            "one for all of the batch"
        );
        assert!(signature.proof.is_some());
        assert!(signature.verify(&rival.id()).is_err());
    }
    assert!(
        signatures[0].verify(&two.id()).is_err(),
        "each has its own proof"
    );
    desk.close().await;
}

#[rstest]
#[case(Engine::Sqlite)]
#[case(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn decisions_answers_and_the_inbox_change_in_one_commit(#[case] engine: Engine) {
    let Some(db) = database(engine).await else {
        return;
    };
    let desk = Desk::open(&db, Options::default()).await;
    let from = party("PartyA").name;
    let wire = spend(&["1"]).build();
    desk.gate.close();
    let session = desk.ask(&wire).await;
    desk.gate.has_seen(1).await;
    // Not committed yet: the request is safe, and nothing can be sent.
    assert_eq!(desk.inbox().await.len(), 1);
    assert!(desk.answers(&from).await.is_empty());
    // The process dies here. Its successor finds the request.
    desk.close().await;

    let desk = Desk::open(&db, Options::default()).await;
    desk.take_up_inbox().await;
    assert_signs(desk.answer(session).await, &wire);
    assert!(desk.inbox().await.is_empty());
    desk.close().await;

    // The answer is in the outbox for whoever comes next, and is not given a second time.
    let desk = Desk::open(&db, Options::default()).await;
    assert_eq!(desk.answers(&from).await.len(), 1);
    assert!(desk.inbox().await.is_empty());
    desk.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_keep_to_their_bounds() {
    let db = database(Engine::Sqlite).await.unwrap();
    let options = Options {
        batch_size: 3,
        batch_input_states: 4,
        ..Options::default()
    };
    let desk = Desk::open(&db, options).await;
    busy(&desk).await;
    let sizes = [1, 1, 1, 1, 2, 2, 3, 9, 1, 4, 1];
    let mut last = None;
    for (number, size) in sizes.into_iter().enumerate() {
        let names: Vec<String> = (0..size).map(|i| format!("{number}/{i}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        last = Some(desk.ask(&spend(&names).build()).await);
    }
    desk.gate.open();
    signature(desk.answer(last.unwrap()).await);
    // Three requests, or four states; a request that is larger by itself goes alone.
    let wanted = [
        (3, 3),
        (2, 3),
        (1, 2),
        (1, 3),
        (1, 9),
        (1, 1),
        (1, 4),
        (1, 1),
    ];
    assert_eq!(desk.gate.batches()[1..], wanted);
    desk.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_offered_again_while_the_database_is_out_of_reach() {
    let db = database(Engine::Sqlite).await.unwrap();
    let desk = Desk::open(&db, Options::default()).await;
    desk.gate.fail_next(2);
    let wire = spend(&["1"]).build();
    assert_signs(desk.notarise(&wire).await, &wire);
    assert_eq!(desk.gate.batches().len(), 3);
    assert_eq!(desk.metric("quorate_notary_database_retries_total"), 2.0);
    desk.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_the_database_refuses_harms_only_itself() {
    let db = database(Engine::Sqlite).await.unwrap();
    let desk = Desk::open(&db, Options::default()).await;
    busy(&desk).await;
    let wires: Vec<_> = (0..4).map(|n| spend(&[&n.to_string()]).build()).collect();
    desk.gate.refuse(wires[2].id());
    let mut sessions = Vec::new();
    for wire in &wires {
        sessions.push(desk.ask(wire).await);
    }
    desk.gate.open();
    for (number, session) in sessions.into_iter().enumerate() {
        let answer = desk.answer(session).await;
        if number == 2 {
            let error = refusal(answer);
            assert!(matches!(&error, NotaryError::General(_)), "{error}");
        } else {
            assert_signs(answer, &wires[number]);
        }
    }
    assert!(desk.inbox().await.is_empty());
    desk.close().await;
}
