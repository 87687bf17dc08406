//! The Broadcast stream: envelopes in, one answer each, in their order.
//!
//! The stream ends, with gRPC's OK, after the first answer that is not `SUCCESS`, as Fabric's does. What is answered is
//! decided by [`crate::checks`] (is it allowed?) and by the channel (is there a leader?).
//!
//! A client may send many envelopes before it reads an answer. They are checked in groups on a few threads beside the
//! asynchronous ones, because a signature takes longer to verify than everything else together; they are queued one
//! after the other, and an envelope behind a refused one is never queued. Between queueing and the answer several may
//! be under way, so an envelope behind one that found no leader may have been ordered although its answer is never
//! seen: to its sender that is the same as a connection that broke.
//!
//! A signature is verified once, by the orderer that orders: on a follower whose leader verifies what is forwarded to it
//! and says so, the message goes there unverified, and the leader's answer is the client's. What other orderers forward
//! ([`Checker::forwarded`]) goes through the same stages.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, Stream, StreamExt as _};
use quorate_fabric::config::ChannelConfig;
use quorate_fabric::envelope::{ChannelHeader, RawEnvelope};
use quorate_fabric::msp::Signer;
use quorate_fabric::proto::common::{HeaderType, Status};
use quorate_fabric::proto::orderer::BroadcastResponse;
use quorate_identity::UnixTime;
use quorate_runtime::{Clock, Entropy};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::{debug, warn};

use crate::channel::{Ack, ChannelHandle, Pending, Submission, SubmitError, View};
use crate::checks::{self, Class, Kind, Refusal, Rules, UpdateContext};
use crate::grpc::{Caller, Requests, Responses};
use crate::metrics::Broadcast as BroadcastMetrics;

/// The name under which operators know these log lines.
const LOG: &str = "orderer.common.broadcast";

/// Envelopes of one stream that wait for their answer.
pub const MAX_UNDER_WAY: usize = 512;

/// Bytes of envelopes of one stream that wait for their answer. A single longer one is taken when it is alone.
pub const MAX_BYTES_UNDER_WAY: u32 = 16 << 20;

/// Envelopes checked by one thread in one go.
const MAX_CHECKED_AT_ONCE: usize = 32;

/// What metrics say of what cannot be told, and of names that anybody could make up.
const UNKNOWN: &str = "unknown";

/// What an orderer knows of a channel by its name.
#[derive(Debug, Clone)]
pub enum Found {
    /// It is a consenter of it.
    Served(ChannelHandle),
    /// There is a system channel; this orderer has the channel and is no consenter of it, or cannot serve it now.
    Unserved(Unserved),
    /// There is a system channel, and this one is not among the channels.
    Unknown(System),
    /// There is no system channel, and this orderer does not order for that name, whether it follows it or not.
    NotServed,
}

/// A channel that nobody orders for here.
#[derive(Debug, Clone)]
pub struct Unserved {
    /// By what messages are judged before their senders are told; none if it cannot be used.
    pub config: Option<Arc<ChannelConfig>>,
    /// What they are told.
    pub reason: String,
}

/// The system channel, which creates the others.
#[derive(Debug, Clone)]
pub enum System {
    /// This orderer is a consenter of it.
    Served {
        /// The system channel.
        channel: ChannelHandle,
        /// How many channels there are, itself included.
        channels: u64,
    },
    /// It is none, or cannot serve it now.
    Unserved(Unserved),
}

/// The channels of an orderer.
pub trait Channels: Send + Sync + 'static {
    /// What is known under this name, which may be none.
    fn find(&self, channel: &str) -> Found;
}

/// Threads that check messages, beside the asynchronous ones. Shared by all streams and by what other orderers
/// forward; cheap to clone.
#[derive(Clone)]
pub struct Checker {
    threads: Arc<Semaphore>,
    count: usize,
    rules: Rules,
    signer: Arc<dyn Signer>,
    entropy: Entropy,
    clock: Clock,
}

impl Checker {
    /// A checker with that many threads.
    pub fn new(
        threads: usize,
        rules: Rules,
        signer: Arc<dyn Signer>,
        entropy: Entropy,
        clock: Clock,
    ) -> Self {
        let count = threads.max(1);
        Self {
            threads: Arc::new(Semaphore::new(count)),
            count,
            rules,
            signer,
            entropy,
            clock,
        }
    }

