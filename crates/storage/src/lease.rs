//! Leases: who may write, in which generation, and how the next one takes over.
//!
//! A lease is a row. Its *generation* grows with every change of hands, and every unit of work shows the generation
//! under which it writes (see [`Writer`](crate::Writer)): it is checked and locked in the same database transaction, so
//! that a takeover comes either wholly before or wholly after a write. How soon a dead holder is suspected is a matter
//! of configuration and of clocks; that it can write no more is not.
//!
//! A holder that was stopped in the middle of a transaction holds the row. The taker does not wait for it: PostgreSQL
//! ends its session; under SQLite, which is shared on one host only, the taker ends the process that the lease names.
//!
//! Start reading at [`Candidate`].

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_ledger::Timestamp;
use tracing::{info, warn};

use crate::Store;
use crate::database::{APPLICATION, Purpose};
use crate::error::{Blame, Doing, Error, blame};
use crate::sql::{Connection, Engine, Row, int, values};

/// How long a takeover waits for the former holder's transaction before it ends the session or process that holds it.
/// A transaction at work needs milliseconds.
pub const TAKEOVER_GRACE: Duration = Duration::from_millis(300);

/// How long a takeover tries to get past the former holder.
pub const TAKEOVER_PATIENCE: Duration = Duration::from_secs(10);

/// Pause between two looks at what blocks a takeover.
const TAKEOVER_POLL: Duration = Duration::from_millis(25);

/// How often [`Candidate::acquire`] looks at a lease that is held, at the least: a clean release is noticed this soon.
pub const ACQUIRE_POLL: Duration = Duration::from_millis(250);

/// One running process, told apart from a later one with the same id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessIdentity {
    /// The process id.
    pub id: u32,
    /// When it started, in the kernel's ticks since boot; 0 if unknown.
    pub started: u64,
    /// The host's boot and process namespace, within which ids are unique; empty if unknown.
    pub host: String,
}

impl ProcessIdentity {
    /// This process.
    pub fn current() -> Self {
        let id = std::process::id();
        Self {
            id,
            started: start_time(id).unwrap_or(0),
            host: host_identity(),
        }
    }

    /// Whether the process is known to run, known to be gone, or neither (it belongs to another host).
    fn alive(&self) -> Option<bool> {
        if self.host.is_empty() || self.started == 0 || self.host != host_identity() {
            return None;
        }
        Some(start_time(self.id) == Some(self.started))
    }
}

/// The 22nd field of `/proc/PID/stat`. The second, the command, is in parentheses and may hold anything.
fn start_time(id: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
    // A zombie has ended, although its row stays until its parent asks.
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

fn host_identity() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let namespace = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    match (boot.trim(), namespace.to_str()) {
        ("", _) | (_, None | Some("")) => String::new(),
        (boot, Some(namespace)) => format!("{boot} {namespace}"),
    }
}

/// An instance that may hold a lease. It is identified by machine name and base directory, as Corda does it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The machine's name (`machineName`).
    pub machine: String,
    /// The node's directory on it.
    pub base_directory: String,
    /// The process.
    pub process: ProcessIdentity,
}

impl Holder {
    /// This process, serving `base_directory` on `machine`.
    pub fn this_process(machine: impl Into<String>, base_directory: impl Into<String>) -> Self {
        Self {
            machine: machine.into(),
            base_directory: base_directory.into(),
            process: ProcessIdentity::current(),
        }
    }

    /// The instance's name: machine and base directory.
    pub fn instance(&self) -> String {
        format!("{}:{}", self.machine, self.base_directory)
    }
}

/// The right to write under a resource's lease, in one generation. Plain data: holding a stale one does no harm.
///
/// There is one [`Writer`](crate::Writer) per fence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fence {
    pub(crate) resource: Arc<str>,
    pub(crate) generation: u64,
    pub(crate) instance: Arc<str>,
}

impl Fence {
    /// The lease.
    pub fn resource(&self) -> &str {
        &self.resource
    }

