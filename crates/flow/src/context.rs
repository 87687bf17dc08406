//! What a flow's body sees: operations to await, and sessions with other parties.
//!
//! Every operation takes the next number of the journal. If the journal has an entry of that
//! number, the body gets its reply; else the operation is performed by the flow's [`Cell`] (what
//! needs nobody else) or handed to the machine (what must wait).

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use quorate_identity::{Party, PublicKey, SecureHash, X500Name};
use quorate_ledger::network::NotaryInfo;
use quorate_ledger::vault::{Criteria, Page, VaultQuery};
use quorate_ledger::{
    AttachmentId, ContractRef, NotarisationAnswer, NotarisationMessage, NotarisationRequest,
    RequestSignature, SignedTransaction, StateAndRef, StateRef, Timestamp, TransactionSignature,
    TxId,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::commit::{Finality, InboxId, Recording, StatesToRecord};
use crate::error::FlowError;
use crate::ids::{FlowId, SessionId};
use crate::journal::{
    Entry, HostRequest, LockTarget, Reply, Request, SignaturePolicy, encode_entry,
};
use crate::machine::Surroundings;
use crate::message::{Envelope, Owner, SessionMessage, reason};
use crate::registry::{Flow, FlowRegistry};

/// After this many journal entries without a commit a flow is committed and goes on afterwards.
const MAX_ENTRIES_PER_STEP: usize = 1_000;

/// A flow with more journal entries than this goes to the hospital.
pub(crate) const MAX_JOURNAL_ENTRIES: u32 = 100_000;

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
            Reply::Session(id) => Ok(Session {
                ctx: self.clone(),
                id,
                peer: peer.clone(),
            }),
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
        let operation = Operation {
            cell: Arc::clone(&self.cell),
            request: Some(request),
            sequence: None,
        };
        match operation.await {
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

    /// Waits for bytes.
    pub async fn receive_bytes(&self) -> Result<Vec<u8>, FlowError> {
        self.receive_bytes_within(None).await
    }

    /// Waits for bytes, at the most `within`; then [`FlowError::TimedOut`].
    pub async fn receive_bytes_within(
        &self,
        within: Option<Duration>,
    ) -> Result<Vec<u8>, FlowError> {
        let request = Request::Receive {
            session: self.id,
            within,
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

fn unexpected(wanted: &str, reply: &Reply) -> FlowError {
    // The journal's fingerprint has matched, so this is an answer of the wrong kind by the host.
    let _ = reply;
    FlowError::NeedsCare(format!("the node did not answer with {wanted}"))
}

/// One awaited operation.
struct Operation {
    cell: Arc<Mutex<Cell>>,
    request: Option<Request>,
    sequence: Option<u32>,
}

impl Future for Operation {
    type Output = Reply;

    fn poll(self: Pin<&mut Self>, _: &mut std::task::Context<'_>) -> Poll<Reply> {
        let this = self.get_mut();
        let mut cell = this.cell.lock().unwrap_or_else(PoisonError::into_inner);
        match this.sequence {
            None => cell.begin(&mut this.request, &mut this.sequence),
            Some(sequence) => cell.answer_of(sequence),
        }
    }
}

/// One side of a session, as the flow's header keeps it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct SessionState {
    pub(crate) peer: X500Name,
    /// Which flow the peer is to answer.
    pub(crate) flow: String,
    pub(crate) initiator: bool,
    /// The first message was sent (initiator) or the peer knows that we answer (responder).
    pub(crate) opened: bool,
    pub(crate) sent: u64,
    pub(crate) received: u64,
    pub(crate) peer_ended: bool,
    pub(crate) closed: bool,
}

/// A message that waits for the flow to take it.
#[derive(Debug, Clone)]
pub(crate) struct Mail {
    pub(crate) inbox: InboxId,
    pub(crate) sequence: u64,
    pub(crate) body: SessionMessage,
}

/// What a flow waits for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Pending {
    pub(crate) sequence: u32,
    pub(crate) kind: &'static str,
    pub(crate) tag: u64,
    pub(crate) waits: Waits,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Waits {
    Mail {
        session: SessionId,
        within: Option<Duration>,
        until: Option<Timestamp>,
    },
    Time {
        until: Timestamp,
    },
    Host(HostRequest),
}

/// A flow's state that its operations work on. The machine owns the flow; the body reaches the
/// cell only from within a poll, so the lock is never waited for.
pub(crate) struct Cell {
    pub(crate) flow: FlowId,
    pub(crate) me: Party,
    pub(crate) owner: Owner,
    pub(crate) registry: Arc<FlowRegistry>,
    pub(crate) surroundings: Arc<Surroundings>,
    pub(crate) now: Timestamp,
    /// Secret of this run of the body, from which entropy is derived.
    pub(crate) seed: [u8; 32],
    pub(crate) replay: VecDeque<Entry>,
    pub(crate) next: u32,
    /// The waiting operation's number and deadline as the checkpoint has them.
    pub(crate) resumed: Option<(u32, Timestamp)>,
    pub(crate) sessions: BTreeMap<SessionId, SessionState>,
    pub(crate) next_session: u32,
    pub(crate) mail: BTreeMap<SessionId, VecDeque<Mail>>,
    pub(crate) pending: Option<Pending>,
    pub(crate) answer: Option<Reply>,
    /// The body did something that a flow cannot do.
    pub(crate) misuse: Option<String>,
    /// The step is long enough: commit it, then go on.
    pub(crate) breather: bool,
    // What this step has produced.
    pub(crate) entries: Vec<(u32, Vec<u8>)>,
    pub(crate) taken: Vec<(SessionId, Mail)>,
    pub(crate) outgoing: Vec<Envelope>,
    pub(crate) recordings: Vec<Recording>,
    pub(crate) progress: Option<String>,
}

impl Cell {
    /// The first poll of an operation.
    fn begin(&mut self, request: &mut Option<Request>, slot: &mut Option<u32>) -> Poll<Reply> {
        if self.misuse.is_some() {
            return Poll::Pending;
        }
        if let Some(pending) = &self.pending {
            let message = format!(
                "the flow began a second operation while '{}' was not finished; operations are \
                 awaited one at a time",
                pending.kind
            );
            return self.misused(message);
        }
        if self.entries.len() >= MAX_ENTRIES_PER_STEP {
            self.breather = true;
            return Poll::Pending;
        }
        let Some(asked) = request.take() else {
            return self.misused("an operation was awaited again after its end".to_owned());
        };
        let sequence = self.next;
        if sequence >= MAX_JOURNAL_ENTRIES {
            return self.misused(format!(
                "the flow has performed {MAX_JOURNAL_ENTRIES} operations; split it"
            ));
        }
        let (kind, tag) = (asked.kind(), asked.tag());
        if let Some(entry) = self.replay.pop_front() {
            if entry.kind != kind || entry.tag != tag {
                let message = format!(
                    "the flow is not deterministic: as operation {sequence} its journal has \
                     '{}' and its code now asks for '{kind}'{}; kill it, or install the version \
                     of the application that began it and retry",
                    entry.kind,
                    if entry.kind == kind {
                        " with other content"
                    } else {
                        ""
                    },
                );
                return self.misused(message);
            }
            self.next += 1;
            *slot = Some(sequence);
            return Poll::Ready(entry.reply);
        }
        self.next += 1;
        *slot = Some(sequence);
        match self.perform(sequence, asked) {
            Ok(reply) => {
                self.entries
                    .push((sequence, encode_entry(kind, tag, &reply)));
                Poll::Ready(reply)
            }
            Err(waits) => {
                self.pending = Some(Pending {
                    sequence,
                    kind,
                    tag,
                    waits,
                });
                Poll::Pending
            }
        }
    }

    /// A later poll of an operation that had to wait.
    fn answer_of(&mut self, sequence: u32) -> Poll<Reply> {
        match (&self.pending, self.answer.take()) {
            (Some(pending), Some(reply)) if pending.sequence == sequence => {
                self.entries
                    .push((sequence, encode_entry(pending.kind, pending.tag, &reply)));
                self.pending = None;
                Poll::Ready(reply)
            }
            (_, answer) => {
                self.answer = answer;
                Poll::Pending
            }
        }
    }

    fn misused(&mut self, message: String) -> Poll<Reply> {
        self.misuse.get_or_insert(message);
        Poll::Pending
    }

    fn set_progress(&mut self, step: &str) {
        const LONGEST: usize = 200;
        if self.replay.is_empty() {
            self.progress = Some(step.chars().take(LONGEST).collect());
        }
    }

    /// Whether this step has produced anything that must be durable.
    pub(crate) fn dirty(&self) -> bool {
        !(self.entries.is_empty()
            && self.taken.is_empty()
            && self.outgoing.is_empty()
            && self.recordings.is_empty())
    }

    /// Performs what needs nobody else, or says what it waits for.
    fn perform(&mut self, sequence: u32, request: Request) -> Result<Reply, Waits> {
        let unknown = |what: String| Reply::Failed(FlowError::Unknown { what });
        Ok(match request {
            Request::OpenSession { peer, flow } => {
                if self.surroundings.party(&peer).is_none() {
                    return Ok(unknown(format!("party '{peer}'")));
                }
                let id = SessionId::opened_by(&self.me.name, self.flow, self.next_session);
                self.next_session += 1;
                let state = SessionState {
                    peer,
                    flow,
                    initiator: true,
                    opened: false,
                    sent: 0,
                    received: 0,
                    peer_ended: false,
                    closed: false,
                };
                self.sessions.insert(id, state);
                Reply::Session(id)
            }
            Request::Send { session, payload } => match self.refusal(session) {
                Some(error) => Reply::Failed(error),
                None => {
                    self.send_payload(session, Some(payload));
                    Reply::Done
                }
            },
            Request::Receive { session, within } => {
                let opened = self.sessions.get(&session).is_some_and(|s| s.opened);
                if !opened && self.sessions.get(&session).is_some_and(|s| s.initiator) {
                    self.send_payload(session, None);
                }
                match self.take_mail(session) {
                    Some(reply) => reply,
                    None => {
                        let until = match self.resumed.take() {
                            Some((number, until)) if number == sequence => Some(until),
                            _ => within.map(|within| self.now + within),
                        };
                        return Err(Waits::Mail {
                            session,
                            within,
                            until,
                        });
                    }
                }
            }
            Request::Close { session } => {
                self.end_session(session, SessionMessage::End);
                Reply::Done
            }
            Request::Sleep { duration } => {
                let until = match self.resumed.take() {
                    Some((number, until)) if number == sequence => until,
                    _ => self.now + duration,
                };
                return Err(Waits::Time { until });
            }
            Request::Now => Reply::Time(self.now),
            Request::Entropy => Reply::Entropy(SecureHash::of_parts(&[
                b"quorate flow entropy",
                &self.seed,
                self.flow.as_bytes(),
                &sequence.to_le_bytes(),
            ])),
            Request::Enter { .. } => Reply::Done,
            Request::Record(recordings) => {
                self.recordings.extend(recordings);
                Reply::Done
            }
            Request::Party { name } => match self.surroundings.party(&name) {
                Some(party) => Reply::Party(party.clone()),
                None => unknown(format!("party '{name}'")),
            },
            Request::PartyOfKey { key } => match self.surroundings.party_of_key(&key) {
                Some(party) => Reply::Party(party.clone()),
                None => unknown(format!("the party of key {key}")),
            },
            Request::Notaries => Reply::Notaries(self.surroundings.notaries.clone()),
            Request::Parameters => Reply::Hash(self.surroundings.parameters),
            Request::Contract { name } => match self.surroundings.contracts.get(&name) {
                Some(code) => Reply::Contract(ContractRef { name, code: *code }),
                None => unknown(format!("contract '{name}'")),
            },
            Request::Host(request) => return Err(Waits::Host(request)),
        })
    }

    /// Why nothing more can be sent in this session, if so.
    fn refusal(&self, id: SessionId) -> Option<FlowError> {
        let Some(session) = self.sessions.get(&id) else {
            return Some(FlowError::unknown(format_args!("session {id}")));
        };
        if session.closed {
            return Some(FlowError::failed(format!(
                "the session with {} was closed by this flow",
                session.peer
            )));
        }
        let peer = session.peer.clone();
        self.mail
            .get(&id)?
            .iter()
            .find_map(|mail| match &mail.body {
                SessionMessage::Error { message } => Some(FlowError::Counterparty {
                    peer: peer.clone(),
                    message: message.clone(),
                }),
                SessionMessage::Reject { reason } => Some(FlowError::Rejected {
                    peer: peer.clone(),
                    reason: reason.clone(),
                }),
                _ => None,
            })
    }

    fn send_payload(&mut self, id: SessionId, payload: Option<Vec<u8>>) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        let body = if session.initiator && !session.opened {
            SessionMessage::Initiate {
                flow: session.flow.clone(),
                app_version: self.registry.app_version(&session.flow),
                first: payload,
            }
        } else {
            SessionMessage::Data {
                payload: payload.unwrap_or_default(),
                last: false,
            }
        };
        session.opened = true;
        self.post(id, body);
    }

    /// Appends a message of this session to what the step sends.
    fn post(&mut self, id: SessionId, body: SessionMessage) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        let envelope = Envelope::new(
            self.me.name.clone(),
            session.peer.clone(),
            (id, session.initiator),
            session.sent,
            self.owner.clone(),
            body,
        );
        session.sent += 1;
        self.outgoing.push(envelope);
    }

    /// The reply to a receive, if there is mail for it or never will be.
    pub(crate) fn take_mail(&mut self, id: SessionId) -> Option<Reply> {
        let Some(session) = self.sessions.get_mut(&id) else {
            return Some(Reply::Failed(FlowError::unknown(format_args!(
                "session {id}"
            ))));
        };
        let peer = session.peer.clone();
        while let Some(mail) = self.mail.get_mut(&id).and_then(VecDeque::pop_front) {
            session.received = mail.sequence + 1;
            let body = mail.body.clone();
            self.taken.push((id, mail));
            match body {
                SessionMessage::Confirm | SessionMessage::Initiate { first: None, .. } => {}
                SessionMessage::Initiate {
                    first: Some(payload),
                    ..
                } => return Some(Reply::Payload(payload)),
                SessionMessage::Data { payload, last } => {
                    session.peer_ended |= last;
                    return Some(Reply::Payload(payload));
                }
                SessionMessage::End => session.peer_ended = true,
                SessionMessage::Error { message } => {
                    session.peer_ended = true;
                    return Some(Reply::Failed(FlowError::Counterparty { peer, message }));
                }
                SessionMessage::Reject { reason } => {
                    session.peer_ended = true;
                    return Some(Reply::Failed(FlowError::Rejected { peer, reason }));
                }
            }
        }
        (session.peer_ended || session.closed)
            .then(|| Reply::Failed(FlowError::SessionEnded { peer }))
    }

    /// Ends our side of a session, unless it never began or has ended.
    pub(crate) fn end_session(&mut self, id: SessionId, ending: SessionMessage) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        if session.closed {
            return;
        }
        session.closed = true;
        let told = session.peer_ended || (session.initiator && !session.opened);
        if told {
            return;
        }
        // A payload of this very step can carry the end along.
        if ending == SessionMessage::End {
            let mine = self
                .outgoing
                .iter_mut()
                .rfind(|e| e.session == id && e.from_initiator == session.initiator);
            if let Some(Envelope {
                body: SessionMessage::Data { last, .. },
                ..
            }) = mine
            {
                *last = true;
                return;
            }
        }
        self.post(id, ending);
    }

    /// Ends all sessions: well, or with the text of an error.
    pub(crate) fn end_all(&mut self, error: Option<&str>) {
        let ids: Vec<SessionId> = self.sessions.keys().copied().collect();
        for id in ids {
            let ending = match error {
                None => SessionMessage::End,
                Some(text) => SessionMessage::Error {
                    message: reason(text),
                },
            };
            self.end_session(id, ending);
        }
    }

    /// Tells the initiator that we answer, if nothing else has told it.
    pub(crate) fn confirm_answered(&mut self) {
        let unanswered: Vec<SessionId> = self
            .sessions
            .iter()
            .filter(|(_, session)| !session.initiator && !session.opened)
            .map(|(id, _)| *id)
            .collect();
        for id in unanswered {
            if let Some(session) = self.sessions.get_mut(&id) {
                session.opened = true;
            }
            let told = self
                .outgoing
                .iter()
                .any(|e| e.session == id && !e.from_initiator);
            if !told {
                self.post(id, SessionMessage::Confirm);
            }
        }
    }

    /// Takes back mail that an abandoned step had taken.
    pub(crate) fn return_mail(&mut self) {
        for (session, mail) in self.taken.drain(..).rev() {
            self.mail.entry(session).or_default().push_front(mail);
        }
    }
}
