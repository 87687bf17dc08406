//! The bytes that are stored, sent, hashed and signed, as they have been since version 1. If one of these tests fails,
//! the change breaks ledgers that exist: add a version beside the old one instead.

use quorate_identity::{CertificatePath, Identity, Party, PublicKey, Signature, X500Name};
use quorate_ledger::{
    Component, FilteredTransaction, NotarisationAnswer, NotarisationMessage, NotarisationPayload,
    NotarisationRequest, NotaryError, SignatureMetadata, SignedTransaction, Timestamp,
    TransactionSignature, TxId, WireTransaction,
    network::{NetworkParameters, NodeInfo, NotaryInfo, SignedNetworkParameters, SignedNodeInfo},
    sign_batch, sign_transaction, signable,
};

use crate::sample::{coin, full, issue, key, party, payment, signed};

/// Bytes as lines of hexadecimal digits.
fn dump(bytes: &[u8]) -> String {
    bytes
        .chunks(32)
        .map(hex::encode)
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn transaction_ids() {
    insta::assert_snapshot!(
        [issue(100), payment(), full()]
            .map(|wire| wire.id().to_string())
            .join("\n")
    );
}

#[test]
fn state() {
    insta::assert_snapshot!(dump(&coin(30, "Bob").encode()));
}

#[test]
fn transaction() {
    insta::assert_snapshot!(dump(full().as_bytes()));
}

#[test]
fn signed_transaction() {
    insta::assert_snapshot!(dump(&signed(payment(), &["Alice", "Notary"]).encode()));
}

#[test]
fn signed_bytes() {
    let message = signable(
        payment().id().hash(),
        &SignatureMetadata {
            platform_version: 1,
            scheme: 4,
        },
    );
    assert!(message.starts_with(b"quorate transaction signature 1\n"));
    insta::assert_snapshot!(dump(&message));
}

#[test]
fn batch_signature() {
    let ids: [TxId; 3] = [issue(1).id(), payment().id(), full().id()];
    let signature = &sign_batch(&key("Notary"), &ids)[1];
    insta::assert_snapshot!(dump(&borsh::to_vec(signature).unwrap()));
}

#[test]
fn p256_signatures_of_the_past_still_hold() {
    // ECDSA draws randomness, so this one was made once and kept.
    let public: PublicKey = P256_KEY.parse().unwrap();
    let signature = TransactionSignature {
        signature: Signature::from_bytes(&hex::decode(P256_SIGNATURE).unwrap()).unwrap(),
        metadata: SignatureMetadata::of(public.scheme()),
        by: public,
        proof: None,
    };
    signature.verify(&payment().id()).unwrap();
}

const P256_KEY: &str = "p256:03a9a4653b93eb4c47610877d47ba73bfb414210175a713a84c779e3159cb0d1b9";
const P256_SIGNATURE: &str = "a615d7b2ad6e10885ad100fac754bc56cf56bd68b8ccf8277afa26229ededae0137ab1c28d6351abedc854dcf262468fadf29e84f21d41943a8476d3861ca48f";

#[test]
fn tear_off() {
    let keep =
        |component: &Component| matches!(component, Component::Input(_) | Component::Notary(_));
    insta::assert_snapshot!(dump(
        &FilteredTransaction::build(&full(), keep).unwrap().encode()
    ));
}

#[test]
fn notarisation() {
    let request = NotarisationRequest::of(&full());
    insta::assert_snapshot!("request", dump(&request.encode()));
    insta::assert_snapshot!("request_signature", request.sign(&key("Alice")).signature);
    let message = NotarisationMessage::new(
        NotarisationPayload::filtered(&payment()).unwrap(),
        &key("Alice"),
    );
    insta::assert_snapshot!("message", dump(&message.encode()));
    let full = NotarisationPayload::Full {
        tx: signed(payment(), &["Alice"]),
        dependencies: vec![],
    };
    insta::assert_snapshot!(
        "message_in_full",
        dump(&NotarisationMessage::new(full, &key("Alice")).encode())
    );
    let answer =
        NotarisationAnswer::Signed(vec![sign_transaction(&key("Notary"), &payment().id())]);
    insta::assert_snapshot!("answer", dump(&answer.encode()));
    let refusal = NotarisationAnswer::Refused(NotaryError::Overloaded {
        retry_after_millis: 1500,
    });
    insta::assert_snapshot!("refusal", dump(&refusal.encode()));
}

/// A path of the development authority, kept as a file: what it holds does not matter here, only that it stays.
fn path() -> CertificatePath {
    serde_json::from_str(include_str!("certificate_path.json")).unwrap()
}

fn identity() -> Identity {
    Identity::new(key("PartyA"), path()).unwrap()
}

fn node_info() -> NodeInfo {
    NodeInfo {
        addresses: vec![
            "a.example.com:10002".parse().unwrap(),
            "[::1]:10002".parse().unwrap(),
        ],
        identities: vec![(&identity()).into()],
        platform_version: 1,
        serial: 1_700_000_000_000,
    }
}

#[test]
fn node_info_and_its_signature() {
    insta::assert_snapshot!("node_info", dump(&node_info().encode()));
    let signed = SignedNodeInfo::sign(&node_info(), &[&key("PartyA").into()]).unwrap();
    insta::assert_snapshot!("signed_node_info", dump(&signed.encode()));
}

#[test]
fn network_parameters() {
    let identity: Party = party("Notary");
    let notaries = vec![NotaryInfo {
        identity,
        validating: true,
    }];
    let mut parameters = NetworkParameters::first(notaries, Timestamp::from_seconds(1_700_000_000));
    parameters.max_transaction_size = 1_000_000;
    insta::assert_snapshot!("network_parameters", dump(&parameters.encode()));
    insta::assert_snapshot!("network_parameters_hash", parameters.hash());
    let signed = SignedNetworkParameters::sign(&parameters, &self::identity()).unwrap();
    insta::assert_snapshot!("signed_network_parameters", dump(&signed.encode()));
}

/// The snapshots above compare what is written; here the same bytes are read.
#[test]
fn old_bytes_are_read() {
    fn stored(snapshot: &str) -> Vec<u8> {
        let (_, hex) = snapshot.rsplit_once("---").unwrap();
        hex::decode(hex.split_whitespace().collect::<String>()).unwrap()
    }
    let wire = WireTransaction::decode(&stored(include_str!(
        "snapshots/ledger__golden__transaction.snap"
    )))
    .unwrap();
    assert_eq!(wire, full());
    let bytes = stored(include_str!(
        "snapshots/ledger__golden__signed_transaction.snap"
    ));
    SignedTransaction::decode(&bytes)
        .unwrap()
        .verify_required_signatures()
        .unwrap();
    let name = X500Name::new("PartyA", "Osaka", "JP").unwrap();
    let bytes = stored(include_str!("snapshots/ledger__golden__node_info.snap"));
    assert_eq!(
        NodeInfo::decode(&bytes)
            .unwrap()
            .legal_identity()
            .unwrap()
            .name(),
        &name
    );
}
