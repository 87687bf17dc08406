//! The configuration of an orderer: `orderer.yaml` of Hyperledger Fabric v2.5, `ORDERER_…` variables laid over it, and a
//! section of our own.
//!
//! [`load`] finds the file as Fabric does and answers [`Loaded`]: the [`Options`], every one of them set, with paths
//! made absolute, and the remarks that the log should carry once there is one. Nothing is opened here but the file
//! itself; whether certificates exist and ports are free is found out by those who use them.
//!
//! What Fabric's reader accepts is accepted: keys in any case, numbers and booleans as text, durations as Go writes them
//! (`5s`, `1m0s`, `250ms`), sizes such as `1 MB`, lists as `[a, b]` in a variable. Keys that neither know are refused
//! with Fabric's words and the nearest known key. Sections that v2.5 still reads but no longer uses (`Kafka`) are
//! accepted with a warning. What only Quorate has lives below `Quorate`, which no file of Fabric's contains.
//!
//! Start reading at [`Options`]; how a file becomes one is in `schema`, on the tree of `tree` with the values of
//! `value`.

mod logging;
mod schema;
mod tree;
mod value;

#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

pub use logging::{LOGGING_FORMAT_VARIABLE, LOGGING_SPEC_VARIABLE, logging};
pub use schema::{load, read};

/// The variable that names the directory of `orderer.yaml`.
pub const CONFIG_PATH_VARIABLE: &str = "FABRIC_CFG_PATH";

/// Where the file is looked for, in this order, when [`CONFIG_PATH_VARIABLE`] is not set.
pub const CONFIG_DIRECTORIES: [&str; 2] = [".", "/etc/hyperledger/fabric"];

/// The file's name.
pub const CONFIG_FILE: &str = "orderer.yaml";

/// The largest configuration file read, in bytes.
pub const MAX_CONFIG_BYTES: u64 = 1024 * 1024;

/// All settings of an orderer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Options {
    /// What every orderer needs: listener, TLS, cluster, identity.
    pub general: General,
    /// Where blocks are kept.
    pub file_ledger: FileLedger,
    /// Traces for developers.
    pub debug: Debug,
    /// Where the consensus log is kept, and its local timing.
    pub consensus: Consensus,
    /// The operations endpoint.
    pub operations: Operations,
    /// Who receives the metrics.
    pub metrics: Metrics,
    /// The channel participation API.
    pub channel_participation: ChannelParticipation,
    /// The endpoint of the channel participation API.
    pub admin: Admin,
    /// What Fabric does not have.
    pub quorate: Quorate,
}

/// Section `General`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct General {
    /// `ListenAddress`: the address of the gRPC listener. Default 127.0.0.1.
    pub listen_address: String,
    /// `ListenPort`: its port. Default 7050.
    pub listen_port: u16,
    /// `TLS` of that listener.
    pub tls: Tls,
    /// `Cluster`: the traffic between orderers.
    pub cluster: Cluster,
    /// `Keepalive` of gRPC connections.
    pub keepalive: Keepalive,
    /// `ConnectionTimeout`: patience with a new connection until its handshake is done. Zero: 120 s, as in gRPC for Go.
    pub connection_timeout: Duration,
    /// `MaxRecvMsgSize`: largest gRPC message received, in bytes. Default 100 MiB.
    pub max_recv_msg_size: u32,
    /// `MaxSendMsgSize`: largest gRPC message sent, in bytes. Default 100 MiB.
    pub max_send_msg_size: u32,
    /// `BootstrapMethod`: where the first channel comes from. Default `file`.
    pub bootstrap_method: BootstrapMethod,
    /// `BootstrapFile`: the system channel's block for [`BootstrapMethod::File`]. Default `genesisblock`.
    pub bootstrap_file: PathBuf,
    /// `Profile`: Go's profiler. We have none; an enabled one is a warning.
    pub profile: Profile,
    /// `LocalMSPDir`: the folder of our identity. Default `msp`.
    pub local_msp_dir: PathBuf,
    /// `LocalMSPID`: the MSP it belongs to. Default `SampleOrg`.
    pub local_msp_id: String,
    /// `BCCSP`: where private keys are.
    pub bccsp: Bccsp,
    /// `Authentication` of clients' messages.
    pub authentication: Authentication,
}

/// `General.BootstrapMethod`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootstrapMethod {
    /// `file`: a system channel's block is read at the start.
    File,
    /// `none`: channels come through the channel participation API.
    None,
}

