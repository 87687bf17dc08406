//! The folder of other nodes' infos: which files are there, which of them are believed, and which info of each node
//! counts.
//!
//! A [`Folder`] is looked at again and again. Files that have not changed are not read again; a file that does not count
//! is reported once, with the reason, and does no harm to the others.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use quorate_identity::{Certificate, Party, PublicKey, SecureHash, UnixTime, X500Name};
use quorate_ledger::network::NodeInfo;
use quorate_runtime::tasks::chain;

use super::files::{Fingerprint, NODE_INFO_PREFIX, NetworkFileError, read_node_info};

/// The most node infos that are read; further files, in the order of their names, are left out and reported.
pub const MAX_NODE_INFOS: usize = 10_000;

/// The most entries that are looked at in the folder, whatever they are.
const MAX_FOLDER_ENTRIES: usize = 8 * MAX_NODE_INFOS;

/// After how long a file that does not count is judged again though it has not changed: its certificates may have begun
/// to count in the meantime.
const JUDGE_AGAIN: Duration = Duration::from_secs(60);

pub(super) struct Folder {
    path: PathBuf,
    trust_root: Certificate,
    files: BTreeMap<String, Seen>,
    /// What is wrong with the folder as a whole, to report it once.
    trouble: Option<String>,
}

struct Seen {
    fingerprint: Option<Fingerprint>,
    verdict: Verdict,
}

enum Verdict {
    Good(Arc<Believed>),
    Bad {
        judged: Duration,
        /// The first refusal of a new file is kept quiet: it may be in the middle of being copied.
        reported: bool,
    },
}

/// A verified info.
pub(super) struct Believed {
    pub(super) info: Arc<NodeInfo>,
    pub(super) hash: SecureHash,
}

/// When a look is taken.
#[derive(Clone, Copy)]
pub(super) struct Moment {
    pub(super) wall: UnixTime,
    pub(super) monotonic: Duration,
}

