//! Outgoing connections through a proxy: SOCKS 4 and 4a, SOCKS 5 (RFC 1928, 1929), HTTP CONNECT.
//!
//! The proxy looks up host names, because the inside may not be able to. What it says is believed no further than that
//! it has connected somewhere: the TLS handshake behind it proves where.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use quorate_runtime::Secret;
use quorate_runtime::tasks::chain;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::dial::connect;
use crate::options::HostAndPort;

/// The longest head of an HTTP proxy's answer.
const MAX_HEAD_BYTES: usize = 16 * 1024;
/// The longest user name or password that SOCKS 5 has room for.
pub(super) const MAX_CREDENTIAL_BYTES: usize = 255;

/// `proxyConfig.version`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyVersion {
    /// With host names as in SOCKS 4a.
    Socks4,
    /// RFC 1928.
    Socks5,
    /// HTTP CONNECT.
    Http,
}

/// A word that is no kind of proxy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be one of SOCKS4, SOCKS5, HTTP")]
pub struct ProxyVersionError;

impl FromStr for ProxyVersion {
    type Err = ProxyVersionError;

    fn from_str(text: &str) -> Result<Self, ProxyVersionError> {
        match text.to_ascii_uppercase().as_str() {
            "SOCKS4" => Ok(Self::Socks4),
            "SOCKS5" => Ok(Self::Socks5),
            "HTTP" => Ok(Self::Http),
            _ => Err(ProxyVersionError),
        }
    }
}

impl fmt::Display for ProxyVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Socks4 => "SOCKS4",
            Self::Socks5 => "SOCKS5",
            Self::Http => "HTTP",
        })
    }
}

/// `outboundConfig.proxyConfig`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proxy {
    /// What it speaks.
    pub version: ProxyVersion,
    /// Where it is.
    pub address: HostAndPort,
    /// Who we are to it.
    pub user: Option<String>,
    /// The proof.
    pub password: Option<Secret>,
    /// How long it may take.
    pub timeout: Duration,
}

/// Connects to `address`, by way of `proxy` if there is one.
pub(super) async fn reach(proxy: Option<&Proxy>, address: &HostAndPort) -> io::Result<TcpStream> {
    let direct = |to: HostAndPort| async move {
        connect(&to)
            .await
            .map_err(|error| io::Error::other(chain(&error)))
    };
    let Some(proxy) = proxy else {
        return direct(address.clone()).await;
    };
    let through = async {
        let mut tcp = direct(proxy.address.clone()).await?;
        match proxy.version {
            ProxyVersion::Socks4 => socks4(&mut tcp, proxy, address).await?,
            ProxyVersion::Socks5 => socks5(&mut tcp, proxy, address).await?,
            ProxyVersion::Http => http(&mut tcp, proxy, address).await?,
        }
        Ok(tcp)
    };
    let outcome = match timeout(proxy.timeout, through).await {
        Ok(outcome) => outcome,
        Err(_) => Err(refused(format!(
            "it has not connected within {:?}",
            proxy.timeout
        ))),
    };
    outcome.map_err(|error: io::Error| {
        io::Error::other(format!(
            "the {} proxy {}: {error}",
            proxy.version, proxy.address
        ))
    })
}

fn refused(reason: impl Into<String>) -> io::Error {
    io::Error::other(reason.into())
}

async fn socks4(tcp: &mut TcpStream, proxy: &Proxy, to: &HostAndPort) -> io::Result<()> {
    let mut request = vec![4, 1];
    request.extend(to.port.to_be_bytes());
    let (address, name) = match to.host.parse::<IpAddr>() {
        Ok(IpAddr::V4(address)) => (address, None),
        Ok(IpAddr::V6(_)) => return Err(refused("SOCKS4 knows no IPv6 addresses; use SOCKS5")),
        // 4a: an address that cannot be says that a name follows.
        Err(_) => (Ipv4Addr::new(0, 0, 0, 1), Some(&to.host)),
    };
    request.extend(address.octets());
    request.extend(proxy.user.as_deref().unwrap_or_default().as_bytes());
    request.push(0);
    if let Some(name) = name {
        request.extend(name.as_bytes());
        request.push(0);
    }
    tcp.write_all(&request).await?;
    let mut answer = [0; 8];
    tcp.read_exact(&mut answer).await?;
    match (answer[0], answer[1]) {
        (0, 90) => Ok(()),
        (0, 91) => Err(refused(format!(
            "it could not or would not connect to {to}"
        ))),
        (0, 92 | 93) => Err(refused("it does not believe who we are")),
        _ => Err(refused("it does not speak SOCKS4")),
    }
}

