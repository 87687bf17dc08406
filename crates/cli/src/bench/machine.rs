//! The machine that is measured.

use std::fmt;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;

use super::report::{millis, percentile};

/// How often a write is made durable to know how long that takes.
const SYNCS: usize = 200;
/// What is written each time: a page of a database's log.
const PAGE: [u8; 8192] = [0x51; 8192];

/// Facts that figures depend on.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Machine {
    cores: usize,
    processor: String,
    memory_bytes: u64,
    kernel: String,
    /// The file system of the databases.
    file_system: String,
    /// 8 KiB appended and made durable by fdatasync, in milliseconds.
    sync_millis_p50: f64,
    sync_millis_p99: f64,
}

impl Machine {
    /// Looks at this machine, and at the disk under `directory`.
    pub(super) fn look(directory: &Path) -> Result<Self> {
        let mut syncs = syncs(directory).context("measuring fdatasync")?;
        syncs.sort_unstable();
        let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Ok(Self {
            cores: std::thread::available_parallelism()?.get(),
            processor: field(&processors, "model name").unwrap_or_else(|| "unknown".to_owned()),
            memory_bytes: field(&memory, "MemTotal")
                .and_then(|text| text.split(' ').next()?.parse::<u64>().ok())
                .unwrap_or_default()
                * 1024,
            kernel: kernel.trim().to_owned(),
            file_system: file_system(directory).unwrap_or_else(|| "unknown".to_owned()),
            sync_millis_p50: millis(percentile(&syncs, 0.50)),
            sync_millis_p99: millis(percentile(&syncs, 0.99)),
        })
    }
}

/// The value of a `name : value` line.
fn field(text: &str, name: &str) -> Option<String> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim() == name)
        .map(|(_, value)| value.trim().to_owned())
}

/// The type of the file system with the longest mount point above `directory`.
fn file_system(directory: &Path) -> Option<String> {
    let mounts = fs::read_to_string("/proc/mounts").ok()?;
    mounts
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            let (_, point, kind) = (words.next()?, words.next()?, words.next()?);
            directory
                .starts_with(point)
                .then(|| (point.len(), kind.to_owned()))
        })
        .max()
        .map(|(_, kind)| kind)
}

fn syncs(directory: &Path) -> Result<Vec<Duration>> {
    let path = directory.join("sync-measurement");
    let mut file = File::create(&path)?;
    let mut times = Vec::with_capacity(SYNCS);
    for _ in 0..SYNCS {
        let began = Instant::now();
        file.write_all(&PAGE)?;
        file.sync_data()?;
        times.push(began.elapsed());
    }
    fs::remove_file(path)?;
    Ok(times)
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "Machine     {} cores, {}, {:.1} GiB, Linux {}",
            self.cores,
            self.processor,
            self.memory_bytes as f64 / f64::from(1 << 30),
            self.kernel
        )?;
        write!(
            f,
            "Disk        {}, fdatasync of 8 KiB: p50 {:.2} ms, p99 {:.2} ms",
            self.file_system, self.sync_millis_p50, self.sync_millis_p99
        )
    }
}
