//! Identities, and the principals that they are measured by.

use std::fmt;
use std::sync::{Arc, OnceLock};

use aws_lc_rs::digest;
use prost::Message as _;
use quorate_identity::UnixTime;
use quorate_identity::x509::{Certificate, X509Error};

use super::rules::Standing;
use super::{GO_PROTO_MALFORMED, IdentityError, Msp, MspVersion};
use crate::proto::common::msp_identity_anonymity::MspIdentityAnonymityType;
use crate::proto::common::msp_principal::Classification;
use crate::proto::common::msp_role::MspRoleType;
use crate::proto::common::{
    CombinedPrincipal, MspIdentityAnonymity, MspPrincipal, MspRole, OrganizationUnit,
};
use crate::proto::msp::SerializedIdentity;

/// How deep combined principals may be nested. Fabric knows no limit; a stack has one.
const MAX_PRINCIPAL_DEPTH: usize = 32;

/// A certificate in the light of its MSP. Everything that takes time is done once.
pub struct Identity {
    msp: Arc<Msp>,
    /// In its low-S form.
    certificate: Certificate,
    id: String,
    standing: OnceLock<Standing>,
}

impl Identity {
    pub(super) fn new(msp: Arc<Msp>, certificate: Certificate, id: String) -> Self {
        Self {
            msp,
            certificate,
            id,
            standing: OnceLock::new(),
        }
    }

    /// The ID of its MSP.
    #[must_use]
    pub fn msp_id(&self) -> &str {
        self.msp.id()
    }

    /// The hash of its certificate, by which it is recognised within the MSP; lower-case hexadecimal.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its certificate, with the low form of the issuer's signature.
    #[must_use]
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// The last second of its certificate.
    #[must_use]
    pub fn expires_at(&self) -> UnixTime {
        self.certificate.not_after()
    }

    /// Its `SerializedIdentity` in the form in which Fabric writes it.
    #[must_use]
    pub fn serialized(&self) -> Vec<u8> {
        SerializedIdentity {
            mspid: self.msp_id().to_owned(),
            id_bytes: self.certificate.to_pem().into_bytes(),
        }
        .encode_to_vec()
    }

    /// Whether the MSP accepts it: chain, revocation, organisational units. Not whether it has expired.
    ///
    /// # Errors
    /// [`IdentityError::Refused`] if not.
    pub fn validate(&self) -> Result<(), IdentityError> {
        self.standing().verdict.clone()
    }

    /// Whether an authority of the MSP issued its certificate.
    pub(super) fn has_chain(&self) -> bool {
        self.standing().certifiers.is_some()
    }

    fn standing(&self) -> &Standing {
        self.standing
            .get_or_init(|| self.msp.standing(&self.certificate))
    }

