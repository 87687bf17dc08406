//! The demonstration: PartyB is served by two instances, and nothing is lost when the one that
//! serves dies, hangs, or hands over.
//!
//! Everything is seen from outside, on one clock: by clients of both parties, and by a look into
//! the database for the lease. What is shown is also judged; at the end the ledgers of both
//! parties are compared.

mod compare;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use quorate_cash::{Amount, Currency, Issue, Issued, Paid, Payment};
use quorate_flow::Flow;
use quorate_identity::X500Name;
use quorate_ledger::TxId;
use quorate_node::config::NodeConfiguration;
use quorate_node::control::{self, Question};
use quorate_rpc::api::{ClientId, FlowId};
use quorate_rpc::{Client, RunningFlow};
use quorate_storage::{Store, lease};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::haproxy::HaProxy;
use super::timeline::Timeline;
use super::witness::{Ledger, Witness};
use super::{NOTARY, PARTY_A, PARTY_B, PATIENCE, POLL, SETTLING, Took, farewell, flow};
use crate::holdings;
use crate::local_network::{LocalNetwork, Pair, Plan, client_options};

const FIRST: &str = "PartyB-1";
const SECOND: &str = "PartyB-2";

/// Much shorter than what one would choose for two machines, so that there is something to see.
const UPDATE_INTERVAL: Duration = Duration::from_millis(500);
const WAIT_INTERVAL: Duration = Duration::from_millis(1500);

/// How soon clients find out that an instance hangs.
const KEEP_ALIVE: Duration = Duration::from_millis(500);
/// How long the instance that serves may take to begin with a payment that was started.
const BEGINNING: Duration = Duration::from_secs(10);

/// What is on the lease that the two instances share.
const RESOURCE: &str = "node";

/// In minor units: what PartyA issues, what the four transactions and those in whose midst
/// something happens pay, and what PartyB pays back at the same time.
const ISSUED: i64 = 10_000;
const PAID: i64 = 1_000;
const PAID_MEANWHILE: i64 = 500;
const PAID_BACK: i64 = 200;

/// PartyB.
pub(super) fn pair(balanced: bool) -> Pair {
    Pair {
        organisation: PARTY_B,
        locality: "New York",
        country: "US",
        instances: [FIRST, SECOND],
        update_interval: UPDATE_INTERVAL,
        wait_interval: WAIT_INTERVAL,
        balanced,
    }
}

pub(super) async fn show(plan: &Plan) -> Result<ExitCode> {
    let began = Instant::now();
    let balanced = plan.pair.as_ref().is_some_and(|pair| pair.balanced);
    // Before anything is made.
    let haproxy = balanced.then(HaProxy::version).transpose()?;
    println!(
        "PartyA pays PartyB, which runs on two instances: one is hot, the other one waits. They"
    );
    println!(
        "have the same keys and one database ({}). Whoever holds the lease in it serves:",
        plan.engine.name()
    );
    println!(
        "renewed every {} ms, lost after {} ms of silence. Every instance is a process.",
        UPDATE_INTERVAL.as_millis(),
        WAIT_INTERVAL.as_millis()
    );
    match haproxy {
        Some(version) => println!("HAProxy {version} finds the one whose ports are open."),
        None => println!("PartyA and clients know the addresses of both and try them in turn."),
    }
    println!();
    let mut demo = Failover::start(plan).await?;
    demo.issue().await?;
    demo.pay("a").await?;
    demo.kill().await?;
    demo.pay("b").await?;
    demo.restart().await?;
    demo.pay("c").await?;
    demo.hand_over().await?;
    demo.pay("d").await?;
    demo.freeze().await?;
    demo.pay("e").await?;
    demo.compare().await?;
    let correct = demo.line.is_correct();
    demo.store.close().await;
    farewell(&mut demo.network, &demo.shells).await?;
    let seconds = began.elapsed().as_secs_f64();
    if correct {
        println!("Ledgers, leases and balances are right. {seconds:.1} s in all.");
        Ok(ExitCode::SUCCESS)
    } else {
        println!("SOMETHING IS WRONG, see above. {seconds:.1} s in all.");
        Ok(ExitCode::FAILURE)
    }
}

/// An instance in one of its terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Serving {
    label: &'static str,
    generation: u64,
}

