//! What is stored, for whoever continues, sends, resolves or shows it. Every list is bounded and read in pages.

use std::collections::BTreeMap;
use std::sync::Arc;

use quorate_flow::{Checkpoint, ClientId, FlowId, FlowOutcome, FlowStart, FlowStatus, InboxId};
use quorate_identity::X500Name;
use quorate_ledger::{
    AttachmentId, SignedTransaction, StateAndRef, StateRef, Timestamp, TransactionState, TxId,
};

use crate::Store;
use crate::apply::{epoch, flow_id, tx_id};
use crate::database::again_if_disconnected;
use crate::error::{Doing, Error};
use crate::sql::{Row, batch, int, values};
use crate::unit::Epoch;

/// Rows that one page has at the most.
pub const MAX_ROWS: u32 = 10_000;

batch!(READ_TRANSACTIONS, 0, [tx: Bytes],
    "SELECT t.tx_id, t.status, t.recorded_at, t.bytes FROM {rows} JOIN transactions t ON t.tx_id = d.tx");
batch!(READ_JOURNALS, 0, [flow: Bytes],
    "SELECT j.flow_id, j.seq, j.entry FROM {rows} JOIN journal j ON j.flow_id = d.flow");
batch!(READ_ATTACHMENTS, 0, [id: Bytes],
    "SELECT a.id FROM {rows} JOIN attachments a ON a.id = d.id");

/// A transaction as it is stored.
#[derive(Debug, Clone)]
pub struct StoredTransaction {
    /// The transaction with all signatures that were recorded.
    pub transaction: SignedTransaction,
    /// Whether it is final; otherwise it is in flight.
    pub is_final: bool,
    /// When it was recorded first, or became final.
    pub recorded_at: Timestamp,
}

/// A flow as it is stored, without its journal.
#[derive(Debug, Clone, PartialEq)]
pub struct FlowRecord {
    /// The flow.
    pub flow: FlowId,
    /// Its first record.
    pub start: FlowStart,
    /// Where it stands.
    pub status: FlowStatus,
    /// The progress step it has reached.
    pub progress: Option<String>,
    /// How it ended, if it has.
    pub outcome: Option<FlowOutcome>,
    /// When it ended, by the database's clock.
    pub finished_at: Option<Timestamp>,
    /// The instance that wrote it last.
    pub owner: String,
    /// The generation under which it was written last.
    pub generation: u64,
}

/// Flows to be continued. One that cannot be read does not keep the others from going on.
#[derive(Debug, Default)]
pub struct UnfinishedFlows {
    /// The flows with their journals.
    pub flows: Vec<Checkpoint>,
    /// Flows whose rows cannot be read, and why.
    pub broken: Vec<(FlowId, String)>,
    /// Ask for the next page from here; `None` after the last.
    pub next: Option<FlowId>,
}

/// A received message that no step has consumed yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InboxMessage {
    /// Its name.
    pub id: InboxId,
    /// The encoded envelope.
    pub envelope: Arc<[u8]>,
}

/// A part of a peer's queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxPage {
    /// The life of the queue; `None` if nothing was ever queued for the peer.
    pub epoch: Option<Epoch>,
    /// Numbers and encoded envelopes, in order.
    pub messages: Vec<(u64, Arc<[u8]>)>,
}

/// A peer's queue in short.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxPeer {
    /// The peer.
    pub peer: X500Name,
    /// The life of the queue.
    pub epoch: Epoch,
    /// The last number that was given.
    pub last_sequence: u64,
    /// Messages that the peer has not accepted yet.
    pub waiting: u64,
}

/// An attachment as it is stored.
#[derive(Debug, Clone)]
pub struct StoredAttachment {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// Who brought it.
    pub uploader: String,
    /// When.
    pub stored_at: Timestamp,
}

fn name(row: &Row, column: usize) -> Result<X500Name, Error> {
    let text = row.text(column).doing("reading a name")?;
    text.parse().map_err(|error| Error::Corrupt {
        what: format!("name '{text}'"),
        reason: format!("{error}"),
    })
}

