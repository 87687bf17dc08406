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
//! [`bootstrap`] tells the steps. `plan` finds and checks the configurations, `authority` decides who certifies,
//! `parameters` what the network agrees on, and `report` is what the caller prints.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use quorate_identity::{Certificate, Identity, NodeKeys, PublicKey, UnixTime, X500Name};
use quorate_ledger::Timestamp;
use quorate_ledger::network::{NotaryInfo, SignedNetworkParameters};
use quorate_runtime::{Clock, Entropy};

use crate::config::{FILE_NAME, LoadOptions};
use crate::network_map::files::write_public;
use crate::network_map::{
    ADDITIONAL_NODE_INFOS_DIRECTORY, NETWORK_PARAMETERS_FILE, OwnInfo, PublishedInfo,
    node_info_file,
};
use crate::node_keys::{Folder, Found, IDENTITY_SCHEME, KeysOptions, NodeKeysError, open_lock};

mod authority;
mod error;
mod parameters;
mod plan;
mod report;

use authority::Authority;
pub use error::BootstrapError;
use parameters::{ExistingParameters, sign};
pub use plan::{CONFIGURATION_SUFFIX, MAX_NODES};
use plan::{Origin, Plan, PlannedNode};
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
    sign(&parameters.changed(options, Vec::new(), now), &authority)?;

    authority.save()?;
    let mut nodes = Vec::with_capacity(plan.nodes.len());
    let mut made = Made {
        authority: &authority,
        services,
        identities: BTreeMap::new(),
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
        .filter_map(|node| {
            Some((
                node.notary.as_ref()?.identity.name.clone(),
                node.notary.clone()?,
            ))
        })
        .collect::<BTreeMap<_, _>>()
        .into_values()
        .collect();
    let wanted = parameters.changed(options, notaries, now);
    warnings.extend(parameters.losses(&wanted));
    if wanted.notaries.is_empty() {
        warnings.push(
            "no configuration has a notary: states can be issued in this network, but not moved"
                .to_owned(),
        );
    }
    let parameters = parameters.finish(wanted, &authority)?;
    distribute(&nodes, &parameters.signed)?;
    for warning in &warnings {
        tracing::warn!("network bootstrapper: {warning}");
    }
    Ok(BootstrapReport {
        nodes,
        root: authority.root().clone(),
        development: authority.is_development(),
        parameters_hash: parameters.signed.hash(),
        parameters: parameters.content,
        parameters_change: parameters.change,
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
    /// Whose identity key it is.
    identities: BTreeMap<PublicKey, X500Name>,
    now: Timestamp,
}

impl Made<'_> {
    fn service(&mut self, node: &PlannedNode, name: &X500Name) -> Result<Identity, BootstrapError> {
        if let Some(identity) = self.services.get(name) {
            return node.with_folder(|folder| folder.share_service(identity));
        }
        let authority = self.authority.certifies();
        let now = self.now.into();
        let identity =
            node.with_folder(|folder| Ok(folder.make_service(authority, name, now)))??;
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
                let authority = self.authority.certifies();
                let now = self.now.into();
                let keys = node.with_folder(|folder| Ok(folder.make_keys(authority, now)))??;
                (keys, KeysChange::Made)
            }
        };
        if let Some(service) = node.service()
            && keys.notary_service().is_none()
        {
            keys = keys.with_notary_service(self.service(node, service)?);
            if change == KeysChange::Kept {
                change = KeysChange::ServiceAdded;
            }
        }
        let public = keys.legal_identity().key().public().clone();
        if let Some(first) = self.identities.insert(public, node.name().clone()) {
            return Err(BootstrapError::SharedKey {
                first,
                second: node.name().clone(),
            });
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
                source: Box::new(source),
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
    OwnInfo::of(&node.configuration, keys)
        .publish(&node.directory, &[], now)
        .map_err(|source| BootstrapError::NodeInfo {
            directory: node.directory.clone(),
            source: Box::new(source),
        })
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
