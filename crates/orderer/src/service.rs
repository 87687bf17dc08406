//! One ordering node, put together.
//!
//! [`Orderer::start`] goes in stages: everything that the configuration names is read and checked, every port is bound,
//! every channel on disk is opened; only then are the ports served. [`Orderer`] is what remains to be asked while it runs.
//! It ends with its tasks.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use quorate_consensus::disk::Folder;
use quorate_consensus::{Log, LogError, LogOptions};
use quorate_fabric::msp::{FolderError, LocalMsp, Signer};
use quorate_identity::UnixTime;
use quorate_identity::mutual_tls::{
    CertificateFacts, ClientAuth, ClientTls, Credentials, MutualTlsError, Roots, ServerTls,
    public_key, shifted,
};
use quorate_identity::x509::Certificate;
use quorate_runtime::operations::{Health, Readiness, ReadyReport, Version};
use quorate_runtime::tasks::{blocking, chain};
use quorate_runtime::telemetry::LogControl;
use quorate_runtime::{Clock, Entropy, Tasks};
use serde_json::json;
use tonic::service::Routes;
use tracing::{info, warn};

use crate::admin::ChannelStatus;
use crate::broadcast::{Broadcast, Checker};
use crate::channel::Ack;
use crate::checks::Rules;
use crate::cluster::{Transport, TransportOptions, track_expiry};
use crate::deliver::{DeliverOptions, DeliverService};
use crate::grpc::AtomicBroadcastServer;
use crate::https::Endpoint;
use crate::listener::{ListenError, Listener, ListenerOptions};
use crate::metrics::{MeasuredDisk, OrdererMetrics};
use crate::operations::Operations;
use crate::options::{self, BootstrapMethod, MetricsProvider, Options, OptionsError, Tls};
use crate::registrar::{
    BootstrapBlock, BootstrapError, Incarnations, Premises, Registrar, RegistrarError, Trust,
};
use crate::replication::{PullerContext, PullerOptions};
use crate::status::{CertificateLife, Overview};
use crate::store::{Ledgers, StoreError};
use crate::{admin, statsd, trace};

const LOG: &str = "orderer.common.server";

/// The folder of the shared consensus log in `Consensus.WALDir`. No channel can be called so.
const LOG_FOLDER: &str = "_log";

/// The protocol of gRPC, in TLS's terms.
const HTTP2: &[u8] = b"h2";

/// With what an orderer starts.
pub struct Parts {
    /// The configuration.
    pub options: Options,
    /// Release and revision.
    pub version: Version,
    /// The levels of the log.
    pub logs: LogControl,
    /// The metrics.
    pub metrics: OrdererMetrics,
    /// The time.
    pub clock: Clock,
    /// Randomness.
    pub entropy: Entropy,
    /// Owns everything that runs.
    pub tasks: Tasks,
}

