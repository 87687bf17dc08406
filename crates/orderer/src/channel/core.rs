//! The protocol of one channel as a value that reacts.
//!
//! A [`Channel`] is told what happened ([`Channel::handle`]), what time it is, and asked what is to be done
//! ([`Channel::actions`]); it performs nothing itself, and the same events give the same actions. The driver carries
//! out the actions *in order*, and none of a later call before those of an earlier one: a block is appended before
//! its submitters hear of it, and blocks are made durable before the log forgets what they were made of.
//!
//! The loop of a driver:
//!
//! 1. wait until something happens or [`Channel::deadline`] passes; offer submissions only while
//!    [`Channel::accepts_submissions`];
//! 2. [`Channel::handle`] for every event at hand, [`Channel::handle_time`] when time has passed;
//! 3. [`Channel::actions`], and perform them; [`Event::Written`] follows when a write is durable.
//!
//! The chapters: this one has the state, time and the pump that turns what the Raft group is ready for into actions;
//! `ordering` is the way from a submission to a proposal, `applying` the way from a decided entry to a block and to
//! what a configuration block changes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quorate_consensus::{
    CommittedKind, Group, GroupError, GroupState, Ready, Role, Snapshot, Write, eraftpb,
};
use quorate_fabric::block;
use quorate_fabric::config::{ChannelConfig, ConfigError, CreatedChannel, raft_config};
use quorate_fabric::msp::Signer;
use quorate_fabric::raftpb;
use quorate_identity::UnixTime;
use quorate_runtime::entropy::Entropy;
use tracing::{debug, error, info, warn};

use super::activity::Activity;
use super::applying::CatchUp;
use super::consenters::{Consenters, ConsentersError, first_candidate};
use super::ordering::Ordering;
use super::{Submission, SubmitError};
use crate::assembly::Tip;
use crate::checks::Rules;
use crate::cluster::{ForwardError, Member};
use crate::store::StoredBlock;

/// The name under which operators know these log lines.
pub(super) const LOG: &str = "orderer.consensus.etcdraft";

/// At most this many ticks are made up for after the process was held up. More would look like a silent leader to a
/// member that has its messages still unread.
const MAX_TICKS_AT_ONCE: u32 = 1;

/// How often a suspicion of having been removed is repeated.
const SUSPICION_INTERVAL: Duration = Duration::from_secs(10);

/// How often a lost consensus log is reported while it is not given back.
const LOSS_REPORT_INTERVAL: Duration = Duration::from_secs(60);

/// What time it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Since some moment in the past; never goes back.
    pub monotonic: Duration,
    /// For certificates.
    pub wall: UnixTime,
}

/// What identifies a submission towards whoever waits for its answer. Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// What identifies a transaction on its way to the leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ForwardId(pub u64);

/// Something that happened.
#[derive(Debug)]
pub enum Event {
    /// Somebody submits; only while [`Channel::accepts_submissions`].
    Submit(Vec<(Ticket, Submission)>),
    /// Another consenter sent a consensus message.
    Message {
        /// Which, as the transport knows it.
        from: u64,
        /// The Raft message.
        payload: Bytes,
        /// What rides on it.
        metadata: Bytes,
    },
    /// The write of this number, and all before, are durable.
    Written(u64),
    /// A forwarded transaction was taken over by the leader or given to its connection, or could not be.
    Forwarded(ForwardId, Result<(), ForwardError>),
    /// The blocks asked for by [`Action::CatchUp`], verified, in order, possibly a part of them.
    Pulled(Vec<StoredBlock>),
    /// The configuration block of this number, which others have, does not name us.
    Evicted(u64),
    /// The newest configuration block that others have, of this number, names us.
    Belongs(u64),
}

