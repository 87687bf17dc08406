//! The audit of RPC, and what is removed when its time is over.

use std::time::Duration;

use quorate_flow::InboxId;
use quorate_ledger::Timestamp;
use quorate_storage::{
    CLEANUP_ROWS, Engine, Reception, RpcAuditFilter, RpcInvocation, UnitOfWork, migrate,
};
use rstest::rstest;

use crate::support::*;

fn invocation(number: u64, username: &str, action: &str) -> RpcInvocation {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&number.to_be_bytes());
    RpcInvocation {
        id,
        username: username.into(),
        interface: "test",
        action: action.into(),
        parameters: format!("number: {number}"),
        allowed: !number.is_multiple_of(3),
    }
}

fn inbox(sequence: u64) -> InboxId {
    InboxId {
        peer: them().name,
        sequence,
    }
}

/// Later than any row that is there now.
async fn later(node: &Node) -> Timestamp {
    node.store.now().await.unwrap() + Duration::from_secs(3600)
}

/// Receives these messages of the queue with this epoch.
async fn receive(node: &Node, epoch: u8, numbers: &[u64]) -> Vec<Reception> {
    let messages = numbers.iter().map(|number| received(epoch, *number));
    node.commit(UnitOfWork::receive(messages.collect()))
        .await
        .received
}

/// Removes what was left before `before`, as often as there is something to do; returns how many rows went.
async fn remove_epochs(node: &Node, before: Timestamp) -> u64 {
    let mut removed = 0;
    loop {
        let outdated = node.store.outdated_epochs(before).await.unwrap();
        if outdated.is_empty() {
            return removed;
        }
        removed += node
            .commit(UnitOfWork::cleanup(outdated))
            .await
            .removed_rows;
    }
}

#[rstest]
#[case(Engine::Sqlite)]
#[case(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn calls_are_read_by_time_user_and_action_page_by_page(#[case] engine: Engine) {
    let Some(db) = database(engine).await else {
        return;
    };
    let node = node(&db).await;
    let began = node.store.now().await.unwrap();
    // Many at once, as they come: each is there when its commit has been answered.
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..40 {
        let user = if number % 2 == 0 { "even" } else { "odd" };
        let action = if number < 10 {
            "nodeInfo"
        } else {
            "vaultQuery"
        };
        let call = invocation(number, user, action);
        let writer = node.writer.clone();
        calls.spawn(async move { writer.commit(UnitOfWork::rpc_invocation(call)).await });
    }
    while let Some(recorded) = calls.join_next().await {
        recorded.unwrap().unwrap();
    }
    let all = RpcAuditFilter::default();
    let whole = node.store.rpc_audit(&all, None, 1_000).await.unwrap();
    assert_eq!(whole.len(), 40);
    assert!(whole.is_sorted_by_key(|record| (record.recorded_at, record.id)));
    assert!(whole.iter().all(|record| record.recorded_at >= began));
    assert_eq!(whole.iter().filter(|record| !record.allowed).count(), 14);

    let mut pages = Vec::new();
    let mut after = None;
    loop {
        let page = node.store.rpc_audit(&all, after, 7).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some((last.recorded_at, last.id));
        pages.extend(page);
    }
    assert_eq!(pages, whole);

    let some = RpcAuditFilter {
        username: Some("odd".into()),
        action: Some("nodeInfo".into()),
        ..all.clone()
    };
    let some = node.store.rpc_audit(&some, None, 1_000).await.unwrap();
    assert_eq!(some.len(), 5);
    assert!(some.iter().all(|record| record.username == "odd"));
    let middle = whole[20].recorded_at;
    let before = RpcAuditFilter {
        until: Some(middle),
        ..all.clone()
    };
    let since = RpcAuditFilter {
        from: Some(middle),
        ..all
    };
    let before = node.store.rpc_audit(&before, None, 1_000).await.unwrap();
    let since = node.store.rpc_audit(&since, None, 1_000).await.unwrap();
    assert_eq!([before, since].concat(), whole);
}

