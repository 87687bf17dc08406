//! How orderers talk to each other: `Cluster.Step` on both sides.
//!
//! A [`Transport`] knows, for every channel, who its consenters are. Outwards it carries consensus messages and forwarded
//! transactions; inwards ([`Transport::service`]) it recognises callers by the public key of their TLS certificate and
//! hands what they send to a [`Dispatch`]. What the bytes of a consensus message mean is the business of the channel;
//! which channels exist that of the registrar; accepting connections that of [`crate::listener`].
//!
//! Fabric's protocol has no answer to a forwarded transaction: its orderers verify before they forward, and the leader
//! believes them. Ours verifies as leader, and answers those who ask for it in the headers of the stream ([`ANSWERS`]), so
//! that a follower need not verify as well and its client hears what the leader says. Towards Fabric's orderers both sides
//! behave as Fabric's do.
//!
//! A connection leads to an address with a public key and serves all channels; on it, each channel has a stream for
//! consensus messages and one for transactions, opened when first needed. A thousand idle channels cost a thousand entries
//! in a table.

mod connection;
mod expiry;
mod service;
mod stream;
#[cfg(test)]
pub(crate) mod tests;
mod wire;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use quorate_fabric::envelope::RawEnvelope;
use quorate_fabric::proto::common::Status;
use quorate_identity::mutual_tls::{ClientTls, public_key};
use quorate_runtime::{Clock, Entropy, Tasks};
use tokio::time::Instant;

pub(crate) use connection::{Destination, Unconnected, dial};
pub use connection::{Link, RECONNECT_MAX, RECONNECT_MIN};
pub use expiry::track_expiry;
pub use service::{STRANGERS_MESSAGE_BYTES, StepService};

use crate::channel::SubmitError;
use crate::checks::Refusal;
use crate::grpc::StreamMetrics;
use crate::listener::go_duration;
use crate::metrics::{self, OrdererMetrics};
use crate::options;
use connection::{Connection, Dialler, LOG};
use stream::{Kind, Lane, SendError};

/// The header by which the opener of a stream asks for an answer to each transaction, and by which it is promised.
pub const ANSWERS: &str = "quorate-answers";

/// The header's value.
const TRANSACTIONS: &str = "transactions";

/// How long a consenter whose certificates were exchanged may go on with the former ones. Enough to update many channels
/// before it is started again; a key that somebody else knows should not be good for much longer.
pub const ROTATION_OVERLAP: Duration = Duration::from_secs(60 * 60);

/// One consenter of a channel, as its configuration has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its Raft id.
    pub id: u64,
    /// Where its cluster service listens.
    pub host: String,
    /// The port there.
    pub port: u16,
    /// The certificate that it shows as a client, PEM or DER.
    pub client_cert: Bytes,
    /// The certificate that it shows as a server, PEM or DER.
    pub server_cert: Bytes,
}

/// Why a request of another orderer was not taken: the text that ends its stream, with gRPC's status 2.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct StepRefusal(pub String);

/// Who receives what other orderers send.
pub trait Dispatch: Send + Sync + 'static {
    /// A consensus message of consenter `from`. Must not block.
    ///
    /// # Errors
    /// What ends the sender's stream.
    fn consensus(
        &self,
        channel: &str,
        from: u64,
        payload: Bytes,
        metadata: Bytes,
    ) -> Result<(), StepRefusal>;

    /// Transactions that another orderer forwards over one stream, and what becomes of each, in their order.
    ///
    /// An error among the former is passed on, and ends the latter. So does the first transaction that is refused, unless
    /// `insistent`.
    fn submit(&self, forwarded: ForwardedStream, insistent: bool) -> OutcomeStream;
}

/// A transaction that a consenter of the channel forwards.
#[derive(Debug)]
pub struct Forwarded {
    /// The channel.
    pub channel: String,
    /// The consenter.
    pub from: u64,
    /// The configuration sequence under which it says to have checked the transaction.
    pub last_validation_seq: u64,
    /// The transaction.
    pub envelope: RawEnvelope,
}

