//! Policies: which signatures a channel wants to see before it allows something.
//!
//! [`Policies`] is the tree of all policies of a channel's configuration. Evaluating one verifies each signature once
//! ([`verified_identities`]), then asks the tree who the signers are. (Fabric verifies the signatures for every sub policy
//! again; since all of them ask the same membership, the answer is the same.)
//!
//! Texts are Fabric's: they reach clients.

mod requirement;
mod signature;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;

use crate::msp::{GO_PROTO_MALFORMED, Identity, Membership};
use crate::proto::common::implicit_meta_policy::Rule;
use crate::proto::common::policy::PolicyType;
use crate::proto::common::{ConfigGroup, ImplicitMetaPolicy};
pub use requirement::Requirement;
use signature::SignaturePolicy;

/// A signature, what it is over, and who is said to have made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedData {
    /// What was signed.
    pub data: Bytes,
    /// The signer's `SerializedIdentity`.
    pub identity: Bytes,
    /// The signature.
    pub signature: Bytes,
}

/// Why a policy is not satisfied or not acceptable; texts as Fabric's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// The definition breaks a rule.
    #[error("{0}")]
    Invalid(String),
    /// The signatures do not satisfy a signature policy.
    #[error("signature set did not satisfy policy")]
    Unsatisfied,
    /// Too few of the policies below are satisfied.
    #[error(
        "implicit policy evaluation failed - {satisfied} sub-policies were satisfied, but this policy requires {required} of the '{sub_policy}' sub-policies to be satisfied"
    )]
    TooFew {
        /// How many are.
        satisfied: usize,
        /// How many should be.
        required: usize,
        /// Their name.
        sub_policy: String,
    },
}

/// How many wrong signatures of one identity are looked at in one set. Each costs a verification, and whoever sends a set may
/// fill it with as many as a message holds.
const MAX_WRONG_SIGNATURES: usize = 8;

/// The signers of a set of signatures: valid signatures only, every identity once, in the order of the set.
///
/// That an identity has signed does not mean that its MSP accepts it; principals see to that. What was signed is often the same
/// long message with a short addition: the set is consumed one by one, so that it need not be in memory as a whole.
#[must_use]
pub fn verified_identities(
    membership: &Membership,
    signatures: impl IntoIterator<Item = SignedData>,
) -> Vec<Arc<Identity>> {
    let mut found: Vec<Arc<Identity>> = Vec::new();
    // How often each has been tried in vain; as often as it may be, once it has signed.
    let mut tried: BTreeMap<(String, String), usize> = BTreeMap::new();
    for signed in signatures {
        let Ok(identity) = membership.identity(&signed.identity) else {
            continue;
        };
        let who = (identity.msp_id().to_owned(), identity.id().to_owned());
        let times = tried.entry(who).or_default();
        // Before the verification, so that nobody can keep us busy with one signature a thousand times.
        if *times == MAX_WRONG_SIGNATURES {
            continue;
        }
        if identity.verify(&signed.data, &signed.signature).is_ok() {
            *times = MAX_WRONG_SIGNATURES;
            found.push(identity);
        } else {
            *times += 1;
        }
    }
    found
}

/// The policies of a configuration group and the groups below it, by path. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Policies {
    membership: Arc<Membership>,
    manager: Arc<Manager>,
}

#[derive(Debug)]
struct Manager {
    /// `Channel/Application`
    path: String,
    policies: BTreeMap<String, Arc<Node>>,
    managers: BTreeMap<String, Arc<Manager>>,
}

/// One policy, ready for evaluation. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Policy {
    membership: Arc<Membership>,
    node: Arc<Node>,
}

#[derive(Debug)]
enum Node {
    Signature(SignaturePolicy),
    Implicit(Implicit),
}

#[derive(Debug)]
struct Implicit {
    name: String,
    required: usize,
    /// One for each group below, by the policy's path; `None` where the group has no such policy, which then is never
    /// satisfied.
    parts: Vec<(String, Option<Arc<Node>>)>,
}

impl Policies {
    /// Reads all policies of a group named `root` (`Channel`) and the groups below it.
    ///
    /// # Errors
    /// [`PolicyError`] naming the policy that is malformed.
    pub fn new(
        root: &str,
        group: &ConfigGroup,
        membership: Arc<Membership>,
    ) -> Result<Self, PolicyError> {
        Ok(Self {
            membership,
            manager: Arc::new(Manager::read(root.to_owned(), group)?),
        })
    }

    /// The policy at an absolute path (`/Channel/Application/Writers`), or at one relative to this group
    /// (`Application/Writers`).
    #[must_use]
    pub fn get(&self, path: &str) -> Option<Policy> {
        Some(Policy {
            membership: self.membership.clone(),
            node: self.manager.get(path)?.clone(),
        })
    }

    /// The policies of the group at this path below this one.
    #[must_use]
    pub fn manager(&self, path: &[&str]) -> Option<Self> {
        let mut manager = &self.manager;
        for name in path {
            manager = manager.managers.get(*name)?;
        }
        Some(Self {
            membership: self.membership.clone(),
            manager: manager.clone(),
        })
    }

    /// The path of the group, without a leading slash.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.manager.path
    }

    /// Who is asked about identities.
    #[must_use]
    pub fn membership(&self) -> &Arc<Membership> {
        &self.membership
    }
}

