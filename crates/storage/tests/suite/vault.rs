//! Transactions in whatever order, the vault they leave, the stream of its updates, and questions to it.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use quorate_flow::{Finality, LockTarget, Recording, StatesToRecord};
use quorate_ledger::schema::ColumnValue;
use quorate_ledger::vault::{
    Cmp, Criteria, Cursor, PageRequest, SoftLockFilter, Sort, SortKey, StateStatus, VaultQuery,
    VaultState,
};
use quorate_ledger::{SignedTransaction, StateRef, TransactionState, UniqueId, sign_transaction};
use quorate_storage::{Engine, Error, LockRequest, UnitOfWork};
use rstest::rstest;

use crate::support::*;

async fn unconsumed(node: &Node) -> BTreeSet<StateRef> {
    let page = node
        .store
        .vault_query(&VaultQuery::default())
        .await
        .unwrap();
    assert_eq!(page.total as usize, page.states.len());
    page.states
        .iter()
        .map(|state| state.state.reference)
        .collect()
}

#[rstest]
#[case(Engine::Sqlite)]
#[case(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_touches_the_vault_when_it_is_final(#[case] engine: Engine) {
    let Some(db) = database(engine).await else {
        return;
    };
    let node = node(&db).await;
    let issue = transaction(&[], [coin(5, "USD", &us()), coin(7, "USD", &them())]);
    node.record(&issue, StatesToRecord::OnlyRelevant).await;
    let spend = transaction(
        &[output(&issue, 0)],
        [coin(4, "USD", &them()), coin(1, "USD", &us())],
    );
    let ours = spend
        .with_signatures([sign_transaction(&key("PartyA"), &spend.id())])
        .unwrap();
    let theirs = spend
        .with_signatures([sign_transaction(&key("Notary"), &spend.id())])
        .unwrap();

    let in_flight = recording(&ours, StatesToRecord::OnlyRelevant, Finality::InFlight);
    assert_eq!(node.commit(in_flight).await.vault_updates, []);
    assert_eq!(unconsumed(&node).await, [output(&issue, 0)].into());
    assert!(!node.store.transactions(&[spend.id()]).await.unwrap()[&spend.id()].is_final);
    assert_eq!(
        node.store.states(&[output(&spend, 0)]).await.unwrap(),
        BTreeMap::new()
    );

    let updates = node
        .record(&theirs, StatesToRecord::OnlyRelevant)
        .await
        .vault_updates;
    let [update] = &updates[..] else {
        panic!("{updates:?}")
    };
    assert_eq!(update.tx, spend.id());
    assert_eq!(
        update
            .produced
            .iter()
            .map(|state| state.reference)
            .collect::<Vec<_>>(),
        [output(&spend, 1)]
    );
    assert_eq!(
        update
            .consumed
            .iter()
            .map(|state| state.reference)
            .collect::<Vec<_>>(),
        [output(&issue, 0)]
    );
    assert_eq!(unconsumed(&node).await, [output(&spend, 1)].into());
    // Both recordings' signatures are kept.
    let stored = &node.store.transactions(&[spend.id()]).await.unwrap()[&spend.id()];
    assert!(stored.is_final);
    assert_eq!(stored.transaction.signatures().len(), 2);
    assert_eq!(
        node.store.states(&[output(&spend, 0)]).await.unwrap().len(),
        1
    );

    // Again, and once more as in flight: nothing changes.
    assert_eq!(
        node.record(&theirs, StatesToRecord::OnlyRelevant)
            .await
            .vault_updates,
        []
    );
    node.commit(recording(
        &ours,
        StatesToRecord::OnlyRelevant,
        Finality::InFlight,
    ))
    .await;
    assert!(node.store.transactions(&[spend.id()]).await.unwrap()[&spend.id()].is_final);
    // An observer wants the rest too, and gets what it has not.
    let updates = node
        .record(&spend, StatesToRecord::AllVisible)
        .await
        .vault_updates;
    assert_eq!(
        updates[0]
            .produced
            .iter()
            .map(|s| s.reference)
            .collect::<Vec<_>>(),
        [output(&spend, 0)]
    );
    assert_eq!(
        unconsumed(&node).await,
        [output(&spend, 0), output(&spend, 1)].into()
    );
    assert_eq!(
        node.store
            .vault_updates_since(Cursor::START, 100)
            .await
            .unwrap()
            .len(),
        3
    );
}