/// Something to be done.
#[derive(Debug)]
pub enum Action {
    /// Append to the chain; readable at once.
    Append(StoredBlock),
    /// Create a channel, before the block is appended that follows: its first block is durable, and it serves, when the
    /// next action is performed. A channel that has blocks already is left alone: the action may come again after a
    /// crash, and two blocks may ask for the same channel.
    CreateChannel(Box<CreatedChannel>),
    /// Make all blocks appended so far durable, before the actions that follow.
    SyncBlocks,
    /// Give to the log. [`Event::Written`] with the number, if there is one, when it is durable.
    Persist {
        /// The number to answer with.
        number: Option<u64>,
        /// What to write.
        write: Write,
    },
    /// Keep as a file, for operators.
    SaveSnapshot(Snapshot),
    /// Send a consensus message, or lose it.
    Send {
        /// To whom.
        to: u64,
        /// The Raft message.
        payload: Bytes,
        /// What rides on it.
        metadata: Bytes,
    },
    /// Forward to the leader; [`Event::Forwarded`] must follow.
    Forward {
        /// To answer with.
        id: ForwardId,
        /// The leader.
        to: u64,
        /// The configuration sequence under which the message was checked; none if the leader has to.
        validated_at: Option<u64>,
        /// The envelope.
        envelope: Bytes,
    },
    /// Answer a submission.
    Reply(Ticket, Result<(), SubmitError>),
    /// Another leader, or none (0).
    Leader(u64),
    /// What the checks of messages depend on has changed.
    View(View),
    /// The transport's members have changed.
    Connect(Vec<Member>),
    /// Fetch the blocks `first..=last` from other orderers, verify them, and hand them in with [`Event::Pulled`]; keep
    /// trying.
    CatchUp {
        /// The next block of our chain.
        first: u64,
        /// The last one wanted.
        last: u64,
    },
    /// There was no leader for so long: ask the other orderers whether we still belong. [`Event::Evicted`] or
    /// [`Event::Belongs`] follows, if anybody knows.
    SuspectEviction(Duration),
    /// Stop: no further event is taken.
    Halt(Halt),
}

/// Why a channel stops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Halt {
    /// This orderer is no longer a consenter.
    Removed,
    /// It learnt so from others: the configuration block of this number does not name it.
    Evicted(u64),
    /// Others call it by another Raft id: it missed that it was removed and came back.
    WrongId(u64),
    /// Something that an operator has to look at.
    Failed(String),
}

/// What the checks of messages need to know of a channel.
#[derive(Debug, Clone)]
pub struct View {
    /// The current configuration.
    pub config: Arc<ChannelConfig>,
    /// The consenters' Raft ids, in the configuration's order.
    pub consenters: Arc<[u64]>,
    /// Those heard of.
    pub active: Arc<[u64]>,
}

/// What operators see of a channel; changes with every turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Gauges {
    /// How many consenters there are.
    pub cluster_size: u64,
    /// Whether we lead.
    pub is_leader: bool,
    /// How many consenters are heard of.
    pub active_nodes: u64,
    /// The newest block's number.
    pub committed_block_number: u64,
    /// The block of the newest snapshot.
    pub snapshot_block_number: u64,
    /// Changes of leader since the start.
    pub leader_changes: u64,
    /// Messages that could not be ordered, since the start.
    pub proposal_failures: u64,
    /// Normal messages taken from clients or other orderers, since the start.
    pub normal_proposals_received: u64,
    /// Configuration updates taken, since the start.
    pub config_proposals_received: u64,
}

/// With what a channel begins.
pub struct Setup {
    /// Our Raft id.
    pub raft_id: u64,
    /// The configuration in force at the chain's end.
    pub config: Arc<ChannelConfig>,
    /// The newest block.
    pub newest: Arc<StoredBlock>,
    /// The number of the configuration block in force.
    pub last_config: u64,
    /// Bytes of the blocks after the newest snapshot.
    pub bytes_since_snapshot: u64,
    /// The block of the newest snapshot, 0 if none.
    pub snapshot_block: u64,
    /// The Raft group: created, recovered or about to join.
    pub group: Group,
    /// Whether the group is born now, rather than recovered or joined.
    pub born: bool,
    /// Signs blocks and configuration envelopes.
    pub signer: Arc<dyn Signer>,
    /// Nonces and jitter.
    pub entropy: Entropy,
    /// How messages are checked again.
    pub rules: Rules,
    /// `Consensus.TickIntervalOverride`.
    pub tick_override: Option<Duration>,
    /// `Consensus.EvictionSuspicion`.
    pub eviction_suspicion: Duration,
}

