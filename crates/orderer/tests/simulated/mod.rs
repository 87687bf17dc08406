//! A cluster of channel cores in one thread: a network, disks and a clock that obey a seed.
//!
//! Every node is a [`Channel`] with its chain and its log. The driver here does what the task does in a process:
//! performs actions in order, delivers what comes of them later. What a crash takes away is what a crash may take:
//! messages under way, submissions in memory, blocks that were not synced, writes that the disk had not confirmed.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use quorate_consensus::simulation::{Dice, Fault, SimDisk};
use quorate_consensus::{Group, GroupId, Log, LogOptions, Options, Write};
use quorate_fabric::block;
use quorate_fabric::config::ChannelConfig;
use quorate_fabric::envelope::{self, RawEnvelope};
use quorate_fabric::msp::LocalMsp;
use quorate_fabric::proto::common::{
    Block, BlockData, BlockHeader, ChannelHeader, ConfigEnvelope, HeaderType, Payload,
};
use quorate_fabric::proto::etcdraft::{BlockMetadata, ConfigMetadata};
use quorate_fabric::proto::orderer::ConsensusType;
use quorate_identity::UnixTime;
use quorate_orderer::channel::core::{
    Action, Channel, Event, ForwardId, Halt, Now, Setup, Ticket, View, applied_index,
};
use quorate_orderer::channel::{Ack, Submission, SubmitError};
use quorate_orderer::checks::{self, Kind, Rules, UpdateContext};
use quorate_orderer::cluster::ForwardError;
use quorate_orderer::store::StoredBlock;
use quorate_runtime::Entropy;

/// 2026-11-20, some hours after the fixtures were made.
pub(crate) const WALL: UnixTime = UnixTime(1_795_200_000);

const GROUP: GroupId = GroupId([7; 16]);

/// How many submissions are offered to a channel at once.
const BATCH: usize = 8;

/// Per cent of the messages that nobody verifies before they reach the core.
const UNVERIFIED: u64 = 20;

/// Per cent of those that meet a leader that does not verify what is forwarded to it.
const UNANSWERED: u64 = 30;

pub(crate) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/fabric")
}

pub(crate) fn read(path: impl AsRef<Path>) -> Bytes {
    let path = fixtures().join(path);
    std::fs::read(&path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        .into()
}

/// What happened to a submission.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Open,
    Acknowledged,
    Refused(String),
}

pub(crate) struct Node {
    pub(crate) core: Channel,
    pub(crate) chain: Vec<StoredBlock>,
    pub(crate) synced: usize,
    pub(crate) view: Option<View>,
    pub(crate) halted: Option<Halt>,
    pub(crate) snapshots: u64,
    /// How often it wanted blocks from elsewhere.
    pub(crate) asked: u64,
    log: Log,
    disk: Arc<SimDisk>,
    /// What the log's thread has not begun to write.
    unwritten: VecDeque<(Option<u64>, Write)>,
    waiting: VecDeque<(Ticket, Submission)>,
    /// Incarnation: what was under way to an earlier one does not arrive.
    life: u64,
}

impl Node {
    /// Nothing that was to fail will fail any more.
    pub(crate) fn mend(&self) {
        self.disk.fail_after(u64::MAX, Fault::Stop);
    }
}

enum Delivery {
    Message {
        from: u64,
        payload: Bytes,
        metadata: Bytes,
    },
    /// The log's thread takes the next write.
    Write,
    Submit(Submission),
    Forwarded(ForwardId, Result<(), ForwardError>),
    /// Blocks `first..=last`, as they were asked for so many times.
    Pull(u64, u64, u64),
}

