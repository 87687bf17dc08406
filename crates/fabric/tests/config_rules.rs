//! Rules of configurations and their updates that were not recorded: updates made and signed here, with the recorded
//! organisations' keys.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::PathBuf;

use prost::Message as _;
use quorate_fabric::config::raft_config::{check, check_change, membership_change};
use quorate_fabric::config::{
    ChannelConfig, ConfigError, ConsensusState, ProposedUpdate, compute_update, sign_update,
};
use quorate_fabric::envelope::{RawEnvelope, sign};
use quorate_fabric::msp::LocalMsp;
use quorate_fabric::proto::common::{
    Block, Capabilities, ChannelHeader, Config, ConfigGroup, ConfigUpdateEnvelope, ConfigValue,
    HeaderType, OrdererAddresses,
};
use quorate_fabric::proto::etcdraft::{BlockMetadata, ConfigMetadata};
use quorate_fabric::proto::orderer::{ConsensusType, KafkaBrokers};
use quorate_identity::UnixTime;

const NOW: UnixTime = UnixTime(1_795_183_767);

fn fixtures() -> PathBuf {
    PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../fixtures/fabric"
    ))
}

fn base() -> ChannelConfig {
    config("genesis/fixture.block")
}

fn config(path: &str) -> ChannelConfig {
    let bytes = std::fs::read(fixtures().join(path)).unwrap();
    ChannelConfig::from_block(&Block::decode(&bytes[..]).unwrap()).unwrap()
}

fn admin(org: &str, domain: &str, msp_id: &str) -> LocalMsp {
    let folder = fixtures().join(format!("crypto/{org}/{domain}/users/Admin@{domain}/msp"));
    LocalMsp::load(&folder, msp_id).unwrap()
}

fn channel(config: &mut Config) -> &mut ConfigGroup {
    config.channel_group.as_mut().unwrap()
}

fn group<'a>(config: &'a mut Config, name: &str) -> &'a mut ConfigGroup {
    channel(config).groups.get_mut(name).unwrap()
}

fn set(group: &mut ConfigGroup, key: &str, value: &impl prost::Message) {
    let entry = group.values.entry(key.to_owned()).or_insert(ConfigValue {
        mod_policy: "Admins".to_owned(),
        ..ConfigValue::default()
    });
    entry.value = value.encode_to_vec();
}

fn capabilities(names: &[&str]) -> Capabilities {
    let names = names.iter();
    Capabilities {
        capabilities: names
            .map(|name| ((*name).to_owned(), Default::default()))
            .collect(),
    }
}

fn consensus(config: &ChannelConfig, change: impl FnOnce(&mut ConfigMetadata)) -> ConsensusType {
    let mut metadata = config.raft_metadata().clone();
    change(&mut metadata);
    ConsensusType {
        r#type: config.consensus_type().to_owned(),
        metadata: metadata.encode_to_vec(),
        state: i32::from(config.state() == ConsensusState::Maintenance),
    }
}

/// The update that makes this change, signed by all admins there are.
fn update(config: &ChannelConfig, change: impl FnOnce(&mut Config)) -> RawEnvelope {
    let mut next = config.proto().clone();
    change(&mut next);
    let update = compute_update(config.channel_id(), config.proto(), &next).unwrap();
    let config_update = update.encode_to_vec();
    let admins = [
        admin("ordererOrganizations", "orderer.test", "OrdererOrgMSP"),
        admin("ordererOrganizations", "orderer2.test", "OrdererOrg2MSP"),
        admin("peerOrganizations", "org1.test", "Org1MSP"),
    ];
    let signatures = admins
        .iter()
        .map(|admin| sign_update(&config_update, b"nonce", admin).unwrap())
        .collect();
    let header = ChannelHeader {
        r#type: HeaderType::ConfigUpdate as i32,
        channel_id: config.channel_id().to_owned(),
        ..ChannelHeader::default()
    };
    let data = ConfigUpdateEnvelope {
        config_update,
        signatures,
    };
    sign(&header, data.encode_to_vec(), b"nonce", &admins[0]).unwrap()
}

fn propose(
    config: &ChannelConfig,
    change: impl FnOnce(&mut Config),
) -> Result<ProposedUpdate, ConfigError> {
    config.propose_update(&update(config, change))
}

fn refusal(config: &ChannelConfig, change: impl FnOnce(&mut Config)) -> String {
    propose(config, change).unwrap_err().to_string()
}

/// A configuration that nobody proposed.
fn made(
    config: &ChannelConfig,
    change: impl FnOnce(&mut Config),
) -> Result<ChannelConfig, ConfigError> {
    let mut next = config.proto().clone();
    change(&mut next);
    ChannelConfig::new(config.channel_id(), next)
}

