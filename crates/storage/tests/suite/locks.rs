//! Soft locks: a coin goes to one flow, and the same request gets the same coins.

use std::collections::BTreeSet;

use quorate_flow::{LockTarget, StatesToRecord};
use quorate_ledger::vault::{Criteria, SoftLockFilter, VaultQuery};
use quorate_ledger::{StateAndRef, StateRef};
use quorate_storage::{CommitError, Engine, LockError, LockRequest, Refusal, UnitOfWork};
use rstest::rstest;

use crate::support::*;

fn sum(at_least: i64) -> LockTarget {
    LockTarget::Sum {
        schema: "coin".into(),
        column: "quantity".into(),
        at_least,
    }
}

fn request(number: u64, seq: u32, target: LockTarget) -> LockRequest {
    LockRequest {
        flow: flow(number),
        seq,
        criteria: dollars(),
        target,
        max_states: 10,
    }
}

fn amounts(states: &[StateAndRef]) -> Vec<i64> {
    states.iter().map(|state| amount(&state.state)).collect()
}

#[rstest]
#[case(Engine::Sqlite)]
#[case(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn coins_are_locked_until_their_flow_ends(#[case] engine: Engine) {
    let Some(db) = database(engine).await else {
        return;
    };
    let node = node(&db).await;
    node.issue("USD", &[5, 3, 4]).await;
    node.issue("EUR", &[100]).await;
    for number in 1..=3 {
        node.start_flow(flow(number)).await;
    }
    let first = node
        .writer
        .lock_states(request(1, 0, sum(6)))
        .await
        .unwrap();
    assert_eq!(amounts(&first), [5, 3]);
    // The same question, as after a crash: the same coins. Another one: other coins.
    assert_eq!(
        node.writer
            .lock_states(request(1, 0, sum(6)))
            .await
            .unwrap(),
        first
    );
    let error = node
        .writer
        .lock_states(request(2, 0, sum(6)))
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            LockError::Insufficient {
                available: 4,
                wanted: 6
            }
        ),
        "{error}"
    );
    let error = node
        .writer
        .lock_states(request(1, 1, sum(6)))
        .await
        .unwrap_err();
    assert!(
        matches!(error, LockError::Insufficient { available: 4, .. }),
        "{error}"
    );

    node.commit(UnitOfWork::step(end(flow(1), "1"))).await;
    assert_eq!(
        amounts(
            &node
                .writer
                .lock_states(request(2, 0, sum(6)))
                .await
                .unwrap()
        ),
        [5, 3]
    );
    let error = node
        .writer
        .lock_states(request(1, 2, sum(1)))
        .await
        .unwrap_err();
    assert!(matches!(error, LockError::FlowEnded(_)), "{error}");
    node.commit(UnitOfWork {
        unlocked: vec![flow(2)],
        ..UnitOfWork::default()
    })
    .await;
    assert_eq!(
        amounts(
            &node
                .writer
                .lock_states(request(3, 0, LockTarget::Count(3)))
                .await
                .unwrap()
        ),
        [5, 3, 4]
    );
    let locked = Criteria::SoftLocked(SoftLockFilter::LockedBy((*flow(3).as_bytes()).into()));
    assert_eq!(
        node.store
            .vault_query(&VaultQuery::new(locked))
            .await
            .unwrap()
            .total,
        3
    );
}

