//! Signature policies: n out of several signers, each named by a principal.

use std::sync::Arc;

use prost::Message as _;

use super::requirement::Requirement;
use crate::msp::{GO_PROTO_MALFORMED, Identity, Principal};
use crate::proto::common::signature_policy::Type;
use crate::proto::common::{SignaturePolicy as Definition, SignaturePolicyEnvelope};

#[derive(Debug)]
pub(super) struct SignaturePolicy {
    rule: Rule,
    principals: Vec<Principal>,
}

#[derive(Debug)]
enum Rule {
    /// Signed by the principal at this place.
    SignedBy(usize),
    /// At least so many of these, where no signature counts for two.
    OutOf(i32, Vec<Rule>),
}

impl SignaturePolicy {
    pub(super) fn read(bytes: &[u8]) -> Result<Self, String> {
        let envelope = SignaturePolicyEnvelope::decode(bytes)
            .map_err(|_| format!("Error unmarshalling to SignaturePolicy: {GO_PROTO_MALFORMED}"))?;
        if envelope.version != 0 {
            return Err(format!(
                "This evaluator only understands messages of version 0, but version was {}",
                envelope.version
            ));
        }
        let rule = envelope.rule.as_ref().ok_or("Empty policy element")?;
        Ok(Self {
            rule: Rule::read(rule, envelope.identities.len())?,
            principals: envelope.identities.iter().map(Principal::read).collect(),
        })
    }

    pub(super) fn is_satisfied(&self, signers: &[Arc<Identity>]) -> bool {
        let mut used = vec![false; signers.len()];
        self.is_met(&self.rule, signers, &mut used)
    }

    /// What it asks for, and how much of it these signers give.
    pub(super) fn requirement(&self, name: String, signers: &[Arc<Identity>]) -> Requirement {
        let mut used = vec![false; signers.len()];
        Requirement {
            name,
            ..self.rule_requirement(&self.rule, signers, &mut used)
        }
    }

    fn rule_requirement(
        &self,
        rule: &Rule,
        signers: &[Arc<Identity>],
        used: &mut Vec<bool>,
    ) -> Requirement {
        match rule {
            Rule::SignedBy(index) => {
                let principal = &self.principals[*index];
                let found = (0..signers.len()).find(|at| !used[*at] && signers[*at].is(principal));
                if let Some(at) = found {
                    used[at] = true;
                }
                Requirement::signature_of(principal.to_string(), found.is_some())
            }
            Rule::OutOf(required, rules) => {
                let parts = rules
                    .iter()
                    .map(|rule| {
                        let mut tried = used.clone();
                        let part = self.rule_requirement(rule, signers, &mut tried);
                        if part.met {
                            *used = tried;
                        }
                        part
                    })
                    .collect();
                let required = usize::try_from(*required).unwrap_or_default();
                Requirement::out_of(String::new(), required, parts)
            }
        }
    }

    /// A signer is taken by the first rule that asks for him, as Fabric does it: the order of the rules matters, and a
    /// choice that turns out unlucky is not reconsidered. Signers taken by a rule that is not met in the end are free again.
    fn is_met(&self, rule: &Rule, signers: &[Arc<Identity>], used: &mut Vec<bool>) -> bool {
        match rule {
            Rule::SignedBy(principal) => {
                let principal = &self.principals[*principal];
                let found = signers
                    .iter()
                    .zip(used.iter_mut())
                    .find(|(signer, used)| !**used && signer.is(principal));
                match found {
                    Some((_, used)) => {
                        *used = true;
                        true
                    }
                    None => false,
                }
            }
            Rule::OutOf(required, rules) => {
                let mut met = 0;
                for rule in rules {
                    let mut tried = used.clone();
                    if self.is_met(rule, signers, &mut tried) {
                        met += 1;
                        *used = tried;
                    }
                }
                met >= *required
            }
        }
    }
}

impl Rule {
    fn read(definition: &Definition, principals: usize) -> Result<Self, String> {
        match &definition.r#type {
            Some(Type::SignedBy(index)) => usize::try_from(*index)
                .ok()
                .filter(|index| *index < principals)
                .map(Self::SignedBy)
                .ok_or_else(|| {
                    format!(
                        "identity index out of range, requested {index}, but identities length is {principals}"
                    )
                }),
            Some(Type::NOutOf(out_of)) => Ok(Self::OutOf(
                out_of.n,
                out_of
                    .rules
                    .iter()
                    .map(|rule| Self::read(rule, principals))
                    .collect::<Result<_, _>>()?,
            )),
            None => Err("Unknown type: <nil>:<nil>".to_owned()),
        }
    }
}
