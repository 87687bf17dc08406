//! A node in memory: what the two instances of a node share, and an instance with real ports.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quorate_identity::{KeyPair, Party, SecureHash, X500Name};
use quorate_ledger::vault::{Cursor, StateStatus, VaultQuery};
use quorate_ledger::{
    AttachmentId, ContractRef, StateAndRef, StateRef, Timestamp, TransactionState, TxId,
};
use quorate_node::rpc::{
    self, Answer, Caller, ListenOptions, NodeOperations, RpcOptions, RpcServer, RpcUser, Users,
    WebServer,
};
use quorate_rpc::api::*;
use quorate_rpc::{ErrorCode, Options, Password, RpcError};
use quorate_runtime::{Clock, Entropy, Tasks, Traces};
use serde_json::{Value, json};
use tokio::sync::watch;

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn party(organisation: &str) -> Party {
    Party {
        name: format!("O={organisation}, L=Osaka, C=JP").parse().unwrap(),
        owning_key: KeyPair::ed25519_from_seed(&[7; 32]).public().clone(),
    }
}

pub(crate) fn state(n: u64, data: Vec<u8>) -> State {
    let state = TransactionState {
        contract: ContractRef {
            name: "test.Thing".into(),
            code: SecureHash::of(b"code"),
        },
        state_type: "test.Thing.State".into(),
        data,
        participants: vec![party("PartyA").owning_key],
        notary: party("Notary"),
    };
    let reference = StateRef::new(TxId::new(SecureHash::of(&n.to_be_bytes())), 0);
    State::new(StateAndRef::new(state, reference), Some(json!({ "n": n })))
}

#[derive(Default)]
struct Tables {
    flows: BTreeMap<FlowId, FlowStatus>,
    by_client_id: BTreeMap<ClientId, FlowId>,
    updates: Vec<VaultUpdate>,
    attachments: BTreeMap<AttachmentId, Vec<u8>>,
    changes: Vec<FlowId>,
    draining: bool,
}

/// What is in the database.
pub(crate) struct Shared {
    tables: Mutex<Tables>,
    changed: watch::Sender<u64>,
    pub(crate) started: AtomicUsize,
    pub(crate) stops_asked: AtomicUsize,
}

impl Shared {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            tables: Mutex::default(),
            changed: watch::channel(0).0,
            started: AtomicUsize::new(0),
            stops_asked: AtomicUsize::new(0),
        })
    }

    fn change<T>(&self, change: impl FnOnce(&mut Tables) -> T) -> T {
        let outcome = change(&mut self.tables.lock().unwrap());
        self.changed.send_modify(|n| *n += 1);
        outcome
    }

    /// Ends a flow, as its work would.
    pub(crate) fn finish(&self, id: &FlowId, outcome: Result<Value, String>) {
        self.change(|tables| {
            let flow = tables.flows.get_mut(id).unwrap();
            flow.finished_at = Some(Timestamp::from_micros(2_000_000));
            match outcome {
                Ok(result) => {
                    flow.state = FlowState::Completed;
                    flow.result = Some(result);
                }
                Err(error) => {
                    flow.state = FlowState::Failed;
                    flow.error = Some(error);
                }
            }
            tables.changes.push(id.clone());
        });
    }

    /// Records a transaction that produces one state.
    pub(crate) fn record(&self) {
        self.change(|tables| {
            let n = tables.updates.len() as u64 + 1;
            let produced = state(n, vec![1, 2, 3]);
            tables.updates.push(VaultUpdate {
                cursor: Cursor(n),
                tx: produced.reference.tx,
                produced: vec![produced],
                consumed: vec![],
                recorded_at: Timestamp::from_micros(n as i64),
            });
        });
    }

    async fn wait<T>(
        &self,
        wait: Duration,
        mut look: impl FnMut(&Tables) -> Option<T>,
    ) -> Option<T> {
        let mut changed = self.changed.subscribe();
        let search = async {
            loop {
                changed.borrow_and_update();
                if let Some(found) = look(&self.tables.lock().unwrap()) {
                    return found;
                }
                changed.changed().await.unwrap();
            }
        };
        tokio::time::timeout(wait, search).await.ok()
    }
}

