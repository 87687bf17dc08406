//! A client that stays connected to a node over several addresses.
//!
//! [`Client`] is cheap to clone. One background task ([`connection`]) owns the connection: it
//! tries the addresses in turn, proves the credentials, keeps the connection under observation
//! with HTTP/2 pings, and replaces it when it is lost. Calls wait for a connection within their
//! time. A call that may be repeated is repeated when its answer is lost; one that may not be
//! ends with [`ClientError::OutcomeUnknown`], because the node may have done it.
//! [`tracking`] has the streams that continue over a reconnection.

mod connection;
mod tracking;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use quorate_identity::{Party, X500Name};
use quorate_ledger::vault::VaultQuery;
use quorate_ledger::{AttachmentId, Timestamp, TxId};
use serde_json::Value;
use tokio::sync::{Notify, broadcast, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout_at};
use zeroize::Zeroizing;

use self::connection::{Link, Stub};
pub use self::tracking::{FlowWatcher, TrackFrom, VaultTracker};
use crate::api::{self, ClientId, FlowHandle, FlowId, FlowKey, FlowState, FlowStatus, StartFlow};
use crate::error::{ErrorCode, RpcError};
use crate::method::Method;
use crate::wire::{self, WireError, proto};

/// Most addresses that a client is given.
const MAX_ADDRESSES: usize = 32;
/// Events that wait for a slow listener before the oldest are dropped.
const EVENT_CAPACITY: usize = 64;
/// Pause before a call is tried again on a connection that answered "later".
const RETRY_PAUSE_MIN: Duration = Duration::from_millis(50);
/// Longest such pause.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(2);
/// How long the node is asked to hold back one answer about a flow that has not ended.
const RESULT_POLL: Duration = Duration::from_secs(20);

/// A password that does not show itself and is wiped from memory.
#[derive(Clone)]
pub struct Password(Arc<Zeroizing<String>>);

impl Password {
    /// Wraps a password.
    pub fn new(password: impl Into<String>) -> Self {
        Self(Arc::new(Zeroizing::new(password.into())))
    }

    /// The password itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Password {
    fn from(password: &str) -> Self {
        Self::new(password)
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(***)")
    }
}

/// How to speak TLS.
#[derive(Clone, Debug)]
pub struct Tls {
    /// Roots, versions, and a client certificate if the node wants one.
    pub config: Arc<rustls::ClientConfig>,
    /// The name that the node's certificate must carry; by default the host of the address.
    pub server_name: Option<String>,
}

/// Where to connect, as whom, and how patiently.
#[derive(Clone, Debug)]
pub struct Options {
    /// `host:port` of every instance that may serve the node, or of the load balancer.
    pub addresses: Vec<String>,
    /// The user.
    pub user: String,
    /// The user's password.
    pub password: Password,
    /// TLS, if the node's RPC address has it.
    pub tls: Option<Tls>,
    /// Time for TCP, TLS and login at one address.
    pub connect_timeout: Duration,
    /// Time for a call, waiting for a connection included.
    pub call_timeout: Duration,
    /// A ping is sent after this long without traffic.
    pub keep_alive_interval: Duration,
    /// An unanswered ping ends the connection after this long.
    pub keep_alive_timeout: Duration,
    /// Pause after the first round of addresses that failed.
    pub backoff_min: Duration,
    /// The pause doubles up to this.
    pub backoff_max: Duration,
}

impl Options {
    /// Options with the defaults: 5 s to connect, 30 s for a call, a dead server noticed in 5 s.
    pub fn new<A: Into<String>>(
        addresses: impl IntoIterator<Item = A>,
        user: impl Into<String>,
        password: Password,
    ) -> Self {
        Self {
            addresses: addresses.into_iter().map(Into::into).collect(),
            user: user.into(),
            password,
            tls: None,
            connect_timeout: Duration::from_secs(5),
            call_timeout: Duration::from_secs(30),
            keep_alive_interval: Duration::from_secs(2),
            keep_alive_timeout: Duration::from_secs(3),
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(5),
        }
    }

