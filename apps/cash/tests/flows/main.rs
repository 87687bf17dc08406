//! The flows between two and three parties, on real flow machines.

#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests

mod guide;
mod network;
mod refusals;

use std::sync::Arc;

use network::{Net, Node, party};
use proptest::prelude::*;
use quorate_cash::{
    CashApp, Exit, Iou, Issue, IssueAndPay, IssueIou, Payment, SettleIou, Swap, balances,
};
use quorate_flow::{App, Flow, FlowError};
use quorate_ledger::{NotaryError, UniqueId};
use serde_json::{Value, json};

fn cash() -> Vec<Arc<dyn App>> {
    vec![Arc::new(CashApp)]
}

/// Alice, Bob and Carol have the application; the network has two notaries.
fn net() -> Net {
    let names = ["Alice", "Bob", "Carol"];
    let nodes: Vec<_> = names.iter().map(|name| (*name, cash())).collect();
    Net::new(&nodes, &["Notary", "OtherNotary"])
}

fn name(organisation: &str) -> String {
    party(organisation).name.to_string()
}

/// `100.50 GBP, 7.00 USD`: what a node owns.
fn wealth(net: &mut Net, organisation: &str) -> String {
    let states = net.node(organisation).unconsumed();
    let sums = balances(&states).unwrap();
    let sums: Vec<_> = sums.values().map(ToString::to_string).collect();
    sums.join(", ")
}

fn issue(net: &mut Net, issuer: &str, amount: &str) {
    issue_under(net, issuer, amount, "Notary");
}

fn issue_under(net: &mut Net, issuer: &str, amount: &str, notary: &str) {
    let arguments = json!({ "amount": amount, "currency": "GBP", "notary": name(notary) });
    net.run::<Issue>(issuer, arguments).unwrap();
}

fn payment(amount: &str, recipient: &str) -> Value {
    json!({ "amount": amount, "currency": "GBP", "recipient": name(recipient) })
}

fn pay(net: &mut Net, payer: &str, amount: &str, recipient: &str) {
    net.run::<Payment>(payer, payment(amount, recipient))
        .unwrap();
}

fn ious(node: &Node) -> Vec<Iou> {
    let states = node.unconsumed();
    let ious = states.iter().filter(|state| state.state.is::<Iou>());
    ious.map(|state| state.read().unwrap()).collect()
}

fn failure<T: std::fmt::Debug>(result: Result<T, FlowError>) -> String {
    result.expect_err("the flow must fail").to_string()
}

#[test]
fn payment_with_change() {
    let mut net = net();
    let issued = net
        .run::<Issue>("Alice", json!({ "amount": 100.50, "currency": "GBP" }))
        .unwrap();
    assert_eq!(issued.amount.to_string(), "100.50 GBP");
    let paid = net
        .run::<Payment>("Alice", payment("30.25", "Bob"))
        .unwrap();
    assert_eq!(paid.amount.to_string(), "30.25 GBP");
    assert_eq!(paid.change.unwrap().to_string(), "70.25 GBP");
    assert_eq!(wealth(&mut net, "Alice"), "70.25 GBP");
    assert_eq!(wealth(&mut net, "Bob"), "30.25 GBP");
    // Bob pays on what Alice issued; Carol fetches the history.
    pay(&mut net, "Bob", "30.25", "Carol");
    assert_eq!(wealth(&mut net, "Bob"), "");
    assert_eq!(wealth(&mut net, "Carol"), "30.25 GBP");
    for tx in [issued.tx, paid.tx] {
        assert!(net.node("Carol").transaction(tx).is_some());
    }
    for organisation in ["Alice", "Bob", "Carol"] {
        assert!(net.node(organisation).store.in_flight.is_empty());
    }
}

#[test]
fn a_payment_joins_coins_of_many_issuers() {
    let mut net = net();
    issue(&mut net, "Alice", "10");
    issue(&mut net, "Alice", "5");
    issue(&mut net, "Bob", "20");
    pay(&mut net, "Bob", "20", "Alice");
    pay(&mut net, "Alice", "33", "Carol");
    assert_eq!(wealth(&mut net, "Alice"), "2.00 GBP");
    assert_eq!(wealth(&mut net, "Carol"), "33.00 GBP");
}

#[test]
fn paying_oneself_merges_coins() {
    let mut net = net();
    issue(&mut net, "Alice", "10");
    issue(&mut net, "Alice", "5");
    pay(&mut net, "Alice", "15", "Alice");
    assert_eq!(wealth(&mut net, "Alice"), "15.00 GBP");
    assert_eq!(net.node("Alice").unconsumed().len(), 1);
}

