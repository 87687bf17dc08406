//! Which nodes there are, and whether they can live together. Reads configurations, writes nothing.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use quorate_identity::X500Name;
use quorate_ledger::network::NetworkHostAndPort;

use super::{BootstrapError, BootstrapOptions};
use crate::config::{FILE_NAME, NodeConfiguration};

/// How the names of configurations end that wait for their directory.
pub const CONFIGURATION_SUFFIX: &str = "_node.conf";

/// The most nodes that are handled at once.
pub const MAX_NODES: usize = 1_000;

/// The nodes of a folder, checked against each other, in the order of their legal names.
pub(super) struct Plan {
    pub(super) nodes: Vec<PlannedNode>,
}

/// One node that there shall be.
pub(super) struct PlannedNode {
    pub(super) configuration: NodeConfiguration,
    pub(super) directory: PathBuf,
    pub(super) origin: Origin,
}

/// Where a node's configuration is.
pub(super) enum Origin {
    /// In the node's directory.
    Directory,
    /// In a `*_node.conf` file that shall be moved there.
    File(PathBuf),
}

impl PlannedNode {
    pub(super) fn name(&self) -> &X500Name {
        &self.configuration.my_legal_name
    }

    /// The name of the notary service that the node provides, if it is not the node's own.
    pub(super) fn service(&self) -> Option<&X500Name> {
        let notary = self.configuration.notary.as_ref()?;
        notary.service_legal_name.as_ref()
    }

    fn source(&self) -> PathBuf {
        match &self.origin {
            Origin::Directory => self.directory.join(FILE_NAME),
            Origin::File(path) => path.clone(),
        }
    }
}

/// The configurations of a folder: those that wait, and the node directories. Both in the order of their names.
struct Sources {
    files: Vec<PathBuf>,
    directories: Vec<PathBuf>,
}

impl Sources {
    fn find(folder: &Path) -> Result<Self, BootstrapError> {
        let failed = || BootstrapError::io(folder, "read");
        let mut sources = Self {
            files: Vec::new(),
            directories: Vec::new(),
        };
        for entry in fs::read_dir(folder).map_err(failed())? {
            let path = entry.map_err(failed())?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
                continue;
            };
            if name.starts_with('.') {
                continue;
            }
            if name.ends_with(CONFIGURATION_SUFFIX) && path.is_file() {
                sources.files.push(path);
            } else if path.join(FILE_NAME).is_file() {
                sources.directories.push(path);
            }
        }
        let count = sources.files.len() + sources.directories.len();
        if count == 0 {
            return Err(BootstrapError::NothingToDo {
                directory: folder.to_owned(),
            });
        }
        if count > MAX_NODES {
            return Err(BootstrapError::TooManyNodes {
                directory: folder.to_owned(),
                count,
            });
        }
        sources.files.sort();
        sources.directories.sort();
        Ok(sources)
    }
}

/// Whether there is anything to plan.
pub(super) fn check_folder(folder: &Path) -> Result<(), BootstrapError> {
    Sources::find(folder).map(drop)
}

impl Plan {
    /// Reads all configurations and checks what can be checked without keys.
    pub(super) fn read(options: &BootstrapOptions) -> Result<Self, BootstrapError> {
        let folder = &options.directory;
        let sources = Sources::find(folder)?;
        let load = |base: &Path, file: &Path| {
            NodeConfiguration::load(base, Some(file), &options.load).map_err(|source| {
                BootstrapError::Configuration {
                    path: file.to_owned(),
                    source,
                }
            })
        };
        let mut nodes: BTreeMap<X500Name, PlannedNode> = BTreeMap::new();
        for directory in sources.directories {
            let node = PlannedNode {
                configuration: load(&directory, &directory.join(FILE_NAME))?,
                directory,
                origin: Origin::Directory,
            };
            insert(&mut nodes, node)?;
        }
        for file in sources.files {
            // Relative paths in it count from the directory, which has the name that it says.
            let name = load(folder, &file)?.my_legal_name;
            let directory = match nodes.get(&name) {
                Some(existing) => existing.directory.clone(),
                None => folder.join(directory_name(&name)),
            };
            let node = PlannedNode {
                configuration: load(&directory, &file)?,
                directory,
                origin: Origin::File(file),
            };
            // A configuration that comes for a node which has one replaces it.
            if nodes
                .get(&name)
                .is_some_and(|existing| matches!(existing.origin, Origin::Directory))
            {
                nodes.remove(&name);
            }
            insert(&mut nodes, node)?;
        }
        let plan = Self {
            nodes: nodes.into_values().collect(),
        };
        plan.check_ports()?;
        plan.check_notaries()?;
        Ok(plan)
    }

