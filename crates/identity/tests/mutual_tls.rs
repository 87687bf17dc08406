//! Handshakes in memory, with certificates that Fabric's own tool made: who is let in, and what each side says of it.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::io;
use std::sync::Arc;
use std::time::Duration;

use quorate_identity::mutual_tls::{
    CertificateFacts, ClientAuth, ClientTls, Credentials, MutualTlsError, Refusal, Roots,
    ServerTls, failure_text, public_key, shifted,
};
use quorate_identity::{Clock, UnixTime};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use rustls::{ClientConnection, ServerConnection};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use time::OffsetDateTime;

const CRYPTO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/fabric/crypto");

/// 2026-11-20 14:00 UTC: all certificates but the expired ones count.
const NOW: i64 = 1_795_183_200;

fn file(name: &str) -> Vec<u8> {
    std::fs::read(format!("{CRYPTO}/{name}")).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn folder(name: &str) -> Credentials {
    Credentials::from_pem(
        &file(&format!("{name}/server.crt")),
        &file(&format!("{name}/server.key")),
    )
    .unwrap()
}

fn orderer(index: u32) -> Credentials {
    folder(&format!(
        "ordererOrganizations/orderer.test/orderers/orderer{index}.orderer.test/tls"
    ))
}

fn ca() -> Vec<u8> {
    file("ordererOrganizations/orderer.test/msp/tlscacerts/tlsca.orderer.test-cert.pem")
}

fn roots() -> Roots {
    Roots::from_pem([ca().as_slice()]).unwrap()
}

fn at(seconds: i64) -> Clock {
    Arc::new(move || UnixTime(seconds))
}

fn server(credentials: Credentials, client_auth: ClientAuth) -> ServerTls {
    ServerTls {
        credentials,
        roots: roots(),
        client_auth,
        clock: at(NOW),
        alpn: vec![b"h2".to_vec()],
    }
}

fn client(credentials: Option<Credentials>) -> ClientTls {
    ClientTls {
        credentials,
        roots: roots(),
        clock: at(NOW),
        alpn: vec![b"h2".to_vec()],
    }
}

/// How a handshake ended: on either side, what that side would log.
#[derive(Debug, PartialEq, Eq)]
struct Ended {
    client: Result<(), String>,
    server: Result<(), String>,
}

impl Ended {
    fn well(&self) -> bool {
        self.client.is_ok() && self.server.is_ok()
    }

    fn server_says(&self) -> &str {
        self.server.as_ref().unwrap_err()
    }

    fn client_says(&self) -> &str {
        self.client.as_ref().unwrap_err()
    }
}

type End = Result<(), rustls::Error>;

/// Carries bytes both ways until nobody has anything to say; the first error of either side is its end.
fn exchange(left: &mut ClientConnection, right: &mut ServerConnection) -> (End, End) {
    let (mut left_end, mut right_end) = (Ok(()), Ok(()));
    for _ in 0..8 {
        let mut bytes = Vec::new();
        while left.wants_write() {
            left.write_tls(&mut bytes).unwrap();
        }
        let mut unread = bytes.as_slice();
        while !unread.is_empty() {
            right.read_tls(&mut unread).unwrap();
            right_end = right_end.and(right.process_new_packets().map(drop));
        }
        bytes.clear();
        while right.wants_write() {
            right.write_tls(&mut bytes).unwrap();
        }
        let mut unread = bytes.as_slice();
        while !unread.is_empty() {
            left.read_tls(&mut unread).unwrap();
            left_end = left_end.and(left.process_new_packets().map(drop));
        }
    }
    (left_end, right_end)
}

fn handshake(client: &ClientTls, server: &ServerTls, name: &str, pinned: Option<&[u8]>) -> Ended {
    let pinned: Vec<Vec<u8>> = pinned.map(<[u8]>::to_vec).into_iter().collect();
    let (config, refused_by_client) = client.begin(&pinned);
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut left = ClientConnection::new(config, name).unwrap();
    let (config, refused_by_server) = server.begin();
    let mut right = ServerConnection::new(config).unwrap();
    let text = |error: rustls::Error, refusal: &Refusal| {
        failure_text(&io::Error::new(io::ErrorKind::InvalidData, error), refusal)
    };
    let (left_end, right_end) = exchange(&mut left, &mut right);
    let ended = Ended {
        client: left_end.map_err(|error| text(error, &refused_by_client)),
        server: right_end.map_err(|error| text(error, &refused_by_server)),
    };
    if ended.well() {
        assert!(!left.is_handshaking() && !right.is_handshaking());
        assert_eq!(left.alpn_protocol(), Some(b"h2".as_slice()));
        let shown = right.peer_certificates().map(|shown| shown[0].to_vec());
        let expected = client
            .credentials
            .as_ref()
            .map(|own| own.certificate().to_vec());
        if server.client_auth == ClientAuth::None {
            assert_eq!(shown, None);
        } else {
            assert_eq!(shown, expected);
        }
    }
    ended
}

#[test]
fn orderers_of_one_network_meet() {
    for auth in [
        ClientAuth::None,
        ClientAuth::Requested,
        ClientAuth::Optional,
        ClientAuth::Required,
    ] {
        for name in ["127.0.0.1", "localhost", "orderer1.orderer.test"] {
            let ended = handshake(
                &client(Some(orderer(0))),
                &server(orderer(1), auth),
                name,
                None,
            );
            assert!(ended.well(), "{auth:?} {name} {ended:?}");
        }
    }
}

#[test]
fn who_shows_no_certificate_is_let_in_where_none_is_required() {
    for (auth, well) in [
        (ClientAuth::None, true),
        (ClientAuth::Requested, true),
        (ClientAuth::Optional, true),
        (ClientAuth::Required, false),
    ] {
        let ended = handshake(&client(None), &server(orderer(1), auth), "localhost", None);
        assert_eq!(ended.well(), well, "{auth:?} {ended:?}");
        if !well {
            assert_eq!(
                ended.server_says(),
                "tls: client didn't provide a certificate"
            );
        }
    }
}

#[test]
fn an_expired_server_hears_bad_certificate_until_the_clocks_are_set_back() {
    let mut left = client(Some(orderer(0)));
    let mut right = server(folder("special/orderer4-tls-expired"), ClientAuth::Required);
    let ended = handshake(&left, &right, "127.0.0.1", None);
    assert_eq!(ended.server_says(), "remote error: tls: bad certificate");
    assert_eq!(
        ended.client_says(),
        "tls: failed to verify certificate: x509: certificate has expired or is not yet valid: \
         current time 2026-11-20T14:00:00Z is after 2026-11-20T13:09:00Z"
    );
    let shift = Duration::from_secs(51 * 60 + 30);
    left.clock = shifted(left.clock, shift);
    right.clock = shifted(right.clock, shift);
    let ended = handshake(&left, &right, "127.0.0.1", None);
    assert!(ended.well(), "{ended:?}");
    left.clock = shifted(left.clock, Duration::from_secs(60));
    let ended = handshake(&left, &right, "127.0.0.1", None);
    assert!(
        ended
            .client_says()
            .ends_with("is before 2026-11-20T13:08:00Z"),
        "{ended:?}"
    );
}

#[test]
fn bad_clients_hear_bad_certificate() {
    for (shown, reason) in [
        (
            "special/orderer4-tls-expired",
            "is after 2026-11-20T13:09:00Z",
        ),
        (
            "special/orderer4-tls-stranger",
            "x509: certificate signed by unknown authority",
        ),
    ] {
        let stranger = client(Some(folder(shown)));
        for auth in [ClientAuth::Optional, ClientAuth::Required] {
            let ended = handshake(&stranger, &server(orderer(1), auth), "localhost", None);
            assert!(ended.server_says().ends_with(reason), "{ended:?}");
            assert_eq!(ended.client_says(), "remote error: tls: bad certificate");
        }
        // Where certificates are not judged, owning the key is enough.
        let lenient = server(orderer(1), ClientAuth::Requested);
        assert!(handshake(&stranger, &lenient, "localhost", None).well());
    }
}

#[test]
fn a_server_must_have_the_name_and_the_pinned_key() {
    let (left, right) = (
        client(Some(orderer(0))),
        server(orderer(1), ClientAuth::Required),
    );
    for (name, reason) in [
        (
            "orderer2.orderer.test",
            "x509: certificate is valid for orderer1.orderer.test, orderer1, localhost, not orderer2.orderer.test",
        ),
        (
            "127.0.0.2",
            "x509: certificate is valid for 127.0.0.1, not 127.0.0.2",
        ),
    ] {
        let ended = handshake(&left, &right, name, None);
        assert!(ended.client_says().ends_with(reason), "{ended:?}");
        assert_eq!(ended.server_says(), "remote error: tls: bad certificate");
    }
    let key = |credentials: Credentials| public_key(credentials.certificate()).unwrap();
    let renewed = key(folder("special/orderer1-tls-renewed-same-key"));
    assert!(handshake(&left, &right, "localhost", Some(&renewed)).well());
    let ended = handshake(&left, &right, "localhost", Some(&key(orderer(2))));
    assert!(ended.client_says().contains("doesn't match"), "{ended:?}");
}

#[test]
fn replaced_roots_count_at_once() {
    let (left, right) = (
        client(Some(orderer(0))),
        server(orderer(1), ClientAuth::Required),
    );
    let foreign = file("peerOrganizations/org1.test/msp/tlscacerts/tlsca.org1.test-cert.pem");
    right.roots.replace([foreign.as_slice()]).unwrap();
    assert!(!handshake(&left, &right, "localhost", None).well());
    assert!(right.roots.replace([b"no certificate".as_slice()]).is_err());
    let both = [foreign.as_slice(), &ca()].concat();
    right.roots.replace([both.as_slice()]).unwrap();
    assert!(handshake(&left, &right, "localhost", None).well());
}

/// What the tests below vary of a path root, intermediate, leaf.
#[derive(Default)]
struct Variation {
    intermediate_is_no_ca: bool,
    intermediate_may_not_sign: bool,
    intermediate_path_length: Option<u8>,
    intermediate_usage: Vec<ExtendedKeyUsagePurpose>,
    leaf_usage: Vec<ExtendedKeyUsagePurpose>,
    two_intermediates: bool,
}

/// A root, the intermediate below it, and the credentials of a path that leads to them.
fn path(variation: &Variation) -> (String, String, Credentials) {
    let params = |name: &str| {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        params.not_before = OffsetDateTime::from_unix_timestamp(NOW - 60).unwrap();
        params.not_after = OffsetDateTime::from_unix_timestamp(NOW + 60).unwrap();
        params
    };
    let ca = |name: &str| {
        let mut params = params(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params
    };
    let root = CertifiedIssuer::self_signed(ca("root"), KeyPair::generate().unwrap()).unwrap();
    let mut middle = ca("intermediate");
    if variation.intermediate_is_no_ca {
        middle.is_ca = IsCa::ExplicitNoCa;
    }
    if let Some(length) = variation.intermediate_path_length {
        middle.is_ca = IsCa::Ca(BasicConstraints::Constrained(length));
    }
    if variation.intermediate_may_not_sign {
        middle.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    }
    middle
        .extended_key_usages
        .clone_from(&variation.intermediate_usage);
    let middle = CertifiedIssuer::signed_by(middle, KeyPair::generate().unwrap(), &root).unwrap();
    let below =
        CertifiedIssuer::signed_by(ca("second"), KeyPair::generate().unwrap(), &middle).unwrap();
    let issuer = if variation.two_intermediates {
        &below
    } else {
        &middle
    };
    let mut leaf = params("leaf");
    leaf.extended_key_usages.clone_from(&variation.leaf_usage);
    let key = KeyPair::generate().unwrap();
    let leaf = leaf.signed_by(&key, issuer).unwrap();
    let mut chain = leaf.pem();
    if variation.two_intermediates {
        chain.push_str(&below.pem());
    }
    chain.push_str(&middle.pem());
    let credentials =
        Credentials::from_pem(chain.as_bytes(), key.serialize_pem().as_bytes()).unwrap();
    (root.pem(), middle.pem(), credentials)
}

#[test]
fn paths_over_intermediates_follow_the_rules() {
    use ExtendedKeyUsagePurpose::{Any, ClientAuth as ForClients, ServerAuth as ForServers};
    const USAGE: &str = "x509: certificate specifies an incompatible key usage";
    const NOT_A_CA: &str = "parent certificate cannot sign this kind of certificate";
    let plain = Variation::default;
    let cases = [
        (plain(), None),
        (
            Variation {
                two_intermediates: true,
                ..plain()
            },
            None,
        ),
        (
            Variation {
                leaf_usage: vec![ForClients],
                ..plain()
            },
            None,
        ),
        (
            Variation {
                leaf_usage: vec![Any],
                ..plain()
            },
            None,
        ),
        (
            Variation {
                leaf_usage: vec![ForServers],
                ..plain()
            },
            Some(USAGE),
        ),
        (
            Variation {
                intermediate_usage: vec![ForServers],
                ..plain()
            },
            Some(USAGE),
        ),
        (
            Variation {
                intermediate_is_no_ca: true,
                ..plain()
            },
            Some(NOT_A_CA),
        ),
        (
            Variation {
                intermediate_may_not_sign: true,
                ..plain()
            },
            Some(NOT_A_CA),
        ),
        (
            Variation {
                intermediate_path_length: Some(0),
                ..plain()
            },
            None,
        ),
        (
            Variation {
                intermediate_path_length: Some(0),
                two_intermediates: true,
                ..plain()
            },
            Some("x509: too many intermediates for path length constraint"),
        ),
    ];
    for (index, (variation, refusal)) in cases.iter().enumerate() {
        let (root, _, credentials) = path(variation);
        let mut right = server(orderer(1), ClientAuth::Required);
        right.roots = Roots::from_pem([root.as_bytes()]).unwrap();
        let ended = handshake(&client(Some(credentials)), &right, "localhost", None);
        match refusal {
            None => assert!(ended.well(), "{index}: {ended:?}"),
            Some(reason) => assert!(ended.server_says().contains(reason), "{index}: {ended:?}"),
        }
    }
}

#[test]
fn every_certificate_of_the_pool_is_an_anchor() {
    let (_, intermediate, credentials) = path(&Variation::default());
    let leaf = pem(credentials.certificate());
    let left = client(Some(credentials));
    let mut right = server(orderer(1), ClientAuth::Required);
    assert!(!handshake(&left, &right, "localhost", None).well());
    for anchor in [intermediate, leaf] {
        right.roots = Roots::from_pem([anchor.as_bytes()]).unwrap();
        assert!(handshake(&left, &right, "localhost", None).well());
    }
}

fn pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
}

/// Fabric's own servers and older clients speak nothing newer.
#[test]
fn tls_1_2_is_spoken_on_both_sides() {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let old = [&rustls::version::TLS12];
    let pair = |index: u32| {
        let folder =
            format!("ordererOrganizations/orderer.test/orderers/orderer{index}.orderer.test/tls");
        let chain =
            vec![CertificateDer::from_pem_slice(&file(&format!("{folder}/server.crt"))).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(&file(&format!("{folder}/server.key"))).unwrap();
        (chain, key)
    };
    let mut trusted = rustls::RootCertStore::empty();
    trusted
        .add(CertificateDer::from_pem_slice(&ca()).unwrap())
        .unwrap();
    let (chain, key) = pair(0);
    let client_of_old = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&old)
        .unwrap()
        .with_root_certificates(trusted)
        .with_client_auth_cert(chain, key)
        .unwrap();
    let name = || ServerName::try_from("localhost").unwrap();
    let (config, _) = server(orderer(1), ClientAuth::Required).begin();
    let mut left = ClientConnection::new(Arc::new(client_of_old), name()).unwrap();
    let mut right = ServerConnection::new(config).unwrap();
    assert_eq!(exchange(&mut left, &mut right), (Ok(()), Ok(())));
    assert_eq!(
        right.protocol_version(),
        Some(rustls::ProtocolVersion::TLSv1_2)
    );
    assert!(right.peer_certificates().is_some());

    let (chain, key) = pair(1);
    let server_of_old = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&old)
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let server_of_old = Arc::new(server_of_old);
    let mut ours = client(Some(orderer(0)));
    for (now, refused) in [(NOW, false), (NOW + 20 * 365 * 24 * 3600, true)] {
        ours.clock = at(now);
        let (config, refusal) = ours.begin(&[]);
        let mut left = ClientConnection::new(config, name()).unwrap();
        let mut right = ServerConnection::new(server_of_old.clone()).unwrap();
        let (client_end, server_end) = exchange(&mut left, &mut right);
        assert_eq!(client_end.is_err(), refused);
        assert_eq!(refusal.reason().is_some(), refused);
        let told = server_end.err();
        let expected = rustls::Error::AlertReceived(rustls::AlertDescription::BadCertificate);
        assert_eq!(told, refused.then_some(expected));
    }
}

