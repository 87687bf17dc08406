//! Hyperledger Fabric's frozen bytes, and the rules that decide over them.
//!
//! Everything here is pure: bytes in, values or refusals out; the time is an argument. Sockets, files and clocks are
//! the business of the crate `orderer`.
//!
//! * [`proto`]: the generated message types.
//! * [`envelope`]: what clients submit; channel names.
//! * [`block`]: hashes, metadata and signatures of blocks.
//! * [`config`]: a channel's configuration and the rules by which it changes.
//! * [`msp`]: who is a member of which organisation, and in what role.
//! * [`policy`]: which signatures are wanted for what.
//! * [`crypto_material`]: keys and certificates for organisations, from `crypto-config.yaml`.
//! * [`genesis`]: first blocks from `configtx.yaml`.
//! * [`inspect`]: all of it as JSON and text, for people.
//! * [`raftpb`]: the messages of etcd's Raft, as the crate `raft` understands them.

pub mod block;
pub mod config;
pub mod crypto_material;
pub mod envelope;
pub mod genesis;
pub mod inspect;
pub mod msp;
pub mod policy;
pub mod proto;
pub mod raftpb;
mod wire;
