//! The notary's desk: requests in, batches out.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use prometheus::{Histogram, IntCounter, IntGauge};
use quorate_flow::{Envelope, InboxId, Owner, SessionMessage};
use quorate_identity::{KeyPair, Party, X500Name};
use quorate_ledger::{
    NotarisationAnswer, NotarisationMessage, NotaryError, Timestamp, TransactionSignature, TxId,
    sign_batch,
};
use quorate_runtime::metrics::{BATCH_BUCKETS, DURATION_BUCKETS};
use quorate_runtime::{Clock, Metrics, Tasks, tasks::chain};
use quorate_storage::{NotaryEntry, NotaryResult, Queued, Respond};
use tokio::sync::{mpsc, oneshot};

use crate::check::{Checked, check};
use crate::uniqueness::{Batch, Uniqueness};

/// Most requests in a batch (`notary.jpa.maxBatchSize`).
pub const BATCH_SIZE: usize = 500;

/// Most states in a batch (`notary.jpa.maxBatchInputStates`); one request may exceed it.
pub const BATCH_INPUT_STATES: usize = 10_000;

/// Most requests that wait (`notary.jpa.maxQueueSize`); more are told to ask again.
pub const QUEUE_SIZE: usize = 100_000;

/// Pause before a batch is offered to the provider again that certainly was not committed.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// What an overloaded notary asks its clients to wait, at the least.
const LEAST_RETRY_AFTER: Duration = Duration::from_secs(1);

/// How the notary behaves.
#[derive(Debug, Clone)]
pub struct Options {
    /// Whether requests must carry the whole transaction, which a flow has verified.
    pub validating: bool,
    /// See [`BATCH_SIZE`].
    pub batch_size: usize,
    /// See [`BATCH_INPUT_STATES`].
    pub batch_input_states: usize,
    /// See [`QUEUE_SIZE`].
    pub queue_size: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            validating: false,
            batch_size: BATCH_SIZE,
            batch_input_states: BATCH_INPUT_STATES,
            queue_size: QUEUE_SIZE,
        }
    }
}

/// Who the notary is.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The identity that transactions name.
    pub party: Party,
    /// Its key.
    pub key: KeyPair,
    /// The instance that writes the answers.
    pub owner: Owner,
}

/// Finds a party by its legal name in the network map.
pub type Directory = Arc<dyn Fn(&X500Name) -> Option<Party> + Send + Sync>;

/// Takes answers that are queued durably, to send them.
pub type Sink = Arc<dyn Fn(Vec<Queued>) + Send + Sync>;

/// The notary's metrics.
#[derive(Clone)]
pub struct NotaryMetrics {
    commits: IntCounter,
    conflicts: IntCounter,
    refusals: IntCounter,
    states: IntCounter,
    queue: IntGauge,
    batch_size: Histogram,
    batch_duration: Histogram,
}

impl NotaryMetrics {
    /// Registers them.
    pub fn new(metrics: &Metrics) -> Self {
        Self {
            commits: metrics.counter(
                "quorate_notary_commits_total",
                "Transactions that the notary has signed.",
            ),
            conflicts: metrics.counter(
                "quorate_notary_conflicts_total",
                "Transactions refused because other transactions have consumed their states.",
            ),
            refusals: metrics.counter(
                "quorate_notary_refusals_total",
                "Requests refused for any other reason.",
            ),
            states: metrics.counter(
                "quorate_notary_input_states_total",
                "States in requests (the IPS of a notary is their rate).",
            ),
            queue: metrics.gauge(
                "quorate_notary_request_queue_size",
                "Requests that wait for a batch.",
            ),
            batch_size: metrics.histogram(
                "quorate_notary_processed_batch_size",
                "Requests per batch.",
                BATCH_BUCKETS,
            ),
            batch_duration: metrics.histogram(
                "quorate_notary_commit_seconds",
                "Time from a batch's start to its durable decision.",
                DURATION_BUCKETS,
            ),
        }
    }
}

enum Job {
    /// A message of a peer; the answer goes to its session.
    Message {
        inbox: InboxId,
        envelope: Box<Envelope>,
    },
    /// A request of this node's own flow, which has verified the transaction.
    Call {
        requester: Party,
        message: Box<NotarisationMessage>,
        reply: oneshot::Sender<NotarisationAnswer>,
    },
}

/// Speaks to the notary. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    jobs: mpsc::Sender<Job>,
}

impl Handle {
    /// Hands over a request that lies in the inbox. Waits while the queue is full.
    pub async fn submit(&self, inbox: InboxId, envelope: Envelope) {
        let envelope = Box::new(envelope);
        // After the service has stopped the request waits in the inbox.
        let _ = self.jobs.send(Job::Message { inbox, envelope }).await;
    }

