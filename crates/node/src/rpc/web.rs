//! The web edge: the API as JSON over HTTP, its description, and a page at `/` for people and for
//! load balancers' probes.
//!
//! The routes are those of [`openapi::ROUTES`], so that what is described is what is served.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, FromRequestParts, Path, Request, State};
use axum::http::header::{
    ACCEPT, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HOST, ORIGIN, WWW_AUTHENTICATE,
};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::middleware::{self, Next};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter, get, on};
use axum::{Extension, Json, Router};
use futures::stream::{Stream, StreamExt};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use quorate_ledger::vault::{Cursor, VaultQuery};
use quorate_rpc::{ErrorCode, MAX_MESSAGE_BYTES, Method, RpcError, api};
use quorate_runtime::{Shutdown, Tasks};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::WEB_INTERFACE;
use super::access::{self, Caller};
use super::desk::{self, Desk};
use super::feed::{FlowFeed, VaultFeed};
use super::listen::{BindError, Connection, ListenOptions, Port};
use super::openapi::{self, ROUTES, Verb};

/// How long a client may take to send the head of a request, the first one or the next one on the
/// same connection.
const HEADER_PATIENCE: Duration = Duration::from_secs(15);
/// How long a client may take to send a request's body.
const BODY_PATIENCE: Duration = Duration::from_secs(60);
/// Pause between signs of life on a stream of events.
const EVENT_KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The web port, open but not yet served.
pub struct WebServer {
    port: Port,
}

impl WebServer {
    /// Opens the port.
    pub async fn bind(options: &ListenOptions) -> Result<Self, BindError> {
        let port = Port::open("web server", options, &[b"http/1.1"]).await?;
        Ok(Self { port })
    }

    /// The address that was opened, with the real port.
    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// Serves until the owner stops. Requests under way then are finished; streams of events and
    /// long polls are ended.
    pub fn serve(self, tasks: &Tasks, desk: Arc<Desk>) {
        let owner = tasks.child("web");
        let shutdown = owner.shutdown().clone();
        let router = router(Web { desk, shutdown });
        let mut connections = self.port.connections(&owner);
        let tasks = owner.clone();
        owner.spawn_essential("serve", async move {
            while let Some(connection) = connections.recv().await {
                let name = format!("connection from {}", connection.info().peer());
                let shutdown = tasks.shutdown().clone();
                tasks.spawn(name, serve_connection(connection, router.clone(), shutdown));
            }
        });
    }
}

/// Work, not waiting: a request that has begun is finished within the owner's patience.
async fn serve_connection(connection: Connection, router: Router, shutdown: Shutdown) {
    let router = router.layer(Extension(connection.info().clone()));
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_PATIENCE)
        .serve_connection(TokioIo::new(connection), TowerToHyperService::new(router));
    tokio::pin!(serving);
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = shutdown.requested() => {
            serving.as_mut().graceful_shutdown();
            serving.as_mut().await
        }
    };
    if let Err(error) = ended {
        // Probes and vanished clients: their business, not ours.
        tracing::debug!(%error, "a web connection ended early");
    }
}

#[derive(Clone)]
struct Web {
    desk: Arc<Desk>,
    shutdown: Shutdown,
}

fn router(web: Web) -> Router {
    let mut router = Router::new()
        .route("/", get(page))
        .route("/openapi.json", get(description));
    for route in &ROUTES {
        let path = format!("{}{}", openapi::PREFIX, route.path);
        router = router.route(&path, handler(route.method, route.verb));
    }
    router
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_verb)
        .layer(middleware::from_fn(same_origin))
        .layer(middleware::map_response(headers))
        .with_state(web)
}

