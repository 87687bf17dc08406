//! The audit of RPC: what users ask for becomes durable before it is done.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus::IntCounter;
use quorate_rpc::{ErrorCode, RpcError};
use quorate_runtime::tasks::chain;
use quorate_runtime::{Clock, Entropy, Metrics};
use quorate_storage::{CommitError, InvocationId, RpcInvocation, UnitOfWork, Writer};
use tokio::sync::Semaphore;

use crate::rpc::Call;

/// Calls whose records are on their way to the database.
const MAX_PENDING: usize = 4_096;

/// How long a record may take to become durable.
const PATIENCE: Duration = Duration::from_secs(30);

/// Corda's bounds of what is recorded, in characters.
const MAX_NAME: usize = 130;
const MAX_PARAMETERS: usize = 255;

/// What stands for what was cut off.
const CUT: char = '…';

/// Records calls.
pub(crate) struct RpcAudit {
    writer: Writer,
    places: Semaphore,
    ids: Ids,
    recorded: IntCounter,
    refused: IntCounter,
}

impl RpcAudit {
    pub(crate) fn new(writer: Writer, clock: Clock, entropy: Entropy, metrics: &Metrics) -> Self {
        Self {
            writer,
            places: Semaphore::new(MAX_PENDING),
            ids: Ids {
                clock,
                entropy,
                last: Mutex::default(),
            },
            recorded: metrics.counter(
                "quorate_rpc_audit_recorded_total",
                "Calls by RPC that were recorded in the database.",
            ),
            refused: metrics.counter(
                "quorate_rpc_audit_refused_total",
                "Calls by RPC that were refused because they could not be recorded.",
            ),
        }
    }

    /// Records a call; when it returns, the record is durable. If it fails, or is dropped, the record may be there.
    pub(crate) async fn record(&self, call: Call) -> Result<(), RpcError> {
        let recorded = self.try_record(call).await;
        match &recorded {
            Ok(()) => self.recorded.inc(),
            Err(_) => self.refused.inc(),
        }
        recorded
    }

    async fn try_record(&self, call: Call) -> Result<(), RpcError> {
        let refusal = |code, reason: &str| {
            let message = format!("the call cannot be recorded, and so is not done: {reason}");
            RpcError::new(code, message).with_remedy("try again in a moment")
        };
        let Ok(_place) = self.places.try_acquire() else {
            let reason = format!("{MAX_PENDING} others wait to be recorded");
            return Err(refusal(ErrorCode::Overloaded, &reason));
        };
        let invocation = RpcInvocation {
            id: self.ids.next(),
            username: shortened(&call.user, MAX_NAME),
            interface: call.interface,
            action: shortened(call.action, MAX_NAME),
            parameters: shortened(&call.parameters, MAX_PARAMETERS),
            allowed: call.allowed,
        };
        let commit = self.writer.commit(UnitOfWork::rpc_invocation(invocation));
        match tokio::time::timeout(PATIENCE, commit).await {
            Ok(Ok(_)) => Ok(()),
            // The database is not as it should be: trying again does not help.
            Ok(Err(error @ CommitError::Refused(_))) => {
                Err(refusal(ErrorCode::Internal, &chain(&error)).with_remedy("see the node's log"))
            }
            Ok(Err(error @ CommitError::Transient(_))) => {
                Err(refusal(ErrorCode::Overloaded, &chain(&error)))
            }
            Ok(Err(error)) => Err(refusal(ErrorCode::NotReady, &chain(&error))),
            Err(_) => Err(refusal(
                ErrorCode::Overloaded,
                "the database did not answer in time",
            )),
        }
    }
}

/// The beginning of a text, without control characters.
fn shortened(text: &str, most: usize) -> String {
    let mut shown = text.chars().filter(|c| !c.is_control());
    let mut short: String = shown.by_ref().take(most).collect();
    if shown.next().is_some() {
        short.pop();
        short.push(CUT);
    }
    short
}

/// Ids of calls: 8 bytes that grow, from the clock, so that calls of one moment stay in their order, and 8 random ones.
struct Ids {
    clock: Clock,
    entropy: Entropy,
    last: Mutex<u64>,
}

impl Ids {
    fn next(&self) -> InvocationId {
        let now = u64::try_from(self.clock.now_micros()).unwrap_or(0);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        *last = now.max(last.saturating_add(1));
        let mut id = [0; 16];
        let (grows, random) = id.split_at_mut(8);
        grows.copy_from_slice(&last.to_be_bytes());
        self.entropy.fill(random);
        id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_long_is_cut_and_what_is_not_printable_is_left_out() {
        assert_eq!(shortened("flow: a\n\u{1b}[2J", 255), "flow: a[2J");
        assert_eq!(shortened(&"ä".repeat(255), 255), "ä".repeat(255));
        let cut = shortened(&"ä".repeat(256), 255);
        assert_eq!(cut.chars().count(), 255);
        assert!(cut.ends_with("ä…"));
    }

    #[test]
    fn ids_grow_even_if_the_clock_stands_still() {
        let (clock, _manual) = Clock::manual(1_000);
        let ids = Ids {
            clock,
            entropy: Entropy::seeded(1),
            last: Mutex::default(),
        };
        let given: Vec<InvocationId> = (0..100).map(|_| ids.next()).collect();
        assert!(given.is_sorted_by(|a, b| a < b));
    }
}