    /// Checks a signature (DER, low S) over the hash of `message`: SHA-256, unless the MSP says otherwise.
    ///
    /// # Errors
    /// [`IdentityError::Signature`] if the signature is not this identity's.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), IdentityError> {
        let key = self.certificate.public_key();
        let verified = match self.msp.signature_hash() {
            "SHA2" => key.verify(message, signature),
            "SHA3" => {
                let hash = digest::digest(&digest::SHA3_256, message);
                let hash = hash.as_ref().try_into().expect("a SHA3-256 has 32 bytes");
                key.verify_hash(hash, signature)
            }
            other => {
                return Err(IdentityError::Signature(format!(
                    "failed getting hash function options: hash family not recognized [{other}]"
                )));
            }
        };
        verified.map_err(|error| {
            IdentityError::Signature(match error {
                X509Error::SignatureMismatch(_) => "The signature is invalid".to_owned(),
                error => format!("could not determine the validity of the signature: {error}"),
            })
        })
    }

    /// Whether it is what the principal asks for, validity included.
    ///
    /// # Errors
    /// [`IdentityError::Refused`] if not.
    pub fn satisfies(&self, principal: &MspPrincipal) -> Result<(), IdentityError> {
        self.judge(&Principal::read(principal))
            .map_err(|refusal| IdentityError::Refused(refusal.to_string()))
    }

    /// Like [`Identity::satisfies`], with a principal that was read before.
    pub(crate) fn is(&self, principal: &Principal) -> bool {
        self.judge(principal).is_ok()
    }

    fn judge<'a>(&'a self, principal: &'a Principal) -> Result<(), Refusal<'a>> {
        match principal {
            Principal::Role { msp_id, role } => {
                self.check_msp(msp_id)?;
                self.judge_role(*role)
            }
            Principal::Unit {
                msp_id,
                name,
                certifiers,
            } => {
                self.check_msp(msp_id)?;
                let standing = self.valid()?;
                let matches = standing.certifiers.as_deref() == Some(certifiers)
                    && self.certificate.units().contains(name);
                matches.then_some(()).ok_or(Refusal::OtherIdentity)
            }
            Principal::Identity(serialized) => self.judge_identity(serialized),
            Principal::Anonymity(wanted) => {
                if self.msp.version() < MspVersion::V1_3 {
                    return Err(Refusal::Classification(Classification::Anonymity as i32));
                }
                match MspIdentityAnonymityType::try_from(*wanted) {
                    Ok(MspIdentityAnonymityType::Nominal) => Ok(()),
                    Ok(MspIdentityAnonymityType::Anonymous) => Err(Refusal::NotAnonymous),
                    Err(_) => Err(Refusal::Anonymity(*wanted)),
                }
            }
            Principal::Combined(principals) => {
                if self.msp.version() < MspVersion::V1_3 {
                    return Err(Refusal::Classification(Classification::Combined as i32));
                }
                principals
                    .iter()
                    .try_for_each(|principal| self.judge(principal))
            }
            Principal::Unreadable(why) => Err(Refusal::Unreadable(why)),
        }
    }

    fn judge_role(&self, number: i32) -> Result<(), Refusal<'_>> {
        let current = self.msp.version() >= MspVersion::V1_4_3;
        let role = match MspRoleType::try_from(number) {
            Ok(role) => role,
            Err(_) => return Err(Refusal::Role(number)),
        };
        match role {
            MspRoleType::Member => self.valid().map(|_| ()),
            // Those who are named need not be valid now: they were when the definition was accepted.
            MspRoleType::Admin if self.msp.is_listed_admin(&self.certificate) => Ok(()),
            MspRoleType::Admin if !(current && self.msp.enforces_node_units()) => {
                Err(Refusal::NotListedAdmin)
            }
            MspRoleType::Orderer if !(current && self.msp.enforces_node_units()) => {
                Err(Refusal::Role(number))
            }
            MspRoleType::Client | MspRoleType::Peer | MspRoleType::Admin | MspRoleType::Orderer => {
                let standing = self.standing();
                if let Err(why) = &standing.verdict {
                    return Err(Refusal::InvalidHere(self, why));
                }
                if self.msp.has_role(&self.certificate, standing, role) {
                    Ok(())
                } else {
                    Err(Refusal::NotInRole(self, role))
                }
            }
        }
    }

    fn judge_identity(&self, serialized: &[u8]) -> Result<(), Refusal<'_>> {
        let unreadable = |why: String| {
            Refusal::Text(format!(
                "invalid identity principal, not a certificate: {why}"
            ))
        };
        let wanted = SerializedIdentity::decode(serialized).map_err(|_| {
            unreadable(format!(
                "could not deserialize a SerializedIdentity: {GO_PROTO_MALFORMED}"
            ))
        })?;
        if wanted.mspid != self.msp_id() {
            return Err(unreadable(format!(
                "expected MSP ID {}, received {}",
                self.msp_id(),
                wanted.mspid
            )));
        }
        let wanted = self
            .msp
            .identity(&wanted.id_bytes)
            .map_err(|error| unreadable(error.to_string()))?;
        if wanted.certificate != self.certificate {
            return Err(Refusal::OtherIdentity);
        }
        self.valid().map(|_| ())
    }

    fn check_msp<'a>(&'a self, wanted: &'a str) -> Result<(), Refusal<'a>> {
        if wanted == self.msp_id() {
            Ok(())
        } else {
            Err(Refusal::OtherMsp {
                wanted,
                own: self.msp_id(),
            })
        }
    }

    fn valid(&self) -> Result<&Standing, Refusal<'_>> {
        let standing = self.standing();
        match &standing.verdict {
            Ok(()) => Ok(standing),
            Err(why) => Err(Refusal::Invalid(why)),
        }
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Identity({}, {})",
            self.msp_id(),
            self.certificate.subject()
        )
    }
}

/// Why an identity is not what a principal asks for. The words are put together only when somebody wants to read them:
/// policies ask much more often than anybody reads.
enum Refusal<'a> {
    OtherMsp { wanted: &'a str, own: &'a str },
    OtherIdentity,
    Invalid(&'a IdentityError),
    InvalidHere(&'a Identity, &'a IdentityError),
    NotInRole(&'a Identity, MspRoleType),
    NotListedAdmin,
    NotAnonymous,
    Role(i32),
    Classification(i32),
    Anonymity(i32),
    Unreadable(&'a str),
    Text(String),
}

impl fmt::Display for Refusal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherMsp { wanted, own } => write!(
                f,
                "the identity is a member of a different MSP (expected {wanted}, got {own})"
            ),
            Self::OtherIdentity => f.write_str("The identities do not match"),
            Self::Invalid(why) => write!(f, "{why}"),
            Self::InvalidHere(identity, why) => write!(
                f,
                "The identity is not valid under this MSP [{}]: {why}",
                identity.msp_id()
            ),
            Self::NotInRole(identity, role) => {
                let kind = match role {
                    MspRoleType::Admin => "an admin".to_owned(),
                    role => format!("a [{}]", role.as_str_name()),
                };
                write!(
                    f,
                    "The identity is not {kind} under this MSP [{}]",
                    identity.msp_id()
                )?;
                match identity
                    .msp
                    .check_role(&identity.certificate, identity.standing(), *role)
                {
                    Ok(()) => Ok(()),
                    Err(why) => write!(f, ": {why}"),
                }
            }
            Self::NotListedAdmin => f.write_str("This identity is not an admin"),
            Self::NotAnonymous => f.write_str(
                "Principal is anonymous, but X.509 MSP does not support anonymous identities",
            ),
            Self::Role(number) => write!(f, "invalid MSP role type {number}"),
            Self::Classification(number) => write!(f, "invalid principal type {number}"),
            Self::Anonymity(number) => write!(f, "Unknown principal anonymity type: {number}"),
            Self::Unreadable(why) => f.write_str(why),
            Self::Text(text) => f.write_str(text),
        }
    }
}

