//! The contracts judge transactions: one line for each rule, and the law of conservation for any
//! transaction at all.

#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests

use std::collections::BTreeMap;
use std::error::Error;

use proptest::prelude::*;
use quorate_cash::{Amount, Cash, CashApp, Currency, Iou, IssuanceReference, Token, cash, iou};
use quorate_flow::App;
use quorate_identity::{KeyPair, Party, PublicKey, SecureHash};
use quorate_ledger::{
    Command, ContractState, Contracts, LedgerTransaction, StateRef, TransactionBuilder,
    TransactionState, TxId, UniqueId,
};

fn party(name: &str) -> Party {
    let seed = SecureHash::of(name.as_bytes());
    let key = KeyPair::ed25519_from_seed(seed.as_bytes());
    let name = format!("O={name}, L=London, C=GB");
    Party::new(name.parse().unwrap(), key.public().clone())
}

fn key(name: &str) -> PublicKey {
    party(name).owning_key
}

fn token(issuer: &str, reference: u8, currency: &str) -> Token {
    Token {
        currency: currency.parse().unwrap(),
        issuer: party(issuer),
        reference: IssuanceReference::new([reference]).unwrap(),
    }
}

fn gbp() -> Token {
    token("Bank", 1, "GBP")
}

fn contracts() -> Contracts {
    let mut contracts = Contracts::new();
    for contract in CashApp.contracts() {
        contracts.register(contract).unwrap();
    }
    contracts
}

fn code(contract: &str) -> SecureHash {
    let contracts = contracts();
    let contract = contracts.iter().find(|known| known.name() == contract);
    contract.unwrap().code()
}

fn on_ledger<S: ContractState>(state: &S) -> TransactionState {
    TransactionState::new(state, code(S::CONTRACT), party("Notary"))
}

/// A transaction that is being described.
#[derive(Clone, Default)]
struct Tx {
    inputs: Vec<TransactionState>,
    outputs: Vec<TransactionState>,
    commands: Vec<Command>,
}

impl Tx {
    fn takes<S: ContractState>(mut self, state: &S) -> Self {
        self.inputs.push(on_ledger(state));
        self
    }

    fn gives<S: ContractState>(mut self, state: &S) -> Self {
        self.outputs.push(on_ledger(state));
        self
    }

    fn says(mut self, command: Command) -> Self {
        self.commands.push(command);
        self
    }

    /// `Ok`, or the reason of the refusal.
    fn judge(&self) -> Result<(), String> {
        let mut builder = TransactionBuilder::new(party("Notary"));
        let mut known = BTreeMap::new();
        for (index, state) in (0..).zip(&self.inputs) {
            let reference = StateRef::new(TxId::new(SecureHash::of(b"earlier")), index);
            known.insert(reference, state.clone());
            builder = builder.add_input(reference);
        }
        for output in &self.outputs {
            builder = builder.add_output(output.clone());
        }
        for command in &self.commands {
            builder = builder.add_command(command.clone());
        }
        let wire = builder.build([7; 32]).map_err(|e| e.to_string())?;
        let resolved =
            LedgerTransaction::resolve(wire, |reference| known.get(reference).cloned(), |_| None);
        let verdict = resolved.unwrap().verify(&contracts());
        verdict.map_err(|error| match error.source() {
            Some(source) => source.to_string(),
            None => error.to_string(),
        })
    }
}

/// Judges every transaction and compares with the expected words; `""` expects acceptance.
fn check(cases: Vec<(&str, Tx, &str)>) {
    for (name, tx, expected) in cases {
        match (tx.judge(), expected) {
            (Ok(()), "") => {}
            (Ok(()), _) => panic!("{name}: accepted"),
            (Err(reason), "") => panic!("{name}: {reason}"),
            (Err(reason), expected) => {
                assert!(reason.contains(expected), "{name}: {reason}");
            }
        }
    }
}

fn alice(quantity: i64) -> Cash {
    gbp().held_by(&party("Alice"), quantity)
}

fn bob(quantity: i64) -> Cash {
    gbp().held_by(&party("Bob"), quantity)
}