/// A TLS section, of `General`, `Operations` or `Admin`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tls {
    /// `Enabled`.
    pub enabled: bool,
    /// `PrivateKey`: PEM file; `None` when not set.
    pub private_key: Option<PathBuf>,
    /// `Certificate`: PEM file; `None` when not set.
    pub certificate: Option<PathBuf>,
    /// `RootCAs`: PEM files that our own outgoing connections trust.
    pub root_cas: Vec<PathBuf>,
    /// `ClientAuthRequired`: whether a connection without a client certificate is refused.
    pub client_auth_required: bool,
    /// `ClientRootCAs`: PEM files of the CAs of clients' certificates.
    pub client_root_cas: Vec<PathBuf>,
    /// `TLSHandshakeTimeShift`: how far the clock of certificate validation is set back.
    pub handshake_time_shift: Duration,
}

/// `General.Cluster`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// `ListenAddress` of a separate listener; empty when not set. See [`Options::cluster_listener`].
    pub listen_address: String,
    /// `ListenPort` of a separate listener; 0 when not set.
    pub listen_port: u16,
    /// `ServerCertificate` of a separate listener.
    pub server_certificate: Option<PathBuf>,
    /// `ServerPrivateKey` of a separate listener.
    pub server_private_key: Option<PathBuf>,
    /// `ClientCertificate` for connections to other orderers; `None`: that of `General.TLS`.
    pub client_certificate: Option<PathBuf>,
    /// `ClientPrivateKey` for connections to other orderers; `None`: that of `General.TLS`.
    pub client_private_key: Option<PathBuf>,
    /// `RootCAs`: PEM files trusted besides the channels' own TLS roots.
    pub root_cas: Vec<PathBuf>,
    /// `DialTimeout`: patience with a new connection. Default 5 s.
    pub dial_timeout: Duration,
    /// `RPCTimeout`: patience with a new stream. Default 7 s.
    pub rpc_timeout: Duration,
    /// `ReplicationBufferSize`: bytes of blocks held in memory while a channel is replicated. Default 20 MiB.
    pub replication_buffer_size: u64,
    /// `ReplicationPullTimeout`: patience with the next block. Default 5 s.
    pub replication_pull_timeout: Duration,
    /// `ReplicationRetryTimeout`: the longest pause between two attempts. Default 5 s.
    pub replication_retry_timeout: Duration,
    /// `ReplicationBackgroundRefreshInterval`: how often channels that could not be replicated are tried again.
    /// Default 5 min.
    pub replication_background_refresh_interval: Duration,
    /// `ReplicationMaxRetries`: attempts with one orderer before another is asked. Default 12.
    pub replication_max_retries: u32,
    /// `SendBufferSize`: messages waiting for one destination. Default 100.
    pub send_buffer_size: u32,
    /// `CertExpirationWarningThreshold`: how early the log warns that a certificate will expire. Default 7 days.
    pub cert_expiration_warning_threshold: Duration,
    /// `TLSHandshakeTimeShift` of the separate listener and of connections to other orderers.
    pub tls_handshake_time_shift: Duration,
}

/// `General.Keepalive`. Zero means that the value of gRPC for Go holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Keepalive {
    /// `ServerMinInterval`: how often a client may ping. Fabric disconnects one that does so more often; we answer it, for a ping
    /// costs us no more than it costs the client.
    pub server_min_interval: Duration,
    /// `ServerInterval`: how often we ping an idle client.
    pub server_interval: Duration,
    /// `ServerTimeout`: how long its answer may take.
    pub server_timeout: Duration,
}

/// `General.Profile`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// `Enabled`.
    pub enabled: bool,
    /// `Address`. Default 0.0.0.0:6060.
    pub address: String,
}

/// `General.BCCSP`: Fabric's cryptographic service provider. Only `SW` with SHA-2 of 256 bits exists here.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Bccsp {
    /// `SW.FileKeyStore.KeyStore`: further folder of private keys, besides the MSP's own `keystore`.
    pub key_store: Option<PathBuf>,
}

/// `General.Authentication`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authentication {
    /// `TimeWindow`: how far a Deliver request's time may differ from ours. Default 15 min.
    pub time_window: Duration,
    /// `NoExpirationChecks`: whether expired identities are accepted.
    pub no_expiration_checks: bool,
}

/// Section `FileLedger`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileLedger {
    /// `Location`. Default `/var/hyperledger/production/orderer`.
    pub location: PathBuf,
}

/// Section `Debug`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Debug {
    /// `BroadcastTraceDir`: each Broadcast request is written to a file there.
    pub broadcast_trace_dir: Option<PathBuf>,
    /// `DeliverTraceDir`: each Deliver request is written to a file there.
    pub deliver_trace_dir: Option<PathBuf>,
}