/// The transactions of one stream, until it breaks.
pub type ForwardedStream = BoxStream<'static, Result<Forwarded, tonic::Status>>;

/// What became of the transactions of one stream.
pub type OutcomeStream = BoxStream<'static, Result<Result<(), SubmitError>, tonic::Status>>;

/// The settings of `General.Cluster` that concern talking, and the limit on messages.
#[derive(Debug, Clone)]
pub struct TransportOptions {
    /// `SendBufferSize`: messages waiting in one stream.
    pub send_buffer_size: usize,
    /// `DialTimeout`: how long connecting may take.
    pub dial_timeout: Duration,
    /// `RPCTimeout`: how long a message may wait in front of a stream.
    pub rpc_timeout: Duration,
    /// `CertExpirationWarningThreshold`: how early certificates that will expire are warned of.
    pub certificate_warning: Duration,
    /// The longest message, in bytes, both ways.
    pub max_message_size: usize,
}

impl Default for TransportOptions {
    fn default() -> Self {
        Self {
            send_buffer_size: 100,
            dial_timeout: Duration::from_secs(5),
            rpc_timeout: Duration::from_secs(7),
            certificate_warning: Duration::from_secs(7 * 24 * 60 * 60),
            max_message_size: 100 * 1024 * 1024,
        }
    }
}

impl TransportOptions {
    /// Those of a configuration.
    #[must_use]
    pub fn of(general: &options::General) -> Self {
        let cluster = &general.cluster;
        Self {
            send_buffer_size: usize::try_from(cluster.send_buffer_size).unwrap_or(usize::MAX),
            dial_timeout: cluster.dial_timeout,
            rpc_timeout: cluster.rpc_timeout,
            certificate_warning: cluster.cert_expiration_warning_threshold,
            max_message_size: usize::try_from(general.max_recv_msg_size).unwrap_or(usize::MAX),
        }
    }
}

/// Why a transaction could not be forwarded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ForwardError {
    /// The other orderer will not have it, now or ever.
    #[error(transparent)]
    Refused(Refusal),
    /// The other orderer is not known to check what it is given, and nobody has checked this. Nothing was sent.
    #[error("the other orderer does not check what is forwarded to it")]
    Unchecked,
    /// The connection is not there, or ended, or the other orderer does not order at the moment. The transaction may have
    /// been taken over all the same.
    #[error("{0}")]
    Failed(String),
}

/// What became of a consensus message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// It waits for the connection, behind those sent before.
    Queued,
    /// This one or earlier ones to the same consenter are known to be lost: Raft should be told that it is unreachable.
    Lost,
}

/// Talks to the consenters of all channels; cheap to clone.
#[derive(Clone)]
pub struct Transport {
    core: Arc<Core>,
}

/// What both sides share.
struct Core {
    wiring: Arc<Wiring>,
    channels: RwLock<HashMap<String, Arc<Consenters>>>,
    connections: Mutex<BTreeMap<Destination, Weak<Connection>>>,
}

/// What everything that sends or receives needs.
struct Wiring {
    options: TransportOptions,
    metrics: metrics::Cluster,
    steps: StreamMetrics,
    clock: Clock,
    dialler: Arc<Dialler>,
}

/// The consenters of one channel.
#[derive(Clone, Default)]
struct Consenters {
    by_id: BTreeMap<u64, Arc<Remote>>,
    by_client_key: HashMap<Vec<u8>, u64>,
    /// By id, what the configuration says.
    keys: BTreeMap<u64, Keys>,
    /// Those whose certificates were exchanged and who have not shown the new ones yet.
    overlaps: BTreeMap<u64, Overlap>,
}

/// The public keys of a consenter's certificates.
#[derive(Clone, PartialEq, Eq)]
struct Keys {
    client: Vec<u8>,
    server: Vec<u8>,
}

