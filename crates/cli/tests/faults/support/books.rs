//! What the databases hold, read past the nodes, and whether it is right.
//!
//! [`reconcile`] compares the ledgers of all parties with each other and with the notary's; [`Books::check_one_writer`]
//! judges from the log of generations whether two processes ever wrote at one time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use quorate_cash::Cash;
use quorate_identity::SecureHash;
use quorate_ledger::{ContractState, SignedTransaction, StateRef, TxId};
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Connection, Executor, Row};

use super::network::{DatabasePlace, Engine, Network};
use super::payments::Settled;
use super::until;

/// How long the nodes may take to come to rest after the last payment.
const REST: Duration = Duration::from_secs(40);

/// A reader of one node's database.
pub(crate) struct Books {
    connection: AnyConnection,
    engine: Engine,
}

/// One generation of a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Term {
    pub(crate) generation: i64,
    /// Machine and base directory.
    pub(crate) instance: String,
    /// By the database's clock, in microseconds since 1970.
    pub(crate) acquired_at: i64,
}

/// What a node has recorded.
#[derive(Debug)]
pub(crate) struct Ledger {
    organisation: &'static str,
    transactions: BTreeMap<TxId, SignedTransaction>,
    unconsumed: BTreeSet<StateRef>,
    consumed: BTreeMap<StateRef, TxId>,
}

fn hash(row: &AnyRow, column: usize) -> Result<SecureHash> {
    let bytes: Vec<u8> = row.try_get(column)?;
    let bytes: [u8; 32] = bytes.try_into().ok().context("a hash has 32 bytes")?;
    Ok(SecureHash::from_bytes(bytes))
}

fn reference(row: &AnyRow) -> Result<StateRef> {
    Ok(StateRef {
        tx: TxId::from(hash(row, 0)?),
        index: u32::try_from(row.try_get::<i64, _>(1)?)?,
    })
}

impl Books {
    pub(crate) async fn open(database: &DatabasePlace) -> Result<Self> {
        sqlx::any::install_default_drivers();
        let mut connection = AnyConnection::connect(&database.url()).await?;
        let engine = match database {
            DatabasePlace::Sqlite(_) => {
                // Whoever finds the file locked wants to know it, not to wait.
                connection.execute("PRAGMA busy_timeout = 0").await?;
                Engine::Sqlite
            }
            DatabasePlace::Postgres { .. } => Engine::Postgres,
        };
        Ok(Self { connection, engine })
    }

    /// Until then a SQLite database may be more than its file.
    pub(crate) async fn close(self) -> Result<()> {
        Ok(self.connection.close().await?)
    }

    async fn rows(&mut self, sql: &'static str) -> Result<Vec<AnyRow>> {
        let rows = sqlx::query(sql).fetch_all(&mut self.connection).await;
        rows.with_context(|| format!("reading with: {sql}"))
    }

    async fn number(&mut self, sql: &'static str) -> Result<i64> {
        let rows = self.rows(sql).await?;
        Ok(rows.first().context("a number was asked for")?.try_get(0)?)
    }

    pub(crate) async fn execute(&mut self, sql: &'static str) -> Result<u64> {
        let done = sqlx::query(sql).execute(&mut self.connection).await?;
        Ok(done.rows_affected())
    }

    /// All generations of the lease, in their order.
    pub(crate) async fn terms(&mut self) -> Result<Vec<Term>> {
        let sql = "SELECT generation, machine, base_directory, acquired_at FROM lease_history
                   WHERE resource = 'node' ORDER BY generation";
        let terms = self.rows(sql).await?;
        terms
            .iter()
            .map(|row| {
                let (machine, directory): (String, String) = (row.try_get(1)?, row.try_get(2)?);
                Ok(Term {
                    generation: row.try_get(0)?,
                    instance: format!("{machine}:{directory}"),
                    acquired_at: row.try_get(3)?,
                })
            })
            .collect()
    }

