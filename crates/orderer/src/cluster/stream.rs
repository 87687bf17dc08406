//! One Step stream to another orderer: a bounded queue in front, order kept.
//!
//! As in Fabric, each pair of channel and destination has two: consensus messages must not wait behind transactions. A
//! [`Lane`] is the place of one; the stream itself is opened when something is to be sent, and forgotten when it ends.
//! When a consensus message does not fit into the queue, the stream is given up together with all that waits in it: Raft
//! will ask what the other side still needs, and old messages would only be in the way of new ones.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use quorate_runtime::metrics::IntGauge;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, interval_at, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::MetadataValue;

use super::connection::{Connection, LOG, Unconnected};
use super::expiry::ExpiryWatch;
use super::{Wiring, wire};
use crate::checks::Refusal;
use crate::listener::go_duration;
use crate::metrics::{self, Timing};
use crate::raw::RawCodec;

const STEP: &str = "/orderer.Cluster/Step";
/// The longest answer of another orderer on a Step stream, in bytes: a status, and a line of text.
const ANSWER_BYTES: usize = 64 * 1024;
/// The pause after a stream that was refused at once; it doubles up to [`REOPEN_MAX`].
const REOPEN_MIN: Duration = Duration::from_millis(50);
/// The longest pause before a refused stream is opened again.
const REOPEN_MAX: Duration = Duration::from_secs(1);
/// A stream that lived as long was not refused.
const ACCEPTED_AFTER: Duration = Duration::from_secs(1);

/// What a lane carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Consensus,
    Transaction,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Consensus => "consensus",
            Self::Transaction => "transaction",
        }
    }
}

/// Why something could not be sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum SendError {
    #[error("send queue overflown")]
    Overflow,
    #[error("{0}")]
    Ended(Arc<str>),
    #[error("rpc timeout expired")]
    Timeout,
    /// The other side has looked at it, and will not have it.
    #[error(transparent)]
    Refused(Refusal),
    /// The other side is not known to answer, which was asked for.
    #[error("the other side does not answer")]
    Unanswered,
}

/// Where messages of one kind for one destination of one channel go.
pub(super) struct Lane {
    wiring: Arc<Wiring>,
    label: Arc<Label>,
    connection: Arc<Connection>,
    slot: Arc<Mutex<Slot>>,
}

struct Label {
    channel: String,
    id: u64,
    endpoint: String,
    kind: Kind,
}

#[derive(Default)]
struct Slot {
    current: Option<Open>,
    failures: u32,
    /// A refused stream is not opened again before.
    not_before: Option<Instant>,
    reason: Option<Arc<str>>,
}

/// A stream that takes messages. When the last owner drops it, the stream ends.
#[derive(Clone)]
struct Open {
    queue: mpsc::Sender<Item>,
    metrics: OfStream,
    answers: Arc<Answers>,
    _ends: Arc<DropGuard>,
}

/// What was sent on a stream and is not answered yet, in its order.
#[derive(Default)]
struct Answers(Mutex<Unanswered>);

#[derive(Default)]
struct Unanswered {
    /// The other side has promised answers.
    promised: bool,
    /// Sent before that was known: nobody waits for those answers.
    unheeded: u64,
    // As long as there are transactions under way, which the channel bounds.
    waiting: VecDeque<oneshot::Sender<Result<(), Refusal>>>,
}

impl Answers {
    fn are_promised(&self) -> bool {
        lock(&self.0).promised
    }

    fn promise(&self) {
        lock(&self.0).promised = true;
    }

    /// A message was sent for which somebody waits. If there will be no answer, that it was sent is what they hear.
    fn sent(&self, waits: oneshot::Sender<Result<(), Refusal>>) {
        let mut unanswered = lock(&self.0);
        if unanswered.promised {
            unanswered.waiting.push_back(waits);
        } else {
            unanswered.unheeded += 1;
            drop(unanswered);
            // Whoever waited may have lost patience.
            let _ = waits.send(Ok(()));
        }
    }

    /// An answer has come. `false`: nobody has asked.
    fn came(&self, answer: Result<(), Refusal>) -> bool {
        let mut unanswered = lock(&self.0);
        if unanswered.unheeded > 0 {
            unanswered.unheeded -= 1;
            return true;
        }
        let Some(waits) = unanswered.waiting.pop_front() else {
            return false;
        };
        drop(unanswered);
        let _ = waits.send(answer);
        true
    }

    /// The stream has ended: nobody waits any longer.
    fn end(&self) {
        let waiting = std::mem::take(&mut lock(&self.0).waiting);
        drop(waiting);
    }
}

