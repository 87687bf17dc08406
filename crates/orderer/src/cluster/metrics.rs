//! `cluster_comm_…`: Fabric's names and labels.

use std::time::Duration;

use quorate_runtime::metrics::families::{HistogramVec, IntCounterVec, IntGaugeVec};
use quorate_runtime::metrics::{Histogram, IntGauge, Metrics};

const SECONDS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

pub(super) struct ClusterMetrics {
    queue_length: IntGaugeVec,
    queue_capacity: IntGaugeVec,
    queue_workers: IntGaugeVec,
    egress_streams: IntGaugeVec,
    pub(super) ingress_streams: IntGauge,
    pub(super) connections: IntGauge,
    send_time: HistogramVec,
    dropped: IntCounterVec,
}

impl ClusterMetrics {
    pub(super) fn new(metrics: &Metrics) -> Self {
        Self {
            queue_length: metrics.gauge_family(
                "cluster_comm_egress_queue_length",
                "Length of the egress queue.",
                &["host", "msg_type", "channel"],
            ),
            queue_capacity: metrics.gauge_family(
                "cluster_comm_egress_queue_capacity",
                "Capacity of the egress queue.",
                &["host", "msg_type", "channel"],
            ),
            queue_workers: metrics.gauge_family(
                "cluster_comm_egress_queue_workers",
                "Count of egress queue workers.",
                &["channel"],
            ),
            egress_streams: metrics.gauge_family(
                "cluster_comm_egress_stream_count",
                "Count of streams to other nodes.",
                &["channel"],
            ),
            ingress_streams: metrics.gauge(
                "cluster_comm_ingress_stream_count",
                "Count of streams from other nodes.",
            ),
            connections: metrics.gauge(
                "cluster_comm_egress_tls_connection_count",
                "Count of TLS connections to other nodes.",
            ),
            send_time: metrics.histogram_family(
                "cluster_comm_msg_send_time",
                "The time it takes to send a message in seconds.",
                SECONDS,
                &["host", "channel"],
            ),
            dropped: metrics.counter_family(
                "cluster_comm_msg_dropped_count",
                "Count of messages dropped.",
                &["host", "channel"],
            ),
        }
    }

    /// The metrics of one stream, looked up once.
    pub(super) fn stream(
        &self,
        host: &str,
        kind: &str,
        channel: &str,
        capacity: usize,
    ) -> OfStream {
        let queue = &[host, kind, channel];
        self.queue_capacity
            .with_label_values(queue)
            .set(i64::try_from(capacity).unwrap_or(i64::MAX));
        OfStream {
            queue_length: self.queue_length.with_label_values(queue),
            send_time: self.send_time.with_label_values(&[host, channel]),
        }
    }

    /// A stream of the channel and its worker began (1) or ended (-1).
    pub(super) fn streams(&self, channel: &str, change: i64) {
        self.queue_workers.with_label_values(&[channel]).add(change);
        self.egress_streams
            .with_label_values(&[channel])
            .add(change);
    }

    pub(super) fn dropped(&self, host: &str, channel: &str) {
        self.dropped.with_label_values(&[host, channel]).inc();
    }
}

/// What changes with every message of a stream.
#[derive(Clone)]
pub(super) struct OfStream {
    queue_length: IntGauge,
    send_time: Histogram,
}

impl OfStream {
    pub(super) fn waiting(&self, length: usize) {
        self.queue_length
            .set(i64::try_from(length).unwrap_or(i64::MAX));
    }

    pub(super) fn sent(&self, took: Duration) {
        self.send_time.observe(took.as_secs_f64());
    }
}
