//! The rule by which a legal name is believed: validation of certificate paths.
//!
//! The rules are RFC 5280's (signatures, validity, basic constraints, path length, key usage, name constraints) and
//! Corda's hierarchy of roles on top: root, doorman, node CA, and under it one certificate that signs on the ledger and
//! one that authenticates connections. A stolen TLS key must not sign transactions, therefore the caller always says
//! which role it expects.
//!
//! Everything here is a function of its arguments; the current time is one of them. There is no revocation.

use crate::certificate::{CertRole, Certificate, CertificatePath, MAX_PATH_CERTIFICATES, UnixTime};
use crate::name::X500Name;

/// Why a path does not prove what was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PathError {
    /// Nothing but the root itself.
    #[error("the certificate path holds nothing below the root certificate")]
    Empty,
    /// The path leads to another root.
    #[error(
        "the certificate path of {subject} leads to {issuer}, not to the root {root} of this network; both sides must use certificates of the same network"
    )]
    ForeignRoot {
        /// The subject of the leaf.
        subject: X500Name,
        /// Where the path leads.
        issuer: X500Name,
        /// Our root.
        root: X500Name,
    },
    /// A certificate that the next one did not issue.
    #[error(
        "the certificate of {subject} names {issuer} as its issuer, but is followed by that of {next}"
    )]
    Unchained {
        /// Whose certificate.
        subject: X500Name,
        /// Its issuer.
        issuer: X500Name,
        /// Who follows in the path.
        next: X500Name,
    },
    /// A signature that the issuer's key did not make.
    #[error("the certificate of {subject} was not signed by the key of {issuer}")]
    BadSignature {
        /// Whose certificate.
        subject: X500Name,
        /// The alleged issuer.
        issuer: X500Name,
    },
    /// The certificate does not count yet.
    #[error(
        "the certificate of {subject} is valid from {not_before} only, and it is {now}; check the clocks"
    )]
    NotYetValid {
        /// Whose certificate.
        subject: X500Name,
        /// From when it counts.
        not_before: UnixTime,
        /// The time of the check.
        now: UnixTime,
    },
    /// The certificate counts no longer.
    #[error(
        "the certificate of {subject} expired at {not_after}, and it is {now}; it must be renewed"
    )]
    Expired {
        /// Whose certificate.
        subject: X500Name,
        /// Until when it counted.
        not_after: UnixTime,
        /// The time of the check.
        now: UnixTime,
    },
    /// An issuer that may not issue.
    #[error(
        "the certificate of {issuer} is not that of a certificate authority, but issued that of {subject}"
    )]
    NotAnAuthority {
        /// Who issued.
        issuer: X500Name,
        /// What was issued.
        subject: X500Name,
    },
    /// An issuer that allows fewer authorities below itself.
    #[error("{issuer} allows {allowed} authorities below itself, the path has {found}")]
    TooLong {
        /// Who limits.
        issuer: X500Name,
        /// How many it allows.
        allowed: u32,
        /// How many there are.
        found: usize,
    },
    /// A name outside of what an authority above may certify.
    #[error("{issuer} may not certify the name {subject}")]
    NameNotPermitted {
        /// Who limits.
        issuer: X500Name,
        /// The name outside.
        subject: X500Name,
    },
    /// A role that the issuer's role may not issue.
    #[error("a certificate of role {} cannot be issued by one of role {}, as {subject} has it", role_text(*.role), role_text(*.issuer_role))]
    RoleHierarchy {
        /// Whose certificate.
        subject: X500Name,
        /// Its role.
        role: Option<CertRole>,
        /// The role of its issuer.
        issuer_role: Option<CertRole>,
    },
    /// The leaf is for something else.
    #[error("the certificate of {subject} is for the role {}, here {expected} is needed", role_text(*.role))]
    WrongRole {
        /// Whose certificate.
        subject: X500Name,
        /// Its role.
        role: Option<CertRole>,
        /// The role that was expected.
        expected: CertRole,
    },
    /// The leaf's key usage does not allow signatures.
    #[error("the key usage of the certificate of {subject} does not allow signatures")]
    KeyUsage {
        /// Whose certificate.
        subject: X500Name,
    },
}

fn role_text(role: Option<CertRole>) -> String {
    role.map_or_else(|| "root".to_owned(), |role| role.to_string())
}

