//! The network map: what a node learns from files, while it starts and while it runs, and what it refuses.

// clippy.toml allows this in test functions; here the helpers are tests too.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use quorate_flow::FlowTimeout;
use quorate_identity::{
    CertificateAuthority, Identity, NodeKeys, Party, SecureHash, SignatureScheme, SigningKey,
    UnixTime, X500Name,
};
use quorate_ledger::Timestamp;
use quorate_ledger::network::{
    NetworkHostAndPort, NetworkParameters, NodeInfo, NotaryInfo, PartyAndCertificate,
    SignedNetworkParameters, SignedNodeInfo,
};
use quorate_node::network_map::{
    NetworkMap, NetworkMapError, NetworkSnapshot, OwnInfo, node_info_file,
};
use quorate_runtime::{Clock, ManualClock, Tasks};

const SECONDS: i64 = 1_800_000_000;
const NOW: UnixTime = UnixTime(SECONDS);

fn name(organisation: &str) -> X500Name {
    X500Name::new(organisation, "London", "GB").unwrap()
}

fn authority(organisation: &str) -> CertificateAuthority {
    CertificateAuthority::generate(&name(organisation), SignatureScheme::Ed25519, NOW).unwrap()
}

fn address(port: u16) -> NetworkHostAndPort {
    NetworkHostAndPort::new("localhost", port).unwrap()
}

/// A node called PartyA and its surroundings.
struct World {
    directory: tempfile::TempDir,
    authority: CertificateAuthority,
    keys: NodeKeys,
    addresses: Vec<NetworkHostAndPort>,
    clock: Clock,
    hand: ManualClock,
}

impl World {
    fn new() -> Self {
        let authority = authority("Some Network");
        let (clock, hand) = Clock::manual(SECONDS * 1_000_000);
        let world = Self {
            directory: tempfile::tempdir().unwrap(),
            keys: NodeKeys::generate(&authority, &name("PartyA"), SignatureScheme::Ed25519, NOW)
                .unwrap(),
            authority,
            addresses: vec![address(10002)],
            clock,
            hand,
        };
        world.put_parameters(&world.parameters(Vec::new()));
        world
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn folder(&self) -> PathBuf {
        self.path().join("additional-node-infos")
    }

    fn load(&self) -> Result<NetworkMap, NetworkMapError> {
        let own = OwnInfo {
            keys: &self.keys,
            addresses: &self.addresses,
            provides_notary_service: true,
        };
        NetworkMap::load(self.path(), &own, self.clock.clone())
    }

    fn parameters(&self, notaries: Vec<NotaryInfo>) -> NetworkParameters {
        NetworkParameters::first(notaries, Timestamp::from_seconds(SECONDS))
    }

    fn put_parameters(&self, parameters: &NetworkParameters) {
        let signed =
            SignedNetworkParameters::sign(parameters, self.authority.network_map()).unwrap();
        self.put_parameter_bytes(&signed.encode());
    }

    fn put_parameter_bytes(&self, bytes: &[u8]) {
        replace(&self.path().join("network-parameters"), bytes);
    }

    fn put(&self, file: &str, bytes: &[u8]) -> PathBuf {
        std::fs::create_dir_all(self.folder()).unwrap();
        let path = self.folder().join(file);
        replace(&path, bytes);
        path
    }

    fn put_node(&self, node: &Node, serial: u64) -> PathBuf {
        self.put(&node_info_file(&node.name), &node.signed(serial).encode())
    }

    fn node(&self, organisation: &str, port: u16) -> Node {
        Node::new(&self.authority, organisation, port)
    }

    fn service(&self, organisation: &str) -> Identity {
        self.authority
            .service_identity(&name(organisation), SignatureScheme::Ed25519, NOW)
            .unwrap()
    }
}

/// As a copying operator does it, but at once.
fn replace(path: &Path, bytes: &[u8]) {
    let temporary = path.with_extension("part");
    std::fs::write(&temporary, bytes).unwrap();
    std::fs::rename(&temporary, path).unwrap();
}

struct Node {
    name: X500Name,
    identities: Vec<Identity>,
    addresses: Vec<NetworkHostAndPort>,
    platform_version: u32,
}

impl Node {
    fn new(authority: &CertificateAuthority, organisation: &str, port: u16) -> Self {
        let name = name(organisation);
        let keys = NodeKeys::generate(authority, &name, SignatureScheme::Ed25519, NOW).unwrap();
        Self {
            name,
            identities: vec![keys.legal_identity().clone()],
            addresses: vec![address(port)],
            platform_version: 1,
        }
    }