    /// The generation under which somebody may write now.
    pub(crate) async fn generation(&mut self) -> Result<i64> {
        self.number("SELECT generation FROM leases WHERE resource = 'node'")
            .await
    }

    /// Whether anybody has a transaction open that has written. On PostgreSQL: and does not go on with it.
    pub(crate) async fn is_somebody_writing(&mut self) -> Result<bool> {
        if self.engine == Engine::Postgres {
            let sql = "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database()
                       AND backend_xid IS NOT NULL AND state = 'idle in transaction'";
            return Ok(self.number(sql).await? > 0);
        }
        if self.connection.execute("BEGIN IMMEDIATE").await.is_err() {
            return Ok(true);
        }
        self.connection.execute("ROLLBACK").await?;
        Ok(false)
    }

    /// What was written under each generation: how many rows, and when the first and the last of them.
    pub(crate) async fn writes(&mut self) -> Result<BTreeMap<i64, (i64, i64, i64)>> {
        let sql = "SELECT generation, COUNT(*), MIN(at), MAX(at) FROM (
                       SELECT generation, recorded_at AS at FROM transactions
                       UNION ALL SELECT generation, finished_at FROM flows WHERE finished_at IS NOT NULL) written
                   GROUP BY generation";
        let rows = self.rows(sql).await?;
        rows.iter()
            .map(|row| {
                let figures = (row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
                Ok((row.try_get(0)?, figures))
            })
            .collect()
    }

    /// At no time two processes wrote: generations follow each other, and everything that bears a generation was written
    /// between its beginning and the next one's. The times are the database's, taken while the lease's row was locked.
    pub(crate) async fn check_one_writer(&mut self) -> Result<Vec<Term>> {
        let terms = self.terms().await?;
        for pair in terms.windows(2) {
            let right = pair[0].generation < pair[1].generation
                && pair[0].acquired_at <= pair[1].acquired_at;
            ensure!(right, "generations out of order: {pair:?}");
        }
        for (generation, (rows, first, last)) in self.writes().await? {
            let place = terms.iter().position(|term| term.generation == generation);
            let place = place.with_context(|| format!("nobody had generation {generation}"))?;
            let from = terms[place].acquired_at;
            let to = terms
                .get(place + 1)
                .map_or(i64::MAX, |next| next.acquired_at);
            ensure!(
                from <= first && last <= to,
                "{rows} rows of generation {generation} were written from {first} to {last}, but its term was {from} to {to}"
            );
        }
        Ok(terms)
    }

    /// What is not at rest; empty if everything is.
    pub(crate) async fn unrest(&mut self) -> Result<String> {
        let counts = [
            (
                "flows",
                "SELECT COUNT(*) FROM flows WHERE finished_at IS NULL",
            ),
            ("journal entries", "SELECT COUNT(*) FROM journal"),
            ("messages to send", "SELECT COUNT(*) FROM outbox"),
            ("messages to read", "SELECT COUNT(*) FROM inbox"),
            ("locked states", "SELECT COUNT(*) FROM vault_locks"),
            (
                "transactions in flight",
                "SELECT COUNT(*) FROM transactions WHERE status <> 1",
            ),
        ];
        let mut unrest = Vec::new();
        for (what, sql) in counts {
            let count = self.number(sql).await?;
            if count > 0 {
                unrest.push(format!("{count} {what}"));
            }
        }
        Ok(unrest.join(", "))
    }

