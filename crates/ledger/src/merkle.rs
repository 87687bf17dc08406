//! Merkle trees over hashes, and proofs that some leaves are in a tree.
//!
//! The leaves are padded with [`SecureHash::ZERO`] to a power of two; an inner node is the SHA-256 of its two children.
//! Callers make leaves by double SHA-256 of something that is not two hashes, so that neither a leaf can be taken for
//! an inner node nor the other way round, and a proof cannot shift levels.

use std::{io, io::Read};

use borsh::{BorshDeserialize, BorshSerialize};
use quorate_identity::SecureHash;
use serde::{Deserialize, Serialize};

use crate::{canonical, limits::MAX_MERKLE_DEPTH};

/// The root of the tree over `leaves`; [`SecureHash::ALL_ONES`] stands for a tree without leaves.
pub fn root(leaves: &[SecureHash]) -> SecureHash {
    if leaves.is_empty() {
        return SecureHash::ALL_ONES;
    }
    let mut level = padded(leaves);
    while level.len() > 1 {
        level = level
            .chunks_exact(2)
            .map(|pair| pair[0].concat(&pair[1]))
            .collect();
    }
    level[0]
}

fn padded(leaves: &[SecureHash]) -> Vec<SecureHash> {
    let mut level = leaves.to_vec();
    level.resize(leaves.len().next_power_of_two(), SecureHash::ZERO);
    level
}

/// Levels above the leaves of a tree with `leaves` of them.
pub(crate) fn depth_of(leaves: usize) -> u32 {
    leaves.next_power_of_two().trailing_zeros()
}

/// Proves that certain leaves stand at certain positions of a tree with a certain root.
///
/// The number of leaves is not proved, only the depth: what is hidden may be leaves or padding.
#[derive(
    Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, BorshSerialize, Serialize, Deserialize,
)]
#[serde(try_from = "Claim", rename_all = "camelCase")]
pub struct MerkleProof {
    depth: u8,
    positions: Vec<u32>,
    /// The nodes that the proved leaves do not determine, level by level from the leaves up, left to right.
    hashes: Vec<SecureHash>,
}

/// A proof before its positions and depth are checked.
#[derive(BorshDeserialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Claim {
    depth: u8,
    positions: Vec<u32>,
    hashes: Vec<SecureHash>,
}

/// A proof that proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// Deeper than any tree of ours.
    #[error("the proof has {depth} levels, at most {MAX_MERKLE_DEPTH} are accepted")]
    TooDeep {
        /// Levels claimed.
        depth: u8,
    },
    /// No positions, positions out of order, or beyond the tree.
    #[error("the positions in the proof are missing, out of order or outside of the tree")]
    Positions,
    /// More or fewer leaves than positions.
    #[error("the proof is for {expected} leaves, {given} were given")]
    Leaves {
        /// Positions in the proof.
        expected: usize,
        /// Leaves given.
        given: usize,
    },
    /// More or fewer hashes than the positions require.
    #[error("the proof has too many or too few hashes")]
    Hashes,
}

impl MerkleProof {
    /// Proves the leaves at `positions`, which must be in ascending order, of the tree over `leaves`.
    ///
    /// # Errors
    /// If there are no positions, or they are unordered or outside of the tree, or the tree is too deep.
    pub fn new(leaves: &[SecureHash], positions: &[u32]) -> Result<Self, ProofError> {
        let depth = u8::try_from(depth_of(leaves.len())).unwrap_or(u8::MAX);
        let claim = Claim {
            depth,
            positions: positions.to_vec(),
            hashes: Vec::new(),
        };
        let mut proof = Self::try_from(claim)?;
        if positions
            .iter()
            .any(|&position| position as usize >= leaves.len())
        {
            return Err(ProofError::Positions);
        }
        let mut level = padded(leaves);
        let mut known = positions.to_vec();
        while level.len() > 1 {
            let mut parents = Vec::with_capacity(known.len());
            let mut at = 0;
            while let Some(&position) = known.get(at) {
                let sibling = position ^ 1;
                if known.get(at + 1) == Some(&sibling) {
                    at += 1;
                } else {
                    proof.hashes.push(level[sibling as usize]);
                }
                parents.push(position / 2);
                at += 1;
            }
            known = parents;
            level = level
                .chunks_exact(2)
                .map(|pair| pair[0].concat(&pair[1]))
                .collect();
        }
        Ok(proof)
    }

