//! A notary at its desk, and those who ask it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use quorate_flow::{Envelope, InboxId, Owner, SessionId, SessionMessage};
use quorate_identity::{KeyPair, Party, SecureHash, SignatureScheme, X500Name};
use quorate_ledger::{
    Command, ContractRef, NotarisationAnswer, NotarisationMessage, NotarisationPayload,
    NotaryError, StateRef, TimeWindow, Timestamp, TransactionBuilder, TransactionSignature,
    TransactionState, TxId, WireTransaction,
};
use quorate_notary::{
    Batch, Database, Handle, Identity, NotaryMetrics, Options, Service, Uniqueness, UniquenessError,
};
use quorate_runtime::{Clock, ManualClock, Metrics, Shutdown, Tasks};
use quorate_storage::lease::{Attempt, Candidate, Holder, Policy};
use quorate_storage::{
    CommitError, DatabaseUrl, Engine, Error, NotaryResult, Queued, Received, Reception, Refusal,
    Relevance, Store, UnitOfWork, Writer, migrate,
};
use quorate_testkit::postgres::{self, Postgres};
use tokio::sync::{Semaphore, watch};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// The notary's time when a test begins.
pub(crate) const NOON: i64 = 1_700_000_000_000_000;

/// A database that is gone after the test.
pub(crate) struct Db {
    pub(crate) options: quorate_storage::Options,
    _directory: tempfile::TempDir,
    _server: Option<Arc<Postgres>>,
}

/// `None` only where somebody has asked to leave PostgreSQL out.
pub(crate) async fn database(engine: Engine) -> Option<Db> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let directory = tempfile::tempdir().unwrap();
    let (url, server) = match engine {
        Engine::Sqlite => (
            format!("sqlite:{}/node.db", directory.path().display()),
            None,
        ),
        Engine::Postgres if postgres::skipped() => return None,
        Engine::Postgres => {
            let number = COUNTER.fetch_add(1, Ordering::Relaxed);
            let name = format!("notary_{}_{number}", std::process::id());
            let made = tokio::task::spawn_blocking(move || {
                let server = Postgres::shared().expect("a PostgreSQL server for the tests");
                let url = server.create_database(&name).expect("a database");
                (url, Some(server))
            });
            made.await.unwrap()
        }
    };
    let mut options = quorate_storage::Options::new(url.parse::<DatabaseUrl>().unwrap());
    options.readers = 2;
    Some(Db {
        options,
        _directory: directory,
        _server: server,
    })
}

/// A key for a name, the same throughout a run.
pub(crate) fn key(name: &'static str) -> KeyPair {
    static KEYS: LazyLock<Mutex<BTreeMap<&'static str, KeyPair>>> = LazyLock::new(Mutex::default);
    KEYS.lock()
        .unwrap()
        .entry(name)
        .or_insert_with(|| KeyPair::generate(SignatureScheme::Ed25519))
        .clone()
}

pub(crate) fn party(organisation: &'static str) -> Party {
    Party {
        name: X500Name::new(organisation, "Osaka", "JP").unwrap(),
        owning_key: key(organisation).public().clone(),
    }
}

pub(crate) fn notary() -> Party {
    party("Notary")
}

/// An output of a transaction that nobody has seen.
pub(crate) fn state(name: &str) -> StateRef {
    StateRef::new(TxId::new(SecureHash::of(name.as_bytes())), 0)
}

/// What a transaction is about.
#[derive(Clone)]
pub(crate) struct Draft {
    pub(crate) inputs: Vec<StateRef>,
    pub(crate) references: Vec<StateRef>,
    pub(crate) window: Option<TimeWindow>,
    pub(crate) notary: Party,
}

pub(crate) fn spend(inputs: &[&str]) -> Draft {
    Draft {
        inputs: inputs.iter().map(|name| state(name)).collect(),
        references: Vec::new(),
        window: None,
        notary: notary(),
    }
}

impl Draft {
    pub(crate) fn reading(mut self, references: &[&str]) -> Self {
        self.references = references.iter().map(|name| state(name)).collect();
        self
    }

    pub(crate) fn within(mut self, window: TimeWindow) -> Self {
        self.window = Some(window);
        self
    }

