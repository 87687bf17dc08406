//! From a certificate to the roots: all chains that hold, as Go's `Certificate.Verify` finds them.
//!
//! All, not the best one, because Fabric wants there to be exactly one. The number of signatures that one search checks is
//! bounded.

use super::X509Error;
use super::certificate::Certificate;
use super::extensions::Name;
use crate::certificate::UnixTime;

/// The most signatures that one search checks.
const MAX_SIGNATURE_CHECKS: usize = 100;

/// Certificates to build chains from. The same certificate is held once.
#[derive(Debug, Clone, Default)]
pub struct Pool(Vec<Certificate>);

impl Pool {
    /// An empty pool.
    #[must_use]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds a certificate if it is not there yet.
    pub fn add(&mut self, certificate: Certificate) {
        if !self.contains(&certificate) {
            self.0.push(certificate);
        }
    }

    /// Whether this very certificate is in the pool.
    #[must_use]
    pub fn contains(&self, certificate: &Certificate) -> bool {
        self.0.contains(certificate)
    }

    /// The certificates, in the order in which they were added.
    #[must_use]
    pub fn certificates(&self) -> &[Certificate] {
        &self.0
    }

    /// Certificates whose subject is the issuer of `child`, those with the wanted key first.
    fn parents<'a>(&'a self, child: &Certificate) -> Vec<&'a Certificate> {
        let mut found: Vec<_> = self
            .0
            .iter()
            .filter(|candidate| candidate.raw_subject() == child.raw_issuer())
            .collect();
        found.sort_by_key(|candidate| {
            match (candidate.subject_key_id(), child.authority_key_id()) {
                (Some(own), Some(wanted)) if own == wanted => 0,
                (Some(_), Some(_)) => 2,
                _ => 1,
            }
        });
        found
    }
}

impl FromIterator<Certificate> for Pool {
    fn from_iter<I: IntoIterator<Item = Certificate>>(certificates: I) -> Self {
        let mut pool = Self::new();
        for certificate in certificates {
            pool.add(certificate);
        }
        pool
    }
}

/// What a chain must allow its first certificate to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtendedUsage {
    /// Nothing in particular.
    Any,
    /// To be a TLS server. Go's default, hence what membership asks for.
    Server,
    /// To be a TLS client.
    Client,
}

/// What to build chains from, and by which rules.
#[derive(Debug, Clone, Copy)]
pub struct ChainOptions<'a> {
    /// What is trusted.
    pub roots: &'a Pool,
    /// What may stand between.
    pub intermediates: &'a Pool,
    /// The time at which all certificates of a chain must be valid.
    pub at: UnixTime,
    /// What all certificates of a chain must allow.
    pub usage: ExtendedUsage,
}

/// All chains from `leaf` to a root, each with the leaf first and the root last. There is at least one.
///
/// # Errors
/// [`X509Error`] saying why there is none.
pub fn chains(
    leaf: &Certificate,
    options: &ChainOptions<'_>,
) -> Result<Vec<Vec<Certificate>>, X509Error> {
    check(leaf, Place::Leaf, &[], options)?;
    let found = if options.roots.contains(leaf) {
        vec![vec![leaf.clone()]]
    } else {
        let mut search = Search { options, checks: 0 };
        search.extend(std::slice::from_ref(leaf))?
    };
    let usable: Vec<_> = found
        .into_iter()
        .filter(|chain| allows(chain, options.usage))
        .collect();
    if usable.is_empty() {
        return Err(X509Error::IncompatibleUsage);
    }
    Ok(usable)
}

struct Search<'a> {
    options: &'a ChainOptions<'a>,
    checks: usize,
}

