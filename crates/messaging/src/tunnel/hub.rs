//! The listening side of the tunnel: a float's towards its bridges, and a node's.
//!
//! Bridges come and go; each has a link here as long as its control connection lives. What the link has ready is used up
//! in the order in which it came, and the links take turns.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use futures::future::BoxFuture;
use quorate_identity::{SecureHash, X500Name};
use quorate_runtime::Shutdown;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use super::control::{Control, Office, Signatory};
use super::frame::{
    Answer, Arrival, FrameError, Greeting, Opening, Purpose, Service, Session, plain, read_frame,
    write_frame,
};
use super::{STEP_TIMEOUT, Stream};
use crate::service::lock;

/// Bridges that may be linked at a time.
const MAX_LINKS: usize = 32;
/// Spare connections that are kept of one bridge.
const MAX_SPARES: usize = 64;

/// The links of all bridges. `S` is what their connections are.
pub(crate) struct Hub<S> {
    links: Mutex<Links<S>>,
    /// A spare connection has come, or a link.
    ready: Notify,
    services: watch::Sender<Vec<Service>>,
    /// What this side serves itself.
    own: Vec<Service>,
    signatory: Arc<dyn Signatory>,
}

struct Links<S> {
    of: BTreeMap<Session, Link<S>>,
    turn: usize,
}

struct Link<S> {
    name: X500Name,
    from: String,
    control: Arc<Control>,
    services: Vec<Service>,
    spares: VecDeque<S>,
}

/// Why nothing could be opened through the tunnel.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("no bridge is connected that could do it")]
    NoBridge,
    #[error("the bridges have no connection to spare")]
    NoSpare,
    #[error("the bridge has not answered in time")]
    Late,
    #[error("{0}")]
    Refused(String),
}

impl<S: Stream> Hub<S> {
    /// A hub that announces `own` to bridges and signs for them with `signatory`.
    pub(crate) fn new(own: Vec<Service>, signatory: Arc<dyn Signatory>) -> Arc<Self> {
        Arc::new(Self {
            links: Mutex::new(Links {
                of: BTreeMap::new(),
                turn: 0,
            }),
            ready: Notify::new(),
            services: watch::Sender::default(),
            own,
            signatory,
        })
    }

    /// All identities that are served behind the bridges.
    pub(crate) fn services(&self) -> watch::Receiver<Vec<Service>> {
        self.services.subscribe()
    }

    /// How many bridges are linked.
    pub(crate) fn count(&self) -> usize {
        lock(&self.links).of.len()
    }

    /// Serves a connection of an authenticated bridge: to its end, if it is a control connection. An arrival is given
    /// back, for the caller to [answer](Answer).
    pub(crate) async fn receive(
        self: &Arc<Self>,
        mut stream: S,
        name: &X500Name,
        from: &str,
        shutdown: &Shutdown,
    ) -> Option<(Arrival, S)> {
        let purpose = match timeout(STEP_TIMEOUT, Greeting::read(&mut stream)).await {
            Ok(Ok(purpose)) => purpose,
            Ok(Err(FrameError::Closed)) => return None,
            Ok(Err(error)) => {
                tracing::warn!(bridge = %name, from, "a connection of the tunnel is refused: {error}");
                return None;
            }
            Err(_) => {
                tracing::debug!(bridge = %name, from, "a connection of the tunnel says nothing");
                return None;
            }
        };
        match purpose {
            Purpose::Arrival(arrival) => return Some((arrival, stream)),
            Purpose::Spare { session } => {
                // A spare of a link that has just ended is of no use to anybody.
                if let Some(link) = lock(&self.links).of.get_mut(&session)
                    && link.spares.len() < MAX_SPARES
                {
                    link.spares.push_back(stream);
                }
                self.ready.notify_waiters();
            }
            Purpose::Control { session } => {
                self.converse(stream, session, name, from, shutdown).await;
            }
        }
        None
    }

    async fn converse(
        self: &Arc<Self>,
        stream: S,
        session: Session,
        name: &X500Name,
        from: &str,
        shutdown: &Shutdown,
    ) {
        let (control, queue) = Control::new();
        {
            let mut links = lock(&self.links);
            if links.of.len() >= MAX_LINKS || links.of.contains_key(&session) {
                tracing::warn!(bridge = %name, from, "a bridge is refused: {MAX_LINKS} are linked already");
                return;
            }
            let link = Link {
                name: name.clone(),
                from: from.to_owned(),
                control: control.clone(),
                services: Vec::new(),
                spares: VecDeque::new(),
            };
            links.of.insert(session, link);
        }
        tracing::info!(bridge = %name, from, "a bridge is linked");
        self.ready.notify_waiters();
        control.announce(self.own.clone()).await;
        let desk = Desk { hub: self, session };
        let reason = tokio::select! {
            biased;
            () = shutdown.requested() => "this process is stopping".to_owned(),
            reason = control.converse(stream, queue, &desk) => reason,
        };
        lock(&self.links).of.remove(&session);
        self.publish();
        self.ready.notify_waiters();
        tracing::info!(bridge = %name, from, "a bridge is not linked any more: {reason}");
    }

