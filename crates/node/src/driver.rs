//! Drives the flow machine: one task that owns it, feeds it events and carries out its actions.
//!
//! Commits go to the store's writer, which merges those of many flows; requests of flows are
//! answered by [`Host`] in tasks of their own; messages go out through the [`Post`] once their
//! commit is durable. Nothing here decides anything about a flow: the [`Machine`] does.

use std::collections::{HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use quorate_flow::{
    Action, Checkpoint, ClientId, Envelope, Event, FlowError, FlowId, FlowOutcome, FlowStart,
    FlowStatus, FlowTrace, FlowView, HostError, InboxId, Machine, Origin, Reply, StartRefused,
    StepCommit, Surroundings, TraceContext, standard,
};
use quorate_ledger::Timestamp;
use quorate_runtime::tasks::chain;
use quorate_runtime::traces::{Span, SpanKind};
use quorate_runtime::{Clock, Entropy, Tasks, Traces};
use quorate_storage::{CommitError, Committed, FlowRecord, Store, UnitOfWork, Writer};
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use crate::host::{Host, Pool};
use crate::metrics::FlowMetrics;
use crate::post::Post;

/// Events that wait for the driver.
const QUEUE: usize = 8_192;

/// Events applied before the loop looks at time and finished commits again.
const EVENTS_PER_TURN: usize = 256;

/// Changes of flows that a slow reader may lag behind before it has to read all flows again.
const CHANGES_KEPT: usize = 4_096;

/// Ended flows without a client id whose outcome is remembered for those who wait for it.
const ENDED_KEPT: usize = 10_000;

/// Pause before a step is offered to the store again that certainly was not committed.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// How often such a step is offered.
const RETRIES: u32 = 20;

/// Pause before a flow is read from the store again.
const LOAD_PAUSE: Duration = Duration::from_secs(1);

/// How often that is tried.
const LOAD_RETRIES: u32 = 30;

/// Longest sleep of the driver: a clock that was put forward is noticed after it.
const LONGEST_SLEEP: Duration = Duration::from_secs(10);

/// Bytes of outcomes that are remembered, see [`ENDED_KEPT`].
const ENDED_BYTES_KEPT: usize = 16 * 1024 * 1024;

/// A flow was started, or found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Started {
    /// The flow.
    pub(crate) flow: FlowId,
    /// It had been started before, under the same client id.
    pub(crate) reattached: bool,
}

/// Why a flow was not started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// The machine refused it.
    #[error(transparent)]
    Refused(#[from] StartRefused),
    /// The store could not say whether the client id is taken, or the start was not recorded.
    #[error("the start could not be recorded: {0}")]
    Store(String),
    /// The node is stopping.
    #[error("this instance is stopping; ask the one that takes over")]
    Stopping,
}

type StartReply = oneshot::Sender<Result<Started, StartError>>;

/// What an operator asks of one flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    Kill,
    Pause,
    Retry,
}

enum Input {
    Start {
        start: FlowStart,
        parent: Option<TraceContext>,
        reply: StartReply,
    },
    Deliver(Vec<(InboxId, Envelope)>),
    HostResult {
        flow: FlowId,
        sequence: u32,
        result: Result<Reply, HostError>,
    },
    Loaded {
        flow: FlowId,
        checkpoint: Option<Box<Checkpoint>>,
    },
    Order {
        flow: FlowId,
        order: Order,
        reply: oneshot::Sender<bool>,
    },
    Draining(bool),
    Surroundings(Arc<Surroundings>),
    Views(oneshot::Sender<Vec<FlowView>>),
    View(FlowId, oneshot::Sender<Option<FlowView>>),
    OfClient(ClientId, oneshot::Sender<Option<FlowId>>),
}

/// Speaks to the driver. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Flows {
    inputs: mpsc::Sender<Input>,
    changes: Arc<Changes>,
    ended: Arc<Mutex<Ended>>,
    running: watch::Receiver<usize>,
    tasks: Tasks,
}

