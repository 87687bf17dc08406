//! Orderers and the channel that they order.

use std::fs::{self, File, OpenOptions};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use prost::Message as _;
use quorate_fabric::crypto_material;
use quorate_fabric::envelope::ChannelId;
use quorate_fabric::genesis::{BesideConfigtx, Profile};
use quorate_fabric::msp::LocalMsp;
use quorate_identity::UnixTime;
use quorate_identity::mutual_tls::{ClientTls, Credentials, Roots};
use quorate_orderer::admin_client::{AdminClient, Described};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::client::Line;
use super::switch::Switch;
use super::until;

/// The channel of all tests.
pub(crate) const CHANNEL: &str = "books";
/// The orderers' MSP.
const MSP: &str = "OrdererOrgMSP";
/// The text that says that every listener accepts.
const READY: &str = "Beginning to serve requests";

/// How the channel is configured.
pub(crate) struct Rules {
    /// `TickInterval`, in milliseconds.
    pub(crate) tick: u64,
    pub(crate) election_tick: u64,
    /// Small, so that the log is compacted under everybody's feet.
    pub(crate) snapshot_bytes: u64,
}

impl Rules {
    /// A new leader must serve within this time.
    pub(crate) fn takeover(&self) -> Duration {
        Duration::from_millis(2 * self.tick * self.election_tick)
    }
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            tick: 100,
            election_tick: 10,
            snapshot_bytes: 20_000,
        }
    }
}

/// A cluster: its material, its orderers and what is between them.
pub(crate) struct Network {
    pub(crate) switch: Switch,
    pub(crate) orderers: Vec<Orderer>,
    pub(crate) genesis: Bytes,
    pub(crate) admin: Arc<LocalMsp>,
    directory: TempDir,
}

impl Network {
    /// `total` orderers, of which the first `members` are consenters of the channel. All of these run and have joined.
    pub(crate) async fn start(total: usize, members: usize, rules: &Rules) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let here = directory.path();
        // Twice as many, for each one's next certificate.
        let hosts: String = (0..2 * total)
            .map(|number| {
                format!("      - Hostname: orderer{number}\n        SANS: [localhost, 127.0.0.1]\n")
            })
            .collect();
        let crypto = format!(
            "OrdererOrgs:\n  - Name: OrdererOrg\n    Domain: orderer.test\n    EnableNodeOUs: true\n    Specs:\n{hosts}PeerOrgs:\n  - Name: Org1\n    Domain: org1.test\n    EnableNodeOUs: true\n    Users:\n      Count: 1\n"
        );
        crypto_material::generate(&crypto, SystemTime::now().into())
            .unwrap()
            .write(&here.join("crypto"))
            .unwrap();
        let mut switch = Switch::new();
        let mut orderers = Vec::new();
        for number in 0..total {
            orderers.push(Orderer::new(number, here, &mut switch).await);
        }
        let profile = configtx(&orderers[..members], rules);
        fs::write(here.join("configtx.yaml"), &profile).unwrap();
        let block = Profile::read(&profile, "Books")
            .unwrap()
            .genesis_block(
                &ChannelId::new(CHANNEL).unwrap(),
                &BesideConfigtx(here.to_owned()),
                super::now_micros() / 1_000_000,
                &[5; 24],
            )
            .unwrap();
        let admin =
            here.join("crypto/ordererOrganizations/orderer.test/users/Admin@orderer.test/msp");
        let mut network = Self {
            switch,
            orderers,
            genesis: block.encode_to_vec().into(),
            admin: Arc::new(LocalMsp::load(&admin, MSP).unwrap()),
            directory,
        };
        for number in 0..members {
            network.run(number).await;
            network.orderers[number].join(&network.genesis).await;
        }
        network
    }

    /// Where everything is.
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The TLS folder with another certificate for an orderer, of the same authority.
    pub(crate) fn next_tls(&self, number: usize) -> PathBuf {
        let spare = number + self.orderers.len();
        let orderers = "crypto/ordererOrganizations/orderer.test/orderers";
        self.path()
            .join(format!("{orderers}/orderer{spare}.orderer.test/tls"))
    }

    /// Starts an orderer and waits until it accepts.
    pub(crate) async fn run(&mut self, number: usize) {
        self.spawn(number);
        self.orderers[number].ready().await;
    }

    /// Starts an orderer.
    pub(crate) fn spawn(&mut self, number: usize) {
        let process = self.orderers[number].spawn();
        self.switch.runs(number, process);
    }

    /// The one that orders, as it says itself, once there is one among these.
    pub(crate) async fn leader(&self, among: &[usize]) -> usize {
        until("there is a leader", async || {
            for number in among {
                if self.orderers[*number].leads().await {
                    return Some(*number);
                }
            }
            None
        })
        .await
    }

    /// Waits until all of these have as many blocks as the one with the most has now; that number.
    pub(crate) async fn level(&self, among: &[usize]) -> u64 {
        let mut highest = 0;
        for number in among {
            highest = highest.max(self.orderers[*number].height().await);
        }
        let mut heights = Vec::new();
        let deadline = tokio::time::Instant::now() + super::PATIENCE;
        loop {
            heights.clear();
            for number in among {
                heights.push(self.orderers[*number].height().await);
            }
            if heights.iter().all(|height| *height >= highest) {
                return highest;
            }
            assert!(
                tokio::time::Instant::now() < deadline,
                "orderers {among:?} do not reach {highest}: {heights:?}"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.directory.disable_cleanup(true);
            println!(
                "logs and ledgers are in {}",
                self.directory.path().display()
            );
        }
    }
}

