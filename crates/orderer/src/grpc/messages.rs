//! The messages of `AtomicBroadcast`, and the codecs that carry them without loss.

use std::marker::PhantomData;

use bytes::{Buf, BufMut, Bytes};
use prost::Message;
use prost::encoding::{
    DecodeContext, WireType, decode_key, decode_varint, encode_key, encode_varint, skip_field,
};
use quorate_fabric::envelope::RawEnvelope;
use quorate_fabric::proto::common::Status;
use quorate_fabric::proto::orderer::BroadcastResponse;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

const STATUS_FIELD: u32 = 1;
const BLOCK_FIELD: u32 = 2;

/// What Deliver answers: blocks, and a status at the end of each request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeliverResponse {
    /// How a request ended. A number without a name, or no number at all, is [`Status::Unknown`].
    Status(Status),
    /// A `common.Block` message.
    Block(Bytes),
}

/// What a service answers, on the wire.
pub(super) trait Response: Sized + Send + 'static {
    fn write(self, target: &mut impl BufMut);
    fn read(message: Bytes) -> Result<Self, prost::DecodeError>;
}

impl Response for BroadcastResponse {
    fn write(self, target: &mut impl BufMut) {
        self.encode_raw(target);
    }

    fn read(message: Bytes) -> Result<Self, prost::DecodeError> {
        Self::decode(message)
    }
}

impl Response for DeliverResponse {
    fn write(self, target: &mut impl BufMut) {
        match self {
            Self::Status(status) => {
                encode_key(STATUS_FIELD, WireType::Varint, target);
                encode_varint(u64::from(i32::from(status).cast_unsigned()), target);
            }
            Self::Block(block) => {
                encode_key(BLOCK_FIELD, WireType::LengthDelimited, target);
                encode_varint(block.len() as u64, target);
                target.put(block);
            }
        }
    }

    fn read(mut message: Bytes) -> Result<Self, prost::DecodeError> {
        let mut response = Self::Status(Status::Unknown);
        while message.has_remaining() {
            let (field, wire_type) = decode_key(&mut message)?;
            match (field, wire_type) {
                (STATUS_FIELD, WireType::Varint) => {
                    // Negative numbers are sent with 64 bits.
                    let number = decode_varint(&mut message)? as i32;
                    response = Self::Status(Status::try_from(number).unwrap_or(Status::Unknown));
                }
                (BLOCK_FIELD, WireType::LengthDelimited) => {
                    let length = decode_varint(&mut message)?;
                    match usize::try_from(length) {
                        Ok(length) if length <= message.remaining() => {
                            response = Self::Block(message.split_to(length));
                        }
                        // The library's own error for a field that is cut off.
                        _ => skip_field(
                            WireType::SixtyFourBit,
                            field,
                            &mut Bytes::new(),
                            DecodeContext::default(),
                        )?,
                    }
                }
                _ => skip_field(wire_type, field, &mut message, DecodeContext::default())?,
            }
        }
        Ok(response)
    }
}

/// Envelopes in, responses out.
pub(super) struct ServerCodec<R>(PhantomData<fn() -> R>);

/// Envelopes out, responses in.
pub(super) struct ClientCodec<R>(PhantomData<fn() -> R>);

impl<R> Default for ServerCodec<R> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<R> Default for ClientCodec<R> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<R: Response> Codec for ServerCodec<R> {
    type Encode = R;
    type Decode = RawEnvelope;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self::default()
    }

    fn decoder(&mut self) -> Self {
        Self::default()
    }
}

impl<R: Response> Encoder for ServerCodec<R> {
    type Item = R;
    type Error = tonic::Status;

    fn encode(&mut self, item: R, target: &mut EncodeBuf<'_>) -> Result<(), tonic::Status> {
        item.write(target);
        Ok(())
    }
}

/// What a call holds before its first request, in bytes. Clients may leave thousands of calls open and say nothing.
const IDLE_CALL_BYTES: usize = 1024;
/// What is encoded before it is handed on, in bytes: the library's own number.
const YIELD_BYTES: usize = 32 * 1024;

impl<R> Decoder for ServerCodec<R> {
    type Item = RawEnvelope;
    type Error = tonic::Status;

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(IDLE_CALL_BYTES, YIELD_BYTES)
    }

    fn decode(&mut self, source: &mut DecodeBuf<'_>) -> Result<Option<RawEnvelope>, tonic::Status> {
        RawEnvelope::decode(source.copy_to_bytes(source.remaining()))
            .map(Some)
            .map_err(|error| undecodable(&error))
    }
}

impl<R: Response> Codec for ClientCodec<R> {
    type Encode = RawEnvelope;
    type Decode = R;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self::default()
    }

    fn decoder(&mut self) -> Self {
        Self::default()
    }
}

impl<R> Encoder for ClientCodec<R> {
    type Item = RawEnvelope;
    type Error = tonic::Status;

    fn encode(
        &mut self,
        item: RawEnvelope,
        target: &mut EncodeBuf<'_>,
    ) -> Result<(), tonic::Status> {
        target.put(item.encoded().clone());
        Ok(())
    }
}

impl<R: Response> Decoder for ClientCodec<R> {
    type Item = R;
    type Error = tonic::Status;

    fn decode(&mut self, source: &mut DecodeBuf<'_>) -> Result<Option<R>, tonic::Status> {
        R::read(source.copy_to_bytes(source.remaining()))
            .map(Some)
            .map_err(|error| undecodable(&error))
    }
}

/// Go's status and text for a message that its library cannot read.
fn undecodable(error: &dyn std::fmt::Display) -> tonic::Status {
    tonic::Status::internal(format!(
        "grpc: failed to unmarshal the received message: {error}"
    ))
}
