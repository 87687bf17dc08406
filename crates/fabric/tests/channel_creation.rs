//! Channel creation through the recorded system channel, and configurations that a channel cannot be joined with.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::PathBuf;

use prost::Message as _;
use quorate_fabric::block;
use quorate_fabric::config::{ChannelConfig, ConfigError, ProposedUpdate};
use quorate_fabric::envelope::{EnvelopeParts, RawEnvelope};
use quorate_fabric::proto::common::{Block, ConfigEnvelope};
use quorate_fabric::proto::orderer::{ChannelRestrictions, ConsensusType};
use quorate_identity::UnixTime;
use serde_json::Value as Json;

const NOW: UnixTime = UnixTime(1_795_183_767);

fn fixtures() -> PathBuf {
    PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../fixtures/fabric"
    ))
}

fn read_block(path: &str) -> Block {
    Block::decode(&std::fs::read(fixtures().join(path)).unwrap()[..]).unwrap()
}

fn data(envelope: RawEnvelope) -> bytes::Bytes {
    EnvelopeParts::parse(&envelope).unwrap().data
}

fn first_envelope(block: &Block) -> RawEnvelope {
    RawEnvelope::decode(block.data.as_ref().unwrap().data[0].clone()).unwrap()
}

/// The requests of the setup `system-channel` that ask for a channel, with the recorded answers.
fn requests() -> Vec<(String, RawEnvelope, String)> {
    let path = fixtures().join("statuses/statuses.json");
    let statuses: Json = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let cases = statuses["broadcast"].as_array().unwrap().iter();
    let requests = cases.filter_map(|case| {
        let name = case["name"].as_str().unwrap();
        if !name.starts_with("sys-create") || name == "sys-created-channel-transaction" {
            return None;
        }
        let file = fixtures()
            .join("statuses")
            .join(case["requests"][0].as_str().unwrap());
        let request = RawEnvelope::decode(std::fs::read(file).unwrap().into()).unwrap();
        let info = case["answers"][0]["info"].as_str().unwrap();
        Some((name.to_owned(), request, info.to_owned()))
    });
    requests.collect()
}

fn create(request: &RawEnvelope) -> Result<ProposedUpdate, ConfigError> {
    let system = ChannelConfig::from_block(&read_block("genesis/syschannel.block")).unwrap();
    let proposed = system.propose_channel(request)?;
    system.check_creation(&proposed, 1, NOW)?;
    Ok(proposed)
}

#[test]
fn a_system_channel_creates_what_was_recorded_and_refuses_the_rest() {
    let requests = requests();
    assert_eq!(requests.len(), 12);
    for (name, request, info) in requests {
        match name.as_str() {
            "sys-create" => {
                let proposed = create(&request).unwrap();
                let block =
                    read_block("statuses/system-channel/syschannel-orderer-transaction.block");
                let inner = RawEnvelope::decode(data(first_envelope(&block))).unwrap();
                let recorded = ConfigEnvelope::decode(&data(inner)[..]).unwrap();
                assert_eq!(proposed.envelope, recorded);
                // The new channel's first block is made of the CONFIG message inside.
                let inner = data(first_envelope(&block));
                let genesis = read_block("statuses/system-channel/fixturetx-genesis.block");
                let made = block::new_block(0, &[], vec![inner]);
                assert_eq!(made.header, genesis.header);
                assert_eq!(made.data, genesis.data);
                assert_eq!(proposed.next.channel_id(), "fixturetx");
                assert_eq!(proposed.next.sequence(), 1);
            }
            // By then it is an update of an existing channel.
            "sys-create-again" => {
                let genesis = read_block("statuses/system-channel/fixturetx-genesis.block");
                let channel = ChannelConfig::from_block(&genesis).unwrap();
                let refused = channel.propose_update(&request).unwrap_err();
                let refused =
                    refused.within("error applying config update to existing channel 'fixturetx'");
                assert_eq!(refused.to_string(), info);
            }
            _ => assert_eq!(create(&request).unwrap_err().to_string(), info, "{name}"),
        }
    }
}

