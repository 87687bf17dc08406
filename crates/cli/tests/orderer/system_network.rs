//! Several orderers with a system channel: channels are created while orderers die, by all orderers or by some; an orderer
//! comes late, is added to a channel, removed while it is away, and added again.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use prost::Message as _;
use quorate_fabric::block;
use quorate_fabric::config::{ChannelConfig, compute_update, sign_update};
use quorate_fabric::envelope::{EnvelopeParts, RawEnvelope, sign};
use quorate_fabric::msp::LocalMsp;
use quorate_fabric::proto::common::{
    Block, ChannelHeader, Config, ConfigEnvelope, ConfigGroup, ConfigUpdate, ConfigUpdateEnvelope,
    ConfigValue, HeaderType, OrdererAddresses,
};
use quorate_fabric::proto::etcdraft::{ConfigMetadata, Consenter};
use quorate_fabric::proto::orderer::ConsensusType;
use quorate_orderer::grpc::Position;
use quorate_orderer::store::StoredBlock;
use tokio::time::sleep;

use crate::single::seek;
use crate::support::{Delivery, Line, Node, Orderer, bytes, fixture, orderer_admin, until};
use crate::system::fetch;

const SYSTEM: &str = "syschannel";
/// Less than a block that creates a channel has.
const SNAPSHOT_BYTES: u32 = 10_000;
/// More entries than a Raft log keeps behind a snapshot, together with those between two snapshots.
const KEPT_ENTRIES: usize = 15;
/// How many channels are created while orderers are killed.
const CREATIONS: usize = 6;

fn org1_admin() -> LocalMsp {
    let folder = fixture("crypto/peerOrganizations/org1.test/users/Admin@org1.test/msp");
    LocalMsp::load(&folder, "Org1MSP").unwrap()
}

fn nonce() -> [u8; 24] {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos();
    let mut nonce = [0; 24];
    nonce[..16].copy_from_slice(&now.to_be_bytes());
    nonce
}

fn message(kind: HeaderType, channel: &str, data: Vec<u8>, signer: &LocalMsp) -> RawEnvelope {
    let header = ChannelHeader {
        r#type: kind.into(),
        channel_id: channel.to_owned(),
        ..ChannelHeader::default()
    };
    sign(&header, data, &nonce(), signer).unwrap()
}

/// What the recorded system channel begins with.
pub(crate) fn genesis_config() -> ConfigEnvelope {
    let block = Block::decode(bytes("genesis/syschannel.block")).unwrap();
    let envelope = RawEnvelope::decode(block.data.unwrap().data[0].clone()).unwrap();
    ConfigEnvelope::decode(EnvelopeParts::parse(&envelope).unwrap().data).unwrap()
}

/// A system channel's first block.
pub(crate) fn genesis_block(config: &ConfigEnvelope) -> Bytes {
    let data = config.encode_to_vec();
    let message = message(HeaderType::Config, SYSTEM, data, &orderer_admin());
    let block = block::new_block(0, &[], vec![message.encoded().clone()]);
    block.encode_to_vec().into()
}

fn orderer_group(config: &mut Config) -> &mut ConfigGroup {
    let channel = config.channel_group.as_mut().unwrap();
    channel.groups.get_mut("Orderer").unwrap()
}

/// The value `ConsensusType` with other consenters.
fn with_consenters(value: &[u8], consenters: &[Consenter]) -> Vec<u8> {
    let mut kind = ConsensusType::decode(value).unwrap();
    let mut metadata = ConfigMetadata::decode(kind.metadata.as_slice()).unwrap();
    metadata.consenters = consenters.to_vec();
    // So that logs are compacted, and orderers that were away catch up by snapshot.
    metadata.options.as_mut().unwrap().snapshot_interval_size = SNAPSHOT_BYTES;
    kind.metadata = metadata.encode_to_vec();
    kind.encode_to_vec()
}

