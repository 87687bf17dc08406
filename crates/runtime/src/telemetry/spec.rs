//! Fabric's logging specifications: `[logger[,logger…]=]level[:…]`.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;

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
                return Err(SpecError(format!(
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
#[error("invalid logging specification: {0}")]
pub struct SpecError(String);

/// Levels by logger, and the level of all others. The default is `info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSpec {
    default: Level,
    loggers: BTreeMap<String, Level>,
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
        }
    }

    pub(super) fn targets(&self) -> Targets {
        let mut targets = Targets::new().with_default(LevelFilter::from(self.default));
        for (logger, level) in &self.loggers {
            let module = logger.replace('.', "::");
            // A logger is named after its module without our prefix; other crates' modules go by their own names.
            targets = targets.with_target(format!("quorate_{module}"), LevelFilter::from(*level));
            targets = targets.with_target(module, LevelFilter::from(*level));
        }
        targets
    }
}

impl FromStr for LogSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        if text.len() > MAX_SPEC_BYTES {
            return Err(SpecError(format!(
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
                    return Err(SpecError(format!(
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

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[a-z.,=: ]{0,40}|\\PC{0,40}") {
            if let Ok(spec) = text.parse::<LogSpec>() {
                prop_assert_eq!(spec.to_string().parse::<LogSpec>().unwrap(), spec);
            }
        }
    }
}
