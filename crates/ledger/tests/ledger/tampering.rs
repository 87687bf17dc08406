//! Bytes from strangers: nothing panics, and nothing that was changed passes for what it was.

use proptest::prelude::*;
use quorate_ledger::{
    Component, FilteredTransaction, NotarisationAnswer, NotarisationMessage, NotarisationPayload,
    SignedTransaction, TransactionState, WireTransaction,
    network::{NetworkParameters, NodeInfo, SignedNetworkParameters, SignedNodeInfo},
    sign_batch,
};

use crate::sample::{coin, full, issue, key, payment, signed};

/// Calls `check` with every single-bit change of `bytes`.
fn each_flip(bytes: &[u8], mut check: impl FnMut(&[u8], usize)) {
    let mut forged = bytes.to_vec();
    for at in 0..bytes.len() {
        for bit in 0..8 {
            forged[at] ^= 1 << bit;
            check(&forged, at);
            forged[at] ^= 1 << bit;
        }
    }
}

#[test]
fn any_change_to_a_transaction_changes_its_id() {
    let wire = full();
    each_flip(wire.as_bytes(), |forged, at| {
        if let Ok(forged) = WireTransaction::decode(forged) {
            assert_ne!(forged.id(), wire.id(), "byte {at}");
        }
    });
}

#[test]
fn any_change_to_a_signed_transaction_is_noticed() {
    let wire = payment();
    let batch = sign_batch(&key("Notary"), &[issue(1).id(), wire.id(), full().id()]);
    let signed = signed(wire, &["Alice"])
        .with_signatures([batch[1].clone()])
        .unwrap();
    signed.verify_required_signatures().unwrap();
    each_flip(&signed.encode(), |forged, at| {
        if let Ok(forged) = SignedTransaction::decode(forged) {
            let passes = forged.id() == signed.id() && forged.verify_required_signatures().is_ok();
            assert!(!passes, "byte {at}");
        }
    });
}

#[test]
fn any_change_to_a_tear_off_is_refused() {
    let wire = full();
    let some = |component: &Component| match component {
        Component::Input(input) => input == &wire.inputs()[1],
        Component::Output(_) | Component::TimeWindow(_) | Component::Notary(_) => true,
        _ => false,
    };
    let filtered = FilteredTransaction::build(&wire, some).unwrap();
    each_flip(&filtered.encode(), |forged, at| {
        assert!(FilteredTransaction::decode(forged).is_err(), "byte {at}");
    });
}

#[test]
fn a_component_of_another_transaction_does_not_fit() {
    // Two transactions that differ in one output; the tear-off of one does not pass with the bytes of the other.
    let (one, other) = (issue(100), issue(101));
    let tear = |wire| {
        FilteredTransaction::build(wire, |component| matches!(component, Component::Output(_)))
            .unwrap()
    };
    let mut bytes = tear(&one).encode();
    let (data, replacement) = (&one.outputs()[0].data, &other.outputs()[0].data);
    let at = bytes
        .windows(data.len())
        .position(|window| window == data)
        .unwrap();
    bytes[at..at + data.len()].copy_from_slice(replacement);
    assert!(FilteredTransaction::decode(&bytes).is_err());
}

#[test]
fn any_change_to_a_notarisation_message_is_noticed() {
    let payload = NotarisationPayload::filtered(&payment()).unwrap();
    let message = NotarisationMessage::new(payload, &key("Alice"));
    each_flip(&message.encode(), |forged, at| {
        if let Ok(forged) = NotarisationMessage::decode(forged) {
            assert!(
                forged
                    .payload
                    .request()
                    .verify(&forged.request_signature)
                    .is_err(),
                "byte {at}"
            );
        }
    });
}

#[test]
fn every_cut_and_every_addition_is_refused() {
    let signed = signed(full(), &["Alice", "Notary"]);
    let message = NotarisationMessage::new(
        NotarisationPayload::Full {
            tx: signed.clone(),
            dependencies: vec![signed.clone()],
        },
        &key("Alice"),
    );
    let bytes = message.encode();
    for end in 0..bytes.len() {
        assert!(
            NotarisationMessage::decode(&bytes[..end]).is_err(),
            "cut at {end}"
        );
    }
    for bytes in [
        bytes,
        signed.encode(),
        signed.wire().encode(),
        coin(1, "Bob").encode(),
    ] {
        let longer = [bytes.as_slice(), &[0]].concat();
        assert!(NotarisationMessage::decode(&longer).is_err());
        assert!(SignedTransaction::decode(&longer).is_err());
        assert!(WireTransaction::decode(&longer).is_err());
        assert!(TransactionState::decode(&longer).is_err());
    }
}

/// Every decoder for bytes that come from outside.
fn decode_as_everything(bytes: &[u8]) {
    let _ = WireTransaction::decode(bytes);
    let _ = SignedTransaction::decode(bytes);
    let _ = FilteredTransaction::decode(bytes);
    let _ = TransactionState::decode(bytes);
    let _ = NotarisationMessage::decode(bytes);
    let _ = NotarisationAnswer::decode(bytes);
    let _ = NodeInfo::decode(bytes);
    let _ = SignedNodeInfo::decode(bytes);
    let _ = NetworkParameters::decode(bytes);
    let _ = SignedNetworkParameters::decode(bytes);
}

proptest! {
    #[test]
    fn nonsense_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        decode_as_everything(&bytes);
        // With a valid version in front, more of the decoder is reached.
        decode_as_everything(&[&[0], bytes.as_slice()].concat());
    }

    #[test]
    fn mangled_values_never_panic(
        which in 0usize..3,
        edits in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..8),
        cut: proptest::sample::Index,
        insert: bool,
    ) {
        let mut bytes = match which {
            0 => signed(full(), &["Alice", "Bob"]).encode(),
            1 => NotarisationMessage::new(NotarisationPayload::filtered(&full()).unwrap(), &key("Alice")).encode(),
            _ => FilteredTransaction::build(&full(), |_| true).unwrap().encode(),
        };
        let original = bytes.clone();
        for (at, value) in edits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if insert {
            bytes.insert(cut.index(bytes.len()), 0);
        }
        decode_as_everything(&bytes);
        if bytes != original && let Ok(forged) = SignedTransaction::decode(&bytes) {
            prop_assert!(forged.id() != full().id() || forged.check_signatures_valid().is_err());
        }
    }
}