#[rstest]
#[case(Engine::Sqlite)]
#[case(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn certain_states_are_locked_all_or_none(#[case] engine: Engine) {
    let Some(db) = database(engine).await else {
        return;
    };
    let node = node(&db).await;
    let issue = node.issue("USD", &[1, 2, 3]).await;
    node.start_flow(flow(1)).await;
    node.start_flow(flow(2)).await;
    let these = |indexes: &[u32]| {
        LockTarget::References(indexes.iter().map(|i| output(&issue, *i)).collect())
    };
    let wanted = node
        .writer
        .lock_states(request(1, 0, these(&[2, 0])))
        .await
        .unwrap();
    assert_eq!(amounts(&wanted), [1, 3]);
    assert_eq!(
        node.writer
            .lock_states(request(1, 0, these(&[2, 0])))
            .await
            .unwrap(),
        wanted
    );
    let error = node
        .writer
        .lock_states(request(2, 0, these(&[1, 2])))
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            LockError::Insufficient {
                available: 1,
                wanted: 2
            }
        ),
        "{error}"
    );
    // A flow may name what it has already; what is consumed is gone for everybody.
    assert_eq!(
        amounts(
            &node
                .writer
                .lock_states(request(1, 1, these(&[0, 1])))
                .await
                .unwrap()
        ),
        [1, 2]
    );
    node.record(
        &transaction(&[output(&issue, 0)], []),
        StatesToRecord::OnlyRelevant,
    )
    .await;
    let error = node
        .writer
        .lock_states(request(1, 2, these(&[0])))
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            LockError::Insufficient {
                available: 0,
                wanted: 1
            }
        ),
        "{error}"
    );
}

#[rstest]
#[case(Engine::Sqlite)]
#[case(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn few_large_coins_when_many_small_ones_are_too_many(#[case] engine: Engine) {
    let Some(db) = database(engine).await else {
        return;
    };
    let node = node(&db).await;
    let mut coins = vec![1; 60];
    coins.extend([50, 2, 40]);
    node.issue("USD", &coins).await;
    node.start_flow(flow(1)).await;
    let few = |at_least| LockRequest {
        max_states: 3,
        ..request(1, 0, sum(at_least))
    };
    let error = node.writer.lock_states(few(93)).await.unwrap_err();
    assert!(
        matches!(
            error,
            LockError::Insufficient {
                available: 152,
                wanted: 93
            }
        ),
        "{error}"
    );
    assert_eq!(
        amounts(&node.writer.lock_states(few(92)).await.unwrap()),
        [50, 2, 40]
    );
    let text = LockTarget::Sum {
        schema: "coin".into(),
        column: "currency".into(),
        at_least: 1,
    };
    let error = node
        .writer
        .lock_states(request(1, 1, text))
        .await
        .unwrap_err();
    let LockError::Commit(CommitError::Refused(refusal)) = error else {
        panic!("{error}")
    };
    assert!(matches!(*refusal, Refusal::Query(_)));
}

#[rstest]
#[case(Engine::Sqlite)]
#[case(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn no_coin_goes_to_two_flows(#[case] engine: Engine) {
    let Some(db) = database(engine).await else {
        return;
    };
    let node = node(&db).await;
    for _ in 0..10 {
        node.issue("USD", &[1; 30]).await;
    }
    let steps = (0..200).map(|number| start(flow(number), None)).collect();
    node.commit(UnitOfWork {
        steps,
        ..UnitOfWork::default()
    })
    .await;
    let mut waiting = Vec::new();
    for number in 0..200u64 {
        let writer = node.writer.clone();
        waiting.push(tokio::spawn(async move {
            // Some ask twice at the same time.
            let again = number % 4 == 0;
            let twin = async {
                if again {
                    Some(writer.lock_states(request(number, 0, sum(2))).await)
                } else {
                    None
                }
            };
            let (one, two) = tokio::join!(writer.lock_states(request(number, 0, sum(2))), twin);
            if let (Ok(one), Some(Ok(two))) = (&one, &two) {
                assert_eq!(one, two);
            }
            one
        }));
    }
    let (mut taken, mut served) = (BTreeSet::<StateRef>::new(), 0);
    for result in waiting {
        match result.await.unwrap() {
            Ok(states) => {
                served += 1;
                assert_eq!(states.len(), 2);
                for state in states {
                    assert!(
                        taken.insert(state.reference),
                        "{} was given twice",
                        state.reference
                    );
                }
            }
            Err(LockError::Insufficient { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!((served, taken.len()), (150, 300));
}
