//! The one who knows what this orderer is to its channels, and changes it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use quorate_consensus::GroupId;
use quorate_fabric::config::ChannelConfig;
use quorate_runtime::Tasks;
use quorate_runtime::tasks::{blocking, chain};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{error, info, warn};

use super::consenter::{Chain, StartError};
use super::incarnation::IncarnationError;
use super::join::JoinBlock;
use super::system::ChannelCreation;
use super::{Consenter, Inactive, LOG, Part, Premises, RegistrarError, Table, describe};
use crate::admin::{ChannelInfo, ChannelStatus, ConsensusRelation, JoinError, RemoveError};
use crate::channel::{ChannelHandle, Creation, Halt};
use crate::deliver::Channel as _;
use crate::follower::{self, Follower, FollowerStart, Target};
use crate::store::{BlockStore, StoreError};

/// How long the tasks of a channel may take to stop before they are cut off, which loses nothing.
pub(super) const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// In clusters up to this size a leader is not asked for before blocks are delivered: Fabric does not, for one of two
/// orderers could never deliver alone.
const SMALL_CLUSTER: usize = 2;

/// What the registrar is asked, or told by a channel.
pub(super) enum Request {
    /// Join the channel of this block.
    Join(Bytes, oneshot::Sender<Result<ChannelInfo, JoinError>>),
    /// Leave a channel.
    Remove(String, oneshot::Sender<Result<(), RemoveError>>),
    /// A consenter has stopped.
    Halted(String, Life, Halt),
    /// A follower has ended, because it is to be a consenter, or because it was to come no further.
    Followed(String, Life),
    /// The system channel has created a channel, whose first block is on disk; answered when it is in the table.
    Created(String, oneshot::Sender<()>),
    /// A channel that is left to others seems to name us.
    Wanted(String),
    /// A channel has been left, or could not be.
    Left(String, Life, Result<(), String>),
}

/// Tells one part that we played in a channel from the next one, whose tasks may already run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Life(u64);

pub(super) struct Entry {
    pub(super) part: Part,
    life: Life,
    pub(super) tasks: Tasks,
}

pub(super) struct Desk {
    pub(super) premises: Arc<Premises>,
    pub(super) entries: BTreeMap<String, Entry>,
    /// The system channel's name.
    pub(super) system: Option<String>,
    pub(super) table: Arc<ArcSwap<Table>>,
    pub(super) requests: mpsc::Sender<Request>,
    tasks: Tasks,
    lives: u64,
}

impl Desk {
    pub(super) fn new(
        premises: Arc<Premises>,
        table: Arc<ArcSwap<Table>>,
        requests: mpsc::Sender<Request>,
        tasks: &Tasks,
    ) -> Self {
        Self {
            premises,
            entries: BTreeMap::new(),
            system: None,
            table,
            requests,
            tasks: tasks.clone(),
            lives: 0,
        }
    }

    /// Opens what is on disk.
    pub(super) async fn open(&mut self) -> Result<(), RegistrarError> {
        self.open_system().await?;
        let premises = self.premises.clone();
        let (channels, joins) = blocking("reading the folder of ledgers", move || {
            let channels = premises.ledgers.channels()?;
            Ok::<_, StoreError>((channels, premises.ledgers.join_blocks()?))
        })
        .await??;
        let names: BTreeSet<String> = channels.into_iter().chain(joins.keys().cloned()).collect();
        // The system channel comes last: what it creates is to be compared with all that there is.
        let is_system = |name: &String| self.system.as_ref() == Some(name);
        let (system, others): (Vec<String>, Vec<String>) =
            names.iter().cloned().partition(is_system);
        for name in others.into_iter().chain(system) {
            self.open_channel(&name, joins.get(&name)).await;
        }
        let kept = self.forget_strangers(names).await?;
        // Groups of channels that were left when the process died in the midst of it. Not those of channels that could not
        // be opened: what these have promised must be there when their ledgers were mended.
        let orphans: Vec<_> = std::mem::take(&mut *self.premises.unclaimed())
            .into_keys()
            .filter(|group| !kept.contains(group))
            .collect();
        for group in orphans {
            self.premises.log.remove(group, Box::new(|_| ()));
        }
        self.publish();
        match &self.system {
            // Scripts look for Fabric's beginning of it.
            None => {
                info!(target: LOG, "Registrar initializing without a system channel, number of application channels: {}", self.entries.len())
            }
            Some(system) => {
                info!(target: LOG, "Registrar initialized with the system channel {system}, number of channels: {}", self.entries.len())
            }
        }
        Ok(())
    }

