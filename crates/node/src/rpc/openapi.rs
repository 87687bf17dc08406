//! The web API's routes, and their description in OpenAPI's words.

use quorate_rpc::{API_VERSION, Method};
use serde_json::{Map, Value, json};

/// What every path of the API begins with.
pub(super) const PREFIX: &str = "/api/v1";

/// HTTP's methods, by another name because ours have that one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Get,
    Post,
    Put,
    Delete,
}

/// One operation on the web.
pub(super) struct Route {
    pub(super) method: Method,
    pub(super) verb: Verb,
    pub(super) path: &'static str,
    /// Parameters after `?`: name, type, what it means.
    query: &'static [(&'static str, &'static str, &'static str)],
    /// The schema of the body; nothing for none.
    input: Option<&'static str>,
    /// The schema of the answer; `[]` after it for a list of them.
    output: &'static str,
}

const WAIT: (&str, &str, &str) = (
    "waitMillis",
    "integer",
    "How long to hold the answer back for something to happen; at most 30000",
);
const CURSOR: (&str, &str, &str) = (
    "cursor",
    "integer",
    "What comes after this is answered; a cursor comes with every answer",
);
const LIMIT: (&str, &str, &str) = (
    "limit",
    "integer",
    "Most updates in the answer; at most 1000",
);

const fn route(
    method: Method,
    verb: Verb,
    path: &'static str,
    query: &'static [(&'static str, &'static str, &'static str)],
    input: Option<&'static str>,
    output: &'static str,
) -> Route {
    Route {
        method,
        verb,
        path,
        query,
        input,
        output,
    }
}

#[rustfmt::skip]
pub(super) static ROUTES: [Route; 32] = {
    use Method as M;
    use Verb::{Delete, Get, Post, Put};
    [
        route(M::StartFlow, Post, "/flows", &[], Some("StartFlow"), "FlowHandle"),
        route(M::StateMachinesSnapshot, Get, "/flows", &[], None, "FlowStatus[]"),
        route(M::StateMachinesFeed, Get, "/flow-updates", &[CURSOR, WAIT], None, "FlowUpdates"),
        route(M::FlowStatus, Get, "/flows/{flowId}", &[WAIT], None, "FlowStatus"),
        route(M::KillFlow, Post, "/flows/{flowId}/kill", &[], None, "boolean"),
        route(M::PauseFlow, Post, "/flows/{flowId}/pause", &[], None, "boolean"),
        route(M::RetryFlow, Post, "/flows/{flowId}/retry", &[], None, "boolean"),
        route(M::PauseAllFlows, Post, "/flow-control/pauseAll", &[], None, "integer"),
        route(M::PauseAllHospitalizedFlows, Post, "/flow-control/pauseAllHospitalized", &[], None, "integer"),
        route(M::RetryAllPausedFlows, Post, "/flow-control/retryAllPaused", &[], None, "integer"),
        route(M::RetryAllPausedHospitalizedFlows, Post, "/flow-control/retryAllPausedHospitalized", &[], None, "integer"),
        route(M::FinishedFlowsWithClientIds, Get, "/client-ids", &[], None, "FinishedFlow[]"),
        route(M::ReattachFlowWithClientId, Get, "/client-ids/{clientId}", &[WAIT], None, "FlowStatus"),
        route(M::RemoveClientId, Delete, "/client-ids/{clientId}", &[], None, "boolean"),
        route(M::HospitalSnapshot, Get, "/hospital", &[], None, "HospitalRecord[]"),
        route(M::DumpCheckpoints, Get, "/checkpoints", &[], None, "Checkpoint[]"),
        route(M::RegisteredFlows, Get, "/registered-flows", &[], None, "RegisteredFlow[]"),
        route(M::VaultQuery, Post, "/vault/query", &[], Some("VaultQuery"), "VaultPage"),
        route(M::VaultTrack, Get, "/vault/updates", &[CURSOR, LIMIT, WAIT], None, "VaultUpdates"),
        route(M::Transaction, Get, "/transactions/{id}", &[], None, "Transaction"),
        route(M::UploadAttachment, Post, "/attachments", &[], Some("binary"), "AttachmentId"),
        route(M::OpenAttachment, Get, "/attachments/{id}", &[], None, "binary"),
        route(M::AttachmentExists, Get, "/attachments/{id}/exists", &[], None, "boolean"),
        route(M::NodeInfo, Get, "/node", &[], None, "NodeInfo"),
        route(M::NetworkMapSnapshot, Get, "/network-map", &[], None, "NodeInfo[]"),
        route(M::NotaryIdentities, Get, "/notaries", &[], None, "Party[]"),
        route(M::WellKnownPartyFromX500Name, Get, "/parties",
            &[("name", "string", "A legal name: O=PartyA, L=Osaka, C=JP")], None, "Party"),
        route(M::CurrentNodeTime, Get, "/time", &[], None, "Time"),
        route(M::NodeDiagnosticInfo, Get, "/diagnostics", &[], None, "Diagnostics"),
        route(M::IsFlowsDrainingModeEnabled, Get, "/draining", &[], None, "boolean"),
        route(M::SetFlowsDrainingModeEnabled, Put, "/draining", &[], Some("Draining"), "nothing"),
        route(M::Terminate, Post, "/terminate", &[], Some("Shutdown"), "nothing"),
    ]
};