    fn check(&self) -> Result<(), OptionsError> {
        if self.addresses.is_empty() {
            return Err(OptionsError::NoAddress);
        }
        if self.addresses.len() > MAX_ADDRESSES {
            return Err(OptionsError::TooManyAddresses(self.addresses.len()));
        }
        for address in &self.addresses {
            connection::host_and_port(address)?;
        }
        if self.user.is_empty() || self.user.contains(':') || self.user.contains(char::is_control) {
            return Err(OptionsError::User);
        }
        Ok(())
    }
}

/// The options cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// There is nowhere to connect to.
    #[error("no address of the node is given")]
    NoAddress,
    /// More than the client tries.
    #[error("{0} addresses are given; at most {MAX_ADDRESSES} are tried")]
    TooManyAddresses(usize),
    /// Not `host:port`.
    #[error("'{0}' is not an address of the form host:port")]
    Address(String),
    /// Not a name that basic authorization can carry.
    #[error("a user name is not empty and has neither ':' nor control characters")]
    User,
    /// Not a name that a certificate can carry.
    #[error("'{0}' is not a name that a TLS certificate can carry")]
    ServerName(String),
}

/// Why a call did not succeed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The client was built with options that cannot be.
    #[error("the client's options are not usable")]
    Options(#[from] OptionsError),
    /// The node refused or failed.
    #[error("{method}: {error}")]
    Refused {
        /// The call.
        method: &'static str,
        /// The node's answer.
        error: RpcError,
    },
    /// No address answered within the call's time; nothing was asked.
    #[error(
        "{method}: no answer from {addresses} within {}: {reason}",
        seconds(*.waited)
    )]
    Unreachable {
        /// The call.
        method: &'static str,
        /// What was tried.
        addresses: String,
        /// How long.
        waited: Duration,
        /// The last failure.
        reason: String,
    },
    /// The call's time was up. It changes nothing to repeat it.
    #[error("{method}: no answer within {}", seconds(*.waited))]
    TimedOut {
        /// The call.
        method: &'static str,
        /// How long.
        waited: Duration,
    },
    /// The answer was lost, and the call is not one that may be repeated unasked.
    #[error(
        "{method}: the answer was lost ({reason}), so it is not known whether the node did it; \
         give a client id to make a start of a flow repeatable"
    )]
    OutcomeUnknown {
        /// The call.
        method: &'static str,
        /// How the answer was lost.
        reason: String,
    },
    /// The node answered with something that this client does not understand.
    #[error("{method}: the node's answer cannot be read; are client and node of one version?")]
    BadAnswer {
        /// The call.
        method: &'static str,
        /// What is wrong with the answer.
        source: WireError,
    },
    /// The flow ended without a result.
    #[error("flow {flow_id} ({class}) {}: {reason}", ending(*.state))]
    FlowEnded {
        /// The flow.
        flow_id: FlowId,
        /// Its class.
        class: String,
        /// Failed or killed.
        state: FlowState,
        /// Why.
        reason: String,
    },
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

fn ending(state: FlowState) -> &'static str {
    match state {
        FlowState::Killed => "was killed",
        _ => "failed",
    }
}

impl ClientError {
    /// Whether the same call may succeed later, and did nothing now.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Refused { error, .. } => error.retryable,
            Self::Unreachable { .. } | Self::TimedOut { .. } => true,
            _ => false,
        }
    }

    /// The node's own code, if it was the node that refused.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Refused { error, .. } => Some(error.code),
            _ => None,
        }
    }
}

/// What happened to the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The node answers at this address.
    Connected {
        /// The address.
        address: String,
        /// Whose node it is.
        legal_name: X500Name,
    },
    /// The connection is lost; the client tries to restore it.
    Disconnected {
        /// The address.
        address: String,
        /// Why.
        reason: String,
    },
}

/// The events of a client's connection from the moment of asking.
#[derive(Debug)]
pub struct Events(broadcast::Receiver<Event>);

impl Events {
    /// The next event, or nothing when the client is gone. A listener that falls far behind
    /// misses the oldest events. Dropping the call halfway loses nothing.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            match self.0.recv().await {
                Ok(event) => return Some(event),
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

/// A client of one node.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    options: Arc<Options>,
    link: watch::Receiver<Link>,
    events: broadcast::Sender<Event>,
    /// Tells the connection's task that this instance does not serve, so that it moves on.
    move_on: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("addresses", &self.inner.options.addresses)
            .field("user", &self.inner.options.user)
            .finish_non_exhaustive()
    }
}