    /// Opens a channel that is on disk, or a join block of one.
    pub(super) async fn open_channel(&mut self, name: &str, join: Option<&Bytes>) {
        let life = self.life();
        let tasks = self.tasks.child(&format!("channel {name}"));
        let part = match self.reopen(name, join, life, &tasks).await {
            Ok(Some(part)) => part,
            Ok(None) => {
                warn!(target: LOG, channel = %name, "Channel {name} has neither blocks nor a block to join with; ignoring it");
                return;
            }
            Err(reason) => {
                error!(target: LOG, channel = %name, "Channel {name} cannot be served: {reason}");
                failed(name, reason)
            }
        };
        self.entries
            .insert(name.to_owned(), Entry { part, life, tasks });
    }

    /// Forgets the names of groups whose channels were left when the process died in the midst of it: should such a
    /// channel be joined again, a name without a group would look like a lost log. Answers the groups of the others, of
    /// which some may belong to channels that we only follow at the moment.
    async fn forget_strangers(
        &self,
        known: BTreeSet<String>,
    ) -> Result<BTreeSet<GroupId>, RegistrarError> {
        let premises = self.premises.clone();
        let kept = blocking("removal of names of Raft groups", move || {
            let mut kept = BTreeSet::new();
            for channel in premises.incarnations.channels()? {
                if !known.contains(&channel) {
                    premises.incarnations.forget(&channel)?;
                } else if let Ok(Some(incarnation)) = premises.incarnations.read(&channel) {
                    kept.insert(incarnation.group());
                }
            }
            Ok::<_, IncarnationError>(kept)
        });
        Ok(kept.await??)
    }

    async fn reopen(
        &mut self,
        name: &str,
        join: Option<&Bytes>,
        life: Life,
        tasks: &Tasks,
    ) -> Result<Option<Part>, String> {
        let join = match join {
            None => None,
            Some(bytes) => match JoinBlock::judge(bytes.clone(), &self.premises) {
                Ok(join) if join.channel == name => Some(join),
                Ok(join) => {
                    return Err(format!(
                        "its join block is that of channel {}",
                        join.channel
                    ));
                }
                Err(reason) => return Err(format!("its join block cannot be used: {reason}")),
            },
        };
        let ledgers = self.premises.ledgers.clone();
        let (channel, wanted) = (name.to_owned(), join.is_some());
        let opened = blocking("opening a ledger", move || {
            if wanted {
                ledgers.get_or_create(&channel).map(Some)
            } else {
                ledgers.get(&channel)
            }
        });
        let Some(store) = flatten(opened.await)? else {
            return Ok(None);
        };
        if let Some(join) = join {
            if store.height() <= join.number() {
                return self.join_ledger(join, store, life, tasks).await.map(Some);
            }
            let (ledgers, channel) = (self.premises.ledgers.clone(), name.to_owned());
            let removed = blocking("removal of a join block", move || {
                ledgers.remove_join_block(&channel)
            });
            flatten(removed.await)?;
        }
        self.play(name, store, Target::Here, life, tasks).await
    }

    /// Takes the part that the chain's newest configuration gives us; `None` if there are no blocks. A follower has to come
    /// to `target` first.
    async fn play(
        &mut self,
        name: &str,
        store: BlockStore,
        target: Target,
        life: Life,
        tasks: &Tasks,
    ) -> Result<Option<Part>, String> {
        let (premises, owner, creation) = (self.premises.clone(), tasks.clone(), self.creation());
        let wants_to_serve = matches!(target, Target::Here);
        let started = blocking("starting a channel", move || {
            let Some(chain) = Chain::read(store)? else {
                return Ok(None);
            };
            Ok::<_, StartError>(Some(match chain.raft_id(&premises)? {
                Some(raft_id) if wants_to_serve => {
                    Started::Consenter(chain.serve(raft_id, &premises, creation, &owner)?)
                }
                _ => Started::Follower(chain.store, chain.config),
            }))
        });
        Ok(match flatten(started.await)? {
            None => None,
            Some(Started::Consenter(handle)) => Some(self.watch(name, handle, life, tasks)),
            Some(Started::Follower(store, config)) if self.system.is_some() => {
                Some(self.sideline(name, store, config, target, life, tasks))
            }
            Some(Started::Follower(store, config)) => {
                let follower = self.follow(name, store, config, target, life, tasks);
                info!(target: LOG, channel = %name, "Created and started a follower.Chain for channel {name}");
                Some(Part::Follower(follower))
            }
        })
    }

