//! The thin shell around the protocol: a task that waits for one of a closed set of events, hands it over, and
//! performs the actions in order.
//!
//! It owns the queues. Submissions wait in theirs while the channel cannot take more, and their clients with them;
//! consensus messages that do not fit are lost, for Raft repeats what matters. Answers to the channel's own actions
//! come in a queue that is as long as there are actions under way.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt as _};
use quorate_consensus::snapshots::SnapshotFiles;
use quorate_consensus::{GroupId, Log};
use quorate_fabric::config::CreatedChannel;
use quorate_identity::UnixTime;
use quorate_runtime::{Clock, Tasks};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{error, info, warn};

use super::core::{
    Action, Channel, Event, ForwardId, Gauges, Halt, LOG, Now, Setup, SetupError, Ticket, View,
};
use super::metrics::ChannelMetrics;
use super::ordering::STOPPED;
use super::standing::Standing;
use super::{ChannelHandle, Submission, SubmitError};
use crate::cluster::{ForwardError, Member};
use crate::replication::{Pace, Progress};
use crate::store::{BlockStore, StoredBlock};

/// Submissions that wait for the channel.
pub const MAX_QUEUED_SUBMISSIONS: usize = 1024;

/// Submissions taken from the queue at once. They have to fit into the channel should it pause after the first.
const MAX_SUBMISSIONS_AT_ONCE: usize = 256;

/// Consensus messages that wait for the channel.
pub const MAX_QUEUED_MESSAGES: usize = 1024;

/// Bytes of consensus messages that wait for the channel. One message may be longer than this and is taken if it is
/// alone.
pub const MAX_QUEUED_MESSAGE_BYTES: usize = 64 << 20;

/// Consensus messages taken from the queue at once.
const MAX_MESSAGES_AT_ONCE: usize = 64;

/// Questions about a channel's standing that wait for an answer; further ones wait before they are asked.
const MAX_INQUIRIES: usize = 16;

/// The other consenters of one channel.
pub trait Peers: Send + Sync + 'static {
    /// Replaces who they are; this orderer is among them.
    fn connect(&self, members: Vec<Member>);

    /// Sends a consensus message, or loses it. Never blocks.
    fn send(&self, to: u64, payload: Bytes, metadata: Bytes);

    /// Whether that consenter checks what is forwarded to it, and answers.
    fn checks(&self, to: u64) -> bool;

    /// Forwards a transaction; resolves when that consenter has taken it over, or, if it does not answer, when it was given
    /// to the connection. One that was not checked here goes to those only that check it.
    fn forward(
        &self,
        to: u64,
        validated_at: Option<u64>,
        envelope: Bytes,
    ) -> BoxFuture<'static, Result<(), ForwardError>>;
}

/// What the newest configuration of a channel, as the other orderers have it, says of us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Belonging {
    /// The configuration block of this number does not name us.
    Evicted(u64),
    /// It does.
    Member(u64),
}

/// Blocks and configuration as the other orderers of a channel have them.
pub trait Replication: Send + Sync + 'static {
    /// Blocks from `first` on, verified and in order: at least one, none above `last`. Tries until it has some.
    fn fetch(&self, first: u64, last: u64) -> BoxFuture<'static, Vec<StoredBlock>>;

    /// Asks the others for the newest configuration block, and whether it names us; `None` when nobody who knows as much
    /// as we do could be asked.
    fn belonging(&self) -> BoxFuture<'static, Option<Belonging>>;
}

/// Brings the channels into being that a system channel creates.
pub trait Creation: Send + Sync + 'static {
    /// Makes the channel's first block durable and starts the channel; both are done when this resolves. A channel that
    /// has blocks already is left alone. Dropping the future may leave the block without the channel being started.
    fn create(&self, channel: CreatedChannel) -> BoxFuture<'static, Result<(), String>>;
}

/// With what a channel is started.
pub struct Start {
    /// The protocol's part.
    pub setup: Setup,
    /// The channel's blocks.
    pub store: BlockStore,
    /// The log that all channels share.
    pub log: Log,
    /// The group's name in that log.
    pub group: GroupId,
    /// Where snapshots are kept as files.
    pub snapshots: SnapshotFiles,
    /// The other consenters.
    pub peers: Arc<dyn Peers>,
    /// Blocks from elsewhere.
    pub replication: Arc<dyn Replication>,
    /// Creates channels, if this is a system channel.
    pub creation: Option<Arc<dyn Creation>>,
    /// The time.
    pub clock: Clock,
    /// What operators see.
    pub metrics: ChannelMetrics,
    /// Called when the group's first write is durable: before that it has promised nothing to anybody.
    pub begun: Option<Box<dyn FnOnce() + Send>>,
}

