//! A cluster of orderers on this machine, for demonstrations and measurements: real processes with material, a genesis block
//! and configurations that are made here, and clients of theirs.
//!
//! Start reading at [`LocalOrderers`].

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use prost::Message as _;
use quorate_fabric::crypto_material;
use quorate_fabric::envelope::{ChannelId, RawEnvelope, sign};
use quorate_fabric::genesis::{BesideConfigtx, Profile};
use quorate_fabric::msp::LocalMsp;
use quorate_fabric::proto::common::{ChannelHeader, HeaderType};
use quorate_identity::UnixTime;
use quorate_identity::mutual_tls::{ClientTls, Credentials, Roots};
use quorate_orderer::admin_client::AdminClient;
use quorate_orderer::cluster::Link;
use quorate_orderer::deliver_client::{DeliverClient, DeliverContext};
use quorate_orderer::grpc::AtomicBroadcastClient;
use quorate_runtime::{Clock, Entropy, Tasks};
use time::OffsetDateTime;
use tokio::time::sleep;

use crate::local_network::{Directory, PROGRAM, directory, free_ports, get};

/// The channel that all of this is about.
pub(crate) const CHANNEL: &str = "quorate";
/// How long an orderer may take to serve.
const PATIENCE: Duration = Duration::from_secs(30);
/// Pause between two looks at a condition.
const POLL: Duration = Duration::from_millis(20);
/// The largest message between us and an orderer, in bytes.
const MAX_MESSAGE_BYTES: usize = 100 * 1024 * 1024;

/// What the cluster shall be.
pub(crate) struct OrderersPlan {
    /// Where; a temporary directory unless given.
    pub(crate) directory: Option<PathBuf>,
    /// Whether to leave the directory behind.
    pub(crate) keep: bool,
    /// How many orderers.
    pub(crate) count: usize,
    /// Messages in a block.
    pub(crate) max_message_count: u32,
    /// How long a message waits for others.
    pub(crate) batch_timeout: Duration,
    /// Whether SUCCESS means that a majority has the message.
    pub(crate) committed: bool,
}

/// The cluster. Dropping it ends its processes.
pub(crate) struct LocalOrderers {
    pub(crate) orderers: Vec<LocalOrderer>,
    directory: Directory,
    client: Arc<LocalMsp>,
    tls: ClientTls,
    genesis: Vec<u8>,
    /// Own our connections.
    tasks: Tasks,
}

/// One of its processes.
pub(crate) struct LocalOrderer {
    pub(crate) label: String,
    pub(crate) port: u16,
    admin: u16,
    operations: u16,
    directory: PathBuf,
    child: Option<Child>,
}

impl LocalOrderers {
    /// Makes everything on disk.
    pub(crate) fn prepare(plan: &OrderersPlan) -> Result<Self> {
        let place = directory(plan.directory.as_deref(), plan.keep)?;
        let root = place.path();
        let ports = free_ports(plan.count * 3)?;
        let orderers: Vec<_> = ports
            .chunks_exact(3)
            .enumerate()
            .map(|(index, ports)| LocalOrderer {
                label: format!("orderer{index}"),
                port: ports[0],
                admin: ports[1],
                operations: ports[2],
                directory: root.join(format!("orderer{index}")),
                child: None,
            })
            .collect();
        crypto_material::generate(&crypto_config(plan.count), OffsetDateTime::now_utc())?
            .write(&root.join("crypto"))?;
        let configtx = configtx(plan, &orderers);
        fs::write(root.join("configtx.yaml"), &configtx)?;
        let channel = ChannelId::new(CHANNEL)?;
        let entropy = Entropy::system();
        let clock = Clock::system();
        let nonce = entropy.bytes::<24>();
        let genesis = Profile::read(&configtx, "Local")?.genesis_block(
            &channel,
            &BesideConfigtx(root.to_owned()),
            clock.now_seconds(),
            &nonce,
        )?;
        let genesis = genesis.encode_to_vec();
        fs::write(root.join("genesis.block"), &genesis)?;
        for orderer in &orderers {
            fs::create_dir_all(&orderer.directory)?;
            let text = orderer.configuration(root, plan.committed);
            fs::write(orderer.directory.join("orderer.yaml"), text)?;
        }
        let user = root.join("crypto/peerOrganizations/org1.local/users/User1@org1.local");
        let client = LocalMsp::load(&user.join("msp"), "Org1MSP")?;
        let ca = fs::read(root.join(
            "crypto/ordererOrganizations/orderer.local/msp/tlscacerts/tlsca.orderer.local-cert.pem",
        ))?;
        let own = root
            .join("crypto/ordererOrganizations/orderer.local/orderers/orderer0.orderer.local/tls");
        let credentials = Credentials::from_pem(
            &fs::read(own.join("server.crt"))?,
            &fs::read(own.join("server.key"))?,
        )?;
        let tls = ClientTls {
            credentials: Some(credentials),
            roots: Roots::from_pem([ca.as_slice()])?,
            clock: Arc::new(move || UnixTime(clock.now_seconds())),
            alpn: Vec::new(),
        };
        Ok(Self {
            orderers,
            directory: place,
            client: Arc::new(client),
            tls,
            genesis,
            tasks: Tasks::new("clients"),
        })
    }

