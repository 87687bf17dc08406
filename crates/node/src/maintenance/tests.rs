use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use quorate_identity::X500Name;
use quorate_runtime::{ManualClock, Metrics};
use quorate_storage::lease::{Attempt, Candidate, Holder, Policy};
use quorate_storage::{Options, Received, Relevance, RpcAuditFilter, RpcInvocation, migrate};

use super::*;

const START: &str = "2026-11-20T14:00:00Z";

fn mode(schedule: &str, seconds: u64) -> MaintenanceMode {
    MaintenanceMode {
        schedule: schedule.parse().unwrap(),
        duration: Duration::from_secs(seconds),
        rpc_audit_retention: Period::Days(100),
        processed_messages: Some(ProcessedMessageCleanup {
            general_retention_days: None,
            sender_retention_days: 7,
        }),
    }
}

/// The loop under a clock that is moved by hand.
struct Rig {
    maintenance: Arc<Maintenance>,
    clock: ManualClock,
    /// Windows that have begun.
    begun: Arc<AtomicUsize>,
}

impl Rig {
    /// Windows that take so long each.
    fn start(schedule: &str, expected: u64, takes: u64) -> Self {
        let start: Timestamp = START.parse().unwrap();
        let (clock, manual) = Clock::manual(start.as_micros());
        let maintenance = Arc::new(Maintenance {
            mode: mode(schedule, expected),
            clock: clock.clone(),
            shutdown: Shutdown::new(),
            metrics: MaintenanceMetrics::new(&Metrics::new()),
        });
        let begun = Arc::new(AtomicUsize::new(0));
        let (running, count) = (maintenance.clone(), begun.clone());
        tokio::spawn(async move {
            let window = || {
                count.fetch_add(1, Ordering::SeqCst);
                running.clock.sleep(Duration::from_secs(takes))
            };
            running.run_windows(window).await;
        });
        Self {
            maintenance,
            clock: manual,
            begun,
        }
    }

    /// Lets time pass, a second at a time, and everybody do what is then to be done.
    async fn pass(&self, seconds: u64) {
        for _ in 0..seconds {
            self.settle().await;
            self.clock.advance(Duration::from_secs(1));
        }
        self.settle().await;
    }

    async fn settle(&self) {
        // One thread: whoever can go on has done so after a few turns.
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }

    /// Begun, ended, overrun and missed windows.
    fn counts(&self) -> (usize, u64, u64, u64) {
        let metrics = &self.maintenance.metrics;
        (
            self.begun.load(Ordering::SeqCst),
            metrics.windows.get(),
            metrics.overruns.get(),
            metrics.missed.get(),
        )
    }
}

#[tokio::test]
async fn windows_begin_when_they_are_due() {
    let rig = Rig::start("0 30 14,15 * * 5", 600, 60);
    rig.pass(29 * 60 + 59).await;
    assert_eq!(rig.counts(), (0, 0, 0, 0));
    rig.pass(1).await;
    assert_eq!(rig.counts(), (1, 0, 0, 0));
    assert_eq!(rig.maintenance.metrics.running.get(), 1);
    rig.pass(60).await;
    assert_eq!(rig.counts(), (1, 1, 0, 0));
    assert_eq!(rig.maintenance.metrics.running.get(), 0);
    rig.pass(3_600).await;
    assert_eq!(rig.counts(), (2, 2, 0, 0));
}

#[tokio::test]
async fn a_window_that_takes_too_long_is_counted_and_those_in_its_way_are_not_run() {
    // Each minute, 10 s expected, 130 s taken: two windows are missed, and the next begins in time.
    let rig = Rig::start("0 * * * * *", 10, 130);
    rig.pass(60 + 129).await;
    assert_eq!(rig.counts(), (1, 0, 0, 0));
    rig.pass(1).await;
    assert_eq!(rig.counts(), (1, 1, 1, 2));
    rig.pass(49).await;
    assert_eq!(rig.counts(), (1, 1, 1, 2));
    rig.pass(1).await;
    assert_eq!(rig.counts(), (2, 1, 1, 2));
}

#[tokio::test]
async fn a_window_of_which_the_beginning_has_passed_is_missed() {
    let rig = Rig::start("0 30 14,15 * * 5", 600, 1);
    rig.pass(1).await;
    // A machine that was asleep, or a clock that was wrong.
    let later: Timestamp = "2026-11-20T14:40:00Z".parse().unwrap();
    rig.clock.set_wall_micros(later.as_micros());
    rig.pass(LOOK.as_secs()).await;
    assert_eq!(rig.counts(), (0, 0, 0, 1));
    rig.pass(50 * 60).await;
    assert_eq!(rig.counts(), (1, 1, 0, 1));
}

