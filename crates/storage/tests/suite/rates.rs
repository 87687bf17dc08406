//! How fast it goes. Measured, not asserted: `cargo test --release -p quorate-storage -- --ignored rates --nocapture`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_flow::{Finality, LockTarget, Recording, StatesToRecord};
use quorate_ledger::StateRef;
use quorate_storage::{
    Engine, LockRequest, NotaryCommit, NotaryEntry, NotaryResult, Options, Store, UnitOfWork,
    migrate,
};
use quorate_testkit::postgres::{Postgres, PostgresOptions};
use rstest::rstest;

use crate::support::*;

const CLIENTS: u64 = 64;
const TIME: Duration = Duration::from_secs(4);

async fn measure<F>(what: &str, work: impl Fn(u64) -> F)
where
    F: Future<Output = u64> + Send + 'static,
{
    let started = Instant::now();
    let tasks: Vec<_> = (0..CLIENTS)
        .map(|client| tokio::spawn(work(client)))
        .collect();
    let mut done = 0;
    for task in tasks {
        done += task.await.unwrap();
    }
    println!(
        "{what}: {:.0}/s",
        done as f64 / started.elapsed().as_secs_f64()
    );
}

#[rstest]
#[case(Engine::Sqlite)]
#[case(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn rates(#[case] engine: Engine) {
    let directory = tempfile::tempdir_in(".").unwrap();
    let server =
        (engine == Engine::Postgres).then(|| Postgres::start(&PostgresOptions::default()).unwrap());
    let options: Options = match &server {
        Some(server) => server.create_database("node").unwrap().parse().unwrap(),
        None => format!("sqlite:{}/node.db", directory.path().display())
            .parse()
            .unwrap(),
    };
    let store = Store::connect(options, vec![coins()]).await.unwrap();
    migrate::execute(&store).await.unwrap();
    let fence = take(&store, "a").await;
    let node = Arc::new(with_fence(store, fence));
    println!("{engine:?}, {CLIENTS} at once:");

    let n = node.clone();
    measure(
        "steps of flows (one journal entry, one message)",
        move |client| {
            let node = n.clone();
            async move {
                let (started, id, mut done) = (Instant::now(), flow(client), 0);
                node.start_flow(id).await;
                while started.elapsed() < TIME {
                    done += 1;
                    let mut unit = UnitOfWork::step(step(id));
                    unit.steps[0].entries = vec![(done as u32, vec![7; 300])];
                    unit.steps[0].outgoing = vec![envelope(&them(), done)];
                    node.commit(unit).await;
                }
                done
            }
        },
    )
    .await;

    let n = node.clone();
    measure(
        "transactions recorded (one output that is ours)",
        move |_| {
            let node = n.clone();
            async move {
                let (started, mut done) = (Instant::now(), 0);
                while started.elapsed() < TIME {
                    done += 1;
                    node.record(
                        &transaction(&[], [coin(10, "USD", &us())]),
                        StatesToRecord::OnlyRelevant,
                    )
                    .await;
                }
                done
            }
        },
    )
    .await;

    let n = node.clone();
    measure(
        "payments (start, lock, record with change, end)",
        move |client| {
            let node = n.clone();
            async move {
                let (started, mut done) = (Instant::now(), 0);
                while started.elapsed() < TIME {
                    done += 1;
                    let id = flow(1_000_000 * (client + 1) + done);
                    node.start_flow(id).await;
                    let target = LockTarget::Sum {
                        schema: "coin".into(),
                        column: "quantity".into(),
                        at_least: 7,
                    };
                    let request = LockRequest {
                        flow: id,
                        seq: 0,
                        criteria: dollars(),
                        target,
                        max_states: 10,
                    };
                    let coins = node.writer.lock_states(request).await.unwrap();
                    let inputs: Vec<StateRef> = coins.iter().map(|coin| coin.reference).collect();
                    let change = coins.iter().map(|coin| amount(&coin.state)).sum::<i64>() - 7;
                    let mut outputs = vec![coin(7, "USD", &them())];
                    outputs.extend((change > 0).then(|| coin(change, "USD", &us())));
                    let mut last = end(id, "1");
                    let transaction = transaction(&inputs, outputs);
                    let (states, finality) = (StatesToRecord::OnlyRelevant, Finality::Final);
                    last.recordings = vec![Recording {
                        transaction,
                        states,
                        finality,
                    }];
                    node.commit(UnitOfWork::step(last)).await;
                }
                done
            }
        },
    )
    .await;

    let n = node.clone();
    measure("notarised transactions (two inputs)", move |client| {
        let node = n.clone();
        async move {
            let (started, mut done) = (Instant::now(), 0);
            while started.elapsed() < TIME {
                done += 1;
                let id = transaction(&[], [coin(1, "USD", &us())]).id();
                let before = quorate_identity::SecureHash::of(&(client << 32 | done).to_le_bytes());
                let before = quorate_ledger::TxId::new(before);
                let entry = NotaryEntry {
                    tx: id,
                    inputs: vec![StateRef::new(before, 0), StateRef::new(before, 1)],
                    references: Vec::new(),
                    requester: them().name,
                    request_signature: vec![0; 64],
                    within_time_window: true,
                };
                let respond = Arc::new(|results: &[NotaryResult]| {
                    Ok(results.iter().map(|_| envelope(&them(), 1)).collect())
                });
                let notary = Some(NotaryCommit {
                    entries: vec![entry],
                    respond,
                });
                node.commit(UnitOfWork {
                    notary,
                    ..UnitOfWork::default()
                })
                .await;
            }
            done
        }
    })
    .await;
}