    /// A transaction that is like no other.
    pub(crate) fn build(&self) -> WireTransaction {
        static SALT: AtomicU64 = AtomicU64::new(1);
        let mut salt = [0; 32];
        salt[..8].copy_from_slice(&SALT.fetch_add(1, Ordering::Relaxed).to_le_bytes());
        let output = TransactionState {
            contract: ContractRef {
                name: "coin.Coins".into(),
                code: SecureHash::of(b"coins"),
            },
            state_type: "coin.Coin".into(),
            data: vec![1],
            participants: vec![party("PartyA").owning_key],
            notary: self.notary.clone(),
        };
        let mut builder = TransactionBuilder::new(self.notary.clone())
            .add_output(output)
            .add_command(Command::new("coin.Move", [party("PartyA").owning_key]));
        for input in &self.inputs {
            builder = builder.add_input(*input);
        }
        for reference in &self.references {
            builder = builder.add_reference(*reference);
        }
        if let Some(window) = self.window {
            builder = builder.time_window(window);
        }
        builder.build(salt).unwrap()
    }
}

/// The request of an organisation for its transaction.
pub(crate) fn request(wire: &WireTransaction, by: &'static str) -> NotarisationMessage {
    let payload = NotarisationPayload::filtered(wire).unwrap();
    NotarisationMessage::new(payload, &key(by))
}

pub(crate) fn at(micros: i64) -> Timestamp {
    Timestamp::from_micros(micros)
}

/// A provider that waits for permission, and fails when told to.
pub(crate) struct Gate {
    database: Database,
    permits: Semaphore,
    /// Failures of the next commits.
    failures: Mutex<VecDeque<CommitError>>,
    /// Batches with one of these transactions are refused.
    poison: Mutex<Vec<TxId>>,
    /// Batches that have reached the gate: requests and states.
    seen: watch::Sender<Vec<(usize, usize)>>,
}

impl Gate {
    pub(crate) fn close(&self) {
        self.permits.forget_permits(Semaphore::MAX_PERMITS);
    }

    pub(crate) fn open(&self) {
        self.close();
        self.permits.add_permits(Semaphore::MAX_PERMITS / 2);
    }

    pub(crate) fn fail_next(&self, times: usize) {
        let transient = || CommitError::Transient(Arc::new(corrupt()));
        let mut failures = self.failures.lock().unwrap();
        failures.extend(std::iter::repeat_with(transient).take(times));
    }

    pub(crate) fn refuse(&self, tx: TxId) {
        self.poison.lock().unwrap().push(tx);
    }

    pub(crate) fn batches(&self) -> Vec<(usize, usize)> {
        self.seen.borrow().clone()
    }

    /// Waits until so many batches have come to the gate.
    pub(crate) async fn has_seen(&self, count: usize) {
        let mut seen = self.seen.subscribe();
        let enough = seen.wait_for(|seen| seen.len() >= count);
        tokio::time::timeout(PATIENCE, enough)
            .await
            .expect("batches in time")
            .unwrap();
    }
}

fn corrupt() -> Error {
    Error::Corrupt {
        what: "test".into(),
        reason: "it was told to".into(),
    }
}

type Decided = Result<(Vec<NotaryResult>, Vec<Queued>), UniquenessError>;

impl Uniqueness for Gate {
    fn commit(&self, batch: Batch) -> Pin<Box<dyn Future<Output = Decided> + Send + '_>> {
        Box::pin(async move {
            let states = batch.entries.iter();
            let states = states.map(|entry| entry.inputs.len() + entry.references.len());
            let size = (batch.entries.len(), states.sum());
            self.seen.send_modify(|seen| seen.push(size));
            self.permits.acquire().await.unwrap().forget();
            if let Some(source) = self.failures.lock().unwrap().pop_front() {
                return Err(UniquenessError {
                    source,
                    transient: true,
                });
            }
            let poisoned = {
                let poison = self.poison.lock().unwrap();
                batch.entries.iter().any(|entry| poison.contains(&entry.tx))
            };
            if poisoned {
                return Err(UniquenessError {
                    source: CommitError::Refused(Arc::new(Refusal::Database(corrupt()))),
                    transient: false,
                });
            }
            self.database.commit(batch).await
        })
    }
}

/// A notary that works.
pub(crate) struct Desk {
    pub(crate) store: Store,
    writer: Writer,
    writing: tokio::task::JoinHandle<()>,
    pub(crate) handle: Handle,
    pub(crate) gate: Arc<Gate>,
    pub(crate) time: ManualClock,
    pub(crate) metrics: Metrics,
    tasks: Tasks,
    /// Sessions whose answers have been handed on for sending, by this desk or before it.
    sent: watch::Sender<BTreeSet<SessionId>>,
    sequences: Mutex<BTreeMap<X500Name, u64>>,
}

