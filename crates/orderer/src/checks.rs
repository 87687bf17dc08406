//! What a message must be to be ordered, in Fabric's order and with Fabric's words.
//!
//! Everything here is pure and may be run on any thread: the configuration, the message and the time come in, a
//! verdict comes out. Whether a leader is there to order the message is asked later, by the channel.
//!
//! [`classify`] tells what a client wants; [`normal`] judges an ordinary message; [`update`] judges a configuration
//! update and makes the `CONFIG` message of it that will stand in the block; [`creation`] does so with a request for a
//! new channel, and makes the `ORDERER_TRANSACTION` of the system channel.

use bytes::Bytes;
use prost::Message as _;
use quorate_fabric::config::{
    ChannelConfig, ConfigError, ConsensusState, CreatedChannel, raft_config,
};
use quorate_fabric::envelope::{self, ChannelHeader, EnvelopeParts, RawEnvelope};
use quorate_fabric::msp::Signer;
use quorate_fabric::policy::SignedData;
use quorate_fabric::proto::common::{
    ChannelHeader as ChannelHeaderMessage, ConfigEnvelope, HeaderType, Status,
};
use quorate_fabric::proto::etcdraft::ConfigMetadata;
use quorate_fabric::proto::orderer::ConsensusType;
use quorate_identity::UnixTime;
use quorate_runtime::entropy::Entropy;

use crate::assembly::NONCE_BYTES;

const WRITERS: &str = "/Channel/Writers";
const ORDERER_WRITERS: &str = "/Channel/Orderer/Writers";

/// Why a message is not ordered: what Broadcast answers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{info}")]
pub struct Refusal {
    /// The status.
    pub status: Status,
    /// The text next to it.
    pub info: String,
}

impl Refusal {
    /// A refusal with this status and text.
    pub fn new(status: Status, info: impl Into<String>) -> Self {
        Self {
            status,
            info: info.into(),
        }
    }

    fn bad_request(info: impl Into<String>) -> Self {
        Self::new(Status::BadRequest, info)
    }

    fn within(mut self, context: &str) -> Self {
        self.info = format!("{context}: {}", self.info);
        self
    }
}

/// What kind of message a channel orders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Anything that the ordering service does not look into.
    Normal,
    /// A change of the channel's configuration, as the `CONFIG` envelope that the block will hold; in a system channel
    /// also a new channel, as an `ORDERER_TRANSACTION`. Such a message has a block of its own.
    Config,
}

/// What a client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// That an ordinary message is ordered.
    Normal,
    /// That the configuration is changed; of a channel that does not exist: that a system channel creates it.
    ConfigUpdate,
}

/// How strictly messages are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rules {
    /// `General.Authentication.NoExpirationChecks`: senders may be expired.
    pub no_expiration_checks: bool,
}

/// The channel that an envelope is for, and what it is.
///
/// # Errors
/// It cannot be told.
pub fn channel_header(envelope: &RawEnvelope) -> Result<ChannelHeader, Refusal> {
    match EnvelopeParts::parse(envelope) {
        Ok(parts) => Ok(parts.channel_header),
        Err(error) => Err(Refusal::bad_request(format!(
            "could not determine channel ID: {error}"
        ))),
    }
}

/// What the sender of a message with this header wants. Types without a name are ordinary messages.
///
/// # Errors
/// Only orderers make messages of this type.
pub fn classify(header: &ChannelHeader) -> Result<Class, Refusal> {
    if header.is(HeaderType::ConfigUpdate) {
        Ok(Class::ConfigUpdate)
    } else if header.is(HeaderType::Config) || header.is(HeaderType::OrdererTransaction) {
        Err(Refusal::bad_request(
            "message is of type that cannot be processed directly",
        ))
    } else {
        Ok(Class::Normal)
    }
}

/// Judges an ordinary message under a configuration.
///
/// # Errors
/// Why it is not ordered.
pub fn normal(
    config: &ChannelConfig,
    envelope: &RawEnvelope,
    rules: &Rules,
    now: UnixTime,
) -> Result<(), Refusal> {
    refuse_in_maintenance(config)?;
    message(config, envelope, rules, now)
}

/// The part of [`normal`] that comes before the signature and the policy, for an orderer that leaves those to another.
///
/// # Errors
/// Why the message is not ordered.
pub fn before_signature(
    config: &ChannelConfig,
    envelope: &RawEnvelope,
    rules: &Rules,
    now: UnixTime,
) -> Result<(), Refusal> {
    refuse_in_maintenance(config)?;
    sender(config, envelope, rules, now).map(|_| ())
}

fn refuse_in_maintenance(config: &ChannelConfig) -> Result<(), Refusal> {
    if in_maintenance(config) {
        return Err(Refusal::new(
            Status::ServiceUnavailable,
            "normal transactions are rejected: maintenance mode",
        ));
    }
    Ok(())
}

