//! `enterpriseConfiguration`: mutual exclusion of the machines that serve one node.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use quorate_runtime::config::Section;
use quorate_runtime::host::host_name;

use super::LoadOptions;

/// The guides' interval between two renewals of the lease.
pub const DEFAULT_UPDATE_INTERVAL: Duration = Duration::from_secs(20);
/// The guides' wait since the last renewal before another instance may take over.
pub const DEFAULT_WAIT_INTERVAL: Duration = Duration::from_secs(40);

/// The longest machine name.
const MAX_MACHINE_NAME_BYTES: usize = 255;

/// `enterpriseConfiguration.mutualExclusionConfiguration`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MutualExclusion {
    /// Whether several machines may serve this node, one at a time. When off, there is still one writer; a second
    /// instance then takes the lease from the first.
    pub on: bool,
    /// This machine; together with the base directory it identifies the instance.
    pub machine_name: String,
    /// How often the lease is renewed.
    pub update_interval: Duration,
    /// How long after the last renewal another instance may take over; greater than `update_interval`.
    pub wait_interval: Duration,
    /// What an instance does that finds the lease held.
    pub when_held: WhenHeld,
    /// What an instance does that has lost the lease.
    pub when_lost: WhenLost,
}

/// What an instance does that finds the lease held by another one. The published guides differ, so it is a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenHeld {
    /// It waits, and takes over by itself.
    Wait,
    /// It ends soon after start.
    Exit,
    /// It waits, and takes over when a person says so.
    Manual,
}

/// What an instance does that has lost the lease or the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenLost {
    /// It ends.
    Exit,
    /// It becomes a standby again.
    Standby,
}

/// A word that is none of the choices.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be one of {0}")]
pub struct ChoiceError(pub(super) &'static str);

impl FromStr for WhenHeld {
    type Err = ChoiceError;

    fn from_str(text: &str) -> Result<Self, ChoiceError> {
        match text.to_ascii_uppercase().as_str() {
            "WAIT" => Ok(Self::Wait),
            "EXIT" => Ok(Self::Exit),
            "MANUAL" => Ok(Self::Manual),
            _ => Err(ChoiceError("WAIT, EXIT, MANUAL")),
        }
    }
}

impl fmt::Display for WhenHeld {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Wait => "WAIT",
            Self::Exit => "EXIT",
            Self::Manual => "MANUAL",
        })
    }
}

impl FromStr for WhenLost {
    type Err = ChoiceError;

    fn from_str(text: &str) -> Result<Self, ChoiceError> {
        match text.to_ascii_uppercase().as_str() {
            "EXIT" => Ok(Self::Exit),
            "STANDBY" => Ok(Self::Standby),
            _ => Err(ChoiceError("EXIT, STANDBY")),
        }
    }
}

impl fmt::Display for WhenLost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exit => "EXIT",
            Self::Standby => "STANDBY",
        })
    }
}

pub(super) fn decode(
    enterprise: &Section<'_>,
    options: &LoadOptions,
    base: &Path,
) -> Option<MutualExclusion> {
    let exclusion = mutual_exclusion(
        enterprise.section("mutualExclusionConfiguration"),
        options,
        base,
    );

    for key in [
        "messagingServerConnectionConfiguration",
        "messagingServerBackupAddresses",
    ] {
        enterprise.unneeded(
            key,
            "messages are kept in the node's database; there is no broker to connect to",
        );
    }
    for key in ["useMultiThreadedSMM", "tuning"] {
        enterprise.unneeded(key, "the node finds its own degree of concurrency");
    }
    for key in [
        "enableCacheTracing",
        "traceTargetDirectory",
        "attachmentClassLoaderCacheSize",
    ] {
        enterprise.unneeded(key, "there is nothing of this kind here");
    }
    enterprise.ignored("ledgerRecoveryConfiguration", "this is not supported");
    exclusion
}

fn mutual_exclusion(
    section: Section<'_>,
    options: &LoadOptions,
    base: &Path,
) -> Option<MutualExclusion> {
    let on = section.boolean_or("on", false);
    let bounds = || Duration::from_millis(10)..=Duration::from_secs(86_400);
    let update_interval = section.duration_or(
        "updateInterval",
        "milliseconds",
        DEFAULT_UPDATE_INTERVAL,
        bounds(),
    );
    let wait_interval = section.duration_or(
        "waitInterval",
        "milliseconds",
        DEFAULT_WAIT_INTERVAL,
        bounds(),
    );
    if wait_interval <= update_interval {
        section.problem(
            "waitInterval",
            format!(
                "{wait_interval:?} must be greater than updateInterval, which is {update_interval:?}: otherwise an \
                 instance loses its lease between two renewals; the guides have 20000 and 40000"
            ),
        );
    }
    let when_held = section.parsed_or("whenHeld", WhenHeld::Wait);
    let when_lost = section.parsed_or("whenLost", WhenLost::Exit);
    let name = match section
        .text("machineName")
        .or_else(|| options.machine_name.clone())
        .map_or_else(host_name, Ok)
    {
        Ok(name) => name,
        Err(error) => {
            section.problem(
                "machineName",
                format!("is missing, and this machine has no usable name: {error}; set it"),
            );
            return None;
        }
    };
    if name.trim().is_empty()
        || name.len() > MAX_MACHINE_NAME_BYTES
        || name.contains(char::is_control)
    {
        section.problem(
            "machineName",
            format!("must be a plain name of at most {MAX_MACHINE_NAME_BYTES} bytes"),
        );
    } else if !section.has("machineName") {
        section.show("machineName", &name);
    }
    if on && !base.is_absolute() {
        section.warning(
            "on",
            "the base directory is part of this instance's identity; give it as an absolute path",
        );
    }
    Some(MutualExclusion {
        on,
        machine_name: name,
        update_interval,
        wait_interval,
        when_held,
        when_lost,
    })
}
