//! Units of work: whole or not at all, and none harms another.

use quorate_flow::{ClientId, FlowOutcome, FlowStatus, StepCommit};
use quorate_identity::SecureHash;
use quorate_ledger::AttachmentId;
use quorate_storage::{CommitError, Engine, NewAttachment, Refusal, UnitOfWork};
use rstest::rstest;

use crate::support::*;

#[rstest]
#[case(Engine::Sqlite)]
#[case(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_flow_lives_from_its_first_step_to_its_result(#[case] engine: Engine) {
    let Some(db) = database(engine).await else {
        return;
    };
    let node = node(&db).await;
    let first = StepCommit {
        progress: Some("signing".into()),
        ..start(flow(1), Some("payment-1"))
    };
    node.commit(UnitOfWork::step(first.clone())).await;
    let second = StepCommit {
        checkpoint: b"later".to_vec(),
        entries: vec![(1, b"second".to_vec()), (2, b"third".to_vec())],
        status: FlowStatus::Hospitalised,
        ..step(flow(1))
    };
    node.commit(UnitOfWork::step(second)).await;

    let unfinished = node.store.unfinished_flows(None, 10).await.unwrap();
    let [checkpoint] = &unfinished.flows[..] else {
        panic!("{unfinished:?}")
    };
    assert_eq!(checkpoint.start, first.start.clone().unwrap());
    assert_eq!(
        (checkpoint.status, checkpoint.header.as_slice()),
        (FlowStatus::Hospitalised, &b"later"[..])
    );
    assert_eq!(checkpoint.progress.as_deref(), Some("signing"));
    let entries = [
        (0, b"first".to_vec()),
        (1, b"second".to_vec()),
        (2, b"third".to_vec()),
    ];
    assert_eq!(checkpoint.entries, entries);
    assert_eq!(node.store.journal(flow(1)).await.unwrap(), entries);

    node.commit(UnitOfWork::step(end(flow(1), "42"))).await;
    assert!(
        node.store
            .unfinished_flows(None, 10)
            .await
            .unwrap()
            .flows
            .is_empty()
    );
    assert!(node.store.journal(flow(1)).await.unwrap().is_empty());
    let id = ClientId::new("payment-1").unwrap();
    let record = node.store.flow_by_client_id(&id).await.unwrap().unwrap();
    assert_eq!(
        record.outcome,
        Some(FlowOutcome::Completed {
            result: "42".into()
        })
    );
    assert_eq!(
        (record.owner.as_str(), record.generation),
        ("a:/opt/node", 1)
    );
    assert!(record.finished_at.is_some());
    assert_eq!(
        node.store
            .finished_flows_with_client_ids(None, 10)
            .await
            .unwrap(),
        [record]
    );

    let remove = || UnitOfWork {
        removed_client_ids: vec![id.clone()],
        ..UnitOfWork::default()
    };
    assert_eq!(
        node.commit(remove()).await.removed_client_ids,
        std::slice::from_ref(&id)
    );
    assert_eq!(node.commit(remove()).await.removed_client_ids, []);
    assert_eq!(node.store.flow_by_client_id(&id).await.unwrap(), None);
}

#[rstest]
#[case(Engine::Sqlite)]
#[case(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_flow_that_no_client_has_named_leaves_nothing(#[case] engine: Engine) {
    let Some(db) = database(engine).await else {
        return;
    };
    let node = node(&db).await;
    node.start_flow(flow(1)).await;
    let unit = UnitOfWork {
        steps: vec![start(flow(2), None), end(flow(2), "1")],
        ..UnitOfWork::default()
    };
    node.commit(unit).await;
    assert_eq!(node.store.flow(flow(2)).await.unwrap(), None);
    let failed = StepCommit {
        outcome: Some(FlowOutcome::Failed { error: "{}".into() }),
        ..step(flow(1))
    };
    node.commit(UnitOfWork::step(failed)).await;
    assert_eq!(node.store.flow(flow(1)).await.unwrap(), None);
    assert!(node.store.journal(flow(1)).await.unwrap().is_empty());
    // What has ended goes no further.
    let error = node
        .writer
        .commit(UnitOfWork::step(step(flow(1))))
        .await
        .unwrap_err();
    let CommitError::Refused(refusal) = error else {
        panic!("{error}")
    };
    assert!(
        matches!(*refusal, Refusal::NoSuchFlow(id) if id == flow(1)),
        "{refusal}"
    );
}

