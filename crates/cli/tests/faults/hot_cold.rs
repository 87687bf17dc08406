//! Two machines for PartyB and two for the notary on one PostgreSQL server, clients that keep paying, and a schedule of
//! faults drawn from a seed. Afterwards every payment that was accepted has been settled once, no state was spent twice,
//! all books agree, and at no time two instances wrote.
//!
//! Takeovers are timed and held to their bounds: see [`Kind::bound`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use quorate_ledger::TxId;
use quorate_rpc::{Client, Event, TrackFrom};
use quorate_testkit::postgres;
use rustix::process::Signal;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::support::books::{self, Books};
use crate::support::gate::Passage;
use crate::support::network::{Engine, Network, NodePlan, TAKEOVER, WAIT, run};
use crate::support::payments::{Load, Payer, Settled, issue};
use crate::support::{Alone, Chance, PATIENCE, millis, until, wanted};

/// Pauses between payments of the two clients.
const B_PAYS_EVERY: Duration = Duration::from_millis(150);
const A_PAYS_EVERY: Duration = Duration::from_millis(400);
/// Coins of each party, enough for all payments that can be under way during the longest fault.
const COINS: usize = 100;
const EACH: i64 = 1_000_000;
/// How long a fault lasts that ends by itself.
const LASTS: (Duration, Duration) = (Duration::from_millis(300), Duration::from_millis(2_500));
/// Quiet time before a fault.
const QUIET: (Duration, Duration) = (Duration::ZERO, Duration::from_millis(400));
/// How soon another instance serves after an orderly end.
const CLEAN: Duration = Duration::from_secs(1);

/// What can happen to a node with two machines. Most happen to the hot one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// `kill -9`; the other instance sees on the same machine that the process has ended.
    Kill,
    /// The same, but as if the machine were another one, of which nobody can tell whether it lives.
    Crash,
    /// SIGSTOP, and SIGCONT after the takeover.
    Stop,
    /// SIGTERM.
    Terminate,
    /// `quorate node handover`.
    HandOver,
    /// `kill -9` of the standby.
    KillCold,
    /// `kill -9` of both at once.
    KillBoth,
    /// Nothing passes between the hot one and the database, and nobody is told.
    DatabaseSilent,
    /// The hot one's connections to the database are cut, and it gets no new ones.
    DatabaseCut,
    /// As [`Self::DatabaseSilent`], for both.
    DatabaseSilentForBoth,
    /// As [`Self::DatabaseCut`], for both.
    DatabaseCutForBoth,
    /// The database server is stopped and started again.
    DatabaseStop,
    /// The database server crashes and recovers.
    DatabaseCrash,
    /// The other party's port is silent.
    PeerSilent,
    /// The other party's port is closed.
    PeerCut,
}

impl Kind {
    /// Those that happen to a node, and those that happen to all at once.
    const OF_A_NODE: [Self; 11] = [
        Self::Kill,
        Self::Crash,
        Self::Stop,
        Self::Terminate,
        Self::HandOver,
        Self::KillCold,
        Self::KillBoth,
        Self::DatabaseSilent,
        Self::DatabaseCut,
        Self::DatabaseSilentForBoth,
        Self::DatabaseCutForBoth,
    ];
    const OF_ALL: [Self; 4] = [
        Self::DatabaseStop,
        Self::DatabaseCrash,
        Self::PeerSilent,
        Self::PeerCut,
    ];