/// Outcomes that the store does not keep, oldest out.
#[derive(Default)]
struct Ended {
    records: HashMap<FlowId, FlowRecord>,
    order: VecDeque<FlowId>,
    bytes: usize,
}

impl Ended {
    fn insert(&mut self, record: FlowRecord) {
        self.order.push_back(record.flow);
        self.bytes += Self::size(&record);
        self.records.insert(record.flow, record);
        // The latest stays, however large it is.
        while self.order.len() > ENDED_KEPT
            || (self.bytes > ENDED_BYTES_KEPT && self.order.len() > 1)
        {
            let Some(oldest) = self.order.pop_front() else {
                return;
            };
            if let Some(gone) = self.records.remove(&oldest) {
                self.bytes -= Self::size(&gone);
            }
        }
    }

    fn size(record: &FlowRecord) -> usize {
        let outcome = match &record.outcome {
            Some(FlowOutcome::Completed { result }) => result.len(),
            Some(FlowOutcome::Failed { error }) => error.len(),
            Some(FlowOutcome::Killed) | None => 0,
        };
        record.start.arguments.len() + outcome
    }
}

/// The latest changes of flows, numbered. The numbers begin at the process's start in
/// microseconds, so that a number of an earlier process is below all of this one's.
struct Changes {
    log: Mutex<ChangeLog>,
    news: broadcast::Sender<FlowId>,
}

struct ChangeLog {
    next: u64,
    kept: VecDeque<FlowId>,
}

impl Changes {
    fn push(&self, flow: FlowId) {
        {
            let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
            log.next += 1;
            log.kept.push_back(flow);
            if log.kept.len() > CHANGES_KEPT {
                log.kept.pop_front();
            }
        }
        // Nobody may be listening.
        let _ = self.news.send(flow);
    }
}

/// Wakes up who waits for flows to change.
pub(crate) struct Feed(broadcast::Receiver<FlowId>);

impl Feed {
    /// Forgets what has changed so far: the caller looks for itself next.
    pub(crate) fn mark_seen(&mut self) {
        self.0 = self.0.resubscribe();
    }

    /// Resolves when this flow may have changed.
    pub(crate) async fn changed(&mut self, flow: FlowId) {
        loop {
            match self.0.recv().await {
                Ok(changed) if changed != flow => {}
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
                // Of what was missed, any may have been this one.
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => return,
            }
        }
    }

    /// Resolves when any flow may have changed.
    pub(crate) async fn any(&mut self) {
        if let Err(broadcast::error::RecvError::Closed) = self.0.recv().await {
            std::future::pending().await
        }
    }
}

impl Flows {
    /// Starts a flow and resolves when its start is durable.
    pub(crate) async fn start(&self, start: FlowStart) -> Result<Started, StartError> {
        self.start_within(start, None).await
    }

    /// The same, because of a span of somebody else.
    pub(crate) async fn start_within(
        &self,
        start: FlowStart,
        parent: Option<TraceContext>,
    ) -> Result<Started, StartError> {
        let (reply, answer) = oneshot::channel();
        self.inputs
            .send(Input::Start {
                start,
                parent,
                reply,
            })
            .await
            .map_err(|_| StartError::Stopping)?;
        answer.await.map_err(|_| StartError::Stopping)?
    }

    /// Hands over messages that are durable in the inbox.
    pub(crate) async fn deliver(&self, messages: Vec<(InboxId, Envelope)>) {
        // After the driver has stopped they wait in the inbox.
        let _ = self.inputs.send(Input::Deliver(messages)).await;
    }

    /// Gives an order for a flow; `false` if no such flow is running.
    pub(crate) async fn order(&self, flow: FlowId, order: Order) -> bool {
        let (reply, answer) = oneshot::channel();
        let sent = self.inputs.send(Input::Order { flow, order, reply }).await;
        sent.is_ok() && answer.await.unwrap_or(false)
    }

    /// Switches draining mode.
    pub(crate) async fn set_draining(&self, draining: bool) {
        let _ = self.inputs.send(Input::Draining(draining)).await;
    }

