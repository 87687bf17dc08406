//! Where a consenter stands, for people who look after it.

use quorate_consensus::Status;

use super::core::Channel;
use crate::cluster::Member;
use crate::replication::Progress;

/// Where a channel's Raft group stands, as far as one consenter knows.
#[derive(Debug, Clone)]
pub struct Standing {
    /// Of the Raft group; what the other members have is known to a leader only.
    pub status: Status,
    /// Whether this member knows what it has promised. If not, it takes no part in elections.
    pub remembers: bool,
    /// The consenters that are heard of.
    pub active: Vec<u64>,
    /// All consenters.
    pub consenters: Vec<Member>,
    /// The block of the newest snapshot, 0 if there is none.
    pub snapshot_block: u64,
    /// How far the fetching of blocks is that the log no longer has, while that lasts.
    pub progress: Option<Progress>,
}

impl Channel {
    /// Where it stands.
    pub fn standing(&self) -> Standing {
        Standing {
            status: self.group.status(),
            remembers: self.group.remembers(),
            active: self.activity.active().to_vec(),
            consenters: self.consenters.members(),
            snapshot_block: self.gauges().snapshot_block_number,
            progress: None,
        }
    }
}
