//! Cash on the ledger: the state, the contract that conserves it, and the table about it.
//!
//! Cash is a claim against its issuer. Claims of one issuer, under one of the issuer's references,
//! in one currency are worth the same: they are one [`Token`], and the contract judges a
//! transaction token by token. What may happen to a token is said by exactly one command:
//!
//! | command | inputs and outputs of the token | who signs |
//! |---|---|---|
//! | [`ISSUE`] | no inputs, some outputs | the issuer |
//! | [`MOVE`] | inputs = outputs | the owners of the inputs |
//! | [`EXIT`] | inputs − outputs = the amount that leaves | the owners of the inputs and the issuer |
//!
//! One `cash.Move` covers every token that no other command names; `cash.Issue` and `cash.Exit`
//! name theirs. So every output is covered by exactly one command.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{Error as IoError, ErrorKind, Read, Write};
use std::str::FromStr;

use borsh::{BorshDeserialize, BorshSerialize};
use quorate_identity::{Party, PublicKey, SecureHash};
use quorate_ledger::schema::{Column, ColumnKind, ColumnValue, MappedSchema, SchemaChange};
use quorate_ledger::{
    Command, Contract, ContractState, ContractViolation, LedgerTransaction, StateAndRef,
    StateError, TransactionState,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::amount::{Amount, AmountError, Currency};

/// Creates cash. Its data is an [`IssueData`].
pub const ISSUE: &str = "cash.Issue";
/// Passes cash on. It has no data.
pub const MOVE: &str = "cash.Move";
/// Takes cash out of circulation. Its data is an [`ExitData`].
pub const EXIT: &str = "cash.Exit";
/// How the kinds of this contract's commands begin; others may stand in the same transaction.
const COMMANDS: &str = "cash.";

/// The name of the schema, and the columns that coin selection uses.
pub(crate) const SCHEMA: &str = "cash";
pub(crate) const CURRENCY: &str = "currency";
pub(crate) const AMOUNT: &str = "amount";
pub(crate) const OWNER_KEY: &str = "owner_key";
pub(crate) const ISSUER_KEY: &str = "issuer_key";

/// The longest issuance reference, in bytes.
pub const MAX_REFERENCE_BYTES: usize = 32;

/// Cash of one owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cash {
    /// How much.
    pub amount: Amount,
    /// Against whom it is a claim.
    pub issuer: Party,
    /// Which of the issuer's issues it belongs to.
    pub reference: IssuanceReference,
    /// Whose it is.
    pub owner: Party,
}

/// The bytes of a [`Cash`] on the ledger. A later shape is another variant, and this one is lifted
/// to it when it is read.
#[derive(BorshSerialize, BorshDeserialize)]
enum Stored {
    V1 {
        amount: Amount,
        issuer: Party,
        reference: IssuanceReference,
        owner: Party,
    },
}

impl BorshSerialize for Cash {
    fn serialize<W: Write>(&self, writer: &mut W) -> std::io::Result<()> {
        let stored = Stored::V1 {
            amount: self.amount,
            issuer: self.issuer.clone(),
            reference: self.reference.clone(),
            owner: self.owner.clone(),
        };
        stored.serialize(writer)
    }
}

impl BorshDeserialize for Cash {
    fn deserialize_reader<R: Read>(reader: &mut R) -> std::io::Result<Self> {
        let Stored::V1 {
            amount,
            issuer,
            reference,
            owner,
        } = Stored::deserialize_reader(reader)?;
        Ok(Self {
            amount,
            issuer,
            reference,
            owner,
        })
    }
}

impl ContractState for Cash {
    const TYPE: &'static str = "cash.Cash.State";
    const CONTRACT: &'static str = "cash.Cash";

    fn participants(&self) -> Vec<PublicKey> {
        vec![self.owner.owning_key.clone()]
    }
}

impl Cash {
    /// What this cash is interchangeable with.
    pub fn token(&self) -> Token {
        Token {
            currency: self.amount.currency,
            issuer: self.issuer.clone(),
            reference: self.reference.clone(),
        }
    }
}

/// Bytes by which an issuer tells its issues apart; at most [`MAX_REFERENCE_BYTES`]. Text and JSON
/// are hexadecimal.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize)]
pub struct IssuanceReference(Vec<u8>);

