//! A network in memory: real flow machines, with a host that keeps what a node would keep.
//!
//! Each node commits steps whole and sends only what is committed. A message is in the inbox until
//! a step consumes it. The notary answers at once. With [`Net::crashing`] every node loses its
//! memory after each commit and goes on from what it has stored.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::error::Error;
use std::sync::Arc;

use quorate_flow::standard::NOTARISE;
use quorate_flow::{
    Action, App, Checkpoint, Envelope, Event, Finality, Flow, FlowError, FlowId, FlowOutcome,
    FlowRegistry, FlowStart, FlowTimeout, HostError, HostRequest, InboxId, Limits, LockTarget,
    Machine, Origin, Owner, Reply, RetryPolicy, SessionMessage, SignaturePolicy, StatesToRecord,
    StepCommit, Surroundings,
};
use quorate_identity::{KeyPair, Party, SecureHash, X500Name};
use quorate_ledger::network::NotaryInfo;
use quorate_ledger::schema::ColumnValue;
use quorate_ledger::vault::{Cmp, Criteria, StateStatus};
use quorate_ledger::{
    ConsumingTx, Contracts, LedgerTransaction, NotarisationAnswer, NotarisationMessage,
    NotaryError, SignedTransaction, StateAndRef, StateRef, Timestamp, TransactionState, TxId,
    sign_transaction,
};

pub(crate) fn key(name: &str) -> KeyPair {
    KeyPair::ed25519_from_seed(SecureHash::of(name.as_bytes()).as_bytes())
}

pub(crate) fn party(name: &str) -> Party {
    let legal: X500Name = format!("O={name}, L=London, C=GB").parse().unwrap();
    Party::new(legal, key(name).public().clone())
}

/// A state in a vault.
#[derive(Clone)]
pub(crate) struct Kept {
    pub(crate) state: TransactionState,
    pub(crate) consumed: bool,
}

/// What a node keeps on disk.
#[derive(Clone, Default)]
pub(crate) struct Store {
    transactions: BTreeMap<TxId, SignedTransaction>,
    pub(crate) in_flight: BTreeSet<TxId>,
    pub(crate) vault: BTreeMap<StateRef, Kept>,
    /// What each lock request was given: repeating it gives the same.
    locks: BTreeMap<(FlowId, u32), Vec<StateRef>>,
    flows: BTreeMap<FlowId, Checkpoint>,
    inbox: BTreeMap<InboxId, Envelope>,
    next_to: BTreeMap<X500Name, u64>,
    outcomes: BTreeMap<FlowId, FlowOutcome>,
}

pub(crate) struct Node {
    key: KeyPair,
    apps: Vec<Arc<dyn App>>,
    registry: Arc<FlowRegistry>,
    machine: Machine,
    pub(crate) store: Store,
}

pub(crate) struct Net {
    nodes: BTreeMap<X500Name, Node>,
    parties: BTreeMap<X500Name, Party>,
    notaries: Vec<Party>,
    spent: BTreeMap<StateRef, TxId>,
    messages: VecDeque<(InboxId, Envelope)>,
    crashing: bool,
    /// How often nodes have restarted.
    pub(crate) restarts: usize,
    started: u64,
    drawn: u64,
}

const NOW: Timestamp = Timestamp::from_micros(1_800_000_000_000_000);
/// More events than any of these tests needs.
const MAX_EVENTS: usize = 100_000;

impl Net {
    /// Nodes of these names with these applications, and notaries.
    pub(crate) fn new(nodes: &[(&str, Vec<Arc<dyn App>>)], notaries: &[&str]) -> Self {
        let names = nodes
            .iter()
            .map(|(name, _)| *name)
            .chain(notaries.iter().copied());
        let mut net = Self {
            nodes: BTreeMap::new(),
            parties: names.map(|name| (party(name).name, party(name))).collect(),
            notaries: notaries.iter().map(|name| party(name)).collect(),
            spent: BTreeMap::new(),
            messages: VecDeque::new(),
            crashing: false,
            restarts: 0,
            started: 0,
            drawn: 0,
        };
        for (name, apps) in nodes {
            let mut registry = FlowRegistry::new();
            for app in apps {
                registry.install(app.as_ref()).unwrap();
            }
            let registry = Arc::new(registry);
            let machine = net.machine(&party(name), apps, &registry);
            let node = Node {
                key: key(name),
                apps: apps.clone(),
                registry,
                machine,
                store: Store::default(),
            };
            net.nodes.insert(party(name).name, node);
        }
        net
    }