/// What a handle shares with its task.
pub(super) struct Shared {
    pub(super) name: String,
    pub(super) view: watch::Receiver<View>,
    pub(super) leader: watch::Receiver<u64>,
    pub(super) halted: watch::Receiver<Option<Halt>>,
    pub(super) store: BlockStore,
    peers: Arc<dyn Peers>,
    submissions: mpsc::Sender<(Submission, oneshot::Sender<Answer>)>,
    messages: mpsc::Sender<(u64, Bytes, Bytes)>,
    message_bytes: Arc<AtomicUsize>,
    inquiries: mpsc::Sender<oneshot::Sender<Standing>>,
}

type Answer = Result<(), SubmitError>;

/// The answer to a submission, still to come.
#[derive(Debug)]
#[must_use = "the answer is worth waiting for"]
pub struct Pending(oneshot::Receiver<Answer>);

impl Pending {
    /// Waits for the answer.
    ///
    /// # Errors
    /// [`SubmitError`].
    pub async fn answer(self) -> Result<(), SubmitError> {
        self.0
            .await
            .unwrap_or_else(|_| Err(SubmitError::Unavailable(STOPPED.to_owned())))
    }
}

impl Shared {
    pub(super) fn leader_checks(&self) -> bool {
        let leader = *self.leader.borrow();
        leader != 0 && self.peers.checks(leader)
    }

    pub(super) async fn enqueue(&self, submission: Submission) -> Result<Pending, SubmitError> {
        let (answer, pending) = oneshot::channel();
        self.submissions
            .send((submission, answer))
            .await
            .map_err(|_| SubmitError::Unavailable(STOPPED.to_owned()))?;
        Ok(Pending(pending))
    }

    /// `None` when the channel has stopped.
    pub(super) async fn standing(&self) -> Option<Standing> {
        let (reply, answer) = oneshot::channel();
        self.inquiries.send(reply).await.ok()?;
        answer.await.ok()
    }