fn page(limit: u32) -> i64 {
    limit.min(MAX_ROWS).into()
}

const FLOW_COLUMNS: &str =
    "flow_id, class, arguments, client_id, origin, status, progress, outcome, started_at,
    finished_at, owner, generation";

impl Store {
    /// Those of the transactions that are stored.
    pub async fn transactions(
        &self,
        ids: &[TxId],
    ) -> Result<BTreeMap<TxId, StoredTransaction>, Error> {
        let doing = "reading transactions";
        let rows = again_if_disconnected(|| async {
            let asked = ids.iter().flat_map(|tx| values![tx.as_bytes()]).collect();
            self.database()
                .reader()
                .await?
                .fetch_batch(&READ_TRANSACTIONS, &[], asked)
                .await
                .doing(doing)
        })
        .await?;
        let mut found = BTreeMap::new();
        for row in rows {
            let tx = tx_id(row.bytes(0).doing(doing)?)?;
            let corrupt = |reason: String| Error::Corrupt {
                what: format!("transaction {tx}"),
                reason,
            };
            let transaction = SignedTransaction::decode(&row.bytes(3).doing(doing)?)
                .map_err(|error| corrupt(error.to_string()))?;
            // The disk may lie; what is taken for a transaction must be that transaction.
            if transaction.id() != tx {
                return Err(corrupt(format!(
                    "its bytes are those of {}",
                    transaction.id()
                )));
            }
            let stored = StoredTransaction {
                transaction,
                is_final: row.int(1).doing(doing)? != 0,
                recorded_at: Timestamp::from_micros(row.int(2).doing(doing)?),
            };
            found.insert(tx, stored);
        }
        Ok(found)
    }

    /// The outputs of stored final transactions, those of other nodes included. Unknown ones are left out.
    pub async fn states(
        &self,
        refs: &[StateRef],
    ) -> Result<BTreeMap<StateRef, TransactionState>, Error> {
        let mut ids: Vec<TxId> = refs.iter().map(|state| state.tx).collect();
        ids.sort_unstable();
        ids.dedup();
        let transactions = self.transactions(&ids).await?;
        let output = |state: &StateRef| {
            let stored = transactions
                .get(&state.tx)
                .filter(|stored| stored.is_final)?;
            let StateAndRef {
                state: output,
                reference,
            } = stored.transaction.wire().output(state.index)?;
            Some((reference, output))
        };
        Ok(refs.iter().filter_map(output).collect())
    }

    /// Flows that have not ended, with their journals, in the order of their ids from after `after`.
    pub async fn unfinished_flows(
        &self,
        after: Option<FlowId>,
        limit: u32,
    ) -> Result<UnfinishedFlows, Error> {
        let doing = "reading flows";
        let after = after.map_or(Vec::new(), |flow| flow.as_bytes().to_vec());
        let limit = page(limit.max(1));
        self.database()
            .snapshot(async move |connection| {
                let sql = format!(
                    "SELECT {FLOW_COLUMNS}, checkpoint FROM flows
                     WHERE finished_at IS NULL AND flow_id > $1 ORDER BY flow_id LIMIT $2"
                );
                let sql = sqlx::SqlSafeStr::into_sql_str(sqlx::AssertSqlSafe(sql));
                let rows = connection
                    .fetch_text(sql, values![after, limit])
                    .await
                    .doing(doing)?;
                let mut all = UnfinishedFlows::default();
                let mut journals: BTreeMap<FlowId, Vec<(u32, Vec<u8>)>> = BTreeMap::new();
                let mut asked = Vec::new();
                for row in &rows {
                    asked.extend(values![row.bytes(0).doing(doing)?]);
                }
                for row in connection
                    .fetch_batch(&READ_JOURNALS, &[], asked)
                    .await
                    .doing(doing)?
                {
                    let entries = journals
                        .entry(flow_id(row.bytes(0).doing(doing)?)?)
                        .or_default();
                    let number = u32::try_from(row.int(1).doing(doing)?).unwrap_or(u32::MAX);
                    entries.push((number, row.bytes(2).doing(doing)?));
                }
                for row in &rows {
                    let flow = flow_id(row.bytes(0).doing(doing)?)?;
                    let mut entries = journals.remove(&flow).unwrap_or_default();
                    entries.sort_by_key(|(number, _)| *number);
                    match (flow_record(row), row.bytes(12)) {
                        (
                            Ok(FlowRecord {
                                start,
                                status,
                                progress,
                                ..
                            }),
                            Ok(header),
                        ) => {
                            all.flows.push(Checkpoint {
                                flow,
                                start,
                                status,
                                header,
                                progress,
                                entries,
                            });
                        }
                        (Err(error), _) => all.broken.push((flow, error.to_string())),
                        (_, Err(error)) => all.broken.push((flow, error.to_string())),
                    }
                }
                if rows.len() as i64 == limit {
                    all.next = rows
                        .last()
                        .map(|row| row.bytes(0))
                        .transpose()
                        .doing(doing)?
                        .map(flow_id)
                        .transpose()?;
                }
                Ok(all)
            })
            .await
    }

