//! Networks of nodes in a temporary directory.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use quorate_cash::CashApp;
use quorate_flow::App;
use quorate_identity::X500Name;
use quorate_ledger::TxId;
use quorate_ledger::vault::{Criteria, PageRequest, VaultQuery};
use quorate_node::bootstrap::{BootstrapOptions, bootstrap};
use quorate_node::config::{LoadOptions, NodeConfiguration};
use quorate_node::control::{Control, Question};
use quorate_node::{Addresses, Milestone, Node, NodeError, NodeOptions};
use quorate_rpc::{Client, ClientError, Options, Password};
use quorate_runtime::operations::{Health, Operations, Readiness, Version};
use quorate_runtime::telemetry::LogControl;
use quorate_runtime::{Clock, Entropy, Metrics, Tasks};
use quorate_testkit::postgres::{self, Postgres};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::app::{Outside, TestApp};

/// How long anything may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Pause between two looks at a condition that nobody announces.
const POLL: Duration = Duration::from_millis(20);

/// One node of a network.
pub(crate) struct Plan {
    organisation: &'static str,
    /// Further lines of its configuration.
    extra: String,
    postgres: bool,
}

pub(crate) fn plan(organisation: &'static str) -> Plan {
    Plan {
        organisation,
        extra: String::new(),
        postgres: false,
    }
}

impl Plan {
    pub(crate) fn with(mut self, line: &str) -> Self {
        self.extra.push_str(line);
        self.extra.push('\n');
        self
    }

    pub(crate) fn notary(self) -> Self {
        self.with("notary { validating = false }")
    }

    pub(crate) fn on_postgres(mut self) -> Self {
        self.postgres = true;
        self
    }
}

/// PartyA, PartyB and a notary.
pub(crate) fn three() -> Vec<Plan> {
    vec![plan("PartyA"), plan("PartyB"), plan("Notary").notary()]
}

pub(crate) fn name(organisation: &str) -> X500Name {
    format!("O={organisation}, L=Osaka, C=JP").parse().unwrap()
}

/// Directories of nodes, running or not.
pub(crate) struct World {
    folder: tempfile::TempDir,
    /// What happens outside of the ledger, by node.
    outside: BTreeMap<&'static str, Arc<Outside>>,
    postgres: Option<Arc<Postgres>>,
}

/// Ports that are free now. They are below those that the system gives to outgoing connections, so that none of these
/// takes one meanwhile, and each process looks in a place of its own.
fn free_ports(count: usize) -> Vec<u16> {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let mut ports = Vec::new();
    while ports.len() < count {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 12_000 + (std::process::id() * 41 + number) % 20_000;
        let port = u16::try_from(port).unwrap();
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            ports.push(port);
        }
    }
    ports
}

fn database_name(organisation: &str) -> String {
    let organisation = organisation.to_ascii_lowercase();
    format!("nodes_{}_{organisation}", std::process::id())
}

impl World {
    /// Does what only a person at the prompt of a node's PostgreSQL database can do.
    pub(crate) async fn sql(&self, organisation: &str, sql: &str) {
        let server = self.postgres.clone().expect("the node is on PostgreSQL");
        let (database, sql) = (database_name(organisation), sql.to_owned());
        let run = tokio::task::spawn_blocking(move || server.psql(&database, &sql));
        run.await.unwrap().unwrap();
    }

