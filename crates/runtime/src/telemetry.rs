//! Log lines: to the console, to a file with bounded size, at levels that can be changed while the process runs.
//!
//! A line looks as in Corda's logs: `[INFO ] 2019-05-23T07:15:11,450Z [thread] messaging.bridge - connected {peer=…}`.
//! Control characters in messages and values are escaped, so that a peer's text cannot forge a line. Levels are set by
//! a [`LogSpec`] in Fabric's notation, `messaging,node.vault=debug:info`. A logger's name is the module path with dots
//! and without `quorate_`: `quorate_node::vault` is `node.vault`.
//!
//! The ordering service writes [Fabric's layout](FabricFormat) instead, under Fabric's logger names, which its code gives
//! as explicit targets (`orderer.consensus.etcdraft`), and reads specifications [as Fabric does](LogSpec::fabric).
//!
//! Start with [`init`], once per process, from whoever composes it. Tests use [`build`].

mod fabric;
mod file;
mod format;
mod levels;
mod spec;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::level_filters::LevelFilter;
use tracing::{Dispatch, Event, Subscriber};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::{Layer, Registry, reload};

use crate::Metrics;
use crate::metrics::families::IntCounterVec;
use levels::Levels;

pub use fabric::{DEFAULT_FORMAT, FabricFormat, FormatError};
pub use file::RollingFile;
pub use spec::{Level, LogSpec, SpecError};

/// Size at which a log file is set aside.
pub const DEFAULT_MAX_FILE_BYTES: u64 = 100 * 1024 * 1024;

/// How many log files set aside are kept.
pub const DEFAULT_KEPT_FILES: u32 = 10;

/// Where log lines go, and which.
#[derive(Debug, Clone)]
pub struct Options {
    /// Which lines are written at all.
    pub spec: LogSpec,
    /// Lines at this level or more urgent also go to standard error; `None` for no console.
    pub console: Option<Level>,
    /// The log file, if any.
    pub file: Option<FileOptions>,
    /// How a line looks.
    pub layout: Layout,
    /// Counts lines by level as `logging_entries_checked` and `logging_entries_written`, if given.
    pub metrics: Option<Metrics>,
}

/// How a log line looks.
#[derive(Debug, Clone, Default)]
pub enum Layout {
    /// As in Corda's logs.
    #[default]
    Corda,
    /// JSON objects.
    Json,
    /// As in Fabric's logs.
    Fabric(FabricFormat),
}

impl Default for Options {
    fn default() -> Self {
        Self {
            spec: LogSpec::default(),
            console: Some(Level::Info),
            file: None,
            layout: Layout::Corda,
            metrics: None,
        }
    }
}

/// A log file that is set aside when it has grown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileOptions {
    /// The file, such as `logs/node-<hostname>.log`; directories are created. Files set aside get `.1`, `.2` … behind
    /// their name, the newest first.
    pub path: PathBuf,
    /// Size in bytes at which it is set aside.
    pub max_bytes: u64,
    /// How many are kept.
    pub kept: u32,
}

impl FileOptions {
    /// `path` with the default bounds.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            max_bytes: DEFAULT_MAX_FILE_BYTES,
            kept: DEFAULT_KEPT_FILES,
        }
    }
}

/// Logging cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The log file cannot be opened.
    #[error("the log file {} cannot be opened; check that its directory exists and is writable", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Another call has set up logging for this process.
    #[error("logging has already been set up in this process")]
    AlreadySet,
}

/// Changes log levels while the process runs; cheap to clone.
#[derive(Clone)]
pub struct LogControl {
    inner: Arc<Control>,
}

struct Control {
    spec: Mutex<LogSpec>,
    filter: Option<reload::Handle<Levels, Registry>>,
}

impl LogControl {
    /// A control that is connected to nothing, for tests of those who hold one.
    pub fn detached() -> Self {
        Self {
            inner: Arc::new(Control {
                spec: Mutex::new(LogSpec::default()),
                filter: None,
            }),
        }
    }

    /// The specification in force.
    pub fn spec(&self) -> LogSpec {
        self.inner
            .spec
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Puts another one in force, at once and for all lines.
    pub fn set(&self, spec: LogSpec) {
        let mut current = self
            .inner
            .spec
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(filter) = &self.inner.filter {
            // It fails only when logging itself is gone, and then nobody reads the levels.
            let _ = filter.reload(spec.levels());
        }
        *current = spec;
    }
}

impl fmt::Debug for LogControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LogControl")
            .field(&self.spec().to_string())
            .finish()
    }
}

