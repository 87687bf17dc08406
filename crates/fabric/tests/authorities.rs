//! Organisations with authorities that Fabric's tools do not make: intermediates, restricted ones, lists that revoke.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::sync::Arc;

use prost::Message as _;
use quorate_fabric::msp::{Identity, Msp, MspVersion};
use quorate_fabric::proto::common::msp_principal::Classification;
use quorate_fabric::proto::common::msp_role::MspRoleType;
use quorate_fabric::proto::common::{MspPrincipal, MspRole};
use quorate_fabric::proto::msp::{
    FabricCryptoConfig, FabricMspConfig, FabricNodeOUs, FabricOuIdentifier, MspConfig,
};
use quorate_identity::x509::Certificate;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer,
    DistinguishedName, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyIdMethod,
    KeyPair, KeyUsagePurpose, NameConstraints, PKCS_ED25519, RevokedCertParams, SerialNumber,
    date_time_ymd,
};

const ID: &str = "OrgMSP";

type Authority = CertifiedIssuer<'static, KeyPair>;

fn params(name: &str, units: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    for unit in units {
        params
            .distinguished_name
            .push(DnType::OrganizationalUnitName, *unit);
    }
    params.not_before = date_time_ymd(2024, 1, 1);
    params.not_after = date_time_ymd(2034, 1, 1);
    params
}