/// A consenter is known by its former certificates as well, until it shows the new ones: between the update that exchanges
/// them and its restart it would be lost to the others otherwise, and with it what they can spare.
#[derive(Clone)]
struct Overlap {
    former: Keys,
    until: Instant,
}

impl Consenters {
    /// The overlap of a consenter that is about to have these keys, if it is not over.
    fn overlap(&self, id: u64, keys: &Keys, now: Instant) -> Option<Overlap> {
        let before = self.keys.get(&id)?;
        if before == keys {
            let going_on = self.overlaps.get(&id)?;
            return (now < going_on.until).then(|| going_on.clone());
        }
        Some(Overlap {
            former: before.clone(),
            until: now + ROTATION_OVERLAP,
        })
    }

    /// Whether this key of consenter `id` is one that it had before only.
    fn is_former(&self, id: u64, client_key: &[u8]) -> bool {
        self.keys
            .get(&id)
            .is_some_and(|keys| keys.client != client_key)
    }
}

/// One consenter of one channel.
struct Remote {
    destination: Destination,
    consensus: Lane,
    transactions: Lane,
}

impl Transport {
    /// A transport without channels. Its tasks belong to `tasks`. Without `tls` it talks plain HTTP/2, and nobody can
    /// recognise it.
    #[must_use]
    pub fn new(
        options: TransportOptions,
        tls: Option<ClientTls>,
        clock: Clock,
        entropy: Entropy,
        metrics: &OrdererMetrics,
        tasks: &Tasks,
    ) -> Self {
        let steps = StreamMetrics::new(&metrics.grpc, "orderer_Cluster", "Step");
        let metrics = metrics.cluster.clone();
        let dialler = Dialler {
            tls,
            dial_timeout: options.dial_timeout,
            entropy,
            tasks: tasks.clone(),
            up: metrics.egress_tls_connection_count.clone(),
        };
        Self {
            core: Arc::new(Core {
                wiring: Arc::new(Wiring {
                    options,
                    metrics,
                    steps,
                    clock,
                    dialler: Arc::new(dialler),
                }),
                channels: RwLock::default(),
                connections: Mutex::default(),
            }),
        }
    }

    /// The service through which other orderers reach `dispatch`.
    #[must_use]
    pub fn service(&self, dispatch: Arc<dyn Dispatch>) -> StepService {
        StepService {
            core: self.core.clone(),
            dispatch,
            metrics: self.core.wiring.steps.clone(),
        }
    }

    /// Replaces the consenters of a channel: `members` are all of them, this orderer included. Streams to those that stay
    /// as they are stay open; connections that nobody needs any more are closed.
    ///
    /// A consenter that has other certificates than before is known by the former ones too, until it shows the new ones,
    /// for an hour at most.
    pub fn configure(&self, channel: &str, members: &[Member]) {
        self.configure_at(channel, members, Instant::now());
    }

