//! A channel's first block, made from a profile of `configtx.yaml`.
//!
//! The file is Fabric's, as `configtxgen` reads it, and the block is the one that it makes: the same groups, values,
//! policies and versions. Start with [`Profile::read`], then [`Profile::genesis_block`]. Whether an orderer would
//! accept the configuration is judged by [`config`](crate::config), not here.

mod rule;
pub(crate) mod yaml;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use prost::Message;
use prost_types::Timestamp;

use self::yaml::{Application, Consenter, Orderer, Organization, Policies, Text};
use crate::block;
use crate::config::duration::GoDuration;
use crate::envelope::{ChannelId, RawEnvelope, tx_id};
use crate::msp::{FolderError, msp_config_from_folder};
use crate::proto::common::{
    self, Block, ConfigGroup, ConfigPolicy, ConfigValue, HeaderType, policy::PolicyType,
};
use crate::proto::{etcdraft, msp, orderer, protos};
use crate::wire;

/// Who may change nearly everything: the policy of that name in the same group.
const ADMINS: &str = "Admins";
/// Who may change what concerns the whole ordering service.
const ORDERER_ADMINS: &str = "/Channel/Orderer/Admins";
/// The policies that every group must have.
const REQUIRED_POLICIES: [&str; 3] = [ADMINS, "Readers", "Writers"];
/// The policy by which blocks are accepted.
const BLOCK_VALIDATION: &str = "BlockValidation";
/// What Fabric's tool writes when no addresses are given.
const DEFAULT_ADDRESS: &str = "127.0.0.1:7050";

/// Why no genesis block can be made.
#[derive(Debug, thiserror::Error)]
pub enum GenesisError {
    /// The file is no YAML, or holds something that does not belong there.
    #[error("configtx.yaml cannot be read: {0}")]
    Yaml(String),
    /// There is no such profile.
    #[error("could not find profile: {name}; the file has {}", known.join(", "))]
    NoProfile {
        /// The name that was asked for.
        name: String,
        /// The names that there are.
        known: Vec<String>,
    },
    /// A setting is missing or cannot have this value.
    #[error("{section}: {problem}")]
    Setting {
        /// The part of the profile.
        section: String,
        /// What is wrong there, and what would be right.
        problem: String,
    },
    /// An organisation's MSP folder cannot be used.
    #[error("error loading MSP configuration for org {organization} from {}", folder.display())]
    Msp {
        /// The organisation's name.
        organization: String,
        /// Its folder, as the profile names it.
        folder: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<FolderError>,
    },
    /// A consenter's certificate cannot be read.
    #[error("cannot load the certificate of consenter {consenter} from {}", path.display())]
    Certificate {
        /// The consenter, `host:port`.
        consenter: String,
        /// The file, as the profile names it.
        path: PathBuf,
        /// What the file system said.
        #[source]
        source: std::io::Error,
    },
}

pub(crate) fn setting(section: impl Into<String>, problem: impl Into<String>) -> GenesisError {
    GenesisError::Setting {
        section: section.into(),
        problem: problem.into(),
    }
}

/// The files that a profile names.
pub trait Files {
    /// The membership definition in an MSP folder.
    ///
    /// # Errors
    /// [`FolderError`] naming the file.
    fn msp(&self, folder: &Path, msp_id: &str) -> Result<msp::MspConfig, FolderError>;

    /// A certificate file's content.
    ///
    /// # Errors
    /// The file system's.
    fn certificate(&self, path: &Path) -> std::io::Result<Vec<u8>>;
}

/// Files on disk; relative names are relative to the folder of `configtx.yaml`.
#[derive(Debug, Clone)]
pub struct BesideConfigtx(pub PathBuf);

impl Files for BesideConfigtx {
    fn msp(&self, folder: &Path, msp_id: &str) -> Result<msp::MspConfig, FolderError> {
        msp_config_from_folder(&self.0.join(folder), msp_id)
    }

    fn certificate(&self, path: &Path) -> std::io::Result<Vec<u8>> {
        std::fs::read(self.0.join(path))
    }
}

/// A profile of `configtx.yaml`.
#[derive(Debug, Clone)]
pub struct Profile(yaml::Profile);

impl Profile {
    /// The profile `name` in the text of a `configtx.yaml`, anchors and merge keys resolved.
    ///
    /// # Errors
    /// [`GenesisError::Yaml`] with line and column, [`GenesisError::NoProfile`] with the names that there are.
    pub fn read(configtx: &str, name: &str) -> Result<Self, GenesisError> {
        let mut file = yaml::read(configtx)?;
        match file.profiles.remove(name) {
            Some(profile) => Ok(Self(profile)),
            None => Err(GenesisError::NoProfile {
                name: name.to_owned(),
                known: file.profiles.into_keys().collect(),
            }),
        }
    }

