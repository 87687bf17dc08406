//! What a process that serves a node does over its life: it stands by, is active, steps down,
//! stands by again, stops.
//!
//! The lease decides. A standby has no port open and looks at the lease several times a second;
//! when it may have it, it takes it and starts what only the holder runs ([`Active`]). The holder
//! renews the lease; when it cannot, or can no longer write, it stops serving at once, whatever
//! else is under way. That others cannot be harmed by a holder that does not notice is the
//! store's business: every write shows the lease's generation.

use std::pin::{Pin, pin};
use std::time::Duration;

use quorate_runtime::Tasks;
use quorate_runtime::operations::ReadyReport;
use quorate_runtime::tasks::chain;
use quorate_storage::Fence;
use quorate_storage::lease::{self, Attempt, Candidate, Lease, Policy};
use tokio::time::{Instant, timeout};

use crate::active::{Active, Services};
use crate::config::{WhenHeld, WhenLost};
use crate::instance::{Milestone, Node, NodeError, RESOURCE};
use crate::metrics::RoleMetrics;

/// Longest wait between two looks at the lease.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Pause of a standby whose database is out of reach.
const DATABASE_PAUSE: Duration = Duration::from_secs(1);

/// How long a look at the lease, or taking it, may take: a connection that has died without a word
/// must not hold up a standby.
const LOOK_PATIENCE: Duration = Duration::from_secs(15);

/// How long a look that has begun may go on when the process is asked to stop.
const LOOK_GRACE: Duration = Duration::from_secs(1);

/// Longest pause between two attempts to renew the lease.
const RENEWAL_PAUSE: Duration = Duration::from_millis(250);

/// Attempts to renew the lease that there is time for, however long each of them hangs.
const RENEWAL_ATTEMPTS: u32 = 3;

/// How long giving the lease back, or closing the store, may take.
const FAREWELL: Duration = Duration::from_secs(3);

/// The health check of the database that a notary's workers share.
const NOTARY_DATABASE: &str = "notary-database";

