//! Accepts connections for gRPC services: TCP, TLS, the peer's certificate.
//!
//! Strangers reach this code. Until its handshake is done a connection costs a task and a socket; there is a cap on how
//! many such there are (the oldest gives way) and each has little time. Load balancers connect and leave without a word
//! every few seconds: that is not worth a line above debug level. Services find who is at the other end as a [`Peer`]
//! among the request's extensions.
//!
//! An orderer has one listener for everything, or a second one for the cluster service alone: each is a [`Listener`].

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quorate_fabric::config::duration::GoDuration;
use quorate_identity::mutual_tls::{CertificateFacts, ServerTls, failure_text};
use quorate_runtime::Tasks;
use quorate_runtime::metrics::IntCounter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::Connected;

use crate::metrics::Grpc;
use crate::socket::Ahead;

/// Connections of one listener, at most.
pub const MAX_CONNECTIONS: usize = 16_384;
/// Connections of one listener whose handshake is not done, at most.
pub const MAX_PENDING_HANDSHAKES: usize = 512;
/// Streams of one connection, at most. Orderers open two for each channel that they share.
pub const MAX_STREAMS: u32 = 16_384;
/// What one stream may send before we have read it, in bytes.
pub const STREAM_WINDOW: u32 = 1024 * 1024;
/// What all streams of one connection may send before we have read it, in bytes.
pub const CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;
/// How long open calls may go on after stopping was requested.
pub const DRAIN: Duration = Duration::from_secs(1);
/// Accepted connections waiting to be served.
const ACCEPTED_QUEUE: usize = 64;
/// Pause after the operating system would not give us a connection: it is out of file descriptors or memory, and asking
/// again at once would not help.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Where the log lines about handshakes belong, by Fabric's names.
const LOG: &str = "core.comm";

/// Settings of one listener.
#[derive(Clone)]
pub struct ListenerOptions {
    /// How the log calls the server: `Orderer` in Fabric, for both listeners.
    pub server: String,
    /// TLS; `None`: plain TCP.
    pub tls: Option<ServerTls>,
    /// How long a handshake may take.
    pub handshake_timeout: Duration,
    /// How often an idle client is pinged; `None`: never.
    pub keepalive_interval: Option<Duration>,
    /// How long its answer may take.
    pub keepalive_timeout: Duration,
    /// See [`MAX_CONNECTIONS`].
    pub max_connections: usize,
    /// See [`MAX_PENDING_HANDSHAKES`].
    pub max_pending_handshakes: usize,
    /// See [`MAX_STREAMS`].
    pub max_streams: u32,
}

impl Default for ListenerOptions {
    fn default() -> Self {
        Self {
            server: "Orderer".to_owned(),
            tls: None,
            handshake_timeout: Duration::from_secs(5),
            keepalive_interval: Some(Duration::from_secs(2 * 60 * 60)),
            keepalive_timeout: Duration::from_secs(20),
            max_connections: MAX_CONNECTIONS,
            max_pending_handshakes: MAX_PENDING_HANDSHAKES,
            max_streams: MAX_STREAMS,
        }
    }
}

/// Who is at the other end of a connection; an extension of every request.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its address.
    pub address: SocketAddr,
    /// The certificate that it showed.
    pub certificate: Option<Arc<PeerCertificate>>,
}

/// A client's certificate. It owns the key; whether its issuer was verified depends on the listener's TLS.
#[derive(Debug)]
pub struct PeerCertificate {
    /// The DER form.
    pub der: Bytes,
    /// What it says.
    pub facts: CertificateFacts,
}

/// The listener's address could not be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}; is the port taken, or the address not ours?")]
pub struct ListenError {
    /// The address.
    pub address: String,
    /// What the operating system said.
    #[source]
    pub source: io::Error,
}

/// A bound socket that does not answer yet.
pub struct Listener {
    socket: TcpListener,
    options: ListenerOptions,
}

impl Listener {
    /// Binds `host:port`. Connections queue from now on.
    ///
    /// # Errors
    /// [`ListenError`] if that is not possible.
    pub async fn bind(address: &str, options: ListenerOptions) -> Result<Self, ListenError> {
        match TcpListener::bind(address).await {
            Ok(socket) => Ok(Self { socket, options }),
            Err(source) => Err(ListenError {
                address: address.to_owned(),
                source,
            }),
        }
    }

