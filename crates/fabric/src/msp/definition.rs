//! An organisation's membership as its definition states it: reading the definition, and the rules over certificates.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use prost::Message as _;
use quorate_identity::x509::{Certificate, KeyKind, Pool, RevocationList, X509Error};

use super::rules::{NodeUnits, Unit, one_chain};
use super::{GO_PROTO_MALFORMED, Identity, IdentityError, MspError, go_bytes};
use crate::proto::common::msp_role::MspRoleType;
use crate::proto::msp::{
    FabricCryptoConfig, FabricMspConfig, FabricOuIdentifier, MspConfig, SigningIdentityInfo,
};

/// Definitions by certificates, Fabric's usual ones.
const TYPE_FABRIC: i32 = 0;
/// Definitions by anonymous credentials.
const TYPE_IDEMIX: i32 = 1;

/// Which edition of the rules a definition is judged by. A channel's capabilities say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum MspVersion {
    /// Before node OUs. Also the edition of a node's own, local MSP.
    V1_0,
    /// Capability `V1_1`: clients and peers are told apart by OU.
    V1_1,
    /// Capability `V1_3`: combined and anonymity principals.
    V1_3,
    /// Capability `V1_4_3` or `V2_0`: admins and orderers by OU, too.
    V1_4_3,
}

/// One organisation's membership.
pub struct Msp {
    pub(super) id: String,
    pub(super) version: MspVersion,
    kind: Kind,
    pub(super) roots: Pool,
    pub(super) intermediates: Pool,
    /// Authorities that have authorities below them. They do not certify members.
    pub(super) internal_nodes: HashSet<Vec<u8>>,
    pub(super) admins: Vec<Certificate>,
    pub(super) revocation_lists: Vec<RevocationList>,
    /// The OUs one of which a member must have, each with the authorities that may certify it. Empty: no such rule.
    pub(super) units: HashMap<String, Vec<Vec<u8>>>,
    pub(super) identifier_hash: String,
    pub(super) signature_hash: String,
    pub(super) node_units: NodeUnits,
    tls_roots: Vec<Certificate>,
    tls_intermediates: Vec<Certificate>,
}

#[derive(PartialEq, Eq)]
enum Kind {
    X509,
    /// We verify no anonymous credentials: such an organisation may be there, its members cannot speak.
    Idemix,
}

/// The one field that all kinds of definitions have in common.
#[derive(Clone, PartialEq, prost::Message)]
struct Named {
    #[prost(string, tag = "1")]
    name: String,
}

fn invalid(text: impl fmt::Display) -> MspError {
    MspError::Invalid(text.to_string())
}

impl Msp {
    /// Reads and checks a definition, by the current edition of the rules.
    ///
    /// # Errors
    /// [`MspError`] if it breaks one of Fabric's rules.
    pub fn from_config(config: &MspConfig) -> Result<Self, MspError> {
        Self::from_config_as(config, MspVersion::V1_4_3)
    }