    /// The first block of a channel with this profile's configuration.
    ///
    /// `made_at` is in seconds since 1970; `nonce` is random, so that no two channels begin with the same block.
    ///
    /// # Errors
    /// [`GenesisError`] naming the setting or the file.
    pub fn genesis_block(
        &self,
        channel: &ChannelId,
        files: &dyn Files,
        made_at: i64,
        nonce: &[u8],
    ) -> Result<Block, GenesisError> {
        let config = common::ConfigEnvelope {
            config: Some(common::Config {
                sequence: 0,
                channel_group: Some(self.channel_group(files)?),
            }),
            last_update: None,
        };
        // Nobody has signed, so the identifier is made from the nonce alone.
        let channel_header = common::ChannelHeader {
            r#type: HeaderType::Config as i32,
            version: 1,
            timestamp: Some(Timestamp {
                seconds: made_at,
                nanos: 0,
            }),
            channel_id: channel.as_str().to_owned(),
            tx_id: tx_id(nonce, &[]),
            ..Default::default()
        };
        let signature_header = common::SignatureHeader {
            creator: Vec::new(),
            nonce: nonce.to_vec(),
        };
        let payload = common::Payload {
            header: Some(common::Header {
                channel_header: channel_header.encode_to_vec(),
                signature_header: signature_header.encode_to_vec(),
            }),
            data: config.encode_to_vec(),
        };
        let envelope = RawEnvelope::new(&payload.encode_to_vec(), &[]);
        let mut block = block::new_block(0, &[], vec![envelope.encoded().clone()]);
        let metadata = common::Metadata {
            value: common::OrdererBlockMetadata {
                last_config: Some(common::LastConfig { index: 0 }),
                consenter_metadata: Vec::new(),
            }
            .encode_to_vec(),
            signatures: Vec::new(),
        };
        block::set_metadata(
            &mut block,
            common::BlockMetadataIndex::Signatures,
            Bytes::from(metadata.encode_to_vec()),
        );
        Ok(block)
    }

    fn channel_group(&self, files: &dyn Files) -> Result<ConfigGroup, GenesisError> {
        let profile = &self.0;
        let mut group = new_group("Channel", profile.policies.as_ref(), &[])?;
        let hashing = common::HashingAlgorithm {
            name: "SHA256".to_owned(),
        };
        put(&mut group, "HashingAlgorithm", ADMINS, &hashing);
        // One flat hash over all the data, no tree.
        let structure = common::BlockDataHashingStructure { width: u32::MAX };
        put(&mut group, "BlockDataHashingStructure", ADMINS, &structure);
        if let Some(name) = profile.consortium.as_ref().filter(|name| !name.is_empty()) {
            let consortium = common::Consortium { name: name.clone() };
            put(&mut group, "Consortium", ADMINS, &consortium);
        }
        put_capabilities(&mut group, profile.capabilities.as_ref());

        if let Some(orderer) = &profile.orderer {
            let addresses = match &orderer.addresses {
                Some(addresses) => addresses.clone(),
                None => vec![DEFAULT_ADDRESS.to_owned()],
            };
            if !addresses.is_empty() {
                let addresses = common::OrdererAddresses { addresses };
                put(&mut group, "OrdererAddresses", ORDERER_ADMINS, &addresses);
            }
            let orderer = orderer_group(orderer, files)?;
            group.groups.insert("Orderer".to_owned(), orderer);
        }
        if let Some(application) = &profile.application {
            let application = application_group(application, files)?;
            group.groups.insert("Application".to_owned(), application);
        }
        if let Some(consortiums) = &profile.consortiums {
            let consortiums = consortiums_group(consortiums, files)?;
            group.groups.insert("Consortiums".to_owned(), consortiums);
        }
        Ok(group)
    }
}

