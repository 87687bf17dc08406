//! Generated keys and certificates, compared with those that `cryptogen` made from the same file.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use quorate_fabric::config::ChannelConfig;
use quorate_fabric::crypto_material::{CryptoError, Material, generate};
use quorate_fabric::envelope::{self, EnvelopeParts};
use quorate_fabric::genesis::{BesideConfigtx, Profile};
use quorate_fabric::msp::LocalMsp;
use quorate_fabric::proto::common::ChannelHeader;
use quorate_identity::x509::SigningKey;
use time::OffsetDateTime;
use time::macros::datetime;
use x509_parser::pem::parse_x509_pem;

const NOW: OffsetDateTime = datetime!(2026-11-20 13:12:40 UTC);

fn recorded() -> PathBuf {
    PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../fixtures/fabric/crypto"
    ))
}

fn recorded_config() -> String {
    std::fs::read_to_string(recorded().join("crypto-config.yaml")).unwrap()
}

/// All files below a folder, by their paths.
fn files(root: &Path, folder: &str) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut out = BTreeMap::new();
    let mut open = vec![PathBuf::from(folder)];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(root.join(&folder)).unwrap() {
            let entry = entry.unwrap();
            let path = folder.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                open.push(path);
            } else {
                out.insert(path, std::fs::read(entry.path()).unwrap());
            }
        }
    }
    out
}

/// The recorded files, without the user that was added to them by hand.
fn recorded_files() -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = files(&recorded(), "ordererOrganizations");
    all.extend(files(&recorded(), "peerOrganizations"));
    all.retain(|path, _| !path.to_str().unwrap().contains("User1@orderer.test"));
    all
}

fn generated_files(material: &Material) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = material.files();
    files
        .map(|(path, text)| (path.to_owned(), text.to_vec()))
        .collect()
}

/// Everything about a certificate that is not its key, its number or a signature.
fn describe(pem: &[u8]) -> String {
    let (rest, pem) = parse_x509_pem(pem).unwrap();
    assert!(rest.is_empty());
    let certificate = pem.parse_x509().unwrap();
    let mut out = format!(
        "{} {} by {} {:?} {} to {} key {}\n",
        certificate.version(),
        certificate.subject(),
        certificate.issuer(),
        certificate.signature_algorithm.algorithm.to_id_string(),
        certificate.validity().not_before,
        certificate.validity().not_after,
        certificate.public_key().algorithm.algorithm.to_id_string(),
    );
    // How names are encoded, too.
    for attribute in certificate.subject().iter_attributes() {
        let tag = attribute.attr_value().header.tag();
        out.push_str(&format!("{} {tag}\n", attribute.attr_type().to_id_string()));
    }
    let mut extensions: Vec<String> = certificate
        .extensions()
        .iter()
        .map(|extension| {
            let key_id = ["2.5.29.14", "2.5.29.35"].contains(&&*extension.oid.to_id_string());
            let value = match key_id {
                true => format!("{} bytes", extension.value.len()),
                false => hex::encode(extension.value),
            };
            format!("{} {} {value}\n", extension.oid, extension.critical)
        })
        .collect();
    extensions.sort();
    out + &extensions.concat()
}

#[test]
fn folders_and_certificates_are_those_of_cryptogen() {
    let material = generate(&recorded_config(), NOW).unwrap();
    let made = generated_files(&material);
    let recorded = recorded_files();
    let paths = |files: &BTreeMap<PathBuf, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(paths(&made), paths(&recorded));

    for (path, recorded) in &recorded {
        let made = &made[path];
        let name = path.file_name().unwrap().to_str().unwrap();
        let shown = path.display();
        if name == "config.yaml" {
            assert_eq!(made, recorded, "{shown}");
        } else if name == "priv_sk" || name.ends_with(".key") {
            // The form and the size; and it is a key.
            assert_eq!(made.len(), recorded.len(), "{shown}");
            assert_eq!(made[..60], recorded[..60], "{shown}");
            SigningKey::from_pem(made).unwrap();
        } else {
            assert_eq!(describe(made), describe(recorded), "{shown}");
        }
    }
}

