//! Blocks, envelopes and configurations as JSON that people and scripts can read.
//!
//! The nesting and the names are those of Fabric's `configtxlator`, on which scripts rely: what stands as bytes in a
//! message is decoded in place when its type is known, 64-bit numbers are strings, other bytes are base64, and
//! what is absent is `null`. Unlike that tool we do not give up over a part that cannot be decoded; it stays base64.
//! Start with [`block`]; [`block_text`] and [`config_text`] write the same for people only. [`Document`] is for files of
//! which nobody has said what they are.

mod difference;
mod document;
mod text;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost::Message;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

pub use self::difference::config_difference;
pub use self::document::Document;
pub use self::text::{block_text, config_text};
use crate::proto::common::{self, HeaderType, policy::PolicyType};
use crate::proto::{etcdraft, msp, orderer, protos};

/// How deep envelopes may stand in envelopes. Real ones do so twice: a block's envelope holds a configuration, and
/// that the envelope of the update that led to it. Deeper ones stay base64.
const MAX_ENVELOPES: usize = 8;

/// Where in a configuration's tree a group stands; it decides what the names below it mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Channel,
    Orderer,
    OrdererOrg,
    Application,
    ApplicationOrg,
    Consortiums,
    Consortium,
    ConsortiumOrg,
    Unknown,
}

impl Place {
    fn below(self, name: &str) -> Self {
        match (self, name) {
            (Self::Channel, "Orderer") => Self::Orderer,
            (Self::Channel, "Application") => Self::Application,
            (Self::Channel, "Consortiums") => Self::Consortiums,
            (Self::Orderer, _) => Self::OrdererOrg,
            (Self::Application, _) => Self::ApplicationOrg,
            (Self::Consortiums, _) => Self::Consortium,
            (Self::Consortium, _) => Self::ConsortiumOrg,
            _ => Self::Unknown,
        }
    }
}

/// A block, with everything in its envelopes that orderers understand. Metadata stay base64.
#[must_use]
pub fn block(block: &common::Block) -> Value {
    let data = block.data.as_ref().map(|data| {
        let envelopes: Vec<Value> = data.data.iter().map(|bytes| envelope(bytes)).collect();
        json!({ "data": envelopes })
    });
    let header = block.header.as_ref().map(|header| {
        json!({
            "number": header.number.to_string(),
            "previous_hash": bytes(&header.previous_hash),
            "data_hash": bytes(&header.data_hash),
        })
    });
    let metadata = block
        .metadata
        .as_ref()
        .map(|metadata| json!({ "metadata": each_bytes(&metadata.metadata) }));
    json!({ "header": header, "data": data, "metadata": metadata })
}

/// An encoded envelope.
#[must_use]
pub fn envelope(encoded: &[u8]) -> Value {
    inner_envelope(encoded, MAX_ENVELOPES)
}

fn inner_envelope(encoded: &[u8], depth: usize) -> Value {
    let Some(depth) = depth.checked_sub(1) else {
        return bytes(encoded);
    };
    decoded(encoded, |envelope: common::Envelope| {
        json!({
            "payload": decoded(&envelope.payload, |message| payload(message, depth)),
            "signature": bytes(&envelope.signature),
        })
    })
}

/// A channel's configuration.
#[must_use]
pub fn config(config: &common::Config) -> Value {
    json!({
        "sequence": config.sequence.to_string(),
        "channel_group": config.channel_group.as_ref().map(|root| group(root, Place::Channel)),
    })
}

/// A change to a channel's configuration, as it is signed.
#[must_use]
pub fn config_update(update: &common::ConfigUpdate) -> Value {
    let set =
        |root: &Option<common::ConfigGroup>| root.as_ref().map(|root| group(root, Place::Channel));
    let isolated: Map<String, Value> = update
        .isolated_data
        .iter()
        .map(|(name, value)| (name.clone(), STANDARD.encode(value).into()))
        .collect();
    json!({
        "channel_id": update.channel_id,
        "read_set": set(&update.read_set),
        "write_set": set(&update.write_set),
        "isolated_data": isolated,
    })
}

/// Bytes in place of a message: decoded, or base64 if they are none. Empty bytes are absent.
fn decoded<M: Message + Default>(encoded: &[u8], show: impl FnOnce(M) -> Value) -> Value {
    if encoded.is_empty() {
        return Value::Null;
    }
    M::decode(encoded).map_or_else(|_| bytes(encoded), show)
}

fn bytes(value: &[u8]) -> Value {
    if value.is_empty() {
        return Value::Null;
    }
    STANDARD.encode(value).into()
}

/// In a list an empty element keeps its place.
fn each_bytes(values: &[impl AsRef<[u8]>]) -> Value {
    values.iter().map(|value| STANDARD.encode(value)).collect()
}

