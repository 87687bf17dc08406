//! The notary's metrics, under names that mirror Corda's.

use prometheus::{Histogram, IntCounter, IntGauge};
use quorate_runtime::Metrics;
use quorate_runtime::metrics::{BATCH_BUCKETS, DURATION_BUCKETS};

/// What is measured about the notary.
#[derive(Clone)]
pub struct NotaryMetrics {
    pub(crate) commits: IntCounter,
    pub(crate) conflicts: IntCounter,
    pub(crate) refusals: IntCounter,
    pub(crate) overloads: IntCounter,
    pub(crate) states: IntCounter,
    pub(crate) retries: IntCounter,
    pub(crate) queue: IntGauge,
    pub(crate) eta: IntGauge,
    pub(crate) batch_size: Histogram,
    pub(crate) batch_duration: Histogram,
    pub(crate) sign: Histogram,
}

impl NotaryMetrics {
    /// Registers them.
    pub fn new(metrics: &Metrics) -> Self {
        Self {
            commits: metrics.counter(
                "quorate_notary_commits_total",
                "Transactions that the notary has signed.",
            ),
            conflicts: metrics.counter(
                "quorate_notary_conflicts_total",
                "Transactions refused because other transactions have consumed their states.",
            ),
            refusals: metrics.counter(
                "quorate_notary_refusals_total",
                "Requests refused for other reasons than conflicts and overload.",
            ),
            overloads: metrics.counter(
                "quorate_notary_overloads_total",
                "Requests that were not queued; the requesters were told when to ask again.",
            ),
            states: metrics.counter(
                "quorate_notary_input_states_total",
                "States in requests (the IPS of a notary is their rate).",
            ),
            retries: metrics.counter(
                "quorate_notary_database_retries_total",
                "Batches that were offered to the database again.",
            ),
            queue: metrics.gauge(
                "quorate_notary_request_queue_size",
                "Requests that wait for a batch.",
            ),
            eta: metrics.gauge(
                "quorate_notary_request_processing_eta_seconds",
                "Expected time until a request that comes now is decided, in seconds.",
            ),
            batch_size: metrics.histogram(
                "quorate_notary_processed_batch_size",
                "Requests per batch.",
                BATCH_BUCKETS,
            ),
            batch_duration: metrics.histogram(
                "quorate_notary_commit_seconds",
                "Time from a batch's start to its durable decision.",
                DURATION_BUCKETS,
            ),
            sign: metrics.histogram(
                "quorate_notary_batch_sign_seconds",
                "Time to sign a batch.",
                DURATION_BUCKETS,
            ),
        }
    }
}
