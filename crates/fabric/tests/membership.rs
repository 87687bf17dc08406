//! Membership and policies against what Fabric's tools wrote and Fabric's orderer answered.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use quorate_fabric::block;
use quorate_fabric::envelope::{EnvelopeParts, RawEnvelope};
use quorate_fabric::msp::{
    IdentityError, LocalMsp, MAX_CACHED_IDENTITIES, Membership, Msp, MspError, MspVersion, Signer,
    SigningIdentity, msp_config_from_folder,
};
use quorate_fabric::policy::{Policies, PolicyError, SignedData, verified_identities};
use quorate_fabric::proto::common::msp_principal::Classification;
use quorate_fabric::proto::common::msp_role::MspRoleType;
use quorate_fabric::proto::common::{
    Block, CombinedPrincipal, ConfigUpdate, ConfigUpdateEnvelope, Envelope, MspIdentityAnonymity,
    MspPrincipal, MspRole, OrganizationUnit, Payload,
};
use quorate_fabric::proto::msp::{FabricMspConfig, MspConfig};
use quorate_identity::UnixTime;
use quorate_identity::x509::{Certificate, SigningKey};
use support::*;

fn signed(signer: &dyn Signer, message: &[u8]) -> SignedData {
    SignedData {
        data: Bytes::copy_from_slice(message),
        identity: signer.creator(),
        signature: signer.sign(message).unwrap().into(),
    }
}

fn role(msp_id: &str, role: MspRoleType) -> MspPrincipal {
    MspPrincipal {
        principal_classification: Classification::Role as i32,
        principal: MspRole {
            msp_identifier: msp_id.to_owned(),
            role: role as i32,
        }
        .encode_to_vec(),
    }
}

#[test]
fn folders_give_the_definitions_that_configtxgen_made_of_them() {
    let folder_of = |channel: &str, organisation: &str| match (channel, organisation) {
        ("fixturecrl", "Org1") => "special/org1-msp-with-crl",
        (_, "Org1") => "peerOrganizations/org1.test/msp",
        (_, "Org2") => "peerOrganizations/org2.test/msp",
        (_, "OrdererOrg") => "ordererOrganizations/orderer.test/msp",
        other => panic!("an organisation that is not listed here: {other:?}"),
    };
    let mut seen = BTreeSet::new();
    for channel in ["fixture1", "fixture", "fixturecrl", "syschannel"] {
        for (organisation, recorded) in definitions(&genesis(channel)) {
            let folder = folder_of(channel, &organisation);
            let path = fixtures().join("crypto").join(folder);
            let ours = msp_config_from_folder(&path, &format!("{organisation}MSP")).unwrap();
            assert_eq!(
                FabricMspConfig::decode(&ours.config[..]).unwrap(),
                FabricMspConfig::decode(&recorded.config[..]).unwrap(),
                "{channel} {organisation}"
            );
            assert_eq!(ours, recorded, "{channel} {organisation}: byte for byte");
            seen.insert(folder);
        }
    }
    assert!(seen.len() >= 3, "{seen:?}");
}

#[test]
fn an_organisation_without_node_units_has_admins_by_name() {
    let path = fixtures().join("crypto/peerOrganizations/org2.test/msp");
    let definition = msp_config_from_folder(&path, "Org2MSP").unwrap();
    let org2 = Arc::new(Msp::from_config(&definition).unwrap());
    let membership = Membership::new([org2]);
    let admin = membership.identity(&org2_admin().creator()).unwrap();
    let user = local(
        "Org2MSP",
        "peerOrganizations/org2.test/users/User1@org2.test",
    );
    let user = membership.identity(&user.creator()).unwrap();
    for identity in [&admin, &user] {
        identity
            .satisfies(&role("Org2MSP", MspRoleType::Member))
            .unwrap();
        for (kind, text) in [
            (
                MspRoleType::Client,
                "The identity is not a [CLIENT] under this MSP [Org2MSP]: NodeOUs not activated. Cannot tell apart identities.",
            ),
            (MspRoleType::Orderer, "invalid MSP role type 4"),
        ] {
            assert_eq!(
                identity
                    .satisfies(&role("Org2MSP", kind))
                    .unwrap_err()
                    .to_string(),
                text
            );
        }
    }
    admin
        .satisfies(&role("Org2MSP", MspRoleType::Admin))
        .unwrap();
    assert_eq!(
        user.satisfies(&role("Org2MSP", MspRoleType::Admin))
            .unwrap_err()
            .to_string(),
        "This identity is not an admin"
    );
}

