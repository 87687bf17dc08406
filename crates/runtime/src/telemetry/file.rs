//! A log file that is set aside when it has grown.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tracing_subscriber::fmt::MakeWriter;

use super::FileOptions;

/// A file that is set aside when it has grown.
///
/// Lines are written at once and unbuffered: the last line before a crash is the one that will be read.
pub struct RollingFile {
    open: Mutex<OpenFile>,
}

struct OpenFile {
    options: FileOptions,
    file: File,
    written: u64,
}

impl RollingFile {
    /// Opens the file, to write behind what it has; its directory is made if need be.
    ///
    /// # Errors
    /// The file system's.
    pub fn open(options: &FileOptions) -> io::Result<Self> {
        if let Some(directory) = options.path.parent() {
            fs::create_dir_all(directory)?;
        }
        let file = append_to(&options.path)?;
        let written = file.metadata()?.len();
        Ok(Self {
            open: Mutex::new(OpenFile {
                options: options.clone(),
                file,
                written,
            }),
        })
    }

    /// Writes a line, which brings its own end.
    ///
    /// # Errors
    /// The file system's.
    pub fn write_line(&self, line: &[u8]) -> io::Result<()> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.write_line(line)
    }
}

impl fmt::Debug for RollingFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RollingFile").finish_non_exhaustive()
    }
}

impl<'a> MakeWriter<'a> for RollingFile {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(self.open.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The right to write one line.
pub struct Line<'a>(MutexGuard<'a, OpenFile>);

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write_line(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl OpenFile {
    fn write_line(&mut self, bytes: &[u8]) -> io::Result<()> {
        let length = bytes.len() as u64;
        if self.written > 0 && self.written + length > self.options.max_bytes {
            // When it cannot be set aside, going on in the same file is better than silence.
            if let Ok(file) = self.set_aside() {
                self.file = file;
            }
            self.written = 0;
        }
        self.file.write_all(bytes)?;
        self.written += length;
        Ok(())
    }

    fn set_aside(&self) -> io::Result<File> {
        let path = &self.options.path;
        for number in (1..self.options.kept).rev() {
            let (from, to) = (numbered(path, number), numbered(path, number + 1));
            if from.exists() {
                fs::rename(from, to)?;
            }
        }
        if self.options.kept == 0 {
            fs::remove_file(path)?;
        } else {
            fs::rename(path, numbered(path, 1))?;
        }
        append_to(path)
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_set_aside_and_the_oldest_is_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/node.log");
        let options = FileOptions {
            path: path.clone(),
            max_bytes: 10,
            kept: 2,
        };
        for text in ["first\n", "second\n", "third\n", "fourth\n"] {
            // Opened anew each time, as after a restart: the size found counts.
            RollingFile::open(&options)
                .unwrap()
                .make_writer()
                .write_all(text.as_bytes())
                .unwrap();
        }
        let read = |path: &Path| fs::read_to_string(path).unwrap();
        assert_eq!(read(&path), "fourth\n");
        assert_eq!(read(&numbered(&path, 1)), "third\n");
        assert_eq!(read(&numbered(&path, 2)), "second\n");
        assert!(!numbered(&path, 3).exists());
    }
}