    /// The flows that have not ended, for people.
    async fn unfinished_flows(&mut self) -> Result<Vec<String>> {
        let sql = "SELECT class, status, COALESCE(progress, '') FROM flows WHERE finished_at IS NULL LIMIT 5";
        let rows = self.rows(sql).await?;
        rows.iter()
            .map(|row| {
                let (class, status, progress): (String, String, String) =
                    (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
                Ok(format!("{class} {status} {progress}"))
            })
            .collect()
    }

    async fn ledger(&mut self, organisation: &'static str) -> Result<Ledger> {
        let mut transactions = BTreeMap::new();
        for row in self
            .rows("SELECT tx_id, bytes FROM transactions WHERE status = 1")
            .await?
        {
            let id = TxId::from(hash(&row, 0)?);
            let transaction = SignedTransaction::decode(&row.try_get::<Vec<u8>, _>(1)?)?;
            ensure!(
                transaction.id() == id,
                "{id} is recorded with the bytes of {}",
                transaction.id()
            );
            transactions.insert(id, transaction);
        }
        let mut unconsumed = BTreeSet::new();
        let mut consumed = BTreeMap::new();
        let sql = "SELECT tx_id, idx, status, COALESCE(consumed_by, tx_id) FROM vault_states";
        for row in self.rows(sql).await? {
            if row.try_get::<i64, _>(2)? == 0 {
                unconsumed.insert(reference(&row)?);
            } else {
                consumed.insert(reference(&row)?, TxId::from(hash(&row, 3)?));
            }
        }
        Ok(Ledger {
            organisation,
            transactions,
            unconsumed,
            consumed,
        })
    }

    /// What the notary has let be consumed, and by what.
    async fn notarised(&mut self) -> Result<BTreeMap<StateRef, TxId>> {
        let rows = self
            .rows("SELECT tx_id, idx, consumed_by FROM notary_states")
            .await?;
        rows.iter()
            .map(|row| Ok((reference(row)?, TxId::from(hash(row, 2)?))))
            .collect()
    }
}

/// Waits until no node has anything left to do.
pub(crate) async fn at_rest(network: &Network) -> Result<Duration> {
    until("coming to rest", REST, async || {
        for machine in network
            .machines
            .iter()
            .filter(|machine| machine.label.ends_with("/1"))
        {
            let mut books = Books::open(&machine.database).await?;
            let unrest = books.unrest().await?;
            if !unrest.is_empty() {
                let flows = books.unfinished_flows().await?;
                return Ok(Err(format!(
                    "{} has {unrest} {flows:?}",
                    machine.organisation
                )));
            }
        }
        Ok(Ok(()))
    })
    .await
}

/// Judges the ledgers of a network at rest: every payment was made once and is known to both sides; every state is
/// consumed at most once, and the parties and the notary agree by what; the cash adds up to what was issued.
pub(crate) async fn reconcile(
    network: &Network,
    issued: &[(&'static str, i64)],
    payments: &[(&'static str, &'static str, &[Settled])],
) -> Result<()> {
    let mut ledgers = Vec::new();
    let mut notarised = BTreeMap::new();
    if let Some(log) = &network.notary_log {
        notarised = Books::open(log).await?.notarised().await?;
    }
    for machine in network
        .machines
        .iter()
        .filter(|machine| machine.label.ends_with("/1"))
    {
        let mut books = Books::open(&machine.database).await?;
        books
            .check_one_writer()
            .await
            .with_context(|| format!("the writers of {}", machine.organisation))?;
        if machine.organisation == "Notary" {
            notarised = books.notarised().await?;
        } else if !machine.organisation.starts_with("Worker") {
            ledgers.push(books.ledger(machine.organisation).await?);
        }
    }

    let mut spent: BTreeMap<StateRef, TxId> = BTreeMap::new();
    let mut all: BTreeMap<TxId, &SignedTransaction> = BTreeMap::new();
    for ledger in &ledgers {
        for (id, transaction) in &ledger.transactions {
            all.insert(*id, transaction);
            for input in transaction.wire().inputs() {
                let other = spent.insert(*input, *id).filter(|other| other != id);
                ensure!(
                    other.is_none(),
                    "{input} was consumed by {id} and by {other:?}"
                );
            }
        }
    }
    ensure!(
        spent == notarised,
        "the parties' transactions consume {} states, the notary knows of {}; of one side only: {:?}",
        spent.len(),
        notarised.len(),
        spent
            .iter()
            .filter(|(state, tx)| notarised.get(state) != Some(tx))
            .chain(
                notarised
                    .iter()
                    .filter(|(state, tx)| spent.get(state) != Some(tx))
            )
            .take(5)
            .collect::<Vec<_>>()
    );

    for ledger in &ledgers {
        let name = ledger.organisation;
        for (state, consumer) in &ledger.consumed {
            let right = spent.get(state) == Some(consumer);
            ensure!(
                right,
                "{name} has {state} as consumed by {consumer}; it was {:?}",
                spent.get(state)
            );
        }
        for state in &ledger.unconsumed {
            ensure!(
                !spent.contains_key(state),
                "{name} has {state} as unconsumed; {:?} consumed it",
                spent.get(state)
            );
        }
    }
    check_cash(&ledgers, &all, &spent, issued, payments)?;

    let mut seen = BTreeSet::new();
    for (payer, recipient, settled) in payments {
        for payment in *settled {
            ensure!(
                seen.insert(payment.tx),
                "{} settled two payments, one of them '{}'",
                payment.tx,
                payment.client_id
            );
            for party in [payer, recipient] {
                let ledger = ledgers.iter().find(|ledger| ledger.organisation == *party);
                let known =
                    ledger.is_some_and(|ledger| ledger.transactions.contains_key(&payment.tx));
                ensure!(
                    known,
                    "{party} does not have {} of payment '{}'",
                    payment.tx,
                    payment.client_id
                );
            }
        }
    }
    let moves = all
        .values()
        .filter(|transaction| !transaction.wire().inputs().is_empty())
        .count();
    ensure!(
        moves == seen.len(),
        "{moves} transactions moved cash, for {} payments",
        seen.len()
    );
    Ok(())
}

/// Every party owns what it was paid, less what it paid, and has all of it in its vault.
fn check_cash(
    ledgers: &[Ledger],
    all: &BTreeMap<TxId, &SignedTransaction>,
    spent: &BTreeMap<StateRef, TxId>,
    issued: &[(&'static str, i64)],
    payments: &[(&'static str, &'static str, &[Settled])],
) -> Result<()> {
    let mut owned: BTreeMap<String, i64> = BTreeMap::new();
    for transaction in all.values() {
        for output in transaction.wire().outputs_with_refs() {
            if output.state.state_type != Cash::TYPE {
                bail!("{} is not cash", output.reference);
            }
            let cash: Cash = output.read()?;
            let name = cash.owner.name.organisation().to_owned();
            let ledger = ledgers.iter().find(|ledger| ledger.organisation == name);
            let ledger = ledger.with_context(|| format!("{name} has no ledger"))?;
            let consumed = spent.contains_key(&output.reference);
            let held = if consumed {
                ledger.consumed.contains_key(&output.reference)
            } else {
                ledger.unconsumed.contains(&output.reference)
            };
            ensure!(
                held,
                "{name} lacks {} (consumed: {consumed})",
                output.reference
            );
            if !consumed {
                *owned.entry(name).or_default() += cash.amount.quantity;
            }
        }
    }
    for ledger in ledgers {
        let name = ledger.organisation;
        let paid = |by: &str, to: &str| -> i64 {
            payments
                .iter()
                .filter(|(payer, recipient, _)| {
                    (by.is_empty() || *payer == by) && (to.is_empty() || *recipient == to)
                })
                .flat_map(|(_, _, settled)| settled.iter())
                .map(|payment| payment.quantity)
                .sum()
        };
        let own = issued.iter().filter(|(issuer, _)| *issuer == name);
        let start: i64 = own.map(|(_, quantity)| quantity).sum();
        let expected = start + paid("", name) - paid(name, "");
        let owns = owned.get(name).copied().unwrap_or_default();
        ensure!(
            owns == expected,
            "{name} owns {owns} and should own {expected}"
        );
    }
    Ok(())
}
