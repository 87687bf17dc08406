//! What nodes must know of each other: signed node infos and signed network parameters.
//!
//! Both travel as files and are worth nothing until [`SignedNodeInfo::verify`] or [`SignedNetworkParameters::verify`]
//! has led their certificates to the trust root. Verification looks at the bytes that were signed; only then are they
//! read. The present time is an argument.

use std::{fmt, str::FromStr, time::Duration};

use borsh::{BorshDeserialize, BorshSerialize};
use quorate_identity::{
    CertRole, Certificate, CertificatePath, Identity, Party, PathError, PublicKey, SecureHash,
    Signature, SignatureError, SigningError, SigningKey, UnixTime, X500Name, validate_path,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{
    canonical::{self, DecodeError, serde_as_base64},
    limits::{
        MAX_ADDRESSES, MAX_HOST_BYTES, MAX_IDENTITIES, MAX_MESSAGE_BYTES, MAX_NETWORK_FILE_BYTES,
        MAX_NOTARIES, MAX_TRANSACTION_BYTES, PLATFORM_VERSION,
    },
    signature::Purpose,
    time::Timestamp,
};

/// A host (name, IPv4 or IPv6 address) and a TCP port. Text and JSON are `host:port`, with IPv6 in brackets.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize)]
pub struct NetworkHostAndPort {
    host: String,
    port: u16,
}

/// Not an address.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not a network address: {text:?}; expected host:port, as in node.example.com:10002")]
pub struct AddressError {
    text: String,
}

impl NetworkHostAndPort {
    /// An address.
    ///
    /// # Errors
    /// If the host is neither a host name nor an IP address, or the port is 0.
    pub fn new(host: &str, port: u16) -> Result<Self, AddressError> {
        let is_name = (1..=MAX_HOST_BYTES).contains(&host.len())
            && host.split('.').all(|label| {
                let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
                (1..=63).contains(&label.len())
                    && label.bytes().all(inner)
                    && !label.starts_with('-')
            });
        if port == 0 || !(is_name || host.parse::<std::net::Ipv6Addr>().is_ok()) {
            let text: String = host.chars().take(80).collect();
            return Err(AddressError {
                text: format!("{text}:{port}"),
            });
        }
        Ok(Self {
            host: host.to_owned(),
            port,
        })
    }

    /// The host, IPv6 without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl fmt::Display for NetworkHostAndPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl fmt::Debug for NetworkHostAndPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for NetworkHostAndPort {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let error = || AddressError {
            text: text.chars().take(80).collect(),
        };
        let (host, port) = text.rsplit_once(':').ok_or_else(error)?;
        let bracketed = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'));
        let host = match bracketed {
            Some(host) if host.contains(':') => host,
            None if !host.contains(':') => host,
            _ => return Err(error()),
        };
        if !port.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(error());
        }
        Self::new(host, port.parse().map_err(|_| error())?).map_err(|_| error())
    }
}

impl BorshDeserialize for NetworkHostAndPort {
    fn deserialize_reader<R: std::io::Read>(reader: &mut R) -> std::io::Result<Self> {
        let host = canonical::read_bounded(reader, MAX_HOST_BYTES)?;
        let host = String::from_utf8(host).map_err(canonical::refuse)?;
        Self::new(&host, u16::deserialize_reader(reader)?).map_err(canonical::refuse)
    }
}

crate::reference::serde_as_text!(NetworkHostAndPort);

/// A party with the certificates that prove it.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PartyAndCertificate {
    path: CertificatePath,
}

impl PartyAndCertificate {
    /// The party that the first certificate of the path names.
    pub fn new(path: CertificatePath) -> Self {
        Self { path }
    }

    /// Name and key, as the certificate claims.
    pub fn party(&self) -> Party {
        Party::new(self.name().clone(), self.owning_key().clone())
    }

    /// The name.
    pub fn name(&self) -> &X500Name {
        self.path.leaf().subject()
    }

    /// The key.
    pub fn owning_key(&self) -> &PublicKey {
        self.path.leaf().public_key()
    }

    /// The certificates.
    pub fn path(&self) -> &CertificatePath {
        &self.path
    }

    /// Leads the certificates to the trust root, in one of the roles that sign on the ledger.
    fn validate(
        &self,
        trust_root: &Certificate,
        now: UnixTime,
        may_be_service: bool,
    ) -> Result<(), PathError> {
        let expected = match self.path.leaf().role() {
            Some(CertRole::ServiceIdentity) if may_be_service => CertRole::ServiceIdentity,
            _ => CertRole::LegalIdentity,
        };
        validate_path(&self.path, trust_root, now, expected).map(drop)
    }
}

