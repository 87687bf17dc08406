//! An orderer under load is killed at random moments. What it acknowledged is in its chain, once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use quorate_fabric::envelope::sign;
use quorate_fabric::msp::LocalMsp;
use quorate_fabric::proto::common::{ChannelHeader, HeaderType};
use quorate_orderer::grpc::Position;
use quorate_orderer::replication::ChainVerifier;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::single::{leads, seek};
use crate::support::{Line, Node, orderer_admin};

const CHANNEL: &str = "fixture1";
const ROUNDS: u64 = 4;
const CLIENTS: usize = 4;
/// Requests of a client that wait for an answer.
const IN_FLIGHT: usize = 20;

/// What became of the envelopes that were sent.
#[derive(Default)]
struct Sent {
    acknowledged: Vec<Bytes>,
    all: u64,
}

/// A transaction like no other.
fn transaction(signer: &LocalMsp, number: u64) -> Bytes {
    let header = ChannelHeader {
        r#type: HeaderType::EndorserTransaction.into(),
        channel_id: CHANNEL.to_owned(),
        ..ChannelHeader::default()
    };
    let nonce = number.to_be_bytes().repeat(3);
    let envelope = sign(&header, b"load".to_vec(), &nonce, signer).unwrap();
    envelope.encoded().clone()
}

/// Sends until the orderer is gone.
async fn client(port: u16, signer: Arc<LocalMsp>, sent: Arc<Mutex<Sent>>) {
    let Ok(line) = Line::open(port, None).await else {
        return;
    };
    let mut call = line.broadcast().await;
    let next = || {
        let number = {
            let mut sent = sent.lock().unwrap();
            sent.all += 1;
            sent.all
        };
        transaction(&signer, number)
    };
    let mut waiting = std::collections::VecDeque::new();
    loop {
        while waiting.len() < IN_FLIGHT {
            let envelope = next();
            waiting.push_back(envelope.clone());
            call.send(envelope);
        }
        match call.answer().await {
            Ok((200, _)) => {
                let answered = waiting.pop_front().unwrap();
                sent.lock().unwrap().acknowledged.push(answered);
            }
            _ => return,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_kills_and_is_there_once() {
    let signer = Arc::new(orderer_admin());
    let sent = Arc::new(Mutex::new(Sent::default()));
    let seed = SystemTime::UNIX_EPOCH.elapsed().unwrap().subsec_nanos();
    println!("moments from the seed {seed}");

    let node = Node::anywhere(0).with("ORDERER_QUORATE_ACK", "committed");
    let mut orderer = node.start().await;
    orderer.join("genesis/fixture1.block").await;
    for round in 0..ROUNDS {
        leads(&orderer, CHANNEL).await;
        let before = sent.lock().unwrap().acknowledged.len();
        let mut clients = JoinSet::new();
        for _ in 0..CLIENTS {
            clients.spawn(client(orderer.port(), signer.clone(), sent.clone()));
        }
        crate::support::until("something is acknowledged", async || {
            (sent.lock().unwrap().acknowledged.len() > before).then_some(())
        })
        .await;
        let moment = (u64::from(seed) >> (round * 4)) % 400;
        sleep(Duration::from_millis(moment)).await;
        let node = orderer.kill();
        while clients.join_next().await.is_some() {}
        orderer = node.start().await;
    }
    leads(&orderer, CHANNEL).await;

    // A last one, so that nothing is still on its way.
    let line = Line::open(orderer.port(), None).await.unwrap();
    let answer = line.submit(transaction(&signer, u64::MAX)).await;
    assert_eq!(answer, (200, String::new()));
    let height = orderer.height(CHANNEL).await;
    let mut call = line.deliver().await;
    call.send(seek(
        CHANNEL,
        Position::Oldest,
        Position::Number(height - 1),
        0,
    ));
    let mut blocks = Vec::new();
    for _ in 0..height {
        blocks.push(call.block().await.block());
    }
    ChainVerifier::new(CHANNEL, None, None)
        .verify(&blocks)
        .unwrap();

    let mut found: HashMap<Bytes, usize> = HashMap::new();
    for envelope in blocks
        .into_iter()
        .flat_map(|block| block.data.unwrap().data)
    {
        *found.entry(envelope).or_default() += 1;
    }
    let sent = sent.lock().unwrap();
    assert!(
        found.values().all(|times| *times == 1),
        "an envelope is in the chain twice"
    );
    let lost = sent
        .acknowledged
        .iter()
        .filter(|envelope| !found.contains_key(*envelope))
        .count();
    assert_eq!(
        lost,
        0,
        "of {} acknowledged envelopes",
        sent.acknowledged.len()
    );
}
