//! Every metric of the orderer, under Fabric's names, types, labels and buckets.
//!
//! [`OrdererMetrics`] is made once; each part keeps the handles that it needs. Handles of families take their labels in
//! a fixed order, which is the order of Fabric's StatsD names and is given with each of them. The same numbers go to
//! Prometheus, which reads [`OrdererMetrics::render`] at `/metrics`, or to StatsD (module [`statsd`](crate::statsd)).
//!
//! Dashboards for Fabric also look at metrics of Go's runtime and of etcd's log. Those that have a counterpart here are
//! served with its value, see `process`; the others exist and stay zero.

mod disk;
mod process;
mod timing;

use std::collections::BTreeMap;
use std::sync::Arc;

use prometheus::proto::MetricFamily;
use quorate_runtime::Metrics;
use quorate_runtime::metrics::families::{IntCounterVec, IntGaugeVec};
use quorate_runtime::metrics::{Histogram, IntCounter, IntGauge};

use crate::replication::Progress;

pub use disk::MeasuredDisk;
pub use process::Process;
#[cfg(test)]
pub(crate) use timing::MAX_SAMPLES;
pub(crate) use timing::{Sampled, Samples};
pub use timing::{Timing, Timings};

/// Prometheus's default buckets, in seconds, which Fabric uses for most durations.
pub const SECONDS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// Fabric's buckets of the ledger, in seconds.
pub const LEDGER_SECONDS: &[f64] = &[0.005, 0.01, 0.015, 0.05, 0.1, 1.0, 10.0];

/// etcd's buckets of its log, in seconds: doubling from one millisecond.
pub const ETCD_SECONDS: &[f64] = &[
    0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096,
    8.192,
];

/// etcd's buckets for saving a database snapshot, in seconds.
const ETCD_DATABASE_SECONDS: &[f64] = &[0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2];

/// Counters told apart by `N` labels.
#[derive(Clone)]
pub struct Counters<const N: usize>(IntCounterVec);

impl<const N: usize> Counters<N> {
    /// The counter with these labels.
    pub fn with(&self, labels: [&str; N]) -> IntCounter {
        self.0.with_label_values(&labels)
    }
}

/// Gauges told apart by `N` labels.
#[derive(Clone)]
pub struct Gauges<const N: usize>(IntGaugeVec);

impl<const N: usize> Gauges<N> {
    /// The gauge with these labels.
    pub fn with(&self, labels: [&str; N]) -> IntGauge {
        self.0.with_label_values(&labels)
    }

    /// Forgets the gauge with these labels, so that it is no longer shown.
    pub fn forget(&self, labels: [&str; N]) {
        // It fails when there is none, which is what is wanted.
        let _ = self.0.remove_label_values(&labels);
    }
}

/// How a family is called in StatsD.
#[derive(Debug, Clone)]
pub(crate) struct StatsdName {
    /// With dots, without prefix and labels.
    pub(crate) name: &'static str,
    /// Whose values follow, in this order.
    pub(crate) labels: Vec<&'static str>,
}

/// All metrics of an orderer; cheap to clone.
#[derive(Clone)]
pub struct OrdererMetrics {
    /// Of the block cutter.
    pub blockcutter: Blockcutter,
    /// Of the Broadcast service.
    pub broadcast: Broadcast,
    /// Of the traffic between orderers.
    pub cluster: Cluster,
    /// Of consensus.
    pub etcdraft: Etcdraft,
    /// Of the Deliver service.
    pub deliver: Deliver,
    /// Of gRPC connections and calls.
    pub grpc: Grpc,
    /// Of the block stores.
    pub ledger: Ledger,
    /// Of the channel participation API.
    pub participation: Participation,
    /// Of the fetching of blocks that are missing here; not one of Fabric's.
    pub replication: Replication,
    /// Of the durable log, under etcd's names.
    pub etcd: Etcd,
    registry: Metrics,
    names: Arc<BTreeMap<String, StatsdName>>,
    samples: Option<Arc<Samples>>,
}

/// Of the block cutter.
#[derive(Clone)]
pub struct Blockcutter {
    /// From the first message of a block to its cut. Labels: channel.
    pub block_fill_duration: Timings<1>,
}

