//! Asking the vault: criteria, sorting, paging, and the stream of updates.
//!
//! These are the words only. Storage turns them into its queries; flows, RPC and the shell speak them. A query is bounded
//! in size and depth ([`VaultQuery::validate`]); whether a column exists is known only to whoever has the schemas.

use std::io::{self, Read};

use borsh::{BorshDeserialize, BorshSerialize};
use quorate_identity::{PublicKey, X500Name};
use serde::{Deserialize, Serialize};

use crate::{
    canonical,
    limits::{
        DEFAULT_PAGE_SIZE, MAX_CRITERIA, MAX_CRITERIA_DEPTH, MAX_CRITERION_VALUES, MAX_PAGE_SIZE,
        MAX_SORT_KEYS,
    },
    reference::{StateRef, TxId, UniqueId},
    schema::{self, ColumnValue},
    state::StateAndRef,
    time::Timestamp,
};

/// Whether a state has been consumed.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Debug,
    Default,
    BorshSerialize,
    BorshDeserialize,
    Serialize,
    Deserialize,
)]
#[serde(rename_all = "camelCase")]
pub enum StateStatus {
    /// Not consumed by any transaction that this node knows.
    #[default]
    Unconsumed,
    /// Consumed.
    Consumed,
    /// Both; only in queries.
    All,
}

/// Which soft locks a state may have.
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
pub enum SoftLockFilter {
    /// Not locked.
    Unlocked,
    /// Locked by anybody.
    Locked,
    /// Locked by this holder; flows lock with their flow id.
    LockedBy(UniqueId),
    /// Not locked, or locked by this holder.
    UnlockedOr(UniqueId),
}

/// How a column is compared with a value.
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
pub enum Cmp {
    /// The same; with [`ColumnValue::Null`]: is absent.
    Equal,
    /// Another; with [`ColumnValue::Null`]: is present.
    NotEqual,
    /// Smaller.
    Less,
    /// Smaller or the same.
    LessOrEqual,
    /// Greater.
    Greater,
    /// Greater or the same.
    GreaterOrEqual,
    /// Text that begins with the value.
    StartsWith,
}

/// Which states are meant.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Criteria {
    /// Every state, consumed ones included.
    All,
    /// States with this status.
    Status(StateStatus),
    /// States of one of these types ([`ContractState::TYPE`](crate::ContractState::TYPE)).
    StateTypes(Vec<String>),
    /// Exactly these states.
    Refs(Vec<StateRef>),
    /// States guarded by one of these notaries.
    Notaries(Vec<X500Name>),
    /// States recorded from a moment (inclusive) until another (exclusive).
    RecordedBetween {
        /// The first moment.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        from: Option<Timestamp>,
        /// The first moment after.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        until: Option<Timestamp>,
    },
    /// States with these soft locks.
    SoftLocked(SoftLockFilter),
    /// States that concern one of these keys.
    Participants(Vec<PublicKey>),
    /// States whose row in an application's table compares so.
    Column {
        /// The name of the schema.
        schema: String,
        /// The name of the column.
        column: String,
        /// How to compare.
        op: Cmp,
        /// With what.
        value: ColumnValue,
    },
    /// States that meet all of these; every state if there are none.
    And(Vec<Criteria>),
    /// States that meet one of these; no state if there are none.
    Or(Vec<Criteria>),
    /// States that do not meet this.
    Not(Box<Criteria>),
}

impl Criteria {
    /// States not consumed.
    pub fn unconsumed() -> Self {
        Self::Status(StateStatus::Unconsumed)
    }

    /// States of this type.
    pub fn of_type(state_type: impl Into<String>) -> Self {
        Self::StateTypes(vec![state_type.into()])
    }

    /// States whose row compares so.
    pub fn column(
        schema: impl Into<String>,
        column: impl Into<String>,
        op: Cmp,
        value: impl Into<ColumnValue>,
    ) -> Self {
        Self::Column {
            schema: schema.into(),
            column: column.into(),
            op,
            value: value.into(),
        }
    }

