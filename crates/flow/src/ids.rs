//! Names of flows, sessions and clients' requests.

use std::fmt;
use std::str::FromStr;

use borsh::{BorshDeserialize, BorshSerialize};
use quorate_identity::{SecureHash, X500Name};
use serde::{Deserialize, Serialize};

/// Longest client id that a caller may choose, in bytes.
pub const MAX_CLIENT_ID_BYTES: usize = 128;

/// An identifier was not in its text form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Not a UUID-like text.
    #[error("'{0}' is not an id of the form xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx")]
    NotAnId(String),
    /// Empty, too long, or with control characters.
    #[error("a client id has 1 to {MAX_CLIENT_ID_BYTES} bytes and no control characters")]
    BadClientId,
}

macro_rules! sixteen_byte_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize,
        )]
        pub struct $name([u8; 16]);

        impl $name {
            /// The id with these bytes.
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }

            /// The id's bytes.
            pub const fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }

            fn of_hash(hash: &SecureHash) -> Self {
                let mut bytes = [0; 16];
                bytes.copy_from_slice(&hash.as_bytes()[..16]);
                Self(bytes)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                for (i, byte) in self.0.iter().enumerate() {
                    if matches!(i, 4 | 6 | 8 | 10) {
                        f.write_str("-")?;
                    }
                    write!(f, "{byte:02x}")?;
                }
                Ok(())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let refused = || IdError::NotAnId(text.chars().take(64).collect());
                let mut bytes = [0; 16];
                let mut digits = text.bytes().filter(|b| *b != b'-');
                for byte in &mut bytes {
                    for _ in 0..2 {
                        let digit = digits.next().and_then(|d| (d as char).to_digit(16));
                        *byte = (*byte << 4) | digit.ok_or_else(refused)? as u8;
                    }
                }
                match digits.next() {
                    None => Ok(Self(bytes)),
                    Some(_) => Err(refused()),
                }
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <String as Deserialize>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

sixteen_byte_id! {
    /// One run of a flow on one node.
    FlowId
}

sixteen_byte_id! {
    /// A conversation between two flows. The initiator draws it; both sides use the same id.
    SessionId
}

impl FlowId {
    /// The id of the flow that answers a session: the same however often the session's first
    /// message arrives, so that a repeated delivery cannot start a second flow.
    pub fn of_responder(initiator: &X500Name, session: SessionId) -> Self {
        Self::of_hash(&SecureHash::of_parts(&[
            b"quorate responder",
            initiator.to_string().as_bytes(),
            session.as_bytes(),
        ]))
    }
}

impl SessionId {
    /// The id of the `index`-th session that `flow` opens on the node of `me`.
    pub fn opened_by(me: &X500Name, flow: FlowId, index: u32) -> Self {
        Self::of_hash(&SecureHash::of_parts(&[
            b"quorate session",
            me.to_string().as_bytes(),
            flow.as_bytes(),
            &index.to_le_bytes(),
        ]))
    }
}

/// A name that a client gives to its request to start a flow: asking again under the same name
/// re-attaches to the same flow.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClientId(String);

impl ClientId {
    /// A client id: 1 to [`MAX_CLIENT_ID_BYTES`] bytes without control characters.
    pub fn new(text: impl Into<String>) -> Result<Self, IdError> {
        let text = text.into();
        if text.is_empty() || text.len() > MAX_CLIENT_ID_BYTES || text.chars().any(char::is_control)
        {
            return Err(IdError::BadClientId);
        }
        Ok(Self(text))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ClientId {
    type Error = IdError;

    fn try_from(text: String) -> Result<Self, IdError> {
        Self::new(text)
    }
}

impl From<ClientId> for String {
    fn from(id: ClientId) -> Self {
        id.0
    }
}

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
