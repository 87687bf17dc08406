//! The machine that runs all flows of a node: events in, actions out.
//!
//! The owner calls [`Machine::handle`] with the time and an [`Event`], and carries out the
//! [`Action`]s that come back, in order. For every [`Action::Commit`] it answers, when the commit
//! is durable, with [`Event::Committed`] (or [`Event::CommitFailed`]); until then that flow does
//! nothing else. Messages of a step leave only after its commit, so a step that never became
//! durable was never seen by anybody. [`Machine::next_wakeup`] tells when to send
//! [`Event::Tick`].
//!
//! Hospital rules. A request of the host that fails for now is repeated with back-off; after
//! [`RetryPolicy::attempts`] the flow is hospitalised. So is a flow whose code panics, is not
//! deterministic, asks for care itself, or whose step the store refused. A hospitalised flow
//! keeps its durable state, loses only the step that failed, receives its messages, and waits for
//! a retry or a kill; a restart of the node retries it. One that cannot even be read is held the
//! same way and keeps nobody else from starting.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

use quorate_identity::{Party, PublicKey, SecureHash, X500Name};
use quorate_ledger::Timestamp;
use quorate_ledger::network::NotaryInfo;
use serde::{Deserialize, Serialize};

use crate::commit::{Checkpoint, FlowOutcome, FlowStart, FlowStatus, InboxId, Origin, StepCommit};
use crate::context::{Cell, Context, Mail, SessionState, Waits};
use crate::error::{FlowError, HostError};
use crate::ids::{ClientId, FlowId, SessionId};
use crate::journal::{ENTRY_VERSION, HostRequest, Reply, decode_entry};
use crate::message::{Envelope, Owner, SessionMessage, reason};
use crate::registry::{Body, FlowRegistry};

/// What flows can look up about the network without asking anybody.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// The party that this node acts for.
    pub me: Party,
    /// Further identities that this node answers for: a notary service's.
    pub services: Vec<Party>,
    /// The network map: every party that can be addressed, by legal name.
    pub parties: BTreeMap<X500Name, Party>,
    /// The network's notaries.
    pub notaries: Vec<NotaryInfo>,
    /// Hash of the network parameters in force.
    pub parameters: Option<SecureHash>,
    /// The installed contracts and the hashes of their code.
    pub contracts: BTreeMap<String, SecureHash>,
}

impl Surroundings {
    /// The identity of this node with that name.
    fn local(&self, name: &X500Name) -> Option<&Party> {
        std::iter::once(&self.me)
            .chain(&self.services)
            .find(|party| party.name == *name)
    }

    pub(crate) fn party_of_key(&self, key: &PublicKey) -> Option<&Party> {
        std::iter::once(&self.me)
            .chain(&self.services)
            .chain(self.parties.values())
            .chain(self.notaries.iter().map(|notary| &notary.identity))
            .find(|party| party.owning_key == *key)
    }

    pub(crate) fn party(&self, name: &X500Name) -> Option<&Party> {
        if *name == self.me.name {
            return Some(&self.me);
        }
        self.parties.get(name).or_else(|| {
            self.notaries
                .iter()
                .map(|notary| &notary.identity)
                .find(|party| party.name == *name)
        })
    }
}

/// How often and how soon a request of the host is repeated.
#[derive(Debug, Clone)]
pub struct RetryPolicy {
    /// Attempts before the hospital takes over.
    pub attempts: u32,
    /// The wait after the first failure.
    pub first: Duration,
    /// Each further wait is this many percent of the one before.
    pub growth_percent: u32,
    /// The longest wait.
    pub longest: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 10,
            first: Duration::from_millis(200),
            growth_percent: 180,
            longest: Duration::from_secs(30),
        }
    }
}

impl RetryPolicy {
    fn wait_after(&self, failures: u32) -> Duration {
        let mut wait = self.first;
        for _ in 1..failures {
            wait = (wait * self.growth_percent / 100).min(self.longest);
        }
        wait
    }
}

/// Bounds of a machine.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Flows that are not ended; beyond it starts are refused and peers' sessions are held.
    pub flows: usize,
    /// Messages that wait for one flow; a peer that sends more has its session ended.
    pub mail_per_flow: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            flows: 50_000,
            mail_per_flow: 1_000,
        }
    }
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// Somebody starts a flow; [`Machine::check_start`] has allowed it.
    Start {
        /// A new id.
        flow: FlowId,
        /// What to run.
        start: FlowStart,
        /// 32 secret, unpredictable bytes.
        seed: [u8; 32],
    },
    /// A stored flow is to go on: at start-up, or because of [`Action::Load`].
    Restore {
        /// The flow as stored.
        checkpoint: Box<Checkpoint>,
        /// 32 secret, unpredictable bytes.
        seed: [u8; 32],
    },
    /// A message is in the inbox, durably.
    Deliver {
        /// Its place there.
        inbox: InboxId,
        /// The message; its sender is authenticated.
        envelope: Box<Envelope>,
        /// 32 secret, unpredictable bytes, for the flow that it may start.
        seed: [u8; 32],
    },
    /// The answer to [`Action::Execute`].
    HostResult {
        /// The flow.
        flow: FlowId,
        /// The operation's number.
        sequence: u32,
        /// The answer.
        result: Result<Reply, HostError>,
    },
    /// The flow's last [`Action::Commit`] is durable.
    Committed {
        /// The flow.
        flow: FlowId,
    },
    /// The flow's last [`Action::Commit`] was refused and has changed nothing.
    CommitFailed {
        /// The flow.
        flow: FlowId,
        /// Why.
        reason: String,
    },
    /// Time has passed.
    Tick,
    /// An operator ends the flow.
    Kill {
        /// The flow.
        flow: FlowId,
    },
    /// An operator stops the flow for now.
    Pause {
        /// The flow.
        flow: FlowId,
    },
    /// An operator lets a paused or hospitalised flow go on.
    Retry {
        /// The flow.
        flow: FlowId,
    },
}