    fn with_service(mut self, service: &Identity) -> Self {
        self.identities.push(service.clone());
        self
    }

    fn party(&self) -> Party {
        self.identities[0].party()
    }

    fn signed(&self, serial: u64) -> SignedNodeInfo {
        let info = NodeInfo {
            addresses: self.addresses.clone(),
            identities: self
                .identities
                .iter()
                .map(PartyAndCertificate::from)
                .collect(),
            platform_version: self.platform_version,
            serial,
        };
        let keys: Vec<&SigningKey> = self.identities.iter().map(Identity::key).collect();
        SignedNodeInfo::sign(&info, &keys).unwrap()
    }
}

fn names(snapshot: &NetworkSnapshot) -> Vec<String> {
    snapshot
        .nodes()
        .map(|info| info.identities[0].name().organisation().to_owned())
        .collect()
}

fn told(error: &NetworkMapError) -> String {
    quorate_runtime::tasks::chain(error)
}

/// Counts the warnings of the current thread.
#[derive(Clone, Default)]
struct Warnings(Arc<AtomicUsize>);

impl Warnings {
    fn during<T>(work: impl FnOnce() -> T) -> (T, usize) {
        let warnings = Self::default();
        let outcome = tracing::subscriber::with_default(warnings.clone(), work);
        (outcome, warnings.0.load(Ordering::SeqCst))
    }
}

impl tracing::Subscriber for Warnings {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::WARN
    }

