//! Vault queries: from the ledger's words to SQL with bound parameters, and the pages that come back.
//!
//! A criterion on a column means states that have a row in that application's table; a state without a row meets
//! neither a comparison nor its opposite, and a column without a value meets only the comparisons with nothing.
//! `Not` is the plain complement of what it encloses. Identifiers reach the SQL text only after they were found among
//! the installed schemas.

use quorate_ledger::schema::{ColumnValue, MappedSchema, TableDescription};
use quorate_ledger::vault::{
    Cmp, Criteria, Cursor, Page, QueryError, SoftLockFilter, SortKey, StateStatus, VaultQuery,
    VaultState, VaultUpdate,
};
use quorate_ledger::{StateAndRef, StateRef, Timestamp, TransactionState, UniqueId};
use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};

use crate::Store;
use crate::apply::{state_ref, tx_id};
use crate::error::{Doing, Error, SchemaError};
use crate::migrate::CORE_TABLES;
use crate::sql::{Batch, Engine, Kind, Row, Value, int, values};

/// The most parameters in one query; both engines take a few more.
pub const MAX_QUERY_PARAMETERS: usize = 30_000;

/// The most updates that are returned at once.
pub const MAX_UPDATES: u32 = 1_000;

/// The most bytes in the columns of one index of an application's table: PostgreSQL takes 2,704 with its own overhead.
const MAX_INDEXED_BYTES: usize = 2_560;

/// One application's schema with what is derived from it.
#[derive(Debug)]
pub(crate) struct Mapped {
    pub(crate) schema: MappedSchema,
    pub(crate) table: TableDescription,
    /// Adds rows: `tx_id`, `idx` and the application's columns.
    pub(crate) insert: Batch,
}

/// The schemas of the installed applications.
#[derive(Debug)]
pub(crate) struct Schemas {
    engine: Engine,
    pub(crate) mapped: Vec<Mapped>,
}

impl Schemas {
    pub(crate) fn new(engine: Engine, schemas: Vec<MappedSchema>) -> Result<Self, Error> {
        let mut known: Vec<Mapped> = Vec::new();
        for schema in schemas {
            let invalid = |reason: String| SchemaError::Invalid {
                schema: schema.name.to_owned(),
                reason,
            };
            let table = schema
                .describe()
                .map_err(|error| invalid(error.to_string()))?;
            if CORE_TABLES.contains(&schema.table) {
                return Err(invalid(format!(
                    "the table name {} belongs to the node",
                    schema.table
                ))
                .into());
            }
            if known
                .iter()
                .any(|other| other.schema.name == schema.name || other.schema.table == schema.table)
            {
                return Err(invalid(
                    "another application has a schema or table of this name".into(),
                )
                .into());
            }
            let insert = insert_statement(&table);
            known.push(Mapped {
                schema,
                table,
                insert,
            });
        }
        Ok(Self {
            engine,
            mapped: known,
        })
    }

    fn column(&self, schema: &str, column: &str) -> Result<(usize, &str), QueryError> {
        let found = self.mapped.iter().enumerate().find_map(|(index, mapped)| {
            (mapped.schema.name == schema).then_some(())?;
            Some((index, mapped.table.column(column)?.name))
        });
        found.ok_or_else(|| QueryError::UnknownColumn {
            schema: schema.to_owned(),
            column: column.to_owned(),
        })
    }

    /// The types of state that an application maps.
    pub(crate) fn state_types(&self, schema: &str) -> Vec<String> {
        let mapped = self
            .mapped
            .iter()
            .find(|mapped| mapped.schema.name == schema);
        mapped.map_or(Vec::new(), |mapped| {
            mapped
                .schema
                .state_types
                .iter()
                .map(|name| (*name).to_owned())
                .collect()
        })
    }

    /// The row of a state in each application's table that has one, and what is wrong with one that does not fit.
    ///
    /// Such a row is left out: states are made by counterparties too, and none of them may keep a transaction out of our
    /// vault by what an application's mapping did not expect.
    pub(crate) fn rows(
        &self,
        state: &TransactionState,
    ) -> (
        Vec<(usize, Vec<Value>)>,
        Option<quorate_ledger::schema::SchemaError>,
    ) {
        let (mut rows, mut misfit) = (Vec::new(), None);
        for (index, mapped) in self.mapped.iter().enumerate() {
            match mapped.row(state) {
                Ok(Some(row)) => {
                    let kinds = mapped.table.columns.iter().map(|column| kind(column.kind));
                    let values = row.into_iter().zip(kinds);
                    let bound = values.map(|(value, kind)| bound(value, kind));
                    rows.push((index, bound.collect()));
                }
                Ok(None) => {}
                Err(error) => misfit = Some(error),
            }
        }
        (rows, misfit)
    }
}

