//! Requests as they came, in files: `Debug.BroadcastTraceDir` and `Debug.DeliverTraceDir`.
//!
//! Each envelope becomes a file `<nanoseconds>_<number>.<service>`, as with Fabric, whose tools can read it. Tracing never
//! holds up a request: what the disk does not keep up with is not traced, and the log says so.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::StreamExt as _;
use quorate_fabric::proto::orderer::BroadcastResponse;
use quorate_runtime::tasks::blocking;
use quorate_runtime::{Clock, Tasks};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tracing::{debug, warn};

use crate::grpc::{Broadcast, Caller, Deliver, DeliverResponse, Requests, Responses};

const LOG: &str = "orderer.common.server";

/// Envelopes that wait for the disk.
const MAX_WAITING: usize = 256;

/// Their bytes. A longer envelope is traced when it is alone.
const MAX_WAITING_BYTES: u32 = 16 << 20;

const FILE_MODE: u32 = 0o660;

/// How many envelopes were not traced is told at the first and then at each so many-th.
const TELL_EVERY: u64 = 1000;

/// Broadcast whose requests are traced to `folder`; without one, as it is.
pub fn broadcast(
    service: Arc<dyn Broadcast>,
    folder: Option<&Path>,
    clock: &Clock,
    tasks: &Tasks,
) -> Arc<dyn Broadcast> {
    match folder {
        None => service,
        Some(folder) => Arc::new(Traced {
            service,
            tracer: Tracer::start(folder, "Broadcast", clock, tasks),
        }),
    }
}

/// Deliver whose requests are traced to `folder`; without one, as it is.
pub fn deliver(
    service: Arc<dyn Deliver>,
    folder: Option<&Path>,
    clock: &Clock,
    tasks: &Tasks,
) -> Arc<dyn Deliver> {
    match folder {
        None => service,
        Some(folder) => Arc::new(Traced {
            service,
            tracer: Tracer::start(folder, "Deliver", clock, tasks),
        }),
    }
}

struct Traced<S: ?Sized> {
    tracer: Arc<Tracer>,
    service: Arc<S>,
}

impl Broadcast for Traced<dyn Broadcast> {
    fn broadcast(&self, caller: Caller, requests: Requests) -> Responses<BroadcastResponse> {
        self.service.broadcast(caller, self.tracer.watch(requests))
    }
}

impl Deliver for Traced<dyn Deliver> {
    fn deliver(&self, caller: Caller, requests: Requests) -> Responses<DeliverResponse> {
        self.service.deliver(caller, self.tracer.watch(requests))
    }
}

struct Tracer {
    folder: PathBuf,
    service: &'static str,
    clock: Clock,
    number: AtomicU64,
    missed: AtomicU64,
    room: Arc<Semaphore>,
    queue: mpsc::Sender<Entry>,
}

struct Entry {
    path: PathBuf,
    envelope: Bytes,
    _room: OwnedSemaphorePermit,
}

impl Tracer {
    fn start(folder: &Path, service: &'static str, clock: &Clock, tasks: &Tasks) -> Arc<Self> {
        let (queue, waiting) = mpsc::channel(MAX_WAITING);
        let shutdown = tasks.shutdown().clone();
        tasks.spawn(format!("traces of {service}"), async move {
            tokio::select! {
                () = shutdown.requested() => {}
                () = write_all(waiting) => {}
            }
        });
        Arc::new(Self {
            folder: folder.to_owned(),
            service,
            clock: clock.clone(),
            number: AtomicU64::new(0),
            missed: AtomicU64::new(0),
            room: Arc::new(Semaphore::new(MAX_WAITING_BYTES as usize)),
            queue,
        })
    }

    fn watch(self: &Arc<Self>, requests: Requests) -> Requests {
        let tracer = self.clone();
        requests
            .inspect(move |request| {
                if let Ok(envelope) = request {
                    tracer.note(envelope.encoded());
                }
            })
            .boxed()
    }