fn authority_params(name: &str) -> CertificateParams {
    let mut params = params(name, &[]);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn key() -> KeyPair {
    KeyPair::generate().unwrap()
}

fn root(name: &str) -> Authority {
    CertifiedIssuer::self_signed(authority_params(name), key()).unwrap()
}

fn below(parent: &Authority, name: &str) -> Authority {
    CertifiedIssuer::signed_by(authority_params(name), key(), parent).unwrap()
}

fn member(issuer: &Issuer<'_, KeyPair>, params: &CertificateParams) -> String {
    params.signed_by(&key(), issuer).unwrap().pem()
}

fn pems(authorities: &[&Authority]) -> Vec<Vec<u8>> {
    authorities
        .iter()
        .map(|authority| authority.pem().into_bytes())
        .collect()
}

/// A definition with node OUs for which any authority will do.
fn definition(roots: &[&Authority], intermediates: &[&Authority]) -> FabricMspConfig {
    FabricMspConfig {
        name: ID.to_owned(),
        root_certs: pems(roots),
        intermediate_certs: pems(intermediates),
        fabric_node_ous: Some(FabricNodeOUs {
            enable: true,
            client_ou_identifier: Some(unit("client", None)),
            peer_ou_identifier: Some(unit("peer", None)),
            admin_ou_identifier: Some(unit("admin", None)),
            orderer_ou_identifier: Some(unit("orderer", None)),
        }),
        ..FabricMspConfig::default()
    }
}

fn unit(name: &str, certificate: Option<&Authority>) -> FabricOuIdentifier {
    FabricOuIdentifier {
        certificate: certificate.map_or_else(Vec::new, |authority| authority.pem().into_bytes()),
        organizational_unit_identifier: name.to_owned(),
    }
}

fn read(definition: &FabricMspConfig) -> Result<Arc<Msp>, String> {
    read_as(definition, MspVersion::V1_4_3)
}

fn read_as(definition: &FabricMspConfig, version: MspVersion) -> Result<Arc<Msp>, String> {
    let config = MspConfig {
        r#type: 0,
        config: definition.encode_to_vec(),
    };
    Msp::from_config_as(&config, version)
        .map(Arc::new)
        .map_err(|error| error.to_string())
}

fn validate(msp: &Arc<Msp>, pem: &str) -> Result<Identity, String> {
    let identity = msp
        .identity(pem.as_bytes())
        .map_err(|error| format!("unreadable: {error}"))?;
    match identity.validate() {
        Ok(()) => Ok(identity),
        Err(error) => Err(error.to_string()),
    }
}

fn is(identity: &Identity, role: MspRoleType) -> bool {
    let principal = MspPrincipal {
        principal_classification: Classification::Role as i32,
        principal: MspRole {
            msp_identifier: ID.to_owned(),
            role: role as i32,
        }
        .encode_to_vec(),
    };
    identity.satisfies(&principal).is_ok()
}

#[test]
fn members_come_from_the_leaves_of_the_tree_of_authorities() {
    let top = root("top");
    let middle = below(&top, "middle");
    let low = below(&middle, "low");
    let client = params("c", &["client"]);
    let msp = read(&definition(&[&top], &[&middle, &low])).unwrap();
    let identity = validate(&msp, &member(&low, &client)).unwrap();
    assert!(is(&identity, MspRoleType::Client));
    for inner in [&top, &middle] {
        let error = validate(&msp, &member(inner, &client)).unwrap_err();
        assert!(
            error.contains("Parent certificate should be a leaf of the certification tree"),
            "{error}"
        );
    }
    // Without the intermediates in its definition, the organisation knows the root's members only.
    let msp = read(&definition(&[&top], &[])).unwrap();
    validate(&msp, &member(&top, &client)).unwrap();
    let error = validate(&msp, &member(&middle, &client)).unwrap_err();
    assert!(
        error.contains("certificate signed by unknown authority"),
        "{error}"
    );
}

#[test]
fn an_identity_has_one_chain_only() {
    let first = root("first");
    let second = root("second");
    let shared = key().serialize_pem();
    let shared = || KeyPair::from_pem(&shared).unwrap();
    let params = authority_params("twice");
    let one = CertifiedIssuer::signed_by(params.clone(), shared(), &first).unwrap();
    let two = CertifiedIssuer::signed_by(params, shared(), &second).unwrap();
    let msp = read(&definition(&[&first, &second], &[&one, &two])).unwrap();
    let error = validate(&msp, &member(&one, &self::params("c", &["client"]))).unwrap_err();
    assert_eq!(
        error,
        "unreadable: this MSP only supports a single validation chain, got 2"
    );
}

#[test]
fn the_chain_is_judged_at_the_beginning_of_the_certificates_own_validity() {
    let mut short = authority_params("short");
    short.not_after = date_time_ymd(2025, 1, 1);
    let short = CertifiedIssuer::self_signed(short, key()).unwrap();
    let msp = read(&definition(&[&short], &[])).unwrap();
    let mut early = params("c", &["client"]);
    validate(&msp, &member(&short, &early)).unwrap();
    early.not_before = date_time_ymd(2026, 1, 1);
    let error = validate(&msp, &member(&short, &early)).unwrap_err();
    assert!(
        error.contains("certificate has expired or is not yet valid: current time 2026-01-01T00:00:01Z is after 2025-01-01T00:00:00Z"),
        "{error}"
    );
}

#[test]
fn authorities_are_bound_by_what_they_may_do() {
    let top = root("top");
    let client = params("peer0.org.test", &["client"]);

    let mut no_length = authority_params("no length");
    no_length.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let no_length = CertifiedIssuer::signed_by(no_length, key(), &top).unwrap();
    let deeper = below(&no_length, "deeper");
    let msp = read(&definition(&[&top], &[&no_length, &deeper])).unwrap();
    let error = validate(&msp, &member(&deeper, &client)).unwrap_err();
    assert!(
        error.contains("too many intermediates for path length constraint"),
        "{error}"
    );

    let mut not_for_servers = authority_params("for clients");
    not_for_servers.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let not_for_servers = CertifiedIssuer::self_signed(not_for_servers, key()).unwrap();
    let error = read(&definition(&[&not_for_servers], &[])).unwrap_err();
    assert!(error.contains("incompatible key usage"), "{error}");

    let mut no_signer = authority_params("no signer");
    no_signer.key_usages = vec![KeyUsagePurpose::CrlSign];
    let no_signer = CertifiedIssuer::signed_by(no_signer, key(), &top).unwrap();
    let msp = read(&definition(&[&top], &[&no_signer])).unwrap();
    let error = validate(&msp, &member(&no_signer, &client)).unwrap_err();
    assert!(error.contains("signed by unknown authority (possibly because of \"x509: invalid signature: parent certificate cannot sign this kind of certificate\" while trying to verify candidate authority certificate \"no signer\")"), "{error}");

    let mut named = authority_params("named");
    named.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName("org.test".to_owned())],
        excluded_subtrees: vec![],
    });
    let named = CertifiedIssuer::self_signed(named, key()).unwrap();
    let msp = read(&definition(&[&named], &[])).unwrap();
    let with_name = |name: &str| {
        let mut client = client.clone();
        client.subject_alt_names = vec![rcgen::SanType::DnsName(name.try_into().unwrap())];
        member(&named, &client)
    };
    validate(&msp, &with_name("peer0.org.test")).unwrap();
    let error = validate(&msp, &with_name("peer0.other.test")).unwrap_err();
    assert!(
        error.contains("not authorized to sign for this name"),
        "{error}"
    );
    let error = validate(&msp, &member(&named, &client)).unwrap_err();
    assert!(
        error.contains("issuer has name constraints but leaf doesn't have a SAN extension"),
        "{error}"
    );
    validate(
        &msp,
        &member(&named, &params("User1@org.test", &["client"])),
    )
    .unwrap();

    let mut critical = client.clone();
    let mut extension =
        rcgen::CustomExtension::from_oid_content(&[1, 2, 3, 4, 5], vec![0x05, 0x00]);
    extension.set_criticality(true);
    critical.custom_extensions = vec![extension];
    let msp = read(&definition(&[&top], &[])).unwrap();
    let error = validate(&msp, &member(&top, &critical)).unwrap_err();
    assert!(error.contains("unhandled critical extension"), "{error}");
}