fn in_maintenance(config: &ChannelConfig) -> bool {
    config.orderer().capabilities.consensus_type_migration()
        && config.state() != ConsensusState::Normal
}

/// The checks that every message has to pass, in their order: not empty, not too long, by somebody who is not expired
/// and may write.
fn message(
    config: &ChannelConfig,
    envelope: &RawEnvelope,
    rules: &Rules,
    now: UnixTime,
) -> Result<(), Refusal> {
    let creator = sender(config, envelope, rules, now)?;
    let path = if in_maintenance(config) {
        ORDERER_WRITERS
    } else {
        WRITERS
    };
    let Some(policy) = config.policies().get(path) else {
        return Err(Refusal::bad_request(format!(
            "could not find policy {path}"
        )));
    };
    let signed = SignedData {
        data: envelope.payload().clone(),
        identity: creator,
        signature: envelope.signature().clone(),
    };
    policy
        .evaluate(&[signed])
        .map_err(|error| Refusal::new(Status::Forbidden, format!("{error}: permission denied")))
}

/// Who says to have sent the message, if it is not empty, not too long, and by somebody who is not expired.
fn sender(
    config: &ChannelConfig,
    envelope: &RawEnvelope,
    rules: &Rules,
    now: UnixTime,
) -> Result<Bytes, Refusal> {
    if envelope.payload().is_empty() {
        return Err(Refusal::bad_request("message payload is empty"));
    }
    let longest = usize::try_from(config.batch_size().absolute_max_bytes).unwrap_or(usize::MAX);
    let size = envelope.size();
    if size > longest {
        return Err(Refusal::bad_request(format!(
            "message payload is {size} bytes and exceeds maximum allowed {longest} bytes"
        )));
    }
    let creator = EnvelopeParts::parse(envelope)
        .and_then(|parts| parts.signature_header())
        .map(|header| header.creator)
        .map_err(|error| {
            Refusal::bad_request(format!("could not convert message to signedData: {error}"))
        })?;
    if !rules.no_expiration_checks {
        // Also of those whom the channel does not know. Without a readable certificate the policy has the last word.
        if let Some(expires_at) = config.membership().expires_at(&creator)
            && expires_at < now
        {
            return Err(Refusal::bad_request("broadcast client identity expired"));
        }
    }
    Ok(creator)
}

/// Under what a configuration update is judged.
pub struct UpdateContext<'a> {
    /// The configuration that it is to change.
    pub config: &'a ChannelConfig,
    /// The consenters' Raft ids, in the configuration's order.
    pub consenters: &'a [u64],
    /// The Raft ids of the consenters heard of.
    pub active: &'a [u64],
    /// Signs the `CONFIG` message.
    pub signer: &'a dyn Signer,
    /// For its nonce.
    pub entropy: &'a Entropy,
}

/// Judges a configuration update, and makes the `CONFIG` message of it that is to be ordered.
///
/// # Errors
/// Why it is not ordered.
pub fn update(
    context: &UpdateContext<'_>,
    envelope: &RawEnvelope,
    rules: &Rules,
    now: UnixTime,
) -> Result<RawEnvelope, Refusal> {
    let UpdateContext { config, .. } = *context;
    message(config, envelope, rules, now).map_err(|refusal| {
        refusal.within("config update for existing channel did not pass initial checks")
    })?;
    let channel = config.channel_id();
    let applying = |error: quorate_fabric::config::ConfigError| {
        Refusal::bad_request(format!(
            "error applying config update to existing channel '{channel}': {error}"
        ))
    };
    let proposed = config.propose_update(envelope).map_err(applying)?;
    raft_config::check_change(
        config,
        &proposed.next,
        context.consenters,
        context.active,
        now,
    )
    .map_err(applying)?;
    let made = own_message(
        context,
        HeaderType::Config,
        channel,
        proposed.envelope.encode_to_vec(),
    )?;
    message(config, &made, rules, now).map_err(|refusal| {
        refusal.within("config update for existing channel did not pass final checks")
    })?;
    config.check_maintenance(&proposed).map_err(|error| {
        Refusal::bad_request(format!(
            "config update for existing channel did not pass maintenance checks: {error}"
        ))
    })?;
    Ok(made)
}

