//! One orderer with a system channel: the cases that were recorded there, what stands in its blocks, and bootstrap files that
//! are no good.

use bytes::Bytes;
use prost::Message as _;
use quorate_fabric::block;
use quorate_fabric::config::CreatedChannel;
use quorate_fabric::proto::common::{Block, ConfigEnvelope};
use quorate_fabric::proto::etcdraft::{ConfigMetadata, Options};
use quorate_fabric::proto::orderer::ConsensusType;
use quorate_orderer::grpc::Position;
use quorate_orderer::store::StoredBlock;

use crate::single::{TIME_WINDOW, envelopes, leads, none, seek};
use crate::support::replay::{self, Differences, cases, requests};
use crate::support::{Line, Node, bytes, fixtures, text};
use crate::system_network::{genesis_block, genesis_config};

const SYSTEM: &str = "syschannel";
const CREATED: &str = "fixturetx";

/// A block as an orderer has it.
pub(crate) async fn fetch(line: &Line, channel: &str, number: u64) -> StoredBlock {
    let mut call = line.deliver().await;
    let position = Position::Number(number);
    call.send(seek(channel, position, position, 0));
    call.block().await
}

fn creation(block: &Block) -> CreatedChannel {
    CreatedChannel::from_block(block).unwrap().unwrap()
}

#[tokio::test]
async fn one_orderer_with_a_system_channel_answers_as_recorded() {
    let recorded = fixtures("statuses/statuses.json");
    let (key, value) = TIME_WINDOW;
    let mut node = Node::anywhere(0).with(key, value);
    node.bootstrap(&bytes("genesis/syschannel.block"));
    let orderer = node.start().await;
    orderer
        .says("Initialized the system channel 'syschannel' from bootstrap block")
        .await;
    leads(&orderer, SYSTEM).await;
    let line = Line::open(orderer.port(), None).await.unwrap();
    let mut differences = Differences::new();
    for case in cases(&recorded, "broadcast", "system-channel") {
        differences.extend(replay::broadcast(&line, case).await);
        match text(case, "name") {
            "sys-normal-by-orderer" => {
                orderer.reaches(SYSTEM, 2).await;
                assert_eq!(envelopes(&line, SYSTEM, 1).await, requests(case));
            }
            "sys-create" => {
                orderer.reaches(SYSTEM, 3).await;
                // Whoever sees the block finds the channel.
                assert_eq!(orderer.describe(CREATED).await["height"], 1);
                orderer
                    .says(&format!("Created and started new channel {CREATED}"))
                    .await;
                leads(&orderer, CREATED).await;
            }
            "sys-created-channel-transaction" => {
                orderer.reaches(CREATED, 2).await;
                assert_eq!(envelopes(&line, CREATED, 1).await, requests(case));
            }
            _ => {}
        }
    }
    for case in cases(&recorded, "deliver", "system-channel") {
        let channel = text(case, "channel");
        assert_eq!(
            case["height_before"],
            orderer.height(channel).await,
            "{channel}"
        );
        differences.extend(replay::deliver(&line, case, none()).await);
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));

    let transaction = fetch(&line, SYSTEM, 2).await.block();
    as_fabric_made_it(&transaction, &fetch(&line, CREATED, 0).await.block());

    // The file is not looked at any more.
    let mut node = orderer.kill();
    node.bootstrap(b"no block");
    let orderer = node.start().await;
    orderer
        .says("Not bootstrapping the system channel because of existing channels")
        .await;
    leads(&orderer, CREATED).await;
    leads(&orderer, SYSTEM).await;
    assert_eq!(
        (orderer.height(SYSTEM).await, orderer.height(CREATED).await),
        (3, 2)
    );
}

/// Compares the block that creates the channel, and the block that it begins with, with those that Fabric made of the same
/// request. The orderer's own nonce and signatures are in both, and with them the hashes.
fn as_fabric_made_it(transaction: &Block, genesis: &Block) {
    let read = |path: &str| Block::decode(bytes(path)).unwrap();
    let theirs = read("statuses/system-channel/syschannel-orderer-transaction.block");
    let (ours, created) = (creation(transaction), creation(&theirs));
    assert_eq!(ours.config, created.config);
    assert_eq!(
        block::last_config(transaction).unwrap(),
        block::last_config(&theirs).unwrap()
    );
    assert_eq!(
        block::consenter_metadata(transaction).unwrap(),
        block::consenter_metadata(&theirs).unwrap()
    );
    let metadata = |block: &Block| block.metadata.clone().unwrap().metadata;
    assert_eq!(metadata(transaction)[1..], metadata(&theirs)[1..]);

    let recorded = read("statuses/system-channel/fixturetx-genesis.block");
    assert_eq!(metadata(genesis), metadata(&recorded));
    assert_eq!(*genesis, ours.genesis);
    // Fabric's own block follows from its transaction byte by byte, by our rule.
    assert_eq!(
        created.genesis.encode_to_vec(),
        bytes("statuses/system-channel/fixturetx-genesis.block")
    );
}

async fn refused(block: &[u8], words: &str) {
    let mut node = Node::anywhere(0);
    node.bootstrap(block);
    let log = node.fails().await;
    assert!(log.contains(words), "{words}: {log}");
}

/// The system channel's first block with other Raft options.
fn with_options(change: impl FnOnce(&mut Options)) -> Bytes {
    let mut config: ConfigEnvelope = genesis_config();
    let group = config
        .config
        .as_mut()
        .unwrap()
        .channel_group
        .as_mut()
        .unwrap();
    let orderer = group.groups.get_mut("Orderer").unwrap();
    let value = orderer.values.get_mut("ConsensusType").unwrap();
    let mut kind = ConsensusType::decode(value.value.as_slice()).unwrap();
    let mut metadata = ConfigMetadata::decode(kind.metadata.as_slice()).unwrap();
    change(metadata.options.as_mut().unwrap());
    kind.metadata = metadata.encode_to_vec();
    value.value = kind.encode_to_vec();
    genesis_block(&config)
}

#[tokio::test]
async fn a_bootstrap_file_that_cannot_be_used_ends_the_process() {
    refused(b"no block", "it is not a block").await;
    refused(
        &bytes("genesis/fixture1.block"),
        "the block isn't a system channel block because it lacks ConsortiumsConfig",
    )
    .await;
    let restless = with_options(|options| options.heartbeat_tick = options.election_tick);
    refused(
        &restless,
        "ElectionTick (10) must be greater than HeartbeatTick (10)",
    )
    .await;
    // And without the file.
    let node = Node::anywhere(0)
        .with("ORDERER_GENERAL_BOOTSTRAPMETHOD", "file")
        .with("ORDERER_GENERAL_BOOTSTRAPFILE", "/nowhere/genesis.block");
    let log = node.fails().await;
    assert!(log.contains("cannot read /nowhere/genesis.block"), "{log}");
}