    /// Runs `work` on one of the threads when one is free.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Option<T> {
        let permit = self.threads.clone().acquire_owned().await.ok()?;
        let checker = self.clone();
        quorate_runtime::tasks::blocking("message checks", move || {
            let result = work(&checker);
            drop(permit);
            result
        })
        .await
        .ok()
    }

    /// Judges a message of a client under what is known of its channel; says what is to be ordered.
    fn judge(
        &self,
        view: &View,
        class: Class,
        envelope: &RawEnvelope,
    ) -> Result<(RawEnvelope, Kind), Refusal> {
        let now = UnixTime(self.clock.now_seconds());
        match class {
            Class::Normal => checks::normal(&view.config, envelope, &self.rules, now)
                .map(|()| (envelope.clone(), Kind::Normal)),
            Class::ConfigUpdate => checks::update(&self.context(view), envelope, &self.rules, now)
                .map(|envelope| (envelope, Kind::Config)),
        }
    }

    /// Judges a request for a new channel under what is known of the system channel; says what is to be ordered there.
    fn judge_creation(
        &self,
        system: &View,
        channels: u64,
        envelope: &RawEnvelope,
    ) -> Result<(RawEnvelope, Kind), Refusal> {
        let now = UnixTime(self.clock.now_seconds());
        let context = self.context(system);
        checks::creation(&context, envelope, channels, &self.rules, now)
            .map(|envelope| (envelope, Kind::Config))
    }

    /// Why a message is not ordered that is for a channel which is not served here.
    fn judge_unserved(&self, channel: &Unserved, class: Class, envelope: &RawEnvelope) -> Refusal {
        let now = UnixTime(self.clock.now_seconds());
        let judged = channel.config.as_ref().map_or(Ok(()), |config| {
            checks::unserved(config, class, envelope, &self.rules, now)
        });
        judged
            .err()
            .unwrap_or_else(|| Refusal::new(Status::ServiceUnavailable, &*channel.reason))
    }

    fn context<'a>(&'a self, view: &'a View) -> UpdateContext<'a> {
        UpdateContext {
            config: &view.config,
            consenters: &view.consenters,
            active: &view.active,
            signer: self.signer.as_ref(),
            entropy: &self.entropy,
        }
    }

    /// Envelopes of one stream: checked in groups beside one another, queued one after the other, answered in their order.
    ///
    /// Each stage is given nothing more by the one before once that has failed, or `goes_on` says no; what is in it is
    /// still answered.
    fn stages<R, J, Q, A, Queue, Answer>(
        &self,
        received: impl Stream<Item = Result<R, tonic::Status>> + Send + 'static,
        judge: impl Fn(R) -> J + Clone + Send + Sync + 'static,
        goes_on: impl Fn(&J) -> bool + Copy + Send + 'static,
        queue: impl Fn(J) -> Queue + Send + 'static,
        answer: impl Fn(Q) -> Answer + Send + 'static,
    ) -> impl Stream<Item = Result<A, tonic::Status>> + Send + 'static
    where
        R: Send + 'static,
        J: Send + 'static,
        Q: Send + 'static,
        A: Send + 'static,
        Queue: Future<Output = Q> + Send + 'static,
        Answer: Future<Output = A> + Send + 'static,
    {
        let checker = self.clone();
        let judged = received
            .ready_chunks(MAX_CHECKED_AT_ONCE)
            .map(move |group| {
                let (checker, judge) = (checker.clone(), judge.clone());
                async move { checker.judge_group(group, judge).await }
            })
            .buffered(self.count)
            .flat_map(stream::iter);
        let judged = until(judged, move |judged: &Result<J, tonic::Status>| {
            !judged.as_ref().is_ok_and(goes_on)
        });
        let queued = judged.then(move |judged| {
            let queuing = judged.map(&queue);
            async move { Ok(queuing?.await) }
        });
        queued
            .map(move |queued: Result<Q, tonic::Status>| {
                let answering = queued.map(&answer);
                async move { Ok(answering?.await) }
            })
            .buffered(MAX_UNDER_WAY)
    }

    /// Checks a group of envelopes on one thread.
    async fn judge_group<R: Send + 'static, J: Send + 'static>(
        &self,
        group: Vec<Result<R, tonic::Status>>,
        judge: impl Fn(R) -> J + Send + 'static,
    ) -> Vec<Result<J, tonic::Status>> {
        let judged = self
            .run(move |_| {
                let judged = group.into_iter().map(|received| received.map(&judge));
                judged.collect()
            })
            .await;
        judged.unwrap_or_else(|| {
            vec![Err(tonic::Status::internal(
                "the check of the messages was interrupted",
            ))]
        })
    }

    /// Judges and submits what another orderer forwards over one stream, and gives an outcome for each, in their order. An
    /// envelope is checked like a client's message, whatever the other orderer says about having checked it: one bad
    /// orderer must not decide what a channel holds.
    ///
    /// Unless `insistent`, the stream ends with the first that is refused. Outcomes are [`SubmitError`]s, and those that
    /// came instead of a channel.
    pub fn forwarded<S>(
        &self,
        envelopes: S,
        insistent: bool,
    ) -> impl Stream<Item = Result<Result<(), SubmitError>, tonic::Status>> + Send + 'static
    where
        S: Stream<Item = Result<(Result<ChannelHandle, SubmitError>, RawEnvelope), tonic::Status>>
            + Send
            + 'static,
    {
        let room = Arc::new(Semaphore::new(MAX_BYTES_UNDER_WAY as usize));
        let received = envelopes.then(move |received| {
            let room = room.clone();
            async move {
                let (channel, envelope) = received?;
                let permit = reserve(room, &envelope).await?;
                Ok((channel, envelope, permit))
            }
        });
        let checker = self.clone();
        let judge =
            move |(channel, envelope, permit)| (checker.judge_forwarded(channel, envelope), permit);
        type Checked = Result<(ChannelHandle, Submission), SubmitError>;
        let queue = |(checked, permit): (Checked, OwnedSemaphorePermit)| async move {
            let queued = match checked {
                Ok((channel, submission)) => {
                    // The other orderer is not told more than that we have it. So configuration updates, which are
                    // answered by their block, are not waited for.
                    let waits = submission.kind == Kind::Normal;
                    let pending = channel.enqueue(submission).await;
                    pending.map(|pending| waits.then_some(pending))
                }
                Err(refusal) => Err(refusal),
            };
            (queued, permit)
        };
        type Queued = Result<Option<Pending>, SubmitError>;
        let answer = |(queued, permit): (Queued, OwnedSemaphorePermit)| async move {
            let outcome = match queued {
                Ok(Some(pending)) => pending.answer().await,
                Ok(None) => Ok(()),
                Err(refusal) => Err(refusal),
            };
            drop(permit);
            outcome
        };
        let outcomes = self.stages(
            received,
            judge,
            move |(checked, _)| insistent || checked.is_ok(),
            queue,
            answer,
        );
        until(outcomes, move |outcome| match outcome {
            Ok(outcome) => outcome.is_err() && !insistent,
            Err(_) => true,
        })
    }

    fn judge_forwarded(
        &self,
        channel: Result<ChannelHandle, SubmitError>,
        envelope: RawEnvelope,
    ) -> Result<(ChannelHandle, Submission), SubmitError> {
        let channel = channel?;
        let view = channel.view().borrow().clone();
        let (envelope, kind) = self.judge_again(&view, envelope)?;
        let submission = Submission {
            envelope,
            kind,
            validated_at: Some(view.config.sequence()),
            ack: Ack::Enqueued,
        };
        Ok((channel, submission))
    }

    fn judge_again(
        &self,
        view: &View,
        envelope: RawEnvelope,
    ) -> Result<(RawEnvelope, Kind), Refusal> {
        let header = checks::channel_header(&envelope)?;
        if header.channel_id != view.config.channel_id() {
            return Err(Refusal::new(
                Status::BadRequest,
                format!(
                    "the message is for channel '{}' but was forwarded for channel '{}'",
                    header.channel_id,
                    view.config.channel_id()
                ),
            ));
        }
        if !header.is(HeaderType::Config) && !header.is(HeaderType::OrdererTransaction) {
            return self.judge(view, checks::classify(&header)?, &envelope);
        }
        let now = UnixTime(self.clock.now_seconds());
        checks::config_again(&self.context(view), &envelope, &self.rules, now)
            .map(|envelope| (envelope, Kind::Config))
    }
}

