//! Flows about obligations: begin one, pay it, and swap one for cash.
//!
//! Here two parties sign one transaction. The initiator proposes terms, which are the arguments
//! that its operator has given; the responder decides about the terms first, and then checks that
//! the transaction is what was proposed before it signs.

use quorate_flow::standard::{
    collect_signatures, finalise, receive_finality, receive_finality_if, receive_transaction,
    send_transaction, sign_transaction,
};
use quorate_flow::{
    Context, Finality, Flow, FlowError, LockTarget, Responder, Session, SignaturePolicy,
    StatesToRecord,
};
use quorate_identity::{Party, X500Name};
use quorate_ledger::vault::{Cmp, Criteria};
use quorate_ledger::{
    ContractState, SignedTransaction, StateAndRef, StateRef, TransactionBuilder, TransactionState,
    TxId, UniqueId, WireTransaction,
};
use serde::{Deserialize, Serialize};

use crate::amount::{Amount, Currency, Decimal};
use crate::cash::{self, Cash};
use crate::coins::{self, Coins, Wanted, failed};
use crate::flows::only_contracts;
use crate::iou::{self, Iou, IouData};

/// `cash.IssueIOU`: we begin to owe the lender an amount. The lender signs too.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IssueIou {
    /// How much we owe, in major units.
    pub amount: Decimal,
    /// Of which currency.
    pub currency: Currency,
    /// The legal name of the party that we owe it to.
    pub lender: X500Name,
    /// The legal name of the party whose cash will pay it; the lender itself if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<X500Name>,
    /// The legal name of the notary; the network's first if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notary: Option<X500Name>,
}

/// What [`IssueIou`] returns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IouIssued {
    /// The transaction.
    pub tx: TxId,
    /// The obligation, by the id that it keeps.
    pub iou: UniqueId,
    /// How much is owed.
    pub amount: Amount,
}

impl Flow for IssueIou {
    const NAME: &'static str = "cash.IssueIOU";
    type Output = IouIssued;

    async fn call(self, ctx: Context) -> Result<IouIssued, FlowError> {
        let amount = self.amount.of(self.currency).map_err(failed)?;
        let me = ctx.me();
        let lender = other_party(&ctx, &self.lender).await?;
        let issuer = match &self.issuer {
            Some(name) => ctx.party(name).await?,
            None => lender.clone(),
        };
        let notary = coins::notary(&ctx, self.notary.as_ref()).await?;
        let code = coins::code_of::<Iou>(&ctx).await?;
        let mut id = [0; 16];
        id.copy_from_slice(&ctx.entropy().await?[..16]);
        let iou = Iou {
            id: UniqueId::from_bytes(id),
            lender: lender.clone(),
            borrower: me,
            amount,
            paid: Amount::new(0, amount.currency),
            issuer,
        };
        let builder = TransactionBuilder::new(notary.clone())
            .add_output(TransactionState::new(&iou, code, notary))
            .add_command(iou::issue(&iou));
        let wire = coins::build(&ctx, builder).await?;
        let signed = coins::sign(&ctx, wire).await?;
        let sessions = [ctx.session(&lender.name).await?];
        sessions[0].send(&iou).await?;
        let signed = collect_signatures(&ctx, &signed, &sessions).await?;
        let tx = finalise(&ctx, &signed, &sessions).await?.id();
        let iou = iou.id;
        Ok(IouIssued { tx, iou, amount })
    }
}

/// The lender's side of [`IssueIou`].
pub struct Lend;

impl Responder for Lend {
    const INITIATED_BY: &'static str = IssueIou::NAME;

    async fn call(ctx: Context, session: Session) -> Result<(), FlowError> {
        let me = ctx.me();
        let iou: Iou = session.receive().await?;
        if iou.lender != me || iou.borrower != ctx.party(session.counterparty()).await? {
            return Err(failed("an IOU of its sender to its receiver was expected"));
        }
        if ctx.party(&iou.issuer.name).await? != iou.issuer {
            return Err(failed(format!(
                "the key of issuer {} is another",
                iou.issuer
            )));
        }
        let check = |transaction: &SignedTransaction| {
            let wire = transaction.wire();
            only_contracts(wire, &[Iou::CONTRACT])?;
            signs_only(wire, &me, iou::ISSUE, iou.id)?;
            same(&wire.outputs_of::<Iou>().map_err(failed)?, &iou)
        };
        let signed = sign_transaction(&ctx, &session, check).await?;
        let id = Some(signed.id());
        receive_finality(&ctx, &session, id, StatesToRecord::OnlyRelevant).await?;
        Ok(())
    }
}

