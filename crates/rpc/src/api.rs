//! The API as plain data: what every request asks and every answer says.
//!
//! These are the types that applications, the node's core, the web API and the shell share. In
//! JSON their fields are camelCase. [`crate::wire`] carries them over gRPC.
//! Start reading at [`StartFlow`], [`FlowStatus`] and [`VaultPage`].

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use quorate_identity::{Party, PublicKey, SecureHash, X500Name};
use quorate_ledger::vault::{self, Cursor, StateStatus};
use quorate_ledger::view::TransactionView;
use quorate_ledger::{
    AttachmentId, ContractRef, ContractState, SignedTransaction, StateAndRef, StateError, StateRef,
    Timestamp, TransactionState, TxId,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Longest client id, in bytes.
pub const MAX_CLIENT_ID_BYTES: usize = 128;
/// Longest name of a flow class, in bytes.
pub const MAX_FLOW_NAME_BYTES: usize = 256;
/// Most bytes of a flow's arguments or result as JSON.
pub const MAX_JSON_BYTES: usize = 8 * 1024 * 1024;
/// Largest attachment that the API carries, in bytes.
pub const MAX_ATTACHMENT_BYTES: usize = 10_485_760;
/// Largest piece of an attachment on the wire, in bytes.
pub const ATTACHMENT_CHUNK_BYTES: usize = 256 * 1024;

/// An identifier was not in its text form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Not a UUID-like text.
    #[error("'{0}' is not a flow id of the form xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx")]
    FlowId(String),
    /// Empty, too long, or with control characters.
    #[error("a client id has 1 to {MAX_CLIENT_ID_BYTES} bytes and no control characters")]
    ClientId,
}

/// The id of one run of a flow: 32 hex digits grouped as in a UUID.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FlowId(String);

impl FlowId {
    /// The canonical text: lower case, with dashes.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The id with these bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        let mut text = String::with_capacity(36);
        for (i, byte) in bytes.iter().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) {
                text.push('-');
            }
            text.push_str(&format!("{byte:02x}"));
        }
        Self(text)
    }
}

impl FromStr for FlowId {
    type Err = IdError;

    /// Accepts any case, with the dashes of a UUID or without any; brackets as logs print them
    /// are dropped.
    fn from_str(text: &str) -> Result<Self, IdError> {
        let refused = || IdError::FlowId(text.chars().take(64).collect());
        let bare = text
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .unwrap_or(text);
        let digits: String = match bare.len() {
            32 => bare.to_ascii_lowercase(),
            36 => {
                let dashes = |(i, c): (usize, char)| (c == '-') == matches!(i, 8 | 13 | 18 | 23);
                if !bare.char_indices().all(dashes) {
                    return Err(refused());
                }
                bare.replace('-', "").to_ascii_lowercase()
            }
            _ => return Err(refused()),
        };
        let mut bytes = [0; 16];
        hex::decode_to_slice(&digits, &mut bytes).map_err(|_| refused())?;
        Ok(Self::from_bytes(bytes))
    }
}

impl TryFrom<String> for FlowId {
    type Error = IdError;

    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<FlowId> for String {
    fn from(id: FlowId) -> Self {
        id.0
    }
}

impl fmt::Display for FlowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A name that a client gives to its request to start a flow. Asking again under the same name
/// re-attaches to the same flow, and returns the same result after it has ended.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClientId(String);

impl ClientId {
    /// A client id: 1 to [`MAX_CLIENT_ID_BYTES`] bytes without control characters.
    pub fn new(text: impl Into<String>) -> Result<Self, IdError> {
        let text = text.into();
        if text.is_empty() || text.len() > MAX_CLIENT_ID_BYTES || text.chars().any(char::is_control)
        {
            return Err(IdError::ClientId);
        }
        Ok(Self(text))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ClientId {
    type Error = IdError;

    fn try_from(text: String) -> Result<Self, IdError> {
        Self::new(text)
    }
}

impl From<ClientId> for String {
    fn from(id: ClientId) -> Self {
        id.0
    }
}

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Asks for a flow to be started.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StartFlow {
    /// Under this name the request may be repeated without starting a second flow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_id: Option<ClientId>,
    /// The class: `cash.Payment`.
    pub flow: String,
    /// The flow's fields.
    #[serde(default = "no_arguments")]
    pub arguments: Value,
}

fn no_arguments() -> Value {
    Value::Object(serde_json::Map::new())
}

/// A flow that was started, or found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowHandle {
    /// The flow's id.
    pub flow_id: FlowId,
    /// The client id under which it was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_id: Option<ClientId>,
    /// True if the flow had been started by an earlier request under the same client id.
    pub reattached: bool,
}

/// How one asks for a flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FlowKey {
    /// By its own id.
    Flow(FlowId),
    /// By the client id under which it was started.
    Client(ClientId),
}

impl fmt::Display for FlowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flow(id) => write!(f, "flow {id}"),
            Self::Client(id) => write!(f, "the flow of client id '{id}'"),
        }
    }
}

