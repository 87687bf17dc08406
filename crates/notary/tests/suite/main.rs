//! One suite for both engines: a desk over a database of its own, asked as a node asks it, through the inbox and the
//! outbox.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "all of this is tests, their helpers included"
)]

mod batches;
mod crowds;
mod model;
mod requests;
mod support;
mod workers;
