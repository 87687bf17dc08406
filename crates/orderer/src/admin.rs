//! The channel participation REST API, `/participation/v1/channels`: what `osnadmin` talks to.
//!
//! [`router`] turns requests into calls of [`Participation`] and its answers into Fabric's statuses, headers and bodies.
//! It knows HTTP and nothing of channels; whether a block may be joined is decided behind the trait, by the registrar.

mod form;

use std::fmt;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::future::BoxFuture;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, StatusCode, header};
use quorate_fabric::envelope::ChannelId;
use quorate_runtime::Entropy;
use serde::Serialize;

use crate::https::{REQUEST_ID, go_json, json_answer, json_error, not_found, request_id};
use crate::options::ChannelParticipation;
use crate::replication::Progress;
use crate::store::Pruned;

/// What the API needs to know and do about channels.
pub trait Participation: Send + Sync + 'static {
    /// The channels of this orderer.
    fn list(&self) -> ChannelList;

    /// One channel, or `None` when it does not exist.
    fn info(&self, channel: &str) -> Option<ChannelInfo>;

    /// How far the channel is in fetching blocks, while it is behind.
    fn progress(&self, channel: &str) -> Option<Progress> {
        let _ = channel;
        None
    }

    /// Joins the channel of `block`, which is the encoded config block as it was sent. It has not been looked at.
    fn join(&self, block: Bytes) -> BoxFuture<'_, Result<ChannelInfo, JoinError>>;

    /// Removes old blocks of a channel: whole block files that hold nothing but blocks below `below`. Not one of Fabric's
    /// operations.
    fn prune<'a>(
        &'a self,
        channel: &'a str,
        below: u64,
    ) -> BoxFuture<'a, Result<Pruned, PruneError>>;

    /// Removes a channel and its data. The name has the form of a channel's name.
    fn remove<'a>(&'a self, channel: &'a str) -> BoxFuture<'a, Result<(), RemoveError>>;
}

/// The names of all channels.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ChannelList {
    /// The legacy system channel.
    pub system_channel: Option<String>,
    /// The application channels, in the order in which they are shown.
    pub channels: Vec<String>,
}

/// What is shown about a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelInfo {
    /// The channel's name.
    pub name: String,
    /// What this orderer is to the channel.
    pub consensus_relation: ConsensusRelation,
    /// What it is doing there.
    pub status: ChannelStatus,
    /// How many blocks it has.
    pub height: u64,
}

/// What an orderer is to a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConsensusRelation {
    /// A member of its cluster.
    Consenter,
    /// It replicates the channel.
    Follower,
    /// It follows the configuration only; with a system channel.
    ConfigTracker,
    /// Fabric's word for consensus types that have no members.
    Other,
}

impl ConsensusRelation {
    /// Fabric's word.
    pub fn as_str(self) -> &'static str {
        match self {
            ConsensusRelation::Consenter => "consenter",
            ConsensusRelation::Follower => "follower",
            ConsensusRelation::ConfigTracker => "config-tracker",
            ConsensusRelation::Other => "other",
        }
    }

    /// The value of the metric `participation_consensus_relation`.
    pub fn gauge(self) -> i64 {
        match self {
            ConsensusRelation::Other => 0,
            ConsensusRelation::Consenter => 1,
            ConsensusRelation::Follower => 2,
            ConsensusRelation::ConfigTracker => 3,
        }
    }
}

impl fmt::Display for ConsensusRelation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What an orderer is doing in a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelStatus {
    /// It serves.
    Active,
    /// It catches up to the block with which it joined.
    Onboarding,
    /// It does nothing there.
    Inactive,
    /// It has stopped because something broke.
    Failed,
}

impl ChannelStatus {
    /// Fabric's word.
    pub fn as_str(self) -> &'static str {
        match self {
            ChannelStatus::Active => "active",
            ChannelStatus::Onboarding => "onboarding",
            ChannelStatus::Inactive => "inactive",
            ChannelStatus::Failed => "failed",
        }
    }

    /// The value of the metric `participation_status`.
    pub fn gauge(self) -> i64 {
        match self {
            ChannelStatus::Inactive => 0,
            ChannelStatus::Active => 1,
            ChannelStatus::Onboarding => 2,
            ChannelStatus::Failed => 3,
        }
    }
}

