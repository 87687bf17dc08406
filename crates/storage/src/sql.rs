//! The two engines behind one face: connections, values, rows, and statements over many rows.
//!
//! Only this module knows which engine is at work. Everybody else writes one SQL text for both, with `$1` for
//! parameters and these words, which are replaced per engine: `{now}` (microseconds since 1970 by the database's
//! clock), `{random16}` (16 random bytes), `{bytes}` and `{text}` (types of columns), `{clustered}` (a small table kept
//! in its primary key) and, in a [`Batch`], `{rows}` (the rows given, as a table named `d`).
//!
//! sqlx's own `Any` driver was left aside: it is configured by a URL only (no session settings, the password in a
//! string), refuses columns that are computed, and has no arrays, with which PostgreSQL takes any number of rows in
//! one prepared statement.

use std::collections::HashMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgArguments, PgConnection, PgRow};
use sqlx::sqlite::{SqliteArguments, SqliteConnection, SqliteRow};
use sqlx::{
    Arguments, AssertSqlSafe, Connection as _, Executor, Postgres, Row as _, SqlSafeStr, SqlStr,
    Sqlite,
};

use crate::error::Error;

/// Rows per statement on SQLite: a few fixed sizes, so that each statement is prepared once.
const SQLITE_CHUNKS: [usize; 5] = [256, 64, 16, 4, 1];

/// Rows per statement on PostgreSQL: bounds one message to the server, not the number of prepared statements.
const POSTGRES_CHUNK: usize = 4_096;

/// Statements that a connection keeps prepared.
pub(crate) const STATEMENT_CACHE: usize = 512;

/// Which database engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Engine {
    /// A PostgreSQL server.
    Postgres,
    /// A SQLite file.
    Sqlite,
}

impl Engine {
    /// Replaces the words that differ between the engines.
    pub(crate) fn text(self, sql: &str) -> String {
        let words = match self {
            Self::Postgres => [
                (
                    "{now}",
                    "CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT)",
                ),
                (
                    "{random16}",
                    "decode(replace(CAST(gen_random_uuid() AS TEXT), '-', ''), 'hex')",
                ),
                ("{bytes}", "BYTEA"),
                // By code points, as SQLite does it, whatever the database's locale is.
                ("{text}", "TEXT COLLATE \"C\""),
                (" {clustered}", ""),
            ],
            Self::Sqlite => [
                (
                    "{now}",
                    "CAST(unixepoch('now', 'subsec') * 1000000 AS INTEGER)",
                ),
                ("{random16}", "randomblob(16)"),
                ("{bytes}", "BLOB"),
                ("{text}", "TEXT"),
                (" {clustered}", " WITHOUT ROWID"),
            ],
        };
        words.iter().fold(sql.to_owned(), |sql, (word, meaning)| {
            sql.replace(word, meaning)
        })
    }
}

/// The three kinds of columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Int,
    Text,
    Bytes,
}

/// A parameter; an absent one keeps its kind, because PostgreSQL's parameters are typed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Int(Option<i64>),
    Text(Option<String>),
    Bytes(Option<Vec<u8>>),
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Int(Some(value))
    }
}
impl From<u32> for Value {
    fn from(value: u32) -> Self {
        Self::Int(Some(value.into()))
    }
}
impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Int(Some(value.into()))
    }
}
impl From<Option<i64>> for Value {
    fn from(value: Option<i64>) -> Self {
        Self::Int(value)
    }
}
impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::Text(Some(value.to_owned()))
    }
}
impl From<String> for Value {
    fn from(value: String) -> Self {
        Self::Text(Some(value))
    }
}
impl From<Option<String>> for Value {
    fn from(value: Option<String>) -> Self {
        Self::Text(value)
    }
}
impl From<Vec<u8>> for Value {
    fn from(value: Vec<u8>) -> Self {
        Self::Bytes(Some(value))
    }
}
impl From<&[u8]> for Value {
    fn from(value: &[u8]) -> Self {
        Self::Bytes(Some(value.to_vec()))
    }
}
impl<const N: usize> From<&[u8; N]> for Value {
    fn from(value: &[u8; N]) -> Self {
        Self::Bytes(Some(value.to_vec()))
    }
}
impl From<Option<Vec<u8>>> for Value {
    fn from(value: Option<Vec<u8>>) -> Self {
        Self::Bytes(value)
    }
}

/// The parameters of one statement.
macro_rules! values {
    ($($value:expr),* $(,)?) => { vec![$($crate::sql::Value::from($value)),*] };
}
pub(crate) use values;

