//! What the active node answers to applications and operators: [`NodeOperations`] over the flow
//! driver, the store and the network map.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use quorate_flow::{FlowId, FlowOutcome, FlowStatus, FlowView};
use quorate_identity::{Party, X500Name};
use quorate_ledger::vault::{Cursor, VaultQuery, VaultUpdate};
use quorate_ledger::{
    Attachment, AttachmentId, PLATFORM_VERSION, StateAndRef, Timestamp, TransactionState, TxId,
};
use quorate_messaging::BridgeState;
use quorate_rpc::{ErrorCode, RpcError, api};
use quorate_runtime::tasks::chain;
use quorate_runtime::{Clock, Shutdown};
use quorate_storage::{CommitError, FlowRecord, NewAttachment, Store, UnitOfWork, Writer};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::applications::Applications;
use crate::driver::{Flows, Order, StartError, start_by_client};
use crate::host::Host;
use crate::instance::Identification;
use crate::network_map::NetworkSnapshot;
use crate::post::Post;
use crate::rpc::{Answer, Call, Caller, NodeOperations};
use crate::rpc_audit::RpcAudit;

/// The setting that keeps draining mode over restarts and failovers.
pub(crate) const DRAINING: &str = "flowsDrainingMode";

/// Ended flows that are read at a time, and at the most, for one answer.
const FINISHED_PAGE: u32 = 1_000;
const MAX_FINISHED: usize = 20_000;

/// Checkpoints that one answer shows at the most.
const MAX_DUMPED: u32 = 1_000;

/// Between two looks at the number of running flows while the node drains.
const DRAIN_POLL: Duration = Duration::from_millis(100);

/// The node's operations while it is active. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Operations {
    pub(crate) flows: Flows,
    pub(crate) store: Store,
    pub(crate) writer: Writer,
    pub(crate) host: Arc<Host>,
    pub(crate) post: Post,
    pub(crate) network: watch::Receiver<Arc<NetworkSnapshot>>,
    pub(crate) applications: Arc<Applications>,
    pub(crate) clock: Clock,
    pub(crate) identification: Arc<Identification>,
    /// Held while draining mode changes.
    pub(crate) draining: Arc<tokio::sync::Mutex<()>>,
    /// Present if calls are to be recorded.
    pub(crate) audit: Option<Arc<RpcAudit>>,
    /// Ends the process.
    pub(crate) shutdown: Shutdown,
}

