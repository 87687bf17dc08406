//! Everything that only the holder of the lease runs. It exists from the moment the lease is
//! ours until it is given back; a standby has none of it, and so no port open.
//!
//! The order of starting matters: flows are restored before messages reach them, the inbox is
//! taken up before peers can add to it, and clients come last.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use quorate_flow::{Checkpoint, FlowStatus, Limits, Machine, Owner, RetryPolicy};
use quorate_identity::{PublicKey, UnixTime, X500Name};
use quorate_messaging::{Handle as Messaging, Security};
use quorate_runtime::tasks::{StopReport, chain};
use quorate_runtime::{Clock, Shutdown, Tasks, Traces};
use quorate_storage::{Fence, Relevance, Store, UnitOfWork, WriterEnd};
use tokio::sync::watch;

use crate::driver::{self, Driver, Flows, Parts};
use crate::host::Host;
use crate::instance::{IDENTITY, NodeError, Prepared, identity_of};
use crate::journeys::Journeys;
use crate::maintenance::{Maintenance, Tables, Task};
use crate::metrics::{FlowMetrics, MaintenanceMetrics, PostMetrics};
use crate::notary::notary;
use crate::operations::{DRAINING, Operations};
use crate::post::{self, Post};
use crate::rpc::{ListenOptions, RpcOptions, RpcServer, Users, WebServer, desk};
use crate::rpc_audit::RpcAudit;

/// How long requests under way may take when the node stops.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long everything together may take when this instance may serve no longer: enough to say
/// goodbye to who is connected.
const CUT_OFF: Duration = Duration::from_millis(200);

/// Flows that are read at a time.
const FLOWS_PAGE: u32 = 1_000;

/// The tasks of an active node. They are not children of the process's tasks: they stop one after
/// the other, see [`Active::stop`].
#[derive(Clone)]
pub(crate) struct Services {
    /// Clients and operators.
    doors: Tasks,
    /// Flows, post, notary, peers.
    core: Tasks,
    /// The store's writer.
    writing: Tasks,
    /// When the writer has last been heard of by the database, once there is one.
    written: Arc<OnceLock<watch::Receiver<Option<Instant>>>>,
}

impl Services {
    /// None yet.
    pub(crate) fn new() -> Self {
        let tasks = |name| Tasks::with_shutdown(name, Shutdown::new());
        Self {
            doors: tasks("doors"),
            core: tasks("core"),
            writing: tasks("writing"),
            written: Arc::default(),
        }
    }

    /// The lease was renewed by a commit that began at this time.
    pub(crate) fn written_at(&self) -> Option<Instant> {
        *self.written.get()?.borrow()
    }

    /// Ends them at once: every port is closed, nothing more is answered, sent or written. What was
    /// under way is found in the store by whoever serves next.
    pub(crate) async fn cut_off(&self) -> Vec<StopReport> {
        let reports = tokio::join!(
            self.doors.stop(CUT_OFF),
            self.core.stop(CUT_OFF),
            self.writing.stop(CUT_OFF)
        );
        vec![reports.0, reports.1, reports.2]
    }
}

/// The running services of an active node.
pub(crate) struct Active {
    services: Services,
    messaging: Messaging,
    post: Post,
    flows: Flows,
    pub(crate) addresses: Addresses,
}

/// Where an active node listens.
#[derive(Debug, Clone)]
pub struct Addresses {
    /// Peers.
    pub p2p: SocketAddr,
    /// Clients by gRPC.
    pub rpc: SocketAddr,
    /// Clients and probes by HTTP.
    pub web: Option<SocketAddr>,
}

