//! Bytes from anywhere: nothing panics, and what is not what it was is not taken for it.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use proptest::prelude::*;
use prost::Message as _;
use quorate_fabric::msp::{Membership, Msp, Signer};
use quorate_fabric::policy::{Policies, SignedData};
use quorate_fabric::proto::common::msp_principal::Classification;
use quorate_fabric::proto::common::signature_policy::{NOutOf, Type};
use quorate_fabric::proto::common::{
    ConfigGroup, ConfigPolicy, MspPrincipal, Policy, SignaturePolicy, SignaturePolicyEnvelope,
};
use quorate_fabric::proto::msp::{FabricMspConfig, MspConfig};
use quorate_identity::x509::{Certificate, PublicKey, RevocationList, SigningKey, pem};
use support::*;

static GROUP: LazyLock<ConfigGroup> = LazyLock::new(|| genesis("fixturecrl"));
static MEMBERSHIP: LazyLock<Arc<Membership>> = LazyLock::new(|| membership(&GROUP));
static USER: LazyLock<quorate_fabric::msp::LocalMsp> = LazyLock::new(org1_user);

/// A change of a few bytes: places are taken modulo the length.
fn damage() -> impl Strategy<Value = Vec<(usize, u8)>> {
    prop::collection::vec((any::<usize>(), any::<u8>()), 1..4)
}

