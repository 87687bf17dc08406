//! The hardware security modules of a node as the keeper of its keys.
//!
//! Certificates stay in the certificates folder, private keys are in the module, found by their labels. A key that is
//! there under the label is used and never replaced; what is missing is made in the module. Start reading at `Devices`;
//! [`list`] and [`generate`] are what `quorate node hsm` does.

use quorate_hsm::{Hsm, HsmError, StoredKey};
use quorate_identity::node_keys::{KeyKeeper, KeyPurpose};
use quorate_identity::{KeyPair, PublicKey, RemoteError, SignatureScheme, SigningKey};

use crate::config::{Aliases, CryptoServices, Device};

/// The modules that a configuration names, logged in to. Without any, keys are in files.
pub(crate) struct Devices {
    identity: Option<(Hsm, SignatureScheme)>,
    tls: Option<Hsm>,
    aliases: Aliases,
}

impl Devices {
    /// Logs in to the modules of a configuration. Blocks.
    pub(crate) fn open(services: Option<&CryptoServices>) -> Result<Self, HsmError> {
        let Some(services) = services else {
            return Ok(Self {
                identity: None,
                tls: None,
                aliases: Aliases::default(),
            });
        };
        let identity = match &services.identity {
            Some(Device { options, scheme }) => Some((Hsm::open(options)?, *scheme)),
            None => None,
        };
        let tls = match &services.tls {
            Some(device) => Some(Hsm::open(&device.options)?),
            None => None,
        };
        Ok(Self {
            identity,
            tls,
            aliases: services.aliases.clone(),
        })
    }

    fn of(&self, purpose: KeyPurpose) -> Option<&Hsm> {
        match purpose {
            KeyPurpose::Tls => self.tls.as_ref(),
            _ => self.identity.as_ref().map(|(hsm, _)| hsm),
        }
    }

    /// The key for a purpose: that under its label, or one that is made now.
    fn ensure(&self, purpose: KeyPurpose) -> Option<Result<(PublicKey, bool), HsmError>> {
        let hsm = self.of(purpose)?;
        let scheme = match (purpose, &self.identity) {
            (KeyPurpose::Tls, _) | (_, None) => SignatureScheme::EcdsaP256,
            (_, Some((_, scheme))) => *scheme,
        };
        let alias = self.aliases.of(purpose);
        Some(match hsm.public_key(alias) {
            Ok(Some(public)) => Ok((public, false)),
            Ok(None) => hsm.generate(alias, scheme).map(|public| (public, true)),
            Err(error) => Err(error),
        })
    }
}

impl KeyKeeper for Devices {
    fn keeps(&self, purpose: KeyPurpose) -> bool {
        self.of(purpose).is_some()
    }

    fn make(
        &self,
        purpose: KeyPurpose,
        scheme: SignatureScheme,
    ) -> Result<SigningKey, RemoteError> {
        let Some(ensured) = self.ensure(purpose) else {
            return Ok(KeyPair::generate(scheme).into());
        };
        let (public, made) = ensured?;
        let alias = self.aliases.of(purpose);
        tracing::info!(
            alias,
            key = public.to_string_short(),
            made,
            "a key of the hardware security module is used"
        );
        self.find(purpose, &public)
    }

    fn find(&self, purpose: KeyPurpose, public: &PublicKey) -> Result<SigningKey, RemoteError> {
        let hsm = self.of(purpose).ok_or_else(|| RemoteError {
            reason: "no hardware security module is configured for it".to_owned(),
            transient: false,
        })?;
        Ok(hsm.signing_key(self.aliases.of(purpose), public)?)
    }
}

/// A key that a node has, or could have, in a module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedKey {
    /// The label of the token.
    pub token: String,
    /// The key.
    pub key: StoredKey,
    /// What this node uses it for, if it does.
    pub purpose: Option<KeyPurpose>,
    /// Whether it was made just now.
    pub made: bool,
}

/// All keys in the tokens that a configuration names. Blocks.
///
/// # Errors
/// A module does not answer.
pub fn list(services: &CryptoServices) -> Result<Vec<ListedKey>, HsmError> {
    let devices = Devices::open(Some(services))?;
    let mut listed: Vec<ListedKey> = Vec::new();
    let identity = devices.identity.as_ref().map(|(hsm, _)| hsm);
    for hsm in identity.into_iter().chain(&devices.tls) {
        if listed.iter().any(|known| known.token == hsm.token()) {
            continue;
        }
        for key in hsm.keys()? {
            let purpose = KeyPurpose::ALL.into_iter().find(|purpose| {
                let here = devices.of(*purpose).map(Hsm::token) == Some(hsm.token());
                here && devices.aliases.of(*purpose) == key.label
            });
            listed.push(ListedKey {
                token: hsm.token().to_owned(),
                key,
                purpose,
                made: false,
            });
        }
    }
    Ok(listed)
}

/// Makes the keys that a node lacks in its modules; the notary service's only if `with_service`. Blocks.
///
/// # Errors
/// A module does not answer, or makes no such keys.
pub fn generate(services: &CryptoServices, with_service: bool) -> Result<Vec<ListedKey>, HsmError> {
    let devices = Devices::open(Some(services))?;
    let mut keys = Vec::new();
    for purpose in KeyPurpose::ALL {
        if purpose == KeyPurpose::NotaryService && !with_service {
            continue;
        }
        let (Some(hsm), Some(ensured)) = (devices.of(purpose), devices.ensure(purpose)) else {
            continue;
        };
        let (public, made) = ensured?;
        keys.push(ListedKey {
            token: hsm.token().to_owned(),
            key: StoredKey {
                label: devices.aliases.of(purpose).to_owned(),
                public,
            },
            purpose: Some(purpose),
            made,
        });
    }
    Ok(keys)
}