/// What is to be done.
#[derive(Debug, PartialEq)]
pub enum Action {
    /// Make this durable, whole or not at all, then send what it sends.
    Commit(Box<StepCommit>),
    /// Remove a message from the inbox, and send the reply if there is one, in one commit.
    Discard {
        /// The message.
        inbox: InboxId,
        /// The reply.
        reply: Option<Box<Envelope>>,
    },
    /// Answer a flow's request.
    Execute {
        /// The flow.
        flow: FlowId,
        /// The operation's number: with the flow's id, the identity of the request.
        sequence: u32,
        /// The request.
        request: HostRequest,
    },
    /// Read the flow from the store and send [`Event::Restore`].
    Load {
        /// The flow.
        flow: FlowId,
    },
}

/// Why a flow cannot be started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StartRefused {
    /// No such flow.
    #[error(
        "no installed application has a flow '{class}' that clients may start; the flows are: \
         {known}"
    )]
    UnknownFlow {
        /// What was asked for.
        class: String,
        /// The startable ones.
        known: String,
    },
    /// The arguments are not the flow's.
    #[error("arguments of flow {class}: {reason}")]
    BadArguments {
        /// The flow.
        class: String,
        /// What the decoder said.
        reason: String,
    },
    /// The node is draining.
    #[error("the node is in draining mode and starts no flows; try again when it is off")]
    Draining,
    /// Too many flows are running.
    #[error("{limit} flows are running, the most that this node runs at a time; try again later")]
    Busy {
        /// The bound.
        limit: usize,
    },
}

/// A flow as operators see it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FlowView {
    /// The flow.
    pub flow: FlowId,
    /// Its registered name.
    pub class: String,
    /// The client's name for the request.
    pub client_id: Option<ClientId>,
    /// Who asked for it.
    pub origin: Origin,
    /// Where it stands.
    pub status: FlowStatus,
    /// The progress step that it named last.
    pub progress: Option<String>,
    /// What it waits for.
    pub waiting_for: Option<String>,
    /// When it was started.
    pub started_at: Timestamp,
    /// Since when it has been where it is.
    pub since: Timestamp,
    /// Why it is in the hospital.
    pub ailment: Option<String>,
    /// How often it has been admitted without getting on in between.
    pub visits: u32,
    /// The parties it has open sessions with.
    pub peers: Vec<X500Name>,
}

/// A flow's header, as its checkpoint keeps it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Header {
    version: u32,
    me: Party,
    sessions: BTreeMap<SessionId, SessionState>,
    next_session: u32,
    /// The deadline of the operation that the flow waits in.
    deadline: Option<(u32, Timestamp)>,
    ailment: Option<Ailment>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Ailment {
    reason: String,
    since: Timestamp,
    visits: u32,
}

/// The last durable header: read, or bytes that this program cannot read and keeps as they are.
enum Base {
    Known(Box<Header>),
    Unreadable(Vec<u8>),
}

/// What follows a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    Wait,
    Execute,
    GoOn,
    Remove,
    Nothing,
}

/// A body with its cell: present while the flow can work.
struct Active {
    cell: Arc<Mutex<Cell>>,
    body: Body,
}

impl Active {
    fn cell(&self) -> MutexGuard<'_, Cell> {
        self.cell.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Run {
    start: FlowStart,
    /// The start is durable.
    recorded: bool,
    status: FlowStatus,
    /// The status in the last commit.
    durable: FlowStatus,
    base: Base,
    active: Option<Active>,
    /// Mail of a flow without a body.
    mail: BTreeMap<SessionId, VecDeque<Mail>>,
    committing: Option<After>,
    /// What becomes the base when the commit is durable.
    next_base: Option<Box<Header>>,
    /// Mail that the commit under way takes.
    in_doubt: Vec<(SessionId, Mail)>,
    /// Failed attempts at the pending request of the host, and when to try again.
    failures: u32,
    retry_at: Option<Timestamp>,
    /// An operator's wish that came during a commit.
    wish: Option<Wish>,
    ailment: Option<Ailment>,
    progress: Option<String>,
    since: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Kill,
    Pause,
}

/// What a waiting body leads to.
enum Next {
    Execute(u32, HostRequest),
    Commit(FlowStatus, After),
    Park(Option<Timestamp>),
}

/// The flows of one node.
pub struct Machine {
    registry: Arc<FlowRegistry>,
    surroundings: Arc<Surroundings>,
    owner: Owner,
    limits: Limits,
    retries: RetryPolicy,
    runs: BTreeMap<FlowId, Run>,
    /// Which flow a session's messages go to; the flag tells whether it is the initiator.
    routes: BTreeMap<(SessionId, bool), FlowId>,
    timers: BTreeSet<(Timestamp, FlowId)>,
    /// First messages (and what follows them) that wait until flows may start again.
    held: VecDeque<(InboxId, Box<Envelope>, [u8; 32])>,
    draining: bool,
}

impl Machine {
    /// A machine without flows, for the instance `owner`.
    pub fn new(
        registry: Arc<FlowRegistry>,
        surroundings: Arc<Surroundings>,
        owner: Owner,
        limits: Limits,
        retries: RetryPolicy,
    ) -> Self {
        Self {
            registry,
            surroundings,
            owner,
            limits,
            retries,
            runs: BTreeMap::new(),
            routes: BTreeMap::new(),
            timers: BTreeSet::new(),
            held: VecDeque::new(),
            draining: false,
        }
    }

