//! Writing many prepared units within one database transaction, a few statements for all of them together.
//!
//! The order of the chapters matters: a notary's results make messages, recorded transactions must be there before locks
//! look for states, and what a unit receives must be in the inbox before a step consumes it. Within one database
//! transaction units are independent of each other: any order among them would be right.
//!
//! The fence and the database transaction itself belong to [`crate::writer`].

mod cleanup;
mod flows;
mod locks;
mod notary;
mod queues;
mod recordings;

pub(crate) use locks::flow_id;
pub(crate) use notary::{state_ref, tx_id};
pub(crate) use queues::epoch;

use std::sync::Arc;

use quorate_ledger::{StateAndRef, Timestamp};

use crate::error::{Doing, Error};
use crate::lease::Fence;
use crate::prepare::{Outgoing, Prepared, PreparedLock};
use crate::query::Schemas;
use crate::sql::{Connection, Value, batch, values};
use crate::unit::{Committed, LockError, Refusal};

/// Why nothing of a set of units was written.
#[derive(Debug)]
pub(crate) enum Failure {
    /// This unit is wrong; the others may be good.
    Unit(usize, Refusal),
    /// One of them is wrong, unknown which.
    Some(Refusal),
    /// The database failed.
    Database(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error.blame() {
            crate::error::Blame::Operation => Self::Some(Refusal::Database(error)),
            _ => Self::Database(error),
        }
    }
}

/// What all chapters know about the database transaction they write in.
pub(crate) struct Batch<'a> {
    pub(crate) connection: &'a mut Connection,
    pub(crate) schemas: &'a Schemas,
    pub(crate) fence: &'a Fence,
    /// The database's time.
    pub(crate) now: Timestamp,
}

impl Batch<'_> {
    fn now(&self) -> Value {
        self.now.as_micros().into()
    }
}

batch!(STORE_ATTACHMENTS, 1, [id: Bytes, content: Bytes, uploader: Text],
    "INSERT INTO attachments (id, bytes, uploader, stored_at)
     SELECT d.id, d.content, d.uploader, $1 FROM {rows} WHERE true ON CONFLICT (id) DO NOTHING");

batch!(RECORD_RPC, 1, [id: Bytes, username: Text, interface: Text, action: Text, parameters: Text, allowed: Int],
    "INSERT INTO rpc_audit (recorded_at, invocation_id, username, interface, action, parameters, allowed)
     SELECT $1, d.id, d.username, d.interface, d.action, d.parameters, d.allowed FROM {rows} WHERE true");

/// What came of the units and of the lock requests, each in order.
pub(crate) type Results = (Vec<Committed>, Vec<Result<Vec<StateAndRef>, LockError>>);

/// Writes `units` and then answers `requests`.
pub(crate) async fn apply(
    batch: &mut Batch<'_>,
    units: &[Arc<Prepared>],
    requests: &[Arc<PreparedLock>],
) -> Result<Results, Failure> {
    let mut committed: Vec<Committed> = units.iter().map(|_| Committed::default()).collect();
    let mut answers: Vec<Vec<Outgoing>> = units.iter().map(|_| Vec::new()).collect();
    notary::apply(batch, units, &mut committed, &mut answers).await?;
    queues::receive(batch, units, &mut committed).await?;
    queues::consume(batch, units).await?;
    recordings::apply(batch, units, &mut committed).await?;
    flows::apply(batch, units, &mut committed).await?;
    queues::send(batch, units, &answers, &mut committed).await?;
    queues::settle(batch, units).await?;
    attachments(batch, units).await?;
    settings(batch, units).await?;
    rpc_audit(batch, units).await?;
    cleanup::apply(batch, units, &mut committed).await?;
    let locked = locks::apply(batch, requests).await?;
    Ok((committed, locked))
}

async fn attachments(batch: &mut Batch<'_>, units: &[Arc<Prepared>]) -> Result<(), Failure> {
    let mut rows = Vec::new();
    for attachment in units.iter().flat_map(|unit| &unit.attachments) {
        rows.extend(values![
            attachment.id.as_bytes(),
            &*attachment.bytes,
            attachment.uploader.as_str()
        ]);
    }
    let now = batch.now();
    batch
        .connection
        .execute_batch(&STORE_ATTACHMENTS, &[now], rows)
        .await
        .doing("keeping attachments")?;
    Ok(())
}

async fn rpc_audit(batch: &mut Batch<'_>, units: &[Arc<Prepared>]) -> Result<(), Failure> {
    let mut rows = Vec::new();
    for invocation in units.iter().flat_map(|unit| &unit.rpc_audit) {
        rows.extend(values![
            &invocation.id,
            invocation.username.as_str(),
            invocation.interface,
            invocation.action.as_str(),
            invocation.parameters.as_str(),
            invocation.allowed
        ]);
    }
    let now = batch.now();
    batch
        .connection
        .execute_batch(&RECORD_RPC, &[now], rows)
        .await
        .doing("recording RPC calls")?;
    Ok(())
}

async fn settings(batch: &mut Batch<'_>, units: &[Arc<Prepared>]) -> Result<(), Failure> {
    // Few and rare: in order, one by one.
    for (name, value) in units.iter().flat_map(|unit| &unit.settings) {
        let name = name.as_str();
        match value {
            Some(value) => {
                let sql = "INSERT INTO settings (name, value) VALUES ($1, $2)
                           ON CONFLICT (name) DO UPDATE SET value = excluded.value";
                batch
                    .connection
                    .execute(sql, values![name, value.as_str()])
                    .await
            }
            None => {
                batch
                    .connection
                    .execute("DELETE FROM settings WHERE name = $1", values![name])
                    .await
            }
        }
        .doing("writing a setting")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::Engine;
    use sqlx::ConnectOptions;

    /// A database transaction must take as long in a full database as in an empty one. SQLite decides by guessing how
    /// many rows there are, and guesses differently from release to release.
    #[tokio::test]
    async fn no_statement_reads_a_table_from_end_to_end() {
        let options = sqlx::sqlite::SqliteConnectOptions::new().in_memory(true);
        let mut connection = Connection::from(options.connect().await.unwrap());
        connection
            .script(&crate::migrate::core_sql())
            .await
            .unwrap();
        let mut statements = vec![&*STORE_ATTACHMENTS, &*RECORD_RPC];
        for chapter in [
            cleanup::statements,
            flows::statements,
            locks::statements,
            notary::statements,
            queues::statements,
            recordings::statements,
        ] {
            statements.extend(chapter());
        }
        for statement in statements {
            for rows in [1, 4, 16, 256] {
                let explain = statement.explained(Engine::Sqlite, rows);
                for line in connection.fetch_text(explain, values![]).await.unwrap() {
                    let line = line.text(3).unwrap();
                    let given = [
                        "SCAN d",
                        "SCAN CONSTANT ROW",
                        "SCAN (subquery",
                        &format!("SCAN {rows}"),
                    ];
                    let reads_all = line.starts_with("SCAN")
                        && !given.iter().any(|given| line.starts_with(given));
                    assert!(
                        !reads_all && !line.contains("AUTOMATIC"),
                        "{line} with {rows} rows in {statement:?}"
                    );
                }
            }
        }
    }
}