fn orderer_group(orderer: &Orderer, files: &dyn Files) -> Result<ConfigGroup, GenesisError> {
    let mut group = new_group("Orderer", orderer.policies.as_ref(), &[BLOCK_VALIDATION])?;
    let kind = orderer.orderer_type.as_deref().unwrap_or("solo");
    if kind != "etcdraft" {
        let problem = format!("unknown orderer type: {kind}; only etcdraft is supported");
        return Err(setting("Orderer.OrdererType", problem));
    }
    let raft = orderer
        .etcd_raft
        .as_ref()
        .ok_or_else(|| setting("Orderer", "etcdraft configuration missing"))?;

    let size = orderer.batch_size.clone().unwrap_or_default();
    let or = |text: Option<Text>, name: &str, default: u32| -> Result<u32, GenesisError> {
        let value = number(&format!("Orderer.BatchSize.{name}"), text)?;
        Ok(if value == 0 { default } else { value })
    };
    let size = orderer::BatchSize {
        max_message_count: or(size.max_message_count, "MaxMessageCount", 500)?,
        absolute_max_bytes: or(size.absolute_max_bytes, "AbsoluteMaxBytes", 10 << 20)?,
        preferred_max_bytes: or(size.preferred_max_bytes, "PreferredMaxBytes", 2 << 20)?,
    };
    put(&mut group, "BatchSize", ADMINS, &size);
    let timeout = orderer.batch_timeout.clone().unwrap_or_default();
    // As Go prints it, so that `60s` becomes `1m0s`.
    let timeout = match duration("Orderer.BatchTimeout", &timeout.0, "2s")? {
        GoDuration(0) => GoDuration(2_000_000_000),
        given => given,
    };
    let timeout = orderer::BatchTimeout {
        timeout: timeout.to_string(),
    };
    put(&mut group, "BatchTimeout", ADMINS, &timeout);
    let restrictions = orderer::ChannelRestrictions {
        max_count: orderer.max_channels.unwrap_or_default(),
    };
    put(&mut group, "ChannelRestrictions", ADMINS, &restrictions);
    put_capabilities(&mut group, orderer.capabilities.as_ref());
    let consensus = orderer::ConsensusType {
        r#type: kind.to_owned(),
        metadata: raft_metadata(raft, files)?.encode_to_vec(),
        state: orderer::consensus_type::State::Normal as i32,
    };
    put(&mut group, "ConsensusType", ADMINS, &consensus);

    for organization in orderer.organizations.iter().flatten() {
        let mut org = organization_group("Orderer", organization, files)?;
        if let Some(addresses) = organization.orderer_endpoints.clone()
            && !addresses.is_empty()
        {
            let addresses = common::OrdererAddresses { addresses };
            put(&mut org, "Endpoints", ADMINS, &addresses);
        }
        group.groups.insert(organization.name.clone(), org);
    }
    Ok(group)
}

fn raft_metadata(
    raft: &yaml::EtcdRaft,
    files: &dyn Files,
) -> Result<etcdraft::ConfigMetadata, GenesisError> {
    let given = raft.options.clone().unwrap_or_default();
    let or = |text: Option<Text>, name: &str, default: u32| -> Result<u32, GenesisError> {
        let value = number(&format!("Orderer.EtcdRaft.Options.{name}"), text)?;
        Ok(if value == 0 { default } else { value })
    };
    let tick_interval = match given.tick_interval {
        Some(Text(text)) if !text.is_empty() => text,
        _ => "500ms".to_owned(),
    };
    duration("Orderer.EtcdRaft.Options.TickInterval", &tick_interval, "")?;
    let options = etcdraft::Options {
        tick_interval,
        election_tick: or(given.election_tick, "ElectionTick", 10)?,
        heartbeat_tick: or(given.heartbeat_tick, "HeartbeatTick", 1)?,
        max_inflight_blocks: or(given.max_inflight_blocks, "MaxInflightBlocks", 5)?,
        snapshot_interval_size: or(
            given.snapshot_interval_size,
            "SnapshotIntervalSize",
            16 << 20,
        )?,
    };
    if options.election_tick <= options.heartbeat_tick {
        return Err(setting(
            "Orderer.EtcdRaft.Options",
            "election tick must be greater than heartbeat tick",
        ));
    }
    let consenters = raft.consenters.as_deref().unwrap_or_default();
    if consenters.is_empty() {
        return Err(setting(
            "Orderer.EtcdRaft",
            "etcdraft configuration did not specify any consenter",
        ));
    }
    let consenters = consenters
        .iter()
        .map(|consenter| raft_consenter(consenter, files))
        .collect::<Result<_, _>>()?;
    Ok(etcdraft::ConfigMetadata {
        consenters,
        options: Some(options),
    })
}

