//! The keys with which a node starts: what is accepted, what is made, and what a refusal says.

// clippy.toml allows this in test functions; here the helpers are tests too.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use quorate_identity::{CertificateAuthority, NodeKeys, SignatureScheme, UnixTime, X500Name};
use quorate_node::node_keys::{KeysOptions, NodeKeysError, expiring, load_or_create};
use quorate_runtime::Secret;

const NOW: UnixTime = UnixTime(1_800_000_000);

fn name(organisation: &str) -> X500Name {
    X500Name::new(organisation, "London", "GB").unwrap()
}

fn development<'a>(directory: &'a Path, legal_name: &'a X500Name) -> KeysOptions<'a> {
    KeysOptions {
        directory,
        legal_name,
        notary_service: None,
        key_store_password: None,
        trust_store_password: None,
        crypto_services: None,
        dev_mode: true,
    }
}

/// An error and all its causes.
fn told(error: NodeKeysError) -> String {
    quorate_runtime::tasks::chain(&error)
}

/// Real keys in `directory`, with the passwords `one` and `two`.
fn real_keys(directory: &Path, name: &X500Name) -> (CertificateAuthority, NodeKeys) {
    let network = X500Name::new("Some Network", "London", "GB").unwrap();
    let authority =
        CertificateAuthority::generate(&network, SignatureScheme::Ed25519, NOW).unwrap();
    let keys = NodeKeys::generate(&authority, name, SignatureScheme::Ed25519, NOW).unwrap();
    keys.save(directory, "one", "two").unwrap();
    (authority, keys)
}

struct Passwords(Secret, Secret);

impl Passwords {
    fn new(key_store: &str, trust_store: &str) -> Self {
        Self(Secret::new(key_store), Secret::new(trust_store))
    }

    fn real<'a>(&'a self, directory: &'a Path, legal_name: &'a X500Name) -> KeysOptions<'a> {
        KeysOptions {
            key_store_password: Some(&self.0),
            trust_store_password: Some(&self.1),
            dev_mode: false,
            ..development(directory, legal_name)
        }
    }
}

#[test]
fn development_keys_are_made_once() {
    let directory = tempfile::tempdir().unwrap();
    let certificates = directory.path().join("certificates");
    let party = name("PartyA");
    let made = load_or_create(&development(&certificates, &party), NOW).unwrap();
    assert_eq!(*made.name(), party);
    assert!(CertificateAuthority::is_development_root(made.trust_root()));
    let again = load_or_create(&development(&certificates, &party), NOW).unwrap();
    assert_eq!(again.party(), made.party());
    assert!(made.notary_service().is_none());

    // A notary service is added, the identity stays.
    let service = name("Notary Service");
    let options = KeysOptions {
        notary_service: Some(&service),
        ..development(&certificates, &party)
    };
    let notary = load_or_create(&options, NOW).unwrap();
    assert_eq!(notary.party(), made.party());
    let key = notary.notary_service().unwrap().party();
    assert_eq!(key.name, service);
    let again = load_or_create(&options, NOW).unwrap();
    assert_eq!(again.notary_service().unwrap().party(), key);

    // It is never replaced by another one.
    let other = name("Another Service");
    let options = KeysOptions {
        notary_service: Some(&other),
        ..options
    };
    let error = told(load_or_create(&options, NOW).unwrap_err());
    assert!(
        error.contains("O: configured \"Another Service\", in the certificate \"Notary Service\""),
        "{error}"
    );
    assert!(error.contains("must not be lost"), "{error}");
}