fn move_by(names: &[&str]) -> Command {
    cash::moved(names.iter().map(|name| key(name)))
}

#[test]
fn issue() {
    let tx = Tx::default;
    let other_reference = token("Bank", 2, "GBP");
    let mallory_as_bank = Token {
        issuer: Party::new(party("Bank").name, key("Mallory")),
        ..gbp()
    };
    let signed_by_alice = Command {
        signers: vec![key("Alice")],
        ..cash::issue(&gbp())
    };
    check(vec![
        (
            "to self",
            tx().gives(&alice(5)).says(cash::issue(&gbp())),
            "",
        ),
        (
            "several states of it",
            tx().gives(&alice(5))
                .gives(&bob(7))
                .says(cash::issue(&gbp())),
            "",
        ),
        (
            "two tokens, two commands",
            tx().gives(&alice(5))
                .gives(&other_reference.held_by(&party("Bob"), 1))
                .says(cash::issue(&gbp()))
                .says(cash::issue(&other_reference)),
            "",
        ),
        (
            "not signed by the issuer",
            tx().gives(&alice(5)).says(signed_by_alice),
            "the issuer must sign",
        ),
        (
            "with inputs of the token",
            tx().takes(&alice(5))
                .gives(&alice(9))
                .says(cash::issue(&gbp())),
            "must not consume any",
        ),
        (
            "of nothing",
            tx().gives(&alice(0)).says(cash::issue(&gbp())),
            "more than nothing",
        ),
        (
            "of less than nothing",
            tx().gives(&alice(-5)).says(cash::issue(&gbp())),
            "more than nothing",
        ),
        (
            "a negative state among positive ones",
            tx().gives(&alice(10))
                .gives(&bob(-5))
                .says(cash::issue(&gbp())),
            "more than nothing",
        ),
        (
            "beyond 64 bits",
            tx().gives(&alice(i64::MAX))
                .gives(&bob(1))
                .says(cash::issue(&gbp())),
            "larger than the ledger can count",
        ),
        (
            "without any command of cash",
            tx().gives(&alice(5))
                .says(Command::new("other.Issue", [key("Bank")])),
            "no command covers",
        ),
        (
            "of another reference than it says",
            tx().gives(&alice(5)).says(cash::issue(&other_reference)),
            "no command covers",
        ),
        (
            "of one more than there is",
            tx().gives(&alice(5))
                .says(cash::issue(&gbp()))
                .says(cash::issue(&other_reference)),
            "has none of it",
        ),
        (
            "said twice",
            tx().gives(&alice(5))
                .says(cash::issue(&gbp()))
                .says(cash::issue(&gbp())),
            "a second cash.Issue",
        ),
        (
            "under a bank's name with another key: a token of its own, signed by that key",
            tx().gives(&mallory_as_bank.held_by(&party("Alice"), 5))
                .says(Command {
                    signers: vec![key("Bank")],
                    ..cash::issue(&mallory_as_bank)
                }),
            "the issuer must sign",
        ),
    ]);
}

