//! A disk that fails on demand, for tests that must be repeatable.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::disk::{Disk, File};

/// What survives a crash is decided for pieces of this size.
const SECTOR: usize = 512;

/// A small repeatable source of numbers.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// The same seed gives the same numbers.
    pub fn new(seed: u64) -> Self {
        Self(seed ^ 0x9e37_79b9_7f4a_7c15)
    }

    /// The next number.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.roll() % bound
    }

    /// True in `percent` of cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// A disk in memory that loses at a crash what was not synced: all of it, some of it, torn in sectors. Cheap to
/// clone; the clones are one disk.
#[derive(Clone)]
pub struct SimDisk {
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    dice: Dice,
    /// Crashes so far: handles of an earlier life do not work any more.
    life: u64,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    files: Vec<Content>,
    /// Operations until one fails, and how.
    fault: Option<(u64, Fault)>,
    syncs: u64,
}

#[derive(Default)]
struct Content {
    live: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<Change>,
}

enum Change {
    Write(usize, Vec<u8>),
    Truncate(usize),
}

/// How an operation fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// There is no space left: of a write, some part may be done.
    Full,
    /// The operation fails; what was not synced before never will be.
    Broken,
    /// The machine stops: every operation from now on fails until [`SimDisk::crash`].
    Stop,
}

impl SimDisk {
    /// An empty disk.
    pub fn new(seed: u64) -> Self {
        Self {
            inner: Arc::new(Mutex::new(Inner {
                dice: Dice::new(seed),
                life: 0,
                names: BTreeMap::new(),
                durable_names: BTreeMap::new(),
                files: Vec::new(),
                fault: None,
                syncs: 0,
            })),
        }
    }

    /// After `operations` more writes, syncs, creations and removals one fails.
    pub fn fail_after(&self, operations: u64, fault: Fault) {
        self.lock().fault = Some((operations, fault));
    }

    /// The machine stops and starts again: handles are dead, what was not synced may be gone.
    pub fn crash(&self) {
        let mut inner = self.lock();
        let Inner {
            dice,
            names,
            durable_names,
            files,
            ..
        } = &mut *inner;
        for content in files.iter_mut() {
            let mut after = std::mem::take(&mut content.durable);
            let keep = dice.below(4);
            for change in content.unsynced.drain(..) {
                match change {
                    Change::Write(offset, bytes) => {
                        for (at, sector) in bytes.chunks(SECTOR).enumerate() {
                            // Everything, nothing, or each sector as it happens.
                            if keep == 0 || (keep > 1 && dice.chance(50)) {
                                write(&mut after, offset + at * SECTOR, sector);
                            }
                        }
                    }
                    Change::Truncate(length) => {
                        if dice.chance(50) {
                            after.truncate(length);
                        }
                    }
                }
            }
            content.live = after.clone();
            content.durable = after;
        }
        let mut after = durable_names.clone();
        for (name, &file) in names.iter() {
            if !durable_names.contains_key(name) && dice.chance(50) {
                after.insert(name.clone(), file);
            }
        }
        for name in durable_names.keys() {
            if !names.contains_key(name) && dice.chance(50) {
                after.remove(name);
            }
        }
        *names = after.clone();
        *durable_names = after;
        inner.life += 1;
        inner.fault = None;
    }

    /// Only the process starts again: handles are dead, but the system still has in memory what it had, whether it was
    /// synced or not.
    pub fn restart(&self) {
        let mut inner = self.lock();
        inner.life += 1;
        inner.fault = None;
    }

    /// Inverts one bit of a file, as a bad disk does. Does nothing if there is no such byte.
    pub fn flip(&self, name: &str, offset: usize, bit: u8) {
        let mut inner = self.lock();
        if let Some(&file) = inner.names.get(name) {
            let content = &mut inner.files[file];
            for bytes in [&mut content.live, &mut content.durable] {
                if let Some(byte) = bytes.get_mut(offset) {
                    *byte ^= 1 << (bit & 7);
                }
            }
        }
    }

    /// How many times a file was synced.
    pub fn syncs(&self) -> u64 {
        self.lock().syncs
    }

