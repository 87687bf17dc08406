//! What happens to every call, whichever edge it comes through: who is it, may they, is it
//! sensible, is there room; then the call is recorded, if the node wants that, the node is asked,
//! within a time, and a line is written to the audit log.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_flow::{FlowTrace, TraceContext};
use quorate_identity::{Party, X500Name};
use quorate_ledger::vault::{Cursor, VaultQuery};
use quorate_ledger::{AttachmentId, Timestamp, TxId};
use quorate_rpc::api;
use quorate_rpc::{ErrorCode, Method, RpcError};
use quorate_runtime::traces::{Span, SpanKind};
use quorate_runtime::{Clock, Entropy, Traces};
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::access::{Caller, Connection, Gatekeeper};
use super::{Call, NodeOperations, RpcOptions};

/// Calls that the node works on at once.
pub const MAX_CALLS: usize = 4096;
/// Calls and streams that wait for something to happen.
pub const MAX_WAITS: usize = 8192;
/// Longest that one answer is held back for something to happen.
pub const MAX_WAIT: Duration = Duration::from_secs(30);
/// Longest that the node may work on one call, beyond what the call asked to wait.
pub const MAX_CALL_TIME: Duration = Duration::from_secs(120);
/// Vault updates that are fetched at once for a stream.
const UPDATES_AT_ONCE: usize = 100;
/// Most vault updates in one answer of a poll.
const MAX_UPDATES: usize = 1000;
/// Longest claimed user name in the audit log, in characters.
const MAX_LOGGED_NAME: usize = 64;

/// The check-in desk of both edges.
pub struct Desk {
    node: Arc<dyn NodeOperations>,
    gate: Gatekeeper,
    calls: Arc<Semaphore>,
    waits: Arc<Semaphore>,
    legal_name: X500Name,
    release: String,
    traces: Traces,
    entropy: Entropy,
    clock: Clock,
}

impl Desk {
    pub(super) fn new(node: Arc<dyn NodeOperations>, options: RpcOptions) -> Self {
        for operation in options.users.unknown_operations() {
            tracing::warn!(
                %operation,
                "a permission of an RPC user names an operation that this node does not have; it allows nothing"
            );
        }
        Self {
            node,
            gate: Gatekeeper::new(options.users),
            calls: Arc::new(Semaphore::new(MAX_CALLS)),
            waits: Arc::new(Semaphore::new(MAX_WAITS)),
            legal_name: options.legal_name,
            release: options.release,
            traces: options.traces,
            entropy: options.entropy,
            clock: options.clock,
        }
    }

    pub(super) fn legal_name(&self) -> &X500Name {
        &self.legal_name
    }

    pub(super) fn release(&self) -> &str {
        &self.release
    }

    pub(super) fn ready(&self) -> Result<(), RpcError> {
        self.node.ready()
    }

    /// Who calls. A failure is written to the audit log; a success shows in the call's own line.
    pub(super) fn identify(
        &self,
        connection: &Connection,
        authorization: Option<&[u8]>,
        interface: &'static str,
        what: &str,
        traceparent: Option<&[u8]>,
    ) -> Result<Caller, RpcError> {
        let mut who = self
            .gate
            .identify(connection, authorization, interface, Instant::now());
        if let Ok(caller) = &mut who
            && self.traces.is_on()
        {
            caller.trace = Some(self.trace(traceparent));
        }
        if let Err(error) = &who
            // The first request of a browser carries no credentials, and is answered with 401.
            && authorization.is_some()
        {
            let what: String = what.chars().take(MAX_LOGGED_NAME).collect();
            tracing::warn!(
                target: AUDIT,
                origin = %connection.peer(),
                method = ?what,
                outcome = %error.code,
                "RPC login failed"
            );
        }
        who
    }

    /// The answer to a client that has just connected.
    pub(super) fn hello(&self, caller: &Caller) -> Result<(), RpcError> {
        let outcome = self.ready();
        record(caller, "hello", None, &outcome);
        outcome
    }

    /// `work` is called only when everything has been checked.
    async fn ask<T, F>(
        &self,
        caller: &Caller,
        method: Method,
        parameters: impl FnOnce() -> String,
        work: impl FnOnce() -> F,
    ) -> Result<T, RpcError>
    where
        F: Future<Output = Result<T, RpcError>>,
    {
        self.audited(caller, method, None, async {
            let allowed = caller.may_invoke(method);
            self.keep(caller, method, allowed, parameters).await?;
            caller.require(method)?;
            self.ready()?;
            let _permit = self.room(&self.calls)?;
            in_time(MAX_CALL_TIME, work()).await
        })
        .await
    }

