//! Logs that were damaged, and logs that were forged by somebody who can compute checksums: refused, or recovered into groups
//! that go on without a panic.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use quorate_consensus::disk::Folder;
use quorate_consensus::eraftpb::{Message, MessageType};
use quorate_consensus::snapshots::SnapshotFiles;
use quorate_consensus::{
    CommittedKind, Group, GroupId, Log, LogOptions, Membership, Options, Snapshot,
};
use quorate_testkit::hostile::{Forger, Shape, torment};

const GROUP: GroupId = GroupId([7; 16]);

fn options() -> Options {
    Options {
        id: 1,
        name: "testchannel".to_owned(),
        election_tick: 5,
        heartbeat_tick: 1,
        max_inflight: 3,
        max_size_per_message: 1 << 20,
    }
}

fn open(folder: &Path) -> Result<(Log, Vec<quorate_consensus::Recovered>), String> {
    let disk = Folder::open(folder).map_err(|error| error.to_string())?;
    Log::open_inline(Arc::new(disk), LogOptions::default()).map_err(|error| error.to_string())
}

/// Does what the group wants, as far as it is alone with it.
fn settle(group: &mut Group, log: &Log) {
    // Whatever a forged log makes of the group, it must come to rest.
    for _ in 0..200 {
        let Ok(Some(ready)) = group.ready() else {
            return;
        };
        if let Some(write) = ready.write {
            log.append(group.id(), write, Box::new(|_| ()));
            group.written(ready.number);
        }
        if let Some(snapshot) = ready.snapshot {
            group.applied(snapshot.index);
        }
        for entry in ready.committed {
            if let CommittedKind::Membership { change, .. } = entry.kind {
                group.apply_membership(change);
            }
            group.applied(entry.index);
        }
    }
}

/// A log with records of every kind in one segment.
fn sample() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let (log, _) = open(folder.path()).unwrap();
    let mut group = Group::create(GROUP, options(), &[1], Arc::new(log.clone())).unwrap();
    settle(&mut group, &log);
    group.campaign();
    settle(&mut group, &log);
    for number in 0..20_u8 {
        group.propose(Bytes::from(vec![number; 40])).unwrap();
        settle(&mut group, &log);
        if number == 12 {
            let write = group
                .take_snapshot(group.status().applied, Bytes::from_static(b"snapshot"))
                .unwrap();
            log.append(GROUP, write, Box::new(|result| result.unwrap()));
        }
    }
    group
        .propose_membership(Membership::Add(2), Bytes::new())
        .unwrap();
    settle(&mut group, &log);
    log.append(
        GroupId([9; 16]),
        Default::default(),
        Box::new(|result| result.unwrap()),
    );
    log.remove(GroupId([9; 16]), Box::new(|result| result.unwrap()));
    // As a member that joins begins, and gets a snapshot.
    let other = GroupId([8; 16]);
    let mut joining = Group::join(other, options(), Arc::new(log.clone())).unwrap();
    settle(&mut joining, &log);
    drop((group, joining, log));
    let mut names: Vec<_> = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name != "LOCK")
        .collect();
    names.sort();
    fs::read(folder.path().join(names.pop().unwrap())).unwrap()
}

/// The bodies of a segment's records.
fn bodies(segment: &[u8]) -> Vec<Vec<u8>> {
    let mut bodies = Vec::new();
    let mut rest = segment;
    while rest.len() > 8 {
        let length = u32::from_le_bytes(rest[4..8].try_into().unwrap()) as usize;
        bodies.push(rest[8..8 + length].to_vec());
        rest = &rest[8 + length..];
    }
    bodies
}

/// A segment of these records, with the checksums that they have at their places.
fn segment(number: u64, bodies: &[Vec<u8>]) -> Vec<u8> {
    let mut out = Vec::new();
    for body in bodies {
        let length = u32::try_from(body.len()).unwrap();
        let mut place = number.to_le_bytes().to_vec();
        place.extend((out.len() as u64).to_le_bytes());
        place.extend(length.to_le_bytes());
        let sum = crc32c::crc32c_append(crc32c::crc32c(&place), body);
        out.extend(sum.to_le_bytes());
        out.extend(length.to_le_bytes());
        out.extend(body);
    }
    out
}

