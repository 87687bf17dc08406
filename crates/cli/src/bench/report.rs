//! What a benchmark has found, for people and for machines.

use std::fmt::{self, Write as _};
use std::time::Duration;

use serde::Serialize;

use super::Look;
use super::load::Run;
use super::machine::Machine;
use super::processes::{Memory, OTHERS};

/// Everything about one run of `quorate bench node`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NodeReport {
    pub(super) machine: Machine,
    pub(super) settings: Settings,
    pub(super) idle: Vec<Memory>,
    pub(super) scenarios: Vec<ScenarioReport>,
    pub(super) loaded: Vec<Memory>,
    pub(super) balances: Balances,
}

/// How it was measured.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Settings {
    pub(super) release: &'static str,
    /// False for a build without optimisation, whose figures mean nothing.
    pub(super) optimised: bool,
    pub(super) database: &'static str,
    pub(super) in_flight: u16,
    pub(super) connections: u16,
    pub(super) warmup_seconds: u64,
    pub(super) seconds: u64,
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Settings    quorate {}{}, {} with durable commits, {} flows in flight over {} \
             connection(s), {} s after {} s of warm-up",
            self.release,
            if self.optimised {
                ""
            } else {
                " (WITHOUT OPTIMISATION)"
            },
            self.database,
            self.in_flight,
            self.connections,
            self.seconds,
            self.warmup_seconds
        )
    }
}

/// One scenario.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ScenarioReport {
    pub(super) flow: &'static str,
    pub(super) seconds: f64,
    /// Flows that ended in that time.
    pub(super) completed: usize,
    pub(super) failed: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) first_failure: Option<String>,
    pub(super) per_second: f64,
    pub(super) latency_millis: Latency,
    pub(super) cpu: Vec<Cpu>,
    pub(super) commits: Vec<NodeCommits>,
}

#[derive(Serialize)]
pub(super) struct Latency {
    p50: f64,
    p99: f64,
    max: f64,
}

/// CPU of one process in the time.
#[derive(Serialize)]
pub(super) struct Cpu {
    process: String,
    seconds: f64,
}

/// Database transactions of one node in the time.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NodeCommits {
    node: String,
    per_second: f64,
    /// Units of work that shared one.
    mean_units: f64,
    mean_millis: f64,
}

impl ScenarioReport {
    pub(super) fn new(flow: &'static str, run: Run<Look>) -> Self {
        let seconds = run.window.as_secs_f64();
        let cpu = run.after.cpu.iter().zip(&run.before.cpu);
        let meters = run.after.meters.iter().zip(&run.before.meters);
        let at = |part| millis(percentile(&run.latencies, part));
        Self {
            flow,
            seconds,
            completed: run.latencies.len(),
            failed: run.failed,
            first_failure: run.first_failure,
            per_second: run.latencies.len() as f64 / seconds,
            latency_millis: Latency {
                p50: at(0.50),
                p99: at(0.99),
                max: at(1.0),
            },
            cpu: cpu
                .map(|((process, after), (_, before))| Cpu {
                    process: process.clone(),
                    seconds: after - before,
                })
                .collect(),
            commits: meters
                .map(|((node, after), (_, before))| {
                    let commits = after.commits_since(before);
                    NodeCommits {
                        node: node.clone(),
                        per_second: commits.count / seconds,
                        mean_units: commits.units / commits.count.max(1.0),
                        mean_millis: 1000.0 * commits.seconds / commits.count.max(1.0),
                    }
                })
                .collect(),
        }
    }
}

impl fmt::Display for ScenarioReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Latency { p50, p99, max } = self.latency_millis;
        writeln!(f)?;
        writeln!(f, "{:<20} {:>8.1} per second", self.flow, self.per_second)?;
        writeln!(
            f,
            "  latency     p50 {p50:.1} ms, p99 {p99:.1} ms, max {max:.1} ms"
        )?;
        writeln!(
            f,
            "  flows       {} completed, {} failed",
            self.completed, self.failed
        )?;
        if let Some(failure) = &self.first_failure {
            writeln!(f, "              the first: {failure}")?;
        }
        let (others, ours): (Vec<&Cpu>, Vec<&Cpu>) =
            self.cpu.iter().partition(|cpu| cpu.process == OTHERS);
        let sum = |all: &[&Cpu]| all.iter().map(|cpu| cpu.seconds).sum::<f64>();
        let (used, elsewhere) = (sum(&ours), sum(&others).max(0.0));
        let mut line = String::new();
        for Cpu { process, seconds } in ours {
            // Writing to a String cannot fail.
            let _ = write!(line, "{process} {seconds:.1}, ");
        }
        write!(
            f,
            "  CPU s       {line}together {used:.1} in {:.1} s; others {elsewhere:.1}",
            self.seconds
        )?;
        for (index, commits) in self.commits.iter().enumerate() {
            let name = if index == 0 { "commits/s" } else { "" };
            write!(
                f,
                "\n  {name:<10}  {:<8} {:>6.1}, {:>5.1} units each, {:>6.2} ms each",
                commits.node, commits.per_second, commits.mean_units, commits.mean_millis
            )?;
        }
        Ok(())
    }
}

/// The money, in minor units.
#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Balances {
    pub(super) correct: bool,
    /// By flows that have completed.
    pub(super) issued: i64,
    pub(super) paid: i64,
    /// In the vaults.
    pub(super) party_a: i64,
    pub(super) party_b: i64,
}

impl fmt::Display for Balances {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Balances    {}: {} issued and {} of them paid to PartyB; PartyA has {}, PartyB has {}",
            if self.correct { "right" } else { "WRONG" },
            self.issued,
            self.paid,
            self.party_a,
            self.party_b
        )
    }
}

/// Memory as a line of text.
pub(super) fn memory(when: &str, all: &[Memory]) -> String {
    let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let parts: Vec<String> = all
        .iter()
        .map(|memory| {
            let mut text = format!("{} {:.1}", memory.process, mebibytes(memory.resident_bytes));
            let parts = [
                ("private", memory.private_bytes),
                ("peak", memory.peak_bytes),
            ];
            let parts: Vec<String> = parts
                .into_iter()
                .filter_map(|(what, bytes)| Some(format!("{what} {:.1}", mebibytes(bytes?))))
                .collect();
            if !parts.is_empty() {
                // Writing to a String cannot fail.
                let _ = write!(text, " ({})", parts.join(", "));
            }
            text
        })
        .collect();
    format!("{when:<8}RSS {} MiB", parts.join(", "))
}

/// In milliseconds.
pub(super) fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// The duration that this part (0 to 1) of the sorted durations does not exceed; zero if there
/// are none.
pub(super) fn percentile(sorted: &[Duration], part: f64) -> Duration {
    let rank = (part * sorted.len() as f64).ceil() as usize;
    sorted
        .get(rank.saturating_sub(1))
        .copied()
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_a_duration_that_was_measured() {
        let sorted: Vec<Duration> = (1..=200).map(Duration::from_millis).collect();
        for (part, expected) in [(0.0, 1), (0.5, 100), (0.99, 198), (1.0, 200)] {
            assert_eq!(percentile(&sorted, part), Duration::from_millis(expected));
        }
        assert_eq!(percentile(&sorted[..1], 0.99), Duration::from_millis(1));
        assert_eq!(percentile(&[], 0.5), Duration::ZERO);
    }
}
