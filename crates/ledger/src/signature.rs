//! Signatures over transaction ids: one at a time, or one for a whole batch.
//!
//! What is signed is never a bare hash: it begins with a text that says what kind of thing is signed, so that a
//! signature given for one purpose is worthless for another, and it contains the [`SignatureMetadata`].
//!
//! A batch signature signs the Merkle root over many ids and carries, for each transaction, the proof that its id is
//! among them. The leaves are hashed twice, so a batch root is never the id of a transaction.

use std::convert::Infallible;

use borsh::{BorshDeserialize, BorshSerialize};
use quorate_identity::{
    KeyPair, PublicKey, SecureHash, Signature, SignatureError, SignatureScheme, SigningError,
    SigningKey,
};
use serde::{Deserialize, Serialize};

use crate::{
    canonical,
    limits::{MAX_BATCH, PLATFORM_VERSION},
    merkle::{self, MerkleProof, ProofError},
    reference::TxId,
};

/// What a key of ours signs. The texts are part of the signed bytes; none is the beginning of another.
#[derive(Clone, Copy)]
pub(crate) enum Purpose {
    Transaction,
    NotarisationRequest,
    NodeInfo,
    NetworkParameters,
}

impl Purpose {
    const fn text(self) -> &'static str {
        match self {
            Self::Transaction => "quorate transaction signature 1\n",
            Self::NotarisationRequest => "quorate notarisation request 1\n",
            Self::NodeInfo => "quorate node info 1\n",
            Self::NetworkParameters => "quorate network parameters 1\n",
        }
    }

    /// The bytes to sign for this purpose.
    pub(crate) fn message(self, content: &[u8]) -> Vec<u8> {
        [self.text().as_bytes(), content].concat()
    }
}

/// What the signer says about the signature; it is signed as well.
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
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SignatureMetadata {
    /// The platform version of the signer.
    pub platform_version: u32,
    /// The code of the signature scheme, see [`SignatureScheme::code`].
    pub scheme: u8,
}

impl SignatureMetadata {
    /// What this build says when it signs with `scheme`.
    pub const fn of(scheme: SignatureScheme) -> Self {
        Self {
            platform_version: PLATFORM_VERSION,
            scheme: scheme.code(),
        }
    }
}

/// A signature over a transaction.
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
pub struct TransactionSignature {
    /// Whose signature it is.
    pub by: PublicKey,
    /// The signature itself.
    pub signature: Signature,
    /// What the signer says about it.
    pub metadata: SignatureMetadata,
    /// For a batch signature: that the transaction belongs to the batch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<MerkleProof>,
}

/// A signature over a transaction that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransactionSignatureError {
    /// The metadata name another scheme than the key has.
    #[error("the signature of {} names scheme {scheme}, its key is of scheme {}", by.to_string_short(), by.scheme().code())]
    Scheme {
        /// The key.
        by: PublicKey,
        /// The scheme in the metadata.
        scheme: u8,
    },
    /// The proof of a batch signature is not one of a single leaf.
    #[error("the batch proof in the signature of {} is not the proof of one transaction", by.to_string_short())]
    ProofForm {
        /// The key.
        by: PublicKey,
    },
    /// The proof of a batch signature does not lead anywhere.
    #[error("the batch proof in the signature of {} is invalid", by.to_string_short())]
    Proof {
        /// The key.
        by: PublicKey,
        /// What is wrong with it.
        #[source]
        source: ProofError,
    },
    /// The signature is not over this transaction, or not by this key.
    #[error("the signature of {} is not valid for transaction {tx}", by.to_string_short())]
    Invalid {
        /// The key.
        by: PublicKey,
        /// The transaction.
        tx: TxId,
        /// What the key says.
        #[source]
        source: SignatureError,
    },
}

impl TransactionSignature {
    /// Checks that the signature is by its key over the transaction `id`, directly or through its batch.
    pub fn verify(&self, id: &TxId) -> Result<(), TransactionSignatureError> {
        self.check_form()?;
        let signed = match &self.proof {
            None => *id.hash(),
            Some(proof) => proof.root(&[batch_leaf(id)]).map_err(|source| {
                TransactionSignatureError::Proof {
                    by: self.by.clone(),
                    source,
                }
            })?,
        };
        self.by
            .verify(&signable(&signed, &self.metadata), &self.signature)
            .map_err(|source| TransactionSignatureError::Invalid {
                by: self.by.clone(),
                tx: *id,
                source,
            })
    }

