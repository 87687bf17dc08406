//! Fabric's logging specifications: `[logger[,logger…]=]level[:…]`.
//!
//! There are two readings of the same notation. [`LogSpec::from_str`] is ours: it also knows `trace` and `off`, tolerates
//! spaces, and shows every level by its own name. [`LogSpec::fabric`] is Fabric's, to the letter of its answers.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use tracing::level_filters::LevelFilter;

use super::levels::Levels;

/// The longest specification accepted, in bytes.
const MAX_SPEC_BYTES: usize = 8 * 1024;

/// How urgent a line must be. Fabric's `PANIC`, `DPANIC` and `FATAL` are read as `ERROR`, its `WARNING` as `WARN`;
/// Corda's `TRACE` and an `OFF` are understood too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Nothing.
    Off,
    /// A human is asked to come.
    Error,
    /// Something is not as it should be.
    Warn,
    /// What an operator wants to know.
    Info,
    /// What a developer wants to know.
    Debug,
    /// Everything.
    Trace,
}

impl FromStr for Level {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        Ok(match text.trim().to_ascii_lowercase().as_str() {
            "off" => Level::Off,
            "error" | "fatal" | "panic" | "dpanic" => Level::Error,
            "warn" | "warning" => Level::Warn,
            "info" => Level::Info,
            "debug" => Level::Debug,
            "trace" => Level::Trace,
            _ => {
                return Err(SpecError::new(format!(
                    "`{}` is not a log level; use error, warn, info, debug, trace or off",
                    text.trim().escape_debug()
                )));
            }
        })
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Level::Off => "off",
            Level::Error => "error",
            Level::Warn => "warn",
            Level::Info => "info",
            Level::Debug => "debug",
            Level::Trace => "trace",
        })
    }
}

impl From<Level> for LevelFilter {
    fn from(level: Level) -> Self {
        match level {
            Level::Off => LevelFilter::OFF,
            Level::Error => LevelFilter::ERROR,
            Level::Warn => LevelFilter::WARN,
            Level::Info => LevelFilter::INFO,
            Level::Debug => LevelFilter::DEBUG,
            Level::Trace => LevelFilter::TRACE,
        }
    }
}

/// A specification that cannot be understood: which segment, why, and what is expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SpecError(String);

impl SpecError {
    fn new(reason: impl fmt::Display) -> Self {
        Self(format!("invalid logging specification: {reason}"))
    }
}

/// Levels by logger, and the level of all others. The default is `info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSpec {
    default: Level,
    loggers: BTreeMap<String, Level>,
    /// For these very loggers, not for those below them.
    exact: BTreeMap<String, Level>,
    /// How it is shown, if not by the above.
    shown: Option<String>,
}

impl Default for LogSpec {
    fn default() -> Self {
        Self::level(Level::Info)
    }
}

impl LogSpec {
    /// The same level for all loggers.
    pub fn level(level: Level) -> Self {
        Self {
            default: level,
            loggers: BTreeMap::new(),
            exact: BTreeMap::new(),
            shown: None,
        }
    }

    /// Reads a specification exactly as Fabric does: with its levels, its rule for names (a dot at the end means this
    /// very logger), its error texts, and shown again in its canonical form. Fabric's `payload` shows everything; its
    /// `dpanic`, `panic` and `fatal` show errors, because we have nothing more urgent.
    ///
    /// # Errors
    /// A segment has no valid level or a logger has no valid name.
    pub fn fabric(text: &str) -> Result<Self, SpecError> {
        let bad =
            |what: String| SpecError(format!("invalid logging specification '{text}': {what}"));
        if text.len() > MAX_SPEC_BYTES {
            return Err(SpecError::new(format!(
                "it is longer than {MAX_SPEC_BYTES} bytes"
            )));
        }
        let mut spec = LogSpec::default();
        let mut default = "info";
        let mut shown: BTreeMap<&str, &str> = BTreeMap::new();
        for segment in text.split(':') {
            let bad_segment = || bad(format!("bad segment '{segment}'"));
            let (loggers, level) = match segment.split_once('=') {
                None if segment.is_empty() => {
                    default = "info";
                    spec.default = Level::Info;
                    continue;
                }
                None => {
                    (spec.default, default) = fabric_level(segment).ok_or_else(bad_segment)?;
                    continue;
                }
                Some((_, level)) if level.contains('=') => return Err(bad_segment()),
                Some((loggers, level)) => (loggers, level),
            };
            if loggers.is_empty() {
                return Err(bad(format!("no logger specified in segment '{segment}'")));
            }
            let (level, name) = fabric_level(level).ok_or_else(bad_segment)?;
            for logger in loggers.split(',') {
                let bare = logger.strip_suffix('.').unwrap_or(logger);
                let valid = |part: &str| {
                    !part.is_empty()
                        && part
                            .chars()
                            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '#' | '-'))
                };
                if !bare.split('.').all(valid) {
                    return Err(bad(format!("bad logger name '{logger}'")));
                }
                shown.insert(logger, name);
                let levels = if bare.len() == logger.len() {
                    &mut spec.loggers
                } else {
                    &mut spec.exact
                };
                levels.insert(bare.to_owned(), level);
            }
        }
        let mut fields: Vec<String> = shown
            .iter()
            .map(|(logger, level)| format!("{logger}={level}"))
            .collect();
        fields.sort();
        fields.push(default.to_owned());
        spec.shown = Some(fields.join(":"));
        Ok(spec)
    }

    pub(super) fn levels(&self) -> Levels {
        let filters = |levels: &BTreeMap<String, Level>| {
            levels
                .iter()
                .map(|(logger, level)| {
                    // A logger is named after its module without our prefix.
                    let name = logger.strip_prefix("quorate_").unwrap_or(logger);
                    (name.to_owned(), LevelFilter::from(*level))
                })
                .collect()
        };
        Levels {
            default: LevelFilter::from(self.default),
            loggers: filters(&self.loggers),
            exact: filters(&self.exact),
        }
    }
}

