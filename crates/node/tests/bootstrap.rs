//! Networks made of configurations: what is made, what is kept when it is done again, and what is refused.

// clippy.toml allows this in test functions; here the helpers are tests too.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use quorate_identity::{CertificateAuthority, NodeKeys, UnixTime, X500Name};
use quorate_ledger::network::SignedNetworkParameters;
use quorate_node::bootstrap::{
    BootstrapError, BootstrapOptions, BootstrapReport, ConfigurationChange, KeysChange,
    ParametersChange, bootstrap,
};
use quorate_node::config::{LoadOptions, NodeConfiguration};
use quorate_node::network_map::{NetworkMap, OwnInfo};
use quorate_node::node_keys::{KeysOptions, load_or_create};
use quorate_runtime::{Clock, Entropy, ManualClock};

const SECONDS: i64 = 1_800_000_000;

fn name(organisation: &str) -> X500Name {
    X500Name::new(organisation, "London", "GB").unwrap()
}

/// A folder in which networks are made.
struct Workshop {
    folder: tempfile::TempDir,
    clock: Clock,
    hand: ManualClock,
    options: BootstrapOptions,
}

impl Workshop {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (clock, hand) = Clock::manual(SECONDS * 1_000_000);
        Self {
            options: BootstrapOptions {
                directory: folder.path().to_owned(),
                ..BootstrapOptions::default()
            },
            folder,
            clock,
            hand,
        }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    fn put(&self, file: &str, text: &str) {
        let path = self.path(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn three(&self) {
        self.put(
            "partya_node.conf",
            &configuration("PartyA", 10000, DEVELOPMENT),
        );
        self.put(
            "partyb_node.conf",
            &configuration("PartyB", 10010, DEVELOPMENT),
        );
        let notary = format!("{DEVELOPMENT}notary {{ validating = false }}\n");
        self.put("notary_node.conf", &configuration("Notary", 10020, &notary));
    }

    /// Some time later.
    fn run(&self) -> Result<BootstrapReport, BootstrapError> {
        self.hand.advance(Duration::from_secs(60));
        bootstrap(&self.options, &self.clock, &Entropy::system())
    }

    fn refused(&self) -> String {
        let before = self.files();
        let error = self.run().map(|_| ()).unwrap_err();
        let mut after = self.files();
        after.retain(|path, _| !path.starts_with(self.path(".bootstrapper")));
        assert_eq!(
            after.keys().collect::<Vec<_>>(),
            before
                .keys()
                .filter(|path| !path.starts_with(self.path(".bootstrapper")))
                .collect::<Vec<_>>()
        );
        quorate_runtime::tasks::chain(&error)
    }

    fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files = BTreeMap::new();
        let mut folders = vec![self.folder.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => folders.push(path),
                    false => drop(files.insert(path.clone(), std::fs::read(path).unwrap())),
                }
            }
        }
        files
    }

    /// Starts the node as far as keys and network map.
    fn start(&self, directory: &str) -> NetworkMap {
        let directory = self.path(directory);
        let configuration =
            NodeConfiguration::load(&directory, None, &LoadOptions::default()).unwrap();
        let now = UnixTime(self.clock.now_seconds());
        let keys = load_or_create(&KeysOptions::of(&configuration), now).unwrap();
        let own = OwnInfo::of(&configuration, &keys);
        let map = NetworkMap::load(&directory, &own, self.clock.clone()).unwrap();
        assert!(
            !map.own().written,
            "the bootstrapper has introduced the node already"
        );
        map
    }

    fn parties(&self, directory: &str) -> Vec<String> {
        let network = self.start(directory).snapshot();
        let names = network
            .parties()
            .map(|party| party.name.organisation().to_owned());
        names.collect()
    }
}

const DEVELOPMENT: &str = "devMode = true\n";
const REAL: &str = "keyStorePassword = \"a secret\", trustStorePassword = \"another one\"\n";

fn configuration(organisation: &str, port: u16, more: &str) -> String {
    format!(
        "myLegalName = \"O={organisation}, L=London, C=GB\"\n\
         p2pAddress = \"localhost:{port}\"\n\
         rpcSettings {{ address = \"localhost:{}\" }}\n\
         {more}",
        port + 1
    )
}

fn assert_keys(report: &BootstrapReport, expected: &[KeysChange]) {
    let keys: Vec<_> = report.nodes.iter().map(|node| node.keys).collect();
    assert_eq!(keys, expected, "{report}");
}

/// The database that the workers of a notary share.
const SHARED: &str =
    "jpa.dataSourceProperties.dataSource.url = \"jdbc:postgresql://127.0.0.1/notary\"";