impl fmt::Display for ChannelStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a channel was not joined. The texts are those of the API's answers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// The bytes are not a block; the text says why.
    #[error("cannot unmarshal file part config-block into a block: {0}")]
    NotABlock(String),
    /// The block is not one to join with.
    #[error("invalid join block: {0}")]
    InvalidBlock(String),
    /// The channel exists.
    #[error("cannot join: channel already exists")]
    ChannelExists,
    /// There is a system channel.
    #[error("cannot join: system channel exists")]
    SystemChannelExists,
    /// It is a system channel's block, and there are application channels.
    #[error("cannot join: application channels already exist")]
    ApplicationChannelsExist,
    /// The channel is being removed.
    #[error("cannot join: channel pending removal")]
    PendingRemoval,
    /// It could not be removed, and nothing but a restart helps.
    #[error("cannot join: channel removal failure")]
    RemovalFailed,
    /// Anything else that went wrong.
    #[error("cannot join: {0}")]
    Failed(String),
}

/// Why a channel was not removed. The texts are those of the API's answers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RemoveError {
    /// There is no such channel.
    #[error("cannot remove: channel does not exist")]
    ChannelNotExist,
    /// There is a system channel, and it is not the one to be removed.
    #[error("cannot remove: system channel exists")]
    SystemChannelExists,
    /// It is being removed already.
    #[error("cannot remove: channel pending removal")]
    PendingRemoval,
    /// A former removal has failed halfway.
    #[error("cannot remove: channel removal failure")]
    RemovalFailed,
    /// Something else went wrong.
    #[error("cannot remove: {0}")]
    Failed(String),
}

/// Why nothing was pruned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PruneError {
    /// There is no such channel, or it cannot be used now.
    #[error("cannot prune: channel does not exist, or has failed")]
    ChannelNotExist,
    /// Something else went wrong.
    #[error("cannot prune: {0}")]
    Failed(String),
}

/// With this query the answer about a channel says how far its replication is. Fabric's tools, which compare the whole
/// answer, never ask so.
const DETAILED: &str = "detailed";

/// Where our own operations on channels are: `<OWN><channel>/prune?below=<block>`.
const OWN: &str = "/quorate/v1/channels/";

/// Where the API begins.
const BASE: &str = "/participation/v1/";

/// Where the channels are.
const CHANNELS: &str = "/participation/v1/channels";

/// The API over `participation`, to be served by an [`Endpoint`](crate::https::Endpoint).
pub fn router(
    options: &ChannelParticipation,
    participation: Arc<dyn Participation>,
    entropy: Entropy,
) -> Router {
    let api = Arc::new(Api {
        enabled: options.enabled,
        max_body: usize::try_from(options.max_request_body_size).unwrap_or(usize::MAX),
        participation,
        entropy,
    });
    Router::new().fallback(move |request: Request<Body>| {
        let api = api.clone();
        async move { api.answer(request).await }
    })
}

struct Api {
    enabled: bool,
    max_body: usize,
    participation: Arc<dyn Participation>,
    entropy: Entropy,
}

#[derive(Serialize)]
struct ShownChannel<'a> {
    name: &'a str,
    url: String,
}

