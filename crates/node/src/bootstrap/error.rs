//! What keeps a network from being made.

use std::io;
use std::path::{Path, PathBuf};

use quorate_identity::{IssueError, KeyStoreError, X500Name};
use quorate_ledger::network::NetworkError;

use super::plan::{CONFIGURATION_SUFFIX, MAX_NODES};
use crate::config::{ConfigurationError, FILE_NAME};
use crate::network_map::{NetworkFileError, OwnInfoError};
use crate::node_keys::NodeKeysError;

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
    /// Members of one notary service without a database in common.
    #[error(
        "{first} and {second} provide the notary service {service}, but do not share a database: each would let a state be \
         spent that the other knows as spent; give both the same notary.jpa.dataSourceProperties"
    )]
    NotaryDatabases {
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
    /// Two nodes with one key in a hardware security module.
    #[error(
        "{first} and {second} have the same identity key in a hardware security module; give each node aliases of its own: \
         identityKeyAlias, clientCaKeyAlias and tlsKeyAlias in enterpriseConfiguration"
    )]
    SharedKey {
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
        source: Box<NodeKeysError>,
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
        source: Box<KeyStoreError>,
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
    Parameters(#[source] Box<NetworkError>),
    /// The network asks for a newer program.
    #[error("the network parameters of this network cannot be handled by this program")]
    ParametersTooNew(#[source] Box<NetworkFileError>),
    /// A node info could not be made.
    #[error("the node in {} cannot introduce itself", .directory.display())]
    NodeInfo {
        /// The node's directory.
        directory: PathBuf,
        /// The reason.
        source: Box<OwnInfoError>,
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
    /// For `map_err`: what was to be done with which file.
    pub(super) fn io(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            path,
            action,
            source,
        }
    }
}
