//! Genesis blocks from the recorded `configtx.yaml`, compared with those that `configtxgen` made from it.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::PathBuf;

use prost::Message as _;
use quorate_fabric::block;
use quorate_fabric::envelope::{EnvelopeParts, RawEnvelope};
use quorate_fabric::genesis::{BesideConfigtx, GenesisError, Profile};
use quorate_fabric::inspect;
use quorate_fabric::proto::common::{Block, ConfigEnvelope, ConfigGroup};

fn folder() -> PathBuf {
    PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../fixtures/fabric"
    ))
}

fn configtx() -> String {
    std::fs::read_to_string(folder().join("configtx.yaml")).unwrap()
}

fn make(profile: &str, configtx: &str) -> Result<Block, GenesisError> {
    let files = BesideConfigtx(folder());
    let channel = "fixture".parse().unwrap();
    Profile::read(configtx, profile)?.genesis_block(&channel, &files, 0, b"nonce")
}

/// A recorded block's envelope, opened.
fn opened(block: &Block) -> (EnvelopeParts, ConfigEnvelope) {
    let envelope = block.data.as_ref().unwrap().data[0].clone();
    let parts = EnvelopeParts::parse(&RawEnvelope::decode(envelope).unwrap()).unwrap();
    let config = ConfigEnvelope::decode(parts.data.clone()).unwrap();
    (parts, config)
}

#[test]
fn blocks_are_those_of_configtxgen() {
    for (profile, channel) in [
        ("Fixture1", "fixture1"),
        ("Fixture3", "fixture"),
        ("FixtureCRL", "fixturecrl"),
        ("FixtureSystem", "syschannel"),
    ] {
        let file = folder().join(format!("genesis/{channel}.block"));
        let recorded = Block::decode(&std::fs::read(file).unwrap()[..]).unwrap();
        let (parts, config) = opened(&recorded);
        let made = Profile::read(&configtx(), profile)
            .unwrap()
            .genesis_block(
                &channel.parse().unwrap(),
                &BesideConfigtx(folder()),
                parts.channel_header.timestamp.unwrap().seconds,
                &parts.signature_header().unwrap().nonce,
            )
            .unwrap_or_else(|e| panic!("{profile}: {e:?}"));

        let (made_parts, made_config) = opened(&made);
        assert_eq!(made_parts.channel_header, parts.channel_header);
        assert_eq!(made_parts.signature_header, parts.signature_header);
        // Readable, should it ever differ; then everything.
        let shown = |config: &ConfigEnvelope| inspect::config_text(config.config.as_ref().unwrap());
        assert_eq!(shown(&made_config), shown(&config), "{profile}");
        let root = |config: &ConfigEnvelope| config.config.clone().unwrap().channel_group.unwrap();
        same("Channel", &root(&made_config), &root(&config));
        assert!(made_config == config, "{profile}");
        assert_eq!(made.metadata, recorded.metadata);
        // The order of maps is random over there, so the bytes may differ, but not how many there are.
        assert_eq!(made.encoded_len(), recorded.encoded_len());
        block::check_data_hash(&made).unwrap();
        assert!(block::is_config(&made));
    }
}

/// Compares group by group, so that a difference is named by its path.
fn same(path: &str, made: &ConfigGroup, recorded: &ConfigGroup) {
    for (name, value) in &recorded.values {
        assert_eq!(made.values.get(name), Some(value), "{path}/{name}");
    }
    for (name, policy) in &recorded.policies {
        assert_eq!(made.policies.get(name), Some(policy), "{path}/{name}");
    }
    for (name, group) in &recorded.groups {
        same(&format!("{path}/{name}"), &made.groups[name], group);
    }
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let block = make("Fixture3", &configtx()).unwrap();
    let again = make("Fixture3", &configtx()).unwrap();
    assert_eq!(block.encode_to_vec(), again.encode_to_vec());
}