    /// States that meet this and `other`.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match self {
            Self::And(mut all) => {
                all.push(other);
                Self::And(all)
            }
            one => Self::And(vec![one, other]),
        }
    }

    /// States that meet this or `other`.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        match self {
            Self::Or(mut any) => {
                any.push(other);
                Self::Or(any)
            }
            one => Self::Or(vec![one, other]),
        }
    }

    /// Checks size, depth and values.
    ///
    /// # Errors
    /// The first bound that is exceeded.
    pub fn validate(&self) -> Result<(), QueryError> {
        let mut budget = MAX_CRITERIA;
        self.check(MAX_CRITERIA_DEPTH, &mut budget)
    }

    fn check(&self, depth: usize, budget: &mut usize) -> Result<(), QueryError> {
        let Some(depth) = depth.checked_sub(1) else {
            return Err(QueryError::TooDeep);
        };
        *budget = budget.checked_sub(1).ok_or(QueryError::TooManyCriteria)?;
        let bounded = |count: usize| match count {
            0..=MAX_CRITERION_VALUES => Ok(()),
            _ => Err(QueryError::TooManyValues { count }),
        };
        match self {
            Self::All | Self::Status(_) | Self::RecordedBetween { .. } | Self::SoftLocked(_) => {
                Ok(())
            }
            Self::StateTypes(types) => bounded(types.len()),
            Self::Refs(refs) => bounded(refs.len()),
            Self::Notaries(names) => bounded(names.len()),
            Self::Participants(keys) => bounded(keys.len()),
            Self::Column {
                schema,
                column,
                op,
                value,
            } => {
                // Storage puts these names into SQL; only what a schema could have declared gets that far.
                for name in [schema, column] {
                    if !schema::is_identifier(name) {
                        return Err(QueryError::Identifier {
                            name: name.chars().take(40).collect(),
                        });
                    }
                }
                match (op, value) {
                    (Cmp::Equal | Cmp::NotEqual, _) | (Cmp::StartsWith, ColumnValue::Text(_)) => {}
                    (Cmp::StartsWith, _) | (_, ColumnValue::Null) => {
                        return Err(QueryError::Comparison {
                            column: column.clone(),
                            op: *op,
                        });
                    }
                    _ => {}
                }
                value.check().map_err(|reason| QueryError::Value {
                    column: column.clone(),
                    reason,
                })
            }
            Self::And(parts) | Self::Or(parts) => {
                parts.iter().try_for_each(|part| part.check(depth, budget))
            }
            Self::Not(part) => part.check(depth, budget),
        }
    }

    fn read<R: Read>(reader: &mut R, depth: usize, budget: &mut usize) -> io::Result<Self> {
        let depth = depth
            .checked_sub(1)
            .ok_or_else(|| canonical::refuse(QueryError::TooDeep))?;
        *budget = budget
            .checked_sub(1)
            .ok_or_else(|| canonical::refuse(QueryError::TooManyCriteria))?;
        let mut parts = |reader: &mut R| -> io::Result<Vec<Self>> {
            let count = u32::deserialize_reader(reader)?;
            // No capacity is reserved: the budget ends a lie about the count.
            (0..count)
                .map(|_| Self::read(reader, depth, budget))
                .collect()
        };
        Ok(match u8::deserialize_reader(reader)? {
            0 => Self::All,
            1 => Self::Status(BorshDeserialize::deserialize_reader(reader)?),
            2 => Self::StateTypes(BorshDeserialize::deserialize_reader(reader)?),
            3 => Self::Refs(BorshDeserialize::deserialize_reader(reader)?),
            4 => Self::Notaries(BorshDeserialize::deserialize_reader(reader)?),
            5 => {
                let from = BorshDeserialize::deserialize_reader(reader)?;
                Self::RecordedBetween {
                    from,
                    until: BorshDeserialize::deserialize_reader(reader)?,
                }
            }
            6 => Self::SoftLocked(BorshDeserialize::deserialize_reader(reader)?),
            7 => Self::Participants(BorshDeserialize::deserialize_reader(reader)?),
            8 => Self::Column {
                schema: BorshDeserialize::deserialize_reader(reader)?,
                column: BorshDeserialize::deserialize_reader(reader)?,
                op: BorshDeserialize::deserialize_reader(reader)?,
                value: BorshDeserialize::deserialize_reader(reader)?,
            },
            9 => Self::And(parts(reader)?),
            10 => Self::Or(parts(reader)?),
            11 => Self::Not(Box::new(Self::read(reader, depth, budget)?)),
            tag => return Err(canonical::refuse(format!("unknown criterion {tag}"))),
        })
    }
}

