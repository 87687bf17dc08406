//! The bridge's way out through proxies, which are made here.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

use crate::dmz::{Dmz, Process};
use crate::support::{Party, until};

#[derive(Debug, Clone, Copy)]
enum Kind {
    Socks4,
    Socks5,
    Http,
}

/// A proxy with a user `proxyuser` and a password `secret`, where its kind has passwords.
struct TestProxy {
    address: SocketAddr,
    used: Arc<AtomicUsize>,
}

impl TestProxy {
    async fn start(kind: Kind) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let used = Arc::new(AtomicUsize::new(0));
        let counter = used.clone();
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let counter = counter.clone();
                tokio::spawn(async move {
                    let outcome = match kind {
                        Kind::Socks4 => socks4(tcp).await,
                        Kind::Socks5 => socks5(tcp).await,
                        Kind::Http => http(tcp).await,
                    };
                    if let Some((mut inner, mut outer)) = outcome {
                        counter.fetch_add(1, Ordering::SeqCst);
                        let _ = copy_bidirectional(&mut inner, &mut outer).await;
                    }
                });
            }
        });
        Self { address, used }
    }
}

type Joined = Option<(TcpStream, TcpStream)>;

async fn socks4(mut tcp: TcpStream) -> Joined {
    let mut head = [0; 8];
    tcp.read_exact(&mut head).await.ok()?;
    assert_eq!(head[..2], [4, 1]);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let mut reader = BufReader::new(&mut tcp);
    let mut zero_ended = Vec::new();
    reader.read_until(0, &mut zero_ended).await.ok()?;
    let user = text(zero_ended);
    let host = if head[4..7] == [0, 0, 0] {
        let mut name = Vec::new();
        reader.read_until(0, &mut name).await.ok()?;
        text(name).trim_end_matches('\0').to_owned()
    } else {
        format!("{}.{}.{}.{}", head[4], head[5], head[6], head[7])
    };
    if user != "proxyuser\0" {
        let _ = tcp.write_all(&[0, 93, 0, 0, 0, 0, 0, 0]).await;
        return None;
    }
    let port = u16::from_be_bytes([head[2], head[3]]);
    let outer = TcpStream::connect((host.as_str(), port)).await.ok()?;
    tcp.write_all(&[0, 90, 0, 0, 0, 0, 0, 0]).await.ok()?;
    Some((tcp, outer))
}

async fn socks5(mut tcp: TcpStream) -> Joined {
    let mut head = [0; 2];
    tcp.read_exact(&mut head).await.ok()?;
    let mut methods = vec![0; usize::from(head[1])];
    tcp.read_exact(&mut methods).await.ok()?;
    if !methods.contains(&2) {
        let _ = tcp.write_all(&[5, 0xff]).await;
        return None;
    }
    tcp.write_all(&[5, 2]).await.ok()?;
    let mut credentials = Vec::new();
    assert_eq!(tcp.read_u8().await.ok()?, 1);
    for _ in 0..2 {
        let mut text = vec![0; usize::from(tcp.read_u8().await.ok()?)];
        tcp.read_exact(&mut text).await.ok()?;
        credentials.push(String::from_utf8(text).unwrap());
    }
    let right = credentials == ["proxyuser", "secret"];
    tcp.write_all(&[1, u8::from(!right)]).await.ok()?;
    if !right {
        return None;
    }
    let mut request = [0; 4];
    tcp.read_exact(&mut request).await.ok()?;
    assert_eq!(request[..3], [5, 1, 0]);
    let host = match request[3] {
        1 => {
            let mut address = [0; 4];
            tcp.read_exact(&mut address).await.ok()?;
            std::net::Ipv4Addr::from(address).to_string()
        }
        3 => {
            let mut name = vec![0; usize::from(tcp.read_u8().await.ok()?)];
            tcp.read_exact(&mut name).await.ok()?;
            String::from_utf8(name).unwrap()
        }
        other => panic!("address of kind {other}"),
    };
    let port = tcp.read_u16().await.ok()?;
    match TcpStream::connect((host.as_str(), port)).await {
        Ok(outer) => {
            // The bound address as a name, which has the length that is easiest to get wrong.
            tcp.write_all(b"\x05\x00\x00\x03\x05bound\x00\x01")
                .await
                .ok()?;
            Some((tcp, outer))
        }
        Err(_) => {
            let _ = tcp.write_all(&[5, 5, 0, 1, 0, 0, 0, 0, 0, 0]).await;
            None
        }
    }
}

