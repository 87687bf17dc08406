//! Consenters' TLS certificates: each must come from a TLS authority of one of the orderer organisations.

use std::fmt;

use quorate_identity::UnixTime;
use quorate_identity::x509::{
    Certificate, ChainOptions, ExtendedUsage, Pool, X509Error, chains, pem,
};

use super::{ChannelConfig, ConfigError};
use crate::proto::etcdraft::Consenter;

/// Of bytes that somebody sent instead of a certificate, so many are quoted in the refusal.
pub(super) const MAX_QUOTED_BYTES: usize = 16 * 1024;

/// What to think of a certificate whose time is over.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Expired {
    /// As Fabric does, not even its chain is looked at then: all consenters' certificates and their authority's may
    /// have run out together, and the way out is an update that replaces them one by one.
    Accepted,
    Refused,
}

pub(super) fn check_certificates(
    consenter: &Consenter,
    authorities: &Authorities,
    now: UnixTime,
    expired: Expired,
) -> Result<(), ConfigError> {
    let read = |role: &str, bytes: &[u8]| {
        read_certificate(bytes).map_err(|error| {
            error.within(format_args!(
                "parsing tls {role} cert of {}",
                Address(consenter)
            ))
        })
    };
    let certificates = [
        ("client", read("client", &consenter.client_tls_cert)?),
        ("server", read("server", &consenter.server_tls_cert)?),
    ];
    for (role, certificate) in certificates {
        match authorities.verify(&certificate, now) {
            Ok(()) => {}
            Err(X509Error::Expired { .. }) if expired == Expired::Accepted => {}
            Err(error) => {
                return Err(ConfigError::new(format!(
                    "verifying tls {role} cert with serial number {}: {error}",
                    certificate.serial_decimal()
                )));
            }
        }
    }
    Ok(())
}

fn read_certificate(bytes: &[u8]) -> Result<Certificate, ConfigError> {
    let Some((block, _)) = pem::first(bytes) else {
        let quoted: Vec<String> = bytes
            .iter()
            .take(MAX_QUOTED_BYTES)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        return Err(ConfigError::new(format!(
            "no PEM data found in cert[{}]",
            quoted.join(" ")
        )));
    };
    Certificate::from_der(&block.bytes).map_err(|error| {
        ConfigError::new(format!(
            "{error} TLS certificate has invalid ASN1 structure"
        ))
    })
}

/// The TLS authorities of all organisations of an orderer group.
pub(super) struct Authorities {
    roots: Pool,
    intermediates: Pool,
}

impl Authorities {
    pub(super) fn of(config: &ChannelConfig) -> Self {
        let msps = || {
            config
                .orderer()
                .organisations
                .values()
                .filter_map(|org| config.membership().msp(&org.organisation.msp_id))
        };
        Self {
            roots: msps()
                .flat_map(|msp| msp.tls_roots().iter().cloned())
                .collect(),
            intermediates: msps()
                .flat_map(|msp| msp.tls_intermediates().iter().cloned())
                .collect(),
        }
    }

    /// Whether a chain leads from the certificate to a root, and it may be used on one side of a TLS connection.
    fn verify(&self, certificate: &Certificate, now: UnixTime) -> Result<(), X509Error> {
        let verify = |usage| {
            let options = ChainOptions {
                roots: &self.roots,
                intermediates: &self.intermediates,
                at: now,
                usage,
            };
            chains(certificate, &options).map(|_| ())
        };
        match verify(ExtendedUsage::Client) {
            Err(X509Error::IncompatibleUsage) => verify(ExtendedUsage::Server),
            judged => judged,
        }
    }
}

/// `host:port`.
pub(super) struct Address<'a>(pub(super) &'a Consenter);

impl fmt::Display for Address<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.0.host, self.0.port)
    }
}
