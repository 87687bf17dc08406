//! Ledgers on a disk that stops, lies and rots.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use prost::encoding::encode_varint;
use quorate_fabric::block as rules;
use quorate_fabric::proto::common::{Block, BlockMetadata};
use tempfile::TempDir;

use super::*;

const CHANNEL: &str = "fixture";

fn fixture(path: &str) -> PathBuf {
    Path::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../fixtures/fabric"
    ))
    .join(path)
}

/// The chain recorded from Fabric: 32 blocks.
fn recorded() -> Vec<StoredBlock> {
    (0..32)
        .map(|number| {
            let bytes = fs::read(fixture(&format!("chain/{number:02}.block"))).unwrap();
            StoredBlock::decode(bytes.into()).unwrap()
        })
        .collect()
}

/// A chain of small blocks.
fn small(count: u64) -> Vec<StoredBlock> {
    let mut blocks: Vec<StoredBlock> = Vec::new();
    for number in 0..count {
        let previous = blocks
            .last()
            .map_or(&[][..], |block| &block.header_hash()[..]);
        let envelope = Bytes::from(format!("envelope of block {number}"));
        let mut block = rules::new_block(number, previous, vec![envelope]);
        block.metadata = Some(BlockMetadata {
            metadata: vec![Bytes::from_static(b"signatures"), Bytes::new()],
        });
        blocks.push(StoredBlock::new(&block).unwrap());
    }
    blocks
}

/// A record as Fabric's code writes it, spelt out independently of the code under test.
fn fabrics_record(block: &Block) -> Vec<u8> {
    fn bytes(out: &mut Vec<u8>, content: &[u8]) {
        encode_varint(content.len() as u64, out);
        out.extend(content);
    }
    let (header, data, metadata) = (
        block.header.as_ref().unwrap(),
        &block.data.as_ref().unwrap().data,
        &block.metadata.as_ref().unwrap().metadata,
    );
    let mut body = Vec::new();
    encode_varint(header.number, &mut body);
    bytes(&mut body, &header.data_hash);
    bytes(&mut body, &header.previous_hash);
    encode_varint(data.len() as u64, &mut body);
    data.iter().for_each(|item| bytes(&mut body, item));
    encode_varint(metadata.len() as u64, &mut body);
    metadata.iter().for_each(|item| bytes(&mut body, item));
    let mut record = Vec::new();
    bytes(&mut record, &body);
    record
}

struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn open(&self) -> Ledgers {
        Ledgers::open(self.path()).unwrap()
    }

    fn chain(&self) -> PathBuf {
        self.path().join("chains").join(CHANNEL)
    }

    fn file(&self, number: u32) -> PathBuf {
        files::path(&self.chain(), number)
    }

    fn index(&self) -> PathBuf {
        self.chain().join(index::FILE_NAME)
    }

    /// What the disk holds now, elsewhere: the state after the process or the machine stops at this moment.
    fn copy(&self) -> Self {
        fn copy(from: &Path, to: &Path) {
            fs::create_dir_all(to).unwrap();
            for entry in fs::read_dir(from).unwrap() {
                let entry = entry.unwrap();
                let to = to.join(entry.file_name());
                if entry.file_type().unwrap().is_dir() {
                    copy(&entry.path(), &to);
                } else {
                    fs::copy(entry.path(), to).unwrap();
                }
            }
        }
        let place = Self::new();
        copy(self.path(), place.path());
        place
    }

    /// A ledger with these blocks, synced, closed.
    fn with(blocks: &[StoredBlock]) -> Self {
        let place = Self::new();
        let store = place.open().get_or_create(CHANNEL).unwrap();
        for block in blocks {
            store.append(block).unwrap();
        }
        store.sync().unwrap();
        place
    }

    fn store(&self) -> Result<BlockStore, StoreError> {
        Ok(self.open().get(CHANNEL)?.unwrap())
    }
}

fn assert_chain(store: &BlockStore, blocks: &[StoredBlock]) {
    assert_eq!(store.height(), blocks.len() as u64);
    for block in blocks {
        let read = store.read(block.number()).unwrap().unwrap();
        assert_eq!(*read, *block);
    }
    assert!(store.read(blocks.len() as u64).unwrap().is_none());
    assert!(store.read(u64::MAX).unwrap().is_none());
    assert_eq!(store.newest().as_deref(), blocks.last());
}

fn damaged(result: Result<BlockStore, StoreError>) -> (PathBuf, u64) {
    match result {
        Err(StoreError::Damaged { path, offset, .. }) => (path, offset),
        other => panic!("expected damage, found {other:?}"),
    }
}