#[test]
fn a_payment_stays_under_one_notary() {
    let mut net = net();
    issue_under(&mut net, "Alice", "10", "Notary");
    issue_under(&mut net, "Alice", "15", "OtherNotary");
    let error = net
        .run::<Payment>("Alice", payment("20", "Bob"))
        .unwrap_err();
    let (wanted, available) = (2_000, 1_500);
    assert_eq!(error, FlowError::Insufficient { wanted, available });
    let mut only = payment("12", "Bob");
    only["notary"] = name("Notary").into();
    failure(net.run::<Payment>("Alice", only));
    pay(&mut net, "Alice", "12", "Bob");
    let states = net.node("Bob").unconsumed();
    assert_eq!(states[0].state.notary, party("OtherNotary"));
}

#[test]
fn insufficient_funds_leave_everything_as_it_was() {
    let mut net = net();
    issue(&mut net, "Alice", "10");
    let error = net
        .run::<Payment>("Alice", payment("10.01", "Bob"))
        .unwrap_err();
    let (wanted, available) = (1_001, 1_000);
    assert_eq!(error, FlowError::Insufficient { wanted, available });
    let error = net
        .run::<Payment>("Bob", payment("1", "Alice"))
        .unwrap_err();
    assert!(matches!(error, FlowError::Insufficient { .. }));
    // The failed flows hold no locks.
    pay(&mut net, "Alice", "10", "Bob");
    assert_eq!(wealth(&mut net, "Bob"), "10.00 GBP");
}

#[test]
fn nonsense_from_the_operator_is_refused_by_name() {
    let mut net = net();
    issue(&mut net, "Alice", "10");
    for (arguments, reason) in [
        (payment("1.001", "Bob"), "GBP has 2 decimals"),
        (
            payment("1", "Nobody"),
            "O=Nobody, L=London, C=GB' is not known",
        ),
        (payment("92233720368547758.08", "Bob"), "larger than"),
    ] {
        let error = failure(net.run::<Payment>("Alice", arguments));
        assert!(error.contains(reason), "{error}");
    }
    let mut elsewhere = payment("1", "Bob");
    elsewhere["notary"] = name("Carol").into();
    let error = failure(net.run::<Payment>("Alice", elsewhere));
    assert!(error.contains("notary 'O=Carol"), "{error}");
    assert_eq!(wealth(&mut net, "Alice"), "10.00 GBP");
}

#[test]
fn a_double_spend_is_refused_by_the_notary() {
    let mut net = net();
    issue(&mut net, "Alice", "10");
    let backup = net.node("Alice").store.vault.clone();
    let first = net.run::<Payment>("Alice", payment("10", "Bob")).unwrap();
    // Alice restores an old backup and pays with the same state again.
    net.node("Alice").store.vault = backup;
    let error = net
        .run::<Payment>("Alice", payment("10", "Carol"))
        .unwrap_err();
    let FlowError::Notary {
        error: NotaryError::Conflict { consumed, .. },
        ..
    } = &error
    else {
        panic!("{error:?}");
    };
    assert!(consumed.values().all(|by| by.tx == first.tx));
    assert_eq!(wealth(&mut net, "Bob"), "10.00 GBP");
    assert_eq!(wealth(&mut net, "Carol"), "");
}

#[test]
fn issue_and_pay() {
    let mut net = net();
    issue(&mut net, "Alice", "1");
    let done = net
        .run::<IssueAndPay>("Alice", payment("25", "Bob"))
        .unwrap();
    assert_eq!(done.paid.change, None);
    let payment_tx = net.node("Bob").transaction(done.paid.tx).unwrap();
    assert_eq!(payment_tx.wire().inputs(), [done.issued.state]);
    assert_eq!(wealth(&mut net, "Alice"), "1.00 GBP");
    assert_eq!(wealth(&mut net, "Bob"), "25.00 GBP");
    let error = failure(net.run::<IssueAndPay>("Alice", payment("25", "Nobody")));
    assert!(error.contains("O=Nobody"), "{error}");
    assert_eq!(wealth(&mut net, "Alice"), "1.00 GBP");
}

#[test]
fn exit_needs_cash_of_our_own_issue() {
    let mut net = net();
    issue(&mut net, "Alice", "10");
    pay(&mut net, "Alice", "4", "Bob");
    let exit = |amount| json!({ "amount": amount, "currency": "GBP" });
    failure(net.run::<Exit>("Bob", exit("4")));
    let exited = net.run::<Exit>("Alice", exit("5")).unwrap();
    assert_eq!(exited.change.unwrap().to_string(), "1.00 GBP");
    assert_eq!(wealth(&mut net, "Alice"), "1.00 GBP");
    pay(&mut net, "Bob", "4", "Alice");
    net.run::<Exit>("Alice", exit("5")).unwrap();
    assert_eq!(wealth(&mut net, "Alice"), "");
}