/// The system channel with one value of its orderer group replaced.
fn system_with(key: &str, value: &impl prost::Message) -> ChannelConfig {
    let system = ChannelConfig::from_block(&read_block("genesis/syschannel.block")).unwrap();
    let mut config = system.proto().clone();
    let channel = config.channel_group.as_mut().unwrap();
    let orderer = channel.groups.get_mut("Orderer").unwrap();
    orderer.values.get_mut(key).unwrap().value = value.encode_to_vec();
    ChannelConfig::new("syschannel", config).unwrap()
}

#[test]
fn a_channel_is_created_only_where_there_is_room_and_no_maintenance() {
    let request = requests()
        .into_iter()
        .find_map(|(name, request, _)| (name == "sys-create").then_some(request))
        .unwrap();
    let refused = |system: &ChannelConfig, channels| {
        let proposed = system.propose_channel(&request).unwrap();
        let judged = system.check_creation(&proposed, channels, NOW);
        judged.err().map(|error| error.to_string())
    };

    let two = system_with("ChannelRestrictions", &ChannelRestrictions { max_count: 2 });
    assert_eq!(refused(&two, 2), None);
    assert_eq!(
        refused(&two, 3).unwrap(),
        "channel creation would exceed maximimum number of channels: 2"
    );

    let normal = ChannelConfig::from_block(&read_block("genesis/syschannel.block")).unwrap();
    let mut consensus = ConsensusType {
        r#type: "etcdraft".to_owned(),
        metadata: normal.orderer().consensus_metadata.clone(),
        state: 1,
    };
    assert_eq!(
        refused(&system_with("ConsensusType", &consensus), 1).unwrap(),
        "channel creation is not permitted: maintenance mode"
    );

    // The system channel's own consenters have changed since the new channel's were chosen.
    consensus.state = 0;
    let mut metadata = normal.raft_metadata().clone();
    metadata.consenters[0].client_tls_cert.push(b'\n');
    consensus.metadata = metadata.encode_to_vec();
    let proposed = normal.propose_channel(&request).unwrap();
    let changed = system_with("ConsensusType", &consensus);
    assert_eq!(
        changed
            .check_creation(&proposed, 1, NOW)
            .unwrap_err()
            .to_string(),
        "consensus metadata update for channel creation is invalid: new channel has consenter that is not part of system consenter set"
    );

    let application = ChannelConfig::from_block(&read_block("genesis/fixture1.block")).unwrap();
    assert_eq!(
        application
            .propose_channel(&request)
            .unwrap_err()
            .to_string(),
        "The ordering system channel does not appear to resources creating channels"
    );
}

#[test]
fn join_blocks_are_refused_as_recorded() {
    for (name, incompatible, text) in [
        (
            "no-orderer-group",
            true,
            "config does not contain orderer config",
        ),
        (
            "unsupported-channel-capability",
            true,
            "config requires unsupported channel capabilities: Channel capability V9_9 is required but not supported: Channel capability V9_9 is required but not supported",
        ),
        (
            "unsupported-orderer-capability",
            true,
            "config requires unsupported orderer capabilities: Orderer capability V9_9 is required but not supported: Orderer capability V9_9 is required but not supported",
        ),
        (
            "broken-policy",
            false,
            "initializing policymanager failed: policy Readers at path Channel/Application/Org1 did not compile: Error unmarshalling to SignaturePolicy: proto: cannot parse invalid wire-format data",
        ),
    ] {
        let block = read_block(&format!("participation/blocks/join-{name}.block"));
        let refused = ChannelConfig::from_block(&block).unwrap_err();
        // One or the other space follows Go's `proto:`.
        let refused_text = refused.to_string().replace('\u{a0}', " ");
        assert_eq!(refused_text, text, "{name}");
        assert_eq!(refused.is_incompatible(), incompatible, "{name}");
    }
    let other = read_block("participation/blocks/join-unknown-consensus-type.block");
    let other = ChannelConfig::from_block(&other).unwrap();
    assert_eq!(other.consensus_type(), "BFT");
    assert!(other.raft_metadata().consenters.is_empty());
    let bare = read_block("participation/blocks/join-no-groups.block");
    let bare = ChannelConfig::from_block(&bare).unwrap();
    assert!(bare.application().is_none() && bare.consortiums().is_none());
    // A block that creates a channel is not that channel's configuration.
    let creating = read_block("statuses/system-channel/syschannel-orderer-transaction.block");
    ChannelConfig::from_block(&creating).unwrap_err();
    ChannelConfig::from_block(&Block::default()).unwrap_err();
}