    /// The proof of each leaf by itself, in order. One pass over the tree instead of one for each leaf.
    pub(crate) fn each(leaves: &[SecureHash]) -> Vec<Self> {
        let depth = u8::try_from(depth_of(leaves.len())).unwrap_or(u8::MAX);
        debug_assert!(depth <= MAX_MERKLE_DEPTH, "callers bound the batch");
        let positions = 0..u32::try_from(leaves.len()).expect("callers bound the batch");
        let mut proofs: Vec<Self> = positions
            .map(|position| Self {
                depth,
                positions: vec![position],
                hashes: Vec::new(),
            })
            .collect();
        let mut level = padded(leaves);
        for height in 0..depth {
            for (position, proof) in proofs.iter_mut().enumerate() {
                proof.hashes.push(level[(position >> height) ^ 1]);
            }
            level = level
                .chunks_exact(2)
                .map(|pair| pair[0].concat(&pair[1]))
                .collect();
        }
        proofs
    }

    /// Whether this is the path of a single leaf.
    pub(crate) fn is_of_one_leaf(&self) -> bool {
        self.positions.len() == 1 && self.hashes.len() == usize::from(self.depth)
    }

    /// Where the proved leaves stand, ascending.
    pub fn positions(&self) -> &[u32] {
        &self.positions
    }

    /// Levels above the leaves.
    pub fn depth(&self) -> u8 {
        self.depth
    }

    /// The root of every tree in which `leaves` stand at this proof's positions. The caller compares it with the root
    /// that it trusts.
    ///
    /// # Errors
    /// If there are not as many leaves as positions, or not as many hashes as needed.
    pub fn root(&self, leaves: &[SecureHash]) -> Result<SecureHash, ProofError> {
        if leaves.len() != self.positions.len() {
            return Err(ProofError::Leaves {
                expected: self.positions.len(),
                given: leaves.len(),
            });
        }
        let mut hashes = self.hashes.iter();
        let mut level: Vec<(u32, SecureHash)> = self
            .positions
            .iter()
            .copied()
            .zip(leaves.iter().copied())
            .collect();
        for _ in 0..self.depth {
            let mut parents = Vec::with_capacity(level.len());
            let mut nodes = level.iter().copied().peekable();
            while let Some((position, hash)) = nodes.next() {
                let sibling = match nodes.next_if(|(next, _)| *next == position ^ 1) {
                    Some((_, sibling)) => sibling,
                    None => *hashes.next().ok_or(ProofError::Hashes)?,
                };
                let parent = if position % 2 == 0 {
                    hash.concat(&sibling)
                } else {
                    sibling.concat(&hash)
                };
                parents.push((position / 2, parent));
            }
            level = parents;
        }
        match (level.as_slice(), hashes.next()) {
            ([(0, root)], None) => Ok(*root),
            _ => Err(ProofError::Hashes),
        }
    }
}

impl TryFrom<Claim> for MerkleProof {
    type Error = ProofError;

    fn try_from(
        Claim {
            depth,
            positions,
            hashes,
        }: Claim,
    ) -> Result<Self, ProofError> {
        if depth > MAX_MERKLE_DEPTH {
            return Err(ProofError::TooDeep { depth });
        }
        let ascending = positions.windows(2).all(|pair| pair[0] < pair[1]);
        let inside = positions.last().is_some_and(|&last| last < 1 << depth);
        if !ascending || !inside {
            return Err(ProofError::Positions);
        }
        Ok(Self {
            depth,
            positions,
            hashes,
        })
    }
}

