//! What the groups below the channel group say, as plain values.
//!
//! A key that Fabric v2.5 does not know is refused, and so is a nested group where none belongs: what nobody
//! understands must not become part of a channel.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::duration::GoDuration;
use super::error::decode;
use super::{ApplicationCapabilities, ChannelCapabilities, ConfigError, OrdererCapabilities};
use crate::msp::{Membership, Msp};
use crate::proto::common::{Capabilities, ConfigGroup, OrdererAddresses, Policy};
use crate::proto::msp::MspConfig;
use crate::proto::orderer as values;
use crate::proto::protos::{AcLs, AnchorPeers};

/// When a block is full. All three are positive, and `preferred_max_bytes` is not above `absolute_max_bytes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchSize {
    /// Messages in a block, at most.
    pub max_message_count: u32,
    /// No message may be longer, in bytes.
    pub absolute_max_bytes: u32,
    /// A block is cut before it grows beyond this; a single longer message has a block of its own.
    pub preferred_max_bytes: u32,
}

/// Whether a channel does its normal work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConsensusState {
    /// It does.
    Normal,
    /// Only configuration updates by those who may administer the orderer are ordered.
    Maintenance,
}

impl ConsensusState {
    /// Fabric's name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "STATE_NORMAL",
            Self::Maintenance => "STATE_MAINTENANCE",
        }
    }
}

/// The orderer group.
#[derive(Debug, Clone)]
pub struct OrdererGroup {
    /// The consensus type's name.
    pub consensus_type: String,
    /// The consensus type's own bytes.
    pub consensus_metadata: Vec<u8>,
    /// Normal work, or maintenance.
    pub state: ConsensusState,
    /// When a block is full.
    pub batch_size: BatchSize,
    /// How long a message waits for others.
    pub batch_timeout: Duration,
    /// How many channels a system channel may create; 0 means any number.
    pub max_channels: u64,
    /// What the group requires.
    pub capabilities: OrdererCapabilities,
    /// The organisations by the name of their group.
    pub organisations: BTreeMap<String, OrdererOrg>,
}

/// What every organisation has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrganisationConfig {
    /// The name of its group.
    pub name: String,
    /// The identifier of its membership service provider.
    pub msp_id: String,
}

/// An organisation of the orderer group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrdererOrg {
    /// Name and MSP.
    pub organisation: OrganisationConfig,
    /// Where its orderers are reached, `host:port`.
    pub endpoints: Vec<String>,
}

/// The application group.
#[derive(Debug, Clone)]
pub struct ApplicationGroup {
    /// What the group requires.
    pub capabilities: ApplicationCapabilities,
    /// The organisations by the name of their group.
    pub organisations: BTreeMap<String, ApplicationOrg>,
}

/// An organisation of the application group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApplicationOrg {
    /// Name and MSP.
    pub organisation: OrganisationConfig,
}

/// A consortium of a system channel.
#[derive(Debug, Clone, PartialEq)]
pub struct Consortium {
    /// The organisations by the name of their group.
    pub organisations: BTreeMap<String, OrganisationConfig>,
    /// Who may create a channel for the consortium; empty if nobody said.
    pub channel_creation_policy: Policy,
}

/// The MSPs met so far: one definition per identifier.
#[derive(Default)]
pub(super) struct MspCollection {
    by_id: BTreeMap<String, (MspConfig, Arc<Msp>)>,
}

/// Membership by X.509 certificates.
const MSP_TYPE_FABRIC: i32 = 0;
/// Membership by anonymous credentials.
const MSP_TYPE_IDEMIX: i32 = 1;

impl MspCollection {
    fn propose(&mut self, config: MspConfig) -> Result<String, ConfigError> {
        if ![MSP_TYPE_FABRIC, MSP_TYPE_IDEMIX].contains(&config.r#type) {
            return Err(ConfigError::new(format!(
                "Setup error: unsupported msp type {}",
                config.r#type
            )));
        }
        let msp = Msp::from_config(&config).map_err(|error| {
            ConfigError::new(format!("setting up the MSP manager failed: {error}"))
        })?;
        let id = msp.id().to_owned();
        match self.by_id.get(&id) {
            Some((known, _)) if *known != config => Err(ConfigError::new(format!(
                "Attempted to define two different versions of MSP: {id}"
            ))),
            Some(_) => Ok(id),
            None => {
                self.by_id.insert(id.clone(), (config, Arc::new(msp)));
                Ok(id)
            }
        }
    }

    pub(super) fn into_membership(self) -> Membership {
        Membership::new(self.by_id.into_values().map(|(_, msp)| msp))
    }
}

