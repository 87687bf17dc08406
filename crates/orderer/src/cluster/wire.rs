//! `StepRequest` as bytes: payloads and envelopes are shared with what was received, and unknown fields of an envelope
//! survive.

use bytes::{BufMut as _, Bytes, BytesMut};
use prost::Message as _;
use prost::encoding::{decode_varint, encode_varint, encoded_len_varint};
use quorate_fabric::proto::common::Status;
use quorate_fabric::proto::orderer::{StepResponse, SubmitResponse, step_response};

use crate::channel::SubmitError;
use crate::checks::Refusal;

/// What one message of a Step stream says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// A consensus message.
    Consensus {
        channel: String,
        payload: Bytes,
        metadata: Bytes,
    },
    /// A forwarded transaction.
    Submit {
        channel: String,
        last_validation_seq: u64,
        envelope: Bytes,
    },
    /// Neither of the two.
    Neither,
}

/// The bytes are no `StepRequest`; the text is that of Fabric's protobuf library.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("proto:\u{a0}cannot parse invalid wire-format data")]
    Wire,
    #[error("string field contains invalid UTF-8")]
    Utf8,
}

impl Step {
    /// Reads an encoded request. Of a field that occurs twice the last one counts.
    pub(super) fn decode(bytes: Bytes) -> Result<Self, Malformed> {
        let mut step = Self::Neither;
        let mut fields = Fields(bytes);
        while let Some((number, value)) = fields.next()? {
            match (number, value) {
                (1, Value::Bytes(inner)) => step = step.with_consensus(inner)?,
                (2, Value::Bytes(inner)) => step = step.with_submit(inner)?,
                _ => {}
            }
        }
        Ok(step)
    }

    fn with_consensus(self, encoded: Bytes) -> Result<Self, Malformed> {
        let (mut channel, mut payload, mut metadata) = match self {
            Self::Consensus {
                channel,
                payload,
                metadata,
            } => (channel, payload, metadata),
            _ => (String::new(), Bytes::new(), Bytes::new()),
        };
        let mut fields = Fields(encoded);
        while let Some((number, value)) = fields.next()? {
            match (number, value) {
                (1, Value::Bytes(bytes)) => channel = text(&bytes)?,
                (2, Value::Bytes(bytes)) => payload = bytes,
                (3, Value::Bytes(bytes)) => metadata = bytes,
                _ => {}
            }
        }
        Ok(Self::Consensus {
            channel,
            payload,
            metadata,
        })
    }

    fn with_submit(self, encoded: Bytes) -> Result<Self, Malformed> {
        let (mut channel, mut last_validation_seq, mut envelope) = match self {
            Self::Submit {
                channel,
                last_validation_seq,
                envelope,
            } => (channel, last_validation_seq, envelope),
            _ => (String::new(), 0, Bytes::new()),
        };
        let mut fields = Fields(encoded);
        while let Some((number, value)) = fields.next()? {
            match (number, value) {
                (1, Value::Bytes(bytes)) => channel = text(&bytes)?,
                (2, Value::Varint(value)) => last_validation_seq = value,
                // Messages that occur twice are merged, which is what their bytes one after the other say.
                (3, Value::Bytes(bytes)) if envelope.is_empty() => envelope = bytes,
                (3, Value::Bytes(bytes)) => envelope = [envelope, bytes].concat().into(),
                _ => {}
            }
        }
        Ok(Self::Submit {
            channel,
            last_validation_seq,
            envelope,
        })
    }
}

fn text(bytes: &Bytes) -> Result<String, Malformed> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err(Malformed::Utf8),
    }
}

/// The encoded request that carries a consensus message.
pub(super) fn consensus(channel: &str, payload: &Bytes, metadata: &Bytes) -> Bytes {
    let inner =
        field_length(channel.len()) + field_length(payload.len()) + field_length(metadata.len());
    let mut target = BytesMut::with_capacity(inner + 16);
    head(&mut target, 1, inner);
    field(&mut target, 1, channel.as_bytes());
    field(&mut target, 2, payload);
    field(&mut target, 3, metadata);
    target.freeze()
}

/// The encoded request that forwards a transaction.
pub(super) fn submit(channel: &str, last_validation_seq: u64, envelope: &Bytes) -> Bytes {
    let sequence = match last_validation_seq {
        0 => 0,
        value => 1 + encoded_len_varint(value),
    };
    // A message field is written even when it is empty.
    let envelope_length = 1 + encoded_len_varint(envelope.len() as u64) + envelope.len();
    let inner = field_length(channel.len()) + sequence + envelope_length;
    let mut target = BytesMut::with_capacity(inner + 16);
    head(&mut target, 2, inner);
    field(&mut target, 1, channel.as_bytes());
    if last_validation_seq != 0 {
        target.put_u8(2 << 3);
        encode_varint(last_validation_seq, &mut target);
    }
    head(&mut target, 3, envelope.len());
    target.put_slice(envelope);
    target.freeze()
}

/// The encoded answer to a forwarded transaction.
pub(super) fn answer(outcome: &Result<(), SubmitError>) -> Bytes {
    let (status, info) = match outcome {
        Ok(()) => (Status::Success, String::new()),
        Err(SubmitError::Unavailable(reason)) => (Status::ServiceUnavailable, reason.clone()),
        Err(SubmitError::Refused(refusal)) => (refusal.status, refusal.info.clone()),
    };
    let response = StepResponse {
        payload: Some(step_response::Payload::SubmitRes(SubmitResponse {
            // A stream is for one channel.
            channel: String::new(),
            status: status.into(),
            info,
        })),
    };
    response.encode_to_vec().into()
}