fn configtx(members: &[Orderer], rules: &Rules) -> String {
    let consenters: String = members
        .iter()
        .map(|orderer| {
            format!(
                "        - Host: 127.0.0.1\n          Port: {}\n          ClientTLSCert: {tls}\n          ServerTLSCert: {tls}\n",
                orderer.cluster,
                tls = orderer.tls("server.crt").display()
            )
        })
        .collect();
    let endpoints: String = members
        .iter()
        .map(|orderer| format!("          - 127.0.0.1:{}\n", orderer.cluster))
        .collect();
    let Rules {
        tick,
        election_tick,
        snapshot_bytes,
    } = rules;
    let signature =
        |msp: &str, role: &str| format!("{{Type: Signature, Rule: \"OR('{msp}.{role}')\"}}");
    let organisation = |msp: &str| {
        format!(
            "{{Readers: {}, Writers: {}, Admins: {}, Endorsement: {}}}",
            signature(msp, "member"),
            signature(msp, "member"),
            signature(msp, "admin"),
            signature(msp, "member"),
        )
    };
    let implicit = "Readers: {Type: ImplicitMeta, Rule: ANY Readers}, Writers: {Type: ImplicitMeta, Rule: ANY Writers}, Admins: {Type: ImplicitMeta, Rule: MAJORITY Admins}";
    format!(
        "Profiles:
  Books:
    Policies: {{{implicit}}}
    Capabilities: {{V2_0: true}}
    Orderer:
      OrdererType: etcdraft
      BatchTimeout: 50ms
      BatchSize: {{MaxMessageCount: 10, AbsoluteMaxBytes: 1 MB, PreferredMaxBytes: 64 KB}}
      EtcdRaft:
        Consenters:
{consenters}        Options: {{TickInterval: {tick}ms, ElectionTick: {election_tick}, HeartbeatTick: 1, MaxInflightBlocks: 5, SnapshotIntervalSize: {snapshot_bytes}}}
      Policies: {{{implicit}, BlockValidation: {{Type: ImplicitMeta, Rule: ANY Writers}}}}
      Capabilities: {{V2_0: true}}
      Organizations:
      - Name: OrdererOrg
        ID: {MSP}
        MSPDir: crypto/ordererOrganizations/orderer.test/msp
        Policies: {orderers}
        OrdererEndpoints:
{endpoints}    Application:
      Capabilities: {{V2_0: true}}
      Policies: {{{implicit}, Endorsement: {{Type: ImplicitMeta, Rule: MAJORITY Endorsement}}, LifecycleEndorsement: {{Type: ImplicitMeta, Rule: MAJORITY Endorsement}}}}
      Organizations:
      - Name: Org1
        ID: Org1MSP
        MSPDir: crypto/peerOrganizations/org1.test/msp
        Policies: {peers}
",
        orderers = organisation(MSP),
        peers = organisation("Org1MSP"),
    )
}

/// One orderer: its directory, and its process when it runs.
pub(crate) struct Orderer {
    pub(crate) number: usize,
    /// Where other orderers call: a port of the switch.
    pub(crate) cluster: u16,
    general: u16,
    operations: u16,
    pub(crate) admin: u16,
    crypto: PathBuf,
    directory: PathBuf,
    child: Option<Child>,
    line: Line,
    /// How many KiB each file of its may have.
    file_limit: Option<u64>,
}

