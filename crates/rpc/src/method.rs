//! The operations of the API by the names that permissions, the shell and the audit log use.
//!
//! The names are those of Corda's operations where Corda has the operation, so that a node.conf's
//! `permissions` and an operator's habits carry over.

use std::fmt;
use std::str::FromStr;

/// One operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Method {
    /// Starts a flow, or re-attaches to it by client id.
    StartFlow,
    /// The state of one flow by its id, and its result when it has ended.
    FlowStatus,
    /// The same by the client id under which it was started.
    ReattachFlowWithClientId,
    /// Forgets a client id and the result kept under it.
    RemoveClientId,
    /// The ended flows whose results are kept under client ids.
    FinishedFlowsWithClientIds,
    /// All flows now.
    StateMachinesSnapshot,
    /// All flows now, and then every change.
    StateMachinesFeed,
    /// Ends a flow.
    KillFlow,
    /// Stops a flow until it is retried.
    PauseFlow,
    /// Continues a paused or hospitalised flow.
    RetryFlow,
    /// Pauses every flow.
    PauseAllFlows,
    /// Pauses every flow in the hospital.
    PauseAllHospitalizedFlows,
    /// Continues every paused flow.
    RetryAllPausedFlows,
    /// Continues every flow that was paused in the hospital.
    RetryAllPausedHospitalizedFlows,
    /// The flows in the hospital and why they are there.
    HospitalSnapshot,
    /// All checkpoints in readable form.
    DumpCheckpoints,
    /// The flows that can be started.
    RegisteredFlows,
    /// States that match a query.
    VaultQuery,
    /// Updates of the vault from a cursor on.
    VaultTrack,
    /// A recorded transaction.
    Transaction,
    /// Stores an attachment.
    UploadAttachment,
    /// Whether an attachment is there.
    AttachmentExists,
    /// An attachment's bytes.
    OpenAttachment,
    /// The node's own entry in the network map.
    NodeInfo,
    /// All entries of the network map.
    NetworkMapSnapshot,
    /// The notaries of the network.
    NotaryIdentities,
    /// The party of a legal name.
    WellKnownPartyFromX500Name,
    /// The node's clock.
    CurrentNodeTime,
    /// Version, role, lease, flows and queues.
    NodeDiagnosticInfo,
    /// Turns draining mode on or off.
    SetFlowsDrainingModeEnabled,
    /// Whether draining mode is on.
    IsFlowsDrainingModeEnabled,
    /// Stops the node in an orderly way.
    Terminate,
}

/// What is known about an operation.
struct Facts {
    method: Method,
    name: &'static str,
    /// Further names that a permission or the shell may use.
    aliases: &'static [&'static str],
    /// Arguments as the shell writes them; `?` marks the optional ones.
    arguments: &'static str,
    about: &'static str,
    /// Whether repeating the call after a lost answer does no harm.
    idempotent: bool,
}

const fn facts(
    method: Method,
    name: &'static str,
    arguments: &'static str,
    about: &'static str,
) -> Facts {
    Facts {
        method,
        name,
        aliases: &[],
        arguments,
        about,
        idempotent: true,
    }
}

impl Facts {
    const fn aliases(mut self, aliases: &'static [&'static str]) -> Self {
        self.aliases = aliases;
        self
    }

    const fn not_idempotent(mut self) -> Self {
        self.idempotent = false;
        self
    }
}

