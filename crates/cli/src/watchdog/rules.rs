//! What the watchdog does when: a protocol without a clock, a process or a socket. Events go in
//! with the time at which they happened, actions come out; somebody else carries them out.
//!
//! The driver's loop: wait until [`Rules::wakes_at`] or until something happens, tell
//! [`Rules::handle`], carry out what it answers in the order given. Times count from any fixed
//! moment.

use std::collections::VecDeque;
use std::time::Duration;

/// How often in a row a child may end because of its configuration before nobody tries again: a
/// file may just be in the making.
const MISCONFIGURED_STARTS: u32 = 3;

/// The highest ceiling, and how many restarts are remembered at most.
pub(crate) const MAX_RESTARTS: u32 = 1_000;

/// How patient the watchdog is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Pause between two checks.
    pub(crate) interval: Duration,
    /// Checks in a row that may fail before the child is restarted.
    pub(crate) failures: u32,
    /// How long the child may be on its way: from its start, or from when it first answered that
    /// it is starting or stopping.
    pub(crate) start_patience: Duration,
    /// How long it may take to end when asked to.
    pub(crate) stop_patience: Duration,
    /// Pause before the first restart; each further one within the window waits twice as long.
    pub(crate) backoff_min: Duration,
    /// Longest pause before a restart.
    pub(crate) backoff_max: Duration,
    /// Restarts within the window before the watchdog gives up; 0 means never.
    pub(crate) max_restarts: u32,
    /// For how long a restart counts.
    pub(crate) window: Duration,
}

/// What a check came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Checked {
    /// Active and working, or standing by.
    Well,
    /// It answers that it is starting or stopping.
    OnItsWay,
    /// It does not work, or does not answer.
    Failed(String),
}

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// With an exit code.
    Code(u8),
    /// By a signal.
    Signal(i32),
    /// It could not be started at all.
    NotStarted,
}

/// What has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// Time has passed.
    Time,
    /// The check that was asked for is done.
    Checked(Checked),
    /// The child has ended.
    Ended(Ended),
    /// Somebody asks the watchdog to end.
    Stop,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Start the child.
    Start,
    /// Check it, and say [`Event::Checked`] unless it ends before.
    Check,
    /// Ask it to end.
    Terminate,
    /// End it.
    Kill,
    /// Tell people.
    Say(String),
    /// The watchdog is done.
    Finish(Verdict),
}

/// Why the watchdog is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The child ended cleanly by itself, because an operator said so.
    Done,
    /// The watchdog was asked to stop, and the child has ended so.
    Stopped(Ended),
    /// Restarting does not help.
    GaveUp,
    /// The child cannot follow its configuration.
    Misconfigured,
    /// Another instance serves, and this one is configured not to wait.
    Held,
}

/// Exit code of a node that cannot follow its configuration.
pub(crate) const MISCONFIGURED: u8 = 78;
/// Exit code of a node that found the lease held and was told not to wait.
pub(crate) const HELD: u8 = 75;

#[derive(Debug)]
enum State {
    /// No child; the next one starts then.
    Waiting {
        until: Duration,
    },
    Running(Running),
    /// The child was asked to end.
    Ending {
        kill_at: Option<Duration>,
        /// Nobody starts it again.
        last: bool,
    },
    Finished,
}

#[derive(Debug)]
struct Running {
    /// Since when it is on its way, if it is.
    on_its_way: Option<Duration>,
    failures: u32,
    /// When it is checked next; nothing while a check is under way.
    check_at: Option<Duration>,
}

/// The rules' memory.
#[derive(Debug)]
pub(crate) struct Rules {
    limits: Limits,
    state: State,
    /// When the restarts within the window were decided.
    restarts: VecDeque<Duration>,
    misconfigured: u32,
}

