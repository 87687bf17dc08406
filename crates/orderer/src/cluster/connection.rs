//! Connections to other orderers: dialled when first needed, shared by all channels, tried again for ever.
//!
//! A [`Connection`] is one destination: an address and the public key that must answer there. While it is down, callers
//! are told so at once; the pause between attempts grows, but stays short, because an orderer that comes back (or whose
//! certificate becomes valid) should not wait for us.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use quorate_identity::mutual_tls::{CertificateFacts, ClientTls, failure_text};
use quorate_runtime::metrics::IntGauge;
use quorate_runtime::{Entropy, Tasks};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::body::Body;
use tonic::codegen::http;

use crate::socket::Ahead;

/// The pause after the first failed attempt.
pub const RECONNECT_MIN: Duration = Duration::from_millis(50);
/// The longest pause between attempts.
pub const RECONNECT_MAX: Duration = Duration::from_secs(1);
/// A connection that ended sooner counts as a failed attempt: in TLS 1.3 a server refuses our certificate only after the
/// client's side of the handshake is done.
const PROVEN_AFTER: Duration = Duration::from_secs(5);
/// How often a silent server is pinged. Fabric's servers disconnect whoever does so more often.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(60);
/// How long its answer may take.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// How long sent bytes may stay unacknowledged before the connection counts as dead: packets to a machine that lost its
/// power are answered by nobody.
const UNACKNOWLEDGED: Duration = Duration::from_secs(15);
/// What one stream may send us before we have read it, in bytes.
const STREAM_WINDOW: u32 = 2 * 1024 * 1024;
/// What all streams of a connection may send us before we have read it, in bytes.
const CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;

pub(crate) const LOG: &str = "orderer.common.cluster";

/// How to reach an orderer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Destination {
    pub(crate) host: String,
    pub(crate) port: u16,
    /// The SubjectPublicKeyInfo that must answer, and perhaps the one that did before; none: any that the roots vouch for.
    pub(crate) public_keys: Vec<Vec<u8>>,
}

impl Destination {
    /// Reads `host:port`.
    pub(crate) fn parse(endpoint: &str) -> Option<Self> {
        let (host, port) = endpoint.rsplit_once(':')?;
        Some(Self {
            host: host.to_owned(),
            port: port.parse().ok()?,
            public_keys: Vec::new(),
        })
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Unconnected(pub(crate) Arc<str>);

/// A connection that is up; cheap to clone. A service for gRPC clients.
#[derive(Clone)]
pub struct Link {
    requests: http2::SendRequest<Body>,
    /// What the server's certificate says; `None` without TLS.
    pub(crate) server: Option<Arc<CertificateFacts>>,
    origin: http::Uri,
}

impl tower::Service<http::Request<Body>> for Link {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = BoxFuture<'static, Result<Self::Response, hyper::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.requests.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        // Clients that know a path only.
        if request.uri().authority().is_none() {
            let mut parts = self.origin.clone().into_parts();
            parts.path_and_query = request.uri().path_and_query().cloned();
            if let Ok(whole) = http::Uri::from_parts(parts) {
                *request.uri_mut() = whole;
            }
        }
        Box::pin(self.requests.send_request(request))
    }
}

impl Link {
    /// Whether the connection has ended.
    pub(crate) fn is_closed(&self) -> bool {
        self.requests.is_closed()
    }

    /// A gRPC client on this connection, with messages of at most `limit` bytes.
    pub(crate) fn grpc(&self, limit: usize) -> tonic::client::Grpc<Self> {
        tonic::client::Grpc::new(self.clone())
            .max_decoding_message_size(limit)
            .max_encoding_message_size(limit)
    }
}

/// The part of a connection that moves its bytes; somebody must await it.
pub(crate) type Driver = BoxFuture<'static, Result<(), Unconnected>>;

/// Spawns what HTTP/2 needs beside the connection itself.
#[derive(Clone)]
struct Spawner(Tasks);

impl<F> hyper::rt::Executor<F> for Spawner
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, future: F) {
        self.0.spawn("request body", future);
    }
}

trait Socket: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Socket for S {}