fn handler(method: Method, verb: Verb) -> MethodRouter<Web> {
    let filter = match verb {
        Verb::Get => MethodFilter::GET,
        Verb::Post => MethodFilter::POST,
        Verb::Put => MethodFilter::PUT,
        Verb::Delete => MethodFilter::DELETE,
    };
    match method {
        Method::StartFlow => on(filter, start_flow),
        Method::FlowStatus => on(filter, flow_status),
        Method::ReattachFlowWithClientId => on(filter, reattach),
        Method::RemoveClientId => on(filter, remove_client_id),
        Method::FinishedFlowsWithClientIds => on(filter, finished_flows),
        Method::StateMachinesSnapshot => on(filter, flows),
        Method::StateMachinesFeed => on(filter, flow_updates),
        Method::KillFlow => on(filter, kill_flow),
        Method::PauseFlow => on(filter, pause_flow),
        Method::RetryFlow => on(filter, retry_flow),
        Method::PauseAllFlows => control(filter, api::FlowControl::PauseAll),
        Method::PauseAllHospitalizedFlows => {
            control(filter, api::FlowControl::PauseAllHospitalized)
        }
        Method::RetryAllPausedFlows => control(filter, api::FlowControl::RetryAllPaused),
        Method::RetryAllPausedHospitalizedFlows => {
            control(filter, api::FlowControl::RetryAllPausedHospitalized)
        }
        Method::HospitalSnapshot => on(filter, hospital),
        Method::DumpCheckpoints => on(filter, dump_checkpoints),
        Method::RegisteredFlows => on(filter, registered_flows),
        Method::VaultQuery => on(filter, vault_query),
        Method::VaultTrack => on(filter, vault_updates),
        Method::Transaction => on(filter, transaction),
        Method::UploadAttachment => on(filter, upload_attachment),
        Method::AttachmentExists => on(filter, attachment_exists),
        Method::OpenAttachment => on(filter, open_attachment),
        Method::NodeInfo => on(filter, node_info),
        Method::NetworkMapSnapshot => on(filter, network_map),
        Method::NotaryIdentities => on(filter, notaries),
        Method::WellKnownPartyFromX500Name => on(filter, party),
        Method::CurrentNodeTime => on(filter, time),
        Method::NodeDiagnosticInfo => on(filter, diagnostics),
        Method::SetFlowsDrainingModeEnabled => on(filter, set_draining),
        Method::IsFlowsDrainingModeEnabled => on(filter, is_draining),
        Method::Terminate => on(filter, terminate),
    }
}

/// An error as an answer: `{"error": {"code", "message", "retryable", "remedy"}}`.
struct Refusal(RpcError);

impl From<RpcError> for Refusal {
    fn from(error: RpcError) -> Self {
        Self(error)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.code.http_status())
            .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(json!({ "error": self.0 }))).into_response();
        if status == StatusCode::UNAUTHORIZED {
            let challenge = HeaderValue::from_static("Basic realm=\"quorate\", charset=\"UTF-8\"");
            response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

type Outcome<T> = Result<Json<T>, Refusal>;

fn json_of<T>(outcome: Result<T, RpcError>) -> Outcome<T> {
    outcome.map(Json).map_err(Refusal)
}

/// The caller, known before anything else of the request is looked at.
struct Who(Caller);

impl FromRequestParts<Web> for Who {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, web: &Web) -> Result<Self, Refusal> {
        let connection = parts
            .extensions
            .get::<access::Connection>()
            .ok_or_else(|| RpcError::internal("the connection has no address"))?;
        let authorization = parts.headers.get(AUTHORIZATION).map(HeaderValue::as_bytes);
        let traceparent = parts.headers.get("traceparent").map(HeaderValue::as_bytes);
        let path = parts.uri.path();
        let caller =
            web.desk
                .identify(connection, authorization, WEB_INTERFACE, path, traceparent)?;
        Ok(Self(caller))
    }
}

/// A JSON body.
struct Input<T>(T);

impl<T: DeserializeOwned> FromRequest<Web> for Input<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, _: &Web) -> Result<Self, Refusal> {
        let content_type = request.headers().get(CONTENT_TYPE);
        let is_json = content_type
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split(';').next())
            .is_some_and(|value| value.trim().eq_ignore_ascii_case("application/json"));
        if !is_json {
            return Err(RpcError::invalid("the body is not declared as JSON")
                .with_remedy("send the header Content-Type: application/json")
                .into());
        }
        let bytes = body(request.into_body(), MAX_MESSAGE_BYTES).await?;
        let value = serde_json::from_slice(&bytes)
            .map_err(|error| RpcError::invalid(format!("the body: {error}")))?;
        Ok(Self(value))
    }
}

async fn body(body: Body, limit: usize) -> Result<Bytes, RpcError> {
    match tokio::time::timeout(BODY_PATIENCE, axum::body::to_bytes(body, limit)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(_)) => Err(RpcError::new(
            ErrorCode::TooLarge,
            format!("the body ended early or has more than {limit} bytes"),
        )),
        Err(_) => Err(RpcError::new(
            ErrorCode::TimedOut,
            "the body did not come in time",
        )),
    }
}

/// The part of the URL after `?`.
struct Query<T>(T);

