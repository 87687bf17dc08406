//! Raft's messages between orderers: etcd's encoding on one side, the types of the crate `raft` on the other.
//!
//! The two agree in field numbers but not in all meanings, and the parser that comes with the crate `raft` must not
//! see bytes from the network. So this codec is written by hand: it writes what etcd's library writes, byte for
//! byte, and [`decode_message`] refuses what no orderer sends and what the crate `raft` would stumble over. What it
//! cannot refuse, because only the group's state shows that it is wrong, is left to the crate `consensus`.

use bytes::Bytes;
use raft::eraftpb::{
    ConfChange, ConfChangeType, ConfState, Entry, EntryType, HardState, Message, MessageType,
    Snapshot, SnapshotMetadata,
};

use crate::wire::{self, Fields, Malformed, Value};

/// Terms and indexes that are accepted. None grows so large honestly, and above it the crate `raft` could overflow.
const MAX_NUMBER: u64 = 1 << 62;

/// Why bytes are no raft message, or none that may come from another orderer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RaftpbError {
    /// The bytes are cut off, or a field is of the wrong kind.
    #[error("malformed raftpb.{message}")]
    Malformed {
        /// Which message.
        message: &'static str,
    },
    /// The bytes are a message, but no orderer sends such a one.
    #[error("unacceptable raftpb.{message}: {reason}")]
    Unacceptable {
        /// Which message.
        message: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

/// Reads a message from another orderer. The data of entries and snapshot share the given bytes.
///
/// # Errors
/// [`RaftpbError`] when the bytes are no message, or none that an orderer sends to another.
pub fn decode_message(encoded: &Bytes) -> Result<Message, RaftpbError> {
    let message = read_message(encoded)?;
    check_message(&message)?;
    Ok(message)
}

/// Whether bytes from another orderer are a message at all, if perhaps none that an orderer sends.
///
/// # Errors
/// [`RaftpbError::Malformed`] if they are not.
pub fn check_form(encoded: &Bytes) -> Result<(), RaftpbError> {
    match read_message(encoded) {
        Err(malformed @ RaftpbError::Malformed { .. }) => Err(malformed),
        Ok(_) | Err(RaftpbError::Unacceptable { .. }) => Ok(()),
    }
}

/// The bytes that etcd's library writes for the message.
///
/// Fields that etcd does not know (`commit_term`, `request_snapshot`, the priorities) are left out.
#[must_use]
pub fn encode_message(message: &Message) -> Vec<u8> {
    let entries: usize = message
        .entries
        .iter()
        .map(|entry| wire::bytes_field_len(entry_len(entry)))
        .sum();
    let snapshot = message.snapshot.as_ref().map(encode_snapshot);
    // Nine numbers, most of them small.
    let scalars = 96 + message.context.len();
    let mut out = Vec::with_capacity(entries + snapshot.as_ref().map_or(0, Vec::len) + scalars);
    wire::put_varint(&mut out, 1, message.msg_type as u64);
    wire::put_varint(&mut out, 2, message.to);
    wire::put_varint(&mut out, 3, message.from);
    wire::put_varint(&mut out, 4, message.term);
    wire::put_varint(&mut out, 5, message.log_term);
    wire::put_varint(&mut out, 6, message.index);
    for entry in message.entries.iter() {
        wire::put_header(&mut out, 7, entry_len(entry));
        put_entry(&mut out, entry);
    }
    wire::put_varint(&mut out, 8, message.commit);
    // Present only when there is one: an empty snapshot means something else to older libraries.
    if let Some(snapshot) = snapshot {
        wire::put_bytes(&mut out, 9, &snapshot);
    }
    wire::put_varint(&mut out, 10, u64::from(message.reject));
    wire::put_varint(&mut out, 11, message.reject_hint);
    put_optional(&mut out, 12, &message.context);
    // `vote`, which nobody has used for years and which is written nevertheless.
    wire::put_varint(&mut out, 13, 0);
    out
}

fn read_message(encoded: &Bytes) -> Result<Message, RaftpbError> {
    let mut message = Message::default();
    read("Message", encoded, |number, value| {
        match number {
            1 => message.msg_type = message_type(value.number()?)?,
            2 => message.to = value.number()?,
            3 => message.from = value.number()?,
            4 => message.term = value.number()?,
            5 => message.log_term = value.number()?,
            6 => message.index = value.number()?,
            7 => message.entries.push(decode_entry(&value.bytes()?)?),
            8 => message.commit = value.number()?,
            9 => {
                let snapshot = decode_snapshot(&value.bytes()?)?;
                // Older libraries put an empty one into every message.
                if snapshot != empty_snapshot() {
                    message.set_snapshot(snapshot);
                }
            }
            10 => message.reject = value.number()? != 0,
            11 => message.reject_hint = value.number()?,
            12 => message.context = value.bytes()?,
            // `vote`, unused; and whatever a later library may add.
            _ => {}
        }
        Ok(())
    })?;
    Ok(message)
}

fn empty_snapshot() -> Snapshot {
    let mut metadata = SnapshotMetadata::default();
    metadata.set_conf_state(ConfState::default());
    let mut snapshot = Snapshot::default();
    snapshot.set_metadata(metadata);
    snapshot
}

fn message_type(number: u64) -> Result<MessageType, RaftpbError> {
    use MessageType::*;
    Ok(match number {
        0 => MsgHup,
        1 => MsgBeat,
        2 => MsgPropose,
        3 => MsgAppend,
        4 => MsgAppendResponse,
        5 => MsgRequestVote,
        6 => MsgRequestVoteResponse,
        7 => MsgSnapshot,
        8 => MsgHeartbeat,
        9 => MsgHeartbeatResponse,
        10 => MsgUnreachable,
        11 => MsgSnapStatus,
        12 => MsgCheckQuorum,
        13 => MsgTransferLeader,
        14 => MsgTimeoutNow,
        15 => MsgReadIndex,
        16 => MsgReadIndexResp,
        17 => MsgRequestPreVote,
        18 => MsgRequestPreVoteResponse,
        other => return refuse("Message", format!("unknown type {other}")),
    })
}

/// Refuses messages that no orderer sends. An orderer that sends one all the same is broken or worse, and the crate
/// `raft` trusts its peers: it would treat a message of term 0 as its own, or stop the process over a gap.
fn check_message(message: &Message) -> Result<(), RaftpbError> {
    use MessageType::*;
    let kind = message.msg_type;
    let refuse = |reason: String| refuse("Message", reason);
    match kind {
        MsgHup | MsgBeat | MsgUnreachable | MsgSnapStatus | MsgCheckQuorum => {
            return refuse(format!("{kind:?} never leaves its process"));
        }
        // Envelopes are forwarded to a leader as such, so that it can judge them. Nothing enters the log past it.
        MsgPropose => return refuse("proposals are not forwarded".to_owned()),
        // Nobody asks a leader to confirm a read, and the crate `raft` expects an entry in such a request.
        MsgReadIndex | MsgReadIndexResp => {
            return refuse("reads are not confirmed between orderers".to_owned());
        }
        MsgTransferLeader => {}
        _ if message.term == 0 => return refuse(format!("{kind:?} without a term")),
        _ => {}
    }
    if message.from == 0 {
        return refuse(format!("{kind:?} without a sender"));
    }
    let numbers = [
        message.term,
        message.log_term,
        message.index,
        message.commit,
        message.reject_hint,
    ];
    if let Some(number) = numbers.into_iter().find(|number| *number > MAX_NUMBER) {
        return refuse(format!("{kind:?} with the number {number}"));
    }
    if kind == MsgAppend {
        check_entries(message)?;
    } else if !message.entries.is_empty() {
        return refuse(format!("{kind:?} with entries"));
    }
    match message.snapshot.as_ref() {
        Some(snapshot) if kind == MsgSnapshot => check_snapshot(snapshot, message.term),
        Some(_) => refuse(format!("{kind:?} with a snapshot")),
        None if kind == MsgSnapshot => refuse("MsgSnapshot without a snapshot".to_owned()),
        None => Ok(()),
    }
}

/// Entries follow each other without a gap, in terms that never fall and are not ahead of the message.
fn check_entries(message: &Message) -> Result<(), RaftpbError> {
    let mut index = message.index;
    let mut term = message.log_term;
    for entry in message.entries.iter() {
        index += 1;
        if entry.index != index {
            let reason = format!("entry {} where {index} belongs", entry.index);
            return refuse("Message", reason);
        }
        if entry.term < term || entry.term > message.term {
            let reason = format!("entry {index} of term {} after {term}", entry.term);
            return refuse("Message", reason);
        }
        term = entry.term;
        match entry.entry_type {
            EntryType::EntryNormal => {}
            // Judged on arrival: once it is in the log, every orderer has to apply it.
            EntryType::EntryConfChange => {
                decode_conf_change(&entry.data)?;
            }
            EntryType::EntryConfChangeV2 => {
                return refuse("Entry", "joint membership change".to_owned());
            }
        }
    }
    Ok(())
}

fn check_snapshot(snapshot: &Snapshot, message_term: u64) -> Result<(), RaftpbError> {
    let metadata = snapshot.get_metadata();
    let refuse = |reason: &str| refuse("Snapshot", reason.to_owned());
    if metadata.index == 0 || metadata.index > MAX_NUMBER {
        return refuse("impossible index");
    }
    if metadata.term == 0 || metadata.term > message_term {
        return refuse("term ahead of the message");
    }
    let members = metadata.get_conf_state();
    if members.learners.len() + members.voters_outgoing.len() + members.learners_next.len() > 0
        || members.auto_leave
    {
        return refuse("learners or a joint membership");
    }
    let mut voters = members.voters.clone();
    voters.sort_unstable();
    voters.dedup();
    if voters.is_empty() || voters.len() < members.voters.len() || voters[0] == 0 {
        return refuse("impossible membership");
    }
    Ok(())
}

/// Reads a log entry.
///
/// # Errors
/// [`RaftpbError`] when the bytes are none.
pub fn decode_entry(encoded: &Bytes) -> Result<Entry, RaftpbError> {
    let mut entry = Entry::default();
    read("Entry", encoded, |number, value| {
        match number {
            1 => {
                entry.entry_type = match value.number()? {
                    0 => EntryType::EntryNormal,
                    1 => EntryType::EntryConfChange,
                    2 => EntryType::EntryConfChangeV2,
                    other => return refuse("Entry", format!("unknown type {other}")),
                }
            }
            2 => entry.term = value.number()?,
            3 => entry.index = value.number()?,
            4 => entry.data = value.bytes()?,
            _ => {}
        }
        Ok(())
    })?;
    Ok(entry)
}

/// The bytes that etcd's library writes for the entry.
#[must_use]
pub fn encode_entry(entry: &Entry) -> Vec<u8> {
    let mut out = Vec::with_capacity(entry_len(entry));
    put_entry(&mut out, entry);
    out
}

fn put_entry(out: &mut Vec<u8>, entry: &Entry) {
    wire::put_varint(out, 1, entry.entry_type as u64);
    wire::put_varint(out, 2, entry.term);
    wire::put_varint(out, 3, entry.index);
    put_optional(out, 4, &entry.data);
}

fn entry_len(entry: &Entry) -> usize {
    let data = match entry.data.len() {
        0 => 0,
        length => wire::bytes_field_len(length),
    };
    wire::varint_field_len(entry.entry_type as u64)
        + wire::varint_field_len(entry.term)
        + wire::varint_field_len(entry.index)
        + data
}

/// Reads a snapshot.
///
/// # Errors
/// [`RaftpbError`] when the bytes are none.
pub fn decode_snapshot(encoded: &Bytes) -> Result<Snapshot, RaftpbError> {
    let mut snapshot = Snapshot::default();
    read("Snapshot", encoded, |number, value| {
        match number {
            1 => snapshot.data = value.bytes()?,
            2 => {
                let metadata = snapshot.mut_metadata();
                read("SnapshotMetadata", &value.bytes()?, |number, value| {
                    match number {
                        1 => metadata.set_conf_state(decode_conf_state(&value.bytes()?)?),
                        2 => metadata.index = value.number()?,
                        3 => metadata.term = value.number()?,
                        _ => {}
                    }
                    Ok(())
                })?;
            }
            _ => {}
        }
        Ok(())
    })?;
    Ok(snapshot)
}

/// The bytes that etcd's library writes for the snapshot.
#[must_use]
pub fn encode_snapshot(snapshot: &Snapshot) -> Vec<u8> {
    let metadata = snapshot.get_metadata();
    let mut encoded_metadata = Vec::new();
    let members = encode_conf_state(metadata.get_conf_state());
    wire::put_bytes(&mut encoded_metadata, 1, &members);
    wire::put_varint(&mut encoded_metadata, 2, metadata.index);
    wire::put_varint(&mut encoded_metadata, 3, metadata.term);
    let mut out = Vec::with_capacity(snapshot.data.len() + encoded_metadata.len() + 16);
    put_optional(&mut out, 1, &snapshot.data);
    wire::put_bytes(&mut out, 2, &encoded_metadata);
    out
}

/// Reads a hard state.
///
/// # Errors
/// [`RaftpbError`] when the bytes are none.
pub fn decode_hard_state(encoded: &Bytes) -> Result<HardState, RaftpbError> {
    let mut state = HardState::default();
    read("HardState", encoded, |number, value| {
        match number {
            1 => state.term = value.number()?,
            2 => state.vote = value.number()?,
            3 => state.commit = value.number()?,
            _ => {}
        }
        Ok(())
    })?;
    Ok(state)
}

/// The bytes that etcd's library writes for the hard state.
#[must_use]
pub fn encode_hard_state(state: &HardState) -> Vec<u8> {
    let mut out = Vec::new();
    wire::put_varint(&mut out, 1, state.term);
    wire::put_varint(&mut out, 2, state.vote);
    wire::put_varint(&mut out, 3, state.commit);
    out
}

/// Reads the members of a group.
///
/// # Errors
/// [`RaftpbError`] when the bytes are none.
pub fn decode_conf_state(encoded: &Bytes) -> Result<ConfState, RaftpbError> {
    let mut state = ConfState::default();
    read("ConfState", encoded, |number, value| {
        match number {
            1 => value.numbers(&mut state.voters)?,
            2 => value.numbers(&mut state.learners)?,
            3 => value.numbers(&mut state.voters_outgoing)?,
            4 => value.numbers(&mut state.learners_next)?,
            5 => state.auto_leave = value.number()? != 0,
            _ => {}
        }
        Ok(())
    })?;
    Ok(state)
}

/// The bytes that etcd's library writes for the members.
#[must_use]
pub fn encode_conf_state(state: &ConfState) -> Vec<u8> {
    let mut out = Vec::new();
    let sets = [
        (1, &state.voters),
        (2, &state.learners),
        (3, &state.voters_outgoing),
        (4, &state.learners_next),
    ];
    for (number, members) in sets {
        for member in members {
            wire::put_varint(&mut out, number, *member);
        }
    }
    wire::put_varint(&mut out, 5, u64::from(state.auto_leave));
    out
}

/// Reads a membership change. Only adding and removing a voter are accepted: Fabric has no other, and the numbers
/// above them mean different things in the two libraries.
///
/// # Errors
/// [`RaftpbError`] when the bytes are none, or one of another kind.
pub fn decode_conf_change(encoded: &Bytes) -> Result<ConfChange, RaftpbError> {
    let mut change = ConfChange::default();
    read("ConfChange", encoded, |number, value| {
        match number {
            1 => change.id = value.number()?,
            2 => {
                change.change_type = match value.number()? {
                    0 => ConfChangeType::AddNode,
                    1 => ConfChangeType::RemoveNode,
                    other => return refuse("ConfChange", format!("type {other}")),
                }
            }
            3 => change.node_id = value.number()?,
            4 => change.context = value.bytes()?,
            _ => {}
        }
        Ok(())
    })?;
    if change.node_id == 0 {
        return refuse("ConfChange", "no node".to_owned());
    }
    Ok(change)
}

/// The bytes that etcd's library writes for the membership change.
#[must_use]
pub fn encode_conf_change(change: &ConfChange) -> Vec<u8> {
    let mut out = Vec::new();
    wire::put_varint(&mut out, 1, change.id);
    wire::put_varint(&mut out, 2, change.change_type as u64);
    wire::put_varint(&mut out, 3, change.node_id);
    put_optional(&mut out, 4, &change.context);
    out
}

/// Go leaves out bytes that were never set; nobody can tell them from empty ones here, and nobody has to.
fn put_optional(out: &mut Vec<u8>, number: u32, value: &[u8]) {
    if !value.is_empty() {
        wire::put_bytes(out, number, value);
    }
}

fn refuse<T>(message: &'static str, reason: String) -> Result<T, RaftpbError> {
    Err(RaftpbError::Unacceptable { message, reason })
}

/// A field's value on its way into a message: asked for as the kind that the message has there.
struct FieldValue<'a> {
    of: &'static str,
    message: &'a Bytes,
    value: Value,
}

