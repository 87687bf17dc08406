//! An update before it is sent: whether it fits the present configuration, where it leads, which policies judge it, and
//! who has signed. Start with [`ChannelConfig::review`].

use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use prost_types::Timestamp;

use super::error::decode;
use super::update::{open_update, signed_data};
use super::{ChannelConfig, ConfigError, Parsed};
use crate::envelope::{self, EnvelopeParts, RawEnvelope};
use crate::msp::{Identity, SignError, Signer};
use crate::policy::{Policy, Requirement, verified_identities};
use crate::proto::common::{ChannelHeader, ConfigUpdate, ConfigUpdateEnvelope, HeaderType};
use crate::proto::msp::SerializedIdentity;

/// What is known about an update that nobody has judged yet.
#[derive(Debug)]
pub struct Review {
    /// The configuration that it leads to, valid in itself and allowed after the present one.
    pub next: ChannelConfig,
    /// The policies that judge it, each with what it governs.
    pub judgements: Vec<Judgement>,
    /// Whose signatures are there, in their order.
    pub signers: Vec<UpdateSigner>,
}

impl Review {
    /// Whether all policies are satisfied.
    #[must_use]
    pub fn is_authorised(&self) -> bool {
        self.judgements.iter().all(|judged| judged.requirement.met)
    }
}

/// One policy, and what it says of an update.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// The first of the elements that it judges, as refusals name them: `[Value]  /Channel/Orderer/BatchSize`.
    pub element: String,
    /// What it asks for, and what is there.
    pub requirement: Requirement,
}

/// Who has signed an update.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpdateSigner {
    /// The MSP, as the signature names it.
    pub msp_id: String,
    /// The subject of the certificate.
    pub subject: String,
    /// Why it does not count; `None` if it does.
    pub flaw: Option<String>,
}

impl ChannelConfig {
    /// Looks at an update as an orderer will, but asks for no signatures: what is missing is part of the answer.
    ///
    /// # Errors
    /// The update does not fit this configuration, or leads to one that is refused, in the words in which an orderer
    /// refuses it.
    pub fn review(&self, signed: &ConfigUpdateEnvelope) -> Result<Review, ConfigError> {
        let update: ConfigUpdate = decode(&signed.config_update)?;
        let valid = verified_identities(self.membership(), signed_data(signed)?);
        let mut judgements = Vec::new();
        let elements = self.update_elements(&update, || {
            Ok(|key: &str, path: &str, policy: &Policy| {
                judgements.push(Judgement {
                    element: key.to_owned(),
                    requirement: policy.requirement(path, &valid),
                });
                Ok(())
            })
        })?;
        let next = Parsed::new(self.channel_id(), self.follow(&elements)?)?
            .serve()
            .map_err(|error| error.within("config update is not compatible"))?;
        self.check_successor(&next)?;
        let signers = signed_data(signed)?
            .map(|signature| self.signer(&signature.identity, &valid))
            .collect();
        Ok(Review {
            next,
            judgements,
            signers,
        })
    }

    fn signer(&self, creator: &Bytes, valid: &[Arc<Identity>]) -> UpdateSigner {
        match self.membership().identity(creator) {
            Err(error) => {
                let named = SerializedIdentity::decode(creator.clone());
                UpdateSigner {
                    msp_id: named.map(|named| named.mspid).unwrap_or_default(),
                    subject: "?".to_owned(),
                    flaw: Some(error.to_string()),
                }
            }
            Ok(identity) => {
                let good = valid.iter().any(|one| one.id() == identity.id());
                let flaw = match identity.validate() {
                    Err(error) => Some(error.to_string()),
                    Ok(()) if !good => Some("the signature is not over this update".to_owned()),
                    Ok(()) => None,
                };
                UpdateSigner {
                    msp_id: identity.msp_id().to_owned(),
                    subject: identity.certificate().subject().to_string(),
                    flaw,
                }
            }
        }
    }
}

/// The signatures of several copies of one update, together: each organisation may sign its own copy of a file.
/// A signature that is in several of them is taken once.
///
/// # Errors
/// The copies are not of the same update, or there are none.
pub fn merge_signatures(
    copies: impl IntoIterator<Item = ConfigUpdateEnvelope>,
) -> Result<ConfigUpdateEnvelope, ConfigError> {
    let mut merged: Option<ConfigUpdateEnvelope> = None;
    for copy in copies {
        let Some(merged) = &mut merged else {
            merged = Some(copy);
            continue;
        };
        if merged.config_update != copy.config_update {
            return Err(ConfigError::new(
                "these are signatures over different updates; all must sign copies of one and the same",
            ));
        }
        for signature in copy.signatures {
            if !merged.signatures.contains(&signature) {
                merged.signatures.push(signature);
            }
        }
    }
    merged.ok_or_else(|| ConfigError::new("there is no update"))
}

/// The channel and the signed update in a CONFIG_UPDATE message.
///
/// # Errors
/// The envelope is no such message.
pub fn open_config_update(
    envelope: &RawEnvelope,
) -> Result<(String, ConfigUpdateEnvelope), ConfigError> {
    let signed = open_update(envelope)?;
    let parts =
        EnvelopeParts::parse(envelope).map_err(|error| ConfigError::new(error.to_string()))?;
    Ok((parts.channel_header.channel_id, signed))
}

/// The CONFIG_UPDATE message that carries an update: what files hold and what is submitted. `made_at` is in seconds since
/// 1970; `nonce` must never have been used by this sender before.
///
/// # Errors
/// [`SignError`] if the sender's key could not be used.
pub fn config_update_message(
    channel_id: &str,
    signed: &ConfigUpdateEnvelope,
    made_at: i64,
    nonce: &[u8],
    sender: &dyn Signer,
) -> Result<RawEnvelope, SignError> {
    let header = ChannelHeader {
        r#type: HeaderType::ConfigUpdate as i32,
        timestamp: Some(Timestamp {
            seconds: made_at,
            nanos: 0,
        }),
        channel_id: channel_id.to_owned(),
        ..ChannelHeader::default()
    };
    envelope::sign(&header, signed.encode_to_vec(), nonce, sender)
}