    /// Its generation.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The instance that holds it: machine and base directory.
    pub fn instance(&self) -> &str {
        &self.instance
    }
}

/// A lease as the database has it. All times are the database's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The resource.
    pub resource: String,
    /// Who holds it, or held it last.
    pub holder: Holder,
    /// Its generation.
    pub generation: u64,
    /// Since when that holder has it.
    pub acquired_at: Timestamp,
    /// The holder's last sign of life.
    pub renewed_at: Timestamp,
    /// The holder gave it back.
    pub released: bool,
    /// When this was read.
    pub database_now: Timestamp,
    /// Counts signs of life.
    renewals: i64,
}

impl Lease {
    /// For how long the holder has given no sign of life.
    pub fn age(&self) -> Duration {
        let micros = self
            .database_now
            .as_micros()
            .saturating_sub(self.renewed_at.as_micros());
        Duration::from_micros(micros.try_into().unwrap_or(0))
    }
}

/// One change of hands, as the database remembers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseTerm {
    /// The generation that began.
    pub generation: u64,
    /// Who began it.
    pub holder: Holder,
    /// When, by the database's clock.
    pub acquired_at: Timestamp,
}

/// When a lease may be taken from somebody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Mutual exclusion: only when its holder gave it back, is known to have ended, or has given no sign of life for
    /// the waiting interval.
    Exclusive {
        /// How often the holder gives a sign of life.
        update_interval: Duration,
        /// How long its silence must last.
        wait_interval: Duration,
    },
    /// Without mutual exclusion: at once. The former holder finds itself fenced.
    Always,
}

/// The waiting interval is not greater than the update interval.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "waitInterval ({wait_interval:?}) must be greater than updateInterval ({update_interval:?}): a holder would lose its lease between two signs of life"
)]
pub struct IntervalsError {
    update_interval: Duration,
    wait_interval: Duration,
}

impl Policy {
    /// Mutual exclusion with these intervals.
    pub fn exclusive(
        update_interval: Duration,
        wait_interval: Duration,
    ) -> Result<Self, IntervalsError> {
        if wait_interval <= update_interval {
            return Err(IntervalsError {
                update_interval,
                wait_interval,
            });
        }
        Ok(Self::Exclusive {
            update_interval,
            wait_interval,
        })
    }
}

/// What one attempt came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attempt {
    /// The lease is ours.
    Acquired(Fence),
    /// Somebody else has it.
    Held {
        /// The lease as it stands.
        lease: Lease,
        /// How much longer its holder would have to be silent.
        lapses_in: Duration,
    },
}

/// Somebody who wants a lease. Remembers what it has seen of the holder, because a holder that gives no sign of life
/// while *we* wait for the interval has lapsed whatever the database's clock says.
#[derive(Debug)]
pub struct Candidate {
    store: Store,
    resource: Arc<str>,
    holder: Holder,
    policy: Policy,
    seen: Option<(u64, i64, Instant)>,
}

impl Candidate {
    /// `holder` wants the lease on `resource`.
    pub fn new(
        store: &Store,
        resource: impl Into<Arc<str>>,
        holder: Holder,
        policy: Policy,
    ) -> Self {
        Self {
            store: store.clone(),
            resource: resource.into(),
            holder,
            policy,
            seen: None,
        }
    }

    /// Takes the lease if the policy allows it now. May be dropped halfway: then the lease may have been taken, and is
    /// taken over from ourselves by the next attempt.
    pub async fn attempt(&mut self) -> Result<Attempt, Error> {
        let Some(lease) = current(&self.store, &self.resource).await? else {
            return match self.create().await? {
                Some(fence) => Ok(Attempt::Acquired(fence)),
                // Somebody else was faster.
                None => Box::pin(self.attempt()).await,
            };
        };
        let lapses_in = self.lapses_in(&lease);
        if !lapses_in.is_zero() {
            return Ok(Attempt::Held { lease, lapses_in });
        }
        match self.take(&lease).await? {
            Some(fence) => {
                info!(
                    resource = %self.resource, generation = fence.generation,
                    "the lease is ours; before, {} had it", if lease.released { "nobody".into() } else { lease.holder.instance() }
                );
                Ok(Attempt::Acquired(fence))
            }
            // The holder gave a sign of life after all.
            None => match current(&self.store, &self.resource).await? {
                Some(lease) => Ok(Attempt::Held {
                    lapses_in: self.lapses_in(&lease).max(TAKEOVER_POLL),
                    lease,
                }),
                None => Box::pin(self.attempt()).await,
            },
        }
    }

