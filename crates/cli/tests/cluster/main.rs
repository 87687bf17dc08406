//! Clusters of real `quorate orderer` processes: what becomes of acknowledged envelopes when orderers are killed, stopped,
//! cut off, emptied, added and removed?
//!
//! The material and the channel are made by the test. Clients submit through all orderers at once, in *committed* mode and
//! without ever repeating an envelope; afterwards the chains of all orderers are compared and every answer is looked up
//! in them (`support::judge`). `QUORATE_CLUSTER_SEED` repeats a schedule of faults, `QUORATE_CLUSTER_FAULTS` makes it
//! longer. One test runs at a time, because they measure times; see `support::Alone`.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "all of this is tests, their helpers included"
)]

mod members;
mod schedule;
#[allow(
    dead_code,
    reason = "the target `procedures` uses what is not used here"
)]
mod support;
mod takeover;