    /// Commits a transaction that this node has verified. `None` if the notary is stopping or
    /// could not decide: ask again.
    pub async fn notarise(
        &self,
        requester: Party,
        message: NotarisationMessage,
    ) -> Option<NotarisationAnswer> {
        let (reply, answer) = oneshot::channel();
        let message = Box::new(message);
        let job = Job::Call {
            requester,
            message,
            reply,
        };
        self.jobs.send(job).await.ok()?;
        answer.await.ok()
    }
}

/// The notary, to be started.
pub struct Service {
    identity: Identity,
    options: Options,
    provider: Arc<dyn Uniqueness>,
    directory: Directory,
    clock: Clock,
    metrics: NotaryMetrics,
    jobs: mpsc::Receiver<Job>,
}

/// Where an answer goes.
enum Answering {
    Session(Box<Envelope>),
    Caller(oneshot::Sender<NotarisationAnswer>),
}

/// A request with the verdict so far.
struct Entrant {
    verdict: Result<Checked, NotaryError>,
    answering: Answering,
    inbox: Option<InboxId>,
}

impl Service {
    /// A notary over `provider`, and the handle to it.
    pub fn new(
        identity: Identity,
        options: Options,
        provider: Arc<dyn Uniqueness>,
        directory: Directory,
        clock: Clock,
        metrics: NotaryMetrics,
    ) -> (Self, Handle) {
        let (sender, jobs) = mpsc::channel(options.queue_size.max(1));
        let service = Self {
            identity,
            options,
            provider,
            directory,
            clock,
            metrics,
            jobs,
        };
        (service, Handle { jobs: sender })
    }

    /// Works until shutdown is requested or the provider fails for good; the latter ends the
    /// process, because an instance that cannot decide must not hold the lease.
    pub fn start(self, tasks: &Tasks, sink: Sink) {
        let shutdown = tasks.shutdown().clone();
        tasks.spawn_essential("notary", async move { self.run(shutdown, sink).await });
    }

    async fn run(mut self, shutdown: quorate_runtime::Shutdown, sink: Sink) {
        loop {
            let first = tokio::select! {
                biased;
                () = shutdown.requested() => return,
                job = self.jobs.recv() => job,
            };
            let Some(first) = first else {
                return;
            };
            let mut entrants = VecDeque::from([self.enter(first)]);
            let mut states = entrants[0].states();
            while entrants.len() < self.options.batch_size
                && states < self.options.batch_input_states
            {
                match self.jobs.try_recv() {
                    Ok(job) => {
                        let entrant = self.enter(job);
                        states += entrant.states();
                        entrants.push_back(entrant);
                    }
                    Err(_) => break,
                }
            }
            self.metrics.queue.set(self.jobs.len() as i64);
            self.metrics.batch_size.observe(entrants.len() as f64);
            self.metrics.states.inc_by(states as u64);
            let timer = self.metrics.batch_duration.start_timer();
            if !self.decide(entrants.into(), &shutdown, &sink).await {
                return;
            }
            timer.observe_duration();
        }
    }

    /// Reads and checks a request.
    fn enter(&self, job: Job) -> Entrant {
        match job {
            Job::Call {
                requester,
                message,
                reply,
            } => Entrant {
                verdict: self.check(&requester, &message),
                answering: Answering::Caller(reply),
                inbox: None,
            },
            Job::Message { inbox, envelope } => Entrant {
                verdict: self.read(&envelope),
                answering: Answering::Session(envelope),
                inbox: Some(inbox),
            },
        }
    }

    fn read(&self, envelope: &Envelope) -> Result<Checked, NotaryError> {
        let SessionMessage::Initiate {
            first: Some(bytes), ..
        } = &envelope.body
        else {
            return Err(NotaryError::General("the request is empty".to_owned()));
        };
        let requester = (self.directory)(&envelope.sender).ok_or_else(|| {
            NotaryError::General(format!(
                "{} is not in the notary's network map; send its node info to the notary",
                envelope.sender
            ))
        })?;
        let message = NotarisationMessage::decode(bytes)
            .map_err(|error| NotaryError::TransactionInvalid(error.to_string()))?;
        self.check(&requester, &message)
    }

