//! Answers what flows ask of their node: signatures, verification, history, vault.
//!
//! Requests may come twice (the journal entry of the first answer was lost in a crash), so each
//! either changes nothing or is recognised by flow and operation number.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use quorate_flow::{FlowError, FlowId, HostError, HostRequest, Reply, SideEffect, SignaturePolicy};
use quorate_identity::{PublicKey, SigningError, SigningKey};
use quorate_ledger::vault::VaultUpdate;
use quorate_ledger::{
    Attachment, AttachmentId, Contracts, LedgerTransaction, NotarisationRequest, SignedTransaction,
    StateAndRef, StateRef, TransactionState, TxId, try_sign_transaction,
};
use quorate_notary::Handle as Notary;
use quorate_runtime::tasks::{blocking, chain};
use quorate_storage::{
    CommitError, LockError, LockRequest, NewAttachment, Store, UnitOfWork, Writer,
};
use tokio::sync::{Semaphore, broadcast};

use crate::driver::panic_text;

/// Requests of one kind of flow that are being answered at a time, see [`Pool`].
const MAX_CONCURRENT: usize = 128;

/// Side effects of one kind of flow that are performed at a time. They are counted apart: when those of an application
/// hang, flows can still sign and verify.
const MAX_EFFECTS: usize = 32;

/// Requests of the node's own checks that are being answered at a time.
const MAX_OF_SYSTEM: usize = 8;

/// Kinds of flows that cannot take each other's turns: a node that is flooded by peers still serves its own clients, one whose
/// clients keep it busy still answers peers, and its own checks work in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pool {
    /// Flows that clients or services of this node have started.
    Own,
    /// Flows that answer other parties'.
    Answering,
    /// The node's own checks, on both sides.
    System,
}

/// The turns of one kind of flow.
struct Permits {
    requests: Semaphore,
    effects: Semaphore,
}

impl Permits {
    fn new(requests: usize, effects: usize) -> Self {
        Self {
            requests: Semaphore::new(requests),
            effects: Semaphore::new(effects),
        }
    }
}

/// Verified transactions that are kept in memory: the inputs of the near future.
const CACHED_TRANSACTIONS: usize = 4_096;

/// Bytes of their states and commands, roughly.
const CACHED_BYTES: usize = 64 * 1024 * 1024;

/// Vault updates that a slow tracker may lag behind before it reads them from the store.
const UPDATES_KEPT: usize = 4_096;

/// The node's services to flows.
pub(crate) struct Host {
    store: Store,
    writer: Writer,
    keys: BTreeMap<PublicKey, SigningKey>,
    identity: PublicKey,
    contracts: Arc<Contracts>,
    effects: BTreeMap<String, Arc<dyn SideEffect>>,
    notary: Option<Notary>,
    own: Permits,
    answering: Permits,
    system: Permits,
    cache: Mutex<Cache>,
    updates: broadcast::Sender<VaultUpdate>,
}

/// Finds what a transaction refers to.
struct Found {
    states: HashMap<StateRef, TransactionState>,
    attachments: HashMap<AttachmentId, Attachment>,
}

/// Most recently recorded transactions, oldest out.
#[derive(Default)]
struct Cache {
    transactions: HashMap<TxId, SignedTransaction>,
    order: VecDeque<TxId>,
    bytes: usize,
}

impl Cache {
    fn insert(&mut self, transaction: &SignedTransaction) {
        let id = transaction.id();
        if self.transactions.insert(id, transaction.clone()).is_none() {
            self.order.push_back(id);
            self.bytes += Self::size(transaction);
        }
        while self.order.len() > CACHED_TRANSACTIONS || self.bytes > CACHED_BYTES {
            let Some(oldest) = self.order.pop_front() else {
                return;
            };
            if let Some(gone) = self.transactions.remove(&oldest) {
                self.bytes -= Self::size(&gone);
            }
        }
    }

    /// Of what can be large, and is the same however many signatures there are.
    fn size(transaction: &SignedTransaction) -> usize {
        let wire = transaction.wire();
        let outputs = wire.outputs().iter().map(|state| state.data.len());
        let commands = wire.commands().iter().map(|command| command.data.len());
        let inputs = size_of_val(wire.inputs());
        outputs.chain(commands).sum::<usize>() + inputs
    }
}

