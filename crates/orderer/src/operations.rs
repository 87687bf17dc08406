//! The operations endpoint: Fabric's answers to Fabric's tools.
//!
//! | path | method | answer |
//! |---|---|---|
//! | `/healthz` | GET | 200 `{"status":"OK","time":…}`, or 503 with `failed_checks` |
//! | `/version` | GET | `{"CommitSHA":…,"Version":…}` |
//! | `/logspec` | GET, PUT | `{"spec":"orderer.consensus.etcdraft=debug:info"}`; 204 after a change |
//! | `/metrics` | any | Prometheus text; only when `Metrics.Provider` is `prometheus` |
//! | `/healthz/detailed` | GET | ours: every check, the certificates and each channel, see [`status`](crate::status) |
//! | `/readyz` | GET | ours: 200 only where traffic should go, else 503; JSON with the details |
//!
//! With TLS, `/logspec`, `/metrics` and `/healthz/detailed` want a client certificate and answer 401 without one; the others are open to
//! load balancers. Log specifications are read as Fabric reads them.

use std::sync::Arc;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Router};
use futures::future::BoxFuture;
use hyper::{Method, Request, StatusCode, header};
use quorate_runtime::operations::{Health, Readiness, Version};
use quorate_runtime::telemetry::{LogControl, LogSpec};
use quorate_runtime::{Clock, Entropy};
use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::https::{
    Caller, REQUEST_ID, go_json, json_answer, json_error, not_found, read_body, request_id,
};
use crate::metrics::OrdererMetrics;
use crate::status::Overview;

/// The largest request body accepted (a logging specification).
const MAX_BODY_BYTES: usize = 16 * 1024;

/// Asks for an overview of the orderer.
pub type Overviews = Arc<dyn Fn() -> BoxFuture<'static, Overview> + Send + Sync>;

/// What the endpoint shows and changes.
#[derive(Clone)]
pub struct Operations {
    /// The checks behind `/healthz`.
    pub health: Health,
    /// The report behind `/readyz`.
    pub readiness: Readiness,
    /// What `/healthz/detailed` shows.
    pub overview: Overviews,
    /// What `/metrics` shows; `None` when metrics go elsewhere or nowhere.
    pub metrics: Option<OrdererMetrics>,
    /// The levels behind `/logspec`.
    pub logs: LogControl,
    /// The answer of `/version`.
    pub version: Version,
    /// For the time in answers.
    pub clock: Clock,
    /// For the names of requests.
    pub entropy: Entropy,
}

impl Operations {
    /// The endpoint's routes, to be served by an [`Endpoint`](crate::https::Endpoint).
    pub fn router(self) -> Router {
        let operations = Arc::new(self);
        Router::new().fallback(
            move |Extension(caller): Extension<Caller>, request: Request<Body>| {
                let operations = operations.clone();
                async move { operations.answer(caller, request).await }
            },
        )
    }

    async fn answer(&self, caller: Caller, request: Request<Body>) -> Response {
        let path = request.uri().path();
        let secured = matches!(path, "/logspec" | "/metrics" | "/healthz/detailed");
        if secured && caller == (Caller::Tls { certificate: false }) {
            return StatusCode::UNAUTHORIZED.into_response();
        }
        let id = request.headers().get(REQUEST_ID).cloned();
        let mut answer = match path {
            "/healthz" => self.healthz(request.method()).await,
            "/healthz/detailed" => {
                let method = request.method().clone();
                self.detailed(&method).await
            }
            "/version" => self.version(request.method()),
            "/logspec" => self.logspec(request).await,
            "/readyz" => self.readyz(request.method()),
            "/metrics" => match &self.metrics {
                Some(metrics) => show_metrics(metrics),
                None => return not_found(),
            },
            _ => return not_found(),
        };
        let id = id.or_else(|| request_id(&self.entropy).parse().ok());
        if let Some(id) = id {
            answer.headers_mut().insert(REQUEST_ID, id);
        }
        answer
    }