/// `cash.SettleIOU`: we pay what we owe, or a part of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SettleIou {
    /// Which obligation.
    pub iou: UniqueId,
    /// How much to pay, in major units; all that is outstanding if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub amount: Option<Decimal>,
}

/// What [`SettleIou`] returns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IouSettled {
    /// The transaction.
    pub tx: TxId,
    /// The obligation.
    pub iou: UniqueId,
    /// How much was paid now.
    pub amount: Amount,
    /// How much is still owed.
    pub outstanding: Amount,
}

impl Flow for SettleIou {
    const NAME: &'static str = "cash.SettleIOU";
    type Output = IouSettled;

    async fn call(self, ctx: Context) -> Result<IouSettled, FlowError> {
        let (input, iou) = lock_iou(&ctx, self.iou, iou::BORROWER_KEY).await?;
        let before = iou.outstanding().map_err(failed)?;
        let amount = match &self.amount {
            Some(decimal) => decimal.of(before.currency).map_err(failed)?,
            None => before,
        };
        let outstanding = before.checked_sub(amount).map_err(failed)?;
        if outstanding.quantity < 0 {
            return Err(failed(format!(
                "{amount} is more than the {before} outstanding of IOU {}",
                iou.id
            )));
        }
        let lender = other_party(&ctx, &iou.lender.name).await?;
        let mut builder = TransactionBuilder::new(input.state.notary.clone())
            .add_input(&input)
            .add_command(iou::settle(&iou));
        if outstanding.quantity > 0 {
            let paid = iou.paid.checked_add(amount).map_err(failed)?;
            let rest = Iou {
                paid,
                ..iou.clone()
            };
            builder = builder.add_output(successor(&ctx, &input, &rest).await?);
        }
        let wire = pay_for(&ctx, builder, &iou, amount, &lender, &input).await?;
        let signed = coins::sign(&ctx, wire).await?;
        let sessions = [ctx.session(&lender.name).await?];
        sessions[0].send(&self.iou).await?;
        let signed = collect_signatures(&ctx, &signed, &sessions).await?;
        let tx = finalise(&ctx, &signed, &sessions).await?.id();
        Ok(IouSettled {
            tx,
            iou: iou.id,
            amount,
            outstanding,
        })
    }
}

/// The lender's side of [`SettleIou`].
pub struct ReceiveSettlement;

impl Responder for ReceiveSettlement {
    const INITIATED_BY: &'static str = SettleIou::NAME;

    async fn call(ctx: Context, session: Session) -> Result<(), FlowError> {
        let me = ctx.me();
        let id: UniqueId = session.receive().await?;
        // That cash of the agreed issuer arrives for every penny settled is for the contract to
        // say, and it has: what is left is that this is the only thing that we sign.
        let check = |transaction: &SignedTransaction| {
            let wire = transaction.wire();
            only_contracts(wire, &[Iou::CONTRACT, Cash::CONTRACT])?;
            signs_only(wire, &me, iou::SETTLE, id)
        };
        let signed = sign_transaction(&ctx, &session, check).await?;
        let id = Some(signed.id());
        receive_finality(&ctx, &session, id, StatesToRecord::OnlyRelevant).await?;
        Ok(())
    }
}

/// `cash.Swap`: we buy an obligation from its lender, for cash, in one transaction: either both
/// change hands or neither does.
///
/// The seller's node agrees by itself to a price of at least what is outstanding, in cash of the
/// issuer that the obligation names: that is what it would have at the end anyway. The borrower
/// is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Swap {
    /// Which obligation.
    pub iou: UniqueId,
    /// The price, in major units.
    pub amount: Decimal,
    /// Its currency.
    pub currency: Currency,
    /// The legal name of the lender, who sells.
    pub seller: X500Name,
}

/// What [`Swap`] returns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Swapped {
    /// The transaction.
    pub tx: TxId,
    /// The obligation, which is owed to us now.
    pub iou: UniqueId,
    /// What we have paid.
    pub price: Amount,
}

/// How a session of [`Swap`] begins.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Opening {
    /// To the lender: sell us this obligation at this price.
    Buy { iou: UniqueId, price: Amount },
    /// To the borrower: you will receive the transaction.
    Inform { iou: UniqueId },
}

impl Flow for Swap {
    const NAME: &'static str = "cash.Swap";
    type Output = Swapped;

