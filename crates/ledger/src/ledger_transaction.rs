//! A transaction with everything looked up, and its verification by contracts.
//!
//! A [`Contract`] is a pure function of a [`LedgerTransaction`]: it sees no vault, no clock, no network, and therefore
//! answers the same on every node and at any time. [`LedgerTransaction::verify`] asks every contract that an input or an
//! output names, after the rules that hold for all transactions.
//! Signatures are another matter: see [`SignedTransaction`](crate::SignedTransaction).

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use quorate_identity::{Party, PublicKey, SecureHash};

use crate::{
    limits::MAX_ATTACHMENT_BYTES,
    notary_change,
    reference::{AttachmentId, StateRef, TxId},
    state::{ContractRef, ContractState, StateAndRef, StateError, TransactionState},
    time::TimeWindow,
    transaction::{Command, WireTransaction},
};

/// What judges states. Implementations must be deterministic: no clock, no randomness, no state of their own.
pub trait Contract: Send + Sync {
    /// The name by which states refer to it, e.g. `cash.Cash`.
    fn name(&self) -> &str;
    /// The hash of its code, by which states pin it.
    fn code(&self) -> SecureHash;
    /// Accepts or refuses a transaction.
    ///
    /// # Errors
    /// The rule that the transaction breaks, in words that help its author.
    fn verify(&self, tx: &LedgerTransaction) -> Result<(), ContractViolation>;
}

/// A rule of a contract that a transaction breaks.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{rule}")]
pub struct ContractViolation {
    rule: String,
}

impl ContractViolation {
    /// A violation of this rule, said as the rule ("the sum of outputs must equal the sum of inputs").
    pub fn new(rule: impl Into<String>) -> Self {
        Self { rule: rule.into() }
    }

    /// Nothing if `condition` holds, otherwise a violation of `rule`.
    pub fn unless(condition: bool, rule: &str) -> Result<(), Self> {
        if condition {
            Ok(())
        } else {
            Err(Self::new(rule))
        }
    }
}

impl From<StateError> for ContractViolation {
    fn from(error: StateError) -> Self {
        // The causes go into the text: a violation travels to other parties as words.
        let cause = std::error::Error::source(&error)
            .map(|cause| format!(": {cause}"))
            .unwrap_or_default();
        Self::new(format!("{error}{cause}"))
    }
}

impl From<crate::DecodeError> for ContractViolation {
    fn from(error: crate::DecodeError) -> Self {
        Self::new(error.to_string())
    }
}

/// The contracts that a node knows: by name, and under each name by the hash of the code. Several versions of a contract
/// may stand side by side while states of the older one are still about.
#[derive(Clone, Default)]
pub struct Contracts {
    by_name: BTreeMap<String, BTreeMap<SecureHash, Arc<dyn Contract>>>,
}

/// Two contracts with the same name and the same code hash.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("contract {} with code {} is registered twice; two applications must not share a contract's name and code", .0.name, .0.code)]
pub struct DuplicateContract(pub ContractRef);

impl Contracts {
    /// No contracts.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a contract.
    ///
    /// # Errors
    /// If one with the same name and code is there already.
    pub fn register(&mut self, contract: Arc<dyn Contract>) -> Result<(), DuplicateContract> {
        let (name, code) = (contract.name().to_owned(), contract.code());
        let versions = self.by_name.entry(name.clone()).or_default();
        if versions.contains_key(&code) {
            return Err(DuplicateContract(ContractRef { name, code }));
        }
        versions.insert(code, contract);
        Ok(())
    }

    /// The contract with this name and code.
    pub fn get(&self, contract: &ContractRef) -> Option<&Arc<dyn Contract>> {
        self.by_name.get(&contract.name)?.get(&contract.code)
    }

    /// All contracts, by name and code.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<dyn Contract>> {
        self.by_name.values().flat_map(BTreeMap::values)
    }
}

impl fmt::Debug for Contracts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(
                self.by_name
                    .iter()
                    .map(|(name, versions)| (name, versions.keys())),
            )
            .finish()
    }
}

/// A file that a transaction refers to by its hash.
#[derive(Clone, PartialEq, Eq)]
pub struct Attachment {
    id: AttachmentId,
    content: Arc<[u8]>,
}

impl Attachment {
    /// An attachment with this content.
    ///
    /// # Errors
    /// If it is larger than [`MAX_ATTACHMENT_BYTES`].
    pub fn new(content: impl Into<Arc<[u8]>>) -> Result<Self, AttachmentTooLarge> {
        let content = content.into();
        if content.len() > MAX_ATTACHMENT_BYTES {
            return Err(AttachmentTooLarge {
                size: content.len(),
            });
        }
        Ok(Self {
            id: AttachmentId::of(&content),
            content,
        })
    }