    fn configure_at(&self, channel: &str, members: &[Member], time: Instant) {
        let core = &self.core;
        let before = core.consenters(channel).unwrap_or_default();
        let mut now = Consenters::default();
        for member in members {
            let endpoint = format!("{}:{}", member.host, member.port);
            let client = public_key(&member.client_cert);
            match &client {
                Ok(key) => {
                    now.by_client_key.insert(key.clone(), member.id);
                }
                Err(error) => {
                    tracing::error!(target: LOG, %channel, "the client certificate of consenter {}({endpoint}) cannot be read, so it will not be recognised: {error}", member.id);
                }
            }
            let server = match public_key(&member.server_cert) {
                Ok(key) => key,
                Err(error) => {
                    tracing::error!(target: LOG, %channel, "the server certificate of consenter {}({endpoint}) cannot be read, so it cannot be reached: {error}", member.id);
                    continue;
                }
            };
            let mut destination = Destination {
                host: member.host.clone(),
                port: member.port,
                public_keys: vec![server.clone()],
            };
            if let Ok(client) = client {
                let keys = Keys { client, server };
                if let Some(overlap) = before.overlap(member.id, &keys, time) {
                    if overlap.former.server != keys.server {
                        destination.public_keys.push(overlap.former.server.clone());
                    }
                    now.overlaps.insert(member.id, overlap);
                }
                now.keys.insert(member.id, keys);
            }
            let remote = match before.by_id.get(&member.id) {
                Some(same) if same.destination == destination => same.clone(),
                former => {
                    match former {
                        None => {
                            tracing::info!(target: LOG, "Allocating a new stub for node {} with endpoint of {endpoint} for channel {channel}", member.id);
                        }
                        Some(_) => {
                            tracing::info!(target: LOG, "Deactivating node {} in channel {channel} with endpoint of {endpoint} due to a change of address or TLS certificate", member.id);
                        }
                    }
                    Arc::new(core.remote(channel, member.id, destination))
                }
            };
            now.by_id.insert(member.id, remote);
        }
        for (id, overlap) in &now.overlaps {
            // Whoever has the key by the configuration comes first.
            let key = overlap.former.client.clone();
            now.by_client_key.entry(key).or_insert(*id);
        }
        for (id, gone) in &before.by_id {
            if !now.by_id.contains_key(id) {
                tracing::info!(target: LOG, "Deactivated node {id} who's endpoint is {} as it's removed from membership of channel {channel}", gone.destination);
            }
        }
        core.channels
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(channel.to_owned(), Arc::new(now));
    }

    /// Forgets a channel: its streams end, and callers are told that it does not exist.
    pub fn remove(&self, channel: &str) {
        self.core
            .channels
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(channel);
    }

    /// Sends a consensus message. Never blocks: what does not fit into the buffer is lost, as Raft allows.
    pub fn send(&self, channel: &str, to: u64, payload: &Bytes, metadata: &Bytes) -> Sent {
        let offered = match self.core.lookup(channel, to) {
            Ok(remote) => remote
                .consensus
                .offer(wire::consensus(channel, payload, metadata))
                .map_err(|error| error.to_string()),
            Err(error) => Err(error),
        };
        match offered {
            Ok(()) => Sent::Queued,
            Err(error) => {
                tracing::debug!(target: LOG, %channel, "Failed to send message to {to}: {error}");
                Sent::Lost
            }
        }
    }

    /// Whether that consenter checks what is forwarded to it and answers, as this program does and Fabric's orderer does
    /// not. Known while a stream for transactions is open.
    #[must_use]
    pub fn checks(&self, channel: &str, id: u64) -> bool {
        self.core
            .lookup(channel, id)
            .is_ok_and(|remote| remote.transactions.answers())
    }

    /// Forwards a transaction; resolves when the other orderer answers that it has taken it over, or, if it is one that
    /// does not answer, when the connection has taken it. Whether it is ordered shows in the chain only. Dropping the
    /// future does not take it back.
    ///
    /// `validated_at` is the configuration sequence under which it was checked, if it was.
    ///
    /// # Errors
    /// [`ForwardError`], also if there is no answer within `rpc_timeout`.
    pub async fn submit(
        &self,
        channel: &str,
        to: u64,
        validated_at: Option<u64>,
        envelope: &Bytes,
    ) -> Result<(), ForwardError> {
        let found = self.core.lookup(channel, to);
        let remote = found.map_err(ForwardError::Failed)?;
        let patience = self.core.wiring.options.rpc_timeout;
        let request = wire::submit(channel, validated_at.unwrap_or(0), envelope);
        let delivered = remote
            .transactions
            .deliver(request, validated_at.is_some(), Instant::now() + patience)
            .await;
        delivered.map_err(|error| match error {
            SendError::Refused(Refusal {
                status: Status::ServiceUnavailable,
                info,
            }) => ForwardError::Failed(info),
            SendError::Refused(refusal) => ForwardError::Refused(refusal),
            SendError::Unanswered => ForwardError::Unchecked,
            SendError::Timeout => ForwardError::Failed(format!(
                "timed out ({}) waiting on forwarding to {to}",
                go_duration(patience)
            )),
            other => ForwardError::Failed(other.to_string()),
        })
    }
}

