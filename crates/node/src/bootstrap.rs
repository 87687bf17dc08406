//! Making a network out of configurations: directories, keys, node infos and network parameters, in one go.
//!
//! For development, and for networks whose members trust whoever runs this: one machine makes the keys of all nodes.
//! The directories are then moved to where the nodes live. It may be run again whenever something was added or changed:
//! identities that exist are kept, whatever has not changed stays as it is to the byte, and the epoch of the network
//! parameters grows only when they say something else.
//!
//! Everything that can be judged is judged before anything is written. If the work is interrupted, running it again
//! finishes it.
//!
//! [`bootstrap`] tells the steps. `plan` finds and checks the configurations, `authority` decides who certifies, and
//! `report` is what the caller prints.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use quorate_identity::{
    Certificate, Identity, IssueError, KeyStoreError, NodeKeys, UnixTime, X500Name,
};
use quorate_ledger::Timestamp;
use quorate_ledger::network::{
    NetworkError, NetworkParameters, NotaryInfo, SignedNetworkParameters,
};
use quorate_runtime::tasks::chain;
use quorate_runtime::{Clock, Entropy};

use crate::config::{ConfigurationError, FILE_NAME, LoadOptions};
use crate::network_map::files::{read_parameters, write_public};
use crate::network_map::{
    ADDITIONAL_NODE_INFOS_DIRECTORY, NETWORK_PARAMETERS_FILE, NetworkFileError, OwnInfo,
    OwnInfoError, PublishedInfo, node_info_file,
};
use crate::node_keys::{
    Folder, Found, IDENTITY_SCHEME, KeysOptions, NodeKeysError, open_lock,
};

mod authority;
mod plan;
mod report;

use authority::Authority;
use plan::{Origin, Plan, PlannedNode};
pub use plan::{CONFIGURATION_SUFFIX, MAX_NODES};
pub use report::{
    BootstrapReport, BootstrappedNode, ConfigurationChange, KeysChange, ParametersChange,
};

/// The folder in which the bootstrapper keeps what it needs when it is run again.
pub const BOOTSTRAPPER_DIRECTORY: &str = ".bootstrapper";

/// What shall be made.
#[derive(Debug, Clone, Default)]
pub struct BootstrapOptions {
    /// The folder with `*_node.conf` files, node directories, or both.
    pub directory: PathBuf,
    /// The oldest platform version that may take part.
    pub minimum_platform_version: Option<u32>,
    /// Largest message in bytes. Without it (as with the following) what is in force stays; at first the default.
    pub max_message_size: Option<u64>,
    /// Largest transaction in bytes.
    pub max_transaction_size: Option<u64>,
    /// After how many days a node that has not been heard of may be forgotten.
    pub event_horizon_days: Option<u32>,
    /// How the configurations are read. Overrides from the environment would count for all nodes alike.
    pub load: LoadOptions,
}

