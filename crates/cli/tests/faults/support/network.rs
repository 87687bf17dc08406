//! Nodes as processes, several of them for one node if wanted.
//!
//! [`Network::make`] writes configurations, has `quorate network bootstrap` make the network of them, and gives every
//! further machine of a node a copy of the first one's directory, as the guides tell operators to do. A [`Machine`] is
//! one process, and can be killed, stopped, continued and asked for its role.
//!
//! Unlike the network of the demonstration, this one has several machines to a node, gates in the way of any of them, and
//! ports that no outgoing connection can have taken while their owner was dead.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use quorate_identity::X500Name;
use quorate_rpc::{Client, Options, Password};
use quorate_testkit::postgres::{Postgres, PostgresOptions};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use super::gate::Gate;
use super::{PATIENCE, POLL};

/// User and password of every node's RPC; the ports are this machine's only.
pub(crate) const USER: &str = "tester";
/// The name of the notary that has workers.
pub(crate) const SERVICE: &str = "O=Notary Service, L=Zurich, C=CH";
/// How long one HTTP request may take.
const HTTP_PATIENCE: Duration = Duration::from_secs(2);
/// Largest answer that is read over HTTP, in bytes.
const MAX_HTTP_BYTES: u64 = 1024 * 1024;
/// The library that shows a process another time, where Debian's package libfaketime puts it; the loader knows `$LIB`.
const FAKE_TIME: &str = "/usr/$LIB/faketime/libfaketimeMT.so.1";
/// Ports below this system's range for outgoing connections.
const PORTS: std::ops::Range<u16> = 20_000..30_000;

/// The lease's intervals in these tests.
pub(crate) const UPDATE: Duration = Duration::from_millis(500);
pub(crate) const WAIT: Duration = Duration::from_millis(1_500);
/// How long after the interval a takeover must be over.
pub(crate) const TAKEOVER: Duration = Duration::from_secs(2);

/// Where the nodes keep what is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Engine {
    Sqlite,
    Postgres,
}

/// A node of the network that is to be made.
#[derive(Debug, Clone)]
pub(crate) struct NodePlan {
    pub(crate) organisation: &'static str,
    pub(crate) notary: bool,
    /// What each of its machines has in its `mutualExclusionConfiguration` besides the intervals; one entry per machine.
    /// A node with one machine has no mutual exclusion if this is empty text.
    pub(crate) machines: Vec<&'static str>,
    pub(crate) intervals: (Duration, Duration),
    /// A gate between each machine and the database.
    pub(crate) database_gate: bool,
    /// A gate between the peers and the node's first machine.
    pub(crate) peer_gate: bool,
    /// A worker of the notary service, with a database that all of them share.
    pub(crate) worker: bool,
    /// What its configuration says besides.
    pub(crate) more: &'static str,
    /// The one port on which peers reach all machines, if there is a load balancer.
    pub(crate) front: Option<u16>,
    /// The ports on which peers reach the node's floats, if it is behind a firewall, and what it has in
    /// `enterpriseConfiguration` for that.
    pub(crate) firewall: Option<(Vec<u16>, String)>,
}

impl NodePlan {
    pub(crate) fn single(organisation: &'static str) -> Self {
        Self::hot_cold(organisation, &[""])
    }

    pub(crate) fn hot_cold(organisation: &'static str, machines: &[&'static str]) -> Self {
        Self {
            organisation,
            notary: organisation == "Notary",
            machines: machines.to_vec(),
            intervals: (UPDATE, WAIT),
            database_gate: false,
            peer_gate: false,
            worker: false,
            more: "",
            front: None,
            firewall: None,
        }
    }

    pub(crate) fn worker(organisation: &'static str) -> Self {
        Self {
            worker: true,
            ..Self::single(organisation)
        }
    }

    pub(crate) fn with(self, more: &'static str) -> Self {
        Self { more, ..self }
    }

    pub(crate) fn with_database_gate(self) -> Self {
        Self {
            database_gate: true,
            ..self
        }
    }

    pub(crate) fn with_peer_gate(self) -> Self {
        Self {
            peer_gate: true,
            ..self
        }
    }
}

/// Processes, their database server and their files.
#[derive(Debug)]
pub(crate) struct Network {
    // Dropped in this order.
    pub(crate) machines: Vec<Machine>,
    pub(crate) peer_gates: BTreeMap<&'static str, Gate>,
    pub(crate) postgres: Option<Arc<Postgres>>,
    /// The database that the workers of the notary share, if it has workers.
    pub(crate) notary_log: Option<DatabasePlace>,
    program: PathBuf,
    directory: Option<tempfile::TempDir>,
}