impl Mapped {
    fn row(
        &self,
        state: &TransactionState,
    ) -> Result<Option<Vec<ColumnValue>>, quorate_ledger::schema::SchemaError> {
        let Some(row) = self.schema.row(&self.table, state)? else {
            return Ok(None);
        };
        for index in &self.table.indexes {
            let columns = self.table.columns.iter().zip(&row);
            let indexed = columns.filter(|(column, _)| index.columns.contains(&column.name));
            let bytes: usize = indexed.map(|(_, value)| indexed_bytes(value)).sum();
            if bytes > MAX_INDEXED_BYTES {
                return Err(quorate_ledger::schema::SchemaError::Row {
                    schema: self.schema.name.to_owned(),
                    state_type: state.state_type.clone(),
                    reason: format!(
                        "{bytes} bytes in the columns of index {}, at most {MAX_INDEXED_BYTES} are possible",
                        index.name
                    ),
                });
            }
        }
        Ok(Some(row))
    }
}

fn indexed_bytes(value: &ColumnValue) -> usize {
    let content = match value {
        ColumnValue::Text(text) => text.len(),
        ColumnValue::Bytes(bytes) => bytes.len(),
        ColumnValue::BigInt(_) | ColumnValue::Null => 0,
    };
    // A number, or the length of what is longer, with its alignment.
    content + 8
}

fn kind(kind: quorate_ledger::schema::ColumnKind) -> Kind {
    use quorate_ledger::schema::ColumnKind;
    match kind {
        ColumnKind::Text => Kind::Text,
        ColumnKind::BigInt => Kind::Int,
        ColumnKind::Bytes => Kind::Bytes,
    }
}

fn bound(value: ColumnValue, kind: Kind) -> Value {
    match (value, kind) {
        (ColumnValue::Text(text), _) => text.into(),
        (ColumnValue::BigInt(number), _) => number.into(),
        (ColumnValue::Bytes(bytes), _) => bytes.into(),
        (ColumnValue::Null, Kind::Int) => Value::Int(None),
        (ColumnValue::Null, Kind::Text) => Value::Text(None),
        (ColumnValue::Null, Kind::Bytes) => Value::Bytes(None),
    }
}

fn insert_statement(table: &TableDescription) -> Batch {
    // The names of the given rows are our own, so that none can collide with a column of the table.
    let mut columns = vec![
        ("tx".to_owned(), Kind::Bytes),
        ("number".to_owned(), Kind::Int),
    ];
    columns.extend(
        table
            .columns
            .iter()
            .enumerate()
            .map(|(i, column)| (format!("c{i}"), kind(column.kind))),
    );
    let given: Vec<String> = columns
        .iter()
        .map(|(name, _)| format!("d.{name}"))
        .collect();
    let names: Vec<String> = table
        .columns
        .iter()
        .map(|column| format!(", \"{}\"", column.name))
        .collect();
    let sql = format!(
        "INSERT INTO \"{}\" (tx_id, idx{}) SELECT {} FROM {{rows}} WHERE true ON CONFLICT (tx_id, idx) DO NOTHING",
        table.name,
        names.concat(),
        given.join(", "),
    );
    let columns: Vec<(&str, Kind)> = columns
        .iter()
        .map(|(name, kind)| (name.as_str(), *kind))
        .collect();
    Batch::new(&sql, 0, &columns)
}

/// A condition on vault states `v`, their locks `l` and the applications' tables `s0`, `s1`, ….
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Filter {
    condition: String,
    joins: Vec<usize>,
    values: Vec<Value>,
}

impl Filter {
    pub(crate) fn new(schemas: &Schemas, criteria: &Criteria) -> Result<Self, QueryError> {
        criteria.validate()?;
        let mut filter = Self {
            condition: String::new(),
            joins: Vec::new(),
            values: Vec::new(),
        };
        filter.condition = filter.translate(schemas, criteria)?;
        if filter.values.len() > MAX_QUERY_PARAMETERS {
            return Err(QueryError::TooManyValues {
                count: filter.values.len(),
            });
        }
        Ok(filter)
    }

