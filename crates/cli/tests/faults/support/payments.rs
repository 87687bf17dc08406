//! The load: payments under client ids, and what their flows answered.
//!
//! A payment is asked for until the node has taken it, and its result until there is one: who pays does not know what
//! happens to the machines. A payment that ends without a result is lost, and a test fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use quorate_cash::{Issue, Paid, Payment};
use quorate_flow::Flow;
use quorate_identity::X500Name;
use quorate_ledger::TxId;
use quorate_rpc::api::ClientId;
use quorate_rpc::{Client, ClientError, RunningFlow};
use serde_json::json;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

/// How long a payment may take, all faults included.
const PATIENCE: Duration = Duration::from_secs(90);
/// Pause before a node that did not answer is asked again.
const PAUSE: Duration = Duration::from_millis(50);
/// Issues under way at a time.
const ISSUES: usize = 8;

/// What is paid with.
pub(crate) const CURRENCY: &str = "GBP";

/// A payment whose flow has ended well.
#[derive(Debug, Clone)]
pub(crate) struct Settled {
    pub(crate) client_id: String,
    pub(crate) tx: TxId,
    /// In minor units.
    pub(crate) quantity: i64,
    /// From the first question to the result.
    pub(crate) took: Duration,
}

/// Who pays whom.
#[derive(Debug, Clone)]
pub(crate) struct Payer {
    pub(crate) client: Client,
    pub(crate) recipient: X500Name,
    /// Begins the client ids.
    pub(crate) prefix: &'static str,
}

/// Cash in `coins` states of this many minor units each, so that many payments can be under way at once.
pub(crate) async fn issue(client: &Client, coins: usize, each: i64) -> Result<()> {
    let mut issues = JoinSet::new();
    for number in 0..coins {
        if issues.len() >= ISSUES {
            issues.join_next().await.transpose()?.transpose()?;
        }
        let client = client.clone();
        let arguments = json!({ "amount": decimal(each), "currency": CURRENCY });
        issues.spawn(async move {
            let id = ClientId::new(format!("issue {number}"))?;
            let started = client.start_flow_with_client_id(id, Issue::NAME, arguments);
            started.await?.result(PATIENCE).await?;
            anyhow::Ok(())
        });
    }
    while let Some(issued) = issues.join_next().await {
        issued??;
    }
    Ok(())
}

fn decimal(quantity: i64) -> String {
    format!("{}.{:02}", quantity / 100, quantity % 100)
}

impl Payer {
    fn client_id(&self, number: u64) -> String {
        format!("{} {number}", self.prefix)
    }

    /// Pays under the client id of this number.
    pub(crate) async fn pay(&self, number: u64, quantity: i64) -> Result<Settled> {
        let began = Instant::now();
        let client_id = self.client_id(number);
        let payment = async {
            let flow = self.start(&client_id, quantity, began).await?;
            loop {
                match flow.result(PATIENCE).await {
                    Ok(result) => return Ok(serde_json::from_value::<Paid>(result)?),
                    Err(error) => again(error, began).await?,
                }
            }
        };
        let paid: Result<Paid> = payment.await;
        let paid = paid.with_context(|| format!("payment '{client_id}'"))?;
        if paid.amount.quantity != quantity {
            bail!(
                "payment '{client_id}' was of {}, not {quantity}",
                paid.amount
            );
        }
        Ok(Settled {
            client_id,
            tx: paid.tx,
            quantity,
            took: began.elapsed(),
        })
    }

    async fn start(&self, id: &str, quantity: i64, began: Instant) -> Result<RunningFlow> {
        let arguments = json!({
            "amount": decimal(quantity), "currency": CURRENCY, "recipient": self.recipient
        });
        loop {
            let id = ClientId::new(id)?;
            let started =
                self.client
                    .start_flow_with_client_id(id, Payment::NAME, arguments.clone());
            match started.await {
                Ok(flow) => return Ok(flow),
                Err(error) => again(error, began).await?,
            }
        }
    }

    /// Asks once more for every payment: each must be known, and must give the same answer.
    pub(crate) async fn ask_again(&self, settled: &[Settled]) -> Result<()> {
        for payment in settled {
            let id = ClientId::new(payment.client_id.clone())?;
            let flow = self.client.reattach_flow_with_client_id(id).await?;
            let paid: Paid = serde_json::from_value(flow.result(PATIENCE).await?)?;
            if paid.tx != payment.tx {
                bail!(
                    "'{}' was answered with transaction {} first and with {} later",
                    payment.client_id,
                    payment.tx,
                    paid.tx
                );
            }
        }
        Ok(())
    }
}

/// Whether to ask again after this error.
async fn again(error: ClientError, began: Instant) -> Result<()> {
    if !error.retryable() || began.elapsed() > PATIENCE {
        return Err(error.into());
    }
    sleep(PAUSE).await;
    Ok(())
}

/// Payments that keep beginning until they are told to stop, at a fixed rate or so many at a time.
#[derive(Debug)]
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    pub(crate) settled: Arc<AtomicU64>,
    task: JoinHandle<Result<Vec<Settled>>>,
}

impl Drop for Load {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Load {
    /// Begins a payment every `pause`, whatever became of the former ones.
    pub(crate) fn at_rate(payer: Payer, pause: Duration) -> Self {
        Self::new(payer, usize::MAX, pause, u64::MAX)
    }

    /// Keeps so many payments under way until `total` have been made.
    pub(crate) fn closed(payer: Payer, under_way: usize, total: u64) -> Self {
        Self::new(payer, under_way, Duration::from_millis(1), total)
    }

    fn new(payer: Payer, under_way: usize, pause: Duration, total: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let count = Arc::new(AtomicU64::new(0));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&count));
        let task = tokio::spawn(async move {
            let mut payments: JoinSet<Result<Settled>> = JoinSet::new();
            let mut settled = Vec::new();
            let mut tick = interval(pause);
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut number = 0;
            loop {
                let more = !stopped.load(Ordering::Relaxed) && number < total;
                if !more && payments.is_empty() {
                    return Ok(settled);
                }
                tokio::select! {
                    Some(payment) = payments.join_next() => {
                        settled.push(payment??);
                        counted.fetch_add(1, Ordering::Relaxed);
                    }
                    _ = tick.tick(), if more && payments.len() < under_way => {
                        number += 1;
                        let payer = payer.clone();
                        // Amounts that differ, so that a payment that is lost and one that is doubled do not make up
                        // for each other, and so that there is change.
                        let quantity = 100 + (number % 97) as i64;
                        payments.spawn(async move { payer.pay(number, quantity).await });
                    }
                }
            }
        });
        Self {
            stop,
            settled: count,
            task,
        }
    }

    /// How many payments have ended well until now.
    pub(crate) fn count(&self) -> u64 {
        self.settled.load(Ordering::Relaxed)
    }

    /// Whether all payments have been made, or one has been lost.
    pub(crate) fn is_over(&self) -> bool {
        self.task.is_finished()
    }

    /// Begins no more payments and waits for those under way.
    pub(crate) async fn stop(mut self) -> Result<Vec<Settled>> {
        self.stop.store(true, Ordering::Relaxed);
        (&mut self.task).await?
    }

    /// Waits until all have been made.
    pub(crate) async fn all(mut self) -> Result<Vec<Settled>> {
        (&mut self.task).await?
    }
}
