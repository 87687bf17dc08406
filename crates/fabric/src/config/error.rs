//! Why a configuration, or a change of one, is refused.

use std::fmt;

use crate::envelope::WireError;

/// A refusal in Fabric's words, which clients and operators' scripts compare. What the orderer was doing
/// (`error applying config update to existing channel …`) is for the orderer to put before it: [`ConfigError::within`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct ConfigError {
    text: String,
    incompatible: bool,
}

impl ConfigError {
    /// A refusal with this text.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            incompatible: false,
        }
    }

    /// A refusal, with this text, of a configuration that makes sense but cannot be served here.
    pub(super) fn incompatible(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            incompatible: true,
        }
    }

    /// Whether the configuration makes sense in itself, but requires what this orderer does not have: other texts
    /// stand before such a refusal when a channel is joined.
    #[must_use]
    pub fn is_incompatible(&self) -> bool {
        self.incompatible
    }

    /// The same refusal, with what was being done before it: `context: text`.
    #[must_use]
    pub fn within(self, context: impl fmt::Display) -> Self {
        Self {
            text: format!("{context}: {}", self.text),
            ..self
        }
    }
}

/// Decodes a part of a configuration.
pub(super) fn decode<M: prost::Message + Default>(bytes: &[u8]) -> Result<M, ConfigError> {
    M::decode(bytes).map_err(|_| ConfigError::new(WireError::Malformed.to_string()))
}
