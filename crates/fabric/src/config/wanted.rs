//! What a channel's configuration shall be, in the words of `configtx.yaml`.
//!
//! A [`Wanted`] names only what is to change: what it does not name stays as it is. It is read from a file that looks like
//! a part of a `configtx.yaml` ([`Wanted::read`]) or put together by a command, and then applied to the configuration in
//! force ([`Wanted::apply`]). Applied twice it changes nothing the second time. Whether the result is acceptable, and who
//! must agree, is not judged here.

use std::collections::BTreeMap;
use std::str::FromStr;

use prost::Message;
use serde::Deserialize;

use super::error::decode;
use super::{APPLICATION_GROUP, CAPABILITIES, ChannelConfig, ConfigError, ETCDRAFT, ORDERER_GROUP};
use crate::genesis::yaml::{self, Organization, Policy, Text};
use crate::genesis::{
    Files, GenesisError, duration, number, organization_group, put, put_capabilities,
    raft_consenter, read_policy, setting,
};
use crate::proto::common::{self, Config, ConfigGroup};
use crate::proto::{etcdraft, msp, orderer, protos};

const ADMINS: &str = "Admins";
/// Who may change the channel-wide orderer addresses.
const ORDERER_ADMINS: &str = "/Channel/Orderer/Admins";
const CONSENSUS_TYPE: &str = "ConsensusType";

/// Why what is wanted cannot be.
#[derive(Debug, thiserror::Error)]
pub enum WantedError {
    /// The file is no YAML, or names what cannot be set.
    #[error("the wanted configuration cannot be read: {0}")]
    Yaml(String),
    /// A setting, or a file that it names.
    #[error(transparent)]
    Setting(#[from] GenesisError),
    /// The configuration in force is not what it should be.
    #[error("the configuration in force cannot be changed in this way")]
    Current(#[from] ConfigError),
}

/// Parts of a configuration as they shall be.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields, default)]
pub struct Wanted {
    /// The orderer group.
    pub orderer: WantedOrderer,
    /// The application group.
    pub application: WantedApplication,
    /// Of the channel: true requires one, false no longer does.
    pub capabilities: BTreeMap<String, bool>,
    /// Of the channel; nothing removes one.
    pub policies: BTreeMap<String, Option<WantedPolicy>>,
}

/// A policy as the file writes it.
#[derive(Debug, Clone, Deserialize)]
#[serde(transparent)]
pub struct WantedPolicy(Policy);

impl WantedPolicy {
    /// A policy over signatures, such as `OR('Org1MSP.admin')`.
    #[must_use]
    pub fn signature(rule: String) -> Self {
        Self(Policy {
            kind: "Signature".to_owned(),
            rule,
        })
    }
}

/// A number, a size or a duration as it is written: `10`, `64 KB`, `200ms`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Scalar(Text);

impl FromStr for Scalar {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(Text(text.to_owned())))
    }
}

/// Parts of the orderer group.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields, default)]
pub struct WantedOrderer {
    /// Normal work or maintenance.
    pub state: Option<WantedState>,
    /// How long a message waits for others to fill its block.
    pub batch_timeout: Option<Scalar>,
    /// When a block is full.
    pub batch_size: WantedBatchSize,
    /// How many channels a system channel may create.
    pub max_channels: Option<u64>,
    /// The channel-wide orderer addresses.
    pub addresses: Option<ListChange>,
    /// Consenters and options.
    pub etcd_raft: WantedRaft,
    /// Required or no longer.
    pub capabilities: BTreeMap<String, bool>,
    /// Nothing removes one.
    pub policies: BTreeMap<String, Option<WantedPolicy>>,
    /// By the name of their group; nothing removes one.
    pub organizations: BTreeMap<String, Option<WantedOrganization>>,
}

/// A channel's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WantedState {
    /// It does its work.
    Normal,
    /// Only configuration updates of those who administer the orderers are ordered.
    Maintenance,
}

