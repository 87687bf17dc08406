//! The files of a certificates folder.

use std::fs;
use std::time::{Duration, Instant};

use quorate_identity::node_keys::{NODE_KEY_STORE, SSL_KEY_STORE, TRUST_STORE};
use quorate_identity::{
    CertificateAuthority, Identity, KeyStore, KeyStoreError, NodeKeys, SignatureScheme, UnixTime,
};
use zeroize::Zeroizing;

const NOW: UnixTime = UnixTime(1_800_000_000);

fn node_keys() -> NodeKeys {
    let authority = CertificateAuthority::development();
    let notary = "O=Notary Service,L=Zurich,C=CH".parse().expect("a name");
    let service = authority
        .service_identity(&notary, SignatureScheme::Ed25519, NOW)
        .expect("a service");
    let name = "O=PartyA,L=London,C=GB".parse().expect("a name");
    NodeKeys::generate(&authority, &name, SignatureScheme::Ed25519, NOW)
        .expect("keys")
        .with_notary_service(service)
}

#[test]
fn a_node_finds_its_keys_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let directory = folder.path().join("deep/certificates");
    assert!(!NodeKeys::exist_in(&directory));
    let keys = node_keys();
    keys.save(&directory, "key secret", "trust secret")
        .expect("saved");
    assert!(NodeKeys::exist_in(&directory));

    let loaded = NodeKeys::load(&directory, "key secret", "trust secret").expect("loaded");
    assert_eq!(loaded.validate(NOW), Ok(()));
    assert_eq!(loaded.party(), keys.party());
    assert_eq!(loaded.trust_root(), keys.trust_root());
    assert_eq!(loaded.served_names(), keys.served_names());
    for (one, other) in [
        (loaded.node_ca(), keys.node_ca()),
        (loaded.legal_identity(), keys.legal_identity()),
        (loaded.tls(), keys.tls()),
        (
            loaded.notary_service().expect("a service"),
            keys.notary_service().expect("a service"),
        ),
    ] {
        assert_eq!(one.path(), other.path());
        let pkcs8 = |identity: &Identity| identity.key().pair().expect("a pair").to_pkcs8();
        assert_eq!(*pkcs8(one), *pkcs8(other));
    }

    // Nothing is left lying about, and nothing is readable for others.
    let mut files: Vec<_> = fs::read_dir(&directory)
        .expect("a listing")
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .into_string()
                .expect("UTF-8")
        })
        .collect();
    files.sort();
    assert_eq!(files, [NODE_KEY_STORE, SSL_KEY_STORE, TRUST_STORE]);
    #[cfg(unix)]
    for file in files {
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(directory.join(&file))
            .expect("a file")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    // Saving again replaces.
    keys.save(&directory, "other", "another").expect("saved");
    assert!(NodeKeys::load(&directory, "other", "another").is_ok());
}

#[test]
fn a_wrong_password_is_told_from_a_damaged_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let directory = folder.path();
    node_keys()
        .save(directory, "key secret", "trust secret")
        .expect("saved");
    let load = || NodeKeys::load(directory, "key secret", "trust secret");

    for (keys, trust, file) in [
        ("key secre", "trust secret", SSL_KEY_STORE),
        ("", "trust secret", SSL_KEY_STORE),
        ("key secret", "key secret", TRUST_STORE),
    ] {
        let error = NodeKeys::load(directory, keys, trust).expect_err("a wrong password");
        assert!(
            matches!(&error, KeyStoreError::WrongPassword { path } if path.ends_with(file)),
            "{error}"
        );
        assert!(error.to_string().contains("keyStorePassword"));
    }

    let path = directory.join(TRUST_STORE);
    let whole = fs::read_to_string(&path).expect("the file");
    let with = |content: &str| {
        fs::write(&path, content).expect("written");
        load().expect_err("a refusal")
    };
    for cut in [0, 1, whole.len() / 2, whole.len() - 3] {
        let error = with(&whole[..cut]);
        assert!(
            matches!(error, KeyStoreError::Truncated { .. }),
            "{cut}: {error}"
        );
    }
    // Another certificate in the place of the trusted one, with everything else as it was.
    let foreign = CertificateAuthority::generate(
        &"O=Mallory,L=London,C=GB".parse().expect("a name"),
        SignatureScheme::Ed25519,
        NOW,
    )
    .expect("an authority");
    let mut planted: serde_json::Value = serde_json::from_str(&whole).expect("JSON");
    planted["entries"][0]["certificates"] =
        serde_json::to_value(foreign.network_map().path()).expect("JSON");
    let error = with(&planted.to_string());
    assert!(matches!(error, KeyStoreError::Damaged { .. }), "{error}");
    // Derivation settings that would occupy the machine.
    let mut heavy: serde_json::Value = serde_json::from_str(&whole).expect("JSON");
    heavy["kdf"]["memoryKib"] = serde_json::json!(u32::MAX);
    let error = with(&heavy.to_string());
    assert!(matches!(error, KeyStoreError::Damaged { .. }), "{error}");

    let error = with(&whole.replace("\"version\": 1,", "\"version\": 7,"));
    assert!(
        matches!(error, KeyStoreError::UnsupportedVersion { version: 7, .. }),
        "{error}"
    );
    for foreign in [
        "[]",
        "{\"a\":1}",
        "\u{feed}\u{feed}",
        "<xml/>",
        "{\"format\":\"x\",\"version\":1}",
    ] {
        let error = with(foreign);
        assert!(
            matches!(error, KeyStoreError::Foreign { .. }),
            "{foreign}: {error}"
        );
    }
    fs::write(&path, [0xfe, 0xed, 0xfe, 0xed, 0, 0, 0, 2]).expect("written");
    assert!(matches!(load(), Err(KeyStoreError::Foreign { .. })));
    fs::write(&path, vec![b' '; 2 << 20]).expect("written");
    assert!(matches!(load(), Err(KeyStoreError::Foreign { .. })));
    fs::remove_file(&path).expect("removed");
    assert!(matches!(load(), Err(KeyStoreError::Missing { .. })));
    fs::write(&path, whole).expect("written");
    assert!(load().is_ok());
}

