//! Opening a chain: believing the index as far as it can be believed, and looking at the rest.
//!
//! When the process ended by itself or was killed, every entry of the index is good and the newest block is all that
//! is read. When the machine lost power, the blocks since the last sync are looked at. When there is no index, or it
//! does not fit the block files (they were written by Fabric's code, or copied here), the whole chain is.
//!
//! A record that is not a block is one of two things:
//!
//! * A *torn tail*: the last thing that was being written. It is cut off; whoever wrote it was never told that it is
//!   durable, and its block comes again from the consensus log or from another orderer.
//! * *Damage*: durable bytes changed, or are missing in the middle. That is refused with file and offset, because
//!   cutting there would throw away good blocks.
//!
//! With an index we know how far the chain was durable; without one, only a record that reaches the end of the last
//! file can be a torn tail.

use std::fs::File;
use std::io::{BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::Bytes;
use quorate_fabric::block as rules;

use super::base::Base;
use super::format::{self, MAX_VARINT_BYTES};
use super::index::{Index, Location, Promise};
use super::{StoreError, StoredBlock, files};

/// A chain that was opened.
pub(super) struct Recovered {
    pub(super) index: Index,
    /// The last block file: its number, its size.
    pub(super) file: u32,
    pub(super) size: u64,
    /// The newest block.
    pub(super) newest: Option<StoredBlock>,
    /// Where the chain begins.
    pub(super) base: Base,
}

/// Where a scan stands: after `height` blocks, at `offset` of block file `file`.
#[derive(Clone)]
struct Place {
    file: u32,
    offset: u64,
    height: u64,
    /// The hash of the block before; `None` at a chain's very beginning.
    previous: Option<[u8; 32]>,
    newest: Option<StoredBlock>,
}

impl Place {
    fn start(base: &Base) -> Self {
        Self {
            file: base.file,
            offset: 0,
            height: base.first,
            previous: base.previous,
            newest: None,
        }
    }

    fn after(block: StoredBlock, location: &Location) -> Self {
        Self {
            file: location.file,
            offset: location.end(),
            height: block.number() + 1,
            previous: Some(*block.header_hash()),
            newest: Some(block),
        }
    }
}

/// Opens the chain in `folder`, which exists.
pub(super) fn open(folder: &Path, channel: &str) -> Result<Recovered, StoreError> {
    let base = Base::read(folder, channel)?;
    let (removed, _) = files::remove_before(folder, base.file)?;
    if removed > 0 {
        tracing::info!(
            channel,
            files = removed,
            "Went on with the removal of block files that were pruned"
        );
    }
    let count = files::count(folder, channel, base.file)?;
    let (index, promise) = Index::open(folder)?;
    if count == 0 {
        index.clear()?;
        index.restart(Promise::default())?;
        return Ok(Recovered {
            index,
            file: 0,
            size: 0,
            newest: None,
            base,
        });
    }
    let scan = Scan {
        folder,
        channel,
        last_file: count - 1,
        synced: promise.map(|promise| promise.synced),
        index: &index,
        base: &base,
    };
    let start = match promise {
        Some(promise) => scan.believed(promise)?,
        None => None,
    };
    let start = match start {
        Some(place) => place,
        None => {
            tracing::info!(channel, "Making the block index anew from the block files");
            index.clear()?;
            Place::start(&base)
        }
    };
    let believed = start.height;
    let end = scan.run(start)?;
    let height = end.height;
    if let Some(synced) = scan.synced
        && height < synced
    {
        tracing::warn!(
            channel,
            height,
            was = synced,
            "The ledger ends before blocks that were durable: its block files were cut or replaced by older ones"
        );
    }
    // What was found beyond the promise may still be only in the operating system's memory.
    if believed != height || scan.synced != Some(height) {
        let last = files::path(folder, end.file);
        File::open(&last)
            .and_then(|file| file.sync_all())
            .map_err(|error| StoreError::io("sync", &last, error))?;
        files::sync_folder(folder)?;
        index.truncate(height)?;
        index.restart(Promise {
            synced: height,
            settled: 0,
        })?;
        index.settle(height)?;
    } else if index.entries()? != height {
        index.truncate(height)?;
    }
    Ok(Recovered {
        index,
        file: end.file,
        size: end.offset,
        newest: end.newest,
        base,
    })
}

struct Scan<'a> {
    folder: &'a Path,
    channel: &'a str,
    last_file: u32,
    /// The height below which blocks were durable, if we know.
    synced: Option<u64>,
    index: &'a Index,
    base: &'a Base,
}

