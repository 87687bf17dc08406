//! The flow machine's metrics, under names that mirror Corda's.

use std::collections::BTreeMap;
use std::time::Duration;

use prometheus::{Histogram, IntCounter, IntGauge, IntGaugeVec};
use quorate_flow::FlowStatus;
use quorate_runtime::Metrics;
use quorate_runtime::metrics::DURATION_BUCKETS;

/// What is measured about flows.
#[derive(Clone)]
pub(crate) struct FlowMetrics {
    pub(crate) started: IntCounter,
    pub(crate) hospitalised: IntCounter,
    finished: IntCounter,
    success: IntCounter,
    error: IntCounter,
    duration: Histogram,
    in_flight: IntGauge,
    held: IntGauge,
    by_status: IntGaugeVec,
}

impl FlowMetrics {
    /// Registers them.
    pub(crate) fn new(metrics: &Metrics) -> Self {
        Self {
            started: metrics.counter(
                "quorate_flows_started_total",
                "Flows that clients have started.",
            ),
            hospitalised: metrics.counter(
                "quorate_flows_hospitalised_total",
                "Admissions of flows to the hospital.",
            ),
            finished: metrics.counter("quorate_flows_finished_total", "Flows that have ended."),
            success: metrics.counter(
                "quorate_flows_success_total",
                "Flows that have ended with a result.",
            ),
            error: metrics.counter(
                "quorate_flows_error_total",
                "Flows that have ended with an error, or were killed.",
            ),
            duration: metrics.histogram(
                "quorate_flows_duration_seconds",
                "Time from a flow's start to its end.",
                DURATION_BUCKETS,
            ),
            in_flight: metrics.gauge("quorate_flows_in_flight", "Flows that have not ended."),
            held: metrics.gauge(
                "quorate_flows_held_messages",
                "Messages that wait because no flow may start now.",
            ),
            by_status: metrics.gauge_family(
                "quorate_flows",
                "Flows that have not ended, by status.",
                &["status"],
            ),
        }
    }

    pub(crate) fn ended(&self, success: bool, took: Duration) {
        self.finished.inc();
        if success {
            self.success.inc();
        } else {
            self.error.inc();
        }
        self.duration.observe(took.as_secs_f64());
    }

    pub(crate) fn census(&self, census: &BTreeMap<FlowStatus, usize>, held: usize) {
        self.in_flight.set(census.values().sum::<usize>() as i64);
        self.held.set(held as i64);
        for status in FlowStatus::ALL.into_iter().filter(|status| !status.ended()) {
            let count = census.get(&status).copied().unwrap_or(0);
            self.by_status
                .with_label_values(&[status.name()])
                .set(count as i64);
        }
    }
}