    pub(crate) async fn new(plans: Vec<Plan>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let postgres = if plans.iter().any(|plan| plan.postgres) {
            let shared = tokio::task::spawn_blocking(|| Postgres::shared().expect("PostgreSQL"));
            Some(shared.await.unwrap())
        } else {
            None
        };
        let mut outside = BTreeMap::new();
        for plan in plans {
            let organisation = plan.organisation;
            outside.insert(organisation, Arc::new(Outside::default()));
            let ports = free_ports(3);
            let mut text = format!(
                r#"myLegalName = "{}"
devMode = true
p2pAddress = "127.0.0.1:{}"
rpcSettings {{ address = "127.0.0.1:{}" }}
webAddress = "127.0.0.1:{}"
rpcUsers = [
  {{ user = "admin", password = "secret", permissions = [ "ALL" ] }}
  {{ user = "payer", password = "pay", permissions = [ "StartFlow.cash.Payment", "InvokeRpc.flowStatus" ] }}
]
database {{ runMigration = true }}
"#,
                name(organisation),
                ports[0],
                ports[1],
                ports[2],
            );
            if let Some(server) = postgres.as_ref().filter(|_| plan.postgres) {
                let database = database_name(organisation);
                let (server, made) = (Arc::clone(server), database.clone());
                let made = tokio::task::spawn_blocking(move || server.create_database(&made));
                made.await.unwrap().unwrap();
                let port = postgres.as_ref().unwrap().port();
                write!(
                    text,
                    r#"dataSourceProperties {{
  dataSourceClassName = "org.postgresql.ds.PGSimpleDataSource"
  dataSource {{ url = "jdbc:postgresql://127.0.0.1:{port}/{database}", user = "{}" }}
}}
"#,
                    postgres::USER
                )
                .unwrap();
            }
            text.push_str(&plan.extra);
            let file = folder.path().join(format!("{organisation}_node.conf"));
            std::fs::write(file, text).unwrap();
        }
        let options = BootstrapOptions {
            directory: folder.path().to_owned(),
            ..BootstrapOptions::default()
        };
        let make = move || bootstrap(&options, &Clock::system(), &Entropy::system()).map(drop);
        tokio::task::spawn_blocking(make).await.unwrap().unwrap();
        Self {
            folder,
            outside,
            postgres,
        }
    }

    pub(crate) fn directory(&self, organisation: &str) -> PathBuf {
        self.folder.path().join(organisation)
    }

    pub(crate) fn outside(&self, organisation: &str) -> &Arc<Outside> {
        &self.outside[organisation]
    }

    /// Starts a node and returns when it serves.
    pub(crate) async fn start(&self, organisation: &'static str) -> Running {
        let started = self.try_start(organisation).await;
        started.unwrap_or_else(|error| panic!("{organisation} did not start: {error:?}"))
    }

    /// Starts a node and returns when it serves, or cannot.
    pub(crate) async fn try_start(&self, organisation: &'static str) -> Result<Running, NodeError> {
        let apps = self.apps(organisation);
        let directory = self.directory(organisation);
        let started = self.launch(organisation, &directory, apps).await?;
        started.serving().await
    }

    /// The applications of a node, as they are now.
    pub(crate) fn apps(&self, organisation: &str) -> Vec<Arc<dyn App>> {
        let test = TestApp(Arc::clone(self.outside(organisation)));
        vec![Arc::new(CashApp), Arc::new(test)]
    }

    /// Another machine of a node: a copy of its directory, in which `change` has edited the configuration.
    pub(crate) fn copy(
        &self,
        organisation: &str,
        label: &str,
        change: impl Fn(String) -> String,
    ) -> PathBuf {
        let (from, to) = (self.directory(organisation), self.folder.path().join(label));
        copy_folder(&from, &to);
        let file = to.join("node.conf");
        let text = change(std::fs::read_to_string(&file).unwrap());
        std::fs::write(file, text).unwrap();
        to
    }

    /// Starts an instance of a node with these applications, in this directory.
    pub(crate) async fn launch(
        &self,
        organisation: &'static str,
        directory: &Path,
        apps: Vec<Arc<dyn App>>,
    ) -> Result<Started, NodeError> {
        let tasks = Tasks::new("");
        let (metrics, health, readiness) = (Metrics::new(), Health::new(), Readiness::new());
        let endpoint = Operations {
            health: health.clone(),
            readiness: readiness.clone(),
            metrics: metrics.clone(),
            logs: LogControl::detached(),
            version: Version {
                version: "1.2.3".to_owned(),
                commit: "abc".to_owned(),
            },
            clock: Clock::system(),
        };
        let operations = endpoint.start(&tasks, "127.0.0.1:0").await.unwrap();
        let configuration =
            NodeConfiguration::load(directory, None, &LoadOptions::default()).unwrap();
        let node = Node::prepare(NodeOptions {
            configuration,
            apps,
            release: "1.2.3".to_owned(),
            revision: "abc".to_owned(),
            clock: Clock::system(),
            entropy: Entropy::system(),
            metrics,
            health,
            readiness,
            tasks: tasks.clone(),
        })
        .await?;
        let control = node.control();
        let (active, serving) = oneshot::channel();
        let run = {
            let tasks = tasks.clone();
            tokio::spawn(async move {
                let mut active = Some(active);
                node.run(&tasks, move |milestone| {
                    if let Milestone::Active { addresses, .. } = milestone
                        && let Some(active) = active.take()
                    {
                        let _ = active.send(addresses);
                    }
                })
                .await
            })
        };
        Ok(Started {
            organisation,
            serving,
            operations,
            control,
            tasks,
            run,
        })
    }

    /// Starts several nodes at once.
    pub(crate) async fn start_all<const N: usize>(
        &self,
        organisations: [&'static str; N],
    ) -> [Running; N] {
        let starting = organisations.map(|organisation| self.start(organisation));
        let running = futures::future::join_all(starting).await;
        running.try_into().ok().unwrap()
    }
}

/// An instance that serves, or waits for the lease.
pub(crate) struct Started {
    organisation: &'static str,
    serving: oneshot::Receiver<Addresses>,
    operations: SocketAddr,
    control: Control,
    tasks: Tasks,
    run: JoinHandle<Result<(), NodeError>>,
}

impl Started {
    /// Waits until it serves, or cannot.
    pub(crate) async fn serving(self) -> Result<Running, NodeError> {
        let organisation = self.organisation;
        let serving = tokio::time::timeout(PATIENCE, self.serving).await;
        let Ok(addresses) = serving.unwrap_or_else(|_| panic!("{organisation} hangs")) else {
            let result = self.run.await.unwrap();
            let report = self.tasks.stop(Duration::from_secs(5)).await;
            assert!(report.is_clean(), "{organisation}: {report}");
            return Err(result.expect_err("it has not been asked to stop"));
        };
        Ok(Running {
            organisation,
            addresses,
            operations: self.operations,
            control: self.control,
            tasks: self.tasks,
            run: self.run,
        })
    }