#[test]
fn an_update_made_here_is_accepted_like_a_recorded_one() {
    let base = base();
    let proposed = propose(&base, |config| {
        let addresses = OrdererAddresses {
            addresses: vec!["127.0.0.1:1".to_owned()],
        };
        set(channel(config), "OrdererAddresses", &addresses);
    })
    .unwrap();
    assert_eq!(proposed.next.sequence(), 1);
    assert_eq!(proposed.next.orderer_addresses(), ["127.0.0.1:1"]);
    base.validate(&proposed.envelope).unwrap();
    // The same update does not fit twice.
    let again = update(&base, |config| {
        channel(config).mod_policy = "Writers".to_owned()
    });
    let next = base.propose_update(&again).unwrap().next;
    next.propose_update(&again).unwrap_err();
}

#[test]
fn channel_names_are_checked() {
    let proto = base().proto().clone();
    let refused = ChannelConfig::new("Fixture", proto.clone()).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "initializing configtx manager failed: bad channel ID: 'Fixture' contains illegal characters"
    );
    ChannelConfig::new("fixture", Config::default()).unwrap_err();
}

#[test]
fn an_organisation_keeps_its_msp_id_wherever_it_stands() {
    let two = config("config-updates/25-add-orderer-org2.block");
    let refused = refusal(&two, |config| {
        let orgs = &mut group(config, "Orderer").groups;
        let other = orgs["OrdererOrg2"].values["MSP"].clone();
        orgs.get_mut("OrdererOrg")
            .unwrap()
            .values
            .insert("MSP".to_owned(), other);
    });
    assert_eq!(
        refused,
        "orderer org OrdererOrg attempted to change MSP ID from OrdererOrgMSP to OrdererOrg2MSP"
    );
}

#[test]
fn capabilities_begin_with_the_orderers() {
    let refused = |change: &dyn Fn(&mut Config)| made(&base(), change).unwrap_err().to_string();
    assert_eq!(
        refused(&|config| {
            group(config, "Orderer").values.remove("Capabilities");
        }),
        "cannot enable channel capabilities without orderer support first"
    );
    assert_eq!(
        refused(&|config| {
            group(config, "Orderer").values.remove("Capabilities");
            channel(config).values.remove("Capabilities");
        }),
        "cannot enable application capabilities without orderer support first"
    );
}

#[test]
fn without_the_newer_channel_capabilities_addresses_are_the_channels() {
    let old = |config: &mut Config| {
        set(channel(config), "Capabilities", &capabilities(&["V1_3"]));
        let orgs = &mut group(config, "Orderer").groups;
        orgs.get_mut("OrdererOrg")
            .unwrap()
            .values
            .remove("Endpoints");
    };
    let older = made(&base(), old).unwrap();
    assert!(!older.capabilities().consensus_type_migration());
    let refused = made(&older, |config| {
        set(
            channel(config),
            "OrdererAddresses",
            &OrdererAddresses::default(),
        );
    });
    assert_eq!(
        refused.unwrap_err().to_string(),
        "initializing channelconfig failed: Must set some OrdererAddresses"
    );
    // Nor may the consensus type ever change.
    let refused = refusal(&older, |config| {
        let solo = ConsensusType {
            r#type: "solo".to_owned(),
            ..ConsensusType::default()
        };
        set(group(config, "Orderer"), "ConsensusType", &solo);
    });
    assert_eq!(
        refused,
        "attempted to change consensus type from etcdraft to solo"
    );
}

#[test]
fn without_the_capability_there_is_no_maintenance() {
    let older = made(&base(), |config| {
        set(
            group(config, "Orderer"),
            "Capabilities",
            &capabilities(&["V1_1"]),
        );
    })
    .unwrap();
    let maintain = |config: &ChannelConfig, state: i32, name: &str| {
        let value = ConsensusType {
            state,
            r#type: name.to_owned(),
            ..consensus(config, |_| ())
        };
        let proposed = propose(config, |next| {
            set(group(next, "Orderer"), "ConsensusType", &value);
        });
        let judged = config.check_maintenance(&proposed.unwrap());
        judged.err().map(|error| error.to_string())
    };
    assert_eq!(
        maintain(&older, 1, "etcdraft").unwrap(),
        "config transaction inspection failed: next config attempted to change ConsensusType.State to STATE_MAINTENANCE, but capability is disabled"
    );
    assert_eq!(
        maintain(&older, 0, "solo").unwrap(),
        "config transaction inspection failed: next config attempted to change ConsensusType.Type from etcdraft to solo, but capability is disabled"
    );
    assert_eq!(maintain(&base(), 1, "etcdraft"), None);
    // Nobody here could serve the channel after that.
    let maintained = config("config-updates/11-maintenance-on.block");
    assert_eq!(
        maintain(&maintained, 1, "solo").unwrap(),
        "config transaction inspection failed: attempted to change consensus type from etcdraft to solo, transition not supported"
    );
}

