//! Moving states from one notary to another: the one transaction whose outputs name another notary than itself.
//!
//! A notary change is an ordinary transaction with exactly one command, [`KIND`], whose data is the new notary. Each
//! output is the input at the same position under the new notary and nothing else changes, so no contract is asked;
//! instead every participant of every input must sign. The old notary notarises it.

use std::collections::BTreeSet;

use quorate_identity::{Party, PublicKey};

use crate::{
    builder::TransactionBuilder,
    ledger_transaction::{LedgerTransaction, VerificationError},
    state::StateAndRef,
    transaction::{BuildError, Command, Parts, WireTransaction},
};

/// The kind of the command that marks a notary change. Applications cannot use it for anything else.
pub const KIND: &str = "quorate.NotaryChange";

/// The transaction that moves `states` to notary `to`. All states must have the same notary now.
///
/// # Errors
/// If there are no states, they have different notaries, or they have that notary already.
pub fn build(
    states: &[StateAndRef],
    to: &Party,
    salt: [u8; 32],
) -> Result<WireTransaction, BuildError> {
    let from = &states.first().ok_or(BuildError::Empty)?.state.notary;
    if let Some(other) = states.iter().find(|state| state.state.notary != *from) {
        let reason = format!(
            "state {} has notary {}, others {from}",
            other.reference, other.state.notary
        );
        return Err(BuildError::Component(reason));
    }
    let signers: BTreeSet<PublicKey> = states
        .iter()
        .flat_map(|state| state.state.participants.clone())
        .collect();
    let mut builder = TransactionBuilder::new(from.clone())
        .add_command(Command::new(KIND, signers).with_data(to));
    for StateAndRef { state, reference } in states {
        let mut state = state.clone();
        state.notary = to.clone();
        builder = builder.add_input(*reference).add_output(state);
    }
    builder.build(salt)
}

/// Whether these commands make a notary change.
pub(crate) fn is_one(commands: &[Command]) -> bool {
    commands.iter().any(|command| command.kind == KIND)
}

/// The rules that need only the transaction itself.
pub(crate) fn check(parts: &Parts) -> Result<(), String> {
    let [command] = parts.commands.as_slice() else {
        return Err("a notary change has no other command".to_owned());
    };
    let to: Party = command.read().map_err(|error| error.to_string())?;
    if parts.notary.as_ref() == Some(&to) {
        return Err(format!("the states have notary {to} already"));
    }
    if parts.inputs.is_empty() || parts.inputs.len() != parts.outputs.len() {
        return Err("a notary change has as many outputs as inputs, and at least one".to_owned());
    }
    if !parts.references.is_empty() || !parts.attachments.is_empty() {
        return Err("a notary change has neither references nor attachments".to_owned());
    }
    match parts.outputs.iter().position(|output| output.notary != to) {
        Some(index) => Err(format!(
            "output {index} of a notary change does not name the new notary {to}"
        )),
        None => Ok(()),
    }
}

/// The rules that need the inputs: nothing but the notary changes, and everybody concerned signs.
pub(crate) fn verify(tx: &LedgerTransaction) -> Result<(), VerificationError> {
    let signers: BTreeSet<&PublicKey> = tx
        .commands()
        .iter()
        .flat_map(|command| &command.signers)
        .collect();
    for (index, (input, output)) in tx.inputs().iter().zip(tx.outputs()).enumerate() {
        let mut moved = input.state.clone();
        moved.notary = output.notary.clone();
        if moved != *output {
            return Err(VerificationError::NotaryChange(format!(
                "output {index} differs from its input"
            )));
        }
        if let Some(key) = moved.participants.iter().find(|key| !signers.contains(key)) {
            let reason = format!(
                "participant {} of input {index} is not among the signers",
                key.to_string_short()
            );
            return Err(VerificationError::NotaryChange(reason));
        }
    }
    Ok(())
}
