//! Floats and bridges with their files.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use quorate_identity::{TlsParty, link_keys};
use quorate_messaging::HostAndPort;
use quorate_messaging::firewall::{
    Configuration, Firewall, FirewallHandle, LoadOptions, Surroundings,
};
use quorate_runtime::telemetry::{FileOptions, RollingFile};
use quorate_runtime::{Clock, Entropy, Metrics, Tasks};
use serde_json::Value;

use crate::support::{NOW, Party, free_address, name, until};

const PASSWORD: &str = "linkpass";

/// What one organisation has between itself and the others.
pub(crate) struct Dmz {
    directory: tempfile::TempDir,
    node: TlsParty,
}

/// A float, a bridge, or both in one.
pub(crate) struct Process {
    configuration: Configuration,
    audit: PathBuf,
    tasks: Tasks,
    pub(crate) handle: FirewallHandle,
    /// Where a float awaits bridges.
    pub(crate) tunnel: SocketAddr,
}

impl Dmz {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let names = [name("Ledger"), name("Bridge")];
        let mut inner = link_keys::generate(&name("Artemis"), &names, NOW).unwrap();
        save(directory.path(), "artemis", &inner[1]);
        let names = [name("Float"), name("Bridge"), name("Stranger")];
        let outer = link_keys::generate(&name("Tunnel"), &names, NOW).unwrap();
        for (name, party) in ["float", "bridge", "stranger"].iter().zip(&outer) {
            save(directory.path(), name, party);
        }
        Self {
            directory,
            node: inner.swap_remove(0),
        }
    }

    /// What nodes recognise the bridges by.
    pub(crate) fn node_link(&self) -> TlsParty {
        self.node.clone()
    }

    fn link(&self, whose: &str) -> String {
        let path = self.directory.path();
        format!(
            "{{ sslKeystore = \"{0}/{whose}.json\", keyStorePassword = {PASSWORD}, \
             trustStoreFile = \"{0}/{whose}-trust.json\", trustStorePassword = {PASSWORD} }}",
            path.display()
        )
    }

    pub(crate) async fn float(&self, more: &str) -> Process {
        let (peers, bridges) = (free_address(), free_address());
        let text = format!(
            "firewallMode = FloatOuter\ninboundConfig {{ listeningAddress = \"{peers}\" }}\n\
             floatOuterConfig {{ floatAddress = \"{bridges}\", expectedCertificateSubject = \"{}\", \
             tunnelSSLConfiguration {} }}\n{more}\n",
            name("Bridge"),
            self.link("float"),
        );
        Process::start(&text, self.directory.path()).await
    }

    pub(crate) async fn bridge(
        &self,
        nodes: &[&Party],
        floats: &[&Process],
        more: &str,
    ) -> Process {
        let nodes: Vec<HostAndPort> = nodes.iter().map(|node| node.address.into()).collect();
        self.bridge_to(&nodes, floats, more).await
    }

    pub(crate) async fn bridge_to(
        &self,
        nodes: &[HostAndPort],
        floats: &[&Process],
        more: &str,
    ) -> Process {
        self.bridge_as("bridge", nodes, floats, more).await
    }

    /// With the keys of somebody who may be no bridge.
    pub(crate) async fn bridge_as(
        &self,
        whose: &str,
        nodes: &[HostAndPort],
        floats: &[&Process],
        more: &str,
    ) -> Process {
        let quoted = |address: String| format!("\"{address}\"");
        let floats: Vec<_> = floats
            .iter()
            .map(|float| quoted(float.tunnel.to_string()))
            .collect();
        let others: Vec<_> = nodes[1..]
            .iter()
            .map(|node| quoted(node.to_string()))
            .collect();
        let text = format!(
            "firewallMode = BridgeInner\noutboundConfig {{ artemisBrokerAddress = \"{}\", \
             alternateArtemisBrokerAddresses = [ {} ], artemisSSLConfiguration {} }}\n\
             bridgeInnerConfig {{ floatAddresses = [ {} ], expectedCertificateSubject = \"{}\", \
             tunnelSSLConfiguration {} }}\n\
             artemisReconnectionIntervalMin = 100, artemisReconnectionIntervalMax = 400\n{more}\n",
            nodes[0],
            others.join(", "),
            self.link("artemis"),
            floats.join(", "),
            name("Float"),
            self.link(whose),
        );
        Process::start(&text, self.directory.path()).await
    }

    /// Bridge and float in one, with a copy of the node's TLS key.
    pub(crate) async fn sender_receiver(&self, node: &Party, more: &str) -> Process {
        let path = self.directory.path().join("certificates");
        node.keys.save(&path, PASSWORD, PASSWORD).unwrap();
        let text = format!(
            "firewallMode = SenderReceiver\nkeyStorePassword = {PASSWORD}, trustStorePassword = {PASSWORD}\n\
             inboundConfig {{ listeningAddress = \"{}\" }}\n\
             outboundConfig {{ artemisBrokerAddress = \"{}\" }}\n{more}\n",
            free_address(),
            node.address,
        );
        Process::start(&text, self.directory.path()).await
    }
}