pub(crate) fn raft_consenter(
    consenter: &Consenter,
    files: &dyn Files,
) -> Result<etcdraft::Consenter, GenesisError> {
    let missing = |what: &str| {
        setting(
            "Orderer.EtcdRaft.Consenters",
            format!("consenter info in etcdraft configuration did not specify {what}"),
        )
    };
    let given = |text: &Option<String>, what: &str| {
        let text = text.clone().filter(|text| !text.is_empty());
        text.ok_or_else(|| missing(what))
    };
    let host = given(&consenter.host, "host")?;
    let port = consenter.port.filter(|port| *port > 0);
    let port = port.ok_or_else(|| missing("port"))?;
    let certificate = |path: String| {
        let path = PathBuf::from(path);
        files
            .certificate(&path)
            .map_err(|source| GenesisError::Certificate {
                consenter: format!("{host}:{port}"),
                path,
                source,
            })
    };
    Ok(etcdraft::Consenter {
        client_tls_cert: certificate(given(&consenter.client_tls_cert, "client TLS cert")?)?,
        server_tls_cert: certificate(given(&consenter.server_tls_cert, "server TLS cert")?)?,
        port: u32::from(port),
        host,
    })
}

fn application_group(
    application: &Application,
    files: &dyn Files,
) -> Result<ConfigGroup, GenesisError> {
    let mut group = new_group("Application", application.policies.as_ref(), &[])?;
    if let Some(acls) = application.acls.as_ref().filter(|acls| !acls.is_empty()) {
        let acls = acls.iter().map(|(name, policy)| {
            let policy_ref = policy.clone();
            (name.clone(), protos::ApiResource { policy_ref })
        });
        let acls = protos::AcLs {
            acls: acls.collect(),
        };
        put(&mut group, "ACLs", ADMINS, &acls);
    }
    put_capabilities(&mut group, application.capabilities.as_ref());
    for organization in application.organizations.iter().flatten() {
        let mut org = organization_group("Application", organization, files)?;
        let peers = organization.anchor_peers.iter().flatten();
        let anchor_peers: Vec<_> = peers
            .map(|peer| protos::AnchorPeer {
                host: peer.host.clone(),
                port: i32::from(peer.port),
            })
            .collect();
        if !anchor_peers.is_empty() {
            let peers = protos::AnchorPeers { anchor_peers };
            put(&mut org, "AnchorPeers", ADMINS, &peers);
        }
        group.groups.insert(organization.name.clone(), org);
    }
    Ok(group)
}

/// The consortiums of a system channel. Their settings belong to the ordering service.
fn consortiums_group(
    consortiums: &BTreeMap<String, yaml::Consortium>,
    files: &dyn Files,
) -> Result<ConfigGroup, GenesisError> {
    let mut group = ConfigGroup {
        mod_policy: ORDERER_ADMINS.to_owned(),
        ..Default::default()
    };
    // Nobody asks this policy; it keeps the channel's implicit policies from being blocked by this group.
    let anybody = common::SignaturePolicyEnvelope {
        rule: Some(rule::n_out_of(0, Vec::new())),
        ..Default::default()
    };
    let anybody = config_policy(PolicyType::Signature, &anybody, ORDERER_ADMINS);
    group.policies.insert(ADMINS.to_owned(), anybody);
    for (name, consortium) in consortiums {
        let mut inner = ConfigGroup {
            mod_policy: ORDERER_ADMINS.to_owned(),
            ..Default::default()
        };
        for organization in consortium.organizations.iter().flatten() {
            let org = organization_group("Consortiums", organization, files)?;
            inner.groups.insert(organization.name.clone(), org);
        }
        let any_admin = common::ImplicitMetaPolicy {
            sub_policy: ADMINS.to_owned(),
            rule: common::implicit_meta_policy::Rule::Any as i32,
        };
        let creation = common::Policy {
            r#type: PolicyType::ImplicitMeta as i32,
            value: any_admin.encode_to_vec(),
        };
        put(
            &mut inner,
            "ChannelCreationPolicy",
            ORDERER_ADMINS,
            &creation,
        );
        group.groups.insert(name.clone(), inner);
    }
    Ok(group)
}

pub(crate) fn organization_group(
    section: &str,
    organization: &Organization,
    files: &dyn Files,
) -> Result<ConfigGroup, GenesisError> {
    let section = format!("{section} organization {}", organization.name);
    if organization.skip_as_foreign {
        return Err(setting(
            section,
            "is marked to be skipped as foreign; all org definitions must be local for a genesis block",
        ));
    }
    match organization.msp_type.as_deref() {
        None | Some("" | "bccsp") => {}
        Some(other) => {
            let problem = format!("MSPType {other} is not supported; only bccsp is");
            return Err(setting(section, problem));
        }
    }
    let mut group = new_group(&section, organization.policies.as_ref(), &[])?;
    let folder = PathBuf::from(organization.msp_dir.clone().unwrap_or_default());
    let id = organization.id.as_deref().unwrap_or_default();
    let msp = files.msp(&folder, id).map_err(|source| GenesisError::Msp {
        organization: organization.name.clone(),
        folder,
        source: Box::new(source),
    })?;
    put(&mut group, "MSP", ADMINS, &msp);
    Ok(group)
}

