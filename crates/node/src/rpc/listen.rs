//! Connections for both edges: bounded in number, with TLS if configured, and with patience for
//! neither slow handshakes nor silence. A load balancer's bare TCP probe costs nothing and says
//! nothing in the log.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use quorate_runtime::Tasks;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Sleep, sleep, timeout};

use super::access;

/// Connections served at once on one port; further ones wait in the operating system's backlog.
pub(super) const MAX_CONNECTIONS: usize = 1024;
/// Connections in the TLS handshake at once.
const MAX_HANDSHAKES: usize = 64;
/// Time for the TLS handshake.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(10);
/// Time for the first bytes of the protocol above.
const OPENING_PATIENCE: Duration = Duration::from_secs(10);
/// How many first bytes: HTTP/2's preface and the head of the frame that follows it. From there on
/// HTTP/2's own pings find silent peers.
const OPENING_BYTES: usize = 33;
/// Ready connections that wait for the server to take them.
const READY_QUEUE: usize = 16;
/// The pause after an accept has failed, which means that the process is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where to listen, and whether with TLS.
#[derive(Clone)]
pub struct ListenOptions {
    /// `host:port`; port 0 takes a free one.
    pub address: String,
    /// The server's certificate, and whom it lets in.
    pub tls: Option<Arc<rustls::ServerConfig>>,
}

/// The port cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("the {endpoint} cannot listen on {address}")]
pub struct BindError {
    /// What wanted to listen.
    pub endpoint: &'static str,
    /// Where, as configured.
    pub address: String,
    /// Why not.
    #[source]
    pub source: io::Error,
}

/// An open port.
pub(super) struct Port {
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<tokio_rustls::TlsAcceptor>,
}

impl Port {
    /// Opens the port. `protocols` are what TLS may negotiate above itself.
    pub(super) async fn open(
        endpoint: &'static str,
        options: &ListenOptions,
        protocols: &[&[u8]],
    ) -> Result<Self, BindError> {
        let failed = |source| BindError {
            endpoint,
            address: options.address.clone(),
            source,
        };
        let listener = TcpListener::bind(&options.address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let tls = options.tls.as_ref().map(|config| {
            let mut config = rustls::ServerConfig::clone(config);
            config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
            tokio_rustls::TlsAcceptor::from(Arc::new(config))
        });
        Ok(Self {
            listener,
            address,
            tls,
        })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections that are ready to be served, until the owner stops.
    pub(super) fn connections(self, tasks: &Tasks) -> mpsc::Receiver<Connection> {
        let (ready, connections) = mpsc::channel(READY_QUEUE);
        let owner = tasks.clone();
        // Accepting is waiting: it ends at once when the owner stops.
        tasks.spawn_essential("accept", async move {
            let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
            let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
            let shutdown = owner.shutdown().clone();
            loop {
                let accepted = tokio::select! {
                    () = shutdown.requested() => return,
                    accepted = accept(&self.listener, &places) => accepted,
                };
                match accepted {
                    Ok((stream, peer, place)) => {
                        let admission = Admission {
                            tls: self.tls.clone(),
                            handshakes: handshakes.clone(),
                            ready: ready.clone(),
                        };
                        owner.spawn(
                            format!("handshake with {peer}"),
                            admission.admit(stream, peer, place),
                        );
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a connection could not be accepted");
                        sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        });
        connections
    }
}

async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let place = places
        .clone()
        .acquire_owned()
        .await
        .expect("the semaphore is never closed");
    let (stream, peer) = listener.accept().await?;
    Ok((stream, peer, place))
}

struct Admission {
    tls: Option<tokio_rustls::TlsAcceptor>,
    handshakes: Arc<Semaphore>,
    ready: mpsc::Sender<Connection>,
}

impl Admission {
    async fn admit(self, stream: TcpStream, peer: SocketAddr, place: OwnedSemaphorePermit) {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%peer, %error, "a connection ended before it began");
            return;
        }
        let stream: Box<dyn Wire> = match self.tls {
            None => Box::new(stream),
            Some(acceptor) => {
                let _permit = self.handshakes.acquire().await;
                match timeout(HANDSHAKE_PATIENCE, acceptor.accept(stream)).await {
                    Ok(Ok(stream)) => Box::new(stream),
                    Ok(Err(error)) => {
                        tracing::debug!(%peer, %error, "no TLS");
                        return;
                    }
                    Err(_) => return,
                }
            }
        };
        let connection = Connection {
            stream,
            opening: Some(Opening {
                bytes: 0,
                deadline: Box::pin(sleep(OPENING_PATIENCE)),
            }),
            info: access::Connection::new(peer),
            _place: place,
        };
        // Fails only when the server has stopped.
        let _ = self.ready.send(connection).await;
    }
}

trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// A connection that holds its place among the connections of its port.
pub(super) struct Connection {
    stream: Box<dyn Wire>,
    opening: Option<Opening>,
    info: access::Connection,
    _place: OwnedSemaphorePermit,
}

/// While a peer has not yet said anything sensible.
struct Opening {
    bytes: usize,
    deadline: Pin<Box<Sleep>>,
}

impl Connection {
    pub(super) fn info(&self) -> &access::Connection {
        &self.info
    }
}

impl tonic::transport::server::Connected for Connection {
    type ConnectInfo = access::Connection;

    fn connect_info(&self) -> access::Connection {
        self.info.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(context, buffer);
        if let Some(opening) = &mut this.opening {
            opening.bytes += buffer.filled().len() - before;
            if opening.bytes >= OPENING_BYTES {
                this.opening = None;
            } else if read.is_pending() && opening.deadline.as_mut().poll(context).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
