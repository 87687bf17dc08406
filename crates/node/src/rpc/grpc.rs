//! The gRPC edge: translates between messages and the desk.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, Stream, StreamExt};
use quorate_ledger::vault::Cursor;
use quorate_rpc::api;
use quorate_rpc::wire::proto::node_rpc_server::{NodeRpc, NodeRpcServer};
use quorate_rpc::wire::{self, WireError, proto};
use quorate_rpc::{API_VERSION, ErrorCode, MAX_MESSAGE_BYTES, RpcError};
use quorate_runtime::{Shutdown, Tasks};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::GRPC_INTERFACE;
use super::access::{self, Caller};
use super::desk::{self, Desk};
use super::feed::{FlowFeed, VaultFeed};
use super::listen::{BindError, ListenOptions, Port};

/// How often a silent client is pinged, and how long it may take to answer.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(20));
/// Calls under way on one connection; further ones wait at the client.
const MAX_STREAMS: u32 = 4096;
/// HTTP/2 windows: what a client may send ahead.
const WINDOW_BYTES: u32 = 1024 * 1024;

/// The gRPC port, open but not yet served.
pub struct RpcServer {
    port: Port,
}

impl RpcServer {
    /// Opens the port.
    pub async fn bind(options: &ListenOptions) -> Result<Self, BindError> {
        let port = Port::open("RPC server", options, &[b"h2"]).await?;
        Ok(Self { port })
    }

    /// The address that was opened, with the real port.
    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// Serves until the owner stops. Calls under way then are finished; streams and long polls
    /// are ended with `NOT_READY`, so that their clients go elsewhere.
    pub fn serve(self, tasks: &Tasks, desk: Arc<Desk>) {
        let owner = tasks.child("rpc");
        let edge = Edge {
            desk,
            shutdown: owner.shutdown().clone(),
        };
        let connections =
            ReceiverStream::new(self.port.connections(&owner)).map(Ok::<_, std::io::Error>);
        let service = NodeRpcServer::new(edge)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let (interval, patience) = KEEP_ALIVE;
        let serving = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(interval))
            .http2_keepalive_timeout(Some(patience))
            .max_concurrent_streams(MAX_STREAMS)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .add_service(service);
        let shutdown = owner.shutdown().clone();
        owner.spawn_essential("serve", async move {
            let stopped = async move { shutdown.requested().await };
            serving
                .serve_with_incoming_shutdown(connections, stopped)
                .await
        });
    }
}

/// An update that a message can carry. The readable fields repeat what the states' bytes say, so
/// they are what is left out where there is too much of both: a stream must not stop at a large
/// transaction for ever.
fn fitted(mut update: proto::VaultUpdate) -> proto::VaultUpdate {
    if prost::Message::encoded_len(&update) > MAX_MESSAGE_BYTES {
        let states = update.produced.iter_mut().chain(&mut update.consumed);
        states.for_each(|state| state.content_json = None);
    }
    update
}

#[derive(Clone)]
struct Edge {
    desk: Arc<Desk>,
    shutdown: Shutdown,
}

type Reply<T> = Result<Response<T>, Status>;
type Out<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A message of a client that has a field that cannot be.
fn invalid(error: WireError) -> Status {
    RpcError::invalid(error.to_string()).to_status()
}

/// An answer as a message, or a refusal that tells more than the transport's own.
fn reply<M: prost::Message>(message: M) -> Reply<M> {
    let bytes = message.encoded_len();
    if bytes <= MAX_MESSAGE_BYTES {
        return Ok(Response::new(message));
    }
    Err(RpcError::new(
        ErrorCode::TooLarge,
        format!("the answer has {bytes} bytes; at most {MAX_MESSAGE_BYTES} are sent"),
    )
    .with_remedy("ask for a smaller page, or for less at once")
    .to_status())
}

fn answer<T, M: prost::Message + From<T>>(outcome: Result<T, RpcError>) -> Reply<M> {
    match outcome {
        Ok(value) => reply(M::from(value)),
        Err(error) => Err(error.to_status()),
    }
}

fn yes_or_no(outcome: Result<bool, RpcError>) -> Reply<proto::BoolReply> {
    match outcome {
        Ok(value) => reply(proto::BoolReply { value }),
        Err(error) => Err(error.to_status()),
    }
}

