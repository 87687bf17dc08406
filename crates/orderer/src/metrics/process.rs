//! Metrics of the process, as Prometheus's client for Go shows them.
//!
//! `process_…` are what they say. Of `go_…`, tasks stand in for goroutines and resident anonymous memory for the heap;
//! what has no counterpart, above all everything about garbage collection, exists and is zero, because tools for Fabric
//! ask whether it exists.

use std::fs;

use prometheus::core::{Collector, Desc};
use prometheus::proto::{Counter, Gauge, Metric, MetricFamily, MetricType, Quantile, Summary};

/// What Linux counts processor time in, on every architecture that we run on.
const TICKS_PER_SECOND: f64 = 100.0;

/// The largest file of `/proc` looked at, in bytes.
const MAX_PROC_BYTES: usize = 256 * 1024;

/// A look at the process. What cannot be found out is zero.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Process {
    /// Processor time used, in seconds.
    pub cpu_seconds: f64,
    /// When it was started, in seconds since 1970.
    pub start_seconds: f64,
    /// File descriptors open.
    pub open_fds: f64,
    /// File descriptors allowed.
    pub max_fds: f64,
    /// Memory in the machine's RAM, in bytes.
    pub resident_bytes: f64,
    /// That part of it which is not a file's.
    pub anonymous_bytes: f64,
    /// Addresses used, in bytes.
    pub virtual_bytes: f64,
    /// Addresses allowed, in bytes.
    pub max_virtual_bytes: f64,
    /// Memory of the stack, in bytes.
    pub stack_bytes: f64,
    /// Threads.
    pub threads: f64,
    /// Tasks that have not ended.
    pub tasks: f64,
    /// Bytes received by all processes of our network namespace.
    pub network_received: f64,
    /// Bytes sent by all processes of our network namespace.
    pub network_sent: f64,
}

impl Process {
    /// The process of this moment.
    pub fn now() -> Self {
        let stat = proc_file("/proc/self/stat");
        // The name of the program comes second, in parentheses, and may contain anything.
        let stat: Vec<f64> = stat
            .rsplit_once(')')
            .map(|(_, rest)| rest)
            .unwrap_or_default()
            .split_whitespace()
            .skip(1)
            .map(|field| field.parse().unwrap_or_default())
            .collect();
        // The first of these is the fourth of the manual page.
        let field = |number: usize| stat.get(number - 4).copied().unwrap_or_default();
        let status = proc_file("/proc/self/status");
        let kilobytes = |name: &str| number_behind(&status, name) * 1024.0;
        let limits = proc_file("/proc/self/limits");
        let boot_seconds = number_behind(&proc_file("/proc/stat"), "btime");
        let (network_received, network_sent) = network(&proc_file("/proc/self/net/netstat"));
        Self {
            cpu_seconds: (field(14) + field(15)) / TICKS_PER_SECOND,
            start_seconds: boot_seconds + field(22) / TICKS_PER_SECOND,
            open_fds: fs::read_dir("/proc/self/fd").map_or(0.0, |entries| entries.count() as f64),
            max_fds: limit(&limits, "Max open files"),
            resident_bytes: kilobytes("VmRSS:"),
            anonymous_bytes: kilobytes("RssAnon:"),
            virtual_bytes: field(23),
            max_virtual_bytes: limit(&limits, "Max address space"),
            stack_bytes: kilobytes("VmStk:"),
            threads: field(20),
            tasks: tokio::runtime::Handle::try_current()
                .map_or(0.0, |handle| handle.metrics().num_alive_tasks() as f64),
            network_received,
            network_sent,
        }
    }

