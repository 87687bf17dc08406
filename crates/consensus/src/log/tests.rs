//! The log against a model, on a disk that crashes, tears, fills up and rots.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::channel;

use bytes::Bytes;
use raft::eraftpb::{Entry, HardState};

use super::journal::Journal;
use super::*;
use crate::disk::Folder;
use crate::simulation::{Dice, Fault};

/// Small, so that segments roll and move all the time.
const SEGMENT_BYTES: u64 = 2000;

/// Seeds of one run; a failing one is printed.
const SEEDS: u64 = 1500;

#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    standing: Option<Standing>,
    state: HardState,
    snapshot: Option<Snapshot>,
    before: u64,
    /// From `first` on.
    first: u64,
    entries: Vec<Entry>,
}

impl Model {
    fn last(&self) -> u64 {
        self.first + self.entries.len() as u64 - 1
    }

    fn term(&self) -> u64 {
        self.entries.last().map_or(self.before, |entry| entry.term)
    }

    /// Something that a group could write next, and what it is afterwards.
    fn step(&mut self, dice: &mut Dice) -> Write {
        let mut write = Write::default();
        if self.standing.is_none() {
            *self = Self {
                standing: Some(Standing::Joining),
                first: 1,
                ..Self::default()
            };
            write.standing = self.standing;
            return write;
        }
        match dice.below(12) {
            0 => {
                let index = self.last() + 1 + dice.below(5);
                let snapshot = Snapshot {
                    index,
                    term: self.term() + 1,
                    members: vec![1, 2, 3],
                    data: Bytes::from(vec![7; dice.below(300) as usize]),
                };
                (self.first, self.before) = (index + 1, snapshot.term);
                self.entries.clear();
                self.snapshot = Some(snapshot.clone());
                self.state.commit = index;
                write.install = Some(snapshot);
            }
            1 | 2 if self.last() > self.snapshot.as_ref().map_or(0, |snapshot| snapshot.index) => {
                let base = self.snapshot.as_ref().map_or(0, |snapshot| snapshot.index);
                let index = base + 1 + dice.below(self.last() - base);
                let keep_from = (index + 1).saturating_sub(dice.below(3)).max(self.first);
                let term_of = |index: u64| match index.checked_sub(self.first) {
                    Some(at) => self.entries[at as usize].term,
                    None => self.before,
                };
                let snapshot = Snapshot {
                    index,
                    term: term_of(index),
                    members: vec![1],
                    data: Bytes::from(vec![9; dice.below(100) as usize]),
                };
                let before = term_of(keep_from - 1);
                self.entries.drain(..(keep_from - self.first) as usize);
                (self.first, self.before, self.snapshot) =
                    (keep_from, before, Some(snapshot.clone()));
                write.compact = Some(Compaction {
                    snapshot,
                    keep_from,
                    before,
                });
            }
            3 => {
                self.standing = Some(Standing::Whole);
                write.standing = self.standing;
            }
            4 => write.hard_state = Some(self.state.clone()),
            5 => return write,
            _ => {
                let base = self.snapshot.as_ref().map_or(0, |snapshot| snapshot.index);
                let from = self.last() + 1 - dice.below(3).min(self.last() - base);
                self.entries.truncate((from - self.first) as usize);
                let term = self.term() + dice.below(2);
                for index in from..=from + dice.below(3) {
                    let data = vec![index as u8; dice.below(200) as usize];
                    let entry = Entry {
                        index,
                        term,
                        data: data.into(),
                        ..Default::default()
                    };
                    self.entries.push(entry.clone());
                    write.entries.push(entry);
                }
                self.state.term = term;
            }
        }
        write.hard_state = Some(self.state.clone());
        write
    }
}

type Models = BTreeMap<GroupId, Model>;