impl Edge {
    fn caller<T>(&self, request: &Request<T>, what: &str) -> Result<Caller, Status> {
        let connection = request
            .extensions()
            .get::<access::Connection>()
            .ok_or_else(|| RpcError::internal("the connection has no address").to_status())?;
        let authorization = request.metadata().get("authorization");
        let traceparent = request.metadata().get("traceparent");
        self.desk
            .identify(
                connection,
                authorization.map(|value| value.as_bytes()),
                GRPC_INTERFACE,
                what,
                traceparent.map(|value| value.as_bytes()),
            )
            .map_err(|error| error.to_status())
    }
}

#[tonic::async_trait]
impl NodeRpc for Edge {
    async fn hello(&self, request: Request<proto::HelloRequest>) -> Reply<proto::HelloReply> {
        let caller = self.caller(&request, "hello")?;
        self.desk
            .hello(&caller)
            .map_err(|error| error.to_status())?;
        let theirs = request.get_ref().api_version;
        if theirs == 0 || theirs > API_VERSION {
            tracing::debug!(
                theirs,
                ours = API_VERSION,
                "a client speaks another version of the API"
            );
        }
        reply(proto::HelloReply {
            api_version: API_VERSION,
            release: self.desk.release().to_owned(),
            legal_name: self.desk.legal_name().to_string(),
        })
    }

    async fn start_flow(
        &self,
        request: Request<proto::StartFlowRequest>,
    ) -> Reply<proto::FlowHandle> {
        let caller = self.caller(&request, "startFlow")?;
        let start = api::StartFlow::try_from(request.into_inner()).map_err(invalid)?;
        answer(self.desk.start_flow(&caller, start).await)
    }

    async fn flow_status(
        &self,
        request: Request<proto::FlowStatusRequest>,
    ) -> Reply<proto::FlowStatus> {
        let caller = self.caller(&request, "flowStatus")?;
        let request = request.into_inner();
        let key = api::FlowKey::try_from(request.key).map_err(invalid)?;
        let wait = Duration::from_millis(request.wait_millis);
        tokio::select! {
            outcome = self.desk.flow_status(&caller, key, wait) => answer(outcome),
            () = self.shutdown.requested(), if !wait.is_zero() => Err(desk::stopping().to_status()),
        }
    }

    async fn remove_client_id(
        &self,
        request: Request<proto::ClientIdRequest>,
    ) -> Reply<proto::BoolReply> {
        let caller = self.caller(&request, "removeClientId")?;
        let id = wire::client_id(request.into_inner().client_id).map_err(invalid)?;
        yes_or_no(self.desk.remove_client_id(&caller, id).await)
    }

    async fn finished_flows_with_client_ids(
        &self,
        request: Request<proto::Empty>,
    ) -> Reply<proto::FinishedFlows> {
        let caller = self.caller(&request, "finishedFlowsWithClientIds")?;
        answer(self.desk.finished_flows_with_client_ids(&caller).await)
    }

    async fn list_flows(&self, request: Request<proto::Empty>) -> Reply<proto::FlowList> {
        let caller = self.caller(&request, "stateMachinesSnapshot")?;
        answer(self.desk.flows(&caller).await)
    }

    type WatchFlowsStream = Out<proto::FlowUpdates>;

    async fn watch_flows(&self, request: Request<proto::Empty>) -> Reply<Self::WatchFlowsStream> {
        let caller = self.caller(&request, "stateMachinesFeed")?;
        let feed = FlowFeed::open(&self.desk, &caller, 0, self.shutdown.clone());
        let feed = feed.await.map_err(|error| error.to_status())?;
        let updates = feed.into_stream().map(|update| match update {
            Ok(update) => Ok(proto::FlowUpdates::from(update)),
            Err(error) => Err(error.to_status()),
        });
        Ok(Response::new(Box::pin(updates)))
    }

    async fn kill_flow(&self, request: Request<proto::FlowIdRequest>) -> Reply<proto::BoolReply> {
        let caller = self.caller(&request, "killFlow")?;
        let flow = wire::parsed("flow_id", &request.get_ref().flow_id).map_err(invalid)?;
        yes_or_no(self.desk.kill_flow(&caller, flow).await)
    }

