//! What users ask for is recorded before it is done, and cleaned up when its time is over.

use std::time::Duration;

use quorate_ledger::vault::VaultQuery;
use quorate_node::config::{LoadOptions, NodeConfiguration};
use quorate_rpc::ErrorCode;
use quorate_rpc::api::{ClientId, FlowKey};
use quorate_storage::{RpcAuditFilter, RpcAuditRecord, Store};
use quorate_testkit::postgres;
use serde_json::json;

use crate::world::*;

const AUDIT: &str = "enterpriseConfiguration.auditService.eventsToRecord = RPC";

async fn store(world: &World, organisation: &str) -> Store {
    let directory = world.directory(organisation);
    let options = LoadOptions::default();
    let configuration = NodeConfiguration::load(&directory, None, &options).unwrap();
    let store = Store::connect(configuration.database.store_options(), Vec::new());
    store.await.unwrap()
}

async fn audit(store: &Store, filter: &RpcAuditFilter) -> Vec<RpcAuditRecord> {
    store.rpc_audit(filter, None, 10_000).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_recorded_with_user_parameters_and_permission_but_no_secrets() {
    let world = World::new(vec![plan("PartyA").with(AUDIT)]).await;
    let a = world.start("PartyA").await;
    let admin = a.client().await;
    let id = ClientId::new("one").unwrap();
    let text = "nobody's business";
    let flow = admin
        .start_flow_with_client_id(id.clone(), "test.Notify", json!({ "text": text }))
        .await
        .unwrap();
    flow.result(PATIENCE).await.unwrap();
    admin.vault_query(&VaultQuery::default()).await.unwrap();
    admin.set_flows_draining_mode(false).await.unwrap();
    let web = a.addresses.web.unwrap();
    let (status, _) = http(web, "GET", "/api/v1/node", Some("admin:secret"), "").await;
    assert_eq!(status, 200);
    // Who may not is recorded, too; who is nobody is not.
    let payer = a.client_of("payer", "pay").await.unwrap();
    let refused = payer.kill_flow(flow.id().clone()).await.unwrap_err();
    assert_eq!(refused.code(), Some(ErrorCode::PermissionDenied));
    let refused = payer.start_flow("test.Notify", json!({})).await;
    let refused = refused.expect_err("it must be refused");
    assert_eq!(refused.code(), Some(ErrorCode::PermissionDenied));
    let key = FlowKey::Client(id);
    assert!(payer.flow_status(key, Duration::ZERO).await.is_err());
    let (status, _) = http(web, "GET", "/api/v1/flows", Some("admin:guess"), "").await;
    assert_eq!(status, 401);

    let store = store(&world, "PartyA").await;
    let all = audit(&store, &RpcAuditFilter::default()).await;
    let lines: Vec<String> = all
        .iter()
        .map(|record| {
            let RpcAuditRecord {
                username,
                interface,
                action,
                parameters,
                allowed,
                ..
            } = record;
            format!("{username} {interface} {action}({parameters}) {allowed}")
        })
        .collect();
    let flow = flow.id();
    for wanted in [
        "admin quorate.rpc.v1.NodeRpc startFlow(flow: test.Notify, clientId: one) true".to_owned(),
        "admin quorate.rpc.v1.NodeRpc reattachFlowWithClientId(clientId: one) true".to_owned(),
        "admin quorate.rpc.v1.NodeRpc setFlowsDrainingModeEnabled(enabled: false) true".to_owned(),
        "admin JSON over HTTP nodeInfo() true".to_owned(),
        format!("payer quorate.rpc.v1.NodeRpc killFlow(flowId: {flow}) false"),
        "payer quorate.rpc.v1.NodeRpc startFlow(flow: test.Notify) false".to_owned(),
        "payer quorate.rpc.v1.NodeRpc reattachFlowWithClientId(clientId: one) false".to_owned(),
    ] {
        assert!(lines.contains(&wanted), "{wanted}\n=> {lines:#?}");
    }
    let query = "admin quorate.rpc.v1.NodeRpc vaultQuery(criteria: ";
    assert!(
        lines.iter().any(|line| line.starts_with(query)),
        "{lines:#?}"
    );
    for secret in [text, "secret", "guess"] {
        assert!(
            !lines.iter().any(|line| line.contains(secret)),
            "{lines:#?}"
        );
    }
    // The order is that in which they were asked.
    assert!(lines[0].contains("startFlow"), "{lines:#?}");
    a.stop().await;

    // They outlive the process, and without the key nothing is added.
    let file = world.directory("PartyA").join("node.conf");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace(AUDIT, "")).unwrap();
    let a = world.start("PartyA").await;
    a.client().await.node_info().await.unwrap();
    assert_eq!(audit(&store, &RpcAuditFilter::default()).await, all);
    a.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_recorded_is_not_done() {
    if postgres::skipped() {
        return;
    }
    let world = World::new(vec![plan("Refusing").on_postgres().with(AUDIT)]).await;
    let a = world.start("Refusing").await;
    let client = a.client().await;
    let flow = || client.start_flow("test.Notify", json!({ "text": "x" }));
    let away = "ALTER TABLE rpc_audit RENAME TO away";
    world.sql("Refusing", away).await;
    let refused = flow().await.expect_err("it must be refused");
    assert_eq!(refused.code(), Some(ErrorCode::Internal), "{refused}");
    assert!(refused.to_string().contains("recorded"), "{refused}");
    assert!(
        world
            .outside("Refusing")
            .performed
            .lock()
            .unwrap()
            .is_empty()
    );
    let back = "ALTER TABLE away RENAME TO rpc_audit";
    world.sql("Refusing", back).await;
    flow().await.unwrap().result(PATIENCE).await.unwrap();
    assert_eq!(world.outside("Refusing").performed.lock().unwrap().len(), 1);
    a.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_of_the_active_instance_remove_what_is_outdated() {
    if postgres::skipped() {
        return;
    }
    let maintenance = r#"enterpriseConfiguration {
  auditService { eventsToRecord = ALL }
  maintenanceMode { schedule = "* * * * * *", duration = "1s", rpcAuditDataRetentionPeriod = "100d" }
  processedMessageCleanup { senderRetentionPeriodInDays = 7 }
}"#;
    let world = World::new(vec![plan("Cleaning").on_postgres().with(maintenance)]).await;
    let a = world.start("Cleaning").await;
    let client = a.client().await;
    let store = store(&world, "Cleaning").await;
    let all = RpcAuditFilter::default();
    for _ in 0..5 {
        client.node_info().await.unwrap();
    }
    assert_eq!(audit(&store, &all).await.len(), 5);
    let measured = async |what: &str| {
        let (_, page) = http(a.operations, "GET", "/metrics", None, "").await;
        let name = format!("quorate_maintenance_{what} ");
        let line = page.lines().find_map(|line| line.strip_prefix(&name));
        line.unwrap_or("0").parse::<u64>().unwrap()
    };
    // What is young stays, however many windows come.
    let before = measured("windows_total").await;
    eventually("two windows", || async {
        measured("windows_total").await >= before + 2
    })
    .await;
    assert_eq!(audit(&store, &all).await.len(), 5);

    // Three of them are 101 days old, and a peer has left two of its queues long ago.
    let day: i64 = 86_400_000_000;
    world
        .sql(
            "Cleaning",
            &format!(
                "UPDATE rpc_audit SET recorded_at = recorded_at - 101 * {day} WHERE invocation_id IN
                     (SELECT invocation_id FROM rpc_audit ORDER BY recorded_at LIMIT 3);
                 INSERT INTO inbound_marks (peer, epoch, sequence, base, begun_at) VALUES
                     ('O=X, L=Osaka, C=JP', decode(repeat('0a', 16), 'hex'), 3, 0, 1),
                     ('O=X, L=Osaka, C=JP', decode(repeat('0b', 16), 'hex'), 4, 3, 2),
                     ('O=X, L=Osaka, C=JP', decode(repeat('0c', 16), 'hex'), 4, 7, 3)"
            ),
        )
        .await;
    eventually("the old ones are gone", || async {
        let messages = r#"removed_rows_total{task="processed-messages"}"#;
        audit(&store, &all).await.len() == 2 && measured(messages).await == 2
    })
    .await;
    let calls = r#"removed_rows_total{task="rpc-audit"}"#;
    assert_eq!(measured(calls).await, 3);
    a.stop().await;
}