    /// Where it is bound; the port is the real one even if 0 was asked for.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Serves until `tasks` are asked to stop; then open calls have [`DRAIN`] to end.
    pub fn serve(self, routes: Routes, metrics: &Grpc, tasks: &Tasks) {
        let (accepted, incoming) = mpsc::channel(ACCEPTED_QUEUE);
        let cut = CancellationToken::new();
        let name = self
            .local_address()
            .map_or_else(|_| "listener".to_owned(), |address| address.to_string());
        let mut server = Server::builder()
            .max_concurrent_streams(self.options.max_streams)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .http2_keepalive_interval(self.options.keepalive_interval)
            .http2_keepalive_timeout(Some(self.options.keepalive_timeout));
        let door = Arc::new(Door {
            options: self.options,
            accepted,
            cut: cut.clone(),
            connections: Arc::default(),
            pending: Mutex::default(),
            opened: metrics.conn_opened.clone(),
            closed: metrics.conn_closed.clone(),
        });
        tasks.spawn(
            format!("accept on {name}"),
            accept(self.socket, door, tasks.clone()),
        );
        let shutdown = tasks.shutdown().clone();
        tasks.spawn(format!("serve on {name}"), async move {
            let asked = shutdown.clone();
            let serving = server.add_routes(routes).serve_with_incoming_shutdown(
                ReceiverStream::new(incoming),
                async move {
                    asked.requested().await;
                },
            );
            let patience = async {
                shutdown.requested().await;
                sleep(DRAIN).await;
            };
            let outcome = tokio::select! {
                outcome = serving => outcome,
                () = patience => Ok(()),
            };
            // Streams without an end of their own (Deliver, Step) end with their connections.
            cut.cancel();
            outcome
        });
    }
}

/// What accepting shares.
struct Door {
    options: ListenerOptions,
    accepted: mpsc::Sender<io::Result<Connection>>,
    cut: CancellationToken,
    connections: Arc<AtomicUsize>,
    pending: Mutex<(u64, BTreeMap<u64, CancellationToken>)>,
    opened: IntCounter,
    closed: IntCounter,
}

