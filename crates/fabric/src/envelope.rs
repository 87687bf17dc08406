//! Envelopes: the unit that clients submit, that orderers order and that blocks hold.
//!
//! [`RawEnvelope`] keeps the bytes that were received and looks into them without copying; [`EnvelopeParts`] opens
//! the payload as far as an orderer reads it. Whether a signer may do what it asks for is the business of policies.

use std::ops::Range;

use bytes::Bytes;
use prost::Message;
use prost_types::Timestamp;

use crate::msp::{SignError, Signer};
use crate::policy::SignedData;
use crate::proto::common;
use crate::wire::{self, Fields, Malformed, Value};

/// Why bytes are no message, in the words of Fabric's protobuf library.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A tag, length or value is cut off or impossible.
    #[error("proto: cannot parse invalid wire-format data")]
    Malformed,
    /// A text field holds bytes that are no UTF-8.
    #[error("string field contains invalid UTF-8")]
    Utf8,
}

impl From<Malformed> for WireError {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

/// An envelope together with the bytes that go into a block.
///
/// Those bytes are what Fabric would store: payload, signature, unknown fields in the order of their arrival. They
/// are the received bytes themselves when these are already in that form, as those of every usual client are.
#[derive(Clone, PartialEq, Eq)]
pub struct RawEnvelope {
    encoded: Bytes,
    payload: Bytes,
    signature: Bytes,
}

impl RawEnvelope {
    /// Reads an envelope. Of a field that occurs twice the last one counts; unknown fields are kept.
    ///
    /// # Errors
    /// [`WireError`] when the bytes are no protobuf message.
    pub fn decode(received: Bytes) -> Result<Self, WireError> {
        let mut payload = 0..0;
        let mut signature = 0..0;
        let mut unknown: Vec<Range<usize>> = Vec::new();
        let mut known_bytes = 0;
        let mut fields = Fields::of(&received);
        while let Some(field) = fields.next()? {
            match (field.number, field.value) {
                (1, Value::Bytes(range)) => payload = range,
                (2, Value::Bytes(range)) => signature = range,
                _ => {
                    unknown.push(field.span);
                    continue;
                }
            }
            known_bytes += field.span.len();
        }
        // In order, each once, nothing empty and no number longer than needed: these are the bytes that we would
        // write. The sum says it all, because everything that deviates takes more room.
        let ordered = (signature.is_empty() || payload.start < signature.start)
            && unknown
                .first()
                .is_none_or(|first| first.start >= payload.end.max(signature.end));
        if ordered && known_bytes == known_len(payload.len(), signature.len()) {
            return Ok(Self {
                payload: received.slice(payload),
                signature: received.slice(signature),
                encoded: received,
            });
        }
        let unknown: Vec<&[u8]> = unknown.into_iter().map(|span| &received[span]).collect();
        Ok(Self::assemble(
            &received[payload],
            &received[signature],
            &unknown,
        ))
    }

    /// An envelope made of an encoded `Payload` and the signature over it.
    #[must_use]
    pub fn new(payload: &[u8], signature: &[u8]) -> Self {
        Self::assemble(payload, signature, &[])
    }

    fn assemble(payload: &[u8], signature: &[u8], unknown: &[&[u8]]) -> Self {
        let known = known_len(payload.len(), signature.len());
        let total = known + unknown.iter().map(|field| field.len()).sum::<usize>();
        let mut out = Vec::with_capacity(total);
        let mut place = |number, value: &[u8]| {
            if !value.is_empty() {
                wire::put_bytes(&mut out, number, value);
            }
            out.len() - value.len()..out.len()
        };
        let payload = place(1, payload);
        let signature = place(2, signature);
        for field in unknown {
            out.extend_from_slice(field);
        }
        let encoded = Bytes::from(out);
        Self {
            payload: encoded.slice(payload),
            signature: encoded.slice(signature),
            encoded,
        }
    }

    /// The bytes that a block holds and that are forwarded.
    pub fn encoded(&self) -> &Bytes {
        &self.encoded
    }

    /// The encoded `Payload`.
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// The signature over the payload.
    pub fn signature(&self) -> &Bytes {
        &self.signature
    }

    /// What counts for `AbsoluteMaxBytes` and `PreferredMaxBytes`: payload and signature, in bytes.
    pub fn size(&self) -> usize {
        self.payload.len() + self.signature.len()
    }

    /// The envelope as a message, for embedding into other messages. Loses unknown fields.
    pub fn to_proto(&self) -> common::Envelope {
        common::Envelope {
            payload: self.payload.clone(),
            signature: self.signature.clone(),
        }
    }
}

impl From<&common::Envelope> for RawEnvelope {
    fn from(envelope: &common::Envelope) -> Self {
        Self::new(&envelope.payload, &envelope.signature)
    }
}

/// The length of an encoded envelope without unknown fields.
fn known_len(payload: usize, signature: usize) -> usize {
    [payload, signature]
        .into_iter()
        .filter(|length| *length > 0)
        .map(wire::bytes_field_len)
        .sum()
}

/// Shows sizes only: payloads are long, and they are the clients' own affair.
impl std::fmt::Debug for RawEnvelope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RawEnvelope")
            .field("payload", &self.payload.len())
            .field("signature", &self.signature.len())
            .finish()
    }
}

