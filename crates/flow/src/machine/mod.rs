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
//! same way and keeps nobody else from starting; no message is thrown away while it may be for
//! such a flow.
//!
//! Where to start reading: [`Event`] and [`Action`] in `interface`, then `step` (how a flow gets
//! on), `mail` (what becomes of messages), `care` (what stops a flow and sets it going again).

mod care;
mod interface;
mod mail;
mod run;
mod step;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};

use quorate_identity::X500Name;
use quorate_ledger::Timestamp;

use crate::cell::Cell;
use crate::commit::{Checkpoint, FlowStart, FlowStatus, Origin};
use crate::context::Context;
use crate::ids::{FlowId, SessionId};
use crate::journal::Entry;
use crate::message::Owner;
use crate::registry::{Body, FlowRegistry};
use crate::standard;
use crate::trace::FlowTrace;

pub use interface::{
    Action, Event, FlowTimeout, FlowView, Limits, RetryPolicy, SigningRetries, StartRefused,
    Surroundings,
};
use mail::{Held, Strays};
use run::{Active, Base, Header, Run, lock, read_journal};

/// The flows of one node.
pub struct Machine {
    registry: Arc<FlowRegistry>,
    surroundings: Arc<Surroundings>,
    owner: Owner,
    limits: Limits,
    retries: RetryPolicy,
    runs: BTreeMap<FlowId, Run>,
    census: Census,
    /// How many flows there are of each kind that has places of its own.
    places: Places,
    /// How many of the flows have a checkpoint that cannot be read.
    unreadable: usize,
    /// Which flow a session's messages go to; the flag tells whether it is the initiator.
    routes: BTreeMap<(SessionId, bool), FlowId>,
    timers: Timers,
    held: Held,
    strays: Strays,
    ghosts: Ghosts,
    draining: bool,
}

/// Flows that ended while they were being read from the store once more: what was read must not
/// bring them back.
#[derive(Default)]
struct Ghosts(BTreeMap<FlowId, u32>);

impl Ghosts {
    /// As reading may fail, some never come.
    const MOST: usize = 1_000;

    fn expect(&mut self, flow: FlowId, loads: u32) {
        if loads > 0 {
            self.0.insert(flow, loads);
        }
        while self.0.len() > Self::MOST {
            self.0.pop_first();
        }
    }

    /// Whether what was read is of a flow that has ended meanwhile.
    fn laid(&mut self, flow: FlowId) -> bool {
        let Some(loads) = self.0.get_mut(&flow) else {
            return false;
        };
        *loads -= 1;
        if *loads == 0 {
            self.0.remove(&flow);
        }
        true
    }
}

/// How many flows there are of each kind that has places of its own, so that none can take the others'.
#[derive(Default)]
struct Places {
    started: usize,
    answering: usize,
    system_started: usize,
    system_answering: usize,
    /// Of the answering ones, those for each other party.
    peers: BTreeMap<X500Name, usize>,
}

impl Places {
    fn of(&mut self, run: &Run) -> &mut usize {
        match (run.answers(), standard::is_system(&run.start.class)) {
            (false, false) => &mut self.started,
            (false, true) => &mut self.system_started,
            (true, false) => &mut self.answering,
            (true, true) => &mut self.system_answering,
        }
    }

    fn of_peer(&self, peer: &X500Name) -> usize {
        self.peers.get(peer).copied().unwrap_or_default()
    }

    fn leave(&mut self, peer: &X500Name) {
        if let Some(count) = self.peers.get_mut(peer) {
            *count -= 1;
            if *count == 0 {
                self.peers.remove(peer);
            }
        }
    }
}

/// How many flows stand where, kept up to date with every change.
#[derive(Default)]
struct Census([usize; FlowStatus::ALL.len()]);

impl Census {
    fn enter(&mut self, status: FlowStatus) {
        self.0[status as usize] += 1;
    }

    fn leave(&mut self, status: FlowStatus) {
        self.0[status as usize] -= 1;
    }

