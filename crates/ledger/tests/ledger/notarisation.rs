//! What a notary sees, and what it answers.

use std::collections::BTreeMap;

use quorate_identity::SecureHash;
use quorate_ledger::{
    Component, ComponentGroup, ConsumingTx, FilteredTransaction, NotarisationAnswer,
    NotarisationMessage, NotarisationPayload, NotarisationRequest, NotaryError, StateRef,
    TearOffError, TimeWindow, Timestamp, TxId, limits::MAX_REASON_BYTES, sign_transaction,
};

use crate::sample::{full, issue, key, party, payment, signed};

#[test]
fn a_tear_off_shows_what_was_chosen_and_proves_it() {
    let wire = full();
    let outputs = |component: &Component| matches!(component, Component::Output(_));
    let filtered = FilteredTransaction::build(&wire, outputs).unwrap();
    let again = FilteredTransaction::decode(&filtered.encode()).unwrap();
    assert_eq!(again, filtered);
    assert_eq!(
        serde_json::from_str::<FilteredTransaction>(&serde_json::to_string(&filtered).unwrap())
            .unwrap(),
        filtered
    );
    assert_eq!(again.id(), wire.id());
    assert_eq!(again.outputs().len(), 2);
    assert_eq!(again.outputs()[1], (1, &wire.outputs()[1]));
    assert!(again.inputs().is_empty() && again.notary().is_none());
    assert_eq!(again.check_all_visible(ComponentGroup::Outputs), Ok(()));
    assert_eq!(
        again.check_all_visible(ComponentGroup::Inputs),
        Err(TearOffError::Hidden(ComponentGroup::Inputs))
    );

    let nothing = FilteredTransaction::build(&wire, |_| false);
    assert_eq!(nothing, Err(TearOffError::Nothing(wire.id())));
}

#[test]
fn hiding_one_of_a_group_is_noticed() {
    let wire = full();
    for hidden in wire.inputs() {
        let keep =
            |component: &Component| matches!(component, Component::Input(input) if input != hidden);
        let filtered = FilteredTransaction::build(&wire, keep).unwrap();
        assert_eq!(filtered.inputs().len(), 2);
        assert_eq!(filtered.verify(), Ok(()));
        assert!(
            filtered.check_all_visible(ComponentGroup::Inputs).is_err(),
            "{hidden}"
        );
        assert!(
            NotarisationPayload::Filtered(filtered)
                .check_complete()
                .is_err()
        );
    }
    // A group that the transaction lacks is not hidden.
    let filtered = FilteredTransaction::build(&issue(1), |_| true).unwrap();
    assert!(
        ComponentGroup::ALL
            .iter()
            .all(|&group| filtered.check_all_visible(group).is_ok())
    );
}

#[test]
fn a_signer_sees_which_commands_ask() {
    let wire = full();
    let shown = |kind: &'static str| {
        FilteredTransaction::build(&wire, move |component| matches!(component, Component::Command(command) if command.kind == kind))
            .unwrap()
    };
    let public = |name| key(name).public().clone();
    // Signers come along with a command.
    assert_eq!(
        shown("coin.Note").check_commands_visible(&public("Carol")),
        Ok(())
    );
    assert!(
        shown("coin.Note")
            .check_commands_visible(&public("Alice"))
            .is_err()
    );
    assert_eq!(
        shown("coin.Move").check_commands_visible(&public("Alice")),
        Ok(())
    );
    let none =
        FilteredTransaction::build(&wire, |component| matches!(component, Component::Input(_)))
            .unwrap();
    assert!(none.check_commands_visible(&public("Alice")).is_err());
}

#[test]
fn a_non_validating_notary_sees_only_what_it_needs() {
    let wire = full();
    let payload = NotarisationPayload::filtered(&wire).unwrap();
    assert_eq!(payload.check_complete(), Ok(()));
    assert_eq!(payload.request(), NotarisationRequest::of(&wire));
    assert_eq!(
        (payload.id(), payload.notary(), payload.time_window()),
        (wire.id(), wire.notary(), wire.time_window())
    );
    let NotarisationPayload::Filtered(filtered) = &payload else {
        panic!()
    };
    assert!(filtered.outputs().is_empty() && filtered.commands().is_empty());
    assert_eq!(filtered.parameters().as_ref(), wire.parameters());
    let bytes = payload_bytes(&payload);
    assert!(
        !contains(&bytes, wire.privacy_salt()),
        "the salt must not travel"
    );
    assert!(!contains(&bytes, b"coin.Move") && !contains(&bytes, &wire.outputs()[0].data));
}