impl Orderer {
    async fn new(number: usize, root: &Path, switch: &mut Switch) -> Self {
        // Held until all are known, so that they differ.
        let listeners: Vec<TcpListener> = (0..3)
            .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap())
            .collect();
        let port = |index: usize| listeners[index].local_addr().unwrap().port();
        let (general, operations, admin) = (port(0), port(1), port(2));
        let crypto = root.join("crypto/ordererOrganizations/orderer.test");
        let directory = root.join(format!("orderer{number}"));
        fs::create_dir(&directory).unwrap();
        let roots = fs::read(crypto.join("users/Admin@orderer.test/tls/ca.crt")).unwrap();
        Self {
            number,
            cluster: switch.port(number, general).await,
            general,
            operations,
            admin,
            crypto,
            directory,
            child: None,
            line: Line::new(general, &roots),
            file_limit: None,
        }
    }

    fn own(&self) -> PathBuf {
        let number = self.number;
        self.crypto
            .join(format!("orderers/orderer{number}.orderer.test"))
    }

    /// A file of its TLS folder.
    pub(crate) fn tls(&self, file: &str) -> PathBuf {
        self.own().join("tls").join(file)
    }

    fn configuration(&self) -> String {
        let (certificate, key) = (self.tls("server.crt"), self.tls("server.key"));
        let roots = self.tls("ca.crt");
        let (certificate, key, roots) = (certificate.display(), key.display(), roots.display());
        let msp = self.own().join("msp");
        let (msp, here) = (msp.display(), self.directory.display());
        let Self {
            general,
            admin,
            operations,
            ..
        } = self;
        format!(
            r"
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
    DialTimeout: 1s
    RPCTimeout: 2s
    ReplicationRetryTimeout: 500ms
  BootstrapMethod: none
  LocalMSPDir: {msp}
  LocalMSPID: {MSP}
FileLedger:
  Location: {here}/data/ledger
Consensus:
  WALDir: {here}/data/wal
  SnapDir: {here}/data/snap
  EvictionSuspicion: 3s
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
Quorate:
  Ack: committed
"
        )
    }

    fn spawn(&mut self) -> u32 {
        fs::write(self.directory.join("orderer.yaml"), self.configuration()).unwrap();
        // What a former process said is kept beside it.
        let log = self.log_file();
        if let Ok(old) = fs::read(&log) {
            let mut all = OpenOptions::new()
                .create(true)
                .append(true)
                .open(self.directory.join("log.before"))
                .unwrap();
            std::io::Write::write_all(&mut all, &old).unwrap();
        }
        let file = File::create(&log).unwrap();
        let program = env!("CARGO_BIN_EXE_quorate");
        let mut command = match self.file_limit {
            None => {
                let mut command = Command::new(program);
                command.arg("orderer");
                command
            }
            // A write beyond the limit fails, as on a full disk, instead of ending the process.
            Some(limit) => {
                let mut command = Command::new("bash");
                command.arg("-c").arg(format!(
                    "trap '' XFSZ; ulimit -f {limit}; exec '{program}' orderer"
                ));
                command
            }
        };
        let child = command
            .env("FABRIC_CFG_PATH", &self.directory)
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        let process = child.id();
        self.child = Some(child);
        process
    }

    /// Waits until it accepts.
    pub(crate) async fn ready(&mut self) {
        until("the orderer serves", async || {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(
                ended.is_none(),
                "orderer{} ended: {}",
                self.number,
                self.log()
            );
            self.log().contains(READY).then_some(())
        })
        .await;
    }

    fn log_file(&self) -> PathBuf {
        self.directory.join("log")
    }

    /// What it has written since its start.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    pub(crate) fn runs(&self) -> bool {
        self.child.is_some()
    }

    fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.child.as_ref().unwrap().id()).unwrap();
        kill_process(Pid::from_raw(id).unwrap(), signal).unwrap();
    }

    /// Kills it, as a power cut would.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        assert_eq!(
            child.try_wait().unwrap(),
            None,
            "orderer{} had ended: {}",
            self.number,
            self.log()
        );
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Ends it in an orderly way.
    pub(crate) async fn stop(&mut self) {
        self.signal(Signal::TERM);
        let mut child = self.child.take().unwrap();
        until("the orderer ends", async || child.try_wait().unwrap()).await;
    }

    pub(crate) fn pause(&self) {
        self.signal(Signal::STOP);
    }

    pub(crate) fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Deletes a part of what it has kept: `ledger`, `wal`, `snap`, or everything.
    pub(crate) fn lose(&self, part: &str) {
        assert!(!self.runs(), "it does not run");
        fs::remove_dir_all(self.directory.join("data").join(part)).unwrap();
    }

    /// How clients talk to it.
    pub(crate) fn line(&self) -> Line {
        self.line.clone()
    }

    /// Its participation API.
    pub(crate) fn participation(&self) -> AdminClient {
        let user = self.crypto.join("users/Admin@orderer.test/tls");
        let read = |file: &str| fs::read(user.join(file)).unwrap();
        let tls = ClientTls {
            credentials: Some(
                Credentials::from_pem(&read("client.crt"), &read("client.key")).unwrap(),
            ),
            roots: Roots::from_pem([read("ca.crt").as_slice()]).unwrap(),
            clock: Arc::new(|| UnixTime(super::now_micros() / 1_000_000)),
            alpn: Vec::new(),
        };
        let address = format!("127.0.0.1:{}", self.admin);
        AdminClient::new(address, Some(tls), Duration::from_secs(10)).unwrap()
    }

    /// Joins the channel with this block.
    pub(crate) async fn join(&self, block: &[u8]) {
        self.participation().join(block).await.unwrap();
    }

    /// What it says of the channel.
    pub(crate) async fn describe(&self) -> Option<Described> {
        self.participation().info(CHANNEL).await.ok()
    }

    /// How many blocks it has.
    pub(crate) async fn height(&self) -> u64 {
        self.describe()
            .await
            .map_or(0, |described| described.height)
    }

    /// Waits until it is this to the channel, with this status.
    pub(crate) async fn becomes(&self, relation: &str, status: &str) {
        let mut last = None;
        let what = format!("orderer{} is {relation}, {status}", self.number);
        until(&what, async || {
            last = self.describe().await;
            let now = last.as_ref()?;
            (now.consensus_relation == relation && now.status == status).then_some(())
        })
        .await;
    }

    /// Whether its metrics say that it is the leader.
    pub(crate) async fn leads(&self) -> bool {
        self.leads_in(CHANNEL).await
    }

    /// The same of another channel.
    pub(crate) async fn leads_in(&self, channel: &str) -> bool {
        let metric = format!("consensus_etcdraft_is_leader{{channel=\"{channel}\"}}");
        self.metric(&metric).await == Some(1)
    }

    /// How often the leader of a channel has changed, as it has seen it.
    pub(crate) async fn leader_changes(&self, channel: &str) -> Option<u64> {
        let metric = format!("consensus_etcdraft_leader_changes{{channel=\"{channel}\"}}");
        self.metric(&metric).await
    }

    async fn metric(&self, metric: &str) -> Option<u64> {
        if !self.runs() {
            return None;
        }
        let asked = timeout(Duration::from_secs(1), self.metrics()).await;
        let text = asked.ok()?.ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix(metric))?;
        line.trim().parse().ok()
    }

    async fn metrics(&self) -> std::io::Result<String> {
        self.operations("/metrics").await
    }

    /// Head and body of a page of its operations endpoint.
    pub(crate) async fn operations(&self, page: &str) -> std::io::Result<String> {
        let mut socket = TcpStream::connect((Ipv4Addr::LOCALHOST, self.operations)).await?;
        let request =
            format!("GET {page} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await?;
        let mut text = String::new();
        socket.read_to_string(&mut text).await?;
        Ok(text)
    }
}