/// How long an instance that could not go on leaves the lease to others before it competes again.
const LOST_PAUSE: Duration = Duration::from_secs(1);

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
        while let Some(fence) = self
            .wait_for_lease(tasks, not_before.take(), &mut told)
            .await?
        {
            match self.serve(&fence, tasks, &mut told).await? {
                Ending::Shutdown => break,
                Ending::HandOver => {
                    let reason = "an operator asked for a hand-over".to_owned();
                    told(Milestone::SteppedDown { reason });
                    not_before = Some((fence.generation(), Instant::now() + HANDOVER_GRACE));
                }
                // Without mutual exclusion two instances would take the lease from each other in turn.
                Ending::Lost(reason)
                    if exclusion.on && exclusion.when_lost == WhenLost::Standby =>
                {
                    told(Milestone::SteppedDown { reason });
                    not_before = Some((fence.generation(), Instant::now() + LOST_PAUSE));
                }
                Ending::Lost(reason) => {
                    shutdown.root().request(reason);
                    break;
                }
            }
        }
        self.publish(self.report(false, "stopping"));
        // Of what is still connected to a database that does not answer, the process's end is the end.
        let log = self.prepared.notary_log.as_ref();
        let stores = std::iter::once(&self.prepared.store).chain(log.map(|log| &log.store));
        let closing = futures::future::join_all(stores.map(|store| store.close()));
        let _ = timeout(FAREWELL, closing).await;
        Ok(())
    }

    /// Is active under `fence` until something ends it.
    async fn serve(
        &self,
        fence: &Fence,
        tasks: &Tasks,
        told: &mut impl FnMut(Milestone),
    ) -> Result<Ending, NodeError> {
        self.publish(self.report(false, "starting"));
        let shutdown = tasks.shutdown().clone();
        let services = Services::new();
        let mut lost = pin!(self.hold(fence, &services));
        // A start may take longer than the lease lasts.
        let started = tokio::select! {
            biased;
            () = shutdown.requested() => Err(Ending::Shutdown),
            why = &mut lost => Err(Ending::Lost(why)),
            started = Active::start(&self.prepared, fence.clone(), tasks, &services) => Ok(started),
        };
        let served = matches!(started, Ok(Ok(_)));
        let ending = match started {
            Ok(Ok(active)) => {
                let lost = lost.as_mut();
                Ok(self.serve_with(active, fence, tasks, lost, told).await)
            }
            Ok(Err(NodeError::Store(error) | NodeError::NotaryStore(error)))
                if error.is_transient() =>
            {
                Ok(Ending::Lost(format!(
                    "the database failed while this instance was starting to serve: {}",
                    chain(&error)
                )))
            }
            Ok(Err(error)) => Err(error),
            Err(ending) => Ok(ending),
        };
        if let Ok(Ending::Lost(reason)) = &ending
            && !served
        {
            tracing::error!(reason, "this instance does not get to serve");
        }
        // What has not stopped by now.
        services.cut_off().await;
        // If the lease is still ours (it was the database, or this process, that failed), the next one
        // need not wait until it lapses.
        self.give_back(fence).await;
        ending
    }

    async fn serve_with(
        &self,
        active: Active,
        fence: &Fence,
        tasks: &Tasks,
        mut lost: Pin<&mut impl Future<Output = String>>,
        told: &mut impl FnMut(Milestone),
    ) -> Ending {
        self.publish(
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
        let shutdown = tasks.shutdown().clone();
        let ending = tokio::select! {
            () = shutdown.requested() => Ending::Shutdown,
            () = self.control.handover_wanted() => Ending::HandOver,
            reason = active.failed() => Ending::Lost(reason),
            why = &mut lost => Ending::Lost(why),
        };
        if let Ending::Lost(reason) = &ending {
            tracing::error!(reason, "this instance stops serving");
        }
        self.publish(self.report(false, "stopping"));
        self.control.not_serving();
        metrics.not_active();
        for component in ["database", "flows", NOTARY_DATABASE] {
            self.health.deregister(component);
        }
        let reports = match &ending {
            Ending::Lost(_) => active.cut_off().await,
            // Meanwhile the lease is renewed; without it there is nothing to finish.
            Ending::Shutdown | Ending::HandOver => tokio::select! {
                reports = active.stop() => reports,
                reason = &mut lost => {
                    tracing::error!(reason, "this instance could not finish what was under way");
                    Vec::new()
                }
            },
        };
        for report in reports.into_iter().filter(|report| !report.is_clean()) {
            tracing::warn!(%report, "not everything had finished when the instance stopped serving");
        }
        ending
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
            let looked = tokio::select! {
                looked = timeout(LOOK_PATIENCE, self.look(&mut candidate, &mut not_before)) => looked,
                () = async {
                    shutdown.requested().await;
                    tokio::time::sleep(LOOK_GRACE).await;
                } => return Ok(None),
            };
            let Ok(looked) = looked else {
                tracing::warn!("a standby's database has not answered within {LOOK_PATIENCE:?}");
                let why = "it does not answer".to_owned();
                self.publish(self.report(false, "standby").with("database", why));
                continue;
            };
            let pause = match looked {
                Ok(Look::Ours(fence)) => return Ok(Some(fence)),
                Ok(Look::Others { lease, lapses_in }) => {
                    self.stand_by(&lease, lapses_in, &mut told_of, told)?;
                    lapses_in.min(LOOK_EVERY)
                }
                Ok(Look::Free) => {
                    self.publish(self.report(false, "standby"));
                    LOOK_EVERY
                }
                Err(error) if error.is_transient() => {
                    let why = chain(&error);
                    tracing::warn!(why, "a standby cannot reach its database");
                    self.publish(self.report(false, "standby").with("database", why));
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
            let mut at_once = Candidate::new(store, RESOURCE, self.holder.clone(), Policy::Always);
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
        self.publish(
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
        tracing::info!(
            holder,
            ?lapses_in,
            "standing by: another instance holds the lease"
        );
        told(Milestone::Standby {
            holder,
            lapses_in,
            waits_for_promotion,
        });
        Ok(())
    }

    /// Renews the lease, and resolves with the reason when it may not be ours any more. Others may
    /// take over `wait_interval` after the last renewal: this resolves well before.
    async fn hold(&self, fence: &Fence, services: &Services) -> String {
        let patience = match self.policy {
            Policy::Exclusive {
                update_interval,
                wait_interval,
            } => wait_interval.saturating_sub(update_interval) / 2,
            Policy::Always => self.update_interval,
        };
        // The last renewal came after this moment.
        let mut renewed = Instant::now();
        let mut trouble = None;
        loop {
            // What the writer commits renews the lease, too.
            renewed = renewed.max(services.written_at().map_or(renewed, Instant::from_std));
            let due = renewed + self.update_interval;
            let now = Instant::now();
            if now < due {
                tokio::time::sleep_until(due).await;
                continue;
            }
            let left = (due + patience).saturating_duration_since(now);
            if left.is_zero() {
                let silent = now - renewed;
                return match trouble {
                    Some(why) => format!("the lease could not be renewed for {silent:.1?}: {why}"),
                    None => format!(
                        "this process has not run for {silent:.1?}, stopped or starved, and its \
                         lease may have lapsed"
                    ),
                };
            }
            // An attempt that hangs leaves time for others.
            let attempt = left.min(patience / RENEWAL_ATTEMPTS);
            let renewal = lease::renew(&self.prepared.store, fence);
            match timeout(attempt, renewal).await {
                Ok(Ok(_)) => {
                    renewed = now;
                    trouble = None;
                }
                Ok(Err(error)) if error.is_transient() => {
                    let why = trouble.insert(chain(&error));
                    tracing::warn!(why, "the lease could not be renewed yet");
                    tokio::time::sleep(RENEWAL_PAUSE.min(attempt)).await;
                }
                Ok(Err(error)) => {
                    return format!("the lease could not be renewed: {}", chain(&error));
                }
                Err(_) => {
                    trouble = Some("the database does not answer".to_owned());
                    tracing::warn!("the lease could not be renewed yet: no answer");
                }
            }
        }
    }

    async fn give_back(&self, fence: &Fence) {
        let released = timeout(FAREWELL, lease::release(&self.prepared.store, fence)).await;
        let why = match released {
            Ok(Ok(())) => return,
            Ok(Err(error)) => chain(&error),
            Err(_) => "the database does not answer".to_owned(),
        };
        tracing::warn!(
            why,
            "the lease could not be given back; it lapses by itself"
        );
    }

    fn report(&self, ready: bool, status: &str) -> ReadyReport {
        ReadyReport::new(ready, status)
            .with("node", self.prepared.identification.legal_name.to_string())
            .with("instance", self.prepared.identification.instance.clone())
    }

    /// To load balancers and to operators alike.
    fn publish(&self, report: ReadyReport) {
        self.control.publish(&report);
        self.readiness.set(report);
    }

    fn watch_health(&self, active: &Active) {
        let store = self.prepared.store.clone();
        self.health.register("database", move || {
            let store = store.clone();
            async move { store.ping().await.map_err(|error| chain(&error)) }
        });
        if let Some(log) = &self.prepared.notary_log {
            let store = log.store.clone();
            self.health.register(NOTARY_DATABASE, move || {
                let store = store.clone();
                async move { store.ping().await.map_err(|error| chain(&error)) }
            });
        }
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
