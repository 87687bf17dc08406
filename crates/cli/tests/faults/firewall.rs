//! Two parties behind firewalls pay each other while floats, bridges and nodes are killed. PartyB has two floats and two
//! bridges with keys of their own, as the guide says; PartyA has both in one process, with a copy of its TLS key.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use quorate_testkit::postgres;
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{Instant, sleep, timeout};

use crate::support::network::{Engine, Network, NodePlan, free_port, get, run};
use crate::support::payments::{Load, Payer, issue};
use crate::support::{Alone, Chance, PATIENCE, books, millis, until, wanted};

/// Payments under way at a time in each direction, and coins to make them with.
const UNDER_WAY: usize = 6;
const COINS: usize = 30;
/// What each coin is worth, in minor units.
const EACH: i64 = 1_000_000;
/// Pause between two kills.
const PAUSES: (Duration, Duration) = (Duration::from_millis(150), Duration::from_millis(700));
/// How long the killed one stays dead.
const DEATHS: (Duration, Duration) = (Duration::ZERO, Duration::from_millis(300));

const PASSWORD: &str = "linkpassword";

/// A float, a bridge, or both.
struct Firewall {
    label: &'static str,
    directory: PathBuf,
    operations: u16,
    command: Command,
    child: Option<Child>,
}

impl Drop for Firewall {
    fn drop(&mut self) {
        // Nobody is left who could be told.
        let _ = self.kill();
    }
}

impl Firewall {
    /// Writes the configuration of one process.
    fn configure(network: &Network, label: &'static str, configuration: &str) -> Result<Self> {
        let directory = network.path().join("firewalls").join(label);
        fs::create_dir_all(&directory)?;
        let operations = free_port()?;
        let text = format!(
            "{configuration}\noperations.address = \"127.0.0.1:{operations}\"\n\
             artemisReconnectionIntervalMin = 200, artemisReconnectionIntervalMax = 500\n"
        );
        fs::write(directory.join("firewall.conf"), text)?;
        let mut command = network.quorate();
        command
            .args(["firewall", "--base-directory"])
            .arg(&directory);
        Ok(Self {
            label,
            directory,
            operations,
            command,
            child: None,
        })
    }

    fn spawn(&mut self) -> Result<()> {
        let output = File::options()
            .create(true)
            .append(true)
            .open(self.directory.join("console.log"))?;
        let child = self
            .command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()?;
        self.child = Some(child);
        Ok(())
    }

    /// Ends the process as `kill -9` does.
    fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        if let Some(child) = &self.child {
            kill_process(Pid::from_child(child), signal)?;
        }
        Ok(())
    }

    /// Waits until peers can come through.
    async fn ready(&self) -> Result<()> {
        let what = format!("{} is ready", self.label);
        let looked = until(&what, PATIENCE, async || {
            Ok(match get(self.operations, "/readyz").await {
                Ok((200, _)) => Ok(()),
                Ok((_, body)) => Err(body),
                Err(error) => Err(error.to_string()),
            })
        });
        let console = || fs::read_to_string(self.directory.join("console.log"));
        looked
            .await
            .with_context(|| console().unwrap_or_default())
            .map(drop)
    }

    /// What is written in its logs, the audit log among them.
    fn logs(&self) -> String {
        let files = fs::read_dir(self.directory.join("logs"))
            .into_iter()
            .flatten();
        files
            .flatten()
            .map(|file| fs::read_to_string(file.path()).unwrap_or_default())
            .collect()
    }
}

/// Has the program make the keys of a link, as an operator does.
fn make_keys(command: &Command, kind: &str, folder: &Path, password: &Path) -> Result<()> {
    let mut make = Command::new(command.get_program());
    make.args(["firewall", kind, "--directory"])
        .arg(folder)
        .arg("--key-store-password-file")
        .arg(password)
        .arg("--trust-store-password-file")
        .arg(password);
    run(&mut make).map(drop)
}

