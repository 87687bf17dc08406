//! Application schemas, declared and never written as SQL.
//!
//! An application names the columns in which its states can be searched and gives a function that fills them. Versions
//! are a list of changes to which entries are only ever added; storage applies those that a database lacks and knows
//! nothing of what the columns mean. [`MappedSchema::describe`] folds the changes into the present table.

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

use crate::{
    canonical,
    limits::{MAX_COLUMN_VALUE_BYTES, MAX_COLUMNS, MAX_IDENTIFIER_BYTES},
    state::TransactionState,
};

/// What a column holds.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Debug,
    BorshSerialize,
    BorshDeserialize,
    Serialize,
    Deserialize,
)]
#[serde(rename_all = "camelCase")]
pub enum ColumnKind {
    /// Unicode text without NUL.
    Text,
    /// A signed 64-bit integer.
    BigInt,
    /// Bytes.
    Bytes,
}

/// A value of a column. In JSON: `{"text": "…"}`, `{"bigInt": 1}`, `{"bytes": "<base64>"}` or `"null"`.
#[derive(
    Clone,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Debug,
    BorshSerialize,
    BorshDeserialize,
    Serialize,
    Deserialize,
)]
#[serde(rename_all = "camelCase")]
pub enum ColumnValue {
    /// Text.
    Text(String),
    /// A number.
    BigInt(i64),
    /// Bytes.
    Bytes(#[serde(with = "canonical::base64_bytes")] Vec<u8>),
    /// Nothing.
    Null,
}

impl ColumnValue {
    /// The kind of column that can hold this; `None` for [`ColumnValue::Null`], which any nullable column can.
    pub fn kind(&self) -> Option<ColumnKind> {
        match self {
            Self::Text(_) => Some(ColumnKind::Text),
            Self::BigInt(_) => Some(ColumnKind::BigInt),
            Self::Bytes(_) => Some(ColumnKind::Bytes),
            Self::Null => None,
        }
    }

    pub(crate) fn check(&self) -> Result<(), String> {
        let size = match self {
            // PostgreSQL cannot store it, SQLite would end the text there.
            Self::Text(text) if text.contains('\0') => {
                return Err("the text contains a NUL character".to_owned());
            }
            Self::Text(text) => text.len(),
            Self::Bytes(bytes) => bytes.len(),
            Self::BigInt(_) | Self::Null => 0,
        };
        if size > MAX_COLUMN_VALUE_BYTES {
            return Err(format!(
                "{size} bytes, at most {MAX_COLUMN_VALUE_BYTES} are possible"
            ));
        }
        Ok(())
    }
}

impl From<&str> for ColumnValue {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for ColumnValue {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<i64> for ColumnValue {
    fn from(number: i64) -> Self {
        Self::BigInt(number)
    }
}

impl From<Vec<u8>> for ColumnValue {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes)
    }
}

impl<T: Into<ColumnValue>> From<Option<T>> for ColumnValue {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// A column of an application's table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Column {
    /// The name.
    pub name: &'static str,
    /// What it holds.
    pub kind: ColumnKind,
    /// Whether a row may have nothing here.
    pub nullable: bool,
}

impl Column {
    /// A column that always has a value.
    pub const fn required(name: &'static str, kind: ColumnKind) -> Self {
        Self {
            name,
            kind,
            nullable: false,
        }
    }

    /// A column that may be empty.
    pub const fn nullable(name: &'static str, kind: ColumnKind) -> Self {
        Self {
            name,
            kind,
            nullable: true,
        }
    }
}

/// One version of a schema: what it changes in the version before.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SchemaChange {
    /// Makes the table; the first version and no other.
    AddTable {
        /// Its columns.
        columns: Vec<Column>,
    },
    /// Adds a column. It must be nullable: rows of older states have nothing to put there.
    AddColumn(Column),
    /// Adds an index. Storage calls it `<table>_<name>`.
    AddIndex {
        /// Its name within the table.
        name: &'static str,
        /// The columns, the most significant first.
        columns: Vec<&'static str>,
    },
}

