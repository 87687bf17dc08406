//! Metrics for StatsD, under Fabric's names.
//!
//! Every interval the numbers of [`OrdererMetrics`] are written as lines: what a counter has grown by
//! (`broadcast.processed_count.mychannel.MESSAGE.SUCCESS:12.000000|c`), what a gauge is (`…|g`), and the durations
//! observed, in seconds although the line says `ms`, as Fabric has it. Labels follow the name, with `_` for what would
//! end a name. Of durations at most a fixed number is sent in one interval, marked with the share that it is
//! (`|ms|@0.25`). Where single durations are not kept, because they were put into a histogram and not into a
//! [`Timing`](crate::metrics::Timing), the buckets speak: one line for all that fell into the same one, with its middle.
//!
//! A server that cannot be reached costs the numbers of that interval and a line in the log, nothing else.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::time::Duration;

use prometheus::proto::{Histogram, MetricType};
use quorate_runtime::Tasks;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UdpSocket};

use crate::metrics::{OrdererMetrics, Process, Sampled};
use crate::options::{Statsd, StatsdNetwork};

/// The most bytes in one datagram: they fit into an Ethernet frame.
const MAX_DATAGRAM: usize = 1432;

/// How long a connection, and a write, may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Counters, and histograms, whose last value is remembered; of further ones nothing is sent.
const MAX_REMEMBERED: usize = 16 * 1024;

/// The shortest interval between two writes.
const MIN_INTERVAL: Duration = Duration::from_millis(100);

/// Sends `metrics` as `options` say until `tasks` stop, and once more then.
pub fn start(tasks: &Tasks, options: &Statsd, metrics: OrdererMetrics) {
    let (options, shutdown) = (options.clone(), tasks.shutdown().clone());
    tasks.spawn("statsd", async move {
        let mut lines = Lines::new(&options.prefix, metrics);
        let mut output = Output::new(options.network, options.address.clone());
        let mut ticks = tokio::time::interval(options.write_interval.max(MIN_INTERVAL));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // The first tick comes at once.
        ticks.tick().await;
        let mut reachable = true;
        loop {
            let stopping = tokio::select! {
                _ = ticks.tick() => false,
                () = shutdown.requested() => true,
            };
            let sent = output.send(&lines.take()).await;
            match sent {
                Ok(()) => reachable = true,
                // Said once, not every interval.
                Err(error) if reachable => {
                    tracing::warn!(
                        target: "orderer.operations.statsd",
                        address = %options.address,
                        %error,
                        "metrics could not be sent to the StatsD server; trying again every interval"
                    );
                    reachable = false;
                }
                Err(_) => {}
            }
            if stopping {
                return;
            }
        }
    });
}

/// Makes the lines of one interval after the other.
struct Lines {
    prefix: String,
    metrics: OrdererMetrics,
    counted: BTreeMap<String, f64>,
    /// The sum of each histogram, and how many there were up to each bound and in all.
    observed: BTreeMap<String, (f64, Vec<u64>)>,
}

impl Lines {
    fn new(prefix: &str, metrics: OrdererMetrics) -> Self {
        let prefix = if prefix.is_empty() || prefix.ends_with('.') {
            prefix.to_owned()
        } else {
            format!("{prefix}.")
        };
        Self {
            prefix,
            metrics,
            counted: BTreeMap::new(),
            observed: BTreeMap::new(),
        }
    }

    /// The lines for what has happened since the last call.
    fn take(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut sampled: BTreeMap<String, Sampled> = self
            .metrics
            .take_samples()
            .into_iter()
            .map(|sampled| {
                let labels = sampled.labels.iter().map(String::as_str);
                (full_name(&self.prefix, sampled.name, labels), sampled)
            })
            .collect();
        for family in self.metrics.gather() {
            let Some(statsd) = self.metrics.statsd_name(family.name()) else {
                continue;
            };
            for metric in family.get_metric() {
                let labels = statsd.labels.iter().map(|label| {
                    metric
                        .get_label()
                        .iter()
                        .find(|pair| pair.name() == *label)
                        .map_or("unknown", |pair| pair.value())
                });
                let name = full_name(&self.prefix, statsd.name, labels);
                match family.get_field_type() {
                    MetricType::COUNTER => {
                        let value = metric.get_counter().get_value();
                        let room = self.counted.len() < MAX_REMEMBERED;
                        let before = match self.counted.get_mut(&name) {
                            Some(before) => std::mem::replace(before, value),
                            None if room => {
                                self.counted.insert(name.clone(), value);
                                0.0
                            }
                            None => continue,
                        };
                        if value > before {
                            lines.push(format!("{name}:{:.6}|c\n", value - before));
                        }
                    }
                    MetricType::GAUGE => {
                        let value = metric.get_gauge().get_value();
                        lines.push(format!("{name}:{value:.6}|g\n"));
                    }
                    MetricType::HISTOGRAM => {
                        let histogram = metric.get_histogram();
                        let single = sampled.remove(&name);
                        durations(&mut self.observed, &name, histogram, single, &mut lines);
                    }
                    _ => {}
                }
            }
        }
        for (name, value) in Process::now().go_gauges() {
            lines.push(format!("{}{name}:{value:.6}|g\n", self.prefix));
        }
        lines
    }
}

