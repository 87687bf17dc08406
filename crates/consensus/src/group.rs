//! One member's part in one replicated log.
//! [`Group`] says how it is driven and what it does about members that forgot; start there. [`door`] refuses what
//! makes no sense, [`store`] is what the raft library sees of the log, [`values`] are what goes in and comes out.

mod door;
mod membership;
mod store;
mod values;

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use raft::eraftpb::{Entry, EntryType, HardState, Message, MessageType};
use raft::{Config, RawNode, SnapshotStatus, StateRole};

pub use self::door::{MAX_ENTRY_BYTES, MAX_MEMBERS};
pub use self::membership::MAX_MEMBERSHIP_CONTEXT_BYTES;
pub use self::store::MAX_CACHED_BYTES;
use self::store::Store;
pub use self::values::{
    Committed, CommittedKind, GroupError, GroupState, Member, Membership, Options, Ready, Role,
    Snapshot, Status,
};
use crate::GroupId;
use crate::log::{Compaction, Entries, LogError, Recovered, Standing, Write};
use crate::logger::{LOG_TARGET, logger};

/// Entries that stay behind a snapshot for followers that are only a little late; more of them are sent the snapshot.
pub const CATCH_UP_ENTRIES: u64 = 4;

/// For how many election timeouts a member without a past stays out of elections, unless it catches up earlier.
pub const JOIN_SILENCE: usize = 2;

/// Bytes of committed entries in one [`Ready`]; a single larger entry comes alone.
pub const MAX_COMMITTED_BYTES: u64 = 16 << 20;

/// One member of one group.
///
/// # The loop
///
/// Give the group what happens: [`Group::tick`], [`Group::step`], [`Group::propose`], [`Group::written`] …; after
/// each, take [`Group::ready`] until it answers `None`, and do what it says:
///
/// 1. `send` leaves at once. A leader's entries are on their way to the others before they are on its own disk.
/// 2. `write` goes to the [`Log`](crate::Log). When it is durable: [`Group::written`], then `send_after_write`: these
///    messages promise what was written. Writes of one group become durable in order.
/// 3. `snapshot`, then `committed`, are applied in order. They may be applied before `write` is durable.
///    [`Group::apply_membership`] for every change of members, [`Group::applied`] when done.
///
/// A group does not know time: how long a tick is, is the owner's business. It does not do I/O either, except that
/// entries which left its memory are read back through [`Entries`].
///
/// # Members that forgot
///
/// A member's vote and its confirmation of an entry are promises. One whose log is gone must not make promises that
/// contradict those it forgot. Every group therefore begins by writing into the log that it exists; who finds its
/// group missing there, although the group had begun, uses [`Group::forgotten`]: it follows and replicates, but takes
/// no part in elections until it holds a committed entry of the present leader's own term, that is, everything that
/// was ever committed before. A member that joins ([`Group::join`]) and one that lost everything look the same from
/// inside; it stays out of elections for [`JOIN_SILENCE`] election timeouts or until it has caught up. A leader that
/// counts on entries which we do not have is the proof of a loss: [`GroupError::LogLost`]. The leader is told, and sends
/// them again.
pub struct Group {
    id: GroupId,
    options: Options,
    node: RawNode<Store>,
    standing: Standing,
    /// The log does not know the present standing yet.
    standing_changed: bool,
    /// Ticks of silence that are left to a member that joins.
    silence: usize,
    /// What the group was born with and has to write first.
    birth: Option<Write>,
    /// The number of the latest ready.
    number: u64,
    /// Writes that are not durable yet.
    unwritten: VecDeque<Unwritten>,
    /// Campaign as soon as the writes that stand in the way are durable.
    campaign_later: bool,
    /// The last index whose effects the owner had at the beginning.
    applied: u64,
    /// The last index that was given to the owner.
    given: u64,
    /// The last index that the owner has applied since.
    confirmed: u64,
    /// Changes of members that were given to the owner and not yet come back.
    changes: VecDeque<(u64, Membership)>,
    /// Members from an index on, since the newest snapshot: ascending, never empty.
    history: VecDeque<(u64, Vec<u64>)>,
    reported: Role,
    /// Where election timeouts come from when they have to be repeatable, and how many roles there have been.
    seed: Option<(u64, u64)>,
    failure: Option<LogError>,
}

