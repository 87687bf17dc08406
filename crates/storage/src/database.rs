//! Opening connections, each for one purpose and with the session settings that purpose needs.

use std::fmt;
use std::future::Future;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use sqlx::pool::PoolOptions;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Pool, Postgres, Sqlite};
use tracing::{info, warn};

use crate::error::{Blame, Doing, Error, blame};
use crate::options::{DatabaseUrl, Options, Tls};
use crate::sql::{Connection, Engine, Link, STATEMENT_CACHE, values};

/// Connections that renew leases, apart from those that read, so that a flood of queries cannot cost the lease.
const CONTROL_CONNECTIONS: u32 = 2;

/// How long a writer of SQLite waits for another one.
const SQLITE_BUSY: Duration = Duration::from_secs(10);

/// After this long without a sign of life the server ends a session whose machine has vanished.
const KEEPALIVE: [(&str, &str); 3] = [
    ("tcp_keepalives_idle", "10"),
    ("tcp_keepalives_interval", "5"),
    ("tcp_keepalives_count", "3"),
];

/// The name under which PostgreSQL shows our sessions. A takeover ends only sessions of this name.
pub(crate) const APPLICATION: &str = "quorate";

/// The name of a session that is taking a lease over: another takeover leaves it alone.
pub(crate) const CANDIDATE: &str = "candidate for a quorate lease";

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Queries.
    Read,
    /// The group commit.
    Write,
    /// Leases and looks at the server.
    Control,
    /// Taking a lease over.
    Candidate,
    /// Migrations.
    Migrate,
}

enum Pools {
    Postgres {
        options: Box<PgConnectOptions>,
        readers: Pool<Postgres>,
        control: Pool<Postgres>,
    },
    Sqlite {
        options: Box<SqliteConnectOptions>,
        readers: Pool<Sqlite>,
        control: Pool<Sqlite>,
    },
}

/// A database that connections can be made to.
pub(crate) struct Database {
    pools: Pools,
    name: String,
    pub(crate) schema: Option<String>,
    options: Options,
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Database")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// The kind of network file system that a file is on, or will be.
fn network_drive(path: &std::path::Path) -> Option<&'static str> {
    // Magic numbers of statfs(2).
    const KINDS: [(u32, &str); 5] = [
        (0x6969, "NFS"),
        (0x517b, "SMB"),
        (0xff53_4d42, "CIFS"),
        (0xfe53_4d42, "SMB2"),
        (0x0102_1997, "9p"),
    ];
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let found = rustix::fs::statfs(folder.unwrap_or(std::path::Path::new("."))).ok()?;
    // The kernel's number has 32 bits, whatever the width of the field.
    let magic = found.f_type as u32;
    KINDS
        .iter()
        .find(|(kind, _)| *kind == magic)
        .map(|(_, name)| *name)
}

impl Database {
    /// Checks that the database answers.
    pub(crate) async fn open(options: Options) -> Result<Arc<Self>, Error> {
        let name = options.url.to_string();
        let mut schema = None;
        let pools = match &options.url {
            DatabaseUrl::Sqlite { path } => {
                if let Some(kind) = network_drive(path) {
                    warn!(
                        file = %path.display(),
                        "the SQLite file is on a network drive ({kind}), whose locks cannot be relied on: \
                         use a local disk, or PostgreSQL for a node of several machines"
                    );
                }
                let sqlite = SqliteConnectOptions::new()
                    .filename(path)
                    .create_if_missing(true)
                    .journal_mode(SqliteJournalMode::Wal)
                    .synchronous(SqliteSynchronous::Full)
                    .foreign_keys(true)
                    .busy_timeout(SQLITE_BUSY)
                    .statement_cache_capacity(STATEMENT_CACHE)
                    .disable_statement_logging();
                Pools::Sqlite {
                    readers: pool(&options, options.readers)
                        .connect_lazy_with(sqlite.clone().pragma("query_only", "ON")),
                    control: pool(&options, CONTROL_CONNECTIONS).connect_lazy_with(sqlite.clone()),
                    options: Box::new(sqlite),
                }
            }
            DatabaseUrl::Postgres { ignored, .. } => {
                if !ignored.is_empty() {
                    warn!(
                        "parameters of the database URL without meaning here: {}",
                        ignored.join(", ")
                    );
                }
                let postgres = postgres_options(&options, &mut schema)?;
                Pools::Postgres {
                    readers: pool(&options, options.readers).connect_lazy_with(session(
                        &postgres,
                        &options,
                        Purpose::Read,
                    )),
                    control: pool(&options, CONTROL_CONNECTIONS).connect_lazy_with(session(
                        &postgres,
                        &options,
                        Purpose::Control,
                    )),
                    options: Box::new(postgres),
                }
            }
        };
        let database = Arc::new(Self {
            pools,
            name,
            schema,
            options,
        });
        // The first connection is made apart from the pools: it fails with the server's own reason instead of a time-out.
        let mut connection = database.connect(Purpose::Control).await?;
        database.check_durability(&mut connection).await?;
        connection.close().await;
        Ok(database)
    }