impl Active {
    /// Starts everything under the lease `fence`, with tasks in `services`. If this fails, or is
    /// dropped halfway, they have to be [cut off](Services::cut_off).
    pub(crate) async fn start(
        prepared: &Prepared,
        fence: Fence,
        tasks: &Tasks,
        services: &Services,
    ) -> Result<Self, NodeError> {
        let Services {
            doors,
            core,
            writing,
            written,
        } = services;
        let Prepared {
            configuration,
            keys,
            applications,
            store,
            network,
            clock,
            entropy,
            metrics,
            identification,
            ..
        } = prepared;

        let owner = Owner {
            instance: identification.instance.clone(),
            generation: fence.generation(),
        };
        let identities: Vec<_> = std::iter::once(keys.legal_identity())
            .chain(keys.notary_service())
            .collect();
        let our_keys: Vec<PublicKey> = identities
            .iter()
            .map(|identity| identity.key().public().clone())
            .collect();
        let (writer, service) = store.writer(fence, Relevance::of_keys(our_keys));
        let _ = written.set(writer.signs_of_life());
        let failed = core.shutdown().clone();
        let service = service.with_metrics(metrics);
        // Ends by itself when nobody can write any more, after everybody else.
        writing.spawn("writer", async move {
            if let WriterEnd::Fenced(error) = service.run().await {
                failed.request(format!(
                    "another instance has taken over the lease: {}",
                    chain(error.as_ref())
                ));
            }
        });

        if store.setting(IDENTITY).await?.is_none() {
            let unit = UnitOfWork::setting(IDENTITY, Some(identity_of(keys)));
            writer.commit(unit).await?;
        }
        let codes = applications.contract_codes();
        let surroundings = {
            let timeout = configuration.flow_timeout.clone();
            network.borrow().surroundings(codes.clone(), timeout)
        };
        let mut machine = Machine::new(
            Arc::clone(&applications.registry),
            Arc::new(surroundings),
            owner.clone(),
            Limits::default(),
            RetryPolicy {
                signing: configuration.crypto_services.flow_retries,
                ..RetryPolicy::default()
            },
        );
        machine.set_draining(store.setting(DRAINING).await?.as_deref() == Some("true"));

        let traces = match &configuration.telemetry {
            None => Traces::off(),
            Some(endpoint) => {
                let resource = vec![
                    ("service.name", identification.legal_name.to_string()),
                    ("service.instance.id", identification.instance.clone()),
                    ("service.version", identification.release.clone()),
                ];
                Traces::start(endpoint.clone(), resource, metrics, core)
            }
        };
        let (flows, intake) = driver::intake(clock, core);
        let notary = notary(prepared, owner, &writer, core, writing).await?;
        let (notary_service, notary_handle) = notary.unzip();
        let own: BTreeSet<X500Name> = keys.served_names().into_iter().collect();
        let post = Post::new(
            post::Parts {
                store: store.clone(),
                writer: writer.clone(),
                flows: flows.clone(),
                desk: notary_handle.clone(),
                network: network.clone(),
                own: own.clone(),
                metrics: PostMetrics::new(metrics),
                journeys: Journeys::new(traces.clone(), clock.clone()),
            },
            core,
        );
        let host = Arc::new(Host::new(
            store.clone(),
            writer.clone(),
            identities.iter().map(|i| i.key().clone()).collect(),
            keys.legal_identity().key().public().clone(),
            Arc::clone(&applications.contracts),
            applications.effects.clone(),
            notary_handle,
        ));

        let mut restored = unfinished(store).await?;
        if configuration.pause_all_flows {
            for checkpoint in &mut restored {
                checkpoint.status = FlowStatus::Paused;
            }
        }
        if !restored.is_empty() {
            let paused = configuration.pause_all_flows;
            tracing::info!(flows = restored.len(), paused, "taking up flows");
        }
        let driver = Driver::new(
            Parts {
                machine,
                writer: writer.clone(),
                store: store.clone(),
                host: Arc::clone(&host),
                post: post.clone(),
                clock: clock.clone(),
                entropy: entropy.clone(),
                metrics: FlowMetrics::new(metrics),
                traces: traces.clone(),
                tasks: core.clone(),
            },
            intake,
        );
        core.spawn_essential("flows", driver.run(restored));
        if let Some(service) = notary_service {
            let post = post.clone();
            service.start(core, Arc::new(move |queued| post.enqueued(queued)));
        }
        let waiting = post.take_up_inbox().await?;
        if waiting > 0 {
            tracing::info!(messages = waiting, "taking up messages");
        }

        let messaging = {
            let network = network.clone();
            let mut security = Security::of_node(keys, certificate_clock(clock))
                .with_answering(move |party| network.borrow().answering(party));
            if configuration.external_bridge.is_some() {
                security = security.behind_firewall(prepared.bridge_link.clone());
            }
            let options = prepared.messaging_options()?;
            quorate_messaging::Messaging::bind(
                options,
                security,
                Arc::new(post.clone()),
                Arc::new(post.clone()),
                entropy.clone(),
            )?
        };
        let p2p = messaging.address();
        let messaging = messaging.start(core);
        follow_network(prepared, &flows, &messaging, codes, own, core);
        post.open(messaging.clone()).await?;

        if let Some(mode) = &configuration.maintenance {
            let tables = Tables {
                store: store.clone(),
                writer: writer.clone(),
                shutdown: core.shutdown().clone(),
            };
            let maintenance = Maintenance {
                mode: mode.clone(),
                clock: clock.clone(),
                shutdown: core.shutdown().clone(),
                metrics: MaintenanceMetrics::new(metrics),
            };
            let (mode, network) = (mode.clone(), network.clone());
            let tasks = move || {
                let horizon = network.borrow().parameters().event_horizon();
                Task::of(&mode, horizon)
            };
            core.spawn("maintenance", maintenance.run(tables, tasks));
        }
        let audit = configuration.events_to_record.rpc().then(|| {
            Arc::new(RpcAudit::new(
                writer.clone(),
                clock.clone(),
                entropy.clone(),
                metrics,
            ))
        });
        let operations = Arc::new(Operations {
            flows: flows.clone(),
            store: store.clone(),
            writer: writer.clone(),
            host,
            post: post.clone(),
            network: network.clone(),
            applications: Arc::clone(applications),
            clock: clock.clone(),
            identification: Arc::clone(identification),
            draining: Arc::default(),
            audit,
            shutdown: tasks.shutdown().root(),
        });
        let users = Users::new(configuration.rpc_users.iter().cloned())?;
        let desk = desk(
            operations,
            RpcOptions {
                users,
                legal_name: identification.legal_name.clone(),
                release: identification.release.clone(),
                traces,
                entropy: entropy.clone(),
                clock: clock.clone(),
            },
        );
        let rpc = RpcServer::bind(&ListenOptions {
            address: configuration.rpc.address.to_string(),
            tls: prepared.rpc_tls()?,
        })
        .await?;
        let mut addresses = Addresses {
            p2p,
            rpc: rpc.address(),
            web: None,
        };
        if let Some(address) = &configuration.web_address {
            // Probes of load balancers speak plain HTTP.
            let options = ListenOptions {
                address: address.to_string(),
                tls: None,
            };
            let server = WebServer::bind(&options).await?;
            addresses.web = Some(server.address());
            server.serve(doors, Arc::clone(&desk));
        }
        rpc.serve(doors, desk);
        Ok(Self {
            services: services.clone(),
            messaging,
            post,
            flows,
            addresses,
        })
    }

