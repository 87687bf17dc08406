#![allow(clippy::unwrap_used, clippy::panic)]

//! The recorded exchanges, replayed against the router with a registrar that answers from a script.

use std::collections::BTreeMap;
use std::sync::Mutex;

use axum::body::to_bytes;
use quorate_runtime::Entropy;
use serde_json::Value;
use tower::ServiceExt as _;

use super::*;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/fabric");
const BOUNDARY: &str = "fixture-boundary-0123456789";

/// Knows the answer to the next call, and what was asked.
#[derive(Default)]
struct Scripted {
    list: ChannelList,
    info: Option<ChannelInfo>,
    join: Mutex<Option<Result<ChannelInfo, JoinError>>>,
    remove: Mutex<Option<Result<(), RemoveError>>>,
    joined: Mutex<Option<Bytes>>,
    removed: Mutex<Option<String>>,
}

impl Participation for Scripted {
    fn list(&self) -> ChannelList {
        self.list.clone()
    }

    fn info(&self, channel: &str) -> Option<ChannelInfo> {
        self.info.clone().filter(|info| info.name == channel)
    }

    fn join(&self, block: Bytes) -> BoxFuture<'_, Result<ChannelInfo, JoinError>> {
        *self.joined.lock().unwrap() = Some(block);
        let answer = self.join.lock().unwrap().take();
        Box::pin(async move { answer.expect("a join was expected") })
    }

    fn prune<'a>(
        &'a self,
        channel: &'a str,
        below: u64,
    ) -> BoxFuture<'a, Result<Pruned, PruneError>> {
        Box::pin(async move {
            match channel {
                "books" => Ok(Pruned {
                    first: below.min(40),
                    files: 2,
                    bytes: 1000,
                }),
                "broken" => Err(PruneError::Failed("the disk says no".to_owned())),
                _ => Err(PruneError::ChannelNotExist),
            }
        })
    }

    fn remove<'a>(&'a self, channel: &'a str) -> BoxFuture<'a, Result<(), RemoveError>> {
        *self.removed.lock().unwrap() = Some(channel.to_owned());
        let answer = self.remove.lock().unwrap().take();
        Box::pin(async move { answer.expect("a removal was expected") })
    }
}

/// What the registrar must have said for the recorded answer to come out; `None` if it cannot have been asked.
fn script(case: &Value) -> Scripted {
    let mut script = Scripted::default();
    let status = case["status"].as_u64().unwrap();
    let text = case["response_body"].as_str().unwrap();
    let body: Value = serde_json::from_str(text).unwrap_or_default();
    let info = || ChannelInfo {
        name: body["name"].as_str().unwrap().to_owned(),
        consensus_relation: match body["consensusRelation"].as_str().unwrap() {
            "consenter" => ConsensusRelation::Consenter,
            "follower" => ConsensusRelation::Follower,
            other => panic!("{other}"),
        },
        status: match body["status"].as_str().unwrap() {
            "active" => ChannelStatus::Active,
            "onboarding" => ChannelStatus::Onboarding,
            "inactive" => ChannelStatus::Inactive,
            "failed" => ChannelStatus::Failed,
            other => panic!("{other}"),
        },
        height: body["height"].as_u64().unwrap(),
    };
    let error = body["error"].as_str().unwrap_or_default();
    let (after_join, after_remove) = (
        error.strip_prefix("cannot join: "),
        error.strip_prefix("cannot remove: "),
    );
    match case["method"].as_str().unwrap() {
        "GET" if status == 200 && body.get("name").is_some() => script.info = Some(info()),
        "GET" if status == 200 => {
            let name = |channel: &Value| channel["name"].as_str().map(str::to_owned);
            script.list = ChannelList {
                system_channel: name(&body["systemChannel"]),
                channels: body["channels"]
                    .as_array()
                    .map(|channels| channels.iter().filter_map(name).collect())
                    .unwrap_or_default(),
            };
        }
        "POST" if status == 201 => *script.join.get_mut().unwrap() = Some(Ok(info())),
        "POST" => {
            let refused = if let Some(reason) = after_join {
                Some(match reason {
                    "channel already exists" => JoinError::ChannelExists,
                    "system channel exists" => JoinError::SystemChannelExists,
                    "application channels already exist" => JoinError::ApplicationChannelsExist,
                    "channel pending removal" => JoinError::PendingRemoval,
                    "channel removal failure" => JoinError::RemovalFailed,
                    other => JoinError::Failed(other.to_owned()),
                })
            } else if let Some(reason) = error.strip_prefix("invalid join block: ") {
                Some(JoinError::InvalidBlock(reason.to_owned()))
            } else {
                error
                    .strip_prefix("cannot unmarshal file part config-block into a block: ")
                    .map(|reason| JoinError::NotABlock(reason.to_owned()))
            };
            *script.join.get_mut().unwrap() = refused.map(Err);
        }
        "DELETE" if status == 204 => *script.remove.get_mut().unwrap() = Some(Ok(())),
        "DELETE" => {
            let refused = after_remove.map(|reason| match reason {
                "channel does not exist" => RemoveError::ChannelNotExist,
                "system channel exists" => RemoveError::SystemChannelExists,
                "channel pending removal" => RemoveError::PendingRemoval,
                other => panic!("{other}"),
            });
            *script.remove.get_mut().unwrap() = refused.map(Err);
        }
        _ => {}
    }
    script
}