impl From<&Identity> for PartyAndCertificate {
    fn from(identity: &Identity) -> Self {
        Self::new(identity.path().clone())
    }
}

/// Where a node is reached and for whom it speaks.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NodeInfo {
    /// Where its peers connect, in the order in which to try.
    pub addresses: Vec<NetworkHostAndPort>,
    /// For whom it speaks: its legal identity first, then services that it provides, such as a notary.
    pub identities: Vec<PartyAndCertificate>,
    /// The platform version that it runs.
    pub platform_version: u32,
    /// Grows with every new info of the node; the greatest counts. By habit the milliseconds since 1970.
    pub serial: u64,
}

#[derive(BorshSerialize, BorshDeserialize)]
enum Versioned<T> {
    V1(T),
}

impl NodeInfo {
    /// The node's own identity, by which peers address it.
    pub fn legal_identity(&self) -> Option<&PartyAndCertificate> {
        self.identities.first()
    }

    /// Everybody for whom the node speaks.
    pub fn parties(&self) -> impl Iterator<Item = Party> {
        self.identities.iter().map(PartyAndCertificate::party)
    }

    /// The canonical bytes, versioned: what is signed.
    pub fn encode(&self) -> Vec<u8> {
        canonical::encode(&Versioned::V1(self))
    }

    /// Reads canonical bytes. Nothing is verified but the form.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        const WHAT: &str = "node info";
        let Versioned::V1(info) =
            canonical::decode::<Versioned<Self>>(WHAT, bytes, MAX_NETWORK_FILE_BYTES)?;
        info.check()
            .map_err(|reason| DecodeError::invalid(WHAT, reason))?;
        Ok(info)
    }

    fn check(&self) -> Result<(), String> {
        if !(1..=MAX_ADDRESSES).contains(&self.addresses.len()) {
            return Err(format!(
                "{} addresses; 1 to {MAX_ADDRESSES} are possible",
                self.addresses.len()
            ));
        }
        if !(1..=MAX_IDENTITIES).contains(&self.identities.len()) {
            return Err(format!(
                "{} identities; 1 to {MAX_IDENTITIES} are possible",
                self.identities.len()
            ));
        }
        for (index, identity) in self.identities.iter().enumerate() {
            if self.identities[..index]
                .iter()
                .any(|other| other.name() == identity.name())
            {
                return Err(format!("{} appears twice", identity.name()));
            }
        }
        Ok(())
    }
}

/// A node info as it was signed, with one signature by each of its identities. The file form is
/// [`encode`](Self::encode); JSON is base64 of it.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct SignedNodeInfo {
    raw: Vec<u8>,
    signatures: Vec<Signature>,
}

/// A node info or network parameters that are not believed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkError {
    /// The signed bytes cannot be read.
    #[error("the signed content cannot be read")]
    Content(#[from] DecodeError),
    /// The node info breaks a rule.
    #[error("the node info cannot be signed: {0}")]
    NodeInfo(String),
    /// The network parameters break a rule.
    #[error("the network parameters are not possible: {0}")]
    Parameters(String),
    /// Fewer or more signatures than identities.
    #[error("the node info of {name} has {signatures} signatures for {identities} identities")]
    Signatures {
        /// The node.
        name: X500Name,
        /// How many signatures.
        signatures: usize,
        /// How many identities.
        identities: usize,
    },
    /// A key that an identity has and the signer lacks, or the other way round.
    #[error(
        "the node info of {0} must be signed with the key of each of its identities, in their order"
    )]
    Keys(X500Name),
    /// A device that keeps a key did not sign.
    #[error("a signature could not be made")]
    Signing(#[source] SigningError),
    /// A signature does not hold.
    #[error("the signature of {name} is not valid")]
    Signature {
        /// Whose signature.
        name: X500Name,
        /// What the key says.
        #[source]
        source: SignatureError,
    },
    /// Certificates do not prove what is claimed.
    #[error("the certificates of {name} are not accepted")]
    Path {
        /// Whose certificates.
        name: X500Name,
        /// The reason.
        #[source]
        source: PathError,
    },
    /// The network asks for a later platform than this.
    #[error(
        "the network asks for platform version {wanted}, this is {PLATFORM_VERSION}; upgrade this node"
    )]
    PlatformVersion {
        /// The version that the network asks for.
        wanted: u32,
    },
}