/// When a block is full.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields, default)]
pub struct WantedBatchSize {
    /// Messages in a block.
    pub max_message_count: Option<Scalar>,
    /// The longest message.
    pub absolute_max_bytes: Option<Scalar>,
    /// The length of a block of several messages.
    pub preferred_max_bytes: Option<Scalar>,
}

/// Consenters and options of a Raft channel.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields, default)]
pub struct WantedRaft {
    /// By `host:port`; nothing removes one, one that is there gets these certificates.
    pub consenters: BTreeMap<String, Option<WantedConsenter>>,
    /// The options.
    pub options: WantedOptions,
}

/// A consenter's certificates: names of PEM files.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct WantedConsenter {
    /// By which it is known.
    #[serde(rename = "ClientTLSCert")]
    pub client_tls_cert: String,
    /// With which it is called.
    #[serde(rename = "ServerTLSCert")]
    pub server_tls_cert: String,
}

/// Options of a Raft channel.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields, default)]
pub struct WantedOptions {
    /// The length of a tick.
    pub tick_interval: Option<Scalar>,
    /// Ticks without a leader before an election.
    pub election_tick: Option<Scalar>,
    /// Ticks between heartbeats.
    pub heartbeat_tick: Option<Scalar>,
    /// Blocks that are proposed and not yet decided.
    pub max_inflight_blocks: Option<Scalar>,
    /// Bytes of blocks after which a snapshot is taken.
    pub snapshot_interval_size: Option<Scalar>,
}

/// Parts of the application group.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields, default)]
pub struct WantedApplication {
    /// Which policy governs a resource; nothing removes the rule.
    #[serde(rename = "ACLs")]
    pub acls: BTreeMap<String, Option<String>>,
    /// Required or no longer.
    pub capabilities: BTreeMap<String, bool>,
    /// Nothing removes one.
    pub policies: BTreeMap<String, Option<WantedPolicy>>,
    /// By the name of their group; nothing removes one.
    pub organizations: BTreeMap<String, Option<WantedOrganization>>,
}

/// An organisation: one that is to come, or parts of one that is there.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields, default)]
pub struct WantedOrganization {
    /// The name of its MSP; needed for one that is to come.
    #[serde(rename = "ID")]
    pub id: Option<String>,
    /// Its MSP folder; needed for one that is to come, replaces the definition of one that is there.
    #[serde(rename = "MSPDir")]
    pub msp_dir: Option<String>,
    /// Nothing removes one. Who is to come without any gets the usual ones.
    pub policies: BTreeMap<String, Option<WantedPolicy>>,
    /// Where its orderers are reached, `host:port`.
    pub orderer_endpoints: Option<ListChange>,
    /// Where other organisations' peers reach its peers first, `host:port`.
    pub anchor_peers: Option<ListChange>,
}

/// What becomes of a list.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum ListChange {
    /// This is the list.
    Whole(Vec<String>),
    /// Some go, some come.
    Edit(ListEdit),
}

/// What goes and what comes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields, default)]
pub struct ListEdit {
    /// At the end, unless it is there already.
    pub add: Vec<String>,
    /// Wherever it stands.
    pub remove: Vec<String>,
}

impl ListChange {
    /// One more.
    #[must_use]
    pub fn with(element: String) -> Self {
        Self::Edit(ListEdit {
            add: vec![element],
            remove: Vec::new(),
        })
    }

    /// One less.
    #[must_use]
    pub fn without(element: String) -> Self {
        Self::Edit(ListEdit {
            add: Vec::new(),
            remove: vec![element],
        })
    }

    fn apply(&self, list: &mut Vec<String>) {
        match self {
            Self::Whole(whole) => list.clone_from(whole),
            Self::Edit(edit) => {
                list.retain(|element| !edit.remove.contains(element));
                for element in &edit.add {
                    if !list.contains(element) {
                        list.push(element.clone());
                    }
                }
            }
        }
    }
}

impl Wanted {
    /// Reads a file.
    ///
    /// # Errors
    /// [`WantedError::Yaml`] with line and column.
    pub fn read(text: &str) -> Result<Self, WantedError> {
        yaml::parse(text).map_err(WantedError::Yaml)
    }