/// Sets up logging for the whole process.
///
/// # Errors
/// The log file cannot be opened, or logging has been set up before.
pub fn init(options: &Options) -> Result<LogControl, Error> {
    let (dispatch, control) = build(options)?;
    tracing::dispatcher::set_global_default(dispatch).map_err(|_| Error::AlreadySet)?;
    Ok(control)
}

/// Builds what [`init`] installs, for use with [`tracing::dispatcher::with_default`].
///
/// # Errors
/// The log file cannot be opened.
pub fn build(options: &Options) -> Result<(Dispatch, LogControl), Error> {
    let (filter, handle) = reload::Layer::new(options.spec.levels());
    let console = options
        .console
        .map(|level| layer(io::stderr, &options.layout).with_filter(LevelFilter::from(level)));
    let file = match &options.file {
        None => None,
        Some(file) => {
            let writer = file::RollingFile::open(file).map_err(|source| Error::File {
                path: file.path.clone(),
                source,
            })?;
            Some(layer(writer, &options.layout))
        }
    };
    let counted = options.metrics.as_ref().map(Counted::new);
    let subscriber = Registry::default()
        .with(filter)
        .with(counted)
        .with(console)
        .with(file);
    let control = Control {
        spec: Mutex::new(options.spec.clone()),
        filter: Some(handle),
    };
    Ok((
        Dispatch::new(subscriber),
        LogControl {
            inner: Arc::new(control),
        },
    ))
}

fn layer<S, W>(writer: W, layout: &Layout) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
    W: for<'a> tracing_subscriber::fmt::MakeWriter<'a> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(writer)
        .with_ansi(false)
        .log_internal_errors(false);
    match layout {
        Layout::Corda => Box::new(layer.event_format(format::CordaLines)),
        Layout::Json => Box::new(layer.json()),
        Layout::Fabric(format) => Box::new(
            layer
                .event_format(fabric::FabricLines(format.clone()))
                .fmt_fields(fabric::LogfmtFields),
        ),
    }
}

/// Counts the lines that pass the levels. Fabric counts those that are checked and those that are written; what is below
/// its levels it does not even check, so that both are the same number.
struct Counted {
    checked: IntCounterVec,
    written: IntCounterVec,
}

impl Counted {
    fn new(metrics: &Metrics) -> Self {
        Self {
            checked: metrics.counter_family(
                "logging_entries_checked",
                "Number of log entries checked against the active logging level",
                &["level"],
            ),
            written: metrics.counter_family(
                "logging_entries_written",
                "Number of log entries that are written",
                &["level"],
            ),
        }
    }
}

impl<S: Subscriber> Layer<S> for Counted {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let level = match *event.metadata().level() {
            tracing::Level::ERROR => "error",
            tracing::Level::WARN => "warn",
            tracing::Level::INFO => "info",
            tracing::Level::DEBUG => "debug",
            tracing::Level::TRACE => "payload",
        };
        self.checked.with_label_values(&[level]).inc();
        self.written.with_label_values(&[level]).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(path: &std::path::Path) -> Vec<String> {
        std::fs::read_to_string(path)
            .unwrap()
            .lines()
            .map(str::to_owned)
            .collect()
    }

