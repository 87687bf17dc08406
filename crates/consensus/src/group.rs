//! One member's part in one replicated log.

use std::sync::Arc;

use bytes::Bytes;
use raft::eraftpb::Message;

use crate::GroupId;
use crate::log::{Entries, Recovered, Write};

/// How a member takes part.
#[derive(Clone, Debug)]
pub struct Options {
    /// This member's id, not 0.
    pub id: u64,
    /// What the group is called in log lines (field `channel`).
    pub name: String,
    /// Ticks without a leader until a member campaigns; also how often a leader checks that it has a quorum.
    pub election_tick: usize,
    /// Ticks between heartbeats.
    pub heartbeat_tick: usize,
    /// Append messages on their way to one follower.
    pub max_inflight: usize,
    /// Bytes of entries in one append message; a larger entry travels alone.
    pub max_size_per_message: u64,
}

/// The state up to an index, in place of the entries up to there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The last entry it stands for.
    pub index: u64,
    /// That entry's term.
    pub term: u64,
    /// The members of the group.
    pub members: Vec<u64>,
    /// What the group's owner put in.
    pub data: Bytes,
}

/// A change of the set of members, one at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Membership {
    /// This member is added; nothing happens if it is one already.
    Add(u64),
    /// This member is removed; nothing happens if it is none.
    Remove(u64),
}

/// A committed entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Its place in the log.
    pub index: u64,
    /// The term in which it was proposed.
    pub term: u64,
    /// What it says.
    pub kind: CommittedKind,
}

/// What a committed entry says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommittedKind {
    /// What somebody proposed.
    Data(Bytes),
    /// A change of members: to be given to [`Group::apply_membership`], without exception.
    Membership {
        /// The change.
        change: Membership,
        /// What was proposed with it.
        context: Bytes,
    },
    /// A new leader's first entry; nothing to do but to confirm it.
    Empty,
}

/// Part of a member in its group at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupState {
    /// Follows a leader, or waits for one.
    Follower,
    /// Asks whether it would be elected.
    PreCandidate,
    /// Asks for votes.
    Candidate,
    /// Leads.
    Leader,
}

/// Who leads, and what we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Role {
    /// The leader's id; 0 if none is known.
    pub leader: u64,
    /// Our own part.
    pub state: GroupState,
}

/// What has to be done now, in this order: `send` at once; `write` to the log, at once too; `snapshot`, then
/// `committed` applied (both are durable already where they have to be). When the write is durable:
/// [`Group::written`], then `send_after_write`. Without a write there is nothing to wait for: `send_after_write` is
/// empty and [`Group::written`] need not be called.
#[derive(Debug, Default)]
#[must_use = "a Ready is given once"]
pub struct Ready {
    /// To be given to [`Group::written`] when `write` is durable.
    pub number: u64,
    /// Messages that may leave at once.
    pub send: Vec<Message>,
    /// What has to be made durable.
    pub write: Option<Write>,
    /// Messages that promise what `write` contains.
    pub send_after_write: Vec<Message>,
    /// A snapshot that replaces everything up to its index; comes from a leader.
    pub snapshot: Option<Snapshot>,
    /// Entries to be applied.
    pub committed: Vec<Committed>,
    /// The role, when it has changed.
    pub role: Option<Role>,
}

/// Where a group stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Own id.
    pub id: u64,
    /// Leader and own part.
    pub role: Role,
    /// The current term.
    pub term: u64,
    /// The last committed index known here.
    pub commit: u64,
    /// The last applied index.
    pub applied: u64,
    /// The last index in the log.
    pub last: u64,
    /// The members, in ascending order of id; what is known of their progress only where this member leads.
    pub members: Vec<Member>,
}

/// What a leader knows of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its id.
    pub id: u64,
    /// The last entry it is known to have.
    pub matched: u64,
    /// The next entry to be sent.
    pub next: u64,
    /// Whether it was heard of since the last quorum check (every election_tick ticks).
    pub recent_active: bool,
}

/// Why a group refused something.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// Only the leader takes proposals.
    #[error("member {id} is not the leader, {leader} is (0: none)")]
    NotLeader {
        /// Own id.
        id: u64,
        /// The leader's, or 0.
        leader: u64,
    },
}