/// How an application's states are mapped to a table of their own.
#[derive(Clone, Debug)]
pub struct MappedSchema {
    /// The name of the schema, by which queries refer to it.
    pub name: &'static str,
    /// The name of the table: the name of the schema, alone or followed by `_…`, so that applications keep apart.
    pub table: &'static str,
    /// The versions; version n is the entry with index n − 1. Entries are never changed once they have been released.
    pub versions: Vec<SchemaChange>,
    /// The types of state that are mapped.
    pub state_types: Vec<&'static str>,
    /// The row of a state, in the order in which the columns were added; `None` if this state is not mapped.
    pub map: fn(&TransactionState) -> Option<Vec<ColumnValue>>,
}

/// An index of a table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Index {
    /// Its name within the table.
    pub name: &'static str,
    /// The columns, the most significant first.
    pub columns: Vec<&'static str>,
}

/// A table as it is after all versions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TableDescription {
    /// The name of the table.
    pub name: &'static str,
    /// The columns of the application, in the order in which they were added.
    pub columns: Vec<Column>,
    /// The indexes.
    pub indexes: Vec<Index>,
}

impl TableDescription {
    /// The column with this name.
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }
}

/// A schema that its author must mend, or a row that does not fit it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SchemaError {
    /// A name that cannot be used.
    #[error(
        "schema {schema}: {name:?} cannot be a name; use {MAX_IDENTIFIER_BYTES} characters at most, a–z first, then a–z, 0–9 and _, and none of SQL's words"
    )]
    Identifier {
        /// The schema.
        schema: String,
        /// The name.
        name: String,
    },
    /// A name that the node needs for itself.
    #[error("schema {schema}: the name {name} belongs to the node")]
    Reserved {
        /// The schema.
        schema: String,
        /// The name.
        name: String,
    },
    /// A table that another application might use.
    #[error("schema {schema}: the table must be called {schema} or {schema}_…, not {table}")]
    TableName {
        /// The schema.
        schema: String,
        /// The table.
        table: String,
    },
    /// A version that does not follow from the one before.
    #[error("schema {schema}, version {version}: {reason}")]
    Version {
        /// The schema.
        schema: String,
        /// The version, from 1.
        version: usize,
        /// The reason.
        reason: String,
    },
    /// A row that does not fit the table.
    #[error("schema {schema}: the row of a {state_type} does not fit: {reason}")]
    Row {
        /// The schema.
        schema: String,
        /// The type of the state.
        state_type: String,
        /// The reason.
        reason: String,
    },
}

impl MappedSchema {
    /// The present version.
    pub fn version(&self) -> usize {
        self.versions.len()
    }

    /// The table after all versions.
    ///
    /// # Errors
    /// What the schema's author must mend.
    pub fn describe(&self) -> Result<TableDescription, SchemaError> {
        self.check_names()?;
        let mut table = TableDescription {
            name: self.table,
            columns: Vec::new(),
            indexes: Vec::new(),
        };
        for (index, change) in self.versions.iter().enumerate() {
            self.apply(&mut table, index + 1, change)?;
        }
        if self.versions.is_empty() {
            return Err(self.bad_version(1, "the first version must add the table"));
        }
        Ok(table)
    }

