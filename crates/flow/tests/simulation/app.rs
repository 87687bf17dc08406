//! What the simulated nodes run: a small coin contract, and flows that use every kind of operation.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use borsh::{BorshDeserialize, BorshSerialize};
use quorate_flow::standard::{
    collect_signatures, finalise, receive_finality, receive_transaction, send_transaction,
    sign_transaction,
};
use quorate_flow::{
    App, Context, Finality, Flow, FlowError, FlowRegistry, LockTarget, Responder, Session,
    SignaturePolicy, StatesToRecord,
};
use quorate_identity::{PublicKey, SecureHash, X500Name};
use quorate_ledger::vault::{Criteria, VaultQuery};
use quorate_ledger::{
    Command, Contract, ContractState, ContractViolation, LedgerTransaction, SignedTransaction,
    StateAndRef, StateRef, TransactionBuilder, TransactionState, TxId,
};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
pub(crate) struct Coin {
    pub(crate) owner: PublicKey,
    pub(crate) amount: i64,
}

impl ContractState for Coin {
    const TYPE: &'static str = "sim.Coin";
    const CONTRACT: &'static str = "sim.Coins";

    fn participants(&self) -> Vec<PublicKey> {
        vec![self.owner.clone()]
    }
}

const ISSUE: &str = "sim.Issue";
const MOVE: &str = "sim.Move";

pub(crate) struct Coins;

impl Contract for Coins {
    fn name(&self) -> &str {
        Coin::CONTRACT
    }

    fn code(&self) -> SecureHash {
        SecureHash::of(b"sim.Coins")
    }

    fn verify(&self, tx: &LedgerTransaction) -> Result<(), ContractViolation> {
        let (inputs, outputs) = (tx.inputs_of::<Coin>()?, tx.outputs_of::<Coin>()?);
        let sum = |coins: &[Coin]| coins.iter().map(|coin| coin.amount).sum::<i64>();
        let owners = |coins: &[Coin]| -> BTreeSet<PublicKey> {
            coins.iter().map(|coin| coin.owner.clone()).collect()
        };
        ContractViolation::unless(
            outputs.iter().all(|coin| coin.amount > 0),
            "a coin is worth something",
        )?;
        if inputs.is_empty() {
            let signers = tx.signers_of(ISSUE);
            return ContractViolation::unless(
                owners(&outputs).iter().all(|owner| signers.contains(owner)),
                "whoever issues a coin signs",
            );
        }
        let signers = tx.signers_of(MOVE);
        ContractViolation::unless(sum(&inputs) == sum(&outputs), "money is conserved")?;
        ContractViolation::unless(
            owners(&inputs).iter().all(|owner| signers.contains(owner)),
            "every owner signs",
        )
    }
}

fn coin(state: &StateAndRef) -> Result<Coin, FlowError> {
    state
        .read::<Coin>()
        .map_err(|error| FlowError::failed(error.to_string()))
}

fn worth(states: &[StateAndRef]) -> Result<i64, FlowError> {
    states
        .iter()
        .try_fold(0, |sum, state| Ok(sum + coin(state)?.amount))
}

/// Builds a transaction and signs it with our key.
async fn transact(
    ctx: &Context,
    inputs: &[StateAndRef],
    outputs: &[(PublicKey, i64)],
) -> Result<SignedTransaction, FlowError> {
    let code = ctx.contract(Coin::CONTRACT).await?.code;
    let notary = ctx.notaries().await?.remove(0).identity;
    let me = ctx.me().owning_key;
    let mut signers: BTreeSet<PublicKey> = BTreeSet::from([me.clone()]);
    let mut builder = TransactionBuilder::new(notary.clone());
    for input in inputs {
        signers.insert(coin(input)?.owner);
        builder = builder.add_input(input);
    }
    for (owner, amount) in outputs {
        let state = Coin {
            owner: owner.clone(),
            amount: *amount,
        };
        builder = builder.add_output(TransactionState::new(&state, code, notary.clone()));
    }
    let kind = if inputs.is_empty() { ISSUE } else { MOVE };
    let wire = builder
        .add_command(Command::new(kind, signers))
        .build(ctx.entropy().await?)
        .map_err(|error| FlowError::failed(error.to_string()))?;
    let unsigned = SignedTransaction::unsigned(wire);
    let signatures = ctx.sign(unsigned.id(), vec![me]).await?;
    unsigned
        .with_signatures(signatures)
        .map_err(|error| FlowError::failed(error.to_string()))
}

