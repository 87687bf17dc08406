//! Flows: their rows, their journals, their ends.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use quorate_flow::{ClientId, FlowId, FlowOutcome, FlowStart, FlowStatus};

use super::{Batch, Failure};
use crate::error::{Doing, Error};
use crate::prepare::Prepared;
use crate::sql::{Value, batch, int, values};
use crate::unit::{Committed, Refusal};

batch!(INSERT_FLOWS, 2, [
        flow: Bytes, class: Text, arguments: Text, client: Text, origin: Text, status: Text, checkpoint: Bytes,
        progress: Text, outcome: Text, started: Int, finished: Int,
    ],
    "INSERT INTO flows (flow_id, class, arguments, client_id, origin, status, checkpoint, progress, outcome,
                        started_at, finished_at, owner, generation)
     SELECT d.flow, d.class, d.arguments, d.client, d.origin, d.status, d.checkpoint, d.progress, d.outcome,
            d.started, d.finished, $1, $2 FROM {rows} WHERE true");
batch!(UPDATE_FLOWS, 2, [flow: Bytes, state: Text, header: Bytes, step: Text],
    "UPDATE flows SET status = d.state, checkpoint = d.header, progress = COALESCE(d.step, progress),
                      owner = $1, generation = $2
     FROM {rows} WHERE flow_id = d.flow AND finished_at IS NULL");
batch!(FORGET_FLOWS, 0, [flow: Bytes],
    // Not `client_id IS NULL`, for which SQLite would take the index of client ids, and read every flow that has none.
    "DELETE FROM flows WHERE COALESCE(client_id, '') = '' AND flow_id IN (SELECT d.flow FROM {rows})");
batch!(FINISH_FLOWS, 3, [flow: Bytes, state: Text, result: Text, step: Text],
    "UPDATE flows SET status = d.state, outcome = d.result, progress = COALESCE(d.step, progress), finished_at = $1,
                      owner = $2, generation = $3
     FROM {rows} WHERE flow_id = d.flow AND finished_at IS NULL");
batch!(INSERT_JOURNAL, 0, [flow: Bytes, number: Int, content: Bytes],
    "INSERT INTO journal (flow_id, seq, entry) SELECT d.flow, d.number, d.content FROM {rows} WHERE true");
batch!(DELETE_JOURNAL, 0, [flow: Bytes],
    "DELETE FROM journal WHERE flow_id IN (SELECT d.flow FROM {rows})");
batch!(DELETE_LOCKS, 0, [flow: Bytes],
    "DELETE FROM vault_locks WHERE flow_id IN (SELECT d.flow FROM {rows})");
batch!(REMOVE_CLIENT_IDS, 0, [client: Text],
    "DELETE FROM flows WHERE finished_at IS NOT NULL AND client_id IN (SELECT d.client FROM {rows})
     RETURNING client_id");

/// What a batch does to one flow, all its steps together.
struct Change<'a> {
    start: Option<&'a FlowStart>,
    status: FlowStatus,
    checkpoint: &'a [u8],
    progress: Option<&'a str>,
    outcome: Option<&'a FlowOutcome>,
}

impl Change<'_> {
    fn outcome(&self) -> Option<String> {
        match self.outcome? {
            FlowOutcome::Completed { result } => Some(result.clone()),
            FlowOutcome::Failed { error } => Some(error.clone()),
            FlowOutcome::Killed => None,
        }
    }

    /// The end decides the status, so that the two cannot contradict each other.
    fn status(&self) -> &'static str {
        match self.outcome {
            None => self.status.name(),
            Some(FlowOutcome::Completed { .. }) => FlowStatus::Completed.name(),
            Some(FlowOutcome::Failed { .. }) => FlowStatus::Failed.name(),
            Some(FlowOutcome::Killed) => FlowStatus::Killed.name(),
        }
    }
}