#[test]
fn a_recorded_chain_is_stored_as_fabric_stores_it() {
    let blocks = recorded();
    let place = Place::with(&blocks);
    let expected: Vec<u8> = blocks
        .iter()
        .flat_map(|block| fabrics_record(&block.block()))
        .collect();
    assert_eq!(fs::read(place.file(0)).unwrap(), expected);

    let store = place.store().unwrap();
    assert_chain(&store, &blocks);
    for (number, block) in blocks.iter().enumerate() {
        let file = fs::read(fixture(&format!("chain/{number:02}.block"))).unwrap();
        assert_eq!(block.encoded(), &file);
    }
    let newest = blocks[31].block();
    assert_eq!(
        store.last_config_number(),
        Some(rules::last_config(&newest).unwrap())
    );
}

#[test]
fn a_ledger_written_by_fabric_is_taken_over() {
    let blocks = recorded();
    let place = Place::new();
    fs::create_dir_all(place.chain()).unwrap();
    fs::create_dir_all(place.path().join("index")).unwrap();
    fs::write(place.path().join("index/CURRENT"), "MANIFEST-000000\n").unwrap();
    // Fabric's code begins a new file when one is full, before it has anything to write there.
    let (first, second) = blocks[..31].split_at(20);
    for (number, part) in [(0, first), (1, second), (2, &[])] {
        let bytes: Vec<u8> = part
            .iter()
            .flat_map(|block| fabrics_record(&block.block()))
            .collect();
        fs::write(place.file(number), bytes).unwrap();
    }

    let ledgers = place.open();
    assert_eq!(ledgers.channels().unwrap(), [CHANNEL]);
    let store = ledgers.get(CHANNEL).unwrap().unwrap();
    assert_chain(&store, &blocks[..31]);
    store.append(&blocks[31]).unwrap();
    assert_chain(&store, &blocks);
    assert_eq!(
        fs::read(place.file(2)).unwrap(),
        fabrics_record(&blocks[31].block())
    );
    assert!(
        !place.path().join("index").exists(),
        "Fabric would believe its own index, which knows nothing of the new block"
    );
}

#[test]
fn a_tail_torn_at_any_byte_is_cut_off() {
    let blocks = small(4);
    let whole = Place::with(&blocks);
    let end = fs::metadata(whole.file(0)).unwrap().len();
    let last = fabrics_record(&blocks[3].block()).len() as u64;
    for kept in end - last..end {
        for with_index in [true, false] {
            let place = whole.copy();
            fs::File::options()
                .write(true)
                .open(place.file(0))
                .unwrap()
                .set_len(kept)
                .unwrap();
            if !with_index {
                fs::remove_file(place.index()).unwrap();
            }
            let store = place.store().unwrap();
            assert_chain(&store, &blocks[..3]);
            assert_eq!(fs::metadata(place.file(0)).unwrap().len(), end - last);
            store.append(&blocks[3]).unwrap();
            store.sync().unwrap();
            drop(store);
            assert_chain(&place.store().unwrap(), &blocks);
        }
    }
}

#[test]
fn a_tail_of_which_any_byte_is_wrong_is_cut_off_if_it_was_not_durable() {
    let blocks = small(4);
    let place = Place::with(&blocks[..3]);
    let start = fs::metadata(place.file(0)).unwrap().len() as usize;
    let store = place.store().unwrap();
    store.append(&blocks[3]).unwrap();
    let bytes = fs::read(place.file(0)).unwrap();
    for at in start..bytes.len() {
        for mask in [0x01, 0x80, 0xff] {
            let crashed = place.copy();
            let mut bytes = bytes.clone();
            bytes[at] ^= mask;
            fs::write(crashed.file(0), &bytes).unwrap();
            assert_chain(&crashed.store().unwrap(), &blocks[..3]);
        }
    }
}

#[test]
fn several_blocks_may_be_lost_between_syncs() {
    let blocks = small(6);
    let place = Place::with(&blocks[..2]);
    let store = place.store().unwrap();
    assert_eq!(store.synced_height(), 2);
    for block in &blocks[2..] {
        store.append(block).unwrap();
    }
    assert_eq!(store.synced_height(), 2);
    // The pages of block 3 were lost, those after it were not; of the index, everything since the sync was lost.
    let crashed = place.copy();
    let mut bytes = fs::read(place.file(0)).unwrap();
    let start: usize = blocks[..3]
        .iter()
        .map(|block| fabrics_record(&block.block()).len())
        .sum();
    let length = fabrics_record(&blocks[3].block()).len();
    bytes[start..start + length].fill(0);
    fs::write(crashed.file(0), &bytes).unwrap();
    assert_chain(&crashed.store().unwrap(), &blocks[..3]);
    // Nothing lost: all of it is there again, and durable.
    let crashed = place.copy();
    let again = crashed.store().unwrap();
    assert_chain(&again, &blocks);
    assert_eq!(again.synced_height(), 6);
}

