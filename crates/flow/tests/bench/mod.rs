//! A workbench for one machine: flows that do as they are told, and a store that keeps their steps.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use quorate_flow::{
    Action, App, Checkpoint, Context, Envelope, Event, Finality, Flow, FlowError, FlowId,
    FlowRegistry, FlowStart, FlowTimeout, HostRequest, InboxId, Limits, LockTarget, Machine,
    Origin, Owner, Responder, RetryPolicy, Session, SessionId, SessionMessage, SignaturePolicy,
    StatesToRecord, StepCommit, Surroundings, standard,
};
use quorate_identity::{KeyPair, Party, SecureHash, X500Name};
use quorate_ledger::network::NotaryInfo;
use quorate_ledger::vault::{Criteria, VaultQuery};
use quorate_ledger::{
    AttachmentId, Command, Contract, ContractRef, SignedTransaction, StateRef, Timestamp,
    TransactionBuilder, TransactionState,
};
use serde::{Deserialize, Serialize};

/// One thing that a scripted flow does.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Op {
    Open(String),
    Send(usize, String),
    SendBytes(usize, usize),
    Receive(usize),
    ReceiveWithin(usize, u64),
    Close(usize),
    Sleep(Duration),
    Now,
    Entropy,
    Party(String),
    Notaries,
    Parameters,
    Contract(String),
    Sign,
    Lock,
    Query,
    Verify,
    Missing,
    Transactions,
    States,
    MissingAttachments,
    Attachment,
    StoreAttachment,
    PartyOfKey(String),
    SubFlow,
    Effect,
    Record,
    Progress(String),
    Fail(String),
    Care(String),
    Notarise,
    Panic(String),
}

pub(crate) fn party(organisation: &str) -> Party {
    Party {
        name: name(organisation),
        owning_key: key(organisation).public().clone(),
    }
}

pub(crate) fn key(organisation: &str) -> KeyPair {
    let mut seed = [7; 32];
    seed[..organisation.len()].copy_from_slice(organisation.as_bytes());
    KeyPair::ed25519_from_seed(&seed)
}

pub(crate) fn name(organisation: &str) -> X500Name {
    X500Name::new(organisation, "Osaka", "JP").expect("a name")
}

/// A transaction that needs no notary, the same each time.
pub(crate) fn transaction() -> SignedTransaction {
    let me = party("Me");
    let state = TransactionState {
        contract: ContractRef {
            name: "bench.Things".to_owned(),
            code: SecureHash::of(b"bench.Things"),
        },
        state_type: "bench.Thing".to_owned(),
        data: vec![1, 2, 3],
        participants: vec![me.owning_key.clone()],
        notary: party("Notary"),
    };
    let wire = TransactionBuilder::new(party("Notary"))
        .add_output(state)
        .add_command(Command::new("bench.Make", [me.owning_key]))
        .build([5; 32])
        .expect("a transaction");
    SignedTransaction::unsigned(wire)
}