/// Alice owes Bob 50, payable in Carol's cash; Alice and Carol have 100 of that.
fn indebted(net: &mut Net) -> UniqueId {
    issue(net, "Carol", "200");
    pay(net, "Carol", "100", "Alice");
    let arguments = json!({
        "amount": 50, "currency": "GBP", "lender": name("Bob"), "issuer": name("Carol"),
    });
    net.run::<IssueIou>("Alice", arguments).unwrap().iou
}

fn swap(iou: UniqueId, price: &str, seller: &str) -> Value {
    json!({ "iou": iou, "amount": price, "currency": "GBP", "seller": name(seller) })
}

#[test]
fn swap_delivers_versus_payment() {
    let mut net = net();
    let iou = indebted(&mut net);
    let swapped = net.run::<Swap>("Carol", swap(iou, "55", "Bob")).unwrap();
    assert_eq!(swapped.price.to_string(), "55.00 GBP");
    assert_eq!(wealth(&mut net, "Bob"), "55.00 GBP");
    assert_eq!(wealth(&mut net, "Carol"), "45.00 GBP");
    assert_eq!(ious(net.node("Bob")), []);
    for organisation in ["Alice", "Carol"] {
        let known = ious(net.node(organisation));
        assert_eq!(known.len(), 1, "{organisation}");
        assert_eq!((known[0].id, &known[0].lender), (iou, &party("Carol")));
    }
    // The borrower pays the new lender, in two parts.
    let settled = net
        .run::<SettleIou>("Alice", json!({ "iou": iou, "amount": 20 }))
        .unwrap();
    assert_eq!(settled.outstanding.to_string(), "30.00 GBP");
    let settled = net
        .run::<SettleIou>("Alice", json!({ "iou": iou }))
        .unwrap();
    assert_eq!(settled.outstanding.to_string(), "0.00 GBP");
    assert_eq!(wealth(&mut net, "Carol"), "95.00 GBP");
    assert_eq!(wealth(&mut net, "Alice"), "50.00 GBP");
    for organisation in ["Alice", "Carol"] {
        assert_eq!(ious(net.node(organisation)), [], "{organisation}");
    }
}

#[test]
fn swaps_and_settlements_without_agreement_change_nothing() {
    let mut net = net();
    let iou = indebted(&mut net);
    let other = UniqueId::from_bytes([9; 16]);
    for (who, arguments, reason) in [
        (
            "Carol",
            swap(iou, "49.99", "Bob"),
            "is sold for 50.00 GBP or more",
        ),
        (
            "Carol",
            swap(other, "50", "Bob"),
            "is not in this node's vault",
        ),
        (
            "Carol",
            swap(iou, "50", "Alice"),
            "is not in this node's vault",
        ),
        ("Carol", swap(iou, "5000", "Bob"), "not enough"),
        ("Bob", swap(iou, "50", "Bob"), "another party is needed"),
        ("Alice", swap(iou, "50", "Bob"), "another party is needed"),
    ] {
        let error = failure(net.run::<Swap>(who, arguments));
        assert!(error.contains(reason), "{error}");
    }
    for (who, arguments, reason) in [
        (
            "Alice",
            json!({ "iou": iou, "amount": 51 }),
            "more than the 50.00 GBP",
        ),
        ("Bob", json!({ "iou": iou }), "is not in this node's vault"),
    ] {
        let error = failure(net.run::<SettleIou>(who, arguments));
        assert!(error.contains(reason), "{error}");
    }
    assert_eq!(wealth(&mut net, "Alice"), "100.00 GBP");
    assert_eq!(wealth(&mut net, "Carol"), "100.00 GBP");
    assert_eq!(ious(net.node("Bob")).len(), 1);
}

#[test]
fn cash_of_another_issuer_does_not_pay_a_debt() {
    let mut net = net();
    indebted(&mut net);
    let arguments = json!({ "amount": 10, "currency": "GBP", "lender": name("Bob") });
    // Payable in the lender's own cash, of which the borrower has none.
    let iou = net.run::<IssueIou>("Alice", arguments).unwrap().iou;
    issue(&mut net, "Alice", "10");
    let error = net
        .run::<SettleIou>("Alice", json!({ "iou": iou }))
        .unwrap_err();
    assert!(matches!(error, FlowError::Insufficient { .. }), "{error}");
    net.run::<IssueAndPay>("Bob", payment("10", "Alice"))
        .unwrap();
    net.run::<SettleIou>("Alice", json!({ "iou": iou }))
        .unwrap();
    assert_eq!(wealth(&mut net, "Bob"), "10.00 GBP");
}