fn found(journal: &Journal, recovered: Vec<Recovered>) -> Models {
    let shelf = journal.shelf();
    let read = |group: GroupId, range: Range<u64>| {
        let shelf = shelf.lock().unwrap();
        let found = shelf.find(group, range, u64::MAX).unwrap();
        found
            .into_iter()
            .map(|(_, place, file)| {
                shelf::entry(shelf::read(&*file, "", place, group).unwrap()).unwrap()
            })
            .collect::<Vec<_>>()
    };
    recovered
        .into_iter()
        .map(|found| {
            let entries = read(found.group, found.first..found.last + 1);
            let mut terms = VecDeque::new();
            for entry in &entries {
                if terms.back().is_none_or(|&(_, term)| term != entry.term) {
                    terms.push_back((entry.index, entry.term));
                }
            }
            assert_eq!(found.terms, terms);
            let model = Model {
                standing: Some(found.standing),
                state: found.hard_state,
                snapshot: found.snapshot,
                before: found.before,
                first: found.first,
                entries,
            };
            (found.group, model)
        })
        .collect()
}

fn open(disk: &SimDisk) -> Result<(Journal, Vec<Recovered>), LogError> {
    Journal::open(
        Arc::new(disk.clone()),
        LogOptions {
            segment_bytes: SEGMENT_BYTES,
        },
    )
}

fn gid(id: u64) -> GroupId {
    GroupId(u128::from(id).to_be_bytes())
}

/// One life after the other: some batches, a crash somewhere, and what is found must be a prefix of what was written,
/// with everything that was reported durable in it.
fn live_through(seed: u64) {
    let mut dice = Dice::new(seed);
    let disk = SimDisk::new(seed);
    let mut now = Models::new();
    for _ in 0..4 {
        let (mut journal, recovered) = match open(&disk) {
            Ok(opened) => opened,
            Err(error) => panic!(
                "seed {seed}: {error}: {:?}",
                std::error::Error::source(&error)
            ),
        };
        assert_eq!(found(&journal, recovered), now, "seed {seed}");
        let fault = [Fault::Stop, Fault::Stop, Fault::Broken, Fault::Full][dice.below(4) as usize];
        disk.fail_after(dice.below(120), fault);
        // What the log may be found to be: after the last flush that succeeded, or anything later.
        let mut possible = vec![now.clone()];
        'life: for _ in 0..60 {
            let start = possible.len() - 1;
            let mut models = possible[start].clone();
            for _ in 0..=dice.below(4) {
                // The higher ones write rarely and hold old segments.
                let group = gid(dice.below(3) + if dice.chance(3) { 3 } else { 0 });
                if dice.chance(1) && models.remove(&group).is_some() {
                    journal.remove(group);
                } else {
                    let model = models.entry(group).or_default();
                    journal.append(group, model.step(&mut dice));
                }
                possible.push(models.clone());
            }
            match journal.flush() {
                Ok(()) => drop(possible.drain(..possible.len() - 1)),
                Err(_) => {
                    journal.append(
                        gid(0),
                        Write {
                            standing: Some(Standing::Whole),
                            ..Write::default()
                        },
                    );
                    assert!(
                        journal.flush().is_err(),
                        "seed {seed}: a failure is for good"
                    );
                    break 'life;
                }
            }
        }
        drop(journal);
        if dice.chance(50) {
            disk.restart();
        } else {
            disk.crash();
        }
        let (journal, recovered) = match open(&disk) {
            Ok(opened) => opened,
            Err(error) => panic!(
                "seed {seed}: {error}: {:?}",
                std::error::Error::source(&error)
            ),
        };
        let after = found(&journal, recovered);
        assert!(
            possible.contains(&after),
            "seed {seed}: {after:#?} is not among {possible:#?}"
        );
        now = after;
        drop(journal);
        if dice.chance(50) {
            // What was found once is found again.
            disk.crash();
        }
    }
}

#[test]
fn nothing_that_was_durable_is_lost_and_nothing_is_invented() {
    for seed in 0..SEEDS {
        live_through(seed);
    }
}

/// Writes alone in their batches; answers where the last batch begins: in which segment and where in it.
fn filled(disk: &SimDisk, writes: u64) -> (String, u64) {
    let mut dice = Dice::new(1);
    let (mut journal, _) = open(disk).unwrap();
    let mut models = Models::new();
    let newest = || {
        let name = disk.list().unwrap().into_iter().max().unwrap();
        let length = disk.open(&name).unwrap().length().unwrap();
        (name, length)
    };
    let mut last = newest();
    for _ in 0..writes {
        let before = newest();
        let group = gid(dice.below(3));
        let write = models.entry(group).or_default().step(&mut dice);
        journal.append(group, write);
        journal.flush().unwrap();
        let after = newest();
        if after.0 != before.0 {
            last = (after.0, 0);
        } else if after.1 != before.1 {
            last = before;
        }
    }
    last
}