async fn http(mut tcp: TcpStream) -> Joined {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(tcp.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap();
    let wanted = format!(
        "Proxy-Authorization: Basic {}\r\n",
        BASE64.encode("proxyuser:secret")
    );
    if !head.contains(&wanted) {
        let answer =
            b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n\r\n";
        let _ = tcp.write_all(answer).await;
        return None;
    }
    let target = head.strip_prefix("CONNECT ")?.split(' ').next()?.to_owned();
    match TcpStream::connect(&target).await {
        Ok(outer) => {
            tcp.write_all(b"HTTP/1.1 200 Connection established\r\nVia: test\r\n\r\n")
                .await
                .ok()?;
            Some((tcp, outer))
        }
        Err(_) => {
            let _ = tcp.write_all(b"HTTP/1.1 502 Bad Gateway\r\n\r\n").await;
            None
        }
    }
}

async fn behind(kind: Kind, credentials: &str) -> (Dmz, Party, Party, TestProxy, Process) {
    let proxy = TestProxy::start(kind).await;
    let dmz = Dmz::new();
    let inside = Party::start_behind("Inside", None);
    let outside = Party::start("Outside");
    let version = format!("{kind:?}").to_uppercase();
    let firewall = dmz
        .sender_receiver(
            &inside,
            &format!(
                "outboundConfig.proxyConfig {{ version = {version}, proxyAddress = \"{}\", {credentials} }}",
                proxy.address
            ),
        )
        .await;
    (dmz, inside, outside, proxy, firewall)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_are_reached_through_each_kind_of_proxy() {
    for (kind, credentials) in [
        (Kind::Socks4, "userName = proxyuser"),
        (Kind::Socks5, "userName = proxyuser, password = secret"),
        (Kind::Http, "userName = proxyuser, password = secret"),
    ] {
        let (_dmz, inside, outside, proxy, firewall) = behind(kind, credentials).await;
        // By name: the proxy looks it up.
        let by_name = format!("localhost:{}", outside.address.port());
        inside
            .handle
            .set_addresses(&outside.name, vec![by_name.parse().unwrap()]);
        inside.send_many(&outside.name, 20);
        inside.settled(&outside.name).await;
        assert_eq!(outside.inbox.count(), 20, "{kind:?}");
        assert!(proxy.used.load(Ordering::SeqCst) > 0, "{kind:?}");
        let peer = outside.name.to_string();
        firewall.audited("outbound", "connected", &peer).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_does_not_believe_us_is_named_with_its_reason() {
    for (kind, credentials, reason) in [
        (Kind::Socks4, "userName = somebody", "believe who we are"),
        (
            Kind::Socks5,
            "userName = proxyuser, password = guess",
            "accept user name and password",
        ),
        (Kind::Socks5, "", "wants a user name"),
        (Kind::Http, "userName = proxyuser, password = guess", "407"),
    ] {
        let (_dmz, inside, outside, proxy, _firewall) = behind(kind, credentials).await;
        inside.knows(&outside);
        inside.send_many(&outside.name, 1);
        until("the reason is known", || async {
            inside.last_error(&outside.name).contains(reason)
        })
        .await;
        let error = inside.last_error(&outside.name);
        assert!(error.contains(&proxy.address.to_string()), "{error}");
        assert!(!error.contains("guess"), "{error}");
        assert_eq!(outside.inbox.count(), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_the_proxy_cannot_reach_costs_nothing_but_its_own_queue() {
    let (_dmz, inside, outside, _proxy, _firewall) =
        behind(Kind::Http, "userName = proxyuser, password = secret").await;
    let gone = Party::start("Gone");
    gone.kill().await;
    inside.knows(&gone);
    inside.knows(&outside);
    inside.send_many(&gone.name, 5);
    inside.send_many(&outside.name, 5);
    inside.settled(&outside.name).await;
    until("the reason is known", || async {
        inside.last_error(&gone.name).contains("502")
    })
    .await;
}