/// Opens a folder with this segment, and lets what is found in it work.
fn use_log(folder: &Path, name: &str, bytes: &[u8]) {
    for entry in fs::read_dir(folder).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    fs::write(folder.join(name), bytes).unwrap();
    let Ok((log, found)) = open(folder) else {
        return;
    };
    for found in found {
        let again = log.recover(found.group());
        if let Ok(again) = again {
            assert_eq!(again.as_ref(), Some(&found));
        }
        let applied = found.last();
        for applied in [0, applied / 2, applied] {
            let entries = Arc::new(log.clone());
            let Ok(mut group) = Group::recover(found.clone(), options(), applied, entries) else {
                continue;
            };
            settle(&mut group, &log);
            let term = group.status().term;
            for kind in [
                MessageType::MsgHeartbeat,
                MessageType::MsgRequestVote,
                MessageType::MsgAppend,
            ] {
                let mut message = Message {
                    from: 2,
                    to: 1,
                    term,
                    ..Message::default()
                };
                message.set_msg_type(kind);
                let _ = group.step(message);
                settle(&mut group, &log);
            }
            for _ in 0..30 {
                group.tick();
                settle(&mut group, &log);
            }
            let _ = group.propose(Bytes::from_static(b"more"));
            settle(&mut group, &log);
        }
    }
}

const SEGMENT: &str = "0000000000000001.segment";

#[test]
fn damaged_segments() {
    let sample = sample();
    assert_eq!(segment(1, &bodies(&sample)), sample);
    let folder = tempfile::tempdir().unwrap();
    torment("segment", Shape::Plain, &[sample], 1_500, |bytes| {
        use_log(folder.path(), SEGMENT, bytes);
    });
}

#[test]
fn forged_segments() {
    let bodies = bodies(&sample());
    let folder = tempfile::tempdir().unwrap();
    let mut number = 0;
    torment("records", Shape::Plain, &bodies, 4_000, |body| {
        number += 1;
        let mut forged = bodies.clone();
        let at = number % bodies.len();
        forged[at] = body.to_vec();
        use_log(folder.path(), SEGMENT, &segment(1, &forged));
    });
    // Every number in every kind of record at its limits.
    let install = [
        &[4, 1][..],
        &GROUP.0,
        &9_u64.to_le_bytes(),
        &2_u64.to_le_bytes(),
        &1_u64.to_le_bytes(),
        &1_u64.to_le_bytes(),
        b"snapshot",
    ]
    .concat();
    let mut kinds: Vec<Vec<u8>> = vec![install];
    for body in &bodies {
        if kinds.iter().all(|known| known[0] != body[0]) {
            kinds.push(body.clone());
        }
    }
    for body in kinds {
        for (at, limit) in (18..body.len().min(66)).step_by(8).flat_map(|at| {
            let limits = [0, 1, 2, u64::MAX, u64::MAX - 1, 1 << 63, 1 << 32, 1 << 62];
            limits.map(|limit| (at, limit))
        }) {
            let mut forged = body.clone();
            let end = (at + 8).min(forged.len());
            forged[at..end].copy_from_slice(&limit.to_le_bytes()[..end - at]);
            for place in [1, 4, bodies.len() / 2, bodies.len()] {
                let mut records = bodies.clone();
                records.insert(place, forged.clone());
                use_log(folder.path(), SEGMENT, &segment(1, &records));
            }
        }
    }
    // Good records, in another order, several times, or not at all.
    let mut forger = Forger::new(3, Shape::Plain, &bodies);
    for _ in 0..1_000 {
        let mut shuffled = bodies.clone();
        for _ in 0..=forger.below(3) {
            let (from, to) = (forger.below(shuffled.len()), forger.below(shuffled.len()));
            match forger.below(3) {
                0 => shuffled.swap(from, to),
                1 => shuffled.insert(from, shuffled[to].clone()),
                _ => drop(shuffled.remove(from)),
            }
        }
        use_log(folder.path(), SEGMENT, &segment(1, &shuffled));
    }
}

#[test]
fn damaged_snapshots() {
    let folder = tempfile::tempdir().unwrap();
    let files = SnapshotFiles::open(folder.path()).unwrap();
    let snapshot = Snapshot {
        index: 5,
        term: 2,
        members: vec![1, 2, 3],
        data: Bytes::from_static(b"a block"),
    };
    files.save(&snapshot).unwrap();
    let name = fs::read_dir(folder.path())
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let sample = fs::read(&name).unwrap();
    torment("snapshot", Shape::Plain, &[sample], 5_000, |bytes| {
        fs::write(&name, bytes).unwrap();
        if let Some(read) = files.newest().unwrap() {
            assert_eq!(read, snapshot);
        }
        let _ = SnapshotFiles::open(folder.path());
    });
}