    /// Waits until the lease is ours. An attempt is made at least every [`ACQUIRE_POLL`]. May be dropped at any time.
    pub async fn acquire(&mut self) -> Result<Fence, Error> {
        loop {
            match self.attempt().await? {
                Attempt::Acquired(fence) => return Ok(fence),
                Attempt::Held { lapses_in, .. } => {
                    tokio::time::sleep(lapses_in.min(ACQUIRE_POLL)).await
                }
            }
        }
    }

    /// How long the lease is still its holder's; zero if it may be taken now.
    fn lapses_in(&mut self, lease: &Lease) -> Duration {
        let first_seen = match self.seen {
            Some((generation, renewals, at))
                if (generation, renewals) == (lease.generation, lease.renewals) =>
            {
                at
            }
            _ => {
                let now = Instant::now();
                self.seen = Some((lease.generation, lease.renewals, now));
                now
            }
        };
        let Policy::Exclusive { wait_interval, .. } = self.policy else {
            return Duration::ZERO;
        };
        let alive = lease.holder.process.alive();
        // A former term of our own, or one that we took without hearing of it.
        let own = alive == Some(true) && lease.holder == self.holder;
        if lease.released || own || alive == Some(false) {
            return Duration::ZERO;
        }
        let silent = lease.age().max(first_seen.elapsed());
        wait_interval.saturating_sub(silent)
    }

    fn row(&self, generation: i64) -> Vec<crate::sql::Value> {
        values![
            &*self.resource,
            generation,
            self.holder.machine.as_str(),
            self.holder.base_directory.as_str(),
            self.holder.process.id,
            // Ticks since boot stay below 2^63 for longer than machines last.
            self.holder.process.started as i64,
            self.holder.process.host.as_str(),
        ]
    }

    fn fence(&self, generation: i64) -> Result<Fence, Error> {
        let generation = u64::try_from(generation)
            .map_err(|_| corrupt(&self.resource, "its generation is below zero"))?;
        Ok(Fence {
            resource: self.resource.clone(),
            generation,
            instance: self.holder.instance().into(),
        })
    }

