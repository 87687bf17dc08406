//! One process serving a node, made ready.
//!
//! [`Node::prepare`] reads configuration, keys and network map, and opens the database; nothing
//! is bound by then, and nothing written but migrations. What the process does afterwards is in
//! `roles`.

use std::net::ToSocketAddrs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use quorate_flow::{App, Owner};
use quorate_identity::rpc_tls::{RpcIdentity, RpcTlsError, rpc_server_config};
use quorate_identity::{NodeKeys, TlsParty, UnixTime, X500Name};
use quorate_ledger::Timestamp;
use quorate_runtime::operations::{Health, Readiness};
use quorate_runtime::tasks::blocking;
use quorate_runtime::{Clock, Entropy, Metrics, Tasks};
use quorate_storage::lease::{Holder, Policy};
use quorate_storage::{Store, migrate};
use tokio::sync::watch;

use crate::active::{Addresses, certificate_clock};
use crate::applications::{AppError, Applications};
use crate::config::NodeConfiguration;
use crate::control::Control;
use crate::network_map::{NetworkMap, NetworkMapError, NetworkSnapshot, OwnInfo};
use crate::node_keys::{KeysOptions, load_or_create};
use crate::notary::SharedLog;

/// What the lease of a node is for.
pub(crate) const RESOURCE: &str = "node";

/// How often the lease is renewed when mutual exclusion is off: only to find out early that
/// another process has taken over.
const IDLE_UPDATE: Duration = Duration::from_secs(20);

/// What a node is made of.
pub struct NodeOptions {
    /// The configuration, checked.
    pub configuration: NodeConfiguration,
    /// The installed applications.
    pub apps: Vec<Arc<dyn App>>,
    /// Release of the software.
    pub release: String,
    /// The revision that it was built from.
    pub revision: String,
    /// The node's clock.
    pub clock: Clock,
    /// Where randomness comes from.
    pub entropy: Entropy,
    /// The process's metrics.
    pub metrics: Metrics,
    /// The process's health checks.
    pub health: Health,
    /// What `/readyz` says.
    pub readiness: Readiness,
    /// The process's tasks.
    pub tasks: Tasks,
}

/// Which process this is, for reports.
#[derive(Debug, Clone)]
pub(crate) struct Identification {
    pub(crate) resource: String,
    pub(crate) instance: String,
    pub(crate) release: String,
    pub(crate) revision: String,
    pub(crate) legal_name: X500Name,
    pub(crate) started_at: Timestamp,
}

