//! Small files that outlive a crash, one for a channel: what was begun with it and is not finished yet, and what has to be
//! remembered of it apart from its chain.
//!
//! `<folder>/<kind>/<channel>.<kind>`, as Fabric has them in `pendingops`. A file appears whole or not at all; one that was being
//! written carries a tilde at its end and is swept away at the next start.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::StoreError;
use super::files::sync_folder;

const FILE_MODE: u32 = 0o600;

/// The files of one kind.
pub(crate) struct Marks {
    folder: PathBuf,
    kind: &'static str,
}

impl Marks {
    pub(crate) fn open(parent: &Path, kind: &'static str) -> Result<Self, StoreError> {
        let folder = parent.join(kind);
        fs::create_dir_all(&folder).map_err(|error| StoreError::io("create", &folder, error))?;
        sync_folder(parent)?;
        let marks = Self { folder, kind };
        for name in marks.names(&format!(".{kind}~"))? {
            let path = marks.folder.join(format!("{name}.{kind}~"));
            fs::remove_file(&path).map_err(|error| StoreError::io("remove", &path, error))?;
        }
        sync_folder(&marks.folder)?;
        Ok(marks)
    }

    /// Writes the file, replacing an older one. Durable when this returns.
    pub(crate) fn save(&self, channel: &str, content: &[u8]) -> Result<(), StoreError> {
        let path = self.path(channel);
        let unfinished = self.folder.join(format!("{channel}.{}~", self.kind));
        let write = || -> std::io::Result<()> {
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(FILE_MODE)
                .open(&unfinished)?;
            file.write_all(content)?;
            file.sync_all()?;
            fs::rename(&unfinished, &path)
        };
        write().map_err(|error| StoreError::io("write", &path, error))?;
        sync_folder(&self.folder)
    }

    /// The file's content; `None` if there is none.
    pub(crate) fn read(&self, channel: &str) -> Result<Option<Bytes>, StoreError> {
        let path = self.path(channel);
        match fs::read(&path) {
            Ok(content) => Ok(Some(content.into())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::io("read", &path, error)),
        }
    }

    /// Removes the file, if there is one. Durable when this returns.
    pub(crate) fn remove(&self, channel: &str) -> Result<(), StoreError> {
        let path = self.path(channel);
        match fs::remove_file(&path) {
            Ok(()) => sync_folder(&self.folder),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(StoreError::io("remove", &path, error)),
        }
    }

    /// The channels that have such a file, in order.
    pub(crate) fn channels(&self) -> Result<Vec<String>, StoreError> {
        self.names(&format!(".{}", self.kind))
    }

    fn names(&self, suffix: &str) -> Result<Vec<String>, StoreError> {
        let read = |error| StoreError::io("read", &self.folder, error);
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(read)? {
            let name = entry.map_err(read)?.file_name();
            if let Some(channel) = name.to_str().and_then(|name| name.strip_suffix(suffix)) {
                names.push(channel.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    /// Where the file of a channel lies.
    pub(crate) fn path(&self, channel: &str) -> PathBuf {
        self.folder.join(format!("{channel}.{}", self.kind))
    }
}
