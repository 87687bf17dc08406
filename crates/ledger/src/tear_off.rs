//! Tear-offs: a transaction with some components torn away, and proof that the rest belongs to it.
//!
//! A [`FilteredTransaction`] shows chosen components with their nonces, the roots of all groups, and Merkle proofs. A
//! signer who sees one can convince himself that the shown components belong to the transaction with this id, and, group
//! by group, that nothing was withheld ([`FilteredTransaction::check_all_visible`]). The salt is never shown.

use std::{collections::BTreeMap, sync::Arc};

use borsh::{BorshDeserialize, BorshSerialize};
use quorate_identity::{Party, PublicKey, SecureHash};

use crate::{
    canonical::{self, DecodeError, borsh_as_bytes, serde_as_base64},
    component::{self, CommandData, Component, ComponentGroup, GROUPS},
    limits::MAX_VALUE_BYTES,
    merkle::{self, MerkleProof, ProofError},
    reference::{StateRef, TxId},
    state::TransactionState,
    time::TimeWindow,
    transaction::WireTransaction,
};

/// A transaction of which only some components are visible. Cheap to clone. Whoever holds a value knows that its proofs hold:
/// [`build`](Self::build) and [`decode`](Self::decode) are the only ways to one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FilteredTransaction {
    content: Arc<Content>,
    /// The visible components of each group with their positions.
    visible: Arc<BTreeMap<ComponentGroup, Vec<(u32, Component)>>>,
}

#[derive(BorshSerialize, BorshDeserialize)]
enum Versioned<C> {
    V1(C),
}

#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
struct Content {
    id: TxId,
    group_hashes: [SecureHash; GROUPS],
    /// Groups of which something is visible, ascending.
    groups: Vec<FilteredGroup>,
}

#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
struct FilteredGroup {
    group: ComponentGroup,
    proof: MerkleProof,
    /// One for each position of the proof.
    components: Vec<FilteredComponent>,
}

#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
struct FilteredComponent {
    nonce: SecureHash,
    bytes: Vec<u8>,
}

/// A tear-off that does not prove what it shows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TearOffError {
    /// Nothing is visible.
    #[error("the tear-off of transaction {0} shows no component at all")]
    Nothing(TxId),
    /// The group hashes do not lead to the id.
    #[error("the group hashes of the tear-off do not add up to transaction {0}")]
    Id(TxId),
    /// Groups are repeated or out of order.
    #[error("the groups of the tear-off are repeated or out of order")]
    Groups,
    /// A proof is malformed.
    #[error("the proof of group {group:?} is invalid")]
    Proof {
        /// The group.
        group: ComponentGroup,
        /// What is wrong with it.
        #[source]
        source: ProofError,
    },
    /// The visible components do not lead to the group's hash.
    #[error("the visible components of group {0:?} do not belong to the transaction")]
    Group(ComponentGroup),
    /// Something is hidden that must be seen.
    #[error("not all components of group {0:?} are visible")]
    Hidden(ComponentGroup),
    /// A command is hidden that must be seen.
    #[error("not all commands that {} must sign are visible", .0.to_string_short())]
    HiddenCommand(PublicKey),
}