/// What an application's mapping makes of a state is in the hands of whoever made the state.
#[rstest]
#[case(Engine::Sqlite)]
#[case(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_does_not_fit_its_table_is_in_the_vault_all_the_same(#[case] engine: Engine) {
    let Some(db) = database(engine).await else {
        return;
    };
    let node = node(&db).await;
    // An indexed text too long for an index of PostgreSQL, one too long for a column, one that no database can hold.
    let noise: String = (0..10_000u32)
        .map(|n| char::from_u32(0x4e00 + n.wrapping_mul(7_919) % 20_000).unwrap())
        .collect();
    let currencies = [
        noise[..4_200].to_owned(),
        noise.repeat(3),
        "U\0D".to_owned(),
        "USD".to_owned(),
    ];
    let outputs = currencies.iter().map(|currency| coin(5, currency, &us()));
    let issue = transaction(&[], outputs);
    let updates = node.record(&issue, StatesToRecord::OnlyRelevant).await;
    assert_eq!(updates.vault_updates[0].produced.len(), 4);
    let all: BTreeSet<StateRef> = (0..4).map(|index| output(&issue, index)).collect();
    assert_eq!(unconsumed(&node).await, all);
    let query = VaultQuery {
        criteria: Criteria::column("coin", "quantity", Cmp::Equal, 5),
        ..VaultQuery::default()
    };
    let found = node.store.vault_query(&query).await.unwrap();
    let found: Vec<StateRef> = found
        .states
        .iter()
        .map(|state| state.state.reference)
        .collect();
    assert_eq!(found, [output(&issue, 3)]);
    // They can be consumed like any other.
    let inputs: Vec<StateRef> = all.into_iter().collect();
    node.record(&transaction(&inputs, []), StatesToRecord::OnlyRelevant)
        .await;
    assert!(unconsumed(&node).await.is_empty());
}

#[rstest]
#[case(Engine::Sqlite)]
#[case(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn history_becomes_visible_later_and_is_found_consumed(#[case] engine: Engine) {
    let Some(db) = database(engine).await else {
        return;
    };
    let node = node(&db).await;
    let issue = transaction(&[], [coin(5, "USD", &us())]);
    let spend = transaction(&[output(&issue, 0)], [coin(5, "USD", &us())]);
    // As part of somebody's history, both without states; then each for its own sake.
    let unit = UnitOfWork {
        recordings: [&issue, &spend]
            .map(|t| Recording {
                transaction: t.clone(),
                states: StatesToRecord::None,
                finality: Finality::Final,
            })
            .to_vec(),
        ..UnitOfWork::default()
    };
    assert_eq!(node.commit(unit).await.vault_updates, []);
    let updates = node
        .record(&issue, StatesToRecord::OnlyRelevant)
        .await
        .vault_updates;
    let wanted = [(issue.id(), 1, 0), (spend.id(), 0, 1)];
    let summary = |updates: &[quorate_ledger::vault::VaultUpdate]| {
        updates
            .iter()
            .map(|u| (u.tx, u.produced.len(), u.consumed.len()))
            .collect::<Vec<_>>()
    };
    assert_eq!(summary(&updates), wanted);
    assert_eq!(unconsumed(&node).await, BTreeSet::new());
    node.record(&spend, StatesToRecord::OnlyRelevant).await;
    assert_eq!(unconsumed(&node).await, [output(&spend, 0)].into());
    let stream = node
        .store
        .vault_updates_since(Cursor::START, 100)
        .await
        .unwrap();
    assert_eq!(summary(&stream), [wanted[0], wanted[1], (spend.id(), 1, 0)]);
    assert_eq!(stream[..2], updates);
}

