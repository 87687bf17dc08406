//! Verifying a chain on disk, without an orderer: is every block what the channel's orderers made?
//!
//! Each record is held against its own hashes, the block before it, the signatures that the configuration in force at that
//! height demands, what its metadata say of that configuration, and the index. Ledgers that Fabric's orderer wrote are
//! looked at in the same way; they have no index of ours. Nothing is changed, and nothing found stops the walk as long as
//! the records can be told from each other.
//!
//! Start reading at [`chain`].

use std::path::{Path, PathBuf};

use quorate_fabric::block;
use quorate_fabric::config::ChannelConfig;
use quorate_fabric::envelope::{EnvelopeParts, RawEnvelope};
use quorate_fabric::proto::common::{Block, HeaderType};
use quorate_runtime::tasks::chain as causes;
use serde::Serialize;

use crate::replication::signed;
use crate::store::{Agreement, Step, StoreError, Walk, Walked};

/// Findings that are reported of one chain; further ones are counted.
pub const MAX_FINDINGS: usize = 100;

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The chain is not what it was, or not what the channel's orderers made.
    Damage,
    /// Nothing has to be done.
    Note,
}

/// Something that was found.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// The block that is or should be there.
    pub block: u64,
    /// The file.
    pub path: PathBuf,
    /// Where its record begins, in bytes.
    pub offset: u64,
    /// What was found.
    pub what: String,
}

/// What was found of one chain.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The channel.
    pub channel: String,
    /// The first block that is there; older ones were pruned.
    pub first: u64,
    /// Number of blocks, those that were pruned included.
    pub height: u64,
    /// Configuration blocks that were looked at.
    pub configurations: u64,
    /// Bytes of block files that were read.
    pub bytes: u64,
    /// The newest block's header hash, in hexadecimal digits.
    pub head: Option<String>,
    /// What was found, in the order of the chain.
    pub findings: Vec<Finding>,
    /// Findings beyond [`MAX_FINDINGS`].
    pub unreported: u64,
}

impl Report {
    /// Whether nothing is damaged.
    #[must_use]
    pub fn is_intact(&self) -> bool {
        self.unreported == 0
            && self
                .findings
                .iter()
                .all(|finding| finding.severity == Severity::Note)
    }
}

/// Verifies the chain in `folder`, which is `<FileLedger.Location>/chains/<channel>` or a copy of such a folder.
/// `progress` is told the height after every block.
///
/// # Errors
/// The disk's; what cannot be read as a chain at all.
pub fn chain(
    folder: &Path,
    channel: &str,
    progress: &mut dyn FnMut(u64),
) -> Result<Report, StoreError> {
    let walk = Walk::begin(folder, channel)?;
    let mut audit = Audit {
        report: Report {
            channel: channel.to_owned(),
            first: walk.first(),
            height: walk.first(),
            configurations: 0,
            bytes: 0,
            head: None,
            findings: Vec::new(),
            unreported: 0,
        },
        previous: walk.previous(),
        config: None,
        last_config: None,
        raft_index: 0,
        unjudged: false,
        walk,
    };
    audit.run(progress)?;
    Ok(audit.report)
}

struct Audit {
    walk: Walk,
    report: Report,
    /// The hash of the block before; `None` at the beginning, and after a record that is no block.
    previous: Option<[u8; 32]>,
    config: Option<ChannelConfig>,
    /// The number of the configuration block in force, if it is known.
    last_config: Option<u64>,
    raft_index: u64,
    /// Whether it was already said that signatures cannot be judged.
    unjudged: bool,
}

impl Audit {
    fn run(&mut self, progress: &mut dyn FnMut(u64)) -> Result<(), StoreError> {
        self.begin();
        let mut end = None;
        while let Some(step) = self.walk.step()? {
            match step {
                Step::Record(record) => {
                    self.record(&record)?;
                    self.report.height += 1;
                    self.report.bytes += record.end - record.offset;
                    progress(self.report.height);
                    end = Some((record.file, record.end));
                }
                Step::CutOff { file, offset, more } => {
                    self.cut_off(file, offset, more);
                    end = Some((file, offset));
                    break;
                }
            }
        }
        let height = self.report.height;
        if let (Some(durable), Some((file, offset))) = (self.walk.durable(), end)
            && durable > height
        {
            self.found(
                Severity::Damage,
                file,
                offset,
                format!(
                    "the chain ends here, and its index says that blocks up to {} were durable",
                    durable - 1
                ),
            );
        }
        Ok(())
    }

    /// What was kept of a pruned chain's beginning.
    fn begin(&mut self) {
        let newest = self.walk.kept().iter().max_by_key(|block| block.number());
        if let Some(kept) = newest
            && let Ok(config) = ChannelConfig::from_block(&kept.block())
        {
            self.last_config = Some(kept.number());
            self.config = Some(config);
        }
    }

