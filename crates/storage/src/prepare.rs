//! From a unit of work to rows: everything that can be computed before the database transaction is open, in the tasks of
//! the callers, so that the one writer only writes.

use std::sync::Arc;

use quorate_flow::{
    ClientId, Envelope, Finality, FlowId, FlowOutcome, FlowStart, FlowStatus, InboxId, LockTarget,
    Recording, StatesToRecord,
};
use quorate_identity::X500Name;
use quorate_ledger::vault::{Criteria, QueryError};
use quorate_ledger::{SignedTransaction, StateAndRef, StateRef, TxId};

use crate::query::{Filter, Schemas};
use crate::sql::Value;
use crate::unit::{
    Cleanup, LockRequest, NewAttachment, NotaryCommit, Received, Relevance, RpcInvocation,
    UnitOfWork,
};

/// A message to be queued.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) peer: X500Name,
    pub(crate) envelope: Arc<[u8]>,
}

impl Outgoing {
    pub(crate) fn new(envelope: &Envelope) -> Self {
        Self {
            peer: envelope.recipient.clone(),
            envelope: envelope.encode().into(),
        }
    }
}

/// A flow's step without what is kept elsewhere.
#[derive(Debug)]
pub(crate) struct PreparedStep {
    pub(crate) flow: FlowId,
    pub(crate) start: Option<FlowStart>,
    pub(crate) status: FlowStatus,
    pub(crate) checkpoint: Vec<u8>,
    pub(crate) progress: Option<String>,
    pub(crate) entries: Vec<(u32, Vec<u8>)>,
    pub(crate) outcome: Option<FlowOutcome>,
}

/// An output that the vault may keep.
#[derive(Debug)]
pub(crate) struct PreparedOutput {
    pub(crate) state: StateAndRef,
    pub(crate) relevant: bool,
    pub(crate) bytes: Vec<u8>,
    /// The hashes of the participants' keys, one after the other.
    pub(crate) participants: Vec<u8>,
    /// Rows of the applications' tables, by schema.
    pub(crate) rows: Vec<(usize, Vec<Value>)>,
}

/// A transaction to record.
#[derive(Debug)]
pub(crate) struct PreparedRecording {
    pub(crate) tx: TxId,
    pub(crate) transaction: SignedTransaction,
    pub(crate) bytes: Vec<u8>,
    pub(crate) inputs: Vec<StateRef>,
    pub(crate) finality: Finality,
    pub(crate) states: StatesToRecord,
    /// Empty unless states are to be recorded.
    pub(crate) outputs: Vec<PreparedOutput>,
}

/// A unit of work, ready to be written, as often as it takes.
#[derive(Debug, Default)]
pub(crate) struct Prepared {
    pub(crate) steps: Vec<PreparedStep>,
    pub(crate) received: Vec<Received>,
    pub(crate) consumed: Vec<InboxId>,
    pub(crate) outgoing: Vec<Outgoing>,
    pub(crate) recordings: Vec<PreparedRecording>,
    pub(crate) settled: Vec<(X500Name, u64)>,
    pub(crate) unlocked: Vec<FlowId>,
    pub(crate) removed_client_ids: Vec<ClientId>,
    pub(crate) attachments: Vec<NewAttachment>,
    pub(crate) settings: Vec<(String, Option<String>)>,
    pub(crate) notary: Option<NotaryCommit>,
    pub(crate) rpc_audit: Vec<RpcInvocation>,
    pub(crate) cleanup: Option<Cleanup>,
    /// Roughly how many bytes will be written.
    pub(crate) size: usize,
}

impl Prepared {
    pub(crate) fn new(unit: UnitOfWork, relevance: &Relevance, schemas: &Schemas) -> Self {
        let mut prepared = Self {
            received: unit.received,
            settled: unit.settled,
            unlocked: unit.unlocked,
            removed_client_ids: unit.removed_client_ids,
            attachments: unit.attachments,
            settings: unit.settings,
            notary: unit.notary,
            rpc_audit: unit.rpc_audit,
            cleanup: unit.cleanup,
            ..Self::default()
        };
        for step in unit.steps {
            prepared.consumed.extend(step.consumed);
            prepared
                .outgoing
                .extend(step.outgoing.iter().map(Outgoing::new));
            for recording in step.recordings {
                prepared
                    .recordings
                    .push(PreparedRecording::new(recording, relevance, schemas));
            }
            prepared.steps.push(PreparedStep {
                flow: step.flow,
                start: step.start,
                status: step.status,
                checkpoint: step.checkpoint,
                progress: step.progress,
                entries: step.entries,
                outcome: step.outcome,
            });
        }
        prepared.consumed.extend(unit.consumed);
        prepared
            .outgoing
            .extend(unit.outgoing.iter().map(Outgoing::new));
        for recording in unit.recordings {
            prepared
                .recordings
                .push(PreparedRecording::new(recording, relevance, schemas));
        }
        prepared.size = prepared.measure();
        prepared
    }