/// By hand, because criteria nest: derived code would follow a stranger's nesting until the stack ends.
impl BorshDeserialize for Criteria {
    fn deserialize_reader<R: Read>(reader: &mut R) -> io::Result<Self> {
        Self::read(reader, MAX_CRITERIA_DEPTH, &mut { MAX_CRITERIA })
    }
}

/// By what states are sorted.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SortKey {
    /// The order in which this node recorded them.
    Recorded,
    /// The moment of consumption; unconsumed ones last.
    ConsumedAt,
    /// The name of the type.
    StateType,
    /// The name of the state.
    Reference,
    /// A column of an application's table; states without a row last.
    Column {
        /// The name of the schema.
        schema: String,
        /// The name of the column.
        column: String,
    },
}

/// One key of a sort order.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Sort {
    /// By what.
    pub by: SortKey,
    /// Greatest first.
    #[serde(default)]
    pub descending: bool,
}

/// Which page of the answer.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize, Serialize, Deserialize,
)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct PageRequest {
    /// The number of the page, from 1.
    pub number: u32,
    /// States on a page, 1 to [`MAX_PAGE_SIZE`].
    pub size: u32,
}

impl Default for PageRequest {
    fn default() -> Self {
        Self {
            number: 1,
            size: DEFAULT_PAGE_SIZE,
        }
    }
}

/// A question to the vault. Ties in the order are broken by the order of recording.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct VaultQuery {
    /// Which states.
    pub criteria: Criteria,
    /// In which order; the order of recording if empty.
    pub sort: Vec<Sort>,
    /// Which of them.
    pub page: PageRequest,
}

/// The first page of all unconsumed states, in the order of recording.
impl Default for VaultQuery {
    fn default() -> Self {
        Self::new(Criteria::unconsumed())
    }
}

impl VaultQuery {
    /// The first page of the states that meet `criteria`, in the order of recording.
    pub fn new(criteria: Criteria) -> Self {
        Self {
            criteria,
            sort: Vec::new(),
            page: PageRequest::default(),
        }
    }

    /// Checks everything that can be checked without the schemas.
    ///
    /// # Errors
    /// The first bound that is exceeded.
    pub fn validate(&self) -> Result<(), QueryError> {
        let PageRequest { number, size } = self.page;
        if number == 0 {
            return Err(QueryError::PageNumber);
        }
        if !(1..=MAX_PAGE_SIZE).contains(&size) {
            return Err(QueryError::PageSize { size });
        }
        if self.sort.len() > MAX_SORT_KEYS {
            return Err(QueryError::TooManySortKeys);
        }
        for sort in &self.sort {
            if let SortKey::Column { schema, column } = &sort.by
                && let Some(name) = [schema, column]
                    .into_iter()
                    .find(|name| !schema::is_identifier(name))
            {
                return Err(QueryError::Identifier {
                    name: name.chars().take(40).collect(),
                });
            }
        }
        self.criteria.validate()
    }
}

