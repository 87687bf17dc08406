//! Opens one outgoing connection: TCP, TLS, the peer's name, AMQP, and the link that messages are sent over.

use std::fmt;
use std::io;
use std::time::Duration;

use fe2o3_amqp::connection::ConnectionHandle;
use fe2o3_amqp::session::SessionHandle;
use fe2o3_amqp::types::definitions::{self, SenderSettleMode};
use fe2o3_amqp::{Connection, Sender, Session};
use quorate_identity::{X500Name, server_name};
use quorate_runtime::tasks::chain;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::{TlsConnector, TlsStream};

use crate::bridged;
use crate::guard::{MAX_FRAME_BYTES, Performative, Side};
use crate::message::address_of;
use crate::options::{HostAndPort, MESSAGE_OVERHEAD_BYTES};
use crate::security::name_of;
use crate::service::Shared;
use crate::wire::{Line, Wire};

/// IP addresses of one host name that are tried.
const MAX_RESOLVED: usize = 8;
/// Frames between the parts of the AMQP library. More than a window of messages has, so that handing over never waits
/// for the socket.
pub(crate) const FRAME_QUEUE: usize = 4096;
/// How long a closing peer may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(1);
/// Idle time after which the kernel asks whether the other machine is still there. AMQP's own signs of life are
/// quicker; this one ends connections of which the handshake is not finished.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// An open connection to a peer.
pub(crate) struct Link {
    pub(crate) sender: Sender,
    /// Kept because dropping it would end the session.
    _session: SessionHandle<()>,
    pub(crate) connection: ConnectionHandle<()>,
    pub(crate) line: Line,
}

