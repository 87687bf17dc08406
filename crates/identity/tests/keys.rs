//! Keys and signatures as other crates see them.

use proptest::prelude::*;
use quorate_identity::keys::KeyError;
use quorate_identity::{KeyPair, Party, PublicKey, Signature, SignatureError, SignatureScheme};

const SCHEMES: [SignatureScheme; 2] = [SignatureScheme::EcdsaP256, SignatureScheme::Ed25519];

/// The order of P-256.
const ORDER: [u8; 32] = [
    0xff, 0xff, 0xff, 0xff, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
    0xbc, 0xe6, 0xfa, 0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
];

/// `ORDER - s`, big-endian.
fn negated(s: &[u8]) -> Vec<u8> {
    let mut borrow = 0i16;
    let mut out = vec![0; 32];
    for index in (0..32).rev() {
        let mut digit = i16::from(ORDER[index]) - i16::from(s[index]) - borrow;
        borrow = i16::from(digit < 0);
        if digit < 0 {
            digit += 256;
        }
        out[index] = u8::try_from(digit).expect("a byte");
    }
    out
}

#[test]
fn signatures_verify_for_their_message_and_key_only() {
    for scheme in SCHEMES {
        let key = KeyPair::generate(scheme);
        let other = KeyPair::generate(scheme);
        let signature = key.sign(b"message");
        assert_eq!(key.public().verify(b"message", &signature), Ok(()));
        for (public, message) in [(key.public(), b"massage"), (other.public(), b"message")] {
            assert!(matches!(
                public.verify(message, &signature),
                Err(SignatureError::Mismatch { .. })
            ));
        }
        let mut bytes = *signature.as_bytes();
        bytes[10] ^= 1;
        let forged = Signature::from_bytes(&bytes).expect("64 bytes");
        assert!(key.public().verify(b"message", &forged).is_err());
        for constant in [[0; 64], [0xff; 64]] {
            let constant = Signature::from_bytes(&constant).expect("64 bytes");
            assert!(key.public().verify(b"message", &constant).is_err());
        }
    }
    assert_eq!(
        Signature::from_bytes(&[0; 63]),
        Err(SignatureError::WrongLength { length: 63 })
    );
}

#[test]
fn ecdsa_signatures_have_one_form() {
    let key = KeyPair::generate(SignatureScheme::EcdsaP256);
    // Half of all signatures come out high without normalising, so 64 in a row would not pass by luck.
    for round in 0u8..64 {
        let signature = key.sign(&[round]);
        assert_eq!(key.public().verify(&[round], &signature), Ok(()));
        let (r, s) = signature.as_bytes().split_at(32);
        let twin = Signature::from_bytes(&[r, &negated(s)].concat()).expect("64 bytes");
        assert!(matches!(
            key.public().verify(&[round], &twin),
            Err(SignatureError::HighS { .. })
        ));
    }
}

#[test]
fn keys_survive_every_encoding() {
    for scheme in SCHEMES {
        let key = KeyPair::generate(scheme);
        let public = key.public();
        let spki = public.to_spki_der();
        assert_eq!(&PublicKey::from_spki_der(&spki).expect("own DER"), public);
        assert_eq!(
            &public.to_string().parse::<PublicKey>().expect("own text"),
            public
        );
        let wire = borsh::to_vec(public).expect("bytes");
        assert_eq!(wire.len(), 1 + public.bytes().len());
        assert_eq!(wire[0], scheme.code());
        assert_eq!(
            &borsh::from_slice::<PublicKey>(&wire).expect("own bytes"),
            public
        );
        let json = serde_json::to_string(public).expect("JSON");
        assert_eq!(
            &serde_json::from_str::<PublicKey>(&json).expect("own JSON"),
            public
        );
        let restored = KeyPair::from_pkcs8(&key.to_pkcs8()).expect("own PKCS#8");
        assert_eq!(restored.public(), public);
        assert_eq!(public.verify(b"m", &restored.sign(b"m")), Ok(()));
        assert!(KeyPair::from_pkcs8(&key.to_pkcs8()[1..]).is_err());
    }
}

#[test]
fn derived_keys_and_their_names_are_fixed() {
    // RFC 8032, section 7.1, test 1.
    let seed = hex::decode("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
        .expect("hex")
        .try_into()
        .expect("32 bytes");
    let key = KeyPair::ed25519_from_seed(&seed);
    assert_eq!(
        key.public().to_string(),
        "ed25519:d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    );
    assert!(
        key.sign(b"")
            .to_string()
            .starts_with("e5564300c360ac729086e2cc806e828a")
    );
    assert_eq!(
        key.public().to_string_short(),
        "DLDUt29hgqY2AoZXnFD8p7JvxDReXU9JH88426bX7C2mQJ"
    );
    assert_eq!(
        key.public().hash().to_string(),
        "B9709CFEEAB8BC40BC4124BA3EBEFDA725EE72D5445CEAF93F09F8AC89AA668F"
    );
}

#[test]
fn bytes_that_are_no_key_are_refused() {
    let off_curve = [&[2u8][..], &[0xff; 32]].concat();
    assert!(matches!(
        PublicKey::from_bytes(SignatureScheme::EcdsaP256, &off_curve),
        Err(KeyError::InvalidPublicKey { .. })
    ));
    assert!(PublicKey::from_bytes(SignatureScheme::EcdsaP256, &[4; 33]).is_err());
    assert!(PublicKey::from_bytes(SignatureScheme::Ed25519, &[1; 31]).is_err());
    assert!(borsh::from_slice::<PublicKey>(&[9; 34]).is_err());
    for text in ["", "ed25519", "ed25519:", "rsa:00", "p256:zz", "Ed25519:00"] {
        assert_eq!(
            text.parse::<PublicKey>(),
            Err(KeyError::Malformed),
            "{text}"
        );
    }
    // A point of the right form whose y does not belong to its x.
    let mut spki = KeyPair::generate(SignatureScheme::EcdsaP256)
        .public()
        .to_spki_der();
    *spki.last_mut().expect("bytes") ^= 2;
    assert!(PublicKey::from_spki_der(&spki).is_err());
}

#[test]
fn debug_shows_no_secret() {
    let key = KeyPair::ed25519_from_seed(&[7; 32]);
    let shown = format!("{key:?}");
    assert!(
        shown.contains("ed25519:") && !shown.contains("0707"),
        "{shown}"
    );
}

#[test]
fn a_party_has_a_json_form() {
    let party = Party::new(
        "O=PartyA,L=London,C=GB".parse().expect("a name"),
        KeyPair::ed25519_from_seed(&[7; 32]).public().clone(),
    );
    let json = serde_json::to_string(&party).expect("JSON");
    assert_eq!(
        json,
        format!(
            "{{\"name\":\"O=PartyA, L=London, C=GB\",\"owningKey\":\"{}\"}}",
            party.owning_key
        )
    );
    assert_eq!(
        serde_json::from_str::<Party>(&json).expect("own JSON"),
        party
    );
}

proptest! {
    #[test]
    fn nonsense_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..140)) {
        let _ = borsh::from_slice::<PublicKey>(&bytes);
        let _ = borsh::from_slice::<Signature>(&bytes);
        let _ = borsh::from_slice::<Party>(&bytes);
        let _ = PublicKey::from_spki_der(&bytes);
        let _ = KeyPair::from_pkcs8(&bytes);
    }
}
