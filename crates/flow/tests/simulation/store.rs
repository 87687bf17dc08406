//! The durable half of a simulated node: what a crash leaves behind.
//!
//! It refuses what the real store refuses, and remembers more than the real one, for the oracles:
//! how every flow ended.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use quorate_flow::{
    Checkpoint, ClientId, Envelope, Finality, FlowError, FlowId, FlowOutcome, FlowStart,
    FlowStatus, InboxId, LockTarget, Recording, StatesToRecord, StepCommit,
};
use quorate_identity::{PublicKey, X500Name};
use quorate_ledger::{SignedTransaction, StateAndRef, StateRef, TransactionState, TxId};

use crate::app::Coin;

pub(crate) struct FlowRow {
    pub(crate) start: FlowStart,
    pub(crate) status: FlowStatus,
    header: Vec<u8>,
    progress: Option<String>,
    journal: Vec<(u32, Vec<u8>)>,
}

pub(crate) struct Ended {
    pub(crate) start: FlowStart,
    pub(crate) outcome: FlowOutcome,
}

pub(crate) struct VaultRow {
    pub(crate) state: TransactionState,
    pub(crate) lock: Option<(FlowId, u32)>,
}

/// Messages to one node.
#[derive(Default)]
pub(crate) struct Outbox {
    last: u64,
    pub(crate) waiting: VecDeque<(u64, Vec<u8>)>,
}

#[derive(Default)]
pub(crate) struct Store {
    pub(crate) outbox: BTreeMap<X500Name, Outbox>,
    marks: BTreeMap<X500Name, u64>,
    pub(crate) inbox: BTreeMap<InboxId, Envelope>,
    pub(crate) flows: BTreeMap<FlowId, FlowRow>,
    pub(crate) ended: BTreeMap<FlowId, Ended>,
    pub(crate) clients: BTreeMap<ClientId, FlowId>,
    pub(crate) transactions: BTreeMap<TxId, (SignedTransaction, Finality)>,
    /// By which final transaction a state was consumed, in the books of this node.
    consumed: BTreeMap<StateRef, TxId>,
    /// Our states, consumed ones too.
    pub(crate) vault: BTreeMap<StateRef, VaultRow>,
    /// On the notary: what is spent, and by which transaction.
    pub(crate) spent: BTreeMap<StateRef, TxId>,
    pub(crate) our_keys: BTreeSet<PublicKey>,
}

impl Store {
    /// Applies a step whole, or says why not. `node_of` names the node that serves a party.
    pub(crate) fn apply(
        &mut self,
        step: &StepCommit,
        node_of: impl Fn(&X500Name) -> X500Name,
    ) -> Result<(), String> {
        let flow = step.flow;
        if self.ended.contains_key(&flow) {
            return Err(format!("flow {flow} has ended"));
        }
        match (&step.start, self.flows.get(&flow)) {
            (Some(_), Some(_)) => return Err(format!("flow {flow} starts twice")),
            (None, None) => return Err(format!("flow {flow} is unknown")),
            _ => {}
        }
        if let Some(client) = step
            .start
            .as_ref()
            .and_then(|start| start.client_id.as_ref())
            && self.clients.contains_key(client)
        {
            return Err(format!("client id {client} is taken"));
        }
        let journaled = self.flows.get(&flow).map_or(0, |row| row.journal.len());
        for (i, (number, _)) in step.entries.iter().enumerate() {
            if *number as usize != journaled + i {
                return Err(format!("journal entry {number} after {journaled}"));
            }
        }
        let distinct: BTreeSet<_> = step.consumed.iter().collect();
        if distinct.len() != step.consumed.len() {
            return Err("a message is consumed twice in a step".to_owned());
        }
        for id in &step.consumed {
            if !self.inbox.contains_key(id) {
                return Err(format!("message {id:?} was consumed before"));
            }
        }
        for recording in &step.recordings {
            self.check(recording)?;
        }
        // Nothing fails from here on.
        for id in &step.consumed {
            self.inbox.remove(id);
        }
        for recording in &step.recordings {
            self.record(recording);
        }
        for envelope in &step.outgoing {
            self.enqueue(envelope, &node_of);
        }
        if let Some(start) = &step.start {
            if let Some(client) = &start.client_id {
                self.clients.insert(client.clone(), flow);
            }
            self.flows.insert(
                flow,
                FlowRow {
                    start: start.clone(),
                    status: step.status,
                    header: Vec::new(),
                    progress: None,
                    journal: Vec::new(),
                },
            );
        }
        if let Some(outcome) = &step.outcome {
            let row = self.flows.remove(&flow).expect("checked above");
            self.ended.insert(
                flow,
                Ended {
                    start: row.start,
                    outcome: outcome.clone(),
                },
            );
            for row in self.vault.values_mut() {
                row.lock = row.lock.filter(|(owner, _)| *owner != flow);
            }
        } else {
            let row = self.flows.get_mut(&flow).expect("checked above");
            row.status = step.status;
            row.header.clone_from(&step.checkpoint);
            row.journal.extend(step.entries.iter().cloned());
            if step.progress.is_some() {
                row.progress.clone_from(&step.progress);
            }
        }
        Ok(())
    }

