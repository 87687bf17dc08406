//! The file's shape. Keys that Fabric knows and that decide nothing here are read and passed over; keys that it does
//! not know are refused, because they are mistakes in writing.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, Visitor};

use super::GenesisError;

pub(super) fn read(configtx: &str) -> Result<File, GenesisError> {
    parse(configtx).map_err(GenesisError::Yaml)
}

/// Reads YAML, with anchors and merge keys.
pub(crate) fn parse<T: de::DeserializeOwned>(text: &str) -> Result<T, String> {
    let mut options = serde_saphyr::Options::default();
    // One line is enough for a message; it names line and column.
    options.with_snippet = false;
    serde_saphyr::from_str_with_options(text, options).map_err(|error| error.to_string())
}

/// The sections beside the profiles only hold what the profiles refer to by anchors.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct File {
    #[serde(default)]
    pub(crate) profiles: BTreeMap<String, Profile>,
}

pub(crate) type Policies = BTreeMap<String, Policy>;

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct Profile {
    pub(crate) consortium: Option<String>,
    pub(crate) application: Option<Application>,
    pub(crate) orderer: Option<Orderer>,
    pub(crate) consortiums: Option<BTreeMap<String, Consortium>>,
    pub(crate) capabilities: Option<BTreeMap<String, bool>>,
    pub(crate) policies: Option<Policies>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct Policy {
    #[serde(rename = "Type", default)]
    pub(crate) kind: String,
    #[serde(default)]
    pub(crate) rule: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct Consortium {
    pub(crate) organizations: Option<Vec<Organization>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct Application {
    pub(crate) organizations: Option<Vec<Organization>>,
    pub(crate) capabilities: Option<BTreeMap<String, bool>>,
    #[serde(rename = "Resources", default)]
    _resources: Option<IgnoredAny>,
    pub(crate) policies: Option<Policies>,
    #[serde(rename = "ACLs")]
    pub(crate) acls: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct Organization {
    pub(crate) name: String,
    #[serde(rename = "ID")]
    pub(crate) id: Option<String>,
    #[serde(rename = "MSPDir")]
    pub(crate) msp_dir: Option<String>,
    #[serde(rename = "MSPType")]
    pub(crate) msp_type: Option<String>,
    pub(crate) policies: Option<Policies>,
    pub(crate) anchor_peers: Option<Vec<AnchorPeer>>,
    pub(crate) orderer_endpoints: Option<Vec<String>>,
    #[serde(rename = "AdminPrincipal", default)]
    _admin_principal: Option<IgnoredAny>,
    #[serde(default)]
    pub(crate) skip_as_foreign: bool,
}

impl Organization {
    /// One with membership and policies, and nothing else.
    pub(crate) fn new(name: &str, id: &str, msp_dir: &str, policies: Policies) -> Self {
        Self {
            name: name.to_owned(),
            id: Some(id.to_owned()),
            msp_dir: Some(msp_dir.to_owned()),
            msp_type: None,
            policies: Some(policies),
            anchor_peers: None,
            orderer_endpoints: None,
            _admin_principal: None,
            skip_as_foreign: false,
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct AnchorPeer {
    pub(crate) host: String,
    pub(crate) port: u16,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct Orderer {
    pub(crate) orderer_type: Option<String>,
    pub(crate) addresses: Option<Vec<String>>,
    pub(crate) batch_timeout: Option<Text>,
    pub(crate) batch_size: Option<BatchSize>,
    #[serde(rename = "Kafka", default)]
    _kafka: Option<IgnoredAny>,
    pub(crate) etcd_raft: Option<EtcdRaft>,
    // Of version 3; the orderer type says whether they count.
    #[serde(rename = "ConsenterMapping", default)]
    _consenter_mapping: Option<IgnoredAny>,
    #[serde(rename = "SmartBFT", default)]
    _smart_bft: Option<IgnoredAny>,
    pub(crate) organizations: Option<Vec<Organization>>,
    pub(crate) max_channels: Option<u64>,
    pub(crate) capabilities: Option<BTreeMap<String, bool>>,
    pub(crate) policies: Option<Policies>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct BatchSize {
    pub(crate) max_message_count: Option<Text>,
    pub(crate) absolute_max_bytes: Option<Text>,
    pub(crate) preferred_max_bytes: Option<Text>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct EtcdRaft {
    pub(crate) consenters: Option<Vec<Consenter>>,
    pub(crate) options: Option<RaftOptions>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct Consenter {
    pub(crate) host: Option<String>,
    pub(crate) port: Option<u16>,
    #[serde(rename = "ClientTLSCert")]
    pub(crate) client_tls_cert: Option<String>,
    #[serde(rename = "ServerTLSCert")]
    pub(crate) server_tls_cert: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct RaftOptions {
    pub(crate) tick_interval: Option<Text>,
    pub(crate) election_tick: Option<Text>,
    pub(crate) heartbeat_tick: Option<Text>,
    pub(crate) max_inflight_blocks: Option<Text>,
    pub(crate) snapshot_interval_size: Option<Text>,
}

/// A number or a text, as it is written: `10`, `64 KB`, `200ms`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Text(pub(crate) String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Scalar;
        impl Visitor<'_> for Scalar {
            type Value = Text;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number or a text such as 10, 64 KB or 200ms")
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Text, E> {
                Ok(Text(value.to_string()))
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Text, E> {
                Ok(Text(value.to_string()))
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<Text, E> {
                Ok(Text(value.to_owned()))
            }
        }
        deserializer.deserialize_any(Scalar)
    }
}
