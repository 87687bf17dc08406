//! Nonsense is refused: from strangers without a certificate, from parties that pretend to be others, and from members
//! of the network that do not keep to the protocol. Each time a well-behaved peer is served before, during and after.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on says so by panicking"
)]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use fe2o3_amqp::Sender;
use fe2o3_amqp::connection::ConnectionHandle;
use fe2o3_amqp::sasl_profile::SaslProfile;
use fe2o3_amqp::session::SessionHandle;
use fe2o3_amqp::types::messaging::{ApplicationProperties, Data, Message, Outcome};
use fe2o3_amqp::types::primitives::SimpleValue;
use futures::future::join_all;
use quorate_identity::{
    CertificateAuthority, NodeKeys, SignatureScheme as KeyScheme, X500Name, server_name,
    tls_client_config, tls_server_config,
};
use quorate_messaging::{BridgeState, Options};
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use support::{NOW, PATIENCE, Party, keys, localhost, name, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

const SASL_HEADER: &[u8] = b"AMQP\x03\x01\x00\x00";
const AMQP_HEADER: &[u8] = b"AMQP\x00\x01\x00\x00";

/// Sends a message from a well-behaved peer and waits until it has arrived.
async fn still_served(good: &Party, node: &Party) {
    good.send(&node.name, b"still there?".to_vec());
    good.settled(&node.name).await;
}

async fn pair() -> (Party, Party) {
    pair_with(|_| {}).await
}

async fn pair_with(change: impl FnOnce(&mut Options)) -> (Party, Party) {
    let (good, node) = (Party::start("Good"), Party::start_with("Receiver", change));
    good.knows(&node);
    still_served(&good, &node).await;
    (good, node)
}

/// The peer closes, sooner or later, whatever it says before that.
async fn closes(stream: &mut (impl AsyncReadExt + Unpin)) {
    let mut rest = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut rest))
        .await
        .expect("the connection is closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_probes_of_a_load_balancer_are_harmless() {
    let (good, node) = pair().await;
    for _ in 0..10 {
        join_all((0..100).map(|_| async { drop(TcpStream::connect(node.address).await.unwrap()) }))
            .await;
    }
    still_served(&good, &node).await;
    until("all are forgotten", || async {
        let status = node.handle.status();
        status.pending_handshakes == 0 && status.inbound_connections == 1 && status.peers.len() == 1
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_connections_neither_lock_peers_out_nor_stay() {
    let (good, node) = pair_with(|options| {
        options.max_pending_handshakes = 20;
        options.handshake_timeout = Duration::from_secs(2);
    })
    .await;
    let mut silent = Vec::new();
    for _ in 0..100 {
        let mut tcp = TcpStream::connect(node.address).await.unwrap();
        // Half of a handshake, for some.
        if silent.len() % 2 == 0 {
            tcp.write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
                .await
                .unwrap();
        }
        silent.push(tcp);
        assert!(node.handle.status().pending_handshakes <= 20);
    }
    // One peer is there, another has to come in while the port is as full as it can be.
    still_served(&good, &node).await;
    let newcomer = Party::start("Newcomer");
    newcomer.knows(&node);
    still_served(&newcomer, &node).await;
    for tcp in &mut silent {
        closes(tcp).await;
    }
    until("all are forgotten", || async {
        node.handle.status().pending_handshakes == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_text_instead_of_tls_is_hung_up_on() {
    let (good, node) = pair().await;
    let texts: [&[u8]; 4] = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        AMQP_HEADER,
        SASL_HEADER,
        &[0xff; 5000],
    ];
    for text in texts {
        let mut tcp = TcpStream::connect(node.address).await.unwrap();
        tcp.write_all(text).await.unwrap();
        closes(&mut tcp).await;
    }
    still_served(&good, &node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn somebody_else_at_a_peers_address_gets_nothing() {
    let (a, b, c) = (
        Party::start("PartyA"),
        Party::start("PartyB"),
        Party::start("PartyC"),
    );
    // The address book is wrong.
    a.knows_at(&b.name, &[c.address]);
    a.send(&b.name, b"for B only".to_vec());
    a.until_bridge(&b.name, "waiting", |state| state == BridgeState::Waiting)
        .await;
    assert!(
        a.last_error(&b.name).contains("handshake"),
        "{}",
        a.last_error(&b.name)
    );
    // Somebody who serves any name that is asked for, with a certificate of the network that says PartyC.
    let impostor = TcpListener::bind(localhost()).await.unwrap();
    a.knows_at(&b.name, &[impostor.local_addr().unwrap()]);
    let mut config = (*tls_server_config(&c.keys, Arc::new(|| NOW))).clone();
    config.cert_resolver = Arc::new(AnyName(certified(&c.keys)));
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let (tcp, _) = timeout(PATIENCE, impostor.accept()).await.unwrap().unwrap();
    if let Ok(mut tls) = acceptor.accept(tcp).await {
        let mut heard = Vec::new();
        let _ = timeout(PATIENCE, tls.read_to_end(&mut heard)).await;
        assert!(heard.is_empty(), "{heard:?}");
    }
    until("the error names both", || async {
        let error = a.last_error(&b.name);
        error.contains("PartyC") && error.contains("PartyB")
    })
    .await;
    assert_eq!((c.inbox.count(), a.queue.left(&b.name)), (0, 1));
    a.knows(&b);
    a.settled(&b.name).await;
}

/// Shows its certificate to whoever asks for whomever.
#[derive(Debug)]
struct AnyName(Arc<CertifiedKey>);

impl ResolvesServerCert for AnyName {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

fn certified(keys: &NodeKeys) -> Arc<CertifiedKey> {
    let path = keys
        .tls()
        .path()
        .certificates()
        .iter()
        .map(|certificate| certificate.der().clone())
        .collect();
    let pkcs8 = keys.tls().key().pair().unwrap().to_pkcs8();
    let key = any_supported_type(&PrivatePkcs8KeyDer::from(&pkcs8[..]).into()).unwrap();
    Arc::new(CertifiedKey::new(path, key))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_networks_certificate_is_refused_on_both_sides() {
    let (good, node) = pair().await;
    let root = name("Foreign Root");
    let foreign = CertificateAuthority::generate(&root, KeyScheme::EcdsaP256, NOW).unwrap();
    let foreign_keys =
        |of: &X500Name| NodeKeys::generate(&foreign, of, KeyScheme::Ed25519, NOW).unwrap();
    // As a client, under the name of a party that the node knows.
    let config = tls_client_config(
        &foreign_keys(&good.name),
        std::slice::from_ref(&node.name),
        Arc::new(|| NOW),
    );
    let tcp = TcpStream::connect(node.address).await.unwrap();
    assert!(
        TlsConnector::from(config)
            .connect(server_name(&node.name), tcp)
            .await
            .is_err(),
        "it does not trust us"
    );
    // As a server, under the right name.
    let impostor = TcpListener::bind(localhost()).await.unwrap();
    let acceptor = TlsAcceptor::from(tls_server_config(
        &foreign_keys(&node.name),
        Arc::new(|| NOW),
    ));
    let other = Party::start("Other");
    other.knows_at(&node.name, &[impostor.local_addr().unwrap()]);
    other.send(&node.name, b"secret".to_vec());
    let (tcp, _) = timeout(PATIENCE, impostor.accept()).await.unwrap().unwrap();
    assert!(
        timeout(PATIENCE, acceptor.accept(tcp))
            .await
            .unwrap()
            .is_err()
    );
    until("the failure is shown", || async {
        other.last_error(&node.name).contains("TLS handshake")
    })
    .await;
    still_served(&good, &node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_without_certificate_gets_nowhere() {
    let (good, node) = pair().await;
    let mut config = (*tls_client_config(
        &good.keys,
        std::slice::from_ref(&node.name),
        Arc::new(|| NOW),
    ))
    .clone();
    config.client_auth_cert_resolver = Arc::new(NoCertificate);
    let tcp = TcpStream::connect(node.address).await.unwrap();
    if let Ok(mut tls) = TlsConnector::from(Arc::new(config))
        .connect(server_name(&node.name), tcp)
        .await
    {
        let _ = tls.write_all(SASL_HEADER).await;
        let mut heard = Vec::new();
        let _ = timeout(PATIENCE, tls.read_to_end(&mut heard))
            .await
            .expect("the connection is closed");
        assert!(heard.is_empty());
    }
    still_served(&good, &node).await;
}

#[derive(Debug)]
struct NoCertificate;

impl ResolvesClientCert for NoCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

async fn tls_to(node: &Party, keys: &NodeKeys) -> TlsStream<TcpStream> {
    let config = tls_client_config(keys, std::slice::from_ref(&node.name), Arc::new(|| NOW));
    let tcp = TcpStream::connect(node.address).await.unwrap();
    TlsConnector::from(config)
        .connect(server_name(&node.name), tcp)
        .await
        .unwrap()
}

fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = (body.len() as u32 + 8).to_be_bytes().to_vec();
    frame.extend_from_slice(&[2, kind, 0, 0]);
    frame.extend_from_slice(body);
    frame
}

const SASL_INIT: &[u8] = b"\x00\x53\x41\xc0\x0d\x02\xa3\x08EXTERNAL\xa0\x00";
const OPEN: &[u8] = b"\x00\x53\x10\xc0\x04\x01\xa1\x01x";
const BEGIN: &[u8] = b"\x00\x53\x11\xc0\x09\x04\x40\x43\x70\x00\x00\x10\x00\x43";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_speaks_nonsense_loses_its_own_connection_only() {
    let (good, node) =
        pair_with(|options| options.handshake_timeout = Duration::from_secs(2)).await;
    let evil = keys(&name("Evil"));
    let logged_in = [SASL_HEADER, &frame(1, SASL_INIT), AMQP_HEADER].concat();
    // A value in a value in a value …, where any value is permitted: among the properties of the session.
    let mut value = b"\x45".to_vec();
    for _ in 0..7000 {
        let size = (value.len() as u32 + 4).to_be_bytes();
        value = [b"\xd0".as_slice(), &size, b"\x00\x00\x00\x01", &value].concat();
    }
    let map_size = (value.len() as u32 + 7).to_be_bytes();
    let map = [
        b"\xd1".as_slice(),
        &map_size,
        b"\x00\x00\x00\x02\xa3\x01k",
        &value,
    ]
    .concat();
    let fields = [
        b"\x40\x43\x70\x00\x00\x10\x00\x43\x40\x40\x40".as_slice(),
        &map,
    ]
    .concat();
    let list_size = (fields.len() as u32 + 4).to_be_bytes();
    let deep = [
        b"\x00\x53\x11\xd0".as_slice(),
        &list_size,
        b"\x00\x00\x00\x08",
        &fields,
    ]
    .concat();
    let sent: Vec<Vec<u8>> = vec![
        vec![],
        vec![0; 100],
        vec![0xff; 100_000],
        AMQP_HEADER.to_vec(),
        SASL_HEADER.to_vec(),
        b"AMQP\x02\x01\x00\x00AMQP".to_vec(),
        [SASL_HEADER, &[0xff; 1000]].concat(),
        [
            SASL_HEADER,
            &frame(1, b"\x00\x53\x41\xc0\x08\x01\xa3\x05PLAIN"),
        ]
        .concat(),
        [
            SASL_HEADER,
            &frame(1, b"\x00\x53\x41\xd0\xff\xff\xff\xff\xff\xff\xff\xff"),
        ]
        .concat(),
        [SASL_HEADER, &frame(1, SASL_INIT), b"nonsense"].concat(),
        [&logged_in[..], &[0xee; 2000]].concat(),
        [&logged_in[..], b"\xff\xff\xff\xff\x02\x00\x00\x00"].concat(),
        [&logged_in[..], b"\x00\x00\x00\x00\x02\x00\x00\x00"].concat(),
        [&logged_in[..], &frame(0, BEGIN)].concat(),
        [&logged_in[..], &frame(0, OPEN), &frame(0, OPEN)].concat(),
        [&logged_in[..], &frame(0, OPEN), &frame(0, &deep)].concat(),
        [
            &logged_in[..],
            &frame(0, OPEN),
            &frame(0, b"\x00\x53\x14\x45"),
        ]
        .concat(),
        [
            &logged_in[..],
            &frame(0, OPEN),
            &frame(0, BEGIN),
            &frame(0, BEGIN),
        ]
        .concat(),
        [
            &logged_in[..],
            &frame(0, OPEN),
            &frame(0, BEGIN),
            &frame(0, b"\x00\x53\x12\xc0\x05\x03\xa1\x00\x43\x42"),
        ]
        .concat(),
        [
            &logged_in[..],
            &frame(0, OPEN),
            &frame(0, BEGIN),
            &frame(0, b"\x00\x53\x15\xc0\x08\x03\x41\x43\x70\xff\xff\xff\xff"),
        ]
        .concat(),
    ];
    for bytes in sent {
        let mut tls = tls_to(&node, &evil).await;
        // It may hang up before it has read everything.
        let _ = tls.write_all(&bytes).await;
        let _ = tls.flush().await;
        closes(&mut tls).await;
        still_served(&good, &node).await;
    }
    until("only the good peer is left", || async {
        node.handle.status().inbound_connections == 1
    })
    .await;
    assert_eq!(node.inbox.count_from(&name("Evil")), 0);
}

/// A peer built on the AMQP library alone, with the library's own TLS and SASL.
struct Stranger {
    connection: ConnectionHandle<()>,
    _session: SessionHandle<()>,
    sender: Sender,
}

async fn stranger(node: &Party, keys: &NodeKeys, address: &str) -> Result<Stranger, String> {
    stranger_at((node.address, node.name.clone()), keys, address).await
}

async fn stranger_at(
    (at, node): (SocketAddr, X500Name),
    keys: &NodeKeys,
    address: &str,
) -> Result<Stranger, String> {
    let connector = TlsConnector::from(tls_client_config(
        keys,
        std::slice::from_ref(&node),
        Arc::new(|| NOW),
    ));
    let host = node.sni_hash();
    let mut connection = fe2o3_amqp::Connection::builder()
        .container_id("stranger")
        .scheme("amqps")
        .domain(Some(host.as_str()))
        .hostname(Some(host.as_str()))
        .alt_tls_establishment(true)
        .sasl_profile(SaslProfile::External)
        .tls_connector(connector)
        .open_with_stream(TcpStream::connect(at).await.unwrap())
        .await
        .map_err(|error| error.to_string())?;
    let mut session = fe2o3_amqp::Session::begin(&mut connection)
        .await
        .map_err(|error| error.to_string())?;
    match Sender::attach(&mut session, "link", address).await {
        Ok(sender) => Ok(Stranger {
            connection,
            _session: session,
            sender,
        }),
        Err(error) => match timeout(PATIENCE, connection.on_close()).await {
            Ok(Err(closed)) => Err(closed.to_string()),
            _ => Err(error.to_string()),
        },
    }
}

fn inbox_of(name: &X500Name) -> String {
    format!("internal.peers.{}", name.sni_hash())
}

type Properties = Vec<(&'static str, SimpleValue)>;

fn properties(sender: &X500Name, recipient: &X500Name, sequence: u64) -> Properties {
    vec![
        ("version", SimpleValue::Uint(1)),
        ("sender", SimpleValue::String(sender.to_string())),
        ("recipient", SimpleValue::String(recipient.to_string())),
        (
            "epoch",
            SimpleValue::String("00112233445566778899aabbccddeeff".into()),
        ),
        ("sequence", SimpleValue::Ulong(sequence)),
    ]
}

fn message(properties: Properties, body: &[u8]) -> Message<Data> {
    let mut application = ApplicationProperties::builder();
    for (key, value) in properties {
        application = application.insert(key, value);
    }
    Message::builder()
        .application_properties(application.build())
        .data(body.to_vec())
        .build()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_amqp_client_with_a_certificate_can_deliver() {
    let node = Party::start("Receiver");
    let own = name("Stranger");
    let mut stranger = stranger(&node, &keys(&own), &inbox_of(&node.name))
        .await
        .unwrap();
    for sequence in 1..4 {
        let sent = message(properties(&own, &node.name, sequence), b"hello");
        let outcome = stranger.sender.send(sent).await.unwrap();
        assert!(matches!(outcome, Outcome::Accepted(_)), "{outcome:?}");
    }
    assert_eq!(node.inbox.sequences(), [1, 2, 3]);
    stranger.connection.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_lies_about_its_origin_or_form_ends_the_connection() {
    let (good, node) = pair().await;
    let own = name("Liar");
    let keys = keys(&own);
    let without = |property: &str| {
        let mut properties = properties(&own, &node.name, 1);
        properties.retain(|(key, _)| *key != property);
        properties
    };
    let with = |property: &'static str, value: SimpleValue| {
        let mut properties = without(property);
        properties.push((property, value));
        properties
    };
    let other = "O=Somebody, L=Osaka, C=JP".to_owned();
    let cases = [
        (properties(&good.name, &node.name, 1), "sender is"),
        (
            with("recipient", SimpleValue::String(other)),
            "the message is for",
        ),
        (without("sender"), "`sender`"),
        (without("epoch"), "`epoch`"),
        (with("epoch", SimpleValue::String("xyz".into())), "`epoch`"),
        (
            with("sequence", SimpleValue::String("1".into())),
            "`sequence`",
        ),
        (with("version", SimpleValue::Uint(2)), "version 2"),
        (vec![], "`version`"),
    ];
    for (properties, expected) in cases {
        let mut stranger = stranger(&node, &keys, &inbox_of(&node.name)).await.unwrap();
        match stranger
            .sender
            .send(message(properties, b"x"))
            .await
            .unwrap()
        {
            Outcome::Rejected(rejected) => {
                let text = rejected
                    .error
                    .and_then(|error| error.description)
                    .unwrap_or_default();
                assert!(text.contains(expected), "{text}");
            }
            outcome => panic!("{expected}: {outcome:?}"),
        }
        let closed = timeout(PATIENCE, stranger.connection.on_close())
            .await
            .expect("the connection is closed");
        assert!(closed.is_err_and(|error| error.to_string().contains(expected)));
    }
    // A gap within one connection would be a lost message.
    let mut stranger = stranger(&node, &keys, &inbox_of(&node.name)).await.unwrap();
    let first = stranger
        .sender
        .send(message(properties(&own, &node.name, 1), b"x"))
        .await
        .unwrap();
    assert!(matches!(first, Outcome::Accepted(_)));
    let third = stranger
        .sender
        .send(message(properties(&own, &node.name, 3), b"x"))
        .await
        .unwrap();
    assert!(matches!(third, Outcome::Rejected(_)));
    still_served(&good, &node).await;
    assert_eq!(
        (
            node.inbox.count_from(&own),
            node.inbox.count_from(&good.name)
        ),
        (1, 2)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_to_somebody_elses_inbox_is_refused_with_a_reason() {
    let (good, node) = pair().await;
    let wrong = stranger(&node, &keys(&name("Lost")), &inbox_of(&good.name)).await;
    assert!(wrong.err().unwrap().contains("this node is not the party"));
    still_served(&good, &node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_connection_takes_the_place_of_the_older_one() {
    let (good, node) = pair().await;
    let own = name("Twice");
    let keys = keys(&own);
    let mut older = stranger(&node, &keys, &inbox_of(&node.name)).await.unwrap();
    let first = older
        .sender
        .send(message(properties(&own, &node.name, 1), b"x"))
        .await
        .unwrap();
    assert!(matches!(first, Outcome::Accepted(_)));
    // The older one has a message that is being made durable. The newer one waits for that.
    node.inbox.open_gate(false);
    let second = older
        .sender
        .send_batchable(message(properties(&own, &node.name, 2), b"x"))
        .await
        .unwrap();
    until("it is being delivered", || async {
        node.inbox.waiting() > 0
    })
    .await;
    let address = inbox_of(&node.name);
    let newer = tokio::spawn({
        let (keys, address) = (keys.clone(), address.clone());
        let target: (SocketAddr, X500Name) = (node.address, node.name.clone());
        async move { stranger_at(target, &keys, &address).await }
    });
    until("the newer one is there", || async {
        node.handle.status().inbound_connections == 3
    })
    .await;
    node.inbox.open_gate(true);
    assert!(
        matches!(second.await.unwrap(), Outcome::Accepted(_)),
        "what was delivered is accepted"
    );
    let mut newer = newer.await.unwrap().unwrap();
    let closed = timeout(PATIENCE, older.connection.on_close())
        .await
        .expect("the older one is closed");
    assert!(closed.is_err_and(|error| error.to_string().contains("newer connection")));
    let third = newer
        .sender
        .send(message(properties(&own, &node.name, 3), b"x"))
        .await
        .unwrap();
    assert!(matches!(third, Outcome::Accepted(_)));
    still_served(&good, &node).await;
    assert_eq!(node.inbox.count_from(&own), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_answers_nonsense_is_dialled_again_and_nothing_is_lost() {
    let (a, b) = (Party::start("PartyA"), Party::start("PartyB"));
    let server = TcpListener::bind(localhost()).await.unwrap();
    a.knows_at(&b.name, &[server.local_addr().unwrap()]);
    a.send_many(&b.name, 10);
    let acceptor = TlsAcceptor::from(tls_server_config(&b.keys, Arc::new(|| NOW)));
    let mechanisms = frame(1, b"\x00\x53\x40\xc0\x0e\x01\xe0\x0b\x01\xa3\x08EXTERNAL");
    let outcome = |code: u8| {
        frame(
            1,
            &[b"\x00\x53\x44\xc0\x03\x01\x50".as_slice(), &[code]].concat(),
        )
    };
    let logged_in = [SASL_HEADER, &mechanisms, &outcome(0), AMQP_HEADER].concat();
    let answers: Vec<Vec<u8>> = vec![
        vec![],
        b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
        AMQP_HEADER.to_vec(),
        [
            SASL_HEADER,
            &frame(1, b"\x00\x53\x40\xc0\x08\x01\xa3\x05PLAIN"),
        ]
        .concat(),
        [SASL_HEADER, &mechanisms, &outcome(1)].concat(),
        [SASL_HEADER, &mechanisms, &frame(1, b"\x00\x53\x44\x45")].concat(),
        [&logged_in[..], &[0xee; 100]].concat(),
        [&logged_in[..], &frame(0, BEGIN)].concat(),
        [
            &logged_in[..],
            &frame(0, OPEN),
            &frame(0, b"\x00\x53\x14\x45"),
        ]
        .concat(),
        [
            &logged_in[..],
            &frame(0, OPEN),
            &frame(0, b"\x00\x53\x18\x45"),
        ]
        .concat(),
    ];
    for answer in answers {
        let (tcp, _) = timeout(PATIENCE, server.accept())
            .await
            .expect("it dials again")
            .unwrap();
        let mut tls = acceptor.accept(tcp).await.unwrap();
        tls.write_all(&answer).await.unwrap();
        tls.shutdown().await.unwrap();
        closes(&mut tls).await;
    }
    a.knows(&b);
    a.settled(&b.name).await;
    assert_eq!(b.inbox.sequences(), (1..=10).collect::<Vec<_>>());
}
