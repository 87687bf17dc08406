//! The audit of RPC, read out; and what is outdated, found a bounded number of rows at a time.

use quorate_ledger::Timestamp;

use crate::Store;
use crate::apply::epoch;
use crate::error::{Doing, Error};
use crate::reads::MAX_ROWS;
use crate::sql::{Row, values};
use crate::unit::{Cleanup, Epoch, InvocationId, Outdated};

/// Outdated rows that are removed in one database transaction.
pub const CLEANUP_ROWS: u32 = 500;

/// Which calls to read; nothing means all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RpcAuditFilter {
    /// Recorded at this time or later.
    pub from: Option<Timestamp>,
    /// Recorded before this time.
    pub until: Option<Timestamp>,
    /// Of this user.
    pub username: Option<String>,
    /// Of this action.
    pub action: Option<String>,
}

/// A call as it was recorded before it was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RpcAuditRecord {
    /// When, by the database's clock.
    pub recorded_at: Timestamp,
    /// Its name.
    pub id: InvocationId,
    /// Who asked.
    pub username: String,
    /// By which interface.
    pub interface: String,
    /// For what.
    pub action: String,
    /// With which parameters, shortened.
    pub parameters: String,
    /// Whether the user had the permission. Whether the call succeeded is not known here.
    pub allowed: bool,
}

impl Store {
    /// Up to `limit` calls after the one recorded then under that id, oldest first. Fewer than `limit` (or [`MAX_ROWS`])
    /// are the last.
    pub async fn rpc_audit(
        &self,
        filter: &RpcAuditFilter,
        after: Option<(Timestamp, InvocationId)>,
        limit: u32,
    ) -> Result<Vec<RpcAuditRecord>, Error> {
        let doing = "reading the audit of RPC";
        let sql = "SELECT recorded_at, invocation_id, username, interface, action, parameters, allowed FROM rpc_audit
                   WHERE (recorded_at, invocation_id) > ($1, $2) AND recorded_at >= $3 AND recorded_at < $4
                     AND ($5 IS NULL OR username = $5) AND ($6 IS NULL OR action = $6)
                   ORDER BY recorded_at, invocation_id LIMIT $7";
        let after = after.map_or((i64::MIN, Vec::new()), |(at, id)| {
            (at.as_micros(), id.to_vec())
        });
        let parameters = values![
            after.0,
            after.1,
            filter.from.map_or(i64::MIN, Timestamp::as_micros),
            filter.until.map_or(i64::MAX, Timestamp::as_micros),
            filter.username.clone(),
            filter.action.clone(),
            limit.min(MAX_ROWS),
        ];
        let mut reader = self.database().reader().await?;
        let rows = reader.fetch(sql, parameters).await.doing(doing)?;
        rows.iter().map(record).collect()
    }

    /// The database's clock.
    pub async fn now(&self) -> Result<Timestamp, Error> {
        let doing = "reading the database's clock";
        let mut reader = self.database().reader().await?;
        let row = reader.fetch_one("SELECT {now}", values![]).await;
        let micros = row.doing(doing)?.map_or(Ok(0), |row| row.int(0));
        Ok(Timestamp::from_micros(micros.doing(doing)?))
    }

    /// Up to [`CLEANUP_ROWS`] calls that were recorded before this time, oldest first.
    pub async fn outdated_rpc_audit(&self, before: Timestamp) -> Result<Cleanup, Error> {
        let doing = "looking for outdated records of RPC calls";
        let sql = "SELECT recorded_at, invocation_id FROM rpc_audit WHERE recorded_at < $1
                   ORDER BY recorded_at, invocation_id LIMIT $2";
        let parameters = values![before.as_micros(), CLEANUP_ROWS];
        let mut reader = self.database().reader().await?;
        let mut found = Vec::new();
        for row in reader.fetch(sql, parameters).await.doing(doing)? {
            let at = Timestamp::from_micros(row.int(0).doing(doing)?);
            found.push((at, invocation_id(row.bytes(1).doing(doing)?)?));
        }
        Ok(Cleanup(Outdated::RpcAudit(found)))
    }

    /// What is left of up to [`CLEANUP_ROWS`] queues that peers had begun anew before this time, and by which their
    /// messages would still be recognised. A peer's present queue is never among them, nor one in which something has
    /// come after the next was begun.
    pub async fn outdated_epochs(&self, before: Timestamp) -> Result<Cleanup, Error> {
        let doing = "looking for what is left of the former queues of peers";
        let mut reader = self.database().reader().await?;
        let sql = "SELECT m.peer, m.epoch FROM inbound_marks m WHERE EXISTS
                       (SELECT 1 FROM inbound_marks n
                        WHERE n.peer = m.peer AND n.base >= m.base + m.sequence AND n.begun_at < $1)
                   ORDER BY m.peer, m.epoch LIMIT $2";
        let parameters = values![before.as_micros(), CLEANUP_ROWS];
        let left = reader.fetch(sql, parameters).await.doing(doing)?;
        let sql = "SELECT peer, epoch FROM inbound_marks WHERE begun_at IS NULL LIMIT $1";
        let undated = reader
            .fetch(sql, values![CLEANUP_ROWS])
            .await
            .doing(doing)?;
        let read = |rows: Vec<Row>| -> Result<Vec<(String, Epoch)>, Error> {
            rows.iter()
                .map(|row| {
                    Ok((
                        row.text(0).doing(doing)?,
                        epoch(row.bytes(1).doing(doing)?)?,
                    ))
                })
                .collect()
        };
        Ok(Cleanup(Outdated::Epochs {
            left: read(left)?,
            before,
            undated: read(undated)?,
        }))
    }
}

fn record(row: &Row) -> Result<RpcAuditRecord, Error> {
    let doing = "reading the audit of RPC";
    Ok(RpcAuditRecord {
        recorded_at: Timestamp::from_micros(row.int(0).doing(doing)?),
        id: invocation_id(row.bytes(1).doing(doing)?)?,
        username: row.text(2).doing(doing)?,
        interface: row.text(3).doing(doing)?,
        action: row.text(4).doing(doing)?,
        parameters: row.text(5).doing(doing)?,
        allowed: row.int(6).doing(doing)? != 0,
    })
}

fn invocation_id(bytes: Vec<u8>) -> Result<InvocationId, Error> {
    InvocationId::try_from(bytes).map_err(|bytes| Error::Corrupt {
        what: "id of an RPC call".into(),
        reason: format!("it has {} bytes, not 16", bytes.len()),
    })
}
