//! Parties for the tests: a queue and an inbox in memory, over real sockets and real TLS.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::BoxFuture;
use quorate_identity::{
    CertificateAuthority, NodeKeys, SignatureScheme, TlsParty, UnixTime, X500Name,
};
use quorate_messaging::{
    BridgeState, Epoch, Handle, HostAndPort, Inbound, Incoming, Messaging, Options, OutboundQueue,
    Outgoing, QueueError, Refusal, Security,
};
use quorate_runtime::{Entropy, Tasks};
use tokio::sync::watch;

/// Longer than anything takes; a test that waits so long has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
pub(crate) const NOW: UnixTime = UnixTime(1_767_225_600);

static AUTHORITY: LazyLock<CertificateAuthority> = LazyLock::new(CertificateAuthority::development);

pub(crate) fn name(organisation: &str) -> X500Name {
    X500Name::new(organisation, "Osaka", "JP").unwrap()
}

pub(crate) fn keys(name: &X500Name) -> NodeKeys {
    NodeKeys::generate(&AUTHORITY, name, SignatureScheme::Ed25519, NOW).unwrap()
}

pub(crate) fn security(keys: &NodeKeys) -> Security {
    Security::of_node(keys, Arc::new(|| NOW))
}

pub(crate) fn localhost() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

/// An address that nobody listens on.
pub(crate) fn free_address() -> SocketAddr {
    let listener = std::net::TcpListener::bind(localhost()).unwrap();
    listener.local_addr().unwrap()
}

/// Waits until the condition holds.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// One peer's queue.
#[derive(Default)]
struct Outbox {
    next: u64,
    messages: BTreeMap<u64, Arc<[u8]>>,
    reports: Vec<u64>,
    fetched: u64,
}

/// Outbound queues in memory. Settled messages are deleted, as a database does.
pub(crate) struct Queue {
    pub(crate) epoch: Mutex<Epoch>,
    outboxes: Mutex<BTreeMap<X500Name, Outbox>>,
    pub(crate) failing: Mutex<bool>,
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            epoch: Mutex::new([7; 16]),
            outboxes: Mutex::default(),
            failing: Mutex::default(),
        }
    }
}

impl Queue {
    pub(crate) fn put(&self, peer: &X500Name, body: Vec<u8>) -> u64 {
        let mut outboxes = self.outboxes.lock().unwrap();
        let outbox = outboxes.entry(peer.clone()).or_default();
        outbox.next += 1;
        let sequence = outbox.next;
        outbox.messages.insert(sequence, body.into());
        sequence
    }

    pub(crate) fn replace(&self, peer: &X500Name, sequence: u64, body: Vec<u8>) {
        self.outboxes
            .lock()
            .unwrap()
            .get_mut(peer)
            .unwrap()
            .messages
            .insert(sequence, body.into());
    }

    pub(crate) fn left(&self, peer: &X500Name) -> usize {
        self.outboxes
            .lock()
            .unwrap()
            .get(peer)
            .map_or(0, |outbox| outbox.messages.len())
    }

    pub(crate) fn reports(&self, peer: &X500Name) -> Vec<u64> {
        self.outboxes
            .lock()
            .unwrap()
            .get(peer)
            .map(|outbox| outbox.reports.clone())
            .unwrap_or_default()
    }
}

impl OutboundQueue for Queue {
    fn fetch(
        &self,
        peer: &X500Name,
        after: u64,
        limit: usize,
    ) -> BoxFuture<'_, Result<(Epoch, Vec<Outgoing>), QueueError>> {
        let peer = peer.clone();
        async move {
            if *self.failing.lock().unwrap() {
                return Err(QueueError::new("the database is away"));
            }
            let epoch = *self.epoch.lock().unwrap();
            let outboxes = self.outboxes.lock().unwrap();
            let messages = outboxes.get(&peer).map(|outbox| {
                let next = outbox.messages.range(after + 1..).take(limit);
                next.map(|(sequence, body)| Outgoing {
                    sequence: *sequence,
                    body: body.clone(),
                })
                .collect()
            });
            Ok((epoch, messages.unwrap_or_default()))
        }
        .boxed()
    }

    fn settled(&self, peer: &X500Name, up_to: u64) -> BoxFuture<'_, Result<(), QueueError>> {
        let peer = peer.clone();
        async move {
            if *self.failing.lock().unwrap() {
                return Err(QueueError::new("the database is away"));
            }
            let mut outboxes = self.outboxes.lock().unwrap();
            let outbox = outboxes
                .get_mut(&peer)
                .expect("only what was fetched is settled");
            outbox.reports.push(up_to);
            outbox.messages = outbox.messages.split_off(&(up_to + 1));
            Ok(())
        }
        .boxed()
    }
}