/// One instance of the node.
pub(crate) struct Node {
    pub(crate) shared: Arc<Shared>,
    pub(crate) serving: AtomicBool,
}

fn answer<'a, T: Send + 'a>(value: Result<T, RpcError>) -> Answer<'a, T> {
    Box::pin(async move { value })
}

impl NodeOperations for Node {
    fn ready(&self) -> Result<(), RpcError> {
        if self.serving.load(Ordering::SeqCst) {
            return Ok(());
        }
        Err(RpcError::new(
            ErrorCode::NotReady,
            "this instance is on standby",
        ))
    }

    fn start_flow<'a>(&'a self, caller: &'a Caller, request: StartFlow) -> Answer<'a, FlowHandle> {
        Box::pin(async move {
            if request.flow == "test.Stuck" {
                std::future::pending::<()>().await;
            }
            if !request.flow.starts_with("test.") {
                return Err(
                    RpcError::not_found(format!("there is no flow '{}'", request.flow))
                        .with_remedy("there is: test.Hold"),
                );
            }
            assert!(!caller.user.is_empty());
            self.shared.change(|tables| {
                if let Some(id) = &request.client_id
                    && let Some(flow) = tables.by_client_id.get(id)
                {
                    return Ok(FlowHandle {
                        flow_id: flow.clone(),
                        client_id: request.client_id.clone(),
                        reattached: true,
                    });
                }
                let n = self.shared.started.fetch_add(1, Ordering::SeqCst) as u8;
                let id = FlowId::from_bytes([n; 16]);
                if let Some(client) = &request.client_id {
                    tables.by_client_id.insert(client.clone(), id.clone());
                }
                tables.flows.insert(
                    id.clone(),
                    FlowStatus {
                        flow_id: id.clone(),
                        class: request.flow,
                        client_id: request.client_id.clone(),
                        state: FlowState::Running,
                        progress: Some(request.arguments.to_string()),
                        waiting_for: None,
                        started_at: Timestamp::from_micros(1_000_000),
                        finished_at: None,
                        result: None,
                        error: None,
                        owner: None,
                    },
                );
                tables.changes.push(id.clone());
                Ok(FlowHandle {
                    flow_id: id,
                    client_id: request.client_id,
                    reattached: false,
                })
            })
        })
    }

