//! Choosing cash from the vault, and putting it into a transaction.
//!
//! A transaction has one notary, so the coins of one payment have the same; they may come from
//! many issuers. Chosen states are locked in the vault until the flow ends, so that two flows of
//! this node do not spend the same state.

use std::collections::BTreeMap;

use quorate_flow::{Context, FlowError, LockTarget};
use quorate_identity::{Party, SecureHash, X500Name};
use quorate_ledger::vault::{Cmp, Criteria};
use quorate_ledger::{
    ContractState, SignedTransaction, StateAndRef, StateRef, TransactionBuilder, TransactionState,
    WireTransaction,
};

use crate::amount::Amount;
use crate::cash::{self, Cash, Token};

/// Most states that one payment consumes. Whoever has only crumbs pays himself first, a part at a
/// time.
const MAX_COINS: u32 = 500;

/// Cash of ours that this flow has taken.
pub(crate) struct Coins {
    /// The notary of all of it.
    pub(crate) notary: Party,
    states: Vec<(StateRef, Cash)>,
}

/// An amount taken out of coins, token by token: what goes and what remains, in minor units.
pub(crate) struct Split {
    pub(crate) taken: BTreeMap<Token, i64>,
    pub(crate) rest: BTreeMap<Token, i64>,
    /// The sum of the rest, if there is any.
    pub(crate) change: Option<Amount>,
}

/// Which coins will do.
#[derive(Default)]
pub(crate) struct Wanted<'a> {
    /// Issued by this party.
    pub(crate) issuer: Option<&'a Party>,
    /// Guarded by this notary.
    pub(crate) notary: Option<&'a X500Name>,
}

