//! Load in a closed loop: so many flows under way, each followed by the next as soon as its result
//! is known.
//!
//! A flow's time runs from the call that starts it to the arrival of its result. Flows that end in
//! the window count, and those only; all that were started are waited for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use quorate_rpc::{Client, ClientError};
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// How long one flow may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// How much, how long.
pub(super) struct Load {
    pub(super) in_flight: usize,
    pub(super) warmup: Duration,
    pub(super) window: Duration,
}

/// What came of it.
pub(super) struct Run<L> {
    /// The length of the window.
    pub(super) window: Duration,
    /// Times of the flows that ended in the window, shortest first.
    pub(super) latencies: Vec<Duration>,
    /// Flows that ended with a result, in the window and outside of it.
    pub(super) completed: u64,
    /// Flows that ended without.
    pub(super) failed: u64,
    /// Why the first of those did.
    pub(super) first_failure: Option<String>,
    /// What `look` saw at the window's beginning and end.
    pub(super) before: L,
    pub(super) after: L,
}

#[derive(Default)]
struct Worker {
    ended: Vec<(Instant, Duration)>,
    completed: u64,
    failed: u64,
    first_failure: Option<String>,
}

/// Drives one flow over these connections.
pub(super) async fn drive<L>(
    clients: &[Client],
    flow: &'static str,
    arguments: &Value,
    load: &Load,
    look: impl AsyncFn() -> Result<L>,
) -> Result<Run<L>> {
    let stop = Arc::new(AtomicBool::new(false));
    let mut workers = JoinSet::new();
    for client in clients.iter().cycle().take(load.in_flight) {
        let (client, arguments, stop) = (client.clone(), arguments.clone(), Arc::clone(&stop));
        workers.spawn(async move {
            let mut worker = Worker::default();
            while !stop.load(Ordering::Relaxed) {
                let began = Instant::now();
                match once(&client, flow, &arguments).await {
                    Ok(()) => {
                        worker.completed += 1;
                        worker.ended.push((Instant::now(), began.elapsed()));
                    }
                    Err(error) => {
                        worker.failed += 1;
                        worker.first_failure.get_or_insert(error.to_string());
                    }
                }
            }
            worker
        });
    }
    sleep(load.warmup).await;
    let before = look().await?;
    let began = Instant::now();
    sleep(load.window).await;
    let ended = Instant::now();
    let after = look().await?;
    stop.store(true, Ordering::Relaxed);

    let mut run = Run {
        window: ended - began,
        latencies: Vec::new(),
        completed: 0,
        failed: 0,
        first_failure: None,
        before,
        after,
    };
    let all = async {
        while let Some(worker) = workers.join_next().await {
            let worker = worker?;
            run.completed += worker.completed;
            run.failed += worker.failed;
            run.first_failure = run.first_failure.take().or(worker.first_failure);
            let inside = |(at, _): &&(Instant, Duration)| (began..ended).contains(at);
            let inside = worker.ended.iter().filter(inside);
            run.latencies.extend(inside.map(|(_, took)| *took));
        }
        anyhow::Ok(())
    };
    timeout(2 * PATIENCE, all)
        .await
        .context("the last flows did not end")??;
    run.latencies.sort_unstable();
    Ok(run)
}

async fn once(client: &Client, flow: &str, arguments: &Value) -> Result<(), ClientError> {
    let running = client.start_flow(flow, arguments.clone()).await?;
    running.result(PATIENCE).await?;
    Ok(())
}
