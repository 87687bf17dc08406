//! Nodes, network and time of one run, all driven by one seed.
//!
//! Each node has a [`Store`], which survives, and a [`Machine`] with everything else, which a
//! crash takes away. Crashes happen at every boundary: before a commit is applied, after it is
//! applied and before the machine hears of it, after the machine has heard of it and before its
//! actions are carried out, while the host performs a request, between the inbox and the machine.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use quorate_flow::standard::{NOTARISE, Standard};
use quorate_flow::{
    Action, App, ClientId, Envelope, Event, FlowId, FlowRegistry, FlowStart, FlowStatus,
    FlowTimeout, HostError, HostRequest, InboxId, Limits, Machine, Origin, Owner, RetryPolicy,
    SessionMessage, StartRefused, StepCommit, Surroundings,
};
use quorate_identity::X500Name;
use quorate_ledger::network::NotaryInfo;
use quorate_ledger::{NotarisationAnswer, NotarisationMessage, NotaryError, Timestamp};

use crate::app::Simulated;
use crate::host::{self, Effects, cast};
use crate::rng::Rng;
use crate::store::Store;

const NODES: usize = 3;

/// After so many events a run that does not become quiet is not going to.
const MAX_EVENTS: u64 = 300_000;

/// How often operators look after stopped flows when faults have ceased.
const ROUNDS: i64 = 8;

/// The reason of every fault.
const WILL_OF_THE_SEED: &str = "as the seed will have it";

/// How much goes wrong, in thousandths.
#[derive(Debug, Default, Clone)]
pub(crate) struct Faults {
    crash: u64,
    refuse: u64,
    transient: u64,
    loss: u64,
    duplicate: u64,
    slow: u64,
    overload: u64,
    /// Crashes that are left.
    crashes: u32,
}

/// What a client wants of a node, asked again until it is recorded.
pub(crate) struct Request {
    pub(crate) node: usize,
    pub(crate) class: &'static str,
    pub(crate) arguments: String,
    pub(crate) client: ClientId,
}

enum Ev {
    Client(usize),
    Apply(Life, Box<StepCommit>),
    Fed(Life, Event),
    Discard(Life, InboxId, Option<Box<Envelope>>),
    Perform(Life, FlowId, u32, Box<HostRequest>),
    Load(Life, FlowId),
    Wake(Life),
    Desk(Life, InboxId),
    Transmit(usize, usize),
    Arrive(usize, usize, Vec<(u64, Vec<u8>)>),
    Settle(usize, usize, u64),
    Restart(usize),
    Order(usize),
    Drain(usize, bool),
    Calm,
    Round,
}

/// A node in one of its lives: what a former life had begun is void.
#[derive(Clone, Copy, PartialEq)]
struct Life(usize, u32);

pub(crate) struct Node {
    pub(crate) store: Store,
    pub(crate) machine: Option<Machine>,
    life: u32,
    woken: Option<Timestamp>,
    /// By destination: a transmission is under way or planned.
    sending: [bool; NODES],
    draining: bool,
}

pub(crate) struct World {
    rng: Rng,
    now: Timestamp,
    queue: BTreeMap<(Timestamp, u64), Ev>,
    events: u64,
    order: u64,
    pub(crate) nodes: Vec<Node>,
    pub(crate) requests: Vec<Request>,
    pub(crate) effects: Effects,
    /// Flows that an operator has killed.
    pub(crate) killed: u32,
    faults: Faults,
    kills: bool,
    calm: bool,
    notary_node: usize,
    validating: bool,
    limits: Limits,
    /// Messages are printed.
    trace: bool,
    pub(crate) crashes: u32,
}

fn registry() -> Arc<FlowRegistry> {
    static REGISTRY: OnceLock<Arc<FlowRegistry>> = OnceLock::new();
    Arc::clone(REGISTRY.get_or_init(|| {
        let mut registry = FlowRegistry::new();
        let apps: [&dyn App; 2] = [&Standard, &Simulated];
        for app in apps {
            registry.install(app).expect("no name twice");
        }
        Arc::new(registry)
    }))
}

