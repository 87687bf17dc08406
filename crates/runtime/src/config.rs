//! From a tree of values to typed options, with every mistake reported at once.
//!
//! Whoever has options decodes them with a [`Section`]: each key is asked for by name and type, with its default. What
//! is asked for becomes known; the end of the section then finds the keys that nobody asked for and names the nearest
//! known one. Problems are collected in a [`Report`], each with file and line, key, reason and remedy. The report also
//! remembers every effective value, so that the configuration in force can be shown, without its secrets.
//!
//! The order is: [`crate::hocon::parse_file`], then [`expand_dotted_keys`], then [`apply_environment`], then sections.

mod environment;
mod nearest;
mod section;
mod units;

use std::cell::RefCell;
use std::fmt;
use std::str::FromStr;

use zeroize::Zeroizing;

use crate::hocon::Origin;

pub use environment::{apply_environment, expand_dotted_keys};
pub use nearest::nearest;
pub use section::Section;
pub use units::{UnitError, parse_bytes, parse_duration};

/// How many problems, and how many warnings, one report keeps. More are counted only.
pub const MAX_PROBLEMS: usize = 100;

/// A text that is shown nowhere and wiped from memory when it is dropped.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes a text into custody.
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The text, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether there is nothing to hide.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

/// What is shown in place of a secret. It does not tell the length.
pub const REDACTED: &str = "********";

/// One thing that is wrong, or odd, in a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where it was written; for a missing key, where its section was.
    pub origin: Option<Origin>,
    /// The full key, such as `rpcSettings.address`.
    pub key: String,
    /// What is wrong and what to do about it. Shows no secrets.
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(origin) = &self.origin {
            write!(f, "{origin}: ")?;
        }
        if self.key.is_empty() {
            return f.write_str(&self.reason);
        }
        write!(f, "`{}`: {}", self.key.escape_debug(), self.reason)
    }
}

/// Everything that is wrong with a configuration, in the order of reading.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [only] => write!(f, "{only}"),
            all => {
                write!(f, "the configuration has {} problems", all.len())?;
                all.iter()
                    .try_for_each(|problem| write!(f, "\n  {problem}"))
            }
        }
    }
}

/// What to do about keys that nobody asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnUnknownKeys {
    /// They are problems.
    #[default]
    Fail,
    /// They are warnings.
    Warn,
    /// They are ignored.
    Ignore,
}

impl FromStr for OnUnknownKeys {
    type Err = UnknownPolicy;

    fn from_str(text: &str) -> Result<Self, UnknownPolicy> {
        match text.to_ascii_uppercase().as_str() {
            "FAIL" => Ok(Self::Fail),
            "WARN" => Ok(Self::Warn),
            "IGNORE" => Ok(Self::Ignore),
            _ => Err(UnknownPolicy),
        }
    }
}

/// Not a policy for unknown keys.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("choose FAIL, WARN or IGNORE")]
pub struct UnknownPolicy;

/// One effective value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The full key.
    pub key: String,
    /// The value as text, or [`REDACTED`].
    pub value: String,
    /// Where it was written; `None` for a default.
    pub origin: Option<Origin>,
}

/// Collects what decoding finds.
#[derive(Debug, Default)]
pub struct Report {
    unknown: OnUnknownKeys,
    problems: RefCell<Vec<Problem>>,
    warnings: RefCell<Vec<Problem>>,
    notes: RefCell<Vec<Problem>>,
    settings: RefCell<Vec<Setting>>,
}

/// What decoding found besides the options themselves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// What is odd but does not keep us from starting.
    pub warnings: Vec<Problem>,
    /// What an operator may like to know: keys that are accepted and not needed.
    pub notes: Vec<Problem>,
    /// Every effective value, sorted by key.
    pub settings: Vec<Setting>,
}

impl Report {
    /// An empty report.
    pub fn new(unknown: OnUnknownKeys) -> Self {
        Self {
            unknown,
            ..Self::default()
        }
    }

    /// Adds a problem.
    pub fn problem(
        &self,
        origin: Option<Origin>,
        key: impl Into<String>,
        reason: impl Into<String>,
    ) {
        let mut problems = self.problems.borrow_mut();
        if problems.len() < MAX_PROBLEMS {
            problems.push(Problem {
                origin,
                key: key.into(),
                reason: reason.into(),
            });
        }
    }

    /// Adds a warning.
    pub fn warning(
        &self,
        origin: Option<Origin>,
        key: impl Into<String>,
        reason: impl Into<String>,
    ) {
        let mut warnings = self.warnings.borrow_mut();
        if warnings.len() < MAX_PROBLEMS {
            warnings.push(Problem {
                origin,
                key: key.into(),
                reason: reason.into(),
            });
        }
    }

    /// Adds a note.
    pub fn note(&self, origin: Option<Origin>, key: impl Into<String>, reason: impl Into<String>) {
        let mut notes = self.notes.borrow_mut();
        if notes.len() < MAX_PROBLEMS {
            notes.push(Problem {
                origin,
                key: key.into(),
                reason: reason.into(),
            });
        }
    }

    fn setting(&self, key: String, value: impl Into<String>, origin: Option<Origin>) {
        self.settings.borrow_mut().push(Setting {
            key,
            value: value.into(),
            origin,
        });
    }

    /// Whether nothing is wrong so far.
    pub fn is_clean(&self) -> bool {
        self.problems.borrow().is_empty()
    }

    /// Ends decoding.
    ///
    /// # Errors
    /// There were problems: all of them.
    pub fn finish(self) -> Result<Findings, Problems> {
        let mut problems = self.problems.into_inner();
        if problems.is_empty() {
            let mut settings = self.settings.into_inner();
            settings.sort_by(|one, other| one.key.cmp(&other.key));
            return Ok(Findings {
                warnings: self.warnings.into_inner(),
                notes: self.notes.into_inner(),
                settings,
            });
        }
        let place = |problem: &Problem| {
            problem
                .origin
                .as_ref()
                .map(|origin| (origin.line, origin.column))
        };
        problems.sort_by_key(place);
        Err(Problems(problems))
    }
}

impl Findings {
    /// The configuration in force, one key to a line, with where each value comes from. Secrets are not shown.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        for Setting { key, value, origin } in &self.settings {
            let from = match origin {
                Some(origin) => origin.to_string(),
                None => "default".to_owned(),
            };
            text.push_str(&format!("{key} = {value}  # {from}\n"));
        }
        text
    }
}

#[cfg(test)]
mod tests;