/// A transaction, and who served PartyB when it began and when PartyB had recorded it.
struct Done {
    /// What it is called, if it has a name.
    letter: Option<&'static str>,
    tx: TxId,
    served: [Serving; 2],
}

/// What the witness must have seen: whose terms, and why each began.
struct Change {
    heir: &'static str,
    why: &'static str,
}

struct Failover {
    network: LocalNetwork,
    _haproxy: Option<HaProxy>,
    /// PartyA's client, and PartyB's.
    a: Client,
    b: Client,
    witness: Witness,
    ledger: Ledger,
    /// PartyB's database.
    store: Store,
    line: Timeline,
    name_a: X500Name,
    name_b: X500Name,
    currency: Currency,
    expected_a: i64,
    expected_b: i64,
    /// PartyA's issuance, which PartyB has as a part of what it is paid.
    issued: Option<TxId>,
    done: Vec<Done>,
    changes: Vec<Change>,
    /// The RPC addresses of both parties.
    shells: Vec<String>,
}

impl Failover {
    async fn start(plan: &Plan) -> Result<Self> {
        let mut network = LocalNetwork::prepare(plan)?;
        let path = network.path().to_owned();
        let first = [NOTARY, PARTY_A, FIRST];
        for label in first {
            network.node(label).spawn()?;
        }
        for label in first {
            network.node(label).ready().await?;
        }
        network.node(SECOND).spawn()?;
        network.node(SECOND).standing_by().await?;

        println!("  instance  process  P2P    RPC    web    operations");
        for node in &network.nodes {
            let (process, ports) = (node.process().unwrap_or_default(), &node.ports);
            println!(
                "  {:<9} {process:<8} {:<6} {:<6} {:<6} {}",
                node.label, ports.p2p, ports.rpc, ports.web, ports.operations
            );
        }
        let instances = [FIRST, SECOND].map(|label| network.node(label).ports.clone());
        let haproxy = match &network.balancer {
            None => None,
            Some(front) => {
                let haproxy = HaProxy::start(&path, front, instances.each_ref()).await?;
                println!(
                    "  {:<9} {:<8} {:<6} {:<6} {}",
                    "HAProxy",
                    haproxy.process(),
                    front.p2p,
                    front.rpc,
                    front.web
                );
                Some(haproxy)
            }
        };
        let b_ports = match &network.balancer {
            Some(front) => vec![front.rpc],
            None => instances.iter().map(|ports| ports.rpc).collect(),
        };
        let connect = || {
            let mut options = client_options(&b_ports);
            options.connect_timeout = KEEP_ALIVE;
            options.keep_alive_interval = KEEP_ALIVE;
            options.keep_alive_timeout = KEEP_ALIVE;
            options.backoff_min = POLL;
            options.backoff_max = 5 * POLL;
            Client::connect(options)
        };
        let a = network.node(PARTY_A).client().await?;
        let b = connect().await?;
        let mut witness = Witness::start(connect().await?);
        witness.more_than(0).await?;
        let ledger = Ledger::follow(&b).await?;
        let configuration = NodeConfiguration::load(
            &network.node(FIRST).directory,
            None,
            &crate::node::load_options(),
        )?;
        let store = Store::connect(configuration.database.store_options(), Vec::new()).await?;
        let name_a = network.node(PARTY_A).name.clone();
        let name_b = network.node(FIRST).name.clone();
        let local = |port: &u16| format!("127.0.0.1:{port}");
        let shells = vec![
            local(&network.node(PARTY_A).ports.rpc),
            b_ports.iter().map(local).collect::<Vec<_>>().join(","),
        ];
        let mut demo = Self {
            network,
            _haproxy: haproxy,
            a,
            b,
            witness,
            ledger,
            store,
            line: Timeline::start(),
            name_a,
            name_b,
            currency: "GBP".parse()?,
            expected_a: 0,
            expected_b: 0,
            issued: None,
            done: Vec::new(),
            changes: vec![Change {
                heir: FIRST,
                why: "was started first",
            }],
            shells,
        };
        demo.line.title("PartyB-1 is active, PartyB-2 stands by");
        demo.waits(SECOND).await?;
        demo.lease().await?;
        Ok(demo)
    }

    fn amount(&self, quantity: i64) -> Amount {
        Amount::new(quantity, self.currency)
    }