async fn accept(socket: TcpListener, door: Arc<Door>, tasks: Tasks) {
    let shutdown = tasks.shutdown().clone();
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.requested() => return,
            accepted = socket.accept() => accepted,
        };
        match accepted {
            Ok((tcp, from)) => {
                let (ticket, evicted) = door.admit();
                let door = door.clone();
                let stopped = shutdown.clone();
                tasks.spawn(format!("handshake with {from}"), async move {
                    tokio::select! {
                        biased;
                        () = stopped.requested() => {}
                        () = evicted.cancelled() => {
                            tracing::debug!(target: LOG, remoteaddress = %from, "dropped: it was the oldest of too many unfinished handshakes");
                        }
                        () = door.enter(tcp, from) => {}
                    }
                    door.forget(ticket);
                });
            }
            Err(error) if is_the_peers(&error) => {
                tracing::debug!(target: LOG, "a connection was gone before it was accepted: {error}");
            }
            Err(error) => {
                tracing::warn!(target: LOG, "cannot accept connections: {error}; is the limit of open files too low?");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn is_the_peers(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset
    )
}

impl Door {
    /// A place among the pending, taken from the oldest if need be.
    fn admit(&self) -> (u64, CancellationToken) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        if pending.1.len() >= self.options.max_pending_handshakes
            && let Some((_, oldest)) = pending.1.pop_first()
        {
            oldest.cancel();
        }
        let ticket = pending.0;
        pending.0 += 1;
        let evicted = CancellationToken::new();
        pending.1.insert(ticket, evicted.clone());
        (ticket, evicted)
    }

    fn forget(&self, ticket: u64) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending.1.remove(&ticket);
    }

    /// Handshake, then hand over. Dropping it halfway closes the connection.
    async fn enter(&self, tcp: TcpStream, from: SocketAddr) {
        let connection = match timeout(self.options.handshake_timeout, self.handshake(tcp, from))
            .await
        {
            Ok(Some(connection)) => connection,
            Ok(None) => return,
            Err(_) => {
                tracing::debug!(target: LOG, remoteaddress = %from, "a connection has not finished its handshake in time");
                return;
            }
        };
        // Nobody serves any more when this fails: the connection is closed with it.
        let _ = self.accepted.send(Ok(connection)).await;
    }

    async fn handshake(&self, tcp: TcpStream, address: SocketAddr) -> Option<Connection> {
        if tcp.set_nodelay(true).is_err() {
            return None;
        }
        let Some(tls) = &self.options.tls else {
            return self.connection(Link::Plain(tcp), Peer::plain(address));
        };
        // Probes of load balancers say nothing: they are no failed handshakes.
        match tcp.peek(&mut [0]).await {
            Ok(0) | Err(_) => {
                tracing::debug!(target: LOG, remoteaddress = %address, "a connection ended without a word");
                return None;
            }
            Ok(_) => {}
        }
        let started = Instant::now();
        let (config, refusal) = tls.begin();
        match TlsAcceptor::from(config).accept(Ahead::new(tcp)).await {
            Ok(stream) => {
                let peer = Peer::of(address, stream.get_ref().1.peer_certificates());
                tracing::debug!(target: LOG, server = %self.options.server, remoteaddress = %address, "Server TLS handshake completed in {}", go_duration(started.elapsed()));
                self.connection(Link::Tls(Box::new(stream)), peer)
            }
            Err(error) => {
                tracing::error!(
                    target: LOG,
                    server = %self.options.server,
                    remoteaddress = %address,
                    "Server TLS handshake failed in {} with error {}",
                    go_duration(started.elapsed()),
                    failure_text(&error, &refusal)
                );
                None
            }
        }
    }

    fn connection(&self, link: Link, peer: Peer) -> Option<Connection> {
        let place = Place {
            connections: self.connections.clone(),
            closed: self.closed.clone(),
        };
        self.opened.inc();
        if self.connections.fetch_add(1, Ordering::AcqRel) >= self.options.max_connections {
            tracing::warn!(target: LOG, remoteaddress = %peer.address, "refused a connection: there are {} already", self.options.max_connections);
            return None;
        }
        Some(Connection {
            link,
            peer,
            cut: Box::pin(self.cut.clone().cancelled_owned()),
            _place: place,
        })
    }
}

impl Peer {
    fn plain(address: SocketAddr) -> Self {
        Self {
            address,
            certificate: None,
        }
    }

    fn of(
        address: SocketAddr,
        shown: Option<&[rustls_pki_types::CertificateDer<'static>]>,
    ) -> Self {
        let certificate = shown
            .and_then(<[_]>::first)
            .and_then(|der| {
                // The handshake has read it already.
                let facts = CertificateFacts::read(der).ok()?;
                Some(PeerCertificate {
                    der: Bytes::copy_from_slice(der),
                    facts,
                })
            })
            .map(Arc::new);
        Self {
            address,
            certificate,
        }
    }
}

/// One of the connections that may be open at the same time.
struct Place {
    connections: Arc<AtomicUsize>,
    closed: IntCounter,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.fetch_sub(1, Ordering::AcqRel);
        self.closed.inc();
    }
}

enum Link {
    Plain(TcpStream),
    Tls(Box<tokio_rustls::server::TlsStream<Ahead>>),
}

/// An accepted connection. Reading from it ends when the listener stops.
struct Connection {
    link: Link,
    peer: Peer,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    _place: Place,
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        match &mut self.link {
            Link::Plain(tcp) => Pin::new(tcp).poll_read(cx, buffer),
            Link::Tls(tls) => Pin::new(tls).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.link {
            Link::Plain(tcp) => Pin::new(tcp).poll_write(cx, bytes),
            Link::Tls(tls) => Pin::new(tls).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.link {
            Link::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Link::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.link {
            Link::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Link::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}

/// A duration as Go prints it.
pub(crate) fn go_duration(duration: Duration) -> GoDuration {
    GoDuration(i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX))
}
