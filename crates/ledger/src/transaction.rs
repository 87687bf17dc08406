//! A transaction as it is proposed, hashed and signed: [`WireTransaction`].
//!
//! It knows states only by reference; [`LedgerTransaction`](crate::LedgerTransaction) is the same with its inputs
//! looked up. Whoever holds a value of this type knows that the rules which need nothing but the transaction itself
//! hold: [`WireTransaction::decode`] and [`TransactionBuilder::build`](crate::TransactionBuilder::build) are the only
//! ways to one.

use std::{
    collections::BTreeSet,
    fmt,
    io::{self, Read, Write},
};

use borsh::{BorshDeserialize, BorshSerialize};
use quorate_identity::{Party, PublicKey, SecureHash};
use serde::{Deserialize, Serialize};

use crate::{
    canonical::{self, DecodeError, serde_as_base64},
    component::{self, CommandData, Component, ComponentGroup, Groups, Raw},
    limits::{MAX_SIGNATURES, MAX_SIGNERS_PER_COMMAND, MAX_WIRE_BYTES},
    notary_change,
    reference::{AttachmentId, StateRef, TxId},
    state::{ContractState, StateAndRef, StateError, TransactionState, check_type_name},
    time::TimeWindow,
};

/// A command: what the transaction claims to do, and who must sign for it.
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
pub struct Command {
    /// The kind, e.g. `cash.Move`; contracts look for it.
    pub kind: String,
    /// Canonical bytes of the command's own data; often empty (base64 in JSON).
    #[serde(with = "canonical::base64_bytes")]
    pub data: Vec<u8>,
    /// Who must sign the transaction because of this command: ascending, without repetition.
    pub signers: Vec<PublicKey>,
}

impl Command {
    /// A command without data.
    pub fn new(kind: impl Into<String>, signers: impl IntoIterator<Item = PublicKey>) -> Self {
        let signers: BTreeSet<_> = signers.into_iter().collect();
        Self {
            kind: kind.into(),
            data: Vec::new(),
            signers: signers.into_iter().collect(),
        }
    }

    /// The same command with data.
    #[must_use]
    pub fn with_data<T: BorshSerialize + ?Sized>(mut self, data: &T) -> Self {
        self.data = canonical::encode(data);
        self
    }

    /// The command's data.
    pub fn read<T: BorshSerialize + BorshDeserialize>(&self) -> Result<T, DecodeError> {
        canonical::decode("data of a command", &self.data, MAX_WIRE_BYTES)
    }
}

/// A transaction without signatures. Cheap to read, immutable; its bytes and its id are computed once.
#[derive(Clone)]
pub struct WireTransaction {
    pub(crate) parts: Parts,
    id: TxId,
    bytes: Vec<u8>,
}

/// The content of a transaction, not yet checked.
#[derive(Clone, Debug)]
pub(crate) struct Parts {
    pub(crate) salt: [u8; 32],
    pub(crate) inputs: Vec<StateRef>,
    pub(crate) outputs: Vec<TransactionState>,
    pub(crate) commands: Vec<Command>,
    pub(crate) attachments: Vec<AttachmentId>,
    pub(crate) notary: Option<Party>,
    pub(crate) time_window: Option<TimeWindow>,
    pub(crate) references: Vec<StateRef>,
    pub(crate) parameters: Option<SecureHash>,
}

#[derive(BorshSerialize, BorshDeserialize)]
enum Versioned {
    V1(Raw),
}

/// A transaction that breaks a rule which needs nothing but the transaction itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// Neither inputs nor outputs.
    #[error("a transaction must consume or produce at least one state")]
    Empty,
    /// No command.
    #[error("a transaction needs at least one command, so that somebody must sign it")]
    NoCommand,
    /// A command that nobody must sign.
    #[error("command {kind} has no signers")]
    NoSigners {
        /// The kind of command.
        kind: String,
    },
    /// A list of signers that is not a set in order.
    #[error("the signers of command {kind} are not in ascending order without repetition")]
    Signers {
        /// The kind of command.
        kind: String,
    },
    /// The same state or attachment twice.
    #[error("{0} appears twice")]
    Duplicate(String),
    /// A state that is both consumed and referred to.
    #[error("state {0} is an input and a reference at once; an input can be read already")]
    InputAndReference(StateRef),
    /// Inputs, references or a time window, but nobody to notarise.
    #[error("a transaction with inputs, references or a time window needs a notary")]
    NoNotary,
    /// An output that another notary than the transaction's would guard.
    #[error(
        "output {index} names notary {found}, the transaction {expected}; change the notary in a transaction of its own"
    )]
    OutputNotary {
        /// Position of the output.
        index: usize,
        /// The notary of the output.
        found: Party,
        /// The notary of the transaction.
        expected: Party,
    },
    /// More of something than possible.
    #[error("{count} × {what}, at most {max} are possible; split the transaction")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// How many.
        count: usize,
        /// How many are possible.
        max: usize,
    },
    /// Too large to be sent.
    #[error(
        "the transaction has {size} bytes, at most {MAX_WIRE_BYTES} are possible; split it, or move data to an attachment"
    )]
    TooLarge {
        /// Its size in bytes.
        size: usize,
    },
    /// A component that is unfit by itself.
    #[error("{0}")]
    Component(String),
}