    /// From now on every node restarts after each of its commits.
    pub(crate) fn crashing(mut self) -> Self {
        self.crashing = true;
        self
    }

    fn machine(&self, me: &Party, apps: &[Arc<dyn App>], registry: &Arc<FlowRegistry>) -> Machine {
        let contracts = apps.iter().flat_map(|app| app.contracts());
        let validating = false;
        let notaries = self.notaries.iter().cloned();
        let surroundings = Surroundings {
            me: me.clone(),
            services: Vec::new(),
            parties: self.parties.clone(),
            providers: BTreeMap::new(),
            flow_timeout: FlowTimeout::default(),
            notaries: notaries
                .map(|identity| NotaryInfo {
                    identity,
                    validating,
                })
                .collect(),
            parameters: Some(SecureHash::of(b"parameters")),
            contracts: contracts
                .map(|contract| (contract.name().to_owned(), contract.code()))
                .collect(),
        };
        let owner = Owner {
            instance: me.name.to_string(),
            generation: 1,
        };
        Machine::new(
            Arc::clone(registry),
            Arc::new(surroundings),
            owner,
            Limits::default(),
            RetryPolicy::default(),
        )
    }

    pub(crate) fn node(&mut self, name: &str) -> &mut Node {
        self.nodes.get_mut(&party(name).name).unwrap()
    }

    /// Runs a flow with these arguments, as the shell would give them, until nothing moves.
    pub(crate) fn run<F: Flow>(
        &mut self,
        name: &str,
        arguments: serde_json::Value,
    ) -> Result<F::Output, FlowError> {
        let flow = self.start::<F>(name, arguments);
        self.settle();
        self.outcome::<F>(name, flow)
    }