impl World {
    pub(crate) fn new(seed: u64, trace: bool) -> Self {
        let mut rng = Rng::new(seed);
        let some = |rng: &mut Rng, choices: &[u64]| *rng.pick(choices);
        let faults = Faults {
            crash: some(&mut rng, &[0, 5, 20, 60]),
            refuse: some(&mut rng, &[0, 0, 10, 40]),
            transient: some(&mut rng, &[0, 50, 300]),
            loss: some(&mut rng, &[0, 50, 300]),
            duplicate: some(&mut rng, &[0, 100, 300]),
            slow: some(&mut rng, &[0, 20, 100]),
            overload: some(&mut rng, &[0, 0, 200]),
            crashes: 40,
        };
        let (kills, validating) = (rng.permille(100), rng.permille(300));
        let flows = if validating || rng.permille(800) {
            1_000
        } else {
            3
        };
        let limits = Limits {
            flows,
            ..Limits::default()
        };
        let nodes = (0..NODES)
            .map(|node| {
                let mut store = Store::default();
                store.our_keys.insert(cast().keys[node].public().clone());
                Node {
                    store,
                    machine: None,
                    life: 0,
                    woken: None,
                    sending: [false; NODES],
                    draining: false,
                }
            })
            .collect();
        let mut world = Self {
            notary_node: rng.below(NODES as u64) as usize,
            rng,
            now: Timestamp::from_seconds(1_750_000_000),
            queue: BTreeMap::new(),
            events: 0,
            order: 0,
            nodes,
            requests: Vec::new(),
            effects: Effects::new(),
            killed: 0,
            faults,
            kills,
            calm: false,
            validating,
            limits,
            trace,
            crashes: 0,
        };
        for node in 0..NODES {
            world.restart(node);
        }
        world
    }

    pub(crate) fn rng(&mut self) -> &mut Rng {
        &mut self.rng
    }

    /// Whether flows that answer others are few enough to wait for each other in a circle.
    pub(crate) fn crowded(&self) -> bool {
        self.limits.flows < 1_000
    }