/// Why a connection could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    #[error("cannot find the address of {0}")]
    Resolve(HostAndPort, #[source] io::Error),
    #[error("cannot connect to {0}")]
    Connect(HostAndPort, #[source] io::Error),
    #[error("{0} has not answered in time")]
    Late(HostAndPort),
    #[error("the TLS handshake with {0} failed")]
    Tls(HostAndPort, #[source] io::Error),
    #[error("no connection to {0} through the firewall: {1}")]
    Firewall(HostAndPort, String),
    #[error("{address} is not {wanted}: {found}")]
    WrongPeer {
        address: HostAndPort,
        wanted: X500Name,
        found: String,
    },
    #[error("{address} has refused: {step}: {reason}")]
    Amqp {
        address: HostAndPort,
        step: &'static str,
        reason: String,
    },
}

/// Opens a connection to `peer` at `address`. Dropping the future closes what was opened so far.
pub(crate) async fn dial(
    shared: &Shared,
    peer: &X500Name,
    address: &HostAndPort,
) -> Result<Link, DialError> {
    match timeout(
        shared.options.connect_timeout,
        attempt(shared, peer, address),
    )
    .await
    {
        Ok(outcome) => outcome,
        Err(_) => Err(DialError::Late(address.clone())),
    }
}

async fn attempt(
    shared: &Shared,
    peer: &X500Name,
    address: &HostAndPort,
) -> Result<Link, DialError> {
    let tls = match &shared.bridges {
        Some(bridges) => bridged::reach(shared, bridges, peer, address).await?,
        None => reach(shared, peer, address).await?,
    };
    let max_message = (shared.options.max_message_bytes + MESSAGE_OVERHEAD_BYTES) as u64;
    let (mut wire, line) = Wire::new(tls, Side::Sender, max_message);
    let refused = |step, reason: String| {
        // What broke the stream says more than what the library made of it.
        DialError::Amqp {
            address: address.clone(),
            step,
            reason: line.failure().unwrap_or(reason),
        }
    };
    authenticate(&mut wire)
        .await
        .map_err(|error| refused("authentication", error.to_string()))?;
    let own = shared.options.own_name.sni_hash();
    let silence = u32::try_from(shared.options.silence_timeout.as_millis()).unwrap_or(u32::MAX);
    let mut connection = Connection::builder()
        .container_id(own.clone())
        .hostname(Some(peer.sni_hash().as_str()))
        .max_frame_size(MAX_FRAME_BYTES as u32)
        .channel_max(0)
        .idle_time_out(silence)
        .buffer_size(FRAME_QUEUE)
        .open_with_stream(wire)
        .await
        .map_err(|error| refused("open", chain(&error)))?;
    let mut session = Session::builder()
        .buffer_size(FRAME_QUEUE)
        .begin(&mut connection)
        .await
        .map_err(|error| refused("session", chain(&error)))?;
    let attached = Sender::builder()
        .name(format!("{own}-to-{}", peer.sni_hash()))
        .target(address_of(peer))
        .sender_settle_mode(SenderSettleMode::Unsettled)
        .max_message_size(max_message)
        .attach(&mut session)
        .await;
    match attached {
        Ok(sender) => Ok(Link {
            sender,
            _session: session,
            connection,
            line,
        }),
        Err(error) => {
            // A receiver that wants to say why closes the connection with an error.
            let reason = match timeout(GOODBYE, connection.on_close()).await {
                Ok(Err(closed)) => describe_close(&closed),
                _ => chain(&error),
            };
            Err(refused("link", reason))
        }
    }
}

/// TCP, TLS and the peer's name.
async fn reach(
    shared: &Shared,
    peer: &X500Name,
    address: &HostAndPort,
) -> Result<TlsStream<TcpStream>, DialError> {
    let tcp = connect(address).await?;
    let (expected, config) = shared.security.towards(peer);
    let tls = TlsConnector::from(config)
        .connect(server_name(peer), tcp)
        .await
        .map_err(|error| DialError::Tls(address.clone(), error))?;
    // The verifier has refused everybody else already. This is the second, independent look: sending one organisation's
    // messages to another would be the worst that can happen here.
    let found = name_of(tls.get_ref().1.peer_certificates());
    is_expected(address, peer, &expected, found)?;
    Ok(TlsStream::Client(tls))
}

/// Whether who was found at an address is who was wanted there.
pub(crate) fn is_expected(
    address: &HostAndPort,
    wanted: &X500Name,
    expected: &[X500Name],
    found: Result<X500Name, String>,
) -> Result<(), DialError> {
    let found = match found {
        Ok(name) if expected.contains(&name) => return Ok(()),
        Ok(name) => format!("it is {name}"),
        Err(reason) => reason,
    };
    Err(DialError::WrongPeer {
        address: address.clone(),
        wanted: wanted.clone(),
        found,
    })
}

pub(crate) async fn connect(address: &HostAndPort) -> Result<TcpStream, DialError> {
    let found = lookup_host((address.host.as_str(), address.port))
        .await
        .map_err(|error| DialError::Resolve(address.clone(), error))?;
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for candidate in found.take(MAX_RESOLVED) {
        match TcpStream::connect(candidate).await {
            Ok(tcp) => {
                tune(&tcp).map_err(|error| DialError::Connect(address.clone(), error))?;
                return Ok(tcp);
            }
            Err(error) => last = error,
        }
    }
    Err(DialError::Connect(address.clone(), last))
}

/// Socket options of all connections, in and out.
pub(crate) fn tune(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(KEEPALIVE)
        .with_interval(KEEPALIVE / 3);
    socket2::SockRef::from(tcp).set_tcp_keepalive(&keepalive)
}

impl Link {
    /// Ends the connection: politely when the peer still answers, at once otherwise. Says what the peer has given as
    /// its reason, if it has.
    pub(crate) async fn hang_up(mut self, polite: bool) -> Option<String> {
        if !polite {
            self.line.cut();
        }
        let ended = timeout(GOODBYE, self.connection.close()).await;
        let reason = match &ended {
            Ok(Err(error @ fe2o3_amqp::connection::Error::RemoteClosedWithError(_))) => {
                Some(describe_close(error))
            }
            _ => None,
        };
        if ended.is_err() {
            self.line.cut();
            let _ = timeout(GOODBYE, self.connection.on_close()).await;
        }
        reason.or_else(|| self.line.failure())
    }
}

/// The reason for which a peer has closed a connection, in words.
pub(crate) fn describe_close(error: &fe2o3_amqp::connection::Error) -> String {
    match error {
        fe2o3_amqp::connection::Error::RemoteClosedWithError(error) => describe(error),
        fe2o3_amqp::connection::Error::RemoteClosed => {
            "the peer has closed the connection".to_owned()
        }
        fe2o3_amqp::connection::Error::IllegalState => "the connection broke".to_owned(),
        other => chain(other),
    }
}

/// An AMQP error in words, without the library's debug form. The text comes from the peer, so it is bounded and has no
/// control characters.
pub(crate) fn describe(error: &definitions::Error) -> String {
    const MAX_CHARS: usize = 500;
    let text = match &error.description {
        Some(description) if !description.is_empty() => description.clone(),
        _ => format!("{:?}", error.condition),
    };
    text.chars()
        .map(|character| {
            if character.is_control() {
                ' '
            } else {
                character
            }
        })
        .take(MAX_CHARS)
        .collect()
}

const SASL_HEADER: [u8; 8] = *b"AMQP\x03\x01\x00\x00";
const EXTERNAL: &str = "EXTERNAL";
const SASL_OUTCOME: u8 = 0x44;

#[derive(Debug, thiserror::Error)]
enum SaslError {
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    #[error("the peer does not speak AMQP 1.0 with SASL")]
    NotSasl,
    #[error(
        "the peer does not accept our TLS certificate as identification (no SASL mechanism EXTERNAL)"
    )]
    NoExternal,
    #[error("the peer has refused our identification (SASL code {0})")]
    Refused(u8),
}