/// Section `Consensus`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Consensus {
    /// `WALDir`: the consensus log. Default `<FileLedger.Location>/etcdraft/wal`.
    pub wal_dir: PathBuf,
    /// `SnapDir`: snapshots, one folder a channel. Default `<FileLedger.Location>/etcdraft/snapshot`.
    pub snap_dir: PathBuf,
    /// `EvictionSuspicion`: how long without a leader until we suspect to have been removed. Default 10 min.
    pub eviction_suspicion: Duration,
    /// `TickIntervalOverride`: replaces the channels' TickInterval.
    pub tick_interval_override: Option<Duration>,
}

/// Section `Operations`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operations {
    /// `ListenAddress`, `host:port`. Default 127.0.0.1:0, a free port.
    pub listen_address: String,
    /// `TLS`.
    pub tls: Tls,
}

/// Section `Metrics`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Metrics {
    /// `Provider`. Default `disabled`.
    pub provider: MetricsProvider,
    /// `Statsd`, for [`MetricsProvider::Statsd`].
    pub statsd: Statsd,
}

/// `Metrics.Provider`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MetricsProvider {
    /// `prometheus`: read at `/metrics` of the operations endpoint.
    Prometheus,
    /// `statsd`: sent to `Metrics.Statsd.Address`.
    Statsd,
    /// `disabled`.
    #[default]
    Disabled,
}

/// `Metrics.Statsd`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statsd {
    /// `Network`. Default `udp`.
    pub network: StatsdNetwork,
    /// `Address`, `host:port`. Default 127.0.0.1:8125.
    pub address: String,
    /// `WriteInterval`. Default 30 s.
    pub write_interval: Duration,
    /// `Prefix`, put before every name with a dot between; may be empty.
    pub prefix: String,
}

/// `Metrics.Statsd.Network`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatsdNetwork {
    /// Datagrams.
    Udp,
    /// A connection, opened again when it breaks.
    Tcp,
}

/// Section `ChannelParticipation`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelParticipation {
    /// `Enabled`. Default false: every request is answered 503.
    pub enabled: bool,
    /// `MaxRequestBodySize` of a join request, in bytes. Default 1 MiB.
    pub max_request_body_size: u32,
}

/// Section `Admin`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// `ListenAddress`, `host:port`. Default 127.0.0.1:0, a free port.
    pub listen_address: String,
    /// `TLS`.
    pub tls: Tls,
}

/// Section `Quorate`, which Fabric's files do not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Quorate {
    /// `Ack`: when Broadcast answers SUCCESS. Default `enqueued`.
    pub ack: Ack,
    /// `Log.Format`: how log lines look. Default `fabric`.
    pub log_format: LogFormat,
}

/// `Quorate.Ack`: what SUCCESS says to a client of Broadcast.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ack {
    /// `enqueued`, Fabric's meaning: the leader has taken the message; it is lost if the leader dies now.
    #[default]
    Enqueued,
    /// `committed`: the message is in a block that a majority has made durable.
    Committed,
}

/// `Quorate.Log.Format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// `fabric`: lines as Fabric writes them.
    #[default]
    Fabric,
    /// `json`: one JSON object a line.
    Json,
}

/// The separate listener of the cluster service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterListener {
    /// The address.
    pub address: String,
    /// The port.
    pub port: u16,
    /// PEM file of the server's certificate.
    pub certificate: PathBuf,
    /// PEM file of its key.
    pub private_key: PathBuf,
}

/// A loaded configuration.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The settings.
    pub options: Options,
    /// The file they came from.
    pub file: PathBuf,
    /// What the log should say about them.
    pub remarks: Vec<Remark>,
}

/// Something about the configuration that the log should say, under the logger `localconfig`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remark {
    /// A default took the place of an empty value.
    Info(String),
    /// A setting is accepted but does not do what it says.
    Warning(String),
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    /// There is no `orderer.yaml` where it should be.
    #[error(
        "there is no {CONFIG_FILE} in {searched}; set {CONFIG_PATH_VARIABLE} to the directory that contains it"
    )]
    NotFound {
        /// The directories, separated by commas.
        searched: String,
    },
    /// It cannot be read.
    #[error("the configuration {} cannot be read", path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It is not YAML.
    #[error("the configuration {} is not YAML that an orderer can read: {reason}", path.display())]
    Yaml {
        /// Which file.
        path: PathBuf,
        /// What is wrong and where.
        reason: String,
    },
    /// Keys are unknown or values cannot be used. Each problem is one line.
    #[error("Error unmarshaling config into struct: {} error(s) decoding:\n\n* {}", problems.len(), problems.join("\n* "))]
    Invalid {
        /// All problems found; those about unknown keys use Fabric's words.
        problems: Vec<String>,
    },
    /// Settings do not fit together.
    #[error("{problem}")]
    Unusable {
        /// Which, why, and what to do.
        problem: String,
    },
}