#[test]
fn files_that_do_not_belong_together_are_refused() {
    let tls = "ordererOrganizations/orderer.test/orderers/orderer0.orderer.test/tls";
    let (certificate, key) = (
        file(&format!("{tls}/server.crt")),
        file(&format!("{tls}/server.key")),
    );
    let other =
        file("ordererOrganizations/orderer.test/orderers/orderer1.orderer.test/tls/server.key");
    assert!(matches!(
        Credentials::from_pem(&certificate, &other),
        Err(MutualTlsError::ForeignKey)
    ));
    assert!(Credentials::from_pem(&key, &certificate).is_err());
    assert!(Credentials::from_pem(b"", b"").is_err());
    assert!(format!("{:?}", Credentials::from_pem(&certificate, &key)).len() < 40);
}

#[test]
fn facts_are_read_from_pem_and_der() {
    let pem = file("special/orderer1-tls-renewed-same-key/server.crt");
    let der = folder("special/orderer1-tls-renewed-same-key");
    let facts = CertificateFacts::read(&pem).unwrap();
    assert_eq!(facts, CertificateFacts::read(der.certificate()).unwrap());
    assert_eq!(facts.common_name, "orderer1.orderer.test");
    assert_eq!(
        facts.public_key,
        public_key(orderer(1).certificate()).unwrap()
    );
    assert!(CertificateFacts::read(b"neither").is_err());
}