impl IssuanceReference {
    /// A reference of these bytes; `None` if there are too many.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Option<Self> {
        let bytes = bytes.into();
        (bytes.len() <= MAX_REFERENCE_BYTES).then_some(Self(bytes))
    }
}

/// The single byte 1, for issuers who do not tell their issues apart.
impl Default for IssuanceReference {
    fn default() -> Self {
        Self(vec![1])
    }
}

impl fmt::Display for IssuanceReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0))
    }
}

impl fmt::Debug for IssuanceReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is not an issuance reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an issuance reference is at most {MAX_REFERENCE_BYTES} bytes in hexadecimal, such as 01")]
pub struct ReferenceError;

impl FromStr for IssuanceReference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let bytes = hex::decode(text).map_err(|_| ReferenceError)?;
        Self::new(bytes).ok_or(ReferenceError)
    }
}

impl Serialize for IssuanceReference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for IssuanceReference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <String as Deserialize>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl BorshDeserialize for IssuanceReference {
    fn deserialize_reader<R: Read>(reader: &mut R) -> std::io::Result<Self> {
        let bytes = Vec::<u8>::deserialize_reader(reader)?;
        Self::new(bytes).ok_or_else(|| IoError::new(ErrorKind::InvalidData, ReferenceError))
    }
}

/// What makes cash interchangeable: issuer, issuance reference and currency.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, BorshSerialize, BorshDeserialize)]
pub struct Token {
    /// The currency.
    pub currency: Currency,
    /// The issuer.
    pub issuer: Party,
    /// The issuance reference.
    pub reference: IssuanceReference,
}

impl Token {
    /// So many minor units of this token, owned by `owner`.
    pub fn held_by(&self, owner: &Party, quantity: i64) -> Cash {
        Cash {
            amount: Amount::new(quantity, self.currency),
            issuer: self.issuer.clone(),
            reference: self.reference.clone(),
            owner: owner.clone(),
        }
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} issued by {} under reference {}",
            self.currency, self.issuer, self.reference
        )
    }
}

/// What an [`ISSUE`] says.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum IssueData {
    /// The first version.
    V1 {
        /// What is issued.
        token: Token,
    },
}

/// What an [`EXIT`] says.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum ExitData {
    /// The first version.
    V1 {
        /// What leaves circulation.
        token: Token,
        /// How many minor units of it.
        quantity: i64,
    },
}

/// The command by which the token's issuer creates it.
pub fn issue(token: &Token) -> Command {
    let data = IssueData::V1 {
        token: token.clone(),
    };
    Command::new(ISSUE, [token.issuer.owning_key.clone()]).with_data(&data)
}

/// The command by which these owners pass their cash on.
pub fn moved(owners: impl IntoIterator<Item = PublicKey>) -> Command {
    Command::new(MOVE, owners)
}

/// The command by which `quantity` minor units of these owners leave circulation.
pub fn exit(token: &Token, quantity: i64, owners: impl IntoIterator<Item = PublicKey>) -> Command {
    let data = ExitData::V1 {
        token: token.clone(),
        quantity,
    };
    let issuer = token.issuer.owning_key.clone();
    Command::new(EXIT, owners.into_iter().chain([issuer])).with_data(&data)
}

/// The contract `cash.Cash`.
#[derive(Debug, Clone, Copy, Default)]
pub struct CashContract;

impl CashContract {
    /// What is hashed to name this code. A contract that is linked into the program has no bytes
    /// of its own to hash, so it declares an identity, and **every change of its rules must
    /// declare another**: nodes with different rules then refuse each other's states by name
    /// instead of judging them differently.
    pub const CODE_IDENTITY: &'static str = "quorate contract cash.Cash version 1";
}

impl Contract for CashContract {
    fn name(&self) -> &str {
        Cash::CONTRACT
    }

    fn code(&self) -> SecureHash {
        SecureHash::of(Self::CODE_IDENTITY.as_bytes())
    }

