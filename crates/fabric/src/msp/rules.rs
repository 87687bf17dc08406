//! What an MSP says of one certificate: its chain, its revocation, its organisational units.

use aws_lc_rs::digest;
use quorate_identity::x509::{
    Certificate, ChainOptions, ExtendedUsage, Pool, X509Error, chains,
    name_constraints_without_names,
};

use super::definition::Msp;
use super::{IdentityError, MspVersion, go_bytes};
use crate::proto::common::msp_role::MspRoleType;

/// How clients, peers, admins and orderers are told apart.
#[derive(Default)]
pub(super) struct NodeUnits {
    pub(super) enforced: bool,
    pub(super) client: Option<Unit>,
    pub(super) peer: Option<Unit>,
    pub(super) admin: Option<Unit>,
    pub(super) orderer: Option<Unit>,
}

pub(super) struct Unit {
    pub(super) name: String,
    /// The identifier of the authorities that may certify it; empty: any.
    pub(super) certifiers: Vec<u8>,
}

/// What an MSP says of a certificate. It never changes.
pub(super) struct Standing {
    pub(super) verdict: Result<(), IdentityError>,
    /// The identifier of the authorities above the certificate; `None` if there is no chain.
    pub(super) certifiers: Option<Vec<u8>>,
}

impl Msp {
    /// What this MSP says of a certificate in its low-S form.
    pub(super) fn standing(&self, certificate: &Certificate) -> Standing {
        let refused =
            |what: &str, error: String| IdentityError::Refused(format!("{what}: {error}"));
        let chain = match self.member_chain(certificate) {
            Ok(chain) => chain,
            Err(error) => {
                return Standing {
                    verdict: Err(refused("could not obtain certification chain", error)),
                    certifiers: None,
                };
            }
        };
        let certifiers = self.hash_chain(&chain[1..]).ok();
        let verdict = self
            .check_revocation(certificate, &chain)
            .map_err(|error| {
                refused(
                    "could not validate identity against certification chain",
                    error,
                )
            })
            .and_then(|()| {
                self.check_units(certificate, certifiers.as_deref())
                    .map_err(|error| refused("could not validate identity's OUs", error))
            });
        Standing {
            verdict,
            certifiers,
        }
    }

    fn member_chain(&self, certificate: &Certificate) -> Result<Vec<Certificate>, String> {
        if certificate.is_ca() {
            return Err("An X509 certificate with Basic Constraint: \
                        Certificate Authority equals true cannot be used as an identity"
                .to_owned());
        }
        self.validation_chain(certificate, 1)
    }

    /// The one chain, of two certificates at least; the certificate at `parent` must have no authorities below it.
    pub(super) fn validation_chain(
        &self,
        certificate: &Certificate,
        parent: usize,
    ) -> Result<Vec<Certificate>, String> {
        let chain = self
            .one_chain(certificate)
            .map_err(|error| format!("failed getting validation chain: {error}"))?;
        if chain.len() < 2 {
            return Err(format!(
                "expected a chain of length at least 2, got {}",
                chain.len()
            ));
        }
        if self.internal_nodes.contains(chain[parent].der()) {
            return Err(format!(
                "invalid validation chain. Parent certificate should be a leaf of the certification tree [{}]",
                go_bytes(certificate.der())
            ));
        }
        Ok(chain)
    }

    pub(super) fn one_chain(&self, certificate: &Certificate) -> Result<Vec<Certificate>, String> {
        one_chain(certificate, &self.roots, &self.intermediates)
    }

    /// The certificate with the low form of its signature. Of the two forms only one may be known, or one certificate
    /// would count as two identities.
    pub(super) fn sanitise(&self, certificate: &Certificate) -> Result<Certificate, String> {
        if !certificate.signature_algorithm().is_ecdsa() {
            return Ok(certificate.clone());
        }
        if certificate.is_ca() && certificate.verify_signed_by(certificate).is_ok() {
            let lowered = lowered(certificate, certificate)?;
            let itself: Pool = std::iter::once(lowered.clone()).collect();
            one_chain(&lowered, &itself, &self.intermediates)?;
            return Ok(lowered);
        }
        let chain = self.one_chain(certificate)?;
        let Some(parent) = chain.get(1) else {
            return Err(format!(
                "failed to traverse certificate verification chain for leaf or intermediate certificate, with subject {}",
                certificate.subject()
            ));
        };
        lowered(certificate, parent)
    }

