//! The same for people: an indented tree with hashes in hexadecimal, policies in the language in which they are
//! written, and certificates by subject and expiry.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost::Message;
use serde_json::Value;
use x509_parser::pem::Pem;

use crate::block;
use crate::envelope::{EnvelopeParts, RawEnvelope, SignatureHeader};
use crate::proto::common::HeaderType;
use crate::proto::{common, etcdraft, msp, orderer};

/// Longer texts are bytes of clients and of cryptography, of which people want to see that they are there.
const MAX_SHOWN_CHARS: usize = 120;

/// A block as an indented tree.
#[must_use]
pub fn block_text(block: &common::Block) -> String {
    let mut out = Tree::default();
    match &block.header {
        Some(header) => {
            out.line(0, &format!("block {}", header.number));
            out.line(
                1,
                &format!("header hash: {}", hex::encode(block::header_hash(header))),
            );
            out.line(
                1,
                &format!("previous hash: {}", hex_or_none(&header.previous_hash)),
            );
            let verdict = match block::check_data_hash(block) {
                Ok(()) => "",
                Err(_) => " (does not match the data)",
            };
            out.line(
                1,
                &format!("data hash: {}{verdict}", hex_or_none(&header.data_hash)),
            );
        }
        None => out.line(0, "block without header"),
    }
    metadata(&mut out, block);
    let data = block.data.iter().flat_map(|data| &data.data);
    for (index, encoded) in data.enumerate() {
        out.line(1, &format!("envelope {index}: {} bytes", encoded.len()));
        if let Ok(envelope) = RawEnvelope::decode(encoded.clone()) {
            about_envelope(&mut out, 2, &envelope, Update::Told);
        }
        out.value(2, &super::envelope(encoded));
    }
    out.text
}

/// An envelope as an indented tree.
pub(super) fn envelope_text(envelope: &RawEnvelope) -> String {
    let mut out = Tree::default();
    out.line(0, &format!("envelope: {} bytes", envelope.encoded().len()));
    about_envelope(&mut out, 1, envelope, Update::Told);
    out.value(1, &super::envelope(envelope.encoded()));
    out.text
}

/// What a configuration envelope says, as an indented tree.
pub(super) fn config_envelope_text(envelope: &common::ConfigEnvelope, json: &Value) -> String {
    let mut out = Tree::default();
    out.line(0, "config envelope");
    about_config(&mut out, 1, envelope, Update::Told);
    out.value(1, json);
    out.text
}

/// An update with its signatures, as an indented tree.
pub(super) fn update_text(envelope: &common::ConfigUpdateEnvelope, json: &Value) -> String {
    let mut out = Tree::default();
    out.line(0, "config update envelope");
    about_update(&mut out, 1, envelope);
    out.value(1, json);
    out.text
}

/// Anything else.
pub(super) fn tree(kind: &str, json: &Value) -> String {
    let mut out = Tree::default();
    out.line(0, kind);
    out.value(1, json);
    out.text
}

/// Whether to tell of the update that led to a configuration. It is told once: updates do not lead to updates.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Update {
    Told,
    Untold,
}

/// What it is, for which channel, and who signed.
fn about_envelope(out: &mut Tree, depth: usize, envelope: &RawEnvelope, update: Update) {
    let Ok(parts) = EnvelopeParts::parse(envelope) else {
        return;
    };
    let header = &parts.channel_header;
    let kind = HeaderType::try_from(header.header_type).map_or_else(
        |_| format!("type {}", header.header_type),
        |kind| kind.as_str_name().to_owned(),
    );
    out.line(depth, &format!("{kind} for channel {}", header.channel_id));
    if envelope.signature().is_empty() {
        out.line(depth, "not signed");
    } else {
        let creator = parts.signature_header().map(|header| header.creator);
        let creator = creator.unwrap_or_default();
        out.line(depth, &format!("signed by {}", signer(&creator)));
    }
    match HeaderType::try_from(header.header_type) {
        Ok(HeaderType::Config) => {
            if let Ok(config) = common::ConfigEnvelope::decode(&parts.data[..]) {
                about_config(out, depth, &config, update);
            }
        }
        Ok(HeaderType::ConfigUpdate) => {
            if let Ok(update) = common::ConfigUpdateEnvelope::decode(&parts.data[..]) {
                about_update(out, depth, &update);
            }
        }
        _ => {}
    }
}

