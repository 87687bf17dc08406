//! The recorded config updates: each is judged on the configuration that was current, and what is accepted leads to
//! the recorded next one.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::PathBuf;

use proptest::prelude::*;
use prost::Message as _;
use quorate_fabric::block;
use quorate_fabric::config::raft_config::{self, check_change, membership_change};
use quorate_fabric::config::{
    ChannelConfig, ConfigError, ConsensusState, Wanted, compute_update, merge_signatures,
    open_config_update,
};
use quorate_fabric::envelope::{EnvelopeParts, RawEnvelope};
use quorate_fabric::genesis::BesideConfigtx;
use quorate_fabric::inspect::{config_difference, config_update};
use quorate_fabric::proto::common::{
    Block, Config, ConfigEnvelope, ConfigUpdate, ConfigUpdateEnvelope,
};
use quorate_fabric::proto::etcdraft::BlockMetadata;
use quorate_identity::UnixTime;
use serde_json::Value as Json;

/// When the updates were recorded, as the text of `consenter-expired-cert` says: 2026-11-20T14:09:27Z.
const NOW: UnixTime = UnixTime(1_795_183_767);

fn fixtures() -> PathBuf {
    PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../fixtures/fabric"
    ))
}

fn json(path: &str) -> Json {
    serde_json::from_slice(&std::fs::read(fixtures().join(path)).unwrap()).unwrap()
}

fn read_block(path: &str) -> Block {
    Block::decode(&std::fs::read(fixtures().join(path)).unwrap()[..]).unwrap()
}

fn envelope(path: &str) -> RawEnvelope {
    RawEnvelope::decode(std::fs::read(fixtures().join(path)).unwrap().into()).unwrap()
}

/// The data of a CONFIG block's message.
fn config_of(block: &Block) -> ConfigEnvelope {
    let envelope = RawEnvelope::decode(block.data.as_ref().unwrap().data[0].clone()).unwrap();
    ConfigEnvelope::decode(&EnvelopeParts::parse(&envelope).unwrap().data[..]).unwrap()
}

/// The Raft ids after a block, 1, 2, … after the genesis block.
fn raft_ids(block: &Block, config: &ChannelConfig) -> BlockMetadata {
    let consenters = config.raft_metadata().consenters.len() as u64;
    block::consenter_metadata(block)
        .unwrap()
        .filter(|metadata| !metadata.consenter_ids.is_empty())
        .unwrap_or_else(|| BlockMetadata {
            consenter_ids: (1..=consenters).collect(),
            next_consenter_id: consenters + 1,
            raft_index: 0,
        })
}

fn context(context: &str) -> impl Fn(ConfigError) -> String {
    move |error| format!("{context}: {error}")
}

/// Go's protobuf library puts one or the other space after its name, depending on the build.
fn as_go_says(text: &str) -> String {
    text.replace("proto:\u{a0}", "proto: ")
}

/// What the sender of an envelope must be.
fn check_sender(config: &ChannelConfig, envelope: &RawEnvelope) -> Result<(), String> {
    let signed = EnvelopeParts::parse(envelope)
        .unwrap()
        .signed_data(envelope)
        .unwrap();
    if config
        .membership()
        .identity(&signed.identity)
        .is_ok_and(|identity| identity.expires_at() < NOW)
    {
        return Err("broadcast client identity expired".to_owned());
    }
    let policy = match config.state() {
        ConsensusState::Normal => "/Channel/Writers",
        ConsensusState::Maintenance => "/Channel/Orderer/Writers",
    };
    let policy = config.policies().get(policy).unwrap();
    policy
        .evaluate(&[signed])
        .map_err(|error| format!("{error}: permission denied"))
}