/// Has a key sign. That of a device signs beside the asynchronous threads, for it may take its time.
async fn sign_with<T: Send + 'static>(
    key: &SigningKey,
    sign: impl FnOnce(&SigningKey) -> Result<T, SigningError> + Send + 'static,
) -> Result<T, HostError> {
    let signed = if key.is_remote() {
        let key = key.clone();
        blocking("signing", move || sign(&key))
            .await
            .map_err(|failure| HostError::Transient(failure.to_string()))?
    } else {
        sign(key)
    };
    signed.map_err(|error| match error.is_transient() {
        true => HostError::KeyUnavailable(error.to_string()),
        false => FlowError::NeedsCare(error.to_string()).into(),
    })
}

impl Host {
    /// Services over this store, for the holder of these keys. `identity` is the legal
    /// identity's key, and one of them.
    pub(crate) fn new(
        store: Store,
        writer: Writer,
        keys: Vec<SigningKey>,
        identity: PublicKey,
        contracts: Arc<Contracts>,
        effects: BTreeMap<String, Arc<dyn SideEffect>>,
        notary: Option<Notary>,
    ) -> Self {
        Self {
            store,
            writer,
            keys: keys
                .into_iter()
                .map(|key| (key.public().clone(), key))
                .collect(),
            identity,
            contracts,
            effects,
            notary,
            own: Permits::new(MAX_CONCURRENT, MAX_EFFECTS),
            answering: Permits::new(MAX_CONCURRENT, MAX_EFFECTS),
            system: Permits::new(MAX_OF_SYSTEM, MAX_OF_SYSTEM),
            cache: Mutex::new(Cache::default()),
            updates: broadcast::Sender::new(UPDATES_KEPT),
        }
    }

    /// Tells those who follow the vault.
    pub(crate) fn recorded(&self, updates: &[VaultUpdate]) {
        for update in updates {
            // Nobody may be listening.
            let _ = self.updates.send(update.clone());
        }
    }

    /// Vault updates from now on.
    pub(crate) fn updates(&self) -> broadcast::Receiver<VaultUpdate> {
        self.updates.subscribe()
    }

    /// Remembers transactions that are in the store as final.
    pub(crate) fn remember(&self, transactions: &[SignedTransaction]) {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        for transaction in transactions {
            cache.insert(transaction);
        }
    }

    /// Answers operation `sequence` of `flow`, which is of the kind `pool`.
    pub(crate) async fn answer(
        &self,
        flow: FlowId,
        pool: Pool,
        sequence: u32,
        request: HostRequest,
    ) -> Result<Reply, HostError> {
        let pool = match pool {
            Pool::Own => &self.own,
            Pool::Answering => &self.answering,
            Pool::System => &self.system,
        };
        let permits = match &request {
            HostRequest::SideEffect { .. } => &pool.effects,
            _ => &pool.requests,
        };
        let Ok(_permit) = permits.acquire().await else {
            return Err(HostError::Transient("the node is stopping".to_owned()));
        };
        match request {
            HostRequest::Sign { id, by } => self.sign(id, &by).await,
            HostRequest::SignNotarisation { request } => self.sign_notarisation(request).await,
            HostRequest::Notarise { requester, message } => {
                let notary = self.notary.as_ref().ok_or_else(|| {
                    FlowError::failed("this node is not a notary: its node.conf has no notary {}")
                })?;
                match notary.notarise(requester, *message).await {
                    Some(answer) => Ok(Reply::NotaryAnswer(answer)),
                    None => Err(HostError::Transient("the notary is stopping".to_owned())),
                }
            }
            HostRequest::Verify {
                transaction,
                dependencies,
                signatures,
            } => {
                self.verify(&transaction, &dependencies, &signatures)
                    .await?;
                Ok(Reply::Done)
            }
            HostRequest::Missing { ids } => {
                let known: BTreeSet<TxId> =
                    self.final_transactions(&ids).await?.into_keys().collect();
                let missing = ids.into_iter().filter(|id| !known.contains(id)).collect();
                Ok(Reply::TxIds(missing))
            }
            HostRequest::Transactions { ids } => {
                let mut found = self.final_transactions(&ids).await?;
                let in_order = ids.iter().filter_map(|id| found.remove(id)).collect();
                Ok(Reply::Transactions(in_order))
            }
            HostRequest::States { refs } => self.states(&refs).await,
            HostRequest::Query(query) => {
                let page = self.store.vault_query(&query).await.map_err(from_store)?;
                Ok(Reply::Page(page))
            }
            HostRequest::Lock {
                criteria,
                target,
                max_states,
            } => {
                let request = LockRequest {
                    flow,
                    seq: sequence,
                    criteria,
                    target,
                    max_states,
                };
                match self.writer.lock_states(request).await {
                    Ok(states) => Ok(Reply::States(states)),
                    Err(LockError::Insufficient { available, wanted }) => {
                        Err(FlowError::Insufficient { wanted, available }.into())
                    }
                    Err(LockError::FlowEnded(flow)) => {
                        Err(FlowError::failed(format!("flow {flow} has ended")).into())
                    }
                    Err(LockError::Commit(error)) => Err(from_commit(&error)),
                }
            }
            HostRequest::MissingAttachments { ids } => {
                let missing = self.store.missing_attachments(&ids).await;
                Ok(Reply::Attachments(missing.map_err(from_store)?))
            }
            HostRequest::Attachment { id } => {
                match self.store.attachment(&id).await.map_err(from_store)? {
                    Some(stored) => Ok(Reply::Payload(stored.bytes)),
                    None => Err(FlowError::unknown(format_args!("attachment {id}")).into()),
                }
            }
            HostRequest::StoreAttachment { data } => {
                let attachment =
                    Attachment::new(data).map_err(|e| FlowError::failed(e.to_string()))?;
                let unit = UnitOfWork::attachment(NewAttachment {
                    id: attachment.id(),
                    bytes: attachment.content().into(),
                    uploader: format!("flow {flow}"),
                });
                match self.writer.commit(unit).await {
                    Ok(_) => Ok(Reply::Done),
                    Err(error) => Err(from_commit(&error)),
                }
            }
            HostRequest::SideEffect { name, arguments } => {
                self.perform(flow, sequence, &name, &arguments).await
            }
        }
    }