    /// A flow that has not ended, with its journal. Nobody must be writing to it meanwhile: it is read in pieces.
    pub async fn checkpoint(&self, flow: FlowId) -> Result<Option<Checkpoint>, Error> {
        let doing = "reading a flow";
        let Some(FlowRecord {
            start,
            status,
            progress,
            ..
        }) = self.flow(flow).await?
        else {
            return Ok(None);
        };
        let header = {
            let mut reader = self.database().reader().await?;
            let sql = "SELECT checkpoint FROM flows WHERE flow_id = $1 AND finished_at IS NULL";
            let row = reader
                .fetch_one(sql, values![flow.as_bytes()])
                .await
                .doing(doing)?;
            row.map(|row| row.bytes(0)).transpose().doing(doing)?
        };
        let Some(header) = header else {
            return Ok(None);
        };
        let entries = self.journal(flow).await?;
        Ok(Some(Checkpoint {
            flow,
            start,
            status,
            header,
            progress,
            entries,
        }))
    }

    /// A flow's journal, in order.
    pub async fn journal(&self, flow: FlowId) -> Result<Vec<(u32, Vec<u8>)>, Error> {
        let doing = "reading a journal";
        let mut reader = self.database().reader().await?;
        let sql = "SELECT seq, entry FROM journal WHERE flow_id = $1 ORDER BY seq";
        let rows = reader
            .fetch(sql, values![flow.as_bytes()])
            .await
            .doing(doing)?;
        rows.iter()
            .map(|row| {
                Ok((
                    u32::try_from(row.int(0)?).unwrap_or(u32::MAX),
                    row.bytes(1)?,
                ))
            })
            .collect::<Result<_, sqlx::Error>>()
            .doing(doing)
    }

    /// A flow. One that has ended is kept only if a client has named it.
    pub async fn flow(&self, flow: FlowId) -> Result<Option<FlowRecord>, Error> {
        self.flows_where("flow_id = $1", values![flow.as_bytes()])
            .await
            .map(|mut flows| flows.pop())
    }

    /// The flow that a client has given this name.
    pub async fn flow_by_client_id(
        &self,
        client_id: &ClientId,
    ) -> Result<Option<FlowRecord>, Error> {
        self.flows_where("client_id = $1", values![client_id.as_str()])
            .await
            .map(|mut flows| flows.pop())
    }

    /// Ended flows that a client has named, in the order of those names from after `after`.
    pub async fn finished_flows_with_client_ids(
        &self,
        after: Option<&ClientId>,
        limit: u32,
    ) -> Result<Vec<FlowRecord>, Error> {
        let after = after.map_or("", ClientId::as_str);
        let condition = "finished_at IS NOT NULL AND client_id > $1 ORDER BY client_id LIMIT $2";
        self.flows_where(condition, values![after, page(limit)])
            .await
    }