    async fn pause_flow(&self, request: Request<proto::FlowIdRequest>) -> Reply<proto::BoolReply> {
        let caller = self.caller(&request, "pauseFlow")?;
        let flow = wire::parsed("flow_id", &request.get_ref().flow_id).map_err(invalid)?;
        yes_or_no(self.desk.pause_flow(&caller, flow).await)
    }

    async fn retry_flow(&self, request: Request<proto::FlowIdRequest>) -> Reply<proto::BoolReply> {
        let caller = self.caller(&request, "retryFlow")?;
        let flow = wire::parsed("flow_id", &request.get_ref().flow_id).map_err(invalid)?;
        yes_or_no(self.desk.retry_flow(&caller, flow).await)
    }

    async fn control_flows(
        &self,
        request: Request<proto::ControlFlowsRequest>,
    ) -> Reply<proto::CountReply> {
        let caller = self.caller(&request, "controlFlows")?;
        let action = api::FlowControl::try_from(request.get_ref().action()).map_err(invalid)?;
        match self.desk.control_flows(&caller, action).await {
            Ok(count) => reply(proto::CountReply { count }),
            Err(error) => Err(error.to_status()),
        }
    }

    async fn hospital(&self, request: Request<proto::Empty>) -> Reply<proto::HospitalList> {
        let caller = self.caller(&request, "hospitalSnapshot")?;
        answer(self.desk.hospital(&caller).await)
    }

    async fn dump_checkpoints(&self, request: Request<proto::Empty>) -> Reply<proto::Checkpoints> {
        let caller = self.caller(&request, "dumpCheckpoints")?;
        answer(self.desk.dump_checkpoints(&caller).await)
    }

    async fn registered_flows(
        &self,
        request: Request<proto::Empty>,
    ) -> Reply<proto::RegisteredFlowsReply> {
        let caller = self.caller(&request, "registeredFlows")?;
        answer(self.desk.registered_flows(&caller).await)
    }

    async fn vault_query(
        &self,
        request: Request<proto::VaultQueryRequest>,
    ) -> Reply<proto::VaultPage> {
        let caller = self.caller(&request, "vaultQuery")?;
        let query = wire::json("query_json", &request.get_ref().query_json).map_err(invalid)?;
        answer(self.desk.vault_query(&caller, query).await)
    }

    type VaultTrackStream = Out<proto::VaultUpdate>;

    async fn vault_track(
        &self,
        request: Request<proto::VaultTrackRequest>,
    ) -> Reply<Self::VaultTrackStream> {
        let caller = self.caller(&request, "vaultTrack")?;
        let request = request.into_inner();
        let after = (!request.from_now).then_some(Cursor(request.cursor));
        let feed = VaultFeed::open(&self.desk, &caller, after, self.shutdown.clone()).await;
        let feed = feed.map_err(|error| error.to_status())?;
        let position = proto::VaultUpdate {
            cursor: feed.position().0,
            position_only: true,
            ..Default::default()
        };
        let updates = feed.into_stream().map(|update| match update {
            Ok(update) => Ok(fitted(proto::VaultUpdate::from(update))),
            Err(error) => Err(error.to_status()),
        });
        let updates = stream::iter([Ok(position)]).chain(updates);
        Ok(Response::new(Box::pin(updates)))
    }

    async fn transaction(
        &self,
        request: Request<proto::TransactionRequest>,
    ) -> Reply<proto::TransactionReply> {
        let caller = self.caller(&request, "transaction")?;
        let id = wire::parsed("tx", &request.get_ref().tx).map_err(invalid)?;
        answer(self.desk.transaction(&caller, id).await)
    }

    async fn upload_attachment(
        &self,
        request: Request<Streaming<proto::AttachmentChunk>>,
    ) -> Reply<proto::AttachmentIdReply> {
        let caller = self.caller(&request, "uploadAttachment")?;
        self.desk
            .admit_upload(&caller)
            .await
            .map_err(|error| error.to_status())?;
        let mut chunks = request.into_inner();
        let mut bytes = Vec::new();
        while let Some(chunk) = chunks.message().await? {
            desk::attachment_size(bytes.len() + chunk.data.len().max(1))
                .map_err(|error| error.to_status())?;
            bytes.extend_from_slice(&chunk.data);
        }
        match self.desk.upload_attachment(&caller, bytes).await {
            Ok(id) => reply(proto::AttachmentIdReply { id: id.to_string() }),
            Err(error) => Err(error.to_status()),
        }
    }

