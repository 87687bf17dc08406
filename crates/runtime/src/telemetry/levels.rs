//! Which events are written: a [`LogSpec`](super::LogSpec) made ready for many quick questions.

use std::borrow::Cow;
use std::collections::BTreeMap;

use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// The name of the logger that a target belongs to: module paths are written with dots and without `quorate_`; a name
/// given as the target is left as it is.
pub(super) fn logger(target: &str) -> Cow<'_, str> {
    let target = target.strip_prefix("quorate_").unwrap_or(target);
    if target.contains("::") {
        Cow::Owned(target.replace("::", "."))
    } else {
        Cow::Borrowed(target)
    }
}

/// Levels by logger. A logger without one has that of the nearest logger whose name, cut at a dot, is the beginning of
/// its own.
#[derive(Debug, Clone)]
pub(super) struct Levels {
    pub(super) default: LevelFilter,
    pub(super) loggers: BTreeMap<String, LevelFilter>,
    /// For this very logger only, not for those below it.
    pub(super) exact: BTreeMap<String, LevelFilter>,
}

impl Levels {
    fn of(&self, target: &str) -> LevelFilter {
        let name = logger(target);
        if let Some(level) = self.exact.get(name.as_ref()) {
            return *level;
        }
        let mut candidate = name.as_ref();
        loop {
            if let Some(level) = self.loggers.get(candidate) {
                return *level;
            }
            match candidate.rfind('.') {
                Some(dot) => candidate = &candidate[..dot],
                None => return self.default,
            }
        }
    }

    fn lets_through(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.of(metadata.target())
    }
}

impl<S: Subscriber> Layer<S> for Levels {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        // The answer depends on nothing else, so it need not be asked again until the levels change.
        if self.lets_through(metadata) {
            Interest::always()
        } else {
            Interest::never()
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        self.lets_through(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        self.loggers
            .values()
            .chain(self.exact.values())
            .copied()
            .chain([self.default])
            .max()
    }
}
