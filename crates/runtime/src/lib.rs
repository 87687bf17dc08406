//! The life of a process: everything a long-running part needs from its surroundings, and nothing of the ledger.
//!
//! * [`tasks`]: who owns a spawned task, how it is asked to stop, and what is said when it did not. The only place in
//!   the workspace that spawns.
//! * [`clock`] and [`entropy`]: time and randomness as values handed down, so that tests can hold them still.
//! * [`hocon`] and [`config`]: the text of a `node.conf` becomes a tree of values that know their line and column, and
//!   the tree becomes typed options with every mistake reported at once.
//! * [`telemetry`]: log lines to console and file, with levels that can be changed while the process runs.
//! * [`metrics`]: the registry behind `/metrics`.
//! * [`http`] and [`operations`]: a small bounded HTTP server, and the operations endpoint on it.
//! * [`traces`]: spans of OpenTelemetry, exported.
//! * [`host`]: what the machine is called, and how it asks us to stop.
//!
//! This crate reads neither the environment nor the command line: whoever composes the process hands both down.
//! Start reading at [`Tasks`].

pub mod clock;
pub mod config;
pub mod entropy;
pub mod hocon;
pub mod host;
pub mod http;
pub mod metrics;
pub mod operations;
pub mod tasks;
pub mod telemetry;
pub mod traces;

pub use clock::{Clock, ManualClock};
pub use config::Secret;
pub use entropy::Entropy;
pub use metrics::Metrics;
pub use tasks::{Shutdown, Tasks};
pub use traces::Traces;
