//! A running flow's state, and what its operations do to it.
//!
//! Every operation takes the next number of the journal. If the journal has an entry of that
//! number, the body gets its reply; else the [`Cell`] performs the operation (what needs nobody
//! else) or says what it waits for, and the machine sees to that.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use quorate_identity::{Party, SecureHash, X500Name};
use quorate_ledger::limits::ENVELOPE_ROOM;
use quorate_ledger::{ContractRef, Timestamp};
use serde::{Deserialize, Serialize};

use crate::commit::{InboxId, Recording};
use crate::error::FlowError;
use crate::ids::{FlowId, SessionId};
use crate::journal::{Entry, HostRequest, Reply, Request, encode_entry};
use crate::machine::Surroundings;
use crate::message::{Envelope, MAX_ENVELOPE_BYTES, Owner, SessionMessage, reason};
use crate::registry::FlowRegistry;
use crate::trace::FlowTrace;

/// After this many journal entries without a commit a flow is committed and goes on afterwards.
const MAX_ENTRIES_PER_STEP: usize = 1_000;

/// A flow with more journal entries than this goes to the hospital.
const MAX_JOURNAL_ENTRIES: u32 = 100_000;

/// The largest payload of one message. A larger one could be queued but never delivered, and
/// would keep everything behind it from leaving.
const MAX_PAYLOAD_BYTES: usize = MAX_ENVELOPE_BYTES - ENVELOPE_ROOM;

/// Waits end here at the latest: the year 9999, the last that a checkpoint's text can say.
const LAST_DEADLINE: Timestamp = Timestamp::from_seconds(253_402_300_799);

/// One awaited operation.
pub(crate) struct Operation {
    cell: Arc<Mutex<Cell>>,
    request: Option<Request>,
    sequence: Option<u32>,
}

impl Operation {
    pub(crate) fn new(cell: &Arc<Mutex<Cell>>, request: Request) -> Self {
        Self {
            cell: Arc::clone(cell),
            request: Some(request),
            sequence: None,
        }
    }
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
        /// Sessions whose payloads are as good.
        earlier: Vec<SessionId>,
    },
    Time {
        until: Timestamp,
    },
    Host(Arc<HostRequest>),
}

impl Pending {
    /// When the wait ends at the latest.
    pub(crate) fn deadline(&self) -> Option<Timestamp> {
        match self.waits {
            Waits::Mail { until, .. } => until,
            Waits::Time { until } => Some(until),
            Waits::Host(_) => None,
        }
    }
}

/// A flow's state that its operations work on. The machine owns the flow; the body reaches the
/// cell only from within a poll, so the lock is never waited for.
pub(crate) struct Cell {
    pub(crate) flow: FlowId,
    pub(crate) me: Party,
    pub(crate) owner: Owner,
    /// Where it belongs, if it is traced.
    pub(crate) trace: Option<FlowTrace>,
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
            if let Reply::Time(told) = entry.reply {
                // The clock of the machine that takes over may be behind.
                self.now = self.now.max(told);
            }
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