pub(super) async fn apply(
    batch: &mut Batch<'_>,
    units: &[Arc<Prepared>],
    committed: &mut [Committed],
) -> Result<(), Failure> {
    let mut changes: BTreeMap<FlowId, Change<'_>> = BTreeMap::new();
    for (index, unit) in units.iter().enumerate() {
        for step in &unit.steps {
            let change = changes.entry(step.flow).or_insert(Change {
                start: None,
                status: step.status,
                checkpoint: &step.checkpoint,
                progress: None,
                outcome: None,
            });
            if change.outcome.is_some() {
                return Err(Failure::Unit(index, Refusal::NoSuchFlow(step.flow)));
            }
            change.start = change.start.or(step.start.as_ref());
            change.status = step.status;
            change.checkpoint = &step.checkpoint;
            change.progress = step.progress.as_deref().or(change.progress);
            change.outcome = step.outcome.as_ref();
        }
    }
    write_flows(batch, &changes).await?;
    write_journals(batch, units, &changes).await?;
    let ended = changes
        .iter()
        .filter(|(_, change)| change.outcome.is_some())
        .map(|(flow, _)| flow);
    let mut released: BTreeSet<&FlowId> = units.iter().flat_map(|unit| &unit.unlocked).collect();
    released.extend(ended);
    let rows = released
        .into_iter()
        .flat_map(|flow| values![flow.as_bytes()])
        .collect();
    batch
        .connection
        .execute_batch(&DELETE_LOCKS, &[], rows)
        .await
        .doing("releasing soft locks")?;
    remove_client_ids(batch, units, committed).await
}

async fn write_flows(
    batch: &mut Batch<'_>,
    changes: &BTreeMap<FlowId, Change<'_>>,
) -> Result<(), Failure> {
    let doing = "writing flows";
    let owner = Value::from(batch.fence.instance());
    let generation = Value::from(int(batch.fence.generation())?);
    let (mut inserted, mut updated, mut ended, mut finished) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut updates, mut ends) = (0, 0);
    for (flow, change) in changes {
        let progress = change.progress.map(str::to_owned);
        match (change.start, change.outcome) {
            // Nobody will ask for it again.
            (
                Some(FlowStart {
                    client_id: None, ..
                }),
                Some(_),
            ) => {}
            (Some(start), outcome) => {
                let origin =
                    serde_json::to_string(&start.origin).map_err(|error| Error::Corrupt {
                        what: format!("origin of flow {flow}"),
                        reason: error.to_string(),
                    })?;
                inserted.extend(values![
                    flow.as_bytes(),
                    start.class.as_str(),
                    start.arguments.as_str(),
                    start.client_id.as_ref().map(|id| id.as_str().to_owned()),
                    origin,
                    change.status(),
                    if outcome.is_some() {
                        &[]
                    } else {
                        change.checkpoint
                    },
                    progress,
                    change.outcome(),
                    start.started_at.as_micros(),
                    outcome.map(|_| batch.now.as_micros()),
                ]);
            }
            (None, None) => {
                updates += 1;
                updated.extend(values![
                    flow.as_bytes(),
                    change.status(),
                    change.checkpoint,
                    progress
                ]);
            }
            (None, Some(_)) => {
                ends += 1;
                ended.extend(values![flow.as_bytes()]);
                finished.extend(values![
                    flow.as_bytes(),
                    change.status(),
                    change.outcome(),
                    progress
                ]);
            }
        }
    }
    let scalars = [owner.clone(), generation.clone()];
    batch
        .connection
        .execute_batch(&INSERT_FLOWS, &scalars, inserted)
        .await
        .map_err(|source| client_id(source, changes))?;
    let mut changed = batch
        .connection
        .execute_batch(&UPDATE_FLOWS, &scalars, updated)
        .await
        .doing(doing)?;
    changed += batch
        .connection
        .execute_batch(&FORGET_FLOWS, &[], ended)
        .await
        .doing(doing)?;
    let scalars = [batch.now(), owner, generation];
    changed += batch
        .connection
        .execute_batch(&FINISH_FLOWS, &scalars, finished)
        .await
        .doing(doing)?;
    if changed < updates + ends {
        // One of them; a unit alone has it named.
        let stranger = changes
            .iter()
            .find(|(_, change)| change.start.is_none())
            .map(|(flow, _)| *flow);
        return Err(Failure::Some(match stranger {
            Some(flow) => Refusal::NoSuchFlow(flow),
            None => Refusal::AlreadyConsumed { count: 0 },
        }));
    }
    Ok(())
}