impl FieldValue<'_> {
    fn number(&self) -> Result<u64, RaftpbError> {
        match self.value {
            Value::Varint(value) => Ok(value),
            _ => Err(RaftpbError::Malformed { message: self.of }),
        }
    }

    fn bytes(&self) -> Result<Bytes, RaftpbError> {
        match &self.value {
            Value::Bytes(range) => Ok(self.message.slice(range.clone())),
            _ => Err(RaftpbError::Malformed { message: self.of }),
        }
    }

    /// One element of a repeated number. etcd writes them one by one; packed ones never occur.
    fn numbers(&self, into: &mut Vec<u64>) -> Result<(), RaftpbError> {
        into.push(self.number()?);
        Ok(())
    }
}

fn read(
    of: &'static str,
    message: &Bytes,
    mut field: impl FnMut(u32, FieldValue<'_>) -> Result<(), RaftpbError>,
) -> Result<(), RaftpbError> {
    let mut fields = Fields::of(message);
    loop {
        match fields.next() {
            Ok(Some(next)) => field(
                next.number,
                FieldValue {
                    of,
                    message,
                    value: next.value,
                },
            )?,
            Ok(None) => return Ok(()),
            Err(Malformed) => return Err(RaftpbError::Malformed { message: of }),
        }
    }
}

#[cfg(test)]
mod tests;