/// The body as it is described in the recording, and the block in it.
fn body(case: &Value) -> (Vec<u8>, Option<Bytes>) {
    let described = case["request_body"].as_str().unwrap_or_default();
    let content_type = case["request_headers"]["Content-Type"].as_str();
    if !content_type.is_some_and(|kind| kind.ends_with(BOUNDARY)) {
        return (described.as_bytes().to_vec(), None);
    }
    let mut body = Vec::new();
    let mut block = None;
    for part in described.split("; ") {
        let (name, content) = part.split_once(": ").unwrap();
        let content = match content {
            "zero bytes" => Vec::new(),
            "ff ff ff" => vec![0xff; 3],
            "x" => b"x".to_vec(),
            "1048576 times x" => vec![b'x'; 1 << 20],
            file => std::fs::read(format!("{FIXTURES}/{file}")).unwrap(),
        };
        let (name, file) = match name.strip_suffix(" (no filename)") {
            Some(name) => (name, String::new()),
            None => (name, format!("; filename=\"{name}.block\"")),
        };
        body.extend_from_slice(
            format!(
                "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"{file}\r\nContent-Type: application/octet-stream\r\n\r\n"
            )
            .as_bytes(),
        );
        body.extend_from_slice(&content);
        body.extend_from_slice(b"\r\n");
        if name == "config-block" {
            block = Some(Bytes::from(content));
        }
    }
    body.extend_from_slice(format!("--{BOUNDARY}--\r\n").as_bytes());
    (body, block)
}

#[tokio::test]
async fn the_recorded_exchanges_are_answered_as_recorded() {
    let text =
        std::fs::read_to_string(format!("{FIXTURES}/participation/participation.json")).unwrap();
    let cases: Vec<Value> = serde_json::from_str(&text).unwrap();
    let mut replayed = 0;
    for case in &cases {
        let name = case["name"].as_str().unwrap();
        // TLS itself, Fabric's panics, and what they leave behind.
        let status = case["status"].as_u64().unwrap();
        if status == 0 || name == "plain-http" {
            continue;
        }
        let script = Arc::new(script(case));
        let asked = script.join.lock().unwrap().is_some();
        let (body, block) = body(case);
        let mut request = Request::builder()
            .method(case["method"].as_str().unwrap())
            .uri(case["path"].as_str().unwrap());
        if let Some(headers) = case["request_headers"].as_object() {
            for (header, value) in headers {
                request = request.header(header, value.as_str().unwrap());
            }
        }
        let options = ChannelParticipation {
            enabled: !name.starts_with("disabled"),
            ..ChannelParticipation::default()
        };
        let router = router(&options, script.clone(), Entropy::seeded(1));
        let answer = router
            .oneshot(request.body(Body::from(body)).unwrap())
            .await
            .unwrap();
        assert_eq!(u64::from(answer.status().as_u16()), status, "{name}");
        let headers: BTreeMap<String, String> = answer
            .headers()
            .iter()
            .map(|(header, value)| (header.to_string(), value.to_str().unwrap().to_owned()))
            .collect();
        let mut expected: BTreeMap<String, String> = case["response_headers"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(header, value)| (header.to_lowercase(), value.as_str().unwrap().to_owned()))
            .collect();
        // The server counts the bytes when it writes them; without them the header says how many they were.
        let length = expected.remove("content-length");
        let mut headers = headers;
        let told = headers.remove("content-length");
        // Random.
        if let Some(id) = expected.get_mut("x-request-id") {
            *id = headers.get("x-request-id").cloned().unwrap_or_default();
            assert_eq!(id.len(), 36, "{name}: {headers:?}");
        }
        assert_eq!(headers, expected, "{name}");
        let bytes = to_bytes(answer.into_body(), 1 << 20).await.unwrap();
        if case["method"] != "HEAD" {
            assert_eq!(
                std::str::from_utf8(&bytes).unwrap(),
                case["response_body"].as_str().unwrap(),
                "{name}"
            );
        }
        if let Some(length) = length {
            let counted = if case["method"] == "HEAD" {
                told.unwrap_or_default()
            } else {
                bytes.len().to_string()
            };
            assert_eq!(counted, length, "{name}");
        }
        assert!(script.join.lock().unwrap().is_none(), "{name}");
        if asked {
            assert_eq!(*script.joined.lock().unwrap(), block, "{name}");
        }
        replayed += 1;
    }
    assert!(replayed > 80, "{replayed} of {}", cases.len());
}