/// One call: what it is, until when, and whether it may be repeated.
#[derive(Clone, Copy)]
struct Call {
    method: &'static str,
    started: Instant,
    deadline: Instant,
    /// Longest that one attempt is waited for.
    attempt: Duration,
    repeatable: bool,
}

impl Client {
    /// A client that connects in the background. Must be called within a tokio runtime, which
    /// also carries the client's task until the last clone is dropped.
    pub fn new(options: Options) -> Result<Self, OptionsError> {
        options.check()?;
        let options = Arc::new(options);
        let (events, _) = broadcast::channel(EVENT_CAPACITY);
        let move_on = Arc::new(Notify::new());
        let (task, link) = connection::keep(options.clone(), events.clone(), move_on.clone())?;
        Ok(Self {
            inner: Arc::new(Inner {
                options,
                link,
                events,
                move_on,
                task,
            }),
        })
    }

    /// A client that is connected and whose credentials the node has accepted; fails when that is
    /// not so within the time of a call.
    pub async fn connect(options: Options) -> Result<Self, ClientError> {
        let client = Self::new(options)?;
        let call = Call {
            method: "connect",
            ..client.call_of(Method::NodeInfo, true)
        };
        client.link_up(&call).await?;
        Ok(client)
    }

    /// Connects and disconnects from now on.
    pub fn events(&self) -> Events {
        Events(self.inner.events.subscribe())
    }

    /// Whether there is a connection at this moment.
    pub fn is_connected(&self) -> bool {
        matches!(*self.inner.link.borrow(), Link::Up { .. })
    }

    /// The address and the legal name at the other end at this moment.
    pub fn connected_to(&self) -> Option<(String, X500Name)> {
        match &*self.inner.link.borrow() {
            Link::Up {
                address,
                legal_name,
                ..
            } => Some((address.clone(), legal_name.clone())),
            _ => None,
        }
    }

    /// Starts a flow. If the answer is lost, it is not known whether the flow was started: prefer
    /// [`Client::start_flow_with_client_id`].
    pub async fn start_flow(
        &self,
        flow: &str,
        arguments: Value,
    ) -> Result<RunningFlow, ClientError> {
        self.start(StartFlow {
            client_id: None,
            flow: flow.to_owned(),
            arguments,
        })
        .await
    }

    /// Starts a flow under the caller's own id for the request. Repeating the call, from this
    /// process or another, over any number of failovers, re-attaches to the same flow.
    pub async fn start_flow_with_client_id(
        &self,
        client_id: ClientId,
        flow: &str,
        arguments: Value,
    ) -> Result<RunningFlow, ClientError> {
        self.start(StartFlow {
            client_id: Some(client_id),
            flow: flow.to_owned(),
            arguments,
        })
        .await
    }

    /// Starts a flow as the request says.
    pub async fn start(&self, request: StartFlow) -> Result<RunningFlow, ClientError> {
        let call = self.call_of(Method::StartFlow, request.client_id.is_some());
        let request = proto::StartFlowRequest::from(request);
        let handle: FlowHandle = self
            .call(call, |mut stub, timeout| {
                let request = timed(request.clone(), timeout);
                async move { stub.start_flow(request).await }
            })
            .await?;
        Ok(RunningFlow {
            client: self.clone(),
            handle,
        })
    }

    /// Attaches to the flow that was started under a client id, whether it runs or has ended.
    pub async fn reattach_flow_with_client_id(
        &self,
        client_id: ClientId,
    ) -> Result<RunningFlow, ClientError> {
        let status = self
            .flow_status(FlowKey::Client(client_id.clone()), Duration::ZERO)
            .await?;
        Ok(RunningFlow {
            client: self.clone(),
            handle: FlowHandle {
                flow_id: status.flow_id,
                client_id: Some(client_id),
                reattached: true,
            },
        })
    }

