//! What must hold once nothing happens any more.

use std::collections::{BTreeMap, BTreeSet};

use quorate_flow::{Finality, FlowError, FlowOutcome};
use quorate_ledger::{NotaryError, SignedTransaction, StateRef, TxId};

use crate::app::{Chat, Coin, Manner, Rung};
use crate::host::cast;
use crate::world::{Request, World};

/// What a run has come to, so that a workload that never gets anywhere is noticed.
#[derive(Default, Debug, Clone, Copy)]
pub(crate) struct Tally {
    pub(crate) completed: u64,
    pub(crate) failed: u64,
    pub(crate) notarised: u64,
    pub(crate) conflicts: u64,
    pub(crate) crashes: u64,
}

pub(crate) fn check(world: &World, careless: bool) -> Tally {
    nothing_left(world);
    let mut tally = Tally {
        crashes: u64::from(world.crashes),
        ..Tally::default()
    };
    let ours = world.nodes.iter();
    let spent: BTreeMap<StateRef, TxId> = ours.flat_map(|node| node.store.spent.clone()).collect();
    let notarised: BTreeSet<TxId> = spent.values().copied().collect();
    tally.notarised = notarised.len() as u64;
    let mut issued = 0;
    for request in &world.requests {
        let node = &world.nodes[request.node].store;
        let flow = node.clients.get(&request.client);
        let flow = flow.unwrap_or_else(|| panic!("{:?} was never recorded", request.client));
        let ended = &node.ended[flow];
        assert_eq!(ended.start.class, request.class);
        match &ended.outcome {
            FlowOutcome::Completed { result } => {
                tally.completed += 1;
                issued += completed(world, request, result);
            }
            FlowOutcome::Failed { error } => {
                tally.failed += 1;
                let error: FlowError = serde_json::from_str(error).expect("an error");
                tally.conflicts += u64::from(is_conflict(&error));
                if world.killed == 0 {
                    failed(request, &error, careless);
                }
            }
            FlowOutcome::Killed => assert!(world.killed > 0),
        }
    }
    ledger(world, &spent, &notarised);
    for (identity, performed) in &world.effects {
        assert!(
            performed.windows(2).all(|pair| pair[0] == pair[1]),
            "effect {identity} was asked for different things: {performed:?}"
        );
    }
    if world.killed == 0 {
        agreement(world, &notarised);
        assert_eq!(money(world), issued, "money was made or lost");
    }
    tally
}

fn nothing_left(world: &World) {
    for (i, node) in world.nodes.iter().enumerate() {
        let machine = node.machine.as_ref().expect("every node is up");
        let left: Vec<_> = machine.views().collect();
        assert!(left.is_empty(), "flows are left on node {i}: {left:#?}");
        assert!(machine.census().is_empty());
        assert_eq!(machine.held(), 0);
        assert_eq!(machine.next_wakeup(), None, "a timer is left on node {i}");
        let store = &node.store;
        assert!(store.flows.is_empty(), "flows are left in store {i}");
        assert!(store.inbox.is_empty(), "mail is left: {:?}", store.inbox);
        for (peer, outbox) in &store.outbox {
            let left = outbox.waiting.len();
            assert_eq!(left, 0, "{left} messages of node {i} to {peer} never left");
        }
        for (reference, row) in &store.vault {
            assert_eq!(row.lock, None, "state {reference} is still locked");
        }
    }
}

/// A good end, judged by what the flow was to do; money that it made.
fn completed(world: &World, request: &Request, result: &str) -> i64 {
    let store = &world.nodes[request.node].store;
    match request.class {
        "sim.Issue" | "sim.Pay" | "sim.Swap" | "sim.Cheat" => {
            let id: TxId = serde_json::from_str(result).expect("a transaction id");
            let tx = store.final_transaction(&id).expect("recorded as final");
            if tx.wire().inputs().is_empty() {
                return worth(tx);
            }
        }
        "sim.Chores" => {
            let rung: Vec<Rung> = serde_json::from_str(result).expect("what was rung");
            for (tone, answer) in rung {
                let asked = serde_json::to_string(&tone).expect("text becomes JSON");
                let performed = world.effects.values().find(|log| log.contains(&asked));
                let times = performed.expect("it was rung").len() as u64;
                assert!((1..=times).contains(&answer));
            }
        }
        _ => {
            let chat: Chat = serde_json::from_str(&request.arguments).expect("arguments");
            let expected: &[&str] = match chat.manner {
                Manner::Impatient(_) => &["\"bored\"", "\"heard\""],
                _ => &["\"heard\""],
            };
            assert!(
                expected.contains(&result),
                "{:?} came to {result}",
                chat.manner
            );
        }
    }
    0
}