    /// The configuration as wanted. What does not change keeps its bytes.
    ///
    /// # Errors
    /// [`WantedError`] naming the setting or the file.
    pub fn apply(&self, current: &ChannelConfig, files: &dyn Files) -> Result<Config, WantedError> {
        let mut config = current.proto().clone();
        let channel = config.channel_group.get_or_insert_default();
        put_policies(channel, "Channel", &self.policies)?;
        change_capabilities(channel, &self.capabilities)?;
        if let Some(change) = &self.orderer.addresses {
            change_addresses(channel, "OrdererAddresses", ORDERER_ADMINS, change)?;
        }
        if let Some(group) = channel.groups.get_mut(ORDERER_GROUP) {
            self.orderer.apply(group, files)?;
        }
        self.application
            .apply(channel.groups.get_mut(APPLICATION_GROUP), files)?;
        Ok(config)
    }
}

impl WantedOrderer {
    fn apply(&self, group: &mut ConfigGroup, files: &dyn Files) -> Result<(), WantedError> {
        put_policies(group, "Orderer", &self.policies)?;
        change_capabilities(group, &self.capabilities)?;
        let size = &self.batch_size;
        change(
            group,
            "BatchSize",
            ADMINS,
            |value: &mut orderer::BatchSize| {
                let section = "Orderer.BatchSize";
                set_number(
                    section,
                    "MaxMessageCount",
                    &size.max_message_count,
                    &mut value.max_message_count,
                )?;
                set_number(
                    section,
                    "AbsoluteMaxBytes",
                    &size.absolute_max_bytes,
                    &mut value.absolute_max_bytes,
                )?;
                set_number(
                    section,
                    "PreferredMaxBytes",
                    &size.preferred_max_bytes,
                    &mut value.preferred_max_bytes,
                )
            },
        )?;
        if let Some(Scalar(Text(text))) = &self.batch_timeout {
            let timeout = duration("Orderer.BatchTimeout", text, "")?.to_string();
            change(
                group,
                "BatchTimeout",
                ADMINS,
                |value: &mut orderer::BatchTimeout| {
                    value.timeout = timeout;
                    Ok(())
                },
            )?;
        }
        if let Some(most) = self.max_channels {
            change(
                group,
                "ChannelRestrictions",
                ADMINS,
                |value: &mut orderer::ChannelRestrictions| {
                    value.max_count = most;
                    Ok(())
                },
            )?;
        }
        change(
            group,
            CONSENSUS_TYPE,
            ADMINS,
            |value: &mut orderer::ConsensusType| {
                if let Some(state) = self.state {
                    value.state = match state {
                        WantedState::Normal => orderer::consensus_type::State::Normal,
                        WantedState::Maintenance => orderer::consensus_type::State::Maintenance,
                    } as i32;
                }
                self.etcd_raft.apply(value, files)
            },
        )?;
        for (name, wanted) in &self.organizations {
            let Some(org) = change_organization("Orderer", group, name, wanted.as_ref(), files)?
            else {
                continue;
            };
            if let Some(change) = wanted
                .as_ref()
                .and_then(|org| org.orderer_endpoints.as_ref())
            {
                change_addresses(org, "Endpoints", ADMINS, change)?;
            }
            if wanted
                .as_ref()
                .is_some_and(|org| org.anchor_peers.is_some())
            {
                return Err(setting(
                    format!("Orderer organization {name}"),
                    "AnchorPeers belong to organisations of the application",
                )
                .into());
            }
        }
        Ok(())
    }
}

