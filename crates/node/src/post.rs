//! The post office: between the store's queues, messaging, and those who read messages.
//!
//! Outgoing: what a commit has queued is kept here in memory for its bridge, so that a healthy
//! connection never reads the database; whatever is not here is read from there. Incoming: a
//! batch is written to the inbox in one commit, and only then accepted and passed on, to the
//! flows or, on a notary, to the notary service. Messages to ourselves take the same way without
//! a connection.
//!
//! Each message is passed on once in the post's life. So nothing may be received, from ourselves
//! neither, before the inbox has been taken up; and if it is not known whether a batch was written,
//! this instance must stop: repeated, it would count as received, and nobody would read it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockWriteGuard};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use quorate_flow::{Envelope, InboxId, SessionMessage, standard};
use quorate_identity::X500Name;
use quorate_messaging::{
    BridgeState, Epoch, Handle, Inbound, Incoming, OutboundQueue, Outgoing, PeerStatus, QueueError,
    Refusal,
};
use quorate_notary::Handle as Desk;
use quorate_runtime::tasks::chain;
use quorate_runtime::{Shutdown, Tasks};
use quorate_storage::{CommitError, Queued, Received, Reception, Store, UnitOfWork, Writer};
use tokio::sync::{mpsc, watch};

use crate::driver::Flows;
use crate::journeys::Journeys;
use crate::metrics::PostMetrics;
use crate::network_map::NetworkSnapshot;

/// Messages to one peer that are kept in memory; beyond it they are read from the database.
const MAX_TAIL: usize = 2_048;

/// Bytes of messages to one peer that are kept in memory.
const MAX_TAIL_BYTES: usize = 16 * 1024 * 1024;

/// Bytes of messages to all peers that are kept in memory.
const MAX_TAILS_BYTES: usize = 4 * MAX_TAIL_BYTES;

/// Inbox messages that are read at a time when an instance becomes active.
const INBOX_PAGE: u32 = 1_000;

/// Messages to ourselves that are moved in one commit.
const LOOPBACK_BATCH: usize = 256;

/// How often the gauges of the queues are brought up to date.
const MEASURE_EVERY: Duration = Duration::from_secs(1);

/// Pause before messages to ourselves are tried again.
const LOOPBACK_PAUSE: Duration = Duration::from_secs(1);

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Post {
    inner: Arc<Inner>,
}

/// What a post office needs.
pub(crate) struct Parts {
    pub(crate) store: Store,
    pub(crate) writer: Writer,
    /// Who reads messages.
    pub(crate) flows: Flows,
    /// Who reads requests to our notary.
    pub(crate) desk: Option<Desk>,
    pub(crate) network: watch::Receiver<Arc<NetworkSnapshot>>,
    /// The names of the node.
    pub(crate) own: BTreeSet<X500Name>,
    pub(crate) metrics: PostMetrics,
    pub(crate) journeys: Journeys,
}

struct Inner {
    store: Store,
    writer: Writer,
    flows: Flows,
    desk: Option<Desk>,
    network: watch::Receiver<Arc<NetworkSnapshot>>,
    /// Names under which messages reach us: the legal name and the notary service's.
    own: BTreeSet<X500Name>,
    /// Present while the post is open. Messaging holds the post in turn.
    messaging: RwLock<Option<Handle>>,
    tails: Mutex<Tails>,
    loopback: mpsc::Sender<()>,
    metrics: PostMetrics,
    journeys: Journeys,
    /// Of everything that only the holder of the lease runs.
    shutdown: Shutdown,
}

/// What is kept of the peers' queues.
#[derive(Default)]
struct Tails {
    of: BTreeMap<X500Name, Tail>,
    bytes: usize,
}

/// The newest messages of one peer's queue, without gaps from the first one that is kept.
#[derive(Default)]
struct Tail {
    epoch: Epoch,
    messages: BTreeMap<u64, Arc<[u8]>>,
    bytes: usize,
    depth: Depth,
}