impl Desk {
    pub(crate) async fn open(db: &Db, options: Options) -> Self {
        let store = Store::connect(db.options.clone(), Vec::new())
            .await
            .unwrap();
        migrate::execute(&store).await.unwrap();
        let holder = Holder::this_process("a", "/opt/notary");
        let mut candidate = Candidate::new(&store, "node", holder, Policy::Always);
        let Attempt::Acquired(fence) = candidate.attempt().await.unwrap() else {
            panic!("nobody else holds the lease");
        };
        let owner = Owner {
            instance: fence.instance().to_owned(),
            generation: fence.generation(),
        };
        let (writer, service) = store.writer(fence, Relevance::default());
        let writing = tokio::spawn(async move { drop(service.run().await) });
        let gate = Arc::new(Gate {
            database: Database::new(writer.clone()),
            permits: Semaphore::new(0),
            failures: Mutex::default(),
            poison: Mutex::default(),
            seen: watch::Sender::new(Vec::new()),
        });
        gate.open();
        let identity = Identity {
            party: notary(),
            key: key("Notary").into(),
            owner,
        };
        let known = ["PartyA", "PartyB"].map(party);
        let directory =
            Arc::new(move |name: &X500Name| known.iter().find(|p| p.name == *name).cloned());
        let (clock, time) = Clock::manual(NOON);
        let metrics = Metrics::new();
        let (service, handle) = Service::new(
            identity,
            options,
            Arc::clone(&gate) as Arc<dyn Uniqueness>,
            directory,
            clock,
            NotaryMetrics::new(&metrics),
        );
        let tasks = Tasks::with_shutdown("notary", Shutdown::new());
        let mut answered = BTreeSet::new();
        for queue in store.outbox_peers().await.unwrap() {
            let page = store.outbox(&queue.peer, 0, 100_000).await.unwrap();
            let envelopes = page
                .messages
                .iter()
                .map(|(_, bytes)| Envelope::decode(bytes));
            answered.extend(envelopes.map(|envelope| envelope.unwrap().session));
        }
        let sent = watch::Sender::new(answered);
        let sink = {
            let sent = sent.clone();
            Arc::new(move |queued: Vec<Queued>| {
                let envelopes = queued
                    .iter()
                    .map(|queued| Envelope::decode(&queued.envelope));
                let sessions = envelopes.map(|envelope| envelope.unwrap().session);
                sent.send_modify(|sent| sent.extend(sessions));
            })
        };
        service.start(&tasks, sink);
        Self {
            store,
            writer,
            writing,
            handle,
            gate,
            time,
            metrics,
            tasks,
            sent,
            sequences: Mutex::default(),
        }
    }

    /// Stops as a process does that is asked to; batches at the gate are dropped.
    pub(crate) async fn close(self) {
        let Self {
            store,
            writer,
            writing,
            handle,
            gate,
            tasks,
            ..
        } = self;
        drop(tasks.stop(Duration::from_millis(10)).await);
        drop((handle, gate, writer));
        writing.await.unwrap();
        store.close().await;
    }

    /// Puts a request into the inbox, as the post office does.
    pub(crate) async fn receive(&self, from: &X500Name, first: Option<Vec<u8>>) -> Mail {
        let sequence = {
            let mut sequences = self.sequences.lock().unwrap();
            let last = sequences.entry(from.clone()).or_default();
            *last += 1;
            *last
        };
        let mut session = [0; 16];
        session[..8].copy_from_slice(&SecureHash::of(from.as_str().as_bytes()).as_bytes()[..8]);
        session[8..].copy_from_slice(&sequence.to_be_bytes());
        let session = SessionId::from_bytes(session);
        let owner = Owner {
            instance: "b".into(),
            generation: 1,
        };
        let body = SessionMessage::Initiate {
            flow: quorate_flow::standard::NOTARISE.into(),
            app_version: 1,
            first,
        };
        let to = notary().name;
        let envelope = Envelope::new(from.clone(), to, (session, true), 0, owner, body);
        let unit = UnitOfWork::receive(vec![Received {
            peer: from.clone(),
            epoch: [1; 16],
            sequence,
            envelope: envelope.encode().into(),
        }]);
        let committed = self.writer.commit(unit).await.unwrap();
        let Reception::Accepted(inbox) = committed.received[0].clone() else {
            panic!("it is new");
        };
        Mail { inbox, envelope }
    }

    /// Sends a request; its answer can be waited for.
    pub(crate) async fn send(&self, from: &X500Name, first: Option<Vec<u8>>) -> SessionId {
        let Mail { inbox, envelope } = self.receive(from, first).await;
        let session = envelope.session;
        let submitted = self.handle.submit(inbox, envelope);
        tokio::time::timeout(PATIENCE, submitted)
            .await
            .expect("bringing a request never waits");
        session
    }

    /// Sends the request of PartyA for a transaction.
    pub(crate) async fn ask(&self, wire: &WireTransaction) -> SessionId {
        let message = request(wire, "PartyA").encode();
        self.send(&party("PartyA").name, Some(message)).await
    }