/// Room for an envelope among the bytes under way.
async fn reserve(
    room: Arc<Semaphore>,
    envelope: &RawEnvelope,
) -> Result<OwnedSemaphorePermit, tonic::Status> {
    let bytes = u32::try_from(envelope.encoded().len()).unwrap_or(u32::MAX);
    room.acquire_many_owned(bytes.min(MAX_BYTES_UNDER_WAY))
        .await
        .map_err(|_| tonic::Status::internal("the stream is closed"))
}

/// Answers Broadcast streams; cheap to clone.
#[derive(Clone)]
pub struct Broadcast {
    channels: Arc<dyn Channels>,
    checker: Checker,
    ack: Ack,
    metrics: BroadcastMetrics,
}

/// What the metrics of one envelope are told apart by.
#[derive(Debug, Clone)]
struct Labels {
    channel: String,
    kind: String,
}

/// An envelope on its way through a stream.
struct Received {
    envelope: RawEnvelope,
    found: Result<(Labels, Route), (Labels, Refusal)>,
    started: Duration,
    permit: OwnedSemaphorePermit,
}

/// Who has to do with an envelope.
enum Route {
    /// Its channel orders it.
    Channel(Class, ChannelHandle),
    /// The system channel creates the channel, the others being so many.
    Creation(ChannelHandle, u64),
    /// Nobody here orders it.
    Nobody(Class, Unserved),
}

