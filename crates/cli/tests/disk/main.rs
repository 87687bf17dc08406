//! What becomes of real `quorate orderer` processes and their clients when disks are lost, come back old, rot or are full,
//! and whether the ways out that are named lead out: `quorate orderer verify`, `backup`, `restore` and `prune`.
//!
//! Clusters, clients and the judge are those of the target `cluster`. One test runs at a time.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "all of this is tests, their helpers included"
)]

mod backup;
mod damage;
mod full;
mod lost;
mod prune;
#[allow(dead_code, reason = "the target `cluster` uses the rest of it")]
#[path = "../cluster/support/mod.rs"]
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::network::{CHANNEL, Network, Orderer};

/// How a command of the program ended.
#[derive(Debug)]
struct Ended {
    code: i32,
    /// What it said, errors included.
    said: String,
}

/// Runs `quorate orderer <arguments>` with the configuration of an orderer.
fn command(orderer: &Orderer, arguments: &[&str]) -> Ended {
    let output = Command::new(env!("CARGO_BIN_EXE_quorate"))
        .arg("orderer")
        .args(arguments)
        .env("FABRIC_CFG_PATH", orderer.directory())
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    let ended = Ended {
        code: output.status.code().unwrap(),
        said: String::from_utf8(said).unwrap(),
    };
    println!("quorate orderer {arguments:?}: {ended:?}");
    ended
}

/// The same, and it has to succeed.
fn done(orderer: &Orderer, arguments: &[&str]) -> String {
    let ended = command(orderer, arguments);
    assert_eq!(ended.code, 0, "{}", ended.said);
    ended.said
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The folder of the channel's chain.
fn chain(orderer: &Orderer) -> PathBuf {
    orderer.data("ledger").join("chains").join(CHANNEL)
}

fn block_file(orderer: &Orderer, number: u32) -> PathBuf {
    chain(orderer).join(format!("blockfile_{number:06}"))
}

/// Changes one bit of a file, at this part of its length, and says where.
fn rot(path: &Path, numerator: usize, denominator: usize) -> usize {
    let mut bytes = fs::read(path).unwrap();
    let at = bytes.len() * numerator / denominator;
    bytes[at] ^= 0x20;
    fs::write(path, bytes).unwrap();
    at
}

/// Everything in a folder, elsewhere.
fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// The segment of the consensus log that is being written, or the oldest one.
fn segment(orderer: &Orderer, newest: bool) -> PathBuf {
    let mut segments: Vec<PathBuf> = fs::read_dir(orderer.data("wal").join("_log"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|kind| kind == "segment"))
        .collect();
    segments.sort();
    if newest {
        segments.pop().unwrap()
    } else {
        segments.swap_remove(0)
    }
}

/// Waits until the orderer can be asked for the chain again, as a consenter.
async fn serves(network: &Network, number: usize) {
    network.orderers[number]
        .becomes("consenter", "active")
        .await;
}