/// What an orderer does with an update, in its order.
fn judge(
    config: &ChannelConfig,
    ids: &BlockMetadata,
    active: &[u64],
    envelope: &RawEnvelope,
) -> Result<ConfigEnvelope, String> {
    let channel = config.channel_id();
    check_sender(config, envelope).map_err(|error| {
        format!("config update for existing channel did not pass initial checks: {error}")
    })?;
    let applying = format!("error applying config update to existing channel '{channel}'");
    let proposed = config
        .propose_update(envelope)
        .map_err(context(&applying))?;
    check_change(config, &proposed.next, &ids.consenter_ids, active, NOW)
        .map_err(context(&applying))?;
    config.check_maintenance(&proposed).map_err(context(
        "config update for existing channel did not pass maintenance checks",
    ))?;
    Ok(proposed.envelope)
}

#[test]
fn every_recorded_update_gets_the_recorded_answer() {
    let updates = json("config-updates/updates.json");
    let updates = updates.as_array().unwrap();
    assert_eq!(updates.len(), 125);
    let mut wrong = Vec::new();
    for case in updates {
        let text = |key: &str| case[key].as_str().unwrap();
        let base = read_block(&format!("config-updates/{}", text("base")));
        let config = ChannelConfig::from_block(&base).unwrap();
        assert_eq!(config.sequence(), case["base_sequence"].as_u64().unwrap());
        let ids = raft_ids(&base, &config);
        // Where the cluster's state decided, it was orderer2 that was down.
        let active: Vec<u64> = if case["accepted"] == true || case["depends_on"] == "config" {
            ids.consenter_ids.clone()
        } else {
            ids.consenter_ids
                .iter()
                .copied()
                .filter(|&id| id != 3)
                .collect()
        };
        let update = envelope(&format!("config-updates/{}", text("file")));
        let recorded = &as_go_says(case["answer"]["info"].as_str().unwrap());
        match judge(&config, &ids, &active, &update) {
            Err(found) if as_go_says(&found) == *recorded => {}
            Err(found) => wrong.push(format!("{}:\n  {found}\n  {recorded}", text("name"))),
            Ok(_) if case["accepted"] == false => {
                wrong.push(format!("{}: accepted\n  {recorded}", text("name")));
            }
            Ok(envelope) => {
                let next = read_block(&format!("config-updates/{}", text("block")));
                let expected = config_of(&next);
                if envelope.config != expected.config {
                    wrong.push(format!("{}: leads elsewhere", text("name")));
                }
                assert_eq!(
                    envelope.last_update,
                    expected.last_update,
                    "{}",
                    text("name")
                );
                config.validate(&expected).unwrap();

                let next_config = ChannelConfig::from_block(&next).unwrap();
                let change = membership_change(
                    &ids,
                    &config.raft_metadata().consenters,
                    &next_config.raft_metadata().consenters,
                )
                .unwrap();
                let recorded = block::consenter_metadata(&next).unwrap().unwrap();
                assert_eq!(
                    change.consenter_ids,
                    recorded.consenter_ids,
                    "{}",
                    text("name")
                );
                assert_eq!(change.next_consenter_id, recorded.next_consenter_id);
                raft_config::check(&next_config, NOW).unwrap();
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

#[test]
fn the_configurations_of_a_recorded_chain_follow_each_other() {
    let index = json("chain/chain.json");
    let mut current: Option<(ChannelConfig, BlockMetadata)> = None;
    let mut seen = 0;
    for recorded in index["blocks"].as_array().unwrap() {
        let block = read_block(&format!("chain/{}", recorded["file"].as_str().unwrap()));
        if !block::is_config(&block) {
            continue;
        }
        let next = ChannelConfig::from_block(&block).unwrap();
        let ids = raft_ids(&block, &next);
        if let Some((config, old_ids)) = &current {
            config.validate(&config_of(&block)).unwrap();
            config.check_successor(&next).unwrap();
            let change = membership_change(
                old_ids,
                &config.raft_metadata().consenters,
                &next.raft_metadata().consenters,
            )
            .unwrap();
            assert_eq!(change.consenter_ids, ids.consenter_ids);
            assert_eq!(change.next_consenter_id, ids.next_consenter_id);
        }
        current = Some((next, ids));
        seen += 1;
    }
    assert!(seen > 5, "{seen}");
}

/// Accepted updates, each with the configurations before and after it.
fn accepted() -> Vec<(String, Config, Config, ConfigUpdate)> {
    let updates = json("config-updates/updates.json");
    let cases = updates.as_array().unwrap().iter();
    let accepted = cases.filter(|case| case["accepted"] == true).map(|case| {
        let text = |key: &str| case[key].as_str().unwrap();
        let config = |key: &str| {
            config_of(&read_block(&format!("config-updates/{}", text(key))))
                .config
                .unwrap()
        };
        let envelope = envelope(&format!("config-updates/{}", text("file")));
        let parts = EnvelopeParts::parse(&envelope).unwrap();
        let signed = ConfigUpdateEnvelope::decode(&parts.data[..]).unwrap();
        let update = ConfigUpdate::decode(&signed.config_update[..]).unwrap();
        (
            text("name").to_owned(),
            config("base"),
            config("block"),
            update,
        )
    });
    accepted.collect()
}

#[test]
fn computed_updates_are_those_of_configtxlator() {
    let accepted = accepted();
    assert_eq!(accepted.len(), 29);
    let mut other = Vec::new();
    for (name, before, after, recorded) in accepted {
        let computed = compute_update("fixture", &before, &after).unwrap();
        if computed != recorded {
            other.push(name);
        }
    }
    assert_eq!(other, Vec::<String>::new());
}

/// What an operator would write for each of the accepted updates.
fn as_operators_write() -> [(&'static str, &'static str); 29] {
    [
        ("01-batch-size", "Orderer: {BatchSize: {MaxMessageCount: 12}}"),
        ("02-batch-timeout-by-org1-client", "Orderer: {BatchTimeout: 250ms}"),
        ("03-orderer-addresses", "Orderer: {Addresses: {Add: ['127.0.0.1:21080']}}"),
        (
            "04-add-consenter-orderer3",
            "Orderer: {EtcdRaft: {Consenters: {'127.0.0.1:21080': {
               ClientTLSCert: crypto/ordererOrganizations/orderer.test/orderers/orderer3.orderer.test/tls/server.crt,
               ServerTLSCert: crypto/ordererOrganizations/orderer.test/orderers/orderer3.orderer.test/tls/server.crt}}}}",
        ),
        (
            "05-orderer-endpoints",
            "Orderer: {Organizations: {OrdererOrg: {OrdererEndpoints: {Add: ['127.0.0.1:21080']}}}}",
        ),
        ("06-remove-consenter-orderer0", "Orderer: {EtcdRaft: {Consenters: {'127.0.0.1:21050': ~}}}"),
        (
            "07-rotate-orderer1-same-key",
            "Orderer: {EtcdRaft: {Consenters: {'127.0.0.1:21060': {
               ClientTLSCert: crypto/special/orderer1-tls-renewed-same-key/server.crt,
               ServerTLSCert: crypto/special/orderer1-tls-renewed-same-key/server.crt}}}}",
        ),
        (
            "08-rotate-orderer2-new-key",
            "Orderer: {EtcdRaft: {Consenters: {'127.0.0.1:21070': {
               ClientTLSCert: crypto/special/orderer2-tls-new-key/server.crt,
               ServerTLSCert: crypto/special/orderer2-tls-new-key/server.crt}}}}",
        ),
        ("09-snapshot-interval-size", "Orderer: {EtcdRaft: {Options: {SnapshotIntervalSize: 32 KB}}}"),
        ("10-election-tick", "Orderer: {EtcdRaft: {Options: {ElectionTick: 12}}}"),
        ("11-maintenance-on", "Orderer: {State: maintenance}"),
        ("12-maintenance-batch-size", "Orderer: {BatchSize: {MaxMessageCount: 14}}"),
        (
            "13-maintenance-acls-by-orderer",
            "Application: {ACLs: {qscc/GetChainInfo: /Channel/Application/Readers}}",
        ),
        ("14-maintenance-off", "Orderer: {State: normal}"),
        ("15-acls", "Application: {ACLs: {qscc/GetChainInfo: /Channel/Application/Admins}}"),
        (
            "16-application-capability-v2-5",
            "Application: {Capabilities: {V2_0: false, V2_5: true}}",
        ),
        (
            "17-anchor-peer",
            "Application: {Organizations: {Org1: {AnchorPeers: ['peer0.org1.test:7051']}}}",
        ),
        (
            "18-acls-by-expired-admin",
            "Application: {ACLs: {qscc/GetChainInfo: /Channel/Application/Writers}}",
        ),
        (
            "19-add-org2",
            "Application: {Organizations: {Org2: {ID: Org2MSP, MSPDir: crypto/peerOrganizations/org2.test/msp}}}",
        ),
        ("20-acls-two-orgs", "Application: {ACLs: {qscc/GetChainInfo: /Channel/Application/Readers}}"),
        ("21-channel-capability", "Capabilities: {V1_4_3: true}"),
        (
            "22-org1-crl",
            "Application: {Organizations: {Org1: {MSPDir: crypto/special/org1-msp-with-crl}}}",
        ),
        (
            "23-org1-writers",
            "Application: {Organizations: {Org1: {Policies: {Writers: {Type: Signature,
               Rule: \"AND('Org1MSP.admin', 'Org1MSP.client')\"}}}}}",
        ),
        (
            "24-org1-writers-back",
            "Application: {Organizations: {Org1: {Policies: {Writers: {Type: Signature,
               Rule: \"OR('Org1MSP.admin', 'Org1MSP.client')\"}}}}}",
        ),
        (
            "25-add-orderer-org2",
            "Orderer: {Organizations: {OrdererOrg2: {ID: OrdererOrg2MSP,
               MSPDir: crypto/ordererOrganizations/orderer2.test/msp, OrdererEndpoints: ['127.0.0.1:21100']}}}",
        ),
        ("26-remove-orderer-org2", "Orderer: {Organizations: {OrdererOrg2: ~}}"),
        ("27-orderer-addresses-empty", "Orderer: {Addresses: []}"),
        ("28-application-capability-unknown", "Application: {Capabilities: {V9_9: true}}"),
        ("29-batch-size-last", "Orderer: {BatchSize: {MaxMessageCount: 15}}"),
    ]
}