/// Where a flow stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FlowState {
    /// Working, or about to.
    Running,
    /// Waiting for a message or a time.
    Suspended,
    /// Stopped by something unexpected; waits under observation for a retry or a kill.
    Hospitalised,
    /// Stopped by an operator.
    Paused,
    /// Ended with a result.
    Completed,
    /// Ended with an error.
    Failed,
    /// Ended by an operator.
    Killed,
}

impl FlowState {
    /// Whether nothing more will happen to the flow.
    pub fn ended(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Killed)
    }
}

/// A flow as it stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowStatus {
    /// The flow's id.
    pub flow_id: FlowId,
    /// Its class.
    pub class: String,
    /// The client id under which it was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_id: Option<ClientId>,
    /// Where it stands.
    pub state: FlowState,
    /// The progress step that the flow named last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<String>,
    /// What it waits for: a peer, a time, an operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_for: Option<String>,
    /// When it started.
    pub started_at: Timestamp,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
    /// The result of a completed flow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    /// Why a flow failed, or lies in the hospital.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The instance that works on the flow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
}

/// Flows that changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowUpdates {
    /// Ask for what comes after this next time. Cursors of flows are good for the process that
    /// gave them out; to another one, or to the same one restarted, they mean "from the start".
    pub cursor: u64,
    /// Each flow that changed, as it stands now.
    pub flows: Vec<FlowStatus>,
}

/// An ended flow whose outcome is kept under its client id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FinishedFlow {
    /// The client id.
    pub client_id: ClientId,
    /// The flow's id.
    pub flow_id: FlowId,
    /// Its class.
    pub class: String,
    /// Whether it ended with a result.
    pub succeeded: bool,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
}

/// What an operator does to many flows at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FlowControl {
    /// Pause every flow.
    PauseAll,
    /// Pause every flow in the hospital.
    PauseAllHospitalized,
    /// Continue every paused flow.
    RetryAllPaused,
    /// Continue every flow that was paused in the hospital.
    RetryAllPausedHospitalized,
}

/// A flow in the hospital.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HospitalRecord {
    /// The flow's id.
    pub flow_id: FlowId,
    /// Its class.
    pub class: String,
    /// When it was admitted.
    pub admitted_at: Timestamp,
    /// How often it has been tried since.
    pub attempts: u32,
    /// What went wrong.
    pub error: String,
    /// What is done about it: `retry`, `observation`.
    pub treatment: String,
    /// When it will be tried again by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_attempt_at: Option<Timestamp>,
}

/// A flow's checkpoint in readable form.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Checkpoint {
    /// The flow's id.
    pub flow_id: FlowId,
    /// Its class.
    pub class: String,
    /// Sessions, journal and pending operation.
    pub content: Value,
}

/// A flow that can be started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RegisteredFlow {
    /// Its class.
    pub name: String,
    /// The application that brings it.
    pub app: String,
}

/// A ledger state for clients.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// Which output of which transaction.
    pub reference: StateRef,
    /// The contract that governs it.
    pub contract: ContractRef,
    /// Its type: `cash.Cash.State`.
    pub state_type: String,
    /// Its canonical bytes; base64 in JSON.
    #[serde(with = "base64_bytes")]
    pub data: Vec<u8>,
    /// Those who may see it.
    pub participants: Vec<PublicKey>,
    /// The notary that guards it.
    pub notary: Party,
    /// Its fields, if the node has the application that can read them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Value>,
}