pub(crate) struct World {
    pub(crate) nodes: BTreeMap<u64, Node>,
    pub(crate) down: BTreeMap<u64, (Vec<StoredBlock>, Arc<SimDisk>)>,
    pub(crate) now: Duration,
    pub(crate) dice: Dice,
    /// Per cent of consensus messages that are lost.
    pub(crate) loss: u64,
    /// Per cent of consensus messages that come twice.
    pub(crate) duplicates: u64,
    /// Milliseconds that a message takes at most.
    pub(crate) delay: u64,
    /// Milliseconds that fetching a few blocks takes.
    pub(crate) pull_delay: u64,
    /// Pairs that cannot talk.
    pub(crate) cut: BTreeSet<(u64, u64)>,
    pub(crate) outcomes: Vec<Outcome>,
    tickets: BTreeMap<(u64, Ticket), usize>,
    next_ticket: u64,
    next_life: u64,
    seed: u64,
    due: BTreeMap<(Duration, u64), (u64, u64, Delivery)>,
    next_due: u64,
    /// What anybody ever appended: header, consenter metadata and last configuration of each block. Nobody may append
    /// anything else there, now or later.
    truth: Vec<Decided>,
}

type Decided = (BlockHeader, Option<BlockMetadata>, u64);

/// Read once for all seeds: reading keys and certificates takes longer than electing a leader.
static SIGNERS: LazyLock<BTreeMap<u64, Arc<LocalMsp>>> =
    LazyLock::new(|| (1..=4).map(|id| (id, Arc::new(signer(id - 1)))).collect());
static CLIENT: LazyLock<LocalMsp> = LazyLock::new(|| {
    let folder = "crypto/peerOrganizations/org1.test/users/User1@org1.test/msp";
    LocalMsp::load(&fixtures().join(folder), "Org1MSP").unwrap()
});
/// The configurations in genesis blocks, for the same reason.
static BORN_WITH: Mutex<BTreeMap<[u8; 32], Arc<ChannelConfig>>> = Mutex::new(BTreeMap::new());

/// The genesis block of the channel `fixture` with another SnapshotIntervalSize.
pub(crate) fn genesis_with_snapshots_every(bytes: u32) -> StoredBlock {
    let mut block = Block::decode(read("genesis/fixture.block")).unwrap();
    let recorded = RawEnvelope::decode(block.data.as_ref().unwrap().data[0].clone()).unwrap();
    let mut payload = Payload::decode(recorded.payload().clone()).unwrap();
    let mut envelope = ConfigEnvelope::decode(&payload.data[..]).unwrap();
    let root = envelope.config.as_mut().unwrap().channel_group.as_mut();
    let orderer = root.unwrap().groups.get_mut("Orderer").unwrap();
    let value = orderer.values.get_mut("ConsensusType").unwrap();
    let mut consensus = ConsensusType::decode(&value.value[..]).unwrap();
    let mut metadata = ConfigMetadata::decode(&consensus.metadata[..]).unwrap();
    metadata.options.as_mut().unwrap().snapshot_interval_size = bytes;
    consensus.metadata = metadata.encode_to_vec();
    value.value = consensus.encode_to_vec();
    payload.data = envelope.encode_to_vec();
    let changed = RawEnvelope::new(&payload.encode_to_vec(), recorded.signature());
    let data = BlockData {
        data: vec![changed.encoded().clone()],
    };
    block.header.as_mut().unwrap().data_hash = block::data_hash(&data).to_vec().into();
    block.data = Some(data);
    StoredBlock::new(&block).unwrap()
}

fn signer(number: u64) -> LocalMsp {
    let path = format!(
        "crypto/ordererOrganizations/orderer.test/orderers/orderer{number}.orderer.test/msp"
    );
    LocalMsp::load(&fixtures().join(path), "OrdererOrgMSP").unwrap()
}

impl World {
    /// The channel `fixture` with its three consenters, Raft ids 1 to 3.
    pub(crate) fn new(seed: u64) -> Self {
        Self::with_genesis(
            seed,
            StoredBlock::decode(read("genesis/fixture.block")).unwrap(),
        )
    }

