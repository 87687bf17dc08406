//! Tasks with owners.
//!
//! Every spawned task belongs to a [`Tasks`], has a name, and is awaited by its owner. Stopping is a request
//! ([`Shutdown`]), then patience, then the list of what had to be cut off. A task that panics, or that returns an
//! error, is reported by name and is not started again: whether work can be repeated is known to whoever owns the
//! work, not here. A task without which the process is useless is spawned with [`Tasks::spawn_essential`]; when it
//! ends early, the whole process is asked to stop, with the reason.
//!
//! What cancellation means for a task is said where the task is spawned. The rule of thumb: *waiting* selects on
//! [`Shutdown::requested`], *work* does not and is allowed to finish within the patience.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::Poll;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How many failures of ended tasks an owner remembers for its report. Later ones are still logged.
pub const MAX_REMEMBERED_FAILURES: usize = 64;

/// How long an owner waits for tasks that it has cut off. A task that computes without ever awaiting cannot be cut
/// off; it is left behind and named.
pub const ABORT_GRACE: Duration = Duration::from_secs(1);

/// The request to stop: cheap to clone, can be awaited, carries a reason.
///
/// A child hears its parent's request; the parent does not hear the child's.
#[derive(Clone)]
pub struct Shutdown {
    inner: Arc<ShutdownInner>,
}

struct ShutdownInner {
    token: CancellationToken,
    reason: OnceLock<String>,
    parent: Option<Shutdown>,
}

impl Shutdown {
    /// A request of its own, not yet made.
    pub fn new() -> Self {
        Self {
            inner: Arc::new(ShutdownInner {
                token: CancellationToken::new(),
                reason: OnceLock::new(),
                parent: None,
            }),
        }
    }

    /// A request that is made when this one is made, and that can also be made alone.
    pub fn child(&self) -> Self {
        Self {
            inner: Arc::new(ShutdownInner {
                token: self.inner.token.child_token(),
                reason: OnceLock::new(),
                parent: Some(self.clone()),
            }),
        }
    }

    /// Asks everyone who listens here (and to children) to stop. The first reason is kept.
    pub fn request(&self, reason: impl Into<String>) {
        // The reason goes first: whoever wakes may read it at once.
        if !self.is_requested() {
            let _ = self.inner.reason.set(reason.into());
        }
        self.inner.token.cancel();
    }

    /// Whether stopping has been requested, here or above.
    pub fn is_requested(&self) -> bool {
        self.inner.token.is_cancelled()
    }

    /// Why, once requested: the nearest reason, from here upwards.
    pub fn reason(&self) -> Option<String> {
        if !self.is_requested() {
            return None;
        }
        let mut at = Some(self);
        while let Some(shutdown) = at {
            if let Some(reason) = shutdown.inner.reason.get() {
                return Some(reason.clone());
            }
            at = shutdown.inner.parent.as_ref();
        }
        None
    }

    /// Resolves when stopping has been requested. Dropping the future loses nothing.
    pub async fn requested(&self) {
        self.inner.token.cancelled().await;
    }

    /// The request that stops everything: the topmost parent.
    pub fn root(&self) -> Shutdown {
        let mut at = self;
        while let Some(parent) = &at.inner.parent {
            at = parent;
        }
        at.clone()
    }
}

impl Default for Shutdown {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Shutdown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shutdown")
            .field("requested", &self.is_requested())
            .field("reason", &self.reason())
            .finish()
    }
}

/// What a task may return: nothing, or a result whose error is its failure.
pub trait TaskResult {
    /// The failure as text, causes included; `None` when the task went well.
    fn failure(self) -> Option<String>;
}

impl TaskResult for () {
    fn failure(self) -> Option<String> {
        None
    }
}

impl<E: std::error::Error> TaskResult for Result<(), E> {
    fn failure(self) -> Option<String> {
        self.err().map(|error| chain(&error))
    }
}

/// An error followed by its causes, separated by colons: how errors are written into log lines.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let told = cause.to_string();
        // Some libraries' errors tell their cause themselves.
        if !text.ends_with(&told) {
            text.push_str(": ");
            text.push_str(&told);
        }
        source = cause.source();
    }
    text
}

/// A task that ended badly.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("task `{task}` {how}")]
pub struct TaskFailure {
    /// The name it was spawned with, with its owners' names before it.
    pub task: String,
    /// `panicked: …`, `failed: …` or `ended early`.
    pub how: String,
}

/// What [`Tasks::stop`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StopReport {
    /// Names of the tasks that were still busy when patience ran out.
    pub cut_off: Vec<String>,
    /// Failures of tasks during the owner's life (the first [`MAX_REMEMBERED_FAILURES`]).
    pub failures: Vec<TaskFailure>,
}