    /// Replaces what flows can look up, for operations from now on.
    pub fn set_surroundings(&mut self, surroundings: Arc<Surroundings>) {
        for run in self.runs.values_mut() {
            if let Some(active) = &run.active {
                active.cell().surroundings = Arc::clone(&surroundings);
            }
        }
        self.surroundings = surroundings;
    }

    /// Whether new flows are kept from starting; sessions opened by peers wait meanwhile.
    pub fn set_draining(&mut self, draining: bool) {
        self.draining = draining;
    }

    /// Whether new flows are kept from starting.
    pub fn draining(&self) -> bool {
        self.draining
    }

    /// Whether a client may start this flow with these arguments now.
    pub fn check_start(&self, class: &str, arguments: &str) -> Result<(), StartRefused> {
        if self.draining {
            return Err(StartRefused::Draining);
        }
        if self.runs.len() >= self.limits.flows {
            return Err(StartRefused::Busy {
                limit: self.limits.flows,
            });
        }
        if !self.registry.is_startable(class) {
            let known: Vec<_> = self.registry.startable().collect();
            return Err(StartRefused::UnknownFlow {
                class: class.to_owned(),
                known: known.join(", "),
            });
        }
        let probe = self.blank_cell(FlowId::from_bytes([0; 16]), self.header(), [0; 32]);
        let ctx = context(&probe, "");
        match self.registry.start(class, ctx, arguments) {
            Some(Err(reason)) => Err(StartRefused::BadArguments {
                class: class.to_owned(),
                reason,
            }),
            _ => Ok(()),
        }
    }

    /// When the next [`Event::Tick`] is due.
    pub fn next_wakeup(&self) -> Option<Timestamp> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Flows that have not ended.
    pub fn len(&self) -> usize {
        self.runs.len()
    }

    /// Whether no flow is left.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Messages that wait because no flow may start now.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// How many flows stand where.
    pub fn census(&self) -> BTreeMap<FlowStatus, usize> {
        let mut census = BTreeMap::new();
        for run in self.runs.values() {
            *census.entry(run.status).or_insert(0) += 1;
        }
        census
    }

    /// Every flow that has not ended, as operators see it.
    pub fn views(&self) -> impl Iterator<Item = FlowView> + '_ {
        self.runs.iter().map(|(flow, run)| view(*flow, run))
    }

    /// One flow as operators see it.
    pub fn view(&self, flow: FlowId) -> Option<FlowView> {
        self.runs.get(&flow).map(|run| view(flow, run))
    }

    /// Applies an event at the time `now`.
    pub fn handle(&mut self, now: Timestamp, event: Event) -> Vec<Action> {
        let mut out = Vec::new();
        match event {
            Event::Start { flow, start, seed } => self.on_start(now, flow, start, seed, &mut out),
            Event::Restore { checkpoint, seed } => {
                self.on_restore(now, *checkpoint, seed, &mut out);
            }
            Event::Deliver {
                inbox,
                envelope,
                seed,
            } => self.on_deliver(now, inbox, envelope, seed, &mut out),
            Event::HostResult {
                flow,
                sequence,
                result,
            } => self.on_host_result(now, flow, sequence, result, &mut out),
            Event::Committed { flow } => self.on_committed(now, flow, &mut out),
            Event::CommitFailed { flow, reason } => {
                self.on_commit_failed(now, flow, &reason, &mut out);
            }
            Event::Tick => self.on_tick(now, &mut out),
            Event::Kill { flow } => self.on_kill(now, flow, &mut out),
            Event::Pause { flow } => self.on_pause(now, flow, &mut out),
            Event::Retry { flow } => self.on_retry(flow, &mut out),
        }
        self.release_held(now, &mut out);
        out
    }

    fn on_start(
        &mut self,
        now: Timestamp,
        flow: FlowId,
        start: FlowStart,
        seed: [u8; 32],
        out: &mut Vec<Action>,
    ) {
        let header = self.header();
        let run = Run::new(start, Base::Known(Box::new(header)), now);
        self.runs.insert(flow, run);
        self.build(now, flow, seed, VecDeque::new(), out);
    }

    fn on_restore(
        &mut self,
        now: Timestamp,
        checkpoint: Checkpoint,
        seed: [u8; 32],
        out: &mut Vec<Action>,
    ) {
        let Checkpoint {
            flow,
            start,
            status,
            header,
            progress,
            entries,
        } = checkpoint;
        let read = read_header(&header).and_then(|header| Ok((header, read_journal(&entries)?)));
        let known = self.runs.remove(&flow);
        if known.as_ref().is_some_and(|run| run.committing.is_some()) {
            // A commit of this very flow is under way; what was read is older than that.
            self.runs.extend(known.map(|run| (flow, run)));
            return;
        }
        // A flow that is here already is loaded again because somebody wants it to run.
        let wanted = known.is_some();
        let (base, replay, trouble) = match read {
            Ok((header, replay)) => (Base::Known(Box::new(header)), replay, None),
            Err(reason) => (Base::Unreadable(header), VecDeque::new(), Some(reason)),
        };
        let mut run = Run::new(start, base, now);
        run.recorded = true;
        run.status = status;
        run.durable = status;
        run.progress = progress;
        if let Some(known) = known {
            run.mail = known.mail;
        }
        if let Base::Known(header) = &run.base {
            run.ailment.clone_from(&header.ailment);
            for (id, session) in &header.sessions {
                self.routes.insert((*id, session.initiator), flow);
            }
        }
        self.runs.insert(flow, run);
        match trouble {
            Some(reason) => {
                let reason = format!("its checkpoint cannot be read: {reason}");
                self.hospitalise(now, flow, &reason, out);
            }
            None if status == FlowStatus::Paused && !wanted => {}
            None => self.build(now, flow, seed, replay, out),
        }
    }