/// Recognises a client id that is in use.
fn client_id(source: sqlx::Error, changes: &BTreeMap<FlowId, Change<'_>>) -> Failure {
    let taken = source.as_database_error().is_some_and(|refusal| {
        refusal.constraint() == Some("flows_client_id")
            || refusal.message().ends_with("flows.client_id")
    });
    let id: Option<&ClientId> = changes
        .values()
        .find_map(|change| change.start?.client_id.as_ref());
    match id {
        Some(id) if taken => Failure::Some(Refusal::ClientIdTaken(id.clone())),
        _ => Error::Database {
            doing: "starting flows",
            source,
        }
        .into(),
    }
}

async fn write_journals(
    batch: &mut Batch<'_>,
    units: &[Arc<Prepared>],
    changes: &BTreeMap<FlowId, Change<'_>>,
) -> Result<(), Failure> {
    let ends = |flow: &FlowId| {
        changes
            .get(flow)
            .is_some_and(|change| change.outcome.is_some())
    };
    let mut rows = Vec::new();
    for step in units
        .iter()
        .flat_map(|unit| &unit.steps)
        .filter(|step| !ends(&step.flow))
    {
        for (number, entry) in &step.entries {
            rows.extend(values![step.flow.as_bytes(), *number, entry.as_slice()]);
        }
    }
    batch
        .connection
        .execute_batch(&INSERT_JOURNAL, &[], rows)
        .await
        .doing("writing journals")?;
    let ended = changes
        .iter()
        .filter(|(_, change)| change.outcome.is_some() && change.start.is_none());
    let rows = ended
        .flat_map(|(flow, _)| values![flow.as_bytes()])
        .collect();
    batch
        .connection
        .execute_batch(&DELETE_JOURNAL, &[], rows)
        .await
        .doing("clearing journals")?;
    Ok(())
}

async fn remove_client_ids(
    batch: &mut Batch<'_>,
    units: &[Arc<Prepared>],
    committed: &mut [Committed],
) -> Result<(), Failure> {
    let doing = "removing results of flows";
    let wanted: BTreeSet<&ClientId> = units
        .iter()
        .flat_map(|unit| &unit.removed_client_ids)
        .collect();
    let rows = wanted
        .into_iter()
        .flat_map(|id| values![id.as_str()])
        .collect();
    let mut removed = BTreeSet::new();
    for row in batch
        .connection
        .fetch_batch(&REMOVE_CLIENT_IDS, &[], rows)
        .await
        .doing(doing)?
    {
        removed.insert(row.text(0).doing(doing)?);
    }
    for (unit, committed) in units.iter().zip(committed) {
        let ids = unit
            .removed_client_ids
            .iter()
            .filter(|id| removed.contains(id.as_str()));
        committed.removed_client_ids = ids.cloned().collect();
    }
    Ok(())
}

/// Every statement of this chapter, for the test that looks at how the engine finds their rows.
#[cfg(test)]
pub(super) fn statements() -> Vec<&'static crate::sql::Batch> {
    vec![
        &*INSERT_FLOWS,
        &*UPDATE_FLOWS,
        &*FORGET_FLOWS,
        &*FINISH_FLOWS,
        &*INSERT_JOURNAL,
        &*DELETE_JOURNAL,
        &*DELETE_LOCKS,
        &*REMOVE_CLIENT_IDS,
    ]
}
