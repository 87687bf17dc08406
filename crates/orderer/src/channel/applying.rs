//! From a decided entry to a block in the chain, and to what a configuration block changes.
//!
//! Every orderer does the same here with the same entries, so that all chains have the same headers, data and
//! consenter metadata. That includes a peculiarity of Fabric's: in a block whose update writes `ConsensusType` the
//! metadata repeat the `raft_index` of the block before instead of naming the block's own.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use quorate_consensus::{Committed, CommittedKind, Membership, Snapshot};
use quorate_fabric::block;
use quorate_fabric::config::{ChannelConfig, ConfigError, CreatedChannel, raft_config};
use quorate_fabric::envelope::{EnvelopeParts, RawEnvelope};
use quorate_fabric::proto::common::{Block, ConfigEnvelope, HeaderType};
use tracing::{debug, info, warn};

use super::consenters::{Consenters, last_update};
use super::core::{Action, Channel, LOG, listed};
use crate::assembly::{self, Tip};
use crate::cluster::Member;
use crate::store::StoredBlock;

/// Decided entries kept while missing blocks are fetched. When more come, they are fetched as well.
const MAX_HELD_ENTRIES: usize = 64;

/// Blocks are missing because a snapshot took the place of the entries that held them.
#[derive(Debug)]
pub(super) struct CatchUp {
    /// The last block that has to be fetched.
    last: u64,
    /// What was decided meanwhile.
    pub(super) held: VecDeque<Committed>,
}

/// What a block does besides holding messages.
enum Content {
    /// Nothing.
    Messages,
    /// It changes the channel's configuration.
    Config(ConfigEnvelope),
    /// It brings another channel into being.
    Creation(Box<CreatedChannel>),
}

impl Content {
    fn of(block: &Block) -> Result<Self, ConfigError> {
        let envelopes = block.data.as_ref().map_or(&[][..], |data| &data.data);
        let [envelope] = envelopes else {
            return Ok(Self::Messages);
        };
        let Ok(envelope) = RawEnvelope::decode(envelope.clone()) else {
            return Ok(Self::Messages);
        };
        let Ok(parts) = EnvelopeParts::parse(&envelope) else {
            return Ok(Self::Messages);
        };
        if parts.channel_header.is(HeaderType::Config) {
            let config = ConfigEnvelope::decode(parts.data);
            return Ok(config.map_or(Self::Messages, Self::Config));
        }
        if parts.channel_header.is(HeaderType::OrdererTransaction) {
            let created = CreatedChannel::from_parts(&parts)?;
            return Ok(Self::Creation(Box::new(created)));
        }
        Ok(Self::Messages)
    }
}

impl Channel {
    /// Applies a decided entry.
    pub(super) fn apply(&mut self, committed: Committed) {
        let Committed { index, term, kind } = committed;
        match kind {
            CommittedKind::Empty => {}
            CommittedKind::Data(data) => self.apply_block(index, data),
            CommittedKind::Membership { change, .. } => self.apply_membership(change),
        }
        if self.halted {
            return;
        }
        self.confirm(index);
        self.entry_applied(term);
    }

    fn confirm(&mut self, index: u64) {
        // While blocks are fetched, changes of members are applied ahead of the entries before them.
        let held = self
            .catch_up
            .as_ref()
            .is_some_and(|catch_up| !catch_up.held.is_empty());
        if index > self.applied && !held {
            self.applied = index;
            self.group.applied(index);
        }
    }

