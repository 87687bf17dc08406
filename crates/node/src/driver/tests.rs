//! Driver, host and post over a real store, with an application that misbehaves.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;

use quorate_flow::{
    App, Context, Finality, Flow, FlowRegistry, FlowTimeout, Limits, Owner, Recording, RetryPolicy,
    SideEffect, StatesToRecord,
};
use quorate_identity::{
    CertificateAuthority, KeyPair, NodeKeys, Party, SecureHash, SignatureScheme, UnixTime, X500Name,
};
use quorate_ledger::limits::MAX_SIGNATURES;
use quorate_ledger::network::{NetworkHostAndPort, NetworkParameters, SignedNetworkParameters};
use quorate_ledger::{
    Command, Contract, ContractRef, SignedTransaction, TransactionBuilder, TransactionState,
};
use quorate_runtime::Metrics;
use quorate_storage::lease::{Attempt, Candidate, Holder, Policy};
use quorate_storage::{Options, Relevance, WriterEnd, migrate};
use serde::{Deserialize, Serialize};

use super::*;
use crate::applications::Applications;
use crate::network_map::{NetworkMap, OwnInfo};

const PATIENCE: Duration = Duration::from_secs(20);
const NOW: UnixTime = UnixTime(1_800_000_000);

/// An application with faults.
struct Faulty;

/// Records a transaction in its first and only step.
#[derive(Serialize, Deserialize)]
struct Recorder {
    transactions: Vec<SignedTransaction>,
}

/// Performs a side effect that panics.
#[derive(Serialize, Deserialize)]
struct Panicking {}

struct Bang;

impl SideEffect for Bang {
    fn perform(
        &self,
        _: String,
        _: serde_json::Value,
    ) -> Pin<Box<dyn Future<Output = Result<serde_json::Value, HostError>> + Send>> {
        panic!("bang");
    }
}

impl Flow for Recorder {
    const NAME: &'static str = "faulty.Recorder";
    const STARTABLE_BY_RPC: bool = true;
    type Output = ();

    async fn call(self, ctx: Context) -> Result<(), FlowError> {
        ctx.record(self.transactions, StatesToRecord::None, Finality::Final)
            .await
    }
}

impl Flow for Panicking {
    const NAME: &'static str = "faulty.Panicking";
    const STARTABLE_BY_RPC: bool = true;
    type Output = ();

    async fn call(self, ctx: Context) -> Result<(), FlowError> {
        ctx.side_effect("bang", &()).await
    }
}

impl App for Faulty {
    fn name(&self) -> &str {
        "faulty"
    }

    fn version(&self) -> u32 {
        1
    }

    fn contracts(&self) -> Vec<Arc<dyn Contract>> {
        Vec::new()
    }

    fn register_flows(&self, registry: &mut FlowRegistry) {
        registry.flow::<Recorder>();
        registry.flow::<Panicking>();
    }

    fn side_effects(&self) -> Vec<(&'static str, Arc<dyn SideEffect>)> {
        vec![("bang", Arc::new(Bang))]
    }
}

/// What an active node has behind its ports.
struct World {
    flows: Flows,
    post: Post,
    writer: Writer,
    store: Store,
    tasks: Tasks,
    me: Party,
    _directory: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let me = X500Name::new("PartyA", "London", "GB").unwrap();
        let network_name = X500Name::new("Some Network", "London", "GB").unwrap();
        let scheme = SignatureScheme::Ed25519;
        let authority = CertificateAuthority::generate(&network_name, scheme, NOW).unwrap();
        let keys = NodeKeys::generate(&authority, &me, scheme, NOW).unwrap();
        let (clock, _) = Clock::manual(NOW.0 * 1_000_000);
        let parameters = NetworkParameters::first(Vec::new(), Timestamp::from_seconds(NOW.0));
        let signed = SignedNetworkParameters::sign(&parameters, authority.network_map()).unwrap();
        std::fs::write(path.join("network-parameters"), signed.encode()).unwrap();
        let address = NetworkHostAndPort::new("localhost", 10002).unwrap();
        let own = OwnInfo {
            keys: &keys,
            addresses: &[address],
            provides_notary_service: false,
        };
        let network = NetworkMap::load(path, &own, clock.clone())
            .unwrap()
            .subscribe();

