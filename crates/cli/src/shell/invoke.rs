//! `run`: any operation of the API by its name, with arguments as typed.

use std::path::PathBuf;
use std::time::Duration;

use quorate_ledger::vault::{Criteria, Cursor, PageRequest, StateStatus, VaultQuery};
use quorate_rpc::api::{ClientId, FlowControl, FlowId, FlowKey, StartFlow};
use quorate_rpc::{Client, Method, TrackFrom};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::commands::{Failure, Sink};

/// Arguments, from which each is taken once.
pub(super) struct Arguments {
    fields: Map<String, Value>,
    method: Method,
}

impl Arguments {
    pub(super) fn new(method: Method, fields: Map<String, Value>) -> Self {
        Self { fields, method }
    }

    fn usage(&self, problem: String) -> Failure {
        let arguments = match self.method.arguments() {
            "" => "it takes no arguments",
            arguments => arguments,
        };
        Failure::Usage(format!("{}: {problem} ({arguments})", self.method))
    }

    /// An argument that may be left out.
    fn maybe<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, Failure> {
        match self.fields.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_json::from_value(value)
                .map(Some)
                .map_err(|error| self.usage(format!("{name}: {error}"))),
        }
    }

    fn required<T: DeserializeOwned>(&mut self, name: &str) -> Result<T, Failure> {
        match self.maybe(name)? {
            Some(value) => Ok(value),
            None => Err(self.usage(format!("'{name}' is missing"))),
        }
    }

    /// Refuses what nobody has asked for: it is a typing mistake.
    fn no_more(&self) -> Result<(), Failure> {
        match self.fields.keys().next() {
            None => Ok(()),
            Some(name) => Err(self.usage(format!("there is no argument '{name}'"))),
        }
    }

    fn only<T: DeserializeOwned>(&mut self, name: &str) -> Result<T, Failure> {
        let value = self.required(name)?;
        self.no_more()?;
        Ok(value)
    }

    fn wait(&mut self) -> Result<Duration, Failure> {
        Ok(Duration::from_millis(
            self.maybe("waitMillis")?.unwrap_or(0),
        ))
    }
}

fn shown(value: impl Serialize) -> Result<Option<Value>, Failure> {
    serde_json::to_value(value)
        .map(Some)
        .map_err(|error| Failure::Failed(format!("the answer cannot be shown: {error}")))
}