    /// Replaces what flows see of the network.
    pub(crate) async fn set_surroundings(&self, surroundings: Arc<Surroundings>) {
        let _ = self.inputs.send(Input::Surroundings(surroundings)).await;
    }

    /// All flows that have not ended.
    pub(crate) async fn views(&self) -> Vec<FlowView> {
        let (reply, answer) = oneshot::channel();
        let _ = self.inputs.send(Input::Views(reply)).await;
        answer.await.unwrap_or_default()
    }

    /// One flow that has not ended.
    pub(crate) async fn view(&self, flow: FlowId) -> Option<FlowView> {
        let (reply, answer) = oneshot::channel();
        let _ = self.inputs.send(Input::View(flow, reply)).await;
        answer.await.ok().flatten()
    }

    /// The running flow that has this client id.
    pub(crate) async fn of_client(&self, client_id: &ClientId) -> Option<FlowId> {
        let (reply, answer) = oneshot::channel();
        let asked = Input::OfClient(client_id.clone(), reply);
        let _ = self.inputs.send(asked).await;
        answer.await.ok().flatten()
    }

    /// A flow without a client id that ended lately, while this instance was active.
    pub(crate) fn ended_lately(&self, flow: FlowId) -> Option<FlowRecord> {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        ended.records.get(&flow).cloned()
    }

    /// How a flow without a client id ends; `None` if nothing is known of it.
    pub(crate) async fn outcome(&self, flow: FlowId) -> Option<FlowOutcome> {
        let mut feed = self.feed();
        loop {
            feed.mark_seen();
            if self.view(flow).await.is_none() {
                return self.ended_lately(flow).and_then(|record| record.outcome);
            }
            feed.changed(flow).await;
        }
    }

    /// Whether the driver takes up its work.
    pub(crate) async fn responds(&self) -> bool {
        let (reply, answer) = oneshot::channel();
        let nobody = FlowId::from_bytes([0; 16]);
        let asked = self.inputs.send(Input::View(nobody, reply)).await;
        asked.is_ok() && answer.await.is_ok()
    }

    /// News of changes from now on.
    pub(crate) fn feed(&self) -> Feed {
        Feed(self.changes.news.subscribe())
    }

    /// The number of the latest change.
    pub(crate) fn cursor(&self) -> u64 {
        let log = self.changes.log.lock();
        log.unwrap_or_else(PoisonError::into_inner).next
    }

    /// The flows that have changed since a number, and the number of the latest change; `None`
    /// if the number is not of this process or too long ago.
    pub(crate) fn changed_since(&self, after: u64) -> Option<(u64, Vec<FlowId>)> {
        let log = self.changes.log.lock();
        let log = log.unwrap_or_else(PoisonError::into_inner);
        let news = usize::try_from(log.next.checked_sub(after)?).ok()?;
        let known = log.kept.len().checked_sub(news)?;
        Some((log.next, log.kept.iter().skip(known).copied().collect()))
    }

    /// Tasks that live as long as the driver.
    pub(crate) fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    /// How many flows have not ended.
    pub(crate) fn running(&self) -> watch::Receiver<usize> {
        self.running.clone()
    }
}

/// What the driver needs.
pub(crate) struct Parts {
    pub(crate) machine: Machine,
    pub(crate) writer: Writer,
    pub(crate) store: Store,
    pub(crate) host: Arc<Host>,
    pub(crate) post: Post,
    pub(crate) clock: Clock,
    pub(crate) entropy: Entropy,
    pub(crate) metrics: FlowMetrics,
    pub(crate) traces: Traces,
    /// Tasks that answer flows' requests.
    pub(crate) tasks: Tasks,
}

/// The channel between [`Flows`] and its [`Driver`], made before the driver so that the post can
/// be built with it.
pub(crate) struct Intake {
    inputs: mpsc::Receiver<Input>,
    running: watch::Sender<usize>,
    flows: Flows,
}