/// What changes with every message of a stream, looked up once.
#[derive(Clone)]
struct OfStream {
    queue_length: IntGauge,
    send_time: Timing,
}

impl OfStream {
    fn new(metrics: &metrics::Cluster, label: &Label, capacity: usize) -> Self {
        let queue = [&*label.endpoint, label.kind.name(), &*label.channel];
        metrics
            .egress_queue_capacity
            .with(queue)
            .set(i64::try_from(capacity).unwrap_or(i64::MAX));
        Self {
            queue_length: metrics.egress_queue_length.with(queue),
            send_time: metrics
                .msg_send_time
                .with([&*label.endpoint, &*label.channel]),
        }
    }

    fn waiting(&self, length: usize) {
        self.queue_length
            .set(i64::try_from(length).unwrap_or(i64::MAX));
    }
}

struct Item {
    request: Bytes,
    queued: Instant,
    /// Who waits for the answer.
    waits: Option<oneshot::Sender<Result<(), Refusal>>>,
}

impl Lane {
    pub(super) fn new(
        wiring: Arc<Wiring>,
        channel: &str,
        id: u64,
        kind: Kind,
        connection: Arc<Connection>,
    ) -> Self {
        let label = Label {
            channel: channel.to_owned(),
            id,
            endpoint: connection.destination.to_string(),
            kind,
        };
        Self {
            wiring,
            label: Arc::new(label),
            connection,
            slot: Arc::default(),
        }
    }

    /// Queues a message or drops it.
    ///
    /// # Errors
    /// Something was lost: this message, or earlier ones of a stream that ended since the last call.
    pub(super) fn offer(&self, request: Bytes) -> Result<(), SendError> {
        let mut slot = lock(&self.slot);
        let (open, lost) = self.open(&mut slot)?;
        let item = Item {
            request,
            queued: Instant::now(),
            waits: None,
        };
        match open.queue.try_send(item) {
            Ok(()) => {
                open.metrics.waiting(depth(&open.queue));
                lost.map_or(Ok(()), |reason| Err(SendError::Ended(reason)))
            }
            Err(mpsc::error::TrySendError::Full(_)) => {
                slot.current = None;
                let dropped = &self.wiring.metrics.msg_dropped_count;
                dropped
                    .with([&self.label.endpoint, &self.label.channel])
                    .inc();
                tracing::debug!(target: LOG, channel = %self.label.channel, "Stream to {} is given up: send queue overflown", self.label.endpoint);
                Err(SendError::Overflow)
            }
            Err(mpsc::error::TrySendError::Closed(_)) => {
                let reason = slot.reason.clone().unwrap_or_else(|| "aborted".into());
                Err(SendError::Ended(reason))
            }
        }
    }

    /// Whether the other side answers, as far as is known.
    pub(super) fn answers(&self) -> bool {
        let slot = lock(&self.slot);
        let open = slot.current.as_ref();
        open.is_some_and(|open| !open.queue.is_closed() && open.answers.are_promised())
    }

    /// Queues a message, waiting for room, and waits for the answer, or, if there will be none, until the connection has
    /// taken it. Dropping the future may or may not leave the message queued.
    ///
    /// # Errors
    /// If that did not happen before `deadline`, or the stream ended first, or the other side refuses the message. If it
    /// is not `checked` and there will be no answer, it is not sent.
    pub(super) async fn deliver(
        &self,
        request: Bytes,
        checked: bool,
        deadline: Instant,
    ) -> Result<(), SendError> {
        let open = self.open(&mut lock(&self.slot))?.0;
        if !checked && !open.answers.are_promised() {
            return Err(SendError::Unanswered);
        }
        let (waits, answer) = oneshot::channel();
        let item = Item {
            request,
            queued: Instant::now(),
            waits: Some(waits),
        };
        let sending = async {
            let ended = || {
                let reason = lock(&self.slot).reason.clone();
                SendError::Ended(reason.unwrap_or_else(|| "aborted".into()))
            };
            open.queue.send(item).await.map_err(|_| ended())?;
            open.metrics.waiting(depth(&open.queue));
            let answer = answer.await.map_err(|_| ended())?;
            answer.map_err(SendError::Refused)
        };
        timeout_at(deadline, sending)
            .await
            .unwrap_or(Err(SendError::Timeout))
    }

