//! What an orderer does for a channel that it is no consenter of: it copies the blocks of the others, verified.
//!
//! A follower comes from joining a channel (its join block says how far the chain must come before the channel counts as
//! joined), or from being removed as a consenter. It reads on for ever; when a configuration block names this orderer
//! as a consenter it says so and ends, and the registrar starts a consenter in its place. Where there is a system channel
//! nobody follows for ever: such a follower ends when it is where it had to come. Start reading at [`start`].

use std::sync::Arc;

use quorate_fabric::config::{ChannelConfig, CreatedChannel};
use quorate_runtime::Tasks;
use quorate_runtime::tasks::blocking;
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::channel::Creation;
use crate::metrics::Replication;
use crate::replication::{ChainVerifier, Pace, Progress, Puller, PullerContext};
use crate::store::{BlockStore, Ledgers, StoreError, StoredBlock};

const LOG: &str = "orderer.common.follower";

/// Blocks that are written before the disk is waited for. They can be had again, so a crash costs no more than work.
const BLOCKS_A_SYNC: u64 = 100;

/// How far a follower has to come before it asks whether it is a consenter.
#[derive(Debug, Clone)]
pub enum Target {
    /// Not further than it is.
    Here,
    /// Up to this block, which somebody showed to us.
    Block(StoredBlock),
    /// Up to the block of this number, which removed us from the consenters.
    Eviction(u64),
    /// As far as any other orderer is now.
    Newest,
}

/// With what a follower begins.
pub struct FollowerStart {
    /// The channel.
    pub name: String,
    /// Its blocks.
    pub store: BlockStore,
    /// The folder of all ledgers, where the join block is kept until it has been reached.
    pub ledgers: Ledgers,
    /// The configuration at the chain's end; of the join block where there is no chain yet.
    pub config: Arc<ChannelConfig>,
    /// How far to come first.
    pub target: Target,
    /// How blocks are pulled.
    pub puller: PullerContext,
    /// Where operators see how far it is.
    pub metrics: Replication,
    /// Whether a configuration names this orderer as a consenter.
    pub is_member: Arc<dyn Fn(&ChannelConfig) -> bool + Send + Sync>,
    /// Whether it reads on where it had to come.
    pub stays: bool,
    /// Creates channels, if this is a system channel.
    pub creation: Option<Arc<dyn Creation>>,
    /// Called when the newest configuration names this orderer, or when the follower does not stay; it has ended then.
    pub ended: Box<dyn FnOnce() + Send + Sync>,
}

/// What others see of a follower.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Following {
    /// Whether it has not come as far as it has to.
    pub onboarding: bool,
    /// Whether the newest configuration that it knows of names this orderer as a consenter.
    pub is_member: bool,
    /// Whether it has stopped because its disk failed.
    pub failed: bool,
    /// How far it is, while it is behind the orderers that it reads from.
    pub progress: Option<Progress>,
}

/// A follower, as others see it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Follower {
    store: BlockStore,
    state: watch::Receiver<Following>,
}

impl Follower {
    /// The blocks that it has.
    pub fn store(&self) -> &BlockStore {
        &self.store
    }

    /// How it stands.
    pub fn state(&self) -> Following {
        *self.state.borrow()
    }

    /// Changes of that.
    pub fn watch(&self) -> watch::Receiver<Following> {
        self.state.clone()
    }
}

/// Starts a follower; its task ends when `tasks` is asked to stop, or when the orderer is named as a consenter. Cutting it
/// off loses nothing.
pub fn start(start: FollowerStart, tasks: &Tasks) -> Follower {
    let onboarding = match &start.target {
        Target::Here => false,
        Target::Block(block) => block.number() >= start.store.height(),
        Target::Eviction(number) => *number >= start.store.height(),
        Target::Newest => true,
    };
    let first = Following {
        onboarding,
        is_member: (start.is_member)(&start.config),
        failed: false,
        progress: None,
    };
    let (state, watched) = watch::channel(first);
    let store = start.store.clone();
    let shutdown = tasks.shutdown().clone();
    let (metrics, name) = (start.metrics.clone(), start.name.clone());
    tasks.spawn(format!("follower of channel {}", start.name), async move {
        let failed = state.clone();
        let task = Task { start, state };
        let outcome = tokio::select! {
            () = shutdown.requested() => Ok(()),
            outcome = task.run() => {
                failed.send_modify(|state| state.failed = outcome.is_err());
                outcome
            }
        };
        metrics.show(&name, None);
        outcome
    });
    Follower {
        store,
        state: watched,
    }
}

struct Task {
    start: FollowerStart,
    state: watch::Sender<Following>,
}