/// What the answer to a forwarded transaction says; `None` if it is no such answer.
pub(super) fn read_answer(encoded: Bytes) -> Option<Result<(), Refusal>> {
    let response = StepResponse::decode(encoded).ok()?;
    let step_response::Payload::SubmitRes(answer) = response.payload?;
    Some(match answer.status() {
        Status::Success => Ok(()),
        status => Err(Refusal::new(status, answer.info)),
    })
}

fn field_length(length: usize) -> usize {
    match length {
        0 => 0,
        _ => 1 + encoded_len_varint(length as u64) + length,
    }
}

fn head(target: &mut BytesMut, number: u8, length: usize) {
    target.put_u8(number << 3 | 2);
    encode_varint(length as u64, target);
}

fn field(target: &mut BytesMut, number: u8, bytes: &[u8]) {
    if !bytes.is_empty() {
        head(target, number, bytes.len());
        target.put_slice(bytes);
    }
}

enum Value {
    Varint(u64),
    Bytes(Bytes),
    Other,
}

/// The fields of a message, one by one.
struct Fields(Bytes);

impl Fields {
    fn next(&mut self) -> Result<Option<(u64, Value)>, Malformed> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = tag >> 3;
        if number == 0 || number > (1 << 29) - 1 {
            return Err(Malformed::Wire);
        }
        let value = match tag & 7 {
            0 => Value::Varint(self.varint()?),
            1 => self.skip(8)?,
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| Malformed::Wire)?;
                if length > self.0.len() {
                    return Err(Malformed::Wire);
                }
                Value::Bytes(self.0.split_to(length))
            }
            5 => self.skip(4)?,
            // Groups: no message of ours has ever had one.
            _ => return Err(Malformed::Wire),
        };
        Ok(Some((number, value)))
    }

    fn varint(&mut self) -> Result<u64, Malformed> {
        decode_varint(&mut self.0).map_err(|_| Malformed::Wire)
    }

    fn skip(&mut self, length: usize) -> Result<Value, Malformed> {
        if length > self.0.len() {
            return Err(Malformed::Wire);
        }
        let _ = self.0.split_to(length);
        Ok(Value::Other)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use proptest::prelude::*;
    use prost::Message as _;
    use quorate_fabric::proto::{common, orderer};
    use quorate_testkit::hostile::{Shape, torment};

    use super::*;

    #[test]
    fn captured_requests_are_written_again_byte_by_byte() {
        let folder = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../fixtures/fabric/raftpb/captured"
        );
        let mut seen = 0;
        for file in std::fs::read_dir(folder).unwrap() {
            let path = file.unwrap().path();
            let bytes = Bytes::from(std::fs::read(&path).unwrap());
            let again = match Step::decode(bytes.clone()).unwrap() {
                Step::Consensus {
                    channel,
                    payload,
                    metadata,
                } => consensus(&channel, &payload, &metadata),
                Step::Submit {
                    channel,
                    last_validation_seq,
                    envelope,
                } => submit(&channel, last_validation_seq, &envelope),
                Step::Neither => panic!("{}", path.display()),
            };
            assert_eq!(again, bytes, "{}", path.display());
            seen += 1;
        }
        assert!(seen > 40);
    }

    #[test]
    fn unknown_fields_of_an_envelope_survive() {
        let envelope = Bytes::from_static(&[0x0a, 1, 7, 0x9a, 6, 1, 9]);
        let Ok(Step::Submit { envelope: read, .. }) = Step::decode(submit("c", 3, &envelope))
        else {
            panic!();
        };
        assert_eq!(read, envelope);
    }

    #[test]
    fn forged_requests_are_read_or_refused() {
        let folder = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../fixtures/fabric/raftpb/captured"
        );
        let mut files: Vec<_> = std::fs::read_dir(folder)
            .unwrap()
            .map(|file| file.unwrap().path())
            .collect();
        files.sort();
        let samples: Vec<Vec<u8>> = files
            .iter()
            .map(|file| std::fs::read(file).unwrap())
            .collect();
        torment("step request", Shape::Protobuf, &samples, 30_000, |bytes| {
            let _ = Step::decode(Bytes::copy_from_slice(bytes));
        });
    }

    proptest! {
        #[test]
        fn it_writes_what_protobuf_writes(
            channel in "[a-z]{0,5}",
            sequence in any::<u64>(),
            payload in prop::collection::vec(any::<u8>(), 0..300),
            metadata in prop::collection::vec(any::<u8>(), 0..20),
        ) {
            let request = |payload| orderer::StepRequest { payload: Some(payload) }.encode_to_vec();
            let wanted = request(orderer::step_request::Payload::ConsensusRequest(
                orderer::ConsensusRequest {
                    channel: channel.clone(),
                    payload: payload.clone().into(),
                    metadata: metadata.clone().into(),
                },
            ));
            prop_assert_eq!(&consensus(&channel, &payload.clone().into(), &metadata.clone().into())[..], &wanted[..]);
            let envelope = common::Envelope { payload: payload.into(), signature: metadata.into() };
            let encoded = Bytes::from(envelope.encode_to_vec());
            let wanted = request(orderer::step_request::Payload::SubmitRequest(orderer::SubmitRequest {
                channel: channel.clone(),
                last_validation_seq: sequence,
                payload: Some(envelope),
            }));
            let ours = submit(&channel, sequence, &encoded);
            prop_assert_eq!(&ours[..], &wanted[..]);
            let expected = Step::Submit { channel, last_validation_seq: sequence, envelope: encoded };
            prop_assert_eq!(Step::decode(ours), Ok(expected));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Step::decode(bytes.into());
        }
    }
}
