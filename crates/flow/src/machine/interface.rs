//! What goes into the machine and what comes out: plain data.

use std::collections::BTreeMap;
use std::time::Duration;

use quorate_identity::{Party, PublicKey, SecureHash, X500Name};
use quorate_ledger::Timestamp;
use quorate_ledger::network::NotaryInfo;
use serde::Serialize;

use crate::commit::{Checkpoint, FlowStart, FlowStatus, InboxId, Origin, StepCommit};
use crate::error::HostError;
use crate::ids::{ClientId, FlowId};
use crate::journal::{HostRequest, Reply};
use crate::message::Envelope;
use crate::trace::FlowTrace;

/// What flows can look up about the network without asking anybody.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// The party that this node acts for.
    pub me: Party,
    /// Further identities that this node answers for: a notary service's.
    pub services: Vec<Party>,
    /// The network map: every party that can be addressed, by legal name.
    pub parties: BTreeMap<X500Name, Party>,
    /// The nodes that provide a service together, by its name: any of them may be asked.
    pub providers: BTreeMap<X500Name, Vec<X500Name>>,
    /// How long a flow waits for a service before it asks another of its nodes.
    pub flow_timeout: FlowTimeout,
    /// The network's notaries.
    pub notaries: Vec<NotaryInfo>,
    /// Hash of the network parameters in force.
    pub parameters: Option<SecureHash>,
    /// The installed contracts and the hashes of their code.
    pub contracts: BTreeMap<String, SecureHash>,
}

impl Surroundings {
    /// The identity of this node with that name.
    pub(super) fn local(&self, name: &X500Name) -> Option<&Party> {
        std::iter::once(&self.me)
            .chain(&self.services)
            .find(|party| party.name == *name)
    }

    /// The nodes that answer for a party: for a service those that provide it, else itself.
    pub(crate) fn answering(&self, party: &X500Name) -> Vec<X500Name> {
        match self.providers.get(party) {
            Some(nodes) if !nodes.is_empty() => nodes.clone(),
            _ => vec![party.clone()],
        }
    }

    pub(crate) fn party_of_key(&self, key: &PublicKey) -> Option<&Party> {
        std::iter::once(&self.me)
            .chain(&self.services)
            .chain(self.parties.values())
            .chain(self.notaries.iter().map(|notary| &notary.identity))
            .find(|party| party.owning_key == *key)
    }

    pub(crate) fn party(&self, name: &X500Name) -> Option<&Party> {
        if *name == self.me.name {
            return Some(&self.me);
        }
        self.parties.get(name).or_else(|| {
            self.notaries
                .iter()
                .map(|notary| &notary.identity)
                .find(|party| party.name == *name)
        })
    }
}

/// When a flow that waits for a service (a notary) asks another node of that service.
#[derive(Debug, Clone, PartialEq)]
pub struct FlowTimeout {
    /// How long it waits the first time, before jitter.
    pub timeout: Duration,
    /// After so many times the wait grows no more. A request is never given up: it may have been granted already.
    pub max_restart_count: u32,
    /// By what the wait is multiplied each time; at least 1.
    pub backoff_base: f64,
}

impl Default for FlowTimeout {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(30),
            max_restart_count: 6,
            backoff_base: 1.8,
        }
    }
}

/// The longest wait for a service, whatever the configuration multiplies.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

impl FlowTimeout {
    /// How long the wait number `attempt` (from 0) lasts. `salt` makes it up to half as long again, so that those who
    /// lost the same node do not come back together.
    pub(crate) fn wait(&self, attempt: u32, salt: u8) -> Duration {
        let growths = attempt.min(self.max_restart_count).min(MAX_GROWTHS);
        let factor = self.backoff_base.max(1.0).powi(growths as i32);
        let seconds = self.timeout.as_secs_f64() * factor * (1.0 + 0.5 * f64::from(salt) / 255.0);
        Duration::try_from_secs_f64(seconds)
            .map_or(LONGEST_TIMEOUT, |wait| wait.min(LONGEST_TIMEOUT))
    }
}

/// How often and how soon a request of the host is repeated.
#[derive(Debug, Clone)]
pub struct RetryPolicy {
    /// Attempts before the hospital takes over.
    pub attempts: u32,
    /// The wait after the first failure.
    pub first: Duration,
    /// Each further wait is this many percent of the one before.
    pub growth_percent: u32,
    /// The longest wait.
    pub longest: Duration,
    /// What is done instead if the device that keeps a private key is out of reach.
    pub signing: SigningRetries,
}

/// How often a flow asks again for a signature of a key whose device is out of reach, with the waits of
/// [`RetryPolicy`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SigningRetries {
    /// Attempts after the first one.
    pub retries: u32,
    /// Then the flow goes to the hospital, where it waits for an operator; otherwise its body gets an error.
    pub hold: bool,
}

impl Default for SigningRetries {
    fn default() -> Self {
        Self {
            retries: 2,
            hold: false,
        }
    }
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 10,
            first: Duration::from_millis(200),
            growth_percent: 180,
            longest: Duration::from_secs(30),
            signing: SigningRetries::default(),
        }
    }
}

/// From here on the wait has reached any longest one: there is no use in counting on.
const MAX_GROWTHS: u32 = 64;

