//! Files of all kinds, looked at.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::{fixture, quorate, text};

fn inspect(file: &Path, more: &[&str]) -> crate::Ended {
    let file = text(file);
    let mut arguments = vec!["channel", "inspect", &file];
    arguments.extend(more);
    quorate(Path::new("/"), &arguments, &[])
}

fn assert_shows(shown: &str, lines: &[&str]) {
    let mut rest = shown.lines();
    for line in lines {
        assert!(
            rest.any(|found| found.trim_start().starts_with(line)),
            "no line {line:?}, or not in this order, in:\n{shown}"
        );
    }
}

#[test]
fn a_block_says_who_made_it_and_what_led_to_it() {
    let shown = inspect(
        &fixture("config-updates/04-add-consenter-orderer3.block"),
        &[],
    )
    .well();
    assert_shows(
        &shown,
        &[
            "block 4",
            "last config: block 4",
            "raft: index",
            "signed by OrdererOrgMSP: ",
            "envelope 0",
            "CONFIG for channel fixture",
            "signed by OrdererOrgMSP: ",
            "config sequence 4",
            "consenter 127.0.0.1:21050, ",
            "consenter 127.0.0.1:21060, ",
            "consenter 127.0.0.1:21070, ",
            "consenter 127.0.0.1:21080, ",
            "made by the update",
            "CONFIG_UPDATE for channel fixture",
            "signed by OrdererOrgMSP: ",
            "config signature of OrdererOrgMSP: ",
            "payload",
        ],
    );
    assert!(shown.contains("CN=Admin@orderer.test (until "), "{shown}");

    let shown = inspect(&fixture("genesis/fixture.block"), &[]).well();
    assert_shows(
        &shown,
        &["block 0", "CONFIG for channel fixture", "not signed"],
    );
}

#[test]
fn the_kind_of_a_file_is_found_out() {
    for (path, first) in [
        ("genesis/fixture.block", "block 0"),
        ("chain/12.block", "block 12"),
        ("config-updates/01-batch-size.pb", "envelope: "),
        ("genesis/fixturetx.pb", "envelope: "),
    ] {
        let shown = inspect(&fixture(path), &[]);
        let line = shown.text().lines().next().unwrap_or_default().to_owned();
        assert!(line.starts_with(first), "{path}: {line}{}", shown.err);
    }
    // Every recorded request, however malformed, is shown or refused with a reason.
    for entry in fs::read_dir(fixture("statuses/requests")).unwrap() {
        let ended = inspect(&entry.unwrap().path(), &["--json"]);
        match ended.code {
            0 => drop(serde_json::from_str::<serde_json::Value>(&ended.text()).unwrap()),
            _ => ended.badly(&["is no block, envelope, configuration or configuration update: "]),
        }
    }
    inspect(&fixture("configtx.yaml"), &[]).badly(&["another message, or damaged"]);
    inspect(&fixture("genesis/fixture.json"), &[]).badly(&["it looks like JSON"]);
    let pem = fixture("crypto/special/org1-revoked/cert.pem");
    inspect(&pem, &[]).badly(&["it is a PEM file"]);
    inspect(Path::new("/dev/null"), &[]).badly(&["it is empty"]);
    inspect(Path::new("/nowhere"), &[]).badly(&["reading /nowhere"]);
}

#[test]
fn json_is_that_of_configtxlator() {
    for name in ["fixture", "fixture1", "fixturecrl", "syschannel"] {
        let shown = inspect(&fixture(&format!("genesis/{name}.block")), &["--json"]).well();
        let recorded = fs::read(fixture(&format!("genesis/{name}.json"))).unwrap();
        let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
        let recorded: serde_json::Value = serde_json::from_slice(&recorded).unwrap();
        assert_eq!(shown, recorded, "{name}");
    }
}

#[test]
fn a_block_is_verified_by_its_channels_rule() {
    let rule = text(&fixture("chain/00.block"));
    let verify = ["--verify-with", rule.as_str()];
    let ended = inspect(&fixture("chain/12.block"), &verify);
    assert!(ended.err.starts_with("verified: "), "{}", ended.err);
    ended.well();

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("forged.block");
    let mut block = fs::read(fixture("chain/12.block")).unwrap();
    // In the data of an envelope, so that it can still be read.
    let word = b"no real hash";
    let at = block.windows(word.len()).position(|found| found == word);
    block[at.unwrap()] = b'N';
    fs::write(&file, &block).unwrap();
    let ended = inspect(&file, &verify);
    assert_eq!(ended.code, 2, "{}", ended.err);
    assert!(ended.err.starts_with("NOT VERIFIED: "), "{}", ended.err);
    assert_shows(&ended.text(), &["data hash: "]);
    assert!(ended.text().contains("(does not match the data)"));

    // The same orderers' signatures, another channel.
    let other = text(&fixture("genesis/fixture1.block"));
    let ended = inspect(&fixture("chain/12.block"), &["--verify-with", &other]);
    assert_eq!(ended.code, 2, "{}", ended.err);
    assert!(
        ended.err.contains("a block of channel fixture,"),
        "{}",
        ended.err
    );

    // Nobody has signed the first block: it is the same, or it proves nothing.
    let genesis = fixture("genesis/fixture.block");
    let same = text(&genesis);
    inspect(&genesis, &["--verify-with", &same]).well();
    let later = text(&fixture("config-updates/01-batch-size.block"));
    let ended = inspect(&genesis, &["--verify-with", &later]);
    assert_eq!(ended.code, 2, "{}", ended.err);
    assert!(ended.err.contains("signed by nobody"), "{}", ended.err);

    let update = fixture("config-updates/01-batch-size.pb");
    inspect(&update, &verify).badly(&["only blocks can be verified; this file holds: envelope"]);
}

#[test]
fn standard_input_is_read_and_a_closed_pipe_is_no_error() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_quorate"))
        .args(["channel", "inspect", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let block = fs::read(fixture("genesis/fixture.block")).unwrap();
    child.stdin.take().unwrap().write_all(&block).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert!(output.stdout.starts_with(b"block 0\n"));
}
