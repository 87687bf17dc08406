//! All MSPs of a channel, and the identities that were met lately.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use prost::Message as _;
use quorate_identity::UnixTime;
use quorate_identity::x509::Certificate;

use super::{GO_PROTO_MALFORMED, Identity, IdentityError, Msp};
use crate::proto::msp::SerializedIdentity;

/// The most identities that a channel's membership remembers.
pub const MAX_CACHED_IDENTITIES: usize = 1024;

/// Serialized identities longer than this, in bytes, are read anew every time: they are not worth their memory.
const MAX_CACHED_BYTES: usize = 8 * 1024;

/// All MSPs of a channel.
///
/// Identities that could be read are remembered with their parsed keys and what their MSP says of them, so that a message
/// by somebody known costs a look-up and one verification. Only identities with a certificate that an authority of the
/// channel issued are remembered, so that strangers cannot push them out.
#[derive(Default)]
pub struct Membership {
    msps: BTreeMap<String, Arc<Msp>>,
    cache: RwLock<Cache>,
}

impl Membership {
    /// The membership of these organisations. Of two with one ID the later counts.
    #[must_use]
    pub fn new(msps: impl IntoIterator<Item = Arc<Msp>>) -> Self {
        Self {
            msps: msps
                .into_iter()
                .map(|msp| (msp.id().to_owned(), msp))
                .collect(),
            cache: RwLock::default(),
        }
    }

    /// The MSPs, ordered by ID.
    pub fn msps(&self) -> impl Iterator<Item = &Arc<Msp>> {
        self.msps.values()
    }

    /// The MSP with this ID.
    #[must_use]
    pub fn msp(&self, id: &str) -> Option<&Arc<Msp>> {
        self.msps.get(id)
    }

    /// The identity in a `SerializedIdentity`. It need not be valid: see [`Identity::validate`].
    ///
    /// # Errors
    /// [`IdentityError`] if the bytes are malformed or name an unknown MSP.
    pub fn identity(&self, serialized: &[u8]) -> Result<Arc<Identity>, IdentityError> {
        // A panic while the lock was held cannot have left the cache in a state that matters.
        let known = self
            .cache
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(serialized);
        if let Some(identity) = known {
            return Ok(identity);
        }
        let identity = Arc::new(self.read(serialized)?);
        if serialized.len() <= MAX_CACHED_BYTES && identity.has_chain() {
            self.cache
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(serialized, identity.clone());
        }
        Ok(identity)
    }

    /// The last second of the certificate in a `SerializedIdentity`, of whatever MSP it is. `None` if there is none to be
    /// read: Fabric then makes no decision about expiry, and the policy has the last word.
    #[must_use]
    pub fn expires_at(&self, serialized: &[u8]) -> Option<UnixTime> {
        if let Ok(identity) = self.identity(serialized) {
            return Some(identity.expires_at());
        }
        let parts = SerializedIdentity::decode(serialized).ok()?;
        let certificate = Certificate::from_pem(&parts.id_bytes).ok()?;
        Some(certificate.not_after())
    }

    fn read(&self, serialized: &[u8]) -> Result<Identity, IdentityError> {
        let parts = SerializedIdentity::decode(serialized).map_err(|_| {
            IdentityError::Malformed(format!(
                "could not deserialize a SerializedIdentity: {GO_PROTO_MALFORMED}"
            ))
        })?;
        let Some(msp) = self.msps.get(&parts.mspid) else {
            return Err(IdentityError::UnknownMsp {
                msp_id: parts.mspid,
            });
        };
        msp.identity(&parts.id_bytes)
    }
}

impl fmt::Debug for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Membership")
            .field(&self.msps.keys())
            .finish()
    }
}

/// Identities by their serialized form. Those that were not asked for since the hand last came by go first.
#[derive(Default)]
struct Cache {
    entries: HashMap<Arc<[u8]>, Entry>,
    queue: VecDeque<Arc<[u8]>>,
}

struct Entry {
    identity: Arc<Identity>,
    used: AtomicBool,
}

impl Cache {
    fn get(&self, serialized: &[u8]) -> Option<Arc<Identity>> {
        let entry = self.entries.get(serialized)?;
        // Written only when it changes: many threads read the same entry.
        if !entry.used.load(Ordering::Relaxed) {
            entry.used.store(true, Ordering::Relaxed);
        }
        Some(entry.identity.clone())
    }

    fn insert(&mut self, serialized: &[u8], identity: Arc<Identity>) {
        if self.entries.contains_key(serialized) {
            return;
        }
        while self.entries.len() >= MAX_CACHED_IDENTITIES {
            let Some(oldest) = self.queue.pop_front() else {
                break;
            };
            match self.entries.get(&oldest) {
                Some(entry) if entry.used.swap(false, Ordering::Relaxed) => {
                    self.queue.push_back(oldest);
                }
                _ => {
                    self.entries.remove(&oldest);
                }
            }
        }
        let key: Arc<[u8]> = serialized.into();
        self.queue.push_back(key.clone());
        self.entries.insert(
            key,
            Entry {
                identity,
                used: AtomicBool::new(false),
            },
        );
    }
}