/// Connects: TCP, TLS, HTTP/2. Dropping the future gives up.
pub(crate) async fn dial(
    destination: &Destination,
    tls: Option<&ClientTls>,
    tasks: &Tasks,
) -> Result<(Link, Driver), Unconnected> {
    let failed = |text: String| Unconnected(text.into());
    let host = destination
        .host
        .trim_start_matches('[')
        .trim_end_matches(']');
    let tcp = TcpStream::connect((host, destination.port))
        .await
        .map_err(|error| failed(format!("dial tcp {destination}: {error}")))?;
    tune(&tcp).map_err(|error| failed(error.to_string()))?;
    let (socket, server): (Box<dyn Socket>, _) = match tls {
        None => (Box::new(tcp), None),
        Some(tls) => {
            let name = ServerName::try_from(host.to_owned())
                .map_err(|error| failed(format!("{host}: {error}")))?;
            let (config, refusal) = tls.begin(&destination.public_keys);
            let stream = TlsConnector::from(config)
                .connect(name, Ahead::new(tcp))
                .await
                .map_err(|error| {
                    failed(format!(
                        "authentication handshake failed: {}",
                        failure_text(&error, &refusal)
                    ))
                })?;
            let facts = stream
                .get_ref()
                .1
                .peer_certificates()
                .and_then(<[_]>::first)
                .and_then(|der| CertificateFacts::read(der).ok())
                .map(Arc::new);
            (Box::new(stream), facts)
        }
    };
    let (requests, connection) = http2::Builder::new(Spawner(tasks.clone()))
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .handshake(TokioIo::new(socket))
        .await
        .map_err(|error| failed(told(&error)))?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    let origin = http::Uri::builder()
        .scheme(scheme)
        .authority(destination.to_string())
        .path_and_query("/")
        .build()
        .map_err(|error| failed(error.to_string()))?;
    let driver = Box::pin(async move { connection.await.map_err(|error| failed(told(&error))) });
    let link = Link {
        requests,
        server,
        origin,
    };
    Ok((link, driver))
}

fn tune(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    let socket = socket2::SockRef::from(tcp);
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
    socket.set_keepalive(true)
}

/// An HTTP/2 error, or the TLS alert beneath it in Go's words.
fn told(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = Some(error);
    while let Some(at) = cause {
        if let Some(error) = at.downcast_ref::<io::Error>() {
            return failure_text(error, &Default::default());
        }
        cause = at.source();
    }
    quorate_runtime::tasks::chain(error)
}

enum State {
    /// Nobody has needed it yet, or it is down until `retry_at`.
    Down {
        retry_at: Option<Instant>,
        reason: Arc<str>,
    },
    Dialling,
    Up(Link),
}

/// What connections share.
pub(crate) struct Dialler {
    pub(crate) tls: Option<ClientTls>,
    pub(crate) dial_timeout: Duration,
    pub(crate) entropy: Entropy,
    pub(crate) tasks: Tasks,
    /// How many connections are up.
    pub(crate) up: IntGauge,
}

/// One destination. When the last owner drops it, it is closed.
pub(crate) struct Connection {
    pub(crate) destination: Destination,
    dialler: Arc<Dialler>,
    shared: Arc<Shared>,
    _closes: DropGuard,
}

struct Shared {
    state: Mutex<State>,
    /// Ticks at each change of the state.
    changed: watch::Sender<()>,
    failures: Mutex<u32>,
    closed: CancellationToken,
}

impl Connection {
    pub(crate) fn new(destination: Destination, dialler: Arc<Dialler>) -> Self {
        let closed = CancellationToken::new();
        Self {
            destination,
            dialler,
            shared: Arc::new(Shared {
                state: Mutex::new(State::Down {
                    retry_at: None,
                    reason: "not connected yet".into(),
                }),
                changed: watch::Sender::new(()),
                failures: Mutex::new(0),
                closed: closed.clone(),
            }),
            _closes: closed.drop_guard(),
        }
    }

