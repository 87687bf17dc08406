//! One writer, whoever is slow, stopped, dead or mistaken.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_storage::lease::{self, Attempt, Candidate, Holder, Policy};
use quorate_storage::{Engine, Error, NotaryCommit, Store, UnitOfWork, WriterEnd, migrate};
use rstest::rstest;

use crate::support::*;

fn exclusive(wait_millis: u64) -> Policy {
    Policy::exclusive(
        Duration::from_millis(wait_millis / 3),
        Duration::from_millis(wait_millis),
    )
    .unwrap()
}

/// A holder on another host, of which nothing is known here.
fn stranger(machine: &str) -> Holder {
    let mut holder = holder(machine);
    holder.process.host = "elsewhere".into();
    holder
}

#[rstest]
#[case(Engine::Sqlite)]
#[case(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_held_until_it_lapses_or_is_released(#[case] engine: Engine) {
    let Some(db) = database(engine).await else {
        return;
    };
    let store = db.store().await;
    assert_eq!(lease::current(&store, "node").await.unwrap(), None);
    let mut first = Candidate::new(&store, "node", stranger("a"), exclusive(60_000));
    let Attempt::Acquired(fence) = first.attempt().await.unwrap() else {
        panic!("the lease is free")
    };
    assert_eq!((fence.generation(), fence.instance()), (1, "a:/opt/node"));

    let mut second = Candidate::new(&store, "node", stranger("b"), exclusive(60_000));
    let Attempt::Held { lease, lapses_in } = second.attempt().await.unwrap() else {
        panic!("the lease is held")
    };
    assert_eq!((lease.holder.machine.as_str(), lease.generation), ("a", 1));
    assert!(lapses_in > Duration::from_secs(50) && lease.age() < Duration::from_secs(10));
    lease::renew(&store, &fence).await.unwrap();
    assert_eq!(lease::current(&store, "other").await.unwrap(), None);

    lease::release(&store, &fence).await.unwrap();
    assert!(matches!(
        lease::renew(&store, &fence).await,
        Err(Error::Fenced { .. })
    ));
    let started = Instant::now();
    let fence = second.acquire().await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(1));
    assert_eq!(fence.generation(), 2);
    let terms = lease::history(&store, "node", 10).await.unwrap();
    let terms: Vec<_> = terms
        .iter()
        .map(|term| (term.generation, term.holder.machine.as_str()))
        .collect();
    assert_eq!(terms, [(2, "b"), (1, "a")]);
}

#[rstest]
#[case(Engine::Sqlite)]
#[case(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_holder_is_succeeded_after_the_interval_and_a_live_one_is_not(
    #[case] engine: Engine,
) {
    let Some(db) = database(engine).await else {
        return;
    };
    let store = db.store().await;
    let Attempt::Acquired(fence) = Candidate::new(&store, "node", stranger("a"), exclusive(600))
        .attempt()
        .await
        .unwrap()
    else {
        panic!("the lease is free")
    };
    let mut second = Candidate::new(&store, "node", stranger("b"), exclusive(600));
    for _ in 0..6 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        lease::renew(&store, &fence).await.unwrap();
        assert!(matches!(
            second.attempt().await.unwrap(),
            Attempt::Held { .. }
        ));
    }
    let silent = Instant::now();
    let next = second.acquire().await.unwrap();
    let waited = silent.elapsed();
    assert!(
        waited > Duration::from_millis(500) && waited < Duration::from_secs(3),
        "{waited:?}"
    );
    assert_eq!(next.generation(), 2);
    let error = lease::renew(&store, &fence).await.unwrap_err();
    assert!(
        error.to_string().contains("generation 2 of b:/opt/node"),
        "{error}"
    );
}

