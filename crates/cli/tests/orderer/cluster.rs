//! Three orderers and a fourth: the setups `three` and `no-leader` of `statuses.json`, every config update, maintenance mode,
//! and what `Step` answers to callers of all kinds.
//!
//! They listen where the recorded channel says, so only one of these tests runs at a time ([`Ports`]). What we do otherwise on
//! purpose is in `docs/decisions/0008-unlike-fabrics-orderer.md`.

use std::fs::File;

use bytes::Bytes;
use prost::Message as _;
use quorate_fabric::block;
use quorate_orderer::grpc::Position;
use serde_json::Value;

use crate::single::{TIME_WINDOW, none, seek};
use crate::support::replay::{self, Differences, cases};
use crate::support::{
    Delivery, Door, Identity, Line, Node, Orderer, bytes, fixtures, same_text, text, until,
};

const CHANNEL: &str = "fixture";

/// The right to use the recorded ports, among all tests on this machine.
pub(crate) struct Ports(
    #[expect(dead_code, reason = "the lock lives as long as the file is open")] File,
);

impl Ports {
    pub(crate) async fn take() -> Self {
        let path = std::env::temp_dir().join("quorate-fixture-ports.lock");
        let file = File::create(path).unwrap();
        // Others may need a while for theirs.
        let lock = tokio::task::spawn_blocking(move || file.lock().map(|()| file));
        Self(lock.await.unwrap().unwrap())
    }
}

fn node(number: usize) -> Node {
    let (key, value) = TIME_WINDOW;
    Node::recorded(number).with(key, value)
}

/// orderer0, orderer1 and orderer2 on the channel, with a leader that all know.
async fn three() -> Vec<Orderer> {
    let mut orderers = Vec::new();
    for number in 0..3 {
        orderers.push(node(number).start().await);
    }
    for orderer in &orderers {
        orderer.join("genesis/fixture.block").await;
    }
    for orderer in &orderers {
        // The recorded leader: the rule for the first campaign chooses it.
        orderer
            .says(&format!("Raft leader changed: 0 -> 2 channel={CHANNEL} "))
            .await;
    }
    orderers
}

async fn line(orderer: &Orderer) -> Line {
    Line::open(orderer.port(), None).await.unwrap()
}

/// Waits until an orderer counts as many consenters as active.
async fn active(orderer: &Orderer, count: usize) {
    let wanted = format!("consensus_etcdraft_active_nodes{{channel=\"{CHANNEL}\"}} {count}");
    let door = Door::plain(orderer.operations_port());
    let what = format!("orderer at {} counts {count} active nodes", orderer.port());
    until(&what, async || {
        let answer = door.try_ask("GET", "/metrics", &[], b"").await.ok()?;
        answer.body.lines().any(|line| line == wanted).then_some(())
    })
    .await;
}

