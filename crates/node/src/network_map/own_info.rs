//! Our own node info: made from the configuration, signed, and put where an operator finds it to give it to others.

use std::io;
use std::path::{Path, PathBuf};

use quorate_identity::{Identity, NodeKeys, X500Name};
use quorate_ledger::limits::PLATFORM_VERSION;
use quorate_ledger::network::{
    NetworkError, NetworkHostAndPort, NodeInfo, PartyAndCertificate, SignedNodeInfo,
};
use quorate_ledger::{Timestamp, limits::MAX_ADDRESSES};

use crate::config::NodeConfiguration;

use super::files::{node_info_file, read_node_info, write_public};

/// What a node says of itself.
#[derive(Debug, Clone, Copy)]
pub struct OwnInfo<'a> {
    /// Its keys.
    pub keys: &'a NodeKeys,
    /// `p2pAddress`, then `additionalP2PAddresses`.
    pub addresses: &'a [NetworkHostAndPort],
    /// Whether it provides the notary service whose key it holds.
    pub provides_notary_service: bool,
}

/// Why our own node info was not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OwnInfoError {
    /// The configuration leads to an info that nobody accepts.
    #[error(
        "no node info can be made for {name}; check p2pAddress and additionalP2PAddresses (1 to {MAX_ADDRESSES} in all)"
    )]
    Sign {
        /// The node.
        name: X500Name,
        /// The rule.
        source: NetworkError,
    },
    /// The file system refuses.
    #[error("the node info {} cannot be written; check the owner and permissions of its directory", .path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// Our own node info, and the file that holds it.
#[derive(Debug, Clone)]
pub struct PublishedInfo {
    /// The info.
    pub info: NodeInfo,
    /// As it was signed.
    pub signed: SignedNodeInfo,
    /// Where it is.
    pub path: PathBuf,
    /// Whether the file was written now.
    pub written: bool,
}

impl<'a> OwnInfo<'a> {
    /// What a whole configuration says.
    #[must_use]
    pub fn of(configuration: &'a NodeConfiguration, keys: &'a NodeKeys) -> Self {
        let notary = configuration.notary.as_ref();
        Self {
            keys,
            addresses: &configuration.advertised_addresses,
            provides_notary_service: notary
                .is_some_and(|notary| notary.service_legal_name.is_some()),
        }
    }

    fn identities(&self) -> Vec<&Identity> {
        let service = self
            .keys
            .notary_service()
            .filter(|_| self.provides_notary_service);
        std::iter::once(self.keys.legal_identity())
            .chain(service)
            .collect()
    }

    fn content(&self, serial: u64) -> NodeInfo {
        let mut addresses: Vec<NetworkHostAndPort> = Vec::new();
        for address in self.addresses {
            if !addresses.contains(address) {
                addresses.push(address.clone());
            }
        }
        NodeInfo {
            addresses,
            identities: self
                .identities()
                .into_iter()
                .map(PartyAndCertificate::from)
                .collect(),
            platform_version: PLATFORM_VERSION,
            serial,
        }
    }

    /// Writes the info into `base_directory`, unless the newest one that there is already says the same. `elsewhere` are
    /// further files in which an info of ours may be: the serial has to exceed theirs, and if the newest of all says what
    /// we want to say (it may have been made by this node's other machine), it is taken as it is.
    pub(crate) fn publish(
        &self,
        base_directory: &Path,
        elsewhere: &[PathBuf],
        now: Timestamp,
    ) -> Result<PublishedInfo, OwnInfoError> {
        let name = self.keys.name();
        let path = base_directory.join(node_info_file(name));
        let known = std::iter::once(&path)
            .chain(elsewhere)
            .filter_map(|file| {
                // An unreadable one is as good as none: it is replaced.
                let (signed, info) =
                    read_node_info(file, self.keys.trust_root(), now.into()).ok()?;
                (info.identities[0].name() == name).then_some((info.serial, file, signed, info))
            })
            .max_by_key(|(serial, file, ..)| (*serial, **file == path));
        let newest = known.as_ref().map(|(serial, ..)| *serial);
        if let Some((serial, file, signed, info)) = known
            && info == self.content(serial)
        {
            let written = *file != path;
            if written {
                write_public(&path, &signed.encode()).map_err(|source| OwnInfoError::Write {
                    path: path.clone(),
                    source,
                })?;
            }
            return Ok(PublishedInfo {
                info,
                signed,
                path,
                written,
            });
        }
        let millis = u64::try_from(now.as_micros().div_euclid(1_000)).unwrap_or(0);
        let serial = newest.map_or(millis, |newest| millis.max(newest.saturating_add(1)));
        let info = self.content(serial);
        let keys: Vec<_> = self.identities().into_iter().map(Identity::key).collect();
        let signed = SignedNodeInfo::sign(&info, &keys).map_err(|source| OwnInfoError::Sign {
            name: name.clone(),
            source,
        })?;
        write_public(&path, &signed.encode()).map_err(|source| OwnInfoError::Write {
            path: path.clone(),
            source,
        })?;
        Ok(PublishedInfo {
            info,
            signed,
            path,
            written: true,
        })
    }
}
