//! The file's shape. Keys that Fabric knows and that decide nothing here are read and passed over; keys that it does
//! not know are refused, because they are mistakes in writing.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, Visitor};

use super::GenesisError;

pub(super) fn read(configtx: &str) -> Result<File, GenesisError> {
    let mut options = serde_saphyr::Options::default();
    // One line is enough for a message; it names line and column.
    options.with_snippet = false;
    serde_saphyr::from_str_with_options(configtx, options)
        .map_err(|error| GenesisError::Yaml(error.to_string()))
}

/// The sections beside the profiles only hold what the profiles refer to by anchors.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct File {
    #[serde(default)]
    pub(super) profiles: BTreeMap<String, Profile>,
}

pub(super) type Policies = BTreeMap<String, Policy>;

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(super) struct Profile {
    pub(super) consortium: Option<String>,
    pub(super) application: Option<Application>,
    pub(super) orderer: Option<Orderer>,
    pub(super) consortiums: Option<BTreeMap<String, Consortium>>,
    pub(super) capabilities: Option<BTreeMap<String, bool>>,
    pub(super) policies: Option<Policies>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(super) struct Policy {
    #[serde(rename = "Type", default)]
    pub(super) kind: String,
    #[serde(default)]
    pub(super) rule: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(super) struct Consortium {
    pub(super) organizations: Option<Vec<Organization>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(super) struct Application {
    pub(super) organizations: Option<Vec<Organization>>,
    pub(super) capabilities: Option<BTreeMap<String, bool>>,
    #[serde(rename = "Resources", default)]
    _resources: Option<IgnoredAny>,
    pub(super) policies: Option<Policies>,
    #[serde(rename = "ACLs")]
    pub(super) acls: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(super) struct Organization {
    pub(super) name: String,
    #[serde(rename = "ID")]
    pub(super) id: Option<String>,
    #[serde(rename = "MSPDir")]
    pub(super) msp_dir: Option<String>,
    #[serde(rename = "MSPType")]
    pub(super) msp_type: Option<String>,
    pub(super) policies: Option<Policies>,
    pub(super) anchor_peers: Option<Vec<AnchorPeer>>,
    pub(super) orderer_endpoints: Option<Vec<String>>,
    #[serde(rename = "AdminPrincipal", default)]
    _admin_principal: Option<IgnoredAny>,
    #[serde(default)]
    pub(super) skip_as_foreign: bool,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(super) struct AnchorPeer {
    pub(super) host: String,
    pub(super) port: u16,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(super) struct Orderer {
    pub(super) orderer_type: Option<String>,
    pub(super) addresses: Option<Vec<String>>,
    pub(super) batch_timeout: Option<Text>,
    pub(super) batch_size: Option<BatchSize>,
    #[serde(rename = "Kafka", default)]
    _kafka: Option<IgnoredAny>,
    pub(super) etcd_raft: Option<EtcdRaft>,
    // Of version 3; the orderer type says whether they count.
    #[serde(rename = "ConsenterMapping", default)]
    _consenter_mapping: Option<IgnoredAny>,
    #[serde(rename = "SmartBFT", default)]
    _smart_bft: Option<IgnoredAny>,
    pub(super) organizations: Option<Vec<Organization>>,
    pub(super) max_channels: Option<u64>,
    pub(super) capabilities: Option<BTreeMap<String, bool>>,
    pub(super) policies: Option<Policies>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(super) struct BatchSize {
    pub(super) max_message_count: Option<Text>,
    pub(super) absolute_max_bytes: Option<Text>,
    pub(super) preferred_max_bytes: Option<Text>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(super) struct EtcdRaft {
    pub(super) consenters: Option<Vec<Consenter>>,
    pub(super) options: Option<RaftOptions>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(super) struct Consenter {
    pub(super) host: Option<String>,
    pub(super) port: Option<u16>,
    #[serde(rename = "ClientTLSCert")]
    pub(super) client_tls_cert: Option<String>,
    #[serde(rename = "ServerTLSCert")]
    pub(super) server_tls_cert: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(super) struct RaftOptions {
    pub(super) tick_interval: Option<Text>,
    pub(super) election_tick: Option<Text>,
    pub(super) heartbeat_tick: Option<Text>,
    pub(super) max_inflight_blocks: Option<Text>,
    pub(super) snapshot_interval_size: Option<Text>,
}

/// A number or a text, as it is written: `10`, `64 KB`, `200ms`.
#[derive(Debug, Clone, Default)]
pub(super) struct Text(pub(super) String);

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