async fn take_coins(ctx: &Context, at_least: i64) -> Result<Vec<StateAndRef>, FlowError> {
    let target = LockTarget::Sum {
        schema: "coins".to_owned(),
        column: "amount".to_owned(),
        at_least,
    };
    ctx.lock_states(Criteria::of_type(Coin::TYPE), target, 50)
        .await
}

fn with_change(
    mut outputs: Vec<(PublicKey, i64)>,
    owner: PublicKey,
    change: i64,
) -> Vec<(PublicKey, i64)> {
    if change > 0 {
        outputs.push((owner, change));
    }
    outputs
}

/// Makes money.
#[derive(Serialize, Deserialize)]
pub(crate) struct Issue {
    pub(crate) amount: i64,
}

impl Flow for Issue {
    const NAME: &'static str = "sim.Issue";
    const STARTABLE_BY_RPC: bool = true;
    type Output = TxId;

    async fn call(self, ctx: Context) -> Result<TxId, FlowError> {
        let me = ctx.me().owning_key;
        let tx = transact(&ctx, &[], &[(me, self.amount)]).await?;
        let id = finalise(&ctx, &tx, &[]).await?.id();
        // What was just recorded can be read.
        let made = ctx.states(vec![StateRef::new(id, 0)]).await?;
        if worth(&made)? != self.amount {
            return Err(FlowError::failed("another coin was made"));
        }
        Ok(id)
    }
}

/// Pays each of some parties the same amount.
#[derive(Serialize, Deserialize)]
pub(crate) struct Pay {
    pub(crate) to: Vec<X500Name>,
    pub(crate) amount: i64,
    /// Do not lock coins: take any, which others may be spending.
    pub(crate) careless: bool,
}

impl Flow for Pay {
    const NAME: &'static str = "sim.Pay";
    const STARTABLE_BY_RPC: bool = true;
    type Output = TxId;

    async fn call(self, ctx: Context) -> Result<TxId, FlowError> {
        ctx.progress("taking coins");
        let total = self.amount * self.to.len() as i64;
        let coins = if self.careless {
            let wanted = Criteria::unconsumed().and(Criteria::of_type(Coin::TYPE));
            let page = ctx.query(VaultQuery::new(wanted)).await?;
            let mut coins = Vec::new();
            for found in page.states {
                if worth(&coins)? < total {
                    coins.push(found.state);
                }
            }
            let available = worth(&coins)?;
            if available < total {
                return Err(FlowError::Insufficient {
                    wanted: total,
                    available,
                });
            }
            coins
        } else {
            take_coins(&ctx, total).await?
        };
        ctx.progress("paying");
        let mut outputs = Vec::new();
        let mut sessions = Vec::new();
        for name in &self.to {
            outputs.push((ctx.party(name).await?.owning_key, self.amount));
            sessions.push(ctx.session(name).await?);
        }
        let outputs = with_change(outputs, ctx.me().owning_key, worth(&coins)? - total);
        let tx = transact(&ctx, &coins, &outputs).await?;
        Ok(finalise(&ctx, &tx, &sessions).await?.id())
    }
}

struct GetPaid;

impl Responder for GetPaid {
    const INITIATED_BY: &'static str = Pay::NAME;

    async fn call(ctx: Context, session: Session) -> Result<(), FlowError> {
        receive_finality(&ctx, &session, None, StatesToRecord::OnlyRelevant).await?;
        Ok(())
    }
}

/// Pays and is paid in one transaction that both sides sign.
#[derive(Serialize, Deserialize)]
pub(crate) struct Swap {
    pub(crate) with: X500Name,
    pub(crate) give: i64,
    pub(crate) take: i64,
}

impl Flow for Swap {
    const NAME: &'static str = "sim.Swap";
    const STARTABLE_BY_RPC: bool = true;
    type Output = TxId;

