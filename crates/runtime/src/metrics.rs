//! The registry behind `/metrics`.
//!
//! Each part asks for its metrics by name and keeps the returned handle. Asking twice for the same name returns the
//! same metric, because a part may be stopped and started any number of times within one process. Names are chosen by
//! their owners: Fabric's on the ordering side, `quorate_…` on the ledger side.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::core::Collector;
use prometheus::proto::MetricFamily;
use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Registry, TextEncoder,
    histogram_opts, opts,
};

pub use prometheus::{Histogram, IntCounter, IntGauge};
/// Families of metrics with labels.
pub mod families {
    pub use prometheus::{HistogramVec, IntCounterVec, IntGaugeVec};
}

/// Histogram buckets in seconds for things that take from a tenth of a millisecond to half a minute.
pub const DURATION_BUCKETS: &[f64] = &[
    0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0, 30.0,
];

/// Histogram buckets for how many things went into one batch.
pub const BATCH_BUCKETS: &[f64] = &[
    1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0,
];

/// The process's metrics; cheap to clone.
#[derive(Clone, Default)]
pub struct Metrics {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    registry: Registry,
    known: Mutex<BTreeMap<String, Family>>,
}

#[derive(Clone)]
enum Family {
    Counter(IntCounterVec),
    Gauge(IntGaugeVec),
    Histogram(HistogramVec),
}

impl Metrics {
    /// An empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// A number that only grows.
    pub fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.counter_family(name, help, &[])
            .with_label_values::<&str>(&[])
    }

    /// Numbers that only grow, told apart by labels.
    pub fn counter_family(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        let family = self.family(name, || {
            IntCounterVec::new(opts!(name, help), labels)
                .map(|made| (Family::Counter(made.clone()), boxed(made)))
        });
        match family {
            Family::Counter(counter) => counter,
            _ => unreachable!("metric `{name}` is already something else than a counter"),
        }
    }

    /// A number that rises and falls.
    pub fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.gauge_family(name, help, &[])
            .with_label_values::<&str>(&[])
    }

    /// Numbers that rise and fall, told apart by labels.
    pub fn gauge_family(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        let family = self.family(name, || {
            IntGaugeVec::new(opts!(name, help), labels)
                .map(|made| (Family::Gauge(made.clone()), boxed(made)))
        });
        match family {
            Family::Gauge(gauge) => gauge,
            _ => unreachable!("metric `{name}` is already something else than a gauge"),
        }
    }

    /// A distribution, with [`DURATION_BUCKETS`], [`BATCH_BUCKETS`] or buckets of one's own.
    pub fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        self.histogram_family(name, help, buckets, &[])
            .with_label_values::<&str>(&[])
    }

    /// Distributions told apart by labels.
    pub fn histogram_family(
        &self,
        name: &str,
        help: &str,
        buckets: &[f64],
        labels: &[&str],
    ) -> HistogramVec {
        let family = self.family(name, || {
            let options: HistogramOpts = histogram_opts!(name, help, buckets.to_vec());
            HistogramVec::new(options, labels)
                .map(|made| (Family::Histogram(made.clone()), boxed(made)))
        });
        match family {
            Family::Histogram(histogram) => histogram,
            _ => unreachable!("metric `{name}` is already something else than a histogram"),
        }
    }

    /// Adds metrics that are found out when somebody asks.
    ///
    /// # Panics
    /// One of their names is in use: names are written in our own source.
    pub fn register(&self, collector: Box<dyn Collector>) {
        self.inner
            .registry
            .register(collector)
            .expect("a name is registered once");
    }

    /// Everything at this moment, sorted by name.
    pub fn gather(&self) -> Vec<MetricFamily> {
        self.inner.registry.gather()
    }

    /// Everything in Prometheus's text format.
    pub fn render(&self) -> String {
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.gather(), &mut text) {
            tracing::warn!(%error, "metrics could not be written");
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    fn family(
        &self,
        name: &str,
        make: impl FnOnce() -> prometheus::Result<(Family, Box<dyn Collector>)>,
    ) -> Family {
        let mut known = self
            .inner
            .known
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(family) = known.get(name) {
            return family.clone();
        }
        let (family, collector) =
            make().expect("metric names, labels and buckets are written in our own source");
        self.inner
            .registry
            .register(collector)
            .expect("a name is registered once, as the lookup above ensures");
        known.insert(name.to_owned(), family.clone());
        family
    }
}

fn boxed(collector: impl Collector + 'static) -> Box<dyn Collector> {
    Box::new(collector)
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = self
            .inner
            .known
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        f.debug_list().entries(known.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asking_twice_returns_the_same_metric() {
        let metrics = Metrics::new();
        metrics.counter("quorate_commits", "Commits.").inc();
        metrics.counter("quorate_commits", "Commits.").inc();
        metrics
            .gauge_family("quorate_queue", "Queue.", &["peer"])
            .with_label_values(&["PartyB"])
            .set(3);
        metrics
            .histogram("quorate_batch", "Batch.", BATCH_BUCKETS)
            .observe(5.0);
        let text = metrics.render();
        assert!(text.contains("quorate_commits 2\n"), "{text}");
        assert!(
            text.contains("quorate_queue{peer=\"PartyB\"} 3\n"),
            "{text}"
        );
        assert!(
            text.contains("quorate_batch_bucket{le=\"8\"} 1\n"),
            "{text}"
        );
    }
}
