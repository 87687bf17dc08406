//! From a submission to a proposal: forwarding, batches, blocks in flight, and what happens to all of them when the
//! leader changes.
//!
//! A leader serves only when its log is applied to the end, its predecessor's change of members is finished, and no
//! more than `MaxInflightBlocks` are proposed and undecided. Otherwise submissions wait in their queue.
//!
//! What was taken over is not dropped when the office is lost, as Fabric does. Proposals in flight are decided one
//! way or the other: a block of that number appears, and it is ours or it is not. If it is not, no later one of ours
//! can appear any more, so that their messages may be given to the next leader without being ordered twice. A
//! configuration update may even be given to several leaders: the second attempt no longer fits the configuration.
//!
//! This page is the leader's; `forwarding` is a follower's, and `updates` has the way of configuration updates in both
//! offices.

mod forwarding;
mod updates;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use quorate_consensus::{GroupError, GroupState, Membership};
use quorate_fabric::config::BatchSize;
use quorate_fabric::envelope::RawEnvelope;
use tracing::{debug, info, warn};

use self::forwarding::{Forwarding, Waiting};
use self::updates::{ConfigUpdate, Handover, Stage};
use super::core::{Action, Channel, ForwardId, LOG, Ticket};
use super::{Ack, Submission, SubmitError};
use crate::assembly::Tip;
use crate::checks::{self, Kind};
use crate::cutter::Cutter;

/// Transactions on their way to the leader at any moment. More wait in the queue of submissions.
pub const MAX_FORWARDS: usize = 1024;

/// Forwarded messages whose submitters wait for the block.
pub const MAX_WAITING: usize = 65_536;

/// Configuration updates that wait for their block.
pub const MAX_CONFIG_UPDATES: usize = 32;

/// How long a message that was taken over looks for its place in the chain before its submitter is told that its fate
/// is unknown, and the attempt is given up.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How long a message that was forwarded to a former leader may still turn up in a block of the next one.
pub const AFTER_ELECTION: Duration = Duration::from_secs(2);

/// What Fabric says when there is no leader.
pub const NO_LEADER: &str = "no Raft leader";

/// What Fabric says of a channel that has stopped.
pub(super) const STOPPED: &str = "chain is stopped";

const UNKNOWN: &str = "the message was handed over for ordering but no block with it has appeared: its fate is unknown";

/// A normal message that was taken over.
#[derive(Debug)]
struct Item {
    envelope: RawEnvelope,
    /// None: nobody has verified it yet.
    validated_at: Option<u64>,
    ack: Ack,
    /// Whom to answer; nobody, once answered.
    ticket: Option<Ticket>,
    deadline: Duration,
}

/// A proposed block.
#[derive(Debug)]
struct InFlight {
    number: u64,
    hash: [u8; 32],
    items: Vec<Item>,
}

#[derive(Debug)]
struct Leading {
    term: u64,
    /// The first entry of our term is applied, and so is everything before.
    settled: bool,
    /// Where the next proposal goes; none while we do not serve yet.
    tip: Option<Tip>,
    config_in_flight: bool,
    membership: Option<Membership>,
    handover: Option<Handover>,
    /// A proposal was not taken: try again at the next tick.
    pause: bool,
}

/// The ordering side of a channel's state.
#[derive(Debug)]
pub(super) struct Ordering {
    cutter: Cutter<Item>,
    pub(super) batch_deadline: Option<Duration>,
    /// When the first message of the waiting batch came.
    batch_since: Option<Duration>,
    /// How long batches took to fill, until somebody asks.
    fill_durations: Vec<Duration>,
    /// The batch's time is up but no more blocks may be in flight.
    batch_due: bool,
    leading: Option<Leading>,
    in_flight: VecDeque<InFlight>,
    /// Taken from the queue when the channel had to pause.
    parked: VecDeque<(Ticket, Submission)>,
    /// Taken over, and without a place since.
    orphans: VecDeque<Item>,
    orphans_wait: bool,
    updates: Vec<ConfigUpdate>,
    next_update: u64,
    forwards: BTreeMap<ForwardId, Forwarding>,
    next_forward: u64,
    waiting: Waiting,
    /// We lead a group that we no longer belong to, for so many ticks.
    leaving: Option<u32>,
}