impl Drop for Network {
    fn drop(&mut self) {
        if let Some(directory) = self.directory.take() {
            println!("the remains are in {}", directory.keep().display());
        }
    }
}

impl Network {
    /// Makes everything that the processes need to start; starts none of them.
    pub(crate) async fn make(engine: Engine, nodes: &[NodePlan]) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("quorate-faults-")
            .tempdir()
            .context("making a temporary directory")?;
        let postgres = match engine {
            Engine::Sqlite => None,
            Engine::Postgres => {
                // A lost machine is not under test here, so nobody needs to wait for the disk.
                let options = PostgresOptions {
                    durable: false,
                    settings: Vec::new(),
                };
                Some(Arc::new(Postgres::start(&options)?))
            }
        };
        // A name of its own: a build meanwhile must not change what is under test.
        let program = directory.path().join("quorate");
        let built = Path::new(env!("CARGO_BIN_EXE_quorate"));
        if fs::hard_link(built, &program).is_err() {
            fs::copy(built, &program)?;
        }
        let mut network = Self {
            machines: Vec::new(),
            peer_gates: BTreeMap::new(),
            postgres,
            notary_log: None,
            program,
            directory: Some(directory),
        };
        for node in nodes {
            network.plan(node).await?;
        }
        let path = network.path().to_owned();
        let mut bootstrap = quorate(&network.program);
        run(bootstrap.args(["network", "bootstrap", "--dir"]).arg(&path))?;
        for machine in &network.machines {
            let first = path.join(machine.organisation);
            if machine.directory != first {
                copy_directory(&first, &machine.directory)?;
                machine.configure(&machine.configuration)?;
            }
        }
        Ok(network)
    }

    async fn plan(&mut self, node: &NodePlan) -> Result<()> {
        let place = match node.organisation {
            "Notary" => "L=Zurich, C=CH",
            "PartyA" => "L=London, C=GB",
            _ => "L=New York, C=US",
        };
        let name: X500Name = format!("O={}, {place}", node.organisation).parse()?;
        let database = self.new_database(node.organisation)?;
        if node.worker && self.notary_log.is_none() {
            self.notary_log = Some(self.new_database("Shared")?);
        }
        let ports: Vec<Ports> = node
            .machines
            .iter()
            .map(|_| Ports::free())
            .collect::<Result<_>>()?;
        let mut advertised: Vec<u16> = ports.iter().map(|ports| ports.p2p).collect();
        if node.peer_gate {
            let gate = Gate::to(free_port()?, advertised[0]).await?;
            advertised[0] = gate.port;
            self.peer_gates.insert(node.organisation, gate);
        }
        if let Some(front) = node.front {
            advertised = vec![front];
        }
        if let Some((floats, _)) = &node.firewall {
            advertised.clone_from(floats);
        }
        for (index, (exclusion, ports)) in node.machines.iter().zip(ports).enumerate() {
            let number = index + 1;
            let mut database_gate = None;
            if let (true, DatabasePlace::Postgres { server, .. }) = (node.database_gate, &database)
            {
                database_gate = Some(Gate::to(free_port()?, server.port()).await?);
            }
            let database_port = database_gate.as_ref().map(|gate| gate.port);
            let directory = match index {
                0 => self.path().join(node.organisation),
                _ => self.path().join(format!("{}-{number}", node.organisation)),
            };
            let mut configuration = configuration(&name, &ports, &advertised, node.notary);
            configuration.push_str(&database.configuration(database_port));
            configuration.push_str(node.more);
            if let (true, Some(log)) = (node.worker, &self.notary_log) {
                let _ = writeln!(
                    configuration,
                    "notary {{ validating = false, serviceLegalName = \"{SERVICE}\", jpa {{ {} }} }}",
                    log.configuration(None)
                );
            }
            if node.machines.len() > 1 || !exclusion.is_empty() {
                let (update, wait) = node.intervals;
                // Writing to a String cannot fail.
                let _ = writeln!(
                    configuration,
                    "enterpriseConfiguration {{ mutualExclusionConfiguration {{ on = true, machineName = \
                     \"machine{number}\", updateInterval = {}, waitInterval = {}, {exclusion} }} }}",
                    update.as_millis(),
                    wait.as_millis(),
                );
            }
            if let Some((_, more)) = &node.firewall {
                let _ = writeln!(configuration, "enterpriseConfiguration {{ {more} }}");
            }
            let machine = Machine {
                organisation: node.organisation,
                label: format!("{}/{number}", node.organisation),
                instance: format!("machine{number}:{}", directory.display()),
                name: name.clone(),
                ports,
                directory,
                configuration,
                program: self.program.clone(),
                database: database.clone(),
                database_gate,
                clock: None,
                child: None,
                stopped: false,
            };
            if index == 0 {
                let file = self.path().join(format!("{}_node.conf", node.organisation));
                fs::write(&file, &machine.configuration)?;
            }
            self.machines.push(machine);
        }
        Ok(())
    }

    fn new_database(&self, name: &str) -> Result<DatabasePlace> {
        let Some(postgres) = &self.postgres else {
            let file = self.path().join(format!("{name}.db"));
            return Ok(DatabasePlace::Sqlite(file));
        };
        let database = name.to_ascii_lowercase();
        postgres.create_database(&database)?;
        Ok(DatabasePlace::Postgres {
            database,
            server: Arc::clone(postgres),
        })
    }

    /// The program under test.
    pub(crate) fn quorate(&self) -> Command {
        quorate(&self.program)
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory
            .as_ref()
            .expect("the directory is there until the end")
            .path()
    }

    /// A machine by its label, such as `PartyB/2`; the first one of a node by the organisation alone.
    pub(crate) fn machine(&mut self, label: &str) -> &mut Machine {
        self.machines
            .iter_mut()
            .find(|machine| machine.label == label || machine.organisation == label)
            .expect("only machines of the plan are asked for")
    }

    pub(crate) fn of<'a>(
        &'a self,
        organisation: &'a str,
    ) -> impl Iterator<Item = &'a Machine> + 'a {
        self.machines
            .iter()
            .filter(move |machine| machine.organisation == organisation)
    }

    /// Starts every process that does not run. The first machine of each node serves before the others start.
    pub(crate) async fn start(&mut self) -> Result<()> {
        for machine in &mut self.machines {
            if machine.label.ends_with("/1") {
                machine.spawn()?;
            }
        }
        for machine in &mut self.machines {
            if machine.label.ends_with("/1") {
                machine.serving().await?;
            } else {
                machine.spawn()?;
                machine.in_role("standby").await?;
            }
        }
        Ok(())
    }

    /// A client with the addresses of all machines of a node.
    pub(crate) fn client(&self, organisation: &str) -> Result<Client> {
        let addresses = self
            .of(organisation)
            .map(|machine| format!("127.0.0.1:{}", machine.ports.rpc));
        client_of(addresses)
    }

    /// Stops every process in an orderly way.
    pub(crate) async fn stop(&mut self) -> Result<()> {
        for machine in &mut self.machines {
            machine.signal(Signal::CONT)?;
            machine.signal(Signal::TERM)?;
        }
        for machine in &mut self.machines {
            if machine.is_running()? {
                machine.ended().await?;
            }
        }
        Ok(())
    }

    /// Stops every process and takes the files away: call it when all is well.
    pub(crate) async fn finish(mut self) -> Result<()> {
        self.stop().await?;
        self.directory.take();
        Ok(())
    }
}