impl<T: DeserializeOwned> FromRequestParts<Web> for Query<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &Web) -> Result<Self, Refusal> {
        match axum::extract::Query::try_from_uri(&parts.uri) {
            Ok(axum::extract::Query(value)) => Ok(Self(value)),
            Err(error) => Err(RpcError::invalid(error.body_text()).into()),
        }
    }
}

fn in_path<T>(name: &str, text: &str) -> Result<T, RpcError>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    text.parse()
        .map_err(|error| RpcError::invalid(format!("{name}: {error}")))
}

/// A browser that knows a password must not be led to use it by a page of somebody else.
async fn same_origin(request: Request, next: Next) -> Response {
    if is_foreign(request.headers()) {
        let error = RpcError::new(
            ErrorCode::PermissionDenied,
            "requests from pages of other origins are not served",
        );
        return Refusal(error).into_response();
    }
    next.run(request).await
}

fn is_foreign(headers: &HeaderMap) -> bool {
    let header = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    headers.contains_key(ORIGIN) && {
        let authority = header(ORIGIN).and_then(|origin| origin.split_once("://"));
        authority.is_none_or(|(_, authority)| header(HOST) != Some(authority))
    }
}

async fn headers(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(
        HeaderName::from_static("x-content-type-options"),
        HeaderValue::from_static("nosniff"),
    );
    headers.insert(
        HeaderName::from_static("content-security-policy"),
        HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'"),
    );
    response
}

async fn no_such_path() -> Refusal {
    Refusal(
        RpcError::not_found("there is nothing at this path")
            .with_remedy("/openapi.json describes what there is"),
    )
}

async fn no_such_verb() -> Response {
    let error = RpcError::invalid("this path is not used with this HTTP method")
        .with_remedy("/openapi.json describes how it is used");
    let mut response = Refusal(error).into_response();
    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    response
}

/// 200 where clients should go; that is all a load balancer looks at.
async fn page(State(web): State<Web>) -> (StatusCode, Html<String>) {
    let (status, state) = match web.desk.ready() {
        Ok(()) => (StatusCode::OK, "serving".to_owned()),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, error.message),
    };
    let name = escaped(&web.desk.legal_name().to_string());
    let state = escaped(&state);
    let release = escaped(web.desk.release());
    let page = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{name}</title>\
         <style>body{{font:16px/1.5 system-ui,sans-serif;max-width:40em;margin:4em auto;padding:0 1em}}</style>\
         <h1>{name}</h1><p>Quorate node, release {release}: <b>{state}</b>.</p>\
         <p>The API is below <code>{}</code>; <a href=\"/openapi.json\">openapi.json</a> describes it.</p></html>",
        openapi::PREFIX
    );
    (status, Html(page))
}

fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c => safe.push(c),
        }
    }
    safe
}

async fn description(State(web): State<Web>) -> Json<serde_json::Value> {
    Json(openapi::description(web.desk.release()))
}

/// How long to wait for something to happen.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Wait {
    #[serde(default)]
    wait_millis: u64,
}

impl Wait {
    fn time(&self) -> Duration {
        Duration::from_millis(self.wait_millis)
    }
}

/// Long polls end when this instance stops, with an answer that sends the client elsewhere.
async fn unless_stopping<T>(
    web: &Web,
    work: impl Future<Output = Result<T, RpcError>>,
) -> Result<T, RpcError> {
    tokio::select! {
        outcome = work => outcome,
        () = web.shutdown.requested() => Err(desk::stopping()),
    }
}

async fn start_flow(
    State(web): State<Web>,
    Who(caller): Who,
    Input(request): Input<api::StartFlow>,
) -> Outcome<api::FlowHandle> {
    json_of(web.desk.start_flow(&caller, request).await)
}

async fn flow_status(
    State(web): State<Web>,
    Who(caller): Who,
    Path(flow): Path<String>,
    Query(wait): Query<Wait>,
) -> Outcome<api::FlowStatus> {
    let key = api::FlowKey::Flow(in_path("flowId", &flow)?);
    let work = web.desk.flow_status(&caller, key, wait.time());
    json_of(unless_stopping(&web, work).await)
}

fn client_id(text: String) -> Result<api::ClientId, RpcError> {
    api::ClientId::new(text).map_err(|error| RpcError::invalid(error.to_string()))
}