impl Operations {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.clock.now_micros())
    }

    fn read_state(&self, state: &TransactionState) -> Option<serde_json::Value> {
        self.applications.read_state(state)
    }

    fn state(&self, state: StateAndRef) -> api::State {
        let content = self.read_state(&state.state);
        api::State::new(state, content)
    }

    async fn find(&self, key: &api::FlowKey) -> Result<api::FlowStatus, RpcError> {
        let id = match key {
            api::FlowKey::Flow(id) => flow_id(id)?,
            api::FlowKey::Client(id) => {
                let id = client_id(id)?;
                match self.flows.of_client(&id).await {
                    Some(flow) => flow,
                    None => self
                        .store
                        .flow_by_client_id(&id)
                        .await
                        .map_err(|e| internal(&e))?
                        .map(|record| record.flow)
                        .ok_or_else(|| not_known(key))?,
                }
            }
        };
        self.status(id).await?.ok_or_else(|| not_known(key))
    }

    /// A flow as it stands: running, or as stored.
    async fn status(&self, flow: FlowId) -> Result<Option<api::FlowStatus>, RpcError> {
        if let Some(view) = self.flows.view(flow).await {
            return Ok(Some(self.of_view(view)));
        }
        if let Some(record) = self.store.flow(flow).await.map_err(|e| internal(&e))? {
            return Ok(Some(self.of_record(record)));
        }
        // A flow without a client id leaves the store when it ends.
        let ended = self.flows.ended_lately(flow);
        Ok(ended.map(|record| self.of_record(record)))
    }

    fn of_view(&self, view: FlowView) -> api::FlowStatus {
        api::FlowStatus {
            flow_id: api::FlowId::from_bytes(*view.flow.as_bytes()),
            class: view.class,
            client_id: view
                .client_id
                .and_then(|id| api::ClientId::new(id.as_str()).ok()),
            state: state_of(view.status),
            progress: view.progress,
            waiting_for: view.waiting_for,
            started_at: view.started_at,
            finished_at: None,
            result: None,
            error: view.ailment,
            owner: Some(self.identification.instance.clone()),
        }
    }

    fn of_record(&self, record: FlowRecord) -> api::FlowStatus {
        let (result, error) = match record.outcome {
            Some(FlowOutcome::Completed { result }) => (serde_json::from_str(&result).ok(), None),
            Some(FlowOutcome::Failed { error }) => (None, Some(error_text(&error))),
            Some(FlowOutcome::Killed) => (None, Some("an operator killed the flow".to_owned())),
            None => (None, None),
        };
        api::FlowStatus {
            flow_id: api::FlowId::from_bytes(*record.flow.as_bytes()),
            class: record.start.class,
            client_id: record
                .start
                .client_id
                .and_then(|id| api::ClientId::new(id.as_str()).ok()),
            state: state_of(record.status),
            progress: record.progress,
            waiting_for: None,
            started_at: record.start.started_at,
            finished_at: record.finished_at,
            result,
            error,
            owner: Some(self.identification.instance.clone()),
        }
    }

    fn of_update(&self, update: VaultUpdate) -> api::VaultUpdate {
        let states = |states: Vec<StateAndRef>| states.into_iter().map(|s| self.state(s)).collect();
        api::VaultUpdate {
            cursor: update.cursor,
            tx: update.tx,
            produced: states(update.produced),
            consumed: states(update.consumed),
            recorded_at: update.recorded_at,
        }
    }

    async fn order(&self, flow: &api::FlowId, order: Order) -> Result<bool, RpcError> {
        Ok(self.flows.order(flow_id(flow)?, order).await)
    }

    async fn commit(&self, unit: UnitOfWork) -> Result<quorate_storage::Committed, RpcError> {
        self.writer.commit(unit).await.map_err(|error| match error {
            CommitError::Refused(_) => RpcError::new(ErrorCode::Conflict, chain(&error)),
            CommitError::Transient(_) => RpcError::new(ErrorCode::Overloaded, chain(&error)),
            _ => RpcError::new(ErrorCode::NotReady, chain(&error)),
        })
    }
}

impl NodeOperations for Operations {
    fn records_calls(&self) -> bool {
        self.audit.is_some()
    }