/// A question that is not answered.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QueryError {
    /// Page zero.
    #[error("pages are counted from 1")]
    PageNumber,
    /// An empty or too large page.
    #[error("a page of {size} states; ask for 1 to {MAX_PAGE_SIZE}")]
    PageSize {
        /// States asked for.
        size: u32,
    },
    /// Too many sort keys.
    #[error("more than {MAX_SORT_KEYS} sort keys")]
    TooManySortKeys,
    /// Too many criteria.
    #[error("more than {MAX_CRITERIA} criteria in one query")]
    TooManyCriteria,
    /// Criteria nested too deeply.
    #[error("criteria nested more than {MAX_CRITERIA_DEPTH} deep")]
    TooDeep,
    /// Too many values in one criterion.
    #[error(
        "{count} values in one criterion, at most {MAX_CRITERION_VALUES} are possible; split the query"
    )]
    TooManyValues {
        /// How many.
        count: usize,
    },
    /// A name that no schema can have.
    #[error("{name:?} is not the name of a schema or a column")]
    Identifier {
        /// The name.
        name: String,
    },
    /// A comparison that makes no sense for the value.
    #[error("column {column} cannot be compared by {op:?} with such a value")]
    Comparison {
        /// The column.
        column: String,
        /// How to compare.
        op: Cmp,
    },
    /// A value that no column can have.
    #[error("no value for column {column}: {reason}")]
    Value {
        /// The column.
        column: String,
        /// The reason.
        reason: String,
    },
    /// A schema or column that no installed application declares. For whoever has the schemas.
    #[error("no installed application has a column {schema}.{column}")]
    UnknownColumn {
        /// The schema.
        schema: String,
        /// The column.
        column: String,
    },
}

/// A state in the vault.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VaultState {
    /// The state and its name.
    pub state: StateAndRef,
    /// Whether it is consumed.
    pub status: StateStatus,
    /// When this node recorded it.
    pub recorded_at: Timestamp,
    /// When this node recorded its consumption.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consumed_at: Option<Timestamp>,
    /// The transaction that consumed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consumed_by: Option<TxId>,
    /// The holder of its soft lock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locked_by: Option<UniqueId>,
}

/// A page of an answer.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Page {
    /// The states on this page.
    pub states: Vec<VaultState>,
    /// The states on all pages.
    pub total: u64,
    /// The number of this page, from 1.
    pub number: u32,
    /// The size of a page that was asked for.
    pub size: u32,
}

/// A place in the stream of vault updates. Updates after it are those that the holder has not seen.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Debug,
    Default,
    BorshSerialize,
    BorshDeserialize,
    Serialize,
    Deserialize,
)]
#[serde(transparent)]
pub struct Cursor(pub u64);