/// A client that finds out soon when a machine is silent.
pub(crate) fn client_of(addresses: impl IntoIterator<Item = String>) -> Result<Client> {
    let mut options = Options::new(addresses, USER, Password::new(USER));
    options.connect_timeout = Duration::from_millis(500);
    options.keep_alive_interval = Duration::from_millis(500);
    options.keep_alive_timeout = Duration::from_millis(500);
    options.backoff_max = Duration::from_millis(200);
    Ok(Client::new(options)?)
}

/// Where one machine listens, on 127.0.0.1.
#[derive(Debug, Clone)]
pub(crate) struct Ports {
    pub(crate) p2p: u16,
    pub(crate) rpc: u16,
    pub(crate) web: u16,
    pub(crate) operations: u16,
}

impl Ports {
    fn free() -> Result<Self> {
        Ok(Self {
            p2p: free_port()?,
            rpc: free_port()?,
            web: free_port()?,
            operations: free_port()?,
        })
    }
}

/// A port that nobody uses, and that no outgoing connection will get while its owner is dead.
pub(crate) fn free_port() -> Result<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let span = PORTS.end - PORTS.start;
    // Test runs one after the other do not begin with ports that linger from the former.
    let start = (std::process::id() % u32::from(span)) as u16;
    for _ in 0..span {
        let offset = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = PORTS.start + (start.wrapping_add(offset)) % span;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no port from {PORTS:?} is free on 127.0.0.1")
}

