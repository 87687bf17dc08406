//! Databases, and a ledger small enough to think about: coins with an amount and a currency.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quorate_flow::{
    ClientId, Envelope, Finality, FlowId, FlowOutcome, FlowStart, FlowStatus, Origin, Owner,
    Recording, SessionId, SessionMessage, StatesToRecord, StepCommit,
};
use quorate_identity::{KeyPair, Party, PublicKey, SecureHash, SignatureScheme, X500Name};
use quorate_ledger::schema::{Column, ColumnKind, MappedSchema, SchemaChange};
use quorate_ledger::vault::Criteria;
use quorate_ledger::{
    Command, ContractRef, SignedTransaction, StateRef, Timestamp, TransactionBuilder,
    TransactionState,
};
use quorate_storage::lease::{Attempt, Candidate, Holder, Policy};
use quorate_storage::{
    CommitError, Committed, DatabaseUrl, Engine, Fence, Options, Received, Relevance, Store,
    UnitOfWork, Writer, WriterEnd, migrate,
};
use quorate_testkit::postgres::{self, Postgres};
use tokio::task::JoinHandle;

/// A database that is gone after the test.
pub(crate) struct Db {
    pub(crate) options: Options,
    _directory: tempfile::TempDir,
    pub(crate) server: Option<Arc<Postgres>>,
    pub(crate) name: String,
}

/// `None` only where somebody has asked to leave PostgreSQL out.
pub(crate) async fn database(engine: Engine) -> Option<Db> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let directory = tempfile::tempdir().unwrap();
    let name = format!(
        "test_{}_{}",
        std::process::id(),
        COUNTER.fetch_add(1, Ordering::Relaxed)
    );
    let (url, server) = match engine {
        Engine::Sqlite => (
            format!("sqlite:{}/node.db", directory.path().display()),
            None,
        ),
        Engine::Postgres if postgres::skipped() => return None,
        Engine::Postgres => {
            let name = name.clone();
            let made = tokio::task::spawn_blocking(move || {
                let server = Postgres::shared().expect("a PostgreSQL server for the tests");
                (
                    server.create_database(&name).expect("a database"),
                    Some(server),
                )
            });
            made.await.unwrap()
        }
    };
    let mut options = Options::new(url.parse::<DatabaseUrl>().unwrap());
    options.readers = 2;
    Some(Db {
        options,
        _directory: directory,
        server,
        name,
    })
}

impl Db {
    pub(crate) async fn empty_store(&self) -> Store {
        Store::connect(self.options.clone(), vec![coins()])
            .await
            .unwrap()
    }

    pub(crate) async fn store(&self) -> Store {
        let store = self.empty_store().await;
        migrate::execute(&store).await.unwrap();
        store
    }
}

impl Db {
    /// Does what only a person at the database's own prompt can do.
    pub(crate) async fn run_sql(&self, sql: &str) {
        match (&self.server, &self.options.url) {
            (Some(server), _) => {
                let (server, name, sql) = (server.clone(), self.name.clone(), sql.to_owned());
                let run = move || server.psql(&name, &sql).unwrap();
                tokio::task::spawn_blocking(run).await.unwrap();
            }
            (None, DatabaseUrl::Sqlite { path }) => {
                use sqlx::{ConnectOptions, Executor};
                let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
                let mut connection = options.connect().await.unwrap();
                let sql = sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned()));
                connection.execute(sql).await.unwrap();
            }
            (None, url) => panic!("no server for {url}"),
        }
    }
}

pub(crate) fn holder(machine: &str) -> Holder {
    Holder::this_process(machine, "/opt/node")
}

pub(crate) async fn take(store: &Store, machine: &str) -> Fence {
    let mut candidate = Candidate::new(store, "node", holder(machine), Policy::Always);
    match candidate.attempt().await.unwrap() {
        Attempt::Acquired(fence) => fence,
        other => panic!("{other:?}"),
    }
}