    fn payment(&self, quantity: i64, recipient: &X500Name) -> Value {
        let units = format!("{}.{:02}", quantity / 100, quantity % 100);
        json!({ "amount": units, "currency": self.currency, "recipient": recipient })
    }

    /// Who serves PartyB, as its clients are told.
    async fn serving(&self) -> Result<Serving> {
        let answer = self.b.diagnostics().await?;
        Ok(Serving {
            label: instance(&answer.instance)?,
            generation: answer.lease.context("PartyB has a lease")?.generation,
        })
    }

    /// The lease as the database has it.
    async fn lease(&mut self) -> Result<()> {
        let lease = lease::current(&self.store, RESOURCE).await?;
        let lease = lease.context("PartyB has a lease")?;
        let holder = instance(&lease.holder.instance())?;
        self.line.note(
            "lease",
            &format!(
                "generation {}, held by {holder} since {:.3} s",
                lease.generation,
                self.line.seconds(lease.acquired_at)
            ),
        );
        let right = self.changes.last().is_some_and(|last| last.heir == holder)
            && lease.generation == self.changes.len() as u64
            && !lease.released;
        self.line.judge(
            right,
            "the lease should be held by another, or in another generation",
        );
        Ok(())
    }

    async fn issue(&mut self) -> Result<()> {
        let arguments = json!({ "amount": ISSUED / 100, "currency": self.currency });
        let (issued, _) = flow::<Issue, Issued>(&self.a, arguments).await?;
        self.expected_a += ISSUED;
        self.issued = Some(issued.tx);
        Ok(())
    }

    /// A payment from PartyA to PartyB while nothing else happens.
    async fn pay(&mut self, letter: &'static str) -> Result<()> {
        let began = self.serving().await?;
        let amount = self.amount(PAID);
        self.line.title(&format!(
            "Transaction {letter}: PartyA pays {amount} to PartyB"
        ));
        let arguments = self.payment(PAID, &self.name_b);
        let (paid, took) = flow::<Payment, Paid>(&self.a, arguments).await?;
        self.line.tell(
            Instant::now(),
            format!("done in {}: {}", Took(took), brief(paid.tx)),
        );
        self.ledger.has(paid.tx).await?;
        let served = [began, self.serving().await?];
        self.line.note("served by", &by(served));
        let wanted = self.changes.last().map_or("", |change| change.heir);
        self.line.judge(
            served[0] == served[1] && served[0].label == wanted,
            "it should have been served by the other instance",
        );
        self.expected_a -= PAID;
        self.expected_b += PAID;
        self.done.push(Done {
            letter: Some(letter),
            tx: paid.tx,
            served,
        });
        self.balances().await
    }

    /// Starts a payment in each direction.
    fn pay_both_ways(&mut self) -> Result<JoinSet<Result<Outcome>>> {
        let there = self.payment(PAID_MEANWHILE, &self.name_b);
        let back = self.payment(PAID_BACK, &self.name_a);
        let (a, b) = (self.a.clone(), self.b.clone());
        let id = ClientId::new(format!("demo {}: payment back", self.line.step()))?;
        self.line.tell(
            Instant::now(),
            format!(
                "PartyA starts to pay {} to PartyB, PartyB {} to PartyA",
                self.amount(PAID_MEANWHILE),
                self.amount(PAID_BACK)
            ),
        );
        let mut payments = JoinSet::new();
        payments.spawn(async move {
            let flow = a.start_flow(Payment::NAME, there).await?;
            outcome(flow, PARTY_A).await
        });
        // Under a client id, so that the client finds it again at the other instance.
        payments.spawn(async move {
            let flow = b.start_flow_with_client_id(id, Payment::NAME, back).await?;
            outcome(flow, PARTY_B).await
        });
        Ok(payments)
    }