/// Writes what a histogram has got since the last time: the single durations if they were kept, else by bucket.
fn durations(
    observed: &mut BTreeMap<String, (f64, Vec<u64>)>,
    name: &str,
    histogram: &Histogram,
    single: Option<Sampled>,
    lines: &mut Vec<String>,
) {
    let sum = histogram.get_sample_sum();
    let counts: Vec<u64> = histogram
        .get_bucket()
        .iter()
        .map(|bucket| bucket.cumulative_count())
        .chain([histogram.get_sample_count()])
        .collect();
    let room = observed.len() < MAX_REMEMBERED;
    let (sum_before, before) = match observed.get_mut(name) {
        Some(known) => std::mem::replace(known, (sum, counts.clone())),
        None if room => {
            let nothing = (0.0, vec![0; counts.len()]);
            observed.insert(name.to_owned(), (sum, counts.clone()));
            nothing
        }
        None => return,
    };
    let mut write = |value: f64, share: f64| {
        let share = if share < 1.0 {
            format!("|@{share:.6}")
        } else {
            String::new()
        };
        lines.push(format!("{name}:{value:.6}|ms{share}\n"));
    };
    if let Some(single) = single {
        let share = single.values.len() as f64 / single.seen as f64;
        for value in single.values {
            write(value, share);
        }
        return;
    }
    let new = |place: usize| counts[place].saturating_sub(before.get(place).copied().unwrap_or(0));
    if new(counts.len() - 1) == 1 {
        return write(sum - sum_before, 1.0);
    }
    let (mut lower, mut below) = (0.0, 0);
    for place in 0..counts.len() {
        // The last one has no bound of its own.
        let upper = histogram
            .get_bucket()
            .get(place)
            .map(|bucket| bucket.upper_bound())
            .filter(|bound| bound.is_finite())
            .unwrap_or(lower);
        let within = new(place).saturating_sub(below);
        if within > 0 {
            write((lower + upper) / 2.0, 1.0 / within as f64);
        }
        (lower, below) = (upper, new(place));
    }
}

fn full_name<'a>(prefix: &str, name: &str, labels: impl Iterator<Item = &'a str>) -> String {
    let mut full = format!("{prefix}{name}");
    for label in labels {
        full.push('.');
        for character in label.chars() {
            let harmful = matches!(character, '.' | '|' | ':') || character.is_whitespace();
            // Writing to a string cannot fail.
            let _ = full.write_char(if harmful { '_' } else { character });
        }
    }
    full
}

/// The way to the server.
struct Output {
    network: StatsdNetwork,
    address: String,
    stream: Option<TcpStream>,
}

impl Output {
    fn new(network: StatsdNetwork, address: String) -> Self {
        Self {
            network,
            address,
            stream: None,
        }
    }

    async fn send(&mut self, lines: &[String]) -> io::Result<()> {
        match self.network {
            StatsdNetwork::Udp => self.send_datagrams(lines).await,
            StatsdNetwork::Tcp => {
                let sent = tokio::time::timeout(PATIENCE * 2, self.send_stream(lines)).await;
                let sent = sent.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
                if sent.is_err() {
                    // A broken line must not be continued.
                    self.stream = None;
                }
                sent
            }
        }
    }

    async fn send_datagrams(&self, lines: &[String]) -> io::Result<()> {
        // The address is looked up every time: names move.
        let server = tokio::net::lookup_host(&self.address)
            .await?
            .next()
            .ok_or(io::ErrorKind::NotFound)?;
        let local = if server.is_ipv4() {
            "0.0.0.0:0"
        } else {
            "[::]:0"
        };
        let socket = UdpSocket::bind(local).await?;
        socket.connect(server).await?;
        let mut packet = String::new();
        for line in lines {
            if !packet.is_empty() && packet.len() + line.len() > MAX_DATAGRAM {
                socket.send(packet.as_bytes()).await?;
                packet.clear();
            }
            packet.push_str(line);
        }
        if !packet.is_empty() {
            socket.send(packet.as_bytes()).await?;
        }
        Ok(())
    }