/// Why a channel cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The configuration's Raft options are of no use.
    #[error("the Raft options of the channel's configuration cannot be used")]
    Options(#[from] ConfigError),
    /// Block metadata and configuration disagree.
    #[error("the consenters of the channel cannot be told")]
    Consenters(#[from] ConsentersError),
    /// The newest block's metadata cannot be read.
    #[error("the metadata of the newest block cannot be read")]
    Metadata(#[from] block::BlockError),
}

/// One channel of a consenter.
pub struct Channel {
    pub(super) name: String,
    pub(super) raft_id: u64,
    pub(super) config: Arc<ChannelConfig>,
    pub(super) options: raft_config::RaftOptions,
    pub(super) consenters: Consenters,
    pub(super) group: Group,
    pub(super) signer: Arc<dyn Signer>,
    pub(super) entropy: Entropy,
    pub(super) rules: Rules,

    pub(super) tip: Tip,
    pub(super) last_config: u64,
    /// What the newest block's metadata call `raft_index`; see `applying` for why it is not always its index.
    pub(super) raft_index: u64,
    pub(super) applied: u64,
    pub(super) bytes_since_snapshot: u64,
    pub(super) catch_up: Option<CatchUp>,
    /// Messages that promise what a write contains, until it is durable.
    promises: VecDeque<(u64, Vec<eraftpb::Message>)>,

    pub(super) role: Role,
    pub(super) ordering: Ordering,
    pub(super) activity: Activity,

    pub(super) now: Now,
    tick: Duration,
    next_tick: Duration,
    /// Ticks until this member stands for election, while it is the one picked at the birth of the group.
    campaign_in: Option<u32>,
    /// When a lost log may be spoken of again: each heartbeat tells of it.
    next_loss_report: Duration,
    leaderless_since: Option<Duration>,
    next_suspicion: Duration,
    eviction_suspicion: Duration,

    pub(super) gauges: Gauges,
    pub(super) halted: bool,
    pub(super) out: Vec<Action>,
}

impl Channel {
    /// Begins at `now`. The first [`Channel::actions`] tell the transport and the checks what they need.
    ///
    /// # Errors
    /// [`SetupError`].
    pub fn new(setup: Setup, now: Now) -> Result<Self, SetupError> {
        let config = setup.config;
        let options = raft_config::options(config.raft_metadata())?;
        let newest = setup.newest.block();
        let metadata = block::consenter_metadata(&newest)?;
        let consenters = Consenters::new(metadata.as_ref(), config.raft_metadata())?;
        let raft_index = metadata.map_or(0, |metadata| metadata.raft_index);
        let name = config.channel_id().to_owned();
        let tick = setup.tick_override.unwrap_or(options.tick_interval);
        let picked = setup.born && first_candidate(&name, consenters.count()) == setup.raft_id;
        if picked {
            info!(target: LOG, channel = %name, node = setup.raft_id, "This node is picked to start campaign");
        }
        let mut channel = Self {
            raft_id: setup.raft_id,
            tip: Tip::of(&setup.newest),
            last_config: setup.last_config,
            raft_index,
            applied: setup.group.status().applied,
            bytes_since_snapshot: setup.bytes_since_snapshot,
            catch_up: None,
            promises: VecDeque::new(),
            role: Role {
                leader: 0,
                state: GroupState::Follower,
            },
            ordering: Ordering::new(config.batch_size()),
            activity: Activity::default(),
            now,
            tick,
            next_tick: now.monotonic + tick,
            campaign_in: picked.then_some(options.heartbeat_tick.saturating_mul(2).max(1)),
            next_loss_report: Duration::ZERO,
            leaderless_since: Some(now.monotonic),
            next_suspicion: now.monotonic + setup.eviction_suspicion,
            eviction_suspicion: setup.eviction_suspicion,
            gauges: Gauges {
                committed_block_number: setup.newest.number(),
                snapshot_block_number: setup.snapshot_block,
                ..Gauges::default()
            },
            halted: false,
            out: Vec::new(),
            name,
            config,
            options,
            consenters,
            group: setup.group,
            signer: setup.signer,
            entropy: setup.entropy,
            rules: setup.rules,
        };
        channel
            .out
            .push(Action::Connect(channel.consenters.members()));
        channel.publish_view();
        // A snapshot may have been taken in before the blocks that it stands for.
        if let Some(snapshot) = channel.group.snapshot().cloned() {
            channel.take_in(&snapshot);
        }
        Ok(channel)
    }

    /// Our Raft id.
    pub fn raft_id(&self) -> u64 {
        self.raft_id
    }

    /// The leader's Raft id, 0 if none is known.
    pub fn leader(&self) -> u64 {
        self.role.leader
    }

    /// The chain's end, as decided and handed out for appending.
    pub fn tip(&self) -> Tip {
        self.tip
    }

    /// What operators see.
    pub fn gauges(&self) -> Gauges {
        Gauges {
            cluster_size: u64::try_from(self.consenters.count()).unwrap_or(u64::MAX),
            is_leader: self.role.state == GroupState::Leader,
            active_nodes: u64::try_from(self.activity.active().len()).unwrap_or(u64::MAX),
            committed_block_number: self.tip.number,
            ..self.gauges
        }
    }

    /// Whether it has stopped.
    pub fn is_halted(&self) -> bool {
        self.halted
    }

    /// When to call [`Channel::handle_time`] at the latest.
    pub fn deadline(&self) -> Duration {
        match self.ordering.batch_deadline {
            Some(batch) => batch.min(self.next_tick),
            None => self.next_tick,
        }
    }

    /// Takes an event. Nothing is done before [`Channel::actions`] says so.
    pub fn handle(&mut self, now: Now, event: Event) {
        self.now = now;
        if self.halted {
            return;
        }
        match event {
            Event::Submit(submissions) => {
                for (ticket, submission) in submissions {
                    self.submit(ticket, submission);
                }
            }
            Event::Message {
                from,
                payload,
                metadata,
            } => self.step(from, &payload, &metadata),
            Event::Written(number) => {
                self.group.written(number);
                while self
                    .promises
                    .front()
                    .is_some_and(|(promised, _)| *promised <= number)
                {
                    if let Some((_, messages)) = self.promises.pop_front() {
                        self.send(messages);
                    }
                }
            }
            Event::Forwarded(id, result) => self.forwarded(id, result),
            Event::Pulled(blocks) => self.pulled(blocks),
            Event::Evicted(number) => {
                // A leader may have been found while the others were asked.
                if self.role.leader == 0 {
                    warn!(target: LOG, channel = %self.name, node = self.raft_id,
                        "Detected our own eviction from the channel in block [{number}]");
                    self.halt(Halt::Evicted(number));
                }
            }
            Event::Belongs(number) => self.belongs(number),
        }
    }

    /// Lets time pass: ticks, batches whose time is up. Harmless when called early.
    pub fn handle_time(&mut self, now: Now) {
        self.now = now;
        if self.halted {
            return;
        }
        if self
            .ordering
            .batch_deadline
            .is_some_and(|deadline| deadline <= now.monotonic)
        {
            self.batch_timeout();
        }
        let mut ticks = 0;
        while self.next_tick <= now.monotonic {
            self.next_tick += self.tick;
            ticks += 1;
            if ticks <= MAX_TICKS_AT_ONCE {
                self.on_tick();
            }
        }
    }

    /// Everything that is to be done now, in order.
    pub fn actions(&mut self) -> Vec<Action> {
        self.pump();
        std::mem::take(&mut self.out)
    }

    fn on_tick(&mut self) {
        self.group.tick();
        if let Some(left) = self.campaign_in {
            self.campaign_in = match (self.role.leader, left) {
                (0, 1) => {
                    self.group.campaign();
                    Some(self.options.heartbeat_tick.saturating_mul(2).max(1))
                }
                (0, left) => Some(left - 1),
                _ => None,
            };
        }
        let status = self.group.status();
        let before = self.activity.active().to_vec();
        if let Some(active) = self.activity.observe(&status) {
            debug!(target: LOG, channel = %self.name, node = self.raft_id,
                "Current active nodes in cluster are: {}", listed(active));
        }
        if before != self.activity.active() {
            self.publish_view();
        }
        self.suspect();
        self.ordering_tick();
    }

    /// Whether so long a time without a leader means that we were removed and nobody could tell us.
    fn suspect(&mut self) {
        let Some(since) = self.leaderless_since else {
            return;
        };
        let now = self.now.monotonic;
        if now < self.next_suspicion {
            return;
        }
        let leaderless = now.saturating_sub(since);
        self.next_suspicion = now + SUSPICION_INTERVAL.min(self.eviction_suspicion);
        info!(target: LOG, channel = %self.name, node = self.raft_id,
            "Suspecting our own eviction from the channel for {}", super::go_duration(leaderless));
        self.out.push(Action::SuspectEviction(leaderless));
    }

    /// We belong to the channel; whether those who lead it know us and are known to us is another question. If they came
    /// while we were away, their messages are refused until we have the blocks that name them.
    fn belongs(&mut self, number: u64) {
        if self.role.leader != 0 {
            return;
        }
        info!(target: LOG, channel = %self.name, node = self.raft_id,
            "Cannot confirm our own eviction from the channel, our certificate was found in config block with sequence {number}");
        if number > self.tip.number && self.catch_up.is_none() {
            self.fetch_up_to(number);
        }
    }

    fn step(&mut self, from: u64, payload: &Bytes, metadata: &Bytes) {
        let message = match raftpb::decode_message(payload) {
            Ok(message) => message,
            Err(error) => {
                warn!(target: LOG, channel = %self.name, node = self.raft_id,
                    "Refused a consensus message from {from}: {error}");
                return;
            }
        };
        if message.from != from {
            warn!(target: LOG, channel = %self.name, node = self.raft_id,
                "Refused a consensus message of {} that {from} sent", message.from);
            return;
        }
        if message.to != self.raft_id {
            warn!(target: LOG, channel = %self.name, node = self.raft_id,
                "Received msg to {}, my ID is probably wrong due to out of date, cowardly halting", message.to);
            self.halt(Halt::WrongId(message.to));
            return;
        }
        match self.group.step(message) {
            Ok(()) => {}
            Err(lost @ GroupError::LogLost { .. }) => {
                if self.now.monotonic >= self.next_loss_report {
                    self.next_loss_report = self.now.monotonic + LOSS_REPORT_INTERVAL;
                    error!(target: LOG, channel = %self.name, node = self.raft_id,
                        "The consensus log of channel {} in Consensus.WALDir is not what it was: {lost}", self.name);
                }
            }
            Err(error) => debug!(target: LOG, channel = %self.name, node = self.raft_id,
                "A consensus message from {from} was not taken: {error}"),
        }
        if !metadata.is_empty() && from == self.role.leader {
            match self.activity.learn(metadata) {
                Ok(_) => self.publish_view(),
                Err(error) => warn!(target: LOG, channel = %self.name, node = self.raft_id,
                    "The leader's cluster metadata cannot be read: {error}"),
            }
        }
    }

    /// Turns what the group is ready for into actions until it is ready for nothing more.
    fn pump(&mut self) {
        while !self.halted {
            self.order_what_waits();
            match self.group.ready() {
                Ok(Some(ready)) => self.react(ready),
                Ok(None) => return,
                Err(error) => return self.group_failed(&error),
            }
        }
    }

    fn react(&mut self, ready: Ready) {
        if let Some(role) = ready.role {
            self.change_role(role);
        }
        self.send(ready.send);
        if let Some(snapshot) = &ready.snapshot {
            self.out.push(Action::SaveSnapshot(snapshot.clone()));
        }
        if let Some(write) = ready.write {
            self.out.push(Action::Persist {
                number: Some(ready.number),
                write,
            });
            self.promises
                .push_back((ready.number, ready.send_after_write));
        } else {
            self.send(ready.send_after_write);
        }
        if let Some(snapshot) = ready.snapshot {
            self.take_in(&snapshot);
        }
        for committed in ready.committed {
            if self.halted {
                return;
            }
            // Later blocks cannot be written before the missing ones. Changes of members cannot wait: Raft counts on
            // them from here on.
            match committed.kind {
                CommittedKind::Membership { .. } => self.apply(committed),
                CommittedKind::Data(_) | CommittedKind::Empty => self.hold(committed),
            }
        }
    }

    fn change_role(&mut self, role: Role) {
        let before = std::mem::replace(&mut self.role, role);
        if before.leader != role.leader {
            info!(target: LOG, channel = %self.name, node = self.raft_id,
                "Raft leader changed: {} -> {}", before.leader, role.leader);
            self.gauges.leader_changes += 1;
            self.out.push(Action::Leader(role.leader));
            if role.leader != 0 {
                self.hasten_waiting();
            }
        }
        if role.leader == 0 {
            if self.leaderless_since.is_none() {
                self.leaderless_since = Some(self.now.monotonic);
                self.next_suspicion = self.now.monotonic + self.eviction_suspicion;
                if self.consenters.count() <= 2 {
                    warn!(target: LOG, channel = %self.name, node = self.raft_id,
                        "No leader is present, cluster size is {}", self.consenters.count());
                }
            }
        } else {
            self.leaderless_since = None;
            self.campaign_in = None;
        }
        let led = before.state == GroupState::Leader;
        let leads = role.state == GroupState::Leader;
        if led && !leads {
            self.stop_leading();
        }
        if leads && !led {
            self.start_leading();
        }
        if before.leader != role.leader {
            self.leader_changed();
        }
    }

    pub(super) fn send(&mut self, messages: Vec<eraftpb::Message>) {
        for message in messages {
            let to = message.to;
            let snapshot = message.msg_type == eraftpb::MessageType::MsgSnapshot;
            let payload = Bytes::from(raftpb::encode_message(&message));
            let metadata = self.activity.take(to);
            self.out.push(Action::Send {
                to,
                payload,
                metadata,
            });
            if snapshot {
                // The transport never says whether something arrived. If it did not, the follower refuses what
                // comes next, and a snapshot is sent again.
                self.group.report_snapshot(to, true);
            }
        }
    }

    pub(super) fn publish_view(&mut self) {
        self.out.push(Action::View(View {
            config: self.config.clone(),
            consenters: self.consenters.ids().into(),
            active: self.activity.active().into(),
        }));
    }

    pub(super) fn halt(&mut self, halt: Halt) {
        if self.halted {
            return;
        }
        self.halted = true;
        self.fail_everything();
        self.out.push(Action::Halt(halt));
    }

    pub(super) fn fail(&mut self, reason: String) {
        error!(target: LOG, channel = %self.name, node = self.raft_id, "The channel stops: {reason}");
        self.halt(Halt::Failed(reason));
    }

    fn group_failed(&mut self, error: &GroupError) {
        self.fail(format!("the Raft group cannot go on: {error}"));
    }
}

/// Ids as Fabric's log lines have them: `[1 2 3]`.
pub(super) fn listed(ids: &[u64]) -> String {
    let ids: Vec<String> = ids.iter().map(u64::to_string).collect();
    format!("[{}]", ids.join(" "))
}

/// The last Raft index whose effects a chain with this newest block certainly has: where a recovered group goes on.
/// Some entries behind it may have been applied, too; they are recognised when they are given again.
///
/// # Errors
/// The block's metadata cannot be read.
pub fn applied_index(newest: &StoredBlock) -> Result<u64, block::BlockError> {
    Ok(block::consenter_metadata(&newest.block())?.map_or(0, |metadata| metadata.raft_index))
}
