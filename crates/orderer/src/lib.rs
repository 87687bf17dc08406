//! The ordering service: everything between a client's envelope and a block that peers accept.

pub mod admin;
pub mod cluster;
pub mod grpc;
pub mod options;
pub mod store;
