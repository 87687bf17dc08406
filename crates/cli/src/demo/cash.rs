//! The first chapter: three processes issue and pay cash to each other, are killed, and go on.
//!
//! Each step says what happened, which transactions did it and what both parties then own. At the
//! end the vaults are compared with what was reported on the way; a wrong balance is a failure.

use std::fmt;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use quorate_cash::{
    Amount, Currency, IouIssued, IouSettled, Issue, IssueAndPay, IssueIou, Issued, IssuedAndPaid,
    Paid, Payment, SettleIou,
};
use quorate_flow::Flow;
use quorate_ledger::TxId;
use quorate_rpc::api::ClientId;
use quorate_rpc::{Client, ClientError};
use serde_json::json;
use tokio::time::sleep;

use super::{
    NOTARY, PARTY_A, PARTY_B, PATIENCE, POLL, SETTLING, Took, farewell, flow, thief, unfinished,
};
use crate::holdings;
use crate::local_network::{LocalNetwork, Plan};

/// Payments that are under way when a node is killed.
const PAYMENTS: usize = 20;
/// How many of them have arrived by then.
const BEFORE_THE_KILL: usize = 5;

pub(super) async fn show(plan: &Plan) -> Result<ExitCode> {
    let began = Instant::now();
    println!("Two parties and a notary: three processes on this machine, each with its own");
    println!("{} database, keys and ports.", plan.engine.name());
    println!();
    let mut demo = Demo::start(plan).await?;
    demo.issue().await?;
    demo.pay().await?;
    demo.pay_back().await?;
    demo.settle().await?;
    demo.spend_again().await?;
    for victim in [PARTY_B, PARTY_A, NOTARY] {
        demo.kill_during_payments(victim).await?;
    }
    let correct = demo.compare().await?;
    let shell = format!("127.0.0.1:{}", demo.network.node(PARTY_A).ports.rpc);
    farewell(&mut demo.network, &[shell]).await?;
    let seconds = began.elapsed().as_secs_f64();
    if correct {
        println!("All balances are right. {seconds:.1} s in all.");
        Ok(ExitCode::SUCCESS)
    } else {
        println!("BALANCES ARE WRONG. {seconds:.1} s in all.");
        Ok(ExitCode::FAILURE)
    }
}

/// The network, clients of both parties, and what the two must own.
struct Demo {
    network: LocalNetwork,
    a: Client,
    b: Client,
    currency: Currency,
    expected_a: Amount,
    expected_b: Amount,
    steps: u32,
    correct: bool,
    /// The first payment: the one that is spent again.
    payment: Option<TxId>,
}

impl Demo {
    async fn start(plan: &Plan) -> Result<Self> {
        let mut network = LocalNetwork::prepare(plan)?;
        let began = Instant::now();
        network.start().await?;
        let took = began.elapsed();
        println!("  node     process  P2P    RPC    web    operations");
        for node in &network.nodes {
            let process = node.process().unwrap_or_default();
            let ports = &node.ports;
            println!(
                "  {:<8} {process:<8} {:<6} {:<6} {:<6} {}",
                node.label, ports.p2p, ports.rpc, ports.web, ports.operations
            );
        }
        let a = network.node(PARTY_A).client().await?;
        let b = network.node(PARTY_B).client().await?;
        println!();
        println!("  all three serve after {}", Took(took));
        let currency: Currency = "GBP".parse()?;
        Ok(Self {
            network,
            a,
            b,
            currency,
            expected_a: Amount::new(0, currency),
            expected_b: Amount::new(0, currency),
            steps: 0,
            correct: true,
            payment: None,
        })
    }

    fn title(&mut self, title: impl fmt::Display) {
        self.steps += 1;
        println!();
        println!("{:>2}. {title}", self.steps);
    }

    async fn issue(&mut self) -> Result<()> {
        self.title("PartyA issues 100.00 GBP to itself");
        let arguments = json!({ "amount": "100.00", "currency": self.currency });
        let (issued, took) = flow::<Issue, Issued>(&self.a, arguments).await?;
        self.transaction(issued.tx, took).await?;
        self.expect(10_000, 0).await
    }

