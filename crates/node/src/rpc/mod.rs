//! The node's door to applications and operators: gRPC, and the same as JSON over HTTP.
//!
//! [`NodeOperations`] is what the node's core offers; this module knows nothing of how it is
//! done. [`RpcServer`] and [`WebServer`] open the ports. Both edges hand every call to one `Desk`,
//! which checks credentials, permissions and bounds, and writes the audit log; an edge only
//! translates. [`access`] has the users and their permissions.

pub mod access;
mod desk;
mod feed;
mod grpc;
mod listen;
mod openapi;
mod web;

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use quorate_identity::{Party, X500Name};
use quorate_ledger::vault::{Cursor, VaultQuery};
use quorate_ledger::{AttachmentId, Timestamp, TxId};
use quorate_rpc::RpcError;
use quorate_rpc::api;
use quorate_runtime::{Clock, Entropy, Traces};

pub use access::{Caller, RpcUser, Users, UsersError};
pub use desk::{Desk, MAX_CALL_TIME, MAX_CALLS, MAX_WAIT, MAX_WAITS};
pub use grpc::RpcServer;
pub use listen::{BindError, ListenOptions};
pub use openapi::description as openapi_description;
pub use web::WebServer;

/// What an operation answers, in time.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, RpcError>>;

/// What the node can be asked to do. The node's core implements it; permissions, argument sizes
/// and bounds on concurrent calls have been checked when a method is called.
///
/// The caller may go away at any moment: a future may be dropped at any await. What it was asked
/// to do then either happens wholly or not at all.
pub trait NodeOperations: Send + Sync + 'static {
    /// Whether this instance serves. An error, usually `NOT_READY`, is the answer to every call,
    /// and makes clients try the node's other addresses.
    fn ready(&self) -> Result<(), RpcError> {
        Ok(())
    }

    /// Whether calls are to be [recorded](Self::record_call).
    fn records_calls(&self) -> bool {
        false
    }

    /// Records a call durably, before it is done; also one that is about to be refused because the
    /// user lacks the permission. If it fails, the call is not done, and this is its answer.
    fn record_call(&self, call: Call) -> Answer<'_, ()> {
        drop(call);
        Box::pin(std::future::ready(Ok(())))
    }

    /// Starts a flow, durably, before it answers. Under a client id that is known already, it
    /// answers with the flow that has it, running or ended.
    ///
    /// Errors: `NOT_FOUND` for a class that is not registered (naming near ones),
    /// `INVALID_ARGUMENT` for arguments that are not the flow's fields, `CONFLICT` for a client id
    /// that belongs to a flow of another class, `DRAINING`.
    fn start_flow<'a>(
        &'a self,
        caller: &'a Caller,
        request: api::StartFlow,
    ) -> Answer<'a, api::FlowHandle>;

    /// A flow as it stands, running or ended. With a `wait`, answers when the flow has ended or
    /// the time is over, whichever comes first. `NOT_FOUND` if nothing is known of it.
    fn flow_status(&self, key: api::FlowKey, wait: Duration) -> Answer<'_, api::FlowStatus>;

    /// Forgets a client id and the outcome kept under it; false if there is none. `CONFLICT` while
    /// its flow runs.
    fn remove_client_id(&self, id: api::ClientId) -> Answer<'_, bool>;

    /// Ended flows whose outcomes are kept under client ids.
    fn finished_flows_with_client_ids(&self) -> Answer<'_, Vec<api::FinishedFlow>>;

    /// All flows that have not ended.
    fn flows(&self) -> Answer<'_, Vec<api::FlowStatus>>;

    /// Flows that are new or changed after a cursor, each as it stands now, ended ones included;
    /// waits up to `wait` for there to be one. Cursor 0, or one that this process has not given
    /// out, means all flows that there are.
    fn flow_updates(&self, after: u64, wait: Duration) -> Answer<'_, api::FlowUpdates>;

    /// Ends a flow; false if it does not run.
    fn kill_flow(&self, flow: api::FlowId) -> Answer<'_, bool>;

    /// Stops a flow until it is retried; false if it cannot be paused now.
    fn pause_flow(&self, flow: api::FlowId) -> Answer<'_, bool>;

    /// Continues a paused or hospitalised flow; false if it is neither.
    fn retry_flow(&self, flow: api::FlowId) -> Answer<'_, bool>;

    /// The same for many flows; answers how many.
    fn control_flows(&self, action: api::FlowControl) -> Answer<'_, u64>;

    /// The flows in the hospital.
    fn hospital(&self) -> Answer<'_, Vec<api::HospitalRecord>>;

    /// All checkpoints in readable form.
    fn dump_checkpoints(&self) -> Answer<'_, Vec<api::Checkpoint>>;

    /// The flows that can be started by RPC.
    fn registered_flows(&self) -> Answer<'_, Vec<api::RegisteredFlow>>;

    /// One page of states.
    fn vault_query(&self, query: VaultQuery) -> Answer<'_, api::VaultPage>;

    /// The place of the vault's latest update; zero when there is none.
    fn vault_cursor(&self) -> Answer<'_, Cursor>;

    /// Up to `limit` updates after a cursor, oldest first; waits up to `wait` for there to be one.
    /// The answer's cursor is that of its last update, or `after`. Two calls with the same cursor
    /// tell the same.
    fn vault_updates(
        &self,
        after: Cursor,
        limit: usize,
        wait: Duration,
    ) -> Answer<'_, api::VaultUpdates>;

    /// A recorded transaction; `NOT_FOUND` if the node does not have it.
    fn transaction(&self, id: TxId) -> Answer<'_, api::Transaction>;

    /// Stores an attachment durably before it answers. Storing the same again is not an error.
    fn upload_attachment(&self, bytes: Vec<u8>) -> Answer<'_, AttachmentId>;

    /// Whether an attachment is there.
    fn attachment_exists(&self, id: AttachmentId) -> Answer<'_, bool>;

    /// An attachment's bytes; `NOT_FOUND` if it is not there.
    fn open_attachment(&self, id: AttachmentId) -> Answer<'_, Vec<u8>>;

    /// The node's own entry in the network map.
    fn node_info(&self) -> Answer<'_, api::NodeInfo>;

    /// All entries of the network map.
    fn network_map_snapshot(&self) -> Answer<'_, Vec<api::NodeInfo>>;

    /// The notaries of the network.
    fn notary_identities(&self) -> Answer<'_, Vec<Party>>;

    /// The party of a legal name, if the network map has it.
    fn party_from_name(&self, name: X500Name) -> Answer<'_, Option<Party>>;

    /// The node's clock.
    fn current_node_time(&self) -> Answer<'_, Timestamp>;

    /// Version, role, lease, flows and queues. Answered also while the instance does not serve.
    fn diagnostics(&self) -> Answer<'_, api::Diagnostics>;

    /// Turns draining mode on or off, durably: while it is on, no flow starts.
    fn set_flows_draining_mode(&self, enabled: bool) -> Answer<'_, ()>;

    /// Whether draining mode is on.
    fn is_flows_draining_mode(&self) -> Answer<'_, bool>;

    /// Asks the node to stop, after its flows have ended if `drain`. Answers when the request is
    /// accepted; the node stops later.
    fn graceful_shutdown(&self, drain: bool) -> Answer<'_, ()>;
}