        let applications = Applications::install(&[Arc::new(Faulty)]).unwrap();
        let url = format!("sqlite:{}", path.join("node.db").display());
        let options: Options = url.parse().unwrap();
        let store = Store::connect(options, applications.schemas.clone())
            .await
            .unwrap();
        migrate::execute(&store).await.unwrap();
        let holder = Holder::this_process("test", "/");
        let attempt = Candidate::new(&store, "node", holder, Policy::Always)
            .attempt()
            .await;
        let Ok(Attempt::Acquired(fence)) = attempt else {
            panic!("the lease is not ours: {attempt:?}");
        };
        let owner = Owner {
            instance: "test:/".to_owned(),
            generation: fence.generation(),
        };
        let key = keys.legal_identity().key().clone();
        let (writer, service) = store.writer(fence, Relevance::of_keys([key.public().clone()]));
        let tasks = Tasks::new("test");
        tasks.spawn("writer", async move {
            assert!(matches!(service.run().await, WriterEnd::Closed));
        });
        let machine = Machine::new(
            Arc::clone(&applications.registry),
            Arc::new(
                network
                    .borrow()
                    .surroundings(BTreeMap::new(), FlowTimeout::default()),
            ),
            owner,
            Limits::default(),
            RetryPolicy::default(),
        );
        let (flows, intake) = intake(&clock, &tasks);
        let metrics = Metrics::new();
        let post = Post::new(
            crate::post::Parts {
                store: store.clone(),
                writer: writer.clone(),
                flows: flows.clone(),
                desk: None,
                network,
                own: BTreeSet::from([me.clone()]),
                metrics: crate::metrics::PostMetrics::new(&metrics),
                journeys: crate::journeys::Journeys::new(Traces::off(), clock.clone()),
            },
            &tasks,
        );
        let host = Host::new(
            store.clone(),
            writer.clone(),
            vec![key.clone()],
            key.public().clone(),
            Arc::clone(&applications.contracts),
            applications.effects.clone(),
            None,
        );
        let parts = Parts {
            machine,
            writer: writer.clone(),
            store: store.clone(),
            host: Arc::new(host),
            post: post.clone(),
            clock,
            entropy: Entropy::system(),
            metrics: FlowMetrics::new(&metrics),
            traces: Traces::off(),
            tasks: tasks.clone(),
        };
        tasks.spawn("flows", Driver::new(parts, intake).run(Vec::new()));
        Self {
            flows,
            post,
            writer,
            store,
            tasks,
            me: keys.legal_identity().party(),
            _directory: directory,
        }
    }

    async fn start(&self, class: &str, arguments: &str, id: &str) -> Result<Started, StartError> {
        let id = ClientId::new(id).unwrap();
        let now = Timestamp::from_seconds(NOW.0);
        let start = start_by_client(
            "somebody",
            class.to_owned(),
            arguments.to_owned(),
            Some(id),
            now,
        );
        tokio::time::timeout(PATIENCE, self.flows.start(start))
            .await
            .expect("a start is answered")
    }

    /// Waits until `found` finds something.
    async fn until<T>(&self, mut found: impl AsyncFnMut() -> Option<T>) -> T {
        let waiting = async {
            loop {
                if let Some(found) = found().await {
                    return found;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting)
            .await
            .expect("it comes about")
    }
}

/// A recorder's arguments for an empty step.
const NOTHING: &str = r#"{"transactions":[]}"#;

#[tokio::test]
async fn a_start_that_the_store_refused_leaves_its_client_id_free() {
    let world = World::new().await;
    let wire = TransactionBuilder::without_notary()
        .add_output(TransactionState {
            contract: ContractRef {
                name: "faulty.Contract".to_owned(),
                code: SecureHash::ZERO,
            },
            state_type: "faulty.State".to_owned(),
            data: vec![1],
            participants: vec![world.me.owning_key.clone()],
            notary: world.me.clone(),
        })
        .add_command(Command {
            kind: "faulty.Do".to_owned(),
            data: Vec::new(),
            signers: vec![world.me.owning_key.clone()],
        })
        .build([1; 32])
        .unwrap();
    let unsigned = SignedTransaction::unsigned(wire);
    // More signatures than a transaction can have, once the two are merged.
    let signed = || {
        (0..=MAX_SIGNATURES / 2).fold(unsigned.clone(), |signed, _| {
            signed
                .sign(&KeyPair::generate(SignatureScheme::Ed25519))
                .unwrap()
        })
    };
    let mut unit = UnitOfWork::new();
    unit.recordings.push(Recording {
        transaction: signed(),
        states: StatesToRecord::None,
        finality: Finality::Final,
    });
    world.writer.commit(unit).await.unwrap();
    let arguments = Recorder {
        transactions: vec![signed()],
    };
    let arguments = serde_json::to_string(&arguments).unwrap();

    let refused = world.start(Recorder::NAME, &arguments, "order 1").await;
    assert!(matches!(refused, Err(StartError::Store(_))), "{refused:?}");
    let again = world
        .start(Recorder::NAME, NOTHING, "order 1")
        .await
        .unwrap();
    assert!(!again.reattached, "there was no flow under this id");
    let ended = world
        .until(async || {
            let record = world.store.flow(again.flow).await.unwrap();
            record.filter(|record| record.outcome.is_some())
        })
        .await;
    assert_eq!(ended.status, FlowStatus::Completed);
    // And now there was one.
    let ended = world
        .start(Recorder::NAME, &arguments, "order 1")
        .await
        .unwrap();
    assert_eq!((ended.flow, ended.reattached), (again.flow, true));
    assert!(!world.tasks.shutdown().is_requested());
}

#[tokio::test]
async fn simultaneous_starts_under_one_client_id_are_one_flow() {
    let world = World::new().await;
    let starts = (0..20).map(|_| world.start(Panicking::NAME, "{}", "order 1"));
    let started: Vec<Started> = futures::future::try_join_all(starts).await.unwrap();
    let flows: BTreeSet<FlowId> = started.iter().map(|one| one.flow).collect();
    assert_eq!(flows.len(), 1);
    let first = started.iter().filter(|one| !one.reattached).count();
    assert_eq!(first, 1);
}

#[tokio::test]
async fn a_request_whose_answer_panics_brings_its_flow_to_the_hospital() {
    let world = World::new().await;
    let started = world.start(Panicking::NAME, "{}", "order 1").await.unwrap();
    let sick = world
        .until(async || {
            let view = world.flows.view(started.flow).await?;
            (view.status == FlowStatus::Hospitalised).then_some(view)
        })
        .await;
    let why = sick.ailment.unwrap();
    assert!(why.contains("panicked: bang"), "{why}");
    // It can be treated: the request was not left with a host that is gone.
    assert!(world.flows.order(started.flow, Order::Retry).await);
    world
        .until(async || {
            let view = world.flows.view(started.flow).await?;
            (view.status == FlowStatus::Hospitalised && view.visits > sick.visits).then_some(())
        })
        .await;
    assert!(world.flows.order(started.flow, Order::Kill).await);
    world
        .until(async || world.flows.view(started.flow).await.is_none().then_some(()))
        .await;
}

#[tokio::test]
async fn a_message_that_was_dealt_with_before_does_no_harm() {
    let world = World::new().await;
    // Nobody's session: it is to be discarded, and is in no inbox.
    let envelope = Envelope::new(
        world.me.name.clone(),
        world.me.name.clone(),
        (quorate_flow::SessionId::from_bytes([3; 16]), true),
        7,
        Owner {
            instance: "test:/".to_owned(),
            generation: 1,
        },
        quorate_flow::SessionMessage::End,
    );
    let inbox = InboxId {
        peer: world.me.name.clone(),
        sequence: 9,
    };
    world.flows.deliver(vec![(inbox, envelope)]).await;
    // Its end is known by the time that of a later commit is.
    for id in ["order 1", "order 2"] {
        world.start(Recorder::NAME, NOTHING, id).await.unwrap();
    }
    assert!(!world.tasks.shutdown().is_requested());
}

#[tokio::test]
async fn messages_to_ourselves_wait_until_the_post_is_opened() {
    let world = World::new().await;
    let envelope = Envelope::new(
        world.me.name.clone(),
        world.me.name.clone(),
        (quorate_flow::SessionId::from_bytes([3; 16]), true),
        0,
        Owner {
            instance: "test:/".to_owned(),
            generation: 1,
        },
        quorate_flow::SessionMessage::End,
    );
    let mut unit = UnitOfWork::new();
    unit.outgoing.push(envelope);
    let committed = world.writer.commit(unit).await.unwrap();
    world.post.enqueued(committed.outgoing);
    // Other work goes on, so the post has had its chance.
    for order in 0..10 {
        world
            .start(Recorder::NAME, NOTHING, &order.to_string())
            .await
            .unwrap();
    }
    let waiting = world.store.outbox(&world.me.name, 0, 10).await.unwrap();
    assert_eq!(waiting.messages.len(), 1, "the inbox has not been taken up");
    assert_eq!(world.post.take_up_inbox().await.unwrap(), 0);
}