#[test]
fn a_private_key_cannot_be_moved_to_another_entry() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("store.json");
    let mut store = KeyStore::new();
    store.insert_key("a", Zeroizing::new(b"secret one".to_vec()), Vec::new());
    store.insert_key("b", Zeroizing::new(b"secret two".to_vec()), Vec::new());
    store.write(&path, "password").expect("written");
    assert_eq!(KeyStore::read(&path, "password").expect("read"), store);
    let text = fs::read_to_string(&path).expect("the file");
    assert!(!text.contains("secret"));
    let mut swapped: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let entries = swapped["entries"].as_array_mut().expect("entries");
    let (one, two) = (
        entries[0]["privateKey"].clone(),
        entries[1]["privateKey"].clone(),
    );
    (entries[0]["privateKey"], entries[1]["privateKey"]) = (two, one);
    fs::write(&path, swapped.to_string()).expect("written");
    let error = KeyStore::read(&path, "password").expect_err("a refusal");
    assert!(matches!(error, KeyStoreError::Damaged { .. }), "{error}");
    assert!(!format!("{store:?}").contains("115")); // 's' as a number
}

#[test]
fn the_wrong_file_in_a_place_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let directory = folder.path();
    node_keys().save(directory, "p", "p").expect("saved");
    fs::copy(directory.join(TRUST_STORE), directory.join(NODE_KEY_STORE)).expect("copied");
    let error = NodeKeys::load(directory, "p", "p").expect_err("a refusal");
    assert!(
        matches!(&error, KeyStoreError::MissingEntry { path, .. } if path.ends_with(NODE_KEY_STORE)),
        "{error}"
    );
}

#[test]
fn an_authority_can_be_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("authority.json");
    let name = "O=Network,L=London,C=GB".parse().expect("a name");
    let authority = CertificateAuthority::generate(&name, SignatureScheme::EcdsaP256, NOW)
        .expect("an authority");
    authority.save(&path, "secret").expect("saved");
    let loaded = CertificateAuthority::load(&path, "secret").expect("loaded");
    assert_eq!(loaded.root(), authority.root());
    let party = "O=PartyA,L=London,C=GB".parse().expect("a name");
    let keys = NodeKeys::generate(&loaded, &party, SignatureScheme::Ed25519, NOW).expect("keys");
    assert_eq!(keys.validate(NOW), Ok(()));
}

/// A node must be up in under half a second, so its keys must not take long. The bound is loose for busy machines; it
/// catches a derivation whose cost, or whose optimisation in test builds, got out of hand.
#[test]
fn loading_is_quick() {
    let folder = tempfile::tempdir().expect("a folder");
    node_keys().save(folder.path(), "p", "p").expect("saved");
    let best = (0..5)
        .map(|_| {
            let start = Instant::now();
            NodeKeys::load(folder.path(), "p", "p").expect("loaded");
            start.elapsed()
        })
        .min()
        .expect("five runs");
    println!("loaded in {best:?}");
    assert!(best < Duration::from_millis(500), "{best:?}");
}