    fn check(
        &self,
        requester: &Party,
        message: &NotarisationMessage,
    ) -> Result<Checked, NotaryError> {
        let me = &self.identity.party;
        check(me, self.options.validating, requester, message, self.now())
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.clock.now_micros())
    }

    /// Has a batch decided and answered. `false`: the service must end.
    async fn decide(
        &self,
        entrants: Vec<Entrant>,
        shutdown: &quorate_runtime::Shutdown,
        sink: &Sink,
    ) -> bool {
        let mut entries: Vec<NotaryEntry> = Vec::new();
        let mut consumed = Vec::new();
        let mut sessions = Vec::with_capacity(entrants.len());
        let mut callers = Vec::new();
        for entrant in entrants {
            consumed.extend(entrant.inbox);
            let pending = match entrant.verdict {
                Ok(checked) => {
                    let window = checked.window;
                    entries.push(checked.entry);
                    Pending::Entry(entries.len() - 1, window)
                }
                Err(error) => Pending::Refused(error),
            };
            match entrant.answering {
                Answering::Session(envelope) => sessions.push((*envelope, pending)),
                Answering::Caller(reply) => callers.push((reply, pending)),
            }
        }
        let answers = Answers {
            identity: self.identity.clone(),
            txs: entries.iter().map(|entry| entry.tx).collect(),
            now: self.now(),
        };
        let answers = Arc::new(answers);
        let respond: Respond = {
            let answers = Arc::clone(&answers);
            Arc::new(move |results| answers.envelopes(results, &sessions))
        };
        let (results, queued) = loop {
            let batch = Batch {
                entries: entries.clone(),
                consumed: consumed.clone(),
                respond: Arc::clone(&respond),
            };
            match self.provider.commit(batch).await {
                Ok(decided) => break decided,
                Err(error) if error.transient && !shutdown.is_requested() => {
                    tracing::warn!(error = %chain(&error), "the notary tries its batch again");
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                Err(error) => {
                    // The requests stay in the inbox for whoever starts next.
                    tracing::error!(error = %chain(&error), "the notary stops");
                    return false;
                }
            }
        };
        sink(queued);
        for result in &results {
            match result {
                NotaryResult::Committed => self.metrics.commits.inc(),
                NotaryResult::Conflict(_) => self.metrics.conflicts.inc(),
                NotaryResult::OutsideTimeWindow => self.metrics.refusals.inc(),
            }
        }
        if !callers.is_empty() {
            let signed = answers.signatures(&results);
            for (reply, pending) in callers {
                let _ = reply.send(answers.answer(&pending, &results, &signed));
            }
        }
        true
    }
}

impl Entrant {
    fn states(&self) -> usize {
        self.verdict.as_ref().map_or(0, Checked::states)
    }
}

enum Pending {
    Entry(usize, Option<quorate_ledger::TimeWindow>),
    Refused(NotaryError),
}

/// Turns decisions into signed answers.
struct Answers {
    identity: Identity,
    txs: Vec<TxId>,
    now: Timestamp,
}

impl Answers {
    /// One signature over the Merkle root of everything that was committed.
    fn signatures(&self, results: &[NotaryResult]) -> BTreeMap<TxId, TransactionSignature> {
        let mut committed: Vec<TxId> = self
            .txs
            .iter()
            .zip(results)
            .filter(|(_, result)| matches!(result, NotaryResult::Committed))
            .map(|(tx, _)| *tx)
            .collect();
        committed.sort_unstable();
        committed.dedup();
        let signatures = sign_batch(&self.identity.key, &committed);
        committed.into_iter().zip(signatures).collect()
    }

    fn answer(
        &self,
        pending: &Pending,
        results: &[NotaryResult],
        signed: &BTreeMap<TxId, TransactionSignature>,
    ) -> NotarisationAnswer {
        let refused = NotarisationAnswer::Refused;
        let (index, window) = match pending {
            Pending::Refused(error) => return refused(error.clone()),
            Pending::Entry(index, window) => (*index, *window),
        };
        let (Some(tx), Some(result)) = (self.txs.get(index), results.get(index)) else {
            return refused(NotaryError::General(
                "the request was not decided".to_owned(),
            ));
        };
        match (result, window) {
            (NotaryResult::Committed, _) => match signed.get(tx) {
                Some(signature) => NotarisationAnswer::Signed(vec![signature.clone()]),
                None => refused(NotaryError::Overloaded {
                    retry_after_millis: LEAST_RETRY_AFTER.as_millis() as u64,
                }),
            },
            (NotaryResult::Conflict(consumed), _) => refused(NotaryError::Conflict {
                tx: *tx,
                consumed: consumed.clone(),
            }),
            (NotaryResult::OutsideTimeWindow, Some(window)) => {
                refused(NotaryError::TimeWindowInvalid {
                    window,
                    now: self.now,
                })
            }
            (NotaryResult::OutsideTimeWindow, None) => refused(NotaryError::General(
                "the request has no time window, and was judged by one".to_owned(),
            )),
        }
    }

    fn envelopes(
        &self,
        results: &[NotaryResult],
        sessions: &[(Envelope, Pending)],
    ) -> Vec<Envelope> {
        let signed = self.signatures(results);
        sessions
            .iter()
            .map(|(request, pending)| {
                let payload = self.answer(pending, results, &signed).encode();
                Envelope::new(
                    self.identity.party.name.clone(),
                    request.sender.clone(),
                    (request.session, false),
                    0,
                    self.identity.owner.clone(),
                    SessionMessage::Data {
                        payload,
                        last: true,
                    },
                )
            })
            .collect()
    }
}