fn set_consenters(config: &mut Config, consenters: &[Consenter]) {
    let value = orderer_group(config)
        .values
        .get_mut("ConsensusType")
        .unwrap();
    value.value = with_consenters(&value.value, consenters);
}

fn consenter(number: usize, port: u16) -> Consenter {
    let certificate = fs::read(fixture(&format!(
        "crypto/ordererOrganizations/orderer.test/orderers/orderer{number}.orderer.test/tls/server.crt"
    )))
    .unwrap();
    Consenter {
        host: "127.0.0.1".to_owned(),
        port: port.into(),
        client_tls_cert: certificate.clone(),
        server_tls_cert: certificate,
    }
}

/// Orderers, some of which run.
struct Network {
    orderers: Vec<Option<Orderer>>,
    /// Those that do not.
    nodes: Vec<Option<Node>>,
    consenters: Vec<Consenter>,
}

impl Network {
    /// `total` orderers, of which the first `members` begin a network.
    async fn start(total: usize, members: usize) -> Self {
        let all: Vec<usize> = (0..members).collect();
        Self::begin(total, members, &all).await
    }

    /// The same, but only some of them run.
    async fn begin(total: usize, members: usize, running: &[usize]) -> Self {
        let nodes: Vec<Node> = (0..total).map(Node::anywhere).collect();
        let consenters: Vec<Consenter> = (nodes.iter().enumerate())
            .map(|(number, node)| consenter(number, node.port()))
            .collect();
        let mut config = genesis_config();
        let channel = config.config.as_mut().unwrap();
        set_consenters(channel, &consenters[..members]);
        let addresses = OrdererAddresses {
            addresses: nodes[..members]
                .iter()
                .map(|node| format!("127.0.0.1:{}", node.port()))
                .collect(),
        };
        let organisation = orderer_group(channel).groups.get_mut("OrdererOrg").unwrap();
        organisation.values.get_mut("Endpoints").unwrap().value = addresses.encode_to_vec();
        let genesis = genesis_block(&config);
        let mut network = Self {
            orderers: (0..total).map(|_| None).collect(),
            nodes: nodes.into_iter().map(Some).collect(),
            consenters,
        };
        for number in 0..members {
            network.nodes[number].as_mut().unwrap().bootstrap(&genesis);
        }
        for number in running {
            network.run(*number).await;
        }
        for number in running {
            network.serves(*number, SYSTEM).await;
        }
        network
    }

    fn orderer(&self, number: usize) -> &Orderer {
        self.orderers[number].as_ref().unwrap()
    }

    async fn line(&self, number: usize) -> Line {
        Line::open(self.orderer(number).port(), None).await.unwrap()
    }

    async fn run(&mut self, number: usize) {
        let node = self.nodes[number].take().unwrap();
        self.orderers[number] = Some(node.start().await);
    }

    fn kill(&mut self, number: usize) {
        let orderer = self.orderers[number].take().unwrap();
        self.nodes[number] = Some(orderer.kill());
    }

    /// Waits until an orderer is a consenter of a channel and knows its leader.
    async fn serves(&self, number: usize, channel: &str) {
        let orderer = self.orderer(number);
        until(&format!("orderer{number} serves {channel}"), async || {
            let described = orderer.describe(channel).await;
            (described["consensusRelation"] == "consenter" && described["status"] == "active")
                .then_some(())
        })
        .await;
        until(&format!("{channel} has a leader"), async || {
            let log = orderer.log();
            let last = log.lines().rev().find(|line| {
                line.contains("Raft leader changed: ")
                    && line.contains(&format!(" channel={channel} "))
            })?;
            (!last.contains("-> 0 ")).then_some(())
        })
        .await;
    }