impl Coins {
    /// Locks enough of our cash for `amount`, all under one notary: the first of the network's
    /// notaries under which there is enough.
    pub(crate) async fn select(
        ctx: &Context,
        amount: Amount,
        wanted: Wanted<'_>,
    ) -> Result<Self, FlowError> {
        ctx.progress("Selecting cash.");
        let me = ctx.me();
        let mut most: Option<FlowError> = None;
        for notary in notaries(ctx, wanted.notary).await? {
            let equals =
                |column, value: String| Criteria::column(cash::SCHEMA, column, Cmp::Equal, value);
            let mut criteria = Criteria::unconsumed()
                .and(equals(cash::CURRENCY, amount.currency.to_string()))
                .and(equals(cash::OWNER_KEY, me.owning_key.to_string()))
                .and(Criteria::Notaries(vec![notary.name.clone()]));
            if let Some(issuer) = wanted.issuer {
                criteria = criteria.and(equals(cash::ISSUER_KEY, issuer.owning_key.to_string()));
            }
            let target = LockTarget::Sum {
                schema: cash::SCHEMA.to_owned(),
                column: cash::AMOUNT.to_owned(),
                at_least: amount.quantity,
            };
            match ctx.lock_states(criteria, target, MAX_COINS).await {
                Ok(states) => return Self::of(notary, states),
                Err(error @ FlowError::Insufficient { .. }) => {
                    if available(&error) > most.as_ref().map_or(-1, available) {
                        most = Some(error);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Err(most.unwrap_or_else(|| FlowError::unknown("any notary")))
    }

    /// Locks exactly these states of ours; `None` if another flow has taken one of them.
    pub(crate) async fn exactly(
        ctx: &Context,
        notary: &Party,
        states: Vec<StateRef>,
    ) -> Result<Option<Self>, FlowError> {
        let count = states.len() as u32;
        let target = LockTarget::References(states);
        match ctx.lock_states(Criteria::unconsumed(), target, count).await {
            Ok(states) => Self::of(notary.clone(), states).map(Some),
            Err(FlowError::Insufficient { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn of(notary: Party, states: Vec<StateAndRef>) -> Result<Self, FlowError> {
        let read = states
            .into_iter()
            .map(|state| Ok((state.reference, state.read::<Cash>().map_err(failed)?)));
        let states = read.collect::<Result<_, FlowError>>()?;
        Ok(Self { notary, states })
    }

    /// Takes `amount` out of the coins.
    pub(crate) fn split(&self, amount: Amount) -> Result<Split, FlowError> {
        let too_large = || failed("these coins add up to more than the ledger can count");
        let (mut taken, mut rest) = (BTreeMap::new(), BTreeMap::new());
        let (mut missing, mut change) = (amount.quantity, 0_i64);
        for (_, cash) in &self.states {
            let part = cash.amount.quantity.min(missing);
            let left = cash.amount.quantity - part;
            missing -= part;
            change = change.checked_add(left).ok_or_else(too_large)?;
            for (sums, part) in [(&mut taken, part), (&mut rest, left)] {
                if part > 0 {
                    let sum: &mut i64 = sums.entry(cash.token()).or_default();
                    *sum = sum.checked_add(part).ok_or_else(too_large)?;
                }
            }
        }
        if missing > 0 {
            return Err(FlowError::Insufficient {
                wanted: amount.quantity,
                available: amount.quantity - missing,
            });
        }
        let change = (change > 0).then(|| Amount::new(change, amount.currency));
        Ok(Split {
            taken,
            rest,
            change,
        })
    }

    /// Puts the coins into a transaction as its inputs.
    pub(crate) fn spend(&self, builder: TransactionBuilder) -> TransactionBuilder {
        let references = self.states.iter().map(|(reference, _)| *reference);
        references.fold(builder, TransactionBuilder::add_input)
    }
}

fn available(error: &FlowError) -> i64 {
    match error {
        FlowError::Insufficient { available, .. } => *available,
        _ => 0,
    }
}

/// Puts cash into a transaction as outputs of `owner`: one for each token.
pub(crate) fn pay(
    builder: TransactionBuilder,
    sums: &BTreeMap<Token, i64>,
    owner: &Party,
    code: SecureHash,
    notary: &Party,
) -> TransactionBuilder {
    sums.iter().fold(builder, |builder, (token, quantity)| {
        let cash = token.held_by(owner, *quantity);
        builder.add_output(TransactionState::new(&cash, code, notary.clone()))
    })
}

/// The network's notaries, or the one with this name.
pub(crate) async fn notaries(
    ctx: &Context,
    name: Option<&X500Name>,
) -> Result<Vec<Party>, FlowError> {
    let notaries = ctx.notaries().await?.into_iter();
    let notaries: Vec<Party> = notaries
        .map(|notary| notary.identity)
        .filter(|notary| name.is_none_or(|name| notary.name == *name))
        .collect();
    if notaries.is_empty() {
        return Err(match name {
            Some(name) => FlowError::unknown(format_args!("notary '{name}'")),
            None => FlowError::unknown("any notary"),
        });
    }
    Ok(notaries)
}

/// The notary of new states: the one with this name, or the network's first.
pub(crate) async fn notary(ctx: &Context, name: Option<&X500Name>) -> Result<Party, FlowError> {
    let first = notaries(ctx, name).await?.into_iter().next();
    first.ok_or_else(|| FlowError::unknown("any notary"))
}

/// The hash of the code of the contract of `S`, as installed here.
pub(crate) async fn code_of<S: ContractState>(ctx: &Context) -> Result<SecureHash, FlowError> {
    Ok(ctx.contract(S::CONTRACT).await?.code)
}

/// Finishes a transaction under the network's parameters.
pub(crate) async fn build(
    ctx: &Context,
    builder: TransactionBuilder,
) -> Result<WireTransaction, FlowError> {
    ctx.progress("Building the transaction.");
    let builder = match ctx.network_parameters().await? {
        Some(hash) => builder.parameters(hash),
        None => builder,
    };
    builder.build(ctx.entropy().await?).map_err(failed)
}

/// Signs a transaction with our identity's key.
pub(crate) async fn sign(
    ctx: &Context,
    wire: WireTransaction,
) -> Result<SignedTransaction, FlowError> {
    ctx.progress("Signing the transaction.");
    let signatures = ctx.sign(wire.id(), vec![ctx.me().owning_key]).await?;
    SignedTransaction::new(wire, signatures).map_err(failed)
}

/// An error that ends the flow, with the text of its cause: it travels to the counterparty.
pub(crate) fn failed(error: impl ToString) -> FlowError {
    FlowError::failed(error.to_string())
}
