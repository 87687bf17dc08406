use proptest::prelude::*;

use super::*;
use crate::authority::{CertificateAuthority, Identity, Subject, issue};
use crate::certificate::{CertificateError, Validity};
use crate::keys::{KeyPair, SignatureScheme};
use crate::node_keys::NodeKeys;

const NOW: UnixTime = UnixTime(1_800_000_000);

const ALWAYS: Validity = Validity {
    not_before: UnixTime(1_700_000_000),
    not_after: UnixTime(1_900_000_000),
};

fn name(text: &str) -> X500Name {
    text.parse().expect("a legal name")
}

fn party_a() -> X500Name {
    name("O=PartyA, L=London, C=GB")
}

/// A hierarchy whose every certificate the test can spoil.
struct Link {
    name: X500Name,
    key: KeyPair,
    role: Option<CertRole>,
    path_length: Option<u8>,
    permitted: Option<X500Name>,
    validity: Validity,
}

impl Link {
    fn new(name_text: &str, role: Option<CertRole>, path_length: Option<u8>) -> Self {
        Self {
            name: name(name_text),
            key: KeyPair::generate(SignatureScheme::Ed25519),
            role,
            path_length,
            permitted: None,
            validity: ALWAYS,
        }
    }

    fn issued_by(&self, issuer: &Self) -> Certificate {
        issue(
            &Subject {
                name: &self.name,
                key: self.key.public(),
                role: self.role,
                path_length: self.path_length,
                permitted: self.permitted.as_ref(),
                validity: self.validity,
            },
            &issuer.name,
            &issuer.key.clone().into(),
        )
        .expect("a certificate")
    }
}

/// Root, doorman, node CA, legal identity.
fn chain() -> [Link; 4] {
    let mut links = [
        Link::new("CN=Root, O=Network, L=London, C=GB", None, Some(2)),
        Link::new(
            "CN=Doorman, O=Network, L=London, C=GB",
            Some(CertRole::DoormanCa),
            Some(1),
        ),
        Link::new("O=PartyA, L=London, C=GB", Some(CertRole::NodeCa), Some(0)),
        Link::new(
            "O=PartyA, L=London, C=GB",
            Some(CertRole::LegalIdentity),
            None,
        ),
    ];
    links[2].permitted = Some(party_a());
    links
}

fn validate_chain(links: &[Link], expected: CertRole) -> Result<X500Name, PathError> {
    let root = links[0].issued_by(&links[0]);
    let mut certificates = vec![root.clone()];
    for pair in links.windows(2) {
        certificates.insert(0, pair[1].issued_by(&pair[0]));
    }
    let path = CertificatePath::new(certificates).expect("a path");
    validate_path(&path, &root, NOW, expected)
}

fn refusal(links: &[Link]) -> PathError {
    validate_chain(links, CertRole::LegalIdentity).expect_err("a refusal")
}

#[test]
fn generated_and_development_hierarchies_hold() {
    for scheme in [SignatureScheme::EcdsaP256, SignatureScheme::Ed25519] {
        let generated =
            CertificateAuthority::generate(&name("O=Network, L=London, C=GB"), scheme, NOW)
                .expect("an authority");
        for authority in [generated, CertificateAuthority::development()] {
            let notary = name("O=Notary Service, L=Zürich, C=CH");
            let service = authority
                .service_identity(&notary, scheme, NOW)
                .expect("a service");
            let keys = NodeKeys::generate(&authority, &party_a(), scheme, NOW)
                .expect("keys")
                .with_notary_service(service);
            assert_eq!(keys.validate(NOW), Ok(()));
            assert_eq!(keys.served_names(), [party_a(), notary]);
            assert_eq!(
                validate_path(
                    authority.network_map().path(),
                    authority.root(),
                    NOW,
                    CertRole::NetworkMap
                ),
                Ok(name(authority.network_map().name().as_str()))
            );
            // With or without the root at its end, a path proves the same.
            let ders = keys.legal_identity().path().to_ders();
            let short = CertificatePath::from_ders(&ders[..3]).expect("a path");
            assert_eq!(
                validate_path(&short, authority.root(), NOW, CertRole::LegalIdentity),
                Ok(party_a())
            );
            let renewed = keys.clone().with_renewed_tls(NOW).expect("new TLS keys");
            assert_eq!(renewed.validate(NOW), Ok(()));
            assert_ne!(renewed.tls().key().public(), keys.tls().key().public());
        }
    }
}

