//! One flow in the machine: its durable base, its body while it can work, its mail.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quorate_identity::{Party, X500Name};
use quorate_ledger::Timestamp;
use serde::{Deserialize, Serialize};

use super::interface::FlowView;
use crate::cell::{Cell, Mail, SessionState, Waits};
use crate::commit::{FlowStart, FlowStatus, Origin, StepCommit};
use crate::ids::{FlowId, SessionId};
use crate::journal::{ENTRY_VERSION, Entry, decode_entry, decode_versioned};
use crate::message::SessionMessage;
use crate::registry::Body;
use crate::standard;
use crate::trace::FlowTrace;

/// A flow's header, as its checkpoint keeps it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Header {
    pub(super) version: u32,
    pub(super) me: Party,
    pub(super) sessions: BTreeMap<SessionId, SessionState>,
    pub(super) next_session: u32,
    /// The deadline of the operation that the flow waits in.
    pub(super) deadline: Option<(u32, Timestamp)>,
    pub(super) ailment: Option<Ailment>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) trace: Option<FlowTrace>,
}

impl Header {
    /// The header of a flow that begins now.
    pub(super) fn new(me: Party) -> Self {
        Self {
            version: ENTRY_VERSION,
            me,
            sessions: BTreeMap::new(),
            next_session: 0,
            deadline: None,
            ailment: None,
            trace: None,
        }
    }

    pub(super) fn write(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a header is plain data and becomes JSON")
    }

    pub(super) fn read(bytes: &[u8]) -> Result<Self, String> {
        decode_versioned(bytes, |header: &Self| header.version)
    }
}

/// Why a flow is in the hospital.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Ailment {
    pub(super) reason: String,
    pub(super) since: Timestamp,
    pub(super) visits: u32,
}

/// Reads a journal that must be whole.
pub(super) fn read_journal(entries: &[(u32, Vec<u8>)]) -> Result<VecDeque<Entry>, String> {
    entries
        .iter()
        .enumerate()
        .map(|(i, (number, bytes))| {
            if *number as usize != i {
                return Err(format!("journal entry {i} is missing"));
            }
            decode_entry(bytes).map_err(|reason| format!("journal entry {i}: {reason}"))
        })
        .collect()
}

/// The last durable header: read, or bytes that this program cannot read and keeps as they are.
pub(super) enum Base {
    Known(Box<Header>),
    Unreadable(Vec<u8>),
}

/// What follows a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum After {
    /// The flow waits for mail or a time.
    Wait,
    /// The pending request goes to the host.
    Execute,
    /// The body goes on.
    GoOn,
    /// The flow has ended.
    Remove,
    /// The flow was stopped.
    Nothing,
}

/// Whether a request of the flow is with the host. There is never more than one, so that an
/// answer cannot be taken for that of another request with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Errand {
    None,
    Asked,
    /// Asked by a body that is gone: the answer will be thrown away.
    Abandoned,
}

/// An operator's order that came during a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    Kill,
    Pause,
    Retry,
}

/// What becomes of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It waits for the flow to take it.
    Kept,
    /// It waits already.
    Known,
    /// It is none of the flow's.
    Refused,
}

/// A body with its cell: present while the flow can work.
pub(super) struct Active {
    pub(super) cell: Arc<Mutex<Cell>>,
    pub(super) body: Body,
}

impl Active {
    pub(super) fn cell(&self) -> MutexGuard<'_, Cell> {
        lock(&self.cell)
    }
}