#[test]
fn processes_that_start_together_get_the_same_keys() {
    let directory = tempfile::tempdir().unwrap();
    let party = name("PartyA");
    let parties: Vec<_> = std::thread::scope(|scope| {
        let start = || {
            load_or_create(&development(directory.path(), &party), NOW)
                .unwrap()
                .party()
        };
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(start)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert!(
        parties.iter().all(|party| *party == parties[0]),
        "{parties:?}"
    );
}

#[test]
fn an_interrupted_creation_is_finished_and_real_remains_are_not_touched() {
    let directory = tempfile::tempdir().unwrap();
    let party = name("PartyA");
    load_or_create(&development(directory.path(), &party), NOW).unwrap();
    std::fs::remove_file(directory.path().join("nodekeystore.json")).unwrap();
    load_or_create(&development(directory.path(), &party), NOW).unwrap();

    std::fs::remove_file(directory.path().join("sslkeystore.json")).unwrap();
    let error = told(load_or_create(&development(directory.path(), &party), NOW).unwrap_err());
    assert!(error.contains("sslkeystore.json is missing"), "{error}");

    let real = tempfile::tempdir().unwrap();
    real_keys(real.path(), &party);
    std::fs::remove_file(real.path().join("nodekeystore.json")).unwrap();
    let passwords = Passwords::new("one", "two");
    let options = KeysOptions {
        dev_mode: true,
        ..passwords.real(real.path(), &party)
    };
    let before = std::fs::read(real.path().join("truststore.json")).unwrap();
    let error = told(load_or_create(&options, NOW).unwrap_err());
    assert!(error.contains("nodekeystore.json is missing"), "{error}");
    assert_eq!(
        std::fs::read(real.path().join("truststore.json")).unwrap(),
        before
    );
}

#[test]
fn real_keys_are_wanted_outside_of_development() {
    let directory = tempfile::tempdir().unwrap();
    let party = name("PartyA");
    let passwords = Passwords::new("one", "two");
    let options = passwords.real(directory.path(), &party);
    let error = told(load_or_create(&options, NOW).unwrap_err());
    for word in [
        "nodekeystore.json",
        "quorate network bootstrap",
        "devMode = true",
    ] {
        assert!(error.contains(word), "{error}");
    }
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);

    let (_, keys) = real_keys(directory.path(), &party);
    assert_eq!(load_or_create(&options, NOW).unwrap().party(), keys.party());

    let service = name("Notary Service");
    let notary = KeysOptions {
        notary_service: Some(&service),
        ..options
    };
    let error = told(load_or_create(&notary, NOW).unwrap_err());
    assert!(error.contains("holds no key of that service"), "{error}");

    let without = KeysOptions {
        key_store_password: None,
        ..options
    };
    let error = told(load_or_create(&without, NOW).unwrap_err());
    assert!(
        error.contains("keyStorePassword is not configured"),
        "{error}"
    );
}

#[test]
fn development_keys_do_not_run_for_real() {
    let directory = tempfile::tempdir().unwrap();
    let party = name("PartyA");
    load_or_create(&development(directory.path(), &party), NOW).unwrap();
    let passwords = Passwords::new("cordacadevpass", "trustpass");
    let error = told(load_or_create(&passwords.real(directory.path(), &party), NOW).unwrap_err());
    assert!(error.contains("INSECURE development root"), "{error}");
}

#[test]
fn keys_that_do_not_fit_are_refused_with_the_difference() {
    let directory = tempfile::tempdir().unwrap();
    let party = name("PartyA");
    let (_, keys) = real_keys(directory.path(), &party);
    let passwords = Passwords::new("one", "two");

    let typo = X500Name::new("PartyA", "Londn", "GB").unwrap();
    let error = told(load_or_create(&passwords.real(directory.path(), &typo), NOW).unwrap_err());
    assert!(
        error.contains("L: configured \"Londn\", in the certificate \"London\""),
        "{error}"
    );
    assert!(error.contains("correct myLegalName"), "{error}");

    for (wrong, file) in [
        (Passwords::new("three", "two"), "sslkeystore.json"),
        (Passwords::new("one", "three"), "truststore.json"),
    ] {
        let error = told(load_or_create(&wrong.real(directory.path(), &party), NOW).unwrap_err());
        assert!(
            error.contains("the password does not open") && error.contains(file),
            "{error}"
        );
        assert!(!error.contains("three"), "{error}");
    }

    let expiry = keys.expires();
    let late = load_or_create(
        &passwords.real(directory.path(), &party),
        expiry.plus_seconds(1),
    );
    let error = told(late.unwrap_err());
    assert!(
        error.contains("expired at") && error.contains("new certificates"),
        "{error}"
    );
    let early = load_or_create(
        &passwords.real(directory.path(), &party),
        NOW.plus_days(-30),
    );
    let error = told(early.unwrap_err());
    assert!(error.contains("check this machine's clock"), "{error}");

    assert_eq!(expiring(&keys, NOW), []);
    let soon = expiring(&keys, expiry.plus_days(-10));
    assert_eq!(soon.len(), 2, "{soon:?}");
    assert_eq!(soon[0].days_left, 10);

    // A trust store of another network beside our keys.
    let other = tempfile::tempdir().unwrap();
    real_keys(other.path(), &party);
    std::fs::copy(
        other.path().join("truststore.json"),
        directory.path().join("truststore.json"),
    )
    .unwrap();
    let error = load_or_create(&passwords.real(directory.path(), &party), NOW).unwrap_err();
    assert!(told(error).contains("must come from the same network"));
}