/// How long a peer's queue is, for whoever watches it.
#[derive(Default)]
struct Depth {
    /// The last message that was queued, and the last that the peer has accepted.
    queued: u64,
    settled: u64,
    /// Since when nothing has been accepted although something waits.
    since: Option<Instant>,
}

impl Depth {
    fn length(&self) -> u64 {
        self.queued.saturating_sub(self.settled)
    }

    fn queued(&mut self, sequence: u64) {
        self.queued = self.queued.max(sequence);
        // A message may be heard of after the peer has accepted it.
        if self.length() > 0 {
            self.since.get_or_insert_with(Instant::now);
        }
    }

    fn settled(&mut self, up_to: u64) {
        self.settled = self.settled.max(up_to);
        // Counted anew: each message's own time is not kept.
        self.since = (self.length() > 0).then(Instant::now);
    }
}

impl Post {
    /// A post office with tasks in `tasks`.
    pub(crate) fn new(parts: Parts, tasks: &Tasks) -> Self {
        let Parts {
            store,
            writer,
            flows,
            desk,
            network,
            own,
            metrics,
            journeys,
        } = parts;
        let (loopback, wake) = mpsc::channel(1);
        let shutdown = tasks.shutdown().clone();
        let post = Self {
            inner: Arc::new(Inner {
                store,
                writer,
                flows,
                desk,
                network,
                own,
                messaging: RwLock::new(None),
                tails: Mutex::default(),
                loopback,
                metrics,
                journeys,
                shutdown: shutdown.clone(),
            }),
        };
        let (watched, stopping) = (post.clone(), shutdown.clone());
        tasks.spawn("queue lengths", async move {
            tokio::select! {
                () = stopping.requested() => {}
                () = watched.measure() => {}
            }
        });
        let worker = post.clone();
        tasks.spawn("messages to ourselves", async move {
            tokio::select! {
                () = shutdown.requested() => {}
                () = worker.move_own_messages(wake) => {}
            }
            // Also where the start was broken off, and nobody has the post to close it.
            worker.close();
        });
        post
    }

    /// From now on messages leave through `messaging`, those to ourselves too; and those that wait
    /// in the store. To be called when the inbox has been taken up.
    pub(crate) async fn open(&self, messaging: Handle) -> Result<(), quorate_storage::Error> {
        // First of all, so that a message is either seen in the store or wakes its bridge.
        *self.messaging_slot() = Some(messaging);
        let waiting = self.inner.store.outbox_peers().await?;
        for queue in waiting.into_iter().filter(|queue| queue.waiting > 0) {
            {
                let mut tails = self.tails();
                let depth = &mut tails.of.entry(queue.peer.clone()).or_default().depth;
                depth.queued(queue.last_sequence);
                let settled = queue.last_sequence - queue.waiting.min(queue.last_sequence);
                depth.settled = depth.settled.max(settled);
            }
            self.wake(&queue.peer);
        }
        Ok(())
    }

    /// Keeps the gauges of the queues up to date.
    async fn measure(self) {
        loop {
            tokio::time::sleep(MEASURE_EVERY).await;
            let bridges = self.messaging().and_then(|messaging| messaging.bridges());
            self.inner.metrics.bridges(bridges.unwrap_or_default());
            for (peer, tail) in &self.tails().of {
                let age = tail.depth.since.map(|since| since.elapsed());
                let connected = self
                    .link(peer)
                    .is_some_and(|link| matches!(link.bridge, BridgeState::Connected(_)));
                self.inner
                    .metrics
                    .queue(peer.as_str(), tail.depth.length(), age, connected);
            }
        }
    }

