//! What operators see of channels, under Fabric's names.

use super::core::Gauges;
use crate::metrics::{
    Blockcutter, Counters, Etcd, Etcdraft, Gauges as Family, OrdererMetrics, Replication,
};

/// The metrics of all channels; cheap to clone.
#[derive(Clone)]
pub struct ChannelMetrics {
    pub(super) etcdraft: Etcdraft,
    pub(super) blockcutter: Blockcutter,
    pub(super) etcd: Etcd,
    pub(super) replication: Replication,
}

impl ChannelMetrics {
    /// Those of the orderer that channels feed.
    pub fn of(metrics: &OrdererMetrics) -> Self {
        Self {
            etcdraft: metrics.etcdraft.clone(),
            blockcutter: metrics.blockcutter.clone(),
            etcd: metrics.etcd.clone(),
            replication: metrics.replication.clone(),
        }
    }

    /// Shows where a channel stands, and counts what has come since `before`.
    pub(super) fn show(&self, channel: &str, before: &Gauges, now: &Gauges) {
        if before == now {
            return;
        }
        let label = [channel];
        let etcdraft = &self.etcdraft;
        let set = |family: &Family<1>, value: u64| {
            family
                .with(label)
                .set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        set(&etcdraft.cluster_size, now.cluster_size);
        set(&etcdraft.is_leader, u64::from(now.is_leader));
        set(&etcdraft.active_nodes, now.active_nodes);
        set(&etcdraft.committed_block_number, now.committed_block_number);
        set(&etcdraft.snapshot_block_number, now.snapshot_block_number);
        let count = |family: &Counters<1>, before: u64, now: u64| {
            family.with(label).inc_by(now.saturating_sub(before));
        };
        count(
            &etcdraft.leader_changes,
            before.leader_changes,
            now.leader_changes,
        );
        count(
            &etcdraft.proposal_failures,
            before.proposal_failures,
            now.proposal_failures,
        );
        count(
            &etcdraft.normal_proposals_received,
            before.normal_proposals_received,
            now.normal_proposals_received,
        );
        count(
            &etcdraft.config_proposals_received,
            before.config_proposals_received,
            now.config_proposals_received,
        );
    }

    /// Forgets a channel.
    pub(super) fn forget(&self, channel: &str) {
        let etcdraft = &self.etcdraft;
        let label = [channel];
        for family in [
            &etcdraft.cluster_size,
            &etcdraft.is_leader,
            &etcdraft.active_nodes,
            &etcdraft.committed_block_number,
            &etcdraft.snapshot_block_number,
        ] {
            family.forget(label);
        }
        self.replication.show(channel, None);
    }
}
