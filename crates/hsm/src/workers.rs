//! The threads that call the library, so that nobody waits longer than agreed.
//!
//! A call into a library cannot be interrupted. If one hangs, its thread hangs with it, and whoever asked goes on with
//! [`HsmError::TimedOut`]; the other threads serve on. Threads end with the [`Workers`] that own them, at the latest when
//! their call returns: none is waited for, because a device that is gone must not keep a node from stopping.

use std::fmt;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::HsmError;
use crate::library::{Access, Library};
use crate::token::Connection;

/// Requests that wait for a thread; more are turned away.
const MAX_WAITING: usize = 1_024;

/// A request: it finds out itself whether somebody still waits for it.
type Job = Box<dyn FnOnce(&Serving) + Send>;

/// What a thread needs.
struct Serving {
    access: Access,
    library: Arc<Library>,
    pin_refused: AtomicBool,
}

/// The threads of one token.
pub(crate) struct Workers {
    jobs: SyncSender<Job>,
    timeout: Duration,
}

impl fmt::Debug for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Workers")
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

impl Workers {
    /// Starts as many threads as there may be sessions.
    pub(crate) fn start(
        access: Access,
        sessions: usize,
        timeout: Duration,
    ) -> Result<Self, HsmError> {
        let serving = Arc::new(Serving {
            library: Library::of(&access.library),
            access,
            pin_refused: AtomicBool::new(false),
        });
        let (jobs, waiting) = sync_channel::<Job>(MAX_WAITING);
        let waiting = Arc::new(Mutex::new(waiting));
        for number in 0..sessions.max(1) {
            let (serving, waiting) = (Arc::clone(&serving), Arc::clone(&waiting));
            thread::Builder::new()
                .name(format!("hsm {number}"))
                .spawn(move || serve(&serving, &waiting))
                .map_err(|error| HsmError::Unavailable {
                    reason: format!("no thread could be started: {error}"),
                })?;
        }
        Ok(Self { jobs, timeout })
    }

    /// Has `work` done in a session, and waits for it as long as agreed. Work that is `repeatable` is tried again in
    /// another session if the first one turns out to be broken.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        repeatable: bool,
        work: impl Fn(&mut Connection) -> Result<T, HsmError> + Send + 'static,
    ) -> Result<T, HsmError> {
        let deadline = Instant::now() + self.timeout;
        let (reply, answer) = sync_channel(1);
        let job: Job = Box::new(move |serving| {
            if Instant::now() >= deadline {
                return;
            }
            let done = serving.library.work(
                &serving.access,
                &serving.pin_refused,
                deadline,
                repeatable,
                &work,
            );
            // Nobody may be waiting any more.
            let _ = reply.send(done);
        });
        self.jobs.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => HsmError::Busy {
                waiting: MAX_WAITING,
            },
            TrySendError::Disconnected(_) => HsmError::Unavailable {
                reason: "its threads have ended".to_owned(),
            },
        })?;
        match answer.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(done) => done,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                Err(HsmError::TimedOut {
                    after: self.timeout,
                })
            }
        }
    }
}

fn serve(serving: &Serving, waiting: &Mutex<Receiver<Job>>) {
    loop {
        let next = waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .recv();
        match next {
            Ok(job) => job(serving),
            Err(_) => return,
        }
    }
}