    /// Gives a flow its body and lets it run.
    fn build(
        &mut self,
        now: Timestamp,
        flow: FlowId,
        seed: [u8; 32],
        replay: VecDeque<crate::journal::Entry>,
        out: &mut Vec<Action>,
    ) {
        let Some(run) = self.runs.get_mut(&flow) else {
            return;
        };
        let Base::Known(header) = &run.base else {
            return;
        };
        let (header, start) = (header.as_ref().clone(), run.start.clone());
        let mail = std::mem::take(&mut run.mail);
        let cell = self.blank_cell(flow, header, seed);
        {
            let mut inner = cell.lock().unwrap_or_else(PoisonError::into_inner);
            inner.now = now;
            inner.replay = replay;
            inner.mail = mail;
        }
        let made = self.make_body(&start, &cell);
        let Some(run) = self.runs.get_mut(&flow) else {
            return;
        };
        match made {
            Ok(body) => {
                run.active = Some(Active { cell, body });
                run.failures = 0;
                run.status = FlowStatus::Runnable;
                run.since = now;
                self.advance(now, flow, out);
            }
            Err(reason) => {
                run.mail =
                    std::mem::take(&mut cell.lock().unwrap_or_else(PoisonError::into_inner).mail);
                self.hospitalise(now, flow, &reason, out);
            }
        }
    }

    fn make_body(&self, start: &FlowStart, cell: &Arc<Mutex<Cell>>) -> Result<Body, String> {
        let missing = || {
            format!(
                "no installed application has the flow '{}' any more; install it and retry, or \
                 kill the flow",
                start.class
            )
        };
        if let Origin::Peer { name } = &start.origin {
            let session = {
                let inner = cell.lock().unwrap_or_else(PoisonError::into_inner);
                inner
                    .sessions
                    .iter()
                    .find(|(_, session)| !session.initiator)
                    .map(|(id, _)| *id)
            };
            let session = session.ok_or("its checkpoint lacks the session that it answers")?;
            let initiating = self
                .registry
                .responder_name(&start.class)
                .ok_or_else(missing)?;
            let ctx = context(cell, initiating);
            let session = ctx.answering(session, name.clone());
            return self
                .registry
                .respond(&start.class, ctx, session)
                .ok_or_else(missing);
        }
        let name = self.registry.flow_name(&start.class).ok_or_else(missing)?;
        match self
            .registry
            .start(&start.class, context(cell, name), &start.arguments)
        {
            None => Err(missing()),
            Some(Err(reason)) => Err(format!("its arguments cannot be read: {reason}")),
            Some(Ok(body)) => Ok(body),
        }
    }

    /// Runs the body until it waits or ends.
    fn advance(&mut self, now: Timestamp, flow: FlowId, out: &mut Vec<Action>) {
        let Some(run) = self.runs.get_mut(&flow) else {
            return;
        };
        let Some(active) = run.active.as_mut() else {
            return;
        };
        {
            let mut cell = active.cell();
            cell.now = cell.now.max(now);
            cell.breather = false;
        }
        let body = &mut active.body;
        let polled = catch_unwind(AssertUnwindSafe(|| {
            body.as_mut()
                .poll(&mut std::task::Context::from_waker(Waker::noop()))
        }));
        match polled {
            Err(panic) => {
                let reason = format!("its code panicked: {}", panic_text(panic.as_ref()));
                self.hospitalise(now, flow, &reason, out);
            }
            Ok(Poll::Ready(Err(FlowError::NeedsCare(reason)))) => {
                self.hospitalise(now, flow, &reason, out);
            }
            Ok(Poll::Ready(result)) => self.finish(now, flow, result, out),
            Ok(Poll::Pending) => self.suspend(now, flow, out),
        }
    }

    /// The body waits: decide what for, and whether the step is to be committed first.
    fn suspend(&mut self, now: Timestamp, flow: FlowId, out: &mut Vec<Action>) {
        let Some(run) = self.runs.get_mut(&flow) else {
            return;
        };
        let Some(active) = &run.active else {
            return;
        };
        let cell = active.cell();
        let trouble = match (&cell.misuse, &cell.pending) {
            (Some(misuse), _) => Some(misuse.clone()),
            (None, None) if !cell.breather => Some(
                "the flow awaited something that is not a flow operation; do such work in a side \
                 effect"
                    .to_owned(),
            ),
            _ => None,
        };
        if let Some(reason) = trouble {
            drop(cell);
            self.hospitalise(now, flow, &reason, out);
            return;
        }
        let (dirty, has_recordings) = (cell.dirty(), !cell.recordings.is_empty());
        let next = match cell.pending.as_ref().map(|p| (p.sequence, &p.waits)) {
            None => Next::Commit(FlowStatus::Runnable, After::GoOn),
            Some((sequence, Waits::Host(request))) => {
                let first = (request.reads_store() && has_recordings)
                    || (request.has_effect() && (dirty || !run.recorded));
                if first {
                    Next::Commit(FlowStatus::Runnable, After::Execute)
                } else {
                    Next::Execute(sequence, request.clone())
                }
            }
            Some((_, Waits::Mail { until, .. })) => Next::Park(*until),
            Some((_, Waits::Time { until })) => Next::Park(Some(*until)),
        };
        drop(cell);
        match next {
            Next::Execute(sequence, request) => out.push(Action::Execute {
                flow,
                sequence,
                request,
            }),
            Next::Commit(status, after) => self.commit(now, flow, status, None, after, out),
            Next::Park(until) => {
                if let Some(until) = until {
                    self.timers.insert((until, flow));
                }
                if dirty || !run.recorded || run.durable != FlowStatus::Suspended {
                    self.commit(now, flow, FlowStatus::Suspended, None, After::Wait, out);
                } else {
                    // Brought back by a restart: the store says this already.
                    run.status = FlowStatus::Suspended;
                    self.resume_if_due(now, flow, out);
                }
            }
        }
    }