    /// Sends a message until it is taken: leaders come and go.
    async fn submit(&self, through: usize, envelope: &Bytes) {
        let mut last = None;
        until("the message is ordered", async || {
            let line = Line::open(self.orderer(through).port(), None).await.ok()?;
            let (status, info) = line.submit(envelope.clone()).await;
            if status != 200 && last.as_ref() != Some(&info) {
                eprintln!("orderer{through}: {status} {info}");
                last = Some(info);
            }
            (status == 200).then_some(())
        })
        .await;
    }

    async fn transaction(&self, through: usize, channel: &str) {
        let kind = HeaderType::EndorserTransaction;
        let signer = if channel == SYSTEM {
            orderer_admin()
        } else {
            org1_admin()
        };
        let words = message(kind, channel, b"words".to_vec(), &signer);
        self.submit(through, words.encoded()).await;
    }

    async fn config(&self, from: usize, channel: &str) -> (ChannelConfig, StoredBlock) {
        let line = self.line(from).await;
        let height = self.orderer(from).height(channel).await;
        let newest = fetch(&line, channel, height - 1).await;
        let block = fetch(&line, channel, newest.last_config().unwrap()).await;
        (ChannelConfig::from_block(&block.block()).unwrap(), block)
    }

    /// Changes a channel's consenters, one at a time, and waits for the block on some orderers.
    async fn change(&self, through: usize, channel: &str, consenters: &[usize], on: &[usize]) {
        let named: Vec<Consenter> = (consenters.iter())
            .map(|number| self.consenters[*number].clone())
            .collect();
        let edit = |config: &mut Config| set_consenters(config, &named);
        self.update(through, channel, edit, on).await;
    }

    /// Changes a channel's configuration, and waits for the block on some orderers.
    async fn update(
        &self,
        through: usize,
        channel: &str,
        edit: impl FnOnce(&mut Config),
        on: &[usize],
    ) {
        let (current, _) = self.config(through, channel).await;
        let mut wanted = current.proto().clone();
        edit(&mut wanted);
        let update = compute_update(channel, current.proto(), &wanted).unwrap();
        let signed = signed_update(&update, &[&orderer_admin()]);
        let envelope = message(HeaderType::ConfigUpdate, channel, signed, &orderer_admin());
        self.submit(through, envelope.encoded()).await;
        let goal = current.sequence() + 1;
        for number in on {
            until("the update is in force", async || {
                let (now, _) = self.config(*number, channel).await;
                (now.sequence() >= goal).then_some(())
            })
            .await;
        }
    }

    /// Waits until all of these have the same number of blocks, and compares them. That number.
    async fn same(&self, channel: &str, among: &[usize]) -> u64 {
        let mut highest = 0;
        for number in among {
            highest = highest.max(self.orderer(*number).height(channel).await);
        }
        let mut first: Option<Vec<StoredBlock>> = None;
        for number in among {
            self.orderer(*number).reaches(channel, highest).await;
            let chain = self.chain(*number, channel, highest).await;
            let Some(first) = &first else {
                first = Some(chain);
                continue;
            };
            for (one, other) in first.iter().zip(&chain) {
                let (one, other) = (one.block(), other.block());
                assert_eq!(one.header, other.header, "{channel} on orderer{number}");
                assert_eq!(one.data, other.data, "{channel} on orderer{number}");
                assert_eq!(
                    block::consenter_metadata(&one).unwrap(),
                    block::consenter_metadata(&other).unwrap()
                );
            }
        }
        highest
    }

    async fn chain(&self, number: usize, channel: &str, height: u64) -> Vec<StoredBlock> {
        let mut call = self.line(number).await.deliver().await;
        call.send(seek(
            channel,
            Position::Oldest,
            Position::Number(height - 1),
            0,
        ));
        let mut chain = Vec::new();
        loop {
            match call.delivery().await.unwrap() {
                Delivery::Block(block) => chain.push(block),
                Delivery::Status(status) => {
                    assert_eq!(status, 200, "{channel} of orderer{number}");
                    return chain;
                }
            }
        }
    }

