//! Handshakes in memory: both ends of a connection over buffers, no sockets.

#![allow(
    clippy::panic,
    reason = "helpers of tests, outside of the test functions that clippy recognises"
)]

use std::sync::Arc;

use quorate_identity::rpc_tls::{RpcIdentity, rpc_client_config, rpc_server_config};
use quorate_identity::tls::peer_refusal;
use quorate_identity::{
    CertificateAuthority, Clock, NodeKeys, PathError, PeerError, SignatureScheme, UnixTime,
    X500Name, peer_name, server_name, tls_client_config, tls_server_config,
};
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};
use rustls_pki_types::ServerName;

const NOW: UnixTime = UnixTime(1_800_000_000);

fn clock(now: UnixTime) -> Clock {
    Arc::new(move || now)
}

fn name(text: &str) -> X500Name {
    text.parse().expect("a legal name")
}

fn party_a() -> X500Name {
    name("O=PartyA, L=London, C=GB")
}

fn party_b() -> X500Name {
    name("O=PartyB, L=Osaka, C=JP")
}

fn keys(authority: &CertificateAuthority, name: &X500Name) -> NodeKeys {
    NodeKeys::generate(authority, name, SignatureScheme::Ed25519, NOW).expect("keys")
}

/// Both ends after a handshake, or the error of the end that refused first.
#[derive(Debug)]
enum Outcome {
    Connected(Box<(ClientConnection, ServerConnection)>),
    ClientRefused(rustls::Error),
    ServerRefused(rustls::Error),
}

impl Outcome {
    fn client_refusal(&self) -> &PeerError {
        match self {
            Self::ClientRefused(error) => peer_refusal(error).expect("a refusal of ours"),
            other => panic!("the client should have refused: {other:?}"),
        }
    }

    fn server_refusal(&self) -> &PeerError {
        match self {
            Self::ServerRefused(error) => peer_refusal(error).expect("a refusal of ours"),
            other => panic!("the server should have refused: {other:?}"),
        }
    }
}

fn handshake(
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    host: ServerName<'static>,
) -> Outcome {
    let mut client = ClientConnection::new(client, host).expect("a client");
    let mut server = ServerConnection::new(server).expect("a server");
    // A handshake takes a few flights; what is not done after ten never will be.
    for _ in 0..10 {
        let mut flight = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut flight).expect("a buffer");
        }
        let mut rest = &flight[..];
        while !rest.is_empty() {
            server.read_tls(&mut rest).expect("a buffer");
            if let Err(error) = server.process_new_packets() {
                return Outcome::ServerRefused(error);
            }
        }
        let mut flight = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut flight).expect("a buffer");
        }
        let mut rest = &flight[..];
        while !rest.is_empty() {
            client.read_tls(&mut rest).expect("a buffer");
            if let Err(error) = client.process_new_packets() {
                return Outcome::ClientRefused(error);
            }
        }
        if !client.is_handshaking() && !server.is_handshaking() && !client.wants_write() {
            return Outcome::Connected(Box::new((client, server)));
        }
    }
    panic!("the handshake does not end");
}

/// PartyA connects to PartyB.
fn connect(client: &NodeKeys, server: &NodeKeys, now: UnixTime) -> Outcome {
    handshake(
        tls_client_config(client, &[party_b()], clock(now)),
        tls_server_config(server, clock(now)),
        server_name(&party_b()),
    )
}

#[test]
fn both_ends_know_the_others_name() {
    // Authorities of both schemes: the path may be Ed25519 where TLS itself is P-256.
    let authorities = [
        CertificateAuthority::development(),
        CertificateAuthority::generate(
            &name("O=Network, L=London, C=GB"),
            SignatureScheme::EcdsaP256,
            NOW,
        )
        .expect("an authority"),
    ];
    for authority in authorities {
        let (a, b) = (keys(&authority, &party_a()), keys(&authority, &party_b()));
        for _ in 0..2 {
            let Outcome::Connected(ends) = connect(&a, &b, NOW) else {
                panic!("refused");
            };
            let (client, server) = *ends;
            assert_eq!(
                client.protocol_version(),
                Some(rustls::ProtocolVersion::TLSv1_3)
            );
            let seen = |certificates: Option<&[_]>| peer_name(certificates.expect("certificates"));
            assert_eq!(seen(client.peer_certificates()).expect("a name"), party_b());
            assert_eq!(seen(server.peer_certificates()).expect("a name"), party_a());
            // Never resumed: a resumed session would skip the path rules.
            assert_eq!(server.handshake_kind(), Some(rustls::HandshakeKind::Full));
        }
    }
}