    fn moves(&mut self, run: &mut Run, to: FlowStatus) {
        self.leave(run.status);
        self.enter(to);
        run.status = to;
    }
}

/// When to look at which flow again; one time for each.
#[derive(Default)]
struct Timers(BTreeSet<(Timestamp, FlowId)>);

impl Timers {
    fn set(&mut self, flow: FlowId, run: &mut Run, at: Option<Timestamp>) {
        if run.timer == at {
            return;
        }
        if let Some(former) = std::mem::replace(&mut run.timer, at) {
            self.0.remove(&(former, flow));
        }
        self.0.extend(at.map(|at| (at, flow)));
    }
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
            census: Census::default(),
            places: Places::default(),
            unreadable: 0,
            routes: BTreeMap::new(),
            timers: Timers::default(),
            held: Held::default(),
            strays: Strays::default(),
            ghosts: Ghosts::default(),
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

    /// Whether new flows are kept from starting; sessions opened by peers wait meanwhile. Those
    /// that flows of this node open with it are let in: without them it would never be drained.
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
        let (taken, limit) = match standard::is_system(class) {
            true => (self.places.system_started, self.limits.system_flows),
            false => (self.places.started, self.limits.flows),
        };
        if taken >= limit {
            return Err(StartRefused::Busy { limit });
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
        self.timers.0.first().map(|(at, _)| *at)
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
        self.held.messages()
    }

    /// How many flows stand where.
    pub fn census(&self) -> BTreeMap<FlowStatus, usize> {
        FlowStatus::ALL
            .into_iter()
            .map(|status| (status, self.census.0[status as usize]))
            .filter(|(_, count)| *count > 0)
            .collect()
    }

