//! X.509 by Go's rules: keys and hashes of all kinds, and chains that hold or do not.

#![allow(clippy::unwrap_used, clippy::panic)]

use aws_lc_rs::digest::{SHA256, SHA512, digest};
use p256::ecdsa::signature::hazmat::PrehashSigner as _;
use quorate_identity::UnixTime;
use quorate_identity::x509::{
    Certificate, ChainOptions, Curve, ExtendedUsage, KeyKind, Pool, PublicKey, SignatureAlgorithm,
    SigningKey, X509Error, chains, pem,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ECDSA_P521_SHA512, PKCS_ED25519,
    PKCS_RSA_SHA256, date_time_ymd,
};

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(2024, 1, 1);
    params.not_after = date_time_ymd(2034, 1, 1);
    params
}

fn authority(name: &str, key: KeyPair) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = params(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, key).unwrap()
}

fn read(pem: &str) -> Certificate {
    Certificate::from_pem(pem.as_bytes()).unwrap()
}

fn pool(certificates: &[&Certificate]) -> Pool {
    certificates.iter().copied().cloned().collect()
}

/// 2025-01-01T00:00:00Z
const NOW: UnixTime = UnixTime(1_735_689_600);

#[test]
fn authorities_with_keys_of_all_kinds_certify() {
    for (algorithm, kind) in [
        (&PKCS_ECDSA_P256_SHA256, KeyKind::Ecdsa(Curve::P256)),
        (&PKCS_ECDSA_P384_SHA384, KeyKind::Ecdsa(Curve::P384)),
        (&PKCS_ECDSA_P521_SHA512, KeyKind::Ecdsa(Curve::P521)),
        (&PKCS_ED25519, KeyKind::Ed25519),
        (&PKCS_RSA_SHA256, KeyKind::Rsa),
    ] {
        let issuer = authority("root", KeyPair::generate_for(algorithm).unwrap());
        let root = read(&issuer.pem());
        assert_eq!(root.public_key().kind(), kind);
        let leaf = params("leaf")
            .signed_by(&KeyPair::generate().unwrap(), &issuer)
            .unwrap();
        let leaf = read(&leaf.pem());
        leaf.verify_signed_by(&root).unwrap();
        let stranger = authority("root", KeyPair::generate_for(algorithm).unwrap());
        let stranger = read(&stranger.pem());
        assert!(matches!(
            leaf.verify_signed_by(&stranger),
            Err(X509Error::SignatureMismatch(_))
        ));
        let none = Pool::new();
        let options = |roots| ChainOptions {
            roots,
            intermediates: &none,
            at: NOW,
            usage: ExtendedUsage::Any,
        };
        let both = pool(&[&stranger, &root]);
        assert_eq!(
            chains(&leaf, &options(&both)).unwrap(),
            [[leaf.clone(), root.clone()]]
        );
        assert_eq!(chains(&root, &options(&both)).unwrap(), [[root]]);
        let error = chains(&leaf, &options(&pool(&[&stranger]))).unwrap_err();
        assert!(
            error.to_string().starts_with(
                "x509: certificate signed by unknown authority (possibly because of \"x509: "
            ),
            "{error}"
        );
    }
}

#[test]
fn every_curve_signs_low_and_verifies() {
    for algorithm in [
        &PKCS_ECDSA_P256_SHA256,
        &PKCS_ECDSA_P384_SHA384,
        &PKCS_ECDSA_P521_SHA512,
    ] {
        let pair = KeyPair::generate_for(algorithm).unwrap();
        let key = SigningKey::from_pem(pair.serialize_pem().as_bytes()).unwrap();
        let public = PublicKey::from_spki_der(key.public_key().spki_der()).unwrap();
        for number in 0..32_u8 {
            let message = [number; 50];
            let signature = key.sign(&message);
            public.verify(&message, &signature).unwrap();
            assert_eq!(public.lowered(&signature).unwrap(), None);
            assert_eq!(
                public.verify(&[0xff], &signature),
                Err(X509Error::SignatureMismatch("ECDSA"))
            );
        }
    }
}

#[test]
fn the_larger_s_is_refused_and_can_be_lowered() {
    let key = SigningKey::generate();
    let low = key.sign(b"message");
    let (r, s) = p256::ecdsa::Signature::from_der(&low)
        .unwrap()
        .split_scalars();
    let high = p256::ecdsa::Signature::from_scalars(r.to_bytes(), (-s).to_bytes()).unwrap();
    let high = high.to_der().as_bytes().to_vec();
    assert_eq!(
        key.public_key().verify(b"message", &high),
        Err(X509Error::HighS)
    );
    assert_eq!(key.public_key().lowered(&high).unwrap(), Some(low));
}