    /// The row of a state, checked against `table`, which must be this schema's; `None` if the state is not mapped.
    ///
    /// # Errors
    /// If the application's function gives a row that does not fit.
    pub fn row(
        &self,
        table: &TableDescription,
        state: &TransactionState,
    ) -> Result<Option<Vec<ColumnValue>>, SchemaError> {
        if !self.state_types.contains(&state.state_type.as_str()) {
            return Ok(None);
        }
        let Some(row) = (self.map)(state) else {
            return Ok(None);
        };
        let fail = |reason: String| SchemaError::Row {
            schema: self.name.to_owned(),
            state_type: state.state_type.clone(),
            reason,
        };
        if row.len() != table.columns.len() {
            return Err(fail(format!(
                "{} values for {} columns",
                row.len(),
                table.columns.len()
            )));
        }
        for (value, column) in row.iter().zip(&table.columns) {
            match value.kind() {
                None if !column.nullable => {
                    return Err(fail(format!("column {} must have a value", column.name)));
                }
                Some(kind) if kind != column.kind => {
                    return Err(fail(format!(
                        "column {} holds {:?}, not {kind:?}",
                        column.name, column.kind
                    )));
                }
                _ => value
                    .check()
                    .map_err(|reason| fail(format!("column {}: {reason}", column.name)))?,
            }
        }
        Ok(Some(row))
    }

    fn check_names(&self) -> Result<(), SchemaError> {
        let schema = self.name;
        for name in [schema, self.table] {
            self.check_identifier(name)?;
        }
        if schema == "quorate" || NODE_TABLES.contains(&self.table) {
            return Err(SchemaError::Reserved {
                schema: schema.to_owned(),
                name: self.table.to_owned(),
            });
        }
        let rest = self.table.strip_prefix(schema);
        if !rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('_')) {
            return Err(SchemaError::TableName {
                schema: schema.to_owned(),
                table: self.table.to_owned(),
            });
        }
        Ok(())
    }

    fn check_identifier(&self, name: &str) -> Result<(), SchemaError> {
        if is_identifier(name) {
            return Ok(());
        }
        Err(SchemaError::Identifier {
            schema: self.name.to_owned(),
            name: name.to_owned(),
        })
    }

    fn apply(
        &self,
        table: &mut TableDescription,
        version: usize,
        change: &SchemaChange,
    ) -> Result<(), SchemaError> {
        let bad = |reason: &str| self.bad_version(version, reason);
        match change {
            SchemaChange::AddTable { columns } if version == 1 => {
                if columns.is_empty() {
                    return Err(bad("a table needs at least one column"));
                }
                columns
                    .iter()
                    .try_for_each(|column| self.add_column(table, version, column))
            }
            SchemaChange::AddTable { .. } => Err(bad(
                "the table is there already; use a second schema for a second table",
            )),
            _ if version == 1 => Err(bad("the first version must add the table")),
            SchemaChange::AddColumn(column) if !column.nullable => Err(bad(&format!(
                "column {} must be nullable, because older rows lack it",
                column.name
            ))),
            SchemaChange::AddColumn(column) => self.add_column(table, version, column),
            SchemaChange::AddIndex { name, columns } => {
                self.check_identifier(name)?;
                // PostgreSQL cuts longer names off, and two indexes become one.
                if self.table.len() + 1 + name.len() > POSTGRES_IDENTIFIER_BYTES {
                    return Err(bad(&format!(
                        "the index name {}_{name} is too long for PostgreSQL",
                        self.table
                    )));
                }
                if table.indexes.iter().any(|index| index.name == *name) {
                    return Err(bad(&format!("there is an index {name} already")));
                }
                if columns.is_empty() {
                    return Err(bad(&format!("index {name} has no columns")));
                }
                if let Some(unknown) = columns.iter().find(|column| table.column(column).is_none())
                {
                    return Err(bad(&format!(
                        "index {name} names column {unknown}, which the table does not have"
                    )));
                }
                table.indexes.push(Index {
                    name,
                    columns: columns.clone(),
                });
                Ok(())
            }
        }
    }

    fn add_column(
        &self,
        table: &mut TableDescription,
        version: usize,
        column: &Column,
    ) -> Result<(), SchemaError> {
        self.check_identifier(column.name)?;
        if NODE_COLUMNS.contains(&column.name) {
            return Err(SchemaError::Reserved {
                schema: self.name.to_owned(),
                name: column.name.to_owned(),
            });
        }
        if table.column(column.name).is_some() {
            return Err(self.bad_version(
                version,
                &format!("there is a column {} already", column.name),
            ));
        }
        if table.columns.len() == MAX_COLUMNS {
            return Err(self.bad_version(version, &format!("more than {MAX_COLUMNS} columns")));
        }
        table.columns.push(*column);
        Ok(())
    }

    fn bad_version(&self, version: usize, reason: &str) -> SchemaError {
        SchemaError::Version {
            schema: self.name.to_owned(),
            version,
            reason: reason.to_owned(),
        }
    }
}