/// A count or sequence number as the database keeps it.
pub(crate) fn int(value: u64) -> Result<i64, Error> {
    i64::try_from(value).map_err(|_| Error::NumberTooLarge { value })
}

/// A statement over many rows at once. Its text reads them from `{rows}`; `$1` … are the scalars before them.
#[derive(Debug, Clone)]
pub(crate) struct Batch {
    sql: Arc<str>,
    scalars: usize,
    columns: Arc<[(String, Kind)]>,
}

impl Batch {
    pub(crate) fn new(sql: &str, scalars: usize, columns: &[(&str, Kind)]) -> Self {
        let columns = columns
            .iter()
            .map(|(name, kind)| ((*name).to_owned(), *kind))
            .collect();
        Self {
            sql: sql.into(),
            scalars,
            columns,
        }
    }

    /// The text for PostgreSQL: one array per column.
    fn postgres(&self) -> String {
        let mut arrays = Vec::new();
        let mut names = Vec::new();
        for (i, (name, kind)) in self.columns.iter().enumerate() {
            let of = match kind {
                Kind::Int => "BIGINT",
                Kind::Text => "TEXT",
                Kind::Bytes => "BYTEA",
            };
            arrays.push(format!("${}::{of}[]", self.scalars + i + 1));
            names.push(name.as_str());
        }
        let rows = format!("unnest({}) AS d({})", arrays.join(", "), names.join(", "));
        Engine::Postgres.text(&self.sql.replace("{rows}", &rows))
    }

    /// The text for SQLite with `count` rows.
    fn sqlite(&self, count: usize) -> String {
        let width = self.columns.len();
        let mut rows = String::from("(SELECT ");
        for (i, (name, _)) in self.columns.iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            rows.push_str(&format!("{comma}column{} AS {name}", i + 1));
        }
        rows.push_str(" FROM (VALUES ");
        for row in 0..count {
            rows.push_str(if row == 0 { "(" } else { ", (" });
            for column in 0..width {
                let comma = if column == 0 { "" } else { ", " };
                rows.push_str(&format!(
                    "{comma}${}",
                    self.scalars + row * width + column + 1
                ));
            }
            rows.push(')');
        }
        // The limit is what tells SQLite how few rows these are. Without it, it takes the other table first and reads it
        // from end to end.
        rows.push_str(&format!(") LIMIT {count}) AS d"));
        Engine::Sqlite.text(&self.sql.replace("{rows}", &rows))
    }

    #[cfg(test)]
    pub(crate) fn explained(&self, engine: Engine, count: usize) -> SqlStr {
        let text = if engine == Engine::Postgres {
            self.postgres()
        } else {
            self.sqlite(count)
        };
        AssertSqlSafe(format!("EXPLAIN QUERY PLAN {text}")).into_sql_str()
    }

    /// The expanded text, made once per statement and number of rows.
    fn expanded(&self, engine: Engine, count: usize) -> SqlStr {
        type Texts = HashMap<(Engine, Arc<str>, usize), Arc<str>>;
        // Bounded: the program's statements and those of the installed apps, times the chunk sizes.
        static TEXTS: LazyLock<Mutex<Texts>> = LazyLock::new(Mutex::default);
        let key = (
            engine,
            self.sql.clone(),
            if engine == Engine::Postgres { 0 } else { count },
        );
        let mut texts = TEXTS.lock().unwrap_or_else(PoisonError::into_inner);
        let text = texts.entry(key).or_insert_with(|| {
            match engine {
                Engine::Postgres => self.postgres(),
                Engine::Sqlite => self.sqlite(count),
            }
            .into()
        });
        AssertSqlSafe(text.clone()).into_sql_str()
    }
}

/// Declares a [`Batch`] once: `batch!(NAME, "sql", scalars, [column: Kind, …])`.
macro_rules! batch {
    ($name:ident, $scalars:expr, [$($column:ident : $kind:ident),* $(,)?], $sql:expr) => {
        static $name: std::sync::LazyLock<$crate::sql::Batch> = std::sync::LazyLock::new(|| {
            $crate::sql::Batch::new($sql, $scalars, &[$((stringify!($column), $crate::sql::Kind::$kind)),*])
        });
    };
}
pub(crate) use batch;

/// One connection, of the pool or of one's own.
pub(crate) enum Connection {
    Postgres(Link<Postgres>),
    Sqlite(Link<Sqlite>),
}