    fn creation(&self) -> Arc<dyn Creation> {
        Arc::new(ChannelCreation {
            ledgers: self.premises.ledgers.clone(),
            requests: self.requests.clone(),
        })
    }

    /// Leaves a channel to others, when its blocks have been copied up to `target`.
    fn sideline(
        &self,
        name: &str,
        store: BlockStore,
        config: Arc<ChannelConfig>,
        target: Target,
        life: Life,
        tasks: &Tasks,
    ) -> Part {
        let fetching = !matches!(target, Target::Here);
        self.premises.trust.learn(name, &config);
        if fetching {
            self.follow(name, store.clone(), config.clone(), target, life, tasks);
        } else {
            info!(target: LOG, channel = %name, "Adding {name} to the set of chains to track");
        }
        Part::Inactive(Arc::new(Inactive::new(name, store, config, fetching)))
    }

    /// Passes on what happens to a consenter.
    fn watch(&self, name: &str, handle: ChannelHandle, life: Life, tasks: &Tasks) -> Part {
        let (outage_out, outage) = watch::channel(false);
        let (mut leader, mut view, mut halted) = (handle.leader(), handle.view(), handle.halted());
        let (requests, channel) = (self.requests.clone(), name.to_owned());
        let premises = self.premises.clone();
        // Before anybody connects because of it.
        premises.trust.learn(name, &handle.config());
        tasks.spawn(format!("watch over channel {name}"), async move {
            loop {
                let seen = view.borrow_and_update().clone();
                premises.trust.learn(&channel, &seen.config);
                let small = seen.consenters.len() <= SMALL_CLUSTER;
                let leaderless = *leader.borrow_and_update() == 0;
                outage_out.send_if_modified(|outage| {
                    let before = std::mem::replace(outage, leaderless && !small);
                    before != *outage
                });
                let halt = halted.borrow_and_update().clone();
                if let Some(halt) = halt {
                    // Nobody listens any more when the process stops.
                    let _ = requests.send(Request::Halted(channel, life, halt)).await;
                    return;
                }
                let gone = tokio::select! {
                    changed = leader.changed() => changed.is_err(),
                    changed = view.changed() => changed.is_err(),
                    changed = halted.changed() => changed.is_err(),
                };
                // The channel's task was asked to stop, or has just said why it did.
                if gone && halted.borrow().is_none() {
                    return;
                }
            }
        });
        Part::Consenter(Arc::new(Consenter { handle, outage }))
    }

    fn follow(
        &self,
        name: &str,
        store: BlockStore,
        config: Arc<ChannelConfig>,
        target: Target,
        life: Life,
        tasks: &Tasks,
    ) -> Follower {
        let (premises, requests, channel) = (
            self.premises.clone(),
            self.requests.clone(),
            name.to_owned(),
        );
        let teller = tasks.clone();
        let creates = config.consortiums().is_some();
        follower::start(
            FollowerStart {
                name: name.to_owned(),
                store,
                ledgers: self.premises.ledgers.clone(),
                config,
                target,
                puller: self.premises.puller.clone(),
                metrics: self.premises.metrics.replication.clone(),
                is_member: Arc::new(move |config| premises.is_member(config)),
                stays: self.system.is_none(),
                creation: creates.then(|| self.creation()),
                ended: Box::new(move || {
                    teller.spawn("news of a follower's end", async move {
                        // Nobody listens any more when the process stops.
                        let _ = requests.send(Request::Followed(channel, life)).await;
                    });
                }),
            },
            tasks,
        )
    }

