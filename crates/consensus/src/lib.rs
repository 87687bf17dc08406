//! Replicated logs: many Raft groups over one shared durable log.
//!
//! A [`Group`] is one member's part in one replicated log: a pure state machine that is ticked, given messages and
//! proposals, and asked for a [`Ready`] with everything that has to be done. A [`Log`] is where all groups of a
//! process keep what they must not forget: one append-only, checksummed log on one disk, so that groups which are
//! ready together share one fsync. [`snapshots`] keeps a bounded number of snapshot files per group.
//!
//! The algorithm is the `raft` crate's; this crate decides when something may be sent, what has to be durable
//! before, what is refused at the door and how a crashed or forgetful member comes back. It leaves to others what
//! a group is for, what entries and snapshots mean, where members live and how messages travel.
//!
//! Start reading at [`Group`]; its documentation gives the loop that drives it.

pub mod disk;
mod group;
mod log;
mod logger;
pub mod simulation;
pub mod snapshots;

pub use group::{
    CATCH_UP_ENTRIES, Committed, CommittedKind, Group, GroupError, GroupState, JOIN_SILENCE,
    MAX_CACHED_BYTES, MAX_COMMITTED_BYTES, MAX_ENTRY_BYTES, MAX_MEMBERS,
    MAX_MEMBERSHIP_CONTEXT_BYTES, Member, Membership, Options, Ready, Role, Snapshot, Status,
};
pub use log::{
    Entries, Log, LogError, LogOptions, MAX_BATCH_BYTES, MAX_QUEUED_WRITES, MAX_SEGMENT_BYTES,
    OnDurable, Recovered, Write,
};
pub use logger::LOG_TARGET;
pub use raft::eraftpb;

use std::fmt;

/// The identity of a group on this member's disk.
///
/// It names an *incarnation*: a member that leaves a group and joins it again later takes a new one, so that
/// nothing of its former life can be mistaken for the present one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub [u8; 16]);

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GroupId({self})")
    }
}