impl WantedRaft {
    fn apply(
        &self,
        kind: &mut orderer::ConsensusType,
        files: &dyn Files,
    ) -> Result<(), WantedError> {
        let options = &self.options;
        if self.consenters.is_empty() && !options.any() {
            return Ok(());
        }
        if kind.r#type != ETCDRAFT {
            let problem = format!("the channel's consensus type is {}", kind.r#type);
            return Err(setting("Orderer.EtcdRaft", problem).into());
        }
        let mut metadata: etcdraft::ConfigMetadata = decode(&kind.metadata)?;
        let before = metadata.clone();
        let value = metadata.options.get_or_insert_default();
        let section = "Orderer.EtcdRaft.Options";
        if let Some(Scalar(Text(text))) = &options.tick_interval {
            value.tick_interval =
                duration(&format!("{section}.TickInterval"), text, "")?.to_string();
        }
        set_number(
            section,
            "ElectionTick",
            &options.election_tick,
            &mut value.election_tick,
        )?;
        set_number(
            section,
            "HeartbeatTick",
            &options.heartbeat_tick,
            &mut value.heartbeat_tick,
        )?;
        set_number(
            section,
            "MaxInflightBlocks",
            &options.max_inflight_blocks,
            &mut value.max_inflight_blocks,
        )?;
        set_number(
            section,
            "SnapshotIntervalSize",
            &options.snapshot_interval_size,
            &mut value.snapshot_interval_size,
        )?;
        for (address, wanted) in &self.consenters {
            change_consenter(&mut metadata.consenters, address, wanted.as_ref(), files)?;
        }
        if metadata != before {
            kind.metadata = metadata.encode_to_vec();
        }
        Ok(())
    }
}

impl WantedOptions {
    fn any(&self) -> bool {
        [
            &self.tick_interval,
            &self.election_tick,
            &self.heartbeat_tick,
            &self.max_inflight_blocks,
            &self.snapshot_interval_size,
        ]
        .into_iter()
        .any(Option::is_some)
    }
}

impl WantedApplication {
    fn apply(&self, group: Option<&mut ConfigGroup>, files: &dyn Files) -> Result<(), WantedError> {
        let Some(group) = group else {
            let nothing = self.acls.is_empty()
                && self.capabilities.is_empty()
                && self.policies.is_empty()
                && self.organizations.is_empty();
            let refusal = || setting("Application", "the channel has no application group").into();
            return nothing.then_some(()).ok_or_else(refusal);
        };
        put_policies(group, "Application", &self.policies)?;
        change_capabilities(group, &self.capabilities)?;
        change(group, "ACLs", ADMINS, |value: &mut protos::AcLs| {
            for (resource, policy) in &self.acls {
                match policy {
                    None => drop(value.acls.remove(resource)),
                    Some(policy) => {
                        let policy_ref = policy.clone();
                        let resource = resource.clone();
                        value
                            .acls
                            .insert(resource, protos::ApiResource { policy_ref });
                    }
                }
            }
            Ok(())
        })?;
        for (name, wanted) in &self.organizations {
            let wanted = wanted.as_ref();
            let Some(org) = change_organization("Application", group, name, wanted, files)? else {
                continue;
            };
            if let Some(change) = wanted.and_then(|org| org.anchor_peers.as_ref()) {
                change_anchor_peers(org, change)?;
            }
            if wanted.is_some_and(|org| org.orderer_endpoints.is_some()) {
                return Err(setting(
                    format!("Application organization {name}"),
                    "OrdererEndpoints belong to organisations of the orderer",
                )
                .into());
            }
        }
        Ok(())
    }
}

/// Changes a value of a group, if there is anything to change: an encoding that somebody else made is kept as long as it
/// says the same. A value that comes to say nothing is not put where none was.
fn change<M: Message + Default + PartialEq + Clone>(
    group: &mut ConfigGroup,
    name: &str,
    mod_policy: &str,
    edit: impl FnOnce(&mut M) -> Result<(), WantedError>,
) -> Result<(), WantedError> {
    let present = group.values.get(name);
    let before: M = match present {
        Some(value) => decode(&value.value)?,
        None => M::default(),
    };
    let mut after = before.clone();
    edit(&mut after)?;
    if after == before {
        return Ok(());
    }
    match group.values.get_mut(name) {
        Some(value) => value.value = after.encode_to_vec(),
        None => put(group, name, mod_policy, &after),
    }
    Ok(())
}