    /// Waits for the two payments in whose midst the lease has passed from one to the other.
    async fn finish(
        &mut self,
        mut payments: JoinSet<Result<Outcome>>,
        [old, new]: [Serving; 2],
    ) -> Result<()> {
        let lease = lease::current(&self.store, RESOURCE).await?;
        let taken_over = lease.context("PartyB has a lease")?.acquired_at;
        while let Some(payment) = payments.join_next().await {
            let Outcome { payer, tx, at } = payment??;
            let recorded = self.ledger.has(tx).await?;
            let last = if recorded < taken_over { old } else { new };
            let text = format!(
                "{payer}'s payment is done: {}; {} recorded it at {:.3} s",
                brief(tx),
                last.label,
                self.line.seconds(recorded)
            );
            self.line.tell(at, text);
            let paid = if payer == PARTY_A {
                PAID_MEANWHILE
            } else {
                -PAID_BACK
            };
            self.expected_a -= paid;
            self.expected_b += paid;
            self.done.push(Done {
                letter: None,
                tx,
                served: [old, last],
            });
        }
        self.lease().await?;
        self.balances().await
    }

    /// Kills the instance that serves when it is at work.
    async fn kill(&mut self) -> Result<()> {
        let hot = self.serving().await?;
        self.line.title(&format!(
            "kill -9 of {} in the midst of payments",
            hot.label
        ));
        let before = self.witness.terms().len();
        let flows = self.b.flows().await?;
        let known: BTreeSet<FlowId> = flows.into_iter().map(|flow| flow.flow_id).collect();
        let mut watcher = self.b.watch_flows().await?;
        let payments = self.pay_both_ways()?;
        // The one that has no client at PartyB is PartyB's part of PartyA's payment.
        let part = async {
            loop {
                let flow = watcher.next().await?;
                if !known.contains(&flow.flow_id) && flow.client_id.is_none() {
                    return anyhow::Ok(flow);
                }
            }
        };
        let part = timeout(BEGINNING, part).await;
        let node = self.network.node(hot.label);
        let process = node.process().unwrap_or_default();
        node.kill()?;
        let killed = Instant::now();
        let part = part.with_context(|| format!("{} did not begin", hot.label))??;
        self.line.tell(
            killed,
            format!(
                "kill -9 {process}: {} was at work on flow {}",
                hot.label,
                brief(part.flow_id)
            ),
        );
        let heir = self.passes(before, hot.label, "killed").await?;
        self.finish(payments, [hot, heir]).await
    }

    /// Stops the instance that serves, as a machine does that hangs, and lets it go on when it has
    /// lost the lease.
    async fn freeze(&mut self) -> Result<()> {
        let hot = self.serving().await?;
        self.line.title(&format!(
            "kill -STOP of {}: it hangs, its ports stay open",
            hot.label
        ));
        let before = self.witness.terms().len();
        let node = self.network.node(hot.label);
        let process = node.process().unwrap_or_default();
        node.freeze()?;
        self.line
            .tell(Instant::now(), format!("kill -STOP {process}"));
        let payments = self.pay_both_ways()?;
        let heir = self.passes(before, hot.label, "froze").await?;

        let node = self.network.node(hot.label);
        let continued = Instant::now();
        node.thaw()?;
        let status = node.ended().await?;
        let ended = Instant::now();
        let words = node.last_words();
        let words = words.split_once(": ").map_or(&*words, |(_, reason)| reason);
        if status.signal().is_some() {
            self.line.tell(
                continued,
                format!(
                    "{} had to end {process} before: it had the database file locked",
                    heir.label
                ),
            );
        } else {
            self.line.tell(
                continued,
                format!("kill -CONT {process}: it goes on where it was, with messages unread"),
            );
            self.line
                .tell(ended, format!("{} ends: {words}", hot.label));
        }
        self.line.judge(
            !status.success(),
            "an instance that has lost the lease ends as a failure",
        );
        self.finish(payments, [hot, heir]).await
    }

    /// Waits until the other instance answers.
    async fn passes(
        &mut self,
        before: usize,
        old: &'static str,
        why: &'static str,
    ) -> Result<Serving> {
        let heir = other(old);
        self.changes.push(Change { heir, why });
        let term = self.witness.more_than(before).await?;
        let last = self.witness.terms()[before - 1].last;
        let gap = Took(term.first.saturating_duration_since(last));
        self.line.tell(last, format!("last answer of {old}"));
        self.line.tell(
            term.first,
            format!("first answer of {heir}: a gap of {gap}"),
        );
        let serving = Serving {
            label: instance(&term.instance)?,
            generation: term.generation,
        };
        self.line.judge(
            serving.label == heir,
            "the other instance should have taken over",
        );
        Ok(serving)
    }