async fn socks5(tcp: &mut TcpStream, proxy: &Proxy, to: &HostAndPort) -> io::Result<()> {
    const NO_AUTHENTICATION: u8 = 0;
    const PASSWORD: u8 = 2;
    const NONE_ACCEPTABLE: u8 = 0xff;
    let greeting: &[u8] = match proxy.user {
        Some(_) => &[5, 2, NO_AUTHENTICATION, PASSWORD],
        None => &[5, 1, NO_AUTHENTICATION],
    };
    tcp.write_all(greeting).await?;
    let mut chosen = [0; 2];
    tcp.read_exact(&mut chosen).await?;
    match (chosen, &proxy.user) {
        ([5, NO_AUTHENTICATION], _) => {}
        ([5, PASSWORD], Some(user)) => {
            let password = proxy.password.as_ref().map_or("", Secret::expose);
            let mut request = vec![1];
            for text in [user, password] {
                let length = u8::try_from(text.len())
                    .map_err(|_| refused("user name and password must be shorter"))?;
                request.push(length);
                request.extend(text.as_bytes());
            }
            tcp.write_all(&request).await?;
            let mut answer = [0; 2];
            tcp.read_exact(&mut answer).await?;
            if answer[1] != 0 {
                return Err(refused("it does not accept user name and password"));
            }
        }
        ([5, NONE_ACCEPTABLE], Some(_)) => {
            return Err(refused("it does not take a user name and password"));
        }
        ([5, _], _) => return Err(refused("it wants a user name and a password")),
        _ => return Err(refused("it does not speak SOCKS5")),
    }
    let mut request = vec![5, 1, 0];
    match to.host.parse::<IpAddr>() {
        Ok(IpAddr::V4(address)) => {
            request.push(1);
            request.extend(address.octets());
        }
        Ok(IpAddr::V6(address)) => {
            request.push(4);
            request.extend(address.octets());
        }
        Err(_) => {
            let length = u8::try_from(to.host.len())
                .map_err(|_| refused("the host name is too long for SOCKS5"))?;
            request.extend([3, length]);
            request.extend(to.host.as_bytes());
        }
    }
    request.extend(to.port.to_be_bytes());
    tcp.write_all(&request).await?;
    let mut head = [0; 4];
    tcp.read_exact(&mut head).await?;
    if head[0] != 5 {
        return Err(refused("it does not speak SOCKS5"));
    }
    let why = match head[1] {
        0 => None,
        1 => Some("it failed"),
        2 => Some("its rules do not allow it"),
        3 => Some("the network cannot be reached"),
        4 => Some("the host cannot be reached"),
        5 => Some("the connection was refused"),
        6 => Some("it took too long"),
        7 => Some("it does not know the command"),
        8 => Some("it does not know this kind of address"),
        _ => Some("it gives an unknown reason"),
    };
    if let Some(why) = why {
        return Err(refused(format!("no connection to {to}: {why}")));
    }
    // The address from which it has connected: read, because it is in the way, and of no use.
    let length = match head[3] {
        1 => 4,
        4 => 16,
        3 => usize::from(tcp.read_u8().await?),
        _ => return Err(refused("it does not speak SOCKS5")),
    };
    let mut bound = vec![0; length + 2];
    tcp.read_exact(&mut bound).await?;
    Ok(())
}

async fn http(tcp: &mut TcpStream, proxy: &Proxy, to: &HostAndPort) -> io::Result<()> {
    let mut request = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n");
    if let Some(user) = &proxy.user {
        let password = proxy.password.as_ref().map_or("", Secret::expose);
        let credentials = BASE64.encode(format!("{user}:{password}"));
        request.push_str(&format!("Proxy-Authorization: Basic {credentials}\r\n"));
    }
    request.push_str("\r\n");
    tcp.write_all(request.as_bytes()).await?;
    // Byte by byte, so that nothing of the peer's is taken; a head is short.
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= MAX_HEAD_BYTES {
            return Err(refused("the head of its answer does not end"));
        }
        head.push(tcp.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head);
    let line = head.lines().next().unwrap_or_default();
    let mut words = line.split(' ');
    let version = words.next().unwrap_or_default();
    if !version.starts_with("HTTP/1.") {
        return Err(refused("it does not speak HTTP"));
    }
    match words.next().unwrap_or_default() {
        code if code.len() == 3 && code.starts_with('2') => Ok(()),
        "407" => Err(refused(
            "it wants another user name and password (407 Proxy Authentication Required)",
        )),
        _ => Err(refused(format!(
            "no connection to {to}: {}",
            line.escape_debug()
                .to_string()
                .chars()
                .take(200)
                .collect::<String>()
        ))),
    }
}