/// Where a node's database is.
#[derive(Debug, Clone)]
pub(crate) enum DatabasePlace {
    Sqlite(PathBuf),
    Postgres {
        server: Arc<Postgres>,
        database: String,
    },
}

impl DatabasePlace {
    /// The URL for whoever reads it past all gates.
    pub(crate) fn url(&self) -> String {
        match self {
            Self::Sqlite(path) => format!("sqlite://{}", path.display()),
            Self::Postgres { server, database } => server.url(database),
        }
    }

    fn configuration(&self, port: Option<u16>) -> String {
        let (class, url, user) = match self {
            Self::Sqlite(path) => (
                "org.sqlite.SQLiteDataSource",
                format!("jdbc:sqlite:{}", path.display()),
                String::new(),
            ),
            Self::Postgres { server, database } => (
                "org.postgresql.ds.PGSimpleDataSource",
                format!(
                    "jdbc:postgresql://127.0.0.1:{}/{database}",
                    port.unwrap_or_else(|| server.port())
                ),
                format!(", user = \"{}\"", quorate_testkit::postgres::USER),
            ),
        };
        format!(
            "dataSourceProperties {{ dataSourceClassName = \"{class}\", dataSource {{ url = \"{url}\"{user} }} }}\n"
        )
    }
}

fn configuration(name: &X500Name, ports: &Ports, advertised: &[u16], notary: bool) -> String {
    let Ports {
        p2p,
        rpc,
        web,
        operations,
    } = ports;
    let first = advertised[0];
    let others: Vec<String> = advertised[1..]
        .iter()
        .map(|port| format!("\"127.0.0.1:{port}\""))
        .collect();
    let mut text = format!(
        r#"myLegalName = "{name}"
devMode = true
p2pAddress = "127.0.0.1:{first}"
additionalP2PAddresses = [ {} ]
messagingServerAddress = "127.0.0.1:{p2p}"
rpcSettings {{ address = "127.0.0.1:{rpc}" }}
webAddress = "127.0.0.1:{web}"
operations {{ address = "127.0.0.1:{operations}" }}
rpcUsers = [ {{ user = "{USER}", password = "{USER}", permissions = [ "ALL" ] }} ]
database {{ runMigration = true }}
"#,
        others.join(", ")
    );
    if notary {
        text.push_str("notary { validating = false }\n");
    }
    text
}

/// The program under test, without variables that it would take for configuration.
fn quorate(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("QUORATE_") {
            command.env_remove(name);
        }
    }
    command
}

/// Runs a command to its end; what it printed.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output()?;
    let text = text_of(&output);
    ensure!(output.status.success(), "{command:?} failed: {text}");
    Ok(text)
}

/// Both outputs of a command.
fn text_of(output: &Output) -> String {
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    text
}

fn copy_directory(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_directory(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}

/// One process that serves a node, running or not.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) organisation: &'static str,
    pub(crate) label: String,
    /// As the lease names it.
    pub(crate) instance: String,
    pub(crate) name: X500Name,
    pub(crate) ports: Ports,
    pub(crate) directory: PathBuf,
    pub(crate) configuration: String,
    program: PathBuf,
    pub(crate) database: DatabasePlace,
    pub(crate) database_gate: Option<Gate>,
    /// By how much this machine's clock is ahead (`+1h`) or behind (`-1h`), as libfaketime writes it.
    pub(crate) clock: Option<&'static str>,
    child: Option<Child>,
    stopped: bool,
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Nobody is left who could be told.
        let _ = self.kill();
    }
}

impl Machine {
    /// Writes the configuration with which the next process starts.
    pub(crate) fn configure(&self, text: &str) -> Result<()> {
        Ok(fs::write(self.directory.join("node.conf"), text)?)
    }

    /// `quorate node` in this machine's directory.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = quorate(&self.program);
        command
            .arg("node")
            .arg("--base-directory")
            .arg(&self.directory)
            .args(arguments);
        if let Some(offset) = self.clock {
            command
                .env("LD_PRELOAD", FAKE_TIME)
                .env("FAKETIME", offset)
                .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
        command
    }

    /// Runs a command about this machine's directory, which comes last; what it printed.
    pub(crate) fn run(&self, arguments: &[&str]) -> Result<String> {
        run(quorate(&self.program).args(arguments).arg(&self.directory))
    }

