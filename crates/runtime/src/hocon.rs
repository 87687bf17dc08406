//! HOCON, the notation of `node.conf`: text becomes a tree of values that know where they were written.
//!
//! Understood: comments (`#`, `//`), optional commas and outer braces, unquoted, quoted and triple-quoted strings,
//! `:`, `=` or nothing before `{`, dotted and quoted keys, `+=`, merging of objects, concatenation of strings, arrays
//! and objects, substitution `${key}` and `${?key}` (also of a key's own former value) with fallback to the
//! environment, and `include "file"`, with `file(…)` and `required(…)`, relative to the including file.
//!
//! Two departures, both because the published guides are to be accepted as they stand:
//!
//! * `"${NAME}"` *inside* quotes is replaced by the environment variable `NAME`, and it is an error if there is none
//!   (`"${?NAME}"` then yields nothing). Who wants the characters themselves writes `"\u0024{NAME}"` or uses triple
//!   quotes, in which nothing is replaced.
//! * after the `}` of an object the next key may follow on the same line without a comma.
//!
//! A file that ends too early or is malformed is an [`Error`] with line and column. Size, depth and the work of
//! substitution are bounded, so that a hostile file costs no more than a refusal.
//!
//! Meaning is given to the tree by [`crate::config`]. Reading is in `read`, substitution and merging in `resolve`.

mod read;
mod resolve;
mod value;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::Arc;

pub use value::{Kind, Object, Origin, Value};

/// The largest file accepted, in bytes.
pub const MAX_FILE_BYTES: u64 = 1024 * 1024;
/// The deepest nesting of objects, arrays and dotted keys.
pub const MAX_DEPTH: usize = 64;
/// How deep files may include files.
pub const MAX_INCLUDE_DEPTH: usize = 16;
/// How many files one configuration may include altogether.
pub const MAX_INCLUDES: usize = 64;
/// How deep substitutions may lead to substitutions, counting every level of nesting on the way.
pub const MAX_RESOLUTION_DEPTH: usize = 256;
/// How much substitution may produce and look at, counted in values and characters.
pub const MAX_RESOLUTION_WORK: usize = 8 * 1024 * 1024;

/// A text that is not a configuration: where, why, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{origin}: {reason}")]
pub struct Error {
    /// The file, line and column.
    pub origin: Origin,
    /// What is wrong there and how to mend it. Shows no values, which may be secrets.
    pub reason: String,
    /// The cause, when a file could not be read.
    #[source]
    pub source: Option<io::Error>,
}

impl Error {
    fn new(origin: &Origin, reason: impl Into<String>) -> Self {
        Self {
            origin: origin.clone(),
            reason: reason.into(),
            source: None,
        }
    }
}

/// Environment variables as they were handed to the process. `Debug` shows names only.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Environment {
    variables: BTreeMap<String, String>,
}

impl Environment {
    /// No variables.
    pub fn empty() -> Self {
        Self::default()
    }

    /// The value of a variable.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str)
    }

    /// All variables by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.variables
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(variables: I) -> Self {
        let variables = variables
            .into_iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect();
        Self { variables }
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.variables.keys()).finish()
    }
}

/// Reads a configuration from text. `source` names it in errors. There is no directory, so `include` is refused.
///
/// # Errors
/// The text is malformed, or a substitution has no value.
pub fn parse_str(text: &str, source: &str, environment: &Environment) -> Result<Value, Error> {
    let source: Arc<str> = Arc::from(source);
    let root = read::Reader::new(text, source.clone(), None, environment).root()?;
    resolve::resolve(
        &root,
        &Origin {
            source,
            line: 1,
            column: 1,
        },
        environment,
    )
}

/// Reads a configuration file and what it includes.
///
/// # Errors
/// A file cannot be read, is too large, is not UTF-8 or is malformed, or a substitution has no value.
pub fn parse_file(path: &Path, environment: &Environment) -> Result<Value, Error> {
    let source: Arc<str> = Arc::from(path.to_string_lossy());
    let origin = Origin::file(source.clone());
    let text = read_text(path).map_err(|failure| failure.at(&origin, "it"))?;
    let directory = path.parent().unwrap_or(Path::new("")).to_owned();
    let root = read::Reader::new(&text, source.clone(), Some(directory), environment).root()?;
    resolve::resolve(
        &root,
        &Origin {
            source,
            line: 1,
            column: 1,
        },
        environment,
    )
}

enum Unreadable {
    Io(io::Error),
    TooLarge,
    NotText { line: usize },
}

impl Unreadable {
    /// The error for the one who asked at `origin`, who calls the file `what`.
    fn at(self, origin: &Origin, what: &str) -> Error {
        match self {
            Unreadable::Io(source) => Error {
                origin: origin.clone(),
                reason: format!("{what} cannot be read"),
                source: Some(source),
            },
            Unreadable::TooLarge => Error::new(
                origin,
                format!("{what} is larger than {MAX_FILE_BYTES} bytes; is it a configuration?"),
            ),
            Unreadable::NotText { line } => Error::new(
                origin,
                format!("{what} is not valid UTF-8 in line {line}; save it as UTF-8 text"),
            ),
        }
    }
}

fn read_text(path: &Path) -> Result<String, Unreadable> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes))
        .map_err(Unreadable::Io)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(Unreadable::TooLarge);
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        Unreadable::NotText {
            line: valid.iter().filter(|byte| **byte == b'\n').count() + 1,
        }
    })
}

#[cfg(test)]
mod tests;