/// Every Broadcast request of the orderer that was alone: what `/Channel/Writers` says of it.
#[test]
fn writers_are_judged_as_recorded() {
    let channels = [
        ("fixture1", policies(&genesis("fixture1"))),
        ("fixturecrl", policies(&genesis("fixturecrl"))),
    ];
    let statuses = json("statuses/statuses.json");
    let mut judged = 0;
    for case in statuses["broadcast"].as_array().unwrap() {
        let Some((_, policies)) = channels
            .iter()
            .find(|(name, _)| case["channel"] == *name && case["setup"] == "single")
        else {
            continue;
        };
        let answers = case["answers"].as_array().unwrap();
        for (request, answer) in case["requests"].as_array().unwrap().iter().zip(answers) {
            let info = answer["info"].as_str().unwrap();
            let expected = match (answer["status"].as_u64().unwrap(), info) {
                (200, _) => Ok(()),
                (403, _) => Err(info
                    .trim_start_matches(
                        "config update for existing channel did not pass initial checks: ",
                    )
                    .trim_end_matches(": permission denied")),
                // Expired identities are members none the less; other checks come before the policy.
                (400, "broadcast client identity expired")
                    if case["name"] != "expired-and-bad-signature" =>
                {
                    Ok(())
                }
                _ => continue,
            };
            let bytes = read(format!("statuses/{}", request.as_str().unwrap()));
            let envelope = RawEnvelope::decode(bytes.into()).unwrap();
            let signed = EnvelopeParts::parse(&envelope)
                .unwrap()
                .signed_data(&envelope)
                .unwrap();
            let answer = policies
                .get("/Channel/Writers")
                .unwrap()
                .evaluate(&[signed]);
            assert_eq!(
                answer.map_err(|error| error.to_string()),
                expected.map_err(str::to_owned),
                "{}: {}",
                case["name"],
                case["what"]
            );
            judged += 1;
        }
    }
    assert!(judged > 70, "only {judged} cases were judged");
}

#[test]
fn odd_identities_are_accepted_or_refused_as_recorded() {
    let membership = membership(&genesis("fixture1"));
    let no_single_unit = "could not validate identity's OUs: the identity must be a client, a peer, an orderer or an admin identity to be valid, not a combination of them. OUs: [";
    // What is wrong with a member, or with a client; nothing if both are satisfied.
    for (name, member, client) in [
        ("org1-expired", None, None),
        ("org1-future", None, None),
        ("org1-p384", None, None),
        ("org1-revoked", None, None),
        ("org1-rsa", None, None),
        (
            "org1-no-ou",
            Some(no_single_unit),
            Some("The identity is not valid"),
        ),
        (
            "org1-two-ous",
            Some(no_single_unit),
            Some("The identity is not valid"),
        ),
        (
            "org1-other-ou",
            Some(no_single_unit),
            Some("The identity is not valid"),
        ),
        (
            "org1-orderer-ou",
            None,
            Some(
                "The identity is not a [CLIENT] under this MSP [Org1MSP]: The identity does not contain OU [CLIENT], MSP: [Org1MSP]",
            ),
        ),
        (
            "org1-ca",
            Some(
                "could not obtain certification chain: An X509 certificate with Basic Constraint: Certificate Authority equals true cannot be used as an identity",
            ),
            Some("The identity is not valid under this MSP [Org1MSP]"),
        ),
    ] {
        let (msp_id, certificate, _) = special(name);
        let identity = membership
            .identity(&serialized(&msp_id, &certificate))
            .unwrap();
        let check = |kind, expected: Option<&str>| {
            let answer = identity.satisfies(&role("Org1MSP", kind));
            match (answer, expected) {
                (Ok(()), None) => {}
                (Err(error), Some(expected)) => {
                    assert!(error.to_string().starts_with(expected), "{name}: {error}");
                }
                (answer, _) => panic!("{name} as {kind:?}: {answer:?}"),
            }
        };
        check(MspRoleType::Member, member);
        check(MspRoleType::Client, client);
        assert_eq!(identity.validate().is_ok(), member.is_none(), "{name}");
    }
    for (name, text) in [
        (
            "org1-ed25519",
            "failed to import certificate's public key: Failed importing key with opts [&{true}]: Certificate's public key type not recognized. Supported keys: [ECDSA, RSA]",
        ),
        (
            "stranger-as-org1",
            "the supplied identity is not valid: x509: certificate signed by unknown authority",
        ),
        (
            "stranger-unknown-msp",
            "MSP StrangerMSP is not defined on channel",
        ),
    ] {
        let (msp_id, certificate, _) = special(name);
        let error = membership
            .identity(&serialized(&msp_id, &certificate))
            .unwrap_err();
        assert_eq!(error.to_string(), text, "{name}");
    }
}