/// PostgreSQL's `NAMEDATALEN` − 1.
const POSTGRES_IDENTIFIER_BYTES: usize = 63;

/// Columns that storage adds to every table.
const NODE_COLUMNS: [&str; 2] = ["tx_id", "idx"];

/// Tables of the node that are called by a single word or would pass for `<schema>_…`.
const NODE_TABLES: [&str; 15] = [
    "attachments",
    "flows",
    "inbound_marks",
    "inbox",
    "journal",
    "leases",
    "notary_states",
    "notary_transactions",
    "outbox",
    "outbox_peers",
    "quorate_migrations",
    "rpc_audit",
    "settings",
    "transactions",
    "vault_states",
];

/// Words that PostgreSQL or SQLite reserve and that could be somebody's column. Sorted.
const SQL_WORDS: [&str; 101] = [
    "abort",
    "action",
    "add",
    "all",
    "alter",
    "analyse",
    "analyze",
    "and",
    "any",
    "array",
    "as",
    "asc",
    "autoincrement",
    "between",
    "both",
    "by",
    "case",
    "cast",
    "check",
    "collate",
    "column",
    "commit",
    "conflict",
    "constraint",
    "create",
    "cross",
    "current",
    "database",
    "default",
    "deferrable",
    "deferred",
    "delete",
    "desc",
    "distinct",
    "do",
    "drop",
    "else",
    "end",
    "escape",
    "except",
    "exists",
    "explain",
    "false",
    "fetch",
    "for",
    "foreign",
    "from",
    "full",
    "glob",
    "grant",
    "group",
    "having",
    "if",
    "in",
    "index",
    "inner",
    "insert",
    "intersect",
    "into",
    "is",
    "isnull",
    "join",
    "key",
    "left",
    "like",
    "limit",
    "natural",
    "not",
    "notnull",
    "null",
    "of",
    "offset",
    "on",
    "or",
    "order",
    "outer",
    "over",
    "primary",
    "references",
    "returning",
    "right",
    "rowid",
    "select",
    "set",
    "some",
    "table",
    "then",
    "to",
    "transaction",
    "trigger",
    "true",
    "union",
    "unique",
    "update",
    "user",
    "using",
    "values",
    "view",
    "when",
    "where",
    "with",
];

