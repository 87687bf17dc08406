//! Accepts connections: TCP, TLS, the peer's name; then `inbound` takes over.
//!
//! Strangers reach this code. A connection costs a task and a socket until its certificate is verified, there is a cap
//! on how many there are, and each has little time. Load balancers connect and leave without a word every few
//! seconds; that is not worth a line above debug level.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quorate_identity::X500Name;
use quorate_runtime::{Shutdown, Tasks};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::dial::tune;
use crate::inbound;
use crate::security::name_of;
use crate::service::{Shared, lock};

/// Pause after the operating system would not give us a connection: it is out of file descriptors or memory, and
/// asking again at once would not help.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Accepts until stopping is requested. Each connection is a task of its own.
pub(crate) async fn run(shared: Arc<Shared>, listener: TcpListener, tasks: Tasks) {
    let shutdown = tasks.shutdown().clone();
    let acceptor = TlsAcceptor::from(shared.security.server.clone());
    let pending = Arc::new(Pending::default());
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.requested() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((tcp, from)) => {
                let entry = Pending::admit(&pending, &shared);
                let incoming = Incoming {
                    shared: shared.clone(),
                    from,
                    shutdown: shutdown.clone(),
                };
                tasks.spawn(
                    format!("connection from {from}"),
                    incoming.run(acceptor.clone(), tcp, entry),
                );
            }
            Err(error) if is_the_peers(&error) => {
                tracing::debug!("a connection was gone before it was accepted: {error}")
            }
            Err(error) => {
                tracing::warn!(
                    "cannot accept connections from peers: {error}; is the limit of open files too low?"
                );
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

struct Incoming {
    shared: Arc<Shared>,
    from: SocketAddr,
    shutdown: Shutdown,
}

impl Incoming {
    async fn run(self, acceptor: TlsAcceptor, tcp: TcpStream, entry: Entry) {
        let from = self.from;
        let handshake = timeout(
            self.shared.options.handshake_timeout,
            handshake(&acceptor, tcp),
        );
        let outcome = tokio::select! {
            biased;
            () = self.shutdown.requested() => return,
            () = entry.evicted.cancelled() => {
                tracing::debug!(%from, "dropped: it was the oldest of too many unfinished handshakes");
                return;
            }
            outcome = handshake => outcome,
        };
        drop(entry);
        let (tls, name) = match outcome {
            Ok(Ok(authenticated)) => authenticated,
            Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
                tracing::info!(%from, "refused a connection: {error}");
                return;
            }
            Ok(Err(error)) => {
                tracing::debug!(%from, "a connection ended before its TLS handshake did: {error}");
                return;
            }
            Err(_) => {
                tracing::debug!(%from, "a connection has not finished its TLS handshake in time");
                return;
            }
        };
        let connections = &self.shared.inbound_connections;
        if connections.fetch_add(1, Ordering::AcqRel) < self.shared.options.max_connections {
            inbound::serve(&self.shared, &self.shutdown, tls, name, from).await;
        } else {
            tracing::warn!(%from, peer = %name, "refused a connection: there are too many");
        }
        connections.fetch_sub(1, Ordering::AcqRel);
    }
}

/// TLS, and the name of whoever is at the other end.
async fn handshake(
    acceptor: &TlsAcceptor,
    tcp: TcpStream,
) -> io::Result<(TlsStream<TcpStream>, X500Name)> {
    tune(&tcp)?;
    let tls = acceptor.accept(tcp).await?;
    let name = name_of(tls.get_ref().1.peer_certificates())
        .map_err(|reason| io::Error::new(io::ErrorKind::InvalidData, reason))?;
    Ok((tls, name))
}

/// Connections whose handshake is not finished, oldest first.
#[derive(Default)]
struct Pending {
    entries: Mutex<(u64, BTreeMap<u64, CancellationToken>)>,
}

/// A place among the pending; given back when dropped.
struct Entry {
    id: u64,
    evicted: CancellationToken,
    pending: Arc<Pending>,
    shared: Arc<Shared>,
}

impl Pending {
    fn admit(pending: &Arc<Self>, shared: &Arc<Shared>) -> Entry {
        let evicted = CancellationToken::new();
        let mut entries = lock(&pending.entries);
        if entries.1.len() >= shared.options.max_pending_handshakes
            && let Some((_, oldest)) = entries.1.pop_first()
        {
            oldest.cancel();
        }
        let id = entries.0;
        entries.0 += 1;
        entries.1.insert(id, evicted.clone());
        shared
            .pending_handshakes
            .store(entries.1.len(), Ordering::Relaxed);
        Entry {
            id,
            evicted,
            pending: pending.clone(),
            shared: shared.clone(),
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut entries = lock(&self.pending.entries);
        entries.1.remove(&self.id);
        self.shared
            .pending_handshakes
            .store(entries.1.len(), Ordering::Relaxed);
    }
}