#[test]
fn expiry_is_told_and_not_judged() {
    let membership = membership(&genesis("fixture1"));
    let (msp_id, certificate, _) = special("org1-expired");
    let identity = membership
        .identity(&serialized(&msp_id, &certificate))
        .unwrap();
    // 2026-11-20T13:09:00Z
    assert_eq!(identity.expires_at(), UnixTime(1_795_180_140));
    identity.validate().unwrap();

    // Whether it has expired can be said of anybody's certificate.
    for (msp_id, expected) in [
        ("Org1MSP", Some(UnixTime(1_795_180_140))),
        ("UnknownMSP", Some(UnixTime(1_795_180_140))),
    ] {
        assert_eq!(
            membership.expires_at(&serialized(msp_id, &certificate)),
            expected
        );
    }
    assert_eq!(
        membership.expires_at(&serialized("Org1MSP", b"nothing")),
        None
    );
    assert_eq!(membership.expires_at(&[0xff]), None);
}

#[test]
fn revocation_counts_where_the_list_is() {
    for (channel, revoked) in [("fixture1", false), ("fixturecrl", true)] {
        let membership = membership(&genesis(channel));
        for name in ["org1-revoked", "org1-admin-revoked"] {
            let (msp_id, certificate, _) = special(name);
            let identity = membership
                .identity(&serialized(&msp_id, &certificate))
                .unwrap();
            let answer = identity.validate().map_err(|error| error.to_string());
            let expected = "could not validate identity against certification chain: The certificate has been revoked";
            assert_eq!(
                answer,
                if revoked {
                    Err(expected.to_owned())
                } else {
                    Ok(())
                },
                "{channel} {name}"
            );
        }
        membership
            .identity(&org1_user().creator())
            .unwrap()
            .validate()
            .unwrap();
    }
}

#[test]
fn roles_go_by_unit() {
    let membership = membership(&genesis("fixture1"));
    let peer = local(
        "Org1MSP",
        "peerOrganizations/org1.test/peers/peer0.org1.test",
    );
    let (all, members) = (
        [
            MspRoleType::Admin,
            MspRoleType::Client,
            MspRoleType::Peer,
            MspRoleType::Orderer,
        ],
        [
            ("Org1MSP", org1_admin(), MspRoleType::Admin),
            ("Org1MSP", org1_user(), MspRoleType::Client),
            ("Org1MSP", peer, MspRoleType::Peer),
            ("OrdererOrgMSP", orderer0(), MspRoleType::Orderer),
        ],
    );
    for (msp_id, signer, own) in members {
        let identity = membership.identity(&signer.creator()).unwrap();
        identity
            .satisfies(&role(msp_id, MspRoleType::Member))
            .unwrap();
        for kind in all {
            assert_eq!(
                identity.satisfies(&role(msp_id, kind)).is_ok(),
                kind == own,
                "{identity:?} {kind:?}"
            );
        }
        let error = identity.satisfies(&role("OtherMSP", own)).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "the identity is a member of a different MSP (expected OtherMSP, got {msp_id})"
            )
        );
    }
}

