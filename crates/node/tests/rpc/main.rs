//! The node's doors and the client, over real sockets, in front of a node in memory.

// clippy.toml allows these in test functions; here the helpers are tests too.
#![allow(clippy::unwrap_used, clippy::panic)]

mod failover;
mod fake;
mod web;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fake::{Instance, PATIENCE, Shared, options, party};
use quorate_ledger::vault::{PageRequest, VaultQuery};
use quorate_rpc::api::{ClientId, FlowControl, FlowId, FlowKey, FlowState, Role};
use quorate_rpc::wire::proto;
use quorate_rpc::wire::proto::node_rpc_client::NodeRpcClient;
use quorate_rpc::{Client, ClientError, ErrorCode, Password, Tls};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn client_id(text: &str) -> ClientId {
    ClientId::new(text).unwrap()
}

#[tokio::test]
async fn every_operation_answers_what_the_node_says() {
    let instance = Instance::start(&Shared::new());
    let client = Client::connect(options(&[instance.rpc], "ops"))
        .await
        .unwrap();
    assert_eq!(client.connected_to().unwrap().1, party("PartyA").name);

    let info = client.node_info().await.unwrap();
    assert_eq!(info.legal_identities[0].certificates, [vec![1, 2], vec![3]]);
    assert_eq!(client.network_map_snapshot().await.unwrap(), [info]);
    assert_eq!(client.notary_identities().await.unwrap(), [party("Notary")]);
    let name = party("PartyA").name;
    assert_eq!(
        client.party_from_name(&name).await.unwrap(),
        Some(party("PartyA"))
    );
    assert_eq!(
        client.party_from_name(&party("Other").name).await.unwrap(),
        None
    );
    assert_eq!(
        client.current_node_time().await.unwrap().as_micros(),
        1_234_567
    );
    let diagnostics = client.diagnostics().await.unwrap();
    assert_eq!(diagnostics.role, Role::Active);
    assert_eq!(diagnostics.flows_by_state[&FlowState::Hospitalised], 1);
    assert_eq!(diagnostics.queues[0].queued, 3);
    assert_eq!(diagnostics.lease.unwrap().generation, 4);
    assert_eq!(client.hospital().await.unwrap()[0].attempts, 2);
    let checkpoints = client.dump_checkpoints().await.unwrap();
    assert_eq!(checkpoints[0].content, json!({ "journal": [1, 2] }));
    assert_eq!(
        client.registered_flows().await.unwrap()[0].name,
        "test.Hold"
    );
    let paused = client
        .control_flows(FlowControl::RetryAllPaused)
        .await
        .unwrap();
    assert_eq!(paused, FlowControl::RetryAllPaused as u64);

    let page = client.vault_query(&VaultQuery::default()).await.unwrap();
    assert_eq!(page.states[0].state.content, Some(json!({ "n": 1 })));
    assert_eq!(page.states[0].locked_by, Some(FlowId::from_bytes([3; 16])));

    client.set_flows_draining_mode(true).await.unwrap();
    assert!(client.is_flows_draining_mode().await.unwrap());

    let attachment: Vec<u8> = (0..1_000_000_u32).map(|n| n as u8).collect();
    let id = client.upload_attachment(&attachment).await.unwrap();
    assert!(client.attachment_exists(id).await.unwrap());
    assert_eq!(client.open_attachment(id).await.unwrap(), attachment);

    client.graceful_shutdown(true).await.unwrap();
    assert_eq!(instance.node.shared.stops_asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_flow_is_started_once_under_its_client_id_and_its_outcome_is_kept() {
    let shared = Shared::new();
    let instance = Instance::start(&shared);
    let client = Client::connect(options(&[instance.rpc], "ops"))
        .await
        .unwrap();
    let start =
        || client.start_flow_with_client_id(client_id("pay-1"), "test.Hold", json!({ "a": 1 }));
    let first = start().await.unwrap();
    let again = start().await.unwrap();
    assert!(!first.handle().reattached && again.handle().reattached);
    assert_eq!(first.id(), again.id());
    assert_eq!(first.status().await.unwrap().state, FlowState::Running);
    let impatient = first.result(Duration::ZERO).await.unwrap_err();
    assert!(
        matches!(impatient, ClientError::TimedOut { .. }),
        "{impatient}"
    );

    let (result, ()) = tokio::join!(first.result(PATIENCE), async {
        shared.finish(first.id(), Ok(json!("done")));
    });
    assert_eq!(result.unwrap(), "done");
    let finished = client.finished_flows_with_client_ids().await.unwrap();
    assert_eq!(finished[0].client_id, client_id("pay-1"));
    let attached = client
        .reattach_flow_with_client_id(client_id("pay-1"))
        .await
        .unwrap();
    assert_eq!(attached.result(PATIENCE).await.unwrap(), "done");
    assert!(attached.forget().await.unwrap());
    assert!(!client.remove_client_id(client_id("pay-1")).await.unwrap());
    assert_eq!(shared.started.load(Ordering::SeqCst), 1);

    let failing = client.start_flow("test.Hold", json!({})).await.unwrap();
    shared.finish(failing.id(), Err("no coins".into()));
    let failed = failing.result(PATIENCE).await.unwrap_err();
    assert!(matches!(
        &failed,
        ClientError::FlowEnded {
            state: FlowState::Failed,
            ..
        }
    ));
    assert!(failed.to_string().contains("no coins"), "{failed}");
}

#[tokio::test]
async fn each_user_does_what_is_permitted_and_learns_what_is_missing() {
    let shared = Shared::new();
    let instance = Instance::start(&shared);
    let connect = |user: &str| Client::connect(options(&[instance.rpc], user));
    let (ops, app, nobody) = (
        connect("ops").await.unwrap(),
        connect("app").await.unwrap(),
        connect("nobody").await.unwrap(),
    );
    let refusal = |error: ClientError| match error {
        ClientError::Refused { error, .. } => {
            assert_eq!(error.code, ErrorCode::PermissionDenied, "{error}");
            error.message
        }
        other => panic!("{other}"),
    };
    let missing = refusal(nobody.node_info().await.unwrap_err());
    assert!(missing.contains("InvokeRpc.nodeInfo"), "{missing}");
    let missing = refusal(app.start_flow("test.Other", json!({})).await.unwrap_err());
    assert!(missing.contains("StartFlow.test.Other"), "{missing}");
    let missing = refusal(app.graceful_shutdown(false).await.unwrap_err());
    assert!(missing.contains("InvokeRpc.terminate"), "{missing}");
    assert_eq!(shared.stops_asked.load(Ordering::SeqCst), 0);
    let missing = refusal(app.upload_attachment(b"x").await.unwrap_err());
    assert!(missing.contains("InvokeRpc.uploadAttachment"), "{missing}");
    let tracking = app.vault_track(quorate_rpc::TrackFrom::Now).await;
    assert!(refusal(tracking.unwrap_err()).contains("InvokeRpc.vaultTrack"));

    // Who may start a flow may ask how it went, and nobody else.
    let own = app.start_flow("test.Hold", json!({})).await.unwrap();
    let other = ops.start_flow("test.Other", json!({})).await.unwrap();
    shared.finish(own.id(), Ok(json!(1)));
    assert_eq!(own.result(PATIENCE).await.unwrap(), 1);
    let key = |flow: &quorate_rpc::RunningFlow| FlowKey::Flow(flow.id().clone());
    let missing = refusal(app.flow_status(key(&other), PATIENCE).await.unwrap_err());
    assert!(missing.contains("InvokeRpc.flowStatus"), "{missing}");
    refusal(nobody.flow_result(key(&own), PATIENCE).await.unwrap_err());
}

#[tokio::test]
async fn a_wrong_password_is_final_and_guessing_becomes_slow() {
    let instance = Instance::start(&Shared::new());
    let settled = Client::connect(options(&[instance.rpc], "ops"))
        .await
        .unwrap();
    for attempt in 0..5 {
        let mut wrong = options(&[instance.rpc], "ops");
        wrong.password = Password::from("guess");
        // Where guessing has become slow the client would wait its turn, so it gets little time.
        wrong.call_timeout = Duration::from_millis(400);
        let error = Client::connect(wrong).await.unwrap_err();
        match attempt {
            0..3 => assert_eq!(error.code(), Some(ErrorCode::Unauthenticated), "{error}"),
            _ => assert!(
                error.to_string().contains("too many failed logins"),
                "{error}"
            ),
        }
        assert!(!format!("{error:?}").contains("guess"));
    }
    // The connection that has logged in is not disturbed.
    settled.node_info().await.unwrap();
}

/// The generated client, for what ours would never send.
async fn raw(instance: &Instance) -> NodeRpcClient<tonic::transport::Channel> {
    let uri = format!("http://{}", instance.rpc);
    let channel = tonic::transport::Endpoint::new(uri)
        .unwrap()
        .connect()
        .await
        .unwrap();
    NodeRpcClient::new(channel).max_encoding_message_size(64 * 1024 * 1024)
}

fn signed<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    let value = "Basic b3BzOnNlY3JldA==".parse().unwrap();
    request.metadata_mut().insert("authorization", value);
    request
}

#[tokio::test]
async fn nonsense_is_refused_by_name_and_the_node_lives() {
    let shared = Shared::new();
    let instance = Instance::start(&shared);
    let mut stub = raw(&instance).await;

    let unsigned = stub.node_info(proto::Empty {}).await.unwrap_err();
    assert_eq!(unsigned.code(), tonic::Code::Unauthenticated);

    let refused = |status: tonic::Status, expected: &str| {
        assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status}");
        assert!(status.message().contains(expected), "{status}");
    };
    let start = |flow: &str, arguments: &str, client_id: Option<&str>| {
        signed(proto::StartFlowRequest {
            client_id: client_id.map(Into::into),
            flow: flow.into(),
            arguments_json: arguments.into(),
        })
    };
    let long = "x".repeat(129);
    for (flow, arguments, id, expected) in [
        ("test.Hold", "{\"a\":", None, "arguments_json: EOF"),
        ("test.Hold", "[1]", None, "not a list"),
        ("test.Hold", "\"{}\"", None, "not a text"),
        ("", "{}", None, "flow class"),
        ("a\nb", "{}", None, "flow class"),
        ("test.Hold", "{}", Some(""), "client_id"),
        ("test.Hold", "{}", Some(long.as_str()), "client_id"),
    ] {
        let status = stub
            .start_flow(start(flow, arguments, id))
            .await
            .unwrap_err();
        refused(status, expected);
    }
    let deep = "[".repeat(100_000);
    refused(
        stub.start_flow(start("test.Hold", &deep, None))
            .await
            .unwrap_err(),
        "recursion",
    );
    let unknown = stub
        .start_flow(start("cash.Nothing", "", None))
        .await
        .unwrap_err();
    assert_eq!(unknown.code(), tonic::Code::NotFound);

    let flow = |id: &str| signed(proto::FlowIdRequest { flow_id: id.into() });
    refused(stub.kill_flow(flow("x")).await.unwrap_err(), "flow_id: 'x'");
    let no_key = proto::FlowStatusRequest::default();
    refused(stub.flow_status(signed(no_key)).await.unwrap_err(), "key");
    let control = proto::ControlFlowsRequest { action: 99 };
    refused(
        stub.control_flows(signed(control)).await.unwrap_err(),
        "action",
    );
    let query = |json: &str| {
        signed(proto::VaultQueryRequest {
            query_json: json.into(),
        })
    };
    refused(
        stub.vault_query(query("{\"criterai\":1}"))
            .await
            .unwrap_err(),
        "criterai",
    );
    refused(
        stub.vault_query(query("{\"page\":{\"number\":0}}"))
            .await
            .unwrap_err(),
        "from 1",
    );
    let name = proto::PartyFromNameRequest {
        name: "PartyA".into(),
    };
    refused(
        stub.party_from_name(signed(name)).await.unwrap_err(),
        "name",
    );
    let tx = proto::TransactionRequest { tx: "12".into() };
    refused(stub.transaction(signed(tx)).await.unwrap_err(), "tx");
    let track = proto::VaultTrackRequest {
        cursor: 5,
        from_now: false,
    };
    refused(
        stub.vault_track(signed(track)).await.unwrap_err(),
        "cursor 5",
    );
    let nothing = tokio_stream::iter([proto::AttachmentChunk { data: vec![] }]);
    refused(
        stub.upload_attachment(signed(nothing)).await.unwrap_err(),
        "empty",
    );

    // Bytes that are not the protocol at all, and a probe that says nothing.
    for bytes in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff",
        b"\0",
        b"",
    ] {
        let mut stream = tokio::net::TcpStream::connect(instance.rpc).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }
    assert_eq!(shared.started.load(Ordering::SeqCst), 0);
    stub.node_info(signed(proto::Empty {})).await.unwrap();
}

