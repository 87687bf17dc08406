//! The disk of the consensus log, with a stopwatch: what etcd's log tells of itself, told of ours.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use quorate_consensus::disk::{Disk, File, Folder};
use quorate_runtime::Clock;
use quorate_runtime::metrics::Histogram;

use super::Etcd;

/// A folder whose writes and fsyncs are timed and counted.
pub struct MeasuredDisk {
    folder: Folder,
    gauge: Arc<Stopwatch>,
}

struct Stopwatch {
    metrics: Etcd,
    clock: Clock,
}

impl MeasuredDisk {
    /// The folder, and where its times go.
    pub fn new(folder: Folder, metrics: &Etcd, clock: Clock) -> Self {
        Self {
            folder,
            gauge: Arc::new(Stopwatch {
                metrics: metrics.clone(),
                clock,
            }),
        }
    }

    fn measured(&self, file: Arc<dyn File>) -> Arc<dyn File> {
        Arc::new(MeasuredFile {
            file,
            gauge: self.gauge.clone(),
        })
    }
}

impl Stopwatch {
    fn time<T>(
        &self,
        histogram: &Histogram,
        work: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        let started: Duration = self.clock.monotonic();
        let result = work();
        let spent = self.clock.monotonic().saturating_sub(started);
        histogram.observe(spent.as_secs_f64());
        result
    }
}

impl Disk for MeasuredDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        self.folder.list()
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        self.folder.create(name).map(|file| self.measured(file))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        self.folder.open(name).map(|file| self.measured(file))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.folder.remove(name)
    }

    fn sync(&self) -> io::Result<()> {
        self.folder.sync()
    }

    fn locate(&self, name: &str) -> String {
        self.folder.locate(name)
    }
}

struct MeasuredFile {
    file: Arc<dyn File>,
    gauge: Arc<Stopwatch>,
}

impl File for MeasuredFile {
    fn length(&self) -> io::Result<u64> {
        self.file.length()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_at(offset, buffer)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let metrics = &self.gauge.metrics;
        self.gauge
            .time(&metrics.wal_write, || self.file.write_at(offset, bytes))?;
        let written = i64::try_from(bytes.len()).unwrap_or(i64::MAX);
        metrics.wal_write_bytes.add(written);
        Ok(())
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        self.file.truncate(length)
    }

    fn sync(&self) -> io::Result<()> {
        self.gauge
            .time(&self.gauge.metrics.wal_fsync, || self.file.sync())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use quorate_consensus::{Group, GroupId, Log, LogOptions, Options};
    use quorate_runtime::Metrics;

    use super::*;
    use crate::metrics::OrdererMetrics;

    #[test]
    fn what_the_log_writes_is_shown_under_the_names_of_etcd() {
        let folder = tempfile::tempdir().unwrap();
        let metrics = OrdererMetrics::new(&Metrics::new(), false);
        let disk = MeasuredDisk::new(
            Folder::open(folder.path()).unwrap(),
            &metrics.etcd,
            Clock::system(),
        );
        let (log, _) = Log::open(Arc::new(disk), LogOptions::default()).unwrap();
        let before = (
            metrics.etcd.wal_fsync.get_sample_count(),
            metrics.etcd.wal_write_bytes.get(),
        );
        let (told, durable) = std::sync::mpsc::channel();
        let id = GroupId([1; 16]);
        let options = Options {
            id: 1,
            name: "one".to_owned(),
            election_tick: 10,
            heartbeat_tick: 1,
            max_inflight: 5,
            max_size_per_message: 1 << 20,
        };
        let mut group = Group::create(id, options, &[1], Arc::new(log.clone())).unwrap();
        log.append(
            id,
            group.ready().unwrap().unwrap().write.unwrap(),
            Box::new(move |result| told.send(result).unwrap()),
        );
        durable.recv().unwrap().unwrap();
        assert!(metrics.etcd.wal_fsync.get_sample_count() > before.0);
        assert!(metrics.etcd.wal_write_bytes.get() > before.1);
        assert!(metrics.etcd.wal_write.get_sample_count() > 0);
    }
}
