//! Time as a value that is handed down.
//!
//! A [`Clock`] tells the wall time (for what people and other machines read) and a monotonic time (for intervals), and
//! sleeps. Lease decisions use neither: they use the database's clock. Tests take [`Clock::manual`], in which time
//! moves only when told to.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::watch;

/// A source of time; cheap to clone.
#[derive(Clone)]
pub struct Clock {
    source: Source,
}

#[derive(Clone)]
enum Source {
    System { origin: Instant },
    Manual(watch::Receiver<Reading>),
}

#[derive(Clone, Copy)]
struct Reading {
    wall_micros: i64,
    monotonic: Duration,
}

impl Clock {
    /// The machine's clock.
    pub fn system() -> Self {
        Self {
            source: Source::System {
                origin: Instant::now(),
            },
        }
    }

    /// A clock that stands still at `wall_micros` until its [`ManualClock`] moves it.
    pub fn manual(wall_micros: i64) -> (Clock, ManualClock) {
        let (sender, receiver) = watch::channel(Reading {
            wall_micros,
            monotonic: Duration::ZERO,
        });
        (
            Clock {
                source: Source::Manual(receiver),
            },
            ManualClock {
                sender: Arc::new(sender),
            },
        )
    }

    /// Wall time in microseconds since the Unix epoch. May jump, also backwards.
    pub fn now_micros(&self) -> i64 {
        match &self.source {
            Source::System { .. } => match SystemTime::now().duration_since(UNIX_EPOCH) {
                Ok(after) => i64::try_from(after.as_micros()).unwrap_or(i64::MAX),
                Err(before) => {
                    i64::try_from(before.duration().as_micros()).map_or(i64::MIN, |micros| -micros)
                }
            },
            Source::Manual(reading) => reading.borrow().wall_micros,
        }
    }

    /// Wall time in whole seconds since the Unix epoch, as certificates count it.
    pub fn now_seconds(&self) -> i64 {
        self.now_micros().div_euclid(1_000_000)
    }

    /// Wall time as RFC 3339 writes it, in UTC.
    pub fn rfc3339(&self) -> String {
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.now_micros()) * 1000)
            .ok()
            .and_then(|time| time.format(&Rfc3339).ok())
            .unwrap_or_default()
    }

    /// Time since some fixed moment in this process. Never goes backwards; two clones agree.
    pub fn monotonic(&self) -> Duration {
        match &self.source {
            Source::System { origin } => origin.elapsed(),
            Source::Manual(reading) => reading.borrow().monotonic,
        }
    }

    /// Waits for `duration` of monotonic time, counted from this call. Dropping the future loses nothing. On a manual
    /// clock whose [`ManualClock`] is gone, time stands still for ever.
    pub fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + Send + 'static {
        let until = self.monotonic().saturating_add(duration);
        let source = self.source.clone();
        let system = matches!(source, Source::System { .. }).then(|| tokio::time::sleep(duration));
        async move {
            if let Some(sleep) = system {
                sleep.await;
            } else if let Source::Manual(mut reading) = source
                && reading
                    .wait_for(|now| now.monotonic >= until)
                    .await
                    .is_err()
            {
                std::future::pending::<()>().await;
            }
        }
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::system()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.source {
            Source::System { .. } => "system",
            Source::Manual(_) => "manual",
        };
        f.debug_struct("Clock")
            .field("source", &kind)
            .field("now_micros", &self.now_micros())
            .finish()
    }
}

/// The hand that moves a manual [`Clock`].
#[derive(Clone)]
pub struct ManualClock {
    sender: Arc<watch::Sender<Reading>>,
}

impl ManualClock {
    /// Moves both times forward and wakes the sleepers whose time has come.
    pub fn advance(&self, by: Duration) {
        self.sender.send_modify(|reading| {
            reading.monotonic = reading.monotonic.saturating_add(by);
            let micros = i64::try_from(by.as_micros()).unwrap_or(i64::MAX);
            reading.wall_micros = reading.wall_micros.saturating_add(micros);
        });
    }

    /// Makes the wall time jump, as an operator or NTP does; monotonic time is untouched.
    pub fn set_wall_micros(&self, wall_micros: i64) {
        self.sender
            .send_modify(|reading| reading.wall_micros = wall_micros);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_manual_clock_moves_only_when_told() {
        let (clock, hand) = Clock::manual(5_000_000);
        let sleeper = clock.clone();
        let mut nap = Box::pin(sleeper.sleep(Duration::from_secs(10)));
        hand.advance(Duration::from_secs(9));
        assert!(
            tokio::time::timeout(Duration::from_millis(5), &mut nap)
                .await
                .is_err()
        );
        hand.set_wall_micros(-1);
        assert_eq!((clock.now_micros(), clock.now_seconds()), (-1, -1));
        assert_eq!(clock.monotonic(), Duration::from_secs(9));
        hand.advance(Duration::from_secs(1));
        nap.await;
        assert_eq!(clock.now_micros(), 999_999);
    }

    #[test]
    fn the_system_clock_is_after_this_program_was_written() {
        let clock = Clock::system();
        assert!(clock.now_seconds() > 1_750_000_000);
        let before = clock.monotonic();
        assert!(clock.clone().monotonic() >= before);
    }
}