    pub(crate) fn set_progress(&mut self, step: &str) {
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
                let peer = self.provider(peer);
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
            Request::Send { payload, .. } if payload.len() > MAX_PAYLOAD_BYTES => {
                Reply::Failed(FlowError::failed(format!(
                    "a message of {} bytes exceeds the {MAX_PAYLOAD_BYTES} that one can carry; \
                     send it in parts",
                    payload.len()
                )))
            }
            Request::Send { session, payload } => {
                match self.closed(session).or_else(|| self.bad_news(session)) {
                    Some(error) => Reply::Failed(error),
                    None => {
                        self.send_payload(session, Some(payload));
                        Reply::Done
                    }
                }
            }
            Request::Receive {
                session,
                within,
                hurry,
            } => {
                if let Some(error) = self.closed(session) {
                    return Ok(Reply::Failed(error));
                }
                if self
                    .sessions
                    .get(&session)
                    .is_some_and(|s| s.initiator && !s.opened)
                {
                    self.send_payload(session, None);
                }
                let (attempt, earlier) = match hurry {
                    Some(hurry) => (Some(hurry.attempt), hurry.earlier),
                    None => (None, Vec::new()),
                };
                match self.take_mail_of(session, &earlier) {
                    Some(reply) => reply,
                    None => {
                        let within = within.or(attempt.map(|attempt| {
                            let salt = self.salt(sequence);
                            self.surroundings.flow_timeout.wait(attempt, salt)
                        }));
                        let until = match self.resumed.take() {
                            Some((number, until)) if number == sequence => Some(until),
                            _ => within.map(|within| self.deadline(within)),
                        };
                        return Err(Waits::Mail {
                            session,
                            within,
                            until,
                            earlier,
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
                    _ => self.deadline(duration),
                };
                return Err(Waits::Time { until });
            }
            Request::Now => Reply::Time(self.now),
            Request::Entropy => Reply::Entropy(self.entropy(b"quorate flow entropy", sequence)),
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
            Request::Answering { party } => Reply::Names(self.surroundings.answering(&party)),
            Request::Services => {
                let services = self.surroundings.services.iter();
                Reply::Names(services.map(|service| service.name.clone()).collect())
            }
            Request::Parameters => Reply::Hash(self.surroundings.parameters),
            Request::Contract { name } => match self.surroundings.contracts.get(&name) {
                Some(code) => Reply::Contract(ContractRef { name, code: *code }),
                None => unknown(format!("contract '{name}'")),
            },
            Request::Host(request) => return Err(Waits::Host(Arc::new(request))),
        })
    }

    fn entropy(&self, purpose: &[u8], sequence: u32) -> SecureHash {
        let number = sequence.to_le_bytes();
        SecureHash::of_parts(&[purpose, &self.seed, self.flow.as_bytes(), &number])
    }

    /// What makes the waits of different flows differ.
    fn salt(&self, sequence: u32) -> u8 {
        self.entropy(b"quorate flow jitter", sequence).as_bytes()[0]
    }

    /// Whom to ask for a party: of the nodes that provide a service each flow takes another one, and each time the
    /// next. The choice is durable with the session.
    fn provider(&self, asked: X500Name) -> X500Name {
        let nodes = self.surroundings.answering(&asked);
        let before = self.sessions.values();
        let before = before.filter(|session| session.initiator && nodes.contains(&session.peer));
        let start = usize::from(self.flow.as_bytes()[0]);
        let chosen = (start + before.count()) % nodes.len();
        nodes.get(chosen).cloned().unwrap_or(asked)
    }

    fn deadline(&self, wait: Duration) -> Timestamp {
        (self.now + wait).min(LAST_DEADLINE)
    }

    /// Why nothing more can be said or heard in this session, if our side of it is over.
    fn closed(&self, id: SessionId) -> Option<FlowError> {
        match self.sessions.get(&id) {
            None => Some(FlowError::unknown(format_args!("session {id}"))),
            Some(session) if session.closed => Some(FlowError::failed(format!(
                "the session with {} was closed by this flow",
                session.peer
            ))),
            Some(_) => None,
        }
    }

    /// The error that waits in the mail of this session: there is nobody left to send to.
    fn bad_news(&self, id: SessionId) -> Option<FlowError> {
        let peer = &self.sessions.get(&id)?.peer;
        self.mail
            .get(&id)?
            .iter()
            .find_map(|mail| failure(peer, &mail.body))
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
        let mut envelope = Envelope::new(
            self.me.name.clone(),
            session.peer.clone(),
            (id, session.initiator),
            session.sent,
            self.owner.clone(),
            body,
        );
        envelope.trace = self.trace.map(|trace| trace.own);
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
        while let Some(mail) = self.mail.get_mut(&id).and_then(VecDeque::pop_front) {
            session.received = mail.sequence.saturating_add(1);
            let failed = failure(&session.peer, &mail.body);
            let body = mail.body.clone();
            self.taken.push((id, mail));
            if let Some(error) = failed {
                session.peer_ended = true;
                return Some(Reply::Failed(error));
            }
            match body {
                SessionMessage::Initiate {
                    first: Some(payload),
                    ..
                } => return Some(Reply::Payload(payload)),
                SessionMessage::Data { payload, last } => {
                    session.peer_ended |= last;
                    return Some(Reply::Payload(payload));
                }
                SessionMessage::End => session.peer_ended = true,
                _ => {}
            }
        }
        let peer = &session.peer;
        session
            .peer_ended
            .then(|| Reply::Failed(FlowError::SessionEnded { peer: peer.clone() }))
    }

    /// The reply to a receive that may be answered by earlier sessions, too; of those only payloads count.
    pub(crate) fn take_mail_of(&mut self, id: SessionId, earlier: &[SessionId]) -> Option<Reply> {
        let payload = |reply: &Reply| matches!(reply, Reply::Payload(_));
        let other = |cell: &mut Self| {
            let mut replies = earlier.iter().map(|id| cell.take_mail(*id));
            replies.find_map(|reply| reply.filter(payload))
        };
        self.take_mail(id).or_else(|| other(self))
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

/// The error that a message of `peer` means to us, if it is one. The peer's words are cut: they
/// go into our journal.
fn failure(peer: &X500Name, body: &SessionMessage) -> Option<FlowError> {
    match body {
        SessionMessage::Error { message } => Some(FlowError::Counterparty {
            peer: peer.clone(),
            message: reason(message),
        }),
        SessionMessage::Reject { reason: why } => Some(FlowError::Rejected {
            peer: peer.clone(),
            reason: reason(why),
        }),
        _ => None,
    }
}
