//! One request and its answer.

use quorate_identity::X500Name;
use quorate_ledger::{
    ComponentGroup, FilteredTransaction, NotarisationMessage, NotarisationPayload, NotaryError,
    SignedTransaction, TimeWindow,
};
use quorate_notary::Options;
use quorate_storage::Engine;
use rstest::rstest;

use crate::support::*;

#[rstest]
#[case(Engine::Sqlite)]
#[case(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn the_first_to_consume_a_state_is_signed_and_named_to_all_others(#[case] engine: Engine) {
    let Some(db) = database(engine).await else {
        return;
    };
    let desk = Desk::open(&db, Options::default()).await;
    let first = spend(&["1", "2"]).reading(&["r"]).build();
    assert_signs(desk.notarise(&first).await, &first);

    let second = spend(&["2", "3"]).build();
    let found = conflict(desk.notarise(&second).await);
    assert_eq!(found, [(state("2"), first.id(), false)]);
    // What was refused has consumed nothing.
    let third = spend(&["3"]).build();
    assert_signs(desk.notarise(&third).await, &third);
    // A state that was only read can be consumed, and cannot be read any more then.
    let fourth = spend(&["r"]).build();
    assert_signs(desk.notarise(&fourth).await, &fourth);
    let fifth = spend(&["5"]).reading(&["r", "other"]).build();
    let found = conflict(desk.notarise(&fifth).await);
    assert_eq!(found, [(state("r"), fourth.id(), true)]);

    assert_eq!(desk.metric("quorate_notary_commits_total"), 3.0);
    assert_eq!(desk.metric("quorate_notary_conflicts_total"), 2.0);
    assert_eq!(
        desk.metric("quorate_notary_input_states_total"),
        3.0 + 2.0 + 1.0 + 1.0 + 3.0
    );
    desk.close().await;
}