    pub(super) fn check_revocation(
        &self,
        certificate: &Certificate,
        chain: &[Certificate],
    ) -> Result<(), String> {
        let Some(authority) = chain.get(1) else {
            return Ok(());
        };
        let Some(key_id) = authority.subject_key_id() else {
            return Err(
                "could not obtain Subject Key Identifier for signer cert: subjectKeyIdentifier not found in certificate"
                    .to_owned(),
            );
        };
        for list in &self.revocation_lists {
            let Some(list_key_id) = list.authority_key_id() else {
                return Err(
                    "could not obtain Authority Key Identifier for crl: authorityKeyIdentifier not found in certificate"
                        .to_owned(),
                );
            };
            // A list that the authority did not sign says nothing about its certificates.
            if list_key_id == key_id
                && list.lists(certificate)
                && list.verify_signed_by(authority).is_ok()
            {
                return Err("The certificate has been revoked".to_owned());
            }
        }
        Ok(())
    }

    fn check_units(
        &self,
        certificate: &Certificate,
        certifiers: Option<&[u8]>,
    ) -> Result<(), String> {
        // Without their certifiers, the units do not count.
        let names = certifiers.map_or(&[][..], |_| certificate.units());
        let certifiers = certifiers.unwrap_or_default();
        if !self.node_units.enforced {
            return self.check_listed_units(names, certifiers);
        }
        let mut found = 0;
        for name in names {
            let Some(unit) = self.node_units.all().find(|unit| unit.name == *name) else {
                continue;
            };
            if !unit.certifiers.is_empty() && unit.certifiers != certifiers {
                return Err(format!(
                    "certifiersIdentifier does not match: {}, MSP: [{}]",
                    units_text(names, certifiers),
                    self.id
                ));
            }
            found += 1;
        }
        if found != 1 {
            let kinds = if self.version < MspVersion::V1_4_3 {
                "a client or a peer"
            } else {
                "a client, a peer, an orderer or an admin"
            };
            return Err(format!(
                "the identity must be {kinds} identity to be valid, not a combination of them. OUs: {}, MSP: [{}]",
                units_text(names, certifiers),
                self.id
            ));
        }
        Ok(())
    }

    fn check_listed_units(&self, names: &[String], certifiers: &[u8]) -> Result<(), String> {
        let listed = |name: &String| {
            self.units
                .get(name)
                .is_some_and(|known| known.iter().any(|one| one == certifiers))
        };
        if self.units.is_empty() || names.iter().any(listed) {
            return Ok(());
        }
        Err(if names.is_empty() {
            "the identity certificate does not contain an Organizational Unit (OU)".to_owned()
        } else {
            format!(
                "none of the identity's organizational units {} are in MSP {}",
                units_text(names, certifiers),
                self.id
            )
        })
    }

    /// Whether a certificate has the node OU of a role. That it is valid is for the caller to see.
    pub(super) fn check_role(
        &self,
        certificate: &Certificate,
        standing: &Standing,
        role: MspRoleType,
    ) -> Result<(), String> {
        if !self.node_units.enforced {
            return Err("NodeOUs not activated. Cannot tell apart identities.".to_owned());
        }
        let Some(unit) = self.node_units.of(role) else {
            return Err(format!(
                "cannot test for classification, node ou for type [{}], not defined, msp: [{}]",
                role.as_str_name(),
                self.id
            ));
        };
        if standing.certifiers.is_some() && certificate.units().contains(&unit.name) {
            return Ok(());
        }
        Err(format!(
            "The identity does not contain OU [{}], MSP: [{}]",
            role.as_str_name(),
            self.id
        ))
    }

