//! What is asked of a token: keys by label, signatures, new keys.

use std::collections::BTreeMap;

use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::eddsa::{EddsaParams, EddsaSignatureScheme};
use cryptoki::object::{Attribute, AttributeType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use quorate_identity::{PublicKey, SecureHash, SignatureScheme};

use crate::{HsmError, StoredKey};

/// The most keys that are listed.
const MAX_LISTED: usize = 1_000;

/// The object identifier of P-256 in DER.
const P256_PARAMETERS: [u8; 10] = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];

/// The name of Ed25519's curve as PKCS#11 wants it: a printable string.
const ED25519_PARAMETERS: [u8; 14] = *b"\x13\x0cedwards25519";

/// Its object identifier, which some devices show instead.
const ED25519_IDENTIFIER: [u8; 5] = [0x06, 0x03, 0x2b, 0x65, 0x70];

/// The tag of an octet string, in which a public point comes packed.
const OCTET_STRING: u8 = 0x04;

/// A session that is logged in to a token.
#[derive(Debug)]
pub(crate) struct Connection {
    session: Session,
    pub(crate) token: String,
    /// Of which start of the library.
    pub(crate) generation: u64,
    /// Private keys that were looked up.
    handles: BTreeMap<String, ObjectHandle>,
}

impl Connection {
    pub(crate) const fn new(session: Session, token: String, generation: u64) -> Self {
        Self {
            session,
            token,
            generation,
            handles: BTreeMap::new(),
        }
    }

    /// Signs with the private key of a label: 64 bytes.
    pub(crate) fn sign(
        &mut self,
        label: &str,
        scheme: SignatureScheme,
        message: &[u8],
    ) -> Result<Vec<u8>, HsmError> {
        let key = self.private_key(label)?;
        let signed = match scheme {
            SignatureScheme::EcdsaP256 => {
                let digest = SecureHash::of(message);
                self.session.sign(&Mechanism::Ecdsa, key, digest.as_bytes())
            }
            SignatureScheme::Ed25519 => {
                let pure = EddsaParams::new(EddsaSignatureScheme::Pure);
                self.session.sign(&Mechanism::Eddsa(pure), key, message)
            }
        };
        Ok(signed?)
    }

    fn private_key(&mut self, label: &str) -> Result<ObjectHandle, HsmError> {
        if let Some(handle) = self.handles.get(label) {
            return Ok(*handle);
        }
        let handle =
            self.one(ObjectClass::PRIVATE_KEY, label)?
                .ok_or_else(|| HsmError::KeyMissing {
                    token: self.token.clone(),
                    label: label.to_owned(),
                })?;
        self.handles.insert(label.to_owned(), handle);
        Ok(handle)
    }

    fn find(&self, class: ObjectClass, label: &str) -> Result<Vec<ObjectHandle>, HsmError> {
        let template = [
            Attribute::Class(class),
            Attribute::Label(label.as_bytes().to_vec()),
        ];
        Ok(self.session.find_objects(&template)?)
    }

    fn one(&self, class: ObjectClass, label: &str) -> Result<Option<ObjectHandle>, HsmError> {
        match *self.find(class, label)? {
            [] => Ok(None),
            [handle] => Ok(Some(handle)),
            _ => Err(HsmError::Ambiguous {
                token: self.token.clone(),
                label: label.to_owned(),
            }),
        }
    }

    /// Whether any key has this label.
    pub(crate) fn is_taken(&self, label: &str) -> Result<bool, HsmError> {
        let private = self.find(ObjectClass::PRIVATE_KEY, label)?;
        let public = self.find(ObjectClass::PUBLIC_KEY, label)?;
        Ok(!private.is_empty() || !public.is_empty())
    }

