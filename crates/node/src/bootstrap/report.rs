//! What a bootstrapper has done, for whoever prints it.

use std::fmt;
use std::path::PathBuf;

use quorate_identity::{Certificate, SecureHash, X500Name};
use quorate_ledger::network::{NetworkParameters, NotaryInfo};

use crate::network_map::PublishedInfo;

/// A network that was made or completed. [`fmt::Display`] tells it in lines for a person.
#[derive(Debug)]
pub struct BootstrapReport {
    /// The nodes, by legal name.
    pub nodes: Vec<BootstrappedNode>,
    /// The root that all of them trust.
    pub root: Certificate,
    /// Whether that is the INSECURE development root.
    pub development: bool,
    /// The network parameters in force.
    pub parameters: NetworkParameters,
    /// Their hash.
    pub parameters_hash: SecureHash,
    /// What became of them.
    pub parameters_change: ParametersChange,
    /// What the operator should know.
    pub warnings: Vec<String>,
}

/// One node of the network.
#[derive(Debug)]
pub struct BootstrappedNode {
    /// Its legal name.
    pub name: X500Name,
    /// Its base directory.
    pub directory: PathBuf,
    /// What became of its configuration.
    pub configuration: ConfigurationChange,
    /// What became of its keys.
    pub keys: KeysChange,
    /// The notary that it provides, alone or with others.
    pub notary: Option<NotaryInfo>,
    /// Whether its node info is a new one.
    pub node_info_changed: bool,
    pub(super) info: PublishedInfo,
}

/// What became of a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConfigurationChange {
    /// The node had it before.
    Kept,
    /// It was moved into a directory without one.
    Placed,
    /// It was moved into the node's directory; the one that was there is now `node.conf.previous`.
    Replaced,
}

/// What became of a node's keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeysChange {
    /// The node had them before.
    Kept,
    /// They are new.
    Made,
    /// The node has its identity as before, and now a notary service's key too.
    ServiceAdded,
}

/// What became of the network parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParametersChange {
    /// They are the first of the network.
    Made,
    /// They are as they were.
    Unchanged,
    /// They are new ones of a later epoch.
    Updated {
        /// The epoch before.
        from_epoch: u32,
    },
}

impl fmt::Display for BootstrapReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for node in &self.nodes {
            let keys = match node.keys {
                KeysChange::Kept => "identity kept",
                KeysChange::Made => "new identity",
                KeysChange::ServiceAdded => "identity kept, key of the notary service added",
            };
            let configuration = match node.configuration {
                ConfigurationChange::Kept => "",
                ConfigurationChange::Placed => ", node.conf moved in",
                ConfigurationChange::Replaced => ", node.conf replaced",
            };
            writeln!(
                f,
                "{}: {} ({keys}{configuration})",
                node.name,
                node.directory.display()
            )?;
        }
        for notary in &self.parameters.notaries {
            let kind = if notary.validating {
                "validating"
            } else {
                "non-validating"
            };
            writeln!(f, "notary: {} ({kind})", notary.identity)?;
        }
        let change = match self.parameters_change {
            ParametersChange::Made => "new".to_owned(),
            ParametersChange::Unchanged => "unchanged".to_owned(),
            ParametersChange::Updated { from_epoch } => format!("updated from epoch {from_epoch}"),
        };
        write!(
            f,
            "network parameters: epoch {}, {change}, hash {}",
            self.parameters.epoch, self.parameters_hash
        )?;
        for warning in &self.warnings {
            write!(f, "\nWARNING: {warning}")?;
        }
        Ok(())
    }
}