#[tokio::test]
async fn messages_are_bounded_in_both_directions() {
    let instance = Instance::start(&Shared::new());
    let mut stub = raw(&instance).await;
    let request = |bytes: usize| {
        signed(proto::StartFlowRequest {
            client_id: None,
            flow: "test.Hold".into(),
            arguments_json: format!("{{\"a\":\"{}\"}}", "x".repeat(bytes)),
        })
    };
    stub.start_flow(request(7 * 1024 * 1024)).await.unwrap();
    let status = stub.start_flow(request(9 * 1024 * 1024)).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    let status = stub
        .start_flow(request(30 * 1024 * 1024))
        .await
        .unwrap_err();
    assert_eq!(status.code(), tonic::Code::OutOfRange, "{status}");

    let client = Client::connect(options(&[instance.rpc], "ops"))
        .await
        .unwrap();
    let ask = |size| {
        let page = PageRequest { number: 1, size };
        VaultQuery {
            page,
            ..VaultQuery::default()
        }
    };
    client.vault_query(&ask(800)).await.unwrap();
    let error = client.vault_query(&ask(900)).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::TooLarge), "{error}");
    assert!(error.to_string().contains("smaller page"), "{error}");
    let too_large = vec![0; quorate_rpc::api::MAX_ATTACHMENT_BYTES + 1];
    let error = client.upload_attachment(&too_large).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::TooLarge), "{error}");
}

