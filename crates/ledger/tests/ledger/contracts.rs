//! Verification by contracts, and notary changes.

use std::sync::Arc;

use quorate_identity::SecureHash;
use quorate_ledger::{
    Attachment, AttachmentId, BuildError, Command, Contract, ContractViolation, Contracts,
    LedgerTransaction, ResolutionError, StateAndRef, StateRef, TransactionBuilder,
    TransactionState, VerificationError, WireTransaction, notary_change,
};

use crate::sample::{CoinContract, coin, full, issue, key, party, payment};

fn contracts() -> Contracts {
    let mut contracts = Contracts::new();
    contracts.register(Arc::new(CoinContract)).unwrap();
    contracts
}

fn resolve(wire: WireTransaction) -> LedgerTransaction {
    let issued = issue(100);
    let state = |reference: &StateRef| {
        issued
            .output(reference.index)
            .filter(|_| reference.tx == issued.id())
    };
    LedgerTransaction::resolve(wire, |reference| Some(state(reference)?.state), |_| None).unwrap()
}

fn pay(outputs: &[TransactionState], signer: &str) -> WireTransaction {
    let builder = TransactionBuilder::new(party("Notary"))
        .add_input(StateRef::new(issue(100).id(), 0))
        .add_command(Command::new("coin.Move", [key(signer).public().clone()]));
    outputs
        .iter()
        .cloned()
        .fold(builder, TransactionBuilder::add_output)
        .build([9; 32])
        .unwrap()
}

