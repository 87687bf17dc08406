//! Who certifies the nodes of a network: the development authority, or one of the network's own.
//!
//! The network's own is made when a node wants to run for real, and kept with its private keys in the bootstrapper's
//! folder: without it no node can be added later, and whoever has it can admit anybody.

use std::path::{Path, PathBuf};

use quorate_identity::{Certificate, CertificateAuthority, KeyStoreError, UnixTime, X500Name};
use quorate_runtime::{Entropy, Secret};

use super::plan::Plan;
use super::{BootstrapError, IDENTITY_SCHEME};
use crate::network_map::files::{SECRET_MODE, write};

/// The private keys of a network's own authority.
const AUTHORITY_FILE: &str = "authority.json";

/// The password of [`AUTHORITY_FILE`].
const PASSWORD_FILE: &str = "authority.password";

/// The authority of this run.
pub(super) struct Authority {
    authority: CertificateAuthority,
    kind: Kind,
}

enum Kind {
    Development,
    Own {
        file: PathBuf,
        /// For an authority that was made just now, and is not yet in its file.
        unsaved: Option<Secret>,
    },
}

impl Authority {
    /// The authority that certified the nodes so far; for a new network, development's if all nodes are of development.
    /// Writes nothing.
    pub(super) fn choose<'a>(
        plan: &Plan,
        mut roots: impl Iterator<Item = (&'a X500Name, &'a Certificate)>,
        work: &Path,
        now: UnixTime,
        entropy: &Entropy,
    ) -> Result<Self, BootstrapError> {
        let first = roots.next();
        if let Some((first, root)) = first
            && let Some((second, other)) = roots.find(|(_, other)| *other != root)
        {
            return Err(BootstrapError::DifferentRoots {
                first: first.clone(),
                first_root: root.subject().clone(),
                second: second.clone(),
                second_root: other.subject().clone(),
            });
        }
        let file = work.join(AUTHORITY_FILE);
        let for_real = plan.nodes.iter().find(|node| !node.configuration.dev_mode);
        let development = match first {
            Some((_, root)) => CertificateAuthority::is_development_root(root),
            None => for_real.is_none() && matches!(file.try_exists(), Ok(false)),
        };
        if development {
            if let Some(node) = for_real {
                return Err(BootstrapError::DevelopmentNetwork {
                    node: node.name().clone(),
                });
            }
            return Ok(Self {
                authority: CertificateAuthority::development(),
                kind: Kind::Development,
            });
        }
        match (load(work, &file)?, first) {
            (Some(authority), None) => Ok(Self::own(authority, file)),
            (Some(authority), Some((_, root))) if authority.root() == root => {
                Ok(Self::own(authority, file))
            }
            (_, Some((_, root))) => Err(BootstrapError::AuthorityMissing {
                path: file,
                root: root.subject().clone(),
            }),
            (None, None) => {
                // A name of its own, so that errors can tell two networks apart.
                let id = hex::encode(entropy.bytes::<4>());
                let name = X500Name::new(&format!("Bootstrapped Network {id}"), "London", "GB")
                    .expect("letters, digits and spaces make an organisation");
                let authority = CertificateAuthority::generate(&name, IDENTITY_SCHEME, now)?;
                let password = Secret::new(hex::encode(entropy.bytes::<32>()));
                Ok(Self {
                    authority,
                    kind: Kind::Own {
                        file,
                        unsaved: Some(password),
                    },
                })
            }
        }
    }

    fn own(authority: CertificateAuthority, file: PathBuf) -> Self {
        Self {
            authority,
            kind: Kind::Own {
                file,
                unsaved: None,
            },
        }
    }

    /// Makes a new authority durable; must come before it certifies anything that is kept.
    pub(super) fn save(&self) -> Result<(), BootstrapError> {
        let Kind::Own {
            file,
            unsaved: Some(password),
        } = &self.kind
        else {
            return Ok(());
        };
        let password_file = file.with_file_name(PASSWORD_FILE);
        write(&password_file, password.expose().as_bytes(), SECRET_MODE)
            .map_err(BootstrapError::io(&password_file, "written"))?;
        self.authority
            .save(file, password.expose())
            .map_err(|source| BootstrapError::AuthorityFile {
                path: file.clone(),
                source: Box::new(source),
            })
    }

    pub(super) fn certifies(&self) -> &CertificateAuthority {
        &self.authority
    }

    pub(super) fn root(&self) -> &Certificate {
        self.authority.root()
    }

    pub(super) fn is_development(&self) -> bool {
        matches!(self.kind, Kind::Development)
    }

    pub(super) fn warnings(&self) -> Vec<String> {
        match &self.kind {
            Kind::Development => vec![
                "the nodes have INSECURE DEVELOPMENT KEYS: everybody can issue certificates of the development root. \
                 For a network of its own, set devMode = false and passwords in the configurations, and bootstrap in a \
                 new folder"
                    .to_owned(),
            ],
            Kind::Own { file, .. } => vec![format!(
                "{} holds the private keys of this network's authority, with its password beside it: whoever has them \
                 can admit nodes under any name. Keep that folder offline; it is needed only to run the bootstrapper again",
                file.display()
            )],
        }
    }
}

fn load(work: &Path, file: &Path) -> Result<Option<CertificateAuthority>, BootstrapError> {
    let password_file = work.join(PASSWORD_FILE);
    if matches!(file.try_exists(), Ok(false)) {
        return Ok(None);
    }
    let password = std::fs::read_to_string(&password_file)
        .map_err(BootstrapError::io(&password_file, "read"))?;
    let password = Secret::new(password.trim());
    match CertificateAuthority::load(file, password.expose()) {
        Ok(authority) => Ok(Some(authority)),
        Err(KeyStoreError::Missing { .. }) => Ok(None),
        Err(source) => Err(BootstrapError::AuthorityFile {
            path: file.to_owned(),
            source: Box::new(source),
        }),
    }
}
