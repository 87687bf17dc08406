//! What processes use, from `/proc`.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::local_network::LocalNetwork;

/// The name under which this process is reported.
const LOAD_GENERATOR: &str = "load generator";
/// The name of all of PostgreSQL's processes.
const POSTGRESQL: &str = "PostgreSQL";
/// The name of everything else on the machine: figures are good if it has done nothing.
pub(super) const OTHERS: &str = "others";

/// The processes of a network, and this one.
pub(super) struct Processes {
    nodes: Vec<(String, u32)>,
    postgres: Option<u32>,
}

/// Memory of one process.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Memory {
    pub(super) process: String,
    /// Resident now. PostgreSQL's processes share memory, which is counted once.
    pub(super) resident_bytes: u64,
    /// What of it belongs to this process alone: without the program's own text, which all processes share.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) private_bytes: Option<u64>,
    /// The most that was resident at any time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) peak_bytes: Option<u64>,
}

impl Processes {
    /// The processes as they run now; whoever restarts one asks again.
    pub(super) fn of(network: &LocalNetwork) -> Self {
        let nodes = network
            .nodes
            .iter()
            .filter_map(|node| Some((node.label.to_owned(), node.process()?)));
        Self {
            nodes: nodes.collect(),
            postgres: network.postgres().and_then(|server| server.process()),
        }
    }

    /// These processes, by name, as they run now.
    pub(super) fn named(nodes: Vec<(String, u32)>) -> Self {
        Self {
            nodes,
            postgres: None,
        }
    }

    /// Seconds of CPU that each has used so far.
    pub(super) fn cpu(&self) -> Result<Vec<(String, f64)>> {
        let mut all = Vec::new();
        for (name, process) in &self.nodes {
            all.push((name.clone(), Stat::read(*process)?.own));
        }
        if let Some(postmaster) = self.postgres {
            let first = Stat::read(postmaster)?;
            // Children that have ended are in the sum of the postmaster.
            let living: f64 = children(postmaster)
                .iter()
                .filter_map(|child| Stat::read(*child).ok())
                .map(|stat| stat.own)
                .sum();
            all.push((
                POSTGRESQL.to_owned(),
                first.own + first.ended_children + living,
            ));
        }
        all.push((
            LOAD_GENERATOR.to_owned(),
            Stat::read(std::process::id())?.own,
        ));
        let ours: f64 = all.iter().map(|(_, seconds)| seconds).sum();
        all.push((OTHERS.to_owned(), machine_busy()? - ours));
        Ok(all)
    }

    /// The memory of the network's processes.
    pub(super) fn memory(&self) -> Result<Vec<Memory>> {
        let mut all = Vec::new();
        for (name, process) in &self.nodes {
            let status = fs::read_to_string(format!("/proc/{process}/status"))
                .with_context(|| format!("looking at the process of {name}"))?;
            all.push(Memory {
                process: name.clone(),
                resident_bytes: kibibytes(&status, "VmRSS:").unwrap_or_default(),
                private_bytes: kibibytes(&status, "RssAnon:"),
                peak_bytes: kibibytes(&status, "VmHWM:"),
            });
        }
        if let Some(postmaster) = self.postgres {
            let shares = children(postmaster)
                .into_iter()
                .chain([postmaster])
                .filter_map(|process| {
                    let rollup = fs::read_to_string(format!("/proc/{process}/smaps_rollup"));
                    kibibytes(&rollup.ok()?, "Pss:")
                });
            all.push(Memory {
                process: POSTGRESQL.to_owned(),
                resident_bytes: shares.sum(),
                private_bytes: None,
                peak_bytes: None,
            });
        }
        Ok(all)
    }
}

/// The value of a `Name:  123 kB` line, in bytes.
fn kibibytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let number: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(number * 1024)
}

struct Stat {
    parent: u32,
    /// Seconds in user and kernel mode.
    own: f64,
    /// The same of children that have ended and were waited for.
    ended_children: f64,
}

impl Stat {
    fn read(process: u32) -> Result<Self> {
        let text = fs::read_to_string(format!("/proc/{process}/stat"))
            .with_context(|| format!("looking at process {process}"))?;
        // The name of the program, in parentheses, may contain anything.
        let fields = text.rsplit_once(')').map(|(_, rest)| rest);
        let fields: Vec<&str> = fields.unwrap_or_default().split_whitespace().collect();
        let number = |index: usize| fields.get(index).and_then(|text| text.parse::<u64>().ok());
        let seconds = |index: usize| {
            let ticks = number(index)? + number(index + 1)?;
            Some(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
        };
        let read = || {
            Some(Self {
                parent: u32::try_from(number(1)?).ok()?,
                own: seconds(11)?,
                ended_children: seconds(13)?,
            })
        };
        read().with_context(|| format!("/proc/{process}/stat cannot be understood"))
    }
}

/// Seconds in which the machine's cores were not idle, together.
fn machine_busy() -> Result<f64> {
    let text = fs::read_to_string("/proc/stat").context("looking at the machine's cores")?;
    let line = text.lines().find_map(|line| line.strip_prefix("cpu "));
    let ticks: Vec<u64> = line
        .unwrap_or_default()
        .split_whitespace()
        .filter_map(|number| number.parse().ok())
        .collect();
    // user nice system [idle iowait] irq softirq steal; the times of guests are in the first two.
    let busy: u64 = [0, 1, 2, 5, 6, 7]
        .iter()
        .filter_map(|index| ticks.get(*index))
        .sum();
    Ok(busy as f64 / rustix::param::clock_ticks_per_second() as f64)
}

fn children(parent: u32) -> BTreeSet<u32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|process| Stat::read(*process).is_ok_and(|stat| stat.parent == parent))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_process_and_its_children_use_is_known() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .expect("a process");
        let this = Processes {
            nodes: vec![("this".to_owned(), std::process::id())],
            postgres: None,
        };
        let living = children(std::process::id());
        let memory = this.memory().expect("memory");
        child.kill().expect("it runs");
        child.wait().expect("it ends");
        assert!(living.contains(&child.id()));
        assert!(!children(std::process::id()).contains(&child.id()));
        assert!(memory[0].resident_bytes > 1 << 20);
        assert!(memory[0].peak_bytes >= Some(memory[0].resident_bytes));
        let names: Vec<String> = this.cpu().expect("cpu").into_iter().map(|c| c.0).collect();
        assert_eq!(names, ["this", LOAD_GENERATOR, OTHERS]);
        assert_eq!(kibibytes("VmRSS:\t  12 kB\n", "VmRSS:"), Some(12_288));
        assert_eq!(kibibytes("VmRSS:\t  12 MB\n", "VmRSS:"), None);
    }
}
