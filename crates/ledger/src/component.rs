//! The components of a transaction, their groups, and how they are hashed into its id.
//!
//! A transaction is nine groups of components (Corda's, with Corda's numbers). Each component is hashed with a nonce
//! that only the holders of the transaction's salt can compute, so that a hidden component cannot be guessed from its
//! hash. The leaves of a group form a Merkle tree; the roots of the nine groups form the tree whose root is the
//! transaction's id. Numbers in hashes are big-endian.
//!
//! ```text
//! nonce = SHA-256d(salt ‖ group: u32 ‖ index: u32)     leaf = SHA-256d(nonce ‖ component)
//! group = Merkle root of leaves, ALL_ONES if none      id   = Merkle root of groups 0..=8
//! ```

use borsh::{BorshDeserialize, BorshSerialize};
use quorate_identity::{Party, PublicKey, SecureHash};
use serde::{Deserialize, Serialize};

use crate::{
    canonical::{self, DecodeError},
    limits::{self, MAX_WIRE_BYTES},
    merkle,
    reference::{AttachmentId, StateRef, TxId},
    state::TransactionState,
    time::TimeWindow,
};

/// How many groups there are.
pub const GROUPS: usize = 9;

/// The groups of components, numbered as in Corda. The numbers are part of the transaction id.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Debug,
    BorshSerialize,
    BorshDeserialize,
    Serialize,
    Deserialize,
)]
#[borsh(use_discriminant = true)]
#[serde(rename_all = "camelCase")]
#[repr(u8)]
pub enum ComponentGroup {
    /// References of consumed states.
    Inputs = 0,
    /// Produced states.
    Outputs = 1,
    /// Commands without their signers.
    Commands = 2,
    /// Ids of attachments.
    Attachments = 3,
    /// The notary, if any.
    Notary = 4,
    /// The time window, if any.
    TimeWindow = 5,
    /// The signers of each command, in the order of the commands.
    Signers = 6,
    /// References of states that are read and not consumed.
    References = 7,
    /// The hash of the network parameters, if any.
    Parameters = 8,
}

impl ComponentGroup {
    /// All groups, in order of their numbers.
    pub const ALL: [Self; GROUPS] = [
        Self::Inputs,
        Self::Outputs,
        Self::Commands,
        Self::Attachments,
        Self::Notary,
        Self::TimeWindow,
        Self::Signers,
        Self::References,
        Self::Parameters,
    ];

    /// The number of the group.
    pub const fn number(self) -> usize {
        self as usize
    }

    /// How many components the group may have.
    pub const fn limit(self) -> usize {
        match self {
            Self::Inputs => limits::MAX_INPUTS,
            Self::Outputs => limits::MAX_OUTPUTS,
            Self::Commands | Self::Signers => limits::MAX_COMMANDS,
            Self::Attachments => limits::MAX_ATTACHMENTS,
            Self::References => limits::MAX_REFERENCES,
            Self::Notary | Self::TimeWindow | Self::Parameters => 1,
        }
    }

    pub(crate) const fn what(self) -> &'static str {
        match self {
            Self::Inputs => "input",
            Self::Outputs => "output",
            Self::Commands => "command",
            Self::Attachments => "attachment id",
            Self::Notary => "notary",
            Self::TimeWindow => "time window",
            Self::Signers => "signers of a command",
            Self::References => "reference input",
            Self::Parameters => "network parameters hash",
        }
    }
}

/// What a command says, without who must sign it: the component of group [`ComponentGroup::Commands`].
#[derive(
    Clone,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Debug,
    BorshSerialize,
    BorshDeserialize,
    Serialize,
    Deserialize,
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CommandData {
    /// The kind of command, e.g. `cash.Move`.
    pub kind: String,
    /// The canonical bytes of the command's own data (base64 in JSON).
    #[serde(with = "canonical::base64_bytes")]
    pub data: Vec<u8>,
}

/// One component of a transaction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Component {
    /// A consumed state.
    Input(StateRef),
    /// A produced state.
    Output(TransactionState),
    /// A command.
    Command(CommandData),
    /// An attachment.
    Attachment(AttachmentId),
    /// The notary.
    Notary(Party),
    /// The time window.
    TimeWindow(TimeWindow),
    /// The signers of the command with the same index.
    Signers(Vec<PublicKey>),
    /// A state that is read and not consumed.
    Reference(StateRef),
    /// The network parameters in force.
    Parameters(SecureHash),
}

impl Component {
    /// The group that such components form.
    pub fn group(&self) -> ComponentGroup {
        match self {
            Self::Input(_) => ComponentGroup::Inputs,
            Self::Output(_) => ComponentGroup::Outputs,
            Self::Command(_) => ComponentGroup::Commands,
            Self::Attachment(_) => ComponentGroup::Attachments,
            Self::Notary(_) => ComponentGroup::Notary,
            Self::TimeWindow(_) => ComponentGroup::TimeWindow,
            Self::Signers(_) => ComponentGroup::Signers,
            Self::Reference(_) => ComponentGroup::References,
            Self::Parameters(_) => ComponentGroup::Parameters,
        }
    }

