//! `enterpriseConfiguration`: what is recorded about users, and what is cleaned up when.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use quorate_runtime::config::Section;

use super::ChoiceError;
use crate::maintenance::{Period, Schedule};

/// Corda's days for which a message is recognised after normal operation.
pub const DEFAULT_SENDER_RETENTION_DAYS: u32 = 7;

/// The most of the network's event horizon that counts for a default, in days.
const MAX_EVENT_HORIZON_DAYS: u64 = 365;

/// The longest retention: a hundred years, in days.
const MAX_RETENTION_DAYS: u64 = 36_525;

const SECONDS_PER_DAY: u64 = 86_400;

/// `auditService.eventsToRecord`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventsToRecord {
    /// Nothing.
    None,
    /// What users ask for by RPC.
    Rpc,
    /// Everything that can be recorded: RPC, for now.
    All,
}

impl EventsToRecord {
    /// Whether calls by RPC are among them.
    pub fn rpc(self) -> bool {
        self != Self::None
    }
}

impl FromStr for EventsToRecord {
    type Err = ChoiceError;

    fn from_str(text: &str) -> Result<Self, ChoiceError> {
        match text.to_ascii_uppercase().as_str() {
            "NONE" => Ok(Self::None),
            "RPC" => Ok(Self::Rpc),
            "ALL" => Ok(Self::All),
            _ => Err(ChoiceError("NONE, RPC, ALL")),
        }
    }
}

impl fmt::Display for EventsToRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "NONE",
            Self::Rpc => "RPC",
            Self::All => "ALL",
        })
    }
}

/// `maintenanceMode`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MaintenanceMode {
    /// When windows begin.
    pub schedule: Schedule,
    /// How long one is expected to take at the most. Nothing is broken off then; it is warned of.
    pub duration: Duration,
    /// How long records of RPC are kept.
    pub rpc_audit_retention: Period,
    /// Present if what is left of processed messages is to be cleaned up, too.
    pub processed_messages: Option<ProcessedMessageCleanup>,
}

/// `processedMessageCleanup`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessedMessageCleanup {
    /// For how many days messages are recognised that are sent again after a recovery.
    pub general_retention_days: Option<u32>,
    /// For how many days those of normal operation are.
    pub sender_retention_days: u32,
}

impl ProcessedMessageCleanup {
    /// For how long a queue that its sender has left is remembered, in a network with this event horizon. It can come
    /// back only by a recovery, so the longer of both times counts.
    pub fn retention(self, event_horizon: Duration) -> Duration {
        let sender = u64::from(self.sender_retention_days);
        let horizon = (event_horizon.as_secs() / SECONDS_PER_DAY).min(MAX_EVENT_HORIZON_DAYS);
        let general = self
            .general_retention_days
            .map_or(sender + horizon, u64::from);
        Duration::from_secs(general.max(sender) * SECONDS_PER_DAY)
    }
}

pub(super) fn events_to_record(enterprise: &Section<'_>) -> EventsToRecord {
    let service = enterprise.section("auditService");
    let events = service.parsed_or("eventsToRecord", EventsToRecord::None);
    service.finish();
    events
}

/// `None` if there is to be none, or a problem has been reported.
pub(super) fn mode(enterprise: &Section<'_>) -> Option<MaintenanceMode> {
    let processed_messages = processed_messages(enterprise.section("processedMessageCleanup"));
    let section = enterprise.section("maintenanceMode");
    if !section.is_present() {
        if processed_messages.is_some() {
            enterprise.warning(
                "processedMessageCleanup",
                "has no effect without maintenanceMode, which says when to clean up",
            );
        }
        return None;
    }
    let schedule = section.required::<Schedule>(
        "schedule",
        "write six fields, as in \"00 30 14,15 * * 5\" (UTC)",
    );
    if !section.has("duration") {
        let reason = "is missing; write how long a window may take, as in \"10m\"";
        section.problem("duration", reason);
    }
    let duration = section.duration_or(
        "duration",
        "milliseconds",
        Duration::ZERO,
        Duration::from_secs(1)..=Duration::from_secs(7 * SECONDS_PER_DAY),
    );
    let rpc_audit_retention = section.required::<Period>(
        "rpcAuditDataRetentionPeriod",
        "write how long records of RPC are kept, as in \"100d\"",
    );
    section.finish();
    Some(MaintenanceMode {
        schedule: schedule?,
        duration,
        rpc_audit_retention: rpc_audit_retention?,
        processed_messages,
    })
}

fn processed_messages(section: Section<'_>) -> Option<ProcessedMessageCleanup> {
    if !section.is_present() {
        return None;
    }
    let days = |key| section.integer(key, 1..=MAX_RETENTION_DAYS);
    let to_days = |days: u64| u32::try_from(days).unwrap_or(u32::MAX);
    let general_retention_days = days("generalRetentionPeriodInDays").map(to_days);
    let sender = section.integer_or(
        "senderRetentionPeriodInDays",
        DEFAULT_SENDER_RETENTION_DAYS.into(),
        1..=MAX_RETENTION_DAYS,
    );
    section.finish();
    Some(ProcessedMessageCleanup {
        general_retention_days,
        sender_retention_days: to_days(sender),
    })
}