fn about_update(out: &mut Tree, depth: usize, envelope: &common::ConfigUpdateEnvelope) {
    if envelope.signatures.is_empty() {
        out.line(depth, "the update has no config signatures");
    }
    for signature in &envelope.signatures {
        let header = SignatureHeader::decode(&signature.signature_header.clone().into());
        let creator = header.map(|header| header.creator).unwrap_or_default();
        out.line(depth, &format!("config signature of {}", signer(&creator)));
    }
}

fn about_config(out: &mut Tree, depth: usize, envelope: &common::ConfigEnvelope, update: Update) {
    if let Some(config) = &envelope.config {
        about_consenters(out, depth, config);
    }
    let last_update = envelope.last_update.as_ref();
    if let Some(last_update) = last_update.filter(|_| update == Update::Told) {
        out.line(depth, "made by the update");
        about_envelope(out, depth + 1, &last_update.into(), Update::Untold);
    }
}

/// Who orders the channel, if it is an etcdraft channel.
fn about_consenters(out: &mut Tree, depth: usize, config: &common::Config) {
    let sequence = config.sequence;
    out.line(depth, &format!("config sequence {sequence}"));
    let root = config.channel_group.as_ref();
    let consensus = root
        .and_then(|root| root.groups.get("Orderer"))
        .and_then(|orderer| orderer.values.get("ConsensusType"))
        .and_then(|value| orderer::ConsensusType::decode(&value.value[..]).ok());
    let metadata = consensus
        .filter(|consensus| consensus.r#type == "etcdraft")
        .and_then(|consensus| etcdraft::ConfigMetadata::decode(&consensus.metadata[..]).ok());
    for consenter in metadata.iter().flat_map(|metadata| &metadata.consenters) {
        let shown = certificate(&consenter.client_tls_cert);
        out.line(
            depth,
            &format!(
                "consenter {}:{}, {}",
                consenter.host,
                consenter.port,
                shown.as_deref().unwrap_or("without a readable certificate")
            ),
        );
    }
}

/// A configuration as an indented tree.
#[must_use]
pub fn config_text(config: &common::Config) -> String {
    let mut out = Tree::default();
    about_consenters(&mut out, 0, config);
    out.value(0, &super::config(config));
    out.text
}

fn metadata(out: &mut Tree, block: &common::Block) {
    out.line(1, "metadata");
    match block::last_config(block) {
        Ok(number) => out.line(2, &format!("last config: block {number}")),
        Err(error) => out.line(2, &format!("last config: {error}")),
    }
    match block::consenter_metadata(block) {
        Ok(Some(raft)) => out.line(
            2,
            &format!(
                "raft: index {}, consenters {:?}, next {}",
                raft.raft_index, raft.consenter_ids, raft.next_consenter_id
            ),
        ),
        Ok(None) => {}
        Err(error) => out.line(2, &format!("raft: {error}")),
    }
    match block::signatures(block) {
        Ok(signatures) => {
            for signature in signatures {
                out.line(2, &format!("signed by {}", signer(&signature.identity)));
            }
        }
        Err(error) => out.line(2, &format!("signatures: {error}")),
    }
}

fn signer(serialized: &[u8]) -> String {
    match msp::SerializedIdentity::decode(serialized) {
        Ok(identity) => {
            let certificate = certificate(&identity.id_bytes);
            format!(
                "{}: {}",
                identity.mspid,
                certificate.as_deref().unwrap_or("?")
            )
        }
        Err(_) => "somebody unknown".to_owned(),
    }
}

fn hex_or_none(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "none".to_owned();
    }
    hex::encode(bytes)
}

/// The first certificate of a PEM text, by subject and expiry.
fn certificate(pem: &[u8]) -> Option<String> {
    let pem = Pem::iter_from_buffer(pem).next()?.ok()?;
    let certificate = pem.parse_x509().ok()?;
    let until = certificate.validity().not_after;
    Some(format!("{} (until {until})", certificate.subject()))
}