    /// Starts every process and makes it join the channel.
    pub(crate) async fn start(&mut self) -> Result<()> {
        for index in 0..self.orderers.len() {
            self.orderers[index].spawn()?;
            self.orderers[index].serving().await?;
            let admin = AdminClient::new(
                format!("localhost:{}", self.orderers[index].admin),
                Some(self.tls.clone()),
                PATIENCE,
            )?;
            admin.join(&self.genesis).await?;
        }
        for orderer in &self.orderers {
            orderer.has_leader().await?;
        }
        Ok(())
    }

    /// Where all of this is.
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Whose messages these are.
    pub(crate) fn identity(&self) -> Arc<LocalMsp> {
        self.client.clone()
    }

    /// A connection to an orderer, over TLS.
    pub(crate) async fn connect(&self, index: usize) -> Result<AtomicBroadcastClient<Link>> {
        let mut tls = self.tls.clone();
        tls.credentials = None;
        tls.alpn = vec![b"h2".to_vec()];
        let address = format!("localhost:{}", self.orderers[index].port);
        let context = DeliverContext {
            tls: Some(tls),
            signer: self.client.clone(),
            patience: PATIENCE,
            clock: Clock::system(),
            entropy: Entropy::system(),
            tasks: self.tasks.clone(),
        };
        let client = DeliverClient::connect(&address, context).await?;
        Ok(client.calls(MAX_MESSAGE_BYTES))
    }

    /// Which orderer leads, as the others see it.
    pub(crate) async fn leader(&self) -> Result<usize> {
        for orderer in self.orderers.iter().filter(|one| one.child.is_some()) {
            if let Some(leader) = orderer.leader().await
                && let Some(index) = (leader as usize).checked_sub(1)
            {
                return Ok(index);
            }
        }
        bail!("no orderer knows a leader")
    }

    /// Ends every process in an orderly way, and takes the files away unless they are to be kept.
    pub(crate) async fn stop(&mut self) -> Result<()> {
        for orderer in &mut self.orderers {
            orderer.stop().await?;
        }
        Ok(())
    }
}

/// A signed message of `bytes` bytes of payload data that begins with `text`.
pub(crate) fn message(
    identity: &LocalMsp,
    entropy: &Entropy,
    text: &str,
    bytes: usize,
) -> Result<RawEnvelope> {
    let header = ChannelHeader {
        r#type: HeaderType::Message.into(),
        channel_id: CHANNEL.to_owned(),
        ..ChannelHeader::default()
    };
    let mut data = text.as_bytes().to_vec();
    data.resize(bytes.max(data.len()), b'.');
    Ok(sign(&header, data, &entropy.bytes::<24>(), identity)?)
}