    fn finish(
        &mut self,
        now: Timestamp,
        flow: FlowId,
        result: Result<String, FlowError>,
        out: &mut Vec<Action>,
    ) {
        let Some(active) = self.runs.get(&flow).and_then(|run| run.active.as_ref()) else {
            return;
        };
        let (status, outcome) = {
            let mut cell = active.cell();
            match result {
                Ok(result) => {
                    cell.end_all(None);
                    (FlowStatus::Completed, FlowOutcome::Completed { result })
                }
                Err(error) => {
                    // What the flow meant to record belongs to a step that ends in an error.
                    cell.recordings.clear();
                    cell.end_all(Some(&error.to_string()));
                    let error = serde_json::to_string(&error).expect("errors become JSON");
                    (FlowStatus::Failed, FlowOutcome::Failed { error })
                }
            }
        };
        self.commit(now, flow, status, Some(outcome), After::Remove, out);
    }

    /// Hands the step to the store.
    fn commit(
        &mut self,
        now: Timestamp,
        flow: FlowId,
        status: FlowStatus,
        outcome: Option<FlowOutcome>,
        after: After,
        out: &mut Vec<Action>,
    ) {
        let Some(run) = self.runs.get_mut(&flow) else {
            return;
        };
        let Some(active) = &run.active else {
            return;
        };
        let mut cell = active.cell();
        cell.confirm_answered();
        if outcome.is_some() {
            // Nobody will read what is left.
            let left = std::mem::take(&mut cell.mail);
            let left = left
                .into_iter()
                .flat_map(|(id, mails)| mails.into_iter().map(move |mail| (id, mail)));
            cell.taken.extend(left);
        }
        for (id, session) in &cell.sessions {
            self.routes.insert((*id, session.initiator), flow);
        }
        let deadline = cell.pending.as_ref().and_then(|p| match p.waits {
            Waits::Mail { until, .. } => until.map(|until| (p.sequence, until)),
            Waits::Time { until } => Some((p.sequence, until)),
            Waits::Host(_) => None,
        });
        let header = Header {
            version: ENTRY_VERSION,
            me: cell.me.clone(),
            sessions: cell.sessions.clone(),
            next_session: cell.next_session,
            deadline,
            ailment: None,
        };
        let progress = cell.progress.take();
        if progress.is_some() {
            run.progress.clone_from(&progress);
        }
        let taken = std::mem::take(&mut cell.taken);
        let step = StepCommit {
            flow,
            start: (!run.recorded).then(|| run.start.clone()),
            status,
            checkpoint: write_header(&header),
            progress,
            entries: std::mem::take(&mut cell.entries),
            consumed: taken.iter().map(|(_, mail)| mail.inbox.clone()).collect(),
            outgoing: std::mem::take(&mut cell.outgoing),
            recordings: std::mem::take(&mut cell.recordings),
            outcome,
        };
        drop(cell);
        run.next_base = Some(Box::new(header));
        run.in_doubt = taken;
        run.committing = Some(after);
        run.status = status;
        run.durable = status;
        run.ailment = None;
        run.since = now;
        out.push(Action::Commit(Box::new(step)));
    }

    fn on_committed(&mut self, now: Timestamp, flow: FlowId, out: &mut Vec<Action>) {
        let Some(run) = self.runs.get_mut(&flow) else {
            return;
        };
        let Some(after) = run.committing.take() else {
            return;
        };
        run.recorded = true;
        run.in_doubt.clear();
        if let Some(header) = run.next_base.take() {
            run.base = Base::Known(header);
        }
        if after == After::Remove {
            self.remove(flow);
            return;
        }
        match run.wish.take() {
            Some(Wish::Kill) => return self.on_kill(now, flow, out),
            Some(Wish::Pause) => return self.on_pause(now, flow, out),
            None => {}
        }
        match after {
            After::Wait => self.resume_if_due(now, flow, out),
            After::GoOn => self.advance(now, flow, out),
            After::Execute => {
                let pending = run.active.as_ref().and_then(|a| a.cell().pending.clone());
                if let Some(pending) = pending
                    && let Waits::Host(request) = pending.waits
                {
                    out.push(Action::Execute {
                        flow,
                        sequence: pending.sequence,
                        request,
                    });
                }
            }
            After::Nothing | After::Remove => {}
        }
    }

    fn on_commit_failed(
        &mut self,
        now: Timestamp,
        flow: FlowId,
        reason: &str,
        out: &mut Vec<Action>,
    ) {
        let Some(run) = self.runs.get_mut(&flow) else {
            return;
        };
        let after = run.committing.take();
        run.next_base = None;
        let in_doubt = std::mem::take(&mut run.in_doubt);
        if let Some(active) = &run.active {
            let mut cell = active.cell();
            cell.taken.splice(0..0, in_doubt);
        }
        if after == Some(After::Nothing) {
            // Even its stay in the hospital could not be recorded; it stays there in memory.
            return;
        }
        let reason = format!("the store refused its step: {reason}");
        self.hospitalise(now, flow, &reason, out);
    }

    /// Abandons the step under way and keeps the flow under observation.
    fn hospitalise(&mut self, now: Timestamp, flow: FlowId, why: &str, out: &mut Vec<Action>) {
        let Some(run) = self.runs.get_mut(&flow) else {
            return;
        };
        let visits = run.ailment.as_ref().map_or(1, |ailment| ailment.visits + 1);
        run.ailment = Some(Ailment {
            reason: reason(why),
            since: now,
            visits,
        });
        run.stop(now, flow, FlowStatus::Hospitalised, out);
    }