    /// Binds a value and returns its placeholder.
    pub(crate) fn bind(&mut self, value: impl Into<Value>) -> String {
        self.values.push(value.into());
        format!("${}", self.values.len())
    }

    /// A column of an application's table as an expression.
    pub(crate) fn column(
        &mut self,
        schemas: &Schemas,
        schema: &str,
        column: &str,
    ) -> Result<String, QueryError> {
        let (index, column) = schemas.column(schema, column)?;
        if !self.joins.contains(&index) {
            self.joins.push(index);
        }
        Ok(format!("s{index}.\"{column}\""))
    }

    /// As [`column`](Self::column), for a column that holds numbers.
    pub(crate) fn number(
        &mut self,
        schemas: &Schemas,
        schema: &str,
        column: &str,
    ) -> Result<String, QueryError> {
        let (index, name) = schemas.column(schema, column)?;
        let declared = schemas.mapped[index]
            .table
            .column(name)
            .map(|column| kind(column.kind));
        if declared != Some(Kind::Int) {
            let reason = "only columns of numbers can be summed".to_owned();
            return Err(QueryError::Value {
                column: column.to_owned(),
                reason,
            });
        }
        self.column(schemas, schema, column)
    }

    fn any_of(&mut self, column: &str, values: Vec<Value>) -> String {
        match values.len() {
            0 => "1 = 0".into(),
            1 => {
                let values: Vec<String> =
                    values.into_iter().map(|value| self.bind(value)).collect();
                format!("{column} = {}", values.concat())
            }
            _ => {
                let values: Vec<String> =
                    values.into_iter().map(|value| self.bind(value)).collect();
                format!("{column} IN ({})", values.join(", "))
            }
        }
    }

    fn translate(&mut self, schemas: &Schemas, criteria: &Criteria) -> Result<String, QueryError> {
        Ok(match criteria {
            Criteria::All | Criteria::Status(StateStatus::All) => "1 = 1".into(),
            Criteria::Status(StateStatus::Unconsumed) => "v.status = 0".into(),
            Criteria::Status(StateStatus::Consumed) => "v.status = 1".into(),
            Criteria::StateTypes(types) => self.any_of(
                "v.state_type",
                types.iter().map(|name| name.as_str().into()).collect(),
            ),
            Criteria::Notaries(names) => self.any_of(
                "v.notary",
                names.iter().map(|name| name.as_str().into()).collect(),
            ),
            Criteria::Refs(refs) => {
                let each = refs.iter().map(|state| {
                    let (tx, index) = (self.bind(state.tx.as_bytes()), self.bind(state.index));
                    format!("(v.tx_id = {tx} AND v.idx = {index})")
                });
                let each: Vec<String> = each.collect();
                if each.is_empty() {
                    "1 = 0".into()
                } else {
                    format!("({})", each.join(" OR "))
                }
            }
            Criteria::RecordedBetween { from, until } => {
                let mut parts = vec!["1 = 1".to_owned()];
                if let Some(from) = from {
                    parts.push(format!("v.recorded_at >= {}", self.bind(from.as_micros())));
                }
                if let Some(until) = until {
                    parts.push(format!("v.recorded_at < {}", self.bind(until.as_micros())));
                }
                parts.join(" AND ")
            }
            Criteria::SoftLocked(SoftLockFilter::Unlocked) => "l.flow_id IS NULL".into(),
            Criteria::SoftLocked(SoftLockFilter::Locked) => "l.flow_id IS NOT NULL".into(),
            Criteria::SoftLocked(SoftLockFilter::LockedBy(holder)) => {
                format!(
                    "(l.flow_id IS NOT NULL AND l.flow_id = {})",
                    self.bind(holder.as_bytes())
                )
            }
            Criteria::SoftLocked(SoftLockFilter::UnlockedOr(holder)) => {
                format!(
                    "(l.flow_id IS NULL OR l.flow_id = {})",
                    self.bind(holder.as_bytes())
                )
            }
            Criteria::Participants(keys) => {
                let each = keys.iter().map(|key| {
                    let hash = self.bind(key.hash().as_bytes());
                    match schemas.engine {
                        Engine::Postgres => format!("position({hash} IN v.participants) > 0"),
                        Engine::Sqlite => format!("instr(v.participants, {hash}) > 0"),
                    }
                });
                let each: Vec<String> = each.collect();
                if each.is_empty() {
                    "1 = 0".into()
                } else {
                    format!("({})", each.join(" OR "))
                }
            }
            Criteria::Column {
                schema,
                column,
                op,
                value,
            } => self.compare(schemas, (schema, column), *op, value)?,
            Criteria::And(parts) => self.combine(schemas, parts, " AND ", "1 = 1")?,
            Criteria::Or(parts) => self.combine(schemas, parts, " OR ", "1 = 0")?,
            Criteria::Not(part) => format!("NOT ({})", self.translate(schemas, part)?),
        })
    }