#[test]
fn move_() {
    let tx = Tx::default;
    let usd = token("Bank", 1, "USD");
    let other_bank = token("OtherBank", 1, "GBP");
    check(vec![
        (
            "to another, with change",
            tx().takes(&alice(10))
                .gives(&bob(7))
                .gives(&alice(3))
                .says(move_by(&["Alice"])),
            "",
        ),
        (
            "of several owners and issuers",
            tx().takes(&alice(10))
                .takes(&other_bank.held_by(&party("Bob"), 4))
                .gives(&bob(10))
                .gives(&other_bank.held_by(&party("Alice"), 4))
                .says(move_by(&["Alice", "Bob"])),
            "",
        ),
        (
            "next to an issue of another token",
            tx().takes(&alice(10))
                .gives(&bob(10))
                .gives(&usd.held_by(&party("Bob"), 1))
                .says(move_by(&["Alice"]))
                .says(cash::issue(&usd)),
            "",
        ),
        (
            "that creates",
            tx().takes(&alice(10))
                .gives(&bob(11))
                .says(move_by(&["Alice", "Bank"])),
            "neither create nor destroy",
        ),
        (
            "that destroys",
            tx().takes(&alice(10))
                .gives(&bob(9))
                .says(move_by(&["Alice", "Bank"])),
            "neither create nor destroy",
        ),
        (
            "that consumes all and gives nothing",
            tx().takes(&alice(10)).says(move_by(&["Alice"])),
            "neither create nor destroy",
        ),
        (
            "out of nothing",
            tx().gives(&bob(9)).says(move_by(&["Bob"])),
            "neither create nor destroy",
        ),
        (
            "not signed by the owner",
            tx().takes(&alice(10))
                .gives(&bob(10))
                .says(move_by(&["Bob"])),
            "every owner",
        ),
        (
            "signed by one of two owners",
            tx().takes(&alice(10))
                .takes(&bob(1))
                .gives(&bob(11))
                .says(move_by(&["Bob"])),
            "every owner",
        ),
        (
            "from one currency into another",
            tx().takes(&alice(10))
                .gives(&usd.held_by(&party("Bob"), 10))
                .says(move_by(&["Alice"])),
            "neither create nor destroy",
        ),
        (
            "from one issuer to another",
            tx().takes(&alice(10))
                .gives(&other_bank.held_by(&party("Bob"), 10))
                .says(move_by(&["Alice"])),
            "neither create nor destroy",
        ),
        (
            "from one reference to another",
            tx().takes(&alice(10))
                .gives(&token("Bank", 2, "GBP").held_by(&party("Bob"), 10))
                .says(move_by(&["Alice"])),
            "neither create nor destroy",
        ),
        (
            "with a negative output that hides a gain",
            tx().takes(&alice(10))
                .gives(&bob(15))
                .gives(&alice(-5))
                .says(move_by(&["Alice"])),
            "more than nothing",
        ),
        (
            "with an empty output",
            tx().takes(&alice(10))
                .gives(&bob(10))
                .gives(&alice(0))
                .says(move_by(&["Alice"])),
            "more than nothing",
        ),
        (
            "with inputs beyond 64 bits",
            tx().takes(&alice(i64::MAX))
                .takes(&alice(i64::MAX))
                .takes(&alice(2))
                .gives(&bob(i64::MAX))
                .says(move_by(&["Alice"])),
            "larger than the ledger can count",
        ),
        (
            "without a command",
            tx().takes(&alice(10))
                .gives(&bob(10))
                .says(Command::new("x.Y", [key("Alice")])),
            "no command covers",
        ),
        (
            "said twice, each signed by one owner",
            tx().takes(&alice(10))
                .takes(&bob(1))
                .gives(&bob(11))
                .says(move_by(&["Alice"]))
                .says(move_by(&["Bob"])),
            "a second cash.Move",
        ),
        (
            "of nothing, next to an issue",
            tx().gives(&alice(5))
                .says(cash::issue(&gbp()))
                .says(move_by(&["Alice"])),
            "must move something",
        ),
        (
            "with data",
            tx().takes(&alice(1))
                .gives(&bob(1))
                .says(move_by(&["Alice"]).with_data(&1_u8)),
            "has no data",
        ),
        (
            "by an unknown command",
            tx().takes(&alice(1))
                .gives(&bob(1))
                .says(Command::new("cash.Give", [key("Alice")])),
            "not a command of cash",
        ),
    ]);
}