#[test]
fn three_configurations_become_a_network() {
    let workshop = Workshop::new();
    workshop.three();
    let report = workshop.run().unwrap();
    assert!(report.development);
    assert_keys(&report, &[KeysChange::Made; 3]);
    assert_eq!(report.parameters_change, ParametersChange::Made);
    assert_eq!(report.parameters.epoch, 1);
    assert!(report.to_string().contains("INSECURE"), "{report}");
    assert!(!workshop.path("partya_node.conf").exists());
    for node in ["PartyA", "PartyB", "Notary"] {
        assert!(workshop.path(node).join("node.conf").is_file());
        let map = workshop.start(node);
        let network = map.snapshot();
        assert_eq!(workshop.parties(node), ["Notary", "PartyA", "PartyB"]);
        assert_eq!(network.parameters_hash(), report.parameters_hash);
        assert_eq!(network.notaries().len(), 1);
        assert_eq!(
            network.notaries()[0].identity,
            *network.party(&name("Notary")).unwrap()
        );
        assert_eq!(network.own_notary().is_some(), node == "Notary");
    }

    // Again: nothing changes, to the byte.
    let before = workshop.files();
    let report = workshop.run().unwrap();
    assert_keys(&report, &[KeysChange::Kept; 3]);
    assert_eq!(report.parameters_change, ParametersChange::Unchanged);
    assert_eq!(workshop.files(), before);
}

#[test]
fn a_node_is_added_and_the_others_keep_their_identities() {
    let workshop = Workshop::new();
    workshop.three();
    let first = workshop.run().unwrap();
    let identity = |report: &BootstrapReport, organisation| {
        let node = report
            .nodes
            .iter()
            .find(|node| node.name == name(organisation));
        let directory = node.unwrap().directory.join("certificates");
        NodeKeys::load(&directory, "cordacadevpass", "trustpass")
            .unwrap()
            .party()
    };
    workshop.put(
        "partyc_node.conf",
        &configuration("PartyC", 10030, DEVELOPMENT),
    );
    let second = workshop.run().unwrap();
    assert_keys(
        &second,
        &[
            KeysChange::Kept,
            KeysChange::Kept,
            KeysChange::Kept,
            KeysChange::Made,
        ],
    );
    assert_eq!(identity(&second, "PartyA"), identity(&first, "PartyA"));
    assert_eq!(second.parameters_change, ParametersChange::Unchanged);
    assert_eq!(
        workshop.parties("PartyA"),
        ["Notary", "PartyA", "PartyB", "PartyC"]
    );
    assert_eq!(
        workshop.parties("PartyC"),
        ["Notary", "PartyA", "PartyB", "PartyC"]
    );

    // A further notary, and a new address for a party.
    let notary = format!("{DEVELOPMENT}notary {{ validating = true }}\n");
    workshop.put(
        "notary2_node.conf",
        &configuration("Notary2", 10040, &notary),
    );
    workshop.put(
        "partya_node.conf",
        &configuration("PartyA", 10050, DEVELOPMENT),
    );
    let third = workshop.run().unwrap();
    assert_eq!(
        third.parameters_change,
        ParametersChange::Updated { from_epoch: 1 }
    );
    assert_eq!(third.parameters.epoch, 2);
    assert!(third.parameters.modified_time > first.parameters.modified_time);
    assert_eq!(third.parameters.notaries.len(), 2);
    let party_a = third
        .nodes
        .iter()
        .find(|node| node.name == name("PartyA"))
        .unwrap();
    assert_eq!(party_a.configuration, ConfigurationChange::Replaced);
    assert!(party_a.node_info_changed);
    assert_eq!(identity(&third, "PartyA"), identity(&first, "PartyA"));
    let network = workshop.start("PartyB").snapshot();
    assert_eq!(network.addresses(&name("PartyA"))[0].port, 10050);
    assert_eq!(network.parameters().epoch, 2);

    // Options stay in force until others are given.
    let mut workshop = workshop;
    workshop.options.max_transaction_size = Some(100_000);
    assert_eq!(workshop.run().unwrap().parameters.epoch, 3);
    workshop.options.max_transaction_size = None;
    let report = workshop.run().unwrap();
    assert_eq!(
        (
            report.parameters.epoch,
            report.parameters.max_transaction_size
        ),
        (3, 100_000)
    );

    // A notary that is one no longer is told.
    std::fs::remove_dir_all(workshop.path("Notary2")).unwrap();
    let report = workshop.run().unwrap();
    assert_eq!(report.parameters.epoch, 4);
    assert!(
        report
            .warnings
            .iter()
            .any(|warning| warning.contains("O=Notary2")),
        "{report}"
    );
}

