//! The network map: who is in the network, learnt from signed files.
//!
//! A node's base directory holds the `network-parameters`, and in `additional-node-infos` the infos of other nodes; both
//! may be exchanged while the node runs. Everything is verified against the trust root, and what cannot be believed is
//! reported once and ignored. The outcome is a [`NetworkSnapshot`], published through a watch channel whenever it
//! changes. Our own info is made here too, and laid into the base directory for the operator to pass on.
//!
//! Files are the only way in. There is no server to ask, and a node is forgotten when its file is removed, not when it
//! has been silent for the event horizon of the network parameters. Certificates are judged when a file is read; that
//! one expires later is noticed by TLS, at every connection.
//!
//! [`NetworkMap`] reads; [`NetworkSnapshot`] is what others see. `folder` decides which infos count, `files` knows the
//! names and bytes, `own_info` makes ours.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use quorate_identity::{Certificate, SecureHash, UnixTime};
use quorate_ledger::Timestamp;
use quorate_ledger::network::NetworkParameters;
use quorate_runtime::tasks::{TaskFailure, blocking, chain};
use quorate_runtime::{Clock, Shutdown, Tasks};
use tokio::sync::watch;

pub(crate) mod files;
mod folder;
mod own_info;
mod snapshot;

pub use files::{
    ADDITIONAL_NODE_INFOS_DIRECTORY, NETWORK_PARAMETERS_FILE, NODE_INFO_PREFIX, NetworkFileError,
    node_info_file,
};
use files::{Fingerprint, read_parameters};
pub use folder::MAX_NODE_INFOS;
use folder::{Folder, KnownKeys, Moment, choose};
pub use own_info::{OwnInfo, OwnInfoError, PublishedInfo};
pub use snapshot::{NetworkSnapshot, TooLarge};

