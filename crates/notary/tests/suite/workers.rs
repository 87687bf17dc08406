//! Several workers of one notary: each with a database of its own, and one in which all of them note what is spent.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::join_all;
use quorate_identity::SecureHash;
use quorate_ledger::{StateRef, TxId};
use quorate_notary::{Batch, Shared, Uniqueness};
use quorate_storage::lease::{Attempt, Candidate, Holder, Policy};
use quorate_storage::{Engine, NotaryEntry, NotaryResult, Relevance, Store, Writer, migrate};
use rstest::rstest;

use crate::support::*;

/// Rounds in which all workers are asked at once.
const ROUNDS: u64 = 150;

/// Workers that race.
const WORKERS: usize = 3;

/// Writes to a database, under the lease of a process of this name.
async fn writer(db: &Db, resource: &str) -> Writer {
    let store = Store::connect(db.options.clone(), Vec::new())
        .await
        .unwrap();
    migrate::execute(&store).await.unwrap();
    let holder = Holder::this_process(resource, "/opt/notary");
    let mut candidate = Candidate::new(&store, resource, holder, Policy::Always);
    let Attempt::Acquired(fence) = candidate.attempt().await.unwrap() else {
        panic!("nobody else holds the lease");
    };
    let (writer, service) = store.writer(fence, Relevance::default());
    tokio::spawn(async move { drop(service.run().await) });
    writer
}

/// Workers of a notary, with the databases that must outlive them.
async fn workers(engine: Engine, log: &Db) -> Option<(Vec<Shared>, Vec<Db>)> {
    let (mut workers, mut kept) = (Vec::new(), Vec::new());
    for number in 0..WORKERS {
        let own = database(engine).await?;
        let log = writer(log, &format!("worker {number}")).await;
        workers.push(Shared::new(log, writer(&own, "node").await));
        kept.push(own);
    }
    Some((workers, kept))
}

fn entry(tx: TxId, inputs: Vec<StateRef>, references: Vec<StateRef>) -> NotaryEntry {
    NotaryEntry {
        tx,
        inputs,
        references,
        requester: party("PartyA").name,
        request_signature: vec![1],
        within_time_window: true,
    }
}

fn tx(worker: usize, round: u64, kind: &str) -> TxId {
    TxId::new(SecureHash::of(
        format!("{worker} {round} {kind}").as_bytes(),
    ))
}

async fn decide(worker: &Shared, entries: Vec<NotaryEntry>) -> Vec<NotaryResult> {
    let batch = Batch {
        entries,
        consumed: Vec::new(),
        respond: Arc::new(|_| Ok(Vec::new())),
    };
    worker.commit(batch).await.unwrap().0
}

/// The one that got the state; the others are told who it was.
#[track_caller]
fn winner(results: &[(TxId, NotaryResult)]) -> TxId {
    let committed: Vec<_> = results
        .iter()
        .filter(|(_, result)| *result == NotaryResult::Committed)
        .map(|(tx, _)| *tx)
        .collect();
    assert_eq!(committed.len(), 1, "{results:?}");
    for (_, result) in results {
        if let NotaryResult::Conflict(consumed) = result {
            assert!(consumed.values().all(|by| by.tx == committed[0]));
        }
    }
    committed[0]
}

#[rstest]
#[case(Engine::Sqlite)]
#[case(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_state_is_spent_once_however_many_workers_are_asked_at_once(#[case] engine: Engine) {
    let Some(log) = database(engine).await else {
        return;
    };
    let Some((workers, _kept)) = workers(engine, &log).await else {
        return;
    };
    let mut winners: BTreeMap<u64, TxId> = BTreeMap::new();
    for round in 0..ROUNDS {
        let contested = state(&format!("contested {round}"));
        let asked = workers
            .iter()
            .enumerate()
            .map(|(number, worker)| async move {
                // Each worker has other states in its batch, and the contested one in another place.
                let mine = |kind: &str| {
                    entry(
                        tx(number, round, kind),
                        vec![state(&format!("{number} {round} {kind}"))],
                        Vec::new(),
                    )
                };
                let mut entries = vec![mine("first"), mine("second")];
                let contender = tx(number, round, "contender");
                entries.insert(number % 3, entry(contender, vec![contested], Vec::new()));
                let mut results = decide(worker, entries).await;
                let result = results.remove(number % 3);
                assert!(
                    results
                        .iter()
                        .all(|result| *result == NotaryResult::Committed)
                );
                (contender, result)
            });
        winners.insert(round, winner(&join_all(asked).await));
    }
    // Whoever asks again is told the same, by every worker.
    for (round, won) in &winners {
        let contested = state(&format!("contested {round}"));
        for (number, worker) in workers.iter().enumerate() {
            let again = tx(number, *round, "contender");
            let [result] =
                &decide(worker, vec![entry(again, vec![contested], Vec::new())]).await[..]
            else {
                panic!("one answer to one request");
            };
            assert_eq!(*result == NotaryResult::Committed, again == *won);
        }
    }
}

/// Of two transactions each of which reads what the other one spends, no order lets both be.
#[rstest]
#[case(Engine::Sqlite)]
#[case(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn what_one_worker_lets_be_read_another_one_does_not_let_be_spent(#[case] engine: Engine) {
    let Some(log) = database(engine).await else {
        return;
    };
    let Some((workers, _kept)) = workers(engine, &log).await else {
        return;
    };
    for round in 0..ROUNDS {
        let pair = [
            state(&format!("left {round}")),
            state(&format!("right {round}")),
        ];
        let asked = workers
            .iter()
            .take(2)
            .enumerate()
            .map(|(number, worker)| async move {
                let contender = tx(number, round, "reader");
                let spends = vec![pair[number]];
                let reads = vec![pair[1 - number]];
                let result = decide(worker, vec![entry(contender, spends, reads)])
                    .await
                    .remove(0);
                (contender, result)
            });
        winner(&join_all(asked).await);
    }
}

/// A worker that is gone in the middle of a decision holds nobody up for long, and one that comes back finds its lease
/// taken by nobody but itself.
#[rstest]
#[case(Engine::Sqlite)]
#[case(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_of_the_same_worker_fences_off_the_first(#[case] engine: Engine) {
    let (Some(log), Some(own)) = (database(engine).await, database(engine).await) else {
        return;
    };
    let own = writer(&own, "node").await;
    let first = Shared::new(writer(&log, "worker").await, own.clone());
    let entries = |name: &str| vec![entry(tx(0, 0, name), vec![state(name)], Vec::new())];
    assert_eq!(
        decide(&first, entries("a")).await,
        [NotaryResult::Committed]
    );
    let second = Shared::new(writer(&log, "worker").await, own);
    let batch = Batch {
        entries: entries("b"),
        consumed: Vec::new(),
        respond: Arc::new(|_| Ok(Vec::new())),
    };
    let error = first.commit(batch).await.unwrap_err();
    assert!(!error.transient && !error.is_refusal(), "{error:?}");
    assert_eq!(
        decide(&second, entries("b")).await,
        [NotaryResult::Committed]
    );
}