impl Folder {
    pub(super) fn new(path: PathBuf, trust_root: Certificate) -> Self {
        Self {
            path,
            trust_root,
            files: BTreeMap::new(),
            trouble: None,
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Looks at the folder; the answer is whether other infos are believed than before. With `patience`, a file that
    /// does not count is reported at the second look only.
    pub(super) fn look(&mut self, now: Moment, patience: bool) -> bool {
        let names = match list(&self.path) {
            Ok((names, left_out)) => {
                let trouble = (left_out > 0).then(|| {
                    format!("it holds {left_out} entries more than the {MAX_NODE_INFOS} node infos that are read")
                });
                self.report_folder(trouble);
                names
            }
            Err(error) => {
                // What is known stays known: a file system that is away for a moment must not empty the network.
                self.report_folder(Some(chain(&error)));
                return false;
            }
        };
        let mut changed = false;
        let gone: Vec<_> = self
            .files
            .keys()
            .filter(|name| !names.contains(*name))
            .cloned()
            .collect();
        for name in gone {
            if let Some(Verdict::Good(believed)) = self.files.remove(&name).map(|seen| seen.verdict)
            {
                changed = true;
                tracing::info!(file = %self.path.join(&name).display(), node = %believed.info.identities[0].name(),
                    "a node info was removed");
            }
        }
        for name in names {
            changed |= self.look_at(name, now, patience);
        }
        changed
    }

    fn look_at(&mut self, name: String, now: Moment, patience: bool) -> bool {
        let path = self.path.join(&name);
        let fingerprint = fs::metadata(&path).ok().map(|m| Fingerprint::of(&m));
        let before = self.files.get(&name);
        let unchanged = before.filter(|seen| seen.fingerprint == fingerprint);
        let reported = match unchanged.map(|seen| &seen.verdict) {
            Some(Verdict::Good(_)) => return false,
            Some(Verdict::Bad {
                judged,
                reported: true,
            }) => {
                if now.monotonic.saturating_sub(*judged) < JUDGE_AGAIN {
                    return false;
                }
                true
            }
            Some(Verdict::Bad { .. }) | None => false,
        };
        let was_good = matches!(
            before,
            Some(Seen {
                verdict: Verdict::Good(_),
                ..
            })
        );
        let second_look = unchanged.is_some();
        let (verdict, changed) = match read_node_info(&path, &self.trust_root, now.wall) {
            Ok((signed, info)) => {
                tracing::info!(file = %path.display(), node = %info.identities[0].name(), serial = info.serial,
                    "a node info was read");
                let believed = Believed {
                    info: Arc::new(info),
                    hash: signed.hash(),
                };
                (Verdict::Good(Arc::new(believed)), true)
            }
            Err(error) => {
                let report = !reported && (second_look || !patience);
                if report {
                    report_file(&error);
                }
                let verdict = Verdict::Bad {
                    judged: now.monotonic,
                    reported: reported || report,
                };
                (verdict, was_good)
            }
        };
        let seen = Seen {
            fingerprint,
            verdict,
        };
        self.files.insert(name, seen);
        changed
    }

    fn report_folder(&mut self, trouble: Option<String>) {
        if trouble != self.trouble {
            match &trouble {
                Some(trouble) => {
                    tracing::warn!(folder = %self.path.display(), "the folder of node infos: {trouble}");
                }
                None => {
                    tracing::info!(folder = %self.path.display(), "the folder of node infos can be read again");
                }
            }
            self.trouble = trouble;
        }
    }

    /// The believed infos, in the order of their files' names.
    pub(super) fn believed(&self) -> impl Iterator<Item = (&str, &Arc<Believed>)> {
        self.files
            .iter()
            .filter_map(|(name, seen)| match &seen.verdict {
                Verdict::Good(believed) => Some((name.as_str(), believed)),
                Verdict::Bad { .. } => None,
            })
    }

    /// The files that hold an info of this node.
    pub(super) fn files_of(&self, node: &X500Name) -> Vec<PathBuf> {
        self.believed()
            .filter(|(_, believed)| believed.info.identities[0].name() == node)
            .map(|(name, _)| self.path.join(name))
            .collect()
    }
}

fn report_file(error: &NetworkFileError) {
    tracing::warn!(error = %chain(error), "a node info file is ignored");
}

/// The node info files by name, at most [`MAX_NODE_INFOS`], and how many entries were left out.
fn list(folder: &Path) -> io::Result<(BTreeSet<String>, usize)> {
    let mut names = BTreeSet::new();
    let mut left_out = 0;
    for (index, entry) in fs::read_dir(folder)?.enumerate() {
        let entry = entry?;
        if index >= MAX_FOLDER_ENTRIES {
            left_out += 1;
            break;
        }
        // Other files, and those that are being written under a temporary name, are no business of ours.
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        if !name.starts_with(NODE_INFO_PREFIX) {
            continue;
        }
        names.insert(name);
        if names.len() > MAX_NODE_INFOS {
            names.pop_last();
            left_out += 1;
        }
    }
    Ok((names, left_out))
}

/// Remembers under which keys nodes are known, so that a key is not exchanged by an older info.
#[derive(Default)]
pub(super) struct KnownKeys(BTreeMap<X500Name, (u64, PublicKey)>);

/// The info that counts for each node but our own, and what is odd in words.
///
/// The newest serial counts. A node may change its key, for certificates prove that the new one is its own, but only by
/// an info that is newer than the one under the old key: otherwise whoever copies an old file brings back a key that its
/// owner has given up.
pub(super) fn choose<'a>(
    believed: impl Iterator<Item = (&'a str, &'a Arc<Believed>)>,
    own: &Party,
    minimum_platform_version: u32,
    known: &mut KnownKeys,
) -> (BTreeMap<X500Name, Arc<NodeInfo>>, Vec<String>) {
    let mut notices = Vec::new();
    let mut best: BTreeMap<&X500Name, (&str, &Believed)> = BTreeMap::new();
    for (file, candidate) in believed {
        let info = &candidate.info;
        let identity = &info.identities[0];
        let name = identity.name();
        if *name == own.name {
            if *identity.owning_key() != own.owning_key {
                notices.push(format!(
                    "{file} is an info of this very node with another key ({}) than it has now; if the keys were \
                     renewed, remove that file, otherwise find out who else uses the name",
                    identity.owning_key().to_string_short()
                ));
            }
            continue;
        }
        if info.platform_version < minimum_platform_version {
            notices.push(format!(
                "{file}: {name} runs platform version {}, the network asks for {minimum_platform_version}; \
                 it has to be upgraded",
                info.platform_version
            ));
            continue;
        }
        if let Some((serial, key)) = known.0.get(name)
            && key != identity.owning_key()
            && *serial >= info.serial
        {
            notices.push(format!(
                "{file} gives {name} another key ({}) than it is known by ({}), and is not newer (serial {} after {serial}); \
                 it is ignored",
                identity.owning_key().to_string_short(),
                key.to_string_short(),
                info.serial
            ));
            continue;
        }
        match best.get(name) {
            Some((other_file, other)) if other.info.serial == info.serial => {
                if other.hash != candidate.hash {
                    notices.push(format!(
                        "{file} and {other_file} are different infos of {name} with the same serial {}; \
                         let the node make a new one and remove these",
                        info.serial
                    ));
                }
                // Which of them counts must not depend on the names of files: all nodes should see the same.
                if candidate.hash > other.hash {
                    best.insert(name, (file, candidate));
                }
            }
            Some((_, other)) if other.info.serial > info.serial => {}
            _ => {
                best.insert(name, (file, candidate));
            }
        }
    }
    let mut chosen = BTreeMap::new();
    for (name, (file, candidate)) in best {
        let info = &candidate.info;
        let key = info.identities[0].owning_key();
        if let Some((_, known_key)) = known.0.get(name)
            && known_key != key
        {
            notices.push(format!(
                "{name} has a new key ({}), certified and newer than the one known before ({}): {file}",
                key.to_string_short(),
                known_key.to_string_short()
            ));
        }
        if known.0.len() < MAX_NODE_INFOS || known.0.contains_key(name) {
            known.0.insert(name.clone(), (info.serial, key.clone()));
        }
        chosen.insert(name.clone(), info.clone());
    }
    (chosen, notices)
}
