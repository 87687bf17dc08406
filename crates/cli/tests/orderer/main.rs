//! `quorate orderer` as real processes, asked what Fabric's orderer was asked when the fixtures were recorded.
//!
//! Each chapter replays one recording over real sockets and compares every answer; [`kill`] has no recording but ends the
//! process at moments of its own choosing. What a recording shows and we do otherwise on purpose is named where it is
//! skipped, and in `docs/decisions`.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

mod cluster;
mod kill;
mod operations;
mod participation;
mod single;
mod support;
mod system;
mod system_network;