/// Where a connection comes from, and goes when dropped: back to the pool, or shut.
pub(crate) enum Link<D: sqlx::Database> {
    Owned(Box<D::Connection>),
    Pooled(PoolConnection<D>),
}

impl<D: sqlx::Database> Deref for Link<D> {
    type Target = D::Connection;
    fn deref(&self) -> &D::Connection {
        match self {
            Self::Owned(connection) => connection,
            Self::Pooled(connection) => connection,
        }
    }
}

impl<D: sqlx::Database> DerefMut for Link<D> {
    fn deref_mut(&mut self) -> &mut D::Connection {
        match self {
            Self::Owned(connection) => connection,
            Self::Pooled(connection) => connection,
        }
    }
}

impl From<PgConnection> for Connection {
    fn from(connection: PgConnection) -> Self {
        Self::Postgres(Link::Owned(Box::new(connection)))
    }
}

impl From<SqliteConnection> for Connection {
    fn from(connection: SqliteConnection) -> Self {
        Self::Sqlite(Link::Owned(Box::new(connection)))
    }
}

/// The statement's text: static ones need no allocation unless they hold words to replace.
fn prepare(engine: Engine, sql: &'static str) -> SqlStr {
    if sql.contains('{') {
        return AssertSqlSafe(engine.text(sql)).into_sql_str();
    }
    sql.into_sql_str()
}

type Outcome<T> = Result<T, sqlx::Error>;

impl Connection {
    pub(crate) fn engine(&self) -> Engine {
        match self {
            Self::Postgres(_) => Engine::Postgres,
            Self::Sqlite(_) => Engine::Sqlite,
        }
    }

    /// Runs a statement and returns how many rows it changed.
    pub(crate) async fn execute(&mut self, sql: &'static str, values: Vec<Value>) -> Outcome<u64> {
        let sql = prepare(self.engine(), sql);
        self.execute_text(sql, values).await
    }

    /// Runs a statement and returns its rows.
    pub(crate) async fn fetch(
        &mut self,
        sql: &'static str,
        values: Vec<Value>,
    ) -> Outcome<Vec<Row>> {
        let sql = prepare(self.engine(), sql);
        self.fetch_text(sql, values).await
    }

    /// Runs a statement and returns its only row, if it has one.
    pub(crate) async fn fetch_one(
        &mut self,
        sql: &'static str,
        values: Vec<Value>,
    ) -> Outcome<Option<Row>> {
        Ok(self.fetch(sql, values).await?.into_iter().next())
    }

    /// As [`execute`](Self::execute), for a text that was put together from checked identifiers.
    pub(crate) async fn execute_text(&mut self, sql: SqlStr, values: Vec<Value>) -> Outcome<u64> {
        match self {
            Self::Postgres(link) => {
                let query = sqlx::query_with(sql, postgres_arguments(values)?);
                Ok((&mut **link).execute(query).await?.rows_affected())
            }
            Self::Sqlite(link) => {
                let query = sqlx::query_with(sql, sqlite_arguments(values)?);
                Ok((&mut **link).execute(query).await?.rows_affected())
            }
        }
    }

    /// As [`fetch`](Self::fetch), for a text that was put together from checked identifiers.
    pub(crate) async fn fetch_text(
        &mut self,
        sql: SqlStr,
        values: Vec<Value>,
    ) -> Outcome<Vec<Row>> {
        Ok(match self {
            Self::Postgres(link) => {
                let query = sqlx::query_with(sql, postgres_arguments(values)?);
                let rows = (&mut **link).fetch_all(query).await?;
                rows.into_iter().map(Row::Postgres).collect()
            }
            Self::Sqlite(link) => {
                let query = sqlx::query_with(sql, sqlite_arguments(values)?);
                let rows = (&mut **link).fetch_all(query).await?;
                rows.into_iter().map(Row::Sqlite).collect()
            }
        })
    }

    /// Runs several statements without parameters.
    pub(crate) async fn script(&mut self, sql: &str) -> Outcome<()> {
        let sql = sqlx::raw_sql(AssertSqlSafe(self.engine().text(sql)));
        match self {
            Self::Postgres(link) => (&mut **link).execute(sql).await.map(drop),
            Self::Sqlite(link) => (&mut **link).execute(sql).await.map(drop),
        }
    }