    /// A flow as it stands. With a `wait`, the node holds its answer back until the flow has
    /// ended or the time is over.
    pub async fn flow_status(
        &self,
        key: FlowKey,
        wait: Duration,
    ) -> Result<FlowStatus, ClientError> {
        let mut call = self.call_of(Method::FlowStatus, true);
        call.deadline += wait;
        call.attempt += wait;
        self.flow_status_call(call, key, wait).await
    }

    async fn flow_status_call(
        &self,
        call: Call,
        key: FlowKey,
        wait: Duration,
    ) -> Result<FlowStatus, ClientError> {
        let request = proto::FlowStatusRequest {
            key: Some(key.into()),
            wait_millis: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
        };
        self.call(call, |mut stub, timeout| {
            let request = timed(request.clone(), timeout);
            async move { stub.flow_status(request).await }
        })
        .await
    }

    /// The result of a flow, waiting up to `patience` for its end, over failovers if need be.
    /// A flow without a result is an error that says why.
    pub async fn flow_result(
        &self,
        key: FlowKey,
        patience: Duration,
    ) -> Result<Value, ClientError> {
        let method = Method::FlowStatus.name();
        let started = Instant::now();
        let deadline = started + patience;
        loop {
            let wait = deadline
                .saturating_duration_since(Instant::now())
                .min(RESULT_POLL);
            let call = Call {
                method,
                started,
                // Even an impatient caller gets one honest question.
                deadline: deadline.max(Instant::now() + Duration::from_secs(1)),
                attempt: wait + self.inner.options.connect_timeout,
                repeatable: true,
            };
            let status = self.flow_status_call(call, key.clone(), wait).await?;
            if status.state.ended() {
                return outcome(status);
            }
            if Instant::now() >= deadline {
                return Err(ClientError::TimedOut {
                    method,
                    waited: started.elapsed(),
                });
            }
        }
    }

    /// Forgets a client id and the result kept under it. False if there was none. A flow that
    /// still runs keeps its client id.
    pub async fn remove_client_id(&self, client_id: ClientId) -> Result<bool, ClientError> {
        let request = proto::ClientIdRequest {
            client_id: client_id.into(),
        };
        let call = self.call_of(Method::RemoveClientId, true);
        self.yes_or_no(call, |mut stub, timeout| {
            let request = timed(request.clone(), timeout);
            async move { stub.remove_client_id(request).await }
        })
        .await
    }

    /// Ended flows whose outcomes are kept under client ids.
    pub async fn finished_flows_with_client_ids(
        &self,
    ) -> Result<Vec<api::FinishedFlow>, ClientError> {
        let call = self.call_of(Method::FinishedFlowsWithClientIds, true);
        self.call(call, |mut stub, timeout| async move {
            stub.finished_flows_with_client_ids(empty(timeout)).await
        })
        .await
    }

    /// All flows now.
    pub async fn flows(&self) -> Result<Vec<FlowStatus>, ClientError> {
        let call = self.call_of(Method::StateMachinesSnapshot, true);
        self.call(call, |mut stub, timeout| async move {
            stub.list_flows(empty(timeout)).await
        })
        .await
    }

    /// All flows now, and then each change, over reconnections.
    pub async fn watch_flows(&self) -> Result<FlowWatcher, ClientError> {
        FlowWatcher::open(self.clone()).await
    }

    /// Ends a flow. False if there is no such flow running.
    pub async fn kill_flow(&self, flow: FlowId) -> Result<bool, ClientError> {
        let call = self.call_of(Method::KillFlow, true);
        self.yes_or_no(call, |mut stub, timeout| {
            let request = timed(flow_id(&flow), timeout);
            async move { stub.kill_flow(request).await }
        })
        .await
    }

    /// Stops a flow until it is retried. False if it cannot be paused now.
    pub async fn pause_flow(&self, flow: FlowId) -> Result<bool, ClientError> {
        let call = self.call_of(Method::PauseFlow, true);
        self.yes_or_no(call, |mut stub, timeout| {
            let request = timed(flow_id(&flow), timeout);
            async move { stub.pause_flow(request).await }
        })
        .await
    }

