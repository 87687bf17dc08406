//! What the demonstration prints: numbered steps, events on one clock, and what is so after them.

use std::time::Instant;

use quorate_ledger::Timestamp;
use quorate_runtime::Clock;

/// The clock of the demonstration, and whether everything was right so far.
pub(super) struct Timeline {
    zero: Instant,
    /// The same moment by the clock of nodes and databases.
    zero_time: Timestamp,
    /// Events that are not shown yet.
    events: Vec<(Instant, String)>,
    steps: u32,
    correct: bool,
}

impl Timeline {
    /// The clock starts.
    pub(super) fn start() -> Self {
        Self {
            zero: Instant::now(),
            zero_time: Timestamp::from_micros(Clock::system().now_micros()),
            events: Vec::new(),
            steps: 0,
            correct: true,
        }
    }

    pub(super) fn title(&mut self, title: &str) {
        self.flush();
        self.steps += 1;
        println!();
        println!("{:>2}. {title}", self.steps);
    }

    /// The number of this step.
    pub(super) fn step(&self) -> u32 {
        self.steps
    }

    /// An event, to be shown in the order of time: before the next title or note.
    pub(super) fn tell(&mut self, at: Instant, text: impl Into<String>) {
        self.events.push((at, text.into()));
    }

    fn flush(&mut self) {
        self.events.sort_by_key(|(at, _)| *at);
        for (at, text) in std::mem::take(&mut self.events) {
            let before = self.zero.saturating_duration_since(at).as_secs_f64();
            let after = at.saturating_duration_since(self.zero).as_secs_f64();
            println!("  {:>8.3} s  {text}", after - before);
        }
    }

    /// Something that is so now.
    pub(super) fn note(&mut self, what: &str, text: &str) {
        self.flush();
        println!("{:14}{what:<12}{text}", "");
    }

    /// A line of a table.
    pub(super) fn row(&mut self, text: &str) {
        self.flush();
        println!("{:14}{text}", "");
    }

    /// Says what is wrong if something is not right.
    pub(super) fn judge(&mut self, right: bool, otherwise: &str) {
        if !right {
            self.note("WRONG", otherwise);
            self.correct = false;
        }
    }

    /// Whether everything was right.
    pub(super) fn is_correct(&self) -> bool {
        self.correct
    }

    /// A moment of the clock of nodes and databases, in seconds of this one.
    pub(super) fn seconds(&self, at: Timestamp) -> f64 {
        (at.as_micros() - self.zero_time.as_micros()) as f64 / 1e6
    }
}