    async fn restart(&mut self) -> Result<()> {
        let label = other(self.serving().await?.label);
        self.line
            .title(&format!("{label} is started again, and waits"));
        let node = self.network.node(label);
        node.spawn()?;
        let began = Instant::now();
        node.standing_by().await?;
        let standing_by = Instant::now();
        self.line.tell(began, format!("{label} is started"));
        self.line.tell(standing_by, format!("{label} stands by"));
        self.waits(label).await?;
        self.lease().await
    }

    /// What a load balancer sees of a standby.
    async fn waits(&mut self, label: &'static str) -> Result<()> {
        let node = self.network.node(label);
        let ports = node.ports.clone();
        let (alive, _) = node.get("/healthz").await?;
        let (ready, report) = node.get("/readyz").await?;
        let report: Value = serde_json::from_str(&report)?;
        let closed = [ports.p2p, ports.rpc, ports.web]
            .iter()
            .all(|port| TcpStream::connect((Ipv4Addr::LOCALHOST, *port)).is_err());
        let ports = if closed { "closed" } else { "OPEN" };
        let status = report["status"].as_str().unwrap_or_default();
        self.line.note(
            label,
            &format!("P2P, RPC and web ports {ports}; /healthz {alive}, /readyz {ready}: {status}"),
        );
        self.line.judge(
            closed && alive == 200 && ready == 503,
            "a standby is alive, not ready, and has no port open",
        );
        Ok(())
    }

    async fn hand_over(&mut self) -> Result<()> {
        let hot = self.serving().await?.label;
        self.line
            .title(&format!("`quorate node handover` on {hot}"));
        let before = self.witness.terms().len();
        let directory = self.network.node(hot).directory.clone();
        self.line
            .tell(Instant::now(), format!("{hot} is asked to hand over"));
        let answer = control::ask(&directory, &Question::HandOver).await?;
        self.line
            .tell(Instant::now(), format!("{hot}: {}", answer.message));
        ensure!(answer.ok, "{hot} does not hand over: {}", answer.message);
        self.passes(before, hot, "handed over").await?;
        self.waits(hot).await?;
        self.lease().await
    }

    /// What both own, and whether it is what they should.
    async fn balances(&mut self) -> Result<()> {
        let began = Instant::now();
        let expected = (self.expected_a, self.expected_b);
        let owned = loop {
            let a = holdings::of(&self.a, self.currency).await?.quantity;
            let b = holdings::of(&self.b, self.currency).await?.quantity;
            if (a, b) == expected || began.elapsed() > SETTLING {
                break (a, b);
            }
            sleep(POLL).await;
        };
        let text = format!(
            "PartyA {}, PartyB {}",
            self.amount(owned.0),
            self.amount(owned.1)
        );
        self.line.note("balances", &text);
        let otherwise = format!(
            "PartyA should have {}, PartyB {}",
            self.amount(expected.0),
            self.amount(expected.1)
        );
        self.line.judge(owned == expected, &otherwise);
        Ok(())
    }
}

/// A payment that is done.
struct Outcome {
    payer: &'static str,
    tx: TxId,
    at: Instant,
}

async fn outcome(flow: RunningFlow, payer: &'static str) -> Result<Outcome> {
    let paid: Paid = serde_json::from_value(flow.result(PATIENCE).await?)?;
    Ok(Outcome {
        payer,
        tx: paid.tx,
        at: Instant::now(),
    })
}

/// The instance that a name, machine and directory, means.
fn instance(name: &str) -> Result<&'static str> {
    let machine = name.split(':').next();
    match [FIRST, SECOND]
        .into_iter()
        .find(|label| machine == Some(label))
    {
        Some(label) => Ok(label),
        None => bail!("{name} is none of PartyB's instances"),
    }
}

fn other(label: &str) -> &'static str {
    if label == FIRST { SECOND } else { FIRST }
}

fn by([first, last]: [Serving; 2]) -> String {
    let name = |serving: Serving| {
        format!(
            "{} under lease generation {}",
            serving.label, serving.generation
        )
    };
    if first == last {
        name(first)
    } else {
        format!("{}, then {}", name(first), name(last))
    }
}

/// The beginning of an id, enough to find it again.
fn brief(id: impl ToString) -> String {
    let mut id = id.to_string();
    id.truncate(8);
    id.push('…');
    id
}