#[test]
fn principals_of_all_kinds() {
    let group = genesis("fixture1");
    let membership = membership(&group);
    let identity = membership.identity(&org1_user().creator()).unwrap();
    let principal = |kind: Classification, bytes: Vec<u8>| MspPrincipal {
        principal_classification: kind as i32,
        principal: bytes,
    };
    let answer = |principal: &MspPrincipal| {
        identity
            .satisfies(principal)
            .map_err(|error| error.to_string())
    };
    let text = |text: &str| Err(text.to_owned());

    // The certifiers of a unit: the hash of the authorities above. Here that is one.
    let root = membership.msp("Org1MSP").unwrap().roots()[0].clone();
    let certifiers = root.fingerprint().as_bytes().to_vec();
    let unit = |msp_id: &str, name: &str, certifiers: &[u8]| {
        principal(
            Classification::OrganizationUnit,
            OrganizationUnit {
                msp_identifier: msp_id.to_owned(),
                organizational_unit_identifier: name.to_owned(),
                certifiers_identifier: certifiers.to_vec(),
            }
            .encode_to_vec(),
        )
    };
    assert_eq!(answer(&unit("Org1MSP", "client", &certifiers)), Ok(()));
    assert_eq!(
        answer(&unit("Org1MSP", "client", &[])),
        text("The identities do not match")
    );
    assert_eq!(
        answer(&unit("Org1MSP", "peer", &certifiers)),
        text("The identities do not match")
    );
    assert_eq!(
        answer(&unit("Org2MSP", "client", &certifiers)),
        text("the identity is a member of a different MSP (expected Org2MSP, got Org1MSP)")
    );

    let one = |bytes: &[u8]| principal(Classification::Identity, bytes.to_vec());
    assert_eq!(answer(&one(&org1_user().creator())), Ok(()));
    assert_eq!(
        answer(&one(&org1_admin().creator())),
        text("The identities do not match")
    );
    assert_eq!(
        answer(&one(&orderer0().creator())),
        text(
            "invalid identity principal, not a certificate: expected MSP ID Org1MSP, received OrdererOrgMSP"
        )
    );
    assert!(
        answer(&one(&[0xff]))
            .unwrap_err()
            .starts_with("invalid identity principal, not a certificate: ")
    );

    let anonymity = |anonymity_type| {
        principal(
            Classification::Anonymity,
            MspIdentityAnonymity { anonymity_type }.encode_to_vec(),
        )
    };
    assert_eq!(answer(&anonymity(0)), Ok(()));
    assert_eq!(
        answer(&anonymity(1)),
        text("Principal is anonymous, but X.509 MSP does not support anonymous identities")
    );
    assert_eq!(
        answer(&anonymity(7)),
        text("Unknown principal anonymity type: 7")
    );

    let combined = |principals: Vec<MspPrincipal>| {
        principal(
            Classification::Combined,
            CombinedPrincipal { principals }.encode_to_vec(),
        )
    };
    let member = role("Org1MSP", MspRoleType::Member);
    let client = role("Org1MSP", MspRoleType::Client);
    let peer = role("Org1MSP", MspRoleType::Peer);
    assert_eq!(
        answer(&combined(vec![member.clone(), client.clone()])),
        Ok(())
    );
    assert_eq!(
        answer(&combined(vec![
            member.clone(),
            combined(vec![client.clone(), anonymity(0)])
        ])),
        Ok(())
    );
    assert!(answer(&combined(vec![member.clone(), peer])).is_err());
    assert_eq!(
        answer(&combined(vec![])),
        text("No principals in CombinedPrincipal")
    );
    let deep = (0..100).fold(client, |inner, _| combined(vec![inner]));
    assert!(answer(&deep).unwrap_err().contains("nested"));

    let unknown = MspPrincipal {
        principal_classification: 9,
        principal: Vec::new(),
    };
    assert_eq!(answer(&unknown), text("invalid principal type 9"));
    let garbage = principal(Classification::Role, vec![0xff]);
    assert!(
        answer(&garbage)
            .unwrap_err()
            .starts_with("could not unmarshal MSPRole from principal: ")
    );

    // Older editions of the rules know less.
    let (_, definition) = definitions(&group)
        .into_iter()
        .find(|(name, _)| name == "Org1")
        .unwrap();
    let old = |version| {
        let msp = Arc::new(Msp::from_config_as(&definition, version).unwrap());
        msp.identity(org1_user().identity().certificate().to_pem().as_bytes())
            .unwrap()
    };
    assert_eq!(
        old(MspVersion::V1_1)
            .satisfies(&combined(vec![member]))
            .unwrap_err()
            .to_string(),
        "invalid principal type 4"
    );
    assert_eq!(
        old(MspVersion::V1_0)
            .satisfies(&anonymity(0))
            .unwrap_err()
            .to_string(),
        "invalid principal type 3"
    );
    assert_eq!(
        old(MspVersion::V1_3)
            .satisfies(&role("Org1MSP", MspRoleType::Admin))
            .unwrap_err()
            .to_string(),
        "This identity is not an admin"
    );
}