#[test]
fn a_durable_block_that_changed_is_refused() {
    let blocks = small(4);
    let whole = Place::with(&blocks);
    let bytes = fs::read(whole.file(0)).unwrap();
    let start = bytes.len() - fabrics_record(&blocks[3].block()).len();
    for at in start..bytes.len() {
        let place = whole.copy();
        let mut bytes = bytes.clone();
        bytes[at] ^= 0x10;
        fs::write(place.file(0), &bytes).unwrap();
        assert_eq!(damaged(place.store()), (place.file(0), start as u64));
        // It is refused, not repaired: the second attempt says the same.
        assert_eq!(damaged(place.store()), (place.file(0), start as u64));
        assert_eq!(fs::read(place.file(0)).unwrap(), bytes);
    }
}

#[test]
fn damage_in_the_middle_is_refused_by_file_and_offset() {
    let blocks = small(4);
    let whole = Place::with(&blocks);
    let bytes = fs::read(whole.file(0)).unwrap();
    let record = fabrics_record(&blocks[1].block());
    let start = fabrics_record(&blocks[0].block()).len();
    // Metadata is covered by no hash: without an index, a change of it can only be found by checking signatures.
    let hashed = record.len() - fabrics_metadata(&blocks[1]);
    for at in start..start + hashed {
        for mask in [0x01, 0x10, 0x80, 0xff] {
            let mut bytes = bytes.clone();
            bytes[at] ^= mask;

            let place = whole.copy();
            fs::write(place.file(0), &bytes).unwrap();
            fs::remove_file(place.index()).unwrap();
            assert_eq!(
                damaged(place.store()),
                (place.file(0), start as u64),
                "byte {at} with {mask:#x}"
            );
            assert_eq!(fs::read(place.file(0)).unwrap(), bytes);
        }
    }
    // With an index nobody looks at old blocks before they are wanted.
    for at in start + 2..start + record.len() {
        let place = whole.copy();
        let mut bytes = bytes.clone();
        bytes[at] ^= 0x10;
        fs::write(place.file(0), &bytes).unwrap();
        let store = place.store().unwrap();
        assert_eq!(*store.read(2).unwrap().unwrap(), blocks[2]);
        let error = store.read(1).unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
        assert!(error.to_string().contains("blockfile_000000"), "{error}");
    }
}

/// A changed length makes a record look as if it were cut off. Cutting there would lose all blocks after it.
#[test]
fn a_length_that_grew_is_no_torn_tail() {
    let blocks = recorded();
    let whole = Place::with(&blocks);
    let start: usize = blocks[..10]
        .iter()
        .map(|block| fabrics_record(&block.block()).len())
        .sum();
    let mut bytes = fs::read(whole.file(0)).unwrap();
    assert!(bytes[start + 1] < 0x80, "the length has two bytes");
    // The length continues in the block's number, and is now beyond the file's end.
    bytes[start + 1] |= 0x80;
    for with_index in [true, false] {
        let place = whole.copy();
        fs::write(place.file(0), &bytes).unwrap();
        let mut index = fs::read(place.index()).unwrap();
        *index.last_mut().unwrap() ^= 1;
        fs::write(place.index(), &index).unwrap();
        if !with_index {
            fs::remove_file(place.index()).unwrap();
        }
        assert_eq!(damaged(place.store()), (place.file(0), start as u64));
        assert_eq!(fs::read(place.file(0)).unwrap(), bytes);
    }
    // The newest length, with the block behind it unharmed: it could not have been written like that.
    let last = fs::metadata(whole.file(0)).unwrap().len() as usize
        - fabrics_record(&blocks[31].block()).len();
    let place = whole.copy();
    let mut bytes = fs::read(whole.file(0)).unwrap();
    bytes[last + 1] |= 0x40;
    fs::write(place.file(0), &bytes).unwrap();
    fs::remove_file(place.index()).unwrap();
    assert_eq!(damaged(place.store()), (place.file(0), last as u64));
}