async fn reattach(
    State(web): State<Web>,
    Who(caller): Who,
    Path(id): Path<String>,
    Query(wait): Query<Wait>,
) -> Outcome<api::FlowStatus> {
    let key = api::FlowKey::Client(client_id(id)?);
    let work = web.desk.flow_status(&caller, key, wait.time());
    json_of(unless_stopping(&web, work).await)
}

async fn remove_client_id(
    State(web): State<Web>,
    Who(caller): Who,
    Path(id): Path<String>,
) -> Outcome<bool> {
    json_of(web.desk.remove_client_id(&caller, client_id(id)?).await)
}

async fn finished_flows(
    State(web): State<Web>,
    Who(caller): Who,
) -> Outcome<Vec<api::FinishedFlow>> {
    json_of(web.desk.finished_flows_with_client_ids(&caller).await)
}

async fn flows(State(web): State<Web>, Who(caller): Who) -> Outcome<Vec<api::FlowStatus>> {
    json_of(web.desk.flows(&caller).await)
}

async fn kill_flow(
    State(web): State<Web>,
    Who(caller): Who,
    Path(flow): Path<String>,
) -> Outcome<bool> {
    let flow = in_path("flowId", &flow)?;
    json_of(web.desk.kill_flow(&caller, flow).await)
}

async fn pause_flow(
    State(web): State<Web>,
    Who(caller): Who,
    Path(flow): Path<String>,
) -> Outcome<bool> {
    let flow = in_path("flowId", &flow)?;
    json_of(web.desk.pause_flow(&caller, flow).await)
}

async fn retry_flow(
    State(web): State<Web>,
    Who(caller): Who,
    Path(flow): Path<String>,
) -> Outcome<bool> {
    let flow = in_path("flowId", &flow)?;
    json_of(web.desk.retry_flow(&caller, flow).await)
}

fn control(filter: MethodFilter, action: api::FlowControl) -> MethodRouter<Web> {
    on(
        filter,
        move |State(web): State<Web>, Who(caller): Who| async move {
            json_of(web.desk.control_flows(&caller, action).await)
        },
    )
}

async fn hospital(State(web): State<Web>, Who(caller): Who) -> Outcome<Vec<api::HospitalRecord>> {
    json_of(web.desk.hospital(&caller).await)
}

async fn dump_checkpoints(
    State(web): State<Web>,
    Who(caller): Who,
) -> Outcome<Vec<api::Checkpoint>> {
    json_of(web.desk.dump_checkpoints(&caller).await)
}

async fn registered_flows(
    State(web): State<Web>,
    Who(caller): Who,
) -> Outcome<Vec<api::RegisteredFlow>> {
    json_of(web.desk.registered_flows(&caller).await)
}

async fn vault_query(
    State(web): State<Web>,
    Who(caller): Who,
    Input(query): Input<VaultQuery>,
) -> Outcome<api::VaultPage> {
    json_of(web.desk.vault_query(&caller, query).await)
}

fn wants_events(headers: &HeaderMap) -> bool {
    let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok());
    accept.is_some_and(|value| value.contains("text/event-stream"))
}

/// The cursor after which a browser's `EventSource` wants to continue.
fn last_event(headers: &HeaderMap) -> Result<Option<u64>, RpcError> {
    let Some(value) = headers.get("last-event-id") else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or_default();
    in_path("Last-Event-ID", text).map(Some)
}