impl SignedNodeInfo {
    /// Signs `info` with the keys of its identities, in their order.
    ///
    /// # Errors
    /// If the info breaks a rule, the keys are not those of the identities, or a device that keeps one does not sign.
    pub fn sign(info: &NodeInfo, keys: &[&SigningKey]) -> Result<Self, NetworkError> {
        info.check().map_err(NetworkError::NodeInfo)?;
        let matching = info
            .identities
            .iter()
            .map(PartyAndCertificate::owning_key)
            .eq(keys.iter().map(|key| key.public()));
        if !matching {
            return Err(NetworkError::Keys(info.identities[0].name().clone()));
        }
        let raw = info.encode();
        let message = Purpose::NodeInfo.message(&raw);
        let signatures = keys
            .iter()
            .map(|key| key.sign(&message))
            .collect::<Result<_, _>>()
            .map_err(NetworkError::Signing)?;
        Ok(Self { raw, signatures })
    }

    /// The info, if every identity has signed it and is certified under `trust_root` at `now`.
    ///
    /// # Errors
    /// What is not to be believed. Nothing of the info should be used then.
    pub fn verify(
        &self,
        trust_root: &Certificate,
        now: UnixTime,
    ) -> Result<NodeInfo, NetworkError> {
        let info = NodeInfo::decode(&self.raw)?;
        if info.identities.len() != self.signatures.len() {
            return Err(NetworkError::Signatures {
                name: info.identities[0].name().clone(),
                signatures: self.signatures.len(),
                identities: info.identities.len(),
            });
        }
        let message = Purpose::NodeInfo.message(&self.raw);
        for (index, (identity, signature)) in
            info.identities.iter().zip(&self.signatures).enumerate()
        {
            // The first identity is the organisation's own; services follow.
            let name = || identity.name().clone();
            identity
                .validate(trust_root, now, index > 0)
                .map_err(|source| NetworkError::Path {
                    name: name(),
                    source,
                })?;
            identity
                .owning_key()
                .verify(&message, signature)
                .map_err(|source| NetworkError::Signature {
                    name: name(),
                    source,
                })?;
        }
        Ok(info)
    }

    /// The hash of the signed bytes: the name of this info in lists and file names.
    pub fn hash(&self) -> SecureHash {
        SecureHash::of(&self.raw)
    }

    /// The canonical bytes, versioned: the content of a `nodeInfo-…` file.
    pub fn encode(&self) -> Vec<u8> {
        canonical::encode(&Versioned::V1(self))
    }

    /// Reads canonical bytes. Nothing is verified.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        const WHAT: &str = "signed node info";
        let Versioned::V1(signed) =
            canonical::decode::<Versioned<Self>>(WHAT, bytes, MAX_NETWORK_FILE_BYTES)?;
        Ok(signed)
    }
}

serde_as_base64!(SignedNodeInfo);

/// A notary of the network.
#[derive(
    Clone,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Debug,
    BorshSerialize,
    BorshDeserialize,
    Serialize,
    Deserialize,
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NotaryInfo {
    /// The notary's identity, possibly shared by several nodes.
    pub identity: Party,
    /// Whether it wants to see, and checks, whole transactions.
    pub validating: bool,
}

/// What all nodes of a network must agree on.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NetworkParameters {
    /// The oldest platform version that may take part.
    pub minimum_platform_version: u32,
    /// The notaries.
    pub notaries: Vec<NotaryInfo>,
    /// Largest message in bytes, at most [`MAX_MESSAGE_BYTES`].
    pub max_message_size: u64,
    /// Largest encoded signed transaction in bytes, at most [`MAX_TRANSACTION_BYTES`].
    pub max_transaction_size: u64,
    /// When these parameters were made.
    pub modified_time: Timestamp,
    /// Grows with every change, from 1.
    pub epoch: u32,
    /// After how many days a node that has not been heard of is forgotten.
    pub event_horizon_days: u32,
}

impl NetworkParameters {
    /// The first parameters of a network with these notaries and otherwise the defaults.
    pub fn first(notaries: Vec<NotaryInfo>, modified_time: Timestamp) -> Self {
        Self {
            minimum_platform_version: PLATFORM_VERSION,
            notaries,
            max_message_size: MAX_MESSAGE_BYTES as u64,
            max_transaction_size: MAX_TRANSACTION_BYTES as u64,
            modified_time,
            epoch: 1,
            event_horizon_days: 30,
        }
    }

    /// The hash by which transactions refer to these parameters.
    pub fn hash(&self) -> SecureHash {
        SecureHash::of(&self.encode())
    }

    /// The notary with this name.
    pub fn notary(&self, name: &X500Name) -> Option<&NotaryInfo> {
        self.notaries
            .iter()
            .find(|notary| notary.identity.name == *name)
    }

    /// Whether this party, with this key, is a notary of the network.
    pub fn is_notary(&self, party: &Party) -> bool {
        self.notaries.iter().any(|notary| notary.identity == *party)
    }