/// The index's promise counts even when its entries are lost: what was durable is not cut off.
#[test]
fn a_promise_outlives_its_entries() {
    let blocks = small(4);
    let whole = Place::with(&blocks);
    let mut index = fs::read(whole.index()).unwrap();
    *index.last_mut().unwrap() ^= 1;
    fs::write(whole.index(), &index).unwrap();
    let bytes = fs::read(whole.file(0)).unwrap();
    let length = |number: usize| fabrics_record(&blocks[number].block()).len();
    let start_of_2 = length(0) + length(1);
    let start_of_3 = start_of_2 + length(2);

    let changed = whole.copy();
    let mut changed_bytes = bytes.clone();
    changed_bytes[start_of_3 + 10] ^= 1;
    fs::write(changed.file(0), &changed_bytes).unwrap();
    assert_eq!(
        damaged(changed.store()),
        (changed.file(0), start_of_3 as u64)
    );

    // More than the last block would go.
    let cut = whole.copy();
    fs::write(cut.file(0), &bytes[..start_of_2 + 5]).unwrap();
    assert_eq!(damaged(cut.store()), (cut.file(0), start_of_2 as u64));

    // Nothing here is damaged, there is only less of it: somebody put an older copy there.
    let older = whole.copy();
    fs::write(older.file(0), &bytes[..start_of_2]).unwrap();
    assert_chain(&older.store().unwrap(), &blocks[..2]);
}

fn fabrics_metadata(block: &StoredBlock) -> usize {
    let metadata = block.block().metadata.unwrap().metadata;
    // All lengths here are below 128: one byte each.
    1 + metadata.iter().map(|item| 1 + item.len()).sum::<usize>()
}

#[test]
fn a_bad_index_is_made_again() {
    let blocks = small(12);
    let whole = Place::with(&blocks);
    let index = fs::read(whole.index()).unwrap();
    let mut variants = vec![Vec::new(), b"nonsense".to_vec(), index[..40].to_vec()];
    variants.push(index[..index.len() - 1].to_vec());
    for at in 0..index.len() {
        let mut variant = index.clone();
        variant[at] ^= 0x04;
        variants.push(variant);
    }
    for variant in variants {
        let place = whole.copy();
        fs::write(place.index(), &variant).unwrap();
        match place.store() {
            Ok(store) => {
                // Old entries are not looked at while opening: a wrong one is noticed when its block is wanted.
                for block in &blocks {
                    match store.read(block.number()) {
                        Ok(read) => assert_eq!(*read.unwrap(), *block),
                        Err(StoreError::Index { path, .. }) => assert_eq!(path, place.index()),
                        Err(error) => panic!("{error}"),
                    }
                }
            }
            Err(error) => panic!("{error}"),
        }
        fs::remove_file(place.index()).unwrap();
        assert_chain(&place.store().unwrap(), &blocks);
        assert_eq!(
            fs::metadata(place.index()).unwrap().len(),
            index.len() as u64
        );
    }
}

#[test]
fn files_are_full_at_their_limit() {
    let blocks = recorded();
    let place = Place::new();
    let ledgers = Ledgers::open_with(place.path(), 50_000, None).unwrap();
    let store = ledgers.get_or_create(CHANNEL).unwrap();
    for block in &blocks {
        store.append(block).unwrap();
    }
    assert_chain(&store, &blocks);
    drop((ledgers, store));
    assert!(place.file(5).exists());
    for number in 0..5 {
        assert!(fs::metadata(place.file(number)).unwrap().len() <= 50_000);
    }
    assert_chain(&place.store().unwrap(), &blocks);

    let without_index = place.copy();
    fs::remove_file(without_index.index()).unwrap();
    assert_chain(&without_index.store().unwrap(), &blocks);

    // Only the last file can have a torn tail: the others were synced before the next one began.
    let torn = place.copy();
    fs::remove_file(torn.index()).unwrap();
    let length = fs::metadata(torn.file(2)).unwrap().len();
    let file = fs::File::options().write(true).open(torn.file(2)).unwrap();
    file.set_len(length - 1).unwrap();
    assert_eq!(damaged(torn.store()).0, torn.file(2));

    let missing = place.copy();
    fs::remove_file(missing.file(3)).unwrap();
    assert_eq!(damaged(missing.store()), (missing.file(3), 0));
}

#[test]
fn only_the_next_block_is_appended() {
    let blocks = small(3);
    let place = Place::with(&blocks[..1]);
    let store = place.store().unwrap();
    let refused = |block: &StoredBlock| match store.append(block) {
        Err(StoreError::NotNext { reason, .. }) => reason,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(&blocks[0]), "the next block is 1");
    assert_eq!(refused(&blocks[2]), "the next block is 1");
    let mut other = blocks[1].block();
    other.header.as_mut().unwrap().previous_hash = Bytes::from_static(&[7; 32]);
    let reason = refused(&StoredBlock::new(&other).unwrap());
    assert!(reason.starts_with("its previous hash is 0707"), "{reason}");
    assert_chain(&store, &blocks[..1]);
    store.append(&blocks[1]).unwrap();
    assert_chain(&store, &blocks[..2]);
}