/// A message as the inbox saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) from: X500Name,
    pub(crate) epoch: Epoch,
    pub(crate) sequence: u64,
    pub(crate) body: Vec<u8>,
}

/// An inbox in memory that drops repetitions as a node does, and can be made to fail or to wait.
pub(crate) struct Inbox {
    /// Without repetitions.
    seen: Mutex<Vec<Seen>>,
    marks: Mutex<BTreeMap<(X500Name, Epoch), u64>>,
    pub(crate) repeated: Mutex<u64>,
    refusing: Mutex<Option<Refusal>>,
    /// Refuses every batch with this message.
    bad: Mutex<Option<u64>>,
    gate: watch::Sender<bool>,
    waiting: AtomicUsize,
}

impl Default for Inbox {
    fn default() -> Self {
        Self {
            seen: Mutex::default(),
            marks: Mutex::default(),
            repeated: Mutex::default(),
            refusing: Mutex::default(),
            bad: Mutex::default(),
            gate: watch::Sender::new(true),
            waiting: AtomicUsize::new(0),
        }
    }
}

impl Inbox {
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub(crate) fn count(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    pub(crate) fn count_from(&self, peer: &X500Name) -> usize {
        self.seen
            .lock()
            .unwrap()
            .iter()
            .filter(|seen| seen.from == *peer)
            .count()
    }

    pub(crate) fn sequences(&self) -> Vec<u64> {
        self.seen
            .lock()
            .unwrap()
            .iter()
            .map(|seen| seen.sequence)
            .collect()
    }

    pub(crate) fn refuse(&self, refusal: Option<Refusal>) {
        *self.refusing.lock().unwrap() = refusal;
    }

    pub(crate) fn refuse_message(&self, sequence: Option<u64>) {
        *self.bad.lock().unwrap() = sequence;
    }

    /// Deliveries that wait at the gate.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    /// While closed, deliveries wait.
    pub(crate) fn open_gate(&self, open: bool) {
        self.gate.send_replace(open);
    }
}

impl Inbound for Inbox {
    fn deliver(
        &self,
        from: X500Name,
        epoch: Epoch,
        batch: Vec<Incoming>,
    ) -> BoxFuture<'_, Result<(), Refusal>> {
        async move {
            self.waiting.fetch_add(1, Ordering::SeqCst);
            let mut gate = self.gate.subscribe();
            gate.wait_for(|open| *open)
                .await
                .expect("the sender lives as long as the inbox");
            self.waiting.fetch_sub(1, Ordering::SeqCst);
            if let Some(refusal) = self.refusing.lock().unwrap().clone() {
                return Err(refusal);
            }
            let bad = *self.bad.lock().unwrap();
            if batch.iter().any(|message| Some(message.sequence) == bad) {
                return Err(Refusal::permanent("it is nonsense"));
            }
            let mut marks = self.marks.lock().unwrap();
            let mark = marks.entry((from.clone(), epoch)).or_default();
            for Incoming { sequence, body } in batch {
                if sequence <= *mark {
                    *self.repeated.lock().unwrap() += 1;
                    continue;
                }
                assert_eq!(
                    sequence,
                    *mark + 1,
                    "a message of {from} was lost or overtaken"
                );
                *mark = sequence;
                self.seen.lock().unwrap().push(Seen {
                    from: from.clone(),
                    epoch,
                    sequence,
                    body,
                });
            }
            Ok(())
        }
        .boxed()
    }
}

/// A party: what survives a restart, and the running service.
pub(crate) struct Party {
    pub(crate) name: X500Name,
    pub(crate) keys: NodeKeys,
    pub(crate) queue: Arc<Queue>,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) address: SocketAddr,
    pub(crate) handle: Handle,
    pub(crate) tasks: Tasks,
    pub(crate) options: Options,
    /// Where it stands behind a firewall: what it recognises bridges by.
    link: Option<Option<TlsParty>>,
}

