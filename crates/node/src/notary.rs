//! The notary of a node, joined to it: alone, with the spent states in the node's own database; or as one of several
//! *workers*, each a node with an identity, a database and queues of its own, which sign with copies of one key and keep
//! the spent states in a database that they share.
//!
//! In that database each worker writes under a lease of its own, so that a second process under the same name (the other
//! machine of a hot-cold pair, say) fences off the first. Among themselves workers take turns, which is the store's business.
//! Two workers that share no database would let the same state be spent twice: that is refused here.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_flow::Owner;
use quorate_identity::{NodeKeys, X500Name};
use quorate_notary::{Database, Handle, NotaryMetrics, Service, Shared, Uniqueness};
use quorate_runtime::Tasks;
use quorate_runtime::tasks::chain;
use quorate_storage::lease::{Candidate, Holder, Policy};
use quorate_storage::migrate::{self, Migration};
use quorate_storage::{Relevance, SchemaError, Store, UnitOfWork, Writer, WriterEnd};
use tokio::sync::watch;

use crate::config::{DatabaseConfiguration, NodeConfiguration};
use crate::instance::{NodeError, Prepared, identity_text};
use crate::network_map::NetworkSnapshot;

/// The setting of the shared database that says whose it is.
const NOTARY: &str = "notary";

/// How long a worker waits for another one that migrates the shared database, and how often it looks.
const MIGRATION_PATIENCE: Duration = Duration::from_secs(30);
const MIGRATION_POLL: Duration = Duration::from_millis(100);

/// The database that a notary's workers share, open and with the right tables.
pub(crate) struct SharedLog {
    pub(crate) store: Store,
    /// What others of this name are fenced off by.
    resource: String,
    holder: Holder,
    notary: String,
}

impl SharedLog {
    /// Opens the database that the configuration names, if it names one.
    pub(crate) async fn open(
        configuration: &NodeConfiguration,
        keys: &NodeKeys,
        holder: Holder,
    ) -> Result<Option<Self>, NodeError> {
        let notary = configuration.notary.as_ref();
        let shared = notary.and_then(|notary| notary.shared_database.as_ref());
        let (Some(database), Some(service)) = (shared, keys.notary_service()) else {
            return Ok(None);
        };
        let store = open_store(database).await.map_err(NodeError::NotaryStore)?;
        let ours = identity_text(service);
        let theirs = store
            .setting(NOTARY)
            .await
            .map_err(NodeError::NotaryStore)?;
        if let Some(database) = theirs.filter(|theirs| *theirs != ours) {
            return Err(NodeError::OtherNotary { database, ours });
        }
        Ok(Some(Self {
            store,
            resource: format!("notary worker {}", configuration.my_legal_name),
            holder,
            notary: ours,
        }))
    }

    /// Takes this worker's lease, from whoever has it, and writes under it.
    async fn writer(&self, core: &Tasks, writing: &Tasks) -> Result<Writer, NodeError> {
        let (store, holder) = (&self.store, self.holder.clone());
        let mut candidate = Candidate::new(store, self.resource.as_str(), holder, Policy::Always);
        let fence = candidate.acquire().await.map_err(NodeError::NotaryStore)?;
        // Nothing of a vault is kept there.
        let (writer, service) = store.writer(fence, Relevance::default());
        let failed = core.shutdown().clone();
        writing.spawn("notary's writer", async move {
            if let WriterEnd::Fenced(error) = service.run().await {
                failed.request(format!(
                    "another process works as this worker of the notary: {}",
                    chain(error.as_ref())
                ));
            }
        });
        let unit = UnitOfWork::setting(NOTARY, Some(self.notary.clone()));
        writer.commit(unit).await?;
        Ok(writer)
    }
}

async fn open_store(database: &DatabaseConfiguration) -> Result<Store, quorate_storage::Error> {
    // No application keeps anything there.
    let store = Store::connect(database.shared_store_options(), Vec::new()).await?;
    if database.run_migration {
        for done in migrated(&store).await? {
            tracing::info!(
                component = done.component,
                version = done.version,
                "the database of the notary's workers was migrated"
            );
        }
    } else {
        migrate::check_current(&store).await?;
    }
    Ok(store)
}

/// Brings the tables up to date. Workers that start together do it one after the other.
async fn migrated(store: &Store) -> Result<Vec<Migration>, quorate_storage::Error> {
    let began = Instant::now();
    loop {
        match migrate::execute(store).await {
            Err(quorate_storage::Error::Schema(SchemaError::Locked { .. }))
                if began.elapsed() < MIGRATION_PATIENCE =>
            {
                tokio::time::sleep(MIGRATION_POLL).await;
            }
            done => return done,
        }
    }
}

/// The notary of this node, ready to start, if it is one.
pub(crate) async fn notary(
    prepared: &Prepared,
    owner: Owner,
    writer: &Writer,
    core: &Tasks,
    writing: &Tasks,
) -> Result<Option<(Service, Handle)>, NodeError> {
    let Some((identity, options)) = prepared.notary_identity(owner) else {
        return Ok(None);
    };
    let provider: Arc<dyn Uniqueness> = match &prepared.notary_log {
        Some(log) => Arc::new(Shared::new(
            log.writer(core, writing).await?,
            writer.clone(),
        )),
        None => {
            let own = prepared.identification.legal_name.clone();
            alone(&identity.party.name, &own, &prepared.network.borrow())?;
            stay_alone(
                identity.party.name.clone(),
                own,
                prepared.network.clone(),
                core,
            );
            Arc::new(Database::new(writer.clone()))
        }
    };
    let directory = {
        let network = prepared.network.clone();
        Arc::new(move |name: &X500Name| network.borrow().party(name).cloned())
    };
    let metrics = NotaryMetrics::new(&prepared.metrics);
    let clock = prepared.clock.clone();
    Ok(Some(Service::new(
        identity, options, provider, directory, clock, metrics,
    )))
}

/// That nobody else provides the notary that keeps its states in this node's own database.
fn alone(notary: &X500Name, own: &X500Name, network: &NetworkSnapshot) -> Result<(), NodeError> {
    let nodes: BTreeSet<X500Name> = network.answering(notary).into_iter().collect();
    match nodes.into_iter().find(|node| node != own && node != notary) {
        None => Ok(()),
        Some(other) => Err(NodeError::NotaryApart {
            notary: notary.clone(),
            other,
        }),
    }
}

/// Stops serving when somebody else turns up.
fn stay_alone(
    notary: X500Name,
    own: X500Name,
    mut network: watch::Receiver<Arc<NetworkSnapshot>>,
    core: &Tasks,
) {
    let shutdown = core.shutdown().clone();
    core.spawn("other providers of the notary", async move {
        loop {
            tokio::select! {
                () = shutdown.requested() => return,
                changed = network.changed() => if changed.is_err() { return },
            }
            if let Err(error) = alone(&notary, &own, &network.borrow_and_update()) {
                return shutdown.request(error.to_string());
            }
        }
    });
}
