//! A channel's configuration: parsed, validated, and the rules by which one follows another.
//!
//! [`ChannelConfig`] is what an orderer knows about a channel; it exists only if everything in it makes sense and is
//! supported. [`ChannelConfig::propose_update`] leads from one to the next; [`raft_config`] judges the consenter set and
//! the options of etcdraft channels. What depends on the state of a running cluster is passed as an argument; who may
//! send a message at all is the orderer's to check.
//!
//! The rules are those of Fabric v2.5, and so are the texts of the refusals: clients compare them.

pub mod capabilities;
mod certificates;
mod creation;
mod difference;
pub mod duration;
mod elements;
mod error;
pub mod groups;
mod maintenance;
pub mod raft_config;
mod review;
mod update;
pub mod wanted;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub use capabilities::{ApplicationCapabilities, ChannelCapabilities, OrdererCapabilities};
pub use creation::CreatedChannel;
pub use difference::compute_update;
pub use error::ConfigError;
pub use groups::{
    ApplicationGroup, ApplicationOrg, BatchSize, ConsensusState, Consortium, OrdererGroup,
    OrdererOrg, OrganisationConfig,
};
pub use review::{
    Judgement, Review, UpdateSigner, config_update_message, merge_signatures, open_config_update,
};
pub use update::{ProposedUpdate, sign_update};
pub use wanted::Wanted;

use crate::envelope::{ChannelId, EnvelopeParts, RawEnvelope};
use crate::msp::Membership;
use crate::policy::Policies;
use crate::proto::common::{
    Block, BlockDataHashingStructure, Capabilities, Config, ConfigEnvelope, ConfigGroup,
    HashingAlgorithm, HeaderType, OrdererAddresses,
};
use crate::proto::etcdraft::ConfigMetadata;
use error::decode;
use groups::{MspCollection, Values};
use quorate_identity::x509::Certificate;

/// The consensus type that this orderer serves.
pub const ETCDRAFT: &str = "etcdraft";

/// The name of the outermost group in paths.
const ROOT_GROUP: &str = "Channel";
const ORDERER_GROUP: &str = "Orderer";
const APPLICATION_GROUP: &str = "Application";
const CONSORTIUMS_GROUP: &str = "Consortiums";
const CAPABILITIES: &str = "Capabilities";

/// The configuration of one channel at one sequence: every group parsed and valid, its orderer group present, its
/// capabilities supported.
pub struct ChannelConfig {
    channel_id: String,
    config: Config,
    capabilities: ChannelCapabilities,
    orderer: OrdererGroup,
    application: Option<ApplicationGroup>,
    consortiums: Option<BTreeMap<String, Consortium>>,
    orderer_addresses: Vec<String>,
    raft_metadata: ConfigMetadata,
    membership: Arc<Membership>,
    policies: Policies,
}

impl ChannelConfig {
    /// Parses and validates a configuration.
    ///
    /// # Errors
    /// What is missing, malformed, contradictory or not supported, in Fabric's words.
    pub fn new(channel_id: &str, config: Config) -> Result<Self, ConfigError> {
        Parsed::new(channel_id, config)?.serve()
    }

    /// The configuration that a CONFIG message carries.
    ///
    /// # Errors
    /// The envelope is no CONFIG message, or what it holds is refused by [`ChannelConfig::new`].
    pub fn from_envelope(envelope: &RawEnvelope) -> Result<Self, ConfigError> {
        let (channel_id, config) = open_config(envelope)?;
        let config = config
            .config
            .ok_or_else(|| ConfigError::new("channelconfig Config cannot be nil"))?;
        Self::new(&channel_id, config)
    }

    /// The configuration that a configuration block carries. The block that creates a channel through a system channel
    /// is no such block: it holds another channel's configuration.
    ///
    /// # Errors
    /// The block is no configuration block, or what it holds is refused by [`ChannelConfig::new`].
    pub fn from_block(block: &Block) -> Result<Self, ConfigError> {
        Self::from_envelope(&only_envelope(block)?)
    }

    /// The channel's name.
    pub fn channel_id(&self) -> &str {
        &self.channel_id
    }

    /// How many updates the channel has seen; messages validated under another sequence are validated again.
    pub fn sequence(&self) -> u64 {
        self.config.sequence
    }

    /// The message this was made from.
    pub fn proto(&self) -> &Config {
        &self.config
    }

    /// What the channel group requires of everybody.
    pub fn capabilities(&self) -> &ChannelCapabilities {
        &self.capabilities
    }

    /// The orderer group.
    pub fn orderer(&self) -> &OrdererGroup {
        &self.orderer
    }

    /// The application group; a system channel has none.
    pub fn application(&self) -> Option<&ApplicationGroup> {
        self.application.as_ref()
    }

