//! Cash between two parties, and what the vaults tell about it.

use std::time::Duration;

use quorate_ledger::TxId;
use quorate_ledger::vault::{Criteria, StateStatus, VaultQuery};
use quorate_rpc::api::{ClientId, FlowKey};
use quorate_rpc::{ErrorCode, TrackFrom};
use serde_json::json;

use crate::world::*;

async fn pay_and_look(world: World) {
    let [a, b, notary] = world.start_all(["PartyA", "PartyB", "Notary"]).await;
    let (client_a, client_b) = (a.client().await, b.client().await);
    let mut track = client_b.vault_track(TrackFrom::Now).await.unwrap();

    let issued = issue(&client_a, "100").await;
    let paid = pay(&client_a, "30.50", "PartyB").await.unwrap();
    assert_eq!(balance(&client_a).await, 6950);
    // The recipient records a moment later than the payer's flow ends.
    let update = tokio::time::timeout(PATIENCE, track.next())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(update.tx, paid);
    assert_eq!((update.produced.len(), update.consumed.len()), (1, 0));
    assert_eq!(
        update.produced[0].content.as_ref().unwrap()["amount"],
        json!("30.50 GBP")
    );
    assert_eq!(balance(&client_b).await, 3050);

    // Both have the same transaction with the notary's signature; the payer sees what it consumed.
    let (of_a, of_b) = (
        client_a.transaction(paid).await.unwrap(),
        client_b.transaction(paid).await.unwrap(),
    );
    assert!(of_a.is_final && of_b.is_final);
    assert_eq!(of_a.signed, of_b.signed);
    of_a.signed.verify_required_signatures().unwrap();
    assert_eq!(of_a.signed.signatures().len(), 2);
    assert_eq!(of_a.content, of_b.content);
    // The history came along.
    assert!(client_b.transaction(issued).await.unwrap().is_final);
    let consumed = VaultQuery {
        criteria: Criteria::Status(StateStatus::Consumed),
        ..VaultQuery::default()
    };
    let page = client_a.vault_query(&consumed).await.unwrap();
    assert_eq!(page.total, 1);
    assert_eq!(page.states[0].state.reference.tx, issued);
    assert_eq!(page.states[0].consumed_by, Some(paid));
    assert_eq!(client_b.vault_query(&consumed).await.unwrap().total, 0);

    // Back again, all of it, and too much.
    pay(&client_b, "30.50", "PartyA").await.unwrap();
    eventually("the money is back", || async {
        balance(&client_a).await == 10000
    })
    .await;
    assert_eq!(balance(&client_b).await, 0);
    let error = pay(&client_b, "0.01", "PartyA")
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("not enough"), "{error}");
    let unknown = TxId::from(quorate_identity::SecureHash::of(b"nothing"));
    let error = client_a.transaction(unknown).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::NotFound));
    for node in [a, b, notary] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_parties_pay_each_other_on_sqlite() {
    pay_and_look(World::new(three()).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_parties_pay_each_other_on_postgres() {
    if quorate_testkit::postgres::skipped() {
        return;
    }
    let plans = three().into_iter().map(Plan::on_postgres).collect();
    pay_and_look(World::new(plans).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_follows_the_vault_misses_nothing_while_the_node_is_away() {
    let world = World::new(three()).await;
    let [a, b, notary] = world.start_all(["PartyA", "PartyB", "Notary"]).await;
    let (client_a, client_b) = (a.client().await, b.client().await);
    // A coin for each payment, so that none has to wait for another's change.
    for _ in 0..4 {
        issue(&client_a, "2").await;
    }
    let mut track = client_b.vault_track(TrackFrom::Now).await.unwrap();
    let mut wanted = vec![pay(&client_a, "1", "PartyB").await.unwrap()];
    let next = async |track: &mut quorate_rpc::VaultTracker| {
        tokio::time::timeout(PATIENCE, track.next())
            .await
            .unwrap()
            .unwrap()
    };
    let first = next(&mut track).await;
    assert_eq!(first.tx, wanted[0]);

    // The node goes, is paid meanwhile, and comes back. The client and its tracker stay.
    b.stop().await;
    let mut flows = Vec::new();
    for _ in 0..3 {
        flows.push(
            client_a
                .start_flow("cash.Payment", payment("2", "PartyB"))
                .await
                .unwrap(),
        );
    }
    let b = world.start("PartyB").await;
    for flow in flows {
        let paid = flow.result(PATIENCE).await.unwrap();
        wanted.push(paid["tx"].as_str().unwrap().parse().unwrap());
    }
    let mut seen = vec![first.tx];
    while seen.len() < wanted.len() {
        seen.push(next(&mut track).await.tx);
    }
    seen[1..].sort();
    wanted[1..].sort();
    assert_eq!(seen, wanted);
    // An application that was restarted as well begins where it was.
    let mut again = client_b
        .vault_track(TrackFrom::Cursor(first.cursor))
        .await
        .unwrap();
    let mut later = Vec::new();
    for _ in 0..3 {
        later.push(next(&mut again).await.tx);
    }
    later.sort();
    assert_eq!(later, wanted[1..]);
    let more = tokio::time::timeout(Duration::from_millis(100), again.next()).await;
    assert!(more.is_err(), "nothing comes twice");
    for node in [a, b, notary] {
        node.stop().await;
    }
}

/// Whoever dies while payments are under way: all end, none is lost, none is doubled.
#[tokio::test(flavor = "multi_thread")]
async fn payments_survive_restarts_of_everybody() {
    const PAYMENTS: i64 = 80;
    /// So that starting them all takes longer than the restarts.
    const PAUSE: Duration = Duration::from_millis(25);
    let world = World::new(three()).await;
    let [a, b, notary] = world.start_all(["PartyA", "PartyB", "Notary"]).await;
    let client_a = a.client().await;
    let client_b = b.client().await;
    for _ in 0..PAYMENTS {
        issue(&client_a, "1").await;
    }
    let mut nodes = [Some(a), Some(b), Some(notary)];
    let paying = tokio::spawn({
        let client = client_a.clone();
        async move {
            for number in 0..PAYMENTS {
                let id = ClientId::new(format!("payment {number}")).unwrap();
                // A start whose answer is lost is repeated by the client: the id makes that safe.
                loop {
                    let started = client
                        .start_flow_with_client_id(
                            id.clone(),
                            "cash.Payment",
                            payment("1", "PartyB"),
                        )
                        .await;
                    match started {
                        Ok(_) => break,
                        Err(error) if error.retryable() => tokio::time::sleep(PAUSE).await,
                        Err(error) => panic!("{error}"),
                    }
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    });
    for round in 0..5 {
        let index = [0, 1, 2, 0, 1][round];
        nodes[index].take().unwrap().stop().await;
        let organisation = ["PartyA", "PartyB", "Notary"][index];
        nodes[index] = Some(world.start(organisation).await);
    }
    paying.await.unwrap();
    for number in 0..PAYMENTS {
        let id = ClientId::new(format!("payment {number}")).unwrap();
        client_a
            .flow_result(FlowKey::Client(id), PATIENCE)
            .await
            .unwrap();
    }
    let all = PAYMENTS * 100;
    eventually("the recipient has it all", || async {
        balance(&client_b).await == all
    })
    .await;
    assert_eq!(balance(&client_a).await, 0);
    for client in [&client_a, &client_b] {
        eventually("no flow is left", || async {
            client.flows().await.unwrap().is_empty()
        })
        .await;
    }
    for node in nodes.into_iter().flatten() {
        node.stop().await;
    }
}
