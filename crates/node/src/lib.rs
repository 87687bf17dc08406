//! (to be written)

pub mod rpc;