    async fn call(self, ctx: Context) -> Result<Swapped, FlowError> {
        let price = self.amount.of(self.currency).map_err(failed)?;
        let me = ctx.me();
        let seller = other_party(&ctx, &self.seller).await?;
        let to_seller = ctx.session(&seller.name).await?;
        ctx.progress("Proposing the swap.");
        let iou = self.iou;
        to_seller.send(&Opening::Buy { iou, price }).await?;
        let (input, iou) = receive_iou(&ctx, &to_seller, &seller, iou).await?;
        if iou.amount.currency != price.currency {
            return Err(failed(format!(
                "IOU {} is not in {}",
                iou.id, price.currency
            )));
        }
        let borrower = other_party(&ctx, &iou.borrower.name).await?;
        if borrower != iou.borrower {
            return Err(failed(format!("the key of borrower {borrower} is another")));
        }
        let bought = iou.owed_to(&me);
        let builder = TransactionBuilder::new(input.state.notary.clone())
            .add_input(&input)
            .add_output(successor(&ctx, &input, &bought).await?)
            .add_command(iou::transfer(&iou));
        let wire = pay_for(&ctx, builder, &iou, price, &seller, &input).await?;
        let signed = coins::sign(&ctx, wire).await?;
        let mut sessions = vec![to_seller];
        let signed = collect_signatures(&ctx, &signed, &sessions).await?;
        let to_borrower = ctx.session(&borrower.name).await?;
        to_borrower.send(&Opening::Inform { iou: iou.id }).await?;
        sessions.push(to_borrower);
        let tx = finalise(&ctx, &signed, &sessions).await?.id();
        Ok(Swapped {
            tx,
            iou: iou.id,
            price,
        })
    }
}

/// Learns from the seller which state the obligation is, with the history that proves it.
async fn receive_iou(
    ctx: &Context,
    session: &Session,
    seller: &Party,
    id: UniqueId,
) -> Result<(StateAndRef, Iou), FlowError> {
    let reference: StateRef = session.receive().await?;
    let received = receive_transaction(ctx, session, SignaturePolicy::All).await?;
    let transaction = received.transaction;
    let state = match transaction.wire().output(reference.index) {
        Some(state) if state.reference == reference => state,
        _ => return Err(session.malformed("the IOU", "the transaction does not produce it")),
    };
    let iou: Iou = state
        .read()
        .map_err(|error| session.malformed("the IOU", error))?;
    if iou.id != id || iou.lender != *seller {
        return Err(session.malformed("the IOU", "it is another, or owed to another"));
    }
    // What we are going to build stands on it.
    ctx.record(vec![transaction], StatesToRecord::None, Finality::Final)
        .await?;
    Ok((state, iou))
}

/// The seller's and the borrower's side of [`Swap`].
pub struct AnswerSwap;

impl Responder for AnswerSwap {
    const INITIATED_BY: &'static str = Swap::NAME;

    async fn call(ctx: Context, session: Session) -> Result<(), FlowError> {
        match session.receive().await? {
            Opening::Buy { iou, price } => sell(&ctx, &session, iou, price).await,
            Opening::Inform { iou } => learn(&ctx, &session, iou).await,
        }
    }
}

async fn sell(
    ctx: &Context,
    session: &Session,
    id: UniqueId,
    price: Amount,
) -> Result<(), FlowError> {
    let me = ctx.me();
    let buyer = ctx.party(session.counterparty()).await?;
    let (input, iou) = lock_iou(ctx, id, iou::LENDER_KEY).await?;
    let least = iou.outstanding().map_err(failed)?;
    if price.currency != least.currency || price.quantity < least.quantity {
        return Err(failed(format!(
            "IOU {id} is sold for {least} or more in cash issued by {}, not for {price}",
            iou.issuer
        )));
    }
    session.send(&input.reference).await?;
    let history = ctx.transactions(vec![input.reference.tx]).await?;
    let [transaction] = history.as_slice() else {
        return Err(FlowError::unknown(format_args!(
            "transaction {}",
            input.reference.tx
        )));
    };
    send_transaction(ctx, session, transaction).await?;
    let sold = iou.owed_to(&buyer);
    let check = |transaction: &SignedTransaction| {
        let wire = transaction.wire();
        only_contracts(wire, &[Iou::CONTRACT, Cash::CONTRACT])?;
        // Our cash moves only with our signature on a cash.Move, so it stays where it is.
        signs_only(wire, &me, iou::TRANSFER, id)?;
        if !wire.inputs().contains(&input.reference) {
            return Err(failed(
                "the transaction does not consume the IOU that is sold",
            ));
        }
        same(&wire.outputs_of::<Iou>().map_err(failed)?, &sold)?;
        let mut paid = Amount::new(0, price.currency);
        for cash in wire.outputs_of::<Cash>().map_err(failed)? {
            if cash.owner == me && cash.issuer == iou.issuer {
                paid = paid.checked_add(cash.amount).map_err(failed)?;
            }
        }
        if paid == price {
            Ok(())
        } else {
            Err(failed(format!(
                "the transaction pays {paid} in cash issued by {}, the price is {price}",
                iou.issuer
            )))
        }
    };
    let signed = sign_transaction(ctx, session, check).await?;
    let id = Some(signed.id());
    receive_finality(ctx, session, id, StatesToRecord::OnlyRelevant).await?;
    Ok(())
}