    /// Every flow that has not ended, as operators see it.
    pub fn views(&self) -> impl Iterator<Item = FlowView> + '_ {
        self.runs.iter().map(|(flow, run)| run.view(*flow))
    }

    /// One flow as operators see it.
    pub fn view(&self, flow: FlowId) -> Option<FlowView> {
        self.runs.get(&flow).map(|run| run.view(flow))
    }

    /// Where a flow belongs, if it is traced.
    pub fn trace(&self, flow: FlowId) -> Option<FlowTrace> {
        self.runs.get(&flow)?.trace()
    }

    /// The registered name of a flow, and whether it answers another party's.
    pub fn class(&self, flow: FlowId) -> Option<(&str, bool)> {
        let run = self.runs.get(&flow)?;
        Some((run.start.class.as_str(), run.answers()))
    }

    /// Applies an event at the time `now`.
    pub fn handle(&mut self, now: Timestamp, event: Event) -> Vec<Action> {
        let mut out = Vec::new();
        match event {
            Event::Start {
                flow,
                start,
                trace,
                seed,
            } => self.on_start(now, flow, start, trace, seed, &mut out),
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
            Event::Retry { flow } => self.on_retry(now, flow, &mut out),
        }
        self.release_strays(now, &mut out);
        self.release_held(now, &mut out);
        out
    }

    fn on_start(
        &mut self,
        now: Timestamp,
        flow: FlowId,
        start: FlowStart,
        trace: Option<FlowTrace>,
        seed: [u8; 32],
        out: &mut Vec<Action>,
    ) {
        if self.runs.contains_key(&flow) {
            return;
        }
        let mut header = self.header();
        header.trace = trace;
        let base = Base::Known(Box::new(header));
        self.admit(flow, Run::new(start, base, seed, now));
        self.build(now, flow, VecDeque::new(), out);
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
        if self.ghosts.laid(flow) {
            return;
        }
        if let Some(known) = self.runs.get_mut(&flow) {
            known.loads = known.loads.saturating_sub(1);
            // Somebody wants it to run. What was read before the flow's last step was durable, or
            // is no longer wanted, is of no use.
            let idle = known.active.is_none() && known.committing.is_none();
            if !(idle && known.loading && entries.len() >= known.journaled) {
                return;
            }
        }
        let known = self.expel(flow);
        let wanted = known.is_some();
        let (base, trouble) = match (Header::read(&header), known.as_ref()) {
            (Ok(header), _) => (Base::Known(Box::new(header)), None),
            (Err(reason), _) => (Base::Unreadable(header), Some(reason)),
        };
        let (replay, trouble) = match (trouble, read_journal(&entries)) {
            (None, Ok(replay)) => (replay, None),
            (Some(reason), _) | (None, Err(reason)) => (VecDeque::new(), Some(reason)),
        };
        let mut run = Run::new(start, base, seed, now);
        run.recorded = true;
        run.status = status;
        run.durable = status;
        run.progress = progress;
        run.journaled = entries.len();
        if let Some(known) = known {
            run.mail = known.mail;
            run.errand = known.errand;
            run.loads = known.loads;
            // One that still cannot be read has not become healthier.
            run.ailment = known.ailment;
        }
        if let Base::Known(header) = &run.base {
            run.ailment.clone_from(&header.ailment);
        }
        self.admit(flow, run);
        match trouble {
            Some(reason) => {
                let reason = format!("its checkpoint cannot be read: {reason}");
                self.hospitalise(now, flow, &reason, out);
            }
            None if status == FlowStatus::Paused && !wanted => {}
            None => self.build(now, flow, replay, out),
        }
    }

    /// Takes a flow into the books.
    fn admit(&mut self, flow: FlowId, run: Run) {
        self.census.enter(run.status);
        *self.places.of(&run) += 1;
        if let Some(peer) = run.foreign_peer() {
            *self.places.peers.entry(peer.clone()).or_default() += 1;
        }
        match &run.base {
            Base::Known(header) => {
                let routes = header.sessions.iter();
                self.routes
                    .extend(routes.map(|(id, session)| ((*id, session.initiator), flow)));
            }
            Base::Unreadable(_) => self.unreadable += 1,
        }
        self.runs.insert(flow, run);
    }

    /// Takes a flow out of the books.
    fn expel(&mut self, flow: FlowId) -> Option<Run> {
        let mut run = self.runs.remove(&flow)?;
        self.census.leave(run.status);
        *self.places.of(&run) -= 1;
        if let Some(peer) = run.foreign_peer() {
            self.places.leave(peer);
        }
        self.timers.set(flow, &mut run, None);
        match &run.base {
            Base::Known(header) => {
                for (id, session) in &header.sessions {
                    self.routes.remove(&(*id, session.initiator));
                }
            }
            Base::Unreadable(_) => self.unreadable -= 1,
        }
        Some(run)
    }

    /// Gives a flow its body and lets it run.
    fn build(
        &mut self,
        now: Timestamp,
        flow: FlowId,
        replay: VecDeque<Entry>,
        out: &mut Vec<Action>,
    ) {
        let Some(run) = self.runs.get_mut(&flow) else {
            return;
        };
        let Base::Known(header) = &run.base else {
            return;
        };
        let (header, start, seed) = (header.as_ref().clone(), run.start.clone(), run.seed);
        let mail = std::mem::take(&mut run.mail);
        let cell = self.blank_cell(flow, header, seed);
        {
            let mut inner = lock(&cell);
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
                run.since = now;
                self.census.moves(run, FlowStatus::Runnable);
                self.advance(now, flow, out);
            }
            Err(reason) => {
                run.mail = std::mem::take(&mut lock(&cell).mail);
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
                let inner = lock(cell);
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

    /// The header of a flow that begins now.
    fn header(&self) -> Header {
        Header::new(self.surroundings.me.clone())
    }

    fn blank_cell(&self, flow: FlowId, header: Header, seed: [u8; 32]) -> Arc<Mutex<Cell>> {
        Arc::new(Mutex::new(Cell {
            flow,
            me: header.me,
            owner: self.owner.clone(),
            trace: header.trace,
            registry: Arc::clone(&self.registry),
            surroundings: Arc::clone(&self.surroundings),
            now: Timestamp::EPOCH,
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

fn context(cell: &Arc<Mutex<Cell>>, flow: &'static str) -> Context {
    Context {
        cell: Arc::clone(cell),
        flow,
    }
}