    fn on_pause(&mut self, now: Timestamp, flow: FlowId, out: &mut Vec<Action>) {
        let Some(run) = self.runs.get_mut(&flow) else {
            return;
        };
        if run.committing.is_some() {
            run.wish.get_or_insert(Wish::Pause);
        } else if run.status != FlowStatus::Paused {
            run.stop(now, flow, FlowStatus::Paused, out);
        }
    }

    fn on_retry(&mut self, flow: FlowId, out: &mut Vec<Action>) {
        if let Some(run) = self.runs.get(&flow)
            && run.active.is_none()
            && run.committing.is_none()
        {
            out.push(Action::Load { flow });
        }
    }

    fn on_kill(&mut self, now: Timestamp, flow: FlowId, out: &mut Vec<Action>) {
        let header = match self.runs.get_mut(&flow) {
            None => return,
            Some(run) if run.committing.is_some() => {
                run.wish = Some(Wish::Kill);
                return;
            }
            Some(run) => {
                run.set_aside();
                match &run.base {
                    Base::Known(header) => Some(header.as_ref().clone()),
                    Base::Unreadable(_) => None,
                }
            }
        };
        // The sessions as they are durably: what an abandoned step sent was never sent.
        let outgoing = header.map_or_else(Vec::new, |header| {
            let cell = self.blank_cell(flow, header, [0; 32]);
            let mut cell = cell.lock().unwrap_or_else(PoisonError::into_inner);
            cell.end_all(Some("an operator killed the flow"));
            std::mem::take(&mut cell.outgoing)
        });
        let Some(run) = self.runs.get_mut(&flow) else {
            return;
        };
        let mail = std::mem::take(&mut run.mail);
        run.in_doubt = mail
            .into_iter()
            .flat_map(|(id, mails)| mails.into_iter().map(move |mail| (id, mail)))
            .collect();
        let consumed = run.in_doubt.iter().map(|(_, m)| m.inbox.clone()).collect();
        let mut step = run.bare_step(flow, FlowStatus::Killed);
        step.consumed = consumed;
        step.outgoing = outgoing;
        step.outcome = Some(FlowOutcome::Killed);
        run.status = FlowStatus::Killed;
        run.since = now;
        run.committing = Some(After::Remove);
        out.push(Action::Commit(Box::new(step)));
    }

    fn on_deliver(
        &mut self,
        now: Timestamp,
        inbox: InboxId,
        envelope: Box<Envelope>,
        seed: [u8; 32],
        out: &mut Vec<Action>,
    ) {
        let key = (envelope.session, !envelope.from_initiator);
        if let Some(flow) = self.routes.get(&key).copied() {
            self.mail_to(now, flow, inbox, *envelope, out);
            return;
        }
        let opens =
            envelope.from_initiator && matches!(envelope.body, SessionMessage::Initiate { .. });
        let follows_held = self.held.iter().any(|(_, held, _)| {
            held.session == envelope.session && held.from_initiator == envelope.from_initiator
        });
        if follows_held || (opens && !self.may_answer()) {
            self.held.push_back((inbox, envelope, seed));
        } else if opens {
            self.answer(now, inbox, *envelope, seed, out);
        } else {
            // Its flow has ended, or never was.
            out.push(Action::Discard { inbox, reply: None });
        }
    }

    fn may_answer(&self) -> bool {
        !self.draining && self.runs.len() < self.limits.flows
    }

    /// Starts the responder of a session.
    fn answer(
        &mut self,
        now: Timestamp,
        inbox: InboxId,
        envelope: Envelope,
        seed: [u8; 32],
        out: &mut Vec<Action>,
    ) {
        let SessionMessage::Initiate { flow: class, .. } = &envelope.body else {
            return;
        };
        let class = class.clone();
        let Some(me) = self.surroundings.local(&envelope.recipient).cloned() else {
            out.push(Action::Discard { inbox, reply: None });
            return;
        };
        if !self.registry.answers(&class) {
            let why = format!(
                "no application here answers the flow '{}'; its node must install one",
                class.chars().take(100).collect::<String>()
            );
            let reply = Envelope::new(
                me.name,
                envelope.sender,
                (envelope.session, false),
                0,
                self.owner.clone(),
                SessionMessage::Reject { reason: why },
            );
            out.push(Action::Discard {
                inbox,
                reply: Some(Box::new(reply)),
            });
            return;
        }
        let (id, peer) = (envelope.session, envelope.sender.clone());
        let flow = FlowId::of_responder(&peer, id);
        let mut header = self.header();
        header.me = me;
        header.sessions.insert(
            id,
            SessionState {
                peer: peer.clone(),
                flow: class.clone(),
                initiator: false,
                opened: false,
                sent: 0,
                received: 0,
                peer_ended: false,
                closed: false,
            },
        );
        let start = FlowStart {
            class,
            arguments: serde_json::json!({ "session": id }).to_string(),
            client_id: None,
            origin: Origin::Peer { name: peer },
            started_at: now,
        };
        let mut run = Run::new(start, Base::Known(Box::new(header)), now);
        let mail = Mail {
            inbox,
            sequence: envelope.sequence,
            body: envelope.body,
        };
        run.mail.entry(id).or_default().push_back(mail);
        self.routes.insert((id, false), flow);
        self.runs.insert(flow, run);
        self.build(now, flow, seed, VecDeque::new(), out);
    }