impl WireTransaction {
    /// Checks, encodes and hashes.
    pub(crate) fn new(parts: Parts) -> Result<Self, BuildError> {
        parts.check()?;
        let groups = parts.groups();
        let id = component::id_of(&component::group_hashes(&parts.salt, &groups));
        let bytes = canonical::encode(&Versioned::V1(Raw::new(parts.salt, groups)));
        if bytes.len() > MAX_WIRE_BYTES {
            return Err(BuildError::TooLarge { size: bytes.len() });
        }
        Ok(Self { parts, id, bytes })
    }

    /// The canonical bytes, versioned.
    pub fn encode(&self) -> Vec<u8> {
        self.bytes.clone()
    }

    /// The canonical bytes, without a copy.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Reads canonical bytes and checks every rule that needs nothing but the transaction itself.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        Self::from_bytes(bytes.to_vec())
    }

    fn from_bytes(bytes: Vec<u8>) -> Result<Self, DecodeError> {
        const WHAT: &str = "transaction";
        let Versioned::V1(raw) = canonical::decode(WHAT, &bytes, MAX_WIRE_BYTES)?;
        let (salt, groups) = raw
            .open()
            .map_err(|reason| DecodeError::invalid(WHAT, reason))?;
        let parts = Parts::from_groups(salt, &groups)?;
        parts
            .check()
            .map_err(|reason| DecodeError::invalid(WHAT, reason))?;
        let id = component::id_of(&component::group_hashes(&salt, &groups));
        Ok(Self { parts, id, bytes })
    }

    /// The transaction's id.
    pub fn id(&self) -> TxId {
        self.id
    }

    /// The consumed states.
    pub fn inputs(&self) -> &[StateRef] {
        &self.parts.inputs
    }

    /// States that are read and not consumed.
    pub fn references(&self) -> &[StateRef] {
        &self.parts.references
    }

    /// The produced states.
    pub fn outputs(&self) -> &[TransactionState] {
        &self.parts.outputs
    }

    /// What the transaction claims to do.
    pub fn commands(&self) -> &[Command] {
        &self.parts.commands
    }

    /// Ids of the attachments.
    pub fn attachments(&self) -> &[AttachmentId] {
        &self.parts.attachments
    }

    /// The notary.
    pub fn notary(&self) -> Option<&Party> {
        self.parts.notary.as_ref()
    }

    /// When the transaction may be notarised.
    pub fn time_window(&self) -> Option<TimeWindow> {
        self.parts.time_window
    }

    /// The hash of the network parameters under which the transaction was made.
    pub fn parameters(&self) -> Option<&SecureHash> {
        self.parts.parameters.as_ref()
    }

    /// The salt that keeps torn-off components secret. Whoever has it can test guesses about hidden components.
    pub fn privacy_salt(&self) -> &[u8; 32] {
        &self.parts.salt
    }

    /// Output `index` with its name.
    pub fn output(&self, index: u32) -> Option<StateAndRef> {
        let state = self.parts.outputs.get(index as usize)?;
        Some(StateAndRef::new(
            state.clone(),
            StateRef::new(self.id, index),
        ))
    }

    /// All outputs with their names.
    pub fn outputs_with_refs(&self) -> Vec<StateAndRef> {
        (0..).map_while(|index| self.output(index)).collect()
    }

    /// The outputs of type `S`, with the application's values.
    ///
    /// # Errors
    /// If an output claims to be an `S` and cannot be read.
    pub fn outputs_of<S: ContractState>(&self) -> Result<Vec<S>, StateError> {
        self.parts
            .outputs
            .iter()
            .filter(|state| state.is::<S>())
            .map(TransactionState::read)
            .collect()
    }

    /// Whether the notary must sign: it consumes or reads states, or happens in a window of time.
    pub fn needs_notary(&self) -> bool {
        self.parts.needs_notary()
    }

    /// Whether this transaction only moves states to another notary.
    pub fn is_notary_change(&self) -> bool {
        notary_change::is_one(&self.parts.commands)
    }

    /// Everybody who must sign: the signers of all commands, and the notary if it is needed.
    pub fn required_signers(&self) -> BTreeSet<PublicKey> {
        self.parts.required_signers()
    }

    /// The content, group by group, in order.
    pub fn components(&self) -> impl Iterator<Item = Component> + '_ {
        ComponentGroup::ALL
            .into_iter()
            .flat_map(|group| self.parts.group(group))
    }

    pub(crate) fn groups(&self) -> Groups {
        self.parts.groups()
    }
}