/// The body reaches its cell only from within a poll, so this never waits.
pub(super) fn lock(cell: &Mutex<Cell>) -> MutexGuard<'_, Cell> {
    cell.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) struct Run {
    pub(super) start: FlowStart,
    /// The start is durable.
    pub(super) recorded: bool,
    /// Never an end: that counts when it is durable, and then the flow is not here any more.
    pub(super) status: FlowStatus,
    /// The status in the last commit.
    pub(super) durable: FlowStatus,
    pub(super) base: Base,
    /// How many journal entries are durable.
    pub(super) journaled: usize,
    pub(super) active: Option<Active>,
    /// Mail of a flow without a body.
    pub(super) mail: BTreeMap<SessionId, VecDeque<Mail>>,
    pub(super) committing: Option<After>,
    /// What becomes the base when the commit is durable, and the length of the journal then.
    pub(super) next_base: Option<(Box<Header>, usize)>,
    /// Mail that the commit under way takes.
    pub(super) in_doubt: Vec<(SessionId, Mail)>,
    pub(super) errand: Errand,
    /// Failed attempts at the pending request of the host.
    pub(super) failures: u32,
    /// When the machine looks at the flow again.
    pub(super) timer: Option<Timestamp>,
    /// An operator wants the flow to go on as soon as it is read from the store.
    pub(super) loading: bool,
    /// How often it was asked for from the store without having come yet.
    pub(super) loads: u32,
    pub(super) wish: Option<Wish>,
    pub(super) ailment: Option<Ailment>,
    pub(super) progress: Option<String>,
    pub(super) since: Timestamp,
    /// For a body that begins anew because nothing of the flow is durable.
    pub(super) seed: [u8; 32],
}

impl Run {
    pub(super) fn new(start: FlowStart, base: Base, seed: [u8; 32], now: Timestamp) -> Self {
        Self {
            start,
            recorded: false,
            status: FlowStatus::Runnable,
            durable: FlowStatus::Runnable,
            base,
            journaled: 0,
            active: None,
            mail: BTreeMap::new(),
            committing: None,
            next_base: None,
            in_doubt: Vec::new(),
            errand: Errand::None,
            failures: 0,
            timer: None,
            loading: false,
            loads: 0,
            wish: None,
            ailment: None,
            progress: None,
            since: now,
            seed,
        }
    }

    /// Whether the flow answers another party's flow.
    pub(super) fn answers(&self) -> bool {
        matches!(self.start.origin, Origin::Peer { .. })
    }

    /// The other party for which the flow takes one of that party's places: none for the node's own checks.
    pub(super) fn foreign_peer(&self) -> Option<&X500Name> {
        match &self.start.origin {
            Origin::Peer { name } if !standard::is_system(&self.start.class) => Some(name),
            _ => None,
        }
    }

    /// Drops the body and the step under way; keeps the mail.
    pub(super) fn set_aside(&mut self) {
        if let Some(active) = self.active.take() {
            let mut cell = active.cell();
            cell.return_mail();
            self.mail = std::mem::take(&mut cell.mail);
        }
        if self.errand == Errand::Asked {
            self.errand = Errand::Abandoned;
        }
        self.failures = 0;
        self.loading = false;
    }

    /// Keeps an order for after the commit: the last one counts, but a kill is a kill.
    pub(super) fn wish_for(&mut self, wish: Wish) {
        if self.wish != Some(Wish::Kill) {
            self.wish = Some(wish);
        }
    }

    /// The commit under way has failed: its mail waits again.
    pub(super) fn return_in_doubt(&mut self) {
        let in_doubt = std::mem::take(&mut self.in_doubt);
        match &self.active {
            Some(active) => drop(active.cell().taken.splice(0..0, in_doubt)),
            None => {
                for (session, mail) in in_doubt.into_iter().rev() {
                    self.mail.entry(session).or_default().push_front(mail);
                }
            }
        }
    }

    /// A step that changes nothing but the status.
    pub(super) fn bare_step(&self, flow: FlowId, status: FlowStatus) -> StepCommit {
        let checkpoint = match (&self.next_base, &self.base) {
            (Some((header, _)), _) | (None, Base::Known(header)) => header.write(),
            (None, Base::Unreadable(bytes)) => bytes.clone(),
        };
        StepCommit {
            flow,
            start: (!self.recorded).then(|| self.start.clone()),
            status,
            checkpoint,
            progress: None,
            entries: Vec::new(),
            consumed: Vec::new(),
            outgoing: Vec::new(),
            recordings: Vec::new(),
            outcome: None,
        }
    }