    /// Puts a message into the mailbox of the flow that its session belongs to.
    fn mail_to(
        &mut self,
        now: Timestamp,
        flow: FlowId,
        inbox: InboxId,
        envelope: Envelope,
        out: &mut Vec<Action>,
    ) {
        let limit = self.limits.mail_per_flow;
        let Some(run) = self.runs.get_mut(&flow) else {
            return;
        };
        let id = envelope.session;
        let mut body = envelope.body;
        let verdict = run.with_mailbox(id, |session, mail, waiting| {
            let expected = mail
                .back()
                .map_or(session.received, |last| last.sequence + 1);
            if envelope.sender != session.peer || envelope.sequence < expected {
                return false;
            }
            if envelope.sequence > expected {
                body = SessionMessage::Error {
                    message: format!(
                        "message {expected} of the session is missing, {} came",
                        envelope.sequence
                    ),
                };
            } else if waiting >= limit {
                body = SessionMessage::Error {
                    message: format!("more than {limit} messages wait for this flow"),
                };
            }
            mail.push_back(Mail {
                inbox: inbox.clone(),
                sequence: envelope.sequence,
                body,
            });
            true
        });
        if verdict == Some(true) && run.committing != Some(After::Remove) {
            self.resume_if_due(now, flow, out);
        } else if verdict != Some(true) {
            out.push(Action::Discard { inbox, reply: None });
        }
    }

    /// Goes on with a flow that waits for mail or a time, if that has come.
    fn resume_if_due(&mut self, now: Timestamp, flow: FlowId, out: &mut Vec<Action>) {
        let Some(run) = self.runs.get_mut(&flow) else {
            return;
        };
        let (None, Some(active)) = (run.committing, &run.active) else {
            return;
        };
        let mut cell = active.cell();
        let waits = cell.pending.as_ref().map(|pending| pending.waits.clone());
        let reply = match waits {
            Some(Waits::Time { until }) => (until <= now).then_some(Reply::Done),
            Some(Waits::Mail {
                session,
                within,
                until,
            }) => cell.take_mail(session).or_else(|| {
                until.filter(|until| *until <= now)?;
                let peer = cell.sessions.get(&session)?.peer.clone();
                let milliseconds = within.map_or(0, |w| w.as_millis() as u64);
                Some(Reply::Failed(FlowError::TimedOut { peer, milliseconds }))
            }),
            Some(Waits::Host(_)) | None => None,
        };
        let Some(reply) = reply else {
            return;
        };
        cell.answer = Some(reply);
        drop(cell);
        run.status = FlowStatus::Runnable;
        run.since = now;
        self.advance(now, flow, out);
    }

    fn on_host_result(
        &mut self,
        now: Timestamp,
        flow: FlowId,
        sequence: u32,
        result: Result<Reply, HostError>,
        out: &mut Vec<Action>,
    ) {
        let Some(run) = self.runs.get_mut(&flow) else {
            return;
        };
        let (None, Some(active)) = (run.committing, &run.active) else {
            return;
        };
        let mut cell = active.cell();
        let asked = cell
            .pending
            .as_ref()
            .is_some_and(|p| p.sequence == sequence && matches!(p.waits, Waits::Host(_)));
        if !asked {
            return;
        }
        let reply = match result {
            Ok(reply) => reply,
            Err(HostError::Failed(error)) => Reply::Failed(error),
            Err(HostError::Transient(why)) => {
                drop(cell);
                run.failures += 1;
                if run.failures >= self.retries.attempts {
                    let why = format!("{why} (tried {} times)", run.failures);
                    self.hospitalise(now, flow, &why, out);
                } else {
                    let at = now + self.retries.wait_after(run.failures);
                    run.retry_at = Some(at);
                    self.timers.insert((at, flow));
                }
                return;
            }
        };
        cell.answer = Some(reply);
        drop(cell);
        run.failures = 0;
        run.retry_at = None;
        self.advance(now, flow, out);
    }

    fn on_tick(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        while let Some((at, flow)) = self.timers.first().copied() {
            if at > now {
                break;
            }
            self.timers.pop_first();
            let Some(run) = self.runs.get_mut(&flow) else {
                continue;
            };
            if run.retry_at.take_if(|at| *at <= now).is_some() {
                let pending = run.active.as_ref().and_then(|a| a.cell().pending.clone());
                if let Some(pending) = pending
                    && let Waits::Host(request) = pending.waits
                {
                    out.push(Action::Execute {
                        flow,
                        sequence: pending.sequence,
                        request,
                    });
                }
            } else {
                self.resume_if_due(now, flow, out);
            }
        }
    }

    /// Lets in what waited until flows may start again.
    fn release_held(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        for _ in 0..self.held.len() {
            if !self.may_answer() {
                return;
            }
            // What follows a held first message was held behind it, so order is kept.
            let Some((inbox, envelope, seed)) = self.held.pop_front() else {
                return;
            };
            self.on_deliver(now, inbox, envelope, seed, out);
        }
    }

    fn remove(&mut self, flow: FlowId) {
        if let Some(run) = self.runs.remove(&flow)
            && let Base::Known(header) = run.base
        {
            for (id, session) in header.sessions {
                self.routes.remove(&(id, session.initiator));
            }
        }
    }

    /// The header of a flow that begins now.
    fn header(&self) -> Header {
        Header {
            version: ENTRY_VERSION,
            me: self.surroundings.me.clone(),
            sessions: BTreeMap::new(),
            next_session: 0,
            deadline: None,
            ailment: None,
        }
    }

    fn blank_cell(&self, flow: FlowId, header: Header, seed: [u8; 32]) -> Arc<Mutex<Cell>> {
        Arc::new(Mutex::new(Cell {
            flow,
            me: header.me,
            owner: self.owner.clone(),
            registry: Arc::clone(&self.registry),
            surroundings: Arc::clone(&self.surroundings),
            now: Timestamp::from_micros(0),
            seed,
            replay: VecDeque::new(),
            next: 0,
            resumed: header.deadline,
            sessions: header.sessions,
            next_session: header.next_session,
            mail: BTreeMap::new(),
            pending: None,
            answer: None,
            misuse: None,
            breather: false,
            entries: Vec::new(),
            taken: Vec::new(),
            outgoing: Vec::new(),
            recordings: Vec::new(),
            progress: None,
        }))
    }
}

