//! The small HTTP/1.1 server behind the operations and the admin endpoint: with TLS or without, bounded in connections
//! and patience, its tasks owned.
//!
//! What is served is a router of the caller's. It finds a [`Caller`] among the extensions of every request.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::response::{IntoResponse, Response};
use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper::{StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use quorate_identity::mutual_tls::{ServerTls, failure_text};
use quorate_runtime::http::BindError;
use quorate_runtime::{Entropy, Shutdown, Tasks};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

/// Connections served at once; further ones wait in the operating system's backlog.
pub const MAX_CONNECTIONS: usize = 256;

/// How long a handshake, and the head of a request, may take.
pub const HEAD_PATIENCE: Duration = Duration::from_secs(10);

/// How long the body of a request may take.
pub const BODY_PATIENCE: Duration = Duration::from_secs(30);

/// How long requests under way may go on after stopping was requested.
const DRAIN: Duration = Duration::from_secs(5);

/// The pause after an accept has failed, which means that the process is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What Go's server says to plain HTTP on a TLS port.
const PLAIN_ON_TLS: &[u8] =
    b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n";

/// How a request came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// Without TLS.
    Plain,
    /// By TLS.
    Tls {
        /// Whether the client has shown a certificate, which has then been verified.
        certificate: bool,
    },
}

/// A port that is open but not yet served.
#[derive(Debug)]
pub struct Endpoint {
    name: &'static str,
    listener: TcpListener,
    address: SocketAddr,
}

impl Endpoint {
    /// Opens `address` (`host:port`; port 0 takes a free one, an empty host means all addresses) for what log lines call
    /// `name`.
    ///
    /// # Errors
    /// The address cannot be resolved or is taken.
    pub async fn bind(name: &'static str, address: &str) -> Result<Self, BindError> {
        let failed = |source| BindError {
            endpoint: name.to_owned(),
            address: address.to_owned(),
            source,
        };
        let listener = if address.starts_with(':') {
            match TcpListener::bind(format!("[::]{address}")).await {
                Ok(listener) => Ok(listener),
                // A machine without IPv6.
                Err(_) => TcpListener::bind(format!("0.0.0.0{address}")).await,
            }
        } else {
            TcpListener::bind(address).await
        }
        .map_err(failed)?;
        let local = listener.local_addr().map_err(failed)?;
        Ok(Self {
            name,
            listener,
            address: local,
        })
    }

