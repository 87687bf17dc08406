//! Mallory speaks the protocol of the application's flows with transactions that are valid, but
//! not what was agreed. Nobody accepts, signs or records them.

use std::sync::Arc;

use quorate_cash::cash::{self, Cash};
use quorate_cash::iou::{self, Iou};
use quorate_cash::{IssuanceReference, IssueAndPay, IssueIou, Payment, Swap, Token};
use quorate_flow::standard::{collect_signatures, finalise, receive_transaction};
use quorate_flow::{
    App, Context, Finality, Flow, FlowError, FlowRegistry, SignaturePolicy, StatesToRecord,
};
use quorate_identity::{Party, SecureHash, X500Name};
use quorate_ledger::{
    Contract, ContractState, ContractViolation, LedgerTransaction, SignedTransaction, StateRef,
    TransactionBuilder, TransactionState, UniqueId,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::network::{Net, party};
use crate::{cash as honest, ious, issue, name, pay, wealth};

struct Mischief;

impl App for Mischief {
    fn name(&self) -> &str {
        "mischief"
    }

    fn version(&self) -> u32 {
        1
    }

    fn contracts(&self) -> Vec<Arc<dyn Contract>> {
        vec![Arc::new(AnythingGoes)]
    }

    fn register_flows(&self, registry: &mut FlowRegistry) {
        registry.flow::<OddPayment>().flow::<OddSwap>();
    }
}

/// A contract that only Mallory has.
struct AnythingGoes;

impl Contract for AnythingGoes {
    fn name(&self) -> &str {
        "mischief.Anything"
    }

    fn code(&self) -> SecureHash {
        SecureHash::of(b"anything goes")
    }

    fn verify(&self, _: &LedgerTransaction) -> Result<(), ContractViolation> {
        Ok(())
    }
}

async fn sign(ctx: &Context, builder: TransactionBuilder) -> Result<SignedTransaction, FlowError> {
    let wire = builder.build(ctx.entropy().await?).unwrap();
    let signatures = ctx.sign(wire.id(), vec![ctx.me().owning_key]).await?;
    Ok(SignedTransaction::new(wire, signatures).unwrap())
}

async fn code<S: ContractState>(ctx: &Context) -> Result<SecureHash, FlowError> {
    Ok(ctx.contract(S::CONTRACT).await?.code)
}

/// Issues cash of several tokens to Mallory and sends the victim a transaction that spends it.
#[derive(Serialize, Deserialize)]
struct OddPayment {
    victim: X500Name,
    oddity: String,
}

impl Flow for OddPayment {
    const NAME: &'static str = "mischief.OddPayment";
    type Output = ();

    async fn call(self, ctx: Context) -> Result<(), FlowError> {
        let me = ctx.me();
        let victim = ctx.party(&self.victim).await?;
        let notary = ctx.notaries().await?[0].identity.clone();
        let code = code::<Cash>(&ctx).await?;
        let token = |issuer: &str, currency: &str| Token {
            currency: currency.parse().unwrap(),
            // The name of another, with a key of Mallory's.
            issuer: Party::new(party(issuer).name, me.owning_key.clone()),
            reference: IssuanceReference::default(),
        };
        let good = token("Mallory", "GBP");
        let state = |token: &Token, owner: &Party| {
            TransactionState::new(&token.held_by(owner, 10), code, notary.clone())
        };
        let tokens = match self.oddity.as_str() {
            "two currencies" => vec![good.clone(), token("Mallory", "USD")],
            "false issuer" => vec![token("Alice", "GBP")],
            "unknown issuer" => vec![token("Nobody", "GBP")],
            _ => vec![good.clone()],
        };
        let mut builder = TransactionBuilder::new(notary.clone());
        for token in &tokens {
            builder = builder.add_output(state(token, &me));
            builder = builder.add_command(cash::issue(token));
        }
        let issued = finalise(&ctx, &sign(&ctx, builder).await?, &[]).await?.id();
        let mut builder = TransactionBuilder::new(notary.clone());
        for (index, token) in (0..).zip(&tokens) {
            let owner = if self.oddity == "not to us" {
                &me
            } else {
                &victim
            };
            builder = builder.add_input(StateRef::new(issued, index));
            builder = builder.add_output(state(token, owner));
        }
        builder = builder.add_command(cash::moved([me.owning_key.clone()]));
        if self.oddity == "unknown contract" {
            let mut other = state(&good, &victim);
            other.contract = ctx.contract("mischief.Anything").await?;
            builder = builder.add_output(other);
        }
        if self.oddity == "another command" {
            let extra = token("Mallory", "EUR");
            builder = builder.add_output(state(&extra, &me));
            builder = builder.add_command(cash::issue(&extra));
        }
        let signed = sign(&ctx, builder).await?;
        let session = ctx.session_for(&victim.name, Payment::NAME).await?;
        if self.oddity == "no transaction" {
            session.send(&"money").await?;
            return session.receive().await;
        }
        finalise(&ctx, &signed, &[session]).await?;
        Ok(())
    }
}

#[test]
fn odd_payments_are_refused() {
    for (oddity, reason) in [
        ("none", ""),
        ("not to us", "does not pay O=Bob"),
        ("two currencies", "in one currency"),
        ("false issuer", "is not that of O=Alice"),
        ("unknown issuer", "O=Nobody, L=London, C=GB' is not known"),
        ("unknown contract", "contract mischief.Anything is unknown"),
        ("another command", "no command but cash.Move"),
        (
            "no transaction",
            "is not a message of a transaction exchange",
        ),
    ] {
        let mut net = mallory_among_others();
        let arguments = json!({ "victim": name("Bob"), "oddity": oddity });
        let result = net.run::<OddPayment>("Mallory", arguments);
        if reason.is_empty() {
            result.unwrap();
            assert_eq!(wealth(&mut net, "Bob"), "0.10 GBP");
            continue;
        }
        match result.expect_err(oddity) {
            FlowError::Counterparty { message, .. } => {
                assert!(message.contains(reason), "{oddity}: {message}");
            }
            other => panic!("{oddity}: {other}"),
        }
        let bob = &net.node("Bob").store;
        assert!(bob.vault.is_empty() && bob.in_flight.is_empty(), "{oddity}");
    }
}

fn mallory_among_others() -> Net {
    let mut apps = honest();
    apps.push(Arc::new(Mischief));
    let nodes = [
        ("Alice", honest()),
        ("Bob", honest()),
        ("Carol", honest()),
        ("Mallory", apps),
    ];
    Net::new(&nodes, &["Notary"])
}

/// Proposes a swap as [`Swap`] does, and then asks the seller to sign something else.
#[derive(Serialize, Deserialize)]
struct OddSwap {
    seller: X500Name,
    iou: UniqueId,
    /// 50.00 GBP of Mallory's, issued by the issuer whom the obligation names.
    coin: StateRef,
    /// 7.00 GBP of the seller's.
    sellers_coin: StateRef,
    oddity: String,
}

impl OddSwap {
    async fn read(&self, ctx: &Context, state: StateRef) -> Result<Cash, FlowError> {
        let transactions = ctx.transactions(vec![state.tx]).await?;
        let output = transactions[0].wire().output(state.index).unwrap();
        Ok(output.read().unwrap())
    }
}

impl Flow for OddSwap {
    const NAME: &'static str = "mischief.OddSwap";
    type Output = ();

    async fn call(self, ctx: Context) -> Result<(), FlowError> {
        let me = ctx.me();
        let seller = ctx.party(&self.seller).await?;
        let session = ctx.session_for(&seller.name, Swap::NAME).await?;
        let opening = json!({ "buy": { "iou": self.iou, "price": "50.00 GBP" } });
        session.send(&opening).await?;
        let reference: StateRef = session.receive().await?;
        let received = receive_transaction(&ctx, &session, SignaturePolicy::All).await?;
        let transaction = received.transaction;
        let input = transaction.wire().output(reference.index).unwrap();
        ctx.record(vec![transaction], StatesToRecord::None, Finality::Final)
            .await?;
        let iou: Iou = input.read().unwrap();
        let notary = input.state.notary.clone();
        let cash_code = code::<Cash>(&ctx).await?;
        let state = |token: &Token, owner: &Party, quantity: i64| {
            let cash = token.held_by(owner, quantity);
            TransactionState::new(&cash, cash_code, notary.clone())
        };
        let token = self.read(&ctx, self.coin).await?.token();
        let sold = match self.oddity.as_str() {
            "to another" => iou.owed_to(&ctx.party(&party("Carol").name).await?),
            _ => iou.owed_to(&me),
        };
        let sold = TransactionState::new(&sold, code::<Iou>(&ctx).await?, notary.clone());
        let mut builder = TransactionBuilder::new(notary.clone())
            .add_input(&input)
            .add_input(self.coin)
            .add_output(sold)
            .add_command(iou::transfer(&iou));
        let mut movers = vec![me.owning_key.clone()];
        match self.oddity.as_str() {
            "too little" => {
                builder = builder.add_output(state(&token, &seller, 4_999));
                builder = builder.add_output(state(&token, &me, 1));
            }
            "other cash" => {
                let own = Token {
                    issuer: me.clone(),
                    ..token.clone()
                };
                builder = builder.add_output(state(&token, &me, 5_000));
                builder = builder.add_output(state(&own, &seller, 5_000));
                builder = builder.add_command(cash::issue(&own));
            }
            "seller's cash" => {
                let theirs = self.read(&ctx, self.sellers_coin).await?;
                builder = builder.add_output(state(&token, &seller, 5_000));
                builder = builder.add_input(self.sellers_coin);
                builder = builder.add_output(state(&theirs.token(), &me, 700));
                movers.push(seller.owning_key.clone());
            }
            _ => builder = builder.add_output(state(&token, &seller, 5_000)),
        }
        builder = builder.add_command(cash::moved(movers));
        let signed = sign(&ctx, builder).await?;
        let sessions = [session];
        let signed = collect_signatures(&ctx, &signed, &sessions).await?;
        finalise(&ctx, &signed, &sessions).await?;
        Ok(())
    }
}

#[test]
fn odd_swaps_are_not_signed() {
    for (oddity, reason) in [
        ("none", ""),
        ("to another", "does not produce IOU"),
        ("too little", "pays 49.99 GBP"),
        ("other cash", "pays 0.00 GBP"),
        ("seller's cash", "asks us to sign more"),
    ] {
        let mut net = mallory_among_others();
        // Alice owes Bob, payable in Alice's cash; Mallory has some of it.
        let arguments = json!({
            "amount": 50, "currency": "GBP", "lender": name("Bob"), "issuer": name("Alice"),
        });
        let iou = net.run::<IssueIou>("Alice", arguments).unwrap().iou;
        issue(&mut net, "Alice", "50");
        pay(&mut net, "Alice", "50", "Mallory");
        let coin = net.node("Mallory").unconsumed()[0].reference;
        let arguments = json!({
            "amount": 7, "currency": "GBP", "recipient": name("Bob"), "notary": name("Notary"),
        });
        let paid = net.run::<IssueAndPay>("Mallory", arguments).unwrap();
        let sellers_coin = StateRef::new(paid.paid.tx, 0);
        let arguments = json!({
            "seller": name("Bob"), "iou": iou, "coin": coin, "sellers_coin": sellers_coin,
            "oddity": oddity,
        });
        let result = net.run::<OddSwap>("Mallory", arguments);
        if reason.is_empty() {
            result.unwrap();
            assert_eq!(wealth(&mut net, "Bob"), "57.00 GBP");
            continue;
        }
        match result.expect_err(oddity) {
            FlowError::Counterparty { message, .. } => {
                assert!(message.contains(reason), "{oddity}: {message}");
            }
            other => panic!("{oddity}: {other}"),
        }
        assert_eq!(wealth(&mut net, "Bob"), "7.00 GBP", "{oddity}");
        assert_eq!(ious(net.node("Bob")).len(), 1, "{oddity}");
        assert!(net.node("Bob").store.in_flight.is_empty(), "{oddity}");
    }
}