/// The schemas that the routes name.
const SCHEMAS: &str = include_str!("openapi_schemas.json");

/// The whole description, for the release of the software that serves it.
pub fn description(release: &str) -> Value {
    let mut paths = Map::new();
    for route in &ROUTES {
        let path = paths
            .entry(format!("{PREFIX}{}", route.path))
            .or_insert_with(|| json!({}));
        path[verb_name(route.verb)] = operation(route);
    }
    let schemas: Value = serde_json::from_str(SCHEMAS).unwrap_or_default();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Quorate node",
            "version": release,
            "summary": "The API of a ledger node for applications and operators",
            "description": format!(
                "Version {API_VERSION} of the API, the same that the node offers over gRPC. Legal names are X.500 \
                 texts, times are RFC 3339, hashes are upper-case hex. An answer that is an error is an object \
                 {{\"error\": …}} that says what to do."
            ),
        },
        "security": [{ "basic": [] }],
        "paths": paths,
        "components": {
            "securitySchemes": { "basic": { "type": "http", "scheme": "basic" } },
            "schemas": schemas,
        },
    })
}

fn verb_name(verb: Verb) -> &'static str {
    match verb {
        Verb::Get => "get",
        Verb::Post => "post",
        Verb::Put => "put",
        Verb::Delete => "delete",
    }
}

/// A schema by the name that a route uses.
fn schema(name: &str) -> Value {
    if let Some(item) = name.strip_suffix("[]") {
        return json!({ "type": "array", "items": schema(item) });
    }
    match name {
        "boolean" | "integer" => json!({ "type": name }),
        name => json!({ "$ref": format!("#/components/schemas/{name}") }),
    }
}

fn content(name: &str) -> Value {
    match name {
        "binary" => json!({ "application/octet-stream": {} }),
        name => json!({ "application/json": { "schema": schema(name) } }),
    }
}

fn in_path(path: &str) -> impl Iterator<Item = &str> {
    path.split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
}

fn operation(route: &Route) -> Value {
    let mut parameters: Vec<Value> = in_path(route.path)
        .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }))
        .collect();
    for (name, kind, about) in route.query {
        parameters.push(json!({
            "name": name, "in": "query", "description": about, "required": *name == "name", "schema": { "type": kind },
        }));
    }
    let permission = match route.method {
        Method::StartFlow => "StartFlow.<flow class>".to_owned(),
        method => method.permission(),
    };
    let (status, mut success) = match (route.method, route.output) {
        (Method::Terminate, _) => ("202", json!({ "description": "The node will stop" })),
        (_, "nothing") => ("204", json!({ "description": "Done" })),
        (Method::UploadAttachment, output) => (
            "201",
            json!({ "description": "Stored", "content": content(output) }),
        ),
        (_, output) => (
            "200",
            json!({ "description": "The answer", "content": content(output) }),
        ),
    };
    if matches!(route.method, Method::VaultTrack | Method::StateMachinesFeed) {
        // The same as a stream, for clients that say that they accept one.
        success["content"]["text/event-stream"] = json!({});
    }
    let refusal =
        json!({ "description": "The node refused or failed", "content": content("Refusal") });
    let mut operation = json!({
        "operationId": route.method.name(),
        "summary": route.method.about(),
        "description": format!("Permission: {permission}"),
        "parameters": parameters,
        "responses": { "default": refusal },
    });
    operation["responses"][status] = success;
    if let Some(input) = route.input {
        operation["requestBody"] = json!({ "required": true, "content": content(input) });
    }
    operation
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    match value {
                        Value::String(target) if name == "$ref" => {
                            found.insert(target.clone());
                        }
                        value => references(value, found),
                    }
                }
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }

    #[test]
    fn every_operation_is_on_the_web_once_and_every_schema_exists() {
        let served: Vec<_> = ROUTES.iter().map(|route| route.method).collect();
        let all: BTreeSet<_> = Method::all().collect();
        assert_eq!(served.len(), all.len());
        assert_eq!(served.into_iter().collect::<BTreeSet<_>>(), all);

        let description = description("1.2.3");
        let mut wanted = BTreeSet::new();
        references(&description, &mut wanted);
        assert!(wanted.len() > 15, "{wanted:?}");
        for reference in wanted {
            let pointer = reference.trim_start_matches('#');
            assert!(description.pointer(pointer).is_some(), "{reference}");
        }
    }
}
