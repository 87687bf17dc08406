//! Building, hashing, signing, and reading back.

use quorate_identity::{KeyPair, SecureHash, SignatureScheme};
use quorate_ledger::{
    AttachmentId, BuildError, Command, DecodeError, SignaturesError, SignedTransaction, StateError,
    StateRef, TimeWindow, Timestamp, TransactionBuilder, TransactionState, TxId, UniqueId,
    WireTransaction, canonical,
    limits::{MAX_BATCH, MAX_INPUTS, MAX_SIGNATURE_BYTES, MAX_WIRE_BYTES},
    sign_batch, sign_transaction,
};

use crate::sample::{Coin, coin, full, issue, key, party, payment, signed};

fn state(n: u32) -> StateRef {
    StateRef::new(TxId::new(SecureHash::of(b"some transaction")), n)
}

fn valid() -> TransactionBuilder {
    TransactionBuilder::new(party("Notary"))
        .add_input(state(0))
        .add_output(coin(1, "Bob"))
        .add_command(Command::new("coin.Move", [key("Alice").public().clone()]))
}

#[test]
fn bytes_and_text_read_back_to_the_same() {
    for wire in [issue(5), payment(), full()] {
        let again = WireTransaction::decode(&wire.encode()).unwrap();
        assert_eq!((again.id(), again.encode()), (wire.id(), wire.encode()));
        assert_eq!(again.commands(), wire.commands());
        assert_eq!(again.required_signers(), wire.required_signers());

        let signed = signed(wire, &["Alice", "Bob", "Notary"]);
        let again = SignedTransaction::decode(&signed.encode()).unwrap();
        assert_eq!(again, signed);
        assert_eq!(again.encode(), signed.encode());
        let json = serde_json::to_string(&signed).unwrap();
        assert!(json.starts_with('"'), "{json}");
        assert_eq!(
            serde_json::from_str::<SignedTransaction>(&json).unwrap(),
            signed
        );
        assert_eq!(
            canonical::decode::<SignedTransaction>("", &canonical::encode(&signed), 100_000)
                .unwrap(),
            signed
        );
    }
}

#[test]
fn the_id_depends_on_everything() {
    let id = |builder: TransactionBuilder, salt| builder.build(salt).unwrap().id();
    let alice = key("Alice").public().clone();
    let ids = [
        id(valid(), [0; 32]),
        id(valid(), [1; 32]),
        id(valid().add_input(state(1)), [0; 32]),
        id(valid().add_reference(state(1)), [0; 32]),
        id(valid().add_output(coin(1, "Bob")), [0; 32]),
        id(
            valid().add_command(Command::new("coin.Move", [alice.clone()])),
            [0; 32],
        ),
        id(
            valid().add_command(Command::new("coin.Move", [alice]).with_data(&1u8)),
            [0; 32],
        ),
        id(valid().add_attachment(AttachmentId::of(b"a")), [0; 32]),
        id(
            valid().time_window(TimeWindow::from_time(Timestamp::EPOCH)),
            [0; 32],
        ),
        id(
            valid().time_window(TimeWindow::until_time(Timestamp::EPOCH)),
            [0; 32],
        ),
        id(valid().parameters(SecureHash::ZERO), [0; 32]),
    ];
    let distinct: std::collections::BTreeSet<_> = ids.iter().collect();
    assert_eq!(distinct.len(), ids.len());
}