    /// Two nodes on one machine cannot have the same port, and no two nodes can be reached at the same address.
    ///
    /// Which machine a node lives on is told by the host of its `p2pAddress`; an address on every interface or on the
    /// loopback is on that machine.
    fn check_ports(&self) -> Result<(), BootstrapError> {
        let mut taken: BTreeMap<(String, u16), (&X500Name, &'static str)> = BTreeMap::new();
        for node in &self.nodes {
            for (option, machine, port) in ports(&node.configuration) {
                let address = format!("{machine}:{port}");
                match taken.get(&(machine.clone(), port)) {
                    Some((other, _)) if *other == node.name() => {}
                    Some((other, other_option)) => {
                        return Err(BootstrapError::PortClash {
                            address,
                            first: (*other).clone(),
                            first_option: other_option,
                            second: node.name().clone(),
                            second_option: option,
                        });
                    }
                    None => {
                        taken.insert((machine, port), (node.name(), option));
                    }
                }
            }
        }
        Ok(())
    }

    fn check_notaries(&self) -> Result<(), BootstrapError> {
        let mut services: BTreeMap<&X500Name, &PlannedNode> = BTreeMap::new();
        let validating = |node: &PlannedNode| {
            node.configuration
                .notary
                .as_ref()
                .is_some_and(|notary| notary.validating)
        };
        for node in &self.nodes {
            let Some(service) = node.service() else {
                continue;
            };
            if self.nodes.iter().any(|other| other.name() == service) {
                return Err(BootstrapError::ServiceNamedLikeNode {
                    service: service.clone(),
                    provider: node.name().clone(),
                });
            }
            match services.get(service) {
                Some(other) if validating(other) != validating(node) => {
                    return Err(BootstrapError::NotaryKinds {
                        service: service.clone(),
                        first: other.name().clone(),
                        second: node.name().clone(),
                    });
                }
                Some(other) if !shares_a_database(other, node) => {
                    return Err(BootstrapError::NotaryDatabases {
                        service: service.clone(),
                        first: other.name().clone(),
                        second: node.name().clone(),
                    });
                }
                Some(_) => {}
                None => {
                    services.insert(service, node);
                }
            }
        }
        Ok(())
    }
}

/// Whether two workers of a notary see what the other one has decided, as far as their configurations tell: each may have
/// a name of its own for the database's server.
fn shares_a_database(one: &PlannedNode, other: &PlannedNode) -> bool {
    let shared = |node: &PlannedNode| {
        let notary = node.configuration.notary.as_ref();
        notary.is_some_and(|notary| notary.shared_database.is_some())
    };
    shared(one) && shared(other)
}

fn insert(
    nodes: &mut BTreeMap<X500Name, PlannedNode>,
    node: PlannedNode,
) -> Result<(), BootstrapError> {
    if let Some(other) = nodes.get(node.name()) {
        return Err(BootstrapError::SameName {
            name: node.name().clone(),
            first: other.source(),
            second: node.source(),
        });
    }
    if let Some(other) = nodes
        .values()
        .find(|other| other.directory == node.directory)
    {
        return Err(BootstrapError::SameDirectory {
            directory: node.directory.clone(),
            first: other.name().clone(),
            second: node.name().clone(),
        });
    }
    nodes.insert(node.name().clone(), node);
    Ok(())
}

/// A directory called like the organisation, without what would be awkward in a path.
fn directory_name(name: &X500Name) -> String {
    let safe = |c: char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_' | '.' | '&');
    let organisation = name.organisation();
    let text: String = organisation
        .chars()
        .map(|c| if safe(c) { c } else { '_' })
        .collect();
    // Hidden directories are not looked into.
    match text.strip_prefix('.') {
        Some(rest) => format!("_{rest}"),
        None => text,
    }
}

/// Every port of a node: its configuration key, the machine, the port.
fn ports(
    configuration: &NodeConfiguration,
) -> impl Iterator<Item = (&'static str, String, u16)> + '_ {
    let home = configuration
        .advertised_addresses
        .first()
        .map_or_else(String::new, |address| machine(address.host()));
    let advertised =
        configuration
            .advertised_addresses
            .iter()
            .enumerate()
            .map(|(index, address)| match index {
                0 => ("p2pAddress", address),
                _ => ("additionalP2PAddresses", address),
            });
    let opened = [
        ("messagingServerAddress", Some(&configuration.p2p_listen)),
        ("rpcSettings.address", Some(&configuration.rpc.address)),
        ("webAddress", configuration.web_address.as_ref()),
        (
            "operations.address",
            configuration.operations_address.as_ref(),
        ),
    ];
    let opened = opened
        .into_iter()
        .filter_map(|(option, address)| Some((option, address?)));
    advertised
        .chain(opened)
        .map(move |(option, address): (_, &NetworkHostAndPort)| {
            let machine = match machine(address.host()) {
                anywhere if anywhere == LOCAL => home.clone(),
                named => named,
            };
            (option, machine, address.port())
        })
}

const LOCAL: &str = "localhost";

/// The machine that a host names, all names of the local one being the same.
fn machine(host: &str) -> String {
    match host.parse::<std::net::IpAddr>() {
        Ok(address) if address.is_loopback() || address.is_unspecified() => LOCAL.to_owned(),
        Ok(address) => address.to_string(),
        Err(_) => host.to_ascii_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_named_after_organisations() {
        let named = |text: &str| directory_name(&text.parse().unwrap());
        assert_eq!(named("O=PartyA, L=Osaka, C=JP"), "PartyA");
        assert_eq!(named("O=Bank of A & B, L=Osaka, C=JP"), "Bank of A & B");
        assert_eq!(named("O=Handel A/S, L=Aarhus, C=DK"), "Handel A_S");
        assert_eq!(named("O=..Inc, L=Osaka, C=JP"), "_.Inc");
    }
}
