//! Channel creation through a system channel: a CONFIG_UPDATE for a channel that does not exist yet is applied to a
//! template made of the system channel's configuration and of the consortium it names.
//!
//! What comes of it stands in a block of the system channel as an ORDERER_TRANSACTION; [`CreatedChannel`] reads it there.

use prost::Message as _;

use super::error::decode;
use super::update::{ProposedUpdate, open_update};
use super::{
    APPLICATION_GROUP, CONSORTIUMS_GROUP, ChannelConfig, ConfigError, ConsensusState,
    ORDERER_GROUP, Parsed, only_envelope, open_config, raft_config,
};
use crate::block;
use crate::envelope::{EnvelopeParts, RawEnvelope};
use crate::proto::common::{
    Block, Config, ConfigEnvelope, ConfigGroup, ConfigPolicy, ConfigUpdate, ConfigValue,
    Consortium, HeaderType,
};
use quorate_identity::UnixTime;

/// The channel group's value that names the consortium.
const CONSORTIUM: &str = "Consortium";
const ADMINS: &str = "Admins";
const CREATION_POLICY: &str = "ChannelCreationPolicy";

/// A channel that a system channel's block brings into being.
#[derive(Debug, Clone)]
pub struct CreatedChannel {
    /// The new channel's name.
    pub channel_id: String,
    /// The new channel's first block. Every orderer makes the same one, and nobody signs it.
    pub genesis: Block,
    /// What the CONFIG message in it holds.
    pub config: ConfigEnvelope,
}

impl CreatedChannel {
    /// The channel that a block creates; `None` if it creates none.
    ///
    /// # Errors
    /// It is an ORDERER_TRANSACTION that makes no sense.
    pub fn from_block(block: &Block) -> Result<Option<Self>, ConfigError> {
        match only_envelope(block) {
            Ok(envelope) => Self::from_envelope(&envelope),
            // Several messages, or one that nobody can read: neither is of this kind.
            Err(_) => Ok(None),
        }
    }