#[test]
fn transactions_that_cannot_be() {
    let refused = |builder: TransactionBuilder| builder.build([0; 32]).unwrap_err();
    let alice = || key("Alice").public().clone();
    let command = || Command::new("coin.Move", [alice()]);

    assert_eq!(
        refused(TransactionBuilder::new(party("Notary")).add_command(command())),
        BuildError::Empty
    );
    assert_eq!(
        refused(TransactionBuilder::new(party("Notary")).add_input(state(0))),
        BuildError::NoCommand
    );
    assert_eq!(
        refused(valid().add_input(state(0))),
        BuildError::Duplicate(state(0).to_string())
    );
    assert_eq!(
        refused(valid().add_reference(state(0))),
        BuildError::InputAndReference(state(0))
    );
    assert_eq!(
        refused(
            TransactionBuilder::without_notary()
                .add_input(state(0))
                .add_command(command())
        ),
        BuildError::NoNotary
    );
    assert!(matches!(
        refused(valid().add_command(Command::new("coin.Move", []))),
        BuildError::NoSigners { .. }
    ));
    assert!(matches!(
        refused(valid().add_command(Command::new("a b", [alice()]))),
        BuildError::Component(_)
    ));
    let stray = TransactionState {
        notary: party("Other"),
        ..coin(1, "Bob")
    };
    assert!(matches!(
        refused(valid().add_output(stray)),
        BuildError::OutputNotary { index: 1, .. }
    ));
    let nobody = TransactionState {
        participants: vec![],
        ..coin(1, "Bob")
    };
    assert!(matches!(
        refused(valid().add_output(nobody)),
        BuildError::Component(_)
    ));
    let many = (1..=MAX_INPUTS as u32).fold(valid(), |builder, n| builder.add_input(state(n)));
    assert!(matches!(
        refused(many),
        BuildError::TooMany { what: "input", .. }
    ));
    let large = TransactionState {
        data: vec![0; MAX_WIRE_BYTES],
        ..coin(1, "Bob")
    };
    assert!(matches!(
        refused(valid().add_output(large)),
        BuildError::TooLarge { .. }
    ));

    // Issuing needs no notary to sign, so it may do without.
    let issue = TransactionBuilder::without_notary()
        .add_output(coin(1, "Bob"))
        .add_command(command());
    assert!(!issue.build([0; 32]).unwrap().needs_notary());
}

#[test]
fn rules_hold_for_decoded_transactions_too() {
    // The same bytes with the first input repeated in place of the second: nobody could have built it.
    let wire = full();
    let mut bytes = wire.encode();
    let [first, second] = [0, 1].map(|n| canonical::encode(&wire.inputs()[n]));
    let at = bytes
        .windows(36)
        .position(|window| window == second)
        .unwrap();
    bytes[at..at + 36].copy_from_slice(&first);
    let error = WireTransaction::decode(&bytes).unwrap_err();
    assert!(
        matches!(&error, DecodeError::Invalid { reason, .. } if reason.contains("twice")),
        "{error}"
    );
}

#[test]
fn the_largest_transaction_is_within_bounds() {
    let large = (1..MAX_INPUTS as u32).fold(valid(), |builder, n| builder.add_input(state(n)));
    let wire = large.build([0; 32]).unwrap();
    assert_eq!(WireTransaction::decode(&wire.encode()).unwrap(), wire);

    let ids: Vec<TxId> = (0..MAX_BATCH as u32)
        .map(|n| TxId::new(SecureHash::of(&n.to_be_bytes())))
        .collect();
    let ids = &ids[..1 + MAX_BATCH / 2]; // as deep as it gets
    let signature = &sign_batch(&KeyPair::generate(SignatureScheme::EcdsaP256), ids)[0];
    assert!(canonical::encode(signature).len() <= MAX_SIGNATURE_BYTES);
}

#[test]
fn who_must_sign_and_has() {
    let (alice, notary) = (
        key("Alice").public().clone(),
        key("Notary").public().clone(),
    );
    let none = signed(payment(), &[]);
    assert_eq!(
        none.required_signers(),
        [alice.clone(), notary.clone()].into()
    );
    assert_eq!(none.missing_signers(), none.required_signers());
    assert!(none.check_signatures_valid().is_ok() && none.verify_required_signatures().is_err());

    let one = signed(payment(), &["Alice"]);
    assert!(
        matches!(one.verify_required_signatures(), Err(SignaturesError::Missing { missing, .. }) if missing == [notary.clone()].into())
    );
    assert!(
        one.verify_signatures_except(std::slice::from_ref(&notary))
            .is_ok()
    );
    assert!(one.is_signed_by(&alice) && !one.is_signed_by(&notary));

    let all = one.sign(&key("Notary")).unwrap();
    assert!(all.verify_required_signatures().is_ok());
    // More signatures than needed do no harm as long as they hold; a bad one is never ignored.
    assert!(
        all.sign(&key("Carol"))
            .unwrap()
            .verify_required_signatures()
            .is_ok()
    );
    let foreign = all
        .with_signatures([sign_transaction(&key("Carol"), &issue(1).id())])
        .unwrap();
    assert!(matches!(
        foreign.verify_required_signatures(),
        Err(SignaturesError::Invalid { .. })
    ));
    // A signature that is here stays.
    let same = all
        .with_signatures([sign_transaction(&key("Alice"), &issue(1).id())])
        .unwrap();
    assert_eq!(same, all);
    assert_eq!(
        signed(issue(1), &["Bank"]).verify_required_signatures(),
        Ok(())
    );
}

