//! Updates that were made by Fabric's tools are signed, and what comes out is what those tools read: a CONFIG_UPDATE
//! envelope, as `peer channel signconfigtx` writes it.

use std::fs;
use std::path::Path;

use prost::Message as _;
use quorate_fabric::config::{ChannelConfig, open_config_update};
use quorate_fabric::envelope::RawEnvelope;
use quorate_fabric::proto::common::{Block, ConfigUpdateEnvelope, Envelope, Header, Payload};

use crate::{Ended, fixture, quorate, text};

const ORDERER_ADMIN: (&str, &str) = (
    "OrdererOrgMSP",
    "crypto/ordererOrganizations/orderer.test/users/Admin@orderer.test/msp",
);
const ORG1_ADMIN: (&str, &str) = (
    "Org1MSP",
    "crypto/peerOrganizations/org1.test/users/Admin@org1.test/msp",
);

fn sign(folder: &Path, file: &str, (msp_id, msp): (&str, &str), more: &[&str]) -> Ended {
    let msp = text(&fixture(msp));
    let mut arguments = vec![
        "channel",
        "sign",
        file,
        "--msp-id",
        msp_id,
        "--msp-dir",
        &msp,
    ];
    arguments.extend(more);
    quorate(folder, &arguments, &[])
}

fn update_in(folder: &Path, file: &str) -> (RawEnvelope, ConfigUpdateEnvelope) {
    let bytes = fs::read(folder.join(file)).unwrap();
    let envelope = RawEnvelope::decode(bytes.into()).unwrap();
    let (channel, update) = open_config_update(&envelope).unwrap();
    assert_eq!(channel, "fixture");
    (envelope, update)
}

fn genesis() -> (String, ChannelConfig) {
    let path = fixture("genesis/fixture.block");
    let block = Block::decode(&fs::read(&path).unwrap()[..]).unwrap();
    (text(&path), ChannelConfig::from_block(&block).unwrap())
}

#[test]
fn an_unsigned_update_of_fabrics_tools_is_signed_by_one_after_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let (block, config) = genesis();
    fs::copy(
        fixture("config-updates/00-x08-unsigned.pb"),
        folder.join("update.pb"),
    )
    .unwrap();
    let (_, unsigned) = update_in(folder, "update.pb");
    assert!(unsigned.signatures.is_empty());

    let shown = sign(folder, "update.pb", ORG1_ADMIN, &["--config-block", &block]).well();
    for words in [
        "an update of channel fixture",
        "max_message_count: ",
        "- /Channel/Orderer/Admins: 1 of 1, there are 0",
        "signed by Org1MSP: ",
        "written to update.pb",
    ] {
        assert!(shown.contains(words), "{words}: {shown}");
    }
    // In place, and what was to be signed is as it was.
    let (envelope, once) = update_in(folder, "update.pb");
    assert_eq!(once.config_update, unsigned.config_update);
    assert_eq!(once.signatures.len(), 1);
    assert!(config.propose_update(&envelope).is_err());

    sign(folder, "update.pb", ORDERER_ADMIN, &["--output", "both.pb"]).well();
    let (envelope, both) = update_in(folder, "both.pb");
    assert_eq!(both.signatures.len(), 2);
    assert_eq!(both.signatures[0], once.signatures[0]);
    config.propose_update(&envelope).unwrap();
    assert_eq!(update_in(folder, "update.pb").1, once);
    // A copy is not written over another one; a second signature of the same is none.
    sign(folder, "update.pb", ORDERER_ADMIN, &["--output", "both.pb"]).badly(&["both.pb"]);
    let again = sign(folder, "both.pb", ORG1_ADMIN, &[]).well();
    assert!(again.contains("has signed already"), "{again}");
    assert_eq!(update_in(folder, "both.pb").1, both);

    // What Fabric's tool looks at: an envelope, its payload, both headers, the type and the channel.
    let outer = Envelope::decode(&fs::read(folder.join("both.pb")).unwrap()[..]).unwrap();
    let payload = Payload::decode(&outer.payload[..]).unwrap();
    let Header {
        channel_header,
        signature_header,
    } = payload.header.unwrap();
    assert!(!outer.signature.is_empty() && !channel_header.is_empty());
    assert!(!signature_header.is_empty());
}

#[test]
fn a_bare_update_of_configtxlator_becomes_a_message() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let (_, config) = genesis();
    let bytes = fs::read(fixture("config-updates/01-batch-size.pb")).unwrap();
    let envelope = RawEnvelope::decode(bytes.into()).unwrap();
    let (_, update) = open_config_update(&envelope).unwrap();
    fs::write(folder.join("update.pb"), &update.config_update).unwrap();
    sign(
        folder,
        "update.pb",
        ORDERER_ADMIN,
        &["--output", "signed.pb"],
    )
    .well();
    let (envelope, signed) = update_in(folder, "signed.pb");
    assert_eq!(signed.config_update, update.config_update);
    config.propose_update(&envelope).unwrap();

    // What is no update is not signed.
    let block = text(&fixture("genesis/fixture.block"));
    sign(folder, &block, ORDERER_ADMIN, &["--output", "no.pb"])
        .badly(&["fixture.block holds no configuration update"]);
    // Neither is one that does not fit, when there is something to compare it with.
    let newer = text(&fixture("config-updates/01-batch-size.block"));
    let more = ["--output", "no.pb", "--config-block", &newer];
    sign(folder, "signed.pb", ORDERER_ADMIN, &more)
        .badly(&["does not fit the configuration in", "01-batch-size.block"]);
    assert!(!folder.join("no.pb").exists());
}