impl RetryPolicy {
    pub(super) fn wait_after(&self, failures: u32) -> Duration {
        let mut wait = self.first;
        for _ in 1..failures.min(MAX_GROWTHS) {
            wait = (wait.saturating_mul(self.growth_percent) / 100).min(self.longest);
        }
        wait
    }
}

/// Bounds of a machine.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Flows that have not ended: so many that were started here, beyond which starts are refused,
    /// and so many that answer peers, beyond which their sessions are held. The two are counted
    /// apart because flows wait for flows that answer them: started ones must not take their
    /// places. Of the places for answering, one peer gets no more than there are free ones left:
    /// alone half of them, and whoever comes later still finds room.
    pub flows: usize,
    /// Further places of both kinds for the node's own checks
    /// ([`standard::is_system`](crate::standard::is_system)), which must work when nothing else does.
    pub system_flows: usize,
    /// Messages that wait for one flow; a peer that sends more has its session ended.
    pub mail_per_flow: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            flows: 50_000,
            system_flows: 100,
            mail_per_flow: 1_000,
        }
    }
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// Somebody starts a flow; [`Machine::check_start`](super::Machine::check_start) has allowed
    /// it.
    Start {
        /// A new id, which no other flow has.
        flow: FlowId,
        /// What to run.
        start: FlowStart,
        /// Where it belongs, if it is traced.
        trace: Option<FlowTrace>,
        /// 32 secret, unpredictable bytes.
        seed: [u8; 32],
    },
    /// A stored flow is to go on: at start-up, before any message is delivered, or because of
    /// [`Action::Load`].
    Restore {
        /// The flow as stored.
        checkpoint: Box<Checkpoint>,
        /// 32 secret, unpredictable bytes.
        seed: [u8; 32],
    },
    /// A message is in the inbox, durably. Each message is delivered once in a machine's life, and
    /// those of one sender in the order of its queue.
    Deliver {
        /// Its place there.
        inbox: InboxId,
        /// The message; its sender is authenticated.
        envelope: Box<Envelope>,
        /// 32 secret, unpredictable bytes, for the flow that it may start.
        seed: [u8; 32],
    },
    /// The answer to [`Action::Execute`]: one for each, however long it takes, or the flow never
    /// asks again.
    HostResult {
        /// The flow.
        flow: FlowId,
        /// The operation's number.
        sequence: u32,
        /// The answer.
        result: Result<Reply, HostError>,
    },
    /// The flow's last [`Action::Commit`] is durable.
    Committed {
        /// The flow.
        flow: FlowId,
    },
    /// The flow's last [`Action::Commit`] was refused and has changed nothing. If it was the first
    /// of a flow that was started here, there is no such flow any more.
    CommitFailed {
        /// The flow.
        flow: FlowId,
        /// Why.
        reason: String,
    },
    /// Time has passed.
    Tick,
    /// An operator ends the flow.
    Kill {
        /// The flow.
        flow: FlowId,
    },
    /// An operator stops the flow for now.
    Pause {
        /// The flow.
        flow: FlowId,
    },
    /// An operator lets a paused or hospitalised flow go on.
    Retry {
        /// The flow.
        flow: FlowId,
    },
}

/// What is to be done. Actions for one flow are carried out in order.
#[derive(Debug, PartialEq)]
pub enum Action {
    /// Make this durable, whole or not at all, then send what it sends.
    Commit(Box<StepCommit>),
    /// Remove a message from the inbox, and send the reply if there is one, in one commit.
    Discard {
        /// The message.
        inbox: InboxId,
        /// The reply.
        reply: Option<Box<Envelope>>,
    },
    /// Answer a flow's request.
    Execute {
        /// The flow.
        flow: FlowId,
        /// The operation's number: with the flow's id, the identity of the request.
        sequence: u32,
        /// The request.
        request: HostRequest,
    },
    /// Read the flow from the store and send [`Event::Restore`].
    Load {
        /// The flow.
        flow: FlowId,
    },
}

/// Why a flow cannot be started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StartRefused {
    /// No such flow.
    #[error(
        "no installed application has a flow '{class}' that clients may start; the flows are: \
         {known}"
    )]
    UnknownFlow {
        /// What was asked for.
        class: String,
        /// The startable ones.
        known: String,
    },
    /// The arguments are not the flow's.
    #[error("arguments of flow {class}: {reason}")]
    BadArguments {
        /// The flow.
        class: String,
        /// What the decoder said.
        reason: String,
    },
    /// The node is draining.
    #[error("the node is in draining mode and starts no flows; try again when it is off")]
    Draining,
    /// Too many flows are running.
    #[error("{limit} flows are running, the most that this node runs at a time; try again later")]
    Busy {
        /// The bound.
        limit: usize,
    },
}

/// A flow as operators see it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FlowView {
    /// The flow.
    pub flow: FlowId,
    /// Its registered name.
    pub class: String,
    /// The client's name for the request.
    pub client_id: Option<ClientId>,
    /// Who asked for it.
    pub origin: Origin,
    /// Where it stands.
    pub status: FlowStatus,
    /// The progress step that it named last.
    pub progress: Option<String>,
    /// What it waits for.
    pub waiting_for: Option<String>,
    /// When it was started.
    pub started_at: Timestamp,
    /// Since when it has been where it is.
    pub since: Timestamp,
    /// Why it is in the hospital.
    pub ailment: Option<String>,
    /// How often it has been admitted without getting on in between.
    pub visits: u32,
    /// The parties it has open sessions with.
    pub peers: Vec<X500Name>,
}
