//! Nodes whose keys are in a hardware security module: they pay each other, it goes away, it comes back.

use std::path::Path;
use std::time::Duration;

use quorate_node::config::{LoadOptions, NodeConfiguration};
use quorate_node::crypto_service;
use quorate_rpc::Client;
use quorate_rpc::api::{FlowKey, FlowState};
use quorate_testkit::softhsm::{PIN, SoftHsm, Tokens, library};

use crate::world::*;

const TOKEN: &str = "quorate nodes";

/// A node with all of its keys in the token, under labels of its own.
fn in_module(organisation: &'static str, conf: &Path) -> Plan {
    let (lower, conf) = (organisation.to_ascii_lowercase(), conf.display());
    let service = format!(r#"cryptoServiceName = PKCS11, cryptoServiceConf = "{conf}""#);
    plan(organisation).with(&format!(
        "{service}\nenterpriseConfiguration {{ tlsCryptoServiceConfig {{ {service} }}\n\
         identityKeyAlias = {lower}-identity, clientCaKeyAlias = {lower}-ca, tlsKeyAlias = {lower}-tls }}"
    ))
}

async fn state(client: &Client, key: FlowKey) -> FlowState {
    let status = client.flow_status(key, Duration::ZERO).await;
    status.unwrap().state
}

async fn exercise(tokens: Tokens) {
    let folder = tempfile::tempdir().unwrap();
    let conf = folder.path().join("hsm.conf");
    let library = library().unwrap();
    let text = format!(
        "library = \"{}\"\ntokenLabel = \"{TOKEN}\"\npin = \"{PIN}\"\n",
        library.display()
    );
    std::fs::write(&conf, text).unwrap();
    let world = World::new(vec![
        in_module("PartyA", &conf).with("cryptoServiceFlowRetryCount = 1"),
        in_module("PartyB", &conf).with("cryptoServiceFlowRetryCount = -1"),
        in_module("Notary", &conf).notary(),
    ])
    .await;

    for organisation in ["PartyA", "PartyB", "Notary"] {
        let directory = world.directory(organisation);
        for file in ["nodekeystore.json", "sslkeystore.json"] {
            let text = std::fs::read_to_string(directory.join("certificates").join(file)).unwrap();
            assert!(
                text.contains("certificates") && !text.contains("privateKey"),
                "{text}"
            );
        }
        let configuration =
            NodeConfiguration::load(&directory, None, &LoadOptions::default()).unwrap();
        assert!(!format!("{configuration:?}{}", configuration.describe()).contains(PIN));
        let keys = crypto_service::list(&configuration.crypto_services).unwrap();
        assert_eq!(keys.len(), 9);
        assert_eq!(keys.iter().filter(|key| key.purpose.is_some()).count(), 3);
    }

    let [a, b, notary] = world.start_all(["PartyA", "PartyB", "Notary"]).await;
    let (client_a, client_b) = (a.client().await, b.client().await);
    issue(&client_a, "100").await;
    pay(&client_a, "30", "PartyB").await.unwrap();
    eventually("the money is there", || async {
        balance(&client_b).await == 3000
    })
    .await;
    pay(&client_b, "10", "PartyA").await.unwrap();

    tokens.take_away().unwrap();
    let held = client_a
        .start_flow("cash.Payment", payment("20", "PartyB"))
        .await
        .unwrap();
    let key = || FlowKey::Flow(held.id().clone());
    eventually("the flow is held", || async {
        state(&client_a, key()).await == FlowState::Hospitalised
    })
    .await;
    let records = client_a.hospital().await.unwrap();
    let told = format!("{records:?}");
    assert!(
        told.contains("cannot sign now") && !told.contains(PIN),
        "{told}"
    );
    let failed = pay(&client_b, "5", "PartyA").await.unwrap_err();
    assert!(failed.to_string().contains("cannot sign now"), "{failed}");

    tokens.bring_back().unwrap();
    assert!(client_a.retry_flow(held.id().clone()).await.unwrap());
    held.result(PATIENCE).await.unwrap();
    eventually("both have what they should", || async {
        balance(&client_a).await == 6000 && balance(&client_b).await == 4000
    })
    .await;
    pay(&client_b, "5", "PartyA").await.unwrap();
    for node in [a, b, notary] {
        node.stop().await;
    }
}

#[test]
fn nodes_with_keys_in_a_module_pay_through_its_outage() {
    let Some(tokens) = Tokens::of_this_process() else {
        let hsm = SoftHsm::new().unwrap();
        hsm.add_token(TOKEN).unwrap();
        hsm.in_own_process("hsm::nodes_with_keys_in_a_module_pay_through_its_outage")
            .unwrap();
        return;
    };
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(exercise(tokens));
}