#[test]
fn what_operators_write_becomes_the_recorded_updates() {
    let files = BesideConfigtx(fixtures());
    for ((name, before, after, recorded), (same, wanted)) in
        accepted().into_iter().zip(as_operators_write())
    {
        assert_eq!(name, same);
        let wanted = Wanted::read(wanted).unwrap();
        let current = ChannelConfig::new("fixture", before).unwrap();
        let reached = wanted.apply(&current, &files).unwrap();
        let computed = compute_update("fixture", current.proto(), &reached).unwrap();
        // A map's encoding has no order, so what stands in the bytes is compared.
        assert_eq!(config_update(&computed), config_update(&recorded), "{name}");
        // Once it is so there is nothing more to do.
        let after = ChannelConfig::new("fixture", after).unwrap();
        let again = wanted.apply(&after, &files).unwrap();
        assert!(again == *after.proto(), "{name} again");
    }
}

#[test]
fn what_cannot_be_wanted_is_refused_by_name() {
    let block = read_block("genesis/fixture.block");
    let current = ChannelConfig::from_block(&block).unwrap();
    let files = BesideConfigtx(fixtures());
    for (wanted, reason) in [
        ("Orderer: {BatchSizes: {}}", "BatchSizes"),
        (
            "Orderer: {BatchSize: {MaxMessageCount: many}}",
            "Orderer.BatchSize.MaxMessageCount",
        ),
        ("Orderer: {BatchTimeout: 5}", "Orderer.BatchTimeout"),
        ("Orderer: {State: broken}", "broken"),
        (
            "Orderer: {EtcdRaft: {Consenters: {nowhere: ~}}}",
            "\"nowhere\" is not host:port",
        ),
        (
            "Orderer: {EtcdRaft: {Consenters: {'a:1': {ClientTLSCert: none, ServerTLSCert: none}}}}",
            "consenter a:1 from none",
        ),
        ("Orderer: {Addresses: ['a:0']}", "\"a:0\" is not host:port"),
        ("Orderer: {Organizations: {New: {}}}", "needs ID and MSPDir"),
        (
            "Orderer: {Organizations: {OrdererOrg: {AnchorPeers: []}}}",
            "AnchorPeers belong",
        ),
        (
            "Application: {Organizations: {Org1: {OrdererEndpoints: []}}}",
            "OrdererEndpoints belong",
        ),
        (
            "Application: {Organizations: {Org1: {MSPDir: nothing}}}",
            "org Org1 from nothing",
        ),
        (
            "Policies: {Admins: {Type: ImplicitMeta, Rule: SOME Admins}}",
            "unknown rule type 'SOME'",
        ),
    ] {
        let refused = match Wanted::read(wanted) {
            Err(error) => error.to_string(),
            Ok(read) => read.apply(&current, &files).unwrap_err().to_string(),
        };
        assert!(refused.contains(reason), "{wanted}: {refused}");
    }
}