#[tokio::test]
async fn a_call_ends_when_its_time_is_up() {
    let instance = Instance::start(&Shared::new());
    let mut options = options(&[instance.rpc], "ops");
    options.call_timeout = Duration::from_millis(300);
    let client = Client::connect(options).await.unwrap();
    let begun = Instant::now();
    let id = client_id("stuck");
    let repeatable = client
        .start_flow_with_client_id(id, "test.Stuck", json!({}))
        .await;
    assert!(matches!(repeatable, Err(ClientError::TimedOut { .. })));
    let once = client.start_flow("test.Stuck", json!({})).await;
    assert!(matches!(once, Err(ClientError::OutcomeUnknown { .. })));
    assert!(begun.elapsed() < Duration::from_secs(5));
    client.node_info().await.unwrap();
}

#[tokio::test]
async fn tls_protects_both_doors() {
    let certificate = rcgen::generate_simple_self_signed(vec!["node.example".into()]).unwrap();
    let key = certificate.signing_key.serialize_der().try_into().unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.cert.der().clone()], key)
        .unwrap();
    let instance = Instance::start_at(&Shared::new(), "127.0.0.1:0", Some(Arc::new(server)));

    let trusting = |roots: rustls::RootCertStore, name: &str| {
        let config = rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut options = options(&[instance.rpc], "ops");
        options.tls = Some(Tls {
            config: Arc::new(config),
            server_name: Some(name.into()),
        });
        options.call_timeout = Duration::from_secs(2);
        options
    };
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.cert.der().clone()).unwrap();
    let client = Client::connect(trusting(roots.clone(), "node.example"))
        .await
        .unwrap();
    client.node_info().await.unwrap();

    for wrong in [
        trusting(roots, "other.example"),
        trusting(rustls::RootCertStore::empty(), "node.example"),
        options(&[instance.rpc], "ops"),
    ] {
        let impatient = quorate_rpc::Options {
            call_timeout: Duration::from_secs(1),
            ..wrong
        };
        let error = Client::connect(impatient).await.unwrap_err();
        assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
    }
    client.node_info().await.unwrap();
}