    /// Its role.
    pub(crate) async fn role(&self) -> String {
        let answer = self
            .control
            .answer(Question::Status, &Clock::system())
            .await;
        answer.role
    }
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_folder(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

/// A node that serves.
pub(crate) struct Running {
    organisation: &'static str,
    pub(crate) addresses: Addresses,
    pub(crate) operations: SocketAddr,
    pub(crate) control: Control,
    tasks: Tasks,
    run: JoinHandle<Result<(), NodeError>>,
}

impl Running {
    /// Stops the node as a signal does.
    pub(crate) async fn stop(self) {
        self.tasks.shutdown().request("the test is over");
        self.stopped().await;
    }

    /// Waits for the node's own end.
    pub(crate) async fn stopped(self) {
        let organisation = self.organisation;
        let ended = tokio::time::timeout(PATIENCE, self.run).await;
        let ended = ended.unwrap_or_else(|_| panic!("{organisation} did not stop in time"));
        ended.unwrap().unwrap();
        let report = self.tasks.stop(Duration::from_secs(5)).await;
        assert!(report.is_clean(), "{organisation}: {report}");
    }

    pub(crate) async fn client(&self) -> Client {
        self.client_of("admin", "secret").await.unwrap()
    }

    pub(crate) async fn client_of(
        &self,
        user: &str,
        password: &str,
    ) -> Result<Client, ClientError> {
        let mut options = Options::new(
            [self.addresses.rpc.to_string()],
            user,
            Password::new(password),
        );
        options.backoff_max = Duration::from_millis(100);
        Client::connect(options).await
    }
}

/// Waits until `condition` holds.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    let waiting = async {
        while !condition().await {
            tokio::time::sleep(POLL).await;
        }
    };
    if tokio::time::timeout(PATIENCE, waiting).await.is_err() {
        panic!("in vain: {what}");
    }
}

/// Runs a flow to its end.
pub(crate) async fn run(
    client: &Client,
    flow: &str,
    arguments: Value,
) -> Result<Value, ClientError> {
    client
        .start_flow(flow, arguments)
        .await?
        .result(PATIENCE)
        .await
}

pub(crate) async fn issue(client: &Client, amount: &str) -> TxId {
    let issued = run(
        client,
        "cash.Issue",
        json!({ "amount": amount, "currency": "GBP" }),
    )
    .await;
    issued.unwrap()["tx"].as_str().unwrap().parse().unwrap()
}

pub(crate) fn payment(amount: &str, recipient: &str) -> Value {
    json!({ "amount": amount, "currency": "GBP", "recipient": name(recipient) })
}

pub(crate) async fn pay(
    client: &Client,
    amount: &str,
    recipient: &str,
) -> Result<TxId, ClientError> {
    let paid = run(client, "cash.Payment", payment(amount, recipient)).await?;
    Ok(paid["tx"].as_str().unwrap().parse().unwrap())
}

/// All unconsumed cash of a node, in minor units.
pub(crate) async fn balance(client: &Client) -> i64 {
    let mut sum = 0;
    let mut number = 1;
    loop {
        let query = VaultQuery {
            criteria: Criteria::unconsumed().and(Criteria::of_type("cash.Cash.State")),
            page: PageRequest { number, size: 500 },
            ..VaultQuery::default()
        };
        let page = client.vault_query(&query).await.unwrap();
        for state in &page.states {
            let cash = state.state.read::<quorate_cash::Cash>().unwrap();
            sum += cash.amount.quantity;
        }
        if u64::from(number) * 500 >= page.total {
            return sum;
        }
        number += 1;
    }
}

/// Status and body of one HTTP request, by hand: an independent reading of what was sent.
pub(crate) async fn http(
    address: SocketAddr,
    method: &str,
    path: &str,
    user: Option<&str>,
    body: &str,
) -> (u16, String) {
    use base64::Engine;
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut head = format!(
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n",
        body.len()
    );
    if let Some(user) = user {
        let credentials = base64::engine::general_purpose::STANDARD.encode(user);
        write!(head, "authorization: Basic {credentials}\r\n").unwrap();
    }
    let request = format!("{head}\r\n{body}");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

/// Takes a node's entry out of the folder where another one looks for it; returns where to put it back.
pub(crate) fn take_node_info(
    folder: &Path,
    organisation: &str,
    aside: &Path,
) -> Vec<(PathBuf, PathBuf)> {
    let own = std::fs::read_dir(folder.parent().unwrap().join(organisation)).unwrap();
    let names = own.map(|entry| entry.unwrap().file_name());
    let names = names.filter(|name| name.to_string_lossy().starts_with("nodeInfo-"));
    let mut moved = Vec::new();
    for name in names {
        let from = folder.join("additional-node-infos").join(&name);
        let to = aside.join(&name);
        std::fs::rename(&from, &to).unwrap();
        moved.push((to, from));
    }
    assert!(!moved.is_empty(), "{organisation} has a node info");
    moved
}