/// Checks that `path` proves, at the time `now` and to somebody who trusts `trust_root`, that the key of its leaf belongs
/// to the leaf's name in the role `expected`. The answer is that name.
///
/// # Errors
/// [`PathError`] names the certificate at fault and the rule.
pub fn validate_path(
    path: &CertificatePath,
    trust_root: &Certificate,
    now: UnixTime,
    expected: CertRole,
) -> Result<X500Name, PathError> {
    let mut below = path.certificates();
    if let [rest @ .., last] = below
        && last == trust_root
    {
        below = rest;
    }
    let Some(leaf) = below.first() else {
        return Err(PathError::Empty);
    };
    debug_assert!(
        below.len() <= MAX_PATH_CERTIFICATES,
        "a path is bounded when made"
    );

    // The cheap rules first: a stranger's bad path should not cost us signature checks.
    check_end(leaf, below, trust_root, expected)?;
    let issuers = || below[1..].iter().chain([trust_root]);
    for certificate in below.iter().chain([trust_root]) {
        check_validity(certificate, now)?;
    }
    for (position, (certificate, issuer)) in below.iter().zip(issuers()).enumerate() {
        check_issue(certificate, issuer)?;
        check_authority(issuer, &below[..=position])?;
    }
    for (certificate, issuer) in below.iter().zip(issuers()) {
        certificate
            .verify_issued_by(issuer)
            .map_err(|_| PathError::BadSignature {
                subject: certificate.subject().clone(),
                issuer: issuer.subject().clone(),
            })?;
    }
    Ok(leaf.subject().clone())
}

fn check_end(
    leaf: &Certificate,
    below: &[Certificate],
    trust_root: &Certificate,
    expected: CertRole,
) -> Result<(), PathError> {
    let last = below.last().expect("the caller found a leaf");
    // A root of the same name with another key shows by standing, without a role, where ours was taken away.
    if last.issuer() != trust_root.subject() || last.role().is_none() {
        return Err(PathError::ForeignRoot {
            subject: leaf.subject().clone(),
            issuer: last.issuer().clone(),
            root: trust_root.subject().clone(),
        });
    }
    if leaf.role() != Some(expected) {
        return Err(PathError::WrongRole {
            subject: leaf.subject().clone(),
            role: leaf.role(),
            expected,
        });
    }
    if !leaf.extensions().signs_data {
        return Err(PathError::KeyUsage {
            subject: leaf.subject().clone(),
        });
    }
    Ok(())
}

fn check_validity(certificate: &Certificate, now: UnixTime) -> Result<(), PathError> {
    let validity = certificate.validity();
    if now < validity.not_before {
        return Err(PathError::NotYetValid {
            subject: certificate.subject().clone(),
            not_before: validity.not_before,
            now,
        });
    }
    if now > validity.not_after {
        return Err(PathError::Expired {
            subject: certificate.subject().clone(),
            not_after: validity.not_after,
            now,
        });
    }
    Ok(())
}

/// What a certificate and its issuer must agree on, except for the signature.
fn check_issue(certificate: &Certificate, issuer: &Certificate) -> Result<(), PathError> {
    if certificate.issuer() != issuer.subject() {
        return Err(PathError::Unchained {
            subject: certificate.subject().clone(),
            issuer: certificate.issuer().clone(),
            next: issuer.subject().clone(),
        });
    }
    let permitted = certificate
        .role()
        .is_some_and(|role| role.may_be_issued_by(issuer.role()));
    if !permitted {
        return Err(PathError::RoleHierarchy {
            subject: certificate.subject().clone(),
            role: certificate.role(),
            issuer_role: issuer.role(),
        });
    }
    Ok(())
}

/// What an authority allows to the certificates below it, `below` (leaf first, its own issue last).
fn check_authority(issuer: &Certificate, below: &[Certificate]) -> Result<(), PathError> {
    let rules = issuer.extensions();
    let issued = below.last().expect("an issuer has issued something");
    if !rules.is_ca || !rules.signs_certificates {
        return Err(PathError::NotAnAuthority {
            issuer: issuer.subject().clone(),
            subject: issued.subject().clone(),
        });
    }
    // The leaf does not count, whatever it is.
    let authorities = below.len() - 1;
    if let Some(allowed) = rules.max_intermediates
        && authorities > allowed as usize
    {
        return Err(PathError::TooLong {
            issuer: issuer.subject().clone(),
            allowed,
            found: authorities,
        });
    }
    for certificate in below {
        let name = certificate.subject();
        let permitted = rules
            .permitted
            .as_ref()
            .is_none_or(|bases| bases.iter().any(|base| name.is_within(base)));
        if !permitted || rules.excluded.iter().any(|base| name.is_within(base)) {
            return Err(PathError::NameNotPermitted {
                issuer: issuer.subject().clone(),
                subject: name.clone(),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
