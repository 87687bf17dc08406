//! One task per peer that we send to.
//!
//! A bridge sleeps until its queue has something. Then it dials the peer's addresses in turn, and has the queue carried
//! over the connection ([`Carriage`]). Whatever goes wrong ends the connection; the next one begins behind the last
//! accepted message, so nothing is lost and nothing is overtaken, and some messages may be sent twice.
//!
//! Cancelling the task (which only a cut-off shutdown does) loses at most the report of what was accepted.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use quorate_runtime::Shutdown;
use quorate_runtime::tasks::chain;
use tokio::time::{Instant, sleep, timeout};

use crate::carriage::{Carriage, Ending};
use crate::dial::{DialError, Link, dial};
use crate::exchange::{Epoch, QueueError};
use crate::options::HostAndPort;
use crate::service::{Peer, Shared};
use crate::status::{BridgeState, Change, Direction};

/// How long an attempt to connect counts against the number of simultaneous ones, and keeps the peer's next address
/// waiting.
const DIALING_SHARE: Duration = Duration::from_millis(500);

pub(crate) struct Bridge {
    pub(crate) shared: Arc<Shared>,
    pub(crate) peer: Arc<Peer>,
    pub(crate) shutdown: Shutdown,
    /// Of the messages carried so far.
    pub(crate) epoch: Option<Epoch>,
    /// The peer has accepted everything up to here.
    pub(crate) accepted_up_to: u64,
    /// The queue knows that it has.
    pub(crate) reported_up_to: u64,
    /// Index of the address to be tried next.
    next_address: usize,
    absence: Absence,
    /// The refused message that the log has already told of.
    complained_of: Option<u64>,
}

/// What came of trying all addresses.
enum Round {
    Connected(Box<Link>, HostAndPort),
    NoAddress,
    Failed,
    Stopped,
}

impl Bridge {
    pub(crate) fn new(shared: Arc<Shared>, peer: Arc<Peer>, shutdown: Shutdown) -> Self {
        Self {
            shared,
            peer,
            shutdown,
            epoch: None,
            accepted_up_to: 0,
            reported_up_to: 0,
            next_address: 0,
            absence: Absence::default(),
            complained_of: None,
        }
    }

    pub(crate) async fn run(mut self) {
        loop {
            self.show(BridgeState::Idle);
            tokio::select! {
                biased;
                () = self.shutdown.requested() => break,
                () = self.peer.wake.notified() => {}
            }
            self.work().await;
            if self.shutdown.is_requested() {
                break;
            }
        }
        self.show(BridgeState::Stopped);
    }

    /// Connects and carries until there is nothing to do, or we are stopping.
    async fn work(&mut self) {
        loop {
            let pause = match self.round().await {
                Round::Stopped => return,
                Round::NoAddress => {
                    self.show(BridgeState::NoAddress);
                    self.explain(format!(
                        "no address of {} is known; is its node info missing?",
                        self.peer.name
                    ));
                    tokio::select! {
                        biased;
                        () = self.shutdown.requested() => return,
                        () = self.peer.readdressed.notified() => continue,
                    }
                }
                Round::Failed => self.absence.pause(&self.shared, false),
                Round::Connected(link, address) => match self.connection(*link, address).await {
                    Some(pause) => pause,
                    None if self.shutdown.is_requested() || self.is_idle() => return,
                    None => continue,
                },
            };
            tokio::select! {
                biased;
                () = self.shutdown.requested() => return,
                () = self.peer.readdressed.notified() => {}
                () = sleep(pause) => {}
            }
        }
    }

    /// One connection from its beginning to its end, and how long to pause after it.
    async fn connection(&mut self, link: Link, address: HostAndPort) -> Option<Duration> {
        self.show(BridgeState::Connected(address.clone()));
        self.shared.publish(
            &self.peer.name,
            Direction::Outbound,
            Change::Connected(address),
        );
        let (began, accepted) = (Instant::now(), self.accepted_up_to);
        let ending = self.carry(link).await;
        self.peer.state().unsettled = 0;
        self.shared.publish(
            &self.peer.name,
            Direction::Outbound,
            Change::Disconnected(ending.to_string()),
        );
        self.report().await;
        // A connection that has served was a healthy one, and the peer may be found at its next address at once. One
        // that ends as soon as it has begun must not be repeated in a tight loop.
        let served = self.accepted_up_to != accepted;
        if served
            || (!matches!(ending, Ending::Refused(_))
                && began.elapsed() >= self.shared.options.retry_min)
        {
            self.absence = Absence::default();
        }
        match ending {
            Ending::Idle => {
                self.show(BridgeState::Idle);
                None
            }
            Ending::Stopped => None,
            Ending::Lost(_) | Ending::Silent => {
                self.explain(ending.to_string());
                self.show(BridgeState::Waiting);
                if self.absence.is_over() {
                    None
                } else {
                    Some(self.absence.pause(&self.shared, false))
                }
            }
            Ending::Refused(refused) => {
                let text = refused.describe(&self.peer);
                if refused.retry {
                    tracing::warn!(peer = %self.peer.name, "{text}");
                    self.show(BridgeState::Waiting);
                } else {
                    if self.complained_of.replace(refused.sequence) == Some(refused.sequence) {
                        tracing::debug!(peer = %self.peer.name, "{text}");
                    } else {
                        tracing::error!(peer = %self.peer.name, sequence = refused.sequence, "{text}");
                    }
                    self.show(BridgeState::Refused(refused.sequence));
                }
                self.explain(text);
                Some(self.absence.pause(&self.shared, !refused.retry))
            }
        }
    }