    pub(crate) fn start<F: Flow>(&mut self, name: &str, arguments: serde_json::Value) -> FlowId {
        let arguments = arguments.to_string();
        let node = self.node(name);
        node.machine.check_start(F::NAME, &arguments).unwrap();
        let start = FlowStart {
            class: F::NAME.to_owned(),
            arguments,
            client_id: None,
            origin: Origin::Service,
            started_at: NOW,
        };
        self.started += 1;
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.started.to_le_bytes());
        let flow = FlowId::from_bytes(id);
        let seed = self.seed();
        self.handle(
            &party(name).name,
            Event::Start {
                flow,
                start,
                trace: None,
                seed,
            },
        );
        flow
    }

    pub(crate) fn outcome<F: Flow>(
        &mut self,
        name: &str,
        flow: FlowId,
    ) -> Result<F::Output, FlowError> {
        let node = self.node(name);
        match node.store.outcomes.get(&flow) {
            Some(FlowOutcome::Completed { result }) => Ok(serde_json::from_str(result).unwrap()),
            Some(FlowOutcome::Failed { error }) => Err(serde_json::from_str(error).unwrap()),
            other => panic!("{other:?}, {:?}", node.machine.view(flow)),
        }
    }

    /// Delivers messages until there are none and every flow of every node has ended.
    pub(crate) fn settle(&mut self) {
        for _ in 0..MAX_EVENTS {
            let Some((inbox, envelope)) = self.messages.pop_front() else {
                for node in self.nodes.values() {
                    let left: Vec<_> = node.machine.views().collect();
                    assert!(left.is_empty(), "not ended: {left:#?}");
                    assert!(node.store.inbox.is_empty(), "unread messages");
                    assert!(node.store.locks.is_empty(), "locks outlive their flows");
                }
                return;
            };
            let to = envelope.recipient.clone();
            if self.notaries.iter().any(|notary| notary.name == to) {
                self.notarise(envelope);
                continue;
            }
            let node = self.nodes.get_mut(&to).unwrap();
            node.store.inbox.insert(inbox.clone(), envelope.clone());
            self.deliver(&to, inbox, envelope);
        }
        panic!("the network does not come to rest");
    }

    fn deliver(&mut self, to: &X500Name, inbox: InboxId, envelope: Envelope) {
        let event = Event::Deliver {
            inbox,
            envelope: Box::new(envelope),
            seed: self.seed(),
        };
        self.handle(to, event);
    }

    fn seed(&mut self) -> [u8; 32] {
        self.drawn += 1;
        *SecureHash::of(&self.drawn.to_le_bytes()).as_bytes()
    }

    fn handle(&mut self, me: &X500Name, event: Event) {
        let node = self.nodes.get_mut(me).unwrap();
        let mut todo: VecDeque<Action> = node.machine.handle(NOW, event).into();
        while let Some(action) = todo.pop_front() {
            let node = self.nodes.get_mut(me).unwrap();
            match action {
                Action::Commit(step) => {
                    let flow = step.flow;
                    let outgoing = node.commit(*step);
                    self.post(me, outgoing);
                    if self.crashing {
                        // What the machine still wanted is in the store, or was never decided.
                        return self.restart(me);
                    }
                    let node = self.nodes.get_mut(me).unwrap();
                    todo.extend(node.machine.handle(NOW, Event::Committed { flow }));
                }
                Action::Discard { inbox, reply } => {
                    node.store.inbox.remove(&inbox);
                    self.post(me, reply.into_iter().map(|reply| *reply).collect());
                }
                Action::Execute {
                    flow,
                    sequence,
                    request,
                } => {
                    let result = node.answer(flow, sequence, request);
                    let event = Event::HostResult {
                        flow,
                        sequence,
                        result,
                    };
                    todo.extend(node.machine.handle(NOW, event));
                }
                Action::Load { .. } => panic!("nobody retries a flow here"),
            }
        }
    }

    /// A node's memory is gone: it reads its store and goes on.
    fn restart(&mut self, me: &X500Name) {
        let node = &self.nodes[me];
        let party = self.parties[me].clone();
        let machine = self.machine(&party, &node.apps, &node.registry);
        let node = self.nodes.get_mut(me).unwrap();
        node.machine = machine;
        let flows: Vec<Checkpoint> = node.store.flows.values().cloned().collect();
        let inbox = node.store.inbox.clone();
        self.restarts += 1;
        let this = self.restarts;
        for checkpoint in flows {
            let checkpoint = Box::new(checkpoint);
            let seed = self.seed();
            self.handle(me, Event::Restore { checkpoint, seed });
            if self.restarts != this {
                // It committed and restarted; that restart has done the rest.
                return;
            }
        }
        for (id, envelope) in inbox {
            self.deliver(me, id, envelope);
            if self.restarts != this {
                return;
            }
        }
    }

    fn post(&mut self, me: &X500Name, outgoing: Vec<Envelope>) {
        let node = self.nodes.get_mut(me).unwrap();
        for envelope in outgoing {
            let decoded = Envelope::decode(&envelope.encode()).unwrap();
            let next = node.store.next_to.entry(envelope.recipient).or_insert(0);
            *next += 1;
            let inbox = InboxId {
                peer: me.clone(),
                sequence: *next,
            };
            self.messages.push_back((inbox, decoded));
        }
    }

    /// A non-validating notary: one request, one answer.
    fn notarise(&mut self, envelope: Envelope) {
        let SessionMessage::Initiate { flow, first, .. } = &envelope.body else {
            return;
        };
        assert_eq!(flow, NOTARISE);
        let message = NotarisationMessage::decode(first.as_deref().unwrap()).unwrap();
        let (payload, signature) = (&message.payload, &message.request_signature);
        payload.check_complete().unwrap();
        payload.request().verify(signature).unwrap();
        assert_eq!(self.parties[&envelope.sender].owning_key, signature.by);
        let (tx, request) = (payload.id(), payload.request());
        let conflicts: BTreeMap<_, _> = request
            .inputs()
            .iter()
            .filter_map(|input| Some((*input, *self.spent.get(input)?)))
            .filter(|(_, by)| *by != tx)
            .map(|(input, tx)| {
                let as_reference = false;
                (input, ConsumingTx { tx, as_reference })
            })
            .collect();
        let answer = if conflicts.is_empty() {
            let spent = request.inputs().iter().map(|input| (*input, tx));
            self.spent.extend(spent);
            let me = self.notaries.iter().find(|n| n.name == envelope.recipient);
            let organisation = me.unwrap().name.organisation();
            NotarisationAnswer::Signed(vec![sign_transaction(&key(organisation), &tx)])
        } else {
            let consumed = conflicts;
            NotarisationAnswer::Refused(NotaryError::Conflict { tx, consumed })
        };
        let reply = Envelope::new(
            envelope.recipient.clone(),
            envelope.sender,
            (envelope.session, false),
            0,
            envelope.owner,
            SessionMessage::Data {
                payload: answer.encode(),
                last: true,
            },
        );
        self.drawn += 1;
        let inbox = InboxId {
            peer: envelope.recipient,
            sequence: self.drawn,
        };
        self.messages.push_back((inbox, reply));
    }
}

