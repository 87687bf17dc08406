//! The audit log: every connection of a peer, with who, whence, whither, how long and how much.
//!
//! One JSON object to a line, in a file of its own, bounded in size. Contents of messages are never in it. Strangers can
//! make lines faster than anybody reads them, so refusals beyond a rate are counted and not told one by one.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use quorate_identity::X500Name;
use quorate_runtime::metrics::families::IntCounterVec;
use quorate_runtime::metrics::{IntCounter, IntGauge};
use quorate_runtime::telemetry::RollingFile;
use quorate_runtime::{Clock, Metrics};
use serde_json::{Map, Value, json};

use crate::service::lock;
use crate::tunnel::pipe::Piped;

/// Refusals that are told within one second.
const MAX_REFUSALS_PER_SECOND: u64 = 50;

/// Which way a peer's connection was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// By the peer.
    In,
    /// By the bridge.
    Out,
}

impl Way {
    fn text(self) -> &'static str {
        match self {
            Self::In => "inbound",
            Self::Out => "outbound",
        }
    }
}

/// Where everything is told.
pub(super) struct Audit {
    clock: Clock,
    file: Option<RollingFile>,
    silenced: Vec<IpAddr>,
    refusals: Mutex<Refusals>,
    open: AtomicI64,
    connected: AtomicU64,
    refused: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    metrics: AuditMetrics,
}

#[derive(Default)]
struct Refusals {
    second: i64,
    told: u64,
    untold: u64,
}

struct AuditMetrics {
    connections: IntCounterVec,
    refused: IntCounter,
    bytes: IntCounterVec,
    open: IntGauge,
}

/// One connection of a peer.
pub(super) struct Connection<'a> {
    audit: &'a Audit,
    way: Way,
    facts: Map<String, Value>,
    began: Duration,
}

impl Audit {
    pub(super) fn new(
        clock: Clock,
        file: Option<RollingFile>,
        silenced: Vec<IpAddr>,
        metrics: &Metrics,
    ) -> Self {
        Self {
            clock,
            file,
            silenced,
            refusals: Mutex::default(),
            open: AtomicI64::new(0),
            connected: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            metrics: AuditMetrics {
                connections: metrics.counter_family(
                    "quorate_firewall_connections_total",
                    "Connections of authenticated peers that were passed on.",
                    &["direction"],
                ),
                refused: metrics.counter(
                    "quorate_firewall_refused_total",
                    "Connections that were refused or came to nothing.",
                ),
                bytes: metrics.counter_family(
                    "quorate_firewall_bytes_total",
                    "Bytes of peers that were passed on, counted when their connection ends.",
                    &["direction"],
                ),
                open: metrics.gauge(
                    "quorate_firewall_connections_open",
                    "Connections of authenticated peers that are open.",
                ),
            },
        }
    }

    /// Whether connections from here are of no interest, such as a load balancer's probes.
    pub(super) fn is_silenced(&self, from: SocketAddr) -> bool {
        self.silenced.contains(&from.ip().to_canonical())
    }

