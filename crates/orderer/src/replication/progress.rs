//! How far a replication is, how fast, and how long it will take.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The rate is that of so much time.
const WINDOW: Duration = Duration::from_secs(10);

/// The least time between two looks at the rate.
const STEP: Duration = Duration::from_millis(250);

/// How often the log tells of it.
const REPORT: Duration = Duration::from_secs(10);

/// Where a replication stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// Blocks that are here.
    pub height: u64,
    /// Blocks that are to be here.
    pub target: u64,
    /// Blocks that have come per second, in the last seconds.
    pub blocks_per_second: u64,
    /// Seconds until the target is reached at this rate; `None` while nothing comes.
    pub seconds_left: Option<u64>,
}

/// Watches a replication.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    samples: VecDeque<(Duration, u64)>,
    reported: Option<Duration>,
}

/// What is new after a look.
pub(crate) struct Look {
    pub(crate) progress: Progress,
    /// Whether the log should tell of it now.
    pub(crate) is_due: bool,
}

impl Pace {
    /// Looks at the time `now` (of a clock that never goes back); `None` when the last look was only just before.
    pub(crate) fn look(&mut self, now: Duration, height: u64, target: u64) -> Option<Look> {
        let last = self.samples.back().map(|(at, _)| *at);
        if last.is_some_and(|at| now.saturating_sub(at) < STEP) && height < target {
            return None;
        }
        self.samples.push_back((now, height));
        while self.samples.len() > 2
            && self
                .samples
                .front()
                .is_some_and(|(at, _)| now.saturating_sub(*at) > WINDOW)
        {
            self.samples.pop_front();
        }
        let (since, from) = self.samples.front().copied().unwrap_or((now, height));
        let millis = u64::try_from(now.saturating_sub(since).as_millis()).unwrap_or(u64::MAX);
        let blocks = height.saturating_sub(from);
        let rate = (blocks.saturating_mul(1000)).checked_div(millis);
        let left = target.saturating_sub(height);
        let progress = Progress {
            height,
            target,
            blocks_per_second: rate.unwrap_or(0),
            seconds_left: match blocks {
                _ if left == 0 => Some(0),
                0 => None,
                blocks => Some(left.saturating_mul(millis) / blocks / 1000),
            },
        };
        let reported = self.reported.get_or_insert(now);
        let is_due = now.saturating_sub(*reported) >= REPORT;
        if is_due {
            *reported = now;
        }
        Some(Look { progress, is_due })
    }
}

impl std::fmt::Display for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            height,
            target,
            blocks_per_second,
            seconds_left,
        } = self;
        write!(
            f,
            "{height} of {target} blocks, {blocks_per_second} blocks/s"
        )?;
        match seconds_left {
            Some(seconds) => write!(f, ", about {} left", human(*seconds)),
            None => f.write_str(", nothing has come lately"),
        }
    }
}

fn human(seconds: u64) -> String {
    match (seconds / 3600, seconds % 3600 / 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use super::*;

    #[test]
    fn the_rate_is_that_of_the_last_seconds() {
        let mut pace = Pace::default();
        let second = Duration::from_secs;
        let first = pace.look(second(100), 0, 10_000).unwrap();
        assert_eq!(first.progress.seconds_left, None);
        assert!(pace.look(second(100), 1, 10_000).is_none());
        for passed in 1..=30 {
            let look = pace
                .look(second(100 + passed), passed * 100, 10_000)
                .unwrap();
            assert_eq!(look.progress.blocks_per_second, 100);
            assert_eq!(look.progress.seconds_left, Some(100 - passed));
            assert_eq!(look.is_due, passed % 10 == 0, "{passed}");
        }
        // It stops.
        for passed in 31..=60 {
            pace.look(second(100 + passed), 3000, 10_000);
        }
        let stuck = pace.look(second(161), 3000, 10_000).unwrap().progress;
        assert_eq!((stuck.blocks_per_second, stuck.seconds_left), (0, None));
        assert_eq!(
            stuck.to_string(),
            "3000 of 10000 blocks, 0 blocks/s, nothing has come lately"
        );
        let over = pace.look(second(161), 10_000, 10_000).unwrap().progress;
        assert_eq!(over.seconds_left, Some(0));
    }

    #[test]
    fn times_are_for_people() {
        for (seconds, text) in [(5, "5 s"), (65, "1 min 5 s"), (7265, "2 h 1 min")] {
            assert_eq!(human(seconds), text);
        }
    }
}
