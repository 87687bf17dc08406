//! Notaries of every kind.

use std::collections::BTreeSet;

use quorate_ledger::StateRef;
use quorate_ledger::vault::{Criteria, VaultQuery};
use serde_json::json;

use crate::world::*;

/// What the notary of the network prevents, whatever kind it is.
async fn nobody_spends_twice(world: &World) {
    let [a, b, notary] = world.start_all(["PartyA", "PartyB", "Notary"]).await;
    let (client_a, client_b) = (a.client().await, b.client().await);
    let issued = issue(&client_a, "10").await;
    let paid = pay(&client_a, "4", "PartyB").await.unwrap();
    let again = json!({ "states": [StateRef::new(issued, 0)] });
    let error = run(&client_a, "test.SpendAgain", again)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(&paid.to_string()),
        "it names who was first: {error}"
    );
    assert_eq!(balance(&client_a).await, 600);
    // A chain of some length.
    for _ in 0..3 {
        eventually("the money has arrived", || async {
            balance(&client_b).await == 400
        })
        .await;
        pay(&client_b, "4", "PartyA").await.unwrap();
        eventually("the money is back", || async {
            balance(&client_a).await == 1000
        })
        .await;
        pay(&client_a, "4", "PartyB").await.unwrap();
    }
    for node in [a, b, notary] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_notary_that_sees_little_prevents_double_spends() {
    nobody_spends_twice(&World::new(three()).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_validating_notary_prevents_double_spends() {
    let notary = plan("Notary").with("notary { validating = true }");
    let world = World::new(vec![plan("PartyA"), plan("PartyB"), notary]).await;
    nobody_spends_twice(&world).await;
    // It has verified, and keeps, what it has signed; nothing of it is in its vault.
    let node = world.start("Notary").await;
    let client = node.client().await;
    let everything = VaultQuery {
        criteria: Criteria::All,
        ..VaultQuery::default()
    };
    assert_eq!(client.vault_query(&everything).await.unwrap().total, 0);
    assert!(client.flows().await.unwrap().is_empty());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn states_change_their_notary() {
    let plans = vec![
        plan("PartyA"),
        plan("PartyB"),
        plan("Notary").notary(),
        plan("OtherNotary").notary(),
    ];
    let world = World::new(plans).await;
    let [a, b, old, new] = world
        .start_all(["PartyA", "PartyB", "Notary", "OtherNotary"])
        .await;
    let (client_a, client_b) = (a.client().await, b.client().await);
    let notaries = client_a.notary_identities().await.unwrap();
    let names: BTreeSet<_> = notaries.iter().map(|notary| notary.name.clone()).collect();
    assert_eq!(names, [name("Notary"), name("OtherNotary")].into());
    let issue = json!({ "amount": "10", "currency": "GBP", "notary": name("Notary") });
    let issued = run(&client_a, "cash.Issue", issue).await.unwrap();
    let state: StateRef = serde_json::from_value(issued["state"].clone()).unwrap();
    let under_new = json!({ "amount": "3", "currency": "GBP", "recipient": name("PartyB"), "notary": name("OtherNotary") });
    let error = run(&client_a, "cash.Payment", under_new.clone())
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("not enough"), "{error}");

    let change = json!({ "states": [state], "notary": name("OtherNotary") });
    run(&client_a, "quorate.ChangeNotary", change.clone())
        .await
        .unwrap();
    run(&client_a, "cash.Payment", under_new).await.unwrap();
    eventually("the money has arrived", || async {
        balance(&client_b).await == 300
    })
    .await;
    assert_eq!(balance(&client_a).await, 700);
    // The old one is consumed, also for the old notary.
    let error = run(&client_a, "quorate.ChangeNotary", change)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("not enough"), "{error}");
    let again = json!({ "states": [state] });
    let error = run(&client_a, "test.SpendAgain", again)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("consumed already"), "{error}");
    for node in [a, b, old, new] {
        node.stop().await;
    }
}

/// A notary with next to no room declines, and nobody's payment fails for that.
#[tokio::test(flavor = "multi_thread")]
async fn clients_come_back_to_an_overloaded_notary() {
    const PAYMENTS: usize = 24;
    let small = "notary { validating = false, jpa { maxQueueSize = 1, maxBatchSize = 1 } }";
    let plans = vec![plan("PartyA"), plan("PartyB"), plan("Notary").with(small)];
    let world = World::new(plans).await;
    let [a, b, notary] = world.start_all(["PartyA", "PartyB", "Notary"]).await;
    let (client_a, client_b) = (a.client().await, b.client().await);
    for _ in 0..PAYMENTS {
        issue(&client_a, "1").await;
    }
    let start = || client_a.start_flow("cash.Payment", payment("1", "PartyB"));
    let flows = futures::future::join_all((0..PAYMENTS).map(|_| start())).await;
    for flow in flows {
        flow.unwrap().result(PATIENCE).await.unwrap();
    }
    eventually("all has arrived", || async {
        balance(&client_b).await == PAYMENTS as i64 * 100
    })
    .await;
    let (_, metrics) = http(notary.operations, "GET", "/metrics", None, "").await;
    let declined = metrics
        .lines()
        .find_map(|line| line.strip_prefix("quorate_notary_overloads_total "));
    let declined: u64 = declined.expect("the metric is there").parse().unwrap();
    assert!(declined > 0, "the test means to overload it");
    for node in [a, b, notary] {
        node.stop().await;
    }
}