#[test]
fn tls_1_2_works_too() {
    let authority = CertificateAuthority::development();
    let (a, b) = (keys(&authority, &party_a()), keys(&authority, &party_b()));
    let server = tls_server_config(&b, clock(NOW));
    let mut old = rustls::ClientConfig::builder_with_details(
        Arc::new(rustls::crypto::aws_lc_rs::default_provider()),
        Arc::new(rustls::time_provider::DefaultTimeProvider),
    )
    .with_protocol_versions(&[&rustls::version::TLS12])
    .expect("TLS 1.2")
    .with_root_certificates(rustls::RootCertStore::empty())
    .with_no_client_auth();
    // Our verifier and certificate in an old client.
    let ours = tls_client_config(&a, &[party_b()], clock(NOW));
    old.client_auth_cert_resolver = ours.client_auth_cert_resolver.clone();
    old.dangerous().set_certificate_verifier(Arc::new(Trusting));
    let outcome = handshake(Arc::new(old), server, server_name(&party_b()));
    let Outcome::Connected(ends) = outcome else {
        panic!("refused: {outcome:?}");
    };
    assert_eq!(
        ends.1.protocol_version(),
        Some(rustls::ProtocolVersion::TLSv1_2)
    );
    assert_eq!(
        peer_name(ends.1.peer_certificates().expect("certificates")).expect("a name"),
        party_a()
    );
}

#[test]
fn somebody_else_at_the_address_is_refused_by_name() {
    let authority = CertificateAuthority::development();
    let (a, b) = (keys(&authority, &party_a()), keys(&authority, &party_b()));
    let wanted = name("O=PartyC, L=Paris, C=FR");
    // PartyB answers although asked for itself, where PartyC was expected.
    let outcome = handshake(
        tls_client_config(&a, std::slice::from_ref(&wanted), clock(NOW)),
        tls_server_config(&b, clock(NOW)),
        server_name(&party_b()),
    );
    match outcome.client_refusal() {
        PeerError::UnexpectedName { found, expected } => {
            assert_eq!(found, &party_b());
            assert_eq!(expected.len(), 1);
            assert_eq!(expected[0], wanted);
        }
        other => panic!("{other}"),
    }
    // Asked for a name that it does not serve, PartyB shows no certificate at all.
    let outcome = handshake(
        tls_client_config(&a, std::slice::from_ref(&wanted), clock(NOW)),
        tls_server_config(&b, clock(NOW)),
        server_name(&wanted),
    );
    assert!(matches!(outcome, Outcome::ServerRefused(_)), "{outcome:?}");
}

#[test]
fn a_notary_is_reached_under_its_service_name() {
    let authority = CertificateAuthority::development();
    let service = name("O=Notary Service, L=Zurich, C=CH");
    let identity = authority
        .service_identity(&service, SignatureScheme::Ed25519, NOW)
        .expect("a service");
    let a = keys(&authority, &party_a());
    let b = keys(&authority, &party_b()).with_notary_service(identity);
    let expected = [party_b(), service.clone()];
    for asked in &expected {
        let outcome = handshake(
            tls_client_config(&a, &expected, clock(NOW)),
            tls_server_config(&b, clock(NOW)),
            server_name(asked),
        );
        assert!(matches!(outcome, Outcome::Connected(_)), "{outcome:?}");
    }
    // A client that asks for nobody gets the certificate, and decides.
    let outcome = handshake(
        tls_client_config(&a, &expected, clock(NOW)),
        tls_server_config(&b, clock(NOW)),
        ServerName::try_from("127.0.0.1").expect("an address"),
    );
    assert!(matches!(outcome, Outcome::Connected(_)), "{outcome:?}");
}

#[test]
fn members_of_another_network_are_refused_by_both_ends() {
    let ours = CertificateAuthority::development();
    let theirs = CertificateAuthority::generate(
        &name("O=Other Network, L=London, C=GB"),
        SignatureScheme::Ed25519,
        NOW,
    )
    .expect("an authority");
    let (a, b) = (keys(&ours, &party_a()), keys(&theirs, &party_b()));
    let outcome = connect(&a, &b, NOW);
    assert!(matches!(
        outcome.client_refusal(),
        PeerError::Path(PathError::ForeignRoot { .. })
    ));
    // A client that does not look leaves the refusal to the server.
    let careless = careless_client(Some(&a));
    let outcome = handshake(
        careless,
        tls_server_config(&b, clock(NOW)),
        server_name(&party_b()),
    );
    assert!(matches!(
        outcome.server_refusal(),
        PeerError::Path(PathError::ForeignRoot { .. })
    ));
}