    /// Passes on what lay in the inbox when this instance became active.
    pub(crate) async fn take_up_inbox(&self) -> Result<usize, quorate_storage::Error> {
        let (mut count, mut after) = (0, None);
        loop {
            let page = self.inner.store.inbox(after.as_ref(), INBOX_PAGE).await?;
            let Some(last) = page.last() else {
                return Ok(count);
            };
            after = Some(last.id.clone());
            count += page.len();
            let mut messages = Vec::with_capacity(page.len());
            for message in page {
                match Envelope::decode(&message.envelope) {
                    Ok(envelope) => messages.push((message.id, envelope)),
                    Err(error) => tracing::error!(
                        peer = %message.id.peer,
                        sequence = message.id.sequence,
                        error = %chain(&error),
                        "a message in the inbox cannot be read and stays there; \
                         was this database written by a newer version?"
                    ),
                }
            }
            self.pass_on(messages).await;
        }
    }

    /// Messages that a commit has put into their queues.
    pub(crate) fn enqueued(&self, queued: Vec<Queued>) {
        let mut peers = BTreeSet::new();
        self.inner.journeys.leave(&queued);
        {
            let mut tails = self.tails();
            for message in queued {
                peers.insert(message.peer.clone());
                tails.push(message);
            }
        }
        for peer in peers {
            self.wake(&peer);
        }
    }

    /// Lets go of messaging, which has stopped.
    pub(crate) fn close(&self) {
        *self.messaging_slot() = None;
    }

    fn messaging_slot(&self) -> RwLockWriteGuard<'_, Option<Handle>> {
        let slot = self.inner.messaging.write();
        slot.unwrap_or_else(PoisonError::into_inner)
    }

    fn messaging(&self) -> Option<Handle> {
        let slot = self.inner.messaging.read();
        slot.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How the connection to a peer stands.
    pub(crate) fn link(&self, peer: &X500Name) -> Option<PeerStatus> {
        self.messaging()?.peer_status(peer)
    }

    fn wake(&self, peer: &X500Name) {
        let Some(messaging) = self.messaging() else {
            // It waits in the store until the post is opened.
            return;
        };
        if self.inner.own.contains(peer) {
            // One wake-up in the channel is enough.
            let _ = self.inner.loopback.try_send(());
        } else {
            messaging.notify(peer);
        }
    }

    fn tails(&self) -> MutexGuard<'_, Tails> {
        self.inner
            .tails
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands messages to those who read them.
    async fn pass_on(&self, messages: Vec<(InboxId, Envelope)>) {
        let mut for_flows = Vec::with_capacity(messages.len());
        for (inbox, envelope) in messages {
            match &self.inner.desk {
                Some(desk) if is_notarisation(&envelope) => desk.submit(inbox, envelope).await,
                _ => for_flows.push((inbox, envelope)),
            }
        }
        if !for_flows.is_empty() {
            self.inner.flows.deliver(for_flows).await;
        }
    }

    /// Writes messages to the inbox and passes on those that are new.
    async fn receive(
        &self,
        received: Vec<Received>,
        envelopes: Vec<Envelope>,
        settled: Option<(X500Name, u64)>,
    ) -> Result<(), CommitError> {
        let mut unit = UnitOfWork::receive(received);
        unit.settled.extend(settled);
        let committed = match self.inner.writer.commit(unit).await {
            Err(error @ CommitError::Unknown(_)) => {
                self.inner.shutdown.request(format!(
                    "this instance does not know which messages it has received: {}",
                    chain(&error)
                ));
                return Err(error);
            }
            outcome => outcome?,
        };
        let new = committed
            .received
            .into_iter()
            .zip(envelopes)
            .filter_map(|(reception, envelope)| match reception {
                Reception::Accepted(inbox) => Some((inbox, envelope)),
                Reception::Duplicate => None,
            })
            .collect();
        self.pass_on(new).await;
        Ok(())
    }

    async fn move_own_messages(&self, mut wake: mpsc::Receiver<()>) {
        while wake.recv().await.is_some() {
            for own in &self.inner.own {
                while let Err(error) = self.move_queue_of(own).await {
                    tracing::warn!(error, "messages to ourselves wait");
                    tokio::time::sleep(LOOPBACK_PAUSE).await;
                }
            }
        }
    }

    async fn move_queue_of(&self, own: &X500Name) -> Result<(), String> {
        let mut after = 0;
        loop {
            let (epoch, batch) = self
                .next_messages(own, after, LOOPBACK_BATCH)
                .await
                .map_err(|error| chain(&error))?;
            let Some(last) = batch.last().map(|message| message.sequence) else {
                return Ok(());
            };
            let mut received = Vec::with_capacity(batch.len());
            let mut envelopes = Vec::with_capacity(batch.len());
            for message in batch {
                let envelope = Envelope::decode(&message.body).map_err(|error| chain(&error))?;
                envelopes.push(envelope);
                received.push(Received {
                    peer: own.clone(),
                    epoch,
                    sequence: message.sequence,
                    envelope: message.body,
                });
            }
            self.receive(received, envelopes, Some((own.clone(), last)))
                .await
                .map_err(|error| chain(&error))?;
            self.forget(own, last);
            after = last;
        }
    }

    async fn next_messages(
        &self,
        peer: &X500Name,
        after: u64,
        limit: usize,
    ) -> Result<(Epoch, Vec<Outgoing>), quorate_storage::Error> {
        if let Some(found) = self
            .tails()
            .of
            .get(peer)
            .and_then(|tail| tail.after(after, limit))
        {
            return Ok(found);
        }
        let limit = u32::try_from(limit).unwrap_or(u32::MAX);
        let stored = self.inner.store.outbox(peer, after, limit).await?;
        let messages = stored
            .messages
            .into_iter()
            .map(|(sequence, body)| Outgoing { sequence, body })
            .collect();
        Ok((stored.epoch.unwrap_or_default(), messages))
    }

    fn forget(&self, peer: &X500Name, up_to: u64) {
        self.inner.journeys.arrived(peer, up_to);
        self.tails().forget(peer, up_to);
    }
}