    fn key(&self, key: &PublicKey) -> Result<&SigningKey, FlowError> {
        self.keys.get(key).ok_or_else(|| {
            FlowError::failed(format!("this node does not hold the private key of {key}"))
        })
    }

    async fn sign(&self, id: TxId, by: &[PublicKey]) -> Result<Reply, HostError> {
        let mut signatures = Vec::with_capacity(by.len());
        for key in by {
            let sign = move |key: &SigningKey| try_sign_transaction(key, &id);
            signatures.push(sign_with(self.key(key)?, sign).await?);
        }
        Ok(Reply::Signatures(signatures))
    }

    async fn sign_notarisation(&self, request: NotarisationRequest) -> Result<Reply, HostError> {
        let sign = move |key: &SigningKey| request.try_sign(key);
        let signature = sign_with(self.key(&self.identity)?, sign).await?;
        Ok(Reply::RequestSignature(signature))
    }

    async fn perform(
        &self,
        flow: FlowId,
        sequence: u32,
        name: &str,
        arguments: &str,
    ) -> Result<Reply, HostError> {
        let effect = self.effects.get(name).ok_or_else(|| {
            FlowError::unknown(format_args!(
                "side effect '{name}' (no installed application has it)"
            ))
        })?;
        let arguments = serde_json::from_str(arguments)
            .map_err(|error| FlowError::failed(format!("arguments of {name}: {error}")))?;
        let result = effect
            .perform(format!("{flow}/{sequence}"), arguments)
            .await?;
        Ok(Reply::Json(result.to_string()))
    }

    /// Final transactions by id, from memory or the store.
    async fn final_transactions(
        &self,
        ids: &[TxId],
    ) -> Result<BTreeMap<TxId, SignedTransaction>, HostError> {
        let mut found = BTreeMap::new();
        let mut wanted = Vec::new();
        {
            let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            for id in ids {
                match cache.transactions.get(id) {
                    Some(transaction) => drop(found.insert(*id, transaction.clone())),
                    None => wanted.push(*id),
                }
            }
        }
        if !wanted.is_empty() {
            let stored = self.store.transactions(&wanted).await.map_err(from_store)?;
            let stored: Vec<SignedTransaction> = stored
                .into_values()
                .filter(|stored| stored.is_final)
                .map(|stored| stored.transaction)
                .collect();
            self.remember(&stored);
            found.extend(stored.into_iter().map(|t| (t.id(), t)));
        }
        Ok(found)
    }