    fn record_call(&self, call: Call) -> Answer<'_, ()> {
        Box::pin(async move {
            match &self.audit {
                Some(audit) => audit.record(call).await,
                None => Ok(()),
            }
        })
    }

    fn start_flow<'a>(
        &'a self,
        caller: &'a Caller,
        request: api::StartFlow,
    ) -> Answer<'a, api::FlowHandle> {
        Box::pin(async move {
            let id = request.client_id.as_ref().map(client_id).transpose()?;
            let class = request.flow;
            let start = start_by_client(
                &caller.user,
                class.clone(),
                request.arguments.to_string(),
                id,
                self.now(),
            );
            let started = self
                .flows
                .start_within(start, caller.trace.map(|trace| trace.own))
                .await
                .map_err(|error| match &error {
                    StartError::Refused(refused) => {
                        use quorate_flow::StartRefused as R;
                        let code = match refused {
                            R::UnknownFlow { .. } => ErrorCode::NotFound,
                            R::BadArguments { .. } => ErrorCode::InvalidArgument,
                            R::Draining => ErrorCode::Draining,
                            R::Busy { .. } => ErrorCode::Overloaded,
                        };
                        RpcError::new(code, error.to_string())
                    }
                    StartError::Store(_) => RpcError::new(ErrorCode::Overloaded, error.to_string()),
                    StartError::Stopping => RpcError::new(ErrorCode::NotReady, error.to_string()),
                })?;
            let handle = api::FlowHandle {
                flow_id: api::FlowId::from_bytes(*started.flow.as_bytes()),
                client_id: request.client_id,
                reattached: started.reattached,
            };
            if started.reattached
                && let Some(known) = self.status(started.flow).await?
                && known.class != class
            {
                return Err(RpcError::new(
                    ErrorCode::Conflict,
                    format!(
                        "the client id belongs to flow {} of class {}, not {class}; \
                         use another client id",
                        handle.flow_id, known.class
                    ),
                ));
            }
            Ok(handle)
        })
    }

    fn flow_status(&self, key: api::FlowKey, wait: Duration) -> Answer<'_, api::FlowStatus> {
        Box::pin(async move {
            let deadline = Instant::now() + wait;
            // Subscribed before the first look, so that no end falls between the two.
            let mut feed = self.flows.feed();
            loop {
                feed.mark_seen();
                let status = self.find(&key).await?;
                if status.state.ended() || Instant::now() >= deadline {
                    return Ok(status);
                }
                let flow = flow_id(&status.flow_id)?;
                if tokio::time::timeout_at(deadline, feed.changed(flow))
                    .await
                    .is_err()
                {
                    return self.find(&key).await;
                }
            }
        })
    }

    fn remove_client_id(&self, id: api::ClientId) -> Answer<'_, bool> {
        Box::pin(async move {
            let id = client_id(&id)?;
            if self.flows.of_client(&id).await.is_some() {
                return Err(RpcError::new(
                    ErrorCode::Conflict,
                    format!("the flow of client id '{id}' runs; wait for its end, or kill it"),
                ));
            }
            let mut unit = UnitOfWork::new();
            unit.removed_client_ids.push(id);
            Ok(!self.commit(unit).await?.removed_client_ids.is_empty())
        })
    }

    fn finished_flows_with_client_ids(&self) -> Answer<'_, Vec<api::FinishedFlow>> {
        Box::pin(async move {
            let mut records: Vec<FlowRecord> = Vec::new();
            loop {
                let after = records.last().and_then(|r| r.start.client_id.clone());
                let page = self
                    .store
                    .finished_flows_with_client_ids(after.as_ref(), FINISHED_PAGE)
                    .await
                    .map_err(|e| internal(&e))?;
                let complete = (page.len() as u32) < FINISHED_PAGE;
                records.extend(page);
                if complete || records.len() >= MAX_FINISHED {
                    break;
                }
            }
            Ok(records
                .into_iter()
                .filter_map(|record| {
                    let id = record.start.client_id.as_ref()?;
                    Some(api::FinishedFlow {
                        client_id: api::ClientId::new(id.as_str()).ok()?,
                        flow_id: api::FlowId::from_bytes(*record.flow.as_bytes()),
                        class: record.start.class,
                        succeeded: record.status == FlowStatus::Completed,
                        finished_at: record.finished_at,
                    })
                })
                .collect())
        })
    }

    fn flows(&self) -> Answer<'_, Vec<api::FlowStatus>> {
        Box::pin(async move {
            let views = self.flows.views().await;
            Ok(views.into_iter().map(|view| self.of_view(view)).collect())
        })
    }

    fn flow_updates(&self, after: u64, wait: Duration) -> Answer<'_, api::FlowUpdates> {
        Box::pin(async move {
            let deadline = Instant::now() + wait;
            let mut feed = self.flows.feed();
            loop {
                feed.mark_seen();
                let Some((cursor, changed)) = self.flows.changed_since(after) else {
                    // Not a cursor of this process, or too old: everything.
                    let cursor = self.flows.cursor();
                    let flows = self.flows().await?;
                    return Ok(api::FlowUpdates { cursor, flows });
                };
                if !changed.is_empty() || Instant::now() >= deadline {
                    let mut flows = Vec::with_capacity(changed.len());
                    for flow in changed.into_iter().collect::<BTreeSet<_>>() {
                        flows.extend(self.status(flow).await?);
                    }
                    return Ok(api::FlowUpdates { cursor, flows });
                }
                let _ = tokio::time::timeout_at(deadline, feed.any()).await;
            }
        })
    }

    fn kill_flow(&self, flow: api::FlowId) -> Answer<'_, bool> {
        Box::pin(async move { self.order(&flow, Order::Kill).await })
    }

    fn pause_flow(&self, flow: api::FlowId) -> Answer<'_, bool> {
        Box::pin(async move { self.order(&flow, Order::Pause).await })
    }

    fn retry_flow(&self, flow: api::FlowId) -> Answer<'_, bool> {
        Box::pin(async move {
            let stopped = self.flows.view(flow_id(&flow)?).await.is_some_and(|view| {
                matches!(view.status, FlowStatus::Paused | FlowStatus::Hospitalised)
            });
            Ok(stopped && self.order(&flow, Order::Retry).await?)
        })
    }

    fn control_flows(&self, action: api::FlowControl) -> Answer<'_, u64> {
        Box::pin(async move {
            use api::FlowControl as C;
            let (order, wanted): (Order, fn(&FlowView) -> bool) = match action {
                C::PauseAll => (Order::Pause, |view| view.status != FlowStatus::Paused),
                C::PauseAllHospitalized => {
                    (Order::Pause, |view| view.status == FlowStatus::Hospitalised)
                }
                C::RetryAllPaused => (Order::Retry, |view| view.status == FlowStatus::Paused),
                C::RetryAllPausedHospitalized => (Order::Retry, |view| {
                    view.status == FlowStatus::Paused && view.ailment.is_some()
                }),
            };
            let mut count = 0;
            for view in self.flows.views().await.into_iter().filter(wanted) {
                count += u64::from(self.flows.order(view.flow, order).await);
            }
            Ok(count)
        })
    }

    fn hospital(&self) -> Answer<'_, Vec<api::HospitalRecord>> {
        Box::pin(async move {
            let views = self.flows.views().await;
            Ok(views
                .into_iter()
                .filter(|view| view.status == FlowStatus::Hospitalised)
                .map(|view| api::HospitalRecord {
                    flow_id: api::FlowId::from_bytes(*view.flow.as_bytes()),
                    class: view.class,
                    admitted_at: view.since,
                    attempts: view.visits,
                    error: view.ailment.unwrap_or_default(),
                    treatment: "observation".to_owned(),
                    next_attempt_at: None,
                })
                .collect())
        })
    }

    fn dump_checkpoints(&self) -> Answer<'_, Vec<api::Checkpoint>> {
        Box::pin(async move {
            let stored = self.store.unfinished_flows(None, MAX_DUMPED).await;
            Ok(stored
                .map_err(|e| internal(&e))?
                .flows
                .into_iter()
                .map(|checkpoint| {
                    let header: serde_json::Value =
                        serde_json::from_slice(&checkpoint.header).unwrap_or_default();
                    let journal: Vec<BTreeMap<&str, String>> = checkpoint
                        .entries
                        .iter()
                        .map(|(_, bytes)| quorate_flow::describe_entry(bytes))
                        .collect();
                    api::Checkpoint {
                        flow_id: api::FlowId::from_bytes(*checkpoint.flow.as_bytes()),
                        class: checkpoint.start.class,
                        content: serde_json::json!({
                            "status": checkpoint.status.name(),
                            "arguments": checkpoint.start.arguments,
                            "progress": checkpoint.progress,
                            "header": header,
                            "journal": journal,
                        }),
                    }
                })
                .collect())
        })
    }

    fn registered_flows(&self) -> Answer<'_, Vec<api::RegisteredFlow>> {
        Box::pin(async move {
            let owners = &self.applications.owners;
            Ok(owners
                .iter()
                .map(|(name, app)| api::RegisteredFlow {
                    name: name.clone(),
                    app: app.clone(),
                })
                .collect())
        })
    }

    fn vault_query(&self, query: VaultQuery) -> Answer<'_, api::VaultPage> {
        Box::pin(async move {
            let page = self.store.vault_query(&query).await.map_err(|e| {
                if e.is_transient() {
                    internal(&e)
                } else {
                    RpcError::new(ErrorCode::InvalidArgument, chain(&e))
                }
            })?;
            Ok(api::VaultPage {
                total: page.total,
                number: page.number,
                size: page.size,
                states: page
                    .states
                    .into_iter()
                    .map(|row| {
                        let content = self.read_state(&row.state.state);
                        api::VaultState::new(row, content)
                    })
                    .collect(),
            })
        })
    }

    fn vault_cursor(&self) -> Answer<'_, Cursor> {
        Box::pin(async move { self.store.vault_cursor().await.map_err(|e| internal(&e)) })
    }

    fn vault_updates(
        &self,
        after: Cursor,
        limit: usize,
        wait: Duration,
    ) -> Answer<'_, api::VaultUpdates> {
        Box::pin(async move {
            let deadline = Instant::now() + wait;
            let limit = u32::try_from(limit).unwrap_or(u32::MAX);
            let mut news = self.host.updates();
            loop {
                let updates = self
                    .store
                    .vault_updates_since(after, limit)
                    .await
                    .map_err(|e| internal(&e))?;
                if let Some(last) = updates.last() {
                    return Ok(api::VaultUpdates {
                        cursor: last.cursor,
                        updates: updates.into_iter().map(|u| self.of_update(u)).collect(),
                    });
                }
                // A lagging receiver has missed some, so there is something to read.
                if Instant::now() >= deadline
                    || tokio::time::timeout_at(deadline, news.recv())
                        .await
                        .is_err()
                {
                    return Ok(api::VaultUpdates {
                        cursor: after,
                        updates: Vec::new(),
                    });
                }
            }
        })
    }

    fn transaction(&self, id: TxId) -> Answer<'_, api::Transaction> {
        Box::pin(async move {
            let mut stored = self
                .store
                .transactions(&[id])
                .await
                .map_err(|e| internal(&e))?;
            let stored = stored.remove(&id).ok_or_else(|| {
                RpcError::new(
                    ErrorCode::NotFound,
                    format!("transaction {id} is not in this node's store"),
                )
            })?;
            Ok(api::Transaction::new(
                stored.transaction,
                stored.is_final,
                Some(stored.recorded_at),
                |state| self.read_state(state),
            ))
        })
    }

    fn upload_attachment(&self, bytes: Vec<u8>) -> Answer<'_, AttachmentId> {
        Box::pin(async move {
            let attachment = Attachment::new(bytes)
                .map_err(|e| RpcError::new(ErrorCode::TooLarge, e.to_string()))?;
            let unit = UnitOfWork::attachment(NewAttachment {
                id: attachment.id(),
                bytes: attachment.content().into(),
                uploader: "rpc".to_owned(),
            });
            self.commit(unit).await?;
            Ok(attachment.id())
        })
    }

    fn attachment_exists(&self, id: AttachmentId) -> Answer<'_, bool> {
        Box::pin(async move {
            let missing = self.store.missing_attachments(&[id]).await;
            Ok(missing.map_err(|e| internal(&e))?.is_empty())
        })
    }

    fn open_attachment(&self, id: AttachmentId) -> Answer<'_, Vec<u8>> {
        Box::pin(async move {
            let stored = self.store.attachment(&id).await.map_err(|e| internal(&e))?;
            stored.map(|stored| stored.bytes).ok_or_else(|| {
                RpcError::new(
                    ErrorCode::NotFound,
                    format!("attachment {id} is not in this node's store"),
                )
            })
        })
    }

    fn node_info(&self) -> Answer<'_, api::NodeInfo> {
        Box::pin(async move { Ok(of_node_info(self.network.borrow().own())) })
    }

    fn network_map_snapshot(&self) -> Answer<'_, Vec<api::NodeInfo>> {
        Box::pin(async move { Ok(self.network.borrow().nodes().map(of_node_info).collect()) })
    }

    fn notary_identities(&self) -> Answer<'_, Vec<Party>> {
        Box::pin(async move {
            let network = self.network.borrow();
            Ok(network
                .notaries()
                .iter()
                .map(|notary| notary.identity.clone())
                .collect())
        })
    }

    fn party_from_name(&self, name: X500Name) -> Answer<'_, Option<Party>> {
        Box::pin(async move { Ok(self.network.borrow().party(&name).cloned()) })
    }

    fn current_node_time(&self) -> Answer<'_, Timestamp> {
        Box::pin(async move { Ok(self.now()) })
    }

    fn diagnostics(&self) -> Answer<'_, api::Diagnostics> {
        Box::pin(async move {
            let id = &self.identification;
            let mut flows_by_state = BTreeMap::new();
            for view in self.flows.views().await {
                *flows_by_state.entry(state_of(view.status)).or_insert(0) += 1;
            }
            let lease = quorate_storage::lease::current(&self.store, &id.resource)
                .await
                .map_err(|e| internal(&e))?;
            let queues = self.store.outbox_peers().await.map_err(|e| internal(&e))?;
            Ok(api::Diagnostics {
                version: id.release.clone(),
                revision: id.revision.clone(),
                platform_version: PLATFORM_VERSION,
                legal_name: id.legal_name.clone(),
                instance: id.instance.clone(),
                role: api::Role::Active,
                lease: lease.map(|lease| api::Lease {
                    resource: lease.resource.to_string(),
                    holder: lease.holder.instance(),
                    generation: lease.generation,
                    renewed_at: lease.renewed_at,
                }),
                flows_by_state,
                queues: queues
                    .into_iter()
                    .map(|queue| {
                        let link = self.post.link(&queue.peer);
                        api::PeerQueue {
                            queued: queue.waiting,
                            connected: link.as_ref().is_some_and(|link| {
                                matches!(link.bridge, BridgeState::Connected(..))
                            }),
                            oldest_at: None,
                            last_error: link.and_then(|link| link.last_error),
                            peer: queue.peer,
                        }
                    })
                    .collect(),
                draining: self.is_flows_draining_mode().await?,
                started_at: id.started_at,
                apps: self
                    .applications
                    .names
                    .iter()
                    .map(|(name, version)| api::AppInfo {
                        name: name.clone(),
                        version: version.to_string(),
                    })
                    .collect(),
            })
        })
    }

    fn set_flows_draining_mode(&self, enabled: bool) -> Answer<'_, ()> {
        Box::pin(async move {
            // Store and machine must hear of two calls in the same order.
            let _turn = self.draining.lock().await;
            self.commit(UnitOfWork::setting(DRAINING, Some(enabled.to_string())))
                .await?;
            self.flows.set_draining(enabled).await;
            tracing::info!(enabled, "flows draining mode was set");
            Ok(())
        })
    }

    fn is_flows_draining_mode(&self) -> Answer<'_, bool> {
        Box::pin(async move {
            let value = self
                .store
                .setting(DRAINING)
                .await
                .map_err(|e| internal(&e))?;
            Ok(value.as_deref() == Some("true"))
        })
    }

    fn graceful_shutdown(&self, drain: bool) -> Answer<'_, ()> {
        Box::pin(async move {
            if !drain {
                self.shutdown.request("an operator asked for it");
                return Ok(());
            }
            self.set_flows_draining_mode(true).await?;
            let this = self.clone();
            self.flows.tasks().spawn("drain", async move {
                let mut running = this.flows.running();
                loop {
                    let left = *running.borrow_and_update();
                    if left == 0 {
                        break;
                    }
                    tracing::info!(left, "draining: flows have not ended yet");
                    tokio::select! {
                        () = this.shutdown.requested() => return,
                        changed = running.changed() => if changed.is_err() { return },
                    }
                    tokio::time::sleep(DRAIN_POLL).await;
                }
                // The next start serves again.
                let unit = UnitOfWork::setting(DRAINING, None);
                if let Err(error) = this.writer.commit(unit).await {
                    tracing::warn!(error = %chain(&error), "draining mode stays on for the next start");
                }
                this.shutdown.request("an operator asked for it, and all flows have ended");
            });
            Ok(())
        })
    }
}