impl Ordering {
    pub(super) fn new(limits: BatchSize) -> Self {
        Self {
            cutter: Cutter::new(limits),
            batch_deadline: None,
            batch_since: None,
            fill_durations: Vec::new(),
            batch_due: false,
            leading: None,
            in_flight: VecDeque::new(),
            parked: VecDeque::new(),
            orphans: VecDeque::new(),
            orphans_wait: false,
            updates: Vec::new(),
            next_update: 0,
            forwards: BTreeMap::new(),
            next_forward: 0,
            waiting: Waiting::default(),
            leaving: None,
        }
    }

    pub(super) fn set_limits(&mut self, limits: BatchSize) {
        self.cutter.set_limits(limits);
    }
}

impl Channel {
    /// Whether submissions may be offered now. While not, they wait in their queue, and their clients with them.
    pub fn accepts_submissions(&self) -> bool {
        let ordering = &self.ordering;
        if self.halted {
            // To be refused.
            return true;
        }
        ordering.parked.is_empty()
            && ordering.forwards.len() < MAX_FORWARDS
            && ordering.waiting.tickets.len() < MAX_WAITING
            && (ordering.leading.is_none() || self.is_open())
    }

    /// How long the batches that were cut since the last call took to fill.
    pub fn fill_durations(&mut self) -> Vec<Duration> {
        std::mem::take(&mut self.ordering.fill_durations)
    }

    /// Whether we lead and another message may be ordered now.
    fn is_open(&self) -> bool {
        let limit = usize::try_from(self.options.max_inflight_blocks).unwrap_or(usize::MAX);
        self.ordering.in_flight.len() < limit
            && self.ordering.leading.as_ref().is_some_and(|leading| {
                leading.tip.is_some()
                    && !leading.config_in_flight
                    && !leading.pause
                    && leading.membership.is_none()
                    && leading.handover.is_none()
            })
    }

    pub(super) fn reply(&mut self, ticket: Option<Ticket>, result: Result<(), SubmitError>) {
        if let Some(ticket) = ticket {
            self.out.push(Action::Reply(ticket, result));
        }
    }

    fn unavailable(&mut self, ticket: Option<Ticket>, reason: &str) {
        self.reply(ticket, Err(SubmitError::Unavailable(reason.to_owned())));
    }

    /// Takes a submission, parks it, or refuses it.
    pub(super) fn submit(&mut self, ticket: Ticket, submission: Submission) {
        if self.role.leader == 0 {
            self.unavailable(Some(ticket), NO_LEADER);
            return;
        }
        if submission.kind == Kind::Config {
            self.gauges.config_proposals_received += 1;
            self.take_update(ticket, submission);
            return;
        }
        let leads = self.role.state == GroupState::Leader;
        let full = self.ordering.forwards.len() >= MAX_FORWARDS;
        if !self.ordering.parked.is_empty() || (leads && !self.is_open()) || (!leads && full) {
            self.ordering.parked.push_back((ticket, submission));
            return;
        }
        self.take_normal(ticket, submission);
    }

    fn take_normal(&mut self, ticket: Ticket, submission: Submission) {
        self.gauges.normal_proposals_received += 1;
        let item = Item {
            envelope: submission.envelope,
            validated_at: submission.validated_at,
            ack: submission.ack,
            ticket: Some(ticket),
            deadline: self.now.monotonic + PATIENCE,
        };
        if self.ordering.leading.is_some() {
            self.order(item);
        } else {
            self.forward(item);
        }
    }

    /// Whatever can go on now does so: called before the Raft group is asked what it is ready for.
    pub(super) fn order_what_waits(&mut self) {
        if self.ordering.leading.is_some() {
            self.begin_to_serve();
            if self.ordering.batch_due && self.is_open() {
                self.cut();
            }
            while self.is_open() {
                let Some(item) = self.ordering.orphans.pop_front() else {
                    break;
                };
                self.order(item);
            }
            self.order_updates();
            while self.is_open() {
                let Some((ticket, submission)) = self.ordering.parked.pop_front() else {
                    break;
                };
                self.take_normal(ticket, submission);
            }
            return;
        }
        if self.role.leader == 0 {
            while let Some((ticket, _)) = self.ordering.parked.pop_front() {
                self.unavailable(Some(ticket), NO_LEADER);
            }
            return;
        }
        while !self.ordering.orphans_wait && self.ordering.forwards.len() < MAX_FORWARDS {
            let Some(item) = self.ordering.orphans.pop_front() else {
                break;
            };
            self.forward(item);
        }
        self.forward_updates();
        while self.ordering.forwards.len() < MAX_FORWARDS {
            let Some((ticket, submission)) = self.ordering.parked.pop_front() else {
                break;
            };
            self.take_normal(ticket, submission);
        }
    }

