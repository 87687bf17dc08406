//! The checks of messages, against what Fabric's orderer answered to the same bytes.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use prost::Message as _;
use quorate_fabric::block;
use quorate_fabric::config::ChannelConfig;
use quorate_fabric::envelope::RawEnvelope;
use quorate_fabric::msp::LocalMsp;
use quorate_fabric::proto::common::{Block, Payload, SignatureHeader, Status};
use quorate_fabric::proto::msp::SerializedIdentity;
use quorate_identity::UnixTime;
use quorate_orderer::checks::{self, Class, Refusal, Rules, UpdateContext};
use quorate_runtime::Entropy;
use serde_json::Value;

/// 2026-11-20, some hours after the fixtures were made.
const NOW: UnixTime = UnixTime(1_795_200_000);

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/fabric")
}

fn read(path: impl AsRef<Path>) -> Bytes {
    let path = fixtures().join(path);
    std::fs::read(&path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        .into()
}

fn json(path: &str) -> Value {
    serde_json::from_slice(&read(path)).unwrap()
}

fn block(path: impl AsRef<Path>) -> Block {
    Block::decode(read(path)).unwrap()
}

fn signer() -> LocalMsp {
    LocalMsp::load(
        &fixtures()
            .join("crypto/ordererOrganizations/orderer.test/orderers/orderer0.orderer.test/msp"),
        "OrdererOrgMSP",
    )
    .unwrap()
}

/// A text without what the libraries of Go say in their own words.
fn ours(text: &str) -> String {
    let text = text.replace('\u{a0}', " ");
    for foreign in ["x509:", "time:"] {
        if let Some(at) = text.find(foreign) {
            return text[..at + foreign.len()].to_owned();
        }
    }
    text
}

fn judge(
    configs: &BTreeMap<&str, ChannelConfig>,
    signer: &LocalMsp,
    request: Bytes,
) -> Result<(), Refusal> {
    let envelope = RawEnvelope::decode(request).unwrap();
    let header = checks::channel_header(&envelope)?;
    let Some(config) = configs.get(header.channel_id.as_str()) else {
        return Err(Refusal {
            status: Status::BadRequest,
            info: "channel creation request not allowed because the orderer system channel is not defined".to_owned(),
        });
    };
    let rules = Rules::default();
    match checks::classify(&header)? {
        Class::Normal => checks::normal(config, &envelope, &rules, NOW),
        Class::ConfigUpdate => {
            let entropy = Entropy::seeded(1);
            let context = UpdateContext {
                config,
                consenters: &[1],
                active: &[1],
                signer,
                entropy: &entropy,
            };
            checks::update(&context, &envelope, &rules, NOW).map(|_| ())
        }
    }
}

fn configs(names: &[&'static str]) -> BTreeMap<&'static str, ChannelConfig> {
    names
        .iter()
        .map(|name| {
            let block = block(format!("genesis/{name}.block"));
            (*name, ChannelConfig::from_block(&block).unwrap())
        })
        .collect()
}

#[test]
fn broadcast_requests_get_the_recorded_answers() {
    let configs = configs(&["fixture1", "fixturecrl", "fixture"]);
    let signer = signer();
    let statuses = json("statuses/statuses.json");
    let mut replayed = 0;
    for case in statuses["broadcast"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let setup = case["setup"].as_str().unwrap();
        // What depends on the state of a cluster, or on a channel that is not served, is decided elsewhere.
        let pure = match setup {
            "single" => case["replay"] == "yes" || name == "config-update-grows-too-large",
            "three" => true,
            "no-leader" => name == "no-leader-bad-signature",
            _ => false,
        };
        let answers = case["answers"].as_array().unwrap();
        if !pure || answers.is_empty() {
            continue;
        }
        for (request, answer) in case["requests"].as_array().unwrap().iter().zip(answers) {
            let request = read(Path::new("statuses").join(request.as_str().unwrap()));
            let (status, info) = match judge(&configs, &signer, request) {
                Ok(()) => (Status::Success, String::new()),
                Err(refusal) => (refusal.status, refusal.info),
            };
            assert_eq!(
                status as i64,
                answer["status"].as_i64().unwrap(),
                "{name}: {info}"
            );
            // One length there includes the orderer's own signature, which is not always of the same length.
            let expected = answer["info"].as_str().unwrap();
            if name == "config-update-grows-too-large" {
                let text = "config update for existing channel did not pass final checks: message payload is ";
                assert!(info.starts_with(text), "{name}: {info}");
                assert!(info.ends_with(" bytes and exceeds maximum allowed 65536 bytes"));
            } else {
                assert_eq!(ours(&info), ours(expected), "{name}");
            }
            replayed += 1;
        }
    }
    assert!(replayed > 90, "only {replayed} requests were replayed");
}

#[test]
fn senders_may_be_expired_where_that_is_configured() {
    let configs = configs(&["fixture1"]);
    let request = read("statuses/requests/b-identity-org1-expired.pb");
    let envelope = RawEnvelope::decode(request).unwrap();
    let rules = Rules {
        no_expiration_checks: true,
    };
    assert_eq!(
        checks::normal(&configs["fixture1"], &envelope, &rules, NOW),
        Ok(())
    );
}

/// As with Fabric: the certificate decides, whether the channel knows its MSP or not.
#[test]
fn a_stranger_who_is_expired_is_told_so() {
    let configs = configs(&["fixture1"]);
    let expired =
        RawEnvelope::decode(read("statuses/requests/b-identity-org1-expired.pb")).unwrap();
    let mut payload = Payload::decode(expired.payload().as_ref()).unwrap();
    let header = payload.header.as_mut().unwrap();
    let mut signed = SignatureHeader::decode(header.signature_header.as_ref()).unwrap();
    let mut creator = SerializedIdentity::decode(signed.creator.as_ref()).unwrap();
    creator.mspid = "NobodyMSP".to_owned();
    signed.creator = creator.encode_to_vec();
    header.signature_header = signed.encode_to_vec();
    let stranger = RawEnvelope::new(&payload.encode_to_vec(), expired.signature());
    let judged = |rules| checks::normal(&configs["fixture1"], &stranger, &rules, NOW).unwrap_err();
    let refusal = judged(Rules::default());
    assert_eq!(refusal.status, Status::BadRequest);
    assert_eq!(refusal.info, "broadcast client identity expired");
    let refusal = judged(Rules {
        no_expiration_checks: true,
    });
    assert_eq!(refusal.status, Status::Forbidden);
}

#[test]
fn configuration_updates_get_the_recorded_answers() {
    let signer = signer();
    let entropy = Entropy::seeded(7);
    let rules = Rules::default();
    let mut accepted = 0;
    for case in json("config-updates/updates.json").as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let base = block(Path::new("config-updates").join(case["base"].as_str().unwrap()));
        let config = ChannelConfig::from_block(&base).unwrap();
        let consenters = block::consenter_metadata(&base)
            .unwrap()
            .map_or_else(|| vec![1, 2, 3], |metadata| metadata.consenter_ids);
        let active = match name {
            name if name.contains("quorum-loss") => &consenters[..2],
            _ => &consenters[..],
        };
        let request = read(Path::new("config-updates").join(case["file"].as_str().unwrap()));
        let envelope = RawEnvelope::decode(request).unwrap();
        let context = UpdateContext {
            config: &config,
            consenters: &consenters,
            active,
            signer: &signer,
            entropy: &entropy,
        };
        let header = checks::channel_header(&envelope).unwrap();
        assert_eq!(checks::classify(&header), Ok(Class::ConfigUpdate));
        let answer = &case["answer"];
        let expected = answer["info"].as_str().unwrap();
        match checks::update(&context, &envelope, &rules, NOW) {
            Ok(made) => {
                assert_eq!(
                    answer["status"], 200,
                    "{name} was accepted, Fabric: {expected}"
                );
                let stored =
                    block(Path::new("config-updates").join(case["block"].as_str().unwrap()));
                let made = checks::config_envelope(&made).unwrap();
                let theirs = RawEnvelope::decode(stored.data.unwrap().data[0].clone()).unwrap();
                let theirs = checks::config_envelope(&theirs).unwrap();
                assert_eq!(made, theirs, "{name}");
                accepted += 1;
            }
            Err(refusal) => {
                assert_eq!(
                    refusal.status as i64,
                    answer["status"].as_i64().unwrap(),
                    "{name}: {refusal}"
                );
                assert_eq!(ours(&refusal.info), ours(expected), "{name}");
            }
        }
    }
    assert_eq!(accepted, 29);
}

#[test]
fn an_update_is_judged_again_by_what_the_channel_has_become() {
    let signer = signer();
    let entropy = Entropy::seeded(7);
    let rules = Rules::default();
    let base = ChannelConfig::from_block(&block("genesis/fixture.block")).unwrap();
    let context = |config| UpdateContext {
        config,
        consenters: &[1, 2, 3],
        active: &[1, 2, 3],
        signer: &signer,
        entropy: &entropy,
    };
    let envelope = RawEnvelope::decode(read("config-updates/01-batch-size.pb")).unwrap();
    let made = checks::update(&context(&base), &envelope, &rules, NOW).unwrap();
    // Nothing has happened: it may be made again.
    let again = checks::config_again(&context(&base), &made, &rules, NOW).unwrap();
    assert_eq!(
        checks::config_envelope(&again).unwrap(),
        checks::config_envelope(&made).unwrap()
    );
    // The same change has been made meanwhile.
    let next = ChannelConfig::from_block(&block("config-updates/01-batch-size.block")).unwrap();
    let refusal = checks::config_again(&context(&next), &made, &rules, NOW).unwrap_err();
    assert_eq!(refusal.status, Status::BadRequest);
}

#[test]
fn maintenance_mode_is_looked_at_before_the_sender() {
    let config =
        ChannelConfig::from_block(&block("config-updates/11-maintenance-on.block")).unwrap();
    for case in json("config-updates/maintenance.json").as_array().unwrap() {
        let Some(answer) = case.get("broadcast_answer") else {
            continue;
        };
        let request = read(Path::new("config-updates").join(case["request"].as_str().unwrap()));
        let envelope = RawEnvelope::decode(request).unwrap();
        let refusal = checks::normal(&config, &envelope, &Rules::default(), NOW).unwrap_err();
        assert_eq!(refusal.status as i64, answer["status"].as_i64().unwrap());
        assert_eq!(refusal.info, answer["info"].as_str().unwrap());
    }
}
