//! Ledgers into a backup and back, and the refusal of forks.
//!
//! A backup is a folder like `FileLedger.Location` with nothing but `chains`, and so is an archive of pruned blocks: what
//! verifies the one verifies the other. The consensus log is never in it: what an orderer has promised is of use only
//! together with everything that it promised later. Who restores a ledger has therefore forgotten, and [`restore`] leaves
//! the mark by which the orderer knows, unless it finds that the orderer still has its own.
//!
//! Before something is restored it is held against the orderers that run ([`against_orderers`]) and against other
//! backups ([`against_chain`]): a chain that is not theirs must not come into the world again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use quorate_fabric::block;
use quorate_fabric::config::{ChannelConfig, OrdererEndpoint};
use quorate_runtime::Entropy;

use crate::registrar::{IncarnationError, Incarnations};
use crate::replication::{PullFailure, Puller, PullerContext};
use crate::store::{Copied, CopyError, Extent, Ledgers, Step, StoreError, Walk, copy};

/// Attempts to have a block of an orderer that is asked for comparison.
const ATTEMPTS: u32 = 2;

/// Why a chain was not restored, or cannot be compared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// The files.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// The ledgers.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The name of the channel's Raft group.
    #[error(transparent)]
    Incarnation(#[from] IncarnationError),
    /// Two chains of one channel.
    #[error(transparent)]
    Fork(Box<Fork>),
    /// There is no configuration to be found.
    #[error(
        "the backup of channel {channel} holds no configuration that can be used, so nobody can be asked about it"
    )]
    NoConfiguration {
        /// The channel.
        channel: String,
    },
    /// A folder without chains.
    #[error("there are no ledgers in {}: it has no folder `chains`", .path.display())]
    NoChains {
        /// The folder.
        path: PathBuf,
    },
}

/// Two chains of one channel.
#[derive(Debug, thiserror::Error)]
#[error(
    "channel {channel}: block {number} has the hash {ours} in {} and {theirs} at {other}: these are two forks, and nothing \
     was restored. Find out which of them the channel's clients have seen, and restore a backup of that one",
    .from.display()
)]
pub struct Fork {
    /// The channel.
    pub channel: String,
    /// The block.
    pub number: u64,
    /// The backup.
    pub from: PathBuf,
    /// The block's hash there, in hexadecimal digits.
    pub ours: String,
    /// The other orderer, or folder.
    pub other: String,
    /// The block's hash there.
    pub theirs: String,
}

/// The folder of one channel's chain in a `FileLedger.Location` or a backup.
#[must_use]
pub fn chain_folder(location: &Path, channel: &str) -> PathBuf {
    location.join("chains").join(channel)
}

/// The channels that have a folder in a `FileLedger.Location` or a backup, in order.
///
/// # Errors
/// The disk's; no folder `chains`.
pub fn channels(location: &Path) -> Result<Vec<String>, BackupError> {
    let chains = location.join("chains");
    let io = |source| StoreError::Io {
        operation: "read",
        path: chains.clone(),
        source,
    };
    let entries = match fs::read_dir(&chains) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(BackupError::NoChains {
                path: location.to_owned(),
            });
        }
        Err(error) => return Err(io(error).into()),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(io)?;
        if entry.file_type().map_err(io)?.is_dir()
            && let Ok(name) = entry.file_name().into_string()
        {
            found.push(name);
        }
    }
    found.sort();
    Ok(found)
}

/// Brings the backup of a channel up to date. The orderer may run.
///
/// # Errors
/// [`CopyError`].
pub fn backup(location: &Path, to: &Path, channel: &str) -> Result<Copied, CopyError> {
    copy(
        &chain_folder(location, channel),
        &chain_folder(to, channel),
        channel,
        Extent::All,
    )
}

/// What was restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restored {
    /// The chain.
    pub copied: Copied,
    /// Whether the orderer has forgotten what it promised in the channel's Raft group, and will not vote before a leader
    /// has given that back.
    pub forgotten: bool,
}

/// Lets the channel go on from the end of its ledger, which has this many blocks, on an orderer that has lost its log, as
/// all others have: they begin a new Raft group together. The orderer must not run.
///
/// # Errors
/// [`BackupError`].
pub fn begin_anew(
    location: &Path,
    channel: &str,
    height: u64,
    entropy: &Entropy,
) -> Result<(), BackupError> {
    let _locked = Ledgers::open(location)?;
    if let Some(newest) = height.checked_sub(1) {
        Incarnations::open(location)?.mark_continued(channel, newest, entropy)?;
    }
    Ok(())
}

/// Brings a channel's ledger back from a backup, or up to it. The orderer must not run: its folder is locked meanwhile.
/// What is there already has to be the beginning of what comes. Interrupted, it can be done again; an orderer that is
/// started in between fetches the rest from the others.
///
/// # Errors
/// [`BackupError`]; a ledger that holds more than the backup is not touched.
pub fn restore(
    from: &Path,
    location: &Path,
    channel: &str,
    entropy: &Entropy,
) -> Result<Restored, BackupError> {
    let ledgers = Ledgers::open(location)?;
    // Before the first block is there: an orderer that finds a short chain without it would take it for a new one.
    let forgotten = Incarnations::open(location)?.mark_lost(channel, entropy)?;
    let copied = copy(
        &chain_folder(from, channel),
        &chain_folder(location, channel),
        channel,
        Extent::All,
    )?;
    // Makes the index, and finds out whether all of it can be opened.
    drop(ledgers.get(channel)?);
    Ok(Restored { copied, forgotten })
}