impl Manager {
    fn read(path: String, group: &ConfigGroup) -> Result<Self, PolicyError> {
        let mut managers = BTreeMap::new();
        for (name, group) in &group.groups {
            let manager = Self::read(format!("{path}/{name}"), group)?;
            managers.insert(name.clone(), Arc::new(manager));
        }
        let mut policies = BTreeMap::new();
        for (name, config) in &group.policies {
            let invalid = |text: String| Err(PolicyError::Invalid(text));
            let Some(policy) = &config.policy else {
                return invalid(format!("policy {name} at path {path} was nil"));
            };
            let node = match PolicyType::try_from(policy.r#type) {
                Ok(PolicyType::ImplicitMeta) => match Implicit::read(&policy.value, &managers) {
                    Ok(implicit) => Node::Implicit(implicit),
                    Err(why) => {
                        return invalid(format!(
                            "implicit policy {name} at path {path} did not compile: {why}"
                        ));
                    }
                },
                Ok(PolicyType::Signature) => match SignaturePolicy::read(&policy.value) {
                    Ok(signature) => Node::Signature(signature),
                    Err(why) => {
                        return invalid(format!(
                            "policy {name} at path {path} did not compile: {why}"
                        ));
                    }
                },
                Ok(PolicyType::Unknown | PolicyType::Msp) | Err(_) => {
                    return invalid(format!(
                        "policy {name} at path {path} has unknown policy type: {}",
                        policy.r#type
                    ));
                }
            };
            policies.insert(name.clone(), Arc::new(node));
        }
        Ok(Self {
            path,
            policies,
            managers,
        })
    }

    fn get(&self, path: &str) -> Option<&Arc<Node>> {
        let relative = match path.strip_prefix('/') {
            Some(absolute) => absolute
                .strip_prefix(self.path.as_str())?
                .strip_prefix('/')?,
            None => path,
        };
        self.below(relative)
    }

    fn below(&self, relative: &str) -> Option<&Arc<Node>> {
        match relative.split_once('/') {
            Some((group, rest)) => self.managers.get(group)?.below(rest),
            None => self.policies.get(relative),
        }
    }
}

impl Implicit {
    fn read(bytes: &[u8], managers: &BTreeMap<String, Arc<Manager>>) -> Result<Self, String> {
        let definition = ImplicitMetaPolicy::decode(bytes).map_err(|_| {
            format!("Error unmarshalling to ImplicitMetaPolicy: {GO_PROTO_MALFORMED}")
        })?;
        let parts: Vec<_> = managers
            .values()
            .map(|manager| {
                let path = format!("/{}/{}", manager.path, definition.sub_policy);
                (path, manager.get(&definition.sub_policy).cloned())
            })
            .collect();
        let required = match Rule::try_from(definition.rule) {
            // Of nobody, nothing can be required.
            Ok(_) if parts.is_empty() => 0,
            Ok(Rule::Any) => 1,
            Ok(Rule::All) => parts.len(),
            Ok(Rule::Majority) => parts.len() / 2 + 1,
            // Fabric lets such a policy pass when no part is satisfied. It is there by mistake or malice: it never passes.
            Err(_) => parts.len() + 1,
        };
        Ok(Self {
            name: definition.sub_policy,
            required,
            parts,
        })
    }

    /// How many parts are satisfied; counting ends when they are enough.
    fn satisfied(&self, signers: &[Arc<Identity>]) -> usize {
        let mut satisfied = 0;
        for part in self.parts.iter().filter_map(|(_, part)| part.as_ref()) {
            if satisfied == self.required {
                break;
            }
            satisfied += usize::from(part.is_satisfied(signers));
        }
        satisfied
    }
}

impl Node {
    fn is_satisfied(&self, signers: &[Arc<Identity>]) -> bool {
        match self {
            Self::Signature(policy) => policy.is_satisfied(signers),
            Self::Implicit(policy) => policy.satisfied(signers) >= policy.required,
        }
    }
}

impl Policy {
    /// Who is asked about identities.
    #[must_use]
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    /// Whether these signatures satisfy the policy. Signatures that are not valid are passed over, and of an identity only
    /// one counts.
    ///
    /// # Errors
    /// [`PolicyError`] saying what was missing.
    pub fn evaluate(&self, signatures: &[SignedData]) -> Result<(), PolicyError> {
        self.evaluate_identities(&verified_identities(
            &self.membership,
            signatures.iter().cloned(),
        ))
    }

    /// What the policy, whose name is given, asks for, and how much of it these signers give.
    #[must_use]
    pub fn requirement(&self, name: &str, signers: &[Arc<Identity>]) -> Requirement {
        self.node.requirement(name.to_owned(), signers)
    }

    /// Like [`Policy::evaluate`], for signers whose signatures were verified before: when several policies judge the same
    /// signatures, they need not be verified for each.
    ///
    /// # Errors
    /// [`PolicyError`] saying what was missing.
    pub fn evaluate_identities(&self, signers: &[Arc<Identity>]) -> Result<(), PolicyError> {
        match &*self.node {
            Node::Signature(policy) if policy.is_satisfied(signers) => Ok(()),
            Node::Signature(_) => Err(PolicyError::Unsatisfied),
            Node::Implicit(policy) => {
                let satisfied = policy.satisfied(signers);
                if satisfied >= policy.required {
                    return Ok(());
                }
                Err(PolicyError::TooFew {
                    satisfied,
                    required: policy.required,
                    sub_policy: policy.name.clone(),
                })
            }
        }
    }
}