    pub(crate) fn engine(&self) -> Engine {
        match self.pools {
            Pools::Postgres { .. } => Engine::Postgres,
            Pools::Sqlite { .. } => Engine::Sqlite,
        }
    }

    pub(crate) fn options(&self) -> &Options {
        &self.options
    }

    /// The database without secrets, for people.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    fn no_connection(&self, source: sqlx::Error) -> Error {
        Error::Connect {
            database: self.name.clone(),
            source,
        }
    }

    /// A connection of one's own.
    pub(crate) async fn connect(&self, purpose: Purpose) -> Result<Connection, Error> {
        let made = async {
            Ok(match &self.pools {
                Pools::Postgres { options, .. } => {
                    Connection::from(session(options, &self.options, purpose).connect().await?)
                }
                Pools::Sqlite { options, .. } => {
                    let busy = match purpose {
                        // The taker finds out who is in its way instead of waiting.
                        Purpose::Candidate => Duration::ZERO,
                        _ => SQLITE_BUSY,
                    };
                    Connection::from((**options).clone().busy_timeout(busy).connect().await?)
                }
            })
        };
        match tokio::time::timeout(self.options.connect_timeout, made).await {
            Ok(made) => made.map_err(|source| self.no_connection(source)),
            Err(_) => Err(self.no_connection(sqlx::Error::PoolTimedOut)),
        }
    }

    /// A connection of the pool of readers.
    pub(crate) async fn reader(&self) -> Result<Connection, Error> {
        Ok(match &self.pools {
            Pools::Postgres { readers, .. } => Connection::Postgres(self.pooled(readers).await?),
            Pools::Sqlite { readers, .. } => Connection::Sqlite(self.pooled(readers).await?),
        })
    }

    /// A connection of the small pool for leases.
    pub(crate) async fn control(&self) -> Result<Connection, Error> {
        Ok(match &self.pools {
            Pools::Postgres { control, .. } => Connection::Postgres(self.pooled(control).await?),
            Pools::Sqlite { control, .. } => Connection::Sqlite(self.pooled(control).await?),
        })
    }

    async fn pooled<D: sqlx::Database>(&self, pool: &Pool<D>) -> Result<Link<D>, Error> {
        pool.acquire()
            .await
            .map(Link::Pooled)
            .map_err(|source| self.no_connection(source))
    }

    /// Reads several things as of one moment.
    pub(crate) async fn snapshot<T, F>(&self, work: F) -> Result<T, Error>
    where
        F: AsyncFnOnce(&mut Connection) -> Result<T, Error>,
    {
        // The guard takes a connection out of use when this future is dropped inside the transaction.
        let mut guard = Discarded(Some(self.reader().await?));
        let Some(connection) = guard.0.as_mut() else {
            unreachable!("the guard was just filled")
        };
        connection
            .begin_snapshot()
            .await
            .doing("beginning to read")?;
        let result = work(connection).await;
        connection.rollback().await.doing("ending a read")?;
        guard.0.take();
        result
    }

    pub(crate) async fn close(&self) {
        match &self.pools {
            Pools::Postgres {
                readers, control, ..
            } => {
                readers.close().await;
                control.close().await;
            }
            Pools::Sqlite {
                readers, control, ..
            } => {
                readers.close().await;
                control.close().await;
            }
        }
    }

    /// What is promised as durable must reach the disk; PostgreSQL can be told otherwise.
    async fn check_durability(&self, connection: &mut Connection) -> Result<(), Error> {
        if self.engine() == Engine::Sqlite {
            return Ok(());
        }
        let doing = "looking at the server's settings";
        let sql = "SELECT name, setting FROM pg_settings
                   WHERE name IN ('fsync', 'full_page_writes', 'synchronous_commit', 'server_version')";
        for row in connection.fetch(sql, values![]).await.doing(doing)? {
            let (name, setting) = (row.text(0).doing(doing)?, row.text(1).doing(doing)?);
            if name == "server_version" {
                info!("connected to PostgreSQL {setting} at {}", self.name);
            } else if setting == "off" {
                warn!(
                    "PostgreSQL runs with {name} = off: what this program calls durable may be lost when that machine fails"
                );
            }
        }
        Ok(())
    }
}

/// A connection that is shut unless it is taken out in time.
struct Discarded(Option<Connection>);

impl Drop for Discarded {
    fn drop(&mut self) {
        match self.0.take() {
            Some(Connection::Postgres(Link::Pooled(pooled))) => drop(pooled.detach()),
            Some(Connection::Sqlite(Link::Pooled(pooled))) => drop(pooled.detach()),
            _ => {}
        }
    }
}

