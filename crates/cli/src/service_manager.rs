//! What a node tells the service manager that started it: systemd, by its notification socket.
//!
//! *Ready* is told when the node is active or stands by, its role is the status line, and the
//! manager's watchdog is fed only while the node's self-check passes. Without such a manager all of
//! this does nothing.

use std::time::{Duration, Instant};

use quorate_node::control::{Control, Question};
use quorate_runtime::{Clock, Tasks};
use sd_notify::NotifyState;

use crate::watchdog::{Checked, judge};

/// How long a node may be starting or stopping before its watchdog goes hungry.
const TRANSITION_PATIENCE: Duration = Duration::from_secs(300);

/// Signs of life within the interval of the manager's watchdog: one may be late, and one be lost.
const BEATS_PER_INTERVAL: u32 = 3;

/// The service manager of this process, if there is one.
pub(crate) struct ServiceManager {
    watchdog: Option<Duration>,
}

impl ServiceManager {
    /// As the environment describes it.
    pub(crate) fn of_this_process() -> Self {
        Self {
            watchdog: sd_notify::watchdog_enabled(),
        }
    }

    /// The node is active or stands by; `status` says which.
    pub(crate) fn ready(&self, status: &str) {
        tell(&[NotifyState::Ready, NotifyState::Status(status)]);
    }

    /// Feeds the watchdog while the node works, and says when the node begins to stop.
    pub(crate) fn attend(&self, control: Control, clock: Clock, tasks: &Tasks) {
        let pause = self
            .watchdog
            .map(|interval| interval / BEATS_PER_INTERVAL)
            .filter(|pause| !pause.is_zero());
        let shutdown = tasks.shutdown().clone();
        tasks.spawn("service manager", async move {
            let mut beats = Beats::default();
            loop {
                tokio::select! {
                    () = shutdown.requested() => break,
                    () = next(pause) => {}
                }
                let answer = tokio::select! {
                    () = shutdown.requested() => break,
                    answer = control.answer(Question::Check, &clock) => answer,
                };
                match beats.allow(Instant::now(), judge(answer)) {
                    Ok(()) => tell(&[NotifyState::Watchdog]),
                    Err(why) => {
                        tracing::error!(why, "the service manager's watchdog is not fed");
                    }
                }
            }
            let reason = shutdown.reason().unwrap_or_default();
            let status = format!("stopping: {reason}");
            tell(&[NotifyState::Stopping, NotifyState::Status(&status)]);
        });
    }
}

async fn next(pause: Option<Duration>) {
    match pause {
        Some(pause) => tokio::time::sleep(pause).await,
        None => std::future::pending().await,
    }
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}

/// Which checks count as a sign of life.
#[derive(Debug, Default)]
struct Beats {
    /// Since when the node is starting or stopping.
    on_its_way: Option<Instant>,
}

impl Beats {
    fn allow(&mut self, now: Instant, checked: Checked) -> Result<(), String> {
        match checked {
            Checked::Well => {
                self.on_its_way = None;
                Ok(())
            }
            Checked::OnItsWay => {
                let since = *self.on_its_way.get_or_insert(now);
                if now.saturating_duration_since(since) < TRANSITION_PATIENCE {
                    Ok(())
                } else {
                    Err(format!(
                        "the node has been starting or stopping for more than {TRANSITION_PATIENCE:?}"
                    ))
                }
            }
            Checked::Failed(why) => Err(why),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_works_or_is_soon_going_to_counts() {
        let mut beats = Beats::default();
        let now = Instant::now();
        let later = now + TRANSITION_PATIENCE;
        assert!(beats.allow(now, Checked::OnItsWay).is_ok());
        assert!(
            beats
                .allow(now, Checked::Failed("stuck".to_owned()))
                .is_err()
        );
        assert!(beats.allow(later, Checked::OnItsWay).is_err());
        assert!(beats.allow(later, Checked::Well).is_ok());
        assert!(beats.allow(later, Checked::OnItsWay).is_ok());
    }
}