    fn verify(&self, tx: &LedgerTransaction) -> Result<(), ContractViolation> {
        only_states::<Cash>(tx)?;
        let mut commands = Commands::of(tx)?;
        let mut moved = false;
        for (token, group) in Group::all(tx)? {
            let issued = commands.issues.remove(&token);
            let exited = commands.exits.remove(&token);
            match (issued, exited) {
                (Some(signers), None) => group.verify_issue(&token, &signers)?,
                (None, Some((quantity, signers))) => {
                    group.verify_exit(&token, quantity, &signers)?;
                }
                (None, None) => {
                    group.verify_move(&token, commands.moves.as_ref())?;
                    moved = true;
                }
                (Some(_), Some(_)) => {
                    return Err(ContractViolation::new(format!(
                        "{token} must not be issued and exited in one transaction"
                    )));
                }
            }
        }
        let unmet = commands.issues.keys().chain(commands.exits.keys()).next();
        if let Some(token) = unmet {
            return Err(ContractViolation::new(format!(
                "a command names {token}, and the transaction has none of it"
            )));
        }
        ContractViolation::unless(
            moved || commands.moves.is_none(),
            "a cash.Move must move something",
        )
    }
}

/// The commands of this contract, each with its signers.
struct Commands {
    issues: BTreeMap<Token, BTreeSet<PublicKey>>,
    exits: BTreeMap<Token, (i64, BTreeSet<PublicKey>)>,
    moves: Option<BTreeSet<PublicKey>>,
}

impl Commands {
    fn of(tx: &LedgerTransaction) -> Result<Self, ContractViolation> {
        let mut found = Self {
            issues: BTreeMap::new(),
            exits: BTreeMap::new(),
            moves: None,
        };
        for command in tx.commands_starting_with(COMMANDS) {
            let signers = command.signers.iter().cloned().collect();
            let repeated = match command.kind.as_str() {
                ISSUE => {
                    let IssueData::V1 { token } = command.read()?;
                    found.issues.insert(token, signers).is_some()
                }
                EXIT => {
                    let ExitData::V1 { token, quantity } = command.read()?;
                    found.exits.insert(token, (quantity, signers)).is_some()
                }
                MOVE if command.data.is_empty() => found.moves.replace(signers).is_some(),
                MOVE => return Err(ContractViolation::new("a cash.Move has no data")),
                other => {
                    return Err(ContractViolation::new(format!(
                        "{other} is not a command of cash"
                    )));
                }
            };
            if repeated {
                return Err(ContractViolation::new(format!(
                    "a second {} for the same cash",
                    command.kind
                )));
            }
        }
        Ok(found)
    }
}

/// The states of one token in a transaction, with their sums in minor units.
#[derive(Default)]
struct Group {
    owners: BTreeSet<PublicKey>,
    inputs: i64,
    outputs: i64,
}

impl Group {
    fn all(tx: &LedgerTransaction) -> Result<BTreeMap<Token, Self>, ContractViolation> {
        let mut groups: BTreeMap<Token, Self> = BTreeMap::new();
        for cash in tx.inputs_of::<Cash>()? {
            let group = groups.entry(cash.token()).or_default();
            group.inputs = add(group.inputs, &cash)?;
            group.owners.insert(cash.owner.owning_key);
        }
        for cash in tx.outputs_of::<Cash>()? {
            let group = groups.entry(cash.token()).or_default();
            group.outputs = add(group.outputs, &cash)?;
        }
        Ok(groups)
    }

    fn verify_issue(
        &self,
        token: &Token,
        signers: &BTreeSet<PublicKey>,
    ) -> Result<(), ContractViolation> {
        if self.inputs != 0 {
            return Err(ContractViolation::new(format!(
                "an issue of {token} must not consume any of it"
            )));
        }
        if !signers.contains(&token.issuer.owning_key) {
            return Err(ContractViolation::new(format!(
                "the issuer must sign the issue of {token}"
            )));
        }
        Ok(())
    }

    fn verify_move(
        &self,
        token: &Token,
        signers: Option<&BTreeSet<PublicKey>>,
    ) -> Result<(), ContractViolation> {
        let Some(signers) = signers else {
            return Err(ContractViolation::new(format!(
                "no command covers {token}: a cash.Move, cash.Issue or cash.Exit must"
            )));
        };
        if self.inputs != self.outputs {
            return Err(ContractViolation::new(format!(
                "a move of {token} must neither create nor destroy cash: {} minor units go in, {} \
                 come out",
                self.inputs, self.outputs
            )));
        }
        self.verify_owners(token, signers)
    }