/// The definitions and policies in config updates that Fabric refused, and its words.
#[test]
fn broken_definitions_are_refused_in_fabrics_words() {
    let updates = json("config-updates/updates.json");
    let mut seen = 0;
    for update in updates.as_array().unwrap() {
        let info = update["answer"]["info"].as_str().unwrap();
        let bytes = || {
            let file = update["file"].as_str().unwrap();
            let envelope = Envelope::decode(&read(format!("config-updates/{file}"))[..]).unwrap();
            let payload = Payload::decode(&envelope.payload[..]).unwrap();
            let update = ConfigUpdateEnvelope::decode(&payload.data[..]).unwrap();
            ConfigUpdate::decode(&update.config_update[..])
                .unwrap()
                .write_set
                .unwrap()
        };
        if let Some((_, text)) = info.split_once("setting up the MSP manager failed: ") {
            let group = bytes();
            // A removed definition is an empty one.
            let definition = definitions(&group)
                .pop()
                .map_or_else(MspConfig::default, |(_, definition)| definition);
            let error: MspError = Msp::from_config(&definition).unwrap_err();
            assert_eq!(error.to_string(), normalised(text), "{}", update["name"]);
            seen += 1;
        }
        if let Some((_, text)) = info.split_once("initializing policymanager failed: ") {
            let error =
                Policies::new("Channel", &bytes(), Arc::new(Membership::default())).unwrap_err();
            assert_eq!(error.to_string(), normalised(text), "{}", update["name"]);
            seen += 1;
        }
    }
    assert_eq!(seen, 7);
}

#[test]
fn the_signatures_of_fabrics_blocks_satisfy_its_policy() {
    let mut rule = None;
    let mut verified = 0;
    for number in 0..32 {
        let block = Block::decode(&read(format!("chain/{number:02}.block"))[..]).unwrap();
        if let Some(rule) = &rule {
            block::verify_signatures(&block, rule).unwrap();
            verified += 1;
            let mut other = block.clone();
            other.header.as_mut().unwrap().number += 1;
            block::verify_signatures(&other, rule).unwrap_err();
        }
        if block::is_config(&block) {
            rule = policies(&channel_group(&block)).get("/Channel/Orderer/BlockValidation");
            assert!(rule.is_some(), "block {number}");
        }
    }
    assert_eq!(verified, 31);
}