/// We owe the same to another from now on.
async fn learn(ctx: &Context, session: &Session, id: UniqueId) -> Result<(), FlowError> {
    let me = ctx.me();
    let check = |transaction: SignedTransaction| {
        let ious = transaction.wire().outputs_of::<Iou>().map_err(failed);
        let ours = ious.map(|ious| ious.iter().any(|iou| iou.id == id && iou.borrower == me));
        std::future::ready(match ours {
            Ok(true) => Ok(()),
            Ok(false) => Err(failed(format!(
                "the transaction is not about IOU {id} of ours"
            ))),
            Err(error) => Err(error),
        })
    };
    receive_finality_if(ctx, session, StatesToRecord::OnlyRelevant, check).await?;
    Ok(())
}

/// Takes the unconsumed state of an obligation in which `role` is our key.
async fn lock_iou(
    ctx: &Context,
    id: UniqueId,
    role: &str,
) -> Result<(StateAndRef, Iou), FlowError> {
    let equals = |column, value| Criteria::column(iou::SCHEMA, column, Cmp::Equal, value);
    let criteria = Criteria::unconsumed()
        .and(equals(iou::ID, id.to_string()))
        .and(equals(role, ctx.me().owning_key.to_string()));
    let states = match ctx.lock_states(criteria, LockTarget::Count(1), 1).await {
        Err(FlowError::Insufficient { .. }) => Vec::new(),
        other => other?,
    };
    let state = states.into_iter().next().ok_or_else(|| {
        failed(format!(
            "IOU {id} is not in this node's vault with the role that this takes, is paid, or is \
             being used by another flow"
        ))
    })?;
    let iou = state.read().map_err(failed)?;
    Ok((state, iou))
}

/// The next state of an obligation, under the notary of the one before.
async fn successor(
    ctx: &Context,
    before: &StateAndRef,
    iou: &Iou,
) -> Result<TransactionState, FlowError> {
    let code = coins::code_of::<Iou>(ctx).await?;
    let notary = before.state.notary.clone();
    Ok(TransactionState::new(iou, code, notary))
}

/// Adds the cash of the agreed issuer that pays `amount` to `lender`, and finishes the
/// transaction.
async fn pay_for(
    ctx: &Context,
    builder: TransactionBuilder,
    iou: &Iou,
    amount: Amount,
    lender: &Party,
    input: &StateAndRef,
) -> Result<WireTransaction, FlowError> {
    let me = ctx.me();
    let wanted = Wanted {
        issuer: Some(&iou.issuer),
        notary: Some(&input.state.notary.name),
    };
    let coins = Coins::select(ctx, amount, wanted).await?;
    let split = coins.split(amount)?;
    let code = coins::code_of::<Cash>(ctx).await?;
    let mut builder = coins.spend(builder);
    builder = coins::pay(builder, &split.taken, lender, code, &coins.notary);
    builder = coins::pay(builder, &split.rest, &me, code, &coins.notary);
    builder = builder.add_command(cash::moved([me.owning_key]));
    coins::build(ctx, builder).await
}

/// The party with this name, who must not be us.
async fn other_party(ctx: &Context, name: &X500Name) -> Result<Party, FlowError> {
    let party = ctx.party(name).await?;
    if party == ctx.me() {
        return Err(failed(format!(
            "{name} is this node; another party is needed"
        )));
    }
    Ok(party)
}

/// Whether a transaction asks for our signature for this one command, about this obligation.
fn signs_only(
    wire: &WireTransaction,
    me: &Party,
    kind: &str,
    id: UniqueId,
) -> Result<(), FlowError> {
    let asked = wire.commands().iter();
    let asked: Vec<_> = asked
        .filter(|command| command.signers.contains(&me.owning_key))
        .collect();
    let agreed = match asked.as_slice() {
        [command] if command.kind == kind => {
            command.read::<IouData>().map_err(failed)? == IouData::V1 { id }
        }
        _ => false,
    };
    if agreed {
        return Ok(());
    }
    Err(failed(format!(
        "the transaction asks us to sign more or something else than the {kind} of IOU {id}"
    )))
}

/// Whether a transaction produces this obligation and no other.
fn same(produced: &[Iou], expected: &Iou) -> Result<(), FlowError> {
    match produced {
        [iou] if iou == expected => Ok(()),
        _ => Err(failed(format!(
            "the transaction does not produce IOU {} as agreed",
            expected.id
        ))),
    }
}
