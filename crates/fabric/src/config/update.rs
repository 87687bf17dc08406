//! How one configuration becomes the next: what a CONFIG_UPDATE may change, and who must have signed it.
//!
//! An update names what it relies on (read set) and what it wants (write set). The elements whose version it raises are
//! its delta; for each of them the mod policy *of the present element* must be satisfied by the update's signatures.
//! Who sent the envelope does not matter here. Start with [`ChannelConfig::propose_update`].

use std::collections::BTreeSet;
use std::fmt;

use prost::Message as _;

use super::elements::{Element, Elements, Entry, assemble, check_name, elements};
use super::error::decode;
use super::{ChannelConfig, ConfigError, Parsed};
use crate::envelope::{EnvelopeError, EnvelopeParts, RawEnvelope};
use crate::msp::{SignError, Signer};
use crate::policy::{Policy, SignedData, verified_identities};
use crate::proto::common::{
    Config, ConfigEnvelope, ConfigSignature, ConfigUpdate, ConfigUpdateEnvelope, HeaderType,
    SignatureHeader,
};

/// An authorised update and what it leads to.
pub struct ProposedUpdate {
    /// What becomes the data of the CONFIG message.
    pub envelope: ConfigEnvelope,
    /// The configuration that will be current, already validated.
    pub next: ChannelConfig,
    /// What was asked for.
    pub update: ConfigUpdate,
}

/// Configurations are long: what they are for and where they lead is enough.
impl fmt::Debug for ProposedUpdate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProposedUpdate")
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}

impl ChannelConfig {
    /// Judges a CONFIG_UPDATE envelope and computes the configuration that it leads to: authorised, valid in itself,
    /// and allowed after this one.
    ///
    /// Left to others: the envelope's own signature; the consenter set
    /// ([`check_change`](super::raft_config::check_change)); maintenance mode ([`ChannelConfig::check_maintenance`]).
    ///
    /// # Errors
    /// Why the update is refused, without Fabric's `error applying config update to existing channel …`.
    pub fn propose_update(&self, envelope: &RawEnvelope) -> Result<ProposedUpdate, ConfigError> {
        let applied = self.apply_update(envelope)?;
        let next = Parsed::new(self.channel_id(), applied.config.clone())?
            .serve()
            .map_err(|error| error.within("config update is not compatible"))?;
        self.check_successor(&next)?;
        Ok(applied.propose(envelope, next))
    }

    /// Whether a CONFIG message's data is what its own update makes of this configuration.
    ///
    /// # Errors
    /// The update is refused, or leads elsewhere.
    pub fn validate(&self, envelope: &ConfigEnvelope) -> Result<(), ConfigError> {
        let Some(config) = &envelope.config else {
            return Err(ConfigError::new("config envelope has nil config"));
        };
        let next_sequence = self.sequence().checked_add(1);
        if next_sequence != Some(config.sequence) {
            return Err(ConfigError::new(format!(
                "config currently at sequence {}, cannot validate config at sequence {}",
                self.sequence(),
                config.sequence
            )));
        }
        let Some(last_update) = &envelope.last_update else {
            return Err(ConfigError::new(
                "config envelope has no last update to judge it by",
            ));
        };
        let last_update = RawEnvelope::new(&last_update.payload, &last_update.signature);
        let signed = open_update(&last_update)?;
        let update: ConfigUpdate = decode(&signed.config_update)?;
        let next = assemble(&self.authorise(&signed, &update)?)?;
        if config.channel_group.as_ref() == Some(&next) {
            Ok(())
        } else {
            Err(ConfigError::new(
                "ConfigEnvelope LastUpdate did not produce the supplied config result",
            ))
        }
    }

    /// The next configuration, authorised but not yet validated in itself.
    pub(super) fn apply_update(
        &self,
        envelope: &RawEnvelope,
    ) -> Result<AppliedUpdate, ConfigError> {
        let signed = open_update(envelope)
            .map_err(|error| error.within("error converting envelope to config update"))?;
        let authorising = |error: ConfigError| error.within("error authorizing update");
        let update: ConfigUpdate = decode(&signed.config_update).map_err(authorising)?;
        let proposed = self.authorise(&signed, &update).map_err(authorising)?;
        Ok(AppliedUpdate {
            config: self.follow(&proposed)?,
            update,
        })
    }

