//! Flows of one payer: issue, pay, take out of circulation.
//!
//! Their fields are their arguments, as they are typed in the shell:
//! `flow start cash.Payment amount: 100.50, currency: GBP, recipient: "O=PartyB, L=New York, C=US"`.

use std::collections::BTreeSet;

use quorate_flow::standard::{finalise, receive_finality_if};
use quorate_flow::{Context, Flow, FlowError, Responder, Session, StatesToRecord};
use quorate_identity::{Party, X500Name};
use quorate_ledger::{
    ContractState, SignedTransaction, StateRef, TransactionBuilder, TransactionState, TxId,
    WireTransaction,
};
use serde::{Deserialize, Serialize};

use crate::amount::{Amount, Currency, Decimal};
use crate::cash::{self, Cash, IssuanceReference, Token};
use crate::coins::{self, Coins, Wanted, failed};

/// `cash.Issue`: creates cash of which we are the issuer and the owner. It consumes nothing, so
/// no notary has to sign; it names the one that will guard the new state.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Issue {
    /// How much, in major units.
    pub amount: Decimal,
    /// Of which currency.
    pub currency: Currency,
    /// Which of our issues it belongs to; `01` if left out.
    #[serde(default)]
    pub reference: IssuanceReference,
    /// The legal name of the notary; the network's first if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notary: Option<X500Name>,
}

/// What [`Issue`] returns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issued {
    /// The transaction.
    pub tx: TxId,
    /// The new state.
    pub state: StateRef,
    /// How much was issued.
    pub amount: Amount,
}

impl Flow for Issue {
    const NAME: &'static str = "cash.Issue";
    type Output = Issued;

    async fn call(self, ctx: Context) -> Result<Issued, FlowError> {
        let amount = self.amount.of(self.currency).map_err(failed)?;
        let me = ctx.me();
        let notary = coins::notary(&ctx, self.notary.as_ref()).await?;
        let token = Token {
            currency: amount.currency,
            issuer: me.clone(),
            reference: self.reference,
        };
        let code = coins::code_of::<Cash>(&ctx).await?;
        let cash = token.held_by(&me, amount.quantity);
        let builder = TransactionBuilder::new(notary.clone())
            .add_output(TransactionState::new(&cash, code, notary))
            .add_command(cash::issue(&token));
        let wire = coins::build(&ctx, builder).await?;
        let signed = coins::sign(&ctx, wire).await?;
        let tx = finalise(&ctx, &signed, &[]).await?.id();
        let state = StateRef::new(tx, 0);
        Ok(Issued { tx, state, amount })
    }
}

/// `cash.Payment`: pays with our cash, whoever issued it, and keeps the change.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Payment {
    /// How much, in major units.
    pub amount: Decimal,
    /// Of which currency.
    pub currency: Currency,
    /// The legal name of the party that is paid.
    pub recipient: X500Name,
    /// Pay with cash under this notary only; if left out, under any one notary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notary: Option<X500Name>,
}

/// What [`Payment`] returns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paid {
    /// The transaction.
    pub tx: TxId,
    /// How much was paid.
    pub amount: Amount,
    /// To whom.
    pub recipient: X500Name,
    /// What came back to us of the states that were consumed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub change: Option<Amount>,
}

impl Flow for Payment {
    const NAME: &'static str = "cash.Payment";
    type Output = Paid;

    async fn call(self, ctx: Context) -> Result<Paid, FlowError> {
        let amount = self.amount.of(self.currency).map_err(failed)?;
        let recipient = ctx.party(&self.recipient).await?;
        let wanted = Wanted {
            notary: self.notary.as_ref(),
            issuer: None,
        };
        let coins = Coins::select(&ctx, amount, wanted).await?;
        pay(&ctx, amount, recipient, coins).await
    }
}

/// Pays `recipient` with these coins. The other side is [`ReceivePayment`], whichever flow pays.
async fn pay(
    ctx: &Context,
    amount: Amount,
    recipient: Party,
    coins: Coins,
) -> Result<Paid, FlowError> {
    let me = ctx.me();
    let split = coins.split(amount)?;
    let code = coins::code_of::<Cash>(ctx).await?;
    let notary = &coins.notary;
    let mut builder = coins.spend(TransactionBuilder::new(notary.clone()));
    builder = coins::pay(builder, &split.taken, &recipient, code, notary);
    builder = coins::pay(builder, &split.rest, &me, code, notary);
    builder = builder.add_command(cash::moved([me.owning_key.clone()]));
    let wire = coins::build(ctx, builder).await?;
    let signed = coins::sign(ctx, wire).await?;
    let mut sessions = Vec::new();
    if recipient != me {
        sessions.push(ctx.session_for(&recipient.name, Payment::NAME).await?);
    }
    let tx = finalise(ctx, &signed, &sessions).await?.id();
    Ok(Paid {
        tx,
        amount,
        recipient: recipient.name,
        change: split.change,
    })
}

/// The recipient's side of [`Payment`] and [`IssueAndPay`].
pub struct ReceivePayment;

impl Responder for ReceivePayment {
    const INITIATED_BY: &'static str = Payment::NAME;

    async fn call(ctx: Context, session: Session) -> Result<(), FlowError> {
        let check = |transaction: SignedTransaction| {
            let ctx = ctx.clone();
            async move { check_payment(&ctx, transaction.wire()).await }
        };
        receive_finality_if(&ctx, &session, StatesToRecord::OnlyRelevant, check).await?;
        Ok(())
    }
}