/// Why an envelope's payload or headers cannot be used. The texts are Fabric's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// The payload is no `Payload`.
    #[error("error unmarshalling Payload: {0}")]
    Payload(WireError),
    /// The payload has no header.
    #[error("header not set")]
    NoHeader,
    /// The header has no channel header.
    #[error("channel header not set")]
    NoChannelHeader,
    /// The channel header is no `ChannelHeader`.
    #[error("error unmarshalling channel header: error unmarshalling ChannelHeader: {0}")]
    ChannelHeader(WireError),
    /// The signature header is no `SignatureHeader`.
    #[error("GetSignatureHeaderFromBytes failed, err {0}")]
    SignatureHeader(WireError),
}

/// A channel header, read as Fabric reads it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ChannelHeader {
    /// The number of a `HeaderType`; numbers without a name are ordinary messages.
    pub header_type: i32,
    /// The version of the message protocol.
    pub version: i32,
    /// When the sender made the message.
    pub timestamp: Option<Timestamp>,
    /// The channel; not yet checked to be a possible name.
    pub channel_id: String,
    /// The transaction's identifier.
    pub tx_id: String,
    /// The epoch, always 0 in practice.
    pub epoch: u64,
    /// What the header type says it is.
    pub extension: Bytes,
    /// The hash of the sender's TLS certificate, for requests bound to their connection.
    pub tls_cert_hash: Bytes,
}

impl ChannelHeader {
    /// Reads an encoded `ChannelHeader`.
    ///
    /// # Errors
    /// [`WireError`] when the bytes are no protobuf message, or a text in it is none.
    pub fn decode(encoded: &Bytes) -> Result<Self, WireError> {
        let mut header = Self::default();
        let mut fields = Fields::of(encoded);
        while let Some(field) = fields.next()? {
            match (field.number, field.value) {
                // Integers of 32 bits are the low half of what was sent.
                (1, Value::Varint(value)) => header.header_type = value as i32,
                (2, Value::Varint(value)) => header.version = value as i32,
                (3, Value::Bytes(range)) => {
                    let timestamp = header.timestamp.get_or_insert_default();
                    merge_timestamp(timestamp, &encoded[range])?;
                }
                (4, Value::Bytes(range)) => header.channel_id = text(&encoded[range])?,
                (5, Value::Bytes(range)) => header.tx_id = text(&encoded[range])?,
                (6, Value::Varint(value)) => header.epoch = value,
                (7, Value::Bytes(range)) => header.extension = encoded.slice(range),
                (8, Value::Bytes(range)) => header.tls_cert_hash = encoded.slice(range),
                _ => {}
            }
        }
        Ok(header)
    }

    /// Whether the header has the named type.
    #[must_use]
    pub fn is(&self, header_type: common::HeaderType) -> bool {
        self.header_type == header_type as i32
    }
}

/// A signature header, read as Fabric reads it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SignatureHeader {
    /// The sender: an encoded `SerializedIdentity`.
    pub creator: Bytes,
    /// A number used once.
    pub nonce: Bytes,
}

impl SignatureHeader {
    /// Reads an encoded `SignatureHeader`.
    ///
    /// # Errors
    /// [`WireError`] when the bytes are no protobuf message.
    pub fn decode(encoded: &Bytes) -> Result<Self, WireError> {
        let mut header = Self::default();
        let mut fields = Fields::of(encoded);
        while let Some(field) = fields.next()? {
            match (field.number, field.value) {
                (1, Value::Bytes(range)) => header.creator = encoded.slice(range),
                (2, Value::Bytes(range)) => header.nonce = encoded.slice(range),
                _ => {}
            }
        }
        Ok(header)
    }
}

/// An envelope's payload, opened as far as an orderer reads it.
#[derive(Debug, Clone, PartialEq)]
pub struct EnvelopeParts {
    /// The channel header.
    pub channel_header: ChannelHeader,
    /// The encoded signature header, decoded only when the signature is judged.
    pub signature_header: Bytes,
    /// What the header type says it is.
    pub data: Bytes,
}

impl EnvelopeParts {
    /// Opens the payload, with Fabric's refusals in Fabric's order.
    ///
    /// # Errors
    /// [`EnvelopeError`]; its text is what Fabric says about such an envelope.
    pub fn parse(envelope: &RawEnvelope) -> Result<Self, EnvelopeError> {
        let payload = Payload::decode(envelope.payload()).map_err(EnvelopeError::Payload)?;
        if !payload.has_header {
            return Err(EnvelopeError::NoHeader);
        }
        if payload.channel_header.is_empty() {
            return Err(EnvelopeError::NoChannelHeader);
        }
        Ok(Self {
            channel_header: ChannelHeader::decode(&payload.channel_header)
                .map_err(EnvelopeError::ChannelHeader)?,
            signature_header: payload.signature_header,
            data: payload.data,
        })
    }