fn stores(folder: &Path, whose: &str) -> String {
    format!(
        "sslKeystore = \"{0}/{whose}.json\", keyStorePassword = {PASSWORD}, \
         trustStoreFile = \"{0}/{whose}-trust.json\", trustStorePassword = {PASSWORD}",
        folder.display()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_of_floats_and_bridges_during_payments_lose_and_double_nothing() -> Result<()> {
    kills(Engine::Sqlite, wanted("QUORATE_FAULT_PAYMENTS", 150)?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_of_floats_and_bridges_lose_and_double_nothing_on_postgres() -> Result<()> {
    if postgres::skipped() {
        return Ok(());
    }
    kills(Engine::Postgres, wanted("QUORATE_FAULT_PAYMENTS", 60)?).await
}

/// Two parties behind firewalls, a notary that is not, and all of them at work.
struct Stage {
    // Dropped in this order.
    firewalls: Vec<Firewall>,
    network: Network,
    _keys: tempfile::TempDir,
}

async fn stage(engine: Engine) -> Result<Stage> {
    let keys = tempfile::tempdir()?;
    let password = keys.path().join("password");
    fs::write(&password, format!("{PASSWORD}\n"))?;
    let (artemis, tunnel) = (keys.path().join("artemis"), keys.path().join("tunnel"));
    let doors_of_a = [free_port()?];
    let doors_of_b = [free_port()?, free_port()?];
    let plans = [
        NodePlan::single("Notary"),
        NodePlan {
            firewall: Some((doors_of_a.to_vec(), "externalBridge = true".to_owned())),
            ..NodePlan::single("PartyA")
        },
        NodePlan {
            firewall: Some((
                doors_of_b.to_vec(),
                format!(
                    "externalBridge = true, messagingServerSslConfiguration {{ {} }}",
                    stores(&artemis, "artemis")
                ),
            )),
            ..NodePlan::single("PartyB")
        },
    ];
    let mut network = Network::make(engine, &plans).await?;
    let program = network.quorate();
    for (kind, folder) in [
        ("generate-internal-artemis-ssl-keystores", &artemis),
        ("generate-internal-tunnel-ssl-keystores", &tunnel),
    ] {
        make_keys(&program, kind, folder, &password)?;
    }
    network.start().await?;

    let node_a = network.machine("PartyA");
    let both = format!(
        "firewallMode = SenderReceiver, certificatesDirectory = \"{}/certificates\"\n\
         inboundConfig.listeningAddress = \"127.0.0.1:{}\"\n\
         outboundConfig.artemisBrokerAddress = \"127.0.0.1:{}\"",
        node_a.directory.display(),
        doors_of_a[0],
        node_a.ports.p2p,
    );
    let mut firewalls = vec![Firewall::configure(&network, "both-a", &both)?];
    let tunnels = [free_port()?, free_port()?];
    for (index, label) in ["float-1", "float-2"].into_iter().enumerate() {
        let text = format!(
            "firewallMode = FloatOuter, inboundConfig.listeningAddress = \"127.0.0.1:{}\"\n\
             floatOuterConfig {{ floatAddress = \"127.0.0.1:{}\"\n\
             expectedCertificateSubject = \"CN=bridge, O=Quorate, L=London, C=GB\"\n\
             tunnelSSLConfiguration {{ {} }} }}",
            doors_of_b[index],
            tunnels[index],
            stores(&tunnel, "float"),
        );
        firewalls.push(Firewall::configure(&network, label, &text)?);
    }
    let node_b = network.machine("PartyB").ports.p2p;
    for label in ["bridge-1", "bridge-2"] {
        let text = format!(
            "firewallMode = BridgeInner\n\
             outboundConfig {{ artemisBrokerAddress = \"127.0.0.1:{node_b}\"\n\
             artemisSSLConfiguration {{ {} }} }}\n\
             bridgeInnerConfig {{ floatAddresses = [ \"127.0.0.1:{}\", \"127.0.0.1:{}\" ]\n\
             expectedCertificateSubject = \"CN=float, O=Quorate, L=London, C=GB\"\n\
             tunnelSSLConfiguration {{ {} }} }}",
            stores(&artemis, "artemis"),
            tunnels[0],
            tunnels[1],
            stores(&tunnel, "bridge"),
        );
        firewalls.push(Firewall::configure(&network, label, &text)?);
    }
    for firewall in &mut firewalls {
        firewall.spawn()?;
    }
    for firewall in &firewalls {
        firewall.ready().await?;
    }
    Ok(Stage {
        firewalls,
        network,
        _keys: keys,
    })
}

fn payer(network: &mut Network, payer: &str, payee: &str, prefix: &'static str) -> Result<Payer> {
    Ok(Payer {
        client: network.client(payer)?,
        recipient: network.machine(payee).name.clone(),
        prefix,
    })
}

async fn kills(engine: Engine, payments: u64) -> Result<()> {
    let _alone = Alone::on_this_machine()?;
    let mut chance = Chance::new("firewall")?;
    let Stage {
        mut firewalls,
        mut network,
        _keys,
    } = stage(engine).await?;
    let a = payer(&mut network, "PartyA", "PartyB", "from-a")?;
    let b = payer(&mut network, "PartyB", "PartyA", "from-b")?;
    issue(&a.client, COINS, EACH).await?;
    issue(&b.client, COINS, EACH).await?;

    let began = Instant::now();
    let loads = [
        Load::closed(a.clone(), UNDER_WAY, payments),
        Load::closed(b.clone(), UNDER_WAY, payments),
    ];
    let mut kills = 0;
    while !loads.iter().all(Load::is_over) {
        sleep(chance.between(PAUSES.0, PAUSES.1)).await;
        let victim = chance.below(firewalls.len() + 1);
        let death = chance.between(DEATHS.0, DEATHS.1);
        match firewalls.get_mut(victim) {
            Some(firewall) => {
                firewall.kill()?;
                sleep(death).await;
                firewall.spawn()?;
            }
            None => {
                let node = network.machine("PartyB");
                node.kill()?;
                sleep(death).await;
                node.spawn()?;
                node.serving().await?;
            }
        }
        kills += 1;
    }
    let [load_a, load_b] = loads;
    let (settled_a, settled_b) = (load_a.all().await?, load_b.all().await?);
    println!(
        "2 x {payments} payments through firewalls on {engine:?} in {}, under {kills} kills",
        millis(began.elapsed())
    );
    ensure!(
        kills > 3,
        "the payments were over before anything was killed"
    );
    a.ask_again(&settled_a).await?;
    b.ask_again(&settled_b).await?;
    books::at_rest(&network).await?;
    let worth = COINS as i64 * EACH;
    books::reconcile(
        &network,
        &[("PartyA", worth), ("PartyB", worth)],
        &[
            ("PartyA", "PartyB", &settled_a),
            ("PartyB", "PartyA", &settled_b),
        ],
    )
    .await?;

    // Nothing lies in the DMZ but what was put there, and logs; in them the peers, and none of their messages.
    for float in firewalls
        .iter()
        .filter(|firewall| firewall.label.starts_with("float"))
    {
        let mut names: Vec<_> = fs::read_dir(&float.directory)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<Result<_>>()?;
        names.sort();
        ensure!(
            names == ["console.log", "firewall.conf", "logs"],
            "{} has {names:?}",
            float.label
        );
        let logs = float.logs();
        for wanted in ["\"event\":\"connected\"", "O=PartyA, L=London, C=GB"] {
            ensure!(logs.contains(wanted), "{} has no {wanted}", float.label);
        }
        ensure!(
            !logs.contains("ERROR"),
            "{} complains:\n{logs}",
            float.label
        );
    }
    firewalls.clear();
    network.finish().await
}

/// How long a payment may take while something on its way hangs: both signs of life have to be missed for ten seconds.
const HANG: Duration = Duration::from_secs(45);

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_or_float_that_hangs_is_left_for_the_other() -> Result<()> {
    let _alone = Alone::on_this_machine()?;
    let Stage {
        mut firewalls,
        mut network,
        _keys,
    } = stage(Engine::Sqlite).await?;
    let a = payer(&mut network, "PartyA", "PartyB", "from-a")?;
    issue(&a.client, COINS, EACH).await?;
    let mut settled = vec![a.pay(0, 100).await?];
    for (number, label) in (1..).zip(["float-1", "bridge-1", "float-2", "bridge-2"]) {
        let victim = firewalls.iter().find(|firewall| firewall.label == label);
        let victim = victim.context("it is one of them")?;
        victim.signal(Signal::STOP)?;
        let paid = timeout(HANG, a.pay(number, 100)).await;
        victim.signal(Signal::CONT)?;
        let paid = paid.with_context(|| format!("no payment while {label} hangs"))??;
        println!("while {label} hangs, a payment takes {}", millis(paid.took));
        settled.push(paid);
        for firewall in &firewalls {
            firewall.ready().await?;
        }
    }
    books::at_rest(&network).await?;
    let issued = [("PartyA", COINS as i64 * EACH)];
    books::reconcile(&network, &issued, &[("PartyA", "PartyB", &settled)]).await?;
    firewalls.clear();
    network.finish().await
}