    /// Why it is useless to ask for a link just now, if it is.
    pub(crate) fn down(&self) -> Option<Unconnected> {
        match &*self.shared.state() {
            State::Down {
                retry_at: Some(at),
                reason,
            } if *at > Instant::now() => Some(Unconnected(reason.clone())),
            _ => None,
        }
    }

    /// The link, dialling if there is none. Dropping the future does not stop the dialling.
    ///
    /// # Errors
    /// Why there is none, as soon as an attempt fails or if the next one is not due yet.
    pub(crate) async fn link(&self) -> Result<Link, Unconnected> {
        let mut changed = self.shared.changed.subscribe();
        let mut dialled = false;
        loop {
            {
                let mut state = self.shared.state();
                match &*state {
                    State::Up(link) if !link.is_closed() => return Ok(link.clone()),
                    // Its driver is about to notice; waiting for that would find the same.
                    State::Up(_) | State::Dialling => {}
                    State::Down { retry_at, reason } => {
                        if dialled || retry_at.is_some_and(|at| at > Instant::now()) {
                            return Err(Unconnected(reason.clone()));
                        }
                        *state = State::Dialling;
                        self.start();
                    }
                }
            }
            if changed.changed().await.is_err() {
                return Err(Unconnected("closed".into()));
            }
            dialled = true;
        }
    }

    fn start(&self) {
        let destination = self.destination.clone();
        let dialler = self.dialler.clone();
        let shared = self.shared.clone();
        self.dialler.tasks.spawn(
            format!("connection to {destination}"),
            async move {
                let shutdown = dialler.tasks.shutdown().clone();
                let outcome = tokio::select! {
                    biased;
                    () = shutdown.requested() => Err(Unconnected("communication has been shut down".into())),
                    () = shared.closed.cancelled() => return,
                    outcome = run(&destination, &dialler, &shared) => outcome,
                };
                if let Err(reason) = outcome {
                    shared.lost(&dialler, &destination, reason);
                }
            },
        );
    }
}

/// Dials and keeps the connection until it ends; the error says why it ended.
async fn run(
    destination: &Destination,
    dialler: &Dialler,
    shared: &Shared,
) -> Result<(), Unconnected> {
    let dialled = timeout(
        dialler.dial_timeout,
        dial(destination, dialler.tls.as_ref(), &dialler.tasks),
    );
    let (link, mut driver) = match dialled.await {
        Ok(outcome) => outcome?,
        Err(_) => {
            return Err(Unconnected(
                format!("no connection within {:?}", dialler.dial_timeout).into(),
            ));
        }
    };
    tracing::debug!(target: LOG, "Connected to {destination}");
    let _up = Up::new(dialler.up.clone());
    shared.set(State::Up(link));
    let proven = tokio::time::sleep(PROVEN_AFTER);
    let ended = tokio::select! {
        ended = &mut driver => ended,
        () = proven => {
            *shared.failures.lock().unwrap_or_else(PoisonError::into_inner) = 0;
            poll_fn(|cx| driver.as_mut().poll(cx)).await
        }
    };
    Err(match ended {
        Ok(()) => Unconnected("the connection was closed by the other side".into()),
        Err(reason) => reason,
    })
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, state: State) {
        *self.state() = state;
        self.changed.send_replace(());
    }

    fn lost(&self, dialler: &Dialler, destination: &Destination, reason: Unconnected) {
        let failures = {
            let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
            let before = *failures;
            *failures = before.saturating_add(1);
            before
        };
        // Every attempt's failure is one line in Fabric's log; here the first, and then every sixteenth.
        if failures % 16 == 0 {
            tracing::warn!(target: LOG, "Unable to obtain connection to {destination}: {reason}");
        } else {
            tracing::debug!(target: LOG, "Unable to obtain connection to {destination}: {reason}");
        }
        let pause = RECONNECT_MAX.min(RECONNECT_MIN * 2u32.saturating_pow(failures.min(16)));
        self.set(State::Down {
            retry_at: Some(Instant::now() + dialler.entropy.jitter(pause)),
            reason: reason.0,
        });
    }
}

/// Counts a connection while it is up.
struct Up(IntGauge);

impl Up {
    fn new(gauge: IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        self.0.dec();
    }
}