fn damaged(bytes: &[u8], damage: &[(usize, u8)]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for (at, byte) in damage {
        let at = at % bytes.len();
        bytes[at] = *byte;
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn random_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(Certificate::from_der(&bytes).is_err());
        prop_assert!(Certificate::from_pem(&bytes).is_err());
        prop_assert!(RevocationList::read(&bytes).is_err());
        prop_assert!(SigningKey::from_pem(&bytes).is_err());
        prop_assert!(SigningKey::from_der(&bytes).is_err());
        prop_assert!(PublicKey::from_spki_der(&bytes).is_err());
        prop_assert!(MEMBERSHIP.identity(&bytes).is_err());
        prop_assert!(MEMBERSHIP.identity(&serialized("Org1MSP", &bytes)).is_err());
        let config = MspConfig { r#type: 0, config: bytes.clone() };
        prop_assert!(Msp::from_config(&config).is_err());
        let wrapped = pem::encode("CERTIFICATE", &bytes);
        prop_assert_eq!(pem::first(wrapped.as_bytes()).unwrap().0.bytes, bytes.clone());
        prop_assert!(Certificate::from_pem(wrapped.as_bytes()).is_err());
        let _ = USER.identity().verify(b"message", &bytes);
        for kind in 0..6 {
            let principal = MspPrincipal { principal_classification: kind, principal: bytes.clone() };
            let _ = USER.identity().satisfies(&principal);
        }
    }

    #[test]
    fn random_text_around_dashes_is_read_without_panic(text in "(-----BEGIN |-----END |-----|\n|A|:| |\r){0,40}") {
        let _ = pem::all(text.as_bytes()).count();
        let _ = SigningKey::from_pem(text.as_bytes());
    }

    /// A certificate with changed bytes is unreadable, without a chain, or the very same.
    #[test]
    fn a_damaged_certificate_is_no_other_member(damage in damage()) {
        let whole = USER.identity().certificate().der();
        let other = damaged(whole, &damage);
        prop_assume!(other != whole);
        let pem = pem::encode("CERTIFICATE", &other);
        if let Ok(identity) = MEMBERSHIP.identity(&serialized("Org1MSP", pem.as_bytes())) {
            prop_assert_eq!(identity.certificate().der(), whole);
        }
    }

    #[test]
    fn a_damaged_list_or_key_is_no_reason_to_panic(damage in damage()) {
        let crl = pem::first(&read("crypto/special/org1-crl/crl.pem")).unwrap().0.bytes;
        let authority = Certificate::from_pem(
            &read("crypto/peerOrganizations/org1.test/ca/ca.org1.test-cert.pem")).unwrap();
        RevocationList::read(&crl).unwrap().verify_signed_by(&authority).unwrap();
        let other = damaged(&crl, &damage);
        if other != crl && let Ok(list) = RevocationList::read(&other) {
            // What is outside of the signed part has one form only, except an ECDSA signature's numbers.
            let _ = list.verify_signed_by(&authority);
        }
        let (_, _, key) = special("org1-p384");
        let key = pem::first(&key).unwrap().0.bytes;
        let _ = SigningKey::from_der(&damaged(&key, &damage));
    }

    #[test]
    fn a_damaged_definition_is_no_reason_to_panic(damage in damage()) {
        for (_, definition) in definitions(&GROUP) {
            let config = damaged(&definition.config, &damage);
            let _ = Msp::from_config(&MspConfig { r#type: 0, config });
            // Inside the certificates, behind the base64.
            let mut inner = FabricMspConfig::decode(&definition.config[..]).unwrap();
            for root in &mut inner.root_certs {
                let der = pem::first(root).unwrap().0.bytes;
                *root = pem::encode("CERTIFICATE", &damaged(&der, &damage)).into_bytes();
            }
            let _ = Msp::from_config(&MspConfig { r#type: 0, config: inner.encode_to_vec() });
        }
    }

    /// Only the message that was signed has the signature, whatever is done to it, bytes after it aside.
    #[test]
    fn a_damaged_signature_is_none(damage in damage(), tail in prop::collection::vec(any::<u8>(), 0..4)) {
        let signature = USER.sign(b"message").unwrap();
        let other = damaged(&signature, &damage);
        prop_assume!(other != signature);
        let accepted = USER.identity().verify(b"message", &[other, tail.clone()].concat());
        prop_assert!(accepted.is_err());
        let tailed = [signature, tail].concat();
        prop_assert!(USER.identity().verify(b"message", &tailed).is_ok());
    }

    #[test]
    fn a_policy_of_random_bytes_is_refused_or_evaluated(
        kind in 0..5_i32,
        value in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let policy = ConfigPolicy {
            policy: Some(Policy { r#type: kind, value }),
            ..ConfigPolicy::default()
        };
        let mut group = ConfigGroup::default();
        group.policies.insert("P".to_owned(), policy);
        if let Ok(policies) = Policies::new("Channel", &group, MEMBERSHIP.clone()) {
            let _ = policies.get("P").unwrap().evaluate(&[signed(b"x")]);
        }
    }

    /// Any tree of rules agrees with a plain account of Fabric's way through it.
    #[test]
    fn signature_policies_take_signers_as_fabric_does(rule in rule(), chosen in prop::collection::vec(0..4_usize, 0..4)) {
        let principals: Vec<_> = SIGNERS.iter().map(|signer| MspPrincipal {
            principal_classification: Classification::Identity as i32,
            principal: signer.creator().to_vec(),
        }).collect();
        let envelope = SignaturePolicyEnvelope {
            version: 0,
            rule: Some(rule.clone()),
            identities: principals,
        };
        let mut group = ConfigGroup::default();
        group.policies.insert("P".to_owned(), ConfigPolicy {
            policy: Some(Policy { r#type: 1, value: envelope.encode_to_vec() }),
            ..ConfigPolicy::default()
        });
        let policies = Policies::new("Channel", &group, MEMBERSHIP.clone()).unwrap();
        let signatures: Vec<_> = chosen.iter().map(|at| SIGNED[*at].clone()).collect();
        let mut free = [false; 4];
        for at in &chosen {
            free[*at] = true;
        }
        let expected = plain(&rule, &mut free);
        prop_assert_eq!(policies.get("/Channel/P").unwrap().evaluate(&signatures).is_ok(), expected);
    }
}

type BoxedSigner = Box<dyn Signer>;
static SIGNERS: LazyLock<[BoxedSigner; 4]> = LazyLock::new(|| {
    [
        Box::new(org1_user()),
        Box::new(org1_admin()),
        Box::new(orderer0()),
        Box::new(special_signer("org1-p384")),
    ]
});
static SIGNED: LazyLock<Vec<SignedData>> = LazyLock::new(|| {
    SIGNERS
        .iter()
        .map(|signer| SignedData {
            data: Bytes::from_static(b"message"),
            identity: signer.creator(),
            signature: signer.sign(b"message").unwrap().into(),
        })
        .collect()
});

fn signed(message: &'static [u8]) -> SignedData {
    SignedData {
        data: Bytes::from_static(message),
        identity: USER.creator(),
        signature: USER.sign(message).unwrap().into(),
    }
}

fn rule() -> impl Strategy<Value = SignaturePolicy> {
    let leaf = (0..4_i32).prop_map(|at| SignaturePolicy {
        r#type: Some(Type::SignedBy(at)),
    });
    leaf.prop_recursive(3, 16, 4, |inner| {
        (0..4_i32, prop::collection::vec(inner, 0..4)).prop_map(|(n, rules)| SignaturePolicy {
            r#type: Some(Type::NOutOf(NOutOf { n, rules })),
        })
    })
}

/// Who is there is free until a rule that is met takes him. Every principal here is one signer.
fn plain(rule: &SignaturePolicy, free: &mut [bool; 4]) -> bool {
    match rule.r#type.as_ref().unwrap() {
        Type::SignedBy(at) => std::mem::take(&mut free[usize::try_from(*at).unwrap()]),
        Type::NOutOf(out_of) => {
            let mut met = 0;
            for rule in &out_of.rules {
                let before = *free;
                if plain(rule, free) {
                    met += 1;
                } else {
                    *free = before;
                }
            }
            met >= out_of.n
        }
    }
}