#[test]
fn a_full_disk_stops_the_chain() {
    let blocks = small(3);
    let place = Place::new();
    let ledgers = place.open();
    let store = ledgers.get_or_create(CHANNEL).unwrap();
    // Every write to this device fails as on a full disk.
    std::os::unix::fs::symlink("/dev/full", place.file(0)).unwrap();
    let error = store.append(&blocks[0]).unwrap_err();
    assert!(
        matches!(&error, StoreError::Io { operation: "write", path, source }
            if *path == place.file(0) && source.kind() == std::io::ErrorKind::StorageFull),
        "{error:?}"
    );
    assert_eq!(store.height(), 0);
    // It stays so, even though there would be room again.
    fs::remove_file(place.file(0)).unwrap();
    for _ in 0..2 {
        let error = store.append(&blocks[0]).unwrap_err();
        assert!(matches!(error, StoreError::Stopped { .. }), "{error:?}");
    }
    drop((ledgers, store));
    let store = place.store().unwrap();
    store.append(&blocks[0]).unwrap();
    assert_chain(&store, &blocks[..1]);
}

#[test]
fn readers_see_what_is_announced_while_it_is_written() {
    let blocks = Arc::new(small(600));
    let place = Place::new();
    let store = place.open().get_or_create(CHANNEL).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let height = store.height();
                    // The oldest come from the disk, the newest from memory.
                    for number in [0, height / 2, height.saturating_sub(1)] {
                        if number < height {
                            let read = store.read(number).unwrap().unwrap();
                            assert_eq!(*read, blocks[number as usize]);
                        }
                    }
                    if height == 600 {
                        break;
                    }
                }
            });
        }
        for block in blocks.iter() {
            store.append(block).unwrap();
            if block.number() % 50 == 0 {
                assert_eq!(store.sync().unwrap(), block.number() + 1);
            }
        }
    });
    assert!(store.read_recent(0).is_none(), "memory is bounded");
    assert!(store.read_recent(599).is_some());
}

#[tokio::test]
async fn growth_and_removal_are_announced() {
    let blocks = small(2);
    let place = Place::new();
    let ledgers = place.open();
    let store = ledgers.get_or_create(CHANNEL).unwrap();
    let mut height = store.watch_height();
    assert_eq!(*height.borrow_and_update(), 0);
    store.append(&blocks[0]).unwrap();
    height.changed().await.unwrap();
    assert_eq!(*height.borrow_and_update(), 1);

    ledgers.remove(CHANNEL).unwrap();
    assert!(height.changed().await.is_err());
    assert!(store.watch_height().changed().await.is_err());
    for error in [
        store.append(&blocks[1]).unwrap_err(),
        store.read(0).unwrap_err(),
    ] {
        assert!(matches!(error, StoreError::Removed { .. }), "{error:?}");
    }
    assert!(!place.chain().exists());
    assert!(ledgers.channels().unwrap().is_empty());
    assert!(ledgers.get(CHANNEL).unwrap().is_none());
    // A channel of the same name begins anew.
    let again = ledgers.get_or_create(CHANNEL).unwrap();
    assert_eq!(again.height(), 0);
    again.append(&blocks[0]).unwrap();
    assert_chain(&again, &blocks[..1]);
}

#[test]
fn a_removal_that_was_interrupted_is_finished() {
    let place = Place::with(&small(2));
    let mark = place.path().join("pendingops/remove/fixture.remove");
    fs::write(&mark, "").unwrap();
    let ledgers = place.open();
    assert!(ledgers.channels().unwrap().is_empty());
    assert!(!mark.exists());
    // Also when the folder was gone already.
    drop(ledgers);
    fs::write(&mark, "").unwrap();
    drop(place.open());
    assert!(!mark.exists());
}

#[test]
fn join_blocks_are_whole_or_absent() {
    let place = Place::new();
    let ledgers = place.open();
    ledgers.save_join_block("one", b"first").unwrap();
    ledgers.save_join_block("one", b"second").unwrap();
    ledgers.save_join_block("two", b"").unwrap();
    drop(ledgers);
    let folder = place.path().join("pendingops/join");
    assert_eq!(fs::read(folder.join("one.join")).unwrap(), b"second");
    fs::write(folder.join("three.join~"), "half of").unwrap();

    let ledgers = place.open();
    let blocks = ledgers.join_blocks().unwrap();
    assert_eq!(blocks.keys().collect::<Vec<_>>(), ["one", "two"]);
    assert_eq!(blocks["one"], "second");
    assert!(!folder.join("three.join~").exists());
    ledgers.remove_join_block("one").unwrap();
    ledgers.remove_join_block("one").unwrap();
    assert_eq!(ledgers.join_blocks().unwrap().len(), 1);
}