impl LocalOrderer {
    fn configuration(&self, root: &Path, committed: bool) -> String {
        let Self {
            label,
            port,
            admin,
            operations,
            directory,
            ..
        } = self;
        let own = root.join(format!(
            "crypto/ordererOrganizations/orderer.local/orderers/{label}.orderer.local"
        ));
        let (own, data) = (own.display(), directory.display());
        let ack = if committed { "committed" } else { "enqueued" };
        let tls = format!(
            "Enabled: true, PrivateKey: {own}/tls/server.key, Certificate: {own}/tls/server.crt, RootCAs: [{own}/tls/ca.crt]"
        );
        format!(
            "General:
  ListenAddress: 127.0.0.1
  ListenPort: {port}
  TLS: {{ {tls} }}
  Cluster: {{ ClientCertificate: {own}/tls/server.crt, ClientPrivateKey: {own}/tls/server.key, RootCAs: [{own}/tls/ca.crt] }}
  BootstrapMethod: none
  LocalMSPDir: {own}/msp
  LocalMSPID: OrdererMSP
FileLedger: {{ Location: {data}/ledger }}
Consensus: {{ WALDir: {data}/wal, SnapDir: {data}/snap }}
Operations: {{ ListenAddress: '127.0.0.1:{operations}' }}
Metrics: {{ Provider: prometheus }}
Admin:
  ListenAddress: 127.0.0.1:{admin}
  TLS: {{ {tls}, ClientAuthRequired: true, ClientRootCAs: [{own}/tls/ca.crt] }}
ChannelParticipation: {{ Enabled: true, MaxRequestBodySize: 1 MB }}
Quorate: {{ Ack: {ack} }}
"
        )
    }

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
            .arg("orderer")
            .env("FABRIC_CFG_PATH", &self.directory)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("starting {}", self.label))?;
        self.child = Some(child);
        Ok(())
    }

    /// Status and body of a page of the operations endpoint.
    pub(crate) async fn get(&self, page: &str) -> Result<(u16, String)> {
        get(
            SocketAddr::from((Ipv4Addr::LOCALHOST, self.operations)),
            page,
        )
        .await
    }

    /// Waits until its ports answer.
    pub(crate) async fn serving(&mut self) -> Result<Duration> {
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            if let Some(child) = &mut self.child
                && let Some(status) = child.try_wait()?
            {
                bail!("{} ended with {status}:\n{}", self.label, self.tail());
            }
            if matches!(self.get("/healthz").await, Ok((200, _))) {
                return Ok(began.elapsed());
            }
            sleep(POLL).await;
        }
        bail!(
            "{} did not serve within {} s:\n{}",
            self.label,
            PATIENCE.as_secs(),
            self.tail()
        )
    }

    /// Waits until it knows the channel's leader; how long that took.
    pub(crate) async fn has_leader(&self) -> Result<Duration> {
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            if self.leader().await.is_some() {
                return Ok(began.elapsed());
            }
            sleep(POLL).await;
        }
        bail!(
            "{} had no leader within {} s:\n{}",
            self.label,
            PATIENCE.as_secs(),
            self.tail()
        )
    }

    /// The Raft id of the leader that it knows.
    pub(crate) async fn leader(&self) -> Option<u64> {
        let (_, text) = self.get("/readyz").await.ok()?;
        let report: serde_json::Value = serde_json::from_str(&text).ok()?;
        report["channels"][CHANNEL]["leader"]
            .as_u64()
            .filter(|leader| *leader != 0)
    }

    /// Blocks that it has.
    pub(crate) async fn height(&self) -> Result<u64> {
        let (_, text) = self.get("/readyz").await?;
        let report: serde_json::Value = serde_json::from_str(&text)?;
        report["channels"][CHANNEL]["height"]
            .as_u64()
            .context("the orderer does not say how many blocks it has")
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

    async fn stop(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else {
            return Ok(());
        };
        let process = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(process, rustix::process::Signal::TERM)?;
        let began = Instant::now();
        while child.try_wait()?.is_none() {
            ensure!(
                began.elapsed() < PATIENCE,
                "{} did not stop within {} s:\n{}",
                self.label,
                PATIENCE.as_secs(),
                self.tail()
            );
            sleep(POLL).await;
        }
        Ok(())
    }

    fn console(&self) -> PathBuf {
        self.directory.join("orderer.log")
    }

    fn tail(&self) -> String {
        let text = fs::read_to_string(self.console()).unwrap_or_default();
        let lines: Vec<_> = text.lines().rev().take(20).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

impl Drop for LocalOrderer {
    fn drop(&mut self) {
        // Nobody is left who could be told.
        let _ = self.kill();
    }
}

fn crypto_config(count: usize) -> String {
    let hosts: String = (0..count)
        .map(|index| {
            format!("      - {{ Hostname: orderer{index}, SANS: [localhost, 127.0.0.1] }}\n")
        })
        .collect();
    format!(
        "OrdererOrgs:
  - Name: Orderer
    Domain: orderer.local
    EnableNodeOUs: true
    Specs:
{hosts}PeerOrgs:
  - Name: Org1
    Domain: org1.local
    EnableNodeOUs: true
    Template: {{ Count: 0 }}
    Users: {{ Count: 1 }}
"
    )
}

fn configtx(plan: &OrderersPlan, orderers: &[LocalOrderer]) -> String {
    let addresses: String = orderers
        .iter()
        .map(|orderer| format!("      - 127.0.0.1:{}\n", orderer.port))
        .collect();
    let consenters: String = orderers
        .iter()
        .map(|LocalOrderer { label, port, .. }| {
            let certificate = format!(
                "crypto/ordererOrganizations/orderer.local/orderers/{label}.orderer.local/tls/server.crt"
            );
            format!(
                "        - {{ Host: 127.0.0.1, Port: {port}, ClientTLSCert: {certificate}, ServerTLSCert: {certificate} }}\n"
            )
        })
        .collect();
    let organisation = |name: &str, msp: &str, folder: &str| {
        format!(
            "      - Name: {name}
        ID: {msp}
        MSPDir: crypto/{folder}/msp
        Policies:
          Readers: {{ Type: Signature, Rule: \"OR('{msp}.member')\" }}
          Writers: {{ Type: Signature, Rule: \"OR('{msp}.member')\" }}
          Admins: {{ Type: Signature, Rule: \"OR('{msp}.admin')\" }}
"
        )
    };
    let implicit = |indent: &str| {
        format!(
            "{indent}Readers: {{ Type: ImplicitMeta, Rule: ANY Readers }}
{indent}Writers: {{ Type: ImplicitMeta, Rule: ANY Writers }}
{indent}Admins: {{ Type: ImplicitMeta, Rule: MAJORITY Admins }}
"
        )
    };
    format!(
        "Profiles:
  Local:
    Policies:
{}    Capabilities: {{ V2_0: true }}
    Orderer:
      OrdererType: etcdraft
      Addresses:
{addresses}      BatchTimeout: {}ms
      BatchSize: {{ MaxMessageCount: {}, AbsoluteMaxBytes: 10 MB, PreferredMaxBytes: 2 MB }}
      EtcdRaft:
        Consenters:
{consenters}        Options: {{ TickInterval: 500ms, ElectionTick: 10, HeartbeatTick: 1, MaxInflightBlocks: 5, SnapshotIntervalSize: 16 MB }}
      Policies:
{}        BlockValidation: {{ Type: ImplicitMeta, Rule: ANY Writers }}
      Capabilities: {{ V2_0: true }}
      Organizations:
{}    Application:
      Policies:
{}      Capabilities: {{ V2_0: true }}
      Organizations:
{}",
        implicit("      "),
        plan.batch_timeout.as_millis(),
        plan.max_message_count,
        implicit("        "),
        organisation("Orderer", "OrdererMSP", "ordererOrganizations/orderer.local"),
        implicit("        "),
        organisation("Org1", "Org1MSP", "peerOrganizations/org1.local"),
    )
}
