//! An obligation on the ledger: the borrower owes the lender an amount of cash.
//!
//! It is paid in cash of an issuer on whom the two agreed when they signed it; otherwise a
//! borrower could pay a debt with promises of its own. The contract reads the cash that moves in
//! the same transaction, so a debt shrinks exactly when the money arrives (delivery versus
//! payment).
//!
//! | command | what happens to the obligation | who signs |
//! |---|---|---|
//! | [`ISSUE`] | it begins, nothing is paid | borrower and lender |
//! | [`TRANSFER`] | another lender takes it over as it stands | the lender before |
//! | [`SETTLE`] | some of it is paid, or the rest and it ends | borrower and lender |

use std::collections::BTreeMap;
use std::io::{Read, Write};

use borsh::{BorshDeserialize, BorshSerialize};
use quorate_identity::{Party, PublicKey, SecureHash};
use quorate_ledger::schema::{Column, ColumnKind, ColumnValue, MappedSchema, SchemaChange};
use quorate_ledger::{
    Command, Contract, ContractState, ContractViolation, LedgerTransaction, TransactionState,
    UniqueId,
};
use serde::{Deserialize, Serialize};

use crate::amount::{Amount, AmountError, Currency};
use crate::cash::{Cash, only_states};

/// Begins an obligation. Its data is an [`IouData`], as of all commands here.
pub const ISSUE: &str = "iou.Issue";
/// Passes an obligation on to another lender.
pub const TRANSFER: &str = "iou.Transfer";
/// Pays some or all of an obligation.
pub const SETTLE: &str = "iou.Settle";
/// How the kinds of this contract's commands begin.
const COMMANDS: &str = "iou.";

/// The name of the schema, and the columns by which flows find an obligation.
pub(crate) const SCHEMA: &str = "iou";
pub(crate) const ID: &str = "linear_id";
pub(crate) const LENDER_KEY: &str = "lender_key";
pub(crate) const BORROWER_KEY: &str = "borrower_key";

/// An obligation of a borrower to a lender.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Iou {
    /// Which obligation; the same through all its states.
    pub id: UniqueId,
    /// Whom it is owed to.
    pub lender: Party,
    /// Who owes it.
    pub borrower: Party,
    /// How much was owed at first.
    pub amount: Amount,
    /// How much of it is paid.
    pub paid: Amount,
    /// Whose cash pays it.
    pub issuer: Party,
}

/// The bytes of an [`Iou`] on the ledger. A later shape is another variant, and this one is lifted
/// to it when it is read.
#[derive(BorshSerialize, BorshDeserialize)]
enum Stored {
    V1 {
        id: UniqueId,
        lender: Party,
        borrower: Party,
        amount: Amount,
        paid: Amount,
        issuer: Party,
    },
}

impl BorshSerialize for Iou {
    fn serialize<W: Write>(&self, writer: &mut W) -> std::io::Result<()> {
        let stored = Stored::V1 {
            id: self.id,
            lender: self.lender.clone(),
            borrower: self.borrower.clone(),
            amount: self.amount,
            paid: self.paid,
            issuer: self.issuer.clone(),
        };
        stored.serialize(writer)
    }
}

impl BorshDeserialize for Iou {
    fn deserialize_reader<R: Read>(reader: &mut R) -> std::io::Result<Self> {
        let Stored::V1 {
            id,
            lender,
            borrower,
            amount,
            paid,
            issuer,
        } = Stored::deserialize_reader(reader)?;
        Ok(Self {
            id,
            lender,
            borrower,
            amount,
            paid,
            issuer,
        })
    }
}

impl ContractState for Iou {
    const TYPE: &'static str = "cash.IOU.State";
    const CONTRACT: &'static str = "cash.IOU";

    fn participants(&self) -> Vec<PublicKey> {
        vec![
            self.lender.owning_key.clone(),
            self.borrower.owning_key.clone(),
        ]
    }
}

impl Iou {
    /// What is still owed.
    ///
    /// # Errors
    /// If the state is not one that the contract accepts.
    pub fn outstanding(&self) -> Result<Amount, AmountError> {
        self.amount.checked_sub(self.paid)
    }

    /// The same obligation, owed to another.
    #[must_use]
    pub fn owed_to(&self, lender: &Party) -> Self {
        Self {
            lender: lender.clone(),
            ..self.clone()
        }
    }

