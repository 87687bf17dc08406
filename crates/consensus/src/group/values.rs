//! What goes into a group and what comes out of it.

use bytes::Bytes;
use raft::eraftpb::Message;

#[cfg(doc)]
use super::Group;
use super::MAX_ENTRY_BYTES;
use crate::GroupId;
use crate::log::{LogError, Write};

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
    /// The members of the group, in ascending order.
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
/// `committed` applied. When the write is durable: [`Group::written`], then `send_after_write`. Without a write there
/// is nothing to wait for: `send_after_write` is empty and [`Group::written`] need not be called.
#[derive(Debug, Default)]
#[must_use = "a Ready is given once"]
pub struct Ready {
    /// To be given to [`Group::written`] when `write` is durable.
    pub number: u64,
    /// Messages that may leave at once.
    pub send: Vec<Message>,
    /// What has to be made durable. It may be empty and is appended to the log nevertheless: then the messages below
    /// rest on an earlier write.
    pub write: Option<Write>,
    /// Messages that promise what `write` contains.
    pub send_after_write: Vec<Message>,
    /// A snapshot that replaces everything up to its index; comes from a leader. It is applied like an entry:
    /// [`Group::applied`] with its index when done.
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
    /// The last index that the owner applied.
    pub applied: u64,
    /// The first index that is still in the log.
    pub first: u64,
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
    /// Whether it was heard of since the last quorum check (every `election_tick` ticks). Always true of the leader
    /// itself.
    pub recent_active: bool,
}

/// Why a group refused something.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// The options make no sense.
    #[error("a group cannot be started with these options")]
    Options(#[source] raft::Error),
    /// The members of a new group make no sense.
    #[error("a group of members {members:?} cannot be started: {reason}")]
    Members {
        /// What was given.
        members: Vec<u64>,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// What the log has of the group was written by no group.
    #[error(
        "what the log has of group {group} contradicts itself: {what}. Restore the log's files, or remove this member from \
         the group and add it anew with an empty log"
    )]
    Contradiction {
        /// The group.
        group: GroupId,
        /// How.
        what: &'static str,
    },
    /// Only the leader takes proposals.
    #[error("member {id} is not the leader, {leader} is (0: none)")]
    NotLeader {
        /// Own id.
        id: u64,
        /// The leader's, or 0.
        leader: u64,
    },
    /// The leader is handing over; try again when there is a new one.
    #[error("the leader is handing over its leadership; proposals are taken again afterwards")]
    Transferring,
    /// An earlier change of members is not applied yet; try again when it is.
    #[error("an earlier change of members is not applied yet")]
    MembershipPending,
    /// The last member cannot be removed.
    #[error("member {0} is the last one and cannot be removed")]
    LastMember(u64),
    /// The proposal is too large.
    #[error(
        "a proposal of {bytes} bytes is larger than the {MAX_ENTRY_BYTES} bytes that an entry may have"
    )]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// A message of another member makes no sense. It had no effect.
    #[error("a message of type {kind} from member {from} is refused: {reason}")]
    Refused {
        /// Who sent it.
        from: u64,
        /// What kind of message.
        kind: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A response of somebody who is not a member. It had no effect.
    #[error("{from} is not a member of the group")]
    NotMember {
        /// Who sent it.
        from: u64,
    },
    /// The leader counts on entries that this member confirmed and no longer has.
    #[error(
        "the leader {leader} knows that member {id} had stored entry {confirmed}, but its log ends at {last}: the log \
         was lost. The member takes no part in elections until it has caught up. It asks for everything again; a \
         leader that runs Fabric's orderer does not hear that, so if one leads, move the leadership or restart it"
    )]
    LogLost {
        /// Own id.
        id: u64,
        /// Who says so.
        leader: u64,
        /// What we had.
        confirmed: u64,
        /// What we have.
        last: u64,
    },
    /// A snapshot can be taken of what was applied and lies behind the previous one.
    #[error(
        "no snapshot can be taken at {index}: applied is {applied}, the previous snapshot is of {previous}"
    )]
    SnapshotIndex {
        /// What was asked for.
        index: u64,
        /// The last applied index.
        applied: u64,
        /// The previous snapshot's index, 0 if there is none.
        previous: u64,
    },
    /// Entries could not be read back; the group cannot go on.
    #[error("the group's log cannot be read")]
    Log(#[source] LogError),
}