    pub(crate) fn with_genesis(seed: u64, genesis: StoredBlock) -> Self {
        let mut world = Self {
            nodes: BTreeMap::new(),
            down: BTreeMap::new(),
            now: Duration::from_secs(1),
            dice: Dice::new(seed),
            loss: 0,
            duplicates: 0,
            delay: 3,
            pull_delay: 3,
            cut: BTreeSet::new(),
            outcomes: Vec::new(),
            tickets: BTreeMap::new(),
            next_ticket: 0,
            next_life: 0,
            seed,
            due: BTreeMap::new(),
            next_due: 0,
            truth: Vec::new(),
        };
        for id in 1..=3 {
            let disk = Arc::new(SimDisk::new(seed ^ id));
            let log = Log::open_inline(disk.clone(), LogOptions::default())
                .unwrap()
                .0;
            let group = Group::create(
                GROUP,
                world.options(id, std::slice::from_ref(&genesis)),
                &[1, 2, 3],
                Arc::new(log.clone()),
            )
            .unwrap();
            world.add(id, vec![genesis.clone()], group, true, log, disk);
        }
        world
    }

    fn options(&self, id: u64, chain: &[StoredBlock]) -> Options {
        let (config, _) = config_of(chain);
        let options = quorate_fabric::config::raft_config::options(config.raft_metadata()).unwrap();
        Options {
            id,
            name: config.channel_id().to_owned(),
            election_tick: options.election_tick as usize,
            heartbeat_tick: options.heartbeat_tick as usize,
            max_inflight: options.max_inflight_blocks as usize,
            max_size_per_message: 1 << 20,
        }
    }

    fn add(
        &mut self,
        id: u64,
        chain: Vec<StoredBlock>,
        group: Group,
        born: bool,
        log: Log,
        disk: Arc<SimDisk>,
    ) {
        self.next_life += 1;
        let (config, last_config) = config_of(&chain);
        let setup = Setup {
            raft_id: id,
            config,
            newest: Arc::new(chain.last().unwrap().clone()),
            last_config,
            bytes_since_snapshot: 0,
            snapshot_block: 0,
            group: group.with_seed(self.seed ^ (self.next_life << 8) ^ id),
            born,
            signer: SIGNERS[&id].clone(),
            entropy: Entropy::seeded(self.seed ^ self.next_life),
            rules: Rules::default(),
            tick_override: None,
            eviction_suspicion: Duration::from_secs(600),
        };
        let core = Channel::new(setup, self.time()).unwrap();
        let node = Node {
            core,
            synced: chain.len(),
            chain,
            view: None,
            halted: None,
            snapshots: 0,
            asked: 0,
            log,
            disk,
            unwritten: VecDeque::new(),
            waiting: VecDeque::new(),
            life: self.next_life,
        };
        self.nodes.insert(id, node);
        self.perform(id);
    }

    fn time(&self) -> Now {
        Now {
            monotonic: self.now,
            wall: WALL,
        }
    }

    /// Ends a node as a power failure does.
    pub(crate) fn crash(&mut self, id: u64) {
        let mut node = self.nodes.remove(&id).unwrap();
        // What the log's thread had before it may have come as far as it pleases.
        while let Some((_, write)) = node.unwritten.pop_front() {
            if self.dice.chance(40) {
                break;
            }
            if self.dice.chance(40) {
                node.disk.fail_after(self.dice.below(3), Fault::Stop);
            }
            node.log.append(GROUP, write, Box::new(|_| ()));
        }
        node.disk.crash();
        let unsynced = (node.chain.len() - node.synced) as u64;
        let lost = self.dice.below(unsynced + 1) as usize;
        let keep = node.chain.len() - lost;
        node.chain.truncate(keep);
        self.down.insert(id, (node.chain, node.disk));
    }

    /// Starts a node that has crashed.
    pub(crate) fn restart(&mut self, id: u64) {
        let (chain, disk) = self.down.remove(&id).unwrap();
        let (log, recovered) = Log::open_inline(disk.clone(), LogOptions::default()).unwrap();
        let options = self.options(id, &chain);
        let entries = Arc::new(log.clone());
        let applied = applied_index(chain.last().unwrap()).unwrap();
        let found = recovered.into_iter().find(|found| found.group() == GROUP);
        let group = match found {
            Some(found) => Group::recover(found, options, applied, entries).unwrap(),
            // It crashed before it had written that it exists.
            None if id > 3 => Group::join(GROUP, options, entries).unwrap(),
            None => Group::create(GROUP, options, &[1, 2, 3], entries).unwrap(),
        };
        self.add(id, chain, group, false, log, disk);
    }