#[test]
fn a_review_says_what_an_orderer_will_say() {
    let updates = json("config-updates/updates.json");
    let mut unauthorised = 0;
    for case in updates.as_array().unwrap() {
        let text = |key: &str| case[key].as_str().unwrap();
        let base = read_block(&format!("config-updates/{}", text("base")));
        let config = ChannelConfig::from_block(&base).unwrap();
        let envelope = envelope(&format!("config-updates/{}", text("file")));
        let judged = config.propose_update(&envelope);
        let Ok((_, signed)) = open_config_update(&envelope) else {
            continue;
        };
        match (config.review(&signed), judged) {
            (Ok(review), Ok(proposed)) => {
                assert!(review.is_authorised(), "{}", text("name"));
                assert_eq!(review.next.proto(), proposed.next.proto());
                let difference = config_difference(config.proto(), review.next.proto());
                assert_ne!(difference, "", "{}", text("name"));
            }
            (Ok(review), Err(error)) => {
                assert!(!review.is_authorised(), "{}: {error}", text("name"));
                unauthorised += 1;
            }
            // What an orderer says about where it was, and about signatures, comes before or not at all.
            (Err(error), Err(refused)) => assert!(
                refused.to_string().contains(&error.to_string())
                    || refused.to_string().contains("not satisfied"),
                "{}: {error}, but {refused}",
                text("name")
            ),
            (Err(error), Ok(_)) => panic!("{}: {error}", text("name")),
        }
    }
    assert_eq!(unauthorised, 13);
}