    /// Tries every address once, beginning with the one after the last that was tried. One that hangs, as that of a
    /// machine without power does, does not keep the others waiting until its time is up: whichever answers first is
    /// taken.
    async fn round(&mut self) -> Round {
        let addresses = self.peer.state().addresses.clone();
        if addresses.is_empty() {
            return Round::NoAddress;
        }
        let show = !matches!(self.peer.state().bridge, BridgeState::Refused(_));
        let (round, after) = self.race(&addresses, show).await;
        self.next_address = after;
        if matches!(round, Round::Failed) {
            self.show(BridgeState::Waiting);
        }
        round
    }

    /// The outcome of a round, and the address at which the next one begins.
    async fn race(&self, addresses: &[HostAndPort], show: bool) -> (Round, usize) {
        let first = self.next_address % addresses.len();
        let mut order = (0..addresses.len()).map(|turn| (first + turn) % addresses.len());
        let mut attempts = FuturesUnordered::new();
        loop {
            if let Some(index) = order.next() {
                let address = &addresses[index];
                attempts.push(async move { (index, self.dial(address, show).await) });
            }
            loop {
                let more = order.len() > 0;
                tokio::select! {
                    biased;
                    () = self.shutdown.requested() => return (Round::Stopped, first),
                    Some((index, dialled)) = attempts.next() => match dialled {
                        Ok(link) => {
                            let connected = Round::Connected(Box::new(link), addresses[index].clone());
                            return (connected, index + 1);
                        }
                        Err(error) => {
                            let address = &addresses[index];
                            tracing::debug!(peer = %self.peer.name, %address, "{}", chain(&error));
                            self.explain(chain(&error));
                            if more {
                                break;
                            }
                            if attempts.is_empty() {
                                return (Round::Failed, first);
                            }
                        }
                    },
                    () = sleep(DIALING_SHARE), if more => break,
                }
            }
        }
    }

    /// Tries one address. Only so many peers are dialled at once, so that after a failover of our own the handshakes do
    /// not drown the rest of the work; but an address that hangs gives its place away soon.
    async fn dial(&self, address: &HostAndPort, show: bool) -> Result<Link, DialError> {
        let place = self.shared.dialing.acquire().await;
        let place = place.expect("the semaphore is never closed");
        if show {
            self.show(BridgeState::Connecting(address.clone()));
        }
        let mut dialled = pin!(dial(&self.shared, &self.peer.name, address));
        match timeout(DIALING_SHARE, &mut dialled).await {
            Ok(dialled) => dialled,
            Err(_) => {
                drop(place);
                dialled.await
            }
        }
    }

    /// Sends what the queue has over one connection, until that ends.
    async fn carry(&mut self, link: Link) -> Ending {
        let shared = self.shared.clone();
        let mut carriage = Carriage::new(self, &*shared.queue, link);
        let ending = loop {
            if let Some(ending) = carriage.act().await {
                break ending;
            }
            let happening = carriage.next().await;
            if let Some(ending) = carriage.apply(happening) {
                break ending;
            }
        };
        carriage.leave(ending).await
    }

    /// Tells the queue what has been accepted, if it does not know. A failure is tried again with the next connection.
    async fn report(&mut self) {
        if self.reported_up_to >= self.accepted_up_to {
            return;
        }
        match self
            .shared
            .queue
            .settled(&self.peer.name, self.accepted_up_to)
            .await
        {
            Ok(()) => self.reported_up_to = self.accepted_up_to,
            Err(error) => self.queue_failed(&error),
        }
    }

    pub(crate) fn queue_failed(&self, error: &QueueError) {
        let text = format!("the queue to {}: {}", self.peer.name, chain(error));
        tracing::warn!(peer = %self.peer.name, "{text}");
        self.explain(text);
    }

    pub(crate) fn accepted(&mut self, sequence: u64) {
        self.accepted_up_to = sequence;
        self.peer.accepted.fetch_add(1, Ordering::Relaxed);
        let mut state = self.peer.state();
        state.accepted_up_to = sequence;
        state.last_error = None;
    }

    fn show(&self, bridge: BridgeState) {
        self.peer.state().bridge = bridge;
    }

    fn is_idle(&self) -> bool {
        self.peer.state().bridge == BridgeState::Idle
    }

    fn explain(&self, reason: String) {
        self.peer.state().last_error = Some(reason);
    }
}

/// How long it has not gone well, and so how long to pause.
#[derive(Debug, Default)]
struct Absence {
    since: Option<Instant>,
    doublings: u32,
}

impl Absence {
    fn is_over(&self) -> bool {
        self.since.is_none()
    }

    /// The next pause. `growing` says that quick repetition is pointless.
    fn pause(&mut self, shared: &Shared, growing: bool) -> Duration {
        let options = &shared.options;
        let since = *self.since.get_or_insert_with(Instant::now);
        if growing || since.elapsed() > options.retry_patience {
            self.doublings = self.doublings.saturating_add(1);
        }
        let factor = 1u32.checked_shl(self.doublings).unwrap_or(u32::MAX);
        shared.entropy.jitter(
            options
                .retry_min
                .saturating_mul(factor)
                .min(options.retry_max),
        )
    }
}