#[test]
fn a_network_for_real_has_an_authority_of_its_own() {
    let workshop = Workshop::new();
    let service = "O=Notary Service, L=London, C=GB";
    let notary = format!(
        "{REAL}notary {{ validating = false, serviceLegalName = \"{service}\", {SHARED} }}\n"
    );
    workshop.put("a_node.conf", &configuration("PartyA", 10000, REAL));
    workshop.put("n1_node.conf", &configuration("Worker1", 10010, &notary));
    let first = workshop.run().unwrap();
    assert!(!first.development);
    assert!(!CertificateAuthority::is_development_root(&first.root));
    assert!(
        first
            .warnings
            .iter()
            .any(|warning| warning.contains("authority.json")),
        "{first}"
    );
    #[cfg(unix)]
    for file in ["authority.json", "authority.password"] {
        use std::os::unix::fs::PermissionsExt;
        let metadata = std::fs::metadata(workshop.path(".bootstrapper").join(file)).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    }

    // Another member of the notary's cluster gets the same key of the service; the parameters stay.
    workshop.put("n2_node.conf", &configuration("Worker2", 10020, &notary));
    let second = workshop.run().unwrap();
    assert_eq!(second.root, first.root);
    assert_eq!(second.parameters_change, ParametersChange::Unchanged);
    let network = workshop.start("PartyA").snapshot();
    let service: X500Name = service.parse().unwrap();
    assert_eq!(
        network.answering(&service),
        [name("Worker1"), name("Worker2")]
    );
    assert_eq!(
        network.party(&service),
        Some(&second.parameters.notaries[0].identity)
    );
    assert!(workshop.start("Worker2").snapshot().own_notary().is_some());

    // A node becomes a member: its identity is kept.
    workshop.put("a_node.conf", &configuration("PartyA", 10000, &notary));
    let third = workshop.run().unwrap();
    assert_keys(
        &third,
        &[KeysChange::ServiceAdded, KeysChange::Kept, KeysChange::Kept],
    );
    assert_eq!(
        workshop
            .start("Worker1")
            .snapshot()
            .answering(&service)
            .len(),
        3
    );

    // Without its authority the network cannot grow.
    std::fs::rename(workshop.path(".bootstrapper"), workshop.path(".away")).unwrap();
    workshop.put("b_node.conf", &configuration("PartyB", 10030, REAL));
    let error = workshop.refused();
    assert!(error.contains("put the authority's folder back"), "{error}");
}

#[test]
fn interrupted_work_is_finished() {
    let workshop = Workshop::new();
    workshop.three();
    workshop.run().unwrap();
    // As if PartyA's keys had been written in part, and nothing of PartyB but its configuration.
    std::fs::remove_file(workshop.path("PartyA/certificates/nodekeystore.json")).unwrap();
    std::fs::remove_file(workshop.path("PartyA/network-parameters")).unwrap();
    for folder in ["PartyB/certificates", "PartyB/additional-node-infos"] {
        std::fs::remove_dir_all(workshop.path(folder)).unwrap();
    }
    let report = workshop.run().unwrap();
    assert_keys(
        &report,
        &[KeysChange::Kept, KeysChange::Made, KeysChange::Made],
    );
    assert_eq!(report.parameters_change, ParametersChange::Unchanged);
    for node in ["PartyA", "PartyB", "Notary"] {
        assert_eq!(workshop.parties(node), ["Notary", "PartyA", "PartyB"]);
    }
}

#[test]
fn damaged_parameters_are_replaced_and_divided_nodes_united() {
    let workshop = Workshop::new();
    workshop.three();
    let first = workshop.run().unwrap();
    let file = workshop.path("PartyA/network-parameters");
    std::fs::write(&file, b"damaged").unwrap();
    let report = workshop.run().unwrap();
    assert!(
        report
            .warnings
            .iter()
            .any(|warning| warning.contains("PartyA")),
        "{report}"
    );
    assert_eq!(report.parameters_hash, first.parameters_hash);
    assert_eq!(report.parameters_change, ParametersChange::Unchanged);

    let mut other = first.parameters.clone();
    other.event_horizon_days += 1;
    let authority = CertificateAuthority::development();
    let signed = SignedNetworkParameters::sign(&other, authority.network_map()).unwrap();
    std::fs::write(&file, signed.encode()).unwrap();
    let report = workshop.run().unwrap();
    assert_eq!(report.parameters.epoch, 2);
    for node in ["PartyA", "PartyB", "Notary"] {
        assert_eq!(
            workshop.start(node).snapshot().parameters_hash(),
            report.parameters_hash
        );
    }
}

