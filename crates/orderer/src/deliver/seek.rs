//! Which blocks a request means, at the height at which it arrives.
//!
//! Some of it is surprising, and all of it is what Fabric does: a stop at *oldest* is the start, wherever that is; a
//! stop at *next commit*, or of no type, is block 0; *newest* is decided once; a start above the height is not found
//! even if the client would wait; the type of content is not looked at.

use quorate_fabric::proto::common::Status;
use quorate_fabric::proto::orderer::SeekInfo;
use quorate_fabric::proto::orderer::SeekPosition;
use quorate_fabric::proto::orderer::seek_info::{SeekBehavior, SeekErrorResponse};
use quorate_fabric::proto::orderer::seek_position::Type;

/// What is still to be delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    /// The next block's number; `None` after the last one.
    pub(super) next: Option<u64>,
    /// Whether a block that is not there yet ends the request.
    pub(super) fail_if_not_ready: bool,
}

/// The block with which the request ends. A stop that is never met is possible: then the request never ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stop(u64);

impl Stop {
    pub(super) fn is_at(self, number: u64) -> bool {
        self.0 == number
    }
}

/// Why a request means no blocks.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SeekError {
    pub(super) status: Status,
    pub(super) reason: String,
}

/// Whether the client wants what there is even when the channel has no leader.
pub(super) fn is_best_effort(seek: &SeekInfo) -> bool {
    seek.error_response == SeekErrorResponse::BestEffort as i32
}

/// Whether a block that is not there yet ends the request. Unknown behaviours wait.
pub(super) fn fails_if_not_ready(seek: &SeekInfo) -> bool {
    seek.behavior == SeekBehavior::FailIfNotReady as i32
}

/// The first block and the stop, where the blocks from `oldest` up to the height are there.
pub(super) fn resolve(
    start: &SeekPosition,
    stop: &SeekPosition,
    oldest: u64,
    height: u64,
) -> Result<(Range, Stop), SeekError> {
    let not_found = |reason: &str| SeekError {
        status: Status::NotFound,
        reason: reason.to_owned(),
    };
    let first = match &start.r#type {
        Some(Type::Oldest(_)) => oldest,
        Some(Type::Newest(_)) => height
            .checked_sub(1)
            .ok_or_else(|| not_found("there is no block"))?,
        Some(Type::Specified(specified)) if specified.number > height => {
            return Err(not_found("the start is above the height"));
        }
        Some(Type::Specified(specified)) => specified.number,
        Some(Type::NextCommit(_)) => height,
        None => return Err(not_found("the start has no type")),
    };
    let last = match &stop.r#type {
        Some(Type::Oldest(_)) => first,
        // The same height as above: asking for newest to newest gives one block, whatever happens meanwhile.
        Some(Type::Newest(_)) => height.saturating_sub(1),
        Some(Type::Specified(specified)) if specified.number < first => {
            return Err(SeekError {
                status: Status::BadRequest,
                reason: format!(
                    "start number {first} greater than stop number {}",
                    specified.number
                ),
            });
        }
        Some(Type::Specified(specified)) => specified.number,
        Some(Type::NextCommit(_)) | None => 0,
    };
    let range = Range {
        next: Some(first),
        fail_if_not_ready: false,
    };
    Ok((range, Stop(last)))
}
