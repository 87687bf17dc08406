//! What is refused at the door.
//!
//! The raft library trusts its messages: a wrong index makes it panic, a leader that remembers more of us than we do
//! ourselves too. Everything is looked at here first; what passes cannot bring it down.

use raft::eraftpb::{ConfState, Entry, EntryType, Message, MessageType};

use super::membership;

/// Bytes of one entry's data. Far above the largest block that a channel may have, far below what a record of the
/// log can hold.
pub const MAX_ENTRY_BYTES: usize = 256 << 20;

/// Members of one group.
pub const MAX_MEMBERS: usize = 1024;

/// Indexes and terms stay below this, so that arithmetic on them cannot overflow.
const MAX_NUMBER: u64 = 1 << 62;

/// Looks at a message before the group does. `Err` says why it is refused.
pub(super) fn examine(own: u64, message: &Message) -> Result<(), &'static str> {
    if message.to != own {
        return Err("it is addressed to another member");
    }
    if message.from == 0 || message.from == own {
        return Err("it does not come from another member");
    }
    if message.term == 0 {
        return Err("it has no term");
    }
    let numbers = [
        message.term,
        message.log_term,
        message.index,
        message.commit,
        message.reject_hint,
    ];
    if numbers.iter().any(|&number| number >= MAX_NUMBER) {
        return Err("a number in it is out of all bounds");
    }
    let kind = message.get_msg_type();
    match kind {
        MessageType::MsgAppend => entries(message)?,
        MessageType::MsgSnapshot => snapshot(message)?,
        MessageType::MsgAppendResponse
        | MessageType::MsgRequestVote
        | MessageType::MsgRequestVoteResponse
        | MessageType::MsgHeartbeat
        | MessageType::MsgHeartbeatResponse
        | MessageType::MsgTransferLeader
        | MessageType::MsgTimeoutNow
        | MessageType::MsgRequestPreVote
        | MessageType::MsgRequestPreVoteResponse => {}
        MessageType::MsgPropose => return Err("proposals are not forwarded"),
        MessageType::MsgReadIndex | MessageType::MsgReadIndexResp => {
            return Err("reads are not asked of the log");
        }
        MessageType::MsgHup
        | MessageType::MsgBeat
        | MessageType::MsgUnreachable
        | MessageType::MsgSnapStatus
        | MessageType::MsgCheckQuorum => return Err("messages of this type do not leave a member"),
    }
    if kind != MessageType::MsgAppend && !message.entries.is_empty() {
        return Err("only appends carry entries");
    }
    Ok(())
}

fn entries(message: &Message) -> Result<(), &'static str> {
    // The library takes the term of what it does not have for 0: an entry that far ahead would seem to fit.
    if (message.index == 0) != (message.log_term == 0) {
        return Err("it follows an entry without a term");
    }
    if message.log_term > message.term {
        return Err("it follows an entry of a later term");
    }
    let (mut index, mut term) = (message.index, message.log_term);
    for entry in message.get_entries() {
        if entry.index != index + 1 {
            return Err("its entries do not follow one another");
        }
        if entry.term == 0 || entry.term < term || entry.term > message.term {
            return Err("the terms of its entries are out of order");
        }
        contents(entry)?;
        (index, term) = (entry.index, entry.term);
    }
    Ok(())
}

/// What a single entry may contain.
pub(super) fn contents(entry: &Entry) -> Result<(), &'static str> {
    if entry.data.len() > MAX_ENTRY_BYTES {
        return Err("an entry is too large");
    }
    match entry.get_entry_type() {
        EntryType::EntryNormal => Ok(()),
        EntryType::EntryConfChange => membership::decode(&entry.data).map(drop),
        EntryType::EntryConfChangeV2 => Err("it changes several members at once"),
    }
}

fn snapshot(message: &Message) -> Result<(), &'static str> {
    let snapshot = message.get_snapshot();
    let metadata = snapshot.get_metadata();
    if metadata.index == 0 || metadata.index >= MAX_NUMBER {
        return Err("its snapshot has an impossible index");
    }
    if metadata.term == 0 || metadata.term > message.term {
        return Err("its snapshot has an impossible term");
    }
    if snapshot.data.len() > MAX_ENTRY_BYTES {
        return Err("its snapshot is too large");
    }
    members(metadata.get_conf_state())
}

fn members(state: &ConfState) -> Result<(), &'static str> {
    if !state.learners.is_empty()
        || !state.voters_outgoing.is_empty()
        || !state.learners_next.is_empty()
        || state.auto_leave
    {
        return Err("its snapshot is of a group in the middle of a change");
    }
    if state.voters.is_empty() || state.voters.len() > MAX_MEMBERS {
        return Err("its snapshot has no members or too many");
    }
    let mut voters = state.voters.clone();
    voters.sort_unstable();
    if voters[0] == 0 || voters.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err("its snapshot has impossible members");
    }
    Ok(())
}
