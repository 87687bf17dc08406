//! The generated clients and servers of `AtomicBroadcast` and `Cluster`.

#![allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]

include!(concat!(env!("OUT_DIR"), "/orderer.rs"));