impl StopReport {
    /// Nothing was cut off and nothing failed.
    pub fn is_clean(&self) -> bool {
        self.cut_off.is_empty() && self.failures.is_empty()
    }
}

impl fmt::Display for StopReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_clean() {
            return f.write_str("everything finished");
        }
        if !self.cut_off.is_empty() {
            write!(f, "cut off: {}", self.cut_off.join(", "))?;
        }
        for (index, failure) in self.failures.iter().enumerate() {
            if index > 0 || !self.cut_off.is_empty() {
                f.write_str("; ")?;
            }
            write!(f, "{failure}")?;
        }
        Ok(())
    }
}

/// The owner of tasks. Clones share the ownership; when the last clone is dropped, what still runs is aborted.
#[derive(Clone)]
pub struct Tasks {
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    shutdown: Shutdown,
    // Two locks, because dropping a task's future takes the second one and may happen while the first is held.
    set: Mutex<JoinSet<()>>,
    book: Mutex<Book>,
}

#[derive(Default)]
struct Book {
    next: u64,
    running: BTreeMap<u64, String>,
    failures: Vec<TaskFailure>,
    children: Vec<Weak<Inner>>,
    closed: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing in here can panic halfway through a change, so a poisoned lock holds good data.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tasks {
    /// An owner at the top, with a [`Shutdown`] of its own.
    pub fn new(name: impl Into<String>) -> Self {
        Self::with_shutdown(name, Shutdown::new())
    }

    /// An owner at the top whose tasks listen to `shutdown`.
    pub fn with_shutdown(name: impl Into<String>, shutdown: Shutdown) -> Self {
        Self {
            inner: Arc::new(Inner {
                name: name.into(),
                shutdown,
                set: Mutex::new(JoinSet::new()),
                book: Mutex::new(Book::default()),
            }),
        }
    }

    /// An owner inside this one, for one part of the process: it can be stopped alone, and is stopped with its parent.
    pub fn child(&self, name: &str) -> Tasks {
        let child = Self::with_shutdown(self.qualified(name), self.inner.shutdown.child());
        let mut book = lock(&self.inner.book);
        book.children.retain(|child| child.strong_count() > 0);
        book.children.push(Arc::downgrade(&child.inner));
        child
    }

    /// What these tasks listen to.
    pub fn shutdown(&self) -> &Shutdown {
        &self.inner.shutdown
    }

    /// Spawns a task. Its panic or error is logged under its name and remembered for the report.
    ///
    /// After [`Tasks::stop`] has finished, nothing more is started: the future is dropped and the log says so.
    pub fn spawn<F>(&self, name: impl AsRef<str>, future: F)
    where
        F: Future + Send + 'static,
        F::Output: TaskResult + Send,
    {
        self.launch(name.as_ref(), future, false);
    }

    /// Spawns a task without which the process is useless. If it ends, in whatever way, before stopping has been
    /// requested, then stopping is requested at the root, with the reason.
    pub fn spawn_essential<F>(&self, name: impl AsRef<str>, future: F)
    where
        F: Future + Send + 'static,
        F::Output: TaskResult + Send,
    {
        self.launch(name.as_ref(), future, true);
    }

    /// The names of the tasks that run now, those of children included.
    pub fn running(&self) -> Vec<String> {
        let mut names = Vec::new();
        self.inner
            .each(&mut |inner| names.extend(lock(&inner.book).running.values().cloned()));
        names.sort();
        names
    }

    /// Asks every task to stop, waits up to `patience`, aborts what is left, and reports it. Call it from outside: a
    /// task that stops its own owner waits for itself. Dropping the future halfway leaves the request made and the
    /// tasks running.
    pub async fn stop(&self, patience: Duration) -> StopReport {
        self.inner
            .shutdown
            .request(format!("{} is being stopped", self.inner.name));
        let drained = tokio::time::timeout_at(Instant::now() + patience, drain(self.inner.clone()))
            .await
            .is_ok();
        let mut report = StopReport::default();
        self.inner.each(&mut |inner| {
            let mut book = lock(&inner.book);
            book.closed = true;
            report.cut_off.extend(book.running.values().cloned());
        });
        if !drained {
            self.inner.each(&mut |inner| lock(&inner.set).abort_all());
            // What does not end now is blocked outside of any await; it has been named above.
            let _ = tokio::time::timeout(ABORT_GRACE, drain(self.inner.clone())).await;
        }
        self.inner.each(&mut |inner| {
            report
                .failures
                .extend(lock(&inner.book).failures.iter().cloned())
        });
        report.cut_off.sort();
        report.failures.truncate(MAX_REMEMBERED_FAILURES);
        report
    }

    fn qualified(&self, name: &str) -> String {
        if self.inner.name.is_empty() {
            name.to_owned()
        } else {
            format!("{}/{name}", self.inner.name)
        }
    }

    fn launch<F>(&self, name: &str, future: F, essential: bool)
    where
        F: Future + Send + 'static,
        F::Output: TaskResult + Send,
    {
        let name = self.qualified(name);
        let id = {
            let mut book = lock(&self.inner.book);
            if book.closed {
                drop(book);
                tracing::warn!(task = %name, "not started: its owner has stopped");
                return;
            }
            let id = book.next;
            book.next += 1;
            book.running.insert(id, name.clone());
            id
        };
        let guard = Registration {
            owner: Arc::downgrade(&self.inner),
            id,
        };
        let owner = Arc::downgrade(&self.inner);
        let shutdown = self.inner.shutdown.clone();
        let mut set = lock(&self.inner.set);
        // Reap what has ended, so that an owner of many short tasks does not grow.
        while set.try_join_next().is_some() {}
        set.spawn(async move {
            let guard = guard;
            let how = match caught(future).await {
                Ok(output) => output.failure().map(|failure| format!("failed: {failure}")),
                Err(payload) => Some(format!("panicked: {}", panic_text(payload.as_ref()))),
            };
            let how = match how {
                None if essential && !shutdown.is_requested() => Some("ended early".to_owned()),
                how => how,
            };
            if let Some(how) = how {
                let failure = TaskFailure { task: name, how };
                tracing::error!(task = %failure.task, essential, "{failure}");
                if essential {
                    shutdown.root().request(failure.to_string());
                }
                if let Some(owner) = owner.upgrade() {
                    let mut book = lock(&owner.book);
                    if book.failures.len() < MAX_REMEMBERED_FAILURES {
                        book.failures.push(failure);
                    }
                }
            }
            drop(guard);
        });
    }
}

impl fmt::Debug for Tasks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tasks")
            .field("name", &self.inner.name)
            .field("running", &self.running())
            .finish()
    }
}