#[tokio::test]
async fn three_orderers_and_then_no_leader_answer_as_recorded() {
    let _ports = Ports::take().await;
    let recorded = fixtures("statuses/statuses.json");
    let mut differences = Differences::new();
    let mut orderers = three().await;
    let line = line(&orderers[0]).await;
    for case in cases(&recorded, "broadcast", "three") {
        differences.extend(replay::broadcast(&line, case).await);
    }
    for orderer in &orderers {
        orderer.reaches(CHANNEL, 2).await;
    }
    for case in cases(&recorded, "deliver", "three") {
        differences.extend(replay::deliver(&line, case, none()).await);
    }

    let mut dead = Vec::new();
    for case in cases(&recorded, "deliver", "no-leader") {
        if text(case, "name") == "leader-lost-while-waiting" {
            let kill = async {
                dead.extend(orderers.drain(1..).map(Orderer::kill));
            };
            differences.extend(replay::deliver(&line, case, Some(kill)).await);
        } else {
            differences.extend(replay::deliver(&line, case, none()).await);
        }
    }
    for case in cases(&recorded, "broadcast", "no-leader") {
        differences.extend(replay::broadcast(&line, case).await);
    }
    orderers[0].says("Raft leader changed: 2 -> 0").await;

    for node in dead {
        orderers.push(node.start().await);
    }
    let transaction = &cases(&recorded, "broadcast", "three")[0];
    let transaction = replay::requests(transaction)[0].clone();
    until("there is a leader again", async || {
        (line.submit(transaction.clone()).await.0 == 200).then_some(())
    })
    .await;
    for orderer in &orderers {
        orderer.reaches(CHANNEL, 3).await;
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// A block of an orderer as it has it.
async fn fetch(orderer: &Orderer, number: u64) -> Bytes {
    let mut call = line(orderer).await.deliver().await;
    let position = Position::Number(number);
    call.send(seek(CHANNEL, position, position, 0));
    call.block().await.encoded().clone()
}

/// A cluster through all recorded config updates.
struct Updates {
    /// By their numbers.
    orderers: Vec<Option<Orderer>>,
    stopped: Option<Node>,
    differences: Differences,
}

impl Updates {
    fn orderer(&self, number: usize) -> &Orderer {
        self.orderers[number].as_ref().unwrap()
    }

    /// What happened before an update was sent.
    async fn before(&mut self, name: &str) {
        match name {
            "03-x01-quorum-loss-by-removal" => {
                active(self.orderer(1), 3).await;
                self.stopped = Some(self.orderers[2].take().unwrap().kill());
                active(self.orderer(1), 2).await;
            }
            "04-add-consenter-orderer3" => {
                let node = self.stopped.take().unwrap();
                self.orderers[2] = Some(node.start().await);
                active(self.orderer(1), 3).await;
            }
            _ => {}
        }
    }

    /// What happened after an update was accepted.
    async fn after(&mut self, name: &str) {
        match name {
            "04-add-consenter-orderer3" => {
                let joining = node(3).start().await;
                let block = fetch(self.orderer(1), 4).await;
                let answer = joining.admin().join(&block).await;
                assert_eq!(answer.status, 201, "{}", answer.body);
                joining.reaches(CHANNEL, 5).await;
                self.orderers.push(Some(joining));
                active(self.orderer(1), 4).await;
            }
            "06-remove-consenter-orderer0" => {
                let removed = self.orderers[0].take().unwrap();
                until("the removed orderer follows", async || {
                    let described = removed.describe(CHANNEL).await;
                    (described["consensusRelation"] == "follower").then_some(())
                })
                .await;
                active(self.orderer(1), 3).await;
            }
            "08-rotate-orderer2-new-key" => {
                let mut node = self.orderers[2].take().unwrap().stop().await;
                node.show("orderer2-tls-new-key");
                self.orderers[2] = Some(node.start().await);
                active(self.orderer(1), 3).await;
            }
            "11-maintenance-on" => self.maintenance().await,
            _ => {}
        }
    }

    async fn maintenance(&mut self) {
        let line = line(self.orderer(1)).await;
        let recorded = fixtures("config-updates/maintenance.json");
        for case in recorded.as_array().unwrap() {
            let request = bytes(&format!("config-updates/{}", text(case, "request")));
            let name = text(case, "name");
            let expected = &case["broadcast_answer"];
            if expected.is_object() {
                let (status, info) = line.submit(request).await;
                if expected["status"] != status || text(expected, "info") != info {
                    let what = format!("{name}: {status} `{info}`, recorded {expected}");
                    self.differences.push(what);
                }
                continue;
            }
            let mut call = line.deliver().await;
            call.send(request);
            let status = loop {
                match call.delivery().await.unwrap() {
                    Delivery::Block(_) => {}
                    Delivery::Status(status) => break status,
                }
            };
            if case["deliver_status"]["status"] != status {
                self.differences.push(format!("{name}: {status}"));
            }
        }
    }

    async fn send(&mut self, case: &Value) {
        let name = text(case, "name");
        let request = bytes(&format!("config-updates/{}", text(case, "file")));
        let line = line(self.orderer(1)).await;
        // Between two leaders nobody can be asked.
        let (status, info) = until(name, async || {
            let (status, info) = line.submit(request.clone()).await;
            let leaderless = status == 503 && info == "no Raft leader";
            (!leaderless).then_some((status, info))
        })
        .await;
        let expected = &case["answer"];
        if expected["status"] != status || !same_text(&info, text(expected, "info")) {
            self.differences.push(format!(
                "{name}: {status} `{info}`\n    recorded {} `{}`",
                expected["status"],
                text(expected, "info")
            ));
        }
        assert_eq!(
            status == 200,
            expected["status"] == 200,
            "{name}: {}",
            self.differences.join("\n")
        );
    }

    /// The block that an accepted update gave, on every orderer.
    async fn applied(&mut self, case: &Value) {
        let number = case["block_number"].as_u64().unwrap();
        for orderer in self.orderers.iter().flatten() {
            orderer.reaches(CHANNEL, number + 1).await;
        }
        let found = fetch(self.orderer(1), number).await;
        let found = quorate_fabric::proto::common::Block::decode(found).unwrap();
        assert_eq!(block::last_config(&found).unwrap(), number);
        let metadata = block::consenter_metadata(&found).unwrap().unwrap();
        let recorded = &case["consenter_metadata"];
        let ids = Value::from(metadata.consenter_ids.clone());
        if recorded["consenter_ids"] != ids
            || recorded["next_consenter_id"] != metadata.next_consenter_id
        {
            self.differences.push(format!(
                "{}: {metadata:?}, recorded {recorded}",
                text(case, "name")
            ));
        }
    }
}

#[tokio::test]
async fn a_cluster_takes_and_refuses_all_config_updates_as_recorded() {
    let _ports = Ports::take().await;
    let recorded = fixtures("config-updates/updates.json");
    let mut updates = Updates {
        orderers: three().await.into_iter().map(Some).collect(),
        stopped: None,
        differences: Differences::new(),
    };
    for case in recorded.as_array().unwrap() {
        let name = text(case, "name");
        updates.before(name).await;
        updates.send(case).await;
        if case["accepted"] == true {
            updates.applied(case).await;
            updates.after(name).await;
        }
    }
    let differences = updates.differences;
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// Who calls `Step` in a recorded case.
fn caller(name: &str) -> Option<Identity> {
    Some(match name {
        "no-client-cert" => return None,
        "not-a-consenter" => Identity::orderer(4),
        "admin-cert" => Identity::admin(),
        "renewed-cert" => Identity::special("orderer1-tls-renewed-same-key"),
        _ => Identity::orderer(0),
    })
}

/// How a call of `Step` ends where Fabric's goes on: what another orderer forwards is verified again.
const VERIFIED_AGAIN: &[(&str, &str)] = &[
    (
        "submit-bad-signature",
        "closed with gRPC status 2 Unknown: implicit policy evaluation failed - 0 sub-policies were satisfied, but this policy requires 1 of the 'Writers' sub-policies to be satisfied: permission denied",
    ),
    (
        "submit-garbage-envelope",
        "closed with gRPC status 2 Unknown: could not determine channel ID: error unmarshalling Payload: proto: cannot parse invalid wire-format data",
    ),
    (
        "submit-nil-envelope",
        "closed with gRPC status 2 Unknown: could not determine channel ID: header not set",
    ),
];

async fn step(orderer: &Orderer, case: &Value) -> Option<String> {
    let mut case = case.clone();
    let name = text(&case, "name").to_owned();
    if let Some((_, ours)) = VERIFIED_AGAIN.iter().find(|(other, _)| *other == name) {
        case["result"] = (*ours).into();
    }
    let case = &case;
    let request = match case["request"].as_str() {
        Some(hex) => hex::decode(hex).unwrap().into(),
        None => bytes(&format!("raftpb/{}", text(case, "request_file"))),
    };
    let line = Line::open(orderer.port(), caller(&name).as_ref())
        .await
        .unwrap();
    match line.step().await {
        Ok(mut call) => {
            call.send(request);
            replay::end(&mut call, case).await
        }
        Err(ended) => replay::compare_end(&ended, case),
    }
}

#[tokio::test]
async fn step_answers_as_recorded() {
    let _ports = Ports::take().await;
    let recorded = fixtures("raftpb/step-errors.json");
    let mut orderers = three().await;
    let mut differences = Vec::new();
    // It needs two orderers killed, so it comes last.
    let (last, before): (Vec<&Value>, Vec<&Value>) = recorded
        .as_array()
        .unwrap()
        .iter()
        .partition(|case| text(case, "name") == "submit-no-leader");
    let mut unordered = 0;
    for case in before {
        let name = text(case, "name");
        let to = if text(case, "to") == "leader" { 1 } else { 2 };
        differences.extend(step(&orderers[to], case).await);
        // Fabric orders what another orderer has not verified; we verify it again.
        unordered += u64::from(name == "submit-bad-signature");
        let height = case["height_after"].as_u64().unwrap() - unordered;
        orderers[to].reaches(CHANNEL, height).await;
        assert_eq!(orderers[to].height(CHANNEL).await, height, "after {name}");
    }
    orderers[2].says("cowardly halting").await;
    let follower = orderers.pop().unwrap();
    // It serves again, with what it had promised before: whoever calls it by a wrong name cannot make it forget.
    until("the halted chain serves again", async || {
        let log = follower.log();
        let (_, after) = log.split_once("cowardly halting")?;
        after.contains("Raft leader changed: 0 -> 2").then_some(())
    })
    .await;
    assert!(!follower.log().contains("is not what it was"));
    assert!(!follower.log().contains("is lost"));
    drop(orderers);
    follower.says("Raft leader changed: 2 -> 0").await;
    for case in last {
        differences.extend(step(&follower, case).await);
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}
