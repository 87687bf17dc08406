//! The ledger at its boundary: what is built, hashed, signed, sent, torn off, verified, and what is refused.

// Clippy allows these in test functions by itself, but not in the functions that they share.
#![allow(clippy::unwrap_used, clippy::panic)]

mod contracts;
mod golden;
mod network;
mod notarisation;
mod properties;
mod sample;
mod tampering;
mod transactions;