    /// Reads and checks a definition.
    ///
    /// Fabric judges TLS authorities by the clock while it reads a definition. We judge them at the beginning of their own
    /// validity, as all others: whether a configuration is acceptable must not differ between orderers or days.
    ///
    /// # Errors
    /// [`MspError`] if it breaks one of Fabric's rules.
    pub fn from_config_as(config: &MspConfig, version: MspVersion) -> Result<Self, MspError> {
        let malformed = || {
            invalid(format_args!(
                "failed unmarshalling fabric msp config: {GO_PROTO_MALFORMED}"
            ))
        };
        match config.r#type {
            TYPE_FABRIC => {}
            TYPE_IDEMIX => {
                let named = Named::decode(config.config.as_slice()).map_err(|_| malformed())?;
                return Ok(Self::empty(named.name, version, Kind::Idemix));
            }
            other => {
                return Err(invalid(format_args!(
                    "Setup error: unsupported msp type {other}"
                )));
            }
        }
        let definition =
            FabricMspConfig::decode(config.config.as_slice()).map_err(|_| malformed())?;
        let mut msp = Self::empty(definition.name.clone(), version, Kind::X509);
        msp.set_up(&definition)?;
        Ok(msp)
    }

    fn empty(id: String, version: MspVersion, kind: Kind) -> Self {
        Self {
            id,
            version,
            kind,
            roots: Pool::new(),
            intermediates: Pool::new(),
            internal_nodes: HashSet::new(),
            admins: Vec::new(),
            revocation_lists: Vec::new(),
            units: HashMap::new(),
            identifier_hash: String::new(),
            signature_hash: String::new(),
            node_units: NodeUnits::default(),
            tls_roots: Vec::new(),
            tls_intermediates: Vec::new(),
        }
    }

    /// The MSP ID.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The edition of the rules that it follows.
    #[must_use]
    pub fn version(&self) -> MspVersion {
        self.version
    }

    /// The root certificates of TLS.
    #[must_use]
    pub fn tls_roots(&self) -> &[Certificate] {
        &self.tls_roots
    }

    /// The intermediate certificates of TLS.
    #[must_use]
    pub fn tls_intermediates(&self) -> &[Certificate] {
        &self.tls_intermediates
    }

    /// The root certificates of membership.
    #[must_use]
    pub fn roots(&self) -> &[Certificate] {
        self.roots.certificates()
    }

    /// The intermediate certificates of membership.
    #[must_use]
    pub fn intermediates(&self) -> &[Certificate] {
        self.intermediates.certificates()
    }

    /// The identity of a certificate in PEM. It need not be valid: see [`Identity::validate`].
    ///
    /// # Errors
    /// [`IdentityError::Malformed`] if there is no certificate, its key is of no use, or its issuer (whom Fabric asks this
    /// early) cannot be found.
    pub fn identity(self: &Arc<Self>, pem: &[u8]) -> Result<Identity, IdentityError> {
        let malformed = |text: String| IdentityError::Malformed(text);
        if self.kind == Kind::Idemix {
            return Err(malformed(format!(
                "the identities of MSP {} are anonymous credentials (idemix), which this orderer does not verify",
                self.id
            )));
        }
        let certificate = Certificate::from_pem(pem).map_err(|error| {
            malformed(match error {
                X509Error::NoPem => "could not decode the PEM structure".to_owned(),
                error => format!("parseCertificate failed: {error}"),
            })
        })?;
        let certificate = usable_key(&certificate)
            .map_err(|error| {
                IdentityError::Malformed(format!(
                    "failed to import certificate's public key: {error}"
                ))
            })
            .and_then(|()| {
                self.sanitise(&certificate)
                    .map_err(IdentityError::Malformed)
            })?;
        let id = self
            .hash_chain(std::slice::from_ref(&certificate))
            .map_err(IdentityError::Malformed)?;
        Ok(Identity::new(self.clone(), certificate, hex::encode(id)))
    }

    // Reading a definition. The order of the steps decides which text a client sees.

    fn set_up(&mut self, definition: &FabricMspConfig) -> Result<(), MspError> {
        self.set_crypto(definition.crypto_config.as_ref());
        self.set_authorities(definition)?;
        let admins_early = self.version < MspVersion::V1_4_3;
        if admins_early {
            self.set_admins(definition)?;
        }
        self.set_revocation_lists(definition)?;
        self.check_authorities()?;
        check_signing_identity(definition.signing_identity.as_ref())?;
        self.set_tls_authorities(definition)?;
        self.set_units(&definition.organizational_unit_identifiers)?;
        match self.version {
            MspVersion::V1_0 => {}
            MspVersion::V1_1 | MspVersion::V1_3 => self.set_client_and_peer_units(definition)?,
            MspVersion::V1_4_3 => self.set_node_units(definition)?,
        }
        if !admins_early {
            self.set_admins(definition)?;
            let by_unit = self.node_units.enforced && self.node_units.admin.is_some();
            if self.admins.is_empty() && !by_unit {
                return Err(invalid(
                    "administrators must be declared when no admin ou classification is set",
                ));
            }
        }
        self.check_admins()
    }

    fn set_crypto(&mut self, config: Option<&FabricCryptoConfig>) {
        let chosen = |text: Option<&String>, default: &str| {
            text.filter(|text| !text.is_empty())
                .map_or(default, String::as_str)
                .to_owned()
        };
        self.signature_hash = chosen(config.map(|crypto| &crypto.signature_hash_family), "SHA2");
        self.identifier_hash = chosen(
            config.map(|crypto| &crypto.identity_identifier_hash_function),
            "SHA256",
        );
    }

    fn set_authorities(&mut self, definition: &FabricMspConfig) -> Result<(), MspError> {
        if definition.root_certs.is_empty() {
            return Err(invalid("expected at least one CA certificate"));
        }
        // Bringing a certificate into its low-S form needs its parent, so the pools are there before that is done.
        self.roots = read_all(&definition.root_certs)?.into_iter().collect();
        self.intermediates = read_all(&definition.intermediate_certs)?
            .into_iter()
            .collect();
        let roots = self.sanitised(&definition.root_certs)?;
        let intermediates = self.sanitised(&definition.intermediate_certs)?;
        self.roots = roots.into_iter().collect();
        self.intermediates = intermediates.into_iter().collect();
        Ok(())
    }

    fn sanitised(&self, pems: &[Vec<u8>]) -> Result<Vec<Certificate>, MspError> {
        pems.iter()
            .map(|pem| {
                let certificate = read_certificate(pem)?;
                usable_key(&certificate).map_err(invalid)?;
                self.sanitise(&certificate).map_err(invalid)
            })
            .collect()
    }

    fn set_admins(&mut self, definition: &FabricMspConfig) -> Result<(), MspError> {
        self.admins = self.sanitised(&definition.admins)?;
        Ok(())
    }

    fn set_revocation_lists(&mut self, definition: &FabricMspConfig) -> Result<(), MspError> {
        self.revocation_lists = definition
            .revocation_list
            .iter()
            .map(|bytes| RevocationList::read(bytes))
            .collect::<Result<_, _>>()
            .map_err(|error| invalid(format_args!("could not parse RevocationList: {error}")))?;
        Ok(())
    }

    fn check_authorities(&mut self) -> Result<(), MspError> {
        for authority in self
            .roots
            .certificates()
            .iter()
            .chain(self.intermediates.certificates())
        {
            check_authority(authority)?;
            self.one_chain(authority)
                .map_err(|error| format!("could not obtain certification chain: {error}"))
                .and_then(|chain| self.check_revocation(authority, &chain))
                .map_err(|error| not_valid(authority, &error))?;
        }
        let mut internal = HashSet::new();
        for authority in self.intermediates.certificates() {
            let chain = self.one_chain(authority).map_err(|error| {
                invalid(format_args!(
                    "failed getting validation chain, (SN: {}): {error}",
                    authority.serial_decimal()
                ))
            })?;
            internal.extend(chain[1..].iter().map(|parent| parent.der().to_vec()));
        }
        self.internal_nodes = internal;
        Ok(())
    }

    fn set_tls_authorities(&mut self, definition: &FabricMspConfig) -> Result<(), MspError> {
        self.tls_roots = read_all(&definition.tls_root_certs)?;
        self.tls_intermediates = read_all(&definition.tls_intermediate_certs)?;
        let roots: Pool = self.tls_roots.iter().cloned().collect();
        let intermediates: Pool = self.tls_intermediates.iter().cloned().collect();
        for authority in self.tls_roots.iter().chain(&self.tls_intermediates) {
            check_authority(authority)?;
            one_chain(authority, &roots, &intermediates)
                .map_err(|error| format!("could not obtain certification chain: {error}"))
                .and_then(|chain| self.check_revocation(authority, &chain))
                .map_err(|error| not_valid(authority, &error))?;
        }
        Ok(())
    }

    fn set_units(&mut self, identifiers: &[FabricOuIdentifier]) -> Result<(), MspError> {
        for identifier in identifiers {
            let certifiers = self
                .certifiers_of(&identifier.certificate)
                .map_err(|error| {
                    invalid(format_args!(
                        "failed getting certificate for [{:?}]: {error}",
                        identifier.organizational_unit_identifier
                    ))
                })?;
            let known = self
                .units
                .entry(identifier.organizational_unit_identifier.clone())
                .or_default();
            if !known.contains(&certifiers) {
                known.push(certifiers);
            }
        }
        Ok(())
    }

    fn set_client_and_peer_units(&mut self, definition: &FabricMspConfig) -> Result<(), MspError> {
        let Some(config) = &definition.fabric_node_ous else {
            return Ok(());
        };
        let named = |unit: &Option<FabricOuIdentifier>| {
            unit.as_ref()
                .is_some_and(|unit| !unit.organizational_unit_identifier.is_empty())
        };
        for (unit, name) in [
            (&config.client_ou_identifier, "ClientOU"),
            (&config.peer_ou_identifier, "PeerOU"),
        ] {
            if !named(unit) {
                return Err(invalid(format_args!(
                    "Failed setting up NodeOUs. {name} must be different from nil."
                )));
            }
        }
        self.node_units = NodeUnits {
            enforced: config.enable,
            client: self.unit(config.client_ou_identifier.as_ref())?,
            peer: self.unit(config.peer_ou_identifier.as_ref())?,
            admin: None,
            orderer: None,
        };
        Ok(())
    }

    fn set_node_units(&mut self, definition: &FabricMspConfig) -> Result<(), MspError> {
        let Some(config) = &definition.fabric_node_ous else {
            return Ok(());
        };
        let mut units = NodeUnits {
            enforced: config.enable,
            client: self.unit(config.client_ou_identifier.as_ref())?,
            peer: self.unit(config.peer_ou_identifier.as_ref())?,
            admin: self.unit(config.admin_ou_identifier.as_ref())?,
            orderer: self.unit(config.orderer_ou_identifier.as_ref())?,
        };
        let any = units.all().next().is_some();
        units.enforced &= any;
        self.node_units = units;
        Ok(())
    }

    fn unit(&self, config: Option<&FabricOuIdentifier>) -> Result<Option<Unit>, MspError> {
        let Some(config) = config else {
            return Ok(None);
        };
        let certifiers = if config.certificate.is_empty() {
            Vec::new()
        } else {
            self.certifiers_of(&config.certificate)?
        };
        Ok(Some(Unit {
            name: config.organizational_unit_identifier.clone(),
            certifiers,
        }))
    }

    /// The identifier of an authority: the hash of its certificate and those above it.
    fn certifiers_of(&self, pem: &[u8]) -> Result<Vec<u8>, MspError> {
        let certificate = read_certificate(pem).map_err(|error| {
            invalid(format_args!(
                "Failed getting certificate for [{}]: [{error}]",
                go_bytes(pem)
            ))
        })?;
        let certificate = self
            .sanitise(&certificate)
            .map_err(|error| invalid(format_args!("sanitizeCert failed {error}")))?;
        let chain = if self.roots.contains(&certificate) {
            vec![certificate]
        } else if self.intermediates.contains(&certificate) {
            self.validation_chain(&certificate, 0).map_err(|error| {
                invalid(format_args!(
                    "Failed computing validation chain for [{}]. [{error}]",
                    certificate.subject()
                ))
            })?
        } else {
            return Err(invalid(format_args!(
                "Failed adding OU. Certificate [{}] not in root or intermediate certs.",
                certificate.subject()
            )));
        };
        self.hash_chain(&chain).map_err(|error| {
            invalid(format_args!(
                "Failed computing Certifiers Identifier for [{}]. [{error}]",
                go_bytes(pem)
            ))
        })
    }

    fn check_admins(&self) -> Result<(), MspError> {
        for (at, admin) in self.admins.iter().enumerate() {
            let standing = self.standing(admin);
            let refused = |error: String| invalid(format_args!("admin {at} is invalid{error}"));
            if !self.node_units.enforced {
                standing
                    .verdict
                    .map_err(|error| refused(format!(": {error}")))?;
                continue;
            }
            let client = self.check_role(admin, &standing, MspRoleType::Client);
            if self.version < MspVersion::V1_4_3 {
                standing
                    .verdict
                    .as_ref()
                    .map_err(|error| {
                        format!(
                            "The identity is not valid under this MSP [{}]: {error}",
                            self.id
                        )
                    })
                    .and(client.map_err(|error| {
                        format!(
                            "The identity is not a [CLIENT] under this MSP [{}]: {error}",
                            self.id
                        )
                    }))
                    .map_err(|error| refused(format!(": {error}")))?;
                continue;
            }
            let as_admin = self.check_role(admin, &standing, MspRoleType::Admin);
            if let (Err(client), Err(as_admin)) = (client, as_admin) {
                return Err(refused(format!(" [{client},{as_admin}]")));
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Msp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Msp")
            .field("id", &self.id)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

fn read_certificate(pem: &[u8]) -> Result<Certificate, MspError> {
    Certificate::from_pem(pem).map_err(|error| match error {
        X509Error::NoPem => invalid(format_args!(
            "getCertFromPem error: could not decode pem bytes [{}]",
            go_bytes(pem)
        )),
        error => invalid(format_args!(
            "getCertFromPem error: failed to parse x509 cert: {error}"
        )),
    })
}

fn read_all(pems: &[Vec<u8>]) -> Result<Vec<Certificate>, MspError> {
    pems.iter().map(|pem| read_certificate(pem)).collect()
}

/// Fabric knows two kinds of keys. (With the second, RSA, nobody can sign, but an authority may have one.)
fn usable_key(certificate: &Certificate) -> Result<(), &'static str> {
    match certificate.public_key().kind() {
        KeyKind::Ecdsa(_) | KeyKind::Rsa => Ok(()),
        KeyKind::Ed25519 | KeyKind::Unknown => Err(
            "Failed importing key with opts [&{true}]: Certificate's public key type not recognized. Supported keys: [ECDSA, RSA]",
        ),
    }
}

fn check_authority(authority: &Certificate) -> Result<(), MspError> {
    if !authority.is_ca() {
        return Err(invalid(format_args!(
            "CA Certificate did not have the CA attribute, (SN: {})",
            authority.serial_hex()
        )));
    }
    if authority.subject_key_id().is_none() {
        return Err(invalid(format_args!(
            "CA Certificate problem with Subject Key Identifier extension, (SN: {}): subjectKeyIdentifier not found in certificate",
            authority.serial_hex()
        )));
    }
    Ok(())
}

fn not_valid(authority: &Certificate, error: &str) -> MspError {
    invalid(format_args!(
        "CA Certificate is not valid, (SN: {}): {error}",
        authority.serial_decimal()
    ))
}

/// A definition in a channel has no signing identity. If one is there, Fabric looks for its key.
fn check_signing_identity(identity: Option<&SigningIdentityInfo>) -> Result<(), MspError> {
    match identity {
        Some(SigningIdentityInfo {
            private_signer: None,
            ..
        }) => Err(invalid("KeyMaterial not found in SigningIdentityInfo")),
        _ => Ok(()),
    }
}
