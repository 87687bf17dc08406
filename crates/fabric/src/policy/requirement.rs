//! What a policy asks for, as a tree that people can read, with what is there already.

use std::fmt;
use std::sync::Arc;

use super::Node;
use crate::msp::Identity;

/// A policy, a gate within one, or one signature, and whether it is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    /// The path of the policy (`/Channel/Orderer/Admins`), or whose signature (`OrdererMSP.admin`); empty for a gate
    /// within a policy.
    pub name: String,
    /// How many of the parts it takes.
    pub required: usize,
    /// What it is made of; nothing if it is one signature.
    pub parts: Vec<Requirement>,
    /// Whether the signatures that there are suffice.
    pub met: bool,
}

impl Requirement {
    pub(super) fn signature_of(name: String, met: bool) -> Self {
        Self {
            name,
            required: 1,
            parts: Vec::new(),
            met,
        }
    }

    pub(super) fn out_of(name: String, required: usize, parts: Vec<Self>) -> Self {
        let met = parts.iter().filter(|part| part.met).count() >= required;
        Self {
            name,
            required,
            parts,
            met,
        }
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, depth: usize) -> fmt::Result {
        let mark = if self.met { '+' } else { '-' };
        let indent = 2 * depth;
        write!(f, "{:indent$}{mark} {}", "", self.name)?;
        // A gate over one signature is that signature.
        if let [only] = &self.parts[..]
            && only.parts.is_empty()
            && self.required == 1
        {
            let gap = if self.name.is_empty() { "" } else { ": " };
            return writeln!(f, "{gap}a signature of {}", only.name);
        }
        if self.parts.is_empty() {
            return f.write_str("\n");
        }
        let gap = if self.name.is_empty() { "" } else { ": " };
        let met = self.parts.iter().filter(|part| part.met).count();
        let (required, parts) = (self.required, self.parts.len());
        writeln!(f, "{gap}{required} of {parts}, there are {met}")?;
        self.parts
            .iter()
            .try_for_each(|part| part.write(f, depth + 1))
    }
}

/// One line for each part, `+` where it is met and `-` where it is not, parts indented below what they are parts of.
impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, 0)
    }
}

impl Node {
    pub(super) fn requirement(&self, name: String, signers: &[Arc<Identity>]) -> Requirement {
        match self {
            Self::Signature(policy) => policy.requirement(name, signers),
            Self::Implicit(policy) => {
                let parts = policy
                    .parts
                    .iter()
                    .map(|(path, part)| match part {
                        Some(part) => part.requirement(path.clone(), signers),
                        None => Requirement::signature_of(
                            format!("{path}, which does not exist"),
                            false,
                        ),
                    })
                    .collect();
                Requirement::out_of(name, policy.required, parts)
            }
        }
    }
}
