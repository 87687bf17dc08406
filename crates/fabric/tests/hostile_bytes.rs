//! Forgeries of everything that is read from the network, from a disk or from an operator: thousands of them for each reader.
//!
//! The samples are the recorded ones. A failure names the forgery; it is the same one at every run.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::path::Path;
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use prost::Message as _;
use quorate_fabric::config::{ChannelConfig, compute_update, raft_config};
use quorate_fabric::envelope::{ChannelId, EnvelopeParts, RawEnvelope};
use quorate_fabric::genesis::{BesideConfigtx, Profile};
use quorate_fabric::inspect;
use quorate_fabric::msp::{LocalMsp, Msp, Signer as _};
use quorate_fabric::policy::{Policies, SignedData};
use quorate_fabric::proto::common::{
    Block, ChannelHeader, Config, ConfigGroup, ConfigPolicy, ConfigSignature, ConfigUpdateEnvelope,
    Header, MspPrincipal, Payload, Policy, SignatureHeader,
};
use quorate_fabric::proto::msp::MspConfig;
use quorate_fabric::{block, crypto_material, envelope, raftpb};
use quorate_identity::UnixTime;
use quorate_identity::x509::{Certificate, PublicKey, RevocationList, SigningKey, pem};
use quorate_testkit::hostile::{Shape, resident_kib, torment};
use support::*;
use time::OffsetDateTime;

const NOW: UnixTime = UnixTime(1_795_200_000);

/// A profile of the recorded `configtx.yaml`.
const PROFILE: &str = "Fixture3";

/// The files of a folder of fixtures with this ending.
fn samples(folder: &str, ending: &str) -> Vec<Vec<u8>> {
    let mut paths: Vec<_> = std::fs::read_dir(fixtures().join(folder))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_str().unwrap().ends_with(ending))
        .collect();
    paths.sort();
    assert!(!paths.is_empty());
    paths
        .into_iter()
        .map(|path| std::fs::read(path).unwrap())
        .collect()
}

fn blocks() -> Vec<Vec<u8>> {
    let mut blocks = samples("genesis", ".block");
    blocks.extend(samples("chain", ".block"));
    blocks
}

static CHANNEL: LazyLock<ChannelConfig> = LazyLock::new(|| {
    let block = Block::decode(&read("genesis/fixture.block")[..]).unwrap();
    ChannelConfig::from_block(&block).unwrap()
});

#[test]
fn envelopes() {
    let requests = samples("statuses/requests", ".pb");
    torment("envelope", Shape::Protobuf, &requests, 20_000, |bytes| {
        let Ok(envelope) = RawEnvelope::decode(Bytes::copy_from_slice(bytes)) else {
            return;
        };
        // What goes into a block is read again as the same.
        let again = RawEnvelope::decode(envelope.encoded().clone()).unwrap();
        assert_eq!(again.encoded(), envelope.encoded());
        assert_eq!(
            (again.payload(), again.signature()),
            (envelope.payload(), envelope.signature())
        );
        let _ = inspect::envelope(envelope.encoded());
        if let Ok(parts) = EnvelopeParts::parse(&envelope) {
            let _ = ChannelId::new(&parts.channel_header.channel_id);
            let _ = parts.signature_header();
            if let Ok(signed) = parts.signed_data(&envelope) {
                let writers = CHANNEL.policies().get("/Channel/Writers").unwrap();
                let _ = writers.evaluate(&[signed]);
            }
        }
    });
}

#[test]
fn raft_messages() {
    let payloads: Vec<Vec<u8>> = samples("raftpb/captured", ".pb")
        .into_iter()
        .filter_map(|step| {
            use quorate_fabric::proto::orderer::{StepRequest, step_request::Payload};
            match StepRequest::decode(&step[..]).unwrap().payload {
                Some(Payload::ConsensusRequest(request)) => Some(request.payload.to_vec()),
                _ => None,
            }
        })
        .collect();
    torment(
        "raft message",
        Shape::Protobuf,
        &payloads,
        30_000,
        |bytes| {
            let bytes = Bytes::copy_from_slice(bytes);
            if let Ok(message) = raftpb::decode_message(&bytes) {
                let again = raftpb::encode_message(&message);
                assert_eq!(raftpb::decode_message(&again.into()).unwrap(), message);
            }
            let _ = raftpb::decode_entry(&bytes);
            let _ = raftpb::decode_snapshot(&bytes);
            let _ = raftpb::decode_hard_state(&bytes);
            let _ = raftpb::decode_conf_state(&bytes);
            let _ = raftpb::decode_conf_change(&bytes);
        },
    );
}

