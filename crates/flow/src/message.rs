//! What travels between two flows: an envelope made to last, around a message of a session.
//!
//! The envelope carries from its first version what later ways of high availability need (shard
//! key, owner and generation of the sending instance), because a field cannot be added to
//! messages that are already under way.

use borsh::{BorshDeserialize, BorshSerialize};
use quorate_identity::{SecureHash, X500Name};

use crate::ids::SessionId;
use crate::trace::TraceContext;

/// The largest encoded envelope that will be read, in bytes.
pub(crate) const MAX_ENVELOPE_BYTES: usize = quorate_ledger::MAX_MESSAGE_BYTES;

/// The longest text of an error or a refusal that is sent to a peer, in characters.
pub(crate) const MAX_REASON_CHARS: usize = 2_000;

/// Which instance of the sending node wrote a message, and under which lease generation.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Owner {
    /// The instance: machine name and base directory.
    pub instance: String,
    /// The generation of its lease.
    pub generation: u64,
}

/// A message of a session.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum SessionMessage {
    /// Opens the session, and may carry its first payload.
    Initiate {
        /// The initiating flow's name; the peer looks for the responder registered for it.
        flow: String,
        /// The version of the application that holds the initiating flow.
        app_version: u32,
        /// The first payload.
        first: Option<Vec<u8>>,
    },
    /// The peer has started its responder (sent only if its first step sends nothing else).
    Confirm,
    /// The peer will not start a responder.
    Reject {
        /// Why, for the initiator's operator.
        reason: String,
    },
    /// A payload.
    Data {
        /// The bytes that the other flow receives.
        payload: Vec<u8>,
        /// The sender's flow ended with this message.
        last: bool,
    },
    /// The sender's flow ended well.
    End,
    /// The sender's flow ended with an error.
    Error {
        /// What the application said.
        message: String,
    },
}

/// A session's message with all that is needed to carry and recognise it.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Envelope {
    /// The sending party; messaging checks it against the TLS certificate.
    pub sender: X500Name,
    /// The receiving party.
    pub recipient: X500Name,
    /// The session.
    pub session: SessionId,
    /// Whether the sender is the side that initiated the session.
    pub from_initiator: bool,
    /// Position among the sender's messages of this session, from 0.
    pub sequence: u64,
    /// Identity of this message: repeated deliveries carry the same.
    pub dedup: SecureHash,
    /// Spreads sessions over the instances of a node.
    pub shard_key: u64,
    /// The instance that wrote it.
    pub owner: Owner,
    /// The message.
    pub body: SessionMessage,
    /// The span that sent it, if somebody draws traces.
    #[borsh(skip)]
    pub trace: Option<TraceContext>,
}

/// An envelope could not be read.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// Larger than this node reads.
    #[error("a message of {size} bytes exceeds the limit of {MAX_ENVELOPE_BYTES}")]
    TooLarge {
        /// Its size in bytes.
        size: usize,
    },
    /// Not an envelope, or of a version that this program does not know.
    #[error("the message is not an envelope of a version that this node knows (1 and 2)")]
    Malformed(#[source] std::io::Error),
}

#[derive(BorshSerialize, BorshDeserialize)]
enum Versioned {
    V1(Envelope),
    /// With a trace, and so only where somebody has asked for traces.
    V2(Envelope, TraceContext),
}

#[derive(BorshSerialize)]
enum VersionedRef<'a> {
    V1(&'a Envelope),
    V2(&'a Envelope, TraceContext),
}

impl Envelope {
    /// Wraps `body` as the `sequence`-th message of `session` from `sender` to `recipient`.
    pub fn new(
        sender: X500Name,
        recipient: X500Name,
        (session, from_initiator): (SessionId, bool),
        sequence: u64,
        owner: Owner,
        body: SessionMessage,
    ) -> Self {
        let dedup = SecureHash::of_parts(&[
            b"quorate message",
            sender.to_string().as_bytes(),
            session.as_bytes(),
            &[u8::from(from_initiator)],
            &sequence.to_le_bytes(),
        ]);
        let mut shard = [0; 8];
        shard.copy_from_slice(&session.as_bytes()[..8]);
        Self {
            sender,
            recipient,
            session,
            from_initiator,
            sequence,
            dedup,
            shard_key: u64::from_le_bytes(shard),
            owner,
            body,
            trace: None,
        }
    }

    /// The versioned bytes.
    pub fn encode(&self) -> Vec<u8> {
        let versioned = match self.trace {
            None => VersionedRef::V1(self),
            Some(trace) => VersionedRef::V2(self, trace),
        };
        borsh::to_vec(&versioned).expect("writing to memory cannot fail")
    }

    /// Reads versioned bytes; refuses what is too large, unknown or followed by more bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        if bytes.len() > MAX_ENVELOPE_BYTES {
            return Err(MessageError::TooLarge { size: bytes.len() });
        }
        Ok(
            match borsh::from_slice(bytes).map_err(MessageError::Malformed)? {
                Versioned::V1(envelope) => envelope,
                Versioned::V2(envelope, trace) => Self {
                    trace: Some(trace),
                    ..envelope
                },
            },
        )
    }
}

/// Cuts a reason to the length that is sent to peers.
pub(crate) fn reason(text: &str) -> String {
    text.chars().take(MAX_REASON_CHARS).collect()
}