    // ---- leading ------------------------------------------------------------------------------------------------

    pub(super) fn start_leading(&mut self) {
        self.ordering.leading = Some(Leading {
            term: self.group.status().term,
            settled: false,
            tip: None,
            config_in_flight: false,
            membership: None,
            handover: None,
            pause: false,
        });
    }

    pub(super) fn stop_leading(&mut self) {
        self.ordering.leading = None;
        self.ordering.batch_deadline = None;
        self.ordering.batch_due = false;
        let waiting = self.ordering.cutter.cut();
        self.ordering.orphans.extend(waiting);
        for update in &mut self.ordering.updates {
            update.stage = Stage::Queued;
        }
        if self.ordering.leaving.is_some() {
            self.halt(super::core::Halt::Removed);
        }
    }

    pub(super) fn leader_changed(&mut self) {
        self.ordering.orphans_wait = false;
        for update in &mut self.ordering.updates {
            if matches!(update.stage, Stage::Forwarded(_)) {
                update.stage = Stage::Queued;
            }
        }
    }

    /// An entry was applied: if it is of our own term, so is everything that our predecessors left.
    pub(super) fn entry_applied(&mut self, term: u64) {
        if let Some(leading) = &mut self.ordering.leading
            && leading.term == term
        {
            leading.settled = true;
        }
    }

    fn begin_to_serve(&mut self) {
        let Some(leading) = &mut self.ordering.leading else {
            return;
        };
        if !leading.settled
            || leading.tip.is_some()
            || leading.pause
            || leading.membership.is_some()
            || self.catch_up.is_some()
        {
            return;
        }
        // A predecessor may have left between a configuration block and the change of members that it asks for.
        let members: Vec<u64> = self
            .group
            .status()
            .members
            .iter()
            .map(|member| member.id)
            .collect();
        let wanted = self.consenters.ids();
        let unfinished = wanted
            .iter()
            .find(|id| !members.contains(id))
            .map(|id| Membership::Add(*id))
            .or_else(|| {
                members
                    .iter()
                    .find(|id| !wanted.contains(id))
                    .map(|id| Membership::Remove(*id))
            });
        if let Some(change) = unfinished {
            self.change_members(change);
            return;
        }
        // Our own proposals of an earlier term that are not applied by now never will be.
        let lost: Vec<Item> = self
            .ordering
            .in_flight
            .drain(..)
            .flat_map(|block| block.items)
            .collect();
        for item in lost.into_iter().rev() {
            self.ordering.orphans.push_front(item);
        }
        for update in &mut self.ordering.updates {
            if update.stage == Stage::InFlight {
                update.stage = Stage::Queued;
            }
        }
        if let Some(leading) = &mut self.ordering.leading {
            leading.config_in_flight = false;
            leading.tip = Some(self.tip);
        }
        info!(target: LOG, channel = %self.name, node = self.raft_id,
            "Start accepting requests as Raft leader at block [{}]", self.tip.number);
    }

    /// Proposes a change of members, and again until it is applied.
    pub(super) fn change_members(&mut self, change: Membership) {
        let Some(leading) = &mut self.ordering.leading else {
            return;
        };
        leading.membership = Some(change);
        if let Err(error) = self.group.propose_membership(change, Bytes::new()) {
            debug!(target: LOG, channel = %self.name, node = self.raft_id,
                "The change of members is proposed again later: {error}");
        }
    }

    /// A change of members was applied.
    pub(super) fn members_changed(&mut self, change: Membership) {
        if let Some(leading) = &mut self.ordering.leading
            && leading.membership == Some(change)
        {
            leading.membership = None;
        }
        if change != Membership::Remove(self.raft_id) {
            return;
        }
        info!(target: LOG, channel = %self.name, node = self.raft_id,
            "This node is being removed from replica set");
        if self.ordering.leading.is_none() {
            self.halt(super::core::Halt::Removed);
            return;
        }
        // The others need not know yet that the change is decided; without us they might never get a majority of
        // the former members. So we stay until another leads, or until they have had time to hear of it.
        info!(target: LOG, channel = %self.name, node = self.raft_id,
            "Current leader is being removed from channel, attempt leadership transfer");
        self.ordering.leaving = Some(self.options.election_tick.saturating_mul(2));
        if let Some(successor) = self.successor(&[]) {
            self.group.transfer_leader(successor);
        }
    }

