//! Processes, calls and recordings.

// Several test targets share these, and each needs a part of them.
#![allow(dead_code, unused_imports)]

mod calls;
mod http;
mod node;
mod recordings;
pub(crate) mod replay;

pub(crate) use calls::{Call, Delivery, Ended, Got, Identity, Line, orderer_admin};
pub(crate) use http::{Answer, Door, connector, form};
pub(crate) use node::{Node, Orderer};
pub(crate) use recordings::{bytes, fixture, fixtures, same_text, text};

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// How long anything may take before the test gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Waits for a condition.
pub(crate) async fn until<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}