/// Judges a request for a new channel under the configuration of the system channel, while `channels` channels exist
/// (0: that is not known here), and makes the `ORDERER_TRANSACTION` of it that is to be ordered.
///
/// Who sent the request is not looked at: the signatures within it count.
///
/// # Errors
/// Why there will be no such channel.
pub fn creation(
    context: &UpdateContext<'_>,
    envelope: &RawEnvelope,
    channels: u64,
    rules: &Rules,
    now: UnixTime,
) -> Result<RawEnvelope, Refusal> {
    let system = context.config;
    let proposed = system
        .propose_channel(envelope)
        .map_err(|error| Refusal::bad_request(error.to_string()))?;
    let config = own_message(
        context,
        HeaderType::Config,
        proposed.next.channel_id(),
        proposed.envelope.encode_to_vec(),
    )?;
    let made = own_message(
        context,
        HeaderType::OrdererTransaction,
        system.channel_id(),
        config.encoded().to_vec(),
    )?;
    message(system, &made, rules, now)?;
    system
        .check_creation(&proposed, channels, now)
        .map_err(|error| {
            // Another time it may be possible.
            let status = if in_maintenance(system) {
                Status::ServiceUnavailable
            } else {
                Status::BadRequest
            };
            Refusal::new(status, error.to_string())
        })?;
    Ok(made)
}

/// Judges a message for a channel that this orderer is no consenter of: its senders learn what is wrong with it before
/// they learn that nobody orders it here.
///
/// # Errors
/// What is wrong with it.
pub fn unserved(
    config: &ChannelConfig,
    class: Class,
    envelope: &RawEnvelope,
    rules: &Rules,
    now: UnixTime,
) -> Result<(), Refusal> {
    match class {
        Class::Normal => normal(config, envelope, rules, now),
        Class::ConfigUpdate => message(config, envelope, rules, now),
    }
}

/// Judges a `CONFIG` message or an `ORDERER_TRANSACTION` again that was made under an earlier configuration, or by
/// another orderer, and makes it anew.
///
/// # Errors
/// Why it is no longer ordered.
pub fn config_again(
    context: &UpdateContext<'_>,
    envelope: &RawEnvelope,
    rules: &Rules,
    now: UnixTime,
) -> Result<RawEnvelope, Refusal> {
    let created = created_channel(envelope)?;
    let creates = created.is_some();
    let config = match created {
        Some(created) => created.config,
        None => config_envelope(envelope)?,
    };
    let Some(last) = config.last_update else {
        return Err(Refusal::bad_request("config message has no last update"));
    };
    let wanted = RawEnvelope::new(&last.payload, &last.signature);
    if creates {
        creation(context, &wanted, 0, rules, now)
    } else {
        update(context, &wanted, rules, now)
    }
}

fn created_channel(envelope: &RawEnvelope) -> Result<Option<CreatedChannel>, Refusal> {
    CreatedChannel::from_envelope(envelope)
        .map_err(|error: ConfigError| Refusal::bad_request(error.to_string()))
}

/// The configuration in a message of kind [`Kind::Config`]: the channel's next one, or that of a new channel.
///
/// # Errors
/// It holds none.
pub fn config_within(envelope: &RawEnvelope) -> Result<ConfigEnvelope, Refusal> {
    match created_channel(envelope)? {
        Some(created) => Ok(created.config),
        None => config_envelope(envelope),
    }
}

/// What a `CONFIG` message holds.
///
/// # Errors
/// It is none.
pub fn config_envelope(envelope: &RawEnvelope) -> Result<ConfigEnvelope, Refusal> {
    let parts =
        EnvelopeParts::parse(envelope).map_err(|error| Refusal::bad_request(error.to_string()))?;
    if !parts.channel_header.is(HeaderType::Config) {
        return Err(Refusal::bad_request("message is not of type CONFIG"));
    }
    ConfigEnvelope::decode(parts.data).map_err(|error| {
        Refusal::bad_request(format!("error unmarshalling ConfigEnvelope: {error}"))
    })
}

/// The consenters and options that a configuration names.
pub fn consensus_metadata(config: &ConfigEnvelope) -> Option<ConfigMetadata> {
    let value = config
        .config
        .as_ref()?
        .channel_group
        .as_ref()?
        .groups
        .get("Orderer")?
        .values
        .get("ConsensusType")?;
    let consensus = ConsensusType::decode(value.value.as_slice()).ok()?;
    ConfigMetadata::decode(consensus.metadata.as_slice()).ok()
}

/// A message in our name. Fabric gives it no timestamp of meaning; nobody reads it.
fn own_message(
    context: &UpdateContext<'_>,
    header_type: HeaderType,
    channel: &str,
    data: Vec<u8>,
) -> Result<RawEnvelope, Refusal> {
    let nonce: [u8; NONCE_BYTES] = context.entropy.bytes();
    let header = ChannelHeaderMessage {
        r#type: header_type as i32,
        channel_id: channel.to_owned(),
        ..ChannelHeaderMessage::default()
    };
    envelope::sign(&header, data, &nonce, context.signer)
        .map_err(|error| Refusal::new(Status::InternalServerError, error.to_string()))
}
