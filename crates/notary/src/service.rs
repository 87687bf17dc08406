//! The notary's desk: requests in, batches out.

use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_flow::{InboxId, Owner};
use quorate_identity::{Party, SigningKey, X500Name};
use quorate_ledger::{NotarisationAnswer, NotarisationMessage, NotaryError, Timestamp};
use quorate_runtime::tasks::{self, chain};
use quorate_runtime::{Clock, Shutdown, Tasks};
use quorate_storage::{NotaryEntry, NotaryResult, Queued, Respond};
use tokio::sync::oneshot;

use crate::answers::{Answers, Pending};
use crate::check::{Checked, check, needs_everything};
use crate::metrics::NotaryMetrics;
use crate::queue::{Bounds, Declined, Handle, Job, Queue, ReturnAddress, queue};
use crate::uniqueness::{Batch, Uniqueness, UniquenessError};

/// Most requests in a batch (`notary.jpa.maxBatchSize`).
pub const BATCH_SIZE: usize = 500;

/// Most states in a batch (`notary.jpa.maxBatchInputStates`); a request that has more by itself
/// makes a batch alone.
pub const BATCH_INPUT_STATES: usize = 10_000;

/// Most requests that wait (`notary.jpa.maxQueueSize`); more are told when to ask again.
pub const QUEUE_SIZE: usize = 100_000;

/// Longest expected wait at which requests are still queued (`etaMessageThresholdSeconds`).
pub const ETA_THRESHOLD: Duration = Duration::from_secs(30);

/// Declined requests that are answered in one commit.
const DECLINED_PER_BATCH: usize = 1_000;

/// Pause before a batch is offered to the provider again that certainly was not committed.
const RETRY_PAUSE: Duration = Duration::from_millis(250);

/// How often such a batch is offered again (`notary.jpa.maxDBTransactionRetryCount`, and some
/// more). After that this instance gives up, so that another one may try.
const RETRIES: u32 = 40;

/// What is signed to see whether a device answers: begins like nothing that is signed on the ledger.
const KEY_TRIAL: &[u8] = b"Quorate notary: is this key at hand?";

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
    /// See [`ETA_THRESHOLD`]. Requests that fit into the next batch are queued regardless.
    pub eta_threshold: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            validating: false,
            batch_size: BATCH_SIZE,
            batch_input_states: BATCH_INPUT_STATES,
            queue_size: QUEUE_SIZE,
            eta_threshold: ETA_THRESHOLD,
        }
    }
}

/// Who the notary is.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The identity that transactions name.
    pub party: Party,
    /// Its key.
    pub key: SigningKey,
    /// The instance that writes the answers.
    pub owner: Owner,
}

/// Finds a party by its legal name in the network map.
pub type Directory = Arc<dyn Fn(&X500Name) -> Option<Party> + Send + Sync>;

/// Takes answers that are queued durably, to send them.
pub type Sink = Arc<dyn Fn(Vec<Queued>) + Send + Sync>;

/// The notary, to be started.
pub struct Service {
    identity: Identity,
    options: Options,
    provider: Arc<dyn Uniqueness>,
    directory: Directory,
    clock: Clock,
    metrics: NotaryMetrics,
    queue: Queue,
    /// Taken from the queue, and too large for the batch that was being gathered.
    held: Option<Entrant>,
}

/// A request with the verdict so far.
struct Entrant {
    asked: Asked,
    reply: Option<oneshot::Sender<NotarisationAnswer>>,
}

/// What can be asked again if the batch fails.
#[derive(Clone)]
struct Asked {
    verdict: Result<Checked, NotaryError>,
    /// The message that brought the request, and where its answer goes.
    message: Option<(InboxId, ReturnAddress)>,
}