    fn apply_block(&mut self, index: u64, data: Bytes) {
        let block = match Block::decode(data.clone()) {
            Ok(block) => block,
            Err(error) => {
                return self.fail(format!(
                    "the Raft entry {index} that was decided is no block: {error}"
                ));
            }
        };
        let Some(header) = &block.header else {
            return self.fail(format!(
                "the Raft entry {index} that was decided is a block without header"
            ));
        };
        let number = header.number;
        let expected = self.tip.number + 1;
        if number < expected {
            debug!(target: LOG, channel = %self.name, node = self.raft_id,
                "Got block [{number}], expect block [{expected}], this node was forced to catch up");
            return;
        }
        if number > expected || header.previous_hash.as_ref() != self.tip.hash {
            return self.fail(format!(
                "the block {number} that was decided does not follow block {} here",
                self.tip.number
            ));
        }
        let envelopes = block
            .data
            .as_ref()
            .map(|data| data.data.clone())
            .unwrap_or_default();
        let (step, created) = match self.content(&block) {
            Ok(content) => content,
            Err(reason) => {
                return self.fail(format!(
                    "the configuration block {number} cannot be applied: {reason}"
                ));
            }
        };
        match &step {
            Some(step) => {
                self.last_config = number;
                if !step.touches_consensus {
                    self.raft_index = index;
                }
            }
            None => self.raft_index = index,
        }
        let consenters = step
            .as_ref()
            .map_or(&self.consenters, |step| &step.consenters)
            .metadata(self.raft_index);
        let finished = assembly::finish(
            block,
            self.last_config,
            &consenters,
            self.signer.as_ref(),
            self.entropy.bytes(),
        );
        let stored = match finished {
            Ok(stored) => stored,
            Err(error) => {
                return self.fail(quorate_runtime::tasks::chain(&error));
            }
        };
        info!(target: LOG, channel = %self.name, node = self.raft_id,
            "Writing block [{number}] (Raft index: {index}) to ledger");
        self.tip = Tip::of(&stored);
        let created = created.map(|created| self.create(created));
        self.out.push(Action::Append(stored));
        let hash = self.tip.hash;
        self.settle(number, &hash, &envelopes);
        if let Some(step) = step {
            self.adopt(step);
        }
        if let Some(update) = created {
            self.settle_update(&update);
        }
        self.snapshot_by_size(index, number, data);
    }

    /// What a block changes here, and the channel that it brings into being.
    fn content(
        &self,
        block: &Block,
    ) -> Result<(Option<ConfigStep>, Option<Box<CreatedChannel>>), String> {
        match Content::of(block).map_err(|error| error.to_string())? {
            Content::Config(config) => Ok((Some(self.next_config(&config)?), None)),
            Content::Creation(created) if self.config.consortiums().is_some() => {
                Ok((None, Some(created)))
            }
            // To an application channel it is a message like any other.
            Content::Creation(_) | Content::Messages => Ok((None, None)),
        }
    }

    /// Has a channel created before the block that says so is appended: should we die between the two, the block is
    /// applied again, and finds the channel there. Answers what identifies the request.
    fn create(&mut self, created: Box<CreatedChannel>) -> Vec<u8> {
        let (update, _) = last_update(&created.config);
        self.out.push(Action::CreateChannel(created));
        update
    }

    /// What the configuration in a block makes of the present one.
    fn next_config(&self, envelope: &ConfigEnvelope) -> Result<ConfigStep, String> {
        let config = envelope
            .config
            .clone()
            .ok_or_else(|| "it has no configuration".to_owned())?;
        let config = ChannelConfig::new(&self.name, config).map_err(|error| error.to_string())?;
        let options =
            raft_config::options(config.raft_metadata()).map_err(|error| error.to_string())?;
        let (update, touches_consensus) = last_update(envelope);
        let (consenters, membership, rotated) = if touches_consensus {
            let change = self
                .consenters
                .change(config.raft_metadata())
                .map_err(|error| error.to_string())?;
            (change.consenters, change.membership, change.rotated)
        } else {
            (self.consenters.clone(), None, None)
        };
        Ok(ConfigStep {
            config: Arc::new(config),
            options,
            update,
            touches_consensus,
            consenters,
            membership,
            rotated,
        })
    }