#[test]
fn a_review_tells_people_who_must_sign_and_what_changes() {
    let case = accepted()
        .into_iter()
        .find(|(name, ..)| name.starts_with("21"));
    let (_, before, after, update) = case.unwrap();
    let config = ChannelConfig::new("fixture", before.clone()).unwrap();
    let unsigned = ConfigUpdateEnvelope {
        config_update: update.encode_to_vec(),
        signatures: Vec::new(),
    };
    let (_, all) =
        open_config_update(&envelope("config-updates/21-channel-capability.pb")).unwrap();
    let with = |signatures: &[usize]| ConfigUpdateEnvelope {
        signatures: signatures
            .iter()
            .map(|at| all.signatures[*at].clone())
            .collect(),
        ..all.clone()
    };
    let shown = |signed: &ConfigUpdateEnvelope| {
        let review = config.review(signed).unwrap();
        let judgements = review.judgements.iter();
        judgements
            .map(|judged| judged.requirement.to_string())
            .collect::<String>()
    };
    let requirement = "\
- /Channel/Admins: 2 of 2, there are 0
  - /Channel/Application/Admins: 2 of 2, there are 0
    - /Channel/Application/Org1/Admins: a signature of Org1MSP.admin
    - /Channel/Application/Org2/Admins: a signature of Org2MSP.admin
  - /Channel/Orderer/Admins: 1 of 1, there are 0
    - /Channel/Orderer/OrdererOrg/Admins: a signature of OrdererOrgMSP.admin
";
    assert_eq!(shown(&unsigned), requirement);
    let signed = shown(&with(&[0, 1]));
    for line in [
        "- /Channel/Admins: 2 of 2, there are 1",
        "  - /Channel/Application/Admins: 2 of 2, there are 1",
        "    + /Channel/Application/Org1/Admins: a signature of Org1MSP.admin",
        "    - /Channel/Application/Org2/Admins: a signature of Org2MSP.admin",
        "  + /Channel/Orderer/Admins: 1 of 1, there are 1",
    ] {
        assert!(signed.contains(line), "{line}: {signed}");
    }
    let merged = merge_signatures([with(&[0, 1]), with(&[2]), with(&[1])]).unwrap();
    assert_eq!(merged.signatures.len(), 3);
    let review = config.review(&merged).unwrap();
    assert!(review.is_authorised());
    let signers: Vec<_> = review
        .signers
        .iter()
        .map(|signer| (&signer.msp_id[..], &signer.flaw))
        .collect();
    assert_eq!(
        signers,
        [
            ("OrdererOrgMSP", &None),
            ("Org1MSP", &None),
            ("Org2MSP", &None)
        ]
    );
    let other = ConfigUpdateEnvelope::default();
    assert!(merge_signatures([merged, other]).is_err());
    assert_eq!(
        config_difference(&before, &after),
        "Capabilities\n  capabilities\n    + V1_4_3\n"
    );
}