#[test]
fn one_certificate_is_one_identity_however_it_is_written() {
    let membership = membership(&genesis("fixture1"));
    let user = org1_user();
    let plain = user.identity().certificate().clone();
    // The other form of the issuer's signature, which every X.509 library takes.
    let low = p256::ecdsa::Signature::from_der(plain.signature()).unwrap();
    let (r, s) = low.split_scalars();
    let high = p256::ecdsa::Signature::from_scalars(r.to_bytes(), (-s).to_bytes()).unwrap();
    let high = plain.with_signature(high.to_der().as_bytes()).unwrap();
    assert_ne!(plain, high);

    let message = Bytes::from_static(b"message");
    let signature = Bytes::from(user.sign(&message).unwrap());
    let forms = [
        plain.to_pem(),
        high.to_pem(),
        format!("in front\n{}", plain.to_pem()),
        plain.to_pem().replace("CERTIFICATE", "SOMETHING"),
    ];
    let signatures: Vec<_> = forms
        .iter()
        .map(|pem| SignedData {
            data: message.clone(),
            identity: serialized("Org1MSP", pem.as_bytes()).into(),
            signature: signature.clone(),
        })
        .collect();
    for signature in &signatures {
        let signers = verified_identities(&membership, [signature.clone()]);
        assert_eq!(signers.len(), 1);
        assert_eq!(*signers[0].certificate(), plain);
    }
    assert_eq!(verified_identities(&membership, signatures).len(), 1);
}

#[test]
fn signatures_of_every_curve_are_low_and_verify() {
    let membership = membership(&genesis("fixture1"));
    for signer in [special_signer("org1-p384"), special_signer("org1-future")] {
        let identity = membership.identity(&signer.creator()).unwrap();
        for number in 0..40_u8 {
            let message = [number; 100];
            let signature = signer.sign(&message).unwrap();
            // A signature with the larger S would be refused.
            identity.verify(&message, &signature).unwrap();
            let mut longer = signature.clone();
            longer.push(0);
            identity.verify(&message, &longer).unwrap();
            assert!(matches!(
                identity.verify(b"another", &signature),
                Err(IdentityError::Signature(text)) if text == "The signature is invalid"
            ));
            identity.verify(&message, &signature[1..]).unwrap_err();
            identity.verify(&message, &[]).unwrap_err();
        }
    }
}

#[test]
fn keys_of_another_kind_or_certificate_are_told_apart() {
    let (msp_id, certificate, _) = special("org1-future");
    let (_, _, other) = special("org1-p384");
    let (_, _, rsa) = special("org1-rsa");
    let text = |key: &[u8]| {
        let error = SigningIdentity::from_pem(&msp_id, &certificate, key).unwrap_err();
        let source = std::error::Error::source(&error).map(ToString::to_string);
        format!("{error}: {}", source.unwrap_or_default())
    };
    assert!(
        text(&other).starts_with("the private key does not belong to the certificate of Org1MSP")
    );
    assert!(text(&rsa).contains("not ECDSA"));
    assert!(text(b"nothing").contains("no PEM block"));
}

#[test]
fn keys_in_sec1_with_their_parameters_in_front_are_read() {
    let key = SigningKey::generate();
    let number = key.secret_number();
    // ECPrivateKey ::= SEQUENCE { 1, OCTET STRING, [0] prime256v1 }
    let mut der = vec![0x30, 0x31, 0x02, 0x01, 0x01, 0x04, 0x20];
    der.extend_from_slice(&number);
    der.extend_from_slice(&[
        0xa0, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07,
    ]);
    let encode = quorate_identity::x509::pem::encode;
    let pem = encode("EC PARAMETERS", &der[41..]) + &encode("EC PRIVATE KEY", &der);
    let read = SigningKey::from_pem(pem.as_bytes()).unwrap();
    assert_eq!(read.public_key(), key.public_key());
    assert!(!format!("{key:?}").contains(&hex::encode(&*number)));
}

#[test]
fn a_node_signs_with_what_is_in_its_folder() {
    let node = orderer0();
    let membership = membership(&genesis("fixture1"));
    let identity = membership.identity(&node.creator()).unwrap();
    identity
        .verify(b"block", &node.sign(b"block").unwrap())
        .unwrap();
    assert_eq!(identity.serialized(), node.creator());
    assert_eq!(node.msp().id(), "OrdererOrgMSP");
    assert_eq!(node.expires_at(), identity.expires_at());
}