impl Cursor {
    /// Before the first update.
    pub const START: Self = Self(0);
}

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// What one recorded transaction did to the vault.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VaultUpdate {
    /// The place of this update; ask for what follows it.
    pub cursor: Cursor,
    /// The transaction.
    pub tx: TxId,
    /// States that are new in the vault.
    pub produced: Vec<StateAndRef>,
    /// States of the vault that are consumed now.
    pub consumed: Vec<StateAndRef>,
    /// When this node recorded the transaction.
    pub recorded_at: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn criteria_survive_both_encodings() {
        let key = quorate_identity::KeyPair::ed25519_from_seed(&[1; 32]);
        let criteria = Criteria::unconsumed()
            .and(Criteria::of_type("cash.Cash.State"))
            .and(Criteria::column("cash", "quantity", Cmp::GreaterOrEqual, 5i64).or(Criteria::All))
            .and(Criteria::Not(Box::new(Criteria::SoftLocked(
                SoftLockFilter::LockedBy([7; 16].into()),
            ))))
            .and(Criteria::RecordedBetween {
                from: Some(Timestamp::EPOCH),
                until: None,
            })
            .and(Criteria::Refs(vec![StateRef::new(
                TxId::new(quorate_identity::SecureHash::ZERO),
                1,
            )]))
            .and(Criteria::Participants(vec![key.public().clone()]))
            .and(Criteria::Notaries(vec![
                X500Name::new("Notary", "London", "GB").unwrap(),
            ]));
        criteria.validate().unwrap();
        assert_eq!(
            borsh::from_slice::<Criteria>(&borsh::to_vec(&criteria).unwrap()).unwrap(),
            criteria
        );
        // What clients in other languages write.
        let json = serde_json::json!({"and": [
            {"status": "unconsumed"},
            {"stateTypes": ["cash.Cash.State"]},
            {"or": [
                {"column": {"schema": "cash", "column": "quantity", "op": "greaterOrEqual", "value": {"bigInt": 5}}},
                "all",
            ]},
            {"not": {"softLocked": {"lockedBy": "07070707-0707-0707-0707-070707070707"}}},
            {"recordedBetween": {"from": "1970-01-01T00:00:00.000000Z"}},
            {"refs": [format!("{}(1)", "0".repeat(64))]},
            {"participants": [key.public().to_string()]},
            {"notaries": ["O=Notary, L=London, C=GB"]},
        ]});
        assert_eq!(serde_json::to_value(&criteria).unwrap(), json);
        assert_eq!(serde_json::from_value::<Criteria>(json).unwrap(), criteria);
    }

    #[test]
    fn queries_for_people_may_leave_things_out() {
        let query: VaultQuery =
            serde_json::from_str(r#"{"criteria":{"stateTypes":["cash.Cash.State"]}}"#).unwrap();
        assert_eq!(query, VaultQuery::new(Criteria::of_type("cash.Cash.State")));
        assert!(serde_json::from_str::<VaultQuery>(r#"{"criterai":"all"}"#).is_err());
    }

    #[test]
    fn nesting_and_sizes_are_bounded() {
        // A million levels in a megabyte: derived code would end the stack.
        assert!(borsh::from_slice::<Criteria>(&vec![11u8; 1_000_000]).is_err());
        let mut wide = vec![9u8];
        wide.extend(u32::MAX.to_le_bytes());
        wide.extend(vec![0u8; 1_000]);
        assert!(borsh::from_slice::<Criteria>(&wide).is_err());

        let deep =
            (0..MAX_CRITERIA_DEPTH).fold(Criteria::All, |inner, _| Criteria::Not(Box::new(inner)));
        assert_eq!(deep.validate(), Err(QueryError::TooDeep));
        assert_eq!(
            Criteria::And(vec![Criteria::All; MAX_CRITERIA]).validate(),
            Err(QueryError::TooManyCriteria)
        );
        let page = |number, size| {
            VaultQuery {
                page: PageRequest { number, size },
                ..Default::default()
            }
            .validate()
        };
        assert_eq!(page(0, 10), Err(QueryError::PageNumber));
        assert_eq!(page(1, 0), Err(QueryError::PageSize { size: 0 }));
        assert!(page(1, MAX_PAGE_SIZE).is_ok() && page(1, MAX_PAGE_SIZE + 1).is_err());
    }

    #[test]
    fn only_names_that_a_schema_can_have_reach_storage() {
        for name in ["x; DROP TABLE", "Quantity", "", "é", "1a", "a\"b", "select"] {
            assert!(
                Criteria::column("cash", name, Cmp::Equal, 1i64)
                    .validate()
                    .is_err(),
                "{name}"
            );
            assert!(
                Criteria::column(name, "quantity", Cmp::Equal, 1i64)
                    .validate()
                    .is_err(),
                "{name}"
            );
            let sort = vec![Sort {
                by: SortKey::Column {
                    schema: "cash".into(),
                    column: name.into(),
                },
                descending: true,
            }];
            assert!(
                VaultQuery {
                    sort,
                    ..Default::default()
                }
                .validate()
                .is_err(),
                "{name}"
            );
        }
        assert!(
            Criteria::column("cash", "quantity", Cmp::Less, ColumnValue::Null)
                .validate()
                .is_err()
        );
        assert!(
            Criteria::column("cash", "issuer", Cmp::Equal, "a\0b")
                .validate()
                .is_err()
        );
    }
}