fn set_number(
    section: &str,
    name: &str,
    wanted: &Option<Scalar>,
    value: &mut u32,
) -> Result<(), WantedError> {
    if let Some(Scalar(text)) = wanted {
        *value = number(&format!("{section}.{name}"), Some(text.clone()))?;
    }
    Ok(())
}

fn put_policies(
    group: &mut ConfigGroup,
    section: &str,
    wanted: &BTreeMap<String, Option<WantedPolicy>>,
) -> Result<(), WantedError> {
    for (name, wanted) in wanted {
        let Some(WantedPolicy(wanted)) = wanted else {
            group.policies.remove(name);
            continue;
        };
        let policy = read_policy(&format!("{section} policy {name}"), wanted)?;
        match group.policies.get_mut(name) {
            Some(present) => present.policy = policy.policy,
            None => drop(group.policies.insert(name.clone(), policy)),
        }
    }
    Ok(())
}

fn change_capabilities(
    group: &mut ConfigGroup,
    wanted: &BTreeMap<String, bool>,
) -> Result<(), WantedError> {
    let present = group.values.get(CAPABILITIES);
    let before: common::Capabilities = match present {
        Some(value) => decode(&value.value)?,
        None => common::Capabilities::default(),
    };
    let mut required: BTreeMap<String, bool> = before
        .capabilities
        .keys()
        .map(|name| (name.clone(), true))
        .collect();
    let untouched = required.clone();
    for (name, wanted) in wanted {
        if *wanted {
            required.insert(name.clone(), true);
        } else {
            required.remove(name);
        }
    }
    if required != untouched {
        let mod_policy = present.map(|value| value.mod_policy.clone());
        put_capabilities(group, Some(&required));
        if required.is_empty() {
            group.values.remove(CAPABILITIES);
        } else if let (Some(mod_policy), Some(value)) =
            (mod_policy, group.values.get_mut(CAPABILITIES))
        {
            value.mod_policy = mod_policy;
        }
    }
    Ok(())
}

fn change_addresses(
    group: &mut ConfigGroup,
    name: &str,
    mod_policy: &str,
    list: &ListChange,
) -> Result<(), WantedError> {
    let (ListChange::Whole(added) | ListChange::Edit(ListEdit { add: added, .. })) = list;
    for address in added {
        split_address(name, address)?;
    }
    change(
        group,
        name,
        mod_policy,
        |value: &mut common::OrdererAddresses| {
            list.apply(&mut value.addresses);
            Ok(())
        },
    )
}

fn change_anchor_peers(group: &mut ConfigGroup, list: &ListChange) -> Result<(), WantedError> {
    change(
        group,
        "AnchorPeers",
        ADMINS,
        |value: &mut protos::AnchorPeers| {
            let peers = value.anchor_peers.iter();
            let mut addresses = peers
                .map(|peer| format!("{}:{}", peer.host, peer.port))
                .collect();
            list.apply(&mut addresses);
            value.anchor_peers = addresses
                .iter()
                .map(|address| {
                    let (host, port) = split_address("AnchorPeers", address)?;
                    Ok(protos::AnchorPeer {
                        host,
                        port: i32::from(port),
                    })
                })
                .collect::<Result<_, WantedError>>()?;
            Ok(())
        },
    )
}

/// Host and port of `host:port`.
fn split_address(section: &str, address: &str) -> Result<(String, u16), WantedError> {
    let problem = || setting(section, format!("{address:?} is not host:port"));
    let (host, port) = address.rsplit_once(':').ok_or_else(problem)?;
    let port = port.parse::<u16>().ok().filter(|port| *port > 0);
    match port {
        Some(port) if !host.is_empty() => Ok((host.to_owned(), port)),
        _ => Err(problem().into()),
    }
}