#[rstest]
#[case(Engine::Sqlite)]
#[case(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_client_id_belongs_to_one_flow(#[case] engine: Engine) {
    let Some(db) = database(engine).await else {
        return;
    };
    let node = node(&db).await;
    let ask = |number| {
        node.writer
            .commit(UnitOfWork::step(start(flow(number), Some("same"))))
    };
    let (one, two) = tokio::join!(ask(1), ask(2));
    let results = [one, two];
    assert_eq!(
        results.iter().filter(|result| result.is_ok()).count(),
        1,
        "{results:?}"
    );
    let refused = results
        .iter()
        .find_map(|result| result.as_ref().err())
        .unwrap();
    let CommitError::Refused(refusal) = refused else {
        panic!("{refused}")
    };
    assert!(
        matches!(&**refusal, Refusal::ClientIdTaken(id) if id.as_str() == "same"),
        "{refusal}"
    );
}

/// Many units share a transaction; the bad ones among them are refused alone, and with all they hold.
#[rstest]
#[case(Engine::Sqlite)]
#[case(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn one_bad_unit_harms_only_itself(#[case] engine: Engine) {
    let Some(db) = database(engine).await else {
        return;
    };
    let node = node(&db).await;
    node.start_flow(flow(1_000)).await;
    let mut waiting = Vec::new();
    for number in 0..100u64 {
        let writer = node.writer.clone();
        waiting.push(tokio::spawn(async move {
            let mut unit = UnitOfWork::step(start(flow(number), None));
            unit.outgoing.push(envelope(&them(), number));
            match number % 10 {
                // A journal entry that is there already, and a flow that is not there.
                3 => unit.steps.push(StepCommit {
                    entries: vec![(0, b"again".to_vec())],
                    ..step(flow(1_000))
                }),
                7 => unit.steps.push(step(flow(2_000))),
                _ => {}
            }
            writer.commit(unit).await
        }));
    }
    for (number, result) in waiting.into_iter().enumerate() {
        let result = result.await.unwrap();
        match number % 10 {
            3 | 7 => assert!(
                matches!(result, Err(CommitError::Refused(_))),
                "{number}: {result:?}"
            ),
            _ => assert_eq!(result.unwrap().outgoing.len(), 1, "{number}"),
        }
    }
    // One row and one message for each good unit, and nothing of the bad ones.
    let flows = node.store.unfinished_flows(None, 1_000).await.unwrap();
    assert_eq!(flows.flows.len(), 81);
    let page = node.store.outbox(&them().name, 0, 1_000).await.unwrap();
    let numbers: Vec<u64> = page.messages.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, (1..=80).collect::<Vec<_>>());
}

#[rstest]
#[case(Engine::Sqlite)]
#[case(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn flows_are_read_in_pages_and_a_broken_one_is_put_aside(#[case] engine: Engine) {
    let Some(db) = database(engine).await else {
        return;
    };
    let node = node(&db).await;
    let steps = (0..7).map(|number| start(flow(number), None)).collect();
    node.commit(UnitOfWork {
        steps,
        ..UnitOfWork::default()
    })
    .await;
    // What nobody should do.
    let id = "00000000000000000000000000000004";
    let id = if engine == Engine::Postgres {
        format!("'\\x{id}'")
    } else {
        format!("x'{id}'")
    };
    db.run_sql(&format!(
        "UPDATE flows SET status = 'MOLTEN' WHERE flow_id = {id}"
    ))
    .await;
    let (mut found, mut broken, mut after) = (Vec::new(), Vec::new(), None);
    loop {
        let page = node.store.unfinished_flows(after, 3).await.unwrap();
        found.extend(page.flows.iter().map(|checkpoint| checkpoint.flow));
        broken.extend(page.broken.iter().map(|(flow, _)| *flow));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(found, [0, 1, 2, 3, 5, 6].map(flow));
    assert_eq!(broken, [flow(4)]);
}