    /// The open stream, or a new one; also why the former one ended, if it did.
    fn open(&self, slot: &mut Slot) -> Result<(Open, Option<Arc<str>>), SendError> {
        let mut lost = None;
        if let Some(open) = &slot.current {
            if !open.queue.is_closed() {
                return Ok((open.clone(), None));
            }
            lost = Some(slot.reason.clone().unwrap_or_else(|| "aborted".into()));
            slot.current = None;
        }
        if let Some(Unconnected(reason)) = self.connection.down() {
            return Err(SendError::Ended(reason));
        }
        if slot.not_before.is_some_and(|at| at > Instant::now()) {
            let reason = slot.reason.clone().unwrap_or_else(|| "refused".into());
            return Err(SendError::Ended(reason));
        }
        let open = self.start();
        slot.current = Some(open.clone());
        Ok((open, lost))
    }

    fn start(&self) -> Open {
        let (queue, waiting) = mpsc::channel(self.wiring.options.send_buffer_size.max(1));
        let metrics = OfStream::new(&self.wiring.metrics, &self.label, queue.max_capacity());
        let aborted = CancellationToken::new();
        let answers = Arc::new(Answers::default());
        let worker = Worker {
            wiring: self.wiring.clone(),
            label: self.label.clone(),
            connection: self.connection.clone(),
            slot: self.slot.clone(),
            queue: queue.clone(),
            metrics: metrics.clone(),
            answers: answers.clone(),
            aborted: aborted.clone(),
        };
        let name = format!(
            "{} stream to {} for {}",
            self.label.kind.name(),
            self.label.endpoint,
            self.label.channel
        );
        self.wiring.dialler.tasks.spawn(name, worker.run(waiting));
        Open {
            queue,
            metrics,
            answers,
            _ends: Arc::new(aborted.drop_guard()),
        }
    }
}

/// How many messages wait.
fn depth(queue: &mpsc::Sender<Item>) -> usize {
    queue.max_capacity() - queue.capacity()
}