#[test]
fn exit() {
    let tx = Tx::default;
    let by_alice = |quantity| cash::exit(&gbp(), quantity, [key("Alice")]);
    let signed_by = |names: &[&str], command: Command| {
        let signers = names.iter().map(|name| key(name));
        Command {
            signers: Command::new("", signers).signers,
            ..command
        }
    };
    check(vec![
        ("of all", tx().takes(&alice(10)).says(by_alice(10)), ""),
        (
            "of a part",
            tx().takes(&alice(10)).gives(&alice(4)).says(by_alice(6)),
            "",
        ),
        (
            "of more than leaves",
            tx().takes(&alice(10)).gives(&alice(4)).says(by_alice(7)),
            "must be what goes in",
        ),
        (
            "of less than leaves",
            tx().takes(&alice(10)).gives(&alice(4)).says(by_alice(5)),
            "must be what goes in",
        ),
        (
            "of nothing",
            tx().takes(&alice(10)).gives(&bob(10)).says(by_alice(0)),
            "must be what goes in",
        ),
        (
            "of less than nothing",
            tx().takes(&alice(10)).gives(&bob(12)).says(by_alice(-2)),
            "must be what goes in",
        ),
        (
            "not signed by the issuer",
            tx().takes(&alice(10))
                .says(signed_by(&["Alice"], by_alice(10))),
            "the issuer must sign",
        ),
        (
            "not signed by the owner",
            tx().takes(&alice(10))
                .says(signed_by(&["Bank"], by_alice(10))),
            "every owner",
        ),
        (
            "of what is not there",
            tx().takes(&alice(10))
                .gives(&bob(10))
                .says(move_by(&["Alice"]))
                .says(cash::exit(&token("Bank", 9, "GBP"), 1, [key("Alice")])),
            "has none of it",
        ),
        (
            "together with an issue of the same",
            tx().takes(&alice(10))
                .says(by_alice(10))
                .says(cash::issue(&gbp())),
            "must not be issued and exited",
        ),
    ]);
}

#[test]
fn states_that_are_not_what_they_seem() {
    let mut other_type = on_ledger(&alice(5));
    other_type.state_type = "cash.Cash.Voucher".to_owned();
    let mut garbage = on_ledger(&alice(5));
    garbage.data.push(0);
    let mut hidden = on_ledger(&alice(5));
    hidden.participants = vec![key("Mallory")];
    let mut other_code = on_ledger(&alice(5));
    other_code.contract.code = SecureHash::of(b"another version");
    for (state, expected) in [
        (other_type, "is not a state of contract cash.Cash"),
        (garbage, "cannot be read"),
        (hidden, "other participants"),
        (other_code, "is unknown here"),
    ] {
        let tx = Tx {
            outputs: vec![state],
            ..Tx::default().says(cash::issue(&gbp()))
        };
        let reason = tx.judge().expect_err(expected);
        assert!(reason.contains(expected), "{reason}");
    }
}

fn debt(paid: i64) -> Iou {
    let currency: Currency = "GBP".parse().unwrap();
    Iou {
        id: UniqueId::from_bytes([1; 16]),
        lender: party("Lender"),
        borrower: party("Borrower"),
        amount: Amount::new(100, currency),
        paid: Amount::new(paid, currency),
        issuer: party("Bank"),
    }
}

fn borrowers_cash(quantity: i64) -> Cash {
    gbp().held_by(&party("Borrower"), quantity)
}

fn lenders_cash(quantity: i64) -> Cash {
    gbp().held_by(&party("Lender"), quantity)
}

fn only(name: &str, command: Command) -> Command {
    Command {
        signers: vec![key(name)],
        ..command
    }
}

