//! What can go wrong with a device.

use std::path::PathBuf;
use std::time::Duration;

use cryptoki::error::{Error as Pkcs11Error, RvError};

/// Why the device did not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum HsmError {
    /// The library cannot be loaded.
    #[error(
        "the PKCS#11 library {} cannot be loaded ({reason}); install the software of the module's manufacturer and correct `library`",
        .library.display()
    )]
    Library {
        /// The file.
        library: PathBuf,
        /// What the loader says.
        reason: String,
    },
    /// The device shows no such token.
    #[error("the hardware security module shows no token {token:?}; it is unplugged or unreachable, or `tokenLabel` is wrong (there is: {})", list(.present))]
    TokenMissing {
        /// The label.
        token: String,
        /// The labels that there are.
        present: Vec<String>,
    },
    /// The PIN is wrong, or locked.
    #[error(
        "the token {token:?} refused the PIN ({reason}); it is not tried again, so that the token does not lock itself: correct `pin` and restart the node"
    )]
    PinRefused {
        /// The token.
        token: String,
        /// What the device says.
        reason: String,
    },
    /// There is no key of that label.
    #[error("the token {token:?} holds no key {label:?}; `quorate node hsm generate` makes it")]
    KeyMissing {
        /// The token.
        token: String,
        /// The label.
        label: String,
    },
    /// There is a key of that label already.
    #[error("the token {token:?} already holds a key {label:?}; choose another alias")]
    LabelTaken {
        /// The token.
        token: String,
        /// The label.
        label: String,
    },
    /// Several keys have that label.
    #[error("the token {token:?} holds several keys {label:?}; remove or rename all but one")]
    Ambiguous {
        /// The token.
        token: String,
        /// The label.
        label: String,
    },
    /// A key that is neither P-256 nor Ed25519.
    #[error(
        "the key {label:?} in the token {token:?} is of a kind that is not supported; use ECDSA over P-256 or Ed25519"
    )]
    Kind {
        /// The token.
        token: String,
        /// The label.
        label: String,
    },
    /// The key is not the one that is certified.
    #[error(
        "the key {label:?} in the token {token:?} is {held}, but the certificate is for {wanted}; correct the token or the alias"
    )]
    OtherKey {
        /// The token.
        token: String,
        /// The label.
        label: String,
        /// The short form of the certified key.
        wanted: String,
        /// The short form of the key in the token.
        held: String,
    },
    /// No answer in time, or too many that wait for one.
    #[error("the hardware security module did not answer within {} ms (cryptoServiceTimeout)", .after.as_millis())]
    TimedOut {
        /// How long it was waited.
        after: Duration,
    },
    /// More requests wait than there is room for.
    #[error("more than {waiting} requests wait for the hardware security module")]
    Busy {
        /// How many may wait.
        waiting: usize,
    },
    /// The device is out of reach or in a bad state.
    #[error("the hardware security module is not available: {reason}")]
    Unavailable {
        /// What the library says.
        reason: String,
    },
    /// The device will not.
    #[error("the hardware security module refused: {reason}")]
    Refused {
        /// What the library says.
        reason: String,
    },
}

fn list(labels: &[String]) -> String {
    match labels {
        [] => "none".to_owned(),
        _ => labels.join(", "),
    }
}

impl HsmError {
    /// Whether the same may succeed later without anybody changing something here.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::TokenMissing { .. }
                | Self::TimedOut { .. }
                | Self::Busy { .. }
                | Self::Unavailable { .. }
        )
    }

    /// Whether a new session, or the library started anew, may help.
    pub(crate) const fn is_of_connection(&self) -> bool {
        matches!(
            self,
            // A library may remember that a token was empty or away.
            Self::TokenMissing { .. } | Self::KeyMissing { .. } | Self::Unavailable { .. }
        )
    }
}

impl From<Pkcs11Error> for HsmError {
    fn from(error: Pkcs11Error) -> Self {
        let reason = error.to_string();
        let lasting = match &error {
            Pkcs11Error::Pkcs11(code, _) => matches!(
                code,
                RvError::MechanismInvalid
                    | RvError::MechanismParamInvalid
                    | RvError::KeyTypeInconsistent
                    | RvError::KeyFunctionNotPermitted
                    | RvError::TemplateInconsistent
                    | RvError::TemplateIncomplete
                    | RvError::AttributeTypeInvalid
                    | RvError::AttributeValueInvalid
                    | RvError::AttributeReadOnly
                    | RvError::TokenWriteProtected
                    | RvError::CurveNotSupported
                    | RvError::DomainParamsInvalid
            ),
            _ => true,
        };
        match lasting {
            true => Self::Refused { reason },
            false => Self::Unavailable { reason },
        }
    }
}