    /// The first lease on this resource. `None` if there is one after all.
    async fn create(&self) -> Result<Option<Fence>, Error> {
        let mut connection = self.store.database().connect(Purpose::Candidate).await?;
        self.begin(&mut connection, None).await?;
        let generation = next_generation(&mut connection, &self.resource, 0).await?;
        let sql = "INSERT INTO leases (resource, generation, machine, base_directory, process_id, process_started, host,
                       acquired_at, renewed_at, renewals, released, last_batch)
                   VALUES ($1, $2, $3, $4, $5, $6, $7, {now}, {now}, 0, 0, 0)
                   ON CONFLICT (resource) DO NOTHING";
        let inserted = connection
            .execute(sql, self.row(generation))
            .await
            .doing("creating the lease")?;
        self.conclude(connection, inserted, generation).await
    }

    /// Takes the lease from the holder that was seen. `None` if that holder has since given a sign of life.
    async fn take(&self, seen: &Lease) -> Result<Option<Fence>, Error> {
        let mut connection = self.store.database().connect(Purpose::Candidate).await?;
        self.begin(&mut connection, Some(seen)).await?;
        let generation =
            next_generation(&mut connection, &self.resource, int(seen.generation)?).await?;
        let sql = "UPDATE leases SET generation = $2, machine = $3, base_directory = $4, process_id = $5,
                       process_started = $6, host = $7, acquired_at = {now}, renewed_at = {now}, renewals = 0, released = 0
                   WHERE resource = $1 AND generation = $8 AND (renewals = $9 OR $10 = 1)
                   RETURNING last_batch";
        let mut parameters = self.row(generation);
        let regardless = self.policy == Policy::Always;
        parameters.extend(values![int(seen.generation)?, seen.renewals, regardless]);
        let updated = match connection.engine() {
            Engine::Sqlite => connection.fetch_one(sql, parameters).await,
            Engine::Postgres => self.past_the_holder(&mut connection, sql, parameters).await,
        };
        let updated = updated.doing("taking the lease over")?;
        if let Some(row) = &updated {
            // How far the former holder came stays known, so that it can tell what became of its last commit.
            let last_batch = row.int(0).doing("taking the lease over")?;
            let sql =
                "UPDATE lease_history SET last_batch = $3 WHERE resource = $1 AND generation = $2";
            let parameters = values![&*self.resource, int(seen.generation)?, last_batch];
            connection
                .execute(sql, parameters)
                .await
                .doing("taking the lease over")?;
        }
        self.conclude(connection, updated.is_some().into(), generation)
            .await
    }

    async fn conclude(
        &self,
        mut connection: Connection,
        taken: u64,
        generation: i64,
    ) -> Result<Option<Fence>, Error> {
        if taken == 0 {
            connection.discard().await;
            return Ok(None);
        }
        let sql = "INSERT INTO lease_history (resource, generation, machine, base_directory, process_id,
                       process_started, host, acquired_at) VALUES ($1, $2, $3, $4, $5, $6, $7, {now})";
        connection
            .execute(sql, self.row(generation))
            .await
            .doing("recording the change of hands")?;
        connection.commit().await.doing("committing the lease")?;
        connection.close().await;
        self.fence(generation).map(Some)
    }

    /// Opens the takeover's transaction. SQLite admits one writer, which may be a holder that has stopped.
    async fn begin(&self, connection: &mut Connection, seen: Option<&Lease>) -> Result<(), Error> {
        let started = Instant::now();
        let mut ended = false;
        loop {
            match connection.begin().await {
                Ok(()) => return Ok(()),
                Err(error)
                    if connection.engine() == Engine::Sqlite
                        && blame(&error) == Blame::Condition =>
                {
                    if started.elapsed() > TAKEOVER_PATIENCE {
                        return Err(Error::Database {
                            doing: "opening the takeover's transaction",
                            source: error,
                        });
                    }
                }
                Err(source) => {
                    return Err(Error::Database {
                        doing: "opening the takeover's transaction",
                        source,
                    });
                }
            }
            if let Some(lease) = seen
                && !ended
                && started.elapsed() > TAKEOVER_GRACE
            {
                self.end_process(&lease.holder)?;
                ended = true;
            }
            tokio::time::sleep(TAKEOVER_POLL).await;
        }
    }

    /// Ends the process that the lease names, because it sits on the database file. Its identity is checked on a
    /// handle that cannot come to mean another process.
    fn end_process(&self, holder: &Holder) -> Result<(), Error> {
        use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
        let blocked = |reason: String| Error::TakeoverBlocked {
            resource: self.resource.to_string(),
            reason,
        };
        let process = &holder.process;
        if process.id == std::process::id() {
            return Err(blocked(
                "this same process holds the database in another transaction".into(),
            ));
        }
        match process.alive() {
            Some(true) => {}
            // Somebody else sits on the file, say a person's sqlite3: wait for it.
            Some(false) => return Ok(()),
            None => {
                return Err(blocked(format!(
                    "the database file is locked, and its holder, process {} of {}, runs where this process cannot end it; end it there",
                    process.id, holder.machine
                )));
            }
        }
        let gone = |error: rustix::io::Errno| {
            if error == rustix::io::Errno::SRCH {
                return Ok(());
            }
            Err(blocked(format!(
                "process {} holds the database file and cannot be ended ({error}); end it",
                process.id
            )))
        };
        let Some(pid) = i32::try_from(process.id).ok().and_then(Pid::from_raw) else {
            return Ok(());
        };
        let handle = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(handle) => handle,
            Err(error) => return gone(error),
        };
        // Only now is it sure that the handle means the process that was looked at.
        if process.alive() != Some(true) {
            return Ok(());
        }
        warn!(
            resource = %self.resource, process = process.id,
            "ending the former holder: it has lost the lease and keeps the database file locked"
        );
        pidfd_send_signal(handle, Signal::KILL).or_else(gone)
    }

    /// Runs the takeover's statement on PostgreSQL, and ends the sessions that keep it waiting.
    async fn past_the_holder(
        &self,
        connection: &mut Connection,
        sql: &'static str,
        parameters: Vec<crate::sql::Value>,
    ) -> Result<Option<Row>, sqlx::Error> {
        let own = connection
            .fetch_one("SELECT CAST(pg_backend_pid() AS BIGINT)", values![])
            .await?;
        let own = own.ok_or(sqlx::Error::RowNotFound)?.int(0)?;
        let statement = connection.fetch_one(sql, parameters);
        tokio::pin!(statement);
        if let Ok(done) = tokio::time::timeout(TAKEOVER_GRACE, &mut statement).await {
            return done;
        }
        loop {
            if let Err(error) = self.end_blocking_sessions(own).await {
                warn!(resource = %self.resource, "cannot end the session that holds the lease: {error}");
            }
            if let Ok(done) = tokio::time::timeout(TAKEOVER_GRACE, &mut statement).await {
                return done;
            }
        }
    }

    async fn end_blocking_sessions(&self, own: i64) -> Result<(), Error> {
        let mut control = self.store.database().control().await?;
        let sql = "SELECT CAST(pid AS BIGINT), CAST(pg_terminate_backend(pid) AS TEXT) FROM pg_stat_activity
                   WHERE pid = ANY (pg_blocking_pids(CAST($1 AS INTEGER)))
                     AND datname = current_database() AND application_name = $2";
        let ended = control
            .fetch(sql, values![own, APPLICATION])
            .await
            .doing("ending the former holder's session")?;
        for row in ended {
            let session = row.int(0).doing("ending the former holder's session")?;
            warn!(resource = %self.resource, session, "ended a session of the former holder that kept the lease locked");
        }
        Ok(())
    }
}