#[test]
fn differences_are_told_as_people_ask_for_them() {
    let told = |number: &str| {
        let case = accepted()
            .into_iter()
            .find(|(name, ..)| name.starts_with(number));
        let (_, before, after, _) = case.unwrap();
        config_difference(&before, &after)
    };
    assert_eq!(
        told("01"),
        "Orderer\n  BatchSize\n    max_message_count: 10 -> 12\n"
    );
    let added = told("04");
    assert!(
        added.starts_with(
            "Orderer\n  ConsensusType\n    metadata\n      consenters\n        + 127.0.0.1:21080, C=US"
        ) && added.contains("CN=orderer3.orderer.test (until Nov 17 ")
            && added.contains("serial number")
            && added.lines().count() == 5,
        "{added}"
    );
    let rotated = told("08");
    assert!(
        rotated.contains("- 127.0.0.1:21070, ") && rotated.contains("+ 127.0.0.1:21070, "),
        "{rotated}"
    );
    assert_eq!(
        told("23"),
        "Application\n  Org1\n    Writers\n      OR('Org1MSP.admin', 'Org1MSP.client') -> AND('Org1MSP.admin', 'Org1MSP.client')\n"
    );
    let organisation = told("19");
    assert!(
        organisation.starts_with("Application\n  + Org2\n    + MSP: ")
            && organisation.contains("    + Admins: OR('Org2MSP.admin')\n"),
        "{organisation}"
    );
}