/// An orderer cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OrdererError {
    /// Settings that do not fit together.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// A file that the configuration names.
    #[error("{key}: cannot read {}", .path.display())]
    File {
        /// The key.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's words.
        #[source]
        source: io::Error,
    },
    /// A key that TLS needs.
    #[error("{key} must be set, since TLS is enabled there")]
    Missing {
        /// The key.
        key: &'static str,
    },
    /// TLS material.
    #[error("{section}: the TLS files cannot be used")]
    Tls {
        /// Where in the configuration.
        section: &'static str,
        /// Why.
        #[source]
        source: MutualTlsError,
    },
    /// The MSP folder.
    #[error("General.LocalMSPDir: failed to get local MSP identity")]
    Msp(#[from] FolderError),
    /// The signing certificate.
    #[error(
        "the signing identity expired {days} day(s) ago; renew the certificate in General.LocalMSPDir, or set \
         General.Authentication.NoExpirationChecks"
    )]
    Expired {
        /// How long ago.
        days: i64,
    },
    /// A port.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// Another port.
    #[error(transparent)]
    Bind(#[from] quorate_runtime::http::BindError),
    /// The ledgers.
    #[error("FileLedger.Location cannot be used")]
    Ledgers(#[from] StoreError),
    /// The consensus log.
    #[error(
        "Consensus.WALDir: the consensus log cannot be opened. If the disk is well and the log is not, move the folder {} \
         away, on one orderer at a time: this one then takes part in no election until a leader has given back what it may \
         have confirmed",
        .folder.display()
    )]
    Log {
        /// Its folder.
        folder: PathBuf,
        /// Why.
        #[source]
        source: LogError,
    },
    /// A folder.
    #[error("{key}: the folder {} cannot be created", .path.display())]
    Folder {
        /// The key.
        key: &'static str,
        /// The folder.
        path: PathBuf,
        /// The system's words.
        #[source]
        source: io::Error,
    },
    /// The channels.
    #[error("the channels cannot be opened")]
    Registrar(#[from] RegistrarError),
    /// The file that a network with a system channel begins with.
    #[error("General.BootstrapFile: failed validating bootstrap block {}", .path.display())]
    Bootstrap {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: BootstrapError,
    },
    /// There is no such file.
    #[error(
        "General.BootstrapFile: cannot read {}; it holds the system channel's block for General.BootstrapMethod `file`: to \
         start without a system channel, set General.BootstrapMethod to none",
        .path.display()
    )]
    BootstrapFile {
        /// The file.
        path: PathBuf,
        /// The system's words.
        #[source]
        source: io::Error,
    },
    /// A part of the start panicked.
    #[error(transparent)]
    Panicked(#[from] quorate_runtime::tasks::TaskFailure),
}

/// Where an orderer listens.
#[derive(Debug, Clone)]
pub struct Addresses {
    /// Clients, and other orderers unless these have a listener of their own.
    pub general: SocketAddr,
    /// Other orderers, if they have a listener of their own.
    pub cluster: Option<SocketAddr>,
    /// Operators.
    pub admin: Option<SocketAddr>,
    /// Health and metrics.
    pub operations: SocketAddr,
}

/// A running orderer.
pub struct Orderer {
    registrar: Registrar,
    addresses: Addresses,
}

