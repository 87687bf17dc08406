//! The operations endpoint, for load balancers, Prometheus and operators, in Hyperledger Fabric's formats.
//!
//! | path | method | answer |
//! |---|---|---|
//! | `/healthz` | GET | 200 `{"status":"OK","time":…}`, or 503 with `failed_checks` |
//! | `/healthz/detailed` | GET | every check with its outcome, and the readiness report |
//! | `/readyz` | GET | 200 only where traffic should go, else 503; JSON with the details |
//! | `/metrics` | GET | Prometheus text |
//! | `/logspec` | GET, PUT | `{"spec":"messaging=debug:info"}`; 204 after a change |
//! | `/version` | GET | `{"CommitSHA":…,"Version":…}` |
//!
//! *Healthy* means that the process should be left alone; *ready* means that it should get traffic. A standby is
//! healthy and not ready. Parts register their checks with [`Health`]; whoever knows the role installs the
//! [`Readiness`] report. The endpoint is open in every role, before and after the others.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Map, Value, json};

use crate::http::{BindError, Server};
use crate::telemetry::LogControl;
use crate::{Clock, Metrics, Tasks};

/// How long one health check may take. One that takes longer has failed.
pub const CHECK_PATIENCE: Duration = Duration::from_secs(5);

/// The largest request body accepted (a logging specification).
const MAX_BODY_BYTES: usize = 16 * 1024;

type Checked = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;
type Check = Arc<dyn Fn() -> Checked + Send + Sync>;

/// The health checks of a process; cheap to clone.
#[derive(Clone, Default)]
pub struct Health {
    checks: Arc<Mutex<BTreeMap<String, Check>>>,
}

impl Health {
    /// No checks yet: healthy.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the check of `component`, or replaces it. It answers the reason of its failure, without secrets: the
    /// endpoint shows it to whoever asks.
    pub fn register<F, A>(&self, component: impl Into<String>, check: F)
    where
        F: Fn() -> A + Send + Sync + 'static,
        A: Future<Output = Result<(), String>> + Send + 'static,
    {
        let check: Check = Arc::new(move || -> Checked { Box::pin(check()) });
        self.checks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(component.into(), check);
    }

    /// Removes the check of `component`, when the part has been stopped on purpose.
    pub fn deregister(&self, component: &str) {
        self.checks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(component);
    }

    /// Runs all checks at once, within [`CHECK_PATIENCE`]; outcome by component. A check that panics takes the request with
    /// it, not the process.
    pub async fn run(&self) -> BTreeMap<String, Result<(), String>> {
        self.run_within(CHECK_PATIENCE).await
    }

    async fn run_within(&self, patience: Duration) -> BTreeMap<String, Result<(), String>> {
        let checks = self
            .checks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let mut outcomes = BTreeMap::new();
        let mut pending: Vec<(String, Checked)> = checks
            .into_iter()
            .map(|(name, check)| (name, check()))
            .collect();
        let deadline = tokio::time::Instant::now() + patience;
        // All were started at the same moment and share the deadline, so a slow one does not make the others late.
        let _ = tokio::time::timeout_at(
            deadline,
            std::future::poll_fn(|context| {
                pending.retain_mut(|(name, checked)| match checked.as_mut().poll(context) {
                    std::task::Poll::Ready(outcome) => {
                        outcomes.insert(std::mem::take(name), outcome);
                        false
                    }
                    std::task::Poll::Pending => true,
                });
                if pending.is_empty() {
                    std::task::Poll::Ready(())
                } else {
                    std::task::Poll::Pending
                }
            }),
        )
        .await;
        for (name, _) in pending {
            outcomes.insert(name, Err(format!("no answer within {patience:?}")));
        }
        outcomes
    }
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(
                self.checks
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .keys(),
            )
            .finish()
    }
}

/// Whether traffic should come here, and what there is to know about it.
#[derive(Debug, Clone, PartialEq)]
pub struct ReadyReport {
    /// 200 or 503.
    pub ready: bool,
    /// One word for the state: `starting`, `active`, `standby`, `stopping` …
    pub status: String,
    /// Further members of the answer: lease holder, since when, how long until takeover.
    pub detail: Map<String, Value>,
}

impl ReadyReport {
    /// A report without details.
    pub fn new(ready: bool, status: impl Into<String>) -> Self {
        Self {
            ready,
            status: status.into(),
            detail: Map::new(),
        }
    }

    /// Adds one detail.
    pub fn with(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.detail.insert(name.into(), value.into());
        self
    }

    /// The answer of `/readyz`.
    pub fn to_json(&self) -> Value {
        let mut body = Map::new();
        body.insert("status".to_owned(), Value::from(self.status.clone()));
        body.insert("ready".to_owned(), Value::from(self.ready));
        for (name, value) in &self.detail {
            body.entry(name.clone()).or_insert_with(|| value.clone());
        }
        Value::Object(body)
    }
}

type Reporter = Arc<dyn Fn() -> ReadyReport + Send + Sync>;

/// The readiness of a process; cheap to clone. Until something else is said: not ready, `starting`.
#[derive(Clone)]
pub struct Readiness {
    reporter: Arc<RwLock<Reporter>>,
}