    fn record(&mut self, record: &Walked) -> Result<(), StoreError> {
        let number = self.report.height;
        let damage = |audit: &mut Self, what: String| {
            audit.found(Severity::Damage, record.file, record.offset, what);
        };
        match self.walk.index_agrees(number, record)? {
            Agreement::Same | Agreement::Silent => {}
            Agreement::OtherBytes => damage(
                self,
                "its bytes are not those that were written: the index has another checksum"
                    .to_owned(),
            ),
            Agreement::NoEntry | Agreement::ElseWhere => {
                let index = self.walk.index_path();
                damage(
                    self,
                    format!(
                        "the index {} does not say that the block is here; remove the file, and the orderer makes it again \
                         when it starts",
                        index.display()
                    ),
                );
            }
        }
        let block = match &record.block {
            Ok(block) => block,
            Err(reason) => {
                damage(self, format!("the record is no block: {reason}"));
                self.previous = None;
                return Ok(());
            }
        };
        let Ok(header) = block::header(block) else {
            // A record always has one.
            return Ok(());
        };
        if header.number != number {
            damage(self, format!("it says that it is block {}", header.number));
        }
        let mut whole = true;
        if let Err(reason) = block::check_data_hash(block) {
            whole = false;
            damage(self, reason.to_string());
        }
        if let Some(previous) = self.previous
            && header.previous_hash != previous[..]
        {
            whole = false;
            damage(
                self,
                format!(
                    "it names {} as the hash of the block before it, which is {}",
                    hex::encode(&header.previous_hash),
                    hex::encode(previous)
                ),
            );
        }
        let hash = block::header_hash(header);
        self.previous = Some(hash);
        self.report.head = Some(hex::encode(hash));
        if whole {
            self.judge(block, record);
        }
        Ok(())
    }

    /// Signatures and metadata of a block whose hashes are right.
    fn judge(&mut self, block: &Block, record: &Walked) {
        let number = self.report.height;
        let damage = |audit: &mut Self, what: String| {
            audit.found(Severity::Damage, record.file, record.offset, what);
        };
        match &self.config {
            // Nobody signs a genesis block.
            _ if number == 0 => {}
            Some(config) => {
                if let Err(reason) = signed(block, config) {
                    damage(self, causes(&reason));
                }
            }
            None if self.unjudged => {}
            None => {
                self.unjudged = true;
                damage(
                    self,
                    "its signatures cannot be judged, nor those that follow: no configuration is known here".to_owned(),
                );
            }
        }
        let is_config = holds_config(block);
        if is_config {
            self.report.configurations += 1;
            self.last_config = Some(number);
            match ChannelConfig::from_block(block) {
                Ok(config) if config.channel_id() == self.report.channel => {
                    self.config = Some(config);
                    self.unjudged = false;
                }
                Ok(config) => damage(
                    self,
                    format!("it configures channel {}", config.channel_id()),
                ),
                Err(reason) => {
                    self.config = None;
                    damage(
                        self,
                        format!("its configuration cannot be used: {}", causes(&reason)),
                    );
                }
            }
        }
        match (block::last_config(block), self.last_config) {
            (Ok(said), Some(known)) if said != known => damage(
                self,
                format!("it names block {said} as its configuration, and {known} was in force"),
            ),
            (Err(reason), _) if number > 0 => damage(self, reason.to_string()),
            _ => {}
        }
        match block::consenter_metadata(block) {
            Ok(Some(metadata)) if metadata.raft_index < self.raft_index => damage(
                self,
                format!(
                    "its Raft index is {}, and the block before it had {}",
                    metadata.raft_index, self.raft_index
                ),
            ),
            Ok(Some(metadata)) => self.raft_index = metadata.raft_index,
            Ok(None) => {}
            Err(reason) => damage(self, reason.to_string()),
        }
    }

    fn cut_off(&mut self, file: u32, offset: u64, more: bool) {
        let durable = self.walk.durable();
        let torn = !more && durable.is_none_or(|durable| self.report.height >= durable);
        if torn {
            self.found(
                Severity::Note,
                file,
                offset,
                "a record that was not completely written; it is cut off when the orderer starts, and its block comes again"
                    .to_owned(),
            );
        } else {
            self.found(
                Severity::Damage,
                file,
                offset,
                "the record's length is not that of a block; nothing behind it can be looked at"
                    .to_owned(),
            );
        }
    }

    fn found(&mut self, severity: Severity, file: u32, offset: u64, what: String) {
        if self.report.findings.len() >= MAX_FINDINGS {
            self.report.unreported += u64::from(severity == Severity::Damage);
            return;
        }
        self.report.findings.push(Finding {
            severity,
            block: self.report.height,
            path: self.walk.path(file),
            offset,
            what,
        });
    }
}