impl Tails {
    fn push(&mut self, message: Queued) {
        let tail = self.of.entry(message.peer).or_default();
        let before = tail.bytes;
        tail.push(message.epoch, message.sequence, message.envelope);
        self.bytes = self.bytes - before + tail.bytes;
        while self.bytes > MAX_TAILS_BYTES {
            // That of a peer which has been away for long, most likely.
            let Some(largest) = self.of.values_mut().max_by_key(|tail| tail.bytes) else {
                return;
            };
            self.bytes -= std::mem::take(&mut largest.bytes);
            largest.messages.clear();
        }
    }

    fn forget(&mut self, peer: &X500Name, up_to: u64) {
        if let Some(tail) = self.of.get_mut(peer) {
            let before = tail.bytes;
            tail.forget(up_to);
            self.bytes = self.bytes - before + tail.bytes;
        }
    }
}

impl Tail {
    fn push(&mut self, epoch: Epoch, sequence: u64, body: Arc<[u8]>) {
        if self.epoch != epoch {
            *self = Self {
                epoch,
                depth: std::mem::take(&mut self.depth),
                ..Self::default()
            };
        }
        self.depth.queued(sequence);
        self.bytes += body.len();
        self.messages.insert(sequence, body);
        while self.messages.len() > MAX_TAIL || self.bytes > MAX_TAIL_BYTES {
            match self.messages.pop_first() {
                Some((_, body)) => self.bytes -= body.len(),
                None => return,
            }
        }
    }

    /// Consecutive messages after `after`; `None` if the store must be asked: the first of them is
    /// not here, or one is missing before others that are.
    fn after(&self, after: u64, limit: usize) -> Option<(Epoch, Vec<Outgoing>)> {
        let mut expected = after + 1;
        let found: Vec<Outgoing> = self
            .messages
            .range(expected..)
            .take(limit)
            .take_while(|(sequence, _)| {
                let consecutive = **sequence == expected;
                expected += 1;
                consecutive
            })
            .map(|(sequence, body)| Outgoing {
                sequence: *sequence,
                body: Arc::clone(body),
            })
            .collect();
        let complete = found.len() == limit || found.last()?.sequence == self.last()?;
        complete.then_some((self.epoch, found))
    }

