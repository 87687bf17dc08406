//! Migrations: from whatever schema a database has to the one that this program needs.
//!
//! The program's own migrations are SQL texts embedded here; those of applications are made from their declared
//! schemas. Each is a *version* of a *component*, recorded with a checksum in `quorate_migrations`. All that are pending
//! run in one database transaction: a migration that breaks off has not happened. The lock that keeps two migrations
//! apart is the database's own and ends with its holder; [`release_lock`] ends a holder that hangs.
//!
//! A release never changes a version that was published; it adds one.

use quorate_identity::SecureHash;
use quorate_ledger::schema::{Column, ColumnKind, MappedSchema, SchemaChange};
use quorate_ledger::{Timestamp, TransactionState};
use tracing::info;

use crate::Store;
use crate::database::Purpose;
use crate::error::{Blame, Doing, Error, SchemaError, blame};
use crate::query::Schemas;
use crate::sql::{Connection, Engine, Value, values};

/// The component of the program's own tables.
const CORE: &str = "quorate";

/// Prefix of the components of applications.
const APP: &str = "app:";

/// The program's own versions, oldest first.
const CORE_VERSIONS: [(&str, &str); 2] = [
    (
        "the tables of a node",
        include_str!("migrations/0001-core.sql"),
    ),
    (
        "the audit of RPC, and when peers began their queues",
        include_str!("migrations/0002-rpc-audit.sql"),
    ),
];

/// The SQL of all of them.
#[cfg(test)]
pub(crate) fn core_sql() -> String {
    CORE_VERSIONS.map(|(_, sql)| sql).concat()
}

/// Tables that no application may have.
pub(crate) const CORE_TABLES: [&str; 21] = [
    "attachments",
    "counters",
    "flows",
    "inbound_marks",
    "inbox",
    "journal",
    "lease_history",
    "leases",
    "notary_states",
    "notary_transactions",
    "outbox",
    "outbox_peers",
    "quorate_migrations",
    "rpc_audit",
    "settings",
    "transactions",
    "vault_consumptions",
    "vault_locks",
    "vault_states",
    "vault_unconsumed",
    "vault_updates",
];

/// First half of the key of PostgreSQL's advisory lock; the second is made from the schema's name.
const LOCK_KEY: i64 = 0x5155_4f52;

/// States that are mapped again at once when an application's table gains columns.
const BACKFILL_PAGE: u32 = 500;

const MIGRATIONS_TABLE: &str = "CREATE TABLE IF NOT EXISTS quorate_migrations (
    component {text} NOT NULL,
    version BIGINT NOT NULL,
    checksum {text} NOT NULL,
    description {text} NOT NULL,
    applied_at BIGINT NOT NULL,
    PRIMARY KEY (component, version)
);";

/// One version of one component.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migration {
    /// `quorate`, or `app:` and an application's schema.
    pub component: String,
    /// The version, from 1.
    pub version: u64,
    /// What it does.
    pub description: String,
    /// Whether the database has it.
    pub state: MigrationState,
}

/// Whether a database has a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MigrationState {
    /// Since then.
    Applied(Timestamp),
    /// Not yet.
    Pending,
    /// It has one of this version that is a different one.
    Changed,
    /// It has it and this program does not know it: a newer program's, or a removed application's.
    Unknown(Timestamp),
}

/// A version that this program carries.
struct Known {
    component: String,
    version: u64,
    description: String,
    checksum: String,
    sql: String,
    /// The application's schema whose table must be filled anew.
    fills: Option<usize>,
}

/// A version that the database has.
struct Found {
    component: String,
    version: u64,
    checksum: String,
    description: String,
    applied_at: Timestamp,
}

impl Known {
    /// What a person runs instead of [`execute`]: the change, and the note that it was made.
    fn script(&self, engine: Engine) -> String {
        let Self {
            component,
            version,
            description,
            checksum,
            sql,
            ..
        } = self;
        engine.text(&format!(
            "-- {component} {version}: {description}\n{}\n\
             INSERT INTO quorate_migrations (component, version, checksum, description, applied_at)\n    \
             VALUES ('{component}', {version}, '{checksum}', '{description}', {{now}});\n\n",
            sql.trim_end()
        ))
    }
}