/// Why no network was made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BootstrapError {
    /// There is nothing to work on.
    #[error(
        "{} holds neither files named *{CONFIGURATION_SUFFIX} nor node directories with a {FILE_NAME}; \
         put one *{CONFIGURATION_SUFFIX} file for each node there",
        .directory.display()
    )]
    NothingToDo {
        /// The folder.
        directory: PathBuf,
    },
    /// More nodes than are handled.
    #[error("{} holds {count} configurations, at most {MAX_NODES} are handled", .directory.display())]
    TooManyNodes {
        /// The folder.
        directory: PathBuf,
        /// How many.
        count: usize,
    },
    /// Another bootstrapper is at work.
    #[error("another bootstrapper works in {}; wait until it has finished", .directory.display())]
    Busy {
        /// The folder.
        directory: PathBuf,
    },
    /// A configuration cannot be read.
    #[error("the configuration {} cannot be used", .path.display())]
    Configuration {
        /// Which file.
        path: PathBuf,
        /// What is wrong, with lines.
        source: ConfigurationError,
    },
    /// Two configurations of one node.
    #[error("{} and {} have the same myLegalName, {name}; every node needs a name of its own", .first.display(), .second.display())]
    SameName {
        /// The name.
        name: X500Name,
        /// One configuration.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// Two nodes for one directory.
    #[error(
        "{first} and {second} would both live in {}, which is named after the organisation; \
         give one of them another organisation, or make a directory of another name with its {FILE_NAME} in it",
        .directory.display()
    )]
    SameDirectory {
        /// The directory.
        directory: PathBuf,
        /// One node.
        first: X500Name,
        /// The other.
        second: X500Name,
    },
    /// Two nodes on one port.
    #[error(
        "{first} ({first_option}) and {second} ({second_option}) both want {address}; change the port of one of them"
    )]
    PortClash {
        /// Host and port.
        address: String,
        /// One node.
        first: X500Name,
        /// Its configuration key.
        first_option: &'static str,
        /// The other node.
        second: X500Name,
        /// Its configuration key.
        second_option: &'static str,
    },
    /// Members of one notary service that differ.
    #[error(
        "{first} and {second} provide the notary service {service}, but only one of them is validating; make them agree"
    )]
    NotaryKinds {
        /// The service.
        service: X500Name,
        /// One node.
        first: X500Name,
        /// The other.
        second: X500Name,
    },
    /// A notary service with a node's name.
    #[error(
        "the notary service of {provider} is named like the node {service}; give it a serviceLegalName of its own"
    )]
    ServiceNamedLikeNode {
        /// The service.
        service: X500Name,
        /// Who provides it.
        provider: X500Name,
    },
    /// Members of one notary service with different keys.
    #[error(
        "{first} and {second} hold different keys of the notary service {service}. One of them has signed nothing yet: \
         move its certificates folder away, so that it gets new keys with the service's"
    )]
    ServiceKeys {
        /// The service.
        service: X500Name,
        /// One node.
        first: X500Name,
        /// The other.
        second: X500Name,
    },
    /// The keys of a node.
    #[error("the keys of the node in {} cannot be used", .directory.display())]
    Keys {
        /// The node's directory.
        directory: PathBuf,
        /// The reason.
        source: NodeKeysError,
    },
    /// Nodes of different networks.
    #[error(
        "{first} trusts the root {first_root}, {second} trusts {second_root}: they are of different networks. \
         Remove one of the two from this folder, or move its certificates folder away so that it gets new keys"
    )]
    DifferentRoots {
        /// One node.
        first: X500Name,
        /// Its root.
        first_root: X500Name,
        /// The other node.
        second: X500Name,
        /// Its root.
        second_root: X500Name,
    },
    /// The authority that certified the nodes is not there.
    #[error(
        "the nodes here trust the root {root}, whose authority is not in {}; \
         put the authority's folder back, or bootstrap in the folder where the network was made",
        .path.display()
    )]
    AuthorityMissing {
        /// Where it should be.
        path: PathBuf,
        /// The root.
        root: X500Name,
    },
    /// The authority cannot be read or written.
    #[error("the authority of the network, {}, is not available", .path.display())]
    AuthorityFile {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: KeyStoreError,
    },
    /// No authority could be made, or it does not certify.
    #[error("the authority of the network issues no certificates")]
    Authority(#[from] IssueError),
    /// A node of development keys that wants to run for real.
    #[error(
        "{node} has devMode = false, but this network was made with the INSECURE development root; set devMode = true, \
         or bootstrap a new network in another folder"
    )]
    DevelopmentNetwork {
        /// The node.
        node: X500Name,
    },
    /// The options lead to impossible network parameters.
    #[error("no network parameters can be made; check the options")]
    Parameters(#[source] NetworkError),
    /// The network asks for a newer program.
    #[error("the network parameters of this network cannot be handled by this program")]
    ParametersTooNew(#[source] NetworkFileError),
    /// A node info could not be made.
    #[error("the node in {} cannot introduce itself", .directory.display())]
    NodeInfo {
        /// The node's directory.
        directory: PathBuf,
        /// The reason.
        source: OwnInfoError,
    },
    /// The file system refuses.
    #[error("{} cannot be {action}; check owner and permissions", .path.display())]
    Io {
        /// Which file or directory.
        path: PathBuf,
        /// `read`, `written` or `moved`.
        action: &'static str,
        /// What the system says.
        source: io::Error,
    },
}

impl BootstrapError {
    fn io(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            path,
            action,
            source,
        }
    }
}

