//! A small application (coins that add up), parties with fixed keys, and transactions made of them.

use borsh::{BorshDeserialize, BorshSerialize};
use quorate_identity::{KeyPair, Party, PublicKey, SecureHash, X500Name};
use quorate_ledger::{
    AttachmentId, Command, Contract, ContractState, ContractViolation, LedgerTransaction,
    SignedTransaction, StateRef, TimeWindow, Timestamp, TransactionBuilder, TransactionState, TxId,
    WireTransaction,
};
use serde::{Deserialize, Serialize};

pub(crate) fn key(name: &str) -> KeyPair {
    KeyPair::ed25519_from_seed(SecureHash::of(name.as_bytes()).as_bytes())
}

pub(crate) fn party(name: &str) -> Party {
    Party::new(
        X500Name::new(name, "Osaka", "JP").unwrap(),
        key(name).public().clone(),
    )
}

pub(crate) fn code() -> SecureHash {
    SecureHash::of(b"coin contract")
}

#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
pub(crate) struct Coin {
    pub(crate) amount: u64,
    pub(crate) owner: PublicKey,
}

impl ContractState for Coin {
    const TYPE: &'static str = "coin.Coin.State";
    const CONTRACT: &'static str = "coin.Coin";
    fn participants(&self) -> Vec<PublicKey> {
        vec![self.owner.clone()]
    }
}

pub(crate) fn coin(amount: u64, owner: &str) -> TransactionState {
    let coin = Coin {
        amount,
        owner: key(owner).public().clone(),
    };
    TransactionState::new(&coin, code(), party("Notary"))
}

/// Coins move by the will of their owners, and their sum stays the same.
pub(crate) struct CoinContract;

impl Contract for CoinContract {
    fn name(&self) -> &str {
        Coin::CONTRACT
    }

    fn code(&self) -> SecureHash {
        code()
    }

    fn verify(&self, tx: &LedgerTransaction) -> Result<(), ContractViolation> {
        if !tx.commands_of("coin.Issue").is_empty() {
            return ContractViolation::unless(tx.inputs().is_empty(), "an issue consumes nothing");
        }
        tx.single_command("coin.Move")?;
        let (inputs, outputs) = (tx.inputs_of::<Coin>()?, tx.outputs_of::<Coin>()?);
        let sum = |coins: &[Coin]| {
            coins
                .iter()
                .map(|coin| u128::from(coin.amount))
                .sum::<u128>()
        };
        ContractViolation::unless(
            sum(&inputs) == sum(&outputs),
            "coins are neither made nor lost",
        )?;
        let signers = tx.signers_of("coin.Move");
        let signed = inputs.iter().all(|coin| signers.contains(&coin.owner));
        ContractViolation::unless(signed, "every owner signs")
    }
}

/// Alice gets a coin of this amount.
pub(crate) fn issue(amount: u64) -> WireTransaction {
    TransactionBuilder::new(party("Notary"))
        .add_output(coin(amount, "Alice"))
        .add_command(Command::new("coin.Issue", [key("Bank").public().clone()]))
        .build([1; 32])
        .unwrap()
}

/// Alice pays 30 of her 100 to Bob.
pub(crate) fn payment() -> WireTransaction {
    TransactionBuilder::new(party("Notary"))
        .add_input(StateRef::new(issue(100).id(), 0))
        .add_output(coin(30, "Bob"))
        .add_output(coin(70, "Alice"))
        .add_command(Command::new("coin.Move", [key("Alice").public().clone()]))
        .build([2; 32])
        .unwrap()
}

pub(crate) fn signed(wire: WireTransaction, by: &[&str]) -> SignedTransaction {
    by.iter()
        .fold(SignedTransaction::unsigned(wire), |signed, name| {
            signed.sign(&key(name)).unwrap()
        })
}

/// A transaction with something in every group, more than one where possible.
pub(crate) fn full() -> WireTransaction {
    let state = |n: u8| StateRef::new(TxId::new(SecureHash::of(&[n])), u32::from(n));
    TransactionBuilder::new(party("Notary"))
        .add_input(state(1))
        .add_input(state(2))
        .add_input(state(3))
        .add_reference(state(4))
        .add_reference(state(5))
        .add_output(coin(30, "Bob"))
        .add_output(coin(70, "Alice"))
        .add_command(Command::new(
            "coin.Move",
            ["Alice", "Bob"].map(|name| key(name).public().clone()),
        ))
        .add_command(
            Command::new("coin.Note", [key("Carol").public().clone()]).with_data("for tea"),
        )
        .add_attachment(AttachmentId::of(b"the contract on paper"))
        .time_window(
            TimeWindow::between(
                Timestamp::from_seconds(1_700_000_000),
                Timestamp::from_seconds(1_700_000_060),
            )
            .unwrap(),
        )
        .parameters(SecureHash::of(b"parameters"))
        .build([3; 32])
        .unwrap()
}
