//! One organisation's ledger node: the parts composed.
//!
//! [`Node`] is one process serving a node. It prepares itself, waits for the lease, and as its
//! holder runs everything that serves: the flow machine with its driver, the post office between
//! queues and peers, the notary, the doors for clients. The parts themselves live in crates of
//! their own; here is only what joins them: roles (`instance`, `roles`, `active`), the flow driver
//! (`driver`), answers to flows (`host`), messages (`post`), the notary and its fellow workers (`notary`), the cleaning up at certain times
//! ([`maintenance`]), the network map and the making of
//! networks ([`network_map`], [`bootstrap`]), configuration ([`config`]), and the API's server
//! ([`rpc`]). It knows nothing of ordering channels or Fabric.
//!
//! Start reading at [`Node::run`].

mod active;
mod applications;
pub mod bootstrap;
pub mod config;
pub mod control;
pub mod crypto_service;
mod driver;
mod host;
mod instance;
mod journeys;
pub mod maintenance;
mod metrics;
pub mod network_map;
pub mod node_keys;
mod notary;
mod operations;
mod post;
mod roles;
pub mod rpc;
mod rpc_audit;

pub use active::Addresses;
pub use applications::{AppError, Applications};
pub use instance::{Milestone, Node, NodeError, NodeOptions, write_node_info};
