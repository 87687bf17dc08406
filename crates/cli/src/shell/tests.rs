//! Commands against the node's real RPC server, in front of the node in memory that the server's
//! own tests use.

use std::sync::atomic::Ordering;
use std::time::Duration;

use quorate_rpc::Client;
use serde_json::Value;

use super::commands::{Failure, Next, Session, Sink};
use super::output::Format;

#[allow(dead_code)]
#[path = "../../../node/tests/rpc/fake.rs"]
mod fake;

use fake::{Instance, Shared, options};

/// What was shown.
#[derive(Default)]
struct Shown {
    lines: Vec<String>,
    items: Vec<Value>,
    wanted: usize,
}

impl Sink for Shown {
    fn line(&mut self, text: &str) -> Result<(), Failure> {
        self.lines.push(text.to_owned());
        Ok(())
    }

    fn item(&mut self, value: Option<Value>) -> Result<bool, Failure> {
        self.items.extend(value);
        Ok(self.items.len() < self.wanted)
    }
}

async fn session(instance: &Instance, user: &str) -> Session {
    Session {
        client: Client::connect(options(&[instance.rpc], user))
            .await
            .unwrap(),
        format: Format::Json,
        patience: Duration::from_secs(20),
    }
}

async fn ask(session: &mut Session, line: &str) -> Result<Value, Failure> {
    let mut shown = Shown::default();
    session.execute(line, &mut shown).await?;
    let text = shown.lines.join("\n");
    Ok(serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

#[tokio::test]
async fn operators_find_the_commands_they_know() {
    let shared = Shared::new();
    let instance = Instance::start(&shared);
    let mut shell = session(&instance, "ops").await;
    let ask = async |shell: &mut Session, line: &str| ask(shell, line).await.unwrap();

    let handle = ask(
        &mut shell,
        "flow start --client-id pay-1 --no-wait test.Hold to: O=B, L=X, C=JP, amount: 5",
    )
    .await;
    let id = handle["flowId"].as_str().unwrap().to_owned();
    let flows = ask(&mut shell, "flow list").await;
    assert_eq!(
        flows[0]["progress"],
        r#"{"amount":5,"to":"O=B, L=X, C=JP"}"#
    );
    shared.finish(&id.parse().unwrap(), Ok(Value::from("paid")));
    assert_eq!(
        ask(&mut shell, "flow start --client-id pay-1 test.Hold").await["result"],
        "paid"
    );
    assert_eq!(ask(&mut shell, "flow result pay-1").await, "paid");
    assert_eq!(
        ask(&mut shell, &format!("flow status {id}")).await["state"],
        "completed"
    );

    assert_eq!(ask(&mut shell, "run nodeInfo").await["serial"], 42);
    let page = ask(
        &mut shell,
        "run vaultQuery contractStateType: test.Thing.State, status: ALL, pageSize: 2",
    )
    .await;
    assert_eq!(page["size"], 2);
    let page = ask(
        &mut shell,
        "run vaultQuery query: {criteria: all, page: {size: 3}}",
    )
    .await;
    assert_eq!(page["size"], 3);
    ask(&mut shell, "run setFlowsDrainingModeEnabled enabled: true").await;
    assert_eq!(
        ask(&mut shell, "run isFlowsDrainingModeEnabled").await,
        true
    );
    assert_eq!(ask(&mut shell, "flow retryAllPaused").await, 2);
    assert_eq!(ask(&mut shell, "flow hospital").await[0]["attempts"], 2);
    assert_eq!(
        ask(&mut shell, "checkpoints dump").await[0]["class"],
        "test.Ill"
    );
    let party = ask(
        &mut shell,
        "run wellKnownPartyFromX500Name name: O=PartyA, L=Osaka, C=JP",
    )
    .await;
    assert_eq!(party["name"], "O=PartyA, L=Osaka, C=JP");

    let folder = tempfile::tempdir().unwrap();
    let (file, copy) = (folder.path().join("a file"), folder.path().join("copy"));
    std::fs::write(&file, b"content").unwrap();
    let hash = ask(
        &mut shell,
        &format!("attachments upload {}", file.display()),
    )
    .await;
    let hash = hash.as_str().unwrap();
    assert_eq!(
        ask(&mut shell, &format!("attachments exists {hash}")).await,
        true
    );
    ask(
        &mut shell,
        &format!("attachments save {hash} {}", copy.display()),
    )
    .await;
    assert_eq!(std::fs::read(&copy).unwrap(), b"content");

    assert_eq!(ask(&mut shell, "output-format get").await, "json");
    ask(&mut shell, "output-format set yaml").await;
    assert!(
        ask(&mut shell, "run notaryIdentities")
            .await
            .as_str()
            .unwrap()
            .starts_with("- name: O=Notary")
    );
    assert!(
        ask(&mut shell, "help")
            .await
            .as_str()
            .unwrap()
            .contains("flow retryAllPausedHospitalized")
    );
    ask(&mut shell, "run gracefulShutdown").await;
    assert_eq!(shared.stops_asked.load(Ordering::SeqCst), 1);
    let mut shown = Shown::default();
    assert_eq!(shell.execute(" bye ", &mut shown).await.unwrap(), Next::Bye);
}

#[tokio::test]
async fn streams_go_on_until_enough_is_seen() {
    let shared = Shared::new();
    let instance = Instance::start(&shared);
    let mut shell = session(&instance, "ops").await;
    for _ in 0..5 {
        shared.record();
    }
    let mut shown = Shown {
        wanted: 3,
        ..Shown::default()
    };
    shell
        .execute("run vaultTrack cursor: 1", &mut shown)
        .await
        .unwrap();
    let cursors: Vec<_> = shown
        .items
        .iter()
        .map(|update| update["cursor"].as_u64().unwrap())
        .collect();
    assert_eq!(cursors, [2, 3, 4]);
}

#[tokio::test]
async fn a_script_can_tell_mistakes_refusals_and_absence_apart() {
    let instance = Instance::start(&Shared::new());
    let mut shell = session(&instance, "ops").await;
    for (line, code, expected) in [
        ("flwo list", 2, "did you mean 'flow'"),
        ("flow lst", 2, "flow lst"),
        ("run vaultQurey", 2, "did you mean 'vaultQuery'"),
        (
            "run vaultQuery contractStatType: x",
            2,
            "no argument 'contractStatType'",
        ),
        ("run vaultQuery status: SOME", 2, "SOME"),
        ("run vaultQuery query: {criterai: all}", 2, "criterai"),
        ("run terminate", 2, "'drainPendingFlows' is missing"),
        ("run nodeInfo x: 1", 2, "takes no arguments"),
        ("flow start", 2, "registeredFlows"),
        ("flow start --now test.Hold", 2, "--no-wait"),
        ("flow start test.Hold amount 5", 2, "expected ':'"),
        ("flow start cash.Nothing a: 1", 1, "there is: test.Hold"),
        ("flow kill x", 2, "'x' is not a flow id"),
        (
            "flow kill 00000000-0000-0000-0000-000000000000",
            1,
            "not killed",
        ),
        ("hashLookup 12", 2, "id of a transaction"),
        ("attachments upload /nowhere/at/all", 1, "/nowhere/at/all"),
        ("output-format set xml", 2, "json, yaml or text"),
    ] {
        let failure = ask(&mut shell, line).await.unwrap_err();
        assert_eq!(failure.exit_code(), code, "{line}: {failure}");
        assert!(failure.to_string().contains(expected), "{line}: {failure}");
    }
    let mut app = session(&instance, "app").await;
    let refused = ask(&mut app, "run vaultQuery").await.unwrap_err();
    assert_eq!(refused.exit_code(), 1);
    assert!(
        refused.to_string().contains("InvokeRpc.vaultQuery"),
        "{refused}"
    );

    let mut impatient = options(&[instance.rpc], "ops");
    impatient.call_timeout = Duration::from_millis(300);
    let client = Client::connect(impatient).await.unwrap();
    let mut shell = Session {
        client,
        format: Format::Json,
        patience: Duration::from_millis(50),
    };
    let waiting = ask(&mut shell, "flow start test.Hold").await.unwrap_err();
    assert_eq!(waiting.exit_code(), 3);
    assert!(waiting.to_string().contains("it goes on"), "{waiting}");
    instance.kill();
    let gone = ask(&mut shell, "run nodeInfo").await.unwrap_err();
    assert_eq!(gone.exit_code(), 3, "{gone}");
}
