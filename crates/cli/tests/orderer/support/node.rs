//! An orderer: its directory, its orderer.yaml and its process.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::{Door, Identity, fixture, until};

/// The text that says that every listener accepts.
const READY: &str = "Beginning to serve requests";

/// The ports of consenters in the recorded channels: orderer0 listens at the first, orderer1 at the second.
const FIRST_PORT: u16 = 21050;
const PORTS_PER_ORDERER: u16 = 10;

/// Where orderers listen that listen anywhere: below the ports that the system gives to whoever calls somebody, so that none of
/// these takes the port of an orderer that is away, and above the recorded ones.
const ANYWHERE: std::ops::Range<u16> = 22_000..32_000;

/// A port that nobody has, and that is given out once.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let many = ANYWHERE.end - ANYWHERE.start;
    // Other test programs begin elsewhere.
    let begin = u16::try_from(std::process::id() % u32::from(many)).unwrap();
    (0..many)
        .map(|_| {
            let offset = NEXT.fetch_add(1, Ordering::Relaxed).wrapping_add(begin);
            ANYWHERE.start + offset % many
        })
        .find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
        .expect("there is a free port")
}

/// An orderer that does not run yet, or not any more: the directory stays.
pub(crate) struct Node {
    number: usize,
    directory: TempDir,
    general: u16,
    admin: u16,
    operations: u16,
    tls: (PathBuf, PathBuf),
    overrides: Vec<(String, String)>,
}

impl Node {
    /// Orderer `number` of the fixtures at ports that are free, and stay so while it does not run.
    pub(crate) fn anywhere(number: usize) -> Self {
        Self::at(number, free_port(), free_port(), free_port())
    }

    /// Orderer `number` where the recorded channels say that it listens. See [`super::ports`].
    pub(crate) fn recorded(number: usize) -> Self {
        let general = FIRST_PORT + PORTS_PER_ORDERER * u16::try_from(number).unwrap();
        Self::at(number, general, general + 4, general + 3)
    }

    fn at(number: usize, general: u16, admin: u16, operations: u16) -> Self {
        let tls = Self::folder_of(number).join("tls");
        Self {
            number,
            directory: tempfile::tempdir().unwrap(),
            general,
            admin,
            operations,
            tls: (tls.join("server.crt"), tls.join("server.key")),
            overrides: Vec::new(),
        }
    }

    fn folder_of(number: usize) -> PathBuf {
        fixture(&format!(
            "crypto/ordererOrganizations/orderer.test/orderers/orderer{number}.orderer.test"
        ))
    }

    /// With a key of orderer.yaml set through the environment, as `ORDERER_…`.
    #[must_use]
    pub(crate) fn with(mut self, key: &str, value: impl Into<String>) -> Self {
        self.set(key, value);
        self
    }

    pub(crate) fn set(&mut self, key: &str, value: impl Into<String>) {
        self.overrides.retain(|(other, _)| other != key);
        self.overrides.push((key.to_owned(), value.into()));
    }

    /// From now on with the TLS pair `crypto/special/<name>`.
    pub(crate) fn show(&mut self, name: &str) {
        let folder = fixture(&format!("crypto/special/{name}"));
        self.tls = (folder.join("server.crt"), folder.join("server.key"));
    }

    /// Where everything of this orderer is kept.
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Where clients and other orderers will call.
    pub(crate) fn port(&self) -> u16 {
        self.general
    }

    /// Begins with this block of a system channel.
    pub(crate) fn bootstrap(&mut self, block: &[u8]) {
        let file = self.path().join("bootstrap.block");
        fs::write(&file, block).unwrap();
        self.set("ORDERER_GENERAL_BOOTSTRAPMETHOD", "file");
        self.set("ORDERER_GENERAL_BOOTSTRAPFILE", file.display().to_string());
    }

    fn configuration(&self) -> String {
        let own = Self::folder_of(self.number);
        let (certificate, key) = (self.tls.0.display(), self.tls.1.display());
        let roots = own.join("tls/ca.crt");
        let (roots, msp) = (roots.display(), own.join("msp"));
        let (msp, here) = (msp.display(), self.path().display());
        let Self {
            general,
            admin,
            operations,
            ..
        } = self;
        format!(
            r#"
General:
  ListenAddress: 127.0.0.1
  ListenPort: {general}
  TLS:
    Enabled: true
    PrivateKey: {key}
    Certificate: {certificate}
    RootCAs: [{roots}]
    ClientAuthRequired: false
  Cluster:
    ClientCertificate: {certificate}
    ClientPrivateKey: {key}
    RootCAs: [{roots}]
  BootstrapMethod: none
  LocalMSPDir: {msp}
  LocalMSPID: OrdererOrgMSP
  Authentication:
    TimeWindow: 15m
FileLedger:
  Location: {here}/ledger
Consensus:
  WALDir: {here}/wal
  SnapDir: {here}/snap
  EvictionSuspicion: 5s
Operations:
  ListenAddress: 127.0.0.1:{operations}
Metrics:
  Provider: prometheus
Admin:
  ListenAddress: 127.0.0.1:{admin}
  TLS:
    Enabled: true
    PrivateKey: {key}
    Certificate: {certificate}
    RootCAs: [{roots}]
    ClientAuthRequired: true
    ClientRootCAs: [{roots}]
ChannelParticipation:
  Enabled: true
  MaxRequestBodySize: 1 MB
"#
        )
    }

