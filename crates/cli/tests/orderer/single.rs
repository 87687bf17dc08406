//! One orderer, as `statuses.json` has it: every Broadcast and Deliver case of the setups `single`, `mutual-tls` and
//! `follower`, with restarts in between.

use std::future;
use std::time::SystemTime;

use bytes::Bytes;
use quorate_fabric::envelope::RawEnvelope;
use quorate_orderer::grpc::{Position, SeekRequest};
use serde_json::Value;

use crate::support::replay::{self, Differences, cases, requests};
use crate::support::{
    Delivery, Identity, Line, Node, Orderer, bytes, fixture, fixtures, orderer_admin, text,
};

/// The window for requests that were made when the recording was.
pub(crate) const TIME_WINDOW: (&str, &str) =
    ("ORDERER_GENERAL_AUTHENTICATION_TIMEWINDOW", "200000h");

/// A good transaction on `fixture1`; nobody minds the same one twice.
const TRANSACTION: &str = "statuses/requests/b-ok-endorser-client.pb";

/// Requests by the orderer organisation's admin for these blocks, `shift` away from now.
pub(crate) fn seek(channel: &str, start: Position, stop: Position, shift: i64) -> Bytes {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_micros();
    let request = SeekRequest::new(channel, start, stop)
        .sign(
            &orderer_admin(),
            &[7; 24],
            i64::try_from(now).unwrap() + shift * 1_000_000,
        )
        .unwrap();
    request.encoded().clone()
}

/// The envelopes in a block.
pub(crate) async fn envelopes(line: &Line, channel: &str, number: u64) -> Vec<Bytes> {
    let mut call = line.deliver().await;
    let position = Position::Number(number);
    call.send(seek(channel, position, position, 0));
    call.block().await.block().data.unwrap().data
}

pub(crate) async fn leads(orderer: &Orderer, channel: &str) {
    orderer
        .says(&format!("Raft leader changed: 0 -> 1 channel={channel} "))
        .await;
}

pub(crate) fn none() -> Option<future::Ready<()>> {
    None
}