    /// The event horizon.
    pub fn event_horizon(&self) -> Duration {
        Duration::from_secs(u64::from(self.event_horizon_days) * 86_400)
    }

    /// The canonical bytes, versioned: what is signed and hashed.
    pub fn encode(&self) -> Vec<u8> {
        canonical::encode(&Versioned::V1(self))
    }

    /// Reads canonical bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        const WHAT: &str = "network parameters";
        let Versioned::V1(parameters) =
            canonical::decode::<Versioned<Self>>(WHAT, bytes, MAX_NETWORK_FILE_BYTES)?;
        parameters
            .check()
            .map_err(|reason| DecodeError::invalid(WHAT, reason))?;
        Ok(parameters)
    }

    fn check(&self) -> Result<(), String> {
        if self.epoch == 0 || self.minimum_platform_version == 0 {
            return Err("epochs and platform versions are counted from 1".to_owned());
        }
        if self.notaries.len() > MAX_NOTARIES {
            return Err(format!(
                "{} notaries, at most {MAX_NOTARIES} are possible",
                self.notaries.len()
            ));
        }
        for (index, notary) in self.notaries.iter().enumerate() {
            if self.notaries[..index]
                .iter()
                .any(|other| other.identity.name == notary.identity.name)
            {
                return Err(format!("notary {} appears twice", notary.identity));
            }
        }
        for (name, value, max) in [
            ("maxMessageSize", self.max_message_size, MAX_MESSAGE_BYTES),
            (
                "maxTransactionSize",
                self.max_transaction_size,
                MAX_TRANSACTION_BYTES,
            ),
        ] {
            if value == 0 || value > max as u64 {
                return Err(format!("{name} is {value} bytes; 1 to {max} are possible"));
            }
        }
        Ok(())
    }
}

/// Network parameters as they were signed, with the certificates of the signer: the `network-parameters` file. JSON is
/// base64 of [`encode`](Self::encode).
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct SignedNetworkParameters {
    raw: Vec<u8>,
    signature: Signature,
    path: CertificatePath,
}

impl SignedNetworkParameters {
    /// Signs with the network's authority for the network map or for network parameters.
    ///
    /// # Errors
    /// If the parameters break a rule.
    pub fn sign(parameters: &NetworkParameters, signer: &Identity) -> Result<Self, NetworkError> {
        parameters.check().map_err(NetworkError::Parameters)?;
        let raw = parameters.encode();
        let signature = signer
            .key()
            .sign(&Purpose::NetworkParameters.message(&raw))
            .map_err(NetworkError::Signing)?;
        Ok(Self {
            raw,
            signature,
            path: signer.path().clone(),
        })
    }

    /// The parameters, if they are signed by an authority certified for it under `trust_root` at `now`, and ask for no
    /// later platform than this one.
    ///
    /// # Errors
    /// What is not to be believed. The parameters must not be used then.
    pub fn verify(
        &self,
        trust_root: &Certificate,
        now: UnixTime,
    ) -> Result<NetworkParameters, NetworkError> {
        let signer = self.path.leaf();
        let name = || signer.subject().clone();
        let expected = match signer.role() {
            Some(CertRole::NetworkMap) => CertRole::NetworkMap,
            _ => CertRole::NetworkParameters,
        };
        validate_path(&self.path, trust_root, now, expected).map_err(|source| {
            NetworkError::Path {
                name: name(),
                source,
            }
        })?;
        signer
            .public_key()
            .verify(
                &Purpose::NetworkParameters.message(&self.raw),
                &self.signature,
            )
            .map_err(|source| NetworkError::Signature {
                name: name(),
                source,
            })?;
        let parameters = NetworkParameters::decode(&self.raw)?;
        if parameters.minimum_platform_version > PLATFORM_VERSION {
            return Err(NetworkError::PlatformVersion {
                wanted: parameters.minimum_platform_version,
            });
        }
        Ok(parameters)
    }

    /// The hash by which transactions refer to the parameters.
    pub fn hash(&self) -> SecureHash {
        SecureHash::of(&self.raw)
    }

    /// The canonical bytes, versioned: the content of the `network-parameters` file.
    pub fn encode(&self) -> Vec<u8> {
        canonical::encode(&Versioned::V1(self))
    }

    /// Reads canonical bytes. Nothing is verified.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        const WHAT: &str = "signed network parameters";
        let Versioned::V1(signed) =
            canonical::decode::<Versioned<Self>>(WHAT, bytes, MAX_NETWORK_FILE_BYTES)?;
        Ok(signed)
    }
}

serde_as_base64!(SignedNetworkParameters);

impl From<Timestamp> for UnixTime {
    fn from(time: Timestamp) -> Self {
        Self(time.as_seconds())
    }
}