/// The service cannot go on.
struct Stop;

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
        let bounds = Bounds {
            requests: options.queue_size,
            batch: options.batch_size,
            eta: options.eta_threshold,
        };
        let (handle, queue) = queue(bounds, &metrics);
        let service = Self {
            identity,
            options,
            provider,
            directory,
            clock,
            metrics,
            queue,
            held: None,
        };
        (service, handle)
    }

    /// Works until shutdown is requested or the provider fails for good; the latter ends the
    /// process, because an instance that cannot decide must not hold the lease.
    pub fn start(self, tasks: &Tasks, sink: Sink) {
        let shutdown = tasks.shutdown().clone();
        tasks.spawn_essential("notary", async move { self.run(shutdown, sink).await });
    }

    async fn run(mut self, shutdown: Shutdown, sink: Sink) {
        loop {
            let (mut entrants, mut declined) = (Vec::new(), Vec::new());
            if self.held.is_none() {
                tokio::select! {
                    biased;
                    () = shutdown.requested() => return,
                    job = self.queue.jobs.recv() => match job {
                        Some(job) => self.held = Some(self.enter(job)),
                        None => return,
                    },
                    Some(one) = self.queue.declined.recv() => declined.push(one),
                }
            }
            let began = Instant::now();
            let full = self.gather(&mut entrants);
            while declined.len() < DECLINED_PER_BATCH
                && let Ok(one) = self.queue.declined.try_recv()
            {
                declined.push(one);
            }
            self.queue.show();
            let requests = entrants.len();
            if requests > 0 {
                self.metrics.batch_size.observe(requests as f64);
            }
            entrants.extend(declined.into_iter().map(Entrant::from));
            if self.decide(entrants, &shutdown, &sink).await.is_err() {
                return;
            }
            if requests > 0 {
                let took = began.elapsed();
                self.metrics.batch_duration.observe(took.as_secs_f64());
                self.queue.observe(requests, full, took);
            }
        }
    }

    /// Takes from the queue what makes a batch; whether there was no room for more.
    fn gather(&mut self, entrants: &mut Vec<Entrant>) -> bool {
        let mut states = 0;
        let full = loop {
            if entrants.len() >= self.options.batch_size {
                break true;
            }
            let next = match self.held.take() {
                Some(held) => held,
                None => match self.queue.jobs.try_recv() {
                    Ok(job) => self.enter(job),
                    Err(_) => break false,
                },
            };
            if !entrants.is_empty() && states + next.states() > self.options.batch_input_states {
                self.held = Some(next);
                break true;
            }
            states += next.states();
            entrants.push(next);
        };
        self.metrics.states.inc_by(states as u64);
        full
    }

    /// Reads and checks a request.
    fn enter(&self, job: Job) -> Entrant {
        match job {
            Job::Call {
                requester,
                message,
                reply,
            } => Entrant {
                asked: Asked {
                    verdict: self.check(&requester, &message),
                    message: None,
                },
                reply: Some(reply),
            },
            Job::Message {
                inbox,
                to,
                request,
                // The bytes are gone when this returns.
                place: _place,
            } => Entrant {
                asked: Asked {
                    verdict: self.read(&to.peer, request.as_deref()),
                    message: Some((inbox, to)),
                },
                reply: None,
            },
        }
    }

    /// A request that has come without a flow: nobody has verified its transaction.
    fn read(&self, sender: &X500Name, request: Option<&[u8]>) -> Result<Checked, NotaryError> {
        let Some(bytes) = request else {
            return Err(NotaryError::General("the request is empty".to_owned()));
        };
        if self.options.validating {
            return Err(needs_everything());
        }
        let requester = (self.directory)(sender).ok_or_else(|| {
            NotaryError::General(format!(
                "{sender} is not in the notary's network map; send its node info to the notary"
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
        check(me, self.options.validating, requester, message)
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.clock.now_micros())
    }

    /// Has requests decided and answered: together, or one by one if the store refuses them
    /// together, so that one that it cannot take harms only itself.
    async fn decide(
        &self,
        entrants: Vec<Entrant>,
        shutdown: &Shutdown,
        sink: &Sink,
    ) -> Result<(), Stop> {
        let (asked, mut replies): (Vec<_>, Vec<_>) = entrants
            .into_iter()
            .map(|entrant| (entrant.asked, entrant.reply))
            .unzip();
        let Err(refused) = self
            .decide_all(&asked, &mut replies, shutdown, sink)
            .await?
        else {
            return Ok(());
        };
        tracing::error!(
            error = %chain(&refused),
            requests = asked.len(),
            "the store refused a batch of the notary; its requests are decided one by one"
        );
        for (mut one, mut reply) in asked.into_iter().zip(replies) {
            let (one, reply) = (
                std::slice::from_mut(&mut one),
                std::slice::from_mut(&mut reply),
            );
            let Err(refused) = self.decide_all(one, reply, shutdown, sink).await? else {
                continue;
            };
            let reason = chain(&refused);
            one[0].verdict = Err(NotaryError::General(format!(
                "the notary's database refused the request: {reason}"
            )));
            if self.decide_all(one, reply, shutdown, sink).await?.is_err() {
                let message = one[0].message.as_ref().map(|(inbox, _)| inbox);
                tracing::error!(
                    reason,
                    ?message,
                    "a request to the notary can be neither decided nor refused; it stays in the inbox"
                );
            }
        }
        Ok(())
    }

    /// Has requests decided and answered in one commit. The inner error: the store refused them.
    async fn decide_all(
        &self,
        asked: &[Asked],
        replies: &mut [Option<oneshot::Sender<NotarisationAnswer>>],
        shutdown: &Shutdown,
        sink: &Sink,
    ) -> Result<Result<(), UniquenessError>, Stop> {
        let now = self.now();
        let mut entries: Vec<NotaryEntry> = Vec::new();
        let mut about = Vec::new();
        let mut consumed = Vec::new();
        let mut sessions = Vec::new();
        let mut callers = Vec::new();
        for (index, Asked { verdict, message }) in asked.iter().enumerate() {
            let pending = match verdict {
                Ok(checked) => {
                    let entry = checked.entry_at(now);
                    about.push((entry.tx, checked.window));
                    entries.push(entry);
                    Pending::Entry(entries.len() - 1)
                }
                Err(error) => Pending::Refused(error.clone()),
            };
            match message {
                Some((inbox, to)) => {
                    consumed.push(inbox.clone());
                    sessions.push((to.clone(), pending));
                }
                None => callers.push((index, pending)),
            }
        }
        let answers = Arc::new(Answers {
            identity: self.identity.clone(),
            entries: about,
            sessions,
            now,
            metrics: self.metrics.clone(),
        });
        let respond: Respond = {
            let answers = Arc::clone(&answers);
            Arc::new(move |results| {
                answers
                    .envelopes(results)
                    .map_err(|error| error.to_string())
            })
        };
        let batch = || Batch {
            entries: entries.clone(),
            consumed: consumed.clone(),
            respond: Arc::clone(&respond),
        };
        let (results, queued) = match self.commit(batch, shutdown).await? {
            Ok(decided) => decided,
            Err(refused) => return Ok(Err(refused)),
        };
        self.count(asked, &results);
        sink(queued);
        if !callers.is_empty() {
            // Decided and durable. Whoever is not told now asks again, and gets the same answer.
            let signed = match answers.signatures(&results) {
                Ok(signed) => signed,
                Err(error) => {
                    tracing::warn!(%error, "flows of this node will ask the notary again");
                    return Ok(Ok(()));
                }
            };
            for (index, pending) in callers {
                if let Some(reply) = replies[index].take() {
                    // The flow may have been killed meanwhile.
                    let _ = reply.send(answers.answer(&pending, &results, &signed));
                }
            }
        }
        Ok(Ok(()))
    }

    /// Has a key that is in a device sign something before a batch is offered. Answers are signed within the commit,
    /// where a device that does not answer would hold up everybody who writes, and in the end cost the lease.
    async fn key_is_at_hand(&self) -> Result<(), (bool, String)> {
        if !self.identity.key.is_remote() {
            return Ok(());
        }
        let key = self.identity.key.clone();
        match tasks::blocking("trying the notary's key", move || key.sign(KEY_TRIAL)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err((error.is_transient(), error.to_string())),
            Err(failure) => Err((false, failure.to_string())),
        }
    }

    /// Offers a batch to the provider until it is certain what became of it.
    async fn commit(
        &self,
        batch: impl Fn() -> Batch,
        shutdown: &Shutdown,
    ) -> Result<Result<(Vec<NotaryResult>, Vec<Queued>), UniquenessError>, Stop> {
        let mut attempt = 0;
        loop {
            let (transient, error) = match self.key_is_at_hand().await {
                Err(problem) => problem,
                Ok(()) => match self.provider.commit(batch()).await {
                    Ok(decided) => return Ok(Ok(decided)),
                    Err(error) if error.is_refusal() => return Ok(Err(error)),
                    Err(error) => (error.transient, chain(&error)),
                },
            };
            if !transient || attempt == RETRIES || shutdown.is_requested() {
                // The requests stay in the inbox for whoever starts next.
                tracing::error!(error, "the notary stops");
                return Err(Stop);
            }
            attempt += 1;
            self.metrics.retries.inc();
            tracing::warn!(attempt, error, "the notary tries its batch again");
            tokio::select! {
                () = shutdown.requested() => {}
                () = tokio::time::sleep(RETRY_PAUSE) => {}
            }
        }
    }

    fn count(&self, asked: &[Asked], results: &[NotaryResult]) {
        for result in results {
            match result {
                NotaryResult::Committed => self.metrics.commits.inc(),
                NotaryResult::Conflict(_) => self.metrics.conflicts.inc(),
                NotaryResult::OutsideTimeWindow => self.metrics.refusals.inc(),
            }
        }
        // Those for whom there is no room are counted where they are declined.
        let refused = asked.iter().filter(|asked| {
            matches!(&asked.verdict, Err(error) if !matches!(error, NotaryError::Overloaded { .. }))
        });
        self.metrics.refusals.inc_by(refused.count() as u64);
    }
}

impl Entrant {
    fn states(&self) -> usize {
        self.asked.verdict.as_ref().map_or(0, Checked::states)
    }
}

impl From<Declined> for Entrant {
    fn from(declined: Declined) -> Self {
        let Declined { inbox, to, answer } = declined;
        Self {
            asked: Asked {
                verdict: Err(answer),
                message: Some((inbox, to)),
            },
            reply: None,
        }
    }
}