#[tokio::test]
async fn one_orderer_answers_as_recorded() {
    let recorded = fixtures("statuses/statuses.json");
    let mut differences = Differences::new();
    let (key, value) = TIME_WINDOW;
    let orderer = Node::anywhere(0).with(key, value).start().await;
    for channel in ["fixture1", "fixturecrl"] {
        orderer.join(&format!("genesis/{channel}.block")).await;
        leads(&orderer, channel).await;
    }
    let line = Line::open(orderer.port(), None).await.unwrap();

    let broadcasts = cases(&recorded, "broadcast", "single");
    // This one was recorded after access had been withdrawn, below.
    let (later, broadcasts): (Vec<&Value>, Vec<&Value>) = broadcasts
        .into_iter()
        .partition(|case| text(case, "name") == "writer-without-reader");
    for case in &broadcasts {
        differences.extend(one_broadcast(&line, case).await);
        if let Some(block) = case["block"].as_u64() {
            orderer.reaches(text(case, "channel"), block + 1).await;
        }
    }
    orderer.reaches("fixture1", 38).await;
    for case in broadcasts.iter().filter(|case| case["block"].is_u64()) {
        differences.extend(stored(&line, case).await);
    }

    for case in cases(&recorded, "deliver", "single") {
        let (name, channel) = (text(case, "name"), text(case, "channel"));
        if let Some(height) = case["height_before"].as_u64() {
            orderer.reaches(channel, height).await;
            assert_eq!(orderer.height(channel).await, height, "before {name}");
        }
        let new = match name {
            "block-then-new" | "next-commit-to-max" => 1,
            "follow-to-max" | "next-commit" => 2,
            _ => 0,
        };
        differences.extend(if text(case, "replay") == "no" {
            // Their time is what they are about: they come again below.
            Differences::new()
        } else if name == "access-withdrawn" {
            let update = bytes("statuses/requests/d-access-withdrawn-config-update.pb");
            let update = async { assert_eq!(line.submit(update).await, (200, String::new())) };
            replay::deliver(&line, case, Some(update)).await
        } else if new > 0 {
            let more = async {
                for _ in 0..new {
                    let height = orderer.height(channel).await;
                    let answer = line.submit(bytes(TRANSACTION)).await;
                    assert_eq!(answer, (200, String::new()));
                    orderer.reaches(channel, height + 1).await;
                }
            };
            replay::deliver(&line, case, Some(more)).await
        } else {
            replay::deliver(&line, case, none()).await
        });
    }
    for case in later {
        differences.extend(one_broadcast(&line, case).await);
        orderer.reaches("fixturecrl", 4).await;
    }

    let roots =
        fixture("crypto/ordererOrganizations/orderer.test/tlsca/tlsca.orderer.test-cert.pem");
    let mut node = orderer.stop().await;
    node.set("ORDERER_GENERAL_TLS_CLIENTAUTHREQUIRED", "true");
    node.set(
        "ORDERER_GENERAL_TLS_CLIENTROOTCAS",
        format!("[{}]", roots.display()),
    );
    let orderer = node.start().await;
    for case in cases(&recorded, "deliver", "mutual-tls") {
        differences.extend(with_client_certificates(&orderer, case).await);
    }

    let mut node = orderer.kill();
    node.set("ORDERER_GENERAL_TLS_CLIENTAUTHREQUIRED", "false");
    node.set(key, "15m");
    let orderer = node.start().await;
    let line = Line::open(orderer.port(), None).await.unwrap();
    differences.extend(time_window(&line).await);
    assert_eq!(orderer.height("fixture1").await, 44);
    assert_eq!(orderer.height("fixturecrl").await, 4);

    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

async fn one_broadcast(line: &Line, case: &Value) -> Differences {
    match text(case, "name") {
        // Its request was not kept; this one is as good, and names its own size.
        "size-over-limit-bad-signature" => {
            let large = bytes("statuses/requests/b-size-over-limit.pb");
            let large = RawEnvelope::decode(large).unwrap();
            let forged = RawEnvelope::new(large.payload(), &[1; 200]);
            let mut case = case.clone();
            let info =
                text(&case["answers"][0], "info").replace("67500", &forged.size().to_string());
            case["answers"][0]["info"] = info.into();
            replay::broadcast_these(line, &case, vec![forged.encoded().clone()]).await
        }
        // The size of our own signature is in the text, and that varies.
        "config-update-grows-too-large" => {
            let info = text(&case["answers"][0], "info");
            let (status, got) = line.submit(requests(case)[0].clone()).await;
            let same = status == 400 && without_digits(&got) == without_digits(info);
            (!same)
                .then(|| {
                    format!(
                        "{}: {status} `{got}`, recorded `{info}`",
                        text(case, "name")
                    )
                })
                .into_iter()
                .collect()
        }
        _ => replay::broadcast(line, case).await,
    }
}

fn without_digits(text: &str) -> String {
    text.chars().filter(|c| !c.is_ascii_digit()).collect()
}

/// What the block of a case holds.
async fn stored(line: &Line, case: &Value) -> Option<String> {
    let recorded = text(case, "stored_envelope");
    let expected = match recorded.strip_prefix("re-encoded: ") {
        Some(file) => bytes(&format!("statuses/{file}")),
        None => requests(case)[0].clone(),
    };
    let number = case["block"].as_u64().unwrap();
    let found = envelopes(line, text(case, "channel"), number).await;
    (found != [expected]).then(|| {
        format!(
            "{}: block {number} holds something else, recorded: {recorded}",
            text(case, "name")
        )
    })
}

async fn with_client_certificates(orderer: &Orderer, case: &Value) -> Differences {
    if text(case, "name") != "mtls-no-client-cert" {
        let admin = Identity::admin();
        let line = Line::open(orderer.port(), Some(&admin)).await.unwrap();
        return replay::deliver(&line, case, none()).await;
    }
    // With TLS 1.3 a client takes the handshake for done before it is refused.
    let refused = match Line::open(orderer.port(), None).await {
        Err(_) => true,
        Ok(line) => line.step().await.is_err(),
    };
    (!refused)
        .then(|| "mtls-no-client-cert: a stranger is served".to_owned())
        .into_iter()
        .collect()
}

/// The cases whose answers depend on the time of the request, made anew.
async fn time_window(line: &Line) -> Differences {
    const MINUTE: i64 = 60;
    let mut differences = Differences::new();
    for (minutes, expected) in [(-16, 400), (16, 400), (-14, 200), (14, 200)] {
        let mut call = line.deliver().await;
        let position = Position::Number(1);
        call.send(seek("fixture1", position, position, minutes * MINUTE));
        let mut got = call.delivery().await;
        if let Ok(Delivery::Block(_)) = got {
            got = call.delivery().await;
        }
        match got {
            Ok(Delivery::Status(status)) if status == expected => {}
            other => differences.push(format!("{minutes} minutes from now: {other:?}")),
        }
    }
    differences
}

#[tokio::test]
async fn a_follower_answers_as_recorded() {
    let recorded = fixtures("statuses/statuses.json");
    let (key, value) = TIME_WINDOW;
    let orderer = Node::anywhere(3).with(key, value).start().await;
    orderer.join("genesis/fixture.block").await;
    let line = Line::open(orderer.port(), None).await.unwrap();
    let mut differences = Differences::new();
    for case in cases(&recorded, "broadcast", "follower") {
        differences.extend(replay::broadcast(&line, case).await);
    }
    for case in cases(&recorded, "deliver", "follower") {
        differences.extend(replay::deliver(&line, case, none()).await);
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}