#[test]
fn the_development_root_is_the_same_everywhere() {
    let root = CertificateAuthority::development().root().clone();
    assert!(CertificateAuthority::is_development_root(&root));
    // Changing it cuts new development nodes off from old ones.
    assert_eq!(
        root.fingerprint().to_string(),
        "D3819ACAD46A5601660C9ABB9CF1D08FEA96285DA69990ABA9555D7D10832930"
    );
    assert_eq!(
        root.subject().to_string(),
        "CN=Root CA, O=Quorate Development INSECURE, L=London, C=GB"
    );
}

#[test]
fn a_role_proves_nothing_for_another() {
    let keys = NodeKeys::generate(
        &CertificateAuthority::development(),
        &party_a(),
        SignatureScheme::Ed25519,
        NOW,
    )
    .expect("keys");
    let root = keys.trust_root();
    let cases = [
        (keys.tls(), CertRole::LegalIdentity),
        (keys.tls(), CertRole::ServiceIdentity),
        (keys.legal_identity(), CertRole::Tls),
        (keys.legal_identity(), CertRole::NetworkMap),
        (keys.node_ca(), CertRole::LegalIdentity),
    ];
    for (identity, expected) in cases {
        assert_eq!(
            validate_path(identity.path(), root, NOW, expected),
            Err(PathError::WrongRole {
                subject: party_a(),
                role: identity.path().leaf().role(),
                expected
            })
        );
    }
}

#[test]
fn a_path_counts_in_its_time_only() {
    for position in 0..4 {
        let mut links = chain();
        links[position].validity.not_after = NOW.plus_seconds(-1);
        assert!(
            matches!(refusal(&links), PathError::Expired { subject, .. } if subject == links[position].name)
        );
        links[position].validity = Validity {
            not_before: NOW.plus_seconds(1),
            not_after: ALWAYS.not_after,
        };
        assert!(
            matches!(refusal(&links), PathError::NotYetValid { subject, .. } if subject == links[position].name)
        );
        // Both ends belong to it.
        links[position].validity = Validity {
            not_before: NOW,
            not_after: NOW,
        };
        assert_eq!(
            validate_chain(&links, CertRole::LegalIdentity),
            Ok(party_a())
        );
    }
    let message = refusal(&{
        let mut links = chain();
        links[3].validity.not_after = UnixTime(1_799_999_999);
        links
    })
    .to_string();
    assert_eq!(
        message,
        "the certificate of O=PartyA, L=London, C=GB expired at 2027-01-15T07:59:59Z, and it is 2027-01-15T08:00:00Z; it must be renewed"
    );
}

#[test]
fn a_path_to_another_root_is_foreign() {
    let links = chain();
    let mut ours = chain();
    let theirs = CertificatePath::new(vec![
        links[3].issued_by(&links[2]),
        links[2].issued_by(&links[1]),
        links[1].issued_by(&links[0]),
        links[0].issued_by(&links[0]),
    ])
    .expect("a path");
    // A root of the same name with another key, once shown and once left out.
    let root = ours[0].issued_by(&ours[0]);
    let refusal = |path: &CertificatePath, root: &Certificate| {
        validate_path(path, root, NOW, CertRole::LegalIdentity).expect_err("a refusal")
    };
    assert!(matches!(
        refusal(&theirs, &root),
        PathError::ForeignRoot { .. }
    ));
    let without_root = CertificatePath::new(theirs.certificates()[..3].to_vec()).expect("a path");
    assert!(matches!(
        refusal(&without_root, &root),
        PathError::BadSignature { .. }
    ));
    ours[0].name = name("CN=Root, O=Other Network, L=London, C=GB");
    let root = ours[0].issued_by(&ours[0]);
    assert!(matches!(
        refusal(&theirs, &root),
        PathError::ForeignRoot { .. }
    ));
    // The root alone proves nothing.
    let alone = CertificatePath::new(vec![root.clone()]).expect("a path");
    assert_eq!(refusal(&alone, &root), PathError::Empty);
}