    fn combine(
        &mut self,
        schemas: &Schemas,
        parts: &[Criteria],
        with: &str,
        empty: &str,
    ) -> Result<String, QueryError> {
        let parts: Vec<String> = parts
            .iter()
            .map(|part| self.translate(schemas, part))
            .collect::<Result<_, _>>()?;
        Ok(if parts.is_empty() {
            empty.into()
        } else {
            format!("({})", parts.join(with))
        })
    }

    fn compare(
        &mut self,
        schemas: &Schemas,
        (schema, name): (&str, &str),
        op: Cmp,
        value: &ColumnValue,
    ) -> Result<String, QueryError> {
        let (index, _) = schemas.column(schema, name)?;
        let declared = schemas.mapped[index]
            .table
            .column(name)
            .map(|column| column.kind);
        let column = self.column(schemas, schema, name)?;
        if *value == ColumnValue::Null {
            let null = if op == Cmp::NotEqual {
                "IS NOT NULL"
            } else {
                "IS NULL"
            };
            return Ok(format!("(s{index}.tx_id IS NOT NULL AND {column} {null})"));
        }
        if value.kind() != declared {
            return Err(QueryError::Comparison {
                column: name.to_owned(),
                op,
            });
        }
        let value = self.bind(bound(
            value.clone(),
            kind(declared.unwrap_or(quorate_ledger::schema::ColumnKind::Text)),
        ));
        let comparison = match op {
            Cmp::Equal => format!("{column} = {value}"),
            Cmp::NotEqual => format!("{column} <> {value}"),
            Cmp::Less => format!("{column} < {value}"),
            Cmp::LessOrEqual => format!("{column} <= {value}"),
            Cmp::Greater => format!("{column} > {value}"),
            Cmp::GreaterOrEqual => format!("{column} >= {value}"),
            Cmp::StartsWith => format!("substr({column}, 1, length({value})) = {value}"),
        };
        // Never unknown, so that its opposite is its complement.
        Ok(format!("({column} IS NOT NULL AND {comparison})"))
    }

    /// The tables that the condition speaks of, beside `states`, which are called `v`.
    fn tables(&self, schemas: &Schemas, states: &str) -> String {
        // A lock on a consumed state means nothing; it goes with its flow.
        let mut from = format!(
            "{states} v LEFT JOIN vault_locks l ON l.tx_id = v.tx_id AND l.idx = v.idx AND v.status = 0"
        );
        for index in &self.joins {
            let table = schemas.mapped[*index].table.name;
            from.push_str(&format!(
                " LEFT JOIN \"{table}\" s{index} ON s{index}.tx_id = v.tx_id AND s{index}.idx = v.idx"
            ));
        }
        from
    }

    /// `SELECT columns FROM … WHERE condition` followed by `rest`.
    pub(crate) fn select(
        &self,
        schemas: &Schemas,
        columns: &str,
        rest: &str,
    ) -> (SqlStr, Vec<Value>) {
        let from = self.tables(schemas, "vault_states");
        let sql = format!(
            "SELECT {columns} FROM {from} WHERE {} {rest}",
            self.condition
        );
        (AssertSqlSafe(sql).into_sql_str(), self.values.clone())
    }