/// Makes a network of the configurations in a folder, or completes one that was made before. Blocks for about a tenth of
/// a second per node.
///
/// # Errors
/// [`BootstrapError`] names the file or node at fault and the way out. Most are found before anything is written.
pub fn bootstrap(
    options: &BootstrapOptions,
    clock: &Clock,
    entropy: &Entropy,
) -> Result<BootstrapReport, BootstrapError> {
    let now = Timestamp::from_micros(clock.now_micros());
    // Before the lock leaves a trace in a folder that was named by mistake.
    plan::check_folder(&options.directory)?;
    let work = options.directory.join(BOOTSTRAPPER_DIRECTORY);
    let lock = open_lock(&work).map_err(BootstrapError::io(&work, "written"))?;
    lock.try_lock().map_err(|error| match error {
        fs::TryLockError::WouldBlock => BootstrapError::Busy {
            directory: options.directory.clone(),
        },
        fs::TryLockError::Error(source) => BootstrapError::io(&work, "written")(source),
    })?;

    let plan = Plan::read(options)?;
    let existing = existing_keys(&plan, now.into())?;
    let roots = existing
        .iter()
        .filter_map(|(name, found)| Some((*name, found.root()?)));
    let authority = Authority::choose(&plan, roots, &work, now.into(), entropy)?;
    let mut warnings = authority.warnings();
    let services = services(&plan, &existing)?;
    let parameters = ExistingParameters::read(&plan, &authority, now.into(), &mut warnings)?;
    // The options are judged with no notaries yet, for these may not have keys.
    parameters.sign(&parameters.changed(options, Vec::new(), now), &authority)?;

    authority.save()?;
    let mut nodes = Vec::with_capacity(plan.nodes.len());
    let mut made = Made {
        authority: &authority,
        services,
        now,
    };
    for node in &plan.nodes {
        let configuration = place_configuration(node)?;
        let (keys, keys_change) = made.keys(node, existing.get(node.name()))?;
        let info = publish(node, &keys, now)?;
        nodes.push(BootstrappedNode {
            name: node.name().clone(),
            directory: node.directory.clone(),
            configuration,
            keys: keys_change,
            notary: node.notary_info(&keys),
            node_info_changed: info.written,
            info,
        });
    }
    let notaries = nodes
        .iter()
        .filter_map(|node| Some((node.notary.as_ref()?.identity.name.clone(), node.notary.clone()?)))
        .collect::<BTreeMap<_, _>>()
        .into_values()
        .collect();
    let wanted = parameters.changed(options, notaries, now);
    warnings.extend(parameters.losses(&wanted));
    if wanted.notaries.is_empty() {
        warnings.push(
            "no configuration has a notary: states can be issued in this network, but not moved".to_owned(),
        );
    }
    let (signed, change) = parameters.finish(wanted, &authority)?;
    distribute(&nodes, &signed)?;
    for warning in &warnings {
        tracing::warn!("network bootstrapper: {warning}");
    }
    Ok(BootstrapReport {
        nodes,
        root: authority.root().clone(),
        development: authority.is_development(),
        parameters_hash: signed.hash(),
        parameters: change.0,
        parameters_change: change.1,
        warnings,
    })
}

/// What was in a node's certificates folder.
struct Existing {
    found: Found,
}