#[rstest]
#[case(Engine::Sqlite)]
#[case(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn who_was_confirmed_is_confirmed_again_whatever_has_happened_since(#[case] engine: Engine) {
    let Some(db) = database(engine).await else {
        return;
    };
    let desk = Desk::open(&db, Options::default()).await;
    let window = TimeWindow::until_time(at(NOON + 1_000_000));
    let first = spend(&["1"]).reading(&["r"]).within(window).build();
    assert_signs(desk.notarise(&first).await, &first);
    let thief = spend(&["1"]).within(window).build();
    let refused = desk.notarise(&thief).await;

    // Its reference is spent, its window has ended, and the notary is another process.
    let spender = spend(&["r"]).build();
    assert_signs(desk.notarise(&spender).await, &spender);
    desk.close().await;
    let desk = Desk::open(&db, Options::default()).await;
    desk.time.set_wall_micros(NOON + 3_600_000_000);
    let from = party("PartyB").name;
    let message = request(&first, "PartyB").encode();
    let session = desk.send(&from, Some(message)).await;
    assert_signs(desk.answer_to(&from, session).await, &first);
    let message = request(&thief, "PartyB").encode();
    let session = desk.send(&from, Some(message)).await;
    assert_eq!(desk.answer_to(&from, session).await, refused);
    desk.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_present_must_be_within_the_time_window() {
    let db = database(Engine::Sqlite).await.unwrap();
    let desk = Desk::open(&db, Options::default()).await;
    let hour = 3_600_000_000;
    let over = TimeWindow::between(at(NOON - hour), at(NOON)).unwrap();
    let wire = spend(&["1"]).within(over).build();
    let error = refusal(desk.notarise(&wire).await);
    let wanted = NotaryError::TimeWindowInvalid {
        window: over,
        now: at(NOON),
    };
    assert_eq!(error, wanted);
    assert!(!error.is_transient(), "it will not come back");

    let ahead = TimeWindow::from_time(at(NOON + hour));
    let wire = spend(&["1"]).within(ahead).build();
    let error = refusal(desk.notarise(&wire).await);
    assert!(error.is_transient(), "asking again helps: {error}");
    // Nothing was consumed meanwhile, and the same transaction is signed in its time.
    desk.time.set_wall_micros(NOON + hour);
    assert_signs(desk.notarise(&wire).await, &wire);
    assert_eq!(desk.metric("quorate_notary_refusals_total"), 2.0);
    desk.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_not_in_order_is_refused_with_the_reason_and_consumes_nothing() {
    let db = database(Engine::Sqlite).await.unwrap();
    let desk = Desk::open(&db, Options::default()).await;
    let party_a = party("PartyA").name;
    let answer = async |from: &X500Name, bytes: Option<Vec<u8>>| {
        let session = desk.send(from, bytes).await;
        refusal(desk.answer_to(from, session).await)
    };
    let wire = spend(&["1"]).reading(&["2"]).build();
    let good = request(&wire, "PartyA");

    // Another notary's transaction.
    let mut foreign = spend(&["1"]);
    foreign.notary = party("OtherNotary");
    let error = answer(&party_a, Some(request(&foreign.build(), "PartyA").encode())).await;
    let wanted = NotaryError::WrongNotary {
        wanted: Some(party("OtherNotary")),
        asked: notary(),
    };
    assert_eq!(error, wanted);

    // Signed by somebody else than who sends it: stolen, or the key was changed.
    let error = answer(&party_a, Some(request(&wire, "PartyB").encode())).await;
    assert!(
        matches!(&error, NotaryError::RequestSignatureInvalid(why) if why.contains("PartyA")),
        "{error}"
    );
    // Signed over something else.
    let mut other = request(&spend(&["1"]).build(), "PartyA");
    other.payload = good.payload.clone();
    let error = answer(&party_a, Some(other.encode())).await;
    assert!(
        matches!(error, NotaryError::RequestSignatureInvalid(_)),
        "{error}"
    );

    // Something that the notary must see is withheld.
    for hidden in [
        ComponentGroup::Inputs,
        ComponentGroup::References,
        ComponentGroup::Notary,
    ] {
        let filtered = FilteredTransaction::build(&wire, |c| c.group() != hidden).unwrap();
        let message =
            NotarisationMessage::new(NotarisationPayload::Filtered(filtered), &key("PartyA"));
        let error = answer(&party_a, Some(message.encode())).await;
        assert!(
            matches!(&error, NotaryError::TransactionInvalid(why) if why.contains("visible")),
            "{hidden:?}: {error}"
        );
    }

    // Bytes that are nothing, and nothing at all.
    let error = answer(&party_a, Some(b"nonsense".to_vec())).await;
    assert!(
        matches!(error, NotaryError::TransactionInvalid(_)),
        "{error}"
    );
    let error = answer(&party_a, None).await;
    assert!(
        matches!(&error, NotaryError::General(why) if why.contains("empty")),
        "{error}"
    );

    // Somebody whose key the notary cannot know.
    let stranger = party("Stranger").name;
    let error = answer(&stranger, Some(request(&wire, "Stranger").encode())).await;
    assert!(
        matches!(&error, NotaryError::General(why) if why.contains("Stranger") && why.contains("node info")),
        "{error}"
    );

    assert_eq!(desk.metric("quorate_notary_refusals_total"), 9.0);
    assert_signs(desk.notarise(&wire).await, &wire);
    desk.close().await;
}

/// Whatever is changed on the way, nothing is signed but the transaction itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_with_one_byte_changed_is_never_signed() {
    let db = database(Engine::Sqlite).await.unwrap();
    let desk = Desk::open(&db, Options::default()).await;
    let window = TimeWindow::until_time(at(NOON + 1_000_000));
    let wire = spend(&["1", "2"]).reading(&["3"]).within(window).build();
    let bytes = request(&wire, "PartyA").encode();
    let from = party("PartyA").name;
    let mut sessions = Vec::new();
    for position in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[position] ^= 1 << (position % 8);
        sessions.push((position, desk.send(&from, Some(changed)).await));
    }
    // Requests are decided in order.
    assert_signs(desk.notarise(&wire).await, &wire);
    let mut answers = desk.answers(&from).await;
    for (position, session) in sessions {
        let error = refusal(answers.remove(&session).unwrap());
        assert!(
            matches!(
                error,
                NotaryError::TransactionInvalid(_)
                    | NotaryError::RequestSignatureInvalid(_)
                    | NotaryError::WrongNotary { .. }
            ),
            "byte {position}: {error}"
        );
    }
    assert!(desk.inbox().await.is_empty());
    desk.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_validating_notary_signs_only_what_a_flow_has_verified() {
    let db = database(Engine::Sqlite).await.unwrap();
    let options = Options {
        validating: true,
        ..Options::default()
    };
    let desk = Desk::open(&db, options).await;
    let wire = spend(&["1"]).build();
    let tear_off = request(&wire, "PartyA");
    let full = NotarisationPayload::Full {
        tx: SignedTransaction::unsigned(wire.clone()),
        dependencies: Vec::new(),
    };
    let full = NotarisationMessage::new(full, &key("PartyA"));

    // By message nothing is verified, so nothing is signed, not even a whole transaction.
    let from = party("PartyA").name;
    for message in [&tear_off, &full] {
        let session = desk.send(&from, Some(message.encode())).await;
        let error = refusal(desk.answer(session).await);
        assert!(
            matches!(&error, NotaryError::TransactionInvalid(why) if why.contains("validating")),
            "{error}"
        );
    }
    let by_flow = async |message: &NotarisationMessage| {
        let decided = desk.handle.notarise(party("PartyA"), message.clone()).await;
        decided.expect("the notary is at work")
    };
    let error = refusal(by_flow(&tear_off).await);
    assert!(
        matches!(&error, NotaryError::TransactionInvalid(_)),
        "{error}"
    );
    assert_signs(by_flow(&full).await, &wire);
    assert_signs(by_flow(&full).await, &wire);
    // A flow cannot speak for somebody else.
    let stolen = desk.handle.notarise(party("PartyB"), full.clone()).await;
    let error = refusal(stolen.unwrap());
    assert!(
        matches!(error, NotaryError::RequestSignatureInvalid(_)),
        "{error}"
    );
    desk.close().await;
}