fn events<T: serde::Serialize + 'static>(
    updates: impl Stream<Item = Result<T, RpcError>> + Send + 'static,
    cursor: fn(&T) -> u64,
) -> Response {
    let events = updates.map(move |update| match update {
        Ok(update) => Event::default()
            .id(cursor(&update).to_string())
            .json_data(update),
        Err(error) => Event::default().event("error").json_data(error),
    });
    Sse::new(events)
        .keep_alive(KeepAlive::new().interval(EVENT_KEEP_ALIVE))
        .into_response()
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct VaultPoll {
    cursor: Option<u64>,
    limit: Option<usize>,
    #[serde(default)]
    wait_millis: u64,
}

async fn vault_updates(
    State(web): State<Web>,
    Who(caller): Who,
    Query(poll): Query<VaultPoll>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    if wants_events(&headers) {
        let after = last_event(&headers)?.or(poll.cursor).map(Cursor);
        let feed = VaultFeed::open(&web.desk, &caller, after, web.shutdown.clone()).await?;
        return Ok(events(feed.into_stream(), |update| update.cursor.0));
    }
    let wait = Duration::from_millis(poll.wait_millis);
    let after = poll.cursor.map(Cursor);
    let work = web.desk.vault_updates(&caller, after, poll.limit, wait);
    let updates = unless_stopping(&web, work).await?;
    Ok(Json(updates).into_response())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FlowPoll {
    #[serde(default)]
    cursor: u64,
    #[serde(default)]
    wait_millis: u64,
}

async fn flow_updates(
    State(web): State<Web>,
    Who(caller): Who,
    Query(poll): Query<FlowPoll>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    if wants_events(&headers) {
        let after = last_event(&headers)?.unwrap_or(poll.cursor);
        let feed = FlowFeed::open(&web.desk, &caller, after, web.shutdown.clone()).await?;
        return Ok(events(feed.into_stream(), |update| update.cursor));
    }
    let wait = Duration::from_millis(poll.wait_millis);
    let work = web.desk.flow_updates(&caller, poll.cursor, wait);
    let updates = unless_stopping(&web, work).await?;
    Ok(Json(updates).into_response())
}

async fn transaction(
    State(web): State<Web>,
    Who(caller): Who,
    Path(id): Path<String>,
) -> Outcome<api::Transaction> {
    let id = in_path("id", &id)?;
    json_of(web.desk.transaction(&caller, id).await)
}

async fn upload_attachment(
    State(web): State<Web>,
    Who(caller): Who,
    request: Request,
) -> Result<(StatusCode, Json<serde_json::Value>), Refusal> {
    web.desk.admit_upload(&caller).await?;
    let bytes = body(request.into_body(), api::MAX_ATTACHMENT_BYTES).await?;
    let id = web.desk.upload_attachment(&caller, bytes.into()).await?;
    Ok((StatusCode::CREATED, Json(json!({ "id": id }))))
}

async fn attachment_exists(
    State(web): State<Web>,
    Who(caller): Who,
    Path(id): Path<String>,
) -> Outcome<bool> {
    let id = in_path("id", &id)?;
    json_of(web.desk.attachment_exists(&caller, id).await)
}

async fn open_attachment(
    State(web): State<Web>,
    Who(caller): Who,
    Path(id): Path<String>,
) -> Result<Response, Refusal> {
    let id = in_path("id", &id)?;
    let bytes = web.desk.open_attachment(&caller, id).await?;
    let kind = HeaderValue::from_static("application/octet-stream");
    Ok(([(CONTENT_TYPE, kind)], bytes).into_response())
}

async fn node_info(State(web): State<Web>, Who(caller): Who) -> Outcome<api::NodeInfo> {
    json_of(web.desk.node_info(&caller).await)
}

async fn network_map(State(web): State<Web>, Who(caller): Who) -> Outcome<Vec<api::NodeInfo>> {
    json_of(web.desk.network_map_snapshot(&caller).await)
}

async fn notaries(
    State(web): State<Web>,
    Who(caller): Who,
) -> Outcome<Vec<quorate_identity::Party>> {
    json_of(web.desk.notary_identities(&caller).await)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PartyName {
    name: String,
}

async fn party(
    State(web): State<Web>,
    Who(caller): Who,
    Query(PartyName { name }): Query<PartyName>,
) -> Outcome<Option<quorate_identity::Party>> {
    let name = in_path("name", &name)?;
    json_of(web.desk.party_from_name(&caller, name).await)
}

async fn time(State(web): State<Web>, Who(caller): Who) -> Outcome<quorate_ledger::Timestamp> {
    json_of(web.desk.current_node_time(&caller).await)
}

async fn diagnostics(State(web): State<Web>, Who(caller): Who) -> Outcome<api::Diagnostics> {
    json_of(web.desk.diagnostics(&caller).await)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Draining {
    enabled: bool,
}

async fn set_draining(
    State(web): State<Web>,
    Who(caller): Who,
    Input(draining): Input<Draining>,
) -> Result<StatusCode, Refusal> {
    let enabled = draining.enabled;
    web.desk.set_flows_draining_mode(&caller, enabled).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn is_draining(State(web): State<Web>, Who(caller): Who) -> Outcome<bool> {
    json_of(web.desk.is_flows_draining_mode(&caller).await)
}

async fn terminate(
    State(web): State<Web>,
    Who(caller): Who,
    Input(shutdown): Input<api::Shutdown>,
) -> Result<StatusCode, Refusal> {
    web.desk.graceful_shutdown(&caller, shutdown.drain).await?;
    Ok(StatusCode::ACCEPTED)
}
