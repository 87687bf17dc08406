//! What an orderer tells people about itself: the answer of `/healthz/detailed`, and what `quorate orderer status` shows.
//!
//! Plain data, read and written; who knows it is the registrar (its module `overview`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::replication::Progress;

/// An orderer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Overview {
    /// `OK`, or `Service Unavailable` when a check fails.
    pub status: String,
    /// Whether clients should come here.
    pub ready: bool,
    /// The program's version.
    pub version: String,
    /// Every check of `/healthz`: `OK`, or why it fails.
    pub checks: BTreeMap<String, String>,
    /// The orderer's own certificates.
    pub certificates: Vec<CertificateLife>,
    /// Its channels.
    pub channels: BTreeMap<String, ChannelOverview>,
}

/// How long a certificate is valid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateLife {
    /// What for: `enrollment`, `server TLS`, `client TLS`.
    pub role: String,
    /// Its last second, since the epoch.
    pub expires: i64,
    /// Seconds until then; negative afterwards.
    pub seconds_left: i64,
}

/// What an orderer is to a channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChannelOverview {
    /// `consenter`, `follower` and so on, as in the participation API.
    pub consensus_relation: String,
    /// `active`, `onboarding`, `inactive` or `failed`, as there.
    pub status: String,
    /// Number of blocks.
    pub height: u64,
    /// The first block that was not pruned.
    pub first_block: u64,
    /// Why it failed, if it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How far it is in fetching blocks, while it is behind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replication: Option<Progress>,
    /// Its Raft group, if this orderer is a consenter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub raft: Option<RaftOverview>,
}

/// A Raft group as one of its members sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RaftOverview {
    /// This member.
    pub id: u64,
    /// The leader; 0: none is known.
    pub leader: u64,
    /// `leader`, `follower`, `candidate` or `pre-candidate`.
    pub role: String,
    /// The term.
    pub term: u64,
    /// The last entry known to be committed.
    pub commit: u64,
    /// The last entry whose effects are here.
    pub applied: u64,
    /// The first and the last entry of the log.
    pub log: (u64, u64),
    /// The block of the newest snapshot.
    pub snapshot_block: u64,
    /// Whether this member takes part in elections: it does not while it may have forgotten what it promised.
    pub votes: bool,
    /// The members that are heard of, as the leader says.
    pub active: Vec<u64>,
    /// All members.
    pub consenters: Vec<ConsenterOverview>,
}

/// A member of a Raft group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConsenterOverview {
    /// Its Raft id.
    pub id: u64,
    /// `host:port` of its cluster service.
    pub address: String,
    /// Committed entries that it is not known to have; only a leader knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lag: Option<u64>,
    /// The last second of its server certificate, since the epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate_expires: Option<i64>,
}