#[test]
fn definitions_with_useless_authorities_are_refused() {
    let top = root("top");
    let mut without_id = authority_params("without id");
    without_id.key_identifier_method = KeyIdMethod::PreSpecified(vec![1, 2, 3]);
    let with_id = CertifiedIssuer::self_signed(without_id, key()).unwrap();
    read(&definition(&[&with_id], &[])).unwrap();

    let ed25519 = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let ed25519 = CertifiedIssuer::self_signed(authority_params("ed25519"), ed25519).unwrap();
    assert!(
        read(&definition(&[&ed25519], &[]))
            .unwrap_err()
            .ends_with("Supported keys: [ECDSA, RSA]")
    );

    // Its root is missing.
    let stray = below(&root("elsewhere"), "stray");
    let error = read(&definition(&[&top], &[&stray])).unwrap_err();
    assert_eq!(
        error,
        "the supplied identity is not valid: x509: certificate signed by unknown authority"
    );

    // TLS authorities may have any key, and no stray intermediates.
    let mut tls = definition(&[&top], &[]);
    tls.tls_root_certs = pems(&[&ed25519]);
    assert_eq!(read(&tls).unwrap().tls_roots().len(), 1);
    tls.tls_intermediate_certs = pems(&[&stray]);
    let error = read(&tls).unwrap_err();
    let serial = Certificate::from_pem(stray.pem().as_bytes())
        .unwrap()
        .serial_decimal();
    assert_eq!(
        error,
        format!(
            "CA Certificate is not valid, (SN: {serial}): could not obtain certification chain: the supplied identity is not valid: x509: certificate signed by unknown authority"
        )
    );
    tls.tls_root_certs = vec![member(&top, &params("leaf", &[])).into_bytes()];
    assert!(
        read(&tls)
            .unwrap_err()
            .starts_with("CA Certificate did not have the CA attribute, (SN: ")
    );

    let mut hashes = definition(&[&top], &[]);
    hashes.crypto_config = Some(FabricCryptoConfig {
        signature_hash_family: "SHA3".to_owned(),
        identity_identifier_hash_function: "SHA3_256".to_owned(),
    });
    let msp = read(&hashes).unwrap();
    let identity = validate(&msp, &member(&top, &params("c", &["client"]))).unwrap();
    assert_eq!(identity.id().len(), 64);
    identity.verify(b"message", b"nonsense").unwrap_err();
}