fn change_consenter(
    consenters: &mut Vec<etcdraft::Consenter>,
    address: &str,
    wanted: Option<&WantedConsenter>,
    files: &dyn Files,
) -> Result<(), WantedError> {
    let (host, port) = split_address("Orderer.EtcdRaft.Consenters", address)?;
    let at = consenters
        .iter()
        .position(|one| one.host == host && one.port == u32::from(port));
    let Some(wanted) = wanted else {
        if let Some(at) = at {
            consenters.remove(at);
        }
        return Ok(());
    };
    let wanted = yaml::Consenter {
        host: Some(host),
        port: Some(port),
        client_tls_cert: Some(wanted.client_tls_cert.clone()),
        server_tls_cert: Some(wanted.server_tls_cert.clone()),
    };
    let consenter = raft_consenter(&wanted, files)?;
    match at {
        Some(at) => consenters[at] = consenter,
        None => consenters.push(consenter),
    }
    Ok(())
}

/// Makes, changes or removes an organisation's group; the group, if there is one afterwards.
fn change_organization<'a>(
    section: &str,
    group: &'a mut ConfigGroup,
    name: &str,
    wanted: Option<&WantedOrganization>,
    files: &dyn Files,
) -> Result<Option<&'a mut ConfigGroup>, WantedError> {
    let Some(wanted) = wanted else {
        group.groups.remove(name);
        return Ok(None);
    };
    let within = format!("{section} organization {name}");
    if let Some(present) = group.groups.get(name) {
        let mut org = present.clone();
        put_policies(&mut org, &within, &wanted.policies)?;
        if let Some(folder) = &wanted.msp_dir {
            replace_msp(&mut org, wanted.id.as_deref(), name, folder, files)?;
        }
        group.groups.insert(name.to_owned(), org);
        return Ok(group.groups.get_mut(name));
    }
    let (Some(id), Some(folder)) = (&wanted.id, &wanted.msp_dir) else {
        return Err(setting(
            within,
            "is not in the channel; one that is to come needs ID and MSPDir",
        )
        .into());
    };
    let policies = wanted.policies.iter().filter_map(|(name, policy)| {
        let WantedPolicy(policy) = policy.as_ref()?;
        Some((name.clone(), policy.clone()))
    });
    let mut policies: BTreeMap<String, Policy> = policies.collect();
    if policies.is_empty() {
        policies = usual_policies(section, id);
    }
    let organization = Organization::new(name, id, folder, policies);
    let org = organization_group(section, &organization, files)?;
    group.groups.insert(name.to_owned(), org);
    Ok(group.groups.get_mut(name))
}

/// As Fabric's own examples have them, but such that they hold with and without node OUs.
fn usual_policies(section: &str, msp_id: &str) -> BTreeMap<String, Policy> {
    let rule = |role: &str| Policy {
        kind: "Signature".to_owned(),
        rule: format!("OR('{msp_id}.{role}')"),
    };
    let mut policies = BTreeMap::from([
        ("Readers".to_owned(), rule("member")),
        ("Writers".to_owned(), rule("member")),
        (ADMINS.to_owned(), rule("admin")),
    ]);
    if section == APPLICATION_GROUP {
        policies.insert("Endorsement".to_owned(), rule("member"));
    }
    policies
}

fn replace_msp(
    org: &mut ConfigGroup,
    id: Option<&str>,
    name: &str,
    folder: &str,
    files: &dyn Files,
) -> Result<(), WantedError> {
    let id = match id {
        Some(id) => id.to_owned(),
        None => msp_id(org)?,
    };
    let folder = std::path::PathBuf::from(folder);
    let definition = files
        .msp(&folder, &id)
        .map_err(|source| GenesisError::Msp {
            organization: name.to_owned(),
            folder,
            source: Box::new(source),
        })?;
    change(org, "MSP", ADMINS, |value: &mut msp::MspConfig| {
        *value = definition;
        Ok(())
    })
}

/// The name of the MSP that an organisation has now.
fn msp_id(org: &ConfigGroup) -> Result<String, WantedError> {
    let encoded = org.values.get("MSP").map(|value| &value.value[..]);
    let outer: msp::MspConfig = decode(encoded.unwrap_or_default())?;
    let inner: msp::FabricMspConfig = decode(&outer.config)?;
    Ok(inner.name)
}
