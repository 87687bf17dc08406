//! Which certificates are believed: Go's rules for chains ([`crate::x509`]), and those for a server's name.
//!
//! Every certificate of the pool is an anchor, whether it signed itself or not: Fabric puts intermediates into its pools.
//! Only a server's name is compared, and only with its subject alternative names.

use std::net::IpAddr;

use rustls_pki_types::{CertificateDer, ServerName};

use crate::certificate::UnixTime;
use crate::x509::{Certificate, ChainOptions, ExtendedUsage, Pool, chains};

/// The most certificates that a peer may show.
pub const MAX_PEER_CERTIFICATES: usize = 10;

/// What a certificate is shown for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Purpose<'a> {
    /// To be a client.
    Client,
    /// To be the server of that name.
    Server(&'a ServerName<'a>),
}

/// Judges a peer's certificates, its own first.
///
/// # Errors
/// The reason, in Go's words.
pub(super) fn judge(
    roots: &Pool,
    leaf: &CertificateDer<'_>,
    others: &[CertificateDer<'_>],
    purpose: Purpose<'_>,
    now: UnixTime,
) -> Result<(), String> {
    if others.len() >= MAX_PEER_CERTIFICATES {
        return Err(format!(
            "x509: the peer showed more than {MAX_PEER_CERTIFICATES} certificates"
        ));
    }
    let leaf = Certificate::from_der(leaf).map_err(|error| error.to_string())?;
    // An unreadable companion proves nothing, and need not be part of the chain.
    let intermediates = others
        .iter()
        .filter_map(|der| Certificate::from_der(der).ok())
        .collect();
    let options = ChainOptions {
        roots,
        intermediates: &intermediates,
        at: now,
        usage: match purpose {
            Purpose::Client => ExtendedUsage::Client,
            Purpose::Server(_) => ExtendedUsage::Server,
        },
    };
    chains(&leaf, &options).map_err(|error| error.to_string())?;
    match purpose {
        Purpose::Client => Ok(()),
        Purpose::Server(name) => check_name(&leaf, name),
    }
}

pub(super) fn check_name(leaf: &Certificate, wanted: &ServerName<'_>) -> Result<(), String> {
    let listed: Vec<String> = match wanted {
        ServerName::IpAddress(address) => {
            let address = IpAddr::from(*address);
            let listed: Vec<_> = leaf.ip_addresses().filter_map(ip).collect();
            if listed.contains(&address) {
                return Ok(());
            }
            if listed.is_empty() {
                return Err(format!(
                    "x509: cannot validate certificate for {address} because it doesn't contain any IP SANs"
                ));
            }
            listed.iter().map(ToString::to_string).collect()
        }
        ServerName::DnsName(host) => {
            if leaf.dns_names().any(|name| covers(name, host.as_ref())) {
                return Ok(());
            }
            if !leaf.has_alternative_names() {
                return Err(
                    "x509: certificate relies on legacy Common Name field, use SANs instead"
                        .to_owned(),
                );
            }
            leaf.dns_names().map(str::to_owned).collect()
        }
        _ => Vec::new(),
    };
    let wanted = wanted.to_str();
    Err(if listed.is_empty() {
        format!("x509: certificate is not valid for any names, but wanted to match {wanted}")
    } else {
        format!(
            "x509: certificate is valid for {}, not {wanted}",
            listed.join(", ")
        )
    })
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

/// Whether a name of a certificate covers a host: equal, or a star in the place of the first label.
fn covers(name: &str, host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    if name.is_empty() || host.is_empty() {
        return false;
    }
    match name.strip_prefix("*.") {
        Some(rest) => host
            .split_once('.')
            .is_some_and(|(label, parent)| !label.is_empty() && parent.eq_ignore_ascii_case(rest)),
        None => name.eq_ignore_ascii_case(host),
    }
}

#[cfg(test)]
mod tests {
    use super::covers;

    #[test]
    fn a_star_stands_for_one_label() {
        for (name, host, covered) in [
            ("orderer.test", "Orderer.Test.", true),
            ("*.orderer.test", "a.orderer.test", true),
            ("*.orderer.test", "a.b.orderer.test", false),
            ("*.orderer.test", "orderer.test", false),
            ("*.orderer.test", ".orderer.test", false),
            ("a.*.test", "a.b.test", false),
            ("", "", false),
        ] {
            assert_eq!(covers(name, host), covered, "{name} {host}");
        }
    }
}
