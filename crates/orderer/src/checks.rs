//! What a message must be to be ordered, in Fabric's order and with Fabric's words.
//!
//! Everything here is pure and may be run on any thread: the configuration, the message and the time come in, a
//! verdict comes out. Whether a leader is there to order the message is asked later, by the channel.
//!
//! [`classify`] tells what a client wants; [`normal`] judges an ordinary message; [`update`] judges a configuration
//! update and makes the `CONFIG` message of it that will stand in the block.

use prost::Message as _;
use quorate_fabric::config::{ChannelConfig, ConsensusState, raft_config};
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
    /// A change of the channel's configuration, as the `CONFIG` envelope that the block will hold.
    Config,
}

/// What a client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// That an ordinary message is ordered.
    Normal,
    /// That the configuration is changed.
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
    if in_maintenance(config) {
        return Err(Refusal::new(
            Status::ServiceUnavailable,
            "normal transactions are rejected: maintenance mode",
        ));
    }
    message(config, envelope, rules, now)
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
    let made = config_message(context, &proposed.envelope)?;
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

/// Judges a `CONFIG` message again that was made under an earlier configuration, and makes it anew.
///
/// # Errors
/// Why it is no longer ordered.
pub fn config_again(
    context: &UpdateContext<'_>,
    envelope: &RawEnvelope,
    rules: &Rules,
    now: UnixTime,
) -> Result<RawEnvelope, Refusal> {
    let config = config_envelope(envelope)?;
    let Some(last) = config.last_update else {
        return Err(Refusal::bad_request("config message has no last update"));
    };
    update(
        context,
        &RawEnvelope::new(&last.payload, &last.signature),
        rules,
        now,
    )
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

/// A `CONFIG` message in our name. Fabric gives it no timestamp of meaning; nobody reads it.
fn config_message(
    context: &UpdateContext<'_>,
    config: &ConfigEnvelope,
) -> Result<RawEnvelope, Refusal> {
    let nonce: [u8; NONCE_BYTES] = context.entropy.bytes();
    let header = ChannelHeaderMessage {
        r#type: HeaderType::Config as i32,
        channel_id: context.config.channel_id().to_owned(),
        ..ChannelHeaderMessage::default()
    };
    envelope::sign(&header, config.encode_to_vec(), &nonce, context.signer)
        .map_err(|error| Refusal::new(Status::InternalServerError, error.to_string()))
}