/// How often the files are looked at, unless [`NetworkMap::polling_every`] says otherwise.
pub const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Why a node has no network map to start with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkMapError {
    /// There are no network parameters.
    #[error(
        "there are no network parameters: {} is missing. Copy the file from another node of the network, \
         or let `quorate network bootstrap --dir DIR` make it",
        .path.display()
    )]
    ParametersMissing {
        /// Where they should be.
        path: PathBuf,
    },
    /// The network parameters do not count.
    #[error(
        "the network parameters cannot be used; copy the file again from another node of the network"
    )]
    Parameters(#[source] NetworkFileError),
    /// The folder of node infos cannot be made or read.
    #[error("the folder {} cannot be used; check its owner and permissions", .path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Our own info cannot be made.
    #[error("this node cannot introduce itself to the network")]
    OwnInfo(#[from] OwnInfoError),
}

/// Reads the files and publishes what they say. Does nothing by itself before [`NetworkMap::watch`].
pub struct NetworkMap {
    folder: Folder,
    parameters: ParametersFile,
    own: PublishedInfo,
    known: KnownKeys,
    /// What has been reported and is still so.
    notices: BTreeSet<String>,
    clock: Clock,
    interval: Duration,
    published: watch::Sender<Arc<NetworkSnapshot>>,
}

impl NetworkMap {
    /// Reads the network map of a node, makes its own info, and writes that to `base_directory` if it has changed.
    ///
    /// Blocks: it reads and may write files.
    ///
    /// # Errors
    /// [`NetworkMapError`] if there are no network parameters to be believed, or the directory cannot be used. Infos of
    /// other nodes that do not count are reported in the log and are no error.
    pub fn load(
        base_directory: &Path,
        own: &OwnInfo<'_>,
        clock: Clock,
    ) -> Result<Self, NetworkMapError> {
        let trust_root = own.keys.trust_root();
        let now = moment(&clock);
        let parameters = ParametersFile::load(
            base_directory.join(NETWORK_PARAMETERS_FILE),
            trust_root.clone(),
            now.wall,
        )?;
        let path = base_directory.join(ADDITIONAL_NODE_INFOS_DIRECTORY);
        let folder_failed = |source| NetworkMapError::Folder {
            path: path.clone(),
            source,
        };
        fs::create_dir_all(&path)
            .and_then(|()| fs::read_dir(&path).map(drop))
            .map_err(folder_failed)?;
        let mut folder = Folder::new(path, trust_root.clone());
        folder.look(now, false);
        let published = own.publish(
            base_directory,
            &folder.files_of(own.keys.name()),
            Timestamp::from_micros(clock.now_micros()),
        )?;
        if published.written {
            tracing::info!(file = %published.path.display(),
                "a new node info of this node was written; give it to the other nodes of the network");
        }
        let mut known = KnownKeys::default();
        let mut notices = BTreeSet::new();
        let snapshot = build(&folder, &parameters, &published, &mut known, &mut notices);
        Ok(Self {
            folder,
            parameters,
            own: published,
            known,
            notices,
            clock,
            interval: POLL_INTERVAL,
            published: watch::Sender::new(Arc::new(snapshot)),
        })
    }

    /// The same map, which looks at the files as often.
    #[must_use]
    pub fn polling_every(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// The present state.
    #[must_use]
    pub fn snapshot(&self) -> Arc<NetworkSnapshot> {
        self.published.borrow().clone()
    }

    /// The present state and all later ones. The last one stays readable after the map has stopped.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<NetworkSnapshot>> {
        self.published.subscribe()
    }

    /// Our own info and its file.
    #[must_use]
    pub fn own(&self) -> &PublishedInfo {
        &self.own
    }

    /// Looks at the files once; the answer is whether a new snapshot was published. Blocks.
    pub fn look(&mut self) -> bool {
        let now = moment(&self.clock);
        let infos = self.folder.look(now, true);
        let parameters = self.parameters.look(now.wall);
        if !infos && !parameters {
            return false;
        }
        let snapshot = build(
            &self.folder,
            &self.parameters,
            &self.own,
            &mut self.known,
            &mut self.notices,
        );
        self.published.send_replace(Arc::new(snapshot));
        true
    }

    /// Looks at the files again and again, in a task of `tasks`, until shutdown is requested.
    pub fn watch(self, tasks: &Tasks) {
        tracing::debug!(folder = %self.folder.path().display(), "watching for node infos");
        tasks.spawn("network map", self.run(tasks.shutdown().clone()));
    }

    /// A failure is a panic of ours; the node goes on with the map that it has.
    async fn run(mut self, shutdown: Shutdown) -> Result<(), TaskFailure> {
        loop {
            tokio::select! {
                () = shutdown.requested() => return Ok(()),
                () = self.clock.sleep(self.interval) => {}
            }
            self = blocking("look at node infos", move || {
                self.look();
                self
            })
            .await?;
        }
    }
}

fn moment(clock: &Clock) -> Moment {
    Moment {
        wall: UnixTime(clock.now_seconds()),
        monotonic: clock.monotonic(),
    }
}

fn build(
    folder: &Folder,
    parameters: &ParametersFile,
    own: &PublishedInfo,
    known: &mut KnownKeys,
    reported: &mut BTreeSet<String>,
) -> NetworkSnapshot {
    let (nodes, mut notices) = choose(
        folder.believed(),
        &own.info.identities[0].party(),
        parameters.current.minimum_platform_version,
        known,
    );
    let (snapshot, more) = NetworkSnapshot::build(
        &own.info,
        nodes,
        parameters.current.clone(),
        parameters.hash,
    );
    notices.extend(more);
    let notices: BTreeSet<String> = notices.into_iter().collect();
    for notice in notices.difference(reported) {
        tracing::warn!("network map: {notice}");
    }
    *reported = notices;
    snapshot
}

/// The network parameters in force, and the file from which newer ones may come.
struct ParametersFile {
    path: PathBuf,
    trust_root: Certificate,
    fingerprint: Option<Fingerprint>,
    /// The first failure with a new file is kept quiet, see `folder`.
    failed: Option<Fingerprint>,
    current: Arc<NetworkParameters>,
    hash: SecureHash,
}

impl ParametersFile {
    fn load(
        path: PathBuf,
        trust_root: Certificate,
        now: UnixTime,
    ) -> Result<Self, NetworkMapError> {
        let fingerprint = match fs::metadata(&path) {
            Ok(metadata) => Some(Fingerprint::of(&metadata)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(NetworkMapError::ParametersMissing { path });
            }
            // Reading will tell.
            Err(_) => None,
        };
        let (signed, parameters) =
            read_parameters(&path, &trust_root, now).map_err(NetworkMapError::Parameters)?;
        Ok(Self {
            path,
            trust_root,
            fingerprint,
            failed: None,
            current: Arc::new(parameters),
            hash: signed.hash(),
        })
    }

    /// Whether newer parameters have come into force. Only a later epoch does; anything else is reported, and what was
    /// in force stays so.
    fn look(&mut self, now: UnixTime) -> bool {
        let path = &self.path;
        let fingerprint = fs::metadata(path).ok().map(|m| Fingerprint::of(&m));
        if fingerprint == self.fingerprint {
            return false;
        }
        if fingerprint.is_none() {
            self.fingerprint = None;
            tracing::warn!(file = %path.display(),
                "the network parameters were removed; this node goes on with those it has, but will not start again");
            return false;
        }
        match read_parameters(path, &self.trust_root, now) {
            Err(error) => {
                if self.failed == fingerprint {
                    self.fingerprint = fingerprint;
                    tracing::warn!(error = %chain(&error),
                        "the new network parameters are ignored; this node goes on with those it has");
                }
                self.failed = fingerprint;
                false
            }
            Ok((signed, parameters)) => {
                self.fingerprint = fingerprint;
                if signed.hash() == self.hash {
                    return false;
                }
                if parameters.epoch <= self.current.epoch {
                    tracing::warn!(file = %path.display(), epoch = parameters.epoch, current = self.current.epoch,
                        "these network parameters are not newer than those in force, and are ignored");
                    return false;
                }
                tracing::warn!(epoch = parameters.epoch, hash = %signed.hash(),
                    "new network parameters are in force; a changed maxMessageSize takes full effect at the next start");
                self.hash = signed.hash();
                self.current = Arc::new(parameters);
                true
            }
        }
    }
}