fn corrupt(resource: &str, reason: &str) -> Error {
    Error::Corrupt {
        what: format!("lease '{resource}'"),
        reason: reason.into(),
    }
}

/// Never a generation that was given out before, even if somebody has edited the lease by hand.
async fn next_generation(
    connection: &mut Connection,
    resource: &str,
    seen: i64,
) -> Result<i64, Error> {
    let sql = "SELECT COALESCE(MAX(generation), 0) FROM lease_history WHERE resource = $1";
    let row = connection
        .fetch_one(sql, values![resource])
        .await
        .doing("reading the leases' history")?;
    let last = match row {
        Some(row) => row.int(0).doing("reading the leases' history")?,
        None => 0,
    };
    last.max(seen)
        .checked_add(1)
        .ok_or_else(|| corrupt(resource, "its generation has no successor"))
}

/// The lease on `resource`, if anybody ever had one.
pub async fn current(store: &Store, resource: &str) -> Result<Option<Lease>, Error> {
    let doing = "reading the lease";
    let sql = "SELECT generation, machine, base_directory, process_id, process_started, host,
                   acquired_at, renewed_at, renewals, released, {now} FROM leases WHERE resource = $1";
    let mut control = store.database().control().await?;
    let Some(row) = control
        .fetch_one(sql, values![resource])
        .await
        .doing(doing)?
    else {
        return Ok(None);
    };
    Ok(Some(Lease {
        resource: resource.to_owned(),
        generation: row.count(0).doing(doing)?,
        holder: holder(&row, 1).doing(doing)?,
        acquired_at: Timestamp::from_micros(row.int(6).doing(doing)?),
        renewed_at: Timestamp::from_micros(row.int(7).doing(doing)?),
        renewals: row.int(8).doing(doing)?,
        released: row.int(9).doing(doing)? != 0,
        database_now: Timestamp::from_micros(row.int(10).doing(doing)?),
    }))
}

