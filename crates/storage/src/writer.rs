//! The group commit: one task writes for everybody.
//!
//! A commit costs a wait for the disk, so the units that arrive while one database transaction commits share the next
//! one. Each transaction begins with the fence: the lease's row is updated under our generation, which locks it against a
//! takeover until the commit, tells the database's time, gives a sign of life, and counts the batch. If the connection
//! breaks during the commit, that count tells afterwards whether it happened.
//!
//! If the database refuses a batch, it is halved until the unit that is to blame stands alone. Start reading at
//! [`WriterService::run`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_ledger::{StateAndRef, Timestamp};
use quorate_runtime::Metrics;
use quorate_runtime::metrics::{BATCH_BUCKETS, DURATION_BUCKETS, Histogram, IntCounter};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, info, warn};

use crate::Store;
use crate::apply::{self, Batch, Failure, Results};
use crate::database::{APPLICATION, Purpose};
use crate::error::{Blame, Doing, Error};
use crate::lease::{self, Fence};
use crate::prepare::{Prepared, PreparedLock};
use crate::sql::{Connection, Engine, int, values};
use crate::unit::{CommitError, Committed, LockError, LockRequest, Refusal, Relevance, UnitOfWork};

/// Pause before a lost connection is tried again, at first and at the most.
const RECONNECT_PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// A database transaction that takes longer than this many statement time-outs has lost its connection without notice.
const STUCK: u32 = 2;

type Reply<T, E> = oneshot::Sender<Result<T, E>>;

/// What somebody waits for.
enum Job {
    Unit(Arc<Prepared>, Reply<Committed, CommitError>),
    Lock(Arc<PreparedLock>, Reply<Vec<StateAndRef>, LockError>),
}

impl Job {
    fn size(&self) -> usize {
        match self {
            Self::Unit(unit, _) => unit.size,
            Self::Lock(..) => 0,
        }
    }

    fn fail(self, error: CommitError) {
        // Who no longer waits needs no answer.
        match self {
            Self::Unit(_, reply) => drop(reply.send(Err(error))),
            Self::Lock(_, reply) => drop(reply.send(Err(error.into()))),
        }
    }
}

/// Writes under one fence; cheap to clone. Needs its [`WriterService`] to run.
#[derive(Clone)]
pub struct Writer {
    store: Store,
    fence: Fence,
    relevance: Relevance,
    jobs: mpsc::Sender<Job>,
    signs: watch::Receiver<Option<Instant>>,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer")
            .field("fence", &self.fence)
            .finish_non_exhaustive()
    }
}

impl Writer {
    /// The fence under which this writes.
    pub fn fence(&self) -> &Fence {
        &self.fence
    }

    /// When the latest database transaction began that was committed. Each is a sign of life, so
    /// that a busy holder need not renew its lease besides; with SQLite it would hardly get to.
    pub fn signs_of_life(&self) -> watch::Receiver<Option<Instant>> {
        self.signs.clone()
    }

    /// Makes a unit of work durable, and returns when it is. Units that are committed one after another, each after the
    /// former's answer, are durable in that order.
    ///
    /// If the returned future is dropped, the unit may become durable nevertheless.
    pub async fn commit(&self, unit: UnitOfWork) -> Result<Committed, CommitError> {
        let prepared = Prepared::new(unit, &self.relevance, self.store.schemas());
        let (reply, answer) = oneshot::channel();
        self.send(Job::Unit(Arc::new(prepared), reply)).await?;
        answer.await.unwrap_or(Err(CommitError::Closed))
    }

    /// Soft-locks states of the vault for a flow until it ends, and returns them in the order in which they were
    /// produced. Asking again with the same flow and number returns the same states.
    ///
    /// If the returned future is dropped, the states may be locked nevertheless.
    pub async fn lock_states(&self, request: LockRequest) -> Result<Vec<StateAndRef>, LockError> {
        let prepared = PreparedLock::new(request, self.store.schemas());
        let prepared =
            prepared.map_err(|error| CommitError::Refused(Arc::new(Refusal::Query(error))))?;
        let (reply, answer) = oneshot::channel();
        self.send(Job::Lock(Arc::new(prepared), reply)).await?;
        answer
            .await
            .unwrap_or(Err(LockError::Commit(CommitError::Closed)))
    }

