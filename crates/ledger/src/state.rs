//! States: what a transaction produces and a later one consumes.
//!
//! The platform sees a [`TransactionState`]: bytes with a type name, the contract that judges them, the keys that they
//! concern and the notary that guards them. An application sees its own type, which implements [`ContractState`].

use borsh::{BorshDeserialize, BorshSerialize};
use quorate_identity::{Party, PublicKey, SecureHash};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    canonical::{self, DecodeError},
    limits::{MAX_PARTICIPANTS, MAX_TYPE_NAME_BYTES, MAX_WIRE_BYTES},
    reference::StateRef,
};

/// Names the contract that judges a state: by name for people, by the hash of its code for certainty.
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
pub struct ContractRef {
    /// The name, e.g. `cash.Cash`.
    pub name: String,
    /// The hash of the contract's code. Nodes with other code refuse the transaction instead of judging differently.
    pub code: SecureHash,
}

/// What an application implements for each of its kinds of state.
///
/// The borsh form is what is signed; begin with an enum of versions if the fields may change. The serde form is for
/// people and for clients in other languages.
pub trait ContractState: BorshSerialize + BorshDeserialize + Serialize + DeserializeOwned {
    /// The name of the type, e.g. `cash.Cash.State`.
    const TYPE: &'static str;
    /// The name of the contract that judges it, e.g. `cash.Cash`.
    const CONTRACT: &'static str;
    /// The keys of those whom the state concerns: their vaults keep it.
    fn participants(&self) -> Vec<PublicKey>;
}

/// A state as the ledger holds it.
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
pub struct TransactionState {
    /// The contract that judges every transaction with this state among its inputs or outputs.
    pub contract: ContractRef,
    /// The name of the application's type.
    pub state_type: String,
    /// The canonical bytes of the application's value (base64 in JSON).
    #[serde(with = "canonical::base64_bytes")]
    pub data: Vec<u8>,
    /// The keys of those whom the state concerns.
    pub participants: Vec<PublicKey>,
    /// The only notary that can mark this state as consumed.
    pub notary: Party,
}

/// Bytes of a state that are not the wanted type.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The state is of another type, or is judged by another contract.
    #[error(
        "the state is a {found} of contract {contract}, not a {wanted} of contract {wanted_contract}"
    )]
    OtherType {
        /// The type asked for.
        wanted: &'static str,
        /// Its contract.
        wanted_contract: &'static str,
        /// The type found.
        found: String,
        /// The contract found.
        contract: String,
    },
    /// The bytes are not a value of the type.
    #[error(
        "the bytes of a {state_type} cannot be read; it was made by another version of its application"
    )]
    Data {
        /// The type.
        state_type: &'static str,
        /// What the decoder met.
        #[source]
        source: DecodeError,
    },
    /// The participants in the envelope are not those of the value.
    #[error("a {state_type} names other participants than the ledger's record of it")]
    Participants {
        /// The type.
        state_type: &'static str,
    },
}

/// A versioned encoding of one state by itself.
#[derive(BorshSerialize, BorshDeserialize)]
enum Versioned<S> {
    V1(S),
}

impl TransactionState {
    /// Wraps an application's value. `code` is the hash of its contract's code.
    pub fn new<S: ContractState>(state: &S, code: SecureHash, notary: Party) -> Self {
        Self {
            contract: ContractRef {
                name: S::CONTRACT.to_owned(),
                code,
            },
            state_type: S::TYPE.to_owned(),
            data: canonical::encode(state),
            participants: state.participants(),
            notary,
        }
    }

    /// Whether this is a state of type `S` judged by `S`'s contract.
    pub fn is<S: ContractState>(&self) -> bool {
        self.state_type == S::TYPE && self.contract.name == S::CONTRACT
    }

    /// The application's value.
    ///
    /// # Errors
    /// If this is another type, if the bytes cannot be read, or if the participants that the ledger has recorded are
    /// not those that the value names (a state that would hide from somebody whom it concerns).
    pub fn read<S: ContractState>(&self) -> Result<S, StateError> {
        if !self.is::<S>() {
            return Err(StateError::OtherType {
                wanted: S::TYPE,
                wanted_contract: S::CONTRACT,
                found: self.state_type.clone(),
                contract: self.contract.name.clone(),
            });
        }
        let state: S =
            canonical::decode("state", &self.data, MAX_WIRE_BYTES).map_err(|source| {
                StateError::Data {
                    state_type: S::TYPE,
                    source,
                }
            })?;
        if state.participants() != self.participants {
            return Err(StateError::Participants {
                state_type: S::TYPE,
            });
        }
        Ok(state)
    }

    /// The versioned bytes of this state by itself, for keeping it apart from its transaction.
    pub fn encode(&self) -> Vec<u8> {
        canonical::encode(&Versioned::V1(self))
    }

    /// Reads what [`encode`](Self::encode) wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let Versioned::V1(state) =
            canonical::decode::<Versioned<Self>>("state", bytes, MAX_WIRE_BYTES + 1)?;
        state
            .check()
            .map_err(|reason| DecodeError::invalid("state", reason))?;
        Ok(state)
    }

    /// The bounds that hold for every state of a transaction.
    pub(crate) fn check(&self) -> Result<(), String> {
        check_type_name("contract", &self.contract.name)?;
        check_type_name("state type", &self.state_type)?;
        match self.participants.len() {
            0 => Err(format!(
                "a {} has no participants; a state must concern somebody",
                self.state_type
            )),
            1..=MAX_PARTICIPANTS => Ok(()),
            count => Err(format!(
                "a {} has {count} participants, at most {MAX_PARTICIPANTS} are possible",
                self.state_type
            )),
        }
    }
}

/// Names of contracts, state types and commands appear in logs, queries and URLs: printable ASCII without spaces.
pub(crate) fn check_type_name(what: &str, name: &str) -> Result<(), String> {
    let fine = (1..=MAX_TYPE_NAME_BYTES).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_graphic());
    if fine {
        return Ok(());
    }
    let shown: String = name.chars().take(40).collect();
    Err(format!(
        "{shown:?} is not a {what} name: 1 to {MAX_TYPE_NAME_BYTES} printable ASCII characters without spaces"
    ))
}

/// A state together with its name.
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
pub struct StateAndRef {
    /// The state.
    pub state: TransactionState,
    /// Its name.
    pub reference: StateRef,
}

impl StateAndRef {
    /// A state with its name.
    pub fn new(state: TransactionState, reference: StateRef) -> Self {
        Self { state, reference }
    }

    /// The application's value, see [`TransactionState::read`].
    pub fn read<S: ContractState>(&self) -> Result<S, StateError> {
        self.state.read()
    }
}