/// Its canonical bytes with their length in front, so that a transaction keeps its own version inside other values.
impl BorshSerialize for WireTransaction {
    fn serialize<W: Write>(&self, writer: &mut W) -> io::Result<()> {
        BorshSerialize::serialize(&self.bytes, writer)
    }
}

impl BorshDeserialize for WireTransaction {
    fn deserialize_reader<R: Read>(reader: &mut R) -> io::Result<Self> {
        let bytes = canonical::read_bounded(reader, MAX_WIRE_BYTES)?;
        Self::from_bytes(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }
}

serde_as_base64!(WireTransaction);

impl PartialEq for WireTransaction {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl Eq for WireTransaction {}

impl fmt::Debug for WireTransaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the salt: logs are read by more people than transactions.
        f.debug_struct("WireTransaction")
            .field("id", &self.id)
            .field("inputs", &self.parts.inputs)
            .field("outputs", &self.parts.outputs.len())
            .field(
                "commands",
                &self
                    .parts
                    .commands
                    .iter()
                    .map(|command| &command.kind)
                    .collect::<Vec<_>>(),
            )
            .finish_non_exhaustive()
    }
}

impl Parts {
    fn needs_notary(&self) -> bool {
        !self.inputs.is_empty() || !self.references.is_empty() || self.time_window.is_some()
    }

    fn required_signers(&self) -> BTreeSet<PublicKey> {
        let notary = self
            .notary
            .iter()
            .filter(|_| self.needs_notary())
            .map(|notary| &notary.owning_key);
        self.commands
            .iter()
            .flat_map(|command| &command.signers)
            .chain(notary)
            .cloned()
            .collect()
    }

    /// The rules that need nothing but the transaction itself.
    fn check(&self) -> Result<(), BuildError> {
        self.check_counts()?;
        if self.inputs.is_empty() && self.outputs.is_empty() {
            return Err(BuildError::Empty);
        }
        let inputs = distinct(&self.inputs)?;
        let references = distinct(&self.references)?;
        if let Some(both) = inputs.intersection(&references).next() {
            return Err(BuildError::InputAndReference(**both));
        }
        distinct(&self.attachments)?;
        self.check_commands()?;
        for output in &self.outputs {
            output.check().map_err(BuildError::Component)?;
        }
        match &self.notary {
            None if self.needs_notary() => Err(BuildError::NoNotary),
            _ if notary_change::is_one(&self.commands) => {
                notary_change::check(self).map_err(BuildError::Component)
            }
            Some(expected) => {
                let stray = self
                    .outputs
                    .iter()
                    .enumerate()
                    .find(|(_, output)| output.notary != *expected);
                stray.map_or(Ok(()), |(index, output)| {
                    let (found, expected) = (output.notary.clone(), expected.clone());
                    Err(BuildError::OutputNotary {
                        index,
                        found,
                        expected,
                    })
                })
            }
            None => Ok(()),
        }
    }

    fn check_counts(&self) -> Result<(), BuildError> {
        for (group, count) in [
            (ComponentGroup::Inputs, self.inputs.len()),
            (ComponentGroup::Outputs, self.outputs.len()),
            (ComponentGroup::Commands, self.commands.len()),
            (ComponentGroup::Attachments, self.attachments.len()),
            (ComponentGroup::References, self.references.len()),
        ] {
            if count > group.limit() {
                return Err(BuildError::TooMany {
                    what: group.what(),
                    count,
                    max: group.limit(),
                });
            }
        }
        Ok(())
    }

    fn check_commands(&self) -> Result<(), BuildError> {
        if self.commands.is_empty() {
            return Err(BuildError::NoCommand);
        }
        for Command { kind, signers, .. } in &self.commands {
            check_type_name("command", kind).map_err(BuildError::Component)?;
            let (count, max) = (signers.len(), MAX_SIGNERS_PER_COMMAND);
            if count == 0 {
                return Err(BuildError::NoSigners { kind: kind.clone() });
            }
            if count > max {
                return Err(BuildError::TooMany {
                    what: "signers of one command",
                    count,
                    max,
                });
            }
            if !signers.windows(2).all(|pair| pair[0] < pair[1]) {
                return Err(BuildError::Signers { kind: kind.clone() });
            }
        }
        let count = self.required_signers().len();
        if count > MAX_SIGNATURES {
            return Err(BuildError::TooMany {
                what: "required signers",
                count,
                max: MAX_SIGNATURES,
            });
        }
        Ok(())
    }