#[test]
fn orderers_are_reached_at_their_organisations_endpoints_or_at_the_channels_addresses() {
    let endpoints = |config: &ChannelConfig| -> Vec<(String, usize)> {
        let endpoints = config.orderer_endpoints();
        let described = endpoints.into_iter();
        described
            .map(|endpoint| (endpoint.address, endpoint.authorities.len()))
            .collect()
    };
    let config =
        ChannelConfig::from_block(&read_block("config-updates/25-add-orderer-org2.block")).unwrap();
    let own: Vec<(String, usize)> = [21050, 21060, 21070, 21080]
        .map(|port| (format!("127.0.0.1:{port}"), 1))
        .to_vec();
    let found = endpoints(&config);
    assert_eq!(found[..4], own);

    let mut without = config.proto().clone();
    let channel = without.channel_group.as_mut().unwrap();
    for org in channel
        .groups
        .get_mut("Orderer")
        .unwrap()
        .groups
        .values_mut()
    {
        org.values.remove("Endpoints");
    }
    let without = ChannelConfig::new("fixture", without).unwrap();
    let all: Vec<(String, usize)> = config
        .orderer_addresses()
        .iter()
        .map(|address| (address.clone(), 2))
        .collect();
    assert!(!all.is_empty());
    assert_eq!(endpoints(&without), all);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn damaged_configurations_and_updates_are_refused_without_panic(
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        cut in any::<bool>(),
    ) {
        let damage = |bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if cut {
                bytes.truncate(at);
            }
            bytes
        };
        let genesis = read_block("genesis/fixture.block");
        let base = ChannelConfig::from_block(&genesis).unwrap();
        let config = config_of(&genesis).config.unwrap();
        if let Ok(config) = Config::decode(&damage(&config.encode_to_vec())[..]) {
            let _ = ChannelConfig::new("fixture", config);
        }
        let update = envelope("config-updates/01-batch-size.pb");
        let payload = damage(update.payload());
        if let Ok(proposed) = base.propose_update(&RawEnvelope::new(&payload, update.signature())) {
            // What the config signatures cover has not been touched.
            let good = config_of(&read_block("config-updates/01-batch-size.block"));
            prop_assert_eq!(proposed.envelope.config, good.config);
        }
    }
}

#[test]
fn a_config_message_that_is_not_what_its_update_makes_is_refused() {
    let base = ChannelConfig::from_block(&read_block("genesis/fixture.block")).unwrap();
    let good = config_of(&read_block("config-updates/01-batch-size.block"));
    base.validate(&good).unwrap();
    let refused = |change: &dyn Fn(&mut ConfigEnvelope)| {
        let mut envelope = good.clone();
        change(&mut envelope);
        base.validate(&envelope).unwrap_err().to_string()
    };
    assert_eq!(
        refused(&|envelope| envelope.config.as_mut().unwrap().sequence = 3),
        "config currently at sequence 0, cannot validate config at sequence 3"
    );
    assert_eq!(
        refused(&|envelope| {
            let group = envelope
                .config
                .as_mut()
                .unwrap()
                .channel_group
                .as_mut()
                .unwrap();
            group.groups.get_mut("Application").unwrap().mod_policy = "Readers".to_owned();
        }),
        "ConfigEnvelope LastUpdate did not produce the supplied config result"
    );
    assert_eq!(
        refused(&|envelope| envelope.config = None),
        "config envelope has nil config"
    );
    assert_eq!(
        refused(&|envelope| envelope.last_update = None),
        "config envelope has no last update to judge it by"
    );
}

#[test]
fn broadcast_updates_get_the_recorded_answer() {
    let statuses = json("statuses/statuses.json");
    let config = ChannelConfig::from_block(&read_block("genesis/fixture1.block")).unwrap();
    let ids = raft_ids(&read_block("genesis/fixture1.block"), &config);
    let mut judged = 0;
    for case in statuses["broadcast"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        // What the resulting message weighs, and which channel it is for, is for the orderer to look at.
        let ours = name.starts_with("config-update-")
            && ![
                "config-update-grows-too-large",
                "config-update-unknown-channel",
            ]
            .contains(&name);
        if !ours {
            continue;
        }
        let request = envelope(&format!(
            "statuses/{}",
            case["requests"][0].as_str().unwrap()
        ));
        let refused = judge(&config, &ids, &ids.consenter_ids, &request).unwrap_err();
        let recorded = case["answers"][0]["info"].as_str().unwrap();
        assert_eq!(as_go_says(&refused), as_go_says(recorded), "{name}");
        judged += 1;
    }
    assert_eq!(judged, 7);
}