    fn check(&self, recording: &Recording) -> Result<(), String> {
        let tx = recording.transaction.id();
        if recording.finality == Finality::InFlight {
            return Ok(());
        }
        recording
            .transaction
            .verify_required_signatures()
            .map_err(|error| format!("{tx} is recorded as final: {error}"))?;
        for input in recording.transaction.wire().inputs() {
            if let Some(other) = self.consumed.get(input).filter(|other| **other != tx) {
                return Err(format!("{input} is consumed by {other} and {tx}"));
            }
        }
        Ok(())
    }

    fn record(&mut self, recording: &Recording) {
        let Recording {
            transaction,
            states,
            finality,
        } = recording;
        let id = transaction.id();
        match finality {
            Finality::InFlight => {
                self.transactions
                    .entry(id)
                    .or_insert_with(|| (transaction.clone(), Finality::InFlight));
                return;
            }
            Finality::Final => {
                self.transactions
                    .insert(id, (transaction.clone(), Finality::Final));
            }
        }
        for input in transaction.wire().inputs() {
            self.consumed.insert(*input, id);
        }
        for output in transaction.wire().outputs_with_refs() {
            let ours = output
                .state
                .participants
                .iter()
                .any(|key| self.our_keys.contains(key));
            let keep = match states {
                StatesToRecord::None => false,
                StatesToRecord::OnlyRelevant => ours,
                StatesToRecord::AllVisible => true,
            };
            if keep {
                self.vault.entry(output.reference).or_insert(VaultRow {
                    state: output.state,
                    lock: None,
                });
            }
        }
    }

    pub(crate) fn enqueue(&mut self, envelope: &Envelope, node_of: impl Fn(&X500Name) -> X500Name) {
        let outbox = self.outbox.entry(node_of(&envelope.recipient)).or_default();
        outbox.last += 1;
        outbox.waiting.push_back((outbox.last, envelope.encode()));
    }

    /// Takes what is new of a batch into the inbox; what it took, and up to where all is here.
    pub(crate) fn receive(
        &mut self,
        peer: &X500Name,
        batch: &[(u64, Vec<u8>)],
    ) -> (Vec<InboxId>, u64) {
        let mark = self.marks.entry(peer.clone()).or_default();
        let mut taken = Vec::new();
        for (sequence, bytes) in batch {
            if *sequence <= *mark {
                continue;
            }
            assert_eq!(*sequence, *mark + 1, "the transport keeps the order");
            *mark = *sequence;
            let id = InboxId {
                peer: peer.clone(),
                sequence: *sequence,
            };
            let envelope = Envelope::decode(bytes).expect("a node sends envelopes");
            assert_eq!(envelope.encode(), *bytes);
            self.inbox.insert(id.clone(), envelope);
            taken.push(id);
        }
        (taken, *mark)
    }

    pub(crate) fn settled(&mut self, peer: &X500Name, up_to: u64) {
        if let Some(outbox) = self.outbox.get_mut(peer) {
            outbox.waiting.retain(|(sequence, _)| *sequence > up_to);
        }
    }

    pub(crate) fn checkpoint(&self, flow: FlowId) -> Option<Checkpoint> {
        let row = self.flows.get(&flow)?;
        Some(Checkpoint {
            flow,
            start: row.start.clone(),
            status: row.status,
            header: row.header.clone(),
            progress: row.progress.clone(),
            entries: row.journal.clone(),
        })
    }

    pub(crate) fn final_transaction(&self, id: &TxId) -> Option<&SignedTransaction> {
        match self.transactions.get(id) {
            Some((transaction, Finality::Final)) => Some(transaction),
            _ => None,
        }
    }

    pub(crate) fn is_consumed(&self, reference: &StateRef) -> bool {
        self.consumed.contains_key(reference)
    }

    /// Our states that no final transaction has consumed.
    pub(crate) fn unconsumed(&self) -> impl Iterator<Item = (StateAndRef, Option<FlowId>)> {
        self.vault
            .iter()
            .filter(|(reference, _)| !self.is_consumed(reference))
            .map(|(reference, row)| {
                let state = StateAndRef::new(row.state.clone(), *reference);
                (state, row.lock.map(|(flow, _)| flow))
            })
    }

    /// Soft-locks coins: the same again for the same operation of the same flow.
    pub(crate) fn lock(
        &mut self,
        flow: FlowId,
        sequence: u32,
        target: &LockTarget,
    ) -> Result<Vec<StateAndRef>, FlowError> {
        if !self.flows.contains_key(&flow) {
            return Err(FlowError::failed("the flow that locks is not recorded"));
        }
        let LockTarget::Sum { at_least, .. } = target else {
            return Err(FlowError::failed("the simulation locks sums"));
        };
        let given: Vec<StateAndRef> = self
            .vault
            .iter()
            .filter(|(_, row)| row.lock == Some((flow, sequence)))
            .map(|(reference, row)| StateAndRef::new(row.state.clone(), *reference))
            .collect();
        if !given.is_empty() {
            return Ok(given);
        }
        let mut sum = 0;
        let mut taken = Vec::new();
        for (state, lock) in self.unconsumed() {
            if sum >= *at_least {
                break;
            }
            if lock.is_none() {
                sum += state.read::<Coin>().map_or(0, |coin| coin.amount);
                taken.push(state);
            }
        }
        if sum < *at_least {
            return Err(FlowError::Insufficient {
                wanted: *at_least,
                available: sum,
            });
        }
        for state in &taken {
            let row = self.vault.get_mut(&state.reference).expect("just found");
            row.lock = Some((flow, sequence));
        }
        Ok(taken)
    }
}