    pub(super) fn step(&self, from: u64, payload: Bytes, metadata: Bytes) {
        let bytes = payload.len();
        let waiting = self.message_bytes.load(Ordering::Relaxed);
        if waiting > 0 && waiting + bytes > MAX_QUEUED_MESSAGE_BYTES {
            return;
        }
        self.message_bytes.fetch_add(bytes, Ordering::Relaxed);
        if self.messages.try_send((from, payload, metadata)).is_err() {
            self.message_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
    }
}

/// Why a channel's task ends.
enum Stop {
    /// It was asked to.
    Asked,
    /// The channel says so.
    Halted(Halt),
}

/// What answers to our own actions bring.
enum Done {
    Written(u64),
    LogFailed(String),
}

/// Starts a channel. Its task ends when the channel halts ([`ChannelHandle::halted`] says why) or when `tasks` is
/// asked to stop; cutting it off loses nothing that was acknowledged in committed mode.
///
/// # Errors
/// [`SetupError`].
pub fn start(start: Start, tasks: &Tasks) -> Result<ChannelHandle, SetupError> {
    let view = View {
        config: start.setup.config.clone(),
        consenters: Arc::from([]),
        active: Arc::from([]),
    };
    let now = now(&start.clock);
    let core = Channel::new(start.setup, now)?;
    let name = view.config.channel_id().to_owned();
    let (view_out, view) = watch::channel(view);
    let (leader_out, leader) = watch::channel(0);
    let (halted_out, halted) = watch::channel(None);
    let (submissions, submissions_in) = mpsc::channel(MAX_QUEUED_SUBMISSIONS);
    let (messages, messages_in) = mpsc::channel(MAX_QUEUED_MESSAGES);
    // As long as the writes under way; the Raft group bounds those by the entries in flight.
    let (done, done_in) = mpsc::unbounded_channel();
    let message_bytes = Arc::new(AtomicUsize::new(0));
    let (inquiries, inquiries_in) = mpsc::channel(MAX_INQUIRIES);
    let shared = Arc::new(Shared {
        name: name.clone(),
        view,
        leader,
        halted,
        store: start.store.clone(),
        peers: start.peers.clone(),
        submissions,
        messages,
        message_bytes: message_bytes.clone(),
        inquiries,
    });
    let gauges = Gauges::default();
    let shell = Shell {
        name: name.clone(),
        core,
        store: start.store,
        log: start.log,
        group: start.group,
        snapshots: Arc::new(start.snapshots),
        peers: start.peers,
        replication: start.replication,
        creation: start.creation,
        clock: start.clock,
        metrics: start.metrics,
        begun: start.begun,
        gauges,
        view: view_out,
        leader: leader_out,
        halted: halted_out,
        done,
        tickets: HashMap::new(),
        next_ticket: 0,
        forwards: FuturesUnordered::new(),
        fetching: None,
        suspecting: None,
        message_bytes,
        pace: Pace::default(),
        progress: None,
    };
    let shutdown = tasks.shutdown().clone();
    tasks.spawn(format!("channel {name}"), async move {
        shell
            .run(submissions_in, messages_in, inquiries_in, done_in, shutdown)
            .await;
        Ok::<(), std::convert::Infallible>(())
    });
    Ok(ChannelHandle { shared })
}

fn now(clock: &Clock) -> Now {
    Now {
        monotonic: clock.monotonic(),
        wall: UnixTime(clock.now_seconds()),
    }
}

struct Fetching {
    last: u64,
    pace: Pace,
    work: BoxFuture<'static, Vec<StoredBlock>>,
}

struct Shell {
    name: String,
    core: Channel,
    store: BlockStore,
    log: Log,
    group: GroupId,
    snapshots: Arc<SnapshotFiles>,
    peers: Arc<dyn Peers>,
    replication: Arc<dyn Replication>,
    creation: Option<Arc<dyn Creation>>,
    clock: Clock,
    metrics: ChannelMetrics,
    begun: Option<Box<dyn FnOnce() + Send>>,
    gauges: Gauges,
    view: watch::Sender<View>,
    leader: watch::Sender<u64>,
    halted: watch::Sender<Option<Halt>>,
    done: mpsc::UnboundedSender<Done>,
    tickets: HashMap<Ticket, oneshot::Sender<Answer>>,
    next_ticket: u64,
    forwards: FuturesUnordered<BoxFuture<'static, (ForwardId, Result<(), ForwardError>)>>,
    fetching: Option<Fetching>,
    suspecting: Option<BoxFuture<'static, Option<Belonging>>>,
    message_bytes: Arc<AtomicUsize>,
    /// Of the fetching of blocks, between two pieces of it.
    pace: Pace,
    progress: Option<Progress>,
}

impl Shell {
    async fn run(
        mut self,
        mut submissions: mpsc::Receiver<(Submission, oneshot::Sender<Answer>)>,
        mut messages: mpsc::Receiver<(u64, Bytes, Bytes)>,
        mut inquiries: mpsc::Receiver<oneshot::Sender<Standing>>,
        mut done: mpsc::UnboundedReceiver<Done>,
        shutdown: quorate_runtime::Shutdown,
    ) {
        let mut submitted = Vec::with_capacity(MAX_SUBMISSIONS_AT_ONCE);
        let mut received = Vec::with_capacity(MAX_MESSAGES_AT_ONCE);
        loop {
            // Whatever was decided so far is performed before anything else is waited for.
            match self.perform(&shutdown).await {
                Ok(()) => {}
                Err(Stop::Asked) => break,
                Err(Stop::Halted(halt)) => {
                    info!(target: LOG, channel = %self.name, node = self.core.raft_id(),
                        "Raft node stopped");
                    self.halted.send_replace(Some(halt));
                    break;
                }
            }
            let deadline = self.core.deadline();
            let wait = deadline.saturating_sub(self.clock.monotonic());
            let fetched = async {
                match &mut self.fetching {
                    Some(fetching) => (&mut fetching.work).await,
                    None => std::future::pending().await,
                }
            };
            let suspected = async {
                match &mut self.suspecting {
                    Some(suspecting) => suspecting.await,
                    None => std::future::pending().await,
                }
            };
            let accepts = self.core.accepts_submissions();
            tokio::select! {
                () = shutdown.requested() => break,
                Some(done) = done.recv() => match done {
                    Done::Written(number) => {
                        if let Some(begun) = self.begun.take() {
                            begun();
                        }
                        self.tell(Event::Written(number));
                    }
                    Done::LogFailed(reason) => {
                        error!(target: LOG, channel = %self.name, node = self.core.raft_id(),
                            "The channel stops: the consensus log failed: {reason}");
                        self.halted.send_replace(Some(Halt::Failed(reason)));
                        break;
                    }
                },
                count = messages.recv_many(&mut received, MAX_MESSAGES_AT_ONCE), if !messages.is_closed() || !messages.is_empty() => {
                    if count > 0 {
                        for (from, payload, metadata) in received.drain(..) {
                            self.message_bytes.fetch_sub(payload.len(), Ordering::Relaxed);
                            self.tell(Event::Message { from, payload, metadata });
                        }
                    }
                }
                count = submissions.recv_many(&mut submitted, MAX_SUBMISSIONS_AT_ONCE), if accepts && (!submissions.is_closed() || !submissions.is_empty()) => {
                    if count > 0 {
                        let mut batch = Vec::with_capacity(count);
                        for (submission, answer) in submitted.drain(..) {
                            self.next_ticket += 1;
                            let ticket = Ticket(self.next_ticket);
                            self.tickets.insert(ticket, answer);
                            batch.push((ticket, submission));
                        }
                        self.tell(Event::Submit(batch));
                    }
                }
                Some(inquiry) = inquiries.recv() => {
                    let standing = Standing {
                        progress: self.progress,
                        ..self.core.standing()
                    };
                    // Whoever has gone away does not need the answer.
                    let _ = inquiry.send(standing);
                }
                Some((id, result)) = self.forwards.next(), if !self.forwards.is_empty() => {
                    self.tell(Event::Forwarded(id, result));
                }
                blocks = fetched => {
                    let mut last = 0;
                    if let Some(fetching) = self.fetching.take() {
                        (last, self.pace) = (fetching.last, fetching.pace);
                    }
                    self.tell(Event::Pulled(blocks));
                    let next = self.core.tip().number + 1;
                    self.look(next, last + 1);
                    if next <= last && !self.core.is_halted() {
                        self.fetch(next, last);
                    } else {
                        self.pace = Pace::default();
                    }
                }
                answer = suspected => {
                    self.suspecting = None;
                    match answer {
                        Some(Belonging::Evicted(number)) => self.tell(Event::Evicted(number)),
                        Some(Belonging::Member(number)) => self.tell(Event::Belongs(number)),
                        None => {}
                    }
                }
                () = self.clock.sleep(wait) => {}
            }
            self.core.handle_time(now(&self.clock));
        }
        self.metrics.forget(&self.name);
        // Dropping the senders answers those who still wait.
    }

