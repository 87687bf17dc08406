//! Nodes as processes of their own, and who looks after them: `quorate watchdog`, `quorate node
//! health`, systemd.

#![allow(clippy::panic)]

mod health;
mod processes;
mod systemd;

use std::time::Duration;

use processes::{BaseDirectory, Process, binary, until};
use rustix::process::Signal;

/// Options of a watchdog that notices and acts soon.
const SOON: [&str; 12] = [
    "--interval=0.2",
    "--check-timeout=11",
    "--failures=2",
    "--start-patience=60",
    "--patience=20",
    "--backoff=0.05",
    "--max-backoff=0.2",
    "--max-restarts=4",
    "--window=600",
    "--",
    "QUORATE",
    "node",
];

fn watchdog(base: &BaseDirectory, changed: &[&str]) -> Process {
    let mut arguments: Vec<String> = vec!["watchdog".to_owned()];
    for option in SOON {
        let name = |option: &str| option.split_once('=').map(|(name, _)| name.to_owned());
        let same = |other: &&&str| name(option).is_some() && name(other) == name(option);
        let other = changed.iter().find(same);
        arguments.push(match option {
            "QUORATE" => binary().to_owned(),
            option => (*other.unwrap_or(&option)).to_owned(),
        });
    }
    arguments.push("-b".to_owned());
    arguments.push(base.path().display().to_string());
    Process::start(&arguments, &[])
}

/// The processes that a watchdog says it has started.
fn started(watchdog: &Process) -> Vec<i32> {
    let output = watchdog.output();
    let ids = output
        .lines()
        .filter_map(|line| line.rsplit_once(" as process "));
    ids.map(|(_, id)| id.parse().expect("a process id"))
        .collect()
}

/// Waits until the watchdog's `nth` child is well.
fn well(watchdog: &Process, base: &BaseDirectory, nth: usize) -> i32 {
    until(&format!("child {nth} is well"), || {
        let output = watchdog.output();
        assert!(!output.contains("GIVING UP"), "{output}");
        (output.matches("it is well").count() >= nth).then_some(())
    });
    assert_eq!(base.health().0, 0);
    *started(watchdog).last().expect("a child was started")
}

#[test]
fn a_killed_node_is_started_again_and_a_stop_is_passed_on() {
    let base = BaseDirectory::new("");
    let mut watchdog = watchdog(&base, &[]);
    let first = well(&watchdog, &base, 1);
    processes::send(first, Signal::KILL);
    let second = well(&watchdog, &base, 2);
    assert_ne!(first, second);
    watchdog.signal(Signal::TERM);
    assert_eq!(watchdog.exit_code(), 0, "{}", watchdog.output());
    assert!(!processes::runs(second));
    assert!(
        watchdog.output().contains("by signal 9"),
        "{}",
        watchdog.output()
    );
}

#[test]
fn a_stopped_node_is_asked_then_killed_then_started_again() {
    let base = BaseDirectory::new("");
    let mut watchdog = watchdog(&base, &["--check-timeout=3", "--patience=1"]);
    let first = well(&watchdog, &base, 1);
    processes::send(first, Signal::STOP);
    let second = well(&watchdog, &base, 2);
    assert!(!processes::runs(first));
    let output = watchdog.output();
    for said in [
        "check 1 of 2 failed: it does not answer within 3s",
        "it is not well, and is asked to end: it does not answer within 3s",
        "it has not ended within 1s; killing it",
    ] {
        assert!(output.contains(said), "{said} is not in {output}");
    }
    watchdog.signal(Signal::INT);
    assert_eq!(watchdog.exit_code(), 0, "{}", watchdog.output());
    assert!(!processes::runs(second));
}

#[test]
fn a_node_that_an_operator_has_ended_stays_ended() {
    let base = BaseDirectory::new("");
    let mut watchdog = watchdog(&base, &[]);
    let child = well(&watchdog, &base, 1);
    processes::send(child, Signal::TERM);
    assert_eq!(watchdog.exit_code(), 0, "{}", watchdog.output());
    assert_eq!(started(&watchdog), [child]);
}

#[test]
fn a_node_that_always_ends_is_given_up_loudly() {
    let mut watchdog = Process::start(
        &[
            "watchdog",
            "--base-directory=/nowhere",
            "--backoff=0.01",
            "--max-restarts=3",
            "--",
            "sh",
            "-c",
            "exit 5",
        ],
        &[],
    );
    assert_eq!(watchdog.exit_code(), 69, "{}", watchdog.output());
    assert_eq!(started(&watchdog).len(), 4);
    assert!(
        watchdog.output().contains("GIVING UP"),
        "{}",
        watchdog.output()
    );
}

#[test]
fn a_wrong_configuration_is_told_from_bad_luck() {
    let base = BaseDirectory::new("p2pAdress = nonsense");
    let mut watchdog = watchdog(&base, &[]);
    assert_eq!(watchdog.exit_code(), 78, "{}", watchdog.output());
    assert_eq!(started(&watchdog).len(), 3);
    let output = watchdog.output();
    assert!(output.contains("did you mean `p2pAddress`?"), "{output}");
    assert!(
        output.contains("cannot follow its configuration"),
        "{output}"
    );

    let mut nothing = Process::start(
        &[
            "watchdog",
            "--backoff=0.01",
            "-b",
            "/",
            "--",
            "/no/such/program",
        ],
        &[],
    );
    assert_eq!(nothing.exit_code(), 78, "{}", nothing.output());
}

#[test]
fn what_is_not_a_node_is_refused_before_anything_starts() {
    for (command, reason) in [
        (vec!["quorate", "node", "status"], "leave out its verb"),
        (vec!["quorate", "demo"], "does not run a node"),
        (vec!["sh", "run-it"], "give its directory to the watchdog"),
    ] {
        let mut arguments = vec!["watchdog", "--"];
        arguments.extend(command);
        let mut watchdog = Process::start(&arguments, &[]);
        assert_eq!(watchdog.exit_code(), 1);
        let output = watchdog.output();
        assert!(output.contains(reason), "{reason} is not in {output}");
    }
}

#[test]
fn a_standby_is_well_and_one_that_shall_not_wait_ends() {
    let hot = BaseDirectory::new(&exclusion("hot", "WAIT"));
    let mut active = watchdog(&hot, &[]);
    well(&active, &hot, 1);

    let cold = hot.second(&exclusion("cold", "WAIT"));
    let mut standby = watchdog(&cold, &[]);
    let standby_process = well(&standby, &cold, 1);
    let (code, line) = cold.health();
    assert_eq!((code, line.contains("standby")), (0, true), "{line}");

    let third = hot.second(&exclusion("third", "EXIT"));
    let mut refused = watchdog(&third, &[]);
    assert_eq!(refused.exit_code(), 75, "{}", refused.output());
    assert_eq!(started(&refused).len(), 1);

    active.signal(Signal::TERM);
    assert_eq!(active.exit_code(), 0);
    until("the standby serves", || {
        cold.health().1.contains("OK - Solo: active").then_some(())
    });
    // The role has changed, the process has not.
    assert_eq!(started(&standby), [standby_process]);
    standby.signal(Signal::TERM);
    assert_eq!(standby.exit_code(), 0);
}

fn exclusion(machine: &str, when_held: &str) -> String {
    format!(
        "enterpriseConfiguration.mutualExclusionConfiguration {{ on = true, machineName = {machine}, \
         updateInterval = 500, waitInterval = 60000, whenHeld = {when_held} }}"
    )
}

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(90);
