//! How orderers talk to each other: `Cluster.Step` on both sides.
//!
//! A [`Transport`] knows, for every channel, who its consenters are. Outwards it carries consensus messages and forwarded
//! transactions; inwards it recognises callers by the public key of their TLS certificate and hands what they send to
//! a [`Dispatch`]. What the bytes of a consensus message mean is the business of the channel; which channels
//! exist that of the registrar.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use quorate_identity::mutual_tls::ClientTls;
use quorate_runtime::Tasks;
use quorate_runtime::metrics::Metrics;

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

    /// A transaction that consenter `from` forwards, as the bytes of its envelope. Later messages of the same stream
    /// wait for the result.
    ///
    /// # Errors
    /// What ends the sender's stream.
    fn submit(
        &self,
        channel: &str,
        from: u64,
        last_validation_seq: u64,
        envelope: Bytes,
    ) -> BoxFuture<'static, Result<(), StepRefusal>>;
}

/// The settings of `General.Cluster` that concern talking.
#[derive(Debug, Clone)]
pub struct TransportOptions {
    /// `SendBufferSize`: messages waiting for one destination of one channel.
    pub send_buffer_size: usize,
    /// `DialTimeout`: how long connecting may take.
    pub dial_timeout: Duration,
    /// `RPCTimeout`: how long opening a stream, and forwarding a transaction, may take.
    pub rpc_timeout: Duration,
}

impl Default for TransportOptions {
    fn default() -> Self {
        Self {
            send_buffer_size: 100,
            dial_timeout: Duration::from_secs(5),
            rpc_timeout: Duration::from_secs(7),
        }
    }
}

/// Why a transaction could not be forwarded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ForwardError(pub String);

/// Talks to the consenters of all channels; cheap to clone.
#[derive(Clone)]
pub struct Transport {
    _inner: Arc<()>,
}

impl Transport {
    /// A transport without channels. Its tasks are children of `tasks`.
    #[must_use]
    pub fn new(
        _options: TransportOptions,
        _tls: Option<ClientTls>,
        _metrics: &Metrics,
        _tasks: &Tasks,
    ) -> Self {
        Self {
            _inner: Arc::new(()),
        }
    }

    /// Replaces the consenters of a channel: `members` are all of them, this orderer included.
    pub fn configure(&self, _channel: &str, _members: Vec<Member>) {}

    /// Forgets a channel: its streams end, and callers are told that it does not exist.
    pub fn remove(&self, _channel: &str) {}

    /// Sends a consensus message. Never blocks: what does not fit into the buffer is lost, as Raft allows.
    pub fn send(&self, _channel: &str, _to: u64, _payload: Bytes, _metadata: Bytes) {}

    /// Forwards a transaction (the bytes of its envelope); resolves when it was given to the connection.
    ///
    /// # Errors
    /// [`ForwardError`] if that could not be done within `rpc_timeout`.
    pub async fn submit(
        &self,
        _channel: &str,
        _to: u64,
        _last_validation_seq: u64,
        _envelope: Bytes,
    ) -> Result<(), ForwardError> {
        Ok(())
    }
}