/// Of the Broadcast service.
#[derive(Clone)]
pub struct Broadcast {
    /// How long ordering a message took to begin. Labels: channel, type, status.
    pub enqueue_duration: Timings<3>,
    /// Messages answered. Labels: channel, type, status.
    pub processed_count: Counters<3>,
    /// How long its checks took. Labels: channel, type, status.
    pub validate_duration: Timings<3>,
}

/// Of the traffic between orderers.
#[derive(Clone)]
pub struct Cluster {
    /// Places in a queue to another orderer. Labels: host, msg_type (`consensus`, `transaction`), channel.
    pub egress_queue_capacity: Gauges<3>,
    /// Messages in it. Labels: host, msg_type, channel.
    pub egress_queue_length: Gauges<3>,
    /// Who serves the queues. Labels: channel.
    pub egress_queue_workers: Gauges<1>,
    /// Streams to other orderers. Labels: channel.
    pub egress_stream_count: Gauges<1>,
    /// TLS connections to other orderers.
    pub egress_tls_connection_count: IntGauge,
    /// Streams from other orderers.
    pub ingress_stream_count: IntGauge,
    /// Messages dropped because a queue was full. Labels: host, channel.
    pub msg_dropped_count: Counters<2>,
    /// How long sending took. Labels: host, channel.
    pub msg_send_time: Timings<2>,
}

/// Of consensus. Labels of all: channel.
#[derive(Clone)]
pub struct Etcdraft {
    /// Members that take part at present.
    pub active_nodes: Gauges<1>,
    /// Members.
    pub cluster_size: Gauges<1>,
    /// Number of the last block written.
    pub committed_block_number: Gauges<1>,
    /// Config messages taken.
    pub config_proposals_received: Counters<1>,
    /// How long making the log durable took.
    pub data_persist_duration: Timings<1>,
    /// 1 on the leader, 0 elsewhere.
    pub is_leader: Gauges<1>,
    /// How often the leader changed.
    pub leader_changes: Counters<1>,
    /// Ordinary messages taken.
    pub normal_proposals_received: Counters<1>,
    /// Messages that could not be proposed.
    pub proposal_failures: Counters<1>,
    /// Number of the block at the last snapshot.
    pub snapshot_block_number: Gauges<1>,
}

/// Of the Deliver service.
#[derive(Clone)]
pub struct Deliver {
    /// Blocks sent. Labels: channel, filtered (`false`), data_type (`block`).
    pub blocks_sent: Counters<3>,
    /// Requests answered. Labels: channel, filtered, data_type, success (`true`, `false`).
    pub requests_completed: Counters<4>,
    /// Requests received. Labels: channel, filtered, data_type.
    pub requests_received: Counters<3>,
    /// Streams that ended.
    pub streams_closed: IntCounter,
    /// Streams that began.
    pub streams_opened: IntCounter,
}

/// Of gRPC connections and calls.
#[derive(Clone)]
pub struct Grpc {
    /// Connections that ended.
    pub conn_closed: IntCounter,
    /// Connections that began.
    pub conn_opened: IntCounter,
    /// Messages received. Labels: service (`orderer_AtomicBroadcast`), method.
    pub stream_messages_received: Counters<2>,
    /// Messages sent. Labels: service, method.
    pub stream_messages_sent: Counters<2>,
    /// How long a stream lasted. Labels: service, method, code (`OK`, `Canceled`).
    pub stream_request_duration: Timings<3>,
    /// Streams that ended. Labels: service, method, code.
    pub stream_requests_completed: Counters<3>,
    /// Streams that began. Labels: service, method.
    pub stream_requests_received: Counters<2>,
    /// How long a call took. Labels: service, method, code.
    pub unary_request_duration: Timings<3>,
    /// Calls that ended. Labels: service, method, code.
    pub unary_requests_completed: Counters<3>,
    /// Calls that began. Labels: service, method.
    pub unary_requests_received: Counters<2>,
}