#[test]
fn certificates_are_signed_with_low_s_by_their_authorities() {
    let material = generate(&recorded_config(), NOW).unwrap();
    let files = generated_files(&material);
    let certificate = |path: &str| {
        let pem = &files[Path::new(path)];
        quorate_identity::x509::Certificate::from_pem(pem).unwrap()
    };
    let org = "peerOrganizations/org1.test";
    for (authority, leaves) in [
        (
            "ca/ca.org1.test-cert.pem",
            [
                "msp/signcerts/User1@org1.test-cert.pem",
                "msp/signcerts/User1@org1.test-cert.pem",
            ],
        ),
        (
            "tlsca/tlsca.org1.test-cert.pem",
            ["tls/client.crt", "tls/ca.crt"],
        ),
    ] {
        let authority = certificate(&format!("{org}/{authority}"));
        for leaf in leaves {
            let leaf = certificate(&format!("{org}/users/User1@org1.test/{leaf}"));
            leaf.verify_signed_by(&authority).unwrap();
        }
    }
    for (path, text) in &files {
        if path
            .extension()
            .is_some_and(|extension| extension == "pem" || extension == "crt")
        {
            let certificate = quorate_identity::x509::Certificate::from_pem(text).unwrap();
            let key = certificate.public_key();
            assert_eq!(
                key.lowered(certificate.signature()).unwrap(),
                None,
                "{}",
                path.display()
            );
        }
    }
}

#[test]
fn what_is_written_is_an_msp_folder() {
    let output = tempfile::tempdir().unwrap();
    let material = generate(&recorded_config(), NOW).unwrap();
    material.write(output.path()).unwrap();

    let mut written = files(output.path(), "ordererOrganizations");
    written.extend(files(output.path(), "peerOrganizations"));
    assert_eq!(written, generated_files(&material));
    for (node, msp_id) in [
        (
            "ordererOrganizations/orderer.test/orderers/orderer0.orderer.test",
            "OrdererOrgMSP",
        ),
        (
            "peerOrganizations/org1.test/users/Admin@org1.test",
            "Org1MSP",
        ),
        (
            "peerOrganizations/org2.test/peers/peer0.org2.test",
            "Org2MSP",
        ),
    ] {
        let folder = output.path().join(node);
        LocalMsp::load(&folder.join("msp"), msp_id).unwrap();
        // As cryptogen leaves it, empty or not.
        assert!(folder.join("msp/admincerts").is_dir());
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let key = std::fs::metadata(folder.join("msp/keystore/priv_sk")).unwrap();
            assert_eq!(key.permissions().mode() & 0o777, 0o600);
        }
    }

    // Nothing is overwritten, and nothing is written beside what is there.
    let other = generate(&recorded_config(), NOW).unwrap();
    assert!(matches!(
        other.write(output.path()),
        Err(CryptoError::Exists(_))
    ));
    let mut after = files(output.path(), "ordererOrganizations");
    after.extend(files(output.path(), "peerOrganizations"));
    assert_eq!(after, written);
}

#[test]
fn a_channel_can_be_made_of_it() {
    let output = tempfile::tempdir().unwrap();
    let material = generate(&recorded_config(), NOW).unwrap();
    material.write(&output.path().join("crypto")).unwrap();
    let configtx = std::fs::read_to_string(recorded().join("../configtx.yaml")).unwrap();
    let block = Profile::read(&configtx, "Fixture3")
        .unwrap()
        .genesis_block(
            &"made".parse().unwrap(),
            &BesideConfigtx(output.path().to_owned()),
            NOW.unix_timestamp(),
            &[7; 24],
        )
        .unwrap();
    let config = ChannelConfig::from_block(&block).unwrap();
    assert_eq!(config.channel_id(), "made");

    let signer = "peerOrganizations/org1.test/users/User1@org1.test/msp";
    let signer = LocalMsp::load(&output.path().join("crypto").join(signer), "Org1MSP").unwrap();
    let header = ChannelHeader {
        channel_id: "made".to_owned(),
        ..Default::default()
    };
    let envelope = envelope::sign(&header, b"data".to_vec(), b"nonce", &signer).unwrap();
    let parts = EnvelopeParts::parse(&envelope).unwrap();
    let signed = [parts.signed_data(&envelope).unwrap()];
    let policy = |name: &str| config.policies().get(name).unwrap();
    policy("/Channel/Writers").evaluate(&signed).unwrap();
    policy("/Channel/Admins").evaluate(&signed).unwrap_err();
}