/// Fabric's levels, all in capitals or all in small letters, with the name by which it shows them.
fn fabric_level(text: &str) -> Option<(Level, &'static str)> {
    let small = text.to_ascii_lowercase();
    if text != small && text != text.to_ascii_uppercase() {
        return None;
    }
    Some(match small.as_str() {
        "payload" => (Level::Trace, "payload"),
        "debug" => (Level::Debug, "debug"),
        "info" | "notice" => (Level::Info, "info"),
        "warn" | "warning" => (Level::Warn, "warn"),
        "error" | "critical" => (Level::Error, "error"),
        "dpanic" => (Level::Error, "dpanic"),
        "panic" => (Level::Error, "panic"),
        "fatal" => (Level::Error, "fatal"),
        _ => return None,
    })
}

impl FromStr for LogSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        if text.len() > MAX_SPEC_BYTES {
            return Err(SpecError::new(format!(
                "it is longer than {MAX_SPEC_BYTES} bytes"
            )));
        }
        let mut spec = LogSpec::default();
        for segment in text.split(':') {
            let segment = segment.trim();
            let Some((loggers, level)) = segment.split_once('=') else {
                if !segment.is_empty() {
                    spec.default = segment.parse()?;
                }
                continue;
            };
            let level: Level = level.parse()?;
            for logger in loggers.split(',').map(str::trim) {
                let logger = logger.trim_end_matches('.');
                let known =
                    |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/' | '#');
                if logger.is_empty() || !logger.chars().all(known) {
                    return Err(SpecError::new(format!(
                        "`{}` in `{}` is not a logger's name; write for example `messaging,node.vault=debug:info`",
                        logger.escape_debug(),
                        segment.escape_debug()
                    )));
                }
                spec.loggers.insert(logger.to_owned(), level);
            }
        }
        Ok(spec)
    }
}

impl fmt::Display for LogSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(shown) = &self.shown {
            return f.write_str(shown);
        }
        for (logger, level) in &self.loggers {
            write!(f, "{logger}={level}:")?;
        }
        write!(f, "{}", self.default)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn specifications_are_read_and_written_as_fabric_does() {
        for (given, canonical) in [
            ("", "info"),
            ("DEBUG", "debug"),
            ("a=debug:info", "a=debug:info"),
            ("info:b,a.c=warning", "a.c=warn:b=warn:info"),
            ("a=debug:a=error", "a=error:info"),
            ("debug:fatal", "error"),
            ("a.=debug", "a=debug:info"),
        ] {
            assert_eq!(
                given.parse::<LogSpec>().unwrap().to_string(),
                canonical,
                "{given}"
            );
        }
        for bad in [
            "loud",
            "a=",
            "=debug",
            "a=b=c",
            "a,,b=info",
            "a b=info",
            "a=debug\n:info:x",
        ] {
            assert!(bad.parse::<LogSpec>().is_err(), "{bad}");
        }
    }

    #[test]
    fn fabrics_reading_is_fabrics() {
        for (given, canonical) in [
            ("", "info"),
            ("INFO", "info"),
            ("debug:", "info"),
            ("a,b=debug:c.=error:fatal", "a=debug:b=debug:c.=error:fatal"),
            (
                "orderer.consensus.etcdraft=debug:info",
                "orderer.consensus.etcdraft=debug:info",
            ),
            ("WARNING:a-b#1.c_d=notice", "a-b#1.c_d=info:warn"),
        ] {
            assert_eq!(
                LogSpec::fabric(given).unwrap().to_string(),
                canonical,
                "{given}"
            );
        }
        for (given, reason) in [
            ("a=nosuchlevel", "bad segment 'a=nosuchlevel'"),
            ("a=b=c", "bad segment 'a=b=c'"),
            ("=debug", "no logger specified in segment '=debug'"),
            ("logger/.*=debug:warn", "bad logger name 'logger/.*'"),
            ("Info", "bad segment 'Info'"),
            ("trace", "bad segment 'trace'"),
            (".a=info", "bad logger name '.a'"),
            ("a,,b=info", "bad logger name ''"),
        ] {
            assert_eq!(
                LogSpec::fabric(given).unwrap_err().to_string(),
                format!("invalid logging specification '{given}': {reason}")
            );
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_by_fabrics_reading_or_refused(text in "[a-z.,=: ]{0,40}|\\PC{0,40}") {
            if let Ok(spec) = LogSpec::fabric(&text) {
                let shown = spec.to_string();
                prop_assert_eq!(LogSpec::fabric(&shown).unwrap().to_string(), shown);
            }
        }

        #[test]
        fn any_text_is_read_or_refused(text in "[a-z.,=: ]{0,40}|\\PC{0,40}") {
            if let Ok(spec) = text.parse::<LogSpec>() {
                prop_assert_eq!(spec.to_string().parse::<LogSpec>().unwrap(), spec);
            }
        }
    }
}