impl Existing {
    fn root(&self) -> Option<&Certificate> {
        match &self.found {
            Found::Nothing => None,
            Found::Remains(root) => Some(root),
            Found::Keys(keys) => Some(keys.trust_root()),
        }
    }

    fn keys(&self) -> Option<&NodeKeys> {
        match &self.found {
            Found::Keys(keys) => Some(keys),
            Found::Nothing | Found::Remains(_) => None,
        }
    }
}

/// Reads and judges the keys that are there.
fn existing_keys(
    plan: &Plan,
    now: UnixTime,
) -> Result<BTreeMap<&X500Name, Existing>, BootstrapError> {
    let mut existing = BTreeMap::new();
    for node in &plan.nodes {
        let found = node.with_folder(|folder| {
            let found = folder.find()?;
            if let Found::Keys(keys) = &found {
                // The key of a service may still be added.
                folder.judge_names(keys)?;
                folder.judge_certificates(keys, now)?;
            }
            Ok(found)
        })?;
        existing.insert(node.name(), Existing { found });
    }
    Ok(existing)
}

/// The keys of notary services that exist, by the names of the services.
fn services(
    plan: &Plan,
    existing: &BTreeMap<&X500Name, Existing>,
) -> Result<BTreeMap<X500Name, Identity>, BootstrapError> {
    let mut services: BTreeMap<X500Name, (Identity, &X500Name)> = BTreeMap::new();
    for node in &plan.nodes {
        let name = node.name();
        let held = existing
            .get(name)
            .and_then(Existing::keys)
            .and_then(NodeKeys::notary_service)
            .filter(|held| Some(held.name()) == node.service());
        let Some(held) = held else { continue };
        match services.get(held.name()) {
            Some((other, holder)) if other.key().public() != held.key().public() => {
                return Err(BootstrapError::ServiceKeys {
                    service: held.name().clone(),
                    first: (*holder).clone(),
                    second: name.clone(),
                });
            }
            Some(_) => {}
            None => {
                services.insert(held.name().clone(), (held.clone(), name));
            }
        }
    }
    Ok(services
        .into_iter()
        .map(|(service, (identity, _))| (service, identity))
        .collect())
}

/// What has been made so far and is shared by nodes.
struct Made<'a> {
    authority: &'a Authority,
    services: BTreeMap<X500Name, Identity>,
    now: Timestamp,
}

impl Made<'_> {
    fn service(&mut self, name: &X500Name) -> Result<Identity, BootstrapError> {
        if let Some(identity) = self.services.get(name) {
            return Ok(identity.clone());
        }
        let identity =
            self.authority
                .certifies()
                .service_identity(name, IDENTITY_SCHEME, self.now.into())?;
        self.services.insert(name.clone(), identity.clone());
        Ok(identity)
    }

    /// Keeps the keys of a node, or makes them.
    fn keys(
        &mut self,
        node: &PlannedNode,
        existing: Option<&Existing>,
    ) -> Result<(NodeKeys, KeysChange), BootstrapError> {
        let (mut keys, mut change) = match existing.and_then(Existing::keys) {
            Some(keys) => (keys.clone(), KeysChange::Kept),
            None => {
                let keys = NodeKeys::generate(
                    self.authority.certifies(),
                    node.name(),
                    IDENTITY_SCHEME,
                    self.now.into(),
                )?;
                (keys, KeysChange::Made)
            }
        };
        if let Some(service) = node.service()
            && keys.notary_service().is_none()
        {
            keys = keys.with_notary_service(self.service(service)?);
            if change == KeysChange::Kept {
                change = KeysChange::ServiceAdded;
            }
        }
        if change != KeysChange::Kept {
            node.with_folder(|folder| {
                folder.judge(&keys, self.now.into())?;
                folder.save(&keys)
            })?;
        }
        Ok((keys, change))
    }
}