    /// The consortiums by name, in system channels only.
    pub fn consortiums(&self) -> Option<&BTreeMap<String, Consortium>> {
        self.consortiums.as_ref()
    }

    /// When a block is full.
    pub fn batch_size(&self) -> BatchSize {
        self.orderer.batch_size
    }

    /// How long a message waits for others to fill its block.
    pub fn batch_timeout(&self) -> Duration {
        self.orderer.batch_timeout
    }

    /// The consensus type's name, [`ETCDRAFT`] where we can serve the channel.
    pub fn consensus_type(&self) -> &str {
        &self.orderer.consensus_type
    }

    /// Normal work, or maintenance.
    pub fn state(&self) -> ConsensusState {
        self.orderer.state
    }

    /// Consenters and options; empty where the consensus type is another one or the bytes make no sense
    /// ([`raft_config::metadata`] says why).
    pub fn raft_metadata(&self) -> &ConfigMetadata {
        &self.raft_metadata
    }

    /// Where the channel's orderers are reached, each address with the TLS authorities that its certificate may come
    /// from. Organisations' own endpoints count; only if there are none at all, the channel-wide addresses do, and any
    /// organisation may then be behind one.
    pub fn orderer_endpoints(&self) -> Vec<OrdererEndpoint> {
        let organisations = self.orderer.organisations.values();
        let own: Vec<OrdererEndpoint> = organisations
            .flat_map(|org| {
                let authorities = self.tls_authorities(org);
                org.endpoints.iter().map(move |address| OrdererEndpoint {
                    address: address.clone(),
                    authorities: Arc::clone(&authorities),
                })
            })
            .collect();
        if !own.is_empty() {
            return own;
        }
        let organisations = self.orderer.organisations.values();
        let all: Arc<[Certificate]> = organisations
            .flat_map(|org| self.tls_authorities(org).to_vec())
            .collect();
        self.orderer_addresses
            .iter()
            .map(|address| OrdererEndpoint {
                address: address.clone(),
                authorities: Arc::clone(&all),
            })
            .collect()
    }

    /// TLS roots and intermediates of an organisation: whoever connects trusts both.
    fn tls_authorities(&self, org: &OrdererOrg) -> Arc<[Certificate]> {
        self.membership
            .msp(&org.organisation.msp_id)
            .map(|msp| [msp.tls_intermediates(), msp.tls_roots()].concat())
            .unwrap_or_default()
            .into()
    }

    /// The channel-wide orderer addresses; each organisation's own are in [`OrdererOrg::endpoints`].
    pub fn orderer_addresses(&self) -> &[String] {
        &self.orderer_addresses
    }

    /// Who is a member of which organisation.
    pub fn membership(&self) -> &Arc<Membership> {
        &self.membership
    }

    /// The policies of all groups.
    pub fn policies(&self) -> &Policies {
        &self.policies
    }

    fn channel_group(&self) -> &ConfigGroup {
        self.config
            .channel_group
            .as_ref()
            .expect("a configuration without channel group is refused when it is parsed")
    }

    /// Whether `next`, valid in itself, may follow this configuration.
    ///
    /// # Errors
    /// A group would vanish or appear, an organisation would change its MSP ID, or the consensus type would change
    /// where that is not possible.
    pub fn check_successor(&self, next: &Self) -> Result<(), ConfigError> {
        let refuse = |text: String| Err(ConfigError::new(text));
        let (old_type, new_type) = (self.consensus_type(), next.consensus_type());
        if !self.capabilities.consensus_type_migration() && old_type != new_type {
            return refuse(format!(
                "attempted to change consensus type from {old_type} to {new_type}"
            ));
        }
        let orderer_orgs = |config: &'_ Self| -> BTreeMap<String, String> {
            let orgs = &config.orderer.organisations;
            orgs.iter()
                .map(|(name, org)| (name.clone(), org.organisation.msp_id.clone()))
                .collect()
        };
        check_msp_ids("orderer", &orderer_orgs(self), &orderer_orgs(next))?;

        if let Some(application) = &self.application {
            let Some(next_application) = &next.application else {
                return refuse(
                    "current config has application section, but new config does not".to_owned(),
                );
            };
            let orgs = |group: &ApplicationGroup| -> BTreeMap<String, String> {
                let orgs = &group.organisations;
                orgs.iter()
                    .map(|(name, org)| (name.clone(), org.organisation.msp_id.clone()))
                    .collect()
            };
            check_msp_ids("application", &orgs(application), &orgs(next_application))?;
        }