#[test]
fn a_longer_hash_is_cut_to_the_curve() {
    let key = SigningKey::generate();
    let secret = p256::ecdsa::SigningKey::from_slice(&key.secret_number()).unwrap();
    let hash = digest(&SHA512, b"message");
    let signature: p256::ecdsa::Signature = secret.sign_prehash(hash.as_ref()).unwrap();
    let signature = signature.to_der();
    let check = |algorithm, message: &[u8]| {
        key.public_key()
            .verify_signed(algorithm, message, signature.as_bytes())
    };
    check(SignatureAlgorithm::EcdsaSha512, b"message").unwrap();
    check(SignatureAlgorithm::EcdsaSha512, b"other").unwrap_err();
    check(SignatureAlgorithm::EcdsaSha256, b"message").unwrap_err();
    assert!(matches!(
        check(SignatureAlgorithm::EcdsaSha1, b"message"),
        Err(X509Error::InsecureAlgorithm(_))
    ));
    assert_eq!(
        check(SignatureAlgorithm::RsaSha256, b"message"),
        Err(X509Error::UnsupportedAlgorithm)
    );
    let hash: [u8; 32] = digest(&SHA256, b"message").as_ref().try_into().unwrap();
    key.public_key()
        .verify_hash(&hash, &key.sign(b"message"))
        .unwrap();
}

#[test]
fn usage_and_time_are_judged() {
    let issuer = authority("root", KeyPair::generate().unwrap());
    let root = pool(&[&read(&issuer.pem())]);
    let mut params = params("client");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let leaf = params
        .signed_by(&KeyPair::generate().unwrap(), &issuer)
        .unwrap();
    let leaf = read(&leaf.pem());
    let judge = |at, usage| {
        let options = ChainOptions {
            roots: &root,
            intermediates: &Pool::new(),
            at,
            usage,
        };
        chains(&leaf, &options).map(|found| found.len())
    };
    assert_eq!(judge(NOW, ExtendedUsage::Client), Ok(1));
    assert_eq!(judge(NOW, ExtendedUsage::Any), Ok(1));
    assert_eq!(
        judge(NOW, ExtendedUsage::Server),
        Err(X509Error::IncompatibleUsage)
    );
    assert_eq!(
        judge(UnixTime(0), ExtendedUsage::Any)
            .unwrap_err()
            .to_string(),
        "x509: certificate has expired or is not yet valid: current time 1970-01-01T00:00:00Z is before 2024-01-01T00:00:00Z"
    );
    let late = leaf.not_after().plus_seconds(1);
    assert_eq!(judge(leaf.not_after(), ExtendedUsage::Any), Ok(1));
    assert!(judge(late, ExtendedUsage::Any).is_err());
}

/// Many authorities of one name, each with the others' signature: a search must end.
#[test]
fn a_search_for_chains_has_an_end() {
    let key = || KeyPair::generate().unwrap();
    let mut intermediates = Pool::new();
    let issuers: Vec<_> = (0..8).map(|_| authority("maze", key())).collect();
    for issuer in &issuers {
        for other in &issuers {
            let mut params = params("maze");
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            intermediates.add(read(&params.signed_by(other.key(), issuer).unwrap().pem()));
        }
    }
    let leaf = params("leaf").signed_by(&key(), &issuers[0]).unwrap();
    let options = ChainOptions {
        roots: &Pool::new(),
        intermediates: &intermediates,
        at: NOW,
        usage: ExtendedUsage::Any,
    };
    assert_eq!(
        chains(&read(&leaf.pem()), &options),
        Err(X509Error::SignatureCheckLimit)
    );
}

#[test]
fn a_certificate_has_one_form() {
    let issuer = authority("root", KeyPair::generate().unwrap());
    let der = pem::first(issuer.pem().as_bytes()).unwrap().0.bytes;
    let certificate = Certificate::from_der(&der).unwrap();
    let longer = [der.as_slice(), &[0]].concat();
    assert_eq!(Certificate::from_der(&longer), Err(X509Error::TrailingData));
    // The same length, written with a superfluous byte.
    let mut padded = vec![0x30, 0x83, 0x00];
    padded.extend_from_slice(&der[2..]);
    assert!(Certificate::from_der(&padded).is_err());
    let again = certificate.with_signature(certificate.signature()).unwrap();
    assert_eq!(again, certificate);
    assert_eq!(again.fingerprint(), certificate.fingerprint());
}

#[test]
fn private_keys_of_no_use_say_why() {
    let read = |text: &str| SigningKey::from_pem(text.as_bytes()).unwrap_err();
    assert_eq!(read("nothing"), X509Error::NoPem);
    assert_eq!(
        read(&pem::encode("ENCRYPTED PRIVATE KEY", b"secret")),
        X509Error::EncryptedPrivateKey
    );
    let ed25519 = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    assert_eq!(
        read(&ed25519.serialize_pem()),
        X509Error::UnsupportedPrivateKey
    );
}