    fn last(&self) -> Option<u64> {
        let (sequence, _) = self.messages.last_key_value()?;
        Some(*sequence)
    }

    fn forget(&mut self, up_to: u64) {
        self.depth.settled(up_to);
        let kept = self.messages.split_off(&(up_to + 1));
        let gone = std::mem::replace(&mut self.messages, kept);
        self.bytes -= gone.values().map(|body| body.len()).sum::<usize>();
    }
}

impl OutboundQueue for Post {
    fn fetch(
        &self,
        peer: &X500Name,
        after: u64,
        limit: usize,
    ) -> BoxFuture<'_, Result<(Epoch, Vec<Outgoing>), QueueError>> {
        let peer = peer.clone();
        Box::pin(async move {
            self.next_messages(&peer, after, limit)
                .await
                .map_err(|error| {
                    QueueError::caused(format!("the queue to {peer} cannot be read"), error)
                })
        })
    }

    fn settled(&self, peer: &X500Name, up_to: u64) -> BoxFuture<'_, Result<(), QueueError>> {
        let peer = peer.clone();
        Box::pin(async move {
            let unit = UnitOfWork::settle(peer.clone(), up_to);
            self.inner.writer.commit(unit).await.map_err(|error| {
                QueueError::caused(format!("the queue to {peer} cannot be shortened"), error)
            })?;
            self.forget(&peer, up_to);
            Ok(())
        })
    }
}

impl Inbound for Post {
    fn deliver(
        &self,
        from: X500Name,
        epoch: Epoch,
        batch: Vec<Incoming>,
    ) -> BoxFuture<'_, Result<(), Refusal>> {
        Box::pin(async move {
            let timer = self.inner.metrics.receive.start_timer();
            self.inner.metrics.received.inc_by(batch.len() as u64);
            let mut received = Vec::with_capacity(batch.len());
            let mut envelopes = Vec::with_capacity(batch.len());
            {
                let network = self.inner.network.borrow();
                for message in batch {
                    let envelope = Envelope::decode(&message.body)
                        .map_err(|error| Refusal::permanent(chain(&error)))?;
                    check_addresses(&envelope, &from, &self.inner.own, &network)?;
                    received.push(Received {
                        peer: from.clone(),
                        epoch,
                        sequence: message.sequence,
                        envelope: message.body.into(),
                    });
                    envelopes.push(envelope);
                }
            }
            let arrivals = self.inner.journeys.arrivals(&envelopes);
            let outcome = self.receive(received, envelopes, None).await;
            if outcome.is_ok() {
                self.inner.journeys.taken(arrivals);
            }
            timer.observe_duration();
            outcome.map_err(|error| match error {
                    CommitError::Refused(_) => Refusal::permanent(chain(&error)),
                    // What is wrong with our database is not the peer's business.
                    _ => {
                        tracing::warn!(peer = %from, error = %chain(&error), "messages were not taken; they come again");
                        Refusal::later("the receiving node could not store the message just now")
                    }
                })
        })
    }
}

/// A peer may speak for itself and for the services that the network map says it serves.
fn check_addresses(
    envelope: &Envelope,
    from: &X500Name,
    own: &BTreeSet<X500Name>,
    network: &NetworkSnapshot,
) -> Result<(), Refusal> {
    if envelope.sender != *from && !network.serves(from, &envelope.sender) {
        return Err(Refusal::permanent(format!(
            "the message says that it is from {}, but {from} sent it and does not serve that \
             identity in the network map",
            envelope.sender
        )));
    }
    if !own.contains(&envelope.recipient) {
        return Err(Refusal::permanent(format!(
            "the message is for {}, whom this node does not serve",
            envelope.recipient
        )));
    }
    Ok(())
}