    /// Starts the process and waits until it serves.
    pub(crate) async fn start(self) -> Orderer {
        let mut orderer = self.spawn();
        until("the orderer serves", async || {
            let ended = orderer.child.try_wait().unwrap();
            assert!(ended.is_none(), "it ended: {}", orderer.log());
            orderer.log().contains(READY).then_some(())
        })
        .await;
        orderer
    }

    /// Starts the process, which is expected to end by itself; what it said.
    pub(crate) async fn fails(self) -> String {
        let mut orderer = self.spawn();
        let status = until("the process ends", async || {
            orderer.child.try_wait().unwrap()
        })
        .await;
        assert!(!status.success(), "{}", orderer.log());
        orderer.log()
    }

    /// Starts the process and kills it a little later, whatever it has come to.
    pub(crate) async fn dies_after(self, time: Duration) -> Self {
        let orderer = self.spawn();
        tokio::time::sleep(time).await;
        orderer.kill()
    }

    fn spawn(self) -> Orderer {
        let configuration = self.path().join("orderer.yaml");
        fs::write(configuration, self.configuration()).unwrap();
        let log = self.path().join("log");
        let file = File::create(&log).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_quorate"))
            .arg("orderer")
            .env("FABRIC_CFG_PATH", self.path())
            .envs(self.overrides.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        Orderer {
            node: Some(self),
            child,
            log,
        }
    }
}

/// A running orderer. Its process is killed when this is dropped.
pub(crate) struct Orderer {
    node: Option<Node>,
    child: Child,
    log: PathBuf,
}

impl Orderer {
    fn node(&self) -> &Node {
        self.node.as_ref().expect("it is taken at the end only")
    }

    /// Where clients and other orderers call.
    pub(crate) fn port(&self) -> u16 {
        self.node().general
    }

    /// Where its files are.
    pub(crate) fn path(&self) -> &Path {
        self.node().path()
    }

    /// The participation API, for the organisation's admin.
    pub(crate) fn admin(&self) -> Door {
        Door::new(self.node().admin, Some(Identity::admin()))
    }

    /// The participation API's port.
    pub(crate) fn admin_port(&self) -> u16 {
        self.node().admin
    }

    /// The operations port.
    pub(crate) fn operations_port(&self) -> u16 {
        self.node().operations
    }

    /// How much memory the process holds now, in KiB.
    pub(crate) fn resident_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|rest| rest.trim().strip_suffix(" kB"));
        number.unwrap().trim().parse().unwrap()
    }

    /// What it has written since its start.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.child.id()).unwrap();
        kill_process(Pid::from_raw(id).unwrap(), signal).unwrap();
    }

    /// Asks it to stop and waits for that.
    pub(crate) async fn stop(mut self) -> Node {
        self.signal(Signal::TERM);
        let status = until("the orderer stops", async || self.child.try_wait().unwrap()).await;
        assert!(status.success(), "{status}: {}", self.log());
        self.node.take().unwrap()
    }

    /// Kills it, as a power cut would.
    pub(crate) fn kill(mut self) -> Node {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.node.take().unwrap()
    }

    /// Joins a channel with a block of the fixtures.
    pub(crate) async fn join(&self, block: &str) {
        let answer = self.admin().join(&super::bytes(block)).await;
        assert_eq!(answer.status, 201, "{block}: {}", answer.body);
    }

    /// What the participation API says of a channel.
    pub(crate) async fn describe(&self, channel: &str) -> serde_json::Value {
        let path = format!("/participation/v1/channels/{channel}");
        let answer = self.admin().ask("GET", &path, &[], b"").await;
        serde_json::from_str(&answer.body).unwrap_or_default()
    }

    /// How many blocks it has.
    pub(crate) async fn height(&self, channel: &str) -> u64 {
        self.describe(channel).await["height"].as_u64().unwrap_or(0)
    }

    /// Waits for as many blocks.
    pub(crate) async fn reaches(&self, channel: &str, height: u64) {
        let what = format!("{channel} has {height} blocks");
        until(&what, async || {
            (self.height(channel).await >= height).then_some(())
        })
        .await;
    }

    /// Waits for a text in the log.
    pub(crate) async fn says(&self, words: &str) {
        let what = format!("the log says `{words}`");
        until(&what, async || self.log().contains(words).then_some(())).await;
    }
}

impl Drop for Orderer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- the orderer's log\n{}", self.log());
        }
    }
}
