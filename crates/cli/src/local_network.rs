//! A network of nodes as processes of this program on this machine, for the demonstration and for
//! benchmarks.
//!
//! [`LocalNetwork::prepare`] writes configurations, bootstraps the network, and starts a private
//! PostgreSQL server if one is wanted; [`LocalNode`] starts, kills and stops its process and has
//! clients for it. Nothing outlives the value: processes are ended by their ids when it is dropped.
//! Every port is on 127.0.0.1.

mod pair;

use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use quorate_identity::X500Name;
use quorate_node::bootstrap::{self, BootstrapOptions};
use quorate_rpc::{Client, Options, Password};
use quorate_runtime::{Clock, Entropy};
use quorate_testkit::postgres::{Postgres, PostgresOptions};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

pub(crate) use pair::Pair;

/// How long a node may take until it serves, or until it has stopped when asked to.
const PATIENCE: Duration = Duration::from_secs(30);
/// Pause between two looks at a condition.
const POLL: Duration = Duration::from_millis(10);
/// How long one HTTP request may take.
const HTTP_PATIENCE: Duration = Duration::from_secs(5);
/// Largest answer that is read over HTTP, in bytes.
const MAX_HTTP_BYTES: u64 = 8 * 1024 * 1024;
/// This very program, also when its file has been replaced by another one since.
pub(crate) const PROGRAM: &str = "/proc/self/exe";
/// The ports of a node.
const PORTS: usize = 4;
/// How many lines of a node's output an error shows.
const SHOWN_LINES: usize = 15;
/// User and password of every node's RPC; the ports are this machine's only.
pub(crate) const RPC_USER: &str = "demo";

/// Where the nodes keep what is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Engine {
    /// A file for each node
    Sqlite,
    /// A private PostgreSQL server with durable commits, and a database for each node
    Postgres,
}

impl Engine {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sqlite => "SQLite",
            Self::Postgres => "PostgreSQL",
        }
    }
}

/// What the network is made of.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Where; a temporary directory if absent.
    pub(crate) directory: Option<PathBuf>,
    /// Whether a temporary directory stays.
    pub(crate) keep: bool,
    pub(crate) engine: Engine,
    /// Organisation, locality and country of each node, and whether it is a notary.
    pub(crate) nodes: Vec<(&'static str, &'static str, &'static str, bool)>,
    /// A further node, served by two instances.
    pub(crate) pair: Option<Pair>,
    /// Arguments of `quorate node` besides the base directory.
    pub(crate) arguments: Vec<&'static str>,
}

/// A directory that may be temporary.
#[derive(Debug)]
pub(crate) enum Directory {
    Temporary(tempfile::TempDir),
    Kept(PathBuf),
}

impl Directory {
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Temporary(directory) => directory.path(),
            Self::Kept(path) => path,
        }
    }
}

/// A network on this machine.
#[derive(Debug)]
pub(crate) struct LocalNetwork {
    // Dropped in this order: processes, their database server, their files.
    pub(crate) nodes: Vec<LocalNode>,
    /// Where a load balancer shall listen, if the plan has one. `operations` is not used.
    pub(crate) balancer: Option<Ports>,
    postgres: Option<Postgres>,
    directory: Directory,
}

impl LocalNetwork {
    /// Makes everything that the nodes need to start; starts none of them.
    pub(crate) fn prepare(plan: &Plan) -> Result<Self> {
        let directory = directory(plan.directory.as_deref(), plan.keep)?;
        let postgres = match plan.engine {
            Engine::Sqlite => None,
            Engine::Postgres => Some(Postgres::start(&PostgresOptions::default())?),
        };
        let mut network = Self {
            nodes: Vec::new(),
            balancer: None,
            postgres,
            directory,
        };
        let path = network.path().to_owned();
        // Two instances and a load balancer.
        let most = plan.nodes.len() + 3;
        let mut ports = free_ports(PORTS * most)?.into_iter();
        let mut ports = || {
            let mut port = || ports.next().expect("there are ports for every node");
            Ports {
                p2p: port(),
                rpc: port(),
                web: port(),
                operations: port(),
            }
        };
        for (organisation, locality, country, notary) in &plan.nodes {
            let ports = ports();
            let name = format!("O={organisation}, L={locality}, C={country}").parse()?;
            let mut text = configuration(&name, &[ports.p2p], &ports);
            if *notary {
                text.push_str("notary { validating = false }\n");
            }
            if let Some(url) = network.new_database(organisation)? {
                text.push_str(&data_source(&url));
            }
            network.write(&format!("{organisation}_node.conf"), &text)?;
            network.add(plan, organisation, name, ports);
        }
        let second = match &plan.pair {
            Some(pair) => Some(network.add_pair(plan, pair, [ports(), ports()], ports())?),
            None => None,
        };
        let options = BootstrapOptions {
            directory: path.clone(),
            load: crate::node::load_options(),
            ..BootstrapOptions::default()
        };
        bootstrap::bootstrap(&options, &Clock::system(), &Entropy::system())
            .with_context(|| format!("bootstrapping the network in {}", path.display()))?;
        if let (Some(pair), Some(second)) = (&plan.pair, second) {
            network.part(pair, &second)?;
        }
        Ok(network)
    }