    /// Runs `batch` over `rows` (all columns of the first row, then of the second, …); returns how many rows changed.
    pub(crate) async fn execute_batch(
        &mut self,
        batch: &Batch,
        scalars: &[Value],
        rows: Vec<Value>,
    ) -> Outcome<u64> {
        let mut changed = 0;
        let mut chunks = Chunks::new(self.engine(), batch, scalars, rows);
        while let Some((sql, values)) = chunks.next() {
            changed += match (&mut *self, values) {
                (Self::Postgres(link), Parameters::Postgres(values)) => (&mut **link)
                    .execute(sqlx::query_with(sql, values?))
                    .await?
                    .rows_affected(),
                (Self::Sqlite(link), Parameters::Sqlite(values)) => (&mut **link)
                    .execute(sqlx::query_with(sql, values?))
                    .await?
                    .rows_affected(),
                _ => 0,
            };
        }
        Ok(changed)
    }

    /// Runs `batch` over `rows` and returns what it returns, in no particular order.
    pub(crate) async fn fetch_batch(
        &mut self,
        batch: &Batch,
        scalars: &[Value],
        rows: Vec<Value>,
    ) -> Outcome<Vec<Row>> {
        let mut found = Vec::new();
        let mut chunks = Chunks::new(self.engine(), batch, scalars, rows);
        while let Some((sql, values)) = chunks.next() {
            match (&mut *self, values) {
                (Self::Postgres(link), Parameters::Postgres(values)) => {
                    let rows = (&mut **link)
                        .fetch_all(sqlx::query_with(sql, values?))
                        .await?;
                    found.extend(rows.into_iter().map(Row::Postgres));
                }
                (Self::Sqlite(link), Parameters::Sqlite(values)) => {
                    let rows = (&mut **link)
                        .fetch_all(sqlx::query_with(sql, values?))
                        .await?;
                    found.extend(rows.into_iter().map(Row::Sqlite));
                }
                _ => {}
            }
        }
        Ok(found)
    }

    /// Opens a transaction that is going to write.
    pub(crate) async fn begin(&mut self) -> Outcome<()> {
        match self {
            Self::Postgres(link) => (&mut **link).execute("BEGIN").await.map(drop),
            // A deferred transaction that turned to writing later could fail half-way on a lock.
            Self::Sqlite(link) => (&mut **link).execute("BEGIN IMMEDIATE").await.map(drop),
        }
    }

    /// Opens a transaction whose reads all see the same moment.
    pub(crate) async fn begin_snapshot(&mut self) -> Outcome<()> {
        match self {
            Self::Postgres(link) => {
                let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
                (&mut **link).execute(begin).await.map(drop)
            }
            Self::Sqlite(link) => (&mut **link).execute("BEGIN DEFERRED").await.map(drop),
        }
    }

    pub(crate) async fn commit(&mut self) -> Outcome<()> {
        self.execute("COMMIT", Vec::new()).await.map(drop)
    }

    pub(crate) async fn rollback(&mut self) -> Outcome<()> {
        self.execute("ROLLBACK", Vec::new()).await.map(drop)
    }

    /// Takes a connection out of use that may have been left inside a transaction.
    pub(crate) async fn discard(self) {
        // The connection is being given up: how that ends changes nothing.
        let _ = match self {
            Self::Postgres(Link::Owned(connection)) => connection.close_hard().await,
            Self::Postgres(Link::Pooled(connection)) => connection.detach().close_hard().await,
            Self::Sqlite(Link::Owned(connection)) => connection.close().await,
            Self::Sqlite(Link::Pooled(connection)) => connection.detach().close().await,
        };
    }

    /// Closes the connection in good order.
    pub(crate) async fn close(self) {
        let _ = match self {
            Self::Postgres(Link::Owned(connection)) => connection.close().await,
            Self::Postgres(Link::Pooled(connection)) => connection.close().await,
            Self::Sqlite(Link::Owned(connection)) => connection.close().await,
            Self::Sqlite(Link::Pooled(connection)) => connection.close().await,
        };
    }
}

fn bad_argument(error: sqlx::error::BoxDynError) -> sqlx::Error {
    sqlx::Error::Encode(error)
}

fn postgres_arguments(values: Vec<Value>) -> Outcome<PgArguments> {
    let mut arguments = PgArguments::default();
    for value in values {
        match value {
            Value::Int(value) => arguments.add(value),
            Value::Text(value) => arguments.add(value),
            Value::Bytes(value) => arguments.add(value),
        }
        .map_err(bad_argument)?;
    }
    Ok(arguments)
}