fn known(store: &Store) -> Vec<Known> {
    let engine = store.engine();
    let mut all: Vec<Known> = CORE_VERSIONS
        .iter()
        .zip(1..)
        .map(|((description, sql), version)| Known {
            component: CORE.into(),
            version,
            description: (*description).into(),
            checksum: SecureHash::of(sql.as_bytes()).to_string(),
            sql: engine.text(sql),
            fills: None,
        })
        .collect();
    for (index, mapped) in store.schemas().mapped.iter().enumerate() {
        all.extend(known_of(engine, &mapped.schema, index));
    }
    all
}

/// The versions of one application's schema, which is the one with this index.
fn known_of(engine: Engine, schema: &MappedSchema, index: usize) -> Vec<Known> {
    let mut all = Vec::new();
    for (change, version) in schema.versions.iter().zip(1..) {
        let (description, sql) = change_sql(schema, change);
        all.push(Known {
            component: format!("{APP}{}", schema.name),
            version,
            // Over the description and not the SQL, so that the same application fits databases of both engines.
            checksum: SecureHash::of(description.as_bytes()).to_string(),
            description,
            sql: engine.text(&sql),
            fills: (!matches!(change, SchemaChange::AddIndex { .. })).then_some(index),
        });
    }
    all
}

/// The SQL of everything that these schemas of applications consist of, for a person to read or to run by hand in a
/// node's database that has none of it.
///
/// # Errors
/// A schema cannot be made.
pub fn application_sql(engine: Engine, schemas: Vec<MappedSchema>) -> Result<String, Error> {
    let schemas = Schemas::new(engine, schemas)?;
    let known = schemas
        .mapped
        .iter()
        .enumerate()
        .flat_map(|(index, mapped)| known_of(engine, &mapped.schema, index));
    Ok(known.map(|known| known.script(engine)).collect())
}

/// What a change does, in words that never change, and as SQL.
fn change_sql(schema: &MappedSchema, change: &SchemaChange) -> (String, String) {
    let table = schema.table;
    let words = |column: &Column| {
        let kind = match column.kind {
            ColumnKind::Text => "text",
            ColumnKind::BigInt => "bigint",
            ColumnKind::Bytes => "bytes",
        };
        format!(
            "{} {kind}{}",
            column.name,
            if column.nullable { " nullable" } else { "" }
        )
    };
    let sql = |column: &Column| {
        let kind = match column.kind {
            ColumnKind::Text => "{text}",
            ColumnKind::BigInt => "BIGINT",
            ColumnKind::Bytes => "{bytes}",
        };
        format!(
            "\"{}\" {kind}{}",
            column.name,
            if column.nullable { "" } else { " NOT NULL" }
        )
    };
    match change {
        SchemaChange::AddTable { columns } => (
            format!(
                "table {table} ({})",
                columns.iter().map(words).collect::<Vec<_>>().join(", ")
            ),
            format!(
                "CREATE TABLE \"{table}\" (tx_id {{bytes}} NOT NULL, idx BIGINT NOT NULL, {}, PRIMARY KEY (tx_id, idx));",
                columns.iter().map(sql).collect::<Vec<_>>().join(", ")
            ),
        ),
        SchemaChange::AddColumn(column) => (
            format!("column {table}.{}", words(column)),
            format!("ALTER TABLE \"{table}\" ADD COLUMN {};", sql(column)),
        ),
        SchemaChange::AddIndex { name, columns } => (
            format!("index {table}_{name} ({})", columns.join(", ")),
            format!(
                "CREATE INDEX \"{table}_{name}\" ON \"{table}\" (\"{}\");",
                columns.join("\", \"")
            ),
        ),
    }
}