#[test]
fn a_flipped_bit_in_what_was_durable_is_refused_with_its_place() {
    let mut dice = Dice::new(2);
    let (mut refused, mut cut) = (0, 0);
    for round in 0..400 {
        let disk = SimDisk::new(3);
        let (newest, batch) = filled(&disk, 30 + round % 20);
        let names = disk.list().unwrap();
        let name = &names[dice.below(names.len() as u64) as usize];
        let length = disk.open(name).unwrap().length().unwrap();
        let offset = dice.below(length);
        disk.flip(name, offset as usize, dice.roll() as u8);
        match open(&disk) {
            Err(LogError::Corrupt {
                file,
                offset: place,
                ..
            }) => {
                assert!(
                    file.ends_with(name) && place <= offset,
                    "{file} {place} {offset}"
                );
                refused += 1;
            }
            // It contained what was moved out of a segment that is gone.
            Err(LogError::Inconsistent { .. }) => assert!(*name == newest && offset >= batch),
            Err(error) => panic!("{error}"),
            // Nobody can tell the last batch from one that was never finished.
            Ok(_) => {
                assert!(
                    *name == newest && offset >= batch,
                    "{name} {offset}: {newest} {batch}"
                );
                cut += 1;
            }
        }
    }
    assert!(refused > 100 && cut > 5, "{refused} {cut}");
}

#[test]
fn a_missing_segment_is_noticed() {
    let disk = SimDisk::new(4);
    filled(&disk, 60);
    let mut names = disk.list().unwrap();
    names.sort();
    assert!(names.len() > 2);
    disk.remove(&names[1]).unwrap();
    assert!(matches!(open(&disk), Err(LogError::Corrupt { .. })));
}

#[test]
fn an_idle_group_does_not_hold_the_log() {
    let disk = SimDisk::new(5);
    let (mut journal, _) = open(&disk).unwrap();
    let idle = gid(100);
    let mut born = Model::default();
    let mut dice = Dice::new(6);
    journal.append(idle, born.step(&mut dice));
    let entry = Entry {
        index: 1,
        term: 1,
        data: Bytes::from_static(b"kept"),
        ..Default::default()
    };
    born.entries.push(entry.clone());
    journal.append(
        idle,
        Write {
            entries: vec![entry],
            ..Write::default()
        },
    );
    journal.flush().unwrap();
    let mut busy = Model::default();
    for _ in 0..3000 {
        journal.append(gid(1), busy.step(&mut dice));
        journal.flush().unwrap();
        if busy.entries.len() > 20 {
            let snapshot = Snapshot {
                index: busy.last(),
                term: busy.term(),
                members: vec![],
                data: Bytes::new(),
            };
            let compact = Compaction {
                keep_from: snapshot.index + 1,
                before: snapshot.term,
                snapshot,
            };
            (busy.first, busy.before) = (compact.keep_from, compact.before);
            busy.entries.clear();
            busy.snapshot = Some(compact.snapshot.clone());
            journal.append(
                gid(1),
                Write {
                    compact: Some(compact),
                    ..Write::default()
                },
            );
        }
    }
    journal.flush().unwrap();
    assert!(disk.size() < 30 * SEGMENT_BYTES, "{}", disk.size());
    drop(journal);
    let (journal, recovered) = open(&disk).unwrap();
    let found = found(&journal, recovered);
    assert_eq!(found[&idle], born);
    assert_eq!(found[&gid(1)], busy);
}