fn pool<D: sqlx::Database>(options: &Options, size: u32) -> PoolOptions<D> {
    PoolOptions::new()
        .max_connections(size.max(1))
        .acquire_timeout(options.connect_timeout)
        .test_before_acquire(true)
}

fn postgres_options(
    options: &Options,
    schema_of_url: &mut Option<String>,
) -> Result<PgConnectOptions, Error> {
    let DatabaseUrl::Postgres {
        host,
        port,
        database,
        user,
        password,
        schema,
        tls,
        ..
    } = &options.url
    else {
        return Err(Error::Url(crate::options::UrlError::Engine {
            engine: options.url.to_string(),
        }));
    };
    let mut postgres = PgConnectOptions::new_without_pgpass()
        .host(host)
        .port(*port)
        .database(database)
        .statement_cache_capacity(STATEMENT_CACHE)
        .disable_statement_logging();
    if let Some(user) = options.user.as_ref().or(user.as_ref()) {
        postgres = postgres.username(user);
    }
    if let Some(password) = options.password.as_ref().or(password.as_ref()) {
        postgres = postgres.password(password.expose());
    }
    *schema_of_url = options.schema.clone().or_else(|| schema.clone());
    if let Some(schema) = schema_of_url {
        check_schema_name(schema)?;
    }
    Ok(
        match options
            .tls
            .as_ref()
            .or(tls.as_ref())
            .unwrap_or(&Tls::Prefer)
        {
            Tls::Off => postgres.ssl_mode(PgSslMode::Disable),
            Tls::Prefer => postgres.ssl_mode(PgSslMode::Prefer),
            Tls::Require => postgres.ssl_mode(PgSslMode::Require),
            Tls::Verify { root: None } => postgres.ssl_mode(PgSslMode::VerifyFull),
            Tls::Verify { root: Some(root) } => {
                postgres.ssl_mode(PgSslMode::VerifyFull).ssl_root_cert(root)
            }
        },
    )
}

/// A schema's name goes into session settings, where nothing can be bound.
fn check_schema_name(schema: &str) -> Result<(), Error> {
    let good = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if schema.is_empty() || schema.len() > 63 || !schema.chars().all(good) {
        let reason = format!(
            "'{}' is not a schema name (letters, digits and '_', at most 63)",
            schema.escape_debug()
        );
        return Err(Error::Url(crate::options::UrlError::Malformed { reason }));
    }
    Ok(())
}

fn session(postgres: &PgConnectOptions, options: &Options, purpose: Purpose) -> PgConnectOptions {
    let millis = |duration: Duration| duration.as_millis().to_string();
    let mut settings: Vec<(&str, String)> = KEEPALIVE
        .map(|(name, value)| (name, value.to_owned()))
        .to_vec();
    let idle = match purpose {
        // A taker that stops half-way must not be the next obstacle.
        Purpose::Candidate => Duration::from_secs(2).min(options.idle_transaction_timeout),
        _ => options.idle_transaction_timeout,
    };
    settings.push(("idle_in_transaction_session_timeout", millis(idle)));
    // A migration may rewrite large tables.
    let statement = if purpose == Purpose::Migrate {
        Duration::ZERO
    } else {
        options.statement_timeout
    };
    settings.push(("statement_timeout", millis(statement)));
    settings.push(("jit", "off".into()));
    if purpose == Purpose::Write {
        // Always the same few statements, over arrays, each row found by a key: planning them anew would only cost time,
        // and what looks cheap while a table is small (reading all of it) must not stay the plan when it has grown.
        settings.push(("plan_cache_mode", "force_generic_plan".into()));
        for method in ["enable_seqscan", "enable_hashjoin", "enable_mergejoin"] {
            settings.push((method, "off".into()));
        }
    }
    let schema = options.schema.as_deref().or(match &options.url {
        DatabaseUrl::Postgres { schema, .. } => schema.as_deref(),
        DatabaseUrl::Sqlite { .. } => None,
    });
    if let Some(schema) = schema {
        settings.push(("search_path", schema.to_owned()));
    }
    let name = if purpose == Purpose::Candidate {
        CANDIDATE
    } else {
        APPLICATION
    };
    postgres.clone().application_name(name).options(settings)
}

/// Tries a read again on a new connection if the one it had turned out dead: pools keep connections over a restart of
/// the server.
pub(crate) async fn again_if_disconnected<T, F>(work: impl Fn() -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, Error>>,
{
    match work().await {
        Err(Error::Database { source, .. }) if blame(&source) == Blame::Connection => work().await,
        other => other,
    }
}

impl FromStr for Options {
    type Err = Error;

    fn from_str(url: &str) -> Result<Self, Error> {
        Ok(Self::new(url.parse()?))
    }
}