#[test]
fn node_units_may_be_bound_to_an_authority() {
    let top = root("top");
    let (left, right) = (below(&top, "left"), below(&top, "right"));
    let mut bound = definition(&[&top], &[&left, &right]);
    let units = bound.fabric_node_ous.as_mut().unwrap();
    units.client_ou_identifier = Some(unit("client", Some(&left)));
    let msp = read(&bound).unwrap();
    let client = params("c", &["client"]);
    validate(&msp, &member(&left, &client)).unwrap();
    let error = validate(&msp, &member(&right, &client)).unwrap_err();
    assert!(
        error.contains("certifiersIdentifier does not match: [client("),
        "{error}"
    );
    validate(&msp, &member(&right, &params("p", &["peer"]))).unwrap();

    let units = bound.fabric_node_ous.as_mut().unwrap();
    units.client_ou_identifier = Some(unit("client", Some(&root("stranger"))));
    assert!(
        read(&bound)
            .unwrap_err()
            .starts_with("Failed adding OU. Certificate [")
    );
}

#[test]
fn without_node_units_listed_units_are_wanted() {
    let top = root("top");
    let admin = member(&top, &params("a", &["sales"]));
    let mut listed = definition(&[&top], &[]);
    listed.fabric_node_ous = None;
    assert_eq!(
        read(&listed).unwrap_err(),
        "administrators must be declared when no admin ou classification is set"
    );
    listed.admins = vec![admin.clone().into_bytes()];
    listed.organizational_unit_identifiers =
        vec![unit("sales", Some(&top)), unit("sales", Some(&top))];
    let msp = read(&listed).unwrap();
    let identity = validate(&msp, &admin).unwrap();
    assert!(is(&identity, MspRoleType::Admin) && is(&identity, MspRoleType::Member));
    validate(&msp, &member(&top, &params("x", &["other", "sales"]))).unwrap();
    let error = validate(&msp, &member(&top, &params("x", &["other"]))).unwrap_err();
    assert!(
        error.contains("none of the identity's organizational units [other("),
        "{error}"
    );
    let error = validate(&msp, &member(&top, &params("x", &[]))).unwrap_err();
    assert!(
        error.contains("does not contain an Organizational Unit (OU)"),
        "{error}"
    );

    listed.admins = vec![member(&top, &params("a", &["other"])).into_bytes()];
    assert!(
        read(&listed)
            .unwrap_err()
            .starts_with("admin 0 is invalid: could not validate identity's OUs: ")
    );
}

#[test]
fn admins_may_be_named_and_carry_a_unit() {
    let top = root("top");
    let mut both = definition(&[&top], &[]);
    let named = member(&top, &params("a", &["client"]));
    both.admins = vec![named.clone().into_bytes()];
    let msp = read(&both).unwrap();
    let named = validate(&msp, &named).unwrap();
    assert!(is(&named, MspRoleType::Admin) && is(&named, MspRoleType::Client));
    let by_unit = validate(&msp, &member(&top, &params("a", &["admin"]))).unwrap();
    assert!(is(&by_unit, MspRoleType::Admin) && !is(&by_unit, MspRoleType::Client));

    both.admins = vec![member(&top, &params("a", &["peer"])).into_bytes()];
    assert_eq!(
        read(&both).unwrap_err(),
        "admin 0 is invalid [The identity does not contain OU [CLIENT], MSP: [OrgMSP],The identity does not contain OU [ADMIN], MSP: [OrgMSP]]"
    );
    // The second edition wants admins to be clients, and both units to be there.
    assert_eq!(
        read_as(&both, MspVersion::V1_1).unwrap_err(),
        "admin 0 is invalid: The identity is not a [CLIENT] under this MSP [OrgMSP]: The identity does not contain OU [CLIENT], MSP: [OrgMSP]"
    );
    both.fabric_node_ous.as_mut().unwrap().peer_ou_identifier = None;
    assert_eq!(
        read_as(&both, MspVersion::V1_3).unwrap_err(),
        "Failed setting up NodeOUs. PeerOU must be different from nil."
    );
}