struct Unwritten {
    number: u64,
    /// The raft library's number of the same ready; none for what it does not know of.
    raft: Option<u64>,
    /// The last entry of this write that no later one replaced.
    last: u64,
    /// The index of the snapshot in it.
    snapshot: Option<u64>,
}

impl Group {
    /// A member of a group that is born now with these members; every one of them calls this with the same list in
    /// the same order. They all begin with the same log: one committed change of members for each, in term 1.
    pub fn create(
        id: GroupId,
        options: Options,
        members: &[u64],
        entries: Arc<dyn Entries>,
    ) -> Result<Self, GroupError> {
        let mut sorted = members.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        let refused = |reason| {
            Err(GroupError::Members {
                members: members.to_vec(),
                reason,
            })
        };
        if sorted.len() != members.len() || sorted.first() == Some(&0) {
            return refused("a member is named twice or is 0");
        }
        if sorted.is_empty() || sorted.len() > MAX_MEMBERS {
            return refused("there is none or too many");
        }
        let mut born = Vec::with_capacity(members.len());
        for (&member, index) in members.iter().zip(1..) {
            let mut entry = Entry {
                term: 1,
                index,
                ..Default::default()
            };
            entry.set_entry_type(EntryType::EntryConfChange);
            entry.data = membership::encode(Membership::Add(member), &[]);
            born.push(entry);
        }
        let hard_state = HardState {
            term: 1,
            commit: members.len() as u64,
            ..Default::default()
        };
        let mut store = Store::empty(id, entries);
        store.append(&born);
        store.set_hard_state(hard_state.clone());
        store.set_members(sorted);
        let birth = Write {
            standing: Some(Standing::Whole),
            entries: born,
            hard_state: Some(hard_state),
            ..Default::default()
        };
        Self::start(id, options, store, Standing::Whole, 0, Some(birth))
    }

    /// A member of a group that all members begin anew where they stand, because every one of them has lost its log. All
    /// have to begin with the same snapshot; its term is not that of former days, of which nothing is left.
    pub fn continued(
        id: GroupId,
        options: Options,
        snapshot: Snapshot,
        entries: Arc<dyn Entries>,
    ) -> Result<Self, GroupError> {
        let (index, term) = (snapshot.index, snapshot.term);
        let hard_state = HardState {
            term,
            commit: index,
            ..Default::default()
        };
        let mut members = snapshot.members.clone();
        members.sort_unstable();
        let begin = Recovered {
            group: id,
            standing: Standing::Whole,
            hard_state: hard_state.clone(),
            snapshot: Some(snapshot.clone()),
            first: index + 1,
            before: term,
            last: index,
            terms: VecDeque::new(),
            changes: Vec::new(),
        };
        let birth = Write {
            standing: Some(Standing::Whole),
            install: Some(snapshot),
            hard_state: Some(hard_state),
            ..Default::default()
        };
        let store = Store::recovered(begin, members, entries);
        Self::start(id, options, store, Standing::Whole, index, Some(birth))
    }

    /// A member of a group that exists elsewhere; a leader will send it what it lacks.
    pub fn join(
        id: GroupId,
        options: Options,
        entries: Arc<dyn Entries>,
    ) -> Result<Self, GroupError> {
        let birth = Write {
            standing: Some(Standing::Joining),
            ..Default::default()
        };
        Self::start(
            id,
            options,
            Store::empty(id, entries),
            Standing::Joining,
            0,
            Some(birth),
        )
    }

    /// A member whose log is gone although it had begun to take part: follows, but neither votes nor campaigns until
    /// a leader has given it back everything that it may have confirmed.
    pub fn forgotten(
        id: GroupId,
        options: Options,
        entries: Arc<dyn Entries>,
    ) -> Result<Self, GroupError> {
        let birth = Write {
            standing: Some(Standing::Forgotten),
            ..Default::default()
        };
        Self::start(
            id,
            options,
            Store::empty(id, entries),
            Standing::Forgotten,
            0,
            Some(birth),
        )
    }