#[rstest]
#[case(Engine::Sqlite)]
#[case(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_holder_that_is_known_to_be_dead_is_succeeded_at_once(#[case] engine: Engine) {
    let Some(db) = database(engine).await else {
        return;
    };
    let store = db.store().await;
    let mut dead = holder("a");
    let mut child = Command::new("true").spawn().unwrap();
    dead.process.id = child.id();
    child.wait().unwrap();
    let policy = exclusive(3_600_000);
    assert!(matches!(
        Candidate::new(&store, "node", dead, policy)
            .attempt()
            .await
            .unwrap(),
        Attempt::Acquired(_)
    ));
    let mut second = Candidate::new(&store, "node", holder("a"), policy);
    assert!(matches!(
        second.attempt().await.unwrap(),
        Attempt::Acquired(_)
    ));
    // This process lives.
    let mut third = Candidate::new(&store, "node", holder("b"), policy);
    assert!(matches!(
        third.attempt().await.unwrap(),
        Attempt::Held { .. }
    ));
}

#[rstest]
#[case(Engine::Sqlite)]
#[case(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn of_many_candidates_one_gets_the_lease(#[case] engine: Engine) {
    let Some(db) = database(engine).await else {
        return;
    };
    let store = db.store().await;
    for round in 1..=3u64 {
        let mut candidates = Vec::new();
        for number in 0..6 {
            let store = store.clone();
            candidates.push(tokio::spawn(async move {
                let holder = stranger(&format!("machine {number}"));
                Candidate::new(&store, "node", holder, exclusive(60_000))
                    .attempt()
                    .await
                    .unwrap()
            }));
        }
        let mut fences = Vec::new();
        for candidate in candidates {
            if let Attempt::Acquired(fence) = candidate.await.unwrap() {
                fences.push(fence);
            }
        }
        assert_eq!(fences.len(), 1);
        assert_eq!(fences[0].generation(), round);
        lease::release(&store, &fences[0]).await.unwrap();
    }
}

#[rstest]
#[case(Engine::Sqlite)]
#[case(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn an_old_generation_writes_nothing(#[case] engine: Engine) {
    let Some(db) = database(engine).await else {
        return;
    };
    let old = node(&db).await;
    old.start_flow(flow(1)).await;
    let fence = take(&old.store, "b").await;
    let error = old
        .writer
        .commit(UnitOfWork::step(start(flow(2), None)))
        .await
        .unwrap_err();
    assert!(is_fenced(&error), "{error}");
    let WriterEnd::Fenced(reason) = old.service.await.unwrap() else {
        panic!("the writer must stop")
    };
    assert!(
        reason.to_string().contains("generation 2 of b:/opt/node"),
        "{reason}"
    );
    assert!(
        old.writer
            .commit(UnitOfWork::step(start(flow(2), None)))
            .await
            .is_err()
    );
    let new = with_fence(old.store.clone(), fence);
    new.start_flow(flow(3)).await;
    let flows = new.store.unfinished_flows(None, 10).await.unwrap().flows;
    assert_eq!(
        flows
            .iter()
            .map(|checkpoint| checkpoint.flow)
            .collect::<Vec<_>>(),
        [flow(1), flow(3)]
    );
    let record = new.store.flow(flow(3)).await.unwrap().unwrap();
    assert_eq!(
        (record.owner.as_str(), record.generation),
        ("b:/opt/node", 2)
    );
    // Released is over as well, and by hand as by rule.
    lease::release(&new.store, new.writer.fence())
        .await
        .unwrap();
    assert!(is_fenced(
        &new.writer
            .commit(UnitOfWork::step(step(flow(3))))
            .await
            .unwrap_err()
    ));
}

#[rstest]
#[case(Engine::Sqlite)]
#[case(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_generation_is_never_given_twice_even_if_the_row_is_deleted(#[case] engine: Engine) {
    let Some(db) = database(engine).await else {
        return;
    };
    let old = node(&db).await;
    old.start_flow(flow(1)).await;
    db.run_sql("DELETE FROM leases").await;
    let fence = take(&old.store, "b").await;
    assert_eq!(fence.generation(), 2);
    assert!(is_fenced(
        &old.writer
            .commit(UnitOfWork::step(step(flow(1))))
            .await
            .unwrap_err()
    ));
}

