//! The queue before the desk: how much may wait there, and what those are told who may not.
//!
//! A request that would wait longer than the notary thinks right, or for which there is no room,
//! is not queued: it is declined at once, with a time after which asking again makes sense. So
//! whoever brings the messages never has to wait for the notary, and one flood of requests
//! neither fills the memory nor holds up the messages behind it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus::{IntCounter, IntGauge};
use quorate_flow::{Envelope, InboxId, SessionId, SessionMessage};
use quorate_identity::{Party, X500Name};
use quorate_ledger::{NotarisationAnswer, NotarisationMessage, NotaryError};
use tokio::sync::{mpsc, oneshot};

use crate::metrics::NotaryMetrics;

/// Most bytes of requests that wait. One request is let in whatever its size if no other waits.
const QUEUE_BYTES: usize = 64 * 1024 * 1024;

/// Declined requests whose answers wait for the next commit. Beyond it, bringing messages waits:
/// the database then takes hardly any commits, and declining is no cheaper than deciding.
const DECLINED: usize = 10_000;

/// What declined requesters are asked to wait, before jitter: at the least and at the most.
const RETRY_AFTER: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(60);

/// How much the newest batch counts in the averages.
const NEWEST: f64 = 0.2;

/// What may wait.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Requests.
    pub(crate) requests: usize,
    /// Requests that are let in regardless of `eta`: those that fit into the next batch.
    pub(crate) batch: usize,
    /// Longest expected wait.
    pub(crate) eta: Duration,
}

/// The session that an answer goes to.
#[derive(Debug, Clone)]
pub(crate) struct ReturnAddress {
    pub(crate) peer: X500Name,
    pub(crate) session: SessionId,
    /// Who was asked: the notary, or the node that provides it with others.
    pub(crate) asked: X500Name,
}

impl ReturnAddress {
    fn of(envelope: &Envelope) -> Self {
        Self {
            peer: envelope.sender.clone(),
            session: envelope.session,
            asked: envelope.recipient.clone(),
        }
    }
}

/// A request that has a place in the queue.
pub(crate) enum Job {
    /// A message of a peer; the answer goes to its session.
    Message {
        inbox: InboxId,
        to: ReturnAddress,
        /// The request's bytes; none if the message carries none.
        request: Option<Vec<u8>>,
        place: Place,
    },
    /// A request of this node's own flow, which has verified the transaction.
    Call {
        requester: Party,
        message: Box<NotarisationMessage>,
        reply: oneshot::Sender<NotarisationAnswer>,
    },
}

/// A request that has none.
pub(crate) struct Declined {
    pub(crate) inbox: InboxId,
    pub(crate) to: ReturnAddress,
    pub(crate) answer: NotaryError,
}

/// Room for the bytes of a request, given back when dropped.
pub(crate) struct Place {
    shared: Arc<Shared>,
    bytes: usize,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

struct Shared {
    bounds: Bounds,
    bytes: AtomicUsize,
    pace: Mutex<Pace>,
    length: IntGauge,
    eta: IntGauge,
    overloads: IntCounter,
}

/// How fast the desk works: moving averages.
struct Pace {
    /// How long a batch takes; none before the first.
    batch: Option<Duration>,
    /// How many requests fit into one.
    requests: f64,
}

/// Speaks to the notary. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
    jobs: mpsc::Sender<Job>,
    declined: mpsc::Sender<Declined>,
}

/// The desk's end of the queue.
pub(crate) struct Queue {
    shared: Arc<Shared>,
    pub(crate) jobs: mpsc::Receiver<Job>,
    pub(crate) declined: mpsc::Receiver<Declined>,
}

/// A queue within these bounds.
pub(crate) fn queue(bounds: Bounds, metrics: &NotaryMetrics) -> (Handle, Queue) {
    let (jobs, waiting_jobs) = mpsc::channel(bounds.requests.max(1));
    let (declined, waiting_declined) = mpsc::channel(DECLINED);
    let shared = Arc::new(Shared {
        bounds,
        bytes: AtomicUsize::new(0),
        pace: Mutex::new(Pace {
            batch: None,
            requests: bounds.batch.max(1) as f64,
        }),
        length: metrics.queue.clone(),
        eta: metrics.eta.clone(),
        overloads: metrics.overloads.clone(),
    });
    let handle = Handle {
        shared: Arc::clone(&shared),
        jobs,
        declined,
    };
    let queue = Queue {
        shared,
        jobs: waiting_jobs,
        declined: waiting_declined,
    };
    (handle, queue)
}

impl Handle {
    /// Hands over a request that lies in the inbox. If it cannot be queued, its sender is told
    /// when to ask again; this waits only if even those answers pile up.
    pub async fn submit(&self, inbox: InboxId, envelope: Envelope) {
        let to = ReturnAddress::of(&envelope);
        let request = match envelope.body {
            SessionMessage::Initiate { first, .. } => first,
            _ => None,
        };
        let admitted = self.admit(request.as_ref().map_or(0, Vec::len));
        let (inbox, to) = match admitted {
            Err(_) => (inbox, to),
            Ok(place) => {
                let job = Job::Message {
                    inbox,
                    to,
                    request,
                    place,
                };
                match self.jobs.try_send(job) {
                    Ok(()) => return self.show(),
                    Err(mpsc::error::TrySendError::Full(Job::Message { inbox, to, .. })) => {
                        (inbox, to)
                    }
                    // After the service has stopped the request waits in the inbox.
                    Err(_) => return,
                }
            }
        };
        let answer = self.overloaded(to.session.as_bytes()[0]);
        let _ = self.declined.send(Declined { inbox, to, answer }).await;
    }