/// A call, as it is recorded. It holds no flow's arguments, and nothing else that may be secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Who calls.
    pub user: Arc<str>,
    /// By which interface: [`GRPC_INTERFACE`] or [`WEB_INTERFACE`].
    pub interface: &'static str,
    /// The operation.
    pub action: &'static str,
    /// Its parameters, as the shell writes them; of a flow only class and client id.
    pub parameters: String,
    /// Whether the user has the permission.
    pub allowed: bool,
}

/// The interface of calls by gRPC: its service.
pub const GRPC_INTERFACE: &str = "quorate.rpc.v1.NodeRpc";

/// The interface of calls as JSON over HTTP.
pub const WEB_INTERFACE: &str = "JSON over HTTP";

/// What both edges need to know.
pub struct RpcOptions {
    /// Who may call.
    pub users: Users,
    /// Whose node it is.
    pub legal_name: X500Name,
    /// Release of the software, for clients and the status page.
    pub release: String,
    /// Takes a span of each call.
    pub traces: Traces,
    /// Where the ids of spans come from.
    pub entropy: Entropy,
    /// What they are timed by.
    pub clock: Clock,
}

/// The check-in desk for these users in front of a node; share one between both edges, so that
/// failed logins count wherever they happen.
pub fn desk(node: Arc<dyn NodeOperations>, options: RpcOptions) -> Arc<Desk> {
    Arc::new(Desk::new(node, options))
}
