//! Putting a transaction together: [`TransactionBuilder`].

use quorate_identity::{Party, SecureHash};

use crate::{
    reference::{AttachmentId, StateRef},
    state::{StateAndRef, TransactionState},
    time::TimeWindow,
    transaction::{BuildError, Command, Parts, WireTransaction},
};

/// Collects the parts of a transaction. Order of inputs, outputs and commands is kept.
///
/// ```
/// use quorate_identity::{KeyPair, Party, SecureHash, SignatureScheme, X500Name};
/// use quorate_ledger::{Command, ContractRef, SignedTransaction, StateRef, TransactionBuilder, TransactionState, TxId};
///
/// let alice = KeyPair::generate(SignatureScheme::Ed25519);
/// let notary_key = KeyPair::generate(SignatureScheme::Ed25519);
/// let name = X500Name::new("Notary", "London", "GB")?;
/// let notary = Party::new(name, notary_key.public().clone());
///
/// let deed = TransactionState {
///     contract: ContractRef { name: "deeds.Deed".into(), code: SecureHash::of(b"the contract's code") },
///     state_type: "deeds.Deed.State".into(),
///     data: b"12 Acacia Avenue".to_vec(),
///     participants: vec![alice.public().clone()],
///     notary: notary.clone(),
/// };
/// let earlier = StateRef::new(TxId::new(SecureHash::of(b"the transaction before")), 0);
/// let wire = TransactionBuilder::new(notary)
///     .add_input(earlier)
///     .add_output(deed)
///     .add_command(Command::new("deeds.Transfer", [alice.public().clone()]))
///     .build([0x5a; 32])?; // in earnest: 32 random bytes, used once
///
/// let signed = SignedTransaction::unsigned(wire).sign(&alice)?;
/// assert_eq!(signed.missing_signers(), [notary_key.public().clone()].into());
/// signed.sign(&notary_key)?.verify_required_signatures()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct TransactionBuilder {
    parts: Parts,
}

impl TransactionBuilder {
    /// A transaction that `notary` will notarise, if it turns out to need one.
    pub fn new(notary: Party) -> Self {
        Self::with_notary(Some(notary))
    }

    /// A transaction that needs no notary: it consumes nothing and may happen at any time.
    pub fn without_notary() -> Self {
        Self::with_notary(None)
    }

    fn with_notary(notary: Option<Party>) -> Self {
        Self {
            parts: Parts {
                salt: [0; 32],
                inputs: Vec::new(),
                outputs: Vec::new(),
                commands: Vec::new(),
                attachments: Vec::new(),
                notary,
                time_window: None,
                references: Vec::new(),
                parameters: None,
            },
        }
    }

    /// Consumes a state.
    #[must_use]
    pub fn add_input(mut self, input: impl Into<StateRef>) -> Self {
        self.parts.inputs.push(input.into());
        self
    }

    /// Reads a state without consuming it.
    #[must_use]
    pub fn add_reference(mut self, reference: impl Into<StateRef>) -> Self {
        self.parts.references.push(reference.into());
        self
    }

    /// Produces a state.
    #[must_use]
    pub fn add_output(mut self, output: TransactionState) -> Self {
        self.parts.outputs.push(output);
        self
    }

    /// Adds a command.
    #[must_use]
    pub fn add_command(mut self, mut command: Command) -> Self {
        command.signers.sort();
        command.signers.dedup();
        self.parts.commands.push(command);
        self
    }

    /// Adds an attachment by its id.
    #[must_use]
    pub fn add_attachment(mut self, attachment: AttachmentId) -> Self {
        self.parts.attachments.push(attachment);
        self
    }

    /// Sets when the transaction may be notarised.
    #[must_use]
    pub fn time_window(mut self, window: TimeWindow) -> Self {
        self.parts.time_window = Some(window);
        self
    }

    /// Sets the hash of the network parameters in force.
    #[must_use]
    pub fn parameters(mut self, hash: SecureHash) -> Self {
        self.parts.parameters = Some(hash);
        self
    }

    /// The finished transaction. `salt` must come from a good source of randomness and be used once: it keeps
    /// torn-off components secret. In a flow, take it from the flow's entropy.
    ///
    /// # Errors
    /// The first rule that the parts break.
    pub fn build(self, salt: [u8; 32]) -> Result<WireTransaction, BuildError> {
        WireTransaction::new(Parts { salt, ..self.parts })
    }
}

impl From<&StateAndRef> for StateRef {
    fn from(state: &StateAndRef) -> Self {
        state.reference
    }
}

impl From<StateAndRef> for StateRef {
    fn from(state: StateAndRef) -> Self {
        state.reference
    }
}