    /// A member that continues where its log ends. `applied`: the last index whose effects the owner still has.
    ///
    /// Entries up to `applied` may be given once more, when the log knows of fewer commits than the owner: data is to
    /// be skipped, membership to be applied.
    pub fn recover(
        recovered: Recovered,
        options: Options,
        applied: u64,
        entries: Arc<dyn Entries>,
    ) -> Result<Self, GroupError> {
        let mut recovered = recovered;
        if let Some(what) = recovered.contradiction() {
            return Err(GroupError::Contradiction {
                group: recovered.group,
                what,
            });
        }
        // Entries behind what is known to be committed may be others than those whose effects the owner has (it may
        // have them from elsewhere): only a leader can tell.
        let snapshot = recovered.snapshot.as_ref();
        let base = snapshot.map_or(0, |snapshot| snapshot.index);
        recovered.hard_state.commit = recovered.hard_state.commit.clamp(base, recovered.last);
        let start = applied.min(recovered.hard_state.commit).max(base);
        let mut history =
            VecDeque::from([(base, snapshot.map_or_else(Vec::new, |s| s.members.clone()))]);
        for &(index, change) in recovered
            .changes
            .iter()
            .filter(|&&(index, _)| base < index && index <= start)
        {
            let mut members = history
                .back()
                .map_or_else(Vec::new, |(_, members)| members.clone());
            membership::apply(&mut members, change);
            history.push_back((index, members));
        }
        let members = history
            .back()
            .map_or_else(Vec::new, |(_, members)| members.clone());
        let (id, standing) = (recovered.group, recovered.standing);
        let store = Store::recovered(recovered, members, entries);
        let mut group = Self::start(id, options, store, standing, start, None)?;
        group.history = history;
        group.applied = applied;
        Ok(group)
    }

    fn start(
        id: GroupId,
        options: Options,
        store: Store,
        standing: Standing,
        applied: u64,
        birth: Option<Write>,
    ) -> Result<Self, GroupError> {
        let config = Config {
            id: options.id,
            election_tick: options.election_tick,
            heartbeat_tick: options.heartbeat_tick,
            applied,
            max_size_per_msg: options.max_size_per_message,
            max_inflight_msgs: options.max_inflight,
            max_committed_size_per_ready: MAX_COMMITTED_BYTES,
            check_quorum: true,
            pre_vote: true,
            ..Default::default()
        };
        config.validate().map_err(GroupError::Options)?;
        let history = VecDeque::from([(applied, store.members().to_vec())]);
        let node = RawNode::new(&config, store, &logger(&options.name, options.id))
            .map_err(GroupError::Options)?;
        Ok(Self {
            id,
            silence: JOIN_SILENCE * options.election_tick,
            options,
            node,
            standing,
            standing_changed: false,
            birth,
            number: 0,
            unwritten: VecDeque::new(),
            campaign_later: false,
            applied,
            given: applied,
            confirmed: applied,
            changes: VecDeque::new(),
            history,
            reported: Role {
                leader: 0,
                state: GroupState::Follower,
            },
            seed: None,
            failure: None,
        })
    }