impl BorshDeserialize for MerkleProof {
    fn deserialize_reader<R: Read>(reader: &mut R) -> io::Result<Self> {
        Claim::deserialize_reader(reader)?
            .try_into()
            .map_err(canonical::refuse)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn leaves(count: usize) -> Vec<SecureHash> {
        (0..count)
            .map(|n| SecureHash::twice(&n.to_be_bytes()))
            .collect()
    }

    #[test]
    fn shapes() {
        let leaf = leaves(3);
        assert_eq!(root(&[]), SecureHash::ALL_ONES);
        assert_eq!(root(&leaf[..1]), leaf[0]);
        assert_eq!(root(&leaf[..2]), leaf[0].concat(&leaf[1]));
        assert_eq!(
            root(&leaf),
            leaf[0]
                .concat(&leaf[1])
                .concat(&leaf[2].concat(&SecureHash::ZERO))
        );
        assert_eq!([1, 2, 3, 4, 5].map(depth_of), [0, 1, 2, 2, 3]);
    }

    #[test]
    fn what_cannot_be_proved() {
        let leaf = leaves(3);
        assert_eq!(MerkleProof::new(&leaf, &[]), Err(ProofError::Positions));
        assert_eq!(MerkleProof::new(&leaf, &[3]), Err(ProofError::Positions));
        assert_eq!(MerkleProof::new(&leaf, &[1, 0]), Err(ProofError::Positions));
        assert_eq!(MerkleProof::new(&leaf, &[1, 1]), Err(ProofError::Positions));
        let deep = MerkleProof {
            depth: 200,
            positions: vec![0],
            hashes: vec![],
        };
        assert!(borsh::from_slice::<MerkleProof>(&borsh::to_vec(&deep).unwrap()).is_err());
        assert!(
            serde_json::from_str::<MerkleProof>(&serde_json::to_string(&deep).unwrap()).is_err()
        );
    }

    proptest! {
        #[test]
        fn any_choice_of_leaves_is_proved_and_nothing_else(
            count in 1usize..40,
            choice in proptest::collection::vec(any::<bool>(), 40),
            at: proptest::sample::Index,
            bit in 0u8..8,
        ) {
            let leaf = leaves(count);
            let positions: Vec<u32> = (0..count as u32).filter(|&n| choice[n as usize]).collect();
            prop_assume!(!positions.is_empty());
            let shown: Vec<_> = positions.iter().map(|&n| leaf[n as usize]).collect();
            let proof = MerkleProof::new(&leaf, &positions).unwrap();
            prop_assert_eq!(proof.root(&shown), Ok(root(&leaf)));
            let one = MerkleProof::new(&leaf, &positions[..1]).unwrap();
            prop_assert_eq!(&one, &MerkleProof::each(&leaf)[positions[0] as usize]);
            prop_assert_eq!(&borsh::from_slice::<MerkleProof>(&borsh::to_vec(&proof).unwrap()).unwrap(), &proof);

            // One flipped bit anywhere, in the leaves or in the proof, must not lead to the same root.
            let mut other = shown.clone();
            let victim = at.index(other.len());
            let mut bytes = *other[victim].as_bytes();
            bytes[0] ^= 1 << bit;
            other[victim] = SecureHash::from_bytes(bytes);
            prop_assert_ne!(proof.root(&other), Ok(root(&leaf)));

            let mut bytes = borsh::to_vec(&proof).unwrap();
            let victim = at.index(bytes.len());
            bytes[victim] ^= 1 << bit;
            if let Ok(forged) = borsh::from_slice::<MerkleProof>(&bytes) {
                prop_assert_ne!(forged.root(&shown), Ok(root(&leaf)));
            }
        }
    }
}
