//! The work on one connection to a peer: carrying the queue's messages across it.
//!
//! Messages are fetched in order and sent without waiting for each answer, up to a window; answers are taken in order,
//! and the queue is told how far the peer has accepted. Waiting is asynchronous and yields one of a closed set of
//! happenings; what is done about it is plain code.

use std::collections::VecDeque;
use std::fmt;
use std::future::{Future, pending};
use std::sync::atomic::Ordering;
use std::time::Duration;

use fe2o3_amqp::link::delivery::DeliveryFut;
use fe2o3_amqp::link::{LinkStateError, SendError};
use fe2o3_amqp::types::definitions::{ErrorCondition, LinkError};
use fe2o3_amqp::types::messaging::Outcome;
use futures::FutureExt;
use futures::future::BoxFuture;
use quorate_runtime::tasks::chain;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep, sleep_until, timeout};

use crate::bridge::Bridge;
use crate::dial::{Link, describe, describe_close};
use crate::exchange::{Epoch, OutboundQueue, Outgoing, QueueError};
use crate::message::pack;
use crate::service::Peer;

/// Messages fetched at once.
const FETCH_LIMIT: usize = 128;
/// Bytes that one fetch may be expected to bring, judged by the largest message seen lately.
const FETCH_BYTES: usize = 8 * 1024 * 1024;
/// Messages of the first fetch, before their size is known.
const FIRST_FETCH_LIMIT: usize = 16;
/// How long to wait for credit before looking around. The library can miss the moment in which credit arrives; asking
/// again finds it.
const CREDIT_WAIT: Duration = Duration::from_millis(50);
/// A message up to this size is handed to the library in a few frames without a pause, so that giving up while waiting
/// for credit cannot cut it in the middle.
const SMALL_MESSAGE_BYTES: usize = 64 * 1024;
/// Pause after the queue could not be read or written.
const QUEUE_PAUSE: Duration = Duration::from_secs(1);
/// Transfers on one connection. The library counts them in 32 bits and does not wrap; long before that the connection
/// is renewed.
const MAX_TRANSFERS: u64 = 1 << 30;
/// Bytes of a transfer, at least, to count transfers without knowing the peer's frame size.
const TRANSFER_BYTES: u64 = 4096;
/// How often the silence of the line is measured, as a part of what is permitted.
const SILENCE_CHECKS: u32 = 8;

/// How a connection ended.
#[derive(Debug)]
pub(crate) enum Ending {
    /// Nothing to send for long.
    Idle,
    /// We are stopping, and nothing is under way.
    Stopped,
    /// Something broke, or the peer went away.
    Lost(String),
    /// Nothing was heard from the peer for too long; it would not hear our goodbye either.
    Silent,
    /// The peer, or our own limit, did not take this message.
    Refused(RefusedMessage),
}

#[derive(Debug)]
pub(crate) struct RefusedMessage {
    pub(crate) sequence: u64,
    reason: Option<String>,
    pub(crate) retry: bool,
}

/// The work on one connection: a state, the things that can happen to it, and what is done about each.
pub(crate) struct Carriage<'a> {
    bridge: &'a mut Bridge,
    queue: &'a dyn OutboundQueue,
    link: Link,
    /// Sent and not yet answered, in order.
    flight: VecDeque<InFlight>,
    flight_bytes: usize,
    /// Fetched and not yet sent.
    waiting: VecDeque<Outgoing>,
    fetched_up_to: u64,
    /// The queue may have more than was fetched.
    more: bool,
    fetch_limit: usize,
    fetching: Option<Fetching<'a>>,
    settling: Option<(u64, BoxFuture<'a, Result<(), QueueError>>)>,
    queue_rests_until: Option<Instant>,
    transfers: u64,
    starved_since: Option<Instant>,
    idle_since: Instant,
    pulse: Interval,
    stopping: bool,
}

struct InFlight {
    sequence: u64,
    bytes: usize,
    answer: DeliveryFut<Answer>,
}

pub(crate) type Answer = Result<Outcome, SendError>;
type Fetching<'a> = BoxFuture<'a, Result<(Epoch, Vec<Outgoing>), QueueError>>;

/// What can happen to a carriage.
pub(crate) enum Happening {
    Answer(Answer),
    Fetched(Result<(Epoch, Vec<Outgoing>), QueueError>),
    Settled(u64, Result<(), QueueError>),
    /// The queue has something new.
    Woken,
    /// A pause is over: of the queue, or in waiting for credit.
    Again,
    Pulse,
    StopRequested,
    /// The peer has ended the link or the connection, or it broke.
    Ended(String),
}

