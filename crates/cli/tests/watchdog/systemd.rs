//! What a node tells systemd, read at the other end of its socket.

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::PATIENCE;
use crate::processes::{BaseDirectory, Process};

/// The end that systemd has.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
    _directory: TempDir,
}

impl Manager {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("notify");
        let socket = UnixDatagram::bind(&path).expect("a socket");
        socket
            .set_read_timeout(Some(Duration::from_millis(100)))
            .expect("a time limit");
        Self {
            socket,
            path,
            _directory: directory,
        }
    }

    fn environment(&self, watchdog: Duration) -> Vec<(&'static str, String)> {
        vec![
            ("NOTIFY_SOCKET", self.path.display().to_string()),
            ("WATCHDOG_USEC", watchdog.as_micros().to_string()),
        ]
    }

    /// The lines of the next message, if one comes soon.
    fn receive(&self) -> Option<Vec<String>> {
        let mut buffer = [0; 4096];
        let length = self.socket.recv(&mut buffer).ok()?;
        let text = String::from_utf8_lossy(&buffer[..length]);
        Some(text.lines().map(str::to_owned).collect())
    }

    /// Reads on until a message has this line; that message.
    fn wait_for(&self, wanted: &str) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(lines) = self.receive()
                && lines.iter().any(|line| line == wanted)
            {
                return lines;
            }
        }
        panic!("{wanted} did not come");
    }
}

fn status(lines: &[String]) -> &str {
    let status = lines.iter().find_map(|line| line.strip_prefix("STATUS="));
    status.expect("the message has a status")
}

#[test]
fn systemd_is_told_of_ready_role_life_and_stop() {
    let base = BaseDirectory::new("");
    let manager = Manager::new();
    let mut node = Process::start(
        &["node", "-b", &base.path().display().to_string()],
        &manager.environment(Duration::from_secs(3)),
    );
    let ready = manager.wait_for("READY=1");
    assert!(
        status(&ready).starts_with("active in generation 1: P2P 127.0.0.1:"),
        "{ready:?}"
    );
    for _ in 0..2 {
        manager.wait_for("WATCHDOG=1");
    }
    // A process that does not run gives no sign of life; nor does anybody on its behalf.
    node.signal(Signal::STOP);
    while manager.receive().is_some() {}
    let silence = Instant::now();
    while silence.elapsed() < Duration::from_secs(3) {
        assert_eq!(manager.receive(), None);
    }
    node.signal(Signal::CONT);
    manager.wait_for("WATCHDOG=1");

    node.signal(Signal::TERM);
    let stopping = manager.wait_for("STOPPING=1");
    assert_eq!(status(&stopping), "stopping: it was asked to by a signal");
    assert_eq!(node.exit_code(), 0);
}

#[test]
fn a_standby_is_ready_for_systemd() {
    let exclusion = "enterpriseConfiguration.mutualExclusionConfiguration { on = true, \
                     updateInterval = 500, waitInterval = 60000, machineName = ";
    let hot = BaseDirectory::new(&format!("{exclusion}hot }}"));
    let cold = hot.second(&format!("{exclusion}cold }}"));
    let (first, second) = (Manager::new(), Manager::new());
    let start = |base: &BaseDirectory, manager: &Manager| {
        let directory = base.path().display().to_string();
        let arguments = ["node", "-b", directory.as_str()];
        Process::start(&arguments, &manager.environment(Duration::from_secs(3)))
    };
    let mut active = start(&hot, &first);
    first.wait_for("READY=1");
    let mut standby = start(&cold, &second);
    let ready = second.wait_for("READY=1");
    assert!(status(&ready).starts_with("standing by: hot:"), "{ready:?}");
    second.wait_for("WATCHDOG=1");
    active.signal(Signal::TERM);
    assert_eq!(active.exit_code(), 0);
    let promoted = second.wait_for("READY=1");
    assert!(
        status(&promoted).starts_with("active in generation 2"),
        "{promoted:?}"
    );
    standby.signal(Signal::TERM);
    assert_eq!(standby.exit_code(), 0);
}