impl Search<'_> {
    /// All ways to complete a chain that begins like this.
    fn extend(&mut self, begun: &[Certificate]) -> Result<Vec<Vec<Certificate>>, X509Error> {
        let child = begun.last().expect("a chain begins with its leaf");
        let mut found = Vec::new();
        let mut failure = None;
        let mut hint = None;
        let roots = self.options.roots.parents(child);
        let intermediates = self.options.intermediates.parents(child);
        let candidates = roots.into_iter().map(|root| (Place::Root, root)).chain(
            intermediates
                .into_iter()
                .map(|ca| (Place::Intermediate, ca)),
        );
        for (place, candidate) in candidates {
            let known = begun.iter().any(|one| {
                one.raw_subject() == candidate.raw_subject()
                    && one.public_key() == candidate.public_key()
                    && one.extensions().names == candidate.extensions().names
            });
            if known {
                continue;
            }
            self.checks += 1;
            if self.checks > MAX_SIGNATURE_CHECKS {
                failure = Some(X509Error::SignatureCheckLimit);
                break;
            }
            if let Err(error) = child.verify_signed_by(candidate) {
                hint.get_or_insert((error, candidate));
                continue;
            }
            if let Err(error) = check(candidate, place, begun, self.options) {
                hint.get_or_insert((error.clone(), candidate));
                failure = Some(error);
                continue;
            }
            let longer = [begun, std::slice::from_ref(candidate)].concat();
            match place {
                Place::Root => {
                    failure = None;
                    found.push(longer);
                }
                _ => match self.extend(&longer) {
                    Ok(more) => {
                        failure = None;
                        found.extend(more);
                    }
                    Err(error) => failure = Some(error),
                },
            }
        }
        if !found.is_empty() {
            return Ok(found);
        }
        Err(failure.unwrap_or_else(|| {
            X509Error::UnknownAuthority(hint.map_or_else(String::new, |(error, candidate)| {
                let name = match candidate.common_name() {
                    "" => format!("serial:{}", candidate.serial_decimal()),
                    name => name.to_owned(),
                };
                format!(
                    " (possibly because of {:?} while trying to verify candidate authority certificate {name:?})",
                    error.to_string()
                )
            }))
        }))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Leaf,
    Intermediate,
    Root,
}

/// Whether a certificate may stand at its place, behind the chain that was begun.
fn check(
    certificate: &Certificate,
    place: Place,
    begun: &[Certificate],
    options: &ChainOptions<'_>,
) -> Result<(), X509Error> {
    let rules = certificate.extensions();
    if rules.unhandled_critical {
        return Err(X509Error::UnhandledCriticalExtension);
    }
    let now = options.at;
    let expired = |relation, limit| X509Error::Expired {
        now,
        relation,
        limit,
    };
    if now < certificate.not_before() {
        return Err(expired("before", certificate.not_before()));
    }
    if now > certificate.not_after() {
        return Err(expired("after", certificate.not_after()));
    }
    if place != Place::Leaf
        && let (Some(constraints), Some(leaf)) = (&rules.name_constraints, begun.first())
    {
        for name in &leaf.extensions().names {
            if let Some(why) = refusal(name, &constraints.permitted, &constraints.excluded) {
                return Err(X509Error::NameNotPermitted(why));
            }
        }
    }
    if place == Place::Intermediate && !rules.is_ca {
        return Err(X509Error::NotAuthorizedToSign);
    }
    if let Some(most) = rules.max_path
        && begun.len().saturating_sub(1) > usize::try_from(most).unwrap_or(usize::MAX)
    {
        return Err(X509Error::TooManyIntermediates);
    }
    Ok(())
}

fn allows(chain: &[Certificate], usage: ExtendedUsage) -> bool {
    chain.iter().all(|certificate| {
        let Some(stated) = certificate.extensions().extended_usage else {
            return true;
        };
        stated.any
            || match usage {
                ExtendedUsage::Any => true,
                ExtendedUsage::Server => stated.server,
                ExtendedUsage::Client => stated.client,
            }
    })
}

/// Fabric's additional rule (Go had it once): an authority with name constraints does not certify a host name that
/// stands in the subject only.
#[must_use]
pub fn name_constraints_without_names(chain: &[Certificate]) -> bool {
    let Some((leaf, authorities)) = chain.split_first() else {
        return false;
    };
    !leaf.has_alternative_names()
        && is_host_name(leaf.common_name())
        && authorities.iter().any(Certificate::has_name_constraints)
}

fn is_host_name(text: &str) -> bool {
    let text = text.strip_suffix('.').unwrap_or(text);
    !text.is_empty()
        && text.split('.').enumerate().all(|(at, label)| {
            let letters = label.bytes().enumerate().all(|(at, byte)| {
                byte.is_ascii_alphanumeric()
                    || byte == b'_'
                    || byte == b':'
                    || (byte == b'-' && at > 0)
            });
            !label.is_empty() && (letters || (at == 0 && label == "*"))
        })
}

/// Why a name is not permitted, if it is not.
fn refusal(name: &Name, permitted: &[Name], excluded: &[Name]) -> Option<String> {
    let same_kind =
        |constraint: &&Name| std::mem::discriminant(*constraint) == std::mem::discriminant(name);
    if let Some(constraint) = excluded
        .iter()
        .filter(same_kind)
        .find(|constraint| covers(constraint, name).unwrap_or(true))
    {
        return Some(format!("{name:?} is excluded by constraint {constraint:?}"));
    }
    let mut of_kind = permitted.iter().filter(same_kind).peekable();
    if of_kind.peek().is_some() && !of_kind.any(|constraint| covers(constraint, name) == Some(true))
    {
        return Some(format!("{name:?} is not permitted by any constraint"));
    }
    None
}

