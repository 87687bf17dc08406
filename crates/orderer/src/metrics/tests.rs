#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use prometheus::proto::{MetricFamily, MetricType};
use serde_json::Value;

use super::*;

const RECORDED: &str = include_str!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../fixtures/fabric/participation/metrics.json"
));

/// One of everything, with each label's name as its value.
fn touched() -> OrdererMetrics {
    fn counters<const N: usize>(family: &Counters<N>) {
        family.with(["x"; N]).inc();
    }
    fn gauges<const N: usize>(family: &Gauges<N>) {
        family.with(["x"; N]).set(1);
    }
    fn timings<const N: usize>(family: &Timings<N>) {
        family.with(["x"; N]).observe(Duration::from_millis(1));
    }
    let registry = Metrics::new();
    for name in ["logging_entries_checked", "logging_entries_written"] {
        // As the log itself does.
        registry
            .counter_family(name, "As counted by the log.", &["level"])
            .with_label_values(&["info"])
            .inc();
    }
    let metrics = OrdererMetrics::new(&registry, false);
    metrics.show_version("v2.5.16");
    timings(&metrics.blockcutter.block_fill_duration);
    let part = &metrics.broadcast;
    timings(&part.enqueue_duration);
    timings(&part.validate_duration);
    counters(&part.processed_count);
    let part = &metrics.cluster;
    gauges(&part.egress_queue_capacity);
    gauges(&part.egress_queue_length);
    gauges(&part.egress_queue_workers);
    gauges(&part.egress_stream_count);
    counters(&part.msg_dropped_count);
    timings(&part.msg_send_time);
    let part = &metrics.etcdraft;
    for family in [
        &part.active_nodes,
        &part.cluster_size,
        &part.committed_block_number,
        &part.is_leader,
        &part.snapshot_block_number,
    ] {
        gauges(family);
    }
    for family in [
        &part.config_proposals_received,
        &part.leader_changes,
        &part.normal_proposals_received,
        &part.proposal_failures,
    ] {
        counters(family);
    }
    timings(&part.data_persist_duration);
    let part = &metrics.deliver;
    counters(&part.blocks_sent);
    counters(&part.requests_completed);
    counters(&part.requests_received);
    let part = &metrics.grpc;
    counters(&part.stream_messages_received);
    counters(&part.stream_messages_sent);
    counters(&part.stream_requests_completed);
    counters(&part.stream_requests_received);
    timings(&part.stream_request_duration);
    gauges(&metrics.ledger.blockchain_height);
    timings(&metrics.ledger.blockstorage_commit_time);
    gauges(&metrics.participation.consensus_relation);
    gauges(&metrics.participation.status);
    metrics
}

fn kind(family: &MetricFamily) -> &'static str {
    match family.get_field_type() {
        MetricType::COUNTER => "counter",
        MetricType::GAUGE => "gauge",
        MetricType::SUMMARY => "summary",
        MetricType::UNTYPED => "untyped",
        MetricType::HISTOGRAM => "histogram",
    }
}

#[test]
fn names_types_labels_and_buckets_are_those_recorded() {
    let recorded: Vec<Value> = serde_json::from_str(RECORDED).unwrap();
    let gathered = touched().gather();
    let ours: BTreeMap<&str, &MetricFamily> = gathered
        .iter()
        .map(|family| (family.name(), family))
        .collect();
    for metric in &recorded {
        let name = metric["name"].as_str().unwrap();
        let family = ours
            .get(name)
            .unwrap_or_else(|| panic!("{name} is missing"));
        assert_eq!(kind(family), metric["type"], "{name}");
        let sample = &family.get_metric()[0];
        let labels: BTreeSet<&str> = sample.get_label().iter().map(|pair| pair.name()).collect();
        let expected: BTreeSet<&str> = metric["labels"]
            .as_array()
            .unwrap()
            .iter()
            .map(|label| label.as_str().unwrap())
            .filter(|label| *label != "quantile")
            .collect();
        assert_eq!(labels, expected, "{name}");
        if let Some(buckets) = metric.get("buckets") {
            let ours: Vec<f64> = sample
                .get_histogram()
                .get_bucket()
                .iter()
                .map(|bucket| bucket.upper_bound())
                .filter(|bound| bound.is_finite())
                .collect();
            let expected: Vec<f64> = buckets
                .as_array()
                .unwrap()
                .iter()
                .map(|bound| {
                    bound
                        .as_str()
                        .unwrap()
                        .replace("+Inf", "inf")
                        .parse()
                        .unwrap()
                })
                .filter(|bound: &f64| bound.is_finite())
                .collect();
            assert_eq!(ours, expected, "{name}");
        }
    }
    // Ours are Fabric's, but for what Fabric has and did not happen to show.
    let known: BTreeSet<&str> = recorded
        .iter()
        .map(|metric| metric["name"].as_str().unwrap())
        .collect();
    let further: Vec<&&str> = ours.keys().filter(|name| !known.contains(*name)).collect();
    assert_eq!(further, [&"cluster_comm_msg_dropped_count"]);
}

#[test]
fn the_text_has_what_fabrics_tools_look_for() {
    let metrics = touched();
    metrics
        .grpc
        .stream_request_duration
        .with(["orderer_AtomicBroadcast", "Deliver", "OK"])
        .observe(Duration::from_secs(1));
    let text = metrics.render();
    for part in [
        "# TYPE go_gc_duration_seconds summary\n",
        "go_gc_duration_seconds{quantile=\"0.25\"} 0\n",
        "# TYPE grpc_server_stream_request_duration histogram\n",
        "grpc_server_stream_request_duration_sum{code=\"OK\",method=\"Deliver\",service=\"orderer_AtomicBroadcast\"",
        "# TYPE grpc_comm_conn_closed counter\n",
        "# TYPE grpc_comm_conn_opened counter\n",
        "ledger_blockchain_height{channel=\"x\"} 1\n",
        "ledger_blockstorage_commit_time_bucket{channel=\"x\",le=\"0.015\"} 1\n",
        "fabric_version{version=\"v2.5.16\"} 1\n",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
}