    /// Continues a paused or hospitalised flow. False if it is neither.
    pub async fn retry_flow(&self, flow: FlowId) -> Result<bool, ClientError> {
        let call = self.call_of(Method::RetryFlow, true);
        self.yes_or_no(call, |mut stub, timeout| {
            let request = timed(flow_id(&flow), timeout);
            async move { stub.retry_flow(request).await }
        })
        .await
    }

    /// Does the same to many flows; answers how many.
    pub async fn control_flows(&self, action: api::FlowControl) -> Result<u64, ClientError> {
        let method = match action {
            api::FlowControl::PauseAll => Method::PauseAllFlows,
            api::FlowControl::PauseAllHospitalized => Method::PauseAllHospitalizedFlows,
            api::FlowControl::RetryAllPaused => Method::RetryAllPausedFlows,
            api::FlowControl::RetryAllPausedHospitalized => Method::RetryAllPausedHospitalizedFlows,
        };
        let request = proto::ControlFlowsRequest {
            action: proto::FlowControl::from(action).into(),
        };
        let call = self.call_of(method, true);
        let reply = self
            .exchange(call, |mut stub, timeout| async move {
                stub.control_flows(timed(request, timeout)).await
            })
            .await?;
        Ok(reply.count)
    }

    /// The flows in the hospital.
    pub async fn hospital(&self) -> Result<Vec<api::HospitalRecord>, ClientError> {
        let call = self.call_of(Method::HospitalSnapshot, true);
        self.call(call, |mut stub, timeout| async move {
            stub.hospital(empty(timeout)).await
        })
        .await
    }

    /// All checkpoints in readable form.
    pub async fn dump_checkpoints(&self) -> Result<Vec<api::Checkpoint>, ClientError> {
        let call = self.call_of(Method::DumpCheckpoints, true);
        self.call(call, |mut stub, timeout| async move {
            stub.dump_checkpoints(empty(timeout)).await
        })
        .await
    }

    /// The flows that can be started.
    pub async fn registered_flows(&self) -> Result<Vec<api::RegisteredFlow>, ClientError> {
        let call = self.call_of(Method::RegisteredFlows, true);
        self.call(call, |mut stub, timeout| async move {
            stub.registered_flows(empty(timeout)).await
        })
        .await
    }

    /// States that match a query, one page.
    pub async fn vault_query(&self, query: &VaultQuery) -> Result<api::VaultPage, ClientError> {
        let method = Method::VaultQuery;
        let query_json = serde_json::to_string(query).map_err(|error| ClientError::Refused {
            method: method.name(),
            error: RpcError::invalid(format!("the query has no JSON form: {error}")),
        })?;
        let request = proto::VaultQueryRequest { query_json };
        self.call(self.call_of(method, true), |mut stub, timeout| {
            let request = timed(request.clone(), timeout);
            async move { stub.vault_query(request).await }
        })
        .await
    }

    /// Updates of the vault after a place, without gap or repetition over reconnections and
    /// failovers. To continue after the application's own restart, keep the cursor of the last
    /// update that was dealt with.
    pub async fn vault_track(&self, from: TrackFrom) -> Result<VaultTracker, ClientError> {
        VaultTracker::open(self.clone(), from).await
    }

    /// A recorded transaction.
    pub async fn transaction(&self, id: TxId) -> Result<api::Transaction, ClientError> {
        let request = proto::TransactionRequest { tx: id.to_string() };
        let call = self.call_of(Method::Transaction, true);
        self.call(call, |mut stub, timeout| {
            let request = timed(request.clone(), timeout);
            async move { stub.transaction(request).await }
        })
        .await
    }

    /// Stores an attachment; answers its id, which is its hash.
    pub async fn upload_attachment(&self, bytes: &[u8]) -> Result<AttachmentId, ClientError> {
        let call = self.call_of(Method::UploadAttachment, true);
        let chunks: Vec<_> = bytes
            .chunks(api::ATTACHMENT_CHUNK_BYTES)
            .map(|data| proto::AttachmentChunk {
                data: data.to_vec(),
            })
            .collect();
        let reply = self
            .exchange(call, |mut stub, timeout| {
                let request = timed(tokio_stream::iter(chunks.clone()), timeout);
                async move { stub.upload_attachment(request).await }
            })
            .await?;
        wire::parsed("id", &reply.id).map_err(|source| bad_answer(call, source))
    }

