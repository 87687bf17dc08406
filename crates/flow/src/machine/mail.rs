//! What becomes of messages: to whom they go, which start a flow, which wait, which are refused.

use std::collections::{BTreeMap, VecDeque};

use quorate_identity::X500Name;
use quorate_ledger::Timestamp;

use super::interface::Action;
use super::run::{Base, Run, Verdict};
use super::{FlowId, Machine};
use crate::cell::{Mail, SessionState};
use crate::commit::{FlowStart, InboxId, Origin};
use crate::ids::SessionId;
use crate::message::{Envelope, SessionMessage};
use crate::standard;
use crate::trace::FlowTrace;

/// Sessions that wait until flows may start again; beyond it sessions are refused.
const MAX_HELD_SESSIONS: usize = 10_000;

/// Messages that may be for a flow that cannot be read. Beyond it they are left in the inbox,
/// where the next start of the node finds them.
const MAX_STRAYS: usize = 10_000;

/// A message with the seed that came along.
struct Delivery {
    inbox: InboxId,
    envelope: Box<Envelope>,
    seed: [u8; 32],
}

/// Sessions that peers have opened while no flow may start, each with what followed.
#[derive(Default)]
pub(super) struct Held {
    /// Of each peer, in the order of arrival.
    peers: BTreeMap<X500Name, BTreeMap<u64, Conversation>>,
    places: BTreeMap<(X500Name, SessionId), u64>,
    arrivals: u64,
    messages: usize,
}

/// What a peer has said so far in a session that waits.
type Conversation = VecDeque<Delivery>;

impl Held {
    pub(super) fn messages(&self) -> usize {
        self.messages
    }

    fn follow(&mut self, key: &(X500Name, SessionId)) -> Option<&mut Conversation> {
        let place = self.places.get(key)?;
        self.peers.get_mut(&key.0)?.get_mut(place)
    }

    /// Whether one more session of this peer may wait: there is room, and more of it is free than the peer has.
    fn has_room_for(&self, peer: &X500Name) -> bool {
        let held = self.peers.get(peer).map_or(0, BTreeMap::len);
        held + self.places.len() < MAX_HELD_SESSIONS
    }

    fn hold(&mut self, first: Delivery) {
        self.arrivals += 1;
        self.messages += 1;
        let (peer, session) = (first.envelope.sender.clone(), first.envelope.session);
        self.places.insert((peer.clone(), session), self.arrivals);
        let held = self.peers.entry(peer).or_default();
        held.insert(self.arrivals, VecDeque::from([first]));
    }

    /// The class and the arrival of each peer's first session.
    fn firsts(&self) -> impl Iterator<Item = (&X500Name, u64, &str)> {
        self.peers.iter().filter_map(|(peer, held)| {
            let (arrival, conversation) = held.first_key_value()?;
            Some((peer, *arrival, conversation.front()?.class()))
        })
    }

    fn pop(&mut self, peer: &X500Name) -> Option<Conversation> {
        let held = self.peers.get_mut(peer)?;
        let (_, deliveries) = held.pop_first()?;
        if held.is_empty() {
            self.peers.remove(peer);
        }
        self.messages -= deliveries.len();
        if let Some(Delivery { envelope, .. }) = deliveries.front() {
            self.places.remove(&(peer.clone(), envelope.session));
        }
        Some(deliveries)
    }
}

/// Messages without a flow that may be for one that cannot be read.
#[derive(Default)]
pub(super) struct Strays {
    waiting: VecDeque<Delivery>,
    /// The number of unreadable flows when they were looked at last.
    because_of: usize,
}

impl Machine {
    pub(super) fn on_deliver(
        &mut self,
        now: Timestamp,
        inbox: InboxId,
        envelope: Box<Envelope>,
        seed: [u8; 32],
        out: &mut Vec<Action>,
    ) {
        let key = (envelope.session, !envelope.from_initiator);
        if let Some(flow) = self.routes.get(&key).copied() {
            self.mail_to(now, flow, inbox, *envelope, out);
            return;
        }
        let delivery = Delivery {
            inbox,
            envelope,
            seed,
        };
        let envelope = &delivery.envelope;
        if envelope.from_initiator {
            let limit = self.limits.mail_per_flow;
            let session = (envelope.sender.clone(), envelope.session);
            if let Some(before) = self.held.follow(&session) {
                if before.iter().any(|held| held.inbox == delivery.inbox) {
                    return;
                }
                if before.len() > limit {
                    out.push(discard(delivery.inbox));
                } else {
                    before.push_back(delivery.complaining_beyond(limit, before.len()));
                    self.held.messages += 1;
                }
                return;
            }
            if matches!(envelope.body, SessionMessage::Initiate { .. }) && envelope.sequence == 0 {
                self.on_initiate(now, delivery, out);
                return;
            }
        }
        if self.unreadable > 0 {
            self.stray(delivery);
        } else {
            // Its flow has ended, or never was.
            out.push(discard(delivery.inbox));
        }
    }

    /// A peer's flow, or one of ours, opens a session.
    fn on_initiate(&mut self, now: Timestamp, delivery: Delivery, out: &mut Vec<Action>) {
        let envelope = &delivery.envelope;
        let flow = FlowId::of_responder(&envelope.sender, envelope.session);
        if self.runs.contains_key(&flow) {
            // The flow that answers it is here, and does not know it: it cannot be read.
            self.stray(delivery);
        } else if self.may_answer(&envelope.sender, delivery.class()) {
            self.answer(now, flow, delivery, out);
        } else if self.held.has_room_for(&envelope.sender) {
            self.held.hold(delivery);
        } else {
            let why = "this node starts no flows now, and too many wait already; try again later";
            self.reject(delivery, why.to_owned(), out);
        }
    }

