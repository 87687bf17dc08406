//! What happens when I kill this process now? Real processes are killed, stopped and cut off at moments drawn from a
//! seed, while a client pays; afterwards the books of all of them must be right.
//!
//! `QUORATE_FAULT_SEED` repeats a run's schedule. More than the default is done if these say so: `QUORATE_FAULT_PAYMENTS`
//! (`kill`), `QUORATE_FAULT_ROUNDS` (`fencing`), `QUORATE_FAULTS` (`hot_cold`). The tests run one at a time, because they
//! measure times; see `support::Alone`.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "all of this is tests, their helpers included"
)]

mod fencing;
mod firewall;
mod haproxy;
mod hot_cold;
mod judges;
mod kill;
mod operators;
mod standby;
mod support;
mod workers;
