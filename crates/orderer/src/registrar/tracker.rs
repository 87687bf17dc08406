//! Notices that a channel which others serve wants this orderer.
//!
//! Where there is a system channel, nobody copies the blocks of a channel that does not name it; so nothing here says when
//! that changes. The other orderers are asked, now and then.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use quorate_fabric::config::ChannelConfig;
use tokio::sync::mpsc;
use tracing::{debug, info};

use super::desk::Request;
use super::onboarding::{self, listed};
use super::{Part, Premises, Table};
use crate::deliver::Channel as _;

const LOG: &str = "orderer.common.onboarding";

/// The pause before the others are asked for the first time, and the shortest one.
const FIRST_PAUSE: Duration = Duration::from_secs(10);

/// How much longer than the pause the channels have been the same: who waits for hours is asked for less often than who
/// was added minutes ago.
const PATIENCE: u32 = 10;

/// Asks until there is no system channel any more.
pub(super) struct Tracker {
    pub(super) premises: Arc<Premises>,
    pub(super) table: Arc<ArcSwap<Table>>,
    pub(super) requests: mpsc::Sender<Request>,
}

impl Tracker {
    pub(super) async fn run(self) {
        let clock = self.premises.clock.clone();
        let mut tracked = BTreeSet::new();
        let mut since = clock.monotonic();
        loop {
            let same_for = clock.monotonic().saturating_sub(since);
            clock
                .sleep(pause(same_for, self.premises.refresh_interval))
                .await;
            let Some((system, channels)) = self.inactive() else {
                return;
            };
            if channels != tracked {
                since = clock.monotonic();
                tracked = channels;
            }
            if tracked.is_empty() {
                debug!(target: LOG, "No inactive chains to try to replicate");
                continue;
            }
            let names: Vec<String> = tracked.iter().cloned().collect();
            info!(target: LOG, "Found {} inactive chains: {}", names.len(), listed(&names));
            for name in names {
                let sources = system.orderer_endpoints();
                if onboarding::probe(&self.premises, &name, sources).await {
                    // Nobody listens any more when the process stops.
                    let _ = self.requests.send(Request::Wanted(name)).await;
                }
            }
        }
    }

    /// The system channel's configuration, and the channels that are left to others.
    fn inactive(&self) -> Option<(Arc<ChannelConfig>, BTreeSet<String>)> {
        let table = self.table.load();
        let system = match table.parts.get(table.system.as_ref()?)? {
            Part::Consenter(consenter) => consenter.handle.config(),
            Part::Inactive(inactive) => inactive.config(),
            // The channels' own addresses may be all that is known; without any, nobody can be asked.
            _ => return None,
        };
        let left = table.parts.iter().filter_map(|(name, part)| match part {
            Part::Inactive(inactive) if inactive.is_left() => Some(name.clone()),
            _ => None,
        });
        Some((system, left.collect()))
    }
}

/// How long to wait while nothing has changed for that long.
fn pause(same_for: Duration, longest: Duration) -> Duration {
    (same_for / PATIENCE).max(FIRST_PAUSE).min(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longer_nothing_happens_the_less_often_others_are_asked() {
        let (second, minute) = (Duration::from_secs(1), Duration::from_secs(60));
        let longest = 5 * minute;
        assert_eq!(pause(Duration::ZERO, longest), 10 * second);
        assert_eq!(pause(minute, longest), 10 * second);
        assert_eq!(pause(10 * minute, longest), minute);
        assert_eq!(pause(600 * minute, longest), longest);
        assert_eq!(pause(Duration::ZERO, second), second);
    }
}