impl<'a> ShownChannel<'a> {
    fn new(name: &'a str) -> Self {
        let url = format!("{CHANNELS}/{name}");
        Self { name, url }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ShownList<'a> {
    system_channel: Option<ShownChannel<'a>>,
    /// Null rather than empty: Fabric's tools compare the text.
    channels: Option<Vec<ShownChannel<'a>>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ShownInfo<'a> {
    #[serde(flatten)]
    channel: ShownChannel<'a>,
    consensus_relation: &'static str,
    status: &'static str,
    height: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    replication: Option<Progress>,
}

impl Api {
    async fn answer(&self, request: Request<Body>) -> Response {
        let path = request.uri().path().to_owned();
        if let Some(rest) = path.strip_prefix(OWN) {
            let (head, _) = request.into_parts();
            return self.own(&head.method, head.uri.query(), rest).await;
        }
        let Some(rest) = path.strip_prefix(BASE) else {
            return if path == BASE.trim_end_matches('/') {
                redirect(request.method(), StatusCode::TEMPORARY_REDIRECT, BASE)
            } else {
                not_found()
            };
        };
        let id = request.headers().get(REQUEST_ID).cloned();
        let mut answer = if !self.enabled {
            json_error(
                StatusCode::SERVICE_UNAVAILABLE,
                "channel participation API is disabled",
            )
        } else if rest.is_empty() {
            if request.method() == Method::GET {
                redirect(request.method(), StatusCode::FOUND, CHANNELS)
            } else {
                StatusCode::METHOD_NOT_ALLOWED.into_response()
            }
        } else if rest == "channels" {
            self.all(request).await
        } else {
            match rest.strip_prefix("channels/") {
                Some(name) if !name.is_empty() && !name.contains('/') => {
                    let (head, _) = request.into_parts();
                    let detailed = head.uri.query() == Some(DETAILED);
                    self.one(&head.method, &head.headers, name, detailed).await
                }
                _ => not_found(),
            }
        };
        let id = id.or_else(|| request_id(&self.entropy).parse().ok());
        if let Some(id) = id {
            answer.headers_mut().insert(REQUEST_ID, id);
        }
        answer
    }

    /// What Fabric's API does not have.
    async fn own(&self, method: &Method, query: Option<&str>, rest: &str) -> Response {
        let Some(name) = rest.strip_suffix("/prune") else {
            return not_found();
        };
        if !self.enabled {
            return json_error(
                StatusCode::SERVICE_UNAVAILABLE,
                "channel participation API is disabled",
            );
        }
        if *method != Method::POST {
            return not_allowed(format_args!("invalid request method: {method}"), "POST");
        }
        if let Err(error) = ChannelId::new(name) {
            return json_error(
                StatusCode::BAD_REQUEST,
                format_args!("invalid channel ID: {error}"),
            );
        }
        let below = query.and_then(|query| {
            let wanted = query
                .split('&')
                .find_map(|part| part.strip_prefix("below="));
            wanted?.parse().ok()
        });
        let Some(below) = below else {
            return json_error(
                StatusCode::BAD_REQUEST,
                "below=NUMBER must say which block is to be the first one kept",
            );
        };
        match self.participation.prune(name, below).await {
            Ok(pruned) => not_stored(json_answer(StatusCode::OK, go_json(&pruned) + "\n")),
            Err(error @ PruneError::ChannelNotExist) => json_error(StatusCode::NOT_FOUND, error),
            Err(error) => json_error(StatusCode::INTERNAL_SERVER_ERROR, error),
        }
    }

    async fn all(&self, request: Request<Body>) -> Response {
        match *request.method() {
            Method::GET => wants_something_else(request.headers()).unwrap_or_else(|| self.list()),
            Method::POST => self.join(request).await,
            ref other => not_allowed(format_args!("invalid request method: {other}"), "GET, POST"),
        }
    }

    async fn one(
        &self,
        method: &Method,
        headers: &HeaderMap,
        name: &str,
        detailed: bool,
    ) -> Response {
        let remove = match *method {
            Method::GET => false,
            Method::DELETE => true,
            ref other => {
                return not_allowed(
                    format_args!("invalid request method: {other}"),
                    "GET, DELETE",
                );
            }
        };
        if let Some(refused) = wants_something_else(headers) {
            return refused;
        }
        if let Err(error) = ChannelId::new(name) {
            return json_error(
                StatusCode::BAD_REQUEST,
                format_args!("invalid channel ID: {error}"),
            );
        }
        if remove {
            match self.participation.remove(name).await {
                Ok(()) => StatusCode::NO_CONTENT.into_response(),
                Err(error) => remove_refused(&error),
            }
        } else {
            match self.participation.info(name) {
                Some(info) => {
                    let progress = detailed
                        .then(|| self.participation.progress(name))
                        .flatten();
                    not_stored(info_answer(StatusCode::OK, &info, progress))
                }
                None => json_error(StatusCode::NOT_FOUND, "channel does not exist"),
            }
        }
    }

    fn list(&self) -> Response {
        let list = self.participation.list();
        let channels: Vec<ShownChannel<'_>> = list
            .channels
            .iter()
            .map(|name| ShownChannel::new(name))
            .collect();
        let shown = ShownList {
            system_channel: list.system_channel.as_deref().map(ShownChannel::new),
            channels: Some(channels).filter(|channels| !channels.is_empty()),
        };
        not_stored(json_answer(StatusCode::OK, go_json(&shown) + "\n"))
    }

    async fn join(&self, request: Request<Body>) -> Response {
        if let Err(refused) = form::is_form(request.headers()) {
            return json_error(StatusCode::BAD_REQUEST, refused);
        }
        if let Some(refused) = wants_something_else(request.headers()) {
            return refused;
        }
        let block = match form::config_block(request, self.max_body).await {
            Ok(block) => block,
            Err(refused) => return json_error(StatusCode::BAD_REQUEST, refused),
        };
        match self.participation.join(block).await {
            Ok(info) => {
                let mut answer = info_answer(StatusCode::CREATED, &info, None);
                let location = format!("{CHANNELS}/{}", info.name);
                set(&mut answer, header::LOCATION, &location);
                answer
            }
            Err(error) => join_refused(&error),
        }
    }
}

fn info_answer(status: StatusCode, info: &ChannelInfo, replication: Option<Progress>) -> Response {
    let shown = ShownInfo {
        channel: ShownChannel::new(&info.name),
        consensus_relation: info.consensus_relation.as_str(),
        status: info.status.as_str(),
        height: info.height,
        replication,
    };
    json_answer(status, go_json(&shown) + "\n")
}

fn join_refused(error: &JoinError) -> Response {
    match error {
        JoinError::ChannelExists => not_allowed(error, "GET, DELETE"),
        JoinError::SystemChannelExists => not_allowed(error, "GET"),
        JoinError::ApplicationChannelsExist => json_error(StatusCode::FORBIDDEN, error),
        JoinError::PendingRemoval => json_error(StatusCode::CONFLICT, error),
        JoinError::RemovalFailed => json_error(StatusCode::INTERNAL_SERVER_ERROR, error),
        JoinError::NotABlock(_) | JoinError::InvalidBlock(_) | JoinError::Failed(_) => {
            json_error(StatusCode::BAD_REQUEST, error)
        }
    }
}

fn remove_refused(error: &RemoveError) -> Response {
    match error {
        RemoveError::ChannelNotExist => json_error(StatusCode::NOT_FOUND, error),
        RemoveError::SystemChannelExists => not_allowed(error, "GET"),
        RemoveError::PendingRemoval => json_error(StatusCode::CONFLICT, error),
        RemoveError::RemovalFailed => json_error(StatusCode::INTERNAL_SERVER_ERROR, error),
        RemoveError::Failed(_) => json_error(StatusCode::BAD_REQUEST, error),
    }
}

/// The refusal of a client that does not take JSON, the only thing that we have.
fn wants_something_else(headers: &HeaderMap) -> Option<Response> {
    let accepted = headers
        .get(header::ACCEPT)
        .map(|accepted| String::from_utf8_lossy(accepted.as_bytes()))
        .unwrap_or_default();
    let fitting = accepted.is_empty()
        || ["application/json", "application/*", "*/*"]
            .iter()
            .any(|kind| accepted.contains(kind));
    (!fitting).then(|| {
        json_error(
            StatusCode::NOT_ACCEPTABLE,
            "response Content-Type is application/json only",
        )
    })
}

fn not_allowed(error: impl fmt::Display, allowed: &'static str) -> Response {
    let mut answer = json_error(StatusCode::METHOD_NOT_ALLOWED, error);
    set(&mut answer, header::ALLOW, allowed);
    answer
}

fn not_stored(mut answer: Response) -> Response {
    set(&mut answer, header::CACHE_CONTROL, "no-store");
    answer
}

/// A redirection as Go's `http.Redirect` words it.
fn redirect(method: &Method, status: StatusCode, location: &str) -> Response {
    let reason = status.canonical_reason().unwrap_or_default();
    let mut answer = if method == Method::GET {
        (
            status,
            [(header::CONTENT_TYPE, "text/html; charset=utf-8")],
            format!("<a href=\"{location}\">{reason}</a>.\n\n"),
        )
            .into_response()
    } else {
        status.into_response()
    };
    set(&mut answer, header::LOCATION, location);
    answer
}

/// Sets a header, unless the value cannot be one: channel names cannot be the reason.
fn set(answer: &mut Response, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        answer.headers_mut().insert(name, value);
    }
}

#[cfg(test)]
mod tests;