#[tokio::test]
async fn forms_that_are_broken_off_are_refused() {
    let whole = {
        let case = serde_json::json!({
            "request_body": "config-block: ff ff ff",
            "request_headers": {"Content-Type": format!("multipart/form-data; boundary={BOUNDARY}")},
        });
        body(&case).0
    };
    for length in 0..whole.len() - 4 {
        let router = router(
            &ChannelParticipation {
                enabled: true,
                ..ChannelParticipation::default()
            },
            Arc::new(Scripted::default()),
            Entropy::seeded(1),
        );
        let request = Request::builder()
            .method("POST")
            .uri(CHANNELS)
            .header(
                "Content-Type",
                format!("multipart/form-data; boundary={BOUNDARY}"),
            )
            .body(Body::from(whole[..length].to_vec()))
            .unwrap();
        let answer = router.oneshot(request).await.unwrap();
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{length}");
    }
}

#[tokio::test]
async fn pruning_is_asked_for_by_a_block() {
    let router = router(
        &ChannelParticipation {
            enabled: true,
            max_request_body_size: 1 << 20,
        },
        Arc::new(Scripted::default()),
        Entropy::seeded(1),
    );
    for (method, path, status, body) in [
        (
            Method::POST,
            "/quorate/v1/channels/books/prune?below=17",
            200,
            r#"{"first":17,"files":2,"bytes":1000}"#,
        ),
        (
            Method::POST,
            "/quorate/v1/channels/other/prune?below=17",
            404,
            "does not exist",
        ),
        (
            Method::POST,
            "/quorate/v1/channels/broken/prune?below=17",
            500,
            "the disk says no",
        ),
        (
            Method::POST,
            "/quorate/v1/channels/books/prune?below=-1",
            400,
            "below=NUMBER",
        ),
        (
            Method::POST,
            "/quorate/v1/channels/books/prune",
            400,
            "below=NUMBER",
        ),
        (
            Method::POST,
            "/quorate/v1/channels/BOOKS/prune?below=1",
            400,
            "invalid channel ID",
        ),
        (
            Method::GET,
            "/quorate/v1/channels/books/prune?below=17",
            405,
            "invalid request method: GET",
        ),
        (Method::POST, "/quorate/v1/channels/books", 404, ""),
    ] {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .body(Body::empty())
            .unwrap();
        let answer = tower::ServiceExt::oneshot(router.clone(), request)
            .await
            .unwrap();
        assert_eq!(answer.status().as_u16(), status, "{path}");
        let text = axum::body::to_bytes(answer.into_body(), 10_000)
            .await
            .unwrap();
        let text = String::from_utf8(text.to_vec()).unwrap();
        assert!(text.contains(body), "{path}: {text}");
    }
}