#[test]
fn what_cannot_be_a_network_is_refused_before_anything_is_written() {
    let refused = |files: &[(&str, String)], words: &[&str]| {
        let workshop = Workshop::new();
        for (file, text) in files {
            workshop.put(file, text);
        }
        let error = workshop.refused();
        for word in words {
            assert!(error.contains(word), "{word}: {error}");
        }
    };
    let party = |port, more: &str| configuration("PartyA", port, &format!("{DEVELOPMENT}{more}"));
    let other = |port, more: &str| configuration("PartyB", port, &format!("{DEVELOPMENT}{more}"));

    refused(
        &[("readme.txt", String::new())],
        &["one *_node.conf file for each node"],
    );
    refused(
        &[
            ("x_node.conf", party(10000, "")),
            ("y_node.conf", party(10010, "")),
        ],
        &["x_node.conf", "y_node.conf", "same myLegalName"],
    );
    refused(
        &[
            ("x_node.conf", party(10000, "")),
            ("y_node.conf", "devMode = true\np2pAddress = [".into()),
        ],
        &["y_node.conf", ":2:"],
    );
    refused(
        &[("x_node.conf", party(10000, "myLegalNme = x\n"))],
        &["x_node.conf", ":5:14", "myLegalNme"],
    );
    let elsewhere = party(10010, "").replace("L=London", "L=Leeds");
    refused(
        &[
            ("x_node.conf", party(10000, "")),
            ("y_node.conf", elsewhere),
        ],
        &["L=London", "L=Leeds", "named after the organisation"],
    );
    refused(
        &[
            ("x_node.conf", party(10000, "")),
            ("y_node.conf", other(10001, "")),
        ],
        &[
            "PartyA",
            "PartyB",
            "p2pAddress",
            "rpcSettings.address",
            "localhost:10001",
        ],
    );
    refused(
        &[
            (
                "x_node.conf",
                party(10000, "webAddress = \"0.0.0.0:20000\"\n"),
            ),
            (
                "y_node.conf",
                other(10010, "webAddress = \"127.0.0.1:20000\"\n"),
            ),
        ],
        &["webAddress", "20000"],
    );
    let member = |validating| {
        format!(
            "notary {{ validating = {validating}, serviceLegalName = \"O=Service, L=London, C=GB\", {SHARED} }}\n"
        )
    };
    refused(
        &[
            ("x_node.conf", party(10000, &member(true))),
            ("y_node.conf", other(10010, &member(false))),
        ],
        &["only one of them is validating"],
    );
    let apart = "notary { validating = false, serviceLegalName = \"O=Service, L=London, C=GB\" }\n";
    refused(
        &[
            ("x_node.conf", party(10000, apart)),
            ("y_node.conf", other(10010, apart)),
        ],
        &["do not share a database", "notary.jpa.dataSourceProperties"],
    );
    let usurper =
        "notary { validating = false, serviceLegalName = \"O=PartyA, L=London, C=GB\" }\n";
    refused(
        &[
            ("x_node.conf", party(10000, "")),
            ("y_node.conf", other(10010, usurper)),
        ],
        &["named like the node"],
    );
}

#[test]
fn impossible_options_and_foreign_keys_are_refused() {
    let mut workshop = Workshop::new();
    workshop.three();
    workshop.options.max_message_size = Some(1 << 40);
    assert!(workshop.refused().contains("maxMessageSize"));
    workshop.options.max_message_size = None;
    workshop.options.minimum_platform_version = Some(1_000);
    assert!(workshop.refused().contains("platform version 1000"));
    workshop.options.minimum_platform_version = None;
    workshop.run().unwrap();

    // A real node does not join a development network.
    workshop.put("real_node.conf", &configuration("PartyR", 10090, REAL));
    let error = workshop.refused();
    assert!(
        error.contains("PartyR") && error.contains("devMode = false"),
        "{error}"
    );
    std::fs::remove_file(workshop.path("real_node.conf")).unwrap();

    // Keys of another network.
    let other = Workshop::new();
    other.put("c_node.conf", &configuration("PartyC", 10030, REAL));
    other.run().unwrap();
    let copy = |file: &str| {
        let target = workshop.path(file);
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        std::fs::copy(other.path(file), target).unwrap();
    };
    copy("PartyC/node.conf");
    for file in ["nodekeystore.json", "sslkeystore.json", "truststore.json"] {
        copy(&format!("PartyC/certificates/{file}"));
    }
    let error = workshop.refused();
    assert!(error.contains("different networks"), "{error}");
    std::fs::remove_dir_all(workshop.path("PartyC")).unwrap();

    // Keys under another password, and of another name.
    let conf = configuration(
        "PartyA",
        10000,
        "devMode = true, keyStorePassword = \"wrong\"\n",
    );
    workshop.put("PartyA/node.conf", &conf);
    let error = workshop.refused();
    assert!(
        error.contains("PartyA") && error.contains("password does not open"),
        "{error}"
    );
    workshop.put(
        "PartyA/node.conf",
        &configuration("PartyZ", 10000, DEVELOPMENT),
    );
    let error = workshop.refused();
    assert!(error.contains("configured \"PartyZ\""), "{error}");
    assert!(Path::new(&workshop.path("PartyA/certificates")).is_dir());
}