/// A store with a writer at work.
pub(crate) struct Node {
    pub(crate) store: Store,
    pub(crate) writer: Writer,
    pub(crate) service: JoinHandle<WriterEnd>,
}

pub(crate) async fn node(db: &Db) -> Node {
    let store = db.store().await;
    let fence = take(&store, "a").await;
    with_fence(store, fence)
}

pub(crate) fn with_fence(store: Store, fence: Fence) -> Node {
    let (writer, service) = store.writer(fence, Relevance::of_keys([us().owning_key]));
    let service = tokio::spawn(service.run());
    Node {
        store,
        writer,
        service,
    }
}

impl Node {
    pub(crate) async fn commit(&self, unit: UnitOfWork) -> Committed {
        self.writer.commit(unit).await.unwrap()
    }

    pub(crate) async fn record(
        &self,
        transaction: &SignedTransaction,
        states: StatesToRecord,
    ) -> Committed {
        self.commit(recording(transaction, states, Finality::Final))
            .await
    }

    /// Puts coins of these amounts into the vault, one transaction.
    pub(crate) async fn issue(&self, currency: &str, amounts: &[i64]) -> SignedTransaction {
        let outputs = amounts.iter().map(|amount| coin(*amount, currency, &us()));
        let transaction = transaction(&[], outputs);
        self.record(&transaction, StatesToRecord::OnlyRelevant)
            .await;
        transaction
    }

    pub(crate) async fn start_flow(&self, flow: FlowId) {
        self.commit(UnitOfWork::step(start(flow, None))).await;
    }
}

pub(crate) fn recording(
    transaction: &SignedTransaction,
    states: StatesToRecord,
    finality: Finality,
) -> UnitOfWork {
    let recordings = vec![Recording {
        transaction: transaction.clone(),
        states,
        finality,
    }];
    UnitOfWork {
        recordings,
        ..UnitOfWork::default()
    }
}

fn party(organisation: &'static str) -> Party {
    let name = X500Name::new(organisation, "Osaka", "JP").unwrap();
    Party {
        name,
        owning_key: key(organisation).public().clone(),
    }
}

/// A key for a name, the same throughout a run.
pub(crate) fn key(name: &'static str) -> KeyPair {
    use std::collections::BTreeMap;
    use std::sync::{LazyLock, Mutex};
    static KEYS: LazyLock<Mutex<BTreeMap<&'static str, KeyPair>>> = LazyLock::new(Mutex::default);
    KEYS.lock()
        .unwrap()
        .entry(name)
        .or_insert_with(|| KeyPair::generate(SignatureScheme::Ed25519))
        .clone()
}

pub(crate) fn us() -> Party {
    party("PartyA")
}

pub(crate) fn them() -> Party {
    party("PartyB")
}

pub(crate) fn notary() -> Party {
    party("Notary")
}

/// The coins' application.
pub(crate) fn coins() -> MappedSchema {
    MappedSchema {
        name: "coin",
        table: "coin_states",
        versions: vec![
            SchemaChange::AddTable {
                columns: vec![
                    Column::required("quantity", ColumnKind::BigInt),
                    Column::required("currency", ColumnKind::Text),
                    Column::nullable("memo", ColumnKind::Bytes),
                ],
            },
            SchemaChange::AddIndex {
                name: "by_currency",
                columns: vec!["currency"],
            },
        ],
        state_types: vec!["coin.Coin"],
        map: |state| {
            let text = String::from_utf8(state.data.clone()).ok()?;
            let (amount, currency) = text.split_once(' ')?;
            let amount: i64 = amount.parse().ok()?;
            let memo = (amount % 2 == 0).then(|| vec![amount as u8]);
            Some(vec![amount.into(), currency.into(), memo.into()])
        },
    }
}