    fn verify_exit(
        &self,
        token: &Token,
        quantity: i64,
        signers: &BTreeSet<PublicKey>,
    ) -> Result<(), ContractViolation> {
        // Both sums are positive or zero, so the difference fits.
        if quantity <= 0 || self.inputs - self.outputs != quantity {
            return Err(ContractViolation::new(format!(
                "an exit of {quantity} minor units of {token} must be what goes in less what \
                 comes out: {} and {}",
                self.inputs, self.outputs
            )));
        }
        if !signers.contains(&token.issuer.owning_key) {
            return Err(ContractViolation::new(format!(
                "the issuer must sign the exit of {token}"
            )));
        }
        self.verify_owners(token, signers)
    }

    fn verify_owners(
        &self,
        token: &Token,
        signers: &BTreeSet<PublicKey>,
    ) -> Result<(), ContractViolation> {
        match self.owners.iter().find(|owner| !signers.contains(owner)) {
            None => Ok(()),
            Some(owner) => Err(ContractViolation::new(format!(
                "every owner of consumed {token} must sign, and {} does not",
                owner.to_string_short()
            ))),
        }
    }
}

/// Adds a state to a sum. Every state must hold something, so no sum hides a negative one.
fn add(sum: i64, cash: &Cash) -> Result<i64, ContractViolation> {
    if cash.amount.quantity <= 0 {
        return Err(ContractViolation::new(format!(
            "a state must hold more than nothing, one holds {}",
            cash.amount
        )));
    }
    let total = sum.checked_add(cash.amount.quantity);
    total.ok_or_else(|| {
        ContractViolation::new(AmountError::Overflow(cash.amount.currency).to_string())
    })
}

/// Refuses states that are put under the contract of `S` without being an `S`: the contract could
/// not judge them, and its name on them would mean nothing.
pub(crate) fn only_states<S: ContractState>(
    tx: &LedgerTransaction,
) -> Result<(), ContractViolation> {
    let states = tx.inputs().iter().map(|input| &input.state);
    let stray = states
        .chain(tx.outputs())
        .find(|state| state.contract.name == S::CONTRACT && !state.is::<S>());
    match stray {
        None => Ok(()),
        Some(state) => Err(ContractViolation::new(format!(
            "{} is not a state of contract {}",
            state.state_type,
            S::CONTRACT
        ))),
    }
}

/// The table `cash_states`: one row for each cash state of the vault.
pub fn schema() -> MappedSchema {
    let text = |name| Column::required(name, ColumnKind::Text);
    let amount = Column::required(AMOUNT, ColumnKind::BigInt);
    MappedSchema {
        name: SCHEMA,
        table: "cash_states",
        versions: vec![
            SchemaChange::AddTable {
                columns: vec![
                    text(CURRENCY),
                    amount,
                    text("owner"),
                    text(OWNER_KEY),
                    text("issuer"),
                    text(ISSUER_KEY),
                    text("reference"),
                ],
            },
            SchemaChange::AddIndex {
                name: "by_owner",
                columns: vec![OWNER_KEY, CURRENCY],
            },
        ],
        map: columns,
        state_types: vec![Cash::TYPE],
    }
}

fn columns(state: &TransactionState) -> Option<Vec<ColumnValue>> {
    let cash: Cash = state.read().ok()?;
    Some(vec![
        cash.amount.currency.to_string().into(),
        cash.amount.quantity.into(),
        cash.owner.name.to_string().into(),
        cash.owner.owning_key.to_string().into(),
        cash.issuer.name.to_string().into(),
        cash.issuer.owning_key.to_string().into(),
        cash.reference.to_string().into(),
    ])
}

/// Why balances cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum BalanceError {
    /// A cash state that this version of the application cannot read.
    #[error("a cash state cannot be read")]
    State(#[from] StateError),
    /// A sum that is too large.
    #[error(transparent)]
    Amount(#[from] AmountError),
}

/// The cash among `states` (pages of a vault query), summed by currency. Other states are left
/// out; whoever wants the balance of one owner asks the vault for that owner's states.
///
/// # Errors
/// If a cash state cannot be read, or a sum is too large.
pub fn balances<'a>(
    states: impl IntoIterator<Item = &'a StateAndRef>,
) -> Result<BTreeMap<Currency, Amount>, BalanceError> {
    let mut balances = BTreeMap::new();
    for state in states {
        if !state.state.is::<Cash>() {
            continue;
        }
        let Amount { quantity, currency } = state.read::<Cash>()?.amount;
        let balance = balances
            .entry(currency)
            .or_insert_with(|| Amount::new(0, currency));
        *balance = balance.checked_add(Amount::new(quantity, currency))?;
    }
    Ok(balances)
}