    async fn healthz(&self, method: &Method) -> Response {
        #[derive(Serialize)]
        struct Failed {
            component: String,
            reason: String,
        }
        #[derive(Serialize)]
        struct Status {
            status: &'static str,
            time: String,
            #[serde(skip_serializing_if = "Vec::is_empty")]
            failed_checks: Vec<Failed>,
        }
        if method != Method::GET {
            return StatusCode::METHOD_NOT_ALLOWED.into_response();
        }
        let failed_checks: Vec<Failed> = self
            .health
            .run()
            .await
            .into_iter()
            .filter_map(|(component, outcome)| {
                let reason = outcome.err()?;
                Some(Failed { component, reason })
            })
            .collect();
        let (code, status) = if failed_checks.is_empty() {
            (StatusCode::OK, "OK")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "Service Unavailable")
        };
        let time =
            OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.clock.now_micros()) * 1000)
                .ok()
                .and_then(|time| time.format(&Rfc3339).ok())
                .unwrap_or_default();
        json_answer(
            code,
            go_json(&Status {
                status,
                time,
                failed_checks,
            }),
        )
    }

    async fn detailed(&self, method: &Method) -> Response {
        if *method != Method::GET {
            return StatusCode::METHOD_NOT_ALLOWED.into_response();
        }
        // As a page to be read, it is no check by itself.
        json_answer(StatusCode::OK, go_json(&(self.overview)().await) + "\n")
    }

    fn version(&self, method: &Method) -> Response {
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Shown<'a> {
            #[serde(rename = "CommitSHA")]
            commit: &'a str,
            version: &'a str,
        }
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Refused {
            error: String,
        }
        if method != Method::GET {
            let error = format!("invalid request method: {method}");
            return json_answer(StatusCode::BAD_REQUEST, go_json(&Refused { error }));
        }
        json_answer(
            StatusCode::OK,
            go_json(&Shown {
                commit: &self.version.commit,
                version: &self.version.version,
            }),
        )
    }

    fn readyz(&self, method: &Method) -> Response {
        if method != Method::GET {
            return StatusCode::METHOD_NOT_ALLOWED.into_response();
        }
        let report = self.readiness.report();
        let status = if report.ready {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        json_answer(status, go_json(&report.to_json()))
    }

    async fn logspec(&self, request: Request<Body>) -> Response {
        #[derive(Serialize)]
        struct Shown {
            spec: String,
        }
        match *request.method() {
            Method::GET => {
                let spec = self.logs.spec().to_string();
                json_answer(StatusCode::OK, go_json(&Shown { spec }) + "\n")
            }
            Method::PUT => {
                let body = match read_body(request.into_body(), MAX_BODY_BYTES).await {
                    Ok(body) => body,
                    Err(error) => return json_error(StatusCode::BAD_REQUEST, error),
                };
                let spec = wanted_spec(&body)
                    .and_then(|text| LogSpec::fabric(&text).map_err(|error| error.to_string()));
                match spec {
                    Ok(spec) => {
                        tracing::info!(target: "flogging.httpadmin", %spec, "log levels changed through the operations endpoint");
                        self.logs.set(spec);
                        StatusCode::NO_CONTENT.into_response()
                    }
                    Err(error) => json_error(StatusCode::BAD_REQUEST, error),
                }
            }
            ref other => json_error(
                StatusCode::BAD_REQUEST,
                format_args!("invalid request method: {other}"),
            ),
        }
    }
}

fn show_metrics(metrics: &OrdererMetrics) -> Response {
    metrics.count_scrape();
    (
        [(
            header::CONTENT_TYPE,
            "text/plain; version=0.0.4; charset=utf-8; escaping=underscores",
        )],
        metrics.render(),
    )
        .into_response()
}

/// The specification in a request's body, with the tolerance and the texts of Go's JSON decoder: what follows the first
/// value does not matter, further members neither, names in any case, null is nothing.
fn wanted_spec(body: &[u8]) -> Result<String, String> {
    let kind = |value: &Value| match value {
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Null | Value::Object(_) => "object",
    };
    let value = match serde_json::Deserializer::from_slice(body)
        .into_iter::<Value>()
        .next()
    {
        None => return Err("EOF".to_owned()),
        Some(Ok(value)) => value,
        Some(Err(error)) if error.is_eof() => return Err("unexpected EOF".to_owned()),
        Some(Err(error)) => return Err(format!("the body is not JSON: {error}")),
    };
    let members = match value {
        Value::Object(members) => members,
        Value::Null => return Ok(String::new()),
        other => {
            return Err(format!(
                "json: cannot unmarshal {} into Go value of type httpadmin.LogSpec",
                kind(&other)
            ));
        }
    };
    match members
        .into_iter()
        .find(|(name, _)| name.eq_ignore_ascii_case("spec"))
    {
        None | Some((_, Value::Null)) => Ok(String::new()),
        Some((_, Value::String(spec))) => Ok(spec),
        Some((_, other)) => Err(format!(
            "json: cannot unmarshal {} into Go struct field LogSpec.spec of type string",
            kind(&other)
        )),
    }
}

#[cfg(test)]
mod tests;
