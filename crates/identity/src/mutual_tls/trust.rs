//! Which certificates are believed: the rules of Go's library, which the rest of a Fabric network applies.
//!
//! Every certificate of the pool is an anchor, whether it signed itself or not (Fabric puts intermediates into its
//! pools). All certificates of a path, the anchor included, must be valid in time. Extended key usages nest. Only a
//! server's name is compared, and only with its subject alternative names.

use std::collections::BTreeMap;
use std::net::IpAddr;

use rustls_pki_types::{CertificateDer, ServerName};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::{OID_PKCS1_SHA1WITHRSA, OID_SHA1_WITH_RSA};
use x509_parser::prelude::{FromDer as _, X509Certificate, X509Version};

use crate::certificate::UnixTime;

/// The most certificates that a peer may show.
pub const MAX_PEER_CERTIFICATES: usize = 10;
/// The longest path, both ends included.
pub const MAX_PATH: usize = 8;
/// The most signatures that are checked for one peer, however its certificates are arranged.
const MAX_SIGNATURE_CHECKS: usize = 32;

const UNKNOWN_AUTHORITY: &str = "x509: certificate signed by unknown authority";

/// What a certificate is shown for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Purpose<'a> {
    /// To be a client.
    Client,
    /// To be the server of that name.
    Server(&'a ServerName<'a>),
}

/// The anchors, by the encoded name of their subject.
#[derive(Debug, Default)]
pub(super) struct Pool {
    by_subject: BTreeMap<Vec<u8>, Vec<CertificateDer<'static>>>,
}

impl Pool {
    /// Adds a certificate; twice is once.
    ///
    /// # Errors
    /// A text, if it cannot be read.
    pub(super) fn add(&mut self, der: CertificateDer<'static>) -> Result<(), String> {
        let subject = parse(&der)?.subject().as_raw().to_vec();
        let same = self.by_subject.entry(subject).or_default();
        if !same.contains(&der) {
            same.push(der);
        }
        Ok(())
    }

    fn of_subject(&self, subject: &[u8]) -> &[CertificateDer<'static>] {
        self.by_subject.get(subject).map_or(&[], Vec::as_slice)
    }
}

/// Judges a peer's certificates, its own first.
///
/// # Errors
/// The reason, in Go's words.
pub(super) fn judge(
    pool: &Pool,
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
    let leaf = parse(leaf)?;
    // An unreadable companion proves nothing, and need not be part of the path.
    let others: Vec<_> = others.iter().filter_map(|der| parse(der).ok()).collect();
    // In Go's order: the certificate itself, then its name, then who vouches for it.
    check_own(&leaf, now)?;
    if let Purpose::Server(name) = purpose {
        check_name(&leaf, name)?;
    }
    let mut search = Search {
        pool,
        others: &others,
        purpose,
        now,
        checks_left: MAX_SIGNATURE_CHECKS,
        reason: None,
    };
    if search.anchored(&mut vec![&leaf]) {
        Ok(())
    } else {
        Err(search
            .reason
            .unwrap_or_else(|| UNKNOWN_AUTHORITY.to_owned()))
    }
}

struct Search<'a, 'b> {
    pool: &'a Pool,
    others: &'a [X509Certificate<'b>],
    purpose: Purpose<'a>,
    now: UnixTime,
    checks_left: usize,
    /// The first reason against a candidate that looked like the right one.
    reason: Option<String>,
}