    /// Works until the process stops.
    pub(super) async fn run(mut self, mut incoming: mpsc::Receiver<Request>) {
        let shutdown = self.tasks.shutdown().clone();
        loop {
            let request = tokio::select! {
                () = shutdown.requested() => return,
                request = incoming.recv() => request,
            };
            match request {
                // We hold a sender ourselves.
                None => return,
                Some(Request::Join(block, reply)) => {
                    let outcome = self.join(block).await;
                    // Whoever has the answer finds the channel in the table.
                    self.publish();
                    let _ = reply.send(outcome);
                }
                Some(Request::Remove(name, reply)) => {
                    let outcome = match &self.system {
                        Some(system) if *system == name => self.leave_system(&name).await,
                        _ => self.leave(&name),
                    };
                    self.publish();
                    let _ = reply.send(outcome);
                }
                Some(Request::Left(name, life, outcome)) => self.left(&name, life, outcome),
                Some(Request::Halted(name, life, halt)) => self.halted(&name, life, halt).await,
                Some(Request::Followed(name, life)) => {
                    if self.is_current(&name, life) {
                        self.change(&name, Target::Here).await;
                    }
                }
                Some(Request::Created(name, reply)) => {
                    self.created(&name).await;
                    self.publish();
                    let _ = reply.send(());
                }
                Some(Request::Wanted(name)) => self.wanted(&name).await,
            }
            self.publish();
        }
    }

    async fn join(&mut self, block: Bytes) -> Result<ChannelInfo, JoinError> {
        let join = JoinBlock::judge(block.clone(), &self.premises)?;
        let name = join.channel.clone();
        match self.entries.get(&name).map(|entry| &entry.part) {
            Some(Part::Leaving(_)) => return Err(JoinError::PendingRemoval),
            Some(Part::Failed { leaving: true, .. }) => return Err(JoinError::RemovalFailed),
            _ if self.system.is_some() => return Err(JoinError::SystemChannelExists),
            Some(_) => return Err(JoinError::ChannelExists),
            None => {}
        }
        let is_system = join.config.consortiums().is_some();
        if is_system && !self.entries.is_empty() {
            return Err(JoinError::ApplicationChannelsExist);
        }
        let (life, tasks) = (self.life(), self.tasks.child(&format!("channel {name}")));
        let (ledgers, channel) = (self.premises.ledgers.clone(), name.clone());
        let saved = blocking("saving a join block", move || {
            ledgers.save_join_block(&channel, &block)?;
            ledgers.get_or_create(&channel)
        });
        let joined = match flatten(saved.await) {
            Ok(_) if is_system => self.join_system(join).await,
            Ok(store) => self.join_ledger(join, store, life, &tasks).await,
            Err(reason) => Err(reason),
        };
        match joined {
            Ok(part) => {
                let info = describe(&name, &part);
                info!(target: LOG, channel = %name, "Joining channel {name}: {}, {}", info.consensus_relation, info.status);
                self.entries.insert(name, Entry { part, life, tasks });
                Ok(info)
            }
            Err(reason) => {
                tasks.stop(STOP_PATIENCE).await;
                // Whatever was begun must not stand in the way of the next attempt.
                let (premises, channel) = (self.premises.clone(), name);
                let undone = blocking("undoing a join", move || erase(&premises, &channel));
                if let Err(undoing) = done(undone.await) {
                    error!(target: LOG, "What a failed join has left cannot be removed: {undoing}");
                }
                Err(join_failed(&reason))
            }
        }
    }

    /// Begins with a channel whose join block has not been reached.
    async fn join_ledger(
        &mut self,
        join: JoinBlock,
        store: BlockStore,
        life: Life,
        tasks: &Tasks,
    ) -> Result<Part, String> {
        let name = join.channel.clone();
        if join.number() == 0 && join.is_member {
            let (ledgers, channel) = (self.premises.ledgers.clone(), name.clone());
            let appended = blocking("writing a genesis block", move || {
                store.append(&join.block)?;
                store.sync()?;
                ledgers.remove_join_block(&channel)?;
                Ok::<_, StoreError>(store)
            });
            let store = flatten(appended.await)?;
            let part = self.play(&name, store, Target::Here, life, tasks).await?;
            return part.ok_or_else(|| "the genesis block was not written".to_owned());
        }
        let config = match blocking("reading a ledger", {
            let store = store.clone();
            move || Chain::read(store)
        })
        .await
        {
            Ok(Ok(Some(chain))) => chain.config,
            Ok(Ok(None)) => join.config,
            Ok(Err(error)) => return Err(chain(&error)),
            Err(failure) => return Err(failure.to_string()),
        };
        let target = Target::Block(join.block);
        let follower = self.follow(&name, store, config, target, life, tasks);
        info!(target: LOG, channel = %name, "Created and started a follower.Chain for channel {name}");
        Ok(Part::Follower(follower))
    }