#[test]
fn blocks_of_a_chain() {
    let rule = CHANNEL
        .policies()
        .get("/Channel/Orderer/BlockValidation")
        .unwrap();
    torment("block", Shape::Protobuf, &blocks(), 2_500, |bytes| {
        let Ok(read) = Block::decode(bytes) else {
            return;
        };
        let _ = block::header(&read);
        let _ = block::check_data_hash(&read);
        let _ = block::is_config(&read);
        let _ = block::last_config(&read);
        let _ = block::consenter_metadata(&read);
        let _ = block::verify_signatures(&read, &rule);
        let _ = inspect::block(&read);
        let _ = inspect::block_text(&read);
    });
}

#[test]
fn configuration_blocks() {
    let genesis = samples("genesis", ".block");
    torment(
        "configuration block",
        Shape::Protobuf,
        &genesis,
        1_500,
        |bytes| {
            let Ok(read) = Block::decode(bytes) else {
                return;
            };
            let Ok(config) = ChannelConfig::from_block(&read) else {
                return;
            };
            let _ = raft_config::check(&config, NOW);
            let _ = raft_config::options(config.raft_metadata());
            let _ = raft_config::check_change(&CHANNEL, &config, &[1, 2, 3], &[1, 2, 3], NOW);
            let _ = CHANNEL.check_successor(&config);
            let _ = config.orderer_endpoints();
            let _ = compute_update("fixture", CHANNEL.proto(), config.proto());
            let _ = inspect::config_text(config.proto());
        },
    );
}

#[test]
fn configuration_updates() {
    let mut updates = samples("config-updates", ".pb");
    // Those that are good for this configuration get furthest.
    let good = read("config-updates/01-batch-size.pb");
    updates.extend(std::iter::repeat_n(good, updates.len()));
    torment(
        "configuration update",
        Shape::Protobuf,
        &updates,
        3_000,
        |bytes| {
            if let Ok(envelope) = RawEnvelope::decode(Bytes::copy_from_slice(bytes)) {
                if let Ok(proposed) = CHANNEL.propose_update(&envelope) {
                    CHANNEL.validate(&proposed.envelope).unwrap();
                }
                let _ = CHANNEL.propose_channel(&envelope);
            }
        },
    );
}

#[test]
fn membership_definitions() {
    let definitions: Vec<Vec<u8>> = ["fixture", "fixturecrl", "syschannel"]
        .iter()
        .flat_map(|name| definitions(&genesis(name)))
        .map(|(_, definition)| definition.encode_to_vec())
        .collect();
    torment("MSP", Shape::Protobuf, &definitions, 4_000, |bytes| {
        if let Ok(definition) = MspConfig::decode(bytes) {
            let _ = Msp::from_config(&definition);
        }
    });
}

#[test]
fn policies_of_a_channel() {
    let group = genesis("fixture");
    let mut found = Vec::new();
    collect_policies(&group, &mut found);
    let membership = membership(&group);
    let user = org1_user();
    let signed = SignedData {
        data: Bytes::from_static(b"message"),
        identity: user.creator(),
        signature: user.sign(b"message").unwrap().into(),
    };
    torment("policy", Shape::Protobuf, &found, 20_000, |bytes| {
        let Ok(policy) = Policy::decode(bytes) else {
            return;
        };
        let mut group = ConfigGroup::default();
        let policy = ConfigPolicy {
            policy: Some(policy),
            ..ConfigPolicy::default()
        };
        group.policies.insert("P".to_owned(), policy.clone());
        let mut around = ConfigGroup::default();
        around.policies.insert("P".to_owned(), policy);
        around.groups.insert("inner".to_owned(), group);
        if let Ok(policies) = Policies::new("Channel", &around, membership.clone()) {
            let _ = policies
                .get("P")
                .unwrap()
                .evaluate(std::slice::from_ref(&signed));
        }
    });
    let principals: Vec<Vec<u8>> = (0..5)
        .map(|kind| {
            MspPrincipal {
                principal_classification: kind,
                principal: user.creator().to_vec(),
            }
            .encode_to_vec()
        })
        .collect();
    torment("principal", Shape::Protobuf, &principals, 20_000, |bytes| {
        if let Ok(principal) = MspPrincipal::decode(bytes) {
            let _ = user.identity().satisfies(&principal);
        }
    });
}

fn collect_policies(group: &ConfigGroup, found: &mut Vec<Vec<u8>>) {
    found.extend(
        group
            .policies
            .values()
            .filter_map(|policy| Some(policy.policy.as_ref()?.encode_to_vec())),
    );
    group
        .groups
        .values()
        .for_each(|group| collect_policies(group, found));
}

fn der(path: &str) -> Vec<u8> {
    pem::first(&read(path)).unwrap().0.bytes
}