    /// Starts a new consenter with the chain of `from`.
    pub(crate) fn join(&mut self, id: u64, from: u64) {
        let chain = self.nodes[&from].chain.clone();
        let disk = Arc::new(SimDisk::new(self.seed ^ id));
        let log = Log::open_inline(disk.clone(), LogOptions::default())
            .unwrap()
            .0;
        let group = Group::join(GROUP, self.options(id, &chain), Arc::new(log.clone())).unwrap();
        self.add(id, chain, group, false, log, disk);
    }

    /// A signed message with this data.
    pub(crate) fn envelope(&mut self, data: &[u8]) -> RawEnvelope {
        let header = ChannelHeader {
            r#type: HeaderType::EndorserTransaction as i32,
            channel_id: "fixture".to_owned(),
            ..ChannelHeader::default()
        };
        let nonce = self.dice.roll().to_be_bytes();
        envelope::sign(&header, data.to_vec(), &nonce, &*CLIENT).unwrap()
    }

    /// Hands a message to a node, checked or left to the leader; answers under what number its outcome is found.
    pub(crate) fn submit(&mut self, node: u64, envelope: RawEnvelope, ack: Ack) -> usize {
        if self.dice.chance(UNVERIFIED) {
            return self.submit_unverified(node, envelope, ack);
        }
        let validated_at = self.nodes[&node].view.as_ref().unwrap().config.sequence();
        self.enqueue(
            node,
            Submission {
                envelope,
                kind: Kind::Normal,
                validated_at: Some(validated_at),
                ack,
            },
        )
    }

    /// Hands a message to a node that nobody has verified.
    pub(crate) fn submit_unverified(
        &mut self,
        node: u64,
        envelope: RawEnvelope,
        ack: Ack,
    ) -> usize {
        self.enqueue(
            node,
            Submission {
                envelope,
                kind: Kind::Normal,
                validated_at: None,
                ack,
            },
        )
    }

    /// Checks a configuration update at a node, and hands it over.
    pub(crate) fn update(&mut self, node: u64, update: &RawEnvelope) -> Result<usize, String> {
        let view = self.nodes[&node].view.clone().unwrap();
        let entropy = Entropy::seeded(self.dice.roll());
        let context = UpdateContext {
            config: &view.config,
            consenters: &view.consenters,
            active: &view.active,
            signer: SIGNERS[&node].as_ref(),
            entropy: &entropy,
        };
        let envelope = checks::update(&context, update, &Rules::default(), WALL)
            .map_err(|refusal| refusal.info)?;
        Ok(self.enqueue(
            node,
            Submission {
                envelope,
                kind: Kind::Config,
                validated_at: Some(view.config.sequence()),
                ack: Ack::Enqueued,
            },
        ))
    }

    fn enqueue(&mut self, node: u64, submission: Submission) -> usize {
        self.outcomes.push(Outcome::Open);
        let outcome = self.outcomes.len() - 1;
        self.next_ticket += 1;
        let ticket = Ticket(self.next_ticket);
        self.tickets.insert((node, ticket), outcome);
        self.nodes
            .get_mut(&node)
            .unwrap()
            .waiting
            .push_back((ticket, submission));
        self.turn(node);
        outcome
    }

    /// The node that all others follow, if there is one.
    pub(crate) fn leader(&self) -> Option<u64> {
        let mut leaders = self.nodes.iter().filter(|(id, node)| {
            node.halted.is_none() && node.core.gauges().is_leader && node.core.leader() == **id
        });
        let leader = *leaders.next()?.0;
        leaders.next().is_none().then_some(leader)
    }

    pub(crate) fn is_cut(&self, a: u64, b: u64) -> bool {
        self.cut.contains(&(a.min(b), a.max(b)))
    }

