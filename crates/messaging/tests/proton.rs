//! Interoperation with Qpid Proton, in both directions. Needs a Python with its `proton` module, named by the variable
//! `QUORATE_PROTON_PYTHON` (`python3` otherwise); run with `--ignored`.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on says so by panicking"
)]

mod support;

use std::path::Path;
use std::process::Stdio;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use quorate_identity::NodeKeys;
use support::{PATIENCE, Party, keys, name};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

fn pem(label: &str, der: &[u8]) -> String {
    let lines: Vec<_> = STANDARD
        .encode(der)
        .as_bytes()
        .chunks(64)
        .map(|line| String::from_utf8_lossy(line).into_owned())
        .collect();
    format!(
        "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
        lines.join("\n")
    )
}

fn write_keys(folder: &Path, keys: &NodeKeys) {
    let path = keys.tls().path().certificates();
    let chain: String = path
        .iter()
        .map(|certificate| pem("CERTIFICATE", certificate.der()))
        .collect();
    std::fs::write(folder.join("own.pem"), chain).unwrap();
    let root = pem("CERTIFICATE", keys.trust_root().der());
    std::fs::write(folder.join("root.pem"), root).unwrap();
    std::fs::write(
        folder.join("own.key"),
        pem("PRIVATE KEY", &keys.tls().key().pair().unwrap().to_pkcs8()),
    )
    .unwrap();
}

fn peer(folder: &Path, arguments: &[&str]) -> (Child, Lines<BufReader<ChildStdout>>) {
    let python = std::env::var("QUORATE_PROTON_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/proton/peer.py");
    let mut command = Command::new(python);
    command
        .arg(script)
        .args(arguments)
        .current_dir(folder)
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    (child, lines)
}

async fn line(lines: &mut Lines<BufReader<ChildStdout>>) -> String {
    timeout(PATIENCE, lines.next_line())
        .await
        .expect("an answer comes")
        .unwrap()
        .unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Qpid Proton for Python"]
async fn proton_can_send_to_us() {
    let (folder, receiver, own) = (
        tempfile::tempdir().unwrap(),
        Party::start("Receiver"),
        name("Proton"),
    );
    write_keys(folder.path(), &keys(&own));
    let (port, sni) = (
        receiver.address.port().to_string(),
        receiver.name.sni_hash(),
    );
    let address = format!("internal.peers.{sni}");
    let (sender, recipient) = (own.to_string(), receiver.name.to_string());
    let (_child, mut lines) = peer(
        folder.path(),
        &[
            "send",
            "127.0.0.1",
            &port,
            &sni,
            &address,
            &sender,
            &recipient,
            "3000",
        ],
    );
    assert_eq!(line(&mut lines).await, "accepted 3000");
    assert_eq!(receiver.inbox.sequences(), (1..=3000).collect::<Vec<_>>());
    assert_eq!(receiver.inbox.seen().last().unwrap().body.len(), 3_000_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Qpid Proton for Python"]
async fn we_can_send_to_proton_also_when_it_gives_little_credit() {
    let (folder, sender, own) = (
        tempfile::tempdir().unwrap(),
        Party::start("Sender"),
        name("Proton"),
    );
    write_keys(folder.path(), &keys(&own));
    let (_child, mut lines) = peer(folder.path(), &["receive", "10", "1000"]);
    let port = line(&mut lines).await;
    let port: u16 = port.strip_prefix("port ").unwrap().parse().unwrap();
    sender.knows_at(&own, &[([127, 0, 0, 1], port).into()]);
    for _ in 0..999 {
        sender.queue.put(&own, vec![7; 100]);
    }
    sender.send(&own, vec![7; 3_000_000]);
    assert_eq!(line(&mut lines).await, "received 1000 3000000");
    sender.settled(&own).await;
    let status = sender.handle.peer_status(&own).unwrap();
    assert_eq!(
        (status.sent, status.accepted),
        (1000, 1000),
        "nothing was sent twice"
    );
    assert!(sender.handle.shutdown(PATIENCE).await.is_clean());
}
