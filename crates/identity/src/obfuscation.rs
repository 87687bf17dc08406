//! Secrets in configuration files, hidden from those who read files they should not.
//!
//! As with Corda's configuration obfuscator: whoever writes a file marks a secret inside a string as `<encrypt{secret}>`;
//! [`ObfuscationKey::obfuscate`] turns each mark into `<{nonce:ciphertext}>`, and whoever reads the file with the same seed
//! and passphrase gets the secret back from [`ObfuscationKey::reveal`]. This keeps passwords out of backups and listings.
//! It is no protection against somebody who can also read the passphrase from where the node gets it.

use argon2::{Algorithm, Argon2, Params, Version};
use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use zeroize::Zeroizing;

use crate::hash::SecureHash;

/// Begins a secret that is to be obfuscated.
pub const MARK: &str = "<encrypt{";
const OBFUSCATED: &str = "<{";
const END: &str = "}>";

/// Longest secret, in bytes.
pub const MAX_SECRET_BYTES: usize = 16 * 1024;

// As for key stores: below a tenth of a second, and expensive for those who try many.
const KDF_MEMORY_KIB: u32 = 12 * 1024;
const KDF_ITERATIONS: u32 = 3;

/// Keeps ciphertexts of this purpose apart from all others.
const PURPOSE: &[u8] = b"quorate configuration obfuscation 1";

/// Why a text cannot be obfuscated or revealed. The texts never hold the secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ObfuscationError {
    /// A mark without an end.
    #[error("line {line}: `{MARK}` has no `{END}` on the same line")]
    Unended {
        /// From 1.
        line: usize,
    },
    /// A secret of this length is more than a password.
    #[error("line {line}: the secret is longer than {MAX_SECRET_BYTES} bytes")]
    TooLong {
        /// From 1.
        line: usize,
    },
    /// What stands between the marks was not made by an obfuscator.
    #[error("`<{{…}}>` does not hold what the obfuscator writes; obfuscate the value again")]
    Malformed,
    /// Other seed, other passphrase, or a damaged text.
    #[error(
        "the seed or passphrase is not the one that this value was obfuscated with, or the value is damaged"
    )]
    WrongKey,
}

/// What seed and passphrase give.
pub struct ObfuscationKey(RandomizedNonceKey);

impl std::fmt::Debug for ObfuscationKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ObfuscationKey")
    }
}

impl ObfuscationKey {
    /// The key of a passphrase; the seed makes its salt.
    #[must_use]
    pub fn derive(seed: &str, passphrase: &str) -> Self {
        let salt = SecureHash::of_parts(&[PURPOSE, seed.as_bytes()]);
        let params = Params::new(KDF_MEMORY_KIB, KDF_ITERATIONS, 1, None)
            .expect("constants that argon2 accepts");
        let mut key = Zeroizing::new([0; 32]);
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into(passphrase.as_bytes(), salt.as_bytes(), &mut *key)
            .expect("lengths that argon2 accepts");
        Self(RandomizedNonceKey::new(&AES_256_GCM, &*key).expect("32 bytes are a key"))
    }

    /// Replaces every mark in the text of a configuration file; the number of them. Everything else stays as it is,
    /// comments and layout included.
    ///
    /// # Errors
    /// [`ObfuscationError::Unended`], [`ObfuscationError::TooLong`].
    pub fn obfuscate(&self, text: &str) -> Result<(String, usize), ObfuscationError> {
        let mut out = String::with_capacity(text.len());
        let mut count = 0;
        for (index, line) in text.split_inclusive('\n').enumerate() {
            let number = index + 1;
            let mut rest = line;
            while let Some(begin) = rest.find(MARK) {
                let (before, marked) = rest.split_at(begin);
                let marked = &marked[MARK.len()..];
                let end = marked
                    .find(END)
                    .ok_or(ObfuscationError::Unended { line: number })?;
                let secret = &marked[..end];
                if secret.len() > MAX_SECRET_BYTES {
                    return Err(ObfuscationError::TooLong { line: number });
                }
                out.push_str(before);
                out.push_str(&self.hide(secret));
                count += 1;
                rest = &marked[end + END.len()..];
            }
            out.push_str(rest);
        }
        Ok((out, count))
    }

    fn hide(&self, secret: &str) -> String {
        let mut bytes = Zeroizing::new(secret.as_bytes().to_vec());
        let nonce = self
            .0
            .seal_in_place_append_tag(Aad::from(PURPOSE), &mut *bytes)
            .expect("AES-GCM seals a short text");
        format!(
            "{OBFUSCATED}{}:{}{END}",
            BASE64.encode(nonce.as_ref()),
            BASE64.encode(&*bytes)
        )
    }

