//! The raft library's log lines, told through `tracing`.
//!
//! The library's texts are those of its ancestor, which operators' scripts look for, except that it leaves out the
//! member's id in front; it is put back here. The fields `channel` and `node` name the group.

use std::fmt::{self, Write as _};

use slog::{Drain, KV, Level, Logger, OwnedKVList, Record, Serializer};

/// Under which target consensus speaks.
pub const LOG_TARGET: &str = "orderer.consensus.etcdraft";

/// A logger for one member of one group.
pub(crate) fn logger(name: &str, id: u64) -> Logger {
    Logger::root(
        Bridge {
            name: name.to_owned(),
            id,
        }
        .ignore_res(),
        slog::o!(),
    )
}

struct Bridge {
    name: String,
    id: u64,
}

impl Drain for Bridge {
    type Ok = ();
    type Err = slog::Never;

    fn is_enabled(&self, level: Level) -> bool {
        match level {
            Level::Critical | Level::Error => {
                tracing::enabled!(target: LOG_TARGET, tracing::Level::ERROR)
            }
            Level::Warning => tracing::enabled!(target: LOG_TARGET, tracing::Level::WARN),
            Level::Info => tracing::enabled!(target: LOG_TARGET, tracing::Level::INFO),
            Level::Debug | Level::Trace => {
                tracing::enabled!(target: LOG_TARGET, tracing::Level::TRACE)
            }
        }
    }

    fn log(&self, record: &Record<'_>, _: &OwnedKVList) -> Result<(), slog::Never> {
        if !self.is_enabled(record.level()) {
            return Ok(());
        }
        let mut text = format!("{:x} {}", self.id, record.msg());
        let mut pairs = Pairs {
            told: record.msg().to_string(),
            text: &mut text,
            count: 0,
        };
        // Writing to a string does not fail.
        let _ = record.kv().serialize(record, &mut pairs);
        if pairs.count > 0 {
            text.push(']');
        }
        let (channel, node) = (self.name.as_str(), self.id);
        match record.level() {
            Level::Critical | Level::Error => {
                tracing::error!(target: LOG_TARGET, channel, node, "{text}");
            }
            Level::Warning => tracing::warn!(target: LOG_TARGET, channel, node, "{text}"),
            Level::Info => tracing::info!(target: LOG_TARGET, channel, node, "{text}"),
            // These show every message with its content; whoever asks for debug lines wants decisions, not traffic.
            Level::Debug | Level::Trace => {
                tracing::trace!(target: LOG_TARGET, channel, node, "{text}")
            }
        }
        Ok(())
    }
}

/// Key-value pairs as `text [key: value, key: value]`, without those that the text itself tells.
struct Pairs<'a> {
    told: String,
    text: &'a mut String,
    count: usize,
}

impl Serializer for Pairs<'_> {
    fn emit_arguments(&mut self, key: slog::Key, value: &fmt::Arguments<'_>) -> slog::Result {
        let value = value.to_string();
        if self
            .told
            .split(|c: char| !c.is_alphanumeric())
            .any(|word| word == value)
        {
            return Ok(());
        }
        let before = if self.count == 0 { " [" } else { ", " };
        self.count += 1;
        Ok(write!(self.text, "{before}{key}: {value}")?)
    }
}