impl Node {
    /// The states of the vault that are not consumed.
    pub(crate) fn unconsumed(&self) -> Vec<StateAndRef> {
        let kept = self.store.vault.iter().filter(|(_, kept)| !kept.consumed);
        kept.map(|(reference, kept)| StateAndRef::new(kept.state.clone(), *reference))
            .collect()
    }

    pub(crate) fn transaction(&self, id: TxId) -> Option<&SignedTransaction> {
        self.store.transactions.get(&id)
    }

    fn commit(&mut self, step: StepCommit) -> Vec<Envelope> {
        let store = &mut self.store;
        let row = store.flows.entry(step.flow).or_insert_with(|| Checkpoint {
            flow: step.flow,
            start: step.start.expect("a first commit has a start"),
            status: step.status,
            header: Vec::new(),
            progress: None,
            entries: Vec::new(),
        });
        row.status = step.status;
        row.header = step.checkpoint;
        row.progress = step.progress.or(row.progress.take());
        row.entries.extend(step.entries);
        for inbox in step.consumed {
            store.inbox.remove(&inbox);
        }
        if let Some(outcome) = step.outcome {
            store.flows.remove(&step.flow);
            store.locks.retain(|(flow, _), _| *flow != step.flow);
            store.outcomes.insert(step.flow, outcome);
        }
        for recording in step.recordings {
            let transaction = recording.transaction;
            let id = transaction.id();
            if recording.finality == Finality::InFlight {
                store.in_flight.insert(id);
                continue;
            }
            transaction.verify_required_signatures().unwrap();
            store.in_flight.remove(&id);
            for input in transaction.wire().inputs() {
                if let Some(kept) = store.vault.get_mut(input) {
                    kept.consumed = true;
                }
            }
            let relevant = |state: &TransactionState| match recording.states {
                StatesToRecord::None => false,
                StatesToRecord::OnlyRelevant => state.participants.contains(self.key.public()),
                StatesToRecord::AllVisible => true,
            };
            for output in transaction.wire().outputs_with_refs() {
                if relevant(&output.state) {
                    let kept = Kept {
                        state: output.state,
                        consumed: false,
                    };
                    store.vault.entry(output.reference).or_insert(kept);
                }
            }
            store.transactions.insert(id, transaction);
        }
        step.outgoing
    }

    fn answer(
        &mut self,
        flow: FlowId,
        sequence: u32,
        request: HostRequest,
    ) -> Result<Reply, HostError> {
        Ok(match request {
            HostRequest::Sign { id, by } => {
                assert_eq!(by, [self.key.public().clone()]);
                Reply::Signatures(vec![sign_transaction(&self.key, &id)])
            }
            HostRequest::SignNotarisation { request } => {
                Reply::RequestSignature(request.sign(&self.key))
            }
            HostRequest::Verify {
                transaction,
                dependencies,
                signatures,
            } => {
                self.verify(&transaction, &dependencies, &signatures)?;
                Reply::Done
            }
            HostRequest::Missing { ids } => {
                let known = &self.store.transactions;
                Reply::TxIds(
                    ids.into_iter()
                        .filter(|id| !known.contains_key(id))
                        .collect(),
                )
            }
            HostRequest::Transactions { ids } => {
                let known = ids.iter().filter_map(|id| self.store.transactions.get(id));
                Reply::Transactions(known.cloned().collect())
            }
            HostRequest::Lock {
                criteria,
                target,
                max_states,
            } => Reply::States(self.lock(flow, sequence, &criteria, &target, max_states)?),
            other => panic!("cash does not ask for {other:?}"),
        })
    }