#[tokio::test]
async fn a_clock_that_is_set_back_brings_earlier_windows_again() {
    let rig = Rig::start("0 30 14,15 * * 5", 600, 1);
    rig.pass(31 * 60).await;
    assert_eq!(rig.counts(), (1, 1, 0, 0));
    let earlier: Timestamp = "2026-11-20T14:20:00Z".parse().unwrap();
    rig.clock.set_wall_micros(earlier.as_micros());
    rig.pass(11 * 60).await;
    assert_eq!(rig.counts(), (2, 2, 0, 0));
}

#[tokio::test]
async fn stopping_ends_the_wait() {
    let rig = Rig::start("0 0 0 29 2 *", 600, 1);
    rig.pass(1).await;
    assert_eq!(Arc::strong_count(&rig.maintenance), 2);
    rig.maintenance.shutdown.request("the test is over");
    rig.settle().await;
    assert_eq!(Arc::strong_count(&rig.maintenance), 1);
}

#[test]
fn a_retention_is_the_longer_of_both_and_the_event_horizon_counts_by_default() {
    let days = |days: u64| Duration::from_secs(days * 86_400);
    let cleanup = |general, sender| ProcessedMessageCleanup {
        general_retention_days: general,
        sender_retention_days: sender,
    };
    assert_eq!(cleanup(None, 7).retention(days(30)), days(37));
    assert_eq!(cleanup(None, 7).retention(days(36_500)), days(372));
    assert_eq!(cleanup(Some(334), 445).retention(days(30)), days(445));
    assert_eq!(cleanup(Some(500), 7).retention(days(30)), days(500));
    let tasks = Task::of(&mode("0 0 0 * * *", 1), days(30));
    let now: Timestamp = START.parse().unwrap();
    assert_eq!(tasks.len(), 2);
    assert_eq!(tasks[0].before(now), now - days(100));
    assert_eq!(tasks[1].before(now), now - days(37));
}

/// The tasks against real tables: what is young stays, what is old goes, and the rest of the store is untouched.
#[tokio::test(flavor = "multi_thread")]
async fn tasks_remove_what_is_outdated_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}/node.db", folder.path().display());
    let options: Options = url.parse().unwrap();
    let store = Store::connect(options, Vec::new()).await.unwrap();
    migrate::execute(&store).await.unwrap();
    let holder = Holder::this_process("machine", "/opt/node");
    let mut candidate = Candidate::new(&store, "node", holder, Policy::Always);
    let Attempt::Acquired(fence) = candidate.attempt().await.unwrap() else {
        panic!("nobody else is there")
    };
    let (writer, service) = store.writer(fence, Relevance::default());
    let service = tokio::spawn(service.run());
    let peer: X500Name = "O=PartyB, L=Osaka, C=JP".parse().unwrap();
    for epoch in 1..=3 {
        let message = Received {
            peer: peer.clone(),
            epoch: [epoch; 16],
            sequence: 1,
            envelope: vec![epoch].into(),
        };
        let unit = UnitOfWork::receive(vec![message]);
        writer.commit(unit).await.unwrap();
    }
    let many = 2 * quorate_storage::CLEANUP_ROWS + 1;
    let calls = (0..many).map(|number| RpcInvocation {
        id: u128::from(number).to_be_bytes(),
        username: "ops".into(),
        interface: "test",
        action: "nodeInfo".into(),
        parameters: String::new(),
        allowed: true,
    });
    let calls = UnitOfWork {
        rpc_audit: calls.collect(),
        ..UnitOfWork::default()
    };
    writer.commit(calls).await.unwrap();
    // Everything is older than this.
    tokio::time::sleep(Duration::from_millis(5)).await;

    let tables = Tables {
        store: store.clone(),
        writer,
        shutdown: Shutdown::new(),
    };
    let metrics = MaintenanceMetrics::new(&Metrics::new());
    let young = [
        Task::RpcAudit {
            retention: Period::Days(1),
        },
        Task::ProcessedMessages {
            retention: Duration::from_secs(60),
        },
    ];
    for task in young {
        assert_eq!(tables.perform(task, &metrics).await.unwrap(), 0);
    }
    let all = RpcAuditFilter::default();
    let calls = store.rpc_audit(&all, None, 10_000).await.unwrap();
    assert_eq!(calls.len(), many as usize);

    // A period has no less than a day: its table is asked directly for what is old now.
    let now = store.now().await.unwrap();
    let outdated = store.outdated_rpc_audit(now).await.unwrap();
    let unit = UnitOfWork::cleanup(outdated);
    let removed = tables.writer.commit(unit).await.unwrap().removed_rows;
    assert_eq!(removed, u64::from(quorate_storage::CLEANUP_ROWS));
    let old = Task::ProcessedMessages {
        retention: Duration::ZERO,
    };
    assert_eq!(tables.perform(old, &metrics).await.unwrap(), 2);
    assert_eq!(tables.perform(old, &metrics).await.unwrap(), 0);
    assert_eq!(store.inbox(None, 10).await.unwrap().len(), 3);
    drop(tables);
    service.await.unwrap();
}