/// What came of handing a message to the transport.
enum Handed {
    Over(DeliveryFut<Answer>),
    /// The peer does not want more now.
    NoCredit,
    /// It is larger than we or the peer permit.
    TooLarge(String),
    Broken(String),
}

impl<'a> Carriage<'a> {
    pub(crate) fn new(bridge: &'a mut Bridge, queue: &'a dyn OutboundQueue, link: Link) -> Self {
        let mut pulse = interval(bridge.shared.options.silence_timeout / SILENCE_CHECKS);
        pulse.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            fetched_up_to: bridge.accepted_up_to,
            bridge,
            queue,
            link,
            flight: VecDeque::new(),
            flight_bytes: 0,
            waiting: VecDeque::new(),
            more: true,
            fetch_limit: FIRST_FETCH_LIMIT,
            fetching: None,
            settling: None,
            queue_rests_until: None,
            transfers: 0,
            starved_since: None,
            idle_since: Instant::now(),
            pulse,
            stopping: false,
        }
    }

    /// Does what can be done now: takes answers that are there, reports, fetches, sends.
    pub(crate) async fn act(&mut self) -> Option<Ending> {
        // One wake-up serves many messages.
        while let Some(answer) = self
            .flight
            .front_mut()
            .and_then(|first| (&mut first.answer).now_or_never())
        {
            if let Some(ending) = self.answered(answer) {
                return Some(ending);
            }
        }
        if self
            .queue_rests_until
            .is_some_and(|until| until <= Instant::now())
        {
            self.queue_rests_until = None;
        }
        let (accepted, reported) = (self.bridge.accepted_up_to, self.bridge.reported_up_to);
        if self.settling.is_none() && accepted > reported && self.queue_rests_until.is_none() {
            self.settling = Some((
                accepted,
                self.queue.settled(&self.bridge.peer.name, accepted),
            ));
        }
        let wanted = self.more && self.waiting.len() < self.fetch_limit && !self.stopping;
        if self.fetching.is_none() && wanted && self.queue_rests_until.is_none() {
            self.fetching = Some(self.queue.fetch(
                &self.bridge.peer.name,
                self.fetched_up_to,
                self.fetch_limit,
            ));
        }
        let ending = self.send().await;
        self.bridge.peer.state().unsettled = self.flight.len();
        if ending.is_some() {
            return ending;
        }
        if self.stopping && self.flight.is_empty() && self.settling.is_none() {
            // If the last report has failed it is not tried again now: it would only repeat itself until we are cut off.
            return Some(Ending::Stopped);
        }
        let busy = self.more
            || self.fetching.is_some()
            || !self.waiting.is_empty()
            || !self.flight.is_empty();
        if busy || self.settling.is_some() {
            self.idle_since = Instant::now();
        }
        None
    }

    /// Sends what is waiting, as far as window and credit reach.
    async fn send(&mut self) -> Option<Ending> {
        let options = &self.bridge.shared.options;
        let (window, window_bytes) = (options.window, options.window_bytes);
        while let Some(outgoing) = self.waiting.front().filter(|_| !self.stopping) {
            let (sequence, bytes) = (outgoing.sequence, outgoing.body.len());
            let full = self.flight.len() >= window || self.flight_bytes + bytes > window_bytes;
            if full && !self.flight.is_empty() {
                return None;
            }
            if self.transfers > MAX_TRANSFERS {
                let renewed =
                    || Ending::Lost("the connection is renewed after a long life".to_owned());
                return self.flight.is_empty().then(renewed);
            }
            match self.hand_over().await {
                Handed::Over(answer) => {
                    self.waiting.pop_front();
                    self.flight.push_back(InFlight {
                        sequence,
                        bytes,
                        answer,
                    });
                    self.flight_bytes += bytes;
                    self.transfers += bytes as u64 / TRANSFER_BYTES + 1;
                    self.starved_since = None;
                    self.bridge.peer.sent.fetch_add(1, Ordering::Relaxed);
                }
                Handed::NoCredit => {
                    let since = *self.starved_since.get_or_insert_with(Instant::now);
                    let patience = self.bridge.shared.options.silence_timeout;
                    let starved =
                        || Ending::Lost("the peer has granted no credit for long".to_owned());
                    return (self.flight.is_empty() && since.elapsed() > patience).then(starved);
                }
                // Messages before it are still under way; their answers count first.
                Handed::TooLarge(_) if !self.flight.is_empty() => return None,
                Handed::TooLarge(reason) => {
                    return Some(Ending::Refused(RefusedMessage {
                        sequence,
                        reason: Some(reason),
                        retry: false,
                    }));
                }
                Handed::Broken(reason) => return Some(Ending::Lost(reason)),
            }
        }
        None
    }

    /// Hands the first waiting message to the transport.
    async fn hand_over(&mut self) -> Handed {
        let Some((outgoing, epoch)) = self.waiting.front().zip(self.bridge.epoch) else {
            return Handed::NoCredit;
        };
        let options = &self.bridge.shared.options;
        let (size, limit) = (outgoing.body.len(), options.max_message_bytes);
        if size > limit {
            return Handed::TooLarge(format!("it has {size} bytes, and our limit is {limit}"));
        }
        let patience = if size <= SMALL_MESSAGE_BYTES {
            CREDIT_WAIT
        } else {
            options.silence_timeout
        };
        let packed = pack(&options.own_name, &self.bridge.peer.name, epoch, outgoing);
        match timeout(patience, self.link.sender.send_batchable(packed)).await {
            Ok(Ok(answer)) => Handed::Over(answer),
            Ok(Err(SendError::MessageSizeExceeded(exceeded))) => Handed::TooLarge(format!(
                "with its header it has {} bytes, and the peer's limit is {}",
                exceeded.size, exceeded.max_size
            )),
            Ok(Err(error)) => Handed::Broken(describe_send_error(&error)),
            // A large message that was given up halfway would be continued by the next one.
            Err(_) if size > SMALL_MESSAGE_BYTES => {
                Handed::Broken("the peer has granted no credit for long".to_owned())
            }
            Err(_) => Handed::NoCredit,
        }
    }

    /// Waits for the next thing to happen. Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) -> Happening {
        let Self {
            bridge,
            link,
            flight,
            fetching,
            settling,
            pulse,
            ..
        } = self;
        let starved = self.starved_since.is_some();
        let (stopping, rests_until) = (self.stopping, self.queue_rests_until);
        tokio::select! {
            biased;
            answer = optional(flight.front_mut().map(|first| &mut first.answer)) => Happening::Answer(answer),
            fetched = optional(fetching.as_mut()) => Happening::Fetched(fetched),
            settled = optional(settling.as_mut().map(|(_, settling)| settling)) => {
                let up_to = settling.as_ref().map_or(0, |(up_to, _)| *up_to);
                Happening::Settled(up_to, settled)
            }
            () = bridge.shutdown.requested(), if !stopping => Happening::StopRequested,
            ended = link.connection.on_close() => Happening::Ended(match ended {
                Ok(()) => "the peer has closed the connection".to_owned(),
                Err(error) => describe_close(&error),
            }),
            detached = link.sender.on_detach() => Happening::Ended(chain(&detached)),
            () = bridge.peer.wake.notified() => Happening::Woken,
            _ = pulse.tick() => Happening::Pulse,
            () = optional(rests_until.map(|until| Box::pin(sleep_until(until)))) => Happening::Again,
            () = sleep(CREDIT_WAIT / 10), if starved => Happening::Again,
        }
    }

    pub(crate) fn apply(&mut self, happening: Happening) -> Option<Ending> {
        match happening {
            Happening::Answer(answer) => return self.answered(answer),
            Happening::Fetched(fetched) => {
                self.fetching = None;
                match fetched {
                    Ok((epoch, messages)) => return self.fetched(epoch, messages),
                    Err(error) => self.queue_failed(&error),
                }
            }
            Happening::Settled(up_to, settled) => {
                self.settling = None;
                match settled {
                    Ok(()) => self.bridge.reported_up_to = up_to,
                    Err(error) => self.queue_failed(&error),
                }
            }
            Happening::Woken => self.more = true,
            Happening::Again => {}
            Happening::StopRequested => {
                self.stopping = true;
                self.fetching = None;
            }
            Happening::Pulse => {
                let options = &self.bridge.shared.options;
                if self.link.line.silence() > options.silence_timeout {
                    return Some(Ending::Silent);
                }
                if self.idle_since.elapsed() > options.idle_close {
                    return Some(Ending::Idle);
                }
            }
            Happening::Ended(reason) => return Some(Ending::Lost(reason)),
        }
        None
    }

    fn fetched(&mut self, epoch: Epoch, messages: Vec<Outgoing>) -> Option<Ending> {
        // Fewer than asked for: the queue is empty until we are woken. A wake-up that came meanwhile is still waiting.
        self.more = messages.len() >= self.fetch_limit;
        if self
            .bridge
            .epoch
            .replace(epoch)
            .is_some_and(|known| known != epoch)
        {
            // The queue counts anew. What the numbers so far meant is gone with the old epoch.
            self.bridge.accepted_up_to = 0;
            self.bridge.reported_up_to = 0;
            return Some(Ending::Lost("the queue has begun a new epoch".to_owned()));
        }
        for outgoing in messages {
            let expected = self.fetched_up_to + 1;
            // Before the first message nothing is known; from then on a gap would be a lost message.
            if outgoing.sequence < expected
                || (self.fetched_up_to != 0 && outgoing.sequence != expected)
            {
                let text = format!(
                    "it holds message {} where {expected} should be",
                    outgoing.sequence
                );
                self.queue_failed(&QueueError::new(text));
                break;
            }
            self.fetched_up_to = outgoing.sequence;
            let fitting = FETCH_BYTES / outgoing.body.len().max(1);
            self.fetch_limit = fitting.clamp(1, FETCH_LIMIT);
            self.waiting.push_back(outgoing);
        }
        None
    }

    fn queue_failed(&mut self, error: &QueueError) {
        self.bridge.queue_failed(error);
        self.more = true;
        self.queue_rests_until = Some(Instant::now() + QUEUE_PAUSE);
    }

    /// The peer has answered the first message in flight.
    fn answered(&mut self, answer: Answer) -> Option<Ending> {
        let first = self.flight.pop_front()?;
        self.flight_bytes -= first.bytes;
        let refused = |reason, retry| {
            Some(Ending::Refused(RefusedMessage {
                sequence: first.sequence,
                reason,
                retry,
            }))
        };
        match answer {
            Ok(Outcome::Accepted(_)) => {
                self.bridge.accepted(first.sequence);
                None
            }
            Ok(Outcome::Rejected(rejected)) => {
                refused(rejected.error.as_ref().map(describe), false)
            }
            Ok(Outcome::Released(_) | Outcome::Modified(_)) => refused(None, true),
            Err(SendError::LinkStateError(LinkStateError::RemoteClosedWithError(error)))
                if error.condition == ErrorCondition::LinkError(LinkError::MessageSizeExceeded) =>
            {
                refused(Some(describe(&error)), false)
            }
            Err(error) => Some(Ending::Lost(describe_send_error(&error))),
            #[allow(
                unreachable_patterns,
                reason = "the library has more outcomes when its transactions are enabled"
            )]
            Ok(_) => Some(Ending::Lost(
                "the peer has given an answer that makes no sense".to_owned(),
            )),
        }
    }

    /// Closes the connection. The reason may become clearer by what the peer says.
    pub(crate) async fn leave(self, ending: Ending) -> Ending {
        let Self {
            bridge,
            link,
            settling,
            ..
        } = self;
        let said = link.hang_up(!matches!(ending, Ending::Silent)).await;
        if let Some((up_to, settling)) = settling {
            match settling.await {
                Ok(()) => bridge.reported_up_to = bridge.reported_up_to.max(up_to),
                Err(error) => bridge.queue_failed(&error),
            }
        }
        match ending {
            Ending::Lost(reason) => Ending::Lost(said.unwrap_or(reason)),
            Ending::Refused(mut refused) => {
                refused.reason = refused.reason.or(said);
                Ending::Refused(refused)
            }
            other => other,
        }
    }
}

