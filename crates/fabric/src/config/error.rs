//! Why a configuration, or a change of one, is refused.

/// A refusal in Fabric's words, which clients and operators' scripts compare. The orderer adds what it was doing
/// (`error applying config update to existing channel …`).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct ConfigError {
    text: String,
}

impl ConfigError {
    /// A refusal with this text.
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self { text: text.into() }
    }

    /// The same refusal, with what was being done before it: `context: text`.
    #[allow(dead_code)]
    pub(crate) fn within(self, context: &str) -> Self {
        Self {
            text: format!("{context}: {}", self.text),
        }
    }
}