    /// Whether the node has an attachment.
    pub async fn attachment_exists(&self, id: AttachmentId) -> Result<bool, ClientError> {
        let request = proto::AttachmentRequest { id: id.to_string() };
        let call = self.call_of(Method::AttachmentExists, true);
        self.yes_or_no(call, |mut stub, timeout| {
            let request = timed(request.clone(), timeout);
            async move { stub.attachment_exists(request).await }
        })
        .await
    }

    /// An attachment's bytes, checked against its id.
    pub async fn open_attachment(&self, id: AttachmentId) -> Result<Vec<u8>, ClientError> {
        let request = proto::AttachmentRequest { id: id.to_string() };
        let call = self.call_of(Method::OpenAttachment, true);
        let bytes = self
            .exchange(call, |mut stub, timeout| {
                let request = timed(request.clone(), timeout);
                async move {
                    let mut pieces = stub.open_attachment(request).await?.into_inner();
                    let mut bytes = Vec::new();
                    while let Some(piece) = pieces.message().await? {
                        if bytes.len() + piece.data.len() > api::MAX_ATTACHMENT_BYTES {
                            return Err(tonic::Status::out_of_range(
                                "the attachment is larger than any can be",
                            ));
                        }
                        bytes.extend_from_slice(&piece.data);
                    }
                    Ok(tonic::Response::new(bytes))
                }
            })
            .await?;
        if api::attachment_id(&bytes) != id {
            let source = WireError {
                field: "data",
                reason: "is not the attachment that was asked for".into(),
            };
            return Err(bad_answer(call, source));
        }
        Ok(bytes)
    }

    /// The node's own entry in the network map.
    pub async fn node_info(&self) -> Result<api::NodeInfo, ClientError> {
        let call = self.call_of(Method::NodeInfo, true);
        self.call(call, |mut stub, timeout| async move {
            stub.node_info(empty(timeout)).await
        })
        .await
    }

    /// All entries of the network map.
    pub async fn network_map_snapshot(&self) -> Result<Vec<api::NodeInfo>, ClientError> {
        let call = self.call_of(Method::NetworkMapSnapshot, true);
        self.call(call, |mut stub, timeout| async move {
            stub.network_map_snapshot(empty(timeout)).await
        })
        .await
    }

    /// The notaries of the network.
    pub async fn notary_identities(&self) -> Result<Vec<Party>, ClientError> {
        let call = self.call_of(Method::NotaryIdentities, true);
        self.call(call, |mut stub, timeout| async move {
            stub.notary_identities(empty(timeout)).await
        })
        .await
    }

    /// The party of a legal name, if the network map has it.
    pub async fn party_from_name(&self, name: &X500Name) -> Result<Option<Party>, ClientError> {
        let request = proto::PartyFromNameRequest {
            name: name.to_string(),
        };
        let call = self.call_of(Method::WellKnownPartyFromX500Name, true);
        let reply = self
            .exchange(call, |mut stub, timeout| {
                let request = timed(request.clone(), timeout);
                async move { stub.party_from_name(request).await }
            })
            .await?;
        let party = reply.party.map(wire::party_in).transpose();
        party.map_err(|source| bad_answer(call, source))
    }

    /// The node's clock.
    pub async fn current_node_time(&self) -> Result<Timestamp, ClientError> {
        let call = self.call_of(Method::CurrentNodeTime, true);
        let reply = self
            .exchange(call, |mut stub, timeout| async move {
                stub.current_node_time(empty(timeout)).await
            })
            .await?;
        Ok(Timestamp::from_micros(reply.micros))
    }

    /// Version, role, lease, flows and queues.
    pub async fn diagnostics(&self) -> Result<api::Diagnostics, ClientError> {
        let call = self.call_of(Method::NodeDiagnosticInfo, true);
        self.call(call, |mut stub, timeout| async move {
            stub.diagnostics(empty(timeout)).await
        })
        .await
    }