#[rstest]
#[case(Engine::Sqlite)]
#[case(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn outdated_calls_go_a_bounded_number_at_a_time_and_others_stay(#[case] engine: Engine) {
    let Some(db) = database(engine).await else {
        return;
    };
    let node = node(&db).await;
    let many = u64::from(CLEANUP_ROWS) + 10;
    node.commit(UnitOfWork {
        rpc_audit: (0..many).map(|n| invocation(n, "ops", "old")).collect(),
        ..UnitOfWork::default()
    })
    .await;
    let all = RpcAuditFilter::default();
    let last = node.store.rpc_audit(&all, None, 10_000).await.unwrap();
    let boundary = last.last().unwrap().recorded_at + Duration::from_micros(1);
    // The clock of SQLite counts milliseconds.
    tokio::time::sleep(Duration::from_millis(3)).await;
    node.commit(UnitOfWork::rpc_invocation(invocation(0, "ops", "new")))
        .await;

    let mut removed = Vec::new();
    loop {
        let outdated = node.store.outdated_rpc_audit(boundary).await.unwrap();
        if outdated.is_empty() {
            break;
        }
        let committed = node.commit(UnitOfWork::cleanup(outdated)).await;
        removed.push(committed.removed_rows);
    }
    assert_eq!(removed, [u64::from(CLEANUP_ROWS), 10]);
    let left = node.store.rpc_audit(&all, None, 10_000).await.unwrap();
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].action, "new");
}

#[rstest]
#[case(Engine::Sqlite)]
#[case(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_former_queue_goes_when_the_next_is_old_and_the_present_one_never(
    #[case] engine: Engine,
) {
    let Some(db) = database(engine).await else {
        return;
    };
    let node = node(&db).await;
    receive(&node, 1, &[1, 2, 3]).await;
    tokio::time::sleep(Duration::from_millis(3)).await;
    let left = node.store.now().await.unwrap();
    tokio::time::sleep(Duration::from_millis(3)).await;
    assert_eq!(
        receive(&node, 2, &[1]).await,
        [Reception::Accepted(inbox(4))]
    );
    // The first queue is older than that, but it was left only afterwards.
    assert_eq!(remove_epochs(&node, left).await, 0);
    assert_eq!(receive(&node, 1, &[3]).await, [Reception::Duplicate]);

    let later = later(&node).await;
    assert_eq!(remove_epochs(&node, later).await, 1);
    assert_eq!(remove_epochs(&node, later).await, 0);
    // The present queue goes on, its messages are recognised, and no number is given twice.
    assert_eq!(receive(&node, 2, &[1]).await, [Reception::Duplicate]);
    assert_eq!(
        receive(&node, 2, &[2]).await,
        [Reception::Accepted(inbox(5))]
    );
    assert_eq!(
        receive(&node, 3, &[1]).await,
        [Reception::Accepted(inbox(6))]
    );
}

#[rstest]
#[case(Engine::Sqlite)]
#[case(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_former_queue_that_is_used_again_stays(#[case] engine: Engine) {
    let Some(db) = database(engine).await else {
        return;
    };
    let node = node(&db).await;
    receive(&node, 1, &[1]).await;
    receive(&node, 2, &[1, 2]).await;
    let consumed = UnitOfWork {
        consumed: vec![inbox(2)],
        ..UnitOfWork::default()
    };
    node.commit(consumed).await;
    let outdated = node
        .store
        .outdated_epochs(later(&node).await)
        .await
        .unwrap();
    assert!(!outdated.is_empty());
    // Between the search and the removal the former queue comes back.
    receive(&node, 1, &[2]).await;
    let committed = node.commit(UnitOfWork::cleanup(outdated)).await;
    assert_eq!(committed.removed_rows, 0);
    assert_eq!(receive(&node, 1, &[2]).await, [Reception::Duplicate]);
    assert_eq!(remove_epochs(&node, later(&node).await).await, 0);
}

#[rstest]
#[case(Engine::Sqlite)]
#[case(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn queues_of_an_unknown_age_are_dated_first(#[case] engine: Engine) {
    let Some(db) = database(engine).await else {
        return;
    };
    let node = node(&db).await;
    receive(&node, 1, &[1]).await;
    receive(&node, 2, &[1]).await;
    // As a program of the former release writes them.
    db.run_sql("UPDATE inbound_marks SET begun_at = NULL").await;
    let before = node.store.now().await.unwrap();
    tokio::time::sleep(Duration::from_millis(3)).await;
    assert_eq!(remove_epochs(&node, before).await, 0);
    assert_eq!(receive(&node, 1, &[1]).await, [Reception::Duplicate]);
    assert_eq!(remove_epochs(&node, later(&node).await).await, 1);
    assert_eq!(receive(&node, 2, &[1]).await, [Reception::Duplicate]);
}