    /// Tells what is served now.
    fn publish(&self) {
        let mut all: Vec<Service> = Vec::new();
        for link in lock(&self.links).of.values() {
            for service in &link.services {
                if !all.iter().any(|known| known.key() == service.key()) {
                    all.push(service.clone());
                }
            }
        }
        self.services.send_if_modified(|services| {
            let changed = *services != all;
            *services = all;
            changed
        });
    }

    /// Uses a spare connection of a bridge, of one that serves `key` if that is given. The connection is the peer's when
    /// this returns; with it come the certificates of a peer that was dialled.
    pub(crate) async fn open(
        &self,
        key: Option<SecureHash>,
        opening: &Opening,
    ) -> Result<(S, Vec<Vec<u8>>), OpenError> {
        loop {
            let mut stream = match timeout(STEP_TIMEOUT, self.spare(key)).await {
                Ok(Some(stream)) => stream,
                Ok(None) => return Err(OpenError::NoBridge),
                Err(_) => return Err(OpenError::NoSpare),
            };
            let exchange = async {
                write_frame(&mut stream, opening).await?;
                read_frame::<Answer>(&mut stream).await
            };
            match timeout(2 * STEP_TIMEOUT, exchange).await {
                Ok(Ok(Answer::Opened { certificates })) => return Ok((stream, certificates)),
                Ok(Ok(Answer::Failed(reason))) => return Err(OpenError::Refused(plain(&reason))),
                // It died while it waited. The others may be as dead, but then they are soon used up.
                Ok(Err(error)) => tracing::debug!("a spare connection was of no use: {error}"),
                Err(_) => return Err(OpenError::Late),
            }
        }
    }

    /// The next spare connection; `None` if there is no bridge that could have one.
    async fn spare(&self, key: Option<SecureHash>) -> Option<S> {
        loop {
            let ready = self.ready.notified();
            tokio::pin!(ready);
            // Before looking, so that nothing is missed.
            ready.as_mut().enable();
            {
                let mut links = lock(&self.links);
                links.turn = links.turn.wrapping_add(1);
                let turn = links.turn;
                let mut fitting: Vec<&mut Link<S>> = links
                    .of
                    .values_mut()
                    .filter(|link| link.serves(key))
                    .collect();
                if fitting.is_empty() {
                    return None;
                }
                let count = fitting.len();
                fitting.rotate_left(turn % count);
                if let Some(spare) = fitting.iter_mut().find_map(|link| link.spares.pop_front()) {
                    return Some(spare);
                }
            }
            ready.await;
        }
    }

    fn control_for(&self, key: SecureHash) -> Option<Arc<Control>> {
        let mut links = lock(&self.links);
        links.turn = links.turn.wrapping_add(1);
        let serving: Vec<_> = links
            .of
            .values()
            .filter(|link| link.serves(Some(key)))
            .collect();
        // In turn: one of them may hang.
        let link = serving.get(links.turn % serving.len().max(1))?;
        Some(link.control.clone())
    }
}

impl<S> Link<S> {
    fn serves(&self, key: Option<SecureHash>) -> bool {
        key.is_none_or(|key| self.services.iter().any(|service| service.key() == key))
    }
}

/// Signs with the keys behind the bridges.
impl<S: Stream + 'static> Signatory for Arc<Hub<S>> {
    fn sign(
        &self,
        key: SecureHash,
        message: Vec<u8>,
    ) -> BoxFuture<'static, Result<Vec<u8>, String>> {
        let control = self.control_for(key);
        Box::pin(async move {
            match control {
                Some(control) => Control::sign(&control, key, message).await,
                None => Err("no bridge serves this identity any more".to_owned()),
            }
        })
    }
}

/// What a hub does for one bridge.
struct Desk<'a, S> {
    hub: &'a Arc<Hub<S>>,
    session: Session,
}

impl<S: Stream> Signatory for Desk<'_, S> {
    fn sign(
        &self,
        key: SecureHash,
        message: Vec<u8>,
    ) -> BoxFuture<'static, Result<Vec<u8>, String>> {
        self.hub.signatory.sign(key, message)
    }
}

impl<S: Stream> Office for Desk<'_, S> {
    fn serve(&self, services: Vec<Service>) {
        if let Some(link) = lock(&self.hub.links).of.get_mut(&self.session) {
            tracing::info!(
                bridge = %link.name,
                from = link.from,
                identities = services.len(),
                "a bridge says whom it serves"
            );
            link.services = services;
        }
        self.hub.publish();
        self.hub.ready.notify_waiters();
    }
}

/// Signs nothing.
pub(crate) struct NoSignatory;

impl Signatory for NoSignatory {
    fn sign(
        &self,
        _key: SecureHash,
        _message: Vec<u8>,
    ) -> BoxFuture<'static, Result<Vec<u8>, String>> {
        Box::pin(async { Err("this process has no keys of peers' handshakes".to_owned()) })
    }
}
