//! Hardware security modules: private keys that are made in a device, sign there, and never leave it.
//!
//! The device is spoken to through the PKCS#11 library of its manufacturer. [`Hsm::open`] logs in; [`Hsm::generate`] makes
//! a key under a label, [`Hsm::keys`] lists what is there, and [`Hsm::signing_key`] gives a key to the rest of the program
//! as a [`SigningKey`], behind which this crate disappears.
//!
//! A device can hang, restart, or be gone for an hour. Calls into the library therefore run on threads of their own, and
//! whoever asks waits for [`Options::timeout`] and no longer. A call that fails for no lasting reason is tried again with
//! a new session, then with the library started anew (`library`); if that does not help either, the error is
//! [transient](HsmError::is_transient), and the next request begins afresh: there is nothing to restart when the device is
//! back. A PIN that was refused is not tried a second time, because devices lock themselves after a few wrong ones.
//!
//! The PIN is in no message and no `Debug` output.

mod error;
mod library;
mod token;
mod workers;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use quorate_identity::{PublicKey, RemoteError, RemoteSigner, SignatureScheme, SigningKey};
use quorate_runtime::Secret;

pub use error::HsmError;
use library::Access;
use workers::Workers;

/// How long one request to the device may take if nothing else is configured (`cryptoServiceTimeout`).
pub const TIMEOUT: Duration = Duration::from_secs(10);

/// Requests that are under way in the device at a time, each in a session of its own.
pub const SESSIONS: usize = 4;

/// The most sessions that can be configured.
pub const MAX_SESSIONS: usize = 64;

/// Which device, and how to talk to it.
#[derive(Debug, Clone)]
pub struct Options {
    /// The PKCS#11 library of the manufacturer.
    pub library: PathBuf,
    /// The label of the token (often called partition).
    pub token: String,
    /// The PIN of the token's user.
    pub pin: Secret,
    /// See [`SESSIONS`].
    pub sessions: usize,
    /// See [`TIMEOUT`].
    pub timeout: Duration,
}

/// A key pair in the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredKey {
    /// Under which label.
    pub label: String,
    /// The public half.
    pub public: PublicKey,
}

/// A token of a device. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Hsm {
    token: String,
    workers: Arc<Workers>,
}

impl Hsm {
    /// Logs in to the token, so that a wrong library, label or PIN is noticed now. Blocks.
    ///
    /// # Errors
    /// [`HsmError`] names what is wrong and the way out.
    pub fn open(options: &Options) -> Result<Self, HsmError> {
        let access = Access {
            library: options.library.clone(),
            token: options.token.clone(),
            pin: options.pin.clone(),
        };
        let hsm = Self {
            token: options.token.clone(),
            workers: Arc::new(Workers::start(access, options.sessions, options.timeout)?),
        };
        hsm.workers.run(true, |_| Ok(()))?;
        Ok(hsm)
    }

    /// The label of the token.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }

    /// The keys of our schemes in the token, by label. Blocks.
    ///
    /// # Errors
    /// The device does not answer.
    pub fn keys(&self) -> Result<Vec<StoredKey>, HsmError> {
        self.workers.run(true, |connection| connection.keys())
    }

    /// The public half of the key under a label. Blocks.
    ///
    /// # Errors
    /// The device does not answer, has several keys of this label, or one of another kind than ours.
    pub fn public_key(&self, label: &str) -> Result<Option<PublicKey>, HsmError> {
        let label = label.to_owned();
        self.workers
            .run(true, move |connection| connection.public_key(&label))
    }

    /// Makes a key pair that can never be read out. Blocks.
    ///
    /// # Errors
    /// [`HsmError::LabelTaken`] if there is a key of this label; otherwise what the device says.
    pub fn generate(&self, label: &str, scheme: SignatureScheme) -> Result<PublicKey, HsmError> {
        let taken = label.to_owned();
        // This also brings the connection into order, for what follows must not be repeated: it could make two keys.
        let exists = self
            .workers
            .run(true, move |connection| connection.is_taken(&taken))?;
        if exists {
            return Err(HsmError::LabelTaken {
                token: self.token.clone(),
                label: label.to_owned(),
            });
        }
        let label = label.to_owned();
        self.workers
            .run(false, move |connection| connection.generate(&label, scheme))
    }

    /// The key under a label as one that signs, if its public half is `public`. Blocks.
    ///
    /// # Errors
    /// There is no such key, it is another one, or the device does not answer.
    pub fn signing_key(&self, label: &str, public: &PublicKey) -> Result<SigningKey, HsmError> {
        match self.public_key(label)? {
            Some(held) if held == *public => {}
            Some(held) => {
                return Err(HsmError::OtherKey {
                    token: self.token.clone(),
                    label: label.to_owned(),
                    wanted: public.to_string_short(),
                    held: held.to_string_short(),
                });
            }
            None => {
                return Err(HsmError::KeyMissing {
                    token: self.token.clone(),
                    label: label.to_owned(),
                });
            }
        }
        let signer = Key {
            hsm: self.clone(),
            label: label.to_owned(),
            scheme: public.scheme(),
        };
        Ok(SigningKey::remote(public.clone(), Arc::new(signer)))
    }
}

/// One key of a token.
#[derive(Debug)]
struct Key {
    hsm: Hsm,
    label: String,
    scheme: SignatureScheme,
}

impl RemoteSigner for Key {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, RemoteError> {
        let (label, scheme, message) = (self.label.clone(), self.scheme, message.to_vec());
        let sign = move || {
            self.hsm.workers.run(true, move |connection| {
                connection.sign(&label, scheme, &message)
            })
        };
        without_holding_up_tasks(sign).map_err(RemoteError::from)
    }
}

impl From<HsmError> for RemoteError {
    fn from(error: HsmError) -> Self {
        Self {
            transient: error.is_transient(),
            reason: quorate_runtime::tasks::chain(&error),
        }
    }
}

/// TLS handshakes sign on a thread that also carries other tasks; these move elsewhere while it waits.
fn without_holding_up_tasks<T>(work: impl FnOnce() -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    let carries_tasks = Handle::try_current()
        .is_ok_and(|runtime| runtime.runtime_flavor() == RuntimeFlavor::MultiThread);
    if carries_tasks {
        tokio::task::block_in_place(work)
    } else {
        work()
    }
}