#[test]
fn brokers_of_a_channel_that_came_from_kafka_are_looked_at() {
    let with = |broker: &str| {
        let brokers = KafkaBrokers {
            brokers: vec![broker.to_owned()],
        };
        made(&base(), |config| {
            set(group(config, "Orderer"), "KafkaBrokers", &brokers)
        })
    };
    for good in ["kafka0.example.com:9092", "10.0.0.1:1", "k:0"] {
        with(good).unwrap();
    }
    for bad in [
        "kafka0",
        "kafka0:port",
        "kafka0:65536",
        "a:1:2",
        "-a:1",
        "a_b:1",
        "a.:1",
    ] {
        assert_eq!(
            with(bad).unwrap_err().to_string(),
            format!(
                "initializing channelconfig failed: could not create channel Orderer sub-group config: Invalid broker entry: {bad}"
            )
        );
    }
}

#[test]
fn a_mod_policy_that_does_not_exist_protects_for_ever() {
    let base = made(&base(), |config| {
        let orderer = group(config, "Orderer");
        orderer.values.get_mut("BatchSize").unwrap().mod_policy = "Nobody".to_owned();
    })
    .unwrap();
    let refused = refusal(&base, |config| {
        let orderer = group(config, "Orderer");
        orderer.values.get_mut("BatchSize").unwrap().mod_policy = "Admins".to_owned();
    });
    assert!(
        refused.starts_with("error authorizing update: error validating DeltaSet: unexpected missing policy Nobody for item [Value]  /Channel/Orderer/BatchSize"),
        "{refused}"
    );
}

fn certificate(path: &str) -> Vec<u8> {
    std::fs::read(fixtures().join("crypto").join(path)).unwrap()
}

/// Judges an update of the consenters, with all nodes active.
fn judge_consenters(
    config: &ChannelConfig,
    change: impl FnOnce(&mut ConfigMetadata),
) -> Result<(), String> {
    let value = consensus(config, change);
    let proposed = propose(config, |next| {
        set(group(next, "Orderer"), "ConsensusType", &value);
    })
    .unwrap();
    let ids: Vec<u64> = (1..=config.raft_metadata().consenters.len() as u64).collect();
    check_change(config, &proposed.next, &ids, &ids, NOW).map_err(|error| error.to_string())
}

#[test]
fn expired_certificates_stay_but_do_not_come() {
    let expired = certificate("special/orderer4-tls-expired/server.crt");
    let with_expired = made(&base(), |config| {
        let value = consensus(&base(), |metadata| {
            metadata.consenters[0].client_tls_cert.clone_from(&expired);
            metadata.consenters[0].server_tls_cert.clone_from(&expired);
        });
        set(group(config, "Orderer"), "ConsensusType", &value);
    })
    .unwrap();
    check(&with_expired, NOW).unwrap();
    // The way out: it is replaced.
    let fresh = certificate(
        "ordererOrganizations/orderer.test/orderers/orderer4.orderer.test/tls/server.crt",
    );
    judge_consenters(&with_expired, |metadata| {
        metadata.consenters[0].client_tls_cert.clone_from(&fresh);
        metadata.consenters[0].server_tls_cert.clone_from(&fresh);
    })
    .unwrap();
    // Everything else about the channel can go on too.
    judge_consenters(&with_expired, |metadata| metadata.consenters[1].port += 1).unwrap();
    // Before its time was over it was welcome.
    let before = UnixTime(NOW.0 - 7 * 24 * 3600);
    let error = check_change(&base(), &with_expired, &[1, 2, 3], &[1, 2, 3], before).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("has expired or is not yet valid"),
        "{error}"
    );
}

#[test]
fn consensus_metadata_cannot_be_emptied() {
    let base = base();
    let value = ConsensusType {
        metadata: Vec::new(),
        ..consensus(&base, |_| ())
    };
    let proposed = propose(&base, |next| {
        set(group(next, "Orderer"), "ConsensusType", &value);
    })
    .unwrap();
    let error = check_change(&base, &proposed.next, &[1, 2, 3], &[1, 2, 3], NOW).unwrap_err();
    assert_eq!(
        error.to_string(),
        "consensus metadata update for channel config update is invalid: invalid new config metadata: nil Raft config metadata options"
    );
    assert!(
        judge_consenters(&base, |metadata| {
            metadata.options.as_mut().unwrap().tick_interval = "-1s".to_owned();
        })
        .unwrap_err()
        .ends_with("TickInterval cannot be negative (-1s)")
    );
}

#[test]
fn block_metadata_of_another_configuration_is_noticed() {
    let base = base();
    let consenters = &base.raft_metadata().consenters;
    let metadata = BlockMetadata {
        consenter_ids: vec![1, 2],
        ..BlockMetadata::default()
    };
    membership_change(&metadata, consenters, consenters).unwrap_err();
}
