//! Networks of real processes, and means to hurt them.
//!
//! [`network`] makes and runs the processes, [`gate`] stands between a process and what it talks to, [`payments`] is the
//! load and remembers what was promised, [`books`] reads what the databases hold in the end and judges it. Start reading
//! at [`network::Network`].

pub(crate) mod books;
pub(crate) mod gate;
pub(crate) mod network;
pub(crate) mod payments;

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::time::{Instant, sleep};

/// Pause between two looks at a condition.
pub(crate) const POLL: Duration = Duration::from_millis(20);
/// How long a condition may take that has no bound of its own.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The variable that repeats a run: the seed that a former run has printed.
const SEED: &str = "QUORATE_FAULT_SEED";

/// Held while a test runs: these tests measure times, and each needs the whole machine. A lock on a file, because test
/// runners may use a thread or a process for each test.
#[derive(Debug)]
pub(crate) struct Alone(#[expect(dead_code, reason = "the lock ends with the file")] File);

impl Alone {
    pub(crate) fn on_this_machine() -> Result<Self> {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("faults.lock");
        let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
        file.lock()?;
        Ok(Self(file))
    }
}

/// A number from the environment, if somebody wants more or less than the default.
pub(crate) fn wanted(variable: &str, default: u64) -> Result<u64> {
    match std::env::var(variable) {
        Ok(text) => text
            .parse()
            .with_context(|| format!("{variable}={text} is not a number")),
        Err(_) => Ok(default),
    }
}

/// Repeatable chance: SplitMix64.
#[derive(Debug)]
pub(crate) struct Chance(u64);

impl Chance {
    /// A seed of the moment, or the one that the environment gives; printed, to repeat the run.
    pub(crate) fn new(test: &str) -> Result<Self> {
        let moment = std::time::SystemTime::UNIX_EPOCH.elapsed()?.as_micros();
        let seed = wanted(SEED, moment as u64 % 1_000_000)?;
        println!("{test}: {SEED}={seed}");
        Ok(Self(seed))
    }

    pub(crate) fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.draw() % bound as u64) as usize
    }

    pub(crate) fn between(&mut self, least: Duration, most: Duration) -> Duration {
        least + (most - least).mul_f64(self.below(1_001) as f64 / 1_000.0)
    }
}

/// Looks again and again until `condition` is true; how long that took. What it says last is in the error.
pub(crate) async fn until(
    what: &str,
    patience: Duration,
    mut condition: impl AsyncFnMut() -> Result<Result<(), String>>,
) -> Result<Duration> {
    let began = Instant::now();
    loop {
        match condition().await? {
            Ok(()) => return Ok(began.elapsed()),
            Err(yet) if began.elapsed() > patience => {
                bail!("{what}: not within {patience:?}: {yet}")
            }
            Err(_) => sleep(POLL).await,
        }
    }
}

/// A duration for people.
pub(crate) fn millis(duration: Duration) -> String {
    format!("{} ms", duration.as_millis())
}