    /// That an orderer leaves a channel to others, with so many blocks.
    async fn inactive(&self, number: usize, channel: &str, height: u64) {
        let orderer = self.orderer(number);
        until(
            &format!("orderer{number} is inactive in {channel}"),
            async || {
                let described = orderer.describe(channel).await;
                let as_wanted = described["consensusRelation"] == "config-tracker"
                    && described["status"] == "inactive"
                    && described["height"] == height;
                as_wanted.then_some(())
            },
        )
        .await;
        let line = self.line(number).await;
        let words = message(
            HeaderType::EndorserTransaction,
            channel,
            b"words".to_vec(),
            &org1_admin(),
        );
        let answer = line.submit(words.encoded().clone()).await;
        assert_eq!(
            answer,
            (503, format!("channel {channel} is not serviced by me"))
        );
        // First what is wrong with the message.
        let forged = RawEnvelope::new(words.payload(), b"forged");
        assert_eq!(line.submit(forged.encoded().clone()).await.0, 403);
        let mut call = line.deliver().await;
        call.send(seek(channel, Position::Newest, Position::Newest, 0));
        assert!(matches!(call.delivery().await, Ok(Delivery::Status(503))));
    }
}

fn signed_update(update: &ConfigUpdate, signers: &[&LocalMsp]) -> Vec<u8> {
    let config_update = update.encode_to_vec();
    let signatures = (signers.iter())
        .map(|signer| sign_update(&config_update, &nonce(), *signer).unwrap())
        .collect();
    ConfigUpdateEnvelope {
        config_update,
        signatures,
    }
    .encode_to_vec()
}