    /// How soon the other instance must serve, if this fault makes it take over.
    fn bound(self) -> Option<Duration> {
        match self {
            Self::Terminate | Self::HandOver => Some(CLEAN),
            Self::Kill | Self::Crash | Self::Stop | Self::DatabaseSilent | Self::DatabaseCut => {
                Some(WAIT + TAKEOVER)
            }
            _ => None,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_fails_no_payment_is_lost_or_doubled_and_one_writes_at_a_time() -> Result<()> {
    if postgres::skipped() {
        return Ok(());
    }
    let _alone = Alone::on_this_machine()?;
    let mut chance = Chance::new("hot_cold")?;
    let plan = [
        NodePlan::hot_cold("Notary", &["whenLost = STANDBY", "whenLost = EXIT"])
            .with_database_gate(),
        NodePlan::single("PartyA").with_peer_gate(),
        NodePlan::hot_cold("PartyB", &["whenLost = EXIT", "whenLost = STANDBY"])
            .with_database_gate(),
    ];
    let mut network = Network::make(Engine::Postgres, &plan).await?;
    network.start().await?;
    let b = Payer {
        client: network.client("PartyB")?,
        recipient: network.machine("PartyA").name.clone(),
        prefix: "from B",
    };
    let a = Payer {
        client: network.client("PartyA")?,
        recipient: network.machine("PartyB").name.clone(),
        prefix: "from A",
    };
    let witness = Witness::of(&b.client).await?;
    issue(&a.client, COINS, EACH).await?;
    issue(&b.client, COINS, EACH).await?;

    let began = Instant::now();
    let loads = [
        Load::at_rate(b.clone(), B_PAYS_EVERY),
        Load::at_rate(a.clone(), A_PAYS_EVERY),
    ];
    let faults = wanted("QUORATE_FAULTS", 40)?;
    let mut schedule = Vec::new();
    let mut times: BTreeMap<Kind, Vec<Duration>> = BTreeMap::new();
    let mut hurt = false;
    for number in 1..=faults {
        if schedule.is_empty() {
            schedule = shuffled(&mut chance);
        }
        let (kind, node) = schedule.pop().expect("it was just filled");
        sleep(chance.between(QUIET.0, QUIET.1)).await;
        let at = began.elapsed();
        let fault = Fault {
            kind,
            node,
            lasts: chance.between(LASTS.0, LASTS.1),
        };
        let told = format!(
            "fault {number}: {kind:?} of {node} for {}",
            millis(fault.lasts)
        );
        let took = fault
            .happen(&mut network)
            .await
            .with_context(|| told.clone())?;
        times.entry(kind).or_default().extend(took);
        let took = took.map_or_else(String::new, |took| format!("takeover {}, ", millis(took)));
        // Now and then the next fault happens to another node while this one has not recovered.
        let next = schedule.last().map_or(node, |(_, next)| *next);
        let overlapping =
            !hurt && node != "all" && next != node && next != "all" && chance.below(3) == 0;
        hurt = overlapping;
        let healed = if overlapping {
            "no time to recover".to_owned()
        } else {
            let healed = recover(&mut network, &loads)
                .await
                .with_context(|| told.clone())?;
            format!("well again after {}", millis(healed))
        };
        println!("{:>9} {told}; {took}{healed}", millis(at));
    }
    recover(&mut network, &loads).await?;
    let [from_b, from_a] = loads;
    let (from_b, from_a) = (from_b.stop().await?, from_a.stop().await?);
    tell(&times, began.elapsed(), &from_a, &from_b);

    a.ask_again(&from_a).await?;
    b.ask_again(&from_b).await?;
    books::at_rest(&network).await?;
    let issued = [
        ("PartyA", COINS as i64 * EACH),
        ("PartyB", COINS as i64 * EACH),
    ];
    let payments: [(_, _, &[Settled]); 2] =
        [("PartyB", "PartyA", &from_b), ("PartyA", "PartyB", &from_a)];
    books::reconcile(&network, &issued, &payments).await?;
    witness
        .check(&mut network, &[from_a, from_b].concat())
        .await?;
    network.finish().await
}

/// Every fault once, in an order drawn from the seed.
fn shuffled(chance: &mut Chance) -> Vec<(Kind, &'static str)> {
    let mut all: Vec<_> = ["PartyB", "Notary"]
        .into_iter()
        .flat_map(|node| Kind::OF_A_NODE.map(|kind| (kind, node)))
        .chain(Kind::OF_ALL.map(|kind| (kind, "all")))
        .collect();
    for last in (1..all.len()).rev() {
        all.swap(last, chance.below(last + 1));
    }
    all
}

fn tell(
    times: &BTreeMap<Kind, Vec<Duration>>,
    took: Duration,
    from_a: &[Settled],
    from_b: &[Settled],
) {
    println!(
        "{} payments of PartyA and {} of PartyB in {}",
        from_a.len(),
        from_b.len(),
        millis(took)
    );
    for (kind, times) in times.iter().filter(|(_, times)| !times.is_empty()) {
        let all: Vec<_> = times.iter().map(|took| took.as_millis()).collect();
        println!("takeover after {kind:?}: {all:?} ms");
    }
}

struct Fault {
    kind: Kind,
    node: &'static str,
    lasts: Duration,
}

impl Fault {
    /// Brings it about and takes it away again; how long the takeover took, if there had to be one.
    async fn happen(&self, network: &mut Network) -> Result<Option<Duration>> {
        let Self { kind, node, lasts } = *self;
        if node == "all" {
            match kind {
                Kind::PeerSilent | Kind::PeerCut => {
                    let gate = &network.peer_gates["PartyA"];
                    gate.set(if kind == Kind::PeerCut {
                        Passage::Cut
                    } else {
                        Passage::Silent
                    });
                    sleep(lasts).await;
                    gate.set(Passage::Open);
                }
                _ => restart_database(network, kind == Kind::DatabaseCrash, lasts).await?,
            }
            return Ok(None);
        }
        let (hot, cold) = roles(network, node).await?;
        let began = Instant::now();
        match kind {
            Kind::Kill => network.machine(&hot).kill()?,
            Kind::Crash => {
                let mut books = Books::open(&network.machine(&hot).database).await?;
                books.execute("UPDATE leases SET host = 'another'").await?;
                network.machine(&hot).kill()?;
            }
            Kind::Stop => network.machine(&hot).signal(Signal::STOP)?,
            Kind::Terminate => network.machine(&hot).signal(Signal::TERM)?,
            Kind::HandOver => {
                let mut command = network.machine(&hot).command(&["handover"]);
                tokio::task::spawn_blocking(move || run(&mut command)).await??;
            }
            Kind::KillCold => network.machine(&cold).kill()?,
            Kind::KillBoth => {
                network.machine(&hot).kill()?;
                network.machine(&cold).kill()?;
            }
            Kind::DatabaseSilent => block(network, &hot, Passage::Silent)?,
            Kind::DatabaseCut => block(network, &hot, Passage::Cut)?,
            Kind::DatabaseSilentForBoth | Kind::DatabaseCutForBoth => {
                let passage = if kind == Kind::DatabaseCutForBoth {
                    Passage::Cut
                } else {
                    Passage::Silent
                };
                block(network, &hot, passage)?;
                block(network, &cold, passage)?;
            }
            Kind::DatabaseStop | Kind::DatabaseCrash | Kind::PeerSilent | Kind::PeerCut => {
                bail!("{kind:?} does not happen to one node")
            }
        }
        let mut took = None;
        if let Some(bound) = kind.bound() {
            network.machine(&cold).serving().await?;
            let measured = began.elapsed();
            ensure!(
                measured <= bound,
                "{cold} served after {measured:?}, later than {bound:?}"
            );
            took = Some(measured);
        } else {
            sleep(lasts).await;
        }
        network.machine(&hot).signal(Signal::CONT)?;
        block(network, &hot, Passage::Open)?;
        block(network, &cold, Passage::Open)?;
        Ok(took)
    }
}

/// The labels of the hot machine and of the cold one.
async fn roles(network: &mut Network, node: &str) -> Result<(String, String)> {
    let (first, second) = (format!("{node}/1"), format!("{node}/2"));
    let of_first = network.machine(&first).role().await;
    let of_second = network.machine(&second).role().await;
    match (of_first.as_deref(), of_second.as_deref()) {
        (Some("active"), Some("standby")) => Ok((first, second)),
        (Some("standby"), Some("active")) => Ok((second, first)),
        roles => bail!("{node} was well a moment ago, and now its machines are {roles:?}"),
    }
}

fn block(network: &mut Network, label: &str, passage: Passage) -> Result<()> {
    let gate = network.machine(label).database_gate.as_ref();
    gate.context("these machines have gates")?.set(passage);
    Ok(())
}

async fn restart_database(network: &Network, crash: bool, down: Duration) -> Result<()> {
    let server = network.postgres.clone().context("this is on PostgreSQL")?;
    tokio::task::spawn_blocking(move || {
        if crash {
            server.kill()?;
        } else {
            server.stop()?;
        }
        std::thread::sleep(down);
        server.start_again()
    })
    .await??;
    Ok(())
}

/// Starts again whatever has ended, as a supervisor does, until every node has one hot machine and the others stand by,
/// and payments in both directions are settled.
async fn recover(network: &mut Network, loads: &[Load]) -> Result<Duration> {
    let from: Vec<u64> = loads.iter().map(Load::count).collect();
    until("recovery", PATIENCE, async || {
        if let Some(load) = loads.iter().find(|load| load.is_over()) {
            bail!("payments have ended early, after {}", load.count());
        }
        let mut all = BTreeMap::new();
        for machine in &mut network.machines {
            machine.spawn()?;
            let role = machine.role().await.unwrap_or_default();
            all.entry(machine.organisation)
                .or_insert_with(Vec::new)
                .push(role);
        }
        for (organisation, roles) in &all {
            let hot = roles.iter().filter(|role| *role == "active").count();
            let cold = roles.iter().filter(|role| *role == "standby").count();
            if hot != 1 || hot + cold != roles.len() {
                return Ok(Err(format!("{organisation} has the roles {roles:?}")));
            }
        }
        for (load, from) in loads.iter().zip(&from) {
            if load.count() < from + 2 {
                return Ok(Err(format!("payments stand at {}: {all:?}", load.count())));
            }
        }
        Ok(Ok(()))
    })
    .await
}

/// A client of PartyB that watches all the time: its connection's events, and the updates of the vault, which must come
/// without gap and without repetition whoever serves.
struct Witness {
    told: watch::Receiver<Told>,
    tasks: [JoinHandle<Result<()>>; 2],
}

#[derive(Debug, Default)]
struct Told {
    transactions: BTreeSet<TxId>,
    connects: u64,
    disconnects: u64,
}

impl Drop for Witness {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Witness {
    async fn of(client: &Client) -> Result<Self> {
        let mut tracker = client.vault_track(TrackFrom::Now).await?;
        let mut events = client.events();
        let sender = watch::Sender::new(Told::default());
        let told = sender.subscribe();
        let of_events = sender.clone();
        let listening = tokio::spawn(async move {
            let mut up = true;
            while let Some(event) = events.next().await {
                let connect = matches!(event, Event::Connected { .. });
                ensure!(connect != up, "an event out of turn: {event:?}");
                up = connect;
                of_events.send_modify(|told| {
                    told.connects += u64::from(connect);
                    told.disconnects += u64::from(!connect);
                });
            }
            Ok(())
        });
        let tracking = tokio::spawn(async move {
            let mut last = None;
            loop {
                let update = tracker.next().await?;
                ensure!(
                    last < Some(update.cursor),
                    "{:?} came after {last:?}",
                    update.cursor
                );
                last = Some(update.cursor);
                let new = sender.send_if_modified(|told| told.transactions.insert(update.tx));
                ensure!(new, "{} was told twice", update.tx);
            }
        });
        Ok(Self {
            told,
            tasks: [listening, tracking],
        })
    }

    /// Every payment was told, and the connection's ends were.
    async fn check(mut self, network: &mut Network, settled: &[Settled]) -> Result<()> {
        until("vault updates", PATIENCE, async || {
            for task in &mut self.tasks {
                if task.is_finished() {
                    task.await??;
                }
            }
            let told = self.told.borrow();
            let missing = settled
                .iter()
                .filter(|payment| !told.transactions.contains(&payment.tx));
            Ok(match missing.count() {
                0 => Ok(()),
                missing => Err(format!("{missing} transactions were never told")),
            })
        })
        .await?;
        let terms = Books::open(&network.machine("PartyB").database)
            .await?
            .terms()
            .await?;
        let told = self.told.borrow();
        println!(
            "PartyB had {} generations; its client lost its connection {} times and found one {} times",
            terms.len(),
            told.disconnects,
            told.connects
        );
        ensure!(
            terms.len() == 1 || told.disconnects > 0,
            "the client was not told of any loss"
        );
        Ok(())
    }
}