    async fn states(&self, refs: &[StateRef]) -> Result<Reply, HostError> {
        let ids: Vec<TxId> = refs
            .iter()
            .map(|reference| reference.tx)
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect();
        let found = self.final_transactions(&ids).await?;
        let mut states = Vec::with_capacity(refs.len());
        for reference in refs {
            let state = found
                .get(&reference.tx)
                .and_then(|transaction| transaction.wire().output(reference.index))
                .ok_or_else(|| FlowError::unknown(format_args!("state {reference}")))?;
            states.push(state);
        }
        Ok(Reply::States(states))
    }

    /// Verifies signatures, history and contracts: first of the dependencies, each building on
    /// those before it and on the store, then of the transaction.
    async fn verify(
        &self,
        transaction: &SignedTransaction,
        dependencies: &[SignedTransaction],
        signatures: &SignaturePolicy,
    ) -> Result<(), HostError> {
        let all = || dependencies.iter().chain(std::iter::once(transaction));
        let mut ids = BTreeSet::new();
        let mut attachments = BTreeSet::new();
        for one in all() {
            let wire = one.wire();
            ids.extend(wire.inputs().iter().chain(wire.references()).map(|r| r.tx));
            attachments.extend(wire.attachments().iter().copied());
        }
        for dependency in dependencies {
            ids.remove(&dependency.id());
        }
        let ids: Vec<TxId> = ids.into_iter().collect();
        let mut known = self.final_transactions(&ids).await?;
        let mut found = Found {
            states: HashMap::new(),
            attachments: HashMap::new(),
        };
        for id in attachments {
            if let Some(stored) = self.store.attachment(&id).await.map_err(from_store)?
                && let Ok(attachment) = Attachment::new(stored.bytes)
            {
                found.attachments.insert(id, attachment);
            }
        }
        for one in all() {
            for reference in one.wire().inputs().iter().chain(one.wire().references()) {
                if let Some(StateAndRef { state, .. }) = known
                    .get(&reference.tx)
                    .and_then(|producer| producer.wire().output(reference.index))
                {
                    found.states.insert(*reference, state);
                }
            }
            let policy = if one.id() == transaction.id() {
                signatures
            } else {
                &SignaturePolicy::All
            };
            self.verify_one(one, &found, policy)
                .map_err(|reason| FlowError::Verification {
                    tx: one.id(),
                    reason,
                })?;
            known.insert(one.id(), one.clone());
            // A long history must not keep this thread from everybody else.
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    fn verify_one(
        &self,
        transaction: &SignedTransaction,
        found: &Found,
        policy: &SignaturePolicy,
    ) -> Result<(), String> {
        let notary = || {
            transaction
                .wire()
                .notary()
                .map(|notary| notary.owning_key.clone())
        };
        let exempt: Vec<PublicKey> = match policy {
            SignaturePolicy::All => Vec::new(),
            SignaturePolicy::AllButNotary => notary().into_iter().collect(),
            SignaturePolicy::AllBut(keys) => keys.iter().cloned().chain(notary()).collect(),
        };
        transaction
            .verify_signatures_except(&exempt)
            .map_err(|error| chain(&error))?;
        let ledger = LedgerTransaction::resolve(
            Arc::clone(transaction.wire()),
            |reference| found.states.get(reference).cloned(),
            |id| found.attachments.get(id).cloned(),
        )
        .map_err(|error| chain(&error))?;
        // The content is a stranger's and the code an application's: what it cannot digest is not
        // valid.
        let verified = catch_unwind(AssertUnwindSafe(|| ledger.verify(&self.contracts)));
        match verified {
            Ok(verdict) => verdict.map_err(|error| chain(&error)),
            Err(panic) => Err(format!(
                "a contract panicked: {}",
                panic_text(panic.as_ref())
            )),
        }
    }
}

/// The store may be back when the request is repeated.
fn from_store(error: quorate_storage::Error) -> HostError {
    HostError::Transient(chain(&error))
}

fn from_commit(error: &CommitError) -> HostError {
    match error {
        CommitError::Refused(_) => HostError::Failed(FlowError::failed(chain(error))),
        _ => HostError::Transient(chain(error)),
    }
}
