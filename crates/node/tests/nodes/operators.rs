//! What operators and careful clients do.

use std::sync::atomic::Ordering;
use std::time::Duration;

use quorate_rpc::api::{ClientId, FlowControl, FlowId, FlowKey, FlowState};
use quorate_rpc::{Client, ClientError, ErrorCode};
use serde_json::json;

use crate::world::*;

async fn state(client: &Client, flow: &FlowId) -> FlowState {
    let key = FlowKey::Flow(flow.clone());
    client.flow_status(key, Duration::ZERO).await.unwrap().state
}

async fn reaches(client: &Client, flow: &FlowId, wanted: FlowState) {
    let what = format!("flow {flow} is {wanted:?}");
    eventually(&what, || async { state(client, flow).await == wanted }).await;
}

fn code(result: Result<impl Sized, ClientError>) -> ErrorCode {
    let error = result.err().expect("it must be refused");
    error
        .code()
        .unwrap_or_else(|| panic!("not the node's refusal: {error}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_id_leads_to_one_flow_and_its_result_until_it_is_removed() {
    let world = World::new(vec![plan("PartyA")]).await;
    let a = world.start("PartyA").await;
    let client = a.client().await;
    let id = ClientId::new("one").unwrap();
    let start =
        || client.start_flow_with_client_id(id.clone(), "test.Notify", json!({ "text": "x" }));
    let started = futures::future::join_all((0..8).map(|_| start())).await;
    let started: Vec<_> = started.into_iter().map(Result::unwrap).collect();
    let flow = started[0].id().clone();
    assert!(started.iter().all(|running| *running.id() == flow));
    let fresh = started
        .iter()
        .filter(|running| !running.handle().reattached);
    assert_eq!(fresh.count(), 1);
    let result = started[0].result(PATIENCE).await.unwrap();
    assert_eq!(result["told"], "x");
    assert_eq!(world.outside("PartyA").performed.lock().unwrap().len(), 1);
    // The id is this flow's, whoever else would like it.
    let other = client.start_flow_with_client_id(id.clone(), "test.Nap", json!({ "millis": 1 }));
    assert_eq!(code(other.await), ErrorCode::Conflict);

    // The result outlives the process.
    a.stop().await;
    let a = world.start("PartyA").await;
    let again = start().await.unwrap();
    assert_eq!((again.id(), again.handle().reattached), (&flow, true));
    assert_eq!(again.result(PATIENCE).await.unwrap(), result);
    let finished = client.finished_flows_with_client_ids().await.unwrap();
    assert_eq!(finished.len(), 1);
    assert!(finished[0].succeeded && finished[0].client_id == id);

    assert!(client.remove_client_id(id.clone()).await.unwrap());
    assert!(!client.remove_client_id(id.clone()).await.unwrap());
    let gone = client.reattach_flow_with_client_id(id.clone()).await;
    assert_eq!(code(gone), ErrorCode::NotFound);
    let anew = start().await.unwrap();
    assert!(*anew.id() != flow && !anew.handle().reattached);
    anew.result(PATIENCE).await.unwrap();
    // A flow that runs keeps its id.
    let id = ClientId::new("two").unwrap();
    let nap = client.start_flow_with_client_id(id.clone(), "test.Nap", json!({ "millis": 60_000 }));
    let nap = nap.await.unwrap();
    assert_eq!(
        code(client.remove_client_id(id.clone()).await),
        ErrorCode::Conflict
    );
    assert!(client.kill_flow(nap.id().clone()).await.unwrap());
    assert!(nap.result(PATIENCE).await.is_err());
    assert!(client.remove_client_id(id).await.unwrap());
    a.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn flows_are_listed_paused_continued_cured_and_killed() {
    let world = World::new(vec![plan("PartyA"), plan("PartyB")]).await;
    let [a, b] = world.start_all(["PartyA", "PartyB"]).await;
    let client = a.client().await;

    // Asleep, then paused, over a restart, then continued.
    let nap = client
        .start_flow("test.Nap", json!({ "millis": 300 }))
        .await
        .unwrap();
    let long = client
        .start_flow("test.Nap", json!({ "millis": 600_000 }))
        .await
        .unwrap();
    let listed = client.flows().await.unwrap();
    assert!(
        listed
            .iter()
            .any(|flow| flow.flow_id == *long.id() && flow.class == "test.Nap")
    );
    eventually("the flow says what it does", || async {
        let status = long.status().await.unwrap();
        status.progress.as_deref() == Some("Sleeping.") && status.waiting_for.is_some()
    })
    .await;
    assert!(client.pause_flow(long.id().clone()).await.unwrap());
    reaches(&client, long.id(), FlowState::Paused).await;
    assert_eq!(nap.result(PATIENCE).await.unwrap(), json!(300));
    a.stop().await;
    let a = world.start("PartyA").await;
    assert_eq!(state(&client, long.id()).await, FlowState::Paused);
    assert!(client.retry_flow(long.id().clone()).await.unwrap());
    reaches(&client, long.id(), FlowState::Suspended).await;
    assert!(
        !client.retry_flow(long.id().clone()).await.unwrap(),
        "it runs"
    );

    // Ill, seen by the operator, tried in vain, cured.
    let ill = client.start_flow("test.Examine", json!({})).await.unwrap();
    reaches(&client, ill.id(), FlowState::Hospitalised).await;
    let records = client.hospital().await.unwrap();
    assert_eq!(records.len(), 1);
    assert!(
        records[0].error.contains("not well"),
        "{}",
        records[0].error
    );
    assert!(client.retry_flow(ill.id().clone()).await.unwrap());
    // It has left the hospital and come back: the state alone may still be the former one.
    eventually("it was tried and is ill again", || async {
        let again = client.hospital().await.unwrap();
        again.len() == 1 && again[0] != records[0]
    })
    .await;
    reaches(&client, ill.id(), FlowState::Hospitalised).await;
    assert_eq!(
        client
            .control_flows(FlowControl::PauseAllHospitalized)
            .await
            .unwrap(),
        1
    );
    reaches(&client, ill.id(), FlowState::Paused).await;
    world.outside("PartyA").well.store(true, Ordering::SeqCst);
    assert_eq!(
        client
            .control_flows(FlowControl::RetryAllPausedHospitalized)
            .await
            .unwrap(),
        1
    );
    assert_eq!(ill.result(PATIENCE).await.unwrap(), json!("well"));
    assert!(
        client
            .dump_checkpoints()
            .await
            .unwrap()
            .iter()
            .any(|c| c.flow_id == *long.id())
    );

    // Killed: it ends, and its counterparty's flow with it.
    let client_b = b.client().await;
    let ask = json!({ "peer": name("PartyB"), "millis": 600_000 });
    let asking = client.start_flow("test.Ask", ask).await.unwrap();
    eventually("the peer's flow runs", || async {
        client_b.flows().await.unwrap().len() == 1
    })
    .await;
    let theirs = client_b.flows().await.unwrap().remove(0).flow_id;
    for flow in [asking.id(), long.id()] {
        assert!(client.kill_flow(flow.clone()).await.unwrap());
        reaches(&client, flow, FlowState::Killed).await;
    }
    assert!(
        asking
            .result(PATIENCE)
            .await
            .unwrap_err()
            .to_string()
            .contains("kill")
    );
    assert!(
        !client.kill_flow(asking.id().clone()).await.unwrap(),
        "it is over"
    );
    assert!(client_b.kill_flow(theirs).await.unwrap());
    for client in [&client, &client_b] {
        eventually("no flow is left", || async {
            client.flows().await.unwrap().is_empty()
        })
        .await;
    }

    // What cannot be started.
    let start = |flow: &'static str, arguments| client.start_flow(flow, arguments);
    assert_eq!(
        code(start("test.Nothing", json!({})).await),
        ErrorCode::NotFound
    );
    let error = start("test.Nap", json!({ "millis": "soon" }))
        .await
        .err()
        .unwrap();
    assert_eq!(error.code(), Some(ErrorCode::InvalidArgument));
    assert!(error.to_string().contains("soon"), "{error}");
    assert_eq!(
        code(start("test.Notify", json!({ "text": "x", "tone": 1 })).await),
        ErrorCode::InvalidArgument
    );
    let unknown = FlowId::from_bytes([7; 16]);
    assert!(!client.kill_flow(unknown.clone()).await.unwrap());
    let status = client
        .flow_status(FlowKey::Flow(unknown), Duration::ZERO)
        .await;
    assert_eq!(code(status), ErrorCode::NotFound);
    for node in [a, b] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_node_starts_nothing_and_lets_its_peers_wait() {
    let world = World::new(vec![plan("PartyA"), plan("PartyB")]).await;
    let [a, b] = world.start_all(["PartyA", "PartyB"]).await;
    let (client_a, client_b) = (a.client().await, b.client().await);
    // What runs goes on.
    let running = client_b
        .start_flow("test.Ask", json!({ "peer": name("PartyA"), "millis": 200 }))
        .await
        .unwrap();
    client_b.set_flows_draining_mode(true).await.unwrap();
    assert_eq!(
        code(
            client_b
                .start_flow("test.Nap", json!({ "millis": 1 }))
                .await
        ),
        ErrorCode::Draining
    );
    assert_eq!(running.result(PATIENCE).await.unwrap(), json!(201));
    let waiting = client_a
        .start_flow("test.Ask", json!({ "peer": name("PartyB"), "millis": 1 }))
        .await
        .unwrap();
    // The mode is a property of the node, not of the process.
    b.stop().await;
    let b = world.start("PartyB").await;
    assert!(client_b.is_flows_draining_mode().await.unwrap());
    assert!(client_b.diagnostics().await.unwrap().draining);
    assert_eq!(
        code(
            client_b
                .start_flow("test.Nap", json!({ "millis": 1 }))
                .await
        ),
        ErrorCode::Draining
    );
    eventually("the peer's message is here", || async {
        let (_, text) = http(b.operations, "GET", "/metrics", None, "").await;
        text.contains("quorate_flows_held_messages 1")
    })
    .await;
    assert!(client_b.flows().await.unwrap().is_empty());
    assert!(!state(&client_a, waiting.id()).await.ended());
    client_b.set_flows_draining_mode(false).await.unwrap();
    assert_eq!(waiting.result(PATIENCE).await.unwrap(), json!(2));
    for node in [a, b] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_shuts_down_gracefully_ends_its_flows_first() {
    let world = World::new(vec![plan("PartyA")]).await;
    let a = world.start("PartyA").await;
    let client = a.client().await;
    let id = ClientId::new("last").unwrap();
    let nap = client.start_flow_with_client_id(id.clone(), "test.Nap", json!({ "millis": 700 }));
    let nap = nap.await.unwrap();
    client.graceful_shutdown(true).await.unwrap();
    assert_eq!(
        code(client.start_flow("test.Nap", json!({ "millis": 1 })).await),
        ErrorCode::Draining
    );
    a.stopped().await;
    let a = world.start("PartyA").await;
    let status = nap.status().await.unwrap();
    assert_eq!(
        (status.state, status.result),
        (FlowState::Completed, Some(json!(700)))
    );
    assert!(
        !client.is_flows_draining_mode().await.unwrap(),
        "the next start serves again"
    );
    run(&client, "test.Nap", json!({ "millis": 1 }))
        .await
        .unwrap();
    // Without draining, flows are continued by whoever starts next.
    let nap = client
        .start_flow("test.Nap", json!({ "millis": 500 }))
        .await
        .unwrap();
    client.graceful_shutdown(false).await.unwrap();
    a.stopped().await;
    let a = world.start("PartyA").await;
    assert_eq!(nap.result(PATIENCE).await.unwrap(), json!(500));
    a.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn users_may_do_what_they_are_permitted() {
    let world = World::new(three()).await;
    let [a, b, notary] = world.start_all(["PartyA", "PartyB", "Notary"]).await;
    let admin = a.client().await;
    issue(&admin, "5").await;
    let payer = a.client_of("payer", "pay").await.unwrap();
    pay(&payer, "5", "PartyB").await.unwrap();
    let issue = payer
        .start_flow("cash.Issue", json!({ "amount": "1", "currency": "GBP" }))
        .await;
    let error = issue.err().unwrap();
    assert_eq!(error.code(), Some(ErrorCode::PermissionDenied));
    assert!(
        error.to_string().contains("StartFlow.cash.Issue"),
        "{error}"
    );
    assert_eq!(code(payer.flows().await), ErrorCode::PermissionDenied);
    assert_eq!(
        code(payer.set_flows_draining_mode(true).await),
        ErrorCode::PermissionDenied
    );
    assert_eq!(
        code(payer.graceful_shutdown(false).await),
        ErrorCode::PermissionDenied
    );
    let wrong = a.client_of("payer", "secret").await;
    assert_eq!(code(wrong), ErrorCode::Unauthenticated);
    let unknown = a.client_of("nobody", "pay").await;
    assert_eq!(code(unknown), ErrorCode::Unauthenticated);
    for node in [a, b, notary] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn effects_and_attachments() {
    let world = World::new(three()).await;
    let [a, b, notary] = world.start_all(["PartyA", "PartyB", "Notary"]).await;
    let (client_a, client_b) = (a.client().await, b.client().await);
    // Performed once, with a name by which the outside recognises it.
    let told = run(&client_a, "test.Notify", json!({ "text": "hello" }))
        .await
        .unwrap();
    let performed = world.outside("PartyA").performed.lock().unwrap().clone();
    assert_eq!(performed, [told["identity"].as_str().unwrap()]);
    assert!(world.outside("PartyB").performed.lock().unwrap().is_empty());

    // An attachment travels with the transaction that names it.
    let bytes: Vec<u8> = (0..300_000u32).flat_map(|n| n.to_le_bytes()).collect();
    let id = client_a.upload_attachment(&bytes).await.unwrap();
    assert_eq!(client_a.upload_attachment(&bytes).await.unwrap(), id);
    assert!(!client_b.attachment_exists(id).await.unwrap());
    assert_eq!(
        code(client_b.open_attachment(id).await),
        ErrorCode::NotFound
    );
    let share = json!({ "attachment": id, "peer": name("PartyB") });
    let tx = run(&client_a, "test.Share", share).await.unwrap();
    let tx = tx.as_str().unwrap().parse().unwrap();
    eventually("the peer has it", || async {
        client_b.transaction(tx).await.is_ok_and(|t| t.is_final)
    })
    .await;
    assert_eq!(client_b.open_attachment(id).await.unwrap(), bytes);
    // One that nobody has.
    let nothing = quorate_ledger::AttachmentId::of(b"nothing");
    let share = json!({ "attachment": nothing, "peer": name("PartyB") });
    let error = run(&client_a, "test.Share", share)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("attachment"), "{error}");
    for node in [a, b, notary] {
        node.stop().await;
    }
}