    fn flow_status(&self, key: FlowKey, wait: Duration) -> Answer<'_, FlowStatus> {
        Box::pin(async move {
            let find = |tables: &Tables| {
                let id = match &key {
                    FlowKey::Flow(id) => id.clone(),
                    FlowKey::Client(id) => tables.by_client_id.get(id)?.clone(),
                };
                tables.flows.get(&id).cloned()
            };
            let now = find(&self.shared.tables.lock().unwrap());
            let now = now.ok_or_else(|| RpcError::not_found(format!("{key} is not known")))?;
            let ended = |tables: &Tables| find(tables).filter(|flow| flow.state.ended());
            Ok(self.shared.wait(wait, ended).await.unwrap_or(now))
        })
    }

    fn remove_client_id(&self, id: ClientId) -> Answer<'_, bool> {
        answer(Ok(self
            .shared
            .change(|tables| tables.by_client_id.remove(&id).is_some())))
    }

    fn finished_flows_with_client_ids(&self) -> Answer<'_, Vec<FinishedFlow>> {
        let tables = self.shared.tables.lock().unwrap();
        let finished = tables.by_client_id.iter().filter_map(|(client_id, flow)| {
            let flow = tables.flows.get(flow)?;
            flow.state.ended().then(|| FinishedFlow {
                client_id: client_id.clone(),
                flow_id: flow.flow_id.clone(),
                class: flow.class.clone(),
                succeeded: flow.state == FlowState::Completed,
                finished_at: flow.finished_at,
            })
        });
        answer(Ok(finished.collect()))
    }

    fn flows(&self) -> Answer<'_, Vec<FlowStatus>> {
        let tables = self.shared.tables.lock().unwrap();
        answer(Ok(tables.flows.values().cloned().collect()))
    }

    fn flow_updates(&self, after: u64, wait: Duration) -> Answer<'_, FlowUpdates> {
        Box::pin(async move {
            let found = self.shared.wait(wait, |tables| {
                let news = tables
                    .changes
                    .get(after as usize..)
                    .unwrap_or(&tables.changes);
                (!news.is_empty()).then(|| FlowUpdates {
                    cursor: tables.changes.len() as u64,
                    flows: news.iter().map(|id| tables.flows[id].clone()).collect(),
                })
            });
            let nothing = FlowUpdates {
                cursor: after,
                flows: vec![],
            };
            Ok(found.await.unwrap_or(nothing))
        })
    }

    fn kill_flow(&self, flow: FlowId) -> Answer<'_, bool> {
        answer(Ok(self.shared.change(|tables| {
            match tables.flows.get_mut(&flow) {
                Some(flow) if !flow.state.ended() => {
                    flow.state = FlowState::Killed;
                    true
                }
                _ => false,
            }
        })))
    }

    fn pause_flow(&self, _: FlowId) -> Answer<'_, bool> {
        answer(Ok(false))
    }

    fn retry_flow(&self, _: FlowId) -> Answer<'_, bool> {
        answer(Ok(false))
    }

    fn control_flows(&self, action: FlowControl) -> Answer<'_, u64> {
        answer(Ok(action as u64))
    }

    fn hospital(&self) -> Answer<'_, Vec<HospitalRecord>> {
        answer(Ok(vec![HospitalRecord {
            flow_id: FlowId::from_bytes([9; 16]),
            class: "test.Ill".into(),
            admitted_at: Timestamp::from_micros(5),
            attempts: 2,
            error: "the database is away".into(),
            treatment: "retry".into(),
            next_attempt_at: Some(Timestamp::from_micros(6)),
        }]))
    }

    fn dump_checkpoints(&self) -> Answer<'_, Vec<Checkpoint>> {
        answer(Ok(vec![Checkpoint {
            flow_id: FlowId::from_bytes([9; 16]),
            class: "test.Ill".into(),
            content: json!({ "journal": [1, 2] }),
        }]))
    }

    fn registered_flows(&self) -> Answer<'_, Vec<RegisteredFlow>> {
        answer(Ok(vec![RegisteredFlow {
            name: "test.Hold".into(),
            app: "test".into(),
        }]))
    }

    fn vault_query(&self, query: VaultQuery) -> Answer<'_, VaultPage> {
        // The page's size says how large the state is, in 12 KiB.
        let data = vec![7; 12_288 * query.page.size as usize];
        answer(Ok(VaultPage {
            states: vec![VaultState {
                state: state(1, data),
                status: StateStatus::Consumed,
                recorded_at: Timestamp::from_micros(1),
                consumed_at: Some(Timestamp::from_micros(2)),
                consumed_by: Some(TxId::new(SecureHash::of(b"later"))),
                locked_by: Some(FlowId::from_bytes([3; 16])),
            }],
            total: 1,
            number: query.page.number,
            size: query.page.size,
        }))
    }

    fn vault_cursor(&self) -> Answer<'_, Cursor> {
        let tables = self.shared.tables.lock().unwrap();
        answer(Ok(Cursor(tables.updates.len() as u64)))
    }

    fn vault_updates(
        &self,
        after: Cursor,
        limit: usize,
        wait: Duration,
    ) -> Answer<'_, VaultUpdates> {
        Box::pin(async move {
            let found = self.shared.wait(wait, |tables| {
                let news = tables.updates.get(after.0 as usize..).unwrap_or_default();
                let batch: Vec<_> = news.iter().take(limit).cloned().collect();
                batch
                    .last()
                    .map(|last| last.cursor)
                    .map(|cursor| VaultUpdates {
                        cursor,
                        updates: batch,
                    })
            });
            let nothing = VaultUpdates {
                cursor: after,
                updates: vec![],
            };
            Ok(found.await.unwrap_or(nothing))
        })
    }

    fn transaction(&self, id: TxId) -> Answer<'_, Transaction> {
        answer(Err(RpcError::not_found(format!(
            "transaction {id} is not here"
        ))))
    }

    fn upload_attachment(&self, bytes: Vec<u8>) -> Answer<'_, AttachmentId> {
        let id = attachment_id(&bytes);
        self.shared
            .change(|tables| tables.attachments.insert(id, bytes));
        answer(Ok(id))
    }

    fn attachment_exists(&self, id: AttachmentId) -> Answer<'_, bool> {
        let tables = self.shared.tables.lock().unwrap();
        answer(Ok(tables.attachments.contains_key(&id)))
    }

    fn open_attachment(&self, id: AttachmentId) -> Answer<'_, Vec<u8>> {
        let tables = self.shared.tables.lock().unwrap();
        let bytes = tables.attachments.get(&id).cloned();
        answer(bytes.ok_or_else(|| RpcError::not_found(format!("attachment {id} is not here"))))
    }

    fn node_info(&self) -> Answer<'_, NodeInfo> {
        answer(Ok(NodeInfo {
            addresses: vec!["party-a:10002".into()],
            legal_identities: vec![Identity {
                party: party("PartyA"),
                certificates: vec![vec![1, 2], vec![3]],
            }],
            platform_version: 1,
            serial: 42,
        }))
    }

    fn network_map_snapshot(&self) -> Answer<'_, Vec<NodeInfo>> {
        self.node_info_list()
    }

    fn notary_identities(&self) -> Answer<'_, Vec<Party>> {
        answer(Ok(vec![party("Notary")]))
    }

    fn party_from_name(&self, name: X500Name) -> Answer<'_, Option<Party>> {
        answer(Ok(Some(party("PartyA")).filter(|party| party.name == name)))
    }

    fn current_node_time(&self) -> Answer<'_, Timestamp> {
        answer(Ok(Timestamp::from_micros(1_234_567)))
    }

    fn diagnostics(&self) -> Answer<'_, Diagnostics> {
        answer(Ok(Diagnostics {
            version: "0.1.0".into(),
            revision: "abc".into(),
            platform_version: 1,
            legal_name: party("PartyA").name,
            instance: "machine-1".into(),
            role: match self.serving.load(Ordering::SeqCst) {
                true => Role::Active,
                false => Role::Standby,
            },
            lease: Some(Lease {
                resource: "node".into(),
                holder: "machine-1 /opt/node 17".into(),
                generation: 4,
                renewed_at: Timestamp::from_micros(9),
            }),
            flows_by_state: BTreeMap::from([(FlowState::Hospitalised, 1)]),
            queues: vec![PeerQueue {
                peer: party("PartyB").name,
                queued: 3,
                connected: false,
                oldest_at: Some(Timestamp::from_micros(8)),
                last_error: Some("refused".into()),
            }],
            draining: false,
            started_at: Timestamp::from_micros(7),
            apps: vec![AppInfo {
                name: "test".into(),
                version: "1".into(),
            }],
        }))
    }

    fn set_flows_draining_mode(&self, enabled: bool) -> Answer<'_, ()> {
        self.shared.change(|tables| tables.draining = enabled);
        answer(Ok(()))
    }

    fn is_flows_draining_mode(&self) -> Answer<'_, bool> {
        answer(Ok(self.shared.tables.lock().unwrap().draining))
    }

    fn graceful_shutdown(&self, _: bool) -> Answer<'_, ()> {
        self.shared.stops_asked.fetch_add(1, Ordering::SeqCst);
        answer(Ok(()))
    }
}