    /// The channel that a message creates once it is in a block; `None` if it is no ORDERER_TRANSACTION.
    ///
    /// # Errors
    /// It is one that makes no sense.
    pub fn from_envelope(envelope: &RawEnvelope) -> Result<Option<Self>, ConfigError> {
        match EnvelopeParts::parse(envelope) {
            Ok(parts) if parts.channel_header.is(HeaderType::OrdererTransaction) => {
                Self::from_parts(&parts).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// The channel that an ORDERER_TRANSACTION creates.
    ///
    /// # Errors
    /// It makes no sense.
    pub fn from_parts(transaction: &EnvelopeParts) -> Result<Self, ConfigError> {
        let inner = RawEnvelope::decode(transaction.data.clone())
            .map_err(|error| ConfigError::new(format!("error unmarshalling Envelope: {error}")))?;
        let (channel_id, config) = open_config(&inner)?;
        Ok(Self {
            channel_id,
            genesis: block::new_block(0, &[], vec![inner.encoded().clone()]),
            config,
        })
    }
}

impl ChannelConfig {
    /// Judges a CONFIG_UPDATE that asks this system channel for a new channel, and computes that channel's first
    /// configuration. The envelope in the result becomes the data of a CONFIG message of the new channel, which in turn
    /// becomes the data of an ORDERER_TRANSACTION of this one.
    ///
    /// Left to others: who may send messages to the system channel; [`ChannelConfig::check_creation`].
    ///
    /// # Errors
    /// Why there will be no such channel.
    pub fn propose_channel(&self, envelope: &RawEnvelope) -> Result<ProposedUpdate, ConfigError> {
        let template = self.template(envelope)?;
        let applied = template.apply_update(envelope).map_err(|error| {
            error.within(format_args!(
                "error validating channel creation transaction for new channel '{}', could not successfully apply update to template configuration",
                template.channel_id()
            ))
        })?;
        let next = Parsed::new(template.channel_id(), applied.config.clone())
            .map_err(|error| error.within("config does not validly parse"))?
            .serve()
            .map_err(|error| error.within("config update is not compatible"))?;
        template
            .check_successor(&next)
            .map_err(|error| error.within("new bundle invalid"))?;
        Ok(applied.propose(envelope, next))
    }

    /// Whether this system channel may create `proposed` now, while `channels` channels exist, itself included.
    ///
    /// # Errors
    /// Too many channels, maintenance mode, or consenters that are not among the system channel's.
    pub fn check_creation(
        &self,
        proposed: &ProposedUpdate,
        channels: u64,
        now: UnixTime,
    ) -> Result<(), ConfigError> {
        let most = self.orderer().max_channels;
        // One more than that is allowed: the system channel does not count.
        if most > 0 && channels > most {
            return Err(ConfigError::new(format!(
                "channel creation would exceed maximimum number of channels: {most}"
            )));
        }
        if self.state() == ConsensusState::Maintenance {
            return Err(ConfigError::new(
                "channel creation is not permitted: maintenance mode",
            ));
        }
        raft_config::check_creation(self, &proposed.next, now)
    }

    /// The configuration to which the creating update is applied.
    fn template(&self, envelope: &RawEnvelope) -> Result<Self, ConfigError> {
        let failing = |what: &str| {
            format!("Failing initial channel config creation because of {what} unmarshaling error")
        };
        let signed = open_update(envelope)?;
        let update: ConfigUpdate = decode(&signed.config_update)
            .map_err(|error| error.within(failing("config update")))?;
        let name = EnvelopeParts::parse(envelope)
            .map_err(|error| ConfigError::new(format!("{}: {error}", failing("payload"))))?
            .channel_header
            .channel_id;
        if update.channel_id != name {
            return Err(ConfigError::new(format!(
                "Failing initial channel config creation: mismatched channel IDs: '{}' != '{name}'",
                update.channel_id
            )));
        }
        let channel_group = self.template_group(&update)?;
        Parsed::new(
            &name,
            Config {
                sequence: 0,
                channel_group: Some(channel_group),
            },
        )?
        .serve()
    }

    fn template_group(&self, update: &ConfigUpdate) -> Result<ConfigGroup, ConfigError> {
        let Some(wanted) = &update.write_set else {
            return Err(ConfigError::new("Config update has an empty writeset"));
        };
        let Some(application) = wanted.groups.get(APPLICATION_GROUP) else {
            return Err(ConfigError::new(
                "Config update has missing application group",
            ));
        };
        if application.version != 1 {
            return Err(ConfigError::new(format!(
                "Config update for channel creation does not set application group version to 1, was {}",
                application.version
            )));
        }
        let Some(value) = wanted.values.get(CONSORTIUM) else {
            return Err(ConfigError::new("Consortium config value missing"));
        };
        let consortium: Consortium = decode(&value.value)
            .map_err(|error| error.within("Error reading unmarshaling consortium name"))?;
        let Some(consortiums) = self.consortiums() else {
            return Err(ConfigError::new(
                "The ordering system channel does not appear to resources creating channels",
            ));
        };
        let Some(known) = consortiums.get(&consortium.name) else {
            return Err(ConfigError::new(format!(
                "Unknown consortium name: {}",
                consortium.name
            )));
        };

        let capabilities = &self.orderer().capabilities;
        let policy_name = creation_policy_name(
            application,
            capabilities.use_channel_creation_policy_as_admins(),
        );
        let mut template = ConfigGroup {
            mod_policy: policy_name.to_owned(),
            ..ConfigGroup::default()
        };
        template.policies.insert(
            policy_name.to_owned(),
            ConfigPolicy {
                version: 0,
                policy: Some(known.channel_creation_policy.clone()),
                mod_policy: policy_name.to_owned(),
            },
        );
        let system = self.channel_group();
        let members = system
            .groups
            .get(CONSORTIUMS_GROUP)
            .and_then(|consortiums| consortiums.groups.get(&consortium.name))
            .map(|consortium| &consortium.groups)
            .filter(|members| !members.is_empty());
        // A consortium without members lets anybody in.
        if let Some(members) = members {
            if application.groups.is_empty() {
                return Err(ConfigError::new(
                    "Proposed configuration has no application group members, but consortium contains members",
                ));
            }
            for name in application.groups.keys() {
                let Some(member) = members.get(name) else {
                    return Err(ConfigError::new(format!(
                        "Attempted to include member {name} which is not in the consortium"
                    )));
                };
                template.groups.insert(name.clone(), member.clone());
            }
        }

        let mut group = ConfigGroup {
            values: system.values.clone(),
            policies: system.policies.clone(),
            ..ConfigGroup::default()
        };
        if let Some(orderer) = system.groups.get(ORDERER_GROUP) {
            group
                .groups
                .insert(ORDERER_GROUP.to_owned(), orderer.clone());
        }
        group.groups.insert(APPLICATION_GROUP.to_owned(), template);
        group.values.insert(
            CONSORTIUM.to_owned(),
            ConfigValue {
                version: 0,
                value: consortium.encode_to_vec(),
                mod_policy: ADMINS.to_owned(),
            },
        );
        if capabilities.predictable_channel_template() {
            group.mod_policy.clone_from(&system.mod_policy);
            zero_versions(&mut group);
        }
        Ok(group)
    }
}

/// Under which name the consortium's creation policy governs the template's application group.
///
/// Older tools write a policy `Admins` of version 0, which must then be new to the group; so that name is taken only
/// where the request leaves it free.
fn creation_policy_name(application: &ConfigGroup, as_admins: bool) -> &'static str {
    let admins_is_new = application
        .policies
        .get(ADMINS)
        .is_some_and(|policy| policy.version == 0);
    if as_admins && !application.policies.is_empty() && !admins_is_new {
        ADMINS
    } else {
        CREATION_POLICY
    }
}

fn zero_versions(group: &mut ConfigGroup) {
    group.version = 0;
    group
        .values
        .values_mut()
        .for_each(|value| value.version = 0);
    group
        .policies
        .values_mut()
        .for_each(|policy| policy.version = 0);
    group.groups.values_mut().for_each(zero_versions);
}