    /// What Fabric sends to StatsD about Go's runtime.
    pub(crate) fn go_gauges(&self) -> [(&'static str, f64); 27] {
        [
            ("go.cgo_calls", 0.0),
            ("go.goroutine_count", self.tasks),
            ("go.threads_created", self.threads),
            ("go.mem.heap_alloc_bytes", self.anonymous_bytes),
            ("go.mem.heap_total_alloc_bytes", 0.0),
            ("go.mem.heap_malloc_count", 0.0),
            ("go.mem.heap_free_count", 0.0),
            ("go.mem.heap_sys_bytes", self.anonymous_bytes),
            ("go.mem.heap_idle_bytes", 0.0),
            ("go.mem.heap_inuse_bytes", self.anonymous_bytes),
            ("go.mem.heap_released_bytes", 0.0),
            ("go.mem.heap_objects", 0.0),
            ("go.mem.stack_inuse_bytes", self.stack_bytes),
            ("go.mem.stack_sys_bytes", self.stack_bytes),
            ("go.mem.mspan_inuse_bytes", 0.0),
            ("go.mem.mspan_sys_bytes", 0.0),
            ("go.mem.mcache_inuse_bytes", 0.0),
            ("go.mem.mcache_sys_bytes", 0.0),
            ("go.mem.buckethash_sys_bytes", 0.0),
            ("go.mem.gc_sys_bytes", 0.0),
            ("go.mem.other_sys_bytes", 0.0),
            ("go.mem.gc_next_bytes", 0.0),
            ("go.mem.gc_last_epoch_nanotime", 0.0),
            ("go.mem.gc_pause_total_ns", 0.0),
            ("go.mem.gc_pause_last_ns", 0.0),
            ("go.mem.gc_completed_count", 0.0),
            ("go.mem.gc_forced_count", 0.0),
        ]
    }

    fn gauges(&self) -> [(&'static str, f64); 31] {
        [
            ("go_gc_gogc_percent", 0.0),
            ("go_gc_gomemlimit_bytes", 0.0),
            ("go_goroutines", self.tasks),
            ("go_memstats_alloc_bytes", self.anonymous_bytes),
            ("go_memstats_buck_hash_sys_bytes", 0.0),
            ("go_memstats_gc_sys_bytes", 0.0),
            ("go_memstats_heap_alloc_bytes", self.anonymous_bytes),
            ("go_memstats_heap_idle_bytes", 0.0),
            ("go_memstats_heap_inuse_bytes", self.anonymous_bytes),
            ("go_memstats_heap_objects", 0.0),
            ("go_memstats_heap_released_bytes", 0.0),
            ("go_memstats_heap_sys_bytes", self.anonymous_bytes),
            ("go_memstats_last_gc_time_seconds", 0.0),
            ("go_memstats_mcache_inuse_bytes", 0.0),
            ("go_memstats_mcache_sys_bytes", 0.0),
            ("go_memstats_mspan_inuse_bytes", 0.0),
            ("go_memstats_mspan_sys_bytes", 0.0),
            ("go_memstats_next_gc_bytes", 0.0),
            ("go_memstats_other_sys_bytes", 0.0),
            ("go_memstats_stack_inuse_bytes", self.stack_bytes),
            ("go_memstats_stack_sys_bytes", self.stack_bytes),
            ("go_memstats_sys_bytes", self.resident_bytes),
            (
                "go_sched_gomaxprocs_threads",
                std::thread::available_parallelism().map_or(1.0, |count| count.get() as f64),
            ),
            ("go_threads", self.threads),
            ("process_max_fds", self.max_fds),
            ("process_open_fds", self.open_fds),
            ("process_resident_memory_bytes", self.resident_bytes),
            ("process_start_time_seconds", self.start_seconds),
            ("process_virtual_memory_bytes", self.virtual_bytes),
            ("process_virtual_memory_max_bytes", self.max_virtual_bytes),
            // Asked for by one request at a time, namely the one that shows it.
            ("promhttp_metric_handler_requests_in_flight", 1.0),
        ]
    }

    fn counters(&self) -> [(&'static str, f64); 6] {
        [
            ("go_memstats_alloc_bytes_total", 0.0),
            ("go_memstats_frees_total", 0.0),
            ("go_memstats_mallocs_total", 0.0),
            ("process_cpu_seconds_total", self.cpu_seconds),
            ("process_network_receive_bytes_total", self.network_received),
            ("process_network_transmit_bytes_total", self.network_sent),
        ]
    }
}

fn proc_file(path: &str) -> String {
    let mut bytes = fs::read(path).unwrap_or_default();
    bytes.truncate(MAX_PROC_BYTES);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The number behind `name` at the beginning of a line.
fn number_behind(text: &str, name: &str) -> f64 {
    text.lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or_default()
}

/// A soft limit. What is not limited is shown as the largest 64-bit number, as Go's client does.
fn limit(text: &str, name: &str) -> f64 {
    let soft = text
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.split_whitespace().next())
        .unwrap_or_default();
    match soft {
        "unlimited" => u64::MAX as f64,
        number => number.parse().unwrap_or_default(),
    }
}

/// Bytes received and sent: pairs of lines, the first of names and the second of numbers.
fn network(text: &str) -> (f64, f64) {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("IpExt:"));
    let (Some(names), Some(numbers)) = (lines.next(), lines.next()) else {
        return (0.0, 0.0);
    };
    let of = |wanted: &str| {
        names
            .split_whitespace()
            .zip(numbers.split_whitespace())
            .find(|(name, _)| *name == wanted)
            .and_then(|(_, number)| number.parse().ok())
            .unwrap_or_default()
    };
    (of("InOctets"), of("OutOctets"))
}

/// Asks for all of it whenever somebody reads the metrics.
pub(super) struct Collected {
    described: Vec<Desc>,
}

impl Collected {
    pub(super) fn new() -> Self {
        Self {
            described: families(&Process::default())
                .iter()
                .map(|family| {
                    Desc::new(
                        family.name().to_owned(),
                        family.help().to_owned(),
                        Vec::new(),
                        std::collections::HashMap::new(),
                    )
                    .expect("the names are written in our own source")
                })
                .collect(),
        }
    }
}

impl Collector for Collected {
    fn desc(&self) -> Vec<&Desc> {
        self.described.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        families(&Process::now())
    }
}

fn families(process: &Process) -> Vec<MetricFamily> {
    let mut families = Vec::new();
    for (name, value) in process.gauges() {
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        families.push(family(name, MetricType::GAUGE, Metric::from_gauge(gauge)));
    }
    for (name, value) in process.counters() {
        let mut counter = Counter::default();
        counter.set_value(value);
        let mut metric = Metric::default();
        metric.set_counter(counter);
        families.push(family(name, MetricType::COUNTER, metric));
    }
    let mut summary = Summary::default();
    summary.set_quantile(
        [0.0, 0.25, 0.5, 0.75, 1.0]
            .into_iter()
            .map(|quantile| {
                let mut shown = Quantile::default();
                shown.set_quantile(quantile);
                shown
            })
            .collect(),
    );
    let mut metric = Metric::default();
    metric.set_summary(summary);
    families.push(family(
        "go_gc_duration_seconds",
        MetricType::SUMMARY,
        metric,
    ));
    let mut info = Gauge::default();
    info.set_value(1.0);
    let mut metric = Metric::from_gauge(info);
    let mut label = prometheus::proto::LabelPair::default();
    label.set_name("version".to_owned());
    label.set_value("none".to_owned());
    metric.set_label(vec![label]);
    families.push(family("go_info", MetricType::GAUGE, metric));
    families
}

fn family(name: &str, kind: MetricType, metric: Metric) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    let help = if name.starts_with("go_") {
        "Stands in for the metric of Go's runtime; zero where there is no counterpart."
    } else {
        "Of the process."
    };
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(vec![metric]);
    family
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_seen() {
        let process = Process::now();
        assert!(process.resident_bytes > 1e6, "{process:?}");
        assert!(
            process.virtual_bytes >= process.resident_bytes,
            "{process:?}"
        );
        assert!(process.threads >= 1.0, "{process:?}");
        assert!(
            process.open_fds >= 3.0 && process.max_fds >= process.open_fds,
            "{process:?}"
        );
        // Later than 2020, and not in the future by more than clocks differ.
        assert!(process.start_seconds > 1.577e9, "{process:?}");
    }

    #[test]
    fn whatever_proc_says_is_survived() {
        assert_eq!(network("IpExt: InOctets\nIpExt:\n"), (0.0, 0.0));
        assert_eq!(
            network("TcpExt: A\nTcpExt: 1\nIpExt: X InOctets OutOctets\nIpExt: 9 5 7\n"),
            (5.0, 7.0)
        );
        assert_eq!(
            limit("Max open files   unlimited  x", "Max open files"),
            u64::MAX as f64
        );
        assert_eq!(number_behind("VmRSS:", "VmRSS:"), 0.0);
    }
}