    async fn pay(&mut self) -> Result<()> {
        self.title("PartyA pays 40.25 GBP to PartyB");
        let paid = self.payment(PARTY_A, PARTY_B, "40.25").await?;
        self.payment = Some(paid);
        self.expect(-4_025, 4_025).await
    }

    async fn pay_back(&mut self) -> Result<()> {
        self.title("PartyB pays 10.00 GBP back");
        self.payment(PARTY_B, PARTY_A, "10.00").await?;
        self.expect(1_000, -1_000).await
    }

    async fn payment(&mut self, from: &str, to: &str, amount: &str) -> Result<TxId> {
        let recipient = self.network.node(to).name.clone();
        let arguments =
            json!({ "amount": amount, "currency": self.currency, "recipient": recipient });
        let payer = if from == PARTY_A { &self.a } else { &self.b };
        let (paid, took) = flow::<Payment, Paid>(payer, arguments).await?;
        self.transaction(paid.tx, took).await?;
        Ok(paid.tx)
    }

    async fn settle(&mut self) -> Result<()> {
        self.title("PartyB owes PartyA 20.00 GBP, and swaps 12.50 in cash for a part of the debt");
        let lender = self.network.node(PARTY_A).name.clone();
        let arguments = json!({ "amount": "20.00", "currency": self.currency, "lender": lender });
        let (owed, took) = flow::<IssueIou, IouIssued>(&self.b, arguments).await?;
        self.transaction(owed.tx, took).await?;
        let arguments = json!({ "iou": owed.iou, "amount": "12.50" });
        let (settled, took) = flow::<SettleIou, IouSettled>(&self.b, arguments).await?;
        self.transaction(settled.tx, took).await?;
        println!("    still owed   {}", settled.outstanding);
        self.correct &= settled.outstanding == Amount::new(750, self.currency);
        self.expect(1_250, -1_250).await
    }

    /// A node that ignores its own vault still cannot spend twice.
    async fn spend_again(&mut self) -> Result<()> {
        self.title("PartyA cheats: it spends what it paid in step 2 once more");
        let spent = self.payment.context("there was a payment before")?;
        let attempt = flow::<thief::SpendAgain, TxId>(&self.a, json!({ "tx": spent })).await;
        let refusal = match attempt {
            Ok((tx, _)) => bail!("transaction {tx} spends the same cash a second time"),
            Err(error) => error,
        };
        let Some(ClientError::FlowEnded { reason, .. }) = refusal.downcast_ref() else {
            return Err(refusal);
        };
        // It is long: what the notary says stands on lines of its own.
        println!(
            "    refused      {}",
            reason.replace(": ", ":\n                 ")
        );
        ensure!(
            reason.contains(&spent.to_string()),
            "the refusal does not name transaction {spent}, which has consumed the cash"
        );
        self.expect(0, 0).await
    }