    fn leave(&mut self, name: &str) -> Result<(), RemoveError> {
        let life = self.life();
        let has_system = self.system.is_some();
        let entry = match self.entries.get_mut(name) {
            Some(entry) if matches!(entry.part, Part::Leaving(_)) => {
                return Err(RemoveError::PendingRemoval);
            }
            _ if has_system => return Err(RemoveError::SystemChannelExists),
            Some(entry) if !matches!(entry.part, Part::Failed { leaving: true, .. }) => entry,
            _ => return Err(RemoveError::ChannelNotExist),
        };
        let consensus_relation = describe(name, &entry.part).consensus_relation;
        entry.part = Part::Leaving(ChannelInfo {
            name: name.to_owned(),
            consensus_relation,
            status: ChannelStatus::Inactive,
            height: 0,
        });
        entry.life = life;
        let (tasks, premises, requests) = (
            entry.tasks.clone(),
            self.premises.clone(),
            self.requests.clone(),
        );
        let name = name.to_owned();
        info!(target: LOG, channel = %name, "Removing channel {name}");
        self.tasks
            .spawn(format!("removal of channel {name}"), async move {
                premises.transport.remove(&name);
                premises.trust.forget(&name);
                tasks.stop(STOP_PATIENCE).await;
                let channel = name.clone();
                let erased =
                    blocking("removal of a channel", move || erase(&premises, &channel)).await;
                // Nobody listens any more when the process stops.
                let _ = requests.send(Request::Left(name, life, done(erased))).await;
            });
        Ok(())
    }

    fn left(&mut self, name: &str, life: Life, outcome: Result<(), String>) {
        if !self.is_current(name, life) {
            return;
        }
        match outcome {
            Ok(()) => {
                self.entries.remove(name);
                info!(target: LOG, channel = %name, "Channel {name} removed");
            }
            Err(reason) => {
                error!(target: LOG, channel = %name, "Channel {name} could not be removed: {reason}");
                if let Some(entry) = self.entries.remove(name) {
                    self.removal_failed(name, entry, reason);
                }
            }
        }
    }

    /// Shows a channel that could not be removed.
    pub(super) fn removal_failed(&mut self, name: &str, entry: Entry, reason: String) {
        let mut info = describe(name, &entry.part);
        info.status = ChannelStatus::Failed;
        let part = Part::Failed {
            info,
            leaving: true,
            reason,
        };
        self.entries
            .insert(name.to_owned(), Entry { part, ..entry });
    }

    async fn halted(&mut self, name: &str, life: Life, halt: Halt) {
        if !self.is_current(name, life) {
            return;
        }
        let target = match halt {
            Halt::Failed(reason) => {
                error!(target: LOG, channel = %name, "Channel {name} has stopped until the orderer is started again: {reason}");
                if let Some(entry) = self.entries.get_mut(name) {
                    let mut info = describe(name, &entry.part);
                    info.status = ChannelStatus::Failed;
                    entry.part = Part::Failed {
                        info,
                        leaving: false,
                        reason,
                    };
                }
                return;
            }
            Halt::Removed => Target::Here,
            Halt::Evicted(number) => {
                info!(target: LOG, channel = %name, "Periodic check is stopping.");
                Target::Eviction(number)
            }
            // We were removed, and added again, while we were away. Or somebody is mistaken about us: only the chain can tell,
            // and what we have promised is kept until it has. Forgetting a promise that still counts is what must not be; to
            // remember one that does not count any more does no harm.
            Halt::WrongId(_) => {
                self.premises.transport.remove(name);
                self.change(name, Target::Newest).await;
                return;
            }
        };
        self.premises.transport.remove(name);
        // The next time that we are a consenter is another life, with nothing to remember of this one.
        let (premises, channel) = (self.premises.clone(), name.to_owned());
        let forgotten = blocking("end of a Raft group", move || {
            forget_group(&premises, &channel)
        });
        if let Err(reason) = done(forgotten.await) {
            error!(target: LOG, channel = %name, "The Raft group of channel {name} cannot be forgotten: {reason}");
        }
        self.change(name, target).await;
    }