#[test]
fn one_signature_for_a_batch() {
    for scheme in [SignatureScheme::Ed25519, SignatureScheme::EcdsaP256] {
        let notary = KeyPair::generate(scheme);
        for count in [0u32, 1, 2, 5, 8, 33] {
            let ids: Vec<TxId> = (0..count)
                .map(|n| TxId::new(SecureHash::of(&n.to_be_bytes())))
                .collect();
            let signatures = sign_batch(&notary, &ids);
            assert_eq!(signatures.len(), ids.len());
            assert!(
                signatures
                    .windows(2)
                    .all(|pair| pair[0].signature == pair[1].signature),
                "signed once"
            );
            for (n, signature) in signatures.iter().enumerate() {
                for (m, id) in ids.iter().enumerate() {
                    assert_eq!(
                        signature.verify(id).is_ok(),
                        n == m,
                        "signature {n} of {count} for {m}"
                    );
                }
                assert!(signature.verify(&TxId::new(SecureHash::ZERO)).is_err());
            }
        }
    }
}

#[test]
fn a_batch_root_is_not_a_transaction() {
    // Without its proof, the signature is over the root of the batch; it must not serve as one over any id.
    let ids = [
        TxId::new(SecureHash::of(b"a")),
        TxId::new(SecureHash::of(b"b")),
    ];
    let mut signature = sign_batch(&key("Notary"), &ids).remove(0);
    let root = signature
        .proof
        .take()
        .unwrap()
        .root(&[SecureHash::twice(ids[0].as_bytes())])
        .unwrap();
    assert!(ids.iter().all(|id| signature.verify(id).is_err()));
    // The root itself is what was signed, but it is the root over leaves hashed twice, never over ids.
    assert_ne!(root, ids[0].hash().concat(ids[1].hash()));
}

#[test]
fn states_are_read_only_as_what_they_are() {
    let state = coin(7, "Alice");
    assert_eq!(state.read::<Coin>().unwrap().amount, 7);
    assert_eq!(TransactionState::decode(&state.encode()).unwrap(), state);
    assert_eq!(
        serde_json::from_str::<TransactionState>(&serde_json::to_string(&state).unwrap()).unwrap(),
        state
    );

    let mut other = state.clone();
    other.contract.name = "coin.Fake".into();
    assert!(matches!(
        other.read::<Coin>(),
        Err(StateError::OtherType { .. })
    ));
    let other = TransactionState {
        participants: vec![key("Bob").public().clone()],
        ..state.clone()
    };
    assert!(matches!(
        other.read::<Coin>(),
        Err(StateError::Participants { .. })
    ));
    let other = TransactionState {
        data: [state.data.as_slice(), &[0]].concat(),
        ..state
    };
    assert!(matches!(other.read::<Coin>(), Err(StateError::Data { .. })));
}

#[test]
fn views_show_everything_but_the_salt() {
    let signed = signed(full(), &["Alice"]);
    let view = quorate_ledger::view::TransactionView::of_signed(&signed, |state| {
        serde_json::to_value(state.read::<Coin>().ok()?).ok()
    });
    insta::assert_json_snapshot!(view);
    let json = serde_json::to_string(&signed.wire().view()).unwrap();
    assert!(!json.contains(&hex::encode([3u8; 32])) && !format!("{signed:?}").contains("3, 3, 3"));
    assert!(json.contains("\"data\""));
}

#[test]
fn a_linear_id_is_an_ordinary_value() {
    let id = UniqueId::from([9; 16]);
    assert_eq!(
        canonical::decode::<UniqueId>("id", &canonical::encode(&id), 16).unwrap(),
        id
    );
}
