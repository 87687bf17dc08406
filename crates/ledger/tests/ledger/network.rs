//! Node infos and network parameters: believed only with certificates that lead to the trust root.

use quorate_identity::{
    CertificateAuthority, Identity, NodeKeys, SignatureScheme, UnixTime, X500Name,
};
use quorate_ledger::{
    Timestamp,
    limits::MAX_MESSAGE_BYTES,
    network::{
        NetworkError, NetworkHostAndPort, NetworkParameters, NodeInfo, NotaryInfo,
        PartyAndCertificate, SignedNetworkParameters, SignedNodeInfo,
    },
};

use crate::sample::party;

const NOW: UnixTime = UnixTime(1_790_000_000);

fn authority(name: &str) -> CertificateAuthority {
    CertificateAuthority::generate(
        &X500Name::new(name, "London", "GB").unwrap(),
        SignatureScheme::Ed25519,
        NOW,
    )
    .unwrap()
}

fn node(authority: &CertificateAuthority, name: &str) -> NodeKeys {
    NodeKeys::generate(
        authority,
        &X500Name::new(name, "Osaka", "JP").unwrap(),
        SignatureScheme::Ed25519,
        NOW,
    )
    .unwrap()
}

fn info(identities: &[&Identity]) -> NodeInfo {
    NodeInfo {
        addresses: vec![
            "a.example.com:10002".parse().unwrap(),
            "[::1]:10002".parse().unwrap(),
        ],
        identities: identities.iter().map(|&identity| identity.into()).collect(),
        platform_version: 1,
        serial: 7,
    }
}

#[test]
fn a_node_info_is_believed_under_its_root_only() {
    let network = authority("Network");
    let node = node(&network, "PartyA");
    let service = network
        .service_identity(
            &X500Name::new("Notary Service", "Zurich", "CH").unwrap(),
            SignatureScheme::Ed25519,
            NOW,
        )
        .unwrap();
    let info = info(&[node.legal_identity(), &service]);
    let keys = [node.legal_identity().key(), service.key()];
    let signed = SignedNodeInfo::sign(&info, &keys).unwrap();
    let again = SignedNodeInfo::decode(&signed.encode()).unwrap();
    assert_eq!(again.verify(network.root(), NOW).unwrap(), info);
    assert_eq!(info.legal_identity().unwrap().party(), node.party());
    assert_eq!(info.parties().count(), 2);
    let json = serde_json::to_string(&info).unwrap();
    assert_eq!(serde_json::from_str::<NodeInfo>(&json).unwrap(), info);

    let foreign = authority("Other");
    assert!(matches!(
        signed.verify(foreign.root(), NOW),
        Err(NetworkError::Path { .. })
    ));
    let late = NOW.plus_days(100 * 365);
    assert!(matches!(
        signed.verify(network.root(), late),
        Err(NetworkError::Path { .. })
    ));
    // Every identity signs; a service alone is not a node.
    assert!(matches!(
        SignedNodeInfo::sign(&info, &keys[..1]),
        Err(NetworkError::Keys(_))
    ));
    let alone = SignedNodeInfo::sign(&self::info(&[&service]), &[service.key()]).unwrap();
    assert!(matches!(
        alone.verify(network.root(), NOW),
        Err(NetworkError::Path { .. })
    ));
    // A TLS certificate proves nothing on the ledger.
    let tls = SignedNodeInfo::sign(&self::info(&[node.tls()]), &[node.tls().key()]).unwrap();
    assert!(matches!(
        tls.verify(network.root(), NOW),
        Err(NetworkError::Path { .. })
    ));
}

#[test]
fn no_byte_of_a_node_info_can_be_changed() {
    let network = authority("Network");
    let node = node(&network, "PartyA");
    let signed = SignedNodeInfo::sign(
        &info(&[node.legal_identity()]),
        &[node.legal_identity().key()],
    )
    .unwrap();
    let bytes = signed.encode();
    for at in 0..bytes.len() {
        let mut forged = bytes.clone();
        forged[at] ^= 1 << (at % 8);
        let believed = SignedNodeInfo::decode(&forged)
            .is_ok_and(|forged| forged.verify(network.root(), NOW).is_ok());
        assert!(!believed, "byte {at}");
        assert!(SignedNodeInfo::decode(&bytes[..at]).is_err(), "cut at {at}");
    }
}