    /// Orders a normal message; we lead and are open.
    fn order(&mut self, mut item: Item) {
        if !self.is_allowed(&mut item) {
            return;
        }
        if item.ack == Ack::Enqueued {
            let ticket = item.ticket.take();
            self.reply(ticket, Ok(()));
        }
        let size = item.envelope.size();
        let mut batches = Vec::new();
        let waits = self
            .ordering
            .cutter
            .ordered(item, size, |batch| batches.push(batch));
        let now = self.now.monotonic;
        for batch in batches {
            let since = self.ordering.batch_since.take().unwrap_or(now);
            self.ordering.fill_durations.push(now.saturating_sub(since));
            self.ordering.batch_deadline = None;
            self.propose_batch(batch);
        }
        if waits && self.ordering.batch_deadline.is_none() {
            self.ordering.batch_since = Some(now);
            self.ordering.batch_deadline = Some(now + self.config.batch_timeout());
        }
    }

    /// Checks a message if nobody has under the current configuration. `false`: it is refused, and gone.
    fn is_allowed(&mut self, item: &mut Item) -> bool {
        let sequence = self.config.sequence();
        match item.validated_at {
            Some(earlier) if earlier >= sequence => return true,
            Some(earlier) => {
                warn!(target: LOG, channel = %self.name, node = self.raft_id,
                    "Normal message was validated against {earlier}, although current config seq has advanced ({sequence})");
            }
            None => {}
        }
        if let Err(refusal) =
            checks::normal(&self.config, &item.envelope, &self.rules, self.now.wall)
        {
            warn!(target: LOG, channel = %self.name, node = self.raft_id,
                "Failed to order message: bad normal message: {refusal}");
            self.gauges.proposal_failures += 1;
            self.reply(item.ticket.take(), Err(refusal.into()));
            return false;
        }
        item.validated_at = Some(sequence);
        true
    }

    pub(super) fn batch_timeout(&mut self) {
        self.ordering.batch_deadline = None;
        if self.is_open() {
            self.cut();
        } else {
            self.ordering.batch_due = true;
        }
    }

    fn cut(&mut self) {
        self.ordering.batch_deadline = None;
        self.ordering.batch_due = false;
        let batch = self.ordering.cutter.cut();
        if !batch.is_empty() {
            let now = self.now.monotonic;
            let since = self.ordering.batch_since.take().unwrap_or(now);
            self.ordering.fill_durations.push(now.saturating_sub(since));
            self.propose_batch(batch);
        }
    }

    fn propose_batch(&mut self, items: Vec<Item>) {
        let envelopes = items
            .iter()
            .map(|item| item.envelope.encoded().clone())
            .collect();
        if let Some(items) = self.propose(envelopes, items) {
            self.ordering.orphans.extend(items);
        }
    }

    /// Proposes the next block. Gives the items back if Raft does not take it; then we do not serve until the next
    /// tick, and begin again at the end of what is decided.
    fn propose(&mut self, envelopes: Vec<Bytes>, items: Vec<Item>) -> Option<Vec<Item>> {
        let Some(Leading { tip: Some(tip), .. }) = &mut self.ordering.leading else {
            return Some(items);
        };
        let before = *tip;
        let block = tip.propose(envelopes);
        let (number, hash) = (tip.number, tip.hash);
        info!(target: LOG, channel = %self.name, node = self.raft_id,
            "Created block [{number}], there are {} blocks in flight", self.ordering.in_flight.len());
        match self.group.propose(Bytes::from(block.encode_to_vec())) {
            Ok(()) => {
                self.ordering.in_flight.push_back(InFlight {
                    number,
                    hash,
                    items,
                });
                None
            }
            Err(error @ GroupError::TooLarge { .. }) => {
                // It will not get any smaller.
                *tip = before;
                self.gauges.proposal_failures += 1;
                warn!(target: LOG, channel = %self.name, node = self.raft_id,
                    "Failed to propose block [{number}] to raft: {error}");
                for item in items {
                    self.unavailable(item.ticket, &error.to_string());
                }
                None
            }
            Err(error) => {
                warn!(target: LOG, channel = %self.name, node = self.raft_id,
                    "Failed to propose block [{number}] to raft, and will try again: {error}");
                if let Some(leading) = &mut self.ordering.leading {
                    leading.tip = None;
                    leading.pause = true;
                }
                Some(items)
            }
        }
    }