impl Rules {
    /// Rules for a child that is to be started at once.
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            state: State::Waiting {
                until: Duration::ZERO,
            },
            restarts: VecDeque::new(),
            misconfigured: 0,
        }
    }

    /// When [`Event::Time`] is due, unless something happens before.
    pub(crate) fn wakes_at(&self) -> Option<Duration> {
        match &self.state {
            State::Waiting { until } => Some(*until),
            State::Running(running) => running.check_at,
            State::Ending { kill_at, .. } => *kill_at,
            State::Finished => None,
        }
    }

    /// Takes note of what has happened at `now`; what is to be done.
    pub(crate) fn handle(&mut self, now: Duration, event: Event) -> Vec<Action> {
        match event {
            Event::Time => self.time(now),
            Event::Checked(checked) => self.checked(now, checked),
            Event::Ended(ended) => self.ended(now, ended),
            Event::Stop => self.stop(now),
        }
    }

    fn time(&mut self, now: Duration) -> Vec<Action> {
        match &mut self.state {
            State::Waiting { until } if *until <= now => {
                self.state = State::Running(Running {
                    on_its_way: Some(now),
                    failures: 0,
                    check_at: Some(now + self.limits.interval),
                });
                vec![Action::Start]
            }
            State::Running(running) if running.check_at.is_some_and(|at| at <= now) => {
                running.check_at = None;
                vec![Action::Check]
            }
            State::Ending { kill_at, .. } if kill_at.is_some_and(|at| at <= now) => {
                *kill_at = None;
                let patience = self.limits.stop_patience;
                vec![
                    Action::Say(format!("it has not ended within {patience:?}; killing it")),
                    Action::Kill,
                ]
            }
            _ => Vec::new(),
        }
    }

    fn checked(&mut self, now: Duration, checked: Checked) -> Vec<Action> {
        let limits = &self.limits;
        let State::Running(running) = &mut self.state else {
            return Vec::new();
        };
        running.check_at = Some(now + limits.interval);
        let why = match checked {
            Checked::Well => {
                running.failures = 0;
                self.misconfigured = 0;
                let came_up = running.on_its_way.take().is_some();
                let say = came_up.then(|| Action::Say("it is well".to_owned()));
                return say.into_iter().collect();
            }
            Checked::OnItsWay => {
                let since = *running.on_its_way.get_or_insert(now);
                running.failures = 0;
                if now.saturating_sub(since) < limits.start_patience {
                    return Vec::new();
                }
                format!(
                    "it has been starting or stopping for more than {:?}",
                    limits.start_patience
                )
            }
            Checked::Failed(why) => {
                // A child that has not been well yet may take its time: it migrates, it connects.
                if running
                    .on_its_way
                    .is_some_and(|since| now.saturating_sub(since) < limits.start_patience)
                {
                    return Vec::new();
                }
                running.failures += 1;
                if running.failures < limits.failures {
                    return vec![Action::Say(format!(
                        "check {} of {} failed: {why}",
                        running.failures, limits.failures
                    ))];
                }
                why
            }
        };
        self.state = State::Ending {
            kill_at: Some(now + limits.stop_patience),
            last: false,
        };
        vec![
            Action::Say(format!("it is not well, and is asked to end: {why}")),
            Action::Terminate,
        ]
    }

    fn ended(&mut self, now: Duration, ended: Ended) -> Vec<Action> {
        let verdict = match (&self.state, ended) {
            (State::Finished | State::Waiting { .. }, _) => return Vec::new(),
            (State::Ending { last: true, .. }, ended) => Some(Verdict::Stopped(ended)),
            // It did what we asked it to do; we asked because it was not well.
            (State::Ending { .. }, _) => None,
            (State::Running(_), Ended::Code(0)) => Some(Verdict::Done),
            (State::Running(_), Ended::Code(HELD)) => Some(Verdict::Held),
            (State::Running(_), Ended::Code(MISCONFIGURED) | Ended::NotStarted) => {
                self.misconfigured += 1;
                (self.misconfigured >= MISCONFIGURED_STARTS).then_some(Verdict::Misconfigured)
            }
            (State::Running(_), _) => None,
        };
        match verdict {
            Some(verdict) => self.finish(verdict),
            None => self.restart(now, ended),
        }
    }

    fn restart(&mut self, now: Duration, ended: Ended) -> Vec<Action> {
        let limits = &self.limits;
        while let Some(first) = self.restarts.front()
            && *first + limits.window <= now
        {
            self.restarts.pop_front();
        }
        let before = u32::try_from(self.restarts.len()).unwrap_or(u32::MAX);
        if limits.max_restarts != 0 && before >= limits.max_restarts {
            return self.finish(Verdict::GaveUp);
        }
        let factor = 1_u32.checked_shl(before).unwrap_or(u32::MAX);
        let pause = limits
            .backoff_min
            .checked_mul(factor)
            .map_or(limits.backoff_max, |pause| pause.min(limits.backoff_max));
        self.restarts.push_back(now);
        if self.restarts.len() > MAX_RESTARTS as usize {
            self.restarts.pop_front();
        }
        self.state = State::Waiting { until: now + pause };
        vec![Action::Say(format!(
            "it has ended {}; starting it again in {pause:?}",
            describe(ended)
        ))]
    }

    fn stop(&mut self, now: Duration) -> Vec<Action> {
        match &mut self.state {
            State::Finished => Vec::new(),
            State::Waiting { .. } => self.finish(Verdict::Stopped(Ended::Code(0))),
            State::Running(_) => {
                self.state = State::Ending {
                    kill_at: Some(now + self.limits.stop_patience),
                    last: true,
                };
                vec![Action::Terminate]
            }
            // Whoever asks twice does not want to wait.
            State::Ending { kill_at, last } if *last => {
                *kill_at = None;
                vec![Action::Kill]
            }
            State::Ending { last, .. } => {
                *last = true;
                Vec::new()
            }
        }
    }

    fn finish(&mut self, verdict: Verdict) -> Vec<Action> {
        self.state = State::Finished;
        let limits = &self.limits;
        let say = match verdict {
            Verdict::Done => "it has ended because an operator said so, and stays ended".to_owned(),
            Verdict::Stopped(ended) => format!("it has ended {}", describe(ended)),
            Verdict::GaveUp => format!(
                "GIVING UP: it had to be restarted {} times within {:?}. Nobody looks after it \
                 any more: find the reason in its log, and start the watchdog again",
                limits.max_restarts, limits.window
            ),
            Verdict::Misconfigured => format!(
                "GIVING UP: it ended {MISCONFIGURED_STARTS} times at its start because it cannot \
                 follow its configuration. Correct what it says above, and start the watchdog again"
            ),
            Verdict::Held => "another instance serves this node, and the configuration says \
                              whenHeld = EXIT; it stays ended"
                .to_owned(),
        };
        vec![Action::Say(say), Action::Finish(verdict)]
    }
}

fn describe(ended: Ended) -> String {
    match ended {
        Ended::Code(0) => "with exit code 0".to_owned(),
        Ended::Code(code) => format!("with exit code {code}"),
        Ended::Signal(signal) => format!("by signal {signal}"),
        Ended::NotStarted => "before it began".to_owned(),
    }
}

#[cfg(test)]
mod tests;
