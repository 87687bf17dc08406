//! Hyperledger Fabric's frozen bytes, and the rules that decide over them.
//!
//! Everything here is pure: bytes in, values or refusals out; the time is an argument. Sockets, files and clocks are
//! the business of the crate `orderer`.
//!
//! * [`config`]: a channel's configuration and the rules by which it changes.
//! * [`proto`]: the generated message types.
//! * [`msp`]: who is a member of which organisation, and in what role.
//! * [`policy`]: which signatures are wanted for what.

pub mod config;
pub mod msp;
pub mod policy;
pub mod proto;
