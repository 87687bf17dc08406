use proptest::prelude::*;

use super::*;

fn limits() -> Limits {
    Limits {
        interval: Duration::from_secs(5),
        failures: 2,
        start_patience: Duration::from_secs(100),
        stop_patience: Duration::from_secs(30),
        backoff_min: Duration::from_secs(1),
        backoff_max: Duration::from_secs(8),
        max_restarts: 5,
        window: Duration::from_secs(600),
    }
}

/// The rules with a clock that goes to whatever is due.
struct Story {
    rules: Rules,
    now: Duration,
}

impl Story {
    fn new(limits: Limits) -> Self {
        let mut story = Self {
            rules: Rules::new(limits),
            now: Duration::ZERO,
        };
        assert_eq!(story.due(), [Action::Start]);
        story
    }

    fn running() -> Self {
        let mut story = Self::new(limits());
        assert_eq!(story.due(), [Action::Check]);
        story.tell(Event::Checked(Checked::Well));
        story
    }

    /// What is done when the next deadline comes.
    fn due(&mut self) -> Vec<Action> {
        self.now = self.rules.wakes_at().expect("something is due");
        self.tell(Event::Time)
    }

    /// What is done about an event, leaving out what is said.
    fn tell(&mut self, event: Event) -> Vec<Action> {
        let mut actions = self.rules.handle(self.now, event);
        actions.retain(|action| !matches!(action, Action::Say(_)));
        actions
    }

    fn later(&mut self, seconds: u64) -> &mut Self {
        self.now += Duration::from_secs(seconds);
        self
    }

    fn failed(&mut self) -> Vec<Action> {
        self.tell(Event::Checked(Checked::Failed("no answer".to_owned())))
    }
}

#[test]
fn a_killed_child_is_started_again_and_each_time_later() {
    let mut story = Story::running();
    for pause in [1, 2, 4, 8, 8] {
        let ended = story.now;
        assert_eq!(story.tell(Event::Ended(Ended::Signal(9))), []);
        assert_eq!(story.due(), [Action::Start]);
        assert_eq!(story.now - ended, Duration::from_secs(pause));
    }
    assert_eq!(
        story.tell(Event::Ended(Ended::Code(1))),
        [Action::Finish(Verdict::GaveUp)]
    );
    assert_eq!(story.rules.wakes_at(), None);
}

#[test]
fn what_was_long_ago_does_not_count() {
    let mut story = Story::running();
    for _ in 0..100 {
        let ended = story.now;
        assert_eq!(story.tell(Event::Ended(Ended::Code(1))), []);
        assert_eq!(story.due(), [Action::Start]);
        assert_eq!(story.now - ended, Duration::from_secs(1));
        story.later(600);
    }
}

#[test]
fn without_a_ceiling_it_never_gives_up() {
    let mut story = Story::new(Limits {
        max_restarts: 0,
        ..limits()
    });
    for _ in 0..1000 {
        assert_eq!(story.tell(Event::Ended(Ended::Code(1))), []);
        assert_eq!(story.due(), [Action::Start]);
    }
}

#[test]
fn who_ends_cleanly_stays_ended() {
    let mut story = Story::running();
    assert_eq!(
        story.tell(Event::Ended(Ended::Code(0))),
        [Action::Finish(Verdict::Done)]
    );
}

#[test]
fn a_child_that_is_not_to_wait_for_the_lease_stays_ended() {
    let mut story = Story::new(limits());
    assert_eq!(
        story.tell(Event::Ended(Ended::Code(HELD))),
        [Action::Finish(Verdict::Held)]
    );
}

#[test]
fn a_configuration_that_cannot_be_followed_is_not_tried_for_long() {
    for ended in [Ended::Code(MISCONFIGURED), Ended::NotStarted] {
        let mut story = Story::new(limits());
        for _ in 1..MISCONFIGURED_STARTS {
            assert_eq!(story.tell(Event::Ended(ended)), []);
            assert_eq!(story.due(), [Action::Start]);
        }
        assert_eq!(
            story.tell(Event::Ended(ended)),
            [Action::Finish(Verdict::Misconfigured)]
        );
    }
}

#[test]
fn a_slow_start_is_tolerated_and_a_stuck_one_is_not() {
    let mut story = Story::new(limits());
    let mut failures = 0;
    let ended = loop {
        assert_eq!(story.due(), [Action::Check]);
        let actions = story.failed();
        failures += u32::from(story.now >= Duration::from_secs(100));
        if !actions.is_empty() {
            break actions;
        }
    };
    assert_eq!(ended, [Action::Terminate]);
    assert_eq!(failures, limits().failures);
}

