//! The application of `docs/guide/write-an-app.md`, whole. The guide quotes it piece by piece, and
//! a test below compares.

use std::sync::Arc;

use borsh::{BorshDeserialize, BorshSerialize};
use quorate_flow::standard::{
    collect_signatures, finalise, receive_finality, receive_finality_if, sign_transaction,
};
use quorate_flow::{
    App, Context, Flow, FlowError, FlowRegistry, LockTarget, Responder, Session, StatesToRecord,
};
use quorate_identity::{Party, PublicKey, SecureHash, X500Name};
use quorate_ledger::schema::{Column, ColumnKind, ColumnValue, MappedSchema, SchemaChange};
use quorate_ledger::vault::{Cmp, Criteria};
use quorate_ledger::{
    Command, Contract, ContractState, ContractViolation, LedgerTransaction, SignedTransaction,
    TransactionBuilder, TransactionState, TxId, UniqueId,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::network::{Net, party};

/// Somebody promises something to somebody else.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
pub(crate) struct Promise {
    pub(crate) id: UniqueId,
    pub(crate) maker: Party,
    pub(crate) receiver: Party,
    pub(crate) text: String,
}

impl ContractState for Promise {
    const TYPE: &'static str = "promise.Promise.State";
    const CONTRACT: &'static str = "promise.Promise";

    fn participants(&self) -> Vec<PublicKey> {
        vec![
            self.maker.owning_key.clone(),
            self.receiver.owning_key.clone(),
        ]
    }
}

const MAKE: &str = "promise.Make";
const KEEP: &str = "promise.Keep";

pub(crate) struct PromiseContract;

impl Contract for PromiseContract {
    fn name(&self) -> &str {
        Promise::CONTRACT
    }

    fn code(&self) -> SecureHash {
        SecureHash::of(b"contract promise.Promise version 1")
    }

    fn verify(&self, tx: &LedgerTransaction) -> Result<(), ContractViolation> {
        ContractViolation::unless(
            tx.inputs().len() + tx.outputs().len() == 1,
            "a transaction makes one promise or keeps one, and does nothing else",
        )?;
        for made in tx.outputs_of::<Promise>()? {
            let signers = &tx.single_command(MAKE)?.signers;
            ContractViolation::unless(!made.text.is_empty(), "a promise must say something")?;
            ContractViolation::unless(
                made.maker.owning_key != made.receiver.owning_key,
                "a promise must be made to somebody else",
            )?;
            ContractViolation::unless(
                made.participants().iter().all(|key| signers.contains(key)),
                "maker and receiver must sign a new promise",
            )?;
        }
        for kept in tx.inputs_of::<Promise>()? {
            let signers = &tx.single_command(KEEP)?.signers;
            ContractViolation::unless(
                signers.contains(&kept.receiver.owning_key),
                "the receiver must sign that a promise is kept",
            )?;
        }
        Ok(())
    }
}

pub(crate) fn schema() -> MappedSchema {
    let text = |name| Column::required(name, ColumnKind::Text);
    MappedSchema {
        name: "promise",
        table: "promise_states",
        versions: vec![SchemaChange::AddTable {
            columns: vec![text("linear_id"), text("maker"), text("receiver")],
        }],
        state_types: vec![Promise::TYPE],
        map: columns,
    }
}

fn columns(state: &TransactionState) -> Option<Vec<ColumnValue>> {
    let promise: Promise = state.read().ok()?;
    Some(vec![
        promise.id.to_string().into(),
        promise.maker.name.to_string().into(),
        promise.receiver.name.to_string().into(),
    ])
}

/// `promise.Make`: promises something to another party, who must agree.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Make {
    pub(crate) receiver: X500Name,
    pub(crate) text: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Made {
    pub(crate) tx: TxId,
    pub(crate) id: UniqueId,
}

impl Flow for Make {
    const NAME: &'static str = "promise.Make";
    type Output = Made;

    async fn call(self, ctx: Context) -> Result<Made, FlowError> {
        let maker = ctx.me();
        let receiver = ctx.party(&self.receiver).await?;
        let mut id = [0; 16];
        id.copy_from_slice(&ctx.entropy().await?[..16]);
        let promise = Promise {
            id: UniqueId::from_bytes(id),
            maker: maker.clone(),
            receiver,
            text: self.text,
        };

        let notaries = ctx.notaries().await?;
        let notary = notaries
            .first()
            .ok_or_else(|| FlowError::unknown("any notary"))?;
        let notary = notary.identity.clone();
        let code = ctx.contract(Promise::CONTRACT).await?.code;
        let wire = TransactionBuilder::new(notary.clone())
            .add_output(TransactionState::new(&promise, code, notary))
            .add_command(Command::new(MAKE, promise.participants()))
            .build(ctx.entropy().await?)
            .map_err(|error| FlowError::failed(error.to_string()))?;

        let mine = ctx.sign(wire.id(), vec![maker.owning_key]).await?;
        let signed = SignedTransaction::new(wire, mine)
            .map_err(|error| FlowError::failed(error.to_string()))?;
        let sessions = [ctx.session(&self.receiver).await?];
        let signed = collect_signatures(&ctx, &signed, &sessions).await?;
        let tx = finalise(&ctx, &signed, &sessions).await?.id();
        Ok(Made { tx, id: promise.id })
    }
}

/// The receiver's side of [`Make`].
pub(crate) struct Agree;

impl Responder for Agree {
    const INITIATED_BY: &'static str = Make::NAME;

    async fn call(ctx: Context, session: Session) -> Result<(), FlowError> {
        let me = ctx.me();
        let maker = ctx.party(session.counterparty()).await?;
        let signed = sign_transaction(&ctx, &session, |transaction| {
            let promises = transaction.wire().outputs_of::<Promise>();
            match promises.as_deref() {
                Ok([promise]) if promise.maker == maker && promise.receiver == me => Ok(()),
                _ => Err(FlowError::failed("this is not a promise of yours to us")),
            }
        })
        .await?;
        let agreed = Some(signed.id());
        receive_finality(&ctx, &session, agreed, StatesToRecord::OnlyRelevant).await?;
        Ok(())
    }
}

/// `promise.Keep`: the receiver confirms that a promise was kept, and so ends it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Keep {
    pub(crate) id: UniqueId,
}

