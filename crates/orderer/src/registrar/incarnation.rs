//! Under which name a channel's Raft group stands in the shared log, and whether it has begun to make promises.
//!
//! The name is kept outside of the log, in `<WALDir>/<channel>/incarnation.json`, for what it has to tell is that the log
//! lost something. It is written before the group is, and marked when the group's first write was durable: only then
//! could the group have voted or confirmed anything. So whoever finds the mark and no such group in the log knows that
//! promises were forgotten.
//!
//! Leaving a channel deletes the file. A channel that is joined again gets another name, and nothing of its former life
//! can be mistaken for the present one.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use quorate_consensus::GroupId;
use quorate_runtime::Entropy;
use serde::{Deserialize, Serialize};

const FILE: &str = "incarnation.json";
const NEW_FILE: &str = "incarnation.json.new";
const VERSION: u32 = 1;
/// A longer file is not one of ours.
const MAX_FILE_BYTES: u64 = 4096;

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IncarnationError {
    /// The disk's.
    #[error("cannot {verb} {}", .path.display())]
    Io {
        /// What was tried.
        verb: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's words.
        #[source]
        source: io::Error,
    },
    /// Somebody else's, or damaged.
    #[error(
        "{} cannot be read: {reason}. If this orderer's consensus log is lost, delete the folder: the orderer then joins \
         the channel's cluster anew and takes no part in elections until it has caught up",
        .path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// One channel's part of `Consensus.WALDir`.
pub(super) struct Incarnation {
    folder: PathBuf,
    state: State,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    version: u32,
    group: String,
    begun: bool,
}

impl Incarnation {
    /// What was kept of a channel; `None` if nothing was.
    pub(super) fn read(wal: &Path, channel: &str) -> Result<Option<Self>, IncarnationError> {
        let folder = wal.join(channel);
        let path = folder.join(FILE);
        let damaged = |reason: String| IncarnationError::Damaged {
            path: path.clone(),
            reason,
        };
        match fs::metadata(&path) {
            Ok(metadata) if metadata.len() > MAX_FILE_BYTES => {
                return Err(damaged(format!("it has {} bytes", metadata.len())));
            }
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(io_error("read", &path)(source)),
        }
        let text = fs::read(&path).map_err(io_error("read", &path))?;
        let state: State =
            serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        if state.version != VERSION {
            return Err(damaged(format!(
                "it has version {}, and this program knows {VERSION}",
                state.version
            )));
        }
        let incarnation = Self { folder, state };
        if incarnation.parse().is_none() {
            return Err(damaged(
                "the group's name is not 32 hexadecimal digits".to_owned(),
            ));
        }
        Ok(Some(incarnation))
    }

    /// A new name for a channel's group, durable when this returns.
    pub(super) fn draw(
        wal: &Path,
        channel: &str,
        entropy: &Entropy,
    ) -> Result<Self, IncarnationError> {
        let folder = wal.join(channel);
        fs::create_dir_all(&folder).map_err(io_error("create", &folder))?;
        let incarnation = Self {
            folder,
            state: State {
                version: VERSION,
                group: hex::encode(entropy.bytes::<16>()),
                begun: false,
            },
        };
        incarnation.save()?;
        sync_folder(wal)?;
        Ok(incarnation)
    }

    /// The group's name.
    pub(super) fn group(&self) -> GroupId {
        GroupId(self.parse().expect("checked when it was read or drawn"))
    }

    fn parse(&self) -> Option<[u8; 16]> {
        let mut bytes = [0; 16];
        hex::decode_to_slice(&self.state.group, &mut bytes).ok()?;
        Some(bytes)
    }

    /// Whether the group's first write was durable once.
    pub(super) fn has_begun(&self) -> bool {
        self.state.begun
    }

    /// The group's first write is durable.
    pub(super) fn begun(mut self) -> Result<(), IncarnationError> {
        self.state.begun = true;
        self.save()
    }

    fn save(&self) -> Result<(), IncarnationError> {
        let new = self.folder.join(NEW_FILE);
        let text = serde_json::to_vec(&self.state).expect("texts and numbers are JSON");
        let mut file = File::create(&new).map_err(io_error("create", &new))?;
        file.write_all(&text)
            .and_then(|()| file.sync_all())
            .map_err(io_error("write", &new))?;
        let path = self.folder.join(FILE);
        fs::rename(&new, &path).map_err(io_error("write", &path))?;
        sync_folder(&self.folder)
    }
}

/// Forgets a channel's name; durable when this returns.
pub(super) fn forget(wal: &Path, channel: &str) -> Result<(), IncarnationError> {
    let folder = wal.join(channel);
    match fs::remove_dir_all(&folder) {
        Ok(()) => sync_folder(wal),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(source) => Err(io_error("remove", &folder)(source)),
    }
}

fn sync_folder(folder: &Path) -> Result<(), IncarnationError> {
    File::open(folder)
        .and_then(|file| file.sync_all())
        .map_err(io_error("sync", folder))
}

fn io_error<'a>(
    verb: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> IncarnationError + 'a {
    move |source| IncarnationError::Io {
        verb,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn a_name_lives_until_the_channel_is_left() {
        let wal = tempfile::tempdir().unwrap();
        let entropy = Entropy::seeded(1);
        assert!(Incarnation::read(wal.path(), "one").unwrap().is_none());
        let drawn = Incarnation::draw(wal.path(), "one", &entropy).unwrap();
        let group = drawn.group();
        let read = Incarnation::read(wal.path(), "one").unwrap().unwrap();
        assert!(read.group() == group && !read.has_begun());
        read.begun().unwrap();
        let read = Incarnation::read(wal.path(), "one").unwrap().unwrap();
        assert!(read.group() == group && read.has_begun());
        forget(wal.path(), "one").unwrap();
        forget(wal.path(), "one").unwrap();
        assert!(Incarnation::read(wal.path(), "one").unwrap().is_none());
        assert!(
            Incarnation::draw(wal.path(), "one", &entropy)
                .unwrap()
                .group()
                != group
        );
    }

    #[test]
    fn what_is_not_ours_is_refused() {
        let wal = tempfile::tempdir().unwrap();
        fs::create_dir(wal.path().join("one")).unwrap();
        for text in [
            "",
            "{}",
            r#"{"version":2,"group":"00000000000000000000000000000000","begun":true}"#,
            r#"{"version":1,"group":"0","begun":true}"#,
            r#"{"version":1,"group":"00000000000000000000000000000000","begun":true,"more":1}"#,
        ] {
            fs::write(wal.path().join("one").join(FILE), text).unwrap();
            let Err(error) = Incarnation::read(wal.path(), "one") else {
                panic!("{text} was read");
            };
            assert!(matches!(error, IncarnationError::Damaged { .. }), "{error}");
        }
    }
}
