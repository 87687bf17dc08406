//! Random overlapping requests, restarts in between, against a notary of three lines.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use quorate_ledger::{
    ConsumingTx, NotarisationAnswer, NotaryError, StateRef, TimeWindow, TxId, WireTransaction,
};
use quorate_notary::Options;
use quorate_storage::Engine;

use crate::support::*;

/// What happens next.
#[derive(Debug, Clone)]
enum Event {
    /// A new transaction that consumes and reads some of few states; its window, if any, begins
    /// and ends so many seconds from noon.
    New {
        inputs: BTreeSet<u8>,
        references: BTreeSet<u8>,
        window: Option<(i64, i64)>,
    },
    /// An earlier one is asked for again.
    Again(prop::sample::Index),
    /// Requests gather from here on, or are decided.
    Gate { open: bool },
    /// The process dies and another takes over.
    Restart,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let states = || prop::collection::btree_set(0u8..12, 0..3);
    let window = prop::option::weighted(
        0.3,
        (-2i64..=1).prop_flat_map(|from| (Just(from), from + 1..=3)),
    );
    let new = (states(), states(), window).prop_map(|(inputs, references, window)| Event::New {
        references: references.difference(&inputs).copied().collect(),
        inputs,
        window,
    });
    let event = prop_oneof![
        12 => new,
        4 => any::<prop::sample::Index>().prop_map(Event::Again),
        2 => any::<bool>().prop_map(|open| Event::Gate { open }),
        1 => Just(Event::Restart),
    ];
    prop::collection::vec(event, 1..60)
}

/// What a notary is, without a database, batches or a process that can die.
#[derive(Default)]
struct Model {
    done: BTreeSet<TxId>,
    spent: BTreeMap<StateRef, TxId>,
}

impl Model {
    /// The reason of a refusal, or nothing.
    fn decide(&mut self, wire: &WireTransaction) -> Option<NotaryError> {
        let tx = wire.id();
        if self.done.contains(&tx) {
            return None;
        }
        let inputs = wire.inputs().iter().map(|state| (*state, false));
        let references = wire.references().iter().map(|state| (*state, true));
        let consumed: BTreeMap<StateRef, ConsumingTx> = inputs
            .chain(references)
            .filter_map(|(state, as_reference)| {
                let tx = *self.spent.get(&state)?;
                Some((state, ConsumingTx { tx, as_reference }))
            })
            .collect();
        if !consumed.is_empty() {
            return Some(NotaryError::Conflict { tx, consumed });
        }
        let now = at(NOON);
        if let Some(window) = wire.time_window().filter(|window| !window.contains(now)) {
            return Some(NotaryError::TimeWindowInvalid { window, now });
        }
        self.done.insert(tx);
        self.spent
            .extend(wire.inputs().iter().map(|state| (*state, tx)));
        None
    }
}

fn transaction(
    inputs: &BTreeSet<u8>,
    references: &BTreeSet<u8>,
    window: Option<(i64, i64)>,
) -> WireTransaction {
    let names = |numbers: &BTreeSet<u8>| {
        numbers
            .iter()
            .map(|n| format!("state {n}"))
            .collect::<Vec<_>>()
    };
    fn borrowed(names: &[String]) -> Vec<&str> {
        names.iter().map(String::as_str).collect()
    }
    let mut draft = spend(&borrowed(&names(inputs))).reading(&borrowed(&names(references)));
    draft.window = window.map(|(from, until)| {
        TimeWindow::between(at(NOON + from * 1_000_000), at(NOON + until * 1_000_000)).unwrap()
    });
    draft.build()
}

async fn run(engine: Engine, events: Vec<Event>) -> Result<(), TestCaseError> {
    let Some(db) = database(engine).await else {
        return Ok(());
    };
    let options = Options {
        batch_size: 5,
        batch_input_states: 8,
        ..Options::default()
    };
    let mut desk = Desk::open(&db, options.clone()).await;
    let from = party("PartyA").name;
    let mut model = Model::default();
    let mut known: Vec<WireTransaction> = Vec::new();
    let mut expected = Vec::new();
    for event in events {
        let wire = match event {
            Event::New {
                inputs,
                references,
                window,
            } => {
                known.push(transaction(&inputs, &references, window));
                known[known.len() - 1].clone()
            }
            Event::Again(_) if known.is_empty() => continue,
            Event::Again(which) => which.get(&known).clone(),
            Event::Gate { open: true } => {
                desk.gate.open();
                continue;
            }
            Event::Gate { open: false } => {
                desk.gate.close();
                continue;
            }
            Event::Restart => {
                let sequences = desk.sequences();
                desk.close().await;
                desk = Desk::open(&db, options.clone()).await;
                desk.continue_with(sequences);
                desk.take_up_inbox().await;
                continue;
            }
        };
        expected.push((desk.ask(&wire).await, wire.id(), model.decide(&wire)));
    }
    desk.gate.open();
    if let Some((last, ..)) = expected.last() {
        desk.answer(*last).await;
    }
    let mut answers = desk.answers(&from).await;
    prop_assert_eq!(answers.len(), expected.len());
    for (session, tx, refusal) in expected {
        match (answers.remove(&session), refusal) {
            (Some(NotarisationAnswer::Signed(signatures)), None) => {
                prop_assert!(signatures[0].verify(&tx).is_ok());
            }
            (Some(NotarisationAnswer::Refused(error)), Some(wanted)) => {
                prop_assert_eq!(error, wanted);
            }
            (answer, wanted) => {
                prop_assert!(false, "{tx}: {answer:?} instead of {wanted:?}");
            }
        }
    }
    prop_assert!(desk.inbox().await.is_empty());
    desk.close().await;
    Ok(())
}

fn check(engine: Engine, cases: u32) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let config = Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: 200,
        ..Config::default()
    };
    let mut runner = TestRunner::new(config);
    let result = runner.run(&events(), |events| runtime.block_on(run(engine, events)));
    if let Err(error) = result {
        panic!("{error}");
    }
}

#[test]
fn every_answer_is_that_of_the_model_on_sqlite() {
    check(Engine::Sqlite, 32);
}

#[test]
fn every_answer_is_that_of_the_model_on_postgres() {
    check(Engine::Postgres, 5);
}