    /// What can be said without the transaction; bounds the size of a signature.
    pub(crate) fn check_form(&self) -> Result<(), TransactionSignatureError> {
        if self.metadata.scheme != self.by.scheme().code() {
            return Err(TransactionSignatureError::Scheme {
                by: self.by.clone(),
                scheme: self.metadata.scheme,
            });
        }
        match &self.proof {
            Some(proof) if !proof.is_of_one_leaf() => Err(TransactionSignatureError::ProofForm {
                by: self.by.clone(),
            }),
            _ => Ok(()),
        }
    }
}

/// The bytes that a signature over a transaction signs: `hash` is the transaction's id, or the root of a batch.
pub fn signable(hash: &SecureHash, metadata: &SignatureMetadata) -> Vec<u8> {
    Purpose::Transaction.message(&canonical::encode(&(hash, metadata)))
}

/// Signs one transaction.
pub fn sign_transaction(key: &KeyPair, id: &TxId) -> TransactionSignature {
    held(sign(key.public(), id.hash(), &|message| {
        Ok(key.sign(message))
    }))
}

/// Like [`sign_transaction`], with a key that may be in a device. Blocks for as long as the device takes.
///
/// # Errors
/// What the device says.
pub fn try_sign_transaction(
    key: &SigningKey,
    id: &TxId,
) -> Result<TransactionSignature, SigningError> {
    sign(key.public(), id.hash(), &|message| key.sign(message))
}

/// Signs many transactions with one signature; the answers are in the order of `ids`. A batch of one is signed plainly,
/// and more than [`MAX_BATCH`] are signed as several batches.
pub fn sign_batch(key: &KeyPair, ids: &[TxId]) -> Vec<TransactionSignature> {
    held(batches(key.public(), ids, &|message| Ok(key.sign(message))))
}

/// Like [`sign_batch`], with a key that may be in a device. Blocks for as long as the device takes.
///
/// # Errors
/// What the device says; nothing is signed in part then.
pub fn try_sign_batch(
    key: &SigningKey,
    ids: &[TxId],
) -> Result<Vec<TransactionSignature>, SigningError> {
    batches(key.public(), ids, &|message| key.sign(message))
}

/// Signs bytes with one key.
type Sign<'a, E> = &'a dyn Fn(&[u8]) -> Result<Signature, E>;

/// What a key in this process has signed.
fn held<T>(signed: Result<T, Infallible>) -> T {
    match signed {
        Ok(signed) => signed,
        Err(never) => match never {},
    }
}

fn batches<E>(
    by: &PublicKey,
    ids: &[TxId],
    with: Sign<'_, E>,
) -> Result<Vec<TransactionSignature>, E> {
    let mut signatures = Vec::with_capacity(ids.len());
    for batch in ids.chunks(MAX_BATCH) {
        if let [id] = batch {
            signatures.push(sign(by, id.hash(), with)?);
            continue;
        }
        let leaves: Vec<_> = batch.iter().map(batch_leaf).collect();
        let shared = sign(by, &merkle::root(&leaves), with)?;
        let proofs = MerkleProof::each(&leaves).into_iter();
        signatures.extend(proofs.map(|proof| TransactionSignature {
            proof: Some(proof),
            ..shared.clone()
        }));
    }
    Ok(signatures)
}

fn sign<E>(
    by: &PublicKey,
    hash: &SecureHash,
    with: Sign<'_, E>,
) -> Result<TransactionSignature, E> {
    let metadata = SignatureMetadata::of(by.scheme());
    let signature = with(&signable(hash, &metadata))?;
    Ok(TransactionSignature {
        by: by.clone(),
        signature,
        metadata,
        proof: None,
    })
}

fn batch_leaf(id: &TxId) -> SecureHash {
    SecureHash::twice(id.as_bytes())
}