    /// Looks how far the fetching of blocks is.
    fn look(&mut self, height: u64, target: u64) {
        if let Some(look) = self.pace.look(self.clock.monotonic(), height, target) {
            self.progress = (height < target).then_some(look.progress);
            let shown = &self.metrics.replication;
            shown.show(&self.name, self.progress.as_ref());
            if look.is_due {
                info!(target: LOG, channel = %self.name, node = self.core.raft_id(), "Catching up: {}", look.progress);
            }
        }
    }

    fn tell(&mut self, event: Event) {
        self.core.handle(now(&self.clock), event);
    }

    fn fetch(&mut self, first: u64, last: u64) {
        let pace = match self.fetching.take() {
            Some(fetching) => fetching.pace,
            None => std::mem::take(&mut self.pace),
        };
        self.fetching = Some(Fetching {
            last,
            pace,
            work: self.replication.fetch(first, last),
        });
    }

    /// Performs everything that is to be done now, in order.
    ///
    /// # Errors
    /// Why the channel has to stop.
    async fn perform(&mut self, shutdown: &quorate_runtime::Shutdown) -> Result<(), Stop> {
        let mut halt = None;
        for action in self.core.actions() {
            match action {
                Action::Append(block) => {
                    // Writing to the file cache takes far less time than giving the work away would.
                    if let Err(failure) = self.store.append(&block) {
                        return Err(Stop::Halted(self.store_failed(&failure)));
                    }
                }
                Action::CreateChannel(created) => {
                    let created = self.create(*created);
                    tokio::select! {
                        outcome = created => outcome.map_err(Stop::Halted)?,
                        // Whoever stops us may be the one who would start the new channel.
                        () = shutdown.requested() => return Err(Stop::Asked),
                    }
                }
                Action::SyncBlocks => {
                    let store = self.store.clone();
                    match quorate_runtime::tasks::blocking("sync of blocks", move || store.sync())
                        .await
                    {
                        Ok(Ok(_)) => {}
                        Ok(Err(failure)) => {
                            return Err(Stop::Halted(self.store_failed(&failure)));
                        }
                        Err(failure) => {
                            return Err(Stop::Halted(Halt::Failed(failure.to_string())));
                        }
                    }
                }
                Action::Persist { number, write } => {
                    let done = self.done.clone();
                    let started = self.clock.monotonic();
                    let clock = self.clock.clone();
                    let duration = self
                        .metrics
                        .etcdraft
                        .data_persist_duration
                        .with([&self.name]);
                    self.log.append(
                        self.group,
                        write,
                        Box::new(move |result| {
                            duration.observe(clock.monotonic().saturating_sub(started));
                            let told = match (result, number) {
                                (Ok(()), Some(number)) => Done::Written(number),
                                (Ok(()), None) => return,
                                (Err(failure), _) => Done::LogFailed(failure.to_string()),
                            };
                            // Nobody listens any more when the channel has stopped.
                            let _ = done.send(told);
                        }),
                    );
                }
                Action::SaveSnapshot(snapshot) => {
                    let files = self.snapshots.clone();
                    let started = self.clock.monotonic();
                    let saved = quorate_runtime::tasks::blocking("snapshot file", move || {
                        files.save(&snapshot)
                    })
                    .await;
                    let spent = self.clock.monotonic().saturating_sub(started);
                    self.metrics
                        .etcd
                        .snap_save_total
                        .observe(spent.as_secs_f64());
                    // The log has what matters; the file is for operators.
                    if let Ok(Err(failure)) = saved {
                        warn!(target: LOG, channel = %self.name, node = self.core.raft_id(),
                            "A snapshot file could not be written: {failure}");
                    }
                }
                Action::Send {
                    to,
                    payload,
                    metadata,
                } => self.peers.send(to, payload, metadata),
                Action::Forward {
                    id,
                    to,
                    validated_at,
                    envelope,
                } => {
                    let forward = self.peers.forward(to, validated_at, envelope);
                    self.forwards
                        .push(Box::pin(async move { (id, forward.await) }));
                }
                Action::Reply(ticket, result) => {
                    if let Some(answer) = self.tickets.remove(&ticket) {
                        // Whoever has gone away does not need the answer.
                        let _ = answer.send(result);
                    }
                }
                Action::Leader(leader) => {
                    self.leader.send_replace(leader);
                }
                Action::View(view) => {
                    self.view.send_replace(view);
                }
                Action::Connect(members) => self.peers.connect(members),
                Action::CatchUp { first, last } => self.fetch(first, last),
                Action::SuspectEviction(_) => {
                    if self.suspecting.is_none() {
                        self.suspecting = Some(self.replication.belonging());
                    }
                }
                Action::Halt(reason) => halt = Some(reason),
            }
        }
        for duration in self.core.fill_durations() {
            self.metrics
                .blockcutter
                .block_fill_duration
                .with([&self.name])
                .observe(duration);
        }
        let gauges = self.core.gauges();
        self.metrics.show(&self.name, &self.gauges, &gauges);
        self.gauges = gauges;
        halt.map_or(Ok(()), |halt| Err(Stop::Halted(halt)))
    }

    /// Has a channel created that a block asks for, which is appended afterwards.
    async fn create(&mut self, created: CreatedChannel) -> Result<(), Halt> {
        let name = created.channel_id.clone();
        let outcome = match &self.creation {
            Some(creation) => creation.create(created).await,
            None => Err("nobody here creates channels".to_owned()),
        };
        outcome.map_err(|reason| {
            error!(target: LOG, channel = %self.name, node = self.core.raft_id(),
                "The channel stops: channel {name} cannot be created: {reason}");
            Halt::Failed(format!("channel {name} cannot be created: {reason}"))
        })
    }

    fn store_failed(&self, failure: &crate::store::StoreError) -> Halt {
        let reason = quorate_runtime::tasks::chain(failure);
        error!(target: LOG, channel = %self.name, node = self.core.raft_id(),
            "The channel stops: its blocks cannot be written: {reason}");
        Halt::Failed(reason)
    }
}