    /// The hash of the content.
    pub fn id(&self) -> AttachmentId {
        self.id
    }

    /// The content.
    pub fn content(&self) -> &[u8] {
        &self.content
    }
}

impl fmt::Debug for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Attachment({}, {} bytes)", self.id, self.content.len())
    }
}

/// A file too large to be sent.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("an attachment of {size} bytes, at most {MAX_ATTACHMENT_BYTES} are possible")]
pub struct AttachmentTooLarge {
    size: usize,
}

/// A transaction whose inputs, references and attachments are at hand. All that a contract sees.
#[derive(Clone, Debug)]
pub struct LedgerTransaction {
    wire: Arc<WireTransaction>,
    inputs: Vec<StateAndRef>,
    references: Vec<StateAndRef>,
    attachments: Vec<Attachment>,
}

/// Something that a transaction refers to and that is not at hand.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResolutionError {
    /// States whose transactions are unknown, or have fewer outputs.
    #[error("transaction {tx} refers to {} unknown states, the first is {}", missing.len(), missing[0])]
    States {
        /// The transaction.
        tx: TxId,
        /// The states; at least one.
        missing: Vec<StateRef>,
    },
    /// Attachments that are unknown.
    #[error("transaction {tx} refers to {} unknown attachments, the first is {}", missing.len(), missing[0])]
    Attachments {
        /// The transaction.
        tx: TxId,
        /// The attachments; at least one.
        missing: Vec<AttachmentId>,
    },
}

/// A transaction that is not valid, whoever signs it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerificationError {
    /// A contract that this node does not have.
    #[error("contract {name} is unknown here; install the application that brings it")]
    UnknownContract {
        /// The contract.
        name: String,
    },
    /// A contract that this node has with other code only.
    #[error(
        "contract {name} with code {code} is unknown here, the code at hand is {}; install the version of the application that made the state",
        list(known)
    )]
    OtherCode {
        /// The contract.
        name: String,
        /// The code that the state names.
        code: SecureHash,
        /// The code that is here.
        known: Vec<SecureHash>,
    },
    /// A contract says no.
    #[error("contract {contract} refuses transaction {tx}")]
    Refused {
        /// The contract.
        contract: String,
        /// The transaction.
        tx: TxId,
        /// The rule that is broken.
        #[source]
        source: ContractViolation,
    },
    /// An input or a reference is guarded by another notary than the transaction's.
    #[error(
        "state {state} is guarded by notary {found}, the transaction is for {expected}; change its notary first"
    )]
    ForeignNotary {
        /// The state.
        state: StateRef,
        /// Its notary.
        found: Party,
        /// The notary of the transaction.
        expected: Party,
    },
    /// A notary change that changes more, or without somebody's consent.
    #[error("not a valid notary change: {0}")]
    NotaryChange(String),
}