fn not_known(key: &api::FlowKey) -> RpcError {
    RpcError::new(
        ErrorCode::NotFound,
        format!("{key} is not known to this node"),
    )
}

fn state_of(status: FlowStatus) -> api::FlowState {
    match status {
        FlowStatus::Runnable => api::FlowState::Running,
        FlowStatus::Suspended => api::FlowState::Suspended,
        FlowStatus::Hospitalised => api::FlowState::Hospitalised,
        FlowStatus::Paused => api::FlowState::Paused,
        FlowStatus::Completed => api::FlowState::Completed,
        FlowStatus::Failed => api::FlowState::Failed,
        FlowStatus::Killed => api::FlowState::Killed,
    }
}

/// The text of a stored error.
fn error_text(json: &str) -> String {
    match serde_json::from_str::<quorate_flow::FlowError>(json) {
        Ok(error) => error.to_string(),
        Err(_) => json.to_owned(),
    }
}

fn flow_id(id: &api::FlowId) -> Result<FlowId, RpcError> {
    id.as_str().parse().map_err(|e: quorate_flow::IdError| {
        RpcError::new(ErrorCode::InvalidArgument, e.to_string())
    })
}

fn client_id(id: &api::ClientId) -> Result<quorate_flow::ClientId, RpcError> {
    quorate_flow::ClientId::new(id.as_str())
        .map_err(|e| RpcError::new(ErrorCode::InvalidArgument, e.to_string()))
}

fn internal(error: &quorate_storage::Error) -> RpcError {
    let code = if error.is_transient() {
        ErrorCode::Overloaded
    } else {
        ErrorCode::Internal
    };
    RpcError::new(code, chain(error))
}

fn of_node_info(info: &quorate_ledger::network::NodeInfo) -> api::NodeInfo {
    api::NodeInfo {
        addresses: info.addresses.iter().map(ToString::to_string).collect(),
        legal_identities: info
            .identities
            .iter()
            .map(|identity| api::Identity {
                party: identity.party().clone(),
                certificates: identity.path().to_ders(),
            })
            .collect(),
        platform_version: info.platform_version,
        serial: info.serial,
    }
}