pub(crate) fn coin(amount: i64, currency: &str, owner: &Party) -> TransactionState {
    TransactionState {
        contract: ContractRef {
            name: "coin.Coins".into(),
            code: SecureHash::of(b"coins"),
        },
        state_type: "coin.Coin".into(),
        data: format!("{amount} {currency}").into_bytes(),
        participants: vec![owner.owning_key.clone()],
        notary: notary(),
    }
}

pub(crate) fn amount(state: &TransactionState) -> i64 {
    String::from_utf8(state.data.clone())
        .unwrap()
        .split_once(' ')
        .unwrap()
        .0
        .parse()
        .unwrap()
}

/// A transaction that is like no other, unsigned.
pub(crate) fn transaction(
    inputs: &[StateRef],
    outputs: impl IntoIterator<Item = TransactionState>,
) -> SignedTransaction {
    static SALT: AtomicU64 = AtomicU64::new(1);
    let mut salt = [0; 32];
    salt[..8].copy_from_slice(&SALT.fetch_add(1, Ordering::Relaxed).to_le_bytes());
    let mut builder =
        TransactionBuilder::new(notary()).add_command(Command::new("coin.Move", [us().owning_key]));
    for input in inputs {
        builder = builder.add_input(*input);
    }
    for output in outputs {
        builder = builder.add_output(output);
    }
    SignedTransaction::unsigned(builder.build(salt).unwrap())
}

pub(crate) fn output(transaction: &SignedTransaction, index: u32) -> StateRef {
    StateRef::new(transaction.id(), index)
}

pub(crate) fn dollars() -> Criteria {
    Criteria::of_type("coin.Coin").and(Criteria::column(
        "coin",
        "currency",
        quorate_ledger::vault::Cmp::Equal,
        "USD",
    ))
}

pub(crate) fn flow(number: u64) -> FlowId {
    let mut bytes = [0; 16];
    bytes[8..].copy_from_slice(&number.to_be_bytes());
    FlowId::from_bytes(bytes)
}

/// A step that changes nothing.
pub(crate) fn step(flow: FlowId) -> StepCommit {
    StepCommit {
        flow,
        start: None,
        status: FlowStatus::Suspended,
        checkpoint: b"header".to_vec(),
        progress: None,
        entries: Vec::new(),
        consumed: Vec::new(),
        outgoing: Vec::new(),
        recordings: Vec::new(),
        outcome: None,
    }
}

pub(crate) fn start(flow: FlowId, client_id: Option<&str>) -> StepCommit {
    let start = FlowStart {
        class: "coin.Pay".into(),
        arguments: r#"{"amount":1}"#.into(),
        client_id: client_id.map(|id| ClientId::new(id).unwrap()),
        origin: Origin::Rpc {
            user: "user1".into(),
        },
        started_at: Timestamp::from_micros(1_700_000_000_000_000),
    };
    StepCommit {
        start: Some(start),
        entries: vec![(0, b"first".to_vec())],
        ..step(flow)
    }
}

pub(crate) fn end(flow: FlowId, result: &str) -> StepCommit {
    StepCommit {
        outcome: Some(FlowOutcome::Completed {
            result: result.into(),
        }),
        ..step(flow)
    }
}

pub(crate) fn envelope(to: &Party, number: u64) -> Envelope {
    let owner = Owner {
        instance: "a:/opt/node".into(),
        generation: 1,
    };
    let body = SessionMessage::Data {
        payload: number.to_le_bytes().to_vec(),
        last: false,
    };
    let session = (SessionId::from_bytes([7; 16]), true);
    Envelope::new(us().name, to.name.clone(), session, number, owner, body)
}

pub(crate) fn received(epoch: u8, sequence: u64) -> Received {
    let envelope = format!("{epoch}/{sequence}").into_bytes().into();
    Received {
        peer: them().name,
        epoch: [epoch; 16],
        sequence,
        envelope,
    }
}

pub(crate) fn public_key() -> PublicKey {
    us().owning_key
}

pub(crate) fn is_fenced(error: &CommitError) -> bool {
    matches!(error, CommitError::Fenced(_))
}