    fn add(&mut self, plan: &Plan, label: &'static str, name: X500Name, ports: Ports) {
        self.nodes.push(LocalNode {
            label,
            name,
            ports,
            directory: self.path().join(label),
            arguments: plan.arguments.clone(),
            child: None,
        });
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        let file = self.path().join(file);
        fs::write(&file, text).with_context(|| format!("writing {}", file.display()))
    }

    /// Starts every node that does not run, and waits until all serve.
    pub(crate) async fn start(&mut self) -> Result<()> {
        for node in &mut self.nodes {
            node.spawn()?;
        }
        for node in &mut self.nodes {
            node.ready().await?;
        }
        Ok(())
    }

    /// Asks every node to stop, and waits until all have.
    pub(crate) async fn stop(&mut self) -> Result<()> {
        for node in &self.nodes {
            node.ask_to_stop()?;
        }
        for node in &mut self.nodes {
            node.stopped().await?;
        }
        Ok(())
    }

    /// The node of an organisation of the plan, or an instance of its pair.
    pub(crate) fn node(&mut self, label: &str) -> &mut LocalNode {
        self.nodes
            .iter_mut()
            .find(|node| node.label == label)
            .expect("only nodes of the plan are asked for")
    }

    /// The directory with the nodes' directories.
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Whether the directory stays.
    pub(crate) fn is_kept(&self) -> bool {
        matches!(self.directory, Directory::Kept(_))
    }

    /// The private PostgreSQL server, if there is one.
    pub(crate) fn postgres(&self) -> Option<&Postgres> {
        self.postgres.as_ref()
    }

    /// The JDBC URL of a new database for a node, if it is on PostgreSQL.
    fn new_database(&self, organisation: &str) -> Result<Option<String>> {
        let Some(postgres) = &self.postgres else {
            return Ok(None);
        };
        let database = organisation.to_ascii_lowercase();
        postgres.create_database(&database)?;
        let port = postgres.port();
        Ok(Some(format!(
            "jdbc:postgresql://127.0.0.1:{port}/{database}"
        )))
    }
}

/// A new temporary directory, or the one that somebody wants it in.
pub(crate) fn directory(wanted: Option<&Path>, keep: bool) -> Result<Directory> {
    let Some(path) = wanted else {
        let directory = tempfile::Builder::new()
            .prefix("quorate-network-")
            .tempdir()
            .context("making a temporary directory")?;
        return Ok(if keep {
            Directory::Kept(directory.keep())
        } else {
            Directory::Temporary(directory)
        });
    };
    fs::create_dir_all(path).with_context(|| format!("making {}", path.display()))?;
    let path = path.canonicalize()?;
    ensure!(
        fs::read_dir(&path)?.next().is_none(),
        "{} is not empty; name a new directory",
        path.display()
    );
    Ok(Directory::Kept(path))
}

/// Ports that were free just now. All are held until the last is found, so that they differ.
pub(crate) fn free_ports(count: usize) -> Result<Vec<u16>> {
    let listeners = (0..count)
        .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
        .collect::<Result<Vec<_>, _>>()
        .context("looking for free ports on 127.0.0.1")?;
    let ports = listeners.iter().map(|listener| listener.local_addr());
    Ok(ports
        .map(|address| address.map(|address| address.port()))
        .collect::<Result<_, _>>()?)
}

