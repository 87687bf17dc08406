//! A transaction with the signatures collected so far: [`SignedTransaction`], the value that is recorded and sent.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use borsh::{BorshDeserialize, BorshSerialize};
use quorate_identity::{KeyPair, PublicKey};

use crate::{
    canonical::{self, DecodeError, borsh_as_bytes, serde_as_base64},
    limits::{MAX_SIGNATURES, MAX_TRANSACTION_BYTES},
    reference::TxId,
    signature::{TransactionSignature, TransactionSignatureError, sign_transaction},
    transaction::WireTransaction,
};

/// A transaction and signatures over its id: at most one by each key, in the order of the keys. Cheap to clone.
///
/// Having one says nothing about the signatures: ask [`verify_required_signatures`](Self::verify_required_signatures).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SignedTransaction {
    wire: Arc<WireTransaction>,
    signatures: Arc<[TransactionSignature]>,
}

#[derive(BorshSerialize, BorshDeserialize)]
enum Versioned<W, S> {
    V1 { wire: W, signatures: S },
}

/// Signatures that are missing or wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SignaturesError {
    /// A signature does not hold.
    #[error("transaction {tx} carries a bad signature")]
    Invalid {
        /// The transaction.
        tx: TxId,
        /// What is wrong with it.
        #[source]
        source: TransactionSignatureError,
    },
    /// Somebody has not signed.
    #[error("transaction {tx} lacks the signatures of {}", short(missing))]
    Missing {
        /// The transaction.
        tx: TxId,
        /// Who has not signed.
        missing: BTreeSet<PublicKey>,
    },
    /// More signatures than anybody may ask for.
    #[error("{count} signatures on transaction {tx}, at most {MAX_SIGNATURES} are possible")]
    TooMany {
        /// The transaction.
        tx: TxId,
        /// How many.
        count: usize,
    },
}

fn short(keys: &BTreeSet<PublicKey>) -> String {
    keys.iter()
        .map(PublicKey::to_string_short)
        .collect::<Vec<_>>()
        .join(", ")
}

impl SignedTransaction {
    /// A transaction that nobody has signed yet.
    pub fn unsigned(wire: impl Into<Arc<WireTransaction>>) -> Self {
        Self {
            wire: wire.into(),
            signatures: Arc::new([]),
        }
    }

    /// A transaction with signatures.
    ///
    /// # Errors
    /// As [`with_signatures`](Self::with_signatures).
    pub fn new(
        wire: impl Into<Arc<WireTransaction>>,
        signatures: impl IntoIterator<Item = TransactionSignature>,
    ) -> Result<Self, SignaturesError> {
        Self::unsigned(wire).with_signatures(signatures)
    }

    /// The same transaction with more signatures. A key that has signed keeps the signature that is here already:
    /// whoever put it here has had the chance to check it.
    ///
    /// The signatures are not verified here.
    ///
    /// # Errors
    /// If there are too many, or one has a form that no signature has.
    pub fn with_signatures(
        &self,
        more: impl IntoIterator<Item = TransactionSignature>,
    ) -> Result<Self, SignaturesError> {
        let tx = self.id();
        let mut by_key: BTreeMap<PublicKey, TransactionSignature> = self
            .signatures
            .iter()
            .map(|signature| (signature.by.clone(), signature.clone()))
            .collect();
        for signature in more {
            signature
                .check_form()
                .map_err(|source| SignaturesError::Invalid { tx, source })?;
            by_key.entry(signature.by.clone()).or_insert(signature);
        }
        if by_key.len() > MAX_SIGNATURES {
            return Err(SignaturesError::TooMany {
                tx,
                count: by_key.len(),
            });
        }
        Ok(Self {
            wire: Arc::clone(&self.wire),
            signatures: by_key.into_values().collect(),
        })
    }

