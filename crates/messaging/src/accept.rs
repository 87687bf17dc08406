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

/// Accepts peers until stopping is requested.
pub(crate) async fn run(shared: Arc<Shared>, listener: TcpListener, tasks: Tasks) {
    let acceptor = TlsAcceptor::from(shared.security.server.clone());
    let (pending, shutdown) = (shared.pending.clone(), tasks.shutdown().clone());
    each(listener, &pending, &tasks, |tcp, from, entry| {
        let incoming = Incoming {
            shared: shared.clone(),
            from,
            shutdown: shutdown.clone(),
        };
        incoming.run(acceptor.clone(), tcp, entry)
    })
    .await;
}

/// Has `serve` called for every connection until stopping is requested; each is a task of its own.
pub(crate) async fn each<F>(
    listener: TcpListener,
    pending: &Arc<Pending>,
    tasks: &Tasks,
    serve: impl Fn(TcpStream, SocketAddr, Entry) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let shutdown = tasks.shutdown().clone();
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.requested() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((tcp, from)) => {
                let entry = Pending::admit(pending);
                tasks.spawn(format!("connection from {from}"), serve(tcp, from, entry));
            }
            Err(error) if is_the_peers(&error) => {
                tracing::debug!("a connection was gone before it was accepted: {error}")
            }
            Err(error) => {
                tracing::warn!(
                    "cannot accept connections: {error}; is the limit of open files too low?"
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
        let limit = self.shared.options.handshake_timeout;
        let shaken = handshake(&acceptor, tcp);
        let Some((tls, name)) = entry.admit(shaken, limit, from, &self.shutdown).await else {
            return;
        };
        serve(&self.shared, &self.shutdown, tls.into(), name, from).await;
    }
}

/// Has a peer served that has proved who it is.
pub(crate) async fn serve(
    shared: &Arc<Shared>,
    shutdown: &Shutdown,
    tls: tokio_rustls::TlsStream<TcpStream>,
    name: X500Name,
    from: SocketAddr,
) {
    let connections = &shared.inbound_connections;
    if connections.fetch_add(1, Ordering::AcqRel) < shared.options.max_connections {
        inbound::serve(shared, shutdown, tls, name, from).await;
    } else {
        tracing::warn!(%from, peer = %name, "refused a connection: there are too many");
    }
    connections.fetch_sub(1, Ordering::AcqRel);
}

/// TLS, and the name of whoever is at the other end.
pub(crate) async fn handshake(
    acceptor: &TlsAcceptor,
    tcp: TcpStream,
) -> io::Result<(TlsStream<TcpStream>, X500Name)> {
    tune(&tcp)?;
    let tls = acceptor.accept(tcp).await?;
    let name = name_of(tls.get_ref().1.peer_certificates())
        .map_err(|reason| io::Error::new(io::ErrorKind::InvalidData, reason))?;
    Ok((tls, name))
}

/// Connections whose handshake is not finished, oldest first. When one more arrives than there may be, the oldest goes.
#[derive(Debug)]
pub(crate) struct Pending {
    most: usize,
    entries: Mutex<(u64, BTreeMap<u64, CancellationToken>)>,
}

/// A place among the pending; given back when dropped.
pub(crate) struct Entry {
    id: u64,
    /// There is no place for this one any more.
    evicted: CancellationToken,
    pending: Arc<Pending>,
}

impl Pending {
    /// Room for `most`, at least one.
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            most: most.max(1),
            entries: Mutex::default(),
        })
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        lock(&self.entries).1.len()
    }

    fn admit(pending: &Arc<Self>) -> Entry {
        let evicted = CancellationToken::new();
        let mut entries = lock(&pending.entries);
        if entries.1.len() >= pending.most
            && let Some((_, oldest)) = entries.1.pop_first()
        {
            oldest.cancel();
        }
        let id = entries.0;
        entries.0 += 1;
        entries.1.insert(id, evicted.clone());
        Entry {
            id,
            evicted,
            pending: pending.clone(),
        }
    }
}

impl Entry {
    /// Waits for the handshake of a connection, for a while and as long as there is a place for it. `None` if it has
    /// come to nothing; the log knows why.
    pub(crate) async fn admit<T>(
        self,
        handshake: impl Future<Output = io::Result<T>>,
        limit: Duration,
        from: SocketAddr,
        shutdown: &Shutdown,
    ) -> Option<T> {
        let outcome = tokio::select! {
            biased;
            () = shutdown.requested() => return None,
            () = self.evicted.cancelled() => {
                tracing::debug!(%from, "dropped: it was the oldest of too many unfinished handshakes");
                return None;
            }
            outcome = timeout(limit, handshake) => outcome,
        };
        match outcome {
            Ok(Ok(shaken)) => return Some(shaken),
            Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
                tracing::info!(%from, "refused a connection: {error}");
            }
            Ok(Err(error)) => {
                tracing::debug!(%from, "a connection ended before its TLS handshake did: {error}");
            }
            Err(_) => {
                tracing::debug!(%from, "a connection has not finished its TLS handshake in time");
            }
        }
        None
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        lock(&self.pending.entries).1.remove(&self.id);
    }
}