    /// The public half of the key pair of a label. A public key alone is none.
    pub(crate) fn public_key(&self, label: &str) -> Result<Option<PublicKey>, HsmError> {
        if self.one(ObjectClass::PRIVATE_KEY, label)?.is_none() {
            return Ok(None);
        }
        let Some(handle) = self.one(ObjectClass::PUBLIC_KEY, label)? else {
            return Ok(None);
        };
        match self.read(handle)? {
            Some(public) => Ok(Some(public)),
            None => Err(HsmError::Kind {
                token: self.token.clone(),
                label: label.to_owned(),
            }),
        }
    }

    /// The key pairs of our schemes, by label.
    pub(crate) fn keys(&self) -> Result<Vec<StoredKey>, HsmError> {
        let template = [Attribute::Class(ObjectClass::PUBLIC_KEY)];
        let mut keys = Vec::new();
        for handle in self
            .session
            .find_objects(&template)?
            .into_iter()
            .take(MAX_LISTED)
        {
            let attributes = self
                .session
                .get_attributes(handle, &[AttributeType::Label])?;
            let Some(Attribute::Label(label)) = attributes.into_iter().next() else {
                continue;
            };
            let label = String::from_utf8_lossy(&label).into_owned();
            if self.find(ObjectClass::PRIVATE_KEY, &label)?.is_empty() {
                continue;
            }
            if let Some(public) = self.read(handle)? {
                keys.push(StoredKey { label, public });
            }
        }
        keys.sort_by(|one, other| one.label.cmp(&other.label));
        Ok(keys)
    }

    /// A public key, if it is one of ours.
    fn read(&self, handle: ObjectHandle) -> Result<Option<PublicKey>, HsmError> {
        let wanted = [AttributeType::EcParams, AttributeType::EcPoint];
        let (mut parameters, mut point) = (Vec::new(), Vec::new());
        for attribute in self.session.get_attributes(handle, &wanted)? {
            match attribute {
                Attribute::EcParams(bytes) => parameters = bytes,
                Attribute::EcPoint(bytes) => point = bytes,
                _ => {}
            }
        }
        // Some devices leave the packing away. The lengths tell, the first byte does not: a point begins with the same.
        let packed = |length: usize| {
            let header = point.len() == length + 2 && point[0] == OCTET_STRING;
            if header && usize::from(point[1]) == length {
                &point[2..]
            } else {
                &point[..]
            }
        };
        let public = if parameters == P256_PARAMETERS {
            PublicKey::from_uncompressed_point(packed(65)).ok()
        } else if parameters == ED25519_PARAMETERS || parameters == ED25519_IDENTIFIER {
            PublicKey::from_bytes(SignatureScheme::Ed25519, packed(32)).ok()
        } else {
            None
        };
        Ok(public)
    }

    /// Makes a key pair under a label that is not taken.
    pub(crate) fn generate(
        &self,
        label: &str,
        scheme: SignatureScheme,
    ) -> Result<PublicKey, HsmError> {
        let (mechanism, parameters) = match scheme {
            SignatureScheme::EcdsaP256 => (Mechanism::EccKeyPairGen, P256_PARAMETERS.to_vec()),
            SignatureScheme::Ed25519 => {
                (Mechanism::EccEdwardsKeyPairGen, ED25519_PARAMETERS.to_vec())
            }
        };
        // Tools show the two halves of a pair by their common identifier.
        let identifier = SecureHash::of(label.as_bytes()).as_bytes()[..16].to_vec();
        let public = [
            Attribute::Token(true),
            Attribute::Private(false),
            Attribute::Verify(true),
            Attribute::EcParams(parameters),
            Attribute::Label(label.as_bytes().to_vec()),
            Attribute::Id(identifier.clone()),
        ];
        let private = [
            Attribute::Token(true),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Sign(true),
            Attribute::Label(label.as_bytes().to_vec()),
            Attribute::Id(identifier),
        ];
        let (public, _) = self
            .session
            .generate_key_pair(&mechanism, &public, &private)?;
        self.read(public)?.ok_or_else(|| HsmError::Kind {
            token: self.token.clone(),
            label: label.to_owned(),
        })
    }
}