#[test]
fn a_folder_serves_one_process() {
    let place = Place::new();
    let ledgers = place.open();
    let error = Ledgers::open(place.path()).unwrap_err();
    assert!(matches!(error, StoreError::InUse { .. }), "{error:?}");
    drop(ledgers);
    place.open();
}

#[test]
fn names_do_not_lead_out_of_the_folder() {
    let place = Place::new();
    let ledgers = place.open();
    for name in [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "a\0b",
        ".hidden",
        &"x".repeat(250),
    ] {
        let refused = |result: Result<(), StoreError>| {
            assert!(matches!(result, Err(StoreError::Name { .. })), "{name:?}");
        };
        refused(ledgers.get_or_create(name).map(drop));
        refused(ledgers.remove(name));
        refused(ledgers.save_join_block(name, b""));
        assert!(ledgers.get(name).unwrap().is_none());
    }
    fs::write(place.path().join("chains/file"), "").unwrap();
    fs::create_dir(place.path().join("chains/not a channel")).unwrap();
    ledgers.get_or_create("Legacy_Channel.1").unwrap();
    ledgers.get_or_create("a-channel").unwrap();
    assert_eq!(
        ledgers.channels().unwrap(),
        ["Legacy_Channel.1", "a-channel"]
    );
}

#[test]
fn blocks_without_a_place_are_refused() {
    for (bytes, part) in [
        (Block::default().encode_to_vec(), "header"),
        (
            Block {
                header: Some(Default::default()),
                ..Block::default()
            }
            .encode_to_vec(),
            "data",
        ),
    ] {
        assert_eq!(
            StoredBlock::decode(bytes.into()).unwrap_err(),
            BlockFormatError::Missing(part)
        );
    }
    assert!(matches!(
        StoredBlock::decode(Bytes::from_static(b"\xff\xff")),
        Err(BlockFormatError::Protobuf(_))
    ));
    // What comes from elsewhere is stored in the one form in which it will be sent.
    let block = small(1)[0].block();
    let mut received = block.encode_to_vec();
    received.extend([0x7a, 1, 0]);
    let stored = StoredBlock::decode(received.into()).unwrap();
    assert_eq!(stored.encoded(), &block.encode_to_vec());
}

#[test]
fn heights_and_commits_are_counted() {
    let registry = quorate_runtime::Metrics::new();
    let metrics = crate::metrics::OrdererMetrics::new(&registry, false);
    let blocks = small(4);
    let place = Place::with(&blocks[..1]);
    let ledgers = Ledgers::open_measured(place.path(), &metrics.ledger).unwrap();
    let store = ledgers.get(CHANNEL).unwrap().unwrap();
    let shows = |line: &str| registry.render().lines().any(|shown| shown == line);
    let height = |height| format!("ledger_blockchain_height{{channel=\"fixture\"}} {height}");
    let commits =
        |count| format!("ledger_blockstorage_commit_time_count{{channel=\"fixture\"}} {count}");
    assert!(shows(&height(1)));
    for block in &blocks[1..] {
        store.append(block).unwrap();
    }
    assert!(shows(&height(4)));
    assert!(shows(&commits(0)), "nothing is durable yet");
    store.sync().unwrap();
    store.sync().unwrap();
    assert!(shows(&commits(3)));
    ledgers.remove(CHANNEL).unwrap();
    assert!(!shows(&height(4)));
}

/// A ledger of small blocks in files of a few blocks each.
fn in_small_files(blocks: &[StoredBlock]) -> (Place, BlockStore) {
    let place = Place::new();
    let ledgers = Ledgers::open_with(place.path(), 500, None).unwrap();
    let store = ledgers.get_or_create(CHANNEL).unwrap();
    for block in blocks {
        store.append(block).unwrap();
    }
    store.sync().unwrap();
    (place, store)
}

/// Blocks whose metadata name block 5, or 0 before it, as the configuration in force.
fn with_configuration(count: u64) -> Vec<StoredBlock> {
    let mut blocks: Vec<StoredBlock> = Vec::new();
    for number in 0..count {
        let previous = blocks
            .last()
            .map_or(&[][..], |block| &block.header_hash()[..]);
        let envelope = Bytes::from(format!("envelope of block {number}"));
        let mut block = rules::new_block(number, previous, vec![envelope]);
        let last_config = quorate_fabric::proto::common::LastConfig {
            index: if number < 5 { 0 } else { 5 },
        };
        let value = quorate_fabric::proto::common::Metadata {
            value: last_config.encode_to_vec(),
            signatures: Vec::new(),
        };
        rules::set_metadata(
            &mut block,
            quorate_fabric::proto::common::BlockMetadataIndex::LastConfig,
            value.encode_to_vec().into(),
        );
        blocks.push(StoredBlock::new(&block).unwrap());
    }
    blocks
}

