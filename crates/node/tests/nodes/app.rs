//! An application that does what cash does not: effects outside, attachments, waiting, illness, a double spend.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use borsh::{BorshDeserialize, BorshSerialize};
use quorate_flow::standard::{finalise, receive_finality};
use quorate_flow::{
    App, Context, Flow, FlowError, FlowRegistry, HostError, Responder, Session, SideEffect,
    StatesToRecord,
};
use quorate_identity::{PublicKey, SecureHash, X500Name};
use quorate_ledger::{
    AttachmentId, Command, Contract, ContractState, ContractViolation, LedgerTransaction,
    SignedTransaction, StateRef, TransactionBuilder, TransactionState, TxId,
};
use serde::{Deserialize, Serialize};

/// What has happened outside of a node, and how it is there.
#[derive(Default)]
pub(crate) struct Outside {
    /// Identities of the effects that were performed.
    pub(crate) performed: Mutex<Vec<String>>,
    /// Whether those who ask find it well.
    pub(crate) well: AtomicBool,
}

pub(crate) struct TestApp(pub(crate) Arc<Outside>);

impl App for TestApp {
    fn name(&self) -> &str {
        "test"
    }

    fn version(&self) -> u32 {
        1
    }

    fn contracts(&self) -> Vec<Arc<dyn Contract>> {
        vec![Arc::new(NoteContract)]
    }

    fn register_flows(&self, registry: &mut FlowRegistry) {
        registry
            .flow::<Notify>()
            .flow::<Examine>()
            .flow::<Nap>()
            .flow::<Ask>()
            .flow::<Share>()
            .flow::<SpendAgain>()
            .responder::<Answer>()
            .responder::<ReceiveNote>();
    }

    fn side_effects(&self) -> Vec<(&'static str, Arc<dyn SideEffect>)> {
        vec![
            ("test.Notify", Arc::new(Performer(Arc::clone(&self.0)))),
            ("test.Examine", Arc::new(Physician(Arc::clone(&self.0)))),
        ]
    }
}

struct Performer(Arc<Outside>);

type Effect = Pin<Box<dyn Future<Output = Result<serde_json::Value, HostError>> + Send>>;

impl SideEffect for Performer {
    fn perform(&self, identity: String, arguments: serde_json::Value) -> Effect {
        let outside = Arc::clone(&self.0);
        Box::pin(async move {
            outside.performed.lock().unwrap().push(identity.clone());
            Ok(serde_json::json!({ "identity": identity, "told": arguments }))
        })
    }
}

struct Physician(Arc<Outside>);

impl SideEffect for Physician {
    fn perform(&self, _: String, _: serde_json::Value) -> Effect {
        let well = self.0.well.load(Ordering::SeqCst);
        Box::pin(async move {
            if well {
                Ok(serde_json::Value::from("well"))
            } else {
                Err(FlowError::NeedsCare("it is not well".to_owned()).into())
            }
        })
    }
}

/// Tells the outside something.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Notify {
    text: String,
}

impl Flow for Notify {
    const NAME: &'static str = "test.Notify";
    type Output = serde_json::Value;

    async fn call(self, ctx: Context) -> Result<serde_json::Value, FlowError> {
        ctx.side_effect("test.Notify", &self.text).await
    }
}

/// Ends in the hospital as long as the outside is not well.
#[derive(Serialize, Deserialize)]
pub(crate) struct Examine {}

impl Flow for Examine {
    const NAME: &'static str = "test.Examine";
    type Output = String;

    async fn call(self, ctx: Context) -> Result<String, FlowError> {
        ctx.side_effect("test.Examine", &()).await
    }
}

/// Sleeps.
#[derive(Serialize, Deserialize)]
pub(crate) struct Nap {
    millis: u64,
}

impl Flow for Nap {
    const NAME: &'static str = "test.Nap";
    type Output = u64;

    async fn call(self, ctx: Context) -> Result<u64, FlowError> {
        ctx.progress("Sleeping.");
        ctx.sleep(Duration::from_millis(self.millis)).await?;
        Ok(self.millis)
    }
}

/// Asks a peer, who answers after a while.
#[derive(Serialize, Deserialize)]
pub(crate) struct Ask {
    peer: X500Name,
    millis: u64,
}

impl Flow for Ask {
    const NAME: &'static str = "test.Ask";
    type Output = u64;