async fn found(connection: &mut Connection) -> Result<Vec<Found>, Error> {
    let doing = "reading which migrations the database has";
    let exists = match connection.engine() {
        Engine::Postgres => {
            "SELECT CAST(to_regclass('quorate_migrations') AS TEXT) WHERE to_regclass('quorate_migrations') IS NOT NULL"
        }
        Engine::Sqlite => {
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name = 'quorate_migrations'"
        }
    };
    if connection
        .fetch_one(exists, values![])
        .await
        .doing(doing)?
        .is_none()
    {
        return Ok(Vec::new());
    }
    let sql = "SELECT component, version, checksum, description, applied_at FROM quorate_migrations
               ORDER BY component, version";
    let rows = connection.fetch(sql, values![]).await.doing(doing)?;
    rows.iter()
        .map(|row| {
            Ok(Found {
                component: row.text(0)?,
                version: row.count(1)?,
                checksum: row.text(2)?,
                description: row.text(3)?,
                applied_at: Timestamp::from_micros(row.int(4)?),
            })
        })
        .collect::<Result<_, sqlx::Error>>()
        .doing(doing)
}

/// Every version that this program carries or the database has: the program's own first, then by application.
pub async fn status(store: &Store) -> Result<Vec<Migration>, Error> {
    let found = found(&mut store.database().control().await?).await?;
    Ok(compare(&known(store), found))
}

fn compare(known: &[Known], found: Vec<Found>) -> Vec<Migration> {
    let mut all: Vec<Migration> = known
        .iter()
        .map(|wanted| {
            let there = found
                .iter()
                .find(|f| (&f.component, f.version) == (&wanted.component, wanted.version));
            let state = match there {
                None => MigrationState::Pending,
                Some(there) if there.checksum != wanted.checksum => MigrationState::Changed,
                Some(there) => MigrationState::Applied(there.applied_at),
            };
            let (component, description) = (wanted.component.clone(), wanted.description.clone());
            Migration {
                component,
                version: wanted.version,
                description,
                state,
            }
        })
        .collect();
    for there in found {
        if !all
            .iter()
            .any(|m| (&m.component, m.version) == (&there.component, there.version))
        {
            all.push(Migration {
                component: there.component,
                version: there.version,
                description: there.description,
                state: MigrationState::Unknown(there.applied_at),
            });
        }
    }
    all
}

/// Refuses a database that this program must not migrate.
fn check_history(migrations: &[Migration]) -> Result<(), SchemaError> {
    for migration in migrations {
        let (component, version) = (migration.component.clone(), migration.version);
        match migration.state {
            MigrationState::Changed => return Err(SchemaError::Changed { component, version }),
            MigrationState::Unknown(_) => {
                let ours = migrations.iter().filter(|m| m.component == component);
                let known = ours
                    .filter(|m| !matches!(m.state, MigrationState::Unknown(_)))
                    .map(|m| m.version)
                    .max();
                // The tables of an application that is no longer installed stay as they are.
                if let Some(known) = known.or((component == CORE).then_some(0)) {
                    return Err(SchemaError::Newer {
                        component,
                        found: version,
                        known,
                    });
                }
            }
            MigrationState::Applied(_) | MigrationState::Pending => {}
        }
    }
    Ok(())
}

/// Refuses a database whose schema this program cannot work with.
pub async fn check_current(store: &Store) -> Result<(), Error> {
    let migrations = status(store).await?;
    check_history(&migrations)?;
    let pending = migrations
        .iter()
        .filter(|migration| migration.state == MigrationState::Pending);
    let pending: Vec<String> = pending
        .map(|migration| format!("{} {}", migration.component, migration.version))
        .collect();
    if pending.is_empty() {
        Ok(())
    } else {
        Err(SchemaError::NotCurrent { pending }.into())
    }
}

/// The SQL that [`execute`] would run, for a person to read or to run by hand; empty if nothing is pending.
pub async fn dry_run(store: &Store) -> Result<String, Error> {
    let known = known(store);
    let migrations = compare(&known, found(&mut store.database().control().await?).await?);
    check_history(&migrations)?;
    let mut script = String::new();
    for wanted in pending(&known, &migrations) {
        script.push_str(&wanted.script(store.engine()));
    }
    if script.is_empty() {
        return Ok(script);
    }
    let mut head = String::new();
    if let Some(schema) = &store.database().schema {
        head.push_str(&format!(
            "CREATE SCHEMA IF NOT EXISTS \"{schema}\";\nSET search_path = \"{schema}\";\n"
        ));
    }
    head.push_str(&store.engine().text(MIGRATIONS_TABLE));
    Ok(format!("BEGIN;\n{head}\n\n{script}COMMIT;\n"))
}

