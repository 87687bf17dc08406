//! Between the API's plain data and its protobuf messages.
//!
//! Only this crate and the node's gRPC edge see the generated types. Going out cannot fail;
//! coming in, every field is checked, and the error names the field.

use std::fmt::Display;
use std::str::FromStr;

use quorate_identity::Party;
use quorate_ledger::vault::{Cursor, StateStatus};
use quorate_ledger::{ContractRef, SignedTransaction, Timestamp};
use serde_json::Value;

use crate::api;

/// The generated messages, client and server of `quorate.rpc.v1`.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod proto {
    tonic::include_proto!("quorate.rpc.v1");
}

/// A message of the other side has a field that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct WireError {
    /// The field.
    pub field: &'static str,
    /// What is wrong with it.
    pub reason: String,
}

impl WireError {
    fn new(field: &'static str, reason: impl Display) -> Self {
        let mut reason = reason.to_string();
        if let Some((end, _)) = reason.char_indices().nth(MAX_REASON_CHARS) {
            reason.truncate(end);
        }
        Self { field, reason }
    }
}

/// Longest reason in an error, in characters: it may quote the other side's nonsense.
const MAX_REASON_CHARS: usize = 300;

type Checked<T> = Result<T, WireError>;

/// Parses a field that travels as text.
pub fn parsed<T>(field: &'static str, text: &str) -> Checked<T>
where
    T: FromStr,
    T::Err: Display,
{
    text.parse().map_err(|error| WireError::new(field, error))
}

/// Parses a field that holds a JSON value.
pub fn json<T: serde::de::DeserializeOwned>(field: &'static str, text: &str) -> Checked<T> {
    if text.len() > api::MAX_JSON_BYTES {
        return Err(WireError::new(
            field,
            format_args!(
                "{} bytes of JSON; at most {} are carried",
                text.len(),
                api::MAX_JSON_BYTES
            ),
        ));
    }
    serde_json::from_str(text).map_err(|error| WireError::new(field, error))
}

fn maybe_json(field: &'static str, text: Option<String>) -> Checked<Option<Value>> {
    text.map(|text| json(field, &text)).transpose()
}

fn required<T>(field: &'static str, value: Option<T>) -> Checked<T> {
    value.ok_or_else(|| WireError::new(field, "is missing"))
}

fn time(micros: i64) -> Timestamp {
    Timestamp::from_micros(micros)
}

fn list<P, T: TryFrom<P, Error = WireError>>(items: Vec<P>) -> Checked<Vec<T>> {
    items.into_iter().map(T::try_from).collect()
}

/// A client id of a message.
pub fn client_id(text: String) -> Checked<api::ClientId> {
    api::ClientId::new(text).map_err(|error| WireError::new("client_id", error))
}

impl From<api::StartFlow> for proto::StartFlowRequest {
    fn from(request: api::StartFlow) -> Self {
        Self {
            client_id: request.client_id.map(String::from),
            flow: request.flow,
            arguments_json: request.arguments.to_string(),
        }
    }
}

impl TryFrom<proto::StartFlowRequest> for api::StartFlow {
    type Error = WireError;

    fn try_from(request: proto::StartFlowRequest) -> Checked<Self> {
        let arguments = match request.arguments_json.trim() {
            "" => Value::Object(serde_json::Map::new()),
            text => json("arguments_json", text)?,
        };
        Ok(Self {
            client_id: request.client_id.map(client_id).transpose()?,
            flow: request.flow,
            arguments,
        })
    }
}

impl From<api::FlowHandle> for proto::FlowHandle {
    fn from(handle: api::FlowHandle) -> Self {
        Self {
            flow_id: handle.flow_id.into(),
            client_id: handle.client_id.map(String::from),
            reattached: handle.reattached,
        }
    }
}

impl TryFrom<proto::FlowHandle> for api::FlowHandle {
    type Error = WireError;

    fn try_from(handle: proto::FlowHandle) -> Checked<Self> {
        Ok(Self {
            flow_id: parsed("flow_id", &handle.flow_id)?,
            client_id: handle.client_id.map(client_id).transpose()?,
            reattached: handle.reattached,
        })
    }
}

impl From<api::FlowKey> for proto::flow_status_request::Key {
    fn from(key: api::FlowKey) -> Self {
        match key {
            api::FlowKey::Flow(id) => Self::FlowId(id.into()),
            api::FlowKey::Client(id) => Self::ClientId(id.into()),
        }
    }
}

impl TryFrom<Option<proto::flow_status_request::Key>> for api::FlowKey {
    type Error = WireError;

    fn try_from(key: Option<proto::flow_status_request::Key>) -> Checked<Self> {
        match required("key", key)? {
            proto::flow_status_request::Key::FlowId(id) => Ok(Self::Flow(parsed("flow_id", &id)?)),
            proto::flow_status_request::Key::ClientId(id) => Ok(Self::Client(client_id(id)?)),
        }
    }
}

impl From<api::FlowState> for proto::FlowState {
    fn from(state: api::FlowState) -> Self {
        match state {
            api::FlowState::Running => Self::Running,
            api::FlowState::Suspended => Self::Suspended,
            api::FlowState::Hospitalised => Self::Hospitalised,
            api::FlowState::Paused => Self::Paused,
            api::FlowState::Completed => Self::Completed,
            api::FlowState::Failed => Self::Failed,
            api::FlowState::Killed => Self::Killed,
        }
    }
}

impl TryFrom<proto::FlowState> for api::FlowState {
    type Error = WireError;

    fn try_from(state: proto::FlowState) -> Checked<Self> {
        match state {
            proto::FlowState::Unspecified => Err(WireError::new("state", "is missing")),
            proto::FlowState::Running => Ok(Self::Running),
            proto::FlowState::Suspended => Ok(Self::Suspended),
            proto::FlowState::Hospitalised => Ok(Self::Hospitalised),
            proto::FlowState::Paused => Ok(Self::Paused),
            proto::FlowState::Completed => Ok(Self::Completed),
            proto::FlowState::Failed => Ok(Self::Failed),
            proto::FlowState::Killed => Ok(Self::Killed),
        }
    }
}

impl From<api::FlowStatus> for proto::FlowStatus {
    fn from(flow: api::FlowStatus) -> Self {
        Self {
            flow_id: flow.flow_id.into(),
            class: flow.class,
            client_id: flow.client_id.map(String::from),
            state: proto::FlowState::from(flow.state).into(),
            progress: flow.progress,
            waiting_for: flow.waiting_for,
            started_at: flow.started_at.as_micros(),
            finished_at: flow.finished_at.map(|at| at.as_micros()),
            result_json: flow.result.map(|value| value.to_string()),
            error: flow.error,
            owner: flow.owner,
        }
    }
}

impl TryFrom<proto::FlowStatus> for api::FlowStatus {
    type Error = WireError;

    fn try_from(flow: proto::FlowStatus) -> Checked<Self> {
        Ok(Self {
            flow_id: parsed("flow_id", &flow.flow_id)?,
            state: flow.state().try_into()?,
            class: flow.class,
            client_id: flow.client_id.map(client_id).transpose()?,
            progress: flow.progress,
            waiting_for: flow.waiting_for,
            started_at: time(flow.started_at),
            finished_at: flow.finished_at.map(time),
            result: maybe_json("result_json", flow.result_json)?,
            error: flow.error,
            owner: flow.owner,
        })
    }
}

impl From<Vec<api::FlowStatus>> for proto::FlowList {
    fn from(flows: Vec<api::FlowStatus>) -> Self {
        Self {
            flows: flows.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<proto::FlowList> for Vec<api::FlowStatus> {
    type Error = WireError;

    fn try_from(reply: proto::FlowList) -> Checked<Self> {
        list(reply.flows)
    }
}

impl From<api::FlowUpdates> for proto::FlowUpdates {
    fn from(updates: api::FlowUpdates) -> Self {
        Self {
            cursor: updates.cursor,
            flows: updates.flows.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<proto::FlowUpdates> for api::FlowUpdates {
    type Error = WireError;

    fn try_from(updates: proto::FlowUpdates) -> Checked<Self> {
        Ok(Self {
            cursor: updates.cursor,
            flows: list(updates.flows)?,
        })
    }
}

impl From<Vec<api::FinishedFlow>> for proto::FinishedFlows {
    fn from(flows: Vec<api::FinishedFlow>) -> Self {
        let flows = flows.into_iter().map(|flow| proto::FinishedFlow {
            client_id: flow.client_id.into(),
            flow_id: flow.flow_id.into(),
            class: flow.class,
            succeeded: flow.succeeded,
            finished_at: flow.finished_at.map(|at| at.as_micros()),
        });
        Self {
            flows: flows.collect(),
        }
    }
}

impl TryFrom<proto::FinishedFlows> for Vec<api::FinishedFlow> {
    type Error = WireError;

    fn try_from(reply: proto::FinishedFlows) -> Checked<Self> {
        let flows = reply.flows.into_iter().map(|flow| {
            Ok(api::FinishedFlow {
                client_id: client_id(flow.client_id)?,
                flow_id: parsed("flow_id", &flow.flow_id)?,
                class: flow.class,
                succeeded: flow.succeeded,
                finished_at: flow.finished_at.map(time),
            })
        });
        flows.collect()
    }
}

impl From<api::FlowControl> for proto::FlowControl {
    fn from(action: api::FlowControl) -> Self {
        match action {
            api::FlowControl::PauseAll => Self::PauseAll,
            api::FlowControl::PauseAllHospitalized => Self::PauseAllHospitalized,
            api::FlowControl::RetryAllPaused => Self::RetryAllPaused,
            api::FlowControl::RetryAllPausedHospitalized => Self::RetryAllPausedHospitalized,
        }
    }
}

impl TryFrom<proto::FlowControl> for api::FlowControl {
    type Error = WireError;

    fn try_from(action: proto::FlowControl) -> Checked<Self> {
        match action {
            proto::FlowControl::Unspecified => Err(WireError::new("action", "is missing")),
            proto::FlowControl::PauseAll => Ok(Self::PauseAll),
            proto::FlowControl::PauseAllHospitalized => Ok(Self::PauseAllHospitalized),
            proto::FlowControl::RetryAllPaused => Ok(Self::RetryAllPaused),
            proto::FlowControl::RetryAllPausedHospitalized => Ok(Self::RetryAllPausedHospitalized),
        }
    }
}

impl From<Vec<api::HospitalRecord>> for proto::HospitalList {
    fn from(records: Vec<api::HospitalRecord>) -> Self {
        let records = records.into_iter().map(|record| proto::HospitalRecord {
            flow_id: record.flow_id.into(),
            class: record.class,
            admitted_at: record.admitted_at.as_micros(),
            attempts: record.attempts,
            error: record.error,
            treatment: record.treatment,
            next_attempt_at: record.next_attempt_at.map(|at| at.as_micros()),
        });
        Self {
            records: records.collect(),
        }
    }
}

impl TryFrom<proto::HospitalList> for Vec<api::HospitalRecord> {
    type Error = WireError;

    fn try_from(reply: proto::HospitalList) -> Checked<Self> {
        let records = reply.records.into_iter().map(|record| {
            Ok(api::HospitalRecord {
                flow_id: parsed("flow_id", &record.flow_id)?,
                class: record.class,
                admitted_at: time(record.admitted_at),
                attempts: record.attempts,
                error: record.error,
                treatment: record.treatment,
                next_attempt_at: record.next_attempt_at.map(time),
            })
        });
        records.collect()
    }
}

impl From<Vec<api::Checkpoint>> for proto::Checkpoints {
    fn from(checkpoints: Vec<api::Checkpoint>) -> Self {
        let checkpoints = checkpoints.into_iter().map(|checkpoint| proto::Checkpoint {
            flow_id: checkpoint.flow_id.into(),
            class: checkpoint.class,
            content_json: checkpoint.content.to_string(),
        });
        Self {
            checkpoints: checkpoints.collect(),
        }
    }
}

impl TryFrom<proto::Checkpoints> for Vec<api::Checkpoint> {
    type Error = WireError;

    fn try_from(reply: proto::Checkpoints) -> Checked<Self> {
        let checkpoints = reply.checkpoints.into_iter().map(|checkpoint| {
            Ok(api::Checkpoint {
                flow_id: parsed("flow_id", &checkpoint.flow_id)?,
                class: checkpoint.class,
                content: json("content_json", &checkpoint.content_json)?,
            })
        });
        checkpoints.collect()
    }
}

impl From<Vec<api::RegisteredFlow>> for proto::RegisteredFlowsReply {
    fn from(flows: Vec<api::RegisteredFlow>) -> Self {
        let flows = flows.into_iter().map(|flow| proto::RegisteredFlow {
            name: flow.name,
            app: flow.app,
        });
        Self {
            flows: flows.collect(),
        }
    }
}

impl TryFrom<proto::RegisteredFlowsReply> for Vec<api::RegisteredFlow> {
    type Error = WireError;

    fn try_from(reply: proto::RegisteredFlowsReply) -> Checked<Self> {
        let flows = reply.flows.into_iter().map(|flow| api::RegisteredFlow {
            name: flow.name,
            app: flow.app,
        });
        Ok(flows.collect())
    }
}

/// A party as a message.
pub fn party_out(party: Party) -> proto::Party {
    proto::Party {
        name: party.name.to_string(),
        owning_key: party.owning_key.to_string(),
    }
}

/// A party of a message.
pub fn party_in(party: proto::Party) -> Checked<Party> {
    Ok(Party {
        name: parsed("party.name", &party.name)?,
        owning_key: parsed("party.owning_key", &party.owning_key)?,
    })
}

impl From<api::State> for proto::State {
    fn from(state: api::State) -> Self {
        Self {
            reference: state.reference.to_string(),
            contract: state.contract.name,
            contract_code: state.contract.code.to_string(),
            state_type: state.state_type,
            data: state.data,
            participants: state.participants.iter().map(ToString::to_string).collect(),
            notary: Some(party_out(state.notary)),
            content_json: state.content.map(|value| value.to_string()),
        }
    }
}

impl TryFrom<proto::State> for api::State {
    type Error = WireError;

    fn try_from(state: proto::State) -> Checked<Self> {
        Ok(Self {
            reference: parsed("reference", &state.reference)?,
            contract: ContractRef {
                name: state.contract,
                code: parsed("contract_code", &state.contract_code)?,
            },
            state_type: state.state_type,
            data: state.data,
            participants: state
                .participants
                .iter()
                .map(|key| parsed("participants", key))
                .collect::<Checked<_>>()?,
            notary: party_in(required("notary", state.notary)?)?,
            content: maybe_json("content_json", state.content_json)?,
        })
    }
}

impl From<api::VaultState> for proto::VaultState {
    fn from(row: api::VaultState) -> Self {
        let status = match row.status {
            StateStatus::Consumed => proto::StateStatus::Consumed,
            // A state is one or the other; "all" exists only in questions.
            StateStatus::Unconsumed | StateStatus::All => proto::StateStatus::Unconsumed,
        };
        Self {
            state: Some(row.state.into()),
            status: status.into(),
            recorded_at: row.recorded_at.as_micros(),
            consumed_at: row.consumed_at.map(|at| at.as_micros()),
            consumed_by: row.consumed_by.map(|tx| tx.to_string()),
            locked_by: row.locked_by.map(String::from),
        }
    }
}

impl TryFrom<proto::VaultState> for api::VaultState {
    type Error = WireError;

    fn try_from(row: proto::VaultState) -> Checked<Self> {
        let status = match row.status() {
            proto::StateStatus::Unspecified => return Err(WireError::new("status", "is missing")),
            proto::StateStatus::Unconsumed => StateStatus::Unconsumed,
            proto::StateStatus::Consumed => StateStatus::Consumed,
        };
        Ok(Self {
            state: required("state", row.state)?.try_into()?,
            status,
            recorded_at: time(row.recorded_at),
            consumed_at: row.consumed_at.map(time),
            consumed_by: row
                .consumed_by
                .map(|tx| parsed("consumed_by", &tx))
                .transpose()?,
            locked_by: row
                .locked_by
                .map(|flow| parsed("locked_by", &flow))
                .transpose()?,
        })
    }
}

impl From<api::VaultPage> for proto::VaultPage {
    fn from(page: api::VaultPage) -> Self {
        Self {
            states: page.states.into_iter().map(Into::into).collect(),
            total: page.total,
            number: page.number,
            size: page.size,
        }
    }
}

impl TryFrom<proto::VaultPage> for api::VaultPage {
    type Error = WireError;

    fn try_from(page: proto::VaultPage) -> Checked<Self> {
        Ok(Self {
            states: list(page.states)?,
            total: page.total,
            number: page.number,
            size: page.size,
        })
    }
}

impl From<api::VaultUpdate> for proto::VaultUpdate {
    fn from(update: api::VaultUpdate) -> Self {
        Self {
            cursor: update.cursor.0,
            tx: update.tx.to_string(),
            produced: update.produced.into_iter().map(Into::into).collect(),
            consumed: update.consumed.into_iter().map(Into::into).collect(),
            recorded_at: update.recorded_at.as_micros(),
            position_only: false,
        }
    }
}

impl TryFrom<proto::VaultUpdate> for api::VaultUpdate {
    type Error = WireError;

    fn try_from(update: proto::VaultUpdate) -> Checked<Self> {
        Ok(Self {
            cursor: Cursor(update.cursor),
            tx: parsed("tx", &update.tx)?,
            produced: list(update.produced)?,
            consumed: list(update.consumed)?,
            recorded_at: time(update.recorded_at),
        })
    }
}

impl From<api::Transaction> for proto::TransactionReply {
    fn from(transaction: api::Transaction) -> Self {
        Self {
            tx: transaction.id.to_string(),
            signed: transaction.signed.encode(),
            r#final: transaction.is_final,
            recorded_at: transaction.recorded_at.map(|at| at.as_micros()),
            content_json: transaction.content.map(|value| value.to_string()),
        }
    }
}

impl TryFrom<proto::TransactionReply> for api::Transaction {
    type Error = WireError;

    fn try_from(reply: proto::TransactionReply) -> Checked<Self> {
        let signed = SignedTransaction::decode(&reply.signed)
            .map_err(|error| WireError::new("signed", error))?;
        let id = parsed("tx", &reply.tx)?;
        if signed.id() != id {
            return Err(WireError::new("tx", "is not the id of the transaction"));
        }
        Ok(Self {
            id,
            signed,
            is_final: reply.r#final,
            recorded_at: reply.recorded_at.map(time),
            content: maybe_json("content_json", reply.content_json)?,
        })
    }
}

impl From<api::NodeInfo> for proto::NodeInfoReply {
    fn from(info: api::NodeInfo) -> Self {
        let identities = info
            .legal_identities
            .into_iter()
            .map(|identity| proto::Identity {
                party: Some(party_out(identity.party)),
                certificates: identity.certificates,
            });
        Self {
            addresses: info.addresses,
            identities: identities.collect(),
            platform_version: info.platform_version,
            serial: info.serial,
        }
    }
}

impl TryFrom<proto::NodeInfoReply> for api::NodeInfo {
    type Error = WireError;

    fn try_from(reply: proto::NodeInfoReply) -> Checked<Self> {
        let identities = reply.identities.into_iter().map(|identity| {
            Ok(api::Identity {
                party: party_in(required("identities.party", identity.party)?)?,
                certificates: identity.certificates,
            })
        });
        Ok(Self {
            addresses: reply.addresses,
            legal_identities: identities.collect::<Checked<_>>()?,
            platform_version: reply.platform_version,
            serial: reply.serial,
        })
    }
}

impl From<Vec<api::NodeInfo>> for proto::NetworkMap {
    fn from(nodes: Vec<api::NodeInfo>) -> Self {
        Self {
            nodes: nodes.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<proto::NetworkMap> for Vec<api::NodeInfo> {
    type Error = WireError;

    fn try_from(reply: proto::NetworkMap) -> Checked<Self> {
        list(reply.nodes)
    }
}

impl From<Vec<Party>> for proto::PartyList {
    fn from(parties: Vec<Party>) -> Self {
        Self {
            parties: parties.into_iter().map(party_out).collect(),
        }
    }
}

impl TryFrom<proto::PartyList> for Vec<Party> {
    type Error = WireError;

    fn try_from(reply: proto::PartyList) -> Checked<Self> {
        reply.parties.into_iter().map(party_in).collect()
    }
}

impl From<api::Diagnostics> for proto::DiagnosticsReply {
    fn from(it: api::Diagnostics) -> Self {
        let flows_by_state = it.flows_by_state.into_iter().map(|(state, count)| {
            let name = proto::FlowState::from(state).as_str_name();
            (name.to_owned(), count)
        });
        let queues = it.queues.into_iter().map(|queue| proto::PeerQueue {
            peer: queue.peer.to_string(),
            queued: queue.queued,
            connected: queue.connected,
            oldest_at: queue.oldest_at.map(|at| at.as_micros()),
            last_error: queue.last_error,
        });
        let apps = it.apps.into_iter().map(|app| proto::App {
            name: app.name,
            version: app.version,
        });
        Self {
            version: it.version,
            revision: it.revision,
            platform_version: it.platform_version,
            legal_name: it.legal_name.to_string(),
            instance: it.instance,
            role: role_name(it.role).to_owned(),
            lease: it.lease.map(|lease| proto::Lease {
                resource: lease.resource,
                holder: lease.holder,
                generation: lease.generation,
                renewed_at: lease.renewed_at.as_micros(),
            }),
            flows_by_state: flows_by_state.collect(),
            queues: queues.collect(),
            draining: it.draining,
            started_at: it.started_at.as_micros(),
            apps: apps.collect(),
        }
    }
}

/// The roles by their names.
const ROLES: [(api::Role, &str); 4] = [
    (api::Role::Starting, "STARTING"),
    (api::Role::Standby, "STANDBY"),
    (api::Role::Active, "ACTIVE"),
    (api::Role::Stopping, "STOPPING"),
];

fn role_name(role: api::Role) -> &'static str {
    ROLES
        .iter()
        .find(|(known, _)| *known == role)
        .map_or("STARTING", |(_, name)| name)
}

impl TryFrom<proto::DiagnosticsReply> for api::Diagnostics {
    type Error = WireError;

    fn try_from(reply: proto::DiagnosticsReply) -> Checked<Self> {
        let role = ROLES.iter().find(|(_, name)| *name == reply.role);
        let flows_by_state = reply.flows_by_state.into_iter().map(|(state, count)| {
            let state = proto::FlowState::from_str_name(&state)
                .ok_or_else(|| WireError::new("flows_by_state", "has a state of no known name"))?;
            Ok((state.try_into()?, count))
        });
        let queues = reply.queues.into_iter().map(|queue| {
            Ok(api::PeerQueue {
                peer: parsed("queues.peer", &queue.peer)?,
                queued: queue.queued,
                connected: queue.connected,
                oldest_at: queue.oldest_at.map(time),
                last_error: queue.last_error,
            })
        });
        let apps = reply.apps.into_iter().map(|app| api::AppInfo {
            name: app.name,
            version: app.version,
        });
        Ok(Self {
            version: reply.version,
            revision: reply.revision,
            platform_version: reply.platform_version,
            legal_name: parsed("legal_name", &reply.legal_name)?,
            instance: reply.instance,
            role: required("role", role)?.0,
            lease: reply.lease.map(|lease| api::Lease {
                resource: lease.resource,
                holder: lease.holder,
                generation: lease.generation,
                renewed_at: time(lease.renewed_at),
            }),
            flows_by_state: flows_by_state.collect::<Checked<_>>()?,
            queues: queues.collect::<Checked<_>>()?,
            draining: reply.draining,
            started_at: time(reply.started_at),
            apps: apps.collect(),
        })
    }
}