/// A web of transactions: each consumes one or two states of earlier ones.
fn web(size: usize, seed: u64) -> Vec<SignedTransaction> {
    let mut random = seed;
    let mut next = |bound: usize| {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % bound
    };
    let mut free: Vec<StateRef> = Vec::new();
    let mut all = Vec::new();
    for _ in 0..size {
        let mut inputs = Vec::new();
        for _ in 0..next(3) {
            if !free.is_empty() {
                inputs.push(free.swap_remove(next(free.len())));
            }
        }
        let outputs = (0..1 + next(3)).map(|i| {
            coin(
                10 + i as i64,
                "USD",
                &if next(4) == 0 { them() } else { us() },
            )
        });
        let outputs: Vec<_> = outputs.collect();
        let made = transaction(&inputs, outputs.clone());
        free.extend((0..outputs.len() as u32).map(|index| output(&made, index)));
        all.push(made);
    }
    all
}

#[rstest]
#[case(Engine::Sqlite)]
#[case(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn any_order_of_recording_ends_in_the_same_vault(#[case] engine: Engine) {
    for seed in 0..6u64 {
        let Some(db) = database(engine).await else {
            return;
        };
        let node = node(&db).await;
        let web = web(40, seed);
        let spent: BTreeSet<StateRef> = web
            .iter()
            .flat_map(|t| t.wire().inputs().to_vec())
            .collect();
        let ours = |state: &TransactionState| state.participants == [public_key()];
        let expected: BTreeSet<StateRef> = web
            .iter()
            .flat_map(|t| t.wire().outputs_with_refs())
            .filter(|state| ours(&state.state) && !spent.contains(&state.reference))
            .map(|state| state.reference)
            .collect();
        // Shuffled by the ids, which are as good as random; recorded by many at once, some of them twice.
        let mut order: Vec<&SignedTransaction> = web.iter().chain(web.iter().step_by(5)).collect();
        order.sort_by_key(|t| t.id());
        let mut waiting = Vec::new();
        for chunk in order.chunks(3) {
            let make = |t: &&SignedTransaction| Recording {
                transaction: (*t).clone(),
                states: StatesToRecord::OnlyRelevant,
                finality: Finality::Final,
            };
            let unit = UnitOfWork {
                recordings: chunk.iter().map(make).collect(),
                ..UnitOfWork::default()
            };
            let writer = node.writer.clone();
            waiting.push(tokio::spawn(async move {
                writer.commit(unit).await.unwrap().vault_updates
            }));
        }
        let mut told = Vec::new();
        for result in waiting {
            told.extend(result.await.unwrap());
        }
        assert_eq!(unconsumed(&node).await, expected, "seed {seed}");

        // The stream, read in small pages, tells the same story as the answers did, in an order that makes sense.
        let (mut stream, mut cursor) = (Vec::new(), Cursor::START);
        loop {
            let page = node.store.vault_updates_since(cursor, 7).await.unwrap();
            let Some(last) = page.last() else { break };
            cursor = last.cursor;
            stream.extend(page);
        }
        assert!(cursor <= node.store.vault_cursor().await.unwrap());
        let mut held = BTreeSet::new();
        for update in &stream {
            for state in &update.produced {
                assert!(held.insert(state.reference), "seed {seed}: produced twice");
            }
            for state in &update.consumed {
                assert!(
                    held.remove(&state.reference),
                    "seed {seed}: consumed before it was produced"
                );
            }
        }
        assert_eq!(held, expected, "seed {seed}");
        told.sort_by_key(|update| update.cursor);
        assert_eq!(
            told.iter().map(|u| u.cursor).collect::<Vec<_>>(),
            stream.iter().map(|u| u.cursor).collect::<Vec<_>>()
        );
    }
}

/// What the database should answer, computed by looking at everything.
struct Model {
    states: Vec<VaultState>,
}

impl Model {
    fn row(state: &VaultState) -> Option<(i64, String, Option<Vec<u8>>)> {
        if state.state.state.state_type != "coin.Coin" {
            return None;
        }
        let row = (coins().map)(&state.state.state)?;
        let [
            ColumnValue::BigInt(quantity),
            ColumnValue::Text(currency),
            memo,
        ] = &row[..]
        else {
            return None;
        };
        let memo = if let ColumnValue::Bytes(bytes) = memo {
            Some(bytes.clone())
        } else {
            None
        };
        Some((*quantity, currency.clone(), memo))
    }