impl State {
    /// The ledger's state for clients, with its readable fields if there are any.
    pub fn new(state: StateAndRef, content: Option<Value>) -> Self {
        Self {
            reference: state.reference,
            contract: state.state.contract,
            state_type: state.state.state_type,
            data: state.state.data,
            participants: state.state.participants,
            notary: state.state.notary,
            content,
        }
    }

    /// The same as a value of the ledger.
    pub fn to_ledger(&self) -> StateAndRef {
        StateAndRef {
            state: TransactionState {
                contract: self.contract.clone(),
                state_type: self.state_type.clone(),
                data: self.data.clone(),
                participants: self.participants.clone(),
                notary: self.notary.clone(),
            },
            reference: self.reference,
        }
    }

    /// The state as its application knows it. Fails if it is of another type, or its bytes are
    /// not of that type.
    pub fn read<S: ContractState>(&self) -> Result<S, StateError> {
        self.to_ledger().state.read::<S>()
    }
}

/// A state in the vault.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VaultState {
    /// The state.
    #[serde(flatten)]
    pub state: State,
    /// Unconsumed or consumed.
    pub status: StateStatus,
    /// When its transaction was recorded.
    pub recorded_at: Timestamp,
    /// When the transaction that consumed it was recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consumed_at: Option<Timestamp>,
    /// The transaction that consumed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consumed_by: Option<TxId>,
    /// The flow that has reserved it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locked_by: Option<FlowId>,
}

impl VaultState {
    /// The ledger's row for clients, with its readable fields if there are any.
    pub fn new(row: vault::VaultState, content: Option<Value>) -> Self {
        Self {
            state: State::new(row.state, content),
            status: row.status,
            recorded_at: row.recorded_at,
            consumed_at: row.consumed_at,
            consumed_by: row.consumed_by,
            locked_by: row
                .locked_by
                .map(|holder| FlowId::from_bytes(*holder.as_bytes())),
        }
    }
}

/// One page of the vault's answer to a query.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VaultPage {
    /// The states of this page.
    pub states: Vec<VaultState>,
    /// How many states match in all.
    pub total: u64,
    /// The page's number; the first is 1.
    pub number: u32,
    /// How many states a full page has.
    pub size: u32,
}

/// What one transaction changed in the vault.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VaultUpdate {
    /// The update's place in the stream.
    pub cursor: Cursor,
    /// The transaction.
    pub tx: TxId,
    /// States that it brought.
    pub produced: Vec<State>,
    /// States that it consumed.
    pub consumed: Vec<State>,
    /// When it was recorded.
    pub recorded_at: Timestamp,
}

/// A batch of vault updates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VaultUpdates {
    /// Ask for what comes after this next time.
    pub cursor: Cursor,
    /// The updates, oldest first.
    pub updates: Vec<VaultUpdate>,
}

/// A transaction that the node has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Transaction {
    /// Its id.
    pub id: TxId,
    /// The transaction with its signatures.
    pub signed: SignedTransaction,
    /// False while it waits for its notary.
    #[serde(rename = "final")]
    pub is_final: bool,
    /// When it was recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recorded_at: Option<Timestamp>,
    /// Its components in readable form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Value>,
}

impl Transaction {
    /// A recorded transaction for clients, laid open in [`Transaction::content`]; `read` gives an
    /// application's value of a state, if one knows it.
    pub fn new(
        signed: SignedTransaction,
        is_final: bool,
        recorded_at: Option<Timestamp>,
        read: impl Fn(&TransactionState) -> Option<Value>,
    ) -> Self {
        let view = TransactionView::of_signed(&signed, read);
        Self {
            id: signed.id(),
            content: serde_json::to_value(view).ok(),
            signed,
            is_final,
            recorded_at,
        }
    }
}

