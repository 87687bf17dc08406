//! Keys in SoftHSM: made, listed, signing, away and back.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::time::{Duration, Instant};

use quorate_hsm::{Hsm, HsmError, Options};
use quorate_identity::{KeyPair, SignatureScheme, SigningError};
use quorate_runtime::Secret;
use quorate_testkit::softhsm::{PIN, SoftHsm, Tokens, library};

const TOKEN: &str = "quorate test";

fn options() -> Options {
    Options {
        library: library().unwrap(),
        token: TOKEN.to_owned(),
        pin: Secret::new(PIN),
        sessions: 4,
        timeout: Duration::from_secs(10),
    }
}

/// Runs `test` in a process with a token; `name` is that of the calling test.
fn with_token(name: &str, test: impl FnOnce(Tokens)) {
    match Tokens::of_this_process() {
        Some(tokens) => test(tokens),
        None => {
            let hsm = SoftHsm::new().unwrap();
            hsm.add_token(TOKEN).unwrap();
            hsm.in_own_process(name).unwrap();
        }
    }
}

#[test]
fn keys_are_made_listed_and_sign() {
    with_token("keys_are_made_listed_and_sign", |_| {
        let hsm = Hsm::open(&options()).unwrap();
        assert!(hsm.keys().unwrap().is_empty());
        for (label, scheme) in [
            ("identity", SignatureScheme::EcdsaP256),
            ("second", SignatureScheme::Ed25519),
        ] {
            let public = hsm.generate(label, scheme).unwrap();
            assert_eq!(hsm.public_key(label).unwrap(), Some(public.clone()));
            let key = hsm.signing_key(label, &public).unwrap();
            assert!(key.is_remote() && key.pair().is_none());
            // Half of all ECDSA signatures come with the larger S.
            for number in 0..16_u8 {
                let signature = key.sign(&[number; 100]).unwrap();
                public.verify(&[number; 100], &signature).unwrap();
            }
            let again = hsm.generate(label, scheme).unwrap_err();
            assert!(matches!(again, HsmError::LabelTaken { .. }), "{again}");
        }
        let labels: Vec<_> = hsm
            .keys()
            .unwrap()
            .into_iter()
            .map(|key| key.label)
            .collect();
        assert_eq!(labels, ["identity", "second"]);
        let other = KeyPair::generate(SignatureScheme::EcdsaP256);
        let error = hsm.signing_key("identity", other.public()).unwrap_err();
        assert!(matches!(error, HsmError::OtherKey { .. }), "{error}");
        let error = hsm.signing_key("third", other.public()).unwrap_err();
        assert!(matches!(error, HsmError::KeyMissing { .. }), "{error}");
        assert!(!error.is_transient());
    });
}

#[test]
fn what_is_configured_wrongly_is_named() {
    with_token("what_is_configured_wrongly_is_named", |_| {
        let mut wrong = options();
        wrong.token = "elsewhere".to_owned();
        let text = Hsm::open(&wrong).unwrap_err().to_string();
        assert!(text.contains("elsewhere") && text.contains(TOKEN), "{text}");

        wrong = options();
        wrong.library = "/nowhere/libpkcs11.so".into();
        let error = Hsm::open(&wrong).unwrap_err();
        assert!(matches!(error, HsmError::Library { .. }), "{error}");

        wrong = options();
        wrong.pin = Secret::new("not-the-pin");
        let error = Hsm::open(&wrong).unwrap_err();
        assert!(matches!(error, HsmError::PinRefused { .. }), "{error}");
        assert!(!error.is_transient());
        assert!(!format!("{error} {error:?} {wrong:?}").contains("not-the-pin"));
    });
}

#[test]
fn a_token_that_went_away_and_came_back_signs_again() {
    with_token(
        "a_token_that_went_away_and_came_back_signs_again",
        |tokens| {
            let hsm = Hsm::open(&options()).unwrap();
            let public = hsm
                .generate("identity", SignatureScheme::EcdsaP256)
                .unwrap();
            let key = hsm.signing_key("identity", &public).unwrap();
            key.sign(b"before").unwrap();

            tokens.take_away().unwrap();
            let began = Instant::now();
            let error = key.sign(b"meanwhile").unwrap_err();
            assert!(error.is_transient(), "{error}");
            assert!(matches!(error, SigningError::Unavailable { .. }));
            assert!(began.elapsed() < Duration::from_secs(11));

            tokens.bring_back().unwrap();
            let signature = key.sign(b"after").unwrap();
            public.verify(b"after", &signature).unwrap();
        },
    );
}

#[test]
fn many_sign_at_a_time_while_the_token_comes_and_goes() {
    with_token(
        "many_sign_at_a_time_while_the_token_comes_and_goes",
        |tokens| {
            let hsm = Hsm::open(&options()).unwrap();
            let public = hsm
                .generate("identity", SignatureScheme::EcdsaP256)
                .unwrap();
            let key = hsm.signing_key("identity", &public).unwrap();
            std::thread::scope(|scope| {
                for thread in 0..8_u8 {
                    let (key, public) = (key.clone(), &public);
                    scope.spawn(move || {
                        let deadline = Instant::now() + Duration::from_secs(30);
                        let mut signed = 0;
                        while signed < 300 {
                            assert!(Instant::now() < deadline, "only {signed} signatures");
                            match key.sign(&[thread, 1]) {
                                Ok(signature) => {
                                    public.verify(&[thread, 1], &signature).unwrap();
                                    signed += 1;
                                }
                                Err(error) => assert!(error.is_transient(), "{error}"),
                            }
                        }
                    });
                }
                for _ in 0..3 {
                    std::thread::sleep(Duration::from_millis(50));
                    tokens.take_away().unwrap();
                    std::thread::sleep(Duration::from_millis(50));
                    tokens.bring_back().unwrap();
                }
            });
        },
    );
}
