//! Clusters, clients and the judge.

pub(crate) mod client;
pub(crate) mod judge;
pub(crate) mod network;
pub(crate) mod switch;

use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use tokio::sync::{Mutex, MutexGuard};
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

/// Whoever has this runs alone: tests that measure times would disturb each other.
pub(crate) struct Alone(#[expect(dead_code)] MutexGuard<'static, ()>);

impl Alone {
    pub(crate) async fn begin() -> Self {
        static TURN: OnceLock<Mutex<()>> = OnceLock::new();
        Self(TURN.get_or_init(Mutex::default).lock().await)
    }
}

/// Microseconds since the epoch.
pub(crate) fn now_micros() -> i64 {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_micros();
    i64::try_from(now).unwrap()
}

/// A number from the environment.
pub(crate) fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Draws from a seed.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        usize::try_from((z ^ (z >> 31)) % end as u64).unwrap()
    }

    /// As a number of milliseconds below `end`.
    pub(crate) fn millis(&mut self, end: usize) -> Duration {
        Duration::from_millis(self.below(end) as u64)
    }
}