    /// Commits a transaction that this node has verified. `None` if the notary is stopping or
    /// could not decide: ask again.
    pub async fn notarise(
        &self,
        requester: Party,
        message: NotarisationMessage,
    ) -> Option<NotarisationAnswer> {
        let salt = message.payload.id().as_bytes()[0];
        if self.admit(0).is_err() {
            return Some(NotarisationAnswer::Refused(self.overloaded(salt)));
        }
        let (reply, answer) = oneshot::channel();
        let job = Job::Call {
            requester,
            message: Box::new(message),
            reply,
        };
        match self.jobs.try_send(job) {
            Ok(()) => {
                self.show();
                answer.await.ok()
            }
            Err(mpsc::error::TrySendError::Full(_)) => {
                Some(NotarisationAnswer::Refused(self.overloaded(salt)))
            }
            Err(mpsc::error::TrySendError::Closed(_)) => None,
        }
    }

    fn waiting(&self) -> usize {
        self.jobs.max_capacity() - self.jobs.capacity()
    }

    fn eta(&self) -> Duration {
        self.shared.pace().eta(self.waiting())
    }

    fn show(&self) {
        self.shared.show(self.waiting());
    }

    /// A place for a request, unless too much waits already.
    fn admit(&self, bytes: usize) -> Result<Place, TooMuch> {
        let shared = &self.shared;
        let waiting = self.waiting();
        if waiting >= shared.bounds.batch && self.eta() > shared.bounds.eta {
            return Err(TooMuch);
        }
        let before = shared.bytes.fetch_add(bytes, Ordering::Relaxed);
        let place = Place {
            shared: Arc::clone(shared),
            bytes,
        };
        // A refused place gives its bytes back by being dropped.
        if before > 0 && before + bytes > QUEUE_BYTES {
            return Err(TooMuch);
        }
        Ok(place)
    }

    /// The declining answer. Those who are told the same time do not come back all at once: a
    /// byte that nobody chose spreads them over half of it.
    fn overloaded(&self, salt: u8) -> NotaryError {
        self.shared.overloads.inc();
        let wait = self.eta().clamp(*RETRY_AFTER.start(), *RETRY_AFTER.end());
        let wait = wait.mul_f64(1.0 + 0.5 * f64::from(salt) / 255.0);
        NotaryError::Overloaded {
            retry_after_millis: wait.as_millis() as u64,
        }
    }
}

#[derive(Debug)]
struct TooMuch;

impl Queue {
    /// Takes note of how long a batch of this many requests took. A `full` one had no room for
    /// more.
    pub(crate) fn observe(&self, requests: usize, full: bool, took: Duration) {
        if requests == 0 {
            return;
        }
        let mut pace = self.shared.pace();
        pace.batch = Some(match pace.batch {
            None => took,
            Some(average) => average.mul_f64(1.0 - NEWEST) + took.mul_f64(NEWEST),
        });
        if full {
            pace.requests = pace.requests * (1.0 - NEWEST) + requests as f64 * NEWEST;
        }
        drop(pace);
        self.show();
    }

    /// Shows how much waits now.
    pub(crate) fn show(&self) {
        self.shared.show(self.jobs.len());
    }
}

impl Shared {
    fn pace(&self) -> std::sync::MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show(&self, waiting: usize) {
        self.length.set(waiting as i64);
        let eta = self.pace().eta(waiting);
        self.eta.set(eta.as_secs_f64().round() as i64);
    }
}

impl Pace {
    /// When a request is decided that comes after this many.
    fn eta(&self, waiting: usize) -> Duration {
        let batches = (waiting as f64 / self.requests).floor() + 1.0;
        self.batch
            .map_or(Duration::ZERO, |batch| batch.mul_f64(batches))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics() -> NotaryMetrics {
        NotaryMetrics::new(&quorate_runtime::Metrics::new())
    }

    #[test]
    fn the_expected_wait_follows_the_batches() {
        let bounds = Bounds {
            requests: 1_000,
            batch: 10,
            eta: Duration::from_secs(2),
        };
        let (handle, queue) = queue(bounds, &metrics());
        // Before anything was measured, only room counts.
        assert_eq!(handle.shared.pace().eta(1_000), Duration::ZERO);
        queue.observe(1, false, Duration::from_secs(1));
        let eta = |waiting| handle.shared.pace().eta(waiting);
        assert_eq!(eta(0), Duration::from_secs(1));
        assert_eq!(eta(9), Duration::from_secs(1));
        assert_eq!(eta(25), Duration::from_secs(3));
        // Batches that are full with fewer requests, because these have many states, and quicker.
        for _ in 0..100 {
            queue.observe(5, true, Duration::from_millis(500));
        }
        let eta = eta(25).as_secs_f64();
        assert!((2.4..=3.1).contains(&eta), "{eta}");
        // Nothing to do says nothing about the pace.
        queue.observe(0, false, Duration::from_secs(100));
        assert!(handle.shared.pace().eta(0) < Duration::from_secs(1));
    }

    #[test]
    fn room_for_bytes_is_bounded_and_given_back() {
        let bounds = Bounds {
            requests: 1_000,
            batch: 10,
            eta: Duration::from_secs(2),
        };
        let (handle, _queue) = queue(bounds, &metrics());
        let large = handle
            .admit(QUEUE_BYTES + 1)
            .expect("a single one is let in");
        assert!(handle.admit(1).is_err());
        drop(large);
        let most = handle.admit(QUEUE_BYTES - 1).unwrap();
        let last = handle.admit(1).unwrap();
        assert!(handle.admit(1).is_err());
        drop((most, last));
        assert_eq!(handle.shared.bytes.load(Ordering::Relaxed), 0);
    }
}