    /// Has the call recorded, if the node wants that, before anything of it is done.
    async fn keep(
        &self,
        caller: &Caller,
        method: Method,
        allowed: bool,
        parameters: impl FnOnce() -> String,
    ) -> Result<(), RpcError> {
        if !self.node.records_calls() {
            return Ok(());
        }
        let call = Call {
            user: caller.user.clone(),
            interface: caller.interface,
            action: method.name(),
            parameters: parameters(),
            allowed,
        };
        in_time(MAX_CALL_TIME, self.node.record_call(call)).await
    }

    async fn audited<T>(
        &self,
        caller: &Caller,
        method: Method,
        about: Option<&str>,
        work: impl Future<Output = Result<T, RpcError>>,
    ) -> Result<T, RpcError> {
        let began = self.clock.now_micros();
        let outcome = work.await;
        record(caller, method.name(), about, &outcome);
        if let Some(trace) = &caller.trace {
            let mut attributes = vec![
                ("rpc.system", "quorate".to_owned()),
                ("rpc.service", caller.interface.to_owned()),
                ("rpc.method", method.name().to_owned()),
                ("enduser.id", caller.user.to_string()),
            ];
            attributes.extend(about.map(|about| ("rpc.about", about.to_owned())));
            self.traces.record(Span {
                trace: trace.own.trace,
                span: trace.own.span,
                parent: trace.parent.map(|parent| parent.span),
                name: method.name().to_owned(),
                kind: SpanKind::Server,
                times: (began, self.clock.now_micros()),
                attributes,
                error: outcome.as_ref().err().map(|error| error.code.to_string()),
            });
        }
        outcome
    }

    /// The span of a call, in the trace that the caller names, if it names one.
    fn trace(&self, traceparent: Option<&[u8]>) -> FlowTrace {
        let parent = traceparent.and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
        let parent: Option<TraceContext> = parent;
        let drawn: [u8; 32] = self.entropy.bytes();
        let (mut trace, mut span) = ([0; 16], [0; 8]);
        trace.copy_from_slice(&drawn[..16]);
        span.copy_from_slice(&drawn[16..24]);
        let trace = parent.map_or(trace, |parent| parent.trace);
        FlowTrace {
            own: TraceContext { trace, span },
            parent,
        }
    }

