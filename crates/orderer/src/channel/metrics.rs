//! What operators see of channels, under Fabric's names.

use quorate_runtime::metrics::Metrics;
use quorate_runtime::metrics::families::{HistogramVec, IntCounterVec, IntGaugeVec};

use super::core::Gauges;

/// Fabric's buckets for durations, in seconds.
const BUCKETS: [f64; 11] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// The metrics of all channels; cheap to clone.
#[derive(Clone)]
pub struct ChannelMetrics {
    cluster_size: IntGaugeVec,
    is_leader: IntGaugeVec,
    active_nodes: IntGaugeVec,
    committed_block_number: IntGaugeVec,
    snapshot_block_number: IntGaugeVec,
    leader_changes: IntCounterVec,
    proposal_failures: IntCounterVec,
    normal_proposals_received: IntCounterVec,
    config_proposals_received: IntCounterVec,
    pub(super) data_persist_duration: HistogramVec,
    pub(super) block_fill_duration: HistogramVec,
}

impl ChannelMetrics {
    /// Registers them; registering twice gives the same ones.
    pub fn new(metrics: &Metrics) -> Self {
        let label = ["channel"];
        let gauge = |name: &str, help: &str| {
            metrics.gauge_family(&format!("consensus_etcdraft_{name}"), help, &label)
        };
        let counter = |name: &str, help: &str| {
            metrics.counter_family(&format!("consensus_etcdraft_{name}"), help, &label)
        };
        Self {
            cluster_size: gauge("cluster_size", "Number of nodes in this channel."),
            is_leader: gauge(
                "is_leader",
                "The leadership status of the current node: 1 if it is the leader else 0.",
            ),
            active_nodes: gauge("active_nodes", "Number of active nodes in this channel."),
            committed_block_number: gauge(
                "committed_block_number",
                "The number of the latest block committed.",
            ),
            snapshot_block_number: gauge(
                "snapshot_block_number",
                "The block number of the latest snapshot.",
            ),
            leader_changes: counter(
                "leader_changes",
                "The number of leader changes since process start.",
            ),
            proposal_failures: counter("proposal_failures", "The number of proposal failures."),
            normal_proposals_received: counter(
                "normal_proposals_received",
                "The total number of proposals received for normal type transactions.",
            ),
            config_proposals_received: counter(
                "config_proposals_received",
                "The total number of proposals received for config type transactions.",
            ),
            data_persist_duration: metrics.histogram_family(
                "consensus_etcdraft_data_persist_duration",
                "The time taken for Raft data to be made durable, in seconds.",
                &BUCKETS,
                &label,
            ),
            block_fill_duration: metrics.histogram_family(
                "blockcutter_block_fill_duration",
                "The time from the first message of a block to the block being cut, in seconds.",
                &BUCKETS,
                &label,
            ),
        }
    }

    /// Shows where a channel stands, and counts what has come since `before`.
    pub(super) fn show(&self, channel: &str, before: &Gauges, now: &Gauges) {
        if before == now {
            return;
        }
        let label = [channel];
        let set = |family: &IntGaugeVec, value: u64| {
            family
                .with_label_values(&label)
                .set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        set(&self.cluster_size, now.cluster_size);
        set(&self.is_leader, u64::from(now.is_leader));
        set(&self.active_nodes, now.active_nodes);
        set(&self.committed_block_number, now.committed_block_number);
        set(&self.snapshot_block_number, now.snapshot_block_number);
        let count = |family: &IntCounterVec, before: u64, now: u64| {
            family
                .with_label_values(&label)
                .inc_by(now.saturating_sub(before));
        };
        count(
            &self.leader_changes,
            before.leader_changes,
            now.leader_changes,
        );
        count(
            &self.proposal_failures,
            before.proposal_failures,
            now.proposal_failures,
        );
        count(
            &self.normal_proposals_received,
            before.normal_proposals_received,
            now.normal_proposals_received,
        );
        count(
            &self.config_proposals_received,
            before.config_proposals_received,
            now.config_proposals_received,
        );
    }

    /// Forgets a channel.
    pub(super) fn forget(&self, channel: &str) {
        let label = [channel];
        for family in [
            &self.cluster_size,
            &self.is_leader,
            &self.active_nodes,
            &self.committed_block_number,
            &self.snapshot_block_number,
        ] {
            let _ = family.remove_label_values(&label);
        }
    }
}
