//! What a process that serves a node does over its life: it stands by, is active, steps down,
//! stands by again, stops.
//!
//! The lease decides. A standby has no port open and looks at the lease several times a second;
//! when it may have it, it takes it and starts what only the holder runs ([`Active`]). The holder
//! renews the lease; when it cannot, or can no longer write, it stops serving at once, whatever
//! else is under way. That others cannot be harmed by a holder that does not notice is the
//! store's business: every write shows the lease's generation.

use std::time::{Duration, Instant};

use quorate_runtime::Tasks;
use quorate_runtime::operations::ReadyReport;
use quorate_runtime::tasks::chain;
use quorate_storage::Fence;
use quorate_storage::lease::{self, Attempt, Candidate, Lease, Policy};

use crate::active::Active;
use crate::config::{WhenHeld, WhenLost};
use crate::instance::{Milestone, Node, NodeError, RESOURCE};
use crate::metrics::RoleMetrics;

/// Longest wait between two looks at the lease.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Pause of a standby whose database is out of reach.
const DATABASE_PAUSE: Duration = Duration::from_secs(1);

/// Pause between two attempts to renew the lease.
const RENEWAL_PAUSE: Duration = Duration::from_millis(250);

/// How long an instance that has handed over leaves the lease to others before it competes again.
const HANDOVER_GRACE: Duration = Duration::from_secs(30);

/// Why an active instance stops serving.
enum Ending {
    /// The process was asked to stop.
    Shutdown,
    /// An operator wants another instance to serve.
    HandOver,
    /// It cannot write, or may not.
    Lost(String),
}

impl Node {
    /// Serves whenever the lease is ours, and returns when shutdown was requested and everything
    /// has stopped, or when the configuration says that this process has no more to do. The
    /// reason is [`Shutdown::reason`](quorate_runtime::Shutdown::reason).
    pub async fn run(
        self,
        tasks: &Tasks,
        mut told: impl FnMut(Milestone),
    ) -> Result<(), NodeError> {
        let shutdown = tasks.shutdown().clone();
        let exclusion = &self.prepared.configuration.mutual_exclusion;
        let mut not_before = None;
        while let Some(fence) = self.wait_for_lease(tasks, not_before.take(), &mut told).await? {
            match self.serve(&fence, tasks, &mut told).await? {
                Ending::Shutdown => break,
                Ending::HandOver => {
                    let reason = "an operator asked for a hand-over".to_owned();
                    told(Milestone::SteppedDown { reason });
                    not_before = Some((fence.generation(), Instant::now() + HANDOVER_GRACE));
                }
                Ending::Lost(reason) if exclusion.when_lost == WhenLost::Standby => {
                    told(Milestone::SteppedDown { reason });
                }
                Ending::Lost(reason) => {
                    shutdown.root().request(reason);
                    break;
                }
            }
        }
        self.readiness.set(self.report(false, "stopping"));
        self.prepared.store.close().await;
        Ok(())
    }

    /// Is active under `fence` until something ends it.
    async fn serve(
        &self,
        fence: &Fence,
        tasks: &Tasks,
        told: &mut impl FnMut(Milestone),
    ) -> Result<Ending, NodeError> {
        self.readiness.set(self.report(false, "starting"));
        let active = match Active::start(&self.prepared, fence.clone(), tasks).await {
            Ok(active) => active,
            Err(error) => {
                self.give_back(fence).await;
                return Err(error);
            }
        };
        self.readiness.set(
            self.report(true, "active")
                .with("generation", fence.generation()),
        );
        self.watch_health(&active);
        self.control.serving(active.flows().clone());
        let metrics = RoleMetrics::new(&self.prepared.metrics);
        metrics.active(fence.generation());
        told(Milestone::Active {
            addresses: active.addresses.clone(),
            generation: fence.generation(),
        });
        let ending = self.keep_lease(fence, &active, tasks).await;
        if let Ending::Lost(reason) = &ending {
            tracing::error!(reason, "this instance stops serving");
        }
        self.readiness.set(self.report(false, "stopping"));
        self.control.not_serving();
        metrics.not_active();
        for component in ["database", "flows"] {
            self.health.deregister(component);
        }
        for report in active.stop().await {
            if !report.is_clean() {
                tracing::warn!(%report, "not everything had finished when the instance stopped serving");
            }
        }
        if !matches!(ending, Ending::Lost(_)) {
            self.give_back(fence).await;
        }
        Ok(ending)
    }

