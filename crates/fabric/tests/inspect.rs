//! What is shown of blocks and envelopes, compared with what Fabric's own tool shows.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::PathBuf;

use proptest::prelude::*;
use prost::Message as _;
use quorate_fabric::inspect;
use quorate_fabric::proto::common::{
    Block, ChannelHeader, ConfigEnvelope, Envelope, Header, HeaderType, Payload,
};
use serde_json::Value as Json;

fn file(name: &str) -> Vec<u8> {
    let folder = PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../fixtures/fabric"
    ));
    std::fs::read(folder.join(name)).unwrap()
}

#[test]
fn blocks_are_shown_as_configtxlator_shows_them() {
    for name in ["fixture", "fixture1", "fixturecrl", "syschannel"] {
        let block = Block::decode(&file(&format!("genesis/{name}.block"))[..]).unwrap();
        let expected: Json =
            serde_json::from_slice(&file(&format!("genesis/{name}.json"))).unwrap();
        assert_eq!(inspect::block(&block), expected, "{name}");
    }
}

#[test]
fn config_updates_are_shown_as_configtxlator_shows_them() {
    let expected: Json = serde_json::from_slice(&file("genesis/fixturetx.json")).unwrap();
    assert_eq!(inspect::envelope(&file("genesis/fixturetx.pb")), expected);
}

#[test]
fn signed_updates_name_their_signers() {
    let shown = inspect::envelope(&file("config-updates/01-batch-size.pb"));
    let payload = &shown["payload"];
    let creator = &payload["header"]["signature_header"]["creator"];
    assert_eq!(creator["mspid"], "OrdererOrgMSP");
    let signature = &payload["data"]["signatures"][0];
    assert_eq!(
        signature["signature_header"]["creator"]["mspid"],
        "OrdererOrgMSP"
    );
    let size =
        &payload["data"]["config_update"]["write_set"]["groups"]["Orderer"]["values"]["BatchSize"];
    assert!(size["value"]["max_message_count"].is_u64(), "{size}");

    // The same stands in the block that it led to.
    let block = Block::decode(&file("config-updates/01-batch-size.block")[..]).unwrap();
    let block = inspect::block(&block);
    let last_update = &block["data"]["data"][0]["payload"]["data"]["last_update"];
    assert_eq!(last_update["payload"]["data"], payload["data"]);
}

#[test]
fn what_cannot_be_decoded_stays_as_it_is() {
    assert_eq!(inspect::envelope(&[0xff, 0xff]), "//8=");
    let envelope = Envelope {
        payload: vec![0xff, 0xff].into(),
        ..Default::default()
    };
    let shown = inspect::envelope(&envelope.encode_to_vec());
    assert_eq!(shown["payload"], "//8=");
    assert_eq!(inspect::envelope(&[]), Json::Null);
}

#[test]
fn envelopes_in_envelopes_come_to_an_end() {
    // A hostile block could nest them a hundred thousand times.
    let mut encoded = Vec::new();
    for _ in 0..20_000 {
        encoded = made(HeaderType::OrdererTransaction, encoded);
    }
    let mut shown = &inspect::envelope(&encoded);
    let mut depth = 0;
    while shown.is_object() {
        shown = &shown["payload"]["data"];
        depth += 1;
    }
    assert_eq!(depth, 8);
    assert!(shown.is_string());
}

/// An encoded envelope of the given type.
fn made(header_type: HeaderType, data: Vec<u8>) -> Vec<u8> {
    let channel_header = ChannelHeader {
        r#type: header_type as i32,
        ..Default::default()
    };
    let payload = Payload {
        header: Some(Header {
            channel_header: channel_header.encode_to_vec(),
            signature_header: Vec::new(),
        }),
        data,
    };
    Envelope {
        payload: payload.encode_to_vec().into(),
        ..Default::default()
    }
    .encode_to_vec()
}

#[test]
fn people_see_policies_and_certificates() {
    let block = Block::decode(&file("genesis/fixture1.block")[..]).unwrap();
    let text = inspect::block_text(&block);
    for line in [
        "block 0",
        "  previous hash: none",
        "    last config: block 0",
        "  envelope 0: ",
        "channel_id: fixture1",
        "policy: OR('Org1MSP.admin', 'Org1MSP.peer', 'Org1MSP.client')",
        "policy: MAJORITY Admins",
        "host: 127.0.0.1",
        "server_tls_cert: C=US, ST=California, L=San Francisco, CN=orderer0.orderer.test (until Nov 17 13:08:00 2036 +00:00)",
    ] {
        assert!(text.contains(line), "{line:?} in\n{text}");
    }
    assert!(!text.contains("LS0tLS1CRUdJTi"), "undecoded PEM in\n{text}");

    let envelope = Envelope::decode(block.data.unwrap().data[0].clone()).unwrap();
    let payload = Payload::decode(envelope.payload).unwrap();
    let config = ConfigEnvelope::decode(&payload.data[..])
        .unwrap()
        .config
        .unwrap();
    assert!(inspect::config_text(&config).contains("tick_interval: 200ms"));
}

#[test]
fn people_see_who_signed_a_block() {
    let block = Block::decode(&file("chain/05.block")[..]).unwrap();
    let text = inspect::block_text(&block);
    assert!(text.contains("    raft: index "), "{text}");
    assert!(
        text.contains("    signed by OrdererOrgMSP: C=US, "),
        "{text}"
    );
    assert!(inspect::block_text(&Block::default()).starts_with("block without header"));
}

proptest! {
    #[test]
    fn damage_never_panics(flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20)) {
        let mut bytes = file("genesis/fixture1.block");
        for (place, value) in flips {
            let length = bytes.len();
            bytes[place.index(length)] = value;
        }
        if let Ok(block) = Block::decode(&bytes[..]) {
            let _ = (inspect::block(&block), inspect::block_text(&block));
        }
        let _ = inspect::envelope(&bytes);
    }
}