#[rustfmt::skip]
static METHODS: [Facts; 32] = [
    facts(Method::StartFlow, "startFlow", "flow: <class>, arguments?: {…}, clientId?: <id>",
        "Start a flow, or re-attach to the one with this client id")
        .aliases(&["startFlowDynamic", "startTrackedFlow", "startTrackedFlowDynamic", "startFlowWithClientId",
            "startFlowDynamicWithClientId"])
        .not_idempotent(),
    facts(Method::FlowStatus, "flowStatus", "flowId: <id>, waitMillis?: <n>",
        "The state of a flow, and its result when it has ended")
        .aliases(&["flowResult"]),
    facts(Method::ReattachFlowWithClientId, "reattachFlowWithClientId", "clientId: <id>, waitMillis?: <n>",
        "The state and result of the flow started under a client id"),
    facts(Method::RemoveClientId, "removeClientId", "clientId: <id>",
        "Forget a client id and its result"),
    facts(Method::FinishedFlowsWithClientIds, "finishedFlowsWithClientIds", "",
        "Ended flows whose results are kept under client ids"),
    facts(Method::StateMachinesSnapshot, "stateMachinesSnapshot", "",
        "All flows now")
        .aliases(&["flowList"]),
    facts(Method::StateMachinesFeed, "stateMachinesFeed", "",
        "All flows now, then every change")
        .aliases(&["flowWatch"]),
    facts(Method::KillFlow, "killFlow", "flowId: <id>",
        "End a flow"),
    facts(Method::PauseFlow, "pauseFlow", "flowId: <id>",
        "Stop a flow until it is retried"),
    facts(Method::RetryFlow, "retryFlow", "flowId: <id>",
        "Continue a paused or hospitalised flow"),
    facts(Method::PauseAllFlows, "pauseAllFlows", "",
        "Pause every flow"),
    facts(Method::PauseAllHospitalizedFlows, "pauseAllHospitalizedFlows", "",
        "Pause every flow in the hospital"),
    facts(Method::RetryAllPausedFlows, "retryAllPausedFlows", "",
        "Continue every paused flow"),
    facts(Method::RetryAllPausedHospitalizedFlows, "retryAllPausedHospitalizedFlows", "",
        "Continue every flow that was paused in the hospital"),
    facts(Method::HospitalSnapshot, "hospitalSnapshot", "",
        "Flows in the hospital and why"),
    facts(Method::DumpCheckpoints, "dumpCheckpoints", "",
        "All checkpoints, readable"),
    facts(Method::RegisteredFlows, "registeredFlows", "",
        "Flows that can be started"),
    facts(Method::VaultQuery, "vaultQuery",
        "contractStateType?: <type>, status?: UNCONSUMED|CONSUMED|ALL, page?: <n>, pageSize?: <n>, query?: {…}",
        "States in the vault")
        .aliases(&["vaultQueryBy", "vaultQueryByCriteria", "vaultQueryByWithPagingSpec", "vaultQueryByWithSorting"]),
    facts(Method::VaultTrack, "vaultTrack", "cursor?: <n>, fromNow?: true",
        "Updates of the vault from a cursor on")
        .aliases(&["vaultTrackBy", "vaultTrackByCriteria", "vaultTrackByWithPagingSpec", "vaultTrackByWithSorting"]),
    facts(Method::Transaction, "transaction", "id: <hash>",
        "A recorded transaction")
        .aliases(&["internalFindVerifiedTransaction", "findTransaction"]),
    facts(Method::UploadAttachment, "uploadAttachment", "file: <path>",
        "Store a file as an attachment")
        .aliases(&["uploadAttachmentWithMetadata"]),
    facts(Method::AttachmentExists, "attachmentExists", "id: <hash>",
        "Whether an attachment is there"),
    facts(Method::OpenAttachment, "openAttachment", "id: <hash>, file: <path>",
        "Save an attachment to a file"),
    facts(Method::NodeInfo, "nodeInfo", "",
        "The node's own entry in the network map"),
    facts(Method::NetworkMapSnapshot, "networkMapSnapshot", "",
        "All entries of the network map")
        .aliases(&["networkMapFeed"]),
    facts(Method::NotaryIdentities, "notaryIdentities", "",
        "The notaries of the network")
        .aliases(&["notaryPartyFromX500Name"]),
    facts(Method::WellKnownPartyFromX500Name, "wellKnownPartyFromX500Name", "name: \"O=…, L=…, C=…\"",
        "The party of a legal name")
        .aliases(&["partyFromName", "partiesFromName"]),
    facts(Method::CurrentNodeTime, "currentNodeTime", "",
        "The node's clock"),
    facts(Method::NodeDiagnosticInfo, "nodeDiagnosticInfo", "",
        "Version, role, lease, flows and queues")
        .aliases(&["diagnostics"]),
    facts(Method::SetFlowsDrainingModeEnabled, "setFlowsDrainingModeEnabled", "enabled: true|false",
        "Draining mode: while it is on, no flow starts"),
    facts(Method::IsFlowsDrainingModeEnabled, "isFlowsDrainingModeEnabled", "",
        "Whether draining mode is on"),
    facts(Method::Terminate, "terminate", "drainPendingFlows: true|false",
        "Stop the node, letting its flows end first or not")
        .aliases(&["gracefulShutdown", "shutdown"])
        .not_idempotent(),
];

impl Method {
    /// All operations, in the order in which help shows them.
    pub fn all() -> impl Iterator<Item = Self> {
        METHODS.iter().map(|facts| facts.method)
    }

    fn facts(self) -> &'static Facts {
        // The table is in the order of the enum; a test holds it to that.
        &METHODS[self as usize]
    }

    /// The name: `vaultQuery`.
    pub fn name(self) -> &'static str {
        self.facts().name
    }

    /// Other names under which the operation is known.
    pub fn aliases(self) -> &'static [&'static str] {
        self.facts().aliases
    }

    /// The arguments in the shell's notation, for help.
    pub fn arguments(self) -> &'static str {
        self.facts().arguments
    }

    /// One line for help.
    pub fn about(self) -> &'static str {
        self.facts().about
    }

    /// Whether the call may be repeated when its answer was lost. Starting a flow is repeatable
    /// only under a client id.
    pub fn idempotent(self) -> bool {
        self.facts().idempotent
    }

    /// The permission that allows the operation: `InvokeRpc.vaultQuery`.
    pub fn permission(self) -> String {
        format!("InvokeRpc.{}", self.name())
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// There is no operation of this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no operation '{0}'")]
pub struct UnknownMethod(pub String);

impl FromStr for Method {
    type Err = UnknownMethod;

    fn from_str(name: &str) -> Result<Self, UnknownMethod> {
        METHODS
            .iter()
            .find(|facts| facts.name == name || facts.aliases.contains(&name))
            .map(|facts| facts.method)
            .ok_or_else(|| UnknownMethod(name.chars().take(64).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_table_is_in_the_order_of_the_enum_and_names_are_unique() {
        let mut names = BTreeSet::new();
        for (index, facts) in METHODS.iter().enumerate() {
            assert_eq!(facts.method as usize, index, "{}", facts.name);
            for name in std::iter::once(&facts.name).chain(facts.aliases) {
                assert!(names.insert(*name), "{name} twice");
                assert_eq!(name.parse::<Method>(), Ok(facts.method));
            }
        }
        assert!("vaultquery".parse::<Method>().is_err());
    }
}
