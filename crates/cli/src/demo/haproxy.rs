//! HAProxy in front of the two instances of a node, as a process of the demonstration.
//!
//! It knows nothing of leases: whoever has its ports open is the one that serves.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::time::sleep;

use super::POLL;
use crate::local_network::Ports;

/// Where Debian installs it; not everybody has that on the path.
const PROGRAMS: [&str; 2] = ["haproxy", "/usr/sbin/haproxy"];
/// How long it may take until it listens.
const PATIENCE: Duration = Duration::from_secs(10);

/// The running process; ends when this is dropped.
#[derive(Debug)]
pub(super) struct HaProxy(Child);

impl HaProxy {
    /// Whether and in which version it is installed.
    pub(super) fn version() -> Result<String> {
        let printed = try_each(|program| Command::new(program).arg("-v").output())?.stdout;
        let printed = String::from_utf8_lossy(&printed);
        // "HAProxy version 2.6.12-1+deb12u1 2023/12/16 - https://haproxy.org/"
        let version = printed.split_ascii_whitespace().nth(2);
        Ok(version.unwrap_or("of unknown version").to_owned())
    }

    /// Starts it with a configuration in `directory`, listening at `front`.
    pub(super) async fn start(
        directory: &Path,
        front: &Ports,
        instances: &[(&str, Ports)],
    ) -> Result<Self> {
        let file = directory.join("haproxy.cfg");
        fs::write(&file, configuration(front, instances))
            .with_context(|| format!("writing {}", file.display()))?;
        let log = directory.join("haproxy.log");
        let output = File::create(&log).with_context(|| format!("writing {}", log.display()))?;
        let child = try_each(|program| {
            Command::new(program)
                .arg("-db")
                .arg("-f")
                .arg(&file)
                .stdin(Stdio::null())
                .stdout(output.try_clone()?)
                .stderr(output.try_clone()?)
                .spawn()
        })?;
        let mut proxy = Self(child);
        let began = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, front.p2p)).is_err() {
            let ended = proxy.0.try_wait()?;
            if ended.is_some() || began.elapsed() > PATIENCE {
                let printed = fs::read_to_string(&log).unwrap_or_default();
                bail!("HAProxy does not listen:\n{printed}");
            }
            sleep(POLL).await;
        }
        Ok(proxy)
    }

    /// The process's id.
    pub(super) fn process(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for HaProxy {
    fn drop(&mut self) {
        // Nobody is left who could be told.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn try_each<T>(mut run: impl FnMut(&str) -> io::Result<T>) -> Result<T> {
    for program in PROGRAMS {
        match run(program) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => return result.with_context(|| format!("running {program}")),
        }
    }
    bail!(
        "HAProxy is not installed; it is in the Debian package of that name: \
         apt-get install haproxy"
    )
}

/// A probe of each port several times a second; what was connected to an instance that is gone is
/// cut off, so that the other end looks for the new one at once.
fn configuration(front: &Ports, instances: &[(&str, Ports)]) -> String {
    let mut text = String::from(
        "global
    maxconn 256

defaults
    mode tcp
    timeout connect 1s
    timeout client 1h
    timeout server 1h
    timeout check 500ms
    retries 0
    default-server inter 100ms fall 1 rise 1 on-marked-down shutdown-sessions
",
    );
    type Port = fn(&Ports) -> u16;
    let services: [(&str, Port, &str); 3] = [
        ("p2p", |ports| ports.p2p, ""),
        ("rpc", |ports| ports.rpc, ""),
        (
            "web",
            |ports| ports.web,
            "    mode http\n    option httpchk GET /\n",
        ),
    ];
    for (service, port, options) in services {
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "\nlisten {service}\n    bind 127.0.0.1:{}\n{options}    balance random\n",
            port(front)
        );
        for (name, ports) in instances {
            let _ = writeln!(text, "    server {name} 127.0.0.1:{} check", port(ports));
        }
    }
    text
}
