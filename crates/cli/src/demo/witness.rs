//! Clients of a node that watch it over its changes of hands: [`Witness`] knows who answered when,
//! [`Ledger`] which transactions the node recorded.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use quorate_ledger::{Timestamp, TxId};
use quorate_rpc::{Client, TrackFrom};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::PATIENCE;

/// Pause between two questions: how exact the times are.
const PAUSE: Duration = Duration::from_millis(10);

/// One instance's answers in one generation of the lease.
#[derive(Debug, Clone)]
pub(super) struct Term {
    pub(super) generation: u64,
    /// The instance as the node names it: machine and directory.
    pub(super) instance: String,
    /// When its first and, so far, its last answer came.
    pub(super) first: Instant,
    pub(super) last: Instant,
}

/// Asks the node over and over which of its instances answers.
pub(super) struct Witness {
    terms: watch::Receiver<Vec<Term>>,
    // Aborted when dropped.
    _task: JoinSet<()>,
}

impl Witness {
    pub(super) fn start(client: Client) -> Self {
        let (sender, terms) = watch::channel(Vec::<Term>::new());
        let mut task = JoinSet::new();
        task.spawn(async move {
            loop {
                // No answer is what is looked for.
                if let Ok(answer) = client.diagnostics().await {
                    let now = Instant::now();
                    let generation = answer.lease.map_or(0, |lease| lease.generation);
                    sender.send_modify(|terms| match terms.last_mut() {
                        Some(term)
                            if term.generation == generation
                                && term.instance == answer.instance =>
                        {
                            term.last = now;
                        }
                        _ => terms.push(Term {
                            generation,
                            instance: answer.instance,
                            first: now,
                            last: now,
                        }),
                    });
                }
                sleep(PAUSE).await;
            }
        });
        Self { terms, _task: task }
    }

    /// Everything so far, in the order of the answers.
    pub(super) fn terms(&self) -> Vec<Term> {
        self.terms.borrow().clone()
    }

    /// The last term, once there are more than `before`.
    pub(super) async fn more_than(&mut self, before: usize) -> Result<Term> {
        let more = self.terms.wait_for(|terms| terms.len() > before);
        let terms = timeout(PATIENCE, more).await.with_context(|| {
            format!("no instance has taken over within {} s", PATIENCE.as_secs())
        })??;
        terms.last().cloned().context("there is a last term")
    }
}

/// Follows the vault from the start, over every reconnection.
pub(super) struct Ledger {
    recorded: watch::Receiver<Vec<Recorded>>,
    _task: JoinSet<()>,
}

/// A transaction, and when the node recorded it, by its own clock.
type Recorded = (TxId, Timestamp);

impl Ledger {
    pub(super) async fn follow(client: &Client) -> Result<Self> {
        let mut tracker = client.vault_track(TrackFrom::Now).await?;
        let (sender, recorded) = watch::channel(Vec::new());
        let mut task = JoinSet::new();
        task.spawn(async move {
            while let Ok(update) = tracker.next().await {
                sender.send_modify(|recorded| recorded.push((update.tx, update.recorded_at)));
            }
        });
        Ok(Self {
            recorded,
            _task: task,
        })
    }

    /// What it was told of, in that order.
    pub(super) fn transactions(&self) -> Vec<TxId> {
        self.recorded.borrow().iter().map(|(tx, _)| *tx).collect()
    }

    /// Waits until the node has this transaction; since when.
    pub(super) async fn has(&mut self, tx: TxId) -> Result<Timestamp> {
        let since = |recorded: &[Recorded]| Some(recorded.iter().find(|(id, _)| *id == tx)?.1);
        let has = self.recorded.wait_for(|recorded| since(recorded).is_some());
        let recorded = timeout(PATIENCE, has)
            .await
            .with_context(|| format!("transaction {tx} was not recorded"))??;
        since(&recorded).context("it has just been there")
    }
}