/// Of the block stores. Labels of all: channel.
#[derive(Clone)]
pub struct Ledger {
    /// Number of blocks.
    pub blockchain_height: Gauges<1>,
    /// How long writing a block took.
    pub blockstorage_commit_time: Timings<1>,
}

/// Of the channel participation API. Labels of all: channel.
#[derive(Clone)]
pub struct Participation {
    /// See [`ConsensusRelation::gauge`](crate::admin::ConsensusRelation::gauge).
    pub consensus_relation: Gauges<1>,
    /// See [`ChannelStatus::gauge`](crate::admin::ChannelStatus::gauge).
    pub status: Gauges<1>,
}

/// Of the fetching of blocks that are missing here. Labels of all: channel; shown while blocks are missing.
#[derive(Clone)]
pub struct Replication {
    /// How many blocks are to be here.
    pub target_height: Gauges<1>,
    /// How many came per second lately.
    pub blocks_per_second: Gauges<1>,
    /// In how many seconds the target will be reached at this rate; -1 while nothing comes.
    pub seconds_left: Gauges<1>,
}

impl Replication {
    /// Shows how far a channel is, or that nothing is missing.
    pub(crate) fn show(&self, channel: &str, progress: Option<&Progress>) {
        let label = [channel];
        let Some(progress) = progress else {
            for family in [
                &self.target_height,
                &self.blocks_per_second,
                &self.seconds_left,
            ] {
                family.forget(label);
            }
            return;
        };
        let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.target_height.with(label).set(number(progress.target));
        self.blocks_per_second
            .with(label)
            .set(number(progress.blocks_per_second));
        self.seconds_left
            .with(label)
            .set(progress.seconds_left.map_or(-1, number));
    }
}

/// Of the durable log, under etcd's names; not sent to StatsD, as in Fabric.
#[derive(Clone)]
pub struct Etcd {
    /// How long an fsync of the log took, in seconds.
    pub wal_fsync: Histogram,
    /// Bytes written to the log.
    pub wal_write_bytes: IntGauge,
    /// How long a write to the log took, in seconds.
    pub wal_write: Histogram,
    /// How long an fsync of a snapshot took, in seconds.
    pub snap_fsync: Histogram,
    /// How long encoding a snapshot took, in seconds.
    pub snap_marshalling: Histogram,
    /// How long saving a snapshot took, in seconds.
    pub snap_save_total: Histogram,
}

/// Makes families and notes their StatsD names.
struct Maker {
    registry: Metrics,
    names: BTreeMap<String, StatsdName>,
    samples: Option<Arc<Samples>>,
}