/// One identity in a network map entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// Name and key.
    pub party: Party,
    /// Certificates in DER, the identity's own first; base64 in JSON.
    #[serde(with = "base64_list")]
    pub certificates: Vec<Vec<u8>>,
}

/// An entry of the network map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeInfo {
    /// Where the node listens: `host:port`.
    pub addresses: Vec<String>,
    /// Who it is; the legal identity comes first.
    pub legal_identities: Vec<Identity>,
    /// The platform version it runs.
    pub platform_version: u32,
    /// Grows with every new version of the entry.
    pub serial: u64,
}

/// What an instance does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Role {
    /// Not yet serving.
    Starting,
    /// Ready to take over.
    Standby,
    /// Serving.
    Active,
    /// Ending.
    Stopping,
}

/// Who holds a lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Lease {
    /// What it is for.
    pub resource: String,
    /// Machine, directory and process.
    pub holder: String,
    /// Its generation.
    pub generation: u64,
    /// When it was renewed last, by the database's clock.
    pub renewed_at: Timestamp,
}

/// The outbound queue to one peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerQueue {
    /// The peer.
    pub peer: X500Name,
    /// How many messages wait.
    pub queued: u64,
    /// Whether there is a connection now.
    pub connected: bool,
    /// When the oldest waiting message was queued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_at: Option<Timestamp>,
    /// Why there is no connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// An application that the node has loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AppInfo {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// How the node is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Diagnostics {
    /// Release of the software.
    pub version: String,
    /// The revision it was built from.
    pub revision: String,
    /// The platform version.
    pub platform_version: u32,
    /// Whose node it is.
    pub legal_name: X500Name,
    /// This process among those that serve the node.
    pub instance: String,
    /// What it does now.
    pub role: Role,
    /// The lease under which the node writes, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<Lease>,
    /// How many flows are in which state.
    pub flows_by_state: BTreeMap<FlowState, u64>,
    /// Outbound queues.
    pub queues: Vec<PeerQueue>,
    /// Whether draining mode is on.
    pub draining: bool,
    /// When the process started.
    pub started_at: Timestamp,
    /// Applications.
    pub apps: Vec<AppInfo>,
}

/// Stops the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Shutdown {
    /// Let running flows end first, taking no new ones.
    pub drain: bool,
}

/// What an attachment is named by.
pub fn attachment_id(bytes: &[u8]) -> AttachmentId {
    AttachmentId::from(SecureHash::of(bytes))
}

mod base64_bytes {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map_err(serde::de::Error::custom)
    }
}

mod base64_list {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(
        list: &[Vec<u8>],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(list.iter().map(|bytes| STANDARD.encode(bytes)))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<Vec<u8>>, D::Error> {
        Vec::<String>::deserialize(deserializer)?
            .into_iter()
            .map(|text| STANDARD.decode(text).map_err(serde::de::Error::custom))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn flow_ids_are_read_as_logs_and_people_write_them(bytes: [u8; 16]) {
            let id = FlowId::from_bytes(bytes);
            let bare = hex::encode(bytes);
            for text in [id.to_string(), id.to_string().to_uppercase(), bare, format!("[{id}]")] {
                prop_assert_eq!(text.parse(), Ok(id.clone()));
            }
        }

        #[test]
        fn no_text_is_a_panic(text: String) {
            let _ = text.parse::<FlowId>();
            let _ = ClientId::new(text);
        }
    }

    #[test]
    fn ids_of_nonsense_are_refused() {
        let good = FlowId::from_bytes([1; 16]).to_string();
        for bad in [
            "",
            "[",
            "]",
            &good[1..],
            &good.replace('-', "_"),
            &good.replace('0', "g"),
        ] {
            assert!(bad.parse::<FlowId>().is_err(), "{bad}");
        }
        for bad in ["", "a\nb", &"x".repeat(MAX_CLIENT_ID_BYTES + 1)] {
            assert_eq!(ClientId::new(bad), Err(IdError::ClientId), "{bad}");
        }
        let unknown = serde_json::from_str::<StartFlow>(r#"{"flow":"a.B","args":{}}"#);
        assert!(unknown.unwrap_err().to_string().contains("args"));
    }
}