/// An envelope that was checked.
struct Judged {
    labels: Labels,
    outcome: Result<(ChannelHandle, Submission), Refusal>,
    permit: OwnedSemaphorePermit,
}

/// An envelope that is waiting for its answer.
struct Queued {
    labels: Labels,
    /// When it was queued.
    since: Duration,
    outcome: Result<Pending, Refusal>,
    enqueued: bool,
    permit: OwnedSemaphorePermit,
}

impl crate::grpc::Broadcast for Broadcast {
    fn broadcast(&self, caller: Caller, requests: Requests) -> Responses<BroadcastResponse> {
        self.serve(caller.address.to_string(), requests)
    }
}

type Answers = Pin<Box<dyn Stream<Item = Result<BroadcastResponse, tonic::Status>> + Send>>;

impl Broadcast {
    /// Answers for these channels; `ack` says when a message counts as taken.
    pub fn new(
        channels: Arc<dyn Channels>,
        checker: Checker,
        ack: Ack,
        metrics: &BroadcastMetrics,
    ) -> Self {
        Self {
            channels,
            checker,
            ack,
            metrics: metrics.clone(),
        }
    }

    /// The answers to a stream of envelopes from `peer` (for the log).
    ///
    /// Dropping the answers drops what is not queued yet; what is queued may be ordered.
    pub fn serve<S>(&self, peer: String, requests: S) -> Answers
    where
        S: Stream<Item = Result<RawEnvelope, tonic::Status>> + Send + 'static,
    {
        let peer: Arc<str> = peer.into();
        let room = Arc::new(Semaphore::new(MAX_BYTES_UNDER_WAY as usize));
        let (this, reader) = (self.clone(), peer.clone());
        let received = requests.then(move |request| {
            let (this, room, peer) = (this.clone(), room.clone(), reader.clone());
            async move { this.receive(&peer, request?, room).await }
        });
        let (judging, queuing, answering) = (self.clone(), self.clone(), self.clone());
        let answers = self.checker.stages(
            received,
            move |received| judging.judge_one(received),
            |judged| judged.outcome.is_ok(),
            move |judged| {
                let this = queuing.clone();
                async move { this.queue(judged).await }
            },
            move |queued| {
                let (this, peer) = (answering.clone(), peer.clone());
                async move { this.answer(&peer, queued).await }
            },
        );
        Box::pin(until(
            answers,
            |answer: &Result<BroadcastResponse, tonic::Status>| !matches!(answer, Ok(answer) if answer.status() == Status::Success),
        ))
    }