#[test]
fn obligations_begin() {
    let tx = Tx::default;
    let to_self = Iou {
        borrower: party("Lender"),
        ..debt(0)
    };
    let nothing = Iou {
        amount: Amount::new(0, "GBP".parse().unwrap()),
        ..debt(0)
    };
    let other_currency = Iou {
        paid: Amount::new(0, "USD".parse().unwrap()),
        ..debt(0)
    };
    check(vec![
        (
            "signed by both",
            tx().gives(&debt(0)).says(iou::issue(&debt(0))),
            "",
        ),
        (
            "signed by the lender only",
            tx().gives(&debt(0))
                .says(only("Lender", iou::issue(&debt(0)))),
            "Borrower, L=London, C=GB must sign",
        ),
        (
            "signed by the borrower only",
            tx().gives(&debt(0))
                .says(only("Borrower", iou::issue(&debt(0)))),
            "Lender, L=London, C=GB must sign",
        ),
        (
            "half paid",
            tx().gives(&debt(50)).says(iou::issue(&debt(50))),
            "nothing of an IOU can be paid",
        ),
        (
            "fully paid",
            tx().gives(&debt(100)).says(iou::issue(&debt(100))),
            "less than all of it",
        ),
        (
            "about nothing",
            tx().gives(&nothing).says(iou::issue(&nothing)),
            "more than nothing",
        ),
        (
            "to oneself",
            tx().gives(&to_self).says(iou::issue(&to_self)),
            "must differ",
        ),
        (
            "in two currencies",
            tx().gives(&other_currency)
                .says(iou::issue(&other_currency)),
            "of its currency",
        ),
        (
            "without a command",
            tx().gives(&debt(0))
                .says(Command::new("x.Y", [key("Lender")])),
            "no command covers",
        ),
        (
            "again, while it exists",
            tx().takes(&debt(0))
                .gives(&debt(0))
                .says(iou::issue(&debt(0))),
            "does not fit",
        ),
        (
            "twice at once",
            tx().gives(&debt(0))
                .gives(&debt(0))
                .says(iou::issue(&debt(0))),
            "appears twice",
        ),
    ]);
}

#[test]
fn obligations_change_hands() {
    let tx = Tx::default;
    let to_carol = debt(30).owed_to(&party("Carol"));
    let reduced = Iou {
        amount: Amount::new(50, "GBP".parse().unwrap()),
        ..to_carol.clone()
    };
    let other_borrower = Iou {
        borrower: party("Dave"),
        ..to_carol.clone()
    };
    let transfer = || iou::transfer(&debt(30));
    check(vec![
        (
            "as it stands",
            tx().takes(&debt(30)).gives(&to_carol).says(transfer()),
            "",
        ),
        (
            "not signed by the lender",
            tx().takes(&debt(30))
                .gives(&to_carol)
                .says(only("Carol", transfer())),
            "Lender, L=London, C=GB must sign",
        ),
        (
            "with another amount",
            tx().takes(&debt(30)).gives(&reduced).says(transfer()),
            "and nothing else",
        ),
        (
            "with another borrower",
            tx().takes(&debt(30))
                .gives(&other_borrower)
                .says(transfer()),
            "and nothing else",
        ),
        (
            "to the same lender",
            tx().takes(&debt(30)).gives(&debt(30)).says(transfer()),
            "must change its lender",
        ),
        (
            "to the borrower",
            tx().takes(&debt(30))
                .gives(&debt(30).owed_to(&party("Borrower")))
                .says(transfer()),
            "must differ",
        ),
        (
            "to nobody",
            tx().takes(&debt(30)).says(transfer()),
            "does not fit",
        ),
        (
            "by two commands",
            tx().takes(&debt(30))
                .gives(&to_carol)
                .says(transfer())
                .says(transfer()),
            "does not fit",
        ),
        (
            "by an unknown command",
            tx().takes(&debt(30)).gives(&to_carol).says(Command {
                kind: "iou.Sell".to_owned(),
                ..transfer()
            }),
            "not a command of IOUs",
        ),
    ]);
}