    /// Bytes in all files.
    pub fn size(&self) -> u64 {
        let inner = self.lock();
        inner
            .names
            .values()
            .map(|&file| inner.files[file].live.len() as u64)
            .sum()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handle(&self, inner: &Inner, file: usize) -> Arc<dyn File> {
        Arc::new(SimFile {
            disk: self.clone(),
            life: inner.life,
            file,
        })
    }
}

impl Inner {
    /// Counts an operation; `Err` is its failure.
    fn operate(&mut self) -> Result<(), Fault> {
        match &mut self.fault {
            Some((0, fault)) => {
                let fault = *fault;
                if fault != Fault::Stop {
                    self.fault = None;
                }
                Err(fault)
            }
            Some((left, _)) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl From<Fault> for io::Error {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Full => io::Error::from(io::ErrorKind::StorageFull),
            Fault::Broken => io::Error::other("the simulated disk is broken"),
            Fault::Stop => io::Error::other("the simulated machine has stopped"),
        }
    }
}

impl Disk for SimDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.lock().names.keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let mut inner = self.lock();
        inner.operate()?;
        if inner.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        inner.files.push(Content::default());
        let file = inner.files.len() - 1;
        inner.names.insert(name.to_owned(), file);
        Ok(self.handle(&inner, file))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let inner = self.lock();
        let &file = inner.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(self.handle(&inner, file))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut inner = self.lock();
        inner.operate()?;
        inner
            .names
            .remove(name)
            .map(drop)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn sync(&self) -> io::Result<()> {
        let mut inner = self.lock();
        inner.operate()?;
        inner.durable_names = inner.names.clone();
        Ok(())
    }

    fn locate(&self, name: &str) -> String {
        format!("simulated disk: {name}")
    }
}

struct SimFile {
    disk: SimDisk,
    life: u64,
    file: usize,
}

impl SimFile {
    fn with<R>(&self, work: impl FnOnce(&mut Inner) -> io::Result<R>) -> io::Result<R> {
        let mut inner = self.disk.lock();
        if inner.life != self.life {
            return Err(io::Error::other("the simulated machine was restarted"));
        }
        work(&mut inner)
    }
}

impl File for SimFile {
    fn length(&self) -> io::Result<u64> {
        self.with(|inner| Ok(inner.files[self.file].live.len() as u64))
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.with(|inner| {
            let offset = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
            let live = &inner.files[self.file].live;
            let bytes = live.get(offset..).and_then(|rest| rest.get(..buffer.len()));
            buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.with(|inner| {
            let mut bytes = bytes;
            let done = inner.operate();
            if done.is_err() {
                // Some of it may have been done.
                let part = inner.dice.below(bytes.len() as u64 + 1) as usize;
                bytes = &bytes[..part];
            }
            let content = &mut inner.files[self.file];
            write(&mut content.live, offset as usize, bytes);
            content
                .unsynced
                .push(Change::Write(offset as usize, bytes.to_vec()));
            Ok(done?)
        })
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        self.with(|inner| {
            inner.operate()?;
            let content = &mut inner.files[self.file];
            content.live.truncate(length as usize);
            content.unsynced.push(Change::Truncate(length as usize));
            Ok(())
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.with(|inner| {
            let done = inner.operate();
            inner.syncs += 1;
            let content = &mut inner.files[self.file];
            match done {
                Ok(()) => {
                    for change in content.unsynced.drain(..) {
                        match change {
                            Change::Write(offset, bytes) => {
                                write(&mut content.durable, offset, &bytes)
                            }
                            Change::Truncate(length) => content.durable.truncate(length),
                        }
                    }
                    Ok(())
                }
                Err(Fault::Stop) => Err(Fault::Stop.into()),
                Err(fault) => {
                    // The system takes the pages for written from now on. They are not.
                    content.unsynced.clear();
                    Err(fault.into())
                }
            }
        })
    }
}

fn write(into: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    if bytes.is_empty() {
        return;
    }
    if into.len() < offset + bytes.len() {
        into.resize(offset + bytes.len(), 0);
    }
    into[offset..offset + bytes.len()].copy_from_slice(bytes);
}
