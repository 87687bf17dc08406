//! Configuration updates on their way: each waits for its turn, is given to the leader again and again until its block
//! appears, and may make a leader hand over before it is ordered.

use std::time::Duration;

use quorate_consensus::Membership;
use quorate_fabric::envelope::RawEnvelope;
use tracing::{debug, info, warn};

use super::forwarding::Forwarding;
use super::{MAX_CONFIG_UPDATES, MAX_FORWARDS, PATIENCE};
use crate::channel::core::{Action, Channel, LOG, Ticket};
use crate::channel::{Submission, consenters};
use crate::checks;

/// Elections' worth of time for handing over before a leader orders an update that removes it after all.
const HANDOVER_ELECTIONS: u32 = 3;

/// Where a configuration update is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Waits for its turn.
    Queued,
    /// Given to the leader; given to it again at this time.
    Forwarded(Duration),
    /// It removes this leader, who hands over first.
    HandingOver,
    /// Proposed by us.
    InFlight,
}

#[derive(Debug)]
pub(super) struct ConfigUpdate {
    pub(super) key: u64,
    pub(super) envelope: RawEnvelope,
    pub(super) validated_at: Option<u64>,
    /// What identifies it whichever orderer wraps it.
    pub(super) update: Vec<u8>,
    /// Whom to answer: several, when other orderers have given us the same update, too.
    pub(super) tickets: Vec<Ticket>,
    pub(super) deadline: Duration,
    pub(super) stage: Stage,
    /// Handing over was tried for long enough.
    pub(super) insist: bool,
}

#[derive(Debug)]
pub(super) struct Handover {
    pub(super) update: u64,
    pub(super) until: Duration,
    pub(super) next_attempt: Duration,
    pub(super) tried: Vec<u64>,
}

impl Channel {
    pub(super) fn take_update(&mut self, ticket: Ticket, submission: Submission) {
        let update = match checks::config_within(&submission.envelope) {
            Ok(config) => consenters::last_update(&config).0,
            Err(refusal) => return self.reply(Some(ticket), Err(refusal.into())),
        };
        // An orderer that waits for the block gives us the update more than once.
        if let Some(known) = self
            .ordering
            .updates
            .iter_mut()
            .find(|known| known.update == update && known.tickets.len() < MAX_CONFIG_UPDATES)
        {
            known.tickets.push(ticket);
            return;
        }
        if self.ordering.updates.len() >= MAX_CONFIG_UPDATES {
            self.unavailable(
                Some(ticket),
                "too many configuration updates are waiting, try again when some are committed",
            );
            return;
        }
        self.ordering.next_update += 1;
        self.ordering.updates.push(ConfigUpdate {
            key: self.ordering.next_update,
            envelope: submission.envelope,
            validated_at: submission.validated_at,
            update,
            tickets: vec![ticket],
            deadline: self.now.monotonic + PATIENCE,
            stage: Stage::Queued,
            insist: false,
        });
    }

    /// Checks an update again if the configuration has moved on. `false`: it is refused, and gone.
    fn renew(&mut self, at: usize) -> bool {
        let sequence = self.config.sequence();
        let Some(update) = self.ordering.updates.get_mut(at) else {
            return false;
        };
        match update.validated_at {
            Some(earlier) if earlier >= sequence => return true,
            Some(earlier) => {
                warn!(target: LOG, channel = %self.name, node = self.raft_id,
                    "Config message was validated against {earlier}, although current config seq has advanced ({sequence})");
            }
            None => {}
        }
        let context = checks::UpdateContext {
            config: &self.config,
            consenters: self.consenters.ids(),
            active: self.activity.active(),
            signer: self.signer.as_ref(),
            entropy: &self.entropy,
        };
        match checks::config_again(&context, &update.envelope, &self.rules, self.now.wall) {
            Ok(envelope) => {
                update.envelope = envelope;
                update.validated_at = Some(sequence);
                true
            }
            Err(refusal) => {
                warn!(target: LOG, channel = %self.name, node = self.raft_id,
                    "Failed to order message: bad config message: {refusal}");
                self.gauges.proposal_failures += 1;
                let update = self.ordering.updates.remove(at);
                for ticket in update.tickets {
                    self.reply(Some(ticket), Err(refusal.clone().into()));
                }
                false
            }
        }
    }

    fn queued_update(&self) -> Option<usize> {
        self.ordering
            .updates
            .iter()
            .position(|update| update.stage == Stage::Queued)
    }

    pub(super) fn order_updates(&mut self) {
        while self.is_open() {
            let Some(at) = self.queued_update() else {
                return;
            };
            if !self.renew(at) {
                continue;
            }
            if self.hands_over(at) {
                return;
            }
            self.cut();
            if !self.is_open() {
                // The batch before it filled the pipe.
                return;
            }
            let Some(update) = self.ordering.updates.get(at) else {
                return;
            };
            let envelope = update.envelope.encoded().clone();
            if self.propose(vec![envelope], Vec::new()).is_some() {
                return;
            }
            if let Some(update) = self.ordering.updates.get_mut(at) {
                update.stage = Stage::InFlight;
            }
            if let Some(leading) = &mut self.ordering.leading {
                leading.config_in_flight = true;
            }
            debug!(target: LOG, channel = %self.name, node = self.raft_id,
                "Received config transaction, pause accepting transaction till it is committed");
        }
    }