#[test]
fn pruning_removes_whole_files_and_only_moves_forward() {
    let blocks = with_configuration(60);
    let (place, store) = in_small_files(&blocks[..50]);
    let files = files::numbers(&place.chain()).unwrap();
    assert!(files.len() > 5, "{files:?}");
    assert_eq!(store.first(), 0);

    let pruned = store.prune(30).unwrap();
    assert!(pruned.first > 20 && pruned.first <= 30, "{pruned:?}");
    assert!(pruned.files > 0 && pruned.bytes > 0);
    assert_eq!(store.first(), pruned.first);
    assert_eq!(
        files::numbers(&place.chain()).unwrap().len(),
        files.len() - pruned.files as usize
    );
    let check = |store: &BlockStore, height: u64| {
        for (number, block) in (0..height).zip(&blocks) {
            match store.read(number) {
                Ok(Some(read)) if number == 0 || number == 5 || number >= pruned.first => {
                    assert_eq!(*read, *block);
                }
                Err(StoreError::Pruned {
                    number: refused,
                    first,
                    ..
                }) => assert_eq!((refused, first), (number, pruned.first)),
                other => panic!("block {number}: {other:?}"),
            }
        }
        assert_eq!(store.first(), pruned.first);
        assert_eq!(store.height(), height);
    };
    check(&store, 50);

    // Again, and less: nothing changes.
    for below in [30, 3, 0] {
        let again = store.prune(below).unwrap();
        assert_eq!((again.first, again.files), (pruned.first, 0));
    }
    store.append(&blocks[50]).unwrap();
    store.sync().unwrap();
    check(&store, 51);
    drop(store);

    // Opened again, with and without its index, and interrupted in the midst of it.
    let reopened = place.store().unwrap();
    check(&reopened, 51);
    drop(reopened);
    fs::remove_file(place.index()).unwrap();
    fs::write(place.file(1), b"a file that was still to be removed").unwrap();
    let reopened = place.store().unwrap();
    assert!(!place.file(1).exists());
    check(&reopened, 51);
    reopened.append(&blocks[51]).unwrap();
    check(&reopened, 52);

    // Everything: what is being written stays.
    let all = reopened.prune(u64::MAX).unwrap();
    assert!(all.first > pruned.first && all.first < 52, "{all:?}");
    assert_eq!(*reopened.read(51).unwrap().unwrap(), blocks[51]);
    reopened.append(&blocks[52]).unwrap();
}

#[test]
fn a_pruned_chain_whose_beginning_is_not_known_is_refused() {
    let blocks = with_configuration(40);
    let (place, store) = in_small_files(&blocks);
    store.prune(20).unwrap();
    drop(store);
    let base = place.chain().join(base::FILE_NAME);
    let whole = fs::read(&base).unwrap();
    for at in 0..whole.len() {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x10;
        fs::write(&base, &flipped).unwrap();
        assert!(
            matches!(place.store(), Err(StoreError::Damaged { .. })),
            "{at}"
        );
    }
    fs::remove_file(&base).unwrap();
    assert!(matches!(place.store(), Err(StoreError::Damaged { .. })));
    fs::write(&base, &whole).unwrap();
    assert_eq!(place.store().unwrap().height(), 40);
}

#[test]
fn a_damaged_index_entry_is_made_anew_while_the_chain_is_used() {
    let blocks = small(50);
    let (place, store) = in_small_files(&blocks);
    let index = fs::read(place.index()).unwrap();
    for number in [0usize, 1, 20, 21, 22] {
        let mut bytes = fs::read(place.index()).unwrap();
        bytes[32 + 24 * number + 5] ^= 1;
        fs::write(place.index(), &bytes).unwrap();
    }
    // The newest are in memory.
    store.read(49).unwrap();
    drop(store);
    let store = Ledgers::open_with(place.path(), 500, None)
        .unwrap()
        .get(CHANNEL)
        .unwrap()
        .unwrap();
    for number in [22u64, 0, 1, 20] {
        let read = store.read(number).unwrap().unwrap();
        assert_eq!(*read, blocks[usize::try_from(number).unwrap()]);
    }
    assert_eq!(fs::read(place.index()).unwrap()[32..], index[32..]);
}

