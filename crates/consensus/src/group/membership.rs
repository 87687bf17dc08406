//! The bytes of a membership change inside an entry.
//!
//! They are those of etcd's `raftpb.ConfChange`, since members of other make read and write the same entries. They
//! are decoded here and not by the protobuf runtime of the raft library, which must never see bytes of a foreigner.

use bytes::Bytes;
use raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2};

use super::Membership;

/// Bytes that came with a change and mean nothing to the group: at most this many are accepted.
pub const MAX_MEMBERSHIP_CONTEXT_BYTES: usize = 1 << 20;

const ID: u64 = 1;
const KIND: u64 = 2;
const MEMBER: u64 = 3;
const CONTEXT: u64 = 4;

const VARINT: u64 = 0;
const FIXED_64: u64 = 1;
const LENGTH: u64 = 2;
const FIXED_32: u64 = 5;

const ADD: u64 = 0;
const REMOVE: u64 = 1;

/// Encodes a change as etcd does: the numbers always, the context only where there is one.
pub(super) fn encode(change: Membership, context: &[u8]) -> Bytes {
    let (kind, member) = match change {
        Membership::Add(member) => (ADD, member),
        Membership::Remove(member) => (REMOVE, member),
    };
    let mut out = Vec::with_capacity(16 + context.len());
    for (field, value) in [(ID, 0), (KIND, kind), (MEMBER, member)] {
        put_varint(&mut out, field << 3 | VARINT);
        put_varint(&mut out, value);
    }
    if !context.is_empty() {
        put_varint(&mut out, CONTEXT << 3 | LENGTH);
        put_varint(&mut out, context.len() as u64);
        out.extend_from_slice(context);
    }
    out.into()
}

/// Decodes a change; the error says what is wrong with it.
pub(super) fn decode(bytes: &Bytes) -> Result<(Membership, Bytes), &'static str> {
    let mut rest = &bytes[..];
    let (mut kind, mut member, mut context) = (ADD, 0, Bytes::new());
    while !rest.is_empty() {
        let key = take_varint(&mut rest)?;
        match (key >> 3, key & 7) {
            (KIND, VARINT) => kind = take_varint(&mut rest)?,
            (MEMBER, VARINT) => member = take_varint(&mut rest)?,
            (CONTEXT, LENGTH) => context = bytes.slice_ref(take_bytes(&mut rest)?),
            (0, _) => return Err("field number 0"),
            (_, VARINT) => drop(take_varint(&mut rest)?),
            (_, LENGTH) => drop(take_bytes(&mut rest)?),
            (_, FIXED_64) => rest = rest.get(8..).ok_or("it ends early")?,
            (_, FIXED_32) => rest = rest.get(4..).ok_or("it ends early")?,
            _ => return Err("an unknown wire type"),
        }
    }
    if context.len() > MAX_MEMBERSHIP_CONTEXT_BYTES {
        return Err("its context is too long");
    }
    if member == 0 {
        return Err("it names no member");
    }
    match kind {
        ADD => Ok((Membership::Add(member), context)),
        REMOVE => Ok((Membership::Remove(member), context)),
        _ => Err("it neither adds nor removes a member"),
    }
}

/// The change as the raft library wants it.
pub(super) fn to_raft(change: Membership) -> ConfChangeV2 {
    let mut single = ConfChangeSingle::default();
    match change {
        Membership::Add(member) => {
            single.set_change_type(ConfChangeType::AddNode);
            single.node_id = member;
        }
        Membership::Remove(member) => {
            single.set_change_type(ConfChangeType::RemoveNode);
            single.node_id = member;
        }
    }
    let mut changes = ConfChangeV2::default();
    changes.set_changes(vec![single].into());
    changes
}

/// Applies a change to a sorted list of members.
pub(crate) fn apply(members: &mut Vec<u64>, change: Membership) {
    match (
        change,
        members.binary_search(&match change {
            Membership::Add(member) | Membership::Remove(member) => member,
        }),
    ) {
        (Membership::Add(member), Err(place)) => members.insert(place, member),
        (Membership::Remove(_), Ok(place)) => drop(members.remove(place)),
        _ => {}
    }
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn take_varint(rest: &mut &[u8]) -> Result<u64, &'static str> {
    let mut value = 0_u64;
    for shift in (0..70).step_by(7) {
        let (&byte, tail) = rest.split_first().ok_or("it ends early")?;
        *rest = tail;
        if shift == 63 && byte > 1 {
            return Err("a number is too large");
        }
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err("a number is too long")
}

fn take_bytes<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], &'static str> {
    let length = usize::try_from(take_varint(rest)?).map_err(|_| "a length is too large")?;
    let (bytes, tail) = rest.split_at_checked(length).ok_or("it ends early")?;
    *rest = tail;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bytes_are_etcds() {
        assert_eq!(
            &encode(Membership::Add(3), b"")[..],
            [0x08, 0, 0x10, 0, 0x18, 3]
        );
        assert_eq!(
            &encode(Membership::Remove(300), b"x")[..],
            [0x08, 0, 0x10, 1, 0x18, 0xac, 2, 0x22, 1, b'x']
        );
    }

    #[test]
    fn only_adding_and_removing_one_member_is_understood() {
        let decoded = |bytes: &[u8]| decode(&Bytes::copy_from_slice(bytes));
        assert_eq!(decoded(&[0x18, 7]), Ok((Membership::Add(7), Bytes::new())));
        assert!(decoded(&[0x10, 2, 0x18, 7]).is_err());
        assert!(decoded(&[0x10, 0]).is_err());
        assert!(decoded(&[0x18]).is_err());
        assert!(
            decoded(&[
                0x22, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01
            ])
            .is_err()
        );
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(member in 1_u64.., add: bool, context: Vec<u8>) {
            let change = if add { Membership::Add(member) } else { Membership::Remove(member) };
            prop_assert_eq!(decode(&encode(change, &context)), Ok((change, Bytes::from(context))));
        }

        #[test]
        fn nonsense_is_refused_or_understood(bytes: Vec<u8>) {
            let _ = decode(&Bytes::from(bytes));
        }
    }
}