impl Inner {
    /// This owner, then its living descendants.
    fn each(self: &Arc<Self>, visit: &mut dyn FnMut(&Arc<Inner>)) {
        visit(self);
        let children: Vec<_> = lock(&self.book)
            .children
            .iter()
            .filter_map(Weak::upgrade)
            .collect();
        for child in children {
            child.each(visit);
        }
    }
}

/// Takes the task out of its owner's book when the future is dropped, however that comes about.
struct Registration {
    owner: Weak<Inner>,
    id: u64,
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Some(owner) = self.owner.upgrade() {
            lock(&owner.book).running.remove(&self.id);
        }
    }
}

/// Waits until an owner and all its descendants have no task left.
async fn drain(inner: Arc<Inner>) {
    loop {
        let mut owners = Vec::new();
        inner.each(&mut |inner| owners.push(inner.clone()));
        let mut waited = false;
        for owner in owners {
            while poll_fn(|context| match lock(&owner.set).poll_join_next(context) {
                Poll::Ready(ended) => Poll::Ready(ended.is_some()),
                Poll::Pending => Poll::Pending,
            })
            .await
            {
                waited = true;
            }
        }
        // A task that ended meanwhile may have started another one, or a new child: look again until a round is idle.
        if !waited {
            return;
        }
    }
}

/// Polls a future so that its panic becomes a value.
async fn caught<F: Future>(future: F) -> Result<F::Output, Box<dyn Any + Send>> {
    let mut future: Pin<Box<F>> = Box::pin(future);
    poll_fn(
        move |context| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
            Err(payload) => Poll::Ready(Err(payload)),
        },
    )
    .await
}

fn panic_text(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("with a value that is not text")
}