    /// A handle to the flows, for health checks.
    pub(crate) fn flows(&self) -> &Flows {
        &self.flows
    }

    /// Resolves with the reason when something has failed without which there is no serving.
    pub(crate) async fn failed(&self) -> String {
        let core = self.services.core.shutdown();
        let doors = self.services.doors.shutdown();
        let failed = tokio::select! {
            () = core.requested() => core,
            () = doors.requested() => doors,
        };
        failed.reason().unwrap_or_default()
    }

    /// Stops in the reverse order: clients first, then peers, then flows; what is being
    /// committed is finished, and the writer ends when nobody is left who could write.
    pub(crate) async fn stop(self) -> Vec<StopReport> {
        let Self {
            services:
                Services {
                    doors,
                    core,
                    writing,
                    written: _,
                },
            messaging,
            post,
            flows,
            addresses: _,
        } = self;
        let doors = doors.stop(PATIENCE).await;
        let peers = messaging.shutdown(PATIENCE).await;
        let core = core.stop(PATIENCE).await;
        // The writer ends when nobody holds it any more.
        post.close();
        drop((messaging, post, flows));
        let writing = writing.stop(PATIENCE).await;
        vec![doors, peers, core, writing]
    }

    /// Stops at once, because this instance may no longer serve.
    pub(crate) async fn cut_off(self) -> Vec<StopReport> {
        let reports = self.services.cut_off().await;
        self.post.close();
        reports
    }
}

/// All flows that have not ended. Those whose rows are broken are left alone, loudly.
async fn unfinished(store: &Store) -> Result<Vec<Checkpoint>, NodeError> {
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let page = store.unfinished_flows(after, FLOWS_PAGE).await?;
        for (flow, why) in page.broken {
            tracing::error!(%flow, why, "a flow's row in the database cannot be read; it stays there untouched");
        }
        all.extend(page.flows);
        after = page.next;
        if after.is_none() {
            return Ok(all);
        }
    }
}

/// Keeps flows and messaging up to date with the network map.
fn follow_network(
    prepared: &Prepared,
    flows: &Flows,
    messaging: &Messaging,
    codes: std::collections::BTreeMap<String, quorate_identity::SecureHash>,
    own: BTreeSet<X500Name>,
    tasks: &Tasks,
) {
    let mut network = prepared.network.clone();
    let timeout = prepared.configuration.flow_timeout.clone();
    let (flows, messaging) = (flows.clone(), messaging.clone());
    let set_addresses = move |snapshot: &crate::network_map::NetworkSnapshot| {
        for party in snapshot
            .parties()
            .filter(|party| !own.contains(&party.name))
        {
            messaging.set_addresses(&party.name, snapshot.addresses(&party.name));
        }
    };
    set_addresses(&network.borrow_and_update());
    let shutdown = tasks.shutdown().clone();
    tasks.spawn("network map to flows", async move {
        loop {
            tokio::select! {
                () = shutdown.requested() => return,
                changed = network.changed() => if changed.is_err() { return },
            }
            let snapshot = Arc::clone(&network.borrow_and_update());
            set_addresses(&snapshot);
            let surroundings = snapshot.surroundings(codes.clone(), timeout.clone());
            flows.set_surroundings(Arc::new(surroundings)).await;
        }
    });
}

/// The node's clock as certificates are judged by.
pub(crate) fn certificate_clock(clock: &Clock) -> quorate_identity::Clock {
    let clock = clock.clone();
    Arc::new(move || UnixTime(clock.now_seconds()))
}
