//! A follower's part: messages on their way to the leader, and submitters who wait until a block holds theirs.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use tracing::debug;

use super::updates::Stage;
use super::{AFTER_ELECTION, Item};
use crate::channel::Ack;
use crate::channel::core::{Action, Channel, ForwardId, LOG, Ticket};
use crate::cluster::ForwardError;

#[derive(Debug)]
pub(super) enum Forwarding {
    Normal(Item),
    Config(u64),
}

/// Submitters of forwarded messages, who wait for a block.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    pub(super) tickets: BTreeMap<Ticket, (Duration, Bytes)>,
    // Looked up, never iterated: the order of a hash map must not decide anything.
    pub(super) by_envelope: HashMap<Bytes, VecDeque<Ticket>>,
}

impl Waiting {
    pub(super) fn add(&mut self, ticket: Ticket, envelope: Bytes, deadline: Duration) {
        self.by_envelope
            .entry(envelope.clone())
            .or_default()
            .push_back(ticket);
        self.tickets.insert(ticket, (deadline, envelope));
    }

    pub(super) fn settle(&mut self, envelope: &Bytes) -> Option<Ticket> {
        let queue = self.by_envelope.get_mut(envelope)?;
        let ticket = queue.pop_front()?;
        if queue.is_empty() {
            self.by_envelope.remove(envelope);
        }
        self.tickets.remove(&ticket);
        Some(ticket)
    }

    pub(super) fn remove(&mut self, ticket: Ticket) {
        if let Some((_, envelope)) = self.tickets.remove(&ticket)
            && let Some(queue) = self.by_envelope.get_mut(&envelope)
        {
            queue.retain(|waiting| *waiting != ticket);
            if queue.is_empty() {
                self.by_envelope.remove(&envelope);
            }
        }
    }

    /// Nobody waits longer than until `latest` from now on.
    pub(super) fn hasten(&mut self, latest: Duration) {
        for (deadline, _) in self.tickets.values_mut() {
            *deadline = latest.min(*deadline);
        }
    }

    /// Those whose time is up. Tickets are handed out in order, so that the oldest come first.
    pub(super) fn expired(&mut self, now: Duration) -> Vec<Ticket> {
        let expired: Vec<Ticket> = self
            .tickets
            .iter()
            .take_while(|(_, (deadline, _))| *deadline <= now)
            .map(|(ticket, _)| *ticket)
            .collect();
        for ticket in &expired {
            self.remove(*ticket);
        }
        expired
    }
}

impl Channel {
    pub(super) fn next_forward(&mut self, forwarding: Forwarding) -> ForwardId {
        self.ordering.next_forward += 1;
        let id = ForwardId(self.ordering.next_forward);
        self.ordering.forwards.insert(id, forwarding);
        id
    }

    pub(super) fn forward(&mut self, item: Item) {
        if item.ack == Ack::Committed
            && let Some(ticket) = item.ticket
        {
            // Before it leaves: its block may be here before we know that it has arrived there.
            self.ordering
                .waiting
                .add(ticket, item.envelope.encoded().clone(), item.deadline);
        }
        debug!(target: LOG, channel = %self.name, node = self.raft_id,
            "Forwarding transaction to the leader {}", self.role.leader);
        let (to, validated_at) = (self.role.leader, item.validated_at);
        let envelope = item.envelope.encoded().clone();
        let id = self.next_forward(Forwarding::Normal(item));
        self.out.push(Action::Forward {
            id,
            to,
            validated_at,
            envelope,
        });
    }

    pub(in crate::channel) fn forwarded(
        &mut self,
        id: ForwardId,
        result: Result<(), ForwardError>,
    ) {
        let Some(forwarding) = self.ordering.forwards.remove(&id) else {
            return;
        };
        match (forwarding, result) {
            // An update is answered by its block, and given to a leader again if none appears.
            (Forwarding::Config(_), Ok(())) => {}
            (Forwarding::Config(key), Err(reason)) => {
                debug!(target: LOG, channel = %self.name, node = self.raft_id,
                    "The configuration update is forwarded again later: {reason}");
                let soon = self.now.monotonic;
                for update in &mut self.ordering.updates {
                    if update.key == key && matches!(update.stage, Stage::Forwarded(_)) {
                        update.stage = Stage::Forwarded(soon);
                    }
                }
            }
            (Forwarding::Normal(item), Ok(())) => {
                if item.ack == Ack::Enqueued {
                    self.reply(item.ticket, Ok(()));
                }
            }
            (Forwarding::Normal(mut item), Err(error)) => {
                if let Some(ticket) = item.ticket {
                    self.ordering.waiting.remove(ticket);
                }
                match error {
                    // The leader is another than the one that would have checked it.
                    ForwardError::Unchecked => {
                        if self.is_allowed(&mut item) {
                            self.forward(item);
                        }
                    }
                    ForwardError::Refused(refusal) => {
                        self.reply(item.ticket, Err(refusal.into()));
                    }
                    ForwardError::Failed(reason) if item.ticket.is_some() => {
                        self.unavailable(item.ticket, &reason);
                    }
                    ForwardError::Failed(_) => {
                        // Acknowledged already, in another office. Not at once again, or a dead leader would keep us
                        // busy.
                        self.ordering.orphans.push_back(item);
                        self.ordering.orphans_wait = true;
                    }
                }
            }
        }
    }

    /// Another leader was elected. Most of what was forwarded to the former one died with it; only a former leader that
    /// lives on may still bring it to the new one, and does so at once. Whoever waits is told soon that its message's fate
    /// is unknown, rather than after [`PATIENCE`].
    pub(in crate::channel) fn hasten_waiting(&mut self) {
        let latest = self.now.monotonic + AFTER_ELECTION;
        self.ordering.waiting.hasten(latest);
    }
}
