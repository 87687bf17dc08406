//! The one error that a node answers with, whichever way it was asked.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::wire::proto;

/// What kind of refusal it is: stable, for programs to branch on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[non_exhaustive]
pub enum ErrorCode {
    /// No credentials, or wrong ones.
    Unauthenticated,
    /// The user lacks a permission; the message names it.
    PermissionDenied,
    /// Too many failed logins from this address or for this user.
    TooManyAttempts,
    /// An argument is missing, malformed or out of range.
    InvalidArgument,
    /// A message or a list is larger than the API carries.
    TooLarge,
    /// There is no such flow, transaction, attachment or party.
    NotFound,
    /// The thing exists, and its present state does not allow the call.
    Conflict,
    /// The node takes no new flows: draining mode is on, or it is stopping.
    Draining,
    /// This instance does not serve now: starting, standing by, or stopping.
    NotReady,
    /// A bound of the node is reached.
    Overloaded,
    /// The call's time was up before the node had answered.
    TimedOut,
    /// The node does not have this operation.
    Unimplemented,
    /// The node failed in a way it did not expect.
    Internal,
}

/// All codes, in the order of their declaration.
const CODES: [(ErrorCode, &str); 13] = [
    (ErrorCode::Unauthenticated, "UNAUTHENTICATED"),
    (ErrorCode::PermissionDenied, "PERMISSION_DENIED"),
    (ErrorCode::TooManyAttempts, "TOO_MANY_ATTEMPTS"),
    (ErrorCode::InvalidArgument, "INVALID_ARGUMENT"),
    (ErrorCode::TooLarge, "TOO_LARGE"),
    (ErrorCode::NotFound, "NOT_FOUND"),
    (ErrorCode::Conflict, "CONFLICT"),
    (ErrorCode::Draining, "DRAINING"),
    (ErrorCode::NotReady, "NOT_READY"),
    (ErrorCode::Overloaded, "OVERLOADED"),
    (ErrorCode::TimedOut, "TIMED_OUT"),
    (ErrorCode::Unimplemented, "UNIMPLEMENTED"),
    (ErrorCode::Internal, "INTERNAL"),
];

