//! HAProxy, as configured in `deploy/haproxy`, in front of the two machines of PartyB: peers and clients know its address
//! only, and meet whoever serves.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use quorate_rpc::Client;
use rustix::process::Signal;
use tokio::time::{Instant, sleep};

use crate::support::network::{Engine, Network, NodePlan, Ports, client_of, free_port, get, run};
use crate::support::payments::{Payer, issue};
use crate::support::{Alone, PATIENCE, millis, until};

/// Where Debian installs it; not everybody has that on the path.
const PROGRAM: &str = "/usr/sbin/haproxy";
const PROBES: Duration = Duration::from_millis(100);
/// How long the nodes are watched while nobody but HAProxy comes.
const QUIET: Duration = Duration::from_secs(2);
/// How soon traffic meets the new hot one, after the old one on the same machine is gone: the takeover, two probes that
/// fail and one that succeeds, and the reconnection of whoever was cut off.
const SOON: Duration = Duration::from_secs(5);

struct HaProxy(Child);

impl Drop for HaProxy {
    fn drop(&mut self) {
        // Nobody is left who could be told.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl HaProxy {
    fn start(network: &Network, front: &Ports) -> Result<Self> {
        let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/haproxy/quorate.cfg");
        ensure!(
            Path::new(PROGRAM).exists(),
            "{PROGRAM} is missing; scripts/prepare test installs it (Debian: apt-get install haproxy)"
        );
        let mut command = Command::new(PROGRAM);
        for (number, machine) in network.of("PartyB").enumerate() {
            let number = number + 1;
            let ports = &machine.ports;
            command
                .env(format!("NODE{number}"), "127.0.0.1")
                .env(format!("NODE{number}_P2P_PORT"), ports.p2p.to_string())
                .env(format!("NODE{number}_RPC_PORT"), ports.rpc.to_string())
                .env(format!("NODE{number}_WEB_PORT"), ports.web.to_string());
        }
        for (name, port) in [
            ("P2P_BIND", front.p2p),
            ("RPC_BIND", front.rpc),
            ("WEB_BIND", front.web),
        ] {
            command.env(name, format!("127.0.0.1:{port}"));
        }
        command.env("PROBE_INTERVAL", millis_of(PROBES));
        let said = run(command.args(["-c", "-f"]).arg(&recipe))?;
        ensure!(
            !said.contains("WARNING"),
            "HAProxy warns of its configuration: {said}"
        );

        let mut command = with_environment_of(&command);
        let output = File::create(network.path().join("haproxy.log"))?;
        let child = command
            .args(["-db", "-f"])
            .arg(&recipe)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()?;
        Ok(Self(child))
    }
}

fn millis_of(duration: Duration) -> String {
    format!("{}ms", duration.as_millis())
}

fn with_environment_of(other: &Command) -> Command {
    let mut command = Command::new(other.get_program());
    for (name, value) in other.get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn traffic_follows_the_hot_machine_and_probes_are_harmless() -> Result<()> {
    let _alone = Alone::on_this_machine()?;
    let front = Ports {
        p2p: free_port()?,
        rpc: free_port()?,
        web: free_port()?,
        operations: 0,
    };
    let behind = NodePlan {
        front: Some(front.p2p),
        ..NodePlan::hot_cold("PartyB", &["", ""])
    };
    let plan = [
        NodePlan::single("Notary"),
        NodePlan::single("PartyA"),
        behind,
    ];
    let mut network = Network::make(Engine::Sqlite, &plan).await?;
    network.start().await?;
    let _proxy = HaProxy::start(&network, &front)?;
    let a = Payer {
        client: network.client("PartyA")?,
        recipient: network.machine("PartyB").name.clone(),
        prefix: "from A",
    };
    let b = Payer {
        client: client_of([format!("127.0.0.1:{}", front.rpc)])?,
        recipient: network.machine("PartyA").name.clone(),
        prefix: "from B",
    };
    issue(&a.client, 5, 100_000).await?;
    issue(&b.client, 5, 100_000).await?;

    let mut number = 0;
    for (hot, cold, signal) in [
        ("PartyB/1", "PartyB/2", "KILL"),
        ("PartyB/2", "PartyB/1", "TERM"),
        ("PartyB/1", "PartyB/2", "KILL"),
    ] {
        number += 1;
        check_fronts(&mut network, &front, &b.client, hot).await?;
        a.pay(number, 100).await?;
        b.pay(number, 100).await?;
        check_quiet(&mut network).await?;

        network.machine(hot).signal(if signal == "KILL" {
            Signal::KILL
        } else {
            Signal::TERM
        })?;
        let gone = Instant::now();
        number += 1;
        let (to_b, from_b) = tokio::join!(a.pay(number, 100), b.pay(number, 100));
        let (to_b, from_b) = (to_b?, from_b?);
        println!(
            "{signal} to {hot}: a payment to PartyB was settled after {}, one by PartyB after {}",
            millis(to_b.took),
            millis(from_b.took)
        );
        ensure!(
            gone.elapsed() <= SOON,
            "traffic came back after {:?}",
            gone.elapsed()
        );
        network.machine(hot).ended().await?;
        check_fronts(&mut network, &front, &b.client, cold).await?;
        network.machine(hot).spawn()?;
        network.machine(hot).in_role("standby").await?;
    }
    network.finish().await
}

/// The fronts lead to the machine that serves.
async fn check_fronts(
    network: &mut Network,
    front: &Ports,
    client: &Client,
    hot: &str,
) -> Result<()> {
    let wanted = network.machine(hot).instance.clone();
    until("the web front", PATIENCE, async || {
        Ok(match get(front.web, "/").await {
            Ok((200, _)) => Ok(()),
            other => Err(format!("{other:?}")),
        })
    })
    .await?;
    let instance = client.diagnostics().await?.instance;
    ensure!(
        instance == wanted,
        "the RPC front leads to {instance}, not to {wanted}"
    );
    Ok(())
}

/// While nobody comes but HAProxy with its probes, no node writes a line to its log, and the probes do come.
async fn check_quiet(network: &mut Network) -> Result<()> {
    // The last payment's ends and acknowledgements first.
    let mut lines = Vec::new();
    until("silence", PATIENCE, async || {
        let before: Vec<_> = network
            .of("PartyB")
            .map(|machine| machine.log().lines().count())
            .collect();
        sleep(QUIET).await;
        lines = network
            .of("PartyB")
            .map(|machine| machine.log().lines().count())
            .collect();
        Ok(if lines == before {
            Ok(())
        } else {
            let tails: Vec<_> = network
                .of("PartyB")
                .map(crate::support::network::Machine::tail)
                .collect();
            Err(tails.join("\n"))
        })
    })
    .await
    .context("the nodes' logs are not quiet under probes")?;
    if lines.is_empty() {
        bail!("PartyB has no machines");
    }
    Ok(())
}