    fn verify(&self) -> Result<(), ContractViolation> {
        let currency = self.amount.currency;
        ContractViolation::unless(
            self.amount.quantity > 0,
            "an IOU must be about more than nothing",
        )?;
        ContractViolation::unless(
            self.paid.currency == currency
                && (0..self.amount.quantity).contains(&self.paid.quantity),
            "what is paid of an IOU must be of its currency and less than all of it",
        )?;
        ContractViolation::unless(
            self.lender.owning_key != self.borrower.owning_key,
            "lender and borrower of an IOU must differ",
        )
    }
}

/// What every command of this contract says.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum IouData {
    /// The first version.
    V1 {
        /// Which obligation.
        id: UniqueId,
    },
}

fn command(kind: &str, iou: &Iou, signers: &[&Party]) -> Command {
    let signers = signers.iter().map(|party| party.owning_key.clone());
    Command::new(kind, signers).with_data(&IouData::V1 { id: iou.id })
}

/// The command by which an obligation begins.
pub fn issue(iou: &Iou) -> Command {
    command(ISSUE, iou, &[&iou.lender, &iou.borrower])
}

/// The command by which the lender of `iou` passes it on.
pub fn transfer(iou: &Iou) -> Command {
    command(TRANSFER, iou, &[&iou.lender])
}

/// The command by which `iou` is paid, in part or in full.
pub fn settle(iou: &Iou) -> Command {
    command(SETTLE, iou, &[&iou.lender, &iou.borrower])
}

/// The contract `cash.IOU`.
#[derive(Debug, Clone, Copy, Default)]
pub struct IouContract;

impl IouContract {
    /// What is hashed to name this code; see
    /// [`CashContract::CODE_IDENTITY`](crate::CashContract::CODE_IDENTITY).
    pub const CODE_IDENTITY: &'static str = "quorate contract cash.IOU version 1";
}

impl Contract for IouContract {
    fn name(&self) -> &str {
        Iou::CONTRACT
    }

    fn code(&self) -> SecureHash {
        SecureHash::of(Self::CODE_IDENTITY.as_bytes())
    }

    fn verify(&self, tx: &LedgerTransaction) -> Result<(), ContractViolation> {
        only_states::<Iou>(tx)?;
        let mut before = by_id(tx.inputs_of()?)?;
        let mut after = by_id(tx.outputs_of()?)?;
        let mut settled = Settled::default();
        for command in tx.commands_starting_with(COMMANDS) {
            let IouData::V1 { id } = command.read()?;
            // Taking the states away lets no second command cover them.
            let change = (before.remove(&id), after.remove(&id));
            match (command.kind.as_str(), change) {
                (ISSUE, (None, Some(begun))) => verify_issue(command, &begun)?,
                (TRANSFER, (Some(old), Some(new))) => verify_transfer(command, &old, &new)?,
                (SETTLE, (Some(old), new)) => {
                    settled.add(&old, verify_settle(command, &old, new.as_ref())?)?;
                }
                (ISSUE | TRANSFER | SETTLE, _) => {
                    return Err(ContractViolation::new(format!(
                        "{} of IOU {id} does not fit its states: an issue has an output only, a \
                         transfer an input and an output, a settlement an input",
                        command.kind
                    )));
                }
                (other, _) => {
                    return Err(ContractViolation::new(format!(
                        "{other} is not a command of IOUs"
                    )));
                }
            }
        }
        if let Some(id) = before.keys().chain(after.keys()).next() {
            return Err(ContractViolation::new(format!(
                "no command covers IOU {id}: an iou.Issue, iou.Transfer or iou.Settle must"
            )));
        }
        settled.verify(tx)
    }
}

fn by_id(ious: Vec<Iou>) -> Result<BTreeMap<UniqueId, Iou>, ContractViolation> {
    let mut by_id = BTreeMap::new();
    for iou in ious {
        iou.verify()?;
        let id = iou.id;
        if by_id.insert(id, iou).is_some() {
            return Err(ContractViolation::new(format!("IOU {id} appears twice")));
        }
    }
    Ok(by_id)
}

fn verify_issue(command: &Command, iou: &Iou) -> Result<(), ContractViolation> {
    ContractViolation::unless(
        iou.paid.quantity == 0,
        "nothing of an IOU can be paid when it is issued",
    )?;
    signed_by(command, &[&iou.lender, &iou.borrower])
}