impl FilteredTransaction {
    /// Shows the components of `wire` that `keep` accepts. If a command is shown, the signers of all commands are shown
    /// as well, so that nobody signs without knowing which commands ask for it.
    ///
    /// # Errors
    /// If `keep` accepts nothing.
    pub fn build(
        wire: &WireTransaction,
        keep: impl Fn(&Component) -> bool,
    ) -> Result<Self, TearOffError> {
        let mut visible: BTreeMap<ComponentGroup, Vec<(u32, Component)>> = BTreeMap::new();
        let mut positions = [0u32; GROUPS];
        for component in wire.components() {
            let group = component.group();
            let position = positions[group.number()];
            positions[group.number()] += 1;
            // Commands precede signers in the order of groups.
            let signers_of_command =
                group == ComponentGroup::Signers && visible.contains_key(&ComponentGroup::Commands);
            if signers_of_command || keep(&component) {
                visible
                    .entry(group)
                    .or_default()
                    .push((position, component));
            }
        }
        if visible.is_empty() {
            return Err(TearOffError::Nothing(wire.id()));
        }
        let (salt, mut bytes) = (wire.privacy_salt(), wire.groups());
        let leaves: [Vec<SecureHash>; GROUPS] =
            std::array::from_fn(|group| component::leaves(salt, group, &bytes[group]));
        let mut groups = Vec::new();
        for (&group, components) in &visible {
            let number = group.number();
            let positions: Vec<u32> = components.iter().map(|(position, _)| *position).collect();
            let proof = MerkleProof::new(&leaves[number], &positions)
                .map_err(|source| TearOffError::Proof { group, source })?;
            let components = positions.iter().map(|&position| FilteredComponent {
                nonce: component::nonce(salt, number, position as usize),
                bytes: std::mem::take(&mut bytes[number][position as usize]),
            });
            groups.push(FilteredGroup {
                group,
                proof,
                components: components.collect(),
            });
        }
        let group_hashes = std::array::from_fn(|group| merkle::root(&leaves[group]));
        Ok(Self {
            content: Arc::new(Content {
                id: wire.id(),
                group_hashes,
                groups,
            }),
            visible: Arc::new(visible),
        })
    }

    /// The canonical bytes, versioned.
    pub fn encode(&self) -> Vec<u8> {
        canonical::encode(&Versioned::V1(&*self.content))
    }