    /// The components of one group.
    fn group(&self, group: ComponentGroup) -> Vec<Component> {
        match group {
            ComponentGroup::Inputs => self.inputs.iter().copied().map(Component::Input).collect(),
            ComponentGroup::Outputs => self
                .outputs
                .iter()
                .cloned()
                .map(Component::Output)
                .collect(),
            ComponentGroup::Commands => {
                let data = |command: &Command| CommandData {
                    kind: command.kind.clone(),
                    data: command.data.clone(),
                };
                self.commands
                    .iter()
                    .map(data)
                    .map(Component::Command)
                    .collect()
            }
            ComponentGroup::Attachments => self
                .attachments
                .iter()
                .copied()
                .map(Component::Attachment)
                .collect(),
            ComponentGroup::Notary => self.notary.iter().cloned().map(Component::Notary).collect(),
            ComponentGroup::TimeWindow => self
                .time_window
                .into_iter()
                .map(Component::TimeWindow)
                .collect(),
            ComponentGroup::Signers => self
                .commands
                .iter()
                .map(|command| Component::Signers(command.signers.clone()))
                .collect(),
            ComponentGroup::References => self
                .references
                .iter()
                .copied()
                .map(Component::Reference)
                .collect(),
            ComponentGroup::Parameters => self
                .parameters
                .into_iter()
                .map(Component::Parameters)
                .collect(),
        }
    }

    /// The canonical bytes of all components.
    fn groups(&self) -> Groups {
        /// Borrowed from a [`Command`], byte for byte like [`CommandData`]; the equality is under test.
        #[derive(BorshSerialize)]
        struct Data<'a> {
            kind: &'a str,
            data: &'a [u8],
        }
        fn encoded<'a, T: BorshSerialize + 'a>(
            components: impl IntoIterator<Item = T>,
        ) -> Vec<Vec<u8>> {
            components
                .into_iter()
                .map(|component| canonical::encode(&component))
                .collect()
        }
        [
            encoded(&self.inputs),
            encoded(&self.outputs),
            encoded(self.commands.iter().map(|command| Data {
                kind: &command.kind,
                data: &command.data,
            })),
            encoded(&self.attachments),
            encoded(&self.notary),
            encoded(self.time_window),
            encoded(self.commands.iter().map(|command| &command.signers)),
            encoded(&self.references),
            encoded(self.parameters),
        ]
    }

    fn from_groups(salt: [u8; 32], groups: &Groups) -> Result<Self, DecodeError> {
        let mut parts = Self {
            salt,
            inputs: Vec::new(),
            outputs: Vec::new(),
            commands: Vec::new(),
            attachments: Vec::new(),
            notary: None,
            time_window: None,
            references: Vec::new(),
            parameters: None,
        };
        let mut signers = Vec::new();
        for group in ComponentGroup::ALL {
            for bytes in &groups[group.number()] {
                match Component::decode(group, bytes)? {
                    Component::Input(input) => parts.inputs.push(input),
                    Component::Output(output) => parts.outputs.push(output),
                    Component::Command(CommandData { kind, data }) => {
                        parts.commands.push(Command {
                            kind,
                            data,
                            signers: Vec::new(),
                        });
                    }
                    Component::Attachment(attachment) => parts.attachments.push(attachment),
                    Component::Notary(notary) => parts.notary = Some(notary),
                    Component::TimeWindow(window) => parts.time_window = Some(window),
                    Component::Signers(keys) => signers.push(keys),
                    Component::Reference(reference) => parts.references.push(reference),
                    Component::Parameters(hash) => parts.parameters = Some(hash),
                }
            }
        }
        if signers.len() != parts.commands.len() {
            let (signers, commands) = (signers.len(), parts.commands.len());
            return Err(DecodeError::invalid(
                "transaction",
                format!("{commands} commands, but signers for {signers}"),
            ));
        }
        for (command, signers) in parts.commands.iter_mut().zip(signers) {
            command.signers = signers;
        }
        Ok(parts)
    }
}

fn distinct<T: Ord + fmt::Display>(items: &[T]) -> Result<BTreeSet<&T>, BuildError> {
    let mut seen = BTreeSet::new();
    match items.iter().find(|item| !seen.insert(*item)) {
        Some(twice) => Err(BuildError::Duplicate(twice.to_string())),
        None => Ok(seen),
    }
}