    async fn send_stream(&mut self, lines: &[String]) -> io::Result<()> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            empty => empty.insert(TcpStream::connect(&self.address).await?),
        };
        stream.write_all(lines.concat().as_bytes()).await?;
        stream.flush().await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use quorate_runtime::Metrics;
    use tokio::io::AsyncBufReadExt;

    use super::*;
    use crate::metrics::MAX_SAMPLES;

    fn lines_of(lines: &mut Lines, part: &str) -> Vec<String> {
        lines
            .take()
            .into_iter()
            .filter(|line| line.contains(part))
            .collect()
    }

    #[test]
    fn names_and_values_are_those_of_fabric() {
        let metrics = OrdererMetrics::new(&Metrics::new(), true);
        let mut lines = Lines::new("ordererorg_orderer", metrics.clone());
        let processed = metrics
            .broadcast
            .processed_count
            .with(["c1", "MESSAGE", "SUCCESS"]);
        processed.inc_by(3);
        metrics
            .cluster
            .egress_queue_length
            .with(["127.0.0.1:21050", "consensus", "c1"])
            .set(2);
        metrics
            .grpc
            .stream_request_duration
            .with(["orderer_AtomicBroadcast", "Broadcast", "OK"])
            .observe(Duration::from_millis(250));
        metrics.ledger.blockchain_height.with(["c1"]).set(38);
        metrics.show_version("v2.5.16");
        let all = lines.take().concat();
        for line in [
            "ordererorg_orderer.broadcast.processed_count.c1.MESSAGE.SUCCESS:3.000000|c\n",
            "ordererorg_orderer.cluster.comm.egress_queue_length.127_0_0_1_21050.consensus.c1:2.000000|g\n",
            "ordererorg_orderer.grpc.server.stream_request_duration.orderer_AtomicBroadcast.Broadcast.OK:0.250000|ms\n",
            "ordererorg_orderer.ledger.blockchain_height.c1:38.000000|g\n",
            "ordererorg_orderer.go.mem.gc_completed_count:0.000000|g\n",
            "ordererorg_orderer.fabric_version.v2_5_16:1.000000|g\n",
        ] {
            assert!(all.contains(line), "{line}{all}");
        }
        assert!(!all.contains("etcd_"), "{all}");

        // Counters are sent as what was added, gauges as they are, durations once.
        processed.inc();
        assert_eq!(
            lines_of(&mut lines, "processed_count"),
            ["ordererorg_orderer.broadcast.processed_count.c1.MESSAGE.SUCCESS:1.000000|c\n"]
        );
        assert_eq!(lines_of(&mut lines, "processed_count").len(), 0);
        assert_eq!(lines_of(&mut lines, "blockchain_height").len(), 1);
        assert_eq!(lines_of(&mut lines, "request_duration").len(), 0);
    }

    #[test]
    fn many_durations_are_sampled() {
        let metrics = OrdererMetrics::new(&Metrics::new(), true);
        let timing = metrics.ledger.blockstorage_commit_time.with(["c"]);
        for _ in 0..4 * MAX_SAMPLES {
            timing.observe(Duration::from_millis(1));
        }
        let mut lines = Lines::new("", metrics);
        let sent = lines_of(&mut lines, "commit_time");
        assert_eq!(sent.len(), MAX_SAMPLES);
        assert!(
            sent.iter().all(|line| {
                line == "ledger.blockstorage_commit_time.c:0.001000|ms|@0.250000\n"
            })
        );
    }

    #[test]
    fn histograms_that_keep_no_single_durations_are_sent_by_their_buckets() {
        let registry = Metrics::new();
        let metrics = OrdererMetrics::new(&registry, true);
        let histogram = registry
            .histogram_family("ledger_blockstorage_commit_time", "", &[], &["channel"])
            .with_label_values(&["c"]);
        let mut lines = Lines::new("", metrics);
        let name = "ledger.blockstorage_commit_time.c";
        histogram.observe(0.0031);
        assert_eq!(
            lines_of(&mut lines, "commit_time"),
            [format!("{name}:0.003100|ms\n")]
        );
        assert_eq!(lines_of(&mut lines, "commit_time").len(), 0);
        for seconds in [0.012, 0.014, 0.011, 0.013, 0.03, 99.0] {
            histogram.observe(seconds);
        }
        assert_eq!(
            lines_of(&mut lines, "commit_time"),
            [
                format!("{name}:0.012500|ms|@0.250000\n"),
                format!("{name}:0.032500|ms\n"),
                format!("{name}:10.000000|ms\n"),
            ]
        );
    }

    #[tokio::test]
    async fn lines_arrive_by_udp_in_datagrams_of_bounded_size() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap().to_string();
        let mut output = Output::new(StatsdNetwork::Udp, address);
        let lines: Vec<String> = (0..500)
            .map(|n| format!("counter.{n}:1.000000|c\n"))
            .collect();
        output.send(&lines).await.unwrap();
        let mut received = String::new();
        while received.len() < lines.concat().len() {
            let mut packet = [0; 2 * MAX_DATAGRAM];
            let length = server.recv(&mut packet).await.unwrap();
            assert!(length <= MAX_DATAGRAM);
            received.push_str(std::str::from_utf8(&packet[..length]).unwrap());
        }
        assert_eq!(received, lines.concat());
    }

    #[tokio::test]
    async fn a_tcp_server_that_was_away_is_found_again() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let options = Statsd {
            network: StatsdNetwork::Tcp,
            address,
            write_interval: Duration::from_millis(100),
            prefix: "p".to_owned(),
        };
        let metrics = OrdererMetrics::new(&Metrics::new(), true);
        let tasks = Tasks::new("test");
        start(&tasks, &options, metrics);
        for _ in 0..2 {
            let (stream, _) = listener.accept().await.unwrap();
            let mut received = tokio::io::BufReader::new(stream).lines();
            while let Some(line) = received.next_line().await.unwrap() {
                if line.starts_with("p.go.mem.gc_completed_count:") {
                    break;
                }
            }
            // And the connection breaks.
        }
        tasks.shutdown().request("the test is over");
    }
}
