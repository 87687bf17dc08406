//! Keys and signatures as other crates see them.

use quorate_identity::*;
use std::time::Instant;

#[test]
fn speed() {
    for s in [SignatureScheme::EcdsaP256, SignatureScheme::Ed25519] {
        let k = KeyPair::generate(s);
        let b = borsh::to_vec(k.public()).unwrap();
        let t = Instant::now();
        for _ in 0..2000 {
            let _: PublicKey = borsh::from_slice(&b).unwrap();
        }
        println!("{s} decode {:?}", t.elapsed() / 2000);
        let sig = k.sign(b"hello");
        let t = Instant::now();
        for _ in 0..2000 {
            k.public().verify(b"hello", &sig).unwrap();
        }
        println!("{s} verify {:?}", t.elapsed() / 2000);
        assert_eq!(
            &PublicKey::from_spki_der(&k.public().to_spki_der()).unwrap(),
            k.public()
        );
    }
}