#[test]
fn node_units_without_any_unit_are_not_enforced() {
    let top = root("top");
    let mut none = definition(&[&top], &[]);
    none.fabric_node_ous = Some(FabricNodeOUs {
        enable: true,
        ..FabricNodeOUs::default()
    });
    none.admins = vec![member(&top, &params("a", &[])).into_bytes()];
    let msp = read(&none).unwrap();
    validate(&msp, &member(&top, &params("x", &[]))).unwrap();
}

fn list(issuer: &Authority, serials: &[u64]) -> Vec<u8> {
    let revoked = |serial: &u64| RevokedCertParams {
        serial_number: SerialNumber::from(*serial),
        revocation_time: date_time_ymd(2024, 6, 1),
        reason_code: None,
        invalidity_date: None,
    };
    CertificateRevocationListParams {
        this_update: date_time_ymd(2024, 6, 1),
        next_update: date_time_ymd(2024, 7, 1),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: serials.iter().map(revoked).collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    }
    .signed_by(issuer)
    .unwrap()
    .pem()
    .unwrap()
    .into_bytes()
}

#[test]
fn a_list_revokes_for_the_authority_that_signed_it() {
    let top = root("top");
    let (left, right) = (below(&top, "left"), below(&top, "right"));
    let numbered = |serial: u64| {
        let mut params = params("c", &["client"]);
        params.serial_number = Some(SerialNumber::from(serial));
        params
    };
    let mut revoking = definition(&[&top], &[&left, &right]);
    // Old lists count as well as new ones: their dates are not looked at.
    revoking.revocation_list = vec![list(&left, &[7, 200])];
    let msp = read(&revoking).unwrap();
    for serial in [7, 200] {
        let error = validate(&msp, &member(&left, &numbered(serial))).unwrap_err();
        assert!(
            error.ends_with("The certificate has been revoked"),
            "{error}"
        );
    }
    validate(&msp, &member(&left, &numbered(8))).unwrap();
    validate(&msp, &member(&right, &numbered(7))).unwrap();

    // A list that says it is the authority's, signed by another key, is passed over.
    let mut forged = authority_params("left");
    forged.key_identifier_method = KeyIdMethod::PreSpecified(
        Certificate::from_pem(left.pem().as_bytes())
            .unwrap()
            .subject_key_id()
            .unwrap()
            .to_vec(),
    );
    let forger = CertifiedIssuer::self_signed(forged, key()).unwrap();
    revoking.revocation_list = vec![list(&forger, &[7])];
    let msp = read(&revoking).unwrap();
    validate(&msp, &member(&left, &numbered(7))).unwrap();

    // A revoked intermediate makes the definition unacceptable.
    let serial = Certificate::from_pem(left.pem().as_bytes()).unwrap();
    let mut own = authority_params("left");
    own.serial_number = Some(SerialNumber::from(42_u64));
    let left = CertifiedIssuer::signed_by(own, key(), &top).unwrap();
    let mut revoking = definition(&[&top], &[&left]);
    revoking.revocation_list = vec![list(&top, &[42])];
    assert_eq!(
        read(&revoking).unwrap_err(),
        "CA Certificate is not valid, (SN: 42): The certificate has been revoked"
    );
    assert_ne!(serial.serial_decimal(), "42");

    revoking.revocation_list = vec![b"no list".to_vec()];
    assert!(
        read(&revoking)
            .unwrap_err()
            .starts_with("could not parse RevocationList: ")
    );
}
