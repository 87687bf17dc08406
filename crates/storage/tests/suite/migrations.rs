//! From any schema to the one that is needed, or a refusal that says what to do.

use quorate_flow::StatesToRecord;
use quorate_ledger::schema::{Column, ColumnKind, MappedSchema, SchemaChange};
use quorate_ledger::vault::{Cmp, Criteria, VaultQuery};
use quorate_storage::migrate::{self, MigrationState};
use quorate_storage::{Engine, Error, SchemaError, Store};
use rstest::rstest;

use crate::support::*;

fn schema_error(error: Error) -> SchemaError {
    match error {
        Error::Schema(error) => error,
        other => panic!("{other}"),
    }
}

#[rstest]
#[case(Engine::Sqlite)]
#[case(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn an_empty_database_is_made_current_once(#[case] engine: Engine) {
    let Some(db) = database(engine).await else {
        return;
    };
    let store = db.empty_store().await;
    let error = migrate::check_current(&store).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("quorate database execute-migration"),
        "{error}"
    );
    let SchemaError::NotCurrent { pending } = schema_error(error) else {
        panic!()
    };
    assert_eq!(
        pending,
        ["quorate 1", "quorate 2", "app:coin 1", "app:coin 2"]
    );
    let script = migrate::dry_run(&store).await.unwrap();
    assert!(
        script.contains("CREATE TABLE vault_states")
            && script.contains("\"coin_states_by_currency\""),
        "{script}"
    );
    assert!(
        migrate::status(&store)
            .await
            .unwrap()
            .iter()
            .all(|m| m.state == MigrationState::Pending)
    );

    // Two at once: one of them does it, the other waits, is told of the lock, or finds nothing to do.
    let (one, two) = tokio::join!(migrate::execute(&store), migrate::execute(&store));
    let done: Vec<usize> = [one, two]
        .into_iter()
        .flatten()
        .map(|migrations| migrations.len())
        .collect();
    assert!(done == [4] || done == [4, 0] || done == [0, 4], "{done:?}");
    migrate::check_current(&store).await.unwrap();
    assert_eq!(migrate::execute(&store).await.unwrap(), []);
    assert_eq!(migrate::dry_run(&store).await.unwrap(), "");
    assert_eq!(migrate::release_lock(&store).await.unwrap(), 0);
}

#[rstest]
#[case(Engine::Sqlite)]
#[case(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn the_dry_runs_script_does_the_same(#[case] engine: Engine) {
    let Some(db) = database(engine).await else {
        return;
    };
    let store = db.empty_store().await;
    let script = migrate::dry_run(&store).await.unwrap();
    db.run_sql(&script).await;
    migrate::check_current(&store).await.unwrap();
    let node = node(&db).await;
    node.issue("USD", &[1]).await;
}

#[rstest]
#[case(Engine::Sqlite)]
#[case(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn foreign_histories_are_refused(#[case] engine: Engine) {
    let Some(db) = database(engine).await else {
        return;
    };
    let store = db.store().await;
    let row = |component: &str, version: u32| {
        format!(
            "INSERT INTO quorate_migrations VALUES ('{component}', {version}, 'x', 'from elsewhere', 1)"
        )
    };
    // An application that is not installed any more disturbs nobody.
    db.run_sql(&row("app:gone", 1)).await;
    migrate::check_current(&store).await.unwrap();
    db.run_sql(&row("app:coin", 3)).await;
    let error = schema_error(migrate::check_current(&store).await.unwrap_err());
    assert_eq!(
        error,
        SchemaError::Newer {
            component: "app:coin".into(),
            found: 3,
            known: 2
        }
    );
    assert!(migrate::execute(&store).await.is_err());
    db.run_sql("DELETE FROM quorate_migrations WHERE component = 'app:coin' AND version = 3")
        .await;
    db.run_sql(&row("quorate", 999)).await;
    let error = schema_error(migrate::check_current(&store).await.unwrap_err());
    assert!(
        matches!(error, SchemaError::Newer { found: 999, .. }),
        "{error}"
    );
    db.run_sql("DELETE FROM quorate_migrations WHERE version = 999")
        .await;
    db.run_sql("UPDATE quorate_migrations SET checksum = 'other' WHERE component = 'quorate'")
        .await;
    let error = schema_error(migrate::check_current(&store).await.unwrap_err());
    assert_eq!(
        error,
        SchemaError::Changed {
            component: "quorate".into(),
            version: 1
        }
    );
    assert!(migrate::execute(&store).await.is_err());
}