impl Task {
    async fn run(mut self) -> Result<(), StoreError> {
        let name = self.start.name.clone();
        let mut puller = self.puller()?;
        let wanted = match &self.start.target {
            Target::Here => None,
            Target::Block(block) => Some(block.number()),
            Target::Eviction(number) => Some(*number),
            Target::Newest => self.newest(&puller).await.checked_sub(1),
        };
        info!(target: LOG, channel = %name, height = self.start.store.height(), "Starting to follow the channel");
        let mut unsynced = 0;
        let mut pace = Pace::default();
        loop {
            let height = self.start.store.height();
            let reached = wanted.is_none_or(|number| height > number);
            if reached && unsynced > 0 || unsynced >= BLOCKS_A_SYNC {
                self.sync().await?;
                unsynced = 0;
            }
            if reached {
                self.arrived().await?;
                let is_member = (self.start.is_member)(&self.start.config);
                if is_member {
                    info!(target: LOG, channel = %name, height, "This orderer is a consenter of the channel from now on");
                }
                if is_member || !self.start.stays {
                    (self.start.ended)();
                    return Ok(());
                }
            }
            let block = match puller.pull(height).await {
                Ok(block) => block,
                // It has been logged, and there is nothing else to do here.
                Err(_) => continue,
            };
            if !self.create(&block).await {
                return Ok(());
            }
            self.start.store.append(&block)?;
            unsynced += 1;
            self.show(&mut pace, wanted, puller.source_height());
            if block.last_config() == Some(block.number()) {
                self.learn(&block, &mut puller);
            }
        }
    }

    /// Has the channel created that a block of a system channel asks for, before the block is there. `false`: that is not
    /// possible, and has been told.
    async fn create(&self, block: &StoredBlock) -> bool {
        let Some(creation) = &self.start.creation else {
            return true;
        };
        let created = match CreatedChannel::from_block(&block.block()) {
            Ok(None) => return true,
            Ok(Some(created)) => {
                let name = created.channel_id.clone();
                let outcome = creation.create(created).await;
                outcome.map_err(|reason| format!("channel {name} cannot be created: {reason}"))
            }
            Err(reason) => Err(reason.to_string()),
        };
        if let Err(reason) = &created {
            error!(target: LOG, channel = %self.start.name, "Block [{}] cannot be taken over: {reason}", block.number());
            self.state.send_modify(|state| state.failed = true);
        }
        created.is_ok()
    }

    /// Shows how far it is, if it is behind.
    fn show(&self, pace: &mut Pace, wanted: Option<u64>, source: Option<u64>) {
        let start = &self.start;
        let height = start.store.height();
        let wanted = wanted.map_or(0, |number| number.saturating_add(1));
        let target = wanted.max(source.unwrap_or(0)).max(height);
        let Some(look) = pace.look(start.puller.clock.monotonic(), height, target) else {
            return;
        };
        let progress = (height < target).then_some(look.progress);
        if look.is_due && progress.is_some() {
            info!(target: LOG, channel = %start.name, "Replicating: {}", look.progress);
        }
        start.metrics.show(&start.name, progress.as_ref());
        self.state.send_if_modified(|state| {
            let changed = state.progress != progress;
            state.progress = progress;
            changed
        });
    }

    /// The height of whoever is furthest ahead.
    async fn newest(&self, puller: &Puller) -> u64 {
        loop {
            match puller.heights().await {
                Ok(heights) => return heights.into_values().max().unwrap_or_default(),
                Err(failure) => {
                    warn!(target: LOG, channel = %self.start.name, "No other orderer says how far the channel is: {failure}");
                    let retry = self.start.puller.options.retry_timeout;
                    self.start.puller.clock.sleep(retry).await;
                }
            }
        }
    }

    fn puller(&self) -> Result<Puller, StoreError> {
        let start = &self.start;
        let newest = match start.store.height().checked_sub(1) {
            Some(number) => start.store.read(number)?,
            None => None,
        };
        let mut verifier = match &newest {
            Some(newest) => ChainVerifier::new(
                &start.name,
                Some(start.config.clone()),
                Some(newest.header().clone()),
            ),
            None => ChainVerifier::new(&start.name, None, None),
        };
        if let Target::Block(block) = &start.target {
            verifier = verifier.expect(block.number(), *block.header_hash());
        }
        let sources = start.config.orderer_endpoints();
        Ok(Puller::new(
            start.puller.clone(),
            &start.name,
            sources,
            Some(verifier),
        ))
    }

    /// A verified configuration block has come.
    fn learn(&mut self, block: &StoredBlock, puller: &mut Puller) {
        match ChannelConfig::from_block(&block.block()) {
            Ok(config) => {
                let config = Arc::new(config);
                // While the join block is ahead, it is the newer one.
                let known = self.start.config.sequence();
                if config.sequence() >= known {
                    puller.update_sources(config.orderer_endpoints());
                    self.start.config = config;
                    let is_member = (self.start.is_member)(&self.start.config);
                    self.state.send_modify(|state| state.is_member = is_member);
                }
            }
            Err(reason) => {
                error!(target: LOG, channel = %self.start.name, "The configuration in block [{}] cannot be used: {reason}", block.number());
            }
        }
    }

    async fn arrived(&mut self) -> Result<(), StoreError> {
        if !self.state.borrow().onboarding {
            return Ok(());
        }
        if let Target::Eviction(_) = self.start.target {
            info!(target: LOG, channel = %self.start.name, "Pulled all blocks up to eviction block.");
        }
        let (ledgers, name) = (self.start.ledgers.clone(), self.start.name.clone());
        blocking("removal of a join block", move || {
            ledgers.remove_join_block(&name)
        })
        .await
        .unwrap_or(Ok(()))?;
        self.state.send_modify(|state| state.onboarding = false);
        Ok(())
    }

    async fn sync(&self) -> Result<(), StoreError> {
        let store = self.start.store.clone();
        blocking("sync of blocks", move || store.sync())
            .await
            .unwrap_or(Ok(0))
            .map(drop)
    }
}
