//! The recorded identities, configurations and what they say about themselves.

#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use prost::Message as _;
use quorate_fabric::msp::{LocalMsp, Membership, Msp, SigningIdentity};
use quorate_fabric::policy::Policies;
use quorate_fabric::proto::common::{Block, ConfigEnvelope, ConfigGroup, Envelope, Payload};
use quorate_fabric::proto::msp::{MspConfig, SerializedIdentity};

pub(crate) fn fixtures() -> PathBuf {
    PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../fixtures/fabric"
    ))
}

pub(crate) fn read(path: impl AsRef<Path>) -> Vec<u8> {
    let path = fixtures().join(path);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

pub(crate) fn json(path: &str) -> serde_json::Value {
    serde_json::from_slice(&read(path)).unwrap()
}

/// The channel group of a config block.
pub(crate) fn channel_group(block: &Block) -> ConfigGroup {
    let data = &block.data.as_ref().unwrap().data[0];
    let envelope = Envelope::decode(&data[..]).unwrap();
    let payload = Payload::decode(&envelope.payload[..]).unwrap();
    let config = ConfigEnvelope::decode(&payload.data[..]).unwrap();
    config.config.unwrap().channel_group.unwrap()
}

pub(crate) fn genesis(name: &str) -> ConfigGroup {
    let block = Block::decode(&read(format!("genesis/{name}.block"))[..]).unwrap();
    channel_group(&block)
}

/// All organisations' definitions in a group and below it, by the name of the organisation.
pub(crate) fn definitions(group: &ConfigGroup) -> Vec<(String, MspConfig)> {
    let mut found = Vec::new();
    for (name, group) in &group.groups {
        if let Some(value) = group.values.get("MSP") {
            found.push((name.clone(), MspConfig::decode(&value.value[..]).unwrap()));
        }
        found.extend(definitions(group));
    }
    found
}

pub(crate) fn membership(group: &ConfigGroup) -> Arc<Membership> {
    Arc::new(Membership::new(definitions(group).iter().map(
        |(_, definition)| Arc::new(Msp::from_config(definition).unwrap()),
    )))
}

pub(crate) fn policies(group: &ConfigGroup) -> Policies {
    Policies::new("Channel", group, membership(group)).unwrap()
}

pub(crate) fn serialized(msp_id: &str, id_bytes: &[u8]) -> Vec<u8> {
    SerializedIdentity {
        mspid: msp_id.to_owned(),
        id_bytes: id_bytes.to_vec(),
    }
    .encode_to_vec()
}

/// A certificate and key of `crypto/special`, under the MSP ID that the index says.
pub(crate) fn special(name: &str) -> (String, Vec<u8>, Vec<u8>) {
    let index = json("crypto/special/index.json");
    let entry = index
        .as_array()
        .unwrap()
        .iter()
        .find(|entry| entry["name"] == name)
        .unwrap();
    (
        entry["msp_id"].as_str().unwrap().to_owned(),
        read(format!("crypto/special/{name}/cert.pem")),
        read(format!("crypto/special/{name}/key.pem")),
    )
}

pub(crate) fn special_signer(name: &str) -> SigningIdentity {
    let (msp_id, certificate, key) = special(name);
    SigningIdentity::from_pem(&msp_id, &certificate, &key).unwrap()
}

/// A node or user of the recorded organisations.
pub(crate) fn local(msp_id: &str, folder: &str) -> LocalMsp {
    LocalMsp::load(&fixtures().join("crypto").join(folder).join("msp"), msp_id).unwrap()
}

pub(crate) fn org1_user() -> LocalMsp {
    local(
        "Org1MSP",
        "peerOrganizations/org1.test/users/User1@org1.test",
    )
}

pub(crate) fn org1_admin() -> LocalMsp {
    local(
        "Org1MSP",
        "peerOrganizations/org1.test/users/Admin@org1.test",
    )
}

pub(crate) fn org2_admin() -> LocalMsp {
    local(
        "Org2MSP",
        "peerOrganizations/org2.test/users/Admin@org2.test",
    )
}

pub(crate) fn orderer0() -> LocalMsp {
    local(
        "OrdererOrgMSP",
        "ordererOrganizations/orderer.test/orderers/orderer0.orderer.test",
    )
}

/// Go puts a no-break space into its texts, or does not.
pub(crate) fn normalised(text: &str) -> String {
    text.replace('\u{a0}', " ")
}
