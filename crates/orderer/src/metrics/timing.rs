//! Durations: for Prometheus a histogram, for StatsD the single values.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quorate_runtime::metrics::Histogram;
use quorate_runtime::metrics::families::HistogramVec;

/// Values of one series kept for StatsD until the next write. Further ones are sampled, each with the same chance.
pub(crate) const MAX_SAMPLES: usize = 512;

/// Series kept for StatsD; of further ones nothing is sent.
const MAX_SERIES: usize = 1024;

/// Durations told apart by `N` labels.
#[derive(Clone)]
pub struct Timings<const N: usize> {
    family: HistogramVec,
    name: &'static str,
    samples: Option<Arc<Samples>>,
}

impl<const N: usize> Timings<N> {
    pub(super) fn new(
        family: HistogramVec,
        name: &'static str,
        samples: Option<Arc<Samples>>,
    ) -> Self {
        Self {
            family,
            name,
            samples,
        }
    }

    /// The one with these labels.
    pub fn with(&self, labels: [&str; N]) -> Timing {
        Timing {
            histogram: self.family.with_label_values(&labels),
            series: self
                .samples
                .as_ref()
                .and_then(|samples| samples.series(self.name, &labels)),
        }
    }
}

/// Where durations of one kind are put; cheap to clone.
#[derive(Clone)]
pub struct Timing {
    histogram: Histogram,
    series: Option<Arc<Mutex<Series>>>,
}

impl Timing {
    /// Puts one in.
    pub fn observe(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        self.histogram.observe(seconds);
        if let Some(series) = &self.series {
            series
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .put(seconds);
        }
    }
}

#[derive(Default)]
struct Series {
    seen: u64,
    kept: Vec<f64>,
    random: u64,
}

impl Series {
    fn put(&mut self, value: f64) {
        self.seen += 1;
        if self.kept.len() < MAX_SAMPLES {
            self.kept.push(value);
            return;
        }
        // The n-th value takes a place with the chance of MAX_SAMPLES in n: so all have the same chance. What is chosen
        // need not be unforeseeable, so a small generator of our own does.
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let place = (self.random >> 11) % self.seen;
        if let Some(place) = usize::try_from(place)
            .ok()
            .and_then(|place| self.kept.get_mut(place))
        {
            *place = value;
        }
    }
}

/// Values of one series since the last time.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sampled {
    /// The family's StatsD name.
    pub(crate) name: &'static str,
    /// The values of its labels, in order.
    pub(crate) labels: Vec<String>,
    /// How many there were.
    pub(crate) seen: u64,
    /// Those kept, in seconds.
    pub(crate) values: Vec<f64>,
}

type Key = (&'static str, Vec<String>);

/// The single values of all series.
#[derive(Default)]
pub(crate) struct Samples {
    series: Mutex<BTreeMap<Key, Arc<Mutex<Series>>>>,
}

impl Samples {
    fn series(&self, name: &'static str, labels: &[&str]) -> Option<Arc<Mutex<Series>>> {
        let labels = labels.iter().map(|label| (*label).to_owned()).collect();
        let mut all = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        let room = all.len() < MAX_SERIES;
        match all.entry((name, labels)) {
            Entry::Occupied(entry) => Some(entry.get().clone()),
            Entry::Vacant(entry) if room => Some(entry.insert(Arc::default()).clone()),
            Entry::Vacant(_) => None,
        }
    }

    /// Takes what has come since the last time.
    pub(crate) fn take(&self) -> Vec<Sampled> {
        let all = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter()
            .filter_map(|((name, labels), series)| {
                let mut series = series.lock().unwrap_or_else(PoisonError::into_inner);
                let seen = std::mem::take(&mut series.seen);
                (seen > 0).then(|| Sampled {
                    name,
                    labels: labels.clone(),
                    seen,
                    values: std::mem::take(&mut series.kept),
                })
            })
            .collect()
    }
}