    /// The address that was opened, with the real port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves `router` until `tasks` stop. Requests under way then are finished, within a bound.
    pub fn serve(self, tasks: &Tasks, tls: Option<ServerTls>, router: Router) {
        let owner = tasks.child(self.name);
        let connections = owner.clone();
        owner.spawn_essential("accept", async move {
            let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
            let shutdown = connections.shutdown().clone();
            let tls = tls.map(Arc::new);
            loop {
                let permit = permits
                    .clone()
                    .acquire_owned()
                    .await
                    .expect("the semaphore is never closed");
                let accepted = tokio::select! {
                    () = shutdown.requested() => return,
                    accepted = self.listener.accept() => accepted,
                };
                match accepted {
                    Ok((stream, peer)) => {
                        let (router, tls, stopping) =
                            (router.clone(), tls.clone(), shutdown.clone());
                        connections.spawn(format!("connection from {peer}"), async move {
                            let _permit = permit;
                            let ended = match tls {
                                None => serve(stream, Caller::Plain, router, stopping).await,
                                Some(tls) => serve_tls(stream, &tls, router, stopping).await,
                            };
                            if let Err(reason) = ended {
                                // Probes and vanished clients: their business, not ours.
                                tracing::debug!(target: "orderer.operations", %peer, reason, "a connection ended early");
                            }
                        });
                    }
                    Err(error) => {
                        tracing::warn!(target: "orderer.operations", endpoint = self.name, %error, "a connection could not be accepted");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        });
    }
}

async fn serve_tls(
    mut stream: TcpStream,
    tls: &ServerTls,
    router: Router,
    shutdown: Shutdown,
) -> Result<(), String> {
    let late = |_| "it was silent".to_owned();
    let mut first = [0];
    let peeked = timeout(HEAD_PATIENCE, stream.peek(&mut first)).await;
    let length = peeked.map_err(late)?.map_err(|error| error.to_string())?;
    if length > 0 && first[0].is_ascii_uppercase() {
        return timeout(HEAD_PATIENCE, refuse_plain(&mut stream))
            .await
            .map_err(late)?
            .map_err(|error| error.to_string());
    }
    let (config, refusal) = tls.begin();
    let accepting = TlsAcceptor::from(config).accept(stream);
    let stream = timeout(HEAD_PATIENCE, accepting)
        .await
        .map_err(late)?
        .map_err(|error| failure_text(&error, &refusal))?;
    let certificate = stream
        .get_ref()
        .1
        .peer_certificates()
        .is_some_and(|certificates| !certificates.is_empty());
    serve(stream, Caller::Tls { certificate }, router, shutdown).await
}

async fn refuse_plain(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(PLAIN_ON_TLS).await?;
    stream.shutdown().await?;
    // What the client has sent is read, or closing would tell it that the connection was reset before it reads ours.
    let mut ignored = [0; 4096];
    for _ in 0..16 {
        if stream.read(&mut ignored).await? == 0 {
            break;
        }
    }
    Ok(())
}

async fn serve<S>(
    stream: S,
    caller: Caller,
    router: Router,
    shutdown: Shutdown,
) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = TowerToHyperService::new(router.layer(Extension(caller)));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.requested() => {
            connection.as_mut().graceful_shutdown();
            match timeout(DRAIN, connection.as_mut()).await {
                Ok(ended) => ended,
                Err(_) => return Err("it did not end when we did".to_owned()),
            }
        }
    };
    ended.map_err(|error| error.to_string())
}

/// The header that Fabric gives to every request.
pub(crate) const REQUEST_ID: &str = "x-request-id";

/// A fresh value for [`REQUEST_ID`]: a random UUID.
pub(crate) fn request_id(entropy: &Entropy) -> String {
    let mut bytes: [u8; 16] = entropy.bytes();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let digits = hex::encode(bytes);
    format!(
        "{}-{}-{}-{}-{}",
        &digits[..8],
        &digits[8..12],
        &digits[12..16],
        &digits[16..20],
        &digits[20..]
    )
}

/// JSON as Go's encoder writes it: without spaces, and with what HTML would take for its own escaped.
pub(crate) fn go_json(value: &impl Serialize) -> String {
    let plain = serde_json::to_string(value).expect("plain data with text keys becomes JSON");
    let mut escaped = String::with_capacity(plain.len());
    for character in plain.chars() {
        match character {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                escaped.push_str(&format!("\\u{:04x}", u32::from(character)));
            }
            other => escaped.push(other),
        }
    }
    escaped
}

/// An answer of JSON.
pub(crate) fn json_answer(status: StatusCode, body: String) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// `{"error": …}` with a line end, as most of Fabric's handlers answer.
pub(crate) fn json_error(status: StatusCode, error: impl std::fmt::Display) -> Response {
    #[derive(Serialize)]
    struct Body {
        error: String,
    }
    let error = error.to_string();
    json_answer(status, go_json(&Body { error }) + "\n")
}

/// Go's answer for paths that nobody serves.
pub(crate) fn not_found() -> Response {
    (
        StatusCode::NOT_FOUND,
        [
            (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        ],
        "404 page not found\n",
    )
        .into_response()
}

/// Reads a body of at most `max` bytes, in bounded time.
pub(crate) async fn read_body(
    body: axum::body::Body,
    max: usize,
) -> Result<bytes::Bytes, BodyError> {
    use futures::StreamExt as _;
    let reading = async {
        let mut stream = body.into_data_stream();
        let mut read = Vec::new();
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|_| BodyError::Broken)?;
            if read.len() + chunk.len() > max {
                return Err(BodyError::TooLarge);
            }
            read.extend_from_slice(&chunk);
        }
        Ok(read.into())
    };
    timeout(BODY_PATIENCE, reading)
        .await
        .unwrap_or(Err(BodyError::Broken))
}

/// Why there is no body; the texts are Go's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("http: request body too large")]
    TooLarge,
    #[error("unexpected EOF")]
    Broken,
}