/// Whether the block holds a new configuration of its own channel. A system channel's blocks may also hold the first
/// configuration of another one.
fn holds_config(block: &Block) -> bool {
    let Some([envelope]) = block.data.as_ref().map(|data| data.data.as_slice()) else {
        return false;
    };
    RawEnvelope::decode(envelope.clone())
        .ok()
        .and_then(|envelope| EnvelopeParts::parse(&envelope).ok())
        .is_some_and(|parts| parts.channel_header.is(HeaderType::Config))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use std::fs;

    use super::*;
    use crate::store::{Ledgers, StoredBlock};

    fn fixture(path: &str) -> PathBuf {
        Path::new(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../fixtures/fabric"
        ))
        .join(path)
    }

    fn recorded() -> (String, Vec<StoredBlock>) {
        let blocks: Vec<_> = (0..32)
            .map(|number| {
                let bytes = fs::read(fixture(&format!("chain/{number:02}.block"))).unwrap();
                StoredBlock::decode(bytes.into()).unwrap()
            })
            .collect();
        let config = ChannelConfig::from_block(&blocks[0].block()).unwrap();
        (config.channel_id().to_owned(), blocks)
    }

    struct Stored {
        location: tempfile::TempDir,
        channel: String,
    }

    impl Stored {
        fn new() -> Self {
            let location = tempfile::tempdir().unwrap();
            let (channel, blocks) = recorded();
            let store = Ledgers::open(location.path())
                .unwrap()
                .get_or_create(&channel)
                .unwrap();
            for block in &blocks {
                store.append(block).unwrap();
            }
            store.sync().unwrap();
            Self { location, channel }
        }

        fn folder(&self) -> PathBuf {
            self.location.path().join("chains").join(&self.channel)
        }

        fn file(&self) -> PathBuf {
            self.folder().join("blockfile_000000")
        }

        fn report(&self) -> Report {
            chain(&self.folder(), &self.channel, &mut |_| {}).unwrap()
        }
    }

    #[test]
    fn a_chain_that_fabric_made_is_intact_with_and_without_our_index() {
        let stored = Stored::new();
        for _ in 0..2 {
            let report = stored.report();
            assert!(report.is_intact(), "{:?}", report.findings);
            assert_eq!((report.first, report.height), (0, 32));
            assert!(report.configurations > 1);
            let (_, blocks) = recorded();
            assert_eq!(report.head.unwrap(), hex::encode(blocks[31].header_hash()));
            let _ = fs::remove_file(stored.folder().join("index.quorate"));
        }
    }

    #[test]
    fn every_flipped_byte_is_found_and_placed() {
        let stored = Stored::new();
        let whole = fs::read(stored.file()).unwrap();
        // A prime stride visits every kind of field over the whole file.
        for at in (0..whole.len()).step_by(997) {
            let mut flipped = whole.clone();
            flipped[at] ^= 0x04;
            fs::write(stored.file(), &flipped).unwrap();
            let report = stored.report();
            assert!(!report.is_intact(), "byte {at}");
            let first = report
                .findings
                .iter()
                .find(|finding| finding.severity == Severity::Damage)
                .unwrap();
            assert!(first.offset <= at as u64, "byte {at}: {first:?}");
            assert_eq!(first.path, stored.file());
        }
    }

    #[test]
    fn a_signature_that_does_not_count_is_found_without_an_index() {
        let stored = Stored::new();
        let (_, blocks) = recorded();
        fs::remove_dir_all(stored.folder()).unwrap();
        let store = Ledgers::open(stored.location.path())
            .unwrap()
            .get_or_create(&stored.channel)
            .unwrap();
        for block in &blocks {
            let mut block = block.block();
            if block.header.as_ref().unwrap().number == 9 {
                let metadata = block.metadata.as_mut().unwrap();
                metadata.metadata[0] = blocks[8].block().metadata.unwrap().metadata[0].clone();
            }
            store.append(&StoredBlock::new(&block).unwrap()).unwrap();
        }
        store.sync().unwrap();
        let report = stored.report();
        assert_eq!(report.findings.len(), 1, "{:?}", report.findings);
        assert_eq!(report.findings[0].block, 9);
        assert!(
            report.findings[0].what.contains("not signed"),
            "{:?}",
            report.findings
        );
    }

    #[test]
    fn a_torn_tail_is_no_damage_but_a_missing_one_is() {
        let stored = Stored::new();
        let whole = fs::read(stored.file()).unwrap();
        let mut torn = whole.clone();
        torn.extend_from_slice(&[0xff, 0x7f, 1, 2, 3]);
        fs::write(stored.file(), &torn).unwrap();
        let report = stored.report();
        assert!(report.is_intact());
        assert_eq!(report.findings.len(), 1);
        assert_eq!(report.findings[0].offset, whole.len() as u64);

        fs::write(stored.file(), &whole[..whole.len() - 10]).unwrap();
        assert!(!stored.report().is_intact());
    }
}