/// What every configuration says. `advertised` are the P2P ports that peers are told.
fn configuration(name: &X500Name, advertised: &[u16], ports: &Ports) -> String {
    let Ports {
        p2p,
        rpc,
        web,
        operations,
    } = ports;
    let mut addresses = advertised
        .iter()
        .map(|port| format!("\"127.0.0.1:{port}\""));
    let first = addresses.next().unwrap_or_default();
    let further: Vec<String> = addresses.collect();
    format!(
        r#"myLegalName = "{name}"
devMode = true
p2pAddress = {first}
additionalP2PAddresses = [ {} ]
messagingServerAddress = "127.0.0.1:{p2p}"
rpcSettings {{ address = "127.0.0.1:{rpc}" }}
webAddress = "127.0.0.1:{web}"
operations {{ address = "127.0.0.1:{operations}" }}
rpcUsers = [ {{ user = "{RPC_USER}", password = "{RPC_USER}", permissions = [ "ALL" ] }} ]
database {{ runMigration = true }}
"#,
        further.join(", ")
    )
}

/// The part of a configuration that names the database.
fn data_source(url: &str) -> String {
    if url.starts_with("jdbc:sqlite:") {
        return format!("dataSourceProperties {{ dataSource {{ url = \"{url}\" }} }}\n");
    }
    let user = quorate_testkit::postgres::USER;
    format!(
        r#"dataSourceProperties {{
  dataSourceClassName = "org.postgresql.ds.PGSimpleDataSource"
  dataSource {{ url = "{url}", user = "{user}" }}
}}
"#
    )
}

/// Where a node listens, on 127.0.0.1. There are [`PORTS`] of them.
#[derive(Debug, Clone)]
pub(crate) struct Ports {
    pub(crate) p2p: u16,
    pub(crate) rpc: u16,
    pub(crate) web: u16,
    pub(crate) operations: u16,
}

/// A node of the network, running or not.
#[derive(Debug)]
pub(crate) struct LocalNode {
    /// The organisation; of a pair, the instance.
    pub(crate) label: &'static str,
    pub(crate) name: X500Name,
    pub(crate) ports: Ports,
    pub(crate) directory: PathBuf,
    arguments: Vec<&'static str>,
    child: Option<Child>,
}

