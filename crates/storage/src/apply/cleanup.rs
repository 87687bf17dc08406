//! Removing what is outdated, by key, so that it costs as little in a full database as in an empty one.

use std::sync::Arc;

use super::{Batch, Failure};
use crate::error::Doing;
use crate::prepare::Prepared;
use crate::sql::{Value, batch, values};
use crate::unit::{Committed, Epoch, Outdated};

batch!(DELETE_RPC_AUDIT, 0, [recorded_at: Int, id: Bytes],
    "DELETE FROM rpc_audit WHERE (recorded_at, invocation_id) IN
        (SELECT a.recorded_at, a.invocation_id FROM {rows}
         JOIN rpc_audit a ON a.recorded_at = d.recorded_at AND a.invocation_id = d.id)");
batch!(DATE_EPOCHS, 1, [peer: Text, epoch: Bytes],
    "UPDATE inbound_marks SET begun_at = $1 WHERE begun_at IS NULL AND (peer, epoch) IN
        (SELECT m.peer, m.epoch FROM {rows} JOIN inbound_marks m ON m.peer = d.peer AND m.epoch = d.epoch)");
batch!(DELETE_EPOCHS, 1, [peer: Text, epoch: Bytes],
    // A later epoch that begins where this one ends: so nothing has come in this one since, and the highest number given
    // for a peer is always in a row that stays.
    "DELETE FROM inbound_marks WHERE (peer, epoch) IN
        (SELECT m.peer, m.epoch FROM {rows}
         JOIN inbound_marks m ON m.peer = d.peer AND m.epoch = d.epoch
         JOIN inbound_marks n ON n.peer = m.peer AND n.base >= m.base + m.sequence AND n.begun_at < $1)");

pub(super) async fn apply(
    batch: &mut Batch<'_>,
    units: &[Arc<Prepared>],
    committed: &mut [Committed],
) -> Result<(), Failure> {
    // Rare: one after the other, so that each is told what it has removed.
    for (unit, committed) in units.iter().zip(committed) {
        let removed = match unit.cleanup.as_ref().map(|cleanup| &cleanup.0) {
            None => continue,
            Some(Outdated::RpcAudit(outdated)) => {
                let rows = outdated
                    .iter()
                    .flat_map(|(at, id)| values![at.as_micros(), id])
                    .collect();
                batch
                    .connection
                    .execute_batch(&DELETE_RPC_AUDIT, &[], rows)
                    .await
                    .doing("removing outdated records of RPC calls")?
            }
            Some(Outdated::Epochs {
                left,
                before,
                undated,
            }) => {
                let doing = "removing what is left of the former queues of peers";
                let now = batch.now();
                batch
                    .connection
                    .execute_batch(&DATE_EPOCHS, &[now], rows(undated))
                    .await
                    .doing(doing)?;
                let before = before.as_micros().into();
                batch
                    .connection
                    .execute_batch(&DELETE_EPOCHS, &[before], rows(left))
                    .await
                    .doing(doing)?
            }
        };
        committed.removed_rows = removed;
    }
    Ok(())
}

fn rows(epochs: &[(String, Epoch)]) -> Vec<Value> {
    epochs
        .iter()
        .flat_map(|(peer, epoch)| values![peer.as_str(), epoch])
        .collect()
}

/// Every statement of this chapter, for the test that looks at how the engine finds their rows.
#[cfg(test)]
pub(super) fn statements() -> Vec<&'static crate::sql::Batch> {
    vec![&*DELETE_RPC_AUDIT, &*DATE_EPOCHS, &*DELETE_EPOCHS]
}