    /// Looks at the next `limit` unconsumed states of one type after a place, whether or not they meet the condition,
    /// and tells of each: `tx_id`, `idx`, `state` (if it fits), place, holder of its lock, `amount`, whether it fits.
    ///
    /// The work is bounded by `limit` whatever the engine thinks of the condition, and the order costs nothing: it is
    /// that of the index.
    pub(crate) fn walk(
        mut self,
        schemas: &Schemas,
        state_type: &str,
        after: (i64, i64),
        limit: i64,
        amount: &str,
    ) -> (SqlStr, Vec<Value>) {
        let fits = format!("({}) AND l.flow_id IS NULL", self.condition);
        let (state_type, limit) = (self.bind(state_type), self.bind(limit));
        let (place, index) = (self.bind(after.0), self.bind(after.1));
        let states = format!(
            "(SELECT * FROM vault_states WHERE status = 0 AND state_type = {state_type}
              AND (produced_seq, idx) > ({place}, {index}) ORDER BY produced_seq, idx LIMIT {limit})"
        );
        let sql = format!(
            "SELECT v.tx_id, v.idx, CASE WHEN {fits} THEN v.state END, v.produced_seq, l.flow_id,
                    CAST({amount} AS BIGINT), CAST(CASE WHEN {fits} THEN 1 ELSE 0 END AS BIGINT)
             FROM {} ORDER BY v.produced_seq, v.idx",
            self.tables(schemas, &states)
        );
        (AssertSqlSafe(sql).into_sql_str(), self.values)
    }
}

const STATE_COLUMNS: &str =
    "v.tx_id, v.idx, v.state, v.status, v.recorded_at, v.consumed_at, v.consumed_by, l.flow_id";

fn order(filter: &mut Filter, schemas: &Schemas, query: &VaultQuery) -> Result<String, QueryError> {
    let mut keys = Vec::new();
    for sort in &query.sort {
        let direction = if sort.descending { " DESC" } else { "" };
        let mut nullable =
            |column: &str| keys.push(format!("({column} IS NULL), {column}{direction}"));
        match &sort.by {
            SortKey::ConsumedAt => nullable("v.consumed_at"),
            SortKey::Column { schema, column } => {
                nullable(&filter.column(schemas, schema, column)?)
            }
            SortKey::Recorded => keys.push(format!("v.produced_seq{direction}")),
            SortKey::StateType => keys.push(format!("v.state_type{direction}")),
            SortKey::Reference => keys.push(format!("v.tx_id{direction}, v.idx{direction}")),
        }
    }
    keys.push("v.produced_seq, v.idx".into());
    Ok(keys.join(", "))
}

impl Store {
    /// One page of the vault's states, and how many there are in all, as of one moment.
    pub async fn vault_query(&self, query: &VaultQuery) -> Result<Page, Error> {
        let doing = "querying the vault";
        query.validate()?;
        let mut filter = Filter::new(self.schemas(), &query.criteria)?;
        let order = order(&mut filter, self.schemas(), query)?;
        let (count, values) = filter.select(self.schemas(), "COUNT(*)", "");
        let page = query.page;
        let (limit, offset) = (
            i64::from(page.size),
            i64::from(page.size) * i64::from(page.number - 1),
        );
        let (limit, offset) = (filter.bind(limit), filter.bind(offset));
        let rest = format!("ORDER BY {order} LIMIT {limit} OFFSET {offset}");
        let (select, bound) = filter.select(self.schemas(), STATE_COLUMNS, &rest);
        self.database()
            .snapshot(async move |connection| {
                let total = connection.fetch_text(count, values).await.doing(doing)?;
                let total = total
                    .first()
                    .map_or(Ok(0), |row| row.count(0))
                    .doing(doing)?;
                let rows = connection.fetch_text(select, bound).await.doing(doing)?;
                let states = rows.iter().map(vault_state).collect::<Result<_, _>>()?;
                Ok(Page {
                    states,
                    total,
                    number: page.number,
                    size: page.size,
                })
            })
            .await
    }