#[test]
fn impossible_node_infos_are_refused() {
    let network = authority("Network");
    let node = node(&network, "PartyA");
    let identity = node.legal_identity();
    for bad in [
        NodeInfo {
            addresses: vec![],
            ..info(&[identity])
        },
        NodeInfo {
            identities: vec![],
            ..info(&[identity])
        },
        info(&[identity, identity]),
    ] {
        assert!(NodeInfo::decode(&bad.encode()).is_err());
        let keys: Vec<_> = bad.identities.iter().map(|_| identity.key()).collect();
        assert!(matches!(
            SignedNodeInfo::sign(&bad, &keys),
            Err(NetworkError::NodeInfo(_))
        ));
    }
    let same: PartyAndCertificate = identity.into();
    assert_eq!(same.party(), node.party());
}

fn parameters() -> NetworkParameters {
    let notaries = vec![NotaryInfo {
        identity: party("Notary"),
        validating: false,
    }];
    NetworkParameters::first(notaries, Timestamp::from_seconds(NOW.0))
}

#[test]
fn parameters_are_signed_by_the_network() {
    let network = authority("Network");
    let signed = SignedNetworkParameters::sign(&parameters(), network.network_map()).unwrap();
    let again = SignedNetworkParameters::decode(&signed.encode()).unwrap();
    assert_eq!(again.verify(network.root(), NOW).unwrap(), parameters());
    assert_eq!(again.hash(), parameters().hash());
    assert!(parameters().is_notary(&party("Notary")) && !parameters().is_notary(&party("Alice")));
    let json = serde_json::to_string(&parameters()).unwrap();
    assert_eq!(
        serde_json::from_str::<NetworkParameters>(&json).unwrap(),
        parameters()
    );

    let node = node(&network, "PartyA");
    let usurped = SignedNetworkParameters::sign(&parameters(), node.legal_identity()).unwrap();
    assert!(matches!(
        usurped.verify(network.root(), NOW),
        Err(NetworkError::Path { .. })
    ));
    assert!(matches!(
        signed.verify(authority("Other").root(), NOW),
        Err(NetworkError::Path { .. })
    ));
    let newer = NetworkParameters {
        minimum_platform_version: 99,
        ..parameters()
    };
    let newer = SignedNetworkParameters::sign(&newer, network.network_map()).unwrap();
    assert!(matches!(
        newer.verify(network.root(), NOW),
        Err(NetworkError::PlatformVersion { wanted: 99 })
    ));

    // The certificates stand beside what is signed, and X.509 leaves their encoding some freedom that proves nothing.
    // What must hold is that nobody believes anything else than what was signed.
    let bytes = signed.encode();
    for at in 0..bytes.len() {
        let mut forged = bytes.clone();
        forged[at] ^= 1 << (at % 8);
        let Ok(forged) = SignedNetworkParameters::decode(&forged) else {
            continue;
        };
        if let Ok(believed) = forged.verify(network.root(), NOW) {
            assert_eq!(
                (believed, forged.hash()),
                (parameters(), parameters().hash()),
                "byte {at}"
            );
        }
    }
}

#[test]
fn parameters_cannot_promise_the_impossible() {
    let signer = authority("Network");
    for bad in [
        NetworkParameters {
            max_message_size: MAX_MESSAGE_BYTES as u64 + 1,
            ..parameters()
        },
        NetworkParameters {
            max_transaction_size: 0,
            ..parameters()
        },
        NetworkParameters {
            epoch: 0,
            ..parameters()
        },
        NetworkParameters {
            notaries: [parameters().notaries, parameters().notaries].concat(),
            ..parameters()
        },
    ] {
        assert!(matches!(
            SignedNetworkParameters::sign(&bad, signer.network_map()),
            Err(NetworkError::Parameters(_))
        ));
        assert!(NetworkParameters::decode(&bad.encode()).is_err());
    }
}

#[test]
fn addresses() {
    for text in [
        "localhost:10002",
        "10.0.0.1:1",
        "node-1.example.com:65535",
        "[2001:db8::1]:443",
    ] {
        let address: NetworkHostAndPort = text.parse().unwrap();
        assert_eq!(address.to_string(), text);
        assert_eq!(
            borsh::from_slice::<NetworkHostAndPort>(&borsh::to_vec(&address).unwrap()).unwrap(),
            address
        );
    }
    for text in [
        "",
        ":1",
        "a:",
        "a:0",
        "a:65536",
        "a:+1",
        "::1:443",
        "[a]:1",
        "a b:1",
        "a..b:1",
        "-a:1",
        "http://a:1",
        "a",
    ] {
        assert!(text.parse::<NetworkHostAndPort>().is_err(), "{text}");
    }
}