    /// Starts the process; does nothing if it runs.
    pub(crate) fn spawn(&mut self) -> Result<()> {
        if self.is_running()? {
            return Ok(());
        }
        let output = File::options()
            .create(true)
            .append(true)
            .open(self.console())?;
        let child = self
            .command(&[])
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("starting {}", self.label))?;
        self.child = Some(child);
        self.stopped = false;
        Ok(())
    }

    pub(crate) fn is_running(&mut self) -> Result<bool> {
        Ok(match &mut self.child {
            None => false,
            Some(child) => child.try_wait()?.is_none(),
        })
    }

    /// Ends the process as `kill -9` does.
    pub(crate) fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        self.stopped = false;
        Ok(())
    }

    /// Sends a signal, if there still is a process.
    pub(crate) fn signal(&mut self, signal: Signal) -> Result<()> {
        if !self.is_running()? {
            return Ok(());
        }
        if let Some(child) = &self.child {
            kill_process(Pid::from_child(child), signal)?;
            match signal {
                Signal::STOP => self.stopped = true,
                Signal::CONT => self.stopped = false,
                _ => {}
            }
        }
        Ok(())
    }

    /// Waits for the process's end.
    pub(crate) async fn ended(&mut self) -> Result<ExitStatus> {
        let began = Instant::now();
        let Some(child) = &mut self.child else {
            bail!("{} was not started", self.label)
        };
        while began.elapsed() < PATIENCE {
            if let Some(status) = child.try_wait()? {
                self.child = None;
                return Ok(status);
            }
            sleep(POLL).await;
        }
        bail!("{} did not end in time:\n{}", self.label, self.tail())
    }

    /// Waits until this machine serves.
    pub(crate) async fn serving(&mut self) -> Result<Duration> {
        self.in_role("active").await
    }

    /// Waits until the process says that it has this role.
    pub(crate) async fn in_role(&mut self, role: &str) -> Result<Duration> {
        let began = Instant::now();
        let mut last = String::new();
        while began.elapsed() < PATIENCE {
            if let Some(child) = &mut self.child
                && let Some(status) = child.try_wait()?
            {
                bail!("{} ended with {status}:\n{}", self.label, self.tail());
            }
            match self.role().await {
                Some(now) if now == role => return Ok(began.elapsed()),
                now => last = now.unwrap_or_default(),
            }
            sleep(POLL).await;
        }
        bail!(
            "{} did not become {role} in time; it is '{last}':\n{}",
            self.label,
            self.tail()
        )
    }

    /// What the process says that it is, if it says anything.
    pub(crate) async fn role(&self) -> Option<String> {
        if self.child.is_none() || self.stopped {
            return None;
        }
        let (_, report) = self.readiness().await.ok()?;
        Some(report["status"].as_str()?.to_owned())
    }

    /// Status and body of `/readyz`.
    pub(crate) async fn readiness(&self) -> Result<(u16, Value)> {
        let (status, body) = self.get("/readyz").await?;
        Ok((status, serde_json::from_str(&body)?))
    }

    /// Status and body of a page of the operations endpoint.
    pub(crate) async fn get(&self, page: &str) -> Result<(u16, String)> {
        get(self.ports.operations, page).await
    }

    /// What the process has printed.
    pub(crate) fn console(&self) -> PathBuf {
        self.directory.join("console.log")
    }

    /// The node's log, all files of it.
    pub(crate) fn log(&self) -> String {
        let mut text = String::new();
        if let Ok(logs) = fs::read_dir(self.directory.join("logs")) {
            for file in logs.flatten() {
                text.push_str(&fs::read_to_string(file.path()).unwrap_or_default());
            }
        }
        text
    }

    /// The ends of the process's output and of the node's log.
    pub(crate) fn tail(&self) -> String {
        let console = fs::read_to_string(self.console()).unwrap_or_default();
        let end = |text: &str| {
            let lines: Vec<&str> = text.lines().collect();
            lines[lines.len().saturating_sub(15)..].join("\n")
        };
        format!(
            "--- console\n{}\n--- log\n{}",
            end(&console),
            end(&self.log())
        )
    }
}

/// A page by HTTP. Version 1.0, so that the answer comes in one piece and ends with the connection.
pub(crate) async fn get(port: u16, page: &str) -> Result<(u16, String)> {
    let exchange = async {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
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
    };
    timeout(HTTP_PATIENCE, exchange)
        .await
        .with_context(|| format!("{page} did not answer"))?
}