impl Party {
    pub(crate) fn start(organisation: &str) -> Self {
        Self::start_with(organisation, |_| {})
    }

    pub(crate) fn start_with(organisation: &str, change: impl FnOnce(&mut Options)) -> Self {
        Self::start_linked(organisation, None, change)
    }

    /// Behind a firewall. Without `link`, bridges have a copy of its key.
    pub(crate) fn start_behind(organisation: &str, link: Option<TlsParty>) -> Self {
        Self::start_linked(organisation, Some(link), |_| {})
    }

    fn start_linked(
        organisation: &str,
        link: Option<Option<TlsParty>>,
        change: impl FnOnce(&mut Options),
    ) -> Self {
        let name = name(organisation);
        let mut options = Options::new(name.clone(), localhost());
        options.retry_min = Duration::from_millis(200);
        change(&mut options);
        let (queue, inbox, keys) = (Arc::default(), Arc::default(), keys(&name));
        let (tasks, handle) = run(&options, &keys, &link, &inbox, &queue);
        Self {
            name,
            keys,
            queue,
            inbox,
            address: handle.address(),
            handle,
            tasks,
            options,
            link,
        }
    }

    /// Ends the service without any goodbye, as a killed process does.
    pub(crate) async fn kill(&self) {
        self.tasks.stop(Duration::ZERO).await;
    }

    /// Starts again with what has survived, on the same port.
    pub(crate) fn restart(&mut self) {
        self.options.listen = self.address;
        (self.tasks, self.handle) = run(
            &self.options,
            &self.keys,
            &self.link,
            &self.inbox,
            &self.queue,
        );
    }

    pub(crate) fn knows(&self, other: &Party) {
        self.handle
            .set_addresses(&other.name, vec![other.address.into()]);
    }

    pub(crate) fn knows_at(&self, other: &X500Name, addresses: &[SocketAddr]) {
        self.handle.set_addresses(
            other,
            addresses.iter().copied().map(HostAndPort::from).collect(),
        );
    }

    pub(crate) fn send(&self, to: &X500Name, body: Vec<u8>) -> u64 {
        let sequence = self.queue.put(to, body);
        self.handle.notify(to);
        sequence
    }

    pub(crate) fn send_many(&self, to: &X500Name, count: usize) {
        for _ in 0..count {
            self.queue.put(to, vec![b'x'; 100]);
        }
        self.handle.notify(to);
    }

    /// Waits until everything sent to this party has been accepted and reported.
    pub(crate) async fn settled(&self, to: &X500Name) {
        until("everything is settled", || async {
            self.queue.left(to) == 0
        })
        .await;
    }

    pub(crate) fn bridge(&self, to: &X500Name) -> BridgeState {
        self.handle
            .peer_status(to)
            .map(|status| status.bridge)
            .unwrap_or_default()
    }

    pub(crate) fn last_error(&self, to: &X500Name) -> String {
        self.handle
            .peer_status(to)
            .and_then(|status| status.last_error)
            .unwrap_or_default()
    }

    pub(crate) async fn until_bridge(
        &self,
        to: &X500Name,
        what: &str,
        mut wanted: impl FnMut(BridgeState) -> bool,
    ) {
        let deadline = Instant::now() + PATIENCE;
        while !wanted(self.bridge(to)) {
            assert!(
                Instant::now() < deadline,
                "{what}: {:?}, {}",
                self.bridge(to),
                self.last_error(to)
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

fn run(
    options: &Options,
    keys: &NodeKeys,
    link: &Option<Option<TlsParty>>,
    inbox: &Arc<Inbox>,
    queue: &Arc<Queue>,
) -> (Tasks, Handle) {
    let tasks = Tasks::new("");
    let mut security = security(keys);
    if let Some(link) = link {
        security = security.behind_firewall(link.clone());
    }
    let service = Messaging::bind(
        options.clone(),
        security,
        inbox.clone(),
        queue.clone(),
        Entropy::seeded(1),
    )
    .unwrap();
    let handle = service.start(&tasks);
    (tasks, handle)
}
