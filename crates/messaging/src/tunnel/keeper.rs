//! The dialling side of the tunnel: a bridge's towards one float or one node.
//!
//! Keeps a control connection up, and spare connections beside it. When the control connection breaks, idle spares go
//! with it, and everything begins anew after a pause; connections that carry a peer are left to end by themselves.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use quorate_identity::{Clock, TlsParty, X500Name, peer_name, server_name};
use quorate_runtime::tasks::chain;
use quorate_runtime::{Entropy, Tasks};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use super::control::{Control, Office};
use super::frame::{Greeting, Opening, Purpose, Session, read_frame, write_frame};
use super::{BoxStream, SPARES, STEP_TIMEOUT};
use crate::dial::connect;
use crate::options::HostAndPort;

/// Connections that may be open through one link at a time, spares included.
const MAX_STREAMS: usize = 4096;

/// How the other side of a link is reached.
#[derive(Clone)]
pub(crate) enum Reach {
    /// Over TLS.
    Tls(Arc<TlsReach>),
    /// It is in this process.
    Here(Arc<dyn Fn() -> BoxStream + Send + Sync>),
}

/// An address, and who is expected there.
pub(crate) struct TlsReach {
    pub(crate) address: HostAndPort,
    pub(crate) party: TlsParty,
    /// `None` accepts whoever has a certificate of the link's authority.
    pub(crate) expected: Option<X500Name>,
    pub(crate) clock: Clock,
}

impl Reach {
    /// Opens a connection and says what it is for.
    pub(crate) async fn open(&self, purpose: Purpose) -> io::Result<BoxStream> {
        let opened = async {
            let mut stream = match self {
                Self::Tls(reach) => reach.connect().await?,
                Self::Here(connect) => connect(),
            };
            write_frame(&mut stream, &Greeting::new(purpose)).await?;
            Ok(stream)
        };
        match timeout(STEP_TIMEOUT, opened).await {
            Ok(outcome) => outcome,
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time")),
        }
    }
}

impl TlsReach {
    async fn connect(&self) -> io::Result<BoxStream> {
        let tcp = connect(&self.address)
            .await
            .map_err(|error| io::Error::other(chain(&error)))?;
        let expected = self.expected.as_ref();
        let config = self
            .party
            .client_config(expected.map(std::slice::from_ref), self.clock.clone());
        let wanted = server_name(expected.unwrap_or(self.party.identity().name()));
        let tls = TlsConnector::from(config).connect(wanted, tcp).await?;
        // The second, independent look.
        let found = peer_name(tls.get_ref().1.peer_certificates().unwrap_or_default())
            .map_err(|error| io::Error::other(chain(&error)))?;
        match expected {
            Some(expected) if found != *expected => Err(io::Error::other(format!(
                "it is {found}, and {expected} was expected"
            ))),
            _ => Ok(Box::new(tls)),
        }
    }
}

impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tls(reach) => reach.address.fmt(f),
            Self::Here(_) => f.write_str("this process"),
        }
    }
}

/// What the owner of a link does with it.
pub(crate) trait Owner: Send + Sync + 'static {
    /// The link is up. What is returned speaks to the other side for as long as it is, and answers its questions.
    fn linked(self: Arc<Self>, control: Arc<Control>) -> Arc<dyn Office>;

    /// Tells the other side what it has to know, for as long as the link is up.
    fn tell(self: Arc<Self>, control: Arc<Control>) -> BoxFuture<'static, ()>;

    /// The link is down.
    fn unlinked(&self, control: &Arc<Control>);

    /// The other side has used a spare connection.
    fn opened(self: Arc<Self>, opening: Opening, stream: BoxStream) -> BoxFuture<'static, ()>;
}