fn worth(tx: &SignedTransaction) -> i64 {
    let coins = tx.wire().outputs_of::<Coin>().expect("coins");
    coins.iter().map(|coin| coin.amount).sum()
}

fn is_conflict(error: &FlowError) -> bool {
    let FlowError::Notary { error, .. } = error else {
        return false;
    };
    matches!(error, NotaryError::Conflict { .. })
}

/// A bad end is one that the flow's author has foreseen.
fn failed(request: &Request, error: &FlowError, careless: bool) {
    let fine = match (request.class, error) {
        ("sim.Pay" | "sim.Swap" | "sim.Cheat", FlowError::Insufficient { .. }) => true,
        ("sim.Pay" | "sim.Swap" | "sim.Cheat", error) if is_conflict(error) => careless,
        ("sim.Swap", FlowError::Counterparty { message, .. }) => message.contains("not enough"),
        ("sim.Chat", error) => {
            let chat: Chat = serde_json::from_str(&request.arguments).expect("arguments");
            match (chat.manner, error) {
                (Manner::TheyFail(_), FlowError::Counterparty { message, .. }) => {
                    message == "no more"
                }
                (Manner::WeFail(_), FlowError::Failed(message)) => message == "enough",
                (Manner::Unanswered, FlowError::Rejected { .. }) => true,
                _ => false,
            }
        }
        _ => false,
    };
    assert!(
        fine,
        "{} {} ended with an error that it should not meet: {error:?}",
        request.class, request.arguments
    );
}

/// No state is consumed twice, and nothing is final that the notary does not know.
fn ledger(world: &World, spent: &BTreeMap<StateRef, TxId>, notarised: &BTreeSet<TxId>) {
    let mut consumed: BTreeMap<StateRef, TxId> = BTreeMap::new();
    for (i, node) in world.nodes.iter().enumerate() {
        for (id, (transaction, finality)) in &node.store.transactions {
            if *finality == Finality::InFlight {
                assert!(
                    world.killed > 0 || !notarised.contains(id),
                    "{id} is notarised, and node {i} has it only in flight"
                );
                continue;
            }
            transaction
                .verify_required_signatures()
                .expect("final transactions have all signatures");
            for input in transaction.wire().inputs() {
                assert_eq!(spent.get(input), Some(id), "final without the notary");
                let other = *consumed.entry(*input).or_insert(*id);
                assert_eq!(other, *id, "{input} is consumed twice");
            }
        }
    }
}

/// Whatever is notarised is final at everybody whom it concerns.
fn agreement(world: &World, notarised: &BTreeSet<TxId>) {
    for id in notarised {
        let known = world.nodes.iter().find_map(|node| {
            let (transaction, _) = node.store.transactions.get(id)?;
            Some(transaction)
        });
        let wire = known
            .unwrap_or_else(|| panic!("{id} is notarised and nobody has it"))
            .wire();
        for output in wire.outputs() {
            let owner = output.read::<Coin>().expect("a coin").owner;
            let party = cast().parties.iter().position(|p| p.owning_key == owner);
            let store = &world.nodes[party.expect("one of us")].store;
            assert!(
                store.final_transaction(id).is_some(),
                "{id} is notarised, and {party:?} has not recorded it"
            );
        }
    }
}

/// What all vaults hold together.
fn money(world: &World) -> i64 {
    let vaults = world.nodes.iter().flat_map(|node| node.store.unconsumed());
    vaults
        .map(|(state, _)| state.read::<Coin>().expect("a coin").amount)
        .sum()
}