/// One member of one group.
pub struct Group {
    id: GroupId,
    options: Options,
}

impl Group {
    /// A member of a group that is born now with these members; every one of them calls this with the same list.
    pub fn create(
        id: GroupId,
        options: Options,
        _members: &[u64],
        _entries: Arc<dyn Entries>,
    ) -> Result<Self, GroupError> {
        Ok(Self { id, options })
    }

    /// A member of a group that exists elsewhere; a leader will send it what it lacks.
    pub fn join(
        id: GroupId,
        options: Options,
        _entries: Arc<dyn Entries>,
    ) -> Result<Self, GroupError> {
        Ok(Self { id, options })
    }

    /// A member whose log is gone although it had begun to take part: follows, but neither votes nor campaigns until
    /// a leader has given it back everything that it may have confirmed.
    pub fn forgotten(
        id: GroupId,
        options: Options,
        _entries: Arc<dyn Entries>,
    ) -> Result<Self, GroupError> {
        Ok(Self { id, options })
    }

    /// A member that continues where its log ends. `applied`: the last index whose effects the owner still has.
    /// Entries up to `applied` may be given once more: data is to be skipped, membership to be applied.
    pub fn recover(
        recovered: Recovered,
        options: Options,
        _applied: u64,
        _entries: Arc<dyn Entries>,
    ) -> Result<Self, GroupError> {
        Ok(Self {
            id: recovered.group(),
            options,
        })
    }

    /// The group's identity on this disk.
    pub fn id(&self) -> GroupId {
        self.id
    }

    /// Lets one tick pass.
    pub fn tick(&mut self) {}

    /// Stands for election now.
    pub fn campaign(&mut self) {}

    /// Takes a message of another member.
    pub fn step(&mut self, _message: Message) -> Result<(), GroupError> {
        Ok(())
    }

    /// Proposes an entry. Leader only: nothing is forwarded.
    pub fn propose(&mut self, _data: Bytes) -> Result<(), GroupError> {
        Ok(())
    }

    /// Proposes a change of members. Leader only; refused while another change is not yet applied.
    pub fn propose_membership(
        &mut self,
        _change: Membership,
        _context: Bytes,
    ) -> Result<(), GroupError> {
        Ok(())
    }

    /// Asks the leader (this member or another) to hand over to `to`.
    pub fn transfer_leader(&mut self, _to: u64) {}

    /// A message to `to` could not be sent.
    pub fn report_unreachable(&mut self, _to: u64) {}

    /// A snapshot message to `to` was sent (`true`) or could not be (`false`). Must be called for each of them.
    pub fn report_snapshot(&mut self, _to: u64, _sent: bool) {}

    /// What has to be done now, if anything. Call after each input until it answers `None`.
    pub fn ready(&mut self) -> Result<Option<Ready>, GroupError> {
        Ok(None)
    }

    /// The write of the ready of this number, and all before it, are durable.
    pub fn written(&mut self, _number: u64) {}

    /// Everything up to `index` was applied.
    pub fn applied(&mut self, _index: u64) {}

    /// Applies a committed change; answers the members from now on, in ascending order.
    pub fn apply_membership(&mut self, _change: Membership) -> Vec<u64> {
        Vec::new()
    }

    /// Replaces the entries up to `index` (which must be applied) by `data`, keeping a few for followers that are
    /// only a little behind. The write goes to the log like a ready's; nobody has to be told when it is durable.
    pub fn take_snapshot(&mut self, _index: u64, _data: Bytes) -> Result<Write, GroupError> {
        Ok(Write::default())
    }

    /// The newest snapshot, if there is one.
    pub fn snapshot(&self) -> Option<&Snapshot> {
        None
    }

    /// Where the group stands.
    pub fn status(&self) -> Status {
        Status {
            id: self.options.id,
            role: Role {
                leader: 0,
                state: GroupState::Follower,
            },
            term: 0,
            commit: 0,
            applied: 0,
            last: 0,
            members: Vec::new(),
        }
    }
}