    async fn attachment_exists(
        &self,
        request: Request<proto::AttachmentRequest>,
    ) -> Reply<proto::BoolReply> {
        let caller = self.caller(&request, "attachmentExists")?;
        let id = wire::parsed("id", &request.get_ref().id).map_err(invalid)?;
        yes_or_no(self.desk.attachment_exists(&caller, id).await)
    }

    type OpenAttachmentStream = Out<proto::AttachmentChunk>;

    async fn open_attachment(
        &self,
        request: Request<proto::AttachmentRequest>,
    ) -> Reply<Self::OpenAttachmentStream> {
        let caller = self.caller(&request, "openAttachment")?;
        let id = wire::parsed("id", &request.get_ref().id).map_err(invalid)?;
        let outcome = self.desk.open_attachment(&caller, id).await;
        let bytes = outcome.map_err(|error| error.to_status())?;
        let chunks: Vec<_> = bytes
            .chunks(api::ATTACHMENT_CHUNK_BYTES)
            .map(|data| {
                Ok(proto::AttachmentChunk {
                    data: data.to_vec(),
                })
            })
            .collect();
        Ok(Response::new(Box::pin(stream::iter(chunks))))
    }

    async fn node_info(&self, request: Request<proto::Empty>) -> Reply<proto::NodeInfoReply> {
        let caller = self.caller(&request, "nodeInfo")?;
        answer(self.desk.node_info(&caller).await)
    }

    async fn network_map_snapshot(
        &self,
        request: Request<proto::Empty>,
    ) -> Reply<proto::NetworkMap> {
        let caller = self.caller(&request, "networkMapSnapshot")?;
        answer(self.desk.network_map_snapshot(&caller).await)
    }

    async fn notary_identities(&self, request: Request<proto::Empty>) -> Reply<proto::PartyList> {
        let caller = self.caller(&request, "notaryIdentities")?;
        answer(self.desk.notary_identities(&caller).await)
    }

    async fn party_from_name(
        &self,
        request: Request<proto::PartyFromNameRequest>,
    ) -> Reply<proto::PartyReply> {
        let caller = self.caller(&request, "wellKnownPartyFromX500Name")?;
        let name = wire::parsed("name", &request.get_ref().name).map_err(invalid)?;
        match self.desk.party_from_name(&caller, name).await {
            Ok(party) => reply(proto::PartyReply {
                party: party.map(wire::party_out),
            }),
            Err(error) => Err(error.to_status()),
        }
    }

    async fn current_node_time(&self, request: Request<proto::Empty>) -> Reply<proto::TimeReply> {
        let caller = self.caller(&request, "currentNodeTime")?;
        match self.desk.current_node_time(&caller).await {
            Ok(now) => reply(proto::TimeReply {
                micros: now.as_micros(),
            }),
            Err(error) => Err(error.to_status()),
        }
    }

    async fn diagnostics(&self, request: Request<proto::Empty>) -> Reply<proto::DiagnosticsReply> {
        let caller = self.caller(&request, "nodeDiagnosticInfo")?;
        answer(self.desk.diagnostics(&caller).await)
    }

    async fn set_flows_draining_mode(
        &self,
        request: Request<proto::SetDrainingRequest>,
    ) -> Reply<proto::Empty> {
        let caller = self.caller(&request, "setFlowsDrainingModeEnabled")?;
        let enabled = request.get_ref().enabled;
        let outcome = self.desk.set_flows_draining_mode(&caller, enabled).await;
        outcome.map_err(|error| error.to_status())?;
        reply(proto::Empty {})
    }

    async fn is_flows_draining_mode(
        &self,
        request: Request<proto::Empty>,
    ) -> Reply<proto::BoolReply> {
        let caller = self.caller(&request, "isFlowsDrainingModeEnabled")?;
        yes_or_no(self.desk.is_flows_draining_mode(&caller).await)
    }

    async fn graceful_shutdown(
        &self,
        request: Request<proto::ShutdownRequest>,
    ) -> Reply<proto::Empty> {
        let caller = self.caller(&request, "terminate")?;
        let outcome = self
            .desk
            .graceful_shutdown(&caller, request.get_ref().drain)
            .await;
        outcome.map_err(|error| error.to_status())?;
        reply(proto::Empty {})
    }
}