#[test]
fn certificates() {
    let authority = "crypto/peerOrganizations/org1.test/ca/ca.org1.test-cert.pem";
    let parent = Certificate::from_pem(&read(authority)).unwrap();
    let mut certificates = vec![der(authority)];
    for name in ["org1-p384", "org1-rsa", "org1-ed25519", "org1-expired"] {
        let path = format!("crypto/special/{name}/cert.pem");
        if fixtures().join(&path).exists() {
            certificates.push(der(&path));
        }
    }
    certificates.push(der(
        "crypto/ordererOrganizations/orderer.test/orderers/orderer0.orderer.test/tls/server.crt",
    ));
    assert!(certificates.len() > 3);
    let membership = membership(&genesis("fixturecrl"));
    torment("certificate", Shape::Der, &certificates, 20_000, |bytes| {
        if let Ok(certificate) = Certificate::from_der(bytes) {
            let _ = certificate.verify_signed_by(&parent);
            let _ = certificate.serial_decimal();
            let _ = (
                certificate.dns_names().count(),
                certificate.ip_addresses().count(),
            );
        }
        let pem = pem::encode("CERTIFICATE", bytes);
        let creator = serialized("Org1MSP", pem.as_bytes());
        if let Ok(identity) = membership.identity(&creator) {
            let _ = identity.validate();
        }
        let _ = PublicKey::from_spki_der(bytes);
    });
    let lists = [der("crypto/special/org1-crl/crl.pem")];
    torment("revocation list", Shape::Der, &lists, 20_000, |bytes| {
        if let Ok(list) = RevocationList::read(bytes) {
            let _ = list.verify_signed_by(&parent);
            let _ = list.lists(&parent);
        }
    });
    let keys: Vec<Vec<u8>> = ["org1-p384", "org1-expired"]
        .iter()
        .map(|name| pem::first(&special(name).2).unwrap().0.bytes)
        .collect();
    torment("private key", Shape::Der, &keys, 20_000, |bytes| {
        let _ = SigningKey::from_der(bytes);
    });
    let texts = [read(authority), special("org1-p384").2];
    torment("PEM", Shape::Text, &texts, 20_000, |bytes| {
        let _ = pem::all(bytes).count();
        let _ = Certificate::from_pem(bytes);
        let _ = SigningKey::from_pem(bytes);
    });
    // A signature of a long number.
    let signature = org1_user().sign(b"message").unwrap();
    torment("signature", Shape::Der, &[signature], 10_000, |bytes| {
        let _ = org1_user_identity().verify(b"message", bytes);
    });
}

fn org1_user_identity() -> &'static quorate_fabric::msp::Identity {
    static USER: LazyLock<LocalMsp> = LazyLock::new(org1_user);
    USER.identity()
}