fn save(directory: &Path, name: &str, party: &TlsParty) {
    link_keys::save(
        party,
        (&directory.join(format!("{name}.json")), PASSWORD),
        (&directory.join(format!("{name}-trust.json")), PASSWORD),
    )
    .unwrap();
}

impl Process {
    async fn start(text: &str, base: &Path) -> Self {
        let configuration =
            Configuration::parse(text, "firewall.conf", base, &LoadOptions::default())
                .unwrap_or_else(|error| panic!("{error}"));
        let audit = base.join(format!("audit-{}.log", free_address().port()));
        let (tasks, handle) = run(&configuration, &audit);
        let tunnel = handle.tunnel_address().unwrap_or(([0, 0, 0, 0], 0).into());
        Self {
            configuration,
            audit,
            tasks,
            handle,
            tunnel,
        }
    }

    /// Ends it without any goodbye.
    pub(crate) async fn kill(&mut self) {
        self.tasks.stop(Duration::ZERO).await;
    }

    /// Starts it again with the same configuration.
    pub(crate) async fn restart(&mut self) {
        (self.tasks, self.handle) = run(&self.configuration, &self.audit);
    }

    /// Where peers are accepted, as soon as they are.
    pub(crate) async fn listening(&self) -> SocketAddr {
        until("the float listens", || async {
            self.handle.status().listening.is_some()
        })
        .await;
        self.handle.status().listening.unwrap()
    }

    /// Waits for a line of the audit log.
    pub(crate) async fn audited(&self, direction: &str, event: &str, about: &str) -> Value {
        let find = || {
            let text = fs::read_to_string(&self.audit).unwrap_or_default();
            text.lines()
                .filter_map(|line| serde_json::from_str::<Value>(line).ok())
                .find(|line| {
                    line["direction"] == direction
                        && line["event"] == event
                        && line.to_string().contains(about)
                })
        };
        until(
            &format!("{event} {direction} {about} is in the audit log"),
            || async { find().is_some() },
        )
        .await;
        find().unwrap()
    }
}

fn run(configuration: &Configuration, audit: &Path) -> (Tasks, FirewallHandle) {
    let tasks = Tasks::new("");
    let (clock, _) = Clock::manual(NOW.0 * 1_000_000);
    let surroundings = Surroundings {
        clock,
        entropy: Entropy::system(),
        metrics: Metrics::new(),
        audit_log: Some(RollingFile::open(&FileOptions::new(audit)).unwrap()),
    };
    let firewall =
        Firewall::prepare(configuration, surroundings).unwrap_or_else(|error| panic!("{error:?}"));
    let handle = firewall.start(&tasks);
    (tasks, handle)
}
