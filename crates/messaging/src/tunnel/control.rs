//! The conversation on a control connection, the same on both sides.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use quorate_identity::{RemoteError, RemoteSigner, SecureHash};
use quorate_runtime::tasks::chain;
use tokio::io::split;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::frame::{Frame, MAX_SERVICES, Service, plain, read_frame, write_frame};
use super::{BEAT, SILENCE, Stream};
use crate::service::lock;

/// Frames that wait to be written.
const MAX_QUEUED: usize = 512;
/// Signatures that one side may have asked for and not got yet.
const MAX_SIGNING: usize = 256;
/// How long a signature may take, from one end of the tunnel to the other. Longer than most hardware takes, shorter than
/// a peer waits for its handshake.
const SIGN_TIMEOUT: Duration = Duration::from_secs(5);

/// Whoever can have signatures made.
pub(crate) trait Signatory: Send + Sync {
    /// Signs `message` for a handshake in the name of `key`.
    fn sign(
        &self,
        key: SecureHash,
        message: Vec<u8>,
    ) -> BoxFuture<'static, Result<Vec<u8>, String>>;
}

/// What one side does for the other.
pub(crate) trait Office: Signatory {
    /// These identities are served behind the other side, and no others.
    fn serve(&self, services: Vec<Service>);
}

/// What others hold of a control connection; of no use any more when it has ended.
pub(crate) struct Control {
    frames: mpsc::Sender<Frame>,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    next: u64,
    closed: bool,
    answers: BTreeMap<u64, oneshot::Sender<Result<Vec<u8>, String>>>,
}

impl Control {
    /// A handle, and what [`Control::converse`] needs.
    pub(crate) fn new() -> (Arc<Self>, mpsc::Receiver<Frame>) {
        let (frames, queue) = mpsc::channel(MAX_QUEUED);
        let control = Self {
            frames,
            waiting: Mutex::default(),
        };
        (Arc::new(control), queue)
    }

    /// Says which identities are served behind us.
    pub(crate) async fn announce(&self, mut services: Vec<Service>) {
        if services.len() > MAX_SERVICES {
            tracing::error!(
                "{} identities are served here, and only {MAX_SERVICES} can be announced",
                services.len()
            );
            services.truncate(MAX_SERVICES);
        }
        // Nobody listens when the connection has ended.
        let _ = self.frames.send(Frame::Serve(services)).await;
    }

    /// Has the other side sign. Dropping the future leaves the answer to be thrown away.
    pub(crate) async fn sign(&self, key: SecureHash, message: Vec<u8>) -> Result<Vec<u8>, String> {
        let (answer, answered) = oneshot::channel();
        let id = {
            let mut waiting = lock(&self.waiting);
            if waiting.closed {
                return Err("the link is down".to_owned());
            }
            if waiting.answers.len() >= MAX_SIGNING {
                // Those that nobody waits for any more make room.
                waiting.answers.retain(|_, answer| !answer.is_closed());
                if waiting.answers.len() >= MAX_SIGNING {
                    return Err("too many signatures are asked for at once".to_owned());
                }
            }
            waiting.next += 1;
            let id = waiting.next;
            waiting.answers.insert(id, answer);
            id
        };
        let asked = async {
            let sent = self.frames.send(Frame::Sign { id, key, message }).await;
            sent.map_err(|_| "the link is down".to_owned())?;
            answered
                .await
                .unwrap_or_else(|_| Err("the link broke".to_owned()))
        };
        match timeout(SIGN_TIMEOUT, asked).await {
            Ok(outcome) => outcome,
            Err(_) => {
                lock(&self.waiting).answers.remove(&id);
                Err("no signature came in time".to_owned())
            }
        }
    }

    /// Runs the conversation until it breaks, and says why it did.
    pub(crate) async fn converse(
        &self,
        stream: impl Stream,
        mut queue: mpsc::Receiver<Frame>,
        office: &dyn Office,
    ) -> String {
        let (mut input, mut output) = split(stream);
        let (arrived, mut frames) = mpsc::channel(1);
        let read = async {
            loop {
                match timeout(SILENCE, read_frame::<Frame>(&mut input)).await {
                    Ok(Ok(frame)) => {
                        if arrived.send(frame).await.is_err() {
                            return "the conversation has ended".to_owned();
                        }
                    }
                    Ok(Err(error)) => return chain(&error),
                    Err(_) => return format!("nothing was heard for {SILENCE:?}"),
                }
            }
        };
        let write = async {
            loop {
                let frame = match timeout(BEAT, queue.recv()).await {
                    Ok(Some(frame)) => frame,
                    Ok(None) => return "the link is not needed any more".to_owned(),
                    Err(_) => Frame::Beat,
                };
                match timeout(SILENCE, write_frame(&mut output, &frame)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => return chain(&error),
                    Err(_) => return "the other side does not read".to_owned(),
                }
            }
        };
        let answer = async {
            let mut signing = FuturesUnordered::new();
            loop {
                tokio::select! {
                    Some((id, outcome)) = signing.next(), if !signing.is_empty() => {
                        let _ = self.frames.send(Frame::Signed { id, outcome }).await;
                    }
                    frame = frames.recv() => match frame {
                        Some(Frame::Beat) => {}
                        Some(Frame::Serve(services)) => office.serve(services),
                        Some(Frame::Sign { id, .. }) if signing.len() >= MAX_SIGNING => {
                            let outcome = Err("too many signatures are asked for at once".to_owned());
                            let _ = self.frames.send(Frame::Signed { id, outcome }).await;
                        }
                        Some(Frame::Sign { id, key, message }) => {
                            let signature = office.sign(key, message);
                            signing.push(async move { (id, signature.await) });
                        }
                        Some(Frame::Signed { id, outcome }) => {
                            if let Some(answer) = lock(&self.waiting).answers.remove(&id) {
                                // Nobody may be left who waits for it.
                                let _ = answer.send(outcome.map_err(|reason| plain(&reason)));
                            }
                        }
                        None => return "the conversation has ended".to_owned(),
                    }
                }
            }
        };
        let reason = tokio::select! {
            reason = read => reason,
            reason = write => reason,
            reason = answer => reason,
        };
        let mut waiting = lock(&self.waiting);
        waiting.closed = true;
        waiting.answers.clear();
        reason
    }
}

impl Signatory for Arc<Control> {
    fn sign(
        &self,
        key: SecureHash,
        message: Vec<u8>,
    ) -> BoxFuture<'static, Result<Vec<u8>, String>> {
        let control = Arc::clone(self);
        Box::pin(async move { Control::sign(&control, key, message).await })
    }
}

/// A key at the other end of the tunnel, for a handshake at this one.
///
/// The TLS library wants a signature at once, so the thread waits for it; meanwhile others do what it has to. How many
/// wait is bounded by the number of handshakes under way.
pub(crate) struct DistantKey {
    pub(crate) key: SecureHash,
    pub(crate) signatory: Arc<dyn Signatory>,
}

impl RemoteSigner for DistantKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, RemoteError> {
        let signature = self.signatory.sign(self.key, message.to_vec());
        tokio::task::block_in_place(|| Handle::current().block_on(signature)).map_err(|reason| {
            RemoteError {
                reason,
                transient: true,
            }
        })
    }
}

impl fmt::Debug for DistantKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DistantKey")
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}