    /// Like [`Msp::check_role`], for those who do not want to know why not.
    pub(super) fn has_role(
        &self,
        certificate: &Certificate,
        standing: &Standing,
        role: MspRoleType,
    ) -> bool {
        self.node_units.enforced
            && standing.certifiers.is_some()
            && self
                .node_units
                .of(role)
                .is_some_and(|unit| certificate.units().contains(&unit.name))
    }

    /// Whether node OUs tell roles apart.
    pub(super) fn enforces_node_units(&self) -> bool {
        self.node_units.enforced
    }

    /// Whether the certificate is one of the admins' by name.
    pub(super) fn is_listed_admin(&self, certificate: &Certificate) -> bool {
        self.admins.contains(certificate)
    }

    /// The name of the hash that signatures are over.
    pub(super) fn signature_hash(&self) -> &str {
        &self.signature_hash
    }

    pub(super) fn hash_chain(&self, chain: &[Certificate]) -> Result<Vec<u8>, String> {
        let algorithm = match self.identifier_hash.as_str() {
            "SHA256" => &digest::SHA256,
            "SHA384" => &digest::SHA384,
            "SHA3_256" => &digest::SHA3_256,
            "SHA3_384" => &digest::SHA3_384,
            other => {
                return Err(format!(
                    "failed getting hash function options: hash function not recognized [{other}]"
                ));
            }
        };
        let mut context = digest::Context::new(algorithm);
        for certificate in chain {
            context.update(certificate.der());
        }
        Ok(context.finish().as_ref().to_vec())
    }
}

impl NodeUnits {
    pub(super) fn all(&self) -> impl Iterator<Item = &Unit> {
        // Of two units with one name Fabric keeps the last of these.
        [&self.orderer, &self.admin, &self.peer, &self.client]
            .into_iter()
            .flatten()
    }

    fn of(&self, role: MspRoleType) -> Option<&Unit> {
        match role {
            MspRoleType::Client => self.client.as_ref(),
            MspRoleType::Peer => self.peer.as_ref(),
            MspRoleType::Admin => self.admin.as_ref(),
            MspRoleType::Orderer => self.orderer.as_ref(),
            MspRoleType::Member => None,
        }
    }
}

/// The one chain from a certificate to a root, at the beginning of the certificate's own validity.
pub(super) fn one_chain(
    certificate: &Certificate,
    roots: &Pool,
    intermediates: &Pool,
) -> Result<Vec<Certificate>, String> {
    let not_valid = |error: X509Error| format!("the supplied identity is not valid: {error}");
    let options = ChainOptions {
        roots,
        intermediates,
        at: certificate.not_before().plus_seconds(1),
        usage: ExtendedUsage::Server,
    };
    let mut found = chains(certificate, &options).map_err(not_valid)?;
    match (found.pop(), found.len()) {
        (Some(chain), 0) if name_constraints_without_names(&chain) => {
            Err(not_valid(X509Error::NameConstraintsWithoutNames))
        }
        (Some(chain), 0) => Ok(chain),
        (_, others) => Err(format!(
            "this MSP only supports a single validation chain, got {}",
            others + 1
        )),
    }
}

fn lowered(certificate: &Certificate, parent: &Certificate) -> Result<Certificate, String> {
    let text = |error: X509Error| error.to_string();
    match parent
        .public_key()
        .lowered(certificate.signature())
        .map_err(text)?
    {
        None => Ok(certificate.clone()),
        Some(signature) => certificate.with_signature(&signature).map_err(text),
    }
}

/// Units as Fabric prints them: each with the beginning of its certifiers' identifier.
fn units_text(names: &[String], certifiers: &[u8]) -> String {
    let short = hex::encode_upper(certifiers.get(..8).unwrap_or(certifiers));
    let units: Vec<String> = names
        .iter()
        .map(|name| format!("{name}({short})"))
        .collect();
    format!("[{}]", units.join(" "))
}
