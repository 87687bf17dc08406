//! Channels as people see them who look after the orderer.

use quorate_consensus::GroupState;
use quorate_identity::mutual_tls::CertificateFacts;

use super::{Part, Registrar, describe};
use crate::channel::Standing;
use crate::status::{ChannelOverview, ConsenterOverview, RaftOverview};

impl Registrar {
    /// What there is to know about a channel; `None` if there is no such channel.
    pub async fn overview(&self, channel: &str) -> Option<ChannelOverview> {
        let part = self.part(channel)?;
        let info = describe(channel, &part);
        let mut overview = ChannelOverview {
            consensus_relation: info.consensus_relation.as_str().to_owned(),
            status: info.status.as_str().to_owned(),
            height: info.height,
            first_block: self.store(channel).map_or(0, |store| store.first()),
            reason: None,
            replication: None,
            raft: None,
        };
        match part {
            Part::Consenter(consenter) => {
                if let Some(standing) = consenter.handle.standing().await {
                    overview.replication = standing.progress;
                    overview.raft = Some(raft(&standing));
                }
            }
            Part::Follower(follower) => overview.replication = follower.state().progress,
            Part::Failed { reason, .. } => overview.reason = Some(reason),
            Part::Inactive(_) | Part::Leaving(_) => {}
        }
        Some(overview)
    }

    /// Why a channel has failed, if it has.
    pub fn failure(&self, channel: &str) -> Option<String> {
        match self.part(channel)? {
            Part::Failed { reason, .. } => Some(reason),
            _ => None,
        }
    }
}

fn raft(standing: &Standing) -> RaftOverview {
    let status = &standing.status;
    let leads = status.role.state == GroupState::Leader;
    let lag = |id: u64| {
        let member = status.members.iter().find(|member| member.id == id)?;
        leads.then(|| status.commit.saturating_sub(member.matched))
    };
    RaftOverview {
        id: status.id,
        leader: status.role.leader,
        role: match status.role.state {
            GroupState::Leader => "leader",
            GroupState::Follower => "follower",
            GroupState::Candidate => "candidate",
            GroupState::PreCandidate => "pre-candidate",
        }
        .to_owned(),
        term: status.term,
        commit: status.commit,
        applied: status.applied,
        log: (status.first, status.last),
        snapshot_block: standing.snapshot_block,
        votes: standing.remembers,
        active: standing.active.clone(),
        consenters: standing
            .consenters
            .iter()
            .map(|member| ConsenterOverview {
                id: member.id,
                address: format!("{}:{}", member.host, member.port),
                lag: if member.id == status.id {
                    None
                } else {
                    lag(member.id)
                },
                certificate_expires: CertificateFacts::read(&member.server_cert)
                    .ok()
                    .map(|facts| facts.not_after.0),
            })
            .collect(),
    }
}