/// A group with its policies, which must include the usual three and `also`.
fn new_group(
    section: &str,
    policies: Option<&Policies>,
    also: &[&str],
) -> Result<ConfigGroup, GenesisError> {
    let policies = policies.ok_or_else(|| setting(section, "no policies defined"))?;
    for name in also.iter().chain(&REQUIRED_POLICIES) {
        if !policies.contains_key(*name) {
            return Err(setting(section, format!("no {name} policy defined")));
        }
    }
    let mut group = ConfigGroup {
        mod_policy: ADMINS.to_owned(),
        ..Default::default()
    };
    for (name, policy) in policies {
        let policy = read_policy(&format!("{section} policy {name}"), policy)?;
        group.policies.insert(name.clone(), policy);
    }
    Ok(group)
}

/// A policy in the language of the file; the group's admins may change it.
pub(crate) fn read_policy(
    section: &str,
    policy: &yaml::Policy,
) -> Result<ConfigPolicy, GenesisError> {
    let invalid = |kind: &str, problem: String| {
        let problem = format!("invalid {kind} policy rule '{}': {problem}", policy.rule);
        setting(section, problem)
    };
    match policy.kind.as_str() {
        "ImplicitMeta" => Ok(config_policy(
            PolicyType::ImplicitMeta,
            &rule::implicit_meta(&policy.rule).map_err(|e| invalid("implicit meta", e))?,
            ADMINS,
        )),
        "Signature" => Ok(config_policy(
            PolicyType::Signature,
            &rule::signature(&policy.rule).map_err(|e| invalid("signature", e))?,
            ADMINS,
        )),
        other => {
            let problem = format!("unknown policy type: {other}; known: Signature, ImplicitMeta");
            Err(setting(section, problem))
        }
    }
}

fn config_policy(kind: PolicyType, rule: &impl Message, mod_policy: &str) -> ConfigPolicy {
    ConfigPolicy {
        version: 0,
        policy: Some(common::Policy {
            r#type: kind as i32,
            value: rule.encode_to_vec(),
        }),
        mod_policy: mod_policy.to_owned(),
    }
}

pub(crate) fn put(group: &mut ConfigGroup, name: &str, mod_policy: &str, value: &impl Message) {
    put_encoded(group, name, mod_policy, value.encode_to_vec());
}

fn put_encoded(group: &mut ConfigGroup, name: &str, mod_policy: &str, value: Vec<u8>) {
    let value = ConfigValue {
        version: 0,
        value,
        mod_policy: mod_policy.to_owned(),
    };
    group.values.insert(name.to_owned(), value);
}

pub(crate) fn put_capabilities(
    group: &mut ConfigGroup,
    capabilities: Option<&BTreeMap<String, bool>>,
) {
    let Some(capabilities) = capabilities.filter(|capabilities| !capabilities.is_empty()) else {
        return;
    };
    // `Capabilities` by hand: Go writes a map's value even when it is an empty message, prost leaves it out. Tools
    // that compare configurations compare these bytes.
    let mut value = Vec::new();
    for (name, _) in capabilities.iter().filter(|(_, required)| **required) {
        let mut entry = Vec::new();
        wire::put_bytes(&mut entry, 1, name.as_bytes());
        wire::put_bytes(&mut entry, 2, &[]);
        wire::put_bytes(&mut value, 1, &entry);
    }
    put_encoded(group, "Capabilities", ADMINS, value);
}

/// A number, or a size such as `64 KB`. Absent is 0.
pub(crate) fn number(name: &str, text: Option<Text>) -> Result<u32, GenesisError> {
    let Some(Text(text)) = text else {
        return Ok(0);
    };
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (value, unit) = text.split_at(digits);
    let shift = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" => 0,
        "k" | "kb" => 10,
        "m" | "mb" => 20,
        "g" | "gb" => 30,
        _ => {
            let problem = format!("{text:?} is neither a number nor a size such as \"10 MB\"");
            return Err(setting(name, problem));
        }
    };
    value
        .parse::<u64>()
        .ok()
        .and_then(|value| value.checked_mul(1 << shift))
        .and_then(|value| u32::try_from(value).ok())
        .ok_or_else(|| setting(name, format!("{text:?} does not fit into 32 bits")))
}

pub(crate) fn duration(name: &str, text: &str, default: &str) -> Result<GoDuration, GenesisError> {
    let text = if text.is_empty() { default } else { text };
    text.parse()
        .map_err(|error| setting(name, format!("{error}; write it as 200ms, 2s or 1m")))
}