    /// PartyA makes many payments at once, and a node dies in the midst of them.
    async fn kill_during_payments(&mut self, victim: &str) -> Result<()> {
        self.title(format_args!(
            "PartyA issues and pays {PAYMENTS} times 0.50 GBP at once; kill -9 of {victim}"
        ));
        let recipient = self.network.node(PARTY_B).name.clone();
        let arguments =
            json!({ "amount": "0.50", "currency": self.currency, "recipient": recipient });
        let mut payments = tokio::task::JoinSet::new();
        for number in 1..=PAYMENTS {
            let client = self.a.clone();
            let id = ClientId::new(format!("demo {}: payment {number}", self.steps))?;
            let arguments = arguments.clone();
            payments.spawn(async move {
                let flow = client
                    .start_flow_with_client_id(id, IssueAndPay::NAME, arguments)
                    .await?;
                let result = flow.result(PATIENCE).await?;
                let at = Instant::now();
                flow.forget().await?;
                let payment = serde_json::from_value::<IssuedAndPaid>(result)?;
                anyhow::Ok((payment.paid.tx, at))
            });
        }
        let mut done = Vec::new();
        while done.len() < BEFORE_THE_KILL {
            done.extend(payments.join_next().await.transpose()?.transpose()?);
        }
        let node = self.network.node(victim);
        let process = node.process().unwrap_or_default();
        node.kill()?;
        let killed = Instant::now();
        while let Some(payment) = payments.try_join_next() {
            done.push(payment??);
        }
        println!(
            "    killed       process {process}, when {} payments had been reported done",
            done.len()
        );
        let started = node.start().await?;
        println!(
            "    restarted    process {}, serving after {}",
            node.process().unwrap_or_default(),
            Took(started)
        );
        while let Some(payment) = payments.join_next().await {
            done.push(payment??);
        }
        println!(
            "    completed    {} payments, the last one {} after the kill",
            done.len(),
            Took(
                done.iter()
                    .map(|(_, at)| at.saturating_duration_since(killed))
                    .max()
                    .unwrap_or_default()
            )
        );
        let mut transactions: Vec<TxId> = done.iter().map(|(tx, _)| *tx).collect();
        transactions.sort_unstable();
        transactions.dedup();
        self.correct &= transactions.len() == PAYMENTS;
        self.expect(0, 50 * PAYMENTS as i64).await
    }

    /// Shows a transaction as the parties have it.
    async fn transaction(&self, id: TxId, took: Duration) -> Result<()> {
        let transaction = self.a.transaction(id).await?;
        let size = transaction.signed.encode().len();
        println!("    transaction  {id}  {size:>5} bytes  {:>8}", Took(took));
        Ok(())
    }

    /// Changes what the parties must own by so many minor units, and looks whether they do.
    async fn expect(&mut self, a: i64, b: i64) -> Result<()> {
        self.expected_a.quantity += a;
        self.expected_b.quantity += b;
        let (owned_a, owned_b) = self.balances().await?;
        println!("    balances     PartyA {owned_a:<12}  PartyB {owned_b}");
        for (party, owned, expected) in [
            (PARTY_A, owned_a, self.expected_a),
            (PARTY_B, owned_b, self.expected_b),
        ] {
            if owned != expected {
                println!("    WRONG        {party} should have {expected}");
                self.correct = false;
            }
        }
        Ok(())
    }

    /// What both parties own. A recipient records a payment shortly after the payer's flow has
    /// ended, so that for a while a wrong balance only means that it is early.
    async fn balances(&self) -> Result<(Amount, Amount)> {
        let began = Instant::now();
        loop {
            let a = holdings::of(&self.a, self.currency).await?.quantity;
            let b = holdings::of(&self.b, self.currency).await?.quantity;
            let (a, b) = (Amount::new(a, self.currency), Amount::new(b, self.currency));
            let right = (a, b) == (self.expected_a, self.expected_b);
            if right || began.elapsed() > SETTLING {
                return Ok((a, b));
            }
            sleep(POLL).await;
        }
    }

    /// Whether everything was right, and the two vaults agree with each other.
    async fn compare(&mut self) -> Result<bool> {
        self.title("Both vaults compared");
        let a = holdings::of(&self.a, self.currency).await?;
        let b = holdings::of(&self.b, self.currency).await?;
        let shared = a.states.intersection(&b.states).count();
        let total = Amount::new(a.quantity + b.quantity, self.currency);
        let issued = Amount::new(
            self.expected_a.quantity + self.expected_b.quantity,
            self.currency,
        );
        println!(
            "    states       PartyA {}, PartyB {}, claimed by both {shared}",
            a.states.len(),
            b.states.len()
        );
        println!("    in all       {total} of {issued} issued");
        let began = Instant::now();
        let mut left = unfinished(&self.a).await? + unfinished(&self.b).await?;
        while left > 0 && began.elapsed() < SETTLING {
            sleep(POLL).await;
            left = unfinished(&self.a).await? + unfinished(&self.b).await?;
        }
        println!("    flows        {left} unfinished");
        self.correct &= shared == 0 && total == issued && left == 0;
        self.expect(0, 0).await?;
        Ok(self.correct)
    }
}
