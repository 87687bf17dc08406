//! A way to a channel: which orderers to ask, whom to believe and who asks.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use quorate_fabric::config::ChannelConfig;
use quorate_fabric::envelope::RawEnvelope;
use quorate_fabric::msp::LocalMsp;
use quorate_identity::UnixTime;
use quorate_identity::mutual_tls::ClientTls;
use quorate_identity::x509::Pool;
use quorate_orderer::deliver_client::{DeliverClient, DeliverContext, DeliverError, Which};
use quorate_orderer::store::StoredBlock;
use quorate_runtime::{Clock, Entropy, Tasks};

use super::tls;

/// What newer gRPC servers insist on being told in the TLS handshake.
const HTTP2: &[u8] = b"h2";
/// How long connections may take to end.
const GOODBYE: Duration = Duration::from_secs(1);

#[derive(Args)]
pub(super) struct Access {
    /// An orderer's client endpoint, host:port. Given several times, the first that answers is asked
    #[arg(short = 'o', long, required = true, value_name = "HOST:PORT")]
    pub(super) orderer: Vec<String>,
    /// The channel
    #[arg(
        short = 'c',
        long = "channelID",
        visible_alias = "channel-id",
        value_name = "NAME"
    )]
    pub(super) channel: String,
    /// CA certificates (PEM) that the orderers' TLS certificates are checked with; without it connections are not
    /// encrypted
    #[arg(long, visible_alias = "cafile", value_name = "FILE")]
    pub(super) tls_ca: Option<PathBuf>,
    /// Our TLS certificate (PEM), for orderers that ask for one
    #[arg(
        long,
        visible_alias = "certfile",
        requires_all = ["client_key", "tls_ca"],
        value_name = "FILE"
    )]
    pub(super) client_cert: Option<PathBuf>,
    /// Its private key (PEM)
    #[arg(
        long,
        visible_alias = "keyfile",
        requires = "client_cert",
        value_name = "FILE"
    )]
    client_key: Option<PathBuf>,
    #[command(flatten)]
    identity: Identity,
    /// Check the orderers' certificates as of this many seconds ago, for those that have expired
    #[arg(long, visible_alias = "tlsHandshakeTimeShift", default_value_t = 0)]
    tls_handshake_time_shift: u64,
    /// Seconds that an orderer may take to answer, and that --wait waits
    #[arg(long, default_value_t = 30)]
    timeout: u64,
}

/// Who signs.
#[derive(Args)]
pub(super) struct Identity {
    /// The MSP folder of who asks: signcerts, keystore, cacerts …
    #[arg(long, env = "CORE_PEER_MSPCONFIGPATH", value_name = "DIR")]
    pub(super) msp_dir: PathBuf,
    /// The name of that MSP in the channel
    #[arg(long, env = "CORE_PEER_LOCALMSPID", value_name = "ID")]
    pub(super) msp_id: String,
}

impl Identity {
    pub(super) fn load(&self) -> Result<LocalMsp> {
        LocalMsp::load(&self.msp_dir, &self.msp_id)
            .with_context(|| format!("MSP folder {}", self.msp_dir.display()))
    }

    /// In words, and until when its certificate is valid.
    pub(super) fn who(&self, msp: &LocalMsp) -> String {
        let UnixTime(seconds) = msp.expires_at();
        let until = time::OffsetDateTime::from_unix_timestamp(seconds)
            .map_or_else(|_| seconds.to_string(), |until| until.to_string());
        format!(
            "{} of {}, valid until {until},",
            self.msp_dir.display(),
            self.msp_id
        )
    }
}

impl Access {
    pub(super) fn patience(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }

