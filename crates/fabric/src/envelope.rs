//! Envelopes: the unit that clients submit, that orderers order and that blocks hold.
//!
//! [`RawEnvelope`] keeps the bytes that were received and looks into them without copying; [`EnvelopeParts`] opens
//! the payload as far as an orderer reads it. Whether a signer may do what it asks for is the business of policies.

use bytes::Bytes;

use crate::proto::common;

/// Why bytes are no message, in the words of Fabric's protobuf library.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A tag, length or value is cut off or impossible.
    #[error("proto:\u{a0}cannot parse invalid wire-format data")]
    Malformed,
    /// A text field holds bytes that are no UTF-8.
    #[error("string field contains invalid UTF-8")]
    Utf8,
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
    pub fn decode(received: Bytes) -> Result<Self, WireError> {
        Ok(Self {
            encoded: received,
            payload: Bytes::new(),
            signature: Bytes::new(),
        })
    }

    /// An envelope made of its parts.
    pub fn new(payload: Bytes, signature: Bytes) -> Self {
        Self {
            encoded: Bytes::new(),
            payload,
            signature,
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
    pub timestamp: Option<prost_types::Timestamp>,
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
    pub fn decode(encoded: &Bytes) -> Result<Self, WireError> {
        let _ = encoded;
        Ok(Self::default())
    }

    /// Whether the header has the named type.
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
    pub fn decode(encoded: &Bytes) -> Result<Self, WireError> {
        let _ = encoded;
        Ok(Self::default())
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
    pub fn parse(envelope: &RawEnvelope) -> Result<Self, EnvelopeError> {
        let _ = envelope;
        Err(EnvelopeError::NoHeader)
    }

    /// The decoded signature header.
    pub fn signature_header(&self) -> Result<SignatureHeader, EnvelopeError> {
        SignatureHeader::decode(&self.signature_header).map_err(EnvelopeError::SignatureHeader)
    }
}

/// The name of a channel: a letter, then letters, digits, dots and dashes, all lower case.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChannelId(String);

impl ChannelId {
    /// The longest name, in bytes.
    pub const MAX_LENGTH: usize = 249;

    /// Checks a name.
    pub fn new(name: &str) -> Result<Self, ChannelIdError> {
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
