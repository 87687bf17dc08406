//! Keys, certificates and genesis blocks.

use std::fs;
use std::path::Path;

use crate::{Ended, fixture, quorate, text};

/// A `configtx.yaml` for generated material: the recorded one, with these changes.
fn configtx(folder: &Path, changes: &[(&str, &str)]) {
    let mut yaml = fs::read_to_string(fixture("configtx.yaml")).unwrap();
    for (old, new) in changes {
        assert!(yaml.contains(old), "{old}");
        yaml = yaml.replace(old, new);
    }
    fs::write(folder.join("configtx.yaml"), yaml).unwrap();
}

fn genesis(folder: &Path, profile: &str, channel: &str, more: &[&str]) -> Ended {
    let mut arguments = vec!["channel", "genesis", "--output-block", "genesis.block"];
    arguments.extend(["--profile", profile, "-c", channel]);
    arguments.extend(more);
    quorate(folder, &arguments, &[])
}

#[test]
fn from_nothing_to_a_genesis_block() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let organizations = text(&fixture("crypto/crypto-config.yaml"));
    let generate = [
        "crypto",
        "generate",
        "--config",
        &organizations,
        "--output",
        "crypto",
    ];
    let made = quorate(folder, &generate, &[]).well();
    assert_eq!(
        made,
        "crypto/peerOrganizations/org1.test\ncrypto/peerOrganizations/org2.test\n\
         crypto/ordererOrganizations/orderer.test\ncrypto/ordererOrganizations/orderer2.test\n"
    );
    let key = folder.join("crypto/ordererOrganizations/orderer.test/ca/priv_sk");
    let before = fs::read(&key).unwrap();
    quorate(folder, &generate, &[]).badly(&["exists already", "not replaced"]);
    assert_eq!(fs::read(&key).unwrap(), before);

    let special = text(&fixture("crypto/special"));
    configtx(folder, &[("crypto/special", &special)]);
    let made = genesis(folder, "Fixture3", "payments", &[]);
    assert_eq!(made.err, "");
    assert_eq!(
        made.well(),
        "genesis block of channel payments written to genesis.block\n  consenter 127.0.0.1:21050\n  \
         consenter 127.0.0.1:21060\n  consenter 127.0.0.1:21070\n"
    );
    let first = fs::read(folder.join("genesis.block")).unwrap();

    // No orderer knows which of two to believe.
    genesis(folder, "Fixture3", "payments", &[]).badly(&["is there already", "--force"]);
    assert_eq!(fs::read(folder.join("genesis.block")).unwrap(), first);
    genesis(folder, "Fixture3", "payments", &["--force"]).well();
    assert_ne!(fs::read(folder.join("genesis.block")).unwrap(), first);
    // And nothing is left over.
    assert_eq!(fs::read_dir(folder).unwrap().count(), 3);
}

#[test]
fn the_block_is_the_one_that_configtxgen_makes() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let fabric = text(&fixture(""));
    let arguments = [
        "channel",
        "genesis",
        "--profile=Fixture3",
        "--channelID=fixture",
        "--outputBlock=genesis.block",
    ];
    let environment = [("FABRIC_CFG_PATH", fabric.as_str())];
    quorate(folder, &arguments, &environment).well();
    let inspect = ["channel", "inspect", "--json", "genesis.block"];
    let shown = quorate(folder, &inspect, &[]).well();
    let config = |json: &str| -> serde_json::Value {
        let block: serde_json::Value = serde_json::from_str(json).unwrap();
        block["data"]["data"][0]["payload"]["data"]["config"].clone()
    };
    let recorded = fs::read_to_string(fixture("genesis/fixture.json")).unwrap();
    assert!(config(&recorded)["channel_group"].is_object());
    assert_eq!(config(&shown), config(&recorded));
}