impl LocalNode {
    /// Starts the process; does nothing if it runs.
    pub(crate) fn spawn(&mut self) -> Result<()> {
        if self.child.is_some() {
            return Ok(());
        }
        let output = File::options()
            .create(true)
            .append(true)
            .open(self.console())
            .with_context(|| format!("opening {}", self.console().display()))?;
        let child = Command::new(PROGRAM)
            .arg0("quorate")
            .arg("node")
            .arg("--base-directory")
            .arg(&self.directory)
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("starting the node of {}", self.label))?;
        self.child = Some(child);
        Ok(())
    }

    /// Waits until the node says that traffic may come; how long that took from the call.
    pub(crate) async fn ready(&mut self) -> Result<Duration> {
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            if let Some(status) = self.exited()? {
                bail!(
                    "the node of {} ended with {status}:\n{}",
                    self.label,
                    self.tail()
                );
            }
            if matches!(self.get("/readyz").await, Ok((200, _))) {
                return Ok(began.elapsed());
            }
            sleep(POLL).await;
        }
        bail!(
            "the node of {} was not ready within {} s:\n{}",
            self.label,
            PATIENCE.as_secs(),
            self.tail()
        )
    }

    /// Waits until the node says that it stands by.
    pub(crate) async fn standing_by(&mut self) -> Result<()> {
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            if let Some(status) = self.exited()? {
                bail!(
                    "the standby {} ended with {status}:\n{}",
                    self.label,
                    self.tail()
                );
            }
            if let Ok((503, text)) = self.get("/readyz").await
                && let Ok(report) = serde_json::from_str::<serde_json::Value>(&text)
                && report["status"] == "standby"
                && report["holder"].is_string()
            {
                return Ok(());
            }
            sleep(POLL).await;
        }
        bail!(
            "{} did not stand by within {} s:\n{}",
            self.label,
            PATIENCE.as_secs(),
            self.tail()
        )
    }

    /// The process's id, if it runs.
    pub(crate) fn process(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Ends the process as `kill -9` does.
    pub(crate) fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Starts the node, anew after [`Self::kill`]; how long until it served.
    pub(crate) async fn start(&mut self) -> Result<Duration> {
        self.spawn()?;
        self.ready().await
    }

    /// Stops the process in the midst of whatever it does, as a machine does that hangs.
    pub(crate) fn freeze(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets it go on after [`Self::freeze`].
    pub(crate) fn thaw(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// Waits until the process has ended by itself.
    pub(crate) async fn ended(&mut self) -> Result<ExitStatus> {
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            if let Some(status) = self.exited()? {
                self.child = None;
                return Ok(status);
            }
            sleep(POLL).await;
        }
        bail!(
            "{} did not end within {} s:\n{}",
            self.label,
            PATIENCE.as_secs(),
            self.tail()
        )
    }

    /// The last line that the process has printed.
    pub(crate) fn last_words(&self) -> String {
        let printed = fs::read_to_string(self.console()).unwrap_or_default();
        printed.lines().last().unwrap_or_default().to_owned()
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        if let Some(child) = &self.child {
            kill_process(Pid::from_child(child), signal)?;
        }
        Ok(())
    }

    fn ask_to_stop(&self) -> Result<()> {
        self.signal(Signal::TERM)
    }

    async fn stopped(&mut self) -> Result<()> {
        let began = Instant::now();
        while self.child.is_some() {
            if let Some(status) = self.exited()? {
                self.child = None;
                ensure!(
                    status.success(),
                    "the node of {} was asked to stop and ended with {status}:\n{}",
                    self.label,
                    self.tail()
                );
            } else if began.elapsed() > PATIENCE {
                bail!(
                    "the node of {} did not stop within {} s:\n{}",
                    self.label,
                    PATIENCE.as_secs(),
                    self.tail()
                );
            } else {
                sleep(POLL).await;
            }
        }
        Ok(())
    }

    fn exited(&mut self) -> Result<Option<ExitStatus>> {
        match &mut self.child {
            Some(child) => Ok(child.try_wait()?),
            None => bail!("the node of {} was not started", self.label),
        }
    }

    /// A client that is connected.
    pub(crate) async fn client(&self) -> Result<Client> {
        Client::connect(client_options(&[self.ports.rpc]))
            .await
            .with_context(|| format!("connecting to the RPC port of {}", self.label))
    }

    /// Status and body of a page of the operations endpoint.
    pub(crate) async fn get(&self, page: &str) -> Result<(u16, String)> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.ports.operations));
        timeout(HTTP_PATIENCE, get(address, page))
            .await
            .with_context(|| format!("{page} of {} did not answer", self.label))?
    }

    /// What the process has printed.
    fn console(&self) -> PathBuf {
        self.directory.join("console.log")
    }

    /// The ends of the process's output and of the node's log.
    fn tail(&self) -> String {
        let mut files = vec![self.console()];
        if let Ok(logs) = fs::read_dir(self.directory.join("logs")) {
            files.extend(logs.flatten().map(|entry| entry.path()));
        }
        let mut text = String::new();
        for file in files {
            let content = fs::read_to_string(&file).unwrap_or_default();
            let lines: Vec<&str> = content.lines().collect();
            let shown = &lines[lines.len().saturating_sub(SHOWN_LINES)..];
            // Writing to a String cannot fail.
            let _ = write!(text, "--- {}\n{}\n", file.display(), shown.join("\n"));
        }
        text
    }
}

/// How clients reach a node whose RPC is at one of these ports. The other end is this machine: who
/// does not answer soon is not there.
pub(crate) fn client_options(ports: &[u16]) -> Options {
    let addresses = ports.iter().map(|port| format!("127.0.0.1:{port}"));
    let mut options = Options::new(addresses, RPC_USER, Password::new(RPC_USER));
    options.backoff_max = Duration::from_millis(200);
    options
}

impl Drop for LocalNode {
    fn drop(&mut self) {
        // Nobody is left who could be told.
        let _ = self.kill();
    }
}

/// A page by HTTP. Version 1.0, so that the answer comes in one piece and ends with the connection.
pub(crate) async fn get(address: SocketAddr, page: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {page} HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(MAX_HTTP_BYTES).read_to_end(&mut answer).await?;
    let answer = String::from_utf8(answer)?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("the answer is not HTTP")?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Ok((status.context("the answer is not HTTP")?, body.to_owned()))
}

/// Runs `work` to its end, or drops it when a signal asks this process to stop: what it has started
/// ends with it.
pub(crate) async fn unless_stopped<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    tokio::select! {
        result = work => result,
        _ = terminate.recv() => bail!("stopped by a signal"),
        _ = interrupt.recv() => bail!("stopped by a signal"),
        _ = hang_up.recv() => bail!("stopped by a signal"),
    }
}