    async fn call(self, ctx: Context) -> Result<TxId, FlowError> {
        let mine = take_coins(&ctx, self.give).await?;
        let session = ctx.session(&self.with).await?;
        let theirs: Vec<StateAndRef> = session.send_and_receive(&self.take).await?;
        let makers: BTreeSet<TxId> = theirs.iter().map(|state| state.reference.tx).collect();
        for _ in makers {
            let got = receive_transaction(&ctx, &session, SignaturePolicy::All).await?;
            ctx.record(vec![got.transaction], StatesToRecord::None, Finality::Final)
                .await?;
        }
        let (me, them) = (ctx.me().owning_key, ctx.party(&self.with).await?.owning_key);
        let outputs = vec![(them.clone(), self.give), (me.clone(), self.take)];
        let outputs = with_change(outputs, me, worth(&mine)? - self.give);
        let outputs = with_change(outputs, them, worth(&theirs)? - self.take);
        let inputs = [mine, theirs].concat();
        let tx = transact(&ctx, &inputs, &outputs).await?;
        let sessions = [session];
        let tx = collect_signatures(&ctx, &tx, &sessions).await?;
        Ok(finalise(&ctx, &tx, &sessions).await?.id())
    }
}

struct AgreeToSwap;

impl Responder for AgreeToSwap {
    const INITIATED_BY: &'static str = Swap::NAME;

    async fn call(ctx: Context, session: Session) -> Result<(), FlowError> {
        let wanted: i64 = session.receive().await?;
        let coins = take_coins(&ctx, wanted).await?;
        session.send(&coins).await?;
        let makers: BTreeSet<TxId> = coins.iter().map(|state| state.reference.tx).collect();
        for tx in ctx.transactions(makers.into_iter().collect()).await? {
            send_transaction(&ctx, &session, &tx).await?;
        }
        let tx = sign_transaction(&ctx, &session, |tx| {
            let inputs = tx.wire().inputs();
            if coins.iter().all(|coin| inputs.contains(&coin.reference)) {
                Ok(())
            } else {
                Err(FlowError::failed("these are not the coins we offered"))
            }
        })
        .await?;
        let id = Some(tx.id());
        receive_finality(&ctx, &session, id, StatesToRecord::OnlyRelevant).await?;
        Ok(())
    }
}

/// Spends the same coins twice; the notary must see it.
#[derive(Serialize, Deserialize)]
pub(crate) struct Cheat {}

impl Flow for Cheat {
    const NAME: &'static str = "sim.Cheat";
    const STARTABLE_BY_RPC: bool = true;
    type Output = TxId;

    async fn call(self, ctx: Context) -> Result<TxId, FlowError> {
        let coins = take_coins(&ctx, 1).await?;
        let outputs = [(ctx.me().owning_key, worth(&coins)?)];
        let first = transact(&ctx, &coins, &outputs).await?;
        let second = transact(&ctx, &coins, &outputs).await?;
        let id = finalise(&ctx, &first, &[]).await?.id();
        match finalise(&ctx, &second, &[]).await {
            Err(FlowError::Notary { .. }) => Ok(id),
            Ok(_) => Err(FlowError::failed("the notary did not see it")),
            Err(other) => Err(other),
        }
    }
}

/// Sleeps, causes effects outside, runs a part of itself as another flow.
#[derive(Serialize, Deserialize)]
pub(crate) struct Chores {
    pub(crate) naps: Vec<u64>,
    /// Looks at the clock so often.
    pub(crate) glances: u32,
}

/// What a side effect was asked for, and what it answered.
pub(crate) type Rung = (String, u64);

async fn ring(ctx: &Context) -> Result<Rung, FlowError> {
    // Would differ in a repetition if the draw were not durable before the bell is rung.
    let tone = SecureHash::of(&ctx.entropy().await?).to_string();
    let answer: u64 = ctx.side_effect("ring", &tone).await?;
    Ok((tone, answer))
}

impl Flow for Chores {
    const NAME: &'static str = "sim.Chores";
    const STARTABLE_BY_RPC: bool = true;
    type Output = Vec<Rung>;

    async fn call(self, ctx: Context) -> Result<Vec<Rung>, FlowError> {
        let mut rung = Vec::new();
        let mut before = ctx.now().await?;
        for (i, nap) in self.naps.iter().enumerate() {
            ctx.progress(&format!("nap {i}"));
            ctx.sleep(Duration::from_millis(*nap)).await?;
            let now = ctx.now().await?;
            if now < before + Duration::from_millis(*nap) {
                return Err(FlowError::failed("a nap was too short"));
            }
            before = now;
            rung.push(ring(&ctx).await?);
            rung.extend(ctx.sub_flow(Subchore {}).await?);
        }
        for _ in 0..self.glances {
            let now = ctx.now().await?;
            if now < before {
                return Err(FlowError::failed("time ran backwards"));
            }
            before = now;
        }
        Ok(rung)
    }
}

#[derive(Serialize, Deserialize)]
struct Subchore {}