    async fn receive(
        &self,
        peer: &str,
        envelope: RawEnvelope,
        room: Arc<Semaphore>,
    ) -> Result<Received, tonic::Status> {
        let permit = reserve(room, &envelope).await?;
        let started = self.checker.clock.monotonic();
        let found = self.find(peer, &envelope);
        Ok(Received {
            envelope,
            found,
            started,
            permit,
        })
    }

    /// The channel that the envelope is for, and what it asks of it.
    fn find(
        &self,
        peer: &str,
        envelope: &RawEnvelope,
    ) -> Result<(Labels, Route), (Labels, Refusal)> {
        let header = checks::channel_header(envelope).map_err(|refusal| {
            let labels = Labels {
                channel: UNKNOWN.to_owned(),
                kind: UNKNOWN.to_owned(),
            };
            (labels, refusal)
        });
        let found = header.and_then(|header| {
            let mut labels = labels(&header);
            match self.serving(&header) {
                Ok(route) => {
                    if !matches!(route, Route::Channel(..)) {
                        labels.channel = UNKNOWN.to_owned();
                    }
                    Ok((labels, route))
                }
                Err(refusal) => {
                    if self.is_strange(&header) {
                        labels.channel = UNKNOWN.to_owned();
                    }
                    Err((labels, refusal))
                }
            }
        });
        if let Err((labels, refusal)) = &found {
            warn!(target: LOG, "[channel: {}] Could not get message processor for serving {peer}: {refusal}",
                labels.channel);
        }
        found
    }

    /// Whether the metrics should not take over the channel's name: anybody can make one up.
    fn is_strange(&self, header: &ChannelHeader) -> bool {
        !matches!(self.channels.find(&header.channel_id), Found::Served(_))
    }

    fn serving(&self, header: &ChannelHeader) -> Result<Route, Refusal> {
        let system = match self.channels.find(&header.channel_id) {
            Found::Served(channel) => {
                return Ok(Route::Channel(checks::classify(header)?, channel));
            }
            Found::Unserved(channel) => {
                return Ok(Route::Nobody(checks::classify(header)?, channel));
            }
            Found::NotServed => {
                return Err(Refusal::new(
                    Status::BadRequest,
                    "channel creation request not allowed because the orderer system channel is not defined",
                ));
            }
            Found::Unknown(system) => system,
        };
        match (checks::classify(header)?, system) {
            (Class::Normal, _) => Err(Refusal::new(Status::NotFound, "channel does not exist")),
            (Class::ConfigUpdate, System::Served { channel, channels }) => {
                Ok(Route::Creation(channel, channels))
            }
            // Its configuration has nothing to say about who may create channels.
            (Class::ConfigUpdate, System::Unserved(Unserved { reason, .. })) => {
                Err(Refusal::new(Status::ServiceUnavailable, reason))
            }
        }
    }

    fn judge_one(&self, received: Received) -> Judged {
        let Received {
            envelope,
            found,
            started,
            permit,
        } = received;
        let (labels, outcome) = match found {
            Err((labels, refusal)) => (labels, Err(refusal)),
            Ok((labels, route)) => (labels, self.judge_route(route, envelope)),
        };
        let status = outcome
            .as_ref()
            .map_or_else(|refusal| refusal.status, |_| Status::Success);
        let spent = self.checker.clock.monotonic().saturating_sub(started);
        self.metrics
            .validate_duration
            .with(labels.with(status))
            .observe(spent);
        Judged {
            labels,
            outcome,
            permit,
        }
    }