    async fn call(self, ctx: Context) -> Result<u64, FlowError> {
        let session = ctx.session(&self.peer).await?;
        session.send_and_receive(&self.millis).await
    }
}

pub(crate) struct Answer;

impl Responder for Answer {
    const INITIATED_BY: &'static str = Ask::NAME;

    async fn call(ctx: Context, session: Session) -> Result<(), FlowError> {
        let millis: u64 = session.receive().await?;
        ctx.sleep(Duration::from_millis(millis)).await?;
        session.send(&(millis + 1)).await
    }
}

/// A note, with an attachment, that its owners share.
#[derive(BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
pub(crate) struct Note {
    owners: Vec<PublicKey>,
}

impl ContractState for Note {
    const TYPE: &'static str = "test.Note.State";
    const CONTRACT: &'static str = "test.Note";

    fn participants(&self) -> Vec<PublicKey> {
        self.owners.clone()
    }
}

/// A note has exactly one attachment.
struct NoteContract;

impl Contract for NoteContract {
    fn name(&self) -> &str {
        Note::CONTRACT
    }

    fn code(&self) -> SecureHash {
        SecureHash::of(b"test.Note 1")
    }

    fn verify(&self, tx: &LedgerTransaction) -> Result<(), ContractViolation> {
        match tx.attachments() {
            [_] => Ok(()),
            other => Err(ContractViolation::new(format!(
                "{} attachments",
                other.len()
            ))),
        }
    }
}

/// Makes a note about an attachment that the node has, together with a peer.
#[derive(Serialize, Deserialize)]
pub(crate) struct Share {
    attachment: AttachmentId,
    peer: X500Name,
}

impl Flow for Share {
    const NAME: &'static str = "test.Share";
    type Output = TxId;

    async fn call(self, ctx: Context) -> Result<TxId, FlowError> {
        let me = ctx.me();
        let peer = ctx.party(&self.peer).await?;
        let notary = ctx.notaries().await?.remove(0).identity;
        let code = ctx.contract(Note::CONTRACT).await?.code;
        let note = Note {
            owners: vec![me.owning_key.clone(), peer.owning_key.clone()],
        };
        let builder = TransactionBuilder::new(notary.clone())
            .add_output(TransactionState::new(&note, code, notary))
            .add_command(Command::new("test.Make", [me.owning_key.clone()]))
            .add_attachment(self.attachment);
        let signed = sign(&ctx, builder).await?;
        let session = ctx.session(&peer.name).await?;
        Ok(finalise(&ctx, &signed, &[session]).await?.id())
    }
}

pub(crate) struct ReceiveNote;

impl Responder for ReceiveNote {
    const INITIATED_BY: &'static str = Share::NAME;

    async fn call(ctx: Context, session: Session) -> Result<(), FlowError> {
        receive_finality(&ctx, &session, None, StatesToRecord::OnlyRelevant).await?;
        Ok(())
    }
}

async fn sign(ctx: &Context, builder: TransactionBuilder) -> Result<SignedTransaction, FlowError> {
    let failed = |error: &dyn std::fmt::Display| FlowError::failed(error.to_string());
    let builder = match ctx.network_parameters().await? {
        Some(hash) => builder.parameters(hash),
        None => builder,
    };
    let wire = builder
        .build(ctx.entropy().await?)
        .map_err(|e| failed(&e))?;
    let signatures = ctx.sign(wire.id(), vec![ctx.me().owning_key]).await?;
    SignedTransaction::new(wire, signatures).map_err(|e| failed(&e))
}

/// Spends states whatever the vault says of them.
#[derive(Serialize, Deserialize)]
pub(crate) struct SpendAgain {
    states: Vec<StateRef>,
}

impl Flow for SpendAgain {
    const NAME: &'static str = "test.SpendAgain";
    type Output = TxId;

    async fn call(self, ctx: Context) -> Result<TxId, FlowError> {
        let states = ctx.states(self.states).await?;
        let notary = states[0].state.notary.clone();
        let me = ctx.me().owning_key;
        let mut builder =
            TransactionBuilder::new(notary).add_command(quorate_cash::cash::moved([me]));
        for state in states {
            let output = state.state.clone();
            builder = builder.add_input(&state).add_output(output);
        }
        let signed = sign(&ctx, builder).await?;
        Ok(finalise(&ctx, &signed, &[]).await?.id())
    }
}