    fn event(&self, _: &tracing::Event<'_>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn parties_services_and_addresses_are_learnt_from_files() {
    let world = World::new();
    let service = world.service("Notary Service");
    let party_b = world.node("PartyB", 10012);
    let mut worker_1 = world.node("Worker1", 10022).with_service(&service);
    worker_1.addresses.push(address(10023));
    let worker_2 = world.node("Worker2", 10032).with_service(&service);
    let notary = NotaryInfo {
        identity: service.party(),
        validating: true,
    };
    world.put_parameters(&world.parameters(vec![notary.clone()]));
    for node in [&party_b, &worker_1, &worker_2] {
        world.put_node(node, 1);
    }
    world.put("readme.txt", b"not a node info");
    let (map, warnings) = Warnings::during(|| world.load().unwrap());
    assert_eq!(warnings, 0);
    let network = map.snapshot();

    assert_eq!(names(&network), ["PartyA", "PartyB", "Worker1", "Worker2"]);
    assert_eq!(network.party(&party_b.name), Some(&party_b.party()));
    assert_eq!(
        network.party(&name("Notary Service")),
        Some(&service.party())
    );
    assert_eq!(network.party(&name("Nobody")), None);
    let ports = |name: &X500Name| -> Vec<u16> {
        network
            .addresses(name)
            .iter()
            .map(|address| address.port)
            .collect()
    };
    assert_eq!(ports(&party_b.name), [10012]);
    assert_eq!(ports(&name("Nobody")), [0_u16; 0]);
    let mut of_service = ports(service.name());
    assert_eq!(of_service.pop(), Some(10023), "second addresses come last");
    of_service.sort_unstable();
    assert_eq!(of_service, [10022, 10032]);

    let workers = [worker_1.name.clone(), worker_2.name.clone()];
    assert_eq!(network.answering(service.name()), workers);
    assert_eq!(
        network.answering(&party_b.name),
        std::slice::from_ref(&party_b.name)
    );
    assert!(network.serves(&worker_1.name, service.name()));
    assert!(network.serves(&party_b.name, &party_b.name));
    assert!(!network.serves(&party_b.name, service.name()));
    assert!(!network.serves(&party_b.name, &worker_1.name));
    assert!(!network.serves(service.name(), service.name()));

    let codes = BTreeMap::from([("cash.Cash".to_owned(), SecureHash::ZERO)]);
    let surroundings = network.surroundings(codes.clone(), FlowTimeout::default());
    assert_eq!(surroundings.me, world.keys.party());
    assert_eq!(surroundings.notaries, [notary]);
    assert_eq!(surroundings.parameters, Some(network.parameters().hash()));
    assert_eq!(surroundings.contracts, codes);
    assert!(surroundings.parties.contains_key(service.name()));
    assert_eq!(network.own_notary(), None);

    let max = usize::try_from(network.parameters().max_transaction_size).unwrap();
    assert_eq!(network.check_transaction_size(max), Ok(()));
    let error = network
        .check_transaction_size(max + 1)
        .unwrap_err()
        .to_string();
    assert!(error.contains("maxTransactionSize"), "{error}");
}

#[test]
fn our_own_info_is_written_when_it_says_something_new() {
    let mut world = World::new();
    let file = world.path().join(node_info_file(&name("PartyA")));
    let first = world.load().unwrap().own().clone();
    assert!(first.written);
    assert_eq!(first.path, file);
    let bytes = std::fs::read(&file).unwrap();
    let info = SignedNodeInfo::decode(&bytes)
        .unwrap()
        .verify(world.authority.root(), NOW)
        .unwrap();
    assert_eq!(info, first.info);

    world.hand.advance(Duration::from_secs(60));
    let again = world.load().unwrap().own().clone();
    assert!(!again.written);
    assert_eq!(std::fs::read(&file).unwrap(), bytes);

    world.addresses.push(address(20002));
    let moved = world.load().unwrap().own().clone();
    assert!(moved.written && moved.info.serial > first.info.serial);

    // The serial grows even if the clock has gone back.
    world.addresses.pop();
    world.hand.set_wall_micros((SECONDS - 3_600) * 1_000_000);
    let back = world.load().unwrap().own().clone();
    assert!(back.written && back.info.serial > moved.info.serial);

    // An info that this node's other machine has made, and that says what we want to say, is taken over.
    std::fs::remove_file(&file).unwrap();
    world.put(&node_info_file(&name("PartyA")), &back.signed.encode());
    let taken = world.load().unwrap().own().clone();
    assert!(taken.written);
    assert_eq!(taken.info, back.info);

    // A damaged one is made anew.
    std::fs::write(&file, b"damaged").unwrap();
    std::fs::remove_dir_all(world.folder()).unwrap();
    assert!(world.load().unwrap().own().written);

    // With a service, the service signs too.
    world.keys = world
        .keys
        .clone()
        .with_notary_service(world.service("Notary Service"));
    let notary = world.load().unwrap();
    assert_eq!(notary.own().info.identities.len(), 2);
    let network = notary.snapshot();
    assert!(network.serves(&name("PartyA"), &name("Notary Service")));
    assert_eq!(
        network
            .surroundings(BTreeMap::new(), FlowTimeout::default())
            .services
            .len(),
        1
    );
}

#[test]
fn what_cannot_be_believed_is_reported_once_and_harms_nothing_else() {
    let world = World::new();
    let good = world.node("PartyB", 10012);
    world.put_node(&good, 1);

    let bytes = world.node("PartyC", 10022).signed(1).encode();
    let mut tampered = bytes.clone();
    let middle = tampered.len() / 2;
    tampered[middle] ^= 1;
    world.put("nodeInfo-tampered", &tampered);
    world.put("nodeInfo-cut-off", &bytes[..bytes.len() - 1]);
    world.put("nodeInfo-longer", &[&bytes[..], b"x"].concat());
    world.put("nodeInfo-empty", b"");
    world.put("nodeInfo-garbage", &[0xff; 1_000]);
    world.put("nodeInfo-lying-length", &[0, 0xff, 0xff, 0xff, 0xff]);
    let foreign = Node::new(&authority("Other Network"), "PartyD", 10032);
    world.put("nodeInfo-foreign", &foreign.signed(1).encode());
    let huge = std::fs::File::create(world.folder().join("nodeInfo-huge")).unwrap();
    huge.set_len(1 << 32).unwrap();
    std::fs::create_dir(world.folder().join("nodeInfo-directory")).unwrap();
    std::os::unix::fs::symlink("/nowhere", world.folder().join("nodeInfo-dangling")).unwrap();
    // A TLS key does not speak for a node.
    let tls = NodeKeys::generate(
        &world.authority,
        &name("PartyE"),
        SignatureScheme::Ed25519,
        NOW,
    );
    let impostor = Node {
        identities: vec![tls.unwrap().tls().clone()],
        ..world.node("PartyE", 10042)
    };
    world.put("nodeInfo-tls", &impostor.signed(1).encode());
    // An old program.
    let old = Node {
        platform_version: 0,
        ..world.node("PartyF", 10052)
    };
    world.put("nodeInfo-old", &old.signed(1).encode());

    let bad = std::fs::read_dir(world.folder()).unwrap().count() - 1;
    let (mut map, warnings) = Warnings::during(|| world.load().unwrap());
    assert_eq!(warnings, bad);
    assert_eq!(names(&map.snapshot()), ["PartyA", "PartyB"]);

    // Not again, though the files are still there and are judged again from time to time.
    world.hand.advance(Duration::from_secs(3_600));
    let (changed, warnings) = Warnings::during(|| map.look());
    assert_eq!((changed, warnings), (false, 0));

    // A bad file that takes the place of a good one: reported at the second look, for it may be in the middle of being
    // copied.
    world.put(&node_info_file(&good.name), &bytes[..100]);
    let (_, warnings) = Warnings::during(|| map.look());
    assert_eq!(warnings, 0);
    let (_, warnings) = Warnings::during(|| map.look());
    assert_eq!(warnings, 1);
    assert_eq!(names(&map.snapshot()), ["PartyA"]);
    world.put_node(&good, 2);
    assert!(map.look());
    assert_eq!(names(&map.snapshot()), ["PartyA", "PartyB"]);
}

#[test]
fn certificates_count_while_they_are_valid() {
    let world = World::new();
    let node = world.node("PartyB", 10012);
    world.put_node(&node, 1);
    let later = node.identities[0].path().expires().plus_seconds(1);
    world.put_parameters(&world.parameters(Vec::new()));
    world
        .hand
        .set_wall_micros(NOW.plus_days(-100).0 * 1_000_000);
    let error = world.load().map(drop).unwrap_err();
    assert!(told(&error).contains("is valid from"), "{}", told(&error));

    world.hand.set_wall_micros(SECONDS * 1_000_000);
    let mut map = world.load().unwrap();
    assert_eq!(names(&map.snapshot()), ["PartyA", "PartyB"]);
    world.hand.set_wall_micros(later.0 * 1_000_000);
    world.put_node(&node, 2);
    assert!(map.look());
    assert_eq!(names(&map.snapshot()), ["PartyA"]);
    // When the clock is right again, it is found without the file being touched.
    world.hand.set_wall_micros(SECONDS * 1_000_000);
    world.hand.advance(Duration::from_secs(120));
    assert!(map.look());
    assert_eq!(names(&map.snapshot()), ["PartyA", "PartyB"]);
}

#[test]
fn the_newest_info_counts_and_an_older_one_brings_no_key_back() {
    let world = World::new();
    let old = world.node("PartyB", 10012);
    let new = world.node("PartyB", 10022);
    world.put("nodeInfo-1", &old.signed(5).encode());
    let mut map = world.load().unwrap();
    let party = |map: &NetworkMap| map.snapshot().party(&old.name).cloned();
    assert_eq!(party(&map), Some(old.party()));

    // Same serial, other key; then an older one.
    for serial in [5, 4] {
        world.put("nodeInfo-2", &new.signed(serial).encode());
        let (_, warnings) = Warnings::during(|| map.look());
        assert_eq!(warnings, 1, "serial {serial}");
        assert_eq!(party(&map), Some(old.party()));
    }
    // Even if it is the only one left.
    std::fs::remove_file(world.folder().join("nodeInfo-1")).unwrap();
    assert!(map.look());
    assert_eq!(party(&map), None);

    world.put("nodeInfo-2", &new.signed(6).encode());
    let (changed, warnings) = Warnings::during(|| map.look());
    assert_eq!(
        (changed, warnings),
        (true, 1),
        "a change of key is worth a line"
    );
    assert_eq!(party(&map), Some(new.party()));

    // The same key: the newest, whatever the files are called.
    let mut moved = new;
    moved.addresses = vec![address(10099)];
    world.put("nodeInfo-0", &moved.signed(7).encode());
    assert!(map.look());
    assert_eq!(map.snapshot().addresses(&moved.name)[0].port, 10099);

    // Somebody with our own name.
    let twin = world.node("PartyA", 10032);
    world.put("nodeInfo-3", &twin.signed(u64::MAX).encode());
    let (_, warnings) = Warnings::during(|| map.look());
    assert_eq!(warnings, 1);
    assert_eq!(
        map.snapshot().own().identities[0].party(),
        world.keys.party()
    );
}

#[test]
fn only_holders_of_the_right_key_provide_a_service() {
    let world = World::new();
    let service = world.service("Notary Service");
    let other_key = world.service("Notary Service");
    let right = world.node("Worker1", 10012).with_service(&service);
    // Newer, but the network parameters know the notary.
    let wrong = world.node("Worker2", 10022).with_service(&other_key);
    let named_like_a_node = world
        .node("Worker3", 10032)
        .with_service(&world.service("Worker1"));
    let notary = NotaryInfo {
        identity: service.party(),
        validating: false,
    };
    world.put_parameters(&world.parameters(vec![notary]));
    world.put_node(&right, 1);
    world.put_node(&wrong, 2);
    world.put_node(&named_like_a_node, 3);
    let (map, warnings) = Warnings::during(|| world.load().unwrap());
    assert_eq!(warnings, 2);
    let network = map.snapshot();
    assert_eq!(network.party(service.name()), Some(&service.party()));
    assert_eq!(
        network.answering(service.name()),
        std::slice::from_ref(&right.name)
    );
    assert!(!network.serves(&wrong.name, service.name()));
    assert!(!network.serves(&named_like_a_node.name, &right.name));
    assert_eq!(network.party(&right.name), Some(&right.party()));
}

#[test]
fn network_parameters_are_verified_and_only_newer_ones_replace_them() {
    let world = World::new();
    let mut parameters = world.parameters(Vec::new());
    let good = SignedNetworkParameters::sign(&parameters, world.authority.network_map())
        .unwrap()
        .encode();
    let refused = |bytes: Option<&[u8]>, words: &str| {
        let path = world.path().join("network-parameters");
        match bytes {
            Some(bytes) => replace(&path, bytes),
            None => std::fs::remove_file(&path).unwrap(),
        }
        let error = told(&world.load().map(drop).unwrap_err());
        assert!(
            error.contains("network-parameters") && error.contains(words),
            "{error}"
        );
    };
    refused(None, "is missing");
    refused(Some(b"garbage"), "holds no signed network parameters");
    refused(
        Some(&good[..good.len() - 1]),
        "holds no signed network parameters",
    );
    let mut tampered = good.clone();
    tampered[30] ^= 1;
    refused(Some(&tampered), "signature");
    let foreign =
        SignedNetworkParameters::sign(&parameters, authority("Other Network").network_map());
    refused(Some(&foreign.unwrap().encode()), "root");
    // A member of the network is not its authority.
    let member = SignedNetworkParameters::sign(&parameters, world.keys.legal_identity());
    refused(Some(&member.unwrap().encode()), "role");
    refused(Some(&vec![0; 3 << 20]), "at most");
    parameters.minimum_platform_version = 1_000;
    let future = SignedNetworkParameters::sign(&parameters, world.authority.network_map());
    refused(Some(&future.unwrap().encode()), "upgrade this node");

    // While running.
    parameters.minimum_platform_version = 1;
    parameters.epoch = 2;
    world.put_parameters(&parameters);
    let mut map = world.load().unwrap();
    let hash = map.snapshot().parameters_hash();
    for epoch in [1, 2] {
        let other = NetworkParameters {
            epoch,
            event_horizon_days: 99,
            ..parameters.clone()
        };
        world.put_parameters(&other);
        let (changed, warnings) = Warnings::during(|| map.look());
        assert_eq!((changed, warnings), (false, 1));
    }
    world.put_parameter_bytes(&tampered);
    let (_, warnings) = Warnings::during(|| (0..5).any(|_| map.look()));
    assert_eq!(warnings, 1);
    std::fs::remove_file(world.path().join("network-parameters")).unwrap();
    let (_, warnings) = Warnings::during(|| (0..5).any(|_| map.look()));
    assert_eq!(warnings, 1);
    assert_eq!(map.snapshot().parameters_hash(), hash);

    parameters.epoch = 3;
    world.put_parameters(&parameters);
    assert!(map.look());
    assert_eq!(map.snapshot().parameters(), &parameters);
    assert_eq!(map.snapshot().parameters_hash(), parameters.hash());
}

#[tokio::test]
async fn files_are_picked_up_while_the_node_runs() {
    let mut world = World::new();
    world.clock = Clock::system();
    // The system's clock is not this test's; certificates are made to fit.
    let now = UnixTime(world.clock.now_seconds());
    world.authority =
        CertificateAuthority::generate(&name("Some Network"), SignatureScheme::Ed25519, now)
            .unwrap();
    world.keys = NodeKeys::generate(
        &world.authority,
        &name("PartyA"),
        SignatureScheme::Ed25519,
        now,
    )
    .unwrap();
    world.put_parameters(&world.parameters(Vec::new()));
    let keys = NodeKeys::generate(
        &world.authority,
        &name("PartyB"),
        SignatureScheme::Ed25519,
        now,
    );
    let node = Node {
        name: name("PartyB"),
        identities: vec![keys.unwrap().legal_identity().clone()],
        addresses: vec![address(10012)],
        platform_version: 1,
    };

    let map = world
        .load()
        .unwrap()
        .polling_every(Duration::from_millis(10));
    let mut network = map.subscribe();
    let tasks = Tasks::new("test");
    map.watch(&tasks);
    let patience = Duration::from_secs(20);
    let knows = |known: bool| {
        let name = node.name.clone();
        move |network: &Arc<NetworkSnapshot>| network.party(&name).is_some() == known
    };

    // In two pieces, as a slow copy writes it.
    let bytes = node.signed(1).encode();
    let path = world.folder().join(node_info_file(&node.name));
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    tokio::time::sleep(Duration::from_millis(30)).await;
    std::fs::write(&path, &bytes).unwrap();
    tokio::time::timeout(patience, network.wait_for(knows(true)))
        .await
        .unwrap()
        .unwrap();

    world.put_node(
        &Node {
            addresses: vec![address(10099)],
            ..node
        },
        2,
    );
    let moved = |network: &Arc<NetworkSnapshot>| {
        network
            .addresses(&name("PartyB"))
            .iter()
            .any(|address| address.port == 10099)
    };
    tokio::time::timeout(patience, network.wait_for(moved))
        .await
        .unwrap()
        .unwrap();

    std::fs::remove_file(&path).unwrap();
    let gone = |network: &Arc<NetworkSnapshot>| network.party(&name("PartyB")).is_none();
    tokio::time::timeout(patience, network.wait_for(gone))
        .await
        .unwrap()
        .unwrap();
    let report = tasks.stop(patience).await;
    assert!(report.is_clean(), "{report}");
    // What was last known stays readable.
    assert_eq!(names(&network.borrow()), ["PartyA"]);
}