    pub(super) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Reads the files.
    pub(super) fn open(&self) -> Result<Session> {
        let msp = Arc::new(self.identity.load()?);
        let tls = match &self.tls_ca {
            None => None,
            Some(roots) => {
                let own = self.client_cert.as_deref().zip(self.client_key.as_deref());
                Some(self.tls(roots, own)?)
            }
        };
        Ok(Session {
            channel: self.channel.clone(),
            msp,
            tls,
            patience: self.patience(),
            clock: Clock::system(),
            entropy: Entropy::system(),
            tasks: Tasks::new("channel"),
        })
    }

    fn tls(&self, roots: &Path, own: Option<(&Path, &Path)>) -> Result<ClientTls> {
        let shift = Duration::from_secs(self.tls_handshake_time_shift);
        tls(roots, own, shift, Some(HTTP2))
    }
}

/// Somebody's connections to the orderers of a channel.
pub(super) struct Session {
    pub(super) channel: String,
    pub(super) msp: Arc<LocalMsp>,
    pub(super) clock: Clock,
    pub(super) entropy: Entropy,
    tls: Option<ClientTls>,
    pub(super) patience: Duration,
    tasks: Tasks,
}

impl Session {
    /// Connects to an orderer, which may take so long for that and for each answer.
    async fn connect(
        &self,
        address: &str,
        patience: Duration,
    ) -> Result<DeliverClient, DeliverError> {
        let context = DeliverContext {
            tls: self.tls.clone(),
            signer: self.msp.clone(),
            patience,
            clock: self.clock.clone(),
            entropy: self.entropy.clone(),
            tasks: self.tasks.clone(),
        };
        DeliverClient::connect(address, context).await
    }

    /// One block, as that orderer has it.
    pub(super) async fn block(
        &self,
        address: &str,
        wanted: Wanted,
        patience: Duration,
    ) -> Result<StoredBlock, DeliverError> {
        let client = self.connect(address, patience).await?;
        client
            .block(&self.channel, wanted.which, wanted.wait, wanted.best_effort)
            .await
    }

    /// One block, of the first orderer that gives it; with what the others said if none does.
    pub(super) async fn first_block(
        &self,
        addresses: &[String],
        wanted: Wanted,
    ) -> Result<(String, StoredBlock), Vec<DeliverError>> {
        let mut refusals = Vec::new();
        for address in addresses {
            match self.block(address, wanted, self.patience).await {
                Ok(block) => return Ok((address.clone(), block)),
                Err(error) => refusals.push(error),
            }
        }
        Err(refusals)
    }

    /// Has an envelope ordered.
    pub(super) async fn submit(
        &self,
        address: &str,
        envelope: RawEnvelope,
    ) -> Result<(), DeliverError> {
        let client = self.connect(address, self.patience).await?;
        client.submit(envelope).await
    }

    /// From now on also believes the TLS authorities of the channel's orderer organisations: an orderer of another
    /// organisation than the one that was asked is no stranger.
    pub(super) fn trust(&self, config: &ChannelConfig) {
        let Some(tls) = &self.tls else {
            return;
        };
        let mut pool = Pool::default();
        for own in tls.roots.certificates() {
            pool.add(own);
        }
        for endpoint in config.orderer_endpoints() {
            for authority in endpoint.authorities.iter() {
                pool.add(authority.clone());
            }
        }
        tls.roots.set(pool);
    }

    /// Ends all connections.
    pub(super) async fn close(self) {
        self.tasks.stop(GOODBYE).await;
    }
}

/// Which block, and how to ask for it.
#[derive(Clone, Copy)]
pub(super) struct Wanted {
    pub(super) which: Which,
    /// It may come later.
    pub(super) wait: bool,
    /// Also from an orderer that knows no leader.
    pub(super) best_effort: bool,
}

impl Wanted {
    pub(super) fn now(which: Which) -> Self {
        Self {
            which,
            wait: false,
            best_effort: false,
        }
    }

    /// Whatever the orderer has.
    pub(super) fn at_best(which: Which) -> Self {
        Self {
            best_effort: true,
            ..Self::now(which)
        }
    }
}
