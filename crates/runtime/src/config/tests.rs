use super::*;
use crate::hocon::{Environment, Value, parse_str};
use std::time::Duration;

fn tree(text: &str) -> Value {
    expand_dotted_keys(parse_str(text, "node.conf", &Environment::empty()).unwrap())
}

/// Decodes a small configuration and answers what came of it.
fn decode(text: &str, environment: &[(&str, &str)]) -> Result<(String, Vec<String>), Vec<String>> {
    let mut value = tree(text);
    let report = Report::new(OnUnknownKeys::Fail);
    let environment: Environment = environment.iter().copied().collect();
    apply_environment(&mut value, &environment, &["QUORATE_LOG"], &report);
    let root = Section::root(&value, &report);
    root.required::<u16>("port", "write a TCP port");
    root.boolean_or("devMode", false);
    root.secret("password");
    root.texts("addresses");
    let lease = root.section("lease");
    lease.duration_or(
        "wait",
        "milliseconds",
        Duration::from_secs(40),
        Duration::from_millis(1)..=Duration::from_secs(3600),
    );
    lease.bytes_or("size", 10, 1..=100);
    lease.finish();
    for user in root.sections("users") {
        user.text("user");
        user.secret("password");
        user.finish();
    }
    root.ignored("jarDirs", "there are no jars");
    root.refused("raft", "is not offered");
    root.finish();
    match report.finish() {
        Ok(findings) => Ok((
            findings.describe(),
            findings.warnings.iter().map(ToString::to_string).collect(),
        )),
        Err(problems) => Err(problems.0.iter().map(ToString::to_string).collect()),
    }
}

#[test]
fn the_effective_configuration_is_shown_without_secrets() {
    let (shown, warnings) = decode(
        "port = 1\npassword = s3cret\nusers = [{user = u, password = p4ss}]\njarDirs = [a]\n\"lease.wait\" = 2 s",
        &[("corda_devMode", "true")],
    )
    .unwrap();
    assert_eq!(
        shown,
        "addresses = []  # default\n\
         devMode = true  # environment variable corda_devMode\n\
         lease.size = 10  # default\n\
         lease.wait = 2s  # node.conf:5:16\n\
         password = ********  # node.conf:2:12\n\
         port = 1  # node.conf:1:8\n\
         users[0].password = ********  # node.conf:3:32\n\
         users[0].user = u  # node.conf:3:18\n"
    );
    assert_eq!(
        warnings,
        ["node.conf:4:11: `jarDirs`: has no effect: there are no jars"]
    );
}

#[test]
fn all_problems_are_reported_at_once_with_place_key_and_remedy() {
    let problems = decode(
        "port = many\ndevMode = perhaps\nlease { wiat = 1, wait = 0, size = 1000 }\nusers = 5\nraft {}\n\
         addresses = [a, {}]\nzzz = 1\npassword = [s3cret]",
        &[],
    )
    .unwrap_err();
    assert_eq!(
        problems,
        [
            "node.conf:1:8: `port`: invalid digit found in string",
            "node.conf:2:11: `devMode`: must be true or false",
            "node.conf:3:16: `lease.wiat`: is not a known key; did you mean `wait`?",
            "node.conf:3:26: `lease.wait`: must be from 1ms to 3600s",
            "node.conf:3:36: `lease.size`: must be from 1 to 100 bytes",
            "node.conf:4:9: `users`: is a number but must be a list `[ { … }, … ]`",
            "node.conf:5:6: `raft`: is not offered",
            "node.conf:6:17: `addresses`: holds an object where a single value is expected",
            "node.conf:7:7: `zzz`: is not a known key; known here are addresses, devMode, jarDirs, lease, password, \
             port, raft, users; remove it or correct its place",
            "node.conf:8:12: `password`: is a list but must be a single value",
        ]
    );
    assert_eq!(
        decode("", &[]).unwrap_err(),
        ["node.conf:1:1: `port`: is missing; write a TCP port"]
    );
}

#[test]
fn the_environment_overrides_in_every_spelling() {
    for name in [
        "corda_lease_wait",
        "CORDA_LEASE_WAIT",
        "corda.lease.wait",
        "QUORATE_lease_wait",
        "quorate.LEASE.wait",
    ] {
        for text in [
            "port = 1",
            "port = 1, lease.wait = 9",
            "port = 1, lease { size = 5 }",
        ] {
            let (shown, _) = decode(text, &[(name, "7 s")]).unwrap();
            assert!(
                shown.contains(&format!("lease.wait = 7s  # environment variable {name}")),
                "{name}\n{shown}"
            );
        }
    }
    let (shown, _) = decode(
        "port = 1, users = [{user = u}]",
        &[
            ("corda_addresses", "[a, \"b:1\"]"),
            ("corda_users_0_password", "x"),
            ("QUORATE_LOG", "debug"),
        ],
    )
    .unwrap();
    assert!(
        shown.contains("addresses = [a, b:1]") && shown.contains("users[0].password = ********"),
        "{shown}"
    );
}

#[test]
fn variables_that_fit_nothing_are_warnings_and_contradictions_are_problems() {
    // What Kubernetes sets for a service of this name.
    let (_, warnings) = decode(
        "port = 1",
        &[
            ("CORDA_SERVICE_HOST", "10.0.0.1"),
            ("CORDA_WEB", "tcp://x"),
            ("CORDA_WEB_80_TCP", "tcp://x"),
        ],
    )
    .unwrap();
    assert_eq!(warnings.len(), 3, "{warnings:?}");
    for (text, environment, words) in [
        (
            "port = 1",
            vec![("corda_lease_wait", "1 s"), ("CORDA_LEASE_WAIT", "2 s")],
            "differently",
        ),
        (
            "port = 1, users = [{}]",
            vec![("corda_users_7_user", "x")],
            "has 1, counted from 0",
        ),
        (
            "port = 1",
            vec![("corda_port_x", "x")],
            "below a plain value",
        ),
        (
            "port = 1",
            vec![("corda_addresses", "[s3cret")],
            "not a complete one",
        ),
    ] {
        let problems = decode(text, &environment).unwrap_err();
        assert!(
            problems[0].contains(words) && !problems[0].contains("s3cret"),
            "{problems:?}"
        );
    }
}

#[test]
fn a_secret_is_not_shown() {
    let secret = Secret::new("s3cret");
    assert_eq!(
        (format!("{secret:?}").as_str(), secret.expose()),
        (REDACTED, "s3cret")
    );
}