#[test]
fn templates_and_subjects_are_filled_in() {
    let config = r#"
PeerOrgs:
  - Name: Org
    Domain: org.test
    EnableNodeOUs: true
    CA:
      Hostname: root
      Country: JP
      Province: Tokyo
      Locality: Chiyoda
      OrganizationalUnit: Ledgers
      StreetAddress: 1-1
      PostalCode: 100-0001
    Specs:
      - Hostname: first
        CommonName: "{{.Hostname}}-a.{{ .Domain }}"
        SANS: ["alt.{{.CommonName}}", "::1", "10.0.0.1"]
    Template:
      Count: 2
      Start: 5
      Hostname: "{{.Prefix}}-{{.Index}}"
"#;
    let files = generated_files(&generate(config, NOW).unwrap());
    let peers = "peerOrganizations/org.test/peers";
    for name in ["first-a.org.test", "peer-5.org.test", "peer-6.org.test"] {
        assert!(
            files.contains_key(Path::new(&format!("{peers}/{name}/tls/server.crt"))),
            "{name}"
        );
    }
    let shown = |path: &str| describe(&files[Path::new(path)]);
    let ca = shown("peerOrganizations/org.test/ca/root.org.test-cert.pem");
    assert!(ca.contains("C=JP, ST=Tokyo, L=Chiyoda, streetAddress=1-1, postalCode=100-0001, O=org.test, OU=Ledgers, CN=root.org.test by C=JP"), "{ca}");
    let peer = shown(&format!(
        "{peers}/first-a.org.test/msp/signcerts/first-a.org.test-cert.pem"
    ));
    assert!(
        peer.contains("OU=Ledgers, OU=peer, CN=first-a.org.test by C=JP"),
        "{peer}"
    );

    let (_, pem) =
        parse_x509_pem(&files[Path::new(&format!("{peers}/first-a.org.test/tls/server.crt"))])
            .unwrap();
    let certificate = pem.parse_x509().unwrap();
    let names = certificate.subject_alternative_name().unwrap().unwrap();
    let names: Vec<String> = names
        .value
        .general_names
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(names.len(), 5, "{names:?}");
    assert!(
        names[0].contains("first-a.org.test")
            && names[1].contains("first")
            && names[2].contains("alt.first-a.org.test"),
        "{names:?}"
    );
}

#[test]
fn refusals_name_the_organization() {
    let refusal = |from: &str, to: &str| {
        let config = recorded_config();
        assert!(config.contains(from), "{from}");
        generate(&config.replacen(from, to, 1), NOW)
            .unwrap_err()
            .to_string()
    };
    for (from, to, expected) in [
        (
            "Domain: org1.test",
            "Domain: ../org1.test",
            "Org1: \"../org1.test\" cannot be",
        ),
        (
            "Domain: orderer2.test",
            "Domain: orderer.test",
            "a second organization with domain orderer.test",
        ),
        (
            "Hostname: orderer1",
            "Hostname: orderer0",
            "orderer0.orderer.test",
        ),
        ("Hostname: orderer1", "CommonName: a/b", "\"a/b\" cannot be"),
        (
            "Hostname: orderer1",
            "CommonName: \"{{.Port}}\"",
            "unknown variable \".Port\"",
        ),
        (
            "Hostname: orderer1",
            "CommonName: \"{{.Hostname\"",
            "'{{' without",
        ),
        ("Hostname: orderer1", "Hostnames: orderer1", "Hostnames"),
        (
            "Count: 2",
            "Count: 20000",
            "Users.Count 20000 is above 10000",
        ),
        (
            "Count: 1",
            "Count: 20000",
            "Template.Count 20000 is above 10000",
        ),
    ] {
        let refusal = refusal(from, to);
        assert!(refusal.contains(expected), "{expected:?} in {refusal:?}");
    }
    let refusal = generate("PeerOrgs: [", NOW).unwrap_err().to_string();
    assert!(
        refusal.starts_with("crypto-config.yaml cannot be read: "),
        "{refusal}"
    );
}

#[test]
fn keys_are_not_shown() {
    let material = generate(&recorded_config(), NOW).unwrap();
    assert!(!format!("{material:?}").contains("PRIVATE"));
}