    fn verify(
        &self,
        transaction: &SignedTransaction,
        dependencies: &[SignedTransaction],
        policy: &SignaturePolicy,
    ) -> Result<(), FlowError> {
        let mut contracts = Contracts::new();
        for contract in self.apps.iter().flat_map(|app| app.contracts()) {
            contracts.register(contract).unwrap();
        }
        let mut known = self.store.transactions.clone();
        let all = dependencies.iter().map(|d| (d, &SignaturePolicy::All));
        for (transaction, policy) in all.chain([(transaction, policy)]) {
            let notary = transaction.wire().notary().map(|n| n.owning_key.clone());
            let mut missing: Vec<_> = match policy {
                SignaturePolicy::All => Vec::new(),
                SignaturePolicy::AllButNotary => notary.into_iter().collect(),
                SignaturePolicy::AllBut(keys) => keys.iter().cloned().chain(notary).collect(),
            };
            missing.sort();
            let invalid = |error: &dyn Error| FlowError::Verification {
                tx: transaction.id(),
                reason: match error.source() {
                    Some(source) => format!("{error}: {source}"),
                    None => error.to_string(),
                },
            };
            let signatures = transaction.verify_signatures_except(&missing);
            signatures.map_err(|error| invalid(&error))?;
            let state = |reference: &StateRef| {
                let output = known.get(&reference.tx)?.wire().output(reference.index)?;
                Some(output.state)
            };
            let wire = Arc::clone(transaction.wire());
            let resolved = LedgerTransaction::resolve(wire, state, |_| None);
            let resolved = resolved.map_err(|error| invalid(&error))?;
            resolved
                .verify(&contracts)
                .map_err(|error| invalid(&error))?;
            known.insert(transaction.id(), transaction.clone());
        }
        Ok(())
    }

    fn lock(
        &mut self,
        flow: FlowId,
        sequence: u32,
        criteria: &Criteria,
        target: &LockTarget,
        max_states: u32,
    ) -> Result<Vec<StateAndRef>, FlowError> {
        let locked: BTreeSet<StateRef> = self.store.locks.values().flatten().copied().collect();
        let found = self.unconsumed().into_iter();
        let given = self.store.locks.get(&(flow, sequence)).cloned();
        if let Some(given) = given {
            return Ok(found
                .filter(|state| given.contains(&state.reference))
                .collect());
        }
        let mut taken = Vec::new();
        let (mut sum, mut wanted) = (0, 0);
        for state in found.filter(|state| !locked.contains(&state.reference)) {
            if !self.meets(&state, criteria) {
                continue;
            }
            let worth = match target {
                LockTarget::Sum {
                    schema,
                    column,
                    at_least,
                } => {
                    wanted = *at_least;
                    match self.column(&state.state, schema, column) {
                        Some(ColumnValue::BigInt(worth)) => worth,
                        other => panic!("{column} is {other:?}"),
                    }
                }
                LockTarget::References(references) => {
                    wanted = references.len() as i64;
                    i64::from(references.contains(&state.reference))
                }
                LockTarget::Count(count) => {
                    wanted = i64::from(*count);
                    1
                }
            };
            if worth > 0 && sum < wanted && taken.len() < max_states as usize {
                sum += worth;
                taken.push(state);
            }
        }
        if taken.is_empty() || sum < wanted {
            let available = sum;
            return Err(FlowError::Insufficient { wanted, available });
        }
        let references = taken.iter().map(|state| state.reference).collect();
        self.store.locks.insert((flow, sequence), references);
        Ok(taken)
    }

    fn meets(&self, state: &StateAndRef, criteria: &Criteria) -> bool {
        criteria.validate().unwrap();
        match criteria {
            Criteria::Status(StateStatus::Unconsumed) => true,
            Criteria::Notaries(names) => names.contains(&state.state.notary.name),
            Criteria::And(all) => all.iter().all(|one| self.meets(state, one)),
            Criteria::Column {
                schema,
                column,
                op: Cmp::Equal,
                value,
            } => self.column(&state.state, schema, column).as_ref() == Some(value),
            other => panic!("cash does not ask for {other:?}"),
        }
    }

    fn column(&self, state: &TransactionState, schema: &str, column: &str) -> Option<ColumnValue> {
        let mut schemas = self.apps.iter().flat_map(|app| app.schemas());
        let schema = schemas
            .find(|known| known.name == schema)
            .expect("a known schema");
        let table = schema.describe().unwrap();
        let index = table.columns.iter().position(|known| known.name == column);
        let index = index.expect("a known column");
        schema
            .row(&table, state)
            .unwrap()
            .map(|row| row[index].clone())
    }
}