    pub(crate) fn cut_off(&mut self, node: u64) {
        for other in 1..=4 {
            self.cut.insert((node.min(other), node.max(other)));
        }
    }

    fn later(&mut self, to: u64, delivery: Delivery) {
        let Some(node) = self.nodes.get(&to) else {
            return;
        };
        let life = node.life;
        let longest = match delivery {
            Delivery::Pull(..) => self.pull_delay,
            _ => self.delay,
        };
        let delay = Duration::from_micros(500 + self.dice.below(longest * 1000));
        self.next_due += 1;
        self.due
            .insert((self.now + delay, self.next_due), (to, life, delivery));
    }

    /// Lets the next thing happen.
    pub(crate) fn step(&mut self) {
        let delivery = self.due.keys().next().map(|(at, _)| *at);
        let deadline = self
            .nodes
            .values()
            .filter(|node| node.halted.is_none())
            .map(|node| node.core.deadline())
            .min();
        let next = match (delivery, deadline) {
            (Some(a), Some(b)) => a.min(b),
            (Some(a), None) | (None, Some(a)) => a,
            // Everybody is down.
            (None, None) => {
                self.now += Duration::from_millis(10);
                return;
            }
        };
        self.now = self.now.max(next);
        if delivery == Some(next) {
            let (_, (to, life, delivery)) = self.due.pop_first().unwrap();
            if self.nodes.get(&to).is_some_and(|node| node.life == life) {
                self.deliver(to, delivery);
                self.turn(to);
            }
            return;
        }
        let ids: Vec<u64> = self.nodes.keys().copied().collect();
        for id in ids {
            let now = self.time();
            let node = self.nodes.get_mut(&id).unwrap();
            if node.halted.is_none() && node.core.deadline() <= now.monotonic {
                node.core.handle_time(now);
                self.turn(id);
            }
        }
    }

    fn deliver(&mut self, to: u64, delivery: Delivery) {
        let now = self.time();
        let event = match delivery {
            Delivery::Message {
                from,
                payload,
                metadata,
            } => {
                if self.is_cut(from, to) {
                    return;
                }
                Event::Message {
                    from,
                    payload,
                    metadata,
                }
            }
            Delivery::Write => {
                let node = self.nodes.get_mut(&to).unwrap();
                let Some((number, write)) = node.unwritten.pop_front() else {
                    return;
                };
                let durable = Arc::new(Mutex::new(false));
                let heard = durable.clone();
                node.log.append(
                    GROUP,
                    write,
                    Box::new(move |result| *heard.lock().unwrap() = result.is_ok()),
                );
                if !*durable.lock().unwrap() {
                    // The disk has failed: a process ends then, loudly.
                    self.crash(to);
                    return;
                }
                match number {
                    Some(number) => Event::Written(number),
                    None => return,
                }
            }
            Delivery::Submit(submission) => {
                self.next_ticket += 1;
                let ticket = Ticket(self.next_ticket);
                let node = self.nodes.get_mut(&to).unwrap();
                node.waiting.push_back((ticket, submission));
                return;
            }
            Delivery::Forwarded(id, result) => Event::Forwarded(id, result),
            // Asked for anew meanwhile.
            Delivery::Pull(.., asked) if asked < self.nodes[&to].asked => return,
            Delivery::Pull(first, last, asked) => {
                let source = self
                    .nodes
                    .iter()
                    .filter(|(id, node)| {
                        **id != to && !self.is_cut(**id, to) && node.chain.len() as u64 > first
                    })
                    .map(|(id, _)| *id)
                    .next();
                let Some(source) = source else {
                    self.later(to, Delivery::Pull(first, last, asked));
                    return;
                };
                let chain = &self.nodes[&source].chain;
                let blocks: Vec<StoredBlock> = chain
                    .iter()
                    .skip(first as usize)
                    .take((last - first + 1) as usize)
                    .take(3)
                    .cloned()
                    .collect();
                let next = first + blocks.len() as u64;
                if next <= last {
                    self.later(to, Delivery::Pull(next, last, asked));
                }
                Event::Pulled(blocks)
            }
        };
        self.nodes.get_mut(&to).unwrap().core.handle(now, event);
    }