fn list(hashes: &[SecureHash]) -> String {
    hashes
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

impl LedgerTransaction {
    /// Looks up what `wire` refers to. The lookups are trusted: they must answer from verified transactions.
    ///
    /// # Errors
    /// All states, or all attachments, that the lookups do not know.
    pub fn resolve(
        wire: impl Into<Arc<WireTransaction>>,
        mut state: impl FnMut(&StateRef) -> Option<TransactionState>,
        mut attachment: impl FnMut(&AttachmentId) -> Option<Attachment>,
    ) -> Result<Self, ResolutionError> {
        let wire = wire.into();
        let tx = wire.id();
        let mut missing = Vec::new();
        let mut look_up = |references: &[StateRef]| {
            let mut found = Vec::with_capacity(references.len());
            for &reference in references {
                match state(&reference) {
                    Some(state) => found.push(StateAndRef::new(state, reference)),
                    None => missing.push(reference),
                }
            }
            found
        };
        let (inputs, references) = (look_up(wire.inputs()), look_up(wire.references()));
        if !missing.is_empty() {
            return Err(ResolutionError::States { tx, missing });
        }
        let mut attachments = Vec::with_capacity(wire.attachments().len());
        let mut missing = Vec::new();
        for id in wire.attachments() {
            match attachment(id).filter(|attachment| attachment.id() == *id) {
                Some(attachment) => attachments.push(attachment),
                None => missing.push(*id),
            }
        }
        if !missing.is_empty() {
            return Err(ResolutionError::Attachments { tx, missing });
        }
        Ok(Self {
            wire,
            inputs,
            references,
            attachments,
        })
    }

    /// Checks that the transaction is valid, whoever signs it.
    pub fn verify(&self, contracts: &Contracts) -> Result<(), VerificationError> {
        self.check_notary()?;
        if self.wire.is_notary_change() {
            return notary_change::verify(self);
        }
        let states = self
            .inputs
            .iter()
            .map(|input| &input.state)
            .chain(self.outputs());
        let named: BTreeSet<&ContractRef> = states.map(|state| &state.contract).collect();
        for contract in named {
            let Some(judge) = contracts.get(contract) else {
                return Err(contracts.unknown(contract));
            };
            judge
                .verify(self)
                .map_err(|source| VerificationError::Refused {
                    contract: contract.name.clone(),
                    tx: self.id(),
                    source,
                })?;
        }
        Ok(())
    }

    fn check_notary(&self) -> Result<(), VerificationError> {
        let Some(expected) = self.notary() else {
            return Ok(());
        };
        match self
            .inputs
            .iter()
            .chain(&self.references)
            .find(|state| state.state.notary != *expected)
        {
            Some(stray) => Err(VerificationError::ForeignNotary {
                state: stray.reference,
                found: stray.state.notary.clone(),
                expected: expected.clone(),
            }),
            None => Ok(()),
        }
    }

    /// The transaction's id.
    pub fn id(&self) -> TxId {
        self.wire.id()
    }

    /// The transaction by reference.
    pub fn wire(&self) -> &Arc<WireTransaction> {
        &self.wire
    }

    /// The consumed states.
    pub fn inputs(&self) -> &[StateAndRef] {
        &self.inputs
    }

    /// The states that are read and not consumed.
    pub fn references(&self) -> &[StateAndRef] {
        &self.references
    }

    /// The produced states.
    pub fn outputs(&self) -> &[TransactionState] {
        self.wire.outputs()
    }

    /// The produced states with their names.
    pub fn outputs_with_refs(&self) -> Vec<StateAndRef> {
        self.wire.outputs_with_refs()
    }

    /// The commands.
    pub fn commands(&self) -> &[Command] {
        self.wire.commands()
    }

    /// The attachments.
    pub fn attachments(&self) -> &[Attachment] {
        &self.attachments
    }

    /// The notary.
    pub fn notary(&self) -> Option<&Party> {
        self.wire.notary()
    }

    /// The time window.
    pub fn time_window(&self) -> Option<TimeWindow> {
        self.wire.time_window()
    }

    /// The consumed states of type `S` with the application's values. States of other types are left out.
    ///
    /// # Errors
    /// If a state claims to be an `S` and cannot be read.
    pub fn inputs_of<S: ContractState>(&self) -> Result<Vec<S>, StateError> {
        values_of(self.inputs.iter().map(|input| &input.state))
    }

    /// The referenced states of type `S`, see [`inputs_of`](Self::inputs_of).
    pub fn references_of<S: ContractState>(&self) -> Result<Vec<S>, StateError> {
        values_of(self.references.iter().map(|reference| &reference.state))
    }

    /// The produced states of type `S`, see [`inputs_of`](Self::inputs_of).
    pub fn outputs_of<S: ContractState>(&self) -> Result<Vec<S>, StateError> {
        values_of(self.outputs())
    }

    /// The commands of this kind.
    pub fn commands_of(&self, kind: &str) -> Vec<&Command> {
        self.commands()
            .iter()
            .filter(|command| command.kind == kind)
            .collect()
    }

    /// The commands whose kind begins with `prefix`, e.g. `cash.`.
    pub fn commands_starting_with(&self, prefix: &str) -> Vec<&Command> {
        self.commands()
            .iter()
            .filter(|command| command.kind.starts_with(prefix))
            .collect()
    }

    /// The only command of this kind.
    ///
    /// # Errors
    /// If there is none, or more than one.
    pub fn single_command(&self, kind: &str) -> Result<&Command, ContractViolation> {
        match self.commands_of(kind).as_slice() {
            [command] => Ok(command),
            commands => {
                let count = commands.len();
                Err(ContractViolation::new(format!(
                    "there must be exactly one command {kind}, there are {count}"
                )))
            }
        }
    }

    /// Everybody whom a command of this kind asks to sign.
    pub fn signers_of(&self, kind: &str) -> BTreeSet<&PublicKey> {
        self.commands_of(kind)
            .into_iter()
            .flat_map(|command| &command.signers)
            .collect()
    }
}

fn values_of<'a, S: ContractState>(
    states: impl IntoIterator<Item = &'a TransactionState>,
) -> Result<Vec<S>, StateError> {
    states
        .into_iter()
        .filter(|state| state.is::<S>())
        .map(TransactionState::read)
        .collect()
}

impl Contracts {
    fn unknown(&self, contract: &ContractRef) -> VerificationError {
        let name = contract.name.clone();
        match self.by_name.get(&name) {
            None => VerificationError::UnknownContract { name },
            Some(versions) => {
                let known = versions.keys().copied().collect();
                VerificationError::OtherCode {
                    name,
                    code: contract.code,
                    known,
                }
            }
        }
    }
}
