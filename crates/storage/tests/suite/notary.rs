//! The notary's tables: never twice, and the same answer to the same question.

use std::sync::Arc;

use quorate_identity::SecureHash;
use quorate_ledger::{ConsumingTx, StateRef, TxId};
use quorate_storage::{Engine, NotaryCommit, NotaryEntry, NotaryResult, UnitOfWork};
use rstest::rstest;

use crate::support::*;

fn tx(name: &str) -> TxId {
    TxId::new(SecureHash::of(name.as_bytes()))
}

fn state(name: &str) -> StateRef {
    StateRef::new(tx(name), 0)
}

fn entry(name: &str, inputs: &[&str], references: &[&str]) -> NotaryEntry {
    NotaryEntry {
        tx: tx(name),
        inputs: inputs.iter().map(|name| state(name)).collect(),
        references: references.iter().map(|name| state(name)).collect(),
        requester: them().name,
        request_signature: vec![1, 2, 3],
        within_time_window: true,
    }
}

fn request(entries: Vec<NotaryEntry>) -> UnitOfWork {
    // One answer per result; its number tells which kind.
    let respond = |results: &[NotaryResult]| {
        let number = |result: &NotaryResult| match result {
            NotaryResult::Committed => 1,
            NotaryResult::Conflict(_) => 2,
            NotaryResult::OutsideTimeWindow => 3,
        };
        let envelopes = results
            .iter()
            .map(|result| envelope(&them(), number(result)));
        Ok(envelopes.collect())
    };
    UnitOfWork {
        notary: Some(NotaryCommit {
            entries,
            respond: Arc::new(respond),
        }),
        ..UnitOfWork::default()
    }
}

fn conflict(with: &str, by: &str, as_reference: bool) -> NotaryResult {
    NotaryResult::Conflict(
        [(
            state(with),
            ConsumingTx {
                tx: tx(by),
                as_reference,
            },
        )]
        .into(),
    )
}

#[rstest]
#[case(Engine::Sqlite)]
#[case(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn states_are_spent_once_and_answers_are_repeated(#[case] engine: Engine) {
    let Some(db) = database(engine).await else {
        return;
    };
    let node = node(&db).await;
    let results = node
        .commit(request(vec![entry("a", &["1", "2"], &["r"])]))
        .await;
    assert_eq!(results.notary, [NotaryResult::Committed]);
    // Within a batch the order decides, and what a refused one wanted stays free.
    let late = NotaryEntry {
        within_time_window: false,
        ..entry("late", &["9"], &[])
    };
    let batch = vec![
        entry("b", &["3"], &[]),
        entry("c", &["3", "4"], &[]),
        entry("d", &["4"], &[]),
        entry("e", &["5"], &["4"]),
        late,
        entry("f", &["9"], &["r"]),
        entry("b", &["3"], &[]),
        entry("twice", &["7", "7"], &[]),
    ];
    let committed = node.commit(request(batch)).await;
    let wanted = [
        NotaryResult::Committed,
        conflict("3", "b", false),
        NotaryResult::Committed,
        conflict("4", "d", true),
        NotaryResult::OutsideTimeWindow,
        NotaryResult::Committed,
        NotaryResult::Committed,
        NotaryResult::Committed,
    ];
    assert_eq!(committed.notary, wanted);
    // The answers are queued by the same commit, in order.
    let answers: Vec<u64> = committed
        .outgoing
        .iter()
        .map(|queued| {
            quorate_flow::Envelope::decode(&queued.envelope)
                .unwrap()
                .sequence
        })
        .collect();
    assert_eq!(answers, [1, 2, 1, 2, 3, 1, 1, 1]);
    assert_eq!(
        node.store
            .outbox(&them().name, 0, 100)
            .await
            .unwrap()
            .messages
            .len(),
        9
    );
    // The reference is spent meanwhile, the window is over: who was confirmed is confirmed again.
    node.commit(request(vec![entry("g", &["r"], &[])])).await;
    let again = NotaryEntry {
        within_time_window: false,
        ..entry("a", &["1", "2"], &["r"])
    };
    assert_eq!(
        node.commit(request(vec![again])).await.notary,
        [NotaryResult::Committed]
    );
    assert_eq!(
        node.commit(request(vec![entry("h", &[], &["r"])]))
            .await
            .notary,
        [conflict("r", "g", true)]
    );
}

#[rstest]
#[case(Engine::Sqlite)]
#[case(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn of_many_who_want_the_same_state_one_gets_it(#[case] engine: Engine) {
    let Some(db) = database(engine).await else {
        return;
    };
    let node = node(&db).await;
    let mut waiting = Vec::new();
    for number in 0..64u32 {
        let writer = node.writer.clone();
        waiting.push(tokio::spawn(async move {
            let inputs = [format!("shared {}", number % 8), format!("own {number}")];
            let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
            let committed = writer
                .commit(request(vec![entry(&format!("tx {number}"), &inputs, &[])]))
                .await
                .unwrap();
            committed.notary[0] == NotaryResult::Committed
        }));
    }
    let mut winners = 0;
    for result in waiting {
        winners += u32::from(result.await.unwrap());
    }
    assert_eq!(winners, 8);
}

#[rstest]
#[case(Engine::Sqlite)]
#[case(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn what_is_spent_can_be_read_out(#[case] engine: Engine) {
    let Some(db) = database(engine).await else {
        return;
    };
    let node = node(&db).await;
    let entries = vec![entry("one", &["a", "b"], &["r"]), entry("two", &["c"], &[])];
    node.commit(request(entries)).await;
    let all = node.store.spent_states(None, 100).await.unwrap();
    let mut wanted = vec![
        (state("a"), tx("one")),
        (state("b"), tx("one")),
        (state("c"), tx("two")),
    ];
    wanted.sort();
    let found: Vec<_> = all
        .iter()
        .map(|spent| (spent.state, spent.consumed_by))
        .collect();
    assert_eq!(found, wanted, "what was only read is not spent");
    assert!(
        all.iter()
            .all(|spent| spent.request.as_ref().unwrap().0 == them().name)
    );
    // Page by page the same.
    let mut paged = Vec::new();
    let mut after = None;
    while let [one] = &node.store.spent_states(after, 1).await.unwrap()[..] {
        after = Some(one.state);
        paged.push(one.clone());
    }
    assert_eq!(paged, all);
    assert_eq!(
        node.store
            .spent_state(&state("b"))
            .await
            .unwrap()
            .as_ref()
            .map(|s| s.consumed_by),
        Some(tx("one"))
    );
    assert_eq!(node.store.spent_state(&state("r")).await.unwrap(), None);
}