impl Node {
    fn node_info_list(&self) -> Answer<'_, Vec<NodeInfo>> {
        Box::pin(async { Ok(vec![self.node_info().await?]) })
    }
}

/// The users that every instance knows.
fn users() -> Users {
    let user = |name: &str, permissions: &[&str]| RpcUser {
        username: name.into(),
        password: Password::from("secret"),
        permissions: permissions.iter().map(ToString::to_string).collect(),
    };
    Users::new([
        user("ops", &["ALL"]),
        user("app", &["StartFlow.test.Hold", "InvokeRpc.nodeInfo"]),
        user("nobody", &[]),
        user(
            "viewer",
            &["InvokeRpc.vaultTrack", "InvokeRpc.stateMachinesFeed"],
        ),
    ])
    .unwrap()
}

/// An instance in a runtime of its own, so that it can be killed with all its connections.
pub(crate) struct Instance {
    runtime: Option<tokio::runtime::Runtime>,
    tasks: Tasks,
    pub(crate) node: Arc<Node>,
    pub(crate) rpc: SocketAddr,
    pub(crate) web: SocketAddr,
}

impl Instance {
    /// On a loopback address of its own, so that nobody takes its port while it is down.
    pub(crate) fn start(shared: &Arc<Shared>) -> Self {
        static STARTED: AtomicUsize = AtomicUsize::new(1);
        let n = STARTED.fetch_add(1, Ordering::SeqCst) % 250;
        let process = std::process::id();
        let address = format!("127.{}.{}.{}:0", process >> 8 & 0x7f, process & 0xff, n + 1);
        Self::start_at(shared, &address, None)
    }