    fn adopt(&mut self, step: ConfigStep) {
        if step.options.snapshot_interval_size != self.options.snapshot_interval_size {
            info!(target: LOG, channel = %self.name, node = self.raft_id,
                "Update snapshot interval size to {} bytes (was {})",
                step.options.snapshot_interval_size, self.options.snapshot_interval_size);
        }
        let before = std::mem::replace(&mut self.consenters, step.consenters);
        self.config = step.config;
        // The timing of a Raft group is fixed while it runs; a restart takes over the rest.
        self.options.snapshot_interval_size = step.options.snapshot_interval_size;
        self.options.max_inflight_blocks = step.options.max_inflight_blocks;
        self.ordering.set_limits(self.config.batch_size());
        self.publish_view();
        if let Some(id) = step.rotated {
            info!(target: LOG, channel = %self.name, node = self.raft_id,
                "Config block [{}] rotates TLS certificate of node {id}", self.tip.number);
        }
        let mut members = self.consenters.members();
        if let Some(Membership::Remove(id)) = step.membership {
            // Its vote is still needed to decide that it goes.
            members.extend(
                before
                    .members()
                    .into_iter()
                    .filter(|member| member.id == id),
            );
        }
        if step.touches_consensus {
            self.connect(members);
        }
        self.settle_update(&step.update);
        if let Some(change) = step.membership {
            let what = match change {
                Membership::Add(id) => format!("adds node {id}"),
                Membership::Remove(id) => format!("removes node {id}"),
            };
            info!(target: LOG, channel = %self.name, node = self.raft_id,
                "Config block just committed {what}, pause accepting transactions till config change is applied");
            self.change_members(change);
        }
    }

    fn connect(&mut self, members: Vec<Member>) {
        self.out.push(Action::Connect(members));
    }

    fn apply_membership(&mut self, change: Membership) {
        let members = self.group.apply_membership(change);
        match change {
            Membership::Add(id) => info!(target: LOG, channel = %self.name, node = self.raft_id,
                "Applied config change to add node {id}, current nodes in channel: {}", listed(&members)),
            Membership::Remove(id) => info!(target: LOG, channel = %self.name, node = self.raft_id,
                "Applied config change to remove node {id}, current nodes in channel: {}", listed(&members)),
        }
        if let Membership::Remove(id) = change
            && !self.consenters.contains(id)
        {
            self.connect(self.consenters.members());
        }
        self.members_changed(change);
    }

    fn snapshot_by_size(&mut self, index: u64, number: u64, data: Bytes) {
        self.bytes_since_snapshot += u64::try_from(data.len()).unwrap_or(u64::MAX);
        let limit = u64::from(self.options.snapshot_interval_size);
        if self.bytes_since_snapshot < limit {
            return;
        }
        info!(target: LOG, channel = %self.name, node = self.raft_id,
            "Accumulated {} bytes since last snapshot, exceeding size limit ({limit} bytes), taking snapshot at block [{number}] (index: {index}), last snapshotted block number is {}, current nodes: {}",
            self.bytes_since_snapshot, self.gauges.snapshot_block_number, listed(self.consenters.ids()));
        self.confirm(index);
        match self.group.take_snapshot(index, data) {
            Ok(write) => {
                // What the log forgets must be in the chain.
                self.out.push(Action::SyncBlocks);
                self.out.push(Action::Persist {
                    number: None,
                    write,
                });
                if let Some(snapshot) = self.group.snapshot() {
                    self.out.push(Action::SaveSnapshot(snapshot.clone()));
                }
                self.bytes_since_snapshot = 0;
                self.gauges.snapshot_block_number = number;
            }
            Err(error) => warn!(target: LOG, channel = %self.name, node = self.raft_id,
                "No snapshot was taken at block [{number}]: {error}"),
        }
    }

    // ---- catching up --------------------------------------------------------------------------------------------

    /// A snapshot stands for blocks that we may not have.
    pub(super) fn take_in(&mut self, snapshot: &Snapshot) {
        let number = match Block::decode(snapshot.data.clone()) {
            Ok(Block {
                header: Some(header),
                ..
            }) => header.number,
            _ => {
                return self.fail(format!(
                    "the snapshot at Raft index {} holds no block",
                    snapshot.index
                ));
            }
        };
        if let Some(catch_up) = &mut self.catch_up {
            catch_up.held.retain(|held| held.index > snapshot.index);
        }
        if snapshot.index > self.applied {
            self.applied = snapshot.index;
            self.group.applied(snapshot.index);
        }
        self.gauges.snapshot_block_number = self.gauges.snapshot_block_number.max(number);
        if number <= self.tip.number {
            debug!(target: LOG, channel = %self.name, node = self.raft_id,
                "Snapshot is at block [{number}], local block number is {}, no sync needed", self.tip.number);
            return;
        }
        self.bytes_since_snapshot = 0;
        self.fetch_up_to(number);
    }

