//! Whether a client may read, and may go on reading.
//!
//! The signature is verified once for each configuration; the time is looked at for each block.

use quorate_fabric::config::{ChannelConfig, ConsensusState};
use quorate_fabric::policy::SignedData;
use quorate_identity::UnixTime;

const READERS: &str = "/Channel/Readers";
/// Who may read while the channel is being maintained.
const MAINTENANCE_READERS: &str = "/Channel/Orderer/Readers";

/// Why a client may not read, or no longer. For the log: the client only learns that it is forbidden.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(super) enum Denied {
    /// A text that operators' scripts look for.
    #[error("deliver client identity expired {seconds}s before")]
    Expired { seconds: i64 },
    #[error("could not find policy {0}")]
    NoPolicy(&'static str),
    #[error("{0}")]
    Policy(String),
}

/// A client's right to read one channel.
#[derive(Debug)]
pub(super) struct Session {
    signed: SignedData,
    /// The last second of the client's certificate; `None`: it has none (the policy will refuse it), or nobody asks.
    expires_at: Option<UnixTime>,
    /// The configuration sequence under which the signature was judged good.
    granted_under: Option<u64>,
}

impl Session {
    pub(super) fn new(signed: SignedData, config: &ChannelConfig, check_expiration: bool) -> Self {
        let expires_at = || config.membership().expires_at(&signed.identity);
        Self {
            expires_at: check_expiration.then(expires_at).flatten(),
            signed,
            granted_under: None,
        }
    }

    /// Whether the client may read under `config`, at `now` (in microseconds since the epoch).
    pub(super) fn evaluate(&mut self, config: &ChannelConfig, now: i64) -> Result<(), Denied> {
        if let Some(UnixTime(expires_at)) = self.expires_at
            && now > expires_at.saturating_mul(1_000_000)
        {
            return Err(Denied::Expired {
                seconds: now / 1_000_000 - expires_at,
            });
        }
        let sequence = config.sequence();
        if self
            .granted_under
            .is_some_and(|granted| granted >= sequence)
        {
            return Ok(());
        }
        let readers = readers(config);
        let policy = config
            .policies()
            .get(readers)
            .ok_or(Denied::NoPolicy(readers))?;
        policy
            .evaluate(std::slice::from_ref(&self.signed))
            .map_err(|error| Denied::Policy(error.to_string()))?;
        self.granted_under = Some(sequence);
        Ok(())
    }
}

fn readers(config: &ChannelConfig) -> &'static str {
    let migration = config.orderer().capabilities.consensus_type_migration();
    if migration && config.state() == ConsensusState::Maintenance {
        MAINTENANCE_READERS
    } else {
        READERS
    }
}