fn sqlite_arguments(values: Vec<Value>) -> Outcome<SqliteArguments> {
    let mut arguments = SqliteArguments::default();
    for value in values {
        match value {
            Value::Int(value) => Arguments::add(&mut arguments, value),
            Value::Text(value) => Arguments::add(&mut arguments, value),
            Value::Bytes(value) => Arguments::add(&mut arguments, value),
        }
        .map_err(bad_argument)?;
    }
    Ok(arguments)
}

enum Parameters {
    Postgres(Outcome<PgArguments>),
    Sqlite(Outcome<SqliteArguments>),
}

/// Cuts rows into statements.
struct Chunks<'a> {
    engine: Engine,
    batch: &'a Batch,
    scalars: &'a [Value],
    rows: std::vec::IntoIter<Value>,
}

impl<'a> Chunks<'a> {
    fn new(engine: Engine, batch: &'a Batch, scalars: &'a [Value], rows: Vec<Value>) -> Self {
        assert_eq!(scalars.len(), batch.scalars, "scalars of {}", batch.sql);
        assert_eq!(
            rows.len() % batch.columns.len(),
            0,
            "whole rows for {}",
            batch.sql
        );
        Self {
            engine,
            batch,
            scalars,
            rows: rows.into_iter(),
        }
    }

    fn next(&mut self) -> Option<(SqlStr, Parameters)> {
        let width = self.batch.columns.len();
        let left = self.rows.len() / width;
        if left == 0 {
            return None;
        }
        Some(match self.engine {
            Engine::Postgres => {
                let count = left.min(POSTGRES_CHUNK);
                (
                    self.batch.expanded(self.engine, count),
                    Parameters::Postgres(self.arrays(count)),
                )
            }
            Engine::Sqlite => {
                let fits = |size: &&usize| **size <= left;
                let count = SQLITE_CHUNKS.iter().find(fits).copied().unwrap_or(1);
                let mut values = self.scalars.to_vec();
                values.extend(self.rows.by_ref().take(count * width));
                (
                    self.batch.expanded(self.engine, count),
                    Parameters::Sqlite(sqlite_arguments(values)),
                )
            }
        })
    }

    /// The next `count` rows, column by column.
    fn arrays(&mut self, count: usize) -> Outcome<PgArguments> {
        enum Array {
            Int(Vec<Option<i64>>),
            Text(Vec<Option<String>>),
            Bytes(Vec<Option<Vec<u8>>>),
        }
        let mut arrays: Vec<Array> = (self.batch.columns.iter())
            .map(|(_, kind)| match kind {
                Kind::Int => Array::Int(Vec::with_capacity(count)),
                Kind::Text => Array::Text(Vec::with_capacity(count)),
                Kind::Bytes => Array::Bytes(Vec::with_capacity(count)),
            })
            .collect();
        for _ in 0..count {
            for array in &mut arrays {
                match (array, self.rows.next()) {
                    (Array::Int(array), Some(Value::Int(value))) => array.push(value),
                    (Array::Text(array), Some(Value::Text(value))) => array.push(value),
                    (Array::Bytes(array), Some(Value::Bytes(value))) => array.push(value),
                    _ => {
                        let text =
                            format!("a value is not of its column's kind in {}", self.batch.sql);
                        return Err(sqlx::Error::Encode(text.into()));
                    }
                }
            }
        }
        let mut arguments = postgres_arguments(self.scalars.to_vec())?;
        for array in arrays {
            match array {
                Array::Int(array) => arguments.add(array),
                Array::Text(array) => arguments.add(array),
                Array::Bytes(array) => arguments.add(array),
            }
            .map_err(bad_argument)?;
        }
        Ok(arguments)
    }
}

/// A row that was read. Columns are counted from 0.
pub(crate) enum Row {
    Postgres(PgRow),
    Sqlite(SqliteRow),
}

macro_rules! getter {
    ($name:ident, $of:ty) => {
        pub(crate) fn $name(&self, column: usize) -> Outcome<$of> {
            match self {
                Self::Postgres(row) => row.try_get(column),
                Self::Sqlite(row) => row.try_get(column),
            }
        }
    };
}

impl Row {
    getter!(int, i64);
    getter!(opt_int, Option<i64>);
    getter!(text, String);
    getter!(opt_text, Option<String>);
    getter!(bytes, Vec<u8>);
    getter!(opt_bytes, Option<Vec<u8>>);

    /// A column that holds a count or number, never below zero.
    pub(crate) fn count(&self, column: usize) -> Outcome<u64> {
        let value = self.int(column)?;
        u64::try_from(value).map_err(|_| sqlx::Error::ColumnDecode {
            index: column.to_string(),
            source: format!("{value} is below zero").into(),
        })
    }
}