    async fn send(&self, job: Job) -> Result<(), CommitError> {
        self.jobs.send(job).await.map_err(|_| CommitError::Closed)
    }
}

/// How the writing ended.
#[derive(Debug, Clone)]
pub enum WriterEnd {
    /// Every [`Writer`] is gone and everything they asked for is answered.
    Closed,
    /// The lease has passed to somebody else ([`Error::Fenced`]): this process must not act for the resource any more.
    Fenced(Arc<Error>),
}

/// The task behind [`Writer`]: to be run by whoever made it, until it ends by itself. Dropping it half-way is safe for
/// the database; those who wait are told that the store is closed, and what they wait for may have been committed.
pub struct WriterService {
    store: Store,
    fence: Fence,
    jobs: mpsc::Receiver<Job>,
    signs: watch::Sender<Option<Instant>>,
    session: Option<Session>,
    /// The session before, which may still hold the lease's row.
    lost: Option<Backend>,
    meters: Option<Meters>,
}

impl std::fmt::Debug for WriterService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WriterService")
            .field("fence", &self.fence)
            .finish_non_exhaustive()
    }
}

struct Meters {
    units: Histogram,
    seconds: Histogram,
    retries: IntCounter,
}

/// A PostgreSQL session, told apart from a later one with the same id.
#[derive(Clone)]
struct Backend {
    pid: i64,
    started: String,
}

struct Session {
    connection: Connection,
    backend: Option<Backend>,
}

/// Why a batch was not written.
enum Attempt {
    /// One unit, or one of several, is to blame.
    Refused(Failure),
    /// Nothing was written; the database was not able to.
    NotCommitted(Error),
    /// The commit was under way. If it happened, these are the results.
    InDoubt {
        batch: i64,
        results: Box<Results>,
        error: Error,
    },
    /// The lease is lost.
    Fenced(Error),
}

impl Store {
    /// Group commit under `fence`: the handle and the task that has to run. There may be one such pair per fence.
    pub fn writer(&self, fence: Fence, relevance: Relevance) -> (Writer, WriterService) {
        let (sender, jobs) = mpsc::channel(self.database().options().group_commit.queue.max(1));
        let (signs, seen) = watch::channel(None);
        let writer = Writer {
            store: self.clone(),
            fence: fence.clone(),
            relevance,
            jobs: sender,
            signs: seen,
        };
        let service = WriterService {
            store: self.clone(),
            fence,
            jobs,
            signs,
            session: None,
            lost: None,
            meters: None,
        };
        (writer, service)
    }
}

impl WriterService {
    /// Measures batches and their durations.
    #[must_use]
    pub fn with_metrics(mut self, metrics: &Metrics) -> Self {
        self.meters = Some(Meters {
            units: metrics.histogram(
                "quorate_database_commit_units",
                "Units of work that shared one database transaction",
                BATCH_BUCKETS,
            ),
            seconds: metrics.histogram(
                "quorate_database_commit_seconds",
                "Duration of a database transaction, from its begin to its durable end",
                DURATION_BUCKETS,
            ),
            retries: metrics.counter(
                "quorate_database_commit_retries_total",
                "Database transactions that had to be tried again because the database was out of reach or busy",
            ),
        });
        self
    }

    /// Writes until every [`Writer`] is gone or the lease is lost.
    pub async fn run(mut self) -> WriterEnd {
        let limits = self.store.database().options().group_commit.clone();
        while let Some(first) = self.jobs.recv().await {
            let mut size = first.size();
            let mut jobs = vec![first];
            while jobs.len() < limits.max_units && size < limits.max_bytes {
                let Ok(job) = self.jobs.try_recv() else { break };
                size += job.size();
                jobs.push(job);
            }
            if let Err(error) = self.write(jobs).await {
                return self.refuse_all(error);
            }
        }
        if let Some(session) = self.session.take() {
            session.connection.close().await;
        }
        WriterEnd::Closed
    }

    fn refuse_all(&mut self, error: Arc<Error>) -> WriterEnd {
        self.jobs.close();
        while let Ok(job) = self.jobs.try_recv() {
            job.fail(CommitError::Fenced(error.clone()));
        }
        WriterEnd::Fenced(error)
    }