    pub(crate) fn name(&self, node: usize) -> &'static X500Name {
        &cast().parties[node].name
    }

    /// Plans a client's request for some time between these, in microseconds.
    pub(crate) fn request(
        &mut self,
        (from, until): (i64, i64),
        node: usize,
        class: &'static str,
        arguments: String,
    ) {
        let number = self.requests.len();
        self.requests.push(Request {
            node,
            class,
            arguments,
            client: ClientId::new(format!("request {number}")).expect("a client id"),
        });
        let wait = self.rng.between(from, until);
        self.plan(wait, Ev::Client(number));
    }

    /// Runs until nothing is left to happen; faults cease half-way.
    pub(crate) fn run(&mut self) {
        self.plan(6_000_000, Ev::Calm);
        for round in 1..=ROUNDS {
            self.plan(6_000_000 + round * 1_000_000, Ev::Round);
        }
        for _ in 0..self.rng.below(12) {
            let wait = self.rng.between(0, 5_000_000);
            let node = self.rng.below(NODES as u64) as usize;
            self.plan(wait, Ev::Order(node));
        }
        if self.rng.permille(300) {
            let wait = self.rng.between(0, 3_000_000);
            let node = self.rng.below(NODES as u64) as usize;
            self.plan(wait, Ev::Drain(node, true));
            let until = wait + self.rng.between(0, 2_000_000);
            self.plan(until, Ev::Drain(node, false));
        }
        self.exhaust();
    }

    /// Operators let go on whatever is stopped.
    fn round(&mut self) {
        for node in 0..NODES {
            let views = self.nodes[node].machine.iter().flat_map(Machine::views);
            let stopped: Vec<FlowId> = views
                .filter(|view| matches!(view.status, FlowStatus::Paused | FlowStatus::Hospitalised))
                .map(|view| view.flow)
                .collect();
            for flow in stopped {
                self.feed(node, Event::Retry { flow });
            }
        }
    }

    fn exhaust(&mut self) {
        while let Some(((at, _), event)) = self.queue.pop_first() {
            self.now = at;
            self.events += 1;
            assert!(self.events < MAX_EVENTS, "the run does not become quiet");
            self.happen(event);
        }
    }

    fn plan(&mut self, micros: i64, event: Ev) {
        self.order += 1;
        let at = self.now + Duration::from_micros(micros.max(0) as u64);
        self.queue.insert((at, self.order), event);
    }

    fn say(&self, node: usize, what: impl FnOnce() -> String) {
        if self.trace {
            println!("{} {} {}", self.now, self.name(node).organisation(), what());
        }
    }

    fn chance(&mut self, permille: u64) -> bool {
        !self.calm && self.rng.permille(permille)
    }

    /// Whether this is where the node dies; if so, it is dead.
    fn crashes(&mut self, node: usize, place: &str) -> bool {
        let crash = self.faults.crash;
        if self.faults.crashes == 0 || !self.chance(crash) {
            return false;
        }
        self.faults.crashes -= 1;
        self.crashes += 1;
        self.say(node, || format!("CRASH {place}"));
        let state = &mut self.nodes[node];
        state.machine = None;
        state.life += 1;
        let wait = self.rng.between(1_000, 800_000);
        self.plan(wait, Ev::Restart(node));
        true
    }

    fn life(&self, node: usize) -> Life {
        Life(node, self.nodes[node].life)
    }

    fn lives(&self, life: Life) -> bool {
        self.life(life.0) == life && self.nodes[life.0].machine.is_some()
    }

    fn happen(&mut self, event: Ev) {
        match event {
            Ev::Client(request) => self.ask(request),
            Ev::Apply(life, step) if self.lives(life) => self.apply(life.0, &step),
            Ev::Fed(life, event) if self.lives(life) => self.feed(life.0, event),
            Ev::Discard(life, inbox, reply) if self.lives(life) => {
                self.discard(life.0, &inbox, reply.as_deref());
            }
            Ev::Perform(life, flow, sequence, request) if self.lives(life) => {
                self.perform(life.0, flow, sequence, &request);
            }
            Ev::Load(life, flow) if self.lives(life) => {
                if let Some(checkpoint) = self.nodes[life.0].store.checkpoint(flow) {
                    let event = Event::Restore {
                        checkpoint: Box::new(checkpoint),
                        seed: self.rng.bytes(),
                    };
                    let wait = self.rng.between(0, 3_000);
                    self.plan(wait, Ev::Fed(life, event));
                }
            }
            Ev::Wake(life) if self.lives(life) => {
                if self.nodes[life.0].woken == Some(self.now) {
                    self.nodes[life.0].woken = None;
                    self.feed(life.0, Event::Tick);
                }
            }
            Ev::Desk(life, inbox) if self.lives(life) => self.desk(life.0, &inbox),
            Ev::Transmit(from, to) => self.transmit(from, to),
            Ev::Arrive(from, to, batch) => self.arrive(from, to, &batch),
            Ev::Settle(from, to, up_to) => {
                if self.nodes[from].machine.is_some() {
                    let peer = self.name(to);
                    self.nodes[from].store.settled(peer, up_to);
                }
            }
            Ev::Restart(node) => self.restart(node),
            Ev::Order(node) => self.order(node),
            Ev::Drain(node, draining) => {
                self.nodes[node].draining = draining;
                if let Some(machine) = &mut self.nodes[node].machine {
                    machine.set_draining(draining);
                    self.feed(node, Event::Tick);
                }
            }
            Ev::Calm => self.calm = true,
            Ev::Round => self.round(),
            // Void: begun in a former life.
            Ev::Apply(..)
            | Ev::Fed(..)
            | Ev::Discard(..)
            | Ev::Perform(..)
            | Ev::Load(..)
            | Ev::Wake(..)
            | Ev::Desk(..) => {}
        }
    }

    fn restart(&mut self, node: usize) {
        let party = |n: usize| cast().parties[n].clone();
        let services = if node == self.notary_node {
            vec![cast().notary.clone()]
        } else {
            Vec::new()
        };
        let surroundings = Surroundings {
            me: party(node),
            services,
            parties: (0..NODES)
                .map(|n| (self.name(n).clone(), party(n)))
                .collect(),
            providers: BTreeMap::new(),
            flow_timeout: FlowTimeout::default(),
            notaries: vec![NotaryInfo {
                identity: cast().notary.clone(),
                validating: self.validating,
            }],
            parameters: None,
            contracts: Simulated
                .contracts()
                .iter()
                .map(|contract| (contract.name().to_owned(), contract.code()))
                .collect(),
        };
        let owner = Owner {
            instance: format!("instance {node}"),
            generation: u64::from(self.nodes[node].life),
        };
        let retries = RetryPolicy {
            attempts: 4,
            ..RetryPolicy::default()
        };
        let mut machine = Machine::new(
            registry(),
            Arc::new(surroundings),
            owner,
            self.limits.clone(),
            retries,
        );
        machine.set_draining(self.nodes[node].draining);
        self.nodes[node].machine = Some(machine);
        self.nodes[node].woken = None;
        self.say(node, || "starts".to_owned());
        let life = self.life(node);
        let flows: Vec<FlowId> = self.nodes[node].store.flows.keys().copied().collect();
        for flow in flows {
            if let Some(checkpoint) = self.nodes[node].store.checkpoint(flow) {
                let seed = self.rng.bytes();
                let checkpoint = Box::new(checkpoint);
                self.feed(node, Event::Restore { checkpoint, seed });
            }
            if !self.lives(life) {
                return;
            }
        }
        let inbox: Vec<InboxId> = self.nodes[node].store.inbox.keys().cloned().collect();
        for id in inbox {
            self.deliver(node, id);
            if !self.lives(life) {
                return;
            }
        }
        for to in 0..NODES {
            self.pump(node, to);
        }
    }

    /// Gives an event to the machine and carries out what it says.
    fn feed(&mut self, node: usize, event: Event) {
        let heard_of_commit = matches!(event, Event::Committed { .. });
        let now = self.now;
        let Some(machine) = &mut self.nodes[node].machine else {
            return;
        };
        let traced = self.trace.then(|| format!("{event:?}"));
        let actions = machine.handle(now, event);
        let wakeup = machine.next_wakeup();
        self.say(node, || brief(&traced.unwrap_or_default()));
        if heard_of_commit && self.crashes(node, "before actions") {
            return;
        }
        let life = self.life(node);
        for action in actions {
            self.say(node, || brief(&format!("  -> {action:?}")));
            let wait = self.rng.between(50, 4_000);
            match action {
                Action::Commit(step) => {
                    self.examine(node, &step);
                    self.plan(wait, Ev::Apply(life, step));
                }
                Action::Discard { inbox, reply } => {
                    self.plan(wait, Ev::Discard(life, inbox, reply));
                }
                Action::Execute {
                    flow,
                    sequence,
                    request,
                } => self.plan(wait, Ev::Perform(life, flow, sequence, Box::new(request))),
                Action::Load { flow } => self.plan(wait, Ev::Load(life, flow)),
            }
        }
        if let Some(at) = wakeup
            && self.nodes[node].woken.is_none_or(|planned| at < planned)
        {
            let at = at.max(self.now);
            self.nodes[node].woken = Some(at);
            self.plan(at.since(self.now).as_micros() as i64, Ev::Wake(life));
        }
    }

    /// Nothing brings a flow into the hospital but what the seed has sent.
    fn examine(&self, node: usize, step: &StepCommit) {
        if step.status == FlowStatus::Hospitalised {
            let view = self.nodes[node]
                .machine
                .as_ref()
                .and_then(|m| m.view(step.flow));
            let ailment = view.and_then(|view| view.ailment).unwrap_or_default();
            assert!(
                ailment.contains(WILL_OF_THE_SEED),
                "flow {} is ill: {ailment}",
                step.flow
            );
        }
    }

    fn apply(&mut self, node: usize, step: &StepCommit) {
        let flow = step.flow;
        if self.crashes(node, "before commit") {
            return;
        }
        let life = self.life(node);
        let refuse = self.faults.refuse;
        let refused = if self.chance(refuse) {
            Some(WILL_OF_THE_SEED.to_owned())
        } else {
            let notary_node = self.notary_node;
            let served = |name: &X500Name| served_by(name, notary_node);
            let applied = self.nodes[node].store.apply(step, served);
            if let Err(reason) = applied {
                panic!("the store of node {node} refuses a step of flow {flow}: {reason}");
            }
            None
        };
        let wait = self.rng.between(0, 1_000);
        if let Some(reason) = refused {
            self.say(node, || format!("refuses a step of {flow}"));
            self.plan(wait, Ev::Fed(life, Event::CommitFailed { flow, reason }));
            return;
        }
        self.say(node, || format!("commits a step of {flow}"));
        for to in 0..NODES {
            self.pump(node, to);
        }
        if !self.crashes(node, "after commit") {
            self.plan(wait, Ev::Fed(life, Event::Committed { flow }));
        }
    }

    fn discard(&mut self, node: usize, inbox: &InboxId, reply: Option<&Envelope>) {
        let notary_node = self.notary_node;
        let store = &mut self.nodes[node].store;
        assert!(
            store.inbox.remove(inbox).is_some(),
            "node {node} discards {inbox:?}, which is not there"
        );
        if let Some(reply) = reply {
            store.enqueue(reply, |name| served_by(name, notary_node));
        }
        for to in 0..NODES {
            self.pump(node, to);
        }
    }

    fn perform(&mut self, node: usize, flow: FlowId, sequence: u32, request: &HostRequest) {
        let transient = self.faults.transient;
        let result = if self.chance(transient) {
            Err(HostError::Transient(WILL_OF_THE_SEED.to_owned()))
        } else {
            host::answer(
                node,
                &mut self.nodes[node].store,
                &mut self.effects,
                self.now,
                (flow, sequence),
                request,
            )
        };
        if self.crashes(node, "during a request") {
            return;
        }
        let wait = if self.chance(50) {
            self.rng.between(0, 300_000)
        } else {
            self.rng.between(0, 2_000)
        };
        let event = Event::HostResult {
            flow,
            sequence,
            result,
        };
        self.plan(wait, Ev::Fed(self.life(node), event));
    }

    fn deliver(&mut self, node: usize, id: InboxId) {
        let Some(envelope) = self.nodes[node].store.inbox.get(&id).cloned() else {
            return;
        };
        let for_desk = !self.validating
            && envelope.recipient == cast().notary.name
            && matches!(&envelope.body, SessionMessage::Initiate { flow, .. } if flow == NOTARISE);
        if for_desk {
            let wait = self.rng.between(100, 5_000);
            self.plan(wait, Ev::Desk(self.life(node), id));
            return;
        }
        let seed = self.rng.bytes();
        let event = Event::Deliver {
            inbox: id,
            envelope: Box::new(envelope),
            seed,
        };
        self.feed(node, event);
    }

    /// The non-validating notary: request, decision and answer in one commit.
    fn desk(&mut self, node: usize, inbox: &InboxId) {
        let overload = self.faults.overload;
        let overloaded = self.chance(overload);
        let (notary_node, owner) = (
            self.notary_node,
            Owner {
                instance: "desk".to_owned(),
                generation: 0,
            },
        );
        let store = &mut self.nodes[node].store;
        let envelope = store.inbox.remove(inbox).expect("only the desk takes it");
        let SessionMessage::Initiate {
            first: Some(payload),
            ..
        } = &envelope.body
        else {
            panic!("a request to a notary comes with the first message");
        };
        let message = NotarisationMessage::decode(payload).expect("a request");
        let requester = cast().parties.iter().find(|p| p.name == envelope.sender);
        let answer = if overloaded {
            NotarisationAnswer::Refused(NotaryError::Overloaded {
                retry_after_millis: 40,
            })
        } else {
            host::notarise(store, requester.expect("a known party"), &message)
        };
        let reply = Envelope::new(
            cast().notary.name.clone(),
            envelope.sender,
            (envelope.session, false),
            0,
            owner,
            SessionMessage::Data {
                payload: answer.encode(),
                last: true,
            },
        );
        store.enqueue(&reply, |name| served_by(name, notary_node));
        for to in 0..NODES {
            self.pump(node, to);
        }
    }

    /// Sees to it that a transmission is under way if there is something to send.
    fn pump(&mut self, from: usize, to: usize) {
        let peer = self.name(to);
        let node = &self.nodes[from];
        let waiting = node.store.outbox.get(peer).map_or(0, |o| o.waiting.len());
        if waiting > 0 && !node.sending[to] && node.machine.is_some() {
            self.nodes[from].sending[to] = true;
            let wait = self.network_delay();
            self.plan(wait, Ev::Transmit(from, to));
        }
    }

    fn network_delay(&mut self) -> i64 {
        let slow = self.faults.slow;
        if self.chance(slow) {
            self.rng.between(50_000, 1_500_000)
        } else {
            self.rng.between(100, 20_000)
        }
    }

    fn transmit(&mut self, from: usize, to: usize) {
        self.nodes[from].sending[to] = false;
        if self.nodes[from].machine.is_none() {
            return;
        }
        let size = 1 + self.rng.below(4) as usize;
        let peer = self.name(to);
        let queue: Option<&VecDeque<_>> =
            self.nodes[from].store.outbox.get(peer).map(|o| &o.waiting);
        let batch: Vec<_> = queue.into_iter().flatten().take(size).cloned().collect();
        if batch.is_empty() {
            return;
        }
        let (loss, duplicate) = (self.faults.loss, self.faults.duplicate);
        if self.chance(duplicate) {
            let wait = self.network_delay();
            self.plan(wait, Ev::Arrive(from, to, batch.clone()));
        }
        if !self.chance(loss) {
            self.arrive(from, to, &batch);
        }
        // What is settled by then has left the queue; the rest is sent again.
        self.nodes[from].sending[to] = true;
        let wait = self.network_delay() + 5_000;
        self.plan(wait, Ev::Transmit(from, to));
    }

    fn arrive(&mut self, from: usize, to: usize, batch: &[(u64, Vec<u8>)]) {
        if self.nodes[to].machine.is_none() {
            return;
        }
        let peer = self.name(from);
        let (new, mark) = self.nodes[to].store.receive(peer, batch);
        let loss = self.faults.loss;
        if !self.chance(loss) {
            let wait = self.network_delay() / 4;
            self.plan(wait, Ev::Settle(from, to, mark));
        }
        let life = self.life(to);
        for id in new {
            if !self.lives(life) || self.crashes(to, "between inbox and machine") {
                return;
            }
            self.deliver(to, id);
        }
    }

    /// An operator meddles with some flow.
    fn order(&mut self, node: usize) {
        let Some(machine) = &self.nodes[node].machine else {
            return;
        };
        let flows: Vec<FlowId> = machine.views().map(|view| view.flow).collect();
        if flows.is_empty() {
            return;
        }
        let flow = *self.rng.pick(&flows);
        if self.kills && self.rng.permille(500) {
            self.killed += 1;
            self.feed(node, Event::Kill { flow });
            return;
        }
        self.feed(node, Event::Pause { flow });
        let life = self.life(node);
        for _ in 0..1 + self.rng.below(2) {
            let wait = self.rng.between(0, 30_000);
            self.plan(wait, Ev::Fed(life, Event::Retry { flow }));
            if self.rng.permille(300) {
                let wait = self.rng.between(0, 30_000);
                self.plan(wait, Ev::Fed(life, Event::Pause { flow }));
            }
        }
    }

    /// A client asks until its request is recorded.
    fn ask(&mut self, number: usize) {
        let Request {
            node,
            class,
            ref arguments,
            ref client,
        } = self.requests[number];
        let recorded = self.nodes[node].store.clients.contains_key(client);
        if recorded {
            return;
        }
        let (arguments, client) = (arguments.clone(), client.clone());
        if let Some(machine) = &self.nodes[node].machine {
            let pending = machine
                .views()
                .any(|view| view.client_id.as_ref() == Some(&client));
            if !pending {
                match machine.check_start(class, &arguments) {
                    Ok(()) => {
                        let start = FlowStart {
                            class: class.to_owned(),
                            arguments,
                            client_id: Some(client),
                            origin: Origin::Rpc {
                                user: "user".to_owned(),
                            },
                            started_at: self.now,
                        };
                        let (flow, seed) = (FlowId::from_bytes(self.rng.bytes()), self.rng.bytes());
                        self.feed(
                            node,
                            Event::Start {
                                flow,
                                start,
                                trace: None,
                                seed,
                            },
                        );
                    }
                    Err(StartRefused::Draining | StartRefused::Busy { .. }) => {}
                    Err(refused) => panic!("{refused}"),
                }
            }
        }
        let wait = self.rng.between(50_000, 400_000);
        self.plan(wait, Ev::Client(number));
    }
}

fn served_by(name: &X500Name, notary_node: usize) -> X500Name {
    if *name == cast().notary.name {
        cast().parties[notary_node].name.clone()
    } else {
        name.clone()
    }
}

fn brief(text: &str) -> String {
    text.chars().take(400).collect()
}