    fn measure(&self) -> usize {
        let steps = self.steps.iter().map(|step| {
            let entries: usize = step.entries.iter().map(|(_, entry)| entry.len()).sum();
            let arguments = step.start.as_ref().map_or(0, |start| start.arguments.len());
            step.checkpoint.len() + entries + arguments
        });
        let outputs = |recording: &PreparedRecording| {
            recording
                .outputs
                .iter()
                .map(|out| out.bytes.len())
                .sum::<usize>()
        };
        steps.sum::<usize>()
            + self
                .received
                .iter()
                .map(|message| message.envelope.len())
                .sum::<usize>()
            + self
                .outgoing
                .iter()
                .map(|message| message.envelope.len())
                .sum::<usize>()
            + self
                .recordings
                .iter()
                .map(|recording| recording.bytes.len() + outputs(recording))
                .sum::<usize>()
            + self
                .attachments
                .iter()
                .map(|attachment| attachment.bytes.len())
                .sum::<usize>()
            + self
                .rpc_audit
                .iter()
                .map(|invocation| invocation.action.len() + invocation.parameters.len())
                .sum::<usize>()
    }
}

impl PreparedRecording {
    fn new(recording: Recording, relevance: &Relevance, schemas: &Schemas) -> Self {
        let Recording {
            transaction,
            states,
            finality,
        } = recording;
        let wire = transaction.wire();
        let mut outputs = Vec::new();
        let mut misfit = None;
        if states != StatesToRecord::None && finality == Finality::Final {
            for state in wire.outputs_with_refs() {
                let relevant = relevance.concerns(&state.state.participants);
                if !relevant && states != StatesToRecord::AllVisible {
                    continue;
                }
                let (rows, error) = schemas.rows(&state.state);
                misfit = misfit.or(error);
                let participants = state
                    .state
                    .participants
                    .iter()
                    .flat_map(|key| *key.hash().as_bytes())
                    .collect();
                let bytes = state.state.encode();
                outputs.push(PreparedOutput {
                    state,
                    relevant,
                    bytes,
                    participants,
                    rows,
                });
            }
        }
        let (tx, inputs) = (transaction.id(), wire.inputs().to_vec());
        if let Some(error) = misfit {
            // Once for a transaction, however many states it has.
            tracing::warn!(
                %tx,
                %error,
                "a state does not fit its application's table: it is in the vault, but no query by that table's \
                 columns finds it"
            );
        }
        Self {
            tx,
            bytes: transaction.encode(),
            transaction,
            inputs,
            finality,
            states,
            outputs,
        }
    }
}

/// A request for locks, with its condition as SQL.
#[derive(Debug)]
pub(crate) struct PreparedLock {
    pub(crate) flow: FlowId,
    pub(crate) seq: u32,
    pub(crate) filter: Filter,
    /// The column that is summed, as an expression within `filter`.
    pub(crate) amount: Option<String>,
    pub(crate) target: LockTarget,
    pub(crate) max_states: usize,
    /// The types of state that can meet the condition, if it tells.
    pub(crate) types: Vec<String>,
}

impl PreparedLock {
    pub(crate) fn new(request: LockRequest, schemas: &Schemas) -> Result<Self, QueryError> {
        let LockRequest {
            flow,
            seq,
            criteria,
            target,
            max_states,
        } = request;
        let mut types = types(&criteria).unwrap_or_default().to_vec();
        let criteria = match &target {
            LockTarget::References(refs) => {
                Criteria::And(vec![Criteria::Refs(refs.clone()), criteria])
            }
            LockTarget::Sum { .. } | LockTarget::Count(_) => criteria,
        };
        let mut filter = Filter::new(schemas, &criteria)?;
        let mut amount = None;
        if let LockTarget::Sum { schema, column, .. } = &target {
            amount = Some(filter.number(schemas, schema, column)?);
            if types.is_empty() {
                types = schemas.state_types(schema);
            }
        }
        Ok(Self {
            flow,
            seq,
            filter,
            amount,
            target,
            max_states: max_states as usize,
            types,
        })
    }
}

/// The types that a state must have to meet the criteria, if they tell.
fn types(criteria: &Criteria) -> Option<&[String]> {
    match criteria {
        Criteria::StateTypes(types) => Some(types),
        Criteria::And(parts) => parts.iter().find_map(types),
        _ => None,
    }
}