/// SASL EXTERNAL: the TLS certificate says who we are. Done here because the library permits this mechanism only on
/// TLS connections that it has opened itself, and then nothing could stand between it and the peer.
async fn authenticate(wire: &mut Wire) -> Result<(), SaslError> {
    wire.write_all(&SASL_HEADER).await?;
    wire.flush().await?;
    let mut header = [0; SASL_HEADER.len()];
    wire.read_exact(&mut header).await?;
    if header != SASL_HEADER {
        return Err(SaslError::NotSasl);
    }
    let mechanisms = sasl_frame(wire).await?;
    if !mechanisms
        .windows(EXTERNAL.len())
        .any(|window| window == EXTERNAL.as_bytes())
    {
        return Err(SaslError::NoExternal);
    }
    wire.write_all(&sasl_init()).await?;
    wire.flush().await?;
    let outcome = sasl_frame(wire).await?;
    match Performative::read(&outcome) {
        Ok((SASL_OUTCOME, fields)) => match fields.ubyte(&outcome, 0) {
            Some(0) => Ok(()),
            Some(code) => Err(SaslError::Refused(code)),
            None => Err(SaslError::NotSasl),
        },
        _ => Err(SaslError::NotSasl),
    }
}

/// The body of the next frame. The guard has checked that it is a small SASL frame.
async fn sasl_frame(wire: &mut Wire) -> Result<Vec<u8>, SaslError> {
    let mut header = [0; 8];
    wire.read_exact(&mut header).await?;
    let size = u32::from_be_bytes([header[0], header[1], header[2], header[3]]) as usize;
    if header[5] != 1 || !(8..=1024).contains(&size) {
        return Err(SaslError::NotSasl);
    }
    let mut body = vec![0; size - 8];
    wire.read_exact(&mut body).await?;
    Ok(body)
}

/// The frame `sasl-init(mechanism = EXTERNAL, initial-response = "")`.
fn sasl_init() -> Vec<u8> {
    let mut list = vec![2, 0xa3, EXTERNAL.len() as u8]; // Two fields; a short symbol.
    list.extend_from_slice(EXTERNAL.as_bytes());
    list.extend_from_slice(&[0xa0, 0]); // Empty bytes: no other identity than the certificate's.
    let mut frame = vec![
        0,
        0,
        0,
        0,
        2,
        1,
        0,
        0,
        0x00,
        0x53,
        0x41,
        0xc0,
        list.len() as u8,
    ];
    frame.extend_from_slice(&list);
    let size = frame.len() as u32;
    frame[..4].copy_from_slice(&size.to_be_bytes());
    frame
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("line", &self.line)
            .finish_non_exhaustive()
    }
}