/// For the target `disk`, which has these clusters too.
#[allow(dead_code, reason = "the target `cluster` looks at no files")]
impl Orderer {
    /// No file of its next process can be longer than so many KiB.
    pub(crate) fn limit_files(&mut self, kibibytes: Option<u64>) {
        self.file_limit = kibibytes;
    }

    /// Waits until it has ended by itself; what it has written.
    pub(crate) async fn ends(&mut self) -> String {
        until("the orderer ends", async || {
            self.child.as_mut().unwrap().try_wait().unwrap().map(drop)
        })
        .await;
        self.child = None;
        self.log()
    }

    /// Where it keeps something: `ledger`, `wal`, `snap`.
    pub(crate) fn data(&self, part: &str) -> PathBuf {
        self.directory.join("data").join(part)
    }

    /// The directory of its `orderer.yaml`.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The options by which a command reaches its admin endpoint.
    pub(crate) fn admin_options(&self) -> Vec<String> {
        let user = self.crypto.join("users/Admin@orderer.test/tls");
        let file = |name: &str| user.join(name).display().to_string();
        [
            "-o".to_owned(),
            format!("127.0.0.1:{}", self.admin),
            "--ca-file".to_owned(),
            file("ca.crt"),
            "--client-cert".to_owned(),
            file("client.crt"),
            "--client-key".to_owned(),
            file("client.key"),
        ]
        .to_vec()
    }
}

impl Drop for Orderer {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It may be stopped; SIGKILL ends it all the same.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