#[test]
fn obligations_are_paid() {
    let tx = Tx::default;
    let settle = || iou::settle(&debt(30));
    let pay = |quantity| {
        tx().takes(&borrowers_cash(quantity))
            .gives(&lenders_cash(quantity))
            .says(move_by(&["Borrower"]))
    };
    let own_token = token("Borrower", 1, "GBP");
    let second = Iou {
        id: UniqueId::from_bytes([2; 16]),
        ..debt(30)
    };
    check(vec![
        (
            "in part",
            pay(20).takes(&debt(30)).gives(&debt(50)).says(settle()),
            "",
        ),
        ("in full", pay(70).takes(&debt(30)).says(settle()), ""),
        (
            "without cash",
            tx().takes(&debt(30)).says(settle()),
            "70 minor units of GBP are settled, and the lender gains 0",
        ),
        (
            "with too little cash",
            pay(69).takes(&debt(30)).says(settle()),
            "the lender gains 69",
        ),
        (
            "with cash of an issuer that was not agreed",
            tx().takes(&own_token.held_by(&party("Borrower"), 70))
                .gives(&own_token.held_by(&party("Lender"), 70))
                .says(move_by(&["Borrower"]))
                .takes(&debt(30))
                .says(settle()),
            "the lender gains 0",
        ),
        (
            "with cash that goes to somebody else",
            tx().takes(&borrowers_cash(70))
                .gives(&bob(70))
                .says(move_by(&["Borrower"]))
                .takes(&debt(30))
                .says(settle()),
            "the lender gains 0",
        ),
        (
            "with the lender's own cash",
            tx().takes(&lenders_cash(70))
                .gives(&lenders_cash(70))
                .says(move_by(&["Lender"]))
                .takes(&debt(30))
                .says(settle()),
            "the lender gains 0",
        ),
        (
            "two with the same cash",
            pay(70)
                .takes(&debt(30))
                .takes(&second)
                .says(settle())
                .says(iou::settle(&second)),
            "140 minor units of GBP are settled",
        ),
        (
            "two with cash for both",
            pay(140)
                .takes(&debt(30))
                .takes(&second)
                .says(settle())
                .says(iou::settle(&second)),
            "",
        ),
        (
            "not signed by the lender",
            pay(70).takes(&debt(30)).says(only("Borrower", settle())),
            "Lender, L=London, C=GB must sign",
        ),
        (
            "backwards",
            pay(20).takes(&debt(30)).gives(&debt(10)).says(settle()),
            "must increase what is paid",
        ),
        (
            "in part, and owed to another afterwards",
            pay(20)
                .takes(&debt(30))
                .gives(&debt(50).owed_to(&party("Carol")))
                .says(settle()),
            "change nothing else",
        ),
        (
            "and forgotten without a command",
            pay(70).takes(&debt(30)),
            "no command covers",
        ),
    ]);
}

const NAMES: [&str; 3] = ["Alice", "Bob", "Bank"];

fn any_token() -> impl Strategy<Value = Token> {
    let currency = prop_oneof![3 => Just("GBP"), 1 => Just("USD")];
    (
        prop_oneof![Just("Bank"), Just("OtherBank")],
        1..=2_u8,
        currency,
    )
        .prop_map(|(issuer, reference, currency)| token(issuer, reference, currency))
}

fn any_cash(least: i64) -> impl Strategy<Value = Cash> {
    (any_token(), 0..2_usize, least..6)
        .prop_map(|(token, owner, quantity)| token.held_by(&party(NAMES[owner]), quantity))
}

fn any_command() -> impl Strategy<Value = Command> {
    let signers = proptest::sample::subsequence(NAMES.to_vec(), 1..=3);
    let kind = prop_oneof![
        3 => Just(cash::moved([])),
        1 => any_token().prop_map(|token| cash::issue(&token)),
        1 => (any_token(), -2..6_i64).prop_map(|(token, quantity)| cash::exit(&token, quantity, [])),
    ];
    (kind, signers).prop_map(|(command, signers)| Command {
        signers: Command::new("", signers.into_iter().map(key)).signers,
        ..command
    })
}