    /// Writes and answers all jobs. An error means that the lease is lost; everybody has been told.
    async fn write(&mut self, jobs: Vec<Job>) -> Result<(), Arc<Error>> {
        let mut groups = vec![jobs];
        while let Some(mut group) = groups.pop() {
            if group.is_empty() {
                continue;
            }
            match self.persist(&group).await {
                Ok((committed, locked)) => answer(group, committed, locked),
                Err(Attempt::Refused(Failure::Unit(index, refusal))) => {
                    let unit = group
                        .iter()
                        .enumerate()
                        .filter(|(_, job)| matches!(job, Job::Unit(..)))
                        .nth(index);
                    if let Some(position) = unit.map(|(position, _)| position) {
                        debug!("a unit of work was refused: {refusal}");
                        group
                            .remove(position)
                            .fail(CommitError::Refused(Arc::new(refusal)));
                    }
                    groups.push(group);
                }
                Err(Attempt::Refused(Failure::Some(refusal))) if group.len() == 1 => {
                    debug!("a unit of work was refused: {refusal}");
                    let refusal = Arc::new(refusal);
                    for job in group {
                        job.fail(CommitError::Refused(refusal.clone()));
                    }
                }
                Err(Attempt::Refused(Failure::Some(_))) => {
                    let rest = group.split_off(group.len() / 2);
                    groups.push(rest);
                    groups.push(group);
                }
                Err(Attempt::Refused(Failure::Database(error)) | Attempt::NotCommitted(error)) => {
                    let error = Arc::new(error);
                    for job in group.into_iter().chain(groups.drain(..).flatten()) {
                        job.fail(CommitError::Transient(error.clone()));
                    }
                }
                Err(Attempt::InDoubt { error, .. }) => {
                    let error = Arc::new(error);
                    for job in group {
                        job.fail(CommitError::Unknown(error.clone()));
                    }
                    for job in groups.drain(..).flatten() {
                        job.fail(CommitError::Transient(error.clone()));
                    }
                }
                Err(Attempt::Fenced(error)) => {
                    let error = Arc::new(error);
                    for job in group.into_iter().chain(groups.drain(..).flatten()) {
                        job.fail(CommitError::Fenced(error.clone()));
                    }
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Writes one group, again and again while only the connection is to blame.
    async fn persist(&mut self, group: &[Job]) -> Result<Results, Attempt> {
        let patience = self.store.database().options().group_commit.patience;
        let started = Instant::now();
        let mut pause = RECONNECT_PAUSE.0;
        loop {
            let begun = Instant::now();
            let outcome = match self.attempt(group).await {
                Err(Attempt::InDoubt {
                    batch,
                    results,
                    error,
                }) => self.settle(batch, results, error, started).await,
                outcome => outcome,
            };
            match outcome {
                Err(Attempt::NotCommitted(error) | Attempt::Refused(Failure::Database(error))) => {
                    self.abandon().await;
                    if started.elapsed() >= patience {
                        return Err(Attempt::NotCommitted(error));
                    }
                    warn!(
                        "the database could not commit and is tried again: {}",
                        quorate_runtime::tasks::chain(&error)
                    );
                    if let Some(meters) = &self.meters {
                        meters.retries.inc();
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RECONNECT_PAUSE.1);
                }
                outcome => {
                    if let (Some(meters), Ok(_)) = (&self.meters, &outcome) {
                        meters.units.observe(group.len() as f64);
                        meters.seconds.observe(begun.elapsed().as_secs_f64());
                    }
                    return outcome;
                }
            }
        }
    }

    /// One database transaction.
    async fn attempt(&mut self, group: &[Job]) -> Result<Results, Attempt> {
        let units: Vec<Arc<Prepared>> = group
            .iter()
            .filter_map(|job| {
                if let Job::Unit(unit, _) = job {
                    Some(unit.clone())
                } else {
                    None
                }
            })
            .collect();
        let locks: Vec<Arc<PreparedLock>> = group
            .iter()
            .filter_map(|job| {
                if let Job::Lock(lock, _) = job {
                    Some(lock.clone())
                } else {
                    None
                }
            })
            .collect();
        let stuck = self.store.database().options().statement_timeout * STUCK;
        let lost = |doing| Error::Database {
            doing,
            source: sqlx::Error::PoolTimedOut,
        };

        self.connect().await.map_err(Attempt::NotCommitted)?;
        // Taken out while at work: a future that is dropped half-way drops the connection with its open transaction.
        let Some(mut session) = self.session.take() else {
            unreachable!("connected above")
        };
        let began = Instant::now();
        let connection = &mut session.connection;
        let work = async {
            let (batch, now) = begin(connection, &self.fence).await?;
            let schemas = self.store.schemas();
            let mut context = Batch {
                connection: &mut *connection,
                schemas,
                fence: &self.fence,
                now,
            };
            let results = apply::apply(&mut context, &units, &locks)
                .await
                .map_err(Attempt::Refused)?;
            Ok((batch, results))
        };
        let written = match tokio::time::timeout(stuck, work).await {
            Ok(written) => written,
            Err(_) => Err(Attempt::NotCommitted(lost("writing"))),
        };
        let (batch, results) = match written {
            Ok(written) => written,
            Err(Attempt::Refused(Failure::Unit(..) | Failure::Some(_)))
            | Err(Attempt::Fenced(_))
                if connection.rollback().await.is_ok() =>
            {
                self.session = Some(session);
                return written.map(|(_, results)| results);
            }
            Err(error) => {
                self.lost = session.backend.clone();
                session.connection.discard().await;
                return Err(error);
            }
        };
        let error = match tokio::time::timeout(stuck, connection.commit()).await {
            Ok(Ok(())) => {
                self.session = Some(session);
                self.signs.send_replace(Some(began));
                return Ok(results);
            }
            Ok(Err(source)) => Error::Database {
                doing: "committing",
                source,
            },
            Err(_) => lost("committing"),
        };
        // Only PostgreSQL's own word that it failed is proof that it failed.
        let refused = connection.engine() == Engine::Postgres && error.blame() != Blame::Connection;
        self.lost = session.backend.clone();
        session.connection.discard().await;
        if refused {
            return Err(Attempt::Refused(error.into()));
        }
        Err(Attempt::InDoubt {
            batch,
            results: Box::new(results),
            error,
        })
    }

    /// Finds out what became of a commit.
    async fn settle(
        &mut self,
        batch: i64,
        results: Box<Results>,
        error: Error,
        started: Instant,
    ) -> Result<Results, Attempt> {
        warn!(
            "the connection broke during a commit: {}",
            quorate_runtime::tasks::chain(&error)
        );
        let patience = self.store.database().options().group_commit.patience;
        let mut pause = RECONNECT_PAUSE.0;
        loop {
            match self.was_committed(batch).await {
                Ok(Some(true)) => {
                    info!("the interrupted commit did happen");
                    return Ok(*results);
                }
                Ok(Some(false)) => return Err(Attempt::NotCommitted(error)),
                Ok(None) => {
                    return Err(Attempt::InDoubt {
                        batch,
                        results,
                        error,
                    });
                }
                Err(_) if started.elapsed() < patience => {}
                Err(_) => {
                    return Err(Attempt::InDoubt {
                        batch,
                        results,
                        error,
                    });
                }
            }
            self.abandon().await;
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RECONNECT_PAUSE.1);
        }
    }

    /// Whether the batch of this number was committed; `None` if nothing tells.
    async fn was_committed(&mut self, batch: i64) -> Result<Option<bool>, Error> {
        let doing = "finding out whether a commit happened";
        self.connect().await?;
        let Some(session) = &mut self.session else {
            return Ok(None);
        };
        let (resource, generation) = (self.fence.resource(), int(self.fence.generation())?);
        // Changes nothing, but waits until the interrupted transaction has ended one way or the other.
        let sql = "UPDATE leases SET last_batch = last_batch WHERE resource = $1 AND generation = $2 RETURNING last_batch";
        if let Some(row) = session
            .connection
            .fetch_one(sql, values![resource, generation])
            .await
            .doing(doing)?
        {
            return Ok(Some(row.int(0).doing(doing)? >= batch));
        }
        // Somebody has taken the lease since, and has noted how far we came.
        let sql = "SELECT last_batch FROM lease_history WHERE resource = $1 AND generation = $2";
        let row = session
            .connection
            .fetch_one(sql, values![resource, generation])
            .await
            .doing(doing)?;
        let last = row.map_or(Ok(None), |row| row.opt_int(0)).doing(doing)?;
        Ok(last.map(|last| last >= batch))
    }

    /// Makes sure that there is a connection.
    async fn connect(&mut self) -> Result<(), Error> {
        if self.session.is_some() {
            return Ok(());
        }
        let doing = "opening the writer's session";
        let mut connection = self.store.database().connect(Purpose::Write).await?;
        let mut backend = None;
        if connection.engine() == Engine::Postgres {
            if let Some(lost) = &self.lost {
                // It may sit in the middle of its transaction and hold the lease's row.
                let sql = "SELECT CAST(pg_terminate_backend(pid) AS TEXT) FROM pg_stat_activity
                           WHERE pid = CAST($1 AS INTEGER) AND CAST(backend_start AS TEXT) = $2 AND application_name = $3";
                let parameters = values![lost.pid, lost.started.as_str(), APPLICATION];
                connection.fetch(sql, parameters).await.doing(doing)?;
            }
            let sql =
                "SELECT CAST(pid AS BIGINT), CAST(backend_start AS TEXT) FROM pg_stat_activity
                       WHERE pid = pg_backend_pid()";
            if let Some(row) = connection.fetch_one(sql, values![]).await.doing(doing)? {
                backend = Some(Backend {
                    pid: row.int(0).doing(doing)?,
                    started: row.text(1).doing(doing)?,
                });
            }
            // Whatever the server's default, an answer means that it is on the disk.
            let sql = "SELECT set_config('synchronous_commit', 'on', false)
                       WHERE current_setting('synchronous_commit') = 'off'";
            connection.fetch(sql, values![]).await.doing(doing)?;
            // Whatever the server's default, a statement sees what was committed before it began: what is read after
            // waiting for a lock is not older than the lock.
            let sql = "SELECT set_config('default_transaction_isolation', 'read committed', false)";
            connection.fetch(sql, values![]).await.doing(doing)?;
        }
        self.lost = None;
        self.session = Some(Session {
            connection,
            backend,
        });
        Ok(())
    }

    /// Gives up the connection.
    async fn abandon(&mut self) {
        if let Some(session) = self.session.take() {
            self.lost = session.backend;
            session.connection.discard().await;
        }
    }
}

/// Opens the database transaction and shows the fence; returns the batch's number and the database's time.
async fn begin(connection: &mut Connection, fence: &Fence) -> Result<(i64, Timestamp), Attempt> {
    let doing = "showing the fence";
    connection
        .begin()
        .await
        .doing("opening a database transaction")
        .map_err(Attempt::NotCommitted)?;
    let sql = "UPDATE leases SET last_batch = last_batch + 1, renewed_at = {now}, renewals = renewals + 1
               WHERE resource = $1 AND generation = $2 AND released = 0 RETURNING last_batch, renewed_at";
    let generation = int(fence.generation()).map_err(Attempt::Fenced)?;
    let row = connection
        .fetch_one(sql, values![fence.resource(), generation])
        .await;
    let Some(row) = row.doing(doing).map_err(Attempt::NotCommitted)? else {
        return Err(Attempt::Fenced(lease::fenced(connection, fence).await));
    };
    let read = || Ok::<_, sqlx::Error>((row.int(0)?, Timestamp::from_micros(row.int(1)?)));
    read().doing(doing).map_err(Attempt::NotCommitted)
}

fn answer(
    jobs: Vec<Job>,
    committed: Vec<Committed>,
    locked: Vec<Result<Vec<StateAndRef>, LockError>>,
) {
    let (mut committed, mut locked) = (committed.into_iter(), locked.into_iter());
    for job in jobs {
        // Who no longer waits needs no answer.
        match job {
            Job::Unit(_, reply) => drop(reply.send(committed.next().ok_or(CommitError::Closed))),
            Job::Lock(_, reply) => {
                drop(
                    reply.send(
                        locked
                            .next()
                            .unwrap_or(Err(LockError::Commit(CommitError::Closed))),
                    ),
                );
            }
        }
    }
}
