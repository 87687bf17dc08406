//! Replays a recorded case of Broadcast or Deliver and says what was answered otherwise.

use bytes::Bytes;
use serde_json::Value;

use super::{Call, Delivery, Ended, Got, Line, PATIENCE, bytes, same_text, text};

/// What a case answered otherwise than recorded; empty if nothing.
pub(crate) type Differences = Vec<String>;

/// The requests of a case of `statuses.json`.
pub(crate) fn requests(case: &Value) -> Vec<Bytes> {
    let files = case["requests"].as_array().unwrap();
    files
        .iter()
        .map(|file| bytes(&format!("statuses/{}", file.as_str().unwrap())))
        .collect()
}

/// The cases of one kind that were recorded in one setup, in their order.
pub(crate) fn cases<'a>(recorded: &'a Value, kind: &str, setup: &str) -> Vec<&'a Value> {
    let all = recorded[kind].as_array().unwrap();
    let cases: Vec<_> = all
        .iter()
        .filter(|case| text(case, "setup") == setup)
        .collect();
    assert!(!cases.is_empty(), "there are cases of {setup}");
    cases
}

/// Sends the requests of a Broadcast case and compares the answers and the end.
pub(crate) async fn broadcast(line: &Line, case: &Value) -> Differences {
    broadcast_these(line, case, requests(case)).await
}

/// The same with other requests than the recorded ones.
pub(crate) async fn broadcast_these(
    line: &Line,
    case: &Value,
    requests: Vec<Bytes>,
) -> Differences {
    let name = text(case, "name");
    let mut differences = Differences::new();
    let mut call = line.broadcast().await;
    for request in requests {
        call.send(request);
    }
    for expected in case["answers"].as_array().unwrap() {
        match call.answer().await {
            Ok((status, info)) => {
                if Some(i64::from(status)) != expected["status"].as_i64()
                    || !same_text(&info, text(expected, "info"))
                {
                    differences.push(format!(
                        "{name}: answered {status} `{info}`\n    recorded {} `{}`",
                        expected["status"],
                        text(expected, "info")
                    ));
                }
            }
            Err(ended) => {
                differences.push(format!("{name}: {ended:?} where {expected} was recorded"));
                return differences;
            }
        }
    }
    differences.extend(end(&mut call, case).await);
    differences
}

/// Sends the requests of a Deliver case and compares blocks, statuses and the end. `meanwhile` happens when what is
/// there has been delivered.
pub(crate) async fn deliver(
    line: &Line,
    case: &Value,
    meanwhile: Option<impl Future<Output = ()>>,
) -> Differences {
    let mut call = line.deliver().await;
    for request in requests(case) {
        call.send(request);
    }
    let mut meanwhile = meanwhile;
    let mut blocks: Vec<u64> = Vec::new();
    let mut statuses = Vec::new();
    let blocks_expected: Vec<u64> = numbers(&case["blocks"]);
    let statuses_expected: Vec<i64> = case["statuses"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|status| status["status"].as_i64())
        .collect();
    let mut differences = Differences::new();
    while blocks.len() < blocks_expected.len() || statuses.len() < statuses_expected.len() {
        if let Some(happens) = meanwhile.take() {
            loop {
                match call.soon().await {
                    Some(Got::Message(message)) => note(message, &mut blocks, &mut statuses),
                    Some(Got::Ended(ended)) => {
                        differences.push(format!("{}: {ended:?} too early", text(case, "name")));
                        return differences;
                    }
                    None => break,
                }
            }
            happens.await;
            continue;
        }
        match call.next().await {
            Got::Message(message) => note(message, &mut blocks, &mut statuses),
            Got::Ended(ended) => {
                differences.push(format!(
                    "{}: {ended:?} after blocks {blocks:?} and statuses {statuses:?}",
                    text(case, "name")
                ));
                return differences;
            }
        }
    }
    if blocks != blocks_expected || statuses != statuses_expected {
        differences.push(format!(
            "{}: blocks {blocks:?} and statuses {statuses:?}, recorded {blocks_expected:?} and {statuses_expected:?}",
            text(case, "name")
        ));
    }
    differences.extend(end(&mut call, case).await);
    differences
}

fn numbers(value: &Value) -> Vec<u64> {
    let values = value.as_array().unwrap();
    values.iter().filter_map(Value::as_u64).collect()
}

fn note(message: Bytes, blocks: &mut Vec<u64>, statuses: &mut Vec<i64>) {
    match Delivery::read(message) {
        Delivery::Block(block) => blocks.push(block.number()),
        Delivery::Status(status) => statuses.push(status.into()),
    }
}

/// Compares what becomes of a call with `stream_after` or `result`.
pub(crate) async fn end(call: &mut Call, case: &Value) -> Option<String> {
    let recorded = case["stream_after"]
        .as_str()
        .or_else(|| case["result"].as_str())
        .unwrap();
    let name = text(case, "name");
    if recorded.starts_with("open") {
        return call
            .soon()
            .await
            .map(|got| format!("{name}: {got:?}, recorded {recorded}"));
    }
    match call.within(PATIENCE / 3).await {
        Some(Got::Ended(ended)) => compare_end(&ended, case),
        other => Some(format!("{name}: {other:?}, recorded {recorded}")),
    }
}

/// Compares how a call ended with `stream_after` or `result`.
pub(crate) fn compare_end(Ended(code, words): &Ended, case: &Value) -> Option<String> {
    let recorded = case["stream_after"]
        .as_str()
        .or_else(|| case["result"].as_str())
        .unwrap();
    let got = match code {
        0 => "closed with gRPC status OK".to_owned(),
        2 => format!("closed with gRPC status 2 Unknown: {words}"),
        13 => format!("closed with gRPC status 13 Internal: {words}"),
        other => format!("closed with gRPC status {other}: {words}"),
    };
    (!same_text(&got, recorded))
        .then(|| format!("{}: {got}\n    recorded {recorded}", text(case, "name")))
}