#[test]
fn every_flow_survives_a_crash_after_every_commit() {
    let mut net = net().crashing();
    let iou = indebted(&mut net);
    net.run::<Swap>("Carol", swap(iou, "50", "Bob")).unwrap();
    net.run::<SettleIou>("Alice", json!({ "iou": iou }))
        .unwrap();
    net.run::<IssueAndPay>("Bob", payment("7", "Alice"))
        .unwrap();
    net.run::<Exit>("Carol", json!({ "amount": 40, "currency": "GBP" }))
        .unwrap();
    assert_eq!(wealth(&mut net, "Alice"), "57.00 GBP");
    assert_eq!(wealth(&mut net, "Bob"), "50.00 GBP");
    assert_eq!(wealth(&mut net, "Carol"), "60.00 GBP");
    assert!(net.restarts > 50, "{} restarts only", net.restarts);
}

#[test]
fn payments_at_once_do_not_spend_the_same_state() {
    let mut net = net();
    for _ in 0..3 {
        issue(&mut net, "Alice", "10");
    }
    let arguments = |amount, to| payment(amount, to);
    let flows = [
        net.start::<Payment>("Alice", arguments("5", "Bob")),
        net.start::<Payment>("Alice", arguments("5", "Carol")),
        net.start::<Payment>("Alice", arguments("5", "Bob")),
        net.start::<Payment>("Alice", arguments("5", "Carol")),
    ];
    net.settle();
    let paid = flows.map(|flow| net.outcome::<Payment>("Alice", flow).is_ok());
    // Three coins, each locked by one flow; the fourth payment finds none.
    assert_eq!(paid, [true, true, true, false]);
    assert_eq!(wealth(&mut net, "Alice"), "15.00 GBP");
    assert_eq!(wealth(&mut net, "Bob"), "10.00 GBP");
    assert_eq!(wealth(&mut net, "Carol"), "5.00 GBP");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Whoever pays whom, whether it succeeds or not: what was issued is still there.
    #[test]
    fn money_is_conserved(
        payments in proptest::collection::vec((0..3_usize, 0..3_usize, 1..700_i64), 1..12),
    ) {
        let names = ["Alice", "Bob", "Carol"];
        let mut net = net();
        for organisation in names {
            issue(&mut net, organisation, "5.00");
        }
        for (from, to, pence) in payments {
            let amount = format!("{}.{:02}", pence / 100, pence % 100);
            let _ = net.run::<Payment>(names[from], payment(&amount, names[to]));
        }
        let all: Vec<_> = names.iter().flat_map(|name| net.node(name).unconsumed()).collect();
        let sums = balances(&all).unwrap();
        prop_assert_eq!(sums.values().next().unwrap().to_string(), "15.00 GBP");
    }
}

#[test]
fn arguments_are_as_they_are_typed_in_the_shell() {
    for (arguments, reason) in [
        (
            json!({ "amount": 100.50, "currency": "GBP", "recipient": name("Bob") }),
            "",
        ),
        (
            json!({ "amount": "100.50", "currency": "GBP", "recipient": name("Bob") }),
            "",
        ),
        (json!({ "amount": 100, "currency": "GBP" }), "recipient"),
        (
            json!({ "amount": 100, "currency": "GBP", "recipient": "Bob" }),
            "O",
        ),
        (
            json!({ "amount": 1, "currency": "GBP", "recipient": name("Bob"), "x": 1 }),
            "unknown field `x`",
        ),
        (
            json!({ "amount": 0, "currency": "GBP", "recipient": name("Bob") }),
            "positive",
        ),
        (
            json!({ "amount": -1, "currency": "GBP", "recipient": name("Bob") }),
            "sign",
        ),
        (
            json!({ "amount": 1, "currency": "pounds", "recipient": name("Bob") }),
            "three letters",
        ),
    ] {
        match serde_json::from_value::<Payment>(arguments.clone()) {
            Ok(payment) => {
                assert_eq!(reason, "", "{arguments} was accepted");
                let back = serde_json::to_value(&payment).unwrap();
                assert_eq!(
                    back["amount"].as_str().unwrap().trim_end_matches('0'),
                    "100.5"
                );
            }
            Err(error) => {
                let error = error.to_string();
                assert!(
                    !reason.is_empty() && error.contains(reason),
                    "{arguments}: {error}"
                );
            }
        }
    }
    assert_eq!(<Payment as Flow>::NAME, "cash.Payment");
}
