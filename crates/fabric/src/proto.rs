//! Protobuf types generated from `proto/`, in Fabric's packages.
//!
//! Unknown fields are lost when such a value is encoded again: hash, sign and forward the bytes that were received.

#![allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]

/// Envelopes, blocks, channel configuration, policies and principals.
pub mod common {
    include!(concat!(env!("OUT_DIR"), "/common.rs"));
}

/// Organisations' membership definitions.
pub mod msp {
    include!(concat!(env!("OUT_DIR"), "/msp.rs"));
}

/// Broadcast, Deliver and Cluster messages, and the orderer group's values.
pub mod orderer {
    include!(concat!(env!("OUT_DIR"), "/orderer.rs"));
}

/// Consenters, options and metadata of Raft channels.
pub mod etcdraft {
    include!(concat!(env!("OUT_DIR"), "/etcdraft.rs"));
}

/// The application group's values.
pub mod protos {
    include!(concat!(env!("OUT_DIR"), "/protos.rs"));
}