fn holder(row: &Row, from: usize) -> Result<Holder, sqlx::Error> {
    Ok(Holder {
        machine: row.text(from)?,
        base_directory: row.text(from + 1)?,
        process: ProcessIdentity {
            id: row.int(from + 2)?.try_into().unwrap_or(0),
            started: row.int(from + 3)?.try_into().unwrap_or(0),
            host: row.text(from + 4)?,
        },
    })
}

/// The latest changes of hands of the lease on `resource`, newest first.
pub async fn history(store: &Store, resource: &str, limit: u32) -> Result<Vec<LeaseTerm>, Error> {
    let doing = "reading the leases' history";
    let sql =
        "SELECT generation, machine, base_directory, process_id, process_started, host, acquired_at
               FROM lease_history WHERE resource = $1 ORDER BY generation DESC LIMIT $2";
    let mut control = store.database().control().await?;
    let rows = control
        .fetch(sql, values![resource, limit])
        .await
        .doing(doing)?;
    rows.iter()
        .map(|row| {
            Ok(LeaseTerm {
                generation: row.count(0)?,
                holder: holder(row, 1)?,
                acquired_at: Timestamp::from_micros(row.int(6)?),
            })
        })
        .collect::<Result<_, sqlx::Error>>()
        .doing(doing)
}

/// Gives a sign of life and returns the database's time. [`Error::Fenced`] if the lease has passed to somebody else;
/// any other error means that it is unknown whether we still have it.
pub async fn renew(store: &Store, fence: &Fence) -> Result<Timestamp, Error> {
    let doing = "renewing the lease";
    let sql = "UPDATE leases SET renewed_at = {now}, renewals = renewals + 1
               WHERE resource = $1 AND generation = $2 AND released = 0 RETURNING renewed_at";
    let mut control = store.database().control().await?;
    let row = control
        .fetch_one(sql, values![fence.resource(), int(fence.generation)?])
        .await
        .doing(doing)?;
    match row {
        Some(row) => Ok(Timestamp::from_micros(row.int(0).doing(doing)?)),
        None => Err(fenced(&mut control, fence).await),
    }
}

/// Gives the lease back, so that the next one need not wait. Nothing can be written under this fence afterwards. Gives
/// back nothing, and is no error, if the lease has passed to somebody else already.
pub async fn release(store: &Store, fence: &Fence) -> Result<(), Error> {
    let sql = "UPDATE leases SET released = 1, renewals = renewals + 1 WHERE resource = $1 AND generation = $2";
    let mut control = store.database().control().await?;
    let parameters = values![fence.resource(), int(fence.generation)?];
    let released = control
        .execute(sql, parameters)
        .await
        .doing("releasing the lease")?;
    if released > 0 {
        info!(
            resource = fence.resource(),
            generation = fence.generation,
            "the lease is given back"
        );
    }
    Ok(())
}

/// The error of a writer whose generation is over, with the present holder if it can be found out.
pub(crate) async fn fenced(connection: &mut Connection, fence: &Fence) -> Error {
    let sql =
        "SELECT generation, machine, base_directory, released FROM leases WHERE resource = $1";
    let now_held_by = match connection.fetch_one(sql, values![fence.resource()]).await {
        Ok(Some(row)) => match (row.int(0), row.text(1), row.text(2), row.int(3)) {
            (Ok(generation), Ok(machine), Ok(directory), Ok(0)) => {
                format!("generation {generation} of {machine}:{directory}")
            }
            _ => "nobody (it was released)".into(),
        },
        Ok(None) => "nobody (its row is gone)".into(),
        Err(_) => "somebody unknown".into(),
    };
    Error::Fenced {
        resource: fence.resource().to_owned(),
        generation: fence.generation,
        now_held_by,
    }
}