/// A handle, and the receiving end to give to [`Driver::new`].
pub(crate) fn intake(clock: &Clock, tasks: &Tasks) -> (Flows, Intake) {
    let (sender, inputs) = mpsc::channel(QUEUE);
    let (running, running_watch) = watch::channel(0);
    let changes = Changes {
        log: Mutex::new(ChangeLog {
            next: u64::try_from(clock.now_micros()).unwrap_or(1),
            kept: VecDeque::new(),
        }),
        news: broadcast::Sender::new(CHANGES_KEPT),
    };
    let flows = Flows {
        inputs: sender,
        changes: Arc::new(changes),
        ended: Arc::default(),
        running: running_watch,
        tasks: tasks.clone(),
    };
    let intake = Intake {
        inputs,
        running,
        flows: flows.clone(),
    };
    (flows, intake)
}

struct Done {
    flow: Option<FlowId>,
    summary: Summary,
    result: Result<Committed, CommitError>,
}

/// What is remembered of a step while it is being committed.
struct Summary {
    outcome: Option<FlowOutcome>,
    recorded: bool,
    /// Of a flow that ends with this step.
    span: Option<Box<Span>>,
}

/// The owner of the machine.
pub(crate) struct Driver {
    parts: Parts,
    intake: Intake,
    commits: FuturesUnordered<BoxFuture<'static, Done>>,
    /// Who waits for a flow's first commit.
    starting: HashMap<FlowId, StartReply>,
    /// Client ids of flows that have not ended, and those whose start is being looked up.
    by_client: HashMap<ClientId, FlowId>,
    starts: HashMap<FlowId, FlowStart>,
    lookups: FuturesUnordered<BoxFuture<'static, Lookup>>,
    looking: HashMap<ClientId, VecDeque<(Wanted, StartReply)>>,
}

/// A flow that somebody wants.
struct Wanted {
    start: FlowStart,
    /// The span that wants it.
    parent: Option<TraceContext>,
}

struct Lookup {
    client_id: ClientId,
    found: Result<Option<FlowId>, String>,
}

impl Driver {
    /// A driver over these parts; it does nothing before [`Driver::run`].
    pub(crate) fn new(parts: Parts, intake: Intake) -> Self {
        Self {
            parts,
            intake,
            commits: FuturesUnordered::new(),
            starting: HashMap::new(),
            by_client: HashMap::new(),
            starts: HashMap::new(),
            lookups: FuturesUnordered::new(),
            looking: HashMap::new(),
        }
    }

    /// Takes up the flows of the store, then works until shutdown is requested. Steps that are
    /// being committed then are finished; the rest is taken up by whoever starts next.
    pub(crate) async fn run(mut self, restored: Vec<Checkpoint>) {
        for checkpoint in restored {
            self.restore(Box::new(checkpoint));
        }
        let shutdown = self.parts.tasks.shutdown().clone();
        loop {
            let running = self.parts.machine.len();
            self.intake
                .running
                .send_if_modified(|known| std::mem::replace(known, running) != running);
            self.parts
                .metrics
                .census(&self.parts.machine.census(), self.parts.machine.held());
            tokio::select! {
                biased;
                () = shutdown.requested() => break,
                () = self.turn() => {}
            }
        }
        while let Some(done) = self.commits.next().await {
            // Only waiters are told; the machine goes no further.
            if let (Some(flow), Ok(committed)) = (done.flow, done.result) {
                self.tell_started(flow);
                self.parts.post.enqueued(committed.outgoing);
            }
        }
    }

    /// Waits for something to happen and applies it. Whatever happens without a pause, the rest
    /// gets its turn: the branches are looked at in any order, and time is looked at every time.
    async fn turn(&mut self) {
        let sleep = self.until_next_wakeup();
        tokio::select! {
            Some(done) = self.commits.next(), if !self.commits.is_empty() => {
                self.committed(done);
                // Whatever else is finished by now belongs to the same group commit.
                for _ in 1..EVENTS_PER_TURN {
                    match self.commits.next().now_or_never() {
                        Some(Some(done)) => self.committed(done),
                        _ => break,
                    }
                }
            }
            Some(lookup) = self.lookups.next(), if !self.lookups.is_empty() => {
                self.looked_up(lookup);
            }
            Some(input) = self.intake.inputs.recv() => {
                self.apply(input);
                for _ in 1..EVENTS_PER_TURN {
                    match self.intake.inputs.try_recv() {
                        Ok(input) => self.apply(input),
                        Err(_) => break,
                    }
                }
            }
            () = sleep => {}
        }
        if self
            .parts
            .machine
            .next_wakeup()
            .is_some_and(|at| at <= self.now())
        {
            self.feed(Event::Tick);
        }
    }