    /// A connection came to nothing.
    pub(super) fn refused(&self, way: Way, address: &str, peer: Option<&X500Name>, reason: &str) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        self.metrics.refused.inc();
        let second = self.clock.now_seconds();
        let untold = {
            let mut refusals = lock(&self.refusals);
            if refusals.second != second {
                refusals.second = second;
                refusals.told = 0;
            }
            if refusals.told >= MAX_REFUSALS_PER_SECOND {
                refusals.untold += 1;
                return;
            }
            refusals.told += 1;
            std::mem::take(&mut refusals.untold)
        };
        // Strangers and probes come all the time; here is for who reads the log of a process that does its work.
        match peer {
            Some(peer) => {
                tracing::info!(direction = way.text(), address, %peer, "refused: {reason}");
            }
            None => tracing::debug!(direction = way.text(), address, "refused: {reason}"),
        }
        let mut facts = self.facts("refused", way);
        facts.insert("address".into(), address.into());
        if let Some(peer) = peer {
            facts.insert("peer".into(), peer.to_string().into());
        }
        facts.insert("reason".into(), reason.into());
        if untold > 0 {
            facts.insert("untold_before".into(), untold.into());
        }
        self.tell(facts);
    }

    /// A peer is connected, and its bytes are passed on from now on.
    pub(super) fn connected(
        &self,
        way: Way,
        address: &str,
        peer: &X500Name,
        identity: &X500Name,
        took: Duration,
    ) -> Connection<'_> {
        self.connected.fetch_add(1, Ordering::Relaxed);
        self.metrics
            .connections
            .with_label_values(&[way.text()])
            .inc();
        self.metrics
            .open
            .set(self.open.fetch_add(1, Ordering::Relaxed) + 1);
        tracing::info!(direction = way.text(), address, %peer, %identity, "connected");
        let mut facts = self.facts("connected", way);
        facts.insert("address".into(), address.into());
        facts.insert("peer".into(), peer.to_string().into());
        facts.insert("identity".into(), identity.to_string().into());
        let connection = Connection {
            audit: self,
            way,
            facts: facts.clone(),
            began: self.clock.monotonic(),
        };
        facts.insert("handshake_millis".into(), millis(took));
        self.tell(facts);
        connection
    }

    /// What has happened since the start, for the log.
    pub(super) fn statistics(&self) -> BTreeMap<&'static str, u64> {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        BTreeMap::from([
            (
                "open",
                u64::try_from(self.open.load(Ordering::Relaxed)).unwrap_or_default(),
            ),
            ("connected", load(&self.connected)),
            ("refused", load(&self.refused)),
            ("received", load(&self.received)),
            ("sent", load(&self.sent)),
        ])
    }

    fn facts(&self, event: &str, way: Way) -> Map<String, Value> {
        let mut facts = Map::new();
        facts.insert("time".into(), self.clock.rfc3339().into());
        facts.insert("event".into(), event.into());
        facts.insert("direction".into(), way.text().into());
        facts
    }

    fn tell(&self, facts: Map<String, Value>) {
        let Some(file) = &self.file else { return };
        let line = format!("{}\n", Value::Object(facts));
        if let Err(error) = file.write_line(line.as_bytes()) {
            tracing::error!("the audit log cannot be written: {error}; is the disk full?");
        }
    }
}

impl Connection<'_> {
    /// It has ended.
    pub(super) fn ended(mut self, piped: &Piped) {
        let Piped {
            received,
            sent,
            reason,
        } = piped;
        let audit = self.audit;
        audit.received.fetch_add(*received, Ordering::Relaxed);
        audit.sent.fetch_add(*sent, Ordering::Relaxed);
        for (label, count) in [("received", received), ("sent", sent)] {
            audit
                .metrics
                .bytes
                .with_label_values(&[label])
                .inc_by(*count);
        }
        let peer = self
            .facts
            .get("peer")
            .and_then(Value::as_str)
            .unwrap_or_default();
        tracing::info!(
            direction = self.way.text(),
            peer,
            received,
            sent,
            "disconnected: {reason}"
        );
        self.facts.insert("event".into(), "disconnected".into());
        self.facts
            .insert("time".into(), audit.clock.rfc3339().into());
        self.facts.insert("received".into(), (*received).into());
        self.facts.insert("sent".into(), (*sent).into());
        self.facts.insert(
            "lasted_millis".into(),
            millis(audit.clock.monotonic().saturating_sub(self.began)),
        );
        self.facts.insert("reason".into(), reason.as_str().into());
        audit.tell(std::mem::take(&mut self.facts));
    }
}

impl Drop for Connection<'_> {
    fn drop(&mut self) {
        let audit = self.audit;
        audit
            .metrics
            .open
            .set(audit.open.fetch_sub(1, Ordering::Relaxed) - 1);
    }
}

fn millis(duration: Duration) -> Value {
    json!(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}