    /// Performs what a node wants done, and offers what waits for it.
    fn turn(&mut self, id: u64) {
        loop {
            self.perform(id);
            let now = self.time();
            let Some(node) = self.nodes.get_mut(&id) else {
                return;
            };
            if node.waiting.is_empty() || !node.core.accepts_submissions() {
                return;
            }
            let batch: Vec<_> = node
                .waiting
                .drain(..node.waiting.len().min(BATCH))
                .collect();
            if node.halted.is_some() {
                for (ticket, _) in batch {
                    self.settle(
                        id,
                        ticket,
                        Err(SubmitError::Unavailable("stopped".to_owned())),
                    );
                }
                continue;
            }
            node.core.handle(now, Event::Submit(batch));
        }
    }

    /// A block is what it was wherever it was appended before, but for signatures.
    fn compare(&mut self, id: u64, stored: &StoredBlock) {
        let block = stored.block();
        let decided = (
            stored.header().clone(),
            block::consenter_metadata(&block).unwrap(),
            block::last_config(&block).unwrap(),
        );
        let number = stored.number();
        // Genesis blocks are nobody's decision.
        match self.truth.get(number as usize - 1) {
            Some(truth) => assert_eq!(
                *truth, decided,
                "seed {}: node {id}, block {number}",
                self.seed
            ),
            None => {
                assert_eq!(
                    self.truth.len() as u64,
                    number - 1,
                    "seed {}: a gap",
                    self.seed
                );
                self.truth.push(decided);
            }
        }
    }

    fn settle(&mut self, node: u64, ticket: Ticket, result: Result<(), SubmitError>) {
        // What other orderers forwarded has no outcome of its own.
        if let Some(outcome) = self.tickets.remove(&(node, ticket)) {
            self.outcomes[outcome] = match result {
                Ok(()) => Outcome::Acknowledged,
                Err(error) => Outcome::Refused(error.to_string()),
            };
        }
    }

    fn perform(&mut self, id: u64) {
        let Some(node) = self.nodes.get_mut(&id) else {
            // Its disk has just failed.
            return;
        };
        let actions = node.core.actions();
        for action in actions {
            let node = self.nodes.get_mut(&id).unwrap();
            match action {
                Action::Append(block) => {
                    assert_eq!(block.number(), node.chain.len() as u64, "node {id}");
                    node.chain.push(block.clone());
                    self.compare(id, &block);
                }
                Action::SyncBlocks => node.synced = node.chain.len(),
                Action::Persist { number, write } => {
                    node.unwritten.push_back((number, write));
                    self.later(id, Delivery::Write);
                }
                Action::SaveSnapshot(_) => node.snapshots += 1,
                Action::Send {
                    to,
                    payload,
                    metadata,
                } => {
                    if self.is_cut(id, to) || self.dice.chance(self.loss) {
                        continue;
                    }
                    let copies = 1 + usize::from(self.dice.chance(self.duplicates));
                    for _ in 0..copies {
                        let message = Delivery::Message {
                            from: id,
                            payload: payload.clone(),
                            metadata: metadata.clone(),
                        };
                        self.later(to, message);
                    }
                }
                Action::Forward {
                    id: forward,
                    to,
                    validated_at,
                    envelope,
                } => {
                    let result = if self.is_cut(id, to) || !self.nodes.contains_key(&to) {
                        Err(ForwardError::Failed("no connection".to_owned()))
                    } else if validated_at.is_none() && self.dice.chance(UNANSWERED) {
                        Err(ForwardError::Unchecked)
                    } else {
                        let envelope = RawEnvelope::decode(envelope).unwrap();
                        let header = checks::channel_header(&envelope).unwrap();
                        let kind = if header.is(HeaderType::Config) {
                            Kind::Config
                        } else {
                            Kind::Normal
                        };
                        self.later(
                            to,
                            Delivery::Submit(Submission {
                                envelope,
                                kind,
                                validated_at,
                                ack: Ack::Enqueued,
                            }),
                        );
                        Ok(())
                    };
                    self.later(id, Delivery::Forwarded(forward, result));
                }
                Action::Reply(ticket, result) => self.settle(id, ticket, result),
                Action::View(view) => node.view = Some(view),
                Action::CatchUp { first, last } => {
                    node.asked += 1;
                    let asked = node.asked;
                    self.later(id, Delivery::Pull(first, last, asked));
                }
                Action::Halt(halt) => node.halted = Some(halt),
                Action::Leader(_)
                | Action::Connect(_)
                | Action::SuspectEviction(_)
                | Action::CreateChannel(_) => {}
            }
        }
    }

