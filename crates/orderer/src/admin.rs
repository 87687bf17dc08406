//! The channel participation REST API, `/participation/v1/channels`: what `osnadmin` talks to.
//!
//! [`router`] turns requests into calls of [`Participation`] and its answers into Fabric's statuses, headers and bodies.
//! It knows HTTP and nothing of channels; whether a block may be joined is decided behind the trait, by the registrar.

use std::fmt;

use bytes::Bytes;
use futures::future::BoxFuture;

/// What the API needs to know and do about channels.
pub trait Participation: Send + Sync + 'static {
    /// The channels of this orderer.
    fn list(&self) -> ChannelList;

    /// One channel, or `None` when it does not exist.
    fn info(&self, channel: &str) -> Option<ChannelInfo>;

    /// Joins the channel of `block`, which is the encoded config block as it was sent. It has not been looked at.
    fn join(&self, block: Bytes) -> BoxFuture<'_, Result<ChannelInfo, JoinError>>;

    /// Removes a channel and its data. The name has the form of a channel's name.
    fn remove<'a>(&'a self, channel: &'a str) -> BoxFuture<'a, Result<(), RemoveError>>;
}

/// The names of all channels.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ChannelList {
    /// The legacy system channel.
    pub system_channel: Option<String>,
    /// The application channels, in the order in which they are shown.
    pub channels: Vec<String>,
}

/// What is shown about a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelInfo {
    /// The channel's name.
    pub name: String,
    /// What this orderer is to the channel.
    pub consensus_relation: ConsensusRelation,
    /// What it is doing there.
    pub status: ChannelStatus,
    /// How many blocks it has.
    pub height: u64,
}

/// What an orderer is to a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConsensusRelation {
    /// A member of its cluster.
    Consenter,
    /// It replicates the channel.
    Follower,
    /// It follows the configuration only; with a system channel.
    ConfigTracker,
    /// Fabric's word for consensus types that have no members.
    Other,
}

impl ConsensusRelation {
    /// Fabric's word.
    pub fn as_str(self) -> &'static str {
        match self {
            ConsensusRelation::Consenter => "consenter",
            ConsensusRelation::Follower => "follower",
            ConsensusRelation::ConfigTracker => "config-tracker",
            ConsensusRelation::Other => "other",
        }
    }

    /// The value of the metric `participation_consensus_relation`.
    pub fn gauge(self) -> i64 {
        match self {
            ConsensusRelation::Other => 0,
            ConsensusRelation::Consenter => 1,
            ConsensusRelation::Follower => 2,
            ConsensusRelation::ConfigTracker => 3,
        }
    }
}

impl fmt::Display for ConsensusRelation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What an orderer is doing in a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelStatus {
    /// It serves.
    Active,
    /// It catches up to the block with which it joined.
    Onboarding,
    /// It does nothing there.
    Inactive,
    /// It has stopped because something broke.
    Failed,
}

impl ChannelStatus {
    /// Fabric's word.
    pub fn as_str(self) -> &'static str {
        match self {
            ChannelStatus::Active => "active",
            ChannelStatus::Onboarding => "onboarding",
            ChannelStatus::Inactive => "inactive",
            ChannelStatus::Failed => "failed",
        }
    }

    /// The value of the metric `participation_status`.
    pub fn gauge(self) -> i64 {
        match self {
            ChannelStatus::Inactive => 0,
            ChannelStatus::Active => 1,
            ChannelStatus::Onboarding => 2,
            ChannelStatus::Failed => 3,
        }
    }
}

impl fmt::Display for ChannelStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a channel was not joined. The texts are those of the API's answers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// The bytes are not a block; the text says why.
    #[error("cannot unmarshal file part config-block into a block: {0}")]
    NotABlock(String),
    /// The block is not one to join with.
    #[error("invalid join block: {0}")]
    InvalidBlock(String),
    /// The channel exists.
    #[error("cannot join: channel already exists")]
    ChannelExists,
    /// There is a system channel.
    #[error("cannot join: system channel exists")]
    SystemChannelExists,
    /// It is a system channel's block, and there are application channels.
    #[error("cannot join: application channels already exist")]
    ApplicationChannelsExist,
    /// The channel is being removed.
    #[error("cannot join: channel pending removal")]
    PendingRemoval,
    /// It could not be removed, and nothing but a restart helps.
    #[error("cannot join: channel removal failure")]
    RemovalFailed,
    /// Another channel is about to be created from the same block; also anything else that went wrong.
    #[error("cannot join: {0}")]
    Failed(String),
}

/// Why a channel was not removed. The texts are those of the API's answers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RemoveError {
    /// There is no such channel.
    #[error("cannot remove: channel does not exist")]
    ChannelNotExist,
    /// There is a system channel, and it is not the one to be removed.
    #[error("cannot remove: system channel exists")]
    SystemChannelExists,
    /// It is being removed already.
    #[error("cannot remove: channel pending removal")]
    PendingRemoval,
    /// Something else went wrong.
    #[error("cannot remove: {0}")]
    Failed(String),
}