    /// Turns draining mode on or off: while it is on, the node starts no flows.
    pub async fn set_flows_draining_mode(&self, enabled: bool) -> Result<(), ClientError> {
        let request = proto::SetDrainingRequest { enabled };
        let call = self.call_of(Method::SetFlowsDrainingModeEnabled, true);
        self.exchange(call, |mut stub, timeout| async move {
            stub.set_flows_draining_mode(timed(request, timeout)).await
        })
        .await?;
        Ok(())
    }

    /// Whether draining mode is on.
    pub async fn is_flows_draining_mode(&self) -> Result<bool, ClientError> {
        let call = self.call_of(Method::IsFlowsDrainingModeEnabled, true);
        self.yes_or_no(call, |mut stub, timeout| async move {
            stub.is_flows_draining_mode(empty(timeout)).await
        })
        .await
    }

    /// Stops the node in an orderly way; with `drain`, after its flows have ended. Returns when
    /// the node has agreed, not when it has stopped. Not repeated by itself: the repetition could
    /// reach, and stop, the instance that has taken over.
    pub async fn graceful_shutdown(&self, drain: bool) -> Result<(), ClientError> {
        let request = proto::ShutdownRequest { drain };
        let call = self.call_of(Method::Terminate, Method::Terminate.idempotent());
        self.exchange(call, |mut stub, timeout| async move {
            stub.graceful_shutdown(timed(request, timeout)).await
        })
        .await?;
        Ok(())
    }

    fn call_of(&self, method: Method, repeatable: bool) -> Call {
        let started = Instant::now();
        let time = self.inner.options.call_timeout;
        Call {
            method: method.name(),
            started,
            deadline: started + time,
            attempt: time,
            repeatable,
        }
    }

    async fn yes_or_no<F, R>(&self, call: Call, ask: F) -> Result<bool, ClientError>
    where
        F: Fn(Stub, Duration) -> R,
        R: Future<Output = Result<tonic::Response<proto::BoolReply>, tonic::Status>>,
    {
        Ok(self.exchange(call, ask).await?.value)
    }

    /// An exchange whose answer is then read.
    async fn call<T, P, F, R>(&self, call: Call, ask: F) -> Result<T, ClientError>
    where
        T: TryFrom<P, Error = WireError>,
        F: Fn(Stub, Duration) -> R,
        R: Future<Output = Result<tonic::Response<P>, tonic::Status>>,
    {
        let answer = self.exchange(call, ask).await?;
        T::try_from(answer).map_err(|source| bad_answer(call, source))
    }

    /// Asks until there is an answer that counts, or the call's time is up.
    async fn exchange<P, F, R>(&self, call: Call, ask: F) -> Result<P, ClientError>
    where
        F: Fn(Stub, Duration) -> R,
        R: Future<Output = Result<tonic::Response<P>, tonic::Status>>,
    {
        let mut pause = RETRY_PAUSE_MIN;
        loop {
            let stub = self.link_up(&call).await?;
            let until = call.deadline.min(Instant::now() + call.attempt);
            let remaining = until.saturating_duration_since(Instant::now());
            let failure = match timeout_at(until, ask(stub, remaining)).await {
                Ok(Ok(answer)) => return Ok(answer.into_inner()),
                Ok(Err(status)) => Failure::of(&status),
                Err(_) => Failure::Lost("the time was up".into()),
            };
            match failure {
                Failure::Answered(error) => {
                    if error.code == ErrorCode::NotReady {
                        self.inner.move_on.notify_one();
                    }
                    let later = Instant::now() + pause < call.deadline;
                    if !(error.retryable && call.repeatable && later) {
                        return Err(ClientError::Refused {
                            method: call.method,
                            error,
                        });
                    }
                }
                Failure::Lost(reason) => {
                    if !call.repeatable {
                        return Err(ClientError::OutcomeUnknown {
                            method: call.method,
                            reason,
                        });
                    }
                    if Instant::now() >= call.deadline {
                        return Err(ClientError::TimedOut {
                            method: call.method,
                            waited: call.started.elapsed(),
                        });
                    }
                }
            }
            // The pause gives the connection's task time to notice that the connection is gone.
            sleep(connection::jittered(pause)).await;
            pause = (pause * 2).min(RETRY_PAUSE_MAX);
        }
    }