    /// Puts a message of a session into its mailbox, wherever that is now.
    pub(super) fn keep_mail(
        &mut self,
        id: SessionId,
        sender: &X500Name,
        mut mail: Mail,
        limit: usize,
    ) -> Verdict {
        let mut cell;
        let (session, boxes, taken) = match (&self.active, &self.base) {
            (Some(active), _) => {
                cell = active.cell();
                let Cell {
                    sessions,
                    mail,
                    taken,
                    ..
                } = &mut *cell;
                (sessions.get(&id), mail, taken.as_slice())
            }
            (None, Base::Known(header)) => {
                (header.sessions.get(&id), &mut self.mail, [].as_slice())
            }
            (None, Base::Unreadable(_)) => return Verdict::Refused,
        };
        let Some(session) = session.filter(|session| session.peer == *sender) else {
            return Verdict::Refused;
        };
        let waiting = boxes.values().map(VecDeque::len).sum::<usize>();
        let own = boxes.entry(id).or_default();
        let in_doubt = self.in_doubt.iter().filter(|(session, _)| *session == id);
        let expected = own
            .back()
            .into_iter()
            .chain(in_doubt.map(|(_, mail)| mail))
            .map(|earlier| earlier.sequence.saturating_add(1))
            .fold(session.received, u64::max);
        if mail.sequence < expected {
            let stale = taken.iter().chain(&self.in_doubt).map(|(_, mail)| mail);
            let known = stale.chain(&*own).any(|known| known.inbox == mail.inbox);
            return if known {
                Verdict::Known
            } else {
                Verdict::Refused
            };
        }
        if session.peer_ended {
            return Verdict::Refused;
        }
        let complaint = if mail.sequence > expected {
            Some(format!(
                "message {expected} of the session is missing, {} came",
                mail.sequence
            ))
        } else if waiting >= limit {
            Some(format!("more than {limit} messages wait for this flow"))
        } else {
            None
        };
        if let Some(message) = complaint {
            let told = own
                .back()
                .is_some_and(|last| matches!(last.body, SessionMessage::Error { .. }));
            if told {
                return Verdict::Refused;
            }
            mail.body = SessionMessage::Error { message };
        }
        own.push_back(mail);
        Verdict::Kept
    }

    /// Where it belongs, if it is traced.
    pub(super) fn trace(&self) -> Option<FlowTrace> {
        match (&self.active, &self.base) {
            (Some(active), _) => active.cell().trace,
            (None, Base::Known(header)) => header.trace,
            (None, Base::Unreadable(_)) => None,
        }
    }

    /// The flow as operators see it.
    pub(super) fn view(&self, flow: FlowId) -> FlowView {
        let open = |sessions: &BTreeMap<SessionId, SessionState>| -> BTreeSet<X500Name> {
            sessions
                .values()
                .filter(|session| !session.closed && !session.peer_ended)
                .map(|session| session.peer.clone())
                .collect()
        };
        let (peers, waiting_for) = match (&self.active, &self.base) {
            (Some(active), _) => {
                let cell = active.cell();
                (open(&cell.sessions), waiting_for(&cell))
            }
            (None, Base::Known(header)) => (open(&header.sessions), None),
            (None, Base::Unreadable(_)) => (BTreeSet::new(), None),
        };
        FlowView {
            flow,
            class: self.start.class.clone(),
            client_id: self.start.client_id.clone(),
            origin: self.start.origin.clone(),
            status: self.status,
            progress: self.progress.clone(),
            waiting_for,
            started_at: self.start.started_at,
            since: self.since,
            ailment: self.ailment.as_ref().map(|ailment| ailment.reason.clone()),
            visits: self.ailment.as_ref().map_or(0, |ailment| ailment.visits),
            peers: peers.into_iter().collect(),
        }
    }
}

fn waiting_for(cell: &Cell) -> Option<String> {
    let pending = cell.pending.as_ref()?;
    Some(match &pending.waits {
        Waits::Mail { session, .. } => match cell.sessions.get(session) {
            Some(session) => format!("a message from {}", session.peer),
            None => "a message".to_owned(),
        },
        Waits::Time { until } => format!("the time {until}"),
        Waits::Host(_) => format!("the node to answer '{}'", pending.kind),
    })
}