#[test]
fn a_folder_that_lacks_something_says_what() {
    let source = fixtures()
        .join("crypto/ordererOrganizations/orderer.test/orderers/orderer0.orderer.test/msp");
    let directory = tempfile::tempdir().unwrap();
    let folder = directory.path();
    let load = || {
        LocalMsp::load(folder, "OrdererOrgMSP")
            .map(|_| ())
            .map_err(|error| error.to_string())
    };
    let copy = |name: &str| {
        std::fs::create_dir_all(folder.join(name)).unwrap();
        for entry in std::fs::read_dir(source.join(name)).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), folder.join(name).join(entry.file_name())).unwrap();
        }
    };
    assert!(
        load()
            .unwrap_err()
            .starts_with("could not read signer certificate at ")
    );
    copy("signcerts");
    assert!(
        load()
            .unwrap_err()
            .starts_with("could not read ca certificate at ")
    );
    std::fs::create_dir(folder.join("cacerts")).unwrap();
    std::fs::write(folder.join("cacerts/readme.txt"), "not a certificate").unwrap();
    assert!(load().unwrap_err().contains("no PEM file in it"));
    copy("cacerts");
    assert!(
        load()
            .unwrap_err()
            .starts_with("could not read key store at ")
    );
    std::fs::create_dir(folder.join("keystore")).unwrap();
    assert!(
        load()
            .unwrap_err()
            .contains("holds the private key of the certificate CN=orderer0.orderer.test")
    );
    copy("keystore");
    load().unwrap();
    std::fs::write(folder.join("config.yaml"), "NodeOUs: [").unwrap();
    assert!(
        load()
            .unwrap_err()
            .starts_with("failed unmarshalling configuration file at [")
    );
}

#[test]
fn paths_lead_to_policies() {
    let policies = policies(&genesis("fixture1"));
    for path in [
        "/Channel/Writers",
        "Writers",
        "/Channel/Application/Org1/Writers",
        "Application/Org1/Writers",
        "/Channel/Orderer/BlockValidation",
    ] {
        assert!(policies.get(path).is_some(), "{path}");
    }
    for path in [
        "",
        "/",
        "/Channel",
        "/Channel/",
        "/Writers",
        "/Channel/Application",
        "Org1/Writers",
        "/Other/Writers",
    ] {
        assert!(policies.get(path).is_none(), "{path}");
    }
    let application = policies.manager(&["Application"]).unwrap();
    assert_eq!(application.path(), "Channel/Application");
    assert!(application.get("Org1/Writers").is_some());
    assert!(application.get("/Channel/Application/Writers").is_some());
    assert!(application.get("/Channel/Writers").is_none());
    assert!(policies.manager(&["Application", "Org9"]).is_none());
}

#[test]
fn majority_wants_more_than_half_and_says_how_many_there_were() {
    let policies = policies(&genesis("fixture1"));
    let admins = policies.get("/Channel/Admins").unwrap();
    let org1 = signed(&org1_admin(), b"update");
    let orderer = signed(
        &local(
            "OrdererOrgMSP",
            "ordererOrganizations/orderer.test/users/Admin@orderer.test",
        ),
        b"update",
    );
    assert_eq!(
        admins
            .evaluate(std::slice::from_ref(&org1))
            .unwrap_err()
            .to_string(),
        "implicit policy evaluation failed - 1 sub-policies were satisfied, but this policy requires 2 of the 'Admins' sub-policies to be satisfied"
    );
    // The same one twice is one.
    assert!(admins.evaluate(&[org1.clone(), org1.clone()]).is_err());
    admins.evaluate(&[org1.clone(), orderer.clone()]).unwrap();
    // A broken one does not hurt.
    let broken = SignedData {
        signature: Bytes::from_static(b"broken"),
        ..signed(&org1_user(), b"update")
    };
    admins.evaluate(&[broken, org1.clone(), orderer]).unwrap();
    let own = policies.get("/Channel/Application/Org1/Admins").unwrap();
    own.evaluate(&[org1]).unwrap();
    assert_eq!(
        own.evaluate(&[signed(&org1_user(), b"update")])
            .unwrap_err(),
        PolicyError::Unsatisfied
    );
}

