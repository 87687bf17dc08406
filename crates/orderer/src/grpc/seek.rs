//! Requests to Deliver, for those who ask.

use prost::Message;
use quorate_fabric::envelope::{RawEnvelope, sign};
use quorate_fabric::msp::{SignError, Signer};
use quorate_fabric::proto::common::{ChannelHeader, HeaderType};
use quorate_fabric::proto::orderer::seek_info::{SeekBehavior, SeekErrorResponse};
use quorate_fabric::proto::orderer::seek_position::Type;
use quorate_fabric::proto::orderer::{
    SeekInfo, SeekNewest, SeekNextCommit, SeekOldest, SeekPosition, SeekSpecified,
};

/// A place in a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// The first block. As a stop: where the request started.
    Oldest,
    /// The newest block at the moment of the request.
    Newest,
    /// The block of this number. [`u64::MAX`] as a stop: never.
    Number(u64),
    /// The block that will be made next. Of use as a start only.
    NextCommit,
}

impl From<Position> for SeekPosition {
    fn from(position: Position) -> Self {
        Self {
            r#type: Some(match position {
                Position::Oldest => Type::Oldest(SeekOldest {}),
                Position::Newest => Type::Newest(SeekNewest {}),
                Position::Number(number) => Type::Specified(SeekSpecified { number }),
                Position::NextCommit => Type::NextCommit(SeekNextCommit {}),
            }),
        }
    }
}

/// What to ask Deliver for.
#[derive(Debug, Clone)]
pub struct SeekRequest {
    /// The channel.
    pub channel: String,
    /// The first block wanted.
    pub start: Position,
    /// The last block wanted.
    pub stop: Position,
    /// Whether to be answered NOT_FOUND, and not to wait, where the range goes beyond what there is.
    pub fail_if_not_ready: bool,
    /// Whether to be given blocks even by an orderer that knows no leader.
    pub best_effort: bool,
    /// SHA-256 of the DER of our TLS certificate; orderers that demand client certificates want it.
    pub tls_certificate_hash: Option<[u8; 32]>,
}

impl SeekRequest {
    /// Asks for the blocks from `start` to `stop`, waits for those that are not there yet, and takes no risk of being
    /// served by an orderer that is cut off.
    pub fn new(channel: impl Into<String>, start: Position, stop: Position) -> Self {
        Self {
            channel: channel.into(),
            start,
            stop,
            fail_if_not_ready: false,
            best_effort: false,
            tls_certificate_hash: None,
        }
    }

    /// The request as an envelope made at `now`, in microseconds since the epoch. An orderer takes it for about a
    /// quarter of an hour. `nonce` should be fresh random bytes.
    ///
    /// # Errors
    /// The key could not be used.
    pub fn sign(
        &self,
        signer: &dyn Signer,
        nonce: &[u8],
        now: i64,
    ) -> Result<RawEnvelope, SignError> {
        let mut header = ChannelHeader {
            r#type: HeaderType::DeliverSeekInfo.into(),
            channel_id: self.channel.clone(),
            tls_cert_hash: self
                .tls_certificate_hash
                .map(|hash| hash.to_vec())
                .unwrap_or_default(),
            ..ChannelHeader::default()
        };
        let timestamp = header.timestamp.get_or_insert_default();
        timestamp.seconds = now.div_euclid(1_000_000);
        timestamp.nanos = i32::try_from(now.rem_euclid(1_000_000) * 1_000)
            .expect("it is below a thousand million");
        let behavior = if self.fail_if_not_ready {
            SeekBehavior::FailIfNotReady
        } else {
            SeekBehavior::BlockUntilReady
        };
        let error_response = if self.best_effort {
            SeekErrorResponse::BestEffort
        } else {
            SeekErrorResponse::Strict
        };
        let seek = SeekInfo {
            start: Some(self.start.into()),
            stop: Some(self.stop.into()),
            behavior: behavior.into(),
            error_response: error_response.into(),
            ..SeekInfo::default()
        };
        sign(&header, seek.encode_to_vec(), nonce, signer)
    }
}
