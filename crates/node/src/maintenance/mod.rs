//! Maintenance mode: house-keeping in windows that begin at set times, on the active instance only.
//!
//! A window runs every task once, to its end, however long that takes; its duration is there to warn. A window that
//! would begin while an earlier one still runs is not run, nor later: the next one is. What the tasks remove they remove
//! a bounded number of rows at a time, through the group commit, and so under the fence.
//!
//! [`Schedule`] and [`Period`] are pure; `Maintenance::run` is the task around them.

mod period;
mod schedule;

use std::time::Duration;

use quorate_ledger::Timestamp;
use quorate_runtime::tasks::chain;
use quorate_runtime::{Clock, Shutdown};
use quorate_storage::{CommitError, Store, UnitOfWork, Writer};

use crate::config::{MaintenanceMode, ProcessedMessageCleanup};
use crate::metrics::MaintenanceMetrics;

pub use period::{Period, PeriodError};
pub use schedule::{MAX_OVERLAPS, Overlap, Schedule, ScheduleError};

/// Between two looks at the clock, which may be set meanwhile.
const LOOK: Duration = Duration::from_secs(30);

/// How late a window may begin: later than that its beginning has passed.
const TOLERANCE: Duration = Duration::from_secs(60);

/// For how long ahead overlaps are looked for at the start.
const WEEK: Duration = Duration::from_secs(7 * 86_400);

/// Missed windows that are told one by one.
const MAX_TOLD: usize = 5;

/// Missed windows that are counted at a time.
const MAX_COUNTED: usize = 100_000;

/// What is done in a window, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Task {
    /// Records of RPC that were kept long enough.
    RpcAudit {
        /// How long is enough.
        retention: Period,
    },
    /// What is left of the queues that peers have begun anew.
    ProcessedMessages {
        /// For how long it is kept.
        retention: Duration,
    },
}

impl Task {
    /// The tasks of a node with this configuration, in a network with this event horizon.
    pub(crate) fn of(mode: &MaintenanceMode, event_horizon: Duration) -> Vec<Self> {
        let audit = Self::RpcAudit {
            retention: mode.rpc_audit_retention,
        };
        let messages = |cleanup: ProcessedMessageCleanup| Self::ProcessedMessages {
            retention: cleanup.retention(event_horizon),
        };
        std::iter::once(audit)
            .chain(mode.processed_messages.map(messages))
            .collect()
    }

    /// Its name in logs and metrics.
    fn name(self) -> &'static str {
        match self {
            Self::RpcAudit { .. } => "rpc-audit",
            Self::ProcessedMessages { .. } => "processed-messages",
        }
    }

    /// The end of what may go, at this time.
    fn before(self, now: Timestamp) -> Timestamp {
        match self {
            Self::RpcAudit { retention } => retention.before(now),
            Self::ProcessedMessages { retention } => now - retention,
        }
    }
}

