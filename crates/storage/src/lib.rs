//! Everything durable of a logical node, in one PostgreSQL or SQLite database. The only crate with SQL.
//!
//! A [`Store`] reads. Who wants to write first needs a lease ([`lease::Candidate`]), whose [`Fence`] opens a
//! [`Writer`]; the writer makes [`UnitOfWork`]s durable, many at a time, each whole or not at all, and refuses when the
//! lease has passed to another process. [`migrate`] brings a database to the schema that this program needs.
//!
//! What it leaves to others: when to take a lease and what to do on its loss (`node`), what a flow's bytes mean
//! (`flow`), how messages travel (`messaging`).
//!
//! Where to start reading: [`UnitOfWork`] for what can be written, [`Store`] for what can be read, the module `writer`
//! for how a commit happens, `migrations` for the tables.

mod apply;
mod audit;
mod database;
mod error;
pub mod lease;
pub mod migrate;
mod options;
mod prepare;
mod query;
mod reads;
mod spent;
mod sql;
mod unit;
mod writer;

use std::sync::Arc;

use quorate_ledger::schema::MappedSchema;

pub use audit::{CLEANUP_ROWS, RpcAuditFilter, RpcAuditRecord};
pub use error::{Error, SchemaError};
pub use lease::Fence;
pub use options::{
    DEFAULT_CONNECT_TIMEOUT, DEFAULT_IDLE_TRANSACTION_TIMEOUT, DEFAULT_POSTGRES_PORT,
    DEFAULT_READERS, DEFAULT_STATEMENT_TIMEOUT, DatabaseUrl, GroupCommit, Options, Tls, UrlError,
};
pub use query::{MAX_QUERY_PARAMETERS, MAX_UPDATES};
pub use reads::{
    FlowRecord, InboxMessage, MAX_ROWS, OutboxPage, OutboxPeer, StoredAttachment,
    StoredTransaction, UnfinishedFlows,
};
pub use spent::SpentState;
pub use sql::Engine;
pub use unit::{
    Cleanup, CommitError, Committed, Epoch, InvocationId, LockError, LockRequest, NewAttachment,
    NotaryCommit, NotaryEntry, NotaryResult, Queued, Received, Reception, Refusal, Relevance,
    Respond, RpcInvocation, UnitOfWork,
};
pub use writer::{Writer, WriterEnd, WriterService};

use database::Database;
use query::Schemas;

/// An open database; cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    database: Arc<Database>,
    schemas: Arc<Schemas>,
}

impl Store {
    /// Opens the database, which may be empty, for the applications with these schemas. Whether its schema is the one
    /// that is needed is another question ([`migrate::check_current`]).
    pub async fn connect(options: Options, schemas: Vec<MappedSchema>) -> Result<Self, Error> {
        let engine = match options.url {
            DatabaseUrl::Postgres { .. } => Engine::Postgres,
            DatabaseUrl::Sqlite { .. } => Engine::Sqlite,
        };
        let schemas = Arc::new(Schemas::new(engine, schemas)?);
        Ok(Self {
            database: Database::open(options).await?,
            schemas,
        })
    }

    /// Which engine this is.
    pub fn engine(&self) -> Engine {
        self.database.engine()
    }

    /// The database without user and password, for people.
    pub fn name(&self) -> &str {
        self.database.name()
    }

    /// Closes the connections that read, once they are free. Writers have their own.
    pub async fn close(&self) {
        self.database.close().await;
    }

    pub(crate) fn database(&self) -> &Database {
        &self.database
    }

    pub(crate) fn schemas(&self) -> &Schemas {
        &self.schemas
    }
}