#[test]
fn authorities_keep_to_their_limits() {
    // A node CA may not make another node CA, even with the right roles.
    let mut links = Vec::from(chain());
    links[0].path_length = Some(1);
    assert!(matches!(
        refusal(&links),
        PathError::TooLong {
            allowed: 1,
            found: 2,
            ..
        }
    ));

    // A name beside the one that the node CA is bound to.
    let mut links = chain();
    links[3].name = name("O=PartyB, L=London, C=GB");
    assert_eq!(
        refusal(&links),
        PathError::NameNotPermitted {
            issuer: party_a(),
            subject: name("O=PartyB, L=London, C=GB")
        }
    );
    // Below it is fine.
    links[3].name = name("OU=Desk, O=PartyA, L=London, C=GB");
    assert!(validate_chain(&links, CertRole::LegalIdentity).is_ok());

    // A constraint binds everything below, not only the next.
    let mut links = chain();
    links[1].permitted = Some(name("O=PartyB, L=London, C=GB"));
    assert!(matches!(
        refusal(&links),
        PathError::NameNotPermitted { .. }
    ));

    // An issuer that is no authority.
    let mut links = chain();
    links[2].path_length = None;
    links[2].permitted = None;
    assert!(matches!(refusal(&links), PathError::NotAnAuthority { .. }));

    // An authority where somebody who signs is expected.
    let mut links = chain();
    links[3].path_length = Some(0);
    assert!(matches!(refusal(&links), PathError::KeyUsage { .. }));
}

#[test]
fn roles_follow_the_hierarchy() {
    // A legal identity, or a TLS certificate, straight from where it may not come from.
    for (role, issuer, holds) in [
        (CertRole::LegalIdentity, CertRole::DoormanCa, true),
        (CertRole::ServiceIdentity, CertRole::DoormanCa, true),
        (CertRole::Tls, CertRole::DoormanCa, false),
        (CertRole::NetworkMap, CertRole::DoormanCa, false),
        (CertRole::LegalIdentity, CertRole::NetworkMap, false),
        (CertRole::LegalIdentity, CertRole::NodeCa, false),
    ] {
        let mut links = Vec::from(chain());
        links.remove(2);
        links[1].role = Some(issuer);
        links[2].role = Some(role);
        let result = validate_chain(&links, role);
        if holds {
            assert_eq!(result, Ok(party_a()));
        } else {
            assert!(
                matches!(result, Err(PathError::RoleHierarchy { .. })),
                "{role} from {issuer}: {result:?}"
            );
        }
    }
    // An authority without a role in the middle.
    let mut links = chain();
    links[2].role = None;
    assert!(matches!(
        refusal(&links),
        PathError::RoleHierarchy {
            issuer_role: None,
            ..
        }
    ));
}

#[test]
fn signatures_and_order_are_checked() {
    let links = chain();
    let root = links[0].issued_by(&links[0]);
    // The leaf's issuer has the right name and another key.
    let mut impostor = chain();
    impostor[2].name = party_a();
    let certificates = vec![
        links[3].issued_by(&impostor[2]),
        links[2].issued_by(&links[1]),
        links[1].issued_by(&links[0]),
    ];
    let path = CertificatePath::new(certificates.clone()).expect("a path");
    assert_eq!(
        validate_path(&path, &root, NOW, CertRole::LegalIdentity),
        Err(PathError::BadSignature {
            subject: party_a(),
            issuer: party_a()
        })
    );
    // A link left out.
    let path = CertificatePath::new(vec![certificates[0].clone(), certificates[2].clone()])
        .expect("a path");
    assert!(matches!(
        validate_path(&path, &root, NOW, CertRole::LegalIdentity),
        Err(PathError::Unchained { .. })
    ));
    assert!(matches!(
        CertificatePath::new(Vec::new()),
        Err(CertificateError::PathLength { length: 0 })
    ));
    assert!(matches!(
        CertificatePath::new(vec![root; MAX_PATH_CERTIFICATES + 1]),
        Err(CertificateError::PathLength { .. })
    ));
}