    /// Stops our part in a channel, and takes the one that the chain gives us.
    pub(super) async fn change(&mut self, name: &str, target: Target) {
        let (life, tasks) = (self.life(), self.tasks.child(&format!("channel {name}")));
        let Some(entry) = self.entries.get(name) else {
            return;
        };
        let store = match &entry.part {
            Part::Consenter(consenter) => consenter.handle.store().clone(),
            Part::Follower(follower) => follower.store().clone(),
            Part::Inactive(inactive) => inactive.store().clone(),
            Part::Leaving(_) | Part::Failed { .. } => return,
        };
        entry.tasks.stop(STOP_PATIENCE).await;
        let part = match self.play(name, store, target, life, &tasks).await {
            Ok(Some(part)) => part,
            Ok(None) => {
                error!(target: LOG, channel = %name, "Channel {name} has no blocks any more");
                failed(name, "it has no blocks any more".to_owned())
            }
            Err(reason) => {
                error!(target: LOG, channel = %name, "Channel {name} cannot be served: {reason}");
                failed(name, reason)
            }
        };
        self.entries
            .insert(name.to_owned(), Entry { part, life, tasks });
    }

    fn is_current(&self, name: &str, life: Life) -> bool {
        self.entries
            .get(name)
            .is_some_and(|entry| entry.life == life)
    }

    fn life(&mut self) -> Life {
        self.lives += 1;
        Life(self.lives)
    }

    fn publish(&self) {
        let parts = self.entries.iter();
        let table = Table {
            system: self.system.clone(),
            parts: parts
                .map(|(name, entry)| (name.clone(), entry.part.clone()))
                .collect(),
        };
        let shown = &self.premises.metrics.participation;
        for gone in self.table.load().parts.keys() {
            if !table.parts.contains_key(gone) {
                shown.consensus_relation.forget([gone]);
                shown.status.forget([gone]);
            }
        }
        for (name, part) in &table.parts {
            let info = describe(name, part);
            shown
                .consensus_relation
                .with([name])
                .set(info.consensus_relation.gauge());
            shown.status.with([name]).set(info.status.gauge());
        }
        self.table.store(Arc::new(table));
    }
}

enum Started {
    Consenter(ChannelHandle),
    Follower(BlockStore, Arc<ChannelConfig>),
}

fn failed(name: &str, reason: String) -> Part {
    Part::Failed {
        info: ChannelInfo {
            name: name.to_owned(),
            consensus_relation: ConsensusRelation::Other,
            status: ChannelStatus::Failed,
            height: 0,
        },
        leaving: false,
        reason,
    }
}

fn join_failed(reason: &str) -> JoinError {
    JoinError::Failed(reason.to_owned())
}

/// Forgets everything about a channel. The ledger goes first, and its removal is finished after a crash; what is left of
/// the group then is nobody's, and goes at the next start.
pub(super) fn erase(premises: &Premises, channel: &str) -> Result<(), String> {
    premises
        .ledgers
        .remove_join_block(channel)
        .and_then(|()| premises.ledgers.remove(channel))
        .map_err(|error| chain(&error))?;
    forget_group(premises, channel)
}

/// Forgets what a channel's Raft group has promised: it will never speak for that group again.
fn forget_group(premises: &Premises, channel: &str) -> Result<(), String> {
    let incarnations = &premises.incarnations;
    let kept = incarnations.read(channel);
    incarnations
        .forget(channel)
        .map_err(|error| chain(&error))?;
    if let Ok(Some(kept)) = kept {
        premises.log.remove(kept.group(), Box::new(|_| ()));
    }
    // In the first there is only what Fabric's orderer left there.
    for folder in [&premises.wal, &premises.snapshots] {
        let folder = folder.join(channel);
        match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(format!("cannot remove {}: {error}", folder.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Whether a blocking piece of work was done.
pub(super) fn done(
    outcome: Result<Result<(), String>, quorate_runtime::tasks::TaskFailure>,
) -> Result<(), String> {
    outcome.unwrap_or_else(|failure| Err(failure.to_string()))
}

/// What a blocking piece of work gave, or why it did not.
pub(super) fn flatten<T, E: std::error::Error + 'static>(
    outcome: Result<Result<T, E>, quorate_runtime::tasks::TaskFailure>,
) -> Result<T, String> {
    match outcome {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(chain(&error)),
        Err(failure) => Err(failure.to_string()),
    }
}