        match (&self.consortiums, &next.consortiums) {
            (None, None) => {}
            (None, Some(_)) => {
                return refuse(
                    "current config has no consortiums section, but new config does".to_owned(),
                );
            }
            (Some(_), None) => {
                return refuse(
                    "current config has consortiums section, but new config does not".to_owned(),
                );
            }
            (Some(consortiums), Some(next_consortiums)) => {
                for (name, consortium) in consortiums {
                    let Some(next_consortium) = next_consortiums.get(name) else {
                        continue;
                    };
                    let orgs = |consortium: &Consortium| -> BTreeMap<String, String> {
                        let orgs = &consortium.organisations;
                        orgs.iter()
                            .map(|(name, org)| (name.clone(), org.msp_id.clone()))
                            .collect()
                    };
                    check_msp_ids(
                        &format!("consortium {name}"),
                        &orgs(consortium),
                        &orgs(next_consortium),
                    )?;
                }
            }
        }
        Ok(())
    }
}

/// Where an orderer is reached.
#[derive(Debug, Clone)]
pub struct OrdererEndpoint {
    /// `host:port`.
    pub address: String,
    /// The TLS authorities of the organisation behind it, or of all.
    pub authorities: Arc<[Certificate]>,
}

/// Policies and membership have nothing to say in a log.
impl fmt::Debug for ChannelConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChannelConfig")
            .field("channel_id", &self.channel_id)
            .field("sequence", &self.config.sequence)
            .finish_non_exhaustive()
    }
}

/// Organisations may come and go, but not become somebody else under the same name.
fn check_msp_ids(
    section: &str,
    old: &BTreeMap<String, String>,
    new: &BTreeMap<String, String>,
) -> Result<(), ConfigError> {
    for (name, msp_id) in old {
        if let Some(new_id) = new.get(name)
            && new_id != msp_id
        {
            return Err(ConfigError::new(format!(
                "{section} org {name} attempted to change MSP ID from {msp_id} to {new_id}"
            )));
        }
    }
    Ok(())
}

/// A configuration that makes sense, whether or not this orderer can serve it.
struct Parsed {
    channel_id: String,
    config: Config,
    capabilities: ChannelCapabilities,
    orderer: Option<OrdererGroup>,
    application: Option<ApplicationGroup>,
    consortiums: Option<BTreeMap<String, Consortium>>,
    orderer_addresses: Vec<String>,
    membership: Arc<Membership>,
    policies: Policies,
}

impl Parsed {
    fn new(channel_id: &str, config: Config) -> Result<Self, ConfigError> {
        let Some(group) = &config.channel_group else {
            return Err(ConfigError::new("config must contain a channel group"));
        };
        check_capabilities_order(group)?;
        let channel = ChannelGroup::parse(group)
            .map_err(|error| error.within("initializing channelconfig failed"))?;
        let policies =
            Policies::new(ROOT_GROUP, group, Arc::clone(&channel.membership)).map_err(|error| {
                ConfigError::new(format!("initializing policymanager failed: {error}"))
            })?;
        let updatable = || {
            ChannelId::new(channel_id)
                .map_err(|error| ConfigError::new(format!("bad channel ID: {error}")))?;
            elements::elements(Some(group))
                .map_err(|error| error.within("error converting config to map"))
        };
        updatable()
            .map_err(|error: ConfigError| error.within("initializing configtx manager failed"))?;
        Ok(Self {
            channel_id: channel_id.to_owned(),
            capabilities: channel.capabilities,
            orderer: channel.orderer,
            application: channel.application,
            consortiums: channel.consortiums,
            orderer_addresses: channel.orderer_addresses,
            membership: channel.membership,
            policies,
            config,
        })
    }

    /// The configuration, if this orderer understands all that it requires.
    fn serve(self) -> Result<ChannelConfig, ConfigError> {
        let Some(orderer) = self.orderer else {
            return Err(ConfigError::incompatible(
                "config does not contain orderer config",
            ));
        };
        orderer.capabilities.supported()?;
        self.capabilities.supported()?;
        let raft_metadata = if orderer.consensus_type == ETCDRAFT {
            decode(&orderer.consensus_metadata).unwrap_or_default()
        } else {
            ConfigMetadata::default()
        };
        Ok(ChannelConfig {
            channel_id: self.channel_id,
            config: self.config,
            capabilities: self.capabilities,
            orderer,
            application: self.application,
            consortiums: self.consortiums,
            orderer_addresses: self.orderer_addresses,
            raft_metadata,
            membership: self.membership,
            policies: self.policies,
        })
    }
}

/// Capabilities begin with the orderer's: nobody may require of others what the orderers might not understand.
fn check_capabilities_order(group: &ConfigGroup) -> Result<(), ConfigError> {
    let Some(orderer) = group.groups.get(ORDERER_GROUP) else {
        return Ok(());
    };
    if orderer.values.contains_key(CAPABILITIES) {
        return Ok(());
    }
    let application = group.groups.get(APPLICATION_GROUP);
    let sections = [("channel", Some(group)), ("application", application)];
    for (section, group) in sections {
        if group.is_some_and(|group| group.values.contains_key(CAPABILITIES)) {
            return Err(ConfigError::new(format!(
                "cannot enable {section} capabilities without orderer support first"
            )));
        }
    }
    Ok(())
}