/// A deletion is a write as any other: not without the fence.
#[rstest]
#[case(Engine::Sqlite)]
#[case(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn who_has_lost_the_lease_records_and_removes_nothing(#[case] engine: Engine) {
    let Some(db) = database(engine).await else {
        return;
    };
    let node = node(&db).await;
    node.commit(UnitOfWork::rpc_invocation(invocation(1, "ops", "old")))
        .await;
    let outdated = node.store.outdated_rpc_audit(later(&node).await);
    let outdated = outdated.await.unwrap();
    take(&node.store, "b").await;
    let removing = node.writer.commit(UnitOfWork::cleanup(outdated));
    assert!(removing.await.is_err());
    let recording = invocation(2, "ops", "new");
    let recording = node.writer.commit(UnitOfWork::rpc_invocation(recording));
    assert!(recording.await.is_err());
    let all = RpcAuditFilter::default();
    let left = node.store.rpc_audit(&all, None, 10).await.unwrap();
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].action, "old");
}

/// The first version of the tables, full of data, becomes the second.
#[rstest]
#[case(Engine::Sqlite)]
#[case(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_database_of_the_first_version_keeps_what_it_has(#[case] engine: Engine) {
    let Some(db) = database(engine).await else {
        return;
    };
    let node = node(&db).await;
    node.issue("USD", &[1, 2]).await;
    receive(&node, 1, &[1, 2]).await;
    receive(&node, 2, &[1]).await;
    let (status, vault) = {
        let query = quorate_ledger::vault::VaultQuery::default();
        let vault = node.store.vault_query(&query).await.unwrap();
        (migrate::status(&node.store).await.unwrap(), vault.total)
    };
    assert_eq!(vault, 2);
    // Back to the former release's tables.
    db.run_sql(
        "DROP TABLE rpc_audit; ALTER TABLE inbound_marks DROP COLUMN begun_at;
         DELETE FROM quorate_migrations WHERE component = 'quorate' AND version = 2",
    )
    .await;
    let error = migrate::check_current(&node.store).await.unwrap_err();
    assert!(error.to_string().contains("quorate 2"), "{error}");
    let script = migrate::dry_run(&node.store).await.unwrap();
    assert!(script.contains("CREATE TABLE rpc_audit"), "{script}");
    assert!(!script.contains("CREATE TABLE vault_states"), "{script}");
    let done = migrate::execute(&node.store).await.unwrap();
    let done: Vec<_> = done
        .iter()
        .map(|m| (m.component.as_str(), m.version))
        .collect();
    assert_eq!(done, [("quorate", 2)]);
    migrate::check_current(&node.store).await.unwrap();
    let names = |all: &[migrate::Migration]| -> Vec<(String, u64)> {
        all.iter()
            .map(|m| (m.component.clone(), m.version))
            .collect()
    };
    let again = migrate::status(&node.store).await.unwrap();
    assert_eq!(names(&again), names(&status));

    // Everything is there and goes on where it stood.
    assert_eq!(receive(&node, 1, &[2]).await, [Reception::Duplicate]);
    assert_eq!(
        receive(&node, 2, &[1, 2]).await,
        [Reception::Duplicate, Reception::Accepted(inbox(4))]
    );
    assert_eq!(node.store.inbox(None, 10).await.unwrap().len(), 4);
    let query = quorate_ledger::vault::VaultQuery::default();
    assert_eq!(node.store.vault_query(&query).await.unwrap().total, 2);
    node.issue("USD", &[3]).await;
    node.commit(UnitOfWork::rpc_invocation(invocation(1, "ops", "new")))
        .await;
    assert_eq!(remove_epochs(&node, later(&node).await).await, 1);
}

/// The script that a person runs by hand on tables which only ever were of the first version.
#[rstest]
#[case(Engine::Sqlite)]
#[case(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn the_dry_runs_script_upgrades_a_database_of_the_first_version(#[case] engine: Engine) {
    let Some(db) = database(engine).await else {
        return;
    };
    let store = db.empty_store().await;
    let script = migrate::dry_run(&store).await.unwrap();
    let (first, rest) = script.split_once("-- quorate 2:").unwrap();
    let (_, applications) = rest.split_once("-- app:").unwrap();
    db.run_sql(&format!("{first}-- app:{applications}")).await;
    db.run_sql("INSERT INTO settings (name, value) VALUES ('kept', 'yes')")
        .await;
    assert!(migrate::check_current(&store).await.is_err());
    let script = migrate::dry_run(&store).await.unwrap();
    db.run_sql(&script).await;
    migrate::check_current(&store).await.unwrap();
    assert_eq!(store.setting("kept").await.unwrap().as_deref(), Some("yes"));
    let node = node(&db).await;
    receive(&node, 1, &[1]).await;
    node.commit(UnitOfWork::rpc_invocation(invocation(1, "ops", "new")))
        .await;
}