#[test]
fn intervals_must_leave_room() {
    let second = Duration::from_secs(1);
    assert!(Policy::exclusive(second, second).is_err());
    assert!(Policy::exclusive(second, 2 * second).is_ok());
}

const CHILD_URL: &str = "QUORATE_TEST_CHILD_URL";
const CHILD_MODE: &str = "QUORATE_TEST_CHILD_MODE";

/// Not a test: another process, started by the tests below. It takes the lease, writes one unit, and then stops itself
/// in the middle of a second one (or writes without end).
#[tokio::test(flavor = "multi_thread")]
#[ignore = "started by other tests"]
async fn child() {
    let Ok(url) = std::env::var(CHILD_URL) else {
        return;
    };
    let store = Store::connect(url.parse().unwrap(), vec![coins()])
        .await
        .unwrap();
    migrate::check_current(&store).await.unwrap();
    let Attempt::Acquired(fence) = Candidate::new(&store, "node", holder("a"), exclusive(60_000))
        .attempt()
        .await
        .unwrap()
    else {
        panic!("the lease is free")
    };
    let node = with_fence(store, fence);
    node.start_flow(flow(1)).await;
    if std::env::var(CHILD_MODE).unwrap() == "flood" {
        println!("child: writing");
        for number in 10.. {
            let mut unit = UnitOfWork::step(start(flow(number), None));
            unit.outgoing.push(envelope(&them(), number));
            node.commit(unit).await;
            println!("child: {number}");
        }
    }
    let stop = |_: &[_]| {
        println!("child: stopping");
        let own = rustix::process::getpid();
        rustix::process::kill_process(own, rustix::process::Signal::STOP).unwrap();
        // The signal may have gone to another thread, and this one run on for a moment: long enough to commit while the
        // lease is still ours. Asleep it waits for the stop.
        std::thread::sleep(Duration::from_millis(200));
        // On again: from here on nothing of this transaction may become durable.
        Ok(Vec::new())
    };
    let mut unit = UnitOfWork::step(start(flow(2), None));
    unit.notary = Some(NotaryCommit {
        entries: Vec::new(),
        respond: Arc::new(stop),
    });
    match node.writer.commit(unit).await {
        Ok(_) => println!("child: committed"),
        Err(error) => println!("child: refused, fenced {}", is_fenced(&error)),
    }
}

struct Process {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Process {
    fn start(db: &Db, mode: &str) -> Self {
        let url = match (&db.server, &db.options.url) {
            (Some(server), _) => server.url(&db.name),
            (None, url) => url.to_string(),
        };
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["leases::child", "--exact", "--ignored", "--nocapture"])
            .env(CHILD_URL, url)
            .env(CHILD_MODE, mode)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// The next thing that the child says.
    fn says(&mut self) -> Option<String> {
        let line = self.lines.find_map(|line| {
            line.ok()?
                .split_once("child: ")
                .map(|(_, said)| said.to_owned())
        });
        line.map(|said| said.trim().to_owned())
    }