fn pending<'a>(known: &'a [Known], migrations: &[Migration]) -> Vec<&'a Known> {
    let missing = |wanted: &&Known| {
        migrations.iter().any(|m| {
            m.state == MigrationState::Pending
                && (&m.component, m.version) == (&wanted.component, wanted.version)
        })
    };
    known.iter().filter(missing).collect()
}

/// Brings the database to this program's schema and returns what had to be done. All of it happens or nothing.
///
/// An application that is installed after states of its types were recorded finds its table filled with them.
pub async fn execute(store: &Store) -> Result<Vec<Migration>, Error> {
    let mut connection = store.database().connect(Purpose::Migrate).await?;
    let migrated = migrate(store, &mut connection).await;
    // Also after a failure: a connection that is only dropped keeps the lock until the server notices.
    connection.close().await;
    migrated
}

/// Does it over this connection, which is of no use afterwards if it fails.
async fn migrate(store: &Store, connection: &mut Connection) -> Result<Vec<Migration>, Error> {
    lock(store, connection).await?;
    let doing = "migrating";
    if let Some(schema) = &store.database().schema {
        let doing = "creating the schema";
        let sql = "SELECT nspname::TEXT FROM pg_namespace WHERE nspname = $1";
        let there = connection.fetch_one(sql, values![schema.as_str()]).await;
        // `IF NOT EXISTS` asks for the right to create schemas even where there is nothing to create.
        if there.doing(doing)?.is_none() {
            let sql = format!("CREATE SCHEMA \"{schema}\"");
            connection.script(&sql).await.doing(doing)?;
        }
    }
    connection.script(MIGRATIONS_TABLE).await.doing(doing)?;
    let known = known(store);
    let mut migrations = compare(&known, found(connection).await?);
    check_history(&migrations)?;
    let todo = pending(&known, &migrations);
    let mut fills: Vec<usize> = Vec::new();
    for wanted in &todo {
        info!(
            "migrating the database: {} {}: {}",
            wanted.component, wanted.version, wanted.description
        );
        connection.script(&wanted.sql).await.doing(doing)?;
        let sql =
            "INSERT INTO quorate_migrations (component, version, checksum, description, applied_at)
                   VALUES ($1, $2, $3, $4, {now})";
        let (component, description) = (wanted.component.as_str(), wanted.description.as_str());
        let row = values![
            component,
            crate::sql::int(wanted.version)?,
            wanted.checksum.as_str(),
            description
        ];
        connection.execute(sql, row).await.doing(doing)?;
        fills.extend(wanted.fills.filter(|index| !fills.contains(index)));
    }
    for index in fills {
        backfill(store, connection, index).await?;
    }
    connection
        .commit()
        .await
        .doing("committing the migration")?;
    migrations.retain(|migration| migration.state == MigrationState::Pending);
    Ok(migrations)
}

/// Opens the migration's transaction under the lock that keeps two migrations apart.
async fn lock(store: &Store, connection: &mut Connection) -> Result<(), Error> {
    let doing = "locking the database for the migration";
    match connection.begin().await {
        Err(error)
            if connection.engine() == Engine::Sqlite && blame(&error) == Blame::Condition =>
        {
            let holder = "a process that writes to the database file".into();
            return Err(SchemaError::Locked { holder }.into());
        }
        other => other.doing(doing)?,
    }
    if connection.engine() == Engine::Sqlite {
        return Ok(());
    }
    let sql = "SELECT CAST(pg_try_advisory_xact_lock(CAST($1 AS INTEGER), hashtext($2)) AS TEXT)";
    let row = connection
        .fetch_one(sql, lock_key(store))
        .await
        .doing(doing)?;
    if row
        .map_or(Ok("false".to_owned()), |row| row.text(0))
        .doing(doing)?
        == "true"
    {
        return Ok(());
    }
    let holders = connection
        .fetch(LOCK_HOLDERS, lock_key(store))
        .await
        .doing(doing)?;
    let mut names = Vec::new();
    for row in holders {
        names.push(format!(
            "session {} since {}",
            row.int(0).doing(doing)?,
            row.text(1).doing(doing)?
        ));
    }
    Err(SchemaError::Locked {
        holder: names.join(", "),
    }
    .into())
}