/// A principal, read once. What cannot be read is satisfied by nobody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Principal {
    Role {
        msp_id: String,
        role: i32,
    },
    Unit {
        msp_id: String,
        name: String,
        certifiers: Vec<u8>,
    },
    Identity(Vec<u8>),
    Anonymity(i32),
    Combined(Vec<Principal>),
    Unreadable(String),
}

/// As policies are written: `OrdererMSP.admin`.
impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Role { msp_id, role } => match MspRoleType::try_from(*role) {
                Ok(role) => write!(f, "{msp_id}.{}", role.as_str_name().to_lowercase()),
                Err(_) => write!(f, "{msp_id} in the unknown role {role}"),
            },
            Self::Unit { msp_id, name, .. } => write!(f, "a member of unit {name} of {msp_id}"),
            Self::Identity(serialized) => match SerializedIdentity::decode(&serialized[..]) {
                Ok(identity) => match Certificate::from_pem(&identity.id_bytes) {
                    Ok(certificate) => write!(f, "{}: {}", identity.mspid, certificate.subject()),
                    Err(_) => write!(f, "one identity of {}", identity.mspid),
                },
                Err(_) => f.write_str("an identity that cannot be read"),
            },
            Self::Anonymity(_) => f.write_str("anybody who is named"),
            Self::Combined(principals) => {
                for (index, principal) in principals.iter().enumerate() {
                    let and = if index == 0 { "" } else { " and also " };
                    write!(f, "{and}{principal}")?;
                }
                Ok(())
            }
            Self::Unreadable(why) => write!(f, "nobody, for the principal cannot be read ({why})"),
        }
    }
}

impl Principal {
    pub(crate) fn read(principal: &MspPrincipal) -> Self {
        Self::read_nested(principal, 0).unwrap_or_else(Self::Unreadable)
    }

    fn read_nested(principal: &MspPrincipal, depth: usize) -> Result<Self, String> {
        let bytes = principal.principal.as_slice();
        let malformed =
            |name: &str| format!("could not unmarshal {name} from principal: {GO_PROTO_MALFORMED}");
        let number = principal.principal_classification;
        Ok(match Classification::try_from(number) {
            Ok(Classification::Role) => {
                let role = MspRole::decode(bytes).map_err(|_| malformed("MSPRole"))?;
                Self::Role {
                    msp_id: role.msp_identifier,
                    role: role.role,
                }
            }
            Ok(Classification::OrganizationUnit) => {
                let unit =
                    OrganizationUnit::decode(bytes).map_err(|_| malformed("OrganizationUnit"))?;
                Self::Unit {
                    msp_id: unit.msp_identifier,
                    name: unit.organizational_unit_identifier,
                    certifiers: unit.certifiers_identifier,
                }
            }
            Ok(Classification::Identity) => Self::Identity(bytes.to_vec()),
            Ok(Classification::Anonymity) => {
                let anonymity = MspIdentityAnonymity::decode(bytes)
                    .map_err(|_| malformed("MSPIdentityAnonymity"))?;
                Self::Anonymity(anonymity.anonymity_type)
            }
            Ok(Classification::Combined) => {
                if depth == MAX_PRINCIPAL_DEPTH {
                    return Err(format!(
                        "combined principals are nested more than {MAX_PRINCIPAL_DEPTH} deep"
                    ));
                }
                let combined =
                    CombinedPrincipal::decode(bytes).map_err(|_| malformed("CombinedPrincipal"))?;
                if combined.principals.is_empty() {
                    return Err("No principals in CombinedPrincipal".to_owned());
                }
                Self::Combined(
                    combined
                        .principals
                        .iter()
                        .map(|principal| Self::read_nested(principal, depth + 1))
                        .collect::<Result<_, _>>()?,
                )
            }
            Err(_) => return Err(format!("invalid principal type {number}")),
        })
    }
}
