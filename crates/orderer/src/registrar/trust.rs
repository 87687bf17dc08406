//! Whose TLS certificates count: those that the configuration of the process names, and those of the organisations of
//! every channel, as their configurations change.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use quorate_fabric::config::ChannelConfig;
use quorate_identity::mutual_tls::{MutualTlsError, Roots};

use super::LOG;

/// Keeps pools of trusted CA certificates up to date.
#[derive(Debug)]
pub struct Trust {
    clients: Pool,
    cluster: Pool,
    channels: Mutex<BTreeMap<String, Authorities>>,
}

#[derive(Debug)]
struct Pool {
    roots: Roots,
    /// PEM texts that count whatever the channels say.
    fixed: Vec<Vec<u8>>,
}

/// The TLS authorities of one channel's organisations, as PEM texts.
#[derive(Debug, PartialEq, Eq)]
struct Authorities {
    all: Vec<Bytes>,
    orderers: Vec<Bytes>,
}

impl Trust {
    /// `clients`: PEM texts of those who may vouch for clients of the general listener; `cluster`: for other orderers.
    ///
    /// # Errors
    /// One of them holds no certificate.
    pub fn new(clients: Vec<Vec<u8>>, cluster: Vec<Vec<u8>>) -> Result<Self, MutualTlsError> {
        Ok(Self {
            clients: Pool::new(clients)?,
            cluster: Pool::new(cluster)?,
            channels: Mutex::default(),
        })
    }

    /// Who vouches for clients.
    pub fn clients(&self) -> Roots {
        self.clients.roots.clone()
    }

    /// Who vouches for other orderers.
    pub fn cluster(&self) -> Roots {
        self.cluster.roots.clone()
    }

    /// A channel has this configuration now.
    pub(super) fn learn(&self, channel: &str, config: &ChannelConfig) {
        let pems = |msp_id: &str| -> Vec<Bytes> {
            let Some(msp) = config.membership().msp(msp_id) else {
                return Vec::new();
            };
            let authorities = msp.tls_roots().iter().chain(msp.tls_intermediates());
            authorities.map(|one| Bytes::from(one.to_pem())).collect()
        };
        let orderers = config.orderer().organisations.values();
        let found = Authorities {
            orderers: orderers
                .flat_map(|orderer| pems(&orderer.organisation.msp_id))
                .collect(),
            all: config
                .membership()
                .msps()
                .flat_map(|msp| pems(msp.id()))
                .collect(),
        };
        let mut channels = self.lock();
        if channels.get(channel) != Some(&found) {
            channels.insert(channel.to_owned(), found);
            self.refresh(&channels);
        }
    }

    /// We have nothing to do with a channel any more.
    pub(super) fn forget(&self, channel: &str) {
        let mut channels = self.lock();
        if channels.remove(channel).is_some() {
            self.refresh(&channels);
        }
    }

    fn refresh(&self, channels: &BTreeMap<String, Authorities>) {
        let all = channels.values().flat_map(|channel| &channel.all);
        self.clients.replace(all);
        let orderers = channels.values().flat_map(|channel| &channel.orderers);
        self.cluster.replace(orderers);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Authorities>> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pool {
    fn new(fixed: Vec<Vec<u8>>) -> Result<Self, MutualTlsError> {
        Ok(Self {
            roots: Roots::from_pem(fixed.iter().map(Vec::as_slice))?,
            fixed,
        })
    }

    fn replace<'a>(&self, learnt: impl Iterator<Item = &'a Bytes>) {
        let fixed = self.fixed.iter().map(Vec::as_slice);
        if let Err(error) = self.roots.replace(fixed.chain(learnt.map(|pem| &pem[..]))) {
            // They were read as certificates when the configuration was checked.
            tracing::error!(target: LOG, "TLS authorities of a channel cannot be used: {error}");
        }
    }
}