    /// Reads canonical bytes and verifies what they prove.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        const WHAT: &str = "tear-off";
        let Versioned::V1(content) =
            canonical::decode::<Versioned<Content>>(WHAT, bytes, MAX_VALUE_BYTES)?;
        let mut visible = BTreeMap::new();
        for FilteredGroup {
            group,
            proof,
            components,
        } in &content.groups
        {
            if components.len() != proof.positions().len() || components.len() > group.limit() {
                return Err(DecodeError::invalid(WHAT, TearOffError::Group(*group)));
            }
            let decode = |(&position, component): (&u32, &FilteredComponent)| {
                Ok((position, Component::decode(*group, &component.bytes)?))
            };
            let components: Result<_, DecodeError> = proof
                .positions()
                .iter()
                .zip(components)
                .map(decode)
                .collect();
            visible.insert(*group, components?);
        }
        let tear_off = Self {
            content: Arc::new(content),
            visible: Arc::new(visible),
        };
        tear_off
            .verify()
            .map_err(|error| DecodeError::invalid(WHAT, error))?;
        Ok(tear_off)
    }

    /// Checks that the visible components belong to the transaction with this id. [`decode`](Self::decode) has done so
    /// already; a signer may ask again before signing.
    pub fn verify(&self) -> Result<(), TearOffError> {
        let Content {
            id,
            group_hashes,
            groups,
        } = &*self.content;
        if groups.is_empty() {
            return Err(TearOffError::Nothing(*id));
        }
        if component::id_of(group_hashes) != *id {
            return Err(TearOffError::Id(*id));
        }
        if !groups.windows(2).all(|pair| pair[0].group < pair[1].group) {
            return Err(TearOffError::Groups);
        }
        for group in groups {
            let root = group.proof.root(&group.leaves());
            let root = root.map_err(|source| TearOffError::Proof {
                group: group.group,
                source,
            })?;
            if root != group_hashes[group.group.number()] {
                return Err(TearOffError::Group(group.group));
            }
        }
        Ok(())
    }

    /// Checks that nothing of `group` is hidden. A group that the transaction does not have is visible in full.
    pub fn check_all_visible(&self, group: ComponentGroup) -> Result<(), TearOffError> {
        let expected = self.content.group_hashes[group.number()];
        let shown = self
            .content
            .groups
            .iter()
            .find(|shown| shown.group == group);
        // The root over exactly the visible leaves: a hidden one would have its place taken by padding.
        let root = merkle::root(&shown.map(FilteredGroup::leaves).unwrap_or_default());
        if root == expected {
            Ok(())
        } else {
            Err(TearOffError::Hidden(group))
        }
    }

    /// Checks that every command which asks for `key`'s signature is visible, with all its signers.
    pub fn check_commands_visible(&self, key: &PublicKey) -> Result<(), TearOffError> {
        self.check_all_visible(ComponentGroup::Signers)?;
        let visible: Vec<u32> = self
            .of(ComponentGroup::Commands)
            .map(|(position, _)| position)
            .collect();
        for (position, component) in self.of(ComponentGroup::Signers) {
            let asked = matches!(component, Component::Signers(signers) if signers.contains(key));
            if asked && !visible.contains(&position) {
                return Err(TearOffError::HiddenCommand(key.clone()));
            }
        }
        Ok(())
    }

    /// The transaction's id.
    pub fn id(&self) -> TxId {
        self.content.id
    }

    /// All visible components with their groups and their positions in them.
    pub fn components(&self) -> impl Iterator<Item = (ComponentGroup, u32, &Component)> {
        self.visible.iter().flat_map(|(&group, components)| {
            components
                .iter()
                .map(move |(position, component)| (group, *position, component))
        })
    }

    fn of(&self, group: ComponentGroup) -> impl Iterator<Item = (u32, &Component)> {
        let components = self
            .visible
            .get(&group)
            .map(Vec::as_slice)
            .unwrap_or_default();
        components
            .iter()
            .map(|(position, component)| (*position, component))
    }

    /// The visible consumed states.
    pub fn inputs(&self) -> Vec<StateRef> {
        let inputs = self.of(ComponentGroup::Inputs);
        inputs
            .filter_map(|(_, component)| match component {
                Component::Input(input) => Some(*input),
                _ => None,
            })
            .collect()
    }

    /// The visible states that are read and not consumed.
    pub fn references(&self) -> Vec<StateRef> {
        let references = self.of(ComponentGroup::References);
        references
            .filter_map(|(_, component)| match component {
                Component::Reference(reference) => Some(*reference),
                _ => None,
            })
            .collect()
    }

    /// The visible outputs with their positions.
    pub fn outputs(&self) -> Vec<(u32, &TransactionState)> {
        let outputs = self.of(ComponentGroup::Outputs);
        outputs
            .filter_map(|(position, component)| match component {
                Component::Output(output) => Some((position, output)),
                _ => None,
            })
            .collect()
    }

    /// The visible commands with their positions.
    pub fn commands(&self) -> Vec<(u32, &CommandData)> {
        let commands = self.of(ComponentGroup::Commands);
        commands
            .filter_map(|(position, component)| match component {
                Component::Command(command) => Some((position, command)),
                _ => None,
            })
            .collect()
    }

    /// The notary, if there is one and it is visible.
    pub fn notary(&self) -> Option<&Party> {
        self.of(ComponentGroup::Notary)
            .find_map(|(_, component)| match component {
                Component::Notary(notary) => Some(notary),
                _ => None,
            })
    }

    /// The time window, if there is one and it is visible.
    pub fn time_window(&self) -> Option<TimeWindow> {
        self.of(ComponentGroup::TimeWindow)
            .find_map(|(_, component)| match component {
                Component::TimeWindow(window) => Some(*window),
                _ => None,
            })
    }

    /// The hash of the network parameters, if there is one and it is visible.
    pub fn parameters(&self) -> Option<SecureHash> {
        self.of(ComponentGroup::Parameters)
            .find_map(|(_, component)| match component {
                Component::Parameters(hash) => Some(*hash),
                _ => None,
            })
    }
}

impl FilteredGroup {
    fn leaves(&self) -> Vec<SecureHash> {
        self.components
            .iter()
            .map(|component| component::leaf(&component.nonce, &component.bytes))
            .collect()
    }
}

borsh_as_bytes!(FilteredTransaction, MAX_VALUE_BYTES);
serde_as_base64!(FilteredTransaction);