    /// Reads the canonical bytes of a component of `group`.
    pub(crate) fn decode(group: ComponentGroup, bytes: &[u8]) -> Result<Self, DecodeError> {
        fn read<T: BorshSerialize + BorshDeserialize>(
            group: ComponentGroup,
            bytes: &[u8],
        ) -> Result<T, DecodeError> {
            canonical::decode(group.what(), bytes, MAX_WIRE_BYTES)
        }
        Ok(match group {
            ComponentGroup::Inputs => Self::Input(read(group, bytes)?),
            ComponentGroup::Outputs => Self::Output(read(group, bytes)?),
            ComponentGroup::Commands => Self::Command(read(group, bytes)?),
            ComponentGroup::Attachments => Self::Attachment(read(group, bytes)?),
            ComponentGroup::Notary => Self::Notary(read(group, bytes)?),
            ComponentGroup::TimeWindow => Self::TimeWindow(read(group, bytes)?),
            ComponentGroup::Signers => Self::Signers(read(group, bytes)?),
            ComponentGroup::References => Self::Reference(read(group, bytes)?),
            ComponentGroup::Parameters => Self::Parameters(read(group, bytes)?),
        })
    }
}

/// The bytes of the components of each group, by the group's number: what is hashed.
pub(crate) type Groups = [Vec<Vec<u8>>; GROUPS];

/// One group as it is written. Empty groups are not written; the others ascend.
#[derive(BorshSerialize, BorshDeserialize)]
pub(crate) struct RawGroup {
    group: u8,
    components: Vec<Vec<u8>>,
}

/// A transaction as it is written.
#[derive(BorshSerialize, BorshDeserialize)]
pub(crate) struct Raw {
    salt: [u8; 32],
    groups: Vec<RawGroup>,
}

impl Raw {
    pub(crate) fn new(salt: [u8; 32], groups: Groups) -> Self {
        let groups = (0u8..)
            .zip(groups)
            .filter(|(_, components)| !components.is_empty());
        Self {
            salt,
            groups: groups
                .map(|(group, components)| RawGroup { group, components })
                .collect(),
        }
    }

    /// The salt and the groups; refuses unknown, empty, repeated, unordered and overfull groups.
    pub(crate) fn open(self) -> Result<([u8; 32], Groups), String> {
        let mut groups = Groups::default();
        let mut last = None;
        for RawGroup { group, components } in self.groups {
            let known = ComponentGroup::ALL.get(usize::from(group)).ok_or_else(|| {
                format!("component group {group} is unknown; it may come from a newer version")
            })?;
            if last.is_some_and(|last| last >= group) || components.is_empty() {
                return Err(format!(
                    "component group {group} is empty, repeated or out of order"
                ));
            }
            if components.len() > known.limit() {
                return Err(format!(
                    "component group {group} has {} components, at most {} are possible",
                    components.len(),
                    known.limit()
                ));
            }
            last = Some(group);
            groups[known.number()] = components;
        }
        Ok((self.salt, groups))
    }
}

/// The secret that keeps one component from being guessed.
pub(crate) fn nonce(salt: &[u8; 32], group: usize, index: usize) -> SecureHash {
    let mut preimage = [0; 40];
    preimage[..32].copy_from_slice(salt);
    // Both are bounded far below 2^32.
    preimage[32..36].copy_from_slice(&(group as u32).to_be_bytes());
    preimage[36..].copy_from_slice(&(index as u32).to_be_bytes());
    SecureHash::twice(&preimage)
}

/// The leaf of one component.
pub(crate) fn leaf(nonce: &SecureHash, component: &[u8]) -> SecureHash {
    SecureHash::of(SecureHash::of_parts(&[nonce.as_bytes(), component]).as_bytes())
}

/// The leaves of one group.
pub(crate) fn leaves(salt: &[u8; 32], group: usize, components: &[Vec<u8>]) -> Vec<SecureHash> {
    let leaf = |(index, bytes): (usize, &Vec<u8>)| leaf(&nonce(salt, group, index), bytes);
    components.iter().enumerate().map(leaf).collect()
}

/// The roots of all groups.
pub(crate) fn group_hashes(salt: &[u8; 32], groups: &Groups) -> [SecureHash; GROUPS] {
    std::array::from_fn(|group| merkle::root(&leaves(salt, group, &groups[group])))
}

/// The id of the transaction with these group roots.
pub(crate) fn id_of(group_hashes: &[SecureHash; GROUPS]) -> TxId {
    TxId::new(merkle::root(group_hashes))
}
