//! Transactions for people: what the shell, RPC and the web console show. Not for hashing, signing or reading back.

use quorate_identity::{Party, PublicKey, SecureHash};
use serde::Serialize;
use serde_json::Value;

use crate::{
    canonical::base64_bytes,
    reference::{AttachmentId, StateRef, TxId},
    signed_transaction::SignedTransaction,
    state::{ContractRef, TransactionState},
    time::TimeWindow,
    transaction::WireTransaction,
};

/// A transaction, laid open. Everything but the salt.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TransactionView {
    /// The id.
    pub id: TxId,
    /// The consumed states.
    pub inputs: Vec<StateRef>,
    /// States that are read and not consumed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub references: Vec<StateRef>,
    /// The produced states.
    pub outputs: Vec<OutputView>,
    /// The commands.
    pub commands: Vec<CommandView>,
    /// The attachments.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub attachments: Vec<AttachmentId>,
    /// The notary.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notary: Option<Party>,
    /// When it may be notarised.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_window: Option<TimeWindow>,
    /// The hash of the network parameters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameters: Option<SecureHash>,
    /// Who must sign.
    pub required_signers: Vec<PublicKey>,
    /// Who has signed; absent if the signatures are not at hand.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signed_by: Option<Vec<PublicKey>>,
}

/// A produced state, laid open.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OutputView {
    /// Its name.
    pub reference: StateRef,
    /// The type.
    pub state_type: String,
    /// The contract.
    pub contract: ContractRef,
    /// The application's value, if somebody could read it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<Value>,
    /// The bytes in base64, if nobody could.
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "base64_option"
    )]
    pub data: Option<Vec<u8>>,
    /// Whom it concerns.
    pub participants: Vec<PublicKey>,
    /// The notary that guards it.
    pub notary: Party,
}

/// A command, laid open.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CommandView {
    /// The kind.
    pub kind: String,
    /// The bytes in base64.
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        serialize_with = "base64_bytes::serialize"
    )]
    pub data: Vec<u8>,
    /// Who must sign because of it.
    pub signers: Vec<PublicKey>,
}

fn base64_option<S: serde::Serializer>(
    bytes: &Option<Vec<u8>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    base64_bytes::serialize(bytes.as_deref().unwrap_or_default(), serializer)
}

impl TransactionView {
    /// Lays a transaction open. `read` gives the application's value of a state as JSON, if it knows the type.
    pub fn of(wire: &WireTransaction, read: impl Fn(&TransactionState) -> Option<Value>) -> Self {
        let output = |(index, output): (u32, &TransactionState)| {
            let value = read(output);
            OutputView {
                reference: StateRef::new(wire.id(), index),
                state_type: output.state_type.clone(),
                contract: output.contract.clone(),
                data: value.is_none().then(|| output.data.clone()),
                value,
                participants: output.participants.clone(),
                notary: output.notary.clone(),
            }
        };
        let command = |command: &crate::Command| CommandView {
            kind: command.kind.clone(),
            data: command.data.clone(),
            signers: command.signers.clone(),
        };
        Self {
            id: wire.id(),
            inputs: wire.inputs().to_vec(),
            references: wire.references().to_vec(),
            outputs: (0..).zip(wire.outputs()).map(output).collect(),
            commands: wire.commands().iter().map(command).collect(),
            attachments: wire.attachments().to_vec(),
            notary: wire.notary().cloned(),
            time_window: wire.time_window(),
            parameters: wire.parameters().copied(),
            required_signers: wire.required_signers().into_iter().collect(),
            signed_by: None,
        }
    }

    /// Lays a transaction with its signatures open.
    pub fn of_signed(
        signed: &SignedTransaction,
        read: impl Fn(&TransactionState) -> Option<Value>,
    ) -> Self {
        let signed_by = signed
            .signatures()
            .iter()
            .map(|signature| signature.by.clone())
            .collect();
        Self {
            signed_by: Some(signed_by),
            ..Self::of(signed.wire(), read)
        }
    }
}

impl WireTransaction {
    /// The transaction for people, with states as bytes. See [`TransactionView::of`] for showing their values.
    pub fn view(&self) -> TransactionView {
        TransactionView::of(self, |_| None)
    }
}
