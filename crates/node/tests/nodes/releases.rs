//! Two machines of one node change to a release whose tables are others, one after the other, while peers pay.

use std::sync::Arc;

use quorate_cash::CashApp;
use quorate_flow::{App, FlowRegistry, SideEffect};
use quorate_ledger::schema::{Column, ColumnKind, ColumnValue, MappedSchema, SchemaChange};
use quorate_ledger::{Contract, TransactionState};
use quorate_node::config::{LoadOptions, NodeConfiguration};
use quorate_node::control::Question;
use quorate_rpc::Client;
use quorate_rpc::api::ClientId;
use quorate_runtime::Clock;
use quorate_storage::{Store, migrate};
use quorate_testkit::postgres;
use serde_json::json;

use crate::world::*;

/// The next release of the cash application: its table has one more column, and an index on it.
struct NextCash;

impl App for NextCash {
    fn name(&self) -> &str {
        CashApp.name()
    }

    fn version(&self) -> u32 {
        CashApp.version() + 1
    }

    fn contracts(&self) -> Vec<Arc<dyn Contract>> {
        CashApp.contracts()
    }

    fn schemas(&self) -> Vec<MappedSchema> {
        let mut schemas = CashApp.schemas();
        for schema in &mut schemas {
            if schema.name == quorate_cash::cash::schema().name {
                let column = Column::nullable("notary", ColumnKind::Text);
                schema.versions.push(SchemaChange::AddColumn(column));
                schema.versions.push(SchemaChange::AddIndex {
                    name: "by_notary",
                    columns: vec!["notary"],
                });
                schema.map = with_notary;
            }
        }
        schemas
    }

    fn register_flows(&self, registry: &mut FlowRegistry) {
        CashApp.register_flows(registry);
    }

    fn side_effects(&self) -> Vec<(&'static str, Arc<dyn SideEffect>)> {
        CashApp.side_effects()
    }
}

fn with_notary(state: &TransactionState) -> Option<Vec<ColumnValue>> {
    let mut columns = (quorate_cash::cash::schema().map)(state)?;
    columns.push(state.notary.name.to_string().into());
    Some(columns)
}

/// Waits until a node has this much: a payment is made when the payer has it, and comes a little later.
async fn has(owner: &Client, pence: i64) {
    eventually("the payment has come", async || {
        balance(owner).await == pence
    })
    .await;
}

/// The guide's steps: the cold one is stopped and changed, the tables are migrated while the hot one serves, the new
/// release stands by and is handed the node, and the former one is changed last. Flows of the former release go on.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_changes_its_release_and_its_tables_while_peers_pay() {
    if postgres::skipped() {
        return;
    }
    let exclusion = "enterpriseConfiguration { mutualExclusionConfiguration { on = true, machineName = one, \
                     updateInterval = 500, waitInterval = 1500 } }";
    let shared = plan("PartyB").on_postgres().with(exclusion);
    let world = World::new(vec![plan("PartyA"), shared, plan("Notary").notary()]).await;
    let [a, b, notary] = world.start_all(["PartyA", "PartyB", "Notary"]).await;
    let (payer, owner) = (a.client().await, b.client().await);
    issue(&payer, "100.00").await;
    pay(&payer, "10.00", "PartyB").await.unwrap();
    // A flow that outlives its release.
    let client_id = ClientId::new("a long nap").unwrap();
    let nap = json!({ "millis": 5_000 });
    let nap = owner.start_flow_with_client_id(client_id.clone(), "test.Nap", nap);
    nap.await.unwrap();

    // The other machine gets the next release, which does not start before the tables are as it needs them.
    let cold = world.copy("PartyB", "PartyB-two", |text| {
        let text = text.replace("machineName = one", "machineName = two");
        assert!(text.contains("runMigration"), "{text}");
        text.replace("runMigration = true", "runMigration = false")
            .replace("runMigration=true", "runMigration=false")
    });
    let next = || {
        let mut apps = world.apps("PartyB");
        apps[0] = Arc::new(NextCash);
        apps
    };
    let refused = world.launch("PartyB", &cold, next()).await;
    let refused = refused.err().expect("the tables are not current");
    let why = quorate_runtime::tasks::chain(&refused);
    assert!(why.contains("execute-migration"), "{why}");

    // Migrated while the former release serves; that one goes on.
    let schemas = next().iter().flat_map(|app| app.schemas()).collect();
    let configuration = NodeConfiguration::load(&cold, None, &LoadOptions::default()).unwrap();
    let store = Store::connect(configuration.database.store_options(), schemas);
    let store = store.await.unwrap();
    assert_eq!(migrate::execute(&store).await.unwrap().len(), 2);
    pay(&payer, "20.00", "PartyB").await.unwrap();
    has(&owner, 3_000).await;

    let standby = world.launch("PartyB", &cold, next()).await.unwrap();
    eventually("the next release stands by", async || {
        standby.role().await == "standby"
    })
    .await;
    let paying = {
        let payer = payer.clone();
        tokio::spawn(async move { pay(&payer, "30.00", "PartyB").await.unwrap() })
    };
    let answer = b.control.answer(Question::HandOver, &Clock::system()).await;
    assert!(answer.ok, "{}", answer.message);
    let b = (b, standby.serving().await.unwrap());
    paying.await.unwrap();
    let owner = b.1.client().await;
    eventually("the payment has come", async || {
        balance(&owner).await == 6_000
    })
    .await;
    let nap = owner.reattach_flow_with_client_id(client_id).await.unwrap();
    assert_eq!(nap.result(PATIENCE).await.unwrap(), json!(5_000));
    pay(&owner, "15.00", "PartyA").await.unwrap();
    has(&owner, 4_500).await;

    // The former release does not come back to tables that it does not know.
    b.0.stop().await;
    let directory = world.directory("PartyB");
    let refused = world.launch("PartyB", &directory, world.apps("PartyB"));
    let refused = refused.await.err().expect("the tables are newer");
    let why = quorate_runtime::tasks::chain(&refused);
    assert!(why.contains("newer"), "{why}");
    let upgraded = world.launch("PartyB", &directory, next()).await.unwrap();
    eventually("the first machine stands by", async || {
        upgraded.role().await == "standby"
    })
    .await;
    b.1.stop().await;
    let b = upgraded.serving().await.unwrap();
    pay(&payer, "5.00", "PartyB").await.unwrap();
    let owner = b.client().await;
    has(&owner, 5_000).await;
    store.close().await;
    for node in [a, b, notary] {
        node.stop().await;
    }
}