    fn room(&self, places: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, RpcError> {
        places.clone().try_acquire_owned().map_err(|_| {
            RpcError::new(
                ErrorCode::Overloaded,
                "the node is working on as many calls as it takes at once",
            )
            .with_remedy("try again in a moment")
        })
    }

    pub(super) async fn start_flow(
        &self,
        caller: &Caller,
        mut request: api::StartFlow,
    ) -> Result<api::FlowHandle, RpcError> {
        let flow = request.flow.clone();
        let about = loggable(&flow);
        self.audited(caller, Method::StartFlow, Some(&about), async {
            let allowed = caller.require_start(&flow).is_ok();
            let client_id = request.client_id.as_ref().map(api::ClientId::as_str);
            self.keep(caller, Method::StartFlow, allowed, || match client_id {
                // Not its arguments, which may be anything.
                Some(id) => format!("flow: {flow}, clientId: {id}"),
                None => format!("flow: {flow}"),
            })
            .await?;
            if flow.is_empty()
                || flow.len() > api::MAX_FLOW_NAME_BYTES
                || flow.contains(char::is_control)
            {
                return Err(RpcError::invalid(format!(
                    "the name of a flow class has 1 to {} bytes and no control characters",
                    api::MAX_FLOW_NAME_BYTES
                )));
            }
            caller.require_start(&flow)?;
            self.ready()?;
            match &request.arguments {
                Value::Object(_) => {}
                Value::Null => request.arguments = Value::Object(serde_json::Map::new()),
                other => {
                    return Err(RpcError::invalid(format!(
                        "the arguments of a flow are a JSON object with the flow's fields, not {}",
                        kind(other)
                    )));
                }
            }
            let _permit = self.room(&self.calls)?;
            in_time(MAX_CALL_TIME, self.node.start_flow(caller, request)).await
        })
        .await
    }

    /// Whoever may start a flow may ask how it went; others need the operation's permission.
    pub(super) async fn flow_status(
        &self,
        caller: &Caller,
        key: api::FlowKey,
        wait: Duration,
    ) -> Result<api::FlowStatus, RpcError> {
        let method = match key {
            api::FlowKey::Flow(_) => Method::FlowStatus,
            api::FlowKey::Client(_) => Method::ReattachFlowWithClientId,
        };
        let about = key.to_string();
        self.audited(caller, method, Some(&about), async {
            let wait = wait.min(MAX_WAIT);
            let parameters = || match &key {
                api::FlowKey::Flow(id) => format!("flowId: {id}"),
                api::FlowKey::Client(id) => format!("clientId: {id}"),
            };
            if caller.may_invoke(method) {
                self.keep(caller, method, true, parameters).await?;
                self.ready()?;
            } else {
                self.ready()?;
                let own = self.own_flow(caller, method, key.clone()).await;
                self.keep(caller, method, own.is_ok(), parameters).await?;
                let status = own?;
                if status.state.ended() {
                    return Ok(status);
                }
            }
            let places = if wait.is_zero() {
                &self.calls
            } else {
                &self.waits
            };
            let _permit = self.room(places)?;
            in_time(wait + MAX_CALL_TIME, self.node.flow_status(key, wait)).await
        })
        .await
    }

    /// The flow, if the caller may start its class; otherwise the refusal that the caller would
    /// get if there were no such flow.
    async fn own_flow(
        &self,
        caller: &Caller,
        method: Method,
        key: api::FlowKey,
    ) -> Result<api::FlowStatus, RpcError> {
        let _permit = self.room(&self.calls)?;
        let status = in_time(MAX_CALL_TIME, self.node.flow_status(key, Duration::ZERO)).await?;
        match caller.require_start(&status.class) {
            Ok(()) => Ok(status),
            Err(_) => Err(caller
                .require(method)
                .err()
                .unwrap_or_else(|| RpcError::internal("the permission was there and is gone"))),
        }
    }

    pub(super) async fn remove_client_id(
        &self,
        caller: &Caller,
        id: api::ClientId,
    ) -> Result<bool, RpcError> {
        let about = loggable(id.as_str());
        let method = Method::RemoveClientId;
        self.audited(caller, method, Some(&about), async {
            let parameters = || format!("clientId: {id}");
            if caller.may_invoke(method) {
                self.keep(caller, method, true, parameters).await?;
                self.ready()?;
            } else {
                self.ready()?;
                let key = api::FlowKey::Client(id.clone());
                let own = self.own_flow(caller, method, key).await;
                self.keep(caller, method, own.is_ok(), parameters).await?;
                match own {
                    Err(error) if error.code == ErrorCode::NotFound => return Ok(false),
                    other => other?,
                };
            }
            let _permit = self.room(&self.calls)?;
            in_time(MAX_CALL_TIME, self.node.remove_client_id(id)).await
        })
        .await
    }

    pub(super) async fn finished_flows_with_client_ids(
        &self,
        caller: &Caller,
    ) -> Result<Vec<api::FinishedFlow>, RpcError> {
        let work = || self.node.finished_flows_with_client_ids();
        self.ask(
            caller,
            Method::FinishedFlowsWithClientIds,
            String::new,
            work,
        )
        .await
    }

    pub(super) async fn flows(&self, caller: &Caller) -> Result<Vec<api::FlowStatus>, RpcError> {
        self.ask(caller, Method::StateMachinesSnapshot, String::new, || {
            self.node.flows()
        })
        .await
    }

    pub(super) async fn flow_updates(
        &self,
        caller: &Caller,
        after: u64,
        wait: Duration,
    ) -> Result<api::FlowUpdates, RpcError> {
        let method = Method::StateMachinesFeed;
        self.audited(caller, method, None, async {
            let parameters = || format!("after: {after}");
            let _place = self.waiting(caller, method, parameters).await?;
            self.more_flows(after, wait).await
        })
        .await
    }

    pub(super) async fn kill_flow(
        &self,
        caller: &Caller,
        flow: api::FlowId,
    ) -> Result<bool, RpcError> {
        self.one_flow(caller, Method::KillFlow, &flow, || {
            self.node.kill_flow(flow.clone())
        })
        .await
    }

    pub(super) async fn pause_flow(
        &self,
        caller: &Caller,
        flow: api::FlowId,
    ) -> Result<bool, RpcError> {
        self.one_flow(caller, Method::PauseFlow, &flow, || {
            self.node.pause_flow(flow.clone())
        })
        .await
    }

    pub(super) async fn retry_flow(
        &self,
        caller: &Caller,
        flow: api::FlowId,
    ) -> Result<bool, RpcError> {
        self.one_flow(caller, Method::RetryFlow, &flow, || {
            self.node.retry_flow(flow.clone())
        })
        .await
    }

    async fn one_flow<F>(
        &self,
        caller: &Caller,
        method: Method,
        flow: &api::FlowId,
        work: impl FnOnce() -> F,
    ) -> Result<bool, RpcError>
    where
        F: Future<Output = Result<bool, RpcError>>,
    {
        self.audited(caller, method, Some(flow.as_str()), async {
            let allowed = caller.may_invoke(method);
            self.keep(caller, method, allowed, || format!("flowId: {flow}"))
                .await?;
            caller.require(method)?;
            self.ready()?;
            let _permit = self.room(&self.calls)?;
            in_time(MAX_CALL_TIME, work()).await
        })
        .await
    }

    pub(super) async fn control_flows(
        &self,
        caller: &Caller,
        action: api::FlowControl,
    ) -> Result<u64, RpcError> {
        let method = match action {
            api::FlowControl::PauseAll => Method::PauseAllFlows,
            api::FlowControl::PauseAllHospitalized => Method::PauseAllHospitalizedFlows,
            api::FlowControl::RetryAllPaused => Method::RetryAllPausedFlows,
            api::FlowControl::RetryAllPausedHospitalized => Method::RetryAllPausedHospitalizedFlows,
        };
        self.ask(caller, method, String::new, || {
            self.node.control_flows(action)
        })
        .await
    }

    pub(super) async fn hospital(
        &self,
        caller: &Caller,
    ) -> Result<Vec<api::HospitalRecord>, RpcError> {
        self.ask(caller, Method::HospitalSnapshot, String::new, || {
            self.node.hospital()
        })
        .await
    }

    pub(super) async fn dump_checkpoints(
        &self,
        caller: &Caller,
    ) -> Result<Vec<api::Checkpoint>, RpcError> {
        self.ask(caller, Method::DumpCheckpoints, String::new, || {
            self.node.dump_checkpoints()
        })
        .await
    }

    pub(super) async fn registered_flows(
        &self,
        caller: &Caller,
    ) -> Result<Vec<api::RegisteredFlow>, RpcError> {
        self.ask(caller, Method::RegisteredFlows, String::new, || {
            self.node.registered_flows()
        })
        .await
    }

    pub(super) async fn vault_query(
        &self,
        caller: &Caller,
        query: VaultQuery,
    ) -> Result<api::VaultPage, RpcError> {
        let criteria = if self.node.records_calls() {
            serde_json::to_string(&query.criteria).unwrap_or_default()
        } else {
            String::new()
        };
        let work = || async {
            let checked = query.validate();
            checked.map_err(|error| RpcError::invalid(error.to_string()))?;
            self.node.vault_query(query).await
        };
        self.ask(
            caller,
            Method::VaultQuery,
            || format!("criteria: {criteria}"),
            work,
        )
        .await
    }

    /// Updates for a poll: up to `limit`, waiting up to `wait`.
    pub(super) async fn vault_updates(
        &self,
        caller: &Caller,
        after: Option<Cursor>,
        limit: Option<usize>,
        wait: Duration,
    ) -> Result<api::VaultUpdates, RpcError> {
        let method = Method::VaultTrack;
        self.audited(caller, method, None, async {
            let parameters = || cursor_parameter(after);
            let _place = self.waiting(caller, method, parameters).await?;
            let after = match after {
                Some(cursor) => cursor,
                None => in_time(MAX_CALL_TIME, self.node.vault_cursor()).await?,
            };
            let limit = limit.unwrap_or(UPDATES_AT_ONCE).clamp(1, MAX_UPDATES);
            let wait = wait.min(MAX_WAIT);
            let work = self.node.vault_updates(after, limit, wait);
            in_time(wait + MAX_CALL_TIME, work).await
        })
        .await
    }

    /// The beginning of a stream of updates: where it starts. Its place is given back when the
    /// stream ends.
    pub(super) async fn begin_vault_track(
        &self,
        caller: &Caller,
        after: Option<Cursor>,
    ) -> Result<(Cursor, OwnedSemaphorePermit), RpcError> {
        let method = Method::VaultTrack;
        self.audited(caller, method, None, async {
            let parameters = || cursor_parameter(after);
            let place = self.waiting(caller, method, parameters).await?;
            let latest = in_time(MAX_CALL_TIME, self.node.vault_cursor()).await?;
            match after {
                Some(cursor) if cursor > latest => Err(RpcError::new(
                    ErrorCode::InvalidArgument,
                    format!(
                        "cursor {} lies after the vault's latest update, which is {}",
                        cursor.0, latest.0
                    ),
                )
                .with_remedy(
                    "the cursor is of another node, or this node's database was set back to a backup",
                )),
                after => Ok((after.unwrap_or(latest), place)),
            }
        })
        .await
    }

    /// More updates of a stream that has begun; possibly none, after a while.
    pub(super) async fn more_updates(&self, after: Cursor) -> Result<api::VaultUpdates, RpcError> {
        self.ready()?;
        let work = self.node.vault_updates(after, UPDATES_AT_ONCE, MAX_WAIT);
        in_time(MAX_WAIT + MAX_CALL_TIME, work).await
    }

    /// The beginning of a stream of flows.
    pub(super) async fn begin_watch_flows(
        &self,
        caller: &Caller,
    ) -> Result<OwnedSemaphorePermit, RpcError> {
        let method = Method::StateMachinesFeed;
        let place = self.waiting(caller, method, String::new).await;
        record(caller, Method::StateMachinesFeed.name(), None, &place);
        place
    }

    /// More changes for a stream of flows that has begun; possibly none, after a while.
    pub(super) async fn more_flows(
        &self,
        after: u64,
        wait: Duration,
    ) -> Result<api::FlowUpdates, RpcError> {
        self.ready()?;
        let wait = wait.min(MAX_WAIT);
        in_time(wait + MAX_CALL_TIME, self.node.flow_updates(after, wait)).await
    }

    async fn waiting(
        &self,
        caller: &Caller,
        method: Method,
        parameters: impl FnOnce() -> String,
    ) -> Result<OwnedSemaphorePermit, RpcError> {
        let allowed = caller.may_invoke(method);
        self.keep(caller, method, allowed, parameters).await?;
        caller.require(method)?;
        self.ready()?;
        self.room(&self.waits)
    }

    pub(super) async fn transaction(
        &self,
        caller: &Caller,
        id: TxId,
    ) -> Result<api::Transaction, RpcError> {
        self.ask(
            caller,
            Method::Transaction,
            || format!("id: {id}"),
            || self.node.transaction(id),
        )
        .await
    }

    /// Refuses before the first byte of an attachment is read.
    pub(super) async fn admit_upload(&self, caller: &Caller) -> Result<(), RpcError> {
        let method = Method::UploadAttachment;
        let mut admitted = caller.require(method);
        if admitted.is_err() {
            // One that is admitted is recorded when it is all there.
            let kept = self.keep(caller, method, false, String::new).await;
            admitted = kept.and(admitted);
        }
        let admitted = admitted.and_then(|()| self.ready());
        if admitted.is_err() {
            record(caller, method.name(), None, &admitted);
        }
        admitted
    }

    pub(super) async fn upload_attachment(
        &self,
        caller: &Caller,
        bytes: Vec<u8>,
    ) -> Result<AttachmentId, RpcError> {
        let size = bytes.len();
        let checked = attachment_size(size);
        let work = || async {
            checked?;
            self.node.upload_attachment(bytes).await
        };
        self.ask(
            caller,
            Method::UploadAttachment,
            || format!("bytes: {size}"),
            work,
        )
        .await
    }

    pub(super) async fn attachment_exists(
        &self,
        caller: &Caller,
        id: AttachmentId,
    ) -> Result<bool, RpcError> {
        let work = || self.node.attachment_exists(id);
        self.ask(
            caller,
            Method::AttachmentExists,
            || format!("id: {id}"),
            work,
        )
        .await
    }

    pub(super) async fn open_attachment(
        &self,
        caller: &Caller,
        id: AttachmentId,
    ) -> Result<Vec<u8>, RpcError> {
        let work = || self.node.open_attachment(id);
        self.ask(caller, Method::OpenAttachment, || format!("id: {id}"), work)
            .await
    }

    pub(super) async fn node_info(&self, caller: &Caller) -> Result<api::NodeInfo, RpcError> {
        self.ask(caller, Method::NodeInfo, String::new, || {
            self.node.node_info()
        })
        .await
    }

    pub(super) async fn network_map_snapshot(
        &self,
        caller: &Caller,
    ) -> Result<Vec<api::NodeInfo>, RpcError> {
        let work = || self.node.network_map_snapshot();
        self.ask(caller, Method::NetworkMapSnapshot, String::new, work)
            .await
    }

    pub(super) async fn notary_identities(&self, caller: &Caller) -> Result<Vec<Party>, RpcError> {
        let work = || self.node.notary_identities();
        self.ask(caller, Method::NotaryIdentities, String::new, work)
            .await
    }

    pub(super) async fn party_from_name(
        &self,
        caller: &Caller,
        name: X500Name,
    ) -> Result<Option<Party>, RpcError> {
        let asked = name.clone();
        let work = || self.node.party_from_name(name);
        self.ask(
            caller,
            Method::WellKnownPartyFromX500Name,
            || format!("name: {asked}"),
            work,
        )
        .await
    }

    pub(super) async fn current_node_time(&self, caller: &Caller) -> Result<Timestamp, RpcError> {
        let work = || self.node.current_node_time();
        self.ask(caller, Method::CurrentNodeTime, String::new, work)
            .await
    }

    /// Answered also where the instance does not serve: that is when it is needed.
    pub(super) async fn diagnostics(&self, caller: &Caller) -> Result<api::Diagnostics, RpcError> {
        let method = Method::NodeDiagnosticInfo;
        self.audited(caller, method, None, async {
            let allowed = caller.may_invoke(method);
            self.keep(caller, method, allowed, String::new).await?;
            caller.require(method)?;
            in_time(MAX_CALL_TIME, self.node.diagnostics()).await
        })
        .await
    }

    pub(super) async fn set_flows_draining_mode(
        &self,
        caller: &Caller,
        enabled: bool,
    ) -> Result<(), RpcError> {
        let work = || self.node.set_flows_draining_mode(enabled);
        self.ask(
            caller,
            Method::SetFlowsDrainingModeEnabled,
            || format!("enabled: {enabled}"),
            work,
        )
        .await
    }

    pub(super) async fn is_flows_draining_mode(&self, caller: &Caller) -> Result<bool, RpcError> {
        let work = || self.node.is_flows_draining_mode();
        self.ask(
            caller,
            Method::IsFlowsDrainingModeEnabled,
            String::new,
            work,
        )
        .await
    }

    pub(super) async fn graceful_shutdown(
        &self,
        caller: &Caller,
        drain: bool,
    ) -> Result<(), RpcError> {
        let work = || self.node.graceful_shutdown(drain);
        self.ask(
            caller,
            Method::Terminate,
            || format!("drainPendingFlows: {drain}"),
            work,
        )
        .await
    }
}

/// Where the audit log's lines can be picked out or sent elsewhere.
const AUDIT: &str = "quorate::audit";

fn record<T>(
    caller: &Caller,
    method: &'static str,
    about: Option<&str>,
    outcome: &Result<T, RpcError>,
) {
    let outcome = match outcome {
        Ok(_) => "OK",
        Err(error) => error.code.as_str(),
    };
    let user = loggable(&caller.user);
    let about = about.unwrap_or_default();
    tracing::info!(target: AUDIT, %user, origin = %caller.origin, method, about, outcome, "RPC");
}

fn cursor_parameter(after: Option<Cursor>) -> String {
    after.map_or_else(String::new, |cursor| format!("after: {}", cursor.0))
}

/// What a caller wrote, fit for a log line.
fn loggable(text: &str) -> String {
    let shown = text.chars().filter(|c| !c.is_control());
    shown.take(api::MAX_FLOW_NAME_BYTES).collect()
}

async fn in_time<T>(
    time: Duration,
    work: impl Future<Output = Result<T, RpcError>>,
) -> Result<T, RpcError> {
    match tokio::time::timeout(time, work).await {
        Ok(outcome) => outcome,
        Err(_) => Err(RpcError::new(
            ErrorCode::TimedOut,
            format!("the node did not finish within {} s", time.as_secs()),
        )
        // It may have been done, so whether to repeat it is the caller's to decide.
        .with_retryable(false)),
    }
}

/// The answer to a stream or a long poll that this instance ends because it stops.
pub(super) fn stopping() -> RpcError {
    RpcError::new(ErrorCode::NotReady, "this instance is stopping")
        .with_remedy("ask at the node's other addresses")
}

pub(super) fn attachment_size(bytes: usize) -> Result<(), RpcError> {
    if bytes == 0 {
        return Err(RpcError::invalid("an attachment is not empty"));
    }
    if bytes > api::MAX_ATTACHMENT_BYTES {
        return Err(RpcError::new(
            ErrorCode::TooLarge,
            format!(
                "an attachment has at most {} bytes",
                api::MAX_ATTACHMENT_BYTES
            ),
        ));
    }
    Ok(())
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