#[rstest]
#[case(Engine::Sqlite)]
#[case(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn attachments_and_settings_are_kept(#[case] engine: Engine) {
    let Some(db) = database(engine).await else {
        return;
    };
    let node = node(&db).await;
    let id = AttachmentId::new(SecureHash::of(b"bytes"));
    let other = AttachmentId::new(SecureHash::of(b"others"));
    let attachment = || NewAttachment {
        id,
        bytes: b"bytes".as_slice().into(),
        uploader: "rpc".into(),
    };
    node.commit(UnitOfWork::attachment(attachment())).await;
    node.commit(UnitOfWork::attachment(attachment())).await;
    assert_eq!(
        node.store.attachment(&id).await.unwrap().unwrap().bytes,
        b"bytes"
    );
    assert_eq!(
        node.store.missing_attachments(&[id, other]).await.unwrap(),
        [other]
    );
    assert_eq!(node.store.setting("draining").await.unwrap(), None);
    node.commit(UnitOfWork::setting("draining", Some("true".into())))
        .await;
    node.commit(UnitOfWork::setting("draining", Some("false".into())))
        .await;
    assert_eq!(
        node.store.setting("draining").await.unwrap().as_deref(),
        Some("false")
    );
    node.commit(UnitOfWork::setting("draining", None)).await;
    assert_eq!(node.store.setting("draining").await.unwrap(), None);
}

/// The server goes down and comes back under load: every unit that was confirmed is there once, every one that was
/// not is there once or not at all, and the numbers have no gap.
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_of_the_server_loses_and_doubles_nothing() {
    if quorate_testkit::postgres::skipped() {
        return;
    }
    use quorate_testkit::postgres::{Postgres, PostgresOptions};
    let server = tokio::task::spawn_blocking(|| {
        let server = Postgres::start(&PostgresOptions::default()).unwrap();
        server.create_database("node").unwrap();
        std::sync::Arc::new(server)
    });
    let server = server.await.unwrap();
    let mut options: quorate_storage::Options = server.url("node").parse().unwrap();
    options.group_commit.patience = std::time::Duration::from_secs(30);
    let store = quorate_storage::Store::connect(options, vec![coins()])
        .await
        .unwrap();
    quorate_storage::migrate::execute(&store).await.unwrap();
    let fence = take(&store, "a").await;
    let node = with_fence(store, fence);

    let mut clients = Vec::new();
    for client in 0..8u64 {
        let writer = node.writer.clone();
        clients.push(tokio::spawn(async move {
            let (mut confirmed, mut unknown) = (Vec::new(), Vec::new());
            for number in 0..150u64 {
                let number = client * 1_000 + number;
                let mut unit = UnitOfWork::step(start(flow(number), None));
                unit.outgoing.push(envelope(&them(), number));
                match writer.commit(unit).await {
                    Ok(committed) => confirmed.push((number, committed.outgoing[0].sequence)),
                    Err(CommitError::Unknown(_)) => unknown.push(number),
                    Err(error) => panic!("{error:?}"),
                }
            }
            (confirmed, unknown)
        }));
    }
    let restarts = tokio::task::spawn_blocking(move || {
        for _ in 0..4 {
            std::thread::sleep(std::time::Duration::from_millis(150));
            server.kill().unwrap();
            server.start_again().unwrap();
        }
        server
    });
    let (mut confirmed, mut unknown) = (Vec::new(), Vec::new());
    for client in clients {
        let (sure, unsure) = client.await.unwrap();
        confirmed.extend(sure);
        unknown.extend(unsure);
    }
    let _server = restarts.await.unwrap();
    let mut page = Err(());
    for _ in 0..50 {
        // Right after a crash the readers' connections are dead too.
        if let Ok(found) = node.store.outbox(&them().name, 0, 10_000).await {
            page = Ok(found);
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let page = page.unwrap();
    let sent: std::collections::BTreeMap<u64, u64> = page
        .messages
        .iter()
        .map(|(sequence, bytes)| {
            (
                quorate_flow::Envelope::decode(bytes).unwrap().sequence,
                *sequence,
            )
        })
        .collect();
    assert_eq!(
        sent.len(),
        page.messages.len(),
        "a message was queued twice"
    );
    assert!(
        page.messages
            .iter()
            .map(|(sequence, _)| *sequence)
            .eq(1..=page.messages.len() as u64),
        "a gap"
    );
    for (number, sequence) in &confirmed {
        assert_eq!(
            sent.get(number),
            Some(sequence),
            "confirmed and not there: {number}"
        );
    }
    let explained = confirmed.len()
        + unknown
            .iter()
            .filter(|number| sent.contains_key(number))
            .count();
    assert_eq!(
        sent.len(),
        explained,
        "something was written that was reported as failed"
    );
}