impl Drop for Lane {
    fn drop(&mut self) {
        // The worker keeps the slot for its last words, so the stream does not end by itself.
        lock(&self.slot).current = None;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How a stream ended.
struct Ended {
    reason: Arc<str>,
    /// Whether the connection is still there, so that it concerns this stream alone.
    connected: bool,
}

/// Carries one stream from its opening to its end.
struct Worker {
    wiring: Arc<Wiring>,
    label: Arc<Label>,
    connection: Arc<Connection>,
    slot: Arc<Mutex<Slot>>,
    queue: mpsc::Sender<Item>,
    metrics: OfStream,
    answers: Arc<Answers>,
    aborted: CancellationToken,
}

impl Worker {
    async fn run(self, waiting: mpsc::Receiver<Item>) {
        let metrics = &self.wiring.metrics;
        let open = [
            metrics.egress_queue_workers.with([&self.label.channel]),
            metrics.egress_stream_count.with([&self.label.channel]),
        ];
        open.iter().for_each(IntGauge::inc);
        let started = Instant::now();
        let shutdown = self.wiring.dialler.tasks.shutdown().clone();
        let ended = tokio::select! {
            biased;
            () = shutdown.requested() => None,
            () = self.aborted.cancelled() => None,
            ended = self.carry(waiting) => Some(ended),
        };
        // Whatever still holds the queue's other end lets go of it.
        self.aborted.cancel();
        self.answers.end();
        open.iter().for_each(IntGauge::dec);
        let Some(Ended { reason, connected }) = ended else {
            return;
        };
        let mut slot = lock(&self.slot);
        // A lost connection concerns all channels: it is told once, and has a pause of its own.
        let known = !connected || slot.reason.as_ref() == Some(&reason);
        if connected && started.elapsed() < ACCEPTED_AFTER {
            let pause = REOPEN_MAX.min(REOPEN_MIN * 2u32.saturating_pow(slot.failures.min(16)));
            slot.failures = slot.failures.saturating_add(1);
            slot.not_before = Some(Instant::now() + self.wiring.dialler.entropy.jitter(pause));
        } else {
            slot.failures = 0;
            slot.not_before = None;
        }
        slot.reason = Some(reason.clone());
        drop(slot);
        let Label {
            channel,
            id,
            endpoint,
            kind,
        } = &*self.label;
        let kind = kind.name();
        if known {
            tracing::debug!(target: LOG, %channel, "The {kind} stream to {id}({endpoint}) ended: {reason}");
        } else {
            tracing::warn!(target: LOG, %channel, "The {kind} stream to {id}({endpoint}) ended: {reason}");
        }
    }

    async fn carry(&self, waiting: mpsc::Receiver<Item>) -> Ended {
        let link = match self.connection.link().await {
            Ok(link) => link,
            Err(Unconnected(reason)) => {
                return Ended {
                    reason,
                    connected: false,
                };
            }
        };
        let taken = Arc::new(AtomicU64::new(0));
        let outgoing = Outgoing {
            wiring: self.wiring.clone(),
            label: self.label.clone(),
            queue: self.queue.clone(),
            waiting,
            metrics: self.metrics.clone(),
            answers: self.answers.clone(),
            taken: taken.clone(),
            expiry: link.server.as_deref().map(|facts| {
                let threshold = self.wiring.options.certificate_warning;
                ExpiryWatch::new(facts, self.label.endpoint.clone(), threshold)
            }),
            aborted: Box::pin(self.aborted.clone().cancelled_owned()),
        };
        let mut client = link.grpc(self.wiring.options.max_message_size);
        let answers = async {
            if let Err(error) = client.ready().await {
                return format!("cannot open a stream: {error}").into();
            }
            let path = PathAndQuery::from_static(STEP);
            let mut request = tonic::Request::new(outgoing);
            if self.label.kind == Kind::Transaction {
                let value = MetadataValue::from_static(super::TRANSACTIONS);
                request.metadata_mut().insert(super::ANSWERS, value);
            }
            // Fabric's answer begins at the stream's end.
            match client
                .max_decoding_message_size(ANSWER_BYTES)
                .streaming(request, path, RawCodec)
                .await
            {
                Err(status) => ending(&status),
                Ok(answers) => {
                    let promise = answers.metadata().get(super::ANSWERS);
                    if promise.is_some_and(|promise| promise == super::TRANSACTIONS) {
                        self.answers.promise();
                    }
                    let mut answers = answers.into_inner();
                    loop {
                        match answers.message().await {
                            Ok(Some(answer)) => {
                                let heeded = match wire::read_answer(answer) {
                                    Some(answer) => self.answers.came(answer),
                                    None => false,
                                };
                                if !heeded {
                                    return "the other side has answered what nobody has asked"
                                        .into();
                                }
                            }
                            Ok(None) => return "closed by the other side".into(),
                            Err(status) => return ending(&status),
                        }
                    }
                }
            }
        };
        let reason: Arc<str> = tokio::select! {
            reason = answers => reason,
            () = self.stalled(&taken) => {
                let patience = go_duration(self.wiring.options.rpc_timeout);
                tracing::warn!(target: LOG, channel = %self.label.channel, "Stream to {}({}) was forcibly terminated because timeout ({patience}) expired", self.label.id, self.label.endpoint);
                SendError::Timeout.to_string().into()
            }
        };
        Ended {
            reason,
            connected: !link.is_closed(),
        }
    }

    /// Resolves when messages have been waiting for a whole `rpc_timeout` without one being taken.
    async fn stalled(&self, taken: &AtomicU64) {
        let period = self
            .wiring
            .options
            .rpc_timeout
            .max(Duration::from_millis(1));
        let mut ticks = interval_at(Instant::now() + period, period);
        let mut before = None;
        loop {
            ticks.tick().await;
            let now = taken.load(Ordering::Relaxed);
            let waits = depth(&self.queue) > 0;
            if waits && before == Some(now) {
                return;
            }
            before = waits.then_some(now);
        }
    }
}

/// How a stream's end is told: the other side's own words where there are some.
fn ending(status: &tonic::Status) -> Arc<str> {
    format!(
        "rpc error: code = {:?} desc = {}",
        status.code(),
        status.message()
    )
    .into()
}

/// The request stream: what is taken from the queue goes to the connection.
struct Outgoing {
    wiring: Arc<Wiring>,
    label: Arc<Label>,
    queue: mpsc::Sender<Item>,
    waiting: mpsc::Receiver<Item>,
    metrics: OfStream,
    answers: Arc<Answers>,
    taken: Arc<AtomicU64>,
    expiry: Option<ExpiryWatch>,
    aborted: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Stream for Outgoing {
    type Item = Bytes;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if self.aborted.as_mut().poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        let Some(item) = ready!(self.waiting.poll_recv(cx)) else {
            return Poll::Ready(None);
        };
        self.taken.fetch_add(1, Ordering::Relaxed);
        let this = &mut *self;
        this.metrics.send_time.observe(item.queued.elapsed());
        this.metrics.waiting(depth(&this.queue));
        if let Some(watch) = &mut this.expiry {
            let now = this.wiring.clock.now_seconds();
            if let Some(warning) = watch.check(now, &this.label.channel) {
                tracing::warn!(target: LOG, "{warning}");
            }
        }
        if let Some(waits) = item.waits {
            this.answers.sent(waits);
        }
        Poll::Ready(Some(item.request))
    }
}
