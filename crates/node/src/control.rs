//! An operator on the same machine speaks to the running process: status, promote, hand over,
//! self-check.
//!
//! The way is a socket in the node's base directory, which only the process's own user may use:
//! a question is one line of JSON, and so is the answer. The socket is there in every role, also
//! while the node has no other port open.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use quorate_flow::standard::SelfCheck;
use quorate_flow::{Flow, FlowOutcome, FlowStart, Origin, StartRefused};
use quorate_ledger::Timestamp;
use quorate_runtime::operations::ReadyReport;
use quorate_runtime::{Clock, Tasks};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, watch};

use crate::driver::{Flows, StartError};
use crate::roles::Promotion;

/// The socket's name in the base directory.
pub const CONTROL_SOCKET: &str = "control.sock";

/// Longest path of a socket on Linux, in bytes.
const MAX_SOCKET_PATH: usize = 107;

/// Longest question and answer, in bytes.
const MAX_LINE: u64 = 64 * 1024;

/// Conversations at a time.
const MAX_CONVERSATIONS: usize = 16;

/// How long one may take.
const CONVERSATION: Duration = Duration::from_secs(60);

/// Pause after the system could not give us a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);

/// How long a self-check may take before it has failed.
pub const SELF_CHECK_PATIENCE: Duration = Duration::from_secs(10);

/// How long a hand-over may take.
const HANDOVER_PATIENCE: Duration = Duration::from_secs(30);

/// What an operator asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "camelCase", deny_unknown_fields)]
pub enum Question {
    /// Which role, since when, who holds the lease.
    Status,
    /// This standby may take over.
    Promote {
        /// Without waiting for the lease to lapse.
        force: bool,
    },
    /// This active instance shall let another one serve.
    HandOver,
    /// Does everything work?
    Check,
}

/// What the process answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// Whether it was done, or is well.
    pub ok: bool,
    /// For people.
    pub message: String,
    /// The role: `active`, `standby`, `starting`, `stopping`.
    pub role: String,
    /// What `/readyz` says.
    pub report: serde_json::Value,
}

/// The process could not be asked.
#[derive(Debug, thiserror::Error)]
#[error(
    "no node answers at {}: is it running, with this base directory and as this user?",
    .socket.display()
)]
pub struct Unreachable {
    /// The socket.
    pub socket: PathBuf,
    /// What the system says.
    #[source]
    pub source: io::Error,
}

/// Steers the node from within its process. Cheap to clone.
#[derive(Clone)]
pub struct Control {
    inner: Arc<Inner>,
}

struct Inner {
    promotion: Mutex<Option<Promotion>>,
    promoted: Notify,
    handover: Notify,
    serving: Mutex<Option<Flows>>,
    report: watch::Sender<ReadyReport>,
}

impl Control {
    pub(crate) fn new() -> Self {
        Self {
            inner: Arc::new(Inner {
                promotion: Mutex::new(None),
                promoted: Notify::new(),
                handover: Notify::new(),
                serving: Mutex::new(None),
                report: watch::Sender::new(ReadyReport::new(false, "starting")),
            }),
        }
    }

    pub(crate) fn promotion(&self) -> Option<Promotion> {
        *self.promotion_slot()
    }

    pub(crate) fn promotion_done(&self) {
        *self.promotion_slot() = None;
    }

