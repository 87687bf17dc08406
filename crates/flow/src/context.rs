//! What a flow's body sees: operations to await, and sessions with other parties.
//!
//! Nothing happens here: each operation is a request to the flow's [`Cell`], put into words.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quorate_identity::{Party, PublicKey, SecureHash, X500Name};
use quorate_ledger::network::NotaryInfo;
use quorate_ledger::vault::{Criteria, Page, VaultQuery};
use quorate_ledger::{
    AttachmentId, ContractRef, NotarisationAnswer, NotarisationMessage, NotarisationRequest,
    RequestSignature, SignedTransaction, StateAndRef, StateRef, Timestamp, TransactionSignature,
    TxId,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::cell::{Cell, Operation};
use crate::commit::{Finality, Recording, StatesToRecord};
use crate::error::FlowError;
use crate::ids::{FlowId, SessionId};
use crate::journal::{HostRequest, Hurry, LockTarget, Reply, Request, SignaturePolicy};
use crate::registry::Flow;

/// A flow's access to everything that is not computation.
#[derive(Clone)]
pub struct Context {
    pub(crate) cell: Arc<Mutex<Cell>>,
    /// The name under which sessions are initiated.
    pub(crate) flow: &'static str,
}

/// A conversation with a flow of another party (or of this node).
#[derive(Clone)]
pub struct Session {
    ctx: Context,
    id: SessionId,
    peer: X500Name,
    /// How to wait, if the other side is one of several nodes that provide a service.
    service: Option<Service>,
}

/// The service that a session is with, for waiting.
#[derive(Clone)]
struct Service {
    name: X500Name,
    hurry: Hurry,
}

impl Context {
    /// This flow's id.
    pub fn flow_id(&self) -> FlowId {
        self.lock().flow
    }

    /// The party that this node acts for.
    pub fn me(&self) -> Party {
        self.lock().me.clone()
    }

    /// Opens a session with `peer`. Nothing is sent until the first send or receive; the peer
    /// answers with the responder registered for the flow whose context this is.
    pub async fn session(&self, peer: &X500Name) -> Result<Session, FlowError> {
        self.session_for(peer, self.flow).await
    }

    /// Opens a session that the peer answers with the responder registered for `flow`.
    pub async fn session_for(&self, peer: &X500Name, flow: &str) -> Result<Session, FlowError> {
        let request = Request::OpenSession {
            peer: peer.clone(),
            flow: flow.to_owned(),
        };
        match self.operation(request).await? {
            Reply::Session(id) => {
                // For a service it is one of its nodes.
                let chosen = self
                    .lock()
                    .sessions
                    .get(&id)
                    .map(|session| session.peer.clone());
                Ok(self.answering(id, chosen.unwrap_or_else(|| peer.clone())))
            }
            other => Err(unexpected("a session", &other)),
        }
    }

    /// The node's time. It never runs backwards within a flow.
    pub async fn now(&self) -> Result<Timestamp, FlowError> {
        match self.operation(Request::Now).await? {
            Reply::Time(now) => Ok(now),
            other => Err(unexpected("a time", &other)),
        }
    }

    /// Waits; a crash in between does not lengthen the wait.
    pub async fn sleep(&self, duration: Duration) -> Result<(), FlowError> {
        self.done(Request::Sleep { duration }).await
    }

    /// 32 bytes that nobody else can predict.
    pub async fn entropy(&self) -> Result<[u8; 32], FlowError> {
        match self.operation(Request::Entropy).await? {
            Reply::Entropy(bytes) => Ok(*bytes.as_bytes()),
            other => Err(unexpected("entropy", &other)),
        }
    }

    /// Names the step that the flow has reached, for whoever watches it.
    pub fn progress(&self, step: &str) {
        self.lock().set_progress(step);
    }

    /// Runs another flow as a part of this one. Sessions that it opens are answered by the
    /// responder registered for it.
    pub async fn sub_flow<F: Flow>(&self, flow: F) -> Result<F::Output, FlowError> {
        self.done(Request::Enter { flow: F::NAME }).await?;
        let ctx = Self {
            cell: Arc::clone(&self.cell),
            flow: F::NAME,
        };
        flow.call(ctx).await
    }

    /// The party with this legal name, if it is in the network map.
    pub async fn party(&self, name: &X500Name) -> Result<Party, FlowError> {
        match self
            .operation(Request::Party { name: name.clone() })
            .await?
        {
            Reply::Party(party) => Ok(party),
            other => Err(unexpected("a party", &other)),
        }
    }

    /// The party whose identity key this is, if it is in the network map.
    pub async fn party_of_key(&self, key: &PublicKey) -> Result<Party, FlowError> {
        match self
            .operation(Request::PartyOfKey { key: key.clone() })
            .await?
        {
            Reply::Party(party) => Ok(party),
            other => Err(unexpected("a party", &other)),
        }
    }

    /// The network's notaries.
    pub async fn notaries(&self) -> Result<Vec<NotaryInfo>, FlowError> {
        match self.operation(Request::Notaries).await? {
            Reply::Notaries(notaries) => Ok(notaries),
            other => Err(unexpected("notaries", &other)),
        }
    }

    /// The legal names of the nodes that answer for a party: for a service all that provide it.
    pub async fn nodes_of(&self, party: &X500Name) -> Result<Vec<X500Name>, FlowError> {
        let party = party.clone();
        match self.operation(Request::Answering { party }).await? {
            Reply::Names(names) => Ok(names),
            other => Err(unexpected("names", &other)),
        }
    }

    /// The names of the services that this node provides besides its own identity.
    pub(crate) async fn services(&self) -> Result<Vec<X500Name>, FlowError> {
        match self.operation(Request::Services).await? {
            Reply::Names(names) => Ok(names),
            other => Err(unexpected("names", &other)),
        }
    }

    /// The hash of the network parameters in force, if the network has parameters.
    pub async fn network_parameters(&self) -> Result<Option<SecureHash>, FlowError> {
        match self.operation(Request::Parameters).await? {
            Reply::Hash(hash) => Ok(hash),
            other => Err(unexpected("a hash", &other)),
        }
    }

    /// The installed contract of this name, with the hash of its code.
    pub async fn contract(&self, name: &str) -> Result<ContractRef, FlowError> {
        let request = Request::Contract {
            name: name.to_owned(),
        };
        match self.operation(request).await? {
            Reply::Contract(contract) => Ok(contract),
            other => Err(unexpected("a contract", &other)),
        }
    }

    /// Records transactions: durable together with everything else of this step.
    pub async fn record(
        &self,
        transactions: Vec<SignedTransaction>,
        states: StatesToRecord,
        finality: Finality,
    ) -> Result<(), FlowError> {
        let recordings = transactions
            .into_iter()
            .map(|transaction| Recording {
                transaction,
                states,
                finality,
            })
            .collect();
        self.done(Request::Record(recordings)).await
    }

    /// Signs a transaction with those of our keys.
    pub async fn sign(
        &self,
        id: TxId,
        by: Vec<PublicKey>,
    ) -> Result<Vec<TransactionSignature>, FlowError> {
        match self.host(HostRequest::Sign { id, by }).await? {
            Reply::Signatures(signatures) => Ok(signatures),
            other => Err(unexpected("signatures", &other)),
        }
    }

    /// Signs a request to a notary.
    pub(crate) async fn sign_notarisation(
        &self,
        request: NotarisationRequest,
    ) -> Result<RequestSignature, FlowError> {
        match self.host(HostRequest::SignNotarisation { request }).await? {
            Reply::RequestSignature(signature) => Ok(signature),
            other => Err(unexpected("a signature", &other)),
        }
    }

    /// On a notary: checks a request and commits its states.
    pub(crate) async fn commit_as_notary(
        &self,
        requester: Party,
        message: NotarisationMessage,
    ) -> Result<NotarisationAnswer, FlowError> {
        let message = Box::new(message);
        match self
            .host(HostRequest::Notarise { requester, message })
            .await?
        {
            Reply::NotaryAnswer(answer) => Ok(answer),
            other => Err(unexpected("a notary's answer", &other)),
        }
    }

    /// Verifies a transaction: signatures, history, contracts.
    pub async fn verify(
        &self,
        transaction: &SignedTransaction,
        signatures: SignaturePolicy,
    ) -> Result<(), FlowError> {
        self.verify_with(transaction, Vec::new(), signatures).await
    }

    /// Verifies a transaction together with those that it needs and the store has not, which
    /// must be in topological order.
    pub async fn verify_with(
        &self,
        transaction: &SignedTransaction,
        dependencies: Vec<SignedTransaction>,
        signatures: SignaturePolicy,
    ) -> Result<(), FlowError> {
        let request = HostRequest::Verify {
            transaction: transaction.clone(),
            dependencies,
            signatures,
        };
        self.done(Request::Host(request)).await
    }

    /// Those of `ids` that the store does not hold as final transactions.
    pub async fn missing(&self, ids: Vec<TxId>) -> Result<Vec<TxId>, FlowError> {
        match self.host(HostRequest::Missing { ids }).await? {
            Reply::TxIds(ids) => Ok(ids),
            other => Err(unexpected("transaction ids", &other)),
        }
    }

    /// Final transactions of the store; unknown ones are left out.
    pub async fn transactions(&self, ids: Vec<TxId>) -> Result<Vec<SignedTransaction>, FlowError> {
        match self.host(HostRequest::Transactions { ids }).await? {
            Reply::Transactions(transactions) => Ok(transactions),
            other => Err(unexpected("transactions", &other)),
        }
    }

    /// Outputs of stored transactions; an unknown one is an error.
    pub async fn states(&self, refs: Vec<StateRef>) -> Result<Vec<StateAndRef>, FlowError> {
        match self.host(HostRequest::States { refs }).await? {
            Reply::States(states) => Ok(states),
            other => Err(unexpected("states", &other)),
        }
    }

    /// A page of the vault.
    pub async fn query(&self, query: VaultQuery) -> Result<Page, FlowError> {
        match self.host(HostRequest::Query(query)).await? {
            Reply::Page(page) => Ok(page),
            other => Err(unexpected("a page of states", &other)),
        }
    }

    /// Takes unconsumed states that no flow has locked, and keeps them from other flows until
    /// this flow ends.
    pub async fn lock_states(
        &self,
        criteria: Criteria,
        target: LockTarget,
        max_states: u32,
    ) -> Result<Vec<StateAndRef>, FlowError> {
        let request = HostRequest::Lock {
            criteria,
            target,
            max_states,
        };
        match self.host(request).await? {
            Reply::States(states) => Ok(states),
            other => Err(unexpected("states", &other)),
        }
    }

    /// Those of `ids` that the store does not hold.
    pub async fn missing_attachments(
        &self,
        ids: Vec<AttachmentId>,
    ) -> Result<Vec<AttachmentId>, FlowError> {
        match self.host(HostRequest::MissingAttachments { ids }).await? {
            Reply::Attachments(ids) => Ok(ids),
            other => Err(unexpected("attachment ids", &other)),
        }
    }

    /// An attachment's bytes.
    pub async fn attachment(&self, id: AttachmentId) -> Result<Vec<u8>, FlowError> {
        match self.host(HostRequest::Attachment { id }).await? {
            Reply::Payload(data) => Ok(data),
            other => Err(unexpected("an attachment", &other)),
        }
    }

    /// Keeps an attachment.
    pub async fn store_attachment(&self, data: Vec<u8>) -> Result<(), FlowError> {
        self.done(Request::Host(HostRequest::StoreAttachment { data }))
            .await
    }

    /// Performs an application's side effect and records its result.
    pub async fn side_effect<A: Serialize, R: DeserializeOwned>(
        &self,
        name: &str,
        arguments: &A,
    ) -> Result<R, FlowError> {
        let arguments = serde_json::to_string(arguments)
            .map_err(|e| FlowError::failed(format!("arguments of side effect {name}: {e}")))?;
        let request = HostRequest::SideEffect {
            name: name.to_owned(),
            arguments,
        };
        match self.host(request).await? {
            Reply::Json(json) => serde_json::from_str(&json)
                .map_err(|e| FlowError::failed(format!("result of side effect {name}: {e}"))),
            other => Err(unexpected("a side effect's result", &other)),
        }
    }

    /// The session that a responder was started for.
    pub(crate) fn answering(&self, id: SessionId, peer: X500Name) -> Session {
        Session {
            ctx: self.clone(),
            id,
            peer,
            service: None,
        }
    }

    async fn host(&self, request: HostRequest) -> Result<Reply, FlowError> {
        self.operation(Request::Host(request)).await
    }

    async fn done(&self, request: Request) -> Result<(), FlowError> {
        match self.operation(request).await? {
            Reply::Done => Ok(()),
            other => Err(unexpected("nothing", &other)),
        }
    }

    async fn operation(&self, request: Request) -> Result<Reply, FlowError> {
        match Operation::new(&self.cell, request).await {
            Reply::Failed(error) => Err(error),
            reply => Ok(reply),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Cell> {
        self.cell.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    /// The other side.
    pub fn counterparty(&self) -> &X500Name {
        &self.peer
    }

    /// Sends bytes. They leave when the step is durable.
    pub async fn send_bytes(&self, payload: Vec<u8>) -> Result<(), FlowError> {
        let request = Request::Send {
            session: self.id,
            payload,
        };
        self.ctx.done(request).await
    }

    pub(crate) fn id(&self) -> SessionId {
        self.id
    }

    /// This session, with one of the nodes that provide `service`, not to be waited in for ever: when the configured
    /// time has passed and another node of the service could be asked instead, receiving ends with
    /// [`FlowError::TimedOut`]. `attempt` says how often that has happened before; what the sessions `earlier` bring
    /// now is received as well.
    pub(crate) fn in_a_hurry(
        &self,
        service: &X500Name,
        attempt: u32,
        earlier: Vec<SessionId>,
    ) -> Self {
        Self {
            service: Some(Service {
                name: service.clone(),
                hurry: Hurry { attempt, earlier },
            }),
            ..self.clone()
        }
    }

    /// Waits for bytes.
    pub async fn receive_bytes(&self) -> Result<Vec<u8>, FlowError> {
        let Some(mut service) = self.service.clone() else {
            return self.receive_bytes_within(None).await;
        };
        loop {
            let received = self.take(None, Some(service.hurry.clone())).await;
            let Err(FlowError::TimedOut { .. }) = &received else {
                return received;
            };
            let nodes = self.ctx.nodes_of(&service.name).await?;
            if nodes.iter().any(|node| *node != self.peer) {
                return received;
            }
            // There is nobody else, and the request is kept until this one answers.
            service.hurry.attempt = service.hurry.attempt.saturating_add(1);
        }
    }

    /// Waits for bytes, at the most `within`; then [`FlowError::TimedOut`].
    pub async fn receive_bytes_within(
        &self,
        within: Option<Duration>,
    ) -> Result<Vec<u8>, FlowError> {
        self.take(within, None).await
    }

    async fn take(
        &self,
        within: Option<Duration>,
        hurry: Option<Hurry>,
    ) -> Result<Vec<u8>, FlowError> {
        let request = Request::Receive {
            session: self.id,
            within,
            hurry,
        };
        match self.ctx.operation(request).await? {
            Reply::Payload(payload) => Ok(payload),
            other => Err(unexpected("a payload", &other)),
        }
    }

    /// Sends a value as JSON.
    pub async fn send<T: Serialize>(&self, value: &T) -> Result<(), FlowError> {
        let payload = serde_json::to_vec(value)
            .map_err(|e| FlowError::failed(format!("a message to {}: {e}", self.peer)))?;
        self.send_bytes(payload).await
    }

    /// Waits for a value as JSON.
    pub async fn receive<T: DeserializeOwned>(&self) -> Result<T, FlowError> {
        let payload = self.receive_bytes().await?;
        self.read(&payload)
    }

    /// Waits for a value, at the most `within`; then [`FlowError::TimedOut`].
    pub async fn receive_within<T: DeserializeOwned>(
        &self,
        within: Duration,
    ) -> Result<T, FlowError> {
        let payload = self.receive_bytes_within(Some(within)).await?;
        self.read(&payload)
    }

    /// Sends a value and waits for one.
    pub async fn send_and_receive<T: Serialize, R: DeserializeOwned>(
        &self,
        value: &T,
    ) -> Result<R, FlowError> {
        self.send(value).await?;
        self.receive().await
    }

    /// Ends the session before the flow ends.
    pub async fn close(&self) -> Result<(), FlowError> {
        self.ctx.done(Request::Close { session: self.id }).await
    }

    /// An error for a payload of this session that is not what it should be.
    pub fn malformed(&self, expected: &str, reason: impl std::fmt::Display) -> FlowError {
        FlowError::Malformed {
            peer: self.peer.clone(),
            expected: expected.to_owned(),
            reason: reason.to_string(),
        }
    }

    fn read<T: DeserializeOwned>(&self, payload: &[u8]) -> Result<T, FlowError> {
        serde_json::from_slice(payload)
            .map_err(|error| self.malformed(std::any::type_name::<T>(), error))
    }
}

/// The journal's fingerprint has matched, so this is an answer of the wrong kind by the host.
fn unexpected(wanted: &str, reply: &Reply) -> FlowError {
    FlowError::NeedsCare(format!(
        "the node did not answer with {wanted} but with {}",
        reply.kind()
    ))
}