/// An enumeration's name, or its number if it has none.
fn named<E: TryFrom<i32>>(number: i32, name: fn(&E) -> &'static str) -> Value {
    E::try_from(number).map_or_else(|_| number.into(), |value| name(&value).into())
}

fn payload(payload: common::Payload, depth: usize) -> Value {
    let Some(header) = payload.header else {
        return json!({ "header": null, "data": bytes(&payload.data) });
    };
    let kind = common::ChannelHeader::decode(&header.channel_header[..])
        .ok()
        .and_then(|header| HeaderType::try_from(header.r#type).ok());
    let data = match kind {
        Some(HeaderType::Config) => {
            decoded(&payload.data, |message| config_envelope(message, depth))
        }
        Some(HeaderType::ConfigUpdate) => decoded(&payload.data, config_update_envelope),
        Some(HeaderType::OrdererTransaction) => inner_envelope(&payload.data, depth),
        Some(HeaderType::DeliverSeekInfo) => decoded(&payload.data, seek_info),
        // What peers put into their transactions is none of an orderer's business.
        _ => bytes(&payload.data),
    };
    json!({
        "header": {
            "channel_header": decoded(&header.channel_header, channel_header),
            "signature_header": signature_header(&header.signature_header),
        },
        "data": data,
    })
}

fn channel_header(header: common::ChannelHeader) -> Value {
    let timestamp = header.timestamp.map(|timestamp| {
        let nanos = i128::from(timestamp.seconds) * 1_000_000_000 + i128::from(timestamp.nanos);
        OffsetDateTime::from_unix_timestamp_nanos(nanos)
            .ok()
            .and_then(|time| time.format(&Rfc3339).ok())
    });
    json!({
        "type": header.r#type,
        "version": header.version,
        "timestamp": timestamp,
        "channel_id": header.channel_id,
        "tx_id": header.tx_id,
        "epoch": header.epoch.to_string(),
        "extension": bytes(&header.extension),
        "tls_cert_hash": bytes(&header.tls_cert_hash),
    })
}

fn signature_header(encoded: &[u8]) -> Value {
    decoded(
        encoded,
        |header: common::SignatureHeader| json!({ "creator": decoded(&header.creator, identity), "nonce": bytes(&header.nonce) }),
    )
}

fn identity(identity: msp::SerializedIdentity) -> Value {
    json!({ "mspid": identity.mspid, "id_bytes": bytes(&identity.id_bytes) })
}

fn config_envelope(envelope: common::ConfigEnvelope, depth: usize) -> Value {
    let update = envelope.last_update;
    json!({
        "config": envelope.config.as_ref().map(config),
        "last_update": update.map(|update| inner_envelope(&update.encode_to_vec(), depth)),
    })
}

fn config_update_envelope(envelope: common::ConfigUpdateEnvelope) -> Value {
    let signatures: Vec<Value> = envelope
        .signatures
        .iter()
        .map(|signature| {
            json!({
                "signature_header": signature_header(&signature.signature_header),
                "signature": bytes(&signature.signature),
            })
        })
        .collect();
    json!({
        "config_update": decoded(&envelope.config_update, |update| config_update(&update)),
        "signatures": signatures,
    })
}

fn seek_info(seek: orderer::SeekInfo) -> Value {
    use orderer::seek_info::{SeekBehavior, SeekErrorResponse};
    let position = |position: Option<orderer::SeekPosition>| {
        use orderer::seek_position::Type;
        position.map(|position| match position.r#type {
            Some(Type::Newest(_)) => json!({ "newest": {} }),
            Some(Type::Oldest(_)) => json!({ "oldest": {} }),
            Some(Type::NextCommit(_)) => json!({ "next_commit": {} }),
            Some(Type::Specified(at)) => {
                json!({ "specified": { "number": at.number.to_string() } })
            }
            None => json!({}),
        })
    };
    json!({
        "start": position(seek.start),
        "stop": position(seek.stop),
        "behavior": named(seek.behavior, SeekBehavior::as_str_name),
        "error_response": named(seek.error_response, SeekErrorResponse::as_str_name),
    })
}

fn group(group: &common::ConfigGroup, place: Place) -> Value {
    // Protobuf messages of any depth are refused when they are decoded, so this ends.
    let groups: Map<String, Value> = group
        .groups
        .iter()
        .map(|(name, inner)| (name.clone(), self::group(inner, place.below(name))))
        .collect();
    let values: Map<String, Value> = group
        .values
        .iter()
        .map(|(name, entry)| {
            let shown = json!({
                "version": entry.version.to_string(),
                "mod_policy": entry.mod_policy,
                "value": value(place, name, &entry.value),
            });
            (name.clone(), shown)
        })
        .collect();
    let policies: Map<String, Value> = group
        .policies
        .iter()
        .map(|(name, entry)| {
            let shown = json!({
                "version": entry.version.to_string(),
                "mod_policy": entry.mod_policy,
                "policy": entry.policy.as_ref().map(policy),
            });
            (name.clone(), shown)
        })
        .collect();
    json!({
        "version": group.version.to_string(),
        "mod_policy": group.mod_policy,
        "groups": groups,
        "values": values,
        "policies": policies,
    })
}

/// A configuration value, by its name and the group that holds it.
fn value(place: Place, name: &str, encoded: &[u8]) -> Value {
    match (place, name) {
        (Place::Channel, "HashingAlgorithm") => decoded(
            encoded,
            |value: common::HashingAlgorithm| json!({ "name": value.name }),
        ),
        (Place::Channel, "BlockDataHashingStructure") => decoded(
            encoded,
            |value: common::BlockDataHashingStructure| json!({ "width": value.width }),
        ),
        (Place::Channel, "OrdererAddresses") | (Place::OrdererOrg, "Endpoints") => decoded(
            encoded,
            |value: common::OrdererAddresses| json!({ "addresses": value.addresses }),
        ),
        (Place::Channel, "Consortium") => decoded(
            encoded,
            |value: common::Consortium| json!({ "name": value.name }),
        ),
        (Place::Channel | Place::Orderer | Place::Application, "Capabilities") => {
            decoded(encoded, |value: common::Capabilities| {
                let names = value.capabilities.into_keys();
                let names: Map<String, Value> = names.map(|name| (name, json!({}))).collect();
                json!({ "capabilities": names })
            })
        }
        (Place::Orderer, "ConsensusType") => decoded(encoded, consensus_type),
        (Place::Orderer, "BatchSize") => decoded(encoded, |value: orderer::BatchSize| {
            json!({
                "max_message_count": value.max_message_count,
                "absolute_max_bytes": value.absolute_max_bytes,
                "preferred_max_bytes": value.preferred_max_bytes,
            })
        }),
        (Place::Orderer, "BatchTimeout") => decoded(
            encoded,
            |value: orderer::BatchTimeout| json!({ "timeout": value.timeout }),
        ),
        (Place::Orderer, "KafkaBrokers") => decoded(
            encoded,
            |value: orderer::KafkaBrokers| json!({ "brokers": value.brokers }),
        ),
        (Place::Orderer, "ChannelRestrictions") => decoded(
            encoded,
            |value: orderer::ChannelRestrictions| json!({ "max_count": value.max_count.to_string() }),
        ),
        (Place::Application, "ACLs") => decoded(encoded, |value: protos::AcLs| {
            let acls = value.acls.into_iter();
            let acls: Map<String, Value> = acls
                .map(|(name, acl)| (name, json!({ "policy_ref": acl.policy_ref })))
                .collect();
            json!({ "acls": acls })
        }),
        (Place::ApplicationOrg, "AnchorPeers") => decoded(encoded, |value: protos::AnchorPeers| {
            let peers = value.anchor_peers.into_iter();
            let peers: Vec<Value> = peers
                .map(|peer| json!({ "host": peer.host, "port": peer.port }))
                .collect();
            json!({ "anchor_peers": peers })
        }),
        (Place::Consortium, "ChannelCreationPolicy") => {
            decoded(encoded, |value: common::Policy| policy(&value))
        }
        (Place::OrdererOrg | Place::ApplicationOrg | Place::ConsortiumOrg, "MSP") => {
            decoded(encoded, msp_config)
        }
        _ => bytes(encoded),
    }
}

fn consensus_type(value: orderer::ConsensusType) -> Value {
    let metadata = if value.r#type == "etcdraft" {
        decoded(&value.metadata, raft_metadata)
    } else {
        bytes(&value.metadata)
    };
    json!({
        "type": value.r#type,
        "metadata": metadata,
        "state": named(value.state, orderer::consensus_type::State::as_str_name),
    })
}