    fn value(state: &VaultState, column: &str) -> Option<ColumnValue> {
        let (quantity, currency, memo) = Self::row(state)?;
        Some(match column {
            "quantity" => quantity.into(),
            "currency" => currency.into(),
            _ => memo.into(),
        })
    }

    fn meets(state: &VaultState, criteria: &Criteria) -> bool {
        match criteria {
            Criteria::All | Criteria::Status(StateStatus::All) => true,
            Criteria::Status(status) => state.status == *status,
            Criteria::StateTypes(types) => types.contains(&state.state.state.state_type),
            Criteria::Refs(refs) => refs.contains(&state.state.reference),
            Criteria::Notaries(names) => names.contains(&state.state.state.notary.name),
            Criteria::RecordedBetween { from, until } => {
                from.is_none_or(|from| state.recorded_at >= from)
                    && until.is_none_or(|until| state.recorded_at < until)
            }
            Criteria::SoftLocked(SoftLockFilter::Unlocked) => state.locked_by.is_none(),
            Criteria::SoftLocked(SoftLockFilter::Locked) => state.locked_by.is_some(),
            Criteria::SoftLocked(SoftLockFilter::LockedBy(holder)) => {
                state.locked_by == Some(*holder)
            }
            Criteria::SoftLocked(SoftLockFilter::UnlockedOr(holder)) => {
                state.locked_by.is_none_or(|by| by == *holder)
            }
            Criteria::Participants(keys) => state
                .state
                .state
                .participants
                .iter()
                .any(|key| keys.contains(key)),
            Criteria::Column {
                column, op, value, ..
            } => {
                let Some(found) = Self::value(state, column) else {
                    return false;
                };
                let (null, wants_null) = (found == ColumnValue::Null, *value == ColumnValue::Null);
                match op {
                    _ if null != wants_null && (null || *op == Cmp::Equal) => false,
                    Cmp::NotEqual if wants_null => !null,
                    Cmp::Equal => found == *value,
                    Cmp::NotEqual => found != *value,
                    Cmp::Less => found < *value,
                    Cmp::LessOrEqual => found <= *value,
                    Cmp::Greater => found > *value,
                    Cmp::GreaterOrEqual => found >= *value,
                    Cmp::StartsWith => match (&found, value) {
                        (ColumnValue::Text(found), ColumnValue::Text(value)) => {
                            found.starts_with(value)
                        }
                        _ => false,
                    },
                }
            }
            Criteria::And(parts) => parts.iter().all(|part| Self::meets(state, part)),
            Criteria::Or(parts) => parts.iter().any(|part| Self::meets(state, part)),
            Criteria::Not(part) => !Self::meets(state, part),
        }
    }

    fn answer(&self, query: &VaultQuery) -> (u64, Vec<StateRef>) {
        // The states are in the order of recording, and sorting is stable.
        let mut found: Vec<&VaultState> = self
            .states
            .iter()
            .filter(|state| Self::meets(state, &query.criteria))
            .collect();
        for sort in query.sort.iter().rev() {
            let turn = |order: std::cmp::Ordering| {
                if sort.descending {
                    order.reverse()
                } else {
                    order
                }
            };
            found.sort_by(|a, b| {
                let last = |a: Option<ColumnValue>, b: Option<ColumnValue>| {
                    let present = |v: Option<ColumnValue>| v.filter(|v| *v != ColumnValue::Null);
                    match (present(a), present(b)) {
                        (Some(a), Some(b)) => turn(a.cmp(&b)),
                        (a, b) => b.is_some().cmp(&a.is_some()),
                    }
                };
                match &sort.by {
                    SortKey::Recorded => turn(a.recorded_at.cmp(&b.recorded_at)),
                    SortKey::StateType => {
                        turn(a.state.state.state_type.cmp(&b.state.state.state_type))
                    }
                    SortKey::Reference => turn(a.state.reference.cmp(&b.state.reference)),
                    SortKey::ConsumedAt => {
                        let micros = |s: &VaultState| {
                            s.consumed_at.map(|at| ColumnValue::BigInt(at.as_micros()))
                        };
                        last(micros(a), micros(b))
                    }
                    SortKey::Column { column, .. } => {
                        last(Self::value(a, column), Self::value(b, column))
                    }
                }
            });
        }
        let skip = (query.page.size * (query.page.number - 1)) as usize;
        let page = found.iter().skip(skip).take(query.page.size as usize);
        (
            found.len() as u64,
            page.map(|state| state.state.reference).collect(),
        )
    }
}