/// A migration that breaks off has not happened.
#[rstest]
#[case(Engine::Sqlite)]
#[case(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_migration_happens_whole_or_not_at_all(#[case] engine: Engine) {
    let Some(db) = database(engine).await else {
        return;
    };
    let store = db.empty_store().await;
    // The last table of the migration is in the way.
    db.run_sql("CREATE TABLE settings (x BIGINT)").await;
    migrate::execute(&store).await.unwrap_err();
    assert!(
        migrate::status(&store)
            .await
            .unwrap()
            .iter()
            .all(|m| m.state == MigrationState::Pending)
    );
    db.run_sql("DROP TABLE settings").await;
    migrate::execute(&store).await.unwrap();
    migrate::check_current(&store).await.unwrap();
}

#[rstest]
#[case(Engine::Sqlite)]
#[case(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn an_application_that_grows_finds_its_table_filled(#[case] engine: Engine) {
    let Some(db) = database(engine).await else {
        return;
    };
    let node = node(&db).await;
    node.issue("USD", &[5, 6]).await;
    let transaction = transaction(&[], [coin(7, "USD", &us())]);
    node.record(&transaction, StatesToRecord::OnlyRelevant)
        .await;

    let mut grown = coins();
    grown
        .versions
        .push(SchemaChange::AddColumn(Column::nullable(
            "double",
            ColumnKind::BigInt,
        )));
    grown.map = |state| {
        let amount = amount(state);
        Some(vec![
            amount.into(),
            "USD".into(),
            quorate_ledger::schema::ColumnValue::Null,
            (2 * amount).into(),
        ])
    };
    let late = MappedSchema {
        name: "late",
        table: "late",
        ..coins()
    };
    let store = Store::connect(db.options.clone(), vec![grown, late])
        .await
        .unwrap();
    let error = schema_error(migrate::check_current(&store).await.unwrap_err());
    let pending = ["app:coin 3", "app:late 1", "app:late 2"]
        .map(str::to_owned)
        .to_vec();
    assert_eq!(error, SchemaError::NotCurrent { pending });
    migrate::execute(&store).await.unwrap();
    for criteria in [
        Criteria::column("coin", "double", Cmp::Greater, 10i64),
        Criteria::column("late", "quantity", Cmp::Greater, 5i64),
    ] {
        assert_eq!(
            store
                .vault_query(&VaultQuery::new(criteria))
                .await
                .unwrap()
                .total,
            2
        );
    }
}

#[tokio::test]
async fn schemas_that_collide_are_refused() {
    let options: quorate_storage::Options = "sqlite:/nonexistent/x.db".parse().unwrap();
    let node_table = MappedSchema {
        name: "vault",
        table: "vault_locks",
        ..coins()
    };
    for schemas in [vec![coins(), coins()], vec![node_table]] {
        let error = Store::connect(options.clone(), schemas).await.unwrap_err();
        assert!(matches!(schema_error(error), SchemaError::Invalid { .. }));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_of_ones_own_and_a_restricted_user_suffice() {
    let Some(mut db) = database(Engine::Postgres).await else {
        return;
    };
    let role = format!("restricted_{}", db.name);
    db.run_sql(&format!(
        "CREATE ROLE {role} LOGIN; GRANT CREATE ON DATABASE {} TO {role}",
        db.name
    ))
    .await;
    db.options.user = Some(role);
    db.options.schema = Some("party_b".into());
    let node = node(&db).await;
    node.issue("USD", &[1, 2]).await;
    assert_eq!(
        node.store
            .vault_query(&VaultQuery::default())
            .await
            .unwrap()
            .total,
        2
    );
    let server = db.server.clone().unwrap();
    let name = db.name.clone();
    let sql = "SELECT COUNT(*) FROM party_b.vault_states";
    let count = tokio::task::spawn_blocking(move || server.psql(&name, sql).unwrap())
        .await
        .unwrap();
    assert_eq!(count, "2");
}