fn raft_metadata(metadata: etcdraft::ConfigMetadata) -> Value {
    let consenters = metadata.consenters.into_iter();
    let consenters: Vec<Value> = consenters
        .map(|consenter| {
            json!({
                "host": consenter.host,
                "port": consenter.port,
                "client_tls_cert": bytes(&consenter.client_tls_cert),
                "server_tls_cert": bytes(&consenter.server_tls_cert),
            })
        })
        .collect();
    let options = metadata.options.map(|options| {
        json!({
            "tick_interval": options.tick_interval,
            "election_tick": options.election_tick,
            "heartbeat_tick": options.heartbeat_tick,
            "max_inflight_blocks": options.max_inflight_blocks,
            "snapshot_interval_size": options.snapshot_interval_size,
        })
    });
    json!({ "consenters": consenters, "options": options })
}

fn policy(policy: &common::Policy) -> Value {
    let value = match PolicyType::try_from(policy.r#type) {
        Ok(PolicyType::Signature) => decoded(&policy.value, signature_policy),
        Ok(PolicyType::ImplicitMeta) => {
            decoded(&policy.value, |meta: common::ImplicitMetaPolicy| {
                json!({
                    "rule": named(meta.rule, common::implicit_meta_policy::Rule::as_str_name),
                    "sub_policy": meta.sub_policy,
                })
            })
        }
        _ => bytes(&policy.value),
    };
    json!({ "type": policy.r#type, "value": value })
}

fn signature_policy(envelope: common::SignaturePolicyEnvelope) -> Value {
    let identities: Vec<Value> = envelope.identities.iter().map(principal).collect();
    json!({
        "version": envelope.version,
        "rule": envelope.rule.as_ref().map(rule),
        "identities": identities,
    })
}

fn rule(policy: &common::SignaturePolicy) -> Value {
    use common::signature_policy::Type;
    match &policy.r#type {
        Some(Type::SignedBy(index)) => json!({ "signed_by": index }),
        Some(Type::NOutOf(gate)) => {
            let rules: Vec<Value> = gate.rules.iter().map(rule).collect();
            json!({ "n_out_of": { "n": gate.n, "rules": rules } })
        }
        None => json!({}),
    }
}

fn principal(principal: &common::MspPrincipal) -> Value {
    use common::msp_principal::Classification;
    let kind = Classification::try_from(principal.principal_classification);
    let value = match kind {
        Ok(Classification::Role) => decoded(&principal.principal, |role: common::MspRole| {
            json!({
                "msp_identifier": role.msp_identifier,
                "role": named(role.role, common::msp_role::MspRoleType::as_str_name),
            })
        }),
        Ok(Classification::OrganizationUnit) => {
            decoded(&principal.principal, |unit: common::OrganizationUnit| {
                json!({
                    "msp_identifier": unit.msp_identifier,
                    "organizational_unit_identifier": unit.organizational_unit_identifier,
                    "certifiers_identifier": bytes(&unit.certifiers_identifier),
                })
            })
        }
        Ok(Classification::Identity) => decoded(&principal.principal, identity),
        _ => bytes(&principal.principal),
    };
    json!({
        "principal_classification":
            named(principal.principal_classification, Classification::as_str_name),
        "principal": value,
    })
}

fn msp_config(config: msp::MspConfig) -> Value {
    /// The X.509 kind; others (Idemix) are shown as bytes.
    const FABRIC: i32 = 0;
    let inner = if config.r#type == FABRIC {
        decoded(&config.config, fabric_msp)
    } else {
        bytes(&config.config)
    };
    json!({ "type": config.r#type, "config": inner })
}

fn fabric_msp(msp: msp::FabricMspConfig) -> Value {
    let unit = |unit: &msp::FabricOuIdentifier| {
        json!({
            "certificate": bytes(&unit.certificate),
            "organizational_unit_identifier": unit.organizational_unit_identifier,
        })
    };
    let optional_unit =
        |identifier: &Option<msp::FabricOuIdentifier>| identifier.as_ref().map(unit);
    let node_ous = msp.fabric_node_ous.as_ref().map(|ous| {
        json!({
            "enable": ous.enable,
            "client_ou_identifier": optional_unit(&ous.client_ou_identifier),
            "peer_ou_identifier": optional_unit(&ous.peer_ou_identifier),
            "admin_ou_identifier": optional_unit(&ous.admin_ou_identifier),
            "orderer_ou_identifier": optional_unit(&ous.orderer_ou_identifier),
        })
    });
    let crypto = msp.crypto_config.as_ref().map(|crypto| {
        json!({
            "signature_hash_family": crypto.signature_hash_family,
            "identity_identifier_hash_function": crypto.identity_identifier_hash_function,
        })
    });
    // Never in a channel, and never to be shown: the private part is left out.
    let signing_identity = msp
        .signing_identity
        .as_ref()
        .map(|signer| json!({ "public_signer": bytes(&signer.public_signer) }));
    let units: Vec<Value> = msp
        .organizational_unit_identifiers
        .iter()
        .map(unit)
        .collect();
    json!({
        "name": msp.name,
        "root_certs": each_bytes(&msp.root_certs),
        "intermediate_certs": each_bytes(&msp.intermediate_certs),
        "admins": each_bytes(&msp.admins),
        "revocation_list": each_bytes(&msp.revocation_list),
        "signing_identity": signing_identity,
        "organizational_unit_identifiers": units,
        "crypto_config": crypto,
        "tls_root_certs": each_bytes(&msp.tls_root_certs),
        "tls_intermediate_certs": each_bytes(&msp.tls_intermediate_certs),
        "fabric_node_ous": node_ous,
    })
}