impl PlannedNode {
    fn with_folder<T>(
        &self,
        work: impl FnOnce(&Folder<'_>) -> Result<T, NodeKeysError>,
    ) -> Result<T, BootstrapError> {
        let options = KeysOptions::of(&self.configuration);
        Folder::new(&options)
            .and_then(|folder| work(&folder))
            .map_err(|source| BootstrapError::Keys {
                directory: self.directory.clone(),
                source,
            })
    }

    fn notary_info(&self, keys: &NodeKeys) -> Option<NotaryInfo> {
        let notary = self.configuration.notary.as_ref()?;
        let identity = match &notary.service_legal_name {
            Some(_) => keys.notary_service()?.party(),
            None => keys.party(),
        };
        Some(NotaryInfo {
            identity,
            validating: notary.validating,
        })
    }
}

/// Puts the configuration where the node looks for it.
fn place_configuration(node: &PlannedNode) -> Result<ConfigurationChange, BootstrapError> {
    let Origin::File(source) = &node.origin else {
        return Ok(ConfigurationChange::Kept);
    };
    fs::create_dir_all(&node.directory).map_err(BootstrapError::io(&node.directory, "written"))?;
    let target = node.directory.join(FILE_NAME);
    let moved = BootstrapError::io(source, "moved");
    let change = match target.exists() {
        true => {
            let previous = node.directory.join(format!("{FILE_NAME}.previous"));
            fs::rename(&target, &previous).map_err(BootstrapError::io(&target, "moved"))?;
            ConfigurationChange::Replaced
        }
        false => ConfigurationChange::Placed,
    };
    fs::rename(source, &target)
        .and_then(|()| fs::File::open(&node.directory)?.sync_all())
        .map_err(moved)?;
    Ok(change)
}

fn publish(
    node: &PlannedNode,
    keys: &NodeKeys,
    now: Timestamp,
) -> Result<PublishedInfo, BootstrapError> {
    OwnInfo::of(&node.configuration, keys).publish(&node.directory, &[], now)
        .map_err(|source| BootstrapError::NodeInfo {
            directory: node.directory.clone(),
            source,
        })
}

/// The network parameters that the nodes have.
struct ExistingParameters {
    newest: Option<(SignedNetworkParameters, NetworkParameters)>,
    /// Nodes have different ones of the newest epoch; only a further epoch unites them.
    divided: bool,
}

impl ExistingParameters {
    fn read(
        plan: &Plan,
        authority: &Authority,
        now: UnixTime,
        warnings: &mut Vec<String>,
    ) -> Result<Self, BootstrapError> {
        let mut newest: Option<(SignedNetworkParameters, NetworkParameters)> = None;
        let mut divided = false;
        for node in &plan.nodes {
            let path = node.directory.join(NETWORK_PARAMETERS_FILE);
            if matches!(path.try_exists(), Ok(false)) {
                continue;
            }
            match read_parameters(&path, authority.root(), now) {
                Ok((signed, parameters)) => {
                    let (epoch, hash) = (parameters.epoch, signed.hash());
                    let known = newest.as_ref().map(|(s, p)| (p.epoch, s.hash()));
                    match known {
                        Some((known, other)) if known == epoch => divided |= other != hash,
                        Some((known, _)) if known > epoch => {}
                        _ => {
                            divided = false;
                            newest = Some((signed, parameters));
                        }
                    }
                }
                Err(error @ NetworkFileError::Refused {
                    source: NetworkError::PlatformVersion { .. },
                    ..
                }) => return Err(BootstrapError::ParametersTooNew(error)),
                Err(error) => warnings.push(format!("{}; it is replaced", chain(&error))),
            }
        }
        Ok(Self { newest, divided })
    }