impl Flow for Keep {
    const NAME: &'static str = "promise.Keep";
    type Output = TxId;

    async fn call(self, ctx: Context) -> Result<TxId, FlowError> {
        let this = Criteria::column("promise", "linear_id", Cmp::Equal, self.id.to_string());
        let criteria = Criteria::unconsumed().and(this);
        let states = ctx.lock_states(criteria, LockTarget::Count(1), 1).await?;
        let promise: Promise = states[0]
            .read()
            .map_err(|error| FlowError::failed(error.to_string()))?;

        let me = ctx.me().owning_key;
        let wire = TransactionBuilder::new(states[0].state.notary.clone())
            .add_input(&states[0])
            .add_command(Command::new(KEEP, [me.clone()]))
            .build(ctx.entropy().await?)
            .map_err(|error| FlowError::failed(error.to_string()))?;
        let signed = SignedTransaction::new(wire.clone(), ctx.sign(wire.id(), vec![me]).await?)
            .map_err(|error| FlowError::failed(error.to_string()))?;
        let maker = ctx.session(&promise.maker.name).await?;
        let signed = finalise(&ctx, &signed, &[maker]).await?;
        Ok(signed.id())
    }
}

/// The maker's side of [`Keep`].
pub(crate) struct Learn;

impl Responder for Learn {
    const INITIATED_BY: &'static str = Keep::NAME;

    async fn call(ctx: Context, session: Session) -> Result<(), FlowError> {
        let check = |transaction: SignedTransaction| {
            let commands = transaction.wire().commands();
            let kept = commands.iter().all(|command| command.kind == KEEP);
            let refused = || FlowError::failed("only the end of a promise was expected");
            std::future::ready(kept.then_some(()).ok_or_else(refused))
        };
        receive_finality_if(&ctx, &session, StatesToRecord::OnlyRelevant, check).await?;
        Ok(())
    }
}

pub(crate) struct PromiseApp;

impl App for PromiseApp {
    fn name(&self) -> &str {
        "promise"
    }

    fn version(&self) -> u32 {
        1
    }

    fn contracts(&self) -> Vec<Arc<dyn Contract>> {
        vec![Arc::new(PromiseContract)]
    }

    fn schemas(&self) -> Vec<MappedSchema> {
        vec![schema()]
    }

    fn register_flows(&self, registry: &mut FlowRegistry) {
        registry
            .flow::<Make>()
            .responder::<Agree>()
            .flow::<Keep>()
            .responder::<Learn>();
    }

    fn read_state(&self, state: &TransactionState) -> Option<Value> {
        serde_json::to_value(state.read::<Promise>().ok()?).ok()
    }
}

#[test]
fn a_promise_is_made_and_kept() {
    let apps = || -> Vec<Arc<dyn App>> { vec![Arc::new(PromiseApp)] };
    let mut net = Net::new(&[("Alice", apps()), ("Bob", apps())], &["Notary"]);
    let arguments = json!({ "receiver": party("Bob").name, "text": "dinner on Friday" });
    let made = net.run::<Make>("Alice", arguments).unwrap();
    for name in ["Alice", "Bob"] {
        let states = net.node(name).unconsumed();
        let promise: Promise = states[0].read().unwrap();
        assert_eq!((promise.id, promise.maker), (made.id, party("Alice")));
    }
    // Alice cannot declare her own promise kept.
    net.run::<Keep>("Alice", json!({ "id": made.id }))
        .unwrap_err();
    net.run::<Keep>("Bob", json!({ "id": made.id })).unwrap();
    for name in ["Alice", "Bob"] {
        assert!(net.node(name).unconsumed().is_empty());
    }
}

/// Every piece of code in the guide is code of this file.
#[test]
fn the_guide_quotes_this_application() {
    let guide = include_str!("../../../../docs/guide/write-an-app.md");
    let source = include_str!("guide.rs").replace("pub(crate) ", "pub ");
    let blocks: Vec<&str> = guide
        .split("```rust\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .collect();
    assert!(blocks.len() > 8, "{} pieces", blocks.len());
    for block in blocks {
        for piece in block.split("// …\n") {
            assert!(
                source.contains(piece.trim_end()),
                "not in guide.rs:\n{piece}"
            );
        }
    }
}