    async fn flows_where(
        &self,
        condition: &'static str,
        parameters: Vec<crate::sql::Value>,
    ) -> Result<Vec<FlowRecord>, Error> {
        let sql = format!("SELECT {FLOW_COLUMNS} FROM flows WHERE {condition}");
        let rows = again_if_disconnected(|| async {
            let sql = sqlx::SqlSafeStr::into_sql_str(sqlx::AssertSqlSafe(sql.clone()));
            self.database()
                .reader()
                .await?
                .fetch_text(sql, parameters.clone())
                .await
                .doing("reading flows")
        })
        .await?;
        rows.iter().map(flow_record).collect()
    }

    /// Received messages that no step has consumed, by peer and number, from after `after`.
    pub async fn inbox(
        &self,
        after: Option<&InboxId>,
        limit: u32,
    ) -> Result<Vec<InboxMessage>, Error> {
        let doing = "reading the inbox";
        let (peer, sequence) = match after {
            Some(id) => (id.peer.as_str(), int(id.sequence)?),
            None => ("", 0),
        };
        let mut reader = self.database().reader().await?;
        let sql = "SELECT peer, sequence, envelope FROM inbox WHERE (peer, sequence) > ($1, $2)
                   ORDER BY peer, sequence LIMIT $3";
        let rows = reader
            .fetch(sql, values![peer, sequence, page(limit)])
            .await
            .doing(doing)?;
        rows.iter()
            .map(|row| {
                let id = InboxId {
                    peer: name(row, 0)?,
                    sequence: row.count(1).doing(doing)?,
                };
                Ok(InboxMessage {
                    id,
                    envelope: row.bytes(2).doing(doing)?.into(),
                })
            })
            .collect()
    }

    /// Messages queued for `peer` with numbers greater than `after`, in order.
    pub async fn outbox(
        &self,
        peer: &X500Name,
        after: u64,
        limit: u32,
    ) -> Result<OutboxPage, Error> {
        let doing = "reading an outbox";
        let after = i64::try_from(after).unwrap_or(i64::MAX);
        again_if_disconnected(|| async {
            let mut reader = self.database().reader().await?;
            let sql = "SELECT epoch FROM outbox_peers WHERE peer = $1";
            let Some(row) = reader.fetch_one(sql, values![peer.as_str()]).await.doing(doing)? else {
                return Ok(OutboxPage { epoch: None, messages: Vec::new() });
            };
            let epoch = epoch(row.bytes(0).doing(doing)?)?;
            let sql = "SELECT sequence, envelope FROM outbox WHERE peer = $1 AND sequence > $2 ORDER BY sequence LIMIT $3";
            let rows = reader.fetch(sql, values![peer.as_str(), after, page(limit)]).await.doing(doing)?;
            let messages = rows.iter().map(|row| Ok((row.count(0)?, row.bytes(1)?.into())));
            let messages = messages.collect::<Result<_, sqlx::Error>>().doing(doing)?;
            Ok(OutboxPage { epoch: Some(epoch), messages })
        })
        .await
    }

    /// Every peer that ever had a message queued, with how many wait.
    pub async fn outbox_peers(&self) -> Result<Vec<OutboxPeer>, Error> {
        let doing = "reading the outboxes";
        let mut reader = self.database().reader().await?;
        let sql = "SELECT p.peer, p.epoch, p.last_sequence, (SELECT COUNT(*) FROM outbox o WHERE o.peer = p.peer)
                   FROM outbox_peers p ORDER BY p.peer LIMIT $1";
        let rows = reader.fetch(sql, values![MAX_ROWS]).await.doing(doing)?;
        rows.iter()
            .map(|row| {
                Ok(OutboxPeer {
                    peer: name(row, 0)?,
                    epoch: epoch(row.bytes(1).doing(doing)?)?,
                    last_sequence: row.count(2).doing(doing)?,
                    waiting: row.count(3).doing(doing)?,
                })
            })
            .collect()
    }