/// Keeps one link up.
pub(crate) struct Keeper {
    pub(crate) reach: Reach,
    pub(crate) owner: Arc<dyn Owner>,
    pub(crate) entropy: Entropy,
    /// Pauses between attempts grow from the first to the second.
    pub(crate) pauses: (Duration, Duration),
    pub(crate) tasks: Tasks,
}

impl Keeper {
    /// Runs until stopping is requested.
    pub(crate) async fn run(self) {
        let shutdown = self.tasks.shutdown().clone();
        let keep = async {
            let mut pause = self.pauses.0;
            let mut told = None;
            loop {
                let session: Session = self.entropy.bytes();
                match self.reach.open(Purpose::Control { session }).await {
                    Ok(stream) => {
                        told = None;
                        let reason = self.link(stream, session).await;
                        pause = self.pauses.0;
                        tracing::warn!(to = %self.reach, "the link is down: {reason}");
                    }
                    Err(error) => {
                        let error = chain(&error);
                        // A standby is not there for years; that needs to be said once.
                        if told.as_ref() == Some(&error) {
                            tracing::debug!(to = %self.reach, "no link: {error}");
                        } else {
                            tracing::warn!(to = %self.reach, "no link: {error}; it is tried again and again");
                            told = Some(error);
                        }
                    }
                }
                sleep(self.entropy.jitter(pause)).await;
                pause = (pause * 2).min(self.pauses.1);
            }
        };
        tokio::select! {
            biased;
            () = shutdown.requested() => {}
            () = keep => {}
        }
    }

    /// One life of the link.
    async fn link(&self, stream: BoxStream, session: Session) -> String {
        let (control, queue) = Control::new();
        let office = Arc::clone(&self.owner).linked(control.clone());
        let life = CancellationToken::new();
        let _end = life.clone().drop_guard();
        let tell = async {
            Arc::clone(&self.owner).tell(control.clone()).await;
            std::future::pending::<()>().await;
        };
        tracing::info!(to = %self.reach, "the link is up");
        // Dropped when stopping: then the other side sees the connection end, and nobody asks for the owner's word.
        let reason = tokio::select! {
            reason = control.converse(stream, queue, office.as_ref()) => reason,
            () = tell => String::new(),
            () = self.spares(session, &life) => String::new(),
        };
        self.owner.unlinked(&control);
        reason
    }

    /// Keeps spare connections open.
    async fn spares(&self, session: Session, life: &CancellationToken) {
        let (idle, all) = (
            Arc::new(Semaphore::new(SPARES)),
            Arc::new(Semaphore::new(MAX_STREAMS)),
        );
        loop {
            let (Ok(place), Ok(stream)) = (
                idle.clone().acquire_owned().await,
                all.clone().acquire_owned().await,
            ) else {
                return;
            };
            let (reach, owner, life) = (self.reach.clone(), self.owner.clone(), life.clone());
            let (shutdown, pause) = (self.tasks.shutdown().clone(), self.pauses.0);
            self.tasks.spawn("connection of the tunnel", async move {
                let _stream = stream;
                let waited = async {
                    let mut spare = reach.open(Purpose::Spare { session }).await?;
                    let opening = read_frame::<Opening>(&mut spare)
                        .await
                        .map_err(|error| io::Error::other(chain(&error)))?;
                    Ok::<_, io::Error>((spare, opening))
                };
                let waited = tokio::select! {
                    biased;
                    () = shutdown.requested() => return,
                    () = life.cancelled() => return,
                    waited = waited => waited,
                };
                match waited {
                    Ok((spare, opening)) => {
                        drop(place);
                        tokio::select! {
                            biased;
                            () = shutdown.requested() => {}
                            () = owner.opened(opening, spare) => {}
                        }
                    }
                    Err(error) => {
                        tracing::debug!(to = %reach, "a spare connection has ended: {error}");
                        tokio::select! {
                            () = shutdown.requested() => {}
                            () = life.cancelled() => {}
                            () = sleep(pause) => {}
                        }
                    }
                }
            });
        }
    }
}