fn is_notarisation(envelope: &Envelope) -> bool {
    envelope.from_initiator
        && matches!(
            &envelope.body,
            SessionMessage::Initiate { flow, first: Some(_), .. } if flow == standard::NOTARISE
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCH: Epoch = [7; 16];

    fn tail(sequences: &[u64]) -> Tail {
        let mut tail = Tail::default();
        for sequence in sequences {
            tail.push(EPOCH, *sequence, Arc::from([0; 8].as_slice()));
        }
        tail
    }

    fn after(tail: &Tail, after: u64, limit: usize) -> Option<Vec<u64>> {
        let (epoch, messages) = tail.after(after, limit)?;
        assert_eq!(epoch, EPOCH);
        Some(messages.iter().map(|message| message.sequence).collect())
    }

    #[test]
    fn a_tail_answers_for_the_store_only_where_it_is_whole() {
        // Commits are heard of in any order.
        let whole = tail(&[5, 4, 6]);
        assert_eq!(after(&whole, 3, 10), Some(vec![4, 5, 6]));
        assert_eq!(after(&whole, 3, 2), Some(vec![4, 5]));
        assert_eq!(after(&whole, 6, 10), None);
        assert_eq!(after(&whole, 2, 10), None, "3 may lie in the store");
        // A short answer says that the queue is empty behind it: nobody would fetch 5.
        let gap = tail(&[4, 6]);
        assert_eq!(after(&gap, 3, 10), None);
        assert_eq!(after(&gap, 3, 1), Some(vec![4]));
        assert_eq!(after(&gap, 5, 10), Some(vec![6]));
    }

    #[test]
    fn a_tail_keeps_the_newest_and_forgets_what_was_accepted() {
        let limit = MAX_TAIL as u64;
        let mut full = tail(&(1..=limit + 3).collect::<Vec<_>>());
        assert_eq!(full.messages.len(), MAX_TAIL);
        assert_eq!(
            after(&full, 0, 10),
            None,
            "the oldest are in the store only"
        );
        assert_eq!(after(&full, 3, 2), Some(vec![4, 5]));
        full.forget(limit + 2);
        assert_eq!(after(&full, limit + 2, 10), Some(vec![limit + 3]));
        assert_eq!(full.bytes, 8);
        // A queue that counts anew has nothing to do with the former one.
        full.push([8; 16], 1, Arc::from([0; 8].as_slice()));
        assert_eq!(full.messages.len(), 1);
    }

    #[test]
    fn tails_of_many_peers_together_stay_within_their_bound() {
        let mut tails = Tails::default();
        let peer =
            |number: usize| X500Name::new(&format!("Party {number}"), "London", "GB").unwrap();
        let body: Arc<[u8]> = Arc::from(vec![0; 1024 * 1024]);
        let megabytes = 2 * MAX_TAILS_BYTES / body.len();
        for number in 0..megabytes {
            // One peer has much more than the others.
            let peer = peer(if number % 4 == 0 { number } else { 1 });
            tails.push(Queued {
                peer,
                sequence: number as u64 + 1,
                epoch: EPOCH,
                envelope: Arc::clone(&body),
            });
            assert!(tails.bytes <= MAX_TAILS_BYTES);
            let sum: usize = tails.of.values().map(|tail| tail.bytes).sum();
            assert_eq!(tails.bytes, sum);
        }
        // The small ones were not sacrificed.
        assert_eq!(tails.of[&peer(0)].messages.len(), 1);
        tails.forget(&peer(0), 1);
        assert_eq!(tails.of[&peer(0)].messages.len(), 0);
        let sum: usize = tails.of.values().map(|tail| tail.bytes).sum();
        assert_eq!(tails.bytes, sum);
    }
}