fn criteria(states: Vec<VaultState>) -> impl Strategy<Value = Criteria> {
    let refs: Vec<StateRef> = states.iter().map(|state| state.state.reference).collect();
    let times: Vec<_> = states.iter().map(|state| state.recorded_at).collect();
    let holder = UniqueId::from_bytes(*flow(1).as_bytes());
    let op = prop::sample::select(vec![
        Cmp::Equal,
        Cmp::NotEqual,
        Cmp::Less,
        Cmp::LessOrEqual,
        Cmp::Greater,
        Cmp::GreaterOrEqual,
    ]);
    let column = |column: &'static str, op: Cmp, value: ColumnValue| {
        Criteria::column("coin", column, op, value)
    };
    let leaf = prop_oneof![
        Just(Criteria::All),
        prop::sample::select(vec![
            StateStatus::Unconsumed,
            StateStatus::Consumed,
            StateStatus::All
        ])
        .prop_map(Criteria::Status),
        prop::sample::subsequence(
            vec!["coin.Coin".to_owned(), "coin.Note".into(), "x".into()],
            0..3
        )
        .prop_map(Criteria::StateTypes),
        prop::sample::subsequence(refs, 0..20).prop_map(Criteria::Refs),
        prop::sample::subsequence(vec![notary().name, us().name], 0..2)
            .prop_map(Criteria::Notaries),
        (
            prop::option::of(prop::sample::select(times.clone())),
            prop::option::of(prop::sample::select(times))
        )
            .prop_map(|(from, until)| Criteria::RecordedBetween { from, until }),
        prop::sample::select(vec![
            SoftLockFilter::Unlocked,
            SoftLockFilter::Locked,
            SoftLockFilter::LockedBy(holder),
            SoftLockFilter::UnlockedOr(holder),
            SoftLockFilter::LockedBy(UniqueId::from_bytes([9; 16])),
        ])
        .prop_map(Criteria::SoftLocked),
        prop::sample::subsequence(
            vec![us().owning_key, them().owning_key, notary().owning_key],
            0..3
        )
        .prop_map(Criteria::Participants),
        (op.clone(), 0i64..30).prop_map(move |(op, value)| column("quantity", op, value.into())),
        (
            op.clone(),
            prop::sample::select(vec!["EUR", "USD", "US", "é", "'; DROP TABLE flows --"])
        )
            .prop_map(move |(op, value)| column("currency", op, value.into())),
        prop::sample::select(vec!["U", "US", "", "é", "%"]).prop_map(move |value| column(
            "currency",
            Cmp::StartsWith,
            value.into()
        )),
        (op, prop::collection::vec(0u8..30, 0..2)).prop_map(move |(op, value)| column(
            "memo",
            op,
            value.into()
        )),
        prop::sample::select(vec![Cmp::Equal, Cmp::NotEqual]).prop_map(move |op| column(
            "memo",
            op,
            ColumnValue::Null
        )),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Criteria::And),
            prop::collection::vec(inner.clone(), 0..3).prop_map(Criteria::Or),
            inner.prop_map(|part| Criteria::Not(Box::new(part))),
        ]
    })
}

fn queries(states: Vec<VaultState>) -> impl Strategy<Value = VaultQuery> {
    let column = |column: &str| SortKey::Column {
        schema: "coin".into(),
        column: column.into(),
    };
    let keys = vec![
        SortKey::Recorded,
        SortKey::ConsumedAt,
        SortKey::StateType,
        SortKey::Reference,
        column("quantity"),
        column("currency"),
        column("memo"),
    ];
    let sort = (prop::sample::select(keys), any::<bool>())
        .prop_map(|(by, descending)| Sort { by, descending });
    let page = (1u32..4, 1u32..40).prop_map(|(number, size)| PageRequest { number, size });
    (criteria(states), prop::collection::vec(sort, 0..3), page).prop_map(
        |(criteria, sort, page)| VaultQuery {
            criteria,
            sort,
            page,
        },
    )
}

