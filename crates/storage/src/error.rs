//! What can go wrong, sorted by what the caller can do about it.

use quorate_ledger::vault::QueryError;

use crate::options::UrlError;

/// A storage operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database URL cannot be used.
    #[error(transparent)]
    Url(#[from] UrlError),
    /// No connection.
    #[error("cannot connect to the database {database}; check that it runs and accepts this user")]
    Connect {
        /// Where, without secrets.
        database: String,
        /// Why.
        #[source]
        source: sqlx::Error,
    },
    /// The database refused or broke off an operation.
    #[error("the database failed while {doing}")]
    Database {
        /// What we were doing.
        doing: &'static str,
        /// What it said.
        #[source]
        source: sqlx::Error,
    },
    /// Another process holds the lease in a newer generation: this one must stop.
    #[error(
        "the lease '{resource}' has passed from generation {generation} to {now_held_by}: this process may write no more"
    )]
    Fenced {
        /// The lease.
        resource: String,
        /// The generation that is over.
        generation: u64,
        /// Who holds it now, as far as known.
        now_held_by: String,
    },
    /// A process that cannot be ended from here blocks the takeover of a lease.
    #[error("the lease '{resource}' cannot be taken over: {reason}")]
    TakeoverBlocked {
        /// The lease.
        resource: String,
        /// What is in the way, and the way out.
        reason: String,
    },
    /// The schema does not fit this program.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// A query asks for something that does not exist or exceeds a limit.
    #[error(transparent)]
    Query(#[from] QueryError),
    /// A stored value cannot be read.
    #[error(
        "the stored {what} cannot be read: {reason}; restore the database from a backup or report this"
    )]
    Corrupt {
        /// Which value.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A number that no database column can hold.
    #[error("the number {value} exceeds what the database can hold (2^63 - 1)")]
    NumberTooLarge {
        /// The number.
        value: u64,
    },
}

/// The database's schema and this program do not fit together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    /// Migrations are missing.
    #[error(
        "the database schema is not current, {} missing: {}; run `quorate database execute-migration` (or set database.runMigration = true)",
        if .pending.len() == 1 { "one migration is" } else { "migrations are" },
        .pending.join(", ")
    )]
    NotCurrent {
        /// The missing migrations, as "component version".
        pending: Vec<String>,
    },
    /// The database was migrated by a newer program.
    #[error(
        "the database has version {found} of '{component}', this program knows versions up to {known}: run the newer program, or restore a backup made before its migration"
    )]
    Newer {
        /// The core or an application's schema.
        component: String,
        /// The version found.
        found: u64,
        /// The newest that we know.
        known: u64,
    },
    /// A migration that has run differs from the one that this program carries.
    #[error(
        "version {version} of '{component}' in the database was made by a different migration than this program's: the program and the database do not belong together"
    )]
    Changed {
        /// The core or an application's schema.
        component: String,
        /// Its version.
        version: u64,
    },
    /// Another migration is running.
    #[error(
        "another migration is running ({holder}): wait for it, or run `quorate database release-lock` if it hangs"
    )]
    Locked {
        /// Who.
        holder: String,
    },
    /// An application's schema cannot be made.
    #[error("the schema '{schema}' of an application cannot be used: {reason}")]
    Invalid {
        /// Its name.
        schema: String,
        /// Why.
        reason: String,
    },
}

/// Turns sqlx's errors into ours, with what we were doing.
pub(crate) trait Doing<T> {
    fn doing(self, doing: &'static str) -> Result<T, Error>;
}

impl<T> Doing<T> for Result<T, sqlx::Error> {
    fn doing(self, doing: &'static str) -> Result<T, Error> {
        self.map_err(|source| Error::Database { doing, source })
    }
}

/// What a database's refusal tells about the operation and its repetition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Blame {
    /// The connection or the server: the same operation may succeed on a new connection.
    Connection,
    /// The database's condition, such as a full disk or a lock: the same may succeed later.
    Condition,
    /// The operation itself.
    Operation,
}

/// Who is to blame for a failure.
pub(crate) fn blame(error: &sqlx::Error) -> Blame {
    use sqlx::Error as E;
    match error {
        E::Io(_)
        | E::Tls(_)
        | E::Protocol(_)
        | E::PoolTimedOut
        | E::PoolClosed
        | E::WorkerCrashed => Blame::Connection,
        E::Database(refusal) => match refusal.code().as_deref() {
            None => Blame::Operation,
            // PostgreSQL: connection exceptions, the server or an administrator ended the session, time-outs that end it.
            Some(code) if code.len() == 5 => match &code[..2] {
                "08" | "57" if code != "57014" => Blame::Connection,
                _ if matches!(code, "25P02" | "25P03" | "25P04") => Blame::Connection,
                // Out of resources, rolled back by the server, not available just now, cancelled.
                "53" | "40" | "55" | "57" | "58" | "25" => Blame::Condition,
                _ => Blame::Operation,
            },
            // SQLite: the low byte is the primary code.
            Some(code) => match code.parse::<u32>().map(|code| code & 0xff) {
                // BUSY, LOCKED, NOMEM, READONLY, IOERR, FULL, CANTOPEN, PROTOCOL
                Ok(5 | 6 | 7 | 8 | 10 | 13 | 14 | 15) => Blame::Condition,
                _ => Blame::Operation,
            },
        },
        _ => Blame::Operation,
    }
}

impl Error {
    /// Who is to blame for a failure.
    pub(crate) fn blame(&self) -> Blame {
        match self {
            Self::Connect { .. } => Blame::Connection,
            Self::Database { source, .. } => blame(source),
            _ => Blame::Operation,
        }
    }

    /// Whether the same operation may succeed later: the database was out of reach or busy.
    pub fn is_transient(&self) -> bool {
        self.blame() != Blame::Operation
    }
}