    pub(super) fn fetch_up_to(&mut self, last: u64) {
        let held = self
            .catch_up
            .take()
            .map(|catch_up| catch_up.held)
            .unwrap_or_default();
        self.catch_up = Some(CatchUp { last, held });
        let first = self.tip.number + 1;
        info!(target: LOG, channel = %self.name, node = self.raft_id,
            "Catching up with snapshot taken at block [{last}], starting from block [{first}]");
        self.out.push(Action::CatchUp { first, last });
    }

    /// Keeps a decided entry until the blocks before it are here; too many of them are fetched with the others.
    pub(super) fn hold(&mut self, committed: Committed) {
        let Some(catch_up) = &mut self.catch_up else {
            return self.apply(committed);
        };
        catch_up.held.push_back(committed);
        if catch_up.held.len() <= MAX_HELD_ENTRIES {
            return;
        }
        let held = std::mem::take(&mut catch_up.held);
        let mut last = catch_up.last;
        for entry in &held {
            if let CommittedKind::Data(data) = &entry.kind
                && let Ok(Block {
                    header: Some(header),
                    ..
                }) = Block::decode(data.clone())
            {
                last = last.max(header.number);
            }
        }
        if let Some(newest) = held.back() {
            self.confirm(newest.index);
        }
        self.fetch_up_to(last);
    }

    /// Blocks that other orderers have finished: taken over with their signatures.
    pub(super) fn pulled(&mut self, blocks: Vec<StoredBlock>) {
        for block in blocks {
            let Some(catch_up) = &self.catch_up else {
                return;
            };
            if block.number() <= self.tip.number || block.number() > catch_up.last {
                // The answer to a question that has been asked again meanwhile.
                continue;
            }
            if let Err(reason) = self.take_over(block) {
                return self.fail(reason);
            }
        }
        let done = self
            .catch_up
            .as_ref()
            .is_some_and(|catch_up| catch_up.last <= self.tip.number);
        if !done {
            return;
        }
        info!(target: LOG, channel = %self.name, node = self.raft_id,
            "Finished syncing with cluster up to and including block [{}]", self.tip.number);
        let held = self
            .catch_up
            .take()
            .map(|catch_up| catch_up.held)
            .unwrap_or_default();
        for committed in held {
            if self.halted {
                return;
            }
            self.apply(committed);
        }
    }

    fn take_over(&mut self, stored: StoredBlock) -> Result<(), String> {
        let number = stored.number();
        if number != self.tip.number + 1 || stored.header().previous_hash.as_ref() != self.tip.hash
        {
            return Err(format!(
                "the block {number} that was fetched does not follow block {} here",
                self.tip.number
            ));
        }
        let block = stored.block();
        let metadata = block::consenter_metadata(&block).map_err(|error| {
            format!("the metadata of the fetched block {number} cannot be read: {error}")
        })?;
        let (step, created) = self.content(&block).map_err(|reason| {
            format!("the fetched configuration block {number} cannot be applied: {reason}")
        })?;
        self.tip = Tip::of(&stored);
        let created = created.map(|created| self.create(created));
        self.out.push(Action::Append(stored));
        if let Some(data) = &block.data {
            let hash = self.tip.hash;
            self.settle(number, &hash, &data.data);
        }
        if let Some(metadata) = &metadata {
            self.raft_index = metadata.raft_index;
        }
        if let Some(update) = created {
            self.settle_update(&update);
        }
        let Some(mut step) = step else {
            return Ok(());
        };
        self.last_config = number;
        if step.touches_consensus {
            step.consenters = Consenters::new(metadata.as_ref(), step.config.raft_metadata())
                .map_err(|error| error.to_string())?;
        }
        // Raft has decided it long ago.
        step.membership = None;
        self.adopt(step);
        Ok(())
    }
}

/// What a configuration block changes.
struct ConfigStep {
    config: Arc<ChannelConfig>,
    options: raft_config::RaftOptions,
    /// What identifies the update.
    update: Vec<u8>,
    touches_consensus: bool,
    consenters: Consenters,
    membership: Option<Membership>,
    rotated: Option<u64>,
}
