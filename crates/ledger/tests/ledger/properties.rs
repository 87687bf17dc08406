//! What holds for any transaction, not only for the samples.

use proptest::{collection::vec, prelude::*};
use quorate_identity::SecureHash;
use quorate_ledger::{
    AttachmentId, Command, ComponentGroup, FilteredTransaction, SignedTransaction, StateRef,
    TimeWindow, Timestamp, TransactionBuilder, TxId, WireTransaction, sign_batch,
};

use crate::sample::{coin, key, party, signed};

const NAMES: [&str; 4] = ["Alice", "Bob", "Carol", "Dave"];

/// Sizes of all groups, with bounds small enough to be quick and large enough for trees of every shape.
fn transaction() -> impl Strategy<Value = WireTransaction> {
    let sizes = (0u32..9, 0u32..6, 0usize..9, 0u32..4);
    let commands = vec((any::<[bool; 4]>(), vec(any::<u8>(), 0..40)), 1..5);
    let window = proptest::option::of((0i64..1000, 1i64..1000));
    (sizes, commands, window, any::<bool>(), any::<[u8; 32]>()).prop_map(
        |((inputs, references, outputs, attachments), commands, window, parameters, salt)| {
            let state = |n: u32| StateRef::new(TxId::new(SecureHash::of(&n.to_be_bytes())), n);
            let mut builder = TransactionBuilder::new(party("Notary"));
            for n in 0..inputs {
                builder = builder.add_input(state(n));
            }
            for n in 0..references {
                builder = builder.add_reference(state(100 + n));
            }
            // An output more than asked for, so that there is always something.
            for n in 0..=outputs {
                builder = builder.add_output(coin(n as u64, NAMES[n % NAMES.len()]));
            }
            for n in 0..attachments {
                builder = builder.add_attachment(AttachmentId::of(&n.to_be_bytes()));
            }
            for (who, data) in commands {
                let chosen = NAMES
                    .iter()
                    .zip(who)
                    .filter(|(_, chosen)| *chosen)
                    .map(|(name, _)| *name);
                let signers = chosen
                    .chain(["Bank"])
                    .map(|name| key(name).public().clone());
                builder = builder.add_command(Command::new("coin.Move", signers).with_data(&data));
            }
            if let Some((from, length)) = window {
                let [from, until] = [from, from + length].map(Timestamp::from_seconds);
                builder = builder.time_window(TimeWindow::between(from, until).unwrap());
            }
            if parameters {
                builder = builder.parameters(SecureHash::of(b"parameters"));
            }
            builder.build(salt).unwrap()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn bytes_read_back(wire in transaction()) {
        let again = WireTransaction::decode(wire.as_bytes()).unwrap();
        prop_assert_eq!(again.id(), wire.id());
        prop_assert!(again.components().eq(wire.components()));
        let signed = signed(wire, &["Alice", "Notary"]);
        let bytes = signed.encode();
        prop_assert_eq!(SignedTransaction::decode(&bytes).unwrap().encode(), bytes);
    }

    #[test]
    fn any_tear_off_proves_what_it_shows_and_admits_what_it_hides(
        wire in transaction(),
        choice in vec(any::<bool>(), 64),
    ) {
        // The filter sees components in order, so a counter turns the list of choices into a filter.
        let position = std::cell::Cell::new(0);
        let keep = |_: &_| choice[position.replace(position.get() + 1) % choice.len()];
        let Ok(filtered) = FilteredTransaction::build(&wire, keep) else { return Ok(()) };
        let again = FilteredTransaction::decode(&filtered.encode()).unwrap();
        prop_assert_eq!(again.id(), wire.id());
        for group in ComponentGroup::ALL {
            let all: Vec<_> = wire.components().filter(|component| component.group() == group).collect();
            let shown: Vec<_> = again.components().filter(|(shown, ..)| *shown == group).collect();
            for (_, index, component) in &shown {
                prop_assert_eq!(*component, &all[*index as usize]);
            }
            prop_assert_eq!(again.check_all_visible(group).is_ok(), shown.len() == all.len());
        }
    }

    #[test]
    fn a_batch_signature_holds_for_its_transactions_only(count in 1usize..40, at: proptest::sample::Index) {
        let ids: Vec<_> = (0..=count).map(|n| TxId::new(SecureHash::of(&n.to_be_bytes()))).collect();
        let (stranger, ids) = ids.split_last().unwrap();
        let signature = &sign_batch(&key("Notary"), ids)[at.index(count)];
        prop_assert!(signature.verify(&ids[at.index(count)]).is_ok());
        prop_assert!(signature.verify(stranger).is_err());
    }
}