    fn until_next_wakeup(&self) -> impl Future<Output = ()> + Send + 'static {
        let wait = self
            .parts
            .machine
            .next_wakeup()
            .map(|at| at.since(self.now()));
        async move {
            match wait {
                Some(wait) => tokio::time::sleep(wait.min(LONGEST_SLEEP)).await,
                None => std::future::pending().await,
            }
        }
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.parts.clock.now_micros())
    }

    fn restore(&mut self, checkpoint: Box<Checkpoint>) {
        self.remember(checkpoint.flow, &checkpoint.start);
        let seed = self.parts.entropy.bytes();
        self.feed(Event::Restore { checkpoint, seed });
    }

    fn remember(&mut self, flow: FlowId, start: &FlowStart) {
        if let Some(client_id) = &start.client_id {
            self.by_client.insert(client_id.clone(), flow);
        }
        if !matches!(start.origin, Origin::Peer { .. }) {
            self.starts.insert(flow, start.clone());
        }
    }

    fn apply(&mut self, input: Input) {
        match input {
            Input::Start {
                start,
                parent,
                reply,
            } => self.asked_to_start(Wanted { start, parent }, reply),
            Input::Deliver(messages) => {
                for (inbox, envelope) in messages {
                    let seed = self.parts.entropy.bytes();
                    self.feed(Event::Deliver {
                        inbox,
                        envelope: Box::new(envelope),
                        seed,
                    });
                }
            }
            Input::HostResult {
                flow,
                sequence,
                result,
            } => self.feed(Event::HostResult {
                flow,
                sequence,
                result,
            }),
            Input::Loaded { flow, checkpoint } => match checkpoint {
                Some(checkpoint) => self.restore(checkpoint),
                None => tracing::warn!(%flow, "the flow is no longer in the store"),
            },
            Input::Order { flow, order, reply } => {
                let known = self.parts.machine.view(flow).is_some();
                if known {
                    tracing::info!(%flow, ?order, "an operator gave an order for a flow");
                    self.feed(match order {
                        Order::Kill => Event::Kill { flow },
                        Order::Pause => Event::Pause { flow },
                        Order::Retry => Event::Retry { flow },
                    });
                }
                let _ = reply.send(known);
            }
            Input::Draining(draining) => {
                self.parts.machine.set_draining(draining);
                // Lets in what was held, if it may.
                self.feed(Event::Tick);
            }
            Input::Surroundings(surroundings) => self.parts.machine.set_surroundings(surroundings),
            Input::Views(reply) => {
                let _ = reply.send(self.parts.machine.views().collect());
            }
            Input::View(flow, reply) => {
                let _ = reply.send(self.parts.machine.view(flow));
            }
            Input::OfClient(client_id, reply) => {
                let _ = reply.send(self.by_client.get(&client_id).copied());
            }
        }
    }

    /// A start under a client id is looked up first: the flow may be running, or have ended.
    fn asked_to_start(&mut self, start: Wanted, reply: StartReply) {
        let Some(client_id) = start.start.client_id.clone() else {
            self.start(start, reply);
            return;
        };
        if let Some(flow) = self.by_client.get(&client_id).copied() {
            self.reattach(flow, reply);
        } else if let Some(waiting) = self.looking.get_mut(&client_id) {
            waiting.push_back((start, reply));
        } else {
            let store = self.parts.store.clone();
            self.looking
                .insert(client_id.clone(), VecDeque::from([(start, reply)]));
            self.lookups.push(Box::pin(async move {
                let found = store.flow_by_client_id(&client_id).await;
                Lookup {
                    client_id,
                    found: match found {
                        Ok(record) => Ok(record.map(|record| record.flow)),
                        Err(error) => Err(chain(&error)),
                    },
                }
            }));
        }
    }

    fn looked_up(&mut self, lookup: Lookup) {
        let waiting = self.looking.remove(&lookup.client_id).unwrap_or_default();
        for (start, reply) in waiting {
            match (
                &lookup.found,
                self.by_client.get(&lookup.client_id).copied(),
            ) {
                (_, Some(flow)) => self.reattach(flow, reply),
                (Ok(Some(flow)), None) => {
                    let _ = reply.send(Ok(Started {
                        flow: *flow,
                        reattached: true,
                    }));
                }
                (Ok(None), None) => self.start(start, reply),
                (Err(error), None) => {
                    let _ = reply.send(Err(StartError::Store(error.clone())));
                }
            }
        }
    }

    /// Answers once the running flow's start is durable.
    fn reattach(&mut self, flow: FlowId, reply: StartReply) {
        let found = Ok(Started {
            flow,
            reattached: true,
        });
        match self.starting.remove(&flow) {
            None => {
                let _ = reply.send(found);
            }
            Some(first) => {
                let (both, answer) = oneshot::channel();
                self.starting.insert(flow, both);
                self.parts.tasks.spawn("reattach", async move {
                    let started = answer.await.unwrap_or(Err(StartError::Stopping));
                    let again = match &started {
                        Ok(_) => found,
                        Err(error) => Err(StartError::Store(error.to_string())),
                    };
                    let _ = first.send(started);
                    let _ = reply.send(again);
                });
            }
        }
    }

    fn start(&mut self, wanted: Wanted, reply: StartReply) {
        let Wanted { start, parent } = wanted;
        if let Err(refused) = self
            .parts
            .machine
            .check_start(&start.class, &start.arguments)
        {
            let _ = reply.send(Err(refused.into()));
            return;
        }
        let flow = FlowId::from_bytes(self.parts.entropy.bytes());
        self.remember(flow, &start);
        self.starting.insert(flow, reply);
        self.parts.metrics.started.inc();
        let seed = self.parts.entropy.bytes();
        let traced = self.parts.traces.is_on();
        self.feed(Event::Start {
            flow,
            start,
            trace: traced.then(|| FlowTrace::of(flow, parent)),
            seed,
        });
    }

    fn feed(&mut self, event: Event) {
        let now = self.now();
        for action in self.parts.machine.handle(now, event) {
            self.carry_out(action);
        }
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::Commit(step) => self.commit(*step),
            Action::Discard { inbox, reply } => {
                let writer = self.parts.writer.clone();
                self.commits.push(Box::pin(async move {
                    let unit = || {
                        let mut unit = UnitOfWork::new();
                        unit.consumed.push(inbox.clone());
                        unit.outgoing.extend(reply.as_deref().cloned());
                        unit
                    };
                    Done {
                        flow: None,
                        summary: Summary {
                            outcome: None,
                            recorded: false,
                            span: None,
                        },
                        result: commit_stubbornly(&writer, unit).await,
                    }
                }));
            }
            Action::Execute {
                flow,
                sequence,
                request,
            } => {
                let host = Arc::clone(&self.parts.host);
                let pool = self.pool(flow);
                let inputs = self.intake.flows.inputs.clone();
                self.parts.tasks.spawn("request", async move {
                    let answer = AssertUnwindSafe(host.answer(flow, pool, sequence, request));
                    // An answer there must be: the machine waits for it, however long it takes.
                    let result = answer.catch_unwind().await.unwrap_or_else(|panic| {
                        let why = format!(
                            "answering operation {sequence} panicked: {}",
                            panic_text(panic.as_ref())
                        );
                        tracing::error!(%flow, "{why}");
                        Err(FlowError::NeedsCare(why).into())
                    });
                    let _ = inputs
                        .send(Input::HostResult {
                            flow,
                            sequence,
                            result,
                        })
                        .await;
                });
            }
            Action::Load { flow } => {
                let store = self.parts.store.clone();
                let inputs = self.intake.flows.inputs.clone();
                let shutdown = self.parts.tasks.shutdown().clone();
                self.parts.tasks.spawn("load flow", async move {
                    let mut attempt = 0;
                    let checkpoint = loop {
                        attempt += 1;
                        match store.checkpoint(flow).await {
                            Ok(checkpoint) => break checkpoint.map(Box::new),
                            Err(error) if error.is_transient() && attempt < LOAD_RETRIES => {
                                tracing::warn!(%flow, error = %chain(&error), "cannot read the flow yet");
                            }
                            Err(error) => {
                                tracing::error!(%flow, error = %chain(&error), "cannot read the flow; retry it later");
                                return;
                            }
                        }
                        tokio::select! {
                            () = shutdown.requested() => return,
                            () = tokio::time::sleep(LOAD_PAUSE) => {}
                        }
                    };
                    let _ = inputs.send(Input::Loaded { flow, checkpoint }).await;
                });
            }
        }
    }

    /// The span of a flow that ends with this step.
    fn span_of(&self, step: &StepCommit) -> Option<Span> {
        let outcome = step
            .outcome
            .as_ref()
            .filter(|_| self.parts.traces.is_on())?;
        let FlowTrace { own, parent } = self.parts.machine.trace(step.flow)?;
        let view = self.parts.machine.view(step.flow)?;
        let (kind, peer) = match &view.origin {
            Origin::Peer { name } => (SpanKind::Server, Some(name.to_string())),
            _ => (SpanKind::Internal, None),
        };
        let mut attributes = vec![("flow.id", step.flow.to_string())];
        attributes.extend(peer.map(|peer| ("flow.counterparty", peer)));
        attributes.extend(view.client_id.map(|id| ("flow.client.id", id.to_string())));
        Some(Span {
            trace: own.trace,
            span: own.span,
            parent: parent.map(|parent| parent.span),
            name: view.class,
            kind,
            times: (view.started_at.as_micros(), 0),
            attributes,
            error: match outcome {
                FlowOutcome::Completed { .. } => None,
                FlowOutcome::Failed { error } => Some(error.clone()),
                FlowOutcome::Killed => Some("killed by an operator".to_owned()),
            },
        })
    }

    fn pool(&self, flow: FlowId) -> Pool {
        match self.parts.machine.class(flow) {
            Some((class, _)) if standard::is_system(class) => Pool::System,
            Some((_, true)) => Pool::Answering,
            _ => Pool::Own,
        }
    }

    fn commit(&mut self, step: StepCommit) {
        let flow = step.flow;
        if step.status == FlowStatus::Hospitalised {
            let why = self.parts.machine.view(flow).and_then(|view| view.ailment);
            self.parts.metrics.hospitalised.inc();
            tracing::warn!(
                %flow,
                why = why.unwrap_or_default(),
                "the flow was hospitalised; see `flow list`, then retry or kill it"
            );
        }
        let summary = Summary {
            outcome: step.outcome.clone(),
            recorded: !step.recordings.is_empty(),
            span: self.span_of(&step).map(Box::new),
        };
        let writer = self.parts.writer.clone();
        self.commits.push(Box::pin(async move {
            let unit = || UnitOfWork::step(step.clone());
            Done {
                flow: Some(flow),
                summary,
                result: commit_stubbornly(&writer, unit).await,
            }
        }));
    }

    fn committed(&mut self, done: Done) {
        let Done {
            flow,
            summary,
            result,
        } = done;
        match (flow, result) {
            (flow, Ok(committed)) => {
                self.parts.post.enqueued(committed.outgoing);
                if let Some(mut span) = summary.span {
                    span.times.1 = self.parts.clock.now_micros();
                    self.parts.traces.record(*span);
                }
                if summary.recorded {
                    self.parts.host.recorded(&committed.vault_updates);
                }
                let Some(flow) = flow else {
                    return;
                };
                self.tell_started(flow);
                if let Some(outcome) = summary.outcome {
                    self.ended(flow, outcome);
                }
                self.feed(Event::Committed { flow });
                self.intake.flows.changes.push(flow);
            }
            (Some(flow), Err(CommitError::Refused(reason))) => {
                let reason = chain(reason.as_ref());
                tracing::error!(%flow, reason, "the store refused a flow's step");
                if let Some(reply) = self.starting.remove(&flow) {
                    let _ = reply.send(Err(StartError::Store(reason.clone())));
                }
                self.feed(Event::CommitFailed { flow, reason });
                if self.parts.machine.view(flow).is_none() {
                    self.never_started(flow);
                }
                self.intake.flows.changes.push(flow);
            }
            (None, Err(CommitError::Refused(reason))) => {
                // The message was dealt with before, so nothing is left to do.
                tracing::warn!(
                    reason = chain(reason.as_ref()),
                    "the store refused to discard a message"
                );
            }
            (_, Err(error)) => {
                // Without the store, or no longer its owner: this instance must not serve.
                self.parts.tasks.shutdown().root().request(format!(
                    "this instance can no longer write to its database: {}",
                    chain(&error)
                ));
            }
        }
    }

    /// The first step of a flow was refused: there is no such flow, and its client id is free.
    fn never_started(&mut self, flow: FlowId) {
        if let Some(client_id) = self.starts.remove(&flow).and_then(|start| start.client_id) {
            self.by_client.remove(&client_id);
        }
    }

    fn tell_started(&mut self, flow: FlowId) {
        if let Some(reply) = self.starting.remove(&flow) {
            let _ = reply.send(Ok(Started {
                flow,
                reattached: false,
            }));
        }
    }

    fn ended(&mut self, flow: FlowId, outcome: FlowOutcome) {
        let Some(start) = self.starts.remove(&flow) else {
            return;
        };
        let now = self.now();
        let success = matches!(outcome, FlowOutcome::Completed { .. });
        self.parts
            .metrics
            .ended(success, now.since(start.started_at));
        if let Some(client_id) = &start.client_id {
            self.by_client.remove(client_id);
        } else if !matches!(start.origin, Origin::Peer { .. }) {
            let view = self.parts.machine.view(flow);
            let status = match &outcome {
                FlowOutcome::Completed { .. } => FlowStatus::Completed,
                FlowOutcome::Failed { .. } => FlowStatus::Failed,
                FlowOutcome::Killed => FlowStatus::Killed,
            };
            let fence = self.parts.writer.fence();
            let record = FlowRecord {
                flow,
                start,
                status,
                progress: view.and_then(|view| view.progress),
                outcome: Some(outcome),
                finished_at: Some(now),
                owner: fence.instance().to_owned(),
                generation: fence.generation(),
            };
            let mut ended = self
                .intake
                .flows
                .ended
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            ended.insert(record);
        }
    }
}

/// What certainly was not committed is offered again.
async fn commit_stubbornly(
    writer: &Writer,
    unit: impl Fn() -> UnitOfWork,
) -> Result<Committed, CommitError> {
    let mut attempt = 0;
    loop {
        match writer.commit(unit()).await {
            Err(CommitError::Transient(error)) if attempt < RETRIES => {
                attempt += 1;
                tracing::debug!(attempt, error = %error, "the store did not take a step, trying again");
                tokio::time::sleep(RETRY_PAUSE).await;
            }
            result => return result,
        }
    }
}

/// What a panic says.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("with a value that is not text")
}

/// Who asked for a flow, for the start of one that a client asks for.
pub(crate) fn start_by_client(
    user: &str,
    class: String,
    arguments: String,
    client_id: Option<ClientId>,
    now: Timestamp,
) -> FlowStart {
    FlowStart {
        class,
        arguments,
        client_id,
        origin: Origin::Rpc {
            user: user.to_owned(),
        },
        started_at: now,
    }
}

#[cfg(test)]
mod tests;
