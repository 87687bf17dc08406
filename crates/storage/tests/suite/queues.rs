//! Inbox and outbox: exactly once.

use quorate_flow::InboxId;
use quorate_storage::{CommitError, Engine, Reception, Refusal, UnitOfWork};
use rstest::rstest;

use crate::support::*;

fn inbox(sequence: u64) -> InboxId {
    InboxId {
        peer: them().name,
        sequence,
    }
}

fn refusal(error: CommitError) -> std::sync::Arc<Refusal> {
    match error {
        CommitError::Refused(refusal) => refusal,
        other => panic!("{other}"),
    }
}

#[rstest]
#[case(Engine::Sqlite)]
#[case(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_received_once_and_consumed_once(#[case] engine: Engine) {
    let Some(db) = database(engine).await else {
        return;
    };
    let node = node(&db).await;
    let receive = |numbers: &[u64]| {
        UnitOfWork::receive(numbers.iter().map(|number| received(1, *number)).collect())
    };
    let accepted = |numbers: &[u64]| {
        numbers
            .iter()
            .map(|n| Reception::Accepted(inbox(*n)))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        node.commit(receive(&[1, 2])).await.received,
        accepted(&[1, 2])
    );
    // The same again, as after a lost acknowledgement, with a new one behind.
    let mut wanted = vec![Reception::Duplicate, Reception::Duplicate];
    wanted.extend(accepted(&[3]));
    assert_eq!(node.commit(receive(&[1, 2, 3])).await.received, wanted);

    let consume = |ids: &[u64]| UnitOfWork {
        consumed: ids.iter().map(|n| inbox(*n)).collect(),
        ..UnitOfWork::default()
    };
    node.commit(consume(&[2])).await;
    let left = node.store.inbox(None, 10).await.unwrap();
    assert_eq!(
        left.iter()
            .map(|message| message.id.sequence)
            .collect::<Vec<_>>(),
        [1, 3]
    );
    assert_eq!(&*left[0].envelope, b"1/1");
    assert_eq!(
        node.store.inbox(Some(&inbox(1)), 10).await.unwrap().len(),
        1
    );

    // A step that has consumed a message cannot become durable twice, nor can two steps that consume the same.
    let mut again = UnitOfWork::step(start(flow(1), None));
    again.steps[0].consumed = vec![inbox(2)];
    let error = node.writer.commit(again).await.unwrap_err();
    assert!(matches!(
        *refusal(error),
        Refusal::AlreadyConsumed { count: 1 }
    ));
    assert!(
        node.store
            .unfinished_flows(None, 10)
            .await
            .unwrap()
            .flows
            .is_empty()
    );
    let results = tokio::join!(
        node.writer.commit(consume(&[1, 3])),
        node.writer.commit(consume(&[3]))
    );
    assert!(results.0.is_ok() != results.1.is_ok(), "{results:?}");
    // A consumed message that is delivered once more is still a duplicate.
    assert_eq!(
        node.commit(receive(&[2])).await.received,
        [Reception::Duplicate]
    );
}

#[rstest]
#[case(Engine::Sqlite)]
#[case(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_does_not_follow_is_refused(#[case] engine: Engine) {
    let Some(db) = database(engine).await else {
        return;
    };
    let node = node(&db).await;
    // A queue that is older than this database may begin anywhere.
    node.commit(UnitOfWork::receive(vec![received(1, 5)])).await;
    let error = node
        .writer
        .commit(UnitOfWork::receive(vec![received(1, 6), received(1, 8)]))
        .await
        .unwrap_err();
    assert!(matches!(
        *refusal(error),
        Refusal::SequenceGap {
            last: 6,
            found: 8,
            ..
        }
    ));
    // Nothing of that unit is there.
    assert_eq!(node.store.inbox(None, 10).await.unwrap().len(), 1);
    let absurd = node
        .writer
        .commit(UnitOfWork::receive(vec![received(2, u64::MAX)]))
        .await
        .unwrap_err();
    assert!(matches!(*refusal(absurd), Refusal::Database(_)));
}

