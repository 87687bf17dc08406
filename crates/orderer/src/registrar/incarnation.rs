//! Under which name a channel's Raft group stands in the shared log, and whether it has begun to make promises.
//!
//! The name is kept beside the ledgers, in `<FileLedger.Location>/incarnation/<channel>.incarnation`, and not in
//! `Consensus.WALDir`: what it has to tell is that the log lost something, so it must not be lost together with it. It is
//! written before the group is, and marked when the group's first write was durable: only then could the group have voted
//! or confirmed anything. So whoever finds the mark and no such group in the log knows that promises were forgotten.
//!
//! Leaving a channel deletes the file. A channel that is joined again gets another name, and nothing of its former life
//! can be mistaken for the present one.

use std::path::{Path, PathBuf};

use quorate_consensus::GroupId;
use quorate_runtime::Entropy;
use serde::{Deserialize, Serialize};

use crate::store::{Marks, StoreError};

/// The folder in `FileLedger.Location`, and what its files end with.
const KIND: &str = "incarnation";
const VERSION: u32 = 1;
/// A longer file is not one of ours.
const MAX_FILE_BYTES: usize = 4096;

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IncarnationError {
    /// The disk's.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Somebody else's, or damaged.
    #[error(
        "{} cannot be read: {reason}. Restore it from a copy; if there is none, remove the channel from this orderer and \
         join it again with its newest configuration block",
        .path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// The names of all channels' groups.
pub struct Incarnations {
    marks: Marks,
}

/// The name of one channel's group.
pub(super) struct Incarnation {
    state: State,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    version: u32,
    group: String,
    begun: bool,
    /// The newest block, where all consenters begin a new group because none has its log any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    continues_after: Option<u64>,
}

impl Incarnations {
    /// Opens the folder in `FileLedger.Location`, creating it if need be.
    ///
    /// # Errors
    /// The disk's.
    pub fn open(location: &Path) -> Result<Self, StoreError> {
        Ok(Self {
            marks: Marks::open(location, KIND)?,
        })
    }

    /// What was kept of a channel; `None` if nothing was.
    pub(super) fn read(&self, channel: &str) -> Result<Option<Incarnation>, IncarnationError> {
        let Some(text) = self.marks.read(channel)? else {
            return Ok(None);
        };
        let damaged = |reason: String| IncarnationError::Damaged {
            path: self.marks.path(channel),
            reason,
        };
        if text.len() > MAX_FILE_BYTES {
            return Err(damaged(format!("it has {} bytes", text.len())));
        }
        let state: State =
            serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        if state.version != VERSION {
            return Err(damaged(format!(
                "it has version {}, and this program knows {VERSION}",
                state.version
            )));
        }
        let incarnation = Incarnation { state };
        if incarnation.parse().is_none() {
            return Err(damaged(
                "the group's name is not 32 hexadecimal digits".to_owned(),
            ));
        }
        Ok(Some(incarnation))
    }

    /// A new name for a channel's group, durable when this returns.
    pub(super) fn draw(
        &self,
        channel: &str,
        entropy: &Entropy,
    ) -> Result<Incarnation, IncarnationError> {
        let incarnation = Incarnation {
            state: State {
                version: VERSION,
                group: hex::encode(entropy.bytes::<16>()),
                begun: false,
                continues_after: None,
            },
        };
        self.save(channel, &incarnation)?;
        Ok(incarnation)
    }

    /// Notes that whatever the channel's group may have promised is not known here, unless its name is: the member keeps
    /// silent in elections then. Whether it had to be noted.
    ///
    /// # Errors
    /// The disk's; a file that is not ours.
    pub fn mark_lost(&self, channel: &str, entropy: &Entropy) -> Result<bool, IncarnationError> {
        if self.read(channel)?.is_some() {
            return Ok(false);
        }
        let drawn = self.draw(channel, entropy)?;
        self.begun(channel, drawn)?;
        Ok(true)
    }

    /// Notes that all consenters of the channel begin a new group, after block `newest`: whatever the former one promised
    /// is given up.
    ///
    /// # Errors
    /// The disk's.
    pub fn mark_continued(
        &self,
        channel: &str,
        newest: u64,
        entropy: &Entropy,
    ) -> Result<(), IncarnationError> {
        let mut drawn = self.draw(channel, entropy)?;
        drawn.state.continues_after = Some(newest);
        self.save(channel, &drawn)
    }

    /// The group's first write is durable.
    pub(super) fn begun(
        &self,
        channel: &str,
        mut incarnation: Incarnation,
    ) -> Result<(), IncarnationError> {
        incarnation.state.begun = true;
        self.save(channel, &incarnation)
    }

    /// Forgets a channel's name; durable when this returns.
    pub(super) fn forget(&self, channel: &str) -> Result<(), IncarnationError> {
        Ok(self.marks.remove(channel)?)
    }

    /// The channels that have a name.
    pub(super) fn channels(&self) -> Result<Vec<String>, IncarnationError> {
        Ok(self.marks.channels()?)
    }

    fn save(&self, channel: &str, incarnation: &Incarnation) -> Result<(), IncarnationError> {
        let text = serde_json::to_vec(&incarnation.state).expect("texts and numbers are JSON");
        Ok(self.marks.save(channel, &text)?)
    }
}

impl Incarnation {
    /// The group's name.
    pub(super) fn group(&self) -> GroupId {
        GroupId(self.parse().expect("checked when it was read or drawn"))
    }

    fn parse(&self) -> Option<[u8; 16]> {
        let mut bytes = [0; 16];
        hex::decode_to_slice(&self.state.group, &mut bytes).ok()?;
        Some(bytes)
    }

    /// Whether the group is to begin anew with a chain that ends with block `newest`.
    pub(super) fn continues_after(&self, newest: u64) -> bool {
        !self.state.begun && self.state.continues_after == Some(newest)
    }

    /// Whether the group's first write was durable once.
    pub(super) fn has_begun(&self) -> bool {
        self.state.begun
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::store::Ledgers;

    #[test]
    fn a_name_lives_until_the_channel_is_left() {
        let location = tempfile::tempdir().unwrap();
        let entropy = Entropy::seeded(1);
        let names = Incarnations::open(location.path()).unwrap();
        assert!(names.read("one").unwrap().is_none());
        let drawn = names.draw("one", &entropy).unwrap();
        let group = drawn.group();
        let read = names.read("one").unwrap().unwrap();
        assert!(read.group() == group && !read.has_begun());
        names.begun("one", read).unwrap();
        let names = Incarnations::open(location.path()).unwrap();
        let read = names.read("one").unwrap().unwrap();
        assert!(read.group() == group && read.has_begun());
        assert_eq!(names.channels().unwrap(), ["one"]);
        names.forget("one").unwrap();
        names.forget("one").unwrap();
        assert!(names.read("one").unwrap().is_none());
        assert!(names.channels().unwrap().is_empty());
        assert!(names.draw("one", &entropy).unwrap().group() != group);
    }

    #[test]
    fn a_name_is_no_channel() {
        let location = tempfile::tempdir().unwrap();
        let ledgers = Ledgers::open(location.path()).unwrap();
        let names = Incarnations::open(location.path()).unwrap();
        names.draw("one", &Entropy::seeded(1)).unwrap();
        assert!(ledgers.channels().unwrap().is_empty());
        assert!(ledgers.join_blocks().unwrap().is_empty());
    }

    #[test]
    fn what_is_not_ours_is_refused() {
        let location = tempfile::tempdir().unwrap();
        let names = Incarnations::open(location.path()).unwrap();
        let long = format!(
            r#"{{"version":1,"group":"00000000000000000000000000000000","begun":true}}{}"#,
            " ".repeat(MAX_FILE_BYTES)
        );
        for text in [
            "",
            "{}",
            r#"{"version":2,"group":"00000000000000000000000000000000","begun":true}"#,
            r#"{"version":1,"group":"0","begun":true}"#,
            r#"{"version":1,"group":"00000000000000000000000000000000","begun":true,"more":1}"#,
            &long,
        ] {
            std::fs::write(location.path().join("incarnation/one.incarnation"), text).unwrap();
            let Err(error) = names.read("one") else {
                panic!("{text} was read");
            };
            assert!(matches!(error, IncarnationError::Damaged { .. }), "{error}");
        }
    }
}