/// The future's value; never, when there is none.
async fn optional<F: Future + Unpin>(future: Option<F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => pending().await,
    }
}

fn describe_send_error(error: &SendError) -> String {
    match error {
        SendError::LinkStateError(
            LinkStateError::RemoteClosedWithError(error)
            | LinkStateError::RemoteDetachedWithError(error),
        ) => describe(error),
        SendError::LinkStateError(_) => "the connection broke".to_owned(),
        other => chain(other),
    }
}

impl RefusedMessage {
    pub(crate) fn describe(&self, peer: &Peer) -> String {
        let (sequence, name) = (self.sequence, &peer.name);
        let reason = self.reason.as_deref().unwrap_or("no reason was given");
        if self.retry {
            format!("{name} cannot take message {sequence} now: {reason}")
        } else {
            format!(
                "message {sequence} to {name} is refused: {reason}. It is kept, and later messages wait behind it; \
                 mend the cause, or remove the flow that sent it"
            )
        }
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Idle => f.write_str("nothing to send for long"),
            Self::Stopped => f.write_str("this node is stopping"),
            Self::Silent => f.write_str("nothing was heard from the peer for too long"),
            Self::Lost(reason) => f.write_str(reason),
            Self::Refused(refused) if refused.retry => {
                write!(f, "message {} was not taken for now", refused.sequence)
            }
            Self::Refused(refused) => write!(f, "message {} was refused", refused.sequence),
        }
    }
}