    /// An attachment.
    pub async fn attachment(&self, id: &AttachmentId) -> Result<Option<StoredAttachment>, Error> {
        let doing = "reading an attachment";
        let mut reader = self.database().reader().await?;
        let sql = "SELECT bytes, uploader, stored_at FROM attachments WHERE id = $1";
        let Some(row) = reader
            .fetch_one(sql, values![id.as_bytes()])
            .await
            .doing(doing)?
        else {
            return Ok(None);
        };
        Ok(Some(StoredAttachment {
            bytes: row.bytes(0).doing(doing)?,
            uploader: row.text(1).doing(doing)?,
            stored_at: Timestamp::from_micros(row.int(2).doing(doing)?),
        }))
    }

    /// Those of `ids` that are not stored.
    pub async fn missing_attachments(
        &self,
        ids: &[AttachmentId],
    ) -> Result<Vec<AttachmentId>, Error> {
        let doing = "looking for attachments";
        let mut reader = self.database().reader().await?;
        let asked = ids.iter().flat_map(|id| values![id.as_bytes()]).collect();
        let rows = reader
            .fetch_batch(&READ_ATTACHMENTS, &[], asked)
            .await
            .doing(doing)?;
        let found = rows
            .iter()
            .map(|row| row.bytes(0))
            .collect::<Result<Vec<_>, _>>()
            .doing(doing)?;
        Ok(ids
            .iter()
            .filter(|id| !found.iter().any(|there| there[..] == id.as_bytes()[..]))
            .copied()
            .collect())
    }

    /// A setting's value.
    pub async fn setting(&self, name: &str) -> Result<Option<String>, Error> {
        let doing = "reading a setting";
        let mut reader = self.database().reader().await?;
        let row = reader
            .fetch_one("SELECT value FROM settings WHERE name = $1", values![name])
            .await
            .doing(doing)?;
        row.map(|row| row.text(0)).transpose().doing(doing)
    }

    /// Writes nothing, reads one row: whether the database answers.
    pub async fn ping(&self) -> Result<(), Error> {
        let mut control = self.database().control().await?;
        control
            .fetch_one("SELECT value FROM counters WHERE name = 'vault'", values![])
            .await
            .doing("asking for an answer")?;
        Ok(())
    }
}

fn flow_record(row: &Row) -> Result<FlowRecord, Error> {
    let doing = "reading a flow";
    let flow = flow_id(row.bytes(0).doing(doing)?)?;
    let corrupt = |reason: String| Error::Corrupt {
        what: format!("flow {flow}"),
        reason,
    };
    let status = row.text(5).doing(doing)?;
    let status = FlowStatus::from_name(&status)
        .ok_or_else(|| corrupt(format!("its status is '{status}'")))?;
    let client_id = row.opt_text(3).doing(doing)?.map(ClientId::new).transpose();
    let outcome = row.opt_text(7).doing(doing)?;
    let outcome = match status {
        FlowStatus::Completed => Some(FlowOutcome::Completed {
            result: outcome.unwrap_or_default(),
        }),
        FlowStatus::Failed => Some(FlowOutcome::Failed {
            error: outcome.unwrap_or_default(),
        }),
        FlowStatus::Killed => Some(FlowOutcome::Killed),
        FlowStatus::Runnable
        | FlowStatus::Suspended
        | FlowStatus::Hospitalised
        | FlowStatus::Paused => None,
    };
    Ok(FlowRecord {
        flow,
        start: FlowStart {
            class: row.text(1).doing(doing)?,
            arguments: row.text(2).doing(doing)?,
            client_id: client_id.map_err(|error| corrupt(error.to_string()))?,
            origin: serde_json::from_str(&row.text(4).doing(doing)?)
                .map_err(|error| corrupt(error.to_string()))?,
            started_at: Timestamp::from_micros(row.int(8).doing(doing)?),
        },
        status,
        progress: row.opt_text(6).doing(doing)?,
        outcome,
        finished_at: row.opt_int(9).doing(doing)?.map(Timestamp::from_micros),
        owner: row.text(10).doing(doing)?,
        generation: row.count(11).doing(doing)?,
    })
}