/// Sums by token.
fn sums(states: &[Cash]) -> BTreeMap<Token, i64> {
    let mut sums = BTreeMap::new();
    for cash in states {
        *sums.entry(cash.token()).or_insert(0) += cash.amount.quantity;
    }
    sums
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Whatever the contract accepts: nothing was created without the issuer's signature, nothing
    /// destroyed without it, and nobody's cash was touched without the owner's.
    #[test]
    fn accepted_transactions_conserve_cash(
        inputs in proptest::collection::vec(any_cash(1), 0..3),
        outputs in proptest::collection::vec(any_cash(0), 0..3),
        commands in proptest::collection::vec(any_command(), 1..3),
    ) {
        let mut tx = Tx { commands: commands.clone(), ..Tx::default() };
        tx = inputs.iter().fold(tx, |tx, cash| tx.takes(cash));
        tx = outputs.iter().fold(tx, |tx, cash| tx.gives(cash));
        if tx.judge().is_ok() {
            let signers: Vec<_> = commands.iter().flat_map(|command| &command.signers).collect();
            let (before, after) = (sums(&inputs), sums(&outputs));
            for token in before.keys().chain(after.keys()) {
                let change = after.get(token).unwrap_or(&0) - before.get(token).unwrap_or(&0);
                prop_assert!(change == 0 || signers.contains(&&token.issuer.owning_key));
            }
            for cash in &inputs {
                prop_assert!(signers.contains(&&cash.owner.owning_key));
            }
            for cash in &outputs {
                prop_assert!(cash.amount.quantity > 0);
            }
        }
    }

    /// Any way of dividing the inputs is accepted, and no other sum.
    #[test]
    fn moves_may_divide_and_merge_but_not_change_sums(
        inputs in proptest::collection::vec((any_token(), 1..1_000_i64), 1..6),
        cuts in proptest::collection::vec(1..1_000_i64, 6),
        wrong in prop_oneof![-1_000..0_i64, 1..1_000_i64],
    ) {
        let mut tx = Tx::default().says(move_by(&["Alice"]));
        let mut outputs = Vec::new();
        for ((token, quantity), cut) in inputs.iter().zip(cuts) {
            tx = tx.takes(&token.held_by(&party("Alice"), *quantity));
            let part = cut.min(*quantity);
            outputs.push(token.held_by(&party("Bob"), part));
            if *quantity > part {
                outputs.push(token.held_by(&party("Alice"), quantity - part));
            }
        }
        let moved = outputs.iter().fold(tx.clone(), |tx, cash| tx.gives(cash));
        prop_assert_eq!(moved.judge(), Ok(()));
        outputs[0].amount.quantity += wrong;
        let changed = outputs.iter().fold(tx, |tx, cash| tx.gives(cash));
        prop_assert!(changed.judge().is_err());
    }
}

/// The bytes on the ledger are signed and hashed: they must not change by accident.
#[test]
fn bytes_of_the_states_stay_as_they_are() {
    let cash = on_ledger(&alice(10_050));
    let debt = on_ledger(&debt(30));
    let hash = |state: &TransactionState| SecureHash::of(&state.data).to_string();
    assert_eq!(
        hash(&cash),
        "AE5D36FD40D5AA32C5F7ED2C0CAE6BB3B482D106338C7046E14C1CADC56289FE"
    );
    assert_eq!(
        hash(&debt),
        "CA84785F0A91090E6B97BC7BF08C12DA7DF223F8EF81B88769B41BA64EB0649C"
    );
    assert_eq!(cash.read::<Cash>().unwrap(), alice(10_050));
    assert_eq!(
        code("cash.Cash").to_string(),
        "F4596E8FD24195E4B04891708EDE089C82F6CD2669904B4207BB3AD13C26C9E6"
    );
    assert_eq!(
        code("cash.IOU").to_string(),
        "43A6CA6E8F0CD7F6CED7DBCCB3E9E70DDCEC365DAF91CA21F373D782142ADE45"
    );
}

#[test]
fn schemas_are_sound_and_map_the_states() {
    let schemas = CashApp.schemas();
    for (state, values) in [
        (
            on_ledger(&alice(5)),
            ["GBP", "O=Alice, L=London, C=GB", "O=Bank, L=London, C=GB"],
        ),
        (
            on_ledger(&debt(5)),
            [
                "GBP",
                "O=Lender, L=London, C=GB",
                "O=Borrower, L=London, C=GB",
            ],
        ),
    ] {
        let rows = schemas.iter().filter_map(|schema| {
            let table = schema.describe().unwrap();
            schema.row(&table, &state).unwrap()
        });
        let rows: Vec<_> = rows.collect();
        assert_eq!(rows.len(), 1, "one schema maps a {}", state.state_type);
        for value in values {
            assert!(rows[0].contains(&value.into()), "{value} in {:?}", rows[0]);
        }
        let shown = CashApp.read_state(&state).unwrap();
        assert!(shown["amount"].as_str().unwrap().ends_with(" GBP"));
    }
}