/// Whether a constraint covers a name of its kind; `None` if the name cannot be judged, which counts against it.
fn covers(constraint: &Name, name: &Name) -> Option<bool> {
    match (constraint, name) {
        (Name::Dns(constraint), Name::Dns(name)) => Some(domain_covers(constraint, name)),
        (Name::Mail(constraint), Name::Mail(name)) => {
            let (_, host) = name.rsplit_once('@')?;
            Some(if constraint.contains('@') {
                constraint == name
            } else {
                domain_covers(constraint, host)
            })
        }
        (Name::Uri(constraint), Name::Uri(name)) => {
            let (_, rest) = name.split_once("://")?;
            let authority = rest.split(['/', '?', '#']).next()?;
            let host = authority.rsplit('@').next()?;
            if host.starts_with('[') {
                return None;
            }
            let host = host.split(':').next()?;
            if host.is_empty() || host.parse::<std::net::IpAddr>().is_ok() {
                return None;
            }
            Some(domain_covers(constraint, host))
        }
        (Name::Ip(constraint), Name::Ip(name)) => {
            let (network, mask) = constraint.split_at(constraint.len() / 2);
            Some(
                network.len() == name.len()
                    && name
                        .iter()
                        .zip(network)
                        .zip(mask)
                        .all(|((byte, network), mask)| byte & mask == network & mask),
            )
        }
        _ => None,
    }
}

/// Whether a domain is the constraint or below it; only below if the constraint begins with a dot.
fn domain_covers(constraint: &str, domain: &str) -> bool {
    if constraint.is_empty() {
        return true;
    }
    let (suffix, below_only) = match constraint.strip_prefix('.') {
        Some(suffix) => (suffix, true),
        None => (constraint, false),
    };
    let mut labels = domain.rsplit('.');
    for wanted in suffix.rsplit('.') {
        if !labels
            .next()
            .is_some_and(|label| label.eq_ignore_ascii_case(wanted))
        {
            return false;
        }
    }
    !below_only || labels.next().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_are_covered_label_by_label() {
        for (constraint, domain, covered) in [
            ("", "any.thing", true),
            ("org1.test", "org1.test", true),
            ("org1.test", "peer0.ORG1.test", true),
            ("org1.test", "notorg1.test", false),
            (".org1.test", "org1.test", false),
            (".org1.test", "peer0.org1.test", true),
            ("a.org1.test", "org1.test", false),
        ] {
            assert_eq!(
                domain_covers(constraint, domain),
                covered,
                "{constraint} {domain}"
            );
        }
    }

    #[test]
    fn names_are_judged_by_the_constraints_of_their_kind() {
        let dns = |text: &str| Name::Dns(text.to_owned());
        let permitted = [dns("org1.test")];
        assert!(refusal(&dns("peer0.org1.test"), &permitted, &[]).is_none());
        assert!(refusal(&dns("peer0.org2.test"), &permitted, &[]).is_some());
        assert!(
            refusal(
                &dns("peer0.org1.test"),
                &permitted,
                &[dns("peer0.org1.test")]
            )
            .is_some()
        );
        assert!(refusal(&Name::Ip(vec![10, 0, 0, 1]), &permitted, &[]).is_none());
        let network = [Name::Ip(vec![10, 0, 0, 0, 255, 0, 0, 0])];
        assert!(refusal(&Name::Ip(vec![10, 9, 9, 9]), &network, &[]).is_none());
        assert!(refusal(&Name::Ip(vec![11, 0, 0, 1]), &network, &[]).is_some());
        let uri = [Name::Uri("org1.test".to_owned())];
        assert!(refusal(&Name::Uri("https://x.org1.test:80/y".to_owned()), &uri, &[]).is_none());
        assert!(refusal(&Name::Uri("nonsense".to_owned()), &uri, &[]).is_some());
    }

    #[test]
    fn a_user_is_no_host_name() {
        assert!(is_host_name("peer0.org1.test"));
        assert!(is_host_name("*.org1.test."));
        assert!(!is_host_name("User1@org1.test"));
        assert!(!is_host_name("a..b") && !is_host_name("") && !is_host_name("-a"));
    }
}