    /// The same transaction, signed with one more key.
    ///
    /// # Errors
    /// If there are too many signatures already.
    pub fn sign(&self, key: &KeyPair) -> Result<Self, SignaturesError> {
        self.with_signatures([sign_transaction(key, &self.id())])
    }

    /// The transaction's id.
    pub fn id(&self) -> TxId {
        self.wire.id()
    }

    /// The transaction.
    pub fn wire(&self) -> &Arc<WireTransaction> {
        &self.wire
    }

    /// The signatures, in the order of their keys.
    pub fn signatures(&self) -> &[TransactionSignature] {
        &self.signatures
    }

    /// Everybody who must sign, see [`WireTransaction::required_signers`].
    pub fn required_signers(&self) -> BTreeSet<PublicKey> {
        self.wire.required_signers()
    }

    /// Who must sign and has not.
    pub fn missing_signers(&self) -> BTreeSet<PublicKey> {
        let mut missing = self.required_signers();
        for signature in self.signatures.iter() {
            missing.remove(&signature.by);
        }
        missing
    }

    /// Whether `key` has signed. Does not verify the signature.
    pub fn is_signed_by(&self, key: &PublicKey) -> bool {
        self.signatures
            .binary_search_by(|signature| signature.by.cmp(key))
            .is_ok()
    }

    /// Checks that every signature that is here holds. Says nothing about those that are missing.
    pub fn check_signatures_valid(&self) -> Result<(), SignaturesError> {
        let tx = self.id();
        self.signatures
            .iter()
            .try_for_each(|signature| signature.verify(&tx))
            .map_err(|source| SignaturesError::Invalid { tx, source })
    }

    /// Checks that everybody who must sign has signed, and that every signature holds.
    pub fn verify_required_signatures(&self) -> Result<(), SignaturesError> {
        self.verify_signatures_except(&[])
    }

    /// Like [`verify_required_signatures`](Self::verify_required_signatures), but those in `allowed_to_be_missing`
    /// need not have signed yet. What they have signed must hold nevertheless.
    pub fn verify_signatures_except(
        &self,
        allowed_to_be_missing: &[PublicKey],
    ) -> Result<(), SignaturesError> {
        // The cheap question first: verifying costs some 35 µs per signature.
        let mut missing = self.missing_signers();
        missing.retain(|key| !allowed_to_be_missing.contains(key));
        if !missing.is_empty() {
            return Err(SignaturesError::Missing {
                tx: self.id(),
                missing,
            });
        }
        self.check_signatures_valid()
    }

    /// The canonical bytes, versioned. The transaction inside is copied, not encoded again.
    pub fn encode(&self) -> Vec<u8> {
        canonical::encode(&Versioned::V1 {
            wire: &*self.wire,
            signatures: &*self.signatures,
        })
    }

    /// Reads canonical bytes and checks every rule that needs nothing but the transaction itself. Verifies no signature.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        const WHAT: &str = "signed transaction";
        let Versioned::<WireTransaction, Vec<TransactionSignature>>::V1 { wire, signatures } =
            canonical::decode(WHAT, bytes, MAX_TRANSACTION_BYTES)?;
        if signatures.len() > MAX_SIGNATURES {
            let reason = format!(
                "{} signatures, at most {MAX_SIGNATURES} are possible",
                signatures.len()
            );
            return Err(DecodeError::invalid(WHAT, reason));
        }
        if !signatures.windows(2).all(|pair| pair[0].by < pair[1].by) {
            return Err(DecodeError::invalid(
                WHAT,
                "the signatures are not in the order of their keys, one by each",
            ));
        }
        let forms = signatures
            .iter()
            .try_for_each(TransactionSignature::check_form);
        forms.map_err(|error| DecodeError::invalid(WHAT, error))?;
        Ok(Self {
            wire: Arc::new(wire),
            signatures: signatures.into(),
        })
    }
}

borsh_as_bytes!(SignedTransaction, MAX_TRANSACTION_BYTES);
serde_as_base64!(SignedTransaction);
