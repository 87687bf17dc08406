//! The network parameters: those that the nodes have, and those that they shall have.

use quorate_identity::UnixTime;
use quorate_ledger::network::{
    NetworkError, NetworkParameters, NotaryInfo, SignedNetworkParameters,
};
use quorate_ledger::{PLATFORM_VERSION, Timestamp};
use quorate_runtime::tasks::chain;

use super::authority::Authority;
use super::plan::Plan;
use super::report::ParametersChange;
use super::{BootstrapError, BootstrapOptions};
use crate::network_map::files::read_parameters;
use crate::network_map::{NETWORK_PARAMETERS_FILE, NetworkFileError};

/// The network parameters that the nodes have.
pub(super) struct ExistingParameters {
    newest: Option<(SignedNetworkParameters, NetworkParameters)>,
    /// Nodes have different ones of the newest epoch; only a further epoch unites them.
    divided: bool,
}

impl ExistingParameters {
    pub(super) fn read(
        plan: &Plan,
        authority: &Authority,
        now: UnixTime,
        warnings: &mut Vec<String>,
    ) -> Result<Self, BootstrapError> {
        let mut newest: Option<(SignedNetworkParameters, NetworkParameters)> = None;
        let mut divided = false;
        for node in &plan.nodes {
            let path = node.directory.join(NETWORK_PARAMETERS_FILE);
            if matches!(path.try_exists(), Ok(false)) {
                continue;
            }
            match read_parameters(&path, authority.root(), now) {
                Ok((signed, parameters)) => {
                    let (epoch, hash) = (parameters.epoch, signed.hash());
                    let known = newest.as_ref().map(|(s, p)| (p.epoch, s.hash()));
                    match known {
                        Some((known, other)) if known == epoch => divided |= other != hash,
                        Some((known, _)) if known > epoch => {}
                        _ => {
                            divided = false;
                            newest = Some((signed, parameters));
                        }
                    }
                }
                Err(
                    error @ NetworkFileError::Refused {
                        source: NetworkError::PlatformVersion { .. },
                        ..
                    },
                ) => return Err(BootstrapError::ParametersTooNew(Box::new(error))),
                Err(error) => warnings.push(format!("{}; it is replaced", chain(&error))),
            }
        }
        Ok(Self { newest, divided })
    }

    /// What the parameters shall be; epoch and time are still the old ones.
    pub(super) fn changed(
        &self,
        options: &BootstrapOptions,
        notaries: Vec<NotaryInfo>,
        now: Timestamp,
    ) -> NetworkParameters {
        let mut parameters = match &self.newest {
            Some((_, newest)) => newest.clone(),
            None => NetworkParameters::first(Vec::new(), now),
        };
        parameters.notaries = notaries;
        if let Some(version) = options.minimum_platform_version {
            parameters.minimum_platform_version = version;
        }
        if let Some(size) = options.max_message_size {
            parameters.max_message_size = size;
        }
        if let Some(size) = options.max_transaction_size {
            parameters.max_transaction_size = size;
        }
        if let Some(days) = options.event_horizon_days {
            parameters.event_horizon_days = days;
        }
        if self
            .newest
            .as_ref()
            .is_some_and(|(_, newest)| *newest != parameters || self.divided)
        {
            parameters.epoch = parameters.epoch.saturating_add(1);
            parameters.modified_time = now;
        }
        parameters
    }

    /// Notaries that would be notaries no longer.
    pub(super) fn losses(&self, wanted: &NetworkParameters) -> Vec<String> {
        let before = self.newest.iter().flat_map(|(_, newest)| &newest.notaries);
        before
            .filter(|notary| !wanted.is_notary(&notary.identity))
            .map(|notary| {
                format!(
                    "{} (key {}) is a notary of the network no longer, for no configuration here provides it; \
                     states that it guards can be moved only after it is one again",
                    notary.identity,
                    notary.identity.owning_key.to_string_short()
                )
            })
            .collect()
    }

    /// The parameters to hand out: the old ones to the byte if they already say it.
    pub(super) fn finish(
        self,
        wanted: NetworkParameters,
        authority: &Authority,
    ) -> Result<FinishedParameters, BootstrapError> {
        match self.newest {
            Some((signed, newest)) if newest == wanted => Ok(FinishedParameters {
                signed,
                content: newest,
                change: ParametersChange::Unchanged,
            }),
            newest => Ok(FinishedParameters {
                signed: sign(&wanted, authority)?,
                content: wanted,
                change: match newest {
                    Some((_, newest)) => ParametersChange::Updated {
                        from_epoch: newest.epoch,
                    },
                    None => ParametersChange::Made,
                },
            }),
        }
    }
}

/// The parameters to hand out.
pub(super) struct FinishedParameters {
    pub(super) signed: SignedNetworkParameters,
    pub(super) content: NetworkParameters,
    pub(super) change: ParametersChange,
}

/// Signs parameters that this program can handle.
pub(super) fn sign(
    parameters: &NetworkParameters,
    authority: &Authority,
) -> Result<SignedNetworkParameters, BootstrapError> {
    let wanted = parameters.minimum_platform_version;
    if wanted > PLATFORM_VERSION {
        return Err(BootstrapError::Parameters(Box::new(
            NetworkError::PlatformVersion { wanted },
        )));
    }
    SignedNetworkParameters::sign(parameters, authority.certifies().network_map())
        .map_err(|error| BootstrapError::Parameters(Box::new(error)))
}