impl Search<'_, '_> {
    /// Whether the path, leaf first, can be continued to an anchor.
    fn anchored(&mut self, path: &mut Vec<&X509Certificate<'_>>) -> bool {
        let Some(&last) = path.last() else {
            return false;
        };
        let pool = self.pool;
        if pool
            .of_subject(last.subject().as_raw())
            .iter()
            .any(|anchor| anchor.as_ref() == last.as_raw())
        {
            return self.usable(path);
        }
        if path.len() >= MAX_PATH {
            return false;
        }
        for anchor in pool.of_subject(last.issuer().as_raw()) {
            // It could be read when it was added.
            if let Ok(anchor) = parse(anchor)
                && self.issued(path, &anchor)
            {
                let mut whole = path.clone();
                whole.push(&anchor);
                if self.usable(&whole) {
                    return true;
                }
            }
        }
        let others = self.others;
        for other in others {
            let loops = path.iter().any(|seen| seen.as_raw() == other.as_raw());
            if other.subject().as_raw() != last.issuer().as_raw() || loops {
                continue;
            }
            if self.issued(path, other) {
                let mut longer = path.clone();
                longer.push(other);
                if self.anchored(&mut longer) {
                    return true;
                }
            }
        }
        false
    }

    /// Whether `issuer` may have signed and did sign the last certificate of the path.
    fn issued(&mut self, path: &[&X509Certificate<'_>], issuer: &X509Certificate<'_>) -> bool {
        let verdict = self.check_issuer(path, issuer);
        match verdict {
            Ok(()) => true,
            Err(reason) => {
                self.reason.get_or_insert(reason);
                false
            }
        }
    }

    fn check_issuer(
        &mut self,
        path: &[&X509Certificate<'_>],
        issuer: &X509Certificate<'_>,
    ) -> Result<(), String> {
        self.checks_left = self.checks_left.checked_sub(1).ok_or(
            "x509: signature check attempts limit reached while verifying certificate chain",
        )?;
        check_own(issuer, self.now)?;
        let constraints = issuer
            .basic_constraints()
            .ok()
            .flatten()
            .map(|extension| extension.value);
        let is_ca = constraints.is_some_and(|value| value.ca);
        // A certificate of version 1 has no extensions in which to say so.
        let says_nothing = issuer.version() != X509Version::V3 && constraints.is_none();
        if !is_ca && !says_nothing {
            return Err(
                "x509: invalid signature: parent certificate cannot sign this kind of certificate"
                    .to_owned(),
            );
        }
        let signs = issuer
            .key_usage()
            .ok()
            .flatten()
            .is_none_or(|usage| usage.value.key_cert_sign());
        if !signs {
            return Err(
                "x509: invalid signature: parent certificate cannot sign this kind of certificate"
                    .to_owned(),
            );
        }
        // Certificates between this issuer and the leaf.
        let between = u32::try_from(path.len().saturating_sub(1)).unwrap_or(u32::MAX);
        if constraints
            .and_then(|value| value.path_len_constraint)
            .is_some_and(|most| between > most)
        {
            return Err("x509: too many intermediates for path length constraint".to_owned());
        }
        if issuer.name_constraints().ok().flatten().is_some() {
            return Err(
                "x509: the issuing CA constrains names, which is not supported here".to_owned(),
            );
        }
        let Some(signed) = path.last() else {
            return Err(UNKNOWN_AUTHORITY.to_owned());
        };
        let algorithm = &signed.signature_algorithm.algorithm;
        if *algorithm == OID_PKCS1_SHA1WITHRSA || *algorithm == OID_SHA1_WITH_RSA {
            return Err("x509: cannot verify signature: insecure algorithm SHA1-RSA".to_owned());
        }
        signed
            .verify_signature(Some(issuer.public_key()))
            .map_err(|_| UNKNOWN_AUTHORITY.to_owned())
    }

    /// Whether the whole path, anchor last, is good for the purpose.
    fn usable(&mut self, path: &[&X509Certificate<'_>]) -> bool {
        let nests = path.iter().all(|certificate| {
            let Ok(Some(usage)) = certificate.extended_key_usage() else {
                return true;
            };
            let usage = usage.value;
            usage.any
                || match self.purpose {
                    Purpose::Client => usage.client_auth,
                    Purpose::Server(_) => usage.server_auth,
                }
        });
        if !nests {
            self.reason.get_or_insert_with(|| {
                "x509: certificate specifies an incompatible key usage".to_owned()
            });
        }
        nests
    }
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, String> {
    match X509Certificate::from_der(der.as_ref()) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err("x509: trailing data".to_owned()),
        Err(error) => Err(format!("x509: malformed certificate: {error}")),
    }
}

/// What Go asks of every certificate of a path.
fn check_own(certificate: &X509Certificate<'_>, now: UnixTime) -> Result<(), String> {
    let understood = |parsed: &ParsedExtension<'_>| {
        !matches!(
            parsed,
            ParsedExtension::UnsupportedExtension { .. } | ParsedExtension::ParseError { .. }
        )
    };
    if certificate
        .extensions()
        .iter()
        .any(|extension| extension.critical && !understood(extension.parsed_extension()))
    {
        return Err("x509: unhandled critical extension".to_owned());
    }
    let validity = certificate.validity();
    let told = |seconds: i64| {
        OffsetDateTime::from_unix_timestamp(seconds)
            .ok()
            .and_then(|moment| moment.format(&Rfc3339).ok())
            .unwrap_or_else(|| seconds.to_string())
    };
    let (from, until) = (
        validity.not_before.timestamp(),
        validity.not_after.timestamp(),
    );
    let (relation, limit) = if now.0 < from {
        ("before", from)
    } else if now.0 > until {
        ("after", until)
    } else {
        return Ok(());
    };
    Err(format!(
        "x509: certificate has expired or is not yet valid: current time {} is {relation} {}",
        told(now.0),
        told(limit)
    ))
}

fn check_name(leaf: &X509Certificate<'_>, wanted: &ServerName<'_>) -> Result<(), String> {
    let names = leaf.subject_alternative_name().ok().flatten();
    let names: &[GeneralName<'_>] = names
        .as_ref()
        .map_or(&[], |extension| extension.value.general_names.as_slice());
    let found: Vec<String> = match wanted {
        ServerName::IpAddress(address) => {
            let address = IpAddr::from(*address);
            let listed: Vec<IpAddr> = names
                .iter()
                .filter_map(|name| match name {
                    GeneralName::IPAddress(bytes) => ip(bytes),
                    _ => None,
                })
                .collect();
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
            let listed: Vec<&str> = names
                .iter()
                .filter_map(|name| match name {
                    GeneralName::DNSName(pattern) => Some(*pattern),
                    _ => None,
                })
                .collect();
            if listed.iter().any(|pattern| covers(pattern, host.as_ref())) {
                return Ok(());
            }
            if names.is_empty() {
                return Err(
                    "x509: certificate relies on legacy Common Name field, use SANs instead"
                        .to_owned(),
                );
            }
            listed.iter().map(|name| (*name).to_owned()).collect()
        }
        _ => Vec::new(),
    };
    let wanted = wanted.to_str();
    Err(if found.is_empty() {
        format!("x509: certificate is not valid for any names, but wanted to match {wanted}")
    } else {
        format!(
            "x509: certificate is valid for {}, not {wanted}",
            found.join(", ")
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
fn covers(pattern: &str, host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    if pattern.is_empty() || host.is_empty() {
        return false;
    }
    match pattern.strip_prefix("*.") {
        Some(rest) => host
            .split_once('.')
            .is_some_and(|(label, parent)| !label.is_empty() && parent.eq_ignore_ascii_case(rest)),
        None => pattern.eq_ignore_ascii_case(host),
    }
}

#[cfg(test)]
mod tests {
    use super::covers;

    #[test]
    fn a_star_stands_for_one_label() {
        for (pattern, host, covered) in [
            ("orderer.test", "Orderer.Test.", true),
            ("*.orderer.test", "a.orderer.test", true),
            ("*.orderer.test", "a.b.orderer.test", false),
            ("*.orderer.test", "orderer.test", false),
            ("*.orderer.test", ".orderer.test", false),
            ("a.*.test", "a.b.test", false),
            ("", "", false),
        ] {
            assert_eq!(covers(pattern, host), covered, "{pattern} {host}");
        }
    }
}