    /// Lets things happen until `done`, at most for `patience` of the world's time.
    pub(crate) fn until(&mut self, what: &str, patience: u64, done: impl Fn(&World) -> bool) {
        let end = self.now + Duration::from_secs(patience);
        while !done(self) {
            assert!(
                self.now < end,
                "seed {}: {what} did not come about within {patience} s: {}",
                self.seed,
                self.describe()
            );
            self.step();
        }
    }

    /// Lets so many milliseconds pass.
    pub(crate) fn pass(&mut self, millis: u64) {
        let end = self.now + Duration::from_millis(millis);
        while self.now < end {
            self.step();
        }
    }

    pub(crate) fn describe(&self) -> String {
        self.nodes
            .iter()
            .map(|(id, node)| {
                format!(
                    "node {id}: height {}, asked for blocks {} times, leader {}, {:?}, waiting {}, {:?}",
                    node.chain.len(),
                    node.asked,
                    node.core.leader(),
                    node.halted,
                    node.waiting.len(),
                    node.core.gauges(),
                )
            })
            .collect::<Vec<_>>()
            .join("\n")
    }

    /// The chains are what was decided, as far as they go.
    pub(crate) fn check_chains(&self) {
        for (id, node) in &self.nodes {
            assert!(node.chain.len() <= self.truth.len() + 1, "node {id}");
            for (block, (header, ..)) in node.chain[1..].iter().zip(&self.truth) {
                assert_eq!(
                    block.header(),
                    header,
                    "node {id}, block {}",
                    block.number()
                );
            }
        }
    }

    /// A disk that fails after some more operations; what needs it then ends the process.
    pub(crate) fn break_disk(&mut self, id: u64) {
        let (after, fault) = (
            self.dice.below(20),
            [Fault::Broken, Fault::Full, Fault::Stop][self.dice.below(3) as usize],
        );
        if let Some(node) = self.nodes.get(&id) {
            node.disk.fail_after(after, fault);
        }
    }

    /// How often each envelope stands in the longest chain.
    pub(crate) fn ordered(&self) -> BTreeMap<Bytes, usize> {
        let longest = self
            .nodes
            .values()
            .map(|node| &node.chain)
            .max_by_key(|chain| chain.len())
            .unwrap();
        let mut counts = BTreeMap::new();
        for block in longest {
            for envelope in block.block().data.unwrap().data {
                *counts.entry(envelope).or_insert(0) += 1;
            }
        }
        counts
    }

    pub(crate) fn heights(&self) -> BTreeSet<usize> {
        self.nodes.values().map(|node| node.chain.len()).collect()
    }
}

/// The configuration in force at the end of a chain, and the number of its block.
fn config_of(chain: &[StoredBlock]) -> (Arc<ChannelConfig>, u64) {
    let newest = chain.last().unwrap().block();
    let number = block::last_config(&newest).unwrap();
    let stored = &chain[number as usize];
    let read = || Arc::new(ChannelConfig::from_block(&stored.block()).unwrap());
    if number > 0 {
        return (read(), number);
    }
    let mut known = BORN_WITH.lock().unwrap_or_else(PoisonError::into_inner);
    let config = known.entry(*stored.header_hash()).or_insert_with(read);
    (config.clone(), 0)
}