/// A node did not start, or could not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// Applications that do not fit together.
    #[error("the installed applications do not fit together")]
    Applications(#[from] AppError),
    /// Keys and certificates.
    #[error(transparent)]
    Keys(#[from] crate::node_keys::NodeKeysError),
    /// The network map.
    #[error(transparent)]
    NetworkMap(#[from] crate::network_map::NetworkMapError),
    /// The database.
    #[error("the database cannot be used")]
    Store(#[from] quorate_storage::Error),
    /// The database, when this instance became active.
    #[error("the database could not be written to")]
    Commit(#[from] quorate_storage::CommitError),
    /// The P2P port.
    #[error(transparent)]
    Messaging(#[from] quorate_messaging::BindError),
    /// The RPC or web port.
    #[error(transparent)]
    Door(#[from] crate::rpc::BindError),
    /// The RPC users.
    #[error("rpcUsers cannot be used")]
    Users(#[from] crate::rpc::UsersError),
    /// The RPC server's certificate.
    #[error("rpcSettings.ssl cannot be used")]
    RpcTls(#[from] RpcTlsError),
    /// The keys of the link to bridges.
    #[error("enterpriseConfiguration.messagingServerSslConfiguration cannot be used")]
    Link(#[from] quorate_messaging::firewall::LinkError),
    /// An address of the configuration.
    #[error("`{key}` is {address}, which is not an address of this machine")]
    Address {
        /// The key.
        key: &'static str,
        /// Its value.
        address: String,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// The database belongs to another identity than the keys of this machine.
    #[error(
        "the database belongs to {database}, the keys in this machine's certificates folder are \
         those of {ours}: copy the folder from the machine that serves the node, or correct \
         dataSourceProperties"
    )]
    OtherIdentity {
        /// Whose database it is.
        database: String,
        /// Whose keys they are.
        ours: String,
    },
    /// The database that a notary's workers share.
    #[error(
        "the database of the notary's workers (notary.jpa.dataSourceProperties) cannot be used"
    )]
    NotaryStore(#[source] quorate_storage::Error),
    /// That database belongs to another notary.
    #[error(
        "notary.jpa.dataSourceProperties names a database of the notary {database}, and this is a worker of {ours}: \
         each notary has a database of its own, and its workers copies of one key"
    )]
    OtherNotary {
        /// Whose database it is.
        database: String,
        /// Whose worker this is.
        ours: String,
    },
    /// Somebody else provides the same notary, and there is no database in common.
    #[error(
        "{other} provides the notary {notary} as this node does, but this node keeps the spent states in its own database: \
         a state could be spent with each of them. Give all of them the same notary.jpa.dataSourceProperties, or remove \
         the nodeInfo file of {other} if it is gone"
    )]
    NotaryApart {
        /// The notary.
        notary: X500Name,
        /// The other node.
        other: X500Name,
    },
    /// Another instance holds the lease, and this one was told not to wait.
    #[error(
        "{holder} serves this node; this instance ends, as \
         enterpriseConfiguration.mutualExclusionConfiguration.whenHeld says"
    )]
    Held {
        /// The holder.
        holder: String,
    },
    /// A part of the start panicked.
    #[error(transparent)]
    Panicked(#[from] quorate_runtime::tasks::TaskFailure),
}

/// What [`Node::run`] tells about its progress.
#[derive(Debug)]
pub enum Milestone {
    /// Somebody else holds the lease.
    Standby {
        /// The holder.
        holder: String,
        /// How long its lease runs if it gives no further sign of life.
        lapses_in: Duration,
        /// A person has to say when this instance may take over.
        waits_for_promotion: bool,
    },
    /// This instance serves.
    Active {
        /// Where it listens.
        addresses: Addresses,
        /// The generation of its lease.
        generation: u64,
    },
    /// This instance serves no more, and becomes a standby.
    SteppedDown {
        /// Why.
        reason: String,
    },
}

/// Everything that is ready before the lease is asked for.
pub(crate) struct Prepared {
    pub(crate) configuration: NodeConfiguration,
    pub(crate) keys: NodeKeys,
    /// What bridges are recognised by, if they have keys of their own.
    pub(crate) bridge_link: Option<TlsParty>,
    pub(crate) applications: Arc<Applications>,
    pub(crate) store: Store,
    /// Where the notary's workers keep what is spent, if this node is one of several.
    pub(crate) notary_log: Option<SharedLog>,
    pub(crate) network: watch::Receiver<Arc<NetworkSnapshot>>,
    pub(crate) clock: Clock,
    pub(crate) entropy: Entropy,
    pub(crate) metrics: Metrics,
    pub(crate) identification: Arc<Identification>,
}

/// A node that is ready to run.
pub struct Node {
    pub(crate) prepared: Prepared,
    pub(crate) health: Health,
    pub(crate) readiness: Readiness,
    pub(crate) holder: Holder,
    pub(crate) policy: Policy,
    pub(crate) update_interval: Duration,
    pub(crate) control: Control,
}

impl Prepared {
    /// The notary that this node is, if it is one.
    pub(crate) fn notary_identity(
        &self,
        owner: Owner,
    ) -> Option<(quorate_notary::Identity, quorate_notary::Options)> {
        let configured = self.configuration.notary.as_ref()?;
        let identity = match (&configured.service_legal_name, self.keys.notary_service()) {
            (Some(_), Some(service)) => service,
            _ => self.keys.legal_identity(),
        };
        let identity = quorate_notary::Identity {
            party: identity.party(),
            key: identity.key().clone(),
            owner,
        };
        Some((identity, configured.service_options()))
    }

    pub(crate) fn messaging_options(&self) -> Result<quorate_messaging::Options, NodeError> {
        let listen = &self.configuration.p2p_listen;
        let refused = |source| NodeError::Address {
            key: "p2pAddress",
            address: listen.to_string(),
            source,
        };
        let mut found = (listen.host(), listen.port())
            .to_socket_addrs()
            .map_err(refused)?;
        let address = found
            .next()
            .ok_or_else(|| refused(std::io::Error::other("the name leads to no address")))?;
        let mut options =
            quorate_messaging::Options::new(self.identification.legal_name.clone(), address);
        options.further_names = self.keys.served_names();
        let largest = self.network.borrow().parameters().max_message_size;
        options.max_message_bytes = usize::try_from(largest)
            .unwrap_or(usize::MAX)
            .min(options.max_message_bytes);
        Ok(options)
    }

    pub(crate) fn rpc_tls(&self) -> Result<Option<Arc<rustls::ServerConfig>>, NodeError> {
        let Some(tls) = &self.configuration.rpc.tls else {
            return Ok(None);
        };
        let identity = RpcIdentity::load(&tls.key_store_path, tls.key_store_password.expose())?;
        let clock = certificate_clock(&self.clock);
        Ok(Some(rpc_server_config(&identity, &[b"h2"], clock)?))
    }
}

/// The setting that says whose database it is.
pub(crate) const IDENTITY: &str = "identity";

/// What is compared between the machines of a node.
pub(crate) fn identity_of(keys: &NodeKeys) -> String {
    let node = identity_text(keys.legal_identity());
    match keys.notary_service() {
        None => node,
        Some(service) => format!("{node}, serving {}", identity_text(service)),
    }
}

/// An identity by name and key.
pub(crate) fn identity_text(identity: &quorate_identity::Identity) -> String {
    let party = identity.party();
    let key = party.owning_key.to_string_short();
    format!("{} (key {key})", party.name)
}

/// All machines of a node must hold the same identity: what one has signed, the others stand for.
async fn check_identity(store: &Store, keys: &NodeKeys) -> Result<(), NodeError> {
    let ours = identity_of(keys);
    match store.setting(IDENTITY).await? {
        Some(database) if database != ours => Err(NodeError::OtherIdentity { database, ours }),
        _ => Ok(()),
    }
}

/// Writes the node's signed entry for the network maps of others; returns the file.
pub fn write_node_info(
    configuration: &NodeConfiguration,
    clock: &Clock,
) -> Result<PathBuf, NodeError> {
    let now = UnixTime(clock.now_seconds());
    let keys = load_or_create(&KeysOptions::of(configuration), now)?;
    let published = OwnInfo::of(configuration, &keys)
        .publish(
            &configuration.base_directory,
            &[],
            Timestamp::from_micros(clock.now_micros()),
        )
        .map_err(NetworkMapError::from)?;
    Ok(published.path)
}

impl Node {
    /// Reads keys and network map, opens the database and checks its schema, or migrates it if
    /// the configuration says so. Nothing is served yet.
    pub async fn prepare(options: NodeOptions) -> Result<Self, NodeError> {
        let NodeOptions {
            configuration,
            apps,
            release,
            revision,
            clock,
            entropy,
            metrics,
            health,
            readiness,
            tasks,
        } = options;
        let started_at = Timestamp::from_micros(clock.now_micros());
        let applications = Arc::new(Applications::install(&apps)?);
        let (configuration, keys, bridge_link, map) = {
            let clock = clock.clone();
            blocking("read keys and network map", move || {
                let now = UnixTime(clock.now_seconds());
                let keys = load_or_create(&KeysOptions::of(&configuration), now)?;
                let bridge = configuration.external_bridge.as_ref();
                let link = bridge.and_then(|bridge| bridge.link.as_ref());
                let link = link.map(|files| files.load(now)).transpose()?;
                let own = OwnInfo::of(&configuration, &keys);
                let map = NetworkMap::load(&configuration.base_directory, &own, clock)?;
                Ok::<_, NodeError>((configuration, keys, link, map))
            })
            .await??
        };
        let store = Store::connect(
            configuration.database.store_options(),
            applications.schemas.clone(),
        )
        .await?;
        if configuration.database.run_migration {
            for done in migrate::execute(&store).await? {
                tracing::info!(
                    component = done.component,
                    version = done.version,
                    "the database was migrated"
                );
            }
        } else {
            migrate::check_current(&store).await?;
        }
        check_identity(&store, &keys).await?;
        let exclusion = configuration.mutual_exclusion.clone();
        let holder = Holder::this_process(
            exclusion.machine_name.clone(),
            configuration.base_directory.to_string_lossy(),
        );
        let notary_log = SharedLog::open(&configuration, &keys, holder.clone()).await?;
        let network = map.subscribe();
        map.polling_every(configuration.node_info_polling)
            .watch(&tasks);

        let policy = if exclusion.on {
            Policy::Exclusive {
                update_interval: exclusion.update_interval,
                wait_interval: exclusion.wait_interval,
            }
        } else {
            Policy::Always
        };
        let identification = Identification {
            resource: RESOURCE.to_owned(),
            instance: holder.instance(),
            release,
            revision,
            legal_name: configuration.my_legal_name.clone(),
            started_at,
        };
        Ok(Self {
            update_interval: if exclusion.on {
                exclusion.update_interval
            } else {
                IDLE_UPDATE
            },
            prepared: Prepared {
                configuration,
                keys,
                bridge_link,
                applications,
                store,
                notary_log,
                network,
                clock,
                entropy,
                metrics,
                identification: Arc::new(identification),
            },
            health,
            readiness,
            holder,
            policy,
            control: Control::new(),
        })
    }

    /// Names and versions of the installed applications.
    pub fn applications(&self) -> &[(String, u32)] {
        &self.prepared.applications.names
    }

    /// The node's legal name.
    pub fn legal_name(&self) -> &X500Name {
        &self.prepared.identification.legal_name
    }

    /// Speaks to the running node from this process.
    pub fn control(&self) -> Control {
        self.control.clone()
    }
}