    fn election_timeout(&self) -> Duration {
        self.options.tick_interval * self.options.election_tick
    }

    // ---- what has been decided ----------------------------------------------------------------------------------

    /// A block is in the chain: those who waited for its messages hear of it.
    pub(super) fn settle(&mut self, number: u64, hash: &[u8; 32], envelopes: &[Bytes]) {
        let ours = self
            .ordering
            .in_flight
            .front()
            .is_some_and(|block| block.number <= number);
        if ours && let Some(block) = self.ordering.in_flight.pop_front() {
            if block.number == number && block.hash == *hash {
                for item in block.items {
                    self.reply(item.ticket, Ok(()));
                }
                return;
            }
            let lost = std::mem::take(&mut self.ordering.in_flight);
            self.ordering.orphans.extend(block.items);
            self.ordering
                .orphans
                .extend(lost.into_iter().flat_map(|block| block.items));
        }
        if self.ordering.waiting.tickets.is_empty() {
            return;
        }
        for envelope in envelopes {
            if let Some(ticket) = self.ordering.waiting.settle(envelope) {
                self.reply(Some(ticket), Ok(()));
            }
        }
    }

    // ---- time ---------------------------------------------------------------------------------------------------

    pub(super) fn ordering_tick(&mut self) {
        let now = self.now.monotonic;
        if let Some(left) = self.ordering.leaving {
            if left == 0 {
                self.halt(super::core::Halt::Removed);
                return;
            }
            self.ordering.leaving = Some(left - 1);
        }
        self.ordering.orphans_wait = false;
        if let Some(leading) = &mut self.ordering.leading {
            leading.pause = false;
            if let Some(change) = leading.membership {
                self.change_members(change);
            }
        }
        self.handover_tick();
        for update in &mut self.ordering.updates {
            if let Stage::Forwarded(again) = update.stage
                && again <= now
            {
                update.stage = Stage::Queued;
            }
        }
        self.give_up(now);
    }

    /// Tells those who have waited too long that the fate of their message is unknown.
    fn give_up(&mut self, now: Duration) {
        for ticket in self.ordering.waiting.expired(now) {
            self.unavailable(Some(ticket), UNKNOWN);
        }
        let mut late = Vec::new();
        self.ordering.updates.retain_mut(|update| {
            let expired = update.deadline <= now && update.stage != Stage::InFlight;
            if expired {
                late.extend(update.tickets.drain(..).map(Some));
            }
            !expired
        });
        while self
            .ordering
            .orphans
            .front()
            .is_some_and(|item| item.deadline <= now)
        {
            if let Some(item) = self.ordering.orphans.pop_front() {
                warn!(target: LOG, channel = %self.name, node = self.raft_id,
                    "A message found no leader within {} s and is dropped", PATIENCE.as_secs());
                late.push(item.ticket);
            }
        }
        for ticket in late {
            self.unavailable(ticket, UNKNOWN);
        }
        if let Some(leading) = &mut self.ordering.leading
            && let Some(handover) = &leading.handover
            && !self
                .ordering
                .updates
                .iter()
                .any(|update| update.key == handover.update)
        {
            leading.handover = None;
        }
    }

    /// Nobody will be answered any more: answer now.
    pub(super) fn fail_everything(&mut self) {
        let ordering = &mut self.ordering;
        let mut tickets: Vec<Option<Ticket>> = Vec::new();
        tickets.extend(ordering.parked.drain(..).map(|(ticket, _)| Some(ticket)));
        for update in ordering.updates.drain(..) {
            tickets.extend(update.tickets.into_iter().map(Some));
        }
        tickets.extend(ordering.cutter.cut().into_iter().map(|item| item.ticket));
        tickets.extend(ordering.orphans.drain(..).map(|item| item.ticket));
        for block in ordering.in_flight.drain(..) {
            tickets.extend(block.items.into_iter().map(|item| item.ticket));
        }
        for forwarding in std::mem::take(&mut ordering.forwards).into_values() {
            if let Forwarding::Normal(item) = forwarding
                && item.ack == Ack::Enqueued
            {
                tickets.push(item.ticket);
            }
        }
        tickets.extend(
            std::mem::take(&mut ordering.waiting)
                .tickets
                .into_keys()
                .map(Some),
        );
        ordering.batch_deadline = None;
        for ticket in tickets {
            self.unavailable(ticket, STOPPED);
        }
    }
}