fn refusal(wire: WireTransaction) -> String {
    match resolve(wire).verify(&contracts()) {
        Err(VerificationError::Refused { source, .. }) => source.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn contracts_judge() {
    assert_eq!(resolve(issue(5)).verify(&contracts()), Ok(()));
    assert_eq!(resolve(payment()).verify(&contracts()), Ok(()));
    assert_eq!(
        refusal(pay(&[coin(101, "Bob")], "Alice")),
        "coins are neither made nor lost"
    );
    assert_eq!(
        refusal(pay(&[coin(100, "Bob")], "Bob")),
        "every owner signs"
    );
    // An output that says it is a coin and is not.
    let broken = TransactionState {
        data: vec![1],
        ..coin(100, "Bob")
    };
    assert!(refusal(pay(&[broken], "Alice")).contains("cannot be read"));
}

#[test]
fn a_coin_of_another_contract_is_no_coin() {
    // The type's name alone does not make an output count as a coin, so the sum does not add up.
    let mut fake = coin(100, "Bob");
    fake.contract.name = "anything.Goes".into();
    let mut contracts = contracts();
    struct Anything;
    impl Contract for Anything {
        fn name(&self) -> &str {
            "anything.Goes"
        }
        fn code(&self) -> SecureHash {
            crate::sample::code()
        }
        fn verify(&self, _: &LedgerTransaction) -> Result<(), ContractViolation> {
            Ok(())
        }
    }
    contracts.register(Arc::new(Anything)).unwrap();
    let tx = resolve(pay(&[fake], "Alice"));
    assert!(matches!(
        tx.verify(&contracts),
        Err(VerificationError::Refused { .. })
    ));
}

#[test]
fn unknown_contracts_and_other_code_are_named() {
    let tx = resolve(payment());
    let error = tx.verify(&Contracts::new()).unwrap_err();
    assert_eq!(
        error,
        VerificationError::UnknownContract {
            name: "coin.Coin".into()
        }
    );
    let mut newer = coin(100, "Bob");
    newer.contract.code = SecureHash::of(b"newer");
    let error = resolve(pay(&[newer], "Alice"))
        .verify(&contracts())
        .unwrap_err();
    assert!(
        matches!(error, VerificationError::OtherCode { code, .. } if code == SecureHash::of(b"newer")),
        "{error}"
    );
    assert!(contracts().register(Arc::new(CoinContract)).is_err());
}

#[test]
fn what_is_not_at_hand_is_listed() {
    let unknown = LedgerTransaction::resolve(full(), |_| None, |_| None).unwrap_err();
    assert!(matches!(unknown, ResolutionError::States { missing, .. } if missing.len() == 5));
    let paper = AttachmentId::of(b"the contract on paper");
    let unknown =
        LedgerTransaction::resolve(full(), |_| Some(coin(1, "Bob")), |_| None).unwrap_err();
    assert!(matches!(unknown, ResolutionError::Attachments { missing, .. } if missing == [paper]));
    // A lookup that answers with something else is not believed.
    let other = |_: &AttachmentId| Some(Attachment::new(b"something else".as_slice()).unwrap());
    assert!(LedgerTransaction::resolve(full(), |_| Some(coin(1, "Bob")), other).is_err());
    let paper =
        |_: &AttachmentId| Some(Attachment::new(b"the contract on paper".as_slice()).unwrap());
    let tx = LedgerTransaction::resolve(full(), |_| Some(coin(1, "Bob")), paper).unwrap();
    assert_eq!(tx.attachments()[0].content(), b"the contract on paper");
}

#[test]
fn inputs_of_another_notary_are_refused() {
    let stray = TransactionState {
        notary: party("Other"),
        ..coin(100, "Alice")
    };
    let tx = LedgerTransaction::resolve(payment(), |_| Some(stray.clone()), |_| None).unwrap();
    assert!(matches!(
        tx.verify(&contracts()),
        Err(VerificationError::ForeignNotary { .. })
    ));
}

#[test]
fn a_notary_change_changes_the_notary_and_nothing_else() {
    let issued = issue(100);
    let from = issued.output(0).unwrap();
    let wire = notary_change::build(std::slice::from_ref(&from), &party("Other"), [5; 32]).unwrap();
    assert!(wire.is_notary_change());
    assert_eq!(wire.notary(), Some(&party("Notary")));
    assert_eq!(
        wire.outputs()[0],
        TransactionState {
            notary: party("Other"),
            ..from.state.clone()
        }
    );
    let signers = ["Alice", "Notary"].map(|name| key(name).public().clone());
    assert_eq!(wire.required_signers(), signers.into());
    assert_eq!(WireTransaction::decode(&wire.encode()).unwrap(), wire);
    assert_eq!(
        resolve(wire).verify(&Contracts::new()),
        Ok(()),
        "no contract is asked"
    );

    let change = |output: TransactionState, signer: &str| {
        TransactionBuilder::new(party("Notary"))
            .add_input(from.reference)
            .add_output(output)
            .add_command(
                Command::new(notary_change::KIND, [key(signer).public().clone()])
                    .with_data(&party("Other")),
            )
            .build([6; 32])
    };
    let moved = |state: TransactionState| TransactionState {
        notary: party("Other"),
        ..state
    };
    let refused = |wire| resolve(wire).verify(&Contracts::new()).unwrap_err();
    let stolen = change(moved(coin(100, "Bob")), "Alice").unwrap();
    assert!(matches!(
        refused(stolen),
        VerificationError::NotaryChange(_)
    ));
    let unsigned = change(moved(coin(100, "Alice")), "Bob").unwrap();
    assert!(matches!(
        refused(unsigned),
        VerificationError::NotaryChange(_)
    ));
    assert!(matches!(
        change(coin(100, "Alice"), "Alice"),
        Err(BuildError::Component(_))
    ));
    assert!(notary_change::build(&[], &party("Other"), [0; 32]).is_err());
    assert!(notary_change::build(std::slice::from_ref(&from), &party("Notary"), [0; 32]).is_err());
    let other = StateAndRef::new(moved(coin(1, "Bob")), StateRef::new(issued.id(), 9));
    assert!(notary_change::build(&[from.clone(), other], &party("Third"), [0; 32]).is_err());

    // The command cannot hide among others to escape from contracts.
    let smuggled = TransactionBuilder::new(party("Notary"))
        .add_input(from.reference)
        .add_output(moved(coin(100, "Bob")))
        .add_command(Command::new("coin.Move", [key("Alice").public().clone()]))
        .add_command(
            Command::new(notary_change::KIND, [key("Alice").public().clone()])
                .with_data(&party("Other")),
        )
        .build([6; 32]);
    assert!(matches!(smuggled, Err(BuildError::Component(_))));
}