impl Options {
    /// The separate listener of the cluster service, or `None` when it shares the general one.
    ///
    /// # Errors
    /// Address, port, certificate and key are not set all together, or a separate one listens on the general port, or
    /// the shared one has no TLS.
    pub fn cluster_listener(&self) -> Result<Option<ClusterListener>, OptionsError> {
        schema::cluster_listener(self)
    }

    /// Certificate and key with which we connect to other orderers: those of `General.Cluster`, else of `General.TLS`.
    ///
    /// # Errors
    /// Only one of both is set, or neither is set anywhere.
    pub fn cluster_client_pair(&self) -> Result<(PathBuf, PathBuf), OptionsError> {
        schema::cluster_client_pair(self)
    }

    /// `ListenAddress:ListenPort` of the general listener.
    pub fn general_address(&self) -> String {
        format!(
            "{}:{}",
            self.general.listen_address, self.general.listen_port
        )
    }
}

impl Default for General {
    fn default() -> Self {
        Self {
            listen_address: "127.0.0.1".to_owned(),
            listen_port: 7050,
            tls: Tls::default(),
            cluster: Cluster::default(),
            keepalive: Keepalive::default(),
            connection_timeout: Duration::ZERO,
            max_recv_msg_size: 100 * 1024 * 1024,
            max_send_msg_size: 100 * 1024 * 1024,
            bootstrap_method: BootstrapMethod::File,
            bootstrap_file: PathBuf::from("genesisblock"),
            profile: Profile::default(),
            local_msp_dir: PathBuf::from("msp"),
            local_msp_id: "SampleOrg".to_owned(),
            bccsp: Bccsp::default(),
            authentication: Authentication::default(),
        }
    }
}

impl Default for Cluster {
    fn default() -> Self {
        Self {
            listen_address: String::new(),
            listen_port: 0,
            server_certificate: None,
            server_private_key: None,
            client_certificate: None,
            client_private_key: None,
            root_cas: Vec::new(),
            dial_timeout: Duration::from_secs(5),
            rpc_timeout: Duration::from_secs(7),
            replication_buffer_size: 20 * 1024 * 1024,
            replication_pull_timeout: Duration::from_secs(5),
            replication_retry_timeout: Duration::from_secs(5),
            replication_background_refresh_interval: Duration::from_secs(5 * 60),
            replication_max_retries: 12,
            send_buffer_size: 100,
            cert_expiration_warning_threshold: Duration::from_secs(7 * 24 * 3600),
            tls_handshake_time_shift: Duration::ZERO,
        }
    }
}

impl Default for Profile {
    fn default() -> Self {
        Self {
            enabled: false,
            address: "0.0.0.0:6060".to_owned(),
        }
    }
}

impl Default for Authentication {
    fn default() -> Self {
        Self {
            time_window: Duration::from_secs(15 * 60),
            no_expiration_checks: false,
        }
    }
}

impl Default for FileLedger {
    fn default() -> Self {
        Self {
            location: PathBuf::from("/var/hyperledger/production/orderer"),
        }
    }
}

impl Default for Consensus {
    fn default() -> Self {
        let location = FileLedger::default().location;
        Self {
            wal_dir: location.join("etcdraft/wal"),
            snap_dir: location.join("etcdraft/snapshot"),
            eviction_suspicion: Duration::from_secs(10 * 60),
            tick_interval_override: None,
        }
    }
}

impl Default for Operations {
    fn default() -> Self {
        Self {
            listen_address: "127.0.0.1:0".to_owned(),
            tls: Tls::default(),
        }
    }
}

impl Default for Statsd {
    fn default() -> Self {
        Self {
            network: StatsdNetwork::Udp,
            address: "127.0.0.1:8125".to_owned(),
            write_interval: Duration::from_secs(30),
            prefix: String::new(),
        }
    }
}

impl Default for ChannelParticipation {
    fn default() -> Self {
        Self {
            enabled: false,
            max_request_body_size: 1024 * 1024,
        }
    }
}

impl Default for Admin {
    fn default() -> Self {
        Self {
            listen_address: "127.0.0.1:0".to_owned(),
            tls: Tls::default(),
        }
    }
}