/// The recorded file with a change to its profile `Fixture1`.
fn changed(from: &str, to: &str) -> String {
    let text = configtx();
    assert!(text.contains(from), "{from}");
    text.replacen(from, to, 1)
}

#[test]
fn defaults_are_those_of_configtxgen() {
    let text = changed("  BatchTimeout: 200ms\n", "  BatchTimeout: 90s\n");
    let text = text.replacen("    MaxMessageCount: 10\n", "", 1);
    let text = text.replacen(
        "    AbsoluteMaxBytes: 64 KB\n",
        "    AbsoluteMaxBytes: 70000\n",
        1,
    );
    let text = text.replacen("      ElectionTick: 10\n", "", 1);
    let text = text.replacen("      SnapshotIntervalSize: 16 MB\n", "", 1);
    let block = make("Fixture1", &text).unwrap();
    let (_, config) = opened(&block);
    let shown = inspect::config_text(&config.config.unwrap());
    for line in [
        "timeout: 1m30s",
        "max_message_count: 500",
        "absolute_max_bytes: 70000",
        "preferred_max_bytes: 32768",
        "election_tick: 10",
        "snapshot_interval_size: 16777216",
    ] {
        assert!(shown.contains(line), "{line} in\n{shown}");
    }
}

#[test]
fn refusals_name_the_setting() {
    let refusal = |from: &str, to: &str| {
        let error = make("Fixture1", &changed(from, to)).unwrap_err();
        let source = std::error::Error::source(&error).map(ToString::to_string);
        format!("{error} {}", source.unwrap_or_default())
    };
    for (from, to, expected) in [
        (
            "OrdererType: etcdraft",
            "OrdererType: solo",
            "Orderer.OrdererType: unknown orderer type: solo",
        ),
        (
            "AbsoluteMaxBytes: 64 KB",
            "AbsoluteMaxBytes: 64 XB",
            "AbsoluteMaxBytes: \"64 XB\" is neither",
        ),
        (
            "AbsoluteMaxBytes: 64 KB",
            "AbsoluteMaxBytes: 4 GB",
            "does not fit",
        ),
        (
            "BatchTimeout: 200ms",
            "BatchTimeout: soon",
            "BatchTimeout: time: invalid duration",
        ),
        (
            "ElectionTick: 10",
            "ElectionTick: 1",
            "election tick must be greater",
        ),
        ("BatchTimeout:", "BatchTimeOut:", "BatchTimeOut"),
        (
            "    BlockValidation:\n      Type: ImplicitMeta\n      Rule: \"ANY Writers\"\n",
            "",
            "no BlockValidation policy",
        ),
        (
            "Rule: \"MAJORITY Admins\"",
            "Rule: \"MOST Admins\"",
            "invalid implicit meta policy rule 'MOST Admins'",
        ),
        (
            "Rule: \"OR('Org1MSP.peer')\"",
            "Rule: \"OR(Org1MSP.peer)\"",
            "Application organization Org1 policy Endorsement",
        ),
        (
            "- Host: 127.0.0.1\n        Port: 21050",
            "- Port: 21050",
            "did not specify host",
        ),
        (
            "ServerTLSCert: crypto/",
            "ServerTLSCert: nowhere/",
            "127.0.0.1:21050 from nowhere/",
        ),
        (
            "MSPDir: crypto/ordererOrganizations/orderer.test/msp",
            "MSPDir: nowhere",
            "for org OrdererOrg from nowhere",
        ),
    ] {
        let refusal = refusal(from, to);
        assert!(refusal.contains(expected), "{expected:?} in {refusal:?}");
    }
    let error = make("Fixture9", &configtx()).unwrap_err().to_string();
    assert!(
        error.contains("could not find profile: Fixture9; the file has Fixture1, "),
        "{error}"
    );
    let error = make("Fixture1", "Profiles: [").unwrap_err().to_string();
    assert!(
        error.starts_with("configtx.yaml cannot be read: "),
        "{error}"
    );
}
