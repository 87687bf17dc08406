//! The metrics of flows and messages, under names that mirror Corda's.

use std::collections::BTreeMap;
use std::time::Duration;

use prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};
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

/// What is measured about messages.
#[derive(Clone)]
pub(crate) struct PostMetrics {
    pub(crate) received: IntCounter,
    pub(crate) receive: Histogram,
    length: IntGaugeVec,
    age: IntGaugeVec,
    connected: IntGaugeVec,
    bridges: IntGauge,
}

impl PostMetrics {
    /// Registers them.
    pub(crate) fn new(metrics: &Metrics) -> Self {
        const PEER: &[&str] = &["peer"];
        Self {
            received: metrics.counter(
                "quorate_p2p_received_total",
                "Messages that peers have sent, repetitions included.",
            ),
            receive: metrics.histogram(
                "quorate_p2p_receive_seconds",
                "Time from the arrival of messages to their being durable in the inbox.",
                DURATION_BUCKETS,
            ),
            length: metrics.gauge_family(
                "quorate_p2p_outbound_queue_length",
                "Messages that a peer has not accepted yet.",
                PEER,
            ),
            age: metrics.gauge_family(
                "quorate_p2p_outbound_first_message_age_seconds",
                "For how long a peer has accepted nothing although messages wait, in whole seconds.",
                PEER,
            ),
            connected: metrics.gauge_family(
                "quorate_p2p_outbound_connected",
                "Whether there is a connection to a peer for sending.",
                PEER,
            ),
            bridges: metrics.gauge(
                "quorate_p2p_bridges",
                "Bridges of the node's firewall that are connected; 0 without a firewall.",
            ),
        }
    }

    pub(crate) fn bridges(&self, count: usize) {
        self.bridges.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub(crate) fn queue(&self, peer: &str, length: u64, age: Option<Duration>, connected: bool) {
        let labels = &[peer];
        let clamp = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.length.with_label_values(labels).set(clamp(length));
        let age = age.map_or(0, |age| age.as_secs());
        self.age.with_label_values(labels).set(clamp(age));
        self.connected
            .with_label_values(labels)
            .set(i64::from(connected));
    }
}

/// What is measured about maintenance.
#[derive(Clone)]
pub(crate) struct MaintenanceMetrics {
    pub(crate) windows: IntCounter,
    pub(crate) overruns: IntCounter,
    pub(crate) missed: IntCounter,
    pub(crate) running: IntGauge,
    pub(crate) duration: Histogram,
    removed: IntCounterVec,
    failures: IntCounterVec,
}

impl MaintenanceMetrics {
    /// Registers them.
    pub(crate) fn new(metrics: &Metrics) -> Self {
        const TASK: &[&str] = &["task"];
        Self {
            windows: metrics.counter(
                "quorate_maintenance_windows_total",
                "Maintenance windows that were run.",
            ),
            overruns: metrics.counter(
                "quorate_maintenance_overruns_total",
                "Windows that took longer than maintenanceMode.duration.",
            ),
            missed: metrics.counter(
                "quorate_maintenance_missed_total",
                "Windows that were not run, because an earlier one had not finished or the time had passed.",
            ),
            running: metrics.gauge(
                "quorate_maintenance_running",
                "1 while a maintenance window runs.",
            ),
            duration: metrics.histogram(
                "quorate_maintenance_duration_seconds",
                "How long windows took.",
                DURATION_BUCKETS,
            ),
            removed: metrics.counter_family(
                "quorate_maintenance_removed_rows_total",
                "Outdated rows that were removed, by task.",
                TASK,
            ),
            failures: metrics.counter_family(
                "quorate_maintenance_failures_total",
                "Tasks that broke off with an error.",
                TASK,
            ),
        }
    }

    pub(crate) fn removed(&self, task: &str, rows: u64) {
        self.removed.with_label_values(&[task]).inc_by(rows);
    }

    pub(crate) fn failed(&self, task: &str) {
        self.failures.with_label_values(&[task]).inc();
    }
}

/// What is measured about the instance's role.
#[derive(Clone)]
pub(crate) struct RoleMetrics {
    active: IntGauge,
    generation: IntGauge,
    terms: IntCounter,
}

impl RoleMetrics {
    /// Registers them.
    pub(crate) fn new(metrics: &Metrics) -> Self {
        Self {
            active: metrics.gauge(
                "quorate_node_active",
                "1 while this instance serves, 0 while it stands by, starts or stops.",
            ),
            generation: metrics.gauge(
                "quorate_lease_generation",
                "The generation of the lease that this instance held last.",
            ),
            terms: metrics.counter(
                "quorate_lease_terms_total",
                "How often this process has become active.",
            ),
        }
    }

    pub(crate) fn active(&self, generation: u64) {
        self.active.set(1);
        self.generation
            .set(i64::try_from(generation).unwrap_or(i64::MAX));
        self.terms.inc();
    }

    pub(crate) fn not_active(&self) {
        self.active.set(0);
    }
}