impl Orderer {
    /// Starts an orderer; when this returns, every port answers.
    ///
    /// # Errors
    /// [`OrdererError`]; nothing was served by then.
    pub async fn start(parts: Parts) -> Result<Self, OrdererError> {
        let Parts {
            options,
            version,
            logs,
            metrics,
            clock,
            entropy,
            tasks,
        } = parts;
        let general = &options.general;
        let local = identity(general)?;
        check_expiry(&local, &options, &clock)?;
        track_expiry("enrollment", local.expires_at(), &clock, &tasks);
        let mut certificates = vec![("enrollment", local.expires_at())];
        let signer: Arc<dyn Signer> = Arc::new(local);
        let doors = Doors::read(&options, &clock)?;
        for (role, not_after) in doors.expiries() {
            track_expiry(role, not_after, &clock, &tasks);
            certificates.push((role, not_after));
        }

        // Ports, before anything on disk changes: a second process on one configuration ends here.
        let keepalive = &general.keepalive;
        let usual = ListenerOptions::default();
        // What is not set, or 0, is the usual time: none at all would be too little for everybody.
        let set = |time: Duration, usual: Duration| if time.is_zero() { usual } else { time };
        let listener = |tls: Option<ServerTls>| ListenerOptions {
            tls,
            handshake_timeout: set(general.connection_timeout, usual.handshake_timeout),
            keepalive_interval: (!keepalive.server_interval.is_zero())
                .then_some(keepalive.server_interval),
            keepalive_timeout: set(keepalive.server_timeout, usual.keepalive_timeout),
            ..ListenerOptions::default()
        };
        let general_listener =
            Listener::bind(&options.general_address(), listener(doors.general.clone())).await?;
        let cluster_listener = match &doors.cluster {
            None => None,
            Some((address, tls)) => {
                Some(Listener::bind(address, listener(Some(tls.clone()))).await?)
            }
        };
        let operations_endpoint =
            Endpoint::bind("operations endpoint", &options.operations.listen_address).await?;
        let admin_endpoint =
            if options.channel_participation.enabled || !options.admin.listen_address.is_empty() {
                // Disabled, the API still says so.
                Some(Endpoint::bind("admin endpoint", &options.admin.listen_address).await?)
            } else {
                None
            };

        // What is durable.
        let (ledgers, incarnations, log, recovered) = {
            let (options, metrics, clock) = (options.clone(), metrics.clone(), clock.clone());
            blocking("opening ledgers and log", move || {
                open_disk(&options, &metrics, clock)
            })
            .await??
        };
        let transport = Transport::new(
            TransportOptions::of(general),
            doors.client.clone(),
            clock.clone(),
            entropy.clone(),
            &metrics,
            &tasks,
        );
        let rules = Rules {
            no_expiration_checks: general.authentication.no_expiration_checks,
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let checker = Checker::new(
            threads,
            rules,
            signer.clone(),
            entropy.clone(),
            clock.clone(),
        );
        let registrar = Registrar::start(
            Premises {
                ledgers,
                log: log.clone(),
                recovered: Mutex::new(recovered),
                incarnations,
                wal: options.consensus.wal_dir.clone(),
                snapshots: options.consensus.snap_dir.clone(),
                transport: transport.clone(),
                puller: PullerContext {
                    options: PullerOptions::of(general),
                    tls: doors.client.clone(),
                    extra_roots: doors.cluster_roots.clone(),
                    signer: signer.clone(),
                    clock: clock.clone(),
                    entropy: entropy.clone(),
                    tasks: tasks.clone(),
                },
                trust: doors.trust.clone(),
                signer,
                checker: checker.clone(),
                server_key: doors.server_key.clone(),
                rules,
                tick_override: options.consensus.tick_interval_override,
                eviction_suspicion: options.consensus.eviction_suspicion,
                refresh_interval: general.cluster.replication_background_refresh_interval,
                clock: clock.clone(),
                entropy: entropy.clone(),
                metrics: metrics.clone(),
            },
            &tasks,
        )
        .await?;

        // The services.
        let channels = Arc::new(registrar.clone());
        let ack = match options.quorate.ack {
            options::Ack::Enqueued => Ack::Enqueued,
            options::Ack::Committed => Ack::Committed,
        };
        let broadcast = Broadcast::new(channels.clone(), checker, ack, &metrics.broadcast);
        let deliver = DeliverService::new(
            channels.clone(),
            DeliverOptions {
                time_window: general.authentication.time_window,
                no_expiration_checks: general.authentication.no_expiration_checks,
                tls_binding: general.tls.enabled && general.tls.client_auth_required,
            },
            clock.clone(),
            &metrics.deliver,
        );
        let clients = AtomicBroadcastServer::new(
            trace::broadcast(
                Arc::new(broadcast),
                options.debug.broadcast_trace_dir.as_deref(),
                &clock,
                &tasks,
            ),
            trace::deliver(
                Arc::new(deliver),
                options.debug.deliver_trace_dir.as_deref(),
                &clock,
                &tasks,
            ),
            usize::try_from(general.max_recv_msg_size).unwrap_or(usize::MAX),
            &metrics.grpc,
        );
        let steps = transport.service(channels.clone());
        let health = Health::new();
        health.register("consensus log", {
            let log = log.clone();
            move || {
                let failure = log.failure().map(|failure| chain(failure));
                std::future::ready(failure.map_or(Ok(()), Err))
            }
        });
        let readiness = Readiness::new();
        let reported = registrar.clone();
        readiness.report_with(move || report(&reported));

        let addresses = Addresses {
            general: local_address(&general_listener, "General.ListenPort")?,
            cluster: match &cluster_listener {
                Some(listener) => Some(local_address(listener, "General.Cluster.ListenPort")?),
                None => None,
            },
            admin: admin_endpoint.as_ref().map(Endpoint::address),
            operations: operations_endpoint.address(),
        };
        let routes = Routes::new(clients);
        let connections = &metrics.grpc;
        match cluster_listener {
            Some(listener) => {
                listener.serve(Routes::new(steps), connections, &tasks);
                general_listener.serve(routes, connections, &tasks);
            }
            None => general_listener.serve(routes.add_service(steps), connections, &tasks),
        }
        if let Some(endpoint) = admin_endpoint {
            let router = admin::router(
                &options.channel_participation,
                channels.clone(),
                entropy.clone(),
            );
            endpoint.serve(&tasks, doors.admin, router);
        }
        metrics.show_version(&version.version);
        if options.metrics.provider == MetricsProvider::Statsd {
            statsd::start(&tasks, &options.metrics.statsd, metrics.clone());
        }
        let shown = options.metrics.provider == MetricsProvider::Prometheus;
        let operations = Operations {
            overview: overview(
                registrar.clone(),
                health.clone(),
                readiness.clone(),
                certificates,
                version.version.clone(),
                clock.clone(),
            ),
            health,
            readiness,
            metrics: shown.then_some(metrics),
            logs,
            version,
            clock,
            entropy,
        };
        operations_endpoint.serve(&tasks, doors.operations, operations.router());
        info!(target: LOG, "Beginning to serve requests");
        Ok(Self {
            registrar,
            addresses,
        })
    }

    /// Where it listens.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Its channels.
    pub fn registrar(&self) -> &Registrar {
        &self.registrar
    }
}

/// How a process that is not this orderer, but has its configuration, reads blocks of the others: for commands.
///
/// # Errors
/// [`OrdererError`], of the identity or of the TLS files.
pub fn reader(
    options: &Options,
    clock: &Clock,
    entropy: &Entropy,
    tasks: &Tasks,
) -> Result<PullerContext, OrdererError> {
    let doors = Doors::read(options, clock)?;
    Ok(PullerContext {
        options: PullerOptions::of(&options.general),
        tls: doors.client,
        extra_roots: doors.cluster_roots,
        signer: Arc::new(identity(&options.general)?),
        clock: clock.clone(),
        entropy: entropy.clone(),
        tasks: tasks.clone(),
    })
}

fn identity(general: &options::General) -> Result<LocalMsp, FolderError> {
    LocalMsp::load_with_key_store(
        &general.local_msp_dir,
        &general.local_msp_id,
        &general
            .bccsp
            .key_store
            .clone()
            .unwrap_or_else(|| general.local_msp_dir.join("keystore")),
    )
}

fn local_address(listener: &Listener, key: &'static str) -> Result<SocketAddr, OrdererError> {
    listener
        .local_address()
        .map_err(|source| OrdererError::File {
            key,
            path: PathBuf::new(),
            source,
        })
}

/// Whether traffic should come here: when every channel that we are a consenter of has a leader, and none has failed. And what a person who asks
/// why not would like to know.
fn report(registrar: &Registrar) -> ReadyReport {
    let mut channels = serde_json::Map::new();
    let (mut led, mut failed) = (true, false);
    for name in registrar.channels() {
        let Some(info) = registrar.info(&name) else {
            continue;
        };
        let leader = registrar.consenter(&name).map(|channel| {
            let leader = *channel.leader().borrow();
            led &= leader != 0;
            leader
        });
        failed |= info.status == ChannelStatus::Failed;
        let shown = json!({
            "consensusRelation": info.consensus_relation.as_str(),
            "status": info.status.as_str(),
            "height": info.height,
            "leader": leader,
        });
        channels.insert(name, shown);
    }
    let status = match (failed, led) {
        (true, _) => "failed",
        (false, false) => "leaderless",
        (false, true) => "serving",
    };
    ReadyReport::new(led && !failed, status).with("channels", serde_json::Value::Object(channels))
}

/// What `/healthz/detailed` answers.
fn overview(
    registrar: Registrar,
    health: Health,
    readiness: Readiness,
    certificates: Vec<(&'static str, UnixTime)>,
    version: String,
    clock: Clock,
) -> crate::operations::Overviews {
    Arc::new(move || {
        let (registrar, health, version) = (registrar.clone(), health.clone(), version.clone());
        let ready = readiness.report().ready;
        let now = clock.now_seconds();
        let certificates = certificates
            .iter()
            .map(|(role, UnixTime(expires))| CertificateLife {
                role: (*role).to_owned(),
                expires: *expires,
                seconds_left: expires.saturating_sub(now),
            })
            .collect();
        Box::pin(async move {
            let mut channels = BTreeMap::new();
            for name in registrar.channels() {
                if let Some(overview) = registrar.overview(&name).await {
                    channels.insert(name, overview);
                }
            }
            let checks = health.run().await;
            let healthy = checks.values().all(Result::is_ok);
            Overview {
                status: if healthy { "OK" } else { "Service Unavailable" }.to_owned(),
                ready,
                version,
                checks: checks
                    .into_iter()
                    .map(|(name, outcome)| (name, outcome.err().unwrap_or_else(|| "OK".to_owned())))
                    .collect(),
                certificates,
                channels,
            }
        })
    })
}

type Disk = (
    Ledgers,
    Incarnations,
    Log,
    BTreeMap<quorate_consensus::GroupId, quorate_consensus::Recovered>,
);

/// Takes over the system channel's block that `General.BootstrapFile` holds, if there is nothing else yet: the registrar
/// finds it among the join blocks.
fn bootstrap(general: &options::General, ledgers: &Ledgers) -> Result<(), OrdererError> {
    if general.bootstrap_method != BootstrapMethod::File {
        return Ok(());
    }
    if !ledgers.channels()?.is_empty() || !ledgers.join_blocks()?.is_empty() {
        info!(target: LOG, "Not bootstrapping the system channel because of existing channels");
        return Ok(());
    }
    let path = general.bootstrap_file.clone();
    let bytes = match fs::read(&path) {
        Ok(bytes) => Bytes::from(bytes),
        Err(source) => return Err(OrdererError::BootstrapFile { path, source }),
    };
    let block = match BootstrapBlock::judge(&bytes) {
        Ok(block) => block,
        Err(source) => return Err(OrdererError::Bootstrap { path, source }),
    };
    if block.number == 0 {
        info!(target: LOG, "Bootstrapping the system channel");
    } else {
        info!(target: LOG, "Not bootstrapping the system channel because the bootstrap block number is {} (>0), replication is needed", block.number);
    }
    ledgers.save_join_block(&block.channel, &bytes)?;
    Ok(())
}

fn open_disk(
    options: &Options,
    metrics: &OrdererMetrics,
    clock: Clock,
) -> Result<Disk, OrdererError> {
    let wal = &options.consensus.wal_dir;
    let folders = [
        ("FileLedger.Location", &options.file_ledger.location),
        ("Consensus.WALDir", wal),
        ("Consensus.SnapDir", &options.consensus.snap_dir),
    ];
    for (key, path) in folders {
        fs::create_dir_all(path).map_err(|source| OrdererError::Folder {
            key,
            path: path.clone(),
            source,
        })?;
    }
    let ledgers = Ledgers::open_measured(&options.file_ledger.location, &metrics.ledger)?;
    bootstrap(&options.general, &ledgers)?;
    let incarnations = Incarnations::open(&options.file_ledger.location)?;
    let folder = wal.join(LOG_FOLDER);
    let disk = Folder::open(&folder).map_err(|source| OrdererError::Folder {
        key: "Consensus.WALDir",
        path: folder,
        source,
    })?;
    let (log, recovered) = Log::open(
        Arc::new(MeasuredDisk::new(disk, &metrics.etcd, clock)),
        LogOptions::default(),
    )
    .map_err(|source| OrdererError::Log {
        folder: wal.join(LOG_FOLDER),
        source,
    })?;
    let recovered = recovered
        .into_iter()
        .map(|group| (group.group(), group))
        .collect();
    Ok((ledgers, incarnations, log, recovered))
}

/// Nobody believes blocks that an expired orderer signs.
fn check_expiry(local: &LocalMsp, options: &Options, clock: &Clock) -> Result<(), OrdererError> {
    const DAY: i64 = 24 * 60 * 60;
    let left = local.expires_at().0 - clock.now_seconds();
    if left >= 0 {
        return Ok(());
    }
    let days = -left / DAY;
    if options.general.authentication.no_expiration_checks {
        warn!(target: LOG, "The signing identity expired {days} day(s) ago");
        return Ok(());
    }
    Err(OrdererError::Expired { days })
}

/// The TLS of every port, and of the connections to other orderers.
struct Doors {
    general: Option<ServerTls>,
    /// Address and TLS, if other orderers have a listener of their own.
    cluster: Option<(String, ServerTls)>,
    client: Option<ClientTls>,
    admin: Option<ServerTls>,
    operations: Option<ServerTls>,
    trust: Arc<Trust>,
    cluster_roots: Vec<Certificate>,
    /// The public key of the certificate that other orderers see.
    server_key: Vec<u8>,
}

impl Doors {
    fn read(options: &Options, clock: &Clock) -> Result<Self, OrdererError> {
        let general = &options.general;
        let client_roots = read_all("General.TLS.ClientRootCAs", &general.tls.client_root_cas)?;
        let mut cluster_roots = read_all("General.Cluster.RootCAs", &general.cluster.root_cas)?;
        cluster_roots.extend(read_all("General.TLS.RootCAs", &general.tls.root_cas)?);
        let trust = Trust::new(client_roots, cluster_roots)
            .map(Arc::new)
            .map_err(tls_error("General.TLS and General.Cluster"))?;
        // No channel has been learnt yet.
        let cluster_roots = trust.cluster().certificates();
        let separate = options.cluster_listener()?;
        let cluster_shift = match general.cluster.tls_handshake_time_shift {
            Duration::ZERO => general.tls.handshake_time_shift,
            shift => shift,
        };

        // On a shared port everybody is asked for a certificate, and nobody has to have one: whether it is that of a
        // consenter is judged by Step, by its key.
        let client_auth = match (general.tls.client_auth_required, &separate) {
            (true, _) => ClientAuth::Required,
            (false, None) => ClientAuth::Requested,
            (false, Some(_)) => ClientAuth::None,
        };
        let general_tls = server(
            "General.TLS",
            &general.tls,
            client_auth,
            trust.clients(),
            clock,
            &[HTTP2],
        )?;
        let cluster = match separate {
            None => None,
            Some(listener) => {
                let credentials = credentials(
                    "General.Cluster",
                    &listener.certificate,
                    &listener.private_key,
                )?;
                let tls = ServerTls {
                    credentials,
                    roots: trust.cluster(),
                    client_auth: ClientAuth::Required,
                    clock: shifted(wall(clock), cluster_shift),
                    alpn: vec![HTTP2.to_vec()],
                };
                Some((format!("{}:{}", listener.address, listener.port), tls))
            }
        };
        let shown = cluster
            .as_ref()
            .map(|(_, tls)| &tls.credentials)
            .or(general_tls.as_ref().map(|tls| &tls.credentials));
        let server_key = match shown {
            Some(credentials) => {
                public_key(credentials.certificate()).map_err(tls_error("General.TLS"))?
            }
            None => Vec::new(),
        };
        let client = if shown.is_some() {
            let (certificate, key) = options.cluster_client_pair()?;
            Some(ClientTls {
                credentials: Some(credentials("General.Cluster", &certificate, &key)?),
                roots: trust.cluster(),
                clock: shifted(wall(clock), cluster_shift),
                alpn: vec![HTTP2.to_vec()],
            })
        } else {
            None
        };
        Ok(Self {
            general: general_tls,
            cluster,
            client,
            admin: endpoint("Admin.TLS", &options.admin.tls, clock)?,
            operations: endpoint("Operations.TLS", &options.operations.tls, clock)?,
            trust,
            cluster_roots,
            server_key,
        })
    }
}

impl Doors {
    /// Until when our own TLS certificates count.
    fn expiries(&self) -> Vec<(&'static str, UnixTime)> {
        let cluster = self.cluster.as_ref().map(|(_, tls)| &tls.credentials);
        let shown = [
            (
                "server TLS",
                self.general.as_ref().map(|tls| &tls.credentials),
            ),
            ("server TLS", cluster),
            (
                "client TLS",
                self.client
                    .as_ref()
                    .and_then(|tls| tls.credentials.as_ref()),
            ),
        ];
        let known = shown.into_iter().filter_map(|(role, credentials)| {
            let facts = CertificateFacts::read(credentials?.certificate()).ok()?;
            Some((role, facts.not_after))
        });
        known.collect()
    }
}

fn wall(clock: &Clock) -> quorate_identity::Clock {
    let clock = clock.clone();
    Arc::new(move || UnixTime(clock.now_seconds()))
}

fn endpoint(
    section: &'static str,
    tls: &Tls,
    clock: &Clock,
) -> Result<Option<ServerTls>, OrdererError> {
    let pems = read_all(section, &tls.client_root_cas)?;
    let roots = Roots::from_pem(pems.iter().map(Vec::as_slice)).map_err(tls_error(section))?;
    let client_auth = if tls.client_auth_required {
        ClientAuth::Required
    } else if tls.client_root_cas.is_empty() {
        ClientAuth::None
    } else {
        ClientAuth::Optional
    };
    // No protocol is negotiated, as at Fabric's REST listeners: rustls would refuse whoever offers others only, such as
    // a client that speaks HTTP/1.0.
    server(section, tls, client_auth, roots, clock, &[])
}

fn server(
    section: &'static str,
    tls: &Tls,
    client_auth: ClientAuth,
    roots: Roots,
    clock: &Clock,
    protocols: &[&[u8]],
) -> Result<Option<ServerTls>, OrdererError> {
    if !tls.enabled {
        return Ok(None);
    }
    let missing = || OrdererError::Missing { key: section };
    let certificate = tls.certificate.as_deref().ok_or_else(missing)?;
    let key = tls.private_key.as_deref().ok_or_else(missing)?;
    Ok(Some(ServerTls {
        credentials: credentials(section, certificate, key)?,
        roots,
        client_auth,
        clock: shifted(wall(clock), tls.handshake_time_shift),
        alpn: protocols.iter().map(|protocol| protocol.to_vec()).collect(),
    }))
}

fn credentials(
    section: &'static str,
    certificate: &Path,
    key: &Path,
) -> Result<Credentials, OrdererError> {
    Credentials::from_pem(&read(section, certificate)?, &read(section, key)?)
        .map_err(tls_error(section))
}

fn tls_error(section: &'static str) -> impl Fn(MutualTlsError) -> OrdererError {
    move |source| OrdererError::Tls { section, source }
}

fn read_all(key: &'static str, files: &[PathBuf]) -> Result<Vec<Vec<u8>>, OrdererError> {
    files.iter().map(|file| read(key, file)).collect()
}

fn read(key: &'static str, path: &Path) -> Result<Vec<u8>, OrdererError> {
    fs::read(path).map_err(|source| OrdererError::File {
        key,
        path: path.to_owned(),
        source,
    })
}