#[rstest]
#[case(Engine::Sqlite)]
#[case(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_new_life_of_a_queue_starts_anew_beside_what_is_left_of_the_old(#[case] engine: Engine) {
    let Some(db) = database(engine).await else {
        return;
    };
    let node = node(&db).await;
    node.commit(UnitOfWork::receive(
        (1..=3).map(|n| received(1, n)).collect(),
    ))
    .await;
    let committed = node
        .commit(UnitOfWork::receive(
            (1..=2).map(|n| received(2, n)).collect(),
        ))
        .await;
    assert_eq!(
        committed.received,
        [4, 5].map(|n| Reception::Accepted(inbox(n)))
    );
    assert_eq!(
        node.commit(UnitOfWork::receive(vec![received(1, 3)]))
            .await
            .received,
        [Reception::Duplicate]
    );
    let bodies: Vec<_> = node.store.inbox(None, 10).await.unwrap();
    let bodies: Vec<_> = bodies
        .iter()
        .map(|message| String::from_utf8(message.envelope.to_vec()).unwrap())
        .collect();
    assert_eq!(bodies, ["1/1", "1/2", "1/3", "2/1", "2/2"]);
}

#[rstest]
#[case(Engine::Sqlite)]
#[case(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn numbers_of_a_queue_have_no_gaps_whoever_sends(#[case] engine: Engine) {
    let Some(db) = database(engine).await else {
        return;
    };
    let node = node(&db).await;
    assert_eq!(
        node.store.outbox(&them().name, 0, 10).await.unwrap().epoch,
        None
    );
    let mut waiting = Vec::new();
    for number in 0..60u64 {
        let writer = node.writer.clone();
        waiting.push(tokio::spawn(async move {
            let mut unit = UnitOfWork::default();
            unit.outgoing.push(envelope(&them(), number));
            unit.outgoing.push(envelope(&notary(), number));
            unit.outgoing.push(envelope(&them(), number));
            // Every third unit is refused and must not use up numbers.
            if number % 3 == 0 {
                unit.steps.push(step(flow(9)));
            }
            writer.commit(unit).await
        }));
    }
    let mut seen = Vec::new();
    for result in waiting {
        if let Ok(committed) = result.await.unwrap() {
            let numbers: Vec<u64> = committed
                .outgoing
                .iter()
                .filter(|queued| queued.peer == them().name)
                .map(|q| q.sequence)
                .collect();
            assert_eq!(numbers[1], numbers[0] + 1);
            seen.extend(numbers);
        }
    }
    seen.sort_unstable();
    assert_eq!(seen, (1..=80).collect::<Vec<u64>>());

    node.commit(UnitOfWork::settle(them().name, 30)).await;
    node.commit(UnitOfWork::settle(them().name, 10)).await;
    let page = node.store.outbox(&them().name, 0, 20).await.unwrap();
    assert_eq!(
        page.messages.iter().map(|(n, _)| *n).collect::<Vec<_>>(),
        (31..=50).collect::<Vec<u64>>()
    );
    assert_eq!(
        node.store
            .outbox(&them().name, 79, 20)
            .await
            .unwrap()
            .messages
            .len(),
        1
    );
    let peers = node.store.outbox_peers().await.unwrap();
    let line = peers.iter().find(|peer| peer.peer == them().name).unwrap();
    assert_eq!(
        (line.last_sequence, line.waiting, Some(line.epoch)),
        (80, 50, page.epoch)
    );
    // All settled: the numbers go on.
    node.commit(UnitOfWork::settle(them().name, u64::MAX)).await;
    let mut unit = UnitOfWork::default();
    unit.outgoing.push(envelope(&them(), 99));
    assert_eq!(node.commit(unit).await.outgoing[0].sequence, 81);
}