/// Whether we accept a verified transaction as a payment: it moves cash and does nothing else, it
/// pays us, in one currency, and those who issued what we get are who they are said to be.
async fn check_payment(ctx: &Context, wire: &WireTransaction) -> Result<(), FlowError> {
    let me = ctx.me();
    only_contracts(wire, &[Cash::CONTRACT])?;
    if !wire
        .commands()
        .iter()
        .all(|command| command.kind == cash::MOVE)
    {
        return Err(failed("a payment has no command but cash.Move"));
    }
    let outputs = wire.outputs_of::<Cash>().map_err(failed)?;
    let ours: Vec<Cash> = outputs
        .into_iter()
        .filter(|cash| cash.owner == me)
        .collect();
    let currencies: BTreeSet<Currency> = ours.iter().map(|cash| cash.amount.currency).collect();
    match currencies.len() {
        0 => return Err(failed(format!("the transaction does not pay {me}"))),
        1 => {}
        _ => return Err(failed("a payment is in one currency")),
    }
    // Anybody can write a bank's name next to his own key; the contract knows keys only.
    let issuers: BTreeSet<&Party> = ours.iter().map(|cash| &cash.issuer).collect();
    for issuer in issuers {
        if ctx.party(&issuer.name).await? != *issuer {
            return Err(failed(format!(
                "the key of the cash's issuer is not that of {issuer}"
            )));
        }
    }
    Ok(())
}

/// Refuses a transaction that also produces states of other contracts.
pub(crate) fn only_contracts(wire: &WireTransaction, contracts: &[&str]) -> Result<(), FlowError> {
    let mut outputs = wire.outputs().iter();
    match outputs.find(|output| !contracts.contains(&output.contract.name.as_str())) {
        None => Ok(()),
        Some(output) => Err(failed(format!(
            "the transaction also produces a state of contract {}",
            output.contract.name
        ))),
    }
}

/// `cash.IssueAndPay`: issues cash and pays with it. Our other cash is not touched.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IssueAndPay {
    /// How much, in major units.
    pub amount: Decimal,
    /// Of which currency.
    pub currency: Currency,
    /// The legal name of the party that is paid.
    pub recipient: X500Name,
    /// The legal name of the notary; the network's first if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notary: Option<X500Name>,
}

/// What [`IssueAndPay`] returns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuedAndPaid {
    /// The issue.
    pub issued: Issued,
    /// The payment.
    pub paid: Paid,
}

impl Flow for IssueAndPay {
    const NAME: &'static str = "cash.IssueAndPay";
    type Output = IssuedAndPaid;

    async fn call(self, ctx: Context) -> Result<IssuedAndPaid, FlowError> {
        let amount = self.amount.of(self.currency).map_err(failed)?;
        // Before the issue: a mistyped name should not leave cash behind.
        let recipient = ctx.party(&self.recipient).await?;
        let notary = coins::notary(&ctx, self.notary.as_ref()).await?;
        let issue = Issue {
            amount: self.amount,
            currency: self.currency,
            reference: IssuanceReference::default(),
            notary: Some(notary.name.clone()),
        };
        let issued = ctx.sub_flow(issue).await?;
        // The new state is in the vault and could be chosen by another payment before it is
        // locked here; then any cash of ours is as good.
        let coins = match Coins::exactly(&ctx, &notary, vec![issued.state]).await? {
            Some(coins) => coins,
            None => {
                let notary = Some(&notary.name);
                Coins::select(
                    &ctx,
                    amount,
                    Wanted {
                        notary,
                        issuer: None,
                    },
                )
                .await?
            }
        };
        let paid = pay(&ctx, amount, recipient, coins).await?;
        Ok(IssuedAndPaid { issued, paid })
    }
}

/// `cash.Exit`: takes cash that we have issued, and own again, out of circulation.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exit {
    /// How much, in major units.
    pub amount: Decimal,
    /// Of which currency.
    pub currency: Currency,
}

/// What [`Exit`] returns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exited {
    /// The transaction.
    pub tx: TxId,
    /// How much left circulation.
    pub amount: Amount,
    /// What came back to us of the states that were consumed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub change: Option<Amount>,
}

impl Flow for Exit {
    const NAME: &'static str = "cash.Exit";
    type Output = Exited;

    async fn call(self, ctx: Context) -> Result<Exited, FlowError> {
        let amount = self.amount.of(self.currency).map_err(failed)?;
        let me = ctx.me();
        let wanted = Wanted {
            issuer: Some(&me),
            notary: None,
        };
        let coins = Coins::select(&ctx, amount, wanted).await?;
        let split = coins.split(amount)?;
        let code = coins::code_of::<Cash>(&ctx).await?;
        let notary = &coins.notary;
        let mut builder = coins.spend(TransactionBuilder::new(notary.clone()));
        builder = coins::pay(builder, &split.rest, &me, code, notary);
        for (token, quantity) in &split.taken {
            builder = builder.add_command(cash::exit(token, *quantity, [me.owning_key.clone()]));
        }
        if split
            .rest
            .keys()
            .any(|token| !split.taken.contains_key(token))
        {
            builder = builder.add_command(cash::moved([me.owning_key.clone()]));
        }
        let wire = coins::build(&ctx, builder).await?;
        let signed = coins::sign(&ctx, wire).await?;
        let tx = finalise(&ctx, &signed, &[]).await?.id();
        let change = split.change;
        Ok(Exited { tx, amount, change })
    }
}