    /// The configuration that these elements are, with the next sequence.
    pub(super) fn follow(&self, elements: &Elements<'_>) -> Result<Config, ConfigError> {
        let channel_group = assemble(elements)
            .map_err(|error| error.within("could not turn configMap back to channelGroup"))?;
        let sequence = self
            .sequence()
            .checked_add(1)
            .ok_or_else(|| ConfigError::new("the config sequence cannot grow any further"))?;
        Ok(Config {
            sequence,
            channel_group: Some(channel_group),
        })
    }

    /// All elements after the update, those included that no group names any more.
    fn authorise<'a>(
        &'a self,
        signed: &ConfigUpdateEnvelope,
        update: &'a ConfigUpdate,
    ) -> Result<Elements<'a>, ConfigError> {
        self.update_elements(update, || {
            // Verified when the first policy wants to know, and once.
            let mut signatures = Some(signed_data(signed)?);
            let mut signers = Vec::new();
            Ok(move |key: &str, _: &str, policy: &Policy| {
                if let Some(signatures) = signatures.take() {
                    signers = verified_identities(self.membership(), signatures);
                }
                policy.evaluate_identities(&signers).map_err(|error| {
                    ConfigError::new(format!("policy for {key} not satisfied: {error}"))
                })
            })
        })
    }

    /// All elements after the update, if it fits this configuration. The judge, made as soon as the update can be read, is
    /// asked once for each policy that governs a present element which the update changes: the element's key, the policy's
    /// path, the policy.
    pub(super) fn update_elements<'a, J>(
        &'a self,
        update: &'a ConfigUpdate,
        make_judge: impl FnOnce() -> Result<J, ConfigError>,
    ) -> Result<Elements<'a>, ConfigError>
    where
        J: FnMut(&str, &str, &Policy) -> Result<(), ConfigError>,
    {
        if update.channel_id != self.channel_id() {
            return Err(ConfigError::new(format!(
                "ConfigUpdate for channel '{}' but envelope for channel '{}'",
                update.channel_id,
                self.channel_id()
            )));
        }
        let mut current = elements(self.proto().channel_group.as_ref())?;
        let read_set = elements(update.read_set.as_ref())
            .map_err(|error| error.within("error mapping ReadSet"))?;
        check_read_set(&current, &read_set)
            .map_err(|error| error.within("error validating ReadSet"))?;
        let write_set = elements(update.write_set.as_ref())
            .map_err(|error| error.within("error mapping WriteSet"))?;
        let delta: Vec<(&String, &Entry<'a>)> = write_set
            .iter()
            .filter(|(key, wanted)| {
                read_set
                    .get(*key)
                    .is_none_or(|read| read.element.version() != wanted.element.version())
            })
            .collect();
        self.check_delta(&current, &delta, make_judge()?)
            .map_err(|error| error.within("error validating DeltaSet"))?;
        for (key, entry) in delta {
            current.insert(key.clone(), entry.clone());
        }
        if let Some(key) = write_set.keys().find(|key| !current.contains_key(*key)) {
            return Err(ConfigError::new(format!(
                "full config did not verify: writeset contained key {key} which did not appear in proposed config"
            )));
        }
        Ok(current)
    }

    fn check_delta(
        &self,
        current: &Elements<'_>,
        delta: &[(&String, &Entry<'_>)],
        mut judge: impl FnMut(&str, &str, &Policy) -> Result<(), ConfigError>,
    ) -> Result<(), ConfigError> {
        if delta.is_empty() {
            return Err(ConfigError::new(
                "delta set was empty -- update would have no effect",
            ));
        }
        // Many elements share a policy.
        let mut judged: BTreeSet<String> = BTreeSet::new();
        for (key, wanted) in delta {
            let version = wanted.element.version();
            check_mod_policy(wanted.element.mod_policy()).map_err(|error| {
                error.within(format_args!("invalid mod_policy for element {key}"))
            })?;
            let Some(existing) = current.get(*key) else {
                if version != 0 {
                    return Err(ConfigError::new(format!(
                        "attempted to set key {key} to version {version}, but key does not exist"
                    )));
                }
                continue;
            };
            let current_version = existing.element.version();
            if current_version.checked_add(1) != Some(version) {
                return Err(ConfigError::new(format!(
                    "attempt to set key {key} to version {version}, but key is at version {current_version}"
                )));
            }
            let path = governing_policy(existing);
            if judged.contains(&path) {
                continue;
            }
            let policy = self.policies().get(&path).ok_or_else(|| {
                let name = existing.element.mod_policy();
                ConfigError::new(format!("unexpected missing policy {name} for item {key}"))
            })?;
            judge(key, &path, &policy)?;
            judged.insert(path);
        }
        Ok(())
    }
}

/// An authorised update and the configuration it leads to, which may still make no sense.
pub(super) struct AppliedUpdate {
    pub(super) update: ConfigUpdate,
    pub(super) config: Config,
}

impl AppliedUpdate {
    /// With the configuration as validated.
    pub(super) fn propose(self, envelope: &RawEnvelope, next: ChannelConfig) -> ProposedUpdate {
        ProposedUpdate {
            envelope: ConfigEnvelope {
                config: Some(self.config),
                last_update: Some(envelope.to_proto()),
            },
            next,
            update: self.update,
        }
    }
}

/// Signs an update for its CONFIG_UPDATE message; as many sign as its mod policies ask for. `config_update` is the encoded
/// `ConfigUpdate`. `nonce` must never have been used by this signer before.
///
/// # Errors
/// [`SignError`] if the signer's key could not be used.
pub fn sign_update(
    config_update: &[u8],
    nonce: &[u8],
    signer: &dyn Signer,
) -> Result<ConfigSignature, SignError> {
    let header = SignatureHeader {
        creator: signer.creator().to_vec(),
        nonce: nonce.to_vec(),
    };
    let signature_header = header.encode_to_vec();
    let signature = signer.sign(&[&signature_header, config_update].concat())?;
    Ok(ConfigSignature {
        signature_header,
        signature,
    })
}

/// Opens the envelope of a CONFIG_UPDATE message.
pub(super) fn open_update(envelope: &RawEnvelope) -> Result<ConfigUpdateEnvelope, ConfigError> {
    let parts = EnvelopeParts::parse(envelope).map_err(|error| match error {
        EnvelopeError::NoHeader => ConfigError::new("envelope must have a Header"),
        error => ConfigError::new(error.to_string()),
    })?;
    let found = parts.channel_header.header_type;
    if found != HeaderType::ConfigUpdate as i32 {
        let found = HeaderType::try_from(found).map_or_else(
            |_| found.to_string(),
            |found| found.as_str_name().to_owned(),
        );
        return Err(ConfigError::new(format!(
            "invalid type {found}, expected CONFIG_UPDATE"
        )));
    }
    decode(&parts.data)
        .map_err(|error| error.within("error unmarshalling message for type CONFIG_UPDATE"))
}

fn check_read_set(current: &Elements<'_>, read_set: &Elements<'_>) -> Result<(), ConfigError> {
    for (key, read) in read_set {
        let Some(existing) = current.get(key) else {
            return Err(ConfigError::new(format!(
                "existing config does not contain element for {key} but was in the read set"
            )));
        };
        let (wanted, present) = (read.element.version(), existing.element.version());
        if wanted != present {
            return Err(ConfigError::new(format!(
                "proposed update requires that key {key} be at version {wanted}, but it is currently at version {present}"
            )));
        }
    }
    Ok(())
}

/// The path of the policy that an element is changed under.
fn governing_policy(entry: &Entry<'_>) -> String {
    let name = entry.element.mod_policy();
    if name.starts_with('/') {
        return name.to_owned();
    }
    let mut groups = entry.path.clone();
    // A group is governed by its own policies, everything else by those beside it.
    if matches!(entry.element, Element::Group(_)) {
        groups.push(entry.name);
    }
    format!("/{}/{name}", groups.join("/"))
}

fn check_mod_policy(mod_policy: &str) -> Result<(), ConfigError> {
    if mod_policy.is_empty() {
        return Err(ConfigError::new("mod_policy not set"));
    }
    let path = mod_policy.strip_prefix('/').unwrap_or(mod_policy);
    path.split('/').enumerate().try_for_each(|(index, name)| {
        check_name(name)
            .map_err(|error| error.within(format_args!("path element at {index} is invalid")))
    })
}

/// What each config signature is over: its own signature header, then the update. Each is made when it is asked for: together they
/// may be a thousand times as long as the message that brought them.
pub(super) fn signed_data(
    signed: &ConfigUpdateEnvelope,
) -> Result<impl Iterator<Item = SignedData>, ConfigError> {
    let headers = signed
        .signatures
        .iter()
        .map(|signature| decode(&signature.signature_header))
        .collect::<Result<Vec<SignatureHeader>, _>>()?;
    Ok(signed
        .signatures
        .iter()
        .zip(headers)
        .map(|(signature, header)| SignedData {
            data: [&signature.signature_header[..], &signed.config_update]
                .concat()
                .into(),
            identity: header.creator.into(),
            signature: signature.signature.clone().into(),
        }))
}