impl Readiness {
    /// Not ready yet.
    pub fn new() -> Self {
        let starting: Reporter = Arc::new(|| ReadyReport::new(false, "starting"));
        Self {
            reporter: Arc::new(RwLock::new(starting)),
        }
    }

    /// Says something that stays the same until the next call.
    pub fn set(&self, report: ReadyReport) {
        self.report_with(move || report.clone());
    }

    /// Has the report computed at each request (for what changes with time). It must not block.
    pub fn report_with(&self, reporter: impl Fn() -> ReadyReport + Send + Sync + 'static) {
        *self
            .reporter
            .write()
            .unwrap_or_else(PoisonError::into_inner) = Arc::new(reporter);
    }

    /// The report of this moment.
    pub fn report(&self) -> ReadyReport {
        let reporter = self
            .reporter
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        reporter()
    }
}

impl Default for Readiness {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.report().fmt(f)
    }
}

/// What `/version` answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// The program's version.
    pub version: String,
    /// The commit it was built from, or empty.
    pub commit: String,
}

/// What the endpoint shows and changes.
#[derive(Debug, Clone)]
pub struct Operations {
    /// The checks behind `/healthz`.
    pub health: Health,
    /// The report behind `/readyz`.
    pub readiness: Readiness,
    /// The registry behind `/metrics`.
    pub metrics: Metrics,
    /// The levels behind `/logspec`.
    pub logs: LogControl,
    /// The answer of `/version`.
    pub version: Version,
    /// For the time in answers.
    pub clock: Clock,
}

impl Operations {
    /// The endpoint's routes, for those who serve them elsewhere.
    pub fn router(self) -> Router {
        Router::new()
            .route("/healthz", get(healthz))
            .route("/healthz/detailed", get(healthz_detailed))
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics))
            .route("/logspec", get(read_logspec).put(write_logspec))
            .route("/version", get(version))
            .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
            .with_state(Arc::new(self))
    }

    /// Opens `address` and serves there until `tasks` stop. Answers the address with its real port.
    ///
    /// # Errors
    /// The port cannot be opened.
    pub async fn start(
        self,
        tasks: &Tasks,
        address: &str,
    ) -> Result<std::net::SocketAddr, BindError> {
        let server = Server::bind("operations endpoint", address).await?;
        let local = server.address();
        server.serve(tasks, self.router());
        Ok(local)
    }

    fn time(&self) -> String {
        self.clock.rfc3339()
    }
}

async fn healthz(State(operations): State<Arc<Operations>>) -> Response {
    let failed: Vec<Value> = operations
        .health
        .run()
        .await
        .into_iter()
        .filter_map(|(component, outcome)| {
            outcome
                .err()
                .map(|reason| json!({"component": component, "reason": reason}))
        })
        .collect();
    if failed.is_empty() {
        return Json(json!({"status": "OK", "time": operations.time()})).into_response();
    }
    let body = json!({"status": "Service Unavailable", "time": operations.time(), "failed_checks": failed});
    (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
}

async fn healthz_detailed(State(operations): State<Arc<Operations>>) -> Response {
    let outcomes = operations.health.run().await;
    let healthy = outcomes.values().all(Result::is_ok);
    let checks: Map<String, Value> = outcomes
        .into_iter()
        .map(|(component, outcome)| {
            (
                component,
                Value::from(outcome.err().unwrap_or_else(|| "OK".to_owned())),
            )
        })
        .collect();
    let body = json!({
        "status": if healthy { "OK" } else { "Service Unavailable" },
        "time": operations.time(),
        "checks": checks,
        "readiness": operations.readiness.report().to_json(),
    });
    (
        if healthy {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        },
        Json(body),
    )
        .into_response()
}

async fn readyz(State(operations): State<Arc<Operations>>) -> Response {
    let report = operations.readiness.report();
    let status = if report.ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, Json(report.to_json())).into_response()
}

async fn metrics(State(operations): State<Arc<Operations>>) -> Response {
    (
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4")],
        operations.metrics.render(),
    )
        .into_response()
}

async fn read_logspec(State(operations): State<Arc<Operations>>) -> Response {
    Json(json!({"spec": operations.logs.spec().to_string()})).into_response()
}

#[derive(serde::Deserialize)]
struct NewSpec {
    spec: String,
}

async fn write_logspec(
    State(operations): State<Arc<Operations>>,
    body: axum::body::Bytes,
) -> Response {
    let refused =
        |reason: String| (StatusCode::BAD_REQUEST, Json(json!({"error": reason}))).into_response();
    let new: NewSpec = match serde_json::from_slice(&body) {
        Ok(new) => new,
        Err(error) => {
            return refused(format!(
                "the body must be {{\"spec\": \"<specification>\"}}: {error}"
            ));
        }
    };
    match new.spec.parse() {
        Ok(spec) => {
            tracing::info!(%spec, "log levels changed through the operations endpoint");
            operations.logs.set(spec);
            StatusCode::NO_CONTENT.into_response()
        }
        Err(error) => refused(format!("{error}")),
    }
}

async fn version(State(operations): State<Arc<Operations>>) -> Response {
    Json(json!({"CommitSHA": operations.version.commit, "Version": operations.version.version}))
        .into_response()
}

#[cfg(test)]
mod tests;
