//! Which trace a flow belongs to: what telemetry draws across nodes.
//!
//! A flow's own ids follow from its flow id, so that a flow that is taken up again after a crash is still the same span.
//! What caused it came with the call or the message that started it, and is kept with its checkpoint. Nothing here
//! measures anything, and no decision depends on it.

use std::fmt;
use std::str::FromStr;

use borsh::{BorshDeserialize, BorshSerialize};
use quorate_identity::SecureHash;
use serde::{Deserialize, Serialize};

use crate::ids::FlowId;

/// A span in a trace, as it is passed on: the two ids of W3C's `traceparent`.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize,
)]
#[serde(try_from = "String", into = "String")]
pub struct TraceContext {
    /// The trace: everything that has one beginning.
    pub trace: [u8; 16],
    /// The span in it.
    pub span: [u8; 8],
}

/// Not a `traceparent`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a traceparent (00-<32 hex digits>-<16 hex digits>-<2 hex digits>)")]
pub struct TraceContextError;

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("00-")?;
        for byte in self.trace {
            write!(f, "{byte:02x}")?;
        }
        f.write_str("-")?;
        for byte in self.span {
            write!(f, "{byte:02x}")?;
        }
        f.write_str("-01")
    }
}

impl FromStr for TraceContext {
    type Err = TraceContextError;

    fn from_str(text: &str) -> Result<Self, TraceContextError> {
        fn bytes<const N: usize>(hex: Option<&str>) -> Option<[u8; N]> {
            let hex = hex.filter(|hex| hex.len() == 2 * N && hex.is_ascii())?;
            let mut bytes = [0; N];
            for (byte, digits) in bytes.iter_mut().zip(hex.as_bytes().chunks(2)) {
                let digits = std::str::from_utf8(digits).ok()?;
                *byte = u8::from_str_radix(digits, 16).ok()?;
            }
            // All zeros stand for nothing.
            (bytes != [0; N]).then_some(bytes)
        }
        let mut parts = text.split('-');
        let version = parts
            .next()
            .filter(|version| version.len() == 2 && *version != "ff");
        let (trace, span) = (bytes(parts.next()), bytes(parts.next()));
        match (version, trace, span) {
            (Some(_), Some(trace), Some(span)) => Ok(Self { trace, span }),
            _ => Err(TraceContextError),
        }
    }
}

impl From<TraceContext> for String {
    fn from(context: TraceContext) -> Self {
        context.to_string()
    }
}

impl TryFrom<String> for TraceContext {
    type Error = TraceContextError;

    fn try_from(text: String) -> Result<Self, TraceContextError> {
        text.parse()
    }
}

/// A flow's place in a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowTrace {
    /// The flow itself.
    pub own: TraceContext,
    /// What caused it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<TraceContext>,
}

impl FlowTrace {
    /// That of a flow which `parent` caused; without one it begins a trace.
    pub fn of(flow: FlowId, parent: Option<TraceContext>) -> Self {
        let hash = SecureHash::of_parts(&[b"quorate span", flow.as_bytes()]);
        let mut span = [0; 8];
        span.copy_from_slice(&hash.as_bytes()[..8]);
        let trace = parent.map_or(*flow.as_bytes(), |parent| parent.trace);
        Self {
            own: TraceContext { trace, span },
            parent,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_is_read_and_written() {
        let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let context: TraceContext = text.parse().unwrap();
        assert_eq!(context.to_string(), text);
        let zeros = "00-00000000000000000000000000000000-00f067aa0ba902b7-01";
        for wrong in [
            "",
            "00",
            "00-x-y-01",
            zeros,
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e47é-00f067aa0ba902b7-01",
        ] {
            assert!(wrong.parse::<TraceContext>().is_err(), "{wrong}");
        }
    }
}