    fn note(&self, envelope: &Bytes) {
        // The number tells apart what came in the same microsecond.
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let nanoseconds = i128::from(self.clock.now_micros()) * 1000;
        let name = format!("{nanoseconds}_{number:#x}.{}", self.service);
        let bytes = u32::try_from(envelope.len()).unwrap_or(u32::MAX);
        let room = self
            .room
            .clone()
            .try_acquire_many_owned(bytes.min(MAX_WAITING_BYTES));
        let taken = room.is_ok_and(|room| {
            let entry = Entry {
                path: self.folder.join(name),
                envelope: envelope.clone(),
                _room: room,
            };
            self.queue.try_send(entry).is_ok()
        });
        if !taken {
            let missed = self.missed.fetch_add(1, Ordering::Relaxed);
            if missed.is_multiple_of(TELL_EVERY) {
                warn!(target: LOG, "{} {} request(s) were not traced, because they came faster than {} takes them",
                    missed + 1, self.service, self.folder.display());
            }
        }
    }
}

async fn write_all(mut waiting: mpsc::Receiver<Entry>) {
    let mut failing = false;
    while let Some(entry) = waiting.recv().await {
        let path = entry.path.clone();
        let written = blocking("trace of a request", move || {
            write(&entry.path, &entry.envelope)
        })
        .await;
        match written {
            Ok(Ok(())) => {
                failing = false;
                debug!(target: LOG, "Wrote a request trace to {}", path.display());
            }
            Ok(Err(error)) if !failing => {
                failing = true;
                warn!(target: LOG, "Error writing trace msg for {}: {error}; does the folder exist, and may we write there?",
                    path.display());
            }
            Ok(Err(_)) | Err(_) => {}
        }
    }
}

fn write(path: &Path, envelope: &[u8]) -> io::Result<()> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(FILE_MODE)
        .open(path)?
        .write_all(envelope)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use std::time::Duration;

    use futures::stream;
    use quorate_fabric::envelope::RawEnvelope;

    use super::*;

    /// Reads the requests, and answers nothing.
    struct Silent;

    impl Broadcast for Silent {
        fn broadcast(&self, _: Caller, requests: Requests) -> Responses<BroadcastResponse> {
            requests.filter_map(|_| std::future::ready(None)).boxed()
        }
    }

    fn caller() -> Caller {
        Caller {
            address: "127.0.0.1:1".parse().unwrap(),
            certificate: None,
        }
    }

    #[tokio::test]
    async fn every_request_becomes_a_file_with_its_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let tasks = Tasks::new("test");
        let (clock, _) = Clock::manual(7);
        let service = broadcast(Arc::new(Silent), Some(folder.path()), &clock, &tasks);
        let envelopes = [b"one", b"two"].map(|payload| RawEnvelope::new(payload, b"signature"));
        let requests = stream::iter(envelopes.clone().map(Ok)).boxed();
        assert_eq!(service.broadcast(caller(), requests).count().await, 0);
        let traced = || {
            let mut files: Vec<_> = std::fs::read_dir(folder.path())
                .unwrap()
                .map(|file| file.unwrap().path())
                .collect();
            files.sort();
            files
                .iter()
                .map(|path| {
                    let name = path.file_name().unwrap().to_str().unwrap();
                    (name.to_owned(), std::fs::read(path).unwrap())
                })
                .collect::<Vec<_>>()
        };
        let expected = vec![
            (
                "7000_0x0.Broadcast".to_owned(),
                envelopes[0].encoded().to_vec(),
            ),
            (
                "7000_0x1.Broadcast".to_owned(),
                envelopes[1].encoded().to_vec(),
            ),
        ];
        let all = async {
            while traced() != expected {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), all)
            .await
            .unwrap_or_else(|_| panic!("there is only {:?}", traced()));
    }

    #[tokio::test]
    async fn a_folder_that_is_not_there_holds_up_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let tasks = Tasks::new("test");
        let missing = folder.path().join("missing");
        let service = broadcast(Arc::new(Silent), Some(&missing), &Clock::system(), &tasks);
        let request = RawEnvelope::new(b"payload", b"signature");
        let requests = stream::repeat_with(move || Ok(request.clone()))
            .take(10 * MAX_WAITING)
            .boxed();
        assert_eq!(service.broadcast(caller(), requests).count().await, 0);
        assert!(!missing.exists());
    }
}