    fn wait_until_stopped(&self) {
        let stat = format!("/proc/{}/stat", self.child.id());
        for _ in 0..1_000 {
            let state = std::fs::read_to_string(&stat).unwrap();
            if state[state.rfind(')').unwrap()..].starts_with(") T") {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("the child did not stop");
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended long ago.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A holder stopped inside its open transaction neither delays the takeover nor writes when it goes on.
#[rstest]
#[case(Engine::Sqlite)]
#[case(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_holder_stopped_in_the_middle_of_a_transaction_is_passed_by(#[case] engine: Engine) {
    let Some(db) = database(engine).await else {
        return;
    };
    let store = db.store().await;
    let mut process = Process::start(&db, "stop");
    assert_eq!(process.says().as_deref(), Some("stopping"));
    process.wait_until_stopped();

    let started = Instant::now();
    // The lease has lapsed by the rule that is in force: nobody waits any more.
    let mut candidate = Candidate::new(&store, "node", holder("b"), Policy::Always);
    let Attempt::Acquired(fence) = candidate.attempt().await.unwrap() else {
        panic!("the lease is to be had")
    };
    assert!(
        started.elapsed() < Duration::from_secs(2),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(fence.generation(), 2);
    let node = with_fence(store, fence);
    node.start_flow(flow(3)).await;

    if engine == Engine::Postgres {
        process.signal(rustix::process::Signal::CONT);
        assert_eq!(process.says().as_deref(), Some("refused, fenced true"));
    } else {
        // The file is shared on one host only, and its holder was ended.
        let status = process.child.wait().unwrap();
        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&status),
            Some(9)
        );
    }
    let flows = node.store.unfinished_flows(None, 10).await.unwrap().flows;
    assert_eq!(
        flows
            .iter()
            .map(|checkpoint| checkpoint.flow)
            .collect::<Vec<_>>(),
        [flow(1), flow(3)]
    );
    node.start_flow(flow(4)).await;
}

/// A process that is killed while it writes leaves whole units, everything it had confirmed, and a free way.
#[rstest]
#[case(Engine::Sqlite)]
#[case(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_writer_leaves_whole_units(#[case] engine: Engine) {
    for round in 0..3u64 {
        let Some(db) = database(engine).await else {
            return;
        };
        let store = db.store().await;
        let mut process = Process::start(&db, "flood");
        assert_eq!(process.says().as_deref(), Some("writing"));
        let mut confirmed = 0;
        for _ in 0..20 + 7 * round {
            confirmed = process.says().unwrap().parse().unwrap();
        }
        process.signal(rustix::process::Signal::KILL);
        while let Some(said) = process.says() {
            // The last line may be cut off.
            confirmed = said
                .parse()
                .map_or(confirmed, |number: u64| number.max(confirmed));
        }
        process.child.wait().unwrap();
        let started = Instant::now();
        let fence = Candidate::new(&store, "node", holder("b"), exclusive(3_600_000))
            .acquire()
            .await
            .unwrap();
        assert!(
            started.elapsed() < Duration::from_secs(2),
            "a dead process is known to be dead"
        );
        let node = with_fence(store, fence);
        let flows = node
            .store
            .unfinished_flows(None, 10_000)
            .await
            .unwrap()
            .flows
            .len() as u64;
        let messages = node
            .store
            .outbox(&them().name, 0, 10_000)
            .await
            .unwrap()
            .messages
            .len() as u64;
        assert_eq!(flows, messages + 1);
        assert!(
            messages >= confirmed - 9,
            "{messages} messages, {confirmed} confirmed"
        );
        node.start_flow(flow(5)).await;
    }
}

#[rstest]
#[case(Engine::Sqlite)]
#[case(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn every_commit_is_a_sign_of_life(#[case] engine: Engine) {
    let Some(db) = database(engine).await else {
        return;
    };
    let node = node(&db).await;
    let signs = node.writer.signs_of_life();
    assert_eq!(*signs.borrow(), None);
    let before = lease::current(&node.store, "node").await.unwrap().unwrap();
    let asked = Instant::now();
    let unit = UnitOfWork::setting("name", Some("value".into()));
    node.writer.commit(unit).await.unwrap();
    let sign = signs.borrow().expect("a sign");
    assert!(asked <= sign && sign <= Instant::now());
    let after = lease::current(&node.store, "node").await.unwrap().unwrap();
    assert!(after.renewed_at > before.renewed_at);
}

#[rstest]
#[case(Engine::Sqlite)]
#[case(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_process_need_not_wait_for_its_own_former_term(#[case] engine: Engine) {
    let Some(db) = database(engine).await else {
        return;
    };
    let store = db.store().await;
    let take = async |machine: &str| {
        let mut candidate = Candidate::new(&store, "node", holder(machine), exclusive(60_000));
        candidate.attempt().await.unwrap()
    };
    let Attempt::Acquired(first) = take("a").await else {
        panic!("nobody had it");
    };
    assert!(
        matches!(take("b").await, Attempt::Held { .. }),
        "another instance of this process"
    );
    let Attempt::Acquired(second) = take("a").await else {
        panic!("it is our own");
    };
    assert!(second.generation() > first.generation());
}