impl Maker {
    fn name<const N: usize>(&mut self, name: &'static str, labels: [&'static str; N]) -> String {
        let prometheus = name.replace('.', "_");
        self.names.insert(
            prometheus.clone(),
            StatsdName {
                name,
                labels: labels.to_vec(),
            },
        );
        prometheus
    }

    fn counters<const N: usize>(
        &mut self,
        name: &'static str,
        help: &str,
        labels: [&'static str; N],
    ) -> Counters<N> {
        let prometheus = self.name(name, labels);
        Counters(self.registry.counter_family(&prometheus, help, &labels))
    }

    fn counter(&mut self, name: &'static str, help: &str) -> IntCounter {
        self.counters(name, help, []).with([])
    }

    fn gauges<const N: usize>(
        &mut self,
        name: &'static str,
        help: &str,
        labels: [&'static str; N],
    ) -> Gauges<N> {
        let prometheus = self.name(name, labels);
        Gauges(self.registry.gauge_family(&prometheus, help, &labels))
    }

    fn gauge(&mut self, name: &'static str, help: &str) -> IntGauge {
        self.gauges(name, help, []).with([])
    }

    fn timings<const N: usize>(
        &mut self,
        name: &'static str,
        help: &str,
        buckets: &[f64],
        labels: [&'static str; N],
    ) -> Timings<N> {
        let prometheus = self.name(name, labels);
        Timings::new(
            self.registry
                .histogram_family(&prometheus, help, buckets, &labels),
            name,
            self.samples.clone(),
        )
    }
}

impl OrdererMetrics {
    /// All metrics, in `registry`. With `statsd`, single durations are kept for [`statsd`](crate::statsd) until it has
    /// sent them; whoever asks for that must run it.
    pub fn new(registry: &Metrics, statsd: bool) -> Self {
        let mut make = Maker {
            registry: registry.clone(),
            names: BTreeMap::new(),
            samples: statsd.then(Arc::default),
        };
        let blockcutter = Blockcutter {
            block_fill_duration: make.timings(
                "blockcutter.block_fill_duration",
                "The time from first transaction enqueuing to the block being cut in seconds.",
                SECONDS,
                ["channel"],
            ),
        };
        let broadcast = broadcast(&mut make);
        let cluster = cluster(&mut make);
        let etcdraft = etcdraft(&mut make);
        let deliver = deliver(&mut make);
        let grpc = grpc(&mut make);
        let ledger = Ledger {
            blockchain_height: make.gauges(
                "ledger.blockchain_height",
                "Height of the chain in blocks.",
                ["channel"],
            ),
            blockstorage_commit_time: make.timings(
                "ledger.blockstorage_commit_time",
                "Time taken in seconds for committing the block to storage.",
                LEDGER_SECONDS,
                ["channel"],
            ),
        };
        let participation = Participation {
            consensus_relation: make.gauges(
                "participation.consensus_relation",
                "The channel participation consensus relation of the node: 0 if other, 1 if consenter, 2 if follower, 3 if config-tracker.",
                ["channel"],
            ),
            status: make.gauges(
                "participation.status",
                "The channel participation status of the node: 0 if inactive, 1 if active, 2 if onboarding, 3 if failed.",
                ["channel"],
            ),
        };
        let replication = Replication {
            target_height: make.gauges(
                "quorate.replication.target_height",
                "Number of blocks that are to be fetched from other orderers, those that are here included.",
                ["channel"],
            ),
            blocks_per_second: make.gauges(
                "quorate.replication.blocks_per_second",
                "Blocks fetched per second in the last seconds.",
                ["channel"],
            ),
            seconds_left: make.gauges(
                "quorate.replication.seconds_left",
                "Seconds until all blocks are here at this rate; -1 while nothing comes.",
                ["channel"],
            ),
        };
        // Counted where log lines are written; here so that StatsD knows their names.
        for name in ["logging.entries_checked", "logging.entries_written"] {
            make.name(name, ["level"]);
        }
        let etcd = etcd(registry);
        registry.register(Box::new(process::Collected::new()));
        // Prometheus's handler for Go counts its own answers.
        let answers = registry.counter_family(
            "promhttp_metric_handler_requests_total",
            "Total number of scrapes by HTTP status code.",
            &["code"],
        );
        for code in ["200", "500", "503"] {
            answers.with_label_values(&[code]);
        }
        Self {
            blockcutter,
            broadcast,
            cluster,
            etcdraft,
            deliver,
            grpc,
            ledger,
            participation,
            replication,
            etcd,
            registry: make.registry,
            names: Arc::new({
                make.names.insert(
                    "fabric_version".to_owned(),
                    StatsdName {
                        name: "fabric_version",
                        labels: vec!["version"],
                    },
                );
                make.names
            }),
            samples: make.samples,
        }
    }

    /// Shows `version` as `fabric_version`.
    pub fn show_version(&self, version: &str) {
        self.registry
            .gauge_family(
                "fabric_version",
                "The active version of Fabric.",
                &["version"],
            )
            .with_label_values(&[version])
            .set(1);
    }

    /// Counts an answer of `/metrics`.
    pub(crate) fn count_scrape(&self) {
        self.registry
            .counter_family(
                "promhttp_metric_handler_requests_total",
                "Total number of scrapes by HTTP status code.",
                &["code"],
            )
            .with_label_values(&["200"])
            .inc();
    }

    /// The registry behind.
    pub fn registry(&self) -> &Metrics {
        &self.registry
    }

    /// Everything in Prometheus's text format.
    pub fn render(&self) -> String {
        self.registry.render()
    }

    pub(crate) fn gather(&self) -> Vec<MetricFamily> {
        self.registry.gather()
    }

    pub(crate) fn statsd_name(&self, prometheus: &str) -> Option<&StatsdName> {
        self.names.get(prometheus)
    }

    pub(crate) fn take_samples(&self) -> Vec<Sampled> {
        self.samples
            .as_ref()
            .map(|samples| samples.take())
            .unwrap_or_default()
    }
}

fn broadcast(make: &mut Maker) -> Broadcast {
    let labels = ["channel", "type", "status"];
    Broadcast {
        enqueue_duration: make.timings(
            "broadcast.enqueue_duration",
            "The time to enqueue a transaction in seconds.",
            SECONDS,
            labels,
        ),
        processed_count: make.counters(
            "broadcast.processed_count",
            "The number of transactions processed.",
            labels,
        ),
        validate_duration: make.timings(
            "broadcast.validate_duration",
            "The time to validate a transaction in seconds.",
            SECONDS,
            labels,
        ),
    }
}

fn cluster(make: &mut Maker) -> Cluster {
    let queue = ["host", "msg_type", "channel"];
    Cluster {
        egress_queue_capacity: make.gauges(
            "cluster.comm.egress_queue_capacity",
            "Capacity of the egress queue.",
            queue,
        ),
        egress_queue_length: make.gauges(
            "cluster.comm.egress_queue_length",
            "Length of the egress queue.",
            queue,
        ),
        egress_queue_workers: make.gauges(
            "cluster.comm.egress_queue_workers",
            "Count of egress queue workers.",
            ["channel"],
        ),
        egress_stream_count: make.gauges(
            "cluster.comm.egress_stream_count",
            "Count of streams to other nodes.",
            ["channel"],
        ),
        egress_tls_connection_count: make.gauge(
            "cluster.comm.egress_tls_connection_count",
            "Count of TLS connections to other nodes.",
        ),
        ingress_stream_count: make.gauge(
            "cluster.comm.ingress_stream_count",
            "Count of streams from other nodes.",
        ),
        msg_dropped_count: make.counters(
            "cluster.comm.msg_dropped_count",
            "Count of messages dropped.",
            ["host", "channel"],
        ),
        msg_send_time: make.timings(
            "cluster.comm.msg_send_time",
            "The time it takes to send a message in seconds.",
            SECONDS,
            ["host", "channel"],
        ),
    }
}

fn etcdraft(make: &mut Maker) -> Etcdraft {
    let channel = ["channel"];
    Etcdraft {
        active_nodes: make.gauges(
            "consensus.etcdraft.active_nodes",
            "Number of active nodes in this channel.",
            channel,
        ),
        cluster_size: make.gauges(
            "consensus.etcdraft.cluster_size",
            "Number of nodes in this channel.",
            channel,
        ),
        committed_block_number: make.gauges(
            "consensus.etcdraft.committed_block_number",
            "The block number of the latest block committed.",
            channel,
        ),
        config_proposals_received: make.counters(
            "consensus.etcdraft.config_proposals_received",
            "The total number of proposals received for config type transactions.",
            channel,
        ),
        data_persist_duration: make.timings(
            "consensus.etcdraft.data_persist_duration",
            "The time taken for etcd/raft data to be persisted in storage (in seconds).",
            SECONDS,
            channel,
        ),
        is_leader: make.gauges(
            "consensus.etcdraft.is_leader",
            "The leadership status of the current node: 1 if it is the leader else 0.",
            channel,
        ),
        leader_changes: make.counters(
            "consensus.etcdraft.leader_changes",
            "The number of leader changes since process start.",
            channel,
        ),
        normal_proposals_received: make.counters(
            "consensus.etcdraft.normal_proposals_received",
            "The total number of proposals received for normal type transactions.",
            channel,
        ),
        proposal_failures: make.counters(
            "consensus.etcdraft.proposal_failures",
            "The number of proposal failures.",
            channel,
        ),
        snapshot_block_number: make.gauges(
            "consensus.etcdraft.snapshot_block_number",
            "The block number of the latest snapshot.",
            channel,
        ),
    }
}

fn deliver(make: &mut Maker) -> Deliver {
    let labels = ["channel", "filtered", "data_type"];
    Deliver {
        blocks_sent: make.counters(
            "deliver.blocks_sent",
            "The number of blocks sent by the deliver service.",
            labels,
        ),
        requests_completed: make.counters(
            "deliver.requests_completed",
            "The number of deliver requests that have been completed.",
            ["channel", "filtered", "data_type", "success"],
        ),
        requests_received: make.counters(
            "deliver.requests_received",
            "The number of deliver requests that have been received.",
            labels,
        ),
        streams_closed: make.counter(
            "deliver.streams_closed",
            "The number of GRPC streams that have been closed for the deliver service.",
        ),
        streams_opened: make.counter(
            "deliver.streams_opened",
            "The number of GRPC streams that have been opened for the deliver service.",
        ),
    }
}

fn grpc(make: &mut Maker) -> Grpc {
    let called = ["service", "method"];
    let ended = ["service", "method", "code"];
    Grpc {
        conn_closed: make.counter(
            "grpc.comm.conn_closed",
            "gRPC connections closed. Open minus closed is the active number of connections.",
        ),
        conn_opened: make.counter(
            "grpc.comm.conn_opened",
            "gRPC connections opened. Open minus closed is the active number of connections.",
        ),
        stream_messages_received: make.counters(
            "grpc.server.stream_messages_received",
            "The number of stream messages received.",
            called,
        ),
        stream_messages_sent: make.counters(
            "grpc.server.stream_messages_sent",
            "The number of stream messages sent.",
            called,
        ),
        stream_request_duration: make.timings(
            "grpc.server.stream_request_duration",
            "The time to complete a stream request.",
            SECONDS,
            ended,
        ),
        stream_requests_completed: make.counters(
            "grpc.server.stream_requests_completed",
            "The number of stream requests completed.",
            ended,
        ),
        stream_requests_received: make.counters(
            "grpc.server.stream_requests_received",
            "The number of stream requests received.",
            called,
        ),
        unary_request_duration: make.timings(
            "grpc.server.unary_request_duration",
            "The time to complete a unary request.",
            SECONDS,
            ended,
        ),
        unary_requests_completed: make.counters(
            "grpc.server.unary_requests_completed",
            "The number of unary requests completed.",
            ended,
        ),
        unary_requests_received: make.counters(
            "grpc.server.unary_requests_received",
            "The number of unary requests received.",
            called,
        ),
    }
}

fn etcd(registry: &Metrics) -> Etcd {
    // What etcd has besides and we do not: its database's snapshots.
    for (name, buckets) in [
        ("etcd_snap_db_fsync_duration_seconds", ETCD_SECONDS),
        (
            "etcd_snap_db_save_total_duration_seconds",
            ETCD_DATABASE_SECONDS,
        ),
    ] {
        registry.histogram(
            name,
            "Stays zero: there are no database snapshots.",
            buckets,
        );
    }
    Etcd {
        wal_fsync: registry.histogram(
            "etcd_disk_wal_fsync_duration_seconds",
            "The latency distributions of fsync called by the log.",
            ETCD_SECONDS,
        ),
        wal_write_bytes: registry.gauge(
            "etcd_disk_wal_write_bytes_total",
            "Total number of bytes written in the log.",
        ),
        wal_write: registry.histogram(
            "etcd_disk_wal_write_duration_seconds",
            "The latency distributions of writes to the log.",
            ETCD_SECONDS,
        ),
        snap_fsync: registry.histogram(
            "etcd_snap_fsync_duration_seconds",
            "The latency distributions of fsync called by snapshots.",
            ETCD_SECONDS,
        ),
        snap_marshalling: registry.histogram(
            "etcd_debugging_snap_save_marshalling_duration_seconds",
            "The marshalling cost distributions of saving a snapshot.",
            ETCD_SECONDS,
        ),
        snap_save_total: registry.histogram(
            "etcd_debugging_snap_save_total_duration_seconds",
            "The total latency distributions of saving a snapshot.",
            ETCD_SECONDS,
        ),
    }
}

#[cfg(test)]
mod tests;
