//! Snapshot files: one folder per group, one file per snapshot, the newest few kept.
//!
//! The log holds a group's newest snapshot itself; these files are for operators and their tools, which know a
//! snapshot by its file, and for looking back. A file that was not written completely is recognised by its checksum
//! and removed at the next opening: there is never a second, temporary file beside the snapshots.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::Snapshot;
use crate::log::{read_snapshot_file, snapshot_file};

/// How many snapshot files of one group are kept.
pub const MAX_SNAPSHOT_FILES: usize = 5;

/// The snapshot files of one group.
#[derive(Debug)]
pub struct SnapshotFiles {
    folder: PathBuf,
}

impl SnapshotFiles {
    /// The files in `folder`, which is created when it does not exist. Removes what was not written completely.
    pub fn open(folder: impl AsRef<Path>) -> io::Result<Self> {
        let files = Self {
            folder: folder.as_ref().to_path_buf(),
        };
        fs::create_dir_all(&files.folder)?;
        for (_, index, path) in files.list()? {
            if let Err(reason) = read_snapshot_file(&fs::read(&path)?, index) {
                tracing::warn!(file = %path.display(), "an incomplete snapshot file is removed: {reason}");
                fs::remove_file(&path)?;
            }
        }
        Ok(files)
    }

    /// Writes a snapshot durably under its name, which contains term and index, and removes the oldest ones beyond
    /// [`MAX_SNAPSHOT_FILES`].
    pub fn save(&self, snapshot: &Snapshot) -> io::Result<()> {
        // Operators remove these folders; that must not stop a group.
        fs::create_dir_all(&self.folder)?;
        let name = format!("{:016x}-{:016x}.snap", snapshot.term, snapshot.index);
        let path = self.folder.join(name);
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .open(path)?;
        file.write_all(&snapshot_file(snapshot))?;
        file.sync_data()?;
        let files = self.list()?;
        for (_, _, path) in files
            .iter()
            .take(files.len().saturating_sub(MAX_SNAPSHOT_FILES))
        {
            fs::remove_file(path)?;
        }
        File::open(&self.folder)?.sync_all()
    }

    /// The newest snapshot that can be read.
    pub fn newest(&self) -> io::Result<Option<Snapshot>> {
        for (_, index, path) in self.list()?.into_iter().rev() {
            if let Ok(snapshot) = read_snapshot_file(&fs::read(path)?, index) {
                return Ok(Some(snapshot));
            }
        }
        Ok(None)
    }

    /// Term, index and path of every file that is named like a snapshot, the oldest first.
    fn list(&self) -> io::Result<Vec<(u64, u64, PathBuf)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            let stem = path
                .file_name()
                .and_then(|name| name.to_str()?.strip_suffix(".snap"));
            let numbers = stem
                .and_then(|stem| stem.split_once('-'))
                .and_then(|(term, index)| {
                    Some((
                        u64::from_str_radix(term, 16).ok()?,
                        u64::from_str_radix(index, 16).ok()?,
                    ))
                });
            if let Some((term, index)) = numbers {
                found.push((term, index, path));
            }
        }
        found.sort_unstable();
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use bytes::Bytes;

    use super::*;

    fn snapshot(index: u64) -> Snapshot {
        Snapshot {
            index,
            term: 2,
            members: vec![1, 2],
            data: Bytes::from(vec![index as u8; 100]),
        }
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn the_newest_five_are_kept_and_nothing_else_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("testchannel");
        let files = SnapshotFiles::open(&folder).unwrap();
        for index in 1..=7 {
            files.save(&snapshot(index)).unwrap();
        }
        assert_eq!(names(&folder).len(), MAX_SNAPSHOT_FILES);
        assert_eq!(names(&folder)[0], "0000000000000002-0000000000000003.snap");
        assert_eq!(files.newest().unwrap(), Some(snapshot(7)));
        fs::remove_dir_all(&folder).unwrap();
        files.save(&snapshot(8)).unwrap();
        assert_eq!(files.newest().unwrap(), Some(snapshot(8)));
    }

    #[test]
    fn a_damaged_file_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let files = SnapshotFiles::open(folder.path()).unwrap();
        files.save(&snapshot(1)).unwrap();
        files.save(&snapshot(2)).unwrap();
        let path = folder.path().join(&names(folder.path())[1]);
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            assert_eq!(files.newest().unwrap(), Some(snapshot(1)), "{length}");
        }
        SnapshotFiles::open(folder.path()).unwrap();
        assert_eq!(names(folder.path()).len(), 1);
    }
}