    /// Draws election timeouts from a seed instead of the operating system, for tests that have to be repeatable.
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = Some((seed, 0));
        self.repeatable();
        self
    }

    /// The group's identity on this disk.
    pub fn id(&self) -> GroupId {
        self.id
    }

    /// Lets one tick pass.
    pub fn tick(&mut self) {
        if self.node.raft.state != StateRole::Leader {
            self.listen();
            if self.standing == Standing::Joining {
                self.silence = self.silence.saturating_sub(1);
                if self.silence == 0 {
                    // Nobody is there to learn from: then every vote is needed.
                    self.stand(Standing::Whole);
                }
            }
            if self.held() || self.silent() {
                self.miss_leader();
                return;
            }
        }
        self.node.tick();
        self.repeatable();
    }

    /// A tick of a member that may not campaign: the library would notice by campaigning that the leader is gone.
    fn miss_leader(&mut self) {
        let raft = &mut self.node.raft;
        if raft.leader_id == 0 {
            return;
        }
        raft.election_elapsed += 1;
        if raft.election_elapsed >= 2 * self.options.election_tick {
            let term = raft.term;
            raft.become_follower(term, 0);
            self.repeatable();
        }
    }

    /// Stands for election now; does nothing where the member leads already or must not be elected.
    pub fn campaign(&mut self) {
        if self.silent() {
            return;
        }
        if self.held() {
            self.campaign_later = true;
            return;
        }
        // It refuses by a log line.
        let _ = self.node.campaign();
        self.repeatable();
    }

    /// Takes a message of another member. An error concerns the message, unless it is [`GroupError::LogLost`]: then
    /// it concerns this member, and somebody should be told.
    pub fn step(&mut self, mut message: Message) -> Result<(), GroupError> {
        let (kind, from) = (message.get_msg_type(), message.from);
        let refused = |reason| {
            Err(GroupError::Refused {
                from,
                kind: format!("{kind:?}"),
                reason,
            })
        };
        if let Err(reason) = door::examine(self.options.id, &message) {
            return refused(reason);
        }
        // Fields that other implementations do not know.
        message.request_snapshot = 0;
        message.commit_term = 0;
        message.priority = 0;
        message.deprecated_priority = 0;

        let raft = &self.node.raft;
        let (leads, last) = (raft.state == StateRole::Leader, raft.raft_log.last_index());
        match kind {
            MessageType::MsgHeartbeat if message.term >= raft.term && message.commit > last => {
                let lost = GroupError::LogLost {
                    id: self.options.id,
                    leader: from,
                    confirmed: message.commit,
                    last,
                };
                self.stand(Standing::Forgotten);
                self.admit_loss(message, last);
                return Err(lost);
            }
            MessageType::MsgAppendResponse
                if leads && message.reject && message.term == raft.term =>
            {
                self.believe_loss(&message);
            }
            MessageType::MsgAppendResponse
                if leads
                    && !message.reject
                    && message.term == raft.term
                    && message.index > last =>
            {
                return refused("it confirms entries that do not exist");
            }
            // On its way through a follower the library would panic.
            MessageType::MsgTransferLeader if !leads => return Ok(()),
            MessageType::MsgTimeoutNow if self.held() || self.silent() => return Ok(()),
            MessageType::MsgRequestVote | MessageType::MsgRequestPreVote if self.silent() => {
                tracing::info!(
                    target: LOG_TARGET,
                    channel = self.options.name,
                    node = self.options.id,
                    "ignored {kind:?} from {from}: this member does not know yet what it may have promised"
                );
                return Ok(());
            }
            // Nobody answers a request that has not left: with entries still to be written, it has not.
            MessageType::MsgRequestVoteResponse | MessageType::MsgRequestPreVoteResponse
                if self.owes_entries() || !raft.promotable() =>
            {
                return Ok(());
            }
            _ => {}
        }
        let stepped = self.node.step(message);
        self.listen();
        self.repeatable();
        match stepped {
            Ok(()) => Ok(()),
            Err(raft::Error::StepPeerNotFound) => Err(GroupError::NotMember { from }),
            Err(_) => refused("the raft library has no use for it"),
        }
    }

    /// Proposes an entry. Leader only: nothing is forwarded. Whether it is committed is seen among the committed
    /// entries; a new leader may drop it.
    pub fn propose(&mut self, data: Bytes) -> Result<(), GroupError> {
        self.append(Entry {
            data,
            ..Default::default()
        })
    }

    /// Proposes a change of members. Leader only; refused while another change is not yet applied.
    pub fn propose_membership(
        &mut self,
        change: Membership,
        context: Bytes,
    ) -> Result<(), GroupError> {
        self.leading()?;
        if self.node.raft.has_pending_conf() {
            return Err(GroupError::MembershipPending);
        }
        if let Membership::Remove(member) = change
            && self.node.store().members() == [member]
        {
            return Err(GroupError::LastMember(member));
        }
        let mut entry = Entry::default();
        entry.set_entry_type(EntryType::EntryConfChange);
        entry.data = membership::encode(change, &context);
        self.append(entry)
    }

    fn append(&mut self, entry: Entry) -> Result<(), GroupError> {
        self.leading()?;
        if entry.data.len() > MAX_ENTRY_BYTES {
            return Err(GroupError::TooLarge {
                bytes: entry.data.len(),
            });
        }
        let mut message = Message {
            from: self.options.id,
            ..Default::default()
        };
        message.set_msg_type(MessageType::MsgPropose);
        message.set_entries(vec![entry].into());
        self.node
            .step(message)
            .map_err(|_| GroupError::Transferring)
    }

    fn leading(&self) -> Result<(), GroupError> {
        if self.node.raft.state == StateRole::Leader {
            Ok(())
        } else {
            Err(GroupError::NotLeader {
                id: self.options.id,
                leader: self.node.raft.leader_id,
            })
        }
    }

    /// Asks the leader (this member or another) to hand over to `to`. Whether it does is seen in the role.
    pub fn transfer_leader(&mut self, to: u64) {
        self.node.transfer_leader(to);
    }

    /// A message to `to` could not be sent.
    pub fn report_unreachable(&mut self, to: u64) {
        self.node.report_unreachable(to);
    }

    /// A snapshot message to `to` was sent (`true`) or could not be (`false`). Must be called for each of them, or
    /// nothing more is sent to that member.
    pub fn report_snapshot(&mut self, to: u64, sent: bool) {
        self.node.report_snapshot(
            to,
            if sent {
                SnapshotStatus::Finish
            } else {
                SnapshotStatus::Failure
            },
        );
    }

    /// What has to be done now, if anything. Call after each input until it answers `None`.
    ///
    /// An error is final: entries could not be read back, and the group must not be used any more.
    pub fn ready(&mut self) -> Result<Option<Ready>, GroupError> {
        self.check()?;
        if let Some(birth) = self.birth.take() {
            let last = birth.entries.last().map_or(0, |entry| entry.index);
            let number = self.number();
            self.unwritten.push_back(Unwritten {
                number,
                raft: None,
                last,
                snapshot: None,
            });
            return Ok(Some(Ready {
                number,
                write: Some(birth),
                ..Default::default()
            }));
        }
        // Before its beginning is durable a group has no existence that it could promise or apply anything by.
        let unborn = self
            .unwritten
            .front()
            .is_some_and(|write| write.raft.is_none());
        if unborn || (!self.node.has_ready() && !self.standing_changed) {
            return Ok(None);
        }
        let mut raft = self.node.ready();
        // Committed entries were read for it.
        self.check()?;

        let mut ready = Ready {
            number: self.number(),
            ..Default::default()
        };
        let installed = (!raft.snapshot().is_empty()).then(|| own_snapshot(raft.snapshot()));
        let entries = raft.take_entries();
        ready.committed = raft
            .take_committed_entries()
            .into_iter()
            .map(committed)
            .collect::<Result<_, _>>()
            .map_err(|reason| GroupError::Refused {
                from: self.options.id,
                kind: "committed entry".to_owned(),
                reason,
            })?;
        let known_changes = self.changes.len();
        for entry in &ready.committed {
            self.given = entry.index;
            if let CommittedKind::Membership { change, .. } = &entry.kind {
                self.changes.push_back((entry.index, *change));
            }
        }
        // That a new set of members is in force should be known after a restart: it is worth a write. Otherwise an
        // advance of the commit index alone is not: it is found out again.
        let must_write =
            raft.must_sync() || self.standing_changed || self.changes.len() > known_changes;
        ready.send = outgoing(raft.take_messages());
        ready.send_after_write = outgoing(raft.take_persisted_messages());

        if let Some(snapshot) = &installed {
            self.node.mut_store().install(snapshot.clone());
            self.unwritten.iter_mut().for_each(|write| write.last = 0);
            // Changes that the owner has yet to bring back are contained in it.
            self.history = VecDeque::from([(snapshot.index, snapshot.members.clone())]);
            self.given = snapshot.index;
        }
        if let Some(first) = entries.first() {
            self.unwritten
                .iter_mut()
                .for_each(|write| write.last = write.last.min(first.index - 1));
        }
        self.node.mut_store().append(&entries);
        let number = raft.number();
        self.node.advance_append_async(raft);

        if must_write {
            self.unwritten.push_back(Unwritten {
                number: ready.number,
                raft: Some(number),
                last: entries.last().map_or(0, |entry| entry.index),
                snapshot: installed.as_ref().map(|snapshot| snapshot.index),
            });
            ready.write = Some(Write {
                standing: std::mem::take(&mut self.standing_changed).then_some(self.standing),
                install: installed.clone(),
                entries,
                hard_state: Some(self.node.raft.hard_state()),
                compact: None,
            });
        } else if self.unwritten.is_empty() {
            self.node.on_persist_ready(number);
            ready.send.append(&mut ready.send_after_write);
        } else if !ready.send_after_write.is_empty() {
            // They may promise what an earlier write contains.
            self.unwritten.push_back(Unwritten {
                number: ready.number,
                raft: Some(number),
                last: 0,
                snapshot: None,
            });
            ready.write = Some(Write::default());
        }
        ready.snapshot = installed;
        let role = self.role();
        ready.role = (role != self.reported).then_some(role);
        self.reported = role;
        Ok(Some(ready))
    }

    /// The write of the ready of this number, and all before it, are durable.
    pub fn written(&mut self, number: u64) {
        let (mut raft, mut last, mut installed) = (None, 0, None);
        while let Some(write) = self.unwritten.pop_front_if(|write| write.number <= number) {
            raft = write.raft.or(raft);
            installed = write.snapshot.or(installed);
            // What an installed snapshot put away does not come back.
            last = if write.snapshot.is_some() {
                write.last
            } else {
                last.max(write.last)
            };
        }
        if let Some(number) = raft {
            self.node.on_persist_ready(number);
        }
        self.node.mut_store().durable_to(last);
        if let Some(index) = installed {
            // The library took over the snapshot's members when it came, and has nothing older to apply.
            self.applied_by_raft(index);
        }
        self.applied_by_raft(self.confirmed);
        self.listen();
        if self.campaign_later && !self.held() {
            self.campaign_later = false;
            self.campaign();
        }
    }

    /// Everything up to `index` was applied.
    pub fn applied(&mut self, index: u64) {
        self.confirmed = self.confirmed.max(index.min(self.given));
        self.applied_by_raft(self.confirmed);
    }

    fn applied_by_raft(&mut self, index: u64) {
        let log = &self.node.raft.raft_log;
        let index = index.min(log.committed).min(log.persisted);
        if index > log.applied {
            self.node.advance_apply_to(index);
        }
    }

    /// Applies a committed change; answers the members from now on, in ascending order.
    ///
    /// # Panics
    ///
    /// When it is given something else than the changes of the readies in their order: a member that goes on with
    /// other members than the others have would do damage.
    pub fn apply_membership(&mut self, change: Membership) -> Vec<u64> {
        let (index, expected) = self
            .changes
            .pop_front()
            .expect("only committed changes are applied, each once");
        assert_eq!(
            change, expected,
            "committed changes are applied in their order"
        );
        if self
            .history
            .front()
            .is_some_and(|&(contained, _)| index <= contained)
        {
            return self.node.store().members().to_vec();
        }
        match self.node.apply_conf_change(&membership::to_raft(change)) {
            Ok(state) => {
                let mut members = state.voters;
                members.sort_unstable();
                self.node.mut_store().set_members(members.clone());
                self.history.push_back((index, members));
            }
            Err(error) => tracing::error!(
                target: LOG_TARGET,
                channel = self.options.name,
                node = self.options.id,
                "the committed change {change:?} at {index} has no effect: {error}"
            ),
        }
        let members = self.node.store().members().to_vec();
        if self.node.raft.state != StateRole::Follower && !members.contains(&self.options.id) {
            // The library would go on leading, or be elected by, a group that it does not belong to, and trip.
            let term = self.node.raft.term;
            self.node.raft.become_follower(term, 0);
            self.repeatable();
        }
        members
    }

    /// Replaces the entries up to `index` (which must be applied) by `data`, keeping [`CATCH_UP_ENTRIES`] for
    /// followers that are only a little behind. The write goes to the log like a ready's, before the next ready is
    /// asked for; nobody has to be told when it is durable.
    ///
    /// A snapshot taken right after a change of members lets a new member begin with the members of today.
    pub fn take_snapshot(&mut self, index: u64, data: Bytes) -> Result<Write, GroupError> {
        let (applied, store) = (self.node.raft.raft_log.applied, self.node.store());
        let previous = store.newest_snapshot().map_or(0, |snapshot| snapshot.index);
        let refused = GroupError::SnapshotIndex {
            index,
            applied,
            previous,
        };
        if data.len() > MAX_ENTRY_BYTES {
            return Err(GroupError::TooLarge { bytes: data.len() });
        }
        if index > applied || index <= previous {
            return Err(refused);
        }
        let term = store.term_of(index).ok_or(refused)?;
        while self
            .history
            .get(1)
            .is_some_and(|&(since, _)| since <= index)
        {
            self.history.pop_front();
        }
        let (since, members) = self
            .history
            .front_mut()
            .expect("there are always members, if only none");
        *since = index;
        let snapshot = Snapshot {
            index,
            term,
            members: members.clone(),
            data,
        };
        let store = self.node.mut_store();
        store.compact(
            snapshot.clone(),
            (index + 1).saturating_sub(CATCH_UP_ENTRIES),
        );
        let compact = Compaction {
            snapshot,
            keep_from: store.first(),
            before: store.before(),
        };
        Ok(Write {
            compact: Some(compact),
            ..Default::default()
        })
    }

    /// The newest snapshot, if there is one.
    pub fn snapshot(&self) -> Option<&Snapshot> {
        self.node.store().newest_snapshot()
    }

    /// Where the group stands.
    pub fn status(&self) -> Status {
        let (raft, store) = (&self.node.raft, self.node.store());
        let leads = raft.state == StateRole::Leader;
        let member = |&id: &u64| match raft.prs().get(id).filter(|_| leads) {
            Some(progress) => Member {
                id,
                matched: progress.matched,
                next: progress.next_idx,
                recent_active: progress.recent_active || id == self.options.id,
            },
            None => Member {
                id,
                matched: 0,
                next: 0,
                recent_active: id == self.options.id,
            },
        };
        Status {
            id: self.options.id,
            role: self.role(),
            term: raft.term,
            commit: raft.raft_log.committed,
            applied: self.applied.max(self.confirmed),
            first: store.first(),
            last: raft.raft_log.last_index(),
            members: store.members().iter().map(member).collect(),
        }
    }

    /// Whether this member knows what it has promised. If not, it takes no part in elections for now.
    pub fn remembers(&self) -> bool {
        !self.silent()
    }

    fn role(&self) -> Role {
        let raft = &self.node.raft;
        Role {
            leader: raft.leader_id,
            state: match raft.state {
                StateRole::Follower => GroupState::Follower,
                StateRole::PreCandidate => GroupState::PreCandidate,
                StateRole::Candidate => GroupState::Candidate,
                StateRole::Leader => GroupState::Leader,
            },
        }
    }

    fn number(&mut self) -> u64 {
        self.number += 1;
        self.number
    }

    fn check(&mut self) -> Result<(), GroupError> {
        if self.failure.is_none() {
            self.failure = self.node.store().take_failure();
        }
        self.failure
            .clone()
            .map_or(Ok(()), |failure| Err(GroupError::Log(failure)))
    }

    /// Elections have to wait: the library assumes that everything is on disk before it campaigns. For several
    /// members that comes by itself, since requests for votes wait for the disk; a single one elects itself at once.
    /// And before a snapshot is in place the library looks for entries that the snapshot has replaced.
    fn held(&self) -> bool {
        // The library's own view: a snapshot changes it before anybody has seen it.
        let voters = self.node.raft.prs().conf().voters().ids();
        let alone = voters.iter().all(|id| id == self.options.id);
        let owes = self.birth.is_some() || !self.unwritten.is_empty() || self.owes_entries();
        (alone && owes) || self.unwritten.iter().any(|write| write.snapshot.is_some())
    }

    /// Whether there are entries that are not durable.
    fn owes_entries(&self) -> bool {
        let log = &self.node.raft.raft_log;
        log.persisted != log.last_index()
            || self
                .unwritten
                .iter()
                .any(|write| write.last > 0 || write.snapshot.is_some())
    }

    /// Whether the member stays out of elections because it may have forgotten what it promised.
    fn silent(&self) -> bool {
        match self.standing {
            Standing::Whole => false,
            Standing::Joining => self.silence > 0,
            Standing::Forgotten => true,
        }
    }

    /// A tick passed or something came in: a member that forgot may have caught up.
    fn listen(&mut self) {
        if self.standing == Standing::Whole {
            return;
        }
        let raft = &self.node.raft;
        // Whatever was committed in earlier terms stands before an entry of this leader's own term.
        if raft.leader_id != 0 && raft.raft_log.committed > 0 && raft.commit_to_current_term() {
            self.stand(Standing::Whole);
        }
    }

    /// Takes a leader's heartbeat without what it says of our log, and tells the leader where our log ends. Leaders of
    /// other implementations do not believe that: for them it is an old message.
    fn admit_loss(&mut self, mut heartbeat: Message, last: u64) {
        let mut loss = Message {
            to: heartbeat.from,
            index: heartbeat.commit,
            reject: true,
            reject_hint: last,
            ..Default::default()
        };
        loss.set_msg_type(MessageType::MsgAppendResponse);
        // What stands in our log behind this was never compared with the leader's.
        heartbeat.commit = self.node.raft.raft_log.committed;
        let _ = self.node.step(heartbeat);
        self.repeatable();
        loss.from = self.options.id;
        loss.term = self.node.raft.term;
        self.node.raft.msgs.push(loss);
    }

    /// A member whose log ends before what it once confirmed gets everything again. What was committed with its
    /// confirmation stays committed: the leader never takes that back, and the member takes no part in electing another
    /// before it has caught up. A belated refusal has the same effect, and costs a few messages.
    fn believe_loss(&mut self, refusal: &Message) {
        let Some(progress) = self.node.raft.mut_prs().get_mut(refusal.from) else {
            return;
        };
        if refusal.reject_hint >= progress.matched {
            return;
        }
        progress.matched = 0;
        progress.become_probe();
        progress.next_idx = refusal.reject_hint + 1;
    }

    fn stand(&mut self, standing: Standing) {
        if self.standing != standing {
            self.standing = standing;
            self.standing_changed = true;
        }
    }

    /// With a seed, replaces the election timeout that the library drew: by a number that depends on nothing but the
    /// seed and the state.
    fn repeatable(&mut self) {
        let role = self.role();
        let raft = &mut self.node.raft;
        let Some((seed, roles)) = &mut self.seed else {
            return;
        };
        if role != self.reported {
            *roles += 1;
        }
        let mut mixed = *seed ^ raft.id.rotate_left(32) ^ raft.term.rotate_left(16) ^ *roles;
        for _ in 0..2 {
            mixed = (mixed ^ (mixed >> 31)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
        let ticks = self.options.election_tick;
        raft.set_randomized_election_timeout(ticks + (mixed >> 33) as usize % ticks);
    }
}

fn own_snapshot(snapshot: &raft::eraftpb::Snapshot) -> Snapshot {
    let metadata = snapshot.get_metadata();
    let mut members = metadata.get_conf_state().voters.clone();
    members.sort_unstable();
    Snapshot {
        index: metadata.index,
        term: metadata.term,
        members,
        data: snapshot.data.clone(),
    }
}

fn committed(entry: Entry) -> Result<Committed, &'static str> {
    let kind = match entry.get_entry_type() {
        EntryType::EntryNormal if entry.data.is_empty() => CommittedKind::Empty,
        EntryType::EntryNormal => CommittedKind::Data(entry.data),
        EntryType::EntryConfChange => {
            let (change, context) = membership::decode(&entry.data)?;
            CommittedKind::Membership { change, context }
        }
        EntryType::EntryConfChangeV2 => return Err("it changes several members at once"),
    };
    Ok(Committed {
        index: entry.index,
        term: entry.term,
        kind,
    })
}

/// The change of members in an entry of the log, if it is one.
pub(crate) fn change_in(entry: &Entry) -> Result<Option<Membership>, &'static str> {
    match entry.get_entry_type() {
        EntryType::EntryNormal => Ok(None),
        EntryType::EntryConfChange => {
            membership::decode(&entry.data).map(|(change, _)| Some(change))
        }
        EntryType::EntryConfChangeV2 => Err("it changes several members at once"),
    }
}

/// Followers would forward what they cannot decide; the owner of a proposal asks the leader itself.
fn outgoing(mut messages: Vec<Message>) -> Vec<Message> {
    messages.retain(|message| message.get_msg_type() != MessageType::MsgPropose);
    messages
}