/// Runs work that blocks its thread (a key derivation, a file tree) beside the asynchronous threads and waits for it.
///
/// Dropping the future does not stop the work.
///
/// # Errors
/// The work panicked.
pub async fn blocking<T, F>(name: &str, work: F) -> Result<T, TaskFailure>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    let ended = tokio::task::spawn_blocking(move || catch_unwind(AssertUnwindSafe(work))).await;
    let how = match ended {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(payload)) => format!("panicked: {}", panic_text(payload.as_ref())),
        Err(_) => "was cut off: the process is stopping".to_owned(),
    };
    Err(TaskFailure {
        task: name.to_owned(),
        how,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    const PATIENCE: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn work_finishes_and_waiting_ends() {
        let tasks = Tasks::new("test");
        let finished = Arc::new(AtomicBool::new(false));
        let (flag, shutdown) = (finished.clone(), tasks.shutdown().clone());
        tasks.spawn("worker", async move {
            shutdown.requested().await;
            tokio::task::yield_now().await;
            flag.store(true, Ordering::SeqCst);
        });
        let report = tasks.stop(PATIENCE).await;
        assert!(report.is_clean(), "{report}");
        assert!(finished.load(Ordering::SeqCst));
        assert!(tasks.running().is_empty());
    }

    #[tokio::test]
    async fn what_does_not_stop_is_cut_off_by_name() {
        let tasks = Tasks::new("node");
        let bridge = tasks.child("messaging");
        bridge.spawn("bridge PartyB", std::future::pending::<()>());
        tasks.spawn("pump", std::future::pending::<()>());
        let report = tasks.stop(Duration::from_millis(20)).await;
        assert_eq!(
            report.cut_off,
            ["node/messaging/bridge PartyB", "node/pump"]
        );
        assert!(tasks.running().is_empty(), "cut-off tasks are awaited too");
    }

    #[tokio::test]
    async fn a_panic_and_an_error_are_reported_by_name_and_harm_nobody_else() {
        #[derive(Debug, thiserror::Error)]
        #[error("disk is gone")]
        struct Gone(#[source] std::io::Error);
        let tasks = Tasks::new("node");
        tasks.spawn(
            "broken",
            std::future::poll_fn(|_| -> std::task::Poll<()> { panic!("index 7") }),
        );
        tasks.spawn("failing", async {
            Err::<(), _>(Gone(std::io::Error::other("EIO")))
        });
        while !tasks.running().is_empty() {
            tokio::task::yield_now().await;
        }
        assert!(!tasks.shutdown().is_requested());
        let mut failures: Vec<_> = tasks
            .stop(PATIENCE)
            .await
            .failures
            .iter()
            .map(ToString::to_string)
            .collect();
        failures.sort();
        assert_eq!(
            failures,
            [
                "task `node/broken` panicked: index 7",
                "task `node/failing` failed: disk is gone: EIO"
            ]
        );
    }

    #[tokio::test]
    async fn an_essential_task_that_ends_early_stops_the_process() {
        let root = Tasks::new("");
        let part = root.child("messaging");
        part.spawn_essential("listener", async {});
        root.shutdown().requested().await;
        assert_eq!(
            root.shutdown().reason().as_deref(),
            Some("task `messaging/listener` ended early")
        );
        assert!(part.shutdown().is_requested());
        // Once stopping is requested, ending is what is wanted.
        let quiet = Tasks::new("");
        let shutdown = quiet.shutdown().clone();
        quiet.spawn_essential("listener", async move { shutdown.requested().await });
        assert!(quiet.stop(PATIENCE).await.is_clean());
    }

    #[tokio::test]
    async fn a_child_stops_alone_and_can_be_started_again() {
        let root = Tasks::new("");
        for _ in 0..3 {
            let role = root.child("active");
            let shutdown = role.shutdown().clone();
            role.spawn("driver", async move { shutdown.requested().await });
            assert!(role.stop(PATIENCE).await.is_clean());
            assert!(!root.shutdown().is_requested());
        }
        assert!(
            lock(&root.inner.book).children.len() <= 1,
            "stopped children are forgotten"
        );
    }

    #[tokio::test]
    async fn tasks_spawned_while_draining_are_awaited_and_none_start_afterwards() {
        let tasks = Tasks::new("");
        let (owner, shutdown) = (tasks.clone(), tasks.shutdown().clone());
        let done = Arc::new(AtomicBool::new(false));
        let flag = done.clone();
        tasks.spawn("first", async move {
            shutdown.requested().await;
            owner.spawn("second", async move {
                tokio::task::yield_now().await;
                flag.store(true, Ordering::SeqCst);
            });
        });
        assert!(tasks.stop(PATIENCE).await.is_clean());
        assert!(done.load(Ordering::SeqCst));
        tasks.spawn("late", std::future::pending::<()>());
        assert!(tasks.running().is_empty());
    }

    #[tokio::test]
    async fn dropping_the_owner_ends_its_tasks() {
        let (alive, mut ended) = tokio::sync::mpsc::channel::<()>(1);
        let tasks = Tasks::new("");
        tasks.spawn("waits", async move {
            let _alive = alive;
            std::future::pending::<()>().await;
        });
        drop(tasks);
        assert_eq!(ended.recv().await, None);
    }

    #[tokio::test]
    async fn blocking_work_returns_its_value_or_its_panic() {
        assert_eq!(blocking("sum", || 1 + 1).await, Ok(2));
        let failure = blocking("bad", || -> u8 { panic!("no") })
            .await
            .unwrap_err();
        assert_eq!(failure.to_string(), "task `bad` panicked: no");
    }
}