#[test]
fn many_groups_share_a_sync_in_a_folder_and_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let groups: Vec<GroupId> = (1..=1000).map(gid).collect();
    {
        let disk = Arc::new(Folder::open(folder.path()).unwrap());
        let (log, recovered) = Log::open(disk, LogOptions::default()).unwrap();
        assert!(recovered.is_empty());
        assert!(Folder::open(folder.path()).is_err(), "one process only");
        let (done, durable) = channel();
        for &group in &groups {
            let entries = (1..=3)
                .map(|index| Entry {
                    index,
                    term: 1,
                    data: group.0.to_vec().into(),
                    ..Default::default()
                })
                .collect();
            let write = Write {
                standing: Some(Standing::Whole),
                entries,
                ..Write::default()
            };
            let done = done.clone();
            log.append(
                group,
                write,
                Box::new(move |result| done.send(result).unwrap()),
            );
        }
        for _ in &groups {
            durable.recv().unwrap().unwrap();
        }
        let entries = log.entries(groups[7], 1..4, 1).unwrap();
        assert_eq!(entries.len(), 1, "at least one, whatever its size");
        assert_eq!(entries[0].data, groups[7].0.to_vec());
        assert!(matches!(
            log.entries(groups[7], 4..5, 1),
            Err(LogError::Missing { index: 4, .. })
        ));
        let done = done.clone();
        log.remove(
            groups[0],
            Box::new(move |result| done.send(result).unwrap()),
        );
        durable.recv().unwrap().unwrap();
    }
    let disk = Arc::new(Folder::open(folder.path()).unwrap());
    let (_log, recovered) = Log::open(disk, LogOptions::default()).unwrap();
    assert_eq!(
        recovered.iter().map(Recovered::group).collect::<Vec<_>>(),
        groups[1..]
    );
    assert!(recovered.iter().all(|group| group.last == 3));
}

#[test]
fn a_full_disk_fails_everybody_for_good() {
    let disk = SimDisk::new(8);
    let (log, _) = Log::open(Arc::new(disk.clone()), LogOptions::default()).unwrap();
    disk.fail_after(0, Fault::Full);
    let (done, durable) = channel();
    for group in 1..=20 {
        let done = done.clone();
        let write = Write {
            standing: Some(Standing::Whole),
            ..Write::default()
        };
        log.append(
            gid(group),
            write,
            Box::new(move |result| done.send(result).unwrap()),
        );
    }
    for _ in 1..=20 {
        assert!(matches!(durable.recv().unwrap(), Err(LogError::Io { .. })));
    }
}

/// `cargo test -p quorate-consensus --lib -- --ignored --nocapture throughput` with the folder in `TMPDIR`.
#[test]
#[ignore = "a measurement"]
fn throughput() {
    for (groups, in_flight, size) in [
        (1, 1, 1024),
        (1, 5, 1024),
        (100, 1, 1024),
        (1000, 1, 1024),
        (1, 5, 512 << 10),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let disk = Arc::new(Folder::open(folder.path()).unwrap());
        let (log, _) = Log::open(disk, LogOptions::default()).unwrap();
        let (done, durable) = channel();
        let data = Bytes::from(vec![5; size]);
        let mut next = vec![1_u64; groups + 1];
        let send = |group: usize, next: &mut Vec<u64>| {
            let index = next[group];
            next[group] += 1;
            let mut write = Write {
                standing: (index == 1).then_some(Standing::Whole),
                entries: vec![Entry {
                    index,
                    term: 1,
                    data: data.clone(),
                    ..Default::default()
                }],
                ..Write::default()
            };
            if index.is_multiple_of(1000) {
                let snapshot = Snapshot {
                    index: index - 1,
                    term: 1,
                    members: vec![],
                    data: Bytes::new(),
                };
                write.compact = Some(Compaction {
                    keep_from: index,
                    before: 1,
                    snapshot,
                });
            }
            let done = done.clone();
            log.append(
                gid(group as u64),
                write,
                Box::new(move |result| done.send(result.map(|()| group)).unwrap()),
            );
        };
        (1..=groups).for_each(|group| (0..in_flight).for_each(|_| send(group, &mut next)));
        let start = std::time::Instant::now();
        let mut count = 0_u64;
        while start.elapsed().as_secs() < 3 {
            let group = durable.recv().unwrap().unwrap();
            count += 1;
            send(group, &mut next);
        }
        let seconds = start.elapsed().as_secs_f64();
        let syncs = log.syncs();
        println!(
            "{groups} groups x {in_flight} in flight, {size} bytes: {:.0} appends/s, {:.0} syncs/s, {:.1} appends/sync",
            count as f64 / seconds,
            syncs as f64 / seconds,
            count as f64 / syncs as f64
        );
    }
}