impl Flow for Subchore {
    const NAME: &'static str = "sim.Subchore";
    const STARTABLE_BY_RPC: bool = false;
    type Output = Vec<Rung>;

    async fn call(self, ctx: Context) -> Result<Vec<Rung>, FlowError> {
        Ok(vec![ring(&ctx).await?, ring(&ctx).await?])
    }
}

/// How two flows talk.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Manner {
    /// Question and answer.
    Polite,
    /// All questions first.
    Burst,
    /// The responder gives up at this question.
    TheyFail(u64),
    /// The initiator gives up at this question.
    WeFail(u64),
    /// The initiator closes the session, and lives on.
    Close,
    /// The initiator ends with a question whose answer it does not wait for.
    Farewell,
    /// The initiator waits so many milliseconds for an answer, which takes a while.
    Impatient(u64),
    /// Nobody answers such a flow.
    Unanswered,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Chat {
    pub(crate) with: X500Name,
    pub(crate) questions: u64,
    pub(crate) manner: Manner,
}

fn expect(answer: u64, question: u64) -> Result<(), FlowError> {
    if answer == question * 2 + 1 {
        Ok(())
    } else {
        Err(FlowError::failed(format!(
            "{answer} is no answer to {question}"
        )))
    }
}

impl Flow for Chat {
    const NAME: &'static str = "sim.Chat";
    const STARTABLE_BY_RPC: bool = true;
    type Output = String;

    async fn call(self, ctx: Context) -> Result<String, FlowError> {
        if self.manner == Manner::Unanswered {
            let session = ctx.session_for(&self.with, "sim.Nobody").await?;
            session.send_and_receive::<_, u64>(&1).await?;
            return Ok("answered".to_owned());
        }
        let session = ctx.session(&self.with).await?;
        session.send(&self.manner).await?;
        if self.manner == Manner::Burst {
            for question in 0..self.questions {
                session.send(&question).await?;
            }
            ctx.sleep(Duration::from_millis(20)).await?;
            for question in 0..self.questions {
                expect(session.receive().await?, question)?;
            }
            return Ok("heard".to_owned());
        }
        for question in 0..self.questions {
            if self.manner == Manner::WeFail(question) {
                return Err(FlowError::failed("enough"));
            }
            session.send(&question).await?;
            let answer = match self.manner {
                Manner::Impatient(wait) => {
                    match session.receive_within(Duration::from_millis(wait)).await {
                        Err(FlowError::TimedOut { .. }) => return Ok("bored".to_owned()),
                        answer => answer?,
                    }
                }
                _ => session.receive().await?,
            };
            expect(answer, question)?;
        }
        if self.manner == Manner::Farewell {
            session.send(&self.questions).await?;
        }
        if self.manner == Manner::Close {
            session.close().await?;
            if session.receive_bytes().await.is_ok() {
                return Err(FlowError::failed("the dead speak"));
            }
            ctx.sleep(Duration::from_millis(50)).await?;
        }
        Ok("heard".to_owned())
    }
}

struct Answer;

impl Responder for Answer {
    const INITIATED_BY: &'static str = Chat::NAME;

    async fn call(ctx: Context, session: Session) -> Result<(), FlowError> {
        let manner: Manner = session.receive().await?;
        loop {
            let question: u64 = match session.receive().await {
                Err(FlowError::SessionEnded { .. }) => return Ok(()),
                question => question?,
            };
            if manner == Manner::TheyFail(question) {
                return Err(FlowError::failed("no more"));
            }
            if let Manner::Impatient(wait) = manner {
                ctx.sleep(Duration::from_millis(wait / 2 + question * 7))
                    .await?;
            }
            session.send(&(question * 2 + 1)).await?;
        }
    }
}

pub(crate) struct Simulated;

impl App for Simulated {
    fn name(&self) -> &str {
        "simulated"
    }

    fn version(&self) -> u32 {
        1
    }

    fn contracts(&self) -> Vec<Arc<dyn Contract>> {
        vec![Arc::new(Coins)]
    }

    fn register_flows(&self, registry: &mut FlowRegistry) {
        registry
            .flow::<Issue>()
            .flow::<Pay>()
            .responder::<GetPaid>()
            .flow::<Swap>()
            .responder::<AgreeToSwap>()
            .flow::<Cheat>()
            .flow::<Chores>()
            .flow::<Subchore>()
            .flow::<Chat>()
            .responder::<Answer>();
    }
}
