//! The few file operations that the log needs.

use std::io;
use std::path::{Path, PathBuf};

/// A flat folder of files: append, read, sync, remove.
pub trait Disk: Send + Sync {
    /// The names of all files, in no particular order.
    fn list(&self) -> io::Result<Vec<String>>;
}

/// A folder of the file system.
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// The folder at `path`, created if it does not exist.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref().to_path_buf();
        std::fs::create_dir_all(&path)?;
        Ok(Self { path })
    }
}

impl Disk for Folder {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        Ok(names)
    }
}