fn payload_bytes(payload: &NotarisationPayload) -> Vec<u8> {
    NotarisationMessage::new(payload.clone(), &key("Alice")).encode()
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack
        .windows(needle.len())
        .any(|window| window == needle)
}

#[test]
fn a_request_is_signed_by_the_requester() {
    let message = NotarisationMessage::new(
        NotarisationPayload::Full {
            tx: signed(payment(), &["Alice"]),
            dependencies: vec![signed(issue(100), &["Bank"])],
        },
        &key("Alice"),
    );
    let again = NotarisationMessage::decode(&message.encode()).unwrap();
    assert_eq!(again, message);
    assert_eq!(
        serde_json::from_str::<NotarisationMessage>(&serde_json::to_string(&message).unwrap())
            .unwrap(),
        message
    );
    let request = again.payload.request();
    assert_eq!(
        NotarisationRequest::decode(&request.encode()).unwrap(),
        request
    );
    assert!(request.verify(&again.request_signature).is_ok());
    assert!(
        NotarisationRequest::of(&full())
            .verify(&again.request_signature)
            .is_err()
    );
    // Signatures of one kind are worthless as the other, though the same key makes both.
    let mut borrowed = again.request_signature.clone();
    borrowed.signature = sign_transaction(&key("Alice"), &payment().id()).signature;
    assert!(request.verify(&borrowed).is_err());
}

fn conflict() -> NotaryError {
    let state = |n: u8| StateRef::new(TxId::new(SecureHash::of(&[n])), u32::from(n));
    let by = ConsumingTx {
        tx: TxId::new(SecureHash::of(b"winner")),
        as_reference: false,
    };
    NotaryError::Conflict {
        tx: payment().id(),
        consumed: BTreeMap::from([
            (state(1), by),
            (
                state(2),
                ConsumingTx {
                    as_reference: true,
                    ..by
                },
            ),
        ]),
    }
}

#[test]
fn answers_read_back() {
    let window =
        TimeWindow::between(Timestamp::from_seconds(10), Timestamp::from_seconds(20)).unwrap();
    let errors = [
        conflict(),
        NotaryError::TimeWindowInvalid {
            window,
            now: Timestamp::from_seconds(30),
        },
        NotaryError::TransactionInvalid("no".into()),
        NotaryError::RequestSignatureInvalid("no".into()),
        NotaryError::WrongNotary {
            wanted: Some(party("Other")),
            asked: party("Notary"),
        },
        NotaryError::WrongNotary {
            wanted: None,
            asked: party("Notary"),
        },
        NotaryError::Overloaded {
            retry_after_millis: 500,
        },
        NotaryError::General("disk full".into()),
    ];
    let refused = errors.map(NotarisationAnswer::Refused);
    let signed =
        NotarisationAnswer::Signed(vec![sign_transaction(&key("Notary"), &payment().id())]);
    for answer in refused.into_iter().chain([signed]) {
        assert_eq!(
            NotarisationAnswer::decode(&answer.encode()).unwrap(),
            answer
        );
        let json = serde_json::to_string(&answer).unwrap();
        assert_eq!(
            serde_json::from_str::<NotarisationAnswer>(&json).unwrap(),
            answer,
            "{json}"
        );
    }
    insta::assert_snapshot!(conflict());
}

#[test]
fn long_reasons_are_cut_when_sent_and_refused_when_received() {
    let long = NotarisationAnswer::Refused(NotaryError::General("é".repeat(MAX_REASON_BYTES)));
    let NotarisationAnswer::Refused(NotaryError::General(reason)) =
        NotarisationAnswer::decode(&long.encode()).unwrap()
    else {
        panic!()
    };
    assert_eq!(reason.len(), MAX_REASON_BYTES);
}

#[test]
fn which_refusals_may_pass() {
    let window =
        TimeWindow::between(Timestamp::from_seconds(10), Timestamp::from_seconds(20)).unwrap();
    let early = NotaryError::TimeWindowInvalid {
        window,
        now: Timestamp::from_seconds(9),
    };
    let late = NotaryError::TimeWindowInvalid {
        window,
        now: Timestamp::from_seconds(20),
    };
    assert!(early.is_transient() && !late.is_transient() && !conflict().is_transient());
    assert!(
        NotaryError::Overloaded {
            retry_after_millis: 1
        }
        .is_transient()
    );
}