    pub(crate) fn start_at(
        shared: &Arc<Shared>,
        address: &str,
        tls: Option<Arc<rustls::ServerConfig>>,
    ) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let node = Arc::new(Node {
            shared: shared.clone(),
            serving: AtomicBool::new(true),
        });
        let options = RpcOptions {
            users: users(),
            legal_name: party("PartyA").name,
            release: "0.1.0".into(),
            traces: Traces::off(),
            entropy: Entropy::system(),
            clock: Clock::system(),
        };
        let desk = rpc::desk(node.clone(), options);
        let tasks = Tasks::new("test");
        let (owner, listen) = (tasks.clone(), listen(address, tls.clone()));
        let web = ListenOptions {
            address: "127.0.0.1:0".into(),
            tls,
        };
        // The test's own runtime must not be blocked inside of, so another thread opens the ports.
        let handle = runtime.handle().clone();
        let (rpc, web) = std::thread::spawn(move || {
            handle.block_on(async {
                // A killed instance may need a moment to let go of its port.
                let rpc = tokio::time::timeout(PATIENCE, async {
                    loop {
                        match RpcServer::bind(&listen).await {
                            Ok(rpc) => return rpc,
                            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                        }
                    }
                })
                .await
                .unwrap();
                let web = WebServer::bind(&web).await.unwrap();
                let addresses = (rpc.address(), web.address());
                rpc.serve(&owner, desk.clone());
                web.serve(&owner, desk);
                addresses
            })
        })
        .join()
        .unwrap();
        Self {
            runtime: Some(runtime),
            tasks,
            node,
            rpc,
            web,
        }
    }

    /// Ends it at once: connections break, nobody says good-bye.
    pub(crate) fn kill(mut self) -> SocketAddr {
        self.runtime.take().unwrap().shutdown_background();
        self.rpc
    }

    /// Ends it in an orderly way; answers whether everything had ended in time.
    pub(crate) async fn stop(&self) -> bool {
        let report = self.tasks.stop(Duration::from_secs(5)).await;
        report.is_clean()
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn listen(address: &str, tls: Option<Arc<rustls::ServerConfig>>) -> ListenOptions {
    ListenOptions {
        address: address.to_owned(),
        tls,
    }
}

/// Options of an impatient client.
pub(crate) fn options(addresses: &[SocketAddr], user: &str) -> Options {
    let mut options = Options::new(
        addresses.iter().map(ToString::to_string),
        user,
        Password::from("secret"),
    );
    options.call_timeout = PATIENCE;
    options.backoff_min = Duration::from_millis(20);
    options.backoff_max = Duration::from_millis(200);
    options.keep_alive_interval = Duration::from_millis(200);
    options.keep_alive_timeout = Duration::from_millis(300);
    options
}