/// Why a task broke off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TaskError {
    /// What is outdated could not be found.
    #[error(transparent)]
    Read(#[from] quorate_storage::Error),
    /// It could not be removed.
    #[error(transparent)]
    Write(#[from] CommitError),
}

/// The tables that are kept clean.
pub(crate) struct Tables {
    pub(crate) store: Store,
    pub(crate) writer: Writer,
    pub(crate) shutdown: Shutdown,
}

impl Tables {
    /// Does a task to its end, or until the node stops. The age of rows is judged by the database's clock, which has
    /// dated them.
    async fn perform(&self, task: Task, metrics: &MaintenanceMetrics) -> Result<u64, TaskError> {
        let before = task.before(self.store.now().await?);
        let mut removed = 0;
        let mut in_vain = 0;
        while !self.shutdown.is_requested() && in_vain < 2 {
            let outdated = match task {
                Task::RpcAudit { .. } => self.store.outdated_rpc_audit(before).await?,
                Task::ProcessedMessages { .. } => self.store.outdated_epochs(before).await?,
            };
            if outdated.is_empty() {
                break;
            }
            let committed = self.writer.commit(UnitOfWork::cleanup(outdated)).await?;
            // What has come into use since it was found stays; what has just been dated goes some other day.
            in_vain = if committed.removed_rows == 0 {
                in_vain + 1
            } else {
                0
            };
            removed += committed.removed_rows;
            metrics.removed(task.name(), committed.removed_rows);
        }
        Ok(removed)
    }
}

/// Waits for windows and runs them.
pub(crate) struct Maintenance {
    pub(crate) mode: MaintenanceMode,
    pub(crate) clock: Clock,
    pub(crate) shutdown: Shutdown,
    pub(crate) metrics: MaintenanceMetrics,
}

impl Maintenance {
    /// Runs windows until the node stops. `tasks` tells, at the beginning of each, what is to be done.
    pub(crate) async fn run(self, tables: Tables, tasks: impl Fn() -> Vec<Task> + Send) {
        let (this, tables) = (&self, &tables);
        this.run_windows(|| this.perform_all(tables, tasks())).await;
    }

    /// Every task once; one that fails does not keep the others from being done.
    async fn perform_all(&self, tables: &Tables, tasks: Vec<Task>) {
        for task in tasks {
            match tables.perform(task, &self.metrics).await {
                Ok(removed) => tracing::info!(task = task.name(), removed, "maintenance task done"),
                Err(error) => {
                    self.metrics.failed(task.name());
                    tracing::warn!(
                        task = task.name(),
                        error = chain(&error),
                        "a maintenance task broke off; it goes on in the next window"
                    );
                }
            }
        }
    }

    /// The loop, whatever is done in a window.
    async fn run_windows<F: Future<Output = ()>>(&self, window: impl Fn() -> F) {
        let MaintenanceMode {
            schedule, duration, ..
        } = &self.mode;
        let mut now = self.now();
        self.warn_of_overlaps(now);
        while let Some(due) = schedule.next_after(now) {
            tracing::debug!(%due, "the next maintenance window");
            match self.wait(now, due).await {
                Waited::Stopped => return,
                Waited::SetBack => {
                    now = self.now();
                    continue;
                }
                Waited::Due => {}
            }
            let began = self.now();
            if began.since(due) > TOLERANCE {
                let reason = "this process did not run at that time, or the clock was set";
                self.tell_missed(due - Duration::from_secs(1), began, reason);
                now = began;
                continue;
            }
            let (since, running) = (self.clock.monotonic(), &self.metrics.running);
            tracing::info!(%due, "a maintenance window begins");
            running.set(1);
            window().await;
            running.set(0);
            if self.shutdown.is_requested() {
                return;
            }
            let took = self.clock.monotonic().saturating_sub(since);
            self.metrics.windows.inc();
            self.metrics.duration.observe(took.as_secs_f64());
            if took > *duration {
                self.metrics.overruns.inc();
                tracing::warn!(
                    "the maintenance window of {due} (UTC) took {took:.1?} and so longer than maintenanceMode.duration, \
                     which is {duration:?}"
                );
            }
            let ended = self.now();
            let reason =
                format!("an earlier window, of {due} (UTC), did not finish until {ended} (UTC)");
            self.tell_missed(due, ended, &reason);
            // Also if the clock was set back meanwhile, this window was run.
            now = ended.max(due);
        }
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.clock.now_micros())
    }

    /// Waits from `now` until `due`, however the clock is set meanwhile.
    async fn wait(&self, mut now: Timestamp, due: Timestamp) -> Waited {
        loop {
            let former = std::mem::replace(&mut now, self.now());
            if now >= due {
                return Waited::Due;
            }
            if now < former {
                return Waited::SetBack;
            }
            tokio::select! {
                () = self.clock.sleep(due.since(now).min(LOOK)) => {}
                () = self.shutdown.requested() => return Waited::Stopped,
            }
        }
    }

    fn warn_of_overlaps(&self, now: Timestamp) {
        let MaintenanceMode {
            schedule, duration, ..
        } = &self.mode;
        let (overlaps, count) = schedule.overlaps(now, now + WEEK, *duration);
        for Overlap { first, second } in &overlaps {
            tracing::warn!(
                "maintenance windows overlap: that of {first} (UTC) may take {duration:?} and so until {}, but the next \
                 begins at {second}; make maintenanceMode.duration shorter or the schedule sparser",
                *first + *duration
            );
        }
        if count > overlaps.len() {
            let further = count - overlaps.len();
            tracing::warn!(
                "at least {further} further maintenance windows of the coming week overlap"
            );
        }
    }

    /// Windows that would have begun after `after` and until `last`.
    fn tell_missed(&self, after: Timestamp, last: Timestamp, reason: &str) {
        let mut count = 0;
        let missed = self.mode.schedule.between(after, last);
        for (index, due) in missed.take(MAX_COUNTED).enumerate() {
            count = index + 1;
            if count <= MAX_TOLD {
                tracing::warn!(
                    "the maintenance window scheduled to run at {due} (UTC) was missed: {reason}"
                );
            }
        }
        if count > MAX_TOLD {
            let further = count - MAX_TOLD;
            tracing::warn!("{further} further maintenance windows were missed: {reason}");
        }
        self.metrics.missed.inc_by(count as u64);
    }
}

/// How a wait for a window has ended.
enum Waited {
    Due,
    /// The clock was set back: other windows may come first.
    SetBack,
    Stopped,
}

#[cfg(test)]
mod tests;
