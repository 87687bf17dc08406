//! HAProxy in front of the two instances of a node, as a process of the demonstration.
//!
//! It knows nothing of leases: whoever has its ports open is the one that serves.

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
/// The recipe that operators use.
const CONFIGURATION: &str = include_str!("../../../../deploy/haproxy/quorate.cfg");
/// Ten times as often as the recipe has it.
const PROBE_INTERVAL: &str = "100ms";
/// What its files are called in the network's directory.
const RECIPE: &str = "haproxy.cfg";
const ENVIRONMENT: &str = "haproxy.env";
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
        instances: [&Ports; 2],
    ) -> Result<Self> {
        let file = directory.join(RECIPE);
        fs::write(&file, CONFIGURATION).with_context(|| format!("writing {}", file.display()))?;
        let variables = environment(front, instances);
        let lines: String = (variables.iter())
            .map(|(name, value)| format!("{name}={value}\n"))
            .collect();
        let kept = directory.join(ENVIRONMENT);
        fs::write(&kept, lines).with_context(|| format!("writing {}", kept.display()))?;
        let log = directory.join("haproxy.log");
        let output = File::create(&log).with_context(|| format!("writing {}", log.display()))?;
        let child = try_each(|program| {
            Command::new(program)
                .arg("-db")
                .arg("-f")
                .arg(&file)
                .envs(variables.iter().map(|(name, value)| (name, value)))
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

    /// How a person starts it again in `directory`.
    pub(super) fn command(directory: &Path) -> String {
        format!(
            "env $(cat {}) haproxy -f {}",
            directory.join(ENVIRONMENT).display(),
            directory.join(RECIPE).display()
        )
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

/// What the configuration takes from the environment.
fn environment(front: &Ports, instances: [&Ports; 2]) -> Vec<(String, String)> {
    let mut variables = vec![("PROBE_INTERVAL".to_owned(), PROBE_INTERVAL.to_owned())];
    for (service, port) in [("P2P", front.p2p), ("RPC", front.rpc), ("WEB", front.web)] {
        variables.push((format!("{service}_BIND"), format!("127.0.0.1:{port}")));
    }
    for (node, ports) in ["NODE1", "NODE2"].into_iter().zip(instances) {
        variables.push((node.to_owned(), "127.0.0.1".to_owned()));
        for (service, port) in [("P2P", ports.p2p), ("RPC", ports.rpc), ("WEB", ports.web)] {
            variables.push((format!("{node}_{service}_PORT"), port.to_string()));
        }
    }
    variables
}
