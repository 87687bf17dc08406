//! One suite for both engines: each test gets a database of its own, a SQLite file or a database of a real PostgreSQL
//! server that this process starts.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "all of this is tests, their helpers included"
)]

mod cleanup;
mod commits;
mod leases;
mod locks;
mod migrations;
mod notary;
mod queues;
mod rates;
mod support;
mod vault;