    fn judge_route(
        &self,
        route: Route,
        envelope: RawEnvelope,
    ) -> Result<(ChannelHandle, Submission), Refusal> {
        let checker = &self.checker;
        let (channel, view, judged) = match route {
            Route::Channel(Class::Normal, channel) if channel.leader_checks() => {
                let view = channel.view().borrow().clone();
                let now = UnixTime(checker.clock.now_seconds());
                checks::before_signature(&view.config, &envelope, &checker.rules, now)?;
                let submission = Submission {
                    envelope,
                    kind: Kind::Normal,
                    validated_at: None,
                    ack: self.ack,
                };
                return Ok((channel, submission));
            }
            Route::Channel(class, channel) => {
                let view = channel.view().borrow().clone();
                let judged = checker.judge(&view, class, &envelope);
                (channel, view, judged)
            }
            Route::Creation(system, channels) => {
                let view = system.view().borrow().clone();
                let judged = checker.judge_creation(&view, channels, &envelope);
                (system, view, judged)
            }
            Route::Nobody(class, channel) => {
                return Err(checker.judge_unserved(&channel, class, &envelope));
            }
        };
        let (envelope, kind) = judged?;
        let submission = Submission {
            envelope,
            kind,
            validated_at: Some(view.config.sequence()),
            ack: self.ack,
        };
        Ok((channel, submission))
    }

    async fn queue(&self, judged: Judged) -> Queued {
        let since = self.checker.clock.monotonic();
        let (enqueued, outcome) = match judged.outcome {
            Err(refusal) => (false, Err(refusal)),
            Ok((channel, submission)) => {
                // What comes behind a configuration update is judged by what the update makes of the channel, if it
                // waits for it; nothing here can.
                let queued = channel.enqueue(submission).await.map_err(refused);
                (true, queued)
            }
        };
        Queued {
            labels: judged.labels,
            since,
            outcome,
            enqueued,
            permit: judged.permit,
        }
    }

    async fn answer(&self, peer: &str, queued: Queued) -> BroadcastResponse {
        let outcome = match queued.outcome {
            Ok(pending) => pending.answer().await.map_err(refused),
            Err(refusal) => Err(refusal),
        };
        let (status, info) = match outcome {
            Ok(()) => (Status::Success, String::new()),
            Err(refusal) => (refusal.status, refusal.info),
        };
        let Labels { channel, kind } = &queued.labels;
        let what = if kind == HeaderType::ConfigUpdate.as_str_name() {
            "config"
        } else {
            "normal"
        };
        match status {
            Status::Success => debug!(target: LOG,
                "[channel: {channel}] Broadcast has successfully enqueued message of type {kind} from {peer}"),
            Status::ServiceUnavailable if queued.enqueued => warn!(target: LOG,
                "[channel: {channel}] Rejecting broadcast of message from {peer} with SERVICE_UNAVAILABLE: rejected by Consenter: {info}"),
            _ => warn!(target: LOG,
                "[channel: {channel}] Rejecting broadcast of {what} message from {peer} because of error: {info}"),
        }
        let labels = queued.labels.with(status);
        if queued.enqueued {
            let spent = self.checker.clock.monotonic().saturating_sub(queued.since);
            self.metrics.enqueue_duration.with(labels).observe(spent);
        }
        self.metrics.processed_count.with(labels).inc();
        drop(queued.permit);
        BroadcastResponse {
            status: status.into(),
            info,
        }
    }
}

impl Labels {
    fn with(&self, status: Status) -> [&str; 3] {
        [&self.channel, &self.kind, status.as_str_name()]
    }
}

fn labels(header: &ChannelHeader) -> Labels {
    let kind = match HeaderType::try_from(header.header_type) {
        Ok(known) => known.as_str_name().to_owned(),
        // Anybody can make one up; metrics are kept for a few.
        Err(_) if (-1..=99).contains(&header.header_type) => header.header_type.to_string(),
        Err(_) => UNKNOWN.to_owned(),
    };
    Labels {
        channel: header.channel_id.clone(),
        kind,
    }
}

fn refused(error: SubmitError) -> Refusal {
    match error {
        SubmitError::Unavailable(reason) => Refusal::new(Status::ServiceUnavailable, reason),
        SubmitError::Refused(refusal) => refusal,
    }
}

/// A stream up to and with its first item that is `last`. It ends there without asking for another one, for which a
/// client that waits for the end would not be sending anything.
fn until<S>(
    items: S,
    last: impl Fn(&S::Item) -> bool + Send + Copy,
) -> impl Stream<Item = S::Item> + Send
where
    S: Stream + Send,
    S::Item: Send,
{
    stream::unfold(Some(Box::pin(items)), move |items| async move {
        let mut items = items?;
        let item = items.next().await?;
        let rest = (!last(&item)).then_some(items);
        Some((item, rest))
    })
}
