//! Files of whatever kind: which message it is, and what there is to say about it.

use bytes::Bytes;
use prost::Message;
use serde_json::Value;

use super::text;
use crate::block;
use crate::envelope::{ChannelId, EnvelopeParts, RawEnvelope};
use crate::proto::common::{
    Block, Config, ConfigEnvelope, ConfigGroup, ConfigUpdate, ConfigUpdateEnvelope, HeaderType,
};
use crate::wire::{Fields, Value as Field};

/// A file that holds one of the messages of the ordering service.
///
/// Protobuf does not say which message its bytes are, and many bytes are several. So the kinds are tried from the one
/// that says most about itself to the one that says least, and each must hold what a real one always holds.
#[derive(Debug, Clone)]
pub enum Document {
    /// A `common.Block`.
    Block(Box<Block>),
    /// A `common.Envelope`, its encoding kept.
    Envelope(RawEnvelope),
    /// A `common.ConfigEnvelope`: what a configuration block's envelope carries.
    ConfigEnvelope(Box<ConfigEnvelope>),
    /// A `common.Config`.
    Config(Box<Config>),
    /// A `common.ConfigUpdateEnvelope`: an update with signatures.
    ConfigUpdateEnvelope(Box<ConfigUpdateEnvelope>),
    /// A `common.ConfigUpdate`: not signed by anybody.
    ConfigUpdate(Box<ConfigUpdate>),
}

impl Document {
    /// What the bytes are. `None` if they are nothing that is known here.
    #[must_use]
    pub fn recognise(bytes: &[u8]) -> Option<Self> {
        let bytes = Bytes::copy_from_slice(bytes);
        block(&bytes)
            .or_else(|| envelope(&bytes))
            .or_else(|| update_envelope(&bytes))
            .or_else(|| update(&bytes))
            .or_else(|| config_envelope(&bytes))
            .or_else(|| config(&bytes))
    }

    /// The message's name.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Block(_) => "block",
            Self::Envelope(_) => "envelope",
            Self::ConfigEnvelope(_) => "config envelope",
            Self::Config(_) => "config",
            Self::ConfigUpdateEnvelope(_) => "config update envelope",
            Self::ConfigUpdate(_) => "config update",
        }
    }

    /// As `configtxlator proto_decode` writes a message of this kind.
    #[must_use]
    pub fn json(&self) -> Value {
        match self {
            Self::Block(block) => super::block(block),
            Self::Envelope(envelope) => super::envelope(envelope.encoded()),
            Self::ConfigEnvelope(envelope) => {
                super::config_envelope((**envelope).clone(), super::MAX_ENVELOPES)
            }
            Self::Config(config) => super::config(config),
            Self::ConfigUpdateEnvelope(envelope) => {
                super::config_update_envelope((**envelope).clone())
            }
            Self::ConfigUpdate(update) => super::config_update(update),
        }
    }

    /// For people: the kind, what matters about it, and then everything as an indented tree.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::Block(block) => text::block_text(block),
            Self::Envelope(envelope) => text::envelope_text(envelope),
            Self::ConfigEnvelope(envelope) => text::config_envelope_text(envelope, &self.json()),
            Self::ConfigUpdateEnvelope(envelope) => text::update_text(envelope, &self.json()),
            Self::Config(config) => text::config_text(config),
            Self::ConfigUpdate(_) => text::tree(self.kind(), &self.json()),
        }
    }
}

fn plausible_group(group: &ConfigGroup) -> bool {
    !(group.groups.is_empty() && group.values.is_empty() && group.policies.is_empty())
}

/// A block has data, or at least a header whose hash has the length of one.
fn block(bytes: &Bytes) -> Option<Document> {
    let block = Block::decode(bytes.clone()).ok()?;
    let header = block.header.as_ref()?;
    let hash = |hash: &[u8]| hash.is_empty() || hash.len() == size_of::<block::Hash>();
    let real = block.data.is_some() && hash(&header.data_hash) && hash(&header.previous_hash);
    real.then(|| Document::Block(Box::new(block)))
}

/// An envelope has a payload with a channel header that names a type.
fn envelope(bytes: &Bytes) -> Option<Document> {
    let envelope = RawEnvelope::decode(bytes.clone()).ok()?;
    let parts = EnvelopeParts::parse(&envelope).ok()?;
    let header = &parts.channel_header;
    let known = HeaderType::try_from(header.header_type).is_ok();
    let channel = ChannelId::new(&header.channel_id).is_ok();
    (known && (channel || !header.tx_id.is_empty() || header.timestamp.is_some()))
        .then_some(Document::Envelope(envelope))
}

/// Only these fields, all length-delimited.
fn fields_are(bytes: &Bytes, known: &[u32]) -> bool {
    let mut fields = Fields::of(bytes);
    loop {
        match fields.next() {
            Ok(None) => return true,
            Ok(Some(field)) if known.contains(&field.number) => {
                if !matches!(field.value, Field::Bytes(_)) {
                    return false;
                }
            }
            _ => return false,
        }
    }
}

fn update_envelope(bytes: &Bytes) -> Option<Document> {
    if !fields_are(bytes, &[1, 2]) {
        return None;
    }
    let envelope = ConfigUpdateEnvelope::decode(bytes.clone()).ok()?;
    update(&Bytes::copy_from_slice(&envelope.config_update))?;
    Some(Document::ConfigUpdateEnvelope(Box::new(envelope)))
}

fn update(bytes: &Bytes) -> Option<Document> {
    let update = ConfigUpdate::decode(bytes.clone()).ok()?;
    let named = ChannelId::new(&update.channel_id).is_ok();
    let written = update.write_set.is_some();
    (named && written).then(|| Document::ConfigUpdate(Box::new(update)))
}

fn config_envelope(bytes: &Bytes) -> Option<Document> {
    let envelope = ConfigEnvelope::decode(bytes.clone()).ok()?;
    let group = envelope.config.as_ref()?.channel_group.as_ref()?;
    plausible_group(group).then(|| Document::ConfigEnvelope(Box::new(envelope)))
}

fn config(bytes: &Bytes) -> Option<Document> {
    let config = Config::decode(bytes.clone()).ok()?;
    plausible_group(config.channel_group.as_ref()?).then(|| Document::Config(Box::new(config)))
}