#[test]
fn certificates_count_in_their_time_only() {
    let authority = CertificateAuthority::development();
    let (a, b) = (keys(&authority, &party_a()), keys(&authority, &party_b()));
    let outcome = connect(&a, &b, NOW.plus_days(4_000));
    assert!(matches!(
        outcome.client_refusal(),
        PeerError::Path(PathError::Expired { .. })
    ));
    let outcome = connect(&a, &b, NOW.plus_days(-3));
    assert!(matches!(
        outcome.client_refusal(),
        PeerError::Path(PathError::NotYetValid { .. })
    ));
    // Seen from the server, whose clock is another.
    let outcome = handshake(
        tls_client_config(&a, &[party_b()], clock(NOW)),
        tls_server_config(&b, clock(NOW.plus_days(4_000))),
        server_name(&party_b()),
    );
    assert!(matches!(
        outcome.server_refusal(),
        PeerError::Path(PathError::Expired { .. })
    ));
}

#[test]
fn a_client_without_a_tls_certificate_is_refused() {
    let authority = CertificateAuthority::development();
    let (a, b) = (keys(&authority, &party_a()), keys(&authority, &party_b()));
    let outcome = handshake(
        careless_client(None),
        tls_server_config(&b, clock(NOW)),
        server_name(&party_b()),
    );
    assert!(
        matches!(
            outcome,
            Outcome::ServerRefused(rustls::Error::NoCertificatesPresented)
        ),
        "{outcome:?}"
    );
    assert!(matches!(peer_name(&[]), Err(PeerError::NoCertificate)));
    // The certificate that signs on the ledger does not open connections.
    let legal = a.legal_identity().path().leaf().der().clone();
    assert!(matches!(peer_name(&[legal]), Err(PeerError::NotTls { .. })));
}

#[test]
fn nonsense_bytes_end_the_handshake_with_an_error() {
    let b = keys(&CertificateAuthority::development(), &party_b());
    let config = tls_server_config(&b, clock(NOW));
    for bytes in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0xff; 100],
        &[0x16, 3, 1, 0, 5, 1, 2, 3, 4, 5],
    ] {
        let mut server = ServerConnection::new(config.clone()).expect("a server");
        server.read_tls(&mut &bytes[..]).expect("a buffer");
        assert!(server.process_new_packets().is_err());
    }
}

#[test]
fn rpc_clients_trust_the_pinned_certificate_in_its_time() {
    let server = RpcIdentity::self_signed(&["rpc.example".to_owned()], NOW).expect("an identity");
    let other = RpcIdentity::self_signed(&["rpc.example".to_owned()], NOW).expect("an identity");
    let connect = |trust: &RpcIdentity, host: &str, now| {
        handshake(
            rpc_client_config(trust.certificates_pem().as_bytes(), &[b"h2"], clock(now))
                .expect("a client"),
            rpc_server_config(&server, &[b"h2"], clock(NOW)).expect("a server"),
            ServerName::try_from(host.to_owned()).expect("a host name"),
        )
    };
    // The pinned certificate is accepted wherever the server is reached.
    for host in ["rpc.example", "10.0.0.1", "elsewhere.example"] {
        let Outcome::Connected(ends) = connect(&server, host, NOW) else {
            panic!("refused at {host}");
        };
        assert_eq!(ends.0.alpn_protocol(), Some(&b"h2"[..]));
    }
    for (trust, now) in [
        (&other, NOW),
        (&server, NOW.plus_days(4_000)),
        (&server, NOW.plus_days(-2)),
    ] {
        assert!(matches!(
            connect(trust, "rpc.example", now),
            Outcome::ClientRefused(_)
        ));
    }
    assert!(rpc_client_config(b"nothing", &[], clock(NOW)).is_err());
    assert!(RpcIdentity::from_pem(b"nothing", b"nothing").is_err());

    // Kept in an encrypted file, it is the same server.
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("rpcsslkeystore.json");
    server.save(&path, "secret").expect("saved");
    assert!(RpcIdentity::load(&path, "wrong").is_err());
    let loaded = RpcIdentity::load(&path, "secret").expect("loaded");
    assert_eq!(loaded.certificates_pem(), server.certificates_pem());
    assert!(rpc_server_config(&loaded, &[], clock(NOW)).is_ok());
}

/// A client that trusts any server, to let the server's own checks be seen.
fn careless_client(keys: Option<&NodeKeys>) -> Arc<ClientConfig> {
    let mut config = ClientConfig::builder_with_details(
        Arc::new(rustls::crypto::aws_lc_rs::default_provider()),
        Arc::new(rustls::time_provider::DefaultTimeProvider),
    )
    .with_safe_default_protocol_versions()
    .expect("versions")
    .dangerous()
    .with_custom_certificate_verifier(Arc::new(Trusting))
    .with_no_client_auth();
    if let Some(keys) = keys {
        config.client_auth_cert_resolver = tls_client_config(keys, &[], clock(NOW))
            .client_auth_cert_resolver
            .clone();
    }
    Arc::new(config)
}

#[derive(Debug)]
struct Trusting;

impl rustls::client::danger::ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &[rustls_pki_types::CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls_pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