/// A chain that is to be compared.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// The channel.
    pub channel: String,
    /// Where its block files are.
    pub folder: PathBuf,
    /// Its first block.
    pub first: u64,
    /// How many blocks it has.
    pub height: u64,
}

impl Candidate {
    /// The configuration in force at its end.
    ///
    /// # Errors
    /// The disk's; none that can be used.
    pub fn configuration(&self) -> Result<ChannelConfig, BackupError> {
        let mut walk = Walk::begin(&self.folder, &self.channel)?;
        let mut newest = None;
        for kept in walk.kept() {
            newest = ChannelConfig::from_block(&kept.block()).ok().or(newest);
        }
        while let Some(Step::Record(record)) = walk.step()? {
            if let Ok(one) = record.block
                && block::is_config(&one)
                && let Ok(config) = ChannelConfig::from_block(&one)
                && config.channel_id() == self.channel
            {
                newest = Some(config);
            }
        }
        newest.ok_or_else(|| BackupError::NoConfiguration {
            channel: self.channel.clone(),
        })
    }

    /// The header hashes of the blocks of these numbers, as far as they are there.
    fn hashes(&self, wanted: &BTreeSet<u64>) -> Result<BTreeMap<u64, [u8; 32]>, BackupError> {
        let mut walk = Walk::begin(&self.folder, &self.channel)?;
        let mut found = BTreeMap::new();
        while found.len() < wanted.len()
            && let Some(Step::Record(record)) = walk.step()?
        {
            if let Ok(one) = record.block
                && let Some(header) = &one.header
                && wanted.contains(&header.number)
            {
                found.insert(header.number, block::header_hash(header));
            }
        }
        Ok(found)
    }

    fn fork(&self, number: u64, ours: &[u8], other: String, theirs: &[u8]) -> BackupError {
        BackupError::Fork(Box::new(Fork {
            channel: self.channel.clone(),
            number,
            from: self.folder.clone(),
            ours: hex::encode(ours),
            other,
            theirs: hex::encode(theirs),
        }))
    }
}

/// Holds a chain against another one on disk, which may be longer or shorter; the number of blocks that both have. The
/// hash of the last of these speaks for all before it.
///
/// # Errors
/// [`BackupError::Fork`]; the disk's.
pub fn against_chain(ours: &Candidate, theirs: &Candidate) -> Result<u64, BackupError> {
    let common = ours.height.min(theirs.height);
    let Some(last) = common.checked_sub(1) else {
        return Ok(0);
    };
    let wanted = BTreeSet::from([last]);
    let (mine, other) = (ours.hashes(&wanted)?, theirs.hashes(&wanted)?);
    match (mine.get(&last), other.get(&last)) {
        (Some(mine), Some(other)) if mine != other => {
            Err(ours.fork(last, mine, theirs.folder.display().to_string(), other))
        }
        // Where one was pruned beyond the other's end there is nothing to compare.
        _ => Ok(common),
    }
}

/// What an orderer said when it was asked for comparison.
#[derive(Debug)]
pub struct Asked {
    /// Its address.
    pub endpoint: String,
    /// How many blocks it has, and how many of them both have; or why nothing is known.
    pub answer: Result<(u64, u64), PullFailure>,
}

/// The hash of block `last` at an orderer of that height, which may only have the block after it, that names it.
async fn hash_there(puller: &mut Puller, last: u64, height: u64) -> Result<Vec<u8>, PullFailure> {
    match puller.pull(last).await {
        Ok(block) => Ok(block.header_hash().to_vec()),
        Err(PullFailure::Pruned { .. }) if height > last + 1 => {
            let next = puller.pull(last + 1).await?;
            Ok(next.header().previous_hash.to_vec())
        }
        Err(failure) => Err(failure),
    }
}

/// Holds a chain against those of the orderers that run. Those that do not answer are reported as such.
///
/// # Errors
/// [`BackupError::Fork`]; the disk's.
pub async fn against_orderers(
    ours: &Candidate,
    sources: Vec<OrdererEndpoint>,
    context: &PullerContext,
) -> Result<Vec<Asked>, BackupError> {
    let mut context = context.clone();
    context.options.max_retries = ATTEMPTS;
    let mut heights = Vec::new();
    for source in sources {
        let endpoint = source.address.clone();
        let puller = Puller::new(context.clone(), &ours.channel, vec![source], None);
        let height = puller
            .heights()
            .await
            .map(|heights| heights.into_values().max().unwrap_or_default());
        heights.push((endpoint, puller, height));
    }
    let common = |height: u64| height.min(ours.height);
    let wanted = heights
        .iter()
        .filter_map(|(_, _, height)| common(*height.as_ref().ok()?).checked_sub(1))
        .collect();
    let hashes = ours.hashes(&wanted)?;
    let mut asked = Vec::new();
    for (endpoint, mut puller, height) in heights {
        let answer = match height {
            Err(failure) => Err(failure),
            Ok(height) => match common(height).checked_sub(1) {
                None => Ok((height, 0)),
                Some(last) => match hash_there(&mut puller, last, height).await {
                    Err(failure) => Err(failure),
                    Ok(theirs) => {
                        if let Some(mine) = hashes.get(&last)
                            && mine[..] != theirs[..]
                        {
                            return Err(ours.fork(last, mine, endpoint, &theirs));
                        }
                        Ok((height, last + 1))
                    }
                },
            },
        };
        asked.push(Asked { endpoint, answer });
    }
    Ok(asked)
}