#[test]
fn the_cache_is_bounded_and_keeps_who_is_active() {
    let membership = membership(&genesis("fixture1"));
    let user = org1_user();
    let active = membership.identity(&user.creator()).unwrap();
    let pem = user.identity().certificate().to_pem();
    for number in 0..MAX_CACHED_IDENTITIES + 50 {
        membership
            .identity(&serialized(
                "Org1MSP",
                format!("{number}\n{pem}").as_bytes(),
            ))
            .unwrap();
        assert!(
            Arc::ptr_eq(&active, &membership.identity(&user.creator()).unwrap()),
            "{number}"
        );
    }
    let first = serialized("Org1MSP", format!("0\n{pem}").as_bytes());
    let again = membership.identity(&first).unwrap();
    assert!(Arc::ptr_eq(&again, &membership.identity(&first).unwrap()));
    // Who has no chain is not remembered.
    let (msp_id, certificate, _) = special("org1-ca");
    let authority = serialized(&msp_id, &certificate);
    assert!(!Arc::ptr_eq(
        &membership.identity(&authority).unwrap(),
        &membership.identity(&authority).unwrap()
    ));
}

#[test]
fn many_threads_judge_at_once() {
    let policies = policies(&genesis("fixture1"));
    let writers = policies.get("/Channel/Writers").unwrap();
    let signers: Vec<Box<dyn Signer>> = vec![
        Box::new(org1_user()),
        Box::new(org1_admin()),
        Box::new(orderer0()),
        Box::new(special_signer("org1-p384")),
    ];
    let good: Vec<_> = signers
        .iter()
        .map(|signer| signed(&**signer, b"tx"))
        .collect();
    std::thread::scope(|scope| {
        for turn in 0..4 {
            let (writers, good) = (&writers, &good);
            scope.spawn(move || {
                for number in 0..100 {
                    let one = &good[(turn + number) % good.len()];
                    writers.evaluate(std::slice::from_ref(one)).unwrap();
                    let other = SignedData {
                        data: Bytes::from_static(b"xt"),
                        ..one.clone()
                    };
                    writers.evaluate(&[other]).unwrap_err();
                }
            });
        }
    });
}

#[test]
fn an_organisation_with_anonymous_credentials_is_there_and_silent() {
    #[derive(Clone, PartialEq, prost::Message)]
    struct Idemix {
        #[prost(string, tag = "1")]
        name: String,
        #[prost(bytes, tag = "2")]
        ipk: Vec<u8>,
        #[prost(int64, tag = "5")]
        epoch: i64,
    }
    let config = MspConfig {
        r#type: 1,
        config: Idemix {
            name: "IdemixMSP".to_owned(),
            ipk: vec![1],
            epoch: 3,
        }
        .encode_to_vec(),
    };
    let membership = Membership::new([Arc::new(Msp::from_config(&config).unwrap())]);
    let error = membership
        .identity(&serialized("IdemixMSP", b"x"))
        .unwrap_err();
    assert!(error.to_string().contains("idemix"));
    let config = MspConfig {
        r#type: 7,
        ..config
    };
    assert_eq!(
        Msp::from_config(&config).unwrap_err().to_string(),
        "Setup error: unsupported msp type 7"
    );
}

#[test]
fn a_certificate_tells_its_facts() {
    let certificate = org1_user().identity().certificate().clone();
    assert_eq!(
        certificate.subject(),
        "CN=User1@org1.test,OU=client,L=San Francisco,ST=California,C=US"
    );
    assert_eq!(certificate.units(), ["client"]);
    assert!(!certificate.is_ca() && certificate.key_usage().digital_signature());
    let tls = Certificate::from_pem(&read(
        "crypto/ordererOrganizations/orderer.test/orderers/orderer0.orderer.test/tls/server.crt",
    ))
    .unwrap();
    assert!(tls.dns_names().any(|name| name == "localhost"));
    assert!(tls.ip_addresses().any(|bytes| bytes == [127, 0, 0, 1]));
    let root = Certificate::from_pem(&read(
        "crypto/ordererOrganizations/orderer.test/tlsca/tlsca.orderer.test-cert.pem",
    ))
    .unwrap();
    assert!(root.is_ca() && root.key_usage().certificate_sign());
    assert_eq!(tls.authority_key_id(), root.subject_key_id());
    tls.verify_signed_by(&root).unwrap();
    root.verify_signed_by(&tls).unwrap_err();
}