    /// The answers that lie in the outbox, by session.
    pub(crate) async fn answers(&self, to: &X500Name) -> BTreeMap<SessionId, NotarisationAnswer> {
        let page = self.store.outbox(to, 0, 100_000).await.unwrap();
        let mut answers = BTreeMap::new();
        for (_, bytes) in page.messages {
            let envelope = Envelope::decode(&bytes).unwrap();
            assert_eq!(envelope.sender, notary().name);
            assert_eq!((envelope.from_initiator, envelope.sequence), (false, 0));
            let SessionMessage::Data {
                payload,
                last: true,
            } = envelope.body
            else {
                panic!("not an answer: {:?}", envelope.body);
            };
            let answer = NotarisationAnswer::decode(&payload).unwrap();
            assert!(
                answers.insert(envelope.session, answer).is_none(),
                "a session was answered twice"
            );
        }
        answers
    }

    /// The answer to a request, when it has been handed on for sending.
    pub(crate) async fn answer_to(
        &self,
        from: &X500Name,
        session: SessionId,
    ) -> NotarisationAnswer {
        let mut sent = self.sent.subscribe();
        let sending = sent.wait_for(|sent| sent.contains(&session));
        tokio::time::timeout(PATIENCE, sending)
            .await
            .expect("an answer in time")
            .unwrap();
        let answer = self.answers(from).await.remove(&session);
        answer.expect("what is sent lies in the outbox")
    }

    pub(crate) async fn answer(&self, session: SessionId) -> NotarisationAnswer {
        self.answer_to(&party("PartyA").name, session).await
    }

    /// Asks for PartyA, and waits for the answer.
    pub(crate) async fn notarise(&self, wire: &WireTransaction) -> NotarisationAnswer {
        let session = self.ask(wire).await;
        self.answer(session).await
    }

    /// What the peers have sent so far, for the desk that takes over.
    pub(crate) fn sequences(&self) -> BTreeMap<X500Name, u64> {
        self.sequences.lock().unwrap().clone()
    }

    pub(crate) fn continue_with(&self, sequences: BTreeMap<X500Name, u64>) {
        *self.sequences.lock().unwrap() = sequences;
    }

    /// Hands over what a predecessor has left in the inbox, as a node does when it starts.
    pub(crate) async fn take_up_inbox(&self) {
        for message in self.store.inbox(None, 100_000).await.unwrap() {
            let envelope = Envelope::decode(&message.envelope).unwrap();
            self.handle.submit(message.id, envelope).await;
        }
    }

    pub(crate) async fn inbox(&self) -> Vec<InboxId> {
        let page = self.store.inbox(None, 100_000).await.unwrap();
        page.into_iter().map(|message| message.id).collect()
    }

    /// A metric's value.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let text = self.metrics.render();
        let mut lines = text.lines();
        let line = lines.find(|line| line.split(' ').next() == Some(name));
        let line = line.unwrap_or_else(|| panic!("no metric {name} in {text}"));
        line.split(' ').nth(1).unwrap().parse().unwrap()
    }
}

/// A message in the inbox.
pub(crate) struct Mail {
    pub(crate) inbox: InboxId,
    pub(crate) envelope: Envelope,
}

#[track_caller]
pub(crate) fn signature(answer: NotarisationAnswer) -> TransactionSignature {
    match answer {
        NotarisationAnswer::Signed(signatures) => {
            let [signature] = <[_; 1]>::try_from(signatures).expect("one signature");
            signature
        }
        NotarisationAnswer::Refused(error) => panic!("refused: {error}"),
    }
}

#[track_caller]
pub(crate) fn refusal(answer: NotarisationAnswer) -> NotaryError {
    match answer {
        NotarisationAnswer::Refused(error) => error,
        NotarisationAnswer::Signed(_) => panic!("it was signed"),
    }
}

/// Asserts that an answer is the notary's signature over this transaction.
#[track_caller]
pub(crate) fn assert_signs(answer: NotarisationAnswer, wire: &WireTransaction) {
    let signature = signature(answer);
    assert_eq!(signature.by, notary().owning_key);
    signature.verify(&wire.id()).unwrap();
}

/// The states of a conflict, with the transactions that have consumed them.
#[track_caller]
pub(crate) fn conflict(answer: NotarisationAnswer) -> Vec<(StateRef, TxId, bool)> {
    match refusal(answer) {
        NotaryError::Conflict { consumed, .. } => consumed
            .into_iter()
            .map(|(state, by)| (state, by.tx, by.as_reference))
            .collect(),
        other => panic!("{other}"),
    }
}