impl ErrorCode {
    /// The code as it stands in answers: `NOT_FOUND`.
    pub fn as_str(self) -> &'static str {
        CODES
            .iter()
            .find(|(code, _)| *code == self)
            .map_or("INTERNAL", |(_, name)| name)
    }

    fn from_name(name: &str) -> Option<Self> {
        CODES
            .iter()
            .find(|(_, known)| *known == name)
            .map(|(code, _)| *code)
    }

    /// The status of an HTTP answer with this error.
    pub fn http_status(self) -> u16 {
        match self {
            Self::Unauthenticated => 401,
            Self::PermissionDenied => 403,
            Self::TooManyAttempts => 429,
            Self::InvalidArgument => 400,
            Self::TooLarge => 413,
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::Draining | Self::NotReady | Self::Overloaded => 503,
            Self::TimedOut => 504,
            Self::Unimplemented => 501,
            Self::Internal => 500,
        }
    }

    fn grpc(self) -> tonic::Code {
        match self {
            Self::Unauthenticated => tonic::Code::Unauthenticated,
            Self::PermissionDenied => tonic::Code::PermissionDenied,
            Self::TooManyAttempts | Self::Overloaded => tonic::Code::ResourceExhausted,
            Self::InvalidArgument => tonic::Code::InvalidArgument,
            Self::TooLarge => tonic::Code::OutOfRange,
            Self::NotFound => tonic::Code::NotFound,
            Self::Conflict | Self::Draining => tonic::Code::FailedPrecondition,
            Self::NotReady => tonic::Code::Unavailable,
            Self::TimedOut => tonic::Code::DeadlineExceeded,
            Self::Unimplemented => tonic::Code::Unimplemented,
            Self::Internal => tonic::Code::Internal,
        }
    }

    fn from_grpc(code: tonic::Code) -> Self {
        match code {
            tonic::Code::Unauthenticated => Self::Unauthenticated,
            tonic::Code::PermissionDenied => Self::PermissionDenied,
            tonic::Code::ResourceExhausted => Self::Overloaded,
            tonic::Code::InvalidArgument => Self::InvalidArgument,
            // This is also how tonic's own decoder refuses a message over the limit.
            tonic::Code::OutOfRange => Self::TooLarge,
            tonic::Code::NotFound => Self::NotFound,
            tonic::Code::FailedPrecondition | tonic::Code::Aborted => Self::Conflict,
            tonic::Code::Unavailable => Self::NotReady,
            tonic::Code::DeadlineExceeded | tonic::Code::Cancelled => Self::TimedOut,
            tonic::Code::Unimplemented => Self::Unimplemented,
            _ => Self::Internal,
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A node's refusal or failure: what happened, and the way out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}{}", remedy_suffix(.remedy))]
pub struct RpcError {
    /// The kind.
    pub code: ErrorCode,
    /// What was refused and why, for a person.
    pub message: String,
    /// Whether the node did nothing, and the same call may succeed later.
    pub retryable: bool,
    /// What the caller or the operator can do, if anything is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

fn remedy_suffix(remedy: &Option<String>) -> String {
    match remedy {
        Some(remedy) => format!(" ({remedy})"),
        None => String::new(),
    }
}

/// The trailer that carries what a gRPC status has no place for.
const ERROR_TRAILER: &str = "quorate-error-bin";

/// Longest message that is sent: it travels in a header, and peers bound those.
const MAX_MESSAGE_BYTES: usize = 2048;

impl RpcError {
    /// An error of this kind. Whether it is retryable follows from the kind: limits, a node that
    /// is not ready and a deadline pass; wrong arguments do not.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        let retryable = matches!(
            code,
            ErrorCode::TooManyAttempts
                | ErrorCode::NotReady
                | ErrorCode::Overloaded
                | ErrorCode::TimedOut
        );
        Self {
            code,
            message: message.into(),
            retryable,
            remedy: None,
        }
    }

    /// Adds the way out.
    pub fn with_remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// Overrides whether the same call may succeed later.
    pub fn with_retryable(mut self, retryable: bool) -> Self {
        self.retryable = retryable;
        self
    }

    /// A malformed or missing argument.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidArgument, message)
    }

    /// There is no such thing.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::NotFound, message)
    }

    /// Something failed that should not; the details belong into the log.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Internal, message)
    }

    /// The error as a gRPC status, for the server's edge.
    pub fn to_status(&self) -> tonic::Status {
        let message = truncated(&self.message);
        let mut status = tonic::Status::new(self.code.grpc(), message);
        let info = proto::ErrorInfo {
            code: self.code.as_str().to_owned(),
            retryable: self.retryable,
            remedy: truncated(self.remedy.as_deref().unwrap_or_default()).to_owned(),
        };
        let bytes = prost::Message::encode_to_vec(&info);
        status.metadata_mut().insert_bin(
            ERROR_TRAILER,
            tonic::metadata::MetadataValue::from_bytes(&bytes),
        );
        status
    }

    /// Whether a status was made by [`RpcError::to_status`], and not by a library or a proxy.
    pub(crate) fn is_ours(status: &tonic::Status) -> bool {
        status.metadata().get_bin(ERROR_TRAILER).is_some()
    }

    /// The error that a gRPC status carries. A status of somebody else (a proxy, the gRPC library)
    /// is translated by its code.
    pub fn from_status(status: &tonic::Status) -> Self {
        let info = status
            .metadata()
            .get_bin(ERROR_TRAILER)
            .and_then(|value| value.to_bytes().ok())
            .and_then(|bytes| <proto::ErrorInfo as prost::Message>::decode(bytes).ok());
        match info {
            Some(info) => Self {
                code: ErrorCode::from_name(&info.code)
                    .unwrap_or_else(|| ErrorCode::from_grpc(status.code())),
                message: status.message().to_owned(),
                retryable: info.retryable,
                remedy: Some(info.remedy).filter(|remedy| !remedy.is_empty()),
            },
            None => Self::new(ErrorCode::from_grpc(status.code()), status.message()),
        }
    }
}

fn truncated(text: &str) -> &str {
    let mut end = text.len().min(MAX_MESSAGE_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_survives_the_way_through_a_grpc_status() {
        for (code, name) in CODES {
            assert_eq!(serde_json::to_value(code).unwrap(), name);
            for retryable in [true, false] {
                let error = RpcError::new(code, "Käse: 'x' is not a flow")
                    .with_retryable(retryable)
                    .with_remedy("try 'flow list' – it says more");
                assert_eq!(RpcError::from_status(&error.to_status()), error);
            }
        }
    }

    #[test]
    fn a_foreign_status_is_translated_and_a_long_message_is_cut_between_characters() {
        let foreign = RpcError::from_status(&tonic::Status::unavailable("no healthy upstream"));
        assert_eq!(foreign.code, ErrorCode::NotReady);
        assert!(foreign.retryable);
        let long = RpcError::internal("ä".repeat(MAX_MESSAGE_BYTES)).to_status();
        assert_eq!(long.message().len(), MAX_MESSAGE_BYTES);
    }
}