/// Whether a name can be that of a schema, table, column or index: `[a-z][a-z0-9_]{0,40}` and not one of SQL's words.
pub fn is_identifier(name: &str) -> bool {
    let bytes = name.as_bytes();
    let form = (1..=MAX_IDENTIFIER_BYTES).contains(&bytes.len())
        && bytes[0].is_ascii_lowercase()
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'_');
    form && SQL_WORDS.binary_search(&name).is_err()
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_identity::{KeyPair, Party, SecureHash, SignatureScheme, X500Name};

    fn schema(versions: Vec<SchemaChange>) -> MappedSchema {
        MappedSchema {
            name: "cash",
            table: "cash_states",
            versions,
            state_types: vec!["cash.Cash.State"],
            map: |state| {
                (!state.data.is_empty()).then(|| vec![(state.data[0] as i64).into(), "JPY".into()])
            },
        }
    }

    fn table() -> SchemaChange {
        SchemaChange::AddTable {
            columns: vec![
                Column::required("quantity", ColumnKind::BigInt),
                Column::required("currency", ColumnKind::Text),
            ],
        }
    }

    fn index(name: &'static str, columns: &[&'static str]) -> SchemaChange {
        SchemaChange::AddIndex {
            name,
            columns: columns.to_vec(),
        }
    }

    #[test]
    fn versions_fold_into_the_present_table() {
        let issuer = Column::nullable("issuer", ColumnKind::Bytes);
        let table = schema(vec![
            table(),
            index("by_currency", &["currency"]),
            SchemaChange::AddColumn(issuer),
        ])
        .describe();
        let table = table.unwrap();
        assert_eq!(
            table
                .columns
                .iter()
                .map(|column| column.name)
                .collect::<Vec<_>>(),
            ["quantity", "currency", "issuer"]
        );
        assert_eq!(
            table.indexes,
            [Index {
                name: "by_currency",
                columns: vec!["currency"]
            }]
        );
    }

    #[test]
    fn mistakes_of_an_author_are_named() {
        let column = |name| SchemaChange::AddColumn(Column::nullable(name, ColumnKind::Text));
        for (versions, reason) in [
            (vec![], "first version must add the table"),
            (vec![column("a")], "first version must add the table"),
            (vec![table(), table()], "the table is there already"),
            (vec![table(), column("currency")], "column currency already"),
            (vec![table(), column("select")], "cannot be a name"),
            (vec![table(), column("Quantity")], "cannot be a name"),
            (vec![table(), column("tx_id")], "belongs to the node"),
            (
                vec![
                    table(),
                    SchemaChange::AddColumn(Column::required("a", ColumnKind::Text)),
                ],
                "must be nullable",
            ),
            (
                vec![table(), index("i", &["nothing"])],
                "which the table does not have",
            ),
            (vec![table(), index("i", &[])], "no columns"),
            (
                vec![
                    table(),
                    index("i", &["currency"]),
                    index("i", &["quantity"]),
                ],
                "index i already",
            ),
            (
                vec![SchemaChange::AddTable { columns: vec![] }],
                "at least one column",
            ),
        ] {
            let error = schema(versions).describe().unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
        let stray = MappedSchema {
            table: "cashier",
            ..schema(vec![table()])
        };
        assert!(matches!(
            stray.describe(),
            Err(SchemaError::TableName { .. })
        ));
        let node = MappedSchema {
            name: "vault",
            table: "vault_states",
            ..schema(vec![table()])
        };
        assert!(matches!(node.describe(), Err(SchemaError::Reserved { .. })));
    }

    #[test]
    fn reserved_words_are_sorted_for_the_search() {
        assert!(SQL_WORDS.is_sorted());
    }

    #[test]
    fn rows_must_fit() {
        let notary = Party::new(
            X500Name::new("Notary", "London", "GB").unwrap(),
            KeyPair::generate(SignatureScheme::Ed25519).public().clone(),
        );
        let state = |data: Vec<u8>| TransactionState {
            contract: crate::ContractRef {
                name: "cash.Cash".into(),
                code: SecureHash::ZERO,
            },
            state_type: "cash.Cash.State".into(),
            data,
            participants: vec![notary.owning_key.clone()],
            notary: notary.clone(),
        };
        let schema = schema(vec![table()]);
        let table = schema.describe().unwrap();
        assert_eq!(
            schema.row(&table, &state(vec![7])).unwrap(),
            Some(vec![7i64.into(), "JPY".into()])
        );
        assert_eq!(schema.row(&table, &state(vec![])).unwrap(), None);
        let other = TransactionState {
            state_type: "iou.Iou".into(),
            ..state(vec![7])
        };
        assert_eq!(schema.row(&table, &other).unwrap(), None);

        for map in [
            (|_| Some(vec![ColumnValue::Null, "JPY".into()])) as fn(&TransactionState) -> _,
            |_| Some(vec![7i64.into()]),
            |_| Some(vec!["7".into(), "JPY".into()]),
            |_| Some(vec![7i64.into(), "J\0Y".into()]),
        ] {
            let bad = MappedSchema {
                map,
                ..schema.clone()
            };
            assert!(matches!(
                bad.row(&table, &state(vec![7])),
                Err(SchemaError::Row { .. })
            ));
        }
    }
}