async fn perform(
    ctx: &Context,
    sessions: &mut Vec<Session>,
    ops: Vec<Op>,
) -> Result<Vec<String>, FlowError> {
    let mut said = Vec::new();
    for op in ops {
        let session = |n: usize| sessions[n].clone();
        let words = match op {
            Op::Open(peer) => {
                sessions.push(ctx.session(&name(&peer)).await?);
                "opened".to_owned()
            }
            Op::Send(n, text) => format!("{:?}", session(n).send(&text).await),
            Op::SendBytes(n, size) => format!("{:?}", session(n).send_bytes(vec![0; size]).await),
            Op::Receive(n) => match session(n).receive::<String>().await {
                Ok(text) => text,
                Err(error) => error.to_string(),
            },
            Op::ReceiveWithin(n, ms) => {
                match session(n)
                    .receive_within::<String>(Duration::from_millis(ms))
                    .await
                {
                    Ok(text) => text,
                    Err(error) => error.to_string(),
                }
            }
            Op::Close(n) => format!("{:?}", session(n).close().await),
            Op::Sleep(duration) => format!("{:?}", ctx.sleep(duration).await),
            Op::Now => format!("{:?}", ctx.now().await),
            Op::Entropy => SecureHash::of(&ctx.entropy().await?).to_string(),
            Op::Party(who) => format!("{:?}", ctx.party(&name(&who)).await),
            Op::Notaries => format!("{}", ctx.notaries().await?.len()),
            Op::Parameters => format!("{:?}", ctx.network_parameters().await),
            Op::Contract(which) => format!("{:?}", ctx.contract(&which).await),
            Op::Sign => {
                let me = ctx.me().owning_key;
                let signed = ctx.sign(transaction().id(), vec![me]).await;
                format!("{:?}", signed.map(|signatures| signatures.len()))
            }
            Op::Lock => {
                let locked = ctx.lock_states(Criteria::All, LockTarget::Count(1), 1);
                format!("{:?}", locked.await.map(|states| states.len()))
            }
            Op::Notarise => {
                let signed = standard::notarise(ctx, &transaction()).await;
                format!("{:?}", signed.map(|signatures| signatures.len()))
            }
            Op::Query => {
                let page = ctx.query(VaultQuery::new(Criteria::All)).await;
                format!("{:?}", page.map(|page| page.total))
            }
            Op::Verify => {
                let transaction = transaction();
                let verdict = ctx.verify(&transaction, SignaturePolicy::AllButNotary);
                format!("{:?}", verdict.await)
            }
            Op::Missing => format!("{:?}", ctx.missing(vec![transaction().id()]).await),
            Op::Transactions => {
                let found = ctx.transactions(vec![transaction().id()]).await;
                format!("{:?}", found.map(|transactions| transactions.len()))
            }
            Op::States => {
                let found = ctx.states(vec![StateRef::new(transaction().id(), 0)]).await;
                format!("{:?}", found.map(|states| states.len()))
            }
            Op::MissingAttachments => {
                let missing = ctx.missing_attachments(vec![AttachmentId::of(b"file")]);
                format!("{:?}", missing.await.map(|ids| ids.len()))
            }
            Op::Attachment => format!("{:?}", ctx.attachment(AttachmentId::of(b"file")).await),
            Op::StoreAttachment => {
                format!("{:?}", ctx.store_attachment(b"file".to_vec()).await)
            }
            Op::PartyOfKey(who) => {
                let found = ctx.party_of_key(&party(&who).owning_key).await;
                format!("{:?}", found.map(|party| party.name.to_string()))
            }
            Op::SubFlow => {
                let ops = Vec::new();
                format!("{:?}", ctx.sub_flow(Part { ops }).await)
            }
            Op::Effect => ctx.side_effect::<_, String>("effect", &"please").await?,
            Op::Record => {
                let transactions = vec![transaction()];
                let recorded =
                    ctx.record(transactions, StatesToRecord::OnlyRelevant, Finality::Final);
                format!("{:?}", recorded.await)
            }
            Op::Progress(step) => {
                ctx.progress(&step);
                step
            }
            Op::Fail(reason) => return Err(FlowError::failed(reason)),
            Op::Care(reason) => return Err(FlowError::NeedsCare(reason)),
            Op::Panic(reason) => panic!("{reason}"),
        };
        said.push(words);
    }
    Ok(said)
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Script {
    pub(crate) ops: Vec<Op>,
}

impl Flow for Script {
    const NAME: &'static str = "bench.Script";
    type Output = Vec<String>;

    async fn call(self, ctx: Context) -> Result<Vec<String>, FlowError> {
        perform(&ctx, &mut Vec::new(), self.ops).await
    }
}

/// A part of a script.
#[derive(Serialize, Deserialize)]
pub(crate) struct Part {
    ops: Vec<Op>,
}

impl Flow for Part {
    const NAME: &'static str = "bench.Part";
    type Output = usize;

    async fn call(self, _: Context) -> Result<usize, FlowError> {
        Ok(self.ops.len())
    }
}

/// Receives a script and does it; its session is number 0.
struct Obey;

impl Responder for Obey {
    const INITIATED_BY: &'static str = Script::NAME;

    async fn call(ctx: Context, session: Session) -> Result<(), FlowError> {
        let ops: Vec<Op> = session.receive().await?;
        perform(&ctx, &mut vec![session], ops).await?;
        Ok(())
    }
}

struct Bench0;

impl App for Bench0 {
    fn name(&self) -> &str {
        "bench"
    }

    fn version(&self) -> u32 {
        3
    }

    fn contracts(&self) -> Vec<Arc<dyn Contract>> {
        Vec::new()
    }

    fn register_flows(&self, registry: &mut FlowRegistry) {
        registry.flow::<Script>().responder::<Obey>();
    }
}

pub(crate) fn registry() -> FlowRegistry {
    let mut registry = FlowRegistry::new();
    registry.install(&Bench0).expect("one application");
    registry
}

pub(crate) struct Bench {
    pub(crate) machine: Machine,
    pub(crate) now: Timestamp,
    /// What is durable of each flow.
    pub(crate) stored: BTreeMap<FlowId, Checkpoint>,
    /// Every step that was committed.
    pub(crate) steps: Vec<StepCommit>,
    mail: u64,
}

pub(crate) const LIMITS: Limits = Limits {
    flows: 3,
    system_flows: 1,
    mail_per_flow: 4,
};

impl Bench {
    pub(crate) fn new() -> Self {
        Self::with(registry())
    }

    /// What its flows see of the network, unless a test changes it.
    pub(crate) fn surroundings() -> Surroundings {
        Surroundings {
            me: party("Me"),
            services: Vec::new(),
            parties: ["Me", "You", "Other"]
                .map(|who| (name(who), party(who)))
                .into(),
            providers: BTreeMap::new(),
            flow_timeout: FlowTimeout::default(),
            notaries: vec![NotaryInfo {
                identity: party("Notary"),
                validating: false,
            }],
            parameters: Some(SecureHash::of(b"parameters")),
            contracts: BTreeMap::from([(
                "bench.Things".to_owned(),
                SecureHash::of(b"bench.Things"),
            )]),
        }
    }

    pub(crate) fn with(registry: FlowRegistry) -> Self {
        let owner = Owner {
            instance: "host:/opt/quorate".to_owned(),
            generation: 4,
        };
        let retries = RetryPolicy {
            attempts: 3,
            ..RetryPolicy::default()
        };
        let surroundings = Arc::new(Self::surroundings());
        Self {
            machine: Machine::new(Arc::new(registry), surroundings, owner, LIMITS, retries),
            now: Timestamp::from_seconds(1_750_000_000),
            stored: BTreeMap::new(),
            steps: Vec::new(),
            mail: 0,
        }
    }

    /// The same store with a new machine, as after a crash.
    pub(crate) fn restarted(self) -> Self {
        self.restarted_with(registry())
    }

    pub(crate) fn restarted_with(self, registry: FlowRegistry) -> Self {
        Self {
            stored: self.stored,
            now: self.now,
            mail: self.mail,
            ..Self::with(registry)
        }
    }

    pub(crate) fn handle(&mut self, event: Event) -> Vec<Action> {
        let actions = self.machine.handle(self.now, event);
        let mut recount = BTreeMap::new();
        for view in self.machine.views() {
            *recount.entry(view.status).or_insert(0) += 1;
        }
        assert_eq!(self.machine.census(), recount);
        actions
    }

    pub(crate) fn start(&mut self, id: u8, ops: &[Op]) -> (FlowId, Vec<Action>) {
        let flow = FlowId::from_bytes([id; 16]);
        let arguments = serde_json::json!({ "ops": ops }).to_string();
        let start = FlowStart {
            class: Script::NAME.to_owned(),
            arguments,
            client_id: None,
            origin: Origin::Service,
            started_at: self.now,
        };
        let seed = [id; 32];
        let actions = self.handle(Event::Start {
            flow,
            start,
            trace: None,
            seed,
        });
        (flow, actions)
    }

    /// Makes the commits among the actions durable and says so; what follows, without commits.
    pub(crate) fn settle(&mut self, actions: Vec<Action>) -> Vec<Action> {
        let mut rest = Vec::new();
        let mut todo = actions;
        while !todo.is_empty() {
            let mut next = Vec::new();
            for action in todo {
                match action {
                    Action::Commit(step) => next.extend(self.commit(*step)),
                    other => rest.push(other),
                }
            }
            todo = next;
        }
        rest
    }

    pub(crate) fn commit(&mut self, step: StepCommit) -> Vec<Action> {
        let flow = step.flow;
        self.apply(&step);
        self.steps.push(step);
        self.handle(Event::Committed { flow })
    }

    pub(crate) fn apply(&mut self, step: &StepCommit) {
        if let Some(start) = &step.start {
            let checkpoint = Checkpoint {
                flow: step.flow,
                start: start.clone(),
                status: step.status,
                header: Vec::new(),
                progress: None,
                entries: Vec::new(),
            };
            assert!(self.stored.insert(step.flow, checkpoint).is_none());
        }
        let row = self.stored.get_mut(&step.flow).expect("a known flow");
        row.status = step.status;
        row.header.clone_from(&step.checkpoint);
        row.entries.extend(step.entries.iter().cloned());
        if step.outcome.is_some() {
            self.stored.remove(&step.flow);
        }
    }

    /// Refuses the only commit among the actions.
    pub(crate) fn refuse(&mut self, actions: Vec<Action>) -> Vec<Action> {
        let flow = only_commit(&actions).flow;
        self.handle(Event::CommitFailed {
            flow,
            reason: "disk full".to_owned(),
        })
    }

    pub(crate) fn restore(&mut self, flow: FlowId) -> Vec<Action> {
        let checkpoint = Box::new(self.stored[&flow].clone());
        self.handle(Event::Restore {
            checkpoint,
            seed: [77; 32],
        })
    }

    /// Delivers a message of `from`, in the session and direction of `as_initiator`.
    pub(crate) fn deliver(
        &mut self,
        from: &str,
        session: SessionId,
        as_initiator: bool,
        sequence: u64,
        body: SessionMessage,
    ) -> (InboxId, Vec<Action>) {
        self.mail += 1;
        let inbox = InboxId {
            peer: name(from),
            sequence: self.mail,
        };
        let owner = Owner {
            instance: "there".to_owned(),
            generation: 1,
        };
        let ends = (session, as_initiator);
        let envelope = Envelope::new(name(from), name("Me"), ends, sequence, owner, body);
        let event = Event::Deliver {
            inbox: inbox.clone(),
            envelope: Box::new(envelope),
            seed: [8; 32],
        };
        (inbox, self.handle(event))
    }

    /// The result that a flow ended with, in its last step.
    pub(crate) fn result(&self, flow: FlowId) -> Vec<String> {
        use quorate_flow::FlowOutcome;
        let last = self.steps.iter().rfind(|step| step.flow == flow);
        match last.and_then(|step| step.outcome.as_ref()) {
            Some(FlowOutcome::Completed { result }) => {
                serde_json::from_str(result).expect("a result")
            }
            other => panic!("the flow came to {other:?}"),
        }
    }
}

pub(crate) fn only_commit(actions: &[Action]) -> &StepCommit {
    match actions {
        [Action::Commit(step)] => step,
        other => panic!("not one commit: {other:?}"),
    }
}

pub(crate) fn only_request(actions: &[Action]) -> (u32, &HostRequest) {
    match actions {
        [
            Action::Execute {
                sequence, request, ..
            },
        ] => (*sequence, request),
        other => panic!("not one request: {other:?}"),
    }
}

pub(crate) fn text(words: &str) -> SessionMessage {
    SessionMessage::Data {
        payload: serde_json::to_vec(words).expect("text becomes JSON"),
        last: false,
    }
}

pub(crate) fn initiate(ops: &[Op]) -> SessionMessage {
    SessionMessage::Initiate {
        flow: Script::NAME.to_owned(),
        app_version: 1,
        first: Some(serde_json::to_vec(ops).expect("a script becomes JSON")),
    }
}
