//! A party: a legal name together with the key that signs in that name.

use std::fmt;

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

use crate::keys::PublicKey;
use crate::name::X500Name;

/// Somebody who can be named in a transaction: an organisation, or a notary service.
///
/// A value of this type is a claim. That the key belongs to the name is proved by a certificate path, see
/// [`crate::path::validate_path`].
#[derive(
    Debug,
    Clone,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    BorshSerialize,
    BorshDeserialize,
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Party {
    /// The legal name.
    pub name: X500Name,
    /// The key that signs for the party.
    pub owning_key: PublicKey,
}

impl Party {
    /// A party of a name and a key.
    #[must_use]
    pub const fn new(name: X500Name, owning_key: PublicKey) -> Self {
        Self { name, owning_key }
    }
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.name, f)
    }
}