/// A request for a channel, as configtxgen writes one and an administrator signs it; with consenters of its own if these are
/// named.
fn creation(channel: &str, consenters: Option<&[Consenter]>) -> Bytes {
    let envelope = RawEnvelope::decode(bytes("genesis/fixturetx.pb")).unwrap();
    let data = EnvelopeParts::parse(&envelope).unwrap().data;
    let unsigned = ConfigUpdateEnvelope::decode(data).unwrap();
    let mut update = ConfigUpdate::decode(unsigned.config_update.as_slice()).unwrap();
    update.channel_id = channel.to_owned();
    if let Some(consenters) = consenters {
        let mut config = genesis_config().config.unwrap();
        let value = &orderer_group(&mut config).values["ConsensusType"];
        let written = ConfigValue {
            version: 1,
            value: with_consenters(&value.value, consenters),
            mod_policy: value.mod_policy.clone(),
        };
        let read = update.read_set.get_or_insert_default();
        read.groups
            .insert("Orderer".to_owned(), ConfigGroup::default());
        let write = update.write_set.get_or_insert_default();
        let group = ConfigGroup {
            values: BTreeMap::from([("ConsensusType".to_owned(), written)]),
            ..ConfigGroup::default()
        };
        write.groups.insert("Orderer".to_owned(), group);
    }
    let admin = org1_admin();
    let signed = signed_update(&update, &[&admin, &orderer_admin()]);
    message(HeaderType::ConfigUpdate, channel, signed, &admin)
        .encoded()
        .clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn channels_are_created_by_all_orderers_while_some_are_killed() {
    let mut network = Network::start(3, 3).await;
    let all = [0, 1, 2];

    // Through the one that will not serve the second channel.
    let some = network.consenters[..2].to_vec();
    network.submit(2, &creation("alpha", None)).await;
    network.submit(2, &creation("beta", Some(&some))).await;
    for number in all {
        network.serves(number, "alpha").await;
        network.transaction(number, "alpha").await;
    }
    for number in [0, 1] {
        network.serves(number, "beta").await;
        network.transaction(number, "beta").await;
    }
    network.inactive(2, "beta", 1).await;

    // A channel may only be ordered by those who order the system channel.
    let stranger = [consenter(4, 7050)];
    let (status, info) = network
        .line(0)
        .await
        .submit(creation("gamma", Some(&stranger)))
        .await;
    assert_eq!(status, 400, "{info}");
    assert!(
        info.contains("new channel has consenter that is not part of system consenter set"),
        "{info}"
    );

    // One orderer after the other dies in the midst of a creation.
    let seed = SystemTime::UNIX_EPOCH.elapsed().unwrap().subsec_nanos();
    println!("moments from the seed {seed}");
    let mut asked_again = 0;
    for round in 0..CREATIONS {
        let name = format!("round{round}");
        let (dies, asks) = (round % 3, (round + 1) % 3);
        let request = creation(&name, None);
        let line = network.line(asks).await;
        let mut call = line.broadcast().await;
        call.send(request.clone());
        let moment = u64::from(seed >> (round * 5)) % 40;
        sleep(Duration::from_millis(moment)).await;
        network.kill(dies);
        let (status, info) = call.answer().await.unwrap_or_default();
        println!(
            "{name}: orderer{dies} was killed after {moment} ms; the answer was {status} {info}"
        );
        let others: Vec<usize> = all.into_iter().filter(|number| *number != dies).collect();
        if status != 200 {
            asked_again += 1;
            // Its fate is unknown. Again: if it exists, that is an update that does not fit.
            until("the channel exists", async || {
                let line = Line::open(network.orderer(asks).port(), None).await.ok()?;
                let (status, info) = line.submit(request.clone()).await;
                let exists = status == 200
                    || info.contains("error applying config update to existing channel");
                exists.then_some(())
            })
            .await;
        }
        for number in others {
            network.serves(number, &name).await;
        }
        network.transaction(asks, &name).await;
        network.run(dies).await;
        network.serves(dies, &name).await;
        network.transaction(dies, &name).await;
    }

    // All at once, and everything is there again.
    for number in all {
        network.kill(number);
    }
    for number in all {
        network.run(number).await;
    }
    let names = (0..CREATIONS).map(|round| format!("round{round}"));
    for channel in names.chain(["alpha".to_owned(), SYSTEM.to_owned()]) {
        for number in all {
            network.serves(number, &channel).await;
        }
        network.same(&channel, &all).await;
    }
    network.serves(0, "beta").await;
    network.same("beta", &[0, 1]).await;
    network.inactive(2, "beta", 1).await;
    // One block for each, the first one, and none besides; a creation that was asked for again because its fate was unknown may
    // stand twice, and the first counts.
    let height = network.orderer(0).height(SYSTEM).await;
    let once = 3 + CREATIONS as u64;
    assert!((once..=once + asked_again).contains(&height), "{height}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orderer_that_comes_late_gets_the_channels_that_name_it() {
    let mut network = Network::start(4, 3).await;
    let three = [0, 1, 2];
    for channel in ["alpha", "beta"] {
        network.submit(0, &creation(channel, None)).await;
        for number in three {
            network.serves(number, channel).await;
        }
        network.transaction(1, channel).await;
    }
    for channel in [SYSTEM, "alpha"] {
        network.change(0, channel, &[0, 1, 2, 3], &three).await;
    }
    // What happens after the block with which it begins.
    let (_, block) = network.config(0, SYSTEM).await;
    network.submit(0, &creation("gamma", None)).await;
    network.transaction(2, "alpha").await;

    network.nodes[3]
        .as_mut()
        .unwrap()
        .bootstrap(block.encoded());
    network.run(3).await;
    let late = network.orderer(3);
    late.says("I do not belong to channel beta or am forbidden pulling it (not in the channel), skipping chain retrieval").await;
    network.serves(3, "alpha").await;
    network.serves(3, SYSTEM).await;
    network.transaction(3, "alpha").await;
    // The template of this one named it, although it was not there.
    network.serves(3, "gamma").await;
    network.transaction(3, "gamma").await;
    network.inactive(3, "beta", 1).await;
    for channel in [SYSTEM, "alpha", "gamma"] {
        network.same(channel, &[0, 1, 2, 3]).await;
    }

    // It finds out by itself that it is wanted.
    late.says("Found 1 inactive chains: [beta]").await;
    network.change(0, "beta", &[0, 1, 2, 3], &three).await;
    network.serves(3, "beta").await;
    network.transaction(3, "beta").await;
    network.same("beta", &[0, 1, 2, 3]).await;
    assert!(!late.log().contains(" ERRO "), "{}", late.log());

    // Removed while it is away, it notices; and keeps what it has.
    network.kill(3);
    network.change(0, "beta", &three, &three).await;
    network.run(3).await;
    let late = network.orderer(3);
    late.says("Detected our own eviction from the channel in block")
        .await;
    late.says("Periodic check is stopping. channel=beta").await;
    late.says("Pulled all blocks up to eviction block. channel=beta")
        .await;
    let height = network.orderer(0).height("beta").await;
    network.inactive(3, "beta", height).await;
    network.transaction(0, "beta").await;
    network.kill(3);
    network.run(3).await;
    let late = network.orderer(3);
    late.says("Found 1 inactive chains").await;
    late.says("I do not belong to channel beta or am forbidden pulling it")
        .await;
    network.inactive(3, "beta", height).await;

    network.change(0, "beta", &[0, 1, 2, 3], &three).await;
    network.serves(3, "beta").await;
    network.transaction(3, "beta").await;
    network.same("beta", &[0, 1, 2, 3]).await;
}

/// The names in the list of channels: the system channel's, and the others'.
async fn listed(orderer: &Orderer) -> (Option<String>, Vec<String>) {
    let answer = orderer
        .admin()
        .ask("GET", "/participation/v1/channels", &[], b"")
        .await;
    let list: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
    let name = |channel: &serde_json::Value| channel["name"].as_str().map(str::to_owned);
    let channels = list["channels"].as_array().into_iter().flatten();
    (
        name(&list["systemChannel"]),
        channels.filter_map(name).collect(),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_away_catches_up_and_the_system_channel_goes_in_the_end() {
    let mut network = Network::start(4, 3).await;
    let (two, three, all) = ([0, 1], [0, 1, 2], [0, 1, 2, 3]);
    network.kill(2);
    network.serves(0, SYSTEM).await;
    let channels = ["alpha", "beta", "gamma"];
    for channel in channels {
        network.submit(0, &creation(channel, None)).await;
        for number in two {
            network.serves(number, channel).await;
        }
        network.transaction(1, channel).await;
    }
    // The log forgets the creations: whoever was away has to fetch their blocks.
    for _ in 0..=KEPT_ENTRIES {
        let height = network.orderer(0).height(SYSTEM).await;
        network.transaction(1, SYSTEM).await;
        network.orderer(0).reaches(SYSTEM, height + 1).await;
    }
    network.run(2).await;
    for channel in channels {
        network.serves(2, channel).await;
        network.transaction(2, channel).await;
        network.same(channel, &three).await;
    }
    network.same(SYSTEM, &three).await;
    network
        .orderer(2)
        .says("Catching up with snapshot taken at block [")
        .await;

    // The fourth one is told by the participation API, and dies while it fetches.
    for channel in [SYSTEM, "alpha"] {
        network.change(0, channel, &all, &three).await;
    }
    let (_, block) = network.config(1, SYSTEM).await;
    network.run(3).await;
    let answer = network.orderer(3).admin().join(block.encoded()).await;
    assert_eq!(answer.status, 201, "{}", answer.body);
    assert!(
        answer
            .body
            .contains(r#""consensusRelation":"consenter","status":"inactive","height":0"#),
        "{}",
        answer.body
    );
    network.kill(3);
    let seed = SystemTime::UNIX_EPOCH.elapsed().unwrap().subsec_nanos();
    println!("moments from the seed {seed}");
    for round in 0..4 {
        let moment = Duration::from_millis(u64::from(seed >> (round * 6)) % 64 * 4);
        let node = network.nodes[3].take().unwrap();
        network.nodes[3] = Some(node.dies_after(moment).await);
    }
    network.run(3).await;
    let (system, mut others) = listed(network.orderer(3)).await;
    others.sort();
    assert_eq!(
        (system.as_deref(), others),
        (Some(SYSTEM), channels.map(str::to_owned).to_vec())
    );
    for channel in [SYSTEM, "alpha"] {
        network.serves(3, channel).await;
        network.same(channel, &all).await;
    }
    network.inactive(3, "beta", 1).await;

    // Maintenance mode: no channels are created.
    let maintenance = |config: &mut Config| {
        let value = orderer_group(config)
            .values
            .get_mut("ConsensusType")
            .unwrap();
        let mut kind = ConsensusType::decode(value.value.as_slice()).unwrap();
        kind.state = 1;
        value.value = kind.encode_to_vec();
    };
    network.update(0, SYSTEM, maintenance, &all).await;
    let line = network.line(0).await;
    assert_eq!(
        line.submit(creation("delta", None)).await,
        (
            503,
            "channel creation is not permitted: maintenance mode".to_owned()
        )
    );

    // The system channel goes. What nobody needs here goes with it; the rest goes on.
    for number in all {
        let path = format!("/participation/v1/channels/{SYSTEM}");
        let answer = network
            .orderer(number)
            .admin()
            .ask("DELETE", &path, &[], b"")
            .await;
        assert_eq!(answer.status, 204, "{}", answer.body);
        let (system, others) = listed(network.orderer(number)).await;
        assert_eq!(
            (system, others.len()),
            (None, if number == 3 { 1 } else { 3 })
        );
    }
    let (status, info) = network.line(0).await.submit(creation("delta", None)).await;
    assert_eq!(status, 400, "{info}");
    assert!(
        info.contains("the orderer system channel is not defined"),
        "{info}"
    );
    for number in all {
        network.transaction(number, "alpha").await;
    }
    network.same("alpha", &all).await;
    // From now on, who is removed follows.
    network.change(0, "beta", &two, &two).await;
    until("orderer2 follows", async || {
        let described = network.orderer(2).describe("beta").await;
        (described["consensusRelation"] == "follower").then_some(())
    })
    .await;
    network.orderer(3).join("genesis/fixture1.block").await;
    network.kill(1);
    network.run(1).await;
    network
        .orderer(1)
        .says("Registrar initializing without a system channel, number of application channels: 3")
        .await;
    network.serves(1, "alpha").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orderer_left_behind_by_changes_of_members_finds_its_way() {
    // The fourth is a consenter from the beginning, and has never run.
    let mut network = Network::begin(5, 4, &[0, 1, 2]).await;
    network
        .change(0, SYSTEM, &[0, 1, 2, 3, 4], &[0, 1, 2])
        .await;
    let (_, block) = network.config(0, SYSTEM).await;
    network.nodes[4]
        .as_mut()
        .unwrap()
        .bootstrap(block.encoded());
    network.run(4).await;
    network.serves(4, SYSTEM).await;
    // Those whom the fourth knows go, or fall behind: only the fifth can lead, whom it does not know.
    network.kill(0);
    network.transaction(4, SYSTEM).await;
    network.same(SYSTEM, &[1, 2, 4]).await;
    network.kill(1);
    network.kill(2);
    network.run(3).await;
    network.run(0).await;
    let behind = network.orderer(3);
    behind
        .says("Suspecting our own eviction from the channel")
        .await;
    behind
        .says("our certificate was found in config block with sequence 1")
        .await;
    network.serves(3, SYSTEM).await;
    network.transaction(3, SYSTEM).await;
    network.same(SYSTEM, &[0, 3, 4]).await;
}