    /// Whether the update takes the office, or the certificate, from us, so that another should order it.
    fn hands_over(&mut self, at: usize) -> bool {
        let Some(update) = self.ordering.updates.get(at) else {
            return false;
        };
        if update.insist {
            return false;
        }
        let Ok(config) = checks::config_envelope(&update.envelope) else {
            return false;
        };
        let Some(change) = checks::consensus_metadata(&config)
            .and_then(|metadata| self.consenters.change(&metadata).ok())
        else {
            return false;
        };
        let rotated = change.rotated == Some(self.raft_id);
        let removed = change.membership == Some(Membership::Remove(self.raft_id));
        if !rotated && !removed {
            return false;
        }
        let key = update.key;
        let Some(successor) = self.successor(&[]) else {
            return false;
        };
        if rotated {
            info!(target: LOG, channel = %self.name, node = self.raft_id,
                "Detected certificate rotation of our node");
        } else {
            info!(target: LOG, channel = %self.name, node = self.raft_id,
                "Detected eviction of ourselves from the configuration");
        }
        // What came before it is proposed before we go.
        self.cut();
        let now = self.now.monotonic;
        let election = self.election_timeout();
        if let Some(update) = self.ordering.updates.get_mut(at) {
            update.stage = Stage::HandingOver;
        }
        if let Some(leading) = &mut self.ordering.leading {
            leading.handover = Some(Handover {
                update: key,
                until: now + election * HANDOVER_ELECTIONS,
                next_attempt: now + election,
                tried: vec![successor],
            });
        }
        info!(target: LOG, channel = %self.name, node = self.raft_id,
            "Transferring leadership to {successor}");
        self.group.transfer_leader(successor);
        true
    }

    /// Who should lead after us: heard of, and furthest ahead.
    pub(super) fn successor(&self, tried: &[u64]) -> Option<u64> {
        let status = self.group.status();
        status
            .members
            .iter()
            .filter(|member| member.id != self.raft_id && !tried.contains(&member.id))
            .max_by_key(|member| {
                (
                    member.recent_active || self.activity.active().contains(&member.id),
                    member.matched,
                    std::cmp::Reverse(member.id),
                )
            })
            .map(|member| member.id)
    }

    pub(super) fn forward_updates(&mut self) {
        while self.ordering.forwards.len() < MAX_FORWARDS {
            let Some(at) = self.queued_update() else {
                return;
            };
            if !self.renew(at) {
                continue;
            }
            let again = self.now.monotonic + self.election_timeout();
            let to = self.role.leader;
            let Some(update) = self.ordering.updates.get_mut(at) else {
                return;
            };
            update.stage = Stage::Forwarded(again);
            let (key, validated_at) = (update.key, update.validated_at);
            let envelope = update.envelope.encoded().clone();
            let id = self.next_forward(Forwarding::Config(key));
            self.out.push(Action::Forward {
                id,
                to,
                validated_at,
                envelope,
            });
        }
    }

    /// A configuration block with this update is in the chain.
    pub(in crate::channel) fn settle_update(&mut self, update: &[u8]) {
        if let Some(leading) = &mut self.ordering.leading {
            leading.config_in_flight = false;
        }
        let mut settled = Vec::new();
        self.ordering.updates.retain_mut(|pending| {
            let done = pending.update == update;
            if done {
                settled.append(&mut pending.tickets);
            }
            !done
        });
        for ticket in settled {
            self.reply(Some(ticket), Ok(()));
        }
    }

    pub(super) fn handover_tick(&mut self) {
        let now = self.now.monotonic;
        let Some(handover) = self
            .ordering
            .leading
            .as_ref()
            .and_then(|leading| leading.handover.as_ref())
        else {
            return;
        };
        let key = handover.update;
        if now >= handover.until {
            warn!(target: LOG, channel = %self.name, node = self.raft_id,
                "Nobody took over the leadership: the update that removes this leader is ordered here");
            if let Some(leading) = &mut self.ordering.leading {
                leading.handover = None;
            }
            if let Some(update) = self
                .ordering
                .updates
                .iter_mut()
                .find(|update| update.key == key)
            {
                update.insist = true;
                update.stage = Stage::Queued;
            }
            return;
        }
        if now < handover.next_attempt {
            return;
        }
        let successor = self
            .successor(&handover.tried)
            .or_else(|| self.successor(&[]));
        let next_attempt = now + self.election_timeout();
        if let Some(leading) = &mut self.ordering.leading
            && let Some(handover) = &mut leading.handover
        {
            handover.next_attempt = next_attempt;
            handover.tried.extend(successor);
        }
        if let Some(successor) = successor {
            self.group.transfer_leader(successor);
        }
    }
}