    /// The decoded signature header. Without one, creator and nonce are empty.
    ///
    /// # Errors
    /// [`EnvelopeError::SignatureHeader`] when the bytes are no protobuf message.
    pub fn signature_header(&self) -> Result<SignatureHeader, EnvelopeError> {
        SignatureHeader::decode(&self.signature_header).map_err(EnvelopeError::SignatureHeader)
    }

    /// What a policy has to judge about `envelope`, whose parts these are.
    ///
    /// # Errors
    /// [`EnvelopeError::SignatureHeader`] when there is no telling who signed.
    pub fn signed_data(&self, envelope: &RawEnvelope) -> Result<SignedData, EnvelopeError> {
        Ok(SignedData {
            data: envelope.payload().clone(),
            identity: self.signature_header()?.creator,
            signature: envelope.signature().clone(),
        })
    }
}

/// A payload's parts, not yet interpreted.
#[derive(Default)]
struct Payload {
    has_header: bool,
    channel_header: Bytes,
    signature_header: Bytes,
    data: Bytes,
}

impl Payload {
    fn decode(encoded: &Bytes) -> Result<Self, WireError> {
        let mut payload = Self::default();
        let mut fields = Fields::of(encoded);
        while let Some(field) = fields.next()? {
            match (field.number, field.value) {
                // A second header adds to the first, as protobuf has it for messages.
                (1, Value::Bytes(range)) => payload.merge_header(&encoded.slice(range))?,
                (2, Value::Bytes(range)) => payload.data = encoded.slice(range),
                _ => {}
            }
        }
        Ok(payload)
    }

    fn merge_header(&mut self, header: &Bytes) -> Result<(), WireError> {
        self.has_header = true;
        let mut fields = Fields::of(header);
        while let Some(field) = fields.next()? {
            match (field.number, field.value) {
                (1, Value::Bytes(range)) => self.channel_header = header.slice(range),
                (2, Value::Bytes(range)) => self.signature_header = header.slice(range),
                _ => {}
            }
        }
        Ok(())
    }
}

fn merge_timestamp(timestamp: &mut Timestamp, encoded: &[u8]) -> Result<(), WireError> {
    let mut fields = Fields::of(encoded);
    while let Some(field) = fields.next()? {
        match (field.number, field.value) {
            (1, Value::Varint(value)) => timestamp.seconds = value as i64,
            (2, Value::Varint(value)) => timestamp.nanos = value as i32,
            _ => {}
        }
    }
    Ok(())
}

fn text(bytes: &[u8]) -> Result<String, WireError> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err(WireError::Utf8),
    }
}

/// The transaction identifier that Fabric's clients derive from nonce and creator.
#[must_use]
pub fn tx_id(nonce: &[u8], creator: &[u8]) -> String {
    let mut digest = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    digest.update(nonce);
    digest.update(creator);
    hex::encode(digest.finish())
}

/// Makes an envelope and signs it. `nonce` must never have been used by this signer before.
///
/// # Errors
/// [`SignError`] if the signer's key could not be used.
pub fn sign(
    channel_header: &common::ChannelHeader,
    data: Vec<u8>,
    nonce: &[u8],
    signer: &dyn Signer,
) -> Result<RawEnvelope, SignError> {
    let payload = common::Payload {
        header: Some(common::Header {
            channel_header: channel_header.encode_to_vec(),
            signature_header: common::SignatureHeader {
                creator: signer.creator().to_vec(),
                nonce: nonce.to_vec(),
            }
            .encode_to_vec(),
        }),
        data,
    }
    .encode_to_vec();
    let signature = signer.sign(&payload)?;
    Ok(RawEnvelope::new(&payload, &signature))
}

/// The name of a channel: a letter, then letters, digits, dots and dashes, all lower case.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChannelId(String);

impl ChannelId {
    /// The longest name, in bytes.
    pub const MAX_LENGTH: usize = 249;

    /// Checks a name.
    ///
    /// # Errors
    /// [`ChannelIdError`] saying which rule the name breaks.
    pub fn new(name: &str) -> Result<Self, ChannelIdError> {
        if name.is_empty() {
            return Err(ChannelIdError::Empty);
        }
        if name.len() > Self::MAX_LENGTH {
            return Err(ChannelIdError::TooLong);
        }
        let inside = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'.' || c == b'-';
        if !name.as_bytes()[0].is_ascii_lowercase() || !name.bytes().all(inside) {
            return Err(ChannelIdError::Characters(name.to_owned()));
        }
        Ok(Self(name.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for ChannelId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for ChannelId {
    type Err = ChannelIdError;
    fn from_str(name: &str) -> Result<Self, ChannelIdError> {
        Self::new(name)
    }
}

/// Why a text is no channel name. The texts are Fabric's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChannelIdError {
    /// Nothing.
    #[error("channel ID illegal, cannot be empty")]
    Empty,
    /// More than [`ChannelId::MAX_LENGTH`] bytes.
    #[error("channel ID illegal, cannot be longer than {}", ChannelId::MAX_LENGTH)]
    TooLong,
    /// A character that may not be in a name.
    #[error("'{0}' contains illegal characters")]
    Characters(String),
}