    /// Whether there is a place for a flow that answers this peer.
    fn may_answer(&self, peer: &X500Name, class: &str) -> bool {
        let own = self.surroundings.local(peer).is_some();
        if own && standard::is_system(class) {
            return self.places.system_answering < self.limits.system_flows;
        }
        let free = self.limits.flows.saturating_sub(self.places.answering);
        match own {
            true => free > 0,
            false => !self.draining && self.places.of_peer(peer) < free,
        }
    }

    /// Starts the responder of a session.
    fn answer(&mut self, now: Timestamp, flow: FlowId, delivery: Delivery, out: &mut Vec<Action>) {
        let envelope = &delivery.envelope;
        let SessionMessage::Initiate { flow: class, .. } = &envelope.body else {
            return;
        };
        let class = class.clone();
        let Some(me) = self.surroundings.local(&envelope.recipient).cloned() else {
            out.push(discard(delivery.inbox));
            return;
        };
        if !self.registry.answers(&class) {
            let why = format!(
                "no application here answers the flow '{}'; its node must install one",
                class.chars().take(100).collect::<String>()
            );
            self.reject(delivery, why, out);
            return;
        }
        let Delivery {
            inbox,
            envelope,
            seed,
        } = delivery;
        let (id, peer) = (envelope.session, envelope.sender);
        let mut header = self.header();
        header.me = me;
        header.trace = envelope
            .trace
            .map(|parent| FlowTrace::of(flow, Some(parent)));
        header.sessions.insert(
            id,
            SessionState {
                peer: peer.clone(),
                flow: class.clone(),
                initiator: false,
                opened: false,
                sent: 0,
                received: 0,
                peer_ended: false,
                closed: false,
            },
        );
        let start = FlowStart {
            class,
            arguments: serde_json::json!({ "session": id }).to_string(),
            client_id: None,
            origin: Origin::Peer { name: peer },
            started_at: now,
        };
        let mut run = Run::new(start, Base::Known(Box::new(header)), seed, now);
        let mail = Mail {
            inbox,
            sequence: envelope.sequence,
            body: envelope.body,
        };
        run.mail.entry(id).or_default().push_back(mail);
        self.admit(flow, run);
        self.build(now, flow, VecDeque::new(), out);
    }

    fn reject(&self, delivery: Delivery, reason: String, out: &mut Vec<Action>) {
        let Delivery {
            inbox, envelope, ..
        } = delivery;
        let reply = Envelope::new(
            envelope.recipient,
            envelope.sender,
            (envelope.session, false),
            0,
            self.owner.clone(),
            SessionMessage::Reject { reason },
        );
        out.push(Action::Discard {
            inbox,
            reply: Some(Box::new(reply)),
        });
    }

    /// Puts a message into the mailbox of the flow that its session belongs to.
    fn mail_to(
        &mut self,
        now: Timestamp,
        flow: FlowId,
        inbox: InboxId,
        envelope: Envelope,
        out: &mut Vec<Action>,
    ) {
        let Some(run) = self.runs.get_mut(&flow) else {
            out.push(discard(inbox));
            return;
        };
        let mail = Mail {
            inbox: inbox.clone(),
            sequence: envelope.sequence,
            body: envelope.body,
        };
        let limit = self.limits.mail_per_flow;
        match run.keep_mail(envelope.session, &envelope.sender, mail, limit) {
            Verdict::Kept => self.resume_if_due(now, flow, out),
            Verdict::Known => {}
            Verdict::Refused => out.push(discard(inbox)),
        }
    }

    fn stray(&mut self, delivery: Delivery) {
        if self.strays.waiting.len() < MAX_STRAYS {
            self.strays.waiting.push_back(delivery);
        }
    }

    /// Looks again at messages without a flow when a flow that could not be read has become
    /// readable, or is gone.
    pub(super) fn release_strays(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        let before = std::mem::replace(&mut self.strays.because_of, self.unreadable);
        if self.unreadable >= before {
            return;
        }
        for delivery in std::mem::take(&mut self.strays.waiting) {
            self.on_deliver(now, delivery.inbox, delivery.envelope, delivery.seed, out);
        }
    }

    /// Lets in what waited until flows may start again: our own sessions first, then of the peers for which the fewest
    /// flows work whichever came first.
    pub(super) fn release_held(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        while self.held.messages > 0 {
            let due = self
                .held
                .firsts()
                .filter(|(peer, _, class)| self.may_answer(peer, class))
                .min_by_key(|(peer, arrival, _)| {
                    let foreign = self.surroundings.local(peer).is_none();
                    (foreign, self.places.of_peer(peer), *arrival)
                });
            let Some((peer, ..)) = due else { return };
            let peer = peer.clone();
            for delivery in self.held.pop(&peer).into_iter().flatten() {
                self.on_deliver(now, delivery.inbox, delivery.envelope, delivery.seed, out);
            }
        }
    }
}

impl Delivery {
    /// The flow that is to be answered, if this is the first message of a session.
    fn class(&self) -> &str {
        match &self.envelope.body {
            SessionMessage::Initiate { flow, .. } => flow,
            _ => "",
        }
    }

    /// The message, or an error in its place if it is the first of too many.
    fn complaining_beyond(mut self, limit: usize, waiting: usize) -> Self {
        if waiting >= limit {
            let message = format!("more than {limit} messages wait for this flow");
            self.envelope.body = SessionMessage::Error { message };
        }
        self
    }
}

fn discard(inbox: InboxId) -> Action {
    Action::Discard { inbox, reply: None }
}