    fn promotion_slot(&self) -> std::sync::MutexGuard<'_, Option<Promotion>> {
        let slot = self.inner.promotion.lock();
        slot.unwrap_or_else(PoisonError::into_inner)
    }

    /// Resolves when somebody has just promoted this instance.
    pub(crate) async fn promoted_now(&self) {
        self.inner.promoted.notified().await;
    }

    /// Resolves when somebody wants this instance to hand over.
    pub(crate) async fn handover_wanted(&self) {
        self.inner.handover.notified().await;
    }

    /// This instance serves from now on. A hand-over that was asked of its former term is over.
    pub(crate) fn serving(&self, flows: Flows) {
        use futures::FutureExt as _;
        let _ = self.inner.handover.notified().now_or_never();
        *self.serving_slot() = Some(flows);
    }

    pub(crate) fn not_serving(&self) {
        *self.serving_slot() = None;
    }

    fn serving_slot(&self) -> std::sync::MutexGuard<'_, Option<Flows>> {
        let slot = self.inner.serving.lock();
        slot.unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn publish(&self, report: &ReadyReport) {
        self.inner.report.send_replace(report.clone());
    }

    /// Answers a question.
    pub async fn answer(&self, question: Question, clock: &Clock) -> Answer {
        let outcome = match question {
            Question::Status => Ok(String::new()),
            Question::Promote { force } => self.promote(force),
            Question::HandOver => self.hand_over().await,
            Question::Check => self.check(clock).await,
        };
        let report = self.inner.report.borrow().clone();
        let (ok, message) = match outcome {
            Ok(message) => (true, message),
            Err(message) => (false, message),
        };
        Answer {
            ok,
            message,
            role: report.status.clone(),
            report: report.to_json(),
        }
    }

    fn role(&self) -> String {
        self.inner.report.borrow().status.clone()
    }

    fn promote(&self, force: bool) -> Result<String, String> {
        if self.role() != "standby" {
            return Err(format!("this instance is {}, not a standby", self.role()));
        }
        *self.promotion_slot() = Some(if force {
            Promotion::Force
        } else {
            Promotion::WhenFree
        });
        self.inner.promoted.notify_waiters();
        Ok(if force {
            "this instance takes over now; whoever served can write no more".to_owned()
        } else {
            "this instance takes over as soon as the lease lapses or is given back".to_owned()
        })
    }

    async fn hand_over(&self) -> Result<String, String> {
        if self.role() != "active" {
            return Err(format!("this instance is {}, not active", self.role()));
        }
        let mut report = self.inner.report.subscribe();
        self.inner.handover.notify_one();
        let stepped_down = report.wait_for(|report| report.status == "standby");
        match tokio::time::timeout(HANDOVER_PATIENCE, stepped_down).await {
            Ok(Ok(_)) => Ok("this instance has given the lease back and stands by".to_owned()),
            _ => Err("this instance has not stepped down yet; see its log".to_owned()),
        }
    }

    /// On an active instance, runs a flow that talks to its own node.
    async fn check(&self, clock: &Clock) -> Result<String, String> {
        let Some(flows) = self.serving_slot().clone() else {
            return match self.role().as_str() {
                "standby" => Ok("standing by".to_owned()),
                role => Err(format!("this instance is {role}")),
            };
        };
        let begun = Instant::now();
        let checked = async {
            let started = flows
                .start(FlowStart {
                    class: SelfCheck::NAME.to_owned(),
                    arguments: "{}".to_owned(),
                    client_id: None,
                    origin: Origin::Service,
                    started_at: Timestamp::from_micros(clock.now_micros()),
                })
                .await;
            match started {
                // A node that drains takes no flows, and is well.
                Err(StartError::Refused(StartRefused::Draining)) => Ok(()),
                Err(error) => Err(error.to_string()),
                Ok(started) => match flows.outcome(started.flow).await {
                    Some(FlowOutcome::Completed { .. }) => Ok(()),
                    Some(FlowOutcome::Failed { error }) => Err(error),
                    Some(FlowOutcome::Killed) | None => Err("the check was cut off".to_owned()),
                },
            }
        };
        match tokio::time::timeout(SELF_CHECK_PATIENCE, checked).await {
            Ok(Ok(())) => Ok(format!(
                "flows, messages and database work ({} ms)",
                begun.elapsed().as_millis()
            )),
            Ok(Err(why)) => Err(format!("the self-check failed: {why}")),
            Err(_) => Err(format!(
                "the self-check did not end within {SELF_CHECK_PATIENCE:?}: flows, messages or \
                 the database are stuck"
            )),
        }
    }

    /// Opens the socket in `base_directory` and answers there until the owner stops. A socket
    /// that a dead process has left is replaced; one that a living process serves is not.
    pub fn listen(&self, base_directory: &Path, clock: Clock, tasks: &Tasks) -> io::Result<()> {
        let path = base_directory.join(CONTROL_SOCKET);
        if path.as_os_str().len() > MAX_SOCKET_PATH {
            // The node serves without it; its operator has other ways, and less comfort.
            tracing::warn!(
                path = %path.display(),
                "there is no control socket, because its path is longer than {MAX_SOCKET_PATH} \
                 bytes: move the base directory to a shorter path to use `quorate node status`, \
                 `promote`, `handover`, `health` and the watchdog"
            );
            return Ok(());
        }
        if std::os::unix::net::UnixStream::connect(&path).is_ok() {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                format!(
                    "another process serves from {}; stop it first, or give this instance a base \
                     directory of its own",
                    base_directory.display()
                ),
            ));
        }
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        let owner = tasks.child("control");
        let shutdown = owner.shutdown().clone();
        let permits = Arc::new(tokio::sync::Semaphore::new(MAX_CONVERSATIONS));
        let (control, conversations) = (self.clone(), owner.clone());
        owner.spawn("accept", async move {
            loop {
                let accepted = tokio::select! {
                    () = shutdown.requested() => break,
                    accepted = listener.accept() => accepted,
                };
                let stream = match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        tracing::warn!(%error, "the control socket takes nobody just now");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                        continue;
                    }
                };
                let permit = tokio::select! {
                    () = shutdown.requested() => break,
                    permit = Arc::clone(&permits).acquire_owned() => permit,
                };
                let Ok(permit) = permit else { break };
                let (control, clock) = (control.clone(), clock.clone());
                conversations.spawn("conversation", async move {
                    let _permit = permit;
                    let conversation = converse(stream, &control, &clock);
                    match tokio::time::timeout(CONVERSATION, conversation).await {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => {
                            tracing::debug!(%error, "a conversation over the control socket ended early");
                        }
                        Err(_) => tracing::debug!("a conversation over the control socket took too long"),
                    }
                });
            }
            let _ = std::fs::remove_file(&path);
        });
        Ok(())
    }
}

async fn converse(stream: UnixStream, control: &Control, clock: &Clock) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    BufReader::new(read.take(MAX_LINE))
        .read_line(&mut line)
        .await?;
    let answer = match serde_json::from_str(&line) {
        Ok(question) => control.answer(question, clock).await,
        Err(error) => Answer {
            ok: false,
            message: format!("not a question: {error}"),
            role: control.role(),
            report: serde_json::Value::Null,
        },
    };
    let mut text = serde_json::to_vec(&answer)?;
    text.push(b'\n');
    write.write_all(&text).await
}

/// Asks the process that serves from this base directory.
pub async fn ask(base_directory: &Path, question: &Question) -> Result<Answer, Unreachable> {
    let socket = base_directory.join(CONTROL_SOCKET);
    let answer = async {
        let mut stream = UnixStream::connect(&socket).await?;
        let mut text = serde_json::to_vec(question)?;
        text.push(b'\n');
        stream.write_all(&text).await?;
        let mut line = String::new();
        BufReader::new(stream.take(MAX_LINE))
            .read_line(&mut line)
            .await?;
        Ok(serde_json::from_str(&line)?)
    };
    answer
        .await
        .map_err(|source| Unreachable { socket, source })
}