#[rstest]
#[case(Engine::Sqlite)]
#[case(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn queries_answer_as_a_look_at_everything_would(#[case] engine: Engine) {
    let Some(db) = database(engine).await else {
        return;
    };
    let node = node(&db).await;
    let mut made = Vec::new();
    for number in 0..12i64 {
        let currency = ["USD", "EUR", "é🪙"][number as usize % 3];
        let note = TransactionState {
            state_type: "coin.Note".into(),
            ..coin(number, currency, &us())
        };
        let outputs = [
            coin(number * 2, currency, &us()),
            coin(number + 3, currency, &them()),
            note,
        ];
        let t = transaction(&[], outputs);
        node.record(&t, StatesToRecord::AllVisible).await;
        made.push(t);
    }
    for t in made.iter().step_by(3) {
        node.record(
            &transaction(&[output(t, 0), output(t, 2)], []),
            StatesToRecord::OnlyRelevant,
        )
        .await;
    }
    for number in [1, 2] {
        node.start_flow(flow(number)).await;
        let request = LockRequest {
            flow: flow(number),
            seq: 0,
            criteria: Criteria::of_type("coin.Coin"),
            target: LockTarget::Count(4),
            max_states: 10,
        };
        node.writer.lock_states(request).await.unwrap();
    }
    let everything = VaultQuery {
        page: PageRequest {
            number: 1,
            size: 1_000,
        },
        ..VaultQuery::new(Criteria::All)
    };
    let states = node.store.vault_query(&everything).await.unwrap().states;
    assert_eq!(states.len(), 36);
    assert_eq!(
        states
            .iter()
            .filter(|state| state.locked_by.is_some())
            .count(),
        8
    );
    assert_eq!(
        states
            .iter()
            .filter(|state| state.status == StateStatus::Consumed)
            .count(),
        8
    );

    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let strategy = queries(states.clone());
    let model = Model { states };
    for _ in 0..250 {
        let query = strategy.new_tree(&mut runner).unwrap().current();
        let page = node
            .store
            .vault_query(&query)
            .await
            .unwrap_or_else(|error| panic!("{query:?}: {error:?}"));
        let found: Vec<StateRef> = page
            .states
            .iter()
            .map(|state| state.state.reference)
            .collect();
        assert_eq!((page.total, found), model.answer(&query), "{query:?}");
    }
}

#[rstest]
#[case(Engine::Sqlite)]
#[case(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn questions_that_make_no_sense_are_refused(#[case] engine: Engine) {
    let Some(db) = database(engine).await else {
        return;
    };
    let store = db.store().await;
    let bad = [
        Criteria::column("coin", "nothing", Cmp::Equal, 1i64),
        Criteria::column("nothing", "quantity", Cmp::Equal, 1i64),
        Criteria::column("coin", "quantity", Cmp::Equal, "text"),
        Criteria::column("coin", "quantity\" OR 1=1 --", Cmp::Equal, 1i64),
        Criteria::Or(
            (0..40)
                .map(|n| {
                    Criteria::Refs(vec![
                        StateRef::new(
                            transaction(&[], [coin(1, "USD", &us())]).id(),
                            n
                        );
                        900
                    ])
                })
                .collect(),
        ),
    ];
    for criteria in bad {
        let error = store
            .vault_query(&VaultQuery::new(criteria))
            .await
            .unwrap_err();
        assert!(matches!(error, Error::Query(_)), "{error:?}");
    }
    let sort = vec![Sort {
        by: SortKey::Column {
            schema: "coin".into(),
            column: "x".into(),
        },
        descending: false,
    }];
    let error = store
        .vault_query(&VaultQuery {
            sort,
            ..VaultQuery::default()
        })
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Query(_)), "{error:?}");
}