#[test]
fn a_standby_that_becomes_active_may_take_its_time() {
    let mut story = Story::running();
    let began = story.now;
    let ended = loop {
        assert_eq!(story.due(), [Action::Check]);
        let actions = story.tell(Event::Checked(Checked::OnItsWay));
        if !actions.is_empty() {
            break actions;
        }
    };
    assert_eq!(ended, [Action::Terminate]);
    assert!(story.now - began >= Duration::from_secs(100));
}

#[test]
fn one_failed_check_is_forgiven_and_the_second_is_not() {
    let mut story = Story::running();
    for _ in 0..10 {
        assert_eq!(story.due(), [Action::Check]);
        assert_eq!(story.failed(), []);
        assert_eq!(story.due(), [Action::Check]);
        assert_eq!(story.tell(Event::Checked(Checked::Well)), []);
    }
    assert_eq!(story.due(), [Action::Check]);
    assert_eq!(story.failed(), []);
    assert_eq!(story.due(), [Action::Check]);
    assert_eq!(story.failed(), [Action::Terminate]);
    // Asked politely, and it does not end: then not politely.
    let asked = story.now;
    assert_eq!(story.due(), [Action::Kill]);
    assert_eq!(story.now - asked, Duration::from_secs(30));
    assert_eq!(story.rules.wakes_at(), None);
    assert_eq!(story.tell(Event::Ended(Ended::Signal(9))), []);
    assert_eq!(story.due(), [Action::Start]);
}

#[test]
fn a_sick_child_that_ends_cleanly_when_asked_is_started_again() {
    let mut story = Story::running();
    for _ in 0..2 {
        story.due();
        story.failed();
    }
    assert_eq!(story.tell(Event::Ended(Ended::Code(0))), []);
    assert_eq!(story.due(), [Action::Start]);
}

#[test]
fn a_stop_is_passed_on_and_the_second_one_kills() {
    let mut story = Story::running();
    assert_eq!(story.tell(Event::Stop), [Action::Terminate]);
    assert_eq!(story.tell(Event::Stop), [Action::Kill]);
    let ended = Ended::Signal(9);
    assert_eq!(
        story.tell(Event::Ended(ended)),
        [Action::Finish(Verdict::Stopped(ended))]
    );
    let mut between = Story::running();
    between.tell(Event::Ended(Ended::Signal(9)));
    let clean = Verdict::Stopped(Ended::Code(0));
    assert_eq!(between.tell(Event::Stop), [Action::Finish(clean)]);
}

#[test]
fn a_stop_during_a_restart_wins() {
    let mut story = Story::running();
    for _ in 0..2 {
        story.due();
        story.failed();
    }
    assert_eq!(story.tell(Event::Stop), []);
    assert_eq!(story.due(), [Action::Kill]);
    let ended = Ended::Signal(9);
    assert_eq!(
        story.tell(Event::Ended(ended)),
        [Action::Finish(Verdict::Stopped(ended))]
    );
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => Just(Event::Time),
        1 => Just(Event::Checked(Checked::Well)),
        1 => Just(Event::Checked(Checked::OnItsWay)),
        2 => Just(Event::Checked(Checked::Failed("why".to_owned()))),
        2 => (0_u8..80).prop_map(|code| Event::Ended(Ended::Code(code))),
        1 => Just(Event::Ended(Ended::Signal(9))),
    ]
}

proptest! {
    /// Whatever happens: there is at most one child, only a child is signalled, and within any
    /// window there are no more starts than the ceiling allows, and the first one.
    #[test]
    fn never_two_children_and_never_too_many_starts(
        events in proptest::collection::vec((0_u64..40, any_event()), 0..400)
    ) {
        let limits = limits();
        let mut rules = Rules::new(limits.clone());
        let (mut now, mut child, mut starts) = (Duration::ZERO, false, Vec::new());
        for (seconds, event) in events {
            now += Duration::from_secs(seconds);
            if matches!(event, Event::Ended(_)) {
                if !child {
                    continue;
                }
                child = false;
            }
            for action in rules.handle(now, event) {
                match action {
                    Action::Start => {
                        prop_assert!(!child);
                        child = true;
                        starts.push(now);
                    }
                    Action::Check | Action::Terminate | Action::Kill => prop_assert!(child),
                    Action::Finish(_) => prop_assert!(!child),
                    Action::Say(_) => {}
                }
            }
        }
        let most = limits.max_restarts as usize + 1;
        for (index, first) in starts.iter().enumerate() {
            let within = starts[index..].iter().filter(|at| **at - *first < limits.window);
            prop_assert!(within.count() <= most + 1);
        }
    }
}