#[test]
fn files_of_an_operator() {
    let configtx = vec![read("configtx.yaml")];
    let files = BesideConfigtx(fixtures());
    let channel = ChannelId::new("fixture").unwrap();
    torment("configtx.yaml", Shape::Text, &configtx, 40, |bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else {
            return;
        };
        if let Ok(profile) = Profile::read(text, PROFILE)
            && let Ok(block) = profile.genesis_block(&channel, &files, 1_795_200_000, &[7; 24])
        {
            let _ = ChannelConfig::from_block(&block);
        }
    });
    let crypto = vec![read("crypto/crypto-config.yaml")];
    let now = OffsetDateTime::from_unix_timestamp(1_795_200_000).unwrap();
    torment("crypto-config.yaml", Shape::Text, &crypto, 30, |bytes| {
        if let Ok(text) = std::str::from_utf8(bytes) {
            let _ = crypto_material::generate(text, now);
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let own = "crypto/peerOrganizations/org1.test/users/User1@org1.test/msp";
    copy(&fixtures().join(own), folder.path());
    let units = vec![read(format!("{own}/config.yaml"))];
    torment("MSP's config.yaml", Shape::Text, &units, 150, |bytes| {
        std::fs::write(folder.path().join("config.yaml"), bytes).unwrap();
        let _ = LocalMsp::load(folder.path(), "Org1MSP");
    });
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir_all(&target).unwrap();
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// An update whose many signatures are each over all of it: what they sign is a thousand times as long as the message.
#[test]
fn many_signatures_of_a_long_update_cost_no_memory() {
    let good = RawEnvelope::decode(read("config-updates/01-batch-size.pb").into()).unwrap();
    let parts = EnvelopeParts::parse(&good).unwrap();
    let mut update = ConfigUpdateEnvelope::decode(&parts.data[..]).unwrap();
    // A field that nobody knows makes it long.
    update.config_update.extend([0xfa, 0x7d]);
    prost::encoding::encode_varint(2 << 20, &mut update.config_update);
    update.config_update.extend(vec![7; 2 << 20]);
    let user = org1_user();
    let header = SignatureHeader {
        creator: user.creator().to_vec(),
        nonce: vec![],
    };
    update.signatures = vec![
        ConfigSignature {
            signature_header: header.encode_to_vec(),
            signature: user.sign(b"something else").unwrap(),
        };
        4_000
    ];
    let header = ChannelHeader {
        r#type: parts.channel_header.header_type,
        channel_id: "fixture".to_owned(),
        ..ChannelHeader::default()
    };
    let message = envelope::sign(&header, update.encode_to_vec(), &[1; 24], &user).unwrap();
    let before = resident_kib();
    let refusal = CHANNEL.propose_update(&message).unwrap_err();
    assert!(refusal.to_string().contains("not satisfied"), "{refusal}");
    let grown = resident_kib() - before;
    assert!(grown < 200 * 1024, "{grown} KiB");
}

/// Groups in groups with long names: what is kept of them grows with the message, not with its square.
#[test]
fn deep_trees_of_long_names_cost_no_memory() {
    let policy = genesis("fixture").policies["Readers"].clone();
    let mut group = ConfigGroup::default();
    for number in 0..2_000 {
        group.policies.insert(format!("p{number}"), policy.clone());
    }
    for _ in 0..40 {
        let mut around = ConfigGroup::default();
        around.groups.insert("g".repeat(249), group);
        group = around;
    }
    let before = resident_kib();
    let policies = Policies::new("Channel", &group, membership(&genesis("fixture"))).unwrap();
    assert!(policies.get("p1").is_none());
    let config = Config {
        sequence: 0,
        channel_group: Some(group),
    };
    assert!(ChannelConfig::new("fixture", config).is_err());
    let grown = resident_kib() - before;
    assert!(grown < 300 * 1024, "{grown} KiB");
}

/// Nesting is bounded wherever it is read by a function that calls itself.
#[test]
fn nesting_without_end_is_refused() {
    // Messages within messages, as bytes that each level decodes anew.
    let user = org1_user();
    let mut principal = MspPrincipal {
        principal_classification: 4,
        principal: vec![],
    };
    for _ in 0..20_000 {
        let mut combined = Vec::new();
        prost::encoding::message::encode(1, &principal, &mut combined);
        principal.principal = combined;
        if principal.principal.len() > 100_000 {
            break;
        }
    }
    assert!(user.identity().satisfies(&principal).is_err());

    // The last update of a configuration holds an envelope that holds a configuration …
    let mut data = read("config-updates/01-batch-size.pb");
    for _ in 0..2_000 {
        let header = Header {
            channel_header: ChannelHeader {
                r#type: 1,
                channel_id: "fixture".to_owned(),
                ..ChannelHeader::default()
            }
            .encode_to_vec(),
            signature_header: vec![],
        };
        let mut envelope = Vec::new();
        prost::encoding::bytes::encode(2, &data, &mut envelope);
        let payload = Payload {
            header: Some(header),
            data: envelope,
        };
        data = RawEnvelope::new(&payload.encode_to_vec(), &[])
            .encoded()
            .to_vec();
    }
    let _ = inspect::envelope(&data);

    // Rules in rules.
    let deep = format!(
        "{}'OrdererOrgMSP.member'{}",
        "OR(".repeat(50_000),
        ")".repeat(50_000)
    );
    let configtx = String::from_utf8(read("configtx.yaml")).unwrap();
    let configtx = configtx.replacen("OR('OrdererOrgMSP.member')", &deep, 1);
    let channel = ChannelId::new("fixture").unwrap();
    if let Ok(profile) = Profile::read(&configtx, PROFILE) {
        let _ = profile.genesis_block(&channel, &BesideConfigtx(fixtures()), 0, &[]);
    }
}

#[test]
fn a_member_with_many_wrong_signatures_is_still_heard_once() {
    let membership = membership(&genesis("fixture"));
    let user = org1_user();
    let wrong = SignedData {
        data: Bytes::from_static(b"message"),
        identity: user.creator(),
        signature: user.sign(b"another").unwrap().into(),
    };
    let good = SignedData {
        signature: user.sign(b"message").unwrap().into(),
        ..wrong.clone()
    };
    let heard = |signatures: Vec<SignedData>| {
        quorate_fabric::policy::verified_identities(&Arc::clone(&membership), signatures).len()
    };
    assert_eq!(heard(vec![wrong.clone(), good.clone(), good.clone()]), 1);
    assert_eq!(heard(vec![wrong; 100_000]), 0);
}