    #[test]
    fn lines_look_as_in_cordas_logs_and_cannot_be_forged() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("logs/node-host.log");
        let options = Options {
            console: None,
            file: Some(FileOptions::new(&path)),
            ..Options::default()
        };
        let (dispatch, _) = build(&options).unwrap();
        tracing::dispatcher::with_default(&dispatch, || {
            tracing::info!(target: "quorate_messaging::bridge", peer = "O=B\n[ERROR] forged", tries = 3, "Bridge\rup");
            let span = tracing::info_span!("flow", id = 7);
            span.in_scope(|| tracing::warn!(target: "other", "within"));
        });
        let lines = lines(&path);
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].starts_with("[INFO ] 20"), "{}", lines[0]);
        assert!(
            lines[0]
                .ends_with(r"messaging.bridge - Bridge\rup {peer=O=B\n[ERROR] forged, tries=3}"),
            "{}",
            lines[0]
        );
        assert!(lines[1].starts_with("[WARN ] "), "{}", lines[1]);
        assert!(
            lines[1].ends_with("other - within {flow.id=7}"),
            "{}",
            lines[1]
        );
    }

    #[test]
    fn levels_change_while_running() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node.log");
        let options = Options {
            console: None,
            file: Some(FileOptions::new(&path)),
            ..Options::default()
        };
        let (dispatch, control) = build(&options).unwrap();
        let speak = || {
            tracing::debug!(target: "quorate_node::vault", "a");
            tracing::debug!(target: "quorate_messaging", "b");
        };
        tracing::dispatcher::with_default(&dispatch, || {
            speak();
            assert!(lines(&path).is_empty());
            control.set("node.vault=debug:info".parse().unwrap());
            speak();
            assert_eq!(lines(&path).len(), 1);
            control.set("node=error:debug".parse().unwrap());
            speak();
        });
        let lines = lines(&path);
        assert!(lines[1].contains("messaging - b"), "{lines:?}");
        assert_eq!(control.spec().to_string(), "node=error:debug");
    }

    #[test]
    fn json_lines_are_json() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node.log");
        let options = Options {
            console: None,
            file: Some(FileOptions::new(&path)),
            layout: Layout::Json,
            ..Options::default()
        };
        let (dispatch, _) = build(&options).unwrap();
        tracing::dispatcher::with_default(&dispatch, || tracing::info!(n = 1, "hello"));
        let line: serde_json::Value = serde_json::from_str(&lines(&path)[0]).unwrap();
        assert_eq!(line["fields"]["message"], "hello");
    }

    #[test]
    fn fabrics_lines_look_as_in_fabrics_logs() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("orderer.log");
        let metrics = Metrics::new();
        let options = Options {
            spec: LogSpec::fabric("orderer.consensus.etcdraft=debug:exact.=debug:info").unwrap(),
            console: None,
            file: Some(FileOptions::new(&path)),
            layout: Layout::Fabric(FabricFormat::default()),
            metrics: Some(metrics.clone()),
        };
        let (dispatch, _) = build(&options).unwrap();
        tracing::dispatcher::with_default(&dispatch, || {
            tracing::info!(target: "orderer.consensus.etcdraft", snapshot = "a b", node = 2, channel = "c1", "Raft leader changed: 0 -> 1");
            tracing::debug!(target: "orderer.consensus.etcdraft.sub", "shown");
            tracing::debug!(target: "orderer.consensus.etcdraftx", "not shown");
            tracing::debug!(target: "exact", "shown");
            tracing::debug!(target: "exact.sub", "not shown");
            let span = tracing::info_span!("chain", channel = "c2", node = 3);
            span.in_scope(
                || tracing::error!(target: "orderer", reason = "x=\"y\"\n[31m", "two\nlines"),
            );
        });
        let lines = lines(&path);
        assert_eq!(lines.len(), 4, "{lines:#?}");
        // Time and number vary.
        let (head, tail) = lines[0].split_at(5);
        assert_eq!(head, "\u{1b}[34m", "{}", lines[0]);
        assert_eq!(&tail[4..5], "-");
        assert_eq!(&tail[19..28], &format!("{} UTC ", &tail[19..23]), "{tail}");
        let rest = &tail[28..];
        assert!(
            rest.starts_with("[orderer.consensus.etcdraft] tests -> INFO 0"),
            "{rest}"
        );
        assert!(
            rest.ends_with(
                "\u{1b}[0m Raft leader changed: 0 -> 1 channel=c1 node=2 snapshot=\"a b\""
            ),
            "{rest}"
        );
        assert!(lines[1].contains(" -> DEBU "), "{}", lines[1]);
        assert!(
            lines[3]
                .ends_with("\u{1b}[0m two\\nlines channel=c2 node=3 reason=\"x=\\\"y\\\"\\n[31m\""),
            "{}",
            lines[3]
        );
        assert!(
            lines[3].contains("[orderer] tests -> ERRO "),
            "{}",
            lines[3]
        );
        let text = metrics.render();
        for counter in ["checked", "written"] {
            for (level, count) in [("info", 1), ("debug", 2), ("error", 1)] {
                let line = format!("logging_entries_{counter}{{level=\"{level}\"}} {count}\n");
                assert!(text.contains(&line), "{line}{text}");
            }
        }
    }
}