/// The values of a group, taken out one by one; what is left at the end is unknown.
pub(super) struct Values<'a> {
    values: BTreeMap<&'a str, &'a [u8]>,
}

impl<'a> Values<'a> {
    pub(super) fn of(group: &'a ConfigGroup) -> Self {
        Self {
            values: group
                .values
                .iter()
                .map(|(key, value)| (key.as_str(), value.value.as_slice()))
                .collect(),
        }
    }

    /// The value under `key`, or the message's defaults if there is none.
    pub(super) fn take<M: prost::Message + Default>(
        &mut self,
        key: &str,
    ) -> Result<M, ConfigError> {
        self.values
            .remove(key)
            .map_or_else(|| Ok(M::default()), decode)
            .map_err(|error| error.within("failed to deserialize values"))
    }

    pub(super) fn finish(self) -> Result<(), ConfigError> {
        match self.values.keys().next() {
            None => Ok(()),
            Some(key) => Err(ConfigError::new(format!(
                "failed to deserialize values: Unexpected key {key}"
            ))),
        }
    }
}

fn organisation(
    name: &str,
    msp: MspConfig,
    msps: &mut MspCollection,
) -> Result<OrganisationConfig, ConfigError> {
    let msp_id = msps.propose(msp)?;
    if msp_id.is_empty() {
        return Err(ConfigError::new(format!(
            "MSP for org {name} has empty MSP ID"
        )));
    }
    Ok(OrganisationConfig {
        name: name.to_owned(),
        msp_id,
    })
}

fn batch_size(value: &values::BatchSize) -> Result<BatchSize, ConfigError> {
    for (name, number) in [
        ("max message count", value.max_message_count),
        ("absolute max bytes", value.absolute_max_bytes),
        ("preferred max bytes", value.preferred_max_bytes),
    ] {
        if number == 0 {
            return Err(ConfigError::new(format!(
                "Attempted to set the batch size {name} to an invalid value: 0"
            )));
        }
    }
    if value.preferred_max_bytes > value.absolute_max_bytes {
        return Err(ConfigError::new(format!(
            "Attempted to set the batch size preferred max bytes ({}) greater than the absolute max bytes ({}).",
            value.preferred_max_bytes, value.absolute_max_bytes
        )));
    }
    Ok(BatchSize {
        max_message_count: value.max_message_count,
        absolute_max_bytes: value.absolute_max_bytes,
        preferred_max_bytes: value.preferred_max_bytes,
    })
}

fn batch_timeout(value: &values::BatchTimeout) -> Result<Duration, ConfigError> {
    let timeout: GoDuration = value.timeout.parse().map_err(|error| {
        ConfigError::new(format!(
            "Attempted to set the batch timeout to a invalid value: {error}"
        ))
    })?;
    timeout
        .to_std()
        .filter(|timeout| !timeout.is_zero())
        .ok_or_else(|| {
            ConfigError::new(format!(
                "Attempted to set the batch timeout to a non-positive value: {timeout}"
            ))
        })
}

/// Kafka is gone, but its brokers may still stand in the configuration of a channel that came from it.
fn check_broker(broker: &str) -> Result<(), ConfigError> {
    let plausible = broker.split_once(':').is_some_and(|(host, port)| {
        let inner = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '-';
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        port.bytes().all(|byte| byte.is_ascii_digit())
            && port.parse::<u16>().is_ok()
            && (host.is_empty()
                || (host.chars().all(inner)
                    && edge(host.chars().next())
                    && edge(host.chars().last())))
    });
    if plausible {
        Ok(())
    } else {
        Err(ConfigError::new(format!("Invalid broker entry: {broker}")))
    }
}

impl OrdererGroup {
    pub(super) fn parse(
        group: &ConfigGroup,
        channel: &ChannelCapabilities,
        msps: &mut MspCollection,
    ) -> Result<Self, ConfigError> {
        let mut values = Values::of(group);
        let consensus: values::ConsensusType = values.take("ConsensusType")?;
        let size: values::BatchSize = values.take("BatchSize")?;
        let timeout: values::BatchTimeout = values.take("BatchTimeout")?;
        let kafka: values::KafkaBrokers = values.take("KafkaBrokers")?;
        let restrictions: values::ChannelRestrictions = values.take("ChannelRestrictions")?;
        let capabilities: Capabilities = values.take("Capabilities")?;
        values.finish()?;
        let batch_size = batch_size(&size)?;
        let batch_timeout = batch_timeout(&timeout)?;
        kafka
            .brokers
            .iter()
            .try_for_each(|broker| check_broker(broker))?;
        let mut organisations = BTreeMap::new();
        for (name, group) in &group.groups {
            organisations.insert(name.clone(), OrdererOrg::parse(name, group, channel, msps)?);
        }
        Ok(Self {
            state: if consensus.state() == values::consensus_type::State::Maintenance {
                ConsensusState::Maintenance
            } else {
                ConsensusState::Normal
            },
            consensus_type: consensus.r#type,
            consensus_metadata: consensus.metadata,
            batch_size,
            batch_timeout,
            max_channels: restrictions.max_count,
            capabilities: OrdererCapabilities::new(capabilities),
            organisations,
        })
    }
}