impl Run {
    fn new(start: FlowStart, base: Base, now: Timestamp) -> Self {
        Self {
            start,
            recorded: false,
            status: FlowStatus::Runnable,
            durable: FlowStatus::Runnable,
            base,
            active: None,
            mail: BTreeMap::new(),
            committing: None,
            next_base: None,
            in_doubt: Vec::new(),
            failures: 0,
            retry_at: None,
            wish: None,
            ailment: None,
            progress: None,
            since: now,
        }
    }

    /// Drops the body and the step under way; keeps the mail.
    fn set_aside(&mut self) {
        if let Some(active) = self.active.take() {
            let mut cell = active.cell();
            cell.return_mail();
            self.mail = std::mem::take(&mut cell.mail);
        }
        self.retry_at = None;
        self.failures = 0;
    }

    /// Sets the flow aside under a status that is made durable.
    fn stop(&mut self, now: Timestamp, flow: FlowId, status: FlowStatus, out: &mut Vec<Action>) {
        self.set_aside();
        self.status = status;
        self.durable = status;
        self.since = now;
        if let Base::Known(header) = &self.base {
            let mut header = header.clone();
            header.ailment.clone_from(&self.ailment);
            self.next_base = Some(header);
        }
        self.committing = Some(After::Nothing);
        out.push(Action::Commit(Box::new(self.bare_step(flow, status))));
    }

    /// A step that changes nothing but the status.
    fn bare_step(&self, flow: FlowId, status: FlowStatus) -> StepCommit {
        let checkpoint = match (&self.next_base, &self.base) {
            (Some(header), _) | (None, Base::Known(header)) => write_header(header),
            (None, Base::Unreadable(bytes)) => bytes.clone(),
        };
        StepCommit {
            flow,
            start: (!self.recorded).then(|| self.start.clone()),
            status,
            checkpoint,
            progress: None,
            entries: Vec::new(),
            consumed: Vec::new(),
            outgoing: Vec::new(),
            recordings: Vec::new(),
            outcome: None,
        }
    }

    /// Works on a session's mailbox, wherever it is now: the session, its mail, and how many
    /// messages wait for the flow in all. `None` if the flow has no such session.
    fn with_mailbox<R>(
        &mut self,
        id: SessionId,
        work: impl FnOnce(&SessionState, &mut VecDeque<Mail>, usize) -> R,
    ) -> Option<R> {
        if let Some(active) = &self.active {
            let mut cell = active.cell();
            let waiting = cell.mail.values().map(VecDeque::len).sum();
            let session = cell.sessions.get(&id)?.clone();
            let mail = cell.mail.entry(id).or_default();
            return Some(work(&session, mail, waiting));
        }
        let Base::Known(header) = &self.base else {
            return None;
        };
        let waiting = self.mail.values().map(VecDeque::len).sum();
        let session = header.sessions.get(&id)?;
        Some(work(session, self.mail.entry(id).or_default(), waiting))
    }
}

fn context(cell: &Arc<Mutex<Cell>>, flow: &'static str) -> Context {
    Context {
        cell: Arc::clone(cell),
        flow,
    }
}

fn view(flow: FlowId, run: &Run) -> FlowView {
    let (mut waiting_for, mut peers) = (None, BTreeSet::new());
    if let Some(active) = &run.active {
        let cell = active.cell();
        let open = cell
            .sessions
            .values()
            .filter(|s| !s.closed && !s.peer_ended);
        peers.extend(open.map(|session| session.peer.clone()));
        waiting_for = cell.pending.as_ref().map(|pending| match &pending.waits {
            Waits::Mail { session, .. } => match cell.sessions.get(session) {
                Some(session) => format!("a message from {}", session.peer),
                None => "a message".to_owned(),
            },
            Waits::Time { until } => format!("the time {until}"),
            Waits::Host(_) => format!("the node to answer '{}'", pending.kind),
        });
    } else if let Base::Known(header) = &run.base {
        let open = header
            .sessions
            .values()
            .filter(|s| !s.closed && !s.peer_ended);
        peers.extend(open.map(|session| session.peer.clone()));
    }
    FlowView {
        flow,
        class: run.start.class.clone(),
        client_id: run.start.client_id.clone(),
        origin: run.start.origin.clone(),
        status: run.status,
        progress: run.progress.clone(),
        waiting_for,
        started_at: run.start.started_at,
        since: run.since,
        ailment: run.ailment.as_ref().map(|ailment| ailment.reason.clone()),
        visits: run.ailment.as_ref().map_or(0, |ailment| ailment.visits),
        peers: peers.into_iter().collect(),
    }
}

fn write_header(header: &Header) -> Vec<u8> {
    serde_json::to_vec(header).expect("a header is plain data and becomes JSON")
}

fn read_header(bytes: &[u8]) -> Result<Header, String> {
    let header: Header = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    if header.version == ENTRY_VERSION {
        Ok(header)
    } else {
        Err(format!(
            "it has version {}, this program reads version {ENTRY_VERSION}",
            header.version
        ))
    }
}

fn read_journal(entries: &[(u32, Vec<u8>)]) -> Result<VecDeque<crate::journal::Entry>, String> {
    entries
        .iter()
        .enumerate()
        .map(|(i, (number, bytes))| {
            if *number as usize != i {
                return Err(format!("journal entry {i} is missing"));
            }
            decode_entry(bytes).map_err(|reason| format!("journal entry {i}: {reason}"))
        })
        .collect()
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}