    /// Waits for a connection within the call's time.
    async fn link_up(&self, call: &Call) -> Result<Stub, ClientError> {
        let mut link = self.inner.link.clone();
        let settled = |link: &Link| matches!(link, Link::Up { .. } | Link::Refused(_));
        let reason = match timeout_at(call.deadline, link.wait_for(settled)).await {
            Ok(Ok(link)) => match &*link {
                Link::Up { stub, .. } => return Ok(stub.clone()),
                Link::Refused(error) => {
                    return Err(ClientError::Refused {
                        method: call.method,
                        error: error.clone(),
                    });
                }
                Link::Down { reason } => reason.clone(),
            },
            Ok(Err(_)) => "the client's task has ended with its runtime".to_owned(),
            Err(_) => match &*self.inner.link.borrow() {
                Link::Down { reason } => reason.clone(),
                _ => "the time was up".to_owned(),
            },
        };
        Err(ClientError::Unreachable {
            method: call.method,
            addresses: self.inner.options.addresses.join(", "),
            waited: call.started.elapsed(),
            reason,
        })
    }
}

/// How an attempt failed.
enum Failure {
    /// The node said so.
    Answered(RpcError),
    /// The connection broke, or the answer did not come.
    Lost(String),
}

impl Failure {
    fn of(status: &tonic::Status) -> Self {
        // What comes from the connection has a source, or one of the codes that gRPC libraries
        // and proxies make of a broken connection; what the node itself says carries a trailer.
        let broken = std::error::Error::source(status).is_some()
            || matches!(
                status.code(),
                tonic::Code::Unavailable
                    | tonic::Code::Unknown
                    | tonic::Code::Cancelled
                    | tonic::Code::DeadlineExceeded
            );
        if broken && !RpcError::is_ours(status) {
            Self::Lost(status.message().to_owned())
        } else {
            Self::Answered(RpcError::from_status(status))
        }
    }
}

fn bad_answer(call: Call, source: WireError) -> ClientError {
    ClientError::BadAnswer {
        method: call.method,
        source,
    }
}

fn timed<T>(message: T, timeout: Duration) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(timeout);
    request
}

fn empty(timeout: Duration) -> tonic::Request<proto::Empty> {
    timed(proto::Empty {}, timeout)
}

fn flow_id(flow: &FlowId) -> proto::FlowIdRequest {
    proto::FlowIdRequest {
        flow_id: flow.as_str().to_owned(),
    }
}

fn outcome(status: FlowStatus) -> Result<Value, ClientError> {
    if status.state == FlowState::Completed {
        return Ok(status.result.unwrap_or(Value::Null));
    }
    Err(ClientError::FlowEnded {
        flow_id: status.flow_id,
        class: status.class,
        state: status.state,
        reason: status
            .error
            .unwrap_or_else(|| "no reason was given".to_owned()),
    })
}

/// A flow that this client has started or attached to.
#[derive(Debug, Clone)]
pub struct RunningFlow {
    client: Client,
    handle: FlowHandle,
}

impl RunningFlow {
    /// Ids, and whether the flow existed before.
    pub fn handle(&self) -> &FlowHandle {
        &self.handle
    }

    /// The flow's id.
    pub fn id(&self) -> &FlowId {
        &self.handle.flow_id
    }

    fn key(&self) -> FlowKey {
        match &self.handle.client_id {
            Some(id) => FlowKey::Client(id.clone()),
            None => FlowKey::Flow(self.handle.flow_id.clone()),
        }
    }

    /// The flow as it stands.
    pub async fn status(&self) -> Result<FlowStatus, ClientError> {
        self.client.flow_status(self.key(), Duration::ZERO).await
    }

    /// The flow's result, waiting up to `patience`. With a client id this finds the result also
    /// when the flow ended while the client was away, or on another instance.
    pub async fn result(&self, patience: Duration) -> Result<Value, ClientError> {
        self.client.flow_result(self.key(), patience).await
    }

    /// Forgets the client id and the result, once the application has dealt with it.
    pub async fn forget(self) -> Result<bool, ClientError> {
        match self.handle.client_id.clone() {
            Some(id) => self.client.remove_client_id(id).await,
            None => Ok(false),
        }
    }
}