/// The serial number of the certificate that a JSON text holds: renewed ones differ in nothing else that is shown.
pub(super) fn serial(value: &Value) -> Option<String> {
    let pem = STANDARD.decode(value.as_str()?).ok()?;
    let pem = Pem::iter_from_buffer(&pem).next()?.ok()?;
    Some(
        pem.parse_x509()
            .ok()?
            .tbs_certificate
            .raw_serial_as_string(),
    )
}

#[derive(Default)]
struct Tree {
    text: String,
}

impl Tree {
    fn line(&mut self, depth: usize, text: &str) {
        let indent = 2 * depth;
        writeln!(self.text, "{:indent$}{text}", "").expect("a string takes everything");
    }

    /// The members of an object or the elements of a list, one a line, inner ones below it.
    fn value(&mut self, depth: usize, value: &Value) {
        match value {
            Value::Object(members) => {
                for (name, member) in members {
                    self.member(depth, name, member);
                }
            }
            Value::Array(elements) => {
                for (index, element) in elements.iter().enumerate() {
                    self.member(depth, &format!("- {index}"), element);
                }
            }
            other => self.line(depth, &inline(other)),
        }
    }

    fn member(&mut self, depth: usize, name: &str, value: &Value) {
        if let Some(policy) = policy(value) {
            return self.line(depth, &format!("{name}: {policy}"));
        }
        match value {
            // Absent and empty things only take room.
            Value::Null => {}
            Value::Object(members) if members.is_empty() => {
                // A capability is nothing but its name; a group's empty parts are nothing at all.
                if !["groups", "values", "policies", "isolated_data"].contains(&name) {
                    self.line(depth, name);
                }
            }
            Value::Array(elements) if elements.is_empty() => {}
            Value::Object(_) | Value::Array(_) => {
                self.line(depth, name);
                self.value(depth + 1, value);
            }
            scalar => self.line(depth, &format!("{name}: {}", inline(scalar))),
        }
    }
}

pub(super) fn inline(value: &Value) -> String {
    let Value::String(text) = value else {
        return value.to_string();
    };
    let certificate = STANDARD
        .decode(text)
        .ok()
        .filter(|bytes| bytes.starts_with(b"-----BEGIN "))
        .and_then(|bytes| certificate(&bytes));
    match certificate {
        Some(certificate) => certificate,
        None if text.len() > MAX_SHOWN_CHARS => {
            let head: String = text.chars().take(MAX_SHOWN_CHARS / 2).collect();
            format!("{head}... ({} characters)", text.chars().count())
        }
        None => text.clone(),
    }
}

/// A policy in the language of configtx.yaml; none if the value is no policy, or one that the language lacks.
pub(super) fn policy(value: &Value) -> Option<String> {
    let inner = value.get("value")?;
    value.get("type")?;
    if let (Some(rule), Some(sub_policy)) = (inner.get("rule"), inner.get("sub_policy")) {
        return Some(format!("{} {}", rule.as_str()?, sub_policy.as_str()?));
    }
    let identities = inner.get("identities")?.as_array()?;
    let principals = identities.iter().map(|identity| {
        let role = identity.get("principal")?;
        let msp = role.get("msp_identifier")?.as_str()?;
        Some(format!(
            "'{msp}.{}'",
            role.get("role")?.as_str()?.to_lowercase()
        ))
    });
    let principals: Vec<String> = principals.collect::<Option<_>>()?;
    rule(inner.get("rule")?, &principals)
}

fn rule(value: &Value, principals: &[String]) -> Option<String> {
    if let Some(index) = value.get("signed_by") {
        return principals
            .get(usize::try_from(index.as_i64()?).ok()?)
            .cloned();
    }
    let gate = value.get("n_out_of")?;
    let n = gate.get("n")?.as_i64()?;
    let rules = gate.get("rules")?.as_array()?;
    let shown = rules.iter().map(|inner| rule(inner, principals));
    let shown = shown.collect::<Option<Vec<_>>>()?.join(", ");
    Some(match n {
        1 => format!("OR({shown})"),
        n if n > 0 && n == rules.len() as i64 => format!("AND({shown})"),
        0 => "anybody".to_owned(),
        n => format!("OutOf({n}, {shown})"),
    })
}