    /// Waits until the lease is ours; `None` if shutdown was requested first. `not_before` is a
    /// generation that we have handed over, and until when we leave the lease to others.
    async fn wait_for_lease(
        &self,
        tasks: &Tasks,
        mut not_before: Option<(u64, Instant)>,
        told: &mut impl FnMut(Milestone),
    ) -> Result<Option<Fence>, NodeError> {
        let shutdown = tasks.shutdown().clone();
        let store = &self.prepared.store;
        let mut candidate = Candidate::new(store, RESOURCE, self.holder.clone(), self.policy);
        let mut told_of = None;
        loop {
            if shutdown.is_requested() {
                return Ok(None);
            }
            let pause = match self.look(&mut candidate, &mut not_before).await {
                Ok(Look::Ours(fence)) => return Ok(Some(fence)),
                Ok(Look::Others { lease, lapses_in }) => {
                    self.stand_by(&lease, lapses_in, &mut told_of, told)?;
                    lapses_in.min(LOOK_EVERY)
                }
                Ok(Look::Free) => {
                    self.readiness.set(self.report(false, "standby"));
                    LOOK_EVERY
                }
                Err(error) if error.is_transient() => {
                    let why = chain(&error);
                    tracing::warn!(why, "a standby cannot reach its database");
                    self.readiness
                        .set(self.report(false, "standby").with("database", why));
                    DATABASE_PAUSE
                }
                Err(error) => return Err(error.into()),
            };
            tokio::select! {
                () = shutdown.requested() => return Ok(None),
                () = self.control.promoted_now() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// One look at the lease, which takes it if that is right.
    async fn look(
        &self,
        candidate: &mut Candidate,
        not_before: &mut Option<(u64, Instant)>,
    ) -> Result<Look, quorate_storage::Error> {
        let store = &self.prepared.store;
        let promotion = self.control.promotion();
        let manual = self.prepared.configuration.mutual_exclusion.when_held == WhenHeld::Manual;
        if promotion.is_none() && (manual || not_before.is_some()) {
            let lease = lease::current(store, RESOURCE).await?;
            if let Some((generation, until)) = *not_before {
                let left = lease.as_ref().is_some_and(|l| l.generation == generation);
                if left && Instant::now() < until {
                    return Ok(Look::Free);
                }
                *not_before = None;
            }
            if let Some(lease) = lease.filter(|_| manual)
                && !lease.released
                && lease.holder.instance() != self.holder.instance()
            {
                let lapses_in = match self.policy {
                    Policy::Exclusive { wait_interval, .. } => {
                        wait_interval.saturating_sub(lease.age())
                    }
                    Policy::Always => Duration::ZERO,
                };
                return Ok(Look::Others { lease, lapses_in });
            }
        }
        let attempt = if promotion == Some(Promotion::Force) {
            let mut at_once =
                Candidate::new(store, RESOURCE, self.holder.clone(), Policy::Always);
            at_once.attempt().await?
        } else {
            candidate.attempt().await?
        };
        Ok(match attempt {
            Attempt::Acquired(fence) => {
                self.control.promotion_done();
                Look::Ours(fence)
            }
            Attempt::Held { lease, lapses_in } => Look::Others { lease, lapses_in },
        })
    }

    /// Says that somebody else serves, once per holder.
    fn stand_by(
        &self,
        lease: &Lease,
        lapses_in: Duration,
        told_of: &mut Option<u64>,
        told: &mut impl FnMut(Milestone),
    ) -> Result<(), NodeError> {
        let when_held = self.prepared.configuration.mutual_exclusion.when_held;
        let waits_for_promotion =
            when_held == WhenHeld::Manual && self.control.promotion().is_none();
        let holder = lease.holder.instance();
        self.readiness.set(
            self.report(false, "standby")
                .with("holder", holder.clone())
                .with("generation", lease.generation)
                .with("heldSince", lease.acquired_at.to_string())
                .with("renewedAt", lease.renewed_at.to_string())
                .with("takeoverInMillis", lapses_in.as_millis() as u64)
                .with("waitsForPromotion", waits_for_promotion),
        );
        if told_of.replace(lease.generation) == Some(lease.generation) {
            return Ok(());
        }
        if when_held == WhenHeld::Exit {
            return Err(NodeError::Held { holder });
        }
        tracing::info!(holder, ?lapses_in, "standing by: another instance holds the lease");
        told(Milestone::Standby {
            holder,
            lapses_in,
            waits_for_promotion,
        });
        Ok(())
    }

    /// Renews the lease until shutdown is requested or something ends the serving.
    async fn keep_lease(&self, fence: &Fence, active: &Active, tasks: &Tasks) -> Ending {
        let shutdown = tasks.shutdown().clone();
        // Others may take over `wait_interval` after the last renewal: we are silent well before.
        let patience = match self.policy {
            Policy::Exclusive {
                update_interval,
                wait_interval,
            } => wait_interval.saturating_sub(update_interval) / 2,
            Policy::Always => self.update_interval,
        };
        loop {
            tokio::select! {
                () = shutdown.requested() => return Ending::Shutdown,
                () = self.control.handover_wanted() => return Ending::HandOver,
                reason = active.failed() => return Ending::Lost(reason),
                () = tokio::time::sleep(self.update_interval) => {}
            }
            let renewed = tokio::time::timeout(patience, self.renew(fence));
            let renewed = tokio::select! {
                () = shutdown.requested() => return Ending::Shutdown,
                reason = active.failed() => return Ending::Lost(reason),
                renewed = renewed => renewed,
            };
            match renewed {
                Ok(Ok(())) => {}
                Ok(Err(why)) => {
                    return Ending::Lost(format!("the lease could not be renewed: {why}"));
                }
                Err(_) => {
                    return Ending::Lost(format!(
                        "the lease could not be renewed within {patience:?}: the database does \
                         not answer"
                    ));
                }
            }
        }
    }

    /// Renews the lease, again and again while the database is out of reach.
    async fn renew(&self, fence: &Fence) -> Result<(), String> {
        loop {
            match lease::renew(&self.prepared.store, fence).await {
                Ok(_) => return Ok(()),
                Err(error) if error.is_transient() => {
                    tracing::warn!(error = %chain(&error), "the lease could not be renewed yet");
                    tokio::time::sleep(RENEWAL_PAUSE).await;
                }
                Err(error) => return Err(chain(&error)),
            }
        }
    }

    async fn give_back(&self, fence: &Fence) {
        if let Err(error) = lease::release(&self.prepared.store, fence).await {
            tracing::warn!(error = %chain(&error), "the lease could not be given back; it lapses by itself");
        }
    }

    fn report(&self, ready: bool, status: &str) -> ReadyReport {
        let report = ReadyReport::new(ready, status)
            .with("node", self.prepared.identification.legal_name.to_string())
            .with("instance", self.prepared.identification.instance.clone());
        self.control.publish(&report);
        report
    }

    fn watch_health(&self, active: &Active) {
        let store = self.prepared.store.clone();
        self.health.register("database", move || {
            let store = store.clone();
            async move { store.ping().await.map_err(|error| chain(&error)) }
        });
        let flows = active.flows().clone();
        self.health.register("flows", move || {
            let flows = flows.clone();
            async move {
                if flows.responds().await {
                    Ok(())
                } else {
                    Err("the flow machine has stopped".to_owned())
                }
            }
        });
    }
}

/// What a look at the lease came to.
enum Look {
    Ours(Fence),
    Others { lease: Lease, lapses_in: Duration },
    Free,
}

/// A person's word that this instance may take over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Promotion {
    /// When the lease lapses or is given back.
    WhenFree,
    /// Now: whoever holds it is fenced.
    Force,
}