    /// What the parameters shall be; epoch and time are still the old ones.
    fn changed(
        &self,
        options: &BootstrapOptions,
        notaries: Vec<NotaryInfo>,
        now: Timestamp,
    ) -> NetworkParameters {
        let mut parameters = match &self.newest {
            Some((_, newest)) => newest.clone(),
            None => NetworkParameters::first(Vec::new(), now),
        };
        parameters.notaries = notaries;
        if let Some(version) = options.minimum_platform_version {
            parameters.minimum_platform_version = version;
        }
        if let Some(size) = options.max_message_size {
            parameters.max_message_size = size;
        }
        if let Some(size) = options.max_transaction_size {
            parameters.max_transaction_size = size;
        }
        if let Some(days) = options.event_horizon_days {
            parameters.event_horizon_days = days;
        }
        if self
            .newest
            .as_ref()
            .is_some_and(|(_, newest)| *newest != parameters || self.divided)
        {
            parameters.epoch = parameters.epoch.saturating_add(1);
            parameters.modified_time = now;
        }
        parameters
    }

    /// Notaries that would be notaries no longer.
    fn losses(&self, wanted: &NetworkParameters) -> Vec<String> {
        let before = self.newest.iter().flat_map(|(_, newest)| &newest.notaries);
        before
            .filter(|notary| !wanted.is_notary(&notary.identity))
            .map(|notary| {
                format!(
                    "{} (key {}) is a notary of the network no longer, for no configuration here provides it; \
                     states that it guards can be moved only after it is one again",
                    notary.identity,
                    notary.identity.owning_key.to_string_short()
                )
            })
            .collect()
    }

    fn sign(
        &self,
        parameters: &NetworkParameters,
        authority: &Authority,
    ) -> Result<SignedNetworkParameters, BootstrapError> {
        if parameters.minimum_platform_version > quorate_ledger::PLATFORM_VERSION {
            return Err(BootstrapError::Parameters(NetworkError::PlatformVersion {
                wanted: parameters.minimum_platform_version,
            }));
        }
        SignedNetworkParameters::sign(parameters, authority.certifies().network_map())
            .map_err(BootstrapError::Parameters)
    }

    /// The parameters to hand out: the old ones to the byte if they already say it.
    fn finish(
        self,
        wanted: NetworkParameters,
        authority: &Authority,
    ) -> Result<(SignedNetworkParameters, (NetworkParameters, ParametersChange)), BootstrapError>
    {
        match self.newest {
            Some((signed, newest)) if newest == wanted => {
                Ok((signed, (newest, ParametersChange::Unchanged)))
            }
            Some((_, ref newest)) => {
                let change = ParametersChange::Updated {
                    from_epoch: newest.epoch,
                };
                Ok((self.sign(&wanted, authority)?, (wanted, change)))
            }
            None => Ok((
                self.sign(&wanted, authority)?,
                (wanted, ParametersChange::Made),
            )),
        }
    }
}

/// Gives every node the parameters and the infos of all. Running nodes pick them up.
fn distribute(
    nodes: &[BootstrappedNode],
    parameters: &SignedNetworkParameters,
) -> Result<(), BootstrapError> {
    let infos: Vec<_> = nodes
        .iter()
        .map(|node| (node_info_file(&node.name), node.info.signed.encode()))
        .collect();
    let parameters = parameters.encode();
    for node in nodes {
        let folder = node.directory.join(ADDITIONAL_NODE_INFOS_DIRECTORY);
        fs::create_dir_all(&folder).map_err(BootstrapError::io(&folder, "written"))?;
        for (file, bytes) in &infos {
            write_if_changed(&folder.join(file), bytes)?;
        }
        // Last: the infos of new notaries are there when their names come into force.
        write_if_changed(&node.directory.join(NETWORK_PARAMETERS_FILE), &parameters)?;
    }
    Ok(())
}

fn write_if_changed(path: &Path, bytes: &[u8]) -> Result<(), BootstrapError> {
    let same_size = fs::metadata(path).is_ok_and(|metadata| metadata.len() == bytes.len() as u64);
    if same_size && fs::read(path).is_ok_and(|present| present == bytes) {
        return Ok(());
    }
    write_public(path, bytes).map_err(BootstrapError::io(path, "written"))
}
