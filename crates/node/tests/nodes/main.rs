//! Whole nodes in this process, over real sockets, TLS and databases, driven as applications and operators drive them.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "all of this is tests, their helpers included"
)]

mod app;
mod audit;
mod hsm;
mod leases;
mod lifecycle;
mod notaries;
mod operators;
mod payments;
mod releases;
mod traces;
mod web;
mod world;