/// What lies at a place of a block file.
enum Found {
    Block {
        block: StoredBlock,
        location: Location,
    },
    /// The file ends here.
    End,
    /// A record whose length reaches beyond the file's end.
    CutOff { reason: String },
    /// A whole record that is not the block that belongs here.
    Wrong { reason: String, reaches_end: bool },
}

impl Scan<'_> {
    /// The place after the last block that the index promises, if the index is right about it.
    fn believed(&self, promise: Promise) -> Result<Option<Place>, StoreError> {
        let Some(number) = promise.synced.checked_sub(1) else {
            return Ok(Some(Place::start(self.base)));
        };
        if number < self.base.first {
            return Ok(None);
        }
        let unsettled = promise.settled.min(number).max(self.base.first);
        if !self.index.are_valid(unsettled, promise.synced)? {
            return Ok(None);
        }
        let Some(location) = self.index.get(number)? else {
            return Ok(None);
        };
        let path = files::path(self.folder, location.file);
        let Ok(file) = File::open(&path) else {
            return Ok(None);
        };
        let length = file
            .metadata()
            .map_err(|error| StoreError::io("read", &path, error))?
            .len();
        if location.file > self.last_file || location.end() > length {
            return Ok(None);
        }
        let prefix = format::length_prefix(location.length);
        let Some(start) = location.offset.checked_sub(prefix.len() as u64) else {
            return Ok(None);
        };
        let mut record = vec![0; prefix.len() + location.length as usize];
        file.read_exact_at(&mut record, start)
            .map_err(|error| StoreError::io("read", &path, error))?;
        let mut head = Bytes::from(record);
        let body = head.split_off(prefix.len());
        if head != prefix || crc32c::crc32c(&body) != location.checksum {
            // The block was durable, and so was its checksum. Looking at the whole chain would not tell more.
            return Err(StoreError::Damaged {
                channel: self.channel.to_owned(),
                path,
                offset: start,
                reason: format!(
                    "block {number}: its bytes are not those that were written (if the block files were replaced on \
                     purpose, remove {} too)",
                    self.index.path().display()
                ),
            });
        }
        let newest = format::block(&body)
            .ok()
            .and_then(|block| StoredBlock::new(&block).ok())
            .filter(|block| block.number() == number);
        Ok(newest.map(|newest| Place::after(newest, &location)))
    }

    /// Looks at everything from `place` on, enters it into the index, and cuts off a torn tail.
    fn run(&self, mut place: Place) -> Result<Place, StoreError> {
        loop {
            let path = files::path(self.folder, place.file);
            let io = |error| StoreError::io("read", &path, error);
            let file = File::open(&path).map_err(io)?;
            let size = file.metadata().map_err(io)?.len();
            let mut input = BufReader::with_capacity(
                1 << 16,
                At {
                    file: &file,
                    offset: place.offset,
                },
            );
            loop {
                let found = self.next(&mut input, &place, size).map_err(io)?;
                match found {
                    Found::Block { block, location } => {
                        self.index.put(block.number(), &location)?;
                        place = Place::after(block, &location);
                    }
                    Found::End if place.file == self.last_file => return Ok(place),
                    Found::End => {
                        place.file += 1;
                        place.offset = 0;
                        break;
                    }
                    Found::CutOff { reason } => {
                        let next = place.height + 1;
                        let may_be_torn = self.synced.is_none_or(|synced| next >= synced);
                        self.cut(&place, size, reason, may_be_torn)?;
                        return Ok(place);
                    }
                    Found::Wrong {
                        reason,
                        reaches_end,
                    } => {
                        let may_be_torn = match self.synced {
                            Some(synced) => place.height >= synced,
                            None => reaches_end || only_zeros(&file, place.offset).map_err(io)?,
                        };
                        self.cut(&place, size, reason, may_be_torn)?;
                        return Ok(place);
                    }
                }
            }
        }
    }

    fn next(
        &self,
        input: &mut impl Read,
        place: &Place,
        size: u64,
    ) -> Result<Found, std::io::Error> {
        let left = size.saturating_sub(place.offset);
        if left == 0 {
            return Ok(Found::End);
        }
        let mut prefix = Vec::with_capacity(MAX_VARINT_BYTES);
        while prefix.last().is_none_or(|byte| byte & 0x80 != 0)
            && prefix.len() < MAX_VARINT_BYTES.min(usize::try_from(left).unwrap_or(usize::MAX))
        {
            let mut byte = [0];
            input.read_exact(&mut byte)?;
            prefix.push(byte[0]);
        }
        let Some((length, prefix_length)) = format::varint(&prefix) else {
            return Ok(if prefix.len() < MAX_VARINT_BYTES {
                Found::CutOff {
                    reason: "the record's length is cut off".to_owned(),
                }
            } else {
                Found::Wrong {
                    reason: "the record's length is not a number".to_owned(),
                    reaches_end: left == prefix.len() as u64,
                }
            });
        };
        let left = left - prefix_length as u64;
        let offset = place.offset + prefix_length as u64;
        let mut body = vec![0; usize::try_from(length.min(left)).map_err(std::io::Error::other)?];
        input.read_exact(&mut body)?;
        let body = Bytes::from(body);
        if length > left {
            // A length that was changed on the disk would look like a torn tail, and cutting would lose everything
            // after it. But then the whole block is still here.
            return Ok(match format::block_prefix(&body) {
                Ok((block, _)) if self.follows(&block, place).is_ok() => Found::Wrong {
                    reason: "the record's length does not fit the block in it".to_owned(),
                    reaches_end: false,
                },
                _ => Found::CutOff {
                    reason: format!("the record needs {length} bytes, and {left} are there"),
                },
            });
        }
        let reaches_end = length == left;
        let wrong = |reason| Found::Wrong {
            reason,
            reaches_end,
        };
        let block = match format::block(&body) {
            Ok(block) => block,
            Err(error) => return Ok(wrong(error.0.to_owned())),
        };
        let (Ok(length), Ok(block)) = (u32::try_from(length), self.follows(&block, place)) else {
            let reason = self.follows(&block, place).err();
            return Ok(wrong(reason.unwrap_or_else(|| "it is too long".to_owned())));
        };
        let location = Location {
            file: place.file,
            offset,
            length,
            checksum: crc32c::crc32c(&body),
        };
        // Metadata is covered by no hash; but the checksum may have survived.
        match self.index.get(block.number()) {
            Ok(Some(written))
                if written
                    == (Location {
                        checksum: written.checksum,
                        ..location
                    })
                    && written.checksum != location.checksum =>
            {
                Ok(wrong(
                    "its bytes are not those that were written".to_owned(),
                ))
            }
            _ => Ok(Found::Block { block, location }),
        }
    }

    /// Whether the block is the one that belongs at `place`, with unchanged header and data.
    fn follows(
        &self,
        block: &quorate_fabric::proto::common::Block,
        place: &Place,
    ) -> Result<StoredBlock, String> {
        let stored = StoredBlock::new(block).map_err(|error| error.to_string())?;
        let expected = place.height;
        if stored.number() != expected {
            return Err(format!(
                "it says that it is block {}, and block {expected} belongs there",
                stored.number()
            ));
        }
        rules::check_data_hash(block).map_err(|error| error.to_string())?;
        if let Some(previous) = &place.previous
            && stored.header().previous_hash[..] != previous[..]
        {
            return Err(format!(
                "block {expected} does not name the hash of the block before it"
            ));
        }
        Ok(stored)
    }

    fn cut(
        &self,
        place: &Place,
        size: u64,
        reason: String,
        may_be_torn: bool,
    ) -> Result<(), StoreError> {
        let path = files::path(self.folder, place.file);
        if !may_be_torn || place.file != self.last_file {
            return Err(StoreError::Damaged {
                channel: self.channel.to_owned(),
                path,
                offset: place.offset,
                reason: format!("block {}: {reason}", place.height),
            });
        }
        tracing::warn!(
            channel = self.channel,
            file = %path.display(),
            offset = place.offset,
            bytes = size - place.offset,
            reason,
            "Cutting off a record that was not completely written; its block will come again"
        );
        files::open_for_writing(self.folder, place.file)?
            .set_len(place.offset)
            .map_err(|error| StoreError::io("truncate", &path, error))
    }
}

/// A file read from an offset on.
struct At<'a> {
    file: &'a File,
    offset: u64,
}

impl Read for At<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let length = self.file.read_at(buffer, self.offset)?;
        self.offset += length as u64;
        Ok(length)
    }
}

/// Whether nothing but zeros follows: what some file systems leave where a write was under way.
fn only_zeros(file: &File, offset: u64) -> std::io::Result<bool> {
    let mut input = At { file, offset };
    let mut buffer = vec![0; 1 << 16];
    loop {
        match input.read(&mut buffer)? {
            0 => return Ok(true),
            length if buffer[..length].iter().all(|byte| *byte == 0) => {}
            _ => return Ok(false),
        }
    }
}