impl OrdererOrg {
    fn parse(
        name: &str,
        group: &ConfigGroup,
        channel: &ChannelCapabilities,
        msps: &mut MspCollection,
    ) -> Result<Self, ConfigError> {
        if !group.groups.is_empty() {
            return Err(ConfigError::new(
                "OrdererOrg config does not allow sub-groups",
            ));
        }
        if !channel.org_specific_orderer_endpoints() && group.values.contains_key("Endpoints") {
            return Err(ConfigError::new(format!(
                "Orderer Org {name} cannot contain endpoints value until V1_4_2+ capabilities have been enabled"
            )));
        }
        let mut values = Values::of(group);
        let endpoints: OrdererAddresses = values.take("Endpoints")?;
        let msp: MspConfig = values.take("MSP")?;
        values.finish()?;
        Ok(Self {
            organisation: organisation(name, msp, msps)?,
            endpoints: endpoints.addresses,
        })
    }
}

impl ApplicationGroup {
    pub(super) fn parse(
        group: &ConfigGroup,
        msps: &mut MspCollection,
    ) -> Result<Self, ConfigError> {
        let mut values = Values::of(group);
        let _: AcLs = values.take("ACLs")?;
        let capabilities: Capabilities = values.take("Capabilities")?;
        values.finish()?;
        let capabilities = ApplicationCapabilities::new(capabilities);
        if !capabilities.acls() && group.values.contains_key("ACLs") {
            return Err(ConfigError::new(
                "ACLs may not be specified without the required capability",
            ));
        }
        let mut organisations = BTreeMap::new();
        for (name, group) in &group.groups {
            organisations.insert(name.clone(), ApplicationOrg::parse(name, group, msps)?);
        }
        Ok(Self {
            capabilities,
            organisations,
        })
    }
}

impl ApplicationOrg {
    fn parse(
        name: &str,
        group: &ConfigGroup,
        msps: &mut MspCollection,
    ) -> Result<Self, ConfigError> {
        if !group.groups.is_empty() {
            return Err(ConfigError::new(
                "ApplicationOrg config does not allow sub-groups",
            ));
        }
        let mut values = Values::of(group);
        let _: AnchorPeers = values.take("AnchorPeers")?;
        let msp: MspConfig = values.take("MSP")?;
        values.finish()?;
        Ok(Self {
            organisation: organisation(name, msp, msps)?,
        })
    }
}

/// The consortiums of a `Consortiums` group; that group's own values are not looked at.
pub(super) fn parse_consortiums(
    group: &ConfigGroup,
    msps: &mut MspCollection,
) -> Result<BTreeMap<String, Consortium>, ConfigError> {
    let mut consortiums = BTreeMap::new();
    for (name, group) in &group.groups {
        consortiums.insert(name.clone(), Consortium::parse(group, msps)?);
    }
    Ok(consortiums)
}

impl Consortium {
    fn parse(group: &ConfigGroup, msps: &mut MspCollection) -> Result<Self, ConfigError> {
        let mut values = Values::of(group);
        let channel_creation_policy: Policy = values.take("ChannelCreationPolicy")?;
        values.finish()?;
        let mut organisations = BTreeMap::new();
        for (name, group) in &group.groups {
            if !group.groups.is_empty() {
                return Err(ConfigError::new("organizations do not support sub-groups"));
            }
            let mut values = Values::of(group);
            let msp: MspConfig = values.take("MSP")?;
            values.finish()?;
            organisations.insert(name.clone(), organisation(name, msp, msps)?);
        }
        Ok(Self {
            organisations,
            channel_creation_policy,
        })
    }
}

/// A group in a few words of protobuf's text form, for a refusal.
pub(super) fn outline(group: &ConfigGroup) -> String {
    let mut text = String::new();
    if group.version != 0 {
        text.push_str(&format!("version:{} ", group.version));
    }
    let members = [
        ("groups", group.groups.len()),
        ("values", group.values.len()),
        ("policies", group.policies.len()),
    ];
    for (kind, count) in members.iter().filter(|(_, count)| *count > 0) {
        text.push_str(&format!("{kind}:{count} "));
    }
    if !group.mod_policy.is_empty() {
        text.push_str(&format!("mod_policy:{:?} ", group.mod_policy));
    }
    text
}