    /// The first updates after `cursor`, oldest first, at most `limit` (and [`MAX_UPDATES`]). Whoever asks again from
    /// the last one's cursor misses none and gets none twice.
    pub async fn vault_updates_since(
        &self,
        cursor: Cursor,
        limit: u32,
    ) -> Result<Vec<VaultUpdate>, Error> {
        let doing = "reading vault updates";
        let after = int(cursor.0)?;
        let limit = i64::from(limit.min(MAX_UPDATES));
        self.database()
            .snapshot(async move |connection| {
                let sql = "SELECT seq FROM (
                        SELECT seq FROM (SELECT DISTINCT produced_seq AS seq FROM vault_states
                            WHERE produced_seq > $1 ORDER BY produced_seq LIMIT $2) p
                        UNION
                        SELECT seq FROM (SELECT DISTINCT consumed_seq AS seq FROM vault_states
                            WHERE consumed_seq > $1 ORDER BY consumed_seq LIMIT $2) c) both_kinds
                    ORDER BY seq LIMIT $2";
                let places = connection.fetch(sql, values![after, limit]).await.doing(doing)?;
                let Some(last) = places.last() else { return Ok(Vec::new()) };
                let last = last.int(0).doing(doing)?;
                let produced = "SELECT produced_seq, tx_id, recorded_at, tx_id, idx, state FROM vault_states
                    WHERE produced_seq > $1 AND produced_seq <= $2 ORDER BY produced_seq, idx";
                let consumed = "SELECT consumed_seq, consumed_by, consumed_at, tx_id, idx, state FROM vault_states
                    WHERE consumed_seq > $1 AND consumed_seq <= $2 ORDER BY consumed_seq, tx_id, idx";
                let mut updates: std::collections::BTreeMap<u64, VaultUpdate> = std::collections::BTreeMap::new();
                for (sql, is_new) in [(produced, true), (consumed, false)] {
                    for row in connection.fetch(sql, values![after, last]).await.doing(doing)? {
                        let seq = row.count(0).doing(doing)?;
                        let update = VaultUpdate {
                            cursor: Cursor(seq),
                            tx: tx_id(row.bytes(1).doing(doing)?)?,
                            produced: Vec::new(),
                            consumed: Vec::new(),
                            recorded_at: Timestamp::from_micros(row.int(2).doing(doing)?),
                        };
                        let update = updates.entry(seq).or_insert(update);
                        let state = state_and_ref(&row, 3)?;
                        if is_new { &mut update.produced } else { &mut update.consumed }.push(state);
                    }
                }
                Ok(updates.into_values().collect())
            })
            .await
    }

    /// The place after the last update there is.
    pub async fn vault_cursor(&self) -> Result<Cursor, Error> {
        let doing = "reading the vault's cursor";
        let mut reader = self.database().reader().await?;
        let row = reader
            .fetch_one("SELECT value FROM counters WHERE name = 'vault'", values![])
            .await
            .doing(doing)?;
        Ok(Cursor(row.map_or(Ok(0), |row| row.count(0)).doing(doing)?))
    }
}

/// A state from the columns `tx_id`, `idx`, `state`, beginning at `from`.
pub(crate) fn state_and_ref(row: &Row, from: usize) -> Result<StateAndRef, Error> {
    let doing = "reading a state";
    let reference = state_ref(
        row.bytes(from).doing(doing)?,
        row.count(from + 1).doing(doing)?,
    )?;
    decode_state(reference, &row.bytes(from + 2).doing(doing)?)
}

pub(crate) fn decode_state(reference: StateRef, bytes: &[u8]) -> Result<StateAndRef, Error> {
    let corrupt = |reason| Error::Corrupt {
        what: format!("state {reference}"),
        reason,
    };
    let state = TransactionState::decode(bytes).map_err(|error| corrupt(error.to_string()))?;
    Ok(StateAndRef::new(state, reference))
}

fn vault_state(row: &Row) -> Result<VaultState, Error> {
    let doing = "reading a vault state";
    let status = if row.int(3).doing(doing)? == 0 {
        StateStatus::Unconsumed
    } else {
        StateStatus::Consumed
    };
    let locked_by = row.opt_bytes(7).doing(doing)?.map(|bytes| {
        <[u8; 16]>::try_from(bytes)
            .map(UniqueId::from_bytes)
            .map_err(|bytes| Error::Corrupt {
                what: "holder of a soft lock".into(),
                reason: format!("it has {} bytes, not 16", bytes.len()),
            })
    });
    Ok(VaultState {
        state: state_and_ref(row, 0)?,
        status,
        recorded_at: Timestamp::from_micros(row.int(4).doing(doing)?),
        consumed_at: row.opt_int(5).doing(doing)?.map(Timestamp::from_micros),
        consumed_by: row.opt_bytes(6).doing(doing)?.map(tx_id).transpose()?,
        locked_by: locked_by.transpose()?,
    })
}