#[test]
fn an_authority_does_not_issue_outside_of_its_time() {
    let authority = CertificateAuthority::generate(
        &name("O=Network, L=London, C=GB"),
        SignatureScheme::Ed25519,
        NOW,
    )
    .expect("an authority");
    for now in [NOW.plus_days(-2), NOW.plus_days(8_000)] {
        assert!(NodeKeys::generate(&authority, &party_a(), SignatureScheme::Ed25519, now).is_err());
    }
    // What is issued late ends with its issuer.
    let late = NOW.plus_days(7_000);
    let keys =
        NodeKeys::generate(&authority, &party_a(), SignatureScheme::Ed25519, late).expect("keys");
    assert_eq!(keys.expires(), authority.root().validity().not_after);
    assert!(
        authority
            .certify(CertRole::Tls, &party_a(), keys.tls().key().public(), NOW)
            .is_err()
    );
}

#[test]
fn a_key_does_not_go_with_another_keys_certificate() {
    let authority = CertificateAuthority::development();
    let path = authority.network_map().path().clone();
    assert!(Identity::new(KeyPair::generate(SignatureScheme::Ed25519), path).is_err());
}

#[test]
fn paths_survive_wire_json_and_pem() {
    let authority = CertificateAuthority::development();
    let path = authority.network_map().path();
    let wire = borsh::to_vec(path).expect("bytes");
    assert_eq!(
        &borsh::from_slice::<CertificatePath>(&wire).expect("own bytes"),
        path
    );
    assert!(borsh::from_slice::<CertificatePath>(&wire[..wire.len() - 1]).is_err());
    assert!(borsh::from_slice::<CertificatePath>(&u32::MAX.to_le_bytes()).is_err());
    let json = serde_json::to_string(path).expect("JSON");
    assert_eq!(
        &serde_json::from_str::<CertificatePath>(&json).expect("own JSON"),
        path
    );
    let pem: String = path
        .certificates()
        .iter()
        .map(Certificate::to_pem)
        .collect();
    assert_eq!(
        Certificate::from_pem(pem.as_bytes()).expect("own PEM"),
        path.certificates()
    );
    assert!(Certificate::from_pem(b"no PEM").is_err());
}

/// Any changed bit makes the certificate unreadable or its path invalid. (The development authority signs with Ed25519:
/// there are no two encodings of one signature.)
#[test]
fn a_tampered_certificate_is_refused() {
    let authority = CertificateAuthority::development();
    let ders = authority.network_map().path().to_ders();
    for position in 0..ders[0].len() {
        for bit in 0..8 {
            let mut tampered = ders.clone();
            tampered[0][position] ^= 1 << bit;
            if let Ok(path) = CertificatePath::from_ders(&tampered) {
                assert!(
                    validate_path(&path, authority.root(), NOW, CertRole::NetworkMap).is_err(),
                    "bit {bit} of byte {position} changed"
                );
            }
        }
    }
}

proptest! {

    #[test]
    fn cut_or_random_certificates_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..64), cut: prop::sample::Index) {
        let _ = Certificate::from_der(&bytes);
        let _ = Certificate::from_pem(&bytes);
        let der = CertificateAuthority::development().root().der().to_vec();
        prop_assert!(Certificate::from_der(&der[..cut.index(der.len())]).is_err());
        let longer = [&der[..], &[0]].concat();
        prop_assert!(Certificate::from_der(&longer).is_err());
    }
}