impl Core {
    fn consenters(&self, channel: &str) -> Option<Arc<Consenters>> {
        self.channels
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(channel)
            .cloned()
    }

    /// Whether the key belongs to a consenter of any channel.
    fn knows(&self, client_key: &[u8]) -> bool {
        self.channels
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .any(|consenters| consenters.by_client_key.contains_key(client_key))
    }

    /// The consenter with that key, or the refusal that Fabric gives.
    fn caller(&self, channel: &str, client_key: Option<&[u8]>) -> Result<u64, StepRefusal> {
        self.caller_at(channel, client_key, Instant::now())
    }

    fn caller_at(
        &self,
        channel: &str,
        client_key: Option<&[u8]>,
        now: Instant,
    ) -> Result<u64, StepRefusal> {
        let refused = |text: &str| Err(StepRefusal(text.to_owned()));
        if channel.is_empty() {
            return refused("badly formatted message, cannot extract channel");
        }
        let Some(consenters) = self.consenters(channel) else {
            return Err(StepRefusal(format!("channel {channel} doesn't exist")));
        };
        let Some(key) = client_key else {
            return refused("no TLS certificate sent");
        };
        let stranger = "certificate extracted from TLS connection isn't authorized";
        let Some(id) = consenters.by_client_key.get(key).copied() else {
            return refused(stranger);
        };
        if let Some(overlap) = consenters.overlaps.get(&id) {
            let shows_new = overlap.former.client != key;
            let over = now >= overlap.until;
            if shows_new || over {
                self.end_overlap(channel, id);
            }
            if over && consenters.is_former(id, key) {
                return refused(stranger);
            }
        }
        Ok(id)
    }

    /// From now on a consenter is known by its present certificates only.
    fn end_overlap(&self, channel: &str, id: u64) {
        let mut channels = self
            .channels
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let Some(present) = channels.get(channel) else {
            return;
        };
        let mut next = Consenters::clone(present);
        let Some(Overlap { former, .. }) = next.overlaps.remove(&id) else {
            return;
        };
        if next.is_former(id, &former.client) && next.by_client_key.get(&former.client) == Some(&id)
        {
            next.by_client_key.remove(&former.client);
        }
        if let Some(remote) = next.by_id.get(&id)
            && remote.destination.public_keys.len() > 1
        {
            let mut destination = remote.destination.clone();
            destination.public_keys.truncate(1);
            let remote = self.remote(channel, id, destination);
            next.by_id.insert(id, Arc::new(remote));
        }
        tracing::info!(target: LOG, %channel, "Node {id} is known by its new TLS certificate only from now on");
        channels.insert(channel.to_owned(), Arc::new(next));
    }

    fn lookup(&self, channel: &str, id: u64) -> Result<Arc<Remote>, String> {
        let consenters = self
            .consenters(channel)
            .ok_or_else(|| format!("channel {channel} doesn't exist"))?;
        let remote = consenters.by_id.get(&id).cloned();
        remote.ok_or_else(|| format!("node {id} doesn't exist in channel {channel}'s membership"))
    }

    fn remote(&self, channel: &str, id: u64, destination: Destination) -> Remote {
        let connection = self.connection(&destination);
        let lane = |kind| Lane::new(self.wiring.clone(), channel, id, kind, connection.clone());
        Remote {
            consensus: lane(Kind::Consensus),
            transactions: lane(Kind::Transaction),
            destination,
        }
    }

    fn connection(&self, destination: &Destination) -> Arc<Connection> {
        let mut connections = self
            .connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = connections.get(destination).and_then(Weak::upgrade) {
            return open;
        }
        connections.retain(|_, connection| connection.strong_count() > 0);
        let new = Arc::new(Connection::new(
            destination.clone(),
            self.wiring.dialler.clone(),
        ));
        connections.insert(destination.clone(), Arc::downgrade(&new));
        new
    }
}
