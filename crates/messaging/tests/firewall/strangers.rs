//! Who must not come through, and what it costs when they try.

use std::net::SocketAddr;
use std::time::Duration;

use futures::future::join_all;
use quorate_identity::{
    CertificateAuthority, NodeKeys, SignatureScheme, TlsParty, X500Name, server_name,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::dmz::{Dmz, Process};
use crate::support::{NOW, PATIENCE, Party, keys, name, until};

struct Stage {
    dmz: Dmz,
    inside: Party,
    outside: Party,
    float: Process,
    bridge: Process,
    door: SocketAddr,
}

impl Stage {
    async fn set(more: &str) -> Self {
        let dmz = Dmz::new();
        let outside = Party::start("Outside");
        let inside = Party::start_behind("Inside", Some(dmz.node_link()));
        let float = dmz.float(more).await;
        let bridge = dmz.bridge(&[&inside], &[&float], "").await;
        let door = float.listening().await;
        outside.knows_at(&inside.name, &[door]);
        inside.knows(&outside);
        let stage = Self {
            dmz,
            inside,
            outside,
            float,
            bridge,
            door,
        };
        stage.still_serves().await;
        stage
    }

    async fn still_serves(&self) {
        self.outside
            .send(&self.inside.name, b"still there?".to_vec());
        self.inside
            .send(&self.outside.name, b"still there?".to_vec());
        self.outside.settled(&self.inside.name).await;
        self.inside.settled(&self.outside.name).await;
    }

    async fn connect(
        &self,
        keys: &NodeKeys,
        wanted: &X500Name,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        self.connect_as(&TlsParty::of_node(keys), wanted).await
    }

    async fn connect_as(
        &self,
        party: &TlsParty,
        wanted: &X500Name,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let expected = [self.inside.name.clone()];
        let config = party.client_config(Some(&expected), std::sync::Arc::new(|| NOW));
        let tcp = TcpStream::connect(self.door).await?;
        TlsConnector::from(config)
            .connect(server_name(wanted), tcp)
            .await
    }
}

/// The other side closes, sooner or later.
async fn closes(stream: &mut (impl AsyncReadExt + Unpin)) {
    let mut rest = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut rest))
        .await
        .expect("the connection is closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_and_probes_at_the_float_are_turned_away_and_told() {
    let stage = Stage::set("").await;
    for bytes in [
        b"GET / HTTP/1.1\r\n\r\n".as_slice(),
        b"AMQP\x03\x01\x00\x00",
        &[0x16, 3, 1, 0xff, 0xff],
        &[0; 4096],
    ] {
        let mut tcp = TcpStream::connect(stage.door).await.unwrap();
        let _ = tcp.write_all(bytes).await;
        let _ = tcp.shutdown().await;
        closes(&mut tcp).await;
    }
    for _ in 0..5 {
        join_all((0..100).map(|_| async { drop(TcpStream::connect(stage.door).await.unwrap()) }))
            .await;
    }
    stage.still_serves().await;
    stage.float.audited("inbound", "refused", "127.0.0.1").await;
    until("all are forgotten", || async {
        stage.float.handle.status().pending_handshakes == 0
    })
    .await;
    // Nobody inside has heard of them.
    assert_eq!(stage.inside.handle.status().peers.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_connections_make_room_for_peers() {
    let stage =
        Stage::set("inboundConfig.maxPendingHandshakes = 10\nsslHandshakeTimeout = 1000").await;
    let mut silent = Vec::new();
    for _ in 0..50 {
        silent.push(TcpStream::connect(stage.door).await.unwrap());
    }
    assert!(stage.float.handle.status().pending_handshakes <= 10);
    let newcomer = Party::start("Newcomer");
    newcomer.knows_at(&stage.inside.name, &[stage.door]);
    newcomer.send_many(&stage.inside.name, 3);
    newcomer.settled(&stage.inside.name).await;
    for tcp in &mut silent {
        closes(tcp).await;
    }
    stage.still_serves().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_members_of_the_network_come_in_and_only_to_whom_is_served() {
    let stage = Stage::set("").await;
    // A foreign network's member.
    let foreign =
        CertificateAuthority::generate(&name("Foreign"), SignatureScheme::Ed25519, NOW).unwrap();
    let stranger =
        NodeKeys::generate(&foreign, &name("Stranger"), SignatureScheme::Ed25519, NOW).unwrap();
    // It shows its own certificate, and believes what we believe: otherwise it would not let itself be refused.
    let member = keys(&name("Member"));
    let party = TlsParty::new(stranger.tls().clone(), member.trust_root().clone());
    let wanted = stage.inside.name.clone();
    // With TLS 1.3 a client is through before it hears that it was refused.
    if let Ok(mut tls) = stage.connect_as(&party, &wanted).await {
        closes(&mut tls).await;
    }
    stage.float.audited("inbound", "refused", "leads to").await;
    // A member that asks for somebody who is not here.
    assert!(stage.connect(&member, &name("Elsewhere")).await.is_err());
    stage
        .float
        .audited("inbound", "refused", "not served here")
        .await;
    // A member that does not keep to the protocol, with the right certificate.
    for bytes in [
        b"\x00\x00\x00\x08\x02\x00\x00\x00".as_slice(),
        b"AMQP\x03\x01\x00\x00\xff\xff\xff\xff\x02\x00\x00\x00",
        &[0xab; 10_000],
    ] {
        let mut tls = stage.connect(&member, &wanted).await.unwrap();
        let _ = tls.write_all(bytes).await;
        closes(&mut tls).await;
    }
    stage
        .float
        .audited("inbound", "disconnected", "does not keep to the protocol")
        .await;
    stage.still_serves().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_expected_bridge_may_speak_with_a_float() {
    let stage = Stage::set("").await;
    let node = Party::start_behind("Intruder", Some(stage.dmz.node_link()));
    let stranger = stage
        .dmz
        .bridge_as("stranger", &[node.address.into()], &[&stage.float], "")
        .await;
    // It speaks with its node, and is turned away by the float, again and again.
    until("the node is linked", || async {
        stranger.handle.status().nodes == 1
    })
    .await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(stage.float.handle.status().bridges, 1);
    let member = keys(&name("Member"));
    assert!(stage.connect(&member, &node.name).await.is_err());
    stage.still_serves().await;
    assert_eq!(stage.bridge.handle.status().floats, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_cannot_speak_with_a_node_behind_a_firewall_itself() {
    let stage = Stage::set("").await;
    let outside = Party::start("Shortcut");
    outside.knows_at(&stage.inside.name, &[stage.inside.address]);
    outside.send_many(&stage.inside.name, 1);
    until("it is refused", || async {
        !outside.last_error(&stage.inside.name).is_empty()
    })
    .await;
    // Garbage there does no harm either.
    for _ in 0..20 {
        let mut tcp = TcpStream::connect(stage.inside.address).await.unwrap();
        let _ = tcp.write_all(&[0x55; 500]).await;
        closes(&mut tcp).await;
    }
    stage.still_serves().await;
    assert_eq!(stage.inside.inbox.count_from(&outside.name), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_probe_hears_its_phrase_and_may_be_silenced() {
    let stage =
        Stage::set("healthCheckPhrase = \"are you well?\"\nsilencedIPs = [ \"127.0.0.1\" ]").await;
    let mut probe = TcpStream::connect(stage.door).await.unwrap();
    probe.write_all(b"are you").await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    probe.write_all(b" well?").await.unwrap();
    let mut answer = Vec::new();
    timeout(PATIENCE, probe.read_to_end(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(answer, b"are you well?");
    stage.still_serves().await;
}