fn verify_transfer(command: &Command, old: &Iou, new: &Iou) -> Result<(), ContractViolation> {
    ContractViolation::unless(
        *new == old.owed_to(&new.lender) && new.lender != old.lender,
        "a transfer of an IOU must change its lender and nothing else",
    )?;
    signed_by(command, &[&old.lender])
}

/// Returns how much is paid.
fn verify_settle(
    command: &Command,
    old: &Iou,
    new: Option<&Iou>,
) -> Result<i64, ContractViolation> {
    signed_by(command, &[&old.lender, &old.borrower])?;
    // Both states are sound, so 0 <= paid < amount.
    let Some(new) = new else {
        return Ok(old.amount.quantity - old.paid.quantity);
    };
    let expected = Iou {
        paid: new.paid,
        ..old.clone()
    };
    ContractViolation::unless(
        *new == expected && new.paid.quantity > old.paid.quantity,
        "a settlement of an IOU must increase what is paid and change nothing else",
    )?;
    Ok(new.paid.quantity - old.paid.quantity)
}

fn signed_by(command: &Command, parties: &[&Party]) -> Result<(), ContractViolation> {
    let missing = parties
        .iter()
        .find(|party| !command.signers.contains(&party.owning_key));
    match missing {
        None => Ok(()),
        Some(party) => Err(ContractViolation::new(format!(
            "{party} must sign the {}",
            command.kind
        ))),
    }
}

/// What must arrive, in minor units: by lender, currency and issuer.
#[derive(Default)]
struct Settled(BTreeMap<(PublicKey, Currency, PublicKey), i64>);

impl Settled {
    fn add(&mut self, iou: &Iou, paid: i64) -> Result<(), ContractViolation> {
        let (currency, issuer) = (iou.amount.currency, iou.issuer.owning_key.clone());
        let due = self
            .0
            .entry((iou.lender.owning_key.clone(), currency, issuer))
            .or_default();
        *due = due
            .checked_add(paid)
            .ok_or_else(|| ContractViolation::new(AmountError::Overflow(currency).to_string()))?;
        Ok(())
    }

    /// The same cash cannot pay two debts, because what is due is compared in one sum; nor can a
    /// lender's own cash pay it, because what the lender gives is taken off.
    fn verify(&self, tx: &LedgerTransaction) -> Result<(), ContractViolation> {
        if self.0.is_empty() {
            return Ok(());
        }
        let (given, received) = (tx.inputs_of::<Cash>()?, tx.outputs_of::<Cash>()?);
        for ((lender, currency, issuer), due) in &self.0 {
            // At most 4,096 states of 63 bits each: they fit.
            let sum = |states: &[Cash]| -> i128 {
                let of_lender = states.iter().filter(|cash| {
                    cash.owner.owning_key == *lender
                        && cash.amount.currency == *currency
                        && cash.issuer.owning_key == *issuer
                });
                of_lender.map(|cash| i128::from(cash.amount.quantity)).sum()
            };
            let gained = sum(&received) - sum(&given);
            if gained < i128::from(*due) {
                return Err(ContractViolation::new(format!(
                    "{due} minor units of {currency} are settled, and the lender gains {gained} in \
                     cash of the agreed issuer"
                )));
            }
        }
        Ok(())
    }
}

/// The table `iou_states`: one row for each obligation of the vault.
pub fn schema() -> MappedSchema {
    let text = |name| Column::required(name, ColumnKind::Text);
    let number = |name| Column::required(name, ColumnKind::BigInt);
    MappedSchema {
        name: SCHEMA,
        table: "iou_states",
        versions: vec![
            SchemaChange::AddTable {
                columns: vec![
                    text(ID),
                    text("lender"),
                    text(LENDER_KEY),
                    text("borrower"),
                    text(BORROWER_KEY),
                    text("currency"),
                    number("amount"),
                    number("paid"),
                ],
            },
            SchemaChange::AddIndex {
                name: "by_id",
                columns: vec![ID],
            },
        ],
        state_types: vec![Iou::TYPE],
        map: columns,
    }
}

fn columns(state: &TransactionState) -> Option<Vec<ColumnValue>> {
    let iou: Iou = state.read().ok()?;
    Some(vec![
        iou.id.to_string().into(),
        iou.lender.name.to_string().into(),
        iou.lender.owning_key.to_string().into(),
        iou.borrower.name.to_string().into(),
        iou.borrower.owning_key.to_string().into(),
        iou.amount.currency.to_string().into(),
        iou.amount.quantity.into(),
        iou.paid.quantity.into(),
    ])
}
