//! A small HTTP/1.1 server for endpoints that we offer ourselves: bounded in connections, bounded in patience, and its
//! tasks have an owner.
//!
//! What is served is an [`axum::Router`] of the caller's. Load balancers probe these ports with bare TCP connections;
//! such a connection ends without a word in the log.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::Tasks;

/// Connections served at once; further ones wait in the operating system's backlog.
pub const MAX_CONNECTIONS: usize = 256;

/// How long a client may take to send the head of a request, the first one or the next one on the same connection.
pub const HEADER_PATIENCE: Duration = Duration::from_secs(10);

/// The pause after an accept has failed, which means that the process is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The port cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("the {endpoint} cannot listen on {address}")]
pub struct BindError {
    /// What wanted to listen, such as `operations endpoint`.
    pub endpoint: String,
    /// Where, as configured.
    pub address: String,
    /// Why not.
    #[source]
    pub source: io::Error,
}

/// A port that is open but not yet served.
pub struct Server {
    endpoint: String,
    listener: TcpListener,
    address: SocketAddr,
}

impl Server {
    /// Opens `address` (`host:port`; port 0 takes a free one) for what log lines call `endpoint`.
    ///
    /// # Errors
    /// The address cannot be resolved or is taken.
    pub async fn bind(endpoint: &str, address: &str) -> Result<Self, BindError> {
        let failed = |source| BindError {
            endpoint: endpoint.to_owned(),
            address: address.to_owned(),
            source,
        };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let local = listener.local_addr().map_err(failed)?;
        Ok(Self {
            endpoint: endpoint.to_owned(),
            listener,
            address: local,
        })
    }

    /// The address that was opened, with the real port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves `router` until the owner stops. A request that is under way then is finished; an idle connection is
    /// closed.
    pub fn serve(self, tasks: &Tasks, router: Router) {
        let owner = tasks.child(&self.endpoint);
        let connections = owner.clone();
        owner.spawn_essential("accept", async move {
            let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
            let shutdown = connections.shutdown().clone();
            loop {
                let accepted = tokio::select! {
                    () = shutdown.requested() => return,
                    accepted = accept(&self.listener, &permits) => accepted,
                };
                match accepted {
                    Ok((stream, peer, permit)) => {
                        let (router, stopping) = (router.clone(), shutdown.clone());
                        connections.spawn(format!("connection from {peer}"), async move {
                            let _permit = permit;
                            serve_connection(stream, router, stopping).await;
                        });
                    }
                    Err(error) => {
                        tracing::warn!(endpoint = %self.endpoint, %error, "a connection could not be accepted");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        });
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("endpoint", &self.endpoint)
            .field("address", &self.address)
            .finish()
    }
}

async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> io::Result<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    let permit = permits
        .clone()
        .acquire_owned()
        .await
        .expect("the semaphore is never closed");
    let (stream, peer) = listener.accept().await?;
    Ok((stream, peer, permit))
}

async fn serve_connection(stream: TcpStream, router: Router, shutdown: crate::Shutdown) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_PATIENCE)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.requested() => {
            connection.as_mut().graceful_shutdown();
            connection.as_mut().await
        }
    };
    if let Err(error) = ended {
        // Probes and vanished clients: their business, not ours.
        tracing::debug!(%error, "a connection ended early");
    }
}
