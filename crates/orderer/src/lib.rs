//! The ordering service: everything between a client's envelope and a block that peers accept.

pub mod admin;
pub mod admin_client;
pub mod assembly;
pub mod audit;
pub mod broadcast;
pub mod channel;
pub mod checks;
pub mod cluster;
pub mod cutter;
pub mod deliver;
pub mod deliver_client;
pub mod follower;
pub mod grpc;
pub mod https;
pub mod listener;
pub mod metrics;
pub mod operations;
pub mod options;
pub mod raw;
pub mod registrar;
pub mod replication;
pub mod service;
mod socket;
pub mod statsd;
pub mod store;
pub mod trace;