/// Sessions that hold the migration's lock: ids and times. PostgreSQL hides the times of other users' sessions.
const LOCK_HOLDERS: &str = "SELECT CAST(a.pid AS BIGINT), COALESCE(CAST(a.xact_start AS TEXT), 'a time that this user may not see') FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
    WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2 AND l.classid = CAST($1 AS OID)
      AND CAST(CAST(l.objid AS BIGINT) AS BIT(32)) = CAST(hashtext($2) AS BIT(32)) AND a.datname = current_database()";

fn lock_key(store: &Store) -> Vec<Value> {
    values![
        LOCK_KEY,
        store.database().schema.as_deref().unwrap_or_default()
    ]
}

/// Ends migrations that hang, and returns how many there were. Nothing of them has happened.
///
/// A SQLite database is locked by a living process; ending that process is the only way, and is left to the operator.
pub async fn release_lock(store: &Store) -> Result<u64, Error> {
    let doing = "releasing the migration lock";
    if store.engine() == Engine::Sqlite {
        return Ok(0);
    }
    let mut connection = store.database().control().await?;
    let holders = connection
        .fetch(LOCK_HOLDERS, lock_key(store))
        .await
        .doing(doing)?;
    for row in &holders {
        let pid = row.int(0).doing(doing)?;
        let sql = "SELECT CAST(pg_terminate_backend(CAST($1 AS INTEGER)) AS TEXT)";
        connection.fetch_one(sql, values![pid]).await.doing(doing)?;
    }
    Ok(holders.len() as u64)
}

/// Maps every state that the vault holds into the table of an application that has come or changed.
async fn backfill(store: &Store, connection: &mut Connection, index: usize) -> Result<(), Error> {
    let doing = "filling an application's table";
    let mapped = &store.schemas().mapped[index];
    connection
        .script(&format!("DELETE FROM \"{}\"", mapped.table.name))
        .await
        .doing(doing)?;
    let mut after: (Vec<u8>, i64) = (Vec::new(), -1);
    let (mut misfits, mut misfit) = (0_u64, None);
    loop {
        let sql = "SELECT tx_id, idx, state FROM vault_states WHERE (tx_id, idx) > ($1, $2) ORDER BY tx_id, idx LIMIT $3";
        let page = connection
            .fetch(sql, values![after.0.as_slice(), after.1, BACKFILL_PAGE])
            .await
            .doing(doing)?;
        let mut rows = Vec::new();
        for row in &page {
            after = (row.bytes(0).doing(doing)?, row.int(1).doing(doing)?);
            let state = TransactionState::decode(&row.bytes(2).doing(doing)?).map_err(|error| {
                Error::Corrupt {
                    what: "vault state".into(),
                    reason: error.to_string(),
                }
            })?;
            let (all, error) = store.schemas().rows(&state);
            if let Some(error) = error {
                misfits += 1;
                misfit = misfit.or(Some(error));
            }
            for (_, values) in all.into_iter().filter(|(schema, _)| *schema == index) {
                rows.extend(values![after.0.as_slice(), after.1]);
                rows.extend(values);
            }
        }
        connection
            .execute_batch(&mapped.insert, &[], rows)
            .await
            .doing(doing)?;
        if page.len() < BACKFILL_PAGE as usize {
            break;
        }
    }
    if let Some(error) = misfit {
        tracing::warn!(
            misfits,
            %error,
            "states do not fit their application's table: they are in the vault, but no query by that table's columns \
             finds them"
        );
    }
    Ok(())
}
