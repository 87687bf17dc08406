//! One orderer as a process, with a configuration and ports of its own.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Within this time an orderer listens.
const PATIENCE: Duration = Duration::from_secs(60);

/// A recorded file or folder.
pub(crate) fn fixture(path: &str) -> PathBuf {
    Path::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../fixtures/fabric"
    ))
    .join(path)
}

/// A running orderer0 without channels; killed when dropped.
pub(crate) struct Orderer {
    child: Child,
    directory: TempDir,
    port: u16,
    admin: u16,
    /// Whether its clients must have certificates.
    pub(crate) mutual: bool,
}

impl Orderer {
    pub(crate) fn start(mutual: bool) -> Self {
        let directory = tempfile::tempdir().expect("a directory for the orderer");
        // Held until all are known, so that they differ.
        let listeners: Vec<TcpListener> = (0..3)
            .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port"))
            .collect();
        let ports: Vec<u16> = listeners
            .iter()
            .map(|listener| listener.local_addr().expect("its address").port())
            .collect();
        drop(listeners);
        let (port, admin, operations) = (ports[0], ports[1], ports[2]);
        let own =
            fixture("crypto/ordererOrganizations/orderer.test/orderers/orderer0.orderer.test");
        let own = own.canonicalize().expect("the fixtures are there");
        let own = own.display();
        let clients = fixture("crypto/peerOrganizations/org1.test/tlsca/tlsca.org1.test-cert.pem");
        let clients = clients.canonicalize().expect("the fixtures are there");
        let clients = clients.display();
        let root = directory.path().display();
        let tls = format!(
            "{{Enabled: true, PrivateKey: {own}/tls/server.key, Certificate: {own}/tls/server.crt, \
             RootCAs: [{own}/tls/ca.crt]"
        );
        let configuration = format!(
            "General:
  ListenAddress: 127.0.0.1
  ListenPort: {port}
  TLS: {tls}, ClientAuthRequired: {mutual}, ClientRootCAs: [{clients}]}}
  Cluster:
    ClientCertificate: {own}/tls/server.crt
    ClientPrivateKey: {own}/tls/server.key
    RootCAs: [{own}/tls/ca.crt]
  BootstrapMethod: none
  LocalMSPDir: {own}/msp
  LocalMSPID: OrdererOrgMSP
FileLedger: {{Location: {root}/ledger}}
Consensus: {{WALDir: {root}/wal, SnapDir: {root}/snap}}
Operations: {{ListenAddress: '127.0.0.1:{operations}'}}
Admin:
  ListenAddress: 127.0.0.1:{admin}
  TLS: {tls}, ClientAuthRequired: true, ClientRootCAs: [{own}/tls/ca.crt]}}
ChannelParticipation: {{Enabled: true}}
"
        );
        fs::write(directory.path().join("orderer.yaml"), configuration).expect("a configuration");
        let log = File::create(directory.path().join("log")).expect("a file for the log");
        let child = Command::new(env!("CARGO_BIN_EXE_quorate"))
            .arg("orderer")
            .env("FABRIC_CFG_PATH", directory.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the file twice"))
            .stderr(log)
            .spawn()
            .expect("the program starts");
        let mut orderer = Self {
            child,
            directory,
            port,
            admin,
            mutual,
        };
        orderer.await_listeners();
        orderer
    }

    fn await_listeners(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        for port in [self.port, self.admin] {
            while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
                let ended = self.child.try_wait().expect("the process can be asked");
                assert!(ended.is_none(), "{ended:?}: {}", self.log());
                assert!(Instant::now() < deadline, "{}", self.log());
                thread::sleep(Duration::from_millis(20));
            }
        }
    }

    /// Where clients send and read.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Where channels are joined.
    pub(crate) fn admin(&self) -> String {
        format!("127.0.0.1:{}", self.admin)
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Orderer {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("the orderer's log:\n{}", self.log());
        }
        // Fails only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
