//! The procedures of `docs/guide/reconfigure.md`, in its order and by its commands, on clusters of real `quorate orderer`
//! processes while clients submit in *committed* mode: nothing that was acknowledged may be lost, all chains must be the
//! same, and what is dangerous must be refused before anything is sent.
//!
//! Clusters, clients and the judge are those of the target `cluster`.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "all of this is tests, their helpers included"
)]

mod certificates;
mod consenters;
mod settings;
#[path = "../cluster/support/mod.rs"]
#[allow(dead_code, reason = "the target `cluster` uses what is not used here")]
mod support;
mod tool;