#[test]
fn options_that_could_leave_a_channel_leaderless_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let crypto = text(&fixture("crypto"));
    let warnings = |profile: &str, changes: &[(&str, &str)]| {
        let mut all = vec![("crypto/", format!("{crypto}/"))];
        all.extend(changes.iter().map(|(old, new)| (*old, (*new).to_owned())));
        let all: Vec<_> = all.iter().map(|(old, new)| (*old, new.as_str())).collect();
        configtx(folder, &all);
        let made = genesis(folder, profile, "payments", &["--force"]);
        assert_eq!(made.code, 0, "{}", made.err);
        assert!(
            made.err.lines().all(|line| line.starts_with("warning: ")),
            "{}",
            made.err
        );
        made.err
    };
    assert_eq!(warnings("Fixture3", &[]), "");
    type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a [&'a str]);
    let expected: &[Case<'_>] = &[
        ("Fixture1", &[], &["there is one consenter"]),
        (
            "Fixture3",
            &[("TickInterval: 200ms", "TickInterval: 20ms")],
            &["an election begins after 200ms", "5s"],
        ),
        (
            "Fixture3",
            &[("TickInterval: 200ms", "TickInterval: 1m")],
            &["an election begins after 600s"],
        ),
        (
            "Fixture3",
            &[("HeartbeatTick: 1", "HeartbeatTick: 3")],
            &["ElectionTick 10 is less than 5 times HeartbeatTick 3"],
        ),
        (
            "Fixture3",
            &[("AbsoluteMaxBytes: 10 MB", "AbsoluteMaxBytes: 99 MB")],
            &["AbsoluteMaxBytes is 99 MiB", "MaxRecvMsgSize"],
        ),
        (
            "Fixture3",
            &[("Port: 21060", "Port: 21050")],
            &["two consenters have the address 127.0.0.1:21050"],
        ),
        (
            "Fixture3",
            &[("- Host: 127.0.0.1", "- Host: orderer.example")],
            &[
                "will not connect to consenter orderer.example:21050",
                "orderer.example:21070",
            ],
        ),
    ];
    for (profile, changes, words) in expected {
        let said = warnings(profile, changes);
        for word in *words {
            assert!(said.contains(word), "no {word:?} in: {said}");
        }
    }
    let expired = format!("{crypto}/special/orderer4-tls-expired/server.crt");
    let own =
        "crypto/ordererOrganizations/orderer.test/orderers/orderer2.orderer.test/tls/server.crt";
    let said = warnings(
        "Fixture3",
        // The folder has its new name by now.
        &[(&format!("{}{}", crypto, &own["crypto".len()..]), &expired)],
    );
    assert!(
        said.contains("consenter 127.0.0.1:21070: the client certificate has expired"),
        "{said}"
    );
    assert_eq!(said.matches("has expired").count(), 1, "{said}");
}

#[test]
fn what_no_orderer_would_take_is_not_made() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let crypto = text(&fixture("crypto"));
    genesis(folder, "Fixture3", "payments", &[]).badly(&[
        "reading ./configtx.yaml",
        "--config-path or FABRIC_CFG_PATH",
    ]);
    let crypto_folder = [("crypto/", &*format!("{crypto}/"))];
    configtx(folder, &crypto_folder);
    genesis(folder, "Fixture9", "payments", &[])
        .badly(&["./configtx.yaml: could not find profile: Fixture9; the file has Fixture1"]);
    genesis(folder, "Fixture3", "Payments", &[])
        .badly(&["'Payments' contains illegal characters", "lower-case"]);
    genesis(folder, "FixtureApp", "payments", &[]).badly(&[
        "no orderer would accept",
        "config does not contain orderer config",
    ]);
    let stranger = format!("{crypto}/special/orderer4-tls-stranger/server.crt");
    let own = format!(
        "{crypto}/ordererOrganizations/orderer.test/orderers/orderer2.orderer.test/tls/server.crt"
    );
    configtx(folder, &[crypto_folder[0], (&own, &stranger)]);
    genesis(folder, "Fixture3", "payments", &[]).badly(&[
        "no orderer would accept",
        "consenter 127.0.0.1:21070 has invalid certificate",
    ]);
    configtx(folder, &[]);
    genesis(folder, "Fixture3", "payments", &[])
        .badly(&["cannot load the certificate of consenter 127.0.0.1:21050 from crypto/"]);
    let msp = format!("MSPDir: {crypto}/ordererOrganizations/orderer.test/msp");
    configtx(folder, &[crypto_folder[0], (&msp, "MSPDir: gone/msp")]);
    genesis(folder, "Fixture3", "payments", &[])
        .badly(&["error loading MSP configuration for org OrdererOrg from gone/msp"]);
    assert!(!folder.join("genesis.block").exists());
    let missing = ["crypto", "generate", "--output", "crypto"];
    quorate(folder, &missing, &[]).badly(&["reading crypto-config.yaml"]);
}