/// Calls an operation; the answer, if it has one. Streams go to the sink until it is full.
pub(super) async fn invoke(
    client: &Client,
    written: &str,
    method: Method,
    fields: Map<String, Value>,
    sink: &mut dyn Sink,
) -> Result<Option<Value>, Failure> {
    let mut arguments = Arguments::new(method, fields);
    let it = &mut arguments;
    match method {
        Method::StartFlow => {
            let request = StartFlow {
                client_id: it.maybe("clientId")?,
                flow: it.required("flow")?,
                arguments: it.maybe("arguments")?.unwrap_or_else(|| json!({})),
            };
            it.no_more()?;
            shown(client.start(request).await?.handle())
        }
        Method::FlowStatus => {
            let wait = it.wait()?;
            let key = FlowKey::Flow(it.only::<FlowId>("flowId")?);
            shown(client.flow_status(key, wait).await?)
        }
        Method::ReattachFlowWithClientId => {
            let wait = it.wait()?;
            let key = FlowKey::Client(it.only::<ClientId>("clientId")?);
            shown(client.flow_status(key, wait).await?)
        }
        Method::RemoveClientId => shown(client.remove_client_id(it.only("clientId")?).await?),
        Method::FinishedFlowsWithClientIds => {
            it.no_more()?;
            shown(client.finished_flows_with_client_ids().await?)
        }
        Method::StateMachinesSnapshot => {
            it.no_more()?;
            shown(client.flows().await?)
        }
        Method::StateMachinesFeed => {
            it.no_more()?;
            let mut watcher = client.watch_flows().await?;
            loop {
                let flow = watcher.next().await?;
                if !sink.item(shown(flow)?)? {
                    return Ok(None);
                }
            }
        }
        Method::KillFlow => shown(client.kill_flow(it.only("flowId")?).await?),
        Method::PauseFlow => shown(client.pause_flow(it.only("flowId")?).await?),
        Method::RetryFlow => shown(client.retry_flow(it.only("flowId")?).await?),
        Method::PauseAllFlows => control(client, it, FlowControl::PauseAll).await,
        Method::PauseAllHospitalizedFlows => {
            control(client, it, FlowControl::PauseAllHospitalized).await
        }
        Method::RetryAllPausedFlows => control(client, it, FlowControl::RetryAllPaused).await,
        Method::RetryAllPausedHospitalizedFlows => {
            control(client, it, FlowControl::RetryAllPausedHospitalized).await
        }
        Method::HospitalSnapshot => {
            it.no_more()?;
            shown(client.hospital().await?)
        }
        Method::DumpCheckpoints => {
            it.no_more()?;
            shown(client.dump_checkpoints().await?)
        }
        Method::RegisteredFlows => {
            it.no_more()?;
            shown(client.registered_flows().await?)
        }
        Method::VaultQuery => {
            let query = vault_query(it)?;
            shown(client.vault_query(&query).await?)
        }
        Method::VaultTrack => {
            let from = match (it.maybe("cursor")?, it.maybe("fromNow")?) {
                (Some(cursor), None | Some(false)) => TrackFrom::Cursor(Cursor(cursor)),
                (None, Some(true)) => TrackFrom::Now,
                (None, _) => TrackFrom::Cursor(Cursor::START),
                (Some(_), Some(true)) => {
                    return Err(it.usage("either a cursor or fromNow".into()));
                }
            };
            it.no_more()?;
            let mut tracker = client.vault_track(from).await?;
            loop {
                let update = tracker.next().await?;
                if !sink.item(shown(update)?)? {
                    return Ok(None);
                }
            }
        }
        Method::Transaction => shown(client.transaction(it.only("id")?).await?),
        Method::UploadAttachment => {
            let path: PathBuf = it.only("file")?;
            let bytes = std::fs::read(&path)
                .map_err(|error| Failure::Failed(format!("{}: {error}", path.display())))?;
            shown(client.upload_attachment(&bytes).await?)
        }
        Method::AttachmentExists => shown(client.attachment_exists(it.only("id")?).await?),
        Method::OpenAttachment => {
            let path: PathBuf = it.required("file")?;
            let bytes = client.open_attachment(it.only("id")?).await?;
            // Not over something that is there.
            let mut options = std::fs::OpenOptions::new();
            let file = options.write(true).create_new(true).open(&path);
            file.and_then(|mut file| std::io::Write::write_all(&mut file, &bytes))
                .map_err(|error| Failure::Failed(format!("{}: {error}", path.display())))?;
            shown(json!({ "file": path, "bytes": bytes.len() }))
        }
        Method::NodeInfo => {
            it.no_more()?;
            shown(client.node_info().await?)
        }
        Method::NetworkMapSnapshot => {
            it.no_more()?;
            shown(client.network_map_snapshot().await?)
        }
        Method::NotaryIdentities => {
            it.no_more()?;
            shown(client.notary_identities().await?)
        }
        Method::WellKnownPartyFromX500Name => {
            shown(client.party_from_name(&it.only("name")?).await?)
        }
        Method::CurrentNodeTime => {
            it.no_more()?;
            shown(client.current_node_time().await?)
        }
        Method::NodeDiagnosticInfo => {
            it.no_more()?;
            shown(client.diagnostics().await?)
        }
        Method::SetFlowsDrainingModeEnabled => {
            client.set_flows_draining_mode(it.only("enabled")?).await?;
            Ok(None)
        }
        Method::IsFlowsDrainingModeEnabled => {
            it.no_more()?;
            shown(client.is_flows_draining_mode().await?)
        }
        Method::Terminate => {
            let drain = match written {
                "gracefulShutdown" => true,
                "shutdown" => false,
                _ => it.required("drainPendingFlows")?,
            };
            it.no_more()?;
            client.graceful_shutdown(drain).await?;
            shown(if drain {
                "The node will stop when its flows have ended"
            } else {
                "The node is stopping"
            })
        }
    }
}

async fn control(
    client: &Client,
    arguments: &Arguments,
    action: FlowControl,
) -> Result<Option<Value>, Failure> {
    arguments.no_more()?;
    shown(client.control_flows(action).await?)
}

/// A whole query, or the common parts of one by name.
fn vault_query(it: &mut Arguments) -> Result<VaultQuery, Failure> {
    if let Some(query) = it.maybe("query")? {
        it.no_more()?;
        return Ok(query);
    }
    let status = match it.maybe::<String>("status")? {
        None => StateStatus::Unconsumed,
        Some(status) => match status.to_ascii_lowercase().as_str() {
            "unconsumed" => StateStatus::Unconsumed,
            "consumed" => StateStatus::Consumed,
            "all" => StateStatus::All,
            _ => return Err(it.usage(format!("there is no status '{status}'"))),
        },
    };
    let mut criteria = Criteria::Status(status);
    if let Some(state_type) = it.maybe::<String>("contractStateType")? {
        criteria = criteria.and(Criteria::of_type(state_type));
    }
    let mut query = VaultQuery::new(criteria);
    let page = PageRequest::default();
    query.page = PageRequest {
        number: it.maybe("page")?.unwrap_or(page.number),
        size: it.maybe("pageSize")?.unwrap_or(page.size),
    };
    it.no_more()?;
    Ok(query)
}