/// What the channel group says, and the groups below it.
struct ChannelGroup {
    capabilities: ChannelCapabilities,
    orderer_addresses: Vec<String>,
    orderer: Option<OrdererGroup>,
    application: Option<ApplicationGroup>,
    consortiums: Option<BTreeMap<String, Consortium>>,
    membership: Arc<Membership>,
}

impl ChannelGroup {
    fn parse(group: &ConfigGroup) -> Result<Self, ConfigError> {
        let mut values = Values::of(group);
        let hashing: HashingAlgorithm = values.take("HashingAlgorithm")?;
        let structure: BlockDataHashingStructure = values.take("BlockDataHashingStructure")?;
        let addresses: OrdererAddresses = values.take("OrdererAddresses")?;
        let _: crate::proto::common::Consortium = values.take("Consortium")?;
        let capabilities: Capabilities = values.take(CAPABILITIES)?;
        values.finish()?;
        let capabilities = ChannelCapabilities::new(capabilities);
        // Blocks are hashed with SHA-256 whatever the name here.
        if !["SHA256", "SHA3_256"].contains(&hashing.name.as_str()) {
            return Err(ConfigError::new(format!(
                "Unknown hashing algorithm type: {}",
                hashing.name
            )));
        }
        if structure.width != u32::MAX {
            return Err(ConfigError::new(
                "BlockDataHashStructure width only supported at MaxUint32 in this version",
            ));
        }
        if !capabilities.org_specific_orderer_endpoints() && addresses.addresses.is_empty() {
            return Err(ConfigError::new("Must set some OrdererAddresses"));
        }
        let mut msps = MspCollection::default();
        let mut parsed = Self {
            capabilities,
            orderer_addresses: addresses.addresses,
            orderer: None,
            application: None,
            consortiums: None,
            membership: Arc::new(Membership::new([])),
        };
        for (name, group) in &group.groups {
            let within = |error: ConfigError| {
                error.within(format_args!(
                    "could not create channel {name} sub-group config"
                ))
            };
            match name.as_str() {
                APPLICATION_GROUP => {
                    let group = ApplicationGroup::parse(group, &mut msps).map_err(within)?;
                    parsed.application = Some(group);
                }
                ORDERER_GROUP => {
                    let group = OrdererGroup::parse(group, &parsed.capabilities, &mut msps)
                        .map_err(within)?;
                    parsed.orderer = Some(group);
                }
                CONSORTIUMS_GROUP => {
                    let consortiums =
                        groups::parse_consortiums(group, &mut msps).map_err(within)?;
                    parsed.consortiums = Some(consortiums);
                }
                _ => {
                    return Err(ConfigError::new(format!(
                        "Disallowed channel group: {}",
                        groups::outline(group)
                    )));
                }
            }
        }
        parsed.membership = Arc::new(msps.into_membership());
        Ok(parsed)
    }
}

/// Whether a configuration block is a system channel's: told without judging the configuration.
#[must_use]
pub fn is_system_channel(block: &Block) -> bool {
    let config = only_envelope(block).and_then(|envelope| open_config(&envelope));
    config
        .ok()
        .and_then(|(_, config)| config.config?.channel_group)
        .is_some_and(|group| group.groups.contains_key(CONSORTIUMS_GROUP))
}

/// The envelope of a block that holds one.
fn only_envelope(block: &Block) -> Result<RawEnvelope, ConfigError> {
    let envelopes = block.data.as_ref().map_or(&[][..], |data| &data.data);
    let [envelope] = envelopes else {
        return Err(ConfigError::new(format!(
            "a configuration block holds one envelope, this one holds {}",
            envelopes.len()
        )));
    };
    RawEnvelope::decode(envelope.clone())
        .map_err(|error| ConfigError::new(format!("error unmarshalling Envelope: {error}")))
}

/// Opens a CONFIG message: the channel it is for and its data.
fn open_config(envelope: &RawEnvelope) -> Result<(String, ConfigEnvelope), ConfigError> {
    let parts =
        EnvelopeParts::parse(envelope).map_err(|error| ConfigError::new(error.to_string()))?;
    if !parts.channel_header.is(HeaderType::Config) {
        return Err(ConfigError::new(format!(
            "unexpected header type: {}",
            parts.channel_header.header_type
        )));
    }
    let config = decode(&parts.data)
        .map_err(|error| error.within("failed to unmarshal config envelope from payload"))?;
    Ok((parts.channel_header.channel_id, config))
}