    /// The value of a string with everything obfuscated in it revealed.
    ///
    /// # Errors
    /// [`ObfuscationError::Malformed`], [`ObfuscationError::WrongKey`].
    pub fn reveal(&self, value: &str) -> Result<Zeroizing<String>, ObfuscationError> {
        let mut out = Zeroizing::new(String::new());
        let mut rest = value;
        while let Some(begin) = rest.find(OBFUSCATED) {
            let (before, hidden) = rest.split_at(begin);
            let hidden = &hidden[OBFUSCATED.len()..];
            let end = hidden.find(END).ok_or(ObfuscationError::Malformed)?;
            out.push_str(before);
            out.push_str(&self.open(&hidden[..end])?);
            rest = &hidden[end + END.len()..];
        }
        out.push_str(rest);
        Ok(out)
    }

    fn open(&self, hidden: &str) -> Result<Zeroizing<String>, ObfuscationError> {
        let malformed = |_| ObfuscationError::Malformed;
        let (nonce, sealed) = hidden.split_once(':').ok_or(ObfuscationError::Malformed)?;
        let nonce = BASE64.decode(nonce).map_err(malformed)?;
        let nonce: [u8; NONCE_LEN] = nonce.try_into().map_err(|_| ObfuscationError::Malformed)?;
        let mut sealed = Zeroizing::new(BASE64.decode(sealed).map_err(malformed)?);
        let opened = self
            .0
            .open_in_place(Nonce::from(&nonce), Aad::from(PURPOSE), &mut sealed)
            .map_err(|_| ObfuscationError::WrongKey)?;
        let text = std::str::from_utf8(opened).map_err(|_| ObfuscationError::WrongKey)?;
        Ok(Zeroizing::new(text.to_owned()))
    }
}

/// Whether the value of a string holds something obfuscated.
#[must_use]
pub fn is_obfuscated(value: &str) -> bool {
    value
        .split_once(OBFUSCATED)
        .is_some_and(|(_, rest)| rest.contains(END))
}

/// Whether the value of a string holds a mark, so that its secret was never hidden.
#[must_use]
pub fn is_marked(value: &str) -> bool {
    value.contains(MARK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_marked_is_hidden_and_revealed_and_nothing_else_changes() {
        let key = ObfuscationKey::derive("seed", "passphrase");
        let text =
            "// a comment\na = \"x;<encrypt{p{a}s$s}>\" # <{\nb = \"<encrypt{}>-<encrypt{ü}>\"";
        let (hidden, count) = key.obfuscate(text).expect("well formed");
        assert_eq!(count, 3);
        assert!(
            !hidden.contains("p{a}s$s") && !is_marked(&hidden),
            "{hidden}"
        );
        assert!(hidden.starts_with("// a comment\na = \"x;<{"), "{hidden}");
        let lines: Vec<_> = hidden.lines().collect();
        let value = |line: &str| line.split('"').nth(1).expect("quoted").to_owned();
        assert_eq!(
            key.reveal(&value(lines[1])).expect("ours").as_str(),
            "x;p{a}s$s"
        );
        assert_eq!(key.reveal(&value(lines[2])).expect("ours").as_str(), "-ü");

        // The same secret looks different each time, and another passphrase or seed opens nothing.
        assert_ne!(key.obfuscate(text).expect("well formed").0, hidden);
        for other in [("seed", "Passphrase"), ("Seed", "passphrase")] {
            let other = ObfuscationKey::derive(other.0, other.1);
            assert_eq!(
                other.reveal(&value(lines[1])),
                Err(ObfuscationError::WrongKey)
            );
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let key = ObfuscationKey::derive("", "");
        assert_eq!(
            key.obfuscate("a = 1\nb = \"<encrypt{x}\"\n}>"),
            Err(ObfuscationError::Unended { line: 2 })
        );
        for wrong in ["<{}>", "<{a:b}>", "<{AAAA:AAAA}>", "<{x}>", "<{:}>"] {
            assert_eq!(
                key.reveal(wrong),
                Err(ObfuscationError::Malformed),
                "{wrong}"
            );
        }
        let nothing = format!("<{{{}:}}>", BASE64.encode([0; NONCE_LEN]));
        assert_eq!(key.reveal(&nothing), Err(ObfuscationError::WrongKey));
    }
}