#[test]
fn a_copy_grows_with_its_chain_and_is_a_chain_itself() {
    let blocks = with_configuration(60);
    let (place, store) = in_small_files(&blocks[..30]);
    let backup = Place::new();
    let run = || copy(&place.chain(), &backup.chain(), CHANNEL, Extent::All);
    let first = run().unwrap();
    assert_eq!((first.first, first.height), (0, 30));
    assert_eq!(first.head, Some(*blocks[29].header_hash()));
    assert_eq!(run().unwrap().added, 0);
    for block in &blocks[30..50] {
        store.append(block).unwrap();
    }
    let second = run().unwrap();
    assert_eq!(second.height, 50);
    assert!(second.added > 0);
    let restored = backup.copy();
    let opened = restored.store().unwrap();
    assert_eq!(opened.height(), 50);
    assert_eq!(*opened.read(17).unwrap().unwrap(), blocks[17]);

    // A chain that is behind its copy is not copied over it.
    let (behind, _) = in_small_files(&blocks[..40]);
    let refused = copy(&behind.chain(), &backup.chain(), CHANNEL, Extent::All).unwrap_err();
    assert!(matches!(refused, CopyError::Ahead { .. }), "{refused}");

    // Pruned: the copy has the older blocks, an empty one begins where the chain does, and a gap is refused.
    store.sync().unwrap();
    let pruned = store.prune(25).unwrap();
    for block in &blocks[50..] {
        store.append(block).unwrap();
    }
    assert_eq!(run().unwrap().height, 60);
    assert_eq!(backup.copy().store().unwrap().first(), 0);
    let fresh = Place::new();
    let copied = copy(&place.chain(), &fresh.chain(), CHANNEL, Extent::All).unwrap();
    assert_eq!((copied.first, copied.height), (pruned.first, 60));
    let opened = fresh.store().unwrap();
    assert_eq!((opened.first(), opened.height()), (pruned.first, 60));
    let short = Place::new();
    let (beginning, _) = in_small_files(&blocks[..5]);
    copy(&beginning.chain(), &short.chain(), CHANNEL, Extent::All).unwrap();
    let refused = copy(&place.chain(), &short.chain(), CHANNEL, Extent::All).unwrap_err();
    assert!(matches!(refused, CopyError::Gap { .. }), "{refused}");
}

#[test]
fn an_archive_holds_whole_files_only() {
    let blocks = with_configuration(50);
    let (place, store) = in_small_files(&blocks);
    let archive = Place::new();
    let copied = copy(
        &place.chain(),
        &archive.chain(),
        CHANNEL,
        Extent::WholeFilesBelow(30),
    )
    .unwrap();
    assert_eq!((copied.height, copied.files), store.prunable(30).unwrap());
    let pruned = store.prune(30).unwrap();
    assert_eq!((pruned.first, pruned.files), (copied.height, copied.files));
    // The next one goes on where this one ended.
    let next = copy(
        &place.chain(),
        &archive.chain(),
        CHANNEL,
        Extent::WholeFilesBelow(45),
    )
    .unwrap();
    assert!(next.height > copied.height && next.height <= 45);
    assert_eq!(archive.store().unwrap().height(), next.height);
}

#[test]
fn forks_and_damage_are_not_copied() {
    let blocks = small(30);
    let (place, _) = in_small_files(&blocks);
    let backup = Place::new();
    copy(&place.chain(), &backup.chain(), CHANNEL, Extent::All).unwrap();

    // Another chain with the same beginning.
    let mut fork = blocks[..12].to_vec();
    for number in 12..40u64 {
        let previous = fork[fork.len() - 1].header_hash().to_vec();
        let envelope = Bytes::from(format!("another one {number:>9}"));
        let mut block = rules::new_block(number, &previous, vec![envelope]);
        block.metadata = Some(BlockMetadata {
            metadata: vec![Bytes::from_static(b"signatures"), Bytes::new()],
        });
        fork.push(StoredBlock::new(&block).unwrap());
    }
    let (forked, _) = in_small_files(&fork);
    let refused = copy(&forked.chain(), &backup.chain(), CHANNEL, Extent::All).unwrap_err();
    assert!(
        matches!(refused, CopyError::Differs { block: 11..=12, .. }),
        "{refused}"
    );

    // Damage in the source, wherever it is in a block.
    let path = place.file(2);
    let whole = fs::read(&path).unwrap();
    for at in 0..whole.len() {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x40;
        fs::write(&path, &flipped).unwrap();
        let fresh = Place::new();
        let outcome = copy(&place.chain(), &fresh.chain(), CHANNEL, Extent::All);
        // Metadata have no hash; but a copy that was there already is held against them.
        if let Ok(copied) = outcome {
            assert_eq!(copied.height, 30);
        }
        let again = copy(&place.chain(), &backup.chain(), CHANNEL, Extent::All);
        assert!(again.is_err(), "{at}");
    }
    fs::write(&path, &whole).unwrap();
    assert_eq!(
        copy(&place.chain(), &backup.chain(), CHANNEL, Extent::All)
            .unwrap()
            .added,
        0
    );
}
